//! The last step of a draw: where along the list of tokens the running weight passes a number.
//!
//! The bins' sums tell the bin. Its tokens are gathered into shared memory and ranked there, each
//! thread its own; where they are too many, the window of tokens that the place can be in is halved
//! until they fit.

use super::philox::philox;
use super::{
    CHUNK, Ends, MAX_VOCAB, N_BINS, N_MASSES, Scale, bin_of, n_chunks, row_best_of, weight_of,
};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x2, U32x4, WARP};
use crate::order;

/// Threads of the one block of a row. With 1024 a search has too few registers.
pub const BLOCK: u32 = 512;
const N_WARPS: u32 = BLOCK / WARP;
const BINS_PER_THREAD: usize = (N_BINS / BLOCK) as usize;
/// Tokens that are ranked at once, a thread for each: every thread reads them all.
pub const MAX_GATHERED: u32 = BLOCK;
const ID_BITS: u32 = MAX_VOCAB.ilog2();
/// Loads of a lane that are in flight together.
const AHEAD: usize = 8;

/// Shared memory of `sample`.
#[repr(C, align(16))]
pub struct Shared {
    /// Place of a token in the list (two words) and its weight (two words).
    gathered: [U32x4; MAX_GATHERED as usize],
    best: [U32x2; N_WARPS as usize],
    partial: [u64; N_WARPS as usize],
    partial_counts: [u32; N_WARPS as usize],
    n_gathered: [u32; 1],
    /// The bin that a search has found, and how many tokens it has.
    bin: [u32; 2],
    /// What comes before that bin: as the search measures it, and in weight.
    before: [u64; 2],
    /// The token that a search has found.
    token: [u32; 1],
    /// The weight of the list up to that token, it included.
    through: [u64; 1],
}

kernel! {
    /// Draws a token for each row; a block per row. See the module's text for how.
    pub fn sample = sample_body, block BLOCK, shared Shared, registers 120,
        barriers 12, shuffles 20, matrix_ops 0, min_blocks 1;
    pub struct Sample {
        /// [n_rows, vocab]
        logits: Global<f32>,
        /// [n_rows, n_chunks] from `row_best`
        best: Global<U32x2>,
        /// [n_rows, N_BINS] from `sample_bins`
        counts: Global<u32>,
        /// [n_rows, N_MASSES] from `sample_bins`
        masses: Global<u64>,
        /// [n_rows, 2], see `SampleParams::words`
        params: Global<U32x4>,
        /// [n_rows]: another number for each token of a sequence, for example its position; one more afterwards,
        /// where there are `positions`
        counters: GlobalMut<u32>,
        /// [n_rows]
        tokens: GlobalMut<u32>,
        /// [2, n_rows], see `Ends::leave`; or absent
        arriving: GlobalMut<u32>,
        /// Positions of the step that was, which become those of the next one, whose tokens are `tokens`: [n_rows]; or
        /// absent
        positions: GlobalMut<u32>,
        /// Its tiles of attention, one a row, likewise: [n_rows]; where there are `positions`
        tiles: GlobalMut<U32x4>,
        /// at most `MAX_VOCAB`
        vocab: u32,
    }
}

/// What every thread of the block knows of its row.
#[derive(Clone, Copy)]
struct Row {
    logits: Global<f32>,
    chunks: Global<U32x2>,
    scale: Scale,
    vocab: u32,
}

/// The thread's bins, in order: what they hold and what comes before them.
#[derive(Clone, Copy)]
struct Bins {
    counts: [u32; BINS_PER_THREAD],
    masses: [u64; BINS_PER_THREAD],
    count_before: u64,
    mass_before: u64,
}

/// A place along the list: the token at which the sum of tokens, or of weights, exceeds `target`.
#[derive(Clone, Copy)]
struct Search {
    by_count: bool,
    target: u64,
}

impl Search {
    /// Whether the sum exceeds the target with a part that has this before it.
    #[inline(always)]
    fn ends_in(self, before: u64, count: u64, mass: u64) -> bool {
        before <= self.target && self.target < before + self.measure(count, mass)
    }

    #[inline(always)]
    fn measure(self, count: u64, mass: u64) -> u64 {
        if self.by_count { count } else { mass }
    }
}

