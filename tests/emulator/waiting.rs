//! Barriers and warp operations that some threads never reach: reported, and never a hang.

use crate::planted::{Marked, ORDERS, planted};
use kernels_gpu::gpu::emu::{FaultKind, Mode, Order};

fn marked() -> Marked {
    Marked::new(include_str!("waiting.rs"))
}

/// In every order, with and without checks.
fn modes() -> impl Iterator<Item = Mode> {
    ORDERS.into_iter().flat_map(|order| [true, false].map(|checks| Mode { checks, order }))
}

/// What a fault says of who is absent, and where that one is.
#[track_caller]
fn assert_absent(kind: &FaultKind, operation: Option<&str>, absent: u32, marker: Option<&str>) {
    let (found, found_absent, site) = match kind {
        FaultKind::MissedBarrier { absent, absent_site } => (None, absent, absent_site),
        FaultKind::MissedCollective { operation, absent, absent_site } => {
            (Some(*operation), absent, absent_site)
        }
        _ => panic!("{kind}"),
    };
    assert_eq!((found, *found_absent), (operation, absent), "{kind}");
    match marker {
        Some(marker) => marked().assert_site(site.as_ref(), marker),
        None => {
            assert_eq!(*site, None);
            assert!(kind.to_string().ends_with("it has left the kernel"), "{kind}");
        }
    }
}

planted!(leaves_before_barrier, 64 threads, |a| {
    if gpu::thread_x() == 40 {
        return;
    }
    gpu::sync_block(); // <- barrier
    a.out.set(gpu::thread_x() as usize, 1);
});

#[test]
fn early_return_before_a_barrier() {
    for mode in modes() {
        let outcome = leaves_before_barrier::launch(mode, (1, 2));
        let block = outcome.as_ref().unwrap_err().thread.unwrap().0;
        assert!(block == [0, 0, 0] || (block == [0, 1, 0] && mode.order != Order::Forward));
        let name = "leaves_before_barrier";
        let kind = marked().assert_fault(outcome, name, (block, 0), "barrier");
        assert_absent(&kind, None, 40, None);
    }
}

planted!(warp_leaves_before_barrier, 96 threads, |_a| {
    if gpu::warp() == 1 {
        return;
    }
    gpu::sync_block(); // <- barrier for two of three warps
});

#[test]
fn whole_warp_returns_before_a_barrier() {
    for mode in modes() {
        let outcome = warp_leaves_before_barrier::launch(mode, 1);
        let name = "warp_leaves_before_barrier";
        let marker = "barrier for two of three warps";
        let kind = marked().assert_fault(outcome, name, ([0; 3], 0), marker);
        assert_absent(&kind, None, 32, None);
    }
}

planted!(two_barriers, 64 threads, |_a| {
    if gpu::thread_x() == 40 {
        gpu::sync_block(); // <- barrier of one
    } else {
        gpu::sync_block(); // <- barrier of the others
    }
});

#[test]
fn barriers_in_two_branches() {
    let name = "two_barriers";
    // In either order the one that comes alone is told from those that wait.
    let outcome = two_barriers::check(Order::Forward, 1);
    let kind = marked().assert_fault(outcome, name, ([0; 3], 0), "barrier of the others");
    assert_absent(&kind, None, 40, Some("barrier of one"));
    for mode in modes() {
        let fault = two_barriers::launch(mode, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::MissedBarrier { .. }), "{fault}");
    }
}

planted!(barrier_too_often, 64 threads, |_a| {
    for _ in 0..2 + gpu::thread_x() / 63 {
        gpu::sync_block(); // <- barrier in a loop
    }
});

#[test]
fn one_thread_waits_once_more() {
    for mode in modes() {
        let outcome = barrier_too_often::launch(mode, 1);
        let name = "barrier_too_often";
        let kind = marked().assert_fault(outcome, name, ([0; 3], 63), "barrier in a loop");
        assert_absent(&kind, None, 0, None);
    }
}

/// A kernel of which lane 5 of warp 1 leaves before a warp operation.
macro_rules! lane_leaves {
    ($test:ident, $kernel:ident, $operation:literal, $marker:literal, $call:expr) => {
        planted!($kernel, 64 threads, |_a| {
            if gpu::thread_x() == 37 {
                return;
            }
            let _ = $call;
        });

        #[test]
        fn $test() {
            for mode in modes() {
                let outcome = $kernel::launch(mode, 1);
                let name = stringify!($kernel);
                let kind = marked().assert_fault(outcome, name, ([0; 3], 32), $marker);
                assert_absent(&kind, Some($operation), 37, None);
            }
        }
    };
}

