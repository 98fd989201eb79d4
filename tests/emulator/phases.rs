//! Phase counters and the bulk copies that they count: each mistake is found, and a ring of slots passes
//! however the turns fall.

use crate::planted::{Marked, ORDERS};
use crate::stage::*;
use kernels_gpu::gpu::emu::{Awaited, FaultKind, Mode, Order};
use kernels_gpu::gpu::{self, Global, U32x4};

fn marked() -> Marked {
    Marked::new(include_str!("phases.rs"))
}

// Warp 0 fills two slots in turn; the three others add up what they hold.
together!(ring, 128 threads, |a| {
    make_phases([1, 1, 3, 3]);
    let n = 8;
    let mut sum = 0;
    let mut i = 0;
    while i < n {
        let (slot, round) = (i % 2, i / 2);
        let (full, empty) = (slot, 2 + slot);
        if gpu::warp() == 0 {
            if gpu::lane() == 0 {
                gpu::phase_wait(phases(), empty, (round + 1) % 2);
                gpu::phase_arrive_expecting(phases(), full, SLOT);
                let from = a.x.cast::<U32x4>().from((i % 4 * SLOT) as usize);
                gpu::copy_bulk(slots().from(slot * SLOT), from, SLOT, phases(), full);
            }
        } else {
            gpu::phase_wait(phases(), full, round % 2);
            let U32x4(quad) = slots().get(slot * SLOT + gpu::lane() % SLOT);
            sum += quad[0] + quad[1] + quad[2] + quad[3];
            gpu::sync_warp(); // all lanes have read the slot
            if gpu::lane() == 0 {
                gpu::phase_arrive(phases(), empty);
            }
        }
        i += 1;
    }
    if gpu::warp() > 0 {
        if gpu::lane() < SLOT {
            words().set(gpu::thread_x(), sum);
        }
        gpu::sync_threads(1, 96); // the sums are there
        if gpu::warp() == 1 && gpu::lane() < SLOT {
            a.out.set(gpu::lane() as usize, words().get(gpu::lane() + 64) + words().get(gpu::lane() + 96));
        }
    }
});

#[test]
fn ring_of_slots() {
    let quads = |lane: u32| (0..4).map(|i| 4 * (16 * i + 4 * lane) + 6).sum::<u32>();
    let want: Vec<u32> = (0..4).map(|lane| 2 * 2 * quads(lane)).collect();
    for mode in modes() {
        assert_eq!(ring::launch(mode, 1).unwrap()[..4], want, "{mode:?}");
    }
}

/// Fills the first slot by hand and makes the phase counters.
fn begin_with_a_full_slot(n: [u32; 4]) {
    if gpu::thread_x() < SLOT {
        slots().set(gpu::thread_x(), U32x4([0; 4]));
    }
    make_phases(n);
}

/// The first thread asks for the first slot, or for another behind it.
#[track_caller]
fn fill(x: Global<u32>, slot: u32, phase: u32) {
    gpu::phase_arrive_expecting(phases(), phase, SLOT);
    gpu::copy_bulk(slots().from(slot * SLOT), x.cast(), SLOT, phases(), phase);
}

together!(reads_before_the_copy_is_done, 64 threads, |a| {
    begin_with_a_full_slot([1; 4]);
    if gpu::thread_x() == 0 {
        fill(a.x, 0, 0); // <- copy under way
    }
    if gpu::thread_x() == 40 {
        slots().get(1); // <- nobody waited
    }
});

#[test]
fn bulk_copy_read_without_waiting() {
    let lines = ["copy under way", "nobody waited"];
    let kernel = "reads_before_the_copy_is_done";
    assert_races(marked, reads_before_the_copy_is_done::launch, kernel, "shared", lines);
}

together!(reads_its_own_copy, 32 threads, |a| {
    begin_with_a_full_slot([1; 4]);
    if gpu::thread_x() == 0 {
        fill(a.x, 0, 0); // <- own copy
        slots().get(1); // <- own read
    }
});

#[test]
fn bulk_copy_read_by_who_started_it() {
    let lines = ["own copy", "own read"];
    assert_races(marked, reads_its_own_copy::launch, "reads_its_own_copy", "shared", lines);
}

