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

use crate::gpu::{self, GlobalMut, SharedArray, U32x2, U32x4};

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
        let col = block * BLOCK_COLS + gpu::lane();
        if col < self.n_cols && !self.values.is_absent() {
            self.values.set(row as usize * self.n_cols as usize + col as usize, value);
        }
        let codes = self.codes.from(row as usize * row_code_bytes(self.n_cols) as usize);
        let scales = self.scales.from(row as usize * self.n_blocks() as usize);
        encoded.store(block, codes, scales.cast::<u32>(), scales.cast::<U32x2>());
    }
}

/// A view that a row's fixed point can be stored to: of device memory, or of a block's shared memory.
pub(crate) trait Store<T>: Copy {
    /// Writes element `i`.
    fn store(self, i: usize, v: T);
}

macro_rules! store {
    ($($elem:ty),*) => {$(
        impl Store<$elem> for GlobalMut<$elem> {
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn store(self, i: usize, v: $elem) {
                self.set(i, v);
            }
        }

        impl Store<$elem> for SharedArray<$elem> {
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn store(self, i: usize, v: $elem) {
                self.set(i as u32, v);
            }
        }
    )*};
}
store!(u8, u32, U32x2);

/// The scale of a block, and codes per unit, from the bits of its largest value without sign.
#[inline(always)]
fn scale_of(largest: u32) -> (f32, f32) {
    // Numbers that are not below 0 have the order of their bits. A NaN, which is above them all, makes the
    // whole block's scale infinite, so that products show it as NaN.
    const INFINITY: u32 = f32::INFINITY.to_bits();
    let largest = f32::from_bits(if largest < INFINITY { largest } else { INFINITY });
    let is_tiny = largest < SMALLEST_BLOCK;
    let per_unit = if is_tiny { 0.0 } else { MAX_CODE * gpu::reciprocal(largest) };
    (largest * (1.0 / MAX_CODE), per_unit)
}

/// The two bytes of a code.
#[inline(always)]
fn pieces(code: i32) -> (i32, i32) {
    let high = (code + 128) >> 8;
    (high, code - 256 * high)
}

/// Stores the scale record of block `block` of a row, from one lane.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn store_record(
    block: u32,
    (scale, sum, first_half): (f32, u32, u32),
    words: impl Store<u32>,
    pairs: impl Store<U32x2>,
) {
    // Two records of four words each for two blocks.
    let (tile, step) = (block as usize / 2, block as usize % 2);
    words.store(8 * tile + step, scale.to_bits());
    words.store(8 * tile + 2 + step, sum);
    pairs.store(4 * tile + 2 + step, U32x2([first_half, sum.wrapping_sub(first_half)]));
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
        let (scale, per_unit) = scale_of(gpu::warp_max_u32(value.abs().to_bits()));
        let code = gpu::round_i32(value * per_unit);
        let in_first_half = gpu::lane() < BLOCK_COLS / 2;
        EncodedBlock {
            code,
            scale,
            sum: gpu::warp_sum_u32(code as u32),
            first_half: gpu::warp_sum_u32(if in_first_half { code as u32 } else { 0 }),
        }
    }

    /// Stores the block as block `block` of a row: its codes, and its scale records as words and as pairs of words.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) fn store(
        self,
        block: u32,
        codes: impl Store<u8>,
        words: impl Store<u32>,
        pairs: impl Store<U32x2>,
    ) {
        let EncodedBlock { code, scale, sum, first_half } = self;
        let at = code_offset(block * BLOCK_COLS + gpu::lane()) as usize;
        let (high, low) = pieces(code);
        codes.store(at, high as u8);
        codes.store(at + TILE_COLS as usize, low as u8);
        if gpu::lane() == 0 {
            store_record(block, (scale, sum, first_half), words, pairs);
        }
    }
}

/// Columns of a strip, of which a lane has four neighbours: four blocks, encoded in fewer instructions.
pub const STRIP_COLS: u32 = 128;
const STRIP_LANE_COLS: u32 = STRIP_COLS / gpu::WARP;
/// Lanes that have a block of a strip.
const STRIP_BLOCK_LANES: u32 = BLOCK_COLS / STRIP_LANE_COLS;

/// The first of the calling lane's columns of a strip.
#[inline(always)]
pub(crate) fn col_of_strip(strip: u32) -> u32 {
    strip * STRIP_COLS + gpu::lane() * STRIP_LANE_COLS
}

/// A lane's share of a strip.
#[derive(Clone, Copy)]
pub(crate) struct EncodedStrip {
    /// The bytes of the lane's four columns, a word of each piece.
    high: u32,
    low: u32,
    /// Of the lane's block, as `EncodedBlock` has them.
    scale: f32,
    sum: u32,
    /// In the first of the block's lanes.
    first_half: u32,
}

impl EncodedStrip {
    /// Of the lanes' values, to the bit as `EncodedBlock::of` each block. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) fn of(values: [f32; STRIP_LANE_COLS as usize]) -> EncodedStrip {
        let larger = |a: u32, b: u32| if a > b { a } else { b };
        let [a, b, c, d] = values.map(|value| value.abs().to_bits());
        let largest = larger(larger(a, b), larger(c, d));
        let largest = larger(largest, gpu::shuffle_xor_u32(largest, 1));
        let largest = larger(largest, gpu::shuffle_xor_u32(largest, 2));
        let largest = larger(largest, gpu::shuffle_xor_u32(largest, 4));
        let (scale, per_unit) = scale_of(largest);
        let codes = values.map(|value| gpu::round_i32(value * per_unit));
        let [a, b, c, d] = codes.map(|code| code as u32);
        let add = |sum: u32, mask: u32| sum.wrapping_add(gpu::shuffle_xor_u32(sum, mask));
        let half = add(add(a.wrapping_add(b).wrapping_add(c.wrapping_add(d)), 1), 2);
        let pieces = codes.map(pieces);
        let bytes = |of: fn((i32, i32)) -> i32| {
            let [a, b, c, d] = pieces.map(|pieces| of(pieces) as u32);
            let (first, second) = (gpu::permute_bytes(a, b, 0x40), gpu::permute_bytes(c, d, 0x40));
            gpu::permute_bytes(first, second, 0x5410)
        };
        EncodedStrip {
            high: bytes(|(high, _)| high),
            low: bytes(|(_, low)| low),
            scale,
            sum: add(half, 4),
            first_half: half,
        }
    }

    /// Stores the strip as strip `strip` of a row of `n_cols` columns: its codes as words, and its scale records as words
    /// and as pairs of words.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) fn store(
        self,
        (strip, n_cols): (u32, u32),
        codes: impl Store<u32>,
        words: impl Store<u32>,
        pairs: impl Store<U32x2>,
    ) {
        let col = col_of_strip(strip);
        if col >= padded_cols(n_cols) {
            return;
        }
        let at = code_offset(col) as usize / 4;
        codes.store(at, self.high);
        codes.store(at + TILE_COLS as usize / 4, self.low);
        if gpu::lane().is_multiple_of(STRIP_BLOCK_LANES) {
            let record = (self.scale, self.sum, self.first_half);
            store_record(col / BLOCK_COLS, record, words, pairs);
        }
    }
}
