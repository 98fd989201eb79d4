//! A warp's walk over its share of the columns: weights and activations are asked for a few parts
//! ahead of the products.

use super::{COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, Partial};
use crate::gpu::{self, Global, U32x2, U32x4};
use crate::tile::{
    CHAIN_GROUPS, PART_COLS, Part, STEP_COLS, Step, Sums, TILE_ROWS, TileFormat, row_records,
    sum_of_groups,
};

/// The rows of the input that a lane reads. Where there are fewer tokens than columns the last one
/// stands in for those that lack: its products are not stored.
#[derive(Clone, Copy)]
pub(super) struct InputRows<const COLUMNS: usize> {
    /// First code word that is the lane's, by column.
    codes: [u32; COLUMNS],
    /// First scale record of the token whose sums are the lane's, by column.
    scales: [u32; COLUMNS],
}

impl<const COLUMNS: usize> InputRows<COLUMNS> {
    /// As a b fragment a lane (4 g + t) holds piece g % 2 of token g / 2; its sums are of token t.
    /// `row` gives the input's row of token `i`, for those below `count`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn new(n_cols: u32, count: u32, row: impl Fn(u32) -> u32) -> Self {
        let (g, t) = (gpu::lane() / 4, gpu::lane() % 4);
        let n_parts = n_cols.div_ceil(PART_COLS);
        let row = |i: u32| row(if i < count { i } else { count - 1 });
        let mut rows = InputRows { codes: [0; COLUMNS], scales: [0; COLUMNS] };
        unroll!(column < COLUMNS, {
            let first = column as u32 * COLUMN_TOKENS;
            rows.codes[column] = row(first + g / 2) * n_parts * 8 + g % 2 * 4 + t;
            rows.scales[column] = row(first + t) * n_parts * (PART_COLS / STEP_COLS);
        });
        rows
    }

    /// The rows of a group's tokens.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn of_group(n_cols: u32, grouping: Grouping, group: Group) -> Self {
        Self::new(n_cols, group.count, |i| {
            let slot = grouping.slot(group, i);
            // Of one or two columns ptxas takes what is this short into the loop, to save registers.
            if COLUMNS > 2 {
                grouping.row(slot)
            } else {
                gpu::div_u32(slot, grouping.slots_per_row)
            }
        })
    }

    /// The lane's share of part `at` of the activations.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn part(&self, x: Input, column: usize, at: u32) -> InputPart {
        // Pairs, so that a format loads no more of them than it needs.
        let scales = x.scales.from(self.scales[column] as usize).cast::<U32x2>();
        let codes = x.codes.from(self.codes[column] as usize);
        let pair = |i: usize| scales.get(at as usize * 4 + i);
        InputPart {
            // One load each is what a multiprocessor's cache has time for. Compiled for sm_80, four columns of some
            // formats have no registers for it.
            codes: if COLUMNS == 1 || !cfg!(sm_80) {
                codes.whole(at as usize * 8)
            } else {
                codes.get(at as usize * 8)
            },
            scales: pair(0),
            sums: pair(1),
            half_sums: [pair(2), pair(3)],
        }
    }
}

/// What a lane holds of a part of the activations.
#[derive(Clone, Copy)]
pub(super) struct InputPart {
    /// Of step 0 and of step 1.
    pub codes: U32x4,
    pub scales: U32x2,
    pub sums: U32x2,
    pub half_sums: [U32x2; 2],
}

impl InputPart {
    /// Of no token.
    pub(super) const NONE: InputPart = InputPart {
        codes: U32x4([0; 4]),
        scales: U32x2([0; 2]),
        sums: U32x2([0; 2]),
        half_sums: [U32x2([0; 2]); 2],
    };

    /// Step `i`: 0 or 1.
    #[inline(always)]
    pub(super) fn step(self, i: usize) -> Step {
        Step {
            codes: [self.codes.0[2 * i], self.codes.0[2 * i + 1]],
            scale: f32::from_bits(self.scales.0[i]),
            sum: self.sums.0[i],
            half_sums: self.half_sums[i].0,
        }
    }
}

/// Where tile `tile` begins in expert `expert`; behind the last tile, the last one.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn tile_at<F: TileFormat>(
    words: Global<U32x4>,
    shape: (u32, u32),
    expert: u32,
    tile: u32,
) -> Global<U32x4> {
    words.from(tile_offset::<F>(shape, expert, tile))
}

