//! The device layer against a driver without a card (`false_driver.rs`), which puts work off as long
//! as it may: what is copied, launched, freed or reused too early shows.

use super::memory::{N_STAGES, STAGE_BYTES};
use super::{CudaDevice, KernelId, LaunchMode};
use crate::driver::tests::{alone, start};
use crate::error::{Error, Result};
use crate::ptx::{Image, PtxChoice};
use kernels_gpu::{KernelSpec, ParamSpec};
use std::ffi::c_void;
use std::ptr::from_mut;
use std::time::Duration;

fn open(settings: &[(&str, &str)], choice: PtxChoice) -> Result<CudaDevice> {
    // Drivers stay for good, as the real one does.
    let driver = Box::leak(Box::new(start(settings).unwrap()));
    CudaDevice::open_with(driver, 0, choice)
}

/// The kernel that the tests start: any whose parameters are as the false driver takes them.
fn spec() -> &'static KernelSpec {
    let fits = |spec: &&KernelSpec| {
        let bytes = |param: Option<&ParamSpec>| param.map(|p| p.bytes);
        (bytes(spec.params.first()), bytes(spec.params.last())) == (Some(8), Some(4))
            && spec.shared_bytes > 1
            && spec.together_on.is_none()
    };
    kernels_gpu::all().into_iter().find(fits).unwrap()
}

/// Launches it so that the false driver writes to `to`.
fn launch(device: &CudaDevice, to: u64, grid: [u32; 3], n: u32) -> Result<()> {
    let mut values = vec![0u64; spec().params.len()];
    values[0] = to;
    values[spec().params.len() - 1] = u64::from(n);
    // A value's low bytes come first, so a pointer to eight serves four.
    let mut args: Vec<*mut c_void> = values.iter_mut().map(|v| from_mut(v).cast()).collect();
    let kernel = device.kernel(spec()).unwrap();
    // SAFETY: as many values as declared, none too small; `to` has room for what is written.
    unsafe { device.launch(kernel, grid, LaunchMode::Plain, &mut args) }
}

/// What `launch` leaves at its address.
fn left_by(device: &CudaDevice, to: u64) -> [f32; 6] {
    let mut bytes = [0; 24];
    // SAFETY: the address has room for it.
    unsafe { device.read(to, &mut bytes) }.unwrap();
    std::array::from_fn(|i| f32::from_le_bytes(bytes[i * 4..][..4].try_into().unwrap()))
}

#[test]
fn card_is_described_and_its_image_chosen() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let info = device.info();
    assert_eq!((info.name.as_str(), info.capability), ("False Card", (9, 0)));
    assert_eq!((info.n_multiprocessors, info.block_shared_bytes), (132, 232_448));
    // 2.619 GHz, two transfers, 640 bytes.
    assert_eq!(info.bandwidth(), Some(2.0 * 2.619e9 * 640.0));
    assert_eq!(device.image(), Image::Sm90a);
    let ada = [("FALSE_CAPABILITY", "89")];
    assert_eq!(open(&ada, PtxChoice::Auto).unwrap().image(), Image::Sm80);
    let error = open(&ada, PtxChoice::Only(Image::Sm90a)).unwrap_err().to_string();
    assert_eq!(
        error,
        "False Card has compute capability 8.9, and the sm_90a kernels need 9.0 exactly"
    );
    let error = open(&[("FALSE_CAPABILITY", "75")], PtxChoice::Auto).unwrap_err().to_string();
    assert!(error.contains("7.5") && error.contains("8.0 or newer"), "{error}");
}

#[test]
fn card_that_is_absent_or_taken() {
    let _alone = alone();
    let driver = Box::leak(Box::new(start(&[]).unwrap()));
    let error = CudaDevice::open_with(driver, 1, PtxChoice::Auto).unwrap_err();
    assert!(matches!(error, Error::NoSuchDevice { ordinal: 1, n_devices: 1 }));
    // A code that `cust` has no name for.
    let error = open(&[("FALSE_RETAIN", "46")], PtxChoice::Auto).unwrap_err();
    assert!(matches!(&error, Error::Cuda { code: 46, .. }));
    assert!(error.to_string().contains("CUDA_ERROR_DEVICE_UNAVAILABLE"), "{error}");
}

