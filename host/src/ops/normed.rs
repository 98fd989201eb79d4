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

impl Out<'_> {
    /// Whether blocks of 32 columns are to be encoded.
    fn is_packed(self) -> bool {
        matches!(self, Out::Gelu(_))
    }
}

/// Whether there is such a product: of a matrix of this format and so many columns, which shares the device with others,
/// of `rows_at_once` rows in all, and with a result that goes to columns, or is packed.
pub fn norms_itself(
    device: &Device,
    (format, n_cols): (Format, usize),
    rows_at_once: usize,
    is_packed: bool,
) -> bool {
    has_kernels(format)
        && n_cols <= MAX_COLS as usize
        && block_tiles(device, rows_at_once, is_packed).is_some()
}

fn has_kernels(format: Format) -> bool {
    macro_rules! of_format {
        ($tile:ty, $ggml:ident, $norm32:ident, $norm48:ident, $norm64:ident) => {
            if format == Format::$ggml {
                return true;
            }
        };
    }
    for_each_normed_format!(of_format);
    false
}

/// So many tiles a block that each block has a multiprocessor for itself, or that two come one after the other: more would
/// norm the row too often. Whole blocks of 32 columns are an even number.
fn block_tiles(device: &Device, rows_at_once: usize, is_packed: bool) -> Option<usize> {
    let n_tiles = rows_at_once.div_ceil(TILE_ROWS as usize);
    match n_tiles.div_ceil(device.n_multiprocessors()) {
        0..=2 => Some(2),
        3 if !is_packed => Some(3),
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
            let n_rows = if p.out.is_packed() { padded } else { n_rows };
            return device.launch(kernel, n_rows.div_ceil($n_tiles * TILE_ROWS as usize));
        }};
    }
    macro_rules! of_format {
        ($tile:ty, $ggml:ident, $norm32:ident, $norm48:ident, $norm64:ident) => {
            match block_tiles(device, p.rows_at_once, p.out.is_packed()) {
                Some(2) if format == Format::$ggml => launch!(normed::$norm32::Normed, 2),
                Some(3) if format == Format::$ggml => launch!(normed::$norm48::Normed, 3),
                Some(4) if format == Format::$ggml => launch!(normed::$norm64::Normed, 4),
                _ => {}
            }
        };
    }
    for_each_normed_format!(of_format);
    // invariant: the caller asked `norms_itself`, which says that one of them fits.
    unreachable!("{format:?} has no product that does a norm for {} rows", p.rows_at_once)
}
