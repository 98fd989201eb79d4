//! Attention of a decode step, a token a sequence, with what else stands there around it in one launch:
//! the rope of queries and of the new key, the way of the new key and value into the cache, and the last
//! fold. To the bit what `rope_kv`, `attention` and `attention_combine` do one after another.

use super::chunk::Chunk;
use super::combine::{fold_splits, fold_splits_of_warp, n_splits_of, sink_in, state_of, with_sink};
use super::pass::{head_lanes, heads_at_once, lane_dim, share_no_queries, share_query};
use super::products::Multiplied;
use super::{
    Arguments, Passes, Scratch, Tile, first_key, over_splits, row_threads, rows, store_partial,
};
#[cfg(not(target_arch = "nvptx64"))]
use super::{
    combine::FOLD_SHUFFLES,
    pass::{matrix_ops, shuffles},
};
use crate::fixed16::{BLOCK_COLS, EncodedBlock, RowsMut, TILE_COLS};
use crate::gpu::{self, Bf16, F16, Global, GlobalMut, U32x2, U32x4};
use crate::kv_cache::{Cached, PAGE, Shape, table_entry};
use core::f32::consts::LOG2_E;

/// What the kernels of every cache type and head size take.
#[derive(Clone, Copy)]
struct Around<E: Cached> {
    attention: Arguments<E>,
    new_keys: GlobalMut<E>,
    new_values: GlobalMut<E>,
    cos_sin: Global<f32>,
    tiles: Global<U32x4>,
    sinks: Global<f32>,
    arrivals: GlobalMut<u32>,
    out: RowsMut,
    q_cols: u32,
    kv_cols: u32,
    rot_dim: u32,
    adjacent: u32,
    block_splits: u32,
}

impl<E: Cached> Around<E> {
    /// A token's position, from where the block has read it before.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn position_of(&self, token: u32) -> u32 {
        self.tiles.from(token as usize).cast::<u32>().get(3)
    }
}

/// Whether rows of these heads are for this kernel: blocks of their columns, padding included, are of one
/// head each, and four neighbouring dims turn alike.
pub const fn is_for(n_heads: u32, head_dim: u32, rot_dim: u32) -> bool {
    head_dim.is_multiple_of(BLOCK_COLS)
        && (n_heads * head_dim).is_multiple_of(TILE_COLS)
        && rot_dim.is_multiple_of(8)
}

/// The head of a row that does not exist.
const NO_HEAD: u32 = u32::MAX;
/// Splits that each lane folds for itself: where a warp's way of sharing the work would be the longer one.
const FEW_SPLITS: usize = 4;

/// Shuffles by which the columns of two blocks, two neighbours a lane, come to the lanes of their own.
#[cfg(not(target_arch = "nvptx64"))]
const COLUMN_SHUFFLES: u32 = 4;

