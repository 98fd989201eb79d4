//! What one forward pass takes: tokens of one or more sequences. Prefill, decode and both mixed are
//! the same call.

use super::config::Config;
use super::kv::KvCache;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use kernels_gpu::gpu::U32x4;

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Row of the page tables.
    pub sequence: usize,
    /// Position of the first token.
    pub position: usize,
    /// The tokens.
    pub tokens: &'a [u32],
    /// Which of them need logits.
    pub logits: Logits,
}

/// Which tokens of a segment need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last one.
    Last,
    /// Every one.
    All,
}

/// A batch on the host: one entry a token.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    pub(crate) sequences: Vec<u32>,
    /// Rows that need logits.
    pub(super) outputs: Vec<u32>,
    /// (first row, rows, sequence, keys that were there before the step): what one attention block takes.
    pub(crate) tiles: Vec<U32x4>,
    /// Largest position + 1.
    pub(crate) context: usize,
    /// Whether no sequence has more than one token.
    pub(crate) one_each: bool,
}

impl Batch {
    /// A batch of `segments`.
    ///
    /// # Errors
    /// When a token is not in the vocabulary, a sequence is not in the cache, or a position is past
    /// its context.
    pub fn new(config: &Config, cache: &KvCache, segments: &[Segment<'_>]) -> Result<Batch> {
        let mut batch = Batch::default();
        let tile_tokens = tile_tokens(config);
        for segment in segments {
            if segment.tokens.is_empty() {
                continue;
            }
            cache.check_position(segment.position + segment.tokens.len() - 1)?;
            if segment.sequence >= cache.n_sequences {
                let (sequence, n_sequences) = (segment.sequence, cache.n_sequences);
                return Err(Error::UnknownSequence { sequence, n_sequences });
            }
            let first = batch.tokens.len();
            for (i, &token) in segment.tokens.iter().enumerate() {
                if token as usize >= config.n_vocab {
                    return Err(Error::TokenId { id: token, n_tokens: config.n_vocab });
                }
                batch.tokens.push(token);
                batch.positions.push((segment.position + i) as u32);
                batch.sequences.push(segment.sequence as u32);
            }
            let n = segment.tokens.len();
            // A step may have more than one segment of a sequence.
            let same = segments.iter().filter(|other| other.sequence == segment.sequence);
            let first_new = same.map(|other| other.position).min().unwrap_or(0) as u32;
            for start in (0..n).step_by(tile_tokens) {
                let count = tile_tokens.min(n - start) as u32;
                let row = (first + start) as u32;
                batch.tiles.push(U32x4([row, count, segment.sequence as u32, first_new]));
            }
            match segment.logits {
                Logits::None => {}
                Logits::Last => batch.outputs.push((first + n - 1) as u32),
                Logits::All => batch.outputs.extend((first..first + n).map(|row| row as u32)),
            }
            batch.context = batch.context.max(segment.position + n);
        }
        let mut sequences = batch.sequences.clone();
        sequences.sort_unstable();
        batch.one_each = sequences.windows(2).all(|pair| pair[0] != pair[1]);
        Ok(batch)
    }

    /// Tokens.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Rows of logits that come out.
    pub fn n_outputs(&self) -> usize {
        self.outputs.len()
    }
}

/// Tokens of one attention tile: as many as fill its query rows with the heads of a group.
pub(super) fn tile_tokens(config: &Config) -> usize {
    let group = config.n_heads / config.n_kv_heads;
    kernels_gpu::attention::tile_tokens(group as u32, config.head_dim as u32) as usize
}

/// A batch on the device.
#[derive(Debug)]
pub(crate) struct DeviceBatch {
    pub tokens: Buffer<u32>,
    pub positions: Buffer<u32>,
    pub sequences: Buffer<u32>,
    pub outputs: Buffer<u32>,
    pub tiles: Buffer<U32x4>,
}

impl DeviceBatch {
    pub fn new(device: &Device, capacity: usize) -> Result<DeviceBatch> {
        Ok(DeviceBatch {
            tokens: device.alloc(capacity)?,
            positions: device.alloc(capacity)?,
            sequences: device.alloc(capacity)?,
            outputs: device.alloc(capacity)?,
            tiles: device.alloc(capacity)?,
        })
    }

    pub fn write(&mut self, batch: &Batch) -> Result<()> {
        self.tokens.write(0, &batch.tokens)?;
        self.positions.write(0, &batch.positions)?;
        self.sequences.write(0, &batch.sequences)?;
        self.outputs.write(0, &batch.outputs)?;
        self.tiles.write(0, &batch.tiles)
    }
}
