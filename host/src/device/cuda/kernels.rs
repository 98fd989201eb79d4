//! The table of kernels: compiled by the driver when they are first used, launched by number.

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use cust::sys;
use kernels_gpu::KernelSpec;

use super::{CudaDevice, Shared};
use crate::driver::{Driver, LaunchAttribute, LaunchConfig, SUCCESS};
use crate::error::{Error, Result};
use crate::ptx::Image;

/// Shared memory that a block gets without asking.
const PLAIN_SHARED_BYTES: u32 = 48 * 1024;
/// Largest grid along y and z; along x it is 2^31 - 1.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
/// Bytes of the compiler's log that an error keeps.
const LOG_BYTES: usize = 8 * 1024;

/// Blocks of a cluster, on every card that has clusters.
const MOST_OF_CLUSTER: u32 = 8;

/// A kernel of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelId(pub(super) usize);

/// How a launch stands to what was launched before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaunchMode {
    /// It starts when that is done.
    #[default]
    Plain,
    /// It may start before that is done, and waits inside where it must. Plain with an image whose
    /// kernels don't wait, or a driver that can't.
    Overlapped,
}

/// Every kernel, in the order of `kernels_gpu::all`.
#[derive(Debug)]
pub(super) struct Kernels {
    driver: &'static Driver,
    slots: Vec<Slot>,
    /// Numbers by the address of the declaration, sorted.
    by_address: Vec<(usize, KernelId)>,
    last: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    spec: &'static KernelSpec,
    ptx: &'static CStr,
    /// Null until the kernel is compiled.
    function: AtomicPtr<sys::CUfunc_st>,
    /// What holds the function; locked while it is made.
    module: Mutex<Option<Module>>,
}

/// A module of the driver.
#[derive(Debug)]
struct Module {
    driver: &'static Driver,
    raw: sys::CUmodule,
}

// SAFETY: modules belong to a context and may be used from any thread that enters it.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: made by `compile`, dropped once, in its context: `Shared` enters it first.
        unsafe { (self.driver.api.module_unload)(self.raw) };
    }
}

impl Kernels {
    pub(super) fn new(driver: &'static Driver, image: Image) -> Kernels {
        let slots: Vec<Slot> = kernels_gpu::all()
            .into_iter()
            .zip(image.kernels())
            .map(|(spec, ptx)| Slot {
                spec,
                ptx,
                function: AtomicPtr::default(),
                module: Mutex::default(),
            })
            .collect();
        let address = |slot: &Slot| std::ptr::from_ref(slot.spec).addr();
        let mut by_address: Vec<(usize, KernelId)> =
            slots.iter().enumerate().map(|(i, slot)| (address(slot), KernelId(i))).collect();
        by_address.sort_unstable_by_key(|&(address, _)| address);
        Kernels { driver, slots, by_address, last: AtomicUsize::new(usize::MAX) }
    }

    pub(super) fn last_launched(&self) -> Option<&'static str> {
        self.slots.get(self.last.load(Ordering::Relaxed)).map(|slot| slot.spec.name)
    }
}

impl CudaDevice {
    /// The number of the kernel that is declared by `spec`, one of `kernels_gpu::all`, if the image has it.
    pub fn kernel(&self, spec: &'static KernelSpec) -> Option<KernelId> {
        let table = &self.shared.kernels.by_address;
        let address = std::ptr::from_ref(spec).addr();
        let at = table.binary_search_by_key(&address, |&(address, _)| address).ok()?;
        let id = table[at].1;
        (!self.shared.kernels.slots[id.0].ptx.is_empty()).then_some(id)
    }

