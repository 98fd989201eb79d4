//! Products of one token that do the layer norm before them themselves.

use super::check::{Estimate, Point, activation, product, sample};
use super::products::To;
use super::rows::layer_normed;
use super::stock::{
    Input, Matrices, NORM_EPS, Stock, matrix_bytes, packed_bytes, points_of_row, read_row,
};
use super::{Subject, Work};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::model::weights::Norm;
use crate::ops::matmul::Overlap;
use crate::ops::normed::{NormedProduct, Out, normed_product};
use crate::tensor::Rows;
use kernels_gpu::quant::Format;

/// Such a product, with biases.
#[derive(Clone, Copy)]
pub(super) struct NormedDense {
    pub format: Format,
    /// [columns, rows]
    pub dims: [usize; 2],
    /// `Rows` or `Gelu`
    pub to: To,
}

struct Made {
    plan: NormedDense,
    matrices: Matrices,
    x: Buffer<f32>,
    norm: Norm,
    /// The row behind the norm, and how far each column may be off.
    input: Input,
    errors: Vec<f64>,
    out: Buffer<f32>,
    packed: Rows,
}

impl NormedDense {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let NormedDense { format, dims: [n_cols, n_rows], .. } = self;
        let n_copies = stock.n_copies(matrix_bytes(format, n_rows, n_cols));
        let matrices = stock.matrices(("matrix", format), [n_cols, n_rows, 1], true, n_copies)?;
        let [x, weight, bias] = [0; 3].map(|_| stock.units(n_cols));
        let in_f64: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        let normed = layer_normed(&in_f64, &weight, &bias);
        let values = normed.iter().map(|column| column.value as f32).collect();
        let device = stock.device.clone();
        Ok(Box::new(Made {
            plan: self,
            matrices,
            x: device.upload(&x)?,
            norm: Norm { weight: device.upload(&weight)?, bias: Some(device.upload(&bias)?) },
            input: stock.made_inside(values, n_cols)?,
            errors: normed.iter().map(|column| column.error).collect(),
            out: device.alloc(n_rows)?,
            packed: Rows::new(&device, 1, n_rows)?,
        }))
    }
}

impl Made {
    fn expected(&self, row: usize) -> Estimate {
        let weights = self.matrices.row(0, row);
        let of_norm: f64 = weights.iter().zip(&self.errors).map(|(w, e)| w.abs() as f64 * e).sum();
        let Estimate { value, error } = product(&self.matrices, (0, row), &self.input, 0);
        Estimate { value, error: error + of_norm }
    }
}

impl Subject for Made {
    fn n_copies(&self) -> usize {
        self.matrices.linears.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let NormedDense { dims: [_, n_rows], to, .. } = self.plan;
        let p = NormedProduct {
            linear: &self.matrices.linears[copy],
            x: &self.x,
            norm: &self.norm,
            eps: NORM_EPS,
            out: match to {
                To::Gelu => Out::Gelu(&self.packed),
                To::Rows | To::Norm | To::Stream => Out::Columns(self.out.view_mut()),
            },
            overlap: Overlap::Alone,
            rows_at_once: n_rows,
        };
        normed_product(device, p)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let NormedDense { dims: [_, n_rows], to, .. } = self.plan;
        let gelu = |row| activation(Activation::GeluTanh, Estimate::default(), self.expected(row));
        let (found, expected): (_, &dyn Fn(usize) -> Estimate) = match to {
            To::Gelu => (read_row(&self.packed.values, 0, n_rows)?, &gelu),
            To::Rows | To::Norm | To::Stream => {
                (read_row(&self.out, 0, n_rows)?, &|row| self.expected(row))
            }
        };
        Ok(points_of_row("the token", &found, &sample(n_rows), expected))
    }

    fn work(&self) -> Work {
        let NormedDense { format, dims: [n_cols, n_rows], to } = self.plan;
        let out = match to {
            To::Gelu => packed_bytes(1, n_rows, false),
            To::Rows | To::Norm | To::Stream => 4 * n_rows as u64,
        };
        // The row, and the norm's weights and biases.
        let bytes = self.matrices.expert_bytes() + 3 * 4 * n_cols as u64 + out;
        Work::of_products(bytes, 2 * (n_rows * n_cols) as u64, format)
    }
}
