//! The operations of blocks in a cluster. There is none here: what they would bring together goes by device memory, as
//! on cards without clusters. Each has its twin in `nvptx/cluster.rs`.

use super::FaultKind;
use super::block;
use crate::gpu::SharedArray;

/// Whether the block is in a cluster.
#[inline(always)]
pub fn in_cluster() -> bool {
    false
}

/// Arrives at the cluster's barrier. Orders nothing.
#[track_caller]
pub fn cluster_arrive() {
    outside();
}

/// Waits until every thread of the cluster that has not ended has arrived.
#[track_caller]
pub fn cluster_wait() {
    outside();
}

/// Writes element `i` of the array at the same place in the cluster's first block, sooner or later: it counts as a
/// quarter of a 16-byte unit that the phase of the first counter at the same place there expects.
#[track_caller]
pub fn send_to_first(_array: SharedArray<f32>, _i: u32, _v: f32, _phases: SharedArray<u64>) {
    outside();
}

#[track_caller]
fn outside() -> ! {
    block::fault(FaultKind::Panic("an operation of clusters in a block outside one".to_owned()))
}
