//! Row norms, leaving the rows as matrix products take them, see `fixed16`.
//!
//! RMSNorm is spread over the stages around it, see `Weighed`: whoever makes the rows multiplies them
//! by the weights, and the product behind them by the row's scale. LayerNorm has a block per row; for one token most
//! products do it themselves (`matmul::normed`).

use crate::fixed16::{
    BLOCK_COLS, EncodedStrip, RowsMut, STRIP_COLS, col_of_strip, row_code_bytes, row_scales,
};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x2, U32x4};

/// Rows on their way through an RMS norm: times the norm's weights, not yet by the row's scale. A
/// matrix product is linear, so that its results take the scale instead (`matmul::Input`), and
/// nothing waits for a whole row's sum of squares.
#[derive(Clone, Copy)]
pub(crate) struct Weighed {
    /// `x * weight`
    pub rows: RowsMut,
    /// Sums of the squares of x over each block of 32 columns: [n_rows, row_scales(n_cols)]
    pub squares: GlobalMut<f32>,
    /// [n_cols]
    pub weight: Global<f32>,
}

impl Weighed {
    /// The norm's weight of column `32 block + lane`; 0 past the last.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn weight_of_lane(self, block: u32) -> f32 {
        let col = block * BLOCK_COLS + gpu::lane();
        if col < self.rows.n_cols { self.weight.get(col as usize) } else { 0.0 }
    }

    /// Stores a block of 32 columns of a row: each lane brings x of column `32 block + lane`, and what
    /// `weight_of_lane` gives. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn store_block(self, row: u32, block: u32, x: f32, weight: f32) {
        let col = block * BLOCK_COLS + gpu::lane();
        let x = if col < self.rows.n_cols { x } else { 0.0 };
        let square = gpu::warp_sum(x * x);
        if gpu::lane() == 0 {
            let at = row as usize * self.rows.n_blocks() as usize + block as usize;
            self.squares.set(at, square);
        }
        self.rows.store_block(row, block, x * weight);
    }
}

/// Threads of a block that weighs rows: a warp takes 32 columns at a time.
pub const WEIGH_BLOCK: u32 = 256;

/// Blocks along y of `rms_weigh` that leave each warp one block of columns; any number from 1 on is
/// right.
pub const fn weigh_splits(n_cols: u32) -> u32 {
    row_scales(n_cols).div_ceil(WEIGH_BLOCK / gpu::WARP)
}

kernel! {
    /// `out[r, c] = x[r, c] * weight[c]`, and the sums of squares that the row's RMS scale is made
    /// of, see `Weighed`; the grid is (n_rows, splits).
    pub fn rms_weigh = rms_weigh_body, block WEIGH_BLOCK, shared (), registers 40,
        barriers 0, shuffles 5, matrix_ops 0;
    pub struct RmsWeigh {
        /// [n_rows, n_cols]
        x: Global<f32>,
        /// [n_cols]
        weight: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        /// [n_rows, row_scales(n_cols)]
        squares: GlobalMut<f32>,
        n_cols: u32,
    }
}

#[inline(always)]
fn rms_weigh_body(a: RmsWeigh) {
    let out = Weighed {
        rows: RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols },
        squares: a.squares,
        weight: a.weight,
    };
    let row = gpu::block_x();
    let x = a.x.from(row as usize * a.n_cols as usize);
    let mut block = gpu::block_y() * (WEIGH_BLOCK / gpu::WARP) + gpu::warp();
    // Whole warps leave the loop; there is no block barrier below.
    while block < out.rows.n_blocks() {
        let col = block * BLOCK_COLS + gpu::lane();
        let v = if col < a.n_cols { x.get(col as usize) } else { 0.0 };
        out.store_block(row, block, v, out.weight_of_lane(block));
        block += gpu::grid_y() * (WEIGH_BLOCK / gpu::WARP);
    }
}

/// Threads of a block of `layer_norm`: the most there can be, since a step that has one waits for it.
pub const BLOCK: u32 = 1024;
const N_WARPS: u32 = BLOCK / gpu::WARP;
/// Strips of a warp.
const N_STRIPS: usize = 2;
/// Strips of the longest row.
const MAX_STRIPS: u32 = N_STRIPS as u32 * N_WARPS;
/// Its columns.
pub const MAX_COLS: u32 = MAX_STRIPS * STRIP_COLS;

