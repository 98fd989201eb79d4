//! The next token from a row of logits, chosen on the device: the largest, or one drawn at random.
//!
//! A draw goes through the usual steps in the usual order: temperature, top-k, top-p, min-p. All of
//! them cut the same list, the tokens by falling logit (the lower id first where two are equal):
//! - the weight of a token is `e^-d` with `d = (largest logit - logit) / temperature`;
//! - top-k keeps the first k (0 keeps all);
//! - top-p keeps as few of those as reach the share p of their weight (1 keeps all);
//! - min-p keeps those of weight p and more (0 keeps all);
//! - the first token is always kept, and the first at which the running weight exceeds `u` times the
//!   kept weight is drawn, u in 0..1 from Philox4x32-10 under the row's seed and counter.
//!
//! A NaN is never drawn. With a temperature of 0 or less (or NaN), or where the largest logit is not
//! finite, the first of the largest is taken; a NaN is the largest only where all are NaN.
//!
//! Weights are integers in units of 2^-42, so that sums are exact, whatever their order: the same
//! logits, parameters and seed give the same token. A token's weight is off by the error of `e^x`
//! and by what cutting off below 2^-42 loses, 2^-24 over the largest vocabularies.
//!
//! Three kernels: `row_best` finds the largest logit of each chunk of columns, `sample_bins` sorts
//! weights into bins of 1/64 in d, `sample` walks the sums of the bins and looks at single tokens of
//! one bin only, in the chunks whose largest reaches that bin. `argmax` after `row_best` is all that
//! greedy decoding needs. Both leave the batch of the next step where that of this one was, so that steps can
//! follow each other without the host.

mod philox;
pub mod pick;

pub use philox::philox;
pub use pick::Sample;

use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x2, U32x4, WARP};
use crate::order;

/// Tokens of a vocabulary at most: a token's place in its row's order is a word of 64 bits with the
/// logit's 32 above the id.
pub const MAX_VOCAB: u32 = 1 << 22;
/// Columns of a chunk: a block of `CHUNK_BLOCK` threads, each with `PER_THREAD` of them.
pub const CHUNK: u32 = 1024;
/// Threads of a block that reads a chunk.
pub const CHUNK_BLOCK: u32 = 256;
const PER_THREAD: usize = (CHUNK / CHUNK_BLOCK) as usize;
const CHUNK_WARPS: usize = (CHUNK_BLOCK / WARP) as usize;

/// Bins of a row; what lies beyond weighs less than half a unit.
pub const N_BINS: u32 = 2048;
/// Words of masses of a row: the bins', and that of all tokens that min-p keeps.
pub const N_MASSES: u32 = N_BINS + 1;
const BINS_PER_UNIT: f32 = 64.0;
/// Weight of the largest logit. A chunk's sums of either half of such a weight fit 32 bits.
const UNIT_BITS: u32 = 42;
const HALF_BITS: u32 = UNIT_BITS / 2;
/// A temperature above it does not make the choice more even.
const MAX_TEMPERATURE: f32 = 1e30;

/// Chunks of a row.
pub const fn n_chunks(vocab: u32) -> u32 {
    vocab.div_ceil(CHUNK)
}

/// How a row's token is chosen, as the host fills it in.
#[cfg(not(target_arch = "nvptx64"))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// 0 takes the largest logit
    pub temperature: f32,
    /// 0 keeps all tokens
    pub top_k: u32,
    /// 1 keeps all tokens
    pub top_p: f32,
    /// 0 keeps all tokens
    pub min_p: f32,
    /// Rows of the same seed and counter have the same random number.
    pub seed: u64,
}

#[cfg(not(target_arch = "nvptx64"))]
impl SampleParams {
    /// As the kernels read it.
    pub fn words(self) -> [U32x4; 2] {
        let SampleParams { temperature, top_k, top_p, min_p, seed } = self;
        [
            U32x4([temperature.to_bits(), top_k, top_p.to_bits(), min_p.to_bits()]),
            U32x4([seed as u32, (seed >> 32) as u32, 0, 0]),
        ]
    }
}

/// Shared memory of `row_best` and `argmax`.
#[repr(C, align(16))]
pub struct BestShared {
    best: [U32x2; CHUNK_WARPS],
}

