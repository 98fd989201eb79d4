//! How `encode` finds scales. Plain `core` arithmetic, so that it compiles wherever the blocks do.

/// The nearest integer, ties away from zero, as C's `roundf`; |v| below 2^23.
#[inline]
pub(super) fn round(v: f32) -> i32 {
    let whole = v as i32;
    let rest = v - whole as f32;
    whole + (rest >= 0.5) as i32 - (rest <= -0.5) as i32
}

/// The code of `v` on a grid of `step`: the nearest of `low..=high`; 0 where the step is 0.
#[inline]
pub(super) fn code(v: f32, step: f32, low: i32, high: i32) -> i32 {
    if step == 0.0 { 0 } else { round((v / step).clamp(low as f32, high as f32)) }
}

/// `1 / step`, or 0 where the step is 0 or so small that the inverse is infinite: as an f16 it is 0.
#[inline]
pub(super) fn inverse(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The value of largest magnitude, with its sign; the first of equals.
#[inline]
pub(super) fn peak(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |peak: f32, &v| if v.abs() > peak.abs() { v } else { peak })
}

/// Smallest and largest value.
#[inline]
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)))
}

/// The step for which `step * code`, codes in `low..=high` with `low < 0`, is nearest to `x` in the
/// sense of least squares. The peak is tried at codes around `low`; each trial fixes the codes, and
/// they the best step.
#[inline]
pub(super) fn symmetric(x: &[f32], low: i32, high: i32) -> f32 {
    let peak = peak(x);
    let (mut best, mut best_gain) = (0.0, 0.0);
    for trial in -9..=9 {
        let step = peak / (low as f32 + 0.1 * trial as f32);
        let (mut xq, mut qq) = (0.0, 0.0);
        for &v in x {
            let q = code(v, step, low, high) as f32;
            xq += v * q;
            qq += q * q;
        }
        // The squared error is sum x^2 - (sum xq)^2 / sum q^2.
        if qq > 0.0 && xq * xq / qq > best_gain {
            (best, best_gain) = (xq / qq, xq * xq / qq);
        }
    }
    best
}

/// The pair for which `step * code - min`, codes in `0..=high`, is nearest to `x` in the sense of
/// least squares, with neither below 0.
#[inline]
pub(super) fn affine(x: &[f32], high: i32) -> (f32, f32) {
    let (lowest, highest) = range(x);
    let base = lowest.min(0.0);
    let span = highest - base;
    let (mut best, mut best_error) = ((0.0, -base), f32::INFINITY);
    if span <= 0.0 {
        return best;
    }
    let n = x.len() as f32;
    for trial in -9..=9 {
        let step = span / (high as f32 + 0.1 * trial as f32);
        let (mut sum_q, mut sum_qq, mut sum_x, mut sum_xq) = (0.0, 0.0, 0.0, 0.0);
        for &v in x {
            let q = code(v - base, step, 0, high) as f32;
            sum_q += q;
            sum_qq += q * q;
            sum_x += v;
            sum_xq += v * q;
        }
        let spread = n * sum_qq - sum_q * sum_q;
        let mut fitted = (0.0, 0.0);
        if spread > 0.0 {
            let step = (n * sum_xq - sum_q * sum_x) / spread;
            fitted = (step, (step * sum_q - sum_x) / n);
        }
        if fitted.1 <= 0.0 {
            fitted = (sum_xq / sum_qq, 0.0);
        }
        let error = x.iter().fold(0.0, |sum, &v| {
            let q = code(v - base, step, 0, high) as f32;
            let off = fitted.0 * q - fitted.1 - v;
            sum + off * off
        });
        if fitted.0 >= 0.0 && error < best_error {
            (best, best_error) = (fitted, error);
        }
    }
    best
}

/// The values `x` as codes in `low..=high` of one f16 step, which is returned with them: how a
/// block stores the scales of its parts. The peak gets the code of largest magnitude.
#[inline]
pub(super) fn shared_step<const N: usize>(x: [f32; N], low: i32, high: i32) -> (f32, [i32; N]) {
    let widest = if -low > high { low } else { high };
    let step = crate::gpu::f16_to_f32(crate::gpu::f32_to_f16(peak(&x) / widest as f32));
    (step, x.map(|v| code(v, step, low, high)))
}
