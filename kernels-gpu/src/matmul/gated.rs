//! Two matrices with the same rows, gate and up, and the gated unit between them: dense, grouped by
//! expert, or for the experts that the router's logits choose.

use super::lone::Chains;
use super::walk::{InputRows, Store, Walk, tile_of_block};
use super::{
    BLOCK_TILES, COLUMN_TOKENS, Group, Grouping, Input, N_SHARES, N_WARPS, Partial, Shared,
    optional, out_col, two_column_tiles,
};
use crate::activation::{clamped_swiglu, silu};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
use crate::moe::choose;
use crate::tile::{PART_COLS, TileFormat, float, k_quants, k_sixteens, legacy};

/// `silu(gate) * up`
pub const SILU_GATE: u32 = 0;
/// gpt-oss: see `clamped_swiglu`.
pub const CLAMPED_SWIGLU: u32 = 1;

/// Warps that share a matrix.
const WARPS_OF_MATRIX: u32 = N_WARPS / 2;
/// Warps that share a tile.
const WARPS_OF_TILE: u32 = WARPS_OF_MATRIX / BLOCK_TILES;
/// Shares of a tile's columns that a warp has.
const SHARES: usize = (N_SHARES / WARPS_OF_TILE) as usize;
/// Chains of one token under way.
const AHEAD: usize = 2;
/// Columns of tokens.
const COLUMNS: usize = 2;
/// Tokens of a group at most.
pub const TOKENS: u32 = COLUMNS as u32 * COLUMN_TOKENS;

/// What the kernels of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    x: Input,
    grouping: Grouping,
    router: Global<f32>,
    n_experts: u32,
    gate_bias: Global<f32>,
    up_bias: Global<f32>,
    n_rows: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
    packed: RowsMut,
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn gated<F: TileFormat, const TOGETHER: usize>(
    gate_words: Global<U32x4>,
    up_words: Global<U32x4>,
    a: Arguments,
    sums: SharedArray<f32>,
) {
    let dense = a.grouping.groups.is_absent() && a.router.is_absent();
    if !dense {
        gpu::wait_for_previous(); // the launch before chose the experts
    }
    // The experts' product behind this one reads the router's logits before it waits.
    gpu::let_next_start();
    let group = a.group(TOKENS);
    if group.count == 0 {
        return; // the whole block leaves: every thread reads the same group
    }
    let n_parts = a.x.n_cols.div_ceil(PART_COLS);
    // By warp: which matrix, which of the block's tiles where it has one, and there which shares of its columns.
    let (set, in_block) = (gpu::warp() / WARPS_OF_MATRIX, gpu::warp() / WARPS_OF_TILE % 2);
    let walk = Walk::<SHARES> { first: gpu::warp() % WARPS_OF_TILE, n_parts };
    let words = if set == 0 { gate_words } else { up_words };
    let tile = |i| tile_of_block::<F, BLOCK_TILES>(words, (a.n_rows, a.x.n_cols), group.expert, i);
    let partial = Partial { sums, n_sets: 2, n_tokens: TOKENS };
    let store = Store { partial, set, tile: in_block };
    // A warp has at most one token.
    const { assert!(TOKENS <= N_WARPS) };
    let wait = || {
        if dense {
            gpu::wait_for_previous();
        }
    };
    let around = if group.count == 1 {
        // Before the weights are asked for: the machine can't tell a load from those behind it.
        let rows = a.grouping.rows(group, 0);
        let tile = tile(in_block);
        let chains = Chains::<SHARES, TOGETHER>::new::<F>(walk);
        let first = chains.ask::<F, AHEAD>(tile);
        wait();
        let ask = || if gpu::warp() == 0 { a.around(group.expert, rows) } else { Around::NOTHING };
        chains.sums::<F, _, _, AHEAD>(tile, first, a.x.row(rows.1), ask, store)
    } else {
        wait();
        // Both tiles where the registers hold their sums: activations serve twice.
        const SHARES_OF_BOTH: usize = SHARES / BLOCK_TILES as usize;
        let of_both = Walk::<SHARES_OF_BOTH> { first: gpu::warp() % WARPS_OF_MATRIX, n_parts };
        let store_both = Store { tile: 0, ..store };
        if group.count <= COLUMN_TOKENS {
            let rows = InputRows::of_group(a.x.n_cols, a.grouping, group);
            of_both.many::<F, 2, 1, 0>([0, 1].map(tile), a.x, rows, store_both);
        } else if two_column_tiles::<F>() == 2 {
            let rows = InputRows::of_group(a.x.n_cols, a.grouping, group);
            of_both.many::<F, 2, COLUMNS, 0>([0, 1].map(tile), a.x, rows, store_both);
        } else {
            let rows = InputRows::of_group(a.x.n_cols, a.grouping, group);
            walk.many::<F, 1, COLUMNS, 0>([tile(in_block)], a.x, rows, store);
        }
        let token = gpu::anew(gpu::warp()); // not before: it would take the registers of sums
        if token < group.count {
            a.around(group.expert, a.grouping.rows(group, token))
        } else {
            Around::NOTHING
        }
    };
    gpu::sync_block(); // every warp's sums are in `partial`

    let token = gpu::anew(gpu::warp()); // not kept through the products
    if token < group.count {
        a.store(around, partial.sum(0, token), partial.sum(1, token));
    }
}

/// What the lane's result of a token is put together with; for a lone token asked for long before it is needed.
#[derive(Clone, Copy)]
struct Around {
    out_row: u32,
    squares_of_lane: f32,
    gate_bias: f32,
    up_bias: f32,
}

impl Around {
    /// Of no token.
    const NOTHING: Around =
        Around { out_row: 0, squares_of_lane: 0.0, gate_bias: 0.0, up_bias: 0.0 };
}

