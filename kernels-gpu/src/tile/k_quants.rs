//! Records of the formats with 256-column blocks: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K.
//!
//! ```text
//! Q2_K  4 x 64 words of pairs                       | rows x 4 words, byte = scale, min of 16 | rows x (d, dmin)
//! Q3_K  4 x 64 words of pairs, 4 x 32 of third bits | rows x 3 words, 6-bit scales           | rows x d
//! Q4_K  4 x 128 words of nibbles                    | rows x (d, dmin), 3 words of 6-bit scale, min
//! Q5_K  4 x 128 words of nibbles, 4 x 32 of bits    | rows x (d, dmin), 3 words of 6-bit scale, min
//! Q6_K  4 x 128 words of nibbles, 4 x 64 of pairs   | rows x 4 words of signed bytes         | rows x d
//! ```
//! The scales of Q3_K and the half-words of d are in the order of `place_of_row`. Three words of 6-bit
//! values hold 24 bits for each of the four parts: byte p of word k is byte k of part p's four values, so
//! that a lane needs the same three bytes of any part.

use super::planes::{self, BIT_WORDS, NIBBLE_WORDS, PAIR_WORDS, Place};
use super::{
    IntegerTile, Raw, Scales, Step, Sums, TILE_ROWS, TileFormat, accumulate_integers, place_of_row,
    row_of_place,
};
use crate::gpu::{self, Global, U32x4};

const PARTS: u32 = 4;

#[inline(always)]
fn low_half(word: u32) -> f32 {
    gpu::f16_to_f32(word as u16)
}

#[inline(always)]
fn high_half(word: u32) -> f32 {
    gpu::f16_to_f32((word >> 16) as u16)
}

/// Word `k` (0..3) of a row's 6-bit values: byte p is byte k of the 24 bits of part p.
#[inline(always)]
fn pack_six(k: u32, value: impl Fn(u32) -> u32) -> u32 {
    let mut word = 0;
    let mut part = 0;
    while part < PARTS {
        let mut bits = 0;
        let mut i = 0;
        while i < 4 {
            bits |= (value(4 * part + i) & 63) << (6 * i);
            i += 1;
        }
        word |= (bits >> (8 * k) & 255) << (8 * part);
        part += 1;
    }
    word
}

/// The four 6-bit values of part `part` from a row's three words.
#[inline(always)]
fn unpack_six(words: [u32; 3], part: u32) -> u32 {
    let [low, middle, high] = words.map(|word| word >> (8 * part));
    // What stands in the top byte is nobody's.
    gpu::permute_bytes(gpu::permute_bytes(low, middle, 0x40), high, 0x410)
}

/// 6-bit value `i` of a part's 24 bits.
#[inline(always)]
fn six(bits: u32, i: usize) -> u32 {
    bits >> (6 * i) & 63
}

/// Code bits of an element in a plane of `plane_words` words a part that begins at `first_word`.
#[inline(always)]
fn plane_bits(
    record: Global<u32>,
    first_word: u32,
    plane_words: u32,
    col: u32,
    (word, shift): (u32, u32),
    mask: u32,
) -> u32 {
    let at = first_word + col / super::PART_COLS * plane_words + word;
    record.get(at as usize) >> shift & mask
}

/// The parts of `TileFormat` that all K formats write alike.
macro_rules! k_tile {
    ($name:ident, $words:expr, $bytes:literal) => {
        impl $name {
            const WORDS: u32 = $words;
            const BYTES: u32 = $bytes;
        }
        const _: () = assert!($name::WORDS * 4 == TILE_ROWS * $name::BYTES);
    };
}

/// The constants and the product of a K format's `TileFormat`.
macro_rules! k_common {
    () => {
        const RECORD_COLS: u32 = 256;
        const RECORD_WORDS: u32 = Self::WORDS;
        const STEP_PRODUCTS: u32 = 1 + Self::HALVES as u32;
        const GATED_BLOCKS: u32 = 2;
        const BLOCK: (u32, u32) = (Self::BYTES, 256);
        type Part = <Self as IntegerTile>::Part;

        #[inline(always)]
        fn accumulate(part: &Self::Part, step: usize, x: Step, sums: &mut Sums) {
            accumulate_integers::<Self>(part, step, x, sums);
        }
    };
}

