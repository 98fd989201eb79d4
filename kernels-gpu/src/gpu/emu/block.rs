//! One block: its coroutines, their turns, and where they wait for each other.

use super::fault::{Fault, FaultKind};
use super::shadow::{Cell, Moment};
use super::{Access, Launch, Order};
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::cell::{Cell as StdCell, RefCell};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;

/// Bytes of a coroutine's stack: kernels have no recursion and few locals, panics need the most.
const STACK_BYTES: usize = 64 << 10;
/// Words that a lane hands to a warp operation: a matrix product's a, b and c fragments.
pub(super) const DEPOSIT_WORDS: usize = 10;

/// What a suspended thread waits for.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// For its next turn.
    Turn,
    Block(&'static Location<'static>),
    Warp(&'static str, &'static Location<'static>),
    /// For nothing: it has returned.
    Done,
}

/// A meeting of the 32 lanes of a warp.
#[derive(Clone)]
struct Meeting {
    operation: &'static str,
    location: Option<&'static Location<'static>>,
    n_arrived: u32,
    deposits: [[u32; DEPOSIT_WORDS]; 32],
    results: [[u32; 4]; 32],
}

/// A running block. Lives on the stack of the OS thread that runs it.
pub(super) struct Block<'a> {
    launch: &'a Launch,
    pub(super) index: [u32; 3],
    pub(super) current: u32,
    n_threads: u32,
    waiting: Vec<Waiting>,
    yielders: Vec<*const Yielder<(), ()>>,
    warps: Vec<Meeting>,
    n_at_barrier: u32,
    block_epoch: u32,
    warp_epochs: Vec<u32>,
    /// 16-byte units, so that wide accesses are aligned as on the device.
    shared: Vec<u128>,
    shared_cells: Vec<Cell>,
    fault: Option<Fault>,
    body: &'a dyn Fn(),
}

thread_local! {
    static CURRENT: StdCell<*mut Block<'static>> = const { StdCell::new(ptr::null_mut()) };
    static POOL: RefCell<Vec<Fiber>> = const { RefCell::new(Vec::new()) };
}

type Fiber = Coroutine<(), (), (), DefaultStack>;

/// The block that runs on this OS thread.
///
/// Kernel code runs inside `Block::run` only; a call from outside is a bug of the host program.
#[inline(always)]
fn current() -> *mut Block<'static> {
    let block = CURRENT.get();
    assert!(!block.is_null(), "a gpu operation was called outside a kernel");
    block
}

