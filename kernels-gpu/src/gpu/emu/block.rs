//! One block: its threads, their turns, and where they wait for each other.
//!
//! Threads of a block never run at the same time: kernel code, and what it calls here, has the
//! block for itself until it suspends itself. The block is reached through a raw pointer, and
//! references into it never live across a suspension.

mod running;
pub(super) mod waits;

use super::checker::Checker;
use super::clocks::Together;
use super::copies::{self, Copies};
use super::fault::{Fault, FaultKind, Site};
use super::fiber::{Fiber, Suspender};
use super::overlap::Early;
use super::shadow::Other;
use super::turns::Turns;
use super::{Access, panics};
pub(super) use running::{Running, Turn};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;
use waits::Waits;

/// Where the lanes of a warp hand each other what an operation needs. Each operation has its own
/// way of using it.
#[repr(C, align(64))]
pub(super) struct Exchange {
    /// A word of each lane.
    pub(super) words: [u32; 32],
    /// A matrix as words of neighbours in k: [word of k][row].
    pub(super) a: [[u32; 16]; 8],
    /// As `a`, by column: [column][word of k].
    pub(super) b: [[u32; 8]; 8],
    /// The product, by column, as bits: [column][row].
    pub(super) product: [[u32; 16]; 8],
}

/// A warp: one bit for each lane.
struct Warp {
    /// Lanes that can go on.
    ready: u32,
    /// Lanes that wait in the warp operation `operation` at `location`.
    meeting: u32,
    /// Lanes that wait at the block's barrier.
    at_barrier: u32,
    /// Lanes that have returned.
    done: u32,
    /// Operations that all lanes went through; its parity says whose turn `exchanges` is, since a
    /// lane may begin the next operation while others have yet to collect from the last.
    n_meetings: usize,
    operation: &'static str,
    location: &'static Location<'static>,
    exchanges: [Exchange; 2],
}

/// A block and all that it needs; kept from one block to the next of an OS thread.
pub(super) struct Block {
    pub(super) current: u32,
    n_threads: u32,
    pub(super) index: [u32; 3],
    pub(super) grid: [u32; 3],
    /// Null with checks off.
    checker: *mut Checker,
    warps: Vec<Warp>,
    n_at_barrier: u32,
    barrier_location: &'static Location<'static>,
    /// 16-byte units, so that wide accesses are aligned as on the device.
    shared: Vec<u128>,
    shared_bytes: usize,
    fault: Option<Box<Fault>>,
    kernel: &'static str,
    /// Whether its threads may wait for those of other blocks.
    together: bool,
    waits: Waits,
    copies: Copies,
    body: *const (dyn Fn() + 'static),
    fibers: Vec<Fiber>,
    suspenders: Vec<*const Suspender>,
}

/// What a memory access has to do besides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Regime {
    /// Nothing: a kernel runs without checks.
    Free,
    /// A kernel runs with checks.
    Checked,
    /// Panic: no kernel runs.
    Outside,
}

thread_local! {
    /// One byte that every access looks at, and nothing more where it is `Free`.
    static REGIME: Cell<Regime> = const { Cell::new(Regime::Outside) };
    static CURRENT: Cell<*mut Block> = const { Cell::new(ptr::null_mut()) };
}

/// The block that runs on this OS thread.
///
/// Kernel code runs inside `Block::run` only; a call from outside is a bug of the host program.
#[inline(always)]
pub(super) fn current() -> *mut Block {
    let block = CURRENT.get();
    assert!(!block.is_null(), "a gpu operation was called outside a kernel");
    block
}

/// Whether this OS thread runs kernel code right now.
pub(super) fn inside_kernel() -> bool {
    CURRENT.try_with(|block| !block.get().is_null()).unwrap_or(false)
}

/// Reads a plain field of the running block.
macro_rules! field {
    ($($field:tt)+) => {
        // SAFETY: `current` is alive while a kernel runs on this OS thread, and nobody else does
        // anything with it meanwhile.
        unsafe { (*$crate::gpu::emu::block::current()).$($field)+ }
    };
}
pub(super) use field;

