//! Outputs beside what they must be: the definitions in f64, sharing nothing with the kernels but
//! what a GGUF block means.

use super::stock::{Input, Matrices};
use crate::error::{Error, Result};
use crate::model::arch::Activation;
use kernels_gpu::quant::Format;
use std::cmp::Ordering;

/// A rounding to f32 is off by half of it.
pub(super) const EPS: f64 = f32::EPSILON as f64;

/// Rows and columns of an output that are looked at, at most.
const SAMPLES: usize = 32;

/// An element of an output.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// Which.
    pub element: String,
    /// What the kernel wrote.
    pub found: f64,
    /// What the definition gives, and how far the kernel may be from it.
    pub expected: Estimate,
}

/// A value and the most that a right result may be off by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Estimate {
    pub value: f64,
    pub error: f64,
}

/// Refuses the first point that is off.
pub(super) fn verify(bench: &str, points: &[Point]) -> Result<()> {
    let wrong = |point: &&Point| {
        let Estimate { value, error } = point.expected;
        // What is not a number is not within anything.
        let off = (point.found - value).abs();
        !matches!(off.partial_cmp(&error), Some(Ordering::Less | Ordering::Equal))
    };
    let off = |bench: &str, element: &str, found, expected: Estimate| {
        let (bench, element) = (bench.to_owned(), element.to_owned());
        Err(Error::WrongResult {
            bench,
            element,
            found,
            expected: expected.value,
            allowed: expected.error,
        })
    };
    match points.iter().find(wrong) {
        Some(point) => off(bench, &point.element, point.found, point.expected),
        None if points.is_empty() => {
            off(bench, "none was looked at", f64::NAN, Estimate::default())
        }
        None => Ok(()),
    }
}

/// Numbers below `n` that are looked at: the first, the last, and others evenly between, all of few.
pub(super) fn sample(n: usize) -> Vec<usize> {
    let last = n.saturating_sub(1);
    let count = n.min(SAMPLES);
    (0..count).map(|i| i * last / count.saturating_sub(1).max(1)).collect()
}

/// The first and the last of `n`.
pub(super) fn ends(n: usize) -> Vec<usize> {
    if n > 1 { vec![0, n - 1] } else { vec![0] }
}

/// `sum_c weights[row, c] x[token, c] + bias[row]` of an expert's matrix, the input's RMS scale applied.
pub(super) fn product(
    m: &Matrices,
    (expert, row): (usize, usize),
    x: &Input,
    token: usize,
) -> Estimate {
    let weights = m.row(expert, row);
    let (values, factor) = (x.row(token), x.factor(token));
    let (mut sum, mut size) = (0.0, 0.0);
    for (&w, &x) in weights.iter().zip(values) {
        let term = w as f64 * x as f64;
        sum += term;
        size += term.abs();
    }
    let fixed = match m.slab.format {
        Format::F32 => 0.0,
        _ => fixed_point_error(&weights, values),
    };
    let bias = m.bias_of(expert, row);
    // Fixed point; f32 sums: one rounding a block of 32 and a warp, and those of the scales; with an
    // RMS scale half of those in its sum of squares, and its division, root and inverse.
    let n_cols = weights.len() as f64;
    let roundings = n_cols / 32.0 + 20.0 + n_cols / 2048.0;
    let size = size * factor + bias.abs();
    Estimate { value: sum * factor + bias, error: fixed * factor + roundings * EPS * size }
}

/// Most that a product can be off by because fixed point keeps each activation to half a code of its
/// block of 32.
fn fixed_point_error(w: &[f32], x: &[f32]) -> f64 {
    let of_block = |(w, x): (&[f32], &[f32])| {
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
        w.iter().map(|w| w.abs() as f64).sum::<f64>() * largest / 32512.0 / 2.0
    };
    w.chunks(32).zip(x.chunks(32)).map(of_block).sum()
}

impl Estimate {
    /// What is known to the bit.
    pub fn exact(value: f64) -> Estimate {
        Estimate { value, error: 0.0 }
    }

