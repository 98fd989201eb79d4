//! The machine on the host: one coroutine per GPU thread, one OS thread per running block.
//!
//! With checks on it reports, with kernel, block, thread and source line: accesses outside a view or
//! misaligned, reads of shared memory that nobody wrote, races, and barriers or warp operations
//! that some threads never reach. A fault stops the launch; nothing hangs.

mod block;
mod checker;
mod clocks;
pub(super) mod cluster;
pub(super) mod copies;
mod fault;
mod fiber;
mod matrix;
pub(super) mod ops;
mod overlap;
mod panics;
mod rounds;
mod shadow;
pub(super) mod together;
mod turns;

pub use fault::{Awaited, Fault, FaultKind, Site};
pub use overlap::AtWork;
pub use turns::Order;

use crate::kernel::{ArgDescription, Kernel, KernelSpec};
use block::Block;
use checker::Checker;
use std::panic::Location;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How an access touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

/// How the emulator runs a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Whether races and uninitialised reads are looked for; then blocks run one after another.
    pub checks: bool,
    /// Turns of the threads.
    pub order: Order,
}

impl Mode {
    /// Everything is checked.
    pub const CHECKED: Mode = Mode { checks: true, order: Order::Forward };
    /// For speed: bounds and barriers are still checked, blocks spread over the cores.
    pub const FAST: Mode = Mode { checks: false, order: Order::Forward };
}

/// Work that is not worth waking another OS thread.
const ALONE: Duration = Duration::from_micros(50);

/// Blocks of a launch that may wait for each other: each costs stacks for all its threads.
const MOST_TOGETHER: u64 = 1024;

/// What all blocks of one launch share.
struct Launch {
    spec: &'static KernelSpec,
    grid: [u32; 3],
    mode: Mode,
}

impl Launch {
    fn n_blocks(&self) -> u64 {
        self.grid.iter().map(|&n| n as u64).product()
    }

    /// The block whose turn is the `i`th.
    fn block(&self, i: u64) -> [u32; 3] {
        let i = if self.mode.order == Order::Reversed { self.n_blocks() - 1 - i } else { i };
        self.place(i)
    }

    /// Where block number `i` of the grid is.
    fn place(&self, i: u64) -> [u32; 3] {
        let [nx, ny, _] = self.grid.map(u64::from);
        [(i % nx) as u32, (i / nx % ny) as u32, (i / nx / ny) as u32]
    }

    /// The number of the block there.
    fn number(&self, [x, y, z]: [u32; 3]) -> u64 {
        let [nx, ny, _] = self.grid.map(u64::from);
        x as u64 + nx * (y as u64 + ny * z as u64)
    }
}

/// Runs `kernel` over `grid` blocks. With checks off they spread over the current `rayon` pool.
/// Blocks that may wait for each other are alive together, the others run one after another. With checks on `at_work`
/// tells what the launch may overlap with, and then what the next one may.
///
/// # Safety
/// Every view among the arguments must be memory of this process that stays valid for the launch
/// and that nothing else writes meanwhile.
///
/// # Errors
/// The first fault that a thread met.
pub unsafe fn launch<K: Kernel>(
    kernel: K,
    grid: [u32; 3],
    mode: Mode,
    at_work: &mut AtWork,
) -> Result<(), Box<Fault>> {
    let launch = Launch { spec: K::spec(), grid, mode };
    check_contract(&kernel, launch.spec, grid)?;
    panics::keep_those_of_kernels();
    let body = || kernel.run();
    let before = std::mem::take(at_work);
    let mut checker = mode.checks.then(|| Checker::new(&kernel, &launch, before));
    if launch.spec.together_on.is_some() {
        rounds::run(&launch, &body, checker.as_mut())?;
    } else if let Some(checker) = &mut checker {
        (0..launch.n_blocks())
            .try_for_each(|i| run_checked(&launch, launch.block(i), &body, checker))?;
    } else {
        run_unchecked(&launch, &body)?;
    }
    if let Some(checker) = checker {
        *at_work = checker.end(launch.spec.name);
    }
    Ok(())
}

/// Runs one block, which must have waited for the launches before when it ends.
fn run_checked(
    launch: &Launch,
    index: [u32; 3],
    body: &dyn Fn(),
    checker: &mut Checker,
) -> Result<(), Box<Fault>> {
    Block::run(launch, index, body, Some(checker))?;
    match checker.early().and_then(|early| early.judge_end()) {
        None => Ok(()),
        Some(kind) => {
            let (kernel, thread) = (launch.spec.name, Some((index, 0)));
            Err(Box::new(Fault { kernel, thread, site: None, kind }))
        }
    }
}