/// Reads a field of the running block.
#[inline(always)]
pub(super) fn with<R>(read: impl FnOnce(&Block<'static>) -> R) -> R {
    // SAFETY: `current` is alive while a kernel runs, and no `&mut` to it is held across this call:
    // coroutines of one block run one at a time on one OS thread, and `with_mut` never calls back.
    read(unsafe { &*current() })
}

#[inline(always)]
fn with_mut<R>(change: impl FnOnce(&mut Block<'static>) -> R) -> R {
    // SAFETY: as in `with`; `change` neither suspends nor calls gpu operations.
    change(unsafe { &mut *current() })
}

/// Gives the turn back to the scheduler.
#[inline(always)]
fn suspend() {
    let yielder = with(|b| b.yielders[b.current as usize]);
    // SAFETY: the yielder belongs to the coroutine that runs right now, so it is alive.
    unsafe { (*yielder).suspend(()) }
}

/// Reports a fault of the running thread and ends its part in the launch.
#[cold]
#[track_caller]
pub(super) fn fault(kind: FaultKind) -> ! {
    fault_at(kind, Location::caller())
}

#[cold]
fn fault_at(kind: FaultKind, location: &'static Location<'static>) -> ! {
    with_mut(|b| b.record(b.current, Some(location), kind));
    loop {
        suspend(); // the scheduler never gives a faulty block another turn
    }
}

#[inline(always)]
pub(super) fn checks() -> bool {
    with(|b| b.launch.mode.checks)
}

pub(super) fn grid() -> [u32; 3] {
    with(|b| b.launch.grid)
}

/// Notes an access to global memory and reports a race.
pub(super) fn check_global(
    address: u64,
    bytes: usize,
    access: Access,
    location: &'static Location<'static>,
) {
    let race = with_mut(|b| {
        let now = b.now(access, location);
        let shadow = b.launch.shadow.as_ref()?;
        shadow.lock().ok()?.note(address, bytes, access, now)
    });
    if let Some(other) = race {
        report_race("global", other, location);
    }
}

#[cold]
fn report_race(memory: &'static str, other: Moment, location: &'static Location<'static>) -> ! {
    let kind = FaultKind::Race {
        memory,
        other: (other.block, other.thread),
        other_location: other.location,
    };
    fault_at(kind, location)
}

/// Address of `bytes` bytes at `offset` of the block's shared memory, checked.
#[inline(always)]
pub(super) fn shared(
    offset: u32,
    bytes: usize,
    access: Access,
    location: &'static Location<'static>,
) -> *mut u8 {
    let end = offset as usize + bytes;
    let size = with(|b| b.launch.spec.shared_bytes as usize);
    if end > size {
        fault_at(FaultKind::OutOfBounds { index: end - 1, len: size }, location);
    }
    if !(offset as usize).is_multiple_of(bytes) {
        fault_at(FaultKind::Misaligned { address: offset as u64, align: bytes }, location);
    }
    if checks() {
        check_shared(offset, bytes, access, location);
    }
    with_mut(|b| b.shared.as_mut_ptr().cast::<u8>().wrapping_add(offset as usize))
}

fn check_shared(offset: u32, bytes: usize, access: Access, location: &'static Location<'static>) {
    let range = offset as usize..offset as usize + bytes;
    let (unwritten, race) = with_mut(|b| {
        let now = b.now(access, location);
        let cells = &mut b.shared_cells[range];
        let unwritten = access == Access::Read && cells.iter().any(|c| !c.written());
        (unwritten, cells.iter_mut().fold(None, |race, c| race.or(c.note(access, now))))
    });
    if unwritten {
        fault_at(FaultKind::Uninitialised { offset }, location);
    }
    if let Some(other) = race {
        report_race("shared", other, location);
    }
}

/// Waits until every thread of the block is here.
#[track_caller]
pub(super) fn barrier() {
    let location = Location::caller();
    let all_here = with_mut(|b| {
        b.n_at_barrier += 1;
        if b.n_at_barrier < b.n_threads {
            b.waiting[b.current as usize] = Waiting::Block(location);
            return false;
        }
        b.n_at_barrier = 0;
        b.block_epoch += 1;
        for waiting in &mut b.waiting {
            *waiting = Waiting::Turn;
        }
        true
    });
    if !all_here {
        suspend();
    }
}

/// Meets the other lanes of the warp; the last to come computes every lane's result. With
/// `orders_memory` the warp's accesses before the meeting come before those after it.
#[inline(always)]
pub(super) fn meet(
    operation: &'static str,
    location: &'static Location<'static>,
    orders_memory: bool,
    deposit: impl FnOnce(&mut [u32; DEPOSIT_WORDS]),
    compute: impl FnOnce(&[[u32; DEPOSIT_WORDS]; 32], &mut [[u32; 4]; 32]),
) -> [u32; 4] {
    let (thread, differs) = with_mut(|b| {
        let thread = b.current;
        let meeting = &mut b.warps[(thread / 32) as usize];
        if meeting.n_arrived == 0 {
            meeting.operation = operation;
            meeting.location = Some(location);
        }
        (thread, meeting.operation != operation || meeting.location != Some(location))
    });
    if differs {
        let (operation, absent_location) = with(|b| {
            let meeting = &b.warps[(thread / 32) as usize];
            (meeting.operation, meeting.location)
        });
        let kind = FaultKind::MissedCollective { operation, absent: thread, absent_location };
        fault_at(kind, location);
    }
    let complete = with_mut(|b| {
        let meeting = &mut b.warps[(thread / 32) as usize];
        deposit(&mut meeting.deposits[(thread % 32) as usize]);
        meeting.n_arrived += 1;
        if meeting.n_arrived < 32 {
            b.waiting[thread as usize] = Waiting::Warp(operation, location);
            return false;
        }
        meeting.n_arrived = 0;
        let Meeting { deposits, results, .. } = meeting;
        compute(deposits, results);
        b.warp_epochs[(thread / 32) as usize] += orders_memory as u32;
        let first = (thread / 32 * 32) as usize;
        for waiting in &mut b.waiting[first..first + 32] {
            *waiting = Waiting::Turn;
        }
        true
    });
    if !complete {
        suspend();
    }
    with(|b| b.warps[(thread / 32) as usize].results[(thread % 32) as usize])
}

impl Block<'_> {
    fn now(&self, access: Access, location: &'static Location<'static>) -> Moment {
        let [x, y, z] = self.index;
        let [nx, ny, _] = self.launch.grid;
        Moment {
            block: x + nx * (y + ny * z),
            thread: self.current,
            block_epoch: self.block_epoch,
            warp_epoch: self.warp_epochs[(self.current / 32) as usize],
            location,
            atomic: access == Access::Atomic,
        }
    }

    fn record(
        &mut self,
        thread: u32,
        location: Option<&'static Location<'static>>,
        kind: FaultKind,
    ) {
        let kernel = self.launch.spec.name;
        let fault = Fault { kernel, thread: Some((self.index, thread)), location, kind };
        self.fault.get_or_insert(fault);
    }

    /// Runs one block to its end.
    pub(super) fn run(launch: &Launch, index: [u32; 3], body: &dyn Fn()) -> Result<(), Fault> {
        let n_threads = launch.spec.block_threads;
        let n_warps = n_threads.div_ceil(32) as usize;
        let shared_bytes = launch.spec.shared_bytes as usize;
        let meeting = Meeting {
            operation: "",
            location: None,
            n_arrived: 0,
            deposits: [[0; DEPOSIT_WORDS]; 32],
            results: [[0; 4]; 32],
        };
        let mut block = Block {
            launch,
            index,
            current: 0,
            n_threads,
            waiting: vec![Waiting::Turn; n_threads as usize],
            yielders: vec![ptr::null(); n_threads as usize],
            warps: vec![meeting; n_warps],
            n_at_barrier: 0,
            block_epoch: 0,
            warp_epochs: vec![0; n_warps],
            // 0xff.. is NaN as f32, so that a read before a write shows even with checks off.
            shared: vec![u128::MAX; shared_bytes.div_ceil(16)],
            shared_cells: vec![Cell::default(); if launch.mode.checks { shared_bytes } else { 0 }],
            fault: None,
            body,
        };
        let mut fibers = take_fibers(n_threads as usize);
        let previous = CURRENT.replace((&raw mut block).cast());
        let outcome = schedule(&raw mut block, &mut fibers);
        CURRENT.set(previous);
        if outcome.is_ok() {
            give_back(fibers)
        } else {
            abandon(fibers)
        }
        outcome
    }
}

/// Gives turns until every thread has returned, or a fault stops the block.
fn schedule(block: *mut Block<'_>, fibers: &mut [Fiber]) -> Result<(), Fault> {
    // SAFETY: `block` is alive for the whole call; each borrow below ends before a coroutine runs.
    let b = || unsafe { &mut *block };
    let n_threads = b().n_threads as usize;
    let mut turns = Turns::new(b().launch.mode.order, n_threads);
    let mut n_done = 0;
    while n_done < n_threads {
        let mut progress = false;
        for at in 0..n_threads {
            let thread = turns.thread(at);
            if !matches!(b().waiting[thread], Waiting::Turn) {
                continue;
            }
            progress = true;
            b().current = thread as u32;
            match catch_unwind(AssertUnwindSafe(|| fibers[thread].resume(()))) {
                Ok(CoroutineResult::Yield(())) => {}
                Ok(CoroutineResult::Return(())) => {} // never: the fiber's loop has no end
                Err(payload) => {
                    let text = payload
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                        .unwrap_or_default();
                    b().record(thread as u32, None, FaultKind::Panic(text));
                }
            }
            if let Some(fault) = b().fault.take() {
                return Err(fault);
            }
            n_done += matches!(b().waiting[thread], Waiting::Done) as usize;
        }
        if !progress {
            return Err(deadlock(b()));
        }
        turns.next();
    }
    Ok(())
}

/// Nobody can go on: names a thread that waits and one that it waits for in vain.
fn deadlock(b: &Block<'_>) -> Fault {
    let whereabouts = |thread: usize| match b.waiting[thread] {
        Waiting::Block(location) | Waiting::Warp(_, location) => Some(location),
        Waiting::Turn | Waiting::Done => None,
    };
    let everyone = 0..b.n_threads as usize;
    // A warp operation first: the rest of its warp may be what the block's barrier lacks.
    let stuck = everyone
        .clone()
        .find(|&t| matches!(b.waiting[t], Waiting::Warp(..)))
        .or_else(|| everyone.clone().find(|&t| matches!(b.waiting[t], Waiting::Block(_))))
        .unwrap_or(0);
    let (location, kind) = match b.waiting[stuck] {
        Waiting::Warp(operation, location) => {
            let first = stuck / 32 * 32;
            let absent = (first..(first + 32).min(b.n_threads as usize))
                .find(|&t| !matches!(b.waiting[t], Waiting::Warp(..)))
                .unwrap_or(stuck);
            let kind = FaultKind::MissedCollective {
                operation,
                absent: absent as u32,
                absent_location: whereabouts(absent),
            };
            (Some(location), kind)
        }
        _ => {
            let absent = everyone
                .clone()
                .find(|&t| !matches!(b.waiting[t], Waiting::Block(_)))
                .unwrap_or(stuck);
            let kind = FaultKind::MissedBarrier {
                absent: absent as u32,
                absent_location: whereabouts(absent),
            };
            (whereabouts(stuck), kind)
        }
    };
    Fault { kernel: b.launch.spec.name, thread: Some((b.index, stuck as u32)), location, kind }
}

/// The order of turns.
struct Turns {
    order: Order,
    permutation: Vec<u32>,
    state: u64,
}

impl Turns {
    fn new(order: Order, n_threads: usize) -> Turns {
        let state = if let Order::Shuffled(seed) = order { seed | 1 } else { 1 };
        let permutation = match order {
            Order::Shuffled(_) => (0..n_threads as u32).collect(),
            Order::Forward | Order::Reversed => Vec::new(),
        };
        let mut turns = Turns { order, permutation, state };
        turns.next();
        turns
    }

    fn thread(&self, at: usize) -> usize {
        match self.order {
            Order::Forward => at,
            Order::Reversed => with(|b| b.n_threads as usize) - 1 - at,
            Order::Shuffled(_) => self.permutation[at] as usize,
        }
    }

    /// Another permutation for the next round.
    fn next(&mut self) {
        for i in (1..self.permutation.len()).rev() {
            self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            self.permutation.swap(i, ((self.state >> 33) % (i as u64 + 1)) as usize);
        }
    }
}

/// Coroutines from this OS thread's pool; new ones where it has too few.
fn take_fibers(n: usize) -> Vec<Fiber> {
    let mut fibers = POOL.with_borrow_mut(|pool| pool.split_off(pool.len().saturating_sub(n)));
    while fibers.len() < n {
        fibers.push(new_fiber());
    }
    fibers
}

/// A coroutine that runs the current block's kernel once for every turn that finds it at its start.
fn new_fiber() -> Fiber {
    let stack = DefaultStack::new(STACK_BYTES)
        .unwrap_or_else(|e| panic!("no memory for an emulated thread's stack: {e}"));
    Coroutine::with_stack(stack, |yielder, ()| {
        loop {
            let body = with_mut(|b| {
                b.yielders[b.current as usize] = &raw const *yielder;
                b.body
            });
            body();
            with_mut(|b| b.waiting[b.current as usize] = Waiting::Done);
            yielder.suspend(());
        }
    })
}

/// Keeps the coroutines of a block that ended well: all are at their start.
fn give_back(fibers: Vec<Fiber>) {
    POOL.with_borrow_mut(|pool| pool.extend(fibers));
}

/// Ends the coroutines of a faulty block where they stand.
fn abandon(fibers: Vec<Fiber>) {
    for mut fiber in fibers {
        // SAFETY: kernel code owns nothing that would need dropping.
        unsafe { fiber.force_reset() };
    }
}