    /// Compiles kernels now that would be compiled at their first launch, several at a time.
    ///
    /// # Errors
    /// When the driver does not take a kernel.
    pub fn prepare(&self, kernels: &[KernelId]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(&kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.shared.enter()?;
                self.shared.function(kernel)?;
            }
            Ok(())
        };
        let n_threads = thread::available_parallelism().map_or(1, usize::from).min(kernels.len());
        thread::scope(|scope| {
            let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
            // A thread that panicked has a bug of ours to show.
            threads
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })
    }

    /// Starts a kernel over `grid` blocks. `args` points at the values of its parameters, in their
    /// order; the driver copies them before this returns.
    ///
    /// # Errors
    /// When the grid is empty or too large, also for blocks that wait for each other, the card has too little
    /// shared memory, or the driver refuses the kernel or the launch.
    ///
    /// # Safety
    /// `args` must hold a pointer to a value of the declared size for each parameter, and the
    /// addresses among the values must be memory of this device, fit for what the kernel does, until
    /// it is done.
    pub unsafe fn launch(
        &self,
        kernel: KernelId,
        grid: [u32; 3],
        mode: LaunchMode,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        let shared = &*self.shared;
        shared.enter()?;
        let spec = shared.kernels.slots[kernel.0].spec;
        let fail = |reason: String| Error::Launch {
            kernel: spec.name,
            grid,
            block: spec.block_threads,
            shared_bytes: spec.shared_bytes,
            reason,
        };
        if grid.iter().zip(MAX_GRID).any(|(&n, max)| n == 0 || n > max) {
            return Err(fail(format!("each side of the grid must be 1 to {MAX_GRID:?}")));
        }
        // A block for each multiprocessor runs for certain; one that has to wait for room would be waited for.
        let most = shared.info.n_multiprocessors;
        if spec.together_on.is_some()
            && grid.iter().map(|&n| n as u64).product::<u64>() > most.into()
        {
            return Err(fail(format!(
                "its blocks wait for each other, and at most {most} surely run at once"
            )));
        }
        if args.len() != spec.params.len() {
            return Err(fail(format!("{} arguments, {} given", spec.params.len(), args.len())));
        }
        let function = shared.function(kernel)?;
        // SAFETY: the caller's promise about `args`; the function and the stream are the device's.
        let code = unsafe { shared.start(function, spec, grid, mode, args) };
        if code != SUCCESS {
            return Err(fail(shared.driver.explain(code) + &shared.blame(code)));
        }
        shared.kernels.last.store(kernel.0, Ordering::Relaxed);
        Ok(())
    }
}

/// Shared memory that the machine keeps for itself in each block.
const RESERVED_SHARED_BYTES: u32 = 1024;

/// The share of a multiprocessor's `bytes` that a kernel asks for as shared memory, in percent: what it wants, or what as
/// many blocks take as its registers leave room for.
fn shared_percent_of(spec: &KernelSpec, bytes: u32) -> u32 {
    let needed = spec.min_blocks * (spec.shared_bytes + RESERVED_SHARED_BYTES);
    spec.shared_percent.max((100 * needed).div_ceil(bytes)).min(100)
}

impl Shared {
    /// # Safety
    /// As for `launch`.
    unsafe fn start(
        &self,
        function: sys::CUfunction,
        spec: &KernelSpec,
        grid: [u32; 3],
        mode: LaunchMode,
        args: &mut [*mut c_void],
    ) -> i32 {
        let ([x, y, z], block, bytes) = (grid, spec.block_threads, spec.shared_bytes);
        let (stream, args, api) = (self.stream(), args.as_mut_ptr(), &self.driver.api);
        let gathers = spec.gathers && (2..=MOST_OF_CLUSTER).contains(&z);
        let mut attributes = [LaunchAttribute::NONE; 2];
        let mut n_attributes = 0;
        let mut with = |attribute| {
            attributes[n_attributes] = attribute;
            n_attributes += 1;
        };
        if mode == LaunchMode::Overlapped {
            with(LaunchAttribute::OVERLAP);
        }
        if gathers {
            with(LaunchAttribute::cluster([1, 1, z]));
        }
        match self.driver.launch_ex {
            Some(launch_ex) if self.image == Image::Sm90a && n_attributes > 0 => {
                let config = LaunchConfig {
                    grid,
                    block: [block, 1, 1],
                    shared_bytes: bytes,
                    stream,
                    attributes: attributes.as_ptr(),
                    n_attributes: n_attributes as u32,
                };
                // SAFETY: the caller's promise; the configuration outlives the call.
                unsafe { launch_ex(&config, function, args, std::ptr::null_mut()) }
            }
            // SAFETY: the caller's promise.
            _ => unsafe {
                let extra = std::ptr::null_mut();
                (api.launch)(function, x, y, z, block, 1, 1, bytes, stream, args, extra)
            },
        }
    }

