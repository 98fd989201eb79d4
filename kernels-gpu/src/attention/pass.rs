//! A warp's part of a split: the rows' scores of up to 32 keys, their softmax, and the weighted values.

use super::{Arguments, ROW_THREADS, ROWS, Row, SPLIT_CHUNKS, Scratch, Tile, base, first_key};
use crate::gpu::{self, SharedArray, U32x2, U32x4};
use crate::kv_cache::{Cached, OCTET, PAGE, Shape, table_entry};
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

/// Loads that are under way together.
const BURST: usize = 4;
/// Bytes that the machine's cache fetches at once.
const LINE: u32 = 128;

/// The warp's chunk of a pass: where it lies, and what of it is asked for before anything is computed,
/// so that waiting for keys and for queries is one wait.
#[derive(Clone, Copy)]
pub(super) struct Chunk<E: Cached> {
    /// Position / `PAGE`.
    chunk: u32,
    /// Whether any row sees any of its keys.
    is_seen: bool,
    /// First eight elements of the KV head in the chunk's page.
    head: u32,
    /// The key that is not in the cache, by its place in the page; `PAGE` where the chunk has none.
    new_slot: u32,
    keys: [[E::Raw; BURST]; 2],
}

impl<E: Cached> Chunk<E> {
    /// The warp's of the chunks from `first` on.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn find(a: &Arguments<E>, tile: &Tile, first: u32) -> Chunk<E> {
        let chunk = first + gpu::warp().wrapping_sub(first) % SPLIT_CHUNKS;
        let is_seen = chunk >= tile.first_key / PAGE && chunk <= tile.last_key / PAGE;
        let mut head = 0;
        if is_seen {
            let shape = Shape { n_kv_heads: a.n_kv_heads, head_dim: a.head_dim };
            let page = a.pages.get(table_entry(tile.sequence, chunk, a.pages_per_sequence));
            head = (shape.head(page, tile.kv_head) / OCTET as usize) as u32;
        }
        let has_new = tile.has_new && chunk == tile.last_key / PAGE;
        let new_slot = if has_new { tile.last_key % PAGE } else { PAGE };
        Chunk { chunk, is_seen, head, new_slot, keys: [[E::NONE; BURST]; 2] }
    }

    /// Whether all of its keys were there before the step.
    #[inline(always)]
    pub(super) fn is_old(&self, tile: &Tile) -> bool {
        (self.chunk + 1) * PAGE <= tile.first_new
    }

    /// A key whose memory may be read in place of `key`, itself where it is in the cache.
    #[inline(always)]
    fn cached(&self, key: u32) -> u32 {
        if key == self.new_slot { key ^ 1 } else { key }
    }

    /// Asks for its first keys, and into the cache of the machine for its values.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask<const D: usize>(&mut self, a: &Arguments<E>) {
        if self.is_seen {
            unroll!(i < 2, {
                if i < keys_ahead::<E, D>() {
                    self.keys[i] = load_keys::<E>(a, self, i as u32);
                }
            });
            let values = self.head as usize + (gpu::lane() * (a.head_dim / OCTET)) as usize;
            let values = a.v_cache.from(values * OCTET as usize);
            let mut dim = 0;
            while dim < a.head_dim {
                values.prefetch(dim as usize);
                dim += LINE / size_of::<E>() as u32;
            }
        }
    }
}

/// Bursts of keys that are asked for ahead: as many as a warp's registers hold.
const fn keys_ahead<E: Cached, const D: usize>() -> usize {
    match D {
        _ if !is_value_ahead::<E>() => 0,
        64 => 2,
        _ => 1,
    }
}

/// Whether a burst of values is: the softmax passes while it comes.
const fn is_value_ahead<E: Cached>() -> bool {
    size_of::<E::Raw>() == 16
}

/// Bursts of a chunk's keys: 32 dims each.
const fn key_bursts<const D: usize>() -> usize {
    D / 32
}

/// Bursts of a chunk's values.
const fn value_bursts<const D: usize>() -> usize {
    D / 32
}

/// Burst `burst` of keys: the lane has keys `lane % QUARTER + QUARTER i`, and of the burst's 32 dims
/// those of its quarter.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn load_keys<E: Cached>(a: &Arguments<E>, asked: &Chunk<E>, burst: u32) -> [E::Raw; BURST] {
    let octet = key_octet(burst, a.head_dim);
    let first = (asked.head + octet * PAGE) as usize;
    [0, 1, 2, 3].map(|i| E::load(a.k_cache, first + asked.cached(lane_key(i)) as usize))
}

/// Key `i` of the lane's.
#[inline(always)]
fn lane_key(i: u32) -> u32 {
    gpu::lane() % QUARTER + QUARTER * i
}

/// The lane's eight dims of a burst of keys.
#[inline(always)]
fn key_octet(burst: u32, head_dim: u32) -> u32 {
    // Behind the head's dims the query is zero: any key will do.
    (burst * BURST as u32 + gpu::lane() / QUARTER).min(head_dim / OCTET - 1)
}

/// Groups of lanes that have different keys' values; a lane has eight dims.
const fn value_groups<const D: usize>() -> u32 {
    gpu::WARP / (D as u32 / OCTET)
}

