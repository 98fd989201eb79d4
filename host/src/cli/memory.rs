//! How much device memory a model needs: an estimate from its file alone.

use ironwarp::{Gguf, Result};

/// Bytes of all weights as they are in the file.
pub fn weight_bytes(gguf: &Gguf) -> u64 {
    gguf.tensors().iter().fold(0, |sum, info| sum.saturating_add(info.n_bytes()))
}

/// Bytes of the keys and values of `n_ctx` positions in f16. A layer with a sliding window keeps
/// its window only.
pub fn kv_cache_bytes(gguf: &Gguf, n_ctx: u32) -> Result<u64> {
    let arch = gguf.require_str("general.architecture")?;
    let key = |tail: &str| format!("{arch}.{tail}");
    let n_layers = gguf.require_u32(&key("block_count"))?;
    let n_heads = gguf.require_u32(&key("attention.head_count"))?;
    let n_kv_heads = gguf.u32(&key("attention.head_count_kv"))?.unwrap_or(n_heads);
    let n_embd = gguf.require_u32(&key("embedding_length"))?;
    let head_dim = n_embd.checked_div(n_heads).unwrap_or(0);
    let key_dim = gguf.u32(&key("attention.key_length"))?.unwrap_or(head_dim);
    let value_dim = gguf.u32(&key("attention.value_length"))?.unwrap_or(head_dim);

    // Every layer of a period but the last has the window; no period, no window.
    let window = gguf.u32(&key("attention.sliding_window"))?.unwrap_or(0);
    let usual_period = if arch == "gpt-oss" { 2 } else { 0 };
    let period = match gguf.value(&key("attention.sliding_window_pattern")) {
        Some(value) => value.as_integer().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        None => usual_period,
    };
    let n_full = if window == 0 || period == 0 { n_layers } else { n_layers / period };
    let positions = u128::from(n_full) * u128::from(n_ctx)
        + u128::from(n_layers - n_full) * u128::from(n_ctx.min(window));
    let position_bytes = 2 * u128::from(n_kv_heads) * (u128::from(key_dim) + u128::from(value_dim));
    Ok(u64::try_from(positions.saturating_mul(position_bytes)).unwrap_or(u64::MAX))
}
