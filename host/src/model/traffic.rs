//! What a step reads from device memory, as the shapes tell it.

use super::Model;
use super::config::Experts;
use crate::tensor::Matrix;

/// A part of the model in device memory, and what of it a step reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The tensor's name, or the layer's cache.
    pub name: String,
    /// First byte.
    pub address: u64,
    /// Bytes there.
    pub bytes: u64,
    /// Bytes that the step reads.
    pub read_bytes: u64,
}

/// Distinct experts that `n_tokens` tokens use of a layer, if each of them uses any with the same
/// probability: the expectation `count * (1 - (1 - used / count)^n_tokens)`.
pub fn distinct_experts(experts: Experts, n_tokens: usize) -> f64 {
    let (count, used) = (experts.count as f64, experts.used as f64);
    // As one formula it would be a rounding away from `used`.
    if n_tokens == 1 { used } else { count * (1.0 - (1.0 - used / count).powi(n_tokens as i32)) }
}

impl Model {
    /// Bytes of weight matrices that decoding one token reads.
    pub fn decode_bytes(&self) -> u64 {
        self.step_bytes(1)
    }

    /// Bytes of weight matrices that a step of `n_tokens` tokens reads, each once: of experts, as many
    /// as `distinct_experts` expects.
    pub fn step_bytes(&self, n_tokens: usize) -> u64 {
        self.weights.matrices().map(|matrix| self.matrix_bytes(matrix, n_tokens)).sum()
    }

    fn matrix_bytes(&self, matrix: &Matrix, n_tokens: usize) -> u64 {
        let whole = 4 * matrix.words.len() as u64;
        match self.config.experts {
            Some(experts) if matrix.n_experts > 1 => {
                let share = distinct_experts(experts, n_tokens) / matrix.n_experts as f64;
                (whole as f64 * share).round() as u64
            }
            _ => whole,
        }
    }

    /// Bytes of keys and values that the token after `position` others reads, its own included.
    pub fn cache_bytes(&self, position: usize) -> u64 {
        (0..self.config.n_layers).map(|layer| 2 * self.half_cache_bytes(layer, position)).sum()
    }

    /// Of a layer's keys, or its values.
    fn half_cache_bytes(&self, layer: usize, position: usize) -> u64 {
        let seen = (position + 1).min(self.config.window_of(layer).unwrap_or(usize::MAX));
        (seen * self.config.kv_cols() * self.cache.kv_type.bytes()) as u64
    }

    /// What a decode step reads, one token for each of `n_sequences` sequences at `position`: weight
    /// matrices, keys, and values.
    pub fn parts(&self, n_sequences: usize, position: usize) -> Vec<Part> {
        let matrix = |matrix: &Matrix| Part {
            name: matrix.name.clone(),
            address: matrix.words.view().address(),
            bytes: 4 * matrix.words.len() as u64,
            read_bytes: self.matrix_bytes(matrix, n_sequences),
        };
        let mut parts: Vec<Part> = self.weights.matrices().map(matrix).collect();
        for (layer, cache) in self.cache.layers.iter().enumerate() {
            let read_bytes = n_sequences as u64 * self.half_cache_bytes(layer, position);
            for (what, buffer) in [("keys", &cache.keys), ("values", &cache.values)] {
                let (address, bytes) = (buffer.view().address(), buffer.len() as u64);
                let name = format!("blk.{layer}.{what}");
                parts.push(Part { name, address, bytes, read_bytes });
            }
        }
        parts
    }
}
