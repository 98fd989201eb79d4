//! Matrix products of weights with activations: `out[token, row] = sum_c w[row, c] x[token, c]`,
//! with bias and residual, dense or grouped by expert. One kernel serves decode and small batches:
//! the tensor cores multiply 16 rows with eight columns, which are two pieces (`fixed16`) of four
//! tokens.
//!
//! A token's sums never depend on what else is in the batch: its columns are its own, and the order
//! of the additions is that of the columns.

use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};
use crate::tile::{
    PART_COLS, STEP_COLS, Step, Sums, TILE_ROWS, TileFormat, float, k_quants, legacy, row_records,
};

/// Threads of a block; its warps share a tile of 16 rows along the columns.
pub const BLOCK: u32 = 256;
const N_WARPS: u32 = BLOCK / gpu::WARP;
/// Tokens that one product's eight columns hold.
pub const COLUMN_TOKENS: u32 = 4;

/// What the products of every format take.
#[derive(Clone, Copy)]
struct Arguments {
    /// Rows of fixed-point codes: [n_x_rows, padded columns / 8]
    codes: Global<U32x4>,
    /// Rows of scale records: [n_x_rows, padded columns / 32]
    scales: Global<U32x4>,
    bias: Global<f32>,
    residual: Global<f32>,
    out: GlobalMut<f32>,
    groups: Global<U32x4>,
    slots: Global<u32>,
    n_rows: u32,
    n_cols: u32,
    n_tokens: u32,
    slots_per_row: u32,
    out_stride: u32,
}

/// The tokens of one block: consecutive ones, or an expert's.
#[derive(Clone, Copy)]
struct Group {
    expert: u32,
    start: u32,
    count: u32,
}

impl Arguments {
    /// The block's tokens: up to `limit`, chosen by the grid's y.
    #[inline(always)]
    fn group(self, limit: u32) -> Group {
        let y = gpu::block_y();
        if self.groups.is_absent() {
            let start = y * limit;
            let left = self.n_tokens.saturating_sub(start);
            Group { expert: 0, start, count: if left < limit { left } else { limit } }
        } else {
            let U32x4([expert, start, count, _]) = self.groups.get(y as usize);
            Group { expert, start, count }
        }
    }

    /// Row of the output, and of the input, of token `i` of a group.
    #[inline(always)]
    fn rows(self, group: Group, i: u32) -> (u32, u32) {
        let at = group.start + i;
        if self.slots.is_absent() {
            return (at, at);
        }
        let slot = self.slots.get(at as usize);
        (slot, gpu::div_u32(slot, self.slots_per_row))
    }

    /// Writes `value` plus bias and residual.
    #[inline(always)]
    fn store(self, group: Group, token: u32, row: u32, value: f32) {
        let mut value = value;
        if !self.bias.is_absent() {
            let at = group.expert as usize * self.n_rows as usize + row as usize;
            value += self.bias.get(at);
        }
        let (out_row, _) = self.rows(group, token);
        let at = out_row as usize * self.out_stride as usize + row as usize;
        if !self.residual.is_absent() {
            value += self.residual.get(at);
        }
        self.out.set(at, value);
    }
}

/// Shared memory of the product with `TOKENS` tokens.
#[repr(C, align(16))]
pub struct Shared<const TOKENS: usize> {
    /// [warp][row][token]
    partial: [[[f32; TOKENS]; TILE_ROWS as usize]; N_WARPS as usize],
}

