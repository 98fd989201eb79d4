//! One matrix for one token, where the result goes to f32 columns alone: a block then has as many tiles as leave it a
//! multiprocessor for itself, since launches that overlap don't spread two a multiprocessor evenly.

use super::lone::{Chains, RowWords, Words};
#[cfg(not(target_arch = "nvptx64"))]
use super::lone::{matrix_ops, shuffles};
use super::plain::{BESIDE, LEADS};
use super::walk::{Store, Walk, tile_at};
use super::{BLOCK_TILES, Input, N_SHARES, Partial, Shared, optional};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4, WARP};
use crate::tile::{PART_COLS, TILE_ROWS, TileFormat, float, legacy};

/// Warps that share a tile, of so many in a block: as many as there are shares, where that leaves a thread enough
/// registers.
const fn warps_of_tile(tiles: u32) -> u32 {
    if tiles == 1 { N_SHARES } else { N_SHARES / 2 }
}

/// Shares of a tile's columns that a warp has.
pub(super) const fn shares(tiles: u32) -> usize {
    (N_SHARES / warps_of_tile(tiles)) as usize
}

/// Threads of a block of so many tiles.
pub(super) const fn block_threads(tiles: u32) -> u32 {
    tiles * warps_of_tile(tiles) * WARP
}

/// Registers of a thread, where the block has a multiprocessor's.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn thread_registers(tiles: u32) -> u32 {
    let registers = (1 << 16) / block_threads(tiles);
    if registers < 255 { registers } else { 255 }
}

/// Sets of sums of so many tiles: of two each.
pub(super) const fn n_sets(tiles: u32) -> usize {
    tiles.div_ceil(BLOCK_TILES) as usize
}

/// A product of one token, as every block sees it.
#[derive(Clone, Copy)]
pub(super) struct Alone {
    pub words: Global<U32x4>,
    pub n_rows: u32,
    pub n_cols: u32,
    /// `ALONE`, `LEADS` or `BESIDE`
    pub overlap: u32,
    /// Where the block's warps leave their sums.
    pub sums: SharedArray<f32>,
}

/// The output row of a thread. Two tiles' rows are a warp's.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub at: u32,
    pub exists: bool,
    /// Whether the block has rows for the thread's warp.
    pub is_of_warp: bool,
}

impl Alone {
    /// The product of a block of `TILES` tiles. What `early` gives is asked for before the launches before this one are
    /// done, the row that `input` makes of it behind that, and what stands `around` a result once the row's first codes
    /// are under way; `finish` gets it with the sum of a row, in whole warps.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn multiply<
        F: TileFormat,
        const TILES: u32,
        const SHARES: usize,
        const TOGETHER: usize,
        const AHEAD: usize,
        W: Words,
        E,
        R,
    >(
        self,
        early: impl FnOnce() -> E,
        input: impl FnOnce(E) -> RowWords<W>,
        around: impl FnOnce(Row) -> R,
        finish: impl FnOnce(Row, f32, R),
    ) {
        if self.overlap != LEADS {
            gpu::let_next_start();
        }
        let at = gpu::warp() / warps_of_tile(TILES);
        let tile =
            tile_at::<F>(self.words, (self.n_rows, self.n_cols), 0, gpu::block_x() * TILES + at);
        let chains = Chains::<SHARES, TOGETHER>::new::<F>(Walk::<SHARES> {
            first: gpu::warp() % warps_of_tile(TILES),
            n_parts: self.n_cols.div_ceil(PART_COLS),
        });
        let early = early();
        let first = chains.ask::<F, AHEAD>(tile);
        if self.overlap != BESIDE {
            gpu::wait_for_previous();
        }
        if self.overlap == LEADS {
            gpu::let_next_start();
        }

        let block_rows = TILES * TILE_ROWS;
        let row = gpu::block_x() * block_rows + gpu::thread_x();
        let row = Row {
            at: row,
            exists: gpu::thread_x() < block_rows && row < self.n_rows,
            is_of_warp: gpu::warp() * WARP < block_rows,
        };
        let partial = Partial::new(self.sums, n_sets(TILES), 1);
        let store = Store { partial, set: at / BLOCK_TILES, tile: at % BLOCK_TILES };
        let around =
            chains.sums::<F, W, _, AHEAD>(tile, first, input(early), || around(row), store);
        gpu::sync_block(); // every warp's sums are in `partial`
        if row.is_of_warp {
            let sum = if row.exists { partial.sum(gpu::warp(), 0) } else { 0.0 };
            finish(row, sum, around);
        }
        if self.overlap == BESIDE {
            gpu::wait_for_previous();
        }
    }
}

macro_rules! entry {
    ($name:ident, $format:ty, tiles $tiles:literal, ahead $ahead:expr, together $together:expr) => {
        /// For one token, so many tiles a block.
        pub mod $name {
            use super::*;
            const AHEAD: usize = $ahead;
            const TOGETHER: usize = $together;
            const SHARES: usize = shares($tiles);

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
                let x = Input {
                    codes: a.codes,
                    scales: a.scales,
                    squares: a.squares,
                    n_cols: a.n_cols,
                    eps: a.eps,
                };
                let alone = Alone {
                    words: a.words,
                    n_rows: a.n_rows,
                    n_cols: a.n_cols,
                    overlap: a.overlap,
                    sums: shared!(Shared<{ n_sets($tiles) }, 1>, partial).cast(),
                };
                alone.multiply::<$format, $tiles, SHARES, TOGETHER, AHEAD, _, _, _>(
                    || (),
                    |()| x.row(0),
                    |row| {
                        let bias = optional(a.bias, row.exists, row.at as usize);
                        let residual = optional(a.residual, row.exists, row.at as usize);
                        (bias, residual, if row.is_of_warp { x.squares_of_lane(0) } else { 0.0 })
                    },
                    |row, sum, (bias, residual, squares)| {
                        let value = gpu::fma(sum, x.factor(squares), bias) + residual;
                        if row.exists {
                            a.out.set(row.at as usize, value);
                        }
                    },
                )
            }
        }
    };
}

/// Chains under way in a warp that has a share of one tile: as many as are written out.
const ONE_TILE_AHEAD: usize = 8;

macro_rules! entries {
    ($format:ty, $ggml:ident, $rows16:ident, $rows48:ident) => {
        entry!($rows16, $format, tiles 1, ahead ONE_TILE_AHEAD, together 1);
        entry!($rows48, $format, tiles 3, ahead <$format as TileFormat>::WIDE_AHEAD,
            together <$format as TileFormat>::LONE_TOGETHER);
    };
}
crate::for_each_alone_format!(entries);
