//! Causal attention over the paged cache, in the flash manner: grouped heads, sliding window,
//! sinks. One algorithm for decode, prefill and everything between.
//!
//! The context is cut into splits of 256 keys by absolute position. Each of a split's eight chunks of
//! 32 keys has a warp, and splits are folded in ascending order by one function, `State::fold`, whoever
//! calls it: so a token's bits depend neither on the batch nor on the launch.
//!
//! Scores and weighted values are products of the tensor cores (`products`). Scores are kept in units of log2,
//! since the machine's exponential is 2^x.

mod chunk;
mod combine;
pub mod decode;
mod pass;
mod products;
mod state;

pub use combine::{AttentionCombine, BLOCK_COLS, combine_blocks};

use crate::gpu::{self, Bf16, F16, Global, GlobalMut, SharedArray, U32x2, U32x4};
use crate::kv_cache::{Cached, PAGE};
use chunk::Chunk;
use pass::{chunk_pass, place, store_query};
use products::Multiplied;
use state::{State, base};

/// Query rows of a block: (token, head) pairs of one KV head, tokens outermost. As many as a product of the
/// tensor cores takes, or as shared memory has room for.
pub const fn rows(head_dim: u32) -> usize {
    if head_dim <= 128 { 8 } else { 4 }
}
/// Keys of a split.
pub const SPLIT: u32 = 256;
/// Chunks of a page's keys in a split.
const SPLIT_CHUNKS: u32 = SPLIT / PAGE;
/// Threads of a block: every chunk of a split is under way at once.
pub const BLOCK: u32 = SPLIT_CHUNKS * gpu::WARP;
/// Threads that share a row, of `R`, when the block's parts are merged.
const fn row_threads<const R: usize>() -> u32 {
    BLOCK / R as u32
}

/// Consecutive tokens of a sequence that a tile may hold, for `group` heads per KV head.
pub const fn tile_tokens(group: u32, head_dim: u32) -> u32 {
    let rows = rows(head_dim) as u32;
    if group < rows { rows / group } else { 1 }
}

/// Blocks that share a tile and a KV head: more than one where `group` exceeds a block's rows.
pub const fn row_chunks(group: u32, head_dim: u32) -> u32 {
    group.div_ceil(rows(head_dim) as u32)
}

/// The largest window whose keys, wherever they lie, one pass of a block takes.
pub const ONE_PASS_WINDOW: u32 = SPLIT - PAGE + 1;

/// The first key that a query at `position` sees; a window of 0 is none.
#[inline(always)]
pub const fn first_key(position: u32, window: u32) -> u32 {
    if window > 0 { (position + 1).saturating_sub(window) } else { 0 }
}

/// Splits that a tile at positions `first..=last` meets: what `n_splits` must not be below, unless
/// it is 1.
pub const fn tile_splits(first: u32, last: u32, window: u32) -> u32 {
    last / SPLIT - first_key(first, window) / SPLIT + 1
}

/// Shared memory for head dims up to `D` and `R` rows.
#[repr(C, align(16))]
pub struct Shared<const D: usize, const R: usize> {
    /// Scaled queries in their 16-bit parts, two dims a word; zeroes behind the head's dims and in rows that don't
    /// exist. The first two parts of four dims are a unit, as a product takes them: [row][dim / 4][dim / 2 % 2][part];
    /// behind them the third: [row][dim].
    query: [[[u16; D]; R]; 3],
    /// What scores are multiplied by, so that the query's scale goes out again.
    unscale: [f32; R],
    /// (first, last) key that each row sees; (1, 0) in rows that don't exist.
    visible: [[u32; 2]; R],
    /// [row][chunk of the split]
    largest: [[f32; SPLIT_CHUNKS as usize]; R],
    /// [row][chunk of the split]
    sum: [[f32; SPLIT_CHUNKS as usize]; R],
    /// [chunk of the split][row][dim]: weighted values, times `Multiplied::WEIGHT_SCALE`; by `place`.
    parts: [[[f32; D]; R]; SPLIT_CHUNKS as usize],
    /// Weighted values of the splits so far.
    folded: [[f32; D]; R],
    /// Head of each row of one token.
    heads: [u32; R],
    /// Its sink.
    sinks: [f32; R],
    /// A key that is not in the cache yet, as the cache has it.
    new_key: [f32; D],
    /// Its value.
    new_value: [f32; D],
}

