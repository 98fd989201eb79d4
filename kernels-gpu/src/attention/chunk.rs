//! A warp's chunk of a context, 32 keys of a page, on its way into shared memory: in pieces of 4 KiB, two
//! of them under way, the keys before the values. The first are asked for before anything else, so that
//! waiting for them and for queries is one wait.

use super::{Arguments, SPLIT_CHUNKS, Scratch, Tile};
use crate::gpu::{self, SharedArray, U32x4};
use crate::kv_cache::{Cached, OCTET, PAGE, Shape, table_entry};

/// 16-byte units of a piece.
pub(super) const PIECE: u32 = 256;
/// Pieces of a warp that have room.
pub(super) const SLOTS: u32 = 2;
/// Bytes that the machine's cache fetches at once.
const LINE: u32 = 128;

/// Units of eight elements.
const fn octet_units<E: Cached>() -> u32 {
    size_of::<E::Raw>() as u32 / 16
}

/// Pieces of a chunk's keys, and of its values.
pub(super) const fn n_pieces<E: Cached, const D: usize>() -> u32 {
    (D as u32 / OCTET * PAGE * octet_units::<E>()).div_ceil(PIECE)
}

/// Eight dims of all keys that a piece has.
pub(super) const fn piece_octets<E: Cached, const D: usize>() -> u32 {
    D as u32 / OCTET / n_pieces::<E, D>()
}

/// Keys whose values a piece has.
pub(super) const fn piece_keys<E: Cached, const D: usize>() -> u32 {
    PAGE / n_pieces::<E, D>()
}

/// The warp's chunk of a pass.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    /// Position / `PAGE`.
    pub chunk: u32,
    /// Whether any row sees any of its keys.
    pub is_seen: bool,
    /// First eight elements of the KV head in the chunk's page.
    head: u32,
    /// The key that is not in the cache, by its place in the page; `PAGE` where the chunk has none.
    pub new_slot: u32,
}

