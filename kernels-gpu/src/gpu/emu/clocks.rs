//! The race checker of blocks that are alive together, where no one clock orders everything.
//!
//! Each warp keeps a vector clock: of every thread of the launch up to which time its accesses are known
//! to have happened before what the warp does next. Barriers join the clocks of the warps that meet. Who
//! signals or arrives leaves at the counter what its warp knows and what it did itself; who waits takes
//! that up for its warp. A bulk copy is nobody's access: each phase counter has an entry of its own in
//! the clocks, for the copies whose phases have ended.

use super::Access;
use super::shadow::{History, MOST_ORIGINS, Moment, Other, Range};
use crate::kernel::Kernel;
use std::collections::HashMap;
use std::panic::Location;

/// By thread of the launch, then by phase counter: what happened before this time is known. Those behind
/// its end are at 0.
type Known = Vec<u64>;

/// Takes up what `other` tells.
fn join(known: &mut Known, other: &[u64]) {
    if known.len() < other.len() {
        known.resize(other.len(), 0);
    }
    for (mine, theirs) in known.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

/// Knows of what entry `at` did before `time`.
fn learn(known: &mut Known, at: usize, time: u64) {
    if known.len() <= at {
        known.resize(at + 1, 0);
    }
    known[at] = time;
}

/// What a counter of phases makes known.
struct Phases {
    /// The origin of its copies.
    origin: u32,
    /// By those who arrived, and by its copies.
    running: Known,
    /// As `running` was when the last phase ended.
    ended: Known,
}

/// The clocks of all warps.
struct Clocks {
    now: u64,
    /// The block whose turn it is.
    block: u32,
    n_blocks: u32,
    n_threads: u32,
    warps: Vec<Known>,
}

impl Clocks {
    fn warp(&self, thread: u32) -> usize {
        ((self.block * self.n_threads + thread) / 32) as usize
    }

    /// Where the clocks say how much is known of the thread or copy.
    fn entry(&self, moment: Moment) -> usize {
        match moment.origin().checked_sub(self.n_blocks) {
            Some(phases) => (self.n_blocks * self.n_threads + phases) as usize,
            None => (moment.origin() * self.n_threads + moment.thread()) as usize,
        }
    }

    /// Whether `earlier` is known to have happened before what `thread` of the running block does now.
    fn ordered(&self, earlier: Moment, thread: u32) -> bool {
        if !earlier.happened() || earlier.origin() == self.block && earlier.thread() == thread {
            return true;
        }
        let known = self.warps[self.warp(thread)].get(self.entry(earlier));
        known.is_some_and(|&known| earlier.time() < known)
    }

    /// Tells `to` what the thread's warp knows, and what the thread did.
    fn tell(&mut self, thread: u32, to: &mut Known) {
        join(to, &self.warps[self.warp(thread)]);
        self.now += 1;
        let entry = (self.block * self.n_threads + thread) as usize;
        learn(to, entry, self.now);
    }

    fn hear(&mut self, thread: u32, from: &[u64]) {
        let warp = self.warp(thread);
        join(&mut self.warps[warp], from);
    }

    /// Warps of the running block meet: a bit for each.
    fn meet(&mut self, warps: u32) {
        self.now += 1;
        let first = self.warp(0);
        let there = |&warp: &usize| warps >> warp & 1 == 1;
        let mut known = Known::new();
        for warp in (0..32).filter(there) {
            join(&mut known, &self.warps[first + warp]);
        }
        for warp in (0..32).filter(there) {
            (0..32).for_each(|lane| learn(&mut known, 32 * (first + warp) + lane, self.now));
        }
        for warp in (0..32).filter(there) {
            self.warps[first + warp].clone_from(&known);
        }
    }
}

/// A clock by which nothing is known.
struct Nothing;

/// Accesses to a granule since its last write.
#[derive(Clone, Default)]
struct Sharers(Vec<Moment>);

/// History of one granule. Of each warp two accesses since the last write are kept: those of the first
/// and the last of its lanes, which tell whether it met before it went on.
#[derive(Clone)]
#[repr(C)]
struct Cell {
    /// The last write, or an atomic that stands for it.
    write: Moment,
    /// Accesses since then that may happen together: reads, or atomics.
    sharers: Option<Box<Sharers>>,
}

impl Cell {
    fn sharers(&self) -> &[Moment] {
        self.sharers.as_ref().map_or(&[], |sharers| &sharers.0)
    }

    /// Notes an access, with what is ordered before it.
    fn note(
        &mut self,
        ordered: impl Fn(Moment) -> bool,
        access: Access,
        now: Moment,
    ) -> Option<Moment> {
        let sharers = self.sharers();
        let atomics = sharers.first().is_some_and(|first| first.atomic());
        let compatible = match access {
            Access::Read => !atomics,
            Access::Atomic => atomics,
            Access::Write => false,
        };
        let mut race = (self.write.happened() && !ordered(self.write)).then_some(self.write);
        if !compatible {
            race = race.or_else(|| sharers.iter().copied().find(|&sharer| !ordered(sharer)));
        }
        if access == Access::Write {
            self.write = now;
            if let Some(sharers) = &mut self.sharers {
                sharers.0.clear();
            }
            return race;
        }
        if atomics && !compatible {
            self.write = sharers[0];
        }
        let sharers = &mut self.sharers.get_or_insert_default().0;
        // Whoever is ordered after this access is so after those before it.
        sharers.retain(|&sharer| compatible && !ordered(sharer));
        let of_warp = |sharer: &Moment| {
            sharer.origin() == now.origin() && sharer.thread() / 32 == now.thread() / 32
        };
        match sharers.iter().rposition(of_warp) {
            Some(last) if sharers.iter().position(of_warp) != Some(last) => sharers[last] = now,
            _ => sharers.push(now),
        }
        race
    }
}

// SAFETY: a missing location is null, and so is a missing box.
unsafe impl History<Clocks> for Cell {
    fn written(&mut self, _: &Clocks) -> bool {
        self.write.happened()
    }

    fn note(&mut self, clocks: &Clocks, access: Access, now: Moment) -> Option<Moment> {
        let thread = now.thread();
        self.note(|earlier| clocks.ordered(earlier, thread), access, now)
    }

    fn touched(&self) -> bool {
        self.write.happened() || !self.sharers().is_empty()
    }
}

// SAFETY: as above.
unsafe impl History<Nothing> for Cell {
    fn written(&mut self, _: &Nothing) -> bool {
        self.write.happened()
    }

    fn note(&mut self, _: &Nothing, access: Access, now: Moment) -> Option<Moment> {
        self.note(|_| false, access, now)
    }

    fn touched(&self) -> bool {
        History::<Clocks>::touched(self)
    }
}

/// The checks' memory of one launch whose blocks are alive together.
pub(super) struct Together {
    clocks: Clocks,
    /// Where each block is in the grid.
    blocks: Vec<[u32; 3]>,
    /// The block that made each phase counter so far.
    makers: Vec<u32>,
    /// Each block's.
    shared: Vec<Range<Cell>>,
    global: Vec<Range<Cell>>,
    /// What those who signalled made known, by the counter's address.
    signals: HashMap<u64, Known>,
    /// By block and offset in its shared memory.
    phases: HashMap<(u32, u32), Phases>,
}

impl Together {
    pub(super) fn new<K: Kernel>(kernel: &K, blocks: Vec<[u32; 3]>) -> Together {
        let (n_blocks, n_threads) = (blocks.len() as u32, K::spec().block_threads);
        let warps = vec![Known::new(); (n_blocks * n_threads / 32) as usize];
        let clocks = Clocks { now: 1, block: 0, n_blocks, n_threads, warps };
        Together {
            clocks,
            makers: Vec::new(),
            shared: blocks.iter().map(|_| Range::of_shared::<Clocks>(K::spec())).collect(),
            global: Range::all_writable::<Clocks>(kernel),
            signals: HashMap::new(),
            phases: HashMap::new(),
            blocks,
        }
    }

    pub(super) fn begin_turn(&mut self, index: [u32; 3]) {
        let number = self.blocks.iter().position(|&block| block == index);
        self.clocks.block = number.unwrap_or(0) as u32;
    }

    pub(super) fn meet(&mut self, warps: u32) {
        self.clocks.meet(warps);
    }

    pub(super) fn signal(&mut self, counter: u64, thread: u32) {
        self.clocks.tell(thread, self.signals.entry(counter).or_default());
    }

    pub(super) fn hear(&mut self, counter: u64, thread: u32) {
        if let Some(known) = self.signals.get(&counter) {
            self.clocks.hear(thread, known);
        }
    }

    /// A phase counter is made; false where there are too many.
    pub(super) fn make_phase(&mut self, offset: u32) -> bool {
        let origin = self.clocks.n_blocks + self.makers.len() as u32;
        self.makers.push(self.clocks.block);
        let phases = Phases { origin, running: Known::new(), ended: Known::new() };
        self.phases.insert((self.clocks.block, offset), phases);
        (origin as usize) < MOST_ORIGINS
    }

    pub(super) fn arrive_at_phase(&mut self, offset: u32, thread: u32) {
        if let Some(phases) = self.phases.get_mut(&(self.clocks.block, offset)) {
            self.clocks.tell(thread, &mut phases.running);
        }
    }

    pub(super) fn end_phase(&mut self, offset: u32) {
        if let Some(Phases { running, ended, .. }) =
            self.phases.get_mut(&(self.clocks.block, offset))
        {
            ended.clone_from(running);
        }
    }

    pub(super) fn hear_phase(&mut self, offset: u32, thread: u32) {
        if let Some(phases) = self.phases.get(&(self.clocks.block, offset)) {
            self.clocks.hear(thread, &phases.ended);
        }
    }

    /// Notes a bulk copy that the thread starts; an earlier access that races comes back.
    pub(super) fn note_copy(
        &mut self,
        (to, from, bytes): (u32, u64, usize),
        phase: u32,
        thread: u32,
        location: &'static Location<'static>,
    ) -> Option<(&'static str, Other)> {
        let phases = self.phases.get_mut(&(self.clocks.block, phase))?;
        let moment = |access| Moment::of(phases.origin, self.clocks.now, thread, access, location);
        let (read, write) = (moment(Access::Read), moment(Access::Write));
        let shared = &mut self.shared[self.clocks.block as usize];
        let (_, race) = shared.note(&self.clocks, to as u64, bytes as u64, Access::Write, write);
        // Copies go past what orders the threads' accesses to device memory.
        let read = Range::find(&mut self.global, from, bytes).and_then(|(range, offset, bytes)| {
            range.note(&Nothing, offset, bytes, Access::Read, read).1
        });
        // Who waits for the copy is behind what came before it.
        self.clocks.tell(thread, &mut phases.running);
        learn(&mut phases.running, self.clocks.entry(write), self.clocks.now);
        match (race, read) {
            (Some(race), _) => Some(("shared", self.other(race)?)),
            (None, read) => Some(("global", self.other(read?)?)),
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
        let now = Moment::of(self.clocks.block, self.clocks.now, thread, access, location);
        let (range, offset, bytes) = Range::find(&mut self.global, address, bytes)?;
        let (_, race) = range.note(&self.clocks, offset, bytes, access, now);
        self.other(race?)
    }

    /// Notes an access to the block's shared memory, inside it: whether all of it was written before,
    /// and an earlier access that races.
    pub(super) fn note_shared(
        &mut self,
        offset: u32,
        bytes: usize,
        access: Access,
        thread: u32,
        location: &'static Location<'static>,
    ) -> (bool, Option<Other>) {
        let now = Moment::of(self.clocks.block, self.clocks.now, thread, access, location);
        let shared = &mut self.shared[self.clocks.block as usize];
        let (written, race) = shared.note(&self.clocks, offset as u64, bytes as u64, access, now);
        (written, race.and_then(|moment| self.other(moment)))
    }

    fn other(&self, moment: Moment) -> Option<Other> {
        let block = match moment.origin().checked_sub(self.clocks.n_blocks) {
            Some(phases) => *self.makers.get(phases as usize)?,
            None => moment.origin(),
        };
        let block = *self.blocks.get(block as usize)?;
        Some(Other { block, thread: moment.thread(), location: moment.location? })
    }
}
