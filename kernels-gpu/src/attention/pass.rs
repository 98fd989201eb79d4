//! A warp's part of a split: the rows' scores of up to 32 keys, their softmax, and the weighted values.

use super::chunk::{Chunk, Piece, key_octet, n_pieces};
use super::products::{Multiplied, PRODUCT_ROWS, Parts};
use super::state::base;
use super::{Arguments, BLOCK, Row, Scratch, Tile, first_key, part_of_warp, row_threads};
use crate::gpu::{self, SharedArray, U32x2, U32x4};
use crate::kv_cache::PAGE;
use core::f32::consts::LOG2_E;

/// Shuffles of a pass, and of a row that is shared.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn shuffles(head_dim: usize) -> u32 {
    4 + if head_dim == 64 { 4 } else { 5 }
}

/// Matrix instructions of a pass.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn matrix_ops<E: Multiplied, const D: usize>() -> u32 {
    n_pieces::<D>() as u32 * 16 * E::PRODUCTS
}

/// Lanes that have a head's row together, 4 dims each, or 8.
pub(super) const fn head_lanes<const D: usize>() -> u32 {
    if D == 64 { 16 } else { 32 }
}

/// Heads that a block has in hand at once.
pub(super) const fn heads_at_once<const D: usize>() -> u32 {
    BLOCK / head_lanes::<D>()
}

/// The first of a lane's dims of a head; the second four are 128 behind.
#[inline(always)]
pub(super) fn lane_dim<const D: usize>() -> u32 {
    4 * (gpu::lane() % head_lanes::<D>())
}

/// Puts the queries of the block's rows, and what they see, into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn store_query<E: Multiplied, const D: usize, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    row_chunk: u32,
    scratch: Scratch,
) {
    let first = gpu::warp() * (gpu::WARP / head_lanes::<D>());
    if first < R as u32 {
        let at = first + gpu::lane() / head_lanes::<D>();
        let row = Row::find::<E, R>(a, tile, row_chunk, at);
        let token = tile.first_token as usize + row.token as usize;
        let from = token * a.row_stride as usize + (row.head * a.head_dim) as usize;
        let mut quads = [[0.0; 4]; 2];
        unroll!(i < 2, {
            let dim = lane_dim::<D>() + 128 * i as u32;
            if row.token < tile.n_tokens && dim < a.head_dim {
                let U32x4(q) = a.qkv.cast::<U32x4>().get(from / 4 + (dim / 4) as usize);
                quads[i] = q.map(f32::from_bits);
            }
        });
        share_query::<E, D, R>(a, (at, R as u32), quads, scratch);
    }
    set_visible::<E, R>(a, tile, row_chunk, scratch);
}

/// Puts a query row into shared memory: `head_lanes` lanes bring it, with zeroes behind the head's dims, and
/// none of it where `at` is none of the `n_rows` that there are. It is scaled, and so by a power of two that
/// its largest element comes to 2^14: then no part that matters is subnormal or infinite. All 32 lanes must
/// reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn share_query<E: Multiplied, const D: usize, const R: usize>(
    a: &Arguments<E>,
    (at, n_rows): (u32, u32),
    quads: [[f32; 4]; 2],
    scratch: Scratch,
) {
    let scale = a.scale * LOG2_E;
    let quads = quads.map(|quad| quad.map(|q| q * scale));
    let mut largest = 0f32;
    unroll!(i < 2, {
        unroll!(j < 4, { largest = largest.max(quads[i][j].abs()) });
    });
    unroll!(i < 4, { largest = largest.max(gpu::shuffle_xor(largest, 1 << i)) });
    if head_lanes::<D>() == 32 {
        largest = largest.max(gpu::shuffle_xor(largest, 16));
    }
    // 2^14 / 2^exponent and its inverse, both normal numbers.
    let exponent = largest.to_bits() >> 23;
    let exponent = if exponent < 15 { 15 } else { exponent };
    let exponent = if exponent > 254 { 254 } else { exponent };
    let up = f32::from_bits((268 - exponent) << 23);
    if at >= n_rows {
        return;
    }
    if lane_dim::<D>() == 0 {
        scratch.unscale.set(at, f32::from_bits((exponent - 14) << 23));
    }
    unroll!(i < 2, {
        let dim = lane_dim::<D>() + 128 * i as u32;
        if dim < D as u32 {
            let [q, r, s, t] = quads[i].map(|q| q * up);
            let (low, high) = (E::split([q, r]), E::split([s, t]));
            let place = at * (D as u32 / 4) + dim / 4;
            scratch.query.set(place, U32x4([low[0], low[1], high[0], high[1]]));
            if E::N_PARTS == 3 {
                third_parts::<D, R>(scratch).cast().set(place, U32x2([low[2], high[2]]));
            }
        }
    });
}

