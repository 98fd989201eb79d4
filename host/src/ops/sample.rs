//! The next token from logits, chosen on the device.

use crate::device::{Buffer, Device};
use crate::error::Result;
use kernels_gpu::gpu::{Global, GlobalMut, U32x2, U32x4};
use kernels_gpu::sample::{
    Argmax, N_BINS, N_MASSES, RowBest, Sample, SampleBins, SampleParams, n_chunks,
};

/// The batch of a step of one token a sequence, in whose place that of the step behind it is left; [n_rows] each, or
/// more.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The tokens.
    pub tokens: GlobalMut<u32>,
    /// Their positions.
    pub positions: GlobalMut<u32>,
    /// Attention's tiles.
    pub tiles: GlobalMut<U32x4>,
}

/// Buffers of sampling, for a fixed number of rows.
#[derive(Debug)]
pub struct Sampler {
    n_rows: usize,
    vocab: usize,
    greedy: bool,
    /// [n_rows, n_chunks]
    best: Buffer<U32x2>,
    /// [n_rows, N_BINS]
    counts: Buffer<u32>,
    /// [n_rows, N_MASSES]
    masses: Buffer<u64>,
    /// [n_rows, 2]
    params: Buffer<U32x4>,
    /// [n_rows]
    tokens: Buffer<u32>,
}

impl Sampler {
    /// Room for a row for each of `params`, over `vocab` tokens.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(device: &Device, params: &[SampleParams], vocab: usize) -> Result<Sampler> {
        let n_rows = params.len();
        let words: Vec<U32x4> = params.iter().flat_map(|p| p.words()).collect();
        Ok(Sampler {
            n_rows,
            vocab,
            greedy: params.iter().all(|p| p.temperature == 0.0),
            best: device.alloc(n_rows * n_chunks(vocab as u32) as usize)?,
            counts: device.alloc(n_rows * N_BINS as usize)?,
            masses: device.alloc(n_rows * N_MASSES as usize)?,
            params: device.upload(&words)?,
            tokens: device.alloc(n_rows)?,
        })
    }

    /// The tokens that were chosen last where they went to no step.
    pub fn tokens(&self) -> &Buffer<u32> {
        &self.tokens
    }

    /// Chooses a token for each row of `logits`: [n_rows, vocab]. `counters` holds a number that is
    /// another one for each token of a sequence: its position. The tokens go to `arriving` too, if that is not
    /// absent: [2, n_rows], to the half that the row's counter, modulo 2, tells. Where there is a `step`, it becomes the
    /// next one, and the counters go on by one.
    ///
    /// # Errors
    /// When a launch fails.
    pub fn sample(
        &self,
        device: &Device,
        logits: Global<f32>,
        counters: GlobalMut<u32>,
        arriving: GlobalMut<u32>,
        step: Option<Step>,
    ) -> Result<()> {
        let vocab = self.vocab as u32;
        let n_chunks = n_chunks(vocab);
        let grid = (n_chunks as usize, self.n_rows);
        let (best, params) = (self.best.view(), self.params.view());
        let (counts, masses) = if self.greedy {
            (GlobalMut::absent(), GlobalMut::absent())
        } else {
            (self.counts.view_mut(), self.masses.view_mut())
        };
        let none = Step {
            tokens: self.tokens.view_mut(),
            positions: GlobalMut::absent(),
            tiles: GlobalMut::absent(),
        };
        let Step { tokens, positions, tiles } = step.unwrap_or(none);
        device
            .launch(RowBest { logits, best: self.best.view_mut(), counts, masses, vocab }, grid)?;
        if self.greedy {
            let kernel = Argmax { best, counters, tokens, arriving, positions, tiles, vocab };
            return device.launch(kernel, self.n_rows);
        }
        device.launch(SampleBins { logits, best, params, counts, masses, vocab }, grid)?;
        let (counts, masses) = (self.counts.view(), self.masses.view());
        let kernel = Sample {
            logits,
            best,
            counts,
            masses,
            params,
            counters,
            tokens,
            arriving,
            positions,
            tiles,
            vocab,
        };
        device.launch(kernel, self.n_rows)
    }
}
