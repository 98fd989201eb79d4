//! Where kernels run: a GPU through the CUDA driver, or the emulator. Everything above this module
//! is the same for both.

mod arrivals;
pub mod cuda;
mod memory;
mod trace;

use crate::error::{Error, Result};
use crate::ptx::PtxChoice;
pub use arrivals::Arrivals;
use cuda::{CudaDevice, Graph, LaunchMode};
use kernels_gpu::gpu::emu::{self, AtWork, Mode};
use kernels_gpu::gpu::{Global, GlobalMut, Plain};
use kernels_gpu::{ArgDescription, Kernel};
pub use memory::Allocated;
use memory::Allocations;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use trace::Watched;
pub use trace::{Mark, TracedLaunch, TracedView};

/// A device; clones are the same device.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Backend,
    /// Live buffers, so that a launch can refuse views of anything else.
    allocations: Mutex<Allocations>,
    /// Bytes of memory that the emulator may give away.
    memory: u64,
    /// Whether launches are watched.
    watching: AtomicBool,
    /// Those that were, while `watching`.
    watched: Mutex<Option<Vec<Watched>>>,
    /// Launches that may still start; `usize::MAX` for all that come.
    launches_left: AtomicUsize,
    /// What a launch on the emulator may overlap with on a card.
    at_work: Mutex<AtWork>,
}

impl Inner {
    fn new(backend: Backend) -> Inner {
        Inner {
            backend,
            allocations: Mutex::default(),
            memory: u64::MAX,
            watching: AtomicBool::new(false),
            watched: Mutex::default(),
            launches_left: AtomicUsize::new(usize::MAX),
            at_work: Mutex::default(),
        }
    }

    /// Copies of the host are ordered behind all launches so far.
    fn launches_are_done(&self) {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[derive(Debug)]
enum Backend {
    Emulator(Mode),
    Cuda(CudaDevice),
}

/// Memory of a device: `len` elements of `T`, freed on drop.
#[derive(Debug)]
pub struct Buffer<T: Plain> {
    device: Device,
    address: u64,
    len: usize,
    elem: PhantomData<T>,
}

/// Blocks of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub [u32; 3]);

impl From<usize> for Grid {
    fn from(x: usize) -> Grid {
        Grid([x as u32, 1, 1])
    }
}

impl From<(usize, usize)> for Grid {
    fn from((x, y): (usize, usize)) -> Grid {
        Grid([x as u32, y as u32, 1])
    }
}

impl From<(usize, usize, usize)> for Grid {
    fn from((x, y, z): (usize, usize, usize)) -> Grid {
        Grid([x as u32, y as u32, z as u32])
    }
}

impl Device {
    /// The emulator.
    pub fn emulator(mode: Mode) -> Device {
        Device { inner: Arc::new(Inner::new(Backend::Emulator(mode))) }
    }

    /// The emulator, with so many bytes of memory.
    pub fn small_emulator(mode: Mode, memory: u64) -> Device {
        let inner = Inner { memory, ..Inner::new(Backend::Emulator(mode)) };
        Device { inner: Arc::new(inner) }
    }

    /// The GPU with this number, with kernels from the chosen PTX image.
    ///
    /// # Errors
    /// When there is no usable driver or card.
    pub fn cuda(ordinal: u32, choice: PtxChoice) -> Result<Device> {
        let backend = Backend::Cuda(CudaDevice::open(ordinal, choice)?);
        Ok(Device { inner: Arc::new(Inner::new(backend)) })
    }

    /// The GPU behind this device, if there is one.
    pub fn as_cuda(&self) -> Option<&CudaDevice> {
        match &self.inner.backend {
            Backend::Cuda(cuda) => Some(cuda),
            Backend::Emulator(_) => None,
        }
    }

    /// Whether this is the emulator.
    pub fn is_emulator(&self) -> bool {
        matches!(self.inner.backend, Backend::Emulator(_))
    }

    /// Multiprocessors of the card; of the emulator few, so that small launches have more blocks.
    pub fn n_multiprocessors(&self) -> usize {
        match &self.inner.backend {
            Backend::Emulator(_) => 4,
            Backend::Cuda(cuda) => cuda.info().n_multiprocessors as usize,
        }
    }

    /// Whether the device can run the kernel: images lack those that their cards have no means for.
    pub fn has<K: Kernel>(&self) -> bool {
        match &self.inner.backend {
            Backend::Emulator(_) => true,
            Backend::Cuda(cuda) => cuda.kernel(K::spec()).is_some(),
        }
    }

    /// Bytes of memory that are not in use, where there is a limit.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn free_memory(&self) -> Result<Option<u64>> {
        match &self.inner.backend {
            Backend::Emulator(_) if self.inner.memory == u64::MAX => Ok(None),
            Backend::Emulator(_) => {
                Ok(Some(self.inner.memory.saturating_sub(self.allocated().bytes)))
            }
            Backend::Cuda(cuda) => Ok(Some(cuda.memory()?.free as u64)),
        }
    }

    /// The buffers that are alive.
    pub fn allocated(&self) -> Allocated {
        self.allocations().total()
    }

    /// A zeroed buffer of `len` elements.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn alloc<T: Plain>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = memory::padded_bytes::<T>(len)?;
        let address = match &self.inner.backend {
            Backend::Emulator(_) => {
                let free = self.free_memory()?;
                if free.is_some_and(|free| bytes as u64 > free) {
                    return Err(Error::OutOfMemory { bytes, free });
                }
                memory::alloc_host(bytes)?
            }
            Backend::Cuda(cuda) => {
                let address = cuda.alloc(bytes)?;
                // SAFETY: the memory was just allocated with this size.
                unsafe { cuda.fill(address, bytes, 0)? };
                address
            }
        };
        self.allocations().insert(address, bytes);
        Ok(Buffer { device: self.clone(), address, len, elem: PhantomData })
    }

