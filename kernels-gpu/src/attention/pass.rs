//! A warp's part of a split: scores of up to 64 keys, their softmax, and the weighted values.

use super::{
    Arguments, N_WARPS, ROW_THREADS, ROWS, Row, SPLIT_CHUNKS, Scratch, Tile, WARP_CHUNKS, base,
    first_key,
};
use crate::gpu::{self, SharedArray, U32x2, U32x4};
use crate::kv_cache::{Cached, OCTET, PAGE, Shape, table_entry};
use crate::order;
use core::f32::consts::LOG2_E;

/// Keys whose scores a lane computes over a quarter of the dims: so that a query element that is
/// read from shared memory serves four products.
const LANE_KEYS: usize = 4;
/// Lanes of a quarter.
const QUARTER: u32 = gpu::WARP / LANE_KEYS as u32;

/// One score or sum of each query row.
type PerRow = [f32; ROWS as usize];

/// Puts the thread's columns of its query row, and what the row sees, into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn store_query<E: Cached, const D: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    row: Row,
    scratch: Scratch,
) {
    let row_at = gpu::thread_x() / ROW_THREADS;
    let thread = gpu::thread_x() % ROW_THREADS;
    let exists = row.token < tile.n_tokens;
    let scale = a.scale * LOG2_E;
    let token = tile.first_token as usize + row.token as usize;
    let from = token * a.row_stride as usize + (row.head * a.head_dim) as usize;
    unroll!(i < 4, {
        let at = thread + i as u32 * ROW_THREADS;
        if at < D as u32 / 4 {
            let mut words = U32x4([0; 4]);
            if exists && at < a.head_dim / 4 {
                let U32x4(q) = a.qkv.cast::<U32x4>().get(from / 4 + at as usize);
                words = U32x4(q.map(|bits| (f32::from_bits(bits) * scale).to_bits()));
            }
            scratch.query.set(row_at * (D as u32 / 4) + at, words);
        }
    });
    if thread == 0 {
        let last = tile.position + row.token;
        let seen = if exists { [first_key(last, a.window), last] } else { [1, 0] };
        scratch.visible.set(row_at, U32x2(seen));
    }
}

/// The warp's chunks of a split; leaves its part of every row in shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn split_pass<E: Cached, const D: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    split: u32,
    scratch: Scratch,
) {
    let shape = Shape { n_kv_heads: a.n_kv_heads, head_dim: a.head_dim };
    let warp = gpu::warp();
    let first_chunk = tile.first_key / PAGE;
    let last_chunk = tile.last_key / PAGE;

    let mut scores = [[f32::NEG_INFINITY; ROWS as usize]; WARP_CHUNKS];
    let mut heads = [0; WARP_CHUNKS];
    unroll!(c < WARP_CHUNKS, {
        let chunk = split * SPLIT_CHUNKS + warp + c as u32 * N_WARPS;
        if chunk >= first_chunk && chunk <= last_chunk {
            let page = a.pages.get(table_entry(tile.sequence, chunk, a.pages_per_sequence));
            heads[c] = shape.head(page, tile.kv_head);
        }
    });
    unroll!(c < WARP_CHUNKS, {
        let chunk = split * SPLIT_CHUNKS + warp + c as u32 * N_WARPS;
        if chunk >= first_chunk && chunk <= last_chunk {
            scores[c] = chunk_scores::<E, D>(a, heads[c], scratch.query);
            mask(&mut scores[c], a.window, tile, chunk, scratch.visible);
        }
    });

    let weights = scratch.weights.from(warp * 2 * WARP_CHUNKS as u32 * PAGE);
    let mut largest = [0.0; ROWS as usize];
    let mut sums = [0.0; ROWS as usize];
    unroll!(r < 8, {
        let both = scores[0][r].max(scores[1][r]);
        largest[r] = order::value(gpu::warp_max_u32(order::key(both)));
        unroll!(c < WARP_CHUNKS, {
            scores[c][r] = gpu::exp2(scores[c][r] - base(largest[r]));
            sums[r] += scores[c][r];
        });
    });
    unroll!(c < WARP_CHUNKS, {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = scores[c].map(f32::to_bits);
        let key = c as u32 * PAGE + gpu::lane();
        weights.set(key, U32x4([s0, s1, s2, s3]));
        weights.set(WARP_CHUNKS as u32 * PAGE + key, U32x4([s4, s5, s6, s7]));
    });
    let sum = row_sums(sums);
    if gpu::lane().is_multiple_of(4) {
        scratch.sum.set(warp * ROWS + gpu::lane() / 4, sum);
    }
    if gpu::lane() == 0 {
        unroll!(r < 8, { scratch.largest.set(warp * ROWS + r as u32, largest[r]) });
    }
    gpu::sync_warp(); // the weights are visible to the whole warp

    let mut values = [[0.0; OCTET as usize]; ROWS as usize];
    unroll!(c < WARP_CHUNKS, {
        let chunk = split * SPLIT_CHUNKS + warp + c as u32 * N_WARPS;
        if chunk >= first_chunk && chunk <= last_chunk {
            let weights = weights.from(c as u32 * PAGE);
            add_values::<E, D>(&mut values, a, heads[c], tile, chunk, weights);
        }
    });

    store_values::<D>(values, scratch.values.from(warp * ROWS * (D as u32 / 4)));
}

