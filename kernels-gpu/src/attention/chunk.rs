//! A warp's chunk of a context, 32 keys of a page, on its way into registers: in pieces, the keys before the
//! values, a few of them under way. The first are asked for before anything else, so that waiting for them
//! and for queries is one wait.
//!
//! A piece of keys has 32 dims: lane 4 g + t the octet t of them, of the keys g, g + 8, g + 16 and g + 24. One
//! of values has 64 dims of 16 keys: the lane octet g of the keys 2t, 2t + 1, 2t + 8 and 2t + 9.

use super::{Arguments, SPLIT_CHUNKS, Scratch, Tile};
use crate::gpu;
use crate::kv_cache::{Cached, OCTET, PAGE, Shape, table_entry};

/// What a lane has of a piece: four octets.
pub(super) type Piece<E> = [<E as Cached>::Raw; 4];
/// Bytes that the machine's cache fetches at once.
const LINE: u32 = 128;

/// Pieces of a chunk's keys, and of its values.
pub(super) const fn n_pieces<const D: usize>() -> usize {
    D / 32
}

/// The lane's octet of a piece of keys.
#[inline(always)]
pub(super) fn key_octet(lane: u32, piece: usize) -> u32 {
    4 * piece as u32 + lane % 4
}

/// The lane's octet of a piece of values.
#[inline(always)]
fn value_octet(lane: u32, piece: usize) -> u32 {
    8 * (piece / 2) as u32 + lane / 4
}

/// The lane's key number `i` of a piece of values.
#[inline(always)]
fn value_key(lane: u32, piece: usize, i: usize) -> u32 {
    (16 * (piece % 2) + 8 * (i / 2) + i % 2) as u32 + 2 * (lane % 4)
}

/// An octet of the head. Behind its last the query is zero, and nobody reads the sums of values: any will do.
#[inline(always)]
fn there(octet: u32, n_octets: u32) -> u32 {
    if octet < n_octets { octet } else { 0 }
}

/// The warp's chunk of a pass, with `AHEAD` pieces under way.
#[derive(Clone, Copy)]
pub(super) struct Chunk<E: Cached, const AHEAD: usize> {
    /// Position / `PAGE`.
    pub chunk: u32,
    /// Whether any row sees any of its keys.
    pub is_seen: bool,
    /// First eight elements of the KV head in the chunk's page.
    head: u32,
    /// The key that is not in the cache, by its place in the page; `PAGE` where the chunk has none.
    new_slot: u32,
    /// Octets of a head.
    n_octets: u32,
    pub lane: u32,
    /// Pieces under way, by turns.
    pieces: [Piece<E>; AHEAD],
}

