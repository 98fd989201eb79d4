//! Accesses that are out of bounds, misaligned or read what nobody wrote.

use crate::planted::{LEN, Marked, ORDERS, planted};
use kernels_gpu::gpu::emu::{FaultKind, Mode};

fn marked() -> Marked {
    Marked::new(include_str!("memory.rs"))
}

/// The fault of a kernel of which only thread 5 of block (1, 2, 0) errs, found in every order and
/// with checks off; what it was comes back.
macro_rules! kind_in_every_mode {
    ($name:ident, $marker:literal) => {{
        for order in ORDERS {
            for checks in [false, true] {
                let outcome = $name::launch(Mode { checks, order }, (2, 3));
                marked().assert_fault(outcome, stringify!($name), ([1, 2, 0], 5), $marker);
            }
        }
        $name::launch(Mode::CHECKED, (2, 3)).unwrap_err().kind
    }};
}

/// Whether the running thread is the one that errs.
fn errs() -> bool {
    use kernels_gpu::gpu;
    (gpu::block_x(), gpu::block_y(), gpu::thread_x()) == (1, 2, 5)
}

planted!(reads_past_the_end, 64 threads, |a| {
    if crate::memory::errs() {
        a.x.get(LEN); // <- read
    }
});

#[test]
fn global_read_one_past_the_end() {
    let kind = kind_in_every_mode!(reads_past_the_end, "read");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: LEN, len: LEN }), "{kind}");
}

planted!(writes_past_the_end, 64 threads, |a| {
    if crate::memory::errs() {
        a.out.from(60).set(4, 1); // <- write
    }
});

#[test]
fn global_write_one_past_the_end_of_a_part() {
    let kind = kind_in_every_mode!(writes_past_the_end, "write");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 4, len: 4 }), "{kind}");
}

planted!(begins_past_the_end, 64 threads, |a| {
    if crate::memory::errs() {
        a.x.from(LEN + 1); // <- from
    }
});

#[test]
fn part_that_begins_past_the_end() {
    let kind = kind_in_every_mode!(begins_past_the_end, "from");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 65, len: LEN }), "{kind}");
}

planted!(reads_wide_at_the_end, 64 threads, |a| {
    if crate::memory::errs() {
        a.x.from(56).cast::<U32x4>().get(2); // <- wide read
    }
});

#[test]
fn wide_read_past_the_end() {
    let kind = kind_in_every_mode!(reads_wide_at_the_end, "wide read");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 2, len: 2 }), "{kind}");
}

planted!(counts_past_the_end, 64 threads, |a| {
    if crate::memory::errs() {
        gpu::arrive(a.out, LEN, 2); // <- atomic
    }
});

#[test]
fn atomic_past_the_end() {
    let kind = kind_in_every_mode!(counts_past_the_end, "atomic");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: LEN, len: LEN }), "{kind}");
}

planted!(reads_an_absent_view, 64 threads, |a| {
    let absent: Global<u32> = Global::absent();
    if crate::memory::errs() && absent.is_absent() && !a.x.is_absent() {
        absent.get(0); // <- absent
    }
});

#[test]
fn absent_argument_is_read() {
    let kind = kind_in_every_mode!(reads_an_absent_view, "absent");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 0, len: 0 }), "{kind}");
}

planted!(reads_misaligned, 64 threads, |a| {
    if crate::memory::errs() {
        a.x.from(1).cast::<U32x4>().get(0); // <- odd read
    }
});

#[test]
fn wide_read_at_an_odd_offset() {
    let kind = kind_in_every_mode!(reads_misaligned, "odd read");
    let FaultKind::Misaligned { address, align: 16 } = kind else { panic!("{kind}") };
    assert_eq!(address % 16, 4);
}

planted!(writes_misaligned, 64 threads, |a| {
    if crate::memory::errs() {
        a.out.cast::<u8>().from(6).cast::<u32>().set(1, 7); // <- odd write
    }
});

#[test]
fn word_written_at_an_odd_offset() {
    let kind = kind_in_every_mode!(writes_misaligned, "odd write");
    let FaultKind::Misaligned { address, align: 4 } = kind else { panic!("{kind}") };
    assert_eq!(address % 4, 2);
}

