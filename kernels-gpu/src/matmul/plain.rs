//! One matrix, dense or grouped by expert: with bias and residual, and where the next stage wants it
//! the result as fixed point too, through an activation or the weights of the next norm.

use super::lone::Chains;
#[cfg(not(target_arch = "nvptx64"))]
use super::lone::{matrix_ops, shuffles};
use super::walk::{InputRows, Store, Walk, tile_of_block};
use super::{
    BLOCK_TILES, COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, N_WARPS, Partial, Shared,
    optional, out_col,
};
use crate::activation::gelu_of_tanh;
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
use crate::norm::Weighed;
use crate::tile::{PART_COLS, TileFormat, float, k_quants, k_sixteens, legacy};

/// Warps that share a tile.
const WARPS_OF_TILE: u32 = N_WARPS / BLOCK_TILES;
/// Shares of a tile's columns that a warp has.
const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;

/// Nothing but `out`.
pub const NO_PACKING: u32 = 0;
/// `packed = out * norm_weight`, with the sums of squares of `out`.
pub const PACK_FOR_NORM: u32 = 1;
/// `packed = gelu(out)`.
pub const PACK_GELU: u32 = 2;

/// Nothing is known of the launch behind this one.
pub const ALONE: u32 = 0;
/// The launch behind this one is `BESIDE` it: it may start once this one's input is there.
pub const LEADS: u32 = 1;
/// The input was there when this one started. It waits for the launch before at its own end, so that
/// the launch behind finds both done.
pub const BESIDE: u32 = 2;

/// What the products of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    x: Input,
    grouping: Grouping,
    bias: Global<f32>,
    residual: Global<f32>,
    out: GlobalMut<f32>,
    n_rows: u32,
    out_stride: u32,
    packing: u32,
    packed: Weighed,
    overlap: u32,
}

/// Columns of tokens of the product of 16.
const MANY: usize = (16 / COLUMN_TOKENS) as usize;

/// For groups of up to `TOKENS` tokens: 1, 4 or 16.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn plain<
    F: TileFormat,
    const TOKENS: u32,
    const LONE_AHEAD: usize,
    const TOGETHER: usize,
    const AHEAD: usize,
>(
    words: Global<U32x4>,
    a: Arguments,
    sums: SharedArray<f32>,
) {
    if a.overlap != LEADS {
        gpu::let_next_start();
    }
    let dense = a.grouping.groups.is_absent();
    if !dense {
        gpu::wait_for_previous(); // the launch before made the groups
    }
    let group = a.grouping.group(TOKENS);
    if group.count == 0 {
        return; // the whole block leaves: every thread reads the same group
    }
    let in_block = gpu::warp() / WARPS_OF_TILE;
    let walk = Walk::<SHARES> {
        first: gpu::warp() % WARPS_OF_TILE,
        n_parts: a.x.n_cols.div_ceil(PART_COLS),
    };
    let tile = tile_of_block::<F>(words, (a.n_rows, a.x.n_cols), group.expert, in_block);
    let partial = Partial { sums, n_sets: 1, n_tokens: TOKENS };
    let store = Store { partial, set: 0, tile: in_block };
    let mut token = gpu::warp();
    // Asked for as soon as the launch before is done, like the activations.
    let wait = || {
        if dense && a.overlap != BESIDE {
            gpu::wait_for_previous();
        }
        if a.overlap == LEADS {
            gpu::let_next_start();
        }
        // What many tokens need would take the registers of their sums.
        let is_early = TOKENS <= COLUMN_TOKENS && token < group.count;
        if is_early { a.around(group, token) } else { Around::NOTHING }
    };
    let mut around;
    if TOKENS > COLUMN_TOKENS {
        around = wait();
        let rows = InputRows::<MANY>::of_group(a.x.n_cols, a.grouping, group);
        walk.many::<F, MANY, AHEAD>(tile, a.x, rows, store);
        token = gpu::anew(gpu::warp()); // nor is this kept
        if token < group.count {
            around = a.around(group, token);
        }
    } else if TOKENS == 1 || group.count == 1 {
        let chains = Chains::<SHARES, TOGETHER>::new::<F>(walk);
        let first = chains.ask::<F, LONE_AHEAD>(tile);
        around = wait();
        let row = a.grouping.rows(group, 0).1;
        chains.sums::<F, LONE_AHEAD>(tile, first, a.x, row, store);
    } else {
        let parts = walk.first_parts::<F, AHEAD>(tile);
        around = wait();
        let rows = InputRows::<1>::of_group(a.x.n_cols, a.grouping, group);
        walk.few::<F, AHEAD>(tile, parts, a.x, rows, store);
    }
    gpu::sync_block(); // every warp's sums are in `partial`

    while token < group.count {
        a.store(around, partial.sum(0, token));
        token += N_WARPS;
        if token < group.count {
            around = a.around(group, token);
        }
    }
    if a.overlap == BESIDE {
        gpu::wait_for_previous();
    }
}

