//! A warp's part of a split: the rows' scores of up to 32 keys, their softmax, and the weighted values.

use super::chunk::{
    Chunk, PIECE, SLOTS, key_octets, n_pieces, part_of_warp, piece_keys, piece_octets, stage,
};
use super::{Arguments, Row, Scratch, Tile, base, first_key, row_threads};
use crate::gpu::{self, SharedArray, U32x2, U32x4};
use crate::kv_cache::{Cached, OCTET, PAGE};
use crate::order;
use core::f32::consts::LOG2_E;

/// Keys whose scores a lane computes over a quarter of the dims: so that a query element that is
/// read from shared memory serves four products.
const LANE_KEYS: usize = BURST;
/// Lanes of a quarter.
const QUARTER: u32 = gpu::WARP / LANE_KEYS as u32;

/// Shuffles of a pass over `rows` rows.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn shuffles(rows: usize, head_dim: usize) -> u32 {
    let sums = if rows == 4 { 6 } else { 5 };
    let values = match head_dim {
        32 => 4 * rows + 16,
        64 => 4 * rows + 8,
        128 => 4 * rows,
        _ => 0,
    };
    (3 * rows + sums + values) as u32
}

/// Puts the thread's columns of its query row, and what the row sees, into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn store_query<E: Cached, const D: usize, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    row: Row,
    scratch: Scratch,
) {
    let (row_at, thread) =
        (gpu::thread_x() / row_threads::<R>(), gpu::thread_x() % row_threads::<R>());
    let exists = row.token < tile.n_tokens;
    let scale = a.scale * LOG2_E;
    let token = tile.first_token as usize + row.token as usize;
    let from = token * a.row_stride as usize + (row.head * a.head_dim) as usize;
    if thread < D as u32 / 4 {
        let mut words = U32x4([0; 4]);
        if exists && thread < a.head_dim / 4 {
            let U32x4(q) = a.qkv.cast::<U32x4>().get(from / 4 + thread as usize);
            words = U32x4(q.map(|bits| (f32::from_bits(bits) * scale).to_bits()));
        }
        scratch.query.set(row_at * (D as u32 / 4) + thread, words);
    }
    set_visible::<E, R>(a, tile, row, scratch);
}

/// Puts what the thread's row sees into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn set_visible<E: Cached, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    row: Row,
    scratch: Scratch,
) {
    if gpu::thread_x().is_multiple_of(row_threads::<R>()) {
        let last = tile.position + row.token;
        let exists = row.token < tile.n_tokens;
        let seen = if exists { [first_key(last, a.window), last] } else { [1, 0] };
        scratch.visible.set(gpu::thread_x() / row_threads::<R>(), U32x2(seen));
    }
}

/// Keys of a lane that are multiplied together.
const BURST: usize = 4;

/// Groups of lanes that have different keys' values; a lane has eight dims.
const fn value_groups<const D: usize>() -> u32 {
    gpu::WARP / (D as u32 / OCTET)
}

/// The weights of a key in the chunk's shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn key_weights<const R: usize>(weights: SharedArray<f32>, key: u32) -> [f32; R] {
    const { assert!(R == 2 || R == 4) };
    let mut words = [0; 4];
    if R == 4 {
        words = weights.cast::<U32x4>().get(key).0;
    } else {
        [words[0], words[1]] = weights.cast::<U32x2>().get(key).0;
    }
    core::array::from_fn(|r| f32::from_bits(words[r]))
}

/// Puts them there.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn set_key_weights<const R: usize>(weights: SharedArray<f32>, key: u32, of_rows: [f32; R]) {
    let words = of_rows.map(f32::to_bits);
    if R == 4 {
        weights.cast::<U32x4>().set(key, U32x4([words[0], words[1], words[R - 2], words[R - 1]]));
    } else {
        weights.cast::<U32x2>().set(key, U32x2([words[0], words[1]]));
    }
}

