//! Blocks of a launch that may wait for each other: all are alive together, and each runs until nobody
//! in it can go on. Where a round over all of them gets none on, they wait in vain.

use super::Launch;
use super::block::{Running, Turn};
use super::checker::Checker;
use super::fault::Fault;
use super::turns::Turns;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a worker lets others work before it looks again whether they did something for its blocks.
const PATIENCE: Duration = Duration::from_micros(100);

/// A launch, as its workers see it.
struct Rounds<'a> {
    launch: &'a Launch,
    body: &'a (dyn Fn() + Sync),
    /// The block that begins next.
    next: AtomicU64,
    /// Rounds so far that got a block on.
    progress: AtomicU64,
    /// Nobody gives another turn.
    over: AtomicBool,
    shared: Mutex<Shared>,
    moved: Condvar,
}

#[derive(Default)]
struct Shared {
    n_workers: u32,
    /// Workers that went round all their blocks in vain after progress `stuck_at`.
    n_stuck: u32,
    stuck_at: u64,
    /// The fault that is most likely the cause of the others, with its place in their order.
    fault: Option<((u32, u64), Box<Fault>)>,
}

/// A block that has begun.
struct Begun<'a> {
    number: u64,
    running: Running<'a>,
}

/// Runs all blocks: with checks on this OS thread, else on others too.
pub(super) fn run(
    launch: &Launch,
    body: &(dyn Fn() + Sync),
    checker: Option<&mut Checker>,
) -> Result<(), Box<Fault>> {
    let rounds = Rounds {
        launch,
        body,
        next: AtomicU64::new(0),
        progress: AtomicU64::new(0),
        over: AtomicBool::new(false),
        shared: Mutex::default(),
        moved: Condvar::new(),
    };
    let n_workers = (rayon::current_num_threads() as u64).min(launch.n_blocks());
    if launch.mode.checks || n_workers < 2 {
        rounds.work(checker);
    } else {
        // Whoever has no pool thread to run on leaves its blocks to those that have.
        rayon::in_place_scope(|scope| {
            for _ in 1..n_workers {
                scope.spawn(|_| rounds.work(None));
            }
            rounds.work(None);
        });
    }
    let shared = rounds.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    shared.fault.map_or(Ok(()), |(_, fault)| Err(fault))
}

impl<'a> Rounds<'a> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins blocks and gives them turns until all are done or one has a fault.
    fn work(&self, mut checker: Option<&mut Checker>) {
        self.shared().n_workers += 1;
        let mut own: Vec<Begun<'a>> = Vec::new();
        let mut turns = Turns::new(self.launch.mode.order, u64::MAX);
        // Progress after which this worker has gone round in vain.
        let mut stuck_at = None;
        // With checks all begin at once; else a worker takes another block when its own don't go on,
        // so that each gets as many as it can look after.
        while self.launch.mode.checks && self.begin(&mut own) {}
        while !self.over.load(Ordering::Relaxed) {
            let seen = self.progress.load(Ordering::Acquire);
            if self.round(&mut own, &mut turns, &mut checker) {
                self.progress.fetch_add(1, Ordering::AcqRel);
                self.moved.notify_all();
            } else if self.begin(&mut own) {
                // It has its first turn in the next round.
            } else if own.is_empty() {
                break;
            } else {
                self.wait_for_others(seen, &mut stuck_at);
            }
        }
        let mut shared = self.shared();
        shared.n_workers -= 1;
        if shared.fault.is_none() || shared.fault.as_ref().is_some_and(|(rank, _)| rank.0 > 0) {
            for begun in &own {
                let (rank, fault) = begun.running.starved();
                shared.note((rank + 1, begun.number), fault);
            }
        }
        drop(shared);
        self.moved.notify_all();
    }

    /// Begins the next block, if there is one.
    fn begin(&self, own: &mut Vec<Begun<'a>>) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.launch.n_blocks() {
            return false;
        }
        match Running::new(self.launch, self.launch.place(number), self.body) {
            Ok(running) => own.push(Begun { number, running }),
            Err(fault) => self.stop(number, fault),
        }
        true
    }

    /// Gives every block a turn. Whether that got one on, or into a fault.
    fn round(
        &self,
        own: &mut Vec<Begun<'a>>,
        turns: &mut Turns,
        checker: &mut Option<&mut Checker>,
    ) -> bool {
        if own.is_empty() {
            return false;
        }
        let mut moved = false;
        let round = turns.begin_round(own.len() as u32);
        for at in 0..own.len() as u32 {
            let begun = &mut own[round.at(at) as usize];
            match begun.running.turn(checker.as_deref_mut()) {
                Ok(Turn::Waits { moved: this }) => moved |= this,
                Ok(Turn::Ended) => moved = true,
                Err(fault) => {
                    self.stop(begun.number, fault);
                    return true;
                }
            }
        }
        own.retain(|begun| !begun.running.has_ended());
        moved
    }

    fn stop(&self, number: u64, fault: Box<Fault>) {
        self.shared().note((0, number), fault);
        self.over.store(true, Ordering::Relaxed);
    }

    /// Lets the other workers go on, unless they are stuck too.
    fn wait_for_others(&self, seen: u64, stuck_at: &mut Option<u64>) {
        let mut shared = self.shared();
        if shared.stuck_at < seen {
            (shared.stuck_at, shared.n_stuck) = (seen, 0);
        }
        if *stuck_at != Some(seen) && shared.stuck_at == seen {
            *stuck_at = Some(seen);
            shared.n_stuck += 1;
        }
        // Whoever is stuck has looked at its blocks after the last of all that happened. A worker that
        // runs a turn is not among them, even if it woke up from being stuck: it gets on before it is.
        let all = *stuck_at == Some(shared.stuck_at) && shared.n_stuck == shared.n_workers;
        if all && self.progress.load(Ordering::Acquire) == seen {
            self.over.store(true, Ordering::Relaxed);
        } else {
            drop(self.moved.wait_timeout(shared, PATIENCE));
        }
    }
}

impl Shared {
    fn note(&mut self, rank: (u32, u64), fault: Box<Fault>) {
        if self.fault.as_ref().is_none_or(|(other, _)| rank < *other) {
            self.fault = Some((rank, fault));
        }
    }
}
