//! Products of weight matrices with activation rows.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::tensor::{Matrix, Rows};
use kernels_gpu::for_each_tile_format;
use kernels_gpu::gpu::{Global, GlobalMut, U32x4};
use kernels_gpu::matmul::{self, F32_TOKENS, MatmulF32};
use kernels_gpu::quant::Format;
use kernels_gpu::tile::TILE_ROWS;

/// Groups of expert products hold at most this many tokens when there are few.
pub const SMALL_GROUP: usize = 4;
/// Groups of expert products hold at most this many tokens when there are many.
pub const LARGE_GROUP: usize = 32;

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
    /// Columns from one row of `out` to the next.
    pub out_stride: usize,
    /// Which rows.
    pub tokens: Tokens,
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
    let bias = p.bias.map_or_else(Global::absent, Buffer::view);
    let residual = p.residual.unwrap_or_else(Global::absent);
    let (groups, slots, n_tokens, slots_per_row) = match p.tokens {
        Tokens::All(n) => (Global::absent(), Global::absent(), n, 1),
        Tokens::Grouped { groups, slots, slots_per_row, .. } => (groups, slots, 0, slots_per_row),
    };
    let grid_y = |size: usize| match p.tokens {
        Tokens::All(n) => n.div_ceil(size),
        Tokens::Grouped { n_groups, .. } => n_groups,
    };
    if format == Format::F32 {
        let kernel = MatmulF32 {
            weights: p.weights.words.view().cast(),
            x: p.x.values.view(),
            bias,
            residual,
            out: p.out,
            groups,
            slots,
            n_rows: n_rows as u32,
            n_cols: n_cols as u32,
            n_tokens: n_tokens as u32,
            slots_per_row: slots_per_row as u32,
            out_stride: p.out_stride as u32,
        };
        return device.launch(kernel, (n_rows, grid_y(F32_TOKENS as usize)));
    }
    let small = match p.tokens {
        Tokens::All(n) => n <= SMALL_GROUP,
        Tokens::Grouped { group_size, .. } => group_size <= SMALL_GROUP,
    };
    let row_tiles = n_rows.div_ceil(TILE_ROWS as usize);
    macro_rules! launch {
        ($kernel:path, $size:expr) => {{
            use $kernel as Kernel;
            let kernel = Kernel {
                words: p.weights.words.view().cast(),
                codes: p.x.codes.view().cast(),
                scales: p.x.scales.view(),
                bias,
                residual,
                out: p.out,
                groups,
                slots,
                n_rows: n_rows as u32,
                n_cols: n_cols as u32,
                n_tokens: n_tokens as u32,
                slots_per_row: slots_per_row as u32,
                out_stride: p.out_stride as u32,
            };
            return device.launch(kernel, (row_tiles, grid_y($size)));
        }};
    }
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x4:ident, $x32:ident
        ) => {
            if format == Format::$ggml {
                if small {
                    launch!(matmul::$x4::Matmul, SMALL_GROUP);
                }
                launch!(matmul::$x32::Matmul, LARGE_GROUP);
            }
        };
    }
    for_each_tile_format!(of_format);
    // invariant: F32 returned above, and the table has every other format.
    unreachable!("{format:?} has no product")
}