#[inline(always)]
fn sample_body(a: Sample) {
    let index = gpu::block_x() as usize;
    let chunks = a.best.from(index * n_chunks(a.vocab) as usize);
    let counts = a.counts.from(index * N_BINS as usize);
    let masses = a.masses.from(index * N_MASSES as usize);
    let U32x4([temperature, top_k, top_p, min_p]) = a.params.get(2 * index);
    let U32x4([seed_low, seed_high, _, _]) = a.params.get(2 * index + 1);
    let (top_p, min_p) = (f32::from_bits(top_p), f32::from_bits(min_p));
    let counter = a.counters.get(index);
    let ends = Ends {
        counters: a.counters,
        tokens: a.tokens,
        arriving: a.arriving,
        positions: a.positions,
        tiles: a.tiles,
    };

    let best = row_best_of(chunks, n_chunks(a.vocab), BLOCK, shared!(Shared, best));
    let scale = Scale::of(best, f32::from_bits(temperature));
    let Some(scale) = scale else {
        if gpu::thread_x() == 0 {
            ends.leave(index, best.0[1], ends.of_row(index));
        }
        return; // the whole block leaves: every thread has read the same
    };
    let logits = a.logits.from(index * a.vocab as usize);
    let row = Row { logits, chunks, scale, vocab: a.vocab };
    let (bins, n_tokens, all) = load_bins(counts, masses);

    // Each step cuts the list; what is left of it is its weight.
    let mut kept = all;
    let mut step = 0;
    while step < 3 {
        let search = match step {
            0 => Search { by_count: true, target: (top_k as u64).saturating_sub(1) },
            1 => Search { by_count: false, target: reaches(top_p, kept) },
            _ => {
                let deep = if min_p > 0.0 { masses.get(N_BINS as usize) } else { kept };
                let kept = if deep < kept { deep } else { kept };
                let [low, high, _, _] = philox([counter, 0, 0, 0], [seed_low, seed_high]);
                Search { by_count: false, target: share(low as u64 | (high as u64) << 32, kept).0 }
            }
        };
        let needed = match step {
            0 => top_k > 0 && (top_k as u64) < n_tokens,
            1 => top_p < 1.0,
            _ => true,
        };
        if needed {
            kept = find(row, bins, search);
        }
        step += 1;
    }
    if gpu::thread_x() == 0 {
        let token: SharedArray<u32> = shared!(Shared, token);
        ends.leave(index, token.get(0), ends.of_row(index));
    }
}

/// The 128-bit product of a number in 0..1, in units of 2^-64, and a weight: whole units and rest.
#[inline(always)]
fn share(part: u64, of: u64) -> (u64, u64) {
    let product = part as u128 * of as u128;
    ((product >> 64) as u64, product as u64)
}

/// The target of the search for the first token with which the weight reaches `top_p` of `kept`.
#[inline(always)]
fn reaches(top_p: f32, kept: u64) -> u64 {
    const ONE: f32 = 18_446_744_073_709_551_616.0; // 2^64
    let (whole, rest) = share((top_p * ONE) as u64, kept);
    // "Exceeds a number" for whole numbers is "reaches the next".
    if rest > 0 || whole == 0 { whole } else { whole - 1 }
}

/// The thread's bins, and the sums over all: tokens and weight. Every thread must reach this call.
#[inline(always)]
fn load_bins(counts: Global<u32>, masses: Global<u64>) -> (Bins, u64, u64) {
    let first = gpu::thread_x() as usize * BINS_PER_THREAD;
    let (mut own_counts, mut own_masses) = ([0; BINS_PER_THREAD], [0; BINS_PER_THREAD]);
    let (mut n_tokens, mut mass) = (0, 0);
    let mut i = 0;
    while i < BINS_PER_THREAD {
        own_counts[i] = counts.get(first + i);
        own_masses[i] = masses.get(first + i);
        n_tokens += own_counts[i];
        mass += own_masses[i];
        i += 1;
    }
    let (count_before, n_tokens) = block_scan(n_tokens as u64);
    let (mass_before, mass) = block_scan(mass);
    (Bins { counts: own_counts, masses: own_masses, count_before, mass_before }, n_tokens, mass)
}

