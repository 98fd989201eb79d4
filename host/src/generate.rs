//! Tokens one after another: the prompt in steps, then each token from the last.

use crate::device::{Arrivals, Buffer, Device};
use crate::error::{Error, Result};
use crate::model::{Logits, Model, RecordedStep, Segment};
use crate::ops::sample::Sampler;
use kernels_gpu::gpu::GlobalMut;
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

/// Generates from the sequences of a model, a token of each at a time.
#[derive(Debug)]
pub struct Generator<'a> {
    /// Steps behind others, sampling included. Goes before the buffers of its launches.
    recorded: RecordedStep,
    model: &'a mut Model,
    sampler: Sampler,
    /// The positions, for the sampler.
    counters: Buffer<u32>,
    /// Tokens of each sequence in the cache.
    positions: Vec<usize>,
    /// The last token of each, which is not in the cache.
    last: Vec<u32>,
    /// Where the tokens of a step arrive, in the half that the position behind them chooses.
    arriving: Arrivals<u32>,
    /// Which of the two is that of the step to be read next.
    turn: usize,
    /// Whether that step was started.
    is_ahead: bool,
    looks_ahead: bool,
}

impl<'a> Generator<'a> {
    /// A generator of one sequence, that begins at the start of the model's context.
    ///
    /// # Errors
    /// When the sampling means nothing.
    pub fn new(model: &'a mut Model, sampling: Sampling) -> Result<Generator<'a>> {
        Generator::of_several(model, &[sampling])
    }

    /// A generator of a sequence for each of `samplings`.
    ///
    /// # Errors
    /// When a sampling means nothing, or the device has too little memory.
    pub fn of_several(model: &'a mut Model, samplings: &[Sampling]) -> Result<Generator<'a>> {
        let mut params = Vec::with_capacity(samplings.len());
        for sampling in samplings {
            sampling.check()?;
            let Sampling { temperature, top_k, top_p, min_p, seed } = *sampling;
            params.push(SampleParams { temperature, top_k, top_p, min_p, seed });
        }
        let sampler = Sampler::new(model.device(), &params, model.config().n_vocab)?;
        let n = samplings.len();
        let counters = model.device().alloc(n)?;
        let arriving = model.device().arrivals(n)?;
        let looks_ahead = !model.device().is_emulator();
        Ok(Generator {
            recorded: RecordedStep::default(),
            model,
            sampler,
            counters,
            positions: vec![0; n],
            last: vec![0; n],
            arriving,
            turn: 0,
            is_ahead: false,
            looks_ahead,
        })
    }

    /// Whether a step is started before the tokens of the one before it are read, so that the device
    /// waits for nobody. What the last step did for nothing is no loss: the next ones write over it. So
    /// from the start, but on the emulator, which does nothing by itself.
    pub fn look_ahead(&mut self, looks_ahead: bool) {
        self.looks_ahead = looks_ahead;
    }

    /// Whether the context of the first sequence has no room for another token.
    pub fn is_full(&self) -> bool {
        self.positions.first().is_none_or(|&position| position >= self.model.context())
    }

    /// Reads the prompt of a generator of one sequence, and gives the first token after it.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, or a step fails.
    pub fn start(&mut self, prompt: &[u32]) -> Result<u32> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        self.feed(0, prompt, Logits::Last)?;
        self.sample()?;
        self.last.first().copied().ok_or(Error::EmptyPrompt)
    }

    /// Reads a prompt of any sequence but for its last token, which the next step takes.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the context, there is no such sequence, or a step
    /// fails.
    pub fn read(&mut self, sequence: usize, prompt: &[u32]) -> Result<()> {
        let Some((&last, before)) = prompt.split_last() else { return Err(Error::EmptyPrompt) };
        self.feed(sequence, before, Logits::None)?;
        self.last[sequence] = last; // invariant: `feed` refuses a sequence that is not there
        Ok(())
    }

    /// The token after the last one.
    ///
    /// # Errors
    /// When the context is full, or the step fails.
    #[allow(clippy::should_implement_trait)] // a step can fail, and never ends by itself
    pub fn next(&mut self) -> Result<u32> {
        self.next_of_all()?.first().copied().ok_or(Error::EmptyPrompt)
    }

    /// The token of each sequence after its last one.
    ///
    /// # Errors
    /// When the context is full, or the step fails.
    pub fn next_of_all(&mut self) -> Result<&[u32]> {
        if !self.is_ahead {
            self.step(false)?;
        }
        self.is_ahead = false;
        let turn = self.turn;
        let longest = self.positions.iter().copied().max().unwrap_or(0);
        if self.looks_ahead && longest + 1 < self.model.context() {
            self.turn = 1 - turn;
            self.step(true)?;
            self.is_ahead = true;
        }
        let arrived = self.arriving.wait(turn)?;
        let n = self.last.len();
        for (i, (last, position)) in self.last.iter_mut().zip(&mut self.positions).enumerate() {
            *position += 1;
            *last = arrived[*position % 2 * n + i];
        }
        Ok(&self.last)
    }

    /// Starts the step of the last tokens, or behind it the one of the tokens that come out of it.
    fn step(&mut self, is_ahead: bool) -> Result<()> {
        let segment = |(sequence, (tokens, &position))| Segment {
            sequence,
            position: position + is_ahead as usize,
            tokens,
            logits: Logits::Last,
        };
        let lasts = self.last.chunks(1).zip(&self.positions);
        let segments: Vec<_> = lasts.enumerate().map(segment).collect();
        let (counters, arriving) = (self.counters.view_mut(), self.arriving.view_mut());
        let (sampler, step) = (&self.sampler, self.model.step());
        let sample = |device: &Device, logits: &Buffer<f32>| {
            sampler.sample(device, logits.view(), counters, arriving, Some(step))
        };
        if is_ahead {
            // SAFETY: the choice is the same each time; its buffers and the counters are the generator's, which
            // has them until the recorded steps are gone.
            unsafe { self.model.forward_behind(&segments, sample, &mut self.recorded)? };
        } else {
            self.model.forward(&segments)?;
            let counters: Vec<u32> = self.positions.iter().map(|&p| p as u32 + 1).collect();
            self.counters.write(0, &counters)?;
            sample(self.model.device(), self.model.logits())?;
        }
        self.arriving.expect(self.turn)
    }

    /// Takes the last tokens of every sequence back.
    ///
    /// # Errors
    /// When there are less, or as many as one step may have: the cache of a window keeps no more.
    pub fn rewind(&mut self, n_tokens: usize) -> Result<()> {
        let shortest = self.positions.iter().copied().min().unwrap_or(0);
        let most = shortest.min(self.model.max_step().saturating_sub(1)); // a step ahead may have written one more
        if n_tokens > most {
            return Err(Error::Rewind { n_tokens, most });
        }
        self.is_ahead = false;
        self.positions.iter_mut().for_each(|position| *position -= n_tokens);
        Ok(())
    }

    /// Begins again at the start of the context.
    pub fn restart(&mut self) {
        self.is_ahead = false;
        self.positions.fill(0);
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.model
    }

    fn feed(&mut self, sequence: usize, tokens: &[u32], logits: Logits) -> Result<()> {
        let n_sequences = self.positions.len();
        let Some(position) = self.positions.get_mut(sequence) else {
            return Err(Error::UnknownSequence { sequence, n_sequences });
        };
        self.is_ahead = false;
        let step = self.model.max_step();
        let n_steps = tokens.len().div_ceil(step);
        for (i, tokens) in tokens.chunks(step).enumerate() {
            let logits = if i + 1 == n_steps { logits } else { Logits::None };
            self.model.forward(&[Segment { sequence, position: *position, tokens, logits }])?;
            *position += tokens.len();
        }
        Ok(())
    }

    /// Chooses a token for each sequence.
    fn sample(&mut self) -> Result<()> {
        let positions: Vec<u32> = self.positions.iter().map(|&p| p as u32).collect();
        self.counters.write(0, &positions)?;
        let (device, logits) = (self.model.device(), self.model.logits().view());
        let nowhere = GlobalMut::absent();
        self.sampler.sample(device, logits, self.counters.view_mut(), nowhere, None)?;
        self.sampler.tokens().read_into(0, &mut self.last)
    }
}
