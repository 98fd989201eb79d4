//! Row norms.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::Config;
use crate::model::arch::NormKind;
use crate::model::weights::Norm;
use crate::tensor::Rows;
use kernels_gpu::gpu::Global;
use kernels_gpu::norm::{LayerNorm, RmsNorm};

/// `out = norm(x)` for rows 0..n_rows of `x`: [.., n_embd].
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn norm(
    device: &Device,
    config: &Config,
    weights: &Norm,
    x: &Buffer<f32>,
    out: &Rows,
    n_rows: usize,
) -> Result<()> {
    expect_shape("norm", "weight", weights.weight.len(), out.n_cols, "columns")?;
    let (n_cols, eps) = (out.n_cols as u32, config.norm_eps);
    let (values, codes, scales) =
        (out.values.view_mut(), out.codes.view_mut(), out.scales.view_mut());
    let (x, add, weight) = (x.view_mut(), Global::absent(), weights.weight.view());
    match config.architecture.norm {
        NormKind::Rms => {
            let kernel = RmsNorm { x, add, weight, values, codes, scales, n_cols, eps };
            device.launch(kernel, n_rows)
        }
        NormKind::Layer => {
            let bias = weights.bias.as_ref().map_or_else(Global::absent, Buffer::view);
            let kernel = LayerNorm { x, add, weight, bias, values, codes, scales, n_cols, eps };
            device.launch(kernel, n_rows)
        }
    }
}
