//! Q5_K: 256 weights in 8 parts of 32, `w = (scale * s) * code - (min_scale * m)`, 5-bit codes,
//! 6-bit `s` and `m` for each part. 176 bytes.
//!
//! ```text
//! byte  0..1          scale, f16
//! byte  2..3          min_scale, f16
//! byte  4..15         s and m of the parts, see `k_scales`; part p holds weights 32p ..
//! byte 16 + j         bit 4 of codes 224+j, 192+j .. 32+j, j         j = 0..32
//! byte 48 + 32h + j   | code c+32, bits 3:0 | code c, bits 3:0 |     c = 64h + j, h = 0..4
//! ```

use super::{Format, QuantBlock, fit, k_scales};
use crate::gpu::{Element, F16};

/// 256 weights in 8 parts, each with a scale and a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ5K {
    /// The unit of the parts' scales.
    pub scale: F16,
    /// The unit of the parts' minima.
    pub min_scale: F16,
    /// The parts' scales and minima.
    pub parts: [u8; 12],
    /// Bit 4 of code `i` in bit `i / 32` of byte `i % 32`.
    pub high: [u8; 32],
    /// The low bits, two codes a byte, 32 weights apart.
    pub low: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ5K {
    const FORMAT: Format = Format::Q5_K;
    const ELEMS: usize = 256;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let (s, m) = k_scales::unpack(&self.parts, i / 32);
        let code = self.low[i / 64 % 4 * 32 + i % 32] >> (4 * (i / 32 % 2)) & 15
            | (self.high[i % 32] >> (i / 32 % 8) & 1) << 4;
        let step = self.scale.to_f32() * s as f32;
        let min = self.min_scale.to_f32() * m as f32;
        step * code as f32 - min
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ5K {
        let (mut steps, mut mins) = ([0.0; 8], [0.0; 8]);
        for (p, x) in x[..256].chunks_exact(32).enumerate() {
            (steps[p], mins[p]) = fit::affine(x, 31);
        }
        let (scale, s) = fit::shared_step(steps, 0, 63);
        let (min_scale, m) = fit::shared_step(mins, 0, 63);
        let (mut high, mut low) = ([0; 32], [0; 128]);
        for (i, v) in x[..256].iter().enumerate() {
            let p = i / 32;
            let code = fit::code(v + min_scale * m[p] as f32, scale * s[p] as f32, 0, 31) as u8;
            high[i % 32] |= code >> 4 << p;
            low[i / 64 * 32 + i % 32] |= (code & 15) << (4 * (p % 2));
        }
        let (scale, min_scale) = (F16::from_f32(scale), F16::from_f32(min_scale));
        BlockQ5K { scale, min_scale, parts: k_scales::pack(s, m), high, low }
    }
}
