//! How fast the tensor cores multiply where nothing holds them up.

use super::check::{Estimate, Point, verify};
use super::{EMULATOR_RUNS, FIRST_RUNS, RUNS, between_marks};
use crate::bench::{HeadStart, Spread};
use crate::device::Device;
use crate::error::Result;
use kernels_gpu::Kernel;
use kernels_gpu::gpu::{Global, GlobalMut, Plain, WARP};
use kernels_gpu::peak::{
    BLOCK, BYTE_OPERATIONS, CHAINS, DEPTH, HALF_OPERATIONS, PeakF16, PeakS8, WARP_OUT,
};

/// What the tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, summed in 32 bits.
    Bytes,
    /// 16-bit floats, summed in f32.
    Halves,
}

/// Multiplications and additions a second of `mma.sync`, two for each element and term.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// Of bytes.
    pub bytes: Spread,
    /// Of f16.
    pub halves: Spread,
}

impl Peaks {
    /// The median rate.
    pub fn of(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Bytes => self.bytes.median(),
            Unit::Halves => self.halves.median(),
        }
    }

    /// Measures both, in independent chains of products that fill the device.
    ///
    /// # Errors
    /// When a product is wrong, or a launch fails.
    pub fn measure(device: &Device) -> Result<Peaks> {
        // Words of small integers in -4..4 of both kinds; every row of a and every column of b its own.
        let integer = |i: usize| (i * 5 + i / 8 * 3) as i32 % 9 - 4;
        let bytes: Vec<u32> = (0..16 * 8)
            .map(|word| u32::from_le_bytes([0, 1, 2, 3].map(|k| integer(4 * word + k) as u8)))
            .collect();
        let half = |i: usize| half::f16::from_f32(integer(i) as f32).to_bits() as u32;
        let halves: Vec<u32> =
            (0..16 * 8).map(|word| half(2 * word) | half(2 * word + 1) << 16).collect();
        // Element (row, column) of a b, of which a has the first 16 rows and b the first 8 columns.
        let product = |k: usize, row: usize, column: usize| -> i32 {
            (0..k).map(|i| integer(row * k + i) * integer(column * k + i)).sum()
        };
        Ok(Peaks {
            bytes: rate(
                device,
                ("peak_s8", BYTE_OPERATIONS),
                (&bytes, &|row, column| product(32, row, column)),
                |a, b, out, rounds| PeakS8 { a, b, out, rounds },
            )?,
            halves: rate(
                device,
                ("peak_f16", HALF_OPERATIONS),
                (&halves, &|row, column| product(16, row, column)),
                |a, b, out, rounds| PeakF16 { a, b, out, rounds },
            )?,
        })
    }
}

/// What element (row, column) of the product of two matrices is.
type Product<'a> = &'a dyn Fn(usize, usize) -> i32;

/// Operations a second of a kernel whose products have so many.
fn rate<W: Plain + Into<f64> + Default, K: Kernel>(
    device: &Device,
    (name, operations): (&str, u64),
    (words, product): (&[u32], Product<'_>),
    kernel: impl Fn(Global<u32>, Global<u32>, GlobalMut<W>, u32) -> K,
) -> Result<Spread> {
    // Blocks of a multiprocessor hide each other's latency; a launch takes about a millisecond.
    let (blocks, rounds, runs) = match device.is_emulator() {
        true => (device.n_multiprocessors(), 1, EMULATOR_RUNS),
        false => (4 * device.n_multiprocessors(), 512, FIRST_RUNS + RUNS),
    };
    let n_warps = blocks * (BLOCK / WARP) as usize;
    let (a, b) = (device.upload(words)?, device.upload(words)?);
    let out = device.alloc::<W>(n_warps * WARP_OUT)?;
    let launch = || device.launch(kernel(a.view(), b.view(), out.view_mut(), rounds), blocks);
    launch()?;
    let n_products = rounds as u64 * (CHAINS * DEPTH) as u64;
    let mut points = Vec::new();
    for warp in [0, n_warps - 1] {
        let mut found = vec![W::default(); WARP_OUT];
        out.read_into(warp * WARP_OUT, &mut found)?;
        for (at, found) in found.into_iter().enumerate() {
            let starts = (0..CHAINS as i64).sum::<i64>();
            let sum = n_products as i64 * product(at / 8, at % 8) as i64;
            let expected = Estimate::exact((starts + sum) as f64);
            let element = format!("warp {warp}, element {at}");
            points.push(Point { element, found: found.into(), expected });
        }
    }
    verify(name, &points)?;
    let head_start = HeadStart::new(device)?;
    let mut rates = Vec::with_capacity(runs);
    for run in 0..runs {
        let time = between_marks(device, &head_start, launch)?;
        if run >= FIRST_RUNS || device.is_emulator() {
            rates.push(crate::bench::per_second(n_warps as u64 * n_products * operations, time));
        }
    }
    Ok(Spread::of(rates))
}
