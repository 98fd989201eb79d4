//! Q5_1: 32 weights, `w = scale * code + min`, 5-bit codes. 24 bytes.
//!
//! ```text
//! byte  0..1     scale, f16
//! byte  2..3     min, f16
//! byte  4 + k    bit 4 of codes 8k+7 .. 8k, most significant first   k = 0..4
//! byte  8 + j    | code j+16, bits 3:0 | code j, bits 3:0 |          j = 0..16
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 32 weights with a scale and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// The step between neighbouring weights.
    pub scale: F16,
    /// The weight of code 0.
    pub min: F16,
    /// Bit 4 of code `i` in bit `i % 8` of byte `i / 8`.
    pub high: [u8; 4],
    /// The low bits of code `j` in the low nibble of byte `j`, of code `j + 16` in the high one.
    pub low: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ5_1 {
    const FORMAT: Format = Format::Q5_1;
    const ELEMS: usize = 32;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let low = self.low[i % 16] >> (4 * (i / 16 % 2)) & 15;
        let high = self.high[i / 8 % 4] >> (i % 8) & 1;
        self.scale.to_f32() * (high << 4 | low) as f32 + self.min.to_f32()
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ5_1 {
        let (min, max) = fit::range(&x[..32]);
        let scale = (max - min) / 31.0;
        let inverse = fit::inverse(scale);
        let (mut high, mut low) = ([0; 4], [0; 16]);
        for (i, v) in x[..32].iter().enumerate() {
            let code = (((v - min) * inverse + 0.5) as u8).min(31);
            high[i / 8] |= code >> 4 << (i % 8);
            low[i % 16] |= (code & 15) << (4 * (i / 16));
        }
        BlockQ5_1 { scale: F16::from_f32(scale), min: F16::from_f32(min), high, low }
    }
}
