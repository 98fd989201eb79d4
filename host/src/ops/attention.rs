//! Rotary positions, the cache, and attention over it.

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::RopeLayout;
use crate::model::kv::KvCache;
use crate::model::{Config, KvType};
use crate::tensor::Rows;
use kernels_gpu::attention::{
    self, AttentionCombine, SPLIT, combine_blocks, row_chunks, tile_tokens,
};
use kernels_gpu::gpu::{Bf16, F16, Global, GlobalMut, Plain, U32x2, U32x4};
use kernels_gpu::rope;

/// A step with at most this many tokens spreads each context over blocks; more tokens fill the card
/// by themselves, and a block then takes its whole context.
pub const SPREAD_TOKENS: usize = 8;

/// What attention needs of a step.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The model's dimensions.
    pub config: &'a Config,
    /// Its cache.
    pub cache: &'a KvCache,
    /// The layer.
    pub layer: usize,
    /// [n_tokens, q columns + 2 kv columns]
    pub qkv: &'a Buffer<f32>,
    /// [n_tokens]
    pub positions: Global<u32>,
    /// Row of the page table; [n_tokens]
    pub sequences: Global<u32>,
    /// Attention tiles, as the kernel takes them
    pub tiles: Global<U32x4>,
    /// Tokens of the step.
    pub n_tokens: usize,
    /// Tiles of the step.
    pub n_tiles: usize,
    /// Largest position of the step + 1.
    pub context: usize,
    /// [context, rotary columns / 2, 2]
    pub rope: Option<&'a Buffer<f32>>,
    /// [n_heads]
    pub sinks: Option<&'a Buffer<f32>>,
}

/// What the splits of a step leave for the last fold.
#[derive(Debug)]
pub struct Scratch {
    out: Buffer<f32>,
    sums: Buffer<U32x2>,
}

/// Most splits that a block of its own may get, for steps of few tokens.
pub fn most_splits(context: usize) -> usize {
    context.div_ceil(SPLIT as usize)
}

/// Most splits that a tile meets in a layer with a window: its tokens together see `window + T - 1`
/// keys, wherever those begin.
fn window_splits(window: usize, heads: u32) -> usize {
    let tokens = tile_tokens(heads) as usize;
    (window + tokens - 2).div_ceil(SPLIT as usize) + 1
}

/// Rows of partial results: (token, split) pairs.
fn partial_rows(context: usize, max_step: usize) -> usize {
    max_step.max(SPREAD_TOKENS.min(max_step) * most_splits(context))
}

impl Scratch {
    /// Room for steps of `max_step` tokens over `context` keys.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(
        device: &Device,
        config: &Config,
        context: usize,
        max_step: usize,
    ) -> Result<Scratch> {
        let rows = partial_rows(context, max_step) * config.n_heads;
        Ok(Scratch { out: device.alloc(rows * config.head_dim)?, sums: device.alloc(rows)? })
    }

    /// Bytes that `new` takes.
    pub fn bytes(config: &Config, context: usize, max_step: usize) -> u64 {
        let rows = partial_rows(context, max_step) * config.n_heads;
        (rows * (4 * config.head_dim + 8)) as u64
    }
}

/// A layer's cache as elements of one type.
fn pages<T: Plain>(buffer: &Buffer<u8>) -> GlobalMut<T> {
    buffer.view_mut().cast()
}

/// Rotates q in place, and k on its way into the cache; v goes there as it is.
///
/// # Errors
/// When the launch fails.
pub fn rope_and_cache(device: &Device, a: &Attention<'_>) -> Result<()> {
    let Attention { config, cache, .. } = *a;
    let group = cache.group(config, a.layer);
    let layer = &cache.layers[a.layer];
    let (n_heads, n_kv_heads) = (config.n_heads as u32, config.n_kv_heads as u32);
    let grid = (a.n_tokens, rope::head_blocks(n_heads, n_kv_heads) as usize);
    macro_rules! launch {
        ($kernel:ident, $cache:ty) => {
            device.launch(
                rope::$kernel::RopeKv {
                    qkv: a.qkv.view_mut(),
                    k_cache: pages::<$cache>(&layer.keys),
                    v_cache: pages::<$cache>(&layer.values),
                    cos_sin: a.rope.map_or_else(Global::absent, Buffer::view),
                    positions: a.positions,
                    sequences: a.sequences,
                    pages: group.table.view(),
                    row_stride: (config.q_cols() + 2 * config.kv_cols()) as u32,
                    q_cols: config.q_cols() as u32,
                    kv_cols: config.kv_cols() as u32,
                    n_heads,
                    n_kv_heads,
                    head_dim: config.head_dim as u32,
                    rot_dim: config.rope.as_ref().map_or(0, |r| r.rot_dim as u32),
                    adjacent: (config.architecture.rope == Some(RopeLayout::Adjacent)) as u32,
                    pages_per_sequence: group.pages_per_sequence as u32,
                },
                grid,
            )
        };
    }
    match cache.kv_type {
        KvType::F32 => launch!(rope_kv_f32, f32),
        KvType::F16 => launch!(rope_kv_f16, F16),
        KvType::Bf16 => launch!(rope_kv_bf16, Bf16),
    }
}

