//! One matrix, dense or grouped by expert: with bias and residual, and where the next stage wants it
//! the result as fixed point too, through an activation or the weights of the next norm.

use super::lone::Chains;
#[cfg(not(target_arch = "nvptx64"))]
use super::lone::{matrix_ops, shuffles};
use super::ring::{Ring, RingRows, ring_words};
use super::walk::{InputRows, Store, Walk, tile_at, tile_offset};
use super::{
    BLOCK, BLOCK_TILES, COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, N_WARPS, Partial,
    SMALL_GROUP_TOKENS, Shared, SharedRings, col_of_lane, optional, two_column_tiles,
};
use crate::activation::gelu_of_tanh;
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, U32x4};
use crate::norm::Weighed;
use crate::tile::{CHAIN_GROUPS, PART_COLS, TileFormat, float, k_quants, k_sixteens, legacy};

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

/// The launch behind this one may start at once.
pub const ALONE: u32 = 0;
/// The launch behind this one may start once this one's input is there: one that is `BESIDE` it, or that would
/// be in the way of the launch before.
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
    /// Whether the grid's x are the groups, and y the blocks of rows: blocks that read the same weights are then
    /// neighbours.
    groups_first: bool,
}

/// Columns of tokens of the products of more than four.
const X8_COLUMNS: usize = (8 / COLUMN_TOKENS) as usize;
const X16_COLUMNS: usize = (16 / COLUMN_TOKENS) as usize;

/// What a block has to do.
#[derive(Clone, Copy)]
struct Work {
    words: Global<U32x4>,
    a: Arguments,
    group: Group,
    partial: Partial,
}

