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

use super::planes::{self, Place};
use super::{
    IntegerTile, Raw, Scales, Step, Sums, TILE_ROWS, TileFormat, accumulate_integers, add_scaled,
    place_of_row, row_of_place,
};
use crate::gpu::{self, Global, U32x2, U32x4};

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
        scale_words $scale_words:literal, code_words $code_words:expr;
        pack_code $pack_code:item pack_scale $pack_scale:item
        element $element:item load $load:item
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
            const STEP_PRODUCTS: u32 = 1;
            const LONE_STEP_PRODUCTS: u32 = <Self as IntegerTile>::LONE_PRODUCTS;
            const GATED_BLOCKS: u32 = 3 - $scale_words / 4;
            const EXPERTS_AHEAD: usize = if $scale_words == 1 && !cfg!(sm_80) { 4 } else { 2 };
            const BLOCK: (u32, u32) = ($block_bytes, 32);
            const UNIT: f32 = <Self as IntegerTile>::CODE_UNIT;
            type Part = <Self as IntegerTile>::Part;

            #[inline(always)]
            fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
                if i < Self::CODE_WORDS {
                    Self::pack_code(raw, first_col, i)
                } else {
                    Self::pack_scale(raw, first_col / 32, i - Self::CODE_WORDS)
                }
            }
            $element
            $load

            #[inline(always)]
            fn accumulate(part: &Self::Part, step: usize, x: Step, sums: &mut Sums) {
                accumulate_integers::<Self>(part, step, x, sums);
            }
            #[inline(always)]
            fn accumulate_lone(part: &Self::Part, step: usize, x: Step, sums: &mut Sums) {
                let c = Self::lone_products(part, step, x);
                add_scaled::<Self>(c, x.sum, x.scale, Self::scales(part, step, 0), sums);
            }
        }
    };
}

/// A part of a format with one f16 scale a block.
#[derive(Clone, Copy)]
pub struct ScaledPart {
    codes: [u32; 4],
    high: u32,
    /// Of rows g and g + 8: the scales of both steps.
    scales: [u32; 2],
}

/// A part of a format with an f16 scale and minimum a block.
#[derive(Clone, Copy)]
pub struct ScaledMinPart {
    codes: [u32; 4],
    high: u32,
    /// Of rows g and g + 8: (d, m) of both steps.
    scales: [[u32; 2]; 2],
}

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
fn load_d(records: Global<U32x4>, at: usize, code_words: u32) -> [u32; 2] {
    let pairs = records.cast::<U32x2>().from(code_words as usize / 2 + row_g());
    pairs.get(at / 2).0
}

#[inline(always)]
fn load_dm(records: Global<U32x4>, at: usize, code_words: u32) -> [[u32; 2]; 2] {
    let U32x4([d0, d1, d2, d3]) = records.from(code_words as usize / 4 + row_g()).get(at / 4);
    [[d0, d1], [d2, d3]]
}

#[inline(always)]
fn load_nibbles(records: Global<U32x4>, at: usize) -> [u32; 4] {
    records.from(gpu::lane() as usize).stream(at / 4).0
}

#[inline(always)]
fn load_fifth_bits(records: Global<U32x4>, at: usize) -> u32 {
    let words = records.cast::<u32>().from((planes::NIBBLE_WORDS + gpu::lane()) as usize);
    words.get(at)
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
    Q4_0, block_bytes 18, scale_words 2, code_words planes::NIBBLE_WORDS;
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
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> ScaledPart {
        ScaledPart {
            codes: load_nibbles(records, at),
            high: 0,
            scales: load_d(records, at, Self::CODE_WORDS),
        }
    }
}

impl IntegerTile for Q4_0 {
    const OFFSET: i32 = 8;
    const HAS_MIN: bool = false;
    const HALVES: bool = false;
    type Part = ScaledPart;
    #[inline(always)]
    fn fragment(part: &ScaledPart, step: usize) -> [u32; 4] {
        planes::nibble_fragment(part.codes, step)
    }
    #[inline(always)]
    fn scales(part: &ScaledPart, step: usize, _half: usize) -> Scales {
        let [low, high] = part.scales;
        Scales { d: [halves(low)[step], halves(high)[step]], m: [0.0; 2] }
    }
}

legacy_tile! {
    /// 4-bit codes with a minimum.
    Q4_1, block_bytes 20, scale_words 4, code_words planes::NIBBLE_WORDS;
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
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> ScaledMinPart {
        ScaledMinPart {
            codes: load_nibbles(records, at),
            high: 0,
            scales: load_dm(records, at, Self::CODE_WORDS),
        }
    }
}