/// The queries of rows `n_rows..R`, which don't exist: zeroes, for which nobody need wait.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn share_no_queries<E: Multiplied, const D: usize, const R: usize>(
    n_rows: u32,
    scratch: Scratch,
) {
    let thread = gpu::thread_x();
    if thread >= n_rows && thread < R as u32 {
        scratch.unscale.set(thread, 0.0);
    }
    let quads = D as u32 / 4;
    let mut at = n_rows * quads + thread;
    while at < R as u32 * quads {
        scratch.query.set(at, U32x4([0; 4]));
        if E::N_PARTS == 3 {
            third_parts::<D, R>(scratch).cast().set(at, U32x2([0; 2]));
        }
        at += BLOCK;
    }
}

/// The third parts of queries, where there are three: [row][dim], units of eight dims.
#[inline(always)]
fn third_parts<const D: usize, const R: usize>(scratch: Scratch) -> SharedArray<U32x4> {
    scratch.query.from((R * D / 4) as u32)
}

/// Puts what the thread's row sees into shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn set_visible<E: Multiplied, const R: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    row_chunk: u32,
    scratch: Scratch,
) {
    if gpu::thread_x().is_multiple_of(row_threads::<R>()) {
        let at = gpu::thread_x() / row_threads::<R>();
        let row = Row::find::<E, R>(a, tile, row_chunk, at);
        let last = tile.position + row.token;
        let exists = row.token < tile.n_tokens;
        let seen = if exists { [first_key(last, a.window), last] } else { [1, 0] };
        scratch.visible.set(at, U32x2(seen));
    }
}

/// The row of which the lane has four or eight neighbours in a sum.
#[inline(always)]
fn lane_row<const R: usize>(lane: u32) -> u32 {
    // Where there are fewer rows than a product has, lanes do the same twice.
    const { assert!(R as u32 <= PRODUCT_ROWS) };
    lane / 4 % R as u32
}

/// `R` rows over the warp's chunk; leaves its part of them in shared memory, where any row sees it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn chunk_pass<E: Multiplied, const D: usize, const R: usize, const AHEAD: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &mut Chunk<E, AHEAD>,
    scratch: Scratch,
) {
    let out = part_of_warp::<D, R>(scratch, gpu::warp());
    if !asked.is_seen {
        nothing::<D, R>(asked.lane, out, scratch);
        return; // a whole warp; no block barrier here
    }
    let (n, lane) = (n_pieces::<D>(), asked.lane);
    let mut sums = [[0.0; 4]; 4];
    unroll!(piece < 8, {
        if piece < n {
            let keys = asked.take::<D>(a, tile, piece, scratch);
            add_scores::<E, D, R>(&mut sums, keys, (lane, piece), scratch);
        }
    });

    let unscale = scratch.unscale.get(lane_row::<R>(lane));
    let mut scores = [[0.0; 2]; 4];
    unroll!(i < 4, {
        scores[i] = [(sums[i][0] + sums[i][2]) * unscale, (sums[i][1] + sums[i][3]) * unscale];
    });
    mask::<R>(&mut scores, lane, a.window, tile, asked.chunk, scratch.visible);
    let mut largest = f32::NEG_INFINITY;
    unroll!(i < 4, { largest = largest.max(scores[i][0].max(scores[i][1])) });
    largest = largest.max(gpu::shuffle_xor(largest, 1));
    largest = largest.max(gpu::shuffle_xor(largest, 2));
    let mut weights = [[0.0; 2]; 4];
    unroll!(i < 4, { weights[i] = scores[i].map(|score| gpu::exp2(score - base(largest))) });
    let pairs = weights.map(|[one, other]| one + other);
    let sum = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]);
    let sum = sum + gpu::shuffle_xor(sum, 1);
    let sum = sum + gpu::shuffle_xor(sum, 2);
    if lane.is_multiple_of(4) && lane / 4 < R as u32 {
        let at = lane_row::<R>(lane) * (BLOCK / gpu::WARP) + gpu::warp();
        scratch.largest.cast().set(at, largest);
        scratch.sum.cast().set(at, sum);
    }

    let parts = weights.map(|pair| E::split(pair.map(|weight| weight * E::WEIGHT_SCALE)));
    let mut sums = [[0.0; 4]; 8];
    unroll!(piece < 8, {
        if piece < n {
            let values = asked.take::<D>(a, tile, n + piece, scratch);
            let weights = [parts[2 * (piece % 2)], parts[2 * (piece % 2) + 1]];
            add_values::<E>(&mut sums, weights, values, piece);
            if piece % 2 == 1 {
                store_values::<D, R>(sums, (lane, piece / 2), out);
            }
        }
    });
}