impl Work {
    /// Of the block, in a launch whose groups have up to `n_tokens` tokens. Where groups of four or eight are not listed
    /// they are as even as their number lets them be.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn new(words: Global<U32x4>, a: Arguments, partial: Partial) -> Work {
        let n_tokens = partial.n_tokens;
        if a.overlap != LEADS {
            gpu::let_next_start();
        }
        if !a.grouping.groups.is_absent() {
            gpu::wait_for_previous(); // the launch before made the groups
        }
        // Kernels of one token don't need it, and those of sixteen have no registers for it.
        let limit = if n_tokens == 1 || n_tokens == 16 {
            n_tokens
        } else {
            gpu::div_u32(a.grouping.n_tokens + gpu::grid_y() - 1, gpu::grid_y())
        };
        let group = a.grouping.group_at(a.group_index(), limit);
        Work { words, a, group, partial }
    }

    /// Waits until the input is there.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn wait(self) {
        if self.a.grouping.groups.is_absent() && self.a.overlap != BESIDE {
            gpu::wait_for_previous();
        }
        if self.a.overlap == LEADS {
            gpu::let_next_start();
        }
    }

    /// What the lane's row of each of the warp's tokens is put together with; where there is no such token, of the last
    /// one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn arounds<const N: usize>(self) -> [Around; N] {
        let first = gpu::anew(gpu::warp()); // not kept through the products
        let group = self.group_anew(N);
        let rows = core::array::from_fn(|i| {
            let token = first + i as u32 * N_WARPS;
            let last = group.count - 1;
            self.a.grouping.rows(group, if token < last { token } else { last })
        });
        self.a.arounds(group.expert, rows)
    }

    /// The block's tokens, found anew where products of so many tokens a warp have no registers to keep them in.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn group_anew(self, warp_tokens: usize) -> Group {
        if warp_tokens == 1 {
            return self.group;
        }
        self.a.grouping.group_at(gpu::anew(self.a.group_index()), warp_tokens as u32 * N_WARPS)
    }

    /// One of the block's tiles.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn tile<F: TileFormat>(self, i: u32) -> Global<U32x4> {
        tile_at::<F>(
            self.words,
            (self.a.n_rows, self.a.x.n_cols),
            self.group.expert,
            self.a.row_block() * BLOCK_TILES + i,
        )
    }

    /// The warp's tile, where it has one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn own_tile<F: TileFormat, const SHARES: usize>(self) -> Global<U32x4> {
        self.tile::<F>(self.store_of_tile::<SHARES>().tile)
    }

    /// The walk of a warp that has `SHARES` of the shares.
    #[inline(always)]
    fn walk<const SHARES: usize>(self) -> Walk<SHARES> {
        let n_parts = self.a.x.n_cols.div_ceil(PART_COLS);
        Walk { first: gpu::warp() % Walk::<SHARES>::STRIDE, n_parts }
    }

    /// Which tile the warp has, where it has `SHARES` of the shares of one, and where it leaves its sums.
    #[inline(always)]
    fn store_of_tile<const SHARES: usize>(self) -> Store {
        Store { partial: self.partial, set: 0, tile: gpu::warp() / Walk::<SHARES>::STRIDE }
    }

    /// The sums of a group's only token.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn lone<F: TileFormat, const SHARES: usize, const TOGETHER: usize, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
    ) -> [Around; 1] {
        // Before the weights are asked for: the machine can't tell a load from those behind it.
        let rows = self.a.grouping.rows(self.group, 0);
        let (walk, store) = (self.walk(), self.store_of_tile::<SHARES>());
        let chains = Chains::<SHARES, TOGETHER>::new::<F>(walk);
        let first = chains.ask::<F, AHEAD>(tile);
        self.wait();
        let around = || {
            if gpu::warp() == 0 {
                self.a.arounds(self.group.expert, [rows])
            } else {
                [Around::NOTHING]
            }
        };
        chains.sums::<F, _, _, AHEAD>(tile, first, self.a.x.row(rows.1), around, store)
    }

    /// The sums of up to four tokens.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn few<F: TileFormat, const SHARES: usize, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
    ) -> [Around; 1] {
        // Before the weights are asked for, as above.
        let own = match gpu::warp() {
            token if token < self.group.count => self.a.grouping.rows(self.group, token),
            _ => (0, 0),
        };
        let rows = InputRows::<1>::of_group(self.a.x.n_cols, self.a.grouping, self.group);
        let (walk, store) = (self.walk::<SHARES>(), self.store_of_tile::<SHARES>());
        let parts = walk.first_parts::<F, AHEAD>(tile);
        self.wait();
        let around = || {
            if gpu::warp() < self.group.count {
                self.a.arounds(self.group.expert, [own])
            } else {
                [Around::NOTHING]
            }
        };
        walk.few::<F, _, AHEAD>(tile, parts, (self.a.x, rows), around, store)
    }

    /// The sums of up to four tokens in each of `COLUMNS` columns. What they are put together with would take the
    /// registers of the sums, and is asked for behind them.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn many<F: TileFormat, const COLUMNS: usize, const AHEAD: usize, const N: usize>(
        self,
    ) -> [Around; N] {
        self.wait();
        let (walk, store) = (self.walk::<SHARES>(), self.store_of_tile::<SHARES>());
        let rows = InputRows::of_group(self.a.x.n_cols, self.a.grouping, self.group);
        walk.many::<F, 1, COLUMNS, AHEAD>([self.own_tile::<F, SHARES>()], self.a.x, rows, store);
        self.arounds()
    }

    /// The same where each warp has both tiles: activations serve twice.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn many_of_both<F: TileFormat, const COLUMNS: usize, const AHEAD: usize, const N: usize>(
        self,
    ) -> [Around; N] {
        let walk = self.walk::<{ SHARES / BLOCK_TILES as usize }>();
        let store = Store { partial: self.partial, set: 0, tile: 0 };
        let tiles = [0, 1].map(|i| self.tile::<F>(i));
        self.wait();
        let rows = InputRows::of_group(self.a.x.n_cols, self.a.grouping, self.group);
        walk.many::<F, 2, COLUMNS, AHEAD>(tiles, self.a.x, rows, store);
        self.arounds()
    }

    /// The same by way of shared memory: the first weights are asked for before the wait.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn many_of_ring<F: TileFormat, const COLUMNS: usize, const N: usize>(self) -> [Around; N] {
        let tiles = [0, 1].map(|i| {
            let shape = (self.a.n_rows, self.a.x.n_cols);
            let tile = self.a.row_block() * BLOCK_TILES + i;
            (self.words, tile_offset::<F>(shape, self.group.expert, tile) as u32)
        });
        let ring =
            Ring::<2, COLUMNS> { memory: self.partial.ring(), tiles, walk: self.walk::<1>() };
        ring.begin::<F>();
        self.wait();
        let rows = RingRows::of_group(self.a.x.n_cols, self.a.grouping, self.group);
        ring.sums::<F>(self.a.x, rows, Store { partial: self.partial, set: 0, tile: 0 });
        self.arounds()
    }

    /// Stores the results of the warp's tokens.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn finish<const N: usize>(self, arounds: [Around; N]) {
        gpu::sync_block(); // every warp's sums are in `partial`
        let first = gpu::anew(gpu::warp()); // not kept through the products
        let group = self.group_anew(N);
        unroll!(i < N, {
            let token = first + i as u32 * N_WARPS;
            if token < group.count {
                self.a.store(arounds[i], self.partial.sum(0, token));
            }
        });
        if self.a.overlap == BESIDE {
            gpu::wait_for_previous();
        }
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
    /// The block's 32 rows.
    #[inline(always)]
    fn row_block(&self) -> u32 {
        if self.groups_first { gpu::block_y() } else { gpu::block_x() }
    }

    /// The block's group of tokens.
    #[inline(always)]
    fn group_index(&self) -> u32 {
        if self.groups_first { gpu::block_x() } else { gpu::block_y() }
    }

    /// The lane's row.
    #[inline(always)]
    fn out_col(&self) -> u32 {
        col_of_lane(self.row_block())
    }

    /// What the lane's row of each of some tokens is put together with, whose rows of output and input are given.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn arounds<const N: usize>(self, expert: u32, rows: [(u32, u32); N]) -> [Around; N] {
        let inside = self.out_col() < self.n_rows;
        // `anew`: the compiler keeps it as the 64 bits of an index else.
        let bias_at = gpu::anew(expert) as usize * self.n_rows as usize + self.out_col() as usize;
        let bias = optional(self.bias, inside, bias_at);
        let norm_weight = if self.packing == PACK_FOR_NORM {
            self.packed.weight_of_lane(self.row_block())
        } else {
            0.0
        };
        let mut arounds = rows.map(|(out_row, _)| {
            let at = out_row as usize * self.out_stride as usize + self.out_col() as usize;
            let residual = optional(self.residual, inside, at);
            Around { out_row, squares_of_lane: 0.0, bias, residual, norm_weight }
        });
        let squares = self.x.squares_of_rows(rows.map(|(_, x_row)| x_row));
        unroll!(i < N, { arounds[i].squares_of_lane = squares[i] });
        arounds
    }

    /// Stores the block's 32 rows of a token, a lane each. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn store(self, around: Around, sum: f32) {
        let Around { out_row, squares_of_lane, bias, residual, norm_weight } = around;
        let value = gpu::fma(sum, self.x.factor(squares_of_lane), bias) + residual;
        if self.out_col() < self.n_rows && !self.out.is_absent() {
            let at = out_row as usize * self.out_stride as usize + self.out_col() as usize;
            self.out.set(at, value);
        }
        if self.packing == PACK_FOR_NORM {
            self.packed.store_block(out_row, self.row_block(), value, norm_weight);
        } else if self.packing == PACK_GELU {
            self.packed.rows.store_block(out_row, self.row_block(), gelu_of_tanh(value));
        }
    }
}

