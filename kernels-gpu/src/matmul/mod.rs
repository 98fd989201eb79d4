//! Matrix products of weights with activations, `sum_c w[row, c] x[token, c]`, with what stands
//! before and behind them: the scale of an RMS norm; bias, residual, gate and activation, the sum
//! over experts, the weights of the next norm. The tensor cores multiply 16 rows with eight columns,
//! which are two pieces (`fixed16`) of four tokens.
//!
//! A block has 32 rows, so that it can leave its results as blocks of fixed point for the next
//! product; its warps share the columns. For one token, and for a few in order, it asks for its first
//! weights before it waits for the launch before it.
//!
//! A token's sums never depend on what else is in the batch: its columns are its own, and the order
//! of the additions is that of the columns.

pub mod alone;
pub mod experts;
mod four;
pub mod full;
pub mod gated;
mod lone;
pub mod normed;
pub mod plain;
mod ring;
pub mod rows64;
mod walk;

use crate::fixed16::{BLOCK_COLS, row_scales};
use crate::gpu::{self, Global, SharedArray, U32x4, WARP};
use crate::tile::{PART_COLS, TILE_ROWS, TileFormat};
use lone::{CODE_WORDS, RowWords, SCALE_WORDS};

/// Tokens of a small group of an expert's, at most.
pub const SMALL_GROUP_TOKENS: u32 = four::TOKENS;
/// Threads of a block: the warps of each of its tiles share the columns.
pub const BLOCK: u32 = 256;
const N_WARPS: u32 = BLOCK / WARP;
/// Tiles of a block.
const BLOCK_TILES: u32 = 2;
/// Shares of a tile's columns, each summed by a warp. The same in every kernel: the order of the
/// additions depends on it.
const N_SHARES: u32 = 8;
/// Rows of a block.
pub const BLOCK_ROWS: u32 = BLOCK_TILES * TILE_ROWS;
/// Tokens that one product's eight columns hold.
pub const COLUMN_TOKENS: u32 = 4;

/// Tiles that a warp of a product of two columns has: both, where two blocks share a multiprocessor and its
/// registers hold their sums.
const fn two_column_tiles<F: TileFormat>() -> u32 {
    if F::X8_BLOCKS == 2 { F::X16_TILES } else { 1 }
}

/// The rows that a product reads.
#[derive(Clone, Copy)]
struct Input {
    /// Rows of fixed-point codes: [n_rows, padded columns / 8]
    codes: Global<U32x4>,
    /// Rows of scale records: [n_rows, padded columns / 32]
    scales: Global<U32x4>,
    /// [n_rows, row_scales(n_cols)], or absent: the rows are complete
    squares: Global<f32>,
    n_cols: u32,
    eps: f32,
}

impl Input {
    /// A row's words.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn row(self, row: u32) -> RowWords<Global<u32>> {
        let first_part = (row * self.n_cols.div_ceil(PART_COLS)) as usize;
        RowWords {
            codes: self.codes.cast().from(first_part * CODE_WORDS as usize),
            scales: self.scales.cast().from(first_part * SCALE_WORDS as usize),
        }
    }

    /// The lane's share of what `factor` takes, for a row: asked for long before it is needed, but behind what is
    /// needed first.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn squares_of_lane(self, row: u32) -> f32 {
        let [squares] = self.squares_of_rows([row]);
        squares
    }

    /// The same for several rows, all under way at once.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn squares_of_rows<const N: usize>(self, rows: [u32; N]) -> [f32; N] {
        if self.squares.is_absent() {
            return [0.0; N];
        }
        squares_of_lane(self.squares, rows, self.n_cols)
    }

    /// What the sums of a row must be multiplied by: the row's RMS scale where it is still to come,
    /// else 1. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn factor(self, squares_of_lane: f32) -> f32 {
        if self.squares.is_absent() {
            return 1.0;
        }
        rms_scale(squares_of_lane, self.n_cols, self.eps)
    }
}

/// Blocks of whose squares a lane asks for at once: all that it has of 4096 columns.
const SQUARES_AT_ONCE: usize = 4;

