//! Nothing leaks: after a thousand generations there is as much memory in use, on the device and in
//! this process, as after the first. Every allocation of the process is counted, so the tests here
//! take turns.

mod machine;
mod made;

use ironwarp::generate::{Generator, Sampling};
use ironwarp::model::{Logits, Segment};
use ironwarp::{Device, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::quant::Format;
use made::{GPT_OSS, Shape};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The system's allocator, and the bytes that it has given and not got back.
struct Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system allocator's; the rest only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(address, layout) }
    }
}

static TURN: Mutex<()> = Mutex::new(());

/// What is in use: device bytes, device buffers, bytes of the process.
fn in_use(device: &Device) -> (u64, usize, isize) {
    device.synchronize().unwrap();
    let bytes = match device.as_cuda() {
        // What the card has less of; the whole card's, so nothing else may run on it.
        Some(cuda) => u64::MAX - cuda.memory().unwrap().free as u64,
        None => device.allocated().bytes,
    };
    (bytes, device.allocated().buffers, LIVE_BYTES.load(Ordering::Relaxed))
}

/// Small, and with everything: experts, sinks, a window, quantised rows.
fn shape() -> Shape {
    Shape { n_layers: 2, n_embd: 32, n_ff: 32, n_vocab: 40, formats: &[Format::Q8_0], ..GPT_OSS }
}

fn load(device: &Device) -> Model {
    let options = Options { context: Some(32), ..Options::default() };
    Model::load(device, &shape().gguf(), &options, &mut |_| ()).unwrap()
}

fn generate(model: &mut Model, seed: u64) {
    let sampling = Sampling { temperature: 1.0, top_k: 20, seed, ..Sampling::GREEDY };
    let mut generator = Generator::new(model, sampling).unwrap();
    generator.start(&[1, 2, 3]).unwrap();
    (0..2).for_each(|_| {
        generator.next().unwrap();
    });
}

/// Repeats `work` and compares what is in use after the first few times and after the last.
fn grows_nothing(device: &Device, times: u64, work: impl FnMut(u64) + Send) {
    // On one thread: each keeps what the largest block so far has needed, whenever that comes.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| grows_nothing_on_this_thread(device, times, work));
}

fn grows_nothing_on_this_thread(device: &Device, times: u64, mut work: impl FnMut(u64)) {
    // The first times fill what is kept for good: buffers, compiled kernels, recorded steps.
    const FIRST: u64 = 8;
    (0..FIRST).for_each(&mut work);
    let first = in_use(device);
    (FIRST..times).for_each(&mut work);
    let last = in_use(device);
    println!("after {FIRST} times {first:?}, after {times} {last:?}");
    assert_eq!((last.0, last.1), (first.0, first.1), "device bytes and buffers");
    // A leak is a byte a time at least; the queue between two threads has a block more or less.
    let grown = last.2 - first.2;
    assert!(grown < (times - FIRST) as isize, "{grown} bytes in {times} times");
}

#[test]
fn a_thousand_generations_take_the_memory_of_the_first() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = machine::device(Mode::FAST);
    let mut model = load(&device);
    grows_nothing(&device, 1000, |seed| generate(&mut model, seed));
}

#[test]
fn a_model_that_is_dropped_gives_everything_back() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = machine::device(Mode::FAST);
    grows_nothing(&device, 100, |seed| generate(&mut load(&device), seed));
    assert_eq!(device.allocated().buffers, 0);
    assert_eq!(device.allocated().bytes, 0);
}

#[test]
fn a_step_that_is_refused_leaks_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = machine::device(Mode::FAST);
    let mut model = load(&device);
    grows_nothing(&device, 1000, |_| {
        let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
        generator.start(&[1, 40]).unwrap_err();
        let tokens = &[1; 5];
        let past = Segment { sequence: 0, position: 28, tokens, logits: Logits::All };
        model.forward(&[past]).unwrap_err();
    });
}

/// The count itself: a leak would be seen.
#[test]
fn what_is_kept_is_counted() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = machine::device(Mode::FAST);
    let before = in_use(&device);
    let kept = device.upload(&[1f32; 1 << 20]).unwrap();
    let host = vec![1u8; 1000];
    let with = in_use(&device);
    assert!(with.0 >= before.0 + (4 << 20), "{before:?} {with:?}");
    assert_eq!(with.1, before.1 + 1);
    assert!(with.2 >= before.2 + host.len() as isize);
    drop(kept);
    assert_eq!(in_use(&device).1, before.1);
}