/// Tokens whose results a warp stores, of so many in a block.
const fn warp_tokens(tokens: usize) -> usize {
    tokens.div_ceil(N_WARPS as usize)
}

macro_rules! entry {
    ($name:ident, $format:ty, block $block:expr, tokens $tokens:literal, memory $memory:ty,
     min_blocks $min_blocks:expr, shuffles $shuffles:expr,
     matrix_ops $matrix_ops:expr, products $products:expr) => {
        kernel! {
            /// Product with weights in records; grid (blocks of 32 rows, padding of `packed`
            /// included, groups of tokens), for more than eight tokens the other way round.
            pub fn $name = run, block $block, shared $memory,
                registers (1 << 16) / $block / $min_blocks, barriers 1, shuffles 10 * warp_tokens($tokens) as u32 + $shuffles,
                matrix_ops $matrix_ops,
                min_blocks $min_blocks, percent <$format as TileFormat>::SHARED_PERCENT, waits and_lets;
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
                groups_first: $tokens > SMALL_GROUP_TOKENS,
            };
            let work = Work::new(a.words, arguments, <$memory>::partial());
            if work.group.count == 0 {
                return; // the whole block leaves: every thread reads the same group
            }
            let products = $products;
            let arounds: [Around; warp_tokens($tokens)] = products(work);
            work.finish(arounds);
        }
    };
}

