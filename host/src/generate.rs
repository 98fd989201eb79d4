//! Tokens one after another: the prompt in steps, then each token from the last.

use crate::device::Buffer;
use crate::error::{Error, Result};
use crate::model::{Logits, Model, Segment};
use crate::ops::sample::Sampler;
use kernels_gpu::sample::SampleParams;

/// How a token is chosen from logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the largest logit.
    pub temperature: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Share of the probability that is kept; 1 keeps all.
    pub top_p: f32,
    /// Probability kept, relative to the largest; 0 keeps all.
    pub min_p: f32,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// When a value is not in its range.
    pub fn check(&self) -> Result<()> {
        let share = |name, value: f32| {
            if (0.0..=1.0).contains(&value) {
                Ok(())
            } else {
                Err(Error::Sampling { name, value, range: "from 0 to 1" })
            }
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let value = self.temperature;
            return Err(Error::Sampling { name: "temperature", value, range: "0 or more" });
        }
        share("top-p", self.top_p)?;
        share("min-p", self.min_p)
    }
}

/// Generates from one sequence of a model.
#[derive(Debug)]
pub struct Generator<'a> {
    model: &'a mut Model,
    sampler: Sampler,
    /// The position, for the sampler.
    counter: Buffer<u32>,
    /// Tokens in the cache.
    position: usize,
    last: u32,
}

impl<'a> Generator<'a> {
    /// A generator that begins at the start of the model's context.
    ///
    /// # Errors
    /// When the sampling means nothing.
    pub fn new(model: &'a mut Model, sampling: Sampling) -> Result<Generator<'a>> {
        sampling.check()?;
        let Sampling { temperature, top_k, top_p, min_p, seed } = sampling;
        let params = SampleParams { temperature, top_k, top_p, min_p, seed };
        let sampler = Sampler::new(model.device(), &[params], model.config().n_vocab)?;
        let counter = model.device().alloc(1)?;
        Ok(Generator { model, sampler, counter, position: 0, last: 0 })
    }

    /// Whether the context has no room for another token.
    pub fn is_full(&self) -> bool {
        self.position >= self.model.context()
    }

    /// Reads the prompt, and gives the first token after it.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, or a step fails.
    pub fn start(&mut self, prompt: &[u32]) -> Result<u32> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let step = self.model.max_step();
        let n_steps = prompt.len().div_ceil(step);
        for (i, tokens) in prompt.chunks(step).enumerate() {
            let logits = if i + 1 == n_steps { Logits::Last } else { Logits::None };
            self.step(tokens, logits)?;
        }
        self.sample()
    }

    /// The token after the last one.
    ///
    /// # Errors
    /// When the context is full, or the step fails.
    #[allow(clippy::should_implement_trait)] // a step can fail, and never ends by itself
    pub fn next(&mut self) -> Result<u32> {
        self.step(&[self.last], Logits::Last)?;
        self.sample()
    }

    fn step(&mut self, tokens: &[u32], logits: Logits) -> Result<()> {
        let segment = Segment { sequence: 0, position: self.position, tokens, logits };
        self.model.forward(&[segment])?;
        self.position += tokens.len();
        Ok(())
    }

    fn sample(&mut self) -> Result<u32> {
        self.counter.write(0, &[self.position as u32])?;
        let (device, logits) = (self.model.device(), self.model.logits().view());
        let tokens = self.sampler.sample(device, logits, self.counter.view())?;
        let mut token = [0];
        tokens.read_into(0, &mut token)?;
        self.last = token[0];
        Ok(self.last)
    }
}