/// Scores of a chunk's keys; a lane has the key of its number. `head` is the first element of the
/// KV head in the chunk's page.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_scores<E: Cached, const D: usize>(
    a: &Arguments<E>,
    head: usize,
    query: SharedArray<U32x4>,
) -> PerRow {
    let (key, quarter) = (gpu::lane() % QUARTER, gpu::lane() / QUARTER);
    let last_octet = a.head_dim / OCTET - 1;
    let k_octets = head / OCTET as usize + key as usize;
    let mut scores = [[0.0; ROWS as usize]; LANE_KEYS];
    // Larger heads loop over spans of 64 dims: all loads of a span are in flight together.
    let n_spans = if D <= 64 { 1 } else { a.head_dim.div_ceil(64) };
    let mut span = 0;
    while span < n_spans {
        unroll!(step < if D <= 32 { 1 } else { 2 }, {
            let octet = (2 * span + step as u32) * LANE_KEYS as u32 + quarter;
            // Behind the head's dims the query is zero: any key will do.
            let k_octet = octet.min(last_octet);
            let raw = [0, 1, 2, 3]
                .map(|i| E::load(a.k_cache, k_octets + (k_octet * PAGE + i * QUARTER) as usize));
            let keys = raw.map(E::unpack);
            unroll!(r < 8, {
                let at = r as u32 * (D as u32 / 4) + octet * 2;
                let low = query.get(at).0.map(f32::from_bits);
                let high = query.get(at + 1).0.map(f32::from_bits);
                unroll!(i < LANE_KEYS, {
                    unroll!(d < 4, { scores[i][r] = gpu::fma(keys[i][d], low[d], scores[i][r]) });
                    unroll!(d < 4, {
                        scores[i][r] = gpu::fma(keys[i][d + 4], high[d], scores[i][r]);
                    });
                });
            });
        });
        span += 1;
    }

    // Sums over the quarters; each keeps the keys that have its number.
    let mut pairs = [[0.0; ROWS as usize]; 2];
    let upper = quarter & 2 != 0;
    unroll!(i < 2, {
        unroll!(r < 8, { pairs[i][r] = exchange(scores[i][r], scores[i + 2][r], upper, 16) });
    });
    let mut own = [0.0; ROWS as usize];
    let upper = quarter & 1 != 0;
    unroll!(r < 8, { own[r] = exchange(pairs[0][r], pairs[1][r], upper, 8) });
    own
}

/// Keeps `low`, or `high` in upper lanes, plus the same of the partner lane, which gets the other.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn exchange(low: f32, high: f32, upper: bool, lane_mask: u32) -> f32 {
    let (keep, send) = if upper { (high, low) } else { (low, high) };
    keep + gpu::shuffle_xor(send, lane_mask)
}

/// Hides from each row the keys that it doesn't see.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn mask(scores: &mut PerRow, window: u32, tile: &Tile, chunk: u32, visible: SharedArray<U32x2>) {
    let first = chunk * PAGE;
    if first >= first_key(tile.last_key, window) && first + PAGE <= tile.position + 1 {
        return; // every row sees the whole chunk
    }
    let key = first + gpu::lane();
    unroll!(r < 8, {
        let U32x2([first, last]) = visible.get(r as u32);
        if key < first || key > last {
            scores[r] = f32::NEG_INFINITY;
        }
    });
}

