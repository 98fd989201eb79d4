//! How kernels are declared and judged whose blocks may wait for each other.

use crate::planted::{Marked, ORDERS, Outcome};
use kernels_gpu::gpu::emu::{FaultKind, Mode};
use kernels_gpu::gpu::{self, SharedArray, U32x4};
use kernels_gpu::shared;

/// Where in the output the counters of signals begin.
pub const COUNTERS: usize = 48;
/// 16-byte units of a slot.
pub const SLOT: u32 = 4;

/// Shared memory of the kernels here.
#[repr(C, align(16))]
pub struct Stage {
    slots: [U32x4; 2 * SLOT as usize],
    words: [u32; 128],
    phases: [u64; 4],
}

/// As `planted!`, of kernels whose blocks may wait for each other.
macro_rules! together {
    ($name:ident, $block:literal threads, |$a:ident| $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            #[allow(unused_imports)]
            use kernels_gpu::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
            use crate::planted::{Outcome, launch_on_fresh_buffers};
            use kernels_gpu::gpu::emu::Mode;

            kernels_gpu::kernel! {
                /// A planted fault, or its sound twin.
                pub fn $name = run, block $block, shared Stage, registers 32,
                    barriers 0, shuffles 0, matrix_ops 0, together on sm_90a;
                pub struct Args {
                    x: Global<u32>,
                    out: GlobalMut<u32>,
                }
            }

            #[inline(always)]
            fn run($a: Args) $body

            pub fn launch(mode: Mode, grid: usize) -> Outcome {
                launch_on_fresh_buffers(mode, grid, |x, out| Args { x, out })
            }
        }
    };
}

pub(crate) use together;

/// Two slots, for bulk copies.
pub fn slots() -> SharedArray<U32x4> {
    shared!(Stage, slots)
}

/// Words for what threads tell each other.
pub fn words() -> SharedArray<u32> {
    shared!(Stage, words)
}

/// Phase counters.
pub fn phases() -> SharedArray<u64> {
    shared!(Stage, phases)
}

/// In every order, with and without checks.
pub fn modes() -> impl Iterator<Item = Mode> {
    ORDERS.into_iter().flat_map(|order| [true, false].map(|checks| Mode { checks, order }))
}

/// Makes phase counters of so many arrivals.
pub fn make_phases(n: [u32; 4]) {
    if gpu::thread_x() == 0 {
        for i in 0..4 {
            gpu::phase_init(phases(), i, n[i as usize]);
        }
        gpu::phases_are_made();
    }
    gpu::sync_block(); // the phase counters are there
}

/// The kind of a fault that is to be at one of these lines, in the kernel and wherever.
#[track_caller]
pub fn fault_in(marked: Marked, outcome: Outcome, kernel: &str, markers: &[&str]) -> FaultKind {
    let fault = outcome.expect_err("no fault was reported");
    assert_eq!(fault.kernel, kernel, "{fault}");
    assert!(fault.thread.is_some(), "{fault}");
    let line = fault.site.as_ref().unwrap().line;
    assert!(markers.iter().any(|marker| marked.line(marker) == line), "{fault}");
    fault.kind
}

/// In every order with checks, a race on `memory` between two lines, whichever comes later.
#[track_caller]
pub fn assert_races(
    marked: fn() -> Marked,
    launch: fn(Mode, usize) -> Outcome,
    kernel: &str,
    memory: &str,
    lines: [&str; 2],
) {
    for order in ORDERS {
        let outcome = launch(Mode { checks: true, order }, 4);
        let kind = fault_in(marked(), outcome, kernel, &lines);
        let FaultKind::Race { memory: found, other_site, .. } = &kind else { panic!("{kind}") };
        assert_eq!(*found, memory, "{order:?}: {kind}");
        assert!(lines.iter().any(|line| marked().line(line) == other_site.line), "{kind}");
    }
}

/// In every order, with and without checks, a misuse at the line that says `what`.
#[track_caller]
pub fn assert_misused(
    marked: fn() -> Marked,
    launch: fn(Mode, usize) -> Outcome,
    kernel: &str,
    line: &str,
    what: &str,
) {
    for mode in modes() {
        let kind = fault_in(marked(), launch(mode, 4), kernel, &[line]);
        let FaultKind::Misuse(said) = &kind else { panic!("{mode:?}: {kind}") };
        assert!(said.contains(what), "{said}");
    }
}
