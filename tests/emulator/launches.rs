//! Contracts, panics, the order of turns, and launches spread over OS threads.

use crate::planted::{LEN, Marked, ORDERS, Sound, planted};
use ironwarp::{Device, Error};
use kernels_gpu::gpu::emu::{Fault, FaultKind, Mode, Order};
use kernels_gpu::gpu::{Global, GlobalMut, U32x4};
use kernels_gpu::kernel;

fn marked() -> Marked {
    Marked::new(include_str!("launches.rs"))
}

/// The launch must be refused before any thread runs.
#[track_caller]
fn assert_broken(fault: &Fault, kernel: &str, what: &str) {
    assert_eq!((fault.kernel, fault.thread, &fault.site), (kernel, None, &None));
    let FaultKind::Contract(found) = &fault.kind else { panic!("{fault}") };
    assert!(found.contains(what), "{found}");
    assert!(fault.to_string().starts_with(&format!("{kernel}: ")), "{fault}");
}

planted!(innocent, 32 threads, |a| {
    a.out.set(gpu::block_x() as usize, 1);
});

#[test]
fn empty_grid() {
    for grid in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
        let fault = innocent::launch(Mode::FAST, grid).unwrap_err();
        assert_broken(&fault, "innocent", "an empty grid");
    }
}

#[test]
fn grid_with_too_many_blocks_along_y_or_z() {
    for grid in [(1, 65_536, 1), (1, 1, 65_536)] {
        let fault = innocent::launch(Mode::CHECKED, grid).unwrap_err();
        assert_broken(&fault, "innocent", "65536");
    }
}

macro_rules! block_of {
    ($name:ident, $threads:literal) => {
        mod $name {
            kernels_gpu::kernel! {
                /// A block that no card has.
                pub fn $name = run, block $threads, shared (), registers 32,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct Args { nothing: u32, }
            }
            fn run(_: Args) {}
        }
    };
}
block_of!(no_threads, 0);
block_of!(half_a_warp, 48);
block_of!(too_many_threads, 1056);

#[test]
fn blocks_that_no_card_has() {
    let device = Device::emulator(Mode::CHECKED);
    let fault = |outcome| match outcome {
        Err(Error::Fault(fault)) => *fault,
        other => panic!("{other:?}"),
    };
    let outcome = device.launch(no_threads::Args { nothing: 0 }, 1);
    assert_broken(&fault(outcome), "no_threads", "a block of 0 threads");
    let outcome = device.launch(half_a_warp::Args { nothing: 0 }, 1);
    assert_broken(&fault(outcome), "half_a_warp", "a block of 48 threads");
    let outcome = device.launch(too_many_threads::Args { nothing: 0 }, 1);
    assert_broken(&fault(outcome), "too_many_threads", "a block of 1056 threads");
}

kernel! {
    /// Takes a wide view.
    pub fn wide = wide_body, block 32, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct Wide {
        narrow: Global<u32>,
        vectors: Global<U32x4>,
    }
}

fn wide_body(_: Wide) {}

#[test]
fn argument_that_is_misaligned() {
    let device = Device::emulator(Mode::FAST);
    let words = device.upload(&[0u32; 16]).unwrap();
    let narrow = words.view().from(1);
    let launch = |vectors| device.launch(Wide { narrow, vectors }, 1);
    launch(words.view().cast()).unwrap();
    match launch(narrow.cast()) {
        Err(Error::Fault(fault)) => assert_broken(&fault, "wide", "`vectors`"),
        other => panic!("{other:?}"),
    }
}

planted!(panics, 64 threads, |a| {
    if gpu::block_x() == 1 && gpu::thread_x() == 33 {
        panic!("planted for {}", a.x.get(9)); // <- panic
    }
    gpu::sync_block();
});

#[test]
fn panic_in_a_kernel_is_a_fault() {
    for order in ORDERS {
        for checks in [true, false] {
            let outcome = panics::launch(Mode { checks, order }, 2);
            let kind = marked().assert_fault(outcome, "panics", ([1, 0, 0], 33), "panic");
            let FaultKind::Panic(what) = kind else { panic!("{kind}") };
            assert_eq!(what, "planted for 9");
        }
    }
}

planted!(indexes_an_array, 32 threads, |a| {
    let array = [1, 2, 3];
    a.out.set(0, array[a.x.get(5) as usize]); // <- index
});

#[test]
fn panic_of_the_language_is_a_fault() {
    let outcome = indexes_an_array::check(Order::Reversed, 1);
    let kind = marked().assert_fault(outcome, "indexes_an_array", ([0; 3], 31), "index");
    let FaultKind::Panic(what) = kind else { panic!("{kind}") };
    assert!(what.contains("the len is 3 but the index is 5"), "{what}");
}

