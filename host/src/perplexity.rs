//! Perplexity of a text: chunks of it one by one, each from an empty context; the second half of a
//! chunk is scored, where every token has at least half a chunk before it.

use crate::error::{Error, Result};
use crate::model::{Logits, Model, Segment};

/// Negative log likelihoods of tokens, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    n: u64,
    sum: f64,
    sum_of_squares: f64,
}

impl Score {
    /// Counts the tokens with these negative log likelihoods.
    pub fn add(&mut self, nll: &[f64]) {
        self.n += nll.len() as u64;
        self.sum += nll.iter().sum::<f64>();
        self.sum_of_squares += nll.iter().map(|nll| nll * nll).sum::<f64>();
    }

    /// Tokens counted.
    pub fn n_tokens(&self) -> u64 {
        self.n
    }

    /// Their negative log likelihoods, added up; in nats.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// `exp` of the mean; not a number without a token.
    pub fn perplexity(&self) -> f64 {
        (self.sum / self.n as f64).exp()
    }

    /// Standard error of the perplexity: that of the mean, carried through `exp` to first order.
    /// Not a number below two tokens.
    pub fn standard_error(&self) -> f64 {
        let mean = self.sum / self.n as f64;
        let variance = (self.sum_of_squares / self.n as f64 - mean * mean).max(0.0);
        (variance / (self.n as f64 - 1.0)).sqrt() * self.perplexity()
    }
}

/// Tokens of a chunk of `chunk` that are scored: those after the first of its second half.
pub const fn n_scored(chunk: usize) -> usize {
    (chunk - chunk / 2).saturating_sub(1)
}

/// Negative log likelihoods of the second half of `chunk`, which starts at position 0. The logits
/// come as many rows at a time as the model gives.
///
/// # Errors
/// When the chunk is too short to have a scored token, does not fit the context, or a step fails.
pub fn score_chunk(model: &mut Model, chunk: &[u32]) -> Result<Vec<f64>> {
    if n_scored(chunk.len()) == 0 {
        return Err(Error::TextTooShort { tokens: chunk.len(), needed: 3 });
    }
    let (max_step, n_vocab) = (model.max_step(), model.config().n_vocab);
    // The last token is only ever a target.
    let (read, half) = (chunk.len() - 1, chunk.len() / 2);
    if let Some(&id) = chunk.last().filter(|&&id| id as usize >= n_vocab) {
        return Err(Error::TokenId { id, n_tokens: n_vocab });
    }
    for position in (0..half).step_by(max_step) {
        let tokens = &chunk[position..half.min(position + max_step)];
        model.forward(&[Segment { sequence: 0, position, tokens, logits: Logits::None }])?;
    }
    let mut nll = Vec::with_capacity(read - half);
    let step = max_step.min(model.max_outputs()).max(1);
    for position in (half..read).step_by(step) {
        let tokens = &chunk[position..read.min(position + step)];
        let segment = Segment { sequence: 0, position, tokens, logits: Logits::All };
        let n_outputs = model.forward(&[segment])?;
        let logits = model.read_logits(n_outputs)?;
        let targets = &chunk[position + 1..];
        nll.extend(logits.chunks_exact(n_vocab).zip(targets).map(|(row, &t)| surprise(row, t)));
    }
    Ok(nll)
}

/// `-ln softmax(logits)[token]`
fn surprise(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |most, &l| most.max(l)) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - largest).exp()).sum();
    sum.ln() + largest - logits[token as usize] as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_chunk_is_scored_but_for_its_first_token() {
        assert_eq!([512, 7, 4, 3, 2, 1, 0].map(n_scored), [255, 3, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn surprise_is_the_negative_log_probability() {
        // Softmax of ln 1, ln 2, ln 5 is 1/8, 2/8, 5/8; and a constant changes nothing.
        for offset in [0.0, 1e4f32, -1e4] {
            let logits = [1f32, 2.0, 5.0].map(|p| p.ln() + offset);
            // Half a unit in the last place of the largest logit, twice.
            let allowed = 2.0 * f64::from(offset.abs().max(2.0)) * f64::from(f32::EPSILON);
            for (token, p) in [0.125f64, 0.25, 0.625].into_iter().enumerate() {
                let error = surprise(&logits, token as u32) + p.ln();
                assert!(error.abs() <= allowed, "{offset} {token}: {error:e}");
            }
        }
    }

    #[test]
    fn the_error_is_that_of_the_mean() {
        let mut score = Score::default();
        score.add(&[1.0, 3.0]);
        score.add(&[2.0, 2.0]);
        assert_eq!((score.n_tokens(), score.sum()), (4, 8.0));
        assert!((score.perplexity() - 2f64.exp()).abs() < 1e-12);
        // Variance 1/2, over n - 1 = 3.
        assert!((score.standard_error() - (1.0f64 / 6.0).sqrt() * 2f64.exp()).abs() < 1e-12);
    }
}
