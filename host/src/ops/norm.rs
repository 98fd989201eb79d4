//! Row norms.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::weights::Norm;
use crate::tensor::{RmsScale, Rows};
use kernels_gpu::gpu::Global;
use kernels_gpu::norm::{LayerNorm, RmsWeigh, layer_norm_splits, weigh_splits};

/// `out = norm(x)` for rows 0..n_rows of `x`: [.., n_embd]. An RMS norm leaves its scale to the
/// products, with the rows' own epsilon: see `Rows::rms`.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn norm(
    device: &Device,
    eps: f32,
    weights: &Norm,
    x: &Buffer<f32>,
    out: &Rows,
    n_rows: usize,
) -> Result<()> {
    expect_shape("norm", "weight", weights.weight.len(), out.n_cols, "columns")?;
    let n_cols = out.n_cols as u32;
    let (values, codes, scales) =
        (out.values.view_mut(), out.codes.view_mut(), out.scales.view_mut());
    let weight = weights.weight.view();
    match &out.rms {
        Some(rms) => weigh(device, x.view(), weight, (out, rms), n_rows),
        None => {
            let x = x.view();
            let bias = weights.bias.as_ref().map_or_else(Global::absent, Buffer::view);
            let kernel = LayerNorm { x, weight, bias, values, codes, scales, n_cols, eps };
            let splits = layer_norm_splits(n_cols) as usize;
            // Each finds the whole row's mean and variance: only where multiprocessors have nothing else to do.
            let are_few = n_rows * splits <= device.n_multiprocessors();
            device.launch(kernel, (n_rows, if are_few { splits } else { 1 }))
        }
    }
}

/// `out = x * weight` for rows 0..n_rows of `x`, with the sums of squares of x: what an RMS norm leaves
/// to the stage before the products.
///
/// # Errors
/// When the launch fails.
pub(super) fn weigh(
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
