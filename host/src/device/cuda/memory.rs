//! Device memory, and the copies between it and the host through pinned buffers.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cust::event::{Event, EventFlags};

use super::{CudaDevice, Shared, check};
use crate::driver::{self, Driver};
use crate::error::{Error, Result};

/// Bytes of one pinned buffer: large enough for the bus's full speed, small enough that filling one
/// overlaps with sending another.
pub(super) const STAGE_BYTES: usize = 4 << 20;
/// Pinned buffers for sending: one is filled while the others are on their way.
pub(super) const N_STAGES: usize = 3;

/// A device's memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

/// The pinned buffers; made at the first copy.
#[derive(Debug)]
pub(super) struct Staging {
    driver: &'static Driver,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sending: Vec<Stage>,
    /// The buffer of `sending` that is being filled.
    current: usize,
    receiving: Option<Pinned>,
}

/// A pinned buffer on its way to the device.
#[derive(Debug)]
struct Stage {
    buffer: Pinned,
    /// Bytes that are filled and sent.
    used: usize,
    /// Passed when all that was sent from it has arrived.
    sent: Event,
}

/// Host memory that the card reads and writes by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    driver: &'static Driver,
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(driver: &'static Driver, len: usize) -> Result<Pinned> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: writes the address; the calling thread is in the context.
        let code = unsafe { (driver.api.host_alloc)(&mut start, len.max(1)) };
        check(driver, code, || format!("pinning {len} bytes of host memory"))?;
        let start: *mut u8 = start.cast();
        // SAFETY: just allocated with this size; bytes must have a value to be lent as a slice.
        unsafe { start.write_bytes(0, len) };
        Ok(Pinned { driver, start, len })
    }

    pub(super) fn start(&self) -> *const u8 {
        self.start
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size and filled by `new`; `&mut self` lends it once.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; the device was waited for (`Shared::drop`).
        unsafe { (self.driver.api.host_free)(self.start.cast()) };
    }
}

impl Staging {
    pub(super) fn new(driver: &'static Driver) -> Staging {
        Staging { driver, state: Mutex::default() }
    }
}

