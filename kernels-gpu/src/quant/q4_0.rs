//! Q4_0: 32 weights, `w = scale * (code - 8)`, 4-bit codes. 18 bytes.
//!
//! ```text
//! byte  0..1     scale, f16
//! byte  2 + j    | code j+16 | code j |   j = 0..16, high nibble first
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 32 weights with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// The step between neighbouring weights.
    pub scale: F16,
    /// Weight `j` in the low nibble of byte `j`, weight `j + 16` in the high one.
    pub codes: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ4_0 {
    const FORMAT: Format = Format::Q4_0;
    const ELEMS: usize = 32;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let code = self.codes[i % 16] >> (4 * (i / 16 % 2)) & 15;
        self.scale.to_f32() * (code as i32 - 8) as f32
    }

    /// The value of largest magnitude gets code 0, which is -8 steps.
    #[inline]
    fn encode(x: &[f32]) -> BlockQ4_0 {
        let scale = fit::peak(&x[..32]) / -8.0;
        let inverse = fit::inverse(scale);
        let code = |v: f32| ((v * inverse + 8.5) as u8).min(15);
        let mut codes = [0; 16];
        for (j, byte) in codes.iter_mut().enumerate() {
            *byte = code(x[j]) | code(x[j + 16]) << 4;
        }
        BlockQ4_0 { scale: F16::from_f32(scale), codes }
    }
}