/// `out = attention(q, cache)` for every token of the step.
///
/// # Errors
/// When a launch fails.
pub fn attend(device: &Device, a: &Attention<'_>, scratch: &Scratch, out: &Rows) -> Result<()> {
    let Attention { config, cache, .. } = *a;
    let group = cache.group(config, a.layer);
    let layer = &cache.layers[a.layer];
    let window = config.window_of(a.layer).unwrap_or(0);
    let heads = (config.n_heads / config.n_kv_heads) as u32;
    let n_splits = if a.n_tokens <= SPREAD_TOKENS {
        let all = most_splits(a.context);
        if window > 0 { all.min(window_splits(window, heads)) } else { all }
    } else {
        1
    };
    let grid = (a.n_tiles, config.n_kv_heads * row_chunks(heads) as usize, n_splits);
    macro_rules! launch {
        ($kernel:ident, $cache:ty) => {
            device.launch(
                attention::$kernel::Attention {
                    qkv: a.qkv.view(),
                    k_cache: layer.keys.view().cast::<$cache>(),
                    v_cache: layer.values.view().cast::<$cache>(),
                    positions: a.positions,
                    tiles: a.tiles,
                    pages: group.table.view(),
                    partial_out: scratch.out.view_mut(),
                    partial_ml: scratch.sums.view_mut(),
                    row_stride: (config.q_cols() + 2 * config.kv_cols()) as u32,
                    n_heads: config.n_heads as u32,
                    n_kv_heads: config.n_kv_heads as u32,
                    head_dim: config.head_dim as u32,
                    pages_per_sequence: group.pages_per_sequence as u32,
                    n_splits: n_splits as u32,
                    window: window as u32,
                    scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                },
                grid,
            )
        };
    }
    match (cache.kv_type, config.head_dim) {
        (KvType::F32, ..=32) => launch!(attention_f32_d32, f32),
        (KvType::F32, ..=64) => launch!(attention_f32_d64, f32),
        (KvType::F32, ..=128) => launch!(attention_f32_d128, f32),
        (KvType::F32, _) => launch!(attention_f32_d256, f32),
        (KvType::F16, ..=32) => launch!(attention_f16_d32, F16),
        (KvType::F16, ..=64) => launch!(attention_f16_d64, F16),
        (KvType::F16, ..=128) => launch!(attention_f16_d128, F16),
        (KvType::F16, _) => launch!(attention_f16_d256, F16),
        (KvType::Bf16, ..=32) => launch!(attention_bf16_d32, Bf16),
        (KvType::Bf16, ..=64) => launch!(attention_bf16_d64, Bf16),
        (KvType::Bf16, ..=128) => launch!(attention_bf16_d128, Bf16),
        (KvType::Bf16, _) => launch!(attention_bf16_d256, Bf16),
    }?;
    let combine = AttentionCombine {
        partial_out: scratch.out.view(),
        partial_ml: scratch.sums.view(),
        positions: a.positions,
        sinks: a.sinks.map_or_else(Global::absent, Buffer::view),
        values: out.values.view_mut(),
        codes: out.codes.view_mut(),
        scales: out.scales.view_mut(),
        n_heads: config.n_heads as u32,
        head_dim: config.head_dim as u32,
        n_splits: n_splits as u32,
        window: window as u32,
    };
    device.launch(combine, (a.n_tokens, combine_blocks(out.n_cols as u32) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_gpu::attention::tile_splits;

    /// The largest number of splits over every place that a tile can have.
    #[test]
    fn a_window_meets_as_many_splits_as_its_tile_can() {
        for heads in [1, 2, 8] {
            for window in [1, 8, 128, 255, 256, 257, 512, 4096] {
                let tokens = tile_tokens(heads);
                let last_first = window as u32 + 3 * SPLIT;
                let splits = |first| tile_splits(first, first + tokens - 1, window as u32) as usize;
                let most = (0..last_first).map(splits).max().unwrap();
                assert_eq!(window_splits(window, heads), most, "window {window}, {heads} heads");
            }
        }
    }
}
