//! Who touched which byte when: the race checker's memory.

use super::Access;
use crate::kernel::{ArgDescription, Kernel};
use std::panic::Location;

/// When and by whom: a point in the partial order that barriers make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub block: u32,
    pub thread: u32,
    /// Block barriers passed so far.
    pub block_epoch: u32,
    /// Warp barriers passed so far.
    pub warp_epoch: u32,
    pub location: &'static Location<'static>,
    pub atomic: bool,
}

impl Moment {
    /// Whether `self` is known to have happened before `now`.
    fn ordered_before(&self, now: &Moment) -> bool {
        self.block == now.block
            && (self.thread == now.thread
                || self.block_epoch < now.block_epoch
                || (self.thread / 32 == now.thread / 32 && self.warp_epoch < now.warp_epoch))
    }

    fn conflicts(&self, now: &Moment) -> bool {
        let exempt = self.atomic && now.atomic;
        !exempt && !self.ordered_before(now)
    }
}

/// History of one granule: the last write and the last two readers (of different threads).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    write: Option<Moment>,
    reads: [Option<Moment>; 2],
}

impl Cell {
    pub(super) fn written(&self) -> bool {
        self.write.is_some()
    }

    /// Notes an access; an earlier one that races with it comes back.
    pub(super) fn note(&mut self, access: Access, now: Moment) -> Option<Moment> {
        let race = match access {
            Access::Read => self.write.filter(|w| w.conflicts(&now)),
            Access::Write | Access::Atomic => [self.write, self.reads[0], self.reads[1]]
                .into_iter()
                .flatten()
                .find(|earlier| earlier.conflicts(&now)),
        };
        if access == Access::Read {
            if self.reads[0].is_none_or(|r| (r.block, r.thread) != (now.block, now.thread)) {
                self.reads[1] = self.reads[0];
            }
            self.reads[0] = Some(now);
        } else {
            self.write = Some(now);
            self.reads = [None; 2];
        }
        race
    }
}

/// Cells of every byte range that the launch may write.
pub(super) struct GlobalShadow {
    ranges: Vec<Range>,
}

struct Range {
    start: u64,
    end: u64,
    granule: u64,
    cells: Vec<Cell>,
}

impl GlobalShadow {
    pub(super) fn new<K: Kernel>(kernel: &K) -> Self {
        let mut ranges: Vec<Range> = Vec::new();
        kernel.for_each_arg(&mut |_, arg| {
            if let ArgDescription::View { address, bytes, elem_bytes, writable: true, .. } = arg
                && bytes > 0
            {
                ranges.push(Range {
                    start: address,
                    end: address + bytes,
                    granule: elem_bytes as u64,
                    cells: Vec::new(),
                });
            }
        });
        ranges.sort_by_key(|r| r.start);
        // Views of the same buffer share one history, in the finest granule of them.
        let mut merged: Vec<Range> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start < last.end => {
                    last.end = last.end.max(range.end);
                    last.granule = last.granule.min(range.granule).min(4);
                }
                _ => merged.push(range),
            }
        }
        for range in &mut merged {
            let n_cells = (range.end - range.start).div_ceil(range.granule);
            range.cells = vec![Cell::default(); n_cells as usize];
        }
        GlobalShadow { ranges: merged }
    }

    /// Notes an access to `bytes` bytes at `address`; an earlier one that races comes back.
    pub(super) fn note(
        &mut self,
        address: u64,
        bytes: usize,
        access: Access,
        now: Moment,
    ) -> Option<Moment> {
        let at = self.ranges.partition_point(|r| r.end <= address);
        let range = self.ranges.get_mut(at).filter(|r| r.start <= address)?;
        let first = (address - range.start) / range.granule;
        let last = (address + bytes as u64 - 1 - range.start) / range.granule;
        let cells = range.cells.get_mut(first as usize..=last as usize)?;
        cells.iter_mut().fold(None, |race, cell| race.or(cell.note(access, now)))
    }
}
