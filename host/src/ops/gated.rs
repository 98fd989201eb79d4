//! Gate and up products with the activation between them, in one launch where the formats allow it.

use super::activation::activate;
use super::expect_shape;
use super::matmul::{Overlap, Packed, Product, SMALL_GROUP, Tokens, product};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::model::config::Experts;
use crate::model::weights::Linear;
use crate::tensor::Rows;
use kernels_gpu::fixed16;
use kernels_gpu::gpu::Global;
use kernels_gpu::matmul::gated::{self, CLAMPED_SWIGLU, SILU_GATE};
use kernels_gpu::quant::Format;
use kernels_gpu::{for_each_ring_format, for_each_tile_format};

/// Which rows, and whose experts.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// Dense, or experts by group.
    Tokens(Tokens),
    /// Each token's experts, as these router's logits choose them: [n_tokens, n_experts].
    Router {
        /// The logits.
        logits: Global<f32>,
        /// Experts, and how many a token has.
        experts: Experts,
    },
}

/// `out = activation(gate x, up x)`.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a> {
    /// The matrix whose result is the gate.
    pub gate: &'a Linear,
    /// The matrix whose result is gated.
    pub up: &'a Linear,
    /// What stands between.
    pub activation: Activation,
    /// The rows that they multiply.
    pub x: &'a Rows,
    /// [slots, n_rows]
    pub out: &'a Rows,
    /// Which rows.
    pub of: Of,
}

/// Whether the two matrices fit one kernel.
pub fn is_fused(gate: &Linear, up: &Linear) -> bool {
    gate.weight.format == up.weight.format && up.weight.format != Format::F32
}

/// Room for the results of the two products where they can't be fused: [slots, n_rows].
#[derive(Clone, Copy, Debug)]
pub struct Apart<'a> {
    /// Of the gate.
    pub gate: &'a Buffer<f32>,
    /// Of the other.
    pub up: &'a Buffer<f32>,
}

/// Launches it. Many tokens, and formats that differ, take a launch for each product and another one.
/// Where `is_fused` does not hold, `of` must be `Of::Tokens`.
///
/// # Errors
/// When shapes don't fit, or a launch fails.
pub fn gated(device: &Device, g: Gated<'_>, apart: Apart<'_>, n_out_rows: usize) -> Result<()> {
    let (gate, up) = (&g.gate.weight, &g.up.weight);
    if let Of::Tokens(tokens) = g.of
        && !(is_fused(g.gate, g.up) && tokens.are_few())
    {
        for (linear, out) in [(g.gate, apart.gate), (g.up, apart.up)] {
            let p = Product {
                weights: &linear.weight,
                x: g.x,
                bias: linear.bias.as_ref(),
                residual: None,
                out: out.view_mut(),
                out_stride: linear.weight.n_rows,
                tokens,
                packed: Packed::None,
                overlap: Overlap::Alone,
                rows_at_once: linear.weight.n_rows,
            };
            product(device, p)?;
        }
        let (gate, up) = (apart.gate.view(), apart.up.view());
        return activate(device, g.activation, gate, up, g.out, n_out_rows);
    }
    for (matrix, bias) in [(gate, &g.gate.bias), (up, &g.up.bias)] {
        let name = &matrix.name;
        expect_shape("gated", name, g.x.n_cols, matrix.n_cols, "columns of the input")?;
        expect_shape("gated", name, g.out.n_cols, matrix.n_rows, "columns of the output")?;
        if let Some(bias) = bias {
            let n = matrix.n_rows * matrix.n_experts;
            expect_shape("gated", name, bias.len(), n, "elements of the bias")?;
        }
    }
    let (activation, alpha, limit) = match g.activation {
        Activation::SwigluOai { alpha, limit } => (CLAMPED_SWIGLU, alpha, limit),
        Activation::SiluGate | Activation::GeluTanh => (SILU_GATE, 0.0, 0.0),
    };
    let absent = (Global::absent(), Global::absent());
    let (tokens, router, n_experts, (groups, slots), n_tokens, slots_per_row) = match g.of {
        Of::Tokens(tokens) => {
            let (groups, slots, n_tokens, slots_per_row) = tokens.views();
            (Some(tokens), Global::absent(), 0, (groups, slots), n_tokens, slots_per_row)
        }
        Of::Router { logits, experts } => {
            (None, logits, experts.count as u32, absent, 0, experts.used as u32)
        }
    };
    let (squares, eps) = g.x.rms_view();
    let bias = |linear: &Linear| linear.bias.as_ref().map_or_else(Global::absent, Buffer::view);
    let n_blocks = fixed16::row_scales(up.n_rows as u32) as usize;
    let n_groups = tokens.map_or(n_out_rows, |tokens| tokens.n_groups(SMALL_GROUP));
    macro_rules! launch {
        ($gated:ident) => {{
            let kernel = gated::$gated::Gated {
                gate: gate.words.view().cast(),
                up: up.words.view().cast(),
                codes: g.x.codes.view().cast(),
                scales: g.x.scales.view(),
                squares,
                gate_bias: bias(g.gate),
                up_bias: bias(g.up),
                router,
                groups,
                slots,
                packed_values: g.out.values.view_mut(),
                packed_codes: g.out.codes.view_mut(),
                packed_scales: g.out.scales.view_mut(),
                n_rows: up.n_rows as u32,
                n_cols: up.n_cols as u32,
                n_experts,
                n_tokens,
                slots_per_row,
                activation,
                alpha,
                limit,
                eps,
            };
            return device.launch(kernel, (n_blocks, n_groups));
        }};
    }
    if tokens.is_some_and(|tokens| tokens.are_shared() || tokens.fill_rings(up.format)) {
        macro_rules! of_ring_format {
            ($tile:ty, $ggml:ident, $x8_ring:ident, $ring:ident, $rows64:ident) => {
                if up.format == Format::$ggml {
                    launch!($ring);
                }
            };
        }
        for_each_ring_format!(of_ring_format);
    }
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
        ) => {
            if up.format == Format::$ggml {
                launch!($gated);
            }
        };
    }
    for_each_tile_format!(of_format);
    // invariant: F32 is never fused, and the table has every other format.
    unreachable!("{:?} has no gated product", up.format)
}
