//! Records of the formats with 256-column blocks and groups of 16: Q2_K, Q3_K and Q6_K.
//!
//! ```text
//! Q2_K  4 x 64 words of pairs                       | rows x 4 words, byte = scale, min of 16 | rows x (d, dmin)
//! Q3_K  4 x 64 words of pairs, 4 x 32 of third bits | rows x 3 words, 6-bit scales           | rows x d
//! Q6_K  4 x 128 words of nibbles, 4 x 64 of pairs   | rows x 4 words of signed bytes         | rows x d
//! ```
//! The scales of Q3_K, in bytes as `k_quants` has them, and the half-words of d are in the order of
//! `place_of_row`.

use super::k_quants::{
    PARTS, Q4K_CODES, high_half, k_common, k_nibble, k_tile, low_half, pack_six, plane_bits, six,
    unpack_six,
};
use super::planes::{self, BIT_WORDS, NIBBLE_WORDS, PAIR_WORDS};
use super::{
    CHAIN_GROUPS, Factors, IntegerTile, LoneGroup, Part, Raw, Records, Scales, Step, Sums,
    TILE_ROWS, TileFormat, accumulate_integers, accumulate_lone_integers, place_of_row,
    row_of_place,
};
use crate::gpu::{self, Global};

// ---- Q6_K --------------------------------------------------------------------------------------

/// 6-bit codes, offset 32, in groups of 16 with signed 8-bit scales.
pub struct Q6K;

const Q6K_CODES: u32 = PARTS * (NIBBLE_WORDS + PAIR_WORDS);
k_tile!(Q6K, Q6K_CODES + 4 * TILE_ROWS + TILE_ROWS / 2, 210);

/// A lane's codes of 6 bits: the nibbles, and the pairs above them.
#[derive(Clone, Copy)]
pub struct SixBits {
    nibbles: [u32; 4],
    pairs: [u32; 2],
}

/// A lane's scales of Q6_K or Q3_K.
#[derive(Clone, Copy)]
pub struct SixteenScales {
    /// Of rows g and g + 8: four signed bytes, or four 6-bit values.
    scales: [u32; 2],
    /// Their d, a half-word each.
    d: u32,
}

impl SixteenScales {
    /// The products of each row's d with what `scale` makes of its word.
    #[inline(always)]
    fn times(&self, scale: impl Fn(u32) -> i32) -> Scales {
        let d = |d: f32, row: usize| d * scale(self.scales[row]) as f32;
        Scales { d: [d(low_half(self.d), 0), d(high_half(self.d), 1)], m: [0.0; 2] }
    }
}

/// Code of a Q6_K block: 128 columns share 64 bytes of nibbles and 32 of pairs.
#[inline(always)]
fn raw_q6k(raw: Raw, row: u32, block: u32, col: u32) -> u32 {
    let (half, quarter, l) = (col / 128, col / 32 % 4, col % 32);
    let low = raw.byte(row, block, 64 * half + 32 * (quarter % 2) + l) >> (4 * (quarter / 2)) & 15;
    low | (raw.byte(row, block, 128 + 32 * half + l) >> (2 * quarter) & 3) << 4
}

/// A word of two rows' d: those of a lane.
#[inline(always)]
fn pack_d(raw: Raw, block: u32, i: u32, byte: u32) -> u32 {
    let d = |place| raw.half(row_of_place(place), block, byte);
    d(2 * i) | d(2 * i + 1) << 16
}

/// The d of rows g and g + 8, a half-word each.
#[inline(always)]
fn load_d(record: impl Records, first_word: u32) -> u32 {
    record.word(0, (first_word + gpu::lane() / 4) as usize)
}

#[inline(always)]
fn element_d(record: Global<u32>, first_word: u32, row: u32) -> f32 {
    let place = place_of_row(row);
    let word = record.get((first_word + place / 2) as usize);
    gpu::f16_to_f32((word >> (16 * (place % 2))) as u16)
}

impl TileFormat for Q6K {
    k_common!(ahead 2);
    const GROUPS: usize = 4;
    const DEEP_AHEAD: usize = 4;
    const DEEP_TOGETHER: usize = 1;
    type Codes = SixBits;
    type RowScales = SixteenScales;