impl IntegerTile for Q4_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const HALVES: bool = false;
    type Part = ScaledMinPart;
    #[inline(always)]
    fn fragment(part: &ScaledMinPart, step: usize) -> [u32; 4] {
        planes::nibble_fragment(part.codes, step)
    }
    #[inline(always)]
    fn scales(part: &ScaledMinPart, step: usize, _half: usize) -> Scales {
        min_scales(part, step)
    }
}

#[inline(always)]
fn min_scales(part: &ScaledMinPart, step: usize) -> Scales {
    let [d0, m0] = halves(part.scales[0][step]);
    let [d1, m1] = halves(part.scales[1][step]);
    Scales { d: [d0, d1], m: [m0, m1] }
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
    Q5_0, block_bytes 22, scale_words 2, code_words planes::NIBBLE_WORDS + planes::BIT_WORDS;
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
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> ScaledPart {
        ScaledPart {
            codes: load_nibbles(records, at),
            high: load_fifth_bits(records, at),
            scales: load_d(records, at, Self::CODE_WORDS),
        }
    }
}

impl IntegerTile for Q5_0 {
    const OFFSET: i32 = 16;
    const HAS_MIN: bool = false;
    const HALVES: bool = false;
    type Part = ScaledPart;
    #[inline(always)]
    fn fragment(part: &ScaledPart, step: usize) -> [u32; 4] {
        let low = planes::nibble_fragment(part.codes, step);
        planes::either(low, planes::bit_fragment(part.high, step))
    }
    #[inline(always)]
    fn scales(part: &ScaledPart, step: usize, half: usize) -> Scales {
        Q4_0::scales(part, step, half)
    }
}

legacy_tile! {
    /// 5-bit codes with a minimum.
    Q5_1, block_bytes 24, scale_words 4, code_words planes::NIBBLE_WORDS + planes::BIT_WORDS;
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
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> ScaledMinPart {
        ScaledMinPart {
            codes: load_nibbles(records, at),
            high: load_fifth_bits(records, at),
            scales: load_dm(records, at, Self::CODE_WORDS),
        }
    }
}

impl IntegerTile for Q5_1 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = true;
    const HALVES: bool = false;
    type Part = ScaledMinPart;
    #[inline(always)]
    fn fragment(part: &ScaledMinPart, step: usize) -> [u32; 4] {
        let low = planes::nibble_fragment(part.codes, step);
        planes::either(low, planes::bit_fragment(part.high, step))
    }
    #[inline(always)]
    fn scales(part: &ScaledMinPart, step: usize, _half: usize) -> Scales {
        min_scales(part, step)
    }
}

/// A part of Q8_0.
#[derive(Clone, Copy)]
pub struct BytePart {
    codes: [[u32; 4]; 2],
    scales: [u32; 2],
}

legacy_tile! {
    /// Signed bytes.
    Q8_0, block_bytes 34, scale_words 2, code_words planes::BYTE_WORDS;
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
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> BytePart {
        let lane = records.from(gpu::lane() as usize);
        BytePart {
            codes: [lane.stream(at / 4).0, lane.stream(at / 4 + 32).0],
            scales: load_d(records, at, Self::CODE_WORDS),
        }
    }
}

impl IntegerTile for Q8_0 {
    const OFFSET: i32 = 0;
    const HAS_MIN: bool = false;
    const HALVES: bool = false;
    type Part = BytePart;
    #[inline(always)]
    fn fragment(part: &BytePart, step: usize) -> [u32; 4] {
        part.codes[step]
    }
    #[inline(always)]
    fn scales(part: &BytePart, step: usize, _half: usize) -> Scales {
        let [low, high] = part.scales;
        Scales { d: [halves(low)[step], halves(high)[step]], m: [0.0; 2] }
    }
}

/// A part of MXFP4.
#[derive(Clone, Copy)]
pub struct Mxfp4Part {
    codes: [u32; 4],
    /// The exponents of row g, both steps, and those of row g + 8.
    exponents: u32,
}

/// Doubled values of E2M1 with mantissa 0, by exponent: those of the positive codes, and of the negative
/// ones.
const EVEN: [[i8; 4]; 2] = [[0, 2, 4, 8], [0, -2, -4, -8]];
/// The same with mantissa 1.
const ODD: [[i8; 4]; 2] = [[1, 3, 6, 12], [-1, -3, -6, -12]];

