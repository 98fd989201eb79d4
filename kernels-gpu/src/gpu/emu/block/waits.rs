//! What threads of a block wait for besides its barrier and the rest of their warp: barriers of some of
//! its warps, signals from other blocks, and phases. Kernels alone that are declared `together` may.

use super::super::Access;
use super::super::fault::{Awaited, Fault, FaultKind};
use super::{Block, current, fault_at, field, shared, suspend, tell_clocks};
use std::panic::Location;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that a phase counter may be short of: its machine word has 20 bits and a sign for them.
const MOST_BYTES: u32 = 1 << 20;
/// Threads that a phase counter can count.
const MOST_ARRIVALS: u32 = 1 << 20;

/// What a thread waits for.
#[derive(Clone, Copy)]
pub(in super::super) enum Sought {
    /// Counter `i` of some view, at `address`, comes to `n`.
    Signals { address: u64, i: usize, n: u32 },
    /// The phase of this parity ends at phase counter `i` of some array, at byte `offset`.
    Phase { offset: u32, i: u32, parity: u32 },
}

/// A thread that waits.
struct Wait {
    thread: u32,
    location: &'static Location<'static>,
    sought: Sought,
}

/// A barrier of `n` threads where some wait.
struct Named {
    id: u32,
    n: u32,
    found: u32,
    /// Those that are there, by warp.
    lanes: [u32; 32],
    /// Where the first of them is.
    location: &'static Location<'static>,
}

/// A phase counter in shared memory.
struct Phase {
    offset: u32,
    /// Arrivals that end a phase, once all expected bytes are there.
    n: u32,
    /// Arrivals that the running phase lacks.
    pending: u32,
    /// Bytes that it lacks; below 0 where copies came before they were expected.
    bytes: i64,
    /// Phases that are over.
    number: u64,
    /// The thread that made it, where, and whether it has let copies know.
    maker: u32,
    location: &'static Location<'static>,
    known_to_copies: bool,
}

/// The threads of a block that wait, and what for.
#[derive(Default)]
pub(in super::super) struct Waits {
    waiting: Vec<Wait>,
    named: Vec<Named>,
    phases: Vec<Phase>,
}

impl Waits {
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.named.clear();
        self.phases.clear();
    }

    /// Whether no thread waits for what may come from elsewhere.
    #[inline(always)]
    pub(super) fn are_none(&self) -> bool {
        self.waiting.is_empty()
    }

    fn is_over(&self, sought: Sought) -> bool {
        match sought {
            Sought::Signals { address, n, .. } => signals(address) >= n,
            Sought::Phase { offset, parity, .. } => {
                let phase = self.phases.iter().find(|phase| phase.offset == offset);
                phase.is_some_and(|phase| phase.number % 2 != u64::from(parity))
            }
        }
    }

    /// What a thread looks for, and what there is of it.
    fn awaited(&self, sought: Sought) -> Awaited {
        match sought {
            Sought::Signals { address, i, n } => {
                Awaited::Signals { counter: i, found: signals(address), n }
            }
            Sought::Phase { offset, i, parity } => {
                let phase = self.phases.iter().find(|phase| phase.offset == offset);
                let (running, arrivals, bytes) =
                    phase.map_or((0, 0, 0), |phase| (phase.number, phase.pending, phase.bytes));
                Awaited::Phase { counter: i, parity, running, arrivals, bytes }
            }
        }
    }
}

/// What the counter at this address stands at.
fn signals(address: u64) -> u32 {
    // SAFETY: `wait_for_signals` and `signal` come here with an aligned element of a view.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }.load(Ordering::Acquire)
}

/// Reports that the running thread breaks the rules of an operation.
#[cold]
fn misuse(location: &'static Location<'static>, what: String) -> ! {
    fault_at(field!(current), location, FaultKind::Misuse(what))
}

/// Reports a kernel that is not declared so that it may wait.
#[inline(always)]
pub(in super::super) fn expect_together(location: &'static Location<'static>) {
    if !field!(together) {
        misuse(location, "the kernel is not declared `together`".to_owned());
    }
}

/// Reports a parity that no number has.
pub(in super::super) fn expect_parity(parity: u32, location: &'static Location<'static>) {
    if parity > 1 {
        misuse(location, format!("a wait for a phase of parity {parity}"));
    }
}

/// Reports a copy of nothing, or of more than any phase counter can count.
pub(in super::super) fn expect_quads(n_quads: u32, location: &'static Location<'static>) {
    if n_quads == 0 || n_quads >= MOST_BYTES / 16 {
        misuse(location, format!("a copy of {n_quads} units of 16 bytes"));
    }
}

/// Waits for what may already be there.
pub(in super::super) fn wait_until(sought: Sought, location: &'static Location<'static>) {
    let block = current();
    // SAFETY: as in `field!`; references end before the suspension.
    unsafe {
        while !(*block).waits.is_over(sought) {
            let thread = (*block).current;
            (*block).waits.waiting.push(Wait { thread, location, sought });
            (&mut (*block).warps)[(thread / 32) as usize].ready &= !(1 << (thread % 32));
            suspend(block);
        }
    }
}

