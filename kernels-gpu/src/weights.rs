//! What happens to weights outside products: repacking at load, dequantisation, embedding rows.

use crate::fixed16::{BLOCK_COLS, RowsMut};
use crate::gpu::{self, Element, F16, Global, GlobalMut, U32x4, WARP};
use crate::norm::Weighed;
use crate::tile::{Raw, TILE_ROWS, TileFormat, float, k_quants, k_sixteens, legacy, row_records};

/// Threads of a block.
pub const BLOCK: u32 = 256;

kernel! {
    /// `out[i] = table[ids[i]]` for an F32 table, as `Embed` has it.
    pub fn embed_f32 = embed_rows, block BLOCK, shared (), registers 40,
        barriers 0, shuffles 5, matrix_ops 0, waits later;
    pub struct EmbedF32 {
        /// [n_entries, n_cols]
        table: Global<f32>,
        /// [n_rows]
        ids: Global<u32>,
        /// [n_rows, n_cols]
        out: GlobalMut<f32>,
        /// [n_cols], where `packed_squares` is given
        norm_weight: Global<f32>,
        /// `out * norm_weight`: [n_rows, n_cols], or absent
        packed_values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        packed_codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        packed_scales: GlobalMut<U32x4>,
        /// [n_rows, row_scales(n_cols)], or absent: nothing is packed
        packed_squares: GlobalMut<f32>,
        n_cols: u32,
        add: u32,
    }
}

#[inline(always)]
fn embed_rows(a: EmbedF32) {
    let packed = Weighed {
        rows: RowsMut {
            values: a.packed_values,
            codes: a.packed_codes,
            scales: a.packed_scales,
            n_cols: a.n_cols,
        },
        squares: a.packed_squares,
        weight: a.norm_weight,
    };
    let element = |id: u32, col: u32| a.table.get(id as usize * a.n_cols as usize + col as usize);
    rows(a.ids, element, a.out, packed, a.add);
}

/// A block's share of a row of `out`, and what is packed of it: a warp has 32 columns.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn rows(
    ids: Global<u32>,
    element: impl Fn(u32, u32) -> f32,
    out: GlobalMut<f32>,
    packed: Weighed,
    add: u32,
) {
    let (row, n_cols) = (gpu::block_x(), packed.rows.n_cols);
    let block = gpu::block_y() * (BLOCK / WARP) + gpu::warp();
    let packs = !packed.squares.is_absent() && block < packed.rows.n_blocks();
    let weight = if packs { packed.weight_of_lane(block) } else { 0.0 };
    gpu::wait_for_previous();
    let id = ids.get(row as usize);
    let out = out.from(row as usize * n_cols as usize);
    let col = block * BLOCK_COLS + gpu::lane();
    let mut value = 0.0;
    if col < n_cols {
        value = element(id, col);
        if add != 0 {
            value += out.get(col as usize);
        }
        out.set(col as usize, value);
    }
    // Whole warps skip it.
    if packs {
        packed.store_block(row, block, value, weight);
    }
}

#[inline(always)]
fn repack<F: TileFormat>(raw: Global<u8>, words: GlobalMut<u32>, n_rows: u32, n_cols: u32) {
    let (row_tile, record) = (gpu::block_x(), gpu::block_y());
    let (block_bytes, block_cols) = F::BLOCK;
    let row_blocks = n_cols / block_cols;
    let raw = Raw { bytes: raw, n_rows, row_blocks, first_row: row_tile * TILE_ROWS, block_bytes };
    let at = row_tile as usize * row_records::<F>(n_cols) as usize + record as usize;
    let words = words.from(at * F::RECORD_WORDS as usize);
    let mut i = gpu::thread_x();
    while i < F::RECORD_WORDS {
        words.set(i as usize, F::pack(raw, record * F::RECORD_COLS, i));
        i += BLOCK;
    }
}

/// The weight in row `row` and column `col` of a tensor.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn element<F: TileFormat>(words: Global<u32>, n_cols: u32, row: u32, col: u32) -> f32 {
    let at = (row / TILE_ROWS) as usize * row_records::<F>(n_cols) as usize
        + (col / F::RECORD_COLS) as usize;
    let record = words.from(at * F::RECORD_WORDS as usize);
    F::element(record, row % TILE_ROWS, col % F::RECORD_COLS)
}