/// Gives the turn back to the scheduler.
///
/// # Safety
/// `block` must be `current()`, with no reference into it alive.
#[inline(always)]
unsafe fn suspend(block: *mut Block) {
    // SAFETY: the running thread's own suspender, alive as long as its coroutine.
    unsafe {
        let suspender = *(*block).suspenders.as_ptr().add((*block).current as usize);
        (*suspender).suspend(());
    }
}

/// Reports a fault of the running thread and ends its part in the launch.
#[cold]
#[track_caller]
pub(super) fn fault(kind: FaultKind) -> ! {
    fault_at(field!(current), Location::caller(), kind)
}

/// As `fault`, on behalf of any thread and line.
#[cold]
fn fault_at(thread: u32, location: &'static Location<'static>, kind: FaultKind) -> ! {
    let block = current();
    // SAFETY: as in `field!`; the reference ends before the suspension.
    unsafe { (&mut *block).record(thread, Some(location.into()), kind) };
    loop {
        // SAFETY: `block` is current. The scheduler never gives a faulty block another turn.
        unsafe { suspend(block) };
    }
}

/// Notes an access to global memory and reports a race. Nothing to do with checks off.
#[inline(always)]
pub(super) fn check_global(
    address: u64,
    bytes: usize,
    access: Access,
    location: &'static Location<'static>,
) {
    if REGIME.get() != Regime::Free {
        note_global(address, bytes, access, location);
    }
}

// Cold, so that loops keep their registers where it is not called.
#[cold]
#[inline(never)]
fn note_global(address: u64, bytes: usize, access: Access, location: &'static Location<'static>) {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    let checker = unsafe { &mut *checker };
    if let Some(kind) = checker.judge_early(address, bytes, access, thread) {
        fault_at(thread, location, kind);
    }
    if let Some(other) = checker.note_global(address, bytes, access, thread, location) {
        report_race("global", other, location);
    }
}

#[cold]
pub(super) fn report_race(
    memory: &'static str,
    other: Other,
    location: &'static Location<'static>,
) -> ! {
    let kind = FaultKind::Race {
        memory,
        other: (other.block, other.thread),
        other_site: other.location.into(),
    };
    fault_at(field!(current), location, kind)
}

/// Address of `bytes` bytes at `offset` of the block's shared memory, checked.
#[inline(always)]
pub(super) fn shared(
    offset: usize,
    bytes: usize,
    align: usize,
    access: Access,
    location: &'static Location<'static>,
) -> *mut u8 {
    let place = shared_place(offset, bytes, align, location);
    if REGIME.get() != Regime::Free {
        note_shared(offset as u32, bytes, access, location);
    }
    place
}

/// As `shared`, and no access yet.
#[inline(always)]
pub(super) fn shared_place(
    offset: usize,
    bytes: usize,
    align: usize,
    location: &'static Location<'static>,
) -> *mut u8 {
    let size = field!(shared_bytes);
    if offset + bytes > size {
        let kind = FaultKind::OutOfBounds { index: offset + bytes - 1, len: size };
        fault_at(field!(current), location, kind);
    }
    if !offset.is_multiple_of(align) {
        let kind = FaultKind::Misaligned { address: offset as u64, align };
        fault_at(field!(current), location, kind);
    }
    // SAFETY: as in `field!`; the reference to the vector ends here.
    let base = unsafe { (*current()).shared.as_mut_ptr() };
    base.cast::<u8>().wrapping_add(offset)
}

#[cold]
#[inline(never)]
fn note_shared(offset: u32, bytes: usize, access: Access, location: &'static Location<'static>) {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    let checker = unsafe { &mut *checker };
    let (written, race) = checker.note_shared(offset, bytes, access, thread, location);
    if with_copies(|copies, _| copies.touch(offset, bytes)) {
        fault_at(thread, location, copies::arriving(offset));
    }
    if access != Access::Write && !written {
        fault_at(thread, location, FaultKind::Uninitialised { offset });
    }
    if let Some(other) = race {
        report_race("shared", other, location);
    }
}

/// What the block's threads have on their way, and the running thread.
pub(super) fn with_copies<R>(f: impl FnOnce(&mut Copies, u32) -> R) -> R {
    let thread = field!(current);
    // SAFETY: as in `field!`; `f` calls no gpu operation, and the reference ends with it.
    f(unsafe { &mut (*current()).copies }, thread)
}