/// Leaves the part of a chunk that no row sees.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn nothing<const D: usize, const R: usize>(lane: u32, out: SharedArray<U32x4>, scratch: Scratch) {
    if lane < R as u32 {
        let at = lane * (BLOCK / gpu::WARP) + gpu::warp();
        scratch.largest.cast().set(at, f32::NEG_INFINITY);
        scratch.sum.cast().set(at, 0f32);
    }
    let mut at = lane;
    while at < (R * D / 4) as u32 {
        out.set(at, U32x4([0; 4]));
        at += gpu::WARP;
    }
}

/// Adds the products of a piece's dims: the lane gets its row's of keys 8 i + 2t and the one behind, each as
/// a sum of two.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_scores<E: Multiplied, const D: usize, const R: usize>(
    sums: &mut [[f32; 4]; 4],
    keys: Piece<E>,
    (lane, piece): (u32, usize),
    scratch: Scratch,
) {
    let octet = lane_row::<R>(lane) * (D as u32 / 8) + key_octet(lane, piece);
    let mut third = [0; 4];
    if E::N_PARTS == 3 {
        third = third_parts::<D, R>(scratch).get(octet).0;
    }
    unroll!(pair < 2, {
        let U32x4([a, b, c, d]) = scratch.query.get(2 * octet + pair as u32);
        let q = [[a, b, third[2 * pair]], [c, d, third[2 * pair + 1]]];
        unroll!(i < 4, {
            let k = [E::along(keys[i], 2 * pair), E::along(keys[i], 2 * pair + 1)];
            sums[i] = E::multiply(sums[i], q, k);
        });
    });
}

/// Hides from each row the keys that it doesn't see.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn mask<const R: usize>(
    scores: &mut [[f32; 2]; 4],
    lane: u32,
    window: u32,
    tile: &Tile,
    chunk: u32,
    visible: SharedArray<U32x2>,
) {
    let first = chunk * PAGE;
    if first >= first_key(tile.last_key, window) && first + PAGE <= tile.position + 1 {
        return; // every row sees the whole chunk
    }
    let U32x2([low, high]) = visible.get(lane_row::<R>(lane));
    let lane_first = first + 2 * (lane % 4);
    unroll!(i < 4, {
        unroll!(j < 2, {
            let key = lane_first + (8 * i + j) as u32;
            if key < low || key > high {
                scores[i][j] = f32::NEG_INFINITY;
            }
        });
    });
}

/// Where four dims of a row stand in a warp's part: so that lanes which write together, and those which read
/// together, meet in no bank.
#[inline(always)]
pub(super) fn place<const D: usize>(row: u32, quad: u32) -> u32 {
    row * (D as u32 / 4) + (quad ^ (quad / 8 % 2 + row % 2 * 2))
}

/// Adds the weighted values of a piece, to nothing if it is the first of its dims: the lane gets dims 16t + i
/// and 16t + 8 + i of its row, each as a sum of two.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_values<E: Multiplied>(
    sums: &mut [[f32; 4]; 8],
    weights: [Parts; 2],
    values: Piece<E>,
    piece: usize,
) {
    unroll!(i < 8, {
        let pairs = [E::across(values[0], values[1], i), E::across(values[2], values[3], i)];
        let before = if piece.is_multiple_of(2) { [0.0; 4] } else { sums[i] };
        sums[i] = E::multiply(before, weights, pairs);
    });
}

/// Stores the chunk's weighted values of 64 dims.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_values<const D: usize, const R: usize>(
    sums: [[f32; 4]; 8],
    (lane, sixty_four): (u32, usize),
    out: SharedArray<U32x4>,
) {
    if lane / 4 < R as u32 {
        let first = 16 * sixty_four as u32 + 4 * (lane % 4);
        unroll!(octet < 2, {
            let quad = first + 2 * octet as u32;
            let [a, b, c, d, e, f, g, h] = sums.map(|sum| (sum[octet] + sum[octet + 2]).to_bits());
            out.set(place::<D>(lane_row::<R>(lane), quad), U32x4([a, b, c, d]));
            out.set(place::<D>(lane_row::<R>(lane), quad + 1), U32x4([e, f, g, h]));
        });
    }
}
