//! The tensor cores' products, emulated from their fragments.

use super::block::{DEPOSIT_WORDS, meet};
use std::panic::Location;

type Deposits = [[u32; DEPOSIT_WORDS]; 32];

fn deposit_all(d: &mut [u32; DEPOSIT_WORDS], a: [u32; 4], b: [u32; 2], c: [u32; 4]) {
    d[..4].copy_from_slice(&a);
    d[4..6].copy_from_slice(&b);
    d[6..].copy_from_slice(&c);
}

/// Columns of b that hold anything: most are empty when few tokens are decoded.
fn used_columns(deposits: &Deposits) -> [bool; 8] {
    let column =
        |g: usize| (0..4).any(|t| deposits[4 * g + t][4] != 0 || deposits[4 * g + t][5] != 0);
    std::array::from_fn(column)
}

/// Writes every lane's c fragment from `product(row, column)`.
fn scatter(
    deposits: &Deposits,
    results: &mut [[u32; 4]; 32],
    product: impl Fn(usize, usize, u32) -> u32,
) {
    for (lane, result) in results.iter_mut().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for (i, out) in result.iter_mut().enumerate() {
            *out = product(g + 8 * (i / 2), 2 * t + i % 2, deposits[lane][6 + i]);
        }
    }
}

/// Product of signed bytes with k = `K` (32 or 16).
pub(super) fn int8<const K: usize>(
    location: &'static Location<'static>,
    c: [i32; 4],
    a: [u32; 4],
    b: [u32; 2],
) -> [i32; 4] {
    let c = c.map(|v| v as u32);
    let got = meet(
        "an 8-bit matrix product",
        location,
        false,
        |d| deposit_all(d, a, b, c),
        |deposits, results| {
            let mut rows = [[0i16; 32]; 16];
            for (row, values) in rows.iter_mut().enumerate() {
                for t in 0..4 {
                    let lane = &deposits[4 * (row % 8) + t];
                    for half in 0..K / 16 {
                        let word = lane[row / 8 + 2 * half].to_le_bytes();
                        for (i, byte) in word.into_iter().enumerate() {
                            values[16 * half + 4 * t + i] = byte as i8 as i16;
                        }
                    }
                }
            }
            let mut products = [[0i32; 8]; 16];
            for (column, _) in used_columns(deposits).iter().enumerate().filter(|(_, used)| **used)
            {
                let mut values = [0i16; 32];
                for t in 0..4 {
                    for half in 0..K / 16 {
                        let word = deposits[4 * column + t][4 + half].to_le_bytes();
                        for (i, byte) in word.into_iter().enumerate() {
                            values[16 * half + 4 * t + i] = byte as i8 as i16;
                        }
                    }
                }
                for (row, out) in rows.iter().zip(&mut products) {
                    out[column] =
                        row.iter().zip(&values).map(|(&a, &b)| a as i32 * b as i32).sum::<i32>();
                }
            }
            scatter(deposits, results, |row, column, c| {
                (c as i32).wrapping_add(products[row][column]) as u32
            });
        },
    );
    got.map(|v| v as i32)
}

/// 16-bit float product with k = 16, accumulated in f32 in the order of k.
pub(super) fn half(
    location: &'static Location<'static>,
    operation: &'static str,
    widen: impl Fn(u16) -> f32,
    c: [f32; 4],
    a: [u32; 4],
    b: [u32; 2],
) -> [f32; 4] {
    let got = meet(
        operation,
        location,
        false,
        |d| deposit_all(d, a, b, c.map(f32::to_bits)),
        |deposits, results| {
            let pair = |word: u32| [widen(word as u16), widen((word >> 16) as u16)];
            let mut rows = [[0f32; 16]; 16];
            for (row, values) in rows.iter_mut().enumerate() {
                for t in 0..4 {
                    let lane = &deposits[4 * (row % 8) + t];
                    for half in 0..2 {
                        let at = 8 * half + 2 * t;
                        values[at..at + 2].copy_from_slice(&pair(lane[row / 8 + 2 * half]));
                    }
                }
            }
            let mut products = [[0f32; 8]; 16];
            for (column, _) in used_columns(deposits).iter().enumerate().filter(|(_, used)| **used)
            {
                let mut values = [0f32; 16];
                for t in 0..4 {
                    for half in 0..2 {
                        let at = 8 * half + 2 * t;
                        let word = deposits[4 * column + t][4 + half];
                        values[at..at + 2].copy_from_slice(&pair(word));
                    }
                }
                for (row, out) in rows.iter().zip(&mut products) {
                    out[column] = row.iter().zip(&values).map(|(a, b)| a * b).sum();
                }
            }
            scatter(deposits, results, |row, column, c| {
                (f32::from_bits(c) + products[row][column]).to_bits()
            });
        },
    );
    got.map(f32::from_bits)
}