/// Call sites are compared by address first: comparing their file names takes longer.
#[inline(always)]
fn same(a: &'static Location<'static>, b: &'static Location<'static>) -> bool {
    ptr::eq(a, b) || a == b
}

/// Waits until every thread of the block is here.
#[inline(always)]
#[track_caller]
pub(super) fn barrier() {
    let location = Location::caller();
    let block = current();
    // SAFETY: as in `field!`; references end before the suspension.
    unsafe {
        if (*block).n_at_barrier == 0 {
            (*block).barrier_location = location;
        } else if !same((*block).barrier_location, location) {
            let (waiting, at, kind) = (&*block).elsewhere(location);
            fault_at(waiting, at, kind);
        }
        (*block).n_at_barrier += 1;
        if (*block).n_at_barrier < (*block).n_threads {
            let thread = (*block).current;
            let warp = &mut (&mut (*block).warps)[(thread / 32) as usize];
            warp.ready &= !(1 << (thread % 32));
            warp.at_barrier |= 1 << (thread % 32);
            suspend(block);
        } else {
            (&mut *block).open_barrier();
        }
    }
}

/// Orders the memory accesses of the running thread's warp: those so far before those to come.
pub(super) fn order_warp() {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    if let Some(checker) = unsafe { checker.as_mut() } {
        checker.warp_barrier((thread / 32) as usize);
    }
}

/// Orders what the blocks that arrived at the counter before had done before what the running block does
/// behind its next barrier.
pub(super) fn order_arrival(counter: u64) {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    if let Some(checker) = unsafe { checker.as_mut() } {
        checker.arrive(counter, thread);
    }
}

/// Tells the checker what the running thread does about the launches before and behind.
pub(super) fn tell_overlap(f: impl FnOnce(&mut Early, u32)) {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    if let Some(early) = unsafe { checker.as_mut() }.and_then(Checker::early) {
        f(early, thread);
    }
}

/// Tells the checker of a launch whose blocks are alive together what the running thread does.
pub(super) fn tell_clocks(f: impl FnOnce(&mut Together, u32)) {
    let (thread, checker) = (field!(current), field!(checker));
    // SAFETY: the launch's checker, which only its running block uses.
    if let Some(checker) = unsafe { checker.as_mut() }.and_then(Checker::together) {
        f(checker, thread);
    }
}

/// Meets the other lanes of the warp: all `deposit`, the last to come computes, all `collect`.
/// None of the three may call a gpu operation.
#[inline(always)]
pub(super) fn meet<R>(
    operation: &'static str,
    location: &'static Location<'static>,
    deposit: impl FnOnce(&mut Exchange, usize),
    compute: impl FnOnce(&mut Exchange),
    collect: impl FnOnce(&Exchange, usize) -> R,
) -> R {
    let block = current();
    // SAFETY: as in `field!`; references end before the suspension. The exchange is still this
    // operation's when the thread wakes up: the next but one begins only after all have collected.
    unsafe {
        let thread = (*block).current;
        let lane = (thread % 32) as usize;
        let warp: *mut Warp = (*block).warps.as_mut_ptr().add((thread / 32) as usize);
        let exchange: *mut Exchange =
            (&raw mut (*warp).exchanges).cast::<Exchange>().add((*warp).n_meetings % 2);
        if (*warp).meeting == 0 {
            ((*warp).operation, (*warp).location) = (operation, location);
        } else if !same((*warp).location, location) || (*warp).operation != operation {
            differs(warp, thread, location);
        }
        deposit(&mut *exchange, lane);
        (*warp).meeting |= 1 << lane;
        if (*warp).meeting == u32::MAX {
            compute(&mut *exchange);
            (*warp).meeting = 0;
            (*warp).ready = u32::MAX;
            (*warp).n_meetings += 1;
        } else {
            (*warp).ready &= !(1 << lane);
            suspend(block);
        }
        collect(&*exchange, lane)
    }
}

