//! What happens to weights outside products: repacking at load, dequantisation, embedding rows.

use crate::gpu::{self, Element, F16, Global, GlobalMut};
use crate::tile::{Raw, TILE_ROWS, TileFormat, float, k_quants, k_sixteens, legacy, row_records};

/// Threads of a block.
pub const BLOCK: u32 = 256;

kernel! {
    /// `out[i] = table[ids[i]]` for an F32 table, added to what is there if `add` is not 0; grid
    /// (rows of `out`, any number of blocks that share one).
    pub fn embed_f32 = embed_rows, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct EmbedF32 {
        /// [n_entries, n_cols]
        table: Global<f32>,
        /// [n_rows]
        ids: Global<u32>,
        /// [n_rows, n_cols]
        out: GlobalMut<f32>,
        n_cols: u32,
        add: u32,
    }
}

#[inline(always)]
fn embed_rows(a: EmbedF32) {
    let id = a.ids.get(gpu::block_x() as usize);
    let row = a.table.from(id as usize * a.n_cols as usize);
    let out = a.out.from(gpu::block_x() as usize * a.n_cols as usize);
    let mut col = gpu::block_y() * BLOCK + gpu::thread_x();
    while col < a.n_cols {
        put(out, col, row.get(col as usize), a.add);
        col += gpu::grid_y() * BLOCK;
    }
}

#[inline(always)]
fn put(out: GlobalMut<f32>, col: u32, v: f32, add: u32) {
    let v = if add != 0 { out.get(col as usize) + v } else { v };
    out.set(col as usize, v);
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

#[inline(always)]
fn embed<F: TileFormat>(
    words: Global<u32>,
    ids: Global<u32>,
    out: GlobalMut<f32>,
    n_cols: u32,
    add: u32,
) {
    let id = ids.get(gpu::block_x() as usize);
    let out = out.from(gpu::block_x() as usize * n_cols as usize);
    let mut col = gpu::block_y() * BLOCK + gpu::thread_x();
    while col < n_cols {
        put(out, col, element::<F>(words, n_cols, id, col), add);
        col += gpu::grid_y() * BLOCK;
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
                /// `out[i] = table[ids[i]]`, added to what is there if `add` is not 0; grid
                /// (rows of `out`, any number of blocks that share one).
                pub fn $embed = run_embed, block BLOCK, shared (), registers 48,
                    barriers 0, shuffles 0, matrix_ops 0;
                pub struct Embed {
                    /// Records of the table
                    words: Global<u32>,
                    /// [n_rows]
                    ids: Global<u32>,
                    /// [n_rows, n_cols]
                    out: GlobalMut<f32>,
                    n_cols: u32,
                    add: u32,
                }
            }
            #[inline(always)]
            fn run_embed(a: Embed) {
                embed::<$format>(a.words, a.ids, a.out, a.n_cols, a.add)
            }
        }
    };
}
crate::for_each_tile_format!(entries);
