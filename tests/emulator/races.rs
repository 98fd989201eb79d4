//! Accesses with nothing between them, and what does order them.

use crate::planted::{Marked, ORDERS, Outcome, planted, words};
use kernels_gpu::gpu::emu::{FaultKind, Mode, Order};
use kernels_gpu::gpu::{self, GlobalMut};

fn marked() -> Marked {
    Marked::new(include_str!("races.rs"))
}

/// A block and thread, and the marker of its line.
type Party = ([u32; 3], u32, &'static str);

/// The fault must be a race on `memory` that `later` ran into, against `earlier`.
#[track_caller]
fn assert_race(outcome: Outcome, kernel: &str, memory: &str, (earlier, later): (Party, Party)) {
    let kind = marked().assert_fault(outcome, kernel, (later.0, later.1), later.2);
    let FaultKind::Race { memory: found, other, other_site } = kind else { panic!("{kind}") };
    assert_eq!((found, other), (memory, (earlier.0, earlier.1)));
    marked().assert_site(Some(&other_site), earlier.2);
}

/// A race of two threads of the only block: forward finds it with one of them first, backward with
/// the other, and shuffled anyhow.
macro_rules! assert_race_of_two {
    ($name:ident, $memory:literal, ($one:literal, $at:literal), ($two:literal, $there:literal)) => {
        let (one, two) = (([0; 3], $one, $at), ([0; 3], $two, $there));
        let mut later = Vec::new();
        for order in
            [Order::Forward, Order::Reversed].into_iter().chain((1..9).map(Order::Shuffled))
        {
            let outcome = $name::check(order, 1);
            let (_, thread) = outcome.as_ref().unwrap_err().thread.unwrap();
            later.push(thread);
            let parties = if thread == $one { (two, one) } else { (one, two) };
            assert_race(outcome, stringify!($name), $memory, parties);
        }
        assert_ne!(later[0], later[1]);
    };
}

planted!(two_writers, 64 threads, |_a| {
    if gpu::thread_x() == 3 {
        words().set(9, 1); // <- first write
    }
    if gpu::thread_x() == 40 {
        words().set(9, 1); // <- second write
    }
});

#[test]
fn shared_write_write() {
    assert_race_of_two!(two_writers, "shared", (3, "first write"), (40, "second write"));
}

planted!(two_lanes_write, 32 threads, |_a| {
    if gpu::lane() == 3 {
        words().set(9, 1); // <- lane 3 writes
    }
    if gpu::lane() == 4 {
        words().set(9, 1); // <- lane 4 writes
    }
});

#[test]
fn shared_write_write_within_a_warp() {
    assert_race_of_two!(two_lanes_write, "shared", (3, "lane 3 writes"), (4, "lane 4 writes"));
}

planted!(missing_barrier, 64 threads, |a| {
    words().set(gpu::thread_x(), 0);
    gpu::sync_block(); // every word has a value
    if gpu::thread_x() == 3 {
        words().set(9, 1); // <- unguarded write
    }
    // a barrier is missing here
    if gpu::thread_x() == 40 {
        a.out.set(0, words().get(9)); // <- unguarded read
    }
});

#[test]
fn shared_write_and_read_without_a_barrier() {
    assert_race_of_two!(missing_barrier, "shared", (3, "unguarded write"), (40, "unguarded read"));
}

planted!(overwritten_too_soon, 64 threads, |a| {
    words().set(gpu::thread_x(), 0);
    gpu::sync_block(); // every word has a value
    if gpu::thread_x() == 3 {
        a.out.set(0, words().get(9)); // <- late read
    }
    if gpu::thread_x() == 40 {
        words().set(9, 1); // <- early overwrite
    }
});

#[test]
fn shared_word_overwritten_while_it_is_read() {
    assert_race_of_two!(overwritten_too_soon, "shared", (3, "late read"), (40, "early overwrite"));
}

planted!(byte_in_a_word, 64 threads, |_a| {
    if gpu::thread_x() == 3 {
        bytes().cast::<U32x4>().set(1, U32x4([0; 4])); // <- wide write
    }
    if gpu::thread_x() == 40 {
        bytes().set(31, 1); // <- its last byte
    }
});

#[test]
fn shared_byte_of_another_threads_wide_word() {
    assert_race_of_two!(byte_in_a_word, "shared", (3, "wide write"), (40, "its last byte"));
}

planted!(neighbouring_bytes, 64 threads, |a| {
    bytes().set(gpu::thread_x(), gpu::thread_x() as u8);
    a.out.cast::<u8>().set(gpu::thread_x() as usize, 1);
    gpu::sync_block(); // every byte is written
    if gpu::thread_x() == 5 {
        let word = bytes().cast::<u32>().get(15);
        a.out.set(20, word);
    }
});

#[test]
fn bytes_of_one_word_belong_to_their_own_threads() {
    for order in ORDERS {
        let out = neighbouring_bytes::check(order, 1).unwrap();
        assert_eq!(out[20], 0x3f3e_3d3c);
    }
}

planted!(warp_barrier_for_the_block, 64 threads, |a| {
    words().set(gpu::thread_x(), 0);
    gpu::sync_block(); // every word has a value
    if gpu::thread_x() == 3 {
        words().set(9, 1); // <- warp 0 writes
    }
    gpu::sync_warp(); // orders each warp alone
    if gpu::thread_x() == 4 {
        a.out.set(1, words().get(9));
    }
    if gpu::thread_x() == 40 {
        a.out.set(0, words().get(9)); // <- warp 1 reads
    }
});

#[test]
fn warp_barrier_orders_nothing_between_warps() {
    assert_race_of_two!(
        warp_barrier_for_the_block,
        "shared",
        (3, "warp 0 writes"),
        (40, "warp 1 reads")
    );
}

planted!(shuffle_for_a_barrier, 32 threads, |a| {
    words().set(gpu::lane(), gpu::lane()); // <- before the shuffle
    gpu::shuffle_u32(0, 0);
    if gpu::lane() == 7 {
        a.out.set(0, words().get(8)); // <- after the shuffle
    }
});

#[test]
fn shuffle_orders_no_memory() {
    let (one, two) = (([0; 3], 8, "before the shuffle"), ([0; 3], 7, "after the shuffle"));
    for order in ORDERS {
        let outcome = shuffle_for_a_barrier::check(order, 1);
        assert_race(outcome, "shuffle_for_a_barrier", "shared", (one, two));
    }
}

planted!(ordered_by_barriers, 64 threads, |a| {
    let thread = gpu::thread_x();
    for round in 0..3 {
        words().set(thread, thread + round);
        gpu::sync_block(); // every word is written
        let other = words().get(63 - thread);
        a.out.set(63 - thread as usize, other);
        gpu::sync_block(); // every word is read
    }
    for round in 0..3 {
        words().set(thread, thread + round);
        gpu::sync_warp(); // the warp's words are written
        let other = words().get(thread ^ 31);
        gpu::sync_warp(); // the warp's words are read
        words().set(thread ^ 1, other);
        gpu::sync_warp(); // and written again
    }
    a.out.set(63 - thread as usize, words().get(thread ^ 1) + thread);
});

#[test]
fn barriers_order_what_they_should() {
    for order in ORDERS {
        let want: Vec<u32> = (0..64).rev().map(|thread: u32| (thread ^ 31) + 2 + thread).collect();
        assert_eq!(ordered_by_barriers::check(order, 1).unwrap(), want);
    }
}

planted!(third_reader, 64 threads, |a| {
    words().set(gpu::thread_x(), 0);
    gpu::sync_block(); // every word has a value
    let readers = gpu::thread_x() < 3 || gpu::thread_x() == 32 || gpu::thread_x() == 33;
    if readers {
        a.out.set(gpu::thread_x() as usize, words().get(9)); // <- one of five reads
    }
    gpu::sync_warp(); // the own warp's reads are over
    if gpu::thread_x() == 1 {
        words().set(9, 1); // <- write behind a warp barrier
    }
});

/// Whoever read first or last: the reads of the other warp are never forgotten.
#[test]
fn write_ordered_after_some_readers_only() {
    for order in (0..20).map(Order::Shuffled).chain(ORDERS) {
        let fault = third_reader::check(order, 1).unwrap_err();
        let FaultKind::Race { other: (_, other), other_site, .. } = &fault.kind else {
            panic!("{fault}")
        };
        let (_, thread) = fault.thread.unwrap();
        let mut warps = [thread / 32, other / 32];
        warps.sort_unstable();
        assert_eq!(warps, [0, 1], "{fault}");
        let mut lines = [fault.site.as_ref().unwrap().line, other_site.line];
        lines.sort_unstable();
        let marks = ["one of five reads", "write behind a warp barrier"];
        assert_eq!(lines, marks.map(|mark| marked().line(mark)));
    }
}

planted!(global_two_writers, 64 threads, |a| {
    if gpu::thread_x() == 3 {
        a.out.set(9, 1); // <- first global write
    }
    if gpu::thread_x() == 40 {
        a.out.set(9, 1); // <- second global write
    }
});

#[test]
fn global_write_write_in_a_block() {
    assert_race_of_two!(
        global_two_writers,
        "global",
        (3, "first global write"),
        (40, "second global write")
    );
}

planted!(global_ordered, 64 threads, |a| {
    let thread = gpu::thread_x() as usize;
    a.out.set(thread, thread as u32);
    gpu::sync_block(); // the block's own writes are visible to it
    let other = a.out.get(63 - thread);
    gpu::sync_block(); // all have read
    a.out.set(thread, other);
});

#[test]
fn global_accesses_of_a_block_are_ordered_by_its_barrier() {
    let want: Vec<u32> = (0..64).rev().collect();
    for order in ORDERS {
        assert_eq!(global_ordered::check(order, 1).unwrap(), want);
    }
}

planted!(blocks_write, 64 threads, |a| {
    if gpu::thread_x() == 3 + gpu::block_y() {
        a.out.set(9, 1); // <- every block writes
    }
});

#[test]
fn global_write_write_across_blocks() {
    let (one, two) = (([0, 0, 0], 3), ([0, 1, 0], 4));
    let mark = "every block writes";
    let race =
        |one: ([u32; 3], u32), two: ([u32; 3], u32)| ((one.0, one.1, mark), (two.0, two.1, mark));
    let outcome = |order| blocks_write::check(order, (1, 2));
    assert_race(outcome(Order::Forward), "blocks_write", "global", race(one, two));
    assert_race(outcome(Order::Reversed), "blocks_write", "global", race(two, one));
}

planted!(reads_the_other_block, 64 threads, |a| {
    let at = (gpu::block_x() * 32 + gpu::lane()) as usize;
    if gpu::warp() == 0 {
        a.out.set(at, 1); // <- own half
    }
    gpu::sync_block(); // a barrier orders nothing between blocks
    if gpu::block_x() == 1 && gpu::thread_x() == 7 {
        a.out.get(at ^ 32); // <- other half
    }
});

#[test]
fn global_read_of_what_another_block_writes() {
    let (one, two) = (([0, 0, 0], 7, "own half"), ([1, 0, 0], 7, "other half"));
    let outcome = reads_the_other_block::check(Order::Forward, 2);
    assert_race(outcome, "reads_the_other_block", "global", (one, two));
}

planted!(counts, 64 threads, |a| {
    gpu::arrive(a.out, 9, u32::MAX);
    gpu::reduce_add_u32(a.out, 9, gpu::block_x());
});

#[test]
fn atomics_do_not_race() {
    for order in ORDERS {
        for checks in [false, true] {
            let out = counts::launch(Mode { checks, order }, 3).unwrap();
            assert_eq!(out[9], 64 * 3 + 64 * (1 + 2));
        }
    }
}

/// Where the planted kernels below count their blocks.
const COUNTER: usize = 60;

/// Writes the thread's word of its block's part and waits for the others.
fn write_part(out: GlobalMut<u32>) {
    if gpu::thread_x() < 4 {
        out.set((4 * gpu::block_x() + gpu::thread_x()) as usize, gpu::thread_x());
    }
}

/// Counts the block, of three: how many came before it, as every thread learns.
fn arrive(out: GlobalMut<u32>) -> u32 {
    if gpu::thread_x() == 0 {
        words().set(0, gpu::arrive(out, COUNTER, 3));
    }
    gpu::sync_block(); // the count is there
    words().get(0)
}

planted!(last_block_reads_all, 64 threads, |a| {
    super::write_part(a.out);
    gpu::sync_block(); // the block's part is complete
    if super::arrive(a.out) == 2 && gpu::thread_x() == 40 {
        let sum = (0..12).map(|i| a.out.get(i)).sum();
        a.out.set(20, sum);
    }
});

#[test]
fn what_blocks_wrote_before_they_arrived_is_there_for_the_last() {
    for order in ORDERS {
        for checks in [false, true] {
            let out = last_block_reads_all::launch(Mode { checks, order }, 3).unwrap();
            assert_eq!((out[20], out[COUNTER]), (3 * (1 + 2 + 3), 0));
        }
    }
}

planted!(arrives_too_early, 64 threads, |a| {
    if gpu::thread_x() == 3 {
        a.out.set(gpu::block_x() as usize, 1); // <- before nothing
    }
    if super::arrive(a.out) == 2 && gpu::thread_x() == 40 {
        a.out.get(1); // <- of the block in the middle
    }
});

#[test]
fn nobody_arrives_for_threads_that_it_did_not_wait_for() {
    let (write, read) =
        (([1, 0, 0], 3, "before nothing"), ([2, 0, 0], 40, "of the block in the middle"));
    let outcome = arrives_too_early::check(Order::Forward, 3);
    assert_race(outcome, "arrives_too_early", "global", (write, read));
}

planted!(second_block_reads_all, 64 threads, |a| {
    if gpu::thread_x() == 3 {
        a.out.set(gpu::block_x() as usize, 1); // <- part
    }
    gpu::sync_block(); // the block's part is complete
    if super::arrive(a.out) == 1 && gpu::thread_x() == 40 {
        a.out.get(0);
        a.out.get(2); // <- part of who comes later
    }
});

#[test]
fn who_arrives_does_not_see_those_that_come_later() {
    let (read, write) = (([1, 0, 0], 40, "part of who comes later"), ([2, 0, 0], 3, "part"));
    let outcome = second_block_reads_all::check(Order::Forward, 3);
    assert_race(outcome, "second_block_reads_all", "global", (read, write));
}

planted!(count_is_read, 64 threads, |a| {
    if gpu::thread_x() == 3 || gpu::thread_x() == 4 {
        gpu::arrive(a.out, 9, u32::MAX); // <- atomic
    }
    if gpu::thread_x() == 40 {
        a.out.get(9); // <- plain read
    }
});

#[test]
fn plain_read_races_with_an_atomic() {
    let name = "count_is_read";
    let read = ([0; 3], 40, "plain read");
    let outcome = count_is_read::check(Order::Forward, 1);
    assert_race(outcome, name, "global", (([0; 3], 3, "atomic"), read));
    let outcome = count_is_read::check(Order::Reversed, 1);
    assert_race(outcome, name, "global", (read, ([0; 3], 4, "atomic")));
}

planted!(count_is_reset, 64 threads, |a| {
    if gpu::thread_x() < 2 {
        gpu::arrive(a.out, 9, u32::MAX);
    }
    gpu::sync_block(); // the count is complete
    let count = a.out.get(9);
    gpu::sync_block(); // all have read it
    if gpu::thread_x() == 0 {
        a.out.set(9, 10 * count);
    }
    gpu::sync_block(); // it begins anew
    gpu::arrive(a.out, 9, u32::MAX);
});

#[test]
fn plain_accesses_and_atomics_with_barriers_between() {
    for order in ORDERS {
        assert_eq!(count_is_reset::check(order, 1).unwrap()[9], 20 + 64);
    }
}