/// Thread `thread` has come to another operation than the lanes that wait in `warp`.
#[cold]
fn differs(warp: *const Warp, thread: u32, location: &'static Location<'static>) -> ! {
    // SAFETY: `meet` got it from the running block.
    let (lane, operation, at) =
        unsafe { ((*warp).meeting.trailing_zeros(), (*warp).operation, (*warp).location) };
    let kind = FaultKind::MissedCollective {
        operation,
        absent: thread,
        absent_site: Some(location.into()),
    };
    fault_at(thread / 32 * 32 + lane, at, kind)
}

impl Warp {
    /// Lanes that no operation of the warp brings back from where they are.
    fn gone(&self) -> u32 {
        self.done | self.at_barrier
    }

    fn new() -> Warp {
        let exchange =
            || Exchange { words: [0; 32], a: [[0; 16]; 8], b: [[0; 8]; 8], product: [[0; 16]; 8] };
        Warp {
            ready: u32::MAX,
            meeting: 0,
            at_barrier: 0,
            done: 0,
            n_meetings: 0,
            operation: "",
            location: Location::caller(),
            exchanges: [exchange(), exchange()],
        }
    }
}

impl Block {
    fn new() -> Block {
        Block {
            current: 0,
            n_threads: 0,
            index: [0; 3],
            grid: [0; 3],
            checker: ptr::null_mut(),
            warps: Vec::new(),
            n_at_barrier: 0,
            barrier_location: Location::caller(),
            shared: Vec::new(),
            shared_bytes: 0,
            fault: None,
            kernel: "",
            together: false,
            waits: Waits::default(),
            copies: Copies::default(),
            body: &|| (),
            fibers: Vec::new(),
            suspenders: Vec::new(),
        }
    }

    fn record(&mut self, thread: u32, site: Option<Site>, kind: FaultKind) {
        let thread = Some((self.index, thread));
        let fault = Fault { kernel: self.kernel, thread, site, kind };
        self.fault.get_or_insert(Box::new(fault));
    }

    /// Every thread has come to the barrier: all go on.
    fn open_barrier(&mut self) {
        self.n_at_barrier = 0;
        for warp in &mut self.warps[..(self.n_threads / 32) as usize] {
            (warp.ready, warp.at_barrier) = (u32::MAX, 0);
        }
        // SAFETY: the launch's checker, which only its running block uses.
        if let Some(checker) = unsafe { self.checker.as_mut() } {
            checker.barrier(u32::MAX >> (32 - self.n_threads / 32));
        }
    }

    /// The running thread has come to another barrier than the one where others wait.
    #[cold]
    fn elsewhere(
        &self,
        location: &'static Location<'static>,
    ) -> (u32, &'static Location<'static>, FaultKind) {
        let waiting = self.find(|warp| warp.at_barrier).unwrap_or(self.current);
        let absent_site = Some(location.into());
        let kind = FaultKind::MissedBarrier { absent: self.current, absent_site };
        (waiting, self.barrier_location, kind)
    }

    /// Warps that have returned.
    fn n_done(&self) -> u32 {
        let warps = self.warps[..(self.n_threads / 32) as usize].iter();
        warps.filter(|warp| warp.done == u32::MAX).count() as u32
    }

    /// The first thread that has its bit set.
    fn find(&self, lanes: impl Fn(&Warp) -> u32) -> Option<u32> {
        let warps = self.warps[..(self.n_threads / 32) as usize].iter();
        warps
            .zip(0..)
            .find(|(warp, _)| lanes(warp) != 0)
            .map(|(warp, i)| 32 * i + lanes(warp).trailing_zeros())
    }

    fn fault_of(
        &self,
        thread: u32,
        location: &'static Location<'static>,
        kind: FaultKind,
    ) -> Box<Fault> {
        let (thread, site) = (Some((self.index, thread)), Some(location.into()));
        Box::new(Fault { kernel: self.kernel, thread, site, kind })
    }

