//! Records of the formats with 32-column blocks: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4.
//!
//! ```text
//! Q4_0   128 words of nibbles                   | 16 rows x 2 steps x d           (f16)
//! Q4_1   128 words of nibbles                   | 16 rows x 2 steps x (d, m)      (f16)
//! Q5_0   128 words of nibbles, 32 of fifth bits | 16 rows x 2 steps x d           (f16)
//! Q5_1   128 words of nibbles, 32 of fifth bits | 16 rows x 2 steps x (d, m)      (f16)
//! Q8_0   256 words of bytes                     | 16 rows x 2 steps x d           (f16)
//! MXFP4  128 words of nibbles                   | 16 rows x 2 steps x exponent    (E8M0)
//! ```
//! The rows are in the order of `place_of_row`.

use super::planes::{self, FiveBits, Place};
use super::{
    CHAIN_GROUPS, Factors, IntegerTile, LoneGroup, Part, Raw, Records, Scales, Step, Sums,
    TILE_ROWS, TileFormat, accumulate_integers, accumulate_lone_integers, place_of_row,
    row_of_place,
};
use crate::gpu::{self, Global, U32x4};

/// Splits a word of two halves.
#[inline(always)]
fn halves(word: u32) -> [f32; 2] {
    [gpu::f16_to_f32(word as u16), gpu::f16_to_f32((word >> 16) as u16)]
}

/// Code of a GGUF block that keeps elements j and j + 16 in byte j's low and high nibble.
#[inline(always)]
fn raw_nibble(raw: Raw, first_byte: u32, row: u32, col: u32) -> u32 {
    raw.byte(row, col / 32, first_byte + col % 16) >> (col % 32 / 16 * 4) & 15
}

/// A lane's first row.
#[inline(always)]
fn row_g() -> usize {
    (gpu::lane() / 4) as usize
}

