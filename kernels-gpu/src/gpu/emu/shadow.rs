//! Who touched which byte when: the race checker's memory of a launch.
//!
//! With checks on, blocks run one after another where none may wait for another, so one clock orders
//! everything: it ticks at every block's start, barrier and warp barrier. Two accesses are ordered when
//! one of those that holds for both threads lies between them. Those of different blocks are where the
//! first block arrived at a counter (`gpu::arrive`) before the second did. Blocks that are alive together
//! need more clocks: `clocks.rs`.

use super::overlap::{AtWork, Early, Used, joined};
use super::{Access, FaultKind};
use crate::kernel::{ArgDescription, Kernel, KernelSpec};
use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::collections::HashMap;
use std::panic::Location;

/// When and by whom; all zero: never.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Moment {
    /// Time above `TIME_SHIFT` bits; then, where blocks are alive together, which of them it was; the
    /// thread within its block; bit 0: atomic.
    stamp: u64,
    pub(super) location: Option<&'static Location<'static>>,
}

const THREAD_BITS: u32 = 10;
const ORIGIN_BITS: u32 = 16;
const ORIGIN_SHIFT: u32 = 1 + THREAD_BITS;
const TIME_SHIFT: u32 = ORIGIN_SHIFT + ORIGIN_BITS;

/// Origins that a moment can tell apart.
pub(super) const MOST_ORIGINS: usize = 1 << ORIGIN_BITS;

impl Moment {
    pub(super) const NEVER: Moment = Moment { stamp: 0, location: None };

    fn new(time: u64, thread: u32, access: Access, location: &'static Location<'static>) -> Moment {
        let atomic = access == Access::Atomic;
        let stamp = time << TIME_SHIFT | (thread as u64) << 1 | atomic as u64;
        Moment { stamp, location: Some(location) }
    }

    /// The same, of a block or copy that is alive together with others.
    pub(super) fn of(
        origin: u32,
        time: u64,
        thread: u32,
        access: Access,
        location: &'static Location<'static>,
    ) -> Moment {
        let mut moment = Moment::new(time, thread, access, location);
        moment.stamp |= (origin as u64) << ORIGIN_SHIFT;
        moment
    }

    pub(super) fn happened(self) -> bool {
        self.location.is_some()
    }

    pub(super) fn time(self) -> u64 {
        self.stamp >> TIME_SHIFT
    }

    pub(super) fn origin(self) -> u32 {
        (self.stamp >> ORIGIN_SHIFT) as u32 & ((1 << ORIGIN_BITS) - 1)
    }

    pub(super) fn thread(self) -> u32 {
        (self.stamp >> 1) as u32 & ((1 << THREAD_BITS) - 1)
    }

    pub(super) fn atomic(self) -> bool {
        self.stamp & 1 == 1
    }
}

/// History of one granule, judged by what a clock of type `K` knows.
///
/// # Safety
/// All bits zero is the history of a granule that was never touched.
pub(super) unsafe trait History<K>: Clone {
    /// Whether the block that runs wrote it; what others did before, in their own memory, is forgotten.
    fn written(&mut self, clock: &K) -> bool;
    /// Notes an access; an earlier one that races with it comes back.
    fn note(&mut self, clock: &K, access: Access, now: Moment) -> Option<Moment>;
    /// Whether it was ever touched.
    fn touched(&self) -> bool;
}

/// History of one granule. Its law: whatever comes next and is ordered after these moments is
/// ordered after every access so far, so that two sharers are enough. Where blocks arrive at counters it
/// holds for those that know of all blocks before or of none.
#[derive(Clone, Copy)]
#[repr(C)]
struct Cell {
    /// The last write, or an atomic that stands for it.
    write: Moment,
    /// Accesses since then that may happen together: reads, or atomics. Of several, two of
    /// different warps if there are.
    sharers: [Moment; 2],
}

/// The other side of a race.
#[derive(Clone, Copy, Debug)]
pub(super) struct Other {
    pub(super) block: [u32; 3],
    pub(super) thread: u32,
    pub(super) location: &'static Location<'static>,
}

/// What a thread made known when it arrived at a counter: all that its block had done before its last
/// barrier, and what it had done itself.
#[derive(Clone, Copy)]
struct Arrival {
    block_start: u64,
    last_barrier: u64,
    time: u64,
    thread: u32,
}