    /// Nobody can go on: names a thread that waits and one that it waits for in vain.
    #[cold]
    fn deadlock(&self) -> Box<Fault> {
        // A warp operation first: the rest of its warp may be what the block's barrier lacks.
        let lost = |warp: &Warp| if warp.gone() == 0 { 0 } else { warp.meeting };
        if let Some(stuck) = self.find(lost).or_else(|| self.find(|warp| warp.meeting)) {
            let warp = &self.warps[(stuck / 32) as usize];
            let absent = if warp.gone() == 0 { !warp.meeting } else { warp.gone() };
            let lane = absent.trailing_zeros();
            let (absent, at_barrier) = (stuck / 32 * 32 + lane, warp.at_barrier & 1 << lane != 0);
            let elsewhere =
                if at_barrier { Some(self.barrier_location) } else { self.at_named(absent) };
            let kind = FaultKind::MissedCollective {
                operation: warp.operation,
                absent,
                absent_site: elsewhere.map(Site::from),
            };
            return self.fault_of(stuck, warp.location, kind);
        }
        if let Some(stuck) = self.find(|warp| warp.at_barrier) {
            let at_named = self.first_at_named().map(|(thread, location, _)| (thread, location));
            let (absent, absent_site) = match (self.find(|warp| warp.done), at_named) {
                (None, Some((thread, location))) => (thread, Some(location.into())),
                (absent, _) => (absent.unwrap_or(0), None),
            };
            let kind = FaultKind::MissedBarrier { absent, absent_site };
            return self.fault_of(stuck, self.barrier_location, kind);
        }
        match self.first_at_named() {
            Some((stuck, at, awaited)) => self.fault_of(stuck, at, FaultKind::Starved(awaited)),
            // Whoever can't go on waits somewhere.
            None => self.fault_of(0, self.barrier_location, FaultKind::Host("no turns".to_owned())),
        }
    }
}

/// Gives turns until every thread has returned, a fault stops the block, or nobody goes on before
/// another block does something. A warp keeps the turn until all its lanes wait for others, which keeps
/// its stacks in the cache.
///
/// # Safety
/// `block` must be `current()`, as `Block::begin` or this function leaves it.
unsafe fn schedule(block: *mut Block, turns: &mut Turns) -> Result<Turn, Box<Fault>> {
    // SAFETY: kernel code runs only inside `resume`; no reference but those to the coroutine that
    // gets the turn, which nobody else touches, is alive then.
    unsafe {
        let n_warps = (*block).n_threads / 32;
        let warps: *mut Warp = (*block).warps.as_mut_ptr();
        let fibers: *mut Fiber = (*block).fibers.as_mut_ptr();
        let mut n_done = (&*block).n_done();
        let mut moved = false;
        while n_done < n_warps {
            let mut progress = !(*block).waits.are_none() && (&mut *block).wake();
            let round = turns.begin_round(n_warps);
            for at in 0..n_warps {
                let warp_index = round.at(at);
                let warp = warps.add(warp_index as usize);
                let mut left = turns.begin_warp();
                while (*warp).ready != 0 && left > 0 {
                    let thread = 32 * warp_index + turns.lane((*warp).ready);
                    (*block).current = thread;
                    (*fibers.add(thread as usize)).resume();
                    if (*block).fault.is_some() {
                        let fault = (*block).fault.take();
                        return fault.map_or(Ok(Turn::Ended), Err);
                    }
                    n_done += ((*warp).done == u32::MAX) as u32;
                    left -= 1;
                    progress = true;
                }
            }
            if !progress && (*block).waits.are_none() {
                return Err((&*block).deadlock());
            }
            if !progress {
                return Ok(Turn::Waits { moved });
            }
            moved = true;
        }
    }
    Ok(Turn::Ended)
}

/// A coroutine's life: at every turn that finds it at its start, it runs the current block's kernel
/// once.
fn run_thread(suspender: &Suspender) {
    loop {
        let block = current();
        // SAFETY: as in `field!`; references end before kernel code runs. `body` outlives the
        // block's run.
        unsafe {
            let thread = (*block).current;
            (&mut (*block).suspenders)[thread as usize] = suspender;
            let body = &*(*block).body;
            // Nothing of a kernel's is looked at again after a panic but the fault.
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                let (site, what) = panics::last();
                (&mut *block).record(thread, site, FaultKind::Panic(what));
            }
            let warp = &mut (&mut (*block).warps)[(thread / 32) as usize];
            warp.ready &= !(1 << (thread % 32));
            warp.done |= 1 << (thread % 32);
        }
        suspender.suspend(());
    }
}
