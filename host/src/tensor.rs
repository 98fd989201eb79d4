//! What lives on a device: weight matrices as records, and activation rows in both their forms.

use crate::device::{Buffer, Device};
use crate::error::Result;
use kernels_gpu::fixed16;
use kernels_gpu::gpu::{Global, U32x4};
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
    /// What an RMS norm leaves for the products to do, where the rows come from one.
    pub rms: Option<RmsScale>,
    /// Columns.
    pub n_cols: usize,
}

/// The scale of an RMS norm, which products apply to their results (`kernels_gpu::norm`).
#[derive(Debug)]
pub struct RmsScale {
    /// Sums of squares over blocks of 32 columns: [capacity, fixed16::row_scales(n_cols)]
    pub squares: Buffer<f32>,
    /// Added to the mean square.
    pub eps: f32,
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
            rms: None,
            n_cols,
        })
    }

    /// The same for rows that come from an RMS norm.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn with_rms(device: &Device, capacity: usize, n_cols: usize, eps: f32) -> Result<Rows> {
        let n_squares = capacity * fixed16::row_scales(n_cols as u32) as usize;
        let rms = Some(RmsScale { squares: device.alloc(n_squares)?, eps });
        Ok(Rows { rms, ..Rows::new(device, capacity, n_cols)? })
    }

    /// Sums of squares and epsilon, as kernels take them.
    pub(crate) fn rms_view(&self) -> (Global<f32>, f32) {
        match &self.rms {
            Some(rms) => (rms.squares.view(), rms.eps),
            None => (Global::absent(), 0.0),
        }
    }

    /// Bytes that `new` or `with_rms` takes, at most.
    pub fn bytes(capacity: usize, n_cols: usize) -> u64 {
        let cols = n_cols as u32;
        let row = 4 * n_cols
            + fixed16::row_code_bytes(cols) as usize
            + (16 + 4) * fixed16::row_scales(cols) as usize;
        (capacity * row) as u64
    }
}
