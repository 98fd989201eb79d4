//! Products of f32 queries and weights with what the cache holds, on the tensor cores. They multiply
//! numbers of 16 bits, so that an f32 goes there in parts whose sum it is, each in a row of its own: a
//! product of sixteen rows is one of eight rows of f32.

use crate::gpu::{self, Bf16, F16, U32x4};
use crate::kv_cache::Cached;

/// Query rows of a product: the other half of its sixteen has the second part of each.
pub(super) const PRODUCT_ROWS: u32 = 8;

/// Parts of two numbers that are neighbours in a sum: a word of each part; 0 where there is none.
pub(super) type Parts = [u32; 3];

/// A type of cache that the tensor cores multiply with.
pub(super) trait Multiplied: Cached {
    /// Parts of an f32.
    const N_PARTS: usize;
    /// What weights, at most 1, are multiplied by before they are taken apart, so that no part of one that
    /// matters is subnormal.
    const WEIGHT_SCALE: f32;
    /// Matrix instructions of `multiply`.
    #[cfg(not(target_arch = "nvptx64"))]
    const PRODUCTS: u32;
    /// Two elements that are neighbours in a sum.
    type Pair: Copy;
    /// The parts of two numbers. Their sums differ from the numbers by no more than 2^-23 of these, or
    /// 2^-25.
    fn split(pair: [f32; 2]) -> Parts;
    /// Elements `2 i` and `2 i + 1`.
    fn along(raw: Self::Raw, i: usize) -> Self::Pair;
    /// Elements `i` of two rows.
    fn across(first: Self::Raw, second: Self::Raw, i: usize) -> Self::Pair;
    /// `sums + a b` over sixteen neighbours of the sum: lane 4 g + t brings 2t, 2t + 1 and 2t + 8, 2t + 9 of
    /// row g of a, and of column g of b. It gets columns 2t and 2t + 1 of row g, each as a sum of two: 0 and
    /// 2, 1 and 3. All 32 lanes must reach this call.
    fn multiply(sums: [f32; 4], a: [Parts; 2], b: [Self::Pair; 2]) -> [f32; 4];
}

/// The words' upper or lower halves.
#[inline(always)]
fn halves_across(U32x4(first): U32x4, U32x4(second): U32x4, i: usize) -> u32 {
    let selector = if i.is_multiple_of(2) { 0x5410 } else { 0x7632 };
    gpu::permute_bytes(first[i / 2], second[i / 2], selector)
}

impl Multiplied for F16 {
    const N_PARTS: usize = 2;
    const WEIGHT_SCALE: f32 = 16384.0;
    #[cfg(not(target_arch = "nvptx64"))]
    const PRODUCTS: u32 = 1;
    type Pair = u32;
    #[inline(always)]
    fn split([a, b]: [f32; 2]) -> Parts {
        let upper = gpu::f32_to_f16x2(a, b);
        let rest_a = a - gpu::f16_to_f32(upper as u16);
        let rest_b = b - gpu::f16_to_f32((upper >> 16) as u16);
        [upper, gpu::f32_to_f16x2(rest_a, rest_b), 0]
    }
    #[inline(always)]
    fn along(U32x4(words): U32x4, i: usize) -> u32 {
        words[i]
    }
    #[inline(always)]
    fn across(first: U32x4, second: U32x4, i: usize) -> u32 {
        halves_across(first, second, i)
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn multiply(sums: [f32; 4], [a, c]: [Parts; 2], b: [u32; 2]) -> [f32; 4] {
        gpu::mma_f16(sums, [a[0], a[1], c[0], c[1]], b)
    }
}

/// The parts of two f32 as bf16.
#[inline(always)]
fn bf16_parts(pair: [f32; 2]) -> Parts {
    let (first, rest) = bf16_part(pair);
    let (second, rest) = bf16_part(rest);
    [first, second, gpu::f32_to_bf16x2(rest[0], rest[1])]
}

/// The largest part, and what is left.
#[inline(always)]
fn bf16_part([a, b]: [f32; 2]) -> (u32, [f32; 2]) {
    let word = gpu::f32_to_bf16x2(a, b);
    (word, [a - f32::from_bits(word << 16), b - f32::from_bits(word & 0xffff_0000)])
}

/// `sums + a b` with the first two parts of a in one product, the third in another.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn multiply_bf16(sums: [f32; 4], [a, c]: [Parts; 2], b: [u32; 2]) -> [f32; 4] {
    let sums = gpu::mma_bf16(sums, [a[0], a[1], c[0], c[1]], b);
    gpu::mma_bf16(sums, [a[2], 0, c[2], 0], b)
}

