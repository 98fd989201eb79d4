//! The order in which values are chosen: the largest first, a NaN after every number.

/// What no value has: less than the key of any.
pub(crate) const NONE: u32 = 0;
/// Key of every NaN; the smallest number's is larger.
const NAN: u32 = 1;

/// A word that is larger the earlier `v` is chosen, and the same for the same values (-0 is 0).
#[inline(always)]
pub(crate) fn key(v: f32) -> u32 {
    if v.is_nan() {
        return NAN;
    }
    let bits = if v == 0.0 { 0 } else { v.to_bits() };
    // Negative numbers grow with falling bits.
    bits ^ if bits >> 31 == 0 { 1 << 31 } else { u32::MAX }
}

/// The value that has this key.
#[inline(always)]
pub(crate) fn value(key: u32) -> f32 {
    if key <= NAN {
        return f32::NAN;
    }
    f32::from_bits(key ^ if key >> 31 == 1 { 1 << 31 } else { u32::MAX })
}