/// Marks a lane without a token.
const NO_ROW: u32 = u32::MAX;

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn matmul<F: TileFormat, const COLUMNS: usize>(
    words: Global<U32x4>,
    a: Arguments,
    partial: SharedArray<f32>,
) {
    let n_tokens = COLUMNS as u32 * COLUMN_TOKENS;
    let group = a.group(n_tokens);
    if group.count == 0 {
        return; // the whole block leaves: every thread reads the same group
    }
    let (lane, warp) = (gpu::lane(), gpu::warp());
    let (g, t) = (lane / 4, lane % 4);
    let n_parts = a.n_cols.div_ceil(PART_COLS);

    // As a b fragment the lane holds piece g % 2 of token g / 2; its sums are of token t.
    let mut code_rows = [NO_ROW; COLUMNS];
    let mut scale_rows = [NO_ROW; COLUMNS];
    unroll!(column < COLUMNS, {
        let first = column as u32 * COLUMN_TOKENS;
        if first + g / 2 < group.count {
            code_rows[column] = a.rows(group, first + g / 2).1 * n_parts * 8 + g % 2 * 4 + t;
        }
        if first + t < group.count {
            scale_rows[column] = a.rows(group, first + t).1 * n_parts * (PART_COLS / STEP_COLS);
        }
    });

    let records = row_records::<F>(a.n_cols);
    let record_parts = F::RECORD_COLS / PART_COLS;
    let row_tiles = a.n_rows.div_ceil(TILE_ROWS);
    let row_tile = group.expert as usize * row_tiles as usize + gpu::block_x() as usize;
    let tile = words.from(row_tile * records as usize * (F::RECORD_WORDS / 4) as usize);

    let mut sums: [Sums; COLUMNS] = [[0.0; 2]; COLUMNS];
    // With few tokens two parts are under way while one is multiplied: small matrices wait for the
    // memory's latency. With many tokens the registers hold sums instead.
    let load = |at: u32| {
        let at = if at < n_parts { at } else { n_parts - 1 };
        let record = tile.from((at / record_parts * (F::RECORD_WORDS / 4)) as usize);
        F::load(record, at % record_parts)
    };
    let mut ahead = [load(warp), load(warp + N_WARPS)];
    let mut at = warp;
    while at < n_parts {
        let part = if COLUMNS == 1 { ahead[0] } else { load(at) };
        if COLUMNS == 1 {
            ahead = [ahead[1], load(at + 2 * N_WARPS)];
        }
        unroll!(column < COLUMNS, {
            let (code_row, scale_row) = (code_rows[column], scale_rows[column]);
            let codes = optional(a.codes, code_row, at * 8);
            let first = optional(a.scales, scale_row, 2 * at);
            let second = optional(a.scales, scale_row, 2 * at + 1);
            let x = Step { codes: [codes.0[0], codes.0[1]], scale: first };
            F::accumulate(&part, 0, x, &mut sums[column]);
            let x = Step { codes: [codes.0[2], codes.0[3]], scale: second };
            F::accumulate(&part, 1, x, &mut sums[column]);
        });
        at += N_WARPS;
    }

    unroll!(column < COLUMNS, {
        let token = column as u32 * COLUMN_TOKENS + t;
        partial.set((warp * TILE_ROWS + g) * n_tokens + token, sums[column][0]);
        partial.set((warp * TILE_ROWS + g + 8) * n_tokens + token, sums[column][1]);
    });
    gpu::sync_block(); // every warp's sums are in `partial`

    let mut i = gpu::thread_x();
    while i < TILE_ROWS * n_tokens {
        let (row, token) = (i / n_tokens, i % n_tokens);
        let out_row = gpu::block_x() * TILE_ROWS + row;
        if token < group.count && out_row < a.n_rows {
            let mut value = 0.0;
            let mut from = 0;
            while from < N_WARPS {
                value += partial.get((from * TILE_ROWS + row) * n_tokens + token);
                from += 1;
            }
            a.store(group, token, out_row, value);
        }
        i += BLOCK;
    }
}

/// Element `row + at`, or zeroes for a lane without a token.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn optional(view: Global<U32x4>, row: u32, at: u32) -> U32x4 {
    if row == NO_ROW { U32x4([0; 4]) } else { view.get((row + at) as usize) }
}

macro_rules! entry {
    ($format:ty, $name:ident, $args:ident, $columns:literal, $registers:literal) => {
        kernel! {
            /// Product with weights in records; grid (row tiles, groups of tokens).
            pub fn $name = run, block BLOCK, shared Shared<{ 4 * $columns }>,
                registers $registers, barriers 1, shuffles 0,
                matrix_ops 2 * $columns * <$format as TileFormat>::STEP_PRODUCTS;
            pub struct $args {
                /// Records: [experts, row tiles, records of a row]
                words: Global<U32x4>,
                /// Fixed-point rows: [n_x_rows, padded columns / 8]
                codes: Global<U32x4>,
                /// Their scale records: [n_x_rows, padded columns / 32]
                scales: Global<U32x4>,
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
                /// Tokens, where `groups` is absent
                n_tokens: u32,
                /// Slot / this = row of the input
                slots_per_row: u32,
                out_stride: u32,
            }
        }

        #[inline(always)]
        fn run(a: $args) {
            let partial: SharedArray<f32> = shared!(Shared<{ 4 * $columns }>, partial).cast();
            let arguments = Arguments {
                codes: a.codes,
                scales: a.scales,
                bias: a.bias,
                residual: a.residual,
                out: a.out,
                groups: a.groups,
                slots: a.slots,
                n_rows: a.n_rows,
                n_cols: a.n_cols,
                n_tokens: a.n_tokens,
                slots_per_row: a.slots_per_row,
                out_stride: a.out_stride,
            };
            matmul::<$format, $columns>(a.words, arguments, partial)
        }
    };
}

