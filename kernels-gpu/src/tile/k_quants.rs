//! Records of the formats with 256-column blocks and groups of 32: Q4_K and Q5_K.
//!
//! ```text
//! Q4_K  4 x 128 words of nibbles                    | rows x (d, dmin), 3 words of 6-bit scale, min
//! Q5_K  4 x 128 words of nibbles, 4 x 32 of bits    | rows x (d, dmin), 3 words of 6-bit scale, min
//! ```
//! Three words of 6-bit values hold 24 bits for each of the four parts: byte p of word k is byte k of
//! part p's four values, so that a lane needs the same three bytes of any part.

use super::planes::{self, BIT_WORDS, FiveBits, NIBBLE_WORDS, Place};
use super::{
    CHAIN_GROUPS, Factors, IntegerTile, LoneGroup, Part, Raw, Records, Scales, Step, Sums,
    TILE_ROWS, TileFormat, accumulate_integers, accumulate_lone_integers, copy_units,
};
use crate::gpu::{self, Global, SharedArray, U32x2, U32x4};

/// Parts of a record.
pub(super) const PARTS: u32 = 4;

#[inline(always)]
pub(super) fn low_half(word: u32) -> f32 {
    gpu::f16_to_f32(word as u16)
}

#[inline(always)]
pub(super) fn high_half(word: u32) -> f32 {
    gpu::f16_to_f32((word >> 16) as u16)
}

/// Word `k` (0..3) of a row's 6-bit values: byte p is byte k of the 24 bits of part p.
#[inline(always)]
pub(super) fn pack_six(k: u32, value: impl Fn(u32) -> u32) -> u32 {
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
pub(super) fn unpack_six([low, middle, high]: [u32; 3], part: u32) -> u32 {
    // What stands in the top byte is nobody's.
    let low = gpu::permute_bytes(low, middle, 0x40 + 0x11 * part);
    gpu::permute_bytes(low, high, 0x410 + 0x100 * part)
}

/// 6-bit value `i` of a part's 24 bits.
#[inline(always)]
pub(super) fn six(bits: u32, i: usize) -> u32 {
    bits >> (6 * i) & 63
}

/// Code bits of an element in a plane of `plane_words` words a part that begins at `first_word`.
#[inline(always)]
pub(super) fn plane_bits(
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
    (ahead $ahead:literal) => {
        const RECORD_COLS: u32 = 256;
        const RECORD_WORDS: u32 = Self::WORDS;
        const X8_BLOCKS: u32 = 2;
        const AHEAD: usize = $ahead;
        const BLOCK: (u32, u32) = (Self::BYTES, 256);

        #[inline(always)]
        fn accumulate(part: &Part<Self>, step: usize, x: Step, sums: &mut [Sums; CHAIN_GROUPS]) {
            accumulate_integers::<Self>(part, step, x, sums);
        }
        #[inline(always)]
        fn accumulate_lone<const PARTS: usize>(
            codes: &[Self::Codes; PARTS],
            scales: &Self::RowScales,
            group: usize,
            x: LoneGroup,
            factors: &Factors,
            sums: &mut Sums,
        ) {
            accumulate_lone_integers::<Self, PARTS>(codes, scales, group, x, factors, sums);
        }
    };
}

pub(super) use {k_common, k_tile};

/// 4-bit codes in groups of 32 with 6-bit scales and minima.
pub struct Q4K;
/// 5-bit codes in groups of 32 with 6-bit scales and minima.
pub struct Q5K;

/// Units of a part's nibbles in a ring's slot, before those of the scales.
const SLOT_CODES: u32 = NIBBLE_WORDS / 4;
/// Words of Q4_K's codes: a plane of nibbles for each part.
pub(super) const Q4K_CODES: u32 = PARTS * NIBBLE_WORDS;
const Q5K_CODES: u32 = PARTS * (NIBBLE_WORDS + BIT_WORDS);
k_tile!(Q4K, Q4K_CODES + 4 * TILE_ROWS, 144);
k_tile!(Q5K, Q5K_CODES + 4 * TILE_ROWS, 176);

/// What a lane holds of the scales of Q4_K or Q5_K. They are unpacked where they are needed: who does it where they are
/// loaded waits for them there.
#[derive(Clone, Copy)]
pub struct FineScales {
    /// Of rows g and g + 8: d and dmin, and three words of 6-bit values; or, made ready, scale and minimum of either step.
    rows: [U32x4; 2],
    /// The part whose scales are meant, or `READY`.
    part: u32,
}

/// Scales that are unpacked.
const READY: u32 = PARTS;

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
fn load_nibbles(record: impl Records, part: u32) -> [u32; 4] {
    record.quad((part * NIBBLE_WORDS / 4 + gpu::lane()) as usize).0
}

#[inline(always)]
fn load_fine_scales(rows: impl Records, part: u32) -> FineScales {
    let g = (gpu::lane() / 4) as usize;
    FineScales { rows: [rows.quad(g), rows.quad(g + 8)], part }
}

/// Scale and minimum of a group of part `part`, from a row's words.
#[inline(always)]
fn unpack_group(U32x4([d, a, b, c]): U32x4, part: u32, group: usize) -> [f32; 2] {
    // The values of a row: scale, min of step 0, scale, min of step 1.
    let bits = unpack_six([a, b, c], part);
    let value = |i: usize| six(bits, 2 * group + i) as f32;
    [low_half(d) * value(0), -(high_half(d) * value(1))]
}

#[inline(always)]
fn fine_scales(scales: &FineScales, group: usize) -> Scales {
    let of_row = |row: U32x4| {
        if scales.part == READY {
            let U32x4([d0, m0, d1, m1]) = row;
            (if group == 0 { [d0, m0] } else { [d1, m1] }).map(f32::from_bits)
        } else {
            unpack_group(row, scales.part, group)
        }
    };
    let [[d0, m0], [d1, m1]] = scales.rows.map(of_row);
    Scales { d: [d0, d1], m: [m0, m1] }
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
pub(super) fn k_nibble(record: Global<u32>, col: u32, p: Place) -> u32 {
    plane_bits(record, 0, NIBBLE_WORDS, col, planes::nibble_at(p), 15)
}

impl TileFormat for Q4K {
    k_common!(ahead 4);
    const GROUPS: usize = 2;
    const X4_WIDE_AHEAD: usize = 3;
    // Two are multiplied while two are under way.
    const LONE_TOGETHER: usize = 2;
    const X16_TILES: u32 = 2;
    const SLOT_UNITS: u32 = SLOT_CODES + TILE_ROWS;
    type Codes = [u32; 4];
    type RowScales = FineScales;

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
    fn load_codes(records: impl Records, at: usize, part: u32) -> [u32; 4] {
        load_nibbles(records.from(at / 4), part)
    }

    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, part: u32) -> FineScales {
        load_fine_scales(records.from((at + Q4K_CODES as usize) / 4), part)
    }

    /// The part's codes, and the scales of all parts of the record.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn copy_part(record: Global<U32x4>, part: u32, slot: SharedArray<U32x4>) {
        copy_units(record, part * SLOT_CODES, slot, 0, SLOT_CODES);
        copy_units(record, Q4K_CODES / 4, slot, SLOT_CODES, TILE_ROWS);
    }

    /// Unpacks the scales of the part in their place: a lane those of a row and a step, where each would unpack those of two
    /// rows and both steps.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn make_ready<const N: usize>(slot: impl Fn(u32) -> SharedArray<U32x4>, part: u32) {
        let (row, step) = (gpu::lane() / 2, gpu::lane() % 2);
        let rows: [U32x4; N] = core::array::from_fn(|i| slot(i as u32).get(SLOT_CODES + row));
        gpu::sync_warp(); // both lanes of a row have it
        unroll!(i < N, {
            let [d, m] = unpack_group(rows[i], part, step as usize);
            let ready = slot(i as u32).from(SLOT_CODES).cast::<U32x2>();
            ready.set(2 * row + step, U32x2([d.to_bits(), m.to_bits()]));
        });
        gpu::sync_warp(); // all rows are ready
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_part(slot: SharedArray<U32x4>) -> Part<Self> {
        let scales = load_fine_scales(slot.from(SLOT_CODES), READY);
        Part { codes: load_nibbles(slot, 0), scales }
    }
}

