//! A model: its configuration, its weights on a device, and one forward pass for every architecture.

pub mod arch;
pub mod batch;
pub mod config;
mod forward;
pub mod kv;
mod room;
pub mod rope;
mod traffic;
pub mod weights;

pub use batch::{Batch, Logits, Segment};
pub use config::Config;
pub use kv::{KvCache, KvType};
pub use room::{TooLittle, check_memory};
pub use traffic::{Part, distinct_experts};

use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::ops::weights::matrix_words;
pub(crate) use forward::RecordedStep;
use forward::Workspace;
use kernels_gpu::quant::Format;
use rope::RopeTable;
use weights::Weights;

/// How a model is set up.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tokens that a sequence may have; none: what the model was made for.
    pub context: Option<usize>,
    /// Sequences that the cache holds.
    pub n_sequences: usize,
    /// Most tokens of one forward pass.
    pub max_step: usize,
    /// Most rows of logits that one forward pass gives.
    pub max_outputs: usize,
    /// Element type of the cache; none: f16, or f32 for a file in F32.
    pub kv_type: Option<KvType>,
    /// YaRN's correction range rounded as llama.cpp does; OpenAI's definition does not.
    pub yarn_truncate: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            context: None,
            n_sequences: 1,
            max_step: 512,
            max_outputs: 1,
            kv_type: None,
            yarn_truncate: false,
        }
    }
}

/// Device memory that a model needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The weights.
    pub weights: u64,
    /// The cache of keys and values.
    pub cache: u64,
    /// Buffers of the forward pass.
    pub workspace: u64,
}

impl MemoryNeed {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.workspace
    }
}

/// A model on a device.
#[derive(Debug)]
pub struct Model {
    device: Device,
    config: Config,
    weights: Weights,
    cache: KvCache,
    /// Cosine and sine by position and pair; absent without rotary positions.
    rope: Option<Buffer<f32>>,
    workspace: Workspace,
    decode: RecordedStep,
}

/// The context that `options` ask for.
fn context(config: &Config, options: &Options) -> Result<usize> {
    match options.context {
        Some(asked) if config.rope.is_none() && asked > config.max_context => {
            // Learned positions end where they end.
            Err(Error::ContextFull { position: asked, context: config.max_context })
        }
        Some(asked) => Ok(asked.max(1)),
        None => Ok(config.max_context),
    }
}

/// Most tokens of a step: no more than all sequences together may have.
fn max_step(options: &Options, context: usize) -> usize {
    options.max_step.min(context.saturating_mul(options.n_sequences))
}

/// The cache's element type.
fn kv_type(gguf: &Gguf, options: &Options) -> KvType {
    let full_precision = || gguf.tensors().iter().all(|tensor| tensor.format() == Format::F32);
    match options.kv_type {
        Some(kv_type) => kv_type,
        None if full_precision() => KvType::F32,
        None => KvType::F16,
    }
}

/// Device memory that the model in `gguf` needs with `options`.
///
/// # Errors
/// When the file is not a model that we can run.
pub fn memory_need(gguf: &Gguf, options: &Options) -> Result<MemoryNeed> {
    let config = Config::read(gguf)?;
    let context = context(&config, options)?;
    let step = max_step(options, context);
    let weights = gguf
        .tensors()
        .iter()
        .map(|tensor| {
            let [n_cols, n_rows, n_experts, _] = tensor.dims4().map(|d| d as usize);
            4 * (matrix_words(tensor.format(), n_rows, n_cols) * n_experts) as u64
        })
        .sum();
    let kv = kv_type(gguf, options);
    Ok(MemoryNeed {
        weights,
        cache: KvCache::bytes(&config, kv, options.n_sequences, context, step),
        workspace: Workspace::bytes(&config, context, step, options.max_outputs),
    })
}

