//! GPT-OSS: experts after every attention, attention sinks, every other layer a sliding window.

use super::{Activation, Architecture, NormKind, RopeLayout};

pub(crate) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    norm: NormKind::Rms,
    norm_eps_key: "attention.layer_norm_rms_epsilon",
    rope: Some(RopeLayout::Halves),
    fused_qkv: false,
    ffn_norm: "post_attention_norm",
    // No GGUF key holds these two; they are in OpenAI's reference model.
    activation: Activation::SwigluOai { alpha: 1.702, limit: 7.0 },
    experts: true,
    alternating_window: true,
};
