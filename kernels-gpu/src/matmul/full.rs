//! Weights and activations in f32: for files in full precision, and for routers.

use super::{Group, Grouping, optional, rms_scale, squares_of_lane};
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};

/// Threads of a block.
const BLOCK: u32 = 512;
const N_WARPS: u32 = BLOCK / gpu::WARP;
/// Tokens of a group.
pub const F32_TOKENS: u32 = 4;
const TOKENS: usize = F32_TOKENS as usize;
/// Columns of a thread whose loads are in flight together.
const CHUNK: usize = 8;
const CHUNK_COLS: u32 = CHUNK as u32 * BLOCK;

/// Shared memory of the product.
#[repr(C, align(16))]
pub struct SharedF32 {
    /// [token][warp]
    partial: [[f32; N_WARPS as usize]; TOKENS],
}

kernel! {
    /// Product with F32 weights, in rows, and f32 activations; grid (rows, groups of
    /// tokens: four each where `groups` is absent).
    pub fn matmul_f32_x4 = matmul_f32, block BLOCK, shared SharedF32, registers 64,
        barriers 2, shuffles 25, matrix_ops 0, min_blocks 2, waits and_lets;
    pub struct MatmulF32 {
        /// [experts, n_rows, n_cols]
        weights: Global<f32>,
        /// [n_x_rows, n_cols]
        x: Global<f32>,
        /// Sums of squares of the input's blocks, where its RMS scale is still to come:
        /// [n_x_rows, row_scales(n_cols)]; or absent
        squares: Global<f32>,
        /// [experts, n_rows], or absent
        bias: Global<f32>,
        /// As `out`, added to it; or absent
        residual: Global<f32>,
        /// [n_out_rows, out_stride]
        out: GlobalMut<f32>,
        /// (expert, first slot, slots) of each group; absent: all tokens in order
        groups: Global<U32x4>,
        /// Output rows in the order of the groups; absent: in order
        slots: Global<u32>,
        n_rows: u32,
        n_cols: u32,
        n_tokens: u32,
        slots_per_row: u32,
        out_stride: u32,
        /// Of the input's norm
        eps: f32,
    }
}

#[inline(always)]
fn matmul_f32(a: MatmulF32) {
    let grouping = Grouping {
        groups: a.groups,
        slots: a.slots,
        n_tokens: a.n_tokens,
        slots_per_row: a.slots_per_row,
    };
    let dense = a.groups.is_absent();
    if !dense {
        gpu::wait_for_previous(); // the launch before made the groups
        gpu::let_next_start();
    }
    let group = grouping.group(F32_TOKENS);
    let weights = a.weights.from(a.weights_row(group) * a.n_cols as usize);
    let mut first_weights = load_chunk(weights, a.n_cols, 0);
    if dense {
        gpu::wait_for_previous();
        gpu::let_next_start(); // not before, as with `plain::LEADS`: the launch behind would take places of the one before
    }
    let mut first = 0;
    while first < group.count {
        products(a, grouping, group, first, weights, first_weights);
        first += F32_TOKENS;
        gpu::sync_block(); // `partial` has been read
        if first < group.count {
            first_weights = load_chunk(weights, a.n_cols, 0); // kept, they would take the registers of rows
        }
    }
}

/// The thread's columns `start + thread + i BLOCK`; 0 past the row's end.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn load_chunk(row: Global<f32>, n_cols: u32, start: u32) -> [f32; CHUNK] {
    let mut values = [0.0; CHUNK];
    unroll!(i < 8, {
        let col = start + gpu::thread_x() + i as u32 * BLOCK;
        if col < n_cols {
            values[i] = row.get(col as usize);
        }
    });
    values
}