/// A head that some lanes bring: 0 the new key, 1 its value, then the block's rows.
struct Turn {
    turn: u32,
    /// Its first in a token's row.
    column: u32,
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn decode<E: Multiplied, const D: usize, const R: usize, const AHEAD: usize>(around: Around<E>) {
    let a = around.attention;
    let token = gpu::block_x();
    // Loads that need none of the others come first, position and sequence in one: the compiler puts a load that a branch
    // doesn't need behind it.
    let row_chunk = gpu::quotient(gpu::block_y(), a.n_kv_heads);
    let kv_head = gpu::block_y() - row_chunk * a.n_kv_heads;
    // A thread of each row knows its head, and what it sees.
    let row_at = gpu::thread_x() / row_threads::<R>();
    let in_group = row_chunk * R as u32 + row_at;
    let has_row = gpu::thread_x().is_multiple_of(row_threads::<R>()) && in_group < a.group;
    let head = kv_head * a.group + in_group;
    let sink = if has_row { gpu::anew(sink_in(around.sinks, head).to_bits()) } else { 0 };
    let U32x4([_, _, sequence, position]) = around.tiles.whole(token as usize);
    let tile = Tile {
        first_token: token,
        n_tokens: 1,
        sequence,
        kv_head,
        position,
        first_key: first_key(position, a.window),
        last_key: position,
        first_new: position,
        has_new: true,
    };
    let passes = Passes::of_block(&tile, around.block_splits);
    if passes.are_none(&tile) {
        gpu::wait_for_previous();
        return; // the whole block leaves, which lets the next launch start too
    }
    let scratch = Scratch::new::<D, R>();
    // Before the keys are asked for: it waits for the sink, and the machine can't tell a load from those behind it.
    if gpu::thread_x().is_multiple_of(row_threads::<R>()) {
        let head = if has_row { head } else { NO_HEAD };
        scratch.heads.set(row_at, head);
        scratch.sinks.set(row_at, f32::from_bits(sink));
        let seen = if has_row { [tile.first_key, position] } else { [1, 0] };
        scratch.visible.set(row_at, U32x2(seen));
    }
    let mut asked = Chunk::<E, AHEAD>::find(&a, &tile, passes.first_chunk(&tile, passes.first));
    asked.ask::<D>(&a, &tile);
    let turning = [0, 128].map(|first| Quad::ask(&around, position, first + lane_dim::<D>()));
    let page = a.pages.get(table_entry(sequence, position / PAGE, a.pages_per_sequence));
    let n_rows = a.group - row_chunk * R as u32;
    let n_rows = if n_rows < R as u32 { n_rows } else { R as u32 };
    share_no_queries::<E, D, R>(n_rows, scratch);
    let steps_row = a.qkv.from(token as usize * a.row_stride as usize);
    let new = New { page, stores: row_chunk == 0 };
    // The new key, its value, then the queries of the rows; by warps, which stay together.
    let turn_of_lane = |first: u32| {
        let turn = first + gpu::lane() / head_lanes::<D>();
        let in_chunk = (row_chunk * R as u32 + turn).wrapping_sub(2);
        let column = match turn {
            0 => around.q_cols + tile.kv_head * a.head_dim,
            1 => around.q_cols + around.kv_cols + tile.kv_head * a.head_dim,
            _ => (tile.kv_head * a.group + in_chunk) * a.head_dim,
        };
        // Held in its place by `anew`: the first one is found before the wait.
        Turn { turn, column: gpu::anew(column) }
    };
    let mut first = gpu::warp() * (gpu::WARP / head_lanes::<D>());
    let mut next = turn_of_lane(first);
    // What was read so far no launch of the step writes; the launch before writes q, k and v.
    gpu::wait_for_previous();
    // Not before: the weights that the next launch asks for would be in the way of the last ones of the launch before.
    gpu::let_next_start();

    while first < n_rows + 2 {
        let Turn { turn, column } = next;
        let is_there = if turn < 2 { passes.have_last(&tile) } else { turn < n_rows + 2 };
        let mut quads = [[0.0; 4]; 2];
        unroll!(i < 2, {
            let quad = &turning[i];
            if is_there && 128 * i < D && quad.dim < a.head_dim {
                let head = steps_row.from(column as usize);
                quads[i] = quad.turned(head, around.adjacent != 0, turn != 1);
            }
        });
        unroll!(i < 2, {
            let dim = lane_dim::<D>() + 128 * i as u32;
            if turn < 2 && is_there && 128 * i < D && dim < a.head_dim {
                new.bring(&around, &tile, turn == 0, (dim, quads[i]), scratch);
            }
        });
        share_query::<E, D, R>(&a, (turn.wrapping_sub(2), n_rows), quads, scratch);
        first += heads_at_once::<D>();
        next = turn_of_lane(first);
    }
    gpu::sync_block(); // queries, what they see and what is new are visible to every warp

    // Finds out anew what it needs: a pass has no registers to spare for it.
    let keep = |split: u32, ml: U32x2| {
        let position = around.position_of(gpu::block_x());
        if n_splits_of(position, a.window) <= around.block_splits {
            return false;
        }
        let head = scratch.heads.get(gpu::thread_x() / row_threads::<R>());
        if head != NO_HEAD {
            let token = (gpu::block_x(), position);
            store_partial::<E, D, R>(&a, token, head, split, ml, scratch);
        }
        true
    };
    let ml = over_splits::<E, D, R, AHEAD>(&a, &tile, passes, asked, scratch, keep);
    finish::<E, D, R>(&around, ml, scratch);
}

/// Writes the block's rows, which are in `ml` and `Scratch::folded` where the block has all splits. Else the
/// last of the blocks that share them folds what they have stored.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn finish<E: Multiplied, const D: usize, const R: usize>(
    around: &Around<E>,
    ml: U32x2,
    scratch: Scratch,
) {
    let a = &around.attention;
    let thread = gpu::anew(gpu::thread_x()); // found anew, so that a pass need not keep it
    let (token, row_at) = (gpu::block_x(), thread / row_threads::<R>());
    let position = around.position_of(token);
    let n_splits = n_splits_of(position, a.window);
    let alone = n_splits <= around.block_splits;
    let n_blocks = if around.block_splits == 1 {
        n_splits
    } else {
        gpu::quotient(n_splits - 1, around.block_splits) + 1
    };
    let (head, sink) = (scratch.heads.get(row_at), scratch.sinks.get(row_at));
    if alone {
        // The rows are visible to the warps that write them: each row's own.
        if row_threads::<R>() == gpu::WARP {
            gpu::sync_warp();
        } else {
            gpu::sync_block();
        }
    } else {
        gpu::sync_block(); // the block's part is complete
        if thread == 0 {
            let at = (token * gpu::grid_y() + gpu::block_y()) as usize;
            let before = gpu::arrive(around.arrivals, at, n_blocks);
            scratch.visible.set(0, U32x2([before, 0]));
        }
        gpu::sync_block(); // whether the block is the last is known, and if so the others' parts are there
        if scratch.visible.get(0).0[0] + 1 < n_blocks {
            return; // the whole block leaves
        }
    }

    // A warp or two a row, two blocks of its columns at a time, of which a lane has two neighbours: a load each; no
    // block barrier below.
    let row_warps = row_threads::<R>() / gpu::WARP;
    let n_row_blocks = a.head_dim / BLOCK_COLS;
    let mut block = 2 * (thread / gpu::WARP % row_warps);
    while head != NO_HEAD && block < n_row_blocks {
        // Where there is no second block, half of the lanes do the same as the others.
        let has_other = block + 1 < n_row_blocks;
        let lane = thread % gpu::WARP;
        let pair = if has_other { lane } else { lane % (gpu::WARP / 2) };
        let pair = block * (BLOCK_COLS / 2) + pair;
        let state = if alone {
            let folded = scratch.folded.cast::<U32x2>().from(row_at * (D / 2) as u32);
            state_of(ml, folded.get(pair).0.map(f32::from_bits))
        } else {
            let first = (token * a.n_heads() + head) as usize * a.n_splits as usize;
            let ml = a.partial_ml.from(first);
            let values = a.partial_out.from(first * a.head_dim as usize).cast::<U32x2>();
            let values = values.from(pair as usize);
            if n_splits <= FEW_SPLITS as u32 {
                fold_splits::<FEW_SPLITS>(n_splits, |split| {
                    let values = values.get((split * (a.head_dim / 2)) as usize);
                    (ml.get(split as usize), values.0.map(f32::from_bits))
                })
            } else {
                fold_splits_of_warp(n_splits, ml, values, a.head_dim)
            }
        };
        let [even, odd] = with_sink(state, sink * LOG2_E);
        // The lane's column of each block.
        let values = [0, gpu::WARP / 2].map(|first| {
            let [even, odd] = [even, odd].map(|v| gpu::shuffle(v, first + lane / 2));
            if lane.is_multiple_of(2) { even } else { odd }
        });
        let encoded = values.map(EncodedBlock::of);
        around.out.store_encoded(token, head * n_row_blocks + block, values[0], encoded[0]);
        if has_other {
            let block = head * n_row_blocks + block + 1;
            around.out.store_encoded(token, block, values[1], encoded[1]);
        }
        block += 2 * row_warps;
    }
}