/// Views of `Shared`.
#[derive(Clone, Copy)]
struct Scratch {
    query: SharedArray<U32x4>,
    unscale: SharedArray<f32>,
    visible: SharedArray<U32x2>,
    /// Units of four chunks.
    largest: SharedArray<U32x4>,
    sum: SharedArray<U32x4>,
    parts: SharedArray<U32x4>,
    folded: SharedArray<U32x4>,
    heads: SharedArray<u32>,
    sinks: SharedArray<f32>,
    new_key: SharedArray<U32x4>,
    new_value: SharedArray<U32x4>,
}

impl Scratch {
    #[inline(always)]
    fn new<const D: usize, const R: usize>() -> Scratch {
        Scratch {
            query: shared!(Shared<D, R>, query).cast(),
            unscale: shared!(Shared<D, R>, unscale).cast(),
            visible: shared!(Shared<D, R>, visible).cast(),
            largest: shared!(Shared<D, R>, largest).cast(),
            sum: shared!(Shared<D, R>, sum).cast(),
            parts: shared!(Shared<D, R>, parts).cast(),
            folded: shared!(Shared<D, R>, folded).cast(),
            heads: shared!(Shared<D, R>, heads).cast(),
            sinks: shared!(Shared<D, R>, sinks).cast(),
            new_key: shared!(Shared<D, R>, new_key).cast(),
            new_value: shared!(Shared<D, R>, new_value).cast(),
        }
    }
}

/// Where a warp leaves its part of the rows: [row][dim], by `place`.
#[inline(always)]
fn part_of_warp<const D: usize, const R: usize>(scratch: Scratch, warp: u32) -> SharedArray<U32x4> {
    scratch.parts.from(warp * (R * D / 4) as u32)
}

/// What the kernels of every cache type and head size take.
#[derive(Clone, Copy)]
struct Arguments<E: Cached> {
    qkv: Global<f32>,
    k_cache: Global<E>,
    v_cache: Global<E>,
    pages: Global<u32>,
    partial_out: GlobalMut<f32>,
    partial_ml: GlobalMut<U32x2>,
    row_stride: u32,
    n_kv_heads: u32,
    group: u32,
    head_dim: u32,
    pages_per_sequence: u32,
    n_splits: u32,
    window: u32,
    scale: f32,
}

impl<E: Cached> Arguments<E> {
    #[inline(always)]
    fn n_heads(&self) -> u32 {
        self.group * self.n_kv_heads
    }
}

/// The block's queries.
#[derive(Clone, Copy)]
struct Tile {
    first_token: u32,
    n_tokens: u32,
    sequence: u32,
    kv_head: u32,
    /// Position of the first token.
    position: u32,
    /// First key that any of its tokens sees.
    first_key: u32,
    /// Last key that any of its tokens sees.
    last_key: u32,
    /// Keys before this one were there before the step.
    first_new: u32,
    /// Whether the last key is not in the cache, but `Scratch` has it.
    has_new: bool,
}

/// A query row: a head of a token of the tile.
#[derive(Clone, Copy)]
struct Row {
    /// Token of the tile; `n_tokens` or more where the row does not exist.
    token: u32,
    head: u32,
}

impl Row {
    /// Row `at` of the block.
    #[inline(always)]
    fn find<E: Cached, const R: usize>(
        a: &Arguments<E>,
        tile: &Tile,
        row_chunk: u32,
        at: u32,
    ) -> Row {
        let in_chunk = row_chunk * R as u32 + at;
        let token = gpu::quotient(in_chunk, a.group);
        Row { token, head: tile.kv_head * a.group + in_chunk - token * a.group }
    }
}

/// A block's splits, and how it passes over their chunks.
#[derive(Clone, Copy)]
struct Passes {
    first: u32,
    end: u32,
    /// All the chunks that are seen, of two splits, find warps of their own: one pass.
    at_once: bool,
}

impl Passes {
    /// The `block_splits` splits of the tile, or fewer, that the grid's z chooses.
    #[inline(always)]
    fn of_block(tile: &Tile, block_splits: u32) -> Passes {
        let first = tile.first_key / SPLIT + gpu::block_z() * block_splits;
        let (end, last) = (first.saturating_add(block_splits), tile.last_key / SPLIT);
        let end = if end < last + 1 { end } else { last + 1 };
        let n_chunks = tile.last_key / PAGE - tile.first_key / PAGE + 1;
        // With more tokens there are no registers for it.
        let at_once = tile.has_new && end > first + 1 && n_chunks <= SPLIT_CHUNKS;
        Passes { first, end, at_once }
    }