#[test]
fn copies_longer_than_all_pinned_buffers_together() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let bytes = STAGE_BYTES * (N_STAGES + 2) + 12_345;
    let data: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / STAGE_BYTES) as u8).collect();
    let at = device.alloc(bytes + 256).unwrap();
    let copy = device.alloc(bytes).unwrap();
    let mut out = vec![0; bytes];
    // SAFETY: all ranges are inside what was allocated.
    unsafe {
        device.fill(at, bytes + 256, 7).unwrap();
        // Uneven pieces, so that borders of pieces and of buffers differ.
        for (i, piece) in data.chunks(999_983).enumerate() {
            device.write(at + i as u64 * 999_983, piece).unwrap();
        }
        device.copy(at, copy, bytes).unwrap();
        device.read(copy, &mut out).unwrap();
        assert!(out == data);
        let mut guard = [0; 256];
        device.read(at + bytes as u64, &mut guard).unwrap();
        assert_eq!(guard, [7; 256]);
        device.free(at);
        device.free(copy);
    }
}

#[test]
fn data_produced_in_pinned_memory_comes_in_order() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let bytes = 2 * STAGE_BYTES + 5;
    let at = device.alloc(bytes).unwrap();
    let mut next = 0;
    let mut out = vec![0; bytes];
    // SAFETY: the range is what was allocated.
    unsafe {
        let produce = |position: usize, piece: &mut [u8]| {
            assert_eq!(position, next);
            next += piece.len();
            piece.iter_mut().enumerate().for_each(|(i, b)| *b = ((position + i) % 251) as u8);
            Ok(())
        };
        device.write_with(at, bytes, produce).unwrap();
        device.read(at, &mut out).unwrap();
        assert!(out.iter().enumerate().all(|(i, &b)| b == (i % 251) as u8));
        let fails = |_: usize, _: &mut [u8]| Err(Error::WhileRecording { operation: "test" });
        assert!(matches!(
            device.write_with(at, 1, fails),
            Err(Error::WhileRecording { operation: "test" })
        ));
        device.free(at);
    }
}

#[test]
fn launch_gets_grid_block_shared_bytes_and_arguments() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let at = device.alloc(24).unwrap();
    // SAFETY: the range is what was allocated.
    unsafe { device.fill(at, 24, 1) }.unwrap();
    launch(&device, at, [5, 4, 3], 77).unwrap();
    let (block, shared) = (spec().block_threads as f32, spec().shared_bytes as f32);
    assert_eq!(left_by(&device, at), [5.0, 4.0, 3.0, block, shared, 77.0]);
    // SAFETY: allocated above.
    unsafe { device.free(at) };
}

#[test]
fn every_declared_kernel_has_its_number() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    // The image of the false card has every kernel.
    let all: Vec<KernelId> =
        kernels_gpu::all().into_iter().map(|spec| device.kernel(spec).unwrap()).collect();
    assert!(all.iter().enumerate().all(|(i, id)| *id == KernelId(i)));
    // The false driver refuses a module whose entry is not the one that is asked for.
    device.prepare(&all).unwrap();
}

#[test]
fn kernels_that_an_image_lacks_have_no_number() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Only(Image::Sm80)).unwrap();
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        kernels_gpu::all().into_iter().partition(|spec| spec.is_in("sm_80"));
    let all: Vec<KernelId> = here.into_iter().map(|spec| device.kernel(spec).unwrap()).collect();
    device.prepare(&all).unwrap();
    assert!(!elsewhere.is_empty());
    assert!(elsewhere.into_iter().all(|spec| device.kernel(spec).is_none()));
}

#[test]
fn launches_that_break_the_contract_are_not_started() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    for grid in [[0, 1, 1], [1, 65_536, 1], [1, 1, 65_536], [1 << 31, 1, 1]] {
        let error = launch(&device, 0, grid, 1).unwrap_err();
        assert!(matches!(&error, Error::Launch { kernel, grid: g, .. }
            if (*kernel, *g) == (spec().name, grid)));
    }
    // SAFETY: nothing is started with one argument of several.
    let error = unsafe {
        let mut args = [std::ptr::null_mut(); 1];
        device.launch(device.kernel(spec()).unwrap(), [1; 3], LaunchMode::Plain, &mut args)
    };
    let text = error.unwrap_err().to_string();
    assert!(text.contains(&format!("{} arguments, 1 given", spec().params.len())), "{text}");
}

#[test]
fn more_blocks_than_run_at_once_may_not_wait_for_each_other() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let spec = kernels_gpu::all().into_iter().find(|spec| spec.together_on.is_some()).unwrap();
    let kernel = device.kernel(spec).unwrap();
    let mut value = 0u64;
    let mut args = vec![from_mut(&mut value).cast::<c_void>(); spec.params.len()];
    for grid in [[133, 1, 1], [12, 12, 1]] {
        // SAFETY: nothing is started.
        let error = unsafe { device.launch(kernel, grid, LaunchMode::Plain, &mut args) };
        let text = error.unwrap_err().to_string();
        assert!(text.contains(spec.name) && text.contains("at most 132"), "{text}");
    }
}