impl Multiplied for Bf16 {
    const N_PARTS: usize = 3;
    const WEIGHT_SCALE: f32 = 1.0;
    #[cfg(not(target_arch = "nvptx64"))]
    const PRODUCTS: u32 = 2;
    type Pair = u32;
    #[inline(always)]
    fn split(pair: [f32; 2]) -> Parts {
        bf16_parts(pair)
    }
    #[inline(always)]
    fn along(U32x4(words): U32x4, i: usize) -> u32 {
        words[i]
    }
    #[inline(always)]
    fn across(first: U32x4, second: U32x4, i: usize) -> u32 {
        halves_across(first, second, i)
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn multiply(sums: [f32; 4], a: [Parts; 2], b: [u32; 2]) -> [f32; 4] {
        multiply_bf16(sums, a, b)
    }
}

/// Element `i` of eight.
#[inline(always)]
fn float(raw: [U32x4; 2], i: usize) -> f32 {
    f32::from_bits(raw[i / 4].0[i % 4])
}

impl Multiplied for f32 {
    const N_PARTS: usize = 3;
    const WEIGHT_SCALE: f32 = 1.0;
    #[cfg(not(target_arch = "nvptx64"))]
    const PRODUCTS: u32 = 4;
    /// In parts of their own.
    type Pair = Parts;
    #[inline(always)]
    fn split(pair: [f32; 2]) -> Parts {
        bf16_parts(pair)
    }
    #[inline(always)]
    fn along(raw: [U32x4; 2], i: usize) -> Parts {
        bf16_parts([float(raw, 2 * i), float(raw, 2 * i + 1)])
    }
    #[inline(always)]
    fn across(first: [U32x4; 2], second: [U32x4; 2], i: usize) -> Parts {
        bf16_parts([float(first, i), float(second, i)])
    }
    /// Without the products of two small parts that are less than 2^-24 of the whole.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn multiply(sums: [f32; 4], [a, c]: [Parts; 2], [b, d]: [Parts; 2]) -> [f32; 4] {
        let sums = multiply_bf16(sums, [a, c], [b[0], d[0]]);
        let first_two = [a[0], a[1], c[0], c[1]];
        let sums = gpu::mma_bf16(sums, first_two, [b[1], d[1]]);
        gpu::mma_bf16(sums, first_two, [b[2], d[2]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half_bits::{bf16_to_f32, f16_to_f32};

    /// The largest difference between numbers and the sums of their parts, in 2^-23 of the number, or in
    /// `least`.
    fn worst<E: Multiplied>(widen: fn(u16) -> f32, numbers: &[f32], least: f64) -> f64 {
        let sum = |parts: Parts, shift: u32| -> f64 {
            parts.iter().map(|word| widen((word >> shift) as u16) as f64).sum()
        };
        let off = |(number, sum): (f32, f64)| {
            let unit = (number.abs() as f64 * 2f64.powi(-23)).max(least);
            (number as f64 - sum).abs() / unit
        };
        let of_pair = |pair: &[f32]| {
            let parts = E::split([pair[0], pair[1]]);
            off((pair[0], sum(parts, 0))).max(off((pair[1], sum(parts, 16))))
        };
        numbers.chunks_exact(2).map(of_pair).fold(0.0, f64::max)
    }

    #[test]
    fn parts_make_up_the_number() {
        // Mantissas of all kinds over what a query, brought to 2^14, and a weight can be.
        let numbers: Vec<f32> = (0..1u32 << 16)
            .map(|i| {
                let bits = i.wrapping_mul(0x9e37_79b9);
                f32::from_bits((127 - 16 + i % 31) << 23 | bits >> 9 | bits << 31)
            })
            .collect();
        let f16 = worst::<F16>(f16_to_f32, &numbers, 2f64.powi(-25));
        assert!(f16 <= 1.0, "{f16}");
        let bf16 = worst::<Bf16>(bf16_to_f32, &numbers, 0.0);
        assert!(bf16 <= 1.0, "{bf16}");
    }
}
