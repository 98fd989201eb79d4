//! MXFP4: 32 weights, `w = 2^(exponent - 128) * DOUBLED[code]`: 4-bit floats (sign, 2 bits of
//! exponent, 1 of fraction) under a shared power of two. 17 bytes.
//!
//! ```text
//! byte  0        exponent, u8 (E8M0)
//! byte  1 + j    | code j+16 | code j |   j = 0..16, high nibble first
//! ```

use super::{Format, QuantBlock};

/// Twice the 4-bit float of each code, which makes it whole; code 8 is plain zero.
pub const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 32 weights with one power of two.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// The scale, biased by 127, in the specification's sense.
    pub exponent: u8,
    /// Weight `j` in the low nibble of byte `j`, weight `j + 16` in the high one.
    pub codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockMxfp4>() == 17);

/// `2^(exponent - 128)`: half the scale, for doubled values. The two smallest are subnormal; 255,
/// which the specification calls NaN, goes on as 2^127, as in GGML.
#[inline(always)]
pub const fn half_scale(exponent: u8) -> f32 {
    if exponent < 2 {
        f32::from_bits(0x0020_0000 << exponent)
    } else {
        f32::from_bits((exponent as u32 - 1) << 23)
    }
}

impl BlockMxfp4 {
    /// The nearest codes under `exponent`, and the sum of their squared errors.
    #[inline]
    fn with_exponent(x: &[f32], exponent: u8) -> (BlockMxfp4, f32) {
        let (mut block, mut error) = (BlockMxfp4 { exponent, codes: [0; 16] }, 0.0);
        for (i, v) in x[..32].iter().enumerate() {
            let (mut best, mut distance) = (0, f32::INFINITY);
            for (code, doubled) in DOUBLED.iter().enumerate() {
                let off = (half_scale(exponent) * *doubled as f32 - v).abs();
                if off < distance {
                    (best, distance) = (code as u8, off);
                }
            }
            block.codes[i % 16] |= best << (4 * (i / 16));
            error += distance * distance;
        }
        (block, error)
    }
}

// SAFETY: repr(C), bytes only.
unsafe impl QuantBlock for BlockMxfp4 {
    const FORMAT: Format = Format::MXFP4;
    const ELEMS: usize = 32;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let code = self.codes[i % 16] >> (4 * (i / 16 % 2)) & 15;
        half_scale(self.exponent) * DOUBLED[code as usize] as f32
    }

    /// The better of the two powers of two that bring the largest magnitude into 4..8, where it may
    /// be cut to 6, or into 2..4.
    #[inline]
    fn encode(x: &[f32]) -> BlockMxfp4 {
        let largest = super::fit::peak(&x[..32]).abs();
        let exponent = ((largest.to_bits() >> 23) as u8).saturating_sub(2);
        let (fine, fine_error) = BlockMxfp4::with_exponent(x, exponent);
        let (coarse, coarse_error) = BlockMxfp4::with_exponent(x, exponent + 1);
        if coarse_error < fine_error { coarse } else { fine }
    }
}
