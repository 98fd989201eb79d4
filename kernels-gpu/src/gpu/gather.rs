//! How blocks that share a result bring their parts of it together, where one of them goes on with all.

use super::{GlobalMut, SharedArray};

/// The blocks along the grid's z, which have the same x and y, each with some words for one of them. Where the card
/// has clusters they are one, and send their words into that block's shared memory; elsewhere, or where they are
/// more than a cluster takes, the words go by device memory, and the last block to come has them all.
///
/// A kernel that uses it is declared with `gathers z`.
#[derive(Clone, Copy)]
pub struct Gather {
    /// Where the words come to in shared memory: [grid z, pitch]. Nothing else uses it.
    pub gathered: SharedArray<f32>,
    /// A counter of phases that says that they are there. Nothing else uses it.
    pub phase: SharedArray<u64>,
    /// Words that a block has at most, a multiple of 4.
    pub pitch: u32,
}

/// The way by device memory.
#[derive(Clone, Copy)]
pub struct Detour {
    /// [grid z, stride]
    pub parts: GlobalMut<f32>,
    /// Words from one block's to the next one's.
    pub stride: u32,
    /// The group's counter: 0, before and after.
    pub arrivals: GlobalMut<u32>,
}

impl Gather {
    /// Tells the other blocks that this one has begun: the kernel's first step. Every thread of the block must
    /// reach this call.
    #[inline(always)]
    pub fn begin(self) {
        if super::in_cluster() {
            if super::thread_x() == 0 {
                super::phase_init(self.phase, 0, 1);
                super::phases_are_made();
            }
            super::cluster_arrive();
        }
    }

    /// Hands over `n_words` words, the same number in each block, of which thread `t` of `n_threads` finds `t`, `t +
    /// n_threads` and so on. Says whether this is the block that goes on; then all words are visible to it. Every
    /// thread of the block must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn hand_over(
        self,
        n_threads: u32,
        n_words: u32,
        word: impl Fn(u32) -> f32,
        detour: Detour,
    ) -> bool {
        let (rank, n_blocks) = (super::block_z(), super::grid_z());
        let thread = super::thread_x();
        if super::in_cluster() {
            super::cluster_wait(); // all blocks have begun, and their counters are made
            let mut i = thread;
            while i < self.pitch {
                let v = if i < n_words { word(i) } else { 0.0 };
                super::send_to_first(self.gathered, rank * self.pitch + i, v, self.phase);
                i += n_threads;
            }
            if rank == 0 {
                // Words that came before they were expected count too: the phase lacks this arrival.
                if thread == 0 {
                    super::phase_arrive_expecting(self.phase, 0, n_blocks * self.pitch / 4);
                }
                super::phase_wait(self.phase, 0, 0); // everyone's words are there
            }
            return rank == 0;
        }

        let mut i = thread;
        while i < n_words {
            detour.parts.set((rank * detour.stride + i) as usize, word(i));
            i += n_threads;
        }
        super::sync_block(); // the block's words are complete
        if thread == 0 {
            let before = super::arrive(detour.arrivals, 0, n_blocks);
            self.gathered.cast::<u32>().set(0, before);
        }
        super::sync_block(); // whether the block is the last is known, and if so the others' words are there
        let is_last = self.gathered.cast::<u32>().get(0) + 1 == n_blocks;
        super::sync_block(); // read by everyone; its place is a word's
        if is_last {
            let mut block = 0;
            while block < n_blocks {
                let mut i = thread;
                while i < n_words {
                    let word = detour.parts.get((block * detour.stride + i) as usize);
                    self.gathered.set(block * self.pitch + i, word);
                    i += n_threads;
                }
                block += 1;
            }
            super::sync_block(); // all words are visible
        }
        is_last
    }
}
