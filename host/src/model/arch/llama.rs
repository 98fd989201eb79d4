//! Llama: RMSNorm, rotary positions, a gated feed-forward.

use super::{Activation, Architecture, NormKind, RopeLayout};

pub(crate) const LLAMA: Architecture = Architecture {
    name: "llama",
    norm: NormKind::Rms,
    norm_eps_key: "attention.layer_norm_rms_epsilon",
    rope: Some(RopeLayout::Adjacent),
    fused_qkv: false,
    ffn_norm: "ffn_norm",
    activation: Activation::SiluGate,
    experts: false,
    alternating_window: false,
};
