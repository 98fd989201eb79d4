//! The walk of a warp whose weights and activations come by way of shared memory: it has two parts of
//! both on their way there, where registers would not hold them.

use super::lone::{CODE_WORDS, SCALE_WORDS};
use super::walk::{InputPart, Store, Walk, number_in_record, record_of, record_parts};
use super::{COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, PARTIAL_STRIDE};
use crate::gpu::{self, Global, SharedArray, U32x2, U32x4};
use crate::tile::{CHAIN_GROUPS, PART_COLS, Part, TileFormat};

/// Units of 16 bytes of a token's part: its codes, and its scale records.
const CODE_UNITS: u32 = CODE_WORDS / 4;
const SCALE_UNITS: u32 = SCALE_WORDS / 4;

/// Parts under way.
const SLOTS: u32 = 2;

/// Units of a part of `tiles` tiles and `columns` columns of tokens.
const fn part_units<F: TileFormat>(tiles: u32, columns: u32) -> u32 {
    tiles * F::SLOT_UNITS + columns * COLUMN_TOKENS * (CODE_UNITS + SCALE_UNITS)
}

/// Words of shared memory that a warp has for its parts, and in the end for its sums: two tiles a set.
pub(super) const fn ring_words<F: TileFormat>(tiles: u32, columns: u32) -> usize {
    let parts = if F::SLOT_UNITS == 0 { 0 } else { 4 * SLOTS * part_units::<F>(tiles, columns) };
    let sums = tiles / 2 * columns * COLUMN_TOKENS * PARTIAL_STRIDE as u32;
    if parts < sums { sums as usize } else { parts as usize }
}

/// A warp's parts of `TILES` tiles and `COLUMNS` columns of tokens.
#[derive(Clone, Copy)]
pub(super) struct Ring<const TILES: usize, const COLUMNS: usize> {
    /// The warp's own memory.
    pub memory: SharedArray<U32x4>,
    /// The words that each tile is in, and its first unit there: of a matrix of up to 64 GiB.
    pub tiles: [(Global<U32x4>, u32); TILES],
    pub walk: Walk<1>,
}

/// Where a lane finds what it copies of the activations.
#[derive(Clone, Copy)]
pub(super) struct RingRows<const COLUMNS: usize> {
    /// First unit of codes, of a token of each column.
    codes: [u32; COLUMNS],
    /// First unit of the scale records, of a token.
    scales: u32,
}

impl<const COLUMNS: usize> RingRows<COLUMNS> {
    /// Of a group's tokens. In place of those that it lacks others come again: lanes that copy the same unit in one
    /// instruction do so one after another, and to leave them out takes more instructions.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn of_group(n_cols: u32, grouping: Grouping, group: Group) -> Self {
        let n_parts = n_cols.div_ceil(PART_COLS);
        let lane = gpu::lane();
        let first = |token: u32, units: u32| {
            let mut there = if token < group.count { token } else { token - group.count };
            if there >= group.count {
                there %= COLUMN_TOKENS;
                there = if there < group.count { there } else { group.count - 1 };
            }
            let slot = grouping.slot(group, there);
            gpu::div_u32(slot, grouping.slots_per_row) * n_parts * units + lane % units
        };
        let mut rows = RingRows { codes: [0; COLUMNS], scales: 0 };
        unroll!(column < COLUMNS, {
            let token = column as u32 * COLUMN_TOKENS + lane / CODE_UNITS;
            rows.codes[column] = first(token, CODE_UNITS);
        });
        rows.scales = first(lane / SCALE_UNITS, SCALE_UNITS);
        rows
    }
}

impl<const TILES: usize, const COLUMNS: usize> Ring<TILES, COLUMNS> {
    /// Slot `slot`'s activations, which are behind its weights.
    #[inline(always)]
    fn x_of_slot<F: TileFormat>(self, slot: u32) -> SharedArray<U32x4> {
        let units = part_units::<F>(TILES as u32, COLUMNS as u32);
        self.memory.from(slot * units + TILES as u32 * F::SLOT_UNITS)
    }

    /// Tile `tile` of slot `slot`.
    #[inline(always)]
    fn tile_of_slot<F: TileFormat>(self, slot: u32, tile: u32) -> SharedArray<U32x4> {
        let units = part_units::<F>(TILES as u32, COLUMNS as u32);
        self.memory.from(slot * units + tile * F::SLOT_UNITS)
    }

    /// The number of the warp's parts in their records.
    #[inline(always)]
    fn number<F: TileFormat>(self) -> u32 {
        number_in_record::<F>(self.walk.first, N_SHARES, 0)
    }

