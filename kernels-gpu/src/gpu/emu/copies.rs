//! Copies into shared memory that are under way: they arrive when their thread waits for them.

use crate::gpu::{SharedArray, U32x4};
use std::collections::VecDeque;

/// A copy: where to, and what.
type Copy = (SharedArray<U32x4>, u32, U32x4);

/// A thread's copies.
#[derive(Default)]
pub(super) struct Copies {
    open: Vec<Copy>,
    groups: VecDeque<Vec<Copy>>,
}

impl Copies {
    /// Notes one.
    pub(super) fn start(&mut self, to: SharedArray<U32x4>, i: u32, value: U32x4) {
        self.open.push((to, i, value));
    }

    /// Makes a group of those noted.
    pub(super) fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// Those of all groups but the last `n`, which arrive now.
    pub(super) fn before(&mut self, n: usize) -> Vec<Copy> {
        let n_done = self.groups.len().saturating_sub(n);
        self.groups.drain(..n_done).flatten().collect()
    }

    /// What nobody waited for never comes.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.groups.clear();
    }
}
