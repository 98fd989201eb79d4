//! Q4_1: 32 weights, `w = scale * code + min`, 4-bit codes. 20 bytes.
//!
//! ```text
//! byte  0..1     scale, f16
//! byte  2..3     min, f16
//! byte  4 + j    | code j+16 | code j |   j = 0..16, high nibble first
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 32 weights with a scale and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// The step between neighbouring weights.
    pub scale: F16,
    /// The weight of code 0.
    pub min: F16,
    /// Weight `j` in the low nibble of byte `j`, weight `j + 16` in the high one.
    pub codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ4_1 {
    const FORMAT: Format = Format::Q4_1;
    const ELEMS: usize = 32;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let code = self.codes[i % 16] >> (4 * (i / 16 % 2)) & 15;
        self.scale.to_f32() * code as f32 + self.min.to_f32()
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ4_1 {
        let (min, max) = fit::range(&x[..32]);
        let scale = (max - min) / 15.0;
        let inverse = fit::inverse(scale);
        let code = |v: f32| (((v - min) * inverse + 0.5) as u8).min(15);
        let mut codes = [0; 16];
        for (j, byte) in codes.iter_mut().enumerate() {
            *byte = code(x[j]) | code(x[j + 16]) << 4;
        }
        BlockQ4_1 { scale: F16::from_f32(scale), min: F16::from_f32(min), codes }
    }
}
