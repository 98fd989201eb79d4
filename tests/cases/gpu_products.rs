//! Cases of the machine's matrix products: two in a row, from whole matrices; and chains of many.

use super::{Case, Failure, Guarded, Noise, expect_close};
use half::{bf16, f16};
use ironwarp::Device;
use kernels_gpu::gpu::{Global, GlobalMut, Plain};
use kernels_gpu::peak::{BLOCK, CHAINS, DEPTH, PeakF16, PeakS8};
use kernels_gpu::probe::{PRODUCTS, ProbeMmaBf16, ProbeMmaF16, ProbeMmaS8, ProbeMmaS8K16};

const ROWS: usize = 16;
const COLUMNS: usize = 8;

/// Which columns of b hold anything: all, some, none.
const USED: [(&str, u8); 4] =
    [("all", 0xff), ("two", 0b0000_0011), ("apart", 0b1001_0100), ("none", 0)];

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    for (edge, used) in USED {
        for k in [16, 32] {
            table.push(Box::new(Bytes { edge, used, k, extremes: false }));
        }
        for format in [Format::F16, Format::Bf16] {
            table.push(Box::new(Halves { edge, used, format, values: Values::Random }));
        }
    }
    for (edge, n_blocks, rounds) in [("none", 1, 0), ("one", 2, 1), ("several", 3, 5)] {
        table.push(Box::new(Peak { edge, n_blocks, rounds, halves: false }));
        table.push(Box::new(Peak { edge, n_blocks, rounds, halves: true }));
    }
    for k in [16, 32] {
        table.push(Box::new(Bytes { edge: "extremes", used: 0xff, k, extremes: true }));
    }
    for format in [Format::F16, Format::Bf16] {
        for (edge, values) in [("integers", Values::Integers), ("tiny", Values::Tiny)] {
            table.push(Box::new(Halves { edge, used: 0xff, format, values }));
        }
        table.push(Box::new(InfinityTimesZero { format }));
    }
}

/// Runs one of the matrix probes; the product comes back by rows.
fn multiply<W: Plain, K: kernels_gpu::Kernel>(
    device: &Device,
    (a, b, c): (&[u32], &[u32], &[W]),
    kernel: impl FnOnce(Global<u32>, Global<u32>, Global<W>, GlobalMut<W>) -> K,
) -> Result<Vec<W>, Failure> {
    let (a, b, c) = (device.upload(a)?, device.upload(b)?, device.upload(c)?);
    let out = Guarded::<W>::new(device, ROWS * COLUMNS)?;
    device.launch(kernel(a.view(), b.view(), c.view(), out.view_mut()), 1)?;
    out.read()
}

/// Packs rows of `k` bytes into words.
fn words_of_bytes(bytes: &[i8]) -> Vec<u32> {
    bytes.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]].map(|v| v as u8))).collect()
}

/// Packs rows of halves into words.
fn words_of_halves(halves: &[u16]) -> Vec<u32> {
    halves.chunks(2).map(|c| c[0] as u32 | (c[1] as u32) << 16).collect()
}

struct Bytes {
    edge: &'static str,
    used: u8,
    /// Of one product.
    k: usize,
    /// Only -128 and 127.
    extremes: bool,
}

