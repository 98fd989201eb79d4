//! Coroutines that stand for GPU threads, and their stacks.

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::{Coroutine, Yielder};
use std::io;

/// Bytes of a stack: kernels have no recursion and few locals, panics need the most. Not so where
/// nothing is optimised, as under the counters of cargo-llvm-cov.
const STACK_BYTES: usize = if cfg!(coverage) { 1 << 20 } else { 64 << 10 };
/// Bytes between the tops of two lanes' stacks, modulo a page: 32 lanes spread over all sets of the
/// first-level cache, where page-aligned stacks would drive each other out of the same few.
const STAGGER_BYTES: usize = 128;

/// What a coroutine suspends itself with.
pub(super) type Suspender = Yielder<(), ()>;

/// A coroutine that may be dropped wherever it stands.
pub(super) struct Fiber(Coroutine<(), (), (), StaggeredStack>);

impl Fiber {
    /// A coroutine for GPU thread `thread` of every block to come.
    ///
    /// `run` must own nothing that needs dropping at any point where it suspends itself.
    pub(super) fn new(thread: usize, run: fn(&Suspender)) -> io::Result<Fiber> {
        let stack = DefaultStack::new(STACK_BYTES)?;
        let stack = StaggeredStack { stack, below_base: thread % 32 * STAGGER_BYTES };
        Ok(Fiber(Coroutine::with_stack(stack, move |yielder, ()| run(yielder))))
    }

    /// Gives the coroutine a turn.
    #[inline(always)]
    pub(super) fn resume(&mut self) {
        self.0.resume(());
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: nothing on the coroutine's stack needs dropping (`new`).
        unsafe { self.0.force_reset() }
    }
}

/// A stack that begins a little below its mapping's end.
struct StaggeredStack {
    stack: DefaultStack,
    below_base: usize,
}

// SAFETY: a part of `DefaultStack` that reaches down to its guard page; more than the minimum is
// left, and `STAGGER_BYTES` keeps the alignment.
unsafe impl Stack for StaggeredStack {
    fn base(&self) -> StackPointer {
        let base = self.stack.base().get() - self.below_base;
        StackPointer::new(base).unwrap_or(self.stack.base())
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }

    #[cfg(windows)]
    fn teb_fields(&self) -> corosensei::stack::StackTebFields {
        self.stack.teb_fields()
    }

    #[cfg(windows)]
    fn update_teb_fields(&mut self, stack_limit: usize, guaranteed_stack_bytes: usize) {
        self.stack.update_teb_fields(stack_limit, guaranteed_stack_bytes)
    }
}
