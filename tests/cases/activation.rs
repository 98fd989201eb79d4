//! Cases of the element-wise stages.

use super::rows::GuardedRows;
use super::{Case, Failure, Noise};
use ironwarp::Device;
use kernels_gpu::activation::{BLOCK, GeluErf, GeluTanh, PackRows, SiluGate, SwigluOai, splits};
use kernels_gpu::fixed16::SMALLEST_BLOCK;
use kernels_gpu::gpu::{Global, GlobalMut};

const EPS: f64 = f32::EPSILON as f64;
/// What is left where the machine's `e^x` overflows: below the smallest normal f32.
const FLOOR: f64 = f32::MIN_POSITIVE as f64;

#[derive(Clone, Copy)]
pub enum Op {
    SiluGate,
    SwigluOai { alpha: f32, limit: f32 },
    GeluTanh,
    GeluErf,
    PackRows,
}

struct Activation {
    op: Op,
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
    /// Blocks along y.
    n_splits: usize,
    /// Inputs are uniform in -range..range.
    range: f32,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::SiluGate => "silu_gate",
            Op::SwigluOai { .. } => "swiglu_oai",
            Op::GeluTanh => "gelu_tanh",
            Op::GeluErf => "gelu_erf",
            Op::PackRows => "pack_rows",
        }
    }

    /// The exact value, and by how much the kernel's may differ.
    pub fn reference(self, x: f64, up: f64) -> (f64, f64) {
        // `e^x` of the machine: relative error 2^-22 + |x| 2^-23, that is EPS (2 + |x|).
        match self {
            Op::SiluGate => {
                let h = x * sigmoid(x) * up;
                (h, h.abs() * EPS * (2.0 + x.abs() + 2.0) + (x * up).abs() * FLOOR)
            }
            Op::SwigluOai { alpha, limit } => {
                let (alpha, limit) = (alpha as f64, limit as f64);
                let (g, u) = (x.min(limit), up.clamp(-limit, limit));
                let h = g * sigmoid(alpha * g) * (u + 1.0);
                // The argument is rounded once more, `u + 1` loses EPS / 2 of its own.
                let relative = EPS * (2.0 + 1.5 * (alpha * g).abs() + 3.0);
                (h, h.abs() * relative + (g * (u + 1.0)).abs() * FLOOR)
            }
            Op::GeluTanh => {
                let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                let h = x * sigmoid(2.0 * z);
                // Five roundings in 2 z, constants included.
                let relative = EPS * (2.0 + 3.5 * (2.0 * z).abs() + 2.0);
                (h, h.abs() * relative + x.abs() * FLOOR)
            }
            Op::GeluErf => {
                let h = x * normal_cdf(x);
                // The error that `normal_cdf` of activation.rs states, and the product's.
                let relative = EPS * (8.0 + x * x + 1.0);
                (h, h.abs() * relative + x.abs() * FLOOR)
            }
            Op::PackRows => (x, 0.0),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The normal distribution function: its series near 0, the tail's continued fraction elsewhere.
fn normal_cdf(x: f64) -> f64 {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if x.abs() < 3.0 {
        // x + x^3 / 3 + x^5 / (3 5) + ...
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= x * x / (2 * n + 1) as f64;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    // 1 / (x + 1 / (x + 2 / (x + 3 / ...)))
    let tail = density / (1..200).rev().fold(x.abs(), |f, n| x.abs() + n as f64 / f);
    if x < 0.0 { tail } else { 1.0 - tail }
}

impl Case for Activation {
    fn name(&self) -> String {
        format!("{}/{}", self.op.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Activation { op, n_rows, n_cols, n_splits, range, .. } = self;
        // Gate and up are two column ranges of one buffer, with columns between that nobody reads.
        let stride = 2 * n_cols + 3;
        let mut noise = Noise::new(7);
        let x: Vec<f32> = noise.units(n_rows * stride).iter().map(|v| v * range).collect();
        let buffer = device.upload(&x)?;
        let view = |start: usize| {
            let rest = n_rows * stride - start;
            Global::new(buffer.view().address() + 4 * start as u64, rest)
        };
        let out = GuardedRows::new(device, n_rows, n_cols)?;
        let values = out.values.view_mut();
        self.launch(device, view(0), view(n_cols + 2), values, &out, stride as u32, n_splits)?;

        let at = |i: usize| {
            let start = i / n_cols * stride + i % n_cols;
            op.reference(x[start] as f64, x[start + n_cols + 2] as f64)
        };
        let want: Vec<f64> = (0..n_rows * n_cols).map(|i| at(i).0).collect();
        out.expect(&want, |i, _| at(i).1)?;

        // The same codes where nobody asks for the values.
        let packed = GuardedRows::new(device, n_rows, n_cols)?;
        let absent = GlobalMut::absent();
        self.launch(device, view(0), view(n_cols + 2), absent, &packed, stride as u32, n_splits)?;
        packed.expect_codes_of(&out.values.read()?)
    }
}

impl Activation {
    #[allow(clippy::too_many_arguments)] // one launch, written once for five kernels
    fn launch(
        &self,
        device: &Device,
        x: Global<f32>,
        up: Global<f32>,
        values: GlobalMut<f32>,
        out: &GuardedRows,
        in_stride: u32,
        n_splits: usize,
    ) -> ironwarp::Result<()> {
        let (codes, scales) = (out.codes.view_mut(), out.scales.view_mut());
        let n_cols = self.n_cols as u32;
        let grid = (self.n_rows, n_splits);
        match self.op {
            Op::SiluGate => {
                let gate = x;
                let kernel = SiluGate { gate, up, values, codes, scales, in_stride, n_cols };
                device.launch(kernel, grid)
            }
            Op::SwigluOai { alpha, limit } => {
                let gate = x;
                let kernel =
                    SwigluOai { gate, up, values, codes, scales, in_stride, n_cols, alpha, limit };
                device.launch(kernel, grid)
            }
            Op::GeluTanh => {
                device.launch(GeluTanh { x, values, codes, scales, in_stride, n_cols }, grid)
            }
            Op::GeluErf => {
                device.launch(GeluErf { x, values, codes, scales, in_stride, n_cols }, grid)
            }
            Op::PackRows => {
                device.launch(PackRows { x, values, codes, scales, in_stride, n_cols }, grid)
            }
        }
    }
}

/// A NaN stays one, and whoever multiplies its block sees it: the block's scale is not finite.
struct NotANumber(Activation);

impl Case for NotANumber {
    fn name(&self) -> String {
        format!("{}/nan", self.0.op.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Activation { op, n_rows, n_cols, n_splits, .. } = &self.0;
        let mut x = Noise::new(8).units(n_rows * n_cols);
        let nan = n_cols + 40;
        x[nan] = f32::NAN;
        let buffer = device.upload(&x)?;
        let out = GuardedRows::new(device, n_rows, n_cols)?;
        let (x, values, stride) = (buffer.view(), out.values.view_mut(), n_cols as u32);
        self.0.launch(device, x, x, values, &out, stride, n_splits)?;
        let (values, scales) = (out.values.read()?, out.scales.read()?);
        for (i, value) in values.iter().enumerate() {
            if value.is_nan() != (i == nan) {
                return Err(Failure(format!("{}: element {i} is {value}", op.name())));
            }
        }
        for block in 0..scales.len() {
            let scale = f32::from_bits(scales[block / 2 * 2].0[block % 2]);
            if scale.is_finite() != (block != nan / 32) {
                return Err(Failure(format!("block {block} has the scale {scale}")));
            }
        }
        Ok(())
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let block = BLOCK as usize;
    let oai = Op::SwigluOai { alpha: 1.702, limit: 7.0 };
    for op in [Op::SiluGate, oai, Op::GeluTanh, Op::GeluErf, Op::PackRows] {
        for (edge, n_rows, n_cols, n_splits) in [
            ("one", 1, 1, 1),
            ("one_below_block", 2, block - 1, 1),
            ("block", 3, block, 1),
            ("one_past_block", 2, block + 1, 2),
            ("more_splits_than_work", 3, block + 1, 5),
            ("blocks_and_rest", 5, 3 * block + 7, splits(3 * BLOCK + 7) as usize),
        ] {
            table.push(Box::new(Activation { op, edge, n_rows, n_cols, n_splits, range: 12.0 }));
        }
        // Where `e^x` overflows, and where everything is tiny.
        let (n_rows, n_cols, n_splits) = (2, block, 1);
        for (edge, range) in [("large", 150.0), ("tiny", 1e-3)] {
            table.push(Box::new(Activation { op, edge, n_rows, n_cols, n_splits, range }));
        }
    }
    let vanishing = Activation {
        op: Op::PackRows,
        edge: "vanishing",
        n_rows: 2,
        n_cols: 70,
        n_splits: 1,
        range: 0.5 * SMALLEST_BLOCK,
    };
    table.push(Box::new(vanishing));
    for op in [Op::SiluGate, oai, Op::GeluTanh, Op::GeluErf, Op::PackRows] {
        let (n_rows, n_cols, n_splits) = (2, 128, 1);
        let case = Activation { op, edge: "nan", n_rows, n_cols, n_splits, range: 1.0 };
        table.push(Box::new(NotANumber(case)));
    }
    // Every value of the error function's range many times.
    table.push(Box::new(Activation {
        op: Op::GeluErf,
        edge: "sweep",
        n_rows: 4,
        n_cols: 4096,
        n_splits: 3,
        range: 6.0,
    }));
}
