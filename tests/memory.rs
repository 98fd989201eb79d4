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
/// The most that there were of them.
static PEAK_BYTES: AtomicIsize = AtomicIsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system allocator's; the rest only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = LIVE_BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        PEAK_BYTES.fetch_max(before + layout.size() as isize, Ordering::Relaxed);
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

/// Bytes of files that are in this process's memory.
fn mapped_bytes() -> isize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<isize>().unwrap() << 10
}

/// The file is mapped, and passes through in pieces: a load never has a copy of it on the host.
#[test]
fn a_load_takes_little_of_the_host() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::temp_dir().join(format!("ironwarp-load-{}.gguf", std::process::id()));
    let shape = ironwarp::synth::Shape {
        n_layers: 4,
        n_embd: 1024,
        n_ff: 4096,
        n_heads: 16,
        n_kv_heads: 16,
        head_dim: 64,
        n_vocab: 600,
        ..ironwarp::synth::Shape::named("llama-tiny").unwrap()
    };
    let mix = ironwarp::synth::Mix::named("f32").unwrap();
    let recipe = ironwarp::synth::Recipe { name: "load".to_owned(), shape, mix, seed: 1 };
    let file_bytes = recipe.write_file(&path).unwrap() as isize;
    assert!(file_bytes > 250 << 20, "{file_bytes}");
    // The emulated device's memory is of this process too, and is not what is asked for here.
    let device = Device::emulator(Mode::FAST);
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    let gguf = ironwarp::Gguf::open(&path).unwrap();
    let options = Options { context: Some(32), ..Options::default() };
    let mapped_before = mapped_bytes();
    let mut most_mapped = 0;
    let mut watch = |_| most_mapped = most_mapped.max(mapped_bytes());
    let model = Model::load(&device, &gguf, &options, &mut watch).unwrap();
    let mapped = most_mapped - mapped_before;
    let peak = PEAK_BYTES.load(Ordering::Relaxed) - before;
    std::fs::remove_file(&path).unwrap();
    let host = peak - device.allocated().bytes as isize;
    println!("{file_bytes} bytes of file, {host} bytes of host memory at most");
    assert!(device.allocated().bytes as isize > file_bytes * 9 / 10, "the weights are there");
    assert!(host < file_bytes / 16, "{host} bytes of host memory for {file_bytes} of file");
    // A chunk of 32 MiB, and what the system maps around it.
    println!("{mapped} bytes of the file mapped at most");
    assert!(mapped < file_bytes / 4, "{mapped} bytes of {file_bytes} mapped at once");
    drop(model);
}

#[test]
fn too_little_device_memory_is_told_before_the_load() {
    use ironwarp::model::{check_memory, memory_need};
    let gguf = shape().gguf();
    let with = |context| Options { context: Some(context), ..Options::default() };
    let need = |context| memory_need(&gguf, &with(context)).unwrap().total();
    // Enough for 1000 tokens, and by a byte not for more than that takes.
    let device = Device::small_emulator(Mode::FAST, need(1000));
    check_memory(&device, &gguf, &with(1000)).unwrap();
    let error = check_memory(&device, &gguf, &with(5000)).unwrap_err();
    let ironwarp::Error::TooLittleMemory(facts) = &error else { panic!("{error}") };
    assert_eq!((facts.need.total(), facts.free), (need(5000), need(1000)));
    assert!(need(facts.longest) <= need(1000) && need(facts.longest + 1) > need(1000));
    let said = error.to_string();
    assert!(said.contains(&format!("--ctx {}", facts.longest)), "{said}");
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / (1u64 << 20) as f64);
    assert!(said.contains(&mib(need(5000))) && said.contains(&mib(need(1000))), "{said}");

    let device = Device::small_emulator(Mode::FAST, need(1) - 1);
    let said = check_memory(&device, &gguf, &with(5000)).unwrap_err().to_string();
    assert!(said.contains("no context is short enough"), "{said}");
    // And where nobody asked, the load itself says so, and gives back what it had.
    let error = Model::load(&device, &gguf, &with(32), &mut |_| ()).unwrap_err();
    assert!(matches!(error, ironwarp::Error::OutOfMemory { free: Some(_), .. }), "{error}");
    assert_eq!(device.allocated().buffers, 0);
}