// ---- Q4_K and Q5_K -----------------------------------------------------------------------------

/// 4-bit codes in groups of 32 with 6-bit scales and minima.
pub struct Q4K;
/// 5-bit codes in groups of 32 with 6-bit scales and minima.
pub struct Q5K;

const Q4K_CODES: u32 = PARTS * NIBBLE_WORDS;
const Q5K_CODES: u32 = PARTS * (NIBBLE_WORDS + BIT_WORDS);
k_tile!(Q4K, Q4K_CODES + 4 * TILE_ROWS, 144);
k_tile!(Q5K, Q5K_CODES + 4 * TILE_ROWS, 176);

/// A part of Q4_K or Q5_K.
#[derive(Clone, Copy)]
pub struct FineMinPart {
    codes: [u32; 4],
    high: u32,
    /// Of rows g and g + 8: d and dmin.
    d: [u32; 2],
    /// Of rows g and g + 8: scale, min of step 0, scale, min of step 1.
    six: [u32; 2],
}

/// GGML's packing of eight scales and eight minima in 12 bytes: value `2 group` is the scale of the
/// group, `2 group + 1` its minimum.
#[inline(always)]
fn raw_scale_min(raw: Raw, row: u32, block: u32, value: u32) -> u32 {
    let (group, is_min) = (value / 2, value % 2);
    let byte = |i: u32| raw.byte(row, block, 4 + i);
    if group < 4 {
        byte(group + 4 * is_min) & 63
    } else {
        let low = byte(group + 4) >> (4 * is_min) & 15;
        low | byte(group - 4 + 4 * is_min) >> 6 << 4
    }
}

/// Nibble of a Q4_K or Q5_K block: 64 columns share 32 bytes, the first half the low nibbles.
#[inline(always)]
fn raw_k_nibble(raw: Raw, first_byte: u32, row: u32, block: u32, col: u32) -> u32 {
    raw.byte(row, block, first_byte + col / 64 * 32 + col % 32) >> (col / 32 % 2 * 4) & 15
}

/// A word of a row's (d, dmin) and 6-bit scales and minima.
#[inline(always)]
fn pack_scale_min(raw: Raw, block: u32, i: u32) -> u32 {
    let (row, k) = (i / 4, i % 4);
    if k == 0 {
        raw.word(row, block, 0)
    } else {
        pack_six(k - 1, |value| raw_scale_min(raw, row, block, value))
    }
}

#[inline(always)]
fn load_scale_min(record: Global<U32x4>, code_words: u32, part: u32) -> ([u32; 2], [u32; 2]) {
    let rows = record.from(code_words as usize / 4);
    let g = (gpu::lane() / 4) as usize;
    let U32x4([d0, a0, b0, c0]) = rows.get(g);
    let U32x4([d1, a1, b1, c1]) = rows.get(g + 8);
    ([d0, d1], [unpack_six([a0, b0, c0], part), unpack_six([a1, b1, c1], part)])
}

#[inline(always)]
fn fine_min_scales(part: &FineMinPart, step: usize) -> Scales {
    let d = |row: usize| low_half(part.d[row]) * six(part.six[row], 2 * step) as f32;
    let m = |row: usize| -(high_half(part.d[row]) * six(part.six[row], 2 * step + 1) as f32);
    Scales { d: [d(0), d(1)], m: [m(0), m(1)] }
}

#[inline(always)]
fn element_scale_min(record: Global<u32>, code_words: u32, row: u32, col: u32) -> [f32; 2] {
    let word = |k: u32| record.get((code_words + 4 * row + k) as usize);
    let bits = unpack_six([word(1), word(2), word(3)], col / super::PART_COLS);
    let step = (col / 32 % 2) as usize;
    let d = low_half(word(0)) * six(bits, 2 * step) as f32;
    [d, high_half(word(0)) * six(bits, 2 * step + 1) as f32]
}

