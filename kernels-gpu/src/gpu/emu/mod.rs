//! The machine on the host: one coroutine per GPU thread, one OS thread per running block.
//!
//! With checks on it reports, with kernel, block, thread and source line: accesses outside a view or
//! misaligned, reads of shared memory that nobody wrote, races, and barriers or warp operations
//! that some threads never reach. A fault stops the launch; nothing hangs.

mod block;
mod fault;
mod matrix;
pub(super) mod ops;
mod shadow;

pub use fault::{Fault, FaultKind};

use crate::kernel::{ArgDescription, Kernel, KernelSpec};
use block::Block;
use rayon::prelude::*;
use shadow::GlobalShadow;
use std::panic::Location;
use std::sync::Mutex;

/// How an access touches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
}

/// In which order the threads of a block get their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Warp 0 lane 0 first.
    Forward,
    /// The last thread first.
    Reversed,
    /// A permutation drawn from this seed, another one for every turn.
    Shuffled(u64),
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

/// What all blocks of one launch share.
struct Launch {
    spec: &'static KernelSpec,
    grid: [u32; 3],
    mode: Mode,
    /// Present when checks are on.
    shadow: Option<Mutex<GlobalShadow>>,
}

/// Runs `kernel` over `grid` blocks.
///
/// # Safety
/// Every view among the arguments must be memory of this process that stays valid for the launch
/// and that nothing else writes meanwhile.
///
/// # Errors
/// The first fault that a thread met.
pub unsafe fn launch<K: Kernel>(kernel: K, grid: [u32; 3], mode: Mode) -> Result<(), Fault> {
    let spec = K::spec();
    check_contract(&kernel, spec, grid)?;
    let shadow = mode.checks.then(|| Mutex::new(GlobalShadow::new(&kernel)));
    let launch = Launch { spec, grid, mode, shadow };
    let n_blocks = grid[0] as u64 * grid[1] as u64 * grid[2] as u64;
    let run = |i: u64| {
        let x = (i % grid[0] as u64) as u32;
        let y = (i / grid[0] as u64 % grid[1] as u64) as u32;
        let z = (i / grid[0] as u64 / grid[1] as u64) as u32;
        Block::run(&launch, [x, y, z], &|| kernel.run())
    };
    if mode.checks || n_blocks == 1 {
        (0..n_blocks).try_for_each(run)
    } else {
        (0..n_blocks).into_par_iter().try_for_each(run)
    }
}

fn check_contract<K: Kernel>(
    kernel: &K,
    spec: &'static KernelSpec,
    grid: [u32; 3],
) -> Result<(), Fault> {
    let broken = |what: String| Fault::contract(spec.name, what);
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
    if block::checks() {
        block::check_global(address, size_of::<T>(), access, Location::caller());
    }
}

/// Address of element `i` of a shared array, with every check on shared memory.
#[inline(always)]
#[track_caller]
pub(super) fn shared_access<T>(offset: u32, len: u32, i: u32, access: Access) -> *mut T {
    if i >= len {
        block::fault(FaultKind::OutOfBounds { index: i as usize, len: len as usize });
    }
    block::shared(offset + i * size_of::<T>() as u32, size_of::<T>(), access, Location::caller())
        .cast()
}
