//! Q4_K: 256 weights in 8 parts of 32, `w = (scale * s) * code - (min_scale * m)`, 4-bit codes,
//! 6-bit `s` and `m` for each part. 144 bytes.
//!
//! ```text
//! byte  0..1          scale, f16
//! byte  2..3          min_scale, f16
//! byte  4..15         s and m of the parts, see `k_scales`; part p holds weights 32p ..
//! byte 16 + 32h + j   | code c+32 | code c |   c = 64h + j, h = 0..4, j = 0..32
//! ```

use super::{Format, QuantBlock, fit, k_scales};
use crate::gpu::{Element, F16};

/// 256 weights in 8 parts, each with a scale and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ4K {
    /// The unit of the parts' scales.
    pub scale: F16,
    /// The unit of the parts' minima.
    pub min_scale: F16,
    /// The parts' scales and minima.
    pub parts: [u8; 12],
    /// Two codes a byte, 32 weights apart.
    pub codes: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ4K {
    const FORMAT: Format = Format::Q4_K;
    const ELEMS: usize = 256;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let (s, m) = k_scales::unpack(&self.parts, i / 32);
        let code = self.codes[i / 64 % 4 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15;
        let step = self.scale.to_f32() * s as f32;
        let min = self.min_scale.to_f32() * m as f32;
        step * code as f32 - min
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ4K {
        let (mut steps, mut mins) = ([0.0; 8], [0.0; 8]);
        for (p, x) in x[..256].chunks_exact(32).enumerate() {
            (steps[p], mins[p]) = fit::affine(x, 15);
        }
        let (scale, s) = fit::shared_step(steps, 0, 63);
        let (min_scale, m) = fit::shared_step(mins, 0, 63);
        let mut codes = [0; 128];
        for (i, v) in x[..256].iter().enumerate() {
            let p = i / 32;
            let code = fit::code(v + min_scale * m[p] as f32, scale * s[p] as f32, 0, 15);
            codes[i / 64 * 32 + i % 32] |= (code as u8) << (4 * (p % 2));
        }
        let (scale, min_scale) = (F16::from_f32(scale), F16::from_f32(min_scale));
        BlockQ4K { scale, min_scale, parts: k_scales::pack(s, m), codes }
    }
}