    /// Whether the tile does not see the block's split.
    #[inline(always)]
    fn are_none(self, tile: &Tile) -> bool {
        self.first > tile.last_key / SPLIT
    }

    /// Whether the tile's last key is the block's.
    #[inline(always)]
    fn have_last(self, tile: &Tile) -> bool {
        self.end > tile.last_key / SPLIT
    }

    /// The first chunk of the pass that has `split`.
    #[inline(always)]
    fn first_chunk(self, tile: &Tile, split: u32) -> u32 {
        if self.at_once { tile.first_key / PAGE } else { split * SPLIT_CHUNKS }
    }
}

impl Tile {
    /// The chunks of a split that any of its tokens sees.
    #[inline(always)]
    fn chunks(&self, split: u32) -> (u32, u32) {
        let start = split * SPLIT_CHUNKS;
        let end = self.last_key / PAGE + 1 - start;
        let first = (self.first_key / PAGE).saturating_sub(start);
        (first, if end < SPLIT_CHUNKS { end } else { SPLIT_CHUNKS })
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn attention<E: Multiplied, const D: usize, const R: usize, const AHEAD: usize>(
    a: Arguments<E>,
    (tiles, positions): (Global<U32x4>, Global<u32>),
) {
    let U32x4([first_token, n_tokens, sequence, first_new]) = tiles.get(gpu::block_x() as usize);
    if n_tokens == 0 {
        gpu::wait_for_previous();
        return; // the whole block leaves: every thread reads the same tile
    }
    let position = positions.get(first_token as usize);
    let row_chunk = gpu::quotient(gpu::block_y(), a.n_kv_heads);
    let tile = Tile {
        first_token,
        n_tokens,
        sequence,
        kv_head: gpu::block_y() - row_chunk * a.n_kv_heads,
        position,
        first_key: first_key(position, a.window),
        last_key: position + n_tokens - 1,
        first_new,
        has_new: false,
    };
    let passes = Passes::of_block(&tile, if a.n_splits == 1 { u32::MAX } else { 1 });
    if passes.are_none(&tile) {
        gpu::wait_for_previous();
        return; // the whole block leaves
    }

    let scratch = Scratch::new::<D, R>();
    let mut asked = Chunk::<E, AHEAD>::find(&a, &tile, passes.first_chunk(&tile, passes.first));
    if asked.is_old(&tile) {
        asked.ask::<D>(&a, &tile);
    }
    // What was read so far no launch of the step writes; the launch before writes queries and new keys.
    gpu::wait_for_previous();
    if !asked.is_old(&tile) {
        asked.ask::<D>(&a, &tile);
    }
    store_query::<E, D, R>(&a, &tile, row_chunk, scratch);
    gpu::sync_block(); // queries and what they see are visible to every warp

    let ml = over_splits::<E, D, R, AHEAD>(&a, &tile, passes, asked, scratch, |_, _| false);
    let row = Row::find::<E, R>(&a, &tile, row_chunk, gpu::thread_x() / row_threads::<R>());
    if row.token < n_tokens {
        let token = (first_token + row.token, position + row.token);
        store_partial::<E, D, R>(&a, token, row.head, passes.first, ml, scratch);
    }
}

/// Folds the block's splits: (largest score, sum) of the thread's row; `Scratch::folded` gets its values.
/// `asked` is of the first pass. `keep` may take a split's part, and what comes then is not folded into it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn over_splits<E: Multiplied, const D: usize, const R: usize, const AHEAD: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    passes: Passes,
    mut asked: Chunk<E, AHEAD>,
    scratch: Scratch,
    keep: impl Fn(u32, U32x2) -> bool,
) -> U32x2 {
    let mut so_far = SoFar { state: State::EMPTY, is_kept: true };
    let mut split = passes.first;
    loop {
        chunk_pass::<E, D, R, AHEAD>(a, tile, &mut asked, scratch);
        gpu::sync_block(); // the warps' parts are visible
        if passes.at_once || split + 1 == passes.end {
            break;
        }
        // The addresses are found anew each time: a pass has no registers to spare for them.
        let (sequence, kv_head) = (gpu::anew(tile.sequence), gpu::anew(tile.kv_head));
        let first = passes.first_chunk(tile, split + 1);
        asked = Chunk::find(a, &Tile { sequence, kv_head, ..*tile }, first);
        asked.ask::<D>(a, tile);
        so_far.add::<E, D, R>(tile, split, scratch, &keep);
        gpu::sync_block(); // read by everyone; the next pass may overwrite them
        split += 1;
    }
    // The last pass by itself: it is the only one of most blocks, and nothing need be kept for another.
    while split < passes.end {
        so_far.add::<E, D, R>(tile, split, scratch, &keep);
        split += 1;
    }
    so_far.state.ml()
}

/// What a thread's row has seen so far. The values are in `Scratch::folded`: a pass has no registers to spare
/// for them.
struct SoFar {
    state: State<1>,
    /// Whether there is nothing, or `keep` took it.
    is_kept: bool,
}

impl SoFar {
    /// Folds a split, whose parts are in shared memory, into it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn add<E: Multiplied, const D: usize, const R: usize>(
        &mut self,
        tile: &Tile,
        split: u32,
        scratch: Scratch,
        keep: impl Fn(u32, U32x2) -> bool,
    ) {
        // Found anew each time, so that a pass need not keep it.
        let thread = gpu::anew(gpu::thread_x());
        let (row, thread) = (thread / row_threads::<R>(), thread % row_threads::<R>());
        let own = row * (D as u32 / 4) + thread;
        let has_columns = thread < D as u32 / 4;
        let mut state = self.state;
        if self.is_kept {
            state = State::EMPTY;
        } else if has_columns {
            state.values[0] = scratch.folded.get(own).0.map(f32::from_bits);
        }
        state = state.fold(merge::<E, D, R>(row, thread, tile.chunks(split), scratch));
        if has_columns {
            scratch.folded.set(own, U32x4(state.values[0].map(f32::to_bits)));
        }
        self.is_kept = keep(split, state.ml());
        self.state = state;
    }
}