    /// A buffer that holds `data`.
    ///
    /// # Errors
    /// When the device has too little memory, or the copy fails.
    pub fn upload<T: Plain>(&self, data: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(data.len())?;
        buffer.write(0, data)?;
        Ok(buffer)
    }

    /// Copies bytes of the host to the start of `to`.
    ///
    /// # Errors
    /// When they don't fit, `to` is not in a live buffer, or the copy fails.
    pub fn copy_in(&self, to: GlobalMut<u8>, from: &[u8]) -> Result<()> {
        let inside = self.allocations().contain(to.address(), to.len() as u64);
        if !inside || from.len() > to.len() {
            return Err(Error::BufferRange { start: 0, len: from.len(), buffer: to.len() });
        }
        match &self.inner.backend {
            Backend::Emulator(_) => {
                self.inner.launches_are_done();
                // SAFETY: the range was checked; the emulated device is idle between launches.
                unsafe {
                    from.as_ptr().copy_to_nonoverlapping(to.address() as *mut u8, from.len());
                }
                Ok(())
            }
            // SAFETY: the range was checked.
            Backend::Cuda(cuda) => unsafe { cuda.write(to.address(), from) },
        }
    }

    /// Runs `kernel` over `grid` blocks. Launches of one device run one after another.
    ///
    /// # Errors
    /// When a view among the arguments is not inside a live buffer of this device, when the launch
    /// breaks the kernel's contract, or when the kernel faults.
    pub fn launch<K: Kernel>(&self, kernel: K, grid: impl Into<Grid>) -> Result<()> {
        let Grid(grid) = grid.into();
        self.check_views(&kernel)?;
        match self.may_launch() {
            true => self.watch(&kernel, grid, || self.start(kernel, grid)),
            false => self.watch(&kernel, grid, || Ok(())),
        }
    }

    fn start<K: Kernel>(&self, kernel: K, grid: [u32; 3]) -> Result<()> {
        match &self.inner.backend {
            Backend::Emulator(mode) => {
                let mut at_work = self.inner.at_work.lock().unwrap_or_else(PoisonError::into_inner);
                // SAFETY: every view lies in a live buffer of this device, which its owner can't
                // touch through Rust references, and launches run one after another.
                unsafe { emu::launch(kernel, grid, *mode, &mut at_work) }.map_err(Error::from)
            }
            Backend::Cuda(cuda) => {
                let Some(id) = cuda.kernel(K::spec()) else {
                    return Err(Error::UnknownKernel { kernel: K::spec().name });
                };
                let mut arguments = Arguments { values: [std::ptr::null_mut(); MAX_ARGS], n: 0 };
                kernel.for_each_arg(&mut |value, _| arguments.push(value.cast_mut()));
                // SAFETY: every view lies in a live buffer of this device, and `kernel` outlives
                // the call, which copies the arguments.
                unsafe { cuda.launch(id, grid, LaunchMode::Overlapped, arguments.as_mut_slice()) }
            }
        }
    }

    fn check_views<K: Kernel>(&self, kernel: &K) -> Result<()> {
        let allocations = self.allocations();
        let mut at = 0;
        let mut stray = None;
        kernel.for_each_arg(&mut |_, arg| {
            if let ArgDescription::View { address, bytes, .. } = arg
                && bytes > 0
                && !allocations.contain(address, bytes)
            {
                stray.get_or_insert(at);
            }
            at += 1;
        });
        match stray {
            None => Ok(()),
            Some(at) => Err(Error::StrayView {
                kernel: K::spec().name,
                argument: K::spec().params[at].name,
            }),
        }
    }

