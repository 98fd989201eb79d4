//! One matrix for one token, where the result goes to f32 columns alone: a block then has as many tiles as leave it a
//! multiprocessor for itself, since launches that overlap don't spread two a multiprocessor evenly.

use super::lone::Chains;
#[cfg(not(target_arch = "nvptx64"))]
use super::lone::{matrix_ops, shuffles};
use super::plain::{BESIDE, LEADS};
use super::walk::{Store, Walk, tile_of_block};
use super::{BLOCK_TILES, Input, N_SHARES, Partial, Shared, optional};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4, WARP};
use crate::tile::{PART_COLS, TILE_ROWS, TileFormat, float, legacy};

/// Warps that share a tile.
const WARPS_OF_TILE: u32 = 4;
/// Shares of a tile's columns that a warp has.
const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;

/// Threads of a block of so many tiles.
#[cfg(not(target_arch = "nvptx64"))]
const fn block_threads(tiles: u32) -> u32 {
    tiles * WARPS_OF_TILE * WARP
}

/// Registers of a thread, where the block has a multiprocessor's.
#[cfg(not(target_arch = "nvptx64"))]
const fn thread_registers(tiles: u32) -> u32 {
    let registers = (1 << 16) / block_threads(tiles);
    if registers < 255 { registers } else { 255 }
}

/// Sets of sums of so many tiles: of two each.
const fn n_sets(tiles: u32) -> usize {
    tiles.div_ceil(BLOCK_TILES) as usize
}

/// What the kernels of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    x: Input,
    bias: Global<f32>,
    residual: Global<f32>,
    out: GlobalMut<f32>,
    n_rows: u32,
    overlap: u32,
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn alone<F: TileFormat, const TILES: u32, const TOGETHER: usize, const AHEAD: usize>(
    words: Global<U32x4>,
    a: Arguments,
    sums: SharedArray<f32>,
) {
    if a.overlap != LEADS {
        gpu::let_next_start();
    }
    let at = gpu::warp() / WARPS_OF_TILE;
    let tile = tile_of_block::<F, TILES>(words, (a.n_rows, a.x.n_cols), 0, at);
    let chains = Chains::<SHARES, TOGETHER>::new::<F>(Walk::<SHARES> {
        first: gpu::warp() % WARPS_OF_TILE,
        n_parts: a.x.n_cols.div_ceil(PART_COLS),
    });
    let first = chains.ask::<F, AHEAD>(tile);
    if a.overlap != BESIDE {
        gpu::wait_for_previous();
    }
    if a.overlap == LEADS {
        gpu::let_next_start();
    }

    // A thread has a row of the block, as far as there are rows; whole warps have none. Two tiles are a set of sums.
    let block_rows = TILES * TILE_ROWS;
    let row = gpu::block_x() * block_rows + gpu::thread_x();
    let has_rows = gpu::warp() * WARP < block_rows;
    let has_row = gpu::thread_x() < block_rows && row < a.n_rows;
    let around = || {
        let bias = optional(a.bias, has_row, row as usize);
        let residual = optional(a.residual, has_row, row as usize);
        (bias, residual, if has_rows { a.x.squares_of_lane(0) } else { 0.0 })
    };
    let partial = Partial { sums, n_sets: n_sets(TILES) as u32, n_tokens: 1 };
    let store = Store { partial, set: at / BLOCK_TILES, tile: at % BLOCK_TILES };
    let (bias, residual, squares) =
        chains.sums::<F, _, AHEAD>(tile, first, (a.x, 0), around, store);
    gpu::sync_block(); // every warp's sums are in `partial`
    if has_rows {
        let sum = if has_row { partial.sum(gpu::warp(), 0) } else { 0.0 };
        let value = gpu::fma(sum, a.x.factor(squares), bias) + residual;
        if has_row {
            a.out.set(row as usize, value);
        }
    }
    if a.overlap == BESIDE {
        gpu::wait_for_previous();
    }
}

macro_rules! entry {
    ($name:ident, $format:ty, tiles $tiles:literal, ahead $ahead:expr, together $together:expr) => {
        /// For one token, so many tiles a block.
        pub mod $name {
            use super::*;
            const AHEAD: usize = $ahead;
            const TOGETHER: usize = $together;

            kernel! {
                /// `out = w x + bias + residual` for one token; grid (blocks of rows).
                pub fn $name = run, block block_threads($tiles), shared Shared<{ n_sets($tiles) }, 1>,
                    registers thread_registers($tiles), barriers 1,
                    shuffles 5 + shuffles::<$format>(SHARES),
                    matrix_ops matrix_ops::<$format>(SHARES, AHEAD),
                    min_blocks 1, percent <$format as TileFormat>::SHARED_PERCENT, waits and_lets;
                pub struct Matmul {
                    /// Records: [row tiles, records of a row]
                    words: Global<U32x4>,
                    /// A fixed-point row: [padded columns / 8]
                    codes: Global<U32x4>,
                    /// Its scale records: [padded columns / 32]
                    scales: Global<U32x4>,
                    /// Sums of squares of the input's blocks, where its RMS scale is still to come:
                    /// [row_scales(n_cols)]; or absent
                    squares: Global<f32>,
                    /// [n_rows], or absent
                    bias: Global<f32>,
                    /// [n_rows], added to it; or absent
                    residual: Global<f32>,
                    /// [n_rows]
                    out: GlobalMut<f32>,
                    n_rows: u32,
                    n_cols: u32,
                    /// Of the input's norm
                    eps: f32,
                    /// As `plain` has it: `ALONE`, `LEADS` or `BESIDE`
                    overlap: u32,
                }
            }

            #[inline(always)]
            fn run(a: Matmul) {
                let arguments = Arguments {
                    x: Input {
                        codes: a.codes,
                        scales: a.scales,
                        squares: a.squares,
                        n_cols: a.n_cols,
                        eps: a.eps,
                    },
                    bias: a.bias,
                    residual: a.residual,
                    out: a.out,
                    n_rows: a.n_rows,
                    overlap: a.overlap,
                };
                let sums = shared!(Shared<{ n_sets($tiles) }, 1>, partial).cast();
                alone::<$format, $tiles, TOGETHER, AHEAD>(a.words, arguments, sums)
            }
        }
    };
}

macro_rules! entries {
    ($format:ty, $ggml:ident, $rows16:ident, $rows48:ident) => {
        entry!($rows16, $format, tiles 1, ahead <$format as TileFormat>::DEEP_AHEAD,
            together <$format as TileFormat>::DEEP_TOGETHER);
        entry!($rows48, $format, tiles 3, ahead <$format as TileFormat>::WIDE_AHEAD,
            together <$format as TileFormat>::LONE_TOGETHER);
    };
}
crate::for_each_alone_format!(entries);
