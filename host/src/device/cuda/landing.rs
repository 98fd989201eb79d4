//! Host memory that kernels write to, and marks that tell when they have.

use std::sync::Arc;

use cust::event::{Event, EventFlags};

use super::memory::Pinned;
use super::{CudaDevice, Shared};
use crate::error::Result;

/// Pinned memory, whose address is the same on the device, and two marks.
#[derive(Debug)]
pub struct Landing {
    // Fields drop in their order: the events and the memory before what they were made in.
    marks: [Event; 2],
    pinned: Pinned,
    shared: Arc<Shared>,
}

impl CudaDevice {
    /// Room for `bytes` bytes.
    ///
    /// # Errors
    /// When the driver has none.
    pub fn landing(&self, bytes: usize) -> Result<Landing> {
        let shared = &self.shared;
        shared.enter()?;
        let mark = || shared.cust("making an event", Event::new(EventFlags::DISABLE_TIMING));
        let marks = [mark()?, mark()?];
        let pinned = Pinned::new(shared.driver, bytes)?;
        Ok(Landing { marks, pinned, shared: shared.clone() })
    }
}

impl Landing {
    /// Of the first byte, for kernels and for the host.
    pub fn address(&self) -> u64 {
        self.pinned.start().addr() as u64
    }

    /// Marks this point of the device's work with mark 0 or 1.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn expect(&self, mark: usize) -> Result<()> {
        let shared = &*self.shared;
        shared.not_recording("marking what arrives")?;
        shared.enter()?;
        shared.cust("marking what arrives", self.marks[mark % 2].record(&shared.stream))
    }

    /// Waits for the mark; the memory, to which kernels behind it may be writing.
    ///
    /// # Errors
    /// When something before the mark failed.
    pub fn wait(&self, mark: usize) -> Result<*const u8> {
        self.shared.enter()?;
        let done = self.marks[mark % 2].synchronize();
        self.shared.cust("waiting for what arrives", done)?;
        Ok(self.pinned.start())
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Kernels may write to the memory until then. A failure is told by the next call.
        if self.shared.enter().is_ok() {
            let _ = self.shared.stream.synchronize();
        }
    }
}
