//! A warp's part of a split: the rows' scores of up to 32 keys, their softmax, and the weighted values.

use super::chunk::{Chunk, PIECE, SLOTS, n_pieces, piece_keys, piece_octets};
use super::{Arguments, ROW_THREADS, ROWS, Row, Scratch, Tile, base, first_key};
use crate::gpu::{self, SharedArray, U32x2, U32x4};
use crate::kv_cache::{Cached, OCTET, PAGE};
use crate::order;
use core::f32::consts::LOG2_E;

/// Keys whose scores a lane computes over a quarter of the dims: so that a query element that is
/// read from shared memory serves four products.
const LANE_KEYS: usize = BURST;
/// Lanes of a quarter.
const QUARTER: u32 = gpu::WARP / LANE_KEYS as u32;

/// One score or sum of each row.
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
    if thread < D as u32 / 4 {
        let mut words = U32x4([0; 4]);
        if exists && thread < a.head_dim / 4 {
            let U32x4(q) = a.qkv.cast::<U32x4>().get(from / 4 + thread as usize);
            words = U32x4(q.map(|bits| (f32::from_bits(bits) * scale).to_bits()));
        }
        scratch.query.set(row_at * (D as u32 / 4) + thread, words);
    }
    set_visible(a, tile, row, scratch);
}

/// Puts what the thread's row sees into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn set_visible<E: Cached>(a: &Arguments<E>, tile: &Tile, row: Row, scratch: Scratch) {
    if gpu::thread_x().is_multiple_of(ROW_THREADS) {
        let last = tile.position + row.token;
        let exists = row.token < tile.n_tokens;
        let seen = if exists { [first_key(last, a.window), last] } else { [1, 0] };
        scratch.visible.set(gpu::thread_x() / ROW_THREADS, U32x2(seen));
    }
}

/// Keys of a lane that are multiplied together.
const BURST: usize = 4;

/// Groups of lanes that have different keys' values; a lane has eight dims.
const fn value_groups<const D: usize>() -> u32 {
    gpu::WARP / (D as u32 / OCTET)
}

/// The warp's room for pieces.
#[inline(always)]
pub(super) fn stage(scratch: Scratch) -> SharedArray<U32x4> {
    scratch.stages.from(gpu::warp() * SLOTS * PIECE)
}

/// The rows over the warp's chunk; leaves its part of them in shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn chunk_pass<E: Cached, const D: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk,
    scratch: Scratch,
) {
    let mut scores = [f32::NEG_INFINITY; ROWS as usize];
    if asked.is_seen {
        scores = chunk_scores::<E, D>(a, asked, scratch);
        mask(&mut scores, a.window, tile, asked.chunk, scratch.visible);
    }

    let mut largest = [0.0; ROWS as usize];
    unroll!(r < 4, {
        largest[r] = order::value(gpu::warp_max_u32(order::key(scores[r])));
        scores[r] = gpu::exp2(scores[r] - base(largest[r]));
    });
    let weights = scratch.weights.from(gpu::warp() * PAGE);
    weights.set(gpu::lane(), U32x4(scores.map(f32::to_bits)));
    let row = gpu::warp() * ROWS;
    let sum = row_sums(scores);
    if gpu::lane().is_multiple_of(8) {
        scratch.sum.set(row + gpu::lane() / 8, sum);
    }
    if gpu::lane() == 0 {
        unroll!(r < 4, { scratch.largest.set(row + r as u32, largest[r]) });
    }
    gpu::sync_warp(); // the weights are visible to the whole warp

    let mut values = [[0.0; OCTET as usize]; ROWS as usize];
    if asked.is_seen {
        chunk_values::<E, D>(&mut values, a, tile, asked, scratch);
    }
    // In place of the first piece, which nobody needs any more.
    store_values::<D>(values, stage(scratch));
}

/// Scores of a chunk's keys; a lane has the key of its number.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_scores<E: Cached, const D: usize>(
    a: &Arguments<E>,
    asked: &Chunk,
    scratch: Scratch,
) -> PerRow {
    let stage = stage(scratch);
    let mut scores = [[0.0; ROWS as usize]; LANE_KEYS];
    let mut piece = 0;
    while piece < n_pieces::<E, D>() {
        gpu::wait_copies::<{ SLOTS - 1 }>();
        gpu::sync_warp(); // the piece is visible to the whole warp
        let slot = stage.from(piece % SLOTS * PIECE);
        let mut in_piece = gpu::lane() / QUARTER;
        while in_piece < piece_octets::<E, D>() {
            let octet = piece * piece_octets::<E, D>() + in_piece;
            let raw = [0, 1, 2, 3].map(|i| {
                let key = gpu::lane() % QUARTER + QUARTER * i;
                if octet >= a.head_dim / OCTET {
                    E::NONE
                } else if key == asked.new_slot {
                    E::load_shared(scratch.new_key, octet)
                } else {
                    E::load_shared(slot, in_piece * PAGE + key)
                }
            });
            add_products::<E, D>(&mut scores, raw, octet, scratch.query);
            in_piece += BURST as u32;
        }
        gpu::sync_warp(); // read by everyone; another one takes its place
        asked.ask_piece::<E, D>(a, piece + SLOTS, stage);
        piece += 1;
    }

    // Sums over the quarters; each keeps the keys that have its number.
    let quarter = gpu::lane() / QUARTER;
    let mut pairs = [[0.0; ROWS as usize]; 2];
    let upper = quarter & 2 != 0;
    unroll!(i < 2, {
        unroll!(r < 4, { pairs[i][r] = exchange(scores[i][r], scores[i + 2][r], upper, 16) });
    });
    let mut own = [0.0; ROWS as usize];
    let upper = quarter & 1 != 0;
    unroll!(r < 4, { own[r] = exchange(pairs[0][r], pairs[1][r], upper, 8) });
    own
}