    /// The kernel's function, compiled at the first call. The calling thread is in the context.
    fn function(&self, kernel: KernelId) -> Result<sys::CUfunction> {
        let slot = &self.kernels.slots[kernel.0];
        let function = slot.function.load(Ordering::Acquire);
        if !function.is_null() {
            return Ok(function);
        }
        let mut module = slot.module.lock().unwrap_or_else(PoisonError::into_inner);
        let function = slot.function.load(Ordering::Acquire);
        if !function.is_null() {
            return Ok(function); // another thread was faster
        }
        let (made, function) = self.compile(slot)?;
        *module = Some(made);
        slot.function.store(function, Ordering::Release);
        Ok(function)
    }

    fn compile(&self, slot: &Slot) -> Result<(Module, sys::CUfunction)> {
        let spec = slot.spec;
        if spec.shared_bytes > self.info.block_shared_bytes {
            return Err(Error::SharedMemory {
                kernel: spec.name,
                needed: spec.shared_bytes,
                card: self.info.name.clone(),
                available: self.info.block_shared_bytes,
            });
        }
        let mut log = vec![0u8; LOG_BYTES];
        // CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES. A size is passed as if it
        // were a pointer.
        let mut options = [5, 6];
        let mut values =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut::<c_void>(LOG_BYTES)];
        let mut raw = std::ptr::null_mut();
        let (api, ptx) = (&self.driver.api, slot.ptx.as_ptr().cast());
        // SAFETY: the PTX is a C string; the log is as large as said, and outlives the call.
        let code = unsafe {
            (api.module_load)(&mut raw, ptx, 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        if code != SUCCESS {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            return Err(Error::Compile {
                kernel: spec.name,
                image: self.image,
                card: self.info.name.clone(),
                reason: self.driver.explain(code),
                log: log.to_string_lossy().trim().to_string(),
            });
        }
        let module = Module { driver: self.kernels.driver, raw };

        // Kernel names are Rust identifiers: no zero byte inside.
        let name = CString::new(spec.name).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        let name: *const c_char = name.as_ptr();
        // SAFETY: writes the function; the name is a C string.
        let code = unsafe { (api.module_function)(&mut function, module.raw, name) };
        self.check(code, || format!("finding {} in its module", spec.name))?;
        if spec.shared_percent > 0 {
            // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
            let percent = shared_percent_of(spec, self.info.multiprocessor_shared_bytes) as i32;
            // SAFETY: the function was just made.
            let code = unsafe { (api.function_set_attribute)(function, 9, percent) };
            self.check(code, || format!("giving {} {percent} % of the memory", spec.name))?;
        }
        if spec.shared_bytes > PLAIN_SHARED_BYTES {
            // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; fits, see above.
            let bytes = spec.shared_bytes as i32;
            // SAFETY: the function was just made.
            let code = unsafe { (api.function_set_attribute)(function, 8, bytes) };
            self.check(code, || format!("giving {} {bytes} bytes of shared memory", spec.name))?;
        }
        Ok((module, function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_are_to_be_there_at_once_find_their_shared_memory() {
        let of = |shared_percent, min_blocks, shared_bytes| {
            let spec = KernelSpec {
                name: "",
                block_threads: 256,
                shared_bytes,
                params: &[],
                max_registers: 128,
                barriers: 0,
                shuffles: 0,
                matrix_ops: 0,
                min_blocks,
                shared_percent,
                together_on: None,
                gathers: false,
            };
            shared_percent_of(&spec, 228 << 10)
        };
        assert_eq!(of(50, 3, 20 << 10), 50); // 63 KiB are fewer
        assert_eq!(of(50, 2, 113 << 9), 51); // 115 KiB
        assert_eq!(of(50, 2, 77 << 10), 69);
        assert_eq!(of(50, 2, 200 << 10), 100);
        assert_eq!(of(50, 0, 200 << 10), 50);
    }
}