/// Four neighbouring dims of a head, which a lane turns: all of them, as the first or the second of their pairs or as
/// two pairs, or none.
#[derive(Clone, Copy)]
struct Quad {
    /// The first of the dims.
    dim: u32,
    /// The first of those that are the others of their pairs: their own, if neighbours are pairs.
    other: u32,
    /// (cosine, sine) of their pairs' angles, two each; if neighbours are pairs, of both twice.
    angles: [U32x4; 2],
    /// The sign that changes a sine's for the first of a pair.
    minus: u32,
}

const SIGN: u32 = 1 << 31;

impl Quad {
    /// Asks for what turns the dims from `dim` on, at a position.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ask<E: Cached>(around: &Around<E>, position: u32, dim: u32) -> Quad {
        // Dims that do not turn turn by nothing.
        const NOTHING: U32x4 = U32x4([1f32.to_bits(), 0, 1f32.to_bits(), 0]);
        let mut quad = Quad { dim, other: dim, angles: [NOTHING; 2], minus: 0 };
        if !around.cos_sin.is_absent() && dim < around.rot_dim {
            let half = around.rot_dim / 2;
            let of_position = around.cos_sin.cast::<U32x4>().from((position * (half / 2)) as usize);
            let is_second = dim >= half;
            // Both loads either way: what one of them would leave as it is waits for the other's.
            let mut places = [dim / 4; 2];
            if around.adjacent == 0 {
                quad.other = if is_second { dim - half } else { dim + half };
                quad.minus = if is_second { 0 } else { SIGN };
                let first = if is_second { quad.other } else { dim };
                places = [first / 2, first / 2 + 1];
            }
            quad.angles = places.map(|i| of_position.get(i as usize));
        }
        quad
    }

    /// Cosine of each dim's angle, and its sine with the sign that it has in the dim's sum. Whoever takes them waits for
    /// what was asked for, so not before the dims are under way.
    #[inline(always)]
    fn angles(&self, adjacent: bool) -> [(f32, f32); 4] {
        // Held in its place by `anew`: the compiler changes the signs right behind the loads else, and waits there.
        let [one, other] = self.angles.map(|U32x4(angles)| angles.map(gpu::anew));
        let ([cos0, sin0, cos1, sin1], [cos2, sin2, cos3, sin3]) = (one, other);
        let angles = if adjacent {
            [(cos0, sin0 ^ SIGN), (cos0, sin0), (cos1, sin1 ^ SIGN), (cos1, sin1)]
        } else {
            let minus = self.minus;
            [(cos0, sin0 ^ minus), (cos1, sin1 ^ minus), (cos2, sin2 ^ minus), (cos3, sin3 ^ minus)]
        };
        angles.map(|(cos, sin)| (f32::from_bits(cos), f32::from_bits(sin)))
    }

    /// The dims of the head that `head` begins with, and with `turns` as `rope::turn` turns them; all loads
    /// are under way at once.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn turned(&self, head: Global<f32>, adjacent: bool, turns: bool) -> [f32; 4] {
        let four = |dim: u32| head.cast::<U32x4>().get((dim / 4) as usize).0.map(f32::from_bits);
        let (values, others) = (four(self.dim), four(self.other));
        let angles = self.angles(adjacent);
        let mut turned = values;
        unroll!(j < 4, {
            let (cos, sin) = angles[j];
            let other = if adjacent { others[j ^ 1] } else { others[j] };
            turned[j] = gpu::fma(values[j], cos, other * sin);
        });
        if turns { turned } else { values }
    }
}

