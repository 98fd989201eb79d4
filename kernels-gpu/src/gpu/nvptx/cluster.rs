//! What blocks of a cluster do together. Hopper alone has clusters: elsewhere no block is in one.

use super::shared::shared_base;
use crate::gpu::SharedArray;
#[cfg(sm_90a)]
use core::arch::asm;

#[cfg(sm_90a)]
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.relaxed"]
    fn barrier_cluster_arrive();
    #[link_name = "llvm.nvvm.barrier.cluster.wait"]
    fn barrier_cluster_wait();
}

/// PTX: `%cluster_nctaid.z`, which is 1 where a launch has no clusters.
#[inline(always)]
pub fn in_cluster() -> bool {
    let n: u32;
    #[cfg(sm_90a)]
    // SAFETY: reads a special register.
    unsafe {
        asm!("mov.u32 {n}, %cluster_nctaid.z;", n = out(reg32) n, options(pure, nomem, nostack));
    }
    #[cfg(not(sm_90a))]
    {
        n = 1;
    }
    n > 1
}

/// PTX: `barrier.cluster.arrive.relaxed`.
#[inline(always)]
pub fn cluster_arrive() {
    #[cfg(sm_90a)]
    // SAFETY: the kernel brings every thread of the cluster here.
    unsafe {
        barrier_cluster_arrive();
    }
}

/// PTX: `barrier.cluster.wait`, which acquires.
#[inline(always)]
pub fn cluster_wait() {
    #[cfg(sm_90a)]
    // SAFETY: follows an arrival of the same thread.
    unsafe {
        barrier_cluster_wait();
    }
}

/// PTX: `mapa.shared::cluster`, `st.async.shared::cluster.mbarrier::complete_tx::bytes`.
#[inline(always)]
pub fn send_to_first(array: SharedArray<f32>, i: u32, v: f32, phases: SharedArray<u64>) {
    let at = shared_base() + array.offset + i * size_of::<f32>() as u32;
    let phase = shared_base() + phases.offset;
    #[cfg(sm_90a)]
    // SAFETY: the kernel keeps to its shared memory, which lies at the same place in every block; the first has begun
    // and does not end before what it expects is there.
    unsafe {
        asm!(
            "{{ .reg .b32 there, phase; mapa.shared::cluster.u32 there, {at}, 0; \
             mapa.shared::cluster.u32 phase, {phase}, 0; \
             st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [there], {v}, [phase]; }}",
            at = in(reg32) at, phase = in(reg32) phase, v = in(reg32) v.to_bits(), options(nostack)
        );
    }
    #[cfg(not(sm_90a))]
    let _ = (at, phase, v);
}
