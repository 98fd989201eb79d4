//! Q8_0: 32 weights, `w = scale * code`, signed 8-bit codes. 34 bytes.
//!
//! ```text
//! byte  0..1     scale, f16
//! byte  2 + i    code i, i8   i = 0..32
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 32 weights with one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// The step between neighbouring weights.
    pub scale: F16,
    /// Weights in steps.
    pub codes: [i8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ8_0 {
    const FORMAT: Format = Format::Q8_0;
    const ELEMS: usize = 32;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        self.scale.to_f32() * self.codes[i % 32] as f32
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ8_0 {
        let scale = fit::peak(&x[..32]).abs() / 127.0;
        let inverse = fit::inverse(scale);
        let mut codes = [0; 32];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = fit::round(v * inverse) as i8;
        }
        BlockQ8_0 { scale: F16::from_f32(scale), codes }
    }
}
