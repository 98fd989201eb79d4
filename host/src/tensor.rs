//! What lives on a device: weight matrices as records, and activation rows in both their forms.

use crate::device::{Buffer, Device};
use crate::error::Result;
use kernels_gpu::fixed16;
use kernels_gpu::gpu::U32x4;
use kernels_gpu::quant::Format;

/// A weight matrix on the device; with experts, one after another.
#[derive(Debug)]
pub struct Matrix {
    /// Name of the tensor in the file, for messages.
    pub name: String,
    /// Its format.
    pub format: Format,
    /// Rows of one expert's matrix: outputs.
    pub n_rows: usize,
    /// Columns: inputs.
    pub n_cols: usize,
    /// Experts; 1 for an ordinary matrix.
    pub n_experts: usize,
    /// Records (`kernels_gpu::tile`), or the rows themselves where the format is F32.
    pub words: Buffer<u32>,
}

/// Activation rows on the device: f32, and fixed point for the products.
#[derive(Debug)]
pub struct Rows {
    /// [capacity, n_cols]
    pub values: Buffer<f32>,
    /// [capacity, fixed16::row_code_bytes(n_cols)]
    pub codes: Buffer<u8>,
    /// [capacity, fixed16::row_scales(n_cols)]
    pub scales: Buffer<U32x4>,
    /// Columns.
    pub n_cols: usize,
}

impl Rows {
    /// Room for `capacity` rows of `n_cols` columns.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(device: &Device, capacity: usize, n_cols: usize) -> Result<Rows> {
        let cols = n_cols as u32;
        Ok(Rows {
            values: device.alloc(capacity * n_cols)?,
            codes: device.alloc(capacity * fixed16::row_code_bytes(cols) as usize)?,
            scales: device.alloc(capacity * fixed16::row_scales(cols) as usize)?,
            n_cols,
        })
    }

    /// Bytes that `new` takes.
    pub fn bytes(capacity: usize, n_cols: usize) -> u64 {
        let cols = n_cols as u32;
        let row = 4 * n_cols
            + fixed16::row_code_bytes(cols) as usize
            + 16 * fixed16::row_scales(cols) as usize;
        (capacity * row) as u64
    }
}