#[test]
fn kernel_that_faults_is_named() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    launch(&device, 0, [666, 1, 1], 1).unwrap();
    let error = device.synchronize().unwrap_err();
    assert!(matches!(&error, Error::Cuda { code: 700, .. }));
    let text = error.to_string();
    assert!(text.contains(spec().name) && text.contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{text}");
    let error = launch(&device, 0, [1; 3], 1).unwrap_err().to_string();
    let shape = format!("grid [1, 1, 1], block {}", spec().block_threads);
    assert!(error.contains(&shape) && error.contains("faulted"), "{error}");
}

#[test]
fn kernel_that_does_not_compile_tells_why() {
    let _alone = alone();
    let device = open(&[("FALSE_REFUSED", spec().name)], PtxChoice::Auto).unwrap();
    let error = launch(&device, 0, [1; 3], 1).unwrap_err();
    assert!(matches!(&error, Error::Compile { kernel, image: Image::Sm90a, .. }
        if *kernel == spec().name));
    let text = error.to_string();
    assert!(text.contains("INVALID_PTX") && text.ends_with("ptxas fatal : planted"), "{text}");
    assert!(matches!(
        device.prepare(&[device.kernel(spec()).unwrap()]),
        Err(Error::Compile { .. })
    ));
}

#[test]
fn card_with_too_little_shared_memory() {
    let _alone = alone();
    let too_little = spec().shared_bytes - 1;
    let settings = [("FALSE_SHARED", &*too_little.to_string())];
    let device = open(&settings, PtxChoice::Auto).unwrap();
    let error = launch(&device, 0, [1; 3], 1).unwrap_err();
    let Error::SharedMemory { needed, available, .. } = error else { panic!("{error}") };
    assert_eq!((needed, available), (spec().shared_bytes, too_little));
}

#[test]
fn too_little_memory_says_how_much_is_free() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let total = device.memory().unwrap().total;
    let half = device.alloc(total / 2).unwrap();
    let error = device.alloc(total).unwrap_err();
    let free = total as u64 / 2;
    assert!(
        matches!(error, Error::OutOfMemory { bytes, free: Some(f) } if bytes == total && f == free)
    );
    // SAFETY: allocated above.
    unsafe { device.free(half) };
    assert_eq!(device.memory().unwrap().free, total);
}

#[test]
fn graph_runs_when_it_is_replayed_and_not_before() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let at = device.alloc(24).unwrap();
    // SAFETY: the range is what was allocated, and is freed after the last replay.
    unsafe {
        device.fill(at, 24, 0).unwrap();
        let graph = device
            .record(|| {
                device.fill(at, 24, 1)?;
                launch(&device, at, [1, 2, 3], 9)
            })
            .unwrap();
        assert_eq!(graph.n_nodes(), 2);
        assert_eq!(left_by(&device, at), [0.0; 6]);
        for _ in 0..2 {
            device.fill(at, 24, 0).unwrap();
            device.replay(&graph).unwrap();
            assert_eq!(left_by(&device, at)[..3], [1.0, 2.0, 3.0]);
        }
        device.free(at);
    }
}

#[test]
fn what_a_graph_cannot_hold_is_refused_and_recording_ends() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let at = device.alloc(24).unwrap();
    let refused = |work: &dyn Fn() -> Result<()>| {
        // SAFETY: no graph comes of it.
        let error = unsafe { device.record(work) }.unwrap_err();
        assert!(matches!(error, Error::WhileRecording { .. }), "{error}");
        // Recording is over: this runs at once.
        launch(&device, at, [4, 1, 1], 1).unwrap();
        assert_eq!(left_by(&device, at)[0], 4.0);
    };
    // SAFETY: the range is what was allocated.
    refused(&|| unsafe { device.write(at, &[0; 24]) });
    // SAFETY: as above.
    refused(&|| unsafe { device.read(at, &mut [0; 24]) });
    refused(&|| device.synchronize());
    // SAFETY: as above.
    refused(&|| unsafe { device.record(|| Ok(())) }.map(drop));
    // SAFETY: allocated above.
    unsafe { device.free(at) };
}

#[test]
fn time_between_marks() {
    let _alone = alone();
    let device = open(&[], PtxChoice::Auto).unwrap();
    let at = device.alloc(24).unwrap();
    let from = device.mark().unwrap();
    for _ in 0..3 {
        launch(&device, at, [1; 3], 1).unwrap();
    }
    let to = device.mark().unwrap();
    // The false driver takes a quarter of a millisecond for each piece of work.
    assert_eq!(device.elapsed(&from, &to).unwrap(), Duration::from_micros(750));
    // SAFETY: allocated above.
    unsafe { device.free(at) };
}