/// `R` rows over the warp's chunk; leaves its part of them in shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn chunk_pass<E: Cached, const D: usize, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk,
    scratch: Scratch,
) {
    let mut scores = [f32::NEG_INFINITY; R];
    if asked.is_seen {
        scores = chunk_scores::<E, D, R>(a, tile, asked, scratch);
        mask(&mut scores, a.window, tile, asked.chunk, scratch.visible);
    }

    let mut largest = [0.0; R];
    unroll!(r < R, {
        largest[r] = order::value(gpu::warp_max_u32(order::key(scores[r])));
        scores[r] = gpu::exp2(scores[r] - base(largest[r]));
    });
    let weights = scratch.weights.from(gpu::warp() * PAGE * R as u32);
    set_key_weights(weights, gpu::lane(), scores);
    let row = gpu::warp() * R as u32;
    let sum = row_sums(scores);
    let row_lanes = gpu::WARP / R as u32;
    if gpu::lane().is_multiple_of(row_lanes) {
        scratch.sum.set(row + gpu::lane() / row_lanes, sum);
    }
    if gpu::lane() == 0 {
        unroll!(r < R, { scratch.largest.set(row + r as u32, largest[r]) });
    }
    gpu::sync_warp(); // the weights are visible to the whole warp

    let mut values = [[0.0; OCTET as usize]; R];
    if asked.is_seen {
        chunk_values::<E, D, R>(&mut values, a, tile, asked, scratch);
    }
    store_values::<D, R>(values, part_of_warp(scratch, gpu::warp()));
}

/// Scores of a chunk's keys; a lane has the key of its number.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_scores<E: Cached, const D: usize, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk,
    scratch: Scratch,
) -> [f32; R] {
    let stage = stage(scratch);
    let mut scores = [[0.0; R]; LANE_KEYS];
    let mut piece = 0;
    while piece < n_pieces::<E, D>() {
        asked.wait_for::<E, D>(a, piece, scratch);
        let slot = stage.from(piece % SLOTS * PIECE);
        let n_octets = key_octets::<E, D>(piece, a.head_dim / OCTET);
        let mut octet = gpu::lane() / QUARTER;
        while octet < piece_octets::<E, D>() && n_octets > 0 {
            // Behind the head's dims the query is zero: any key will do.
            let there = if octet < n_octets { octet } else { 0 };
            let raw = [0, 1, 2, 3]
                .map(|i| E::load_shared(slot, there * PAGE + gpu::lane() % QUARTER + QUARTER * i));
            let octet_of_head = piece * piece_octets::<E, D>() + octet;
            add_products::<E, D, R>(&mut scores, raw, octet_of_head, scratch.query);
            octet += BURST as u32;
        }
        gpu::sync_warp(); // read by everyone; another one takes its place
        asked.ask_piece::<E, D>(a, tile, piece + SLOTS, stage);
        piece += 1;
    }

    // Sums over the quarters; each keeps the keys that have its number.
    let quarter = gpu::lane() / QUARTER;
    let mut pairs = [[0.0; R]; 2];
    let upper = quarter & 2 != 0;
    unroll!(i < 2, {
        unroll!(r < R, { pairs[i][r] = exchange(scores[i][r], scores[i + 2][r], upper, 16) });
    });
    let mut own = [0.0; R];
    let upper = quarter & 1 != 0;
    unroll!(r < R, { own[r] = exchange(pairs[0][r], pairs[1][r], upper, 8) });
    own
}