impl Model {
    /// Loads the model in `gguf`. `progress` hears how many bytes of the file are done.
    ///
    /// # Errors
    /// When the file is not a model that we can run, or the device has too little memory for it.
    pub fn load(
        device: &Device,
        gguf: &Gguf,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Model> {
        let config = Config::read(gguf)?;
        let context = context(&config, options)?;
        let step = max_step(options, context);
        let kv = kv_type(gguf, options);
        let cache = KvCache::new(device, &config, kv, options.n_sequences, context, step)?;
        let workspace = Workspace::new(device, &config, context, step, options.max_outputs)?;
        let weights = Weights::load(device, gguf, &config, progress)?;
        let rope = match &config.rope {
            Some(rope) => {
                let freqs = weights.rope_freqs.as_deref();
                let table = RopeTable::new(rope, freqs, options.yarn_truncate).angles(context);
                Some(device.upload(&table)?)
            }
            None => None,
        };
        device.synchronize()?;
        let (device, decode) = (device.clone(), RecordedStep::default());
        Ok(Model { device, config, weights, cache, rope, workspace, decode })
    }

    /// The model's dimensions.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that holds the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.cache.context
    }

    /// Most tokens of one forward pass.
    pub fn max_step(&self) -> usize {
        self.workspace.max_step
    }

    /// Most rows of logits that one forward pass gives.
    pub fn max_outputs(&self) -> usize {
        self.workspace.max_outputs
    }

    /// Runs the model over `segments`, of which any may be empty. The logits of the rows that asked for them stay on the
    /// device, in order: [n_outputs, n_vocab].
    ///
    /// # Errors
    /// When the batch does not fit the model, its cache or its step, or a launch fails.
    pub fn forward(&mut self, segments: &[Segment<'_>]) -> Result<usize> {
        let batch = self.batch(segments)?;
        if batch.n_tokens() > 0 {
            self.run(&batch)?;
        }
        Ok(batch.n_outputs())
    }

    /// Runs the step behind one in which each of these sequences had one token, whose segments' own tokens count for
    /// nothing: the choice of tokens left its batch in `step`. `sample` starts what chooses tokens from the logits, and
    /// leaves the next batch there. Nothing is read or written by the host.
    ///
    /// # Errors
    /// As `forward`, and when a segment has not one token.
    ///
    /// # Safety
    /// What `sample` launches must be the same each time that `recorded` is lent, and the buffers of its
    /// launches must live as long as it.
    pub(crate) unsafe fn forward_behind(
        &mut self,
        segments: &[Segment<'_>],
        sample: impl Fn(&Device, &Buffer<f32>) -> Result<()>,
        recorded: &mut RecordedStep,
    ) -> Result<()> {
        let batch = self.batch(segments)?;
        if let Some(segment) = segments.iter().find(|segment| segment.tokens.len() != 1) {
            return Err(Error::BatchTooLarge { tokens: segment.tokens.len(), limit: 1 });
        }
        let work = |model: &Model| {
            model.launch(&batch, None)?;
            sample(&model.device, model.logits())
        };
        // SAFETY: the model owns every other buffer of these launches, and never replaces one.
        unsafe { self.run_recorded(&batch, work, recorded) }
    }

    /// Runs the model as `forward` does, and gives the residual stream before the first layer and
    /// after each: [n_layers + 1][n_tokens, n_embd]. To find where a model goes wrong; slow.
    ///
    /// # Errors
    /// As `forward`.
    pub fn hidden_states(&mut self, segments: &[Segment<'_>]) -> Result<Vec<Vec<f32>>> {
        let batch = self.batch(segments)?;
        if batch.n_tokens() == 0 {
            return Ok(vec![Vec::new(); self.config.n_layers + 1]);
        }
        self.run_watched(&batch)
    }

    /// A batch of `segments`, if it fits.
    fn batch(&self, segments: &[Segment<'_>]) -> Result<Batch> {
        let batch = Batch::new(&self.config, &self.cache, segments)?;
        for (tokens, limit) in [
            (batch.n_tokens(), self.workspace.max_step),
            (batch.n_outputs(), self.workspace.max_outputs),
        ] {
            if tokens > limit {
                return Err(Error::BatchTooLarge { tokens, limit });
            }
        }
        Ok(batch)
    }

    /// The logits of the last forward pass: [n_outputs, n_vocab].
    ///
    /// # Errors
    /// When the copy fails.
    pub fn read_logits(&self, n_outputs: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; n_outputs * self.config.n_vocab];
        self.workspace.logits.read_into(0, &mut logits)?;
        Ok(logits)
    }

    /// The logits of the last forward pass, on the device.
    pub fn logits(&self) -> &Buffer<f32> {
        &self.workspace.logits
    }
}
