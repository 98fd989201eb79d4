//! Weights on their way to a team's warps: a ring of slots in shared memory, which one warp fills by bulk
//! copies as soon as they are free, and eight warps empty. What is in flight does not take registers, and
//! does not stop where the warps wait for activations.
//!
//! A slot holds some parts of the two tiles of a unit, a half each. Both sides come by the same slots in the
//! same order.

use super::super::BLOCK_TILES;
use crate::gpu::{self, Global, SharedArray, U32x4};
use crate::tile::{PART_COLS, TileFormat};

/// Warps that empty a ring.
pub(super) const READERS: u32 = 8;
/// Parts of a tile that the warps of a ring take together, a chain or two each.
pub(super) const ROUND: u32 = 8;

/// 16-byte units of a round of one tile.
pub(super) const fn round_quads<F: TileFormat>() -> u32 {
    (ROUND * PART_COLS).div_ceil(F::RECORD_COLS) * F::RECORD_WORDS / 4
}

/// Rounds of a slot whose halves have `half` 16-byte units: as many as fit, two at most.
pub(super) const fn slot_rounds<F: TileFormat>(half: u32) -> u32 {
    assert!(round_quads::<F>() <= half);
    if 2 * round_quads::<F>() <= half { 2 } else { 1 }
}

/// One side's place in a ring of `SLOTS` slots of twice `HALF` 16-byte units.
#[derive(Clone, Copy)]
pub(super) struct Ring<const HALF: usize, const SLOTS: usize> {
    slots: SharedArray<U32x4>,
    /// Phases that end when a slot has been filled.
    full: SharedArray<u64>,
    /// Phases that end when a slot has been emptied.
    empty: SharedArray<u64>,
    slot: u32,
    /// Of the phase that fills the slot.
    parity: u32,
}

impl<const HALF: usize, const SLOTS: usize> Ring<HALF, SLOTS> {
    #[inline(always)]
    pub(super) fn new(
        slots: SharedArray<U32x4>,
        full: SharedArray<u64>,
        empty: SharedArray<u64>,
    ) -> Self {
        Ring { slots, full, empty, slot: 0, parity: 0 }
    }

    /// Makes the ring, before anyone uses it; one thread does.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn make(self) {
        let mut slot = 0;
        while slot < SLOTS as u32 {
            gpu::phase_init(self.full, slot, 1);
            gpu::phase_init(self.empty, slot, READERS);
            slot += 1;
        }
    }

    /// Half `tile` of the slot.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn half(self, tile: u32) -> SharedArray<U32x4> {
        self.slots.from((self.slot * BLOCK_TILES + tile) * HALF as u32)
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.slot += 1;
        if self.slot == SLOTS as u32 {
            self.slot = 0;
            self.parity ^= 1;
        }
    }

    /// Brings the first `n_parts` parts of a unit's two tiles, slot by slot. A whole warp calls it, of which
    /// one lane works.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn fill<F: TileFormat>(&mut self, tiles: [Global<U32x4>; 2], n_parts: u32) {
        let record_parts = F::RECORD_COLS / PART_COLS;
        let slot_quads = slot_rounds::<F>(HALF as u32) * round_quads::<F>();
        let n_quads = n_parts.div_ceil(record_parts) * (F::RECORD_WORDS / 4);
        let mut at = 0;
        while at < n_quads {
            if gpu::lane() == 0 {
                let left = n_quads - at;
                let quads = if left < slot_quads { left } else { slot_quads };
                gpu::phase_wait(self.empty, self.slot, self.parity ^ 1);
                gpu::phase_arrive_expecting(self.full, self.slot, BLOCK_TILES * quads);
                let [first, second] = tiles.map(|tile| tile.from(at as usize));
                gpu::copy_bulk(self.half(0), first, quads, self.full, self.slot);
                gpu::copy_bulk(self.half(1), second, quads, self.full, self.slot);
            }
            self.advance();
            at += slot_quads;
        }
    }

    /// Waits for the slot; half `tile` of it.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn take(self, tile: u32) -> SharedArray<U32x4> {
        gpu::phase_wait(self.full, self.slot, self.parity);
        self.half(tile)
    }

    /// Gives the slot back: the warp has read what it needs. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn give_back(&mut self) {
        gpu::sync_warp();
        if gpu::lane() == 0 {
            gpu::phase_arrive(self.empty, self.slot);
        }
        self.advance();
    }
}