kernel! {
    /// The largest logit of each chunk and its first column. Clears the sums that `sample_bins` adds
    /// to. The grid is (n_chunks, n_rows).
    pub fn row_best = row_best_body, block CHUNK_BLOCK, shared BestShared, registers 32,
        barriers 1, shuffles 0, matrix_ops 0;
    pub struct RowBest {
        /// [n_rows, vocab]
        logits: Global<f32>,
        /// [n_rows, n_chunks]: key (see order.rs) and column
        best: GlobalMut<U32x2>,
        /// [n_rows, N_BINS], or absent where `argmax` follows
        counts: GlobalMut<u32>,
        /// [n_rows, N_MASSES], or absent where `argmax` follows
        masses: GlobalMut<u64>,
        vocab: u32,
    }
}

#[inline(always)]
fn row_best_body(a: RowBest) {
    let (chunk, row) = (gpu::block_x(), gpu::block_y());
    let logits = a.logits.from(row as usize * a.vocab as usize);
    let x = load_chunk(logits, chunk, a.vocab);
    if !a.counts.is_absent() {
        let counts = a.counts.from(row as usize * N_BINS as usize);
        let masses = a.masses.from(row as usize * N_MASSES as usize);
        let mut bin = chunk * CHUNK_BLOCK + gpu::thread_x();
        while bin < N_MASSES {
            if bin < N_BINS {
                counts.set(bin as usize, 0);
            }
            masses.set(bin as usize, 0);
            bin += gpu::grid_x() * CHUNK_BLOCK;
        }
    }

    let (mut key, mut column) = (order::NONE, u32::MAX);
    let mut i = 0;
    while i < PER_THREAD {
        let k = if chunk_column(chunk, i) < a.vocab { order::key(x[i]) } else { order::NONE };
        if k > key {
            (key, column) = (k, chunk_column(chunk, i));
        }
        i += 1;
    }
    let best = block_best(key, column, CHUNK_WARPS as u32, shared!(BestShared, best));
    if gpu::thread_x() == 0 {
        a.best.set(row as usize * gpu::grid_x() as usize + chunk as usize, best);
    }
}

/// The thread's column number `i` of a chunk.
#[inline(always)]
fn chunk_column(chunk: u32, i: usize) -> u32 {
    chunk * CHUNK + i as u32 * CHUNK_BLOCK + gpu::thread_x()
}

/// The thread's columns of a chunk, NaN past the row's end.
#[inline(always)]
fn load_chunk(logits: Global<f32>, chunk: u32, vocab: u32) -> [f32; PER_THREAD] {
    let mut x = [f32::NAN; PER_THREAD];
    let mut i = 0;
    while i < PER_THREAD {
        if chunk_column(chunk, i) < vocab {
            x[i] = logits.get(chunk_column(chunk, i) as usize);
        }
        i += 1;
    }
    x
}

/// The largest key of the block and the first column that has it. Every thread must reach this call.
#[inline(always)]
fn block_best(key: u32, column: u32, n_warps: u32, scratch: SharedArray<U32x2>) -> U32x2 {
    let top = gpu::warp_max_u32(key);
    let first = gpu::warp_min_u32(if key == top { column } else { u32::MAX });
    if gpu::lane() == 0 {
        scratch.set(gpu::warp(), U32x2([top, first]));
    }
    gpu::sync_block(); // each warp's best visible to every warp
    let none = U32x2([order::NONE, u32::MAX]);
    let U32x2([key, column]) = if gpu::lane() < n_warps { scratch.get(gpu::lane()) } else { none };
    let top = gpu::warp_max_u32(key);
    U32x2([top, gpu::warp_min_u32(if key == top { column } else { u32::MAX })])
}

/// The best of a row's chunks. Every thread of the block must reach this call.
#[inline(always)]
fn row_best_of(
    chunks: Global<U32x2>,
    n_chunks: u32,
    n_threads: u32,
    scratch: SharedArray<U32x2>,
) -> U32x2 {
    let (mut key, mut column) = (order::NONE, u32::MAX);
    let mut chunk = gpu::thread_x();
    while chunk < n_chunks {
        let U32x2([k, c]) = chunks.get(chunk as usize);
        if k > key {
            (key, column) = (k, c);
        }
        chunk += n_threads;
    }
    block_best(key, column, n_threads / WARP, scratch)
}