/// The parts of chunks `first..end` of a split, of a row, as one: added in the order of the chunks. `thread`
/// of the row's threads has its columns `4 thread` and the three behind it, where the head has them.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn merge<E: Multiplied, const D: usize, const R: usize>(
    row: u32,
    thread: u32,
    (first, end): (u32, u32),
    scratch: Scratch,
) -> State<1> {
    const { assert!(D as u32 <= 4 * row_threads::<R>()) };
    let at = if thread < D as u32 / 4 { thread } else { 0 };
    let of_row = row * (SPLIT_CHUNKS / 4);
    let mut largest = eight(scratch.largest, of_row);
    let mut all = f32::NEG_INFINITY;
    unroll!(chunk < 8, {
        // What the others hold counts nothing.
        if (chunk as u32) < first || chunk as u32 >= end {
            largest[chunk] = f32::NEG_INFINITY;
        }
        all = all.max(largest[chunk]);
    });
    let factors = largest.map(|largest| gpu::exp2(largest - base(all)));
    let mut merged = State { largest: all, ..State::EMPTY };
    let sums = eight(scratch.sum, of_row);
    unroll!(chunk < 8, { merged.sum = gpu::fma(sums[chunk], factors[chunk], merged.sum) });
    unroll!(chunk < 8, {
        let of_values = factors[chunk] * (1.0 / E::WEIGHT_SCALE);
        let part = part_of_warp::<D, R>(scratch, chunk as u32).get(place::<D>(row, at));
        let part = part.0.map(f32::from_bits);
        unroll!(j < 4, {
            merged.values[0][j] = gpu::fma(part[j], of_values, merged.values[0][j]);
        });
    });
    merged
}

/// Eight numbers, from two units on.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn eight(of: SharedArray<U32x4>, first: u32) -> [f32; SPLIT_CHUNKS as usize] {
    let (U32x4([a, b, c, d]), U32x4([e, f, g, h])) = (of.get(first), of.get(first + 1));
    [a, b, c, d, e, f, g, h].map(f32::from_bits)
}

/// Writes the thread's columns of a row, folded, where `attention_combine` looks for them.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_partial<E: Cached, const D: usize, const R: usize>(
    a: &Arguments<E>,
    (token, position): (u32, u32),
    head: u32,
    split: u32,
    ml: U32x2,
    scratch: Scratch,
) {
    let first_split = first_key(position, a.window) / SPLIT;
    // The tile meets splits that this token does not.
    if a.n_splits > 1 && (split < first_split || split > position / SPLIT) {
        return;
    }
    let slot = if a.n_splits > 1 { split - first_split } else { 0 };
    let head = token as usize * a.n_heads() as usize + head as usize;
    let at = head * a.n_splits as usize + slot as usize;
    let thread = gpu::thread_x() % row_threads::<R>();
    if thread == 0 {
        a.partial_ml.set(at, ml);
    }
    let out = a.partial_out.cast::<U32x4>().from(at * (a.head_dim / 4) as usize);
    if thread < D as u32 / 4 && thread < a.head_dim / 4 {
        let row_at = gpu::thread_x() / row_threads::<R>();
        out.set(thread as usize, scratch.folded.get(row_at * (D as u32 / 4) + thread));
    }
}

