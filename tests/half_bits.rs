//! The 16-bit floats' conversions against the `half` crate: every input where there are 65536,
//! every rounding border and a few million bit patterns where there are more.

use half::{bf16, f16};
use kernels_gpu::half_bits::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

#[test]
fn every_f16_widens_as_half_does() {
    for bits in 0..=u16::MAX {
        let (got, want) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
        assert_eq!(got.to_bits(), want.to_bits(), "{bits:#06x}");
    }
}

#[test]
fn every_bf16_widens_as_half_does() {
    for bits in 0..=u16::MAX {
        let (got, want) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32());
        if want.is_nan() {
            // `half` makes it quiet; GGML and gguf-py, and we, leave every bit as it is.
            assert_eq!(got.to_bits(), (bits as u32) << 16);
        } else {
            assert_eq!(got.to_bits(), want.to_bits(), "{bits:#06x}");
        }
    }
}

fn narrows(v: f32) {
    let want = f16::from_f32(v).to_bits();
    assert_eq!(f32_to_f16(v), want, "f16 of {v:e} ({:#010x})", v.to_bits());
    let want = bf16::from_f32(v).to_bits();
    assert_eq!(f32_to_bf16(v), want, "bf16 of {v:e} ({:#010x})", v.to_bits());
}

#[test]
fn every_border_between_two_halves_rounds_as_half_does() {
    for bits in 0..=u16::MAX {
        // The value itself, and the middle between it and the next, each with its neighbours.
        let here = f16_to_f32(bits).to_bits();
        let next = f16_to_f32(bits.wrapping_add(1)).to_bits();
        let middle = here.wrapping_add(next.wrapping_sub(here) / 2);
        let (coarse, coarse_middle) = ((bits as u32) << 16, (bits as u32) << 16 | 0x8000);
        for at in [here, middle, coarse, coarse_middle] {
            for near in [at.wrapping_sub(1), at, at.wrapping_add(1)] {
                narrows(f32::from_bits(near));
            }
        }
    }
}

#[test]
fn the_border_to_infinity_rounds_as_half_does() {
    // 65520 is halfway between the largest f16 and what would follow it.
    assert_eq!(f32_to_f16(f32::from_bits(65520f32.to_bits() - 1)), 0x7bff);
    assert_eq!(f32_to_f16(65520.0), 0x7c00);
    assert_eq!(f32_to_f16(-65536.0), 0xfc00);
    assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
}

#[test]
fn patterns_from_the_whole_range_narrow_as_half_does() {
    // An odd stride visits no pattern twice; this one reaches every exponent with either sign.
    let mut bits = 0u32;
    for _ in 0..4_000_000 {
        bits = bits.wrapping_add(2_654_435_761);
        narrows(f32::from_bits(bits));
    }
}
