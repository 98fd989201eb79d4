//! Attention of a decode step, a token a sequence, with what else stands there around it in one launch:
//! the rope of queries and of the new key, the way of the new key and value into the cache, and the last
//! fold. To the bit what `rope_kv`, `attention` and `attention_combine` do one after another.

use super::chunk::Chunk;
use super::combine::{fold_splits, n_splits_of, sink_of, state_of, with_sink};
use super::pass::set_visible;
#[cfg(not(target_arch = "nvptx64"))]
use super::pass::shuffles;
use super::{
    Arguments, BLOCK, Passes, Row, Scratch, Tile, first_key, over_splits, row_threads,
    store_partial,
};
use crate::fixed16::{BLOCK_COLS, RowsMut, TILE_COLS};
use crate::gpu::{self, Bf16, F16, Global, GlobalMut, U32x2, U32x4};
use crate::kv_cache::{Cached, PAGE, Shape, table_entry};
use crate::rope::pair_of;
use core::f32::consts::LOG2_E;

/// What the kernels of every cache type and head size take.
#[derive(Clone, Copy)]
struct Around<E: Cached> {
    attention: Arguments<E>,
    new_keys: GlobalMut<E>,
    new_values: GlobalMut<E>,
    cos_sin: Global<f32>,
    sequences: Global<u32>,
    sinks: Global<f32>,
    arrivals: GlobalMut<u32>,
    out: RowsMut,
    q_cols: u32,
    kv_cols: u32,
    rot_dim: u32,
    adjacent: u32,
    block_splits: u32,
}

/// Whether rows of these heads are for this kernel: blocks of their columns, padding included, are of one
/// head each.
pub const fn is_for(n_heads: u32, head_dim: u32) -> bool {
    head_dim.is_multiple_of(BLOCK_COLS) && (n_heads * head_dim).is_multiple_of(TILE_COLS)
}

/// Query rows of a block: where all blocks run at once, few, so that a warp is done sooner.
pub const ROWS: usize = 2;
/// The same where there are more blocks than that.
pub const DEEP_ROWS: usize = 4;

/// Threads that turn a head: whole warps, so that each has one thing to do.
const fn head_threads<const D: usize>() -> u32 {
    if D as u32 / 4 > gpu::WARP { D as u32 / 4 } else { gpu::WARP }
}

