//! Row norms, leaving the rows as matrix products take them, see `fixed16`.
//!
//! RMSNorm is spread over the stages around it, see `Weighed`: whoever makes the rows multiplies them
//! by the weights, and the product behind them by the row's scale. LayerNorm, with and without the
//! residual add before it, has a block per row: a thread holds its values and weights in registers from the first load on, so
//! that the row is read once and all its loads are in flight together.

use crate::fixed16::{BLOCK_COLS, RowsMut, row_scales};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};

/// Threads of a block: the most there can be, because a decode step has one row and waits for it.
pub const BLOCK: u32 = 1024;
/// Columns of the longest row: 8 a thread.
pub const MAX_COLS: u32 = BLOCK * PER_THREAD as u32;
const PER_THREAD: usize = 8;
const N_WARPS: u32 = BLOCK / gpu::WARP;

/// Shared memory of the norms.
#[repr(C, align(16))]
pub struct Shared {
    partial: [f32; N_WARPS as usize],
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

kernel! {
    /// With `y = x + add`: `x = y`, and `out[r, c] = (y[r, c] - mean) / sqrt(variance + eps) *
    /// weight[c] + bias[c]`, mean and variance over the row; a block per row.
    pub fn layer_norm = layer_norm_body, block BLOCK, shared Shared, registers 64,
        barriers 4, shuffles 20, matrix_ops 0, waits later;
    pub struct LayerNorm {
        /// [n_rows, n_cols]; written only where there is `add`
        x: GlobalMut<f32>,
        /// [n_rows, n_cols], or absent: nothing is added and `x` stays as it is
        add: Global<f32>,
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
    let weight = load_vector(a.weight, a.n_cols, 0.0);
    let bias = load_vector(a.bias, a.n_cols, 0.0);
    gpu::wait_for_previous();
    let row = load_row(a.x, a.add, a.n_cols);
    let y = add_row(row, a.x, a.add, a.n_cols);

    // The mean first and the squares of what is left: no cancellation in the variance.
    let partial: SharedArray<f32> = shared!(Shared, partial);
    let mean = gpu::block_sum(sum(y), N_WARPS, partial) / a.n_cols as f32;
    let centred = subtract(y, mean, a.n_cols);
    let scale = scale_of(sum_of_squares(centred), a.n_cols, a.eps);
    store_row(out, normalised(centred, scale, weight, bias));
}

/// A thread's columns: `thread + i BLOCK`.
type Columns = [f32; PER_THREAD];

#[inline(always)]
fn column(i: usize) -> u32 {
    gpu::thread_x() + i as u32 * BLOCK
}

/// A row before the norm: `add` is 0 where it is absent.
#[derive(Clone, Copy)]
struct Row {
    x: Columns,
    add: Columns,
}

#[inline(always)]
fn load_row(x: GlobalMut<f32>, add: Global<f32>, n_cols: u32) -> Row {
    let start = gpu::block_x() as usize * n_cols as usize;
    let x = load_columns(n_cols, 0.0, |col| x.get(start + col));
    let n_added = if add.is_absent() { 0 } else { n_cols };
    Row { x, add: load_columns(n_added, 0.0, |col| add.get(start + col)) }
}

/// The sum of the row, which becomes `x` where something was added.
#[inline(always)]
fn add_row(row: Row, x: GlobalMut<f32>, add: Global<f32>, n_cols: u32) -> Columns {
    if add.is_absent() {
        return row.x;
    }
    let start = gpu::block_x() as usize * n_cols as usize;
    let mut y = row.x;
    let mut i = 0;
    while i < PER_THREAD {
        y[i] += row.add[i];
        if column(i) < n_cols {
            x.set(start + column(i) as usize, y[i]);
        }
        i += 1;
    }
    y
}

/// The thread's columns of a vector, `default` where it is absent or the row has ended.
#[inline(always)]
fn load_vector(v: Global<f32>, n_cols: u32, default: f32) -> Columns {
    let n_cols = if v.is_absent() { 0 } else { n_cols };
    load_columns(n_cols, default, |col| v.get(col))
}

/// `get` of the thread's columns below `n_cols`, `default` for the others.
#[inline(always)]
fn load_columns(n_cols: u32, default: f32, get: impl Fn(usize) -> f32) -> Columns {
    let mut values = [default; PER_THREAD];
    let mut i = 0;
    while i < PER_THREAD {
        if column(i) < n_cols {
            values[i] = get(column(i) as usize);
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

#[inline(always)]
fn sum_of_squares(y: Columns) -> f32 {
    let mut sum = 0.0;
    let mut i = 0;
    while i < PER_THREAD {
        sum = gpu::fma(y[i], y[i], sum);
        i += 1;
    }
    sum
}

/// `y - mean` inside the row, still 0 past its end.
#[inline(always)]
fn subtract(y: Columns, mean: f32, n_cols: u32) -> Columns {
    let mut centred = [0.0; PER_THREAD];
    let mut i = 0;
    while i < PER_THREAD {
        if column(i) < n_cols {
            centred[i] = y[i] - mean;
        }
        i += 1;
    }
    centred
}

/// `1 / sqrt(mean + eps)` over the whole row, from each thread's sum of squares.
#[inline(always)]
fn scale_of(sum_sq: f32, n_cols: u32, eps: f32) -> f32 {
    let partial: SharedArray<f32> = shared!(Shared, partial);
    let sum_sq = gpu::block_sum(sum_sq, N_WARPS, partial);
    1.0 / gpu::sqrt(sum_sq / n_cols as f32 + eps)
}

/// `y * scale * weight + bias`.
#[inline(always)]
fn normalised(y: Columns, scale: f32, weight: Columns, bias: Columns) -> Columns {
    let mut out = [0.0; PER_THREAD];
    let mut i = 0;
    while i < PER_THREAD {
        out[i] = gpu::fma(y[i] * scale, weight[i], bias[i]);
        i += 1;
    }
    out
}

/// Stores each of the thread's columns. Written out: a loop of this size is not unrolled, and would
/// put the registers into memory.
#[inline(always)]
fn store_row(out: RowsMut, values: Columns) {
    store_columns(out, 0, values[0]);
    store_columns(out, 1, values[1]);
    store_columns(out, 2, values[2]);
    store_columns(out, 3, values[3]);
    store_columns(out, 4, values[4]);
    store_columns(out, 5, values[5]);
    store_columns(out, 6, values[6]);
    store_columns(out, 7, values[7]);
    const _: () = assert!(PER_THREAD == 8);
}

/// Stores the warp's columns number `i`.
#[inline(always)]
fn store_columns(out: RowsMut, i: u32, value: f32) {
    let block = gpu::warp() + i * N_WARPS;
    // A warp stays or goes as one: the block of 32 columns is its own.
    if block < out.n_blocks() {
        out.store_block(gpu::block_x(), block, value);
    }
}