#[inline(always)]
fn k_nibble(record: Global<u32>, col: u32, p: Place) -> u32 {
    plane_bits(record, 0, NIBBLE_WORDS, col, planes::nibble_at(p), 15)
}

impl TileFormat for Q4K {
    k_common!();

    #[inline(always)]
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
        let block = first_col / 256;
        if i < Q4K_CODES {
            let first = i / NIBBLE_WORDS * super::PART_COLS;
            let code = |row, col| raw_k_nibble(raw, 16, row, block, first + col);
            planes::nibbles(i % NIBBLE_WORDS, code)
        } else {
            pack_scale_min(raw, block, i - Q4K_CODES)
        }
    }

    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let [d, m] = element_scale_min(record, Q4K_CODES, row, col);
        d * k_nibble(record, col, planes::place(row, col)) as f32 - m
    }

    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, part: u32) -> FineMinPart {
        let record = records.from((at / 4) as u32 as usize);
        let codes = record.stream((part * NIBBLE_WORDS / 4 + gpu::lane()) as usize).0;
        let (d, six) = load_scale_min(record, Q4K_CODES, part);
        FineMinPart { codes, high: 0, d, six }
    }
}

impl IntegerTile for Q4K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const HALVES: bool = false;
    type Part = FineMinPart;
    #[inline(always)]
    fn fragment(part: &FineMinPart, step: usize) -> [u32; 4] {
        planes::nibble_fragment(part.codes, step)
    }
    #[inline(always)]
    fn scales(part: &FineMinPart, step: usize, _half: usize) -> Scales {
        fine_min_scales(part, step)
    }
}

/// Code of a Q5_K block: bit `col / 32` of the high byte is the fifth.
#[inline(always)]
fn raw_q5k(raw: Raw, row: u32, block: u32, col: u32) -> u32 {
    let fifth = raw.byte(row, block, 16 + col % 32) >> (col / 32) & 1;
    raw_k_nibble(raw, 48, row, block, col) | fifth << 4
}

impl TileFormat for Q5K {
    k_common!();

    #[inline(always)]
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
        let block = first_col / 256;
        if i < Q4K_CODES {
            let first = i / NIBBLE_WORDS * super::PART_COLS;
            planes::nibbles(i % NIBBLE_WORDS, |row, col| raw_q5k(raw, row, block, first + col))
        } else if i < Q5K_CODES {
            let i = i - Q4K_CODES;
            let first = i / BIT_WORDS * super::PART_COLS;
            planes::bits(i % BIT_WORDS, |row, col| raw_q5k(raw, row, block, first + col) >> 4)
        } else {
            pack_scale_min(raw, block, i - Q5K_CODES)
        }
    }

    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let fifth = plane_bits(record, Q4K_CODES, BIT_WORDS, col, planes::bit_at(p), 1);
        let [d, m] = element_scale_min(record, Q5K_CODES, row, col);
        d * (k_nibble(record, col, p) | fifth << 4) as f32 - m
    }

    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, part: u32) -> FineMinPart {
        let record = records.from((at / 4) as u32 as usize);
        let lane = gpu::lane();
        let codes = record.stream((part * NIBBLE_WORDS / 4 + lane) as usize).0;
        let bits = record.cast::<u32>().from(Q4K_CODES as usize);
        let high = bits.get((part * BIT_WORDS + lane) as usize);
        let (d, six) = load_scale_min(record, Q5K_CODES, part);
        FineMinPart { codes, high, d, six }
    }
}

