//! Q3_K: 256 weights in 16 parts of 16, `w = (scale * (s - 32)) * (code - 4)`, 3-bit codes, a 6-bit
//! `s` for each part. 110 bytes.
//!
//! ```text
//! byte   0 + j         bit 2 of codes 224+j, 192+j .. 32+j, j         j = 0..32
//! byte  32 + 32h + j   | c+96, bits 1:0 | c+64 | c+32 | c |           c = 128h + j
//! byte  96 + p         | s p+8, bits 3:0 | s p, bits 3:0 |            p = 0..8, part of weight 16p
//! byte 104 + p         | s p+12, bits 5:4 | s p+8 | s p+4 | s p |     p = 0..4
//! byte 108..109        scale, f16
//! ```

use super::{Format, QuantBlock, fit};
use crate::gpu::{Element, F16};

/// 256 weights in 16 parts, each with a signed scale.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct BlockQ3K {
    /// Bit 2 of code `i` in bit `i / 32` of byte `i % 32`.
    pub high: [u8; 32],
    /// The low bits, four codes a byte, 32 weights apart.
    pub low: [u8; 64],
    /// The parts' scales: eight bytes of nibbles, four bytes of upper bits.
    pub parts: [u8; 12],
    /// The unit of the parts' scales.
    pub scale: F16,
}
const _: () = assert!(size_of::<BlockQ3K>() == 110);

// SAFETY: repr(C), integers only, and the size leaves no padding.
unsafe impl QuantBlock for BlockQ3K {
    const FORMAT: Format = Format::Q3_K;
    const ELEMS: usize = 256;

    #[inline(always)]
    fn decode(&self, i: usize) -> f32 {
        let p = i / 16 % 16;
        let s = self.parts[p % 8] >> (4 * (p / 8)) & 15
            | (self.parts[8 + p % 4] >> (2 * (p / 4)) & 3) << 4;
        let code = self.low[i / 128 % 2 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3
            | (self.high[i % 32] >> (i / 32 % 8) & 1) << 2;
        let step = self.scale.to_f32() * (s as i32 - 32) as f32;
        step * (code as i32 - 4) as f32
    }

    #[inline]
    fn encode(x: &[f32]) -> BlockQ3K {
        let mut steps = [0.0; 16];
        for (step, x) in steps.iter_mut().zip(x[..256].chunks_exact(16)) {
            *step = fit::symmetric(x, -4, 3);
        }
        let (scale, s) = fit::shared_step(steps, -32, 31);
        let (mut high, mut low, mut parts) = ([0; 32], [0; 64], [0; 12]);
        for (p, s) in s.iter().enumerate() {
            let s = (s + 32) as u8;
            parts[p % 8] |= (s & 15) << (4 * (p / 8));
            parts[8 + p % 4] |= s >> 4 << (2 * (p / 4));
        }
        for (i, v) in x[..256].iter().enumerate() {
            let code = (fit::code(*v, scale * s[i / 16] as f32, -4, 3) + 4) as u8;
            high[i % 32] |= code >> 2 << (i / 32);
            low[i / 128 * 32 + i % 32] |= (code & 3) << (2 * (i / 32 % 4));
        }
        BlockQ3K { high, low, parts, scale: F16::from_f32(scale) }
    }
}
