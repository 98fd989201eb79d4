//! The code planes that the formats share. A plane covers one part (64 columns) of a record; each
//! has a word as it is packed, a place where an element lies, and a fast decoder beside its format.

/// Where an element of a part lies among the lanes.
#[derive(Clone, Copy)]
pub struct Place {
    /// 4 g + t.
    pub lane: u32,
    /// Which step of 32 columns.
    pub step: u32,
    /// Which register of the step's fragment.
    pub register: u32,
    /// Which byte of the register.
    pub byte: u32,
}

/// Where row `row`, column `col` of a part lies.
#[inline(always)]
pub fn place(row: u32, col: u32) -> Place {
    Place {
        lane: 4 * (row % 8) + col % 16 / 4,
        step: col / 32 % 2,
        register: row / 8 + 2 * (col / 16 % 2),
        byte: col % 4,
    }
}

/// The row of a lane's register.
#[inline(always)]
fn row(lane: u32, register: u32) -> u32 {
    lane / 4 + 8 * (register % 2)
}

/// The column, within its part, of byte `byte` of a lane's register.
#[inline(always)]
fn col(lane: u32, step: u32, register: u32, byte: u32) -> u32 {
    32 * step + 16 * (register / 2) + 4 * (lane % 4) + byte
}

/// Words of the plane of 4-bit codes: 4 a lane, two a step; low nibbles are registers 0 and 1, high
/// nibbles registers 2 and 3.
pub const NIBBLE_WORDS: u32 = 128;

/// Word `i` of the plane of 4-bit codes.
#[inline(always)]
pub fn nibbles(i: u32, code: impl Fn(u32, u32) -> u32) -> u32 {
    let (lane, step, register) = (i / 4, i % 4 / 2, i % 2);
    let mut word = 0;
    let mut byte = 0;
    while byte < 4 {
        let low = code(row(lane, register), col(lane, step, register, byte));
        let high = code(row(lane, register), col(lane, step, register + 2, byte));
        word |= (low & 15 | (high & 15) << 4) << (8 * byte);
        byte += 1;
    }
    word
}

/// Word and shift of an element in the plane of 4-bit codes.
#[inline(always)]
pub fn nibble_at(p: Place) -> (u32, u32) {
    (4 * p.lane + 2 * p.step + p.register % 2, 8 * p.byte + 4 * (p.register / 2))
}

/// Word `i` of the plane of 4-bit codes in look-up order: the lower half-word is register 0 or 1, the
/// upper one register 2 or 3, nibble after nibble, as byte permutes select them.
#[inline(always)]
pub fn ordered_nibbles(i: u32, code: impl Fn(u32, u32) -> u32) -> u32 {
    let (lane, step, register) = (i / 4, i % 4 / 2, i % 2);
    let mut word = 0;
    let mut byte = 0;
    while byte < 4 {
        let low = code(row(lane, register), col(lane, step, register, byte));
        let high = code(row(lane, register), col(lane, step, register + 2, byte));
        word |= (low & 15 | (high & 15) << 16) << (4 * byte);
        byte += 1;
    }
    word
}

/// Word and shift of an element in the plane of 4-bit codes in look-up order.
#[inline(always)]
pub fn ordered_nibble_at(p: Place) -> (u32, u32) {
    (4 * p.lane + 2 * p.step + p.register % 2, 4 * p.byte + 16 * (p.register / 2))
}

/// Words of a plane of single bits: one a lane; bit `4 step + register` of each byte.
pub const BIT_WORDS: u32 = 32;

/// Word `lane` of a plane of single bits.
#[inline(always)]
pub fn bits(lane: u32, bit: impl Fn(u32, u32) -> u32) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < 32 {
        let (step, register, byte) = (i / 16, i / 4 % 4, i % 4);
        let b = bit(row(lane, register), col(lane, step, register, byte)) & 1;
        word |= b << (8 * byte + 4 * step + register);
        i += 1;
    }
    word
}