/// The lane's share of each row's sum of squares: of every 32nd of its blocks of 32 columns. Waits for them.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn squares_of_lane<const N: usize>(squares: Global<f32>, rows: [u32; N], n_cols: u32) -> [f32; N] {
    let n_blocks = row_scales(n_cols);
    let rows = rows.map(|row| squares.from((row * n_blocks) as usize));
    let first = rows.map(|row| {
        let mut first = [0.0; SQUARES_AT_ONCE];
        unroll!(i < 4, {
            let block = gpu::lane() + i as u32 * WARP;
            if block < n_blocks {
                first[i] = row.get(block as usize);
            }
        });
        first
    });
    // Held behind all of the loads by `anew`: the compiler adds, and waits, right behind each of them else.
    let mut sums = first.map(|first| {
        let [a, b, c, d] = first.map(|sum| f32::from_bits(gpu::anew(sum.to_bits())));
        a + b + c + d
    });
    let mut block = gpu::lane() + SQUARES_AT_ONCE as u32 * WARP;
    while block < n_blocks {
        unroll!(i < N, { sums[i] += rows[i].get(block as usize) });
        block += WARP;
    }
    sums
}

/// `1 / sqrt(mean(x^2) + eps)` of a row from the lanes' shares of its sum of squares. All 32 lanes must
/// reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn rms_scale(squares_of_lane: f32, n_cols: u32, eps: f32) -> f32 {
    let part = gpu::reciprocal(n_cols as f32);
    gpu::inverse_sqrt(gpu::fma(gpu::warp_sum(squares_of_lane), part, eps))
}

/// Which tokens a launch's blocks take: consecutive ones, or those of an expert.
#[derive(Clone, Copy)]
struct Grouping {
    groups: Global<U32x4>,
    slots: Global<u32>,
    n_tokens: u32,
    slots_per_row: u32,
}

/// The tokens of one block.
#[derive(Clone, Copy)]
struct Group {
    expert: u32,
    start: u32,
    count: u32,
}

impl Grouping {
    /// The block's tokens: up to `limit`, chosen by the grid's y. Reads what a launch before may
    /// have written, where the tokens are grouped.
    #[inline(always)]
    fn group(self, limit: u32) -> Group {
        self.group_at(gpu::block_y(), limit)
    }

    /// Those of the blocks at `y`.
    #[inline(always)]
    fn group_at(self, y: u32, limit: u32) -> Group {
        if self.groups.is_absent() {
            let start = y * limit;
            let left = self.n_tokens.saturating_sub(start);
            Group { expert: 0, start, count: if left < limit { left } else { limit } }
        } else {
            let U32x4([expert, start, count, _]) = self.groups.get(y as usize);
            Group { expert, start, count }
        }
    }

    /// Row of the output, and of the input, of token `i` of a group.
    #[inline(always)]
    fn rows(self, group: Group, i: u32) -> (u32, u32) {
        let slot = self.slot(group, i);
        (slot, self.row(slot))
    }

    /// Row of the output of token `i` of a group.
    #[inline(always)]
    fn slot(self, group: Group, i: u32) -> u32 {
        let at = group.start + i;
        if self.slots.is_absent() { at } else { self.slots.get(at as usize) }
    }

    /// `slot / slots_per_row`, the input's row, in four instructions, where a division takes some twenty. What is
    /// rounded lies at least `1 / (2 slots_per_row)` from where that changes, and is off by less for slots below 2^20.
    #[inline(always)]
    fn row(self, slot: u32) -> u32 {
        whole_parts(slot, gpu::reciprocal(self.slots_per_row as f32))
    }
}

/// How many times `1 / part` goes into `slot`.
#[inline(always)]
fn whole_parts(slot: u32, part: f32) -> u32 {
    gpu::round_i32(gpu::fma(slot as f32 + 0.5, part, -0.5)) as u32
}

/// Columns from one token of the partial sums to the next: the lanes that hold one row of four
/// tokens then write to different banks.
const PARTIAL_STRIDE: usize = BLOCK_ROWS as usize + 8;

