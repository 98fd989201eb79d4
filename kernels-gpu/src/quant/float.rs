//! The formats without blocks: a weight is a number of its own.
//!
//! ```text
//! F32   byte 0..3 | sign | exponent 8 | fraction 23 |   little-endian
//! F16   byte 0..1 | sign | exponent 5 | fraction 10 |
//! BF16  byte 0..1 | sign | exponent 8 | fraction 7  |   the upper half of an F32
//! ```

use super::{Format, QuantBlock};
use crate::gpu::{Bf16, Element, F16};

macro_rules! float {
    ($($block:ident: $format:ident, $value:ty, $bytes:literal;)*) => {$(
        #[doc = concat!("One ", stringify!($format), " weight.")]
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(C)]
        pub struct $block {
            /// The weight.
            pub value: $value,
        }
        const _: () = assert!(size_of::<$block>() == $bytes);

        // SAFETY: one number, any bits of which are valid.
        unsafe impl QuantBlock for $block {
            const FORMAT: Format = Format::$format;
            const ELEMS: usize = 1;

            #[inline(always)]
            fn decode(&self, _: usize) -> f32 {
                self.value.to_f32()
            }

            #[inline]
            fn encode(x: &[f32]) -> $block {
                $block { value: Element::from_f32(x[0]) }
            }
        }
    )*};
}

float! {
    BlockF32: F32, f32, 4;
    BlockF16: F16, F16, 2;
    BlockBf16: BF16, Bf16, 2;
}
