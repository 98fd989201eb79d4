//! The 12 bytes in which Q4_K and Q5_K keep eight 6-bit scales and eight 6-bit minima.
//!
//! ```text
//! byte  0 + j | scale j+4, bits 5:4 | scale j, bits 5:0 |   j = 0..4
//! byte  4 + j | min j+4,   bits 5:4 | min j,   bits 5:0 |
//! byte  8 + j | min j+4,   bits 3:0 | scale j+4, bits 3:0 |
//! ```

/// Scale and minimum of part `part`, counted modulo 8.
#[inline(always)]
pub(super) fn unpack(bytes: &[u8; 12], part: usize) -> (u8, u8) {
    let j = part % 4;
    let (scale, min, low) = (bytes[j], bytes[4 + j], bytes[8 + j]);
    if part % 8 < 4 {
        (scale & 63, min & 63)
    } else {
        (scale >> 6 << 4 | low & 15, min >> 6 << 4 | low >> 4)
    }
}

/// The inverse of `unpack`, over all parts; each value is below 64.
#[inline]
pub(super) fn pack(scales: [i32; 8], mins: [i32; 8]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for j in 0..4 {
        bytes[j] = (scales[j] | scales[4 + j] >> 4 << 6) as u8;
        bytes[4 + j] = (mins[j] | mins[4 + j] >> 4 << 6) as u8;
        bytes[8 + j] = (scales[4 + j] & 15 | (mins[4 + j] & 15) << 4) as u8;
    }
    bytes
}