/// Adds the products of the queries' dims from `8 octet` on with the lane's keys.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_products<E: Cached, const D: usize, const R: usize>(
    scores: &mut [[f32; R]; LANE_KEYS],
    raw: [E::Raw; BURST],
    octet: u32,
    query: SharedArray<U32x4>,
) {
    let keys = raw.map(E::unpack);
    unroll!(r < R, {
        let at = r as u32 * (D as u32 / 4) + octet * 2;
        let low = query.get(at).0.map(f32::from_bits);
        let high = query.get(at + 1).0.map(f32::from_bits);
        unroll!(i < 4, {
            unroll!(d < 4, { scores[i][r] = gpu::fma(keys[i][d], low[d], scores[i][r]) });
            unroll!(d < 4, { scores[i][r] = gpu::fma(keys[i][d + 4], high[d], scores[i][r]) });
        });
    });
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
fn mask<const R: usize>(
    scores: &mut [f32; R],
    window: u32,
    tile: &Tile,
    chunk: u32,
    visible: SharedArray<U32x2>,
) {
    let first = chunk * PAGE;
    if first >= first_key(tile.last_key, window) && first + PAGE <= tile.position + 1 {
        return; // every row sees the whole chunk
    }
    let key = first + gpu::lane();
    unroll!(r < R, {
        let U32x2([first, last]) = visible.get(r as u32);
        if key < first || key > last {
            scores[r] = f32::NEG_INFINITY;
        }
    });
}

/// Adds a chunk's weighted values.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_values<E: Cached, const D: usize, const R: usize>(
    values: &mut [[f32; OCTET as usize]; R],
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk,
    scratch: Scratch,
) {
    let (stage, n_octets) = (stage(scratch), a.head_dim / OCTET);
    let weights = scratch.weights.from(gpu::warp() * PAGE * R as u32);
    let octet = gpu::lane() % (D as u32 / OCTET);
    let octet = if octet < n_octets { octet } else { 0 };
    let mut piece = 0;
    while piece < n_pieces::<E, D>() {
        let of_both = n_pieces::<E, D>() + piece;
        asked.wait_for::<E, D>(a, of_both, scratch);
        let slot = stage.from(of_both % SLOTS * PIECE);
        let mut key = gpu::lane() / (D as u32 / OCTET);
        while key < piece_keys::<E, D>() {
            unroll!(i < 4, {
                let key = key + i as u32 * value_groups::<D>();
                let v = E::unpack(E::load_shared(slot, key * n_octets + octet));
                let of_rows = key_weights::<R>(weights, piece * piece_keys::<E, D>() + key);
                unroll!(r < R, {
                    unroll!(d < 8, { values[r][d] = gpu::fma(of_rows[r], v[d], values[r][d]) });
                });
            });
            key += BURST as u32 * value_groups::<D>();
        }
        gpu::sync_warp(); // read by everyone; another one takes its place
        asked.ask_piece::<E, D>(a, tile, of_both + SLOTS, stage);
        piece += 1;
    }
}

/// Sums over the lanes; lane / (32 / R) gets its row's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn row_sums<const R: usize>(sums: [f32; R]) -> f32 {
    let bit = |mask: u32| gpu::lane() & mask != 0;
    let one = if R == 4 {
        let low = exchange(sums[0], sums[R - 2], bit(16), 16);
        let high = exchange(sums[1], sums[R - 1], bit(16), 16);
        exchange(low, high, bit(8), 8)
    } else {
        let one = exchange(sums[0], sums[1], bit(16), 16);
        one + gpu::shuffle_xor(one, 8)
    };
    let one = one + gpu::shuffle_xor(one, 4);
    let one = one + gpu::shuffle_xor(one, 2);
    one + gpu::shuffle_xor(one, 1)
}

/// Adds up what the groups of lanes have of the warp's keys, and stores it; `out` begins at the warp's
/// rows.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_values<const D: usize, const R: usize>(
    mut values: [[f32; OCTET as usize]; R],
    out: SharedArray<U32x4>,
) {
    // Of groups that are added, each takes half of the rows; a single row both have, and one stores it.
    let (mut first_row, mut n_rows, mut stores) = (0, R, true);
    unroll!(step < 4, {
        let mask = 16 >> step;
        if mask >= D as u32 / OCTET {
            let upper = gpu::lane() & mask != 0;
            if n_rows > 1 {
                n_rows /= 2;
                unroll!(r < 2, {
                    if r < n_rows {
                        values[r] = halve(values[r], values[r + n_rows], mask);
                    }
                });
                first_row += if upper { n_rows } else { 0 };
            } else {
                unroll!(d < 8, { values[0][d] += gpu::shuffle_xor(values[0][d], mask) });
                stores &= !upper;
            }
        }
    });
    if !stores {
        return;
    }
    let octet = gpu::lane() % (D as u32 / OCTET);
    unroll!(r < R, {
        if r < n_rows {
            let [a, b, c, d, e, f, g, h] = values[r].map(f32::to_bits);
            let at = (first_row + r) as u32 * (D as u32 / 4) + 2 * octet;
            out.set(at, U32x4([a, b, c, d]));
            out.set(at + 1, U32x4([e, f, g, h]));
        }
    });
}

/// Lanes with the bit of `lane_mask` get row `high`, the others row `low`, each with what the partner
/// has of it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn halve(
    low: [f32; OCTET as usize],
    high: [f32; OCTET as usize],
    lane_mask: u32,
) -> [f32; OCTET as usize] {
    let upper = gpu::lane() & lane_mask != 0;
    let mut kept = low;
    unroll!(d < 8, { kept[d] = exchange(low[d], high[d], upper, lane_mask) });
    kept
}
