//! The tensor cores' products, emulated from their fragments.
//!
//! The lanes lay their fragments out as k by rows, so that the products of 16 rows with one value of
//! b are one vector operation.

use super::block::{Exchange, meet};
use std::panic::Location;

/// Lays out lane `lane`'s fragments: words of a at rows g and g + 8, words of b of column g.
#[inline(always)]
fn deposit<const N: usize>(e: &mut Exchange, lane: usize, a: [u32; N], b: [u32; 2]) {
    let (g, t) = (lane / 4, lane % 4);
    for (i, word) in a.into_iter().enumerate() {
        e.a[t + 4 * (i / 2)][g + 8 * (i % 2)] = word;
    }
    (e.b[g][t], e.b[g][t + 4]) = (b[0], b[1]);
}

/// Lane `lane`'s fragment of the product: rows g and g + 8, columns 2t and 2t + 1.
#[inline(always)]
fn collect(e: &Exchange, lane: usize) -> [u32; 4] {
    let (g, t) = (lane / 4, lane % 4);
    let [left, right] = [&e.product[2 * t], &e.product[2 * t + 1]];
    [left[g], right[g], left[g + 8], right[g + 8]]
}

/// Fills the product column by column: sums over k of `a[k][row] b[k]` with b from `widen`. Columns
/// of zeroes are left out, as most are when few tokens are decoded; `a` must be finite then.
#[inline(always)]
fn multiply<const K: usize>(
    a: &[[f32; 16]; K],
    finite: bool,
    b: &[[u32; 8]; 8],
    widen: impl Fn(&[u32; 8]) -> [f32; K],
    product: &mut [[u32; 16]; 8],
    bits: impl Fn(f32) -> u32,
) {
    for (b, out) in b.iter().zip(product) {
        let mut sums = [0f32; 16];
        if !finite || b.iter().fold(0, |all, word| all | word) != 0 {
            for (rows, b) in a.iter().zip(widen(b)) {
                for (sum, a) in sums.iter_mut().zip(rows) {
                    *sum += a * b;
                }
            }
        }
        *out = sums.map(&bits);
    }
}

/// Product of signed bytes with k = 16 (two words of a in a lane) or 32 (four).
#[inline(always)]
pub(super) fn int8<const WORDS: usize, const K: usize>(
    location: &'static Location<'static>,
    c: [i32; 4],
    a: [u32; WORDS],
    b: [u32; 2],
) -> [i32; 4] {
    let product = meet(
        "an 8-bit matrix product",
        location,
        |e, lane| deposit(e, lane, a, b),
        int8_product::<K>,
        collect,
    );
    std::array::from_fn(|i| c[i].wrapping_add(product[i] as i32))
}

/// In f32, which holds every sum of 32 products of bytes exactly: they are below 2^20.
#[inline(never)]
fn int8_product<const K: usize>(e: &mut Exchange) {
    let byte = |word: u32, k: usize| (((word << (24 - 8 * (k % 4))) as i32) >> 24) as f32;
    let mut a = [[0f32; 16]; K];
    for (k, rows) in a.iter_mut().enumerate() {
        *rows = e.a[k / 4].map(|word| byte(word, k));
    }
    let widen = |b: &[u32; 8]| std::array::from_fn(|k| byte(b[k / 4], k));
    // Added to this, a small integer stands in the lowest bits.
    const ZERO: f32 = 12_582_912.0;
    let integer = |sum: f32| (sum + ZERO).to_bits().wrapping_sub(ZERO.to_bits());
    multiply(&a, true, &e.b, widen, &mut e.product, integer);
}

/// 16-bit float product with k = 16, accumulated in f32 in the order of k. Products of `F` are exact
/// in f32.
#[inline(always)]
pub(super) fn half<F: Narrow>(
    location: &'static Location<'static>,
    operation: &'static str,
    c: [f32; 4],
    a: [u32; 4],
    b: [u32; 2],
) -> [f32; 4] {
    let product =
        meet(operation, location, |e, lane| deposit(e, lane, a, b), half_product::<F>, collect);
    std::array::from_fn(|i| c[i] + f32::from_bits(product[i]))
}

#[inline(never)]
fn half_product<F: Narrow>(e: &mut Exchange) {
    let mut a = [[0f32; 16]; 16];
    for (k, rows) in a.iter_mut().enumerate() {
        *rows = e.a[k / 2].map(|word| F::widen((word >> (16 * (k % 2))) as u16));
    }
    let finite = a.iter().flatten().fold(true, |all, v| all & v.is_finite());
    let widen =
        |b: &[u32; 8]| std::array::from_fn(|k| F::widen((b[k / 2] >> (16 * (k % 2))) as u16));
    multiply(&a, finite, &e.b, widen, &mut e.product, f32::to_bits);
}

/// A 16-bit float format.
pub(super) trait Narrow {
    /// The value of these bits, without a branch.
    fn widen(bits: u16) -> f32;
}

pub(super) struct F16;
pub(super) struct Bf16;

impl Narrow for F16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        // The exponents' biases are 112 apart; the product rounds nothing, not even a subnormal.
        const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
        let bits = bits as u32;
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * REBIAS;
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    }
}

impl Narrow for Bf16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits((bits as u32) << 16)
    }
}