lane_leaves!(
    lane_leaves_before_a_warp_barrier,
    leaves_before_sync_warp,
    "sync_warp",
    "sync_warp",
    gpu::sync_warp() // <- sync_warp
);
lane_leaves!(
    lane_leaves_before_a_shuffle,
    leaves_before_shuffle,
    "shuffle",
    "shuffle",
    gpu::shuffle(1.0, 0) // <- shuffle
);
lane_leaves!(
    lane_leaves_before_a_butterfly,
    leaves_before_shuffle_xor,
    "shuffle_xor",
    "shuffle_xor",
    gpu::shuffle_xor(1.0, 4) // <- shuffle_xor
);
lane_leaves!(
    lane_leaves_before_a_sum,
    leaves_before_sum,
    "warp_sum",
    "warp_sum",
    gpu::warp_sum(1.0) // <- warp_sum
);
lane_leaves!(
    lane_leaves_before_a_maximum,
    leaves_before_max,
    "warp_max",
    "warp_max",
    gpu::warp_max(1.0) // <- warp_max
);
lane_leaves!(
    lane_leaves_before_a_vote,
    leaves_before_vote,
    "warp_any",
    "warp_any",
    gpu::warp_any(true) // <- warp_any
);
lane_leaves!(
    lane_leaves_before_a_ballot,
    leaves_before_ballot,
    "warp_ballot",
    "warp_ballot",
    gpu::warp_ballot(true) // <- warp_ballot
);
lane_leaves!(
    lane_leaves_before_a_byte_product,
    leaves_before_mma_s8,
    "an 8-bit matrix product",
    "mma_s8",
    gpu::mma_s8([0; 4], [0; 4], [0; 2]) // <- mma_s8
);
lane_leaves!(
    lane_leaves_before_a_half_product,
    leaves_before_mma_f16,
    "mma_f16",
    "mma_f16",
    gpu::mma_f16([0.0; 4], [0; 4], [0; 2]) // <- mma_f16
);

planted!(divergent_shuffles, 64 threads, |_a| {
    if gpu::thread_x() == 37 {
        gpu::shuffle_u32(1, 0); // <- shuffle of one
    } else {
        gpu::shuffle_u32(1, 0); // <- shuffle of the others
    }
});

#[test]
fn one_operation_at_two_lines() {
    let outcome = divergent_shuffles::check(Order::Forward, 1);
    let name = "divergent_shuffles";
    let kind = marked().assert_fault(outcome, name, ([0; 3], 32), "shuffle of the others");
    assert_absent(&kind, Some("shuffle"), 37, Some("shuffle of one"));
    for mode in modes() {
        let fault = divergent_shuffles::launch(mode, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::MissedCollective { .. }), "{fault}");
    }
}

planted!(barrier_or_shuffle, 64 threads, |_a| {
    if gpu::thread_x() == 37 {
        gpu::sync_block(); // <- barrier instead
    } else {
        gpu::warp_any(true); // <- vote instead
        gpu::sync_block();
    }
});

#[test]
fn lane_waits_at_a_barrier_for_a_warp_that_votes() {
    for mode in modes() {
        let fault = barrier_or_shuffle::launch(mode, 1);
        // Warp 0 is through its vote and waits at the other barrier: either is what stops them.
        let fault = fault.unwrap_err();
        let (_, thread) = fault.thread.unwrap();
        match &fault.kind {
            FaultKind::MissedBarrier { .. } => assert!(thread < 32 || thread == 37, "{fault}"),
            kind => {
                assert_eq!(thread, 32);
                marked().assert_site(fault.site.as_ref(), "vote instead");
                assert_absent(kind, Some("warp_any"), 37, Some("barrier instead"));
            }
        }
    }
}

planted!(alone_at_the_barrier, 32 threads, |_a| {
    if gpu::thread_x() == 7 {
        gpu::sync_block(); // <- lone barrier
    } else {
        gpu::warp_any(true); // <- vote of 31
    }
});

#[test]
fn vote_that_lacks_a_lane_at_a_barrier() {
    for mode in modes() {
        let outcome = alone_at_the_barrier::launch(mode, 1);
        let name = "alone_at_the_barrier";
        let kind = marked().assert_fault(outcome, name, ([0; 3], 0), "vote of 31");
        assert_absent(&kind, Some("warp_any"), 7, Some("lone barrier"));
    }
}

planted!(meets_in_loops, 96 threads, |a| {
    let mut sum = gpu::thread_x();
    for round in 0..50 {
        if gpu::warp() != 2 || round % 3 == 0 {
            sum = gpu::shuffle_xor_u32(sum, 1 << (round % 5)) + 1; // warps may differ
        }
        if round % 10 == 0 {
            gpu::sync_block(); // all of them
        }
    }
    if gpu::thread_x() < 64 {
        a.out.set(gpu::thread_x() as usize, sum);
    }
});

#[test]
fn warps_may_meet_differently_often() {
    let want = meets_in_loops::check(Order::Forward, 1).unwrap();
    // Fifty rounds flip every bit of the lane ten times and add fifty.
    assert_eq!(want, (0..64).map(|thread| thread + 50).collect::<Vec<u32>>());
    for mode in modes() {
        assert_eq!(meets_in_loops::launch(mode, 1).unwrap(), want);
    }
}
