//! The last product of a mixture of experts, for few tokens: the experts that the router's logits
//! choose, their weighted sum, the residual, and the weights of the next norm.

use super::walk::{InputRows, Walk, tile_of_block};
use super::{BLOCK_TILES, Input, N_SHARES, Partial, Shared, optional, out_col};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
use crate::moe::{MAX_TOP_K, choose};
use crate::norm::Weighed;
use crate::tile::{PART_COLS, TileFormat, float, k_quants, legacy};

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
/// Parts under way.
const AHEAD: usize = 2;

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
fn experts<F: TileFormat>(words: Global<U32x4>, a: Arguments, sums: SharedArray<f32>) {
    gpu::wait_for_previous();
    let token = gpu::block_y();
    let logits = a.router.from((token * a.n_experts) as usize);
    let chosen = choose(logits, a.n_experts, a.top_k);

    let shape = (a.n_rows, a.x.n_cols);
    // By warp: which rank, which of the block's tiles, which shares of its columns.
    let in_block = gpu::warp() / WARPS_OF_TILE % BLOCK_TILES;
    let walk = Walk::<SHARES, AHEAD> {
        first: gpu::warp() % WARPS_OF_TILE,
        n_parts: a.x.n_cols.div_ceil(PART_COLS),
    };
    let partial = Partial { sums, n_sets: MAX_TOP_K, n_tokens: 1 };
    let mut rank = gpu::warp() / WARPS_OF_RANK;
    // Whole warps leave the loop.
    while rank < a.top_k {
        let expert = gpu::shuffle_u32(chosen.expert, rank);
        let tile = tile_of_block::<F>(words, shape, expert, in_block);
        let parts = walk.first_parts::<F>(tile);
        let rows = InputRows::<1>::new(a.x.n_cols, 1, |_| token * a.top_k + rank);
        let of_tile = walk.sums::<F, 1>(tile, parts, a.x, rows);
        if gpu::lane().is_multiple_of(4) {
            walk.store_first::<F>(partial, (rank, in_block), &of_tile);
        }
        rank += RANKS;
    }
    gpu::sync_block(); // every warp's sums are in `partial`
    if gpu::warp() == 0 {
        a.store(token, chosen.expert, chosen.weight(), partial);
    }
}

impl Arguments {
    /// Stores the block's 32 rows, a lane each. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn store(self, token: u32, experts: u32, weights: f32, partial: Partial) {
        let row = out_col();
        let inside = row < self.n_rows;
        let mut value = 0.0;
        let mut rank = 0;
        while rank < self.top_k {
            let expert = gpu::shuffle_u32(experts, rank);
            let weight = gpu::shuffle(weights, rank);
            let bias_at = expert as usize * self.n_rows as usize + row as usize;
            let down = partial.sum(rank, 0) + optional(self.bias, inside, bias_at);
            value = gpu::fma(weight, down, value);
            rank += 1;
        }
        let at = token as usize * self.n_rows as usize + row as usize;
        let value = optional(self.residual, inside, at) + value;
        if inside {
            self.out.set(at, value);
        }
        if !self.packed.squares.is_absent() {
            self.packed.store_block(token, gpu::block_x(), value);
        }
    }
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x4:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        /// For tokens one by one.
        pub mod $experts {
            use super::*;

            kernel! {
                /// `out[t] = residual[t] + sum_j weight_j (w[expert_j] x[t top_k + j] + bias[expert_j])`,
                /// experts and weights as `moe_route` chooses them; grid (blocks of 32 rows, padding
                /// of `packed` included, tokens).
                pub fn $experts = run, block BLOCK, shared Shared<{ MAX_TOP_K as usize }, 1>,
                    registers 128, barriers 1, shuffles 23,
                    matrix_ops 2 * SHARES as u32 * <$format as TileFormat>::STEP_PRODUCTS,
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
                let sums = shared!(Shared<{ MAX_TOP_K as usize }, 1>, partial).cast();
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
                experts::<$format>(a.words, arguments, sums)
            }
        }
    };
}
crate::for_each_tile_format!(entries);