    #[inline(always)]
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
        let block = first_col / 256;
        if i < Q4K_CODES {
            let first = i / NIBBLE_WORDS * super::PART_COLS;
            planes::nibbles(i % NIBBLE_WORDS, |row, col| raw_q6k(raw, row, block, first + col))
        } else if i < Q6K_CODES {
            let i = i - Q4K_CODES;
            let first = i / PAIR_WORDS * super::PART_COLS;
            planes::pairs(i % PAIR_WORDS, |row, col| raw_q6k(raw, row, block, first + col) >> 4)
        } else if i < Q6K_CODES + 4 * TILE_ROWS {
            let i = i - Q6K_CODES;
            raw.word(i / 4, block, 192 + i % 4 * 4)
        } else {
            pack_d(raw, block, i - Q6K_CODES - 4 * TILE_ROWS, 208)
        }
    }

    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let high = plane_bits(record, Q4K_CODES, PAIR_WORDS, col, planes::pair_at(p), 3);
        let code = k_nibble(record, col, p) | high << 4;
        let word = record.get((Q6K_CODES + 4 * row + col / super::PART_COLS) as usize);
        let scale = (word >> (8 * (col / 16 % 4))) as i8;
        let d = element_d(record, Q6K_CODES + 4 * TILE_ROWS, row);
        d * scale as f32 * (code as i32 - 32) as f32
    }

    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, part: u32) -> SixBits {
        let (record, lane) = (records.from(at / 4), gpu::lane());
        let pair = (part * PAIR_WORDS / 2 + lane) as usize;
        SixBits {
            nibbles: record.quad((part * NIBBLE_WORDS / 4 + lane) as usize).0,
            pairs: record.pair(Q4K_CODES as usize / 2, pair).0,
        }
    }

    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, part: u32) -> SixteenScales {
        let record = records.from(at / 4);
        let scales = |row: usize| record.word((Q6K_CODES + part) as usize, 4 * row);
        let g = (gpu::lane() / 4) as usize;
        SixteenScales {
            scales: [scales(g), scales(g + 8)],
            d: load_d(record, Q6K_CODES + 4 * TILE_ROWS),
        }
    }
}

impl IntegerTile for Q6K {
    const OFFSET: i32 = 32;
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        let low = planes::nibble_fragment(codes.nibbles, step);
        let [h0, h1, h2, h3] = planes::pair_fragment(codes.pairs[step]);
        planes::either(low, [h0 << 4, h1 << 4, h2 << 4, h3 << 4])
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        scales.times(|word| (word >> (8 * group)) as i8 as i32)
    }
}

// ---- Q2_K --------------------------------------------------------------------------------------

/// 2-bit codes in groups of 16 with 4-bit scales and minima.
pub struct Q2K;

const Q2K_CODES: u32 = PARTS * PAIR_WORDS;
k_tile!(Q2K, Q2K_CODES + 4 * TILE_ROWS + TILE_ROWS, 84);

/// A lane's scales of Q2_K.
#[derive(Clone, Copy)]
pub struct Q2KScales {
    /// Of rows g and g + 8: four bytes of scale (low nibble) and minimum.
    scales: [u32; 2],
    /// Of rows g and g + 8: d and dmin.
    d: [u32; 2],
}

/// Pair of a Q2_K or Q3_K block: 128 columns share 32 bytes.
#[inline(always)]
fn raw_pair(raw: Raw, first_byte: u32, row: u32, block: u32, col: u32) -> u32 {
    raw.byte(row, block, first_byte + col / 128 * 32 + col % 32) >> (2 * (col / 32 % 4)) & 3
}

/// A lane's words of a part's pairs, one a step.
#[inline(always)]
fn load_pairs(record: impl Records, part: u32) -> [u32; 2] {
    record.pair(0, (part * PAIR_WORDS / 2 + gpu::lane()) as usize).0
}

impl TileFormat for Q2K {
    k_common!(ahead 2);
    const GROUPS: usize = 4;
    const DEEP_AHEAD: usize = 4;
    const DEEP_TOGETHER: usize = 1;
    const X16_BLOCKS: u32 = 1;
    type Codes = [u32; 2];
    type RowScales = Q2KScales;

    #[inline(always)]
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
        let block = first_col / 256;
        if i < Q2K_CODES {
            let first = i / PAIR_WORDS * super::PART_COLS;
            let code = |row, col| raw_pair(raw, 16, row, block, first + col);
            planes::pairs(i % PAIR_WORDS, code)
        } else if i < Q2K_CODES + 4 * TILE_ROWS {
            let i = i - Q2K_CODES;
            raw.word(i / 4, block, i % 4 * 4)
        } else {
            raw.word(i - Q2K_CODES - 4 * TILE_ROWS, block, 80)
        }
    }

    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let code = plane_bits(record, 0, PAIR_WORDS, col, planes::pair_at(p), 3);
        let word = record.get((Q2K_CODES + 4 * row + col / super::PART_COLS) as usize);
        let scale = word >> (8 * (col / 16 % 4)) & 255;
        let d = record.get((Q2K_CODES + 4 * TILE_ROWS + row) as usize);
        let (dl, ml) = (low_half(d) * (scale & 15) as f32, high_half(d) * (scale >> 4) as f32);
        dl * code as f32 - ml
    }

    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, part: u32) -> [u32; 2] {
        load_pairs(records.from(at / 4), part)
    }

    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, part: u32) -> Q2KScales {
        let record = records.from(at / 4);
        let scales = |row: usize| record.word((Q2K_CODES + part) as usize, 4 * row);
        let d = |row: usize| record.word((Q2K_CODES + 4 * TILE_ROWS) as usize, row);
        let g = (gpu::lane() / 4) as usize;
        Q2KScales { scales: [scales(g), scales(g + 8)], d: [d(g), d(g + 8)] }
    }
}

