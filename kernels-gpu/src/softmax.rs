//! The softmax of whole rows.

use crate::gpu::{self, Global, GlobalMut};

/// Threads of a block.
pub const BLOCK: u32 = 256;
const N_WARPS: u32 = BLOCK / gpu::WARP;

/// Shared memory of the softmax.
#[repr(C, align(16))]
pub struct Shared {
    largest: [f32; N_WARPS as usize],
    sums: [f32; N_WARPS as usize],
}

kernel! {
    /// `out[r, c] = e^(x[r, c] - max x[r]) / sum_c e^(x[r, c] - max x[r])`; a block per row. A row
    /// must have a finite element.
    pub fn softmax_f32 = softmax, block BLOCK, shared Shared, registers 40,
        barriers 2, shuffles 20, matrix_ops 0;
    pub struct SoftmaxF32 {
        /// [n_rows, n_cols]
        x: Global<f32>,
        /// [n_rows, n_cols]; may be `x` itself
        out: GlobalMut<f32>,
        n_cols: u32,
    }
}

#[inline(always)]
fn softmax(a: SoftmaxF32) {
    let row = a.x.from(gpu::block_x() as usize * a.n_cols as usize);
    let out = a.out.from(gpu::block_x() as usize * a.n_cols as usize);
    let first = gpu::thread_x();
    let mut largest = f32::NEG_INFINITY;
    let mut col = first;
    while col < a.n_cols {
        largest = largest.max(row.get(col as usize));
        col += BLOCK;
    }
    let largest = gpu::block_max(largest, N_WARPS, shared!(Shared, largest));

    let mut sum = 0.0;
    let mut col = first;
    while col < a.n_cols {
        sum += gpu::exp(row.get(col as usize) - largest);
        col += BLOCK;
    }
    let scale = 1.0 / gpu::block_sum(sum, N_WARPS, shared!(Shared, sums));

    let mut col = first;
    while col < a.n_cols {
        out.set(col as usize, gpu::exp(row.get(col as usize) - largest) * scale);
        col += BLOCK;
    }
}
