//! Rotary positions, the cache, and attention over it.

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::RopeLayout;
use crate::model::kv::KvCache;
use crate::model::{Config, KvType};
use crate::tensor::Rows;
use kernels_gpu::attention::{
    self, AttentionCombine, ONE_PASS_WINDOW, SPLIT, combine_blocks, decode, row_chunks, tile_tokens,
};
use kernels_gpu::gpu::{Bf16, F16, Global, GlobalMut, Plain, U32x2, U32x4};
use kernels_gpu::{Kernel, rope};

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
    /// Whether no sequence has more than one token.
    pub one_each: bool,
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
    /// Of the splits of each block of rows, those that are done.
    arrivals: Buffer<u32>,
}

/// Most splits that a block of its own may get, for steps of few tokens.
pub fn most_splits(context: usize) -> usize {
    context.div_ceil(SPLIT as usize)
}

/// Most splits that a tile meets in a layer with a window: its tokens together see `window + T - 1`
/// keys, wherever those begin.
fn window_splits(window: usize, heads: u32, head_dim: u32) -> usize {
    let tokens = tile_tokens(heads, head_dim) as usize;
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
        Ok(Scratch {
            out: device.alloc(rows * config.head_dim)?,
            sums: device.alloc(rows)?,
            arrivals: device.alloc(max_step * config.n_heads)?,
        })
    }

    /// Bytes that `new` takes.
    pub fn bytes(config: &Config, context: usize, max_step: usize) -> u64 {
        let rows = partial_rows(context, max_step) * config.n_heads;
        (rows * (4 * config.head_dim + 8) + 4 * max_step * config.n_heads) as u64
    }
}

/// A layer's cache as elements of one type.
fn pages<T: Plain>(buffer: &Buffer<u8>) -> GlobalMut<T> {
    buffer.view_mut().cast()
}

/// Calls `$launch` with the cache's type and the names of its kernels for the head's dims: `attention`'s
/// and `decode`'s.
macro_rules! of_cache_and_size {
    ($kv_type:expr, $head_dim:expr, $launch:ident) => {
        match ($kv_type, $head_dim) {
            (KvType::F32, ..=64) => $launch!(f32, attention_f32_d64, decode_f32_d64),
            (KvType::F32, ..=128) => $launch!(f32, attention_f32_d128, decode_f32_d128),
            (KvType::F32, _) => $launch!(f32, attention_f32_d256, decode_f32_d256),
            (KvType::F16, ..=64) => $launch!(F16, attention_f16_d64, decode_f16_d64),
            (KvType::F16, ..=128) => $launch!(F16, attention_f16_d128, decode_f16_d128),
            (KvType::F16, _) => $launch!(F16, attention_f16_d256, decode_f16_d256),
            (KvType::Bf16, ..=64) => $launch!(Bf16, attention_bf16_d64, decode_bf16_d64),
            (KvType::Bf16, ..=128) => $launch!(Bf16, attention_bf16_d128, decode_bf16_d128),
            (KvType::Bf16, _) => $launch!(Bf16, attention_bf16_d256, decode_bf16_d256),
        }
    };
}

/// `out = attention(rope(q), cache)` for every token of the step, whose keys and values go into the
/// cache, the keys rotated.
///
/// # Errors
/// When a launch fails.
pub fn attend(device: &Device, a: &Attention<'_>, scratch: &Scratch, out: &Rows) -> Result<()> {
    let rot_dim = a.config.rope.as_ref().map_or(0, |rope| rope.rot_dim);
    let [n_heads, head_dim, rot_dim] =
        [a.config.n_heads, a.config.head_dim, rot_dim].map(|n| n as u32);
    if a.one_each && decode::is_for(n_heads, head_dim, rot_dim) {
        return attend_one_each(device, a, scratch, out);
    }
    rope_and_cache(device, a)?;
    attend_cached(device, a, scratch, out)
}

/// Blocks that share a token's context, or that of a tile: 1 where each takes all of it.
fn n_splits(a: &Attention<'_>, window: usize) -> usize {
    if a.n_tokens > SPREAD_TOKENS {
        return 1;
    }
    let all = most_splits(a.context);
    let heads = (a.config.n_heads / a.config.n_kv_heads) as u32;
    let head_dim = a.config.head_dim as u32;
    if window > 0 { all.min(window_splits(window, heads, head_dim)) } else { all }
}

