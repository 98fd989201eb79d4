//! Q2_K: 256 weights in 16 parts of 16, `w = (scale * s) * code - (min_scale * m)`, 2-bit codes,
//! 4-bit `s` and `m` for each part. 84 bytes.
//!
//! ```text
//! byte  0 + p         | m p | s p |                                   p = 0..16, of weights 16p ..
//! byte 16 + 32h + j   | code c+96 | code c+64 | code c+32 | code c |   c = 128h + j, j = 0..32
//! byte 80..81         scale, f16
//! byte 82..83         min_scale, f16
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 256 weights in 16 parts, each with a scale and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ2K {
    /// For each part its scale in the low nibble, its minimum in the high one.
    pub parts: [u8; 16],
    /// Four codes a byte, 32 weights apart.
    pub codes: [u8; 64],
    /// The unit of the parts' scales.
    pub scale: F16,
    /// The unit of the parts' minima.
    pub min_scale: F16,
}
const _: () = assert!(size_of::<BlockQ2K>() == 84);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ2K {
    const FORMAT: Format = Format::Q2_K;
    const ELEMS: usize = 256;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let part = self.parts[i / 16 % 16];
        let code = self.codes[i / 128 % 2 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
        let step = self.scale.to_f32() * (part & 15) as f32;
        let min = self.min_scale.to_f32() * (part >> 4) as f32;
        step * code as f32 - min
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ2K {
        let (mut steps, mut mins) = ([0.0; 16], [0.0; 16]);
        for (p, x) in x[..256].chunks_exact(16).enumerate() {
            (steps[p], mins[p]) = fit::affine(x, 3);
        }
        let (scale, s) = fit::shared_step(steps, 0, 15);
        let (min_scale, m) = fit::shared_step(mins, 0, 15);
        let (mut parts, mut codes) = ([0; 16], [0; 64]);
        for (p, part) in parts.iter_mut().enumerate() {
            *part = (s[p] | m[p] << 4) as u8;
        }
        for (i, v) in x[..256].iter().enumerate() {
            let p = i / 16;
            let code = fit::code(v + min_scale * m[p] as f32, scale * s[p] as f32, 0, 3);
            codes[i / 128 * 32 + i % 32] |= (code as u8) << (2 * (i / 32 % 4));
        }
        let (scale, min_scale) = (F16::from_f32(scale), F16::from_f32(min_scale));
        BlockQ2K { parts, codes, scale, min_scale }
    }
}