/// Shared memory of a product: partial sums of `SETS` times 32 rows for `TOKENS` tokens.
#[repr(C, align(16))]
pub struct Shared<const SETS: usize, const TOKENS: usize> {
    /// [share of the columns][set][token][row]
    partial: [[[[f32; PARTIAL_STRIDE]; TOKENS]; SETS]; N_SHARES as usize],
}

/// Shared memory of a product whose warps have rings in it: `WORDS` each, where a warp leaves its sums of `TOKENS` tokens
/// in the end. It has one share of the columns.
#[repr(C, align(16))]
pub struct SharedRings<const TOKENS: usize, const WORDS: usize> {
    /// [warp]
    partial: [[f32; WORDS]; N_WARPS as usize],
}

/// Views of `Shared` or `SharedRings`: sums of the block's warps.
#[derive(Clone, Copy)]
struct Partial {
    sums: SharedArray<f32>,
    n_tokens: u32,
    /// From one share of the columns to the next.
    share_stride: u32,
}

impl<const SETS: usize, const TOKENS: usize> Shared<SETS, TOKENS> {
    #[inline(always)]
    fn partial() -> Partial {
        Partial::new(shared!(Shared<SETS, TOKENS>, partial).cast(), SETS, TOKENS)
    }
}

impl<const TOKENS: usize, const WORDS: usize> SharedRings<TOKENS, WORDS> {
    #[inline(always)]
    fn partial() -> Partial {
        Partial {
            sums: shared!(SharedRings<TOKENS, WORDS>, partial).cast(),
            n_tokens: TOKENS as u32,
            share_stride: WORDS as u32,
        }
    }
}

impl Partial {
    /// Sums that lie as those of `Shared`.
    #[inline(always)]
    fn new(sums: SharedArray<f32>, n_sets: usize, n_tokens: usize) -> Partial {
        let share_stride = (n_sets * n_tokens * PARTIAL_STRIDE) as u32;
        Partial { sums, n_tokens: n_tokens as u32, share_stride }
    }

    /// The calling warp's part of `SharedRings`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ring(self) -> SharedArray<U32x4> {
        self.sums.cast().from(gpu::warp() * (self.share_stride / 4))
    }

    #[inline(always)]
    fn at(self, share: u32, set: u32, token: u32, row: u32) -> u32 {
        share * self.share_stride + (set * self.n_tokens + token) * PARTIAL_STRIDE as u32 + row
    }

    /// The sum over the shares of the lane's row, in their order.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn sum(self, set: u32, token: u32) -> f32 {
        let mut value = 0.0;
        unroll!(share < 8, {
            value += self.sums.get(self.at(share as u32, set, token, gpu::lane()));
        });
        const _: () = assert!(N_SHARES == 8 && BLOCK_ROWS == WARP);
        value
    }
}

/// The lane's column of the block's 32 rows.
#[inline(always)]
fn out_col() -> u32 {
    col_of_lane(gpu::block_x())
}

/// The lane's column of a block of the output's columns, 32 rows of the weights.
#[inline(always)]
fn col_of_lane(block: u32) -> u32 {
    block * BLOCK_COLS + gpu::lane()
}

/// Element `i`, or 0 where the view is absent or `inside` does not hold.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn optional(view: Global<f32>, inside: bool, i: usize) -> f32 {
    if inside && !view.is_absent() { view.get(i) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_row_is_its_quotient_with_an_inverse_that_is_off_by_one_unit() {
        for slots_per_row in 1..=crate::moe::MAX_TOP_K {
            let exact = 1.0 / slots_per_row as f32;
            for part in [exact.next_down(), exact, exact.next_up()] {
                for row in 1..(1 << 20) / slots_per_row {
                    let first = row * slots_per_row;
                    assert_eq!(whole_parts(first, part), row, "{first} / {slots_per_row}");
                    assert_eq!(whole_parts(first - 1, part), row - 1, "{first} - 1");
                }
            }
        }
    }
}
