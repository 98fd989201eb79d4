//! Architectures are data: what differs between them, over one forward pass.

mod gpt2;
mod gpt_oss;
mod llama;

pub(crate) use gpt_oss::GPT_OSS;
pub(crate) use gpt2::GPT2;
pub(crate) use llama::LLAMA;

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// By its root mean square.
    Rms,
    /// By its mean and variance, with a bias.
    Layer,
}

/// Which columns of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Columns i and i + half (GPT-NeoX, gpt-oss).
    Halves,
    /// Columns 2 i and 2 i + 1 (Llama as GGUF stores it).
    Adjacent,
}

/// What stands between the feed-forward products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `gelu(up)`, in its tanh form; no gate.
    GeluTanh,
    /// `silu(gate) * up`.
    SiluGate,
    /// gpt-oss: `g * sigmoid(alpha g) * (u + 1)` with g and u clamped.
    SwigluOai {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Both inputs are clamped to this.
        limit: f32,
    },
}

/// What makes an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    pub name: &'static str,
    /// Every norm of the model.
    pub norm: NormKind,
    /// Key of the norms' epsilon, without the prefix.
    pub norm_eps_key: &'static str,
    /// Rotary positions; without, a table of learned ones is added to the embedding.
    pub rope: Option<RopeLayout>,
    /// q, k and v as one tensor `attn_qkv`.
    pub fused_qkv: bool,
    /// Name of the norm before the feed-forward part.
    pub ffn_norm: &'static str,
    /// Between the feed-forward products.
    pub activation: Activation,
    /// Whether a mixture of experts takes the feed-forward's place.
    pub experts: bool,
    /// Whether even layers see a sliding window only.
    pub alternating_window: bool,
}

/// All of them.
pub const ALL: [&Architecture; 3] = [&GPT_OSS, &GPT2, &LLAMA];

/// The architecture that a file names.
pub fn find(name: &str) -> Option<&'static Architecture> {
    ALL.into_iter().find(|a| a.name == name)
}
