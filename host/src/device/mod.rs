//! Where kernels run: a GPU through the CUDA driver, or the emulator. Everything above this module
//! is the same for both.

pub mod cuda;
mod memory;

use crate::error::{Error, Result};
use kernels_gpu::gpu::emu::{self, Mode};
use kernels_gpu::gpu::{Global, GlobalMut, Plain};
use kernels_gpu::{ArgDescription, Kernel};
use memory::Allocations;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

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
}

#[derive(Debug)]
enum Backend {
    Emulator(Mode),
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
        let allocations = Mutex::new(Allocations::default());
        Device { inner: Arc::new(Inner { backend: Backend::Emulator(mode), allocations }) }
    }

    /// Whether this is the emulator.
    pub fn is_emulator(&self) -> bool {
        matches!(self.inner.backend, Backend::Emulator(_))
    }

    /// A zeroed buffer of `len` elements.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn alloc<T: Plain>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = memory::padded_bytes::<T>(len)?;
        let address = match &self.inner.backend {
            Backend::Emulator(_) => memory::alloc_host(bytes)?,
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
                // SAFETY: the range was checked; the emulated device is idle between launches.
                unsafe {
                    from.as_ptr().copy_to_nonoverlapping(to.address() as *mut u8, from.len());
                }
                Ok(())
            }
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
        match &self.inner.backend {
            Backend::Emulator(mode) => {
                // SAFETY: every view lies in a live buffer of this device, which its owner can't
                // touch through Rust references, and launches run one after another.
                unsafe { emu::launch(kernel, grid, *mode) }.map_err(Error::from)
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
            Backend::Emulator(_) => Ok(()),
        }
    }

    fn allocations(&self) -> std::sync::MutexGuard<'_, Allocations> {
        self.inner.allocations.lock().unwrap_or_else(PoisonError::into_inner)
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
                let to = (self.address as *mut T).wrapping_add(start);
                // SAFETY: the range was checked; the emulated device is idle between launches.
                unsafe { data.as_ptr().copy_to_nonoverlapping(to, data.len()) };
                Ok(())
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
                let from = (self.address as *const T).wrapping_add(start);
                // SAFETY: as in `write`.
                unsafe { from.copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
                Ok(())
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
        }
    }
}