/// The products of tokens `first..first + F32_TOKENS` of a group.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn products(
    a: MatmulF32,
    grouping: Grouping,
    group: Group,
    first: u32,
    weights: Global<f32>,
    first_weights: [f32; CHUNK],
) {
    // A warp a token at the end; what it needs then is asked for now, behind the first of x.
    let token = first + gpu::warp();
    let around = || {
        if gpu::warp() < F32_TOKENS && token < group.count {
            Around::ask(&a, grouping, group, token)
        } else {
            Around::NOTHING
        }
    };
    let left = group.count - first;
    let row = |token: usize| {
        // Where there is no such token the last one stands in: without branches all loads are under way at once.
        let token = if (token as u32) < left { token as u32 } else { left - 1 };
        let x_row = grouping.rows(group, first + token).1;
        a.x.from(x_row as usize * a.n_cols as usize)
    };
    let (sums, around) = if left == 1 {
        let ([sum], around) = sums_of(a.n_cols, weights, first_weights, [row(0)], around);
        ([sum, 0.0, 0.0, 0.0], around)
    } else {
        sums_of(a.n_cols, weights, first_weights, [0, 1, 2, 3].map(row), around)
    };

    let partial: SharedArray<f32> = shared!(SharedF32, partial).cast();
    unroll!(token < 4, {
        let sum = gpu::warp_sum(sums[token]);
        if gpu::lane() == 0 {
            partial.set(token as u32 * N_WARPS + gpu::warp(), sum);
        }
    });
    gpu::sync_block(); // every warp's sums are in `partial`
    // Whole warps skip what follows.
    if gpu::warp() < F32_TOKENS && token < group.count {
        let partial = partial.from(gpu::warp() * N_WARPS);
        store(a, grouping.slot(group, token), around, partial);
    }
}

/// The thread's share of the sums of `N` rows of x, and what `around` gives: of one row it is waited for while the first
/// columns are under way.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn sums_of<const N: usize, R>(
    n_cols: u32,
    weights: Global<f32>,
    first_weights: [f32; CHUNK],
    rows: [Global<f32>; N],
    around: impl Fn() -> R,
) -> ([f32; N], R) {
    let mut early = None;
    let mut sums = [0.0f32; N];
    let mut w = first_weights;
    let mut start = 0;
    loop {
        let x = rows.map(|row| load_chunk(row, n_cols, start));
        // Several rows leave it no registers.
        if N == 1 && start == 0 {
            early = Some(around());
        }
        unroll!(token < N, {
            unroll!(i < 8, {
                sums[token] = gpu::fma(w[i], x[token][i], sums[token]);
            });
        });
        start += CHUNK_COLS;
        if start >= n_cols {
            return (sums, early.unwrap_or_else(around));
        }
        w = load_chunk(weights, n_cols, start);
    }
}

/// What the block's row of a token is put together with.
#[derive(Clone, Copy)]
struct Around {
    squares_of_lane: f32,
    bias: f32,
    residual: f32,
}

impl Around {
    /// Of no token.
    const NOTHING: Around = Around { squares_of_lane: 0.0, bias: 0.0, residual: 0.0 };

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn ask(a: &MatmulF32, grouping: Grouping, group: Group, token: u32) -> Around {
        let (out_row, x_row) = grouping.rows(group, token);
        let bias = optional(a.bias, true, a.weights_row(group));
        let residual = optional(a.residual, true, a.place(out_row));
        let [squares_of_lane] = if a.squares.is_absent() {
            [0.0]
        } else {
            squares_of_lane(a.squares, [x_row], a.n_cols)
        };
        Around { squares_of_lane, bias, residual }
    }
}

impl MatmulF32 {
    /// The block's row of the weights of a group's expert.
    #[inline(always)]
    fn weights_row(&self, group: Group) -> usize {
        group.expert as usize * self.n_rows as usize + gpu::block_x() as usize
    }

    /// Where the block's row of an output row stands.
    #[inline(always)]
    fn place(&self, out_row: u32) -> usize {
        out_row as usize * self.out_stride as usize + gpu::block_x() as usize
    }
}

/// Stores the block's row of an output row. All 32 lanes must reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store(a: MatmulF32, out_row: u32, around: Around, partial: SharedArray<f32>) {
    let factor = if a.squares.is_absent() {
        1.0
    } else {
        rms_scale(around.squares_of_lane, a.n_cols, a.eps)
    };
    let mut sum = 0.0;
    const _: () = assert!(N_WARPS == 16);
    unroll!(warp < 16, { sum += partial.get(warp as u32) });
    if gpu::lane() == 0 {
        a.out.set(a.place(out_row), gpu::fma(sum, factor, around.bias) + around.residual);
    }
}