/// Shared memory of `layer_norm`.
#[repr(C, align(16))]
pub struct Shared {
    sums: [f32; MAX_STRIPS as usize],
    squares: [f32; MAX_STRIPS as usize],
}

kernel! {
    /// `out[r, c] = (x[r, c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]`, mean and variance over
    /// the row; the grid is (n_rows).
    pub fn layer_norm = layer_norm_body, block BLOCK, shared Shared, registers 64,
        barriers 1, shuffles 16 * N_STRIPS as u32 + 10, matrix_ops 0, waits later;
    pub struct LayerNorm {
        /// [n_rows, n_cols]
        x: Global<f32>,
        /// [n_cols]
        weight: Global<f32>,
        /// [n_cols] or absent
        bias: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        /// A multiple of 4, at most `MAX_COLS`
        n_cols: u32,
        eps: f32,
    }
}

#[inline(always)]
fn layer_norm_body(a: LayerNorm) {
    let row = gpu::block_x() as usize;
    let to_norm = ToNorm::<MAX_STRIPS> {
        x: a.x.from(row * a.n_cols as usize),
        weight: a.weight,
        bias: a.bias,
        n_cols: a.n_cols,
        eps: a.eps,
    };
    let weights = to_norm.weights::<N_STRIPS>(N_WARPS);
    gpu::wait_for_previous();
    let sums = [shared!(Shared, sums), shared!(Shared, squares)];
    let codes = a.codes.from(row * row_code_bytes(a.n_cols) as usize).cast::<u32>();
    let scales = a.scales.from(row * row_scales(a.n_cols) as usize);
    let (words, pairs) = (scales.cast::<u32>(), scales.cast::<U32x2>());
    to_norm.norm(N_WARPS, weights, sums, |strip, values| {
        let col = col_of_strip(strip);
        if col < a.n_cols && !a.values.is_absent() {
            let quads = a.values.from(row * a.n_cols as usize).cast::<U32x4>();
            quads.set(col as usize / 4, U32x4(values.map(f32::to_bits)));
        }
        EncodedStrip::of(values).store((strip, a.n_cols), codes, words, pairs);
    });
}

/// A row, and the layer norm that it goes through: up to `STRIPS` strips, 16 or 64.
#[derive(Clone, Copy)]
pub(crate) struct ToNorm<const STRIPS: u32> {
    /// [n_cols]
    pub x: Global<f32>,
    /// [n_cols]
    pub weight: Global<f32>,
    /// [n_cols], or absent
    pub bias: Global<f32>,
    /// A multiple of 4.
    pub n_cols: u32,
    pub eps: f32,
}

/// A lane's columns of a strip.
type Strip = [f32; 4];

/// A lane's weights and biases of a norm, by its warp's strips.
pub(crate) type NormWeights<const N: usize> = [(Strip, Strip); N];

impl<const STRIPS: u32> ToNorm<STRIPS> {
    /// Strip `i` of the warp, of a block of so many warps.
    #[inline(always)]
    fn strip(n_warps: u32, i: usize) -> u32 {
        gpu::warp() + i as u32 * n_warps
    }