/// What the lane's result of a token is put together with, asked for long before it is needed.
#[derive(Clone, Copy)]
struct Around {
    out_row: u32,
    squares_of_lane: f32,
    bias: f32,
    residual: f32,
    norm_weight: f32,
}

impl Around {
    /// Of no token.
    const NOTHING: Around =
        Around { out_row: 0, squares_of_lane: 0.0, bias: 0.0, residual: 0.0, norm_weight: 0.0 };
}

impl Arguments {
    /// What the lane's row of a token is put together with.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn around(self, group: Group, token: u32) -> Around {
        let (out_row, x_row) = self.grouping.rows(group, token);
        let inside = out_col() < self.n_rows;
        let bias_at = group.expert as usize * self.n_rows as usize + out_col() as usize;
        let at = out_row as usize * self.out_stride as usize + out_col() as usize;
        Around {
            out_row,
            squares_of_lane: self.x.squares_of_lane(x_row),
            bias: optional(self.bias, inside, bias_at),
            residual: optional(self.residual, inside, at),
            norm_weight: if self.packing == PACK_FOR_NORM {
                self.packed.weight_of_lane(gpu::block_x())
            } else {
                0.0
            },
        }
    }

    /// Stores the block's 32 rows of a token, a lane each. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn store(self, around: Around, sum: f32) {
        let Around { out_row, squares_of_lane, bias, residual, norm_weight } = around;
        let value = gpu::fma(sum, self.x.factor(squares_of_lane), bias) + residual;
        if out_col() < self.n_rows && !self.out.is_absent() {
            let at = out_row as usize * self.out_stride as usize + out_col() as usize;
            self.out.set(at, value);
        }
        if self.packing == PACK_FOR_NORM {
            self.packed.store_block(out_row, gpu::block_x(), value, norm_weight);
        } else if self.packing == PACK_GELU {
            self.packed.rows.store_block(out_row, gpu::block_x(), gelu_of_tanh(value));
        }
    }
}

