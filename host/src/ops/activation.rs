//! What stands between the feed-forward products.

use crate::device::Device;
use crate::error::Result;
use crate::model::arch::Activation;
use crate::tensor::Rows;
use kernels_gpu::activation::{GeluTanh, SiluGate, SwigluOai};
use kernels_gpu::gpu::Global;

/// `out = activation(gate, up)` for rows 0..n_rows of [.., out.n_cols].
///
/// # Errors
/// When the launch fails.
pub fn activate(
    device: &Device,
    activation: Activation,
    gate: Global<f32>,
    up: Global<f32>,
    out: &Rows,
    n_rows: usize,
) -> Result<()> {
    let n_cols = out.n_cols as u32;
    let in_stride = n_cols;
    let (values, codes, scales) =
        (out.values.view_mut(), out.codes.view_mut(), out.scales.view_mut());
    match activation {
        Activation::GeluTanh => {
            let kernel = GeluTanh { x: up, values, codes, scales, in_stride, n_cols };
            device.launch(kernel, n_rows)
        }
        Activation::SiluGate => {
            let kernel = SiluGate { gate, up, values, codes, scales, in_stride, n_cols };
            device.launch(kernel, n_rows)
        }
        Activation::SwigluOai { alpha, limit } => {
            let kernel =
                SwigluOai { gate, up, values, codes, scales, in_stride, n_cols, alpha, limit };
            device.launch(kernel, n_rows)
        }
    }
}
