//! Host memory to which kernels write what the host waits for, while both go on.

use super::cuda::Landing;
use super::{Backend, Buffer, Device};
use crate::error::Result;
use kernels_gpu::gpu::{GlobalMut, Plain};
use std::marker::PhantomData;

/// Room for `len` elements twice: while the host waits for one half, kernels may write to the other.
#[derive(Debug)]
pub struct Arrivals<T: Plain> {
    device: Device,
    len: usize,
    place: Place<T>,
}

#[derive(Debug)]
enum Place<T: Plain> {
    /// The emulator is always done.
    Memory(Buffer<T>),
    Pinned(Landing, PhantomData<T>),
}

impl Device {
    /// Room for `len` elements twice.
    ///
    /// # Errors
    /// When the driver has no memory for it.
    pub fn arrivals<T: Plain>(&self, len: usize) -> Result<Arrivals<T>> {
        let place = match &self.inner.backend {
            Backend::Emulator(_) => Place::Memory(self.alloc(2 * len)?),
            Backend::Cuda(cuda) => {
                let bytes = 2 * len * size_of::<T>();
                let landing = cuda.landing(bytes)?;
                self.allocations().insert(landing.address(), bytes);
                Place::Pinned(landing, PhantomData)
            }
        };
        Ok(Arrivals { device: self.clone(), len, place })
    }
}

impl<T: Plain> Arrivals<T> {
    /// Both halves, for kernels.
    pub fn view_mut(&self) -> GlobalMut<T> {
        match &self.place {
            Place::Memory(buffer) => buffer.view_mut(),
            Place::Pinned(landing, _) => GlobalMut::new(landing.address(), 2 * self.len),
        }
    }

    /// Marks the device's work: what was started so far has written what number `turn`, 0 or 1, waits for.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn expect(&self, turn: usize) -> Result<()> {
        match &self.place {
            Place::Memory(_) => Ok(()),
            Place::Pinned(landing, _) => landing.expect(turn),
        }
    }

    /// Waits for the last mark of this turn; both halves, of which the other may be half written.
    ///
    /// # Errors
    /// When something before the mark failed.
    pub fn wait(&self, turn: usize) -> Result<Vec<T>> {
        match &self.place {
            Place::Memory(buffer) => buffer.read(),
            Place::Pinned(landing, _) => {
                let start = landing.wait(turn)?.cast::<T>();
                // SAFETY: `T: Plain`, so that any bytes are values; the memory has as many, begins with a
                // page, and lives as long as `landing`. Kernels write whole elements.
                Ok((0..2 * self.len).map(|i| unsafe { start.add(i).read_volatile() }).collect())
            }
        }
    }
}

impl<T: Plain> Drop for Arrivals<T> {
    fn drop(&mut self) {
        if let Place::Pinned(landing, _) = &self.place {
            self.device.allocations().remove(landing.address());
        }
    }
}