macro_rules! entry {
    ($format:ty, $name:ident, tokens $tokens:literal, lone_ahead $lone_ahead:expr, together $together:expr,
     ahead $ahead:expr, min_blocks $min_blocks:expr, shuffles $shuffles:expr,
     matrix_ops $matrix_ops:expr) => {
        kernel! {
            /// Product with weights in records; grid (blocks of 32 rows, padding of `packed`
            /// included, groups of tokens).
            pub fn $name = run, block crate::matmul::BLOCK, shared Shared<1, $tokens>,
                registers 256 / $min_blocks, barriers 1, shuffles 10 + $shuffles,
                matrix_ops $matrix_ops,
                min_blocks $min_blocks, waits and_lets;
            pub struct Matmul {
                /// Records: [experts, row tiles, records of a row]
                words: Global<U32x4>,
                /// Fixed-point rows: [n_x_rows, padded columns / 8]
                codes: Global<U32x4>,
                /// Their scale records: [n_x_rows, padded columns / 32]
                scales: Global<U32x4>,
                /// Sums of squares of the input's blocks, where its RMS scale is still to come:
                /// [n_x_rows, row_scales(n_cols)]; or absent
                squares: Global<f32>,
                /// [experts, n_rows], or absent
                bias: Global<f32>,
                /// As `out`, added to it; or absent
                residual: Global<f32>,
                /// [n_out_rows, out_stride], or absent
                out: GlobalMut<f32>,
                /// (expert, first slot, slots) of each group; absent: all tokens in order
                groups: Global<U32x4>,
                /// Output rows in the order of the groups; absent: in order
                slots: Global<u32>,
                /// [n_rows], for `PACK_FOR_NORM`
                norm_weight: Global<f32>,
                /// [n_out_rows, n_rows], or absent
                packed_values: GlobalMut<f32>,
                /// [n_out_rows, row_code_bytes(n_rows)]
                packed_codes: GlobalMut<u8>,
                /// [n_out_rows, row_scales(n_rows)]
                packed_scales: GlobalMut<U32x4>,
                /// [n_out_rows, row_scales(n_rows)], for `PACK_FOR_NORM`
                packed_squares: GlobalMut<f32>,
                n_rows: u32,
                n_cols: u32,
                /// Tokens, where `groups` is absent
                n_tokens: u32,
                /// Slot / this = row of the input
                slots_per_row: u32,
                out_stride: u32,
                /// What `packed` gets: `NO_PACKING`, `PACK_FOR_NORM`, `PACK_GELU`
                packing: u32,
                /// Of the input's norm
                eps: f32,
                /// `ALONE`, `LEADS` or `BESIDE`; with groups `ALONE`
                overlap: u32,
            }
        }

        #[inline(always)]
        fn run(a: Matmul) {
            let sums: SharedArray<f32> = shared!(Shared<1, $tokens>, partial).cast();
            let arguments = Arguments {
                x: Input {
                    codes: a.codes,
                    scales: a.scales,
                    squares: a.squares,
                    n_cols: a.n_cols,
                    eps: a.eps,
                },
                grouping: Grouping {
                    groups: a.groups,
                    slots: a.slots,
                    n_tokens: a.n_tokens,
                    slots_per_row: a.slots_per_row,
                },
                bias: a.bias,
                residual: a.residual,
                out: a.out,
                n_rows: a.n_rows,
                out_stride: a.out_stride,
                packing: a.packing,
                packed: Weighed {
                    rows: RowsMut {
                        values: a.packed_values,
                        codes: a.packed_codes,
                        scales: a.packed_scales,
                        n_cols: a.n_rows,
                    },
                    squares: a.packed_squares,
                    weight: a.norm_weight,
                },
                overlap: a.overlap,
            };
            plain::<$format, $tokens, { $lone_ahead }, { $together }, { $ahead }>(a.words, arguments, sums)
        }
    };
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        /// For one token and so few blocks that each has a multiprocessor for itself: its registers hold
        /// as many weights as they can.
        pub mod $x1 {
            use super::*;
            const AHEAD: usize = <$format as TileFormat>::DEEP_AHEAD;
            const TOGETHER: usize = <$format as TileFormat>::DEEP_TOGETHER;
            entry!($format, $x1, tokens 1, lone_ahead AHEAD, together TOGETHER, ahead 1, min_blocks 1,
                shuffles shuffles::<$format>(SHARES),
                matrix_ops matrix_ops::<$format>(SHARES, AHEAD));
        }
        /// For up to four tokens a group.
        pub mod $x4 {
            use super::*;
            const LONE_AHEAD: usize = <$format as TileFormat>::LONE_AHEAD;
            const TOGETHER: usize = <$format as TileFormat>::LONE_TOGETHER;
            const AHEAD: usize = <$format as TileFormat>::AHEAD;
            entry!($format, $x4, tokens 4, lone_ahead LONE_AHEAD, together TOGETHER, ahead AHEAD, min_blocks 2,
                shuffles shuffles::<$format>(SHARES),
                matrix_ops matrix_ops::<$format>(SHARES, LONE_AHEAD)
                    + Walk::<SHARES>::round(AHEAD) as u32 * crate::tile::part_products::<$format>());
        }
        /// For up to 16 tokens a group.
        pub mod $x16 {
            use super::*;
            const AHEAD: usize = <$format as TileFormat>::X16_AHEAD;
            entry!($format, $x16, tokens 16, lone_ahead 1, together 1, ahead AHEAD,
                min_blocks <$format as TileFormat>::X16_BLOCKS, shuffles 0,
                matrix_ops MANY as u32 * crate::tile::part_products::<$format>());
        }
    };
}
crate::for_each_tile_format!(entries);
