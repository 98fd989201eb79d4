//! Blocks of four tiles, two sets of 32 rows, for a group of up to eight tokens: gate and up, or 64 rows of one matrix.

use super::lone::Chains;
use super::ring::{Ring, RingRows};
use super::walk::{InputRows, Store, Walk, tile_at, tile_offset};
use super::{
    BLOCK_TILES, COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, N_WARPS, Partial,
    two_column_tiles,
};
use crate::gpu::{self, Global, U32x4};
use crate::tile::{PART_COLS, TileFormat};

/// Warps that share a set.
const WARPS_OF_SET: u32 = N_WARPS / 2;
/// Warps that share a tile.
const WARPS_OF_TILE: u32 = WARPS_OF_SET / BLOCK_TILES;
/// Shares of a tile's columns that a warp has.
pub(super) const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;
/// The same where it has both tiles of a set.
const SHARES_OF_BOTH: usize = SHARES / BLOCK_TILES as usize;
/// Chains of one token under way.
pub(super) const AHEAD: usize = 2;
/// Columns of tokens.
pub(super) const COLUMNS: usize = 2;
/// Tokens of a group at most.
pub const TOKENS: u32 = COLUMNS as u32 * COLUMN_TOKENS;

/// What a block multiplies.
#[derive(Clone, Copy)]
pub(super) struct FourTiles {
    /// Of each set.
    pub words: [Global<U32x4>; 2],
    /// Its first tile.
    pub first: [u32; 2],
    /// Of a matrix.
    pub n_rows: u32,
    pub x: Input,
    pub grouping: Grouping,
    pub group: Group,
    pub partial: Partial,
}

impl FourTiles {
    #[inline(always)]
    fn n_parts(&self) -> u32 {
        self.x.n_cols.div_ceil(PART_COLS)
    }

    /// Tile `i` of set `set`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn tile<F: TileFormat>(&self, set: u32, i: u32) -> Global<U32x4> {
        let (words, first) =
            if set == 0 { (self.words[0], self.first[0]) } else { (self.words[1], self.first[1]) };
        tile_at::<F>(words, (self.n_rows, self.x.n_cols), self.group.expert, first + i)
    }

    /// What the warp's token is put together with, or `nothing` where it has none. A warp has one at most.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn around_of_warp<R>(&self, around: impl Fn((u32, u32)) -> R, nothing: R) -> R {
        const { assert!(TOKENS <= N_WARPS) };
        let token = gpu::anew(gpu::warp()); // not before: it would take the registers of sums
        if token < self.group.count {
            around(self.grouping.rows(self.group, token))
        } else {
            nothing
        }
    }

    /// The sums of a group's only token; `wait`s behind the first weights.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn lone<F: TileFormat, R, const TOGETHER: usize>(
        &self,
        wait: impl Fn(),
        around: impl Fn((u32, u32)) -> R,
        nothing: R,
    ) -> R {
        // Before the weights are asked for: the machine can't tell a load from those behind it.
        let rows = self.grouping.rows(self.group, 0);
        let (set, in_set) = (gpu::warp() / WARPS_OF_SET, gpu::warp() / WARPS_OF_TILE % 2);
        let walk = Walk::<SHARES> { first: gpu::warp() % WARPS_OF_TILE, n_parts: self.n_parts() };
        let tile = self.tile::<F>(set, in_set);
        let chains = Chains::<SHARES, TOGETHER>::new::<F>(walk);
        let first = chains.ask::<F, AHEAD>(tile);
        wait();
        let ask = || if gpu::warp() == 0 { around(rows) } else { nothing };
        let store = Store { partial: self.partial, set, tile: in_set };
        chains.sums::<F, _, _, AHEAD>(tile, first, self.x.row(rows.1), ask, store)
    }

    /// Those of several tokens.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn few<F: TileFormat, R>(&self, around: impl Fn((u32, u32)) -> R, nothing: R) -> R {
        let set = gpu::warp() / WARPS_OF_SET;
        let of_set = gpu::warp() % WARPS_OF_SET;
        // Both tiles where the registers hold their sums: activations serve twice.
        let of_both = Walk::<SHARES_OF_BOTH> { first: of_set, n_parts: self.n_parts() };
        let store = Store { partial: self.partial, set, tile: 0 };
        let tiles = || [0, 1].map(|i| self.tile::<F>(set, i));
        if self.group.count <= COLUMN_TOKENS {
            let tiles = tiles();
            let rows = InputRows::of_group(self.x.n_cols, self.grouping, self.group);
            of_both.many::<F, 2, 1, 0>(tiles, self.x, rows, store);
        } else if two_column_tiles::<F>() == 2 {
            let rows = InputRows::of_group(self.x.n_cols, self.grouping, self.group);
            of_both.many::<F, 2, COLUMNS, 0>(tiles(), self.x, rows, store);
        } else {
            let in_set = of_set / WARPS_OF_TILE;
            let walk =
                Walk::<SHARES> { first: gpu::warp() % WARPS_OF_TILE, n_parts: self.n_parts() };
            let rows = InputRows::of_group(self.x.n_cols, self.grouping, self.group);
            let store = Store { tile: in_set, ..store };
            walk.many::<F, 1, COLUMNS, 0>([self.tile::<F>(set, in_set)], self.x, rows, store);
        }
        self.around_of_warp(around, nothing)
    }

    /// The same by way of shared memory, where each warp has all four tiles; `wait`s behind the first weights.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn few_of_ring<F: TileFormat, R>(
        &self,
        wait: impl Fn(),
        around: impl Fn((u32, u32)) -> R,
        nothing: R,
    ) -> R {
        if self.group.count <= COLUMN_TOKENS {
            self.ring::<F, 1>(wait);
        } else {
            self.ring::<F, COLUMNS>(wait);
        }
        self.around_of_warp(around, nothing)
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ring<F: TileFormat, const COLUMNS: usize>(&self, wait: impl Fn()) {
        let tile = |set: usize, i: u32| {
            let shape = (self.n_rows, self.x.n_cols);
            let offset = tile_offset::<F>(shape, self.group.expert, self.first[set] + i);
            (self.words[set], offset as u32)
        };
        let ring = Ring::<4, COLUMNS> {
            memory: self.partial.ring(),
            tiles: [tile(0, 0), tile(0, 1), tile(1, 0), tile(1, 1)],
            walk: Walk { first: gpu::warp(), n_parts: self.n_parts() },
        };
        ring.begin::<F>();
        wait();
        let rows = RingRows::of_group(self.x.n_cols, self.grouping, self.group);
        ring.sums::<F>(self.x, rows, Store { partial: self.partial, set: 0, tile: 0 });
    }
}
