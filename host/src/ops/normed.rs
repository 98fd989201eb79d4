//! Products of one token that do the layer norm before them themselves.

use super::expect_shape;
use super::matmul::{Overlap, Packed};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::weights::{Linear, Norm};
use crate::tensor::{Matrix, Rows};
use kernels_gpu::fixed16;
use kernels_gpu::for_each_normed_format;
use kernels_gpu::gpu::{Global, GlobalMut};
use kernels_gpu::matmul::normed::{self, MAX_COLS};
use kernels_gpu::quant::Format;
use kernels_gpu::tile::TILE_ROWS;

/// `weights norm(x) + bias` for one row x, the norm as `ops::norm::layer_norm` has it.
#[derive(Clone, Copy, Debug)]
pub struct NormedProduct<'a> {
    /// Matrix and bias.
    pub linear: &'a Linear,
    /// Its first row: [.., n_cols]
    pub x: &'a Buffer<f32>,
    /// The norm.
    pub norm: &'a Norm,
    /// Its epsilon.
    pub eps: f32,
    /// Where the result goes.
    pub out: Out<'a>,
    /// How it stands to the launches around it.
    pub overlap: Overlap,
    /// Rows of its matrix and of those that share the device with it.
    pub rows_at_once: usize,
}

/// What becomes of the result.
#[derive(Clone, Copy, Debug)]
pub enum Out<'a> {
    /// [n_rows]
    Columns(GlobalMut<f32>),
    /// `gelu` of it, in its tanh form.
    Gelu(&'a Rows),
}

/// Whether there is such a product: of a matrix of this format and so many columns, which shares the device with others,
/// of `rows_at_once` rows in all.
pub fn norms_itself(
    device: &Device,
    (format, n_cols): (Format, usize),
    rows_at_once: usize,
) -> bool {
    has_kernels(format)
        && n_cols <= MAX_COLS as usize
        && block_tiles(device, rows_at_once).is_some()
}

fn has_kernels(format: Format) -> bool {
    macro_rules! of_format {
        ($tile:ty, $ggml:ident, $norm32:ident, $norm64:ident) => {
            if format == Format::$ggml {
                return true;
            }
        };
    }
    for_each_normed_format!(of_format);
    false
}

/// Tiles of a block: two where each block then has a multiprocessor for itself, and four as long as no more than two come one
/// after the other, since more would norm the row too often. Three, where they are enough, were slower than four on fewer
/// multiprocessors: GPT-2 XL's step with q, k and v so took 5 % longer.
fn block_tiles(device: &Device, rows_at_once: usize) -> Option<usize> {
    let n_tiles = rows_at_once.div_ceil(TILE_ROWS as usize);
    match n_tiles.div_ceil(device.n_multiprocessors()) {
        0..=2 => Some(2),
        3..=8 => Some(4),
        _ => None,
    }
}

/// Launches one for which `norms_itself` holds.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn normed_product(device: &Device, p: NormedProduct<'_>) -> Result<()> {
    let Matrix { n_rows, n_cols, format, .. } = p.linear.weight;
    let name = &p.linear.weight.name;
    expect_shape("normed", name, p.norm.weight.len(), n_cols, "columns of the norm")?;
    if let Some(bias) = &p.linear.bias {
        expect_shape("normed", name, bias.len(), n_rows, "elements of the bias")?;
    }
    let (out, packed) = match p.out {
        Out::Columns(out) => (out, Packed::None),
        Out::Gelu(rows) => (GlobalMut::absent(), Packed::Gelu(rows)),
    };
    if let Some(rows) = packed.rows() {
        expect_shape("normed", name, rows.n_cols, n_rows, "columns of the packed rows")?;
    }
    let packed = packed.views();
    let optional =
        |bias: &Option<Buffer<f32>>| bias.as_ref().map_or_else(Global::absent, Buffer::view);
    macro_rules! launch {
        ($kernel:path, $n_tiles:literal) => {{
            use $kernel as Kernel;
            let kernel = Kernel {
                words: p.linear.weight.words.view().cast(),
                x: p.x.view(),
                norm_weight: p.norm.weight.view(),
                norm_bias: optional(&p.norm.bias),
                bias: optional(&p.linear.bias),
                out,
                packed_values: packed.values,
                packed_codes: packed.codes,
                packed_scales: packed.scales,
                n_rows: n_rows as u32,
                n_cols: n_cols as u32,
                eps: p.eps,
                overlap: p.overlap.of_kernel(),
            };
            let padded = fixed16::padded_cols(n_rows as u32) as usize;
            let n_rows = if matches!(p.out, Out::Gelu(_)) { padded } else { n_rows };
            return device.launch(kernel, n_rows.div_ceil($n_tiles * TILE_ROWS as usize));
        }};
    }
    macro_rules! of_format {
        ($tile:ty, $ggml:ident, $norm32:ident, $norm64:ident) => {
            match block_tiles(device, p.rows_at_once) {
                Some(2) if format == Format::$ggml => launch!(normed::$norm32::Normed, 2),
                Some(4) if format == Format::$ggml => launch!(normed::$norm64::Normed, 4),
                _ => {}
            }
        };
    }
    for_each_normed_format!(of_format);
    // invariant: the caller asked `norms_itself`, which says that one of them fits.
    unreachable!("{format:?} has no product that does a norm for {} rows", p.rows_at_once)
}