/// `attend` in one launch, where no sequence has more than one token.
fn attend_one_each(
    device: &Device,
    a: &Attention<'_>,
    scratch: &Scratch,
    out: &Rows,
) -> Result<()> {
    let Attention { config, cache, .. } = *a;
    let group = cache.group(config, a.layer);
    let layer = &cache.layers[a.layer];
    let window = config.window_of(a.layer).unwrap_or(0);
    let heads = (config.n_heads / config.n_kv_heads) as u32;
    let n_splits = n_splits(a, window);
    let in_one_pass = (1..=ONE_PASS_WINDOW as usize).contains(&window);
    // As many blocks as there are splits, but no more than run at once.
    macro_rules! spec {
        ($cache:ty, $attention:ident, $decode:ident) => {
            decode::$decode::Decode::spec()
        };
    }
    let spec = of_cache_and_size!(cache.kv_type, config.head_dim, spec);
    let at_once = spec.min_blocks as usize * device.n_multiprocessors() / a.n_tokens;
    let row_blocks = config.n_kv_heads * row_chunks(heads, config.head_dim as u32) as usize;
    let n_blocks = if in_one_pass { 1 } else { n_splits.min((at_once / row_blocks).max(1)) };
    let block_splits = match n_blocks {
        1 => u32::MAX as usize,
        n => n_splits.div_ceil(n),
    };
    let grid = (a.n_tokens, row_blocks, n_splits.div_ceil(block_splits));
    macro_rules! launch {
        ($cache:ty, $attention:ident, $decode:ident) => {
            device.launch(
                decode::$decode::Decode {
                    qkv: a.qkv.view(),
                    k_cache: layer.keys.view().cast::<$cache>(),
                    v_cache: layer.values.view().cast::<$cache>(),
                    new_keys: pages::<$cache>(&layer.keys),
                    new_values: pages::<$cache>(&layer.values),
                    cos_sin: a.rope.map_or_else(Global::absent, Buffer::view),
                    tiles: a.tiles,
                    pages: group.table.view(),
                    sinks: a.sinks.map_or_else(Global::absent, Buffer::view),
                    partial_out: scratch.out.view_mut(),
                    partial_ml: scratch.sums.view_mut(),
                    arrivals: scratch.arrivals.view_mut(),
                    values: out.values.view_mut(),
                    codes: out.codes.view_mut(),
                    scales: out.scales.view_mut(),
                    row_stride: (config.q_cols() + 2 * config.kv_cols()) as u32,
                    q_cols: config.q_cols() as u32,
                    kv_cols: config.kv_cols() as u32,
                    n_kv_heads: config.n_kv_heads as u32,
                    group: heads,
                    head_dim: config.head_dim as u32,
                    rot_dim: config.rope.as_ref().map_or(0, |r| r.rot_dim as u32),
                    adjacent: (config.architecture.rope == Some(RopeLayout::Adjacent)) as u32,
                    pages_per_sequence: group.pages_per_sequence as u32,
                    n_splits: n_splits as u32,
                    block_splits: block_splits as u32,
                    window: window as u32,
                    scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                },
                grid,
            )
        };
    }
    of_cache_and_size!(cache.kv_type, config.head_dim, launch)
}

/// Rotates q in place, and k on its way into the cache; v goes there as it is.
fn rope_and_cache(device: &Device, a: &Attention<'_>) -> Result<()> {
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
fn attend_cached(device: &Device, a: &Attention<'_>, scratch: &Scratch, out: &Rows) -> Result<()> {
    let Attention { config, cache, .. } = *a;
    let group = cache.group(config, a.layer);
    let layer = &cache.layers[a.layer];
    let window = config.window_of(a.layer).unwrap_or(0);
    let heads = (config.n_heads / config.n_kv_heads) as u32;
    let n_splits = n_splits(a, window);
    let grid = (
        a.n_tiles,
        config.n_kv_heads * row_chunks(heads, config.head_dim as u32) as usize,
        n_splits,
    );
    macro_rules! launch {
        ($cache:ty, $attention:ident, $decode:ident) => {
            device.launch(
                attention::$attention::Attention {
                    qkv: a.qkv.view(),
                    k_cache: layer.keys.view().cast::<$cache>(),
                    v_cache: layer.values.view().cast::<$cache>(),
                    positions: a.positions,
                    tiles: a.tiles,
                    pages: group.table.view(),
                    partial_out: scratch.out.view_mut(),
                    partial_ml: scratch.sums.view_mut(),
                    row_stride: (config.q_cols() + 2 * config.kv_cols()) as u32,
                    n_kv_heads: config.n_kv_heads as u32,
                    group: heads,
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
    of_cache_and_size!(cache.kv_type, config.head_dim, launch)?;
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
                let tokens = tile_tokens(heads, 64);
                let last_first = window as u32 + 3 * SPLIT;
                let splits = |first| tile_splits(first, first + tokens - 1, window as u32) as usize;
                let most = (0..last_first).map(splits).max().unwrap();
                assert_eq!(
                    window_splits(window, heads, 64),
                    most,
                    "window {window}, {heads} heads"
                );
            }
        }
    }
}
