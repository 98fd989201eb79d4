//! Host memory that a copy from the device ends in while the host goes on.

use std::sync::Arc;

use cust::event::{Event, EventFlags};

use super::memory::Pinned;
use super::{CudaDevice, Shared};
use crate::error::{Error, Result};

/// A pinned place for one copy from the device at a time.
#[derive(Debug)]
pub struct Landing {
    // Fields drop in their order: the event and the memory before what they were made in.
    landed: Event,
    pinned: Pinned,
    is_started: bool,
    shared: Arc<Shared>,
}

impl CudaDevice {
    /// Room for copies of `bytes` bytes.
    ///
    /// # Errors
    /// When the driver has none.
    pub fn landing(&self, bytes: usize) -> Result<Landing> {
        let shared = &self.shared;
        shared.enter()?;
        let landed = Event::new(EventFlags::DISABLE_TIMING);
        let landed = shared.cust("making an event", landed)?;
        let pinned = Pinned::new(shared.driver, bytes)?;
        Ok(Landing { landed, pinned, is_started: false, shared: shared.clone() })
    }

    /// Starts to copy from the device, after all that was started before. Waits for the copy that was
    /// last started to the same place.
    ///
    /// # Errors
    /// When the driver refuses, or something that was started before failed.
    ///
    /// # Safety
    /// The landing's bytes from `address` on are memory of this device, and stay until this is done.
    pub unsafe fn start_read(&self, address: u64, to: &mut Landing) -> Result<()> {
        to.finish()?;
        let shared = &*self.shared;
        shared.not_recording("copying from the card")?;
        shared.enter()?;
        let bytes = to.pinned.bytes();
        let (start, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the caller's promise for the device's side; the pinned memory stays until `finish`.
        let code =
            unsafe { (shared.driver.api.copy_to_host)(start, address, len, shared.stream()) };
        shared.check(code, || format!("copying {len} bytes from the card"))?;
        shared.cust("marking a copy", to.landed.record(&shared.stream))?;
        to.is_started = true;
        Ok(())
    }
}

impl Landing {
    /// The bytes, once the copy that was started has ended.
    ///
    /// # Errors
    /// When none was started, or something before it failed.
    pub fn wait(&mut self) -> Result<&[u8]> {
        if !self.is_started {
            return Err(Error::BufferRange { start: 0, len: self.pinned.bytes().len(), buffer: 0 });
        }
        self.finish()?;
        Ok(self.pinned.bytes())
    }

    fn finish(&mut self) -> Result<()> {
        if self.is_started {
            self.is_started = false;
            self.shared.enter()?;
            self.shared.cust("waiting for a copy", self.landed.synchronize())?;
        }
        Ok(())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // The card writes to the memory until then. A failure is told by the next call.
        let _ = self.finish();
    }
}