macro_rules! entries {
    ($($cache:ident, $dims:literal, $name:ident, $blocks:literal, $ahead:literal,
      $decode:ident, $decode_blocks:literal, $decode_ahead:literal;)*) => {$(
        /// For a cache of this type and head dims up to this size.
        pub mod $name {
            use super::*;

            kernel! {
                /// Attention of query tiles over the cache, up to `attention_combine`; grid (tiles,
                /// `n_kv_heads * row_chunks(group, head_dim)`, `n_splits`).
                pub fn $name = run, block BLOCK, shared Shared<$dims, { rows($dims) }>,
                    registers 256 / $blocks, barriers 3,
                    shuffles pass::shuffles($dims), matrix_ops pass::matrix_ops::<$cache, $dims>(),
                    min_blocks $blocks, waits later;
                pub struct Attention {
                    /// [n_tokens, row_stride], q at column 0; `row_stride` is a multiple of 4
                    qkv: Global<f32>,
                    /// K pages: [n_pages, n_kv_heads, head_dim / 8, PAGE, 8]
                    k_cache: Global<$cache>,
                    /// V pages: [n_pages, n_kv_heads, PAGE, head_dim]
                    v_cache: Global<$cache>,
                    /// [n_tokens]
                    positions: Global<u32>,
                    /// (first token, tokens, row of the page table, keys that were there before the
                    /// step) of each tile: up to `tile_tokens(group)` tokens with consecutive positions,
                    /// or none
                    tiles: Global<U32x4>,
                    /// [n_sequences, pages_per_sequence]; a ring
                    pages: Global<u32>,
                    /// [n_tokens, n_heads, n_splits, head_dim]
                    partial_out: GlobalMut<f32>,
                    /// [n_tokens, n_heads, n_splits] of (largest score in log2, sum)
                    partial_ml: GlobalMut<U32x2>,
                    row_stride: u32,
                    n_kv_heads: u32,
                    /// Heads of q for each of them
                    group: u32,
                    head_dim: u32,
                    pages_per_sequence: u32,
                    /// 1: a block folds all splits. More: a block has one split, and there must be
                    /// `tile_splits` of them for every tile
                    n_splits: u32,
                    /// Keys that a query sees, itself included; 0: all
                    window: u32,
                    /// Of the scores: 1 / sqrt(head_dim)
                    scale: f32,
                }
            }

            #[inline(always)]
            fn run(a: Attention) {
                let arguments = Arguments {
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
                };
                let step = (a.tiles, a.positions);
                attention::<$cache, $dims, { rows($dims) }, $ahead>(arguments, step)
            }
        }
    )*};
}
/// Calls `$with` with each kind of cache and class of head dims, and of each of its kernels the name, the blocks that
/// a multiprocessor holds, and the pieces of a chunk that are under way: as many as there are registers for.
macro_rules! for_each_cache_and_size {
    ($with:ident) => {
        $with! {
            f32, 64, attention_f32_d64, 1, 4, decode_f32_d64, 1, 4;
            f32, 128, attention_f32_d128, 1, 2, decode_f32_d128, 1, 2;
            f32, 256, attention_f32_d256, 1, 2, decode_f32_d256, 1, 2;
            F16, 64, attention_f16_d64, 2, 4, decode_f16_d64, 2, 4;
            F16, 128, attention_f16_d128, 2, 2, decode_f16_d128, 1, 8;
            F16, 256, attention_f16_d256, 1, 2, decode_f16_d256, 1, 4;
            Bf16, 64, attention_bf16_d64, 2, 4, decode_bf16_d64, 2, 4;
            Bf16, 128, attention_bf16_d128, 2, 2, decode_bf16_d128, 1, 4;
            Bf16, 256, attention_bf16_d256, 1, 2, decode_bf16_d256, 1, 2;
        }
    };
}
pub(crate) use for_each_cache_and_size;

for_each_cache_and_size!(entries);