    /// The f32 sum with a known number.
    pub fn plus(self, other: f64) -> Estimate {
        let size = self.value.abs() + other.abs();
        Estimate { value: self.value + other, error: self.error + EPS * size }
    }

    /// The f32 product with a known number.
    pub fn times(self, factor: f64) -> Estimate {
        let value = self.value * factor;
        Estimate { value, error: (self.error * factor).abs() + EPS * value.abs() }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `activation(gate, up)`. The machine's `e^x` is off by EPS (2 + |x|); the slope of `g sigmoid(a g)` is
/// at most 1.1, and its value at most |g|.
pub(super) fn activation(activation: Activation, gate: Estimate, up: Estimate) -> Estimate {
    let (g, u) = (gate.value, up.value);
    let (value, exponent, slope_g, slope_u) = match activation {
        Activation::SwigluOai { alpha, limit } => {
            let (alpha, limit) = (alpha as f64, limit as f64);
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            let value = g * sigmoid(alpha * g) * (u + 1.0);
            (value, alpha * g, 1.1 * (u + 1.0).abs(), g.abs())
        }
        Activation::SiluGate => (g * sigmoid(g) * u, g, 1.1 * u.abs(), g.abs()),
        Activation::GeluTanh => {
            let z = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (u + 0.044715 * u * u * u);
            (u * sigmoid(z), z, 0.0, 1.2)
        }
    };
    let through = slope_g * gate.error + slope_u * up.error + 1.1 * gate.error * up.error;
    let own = value.abs() * EPS * (6.0 + 3.5 * exponent.abs()) + f32::MIN_POSITIVE as f64;
    Estimate { value, error: through + own }
}

/// What a token's router says: its experts from the largest logit down, and the softmax over those, with
/// how far the kernel's may be from it.
pub(super) fn choice(logits: &[f32], used: usize) -> Vec<(usize, Estimate)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(used);
    let below: Vec<f64> = order.iter().map(|&e| (logits[order[0]] - logits[e]) as f64).collect();
    let sum: f64 = below.iter().map(|d| (-d).exp()).sum();
    // `e^-d` is off by EPS (2 + d), the difference before it by EPS d / 2; the sum's own such error is the
    // mean of its terms'; five roundings of the sum, one of the division.
    let of_exp = |d: f64| 2.0 + 1.5 * d;
    let of_sum: f64 = below.iter().map(|&d| (-d).exp() / sum * of_exp(d)).sum();
    let weight = |d: f64| {
        let value = (-d).exp() / sum;
        Estimate { value, error: value * EPS * (of_exp(d) + of_sum + 3.0) }
    };
    order.into_iter().zip(below).map(|(expert, d)| (expert, weight(d))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(found: f64, value: f64, error: f64) -> Point {
        Point { element: "row 7".to_owned(), found, expected: Estimate { value, error } }
    }

    #[test]
    fn what_is_off_is_named() {
        let right = [point(1.0, 1.0, 0.0), point(1.01, 1.0, 0.02)];
        assert!(verify("bench", &right).is_ok());
        for found in [1.021, 0.979, f64::NAN, f64::INFINITY, 0.0] {
            let all = [&right[..], &[point(found, 1.0, 0.02)]].concat();
            let said = verify("matmul/shape", &all).unwrap_err().to_string();
            for part in ["matmul/shape", "row 7", &found.to_string(), "expected 1 "] {
                assert!(said.contains(part), "{said}: {part}");
            }
        }
        assert!(verify("bench", &[]).is_err(), "nothing was looked at");
    }

    #[test]
    fn samples_have_both_ends_and_no_double() {
        for n in [1, 2, 31, 32, 33, 100, 201_088] {
            let found = sample(n);
            assert_eq!((found[0], found[found.len() - 1]), (0, n - 1));
            assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
            assert_eq!(found.len(), n.min(SAMPLES));
        }
    }
}
