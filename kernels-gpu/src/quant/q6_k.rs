//! Q6_K: 256 weights in 16 parts of 16, `w = (scale * s) * (code - 32)`, 6-bit codes, a signed
//! 8-bit `s` for each part. 210 bytes.
//!
//! ```text
//! byte   0 + 64h + j   | code c+64, bits 3:0 | code c, bits 3:0 |        c = 128h + j, j = 0..64
//! byte 128 + 32h + j   | c+96, bits 5:4 | c+64 | c+32 | c |              c = 128h + j, j = 0..32
//! byte 192 + p         s p, i8                                           p = 0..16, of weight 16p
//! byte 208..209        scale, f16
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 256 weights in 16 parts, each with a signed scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ6K {
    /// The low bits, two codes a byte, 64 weights apart.
    pub low: [u8; 128],
    /// The upper bits, four codes a byte, 32 weights apart.
    pub high: [u8; 64],
    /// The parts' scales.
    pub parts: [i8; 16],
    /// The unit of the parts' scales.
    pub scale: F16,
}
const _: () = assert!(size_of::<BlockQ6K>() == 210);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ6K {
    const FORMAT: Format = Format::Q6_K;
    const ELEMS: usize = 256;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let code = self.low[i / 128 % 2 * 64 + i % 64] >> (4 * (i / 64 % 2)) & 15
            | (self.high[i / 128 % 2 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3) << 4;
        let step = self.scale.to_f32() * self.parts[i / 16 % 16] as f32;
        step * (code as i32 - 32) as f32
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ6K {
        let mut steps = [0.0; 16];
        for (step, x) in steps.iter_mut().zip(x[..256].chunks_exact(16)) {
            *step = fit::symmetric(x, -32, 31);
        }
        let (scale, s) = fit::shared_step(steps, -128, 127);
        let (mut low, mut high) = ([0; 128], [0; 64]);
        for (i, v) in x[..256].iter().enumerate() {
            let code = (fit::code(*v, scale * s[i / 16] as f32, -32, 31) + 32) as u8;
            low[i / 128 * 64 + i % 64] |= (code & 15) << (4 * (i / 64 % 2));
            high[i / 128 * 32 + i % 32] |= code >> 4 << (2 * (i / 32 % 4));
        }
        BlockQ6K { low, high, parts: s.map(|s| s as i8), scale: F16::from_f32(scale) }
    }
}