/// The same as an offset.
#[inline(always)]
pub(super) fn tile_offset<F: TileFormat>(
    (n_rows, n_cols): (u32, u32),
    expert: u32,
    tile: u32,
) -> usize {
    let n_tiles = n_rows.div_ceil(TILE_ROWS);
    let tile = if tile < n_tiles { tile } else { n_tiles - 1 };
    let tile_words = row_records::<F>(n_cols) as usize * (F::RECORD_WORDS / 4) as usize;
    (expert as usize * n_tiles as usize + tile as usize) * tile_words
}

/// The record of part `at` of a tile.
#[inline(always)]
pub(super) fn record_of<F: TileFormat>(at: u32) -> u32 {
    at / record_parts::<F>()
}

/// Parts of a record.
pub(super) const fn record_parts<F: TileFormat>() -> u32 {
    F::RECORD_COLS / PART_COLS
}

/// Part `at`'s number in its record. Parts that are `stride` apart from `first` on may all have the same, which is then
/// found once. It may be wrong for a part that only stands in for another one.
#[inline(always)]
pub(super) fn number_in_record<F: TileFormat>(first: u32, stride: u32, at: u32) -> u32 {
    let at = if stride.is_multiple_of(record_parts::<F>()) { first } else { at };
    at % record_parts::<F>()
}

/// The lane's share of the codes of part `at` of a tile, number `number` of its record.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn load_codes<F: TileFormat>(tile: Global<U32x4>, at: u32, number: u32) -> F::Codes {
    F::load_codes(tile, record_of::<F>(at) as usize * F::RECORD_WORDS as usize, number)
}

