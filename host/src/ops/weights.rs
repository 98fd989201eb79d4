//! Weights outside products: repacking, dequantisation, embedding rows.

use super::expect_shape;
use super::matmul::Packed;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::tensor::Matrix;
use kernels_gpu::for_each_tile_format;
use kernels_gpu::gpu::{Global, GlobalMut};
use kernels_gpu::quant::Format;
use kernels_gpu::tile::{self, TILE_ROWS};
use kernels_gpu::weights::{self, EmbedF32};

/// Words that a matrix takes on the device.
pub fn matrix_words(format: Format, n_rows: usize, n_cols: usize) -> usize {
    macro_rules! of_format {
        ($tile:ident :: $name:ident, $ggml:ident, $($kernel:ident),*) => {
            if format == Format::$ggml {
                return tile::tensor_words::<tile::$tile::$name>(n_rows as u32, n_cols as u32);
            }
        };
    }
    for_each_tile_format!(of_format);
    n_rows * n_cols
}

/// Turns GGUF blocks of `n_rows` rows into records at `words`.
///
/// # Errors
/// When the launch fails.
pub fn repack(
    device: &Device,
    format: Format,
    raw: Global<u8>,
    words: GlobalMut<u32>,
    n_rows: usize,
    n_cols: usize,
) -> Result<()> {
    let row_tiles = n_rows.div_ceil(TILE_ROWS as usize);
    macro_rules! of_format {
        ($tile:ident :: $name:ident, $ggml:ident, $repack:ident, $($kernel:ident),*) => {
            if format == Format::$ggml {
                let records = tile::row_records::<tile::$tile::$name>(n_cols as u32) as usize;
                let (n_rows, n_cols) = (n_rows as u32, n_cols as u32);
                let kernel = weights::$repack::Repack { raw, words, n_rows, n_cols };
                return device.launch(kernel, (row_tiles, records));
            }
        };
    }
    for_each_tile_format!(of_format);
    // invariant: F32 stays as it is, so the loader never asks for it.
    unreachable!("{format:?} is not repacked")
}

/// `out[i] = table[ids[i]]`, or added to `out` with `add`; and what else becomes of `out`: the rows of an RMS norm, or
/// nothing.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn embed(
    device: &Device,
    table: &Matrix,
    ids: Global<u32>,
    out: &Buffer<f32>,
    n_rows: usize,
    add: bool,
    packed: Packed<'_>,
) -> Result<()> {
    let n_cols = table.n_cols as u32;
    if out.len() < n_rows * table.n_cols {
        expect_shape("embed", &table.name, out.len(), n_rows * table.n_cols, "elements of out")?;
    }
    if let Some(rows) = packed.rows() {
        expect_shape(
            "embed",
            &table.name,
            rows.n_cols,
            table.n_cols,
            "columns of the packed rows",
        )?;
    }
    let (out, add) = (out.view_mut(), add as u32);
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $($product:ident),*
        ) => {
            if table.format == Format::$ggml {
                let packed = packed.views();
                let kernel = weights::$repack::Embed {
                    words: table.words.view(),
                    ids,
                    out,
                    norm_weight: packed.norm_weight,
                    packed_values: packed.values,
                    packed_codes: packed.codes,
                    packed_scales: packed.scales,
                    packed_squares: packed.squares,
                    n_cols,
                    add,
                };
                return device
                    .launch(kernel, (n_rows, table.n_cols.div_ceil(weights::BLOCK as usize)));
            }
        };
    }
    for_each_tile_format!(of_format);
    gather(device, table.words.view().cast(), ids, out, (n_rows, table.n_cols), add, packed)
}

/// The same for f32 rows; `add` = 1 adds to `out`.
///
/// # Errors
/// When the launch fails.
pub fn gather(
    device: &Device,
    table: Global<f32>,
    ids: Global<u32>,
    out: GlobalMut<f32>,
    (n_rows, n_cols): (usize, usize),
    add: u32,
    packed: Packed<'_>,
) -> Result<()> {
    let packed = packed.views();
    let kernel = EmbedF32 {
        table,
        ids,
        out,
        norm_weight: packed.norm_weight,
        packed_values: packed.values,
        packed_codes: packed.codes,
        packed_scales: packed.scales,
        packed_squares: packed.squares,
        n_cols: n_cols as u32,
        add,
    };
    device.launch(kernel, (n_rows, n_cols.div_ceil(weights::BLOCK as usize)))
}

/// A matrix as f32 [n_experts * n_rows, n_cols], bit for bit as GGML decodes it.
///
/// # Errors
/// When the device has too little memory, or the launch fails.
pub fn dequantize(device: &Device, matrix: &Matrix) -> Result<Buffer<f32>> {
    let n_rows = matrix.n_rows * matrix.n_experts;
    let buffer = device.alloc(n_rows * matrix.n_cols)?;
    let n_cols = matrix.n_cols as u32;
    let expert_words = matrix.words.len() / matrix.n_experts;
    for expert in 0..matrix.n_experts {
        let words = matrix.words.view().from(expert * expert_words);
        let out = buffer.view_mut().from(expert * matrix.n_rows * matrix.n_cols);
        macro_rules! of_format {
            (
                $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident,
                $dequantize_f16:ident, $embed:ident, $($product:ident),*
            ) => {
                if matrix.format == Format::$ggml {
                    let kernel = weights::$repack::DequantizeF32 { words, out, n_cols };
                    device.launch(kernel, matrix.n_rows)?;
                    continue;
                }
            };
        }
        for_each_tile_format!(of_format);
        return f32_copy(device, matrix);
    }
    Ok(buffer)
}

fn f32_copy(device: &Device, matrix: &Matrix) -> Result<Buffer<f32>> {
    let values: Vec<f32> = matrix.words.read()?.into_iter().map(f32::from_bits).collect();
    device.upload(&values)
}
