//! Element-wise stages between matrix products: gated units, GELU, and plain packing. Each reads f32
//! rows and leaves them as the products take them, see `fixed16`.
//!
//! A warp takes 32 columns of a row at a time. The grid is (n_rows, splits): any number of splits
//! from 1 on is right, `splits` gives each warp one such group, which is quickest for few rows.

use crate::fixed16::{self, RowsMut};
use crate::gpu::{self, Global, GlobalMut, U32x4};

/// Threads of a block.
pub const BLOCK: u32 = 256;
const N_WARPS: u32 = BLOCK / gpu::WARP;

/// Blocks along y that leave each warp one group of 32 columns.
pub const fn splits(n_cols: u32) -> u32 {
    fixed16::row_scales(n_cols).div_ceil(N_WARPS)
}

kernel! {
    /// `out[r, c] = silu(gate[r, c]) * up[r, c]`.
    pub fn silu_gate = silu_gate_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct SiluGate {
        /// [n_rows, in_stride], columns from `n_cols` on unread
        gate: Global<f32>,
        /// [n_rows, in_stride], columns from `n_cols` on unread
        up: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        in_stride: u32,
        n_cols: u32,
    }
}

#[inline(always)]
fn silu_gate_body(a: SiluGate) {
    let (gate, up) = (in_row(a.gate, a.in_stride), in_row(a.up, a.in_stride));
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    store_row(out, |col| silu(gate.get(col)) * up.get(col));
}

kernel! {
    /// The gated unit of gpt-oss: with `g = min(gate, limit)` and `u = clamp(up, -limit, limit)`,
    /// `out[r, c] = g * sigmoid(alpha g) * (u + 1)`. The model has alpha 1.702 and limit 7.
    pub fn swiglu_oai = swiglu_oai_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct SwigluOai {
        /// [n_rows, in_stride], columns from `n_cols` on unread
        gate: Global<f32>,
        /// [n_rows, in_stride], columns from `n_cols` on unread
        up: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        in_stride: u32,
        n_cols: u32,
        alpha: f32,
        limit: f32,
    }
}

#[inline(always)]
fn swiglu_oai_body(a: SwigluOai) {
    let (gate, up) = (in_row(a.gate, a.in_stride), in_row(a.up, a.in_stride));
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    store_row(out, |col| clamped_swiglu(gate.get(col), up.get(col), a.alpha, a.limit));
}

kernel! {
    /// `out[r, c] = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` with `x = x[r, c]`.
    pub fn gelu_tanh = gelu_tanh_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct GeluTanh {
        /// [n_rows, in_stride], columns from `n_cols` on unread
        x: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        in_stride: u32,
        n_cols: u32,
    }
}

#[inline(always)]
fn gelu_tanh_body(a: GeluTanh) {
    let x = in_row(a.x, a.in_stride);
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    store_row(out, |col| gelu_of_tanh(x.get(col)));
}

kernel! {
    /// `out[r, c] = x / 2 (1 + erf(x / sqrt(2)))` with `x = x[r, c]`.
    pub fn gelu_erf = gelu_erf_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct GeluErf {
        /// [n_rows, in_stride], columns from `n_cols` on unread
        x: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        in_stride: u32,
        n_cols: u32,
    }
}

#[inline(always)]
fn gelu_erf_body(a: GeluErf) {
    let x = in_row(a.x, a.in_stride);
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    store_row(out, |col| {
        let v = x.get(col);
        v * normal_cdf(v)
    });
}

kernel! {
    /// `out[r, c] = x[r, c]`: rows that no other stage has packed.
    pub fn pack_rows = pack_rows_body, block BLOCK, shared (), registers 32,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct PackRows {
        /// [n_rows, in_stride], columns from `n_cols` on unread
        x: Global<f32>,
        /// [n_rows, n_cols] or absent
        values: GlobalMut<f32>,
        /// [n_rows, row_code_bytes(n_cols)]
        codes: GlobalMut<u8>,
        /// [n_rows, row_scales(n_cols)]
        scales: GlobalMut<U32x4>,
        in_stride: u32,
        n_cols: u32,
    }
}

#[inline(always)]
fn pack_rows_body(a: PackRows) {
    let x = in_row(a.x, a.in_stride);
    let out = RowsMut { values: a.values, codes: a.codes, scales: a.scales, n_cols: a.n_cols };
    store_row(out, |col| x.get(col));
}

/// The block's row of an input.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn in_row(x: Global<f32>, stride: u32) -> Global<f32> {
    x.from(gpu::block_x() as usize * stride as usize)
}

/// Stores `value(col)` for the warp's share of the block's row.
#[inline(always)]
fn store_row(out: RowsMut, value: impl Fn(usize) -> f32) {
    let row = gpu::block_x();
    let mut block = gpu::block_y() * N_WARPS + gpu::warp();
    // Whole warps leave the loop; there is no block barrier below.
    while block < out.n_blocks() {
        let col = block * fixed16::BLOCK_COLS + gpu::lane();
        let v = if col < out.n_cols { value(col as usize) } else { 0.0 };
        out.store_block(row, block, v);
        block += gpu::grid_y() * N_WARPS;
    }
}

/// `x sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * gpu::sigmoid(x)
}

/// See `SwigluOai`. Comparisons rather than min and max, so that a NaN stays one.
#[inline(always)]
pub(crate) fn clamped_swiglu(gate: f32, up: f32, alpha: f32, limit: f32) -> f32 {
    let g = if gate > limit { limit } else { gate };
    let u = if up > limit { limit } else { up };
    let u = if u < -limit { -limit } else { u };
    g * gpu::sigmoid(alpha * g) * (u + 1.0)
}

/// `(1 + tanh z) / 2` is `sigmoid(2 z)`, which keeps its precision where tanh is near -1.
#[inline(always)]
pub(crate) fn gelu_of_tanh(x: f32) -> f32 {
    const TWO_SQRT_2_OVER_PI: f32 = 1.595_769;
    let z = TWO_SQRT_2_OVER_PI * x * gpu::fma(0.044_715 * x, x, 1.0);
    x * gpu::sigmoid(z)
}

/// `(1 + erf(x / sqrt(2))) / 2`, to within a relative 2^-20 + x^2 2^-23.
///
/// `erfc(t) = e^(-t^2) k P(k)` with `k = 1 / (1 + 0.4 t)`: P is a fit over t in 0..10 whose relative
/// error is 6.2e-8, 3.4e-7 with its roundings in f32. Past 10, `e^(-t^2)` is below 2^-144.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let t = x.abs() * core::f32::consts::FRAC_1_SQRT_2;
    let k = 1.0 / gpu::fma(0.4, t, 1.0);
    let p = gpu::fma(0.041_253_33, k, -0.140_320_63);
    let p = gpu::fma(p, k, 0.083_990_1);
    let p = gpu::fma(p, k, 0.087_961_2);
    let p = gpu::fma(p, k, 0.079_758_59);
    let p = gpu::fma(p, k, 0.193_392_34);
    let p = gpu::fma(p, k, 0.201_887_8);
    let p = gpu::fma(p, k, 0.226_443_08);
    let p = gpu::fma(p, k, 0.225_634_23);
    let upper_tail = 0.5 * p * k * gpu::exp(-0.5 * x * x);
    if x < 0.0 { upper_tail } else { 1.0 - upper_tail }
}
