//! A warp's chunk of a context, 32 keys of a page, on its way into shared memory: in pieces of 4 KiB, two
//! of them under way, the keys before the values. The first are asked for before anything else, so that
//! waiting for them and for queries is one wait.

use super::{Arguments, SPLIT_CHUNKS, Tile};
use crate::gpu::{self, Global, SharedArray, U32x4};
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

    /// Asks for the first pieces; for values that have to wait, into the machine's cache.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        stage: SharedArray<U32x4>,
    ) {
        self.ask_piece::<E, D>(a, 0, stage);
        self.ask_piece::<E, D>(a, 1, stage);
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

    /// Asks for a piece, keys first, into its slot of the warp's `stage`. What is not in the cache stays
    /// away. Each piece counts as one group of copies, even where there is nothing to copy.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask_piece<E: Cached, const D: usize>(
        &self,
        a: &Arguments<E>,
        piece: u32,
        stage: SharedArray<U32x4>,
    ) {
        let (n, units) = (n_pieces::<E, D>(), octet_units::<E>());
        let slot = stage.from(piece % SLOTS * PIECE);
        let n_octets = a.head_dim / OCTET;
        if self.is_seen && piece < n {
            let first = piece * piece_octets::<E, D>();
            let left = n_octets.saturating_sub(first);
            let count = if left < piece_octets::<E, D>() { left } else { piece_octets::<E, D>() };
            let is_new = |unit: u32| unit / units % PAGE == self.new_slot;
            let from = (self.head + first * PAGE) * units;
            copy(a.k_cache.cast(), from, count * PAGE * units, is_new, slot);
        } else if self.is_seen && piece < 2 * n {
            let first = (piece - n) * piece_keys::<E, D>();
            let row = n_octets * units;
            // Without a new key nobody divides.
            let is_new = |unit: u32| {
                self.new_slot < PAGE && first + gpu::div_u32(unit, row) == self.new_slot
            };
            let from = self.head * units + first * row;
            copy(a.v_cache.cast(), from, piece_keys::<E, D>() * row, is_new, slot);
        }
        gpu::commit_copies();
    }
}

/// Asks for the lane's share of `count` units from `from` on, but for those that `skip` names.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn copy(
    cache: Global<U32x4>,
    from: u32,
    count: u32,
    skip: impl Fn(u32) -> bool,
    slot: SharedArray<U32x4>,
) {
    const { assert!(PIECE == 8 * gpu::WARP) };
    unroll!(i < 8, {
        let unit = gpu::lane() + i as u32 * gpu::WARP;
        if unit < count && !skip(unit) {
            gpu::copy_async(slot, unit, cache, (from + unit) as usize);
        }
    });
}