    /// The lane's columns of a strip of a row or vector; 0 where it is absent, and past its end.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn of_lane(self, v: Global<f32>, strip: u32) -> Strip {
        let col = col_of_strip(strip);
        if col >= self.n_cols || v.is_absent() {
            return [0.0; 4];
        }
        v.cast::<U32x4>().whole(col as usize / 4).0.map(f32::from_bits)
    }

    /// What no launch writes.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn weights<const N: usize>(self, n_warps: u32) -> NormWeights<N> {
        let mut weights = [([0.0; 4], [0.0; 4]); N];
        unroll!(i < N, {
            let strip = Self::strip(n_warps, i);
            weights[i] = (self.of_lane(self.weight, strip), self.of_lane(self.bias, strip));
        });
        weights
    }

    /// Norms the row by a block of `n_warps` warps, which have up to `N` strips each: `store` gets their columns, those
    /// of the padding behind the row's last strip among them. Blocks of all sizes come to the same bits. Every thread of
    /// the block must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn norm<const N: usize>(
        self,
        n_warps: u32,
        weights: NormWeights<N>,
        sums: [SharedArray<f32>; 2],
        store: impl Fn(u32, Strip),
    ) {
        let mut x = [[0.0; 4]; N];
        unroll!(i < N, { x[i] = self.of_lane(self.x, Self::strip(n_warps, i)) });
        unroll!(i < N, {
            // Whole warps have no such strip, and no time to lose over it.
            if Self::strip(n_warps, i) < self.n_strips() {
                self.leave_sums(Self::strip(n_warps, i), x[i], sums);
            }
        });
        gpu::sync_block(); // every strip's sums are there
        if gpu::warp() >= self.n_strips() {
            return; // a whole warp; there is no block barrier below
        }
        let (mean, scale) = self.moments(sums);
        unroll!(i < N, {
            let strip = Self::strip(n_warps, i);
            if strip < self.n_strips() {
                let mut values = [0.0; 4];
                let (weight, bias) = weights[i];
                // Past the row's end the weight is 0, and the bias.
                unroll!(j < 4, {
                    values[j] = gpu::fma((x[i][j] - mean) * scale, weight[j], bias[j]);
                });
                store(strip, values);
            }
        });
    }

    #[inline(always)]
    fn n_strips(self) -> u32 {
        self.n_cols.div_ceil(STRIP_COLS)
    }

    /// Columns of a strip, and 1 / them; of one behind the row's end 0, and 1.
    #[inline(always)]
    fn cols_of_strip(self, strip: u32) -> (f32, f32) {
        let left = self.n_cols.saturating_sub(strip * STRIP_COLS);
        let n_cols = if left < STRIP_COLS { left } else { STRIP_COLS };
        (n_cols as f32, gpu::reciprocal(if n_cols == 0 { 1 } else { n_cols } as f32))
    }

    /// Leaves the sum of a strip, and of its squares about its own mean, in shared memory. All 32 lanes must reach this
    /// call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn leave_sums(self, strip: u32, x: Strip, [sums, squares]: [SharedArray<f32>; 2]) {
        let [a, b, c, d] = x;
        let sum = gpu::warp_sum((a + b) + (c + d));
        let mean = sum * self.cols_of_strip(strip).1;
        let mut own = 0.0;
        if col_of_strip(strip) < self.n_cols {
            unroll!(j < 4, {
                let off = x[j] - mean;
                own = gpu::fma(off, off, own);
            });
        }
        let about_mean = gpu::warp_sum(own);
        if gpu::lane() == 0 {
            sums.set(strip, sum);
            squares.set(strip, about_mean);
        }
    }

    /// Mean, and 1 / standard deviation, from the strips' sums. To their squares about their own means come those of the
    /// means about the row's: no cancellation in the variance, and one barrier. Chan, Golub, LeVeque: Updating formulae
    /// and a pairwise algorithm for computing sample variances, 1979. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn moments(self, [sums, squares]: [SharedArray<f32>; 2]) -> (f32, f32) {
        // Two strips a lane at most; of up to 16 both halves of the warp have the same, and need not exchange theirs.
        const { assert!(STRIPS == gpu::WARP / 2 || STRIPS == 2 * gpu::WARP) };
        let of_lane = |i: usize| gpu::lane() % STRIPS + i as u32 * gpu::WARP;
        let lanes_sum = |v: f32| {
            if STRIPS > gpu::WARP {
                return gpu::warp_sum(v);
            }
            let mut sum = v;
            unroll!(i < 4, { sum += gpu::shuffle_xor(sum, 8 >> i) });
            sum
        };
        let mut of_strips = [(0.0, 0.0); 2];
        unroll!(i < 2, {
            if i as u32 * gpu::WARP < STRIPS && of_lane(i) < self.n_strips() {
                of_strips[i] = (sums.get(of_lane(i)), squares.get(of_lane(i)));
            }
        });
        let part = gpu::reciprocal(self.n_cols as f32);
        let [first, second] = of_strips.map(|(sum, _)| sum);
        let mean = lanes_sum(first + second) * part;
        let mut all = 0.0;
        unroll!(i < 2, {
            if i as u32 * gpu::WARP < STRIPS {
                let (n_cols, part) = self.cols_of_strip(of_lane(i));
                let (sum, squares) = of_strips[i];
                let off = gpu::fma(sum, part, -mean);
                all += gpu::fma(n_cols * off, off, squares);
            }
        });
        let variance = lanes_sum(all) * part;
        (mean, gpu::inverse_sqrt(variance + self.eps))
    }
}
