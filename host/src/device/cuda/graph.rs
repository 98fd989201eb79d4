//! Recorded work that is replayed with one call, and marks in the stream for timing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cust::event::{Event, EventFlags};
use cust::sys;

use super::{CudaDevice, Shared};
use crate::error::Result;

/// CU_STREAM_CAPTURE_MODE_RELAXED: kernels may be compiled while a graph is recorded.
const RELAXED: i32 = 2;

/// Work that was recorded.
#[derive(Debug)]
pub struct Graph {
    raw: sys::CUgraphExec,
    n_nodes: usize,
    device: Arc<Shared>,
}

// SAFETY: the driver allows any thread, one at a time; `replay` goes through the device's stream.
unsafe impl Send for Graph {}
// SAFETY: nothing changes a graph after it is made.
unsafe impl Sync for Graph {}

impl Graph {
    /// Launches and copies in it.
    pub fn n_nodes(&self) -> usize {
        self.n_nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made by `record`, destroyed once. The driver keeps it while it runs.
            unsafe { (self.device.driver.api.graph_exec_destroy)(self.raw) };
        }
    }
}

/// A point in the device's work.
#[derive(Debug)]
pub struct Mark {
    event: Event,
    device: Arc<Shared>,
}

impl Drop for Mark {
    fn drop(&mut self) {
        // The event is destroyed next, in this context. A failure leaves that to the driver.
        let _ = self.device.enter();
    }
}

impl CudaDevice {
    /// Records what `work` starts on the device, instead of starting it. Nothing in it may wait for
    /// the device, read from it, or write to it from the host.
    ///
    /// # Errors
    /// When `work` fails, or does what can't be recorded.
    ///
    /// # Safety
    /// What the launches in `work` may not outlive must live until the graph is replayed for the last
    /// time and done.
    pub unsafe fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let shared = &self.shared;
        shared.not_recording("recording another graph")?;
        shared.enter()?;
        let api = &shared.driver.api;
        // SAFETY: the stream is the device's.
        let code = unsafe { (api.capture_begin)(shared.stream(), RELAXED) };
        shared.check(code, || "starting to record a graph".to_string())?;
        shared.recording.store(true, Ordering::Relaxed);
        let done = work();
        shared.recording.store(false, Ordering::Relaxed);
        shared.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: recording was started above; it ends whether or not `work` failed.
        let code = unsafe { (api.capture_end)(shared.stream(), &mut raw) };
        let recorded = shared.check(code, || "recording a graph".to_string());
        let recorded = recorded.map(|()| Recorded { raw, device: shared });
        done?;
        let recorded = recorded?;

        let mut n_nodes = 0;
        // SAFETY: no nodes are asked for, only their number.
        let code = unsafe { (api.graph_nodes)(recorded.raw, std::ptr::null_mut(), &mut n_nodes) };
        shared.check(code, || "counting a graph's nodes".to_string())?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes the graph made from the recorded one; no flags.
        let code = unsafe { (api.graph_instantiate)(&mut raw, recorded.raw, 0) };
        shared.check(code, || format!("making a graph of {n_nodes} nodes"))?;
        let graph = Graph { raw, n_nodes, device: shared.clone() };
        // SAFETY: both are the device's. So the first replay is as fast as the others.
        let code = unsafe { (api.graph_upload)(graph.raw, shared.stream()) };
        shared.check(code, || format!("uploading a graph of {n_nodes} nodes"))?;
        Ok(graph)
    }

    /// Starts all that was recorded.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// The graph is this device's, and the memory that it uses is still there until it is done.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.shared.enter()?;
        // SAFETY: the caller's promise.
        let code =
            unsafe { (self.shared.driver.api.graph_launch)(graph.raw, self.shared.stream()) };
        self.shared.check(code, || format!("starting a graph of {} nodes", graph.n_nodes))
    }

    /// Marks this point of the device's work.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn mark(&self) -> Result<Mark> {
        let shared = &self.shared;
        shared.enter()?;
        let event = shared.cust("making an event", Event::new(EventFlags::DEFAULT))?;
        shared.cust("marking the stream", event.record(&shared.stream))?;
        Ok(Mark { event, device: shared.clone() })
    }

    /// Waits for the later mark; the time that the device took between the two.
    ///
    /// # Errors
    /// When something before the mark failed, or the marks are of different devices.
    pub fn elapsed(&self, from: &Mark, to: &Mark) -> Result<Duration> {
        let shared = &self.shared;
        shared.enter()?;
        shared.cust("waiting for a mark", to.event.synchronize())?;
        let ms = shared.cust("reading the time", to.event.elapsed_time_f32(&from.event))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

/// A recorded graph that is not yet one that can be replayed.
struct Recorded<'a> {
    raw: sys::CUgraph,
    device: &'a Shared,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        // SAFETY: made by recording, destroyed once; the calling thread is in the context.
        unsafe { (self.device.driver.api.graph_destroy)(self.raw) };
    }
}
