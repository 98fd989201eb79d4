//! How faulty kernels are declared, run and judged.

use ironwarp::device::Grid;
use ironwarp::{Device, Error};
use kernels_gpu::Kernel;
use kernels_gpu::gpu::emu::{Fault, FaultKind, Mode, Order, Site};
use kernels_gpu::gpu::{self, Global, GlobalMut, SharedArray};
use kernels_gpu::{kernel, shared};

/// Elements of the buffers that planted kernels get.
pub const LEN: usize = 64;
/// In every order: what is wrong is wrong however the turns fall.
pub const ORDERS: [Order; 5] =
    [Order::Forward, Order::Reversed, Order::Shuffled(1), Order::Shuffled(2), Order::Shuffled(3)];

/// What a planted kernel left in its output, or its fault.
pub type Outcome = Result<Vec<u32>, Box<Fault>>;

/// Shared memory of planted kernels.
#[repr(C, align(16))]
pub struct Shared {
    pub words: [u32; 256],
    pub bytes: [u8; 64],
}

/// Declares a kernel over `x: Global<u32>` and `out: GlobalMut<u32>` in a module of its own.
macro_rules! planted {
    ($name:ident, $block:literal threads, |$a:ident| $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use crate::planted::*;
            #[allow(unused_imports)]
            use kernels_gpu::gpu::{self, Global, GlobalMut, SharedArray, U32x4};

            kernels_gpu::kernel! {
                /// A planted fault.
                pub fn $name = run, block $block, shared Shared, registers 32,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct Args {
                    x: Global<u32>,
                    out: GlobalMut<u32>,
                }
            }

            #[inline(always)]
            fn run($a: Args) $body

            pub fn launch(
                mode: kernels_gpu::gpu::emu::Mode,
                grid: impl Into<ironwarp::device::Grid>,
            ) -> Outcome {
                launch_on_fresh_buffers(mode, grid, |x, out| Args { x, out })
            }

            #[allow(dead_code)]
            pub fn check(
                order: kernels_gpu::gpu::emu::Order,
                grid: impl Into<ironwarp::device::Grid>,
            ) -> Outcome {
                launch(kernels_gpu::gpu::emu::Mode { checks: true, order }, grid)
            }
        }
    };
}
pub(crate) use planted;

/// The planted kernels' shared words.
#[allow(dead_code)]
pub fn words() -> SharedArray<u32> {
    shared!(Shared, words)
}

/// The planted kernels' shared bytes.
#[allow(dead_code)]
pub fn bytes() -> SharedArray<u8> {
    shared!(Shared, bytes)
}

/// Runs a kernel on x = 0, 1, 2, ... and a zeroed output, which comes back; then a sound kernel.
pub fn launch_on_fresh_buffers<K: Kernel>(
    mode: Mode,
    grid: impl Into<Grid>,
    kernel: impl FnOnce(Global<u32>, GlobalMut<u32>) -> K,
) -> Outcome {
    let device = Device::emulator(mode);
    let x: Vec<u32> = (0..LEN as u32).collect();
    let (x, out) = (device.upload(&x).unwrap(), device.alloc(LEN).unwrap());
    let outcome = device.launch(kernel(x.view(), out.view_mut()), grid);
    assert_fit_for_work(mode);
    match outcome {
        Ok(()) => Ok(out.read().unwrap()),
        Err(Error::Fault(fault)) => Err(fault),
        Err(other) => panic!("not a fault: {other}"),
    }
}

/// Runs a kernel with every kind of meeting on this OS thread.
fn assert_fit_for_work(mode: Mode) {
    let device = Device::emulator(mode);
    let out = device.alloc(3 * 96).unwrap();
    device.launch(Sound { out: out.view_mut() }, 3).unwrap();
    let want: Vec<u32> = (0..3 * 96).map(|i| (0..96).sum::<u32>() + 100 * (i / 96)).collect();
    assert_eq!(out.read().unwrap(), want);
}

kernel! {
    /// The sum of the block's thread numbers and a hundred times the block's.
    pub fn sound = sound_body, block 96, shared Shared, registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct Sound {
        /// [grid, 96]
        out: GlobalMut<u32>,
    }
}

fn sound_body(a: Sound) {
    let mut sum = gpu::thread_x();
    for mask in [1, 2, 4, 8, 16] {
        sum += gpu::shuffle_xor_u32(sum, mask);
    }
    if gpu::lane() == 0 {
        words().set(gpu::warp(), sum);
    }
    gpu::sync_block(); // the warps' sums are there
    let total = words().get(0) + words().get(1) + words().get(2);
    let at = gpu::block_x() * 96 + gpu::thread_x();
    a.out.set(at as usize, total + 100 * gpu::block_x());
}

/// The line of a planted mistake: the one that ends with `// <- marker`.
pub struct Marked {
    file: &'static str,
    source: &'static str,
}

impl Marked {
    /// Marks in the calling file, whose text is `source`.
    #[track_caller]
    pub fn new(source: &'static str) -> Marked {
        Marked { file: std::panic::Location::caller().file(), source }
    }

    pub fn line(&self, marker: &str) -> u32 {
        let end = format!("// <- {marker}");
        let mut lines = self.source.lines().zip(1..).filter(|(text, _)| text.ends_with(&end));
        let (_, line) = lines.next().unwrap_or_else(|| panic!("no line is marked {marker}"));
        assert!(lines.next().is_none(), "two lines are marked {marker}");
        line
    }

    #[track_caller]
    pub fn assert_site(&self, site: Option<&Site>, marker: &str) {
        let site = site.unwrap_or_else(|| panic!("no site, {marker} expected"));
        assert_eq!((site.file.as_str(), site.line), (self.file, self.line(marker)));
    }

    /// Holds a fault to its kernel, block, thread and line; its kind comes back.
    #[track_caller]
    pub fn assert_fault(
        &self,
        outcome: Outcome,
        kernel: &str,
        (block, thread): ([u32; 3], u32),
        marker: &str,
    ) -> FaultKind {
        let fault = outcome.expect_err("no fault was reported");
        let text = fault.to_string();
        assert_eq!((fault.kernel, fault.thread), (kernel, Some((block, thread))), "{text}");
        self.assert_site(fault.site.as_ref(), marker);
        let place = format!("{}:{}:", self.file, self.line(marker));
        for part in [kernel, &format!("block {block:?}, thread {thread}"), &place] {
            assert!(text.contains(part), "{text} does not say {part}");
        }
        fault.kind
    }
}