macro_rules! entries {
    (
        $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
        $embed:ident, $x4:ident, $x32:ident
    ) => {
        /// For up to four tokens a group.
        pub mod $x4 {
            use super::*;
            entry!($format, $x4, Matmul, 1, 96);
        }
        /// For up to 32 tokens a group.
        pub mod $x32 {
            use super::*;
            entry!($format, $x32, Matmul, 8, 248);
        }
    };
}
crate::for_each_tile_format!(entries);

/// Tokens of a group of the F32 product.
pub const F32_TOKENS: u32 = 4;

/// Shared memory of the F32 product.
#[repr(C, align(16))]
pub struct SharedF32 {
    /// [token][warp]
    partial: [[f32; N_WARPS as usize]; F32_TOKENS as usize],
}

kernel! {
    /// Product with F32 weights, in rows, and f32 activations; grid (rows, groups of
    /// tokens: four each where `groups` is absent).
    pub fn matmul_f32_x4 = matmul_f32, block BLOCK, shared SharedF32, registers 64,
        barriers 2, shuffles 20, matrix_ops 0;
    pub struct MatmulF32 {
        /// [experts, n_rows, n_cols]
        weights: Global<f32>,
        /// [n_x_rows, n_cols]
        x: Global<f32>,
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
    }
}

#[inline(always)]
fn matmul_f32(k: MatmulF32) {
    let a = Arguments {
        codes: k.x.cast(),
        scales: k.x.cast(),
        bias: k.bias,
        residual: k.residual,
        out: k.out,
        groups: k.groups,
        slots: k.slots,
        n_rows: k.n_rows,
        n_cols: k.n_cols,
        n_tokens: k.n_tokens,
        slots_per_row: k.slots_per_row,
        out_stride: k.out_stride,
    };
    let group = a.group(F32_TOKENS);
    if group.count == 0 {
        return; // the whole block leaves: every thread reads the same group
    }
    let row = gpu::block_x();
    let n_cols = k.n_cols as usize;
    let weights =
        k.weights.from((group.expert as usize * k.n_rows as usize + row as usize) * n_cols);
    let mut first = 0;
    while first < group.count {
        matmul_f32_tokens(k, a, group, first, weights);
        first += F32_TOKENS;
        gpu::sync_block(); // `partial` has been read
    }
}

/// The products of tokens `first..first + F32_TOKENS` of a group.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn matmul_f32_tokens(k: MatmulF32, a: Arguments, group: Group, first: u32, weights: Global<f32>) {
    const TOKENS: usize = F32_TOKENS as usize;
    let n_cols = k.n_cols as usize;
    // Tokens past the group's end repeat its last one, and are not stored.
    let mut x_rows = [0usize; TOKENS];
    let mut token = 0;
    while token < TOKENS {
        let i = first + token as u32;
        let i = if i < group.count { i } else { group.count - 1 };
        x_rows[token] = a.rows(group, i).1 as usize * n_cols;
        token += 1;
    }

    let mut sums = [0.0f32; TOKENS];
    let mut col = gpu::thread_x() as usize;
    while col < n_cols {
        let w = weights.get(col);
        let mut token = 0;
        while token < TOKENS {
            sums[token] = gpu::fma(w, k.x.get(x_rows[token] + col), sums[token]);
            token += 1;
        }
        col += BLOCK as usize;
    }

    let partial: SharedArray<f32> = shared!(SharedF32, partial).cast();
    let mut token = 0;
    while token < TOKENS {
        let sum = gpu::warp_sum(sums[token]);
        if gpu::lane() == 0 {
            partial.set(token as u32 * N_WARPS + gpu::warp(), sum);
        }
        token += 1;
    }
    gpu::sync_block(); // every warp's sums are in `partial`
    let token = gpu::thread_x();
    if token < F32_TOKENS && first + token < group.count {
        let mut value = 0.0;
        let mut warp = 0;
        while warp < N_WARPS {
            value += partial.get(token * N_WARPS + warp);
            warp += 1;
        }
        a.store(group, first + token, gpu::block_x(), value);
    }
}