/// Finds the token at which a search ends, and leaves it in `token`; the list's weight up to it comes
/// back. The sum must exceed the target somewhere. Every thread of the block must reach this call.
#[inline(always)]
fn find(row: Row, bins: Bins, search: Search) -> u64 {
    let bin_out: SharedArray<u32> = shared!(Shared, bin);
    let before_out: SharedArray<u64> = shared!(Shared, before);
    let through_out: SharedArray<u64> = shared!(Shared, through);
    gpu::sync_block(); // the last search's results have been read
    let (mut count_before, mut mass_before) = (bins.count_before, bins.mass_before);
    let mut i = 0;
    while i < BINS_PER_THREAD {
        let (count, mass) = (bins.counts[i], bins.masses[i]);
        let before = search.measure(count_before, mass_before);
        if search.ends_in(before, count as u64, mass) {
            bin_out.set(0, gpu::thread_x() * BINS_PER_THREAD as u32 + i as u32);
            bin_out.set(1, count);
            before_out.set(0, before);
            before_out.set(1, mass_before);
        }
        count_before += count as u64;
        mass_before += mass;
        i += 1;
    }
    gpu::sync_block(); // the bin is known to every thread

    let (bin, mut n_left) = (bin_out.get(0), bin_out.get(1));
    let (mut before, mut mass_before) = (before_out.get(0), before_out.get(1));
    let (mut start, mut end) = places_of(row.scale, bin);
    while n_left > MAX_GATHERED {
        let middle = start + (end - start) / 2;
        let (mut count, mut mass) = (0, 0);
        visit(row, bin, |place, depth| {
            if place >= start && place < middle {
                count += 1;
                mass += weight_of(depth);
            }
        });
        let (count, mass) = block_sums(count, mass);
        if search.ends_in(before, count as u64, mass) {
            end = middle;
            n_left = count;
        } else {
            start = middle;
            n_left -= count;
            before += search.measure(count as u64, mass);
            mass_before += mass;
        }
    }
    gather(row, bin, start, end);
    rank(n_left, search, before, mass_before);
    through_out.get(0)
}

/// A token's place in the list: falling logit, then rising id.
#[inline(always)]
fn place_of(key: u32, id: u32) -> u64 {
    (!key as u64) << ID_BITS | id as u64
}

/// The token that has a place.
#[inline(always)]
fn id_of(place: u64) -> u32 {
    place as u32 & (MAX_VOCAB - 1)
}

/// A range of places that has all of a bin's tokens in it, and no more than need be.
#[inline(always)]
fn places_of(scale: Scale, bin: u32) -> (u64, u64) {
    let drop = bin as f32 / super::BINS_PER_UNIT * scale.temperature;
    let next = (bin + 1) as f32 / super::BINS_PER_UNIT * scale.temperature;
    // A few roundings of a depth, 2^-24 each, stay far below this.
    let margin = (scale.largest.abs() + next) * (1.0 / (1 << 20) as f32);
    let first = order::key(scale.largest - drop + margin);
    let last = order::key(scale.largest - next - margin);
    (place_of(first, 0), place_of(last, MAX_VOCAB - 1) + 1)
}

/// Calls `f(place, depth)` for every token of a bin, in some order, each in one thread.
#[inline(always)]
fn visit(row: Row, bin: u32, mut f: impl FnMut(u64, f32)) {
    let lane = gpu::lane();
    let n_chunks = n_chunks(row.vocab);
    let mut first = gpu::warp();
    while first < n_chunks {
        // A chunk for each lane to judge; the warp then reads those that reach the bin.
        let chunk = first + lane * N_WARPS;
        let mut reaches = false;
        if chunk < n_chunks {
            let U32x2([key, _]) = row.chunks.get(chunk as usize);
            reaches = bin_of(row.scale.depth(order::value(key))) <= bin;
        }
        let mut wanted = gpu::warp_ballot(reaches);
        while wanted != 0 {
            let chunk = first + wanted.trailing_zeros() * N_WARPS;
            wanted &= wanted - 1;
            let mut col = chunk * CHUNK + lane;
            while col < (chunk + 1) * CHUNK {
                visit_columns(row, bin, col, &mut f);
                col += AHEAD as u32 * WARP;
            }
        }
        first += N_WARPS * WARP;
    }
}

/// `visit` of the columns `col + 32 i`: all are looked at, and the few of the bin read once more.
#[inline(always)]
fn visit_columns(row: Row, bin: u32, col: u32, f: &mut impl FnMut(u64, f32)) {
    let mut x = [f32::NAN; AHEAD];
    let mut i = 0;
    while i < AHEAD {
        if col + i as u32 * WARP < row.vocab {
            x[i] = row.logits.get((col + i as u32 * WARP) as usize);
        }
        i += 1;
    }
    let mut found = 0_u32;
    let mut i = 0;
    while i < AHEAD {
        found |= ((bin_of(row.scale.depth(x[i])) == bin) as u32) << i;
        i += 1;
    }
    while found != 0 {
        let id = col + found.trailing_zeros() * WARP;
        let x = row.logits.get(id as usize);
        f(place_of(order::key(x), id), row.scale.depth(x));
        found &= found - 1;
    }
}