impl IntegerTile for Q4K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::nibble_fragment(*codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        fine_scales(scales, group)
    }
}

/// Code of a Q5_K block: bit `col / 32` of the high byte is the fifth.
#[inline(always)]
fn raw_q5k(raw: Raw, row: u32, block: u32, col: u32) -> u32 {
    let fifth = raw.byte(row, block, 16 + col % 32) >> (col / 32) & 1;
    raw_k_nibble(raw, 48, row, block, col) | fifth << 4
}

impl TileFormat for Q5K {
    k_common!(ahead 2);
    const GROUPS: usize = 2;
    const X4_WIDE_AHEAD: usize = 3;
    // Four chains would not fit.
    const LONE_AHEAD: usize = 2;
    const LONE_TOGETHER: usize = 2;
    type Codes = FiveBits;
    type RowScales = FineScales;

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
    fn load_codes(records: impl Records, at: usize, part: u32) -> FiveBits {
        let record = records.from(at / 4);
        let fifth = record.word(Q4K_CODES as usize, (part * BIT_WORDS + gpu::lane()) as usize);
        FiveBits { nibbles: load_nibbles(record, part), fifth }
    }

    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, part: u32) -> FineScales {
        load_fine_scales(records.from((at + Q5K_CODES as usize) / 4), part)
    }
}

impl IntegerTile for Q5K {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::five_bit_fragment(codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        fine_scales(scales, group)
    }
}
