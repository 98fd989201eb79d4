//! The operations with which blocks of a launch, and parts of a block, wait for each other, emulated. Each has
//! its twin in `nvptx/together.rs`.

use super::block::{self, waits};
use super::{Access, FaultKind, global_access};
use crate::gpu::{Global, GlobalMut, SharedArray, U32x4};
use std::panic::Location;
use std::sync::atomic::{AtomicU32, Ordering};
use waits::Sought;

/// Waits for the `n` threads of the block that meet at its barrier `id`, from 1 to 15, whole warps; shared and
/// global writes of theirs before it are visible to them after it. All `n` must reach this call.
#[track_caller]
pub fn sync_threads(id: u32, n: u32) {
    waits::named_barrier(id, n, Location::caller());
}

/// Adds 1 to counter `i` in device memory. Whoever waits for it (`wait_for_signals`) sees what the calling
/// thread had written before, and what it had been made to see.
#[track_caller]
pub fn signal(counters: GlobalMut<u32>, i: usize) {
    waits::expect_together(Location::caller());
    let address = super::element::<u32>(counters.address, counters.len, i);
    global_access::<u32>(address, Access::Atomic);
    block::tell_clocks(|clocks, thread| clocks.signal(address, thread));
    // SAFETY: `element` refused indices outside the view; an aligned u32 may be used atomically.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }.fetch_add(1, Ordering::AcqRel);
}

/// Waits until counter `i` has come to `n`. Behind that the thread sees what those had written who signalled;
/// the others of its warp or block do behind the next barrier that they share with it.
#[track_caller]
pub fn wait_for_signals(counters: GlobalMut<u32>, i: usize, n: u32) {
    waits::expect_together(Location::caller());
    let address = super::element::<u32>(counters.address, counters.len, i);
    global_access::<u32>(address, Access::Atomic);
    waits::wait_until(Sought::Signals { address, i, n }, Location::caller());
    block::tell_clocks(|clocks, thread| clocks.hear(address, thread));
}

/// Makes phase counter `i`, whose phases end when `n` threads have arrived and the bytes that they expect are
/// there. One thread does it, before `phases_are_made` and a barrier.
#[track_caller]
pub fn phase_init(phases: SharedArray<u64>, i: u32, n: u32) {
    waits::make_phase(place(phases, i), i, n, Location::caller());
}

/// Lets copies find the phase counters that the thread made.
#[track_caller]
pub fn phases_are_made() {
    waits::expect_together(Location::caller());
    waits::let_copies_know();
}

/// Arrives at the running phase. Whoever waits for its end sees what the thread had written and been made to
/// see.
#[track_caller]
pub fn phase_arrive(phases: SharedArray<u64>, i: u32) {
    phase_arrive_expecting(phases, i, 0);
}

/// As `phase_arrive`, and the phase does not end before `n_quads` 16-byte units more have been copied.
#[track_caller]
pub fn phase_arrive_expecting(phases: SharedArray<u64>, i: u32, n_quads: u32) {
    let offset = place(phases, i);
    waits::use_phase(offset, i, Location::caller());
    waits::arrive_at_phase(offset, i, n_quads, Location::caller());
}

/// Waits for the end of the running phase if its number has this parity; the first one's is 0. Of a counter on
/// which nothing has happened yet, the phase before, of parity 1, is over.
#[track_caller]
pub fn phase_wait(phases: SharedArray<u64>, i: u32, parity: u32) {
    let offset = place(phases, i);
    waits::use_phase(offset, i, Location::caller());
    waits::expect_parity(parity, Location::caller());
    waits::wait_until(Sought::Phase { offset, i, parity }, Location::caller());
    block::tell_clocks(|clocks, thread| clocks.hear_phase(offset, thread));
}

/// Starts a copy of `n_quads` 16-byte units from device memory that nothing writes during the kernel into
/// shared memory. It is done when the phase of counter `i` is in which it was expected.
#[track_caller]
pub fn copy_bulk(
    to: SharedArray<U32x4>,
    from: Global<U32x4>,
    n_quads: u32,
    phases: SharedArray<u64>,
    i: u32,
) {
    let location = Location::caller();
    let offset = place(phases, i);
    waits::use_phase(offset, i, location);
    waits::expect_quads(n_quads, location);
    let last = n_quads as usize - 1;
    if n_quads > to.len {
        block::fault(FaultKind::OutOfBounds { index: last, len: to.len as usize });
    }
    super::element::<U32x4>(from.address, from.len, last);
    let bytes = 16 * n_quads as usize;
    let target = block::shared_place(to.offset as usize, bytes, 16, location);
    let mut race = None;
    block::tell_clocks(|clocks, thread| {
        race = clocks.note_copy((to.offset, from.address, bytes), offset, thread, location);
    });
    if let Some((memory, other)) = race {
        block::report_race(memory, other, location);
    }
    // SAFETY: both ranges were checked; nobody else touches the block's shared memory now, and it is not
    // device memory.
    unsafe {
        (from.address as *const U32x4).copy_to_nonoverlapping(target.cast(), n_quads as usize);
    }
    waits::complete_copy(offset, i, n_quads, location);
}

/// Byte offset of phase counter `i`.
#[track_caller]
fn place(phases: SharedArray<u64>, i: u32) -> u32 {
    waits::expect_together(Location::caller());
    if i >= phases.len {
        block::fault(FaultKind::OutOfBounds { index: i as usize, len: phases.len as usize });
    }
    phases.offset + 8 * i
}
