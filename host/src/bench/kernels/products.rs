//! Products of dense matrices, with what stands before and behind them.

use super::check::{Estimate, Point, activation, ends, product, sample};
use super::stock::{
    Input, Matrices, NORM_EPS, Stock, input_bytes, matrix_bytes, packed_bytes, points_of_row,
    read_row,
};
use super::{Subject, Work};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::ops::gated::{Apart, Gated, Of, gated};
use crate::ops::matmul::{Overlap, Packed, Product, Tokens};
use crate::tensor::Rows;
use kernels_gpu::quant::Format;

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum To {
    /// Rows of its own.
    Rows,
    /// It is added to the stream, and goes on to an RMS norm.
    Norm,
    /// It is added to the stream.
    Stream,
    /// GELU of it.
    Gelu,
}

/// A dense product.
#[derive(Clone, Copy)]
pub(super) struct Dense {
    pub format: Format,
    /// [columns, rows]
    pub dims: [usize; 2],
    pub n_tokens: usize,
    /// Whether its rows come from an RMS norm.
    pub normed: bool,
    pub bias: bool,
    pub to: To,
}

struct Made {
    plan: Dense,
    matrices: Matrices,
    input: Input,
    /// The stream before the first launch; [tokens, rows], or empty
    stream: Vec<f32>,
    out: Buffer<f32>,
    norm_weight: Vec<f32>,
    norm_weight_buffer: Buffer<f32>,
    packed: Rows,
}

impl Dense {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let Dense { format, dims: [n_cols, n_rows], n_tokens, .. } = self;
        let n_copies = stock.n_copies(matrix_bytes(format, n_rows, n_cols));
        let matrices =
            stock.matrices(("matrix", format), [n_cols, n_rows, 1], self.bias, n_copies)?;
        let input = match self.normed {
            true => stock.normed(n_tokens, n_cols)?,
            false => stock.plain(n_tokens, n_cols)?,
        };
        let adds = matches!(self.to, To::Norm | To::Stream);
        let stream = stock.units(if adds { n_tokens * n_rows } else { 0 });
        let norm_weight = stock.units(n_rows);
        let device = stock.device.clone();
        Ok(Box::new(Made {
            plan: self,
            matrices,
            input,
            out: if adds { device.upload(&stream)? } else { device.alloc(n_tokens * n_rows)? },
            stream,
            norm_weight_buffer: device.upload(&norm_weight)?,
            norm_weight,
            packed: match self.to {
                To::Rows | To::Stream => Rows::new(&device, 0, n_rows)?,
                To::Norm => Rows::with_rms(&device, n_tokens, n_rows, NORM_EPS)?,
                To::Gelu => Rows::new(&device, n_tokens, n_rows)?,
            },
        }))
    }
}

impl Subject for Made {
    fn n_copies(&self) -> usize {
        self.matrices.linears.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let Dense { dims: [_, n_rows], n_tokens, to, .. } = self.plan;
        let linear = &self.matrices.linears[copy];
        let p = Product {
            weights: &linear.weight,
            x: &self.input.rows,
            bias: linear.bias.as_ref(),
            residual: (!self.stream.is_empty()).then(|| self.out.view()),
            out: self.out.view_mut(),
            out_stride: n_rows,
            tokens: Tokens::All(n_tokens),
            packed: match to {
                To::Rows | To::Stream => Packed::None,
                To::Norm => Packed::for_norm(&self.norm_weight_buffer, &self.packed),
                To::Gelu => Packed::Gelu(&self.packed),
            },
            overlap: Overlap::Alone,
            rows_at_once: n_rows,
        };
        crate::ops::matmul::product(device, p)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let Dense { dims: [_, n_rows], n_tokens, to, .. } = self.plan;
        let mut points = Vec::new();
        for token in ends(n_tokens) {
            let expected = |row: usize| {
                let value = product(&self.matrices, (0, row), &self.input, token);
                match self.stream.get(token * n_rows + row) {
                    Some(&before) => value.plus(before as f64),
                    None => value,
                }
            };
            let places = sample(n_rows);
            let found = read_row(&self.out, token, n_rows)?;
            points.extend(points_of_row(&format!("token {token}"), &found, &places, expected));
            let behind: &dyn Fn(usize) -> Estimate = match to {
                To::Rows | To::Stream => continue,
                To::Norm => &|row| expected(row).times(self.norm_weight[row] as f64),
                To::Gelu => {
                    &|row| activation(Activation::GeluTanh, Estimate::default(), expected(row))
                }
            };
            let found = read_row(&self.packed.values, token, n_rows)?;
            points.extend(points_of_row(&format!("packed {token}"), &found, &places, behind));
        }
        Ok(points)
    }

