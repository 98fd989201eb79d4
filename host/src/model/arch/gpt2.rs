//! GPT-2: learned positions, LayerNorm, fused q, k and v, a plain feed-forward with GELU.

use super::{Activation, Architecture, NormKind};

pub(crate) const GPT2: Architecture = Architecture {
    name: "gpt2",
    norm: NormKind::Layer,
    norm_eps_key: "attention.layer_norm_epsilon",
    rope: None,
    fused_qkv: true,
    ffn_norm: "ffn_norm",
    activation: Activation::GeluTanh,
    experts: false,
    alternating_window: false,
};
