//! The device layer's body for NVIDIA cards, on `cust` and the driver's own functions.
//!
//! Raw: addresses and bytes, no types. Its one law: every call on a device goes to its one stream
//! and its own context, whatever thread it comes from, and every failure says what was tried.

mod graph;
mod info;
mod kernels;
mod landing;
mod memory;

pub use graph::{Graph, Mark};
pub use info::CudaInfo;
pub use kernels::{KernelId, LaunchMode};
pub use landing::Landing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cust::context::Context;
use cust::error::CudaError;
use cust::stream::{Stream, StreamFlags};
use cust::sys;

use crate::driver::{self, Driver};
use crate::error::{Error, Result};
use crate::ptx::{Image, PtxChoice};
use kernels::Kernels;
use memory::Staging;

/// An NVIDIA card, its stream, and the kernels for it. Clones are the same device.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    shared: Arc<Shared>,
}

/// What the device, its graphs and its marks keep alive together. Fields drop in their order: the
/// context goes last.
#[derive(Debug)]
struct Shared {
    kernels: Kernels,
    staging: Staging,
    stream: Stream,
    context: Context,
    info: CudaInfo,
    image: Image,
    /// Whether what is started is recorded into a graph.
    recording: AtomicBool,
    driver: &'static Driver,
}

impl CudaDevice {
    /// The card with this number, and the image that `choice` gives it. No kernel is compiled yet.
    ///
    /// # Errors
    /// When there is no driver, no such card, or the card can't run the image.
    pub fn open(ordinal: u32, choice: PtxChoice) -> Result<CudaDevice> {
        Self::open_with(driver::load()?, ordinal, choice)
    }

    fn open_with(driver: &'static Driver, ordinal: u32, choice: PtxChoice) -> Result<CudaDevice> {
        if ordinal >= driver.n_devices() {
            return Err(Error::NoSuchDevice { ordinal, n_devices: driver.n_devices() });
        }
        let in_cust = |what: &str, error| cust_error(driver, what, error);
        let device = cust::device::Device::get_device(ordinal)
            .map_err(|e| in_cust("finding the card", e))?;
        let info = CudaInfo::of(driver, device)?;
        let image = choice.image(info.capability).ok_or_else(|| Error::UnsupportedCard {
            card: info.name.clone(),
            capability: info.capability,
            image: match choice {
                PtxChoice::Auto => Image::Sm80,
                PtxChoice::Only(image) => image,
            },
        })?;

        // A card in use by others may refuse, with a code that `cust` does not know. So it is asked
        // this way first, and the context stays while `cust` takes its own hold of it.
        let mut probe = std::ptr::null_mut();
        // SAFETY: writes the context; the device exists.
        let code = unsafe { (driver.api.context_retain)(&mut probe, device.as_raw()) };
        check(driver, code, || format!("taking {} into use", info.name))?;
        let context = Context::new(device).map_err(|e| in_cust("taking the card into use", e));
        // SAFETY: gives back what was retained above.
        unsafe { (driver.api.context_release)(device.as_raw()) };
        let context = context?;

        let stream =
            Stream::new(StreamFlags::DEFAULT, None).map_err(|e| in_cust("making a stream", e))?;
        let kernels = Kernels::new(driver, image);
        let staging = Staging::new(driver);
        let recording = AtomicBool::new(false);
        let shared = Shared { kernels, staging, stream, context, info, image, recording, driver };
        Ok(CudaDevice { shared: Arc::new(shared) })
    }

    /// What the card is.
    pub fn info(&self) -> &CudaInfo {
        &self.shared.info
    }

    /// The image that its kernels come from.
    pub fn image(&self) -> Image {
        self.shared.image
    }

    /// Waits until everything that was started on the device is done.
    ///
    /// # Errors
    /// When something of it failed; the device is of no use afterwards.
    pub fn synchronize(&self) -> Result<()> {
        self.shared.not_recording("waiting for the device")?;
        self.shared.enter()?;
        // SAFETY: the stream is the device's.
        let code = unsafe { (self.shared.driver.api.stream_synchronize)(self.shared.stream()) };
        self.shared.check(code, || "waiting for the device".to_string())
    }
}

impl Shared {
    fn stream(&self) -> sys::CUstream {
        self.stream.as_inner()
    }

    /// Makes the device's context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        let code = unsafe { (self.driver.api.context_set_current)(self.context.as_raw()) };
        check(self.driver, code, || "entering the card's context".to_string())
    }

    /// An error for a code that is no success.
    fn check(&self, code: i32, what: impl FnOnce() -> String) -> Result<()> {
        check(self.driver, code, || what() + &self.blame(code))
    }

    fn cust<T>(&self, what: &str, result: Result<T, CudaError>) -> Result<T> {
        result.map_err(|error| {
            let what = what.to_string() + &self.blame(error as i32);
            cust_error(self.driver, &what, error)
        })
    }

    /// Who may be to blame for a code: a kernel that faulted makes every later call fail.
    fn blame(&self, code: i32) -> String {
        match self.kernels.last_launched() {
            Some(kernel) if is_kernel_fault(code) => format!(
                " (a kernel faulted; the last one started was {kernel}, and with \
                 CUDA_LAUNCH_BLOCKING=1 in the environment that is the one)"
            ),
            _ => String::new(),
        }
    }

    /// Refuses what a graph can't hold.
    fn not_recording(&self, operation: &'static str) -> Result<()> {
        if self.recording.load(Ordering::Relaxed) {
            return Err(Error::WhileRecording { operation });
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What still runs may use the buffers and modules that go now. A failure changes nothing.
        if self.enter().is_ok() {
            // SAFETY: the stream is the device's.
            unsafe { (self.driver.api.stream_synchronize)(self.stream()) };
        }
    }
}

/// Codes that a kernel leaves behind, from an illegal address to a trap.
fn is_kernel_fault(code: i32) -> bool {
    (700..=721).contains(&code)
}

fn check(driver: &Driver, code: i32, what: impl FnOnce() -> String) -> Result<()> {
    if code == driver::SUCCESS {
        return Ok(());
    }
    Err(Error::Cuda { operation: what(), code, reason: driver.explain(code) })
}

fn cust_error(driver: &Driver, what: &str, error: CudaError) -> Error {
    let code = error as i32;
    Error::Cuda { operation: what.to_string(), code, reason: driver.explain(code) }
}

#[cfg(test)]
mod tests;