/// The head of a row that does not exist.
const NO_HEAD: u32 = u32::MAX;

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn decode<E: Cached, const D: usize, const R: usize>(around: Around<E>) {
    let a = around.attention;
    let token = gpu::block_x();
    let position = a.positions.get(token as usize);
    let row_chunk = gpu::div_u32(gpu::block_y(), a.n_kv_heads);
    let tile = Tile {
        first_token: token,
        n_tokens: 1,
        sequence: around.sequences.get(token as usize),
        kv_head: gpu::block_y() - row_chunk * a.n_kv_heads,
        position,
        first_key: first_key(position, a.window),
        last_key: position,
        first_new: position,
        has_new: true,
    };
    let passes = Passes::of_block(&tile, around.block_splits);
    if passes.are_none(&tile) {
        gpu::wait_for_previous();
        return; // the whole block leaves
    }
    let scratch = Scratch::new::<D, R>();
    let row = Row::of_thread::<E, R>(&a, &tile, row_chunk);
    let exists = row.token == 0;
    let asked = Chunk::find(&a, &tile, passes.first_chunk(&tile, passes.first));
    asked.ask::<E, D>(&a, &tile, scratch);
    let quad = Quad::of_thread::<E, D>(&around, position);
    let row_at = gpu::thread_x() / row_threads::<R>();
    if gpu::thread_x().is_multiple_of(row_threads::<R>()) {
        let head = if exists { row.head } else { NO_HEAD };
        let sink = sink_of(around.sinks, row.head);
        scratch.of_row.set(row_at, U32x2([head, sink.to_bits()]));
    }
    let page = a.pages.get(table_entry(tile.sequence, position / PAGE, a.pages_per_sequence));
    // What was read so far no launch of the step writes; the launch before writes q, k and v.
    gpu::wait_for_previous();

    let steps_row = a.qkv.from(token as usize * a.row_stride as usize);
    let new = New { page, stores: row_chunk == 0 };
    let group = gpu::div_u32(a.n_heads, a.n_kv_heads);
    let inside = quad.dim < a.head_dim;
    // By threads: the queries of the rows, then the new key, then its value.
    let mut turn = gpu::thread_x() / head_threads::<D>();
    while turn < R as u32 + 2 && quad.dim < D as u32 {
        if turn < R as u32 {
            let in_chunk = row_chunk * R as u32 + turn;
            let mut q = [0.0; 4];
            if in_chunk < group && inside {
                let head = tile.kv_head * group + in_chunk;
                q = quad.turned(steps_row.from((head * a.head_dim) as usize));
            }
            let scale = a.scale * LOG2_E;
            scratch.query.set(turn * (D as u32 / 4) + quad.dim / 4, bits(q.map(|q| q * scale)));
        } else if inside && passes.have_last(&tile) {
            if turn == R as u32 {
                new.bring_key(&around, &tile, quad, steps_row, scratch);
            } else {
                new.bring_value(&around, &tile, quad, steps_row, scratch);
            }
        }
        turn += BLOCK / head_threads::<D>();
    }
    set_visible::<E, R>(&a, &tile, row, scratch);
    gpu::sync_block(); // queries, what they see and what is new are visible to every warp

    // Finds out anew what it needs: a pass has no registers to spare for it.
    let keep = |split: u32, ml: U32x2| {
        let position = a.positions.get(gpu::block_x() as usize);
        if n_splits_of(position, a.window) <= around.block_splits {
            return false;
        }
        let U32x2([head, _]) = scratch.of_row.get(gpu::thread_x() / row_threads::<R>());
        if head != NO_HEAD {
            let token = (gpu::block_x(), position);
            store_partial::<E, D, R>(&a, token, head, split, ml, scratch);
        }
        true
    };
    let ml = over_splits::<E, D, R>(&a, &tile, passes, asked, scratch, keep);
    finish::<E, D, R>(&around, ml, scratch);
}

/// Writes the block's rows, which are in `ml` and `Scratch::folded` where the block has all splits. Else the
/// last of the blocks that share them folds what they have stored.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn finish<E: Cached, const D: usize, const R: usize>(
    around: &Around<E>,
    ml: U32x2,
    scratch: Scratch,
) {
    let a = &around.attention;
    let (token, row_at) = (gpu::block_x(), gpu::thread_x() / row_threads::<R>());
    let position = a.positions.get(token as usize);
    let n_splits = n_splits_of(position, a.window);
    let alone = n_splits <= around.block_splits;
    let n_blocks = if alone {
        1
    } else {
        gpu::div_u32(n_splits + around.block_splits - 1, around.block_splits)
    };
    let U32x2([head, sink]) = scratch.of_row.get(row_at);
    if alone {
        // In place of what the rows see, which nobody needs any more.
        if gpu::thread_x().is_multiple_of(row_threads::<R>()) {
            scratch.visible.set(row_at, ml);
        }
        gpu::sync_block(); // the rows are visible to the warps that write them
    } else {
        gpu::sync_block(); // the block's part is complete
        if gpu::thread_x() == 0 {
            let at = (token * gpu::grid_y() + gpu::block_y()) as usize;
            let before = gpu::arrive(around.arrivals, at, n_blocks);
            scratch.visible.set(0, U32x2([before, 0]));
        }
        gpu::sync_block(); // whether the block is the last is known, and if so the others' parts are there
        if scratch.visible.get(0).0[0] + 1 < n_blocks {
            return; // the whole block leaves
        }
    }

    // A few warps a row, a block of its columns at a time; no block barrier below.
    let mut block = gpu::warp() % (row_threads::<R>() / gpu::WARP);
    while head != NO_HEAD && block * BLOCK_COLS < a.head_dim {
        let dim = block * BLOCK_COLS + gpu::lane();
        let state = if alone {
            let value = scratch.folded.cast::<f32>().get(row_at * D as u32 + dim);
            state_of(scratch.visible.get(row_at), value)
        } else {
            let first = (token as usize * a.n_heads as usize + head as usize) * a.n_splits as usize;
            fold_splits(n_splits, |split| {
                let at = first + split as usize;
                let value = a.partial_out.get(at * a.head_dim as usize + dim as usize);
                (a.partial_ml.get(at), value)
            })
        };
        let value = with_sink(state, f32::from_bits(sink));
        around.out.store_block(token, head * (a.head_dim / BLOCK_COLS) + block, value);
        block += row_threads::<R>() / gpu::WARP;
    }
}