impl Case for Bytes {
    fn name(&self) -> String {
        let suffix = if self.k == 16 { "_k16" } else { "" };
        format!("probe_mma_s8{suffix}/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let n_k = PRODUCTS as usize * self.k;
        let mut noise = Noise::new(21 + self.used as u64);
        let mut draw = || match noise.bits() {
            bits if !self.extremes => (bits >> 8) as i8,
            bits if bits >> 30 == 0 => 127,
            _ => -128,
        };
        let a: Vec<i8> = (0..ROWS * n_k).map(|_| draw()).collect();
        let mut b: Vec<i8> = (0..COLUMNS * n_k).map(|_| draw()).collect();
        for (column, values) in b.chunks_mut(n_k).enumerate() {
            if self.used >> column & 1 == 0 {
                values.fill(0);
            }
        }
        let c: Vec<i32> = (0..ROWS * COLUMNS).map(|_| noise.bits() as i32 / 2).collect();

        let input = (&words_of_bytes(&a)[..], &words_of_bytes(&b)[..], &c[..]);
        let got = if self.k == 32 {
            multiply(device, input, |a, b, c, out| ProbeMmaS8 { a, b, c, out })?
        } else {
            multiply(device, input, |a, b, c, out| ProbeMmaS8K16 { a, b, c, out })?
        };
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                let at = row * COLUMNS + column;
                let product = |k: usize| a[row * n_k + k] as i64 * b[column * n_k + k] as i64;
                let want = c[at] as i64 + (0..n_k).map(product).sum::<i64>();
                if got[at] as i64 != want {
                    let got = got[at];
                    return Err(Failure(format!("({row}, {column}): got {got}, want {want}")));
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Format {
    F16,
    Bf16,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::F16 => "probe_mma_f16",
            Format::Bf16 => "probe_mma_bf16",
        }
    }

    fn bits(self, v: f64) -> u16 {
        match self {
            Format::F16 => f16::from_f64(v).to_bits(),
            Format::Bf16 => bf16::from_f64(v).to_bits(),
        }
    }

    fn value(self, bits: u16) -> f64 {
        match self {
            Format::F16 => f16::from_bits(bits).to_f64(),
            Format::Bf16 => bf16::from_bits(bits).to_f64(),
        }
    }

    fn multiply(
        self,
        device: &Device,
        a: &[u16],
        b: &[u16],
        c: &[f32],
    ) -> Result<Vec<f32>, Failure> {
        let input = (&words_of_halves(a)[..], &words_of_halves(b)[..], c);
        match self {
            Format::F16 => multiply(device, input, |a, b, c, out| ProbeMmaF16 { a, b, c, out }),
            Format::Bf16 => multiply(device, input, |a, b, c, out| ProbeMmaBf16 { a, b, c, out }),
        }
    }
}

#[derive(Clone, Copy)]
enum Values {
    /// In [-1, 1).
    Random,
    /// Small ones, whose sums are exact.
    Integers,
    /// Subnormal in f16, times some of ordinary size.
    Tiny,
}

struct Halves {
    edge: &'static str,
    used: u8,
    format: Format,
    values: Values,
}

impl Case for Halves {
    fn name(&self) -> String {
        format!("{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let n_k = PRODUCTS as usize * 16;
        let mut noise = Noise::new(31 + self.used as u64);
        let mut draw = |n: usize, scale: f64| -> Vec<u16> {
            (0..n)
                .map(|_| match self.values {
                    Values::Integers => (noise.bits() % 17) as f64 - 8.0,
                    Values::Random | Values::Tiny => scale * noise.unit() as f64,
                })
                .map(|v| self.format.bits(v))
                .collect()
        };
        let a_scale = if matches!(self.values, Values::Tiny) { 2f64.powi(-14) } else { 1.0 };
        let a = draw(ROWS * n_k, a_scale);
        let mut b = draw(COLUMNS * n_k, 1.0);
        for (column, values) in b.chunks_mut(n_k).enumerate() {
            if self.used >> column & 1 == 0 {
                values.fill(0);
            }
        }
        let c: Vec<f32> = (0..ROWS * COLUMNS)
            .map(|_| match self.values {
                Values::Random => noise.unit(),
                Values::Integers => (noise.bits() % 100) as f32,
                Values::Tiny => 0.0,
            })
            .collect();
        let got = self.format.multiply(device, &a, &b, &c)?;

        let products = |at: usize| {
            let (a, b) = (&a[at / COLUMNS * n_k..][..n_k], &b[at % COLUMNS * n_k..][..n_k]);
            a.iter().zip(b).map(|(&a, &b)| self.format.value(a) * self.format.value(b))
        };
        let want: Vec<f64> =
            (0..ROWS * COLUMNS).map(|at| c[at] as f64 + products(at).sum::<f64>()).collect();
        // Products are exact. Each of the additions may lose an epsilon of what is there by then:
        // the device cuts off where the emulator rounds.
        let magnitude = |at: usize| c[at].abs() as f64 + products(at).map(f64::abs).sum::<f64>();
        let exact = matches!(self.values, Values::Integers);
        expect_close(&got, &want, |at, _| {
            if exact { 0.0 } else { (n_k + 2) as f64 * f32::EPSILON as f64 * magnitude(at) }
        })
    }
}

/// A column of zeroes is no reason to overlook an infinity or NaN in a.
struct InfinityTimesZero {
    format: Format,
}

impl Case for InfinityTimesZero {
    fn name(&self) -> String {
        format!("{}/infinity_times_zero", self.format.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let n_k = PRODUCTS as usize * 16;
        let mut a = vec![self.format.bits(1.0); ROWS * n_k];
        a[3 * n_k + 5] = self.format.bits(f64::INFINITY);
        a[9 * n_k + 20] = self.format.bits(f64::NAN);
        let mut b = vec![self.format.bits(0.5); COLUMNS * n_k];
        b[..n_k].fill(0);
        let got = self.format.multiply(device, &a, &b, &[0.0; ROWS * COLUMNS])?;
        for (at, &got) in got.iter().enumerate() {
            let right = match (at / COLUMNS, at % COLUMNS) {
                (3, 0) | (9, _) => got.is_nan(),
                (3, _) => got == f32::INFINITY,
                (_, 0) => got == 0.0,
                _ => got == n_k as f32 / 2.0,
            };
            if !right {
                let (row, column) = (at / COLUMNS, at % COLUMNS);
                return Err(Failure(format!("({row}, {column}): got {got}")));
            }
        }
        Ok(())
    }
}

/// Chains of products of the same two matrices of small integers, added up: exact.
struct Peak {
    edge: &'static str,
    n_blocks: usize,
    rounds: u32,
    halves: bool,
}

impl Case for Peak {
    fn name(&self) -> String {
        format!("{}/{}", if self.halves { "peak_f16" } else { "peak_s8" }, self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Peak { n_blocks, rounds, halves, .. } = self;
        let n_k = if halves { 16 } else { 32 };
        let mut noise = Noise::new(41);
        let mut draw =
            |n: usize| -> Vec<i8> { (0..n).map(|_| (noise.bits() % 17) as i8 - 8).collect() };
        let (a, b) = (draw(ROWS * n_k), draw(COLUMNS * n_k));
        let words = |integers: &[i8]| match halves {
            true => {
                let bits = |&v: &i8| f16::from_f32(v as f32).to_bits();
                words_of_halves(&integers.iter().map(bits).collect::<Vec<_>>())
            }
            false => words_of_bytes(integers),
        };
        let (a_buffer, b_buffer) = (device.upload(&words(&a))?, device.upload(&words(&b))?);
        let n_warps = n_blocks * BLOCK as usize / 32;
        let (a_view, b_view) = (a_buffer.view(), b_buffer.view());
        let got: Vec<f64> = if halves {
            let out = Guarded::<f32>::new(device, n_warps * ROWS * COLUMNS)?;
            let kernel = PeakF16 { a: a_view, b: b_view, out: out.view_mut(), rounds };
            device.launch(kernel, n_blocks)?;
            out.read()?.into_iter().map(f64::from).collect()
        } else {
            let out = Guarded::<i32>::new(device, n_warps * ROWS * COLUMNS)?;
            let kernel = PeakS8 { a: a_view, b: b_view, out: out.view_mut(), rounds };
            device.launch(kernel, n_blocks)?;
            out.read()?.into_iter().map(f64::from).collect()
        };
        for (at, &got) in got.iter().enumerate() {
            let (row, column) = (at / COLUMNS % ROWS, at % COLUMNS);
            let product = |k: usize| a[row * n_k + k] as i64 * b[column * n_k + k] as i64;
            let sum = (0..n_k).map(product).sum::<i64>();
            let starts = (0..CHAINS as i64).sum::<i64>();
            let want = starts + (CHAINS * DEPTH) as i64 * rounds as i64 * sum;
            if got != want as f64 {
                return Err(Failure(format!("element {at}: got {got}, want {want}")));
            }
        }
        Ok(())
    }
}
