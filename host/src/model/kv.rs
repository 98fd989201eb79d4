//! The paged cache of keys and values. Full layers share one page table, sliding-window layers
//! another, a ring that keeps the window and what one step adds.

use super::config::Config;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use kernels_gpu::kv_cache::PAGE;

/// Element type of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Half precision: the default.
    F16,
    /// bfloat16, for models whose keys or values leave the range of f16.
    Bf16,
    /// Full precision: the default for files in F32.
    F32,
}

impl KvType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F16 | KvType::Bf16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// Layers that share a page table.
#[derive(Debug)]
pub struct PageGroup {
    /// Pages of a sequence; position p is in page `(p / PAGE) % pages_per_sequence`.
    pub pages_per_sequence: usize,
    /// [n_sequences, pages_per_sequence]
    pub table: Buffer<u32>,
}

/// Keys and values of one layer: pages of bytes.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys, by page.
    pub keys: Buffer<u8>,
    /// Values, by page.
    pub values: Buffer<u8>,
}

/// The cache of all layers, for a fixed number of sequences.
#[derive(Debug)]
pub struct KvCache {
    /// Element type.
    pub kv_type: KvType,
    /// Tokens a sequence may have.
    pub context: usize,
    /// Sequences.
    pub n_sequences: usize,
    /// Layers that see everything.
    pub full: PageGroup,
    /// Layers that see a window.
    pub window: Option<PageGroup>,
    /// By layer.
    pub layers: Vec<LayerCache>,
}

/// Pages that a sequence needs in (full, window) layers.
fn pages(config: &Config, context: usize, step: usize) -> (usize, usize) {
    let page = PAGE as usize;
    let full = context.div_ceil(page);
    // The ring must hold the window before a step's first token and the whole step.
    let window = config.window.map_or(full, |w| ((w + step).div_ceil(page) + 1).min(full));
    (full, window)
}

/// Bytes of one page of keys, or of values.
fn page_bytes(config: &Config, kv_type: KvType) -> usize {
    config.kv_cols() * PAGE as usize * kv_type.bytes()
}

impl KvCache {
    /// Bytes that `new` takes.
    pub fn bytes(
        config: &Config,
        kv_type: KvType,
        n_sequences: usize,
        context: usize,
        step: usize,
    ) -> u64 {
        let (full, window) = pages(config, context, step);
        let pages: usize = (0..config.n_layers)
            .map(|layer| if config.window_of(layer).is_some() { window } else { full })
            .sum();
        2 * (pages * n_sequences * page_bytes(config, kv_type)) as u64
    }

    /// A cache for `n_sequences` of up to `context` tokens, of which up to `step` come at a time.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(
        device: &Device,
        config: &Config,
        kv_type: KvType,
        n_sequences: usize,
        context: usize,
        step: usize,
    ) -> Result<KvCache> {
        let (full, window) = pages(config, context, step);
        let group = |pages_per_sequence: usize| -> Result<PageGroup> {
            // Every sequence owns its pages from the start; nothing in the kernels relies on it.
            let table: Vec<u32> = (0..(n_sequences * pages_per_sequence) as u32).collect();
            Ok(PageGroup { pages_per_sequence, table: device.upload(&table)? })
        };
        let layers = (0..config.n_layers)
            .map(|layer| {
                let pages = if config.window_of(layer).is_some() { window } else { full };
                let bytes = pages * n_sequences * page_bytes(config, kv_type);
                Ok(LayerCache { keys: device.alloc(bytes)?, values: device.alloc(bytes)? })
            })
            .collect::<Result<_>>()?;
        Ok(KvCache {
            kv_type,
            context,
            n_sequences,
            full: group(full)?,
            window: if config.window.is_some() { Some(group(window)?) } else { None },
            layers,
        })
    }

    /// The page table of layer `layer`.
    pub fn group(&self, config: &Config, layer: usize) -> &PageGroup {
        match (&self.window, config.window_of(layer)) {
            (Some(group), Some(_)) => group,
            _ => &self.full,
        }
    }

    /// Refuses a position past the end.
    pub(super) fn check_position(&self, position: usize) -> Result<()> {
        if position < self.context {
            return Ok(());
        }
        Err(Error::ContextFull { position, context: self.context })
    }
}
