//! What a card is.

use cust::device::Device;
use cust::sys::CUdevice_attribute as Attribute;

use super::{check, cust_error};
use crate::driver::Driver;
use crate::error::Result;

/// A card's properties, as the driver tells them.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaInfo {
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub n_multiprocessors: u32,
    /// Bytes of device memory, in use or not.
    pub memory_bytes: usize,
    /// Bytes of shared memory that one block may have.
    pub block_shared_bytes: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub multiprocessor_shared_bytes: u32,
    /// Bytes of the L2 cache.
    pub l2_bytes: u32,
    /// Clock of the multiprocessors in kHz.
    pub clock_khz: u32,
    /// Clock of the memory in kHz; 0 where the driver doesn't say.
    pub memory_clock_khz: u32,
    /// Width of the memory's bus in bits; 0 where the driver doesn't say.
    pub memory_bus_bits: u32,
    /// The CUDA version that the driver supports.
    pub driver_version: String,
}

impl CudaInfo {
    pub(super) fn of(driver: &Driver, device: Device) -> Result<CudaInfo> {
        let name =
            device.name().map_err(|e| cust_error(driver, "asking for the card's name", e))?;
        let memory_bytes = device
            .total_memory()
            .map_err(|e| cust_error(driver, "asking for the card's memory", e))?;
        let attribute = |attribute: Attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: writes the value; the device exists.
            let code = unsafe {
                (driver.api.device_attribute)(&mut value, attribute as i32, device.as_raw())
            };
            check(driver, code, || format!("asking {name} for {attribute:?}"))?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        use Attribute::*;
        Ok(CudaInfo {
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            n_multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            block_shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessor_shared_bytes: attribute(
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
            l2_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            clock_khz: attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            memory_clock_khz: attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
            memory_bus_bits: attribute(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            driver_version: driver.version(),
            memory_bytes,
            name,
        })
    }

    /// The memory's bandwidth in bytes a second, as its clock and bus make it: two transfers a
    /// clock. None where the driver doesn't tell them.
    pub fn bandwidth(&self) -> Option<f64> {
        let transfers = 2.0 * f64::from(self.memory_clock_khz) * 1e3;
        let bandwidth = transfers * f64::from(self.memory_bus_bits) / 8.0;
        (bandwidth > 0.0).then_some(bandwidth)
    }
}
