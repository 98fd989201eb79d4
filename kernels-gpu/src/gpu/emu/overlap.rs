//! Launches that overlap: on a card one may begin while those before it are at work, and until it has waited for them
//! (`gpu::wait_for_previous`) it may read nothing that they write, and write nothing that they use.
//!
//! The emulator runs launches one after another. With checks on it notes what each has used, and which launches may
//! still be at work when the next one begins: the last one, and those that could be when that began, unless every block of
//! it let the next one start (`gpu::let_next_start`, or its end) behind its own wait.

use super::{Access, FaultKind};
use std::ops::Range;

/// What launches use that may still be at work when the next one begins.
#[derive(Debug, Default)]
pub struct AtWork(Vec<Used>);

impl AtWork {
    /// All launches so far are done.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Bytes, by address; none of them touches the next.
type Ranges = Vec<Range<u64>>;

/// What a launch has used.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) kernel: &'static str,
    pub(super) written: Ranges,
    /// Read, or in a view that it may only read; some may have been written too.
    pub(super) read: Ranges,
}

fn touch(ranges: &Ranges, bytes: &Range<u64>) -> bool {
    let next = ranges.partition_point(|range| range.end <= bytes.start);
    ranges.get(next).is_some_and(|range| range.start < bytes.end)
}

impl Used {
    fn is_disturbed_by(&self, access: Access, bytes: &Range<u64>) -> bool {
        touch(&self.written, bytes) || access != Access::Read && touch(&self.read, bytes)
    }
}

/// `ranges` in order, those that touch each other as one.
pub(super) fn joined(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Ranges = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// A launch until it has waited for those before it.
pub(super) struct Early {
    at_work: AtWork,
    /// Threads of the block that runs that have waited: a bit for each, by warp.
    waited: [u32; 32],
    /// Whether a block let the next launch start before its own wait was over.
    lets_early: bool,
}

impl Early {
    pub(super) fn behind(at_work: AtWork) -> Early {
        Early { at_work, waited: [0; 32], lets_early: false }
    }

    pub(super) fn begin_block(&mut self) {
        self.waited = [0; 32];
    }

    fn has_waited(&self, thread: u32) -> bool {
        self.waited[(thread / 32) as usize] >> (thread % 32) & 1 == 1
    }

    pub(super) fn wait(&mut self, thread: u32) {
        self.waited[(thread / 32) as usize] |= 1 << (thread % 32);
    }

    pub(super) fn let_next_start(&mut self, thread: u32) {
        self.lets_early |= !self.has_waited(thread);
    }

    /// What is wrong with an access to global memory, if the thread has not waited.
    pub(super) fn judge(
        &self,
        bytes: Range<u64>,
        access: Access,
        thread: u32,
    ) -> Option<FaultKind> {
        if self.has_waited(thread) {
            return None;
        }
        let mut used = self.at_work.0.iter().rev();
        let kernel = used.find(|used| used.is_disturbed_by(access, &bytes))?.kernel;
        Some(FaultKind::NotWaited { kernel })
    }

    /// What is wrong with a block that ends now.
    pub(super) fn judge_end(&self) -> Option<FaultKind> {
        let what = "a block ends without `wait_for_previous`: the launch may be over before those before it";
        (self.waited == [0; 32]).then(|| FaultKind::Misuse(what.into()))
    }

    /// What may be at work when the next launch begins.
    pub(super) fn end(self, used: Used) -> AtWork {
        let AtWork(mut at_work) = self.at_work;
        if !self.lets_early {
            at_work.clear();
        }
        at_work.push(used);
        AtWork(at_work)
    }
}
