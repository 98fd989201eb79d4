//! Row norms.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::weights::Norm;
use crate::tensor::{RmsScale, Rows};
use kernels_gpu::gpu::Global;
use kernels_gpu::norm::{LayerNorm, RmsWeigh, weigh_splits};

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias` for rows 0..n_rows of `x`: [.., n_embd], mean and variance
/// over the row.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn layer_norm(
    device: &Device,
    eps: f32,
    weights: &Norm,
    x: &Buffer<f32>,
    out: &Rows,
    n_rows: usize,
) -> Result<()> {
    expect_shape("layer_norm", "weight", weights.weight.len(), out.n_cols, "columns")?;
    let kernel = LayerNorm {
        x: x.view(),
        weight: weights.weight.view(),
        bias: weights.bias.as_ref().map_or_else(Global::absent, Buffer::view),
        values: out.values.view_mut(),
        codes: out.codes.view_mut(),
        scales: out.scales.view_mut(),
        n_cols: out.n_cols as u32,
        eps,
    };
    device.launch(kernel, n_rows)
}

/// `out = x * weight` for rows 0..n_rows of `x`, with the sums of squares of x: what an RMS norm leaves
/// to the stage before the products, where that can't do it itself. Its scale is left to the products, with the rows' own
/// epsilon: see `Rows::rms`.
///
/// # Errors
/// When the launch fails.
pub fn weigh(
    device: &Device,
    x: Global<f32>,
    weight: Global<f32>,
    (out, rms): (&Rows, &RmsScale),
    n_rows: usize,
) -> Result<()> {
    let n_cols = out.n_cols as u32;
    let kernel = RmsWeigh {
        x,
        weight,
        values: out.values.view_mut(),
        codes: out.codes.view_mut(),
        scales: out.scales.view_mut(),
        squares: rms.squares.view_mut(),
        n_cols,
    };
    device.launch(kernel, (n_rows, weigh_splits(n_cols) as usize))
}