/// A tile format of this family: where its codes lie in the GGUF block, and how many words of
/// scales a row of a record has.
macro_rules! legacy_tile {
    (
        $(#[$doc:meta])* $name:ident, block_bytes $block_bytes:literal,
        scale_words $scale_words:literal, code_words $code_words:expr,
        products $products:literal, unit $unit:literal, x8_blocks $x8_blocks:literal;
        pack_code $pack_code:item pack_scale $pack_scale:item
        element $element:item
        codes $codes:ty, load_codes $load_codes:item
        scales $scales:ty, load_scales $load_scales:item
    ) => {
        $(#[$doc])*
        pub struct $name;

        impl $name {
            /// Words before the scales.
            const CODE_WORDS: u32 = $code_words;
            $pack_code
            $pack_scale
        }

        impl TileFormat for $name {
            const RECORD_COLS: u32 = 64;
            const RECORD_WORDS: u32 = Self::CODE_WORDS + TILE_ROWS * $scale_words / 2;
            const GROUPS: usize = 2;
            const PRODUCTS: u32 = $products;
            const X16_TILES: u32 = if $scale_words <= 2 { 2 } else { 1 };
            // Those with an offset and no minimum, Q4_0 and Q5_0, have no registers for it with four columns.
            const SLOT_UNITS: u32 = if $block_bytes == 18 || $block_bytes == 22 {
                0
            } else {
                Self::RECORD_WORDS / 4
            };
            const X8_BLOCKS: u32 = $x8_blocks;
            // Q8_0 has twice the codes; two at once, of two under way, gained it nothing.
            const LONE_AHEAD: usize = if $block_bytes < 25 { 4 } else { 3 };
            const TOGETHER: usize = if $block_bytes < 25 { 2 } else { 1 };
            const LONE_TOGETHER: usize = Self::TOGETHER;
            const EXPERTS_AHEAD: usize =
                if $block_bytes < 25 { 6 } else { Self::LONE_AHEAD };
            const BLOCK: (u32, u32) = ($block_bytes, 32);
            const UNIT: f32 = $unit;
            type Codes = $codes;
            type RowScales = $scales;

            #[inline(always)]
            fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
                if i < Self::CODE_WORDS {
                    Self::pack_code(raw, first_col, i)
                } else {
                    Self::pack_scale(raw, first_col / 32, i - Self::CODE_WORDS)
                }
            }
            $element
            $load_codes
            $load_scales

            #[inline(always)]
            fn accumulate(
                part: &Part<Self>,
                step: usize,
                x: Step,
                sums: &mut [Sums; CHAIN_GROUPS],
            ) {
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
        }
    };
}

/// Of rows g and g + 8: an f16 scale for each step.
type RowD = [u32; 2];
/// Of rows g and g + 8: (d, m) of each step.
type RowDm = [[u32; 2]; 2];

/// A word of scales of Q4_0, Q5_0, Q8_0: place i, both steps.
#[inline(always)]
fn pack_d(raw: Raw, first_block: u32, i: u32) -> u32 {
    let row = row_of_place(i);
    raw.half(row, first_block, 0) | raw.half(row, first_block + 1, 0) << 16
}

/// A word of scales of Q4_1, Q5_1: place i / 2, step i % 2, its d and m.
#[inline(always)]
fn pack_dm(raw: Raw, first_block: u32, i: u32) -> u32 {
    raw.word(row_of_place(i / 2), first_block + i % 2, 0)
}

#[inline(always)]
fn load_d(records: impl Records, at: usize, code_words: u32) -> RowD {
    records.pair(code_words as usize / 2 + row_g(), at / 2).0
}

#[inline(always)]
fn load_dm(records: impl Records, at: usize, code_words: u32) -> RowDm {
    let U32x4([d0, d1, d2, d3]) = records.from(code_words as usize / 4 + row_g()).quad(at / 4);
    [[d0, d1], [d2, d3]]
}

#[inline(always)]
fn load_nibbles(records: impl Records, at: usize) -> [u32; 4] {
    records.from(gpu::lane() as usize).quad(at / 4).0
}

#[inline(always)]
fn load_five_bits(records: impl Records, at: usize) -> FiveBits {
    let fifth = records.word((planes::NIBBLE_WORDS + gpu::lane()) as usize, at);
    FiveBits { nibbles: load_nibbles(records, at), fifth }
}

/// The f16 scales of a step's group.
#[inline(always)]
fn d_of_step(scales: &RowD, step: usize) -> Scales {
    let d = |word: u32| gpu::f16_to_f32((word >> (16 * step)) as u16);
    Scales { d: [d(scales[0]), d(scales[1])], m: [0.0; 2] }
}

/// The scale and minimum of a step's group.
#[inline(always)]
fn dm_of_step(scales: &RowDm, step: usize) -> Scales {
    let dm = |row: [u32; 2]| halves(if step == 0 { row[0] } else { row[1] });
    let ([d0, m0], [d1, m1]) = (dm(scales[0]), dm(scales[1]));
    Scales { d: [d0, d1], m: [m0, m1] }
}

/// Code of an element in the nibble plane.
#[inline(always)]
fn nibble(record: Global<u32>, p: Place) -> u32 {
    let (word, shift) = planes::nibble_at(p);
    record.get(word as usize) >> shift & 15
}

/// Fifth bit of an element, in bit 4.
#[inline(always)]
fn fifth_bit(record: Global<u32>, p: Place) -> u32 {
    let (word, shift) = planes::bit_at(p);
    (record.get((planes::NIBBLE_WORDS + word) as usize) >> shift & 1) << 4
}

#[inline(always)]
fn element_d(record: Global<u32>, code_words: u32, row: u32, p: Place) -> f32 {
    let word = record.get((code_words + place_of_row(row)) as usize);
    gpu::f16_to_f32((word >> (16 * p.step)) as u16)
}

#[inline(always)]
fn element_dm(record: Global<u32>, code_words: u32, row: u32, p: Place) -> [f32; 2] {
    halves(record.get((code_words + 2 * place_of_row(row) + p.step) as usize))
}

legacy_tile! {
    /// 4-bit codes, offset 8.
    Q4_0, block_bytes 18, scale_words 2, code_words planes::NIBBLE_WORDS,
    products 1, unit 1.0, x8_blocks 3;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        planes::nibbles(i, |row, col| raw_nibble(raw, 2, row, first_col + col))
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        pack_d(raw, first_block, i)
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        (nibble(record, p) as i32 - 8) as f32 * element_d(record, Self::CODE_WORDS, row, p)
    }
    codes [u32; 4], load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> [u32; 4] {
        load_nibbles(records, at)
    }
    scales RowD, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> RowD {
        load_d(records, at, Self::CODE_WORDS)
    }
}

impl IntegerTile for Q4_0 {
    const OFFSET: i32 = 8;
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::nibble_fragment(*codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        d_of_step(scales, group)
    }
}

legacy_tile! {
    /// 4-bit codes with a minimum.
    Q4_1, block_bytes 20, scale_words 4, code_words planes::NIBBLE_WORDS,
    products 1, unit 1.0, x8_blocks 2;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        planes::nibbles(i, |row, col| raw_nibble(raw, 4, row, first_col + col))
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        pack_dm(raw, first_block, i)
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let [d, m] = element_dm(record, Self::CODE_WORDS, row, p);
        nibble(record, p) as f32 * d + m
    }
    codes [u32; 4], load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> [u32; 4] {
        load_nibbles(records, at)
    }
    scales RowDm, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> RowDm {
        load_dm(records, at, Self::CODE_WORDS)
    }
}