kernel! {
    /// The first of the largest logits; a block per row.
    pub fn argmax = argmax_body, block CHUNK_BLOCK, shared BestShared, registers 32,
        barriers 1, shuffles 0, matrix_ops 0;
    pub struct Argmax {
        /// [n_rows, n_chunks] from `row_best`
        best: Global<U32x2>,
        /// [n_rows]: as `Sample` has it
        counters: GlobalMut<u32>,
        /// [n_rows]
        tokens: GlobalMut<u32>,
        /// As `Sample` has it, or absent
        arriving: GlobalMut<u32>,
        /// As `Sample` has it, or absent
        positions: GlobalMut<u32>,
        /// As `Sample` has it
        tiles: GlobalMut<U32x4>,
        vocab: u32,
    }
}

#[inline(always)]
fn argmax_body(a: Argmax) {
    let row = gpu::block_x() as usize;
    let ends = Ends {
        counters: a.counters,
        tokens: a.tokens,
        arriving: a.arriving,
        positions: a.positions,
        tiles: a.tiles,
    };
    let end = ends.of_row(row); // long before it is needed
    let chunks = a.best.from(row * n_chunks(a.vocab) as usize);
    let scratch: SharedArray<U32x2> = shared!(BestShared, best);
    let U32x2([_, column]) = row_best_of(chunks, n_chunks(a.vocab), CHUNK_BLOCK, scratch);
    if gpu::thread_x() == 0 {
        ends.leave(row, column, end);
    }
}

/// Where tokens go, and with it what the step behind them begins with: one token a row, each a position further.
#[derive(Clone, Copy)]
struct Ends {
    counters: GlobalMut<u32>,
    tokens: GlobalMut<u32>,
    arriving: GlobalMut<u32>,
    positions: GlobalMut<u32>,
    tiles: GlobalMut<U32x4>,
}

/// What there is of a row before its token is chosen.
#[derive(Clone, Copy)]
struct End {
    counter: u32,
    position: u32,
    tile: U32x4,
}

impl Ends {
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn of_row(self, row: usize) -> End {
        let counter = self.counters.get(row);
        if self.positions.is_absent() {
            return End { counter, position: 0, tile: U32x4([0; 4]) };
        }
        End { counter, position: self.positions.get(row), tile: self.tiles.get(row) }
    }

    /// Leaves a row's token; for the host in the half of `arriving` that is chosen by the row's counter, which counts
    /// tokens, so that two may be under way.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn leave(self, row: usize, token: u32, end: End) {
        self.tokens.set(row, token);
        if !self.arriving.is_absent() {
            self.arriving.set((end.counter % 2 * gpu::grid_x()) as usize + row, token);
        }
        if !self.positions.is_absent() {
            self.counters.set(row, end.counter + 1);
            self.positions.set(row, end.position + 1);
            let U32x4([first, count, sequence, first_new]) = end.tile;
            self.tiles.set(row, U32x4([first, count, sequence, first_new + 1]));
        }
    }
}

/// A row's scale: where its weights begin and how fast they fall.
#[derive(Clone, Copy)]
struct Scale {
    largest: f32,
    temperature: f32,
    per_unit: f32,
}

impl Scale {
    /// None where nothing is drawn, because the largest logit is taken.
    #[inline(always)]
    fn of(best: U32x2, temperature: f32) -> Option<Scale> {
        let largest = order::value(best.0[0]);
        if !(temperature > 0.0 && largest.abs() < f32::INFINITY) {
            return None;
        }
        let temperature = if temperature < MAX_TEMPERATURE { temperature } else { MAX_TEMPERATURE };
        let per_unit = 1.0 / temperature;
        // 1 over a denormal: finite, so that the largest logit's d is 0 and not NaN.
        let per_unit = if per_unit < f32::MAX { per_unit } else { f32::MAX };
        Some(Scale { largest, temperature, per_unit })
    }

    /// How far a logit lies below the largest; NaN for NaN.
    #[inline(always)]
    fn depth(self, x: f32) -> f32 {
        (self.largest - x) * self.per_unit
    }
}

/// The bin of a depth; `N_BINS` and more where it has no weight.
#[inline(always)]
fn bin_of(depth: f32) -> u32 {
    const END: f32 = N_BINS as f32 / BINS_PER_UNIT;
    if depth < END { (depth * BINS_PER_UNIT) as u32 } else { N_BINS }
}

