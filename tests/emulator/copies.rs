//! Copies on their way into shared memory: what may be relied on, and what may not.

use crate::planted::{Marked, ORDERS, Outcome, planted, words};
use kernels_gpu::gpu::emu::{FaultKind, Mode};
use kernels_gpu::gpu::{self, Global, SharedArray, U32x4};

fn marked() -> Marked {
    Marked::new(include_str!("copies.rs"))
}

/// Shared memory in units.
fn units() -> SharedArray<U32x4> {
    words().cast()
}

/// Asks for unit `i` of `x`, in the same place of shared memory, as a group.
fn ask(x: Global<u32>, i: u32) {
    gpu::copy_later(x.cast(), i as usize, units(), i);
    gpu::close_copies();
}

/// The fault must be that of touching what is on its way, by the thread at the marker.
#[track_caller]
fn assert_arriving(outcome: Outcome, kernel: &str, thread: u32, marker: &str) {
    let kind = marked().assert_fault(outcome, kernel, ([0; 3], thread), marker);
    let FaultKind::Misuse(what) = kind else { panic!("{kind}") };
    assert!(what.contains("a copy is on its way"), "{what}");
}

planted!(waits_for_its_groups, 32 threads, |a| {
    use crate::copies::{ask, units};
    let lane = gpu::lane();
    if lane < 8 {
        ask(a.x, lane);
        ask(a.x, lane + 8);
        gpu::wait_for_copies::<1>();
    }
    gpu::sync_warp(); // the first groups are there
    if lane < 8 {
        a.out.set(lane as usize, units().get(7 - lane).0[0]);
    }
    gpu::sync_warp(); // they have been read
    if lane < 8 {
        gpu::copy_later(a.x.cast(), 15 - lane as usize, units(), lane);
        gpu::close_copies();
        gpu::wait_for_copies::<0>();
    }
    gpu::sync_warp(); // all are there
    if lane < 8 {
        a.out.set(8 + lane as usize, units().get(15 - lane).0[1]);
        a.out.set(16 + lane as usize, units().get(7 - lane).0[2]);
    }
});

#[test]
fn what_was_waited_for_is_there() {
    for order in ORDERS {
        let out = waits_for_its_groups::check(order, 1).unwrap();
        let want = |i: u32| match i {
            0..8 => 4 * (7 - i),
            8..16 => 4 * (15 - (i - 8)) + 1,
            _ => 4 * (15 - (7 - (i - 16))) + 2,
        };
        assert_eq!(out[..24], (0..24).map(want).collect::<Vec<u32>>());
    }
}

planted!(reads_too_early, 32 threads, |a| {
    use crate::copies::{ask, units};
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
        a.out.set(0, units().get(3).0[0]); // <- too early
    }
});

#[test]
fn copy_that_nobody_waited_for() {
    for order in ORDERS {
        assert_arriving(reads_too_early::check(order, 1), "reads_too_early", 5, "too early");
    }
    // With checks off nothing is there yet.
    let out = reads_too_early::launch(Mode { checks: false, order: ORDERS[0] }, 1).unwrap();
    assert_eq!(out[0], u32::MAX);
}

planted!(reads_the_last_group, 32 threads, |a| {
    use crate::copies::{ask, units};
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
        ask(a.x, 4);
        gpu::wait_for_copies::<1>();
        units().get(3);
        units().get(4); // <- last group
    }
});

#[test]
fn copy_of_a_group_that_is_left() {
    let outcome = reads_the_last_group::check(ORDERS[0], 1);
    assert_arriving(outcome, "reads_the_last_group", 5, "last group");
}

planted!(leaves_a_copy_open, 32 threads, |a| {
    use crate::copies::{ask, units};
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
        gpu::copy_later(a.x.cast(), 4, units(), 4);
        gpu::wait_for_copies::<0>();
        units().get(4); // <- still open
    }
});

#[test]
fn copy_that_is_in_no_group() {
    let outcome = leaves_a_copy_open::check(ORDERS[0], 1);
    assert_arriving(outcome, "leaves_a_copy_open", 5, "still open");
}

planted!(reads_anothers_copy, 32 threads, |a| {
    use crate::copies::{ask, units};
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
        gpu::wait_for_copies::<0>();
    }
    gpu::shuffle_u32(0, 0); // in step, but no barrier
    if gpu::thread_x() == 6 {
        units().get(3);
    }
});

#[test]
fn copy_of_another_thread_without_a_barrier() {
    for order in ORDERS {
        let fault = reads_anothers_copy::check(order, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { memory: "shared", .. }), "{fault}");
    }
}

planted!(asks_while_others_read, 32 threads, |a| {
    use crate::copies::{ask, units};
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
        gpu::wait_for_copies::<0>();
    }
    gpu::sync_warp(); // it is there
    if gpu::thread_x() == 6 {
        units().get(3);
    }
    gpu::shuffle_u32(0, 0); // in step, but no barrier
    if gpu::thread_x() == 5 {
        ask(a.x, 3);
    }
});

#[test]
fn place_that_others_may_still_read() {
    for order in ORDERS {
        let fault = asks_while_others_read::check(order, 1).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Race { memory: "shared", .. }), "{fault}");
    }
}

planted!(copies_past_the_end, 32 threads, |a| {
    use crate::copies::units;
    if gpu::thread_x() == 5 {
        gpu::copy_later(a.x.cast(), 16, units(), 0); // <- past the end
    }
});

#[test]
fn copy_of_a_unit_behind_the_view() {
    let outcome = copies_past_the_end::check(ORDERS[0], 1);
    let kind = marked().assert_fault(outcome, "copies_past_the_end", ([0; 3], 5), "past the end");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 16, len: 16 }), "{kind}");
}
