//! One matrix for one token whose layer norm is still to come: every block finds the row's mean and variance for itself,
//! and leaves the normed row in its shared memory. A launch less stands between the row and the product.

#[cfg(not(target_arch = "nvptx64"))]
use super::alone::thread_registers;
use super::alone::{Alone, block_threads, n_sets, shares};
use super::lone::{CODE_WORDS, RowWords, SCALE_WORDS};
#[cfg(not(target_arch = "nvptx64"))]
use super::lone::{matrix_ops, shuffles};
use super::{N_SHARES, PARTIAL_STRIDE, optional};
use crate::activation::gelu_of_tanh;
use crate::fixed16::{EncodedStrip, RowsMut, STRIP_COLS};
use crate::gpu::{self, Global, GlobalMut, U32x2, U32x4, WARP};
use crate::norm::ToNorm;
use crate::tile::{PART_COLS, TileFormat, float, legacy};

/// Columns of the longest row.
pub const MAX_COLS: u32 = 2048;
const MAX_STRIPS: usize = (MAX_COLS / STRIP_COLS) as usize;
const MAX_PARTS: usize = (MAX_COLS / PART_COLS) as usize;

/// Shared memory of a product of so many sets of sums.
#[repr(C, align(16))]
pub struct Shared<const SETS: usize> {
    /// [share of the columns][set][row]
    partial: [[[f32; PARTIAL_STRIDE]; SETS]; N_SHARES as usize],
    /// The normed row's.
    codes: [u32; MAX_PARTS * CODE_WORDS as usize],
    scales: [u32; MAX_PARTS * SCALE_WORDS as usize],
    /// By strip, for the row's moments.
    sums: [f32; MAX_STRIPS],
    squares: [f32; MAX_STRIPS],
}

macro_rules! entry {
    ($name:ident, $format:ty, tiles $tiles:literal, ahead $ahead:expr, together $together:expr) => {
        /// For so many tiles a block.
        pub mod $name {
            use super::*;
            const AHEAD: usize = $ahead;
            const TOGETHER: usize = $together;
            const SHARES: usize = shares($tiles);
            const N_SETS: usize = n_sets($tiles);
            const N_WARPS: u32 = block_threads($tiles) / WARP;
            /// Strips of the row that a warp norms.
            const N_STRIPS: usize = MAX_STRIPS.div_ceil(N_WARPS as usize);

            kernel! {
                /// `out = w norm(x) + bias`, or `packed = gelu(w norm(x) + bias)`, for one token; grid (blocks of rows,
                /// padding of `packed` included).
                pub fn $name = run, block block_threads($tiles), shared Shared<N_SETS>,
                    registers thread_registers($tiles), barriers 3,
                    shuffles 16 * N_STRIPS as u32 + 8 + shuffles::<$format>(SHARES),
                    matrix_ops matrix_ops::<$format>(SHARES, AHEAD),
                    min_blocks 1, percent <$format as TileFormat>::SHARED_PERCENT, waits and_lets;
                pub struct Normed {
                    /// Records: [row tiles, records of a row]
                    words: Global<U32x4>,
                    /// [n_cols]
                    x: Global<f32>,
                    /// Of the norm: [n_cols]
                    norm_weight: Global<f32>,
                    /// Of the norm: [n_cols], or absent
                    norm_bias: Global<f32>,
                    /// [n_rows], or absent
                    bias: Global<f32>,
                    /// [n_rows], or absent
                    out: GlobalMut<f32>,
                    /// [n_rows], or absent
                    packed_values: GlobalMut<f32>,
                    /// [row_code_bytes(n_rows)], or absent
                    packed_codes: GlobalMut<u8>,
                    /// [row_scales(n_rows)], with `packed_codes`
                    packed_scales: GlobalMut<U32x4>,
                    n_rows: u32,
                    /// A multiple of 4, at most `MAX_COLS`
                    n_cols: u32,
                    /// Of the norm
                    eps: f32,
                    /// As `plain` has it: `ALONE`, `LEADS` or `BESIDE`
                    overlap: u32,
                }
            }

            #[inline(always)]
            fn run(a: Normed) {
                let to_norm = ToNorm::<{ MAX_STRIPS as u32 }> {
                    x: a.x,
                    weight: a.norm_weight,
                    bias: a.norm_bias,
                    n_cols: a.n_cols,
                    eps: a.eps,
                };
                let alone = Alone {
                    words: a.words,
                    n_rows: a.n_rows,
                    n_cols: a.n_cols,
                    overlap: a.overlap,
                    sums: shared!(Shared<N_SETS>, partial).cast(),
                };
                let packed = RowsMut {
                    values: a.packed_values,
                    codes: a.packed_codes,
                    scales: a.packed_scales,
                    n_cols: a.n_rows,
                };
                alone.multiply::<$format, $tiles, SHARES, TOGETHER, AHEAD, _, _, _>(
                    || to_norm.weights::<N_STRIPS>(N_WARPS),
                    |weights| {
                        let codes = shared!(Shared<N_SETS>, codes);
                        let scales = shared!(Shared<N_SETS>, scales);
                        let pairs = scales.cast::<U32x2>();
                        let sums =
                            [shared!(Shared<N_SETS>, sums), shared!(Shared<N_SETS>, squares)];
                        to_norm.norm(N_WARPS, weights, sums, |strip, values| {
                            EncodedStrip::of(values).store((strip, a.n_cols), codes, scales, pairs);
                        });
                        gpu::sync_block(); // the row is there
                        RowWords { codes, scales }
                    },
                    |row| optional(a.bias, row.exists, row.at as usize),
                    |row, sum, bias| {
                        let value = sum + bias;
                        if row.exists && !a.out.is_absent() {
                            a.out.set(row.at as usize, value);
                        }
                        if !a.packed_codes.is_absent() {
                            let block = gpu::block_x() * N_SETS as u32 + gpu::warp();
                            packed.store_block(0, block, gelu_of_tanh(value));
                        }
                    },
                )
            }
        }
    };
}

macro_rules! entries {
    ($format:ty, $ggml:ident, $norm32:ident, $norm64:ident) => {
        entry!($norm32, $format, tiles 2, ahead <$format as TileFormat>::DEEP_AHEAD,
            together <$format as TileFormat>::DEEP_TOGETHER);
        entry!($norm64, $format, tiles 4, ahead <$format as TileFormat>::LONE_AHEAD,
            together <$format as TileFormat>::LONE_TOGETHER);
    };
}
crate::for_each_normed_format!(entries);