    /// What the lane multiplies of a tile in slot `slot`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn part<F: TileFormat>(self, slot: u32, tile: u32) -> Part<F> {
        F::load_part(self.tile_of_slot::<F>(slot, tile))
    }

    /// And of a column: a lane (4 g + t) has piece g % 2 of token g / 2; its sums are of token t.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn x_part<F: TileFormat>(self, slot: u32, column: u32) -> InputPart {
        let (g, t) = (gpu::lane() / 4, gpu::lane() % 4);
        let codes = self.x_of_slot::<F>(slot);
        let scales = codes.from(COLUMNS as u32 * gpu::WARP).cast::<U32x2>();
        let token = column * COLUMN_TOKENS;
        let pair = |i: u32| scales.get((token + t) * (2 * SCALE_UNITS) + i);
        InputPart {
            codes: codes.get((token + g / 2) * CODE_UNITS + g % 2 * 4 + t),
            scales: pair(0),
            sums: pair(1),
            half_sums: [pair(2), pair(3)],
        }
    }

    /// Asks for the weights of part `at`, where there is one, into slot `slot`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ask_weights<F: TileFormat>(self, at: u32, slot: u32) {
        const { assert!(N_SHARES.is_multiple_of(record_parts::<F>())) };
        if at < self.walk.n_parts {
            unroll!(tile < TILES, {
                let (words, first) = self.tiles[tile];
                let record = first + record_of::<F>(at) * (F::RECORD_WORDS / 4);
                let record = words.from(record as usize);
                let to = self.tile_of_slot::<F>(slot, tile as u32);
                F::copy_part(record, self.number::<F>(), to);
            });
        }
    }

    /// The same of the activations.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ask_x<F: TileFormat>(self, x: Input, rows: RingRows<COLUMNS>, at: u32, slot: u32) {
        if at < self.walk.n_parts {
            let to = self.x_of_slot::<F>(slot);
            unroll!(column < COLUMNS, {
                let unit = (rows.codes[column] + at * CODE_UNITS) as usize;
                gpu::copy_later(x.codes, unit, to, column as u32 * gpu::WARP + gpu::lane());
            });
            if gpu::lane() < COLUMNS as u32 * COLUMN_TOKENS * SCALE_UNITS {
                let unit = (rows.scales + at * SCALE_UNITS) as usize;
                gpu::copy_later(x.scales, unit, to, COLUMNS as u32 * gpu::WARP + gpu::lane());
            }
        }
    }

    /// Asks for the first weights.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn begin<F: TileFormat>(self) {
        unroll!(slot < 2, {
            self.ask_weights::<F>(self.walk.first + slot as u32 * N_SHARES, slot as u32);
        });
    }

    /// Leaves the sums of a group's tokens in the warp's memory, as `Walk::many` does; behind `begin`. A lane's copies of
    /// a part's weights and activations are a group.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn sums<F: TileFormat>(self, x: Input, rows: RingRows<COLUMNS>, store: Store) {
        let first = self.walk.first;
        unroll!(slot < 2, {
            self.ask_x::<F>(x, rows, first + slot as u32 * N_SHARES, slot as u32);
            gpu::close_copies();
        });
        let mut sums = [[[[0.0; 2]; CHAIN_GROUPS]; COLUMNS]; TILES];
        let (mut at, mut slot) = (first, 0);
        while at < self.walk.n_parts {
            gpu::wait_for_copies::<1>();
            gpu::sync_warp(); // every lane's copies are there
            F::make_ready::<TILES>(|tile| self.tile_of_slot::<F>(slot, tile), self.number::<F>());
            // What is fewer stays in registers.
            if COLUMNS > TILES {
                let mut parts = [self.part::<F>(slot, 0); TILES];
                unroll!(tile < TILES, { parts[tile] = self.part::<F>(slot, tile as u32) });
                unroll!(column < COLUMNS, {
                    let x_part = self.x_part::<F>(slot, column as u32);
                    unroll!(tile < TILES, {
                        let sums = &mut sums[tile][column];
                        F::accumulate(&parts[tile], 0, x_part.step(0), sums);
                        F::accumulate(&parts[tile], 1, x_part.step(1), sums);
                    });
                });
            } else {
                let mut x_parts = [InputPart::NONE; COLUMNS];
                unroll!(column < COLUMNS, {
                    x_parts[column] = self.x_part::<F>(slot, column as u32);
                });
                unroll!(tile < TILES, {
                    let part = self.part::<F>(slot, tile as u32);
                    unroll!(column < COLUMNS, {
                        let sums = &mut sums[tile][column];
                        F::accumulate(&part, 0, x_parts[column].step(0), sums);
                        F::accumulate(&part, 1, x_parts[column].step(1), sums);
                    });
                });
            }
            gpu::sync_warp(); // every lane has read the slot
            self.ask_weights::<F>(at + SLOTS * N_SHARES, slot);
            self.ask_x::<F>(x, rows, at + SLOTS * N_SHARES, slot);
            gpu::close_copies();
            slot ^= 1;
            at += N_SHARES;
        }
        unroll!(tile < TILES, {
            let tile_at = Store { set: tile as u32 / 2, tile: tile as u32 % 2, ..store };
            unroll!(column < COLUMNS, {
                tile_at.groups::<F>(first, column as u32, &sums[tile][column]);
            });
        });
    }
}
