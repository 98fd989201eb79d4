//! The last step of attention: folds a token's splits, adds the sinks, divides, and writes the row.

use super::state::{State, factor};
use super::{SPLIT, first_key};
use crate::fixed16::{self, RowsMut};
use crate::gpu::{self, Global, GlobalMut, U32x2, U32x4};
use core::f32::consts::LOG2_E;

/// Threads of a block.
const BLOCK: u32 = 128;
/// Columns of a block: each warp has one block of the fixed-point rows.
pub const BLOCK_COLS: u32 = BLOCK / gpu::WARP * fixed16::BLOCK_COLS;

/// Blocks along y for rows of `n_heads * head_dim` columns.
pub const fn combine_blocks(n_cols: u32) -> u32 {
    fixed16::padded_cols(n_cols).div_ceil(BLOCK_COLS)
}

kernel! {
    /// `out[t, h] = sum_s acc e^m / (sum_s l e^m + e^sink[h])`; grid (tokens,
    /// `combine_blocks(n_heads * head_dim)`).
    pub fn attention_combine = combine, block BLOCK, shared (), registers 64,
        barriers 0, shuffles 0, matrix_ops 0, waits later;
    pub struct AttentionCombine {
        /// [n_tokens, n_heads, n_splits, head_dim]
        partial_out: Global<f32>,
        /// [n_tokens, n_heads, n_splits] of (largest score in log2, sum)
        partial_ml: Global<U32x2>,
        /// [n_tokens]
        positions: Global<u32>,
        /// [n_heads], not scaled; or absent
        sinks: Global<f32>,
        /// [n_tokens, n_heads * head_dim]
        values: GlobalMut<f32>,
        /// The same as codes: [n_tokens, row_code_bytes]
        codes: GlobalMut<u8>,
        /// And scale records: [n_tokens, row_scales]
        scales: GlobalMut<U32x4>,
        n_heads: u32,
        head_dim: u32,
        /// As the attention kernel had it
        n_splits: u32,
        window: u32,
    }
}

#[inline(always)]
fn combine(a: AttentionCombine) {
    let n_cols = a.n_heads * a.head_dim;
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols };
    let token = gpu::block_x();
    let block = gpu::block_y() * (BLOCK / gpu::WARP) + gpu::warp();
    if block >= out.n_blocks() {
        gpu::wait_for_previous();
        return; // a whole warp leaves; there is no block barrier below
    }
    let col = block * fixed16::BLOCK_COLS + gpu::lane();
    let mut value = 0.0;
    if col < n_cols {
        value = column(&a, token, col);
    } else {
        gpu::wait_for_previous();
    }
    out.store_block(token, block, value);
}

/// Splits that a token meets.
#[inline(always)]
pub(super) fn n_splits_of(position: u32, window: u32) -> u32 {
    position / SPLIT - first_key(position, window) / SPLIT + 1
}

/// One column of a token's row.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn column(a: &AttentionCombine, token: u32, col: u32) -> f32 {
    let head = gpu::div_u32(col, a.head_dim);
    let dim = col - head * a.head_dim;
    let mut n_splits = 1;
    if a.n_splits > 1 {
        n_splits = n_splits_of(a.positions.get(token as usize), a.window);
    }
    let sink = sink_in(a.sinks, head) * LOG2_E;
    let first = (token as usize * a.n_heads as usize + head as usize) * a.n_splits as usize;
    gpu::wait_for_previous();

    let state = fold_splits::<8>(n_splits, |split| {
        let at = first + split as usize;
        let value = a.partial_out.get(at * a.head_dim as usize + dim as usize);
        (a.partial_ml.get(at), [value, 0.0])
    });
    with_sink(state, sink)[0]
}

/// The sink of a head: a key whose value is zero. Without sinks it is one that weighs nothing.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn sink_in(sinks: Global<f32>, head: u32) -> f32 {
    if sinks.is_absent() { f32::NEG_INFINITY } else { sinks.get(head as usize) }
}

/// The splits of two columns in their order, `BURST` of them under way together; `part` gives one's (largest
/// score, sum) and values.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn fold_splits<const BURST: usize>(
    n_splits: u32,
    part: impl Fn(u32) -> (U32x2, [f32; 2]),
) -> State<1> {
    let mut state = State::<1>::EMPTY;
    let mut split = 0;
    while split < n_splits {
        let mut parts = [State::<1>::EMPTY; BURST];
        unroll!(i < BURST, {
            if split + (i as u32) < n_splits {
                let (ml, values) = part(split + i as u32);
                parts[i] = state_of(ml, values);
            }
        });
        unroll!(i < BURST, {
            if split + (i as u32) < n_splits {
                state = state.fold(parts[i]);
            }
        });
        split += BURST as u32;
    }
    state
}

