//! Launches that may overlap: what one touches before it has waited, it must not share with those that may be at work.

use crate::planted::{LEN, Marked, ORDERS, Outcome};
use ironwarp::{Device, Error};
use kernels_gpu::gpu::emu::{FaultKind, Mode, Order};
use kernels_gpu::gpu::{self, Global, GlobalMut};
use kernels_gpu::{Kernel, kernel};

fn marked() -> Marked {
    Marked::new(include_str!("overlap.rs"))
}

/// Declares a kernel that waits by itself, of one warp.
macro_rules! overlaps {
    ($name:ident, $args:ident, $waits:ident, $run:ident) => {
        kernel! {
            /// Reads and writes words.
            pub fn $name = $run, block 32, shared (), registers 32,
                barriers 0, shuffles 0, matrix_ops 0, waits $waits;
            pub struct $args {
                x: Global<u32>,
                out: GlobalMut<u32>,
            }
        }
    };
}

fn place() -> usize {
    (gpu::block_x() * gpu::WARP + gpu::thread_x()) as usize
}

overlaps!(writes, Writes, later, run_writes);
fn run_writes(a: Writes) {
    gpu::wait_for_previous();
    a.out.set(place(), a.x.get(place()) + 1);
}

overlaps!(reads_early, ReadsEarly, later, run_reads_early);
fn run_reads_early(a: ReadsEarly) {
    let word = a.x.get(place()); // <- read early
    gpu::wait_for_previous();
    a.out.set(place(), word);
}

overlaps!(lets_late, LetsLate, and_lets, run_lets_late);
fn run_lets_late(a: LetsLate) {
    gpu::wait_for_previous();
    gpu::let_next_start();
    a.out.set(place(), a.x.get(place()));
}

overlaps!(never_lets, NeverLets, and_lets, run_never_lets);
fn run_never_lets(a: NeverLets) {
    gpu::wait_for_previous();
    a.out.set(place(), a.x.get(place()));
}

overlaps!(one_block_lets_early, OneBlockLetsEarly, and_lets, run_one_block_lets_early);
fn run_one_block_lets_early(a: OneBlockLetsEarly) {
    if gpu::block_x() == 1 {
        gpu::let_next_start();
    }
    gpu::wait_for_previous();
    gpu::let_next_start();
    a.out.set(place(), a.x.get(place()));
}

overlaps!(writes_early, WritesEarly, later, run_writes_early);
fn run_writes_early(a: WritesEarly) {
    a.out.set(place(), 1); // <- written early
    gpu::wait_for_previous();
    a.out.set(place(), a.x.get(place()));
}

overlaps!(one_block_waits, OneBlockWaits, later, run_one_block_waits);
fn run_one_block_waits(a: OneBlockWaits) {
    if gpu::block_x() == 0 {
        gpu::wait_for_previous();
        a.out.set(place(), a.x.get(place()));
    }
}

/// A device with three rows of words.
struct Rows {
    device: Device,
    rows: [ironwarp::Buffer<u32>; 3],
}

impl Rows {
    fn new(order: Order) -> Rows {
        let device = Device::emulator(Mode { checks: true, order });
        let rows = [0, 100, 200].map(|first| {
            let words: Vec<u32> = (first..first + LEN as u32).collect();
            device.upload(&words).unwrap()
        });
        Rows { device, rows }
    }

    /// Launches two blocks.
    fn launch(&self, kernel: impl Kernel) -> Outcome {
        match self.device.launch(kernel, LEN / 32) {
            Ok(()) => Ok(Vec::new()),
            Err(Error::Fault(fault)) => Err(fault),
            Err(other) => panic!("not a fault: {other}"),
        }
    }

    fn views(&self, from: usize, to: usize) -> (Global<u32>, GlobalMut<u32>) {
        (self.rows[from].view(), self.rows[to].view_mut())
    }
}

/// Launches a kernel that reads one row and writes another.
macro_rules! run {
    ($rows:ident, $args:ident, $from:literal to $to:literal) => {{
        let (x, out) = $rows.views($from, $to);
        $rows.launch($args { x, out })
    }};
}

