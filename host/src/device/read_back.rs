//! Reads that the device does when it comes to them, while the host goes on.

use super::cuda::Landing;
use super::{Backend, Buffer, Device};
use crate::error::{Error, Result};
use kernels_gpu::gpu::Plain;

/// A place for what is read from a buffer, one read at a time.
#[derive(Debug)]
pub struct ReadBack<T: Plain> {
    len: usize,
    place: Place<T>,
}

#[derive(Debug)]
enum Place<T> {
    /// The emulator is always done.
    Host(Vec<T>),
    Pinned(Landing),
}

impl Device {
    /// Room for reads of `len` elements.
    ///
    /// # Errors
    /// When the driver has no memory for it.
    pub fn read_back<T: Plain>(&self, len: usize) -> Result<ReadBack<T>> {
        let place = match &self.inner.backend {
            Backend::Emulator(_) => Place::Host(Vec::with_capacity(len)),
            Backend::Cuda(cuda) => Place::Pinned(cuda.landing(len * size_of::<T>())?),
        };
        Ok(ReadBack { len, place })
    }
}

impl<T: Plain> Buffer<T> {
    /// Starts to read the first elements, as many as `to` has room for; what was read there before is
    /// gone. The buffer may change behind that as launches do.
    ///
    /// # Errors
    /// When there are fewer, or the copy can't be started.
    pub fn start_read(&self, to: &mut ReadBack<T>) -> Result<()> {
        self.check_range(0, to.len)?;
        match (&mut to.place, &self.device.inner.backend) {
            (Place::Host(values), Backend::Emulator(_)) => {
                *values = self.read()?;
                values.truncate(to.len);
                Ok(())
            }
            // SAFETY: the range was checked; memory is given back only after what was started.
            (Place::Pinned(landing), Backend::Cuda(cuda)) => unsafe {
                cuda.start_read(self.address, landing)
            },
            _ => Err(Error::BufferRange { start: 0, len: to.len, buffer: 0 }), // of another device
        }
    }
}

impl<T: Plain> ReadBack<T> {
    /// Waits for the last read that was started, and copies it to `out`.
    ///
    /// # Errors
    /// When `out` has another length, nothing was started, or something before the read failed.
    pub fn wait(&mut self, out: &mut [T]) -> Result<()> {
        let len = self.len;
        let wrong = Error::BufferRange { start: 0, len: out.len(), buffer: len };
        match &mut self.place {
            Place::Host(values) if values.len() == out.len() => {
                out.copy_from_slice(values);
                Ok(())
            }
            Place::Pinned(landing) if len == out.len() => {
                let bytes = landing.wait()?;
                // SAFETY: `T: Plain`, so any bytes are values; the lengths are the same.
                unsafe {
                    let out = std::slice::from_raw_parts_mut(
                        out.as_mut_ptr().cast::<u8>(),
                        size_of_val(out),
                    );
                    out.copy_from_slice(bytes);
                }
                Ok(())
            }
            _ => Err(wrong),
        }
    }
}