#[inline(always)]
fn bits(values: [f32; 4]) -> U32x4 {
    U32x4(values.map(f32::to_bits))
}

/// Four neighbouring dims of a head, which a thread turns.
#[derive(Clone, Copy)]
struct Quad {
    /// The first of the dims.
    dim: u32,
    /// The other dim of each one's pair.
    others: [u32; 4],
    /// Cosine of each pair's angle, and its sine with the sign that it has in the dim's sum.
    angles: [(f32, f32); 4],
}

impl Quad {
    /// The thread's quad of a head.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn of_thread<E: Cached, const D: usize>(around: &Around<E>, position: u32) -> Quad {
        let dim = 4 * (gpu::thread_x() % head_threads::<D>());
        // Dims that do not turn turn by nothing.
        let mut others = [dim, dim + 1, dim + 2, dim + 3];
        let mut angles = [(1.0, 0.0); 4];
        if !around.cos_sin.is_absent() {
            let n_pairs = around.rot_dim / 2;
            let of_position = around.cos_sin.cast::<U32x2>().from((position * n_pairs) as usize);
            unroll!(j < 4, {
                if dim + (j as u32) < around.rot_dim {
                    let pair = pair_of(dim + j as u32, around.rot_dim, around.adjacent != 0);
                    let U32x2([cos, sin]) = of_position.get(pair.index as usize);
                    let sin = f32::from_bits(sin);
                    others[j] = pair.other;
                    angles[j] = (f32::from_bits(cos), if pair.is_second { sin } else { -sin });
                }
            });
        }
        Quad { dim, others, angles }
    }

    /// The dims as they are, of the head that `head` begins with.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn plain(self, head: Global<f32>) -> [f32; 4] {
        head.cast::<U32x4>().get((self.dim / 4) as usize).0.map(f32::from_bits)
    }

    /// The same, turned as `rope::turn` does; with all loads under way at once.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn turned(self, head: Global<f32>) -> [f32; 4] {
        let mut values = self.plain(head);
        let others = self.others.map(|dim| head.get(dim as usize));
        unroll!(j < 4, {
            let (cos, sin) = self.angles[j];
            values[j] = gpu::fma(values[j], cos, others[j] * sin);
        });
        values
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
    /// Leaves the thread's quad of the new key in shared memory, and in the cache.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn bring_key<E: Cached>(
        self,
        around: &Around<E>,
        tile: &Tile,
        quad: Quad,
        steps_row: Global<f32>,
        scratch: Scratch,
    ) {
        let Arguments { n_kv_heads, head_dim, .. } = around.attention;
        let shape = Shape { n_kv_heads, head_dim };
        let column = around.q_cols + tile.kv_head * head_dim;
        let k = quad.turned(steps_row.from(column as usize)).map(E::from_f32);
        E::share(scratch.new_key, quad.dim / 4, k);
        if self.stores {
            let keys = around.new_keys.from(shape.head(self.page, tile.kv_head));
            let slot = tile.position % PAGE;
            unroll!(j < 4, { keys.set(shape.k(slot, quad.dim + j as u32) as usize, k[j]) });
        }
    }

    /// The same of its value.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn bring_value<E: Cached>(
        self,
        around: &Around<E>,
        tile: &Tile,
        quad: Quad,
        steps_row: Global<f32>,
        scratch: Scratch,
    ) {
        let Arguments { n_kv_heads, head_dim, .. } = around.attention;
        let shape = Shape { n_kv_heads, head_dim };
        let column = around.q_cols + around.kv_cols + tile.kv_head * head_dim;
        let v = quad.plain(steps_row.from(column as usize)).map(E::from_f32);
        E::share(scratch.new_value, quad.dim / 4, v);
        if self.stores {
            let values = around.new_values.from(shape.head(self.page, tile.kv_head));
            let slot = tile.position % PAGE;
            unroll!(j < 4, { values.set(shape.v(slot, quad.dim + j as u32) as usize, v[j]) });
        }
    }
}

