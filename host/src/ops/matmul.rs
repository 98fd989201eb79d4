//! Products of weight matrices with activation rows.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::tensor::{Matrix, Rows};
use kernels_gpu::activation::GeluTanh;
use kernels_gpu::fixed16;
use kernels_gpu::for_each_tile_format;
use kernels_gpu::gpu::{Global, GlobalMut, U32x4};
use kernels_gpu::matmul::full::{F32_TOKENS, MatmulF32};
use kernels_gpu::matmul::{BLOCK_ROWS, plain};
use kernels_gpu::norm::{RmsWeigh, weigh_splits};
use kernels_gpu::quant::Format;

/// Groups of expert products hold at most this many tokens when there are few.
pub const SMALL_GROUP: usize = 4;
/// Groups of expert products hold at most this many tokens when there are many.
pub const LARGE_GROUP: usize = 16;
/// Bytes of a later product's weights that a launch asks for at most: more would push out of L2 what
/// comes first.
const MOST_AHEAD_BYTES: usize = 16 << 20;

/// Which rows a product takes and gives.
#[derive(Clone, Copy, Debug)]
pub enum Tokens {
    /// Rows 0..n of input and output.
    All(usize),
    /// By expert, as `ops::moe` grouped them.
    Grouped {
        /// (expert, first slot, slots) of each group
        groups: Global<U32x4>,
        /// Groups, unused ones included.
        n_groups: usize,
        /// Most tokens of a group: `SMALL_GROUP` or `LARGE_GROUP`.
        group_size: usize,
        /// Output rows in the order of the groups.
        slots: Global<u32>,
        /// Output row / this = input row.
        slots_per_row: usize,
    },
}

impl Tokens {
    /// (groups, slots, tokens, slots of a row) as kernels take them.
    pub(super) fn views(self) -> (Global<U32x4>, Global<u32>, u32, u32) {
        match self {
            Tokens::All(n) => (Global::absent(), Global::absent(), n as u32, 1),
            Tokens::Grouped { groups, slots, slots_per_row, .. } => {
                (groups, slots, 0, slots_per_row as u32)
            }
        }
    }

    /// Groups for blocks of `size` tokens.
    pub(super) fn n_groups(self, size: usize) -> usize {
        match self {
            Tokens::All(n) => n.div_ceil(size),
            Tokens::Grouped { n_groups, .. } => n_groups,
        }
    }

    /// Whether the kernels for few tokens fit.
    pub(super) fn are_few(self) -> bool {
        match self {
            Tokens::All(n) => n <= SMALL_GROUP,
            Tokens::Grouped { group_size, .. } => group_size <= SMALL_GROUP,
        }
    }
}

/// What else becomes of a product's rows.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// Nothing.
    None,
    /// The rows of the next RMS norm with these weights.
    Norm {
        /// [n_rows]
        weight: &'a Buffer<f32>,
        /// Where to; `Rows::with_rms`.
        rows: &'a Rows,
    },
    /// `gelu(out)`, in its tanh form.
    Gelu(&'a Rows),
}

/// Weights that the launch after this one will read, or a later one.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a>(pub Option<&'a Matrix>);

impl Ahead<'_> {
    /// Nothing to ask for.
    pub const NONE: Ahead<'static> = Ahead(None);

    /// As kernels take them: the words and how many.
    pub(super) fn view(self) -> (Global<U32x4>, u32) {
        match self.0 {
            Some(m) => {
                let words = m.words.view().cast::<U32x4>();
                (words, words.len().min(MOST_AHEAD_BYTES / 16) as u32)
            }
            None => (Global::absent(), 0),
        }
    }

    /// The same of each expert's matrix.
    pub(super) fn of_experts(self) -> (Global<U32x4>, u32) {
        match self.0 {
            Some(m) => {
                let words = m.words.view().cast::<U32x4>();
                (words, (words.len() / m.n_experts) as u32)
            }
            None => (Global::absent(), 0),
        }
    }
}

/// `out[token, row] = sum_c weights[row, c] x[token, c] + bias[row] + residual[token, row]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// The matrix.
    pub weights: &'a Matrix,
    /// The rows it multiplies.
    pub x: &'a Rows,
    /// [experts, n_rows]
    pub bias: Option<&'a Buffer<f32>>,
    /// As `out`, which it may be.
    pub residual: Option<Global<f32>>,
    /// Rows of `out_stride` columns; the product fills the first `n_rows` of each.
    pub out: GlobalMut<f32>,
    /// Columns from one row of `out` to the next; `n_rows` where the rows are packed too.
    pub out_stride: usize,
    /// Which rows.
    pub tokens: Tokens,
    /// What else becomes of them.
    pub packed: Packed<'a>,
    /// What comes next.
    pub ahead: Ahead<'a>,
}