#[inline(always)]
fn dequantize<F: TileFormat, E: Element>(words: Global<u32>, out: GlobalMut<E>, n_cols: u32) {
    let row = gpu::block_x();
    let out = out.from(row as usize * n_cols as usize);
    let mut col = gpu::thread_x();
    while col < n_cols {
        out.set(col as usize, E::from_f32(element::<F>(words, n_cols, row, col)));
        col += BLOCK;
    }
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident,
        $experts:ident
    ) => {
        /// Kernels of one format.
        pub mod $repack {
            use super::*;

            kernel! {
                /// GGUF blocks to records; a block per record: grid (row tiles, records of a row).
                pub fn $repack = run_repack, block BLOCK, shared (), registers 64,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct Repack {
                    /// [n_rows, n_cols] in the format's blocks
                    raw: Global<u8>,
                    /// [row tiles, records of a row, words of a record]
                    words: GlobalMut<u32>,
                    n_rows: u32,
                    n_cols: u32,
                }
            }
            #[inline(always)]
            fn run_repack(a: Repack) {
                repack::<$format>(a.raw, a.words, a.n_rows, a.n_cols)
            }

            kernel! {
                /// Records to f32, bit for bit as GGML decodes; a block per row.
                pub fn $dequantize_f32 = run_dequantize_f32, block BLOCK, shared (), registers 48,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct DequantizeF32 {
                    /// Records
                    words: Global<u32>,
                    /// [n_rows, n_cols]
                    out: GlobalMut<f32>,
                    n_cols: u32,
                }
            }
            #[inline(always)]
            fn run_dequantize_f32(a: DequantizeF32) {
                dequantize::<$format, f32>(a.words, a.out, a.n_cols)
            }

            kernel! {
                /// Records to f16, rounded once from GGML's f32; a block per row.
                pub fn $dequantize_f16 = run_dequantize_f16, block BLOCK, shared (), registers 48,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct DequantizeF16 {
                    /// Records
                    words: Global<u32>,
                    /// [n_rows, n_cols]
                    out: GlobalMut<F16>,
                    n_cols: u32,
                }
            }
            #[inline(always)]
            fn run_dequantize_f16(a: DequantizeF16) {
                dequantize::<$format, F16>(a.words, a.out, a.n_cols)
            }

            kernel! {
                /// `out[i] = table[ids[i]]`, added to what is there if `add` is not 0, and what an RMS norm
                /// leaves to the stage before it, see `Weighed`; grid (rows of `out`, blocks of `BLOCK` columns).
                pub fn $embed = run_embed, block BLOCK, shared (), registers 48,
                    barriers 0, shuffles 5, matrix_ops 0, waits later;
                pub struct Embed {
                    /// Records of the table
                    words: Global<u32>,
                    /// [n_rows]
                    ids: Global<u32>,
                    /// [n_rows, n_cols]
                    out: GlobalMut<f32>,
                    /// [n_cols], where `packed_squares` is given
                    norm_weight: Global<f32>,
                    /// `out * norm_weight`: [n_rows, n_cols], or absent
                    packed_values: GlobalMut<f32>,
                    /// [n_rows, row_code_bytes(n_cols)]
                    packed_codes: GlobalMut<u8>,
                    /// [n_rows, row_scales(n_cols)]
                    packed_scales: GlobalMut<U32x4>,
                    /// [n_rows, row_scales(n_cols)], or absent: nothing is packed
                    packed_squares: GlobalMut<f32>,
                    n_cols: u32,
                    add: u32,
                }
            }
            #[inline(always)]
            fn run_embed(a: Embed) {
                let packed = Weighed {
                    rows: RowsMut {
                        values: a.packed_values,
                        codes: a.packed_codes,
                        scales: a.packed_scales,
                        n_cols: a.n_cols,
                    },
                    squares: a.packed_squares,
                    weight: a.norm_weight,
                };
                let element = |id, col| element::<$format>(a.words, a.n_cols, id, col);
                rows(a.ids, element, a.out, packed, a.add)
            }
        }
    };
}
crate::for_each_tile_format!(entries);