impl IntegerTile for Q5K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const HALVES: bool = false;
    type Part = FineMinPart;
    #[inline(always)]
    fn fragment(part: &FineMinPart, step: usize) -> [u32; 4] {
        let low = planes::nibble_fragment(part.codes, step);
        planes::either(low, planes::bit_fragment(part.high, step))
    }
    #[inline(always)]
    fn scales(part: &FineMinPart, step: usize, _half: usize) -> Scales {
        fine_min_scales(part, step)
    }
}

// ---- Q6_K --------------------------------------------------------------------------------------

/// 6-bit codes, offset 32, in groups of 16 with signed 8-bit scales.
pub struct Q6K;

const Q6K_CODES: u32 = PARTS * (NIBBLE_WORDS + PAIR_WORDS);
k_tile!(Q6K, Q6K_CODES + 4 * TILE_ROWS + TILE_ROWS / 2, 210);

/// A part of Q6_K.
#[derive(Clone, Copy)]
pub struct Q6KPart {
    codes: [u32; 4],
    high: [u32; 2],
    /// Of rows g and g + 8: four signed bytes.
    scales: [u32; 2],
    d: u32,
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
fn load_d(record: Global<U32x4>, first_word: u32) -> u32 {
    record.cast::<u32>().get((first_word + gpu::lane() / 4) as usize)
}

#[inline(always)]
fn element_d(record: Global<u32>, first_word: u32, row: u32) -> f32 {
    let place = place_of_row(row);
    let word = record.get((first_word + place / 2) as usize);
    gpu::f16_to_f32((word >> (16 * (place % 2))) as u16)
}

impl TileFormat for Q6K {
    k_common!();

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
    fn load(records: Global<U32x4>, at: usize, part: u32) -> Q6KPart {
        let record = records.from((at / 4) as u32 as usize);
        let lane = gpu::lane();
        let pairs = record.cast::<gpu::U32x2>().from(Q4K_CODES as usize / 2);
        let scales = record.cast::<u32>().from((Q6K_CODES + part) as usize);
        let g = (lane / 4) as usize;
        Q6KPart {
            codes: record.stream((part * NIBBLE_WORDS / 4 + lane) as usize).0,
            high: pairs.get((part * PAIR_WORDS / 2 + lane) as usize).0,
            scales: [scales.get(4 * g), scales.get(4 * (g + 8))],
            d: load_d(record, Q6K_CODES + 4 * TILE_ROWS),
        }
    }
}

impl IntegerTile for Q6K {
    const OFFSET: i32 = 32;
    const HAS_MIN: bool = false;
    const HALVES: bool = true;
    type Part = Q6KPart;
    #[inline(always)]
    fn fragment(part: &Q6KPart, step: usize) -> [u32; 4] {
        let low = planes::nibble_fragment(part.codes, step);
        let [h0, h1, h2, h3] = planes::pair_fragment(part.high[step]);
        planes::either(low, [h0 << 4, h1 << 4, h2 << 4, h3 << 4])
    }
    #[inline(always)]
    fn scales(part: &Q6KPart, step: usize, half: usize) -> Scales {
        let halves = [low_half(part.d), high_half(part.d)];
        let d = |row: usize| {
            let scale = (part.scales[row] >> (16 * step + 8 * half)) as i8;
            halves[row] * scale as f32
        };
        Scales { d: [d(0), d(1)], m: [0.0; 2] }
    }
}

// ---- Q2_K --------------------------------------------------------------------------------------

/// 2-bit codes in groups of 16 with 4-bit scales and minima.
pub struct Q2K;

const Q2K_CODES: u32 = PARTS * PAIR_WORDS;
k_tile!(Q2K, Q2K_CODES + 4 * TILE_ROWS + TILE_ROWS, 84);

/// A part of Q2_K.
#[derive(Clone, Copy)]
pub struct Q2KPart {
    codes: [u32; 2],
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

impl TileFormat for Q2K {
    k_common!();

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
    fn load(records: Global<U32x4>, at: usize, part: u32) -> Q2KPart {
        let record = records.from((at / 4) as u32 as usize);
        let lane = gpu::lane();
        let pairs = record.cast::<gpu::U32x2>();
        let words = record.cast::<u32>();
        let scales = words.from((Q2K_CODES + part) as usize);
        let d = words.from((Q2K_CODES + 4 * TILE_ROWS) as usize);
        let g = (lane / 4) as usize;
        Q2KPart {
            codes: pairs.get((part * PAIR_WORDS / 2 + lane) as usize).0,
            scales: [scales.get(4 * g), scales.get(4 * (g + 8))],
            d: [d.get(g), d.get(g + 8)],
        }
    }
}

impl IntegerTile for Q2K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const HALVES: bool = true;
    type Part = Q2KPart;
    #[inline(always)]
    fn fragment(part: &Q2KPart, step: usize) -> [u32; 4] {
        planes::pair_fragment(part.codes[step])
    }
    #[inline(always)]
    fn scales(part: &Q2KPart, step: usize, half: usize) -> Scales {
        let byte = |row: usize| part.scales[row] >> (16 * step + 8 * half) & 255;
        let d = |row: usize| low_half(part.d[row]) * (byte(row) & 15) as f32;
        let m = |row: usize| -(high_half(part.d[row]) * (byte(row) >> 4) as f32);
        Scales { d: [d(0), d(1)], m: [m(0), m(1)] }
    }
}

// ---- Q3_K --------------------------------------------------------------------------------------

/// 3-bit codes, offset 4, in groups of 16 with 6-bit scales, offset 32.
pub struct Q3K;

const Q3K_CODES: u32 = PARTS * (PAIR_WORDS + BIT_WORDS);
k_tile!(Q3K, Q3K_CODES + 3 * TILE_ROWS + TILE_ROWS / 2, 110);

/// A part of Q3_K.
#[derive(Clone, Copy)]
pub struct Q3KPart {
    codes: [u32; 2],
    high: u32,
    /// Of rows g and g + 8: four 6-bit scales.
    six: [u32; 2],
    d: u32,
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
    k_common!();
    const X16_BLOCKS: u32 = 1;
    const AHEAD: usize = 2;
    const EXPERTS_AHEAD: usize = 1;

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
    fn load(records: Global<U32x4>, at: usize, part: u32) -> Q3KPart {
        let record = records.from((at / 4) as u32 as usize);
        let lane = gpu::lane();
        let words = record.cast::<u32>();
        let bits = words.from(Q2K_CODES as usize);
        // Rows g and g + 8 stand side by side.
        let scales = words.from((Q3K_CODES + lane / 4 * 6) as usize);
        let row = |first: usize| {
            unpack_six([scales.get(first), scales.get(first + 1), scales.get(first + 2)], part)
        };
        Q3KPart {
            codes: record.cast::<gpu::U32x2>().get((part * PAIR_WORDS / 2 + lane) as usize).0,
            high: bits.get((part * BIT_WORDS + lane) as usize),
            six: [row(0), row(3)],
            d: load_d(record, Q3K_CODES + 3 * TILE_ROWS),
        }
    }
}

impl IntegerTile for Q3K {
    const OFFSET: i32 = 4;
    const HAS_MIN: bool = false;
    const HALVES: bool = true;
    type Part = Q3KPart;
    #[inline(always)]
    fn fragment(part: &Q3KPart, step: usize) -> [u32; 4] {
        let low = planes::pair_fragment(part.codes[step]);
        let [h0, h1, h2, h3] = planes::bit_fragment(part.high, step);
        planes::either(low, [h0 >> 2, h1 >> 2, h2 >> 2, h3 >> 2])
    }
    #[inline(always)]
    fn scales(part: &Q3KPart, step: usize, half: usize) -> Scales {
        let halves = [low_half(part.d), high_half(part.d)];
        let d = |row: usize| {
            let scale = six(part.six[row], 2 * step + half) as i32 - 32;
            halves[row] * scale as f32
        };
        Scales { d: [d(0), d(1)], m: [0.0; 2] }
    }
}