/// Launches a product.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn product(device: &Device, p: Product<'_>) -> Result<()> {
    let Matrix { n_rows, n_cols, n_experts, format, .. } = *p.weights;
    let name = &p.weights.name;
    expect_shape("matmul", name, p.x.n_cols, n_cols, "columns of the input")?;
    if let Some(bias) = p.bias {
        expect_shape("matmul", name, bias.len(), n_rows * n_experts, "elements of the bias")?;
    }
    if let Packed::Norm { rows, .. } | Packed::Gelu(rows) = p.packed {
        expect_shape("matmul", name, rows.n_cols, n_rows, "columns of the packed rows")?;
        expect_shape("matmul", name, p.out_stride, n_rows, "columns of the output")?;
    }
    if format == Format::F32 {
        return product_f32(device, p);
    }
    let bias = p.bias.map_or_else(Global::absent, Buffer::view);
    let residual = p.residual.unwrap_or_else(Global::absent);
    let (groups, slots, n_tokens, slots_per_row) = p.tokens.views();
    let (squares, eps) = p.x.rms_view();
    let (ahead, n_ahead) = p.ahead.view();
    let (packing, rows, norm_weight) = match p.packed {
        Packed::None => (plain::NO_PACKING, None, Global::absent()),
        Packed::Norm { weight, rows } => (plain::PACK_FOR_NORM, Some(rows), weight.view()),
        Packed::Gelu(rows) => (plain::PACK_GELU, Some(rows), Global::absent()),
    };
    let rms = rows.and_then(|rows| rows.rms.as_ref());
    let n_blocks = match rows {
        Some(_) => fixed16::row_scales(n_rows as u32) as usize,
        None => n_rows.div_ceil(BLOCK_ROWS as usize),
    };
    macro_rules! launch {
        ($kernel:path, $size:expr) => {{
            use $kernel as Kernel;
            let kernel = Kernel {
                words: p.weights.words.view().cast(),
                codes: p.x.codes.view().cast(),
                scales: p.x.scales.view(),
                squares,
                bias,
                residual,
                out: p.out,
                groups,
                slots,
                norm_weight,
                packed_values: rows.map_or_else(GlobalMut::absent, |r| r.values.view_mut()),
                packed_codes: rows.map_or_else(GlobalMut::absent, |r| r.codes.view_mut()),
                packed_scales: rows.map_or_else(GlobalMut::absent, |r| r.scales.view_mut()),
                packed_squares: rms.map_or_else(GlobalMut::absent, |r| r.squares.view_mut()),
                ahead,
                n_ahead,
                n_rows: n_rows as u32,
                n_cols: n_cols as u32,
                n_tokens,
                slots_per_row,
                out_stride: p.out_stride as u32,
                packing,
                eps,
            };
            return device.launch(kernel, (n_blocks, p.tokens.n_groups($size)));
        }};
    }
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x4:ident, $x16:ident, $gated:ident, $experts:ident
        ) => {
            if format == Format::$ggml {
                if p.tokens.are_few() {
                    launch!(plain::$x4::Matmul, SMALL_GROUP);
                }
                launch!(plain::$x16::Matmul, LARGE_GROUP);
            }
        };
    }
    for_each_tile_format!(of_format);
    // invariant: F32 returned above, and the table has every other format.
    unreachable!("{format:?} has no product")
}

/// The same in full precision. Its blocks have a row each, so that packing takes another launch.
fn product_f32(device: &Device, p: Product<'_>) -> Result<()> {
    let n_rows = p.weights.n_rows;
    let (groups, slots, n_tokens, slots_per_row) = p.tokens.views();
    let (squares, eps) = p.x.rms_view();
    let (ahead, n_ahead) = p.ahead.view();
    let kernel = MatmulF32 {
        weights: p.weights.words.view().cast(),
        x: p.x.values.view(),
        squares,
        bias: p.bias.map_or_else(Global::absent, Buffer::view),
        residual: p.residual.unwrap_or_else(Global::absent),
        out: p.out,
        groups,
        slots,
        ahead,
        n_ahead,
        n_rows: n_rows as u32,
        n_cols: p.weights.n_cols as u32,
        n_tokens,
        slots_per_row,
        out_stride: p.out_stride as u32,
        eps,
    };
    device.launch(kernel, (n_rows, p.tokens.n_groups(F32_TOKENS as usize)))?;
    let Tokens::All(n_tokens) = p.tokens else {
        return Ok(()); // what experts give is packed after it is summed
    };
    let (n_cols, out) = (n_rows as u32, Global::new(p.out.address(), p.out.len()));
    match p.packed {
        Packed::None => Ok(()),
        Packed::Norm { weight, rows } => {
            let Some(rms) = &rows.rms else { return Ok(()) }; // see `Packed::Norm`
            let kernel = RmsWeigh {
                x: out,
                weight: weight.view(),
                values: rows.values.view_mut(),
                codes: rows.codes.view_mut(),
                scales: rows.scales.view_mut(),
                squares: rms.squares.view_mut(),
                n_cols,
            };
            device.launch(kernel, (n_tokens, weigh_splits(n_cols) as usize))
        }
        Packed::Gelu(rows) => {
            let kernel = GeluTanh {
                x: out,
                values: rows.values.view_mut(),
                codes: rows.codes.view_mut(),
                scales: rows.scales.view_mut(),
                in_stride: n_cols,
                n_cols,
            };
            device.launch(kernel, n_tokens)
        }
    }
}
