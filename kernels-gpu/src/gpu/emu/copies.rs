//! Copies of single threads from device memory into shared memory. What is on its way may be there from the moment it
//! was asked for until the thread has waited for it: here it comes as late as it can, and until then nobody may touch
//! the place.

use super::block;
use super::{Access, FaultKind};
use crate::gpu::{Global, SharedArray, U32x4};
use std::collections::VecDeque;
use std::panic::Location;

/// Bytes of a copy.
const UNIT: usize = size_of::<U32x4>();

/// A copy that is on its way.
#[derive(Clone, Copy)]
struct Copy {
    /// Device address.
    from: u64,
    /// Byte offset in shared memory.
    to: u32,
    location: &'static Location<'static>,
}

/// What a thread has on its way.
#[derive(Default)]
struct OfThread {
    /// Not in a group yet.
    open: Vec<Copy>,
    /// Groups, the oldest first.
    groups: VecDeque<Vec<Copy>>,
}

/// What the threads of a block have on their way.
#[derive(Default)]
pub(super) struct Copies {
    threads: Vec<OfThread>,
    /// Of each unit of shared memory, whether one is on its way there.
    arriving: Vec<bool>,
    n_arriving: usize,
}

impl Copies {
    /// Nothing, as at a block's start.
    pub(super) fn clear(&mut self) {
        self.threads.clear();
        self.arriving.clear();
        self.n_arriving = 0;
    }

    /// Whether a copy is on its way to any of these bytes.
    pub(super) fn touch(&self, offset: u32, bytes: usize) -> bool {
        let (first, end) = (offset as usize / UNIT, (offset as usize + bytes).div_ceil(UNIT));
        self.n_arriving > 0 && self.arriving.iter().skip(first).take(end - first).any(|&is| is)
    }

    fn of(&mut self, thread: u32) -> &mut OfThread {
        let n = self.threads.len().max(thread as usize + 1);
        self.threads.resize_with(n, OfThread::default);
        &mut self.threads[thread as usize]
    }

    fn begin(&mut self, thread: u32, copy: Copy) {
        let unit = copy.to as usize / UNIT;
        let n = self.arriving.len().max(unit + 1);
        self.arriving.resize(n, false);
        self.arriving[unit] = true;
        self.n_arriving += 1;
        self.of(thread).open.push(copy);
    }

    /// The oldest group, where there are more than `left`: its copies have come.
    fn end(&mut self, thread: u32, left: u32) -> Vec<Copy> {
        let groups = &mut self.of(thread).groups;
        if groups.len() <= left as usize {
            return Vec::new();
        }
        let copies = groups.pop_front().unwrap_or_default();
        for copy in &copies {
            self.arriving[copy.to as usize / UNIT] = false;
        }
        self.n_arriving -= copies.len();
        copies
    }
}

/// Starts a copy of 16 bytes from device memory that nothing writes during the kernel into shared memory: unit `i` of
/// `from` to unit `j` of `to`. It belongs to the group that the thread's next `close_copies` closes, and may be there
/// for the thread once that group has been waited for, for others behind a barrier then; nobody may touch its place before.
#[track_caller]
pub fn copy_later(from: Global<U32x4>, i: usize, to: SharedArray<U32x4>, j: u32) {
    let location = Location::caller();
    let address = super::element::<U32x4>(from.address, from.len, i);
    super::global_access::<U32x4>(address, Access::Read);
    let place = super::shared_access::<U32x4>(to.offset, to.len, j, Access::Write);
    // SAFETY: `shared_access` refused places outside the block's shared memory. As at the block's start, so that a read
    // before the copy is there shows even with checks off.
    unsafe { place.write(U32x4([u32::MAX; 4])) };
    let copy = Copy { from: address, to: to.offset + j * UNIT as u32, location };
    block::with_copies(|copies, thread| copies.begin(thread, copy));
}

/// Makes the thread's copies since the last call a group, which may be empty.
pub fn close_copies() {
    block::with_copies(|copies, thread| {
        let own = copies.of(thread);
        let group = std::mem::take(&mut own.open);
        own.groups.push_back(group);
    });
}

/// Waits until at most `LEFT` of the thread's groups, the last ones, are on their way.
pub fn wait_for_copies<const LEFT: u32>() {
    loop {
        let copies = block::with_copies(|copies, thread| copies.end(thread, LEFT));
        if copies.is_empty()
            && block::with_copies(|copies, thread| copies.of(thread).groups.len()) <= LEFT as usize
        {
            return;
        }
        for copy in copies {
            let place = block::shared(copy.to as usize, UNIT, UNIT, Access::Write, copy.location);
            // SAFETY: both places were checked when the copy began, and device memory lives as long as the launch.
            unsafe { place.cast::<U32x4>().write((copy.from as *const U32x4).read()) };
        }
    }
}

/// The fault of an access to where a copy is on its way.
pub(super) fn arriving(offset: u32) -> FaultKind {
    FaultKind::Misuse(format!(
        "shared memory at byte {offset}, to which a copy is on its way, is touched"
    ))
}