impl Arrival {
    fn tells_of(self, moment: Moment) -> bool {
        let time = moment.time();
        let own = moment.thread() == self.thread && time <= self.time;
        time >= self.block_start && (time < self.last_barrier || own)
    }
}

/// What the checks know of the time.
struct Clock {
    now: u64,
    block_start: u64,
    last_barrier: u64,
    /// Last warp barrier of each warp.
    warp_barriers: [u64; 32],
    /// What the running block knows of others.
    known: Vec<Arrival>,
    /// What it will know behind its next barrier.
    learnt: Vec<Arrival>,
}

impl Clock {
    /// Whether `earlier` is known to have happened before whatever `thread` does now.
    #[inline(always)]
    fn ordered(&self, earlier: Moment, thread: u32) -> bool {
        let time = earlier.time();
        if !earlier.happened() {
            return true;
        }
        if time < self.block_start {
            return self.known.iter().any(|arrival| arrival.tells_of(earlier));
        }
        time < self.last_barrier
            || earlier.thread() == thread
            || earlier.thread() / 32 == thread / 32
                && time < self.warp_barriers[(thread / 32) as usize]
    }

    /// Threads of one warp get the same number, those of blocks that have ended another.
    fn group(&self, moment: Moment) -> u32 {
        if moment.time() < self.block_start { u32::MAX } else { moment.thread() / 32 }
    }
}

// SAFETY: a missing location is null, so that zeroes are moments that never happened.
unsafe impl History<Clock> for Cell {
    fn written(&mut self, clock: &Clock) -> bool {
        self.forget_before(clock.block_start);
        self.write.happened()
    }

    fn note(&mut self, clock: &Clock, access: Access, now: Moment) -> Option<Moment> {
        let thread = now.thread();
        let atomics = self.sharers[0].atomic();
        let compatible = match access {
            Access::Read => !atomics,
            Access::Atomic => atomics,
            Access::Write => false,
        };
        let write = (!clock.ordered(self.write, thread)).then_some(self.write);
        let race = if compatible {
            write
        } else {
            write.or_else(|| self.sharers.into_iter().find(|&m| !clock.ordered(m, thread)))
        };

        if access == Access::Write {
            *self = Cell { write: now, sharers: [Moment::NEVER; 2] };
        } else if compatible {
            self.share(clock, now);
        } else {
            // The others are over, or else this is a race.
            if atomics {
                self.write = self.sharers[0];
            }
            self.sharers = [now, Moment::NEVER];
        }
        race
    }

    fn touched(&self) -> bool {
        self.write.happened() || self.sharers[0].happened()
    }
}

impl Cell {
    fn was_written(&self) -> bool {
        self.write.happened() || self.sharers[0].atomic()
    }

    /// Drops what happened before `start`.
    fn forget_before(&mut self, start: u64) {
        let [first, second] = &mut self.sharers;
        for moment in [&mut self.write, first, second] {
            if moment.time() < start {
                *moment = Moment::NEVER;
            }
        }
    }

    fn share(&mut self, clock: &Clock, now: Moment) {
        let [first, second] = self.sharers;
        match (clock.ordered(first, now.thread()), clock.ordered(second, now.thread())) {
            (true, true) => self.sharers = [now, Moment::NEVER],
            (true, false) => self.sharers = [now, second],
            (false, true) => self.sharers = [first, now],
            (false, false) => {
                if clock.group(first) == clock.group(second) {
                    self.sharers = [first, now];
                }
            }
        }
    }
}

/// Cells of a range of memory, each for 2^`granule_shift` bytes.
pub(super) struct Range<C> {
    start: u64,
    bytes: u64,
    granule_shift: u32,
    cells: Vec<C>,
    /// Shared memory, which nobody may read before it was written.
    is_shared: bool,
}

impl<C> Range<C> {
    fn new<K>(start: u64, bytes: u64, granule_shift: u32, is_shared: bool) -> Range<C>
    where
        C: History<K>,
    {
        let n = (bytes >> granule_shift) as usize + 1;
        Range { start, bytes, granule_shift, cells: empty_cells(n), is_shared }
    }

    /// A block's shared memory.
    pub(super) fn of_shared<K>(spec: &KernelSpec) -> Range<C>
    where
        C: History<K>,
    {
        Range::new(0, spec.shared_bytes as u64, 4, true)
    }