/// Burst `burst` of values: of every `value_groups`th key.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn load_values<E: Cached, const D: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk<E>,
    burst: u32,
) -> [E::Raw; BURST] {
    let v_octets = (asked.head + value_octet::<D>(a.head_dim)) as usize;
    [0, 1, 2, 3].map(|i| {
        let key = asked.cached(value_key::<E, D>(tile, asked, burst, i));
        E::load(a.v_cache, v_octets + (key * (a.head_dim / OCTET)) as usize)
    })
}

/// The lane's eight dims of values.
#[inline(always)]
fn value_octet<const D: usize>(head_dim: u32) -> u32 {
    let octet = gpu::lane() % (D as u32 / OCTET);
    if octet < head_dim / OCTET { octet } else { 0 }
}

/// Key `i` of the lane's in a burst of values, or, where no row sees that one, another: it has weight 0
/// then, but its memory may hold anything.
#[inline(always)]
fn value_key<E: Cached, const D: usize>(tile: &Tile, asked: &Chunk<E>, burst: u32, i: u32) -> u32 {
    let group = gpu::lane() / (D as u32 / OCTET);
    let first = asked.chunk * PAGE;
    let low = tile.first_key.saturating_sub(first);
    let high = if tile.last_key - first < PAGE { tile.last_key - first } else { PAGE - 1 };
    let key = group + (burst * BURST as u32 + i) * value_groups::<D>();
    key.max(low).min(high)
}

/// The rows over the warp's chunk; leaves its part of them in shared memory.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn chunk_pass<E: Cached, const D: usize>(
    a: &Arguments<E>,
    tile: &Tile,
    asked: &Chunk<E>,
    scratch: Scratch,
) {
    let mut scores = [f32::NEG_INFINITY; ROWS as usize];
    let mut first_values = [E::NONE; BURST];
    if asked.is_seen {
        scores = chunk_scores::<E, D>(a, asked, scratch.query, scratch.new_key);
        if is_value_ahead::<E>() {
            first_values = load_values::<E, D>(a, tile, asked, 0);
        }
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
        let mut burst = 0;
        let mut add = |mut raw: [E::Raw; BURST], burst: u32| {
            if asked.new_slot < PAGE {
                unroll!(i < 4, {
                    if value_key::<E, D>(tile, asked, burst, i as u32) == asked.new_slot {
                        raw[i] = E::load_shared(scratch.new_value, value_octet::<D>(a.head_dim));
                    }
                });
            }
            add_values::<E, D>(&mut values, raw, burst, weights);
        };
        if is_value_ahead::<E>() {
            add(first_values, 0);
            burst = 1;
        }
        while burst < value_bursts::<D>() as u32 {
            add(load_values::<E, D>(a, tile, asked, burst), burst);
            burst += 1;
        }
    }
    store_values::<D>(values, scratch.values.from(row * (D as u32 / 4)));
}

/// Scores of a chunk's keys; a lane has the key of its number.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn chunk_scores<E: Cached, const D: usize>(
    a: &Arguments<E>,
    asked: &Chunk<E>,
    query: SharedArray<U32x4>,
    new_key: SharedArray<U32x4>,
) -> PerRow {
    let mut scores = [[0.0; ROWS as usize]; LANE_KEYS];
    let mut add = |mut raw: [E::Raw; BURST], burst: u32| {
        if asked.new_slot < PAGE {
            unroll!(i < 4, {
                if lane_key(i as u32) == asked.new_slot {
                    raw[i] = E::load_shared(new_key, key_octet(burst, a.head_dim));
                }
            });
        }
        add_products::<E, D>(&mut scores, raw, burst, query);
    };
    unroll!(i < 2, {
        if i < keys_ahead::<E, D>() {
            add(asked.keys[i], i as u32);
        }
    });
    let mut burst = keys_ahead::<E, D>() as u32;
    while burst < key_bursts::<D>() as u32 {
        add(load_keys::<E>(a, asked, burst), burst);
        burst += 1;
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

/// Adds the products of the queries with a burst of keys.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_products<E: Cached, const D: usize>(
    scores: &mut [PerRow; LANE_KEYS],
    raw: [E::Raw; BURST],
    burst: u32,
    query: SharedArray<U32x4>,
) {
    let octet = burst * BURST as u32 + gpu::lane() / QUARTER;
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

/// Adds a burst of weighted values.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn add_values<E: Cached, const D: usize>(
    values: &mut [[f32; OCTET as usize]; ROWS as usize],
    raw: [E::Raw; BURST],
    burst: u32,
    weights: SharedArray<U32x4>,
) {
    let groups = value_groups::<D>();
    let first = gpu::lane() / (D as u32 / OCTET) + burst * BURST as u32 * groups;
    unroll!(i < 4, {
        let v = E::unpack(raw[i]);
        let weights = weights.get(first + i as u32 * groups).0.map(f32::from_bits);
        unroll!(r < 4, {
            unroll!(d < 8, { values[r][d] = gpu::fma(weights[r], v[d], values[r][d]) });
        });
    });
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
