//! Time on a device: marks in its work, and launches watched one by one.

use super::cuda;
use super::{Backend, Device};
use crate::error::Result;
use kernels_gpu::gpu::{Global, GlobalMut};
use kernels_gpu::{ArgDescription, Kernel, KernelSpec};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A point in a device's work.
#[derive(Debug)]
pub struct Mark(Inside);

#[derive(Debug)]
enum Inside {
    /// The emulator works while it is called, so that the host's clock is the device's.
    Host(Instant),
    Cuda(cuda::Mark),
}

/// Device memory that a launch was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedView {
    /// First byte.
    pub address: u64,
    /// Bytes that the kernel may touch.
    pub bytes: u64,
}

/// A launch that was watched.
#[derive(Clone, Debug)]
pub struct TracedLaunch {
    /// The kernel.
    pub spec: &'static KernelSpec,
    /// Its blocks.
    pub grid: [u32; 3],
    /// The views among its arguments, in their order.
    pub views: Vec<TracedView>,
    /// From the mark before it to the mark after it.
    pub time: Duration,
}

/// A launch that runs, or has run.
#[derive(Debug)]
pub(super) struct Watched {
    spec: &'static KernelSpec,
    grid: [u32; 3],
    views: Vec<TracedView>,
    /// Before and after it.
    marks: (Mark, Mark),
}

impl Device {
    /// Marks this point of the device's work.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark(match &self.inner.backend {
            Backend::Emulator(_) => Inside::Host(Instant::now()),
            Backend::Cuda(cuda) => Inside::Cuda(cuda.mark()?),
        }))
    }

    /// Waits for the later mark; the time that the device took between the two.
    ///
    /// # Errors
    /// When something before the mark failed.
    pub fn elapsed(&self, from: &Mark, to: &Mark) -> Result<Duration> {
        match (&self.inner.backend, &from.0, &to.0) {
            (Backend::Cuda(cuda), Inside::Cuda(from), Inside::Cuda(to)) => cuda.elapsed(from, to),
            (_, Inside::Host(from), Inside::Host(to)) => Ok(to.saturating_duration_since(*from)),
            // Marks of different devices: nothing lies between them.
            _ => Ok(Duration::ZERO),
        }
    }

    /// Copies `from` to the start of `to`, another buffer.
    ///
    /// # Errors
    /// When `from` doesn't fit, one of them is not in a live buffer, or the copy fails.
    pub fn copy(&self, from: Global<u8>, to: GlobalMut<u8>) -> Result<()> {
        let inside = {
            let allocations = self.allocations();
            allocations.contain(from.address(), from.len() as u64)
                && allocations.contain(to.address(), to.len() as u64)
        };
        let apart = from.address() + from.len() as u64 <= to.address()
            || to.address() + to.len() as u64 <= from.address();
        if !inside || !apart || from.len() > to.len() {
            let (len, buffer) = (from.len(), to.len());
            return Err(crate::error::Error::BufferRange { start: 0, len, buffer });
        }
        match &self.inner.backend {
            Backend::Emulator(_) => {
                let (source, target) = (from.address() as *const u8, to.address() as *mut u8);
                // SAFETY: both ranges were checked, and don't overlap; the emulated device is idle
                // between launches.
                unsafe { source.copy_to_nonoverlapping(target, from.len()) };
                Ok(())
            }
            // SAFETY: both ranges were checked, and don't overlap.
            Backend::Cuda(cuda) => unsafe { cuda.copy(from.address(), to.address(), from.len()) },
        }
    }

    /// Does `work`, and tells of each of its launches. Watched launches have marks around them, so
    /// that none overlaps with another.
    ///
    /// # Errors
    /// When `work` fails, or a launch does.
    pub fn trace(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<TracedLaunch>> {
        self.watched().get_or_insert_default().clear();
        self.inner.watching.store(true, Ordering::Relaxed);
        let done = work();
        self.inner.watching.store(false, Ordering::Relaxed);
        let watched = self.watched().take().unwrap_or_default();
        done?;
        watched
            .into_iter()
            .map(|Watched { spec, grid, views, marks: (from, to) }| {
                let time = self.elapsed(&from, &to)?;
                Ok(TracedLaunch { spec, grid, views, time })
            })
            .collect()
    }

    /// What `work` would launch. Nothing is started.
    ///
    /// # Errors
    /// When `work` fails, or a launch is refused.
    pub fn plan(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<TracedLaunch>> {
        self.trace(|| self.first_launches(0, work))
    }

    /// Whether launches are watched now.
    pub fn is_traced(&self) -> bool {
        self.inner.watching.load(Ordering::Relaxed)
    }

    /// Does `work`, but starts only its first `n` launches.
    ///
    /// # Errors
    /// When `work` fails.
    pub fn first_launches(&self, n: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.inner.launches_left.store(n, Ordering::Relaxed);
        let done = work();
        self.inner.launches_left.store(usize::MAX, Ordering::Relaxed);
        done
    }

    /// Counts a launch; whether it may start.
    pub(super) fn may_launch(&self) -> bool {
        let left = &self.inner.launches_left;
        match left.load(Ordering::Relaxed) {
            usize::MAX => true,
            0 => false,
            n => {
                left.store(n - 1, Ordering::Relaxed);
                true
            }
        }
    }

    /// Runs a launch between two marks, if launches are watched.
    pub(super) fn watch<K: Kernel>(
        &self,
        kernel: &K,
        grid: [u32; 3],
        launch: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.is_traced() {
            return launch();
        }
        let from = self.mark()?;
        launch()?;
        let to = self.mark()?;
        let mut views = Vec::new();
        kernel.for_each_arg(&mut |_, arg| {
            if let ArgDescription::View { address, bytes, .. } = arg {
                views.push(TracedView { address, bytes });
            }
        });
        let watched = Watched { spec: K::spec(), grid, views, marks: (from, to) };
        if let Some(launches) = self.watched().as_mut() {
            launches.push(watched);
        }
        Ok(())
    }

    fn watched(&self) -> MutexGuard<'_, Option<Vec<Watched>>> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
