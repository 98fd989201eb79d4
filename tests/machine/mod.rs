//! Which machine a test table runs on: the emulator, or with `IRONWARP_DEVICE=cuda` the GPU, with
//! `IRONWARP_PTX=sm_80` or `sm_90a` the image.

use ironwarp::Device;
use ironwarp::ptx::PtxChoice;
use kernels_gpu::gpu::emu::Mode;
use std::sync::OnceLock;

/// The GPU if the environment asks for it, else the emulator in `mode`.
pub fn device(mode: Mode) -> Device {
    static CUDA: OnceLock<Device> = OnceLock::new();
    if is_cuda() { CUDA.get_or_init(open_cuda).clone() } else { Device::emulator(mode) }
}

fn open_cuda() -> Device {
    let choice = std::env::var("IRONWARP_PTX").unwrap_or_else(|_| "auto".into());
    let choice: PtxChoice = choice.parse().unwrap_or_else(|e| panic!("IRONWARP_PTX: {e}"));
    Device::cuda(0, choice).unwrap_or_else(|e| panic!("{e}"))
}

/// Whether the environment asks for the GPU.
pub fn is_cuda() -> bool {
    std::env::var("IRONWARP_DEVICE").is_ok_and(|device| device == "cuda")
}
