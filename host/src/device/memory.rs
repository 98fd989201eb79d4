//! Bookkeeping of device memory, and the emulated device's own memory.

use crate::error::{Error, Result};
use kernels_gpu::gpu::Plain;
use std::alloc::Layout;
use std::collections::BTreeMap;

/// Every buffer begins on such a border, as the CUDA driver's do.
const ALIGN: usize = 256;

/// Live buffers: first byte to size in bytes.
#[derive(Debug, Default)]
pub(super) struct Allocations {
    live: BTreeMap<u64, usize>,
}

impl Allocations {
    pub(super) fn insert(&mut self, address: u64, bytes: usize) {
        self.live.insert(address, bytes);
    }

    /// Forgets a buffer; its size comes back, or 0 if there was none.
    pub(super) fn remove(&mut self, address: u64) -> usize {
        self.live.remove(&address).unwrap_or(0)
    }

    /// Live buffers and their bytes.
    pub(super) fn total(&self) -> Allocated {
        let bytes = self.live.values().map(|&bytes| bytes as u64).sum();
        Allocated { buffers: self.live.len(), bytes }
    }

    /// Whether the range lies inside one live buffer.
    pub(super) fn contain(&self, address: u64, bytes: u64) -> bool {
        self.live.range(..=address).next_back().is_some_and(|(&start, &size)| {
            (address - start).checked_add(bytes).is_some_and(|end| end <= size as u64)
        })
    }
}

/// Memory of a device that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Live buffers.
    pub buffers: usize,
    /// Their bytes, padding included.
    pub bytes: u64,
}

/// Bytes of `len` elements, padded to whole 16-byte units and never zero.
pub(super) fn padded_bytes<T: Plain>(len: usize) -> Result<usize> {
    len.checked_mul(size_of::<T>())
        .and_then(|bytes| bytes.max(1).checked_next_multiple_of(16))
        .ok_or(Error::OutOfMemory { bytes: usize::MAX, free: None })
}

fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes, ALIGN).map_err(|_| Error::OutOfMemory { bytes, free: None })
}

/// Zeroed memory for the emulated device.
pub(super) fn alloc_host(bytes: usize) -> Result<u64> {
    // SAFETY: `bytes` is not zero (`padded_bytes`).
    let address = unsafe { std::alloc::alloc_zeroed(layout(bytes)?) };
    if address.is_null() {
        Err(Error::OutOfMemory { bytes, free: None })
    } else {
        Ok(address as u64)
    }
}

/// Gives memory of the emulated device back.
///
/// # Safety
/// `address` came from `alloc_host` with the same `bytes`, and is freed once.
pub(super) unsafe fn free_host(address: u64, bytes: usize) {
    if let Ok(layout) = layout(bytes)
        && bytes > 0
    {
        // SAFETY: the caller's promise.
        unsafe { std::alloc::dealloc(address as *mut u8, layout) }
    }
}