/// Word and shift of an element in a plane of single bits.
#[inline(always)]
pub fn bit_at(p: Place) -> (u32, u32) {
    (p.lane, 8 * p.byte + 4 * p.step + p.register)
}

/// Words of a plane of bit pairs: two a lane, one a step; bits `2 register` of each byte.
pub const PAIR_WORDS: u32 = 64;

/// Word `i` of a plane of bit pairs.
#[inline(always)]
pub fn pairs(i: u32, pair: impl Fn(u32, u32) -> u32) -> u32 {
    let (lane, step) = (i / 2, i % 2);
    let mut word = 0;
    let mut j = 0;
    while j < 16 {
        let (register, byte) = (j / 4, j % 4);
        let p = pair(row(lane, register), col(lane, step, register, byte)) & 3;
        word |= p << (8 * byte + 2 * register);
        j += 1;
    }
    word
}

/// Word and shift of an element in a plane of bit pairs.
#[inline(always)]
pub fn pair_at(p: Place) -> (u32, u32) {
    (2 * p.lane + p.step, 8 * p.byte + 2 * p.register)
}

/// Words of the plane of 8-bit codes: by step, by lane, by register.
pub const BYTE_WORDS: u32 = 256;

/// Word `i` of the plane of 8-bit codes.
#[inline(always)]
pub fn bytes(i: u32, code: impl Fn(u32, u32) -> u32) -> u32 {
    let (step, lane, register) = (i / 128, i % 128 / 4, i % 4);
    let mut word = 0;
    let mut byte = 0;
    while byte < 4 {
        let c = code(row(lane, register), col(lane, step, register, byte));
        word |= (c & 255) << (8 * byte);
        byte += 1;
    }
    word
}

/// Word and shift of an element in the plane of 8-bit codes.
#[inline(always)]
pub fn byte_at(p: Place) -> (u32, u32) {
    (128 * p.step + 4 * p.lane + p.register, 8 * p.byte)
}

/// The fragment of step `step` from a lane's four words of 4-bit codes.
#[inline(always)]
pub fn nibble_fragment(words: [u32; 4], step: usize) -> [u32; 4] {
    const LOW: u32 = 0x0f0f_0f0f;
    let (a, b) = (words[2 * step], words[2 * step + 1]);
    [a & LOW, b & LOW, a >> 4 & LOW, b >> 4 & LOW]
}

/// The bit plane's share of a step's fragment, moved up to bit 4 of each byte.
#[inline(always)]
pub fn bit_fragment(word: u32, step: usize) -> [u32; 4] {
    const BIT: u32 = 0x1010_1010;
    if step == 0 {
        [word << 4 & BIT, word << 3 & BIT, word << 2 & BIT, word << 1 & BIT]
    } else {
        [word & BIT, word >> 1 & BIT, word >> 2 & BIT, word >> 3 & BIT]
    }
}

/// A lane's codes of 5 bits: the nibbles, and the fifth bits.
#[derive(Clone, Copy)]
pub struct FiveBits {
    /// Of both steps.
    pub nibbles: [u32; 4],
    /// Of both steps.
    pub fifth: u32,
}

/// The fragment of step `step` from a lane's codes of 5 bits.
#[inline(always)]
pub fn five_bit_fragment(codes: &FiveBits, step: usize) -> [u32; 4] {
    either(nibble_fragment(codes.nibbles, step), bit_fragment(codes.fifth, step))
}

/// A step's fragment from its word of bit pairs, in bits 0 and 1 of each byte.
#[inline(always)]
pub fn pair_fragment(word: u32) -> [u32; 4] {
    const PAIR: u32 = 0x0303_0303;
    [word & PAIR, word >> 2 & PAIR, word >> 4 & PAIR, word >> 6 & PAIR]
}

/// Registers of two fragments, or-ed.
#[inline(always)]
pub fn either(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
    [a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]]
}
