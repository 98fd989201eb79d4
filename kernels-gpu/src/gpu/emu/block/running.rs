//! A block from its beginning to its end, and what is kept for the next one.

use super::super::{Checker, Launch};
use super::{Block, CURRENT, Fiber, REGIME, Regime, Turns, Warp, run_thread, schedule};
use crate::gpu::emu::fault::{Fault, FaultKind};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;

thread_local! {
    /// Blocks to begin anew, the last one used first. Pointers to a block that runs stay right.
    #[allow(clippy::vec_box)]
    static IDLE: Cell<Vec<Box<Block>>> = const { Cell::new(Vec::new()) };
}

/// Stacks that all OS threads keep, beyond one block each: Linux gives a process some 65 thousand
/// mappings, and a stack with its guard takes two.
const MOST_IDLE_STACKS: usize = 16 << 10;

/// How a block's turn ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Turn {
    /// Every thread has returned.
    Ended,
    /// Some wait for what other blocks may do, and nobody can go on; `moved` if anybody did.
    Waits { moved: bool },
}

/// A block that has begun, on the OS thread that began it.
pub(in super::super) struct Running<'a> {
    block: *mut Block,
    turns: Turns,
    ended: bool,
    body: PhantomData<&'a dyn Fn()>,
}

impl<'a> Running<'a> {
    /// Begins a block that runs `body`.
    pub(in super::super) fn new(
        launch: &Launch,
        index: [u32; 3],
        body: &'a dyn Fn(),
    ) -> Result<Running<'a>, Box<Fault>> {
        let mut idle = IDLE.take();
        let block = idle.pop();
        IDLE.set(idle);
        let mut block = block.unwrap_or_else(|| Box::new(Block::new()));
        block.begin(launch, index)?;
        // SAFETY: only the lifetime changes; kernel code runs, and `body` is used, only inside
        // `schedule` below, which `turn` calls while `body` lives.
        block.body = unsafe { std::mem::transmute::<&dyn Fn(), &'static dyn Fn()>(body) };
        let turns = Turns::new(launch.mode.order, launch.number(index));
        Ok(Running { block: Box::into_raw(block), turns, ended: false, body: PhantomData })
    }

    /// Lets the block run until it can't go on.
    pub(in super::super) fn turn(
        &mut self,
        checker: Option<&mut Checker>,
    ) -> Result<Turn, Box<Fault>> {
        let pointer = self.block;
        let mut regime = Regime::Free;
        // SAFETY: made by `into_raw` in `new`, and nobody else uses it now.
        unsafe {
            (*pointer).checker = checker.map_or(ptr::null_mut(), |checker| {
                regime = Regime::Checked;
                checker.begin_turn((*pointer).index);
                ptr::from_mut(checker)
            });
        }
        let previous = (CURRENT.replace(pointer), REGIME.replace(regime));
        // SAFETY: `pointer` is the block that was just made current.
        let outcome = unsafe { schedule(pointer, &mut self.turns) };
        CURRENT.set(previous.0);
        REGIME.set(previous.1);
        if let Ok(Turn::Ended) = outcome {
            self.ended = true;
            // SAFETY: as above; the coroutines no longer run.
            unsafe { (&*pointer).left_over() }.map_or(Ok(()), Err)?;
        }
        outcome
    }

    /// Whether every thread has returned.
    pub(in super::super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Why the block does not go on, and where that stands among the reasons of several blocks.
    pub(in super::super) fn starved(&self) -> (u32, Box<Fault>) {
        // SAFETY: as in `turn`.
        unsafe { (&*self.block).starved() }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw` in `new`; the coroutines don't run.
        let mut block = unsafe { Box::from_raw(self.block) };
        if !self.ended {
            // Some stand amid the kernel.
            block.fibers.clear();
            block.suspenders.clear();
        }
        let mut idle = IDLE.take();
        let n_stacks = idle.iter().chain([&block]).map(|block| block.fibers.len()).sum::<usize>();
        if idle.is_empty() || n_stacks * rayon::current_num_threads() <= MOST_IDLE_STACKS {
            idle.push(block);
        }
        IDLE.set(idle);
    }
}

impl Block {
    /// Runs one block to its end on the calling OS thread.
    pub(in super::super) fn run(
        launch: &Launch,
        index: [u32; 3],
        body: &dyn Fn(),
        checker: Option<&mut Checker>,
    ) -> Result<(), Box<Fault>> {
        Running::new(launch, index, body)?.turn(checker).map(drop)
    }

    /// Everything as at a block's start.
    fn begin(&mut self, launch: &Launch, index: [u32; 3]) -> Result<(), Box<Fault>> {
        let spec = launch.spec;
        (self.kernel, self.index, self.grid) = (spec.name, index, launch.grid);
        self.n_threads = spec.block_threads;
        self.n_at_barrier = 0;
        self.together = spec.together_on.is_some();
        self.waits.clear();
        self.copies.clear();
        self.shared_bytes = spec.shared_bytes as usize;
        // 0xff.. is NaN as f32, so that a read before a write shows even with checks off.
        self.shared.clear();
        self.shared.resize(self.shared_bytes.div_ceil(16), u128::MAX);
        let n_warps = (self.n_threads / 32) as usize;
        self.warps.resize_with(n_warps.max(self.warps.len()), Warp::new);
        for warp in &mut self.warps[..n_warps] {
            (warp.ready, warp.meeting, warp.at_barrier, warp.done) = (u32::MAX, 0, 0, 0);
        }
        while self.fibers.len() < self.n_threads as usize {
            let fiber = Fiber::new(self.fibers.len(), run_thread).map_err(|error| {
                let what = format!("no stacks for {} threads: {error}", self.n_threads);
                Fault::of_launch(spec.name, FaultKind::Host(what))
            })?;
            self.fibers.push(fiber);
            self.suspenders.push(ptr::null());
        }
        Ok(())
    }
}
