//! The batch of a decode step made that of the step behind it, without the host.

use crate::gpu::{self, Global, GlobalMut, U32x4};

/// Threads of a block: a sequence each.
pub const BLOCK: u32 = 128;

kernel! {
    /// Each sequence's token becomes the one that was chosen for it, a position further; grid (blocks of
    /// sequences).
    pub fn follow = follow_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct Follow {
        /// [n_sequences]
        chosen: Global<u32>,
        /// [n_sequences]
        tokens: GlobalMut<u32>,
        /// [n_sequences]
        positions: GlobalMut<u32>,
        /// Attention's tiles, one a sequence: [n_sequences]
        tiles: GlobalMut<U32x4>,
        /// What the sampler counts by: [n_sequences]
        counters: GlobalMut<u32>,
        n_sequences: u32,
    }
}

#[inline(always)]
fn follow_body(a: Follow) {
    let i = gpu::block_x() * BLOCK + gpu::thread_x();
    if i >= a.n_sequences {
        return;
    }
    let i = i as usize;
    a.tokens.set(i, a.chosen.get(i));
    a.positions.set(i, a.positions.get(i) + 1);
    a.counters.set(i, a.counters.get(i) + 1);
    let U32x4([first, count, sequence, first_new]) = a.tiles.get(i);
    a.tiles.set(i, U32x4([first, count, sequence, first_new + 1]));
}