impl Arguments {
    /// The block's tokens. Where the router's logits are given, a block has one slot, and each of
    /// its warps chooses the slot's expert.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn group(self, limit: u32) -> Group {
        if self.router.is_absent() {
            return self.grouping.group(limit);
        }
        let (slot, top_k) = (gpu::block_y(), self.grouping.slots_per_row);
        let token = gpu::quotient(slot, top_k);
        let logits = self.router.from((token * self.n_experts) as usize);
        let rank = slot - token * top_k;
        let chosen = choose(logits, self.n_experts, rank + 1);
        let expert = gpu::shuffle_u32(chosen.expert, rank);
        Group { expert, start: slot, count: 1 }
    }

    /// What the lane's row of a token is put together with, whose rows of output and input are given.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn around(self, expert: u32, (out_row, x_row): (u32, u32)) -> Around {
        let inside = out_col() < self.n_rows;
        let at = expert as usize * self.n_rows as usize + out_col() as usize;
        Around {
            out_row,
            squares_of_lane: self.x.squares_of_lane(x_row),
            gate_bias: optional(self.gate_bias, inside, at),
            up_bias: optional(self.up_bias, inside, at),
        }
    }

    /// Stores the block's 32 rows of a token, a lane each. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn store(self, around: Around, gate: f32, up: f32) {
        let factor = self.x.factor(around.squares_of_lane);
        let gate = gpu::fma(gate, factor, around.gate_bias);
        let up = gpu::fma(up, factor, around.up_bias);
        let value = if self.activation == CLAMPED_SWIGLU {
            clamped_swiglu(gate, up, self.alpha, self.limit)
        } else {
            silu(gate) * up
        };
        self.packed.store_block(around.out_row, gpu::block_x(), value);
    }
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        /// For up to eight tokens a group.
        pub mod $gated {
            use super::*;
            kernel! {
                /// `packed = activation(gate x, up x)`; grid (blocks of 32 rows, padding included, groups
                /// of tokens, or slots where the router's logits are given).
                pub fn $gated = run, block crate::matmul::BLOCK, shared Shared<2, { TOKENS as usize }>,
                    registers 128, barriers 1, shuffles 7 + crate::matmul::lone::shuffles::<$format>(SHARES),
                    matrix_ops crate::matmul::lone::matrix_ops::<$format>(SHARES, AHEAD)
                        + (2 + two_column_tiles::<$format>() * COLUMNS as u32) * crate::tile::part_products::<$format>(),
                    min_blocks <$format as TileFormat>::X8_BLOCKS,
                    percent <$format as TileFormat>::SHARED_PERCENT, waits and_lets;
                pub struct Gated {
                    /// Records: [experts, row tiles, records of a row]
                    gate: Global<U32x4>,
                    /// The same of the other matrix
                    up: Global<U32x4>,
                    /// Fixed-point rows: [n_x_rows, padded columns / 8]
                    codes: Global<U32x4>,
                    /// Their scale records: [n_x_rows, padded columns / 32]
                    scales: Global<U32x4>,
                    /// Sums of squares of the input's blocks, where its RMS scale is still to come:
                    /// [n_x_rows, row_scales(n_cols)]; or absent
                    squares: Global<f32>,
                    /// [experts, n_rows], or absent
                    gate_bias: Global<f32>,
                    /// [experts, n_rows], or absent
                    up_bias: Global<f32>,
                    /// Logits that choose each token's experts: [n_tokens, n_experts]; or absent
                    router: Global<f32>,
                    /// (expert, first slot, slots) of each group; absent: all tokens in order
                    groups: Global<U32x4>,
                    /// Output rows in the order of the groups; absent: in order
                    slots: Global<u32>,
                    /// [n_out_rows, n_rows], or absent
                    packed_values: GlobalMut<f32>,
                    /// [n_out_rows, row_code_bytes(n_rows)]
                    packed_codes: GlobalMut<u8>,
                    /// [n_out_rows, row_scales(n_rows)]
                    packed_scales: GlobalMut<U32x4>,
                    n_rows: u32,
                    n_cols: u32,
                    /// Where `router` is given
                    n_experts: u32,
                    /// Tokens, where neither `groups` nor `router` are given
                    n_tokens: u32,
                    /// Slot / this = row of the input; where `router` is given, the experts of a token
                    slots_per_row: u32,
                    /// `SILU_GATE` or `CLAMPED_SWIGLU`
                    activation: u32,
                    alpha: f32,
                    limit: f32,
                    /// Of the input's norm
                    eps: f32,
                }
            }

            #[inline(always)]
            fn run(a: Gated) {
                let sums: SharedArray<f32> = shared!(Shared<2, { TOKENS as usize }>, partial).cast();
                let arguments = Arguments {
                    x: Input {
                        codes: a.codes,
                        scales: a.scales,
                        squares: a.squares,
                        n_cols: a.n_cols,
                        eps: a.eps,
                    },
                    grouping: Grouping {
                        groups: a.groups,
                        slots: a.slots,
                        n_tokens: a.n_tokens,
                        slots_per_row: a.slots_per_row,
                    },
                    router: a.router,
                    n_experts: a.n_experts,
                    gate_bias: a.gate_bias,
                    up_bias: a.up_bias,
                    n_rows: a.n_rows,
                    activation: a.activation,
                    alpha: a.alpha,
                    limit: a.limit,
                    packed: RowsMut {
                        values: a.packed_values,
                        codes: a.packed_codes,
                        scales: a.packed_scales,
                        n_cols: a.n_rows,
                    },
                };
                gated::<$format, { <$format as TileFormat>::TOGETHER }>(a.gate, a.up, arguments, sums)
            }
        }
    };
}
crate::for_each_tile_format!(entries);