/// Meets the others of `n` threads at barrier `id`.
pub(in super::super) fn named_barrier(id: u32, n: u32, location: &'static Location<'static>) {
    expect_together(location);
    if id == 0 || id > 15 {
        misuse(location, format!("barrier {id}; they have the numbers 1 to 15"));
    }
    if n == 0 || !n.is_multiple_of(32) || n > field!(n_threads) {
        misuse(location, format!("a barrier of {n} threads; it takes whole warps of the block"));
    }
    let block = current();
    // SAFETY: as in `field!`; references end before faults and the suspension.
    unsafe {
        let thread = (*block).current;
        let named = &mut (*block).waits.named;
        let at = named.iter().position(|barrier| barrier.id == id).unwrap_or_else(|| {
            named.push(Named { id, n, found: 0, lanes: [0; 32], location });
            named.len() - 1
        });
        let others = named[at].n;
        if others != n {
            let what = format!("barrier {id} of {n} threads, where others wait for {others}");
            misuse(location, what);
        }
        named[at].lanes[(thread / 32) as usize] |= 1 << (thread % 32);
        named[at].found += 1;
        if named[at].found < n {
            (&mut (*block).warps)[(thread / 32) as usize].ready &= !(1 << (thread % 32));
            suspend(block);
            return;
        }
        let barrier = named.swap_remove(at);
        if let Some(warp) = barrier.lanes.iter().position(|&lanes| lanes != 0 && lanes != u32::MAX)
        {
            misuse(
                location,
                format!("barrier {id} of {n} threads opens with a part of warp {warp}"),
            );
        }
        (&mut *block).open_named(&barrier.lanes);
        tell_clocks(|clocks, _| {
            let there = barrier.lanes.iter().zip(0..).filter(|&(&lanes, _)| lanes != 0);
            clocks.meet(there.fold(0, |warps, (_, warp)| warps | 1 << warp));
        });
    }
}

/// Makes the phase counter at `offset`, number `i` of its array.
pub(in super::super) fn make_phase(
    offset: u32,
    i: u32,
    n: u32,
    location: &'static Location<'static>,
) {
    if n == 0 || n >= MOST_ARRIVALS {
        misuse(location, format!("phase counter {i} of {n} arrivals"));
    }
    let block = current();
    // SAFETY: as in `field!`; references end before faults.
    unsafe {
        if (*block).waits.phases.iter().any(|phase| phase.offset == offset) {
            misuse(location, format!("phase counter {i} is made a second time"));
        }
        shared(offset as usize, 8, 8, Access::Write, location);
        let maker = (*block).current;
        let phase = Phase {
            offset,
            n,
            pending: n,
            bytes: 0,
            number: 0,
            maker,
            location,
            known_to_copies: false,
        };
        (*block).waits.phases.push(phase);
    }
    let mut room = true;
    tell_clocks(|clocks, _| room = clocks.make_phase(offset));
    if !room {
        fault_at(field!(current), location, FaultKind::Host("too many phase counters".to_owned()));
    }
}

/// Lets copies find the phase counters that the running thread made.
pub(in super::super) fn let_copies_know() {
    let block = current();
    // SAFETY: as in `field!`.
    unsafe {
        let thread = (*block).current;
        let phases = (*block).waits.phases.iter_mut();
        phases.filter(|phase| phase.maker == thread).for_each(|phase| phase.known_to_copies = true);
    }
}

/// Looks for the phase counter at `offset`, and for races on it.
pub(in super::super) fn use_phase(offset: u32, i: u32, location: &'static Location<'static>) {
    with_phase(offset, i, location, |_| ());
    shared(offset as usize, 8, 8, Access::Atomic, location);
}

/// What `f` makes of the phase counter at `offset`.
fn with_phase<R>(
    offset: u32,
    i: u32,
    location: &'static Location<'static>,
    f: impl FnOnce(&mut Phase) -> R,
) -> R {
    let block = current();
    // SAFETY: as in `field!`; `f` is of this file and calls no gpu operation.
    let found = unsafe {
        let mut phases = (*block).waits.phases.iter_mut();
        phases.find(|phase| phase.offset == offset).map(f)
    };
    found.unwrap_or_else(|| misuse(location, format!("phase counter {i} is used but was not made")))
}

/// Arrives at the running phase, which lacks `n_quads` 16-byte units more.
pub(in super::super) fn arrive_at_phase(
    offset: u32,
    i: u32,
    n_quads: u32,
    location: &'static Location<'static>,
) {
    tell_clocks(|clocks, thread| clocks.arrive_at_phase(offset, thread));
    let outcome = with_phase(offset, i, location, |phase| {
        if phase.pending == 0 {
            return Err(format!(
                "phase counter {i} counts {} arrivals, and one more comes",
                phase.n
            ));
        }
        phase.pending -= 1;
        phase.lack(i, 16 * i64::from(n_quads))
    });
    end_phase(offset, outcome, location);
}