planted!(shared_past_the_end, 64 threads, |_a| {
    words().from(250).set(5, 1);
    if crate::memory::errs() {
        words().from(250).get(6); // <- shared read
    }
});

#[test]
fn shared_read_past_the_end() {
    let outcome = shared_past_the_end::launch(Mode::FAST, (2, 3));
    let fault = ("shared_past_the_end", ([1, 2, 0], 5));
    let kind = marked().assert_fault(outcome, fault.0, fault.1, "shared read");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 6, len: 6 }), "{kind}");
}

planted!(shared_write_past_the_end, 64 threads, |_a| {
    if crate::memory::errs() {
        words().set(256, 1); // <- shared write
    }
});

#[test]
fn shared_write_past_the_end_is_found() {
    let kind = kind_in_every_mode!(shared_write_past_the_end, "shared write");
    assert!(matches!(kind, FaultKind::OutOfBounds { index: 256, len: 256 }), "{kind}");
}

planted!(foreign_layout, 64 threads, |_a| {
    #[repr(C)]
    struct Larger {
        _before: [u32; 256],
        _bytes: [u8; 64],
        beyond: [u32; 1],
    }
    if crate::memory::errs() {
        let beyond: SharedArray<u32> = kernels_gpu::shared!(Larger, beyond);
        beyond.set(0, 1); // <- beyond
    }
});

#[test]
fn shared_layout_larger_than_the_declared_one() {
    let kind = kind_in_every_mode!(foreign_layout, "beyond");
    let size = size_of::<crate::planted::Shared>();
    assert!(matches!(kind, FaultKind::OutOfBounds { len, .. } if len == size), "{kind}");
}

planted!(shared_misaligned, 64 threads, |_a| {
    if crate::memory::errs() {
        words().from(2).cast::<U32x4>().set(0, U32x4([0; 4])); // <- odd shared
    }
});

#[test]
fn wide_shared_write_at_an_odd_offset() {
    let kind = kind_in_every_mode!(shared_misaligned, "odd shared");
    assert!(matches!(kind, FaultKind::Misaligned { address: 8, align: 16 }), "{kind}");
}

planted!(reads_unwritten, 64 threads, |a| {
    if gpu::thread_x() == 0 {
        words().set(7, 1);
    }
    gpu::sync_block(); // the word is written
    a.out.set(gpu::thread_x() as usize, words().get(7));
    if gpu::thread_x() == 40 {
        words().get(8); // <- unwritten
    }
});

#[test]
fn shared_word_that_nobody_wrote() {
    for order in ORDERS {
        let outcome = reads_unwritten::check(order, 1);
        let kind = marked().assert_fault(outcome, "reads_unwritten", ([0; 3], 40), "unwritten");
        assert!(matches!(kind, FaultKind::Uninitialised { offset: 32 }), "{kind}");
    }
}

planted!(reads_half_written, 64 threads, |_a| {
    if gpu::thread_x() == 40 {
        bytes().set(1, 1);
        bytes().cast::<u16>().get(0); // <- half written
    }
});

#[test]
fn shared_half_word_of_which_one_byte_is_written() {
    let outcome = reads_half_written::check(ORDERS[0], 1);
    let kind = marked().assert_fault(outcome, "reads_half_written", ([0; 3], 40), "half written");
    assert!(matches!(kind, FaultKind::Uninitialised { offset: 1024 }), "{kind}");
}

planted!(reads_what_another_block_wrote, 64 threads, |_a| {
    if gpu::block_x() == 0 && gpu::thread_x() == 3 {
        words().set(3, 1);
    }
    if gpu::block_x() == 1 && gpu::thread_x() == 3 {
        words().get(3); // <- other block
    }
});

#[test]
fn shared_word_that_only_another_block_wrote() {
    let outcome = reads_what_another_block_wrote::check(ORDERS[0], 2);
    let name = "reads_what_another_block_wrote";
    let kind = marked().assert_fault(outcome, name, ([1, 0, 0], 3), "other block");
    assert!(matches!(kind, FaultKind::Uninitialised { offset: 12 }), "{kind}");
}