/// The lane's share of its scales.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn load_scales<F: TileFormat>(
    tile: Global<U32x4>,
    at: u32,
    number: u32,
) -> F::RowScales {
    F::load_scales(tile, record_of::<F>(at) as usize * F::RECORD_WORDS as usize, number)
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn load<F: TileFormat>(tile: Global<U32x4>, at: u32, number: u32) -> Part<F> {
    Part { codes: load_codes::<F>(tile, at, number), scales: load_scales::<F>(tile, at, number) }
}

/// Part `at`, or the last one where there are fewer.
#[inline(always)]
pub(super) fn within(at: u32, n_parts: u32) -> u32 {
    if at < n_parts { at } else { n_parts - 1 }
}

/// A warp's way through the columns of a tile: of the `N_SHARES` shares, which hold every
/// `N_SHARES`th part, the warp has number `first` and, with `SHARES` of them, those `N_SHARES /
/// SHARES` apart. A share's groups are summed apart, and then added.
#[derive(Clone, Copy)]
pub(super) struct Walk<const SHARES: usize> {
    pub first: u32,
    pub n_parts: u32,
}

impl<const SHARES: usize> Walk<SHARES> {
    /// Parts from one of the warp's to the next.
    pub(super) const STRIDE: u32 = N_SHARES / SHARES as u32;

    /// Parts after which share and buffer are the first ones again; of the two numbers one divides the
    /// other.
    pub(super) const fn round(ahead: usize) -> usize {
        if ahead > SHARES { ahead } else { SHARES }
    }

    /// The first parts, asked for before the activations are there.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn first_parts<F: TileFormat, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
    ) -> [Part<F>; AHEAD] {
        core::array::from_fn(|i| {
            let at = within(self.first + i as u32 * Self::STRIDE, self.n_parts);
            load::<F>(tile, at, number_in_record::<F>(self.first, Self::STRIDE, at))
        })
    }

    /// Leaves the sums of up to four tokens in shared memory. Their activations are asked for as far ahead
    /// as the weights; `meanwhile` is what is done, and waited for, once the first are under way.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn few<F: TileFormat, R, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
        mut parts: [Part<F>; AHEAD],
        (x, rows): (Input, InputRows<1>),
        meanwhile: impl FnOnce() -> R,
        store: Store,
    ) -> R {
        let mut x_parts: [InputPart; AHEAD] = core::array::from_fn(|i| {
            rows.part(x, 0, within(self.first + i as u32 * Self::STRIDE, self.n_parts))
        });
        let done = meanwhile();
        let mut sums = [[[0.0; 2]; CHAIN_GROUPS]; SHARES];
        let mut at = self.first;
        while at < self.n_parts {
            unroll!(i < Self::round(AHEAD), {
                // A whole warp skips the places past its last.
                if at < self.n_parts {
                    let (part, x_part) = (&parts[i % AHEAD], x_parts[i % AHEAD]);
                    F::accumulate(part, 0, x_part.step(0), &mut sums[i % SHARES]);
                    F::accumulate(part, 1, x_part.step(1), &mut sums[i % SHARES]);
                    let next = at + AHEAD as u32 * Self::STRIDE;
                    if next < self.n_parts {
                        let number = number_in_record::<F>(self.first, Self::STRIDE, next);
                        parts[i % AHEAD] = load::<F>(tile, next, number);
                        x_parts[i % AHEAD] = rows.part(x, 0, next);
                    }
                }
                at += Self::STRIDE;
            });
        }
        unroll!(i < SHARES, {
            store.groups::<F>(self.first + i as u32 * Self::STRIDE, 0, &sums[i]);
        });
        done
    }

    /// Leaves the sums of up to four tokens in each of `COLUMNS` columns, for rows of `TILES` tiles, 1 or 2, in shared
    /// memory. A share comes after the other: the registers hold sums instead of weights. Where `AHEAD` is 1 and not
    /// 0, the next part's activations are asked for ahead.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn many<
        F: TileFormat,
        const TILES: usize,
        const COLUMNS: usize,
        const AHEAD: usize,
    >(
        self,
        tiles: [Global<U32x4>; TILES],
        x: Input,
        rows: InputRows<COLUMNS>,
        store: Store,
    ) {
        let columns_of =
            |at: u32| core::array::from_fn(|column| rows.part(x, column, within(at, self.n_parts)));
        let mut ahead: [[InputPart; COLUMNS]; AHEAD] =
            core::array::from_fn(|_| columns_of(self.first));
        let mut share = self.first;
        while share < N_SHARES {
            let mut sums = [[[[0.0; 2]; CHAIN_GROUPS]; COLUMNS]; TILES];
            let mut at = share;
            while at < self.n_parts {
                let asked = ahead;
                let next = at + N_SHARES;
                let next = if next < self.n_parts { next } else { share + Self::STRIDE };
                let number = number_in_record::<F>(share, N_SHARES, at);
                let parts = tiles.map(|tile| load::<F>(tile, at, number));
                if AHEAD == 1 {
                    ahead[0] = columns_of(next);
                }
                unroll!(column < COLUMNS, {
                    let x_part =
                        if AHEAD == 1 { asked[0][column] } else { rows.part(x, column, at) };
                    // One tile by itself: in a loop of one it takes registers that some formats lack.
                    if TILES == 1 {
                        F::accumulate(&parts[0], 0, x_part.step(0), &mut sums[0][column]);
                        F::accumulate(&parts[0], 1, x_part.step(1), &mut sums[0][column]);
                    } else {
                        unroll!(tile < 2, {
                            let tile = tile % TILES;
                            let sums = &mut sums[tile][column];
                            F::accumulate(&parts[tile], 0, x_part.step(0), sums);
                            F::accumulate(&parts[tile], 1, x_part.step(1), sums);
                        });
                    }
                });
                at += N_SHARES;
            }
            unroll!(tile < TILES, {
                let store = Store { tile: store.tile + tile as u32, ..store };
                unroll!(column < COLUMNS, {
                    store.groups::<F>(share, column as u32, &sums[tile][column]);
                });
            });
            share += Self::STRIDE;
        }
    }
}

/// Where a warp leaves its sums: the block's tile `tile`, in set `set`.
#[derive(Clone, Copy)]
pub(super) struct Store {
    pub partial: Partial,
    pub set: u32,
    pub tile: u32,
}

impl Store {
    /// The lane's two rows of token `token`, in share `share`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn rows<F: TileFormat>(self, share: u32, token: u32, sums: Sums) {
        let row = self.tile * TILE_ROWS + gpu::lane() / 4;
        let at = self.partial.at(share, self.set, token, row);
        self.partial.sums.set(at, F::UNIT * sums[0]);
        self.partial.sums.set(at + 8, F::UNIT * sums[1]);
    }

    /// The same from the sums of groups, of the token that the lane has in column `column`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn groups<F: TileFormat>(
        self,
        share: u32,
        column: u32,
        sums: &[Sums; CHAIN_GROUPS],
    ) {
        let token = column * COLUMN_TOKENS + gpu::lane() % 4;
        self.rows::<F>(share, token, [sum_of_groups::<F>(sums, 0), sum_of_groups::<F>(sums, 1)]);
    }
}