impl IntegerTile for Q4_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::nibble_fragment(*codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        dm_of_step(scales, group)
    }
}

/// Code of a Q5 block: the nibble, and its fifth bit from the word at `bits_byte`.
#[inline(always)]
fn raw_five(raw: Raw, bits_byte: u32, row: u32, col: u32) -> u32 {
    let j = col % 32;
    let fifth = raw.byte(row, col / 32, bits_byte + j / 8) >> (j % 8) & 1;
    raw_nibble(raw, bits_byte + 4, row, col) | fifth << 4
}

/// A word of the nibble and fifth-bit planes.
#[inline(always)]
fn pack_five(i: u32, code: impl Fn(u32, u32) -> u32) -> u32 {
    if i < planes::NIBBLE_WORDS {
        planes::nibbles(i, code)
    } else {
        planes::bits(i - planes::NIBBLE_WORDS, |row, col| code(row, col) >> 4)
    }
}

legacy_tile! {
    /// 5-bit codes, offset 16.
    Q5_0, block_bytes 22, scale_words 2, code_words planes::NIBBLE_WORDS + planes::BIT_WORDS,
    products 1, unit 1.0, x8_blocks 2;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        pack_five(i, |row, col| raw_five(raw, 2, row, first_col + col))
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        pack_d(raw, first_block, i)
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let code = nibble(record, p) | fifth_bit(record, p);
        (code as i32 - 16) as f32 * element_d(record, Self::CODE_WORDS, row, p)
    }
    codes FiveBits, load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> FiveBits {
        load_five_bits(records, at)
    }
    scales RowD, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> RowD {
        load_d(records, at, Self::CODE_WORDS)
    }
}

impl IntegerTile for Q5_0 {
    const OFFSET: i32 = 16;
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::five_bit_fragment(codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        d_of_step(scales, group)
    }
}

legacy_tile! {
    /// 5-bit codes with a minimum.
    Q5_1, block_bytes 24, scale_words 4, code_words planes::NIBBLE_WORDS + planes::BIT_WORDS,
    products 1, unit 1.0, x8_blocks 2;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        pack_five(i, |row, col| raw_five(raw, 4, row, first_col + col))
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        pack_dm(raw, first_block, i)
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let code = nibble(record, p) | fifth_bit(record, p);
        let [d, m] = element_dm(record, Self::CODE_WORDS, row, p);
        code as f32 * d + m
    }
    codes FiveBits, load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> FiveBits {
        load_five_bits(records, at)
    }
    scales RowDm, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> RowDm {
        load_dm(records, at, Self::CODE_WORDS)
    }
}

impl IntegerTile for Q5_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        planes::five_bit_fragment(codes, step)
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        dm_of_step(scales, group)
    }
}

legacy_tile! {
    /// Signed bytes.
    Q8_0, block_bytes 34, scale_words 2, code_words planes::BYTE_WORDS,
    products 1, unit 1.0, x8_blocks 2;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        planes::bytes(i, |row, col| {
            let col = first_col + col;
            raw.byte(row, col / 32, 2 + col % 32)
        })
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        pack_d(raw, first_block, i)
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let (word, shift) = planes::byte_at(p);
        let code = (record.get(word as usize) >> shift) as i8;
        code as f32 * element_d(record, Self::CODE_WORDS, row, p)
    }
    codes [[u32; 4]; 2], load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> [[u32; 4]; 2] {
        let lane = records.from(gpu::lane() as usize);
        [lane.quad(at / 4).0, lane.quad(at / 4 + 32).0]
    }
    scales RowD, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> RowD {
        load_d(records, at, Self::CODE_WORDS)
    }
}

impl IntegerTile for Q8_0 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;
    #[inline(always)]
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4] {
        codes[step]
    }
    #[inline(always)]
    fn scales(scales: &Self::RowScales, group: usize) -> Scales {
        d_of_step(scales, group)
    }
}

/// Doubled values of E2M1 with mantissa 0, by exponent: those of the positive codes, and of the negative
/// ones.
const EVEN: [[i8; 4]; 2] = [[0, 2, 4, 8], [0, -2, -4, -8]];
/// The same with mantissa 1.
const ODD: [[i8; 4]; 2] = [[1, 3, 6, 12], [-1, -3, -6, -12]];

/// Bytes for a permute to choose from: the values, and 1 more than those that `add_one` names.
const fn table(values: [[i8; 4]; 2], add_one: [[bool; 4]; 2]) -> [u32; 2] {
    let mut words = [0; 2];
    let mut i = 0;
    while i < 8 {
        let value = values[i / 4][i % 4] + add_one[i / 4][i % 4] as i8;
        words[i / 4] |= (value as u8 as u32) << (8 * (i % 4));
        i += 1;
    }
    words
}

