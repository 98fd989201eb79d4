//! Row norms, leaving the rows as matrix products take them, see `fixed16`.
//!
//! RMSNorm is spread over the stages around it, see `Weighed`: whoever makes the rows multiplies them
//! by the weights, and the product behind them by the row's scale. LayerNorm has a block per row, or where rows are
//! few several, each of which finds mean and variance of the whole row: a thread holds its columns in registers, so that
//! all its loads are in flight together.

use crate::fixed16::{BLOCK_COLS, RowsMut, row_scales};
use crate::gpu::{self, Global, GlobalMut, U32x4};

/// Threads of a block: the most there can be, because a decode step has one row and waits for it.
pub const BLOCK: u32 = 1024;
/// Columns of the longest row: 8 a thread.
pub const MAX_COLS: u32 = BLOCK * PER_THREAD as u32;
const PER_THREAD: usize = 8;
const N_WARPS: u32 = BLOCK / gpu::WARP;

/// Shared memory of the norms.
#[repr(C, align(16))]
pub struct Shared {
    sums: [f32; N_WARPS as usize],
    squares: [f32; N_WARPS as usize],
}

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

/// Columns whose blocks of 32 a block of `layer_norm` stores where rows are few: more of them wait for each other.
const SPLIT_COLS: u32 = 512;

/// Blocks along y of `layer_norm` that share what is to be stored of a row; any number from 1 on is right.
pub const fn layer_norm_splits(n_cols: u32) -> u32 {
    n_cols.div_ceil(SPLIT_COLS)
}

kernel! {
    /// `out[r, c] = (x[r, c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]`, mean and variance over
    /// the row; the grid is (n_rows, splits).
    pub fn layer_norm = layer_norm_body, block BLOCK, shared Shared, registers 64,
        barriers 2, shuffles 20, matrix_ops 0, waits later;
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
        /// at most `MAX_COLS`
        n_cols: u32,
        eps: f32,
    }
}

#[inline(always)]
fn layer_norm_body(a: LayerNorm) {
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    let row = gpu::block_x();
    let x = a.x.from(row as usize * a.n_cols as usize);
    let mut block = gpu::block_y() + gpu::warp() * gpu::grid_y();
    let (mut weight, mut bias) = (a.of_lane(a.weight, block), a.of_lane(a.bias, block));
    let part = 1.0 / a.n_cols as f32;
    gpu::wait_for_previous();
    let mut own = a.of_lane(x, block);
    let columns = load_columns(x, a.n_cols);

    // The mean first and the squares of what is left: no cancellation in the variance.
    let sum = gpu::block_sum(sum(columns), N_WARPS, shared!(Shared, sums));
    let mean = sum * part;
    let squares = squared_deviations(columns, mean, a.n_cols);
    let variance = gpu::block_sum(squares, N_WARPS, shared!(Shared, squares)) * part;
    let scale = gpu::inverse_sqrt(variance + a.eps);
    // Whole warps leave the loop; there is no block barrier below.
    while block < out.n_blocks() {
        out.store_block(row, block, gpu::fma((own - mean) * scale, weight, bias));
        block += N_WARPS * gpu::grid_y();
        own = a.of_lane(x, block);
        (weight, bias) = (a.of_lane(a.weight, block), a.of_lane(a.bias, block));
    }
}

impl LayerNorm {
    /// Element `32 block + lane` of a row or vector; 0 where it is absent, or past the last.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn of_lane(self, v: Global<f32>, block: u32) -> f32 {
        let col = block * BLOCK_COLS + gpu::lane();
        if col < self.n_cols && !v.is_absent() { v.get(col as usize) } else { 0.0 }
    }
}

/// A thread's columns, of which mean and variance are made: `thread + i BLOCK`.
type Columns = [f32; PER_THREAD];

#[inline(always)]
fn column(i: usize) -> u32 {
    gpu::thread_x() + i as u32 * BLOCK
}

/// The thread's columns of a row, 0 past its end.
#[inline(always)]
fn load_columns(x: Global<f32>, n_cols: u32) -> Columns {
    let mut values = [0.0; PER_THREAD];
    let mut i = 0;
    while i < PER_THREAD {
        if column(i) < n_cols {
            values[i] = x.get(column(i) as usize);
        }
        i += 1;
    }
    values
}

#[inline(always)]
fn sum(y: Columns) -> f32 {
    let mut sum = 0.0;
    let mut i = 0;
    while i < PER_THREAD {
        sum += y[i];
        i += 1;
    }
    sum
}

/// The thread's share of the sum of squared deviations from `mean`.
#[inline(always)]
fn squared_deviations(y: Columns, mean: f32, n_cols: u32) -> f32 {
    let mut sum = 0.0;
    let mut i = 0;
    while i < PER_THREAD {
        if column(i) < n_cols {
            let deviation = y[i] - mean;
            sum = gpu::fma(deviation, deviation, sum);
        }
        i += 1;
    }
    sum
}
