//! Rotary positions by the definitions: Su et al.; linear interpolation; Llama 3's divisors; YaRN
//! as in OpenAI's gpt-oss and in transformers, which bound the corrected range by the head's width.

use ironwarp::Gguf;
use std::f64::consts::TAU;

pub struct Rope {
    /// Columns 2 i and 2 i + 1 turn together, not i and i + half.
    adjacent: bool,
    /// Radians a position.
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    pub fn new(
        gguf: &Gguf,
        head_dim: usize,
        divisors: Option<&[f64]>,
        adjacent: bool,
        truncate: bool,
    ) -> Rope {
        let arch = gguf.require_str("general.architecture").unwrap();
        let number = |key: &str| gguf.f32(&format!("{arch}.rope.{key}")).unwrap().map(f64::from);
        let whole = |key: &str| gguf.u32(&format!("{arch}.rope.{key}")).unwrap().map(f64::from);
        let dim = whole("dimension_count").unwrap_or(head_dim as f64);
        let base = number("freq_base").unwrap_or(10_000.0);
        // Without a type a factor is linear, and 1 changes nothing.
        let kind = gguf.str(&format!("{arch}.rope.scaling.type")).unwrap().unwrap_or("linear");
        let factor = number("scaling.factor").or(number("scale_linear")).unwrap_or(1.0);
        let original = whole("scaling.original_context_length").unwrap_or(0.0);
        let mut magnitude = number("scaling.attn_factor").unwrap_or(1.0);
        let fast = number("scaling.yarn_beta_fast").unwrap_or(32.0);
        let slow = number("scaling.yarn_beta_slow").unwrap_or(1.0);
        let frequencies = (0..dim as usize / 2)
            .map(|i| {
                let plain = base.powf(-2.0 * i as f64 / dim);
                let scaled = match kind {
                    "none" => plain,
                    "linear" => plain / factor,
                    "yarn" => {
                        // The pair that turns so many times over the original context.
                        let pair =
                            |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * base.ln());
                        let (mut low, mut high) = (pair(fast), pair(slow));
                        if truncate {
                            (low, high) = (low.floor(), high.ceil());
                        }
                        (low, high) = (low.max(0.0), high.min(dim - 1.0));
                        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        plain / factor * ramp + plain * (1.0 - ramp)
                    }
                    other => panic!("{other}"),
                };
                scaled / divisors.map_or(1.0, |divisors| divisors[i])
            })
            .collect();
        if kind == "yarn" && factor > 1.0 {
            magnitude *= 0.1 * factor.ln() + 1.0;
        }
        Rope { adjacent, frequencies, magnitude }
    }

    /// Turns the first columns of a head.
    pub fn turn(&self, head: &mut [f64], position: usize) {
        let half = self.frequencies.len();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = if self.adjacent { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (x, y) = (head[a], head[b]);
            head[a] = (x * cos - y * sin) * self.magnitude;
            head[b] = (y * cos + x * sin) * self.magnitude;
        }
    }
}
