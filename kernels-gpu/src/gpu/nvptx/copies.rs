//! Copies of single threads into shared memory.

use super::shared_base;
use crate::gpu::{Global, SharedArray, U32x4};
use core::arch::asm;

/// PTX: `cp.async.cg.shared.global`, of 16 bytes.
#[inline(always)]
pub fn copy_later(from: Global<U32x4>, i: usize, to: SharedArray<U32x4>, j: u32) {
    // SAFETY: the emulator holds the kernel to indices inside the view and the array.
    unsafe {
        asm!("cp.async.cg.shared.global [{to}], [{from}], 16;",
            to = in(reg32) shared_base() + to.offset + 16 * j, from = in(reg64) from.at(i), options(nostack));
    }
}

/// PTX: `cp.async.commit_group`.
#[inline(always)]
pub fn close_copies() {
    // SAFETY: counts the thread's own copies.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) }
}

/// PTX: `cp.async.wait_group`.
#[inline(always)]
pub fn wait_for_copies<const LEFT: u32>() {
    // SAFETY: waits for the thread's own copies.
    unsafe { asm!("cp.async.wait_group {left};", left = const LEFT, options(nostack)) }
}
