//! Row norms: RMSNorm and LayerNorm, with and without the residual add before them.

use crate::gpu::{self, Global, GlobalMut, SharedArray};

/// Threads of a block: a row of 2880 gives each 12 elements.
pub const BLOCK: u32 = 256;
const N_WARPS: u32 = BLOCK / gpu::WARP;

/// Shared memory of the norms.
#[repr(C, align(16))]
pub struct Shared {
    partial: [f32; N_WARPS as usize],
}

kernel! {
    /// `out[r, c] = x[r, c] * weight[c] / sqrt(mean_c(x[r, c]^2) + eps)`; a block per row.
    pub fn rms_norm_f32 = rms_norm, block BLOCK, shared Shared, registers 40,
        barriers 2, shuffles 10, matrix_ops 0;
    pub struct RmsNormF32 {
        /// [n_rows, n_cols]
        x: Global<f32>,
        /// [n_cols]
        weight: Global<f32>,
        /// [n_rows, n_cols]; may be `x` itself
        out: GlobalMut<f32>,
        n_cols: u32,
        eps: f32,
    }
}

#[inline(always)]
fn rms_norm(a: RmsNormF32) {
    let row = a.x.from(gpu::block_x() as usize * a.n_cols as usize);
    let out = a.out.from(gpu::block_x() as usize * a.n_cols as usize);
    let mut sum_sq = 0.0;
    let mut col = gpu::thread_x();
    while col < a.n_cols {
        let v = row.get(col as usize);
        sum_sq = gpu::fma(v, v, sum_sq);
        col += BLOCK;
    }
    let partial: SharedArray<f32> = shared!(Shared, partial);
    let sum_sq = gpu::block_sum(sum_sq, N_WARPS, partial);
    let scale = 1.0 / gpu::sqrt(sum_sq / a.n_cols as f32 + a.eps);

    let mut col = gpu::thread_x();
    while col < a.n_cols {
        out.set(col as usize, row.get(col as usize) * scale * a.weight.get(col as usize));
        col += BLOCK;
    }
}