/// The step's key and value of a head.
#[derive(Clone, Copy)]
struct New {
    page: u32,
    /// Whether this block brings them into the cache: it is one of them that does.
    stores: bool,
}

impl New {
    /// Leaves four dims, from `dim` on, of the new key or else of its value in shared memory, and in the cache.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn bring<E: Cached>(
        self,
        around: &Around<E>,
        tile: &Tile,
        is_key: bool,
        (dim, values): (u32, [f32; 4]),
        scratch: Scratch,
    ) {
        let Arguments { n_kv_heads, head_dim, .. } = around.attention;
        let shape = Shape { n_kv_heads, head_dim };
        let values = values.map(E::from_f32);
        let row = if is_key { scratch.new_key } else { scratch.new_value };
        E::share(row, dim / 4, values);
        if self.stores {
            let cache = if is_key { around.new_keys } else { around.new_values };
            let cache = cache.from(shape.head(self.page, tile.kv_head));
            let slot = tile.position % PAGE;
            unroll!(j < 4, {
                let dim = dim + j as u32;
                let at = if is_key { shape.k(slot, dim) } else { shape.v(slot, dim) };
                cache.set(at as usize, values[j]);
            });
        }
    }
}

macro_rules! entries {
    ($($cache:ident, $dims:literal, $attention:ident, $attention_blocks:literal, $attention_ahead:literal,
      $name:ident, $blocks:literal, $ahead:literal;)*) => {$(
        /// For a cache of this type and head dims up to this size.
        pub mod $name {
            use super::*;

            kernel! {
                /// Attention of a step with a token a sequence, from q, k and v to rows for the next
                /// product; grid (tokens, `n_kv_heads * row_chunks(group, head_dim)`,
                /// `n_splits / block_splits`, rounded up).
                pub fn $name = run, block crate::attention::BLOCK, shared crate::attention::Shared<$dims, { rows($dims) }>,
                    registers 256 / $blocks, barriers 5 + (rows($dims) < 8) as u32,
                    shuffles shuffles($dims) + FOLD_SHUFFLES + COLUMN_SHUFFLES, matrix_ops matrix_ops::<$cache, $dims>(),
                    min_blocks $blocks, waits and_lets;
                pub struct Decode {
                    /// [n_tokens, row_stride]: q at column 0, k at `q_cols`, v at `q_cols + kv_cols`,
                    /// none of them rotated; `row_stride` is a multiple of 4
                    qkv: Global<f32>,
                    /// K pages: [n_pages, n_kv_heads, head_dim / 8, PAGE, 8]
                    k_cache: Global<$cache>,
                    /// V pages: [n_pages, n_kv_heads, PAGE, head_dim]
                    v_cache: Global<$cache>,
                    /// `k_cache`, which gets the tokens' keys
                    new_keys: GlobalMut<$cache>,
                    /// `v_cache`, which gets their values
                    new_values: GlobalMut<$cache>,
                    /// [n_positions, rot_dim / 2, 2]; absent: nothing is rotated
                    cos_sin: Global<f32>,
                    /// As `attention` has them, but one a token, whose row of the page table is its own:
                    /// (token, 1, row of the page table, position)
                    tiles: Global<U32x4>,
                    /// [n_sequences, pages_per_sequence]; a ring
                    pages: Global<u32>,
                    /// [n_heads], not scaled; or absent
                    sinks: Global<f32>,
                    /// [n_tokens, n_heads, n_splits, head_dim], where `n_splits` is not 1
                    partial_out: GlobalMut<f32>,
                    /// [n_tokens, n_heads, n_splits] of (largest score in log2, sum)
                    partial_ml: GlobalMut<U32x2>,
                    /// [n_tokens, n_kv_heads * row_chunks(group, head_dim)]: 0, before and after
                    arrivals: GlobalMut<u32>,
                    /// [n_tokens, n_heads * head_dim]
                    values: GlobalMut<f32>,
                    /// The same as codes: [n_tokens, row_code_bytes]
                    codes: GlobalMut<u8>,
                    /// And scale records: [n_tokens, row_scales]
                    scales: GlobalMut<U32x4>,
                    row_stride: u32,
                    q_cols: u32,
                    kv_cols: u32,
                    n_kv_heads: u32,
                    /// Heads of q for each of them
                    group: u32,
                    /// See `is_for`
                    head_dim: u32,
                    /// Dims that turn, the first of the head; a multiple of 8
                    rot_dim: u32,
                    /// 0: pairs (i, i + rot_dim / 2); 1: pairs (2i, 2i + 1)
                    adjacent: u32,
                    pages_per_sequence: u32,
                    /// At least as many as any token meets, or 1 where a block has all of a token's
                    n_splits: u32,
                    /// Splits of a block
                    block_splits: u32,
                    /// Keys that a query sees, itself included; 0: all
                    window: u32,
                    /// Of the scores: 1 / sqrt(head_dim)
                    scale: f32,
                }
            }

            #[inline(always)]
            fn run(a: Decode) {
                decode::<$cache, $dims, { rows($dims) }, $ahead>(Around {
                    attention: Arguments {
                        qkv: a.qkv,
                        k_cache: a.k_cache,
                        v_cache: a.v_cache,
                        pages: a.pages,
                        partial_out: a.partial_out,
                        partial_ml: a.partial_ml,
                        row_stride: a.row_stride,
                        group: a.group,
                        n_kv_heads: a.n_kv_heads,
                        head_dim: a.head_dim,
                        pages_per_sequence: a.pages_per_sequence,
                        n_splits: a.n_splits,
                        window: a.window,
                        scale: a.scale,
                    },
                    new_keys: a.new_keys,
                    new_values: a.new_values,
                    cos_sin: a.cos_sin,
                    tiles: a.tiles,
                    sinks: a.sinks,
                    arrivals: a.arrivals,
                    out: RowsMut {
                        values: a.values,
                        codes: a.codes,
                        scales: a.scales,
                        n_cols: a.group * a.n_kv_heads * a.head_dim,
                    },
                    q_cols: a.q_cols,
                    kv_cols: a.kv_cols,
                    rot_dim: a.rot_dim,
                    adjacent: a.adjacent,
                    block_splits: a.block_splits,
                })
            }
        }
    )*};
}
super::for_each_cache_and_size!(entries);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_whose_dims_do_not_turn_in_eights_are_not_for_this_kernel() {
        for (n_heads, head_dim, rot_dim, expected) in [
            (64, 64, 64, true),
            (25, 32, 0, false),
            (26, 32, 0, true),
            (8, 96, 24, true),
            (8, 64, 20, false),
            (8, 64, 18, false),
            (8, 48, 48, false),
        ] {
            assert_eq!(
                is_for(n_heads, head_dim, rot_dim),
                expected,
                "{n_heads} {head_dim} {rot_dim}"
            );
        }
    }
}