/// Threads of a block that has a multiprocessor for itself, and one token. Where a chain is one part, each of its tiles
/// has as many warps as there are shares of the columns: these formats take the most instructions a weight.
const fn deep_block<F: TileFormat>() -> u32 {
    if F::GROUPS == CHAIN_GROUPS { WIDE_BLOCK } else { BLOCK }
}

/// Shares of a tile's columns that a warp of such a block has.
const fn deep_shares<F: TileFormat>() -> usize {
    (N_SHARES * BLOCK_TILES / (deep_block::<F>() / gpu::WARP)) as usize
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        /// For one token and so few blocks that each has a multiprocessor for itself: its registers hold
        /// as many weights as they can.
        pub mod $x1 {
            use super::*;
            const AHEAD: usize = <$format as TileFormat>::DEEP_AHEAD;
            const TOGETHER: usize = <$format as TileFormat>::DEEP_TOGETHER;
            const SHARES: usize = deep_shares::<$format>();
            entry!($x1, $format, block deep_block::<$format>(), tokens 1, memory Shared<1, 1>,
                min_blocks 1,
                shuffles shuffles::<$format>(SHARES), matrix_ops matrix_ops::<$format>(SHARES, AHEAD),
                products |work: Work| {
                    let tile = work.own_tile::<$format, SHARES>();
                    work.lone::<$format, SHARES, TOGETHER, AHEAD>(tile)
                });
        }
        /// For up to four tokens a group.
        pub mod $x4 {
            use super::*;
            const LONE_AHEAD: usize = <$format as TileFormat>::LONE_AHEAD;
            const TOGETHER: usize = <$format as TileFormat>::LONE_TOGETHER;
            const AHEAD: usize = <$format as TileFormat>::AHEAD;
            entry!($x4, $format, block BLOCK, tokens 4, memory Shared<1, 4>,
                min_blocks 2, shuffles shuffles::<$format>(SHARES),
                matrix_ops matrix_ops::<$format>(SHARES, LONE_AHEAD)
                    + Walk::<SHARES>::round(AHEAD) as u32 * crate::tile::part_products::<$format>(),
                products |work: Work| {
                    let tile = work.own_tile::<$format, SHARES>();
                    if work.group.count == 1 {
                        work.lone::<$format, SHARES, TOGETHER, LONE_AHEAD>(tile)
                    } else {
                        work.few::<$format, SHARES, AHEAD>(tile)
                    }
                });
        }
        /// For up to eight tokens a group.
        pub mod $x8 {
            use super::*;
            const LONE_AHEAD: usize = 2;
            const TOGETHER: usize = <$format as TileFormat>::TOGETHER;
            entry!($x8, $format, block BLOCK, tokens 8, memory Shared<1, 8>,
                min_blocks <$format as TileFormat>::X8_BLOCKS,
                shuffles shuffles::<$format>(SHARES),
                matrix_ops matrix_ops::<$format>(SHARES, LONE_AHEAD)
                    + (2 + two_column_tiles::<$format>() * X8_COLUMNS as u32)
                        * crate::tile::part_products::<$format>(),
                products |work: Work| if work.group.count == 1 {
                    work.lone::<$format, SHARES, TOGETHER, LONE_AHEAD>(work.own_tile::<$format, SHARES>())
                } else if work.group.count <= COLUMN_TOKENS {
                    work.many_of_both::<$format, 1, 0, _>()
                } else if two_column_tiles::<$format>() == 2 {
                    work.many_of_both::<$format, X8_COLUMNS, 0, _>()
                } else {
                    work.many::<$format, X8_COLUMNS, 0, _>()
                });
        }
        /// For up to 16 tokens a group.
        pub mod $x16 {
            use super::*;
            const AHEAD: usize = <$format as TileFormat>::X16_AHEAD;
            const TILES: u32 = <$format as TileFormat>::X16_TILES;
            const RING: bool = <$format as TileFormat>::SLOT_UNITS > 0;
            const WORDS: usize = ring_words::<$format>(2, X16_COLUMNS as u32);
            entry!($x16, $format, block BLOCK, tokens 16, memory SharedRings<16, WORDS>,
                min_blocks <$format as TileFormat>::X16_BLOCKS, shuffles 0,
                matrix_ops if RING { 2 } else { TILES } * X16_COLUMNS as u32 * crate::tile::part_products::<$format>(),
                products |work: Work| if RING {
                    work.many_of_ring::<$format, X16_COLUMNS, _>()
                } else if TILES == 2 {
                    work.many_of_both::<$format, X16_COLUMNS, AHEAD, _>()
                } else {
                    work.many::<$format, X16_COLUMNS, AHEAD, _>()
                });
        }
    };
}
crate::for_each_tile_format!(entries);

