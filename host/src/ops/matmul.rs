//! Products of weight matrices with activation rows.

use super::activation::activate;
use super::expect_shape;
use super::norm::weigh;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::tensor::{Matrix, RmsScale, Rows};
use kernels_gpu::fixed16;
use kernels_gpu::gpu::{Global, GlobalMut, U32x4};
use kernels_gpu::matmul::full::{F32_TOKENS, MatmulF32};
use kernels_gpu::matmul::{BLOCK_ROWS, COLUMN_TOKENS, SMALL_GROUP_TOKENS, alone, plain, rows64};
use kernels_gpu::quant::Format;
use kernels_gpu::tile::TILE_ROWS;
use kernels_gpu::{
    for_each_alone_format, for_each_ring_format, for_each_tile_format, for_each_wide_format,
};

/// Tokens of a block of the products of few, and of a group of their experts, at most.
pub const SMALL_GROUP: usize = SMALL_GROUP_TOKENS as usize;
/// Groups of expert products hold at most this many tokens when there are many.
pub const LARGE_GROUP: usize = 16;
/// Tokens of a column of a product.
const COLUMN: usize = COLUMN_TOKENS as usize;

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
        /// Whether an expert has two tokens or more, in the mean.
        are_shared: bool,
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

    /// Groups for blocks of `size` tokens at most, `COLUMN` or `SMALL_GROUP`, where such blocks are to have them: one, or
    /// two where a group's blocks leave half of all places free. Weights are read twice then.
    fn groups_of(self, size: usize, half_is_free: bool) -> Option<usize> {
        match self {
            Tokens::All(n) if n <= size => Some(1),
            Tokens::All(n) => (n <= 2 * size && half_is_free).then_some(2),
            Tokens::Grouped { .. } => {
                (size == SMALL_GROUP && self.are_few()).then(|| self.n_groups(size))
            }
        }
    }

    /// Whether they are small groups that mostly have several tokens: for kernels that are made for those, though fewer
    /// of their blocks run at once.
    pub(super) fn are_shared(self) -> bool {
        self.are_few() && matches!(self, Tokens::Grouped { are_shared: true, .. })
    }

    /// Whether products of these few tokens in order go by way of shared memory too: of Q4_K, whose scales are then
    /// unpacked once for a warp. Up to four have kernels of their own, but for gate and up.
    pub(super) fn fill_rings(self, format: Format) -> bool {
        matches!(self, Tokens::All(2..=SMALL_GROUP)) && format == Format::Q4_K
    }

    /// Whether the kernels for few tokens fit.
    pub(super) fn are_few(self) -> bool {
        match self {
            Tokens::All(n) => n <= SMALL_GROUP,
            Tokens::Grouped { group_size, .. } => group_size <= SMALL_GROUP,
        }
    }
}

/// What else becomes of rows of f32.
#[derive(Clone, Copy, Debug)]
pub enum Packed<'a> {
    /// Nothing.
    None,
    /// The rows of the next RMS norm with these weights.
    Norm {
        /// [n_rows]
        weight: &'a Buffer<f32>,
        /// Where to.
        rows: &'a Rows,
        /// And the rows' own `rms`.
        rms: &'a RmsScale,
    },
    /// `gelu(out)`, in its tanh form.
    Gelu(&'a Rows),
}

/// `Packed` as kernels take it; absent what there is none of.
pub(super) struct PackedViews {
    pub norm_weight: Global<f32>,
    pub values: GlobalMut<f32>,
    pub codes: GlobalMut<u8>,
    pub scales: GlobalMut<U32x4>,
    pub squares: GlobalMut<f32>,
}

impl<'a> Packed<'a> {
    /// For a norm with these weights, if it is an RMS norm; another norm leaves nothing to the stage
    /// before it.
    pub fn for_norm(weight: &'a Buffer<f32>, rows: &'a Rows) -> Packed<'a> {
        rows.rms.as_ref().map_or(Packed::None, |rms| Packed::Norm { weight, rows, rms })
    }

    /// The rows, where there are any.
    pub(super) fn rows(self) -> Option<&'a Rows> {
        match self {
            Packed::None => None,
            Packed::Norm { rows, .. } | Packed::Gelu(rows) => Some(rows),
        }
    }

    pub(super) fn views(self) -> PackedViews {
        let rows = self.rows();
        let (norm_weight, squares) = match self {
            Packed::Norm { weight, rms, .. } => (weight.view(), rms.squares.view_mut()),
            Packed::None | Packed::Gelu(_) => (Global::absent(), GlobalMut::absent()),
        };
        PackedViews {
            norm_weight,
            values: rows.map_or_else(GlobalMut::absent, |rows| rows.values.view_mut()),
            codes: rows.map_or_else(GlobalMut::absent, |rows| rows.codes.view_mut()),
            scales: rows.map_or_else(GlobalMut::absent, |rows| rows.scales.view_mut()),
            squares,
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
    /// How it stands to the launches around it.
    pub overlap: Overlap,
    /// Rows of its matrix and of those that share the device with it.
    pub rows_at_once: usize,
}

/// Whether a product shares the device with the one before it or behind it, where both read the same
/// rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// It waits for what is before it.
    Alone,
    /// The launch behind it starts when its own wait is over: it is `Beside` it, or what it asks for then is not in the
    /// way of the launch before, or it reads before its own wait what the launches before this one wrote.
    Leads,
    /// The launch before it `Leads`, or is `Beside` that one, and has the same input.
    Beside,
}

