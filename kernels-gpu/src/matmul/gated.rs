//! Two matrices with the same rows, gate and up, and the gated unit between them: dense, grouped by
//! expert, or for the experts that the router's logits choose.

#[cfg(not(target_arch = "nvptx64"))]
use super::four::{AHEAD, SHARES};
use super::four::{COLUMNS, FourTiles, TOKENS};
use super::ring::ring_words;
#[cfg(not(target_arch = "nvptx64"))]
use super::two_column_tiles;
use super::{BLOCK_TILES, Group, Grouping, Input, Partial, Shared, SharedRings, optional, out_col};
use crate::activation::{clamped_swiglu, silu};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, U32x4};
use crate::moe::choose;
use crate::tile::{TileFormat, float, k_quants, k_sixteens, legacy};

/// `silu(gate) * up`
pub const SILU_GATE: u32 = 0;
/// gpt-oss: see `clamped_swiglu`.
pub const CLAMPED_SWIGLU: u32 = 1;

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
fn gated<F: TileFormat, const TOGETHER: usize, const RING: bool>(
    words: [Global<U32x4>; 2],
    a: Arguments,
    partial: Partial,
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
    let tiles = FourTiles {
        words,
        first: [gpu::block_x() * BLOCK_TILES; 2],
        n_rows: a.n_rows,
        x: a.x,
        grouping: a.grouping,
        group,
        partial,
    };
    let wait = || {
        if dense {
            gpu::wait_for_previous();
        }
    };
    let around = |rows| a.around(group.expert, rows);
    let around = if group.count == 1 {
        tiles.lone::<F, _, TOGETHER>(wait, around, Around::NOTHING)
    } else if RING {
        tiles.few_of_ring::<F, _>(wait, around, Around::NOTHING)
    } else {
        wait();
        tiles.few::<F, _>(around, Around::NOTHING)
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

macro_rules! entry {
    ($format:ty, $gated:ident, ring $ring:literal, memory $memory:ty, min_blocks $blocks:expr, columns $columns:expr) => {
        /// For up to eight tokens a group.
        pub mod $gated {
            use super::*;
            kernel! {
                /// `packed = activation(gate x, up x)`; grid (blocks of 32 rows, padding included, groups
                /// of tokens, or slots where the router's logits are given).
                pub fn $gated = run, block crate::matmul::BLOCK, shared $memory,
                    registers 128, barriers 1, shuffles 7 + crate::matmul::lone::shuffles::<$format>(SHARES),
                    matrix_ops crate::matmul::lone::matrix_ops::<$format>(SHARES, AHEAD)
                        + $columns * crate::tile::part_products::<$format>(),
                    min_blocks $blocks,
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
                let words = [a.gate, a.up];
                gated::<$format, { <$format as TileFormat>::TOGETHER }, $ring>(words, arguments, <$memory>::partial())
            }
        }
    };
}
macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
    ) => {
        entry!($format, $gated, ring false, memory Shared<2, { TOKENS as usize }>,
            min_blocks <$format as TileFormat>::X8_BLOCKS,
            columns (2 + two_column_tiles::<$format>() * COLUMNS as u32));
    };
}
crate::for_each_tile_format!(entries);
macro_rules! ring_entries {
    ($format:ty, $ggml:ident, $x8_ring:ident, $ring:ident, $rows64:ident) => {
        entry!($format, $ring, ring true,
            memory SharedRings<{ TOKENS as usize }, { ring_words::<$format>(4, COLUMNS as u32) }>,
            min_blocks 2, columns 4 * (1 + COLUMNS as u32));
    };
}
crate::for_each_ring_format!(ring_entries);