/// Adds a chunk's weighted values. The lane has eight dims of every `groups`th key.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_values<E: Cached, const D: usize>(
    values: &mut [[f32; OCTET as usize]; ROWS as usize],
    a: &Arguments<E>,
    head: usize,
    tile: &Tile,
    chunk: u32,
    weights: SharedArray<U32x4>,
) {
    let key_lanes = D as u32 / OCTET;
    let groups = gpu::WARP / key_lanes;
    let (octet, group) = (gpu::lane() % key_lanes, gpu::lane() / key_lanes);
    let n_octets = a.head_dim / OCTET;
    let octet = if octet < n_octets { octet } else { 0 };
    let v_octets = head / OCTET as usize + octet as usize;
    // A key that no row sees has weight 0, but its memory may hold anything: another one is read.
    let first = chunk * PAGE;
    let low = tile.first_key.saturating_sub(first);
    let high = if tile.last_key - first < PAGE { tile.last_key - first } else { PAGE - 1 };
    let mut key = group;
    while key < PAGE {
        let raw = [0, 1, 2, 3].map(|i| {
            let slot = (key + i * groups).max(low).min(high);
            E::load(a.v_cache, v_octets + (slot * n_octets) as usize)
        });
        unroll!(i < 4, {
            let v = E::unpack(raw[i]);
            let at = key + i as u32 * groups;
            let four = weights.get(at).0.map(f32::from_bits);
            let more = weights.get(WARP_CHUNKS as u32 * PAGE + at).0.map(f32::from_bits);
            unroll!(r < 4, {
                unroll!(d < 8, {
                    values[r][d] = gpu::fma(four[r], v[d], values[r][d]);
                    values[r + 4][d] = gpu::fma(more[r], v[d], values[r + 4][d]);
                });
            });
        });
        key += 4 * groups;
    }
}

/// Sums over the lanes; lane / 4 gets its row's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn row_sums(sums: PerRow) -> f32 {
    let bit = |mask: u32| gpu::lane() & mask != 0;
    let mut four = [0.0; 4];
    unroll!(r < 4, { four[r] = exchange(sums[r], sums[r + 4], bit(16), 16) });
    let mut two = [0.0; 2];
    unroll!(r < 2, { two[r] = exchange(four[r], four[r + 2], bit(8), 8) });
    let one = exchange(two[0], two[1], bit(4), 4);
    let one = one + gpu::shuffle_xor(one, 2);
    one + gpu::shuffle_xor(one, 1)
}

/// Adds up what the groups of lanes have of the warp's keys, and stores it; `out` is the warp's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_values<const D: usize>(
    mut values: [[f32; OCTET as usize]; ROWS as usize],
    out: SharedArray<U32x4>,
) {
    // Rows halve at each step, until every group of lanes has rows of its own.
    let mut n_rows = ROWS as usize;
    if D <= 128 {
        halve::<4>(&mut values, 16);
        n_rows = 4;
    }
    if D <= 64 {
        halve::<2>(&mut values, 8);
        n_rows = 2;
    }
    if D <= 32 {
        halve::<1>(&mut values, 4);
        n_rows = 1;
    }
    let key_lanes = D as u32 / OCTET;
    let first_row = gpu::lane() / key_lanes * n_rows as u32;
    let octet = gpu::lane() % key_lanes;
    unroll!(r < 8, {
        if r < n_rows {
            let [a, b, c, d, e, f, g, h] = values[r].map(f32::to_bits);
            let at = (first_row + r as u32) * (D as u32 / 4) + 2 * octet;
            out.set(at, U32x4([a, b, c, d]));
            out.set(at + 1, U32x4([e, f, g, h]));
        }
    });
}

/// Lanes with the bit of `lane_mask` keep rows `N..2 N`, the others the first `N`; both get what
/// the partner has of them.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn halve<const N: usize>(values: &mut [[f32; OCTET as usize]; ROWS as usize], lane_mask: u32) {
    let upper = gpu::lane() & lane_mask != 0;
    unroll!(r < N, {
        unroll!(d < 8, {
            values[r][d] = exchange(values[r][d], values[r + N][d], upper, lane_mask);
        });
    });
}