    fn work(&self) -> Work {
        let Dense { format, dims: [n_cols, n_rows], n_tokens, to, .. } = self.plan;
        let out = 4 * (n_tokens * n_rows) as u64;
        let more = match to {
            To::Rows => 0,
            To::Stream => out,
            To::Norm => out + packed_bytes(n_tokens, n_rows, true) + 4 * n_rows as u64,
            To::Gelu => packed_bytes(n_tokens, n_rows, false),
        };
        let input = input_bytes(n_tokens, n_cols, self.input.is_normed(), format);
        let bytes = self.matrices.expert_bytes() + input + out + more;
        Work::of_products(bytes, 2 * (n_rows * n_cols * n_tokens) as u64, format)
    }
}

/// Gate and up products with `silu` between them.
#[derive(Clone, Copy)]
pub(super) struct DenseGated {
    pub format: Format,
    /// [columns, rows]
    pub dims: [usize; 2],
    pub n_tokens: usize,
}

struct MadeGated {
    plan: DenseGated,
    gate: Matrices,
    up: Matrices,
    input: Input,
    out: Rows,
    apart: [Buffer<f32>; 2],
}

impl DenseGated {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let DenseGated { format, dims: [n_cols, n_rows], n_tokens } = self;
        let n_copies = stock.n_copies(2 * matrix_bytes(format, n_rows, n_cols));
        let mut matrices =
            |name| stock.matrices((name, format), [n_cols, n_rows, 1], false, n_copies);
        let (gate, up) = (matrices("gate")?, matrices("up")?);
        let device = stock.device.clone();
        Ok(Box::new(MadeGated {
            plan: self,
            gate,
            up,
            input: stock.normed(n_tokens, n_cols)?,
            out: Rows::new(&device, n_tokens, n_rows)?,
            apart: [device.alloc(n_tokens * n_rows)?, device.alloc(n_tokens * n_rows)?],
        }))
    }
}

impl Subject for MadeGated {
    fn n_copies(&self) -> usize {
        self.gate.linears.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let g = Gated {
            gate: &self.gate.linears[copy],
            up: &self.up.linears[copy],
            activation: Activation::SiluGate,
            x: &self.input.rows,
            out: &self.out,
            of: Of::Tokens(Tokens::All(self.plan.n_tokens)),
        };
        let [gate, up] = &self.apart;
        gated(device, g, Apart { gate, up }, self.plan.n_tokens)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let DenseGated { dims: [_, n_rows], n_tokens, .. } = self.plan;
        let mut points = Vec::new();
        for token in ends(n_tokens) {
            let expected = |row: usize| {
                let of = |m: &Matrices| product(m, (0, row), &self.input, token);
                activation(Activation::SiluGate, of(&self.gate), of(&self.up))
            };
            let found = read_row(&self.out.values, token, n_rows)?;
            let what = format!("token {token}");
            points.extend(points_of_row(&what, &found, &sample(n_rows), expected));
        }
        Ok(points)
    }

    fn work(&self) -> Work {
        let DenseGated { format, dims: [n_cols, n_rows], n_tokens } = self.plan;
        let input = input_bytes(n_tokens, n_cols, true, format);
        let bytes = 2 * self.gate.expert_bytes() + input + packed_bytes(n_tokens, n_rows, false);
        Work::of_products(bytes, 4 * (n_rows * n_cols * n_tokens) as u64, format)
    }
}
