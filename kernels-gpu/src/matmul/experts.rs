//! The last product of a mixture of experts, for few tokens: the experts that the router's logits
//! choose, their weighted sum, the residual, and the weights of the next norm. Each expert has a block of its
//! own, so that all multiprocessors share the work, and one of a row block's experts adds them up.

use super::lone::Chains;
use super::walk::{Store, Walk, tile_at};
use super::{BLOCK_ROWS, BLOCK_TILES, Input, N_SHARES, PARTIAL_STRIDE, Partial, optional, out_col};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Detour, Gather, Global, GlobalMut, SharedArray, U32x4};
use crate::moe::{MAX_TOP_K, choose};
use crate::norm::Weighed;
use crate::tile::{PART_COLS, TileFormat, float, k_quants, k_sixteens, legacy};

/// Threads of a block.
pub const BLOCK: u32 = 128;
const N_WARPS: u32 = BLOCK / gpu::WARP;
/// Warps that share a tile.
const WARPS_OF_TILE: u32 = N_WARPS / BLOCK_TILES;
/// Shares of a tile's columns that a warp has.
const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;
/// Blocks that a multiprocessor holds, so that they spread over all of them.
#[cfg(not(target_arch = "nvptx64"))]
const BLOCKS: u32 = 3;

/// Shared memory of the product.
#[repr(C, align(16))]
pub struct Shared {
    /// [share of the columns][row]
    partial: [[f32; PARTIAL_STRIDE]; N_SHARES as usize],
    /// [rank][row]: what each expert gives.
    gathered: [[f32; BLOCK_ROWS as usize]; MAX_TOP_K as usize],
    /// The counter that says that they are there.
    phase: [u64; 1],
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
    parts: GlobalMut<f32>,
    arrivals: GlobalMut<u32>,
    n_rows: u32,
    packed: Weighed,
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn experts<F: TileFormat, const AHEAD: usize, const TOGETHER: usize>(
    words: Global<U32x4>,
    a: Arguments,
    sums: SharedArray<f32>,
    gather: Gather,
) {
    gather.begin();
    // The gated product before this lets it start after its own wait, so the logits are there, and the residual, which
    // the launch before the router's wrote.
    let (token, rank) = (gpu::block_y(), gpu::block_z());
    let logits = a.router.from((token * a.n_experts) as usize);
    let chosen = choose(logits, a.n_experts, a.top_k);
    let expert = gpu::shuffle_u32(chosen.expert, rank);

    // By warp: which of the block's tiles, which shares of its columns.
    let in_block = gpu::warp() / WARPS_OF_TILE;
    let chains = Chains::<SHARES, TOGETHER>::new::<F>(Walk::<SHARES> {
        first: gpu::warp() % WARPS_OF_TILE,
        n_parts: a.x.n_cols.div_ceil(PART_COLS),
    });
    let tile = tile_at::<F>(
        words,
        (a.n_rows, a.x.n_cols),
        expert,
        gpu::block_x() * BLOCK_TILES + in_block,
    );
    let first = chains.ask::<F, AHEAD>(tile);
    let around = a.around(token, expert);
    gpu::wait_for_previous();

    let partial = Partial::new(sums, 1, 1);
    let store = Store { partial, set: 0, tile: in_block };
    let slot = token * a.top_k + rank;
    chains.sums::<F, _, _, AHEAD>(tile, first, a.x.row(slot), || (), store);
    gpu::sync_block(); // every warp's sums are in `partial`
    let (n_words, detour) = a.detour(token);
    let word = |_| partial.sum(0, 0) + around.bias;
    let has_all = gather.hand_over(BLOCK, n_words, word, detour);
    if has_all && gpu::warp() == 0 {
        let value = around.residual + a.weighted_sum(chosen.weight(), gather.gathered);
        if out_col() < a.n_rows {
            a.out.set(token as usize * a.n_rows as usize + out_col() as usize, value);
        }
        if !a.packed.squares.is_absent() {
            a.packed.store_block(token, gpu::block_x(), value, around.norm_weight);
        }
    }
}

/// What the first warp's lanes put their row together with, asked for long before it is needed.
#[derive(Clone, Copy)]
struct Around {
    bias: f32,
    residual: f32,
    norm_weight: f32,
}

impl Arguments {
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn around(self, token: u32, expert: u32) -> Around {
        let mut around = Around { bias: 0.0, residual: 0.0, norm_weight: 0.0 };
        if gpu::warp() == 0 {
            let inside = out_col() < self.n_rows;
            let at = |row: u32| row as usize * self.n_rows as usize + out_col() as usize;
            around.bias = optional(self.bias, inside, at(expert));
            around.residual = optional(self.residual, inside, at(token));
            if !self.packed.squares.is_absent() {
                around.norm_weight = self.packed.weight_of_lane(gpu::block_x());
            }
        }
        around
    }

    /// The block's rows that exist, and their way to the sum where that is not a cluster's.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn detour(self, token: u32) -> (u32, Detour) {
        let first = gpu::block_x() * BLOCK_ROWS;
        let left = self.n_rows.saturating_sub(first);
        let n_words = if left < BLOCK_ROWS { left } else { BLOCK_ROWS };
        let first = if n_words > 0 { first } else { 0 };
        let of_token = (token * self.top_k) as usize * self.n_rows as usize;
        let detour = Detour {
            parts: self.parts.from(of_token + first as usize),
            stride: self.n_rows,
            arrivals: self.arrivals.from((token * gpu::grid_x() + gpu::block_x()) as usize),
        };
        (n_words, detour)
    }

    /// The experts' sum of the lane's row; `weights` has the expert of rank j in lane j. All 32 lanes
    /// must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn weighted_sum(self, weights: f32, gathered: SharedArray<f32>) -> f32 {
        let mut value = 0.0;
        let mut rank = 0;
        while rank < self.top_k {
            let weight = gpu::shuffle(weights, rank);
            if out_col() < self.n_rows {
                value = gpu::fma(weight, gathered.get(rank * BLOCK_ROWS + gpu::lane()), value);
            }
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
                /// of `packed` included, tokens, `top_k`).
                pub fn $experts = run, block BLOCK, shared Shared,
                    registers 168, barriers 5, shuffles 14 + crate::matmul::lone::shuffles::<$format>(SHARES),
                    matrix_ops crate::matmul::lone::matrix_ops::<$format>(
                        SHARES,
                        <$format as TileFormat>::EXPERTS_AHEAD,
                    ),
                    min_blocks BLOCKS, percent <$format as TileFormat>::SHARED_PERCENT,
                    waits later, gathers z;
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
                    /// `w[expert_j] x[t top_k + j] + bias[expert_j]` on its way: [n_tokens * top_k, n_rows]
                    parts: GlobalMut<f32>,
                    /// [n_tokens, blocks of 32 rows]: 0, before and after
                    arrivals: GlobalMut<u32>,
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
                let gather = Gather {
                    gathered: shared!(Shared, gathered).cast(),
                    phase: shared!(Shared, phase),
                    pitch: BLOCK_ROWS,
                };
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
                    parts: a.parts,
                    arrivals: a.arrivals,
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
                experts::<
                    $format,
                    { <$format as TileFormat>::EXPERTS_AHEAD },
                    { <$format as TileFormat>::LONE_TOGETHER },
                >(a.words, arguments, shared!(Shared, partial).cast(), gather)
            }
        }
    };
}
crate::for_each_tile_format!(entries);