macro_rules! rings {
    ($format:ty, $ggml:ident, $ring:ident, $gated:ident, $rows64:ident) => {
        /// For more than four tokens and up to eight, in order.
        pub mod $ring {
            use super::*;
            const WORDS: usize = ring_words::<$format>(2, X8_COLUMNS as u32);
            entry!($ring, $format, block BLOCK, tokens 8, memory SharedRings<8, WORDS>,
                min_blocks 2, shuffles 0,
                matrix_ops 2 * X8_COLUMNS as u32 * crate::tile::part_products::<$format>(),
                products |work: Work| work.many_of_ring::<$format, X8_COLUMNS, _>());
        }
    };
}
crate::for_each_ring_format!(rings);

/// Threads of a block that has a multiprocessor for itself, though its tokens are several: each of its tiles has all
/// the warps that share columns.
const WIDE_BLOCK: u32 = 2 * BLOCK;
const WIDE_SHARES: usize = (N_SHARES * BLOCK_TILES / (WIDE_BLOCK / gpu::WARP)) as usize;

macro_rules! wide {
    ($format:ty, $ggml:ident, $wide:ident) => {
        /// For up to four tokens and so few blocks that each has a multiprocessor for itself.
        pub mod $wide {
            use super::*;
            const AHEAD: usize = <$format as TileFormat>::X4_WIDE_AHEAD;
            entry!($wide, $format, block WIDE_BLOCK, tokens 4, memory Shared<1, 4>,
                min_blocks 1, shuffles 0,
                matrix_ops Walk::<WIDE_SHARES>::round(AHEAD) as u32
                    * crate::tile::part_products::<$format>(),
                products |work: Work| work.few::<$format, WIDE_SHARES, AHEAD>(
                    work.own_tile::<$format, WIDE_SHARES>(),
                ));
        }
    };
}
crate::for_each_wide_format!(wide);