/// A panic outside kernels is as it always was, message and all.
#[test]
fn panics_of_the_host_still_unwind() {
    panics::launch(Mode::CHECKED, 2).unwrap_err();
    let caught = std::panic::catch_unwind(|| panic!("on the host")).unwrap_err();
    assert_eq!(caught.downcast_ref::<&str>(), Some(&"on the host"));
}

#[test]
fn operation_outside_a_kernel_panics() {
    let views = std::panic::catch_unwind(|| {
        let data = [0u32; 4];
        Global::<u32>::new(data.as_ptr() as u64, 4).get(0)
    });
    assert!(views.is_err());
    assert!(std::panic::catch_unwind(kernels_gpu::gpu::thread_x).is_err());
    assert!(std::panic::catch_unwind(kernels_gpu::gpu::sync_block).is_err());
}

planted!(turns, 64 threads, |a| {
    let turn = gpu::arrive(a.out, 63, u32::MAX);
    if turn < 63 {
        a.out.set(turn as usize, gpu::thread_x());
    }
});

/// Who ran when: the threads in the order of their turns but the last.
fn order_of_turns(order: Order) -> Vec<u32> {
    turns::launch(Mode { checks: false, order }, 1).unwrap()[..63].to_vec()
}

#[test]
fn turns_go_forward_backward_or_anyhow() {
    assert_eq!(order_of_turns(Order::Forward), (0..63).collect::<Vec<u32>>());
    assert_eq!(order_of_turns(Order::Reversed), (1..64).rev().collect::<Vec<u32>>());
    let shuffled = order_of_turns(Order::Shuffled(1));
    assert_eq!(shuffled, order_of_turns(Order::Shuffled(1)), "the same seed, the same order");
    assert_ne!(shuffled, order_of_turns(Order::Shuffled(2)));
    let mut sorted = shuffled.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 63, "each thread runs once: {shuffled:?}");
    // Neither of the plain orders has this many descents.
    let descents = shuffled.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!((10..53).contains(&descents), "{shuffled:?}");
}

kernel! {
    /// Marks each block's own words, with some work between.
    pub fn marks_blocks = marks_blocks_body, block 64, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct MarksBlocks {
        /// [blocks, 64]
        out: GlobalMut<u32>,
        rounds: u32,
    }
}

fn marks_blocks_body(a: MarksBlocks) {
    use kernels_gpu::gpu;
    let mut v = gpu::block_x();
    let mut round = 0;
    while round < a.rounds {
        v = gpu::shuffle_xor_u32(v, 1);
        round += 1;
    }
    a.out.set((gpu::block_x() * 64 + gpu::thread_x()) as usize, v + gpu::thread_x());
}

#[test]
fn every_block_runs_once_on_however_many_threads() {
    for n_threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        for (n_blocks, rounds) in [(1, 10), (2, 2000), (7, 500), (300, 100), (3000, 0)] {
            let launch = || {
                let device = Device::emulator(Mode::FAST);
                let out = device.alloc(n_blocks * 64).unwrap();
                device.launch(MarksBlocks { out: out.view_mut(), rounds }, n_blocks).unwrap();
                out.read().unwrap()
            };
            let want: Vec<u32> = (0..n_blocks as u32 * 64).map(|i| i / 64 + i % 64).collect();
            assert_eq!(launch(), want);
            assert_eq!(pool.install(launch), want);
        }
    }
}

kernel! {
    /// One block of many faults, the others take long.
    pub fn one_faults = one_faults_body, block 64, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct OneFaults {
        x: Global<u32>,
    }
}

fn one_faults_body(a: OneFaults) {
    use kernels_gpu::gpu;
    for _ in 0..200 {
        gpu::sync_block();
    }
    if gpu::block_x() == 77 && gpu::thread_x() == 50 {
        a.x.get(LEN); // <- one of many
    }
}

#[test]
fn fault_of_one_block_among_many_ends_the_launch() {
    let device = Device::emulator(Mode::FAST);
    let x = device.upload(&[0u32; LEN]).unwrap();
    for _ in 0..3 {
        let outcome = device.launch(OneFaults { x: x.view() }, 200);
        let Err(Error::Fault(fault)) = outcome else { panic!("{outcome:?}") };
        let kind = marked().assert_fault(Err(fault), "one_faults", ([77, 0, 0], 50), "one of many");
        assert!(matches!(kind, FaultKind::OutOfBounds { .. }));
        let out = device.alloc(500 * 96).unwrap();
        device.launch(Sound { out: out.view_mut() }, 500).unwrap();
        assert_eq!(out.read().unwrap()[499 * 96], (0..96).sum::<u32>() + 100 * 499);
    }
}
