//! The race checker of a launch: of blocks that run one after another, or of blocks that are alive
//! together.

use super::clocks::Together;
use super::overlap::{AtWork, Early};
use super::shadow::{Apart, Other};
use super::{Access, FaultKind, Launch};
use crate::kernel::Kernel;
use std::panic::Location;

/// The checks' memory of one launch.
#[allow(clippy::large_enum_variant)] // a launch has one
pub(super) enum Checker {
    Apart(Apart),
    Together(Together),
}

impl Checker {
    /// Of a launch behind those that may be `at_work`; blocks that are alive together must wait for them first.
    pub(super) fn new<K: Kernel>(kernel: &K, launch: &Launch, at_work: AtWork) -> Checker {
        if launch.spec.together_on.is_some() {
            let blocks = (0..launch.n_blocks()).map(|number| launch.place(number));
            Checker::Together(Together::new(kernel, blocks.collect()))
        } else {
            Checker::Apart(Apart::new(kernel, at_work))
        }
    }

    /// A block goes on, which of blocks one after another is its beginning.
    pub(super) fn begin_turn(&mut self, index: [u32; 3]) {
        match self {
            Checker::Apart(checker) => checker.begin_block(index),
            Checker::Together(checker) => checker.begin_turn(index),
        }
    }

    /// All warps of the block meet, a bit for each.
    pub(super) fn barrier(&mut self, warps: u32) {
        match self {
            Checker::Apart(checker) => checker.barrier(),
            Checker::Together(checker) => checker.meet(warps),
        }
    }

    pub(super) fn warp_barrier(&mut self, warp: usize) {
        match self {
            Checker::Apart(checker) => checker.warp_barrier(warp),
            Checker::Together(checker) => checker.meet(1 << warp),
        }
    }

    pub(super) fn arrive(&mut self, counter: u64, thread: u32) {
        match self {
            Checker::Apart(checker) => checker.arrive(counter, thread),
            Checker::Together(checker) => {
                checker.hear(counter, thread);
                checker.signal(counter, thread);
            }
        }
    }

    /// What only blocks do that are alive together.
    pub(super) fn together(&mut self) -> Option<&mut Together> {
        match self {
            Checker::Apart(_) => None,
            Checker::Together(checker) => Some(checker),
        }
    }

    /// What the launch does before it has waited for those before it, where that is followed.
    pub(super) fn early(&mut self) -> Option<&mut Early> {
        match self {
            Checker::Apart(checker) => Some(checker.early()),
            Checker::Together(_) => None,
        }
    }

    /// What is wrong with an access to global memory, if the thread has not waited for the launches before.
    pub(super) fn judge_early(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        thread: u32,
    ) -> Option<FaultKind> {
        match self {
            Checker::Apart(checker) => checker.judge_early(address, bytes, access, thread),
            Checker::Together(_) => None,
        }
    }

    /// What may be at work when the next launch begins.
    pub(super) fn end(self, kernel: &'static str) -> AtWork {
        match self {
            Checker::Apart(checker) => checker.end(kernel),
            Checker::Together(_) => AtWork::default(),
        }
    }

    /// Notes an access to global memory; an earlier one that races comes back.
    pub(super) fn note_global(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
        thread: u32,
        location: &'static Location<'static>,
    ) -> Option<Other> {
        match self {
            Checker::Apart(checker) => {
                checker.note_global(address, bytes, access, thread, location)
            }
            Checker::Together(checker) => {
                checker.note_global(address, bytes, access, thread, location)
            }
        }
    }

    /// Notes an access to shared memory, inside it: whether the block wrote all of it before, and
    /// an earlier access that races.
    pub(super) fn note_shared(
        &mut self,
        offset: u32,
        bytes: usize,
        access: Access,
        thread: u32,
        location: &'static Location<'static>,
    ) -> (bool, Option<Other>) {
        match self {
            Checker::Apart(checker) => checker.note_shared(offset, bytes, access, thread, location),
            Checker::Together(checker) => {
                checker.note_shared(offset, bytes, access, thread, location)
            }
        }
    }
}