/// Runs the blocks on this OS thread, and on others too if the first block shows that it pays.
fn run_unchecked(launch: &Launch, body: &(dyn Fn() + Sync)) -> Result<(), Box<Fault>> {
    let n_blocks = launch.n_blocks();
    let started = Instant::now();
    Block::run(launch, launch.block(0), &body, None)?;
    let left = n_blocks - 1;
    let n_workers = (rayon::current_num_threads() as u64).min(left);
    if n_workers < 2 || started.elapsed().as_nanos() * (left as u128) < ALONE.as_nanos() {
        return (1..n_blocks).try_for_each(|i| Block::run(launch, launch.block(i), &body, None));
    }

    let next = AtomicU64::new(1);
    let first_fault = Mutex::new(None);
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n_blocks {
                return;
            }
            if let Err(fault) = Block::run(launch, launch.block(i), &body, None) {
                next.store(n_blocks, Ordering::Relaxed); // nobody begins another block
                if let Ok(mut first) = first_fault.lock() {
                    first.get_or_insert(fault);
                }
            }
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..n_workers {
            scope.spawn(|_| work());
        }
        work();
    });
    first_fault.into_inner().ok().flatten().map_or(Ok(()), Err)
}

fn check_contract<K: Kernel>(
    kernel: &K,
    spec: &'static KernelSpec,
    grid: [u32; 3],
) -> Result<(), Box<Fault>> {
    let broken = |what: String| Fault::of_launch(spec.name, FaultKind::Contract(what));
    let threads = spec.block_threads;
    if threads == 0 || threads > 1024 || !threads.is_multiple_of(32) {
        return Err(broken(format!("a block of {} threads", spec.block_threads)));
    }
    if grid.contains(&0) {
        return Err(broken(format!("an empty grid {grid:?}")));
    }
    if grid[1] > 65_535 || grid[2] > 65_535 {
        return Err(broken(format!("a grid of {grid:?}; y and z end at 65535")));
    }
    let n_blocks = grid.iter().map(|&n| n as u64).product::<u64>();
    if spec.together_on.is_some() && n_blocks > MOST_TOGETHER {
        let what = "blocks that wait for each other, more than any card runs at once";
        return Err(broken(format!("{n_blocks} {what}")));
    }
    let mut error = None;
    let mut at = 0;
    kernel.for_each_arg(&mut |_, arg| {
        if let ArgDescription::View { address, elem_align, .. } = arg
            && address % elem_align as u64 != 0
            && error.is_none()
        {
            let name = spec.params[at].name;
            error = Some(format!("`{name}` at {address:#x} is not aligned to {elem_align} bytes"));
        }
        at += 1;
    });
    error.map_or(Ok(()), |what| Err(broken(what)))
}

/// Address of element `i` of a view, or a fault.
#[inline(always)]
#[track_caller]
pub(super) fn element<T>(address: u64, len: usize, i: usize) -> u64 {
    if i >= len {
        block::fault(FaultKind::OutOfBounds { index: i, len });
    }
    let at = address + (i * size_of::<T>()) as u64;
    if align_of::<T>() > 1 && !at.is_multiple_of(align_of::<T>() as u64) {
        block::fault(FaultKind::Misaligned { address: at, align: align_of::<T>() });
    }
    at
}

/// Elements behind `start`, or a fault where the view ends before.
#[inline(always)]
#[track_caller]
pub(super) fn sub_len(len: usize, start: usize) -> usize {
    if start > len {
        block::fault(FaultKind::OutOfBounds { index: start, len });
    }
    len - start
}

/// Looks for races on global memory.
#[inline(always)]
#[track_caller]
pub(super) fn global_access<T>(address: u64, access: Access) {
    block::check_global(address, size_of::<T>(), access, Location::caller());
}

/// Address of element `i` of a shared array, with every check on shared memory.
#[inline(always)]
#[track_caller]
pub(super) fn shared_access<T>(offset: u32, len: u32, i: u32, access: Access) -> *mut T {
    if i >= len {
        block::fault(FaultKind::OutOfBounds { index: i as usize, len: len as usize });
    }
    let offset = offset as usize + i as usize * size_of::<T>();
    block::shared(offset, size_of::<T>(), align_of::<T>(), access, Location::caller()).cast()
}
