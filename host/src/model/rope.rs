//! Cosines and sines of rotary positions, in f64.

use super::config::{Rope, Scaling};

/// Frequencies of the pairs of a head, and what cosines and sines are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians a position; [rot_dim / 2]
    pub frequencies: Vec<f64>,
    /// YaRN's concentration and the file's own factor.
    pub magnitude: f64,
}

impl RopeTable {
    /// The frequencies of `rope`. `divisors` is Llama 3's `rope_freqs`. With `truncate` YaRN's
    /// correction range is rounded to whole pairs, as llama.cpp does; gpt-oss is defined without.
    pub fn new(rope: &Rope, divisors: Option<&[f32]>, truncate: bool) -> RopeTable {
        let n_pairs = rope.rot_dim / 2;
        let plain = |i: usize| rope.base.powf(-2.0 * i as f64 / rope.rot_dim as f64);
        let frequency = |i: usize| match rope.scaling {
            Scaling::None => plain(i),
            Scaling::Linear { factor } => plain(i) / factor,
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow } => {
                let range = yarn_range(rope, original_context, (beta_fast, beta_slow));
                let keep = 1.0 - yarn_ramp(range, truncate, i);
                plain(i) / factor * (1.0 - keep) + plain(i) * keep
            }
        };
        let divisor = |i: usize| divisors.and_then(|d| d.get(i)).map_or(1.0, |&d| d as f64);
        let concentration = match rope.scaling {
            Scaling::Yarn { factor, .. } if factor > 1.0 => 0.1 * factor.ln() + 1.0,
            _ => 1.0,
        };
        RopeTable {
            frequencies: (0..n_pairs).map(|i| frequency(i) / divisor(i)).collect(),
            magnitude: concentration * rope.attention_factor,
        }
    }

    /// (cosine, sine) of each pair at positions 0..n_positions: [n_positions, rot_dim / 2, 2].
    pub fn angles(&self, n_positions: usize) -> Vec<f32> {
        let mut table = Vec::with_capacity(n_positions * self.frequencies.len() * 2);
        for position in 0..n_positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                table.push((cos * self.magnitude) as f32);
                table.push((sin * self.magnitude) as f32);
            }
        }
        table
    }
}

/// How far pair `i` is stretched: 0 not at all, 1 by the whole factor. (OpenAI's gpt-oss reference,
/// "YaRN: Efficient Context Window Extension", equation 17.)
fn yarn_ramp((low, high): (f64, f64), truncate: bool, i: usize) -> f64 {
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0)
}

/// The pairs that turn `betas` times (fast, slow) over the original context.
fn yarn_range(rope: &Rope, original_context: f64, betas: (f64, f64)) -> (f64, f64) {
    let pair = |turns: f64| {
        let half = rope.rot_dim as f64 / 2.0;
        half * (original_context / (turns * std::f64::consts::TAU)).ln() / rope.base.ln()
    };
    // A range may end beyond the last pair: then no pair is stretched by the whole factor.
    (pair(betas.0).max(0.0), pair(betas.1).min(rope.rot_dim as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpt_oss() -> Rope {
        let (factor, original_context) = (32.0, 4096.0);
        let scaling = Scaling::Yarn { factor, original_context, beta_fast: 32.0, beta_slow: 1.0 };
        Rope { rot_dim: 64, base: 150_000.0, scaling, attention_factor: 1.0 }
    }

    /// The figures that OpenAI's definition gives for gpt-oss.
    #[test]
    fn yarn_of_gpt_oss() {
        let (low, high) = yarn_range(&gpt_oss(), 4096.0, (32.0, 1.0));
        assert!((low - 8.0928).abs() < 1e-4, "{low}");
        assert!((high - 17.3980).abs() < 1e-4, "{high}");
        let table = RopeTable::new(&gpt_oss(), None, false);
        assert!((table.magnitude - 1.346_573_6).abs() < 1e-7, "{}", table.magnitude);
        let plain = |i: i32| 150_000f64.powf(-f64::from(i) / 32.0);
        assert!((table.frequencies[8] / plain(8) - 1.0).abs() < 1e-12, "below the range");
        assert!((table.frequencies[18] / plain(18) - 1.0 / 32.0).abs() < 1e-12, "above it");
    }

    #[test]
    fn truncation_moves_the_range() {
        let exact = RopeTable::new(&gpt_oss(), None, false);
        let rounded = RopeTable::new(&gpt_oss(), None, true);
        assert_eq!(exact.frequencies[8], rounded.frequencies[8]);
        assert!((exact.frequencies[12] / rounded.frequencies[12] - 1.0).abs() > 1e-3);
    }

    #[test]
    fn llama3_divides_frequencies() {
        let (scaling, attention_factor) = (Scaling::None, 1.0);
        let rope = Rope { rot_dim: 4, base: 100.0, scaling, attention_factor };
        let table = RopeTable::new(&rope, Some(&[1.0, 8.0]), false);
        assert_eq!(table.frequencies, [1.0, 0.1 / 8.0]);
        let angles = table.angles(2);
        assert_eq!(angles[..4], [1.0, 0.0, 1.0, 0.0]);
        assert!((angles[5] as f64 - 1f64.sin()).abs() < 1e-7);
    }
}
