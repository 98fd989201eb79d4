//! A warp's walk over its share of the columns: weights and activations are asked for a few parts
//! ahead of the products.

use super::{BLOCK_TILES, COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, Partial};
use crate::gpu::{self, Global, U32x2, U32x4};
use crate::tile::{PART_COLS, STEP_COLS, Step, Sums, TILE_ROWS, TileFormat, row_records};

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
        Self::new(n_cols, group.count, |i| grouping.rows(group, i).1)
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
            // One load each counts where weights are few; with four columns it costs registers.
            codes: if COLUMNS == 1 {
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
struct InputPart {
    /// Of step 0 and of step 1.
    codes: U32x4,
    scales: U32x2,
    sums: U32x2,
    half_sums: [U32x2; 2],
}

impl InputPart {
    /// Step `i`: 0 or 1.
    #[inline(always)]
    fn step(self, i: usize) -> Step {
        Step {
            codes: [self.codes.0[2 * i], self.codes.0[2 * i + 1]],
            scale: f32::from_bits(self.scales.0[i]),
            sum: self.sums.0[i],
            half_sums: self.half_sums[i].0,
        }
    }
}

/// Where tile `tile` of the block's two begins in expert `expert`; behind the last tile, the last one.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn tile_of_block<F: TileFormat>(
    words: Global<U32x4>,
    (n_rows, n_cols): (u32, u32),
    expert: u32,
    tile: u32,
) -> Global<U32x4> {
    let n_tiles = n_rows.div_ceil(TILE_ROWS);
    let tile = gpu::block_x() * BLOCK_TILES + tile;
    let tile = if tile < n_tiles { tile } else { n_tiles - 1 };
    let tile_words = row_records::<F>(n_cols) as usize * (F::RECORD_WORDS / 4) as usize;
    words.from((expert as usize * n_tiles as usize + tile as usize) * tile_words)
}

/// The lane's share of part `at` of a tile.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn load<F: TileFormat>(tile: Global<U32x4>, at: u32) -> F::Part {
    let record_parts = F::RECORD_COLS / PART_COLS;
    let record = (at / record_parts) as usize * F::RECORD_WORDS as usize;
    F::load(tile, record, at % record_parts)
}

/// Part `at`, or the last one where there are fewer.
#[inline(always)]
pub(super) fn within(at: u32, n_parts: u32) -> u32 {
    if at < n_parts { at } else { n_parts - 1 }
}

/// A warp's way through the columns of a tile: of the `N_SHARES` shares, which hold every
/// `N_SHARES`th part, the warp has number `first` and, with `SHARES` of them, those `N_SHARES /
/// SHARES` apart. `AHEAD` parts are under way; of the two numbers one divides the other.
#[derive(Clone, Copy)]
pub(super) struct Walk<const SHARES: usize, const AHEAD: usize> {
    pub first: u32,
    pub n_parts: u32,
}

impl<const SHARES: usize, const AHEAD: usize> Walk<SHARES, AHEAD> {
    const STRIDE: u32 = N_SHARES / SHARES as u32;
    /// Parts after which share and buffer are the first ones again.
    pub(super) const ROUND: usize = if AHEAD > SHARES { AHEAD } else { SHARES };

    /// The first parts, asked for before the activations are there.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn first_parts<F: TileFormat>(self, tile: Global<U32x4>) -> [F::Part; AHEAD] {
        core::array::from_fn(|i| {
            load::<F>(tile, within(self.first + i as u32 * Self::STRIDE, self.n_parts))
        })
    }

    /// The sums of each share. With one column of tokens their activations are asked for as far ahead
    /// as the weights; with more nothing is, and the registers hold sums instead.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn sums<F: TileFormat, const COLUMNS: usize>(
        self,
        tile: Global<U32x4>,
        mut parts: [F::Part; AHEAD],
        x: Input,
        rows: InputRows<COLUMNS>,
    ) -> [[Sums; COLUMNS]; SHARES] {
        let x_part = |at: u32| rows.part(x, 0, within(at, self.n_parts));
        let mut x_parts: [InputPart; AHEAD] =
            core::array::from_fn(|i| x_part(self.first + i as u32 * Self::STRIDE));
        let mut sums = [[[0.0; 2]; COLUMNS]; SHARES];
        let mut at = self.first;
        while at < self.n_parts {
            unroll!(i < Self::ROUND, {
                // A whole warp skips the places past its last.
                if at < self.n_parts && COLUMNS == 1 && AHEAD > 1 {
                    let (part, x_part) = (&parts[i % AHEAD], x_parts[i % AHEAD]);
                    F::accumulate_lone(part, 0, x_part.step(0), &mut sums[i % SHARES][0]);
                    F::accumulate_lone(part, 1, x_part.step(1), &mut sums[i % SHARES][0]);
                    let next = at + AHEAD as u32 * Self::STRIDE;
                    if next < self.n_parts {
                        parts[i % AHEAD] = load::<F>(tile, next);
                        x_parts[i % AHEAD] = rows.part(x, 0, next);
                    }
                } else if at < self.n_parts {
                    let part = load::<F>(tile, at);
                    unroll!(column < COLUMNS, {
                        let x_part = rows.part(x, column, at);
                        F::accumulate(&part, 0, x_part.step(0), &mut sums[i % SHARES][column]);
                        F::accumulate(&part, 1, x_part.step(1), &mut sums[i % SHARES][column]);
                    });
                }
                at += Self::STRIDE;
            });
        }
        sums
    }

    /// Leaves the sums of the block's tile `tile` in shared memory, in set `set`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn store<F: TileFormat, const COLUMNS: usize>(
        self,
        partial: Partial,
        (set, tile): (u32, u32),
        sums: &[[Sums; COLUMNS]; SHARES],
    ) {
        let (row, t) = (tile * TILE_ROWS + gpu::lane() / 4, gpu::lane() % 4);
        unroll!(i < SHARES, {
            let share = self.first + i as u32 * Self::STRIDE;
            unroll!(column < COLUMNS, {
                let at = partial.at(share, set, column as u32 * COLUMN_TOKENS + t, row);
                partial.sums.set(at, F::UNIT * sums[i][column][0]);
                partial.sums.set(at + 8, F::UNIT * sums[i][column][1]);
            });
        });
    }

    /// The same for a product of one token, in the lanes that hold the first one's sums.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn store_first<F: TileFormat>(
        self,
        partial: Partial,
        (set, tile): (u32, u32),
        sums: &[[Sums; 1]; SHARES],
    ) {
        let row = tile * TILE_ROWS + gpu::lane() / 4;
        unroll!(i < SHARES, {
            let at = partial.at(self.first + i as u32 * Self::STRIDE, set, 0, row);
            partial.sums.set(at, F::UNIT * sums[i][0][0]);
            partial.sums.set(at + 8, F::UNIT * sums[i][0][1]);
        });
    }
}