/// A copy of `n_quads` 16-byte units is done.
pub(in super::super) fn complete_copy(
    offset: u32,
    i: u32,
    n_quads: u32,
    location: &'static Location<'static>,
) {
    let outcome = with_phase(offset, i, location, |phase| {
        if !phase.known_to_copies {
            return Err(format!("a copy can't know phase counter {i}: see `phases_are_made`"));
        }
        phase.lack(i, -16 * i64::from(n_quads))
    });
    end_phase(offset, outcome, location);
}

/// Says that the phase has ended, if it has.
fn end_phase(offset: u32, outcome: Result<bool, String>, location: &'static Location<'static>) {
    match outcome {
        Ok(true) => tell_clocks(|clocks, _| clocks.end_phase(offset)),
        Ok(false) => {}
        Err(what) => misuse(location, what),
    }
}

impl Phase {
    /// Counts bytes, and ends the phase if it lacks nothing more.
    fn lack(&mut self, i: u32, more: i64) -> Result<bool, String> {
        self.bytes += more;
        if self.bytes.unsigned_abs() >= u64::from(MOST_BYTES) {
            return Err(format!("phase counter {i} can't count to {} bytes", self.bytes));
        }
        if self.pending > 0 || self.bytes > 0 {
            return Ok(false);
        }
        if self.bytes < 0 {
            return Err(format!(
                "{} bytes more come to phase counter {i} than expected",
                -self.bytes
            ));
        }
        self.pending = self.n;
        self.number += 1;
        Ok(true)
    }
}

impl Block {
    /// Makes those ready who have waited for what is there by now. Whether there are any.
    #[cold]
    pub(super) fn wake(&mut self) -> bool {
        let (mut woken, mut at) = (false, 0);
        while let Some(wait) = self.waits.waiting.get(at) {
            if self.waits.is_over(wait.sought) {
                self.warps[(wait.thread / 32) as usize].ready |= 1 << (wait.thread % 32);
                self.waits.waiting.swap_remove(at);
                woken = true;
            } else {
                at += 1;
            }
        }
        woken
    }

    /// Everybody has come to a barrier: they go on.
    fn open_named(&mut self, lanes: &[u32; 32]) {
        for (warp, &lanes) in self.warps.iter_mut().zip(lanes) {
            warp.ready |= lanes;
        }
    }

    /// Where a thread waits at a barrier of some warps.
    pub(super) fn at_named(&self, thread: u32) -> Option<&'static Location<'static>> {
        let mut named = self.waits.named.iter();
        let here = |named: &Named| named.lanes[(thread / 32) as usize] >> (thread % 32) & 1 == 1;
        named.find(|named| here(named)).map(|named| named.location)
    }

    /// The first thread that waits at a barrier of some warps, with all about it.
    pub(super) fn first_at_named(&self) -> Option<(u32, &'static Location<'static>, Awaited)> {
        let named = self.waits.named.first()?;
        let warp = named.lanes.iter().position(|&lanes| lanes != 0)?;
        let thread = 32 * warp as u32 + named.lanes[warp].trailing_zeros();
        let awaited = Awaited::Barrier { id: named.id, found: named.found, n: named.n };
        Some((thread, named.location, awaited))
    }

    /// No block goes on any more: who waits for what in this one. What comes first in the order is more
    /// likely the cause of the others.
    #[cold]
    pub(in super::super) fn starved(&self) -> (u32, Box<Fault>) {
        // A lane that waits is why its warp does, unless the warp lacks one that waits for nothing.
        let lost = self.find(|warp| if warp.meeting == 0 { 0 } else { warp.gone() }).is_some();
        let done = self.find(|warp| warp.done).is_some();
        if lost || self.n_at_barrier > 0 && done {
            return (0, self.deadlock());
        }
        let of_signals = |wait: &&Wait| matches!(wait.sought, Sought::Signals { .. });
        let least = |waits: &mut dyn Iterator<Item = &'_ Wait>| {
            waits.min_by_key(|wait| wait.thread).map(|w| (w.thread, w.location, w.sought))
        };
        let signals = least(&mut self.waits.waiting.iter().filter(of_signals));
        let rank = if signals.is_some() { 2 } else { 1 };
        let Some((thread, location, sought)) =
            signals.or_else(|| least(&mut self.waits.waiting.iter()))
        else {
            return (0, self.deadlock());
        };
        (rank, self.fault_of(thread, location, FaultKind::Starved(self.waits.awaited(sought))))
    }

    /// What a block leaves behind that has come to its end.
    pub(super) fn left_over(&self) -> Option<Box<Fault>> {
        let phase = self.waits.phases.iter().find(|phase| phase.bytes != 0)?;
        let what = format!(
            "the block ends with {} bytes more copied than a phase that ended expected",
            -phase.bytes
        );
        Some(self.fault_of(phase.maker, phase.location, FaultKind::Misuse(what)))
    }
}