#[track_caller]
fn assert_not_waited(outcome: Outcome, by: &str) {
    assert_too_early(outcome, "reads_early", "read early", by);
}

#[track_caller]
fn assert_too_early(outcome: Outcome, kernel: &str, line: &str, by: &str) {
    let fault = outcome.expect_err("no fault was reported");
    assert_eq!(fault.kernel, kernel, "{fault}");
    marked().assert_site(fault.site.as_ref(), line);
    let FaultKind::NotWaited { kernel } = fault.kind else { panic!("{fault}") };
    assert_eq!(kernel, by, "{fault}");
    assert!(fault.to_string().contains("`wait_for_previous`"), "{fault}");
}

#[test]
fn what_the_launch_before_writes_is_read_too_early() {
    for order in ORDERS {
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        assert_not_waited(run!(rows, ReadsEarly, 1 to 2), "writes");
    }
}

#[test]
fn what_nobody_writes_may_be_read_early() {
    for order in ORDERS {
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        run!(rows, ReadsEarly, 0 to 2).unwrap();
        assert_eq!(rows.rows[2].read().unwrap(), (0..LEN as u32).collect::<Vec<_>>());
    }
}

#[test]
fn a_launch_between_that_lets_early_hides_nobody() {
    for order in ORDERS {
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        run!(rows, Writes, 0 to 2).unwrap();
        assert_not_waited(run!(rows, ReadsEarly, 1 to 2), "writes");
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        run!(rows, OneBlockLetsEarly, 0 to 2).unwrap();
        assert_not_waited(run!(rows, ReadsEarly, 1 to 2), "writes");
    }
}

#[test]
fn a_launch_between_that_lets_behind_its_wait_stands_for_those_before() {
    for order in ORDERS {
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        run!(rows, LetsLate, 0 to 2).unwrap();
        run!(rows, ReadsEarly, 1 to 0).unwrap();
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        run!(rows, NeverLets, 0 to 2).unwrap();
        run!(rows, ReadsEarly, 1 to 0).unwrap();
        let words: Vec<u32> = (1..=LEN as u32).collect();
        assert_eq!(rows.rows[0].read().unwrap(), words);
        // But not for itself.
        run!(rows, LetsLate, 0 to 1).unwrap();
        assert_not_waited(run!(rows, ReadsEarly, 1 to 2), "lets_late");
    }
}

#[test]
fn launches_before_a_copy_are_done() {
    for order in ORDERS {
        let mut rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        rows.rows[2].read().unwrap();
        run!(rows, ReadsEarly, 1 to 2).unwrap();
        run!(rows, Writes, 0 to 1).unwrap();
        rows.rows[2].write(0, &[7]).unwrap();
        run!(rows, ReadsEarly, 1 to 2).unwrap();
        run!(rows, Writes, 0 to 1).unwrap();
        rows.device.synchronize().unwrap();
        run!(rows, ReadsEarly, 1 to 2).unwrap();
    }
}

#[test]
fn what_the_launch_before_uses_is_written_too_early() {
    for order in ORDERS {
        let too_early =
            |outcome| assert_too_early(outcome, "writes_early", "written early", "writes");
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        too_early(run!(rows, WritesEarly, 2 to 0));
        let rows = Rows::new(order);
        run!(rows, Writes, 0 to 1).unwrap();
        too_early(run!(rows, WritesEarly, 2 to 1));
        let rows = Rows::new(order);
        run!(rows, Writes, 1 to 1).unwrap();
        run!(rows, WritesEarly, 1 to 2).unwrap();
    }
}

#[test]
fn every_block_waits() {
    for order in ORDERS {
        let rows = Rows::new(order);
        let fault = run!(rows, OneBlockWaits, 0 to 1).unwrap_err();
        assert_eq!(fault.kernel, "one_block_waits", "{fault}");
        assert_eq!(fault.thread.map(|(block, _)| block), Some([1, 0, 0]), "{fault}");
        let FaultKind::Misuse(said) = &fault.kind else { panic!("{fault}") };
        assert!(said.contains("ends without"), "{fault}");
    }
}