/// Adds the products of the queries' dims from `8 octet` on with the lane's keys.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_products<E: Cached, const D: usize>(
    scores: &mut [PerRow; LANE_KEYS],
    raw: [E::Raw; BURST],
    octet: u32,
    query: SharedArray<U32x4>,
) {
    let keys = raw.map(E::unpack);
    unroll!(r < 4, {
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
fn mask(scores: &mut PerRow, window: u32, tile: &Tile, chunk: u32, visible: SharedArray<U32x2>) {
    let first = chunk * PAGE;
    if first >= first_key(tile.last_key, window) && first + PAGE <= tile.position + 1 {
        return; // every row sees the whole chunk
    }
    let key = first + gpu::lane();
    unroll!(r < 4, {
        let U32x2([first, last]) = visible.get(r as u32);
        if key < first || key > last {
            scores[r] = f32::NEG_INFINITY;
        }
    });
}

/// Adds a chunk's weighted values.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_values<E: Cached, const D: usize>(
    values: &mut [[f32; OCTET as usize]; ROWS as usize],
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk,
    scratch: Scratch,
) {
    let (stage, n_octets) = (stage(scratch), a.head_dim / OCTET);
    let weights = scratch.weights.from(gpu::warp() * PAGE);
    let octet = gpu::lane() % (D as u32 / OCTET);
    let (first, last) = asked.seen(tile);
    let mut piece = 0;
    while piece < n_pieces::<E, D>() {
        gpu::wait_copies::<{ SLOTS - 1 }>();
        gpu::sync_warp(); // the piece is visible to the whole warp
        let slot = stage.from((n_pieces::<E, D>() + piece) % SLOTS * PIECE);
        let mut in_piece = gpu::lane() / (D as u32 / OCTET);
        while in_piece < piece_keys::<E, D>() {
            unroll!(i < 4, {
                let in_piece = in_piece + i as u32 * value_groups::<D>();
                let key = piece * piece_keys::<E, D>() + in_piece;
                // A key that no row sees has weight 0, but its memory may hold anything.
                let raw = if octet >= n_octets || key < first || key > last {
                    E::NONE
                } else if key == asked.new_slot {
                    E::load_shared(scratch.new_value, octet)
                } else {
                    E::load_shared(slot, in_piece * n_octets + octet)
                };
                let (v, weights) = (E::unpack(raw), weights.get(key).0.map(f32::from_bits));
                unroll!(r < 4, {
                    unroll!(d < 8, { values[r][d] = gpu::fma(weights[r], v[d], values[r][d]) });
                });
            });
            in_piece += BURST as u32 * value_groups::<D>();
        }
        gpu::sync_warp(); // read by everyone; another one takes its place
        asked.ask_piece::<E, D>(a, n_pieces::<E, D>() + piece + SLOTS, stage);
        piece += 1;
    }
}

/// Sums over the lanes; lane / 8 gets its row's.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn row_sums(sums: PerRow) -> f32 {
    let bit = |mask: u32| gpu::lane() & mask != 0;
    let mut two = [0.0; 2];
    unroll!(r < 2, { two[r] = exchange(sums[r], sums[r + 2], bit(16), 16) });
    let one = exchange(two[0], two[1], bit(8), 8);
    let one = one + gpu::shuffle_xor(one, 4);
    let one = one + gpu::shuffle_xor(one, 2);
    one + gpu::shuffle_xor(one, 1)
}

/// Adds up what the groups of lanes have of the warp's keys, and stores it; `out` begins at the warp's
/// rows.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_values<const D: usize>(
    mut values: [[f32; OCTET as usize]; ROWS as usize],
    out: SharedArray<U32x4>,
) {
    // Rows halve at each step, until every group of lanes has rows of its own, or two share one.
    let mut n_rows = ROWS as usize;
    if D <= 128 {
        values[0] = halve(values[0], values[2], 16);
        values[1] = halve(values[1], values[3], 16);
        n_rows = 2;
    }
    if D <= 64 {
        values[0] = halve(values[0], values[1], 8);
        n_rows = 1;
    }
    if D <= 32 {
        unroll!(d < 8, { values[0][d] += gpu::shuffle_xor(values[0][d], 4) });
        if gpu::lane() & 4 != 0 {
            return; // the partner stores the row
        }
    }
    let row_lanes = if D <= 32 { 8 } else { D as u32 / OCTET };
    let first_row = gpu::lane() / row_lanes * n_rows as u32;
    let octet = gpu::lane() % row_lanes;
    unroll!(r < 4, {
        if r < n_rows {
            let [a, b, c, d, e, f, g, h] = values[r].map(f32::to_bits);
            let at = (first_row + r as u32) * (D as u32 / 4) + 2 * octet;
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