macro_rules! entries {
    ($($cache:ident, $dims:literal, $attention:ident, $decode:ident, $deep:ident, $blocks:literal;)*) => {$(
        entry!($cache, $dims, $decode, { ROWS }, $blocks);
        entry!($cache, $dims, $deep, { DEEP_ROWS }, $blocks);
    )*};
}

macro_rules! entry {
    ($cache:ident, $dims:literal, $name:ident, $rows:block, $blocks:literal) => {
        /// For a cache of this type and head dims up to this size.
        pub mod $name {
            use super::*;

            kernel! {
                /// Attention of a step with a token a sequence, from q, k and v to rows for the next
                /// product; grid (tokens, `n_kv_heads * row_chunks(group, rows)`,
                /// `n_splits / block_splits`, rounded up).
                pub fn $name = run, block crate::attention::BLOCK, shared crate::attention::Shared<$dims, $rows>,
                    registers 256 / $blocks, barriers 6,
                    shuffles 10 + shuffles($rows, $dims), matrix_ops 0,
                    min_blocks $blocks, waits later;
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
                    /// [n_tokens]
                    positions: Global<u32>,
                    /// [n_tokens]: row of the page table, each its own
                    sequences: Global<u32>,
                    /// [n_sequences, pages_per_sequence]; a ring
                    pages: Global<u32>,
                    /// [n_heads], not scaled; or absent
                    sinks: Global<f32>,
                    /// [n_tokens, n_heads, n_splits, head_dim], where `n_splits` is not 1
                    partial_out: GlobalMut<f32>,
                    /// [n_tokens, n_heads, n_splits] of (largest score in log2, sum)
                    partial_ml: GlobalMut<U32x2>,
                    /// [n_tokens, n_kv_heads * row_chunks(group, rows)]: 0, before and after
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
                    n_heads: u32,
                    n_kv_heads: u32,
                    /// See `is_for`
                    head_dim: u32,
                    /// Dims that turn, the first of the head; even
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
                decode::<$cache, $dims, $rows>(Around {
                    attention: Arguments {
                        qkv: a.qkv,
                        k_cache: a.k_cache,
                        v_cache: a.v_cache,
                        positions: a.positions,
                        pages: a.pages,
                        partial_out: a.partial_out,
                        partial_ml: a.partial_ml,
                        row_stride: a.row_stride,
                        n_heads: a.n_heads,
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
                    sequences: a.sequences,
                    sinks: a.sinks,
                    arrivals: a.arrivals,
                    out: RowsMut {
                        values: a.values,
                        codes: a.codes,
                        scales: a.scales,
                        n_cols: a.n_heads * a.head_dim,
                    },
                    q_cols: a.q_cols,
                    kv_cols: a.kv_cols,
                    rot_dim: a.rot_dim,
                    adjacent: a.adjacent,
                    block_splits: a.block_splits,
                })
            }
        }
    };
}
super::for_each_cache_and_size!(entries);
