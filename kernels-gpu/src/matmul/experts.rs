//! The last product of a mixture of experts, for few tokens: the experts that the router's logits
//! choose, their weighted sum, the residual, and the weights of the next norm.

use super::lone::Chains;
use super::walk::{Store, Walk, tile_of_block, within};
use super::{BLOCK_ROWS, BLOCK_TILES, Input, N_SHARES, PARTIAL_STRIDE, Partial, optional, out_col};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
use crate::moe::{MAX_TOP_K, choose};
use crate::norm::Weighed;
use crate::tile::{PART_COLS, TileFormat, float, k_quants, k_sixteens, legacy};

/// Threads of a block.
pub const BLOCK: u32 = 512;
const N_WARPS: u32 = BLOCK / gpu::WARP;
/// Warps that share an expert.
const WARPS_OF_RANK: u32 = 4;
/// Experts under way.
const RANKS: u32 = N_WARPS / WARPS_OF_RANK;
/// Warps that share a tile.
const WARPS_OF_TILE: u32 = WARPS_OF_RANK / BLOCK_TILES;
/// Shares of a tile's columns that a warp has.
const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;
/// Shared memory of the product.
#[repr(C, align(16))]
pub struct Shared {
    /// [share of the columns][rank][row]
    partial: [[[f32; PARTIAL_STRIDE]; MAX_TOP_K as usize]; N_SHARES as usize],
    /// [rank][row]
    biases: [[f32; BLOCK_ROWS as usize]; MAX_TOP_K as usize],
}

/// What the kernels of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    x: Input,
    router: Global<f32>,
    n_experts: u32,
    top_k: u32,
    bias: Global<f32>,
    residual: Global<f32>,
    out: GlobalMut<f32>,
    n_rows: u32,
    packed: Weighed,
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn experts<F: TileFormat, const AHEAD: usize>(
    words: Global<U32x4>,
    a: Arguments,
    (sums, biases): (SharedArray<f32>, SharedArray<f32>),
) {
    // The gated product before this lets it start after its own wait, so the logits are there.
    let token = gpu::block_y();
    let logits = a.router.from((token * a.n_experts) as usize);
    let chosen = choose(logits, a.n_experts, a.top_k);

    let shape = (a.n_rows, a.x.n_cols);
    // By warp: which rank, which of the block's tiles, which shares of its columns.
    let in_block = gpu::warp() / WARPS_OF_TILE % BLOCK_TILES;
    // One at a time: with this many warps two at once were slower.
    let chains = Chains::<SHARES, 1>::new::<F>(Walk::<SHARES> {
        first: gpu::warp() % WARPS_OF_TILE,
        n_parts: a.x.n_cols.div_ceil(PART_COLS),
    });
    let partial = Partial { sums, n_sets: MAX_TOP_K, n_tokens: 1 };
    let mut rank = gpu::warp() / WARPS_OF_RANK;
    let mut expert = gpu::shuffle_u32(chosen.expert, within(rank, a.top_k));
    let mut tile = tile_of_block::<F>(words, shape, expert, in_block);
    let mut first = chains.ask::<F, AHEAD>(tile);
    gpu::wait_for_previous();

    // Whole warps leave the loop.
    while rank < a.top_k {
        let mut bias = 0.0;
        let is_first = gpu::warp().is_multiple_of(WARPS_OF_RANK);
        if is_first {
            let at = expert as usize * a.n_rows as usize + out_col() as usize;
            bias = optional(a.bias, out_col() < a.n_rows, at);
        }
        let store = Store { partial, set: rank, tile: in_block };
        chains.sums::<F, AHEAD>(tile, first, a.x, token * a.top_k + rank, store);
        if is_first {
            biases.set(rank * BLOCK_ROWS + gpu::lane(), bias);
        }
        rank += RANKS;
        if rank < a.top_k {
            expert = gpu::shuffle_u32(chosen.expert, rank);
            tile = tile_of_block::<F>(words, shape, expert, in_block);
            first = chains.ask::<F, AHEAD>(tile);
        }
    }
    // What the last warp standing needs comes while it waits for the others.
    let (mut residual, mut norm_weight) = (0.0, 0.0);
    if gpu::warp() == 0 {
        let at = token as usize * a.n_rows as usize + out_col() as usize;
        residual = optional(a.residual, out_col() < a.n_rows, at);
        if !a.packed.squares.is_absent() {
            norm_weight = a.packed.weight_of_lane(gpu::block_x());
        }
    }
    gpu::sync_block(); // every warp's sums are in `partial`, and the biases in `biases`
    if gpu::warp() == 0 {
        let value = residual + a.weighted_sum(chosen.weight(), partial, biases);
        if out_col() < a.n_rows {
            a.out.set(token as usize * a.n_rows as usize + out_col() as usize, value);
        }
        if !a.packed.squares.is_absent() {
            a.packed.store_block(token, gpu::block_x(), value, norm_weight);
        }
    }
}