impl Overlap {
    /// Of the products of these formats, one launch behind the other, over the same rows. The launch behind them starts
    /// when a wait of theirs is over, so that it may read before its own what the launches before them wrote.
    pub fn of(formats: &[Format], at: usize) -> Overlap {
        // Full precision has a kernel of its own, which is always alone, and lets the next launch start behind its wait.
        let takes_part = |i: usize| formats.get(i).is_some_and(|&format| format != Format::F32);
        if !takes_part(at) {
            Overlap::Alone
        } else if at > 0 && takes_part(at - 1) {
            Overlap::Beside
        } else {
            Overlap::Leads
        }
    }

    /// As kernels take it.
    pub(super) fn of_kernel(self) -> u32 {
        match self {
            Overlap::Alone => plain::ALONE,
            Overlap::Leads => plain::LEADS,
            Overlap::Beside => plain::BESIDE,
        }
    }
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
    if let Some(rows) = p.packed.rows() {
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
    let packed = p.packed.views();
    let (packing, n_blocks) = match p.packed {
        Packed::None => (plain::NO_PACKING, n_rows.div_ceil(BLOCK_ROWS as usize)),
        Packed::Norm { .. } => (plain::PACK_FOR_NORM, fixed16::row_scales(n_rows as u32) as usize),
        Packed::Gelu(_) => (plain::PACK_GELU, fixed16::row_scales(n_rows as u32) as usize),
    };
    let overlap = p.overlap.of_kernel();
    macro_rules! launch {
        ($kernel:path, $grid:expr) => {{
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
                norm_weight: packed.norm_weight,
                packed_values: packed.values,
                packed_codes: packed.codes,
                packed_scales: packed.scales,
                packed_squares: packed.squares,
                n_rows: n_rows as u32,
                n_cols: n_cols as u32,
                n_tokens,
                slots_per_row,
                out_stride: p.out_stride as u32,
                packing,
                eps,
                overlap,
            };
            return device.launch(kernel, $grid);
        }};
    }
    macro_rules! launch_alone {
        ($kernel:path, $n_tiles:expr) => {{
            use $kernel as Kernel;
            let kernel = Kernel {
                words: p.weights.words.view().cast(),
                codes: p.x.codes.view().cast(),
                scales: p.x.scales.view(),
                squares,
                bias,
                residual,
                out: p.out,
                n_rows: n_rows as u32,
                n_cols: n_cols as u32,
                eps,
                overlap,
            };
            return device.launch(kernel, n_rows.div_ceil($n_tiles * TILE_ROWS as usize));
        }};
    }
    // Of two places a multiprocessor: a block may then have one for itself, or share it with one of other tokens.
    let leave_half_free =
        p.rows_at_once.div_ceil(BLOCK_ROWS as usize) <= device.n_multiprocessors();
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
        ) => {
            if format == Format::$ggml {
                let is_lone = matches!(p.tokens, Tokens::All(1));
                if is_lone && n_blocks <= device.n_multiprocessors() {
                    launch!(plain::$x1::Matmul, (n_blocks, 1));
                }
                if let Some(n_groups) = p.tokens.groups_of(COLUMN, leave_half_free) {
                    launch!(plain::$x4::Matmul, (n_blocks, n_groups));
                }
                if let Some(n_groups) = p.tokens.groups_of(SMALL_GROUP, leave_half_free) {
                    launch!(plain::$x8::Matmul, (n_blocks, n_groups));
                }
                // Blocks of the same rows are neighbours.
                launch!(plain::$x16::Matmul, (p.tokens.n_groups(LARGE_GROUP), n_blocks));
            }
        };
    }
    if matches!(p.tokens, Tokens::All(1)) && packing == plain::NO_PACKING {
        // So many tiles a block that each block has a multiprocessor; two are the product that packs too.
        let n_tiles = p.rows_at_once.div_ceil(TILE_ROWS as usize);
        let tiles = n_tiles.div_ceil(device.n_multiprocessors());
        macro_rules! of_alone_format {
            ($tile:ty, $ggml:ident, $rows16:ident, $rows48:ident) => {
                match tiles {
                    1 if format == Format::$ggml => launch_alone!(alone::$rows16::Matmul, 1),
                    3 if format == Format::$ggml => launch_alone!(alone::$rows48::Matmul, 3),
                    _ => {}
                }
            };
        }
        for_each_alone_format!(of_alone_format);
    }
    // All in one block, or in two halves.
    let ring_groups = match p.tokens {
        Tokens::All(n) if n > COLUMN && p.tokens.fill_rings(format) => Some(1),
        Tokens::All(_) => p.tokens.groups_of(SMALL_GROUP, leave_half_free).filter(|&n| n == 2),
        Tokens::Grouped { .. } => None,
    };
    if let Some(n_groups) = ring_groups {
        macro_rules! of_ring_format {
            ($tile:ty, $ggml:ident, $x8_ring:ident, $gated:ident, $rows64:ident) => {
                if format == Format::$ggml {
                    launch!(plain::$x8_ring::Matmul, (n_blocks, n_groups));
                }
            };
        }
        for_each_ring_format!(of_ring_format);
    }
    if p.tokens.are_shared() && packing == plain::NO_PACKING && p.residual.is_none() {
        macro_rules! of_ring_format {
            ($tile:ty, $ggml:ident, $x8_ring:ident, $gated:ident, $rows64:ident) => {
                if format == Format::$ggml {
                    let kernel = rows64::$rows64::Matmul {
                        words: p.weights.words.view().cast(),
                        codes: p.x.codes.view().cast(),
                        scales: p.x.scales.view(),
                        squares,
                        bias,
                        out: p.out,
                        groups,
                        slots,
                        n_rows: n_rows as u32,
                        n_cols: n_cols as u32,
                        slots_per_row,
                        out_stride: p.out_stride as u32,
                        eps,
                    };
                    let n_blocks = n_rows.div_ceil(rows64::ROWS as usize);
                    return device.launch(kernel, (n_blocks, p.tokens.n_groups(SMALL_GROUP)));
                }
            };
        }
        for_each_ring_format!(of_ring_format);
    }
    if matches!(p.tokens, Tokens::All(2..=COLUMN)) && leave_half_free {
        macro_rules! of_wide_format {
            ($tile:ty, $ggml:ident, $wide:ident) => {
                if format == Format::$ggml {
                    launch!(plain::$wide::Matmul, (n_blocks, 1));
                }
            };
        }
        for_each_wide_format!(of_wide_format);
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
    let kernel = MatmulF32 {
        weights: p.weights.words.view().cast(),
        x: p.x.values.view(),
        squares,
        bias: p.bias.map_or_else(Global::absent, Buffer::view),
        residual: p.residual.unwrap_or_else(Global::absent),
        out: p.out,
        groups,
        slots,
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
    let out = Global::new(p.out.address(), p.out.len());
    match p.packed {
        Packed::None => Ok(()),
        Packed::Norm { weight, rows, rms } => {
            weigh(device, out, weight.view(), (rows, rms), n_tokens)
        }
        Packed::Gelu(rows) => {
            let no_gate = Global::absent();
            activate(device, Activation::GeluTanh, no_gate, out, rows, n_tokens)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_in_halves_where_their_blocks_leave_half_of_all_places_free() {
        for (n, one_group, halves) in [
            (1, [Some(1), Some(1)], [Some(1), Some(1)]),
            (4, [Some(1), Some(1)], [Some(1), Some(1)]),
            (5, [None, Some(1)], [Some(2), Some(1)]),
            (8, [None, Some(1)], [Some(2), Some(1)]),
            (9, [None, None], [None, Some(2)]),
            (16, [None, None], [None, Some(2)]),
            (17, [None, None], [None, None]),
        ] {
            for (half_is_free, expected) in [(false, one_group), (true, halves)] {
                let groups = |size| Tokens::All(n).groups_of(size, half_is_free);
                let found = [COLUMN, SMALL_GROUP].map(groups);
                assert_eq!(found, expected, "{n} tokens, {half_is_free}");
            }
        }
    }

    #[test]
    fn products_of_full_precision_are_alone() {
        use Overlap::{Alone, Beside, Leads};
        let (q, f) = (Format::Q4_K, Format::F32);
        for (formats, expected) in [
            (&[q][..], &[Leads][..]),
            (&[q, Format::Q6_K], &[Leads, Beside]),
            (&[q, q, q], &[Leads, Beside, Beside]),
            (&[f, q, q], &[Alone, Leads, Beside]),
            (&[q, f, q], &[Leads, Alone, Leads]),
            (&[q, q, f], &[Leads, Beside, Alone]),
        ] {
            let found: Vec<_> = (0..formats.len()).map(|i| Overlap::of(formats, i)).collect();
            assert_eq!(found, expected, "{formats:?}");
        }
    }
}
