//! Activations as 16-bit fixed point, the form in which every quantised matrix product reads them.
//!
//! A block of 32 columns shares one scale: `x = scale * i` with `i = 256 hi + lo`, both signed
//! bytes. The tensor cores multiply the two bytes exactly, in separate columns of one 8-bit product,
//! so that nothing is rounded but the activation itself, to 2^-16 of its block's largest: finer
//! than f16 wherever it matters to a sum. The weights' integer offsets leave through the blocks'
//! exact sums.
//!
//! ```text
//! a row of codes, for each 64 columns 128 bytes:
//!   piece (hi, lo) | t = 0..4 | block 0, 1 of 32 columns | half 0, 1 of 16 | byte j = 0..4
//!   holds column 32 block + 16 half + 4 t + j: a lane's two k = 32 fragments are 16 bytes in a row
//! a row of scales, for each 64 columns 32 bytes:
//!   scale (f32) of block 0, 1 | sum of i over block 0, 1 | the same over their halves 0, 1, 2, 3
//! ```

use crate::gpu::{self, GlobalMut, U32x2, U32x4};

/// Columns that share a scale.
pub const BLOCK_COLS: u32 = 32;
/// Rows are padded to whole tiles of this many columns.
pub const TILE_COLS: u32 = 64;
/// Largest code: 127 * 256, so that rounding can't carry `hi` past 127.
pub const MAX_CODE: f32 = 32512.0;
/// A block whose largest is below this has zeroes for codes: the inverse of its scale is no number.
pub const SMALLEST_BLOCK: f32 = 1e-34;

/// Columns of a row of `n_cols`, padded to whole tiles.
#[inline(always)]
pub const fn padded_cols(n_cols: u32) -> u32 {
    n_cols.div_ceil(TILE_COLS) * TILE_COLS
}

/// Bytes of codes of one row.
#[inline(always)]
pub const fn row_code_bytes(n_cols: u32) -> u32 {
    2 * padded_cols(n_cols)
}

/// Scale records of one row: two for each tile of 64 columns.
#[inline(always)]
pub const fn row_scales(n_cols: u32) -> u32 {
    padded_cols(n_cols) / BLOCK_COLS
}

/// Byte offset of column `col`'s hi byte in a row of codes; the lo byte is 64 further.
#[inline(always)]
pub const fn code_offset(col: u32) -> u32 {
    let in_block = col % BLOCK_COLS;
    col / TILE_COLS * (2 * TILE_COLS)
        + in_block % 16 / 4 * 16
        + col / BLOCK_COLS % 2 * 8
        + in_block / 16 * 4
        + in_block % 4
}

/// A matrix of activations as kernels write it: f32 rows, and the same rows as codes and scales.
#[derive(Clone, Copy)]
pub struct RowsMut {
    /// [n_rows, n_cols], or absent where nobody reads them
    pub values: GlobalMut<f32>,
    /// [n_rows, row_code_bytes(n_cols)]
    pub codes: GlobalMut<u8>,
    /// [n_rows, row_scales(n_cols)]
    pub scales: GlobalMut<U32x4>,
    /// Columns of a row.
    pub n_cols: u32,
}

impl RowsMut {
    /// Blocks of a row, padding included; every one of them must be stored.
    #[inline(always)]
    pub fn n_blocks(self) -> u32 {
        row_scales(self.n_cols)
    }

    /// Stores one block of 32 columns of `row`: each lane brings the value of column
    /// `32 block + lane`. Columns past `n_cols` become zero whatever they bring. All 32 lanes must
    /// reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn store_block(self, row: u32, block: u32, value: f32) {
        let col = block * BLOCK_COLS + gpu::lane();
        let value = if col < self.n_cols { value } else { 0.0 };
        self.store_encoded(row, block, value, EncodedBlock::of(value));
    }

    /// Stores a block that is encoded already: each lane brings its value, 0 past `n_cols`, and its share of
    /// the block.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn store_encoded(self, row: u32, block: u32, value: f32, encoded: EncodedBlock) {
        let EncodedBlock { code, scale, sum, first_half } = encoded;
        let col = block * BLOCK_COLS + gpu::lane();
        if col < self.n_cols && !self.values.is_absent() {
            self.values.set(row as usize * self.n_cols as usize + col as usize, value);
        }
        let high = (code + 128) >> 8;
        let codes = self.codes.from(row as usize * row_code_bytes(self.n_cols) as usize);
        codes.set(code_offset(col) as usize, high as u8);
        codes.set((code_offset(col) + 64) as usize, (code - 256 * high) as u8);
        if gpu::lane() == 0 {
            let tile = row as usize * self.n_blocks() as usize + block as usize / 2 * 2;
            let (words, step) = (self.scales.from(tile).cast::<u32>(), block as usize % 2);
            words.set(step, scale.to_bits());
            words.set(2 + step, sum);
            let halves = U32x2([first_half, sum.wrapping_sub(first_half)]);
            self.scales.from(tile).cast::<U32x2>().set(2 + step, halves);
        }
    }
}

/// A lane's share of a block of 32 columns.
#[derive(Clone, Copy)]
pub struct EncodedBlock {
    /// Of the lane's column.
    code: i32,
    /// Of the block.
    scale: f32,
    /// Of all its codes.
    sum: u32,
    /// Of those of the first 16 columns.
    first_half: u32,
}

impl EncodedBlock {
    /// Of the lanes' values. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn of(value: f32) -> EncodedBlock {
        // Numbers that are not below 0 have the order of their bits. A NaN, which is above them all, makes the
        // whole block's scale infinite, so that products show it as NaN.
        let largest = gpu::warp_max_u32(value.abs().to_bits());
        const INFINITY: u32 = f32::INFINITY.to_bits();
        let largest = f32::from_bits(if largest < INFINITY { largest } else { INFINITY });
        let scale = largest * (1.0 / MAX_CODE);
        let is_tiny = largest < SMALLEST_BLOCK;
        let per_unit = if is_tiny { 0.0 } else { MAX_CODE * gpu::reciprocal(largest) };
        let code = gpu::round_i32(value * per_unit);
        let in_first_half = gpu::lane() < BLOCK_COLS / 2;
        EncodedBlock {
            code,
            scale,
            sum: gpu::warp_sum_u32(code as u32),
            first_half: gpu::warp_sum_u32(if in_first_half { code as u32 } else { 0 }),
        }
    }
}