/// `e^-depth` in units of 2^-`UNIT_BITS`, cut off.
#[inline(always)]
fn weight_of(depth: f32) -> u64 {
    const UNIT: f32 = (1_u64 << UNIT_BITS) as f32;
    (gpu::exp(-depth) * UNIT) as u64
}

/// Shared memory of `sample_bins`. One place more than bins: what min-p keeps.
#[repr(C, align(16))]
pub struct BinsShared {
    best: [U32x2; CHUNK_WARPS],
    counts: [u32; N_MASSES as usize],
    low: [u32; N_MASSES as usize],
    high: [u32; N_MASSES as usize],
}

kernel! {
    /// Adds each chunk's tokens to the row's bins. The grid is (n_chunks, n_rows).
    pub fn sample_bins = sample_bins_body, block CHUNK_BLOCK, shared BinsShared, registers 32,
        barriers 3, shuffles 0, matrix_ops 0;
    pub struct SampleBins {
        /// [n_rows, vocab]
        logits: Global<f32>,
        /// [n_rows, n_chunks] from `row_best`
        best: Global<U32x2>,
        /// [n_rows, 2], see `SampleParams::words`
        params: Global<U32x4>,
        /// [n_rows, N_BINS]: tokens of each bin; cleared by `row_best`
        counts: GlobalMut<u32>,
        /// [n_rows, N_MASSES]: weight of each bin, and of what min-p keeps; cleared by `row_best`
        masses: GlobalMut<u64>,
        vocab: u32,
    }
}

#[inline(always)]
fn sample_bins_body(a: SampleBins) {
    let (chunk, row) = (gpu::block_x(), gpu::block_y() as usize);
    let best = a.best.from(row * gpu::grid_x() as usize);
    let x = load_chunk(a.logits.from(row * a.vocab as usize), chunk, a.vocab);
    let U32x4([temperature, _, _, min_p]) = a.params.get(2 * row);
    let scratch: SharedArray<U32x2> = shared!(BinsShared, best);
    let best = row_best_of(best, gpu::grid_x(), CHUNK_BLOCK, scratch);
    let Some(scale) = Scale::of(best, f32::from_bits(temperature)) else {
        return; // the whole block leaves: every thread has read the same
    };

    let counts: SharedArray<u32> = shared!(BinsShared, counts);
    let low: SharedArray<u32> = shared!(BinsShared, low);
    let high: SharedArray<u32> = shared!(BinsShared, high);
    let mut bin = gpu::thread_x();
    while bin < N_MASSES {
        counts.set(bin, 0);
        low.set(bin, 0);
        high.set(bin, 0);
        bin += CHUNK_BLOCK;
    }
    gpu::sync_block(); // the sums are 0
    let min_p = f32::from_bits(min_p);
    let deepest = if min_p > 0.0 { -gpu::ln(min_p) } else { -1.0 };
    let mut i = 0;
    while i < PER_THREAD {
        let depth = scale.depth(x[i]);
        let bin = bin_of(depth);
        if bin < N_BINS {
            let weight = weight_of(depth);
            add(counts, low, high, bin, weight);
            if depth <= deepest {
                add(counts, low, high, N_BINS, weight);
            }
        }
        i += 1;
    }
    gpu::sync_block(); // the chunk's sums are complete

    let row_counts = a.counts.from(row * N_BINS as usize);
    let row_masses = a.masses.from(row * N_MASSES as usize);
    let mut bin = gpu::thread_x();
    while bin < N_MASSES {
        let count = counts.get(bin);
        if count > 0 {
            if bin < N_BINS {
                gpu::reduce_add_u32(row_counts, bin as usize, count);
            }
            let mass = low.get(bin) as u64 + ((high.get(bin) as u64) << HALF_BITS);
            gpu::reduce_add_u64(row_masses, bin as usize, mass);
        }
        bin += CHUNK_BLOCK;
    }
}

/// Adds a token to the sums of a bin; the weight in halves, for sums of 32 bits are quick.
#[inline(always)]
fn add(
    counts: SharedArray<u32>,
    low: SharedArray<u32>,
    high: SharedArray<u32>,
    bin: u32,
    weight: u64,
) {
    gpu::shared_add(counts, bin, 1);
    gpu::shared_add(low, bin, weight as u32 & ((1 << HALF_BITS) - 1));
    gpu::shared_add(high, bin, (weight >> HALF_BITS) as u32);
}