    /// Waits until everything launched so far is done.
    ///
    /// # Errors
    /// When a kernel faulted meanwhile.
    pub fn synchronize(&self) -> Result<()> {
        match &self.inner.backend {
            Backend::Emulator(_) => {
                self.inner.launches_are_done();
                Ok(())
            }
            Backend::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// Records the launches of `work` once, to be replayed. The emulator has nothing to gain from
    /// that, so there is no recording then, and nothing has been run.
    ///
    /// # Errors
    /// When `work` fails, or does something that a graph can't hold.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
        match &self.inner.backend {
            Backend::Emulator(_) => Ok(None),
            Backend::Cuda(cuda) => {
                // SAFETY: the caller of `replay` keeps the buffers alive.
                let graph = unsafe { cuda.record(work)? };
                Ok(Some(Recording { graph }))
            }
        }
    }

    /// Runs what was recorded.
    ///
    /// # Safety
    /// Every buffer that the recorded launches were given must still be alive.
    ///
    /// # Errors
    /// When the driver refuses the replay.
    pub unsafe fn replay(&self, recording: &Recording) -> Result<()> {
        match &self.inner.backend {
            Backend::Emulator(_) => Ok(()),
            // SAFETY: the caller's promise.
            Backend::Cuda(cuda) => unsafe { cuda.replay(&recording.graph) },
        }
    }

    fn allocations(&self) -> std::sync::MutexGuard<'_, Allocations> {
        self.inner.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Launches that were recorded once and can be replayed.
#[derive(Debug)]
pub struct Recording {
    graph: Graph,
}

/// Most arguments of a kernel.
const MAX_ARGS: usize = 32;

/// Pointers to a kernel's arguments, as the driver takes them.
struct Arguments {
    values: [*mut std::ffi::c_void; MAX_ARGS],
    n: usize,
}

impl Arguments {
    fn push(&mut self, value: *mut std::ffi::c_void) {
        assert!(self.n < MAX_ARGS, "a kernel with more than {MAX_ARGS} arguments");
        self.values[self.n] = value;
        self.n += 1;
    }

    fn as_mut_slice(&mut self) -> &mut [*mut std::ffi::c_void] {
        &mut self.values[..self.n]
    }
}

impl<T: Plain> Buffer<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that holds the buffer.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What a kernel may read.
    pub fn view(&self) -> Global<T> {
        Global::new(self.address, self.len)
    }

    /// What a kernel may write. Kernels alias freely, so this needs no `&mut`.
    pub fn view_mut(&self) -> GlobalMut<T> {
        GlobalMut::new(self.address, self.len)
    }

    /// Overwrites elements from `start` on.
    ///
    /// # Errors
    /// When `data` does not fit behind `start`, or the copy fails.
    pub fn write(&mut self, start: usize, data: &[T]) -> Result<()> {
        self.check_range(start, data.len())?;
        match &self.device.inner.backend {
            Backend::Emulator(_) => {
                self.device.inner.launches_are_done();
                let to = (self.address as *mut T).wrapping_add(start);
                // SAFETY: the range was checked; the emulated device is idle between launches.
                unsafe { data.as_ptr().copy_to_nonoverlapping(to, data.len()) };
                Ok(())
            }
            Backend::Cuda(cuda) => {
                let to = self.address + (start * size_of::<T>()) as u64;
                // SAFETY: `T: Plain` has no padding; the range was checked.
                unsafe {
                    let bytes =
                        std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data));
                    cuda.write(to, bytes)
                }
            }
        }
    }

    /// Copies the elements `start..start + out.len()` to the host.
    ///
    /// # Errors
    /// When the range is not inside the buffer, or the copy fails.
    pub fn read_into(&self, start: usize, out: &mut [T]) -> Result<()> {
        self.check_range(start, out.len())?;
        match &self.device.inner.backend {
            Backend::Emulator(_) => {
                self.device.inner.launches_are_done();
                let from = (self.address as *const T).wrapping_add(start);
                // SAFETY: as in `write`.
                unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
                Ok(())
            }
            Backend::Cuda(cuda) => {
                let from = self.address + (start * size_of::<T>()) as u64;
                // SAFETY: `T: Plain`, so any bytes are values; the range was checked.
                unsafe {
                    let bytes = std::slice::from_raw_parts_mut(
                        out.as_mut_ptr().cast::<u8>(),
                        size_of_val(out),
                    );
                    cuda.read(from, bytes)
                }
            }
        }
    }

    /// Copies the whole buffer to the host.
    ///
    /// # Errors
    /// When the copy fails.
    pub fn read(&self) -> Result<Vec<T>> {
        let mut out: Vec<T> = Vec::with_capacity(self.len);
        // SAFETY: `T: Plain`, so zeroes are values; the capacity was just made.
        unsafe {
            out.as_mut_ptr().write_bytes(0, self.len);
            out.set_len(self.len);
        }
        self.read_into(0, &mut out)?;
        Ok(out)
    }

    fn check_range(&self, start: usize, len: usize) -> Result<()> {
        match start.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::BufferRange { start, len, buffer: self.len }),
        }
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.device.allocations().remove(self.address);
        match &self.device.inner.backend {
            // SAFETY: `alloc` made this address with these bytes, and nobody else frees it.
            Backend::Emulator(_) => unsafe { memory::free_host(self.address, bytes) },
            // SAFETY: as above.
            Backend::Cuda(cuda) => unsafe { cuda.free(self.address) },
        }
    }
}
