//! A matrix in blocks of 64 rows for tokens grouped by expert, where many experts have several: what a block has of
//! the activations serves twice the rows.

#[cfg(not(target_arch = "nvptx64"))]
use super::four::{AHEAD, SHARES};
use super::four::{COLUMNS, FourTiles, TOKENS};
use super::ring::ring_words;
use super::{
    BLOCK_ROWS, BLOCK_TILES, Grouping, Input, Partial, SharedRings, col_of_lane, optional,
};
use crate::gpu::{self, Global, GlobalMut, U32x4};
use crate::tile::{TileFormat, k_quants, legacy};

/// Rows of a block.
pub const ROWS: u32 = 2 * BLOCK_ROWS;

/// What the kernels of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    words: Global<U32x4>,
    x: Input,
    grouping: Grouping,
    bias: Global<f32>,
    out: GlobalMut<f32>,
    n_rows: u32,
    out_stride: u32,
}

/// What the lane's results of a token are put together with.
#[derive(Clone, Copy)]
struct Around {
    out_row: u32,
    squares_of_lane: f32,
    bias: [f32; 2],
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn rows64<F: TileFormat, const TOGETHER: usize>(a: Arguments, partial: Partial) {
    gpu::let_next_start();
    gpu::wait_for_previous(); // the launch before made the groups
    let group = a.grouping.group(TOKENS);
    if group.count == 0 {
        return; // the whole block leaves: every thread reads the same group
    }
    let first = 2 * gpu::block_x();
    let tiles = FourTiles {
        words: [a.words; 2],
        first: [first * BLOCK_TILES, (first + 1) * BLOCK_TILES],
        n_rows: a.n_rows,
        x: a.x,
        grouping: a.grouping,
        group,
        partial,
    };
    let around = |(out_row, x_row)| Around {
        out_row,
        squares_of_lane: a.x.squares_of_lane(x_row),
        bias: [0, 1].map(|set| {
            let col = col_of_lane(first + set);
            let at = gpu::anew(group.expert) as usize * a.n_rows as usize + col as usize;
            optional(a.bias, col < a.n_rows, at)
        }),
    };
    let nothing = Around { out_row: 0, squares_of_lane: 0.0, bias: [0.0; 2] };
    let around = if group.count == 1 {
        tiles.lone::<F, _, TOGETHER>(|| (), around, nothing)
    } else {
        tiles.few_of_ring::<F, _>(|| (), around, nothing)
    };
    gpu::sync_block(); // every warp's sums are in `partial`

    let token = gpu::anew(gpu::warp()); // not kept through the products
    if token < group.count {
        let factor = a.x.factor(around.squares_of_lane);
        unroll!(set < 2, {
            let sum = partial.sum(set as u32, token);
            let col = col_of_lane(first + set as u32);
            if col < a.n_rows {
                let at = around.out_row as usize * a.out_stride as usize + col as usize;
                a.out.set(at, gpu::fma(sum, factor, around.bias[set]));
            }
        });
    }
}

macro_rules! entries {
    ($format:ty, $ggml:ident, $x8_ring:ident, $gated:ident, $rows64:ident) => {
        /// For up to eight tokens a group.
        pub mod $rows64 {
            use super::*;
            type Memory = SharedRings<{ TOKENS as usize }, { ring_words::<$format>(4, COLUMNS as u32) }>;

            kernel! {
                /// Product with weights in records; grid (blocks of 64 rows, groups of tokens).
                pub fn $rows64 = run, block crate::matmul::BLOCK, shared Memory,
                    registers 128, barriers 1, shuffles 5 + crate::matmul::lone::shuffles::<$format>(SHARES),
                    matrix_ops crate::matmul::lone::matrix_ops::<$format>(SHARES, AHEAD)
                        + 4 * (1 + COLUMNS as u32) * crate::tile::part_products::<$format>(),
                    min_blocks 2, percent <$format as TileFormat>::SHARED_PERCENT, waits and_lets;
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
                    /// [n_out_rows, out_stride]
                    out: GlobalMut<f32>,
                    /// (expert, first slot, slots) of each group
                    groups: Global<U32x4>,
                    /// Output rows in the order of the groups
                    slots: Global<u32>,
                    n_rows: u32,
                    n_cols: u32,
                    /// Slot / this = row of the input
                    slots_per_row: u32,
                    out_stride: u32,
                    /// Of the input's norm
                    eps: f32,
                }
            }

            #[inline(always)]
            fn run(a: Matmul) {
                let arguments = Arguments {
                    words: a.words,
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
                        n_tokens: 0,
                        slots_per_row: a.slots_per_row,
                    },
                    bias: a.bias,
                    out: a.out,
                    n_rows: a.n_rows,
                    out_stride: a.out_stride,
                };
                rows64::<$format, { <$format as TileFormat>::TOGETHER }>(arguments, Memory::partial())
            }
        }
    };
}
crate::for_each_ring_format!(entries);