impl Chunk {
    /// The warp's of the chunks from `first` on.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn find<E: Cached>(a: &Arguments<E>, tile: &Tile, first: u32) -> Chunk {
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
        Chunk { chunk, is_seen, head, new_slot }
    }

    /// Whether all of its keys were there before the step.
    #[inline(always)]
    pub(super) fn is_old(&self, tile: &Tile) -> bool {
        (self.chunk + 1) * PAGE <= tile.first_new
    }

    /// The first and the last key that any row sees, by their places in the page.
    #[inline(always)]
    pub(super) fn seen(&self, tile: &Tile) -> (u32, u32) {
        let first = self.chunk * PAGE;
        let left = tile.last_key - first;
        (tile.first_key.saturating_sub(first), if left < PAGE { left } else { PAGE - 1 })
    }

    /// Asks for the first pieces.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        tile: &Tile,
        scratch: Scratch,
    ) {
        self.ask_piece::<E, D>(a, tile, 0, stage(scratch));
        self.ask_second::<E, D>(a, tile, scratch);
    }

    /// Asks for the second piece; for values that have to wait, into the machine's cache.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask_second<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        tile: &Tile,
        scratch: Scratch,
    ) {
        self.ask_piece::<E, D>(a, tile, 1, stage(scratch));
        if self.is_seen && n_pieces::<E, D>() > 1 {
            let values = self.head as usize + (gpu::lane() * (a.head_dim / OCTET)) as usize;
            let values = a.v_cache.from(values * OCTET as usize);
            let mut dim = 0;
            while dim < a.head_dim {
                values.prefetch(dim as usize);
                dim += LINE / size_of::<E>() as u32;
            }
        }
    }

    /// Asks for a piece, keys first, into its slot of the warp's `stage`. The new key and its value stay away;
    /// values that no row sees become zeroes: their weight is 0, but their memory may hold anything. Each
    /// piece counts as one group of copies, even where there is nothing to copy.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask_piece<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        tile: &Tile,
        piece: u32,
        stage: SharedArray<U32x4>,
    ) {
        let (n, units) = (n_pieces::<E, D>(), octet_units::<E>());
        let slot = stage.from(piece % SLOTS * PIECE);
        let n_octets = a.head_dim / OCTET;
        if self.is_seen && piece < n {
            let count = key_octets::<E, D>(piece, n_octets) * PAGE * units;
            let from = (self.head + piece * piece_octets::<E, D>() * PAGE) * units;
            each_unit(count, |unit| {
                if unit / units % PAGE != self.new_slot {
                    gpu::copy_async(slot, unit, a.k_cache.cast(), (from + unit) as usize);
                }
            });
        } else if self.is_seen && piece < 2 * n {
            let row = n_octets * units;
            let first = (piece - n) * piece_keys::<E, D>();
            let from = self.head * units + first * row;
            let (low, high) = self.seen(tile);
            let all = self.new_slot == PAGE && low == 0 && high == PAGE - 1;
            each_unit(piece_keys::<E, D>() * row, |unit| {
                // Nobody divides where every key is seen.
                let key = if all { 0 } else { first + gpu::div_u32(unit, row) };
                if key >= low && key <= high && key != self.new_slot {
                    gpu::copy_async(slot, unit, a.v_cache.cast(), (from + unit) as usize);
                } else if key != self.new_slot {
                    slot.set(unit, U32x4([0; 4]));
                }
            });
        }
        gpu::commit_copies();
    }

    /// Waits for piece `piece`, and puts what is new in its place there. All 32 lanes must reach this call;
    /// they see all of it behind.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn wait_for<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        piece: u32,
        scratch: Scratch,
    ) {
        gpu::wait_copies::<{ SLOTS - 1 }>();
        let (n, units) = (n_pieces::<E, D>(), octet_units::<E>());
        let slot = stage(scratch).from(piece % SLOTS * PIECE);
        let n_octets = a.head_dim / OCTET;
        let mut lane = gpu::lane();
        if self.new_slot < PAGE && piece < n {
            let first = piece * piece_octets::<E, D>();
            while lane < key_octets::<E, D>(piece, n_octets) * units {
                let to = (lane / units * PAGE + self.new_slot) * units + lane % units;
                slot.set(to, scratch.new_key.get(first * units + lane));
                lane += gpu::WARP;
            }
        } else if self.new_slot / piece_keys::<E, D>() + n == piece {
            while lane < n_octets * units {
                let to = self.new_slot % piece_keys::<E, D>() * n_octets * units + lane;
                slot.set(to, scratch.new_value.get(lane));
                lane += gpu::WARP;
            }
        }
        gpu::sync_warp(); // the piece is visible to the whole warp
    }
}

/// Eight dims of its keys that a piece really has.
#[inline(always)]
pub(super) fn key_octets<E: Cached, const D: usize>(piece: u32, n_octets: u32) -> u32 {
    let left = n_octets.saturating_sub(piece * piece_octets::<E, D>());
    if left < piece_octets::<E, D>() { left } else { piece_octets::<E, D>() }
}

/// Where the warp leaves its part of the rows: in place of the second piece, which nobody needs any more
/// when the pass is over.
#[inline(always)]
pub(super) fn part_of_warp(scratch: Scratch, warp: u32) -> SharedArray<U32x4> {
    scratch.stages.from((warp * SLOTS + 1) * PIECE)
}

/// The warp's room for pieces.
#[inline(always)]
pub(super) fn stage(scratch: Scratch) -> SharedArray<U32x4> {
    scratch.stages.from(gpu::warp() * SLOTS * PIECE)
}

/// Calls `with` for the lane's share of `count` units of a piece.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn each_unit(count: u32, with: impl Fn(u32)) {
    const { assert!(PIECE == 8 * gpu::WARP) };
    unroll!(i < 8, {
        let unit = gpu::lane() + i as u32 * gpu::WARP;
        if unit < count {
            with(unit);
        }
    });
}