/// Splits whose loads are under way together where a warp folds, and as many behind them. Four are slower, and so are 16,
/// likely since only the last of the blocks runs this code, and longer code takes longer to come.
const BURST: u32 = 8;
const _: () = assert!(BURST == 8); // the loops below are written out for so many

/// Shuffles of `fold_splits_of_warp`.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const FOLD_SHUFFLES: u32 = BURST.ilog2() + 2 + 3 * BURST;

/// What a lane has of some splits: of one of them (largest score, sum), of each its two columns.
#[derive(Clone, Copy)]
struct Burst {
    ml: U32x2,
    values: [U32x2; BURST as usize],
}

/// To the bit what `fold_splits` gives, by a whole warp for one row: each lane has two columns, and works out
/// what one split and the sum before it are multiplied by. The next splits are under way while these are
/// folded. `ml` begins with the row's first split, `values` with the lane's columns of it, and a split has `head_dim`
/// of them. All 32 lanes must reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn fold_splits_of_warp(
    n_splits: u32,
    ml: GlobalMut<U32x2>,
    values: GlobalMut<U32x2>,
    head_dim: u32,
) -> State<1> {
    let lane = gpu::lane();
    let ask = |first: u32| {
        let none = U32x2([f32::NEG_INFINITY.to_bits(), 0]);
        let mut asked = Burst { ml: none, values: [U32x2([0; 2]); BURST as usize] };
        if lane < BURST && first + lane < n_splits {
            asked.ml = ml.get((first + lane) as usize);
        }
        let of_split = head_dim / 2;
        unroll!(i < 8, {
            if first + (i as u32) < n_splits {
                let of_burst = values.from((first * of_split) as usize);
                asked.values[i] = of_burst.get((i as u32 * of_split) as usize);
            }
        });
        asked
    };
    let mut state = State::<1>::EMPTY;
    let mut next = ask(0);
    let mut first = 0;
    while first < n_splits {
        let asked = next;
        next = ask(first + BURST);
        let U32x2([own, sum]) = asked.ml;
        let own = f32::from_bits(own);
        // The largest score up to the lane's split, and before it.
        let mut largest = state.largest.max(own);
        unroll!(i < 3, {
            let earlier = gpu::shuffle(largest, lane.wrapping_sub(1 << i) % gpu::WARP);
            if lane >= 1 << i {
                largest = largest.max(earlier);
            }
        });
        let before = gpu::shuffle(largest, lane.wrapping_sub(1) % gpu::WARP);
        let before = if lane == 0 { state.largest } else { before };
        let (old, new) = (factor(before, largest), factor(own, largest));
        unroll!(four < 2, {
            // The whole warp passes over the last burst's fours that have no split.
            if first + 4 * (four as u32) < n_splits {
                unroll!(i < 4, {
                    let i = 4 * four + i;
                    let [old, new] = [old, new].map(|factor| gpu::shuffle(factor, i as u32));
                    let sum = f32::from_bits(gpu::shuffle_u32(sum, i as u32));
                    if first + (i as u32) < n_splits {
                        let [one, other] = asked.values[i].0.map(f32::from_bits);
                        let later = State { largest: 0.0, sum, values: [[one, other, 0.0, 0.0]] };
                        state = state.fold_by(later, old, new);
                    }
                });
            }
        });
        state.largest = gpu::shuffle(largest, BURST - 1);
        first += BURST;
    }
    state
}

/// A state of two columns.
#[inline(always)]
pub(super) fn state_of(U32x2([largest, sum]): U32x2, [one, other]: [f32; 2]) -> State<1> {
    State {
        largest: f32::from_bits(largest),
        sum: f32::from_bits(sum),
        values: [[one, other, 0.0, 0.0]],
    }
}

/// The columns' results, `sink` in log2.
#[inline(always)]
pub(super) fn with_sink(state: State<1>, sink: f32) -> [f32; 2] {
    let state = state.fold(State { largest: sink, sum: 1.0, values: [[0.0; 4]] });
    let part = gpu::reciprocal(state.sum);
    [state.values[0][0] * part, state.values[0][1] * part]
}