impl Arguments {
    /// The experts' sum of the lane's row; `weights` has the expert of rank j in lane j. All 32 lanes
    /// must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn weighted_sum(self, weights: f32, partial: Partial, biases: SharedArray<f32>) -> f32 {
        let mut value = 0.0;
        let mut rank = 0;
        while rank < self.top_k {
            let weight = gpu::shuffle(weights, rank);
            let down = partial.sum(rank, 0) + biases.get(rank * BLOCK_ROWS + gpu::lane());
            value = gpu::fma(weight, down, value);
            rank += 1;
        }
        value
    }
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        /// For tokens one by one.
        pub mod $experts {
            use super::*;

            kernel! {
                /// `out[t] = residual[t] + sum_j weight_j (w[expert_j] x[t top_k + j] + bias[expert_j])`,
                /// experts and weights as `moe_route` chooses them; grid (blocks of 32 rows, padding
                /// of `packed` included, tokens).
                pub fn $experts = run, block BLOCK, shared Shared,
                    registers 128, barriers 1, shuffles 13 + crate::matmul::lone::shuffles::<$format>(SHARES),
                    matrix_ops crate::matmul::lone::matrix_ops::<$format>(
                        SHARES,
                        <$format as TileFormat>::EXPERTS_AHEAD,
                    ),
                    waits later;
                pub struct Experts {
                    /// Records: [experts, row tiles, records of a row]
                    words: Global<U32x4>,
                    /// Fixed-point rows: [n_tokens * top_k, padded columns / 8]
                    codes: Global<U32x4>,
                    /// Their scale records: [n_tokens * top_k, padded columns / 32]
                    scales: Global<U32x4>,
                    /// Logits that choose each token's experts: [n_tokens, n_experts]
                    router: Global<f32>,
                    /// [experts, n_rows], or absent
                    bias: Global<f32>,
                    /// [n_tokens, n_rows], or absent
                    residual: Global<f32>,
                    /// [n_tokens, n_rows]; may be `residual` itself
                    out: GlobalMut<f32>,
                    /// [n_rows], where `packed_squares` is given
                    norm_weight: Global<f32>,
                    /// `out * norm_weight`: [n_tokens, n_rows], or absent
                    packed_values: GlobalMut<f32>,
                    /// [n_tokens, row_code_bytes(n_rows)]
                    packed_codes: GlobalMut<u8>,
                    /// [n_tokens, row_scales(n_rows)]
                    packed_scales: GlobalMut<U32x4>,
                    /// [n_tokens, row_scales(n_rows)], or absent: nothing is packed
                    packed_squares: GlobalMut<f32>,
                    n_rows: u32,
                    n_cols: u32,
                    n_experts: u32,
                    top_k: u32,
                }
            }

            #[inline(always)]
            fn run(a: Experts) {
                let shared = (shared!(Shared, partial).cast(), shared!(Shared, biases).cast());
                let arguments = Arguments {
                    x: Input {
                        codes: a.codes,
                        scales: a.scales,
                        squares: Global::absent(),
                        n_cols: a.n_cols,
                        eps: 0.0,
                    },
                    router: a.router,
                    n_experts: a.n_experts,
                    top_k: a.top_k,
                    bias: a.bias,
                    residual: a.residual,
                    out: a.out,
                    n_rows: a.n_rows,
                    packed: Weighed {
                        rows: RowsMut {
                            values: a.packed_values,
                            codes: a.packed_codes,
                            scales: a.packed_scales,
                            n_cols: a.n_rows,
                        },
                        squares: a.packed_squares,
                        weight: a.norm_weight,
                    },
                };
                experts::<$format, { <$format as TileFormat>::EXPERTS_AHEAD }>(
                    a.words, arguments, shared,
                )
            }
        }
    };
}
crate::for_each_tile_format!(entries);