/// A code as records hold it: the mantissa in the top bit, behind it sign and exponent, which are
/// what a byte permute looks up.
#[inline(always)]
fn e2m1_turned(code: u32) -> u32 {
    (code & 1) << 3 | (code & 15) >> 1
}

/// Half of 2^(e - 127), since the codes are doubled; e = 0 and 1 are subnormal.
#[inline(always)]
fn e8m0_halved(e: u32) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

legacy_tile! {
    /// 4-bit floats (E2M1) with a power of two a block.
    Mxfp4, block_bytes 17, scale_words 1, code_words planes::NIBBLE_WORDS,
    products 2, unit 0.5, x8_blocks 3;
    pack_code
    #[inline(always)]
    fn pack_code(raw: Raw, first_col: u32, i: u32) -> u32 {
        let code = |row, col| e2m1_turned(raw_nibble(raw, 1, row, first_col + col));
        planes::ordered_nibbles(i, code)
    }
    pack_scale
    #[inline(always)]
    fn pack_scale(raw: Raw, first_block: u32, i: u32) -> u32 {
        let exponent = |row, step| raw.byte(row, first_block + step, 0);
        let (a, b) = (row_of_place(2 * i), row_of_place(2 * i + 1));
        exponent(a, 0) | exponent(a, 1) << 8 | exponent(b, 0) << 16 | exponent(b, 1) << 24
    }
    element
    #[inline(always)]
    fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
        let p = planes::place(row, col);
        let (word, shift) = planes::ordered_nibble_at(p);
        let turned = record.get(word as usize) >> shift & 15;
        const NONE: [[bool; 4]; 2] = [[false; 4]; 2];
        const TABLES: [[u32; 2]; 2] = [table(EVEN, NONE), table(ODD, NONE)];
        let [positive, negative] = if turned & 8 == 0 { TABLES[0] } else { TABLES[1] };
        let word = if turned & 4 == 0 { positive } else { negative };
        let doubled = (word >> (8 * (turned % 4))) as i8;
        let word = record.get((Self::CODE_WORDS + place_of_row(row) / 2) as usize);
        doubled as f32 * e8m0_halved(word >> (16 * (row / 8) + 8 * p.step) & 255)
    }
    codes [u32; 4], load_codes
    #[inline(always)]
    fn load_codes(records: impl Records, at: usize, _part: u32) -> [u32; 4] {
        load_nibbles(records, at)
    }
    scales u32, load_scales
    #[inline(always)]
    fn load_scales(records: impl Records, at: usize, _part: u32) -> u32 {
        records.word(Self::CODE_WORDS as usize + row_g(), at)
    }
}

impl IntegerTile for Mxfp4 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;
    /// The even values, and for the others the signs of what they find: the even and the odd values each have a
    /// product, so that nobody has to put them together.
    #[inline(always)]
    fn fragment(codes: &[u32; 4], step: usize) -> [u32; 4] {
        // Where one table's entry is negative, codes of the other one get -1 from it, its sign: that
        // is 1 too little, and made up for.
        const EVEN_OR_SIGN: [u32; 2] = table(EVEN, [[false; 4], [true; 4]]);
        let [low, high] = EVEN_OR_SIGN;
        let low = gpu::held(low);
        turned_codes(codes, step).map(|code| gpu::permute_bytes(low, high, code))
    }
    /// The odd values.
    #[inline(always)]
    fn other_fragment(codes: &[u32; 4], step: usize) -> [u32; 4] {
        const ODD_OR_SIGN: [u32; 2] = table(ODD, [[false; 4], [false, true, true, true]]);
        let [low, high] = ODD_OR_SIGN;
        let low = gpu::held(low);
        turned_codes(codes, step).map(|code| gpu::permute_bytes(low, high, code ^ 0x8888))
    }
    #[inline(always)]
    fn scales(exponents: &u32, group: usize) -> Scales {
        // As f32 has them. The smallest, 2^-127, counts as 0 in products.
        let word = exponents >> (8 * group);
        let exponent = |bits: u32| f32::from_bits(bits & 0x7f80_0000);
        Scales { d: [exponent(word << 23), exponent(word << 7)], m: [0.0; 2] }
    }
}

/// The codes of a step's fragment, four in the lower half of a word each.
#[inline(always)]
fn turned_codes(codes: &[u32; 4], step: usize) -> [u32; 4] {
    let (a, b) = (codes[2 * step], codes[2 * step + 1]);
    [a, b, a >> 16, b >> 16]
}
