//! The loader against false drivers, compiled here.

use super::{Driver, DriverError, NO_DEVICE, load, open, symbols};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A library with every function that `Api` wants, returning what the test decides.
fn false_driver(name: &str, version: i32, init: i32, n_devices: i32) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ironwarp-driver-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut source = format!(
        "#![allow(non_snake_case)]
        #[unsafe(no_mangle)] extern \"C\" fn cuInit(_: u32) -> i32 {{ {init} }}
        #[unsafe(no_mangle)] unsafe extern \"C\" fn cuDriverGetVersion(v: *mut i32) -> i32 {{
            unsafe {{ *v = {version} }}; 0
        }}
        #[unsafe(no_mangle)] unsafe extern \"C\" fn cuDeviceGetCount(n: *mut i32) -> i32 {{
            unsafe {{ *n = {n_devices} }}; 0
        }}
        #[unsafe(no_mangle)] unsafe extern \"C\" fn cuGetErrorName(c: i32, s: *mut *const u8) -> i32 {{
            unsafe {{ *s = if c == 46 {{ c\"CUDA_ERROR_DEVICE_UNAVAILABLE\".as_ptr().cast() }}
                else {{ std::ptr::null() }} }}; 0
        }}
        // Six integers in registers and five on the stack, as a launch has them.
        #[unsafe(no_mangle)] extern \"C\" fn cuLaunchKernel(f: usize, a: u32, b: u32, c: u32,
            d: u32, e: u32, g: u32, s: u32, t: usize, p: usize, x: usize) -> i32 {{
            let got = [f, a as usize, b as usize, c as usize, d as usize, e as usize, g as usize,
                s as usize, t, p, x];
            if got == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] {{ 0 }} else {{ 1 }}
        }}\n"
    );
    let defined = ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetErrorName"];
    let api = include_str!("mod.rs").split("api! {").nth(1).unwrap();
    for symbol in api.split('"').skip(1).step_by(2).take_while(|s| s.starts_with("cu")) {
        if !defined.contains(&symbol) && symbol != "cuLaunchKernel" {
            source +=
                &format!("#[unsafe(no_mangle)] extern \"C\" fn {symbol}() -> i32 {{ 999 }}\n");
        }
    }
    let (rust, library) = (dir.join("driver.rs"), dir.join("libcuda.so.1"));
    std::fs::write(&rust, source).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&library).arg(&rust);
    assert!(rustc.status().unwrap().success());
    library
}

/// Loads and starts a driver.
fn start(library: &Path) -> Result<Driver, DriverError> {
    let library = open([library].into_iter())?;
    Driver::start(library)
}

#[test]
fn no_library_names_the_one_that_was_looked_for() {
    let paths = ["libcuda-that-is-not-there.so.1", "/nowhere/libcuda.so.1"].map(Path::new);
    let error = open(paths.into_iter()).unwrap_err();
    assert!(matches!(&error, DriverError::Missing { .. }));
    let text = error.to_string();
    assert!(text.contains("libcuda-that-is-not-there.so.1"), "{text}");
    assert!(text.contains("--device cpu"), "{text}");
}

#[test]
fn driver_of_cuda_11_is_too_old() {
    let error = start(&false_driver("old", 11_080, 0, 1)).unwrap_err();
    assert_eq!(error, DriverError::TooOld { found: 11_080, needed: 12_000 });
    let text = error.to_string();
    assert!(text.contains("CUDA 11.8") && text.contains("12.0 or newer"), "{text}");
}

#[test]
fn no_gpu_is_told_from_a_broken_driver() {
    assert_eq!(
        start(&false_driver("none", 12_040, NO_DEVICE, 0)).unwrap_err(),
        DriverError::NoDevice
    );
    assert_eq!(start(&false_driver("zero", 12_040, 0, 0)).unwrap_err(), DriverError::NoDevice);
    let error = start(&false_driver("busy", 12_040, 46, 1)).unwrap_err();
    let name = "CUDA_ERROR_DEVICE_UNAVAILABLE".to_string();
    assert_eq!(error, DriverError::Start { code: 46, name });
    let error = start(&false_driver("odd", 12_040, 7777, 1)).unwrap_err();
    assert_eq!(error, DriverError::Start { code: 7777, name: "unknown error 7777".into() });
}

#[test]
fn library_that_is_no_driver() {
    // The C library is always there, and has no function of the driver.
    let error = start(Path::new("libc.so.6")).unwrap_err();
    assert_eq!(error, DriverError::Incomplete { function: "cuInit" });
}

/// Everything that goes through the exported functions, in one test: the slots are the process's.
#[test]
fn functions_of_cust_reach_the_driver_with_their_arguments() {
    use cust::sys;
    use std::ptr::without_provenance_mut as number;
    let mut version = 0;
    if load().is_err() {
        // SAFETY: no driver is there, so this is the function that only returns a code.
        let code = unsafe { sys::cuDriverGetVersion(&mut version) };
        assert_eq!((code as i32, version), (symbols::NOT_FOUND, 0));
    }
    let driver = start(&false_driver("good", 12_040, 0, 3)).unwrap();
    assert_eq!((driver.version().as_str(), driver.n_devices()), ("12.4", 3));
    assert!(driver.launch_ex.is_none(), "this driver refuses cuGetProcAddress");
    // SAFETY: the false driver writes the version, and compares the launch's numbers.
    unsafe {
        let code = sys::cuDriverGetVersion(&mut version);
        assert_eq!((code as i32, version), (0, 12_040));
        let launch = |last: usize| {
            let (stream, params, extra) = (number(9), number(10), number(last));
            sys::cuLaunchKernel(number(1), 2, 3, 4, 5, 6, 7, 8, stream, params, extra) as i32
        };
        assert_eq!(launch(11), 0);
        assert_eq!(launch(12), 1);
    }
}
