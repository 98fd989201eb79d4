//! What blocks of a launch wait for each other with, and the parts of a block that are at work on
//! different things. Hopper alone has all of it: kernels that use it are `together on sm_90a`.

use super::shared::shared_base;
use crate::gpu::{Global, GlobalMut, SharedArray, U32x4};
use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_count(id: i32, n: i32);
}

/// PTX: `barrier.cta.sync.aligned`.
#[inline(always)]
pub fn sync_threads(id: u32, n: u32) {
    // SAFETY: the kernel brings all of them here; the emulator checks it.
    unsafe { barrier_count(id as i32, n as i32) }
}

/// PTX: `red.release.gpu.global.add.u32`.
#[inline(always)]
pub fn signal(counters: GlobalMut<u32>, i: usize) {
    // SAFETY: the emulator holds the kernel to indices inside the view.
    unsafe {
        asm!("red.release.gpu.global.add.u32 [{at}], 1;", at = in(reg64) counters.pointer(i),
            options(nostack));
    }
}

/// PTX: `ld.acquire.gpu.global.u32`, until it is enough.
#[inline(always)]
pub fn wait_for_signals(counters: GlobalMut<u32>, i: usize, n: u32) {
    loop {
        let found: u32;
        // SAFETY: as in `signal`.
        unsafe {
            asm!("ld.acquire.gpu.global.u32 {found}, [{at}];", found = out(reg32) found,
                at = in(reg64) counters.pointer(i), options(nostack));
        }
        if found >= n {
            return;
        }
    }
}

#[inline(always)]
fn address(phases: SharedArray<u64>, i: u32) -> u32 {
    shared_base() + phases.offset + 8 * i
}

/// PTX: `mbarrier.init.shared.b64`.
#[inline(always)]
pub fn phase_init(phases: SharedArray<u64>, i: u32, n: u32) {
    // SAFETY: the emulator holds the kernel to indices inside the array.
    unsafe {
        asm!("mbarrier.init.shared.b64 [{at}], {n};", at = in(reg32) address(phases, i),
            n = in(reg32) n, options(nostack));
    }
}

/// PTX: `fence.mbarrier_init.release.cluster`.
#[inline(always)]
pub fn phases_are_made() {
    // SAFETY: orders what was written before.
    unsafe {
        asm!("fence.mbarrier_init.release.cluster;", options(nostack));
    }
}

/// PTX: `mbarrier.arrive.shared.b64`.
#[inline(always)]
pub fn phase_arrive(phases: SharedArray<u64>, i: u32) {
    // SAFETY: as in `phase_init`.
    unsafe {
        asm!("mbarrier.arrive.shared.b64 _, [{at}];", at = in(reg32) address(phases, i),
            options(nostack));
    }
}

/// PTX: `mbarrier.arrive.expect_tx.shared.b64`.
#[inline(always)]
pub fn phase_arrive_expecting(phases: SharedArray<u64>, i: u32, n_quads: u32) {
    // SAFETY: as in `phase_init`.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared.b64 _, [{at}], {bytes};",
            at = in(reg32) address(phases, i), bytes = in(reg32) 16 * n_quads, options(nostack));
    }
}

/// PTX: `mbarrier.try_wait.parity.shared.b64`, until it holds.
#[inline(always)]
pub fn phase_wait(phases: SharedArray<u64>, i: u32, parity: u32) {
    loop {
        let done: u32;
        // SAFETY: as in `phase_init`.
        unsafe {
            asm!(
                "{{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [{at}], {parity}; \
                 selp.u32 {done}, 1, 0, p; }}",
                at = in(reg32) address(phases, i), parity = in(reg32) parity,
                done = out(reg32) done, options(nostack)
            );
        }
        if done != 0 {
            return;
        }
    }
}

/// What the machine's own `createpolicy.fractional.L2::evict_first` makes for all accesses.
const FIRST_TO_GO: u64 = 0x12f0_0000_0000_0000;

/// PTX: `cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint`; as `stream` loads.
#[inline(always)]
pub fn copy_bulk(
    to: SharedArray<U32x4>,
    from: Global<U32x4>,
    n_quads: u32,
    phases: SharedArray<u64>,
    i: u32,
) {
    // SAFETY: the emulator holds the kernel to its shared memory and to the view.
    unsafe {
        asm!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [{to}], \
             [{from}], {bytes}, [{phase}], {policy};",
            to = in(reg32) shared_base() + to.offset, from = in(reg64) from.at(0),
            bytes = in(reg32) 16 * n_quads, phase = in(reg32) address(phases, i),
            policy = in(reg64) FIRST_TO_GO, options(nostack)
        );
    }
}
