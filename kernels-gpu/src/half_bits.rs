//! f16 and bf16 from and to f32 by integer arithmetic on their bits: the definition, the same on
//! every machine. The device has instructions for f16; `gpu` uses those there and these here.

/// Bits of an f16 as f32, exactly. A signalling NaN becomes quiet.
#[inline]
pub const fn f16_to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let exponent = bits as u32 >> 10 & 0x1f;
    let fraction = bits as u32 & 0x3ff;
    let magnitude = match (exponent, fraction) {
        (0, 0) => 0,
        // fraction * 2^-24: the leading one becomes the implicit one.
        (0, _) => {
            let shift = fraction.leading_zeros() - 21;
            (113 - shift) << 23 | (fraction << shift & 0x3ff) << 13
        }
        (0x1f, 0) => 0x7f80_0000,
        (0x1f, _) => 0x7fc0_0000 | fraction << 13,
        _ => (exponent + 112) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Bits of the f16 nearest to `v`, ties to even; beyond 65504 by half a step or more, infinity.
#[inline]
pub const fn f32_to_f16(v: f32) -> u16 {
    let bits = v.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00 | (magnitude >> 13 & 0x3ff) as u16;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00; // 65536 and up, infinity
    }
    if magnitude < 0x3300_0000 {
        return sign; // below half of the smallest subnormal, 2^-25
    }
    let exponent = magnitude >> 23;
    // What is kept of the significand, and how far it moves; a carry runs into the exponent, which
    // is the right answer both from the largest subnormal and into infinity.
    let (kept, shift) = if exponent < 113 {
        (magnitude & 0x7f_ffff | 0x80_0000, 126 - exponent)
    } else {
        (magnitude - (112 << 23), 13)
    };
    let half = 1 << (shift - 1);
    let rounded = (kept + half - 1 + (kept >> shift & 1)) >> shift;
    sign | rounded as u16
}

/// Bits of a bf16 as f32, exactly.
#[inline]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Bits of the bf16 nearest to `v`, ties to even.
#[inline]
pub const fn f32_to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() {
        return (bits >> 16) as u16 | 0x40; // keep it a NaN whatever the low half was
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
