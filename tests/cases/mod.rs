//! The table of cases: each kernel with its shapes, inputs, f64 reference and tolerance. The emulator's tests
//! and the device's tests run it. The microbenchmarks (`ironwarp bench kernels`) have real sizes, and a
//! table of their own.

use ironwarp::{Buffer, Device, Result};
use kernels_gpu::gpu::Plain;

pub mod activation;
pub mod attention;
pub mod cache;
mod decode;
mod gated;
pub mod gpu_ops;
pub mod gpu_products;
pub mod matmul;
pub mod moe;
pub mod norm;
mod normed;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod softmax;
pub mod weights;

/// One kernel at one shape.
pub trait Case: Send + Sync {
    /// `kernel/edge`, for example `layer_norm/one_past_block`.
    fn name(&self) -> String;
    /// Runs the kernel on fresh inputs and compares with the f64 reference.
    fn check(&self, device: &Device) -> Result<(), Failure>;
}

/// Why a case failed.
#[derive(Debug)]
pub struct Failure(pub String);

impl From<ironwarp::Error> for Failure {
    fn from(error: ironwarp::Error) -> Failure {
        Failure(error.to_string())
    }
}

/// Every case.
pub fn all() -> Vec<Box<dyn Case>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    activation::cases(&mut cases);
    gpu_ops::cases(&mut cases);
    moe::cases(&mut cases);
    matmul::cases(&mut cases);
    norm::cases(&mut cases);
    normed::cases(&mut cases);
    rope::cases(&mut cases);
    attention::cases(&mut cases);
    decode::cases(&mut cases);
    softmax::cases(&mut cases);
    weights::cases(&mut cases);
    sample::cases(&mut cases);
    cases
}

/// Reproducible random numbers.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let x = ((self.0 >> 18) ^ self.0) >> 27;
        (x as u32).rotate_right((self.0 >> 59) as u32)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 8_388_608.0 - 1.0
    }

    pub fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

/// Bytes of guard behind every output.
const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xa5;

/// An output buffer filled with the guard pattern, with guard words behind it.
pub struct Guarded<T: Plain> {
    bytes: Buffer<u8>,
    len: usize,
    elem: std::marker::PhantomData<T>,
}

impl<T: Plain> Guarded<T> {
    pub fn new(device: &Device, len: usize) -> Result<Guarded<T>> {
        let pattern = vec![GUARD; len * size_of::<T>() + GUARD_BYTES];
        let bytes = device.upload(&pattern)?;
        Ok(Guarded { bytes, len, elem: std::marker::PhantomData })
    }

    /// A buffer that the kernel reads and writes, with the guard behind it.
    pub fn holding(device: &Device, data: &[T]) -> Result<Guarded<T>> {
        let mut guarded = Guarded::new(device, data.len())?;
        // SAFETY: `T: Plain`, so its bytes are all initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
        guarded.bytes.write(0, bytes)?;
        Ok(guarded)
    }

    /// The output without its guard: what the kernel gets.
    pub fn view_mut(&self) -> kernels_gpu::gpu::GlobalMut<T> {
        kernels_gpu::gpu::GlobalMut::new(self.bytes.view().address(), self.len)
    }

    /// The output, once the guard has been found intact.
    pub fn read(&self) -> Result<Vec<T>, Failure> {
        let bytes = self.bytes.read()?;
        let (body, guard) = bytes.split_at(self.len * size_of::<T>());
        if guard.iter().any(|&b| b != GUARD) {
            return Err(Failure("wrote behind the end of its output".into()));
        }
        // SAFETY: `T: Plain`, and the body holds `len` of them.
        Ok((0..self.len)
            .map(|i| unsafe { body.as_ptr().cast::<T>().add(i).read_unaligned() })
            .collect())
    }
}

/// Every |got - want| must be at most `tolerance(want)`; NaN never passes.
pub fn expect_close(
    got: &[f32],
    want: &[f64],
    tolerance: impl Fn(usize, f64) -> f64,
) -> Result<(), Failure> {
    if got.len() != want.len() {
        return Err(Failure(format!("{} values, {} expected", got.len(), want.len())));
    }
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let allowed = tolerance(i, w);
        let error = (g as f64 - w).abs();
        if error.is_nan() || error > allowed {
            return Err(Failure(format!("element {i}: got {g}, want {w} +- {allowed:.3e}")));
        }
    }
    Ok(())
}