impl IntegerTile for Q2K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::pair_fragment(codes[step])
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        let byte = |row: usize| scales.scales[row] >> (8 * group) & 255;
        let d = |row: usize| low_half(scales.d[row]) * (byte(row) & 15) as f32;
        let m = |row: usize| -(high_half(scales.d[row]) * (byte(row) >> 4) as f32);
        Scales { d: [d(0), d(1)], m: [m(0), m(1)] }
    }
}

// ---- Q3_K --------------------------------------------------------------------------------------

/// 3-bit codes, offset 4, in groups of 16 with 6-bit scales, offset 32.
pub struct Q3K;

const Q3K_CODES: u32 = PARTS * (PAIR_WORDS + BIT_WORDS);
k_tile!(Q3K, Q3K_CODES + 3 * TILE_ROWS + TILE_ROWS / 2, 110);

/// A lane's codes of 3 bits: the pairs, and the third bits.
#[derive(Clone, Copy)]
pub struct ThreeBits {
    pairs: [u32; 2],
    thirds: u32,
}

/// Third bit of a Q3_K code: bit `col / 32` of the mask byte.
#[inline(always)]
fn raw_third(raw: Raw, row: u32, block: u32, col: u32) -> u32 {
    raw.byte(row, block, col % 32) >> (col / 32) & 1
}

/// GGML's packing of sixteen 6-bit scales in 12 bytes.
#[inline(always)]
fn raw_q3k_scale(raw: Raw, row: u32, block: u32, group: u32) -> u32 {
    let low = raw.byte(row, block, 96 + group % 8) >> (4 * (group / 8)) & 15;
    low | (raw.byte(row, block, 104 + group % 4) >> (2 * (group / 4)) & 3) << 4
}

impl TileFormat for Q3K {
    k_common!(ahead 2);
    const GROUPS: usize = 4;
    const DEEP_AHEAD: usize = 4;
    const DEEP_TOGETHER: usize = 1;
    type Codes = ThreeBits;
    type RowScales = SixteenScales;
    const X16_BLOCKS: u32 = 1;

    #[inline(always)]
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
        let block = first_col / 256;
        if i < Q2K_CODES {
            let first = i / PAIR_WORDS * super::PART_COLS;
            let code = |row, col| raw_pair(raw, 32, row, block, first + col);
            planes::pairs(i % PAIR_WORDS, code)
        } else if i < Q3K_CODES {
            let i = i - Q2K_CODES;
            let first = i / BIT_WORDS * super::PART_COLS;
            planes::bits(i % BIT_WORDS, |row, col| raw_third(raw, row, block, first + col))
        } else if i < Q3K_CODES + 3 * TILE_ROWS {
            let i = i - Q3K_CODES;
            pack_six(i % 3, |group| raw_q3k_scale(raw, row_of_place(i / 3), block, group))
        } else {
            pack_d(raw, block, i - Q3K_CODES - 3 * TILE_ROWS, 108)
        }
    }

    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let low = plane_bits(record, 0, PAIR_WORDS, col, planes::pair_at(p), 3);
        let high = plane_bits(record, Q2K_CODES, BIT_WORDS, col, planes::bit_at(p), 1);
        let word = |k: u32| record.get((Q3K_CODES + 3 * place_of_row(row) + k) as usize);
        let bits = unpack_six([word(0), word(1), word(2)], col / super::PART_COLS);
        let scale = six(bits, (col / 16 % 4) as usize) as i32 - 32;
        let d = element_d(record, Q3K_CODES + 3 * TILE_ROWS, row);
        d * scale as f32 * ((low | high << 2) as i32 - 4) as f32
    }

    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, part: u32) -> ThreeBits {
        let record = records.from(at / 4);
        let third = (part * BIT_WORDS + gpu::lane()) as usize;
        ThreeBits {
            pairs: load_pairs(record, part),
            thirds: record.word(Q2K_CODES as usize, third),
        }
    }

    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, part: u32) -> SixteenScales {
        let record = records.from(at / 4);
        // Rows g and g + 8 stand side by side.
        let scales = (Q3K_CODES + gpu::lane() / 4 * 6) as usize;
        let row =
            |first: usize| unpack_six([0, 1, 2].map(|i| record.word(scales, first + i)), part);
        SixteenScales { scales: [row(0), row(3)], d: load_d(record, Q3K_CODES + 3 * TILE_ROWS) }
    }
}

impl IntegerTile for Q3K {
    const OFFSET: i32 = 4;
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        let low = planes::pair_fragment(codes.pairs[step]);
        let [h0, h1, h2, h3] = planes::bit_fragment(codes.thirds, step);
        planes::either(low, [h0 >> 2, h1 >> 2, h2 >> 2, h3 >> 2])
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        scales.times(|word| six(word, group) as i32 - 32)
    }
}
