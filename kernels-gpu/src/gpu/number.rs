//! The plain values that kernels load and store.

use crate::half_bits;

/// A value that any bytes of its size can be: what memory may hold.
///
/// # Safety
/// Every bit pattern is valid, and there is no padding.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($ty:ty),*) => {$(
        // SAFETY: an integer or float, or a repr(C) group of them without padding.
        unsafe impl Plain for $ty {}
    )*};
}
plain!(u8, i8, u16, i16, u32, i32, u64, f32, F16, Bf16, U32x2, U32x4);

// SAFETY: elements without gaps.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Two words, loaded as one 8-byte access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct U32x2(pub [u32; 2]);

/// Four words, loaded as one 16-byte access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct U32x4(pub [u32; 4]);

/// IEEE half precision, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

/// The upper half of an f32, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// A float as memory holds it: f32, f16 or bf16.
pub trait Element: Plain {
    /// The value in f32, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value of this type, ties to even.
    fn from_f32(v: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(v: f32) -> f32 {
        v
    }
}

impl Element for F16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        super::f16_to_f32(self.0)
    }
    #[inline(always)]
    fn from_f32(v: f32) -> F16 {
        F16(super::f32_to_f16(v))
    }
}

impl Element for Bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        half_bits::bf16_to_f32(self.0)
    }
    #[inline(always)]
    fn from_f32(v: f32) -> Bf16 {
        Bf16(half_bits::f32_to_bf16(v))
    }
}