    /// Every byte range that the launch may write, in order.
    pub(super) fn all_writable<K>(kernel: &impl Kernel) -> Vec<Range<C>>
    where
        C: History<K>,
    {
        let mut views: Vec<(u64, u64, u32)> = Vec::new();
        kernel.for_each_arg(&mut |_, arg| {
            if let ArgDescription::View { address, bytes, elem_bytes, writable: true, .. } = arg
                && bytes > 0
            {
                views.push((address, address + bytes, elem_bytes.trailing_zeros().min(4)));
            }
        });
        views.sort_unstable();
        // Views of the same bytes share one history.
        let mut merged: Vec<(u64, u64, u32)> = Vec::new();
        for (start, end, shift) in views {
            match merged.last_mut() {
                Some(last) if start < last.1 => {
                    *last = (last.0, last.1.max(end), last.2.min(shift))
                }
                _ => merged.push((start, end, shift)),
            }
        }
        let range = |(start, end, shift)| Range::new(start, end - start, shift, false);
        merged.into_iter().map(range).collect()
    }

    /// The one of several that holds the address, and the bytes from there on that are in it, of `bytes`.
    pub(super) fn find(
        ranges: &mut [Range<C>],
        address: u64,
        bytes: usize,
    ) -> Option<(&mut Range<C>, u64, u64)> {
        let at = ranges.partition_point(|r| r.start + r.bytes <= address);
        let range = ranges.get_mut(at).filter(|r| r.start <= address)?;
        let bytes = (bytes as u64).min(range.start + range.bytes - address);
        let offset = address - range.start;
        Some((range, offset, bytes))
    }

    /// Notes an access; whether all of it was written before, and an earlier one that races.
    pub(super) fn note<K>(
        &mut self,
        clock: &K,
        offset: u64,
        bytes: u64,
        access: Access,
        now: Moment,
    ) -> (bool, Option<Moment>)
    where
        C: History<K>,
    {
        let finest = (offset | bytes).trailing_zeros();
        if finest < self.granule_shift {
            self.refine(finest);
        }
        let first = (offset >> self.granule_shift) as usize;
        let last = ((offset + bytes - 1) >> self.granule_shift) as usize;
        let mut written = true;
        let mut race = None;
        for cell in &mut self.cells[first..=last] {
            written &= !self.is_shared || cell.written(clock);
            race = cell.note(clock, access, now).or(race);
        }
        (written, race)
    }

    /// Splits the cells: an access is narrower than they are.
    #[cold]
    fn refine<K>(&mut self, granule_shift: u32)
    where
        C: History<K>,
    {
        let by = self.granule_shift - granule_shift;
        let n = (self.bytes >> granule_shift) as usize + 1;
        let mut cells = empty_cells(n);
        for (i, cell) in cells.iter_mut().enumerate() {
            let old = &self.cells[i >> by];
            // Cells that were never touched are left to the zeroed pages that they are.
            if old.touched() {
                *cell = old.clone();
            }
        }
        (self.granule_shift, self.cells) = (granule_shift, cells);
    }
}

impl Range<Cell> {
    /// The bytes of cells that are `wanted`.
    fn bytes_of(
        &self,
        wanted: impl Fn(&Cell) -> bool,
    ) -> impl Iterator<Item = std::ops::Range<u64>> {
        let granule = 1 << self.granule_shift;
        let cells = self.cells.iter().enumerate().filter(move |(_, cell)| wanted(cell));
        cells.map(move |(i, _)| {
            let start = self.start + granule * i as u64;
            start..start + granule
        })
    }
}

/// The views that the launch may only read.
fn read_only_views(kernel: &impl Kernel) -> Vec<std::ops::Range<u64>> {
    let mut views = Vec::new();
    kernel.for_each_arg(&mut |_, arg| {
        if let ArgDescription::View { address, bytes, writable: false, .. } = arg
            && bytes > 0
        {
            views.push(address..address + bytes);
        }
    });
    views
}