/// Bytes for a permute to choose from: `offset` added to the values, and 1 to those that `add_one` names.
const fn table(values: [[i8; 4]; 2], offset: i8, add_one: [[bool; 4]; 2]) -> [u32; 2] {
    let mut words = [0; 2];
    let mut i = 0;
    while i < 8 {
        let value = values[i / 4][i % 4] + offset + add_one[i / 4][i % 4] as i8;
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
    Mxfp4, block_bytes 17, scale_words 1, code_words planes::NIBBLE_WORDS;
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
        const TABLES: [[u32; 2]; 2] = [table(EVEN, 0, NONE), table(ODD, 0, NONE)];
        let [positive, negative] = if turned & 8 == 0 { TABLES[0] } else { TABLES[1] };
        let word = if turned & 4 == 0 { positive } else { negative };
        let doubled = (word >> (8 * (turned % 4))) as i8;
        let word = record.get((Self::CODE_WORDS + place_of_row(row) / 2) as usize);
        doubled as f32 * e8m0_halved(word >> (16 * (row / 8) + 8 * p.step) & 255)
    }
    load
    #[inline(always)]
    fn load(records: Global<U32x4>, at: usize, _part: u32) -> Mxfp4Part {
        let rows = records.cast::<u32>().from(Self::CODE_WORDS as usize + row_g());
        Mxfp4Part { codes: load_nibbles(records, at), exponents: rows.get(at) }
    }
}

impl IntegerTile for Mxfp4 {
    /// The fragment's values are doubled.
    const CODE_UNIT: f32 = 0.5;
    /// No value is below 0 then.
    const OFFSET: i32 = 16;
    const HAS_MIN: bool = false;
    const HALVES: bool = false;
    const LONE_PRODUCTS: u32 = 2;
    type Part = Mxfp4Part;
    #[inline(always)]
    fn fragment(part: &Mxfp4Part, step: usize) -> [u32; 4] {
        const EVEN_OR_0: [u32; 2] = table(EVEN, Mxfp4::OFFSET as i8, [[false; 4]; 2]);
        const ODD_OR_0: [u32; 2] = table(ODD, Mxfp4::OFFSET as i8, [[false; 4]; 2]);
        // With the top bit of a nibble set the machine gives the byte's sign, here always 0.
        turned_codes(part, step).map(|codes| {
            let [low, high] = EVEN_OR_0;
            let even = gpu::permute_bytes(low, high, codes);
            let [low, high] = ODD_OR_0;
            even | gpu::permute_bytes(low, high, codes ^ 0x8888)
        })
    }
    #[inline(always)]
    fn scales(part: &Mxfp4Part, step: usize, _half: usize) -> Scales {
        // The exponents as f32 has them. The smallest, 2^-127, counts as 0 in products.
        let exponent = |word: u32| f32::from_bits(word & 0x7f80_0000);
        let d = if step == 0 {
            [exponent(part.exponents << 23), exponent(part.exponents << 7)]
        } else {
            [exponent(part.exponents << 15), exponent(part.exponents >> 1)]
        };
        Scales { d, m: [0.0; 2] }
    }
    /// The even and the odd values each have a product, so that nobody has to put them together.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn lone_products(part: &Mxfp4Part, step: usize, x: Step) -> [i32; 4] {
        // Where one table's entry is negative, codes of the other one get -1 from it, its sign: that
        // is 1 too little, and made up for.
        const EVEN_OR_SIGN: [u32; 2] = table(EVEN, 0, [[false; 4], [true; 4]]);
        const ODD_OR_SIGN: [u32; 2] = table(ODD, 0, [[false; 4], [false, true, true, true]]);
        let codes = turned_codes(part, step);
        let even = codes.map(|c| gpu::permute_bytes(EVEN_OR_SIGN[0], EVEN_OR_SIGN[1], c));
        let odd = codes.map(|c| gpu::permute_bytes(ODD_OR_SIGN[0], ODD_OR_SIGN[1], c ^ 0x8888));
        gpu::mma_s8(gpu::mma_s8([0; 4], even, x.codes), odd, x.codes)
    }
}

/// The codes of a step's fragment, four in the lower half of a word each.
#[inline(always)]
fn turned_codes(part: &Mxfp4Part, step: usize) -> [u32; 4] {
    let (a, b) = (part.codes[2 * step], part.codes[2 * step + 1]);
    [a, b, a >> 16, b >> 16]
}