impl<E: Cached, const AHEAD: usize> Chunk<E, AHEAD> {
    /// The warp's of the chunks from `first` on.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn find(a: &Arguments<E>, tile: &Tile, first: u32) -> Self {
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
        Chunk {
            chunk,
            is_seen,
            head,
            new_slot,
            n_octets: gpu::anew(a.head_dim / OCTET),
            lane: gpu::anew(gpu::lane()),
            pieces: [[E::NONE; 4]; AHEAD],
        }
    }

    /// Whether all of its keys were there before the step.
    #[inline(always)]
    pub(super) fn is_old(&self, tile: &Tile) -> bool {
        (self.chunk + 1) * PAGE <= tile.first_new
    }

    /// The first and the last key that any row sees, by their places in the page.
    #[inline(always)]
    fn seen(&self, tile: &Tile) -> (u32, u32) {
        let first = self.chunk * PAGE;
        let left = tile.last_key - first;
        (tile.first_key.saturating_sub(first), if left < PAGE { left } else { PAGE - 1 })
    }

    /// Whether some row sees its first key and some row its last, and none of its keys is new.
    #[inline(always)]
    fn is_whole(&self, tile: &Tile) -> bool {
        self.new_slot == PAGE && self.seen(tile) == (0, PAGE - 1)
    }

    /// Asks for the first pieces; for those that have to wait, into the machine's cache.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask<const D: usize>(&mut self, a: &Arguments<E>, tile: &Tile) {
        if !self.is_seen {
            return;
        }
        // A whole warp goes one way. Most go the first, where no load has a branch of its own.
        if self.is_whole(tile) {
            unroll!(piece < AHEAD, {
                self.pieces[piece] = self.load::<D, true>(a, tile, piece);
            });
        } else {
            unroll!(piece < AHEAD, {
                self.pieces[piece] = self.load::<D, false>(a, tile, piece);
            });
        }
        if AHEAD < 2 * n_pieces::<D>() {
            let (first, size) = (self.head as usize * OCTET as usize, a.head_dim * PAGE);
            let line = LINE / size_of::<E>() as u32;
            let mut at = self.lane * line;
            while at < size {
                if at >= AHEAD as u32 * 32 * PAGE {
                    a.k_cache.prefetch(first + at as usize);
                }
                a.v_cache.prefetch(first + at as usize);
                at += gpu::WARP * line;
            }
        }
    }

    /// Piece `piece`, keys first, in whose place the next one is asked for. What is new comes from shared
    /// memory.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn take<const D: usize>(
        &mut self,
        a: &Arguments<E>,
        tile: &Tile,
        piece: usize,
        scratch: Scratch,
    ) -> Piece<E> {
        let (n, slot) = (n_pieces::<D>(), piece % AHEAD);
        let taken = self.pieces[slot];
        let taken = if piece < n {
            self.with_new_key(taken, piece, scratch)
        } else {
            self.with_new_value(taken, piece - n, scratch)
        };
        if piece + AHEAD < 2 * n {
            self.pieces[slot] = self.load::<D, false>(a, tile, piece + AHEAD);
        }
        taken
    }

    /// Asks for piece `piece`, keys first. `WHOLE` says that `is_whole` holds.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load<const D: usize, const WHOLE: bool>(
        &self,
        a: &Arguments<E>,
        tile: &Tile,
        piece: usize,
    ) -> Piece<E> {
        let n = n_pieces::<D>();
        if piece < n {
            self.load_keys::<WHOLE>(a, piece)
        } else {
            self.load_values::<WHOLE>(a, tile, piece - n)
        }
    }

    /// Keys, but for the new one. Of keys that no row sees there is what memory holds.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_keys<const WHOLE: bool>(&self, a: &Arguments<E>, piece: usize) -> Piece<E> {
        let octet = there(key_octet(self.lane, piece), self.n_octets);
        let first = (self.head + octet * PAGE + self.lane / 4) as usize;
        let mut keys = [E::NONE; 4];
        unroll!(i < 4, {
            if WHOLE || self.lane / 4 + 8 * i as u32 != self.new_slot {
                keys[i] = E::load(a.k_cache, first + 8 * i);
            }
        });
        keys
    }

    /// Values, but for the new one. Those that no row sees are zeroes: their weight is 0, but their memory
    /// may hold anything.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_values<const WHOLE: bool>(
        &self,
        a: &Arguments<E>,
        tile: &Tile,
        piece: usize,
    ) -> Piece<E> {
        let n_octets = self.n_octets;
        let octet = there(value_octet(self.lane, piece), n_octets);
        let (low, high) = self.seen(tile);
        let is_whole = WHOLE || self.is_whole(tile);
        let mut values = [E::NONE; 4];
        unroll!(i < 4, {
            let key = value_key(self.lane, piece, i);
            if is_whole || key >= low && key <= high && key != self.new_slot {
                values[i] = E::load(a.v_cache, (self.head + key * n_octets + octet) as usize);
            }
        });
        values
    }

    /// Keys with the new one in its place.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn with_new_key(&self, mut keys: Piece<E>, piece: usize, scratch: Scratch) -> Piece<E> {
        if self.new_slot < PAGE && self.lane / 4 == self.new_slot % 8 {
            let octet = there(key_octet(self.lane, piece), self.n_octets);
            let new = E::load_shared(scratch.new_key, octet);
            unroll!(i < 4, {
                if i as u32 == self.new_slot / 8 {
                    keys[i] = new;
                }
            });
        }
        keys
    }

    /// Values with the new one in its place.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn with_new_value(&self, mut values: Piece<E>, piece: usize, scratch: Scratch) -> Piece<E> {
        if self.new_slot < PAGE && self.lane % 4 == self.new_slot % 8 / 2 {
            let octet = there(value_octet(self.lane, piece), self.n_octets);
            let new = E::load_shared(scratch.new_value, octet);
            unroll!(i < 4, {
                if value_key(self.lane, piece, i) == self.new_slot {
                    values[i] = new;
                }
            });
        }
        values
    }
}
