//! Blocks that wait for each other, and warps that meet at barriers of their own: each mistake is found,
//! and what is right passes however the turns fall.

use crate::planted::{Marked, planted};
use crate::stage::*;
use kernels_gpu::gpu::emu::{Awaited, FaultKind};

fn marked() -> Marked {
    Marked::new(include_str!("together.rs"))
}

// A chain: block 0 begins, and each block passes on what it got from the one before, three times round.
together!(passes_on, 64 threads, |a| {
    let (n_blocks, block) = (gpu::grid_x(), gpu::block_x());
    let counters = a.out.from(COUNTERS);
    let mut round = 0;
    while round < 3 {
        let before = (block + n_blocks - 1) % n_blocks;
        if gpu::thread_x() == 0 && (block > 0 || round > 0) {
            let n = if block > 0 { round + 1 } else { round };
            gpu::wait_for_signals(counters, before as usize, n);
        }
        gpu::sync_block(); // all see what the block before wrote
        let (got, at) = (a.out.get(before as usize), block as usize);
        gpu::sync_block(); // all have read
        if gpu::thread_x() == 63 {
            a.out.set(at, got + 1);
            gpu::signal(counters, at);
        }
        round += 1;
    }
});

#[test]
fn values_passed_on_from_block_to_block() {
    for mode in modes() {
        let out = passes_on::launch(mode, 4).unwrap();
        assert_eq!(out[..5], [9, 10, 11, 12, 0]);
        assert_eq!(out[COUNTERS..COUNTERS + 5], [3, 3, 3, 3, 0]);
        let out = passes_on::launch(mode, 1).unwrap();
        assert_eq!((out[0], out[COUNTERS]), (3, 3));
    }
}

// One signal less than the thread waits for.
together!(too_few_signals, 64 threads, |a| {
    let counters = a.out.from(COUNTERS);
    if gpu::thread_x() == 33 {
        gpu::signal(counters, 2);
    }
    if gpu::thread_x() == 5 {
        gpu::wait_for_signals(counters, 2, gpu::grid_x() + 1); // <- one too many
    }
    gpu::sync_warp(); // the other lanes wait here
    gpu::sync_block(); // and the other warps here
});

#[test]
fn signals_that_never_come() {
    for mode in modes() {
        let outcome = too_few_signals::launch(mode, 3);
        let block = outcome.as_ref().unwrap_err().thread.unwrap().0;
        let kind = marked().assert_fault(outcome, "too_few_signals", (block, 5), "one too many");
        let text = kind.to_string();
        assert_eq!(text, "waits in vain for 4 signals of counter 2: there are 3");
        let FaultKind::Starved(awaited) = kind else { panic!("{kind}") };
        assert_eq!(awaited, Awaited::Signals { counter: 2, found: 3, n: 4 });
    }
}

together!(reads_without_waiting, 64 threads, |a| {
    let counters = a.out.from(COUNTERS);
    if gpu::thread_x() == 0 && gpu::block_x() == 0 {
        a.out.set(0, 7); // <- the signalled value
        gpu::signal(counters, 0);
    }
    if gpu::thread_x() == 40 && gpu::block_x() == 1 {
        a.out.set(1, a.out.get(0)); // <- read in another block
    }
});

#[test]
fn signalled_value_that_nobody_waits_for() {
    let lines = ["the signalled value", "read in another block"];
    assert_races(marked, reads_without_waiting::launch, "reads_without_waiting", "global", lines);
}

together!(signals_too_early, 64 threads, |a| {
    let counters = a.out.from(COUNTERS);
    if gpu::block_x() == 0 {
        if gpu::thread_x() == 33 {
            a.out.set(0, 7); // <- of a lane that does not signal
        }
        if gpu::thread_x() == 32 {
            gpu::signal(counters, 0); // nothing between the lanes
        }
    } else if gpu::thread_x() == 0 {
        gpu::wait_for_signals(counters, 0, 1);
        a.out.get(0); // <- read behind the wait
    }
});