together!(waits_for_another_copy, 64 threads, |a| {
    make_phases([1; 4]);
    if gpu::thread_x() == 0 {
        fill(a.x, 0, 0); // <- first copy
        fill(a.x, 1, 1);
    }
    gpu::sync_block(); // both are under way
    if gpu::thread_x() == 40 {
        gpu::phase_wait(phases(), 1, 0);
        slots().get(SLOT);
        slots().get(0); // <- read behind the second
    }
});

#[test]
fn end_of_one_copy_says_nothing_of_another() {
    let lines = ["first copy", "read behind the second"];
    assert_races(marked, waits_for_another_copy::launch, "waits_for_another_copy", "shared", lines);
}

// Three warps read; the one that fills again hears of two.
together!(refills_too_early, 128 threads, |a| {
    make_phases([1, 2, 1, 1]);
    if gpu::thread_x() == 0 {
        fill(a.x, 0, 0);
        gpu::phase_wait(phases(), 1, 0);
        fill(a.x, 0, 2); // <- refill
    } else if gpu::warp() > 0 {
        gpu::phase_wait(phases(), 0, 0);
        slots().get(gpu::lane() % SLOT); // <- still read
        gpu::sync_warp(); // all lanes have read
        if gpu::lane() == 0 && gpu::warp() < 3 {
            gpu::phase_arrive(phases(), 1);
        }
    }
});

#[test]
fn slot_refilled_while_a_warp_reads_it() {
    let lines = ["refill", "still read"];
    assert_races(marked, refills_too_early::launch, "refills_too_early", "shared", lines);
}

together!(arrives_for_others, 64 threads, |a| {
    make_phases([1, 1, 1, 1]);
    if gpu::thread_x() == 0 {
        fill(a.x, 0, 0);
        gpu::phase_wait(phases(), 1, 0);
        fill(a.x, 0, 2); // <- refill under other lanes
    } else if gpu::warp() == 1 {
        gpu::phase_wait(phases(), 0, 0);
        slots().get(gpu::lane() % SLOT); // <- lanes that did not meet
        if gpu::lane() == 0 {
            gpu::phase_arrive(phases(), 1);
        }
    }
});

#[test]
fn arrival_before_the_other_lanes_have_read() {
    let lines = ["refill under other lanes", "lanes that did not meet"];
    assert_races(marked, arrives_for_others::launch, "arrives_for_others", "shared", lines);
}

together!(forgets_to_expect, 64 threads, |a| {
    begin_with_a_full_slot([1; 4]);
    if gpu::thread_x() == 0 {
        gpu::phase_arrive(phases(), 0);
        gpu::copy_bulk(slots(), a.x.cast(), SLOT, phases(), 0); // <- unexpected copy
    }
    if gpu::thread_x() == 40 {
        gpu::phase_wait(phases(), 0, 0);
        slots().get(1); // <- read of the unexpected
    }
});

#[test]
fn copy_that_no_phase_expects() {
    let lines = ["unexpected copy", "read of the unexpected"];
    assert_races(marked, forgets_to_expect::launch, "forgets_to_expect", "shared", lines);
    for order in ORDERS {
        let fault = forgets_to_expect::launch(Mode { checks: false, order }, 1).unwrap_err();
        assert!(fault.to_string().contains("ends with 64 bytes more copied than"), "{fault}");
    }
}

together!(expects_too_much, 64 threads, |a| {
    make_phases([1; 4]);
    if gpu::thread_x() == 0 {
        gpu::phase_arrive_expecting(phases(), 0, SLOT + 1);
        gpu::copy_bulk(slots(), a.x.cast(), SLOT, phases(), 0);
    }
    if gpu::thread_x() == 40 {
        gpu::phase_wait(phases(), 0, 0); // <- a unit is missing
    }
});

