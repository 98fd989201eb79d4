//! The loader against false drivers, compiled here.

use super::{Driver, DriverError, NO_DEVICE, load, open, symbols};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Only one test at a time may start a driver: `cust` reaches the one that started last.
static STARTING: Mutex<()> = Mutex::new(());
/// Whether one was started in this process.
static STARTED: AtomicBool = AtomicBool::new(false);

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Compiles `false_driver.rs` with settings such as `("FALSE_VERSION", "11080")`, once.
fn false_driver(settings: &[(&str, &str)]) -> PathBuf {
    let mut source = include_str!("false_driver.rs").to_string();
    let api =
        include_str!("mod.rs").split_once("\napi! {").unwrap().1.split_once("\n}\n").unwrap().0;
    let wanted = api.split('"').skip(1).step_by(2);
    for symbol in wanted.filter(|s| !include_str!("false_driver.rs").contains(&format!("fn {s}(")))
    {
        source += &format!("#[unsafe(no_mangle)] extern \"C\" fn {symbol}() -> i32 {{ 999 }}\n");
    }
    let mut hash = DefaultHasher::new();
    (&source, settings).hash(&mut hash);
    let dir = Path::new(env!("OUT_DIR")).join(format!("false-driver-{:016x}", hash.finish()));
    let library = dir.join("libcuda.so.1");
    if !library.exists() {
        // Other processes may be at it too: the last one's whole file stays.
        let mine = dir.join(std::process::id().to_string());
        std::fs::create_dir_all(&mine).unwrap();
        let (rust, compiled) = (mine.join("driver.rs"), mine.join("libcuda.so.1"));
        std::fs::write(&rust, source).unwrap();
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-o"]).arg(&compiled).arg(&rust);
        assert!(rustc.envs(settings.iter().copied()).status().unwrap().success());
        std::fs::rename(&compiled, &library).unwrap();
        std::fs::remove_dir_all(&mine).unwrap();
    }
    library
}

/// Starts a false driver, which forgets all that was before.
pub(crate) fn start(settings: &[(&str, &str)]) -> Result<Driver, DriverError> {
    STARTED.store(true, Ordering::Relaxed);
    Driver::start(open([false_driver(settings).as_path()].into_iter())?)
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
    let error = start(&[("FALSE_VERSION", "11080")]).unwrap_err();
    assert_eq!(error, DriverError::TooOld { found: 11_080, needed: 12_010 });
    let text = error.to_string();
    assert!(text.contains("CUDA 11.8") && text.contains("12.1 or newer"), "{text}");
}

#[test]
fn no_gpu_is_told_from_a_broken_driver() {
    let with_init = |code: &str| start(&[("FALSE_INIT", code)]).unwrap_err();
    assert_eq!(with_init(&NO_DEVICE.to_string()), DriverError::NoDevice);
    assert_eq!(start(&[("FALSE_DEVICES", "0")]).unwrap_err(), DriverError::NoDevice);
    let name = "CUDA_ERROR_DEVICE_UNAVAILABLE".to_string();
    assert_eq!(with_init("46"), DriverError::Start { code: 46, name });
    let name = "unknown error 7777".to_string();
    assert_eq!(with_init("7777"), DriverError::Start { code: 7777, name });
}

#[test]
fn library_that_is_no_driver() {
    // The C library is always there, and has no function of the driver.
    let error = Driver::start(open([Path::new("libc.so.6")].into_iter()).unwrap()).unwrap_err();
    assert_eq!(error, DriverError::Incomplete { function: "cuInit" });
}

#[test]
fn functions_of_cust_reach_the_driver_with_their_arguments() {
    use cust::sys;
    use std::ptr::{from_ref, null_mut, without_provenance_mut as number};
    let _alone = alone();
    let mut version = 0;
    if load().is_err() && !STARTED.load(Ordering::Relaxed) {
        // SAFETY: no driver is there, so this is the function that only returns a code.
        let code = unsafe { sys::cuDriverGetVersion(&mut version) };
        assert_eq!((code as i32, version), (symbols::NOT_FOUND, 0));
    }
    let driver = start(&[("FALSE_DEVICES", "3")]).unwrap();
    assert_eq!((driver.version().as_str(), driver.n_devices()), ("12.4", 3));
    assert!(driver.launch_ex.is_none(), "this driver refuses cuGetProcAddress");
    // SAFETY: the false driver writes the version.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    assert_eq!((code as i32, version), (0, 12_040));

    // Eleven arguments, six of them in registers: the last ones tell whether the stack is right.
    let mut out = [0f32; 6];
    let (to, n) = (out.as_mut_ptr().addr() as u64, 7u32);
    let to = from_ref(&to).cast_mut().cast();
    let mut params = [to, from_ref(&n).cast_mut().cast()];
    // SAFETY: the false driver reads both parameters, and writes to `out` when
    // the stream is waited for.
    unsafe {
        let mut launch = |stream: usize| {
            let params = params.as_mut_ptr();
            let stream = number(stream);
            sys::cuLaunchKernel(null_mut(), 1, 2, 3, 4, 1, 1, 6, stream, params, null_mut()) as i32
        };
        assert_eq!((launch(0x57), launch(0x58)), (0, 1));
        assert_eq!(sys::cuStreamSynchronize(number(0x57)) as i32, 0);
    }
    assert_eq!(out, [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]);
}