/// Puts the tokens of a bin with a place in the window into shared memory, in some order.
#[inline(always)]
fn gather(row: Row, bin: u32, start: u64, end: u64) {
    let gathered: SharedArray<U32x4> = shared!(Shared, gathered);
    let n_gathered: SharedArray<u32> = shared!(Shared, n_gathered);
    if gpu::thread_x() == 0 {
        n_gathered.set(0, 0);
    }
    gpu::sync_block(); // the count is 0
    visit(row, bin, |place, depth| {
        if place >= start && place < end {
            let weight = weight_of(depth);
            let words = [place as u32, (place >> 32) as u32, weight as u32, (weight >> 32) as u32];
            gathered.set(gpu::shared_add(n_gathered, 0, 1), U32x4(words));
        }
    });
    gpu::sync_block(); // all are there
}

/// Finds the token where the search ends among `n` gathered ones.
#[inline(always)]
fn rank(n: u32, search: Search, before: u64, mass_before: u64) {
    let token_out: SharedArray<u32> = shared!(Shared, token);
    let through_out: SharedArray<u64> = shared!(Shared, through);
    if gpu::thread_x() < n {
        let (place, weight) = gathered(gpu::thread_x());
        let (mut n_earlier, mut mass_earlier) = (0, 0);
        let mut i = 0;
        while i < n {
            let (other, other_weight) = gathered(i);
            if other < place {
                n_earlier += 1;
                mass_earlier += other_weight;
            }
            i += 1;
        }
        if search.ends_in(before + search.measure(n_earlier, mass_earlier), 1, weight) {
            token_out.set(0, id_of(place));
            through_out.set(0, mass_before + mass_earlier + weight);
        }
    }
    gpu::sync_block(); // the token is known to every thread
}

/// Place and weight of a gathered token.
#[inline(always)]
fn gathered(i: u32) -> (u64, u64) {
    let gathered: SharedArray<U32x4> = shared!(Shared, gathered);
    let U32x4([p0, p1, w0, w1]) = gathered.get(i);
    (p0 as u64 | (p1 as u64) << 32, w0 as u64 | (w1 as u64) << 32)
}

/// Sum over the warp modulo 2^64, in three parts whose own sums fit a word.
#[inline(always)]
fn warp_sum_u64(v: u64) -> u64 {
    const PART: u32 = 22;
    let part = |i: u32| (v >> (PART * i)) as u32 & ((1 << PART) - 1);
    let sum = |i: u32| (gpu::warp_sum_u32(part(i)) as u64) << (PART * i);
    sum(0).wrapping_add(sum(1)).wrapping_add(sum(2))
}

/// Sums over the block. Every thread must reach this call.
#[inline(always)]
fn block_sums(count: u32, mass: u64) -> (u32, u64) {
    let counts: SharedArray<u32> = shared!(Shared, partial_counts);
    let masses: SharedArray<u64> = shared!(Shared, partial);
    let (count, mass) = (gpu::warp_sum_u32(count), warp_sum_u64(mass));
    gpu::sync_block(); // the sums before may still be read
    if gpu::lane() == 0 {
        counts.set(gpu::warp(), count);
        masses.set(gpu::warp(), mass);
    }
    gpu::sync_block(); // each warp's sums visible to every warp
    let (mut count, mut mass) = (0, 0);
    if gpu::lane() < N_WARPS {
        (count, mass) = (counts.get(gpu::lane()), masses.get(gpu::lane()));
    }
    (gpu::warp_sum_u32(count), warp_sum_u64(mass))
}

/// Sum over the threads before, and over all. Every thread must reach this call.
#[inline(always)]
fn block_scan(v: u64) -> (u64, u64) {
    let lane = gpu::lane();
    let partial: SharedArray<u64> = shared!(Shared, partial);
    let sum = with_lane_below(v, 1);
    let sum = with_lane_below(sum, 2);
    let sum = with_lane_below(sum, 4);
    let sum = with_lane_below(sum, 8);
    let sum = with_lane_below(sum, 16);
    gpu::sync_block(); // the sums before may still be read
    if lane == WARP - 1 {
        partial.set(gpu::warp(), sum);
    }
    gpu::sync_block(); // each warp's sum visible to every warp
    let sums = if lane < N_WARPS { partial.get(lane) } else { 0 };
    let before = warp_sum_u64(if lane < gpu::warp() { sums } else { 0 });
    (before + sum - v, warp_sum_u64(sums))
}

/// `v` and that of the lane `distance` below, where there is one.
#[inline(always)]
fn with_lane_below(v: u64, distance: u32) -> u64 {
    let from = gpu::lane().wrapping_sub(distance) % WARP;
    let low = gpu::shuffle_u32(v as u32, from);
    let high = gpu::shuffle_u32((v >> 32) as u32, from);
    let below = low as u64 | (high as u64) << 32;
    v + if gpu::lane() >= distance { below } else { 0 }
}