impl CudaDevice {
    /// Memory of the device, unset. The address is a multiple of 256.
    ///
    /// # Errors
    /// When there is too little.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        let shared = &*self.shared;
        shared.enter()?;
        let mut address = 0;
        // SAFETY: writes the address.
        let code = unsafe { (shared.driver.api.memory_alloc)(&mut address, bytes.max(1)) };
        if code == driver::OUT_OF_MEMORY {
            let free = self.memory().ok().map(|memory| memory.free as u64);
            return Err(Error::OutOfMemory { bytes, free });
        }
        shared.check(code, || format!("allocating {bytes} bytes on the card"))?;
        Ok(address)
    }

    /// Gives memory back, once all that was started before is done.
    ///
    /// # Safety
    /// The address came from `alloc` of this device, is freed once, and no graph that is still to be
    /// replayed uses it.
    pub unsafe fn free(&self, address: u64) {
        if self.shared.enter().is_ok() {
            // The driver waits for the device by itself. A failure here is one of an earlier kernel,
            // and the next call tells it.
            // SAFETY: the caller's promise.
            unsafe { (self.shared.driver.api.memory_free)(address) };
        }
    }

    /// How much memory the card has left.
    ///
    /// # Errors
    /// When the driver does not say.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.shared.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes both numbers.
        let code = unsafe { (self.shared.driver.api.memory_info)(&mut free, &mut total) };
        self.shared.check(code, || "asking for the card's free memory".to_string())?;
        Ok(MemoryInfo { free, total })
    }

    /// Starts to set `bytes` bytes to `value`.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// The range is memory of this device, and stays until this is done.
    pub unsafe fn fill(&self, address: u64, bytes: usize, value: u8) -> Result<()> {
        let shared = &*self.shared;
        shared.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (shared.driver.api.set_bytes)(address, value, bytes, shared.stream()) };
        shared.check(code, || format!("setting {bytes} bytes on the card"))
    }

    /// Starts to copy within the device.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// Both ranges are memory of this device, don't overlap, and stay until this is done.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let shared = &*self.shared;
        shared.enter()?;
        // SAFETY: the caller's promise.
        let code = unsafe { (shared.driver.api.copy_on_device)(to, from, bytes, shared.stream()) };
        shared.check(code, || format!("copying {bytes} bytes on the card"))
    }

    /// Starts to copy `data` to the device; `data` may change as soon as this returns.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// The range is memory of this device, and stays until this is done.
    pub unsafe fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            self.write_with(address, data.len(), |at, out| {
                out.copy_from_slice(&data[at..at + out.len()]);
                Ok(())
            })
        }
    }

    /// Starts to copy `bytes` bytes to the device, which `produce` writes piece by piece, in order,
    /// into pinned memory: it gets the position of the piece's first byte, and the piece. It must not
    /// copy to or from the device itself.
    ///
    /// # Errors
    /// When `produce` fails or the driver refuses. The range then holds a part of the data.
    ///
    /// # Safety
    /// The range is memory of this device, and stays until this is done.
    pub unsafe fn write_with(
        &self,
        address: u64,
        bytes: usize,
        mut produce: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let shared = &*self.shared;
        shared.not_recording("copying to the card")?;
        shared.enter()?;
        let mut state = shared.staging.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        while at < bytes {
            let stage = state.room(shared)?;
            let piece = (bytes - at).min(STAGE_BYTES - stage.used);
            let range = stage.used..stage.used + piece;
            produce(at, &mut stage.buffer.bytes()[range.clone()])?;
            let (to, from) = (address + at as u64, stage.buffer.bytes()[range].as_ptr());
            let copy = shared.driver.api.copy_to_device;
            // SAFETY: the caller's promise for the device's side; the pinned bytes stay as they are
            // until `room` has waited for `sent`.
            let code = unsafe { copy(to, from.cast(), piece, shared.stream()) };
            shared.check(code, || format!("copying {bytes} bytes to the card"))?;
            stage.used += piece;
            at += piece;
        }
        Ok(())
    }

    /// Copies from the device, after all that was started before.
    ///
    /// # Errors
    /// When the driver refuses, or something that was started before failed.
    ///
    /// # Safety
    /// The range is memory of this device.
    pub unsafe fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let shared = &*self.shared;
        shared.not_recording("copying from the card")?;
        shared.enter()?;
        let mut state = shared.staging.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = match &mut state.receiving {
            Some(pinned) => pinned,
            empty => empty.insert(Pinned::new(shared.staging.driver, STAGE_BYTES)?),
        };
        let (bytes, mut from) = (out.len(), address);
        for piece in out.chunks_mut(STAGE_BYTES) {
            let (copy, to) = (shared.driver.api.copy_to_host, pinned.start.cast());
            // SAFETY: the caller's promise for the device's side; the piece fits the buffer, and the
            // lock keeps others out of it.
            let code = unsafe { copy(to, from, piece.len(), shared.stream()) };
            shared.check(code, || format!("copying {bytes} bytes from the card"))?;
            self.synchronize()?;
            piece.copy_from_slice(&pinned.bytes()[..piece.len()]);
            from += piece.len() as u64;
        }
        Ok(())
    }
}

impl State {
    /// The buffer to fill next, with room in it.
    fn room(&mut self, shared: &Shared) -> Result<&mut Stage> {
        if self.sending.get(self.current).is_some_and(|stage| stage.used == STAGE_BYTES) {
            let full = &self.sending[self.current];
            shared.cust("marking a copy", full.sent.record(&shared.stream))?;
            self.current = (self.current + 1) % N_STAGES;
            if let Some(next) = self.sending.get_mut(self.current) {
                next.wait(shared)?;
            }
        }
        if self.current == self.sending.len() {
            let sent = Event::new(EventFlags::DISABLE_TIMING);
            let sent = shared.cust("making an event", sent)?;
            self.sending.push(Stage {
                buffer: Pinned::new(shared.driver, STAGE_BYTES)?,
                used: 0,
                sent,
            });
        }
        Ok(&mut self.sending[self.current])
    }
}

impl Stage {
    /// Waits until all that was sent has arrived; the buffer is free then.
    fn wait(&mut self, shared: &Shared) -> Result<()> {
        shared.cust("waiting for a copy", self.sent.synchronize())?;
        self.used = 0;
        Ok(())
    }
}