/// Cells without history; pages that nobody touches cost nothing.
fn empty_cells<K, C: History<K>>(n: usize) -> Vec<C> {
    let Ok(layout) = Layout::array::<C>(n) else {
        panic!("a view of more bytes than memory has");
    };
    if n == 0 {
        return Vec::new();
    }
    // SAFETY: the layout is not empty; all zeroes is a `C`, by `History`; length and capacity are what
    // the layout holds, with the allocator that `Vec` uses.
    unsafe {
        let cells = alloc_zeroed(layout).cast::<C>();
        if cells.is_null() {
            handle_alloc_error(layout);
        }
        Vec::from_raw_parts(cells, n, n)
    }
}

/// The checks' memory of one launch whose blocks run one after another.
pub(super) struct Apart {
    clock: Clock,
    /// When each block so far began.
    blocks: Vec<(u64, [u32; 3])>,
    shared: Range<Cell>,
    global: Vec<Range<Cell>>,
    /// What whoever arrives at a counter next learns, by the counter's address.
    arrivals: HashMap<u64, Vec<Arrival>>,
    early: Early,
    /// Views that are only read.
    read_only: Vec<std::ops::Range<u64>>,
}

impl Apart {
    pub(super) fn new<K: Kernel>(kernel: &K, at_work: AtWork) -> Apart {
        let clock = Clock {
            now: 0,
            block_start: 0,
            last_barrier: 0,
            warp_barriers: [0; 32],
            known: Vec::new(),
            learnt: Vec::new(),
        };
        Apart {
            clock,
            blocks: Vec::new(),
            shared: Range::of_shared(K::spec()),
            global: Range::all_writable(kernel),
            arrivals: HashMap::new(),
            early: Early::behind(at_work),
            read_only: read_only_views(kernel),
        }
    }

    pub(super) fn begin_block(&mut self, index: [u32; 3]) {
        self.clock.now += 1;
        self.clock.block_start = self.clock.now;
        self.clock.known.clear();
        self.clock.learnt.clear();
        self.barrier();
        self.blocks.push((self.clock.block_start, index));
        self.early.begin_block();
    }

    /// What the launch does before it has waited for those before it.
    pub(super) fn early(&mut self) -> &mut Early {
        &mut self.early
    }

    /// What is wrong with an access to global memory, if the thread has not waited.
    pub(super) fn judge_early(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        thread: u32,
    ) -> Option<FaultKind> {
        self.early.judge(address..address + bytes as u64, access, thread)
    }

    /// What may be at work when the next launch begins.
    pub(super) fn end(self, kernel: &'static str) -> AtWork {
        let written = self.global.iter().flat_map(|range| range.bytes_of(Cell::was_written));
        let touched = self.global.iter().flat_map(|range| range.bytes_of(Cell::touched));
        let read = self.read_only.into_iter().chain(touched);
        let used =
            Used { kernel, written: joined(written.collect()), read: joined(read.collect()) };
        self.early.end(used)
    }

    pub(super) fn barrier(&mut self) {
        self.clock.now += 1;
        self.clock.last_barrier = self.clock.now;
        let Clock { known, learnt, .. } = &mut self.clock;
        known.append(learnt);
    }

    pub(super) fn arrive(&mut self, counter: u64, thread: u32) {
        let Clock { now, block_start, last_barrier, known, learnt, .. } = &mut self.clock;
        let arrivals = self.arrivals.entry(counter).or_default();
        learnt.extend_from_slice(arrivals);
        arrivals.extend_from_slice(known);
        let (block_start, last_barrier) = (*block_start, *last_barrier);
        arrivals.push(Arrival { block_start, last_barrier, time: *now, thread });
        *now += 1;
    }

    pub(super) fn warp_barrier(&mut self, warp: usize) {
        self.clock.now += 1;
        self.clock.warp_barriers[warp] = self.clock.now;
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
        let now = Moment::new(self.clock.now, thread, access, location);
        let (range, offset, bytes) = Range::find(&mut self.global, address, bytes)?;
        let (_, race) = range.note(&self.clock, offset, bytes, access, now);
        self.other(race?)
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
        let now = Moment::new(self.clock.now, thread, access, location);
        let (written, race) =
            self.shared.note(&self.clock, offset as u64, bytes as u64, access, now);
        (written, race.and_then(|m| self.other(m)))
    }

    fn other(&self, moment: Moment) -> Option<Other> {
        let at = self.blocks.partition_point(|(start, _)| *start <= moment.time());
        let (_, block) = *self.blocks.get(at.checked_sub(1)?)?;
        Some(Other { block, thread: moment.thread(), location: moment.location? })
    }
}