#[test]
fn signal_before_the_other_lanes_are_done() {
    let lines = ["of a lane that does not signal", "read behind the wait"];
    assert_races(marked, signals_too_early::launch, "signals_too_early", "global", lines);
}

together!(lacks_a_warp, 96 threads, |_a| {
    if gpu::warp() < 2 {
        gpu::sync_threads(1, 96); // <- barrier of three warps
    }
});

#[test]
fn named_barrier_that_a_warp_never_reaches() {
    for mode in modes() {
        let outcome = lacks_a_warp::launch(mode, 1);
        let name = "lacks_a_warp";
        let kind = marked().assert_fault(outcome, name, ([0; 3], 0), "barrier of three warps");
        let FaultKind::Starved(awaited) = kind else { panic!("{kind}") };
        assert_eq!(awaited, Awaited::Barrier { id: 1, found: 64, n: 96 });
    }
}

together!(disagrees, 96 threads, |_a| {
    if gpu::warp() < 2 {
        gpu::sync_threads(1, 32 + 32 * gpu::lane().min(1)); // <- lane 0 has another number
    }
});

#[test]
fn named_barrier_of_different_numbers() {
    let (name, line) = ("disagrees", "lane 0 has another number");
    assert_misused(marked, disagrees::launch, name, line, "where others wait for");
}

// Two pairs of warps exchange words, each pair with its own barrier.
together!(pairs, 128 threads, |a| {
    let (thread, pair) = (gpu::thread_x(), gpu::warp() / 2);
    let mut v = thread;
    let mut round = 0;
    while round < 4 {
        words().set(thread, v);
        gpu::sync_threads(1 + pair, 64); // the pair's words are there
        v = words().get(thread ^ 32) + 1;
        gpu::sync_threads(1 + pair, 64); // and have been read
        round += 1;
    }
    if pair == 1 {
        a.out.set(thread as usize - 64, v);
    }
});

#[test]
fn pairs_of_warps_with_their_own_barriers() {
    for mode in modes() {
        let want: Vec<u32> = (64..128).map(|thread| thread + 4).collect();
        assert_eq!(pairs::launch(mode, 1).unwrap(), want);
    }
}

together!(across_the_pairs, 128 threads, |_a| {
    let (thread, pair) = (gpu::thread_x(), gpu::warp() / 2);
    words().set(thread, 0);
    gpu::sync_block(); // every word has a value
    words().set(thread, thread); // <- for the own pair
    gpu::sync_threads(1 + pair, 64);
    words().get(thread ^ 64); // <- of the other pair
});

#[test]
fn named_barrier_orders_nothing_for_others() {
    let lines = ["for the own pair", "of the other pair"];
    assert_races(marked, across_the_pairs::launch, "across_the_pairs", "shared", lines);
}

planted!(is_not_declared, 64 threads, |_a| {
    gpu::sync_threads(1, 64); // <- undeclared
});

#[test]
fn kernel_that_is_not_declared_to_wait() {
    let line = "undeclared";
    assert_misused(
        marked,
        is_not_declared::launch,
        "is_not_declared",
        line,
        "not declared `together`",
    );
}

// A lane is gone, and another warp waits for the signal of the lanes that wait for it.
together!(lost_lane, 64 threads, |a| {
    let counters = a.out.from(COUNTERS);
    if gpu::thread_x() == 9 {
        return;
    }
    if gpu::warp() == 0 {
        gpu::sync_warp(); // <- meeting of 31
        gpu::signal(counters, 0);
    } else {
        gpu::wait_for_signals(counters, 0, 32);
    }
});

#[test]
fn fault_is_where_a_lane_is_lost_and_not_where_its_signal_is_missed() {
    for mode in modes() {
        let kind = fault_in(marked(), lost_lane::launch(mode, 4), "lost_lane", &["meeting of 31"]);
        assert!(matches!(kind, FaultKind::MissedCollective { absent: 9, .. }), "{kind}");
    }
}