#[test]
fn phase_that_never_ends() {
    for mode in modes() {
        let outcome = expects_too_much::launch(mode, 1);
        let name = "expects_too_much";
        let kind = marked().assert_fault(outcome, name, ([0; 3], 40), "a unit is missing");
        let FaultKind::Starved(awaited) = kind else { panic!("{kind}") };
        let (counter, parity, running) = (0, 0, 0);
        let want = Awaited::Phase { counter, parity, running, arrivals: 0, bytes: 16 };
        assert_eq!(awaited, want);
    }
}

together!(arrives_too_often, 32 threads, |_a| {
    make_phases([1; 4]);
    if gpu::thread_x() == 0 {
        gpu::phase_arrive_expecting(phases(), 0, SLOT);
        gpu::phase_arrive(phases(), 0); // <- second arrival of one
    }
});

#[test]
fn more_arrivals_than_a_phase_counts() {
    let line = "second arrival of one";
    assert_misused(marked, arrives_too_often::launch, "arrives_too_often", line, "one more comes");
}

together!(uses_what_nobody_made, 32 threads, |_a| {
    if gpu::thread_x() == 7 {
        gpu::phase_wait(phases(), 3, 1); // <- not made
    }
});

#[test]
fn phase_counter_that_nobody_made() {
    let name = "uses_what_nobody_made";
    assert_misused(marked, uses_what_nobody_made::launch, name, "not made", "counter 3 is used");
}

together!(made_without_a_barrier, 64 threads, |_a| {
    if gpu::thread_x() == 0 {
        gpu::phase_init(phases(), 0, 1); // <- made here
    }
    if gpu::thread_x() == 40 {
        gpu::phase_arrive(phases(), 0); // <- used at once
    }
});

#[test]
fn phase_counter_that_another_thread_may_not_have_made() {
    for order in ORDERS {
        let outcome = made_without_a_barrier::launch(Mode { checks: true, order }, 1);
        let kind = fault_in(marked(), outcome, "made_without_a_barrier", &["used at once"]);
        assert!(matches!(kind, FaultKind::Race { .. } | FaultKind::Misuse(_)), "{kind}");
        assert!(order != Order::Forward || matches!(kind, FaultKind::Race { .. }), "{kind}");
    }
}

together!(keeps_it_from_copies, 32 threads, |a| {
    if gpu::thread_x() == 0 {
        gpu::phase_init(phases(), 0, 1);
        gpu::phase_arrive_expecting(phases(), 0, SLOT);
        gpu::copy_bulk(slots(), a.x.cast(), SLOT, phases(), 0); // <- copy in the dark
    }
});

#[test]
fn phase_counter_that_copies_can_not_know() {
    let name = "keeps_it_from_copies";
    assert_misused(
        marked,
        keeps_it_from_copies::launch,
        name,
        "copy in the dark",
        "phases_are_made",
    );
}

together!(copies_too_much, 32 threads, |a| {
    make_phases([1; 4]);
    if gpu::thread_x() == 0 {
        let from = a.x.from(32 * gpu::block_x() as usize).cast();
        gpu::copy_bulk(slots(), from, 2 * SLOT + 1, phases(), 0); // <- past an end
    }
});

#[test]
fn bulk_copy_past_an_end() {
    for mode in modes() {
        let kind = fault_in(
            marked(),
            copies_too_much::launch(mode, 2),
            "copies_too_much",
            &["past an end"],
        );
        // Block 0 passes the end of its shared array first, block 1 would pass its view's as well.
        assert!(matches!(kind, FaultKind::OutOfBounds { index: 8, len: 8 }), "{kind}");
    }
}

together!(copies_what_it_wrote, 32 threads, |a| {
    make_phases([1; 4]);
    if gpu::thread_x() == 0 {
        a.out.set(1, 9); // <- written by a thread
        let from = Global::<U32x4>::new(a.out.address(), 4);
        gpu::phase_arrive_expecting(phases(), 0, SLOT);
        gpu::copy_bulk(slots(), from, SLOT, phases(), 0); // <- copied behind its back
    }
});

#[test]
fn bulk_copy_of_what_the_kernel_wrote() {
    let lines = ["written by a thread", "copied behind its back"];
    assert_races(marked, copies_what_it_wrote::launch, "copies_what_it_wrote", "global", lines);
}
