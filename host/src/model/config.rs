//! A model's dimensions, read from GGUF metadata and checked against each other.

use super::arch::{self, Architecture, NormKind};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use kernels_gpu::{norm, sample};

/// The largest dimensions of a model. Sizes that follow from them fit 64 bits, and widths 32.
const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 1024;
const MAX_FF: usize = 1 << 18;
/// Tables and cache are as long as a file claims where nobody asks for less.
const MAX_CONTEXT: usize = 1 << 20;
/// A norm keeps a row in registers.
const MAX_EMBD: usize = norm::MAX_COLS as usize;
const MAX_VOCAB: usize = sample::MAX_VOCAB as usize;

/// The dimensions of a model.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its architecture.
    pub architecture: &'static Architecture,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Columns of a head, a multiple of 8 up to 256.
    pub head_dim: usize,
    /// Width of the feed-forward part, or of one expert.
    pub n_ff: usize,
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Tokens that the model was made for.
    pub max_context: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: Option<Rope>,
    /// Width of the sliding window of the layers that have one.
    pub window: Option<usize>,
    /// Of so many layers the last sees everything, and the others a window.
    pub window_period: usize,
    /// Mixture of experts.
    pub experts: Option<Experts>,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that each token uses.
    pub used: usize,
}

/// Rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Columns of a head that rotate.
    pub rot_dim: usize,
    /// Base of the frequencies.
    pub base: f64,
    /// How longer contexts than the trained one are reached.
    pub scaling: Scaling,
    /// What cosines and sines are multiplied by, besides YaRN's own factor; 1 in most files.
    pub attention_factor: f64,
}

/// Scaling of rotary positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// None; a `rope_freqs` tensor may still divide the frequencies (Llama 3).
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// YaRN.
    Yarn {
        /// How much longer the context gets.
        factor: f64,
        /// The context before.
        original_context: f64,
        /// Pairs that turn more often than this over the original context keep their frequency.
        beta_fast: f64,
        /// Pairs that turn less often than this are stretched by the whole factor.
        beta_slow: f64,
    },
}

impl Config {
    /// Reads the configuration of `gguf`.
    ///
    /// # Errors
    /// When the architecture is not one that we run, a key is missing, or values contradict each
    /// other.
    pub fn read(gguf: &Gguf) -> Result<Config> {
        let name = gguf.require_str("general.architecture")?;
        let architecture = arch::find(name).ok_or_else(|| {
            let known: Vec<_> = arch::ALL.iter().map(|a| a.name).collect();
            let known = known.join(", ");
            model_error(gguf, format!("architecture `{name}` is not one of {known}"))
        })?;
        let key = |suffix: &str| format!("{name}.{suffix}");
        let count = |suffix: &str| -> Result<usize> {
            let found = gguf.require_u32(&key(suffix))? as usize;
            if found == 0 || found > 1 << 24 {
                return Err(model_error(gguf, format!("{} is {found}", key(suffix))));
            }
            Ok(found)
        };
        let optional = |suffix: &str| -> Result<Option<usize>> {
            Ok(gguf.u32(&key(suffix))?.map(|v| v as usize))
        };

        let n_embd = count("embedding_length")?;
        let n_heads = count("attention.head_count")?;
        let n_kv_heads = optional("attention.head_count_kv")?.unwrap_or(n_heads);
        let head_dim = match optional("attention.key_length")? {
            Some(length) => length,
            None => n_embd / n_heads,
        };
        let experts = if architecture.experts {
            let (count, used) = (count("expert_count")?, count("expert_used_count")?);
            Some(Experts { count, used })
        } else {
            None
        };
        let n_ff = match (experts, optional("expert_feed_forward_length")?) {
            (Some(_), Some(n_ff)) => n_ff,
            _ => count("feed_forward_length")?,
        };
        let embedding = gguf.require_tensor("token_embd.weight")?;
        let config = Config {
            architecture,
            n_layers: count("block_count")?,
            n_embd,
            n_heads,
            n_kv_heads,
            head_dim,
            n_ff,
            n_vocab: embedding.n_rows() as usize,
            max_context: count("context_length")?,
            norm_eps: gguf.require_f32(&key(architecture.norm_eps_key))?,
            rope: match architecture.rope {
                Some(_) => Some(read_rope(gguf, name, head_dim)?),
                None => None,
            },
            window: if architecture.alternating_window {
                optional("attention.sliding_window")?.filter(|&w| w > 0)
            } else {
                None
            },
            window_period: match gguf.value(&key("attention.sliding_window_pattern")) {
                // gpt-oss' own: every other layer.
                None => 2,
                Some(value) => value
                    .as_integer()
                    .and_then(|period| usize::try_from(period).ok())
                    .filter(|&period| period > 0)
                    .ok_or_else(|| {
                        let key = key("attention.sliding_window_pattern");
                        model_error(gguf, format!("{key} is {value}, not a number of layers"))
                    })?,
            },
            experts,
        };
        config.check(gguf)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf) -> Result<()> {
        let require = |holds: bool, what: String| {
            if holds { Ok(()) } else { Err(model_error(gguf, what)) }
        };
        let Config { n_heads, n_kv_heads, head_dim, .. } = *self;
        for (what, found, most) in [
            ("layers", self.n_layers, MAX_LAYERS),
            ("columns of the residual stream", self.n_embd, MAX_EMBD),
            ("query heads", n_heads, MAX_HEADS),
            ("columns of the feed-forward part", self.n_ff, MAX_FF),
            ("tokens in the vocabulary", self.n_vocab, MAX_VOCAB),
            ("tokens of context", self.max_context, MAX_CONTEXT),
        ] {
            let message = format!("{found} {what}; 1 to {most} are supported");
            require((1..=most).contains(&found), message)?;
        }
        require(
            n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            format!("{n_heads} query heads don't divide among {n_kv_heads} key heads"),
        )?;
        require(
            head_dim.is_multiple_of(8) && (8..=256).contains(&head_dim),
            format!("heads of {head_dim} columns; 8, 16, ... 256 are supported"),
        )?;
        require(
            self.architecture.norm != NormKind::Layer || self.n_embd.is_multiple_of(4),
            format!("layer norms of {} columns; multiples of 4 are supported", self.n_embd),
        )?;
        if let Some(rope) = &self.rope {
            require(
                rope.rot_dim <= head_dim && rope.rot_dim.is_multiple_of(2) && rope.rot_dim > 0,
                format!("{} rotary columns in heads of {head_dim}", rope.rot_dim),
            )?;
        }
        if let Some(Experts { count, used }) = self.experts {
            require(
                used <= count && used <= 16 && count <= 256,
                format!("{used} of {count} experts a token; up to 16 of 256 are supported"),
            )?;
        }
        require(
            self.norm_eps.is_finite() && self.norm_eps >= 0.0,
            format!("a norm epsilon of {}", self.norm_eps),
        )
    }

    /// Whether layer `layer` sees a sliding window only.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| layer % self.window_period < self.window_period - 1)
    }

    /// Columns of all query heads.
    pub fn q_cols(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Columns of all key heads, and of all value heads.
    pub fn kv_cols(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

fn read_rope(gguf: &Gguf, name: &str, head_dim: usize) -> Result<Rope> {
    let key = |suffix: &str| format!("{name}.rope.{suffix}");
    let unfit = |suffix: &str, found: &dyn std::fmt::Display, expected: &str| {
        model_error(gguf, format!("{} is {found}, not {expected}", key(suffix)))
    };
    let positive = |suffix: &str| -> Result<Option<f64>> {
        match gguf.f32(&key(suffix))?.map(f64::from) {
            Some(found) if !(found.is_finite() && found > 0.0) => {
                Err(unfit(suffix, &found, "a positive number"))
            }
            found => Ok(found),
        }
    };
    let or_missing = |suffix: &str, found: Option<f64>| match found {
        Some(found) => Ok(found),
        None => gguf.require_f32(&key(suffix)).map(f64::from),
    };
    // Positions are not silently other than the file wants them: what isn't implemented must be off.
    for (suffix, off) in [
        ("scaling.alpha", 0.0),
        ("scaling.yarn_log_multiplier", 0.0),
        ("scaling.yarn_ext_factor", 1.0),
        ("scaling.yarn_attn_factor", 1.0),
    ] {
        if let Some(found) = gguf.f32(&key(suffix))?.filter(|&found| found != off) {
            return Err(unfit(suffix, &found, &format!("{off}, the only value that is supported")));
        }
    }
    // The second is the key of older files.
    let factor = positive("scaling.factor")?.or(positive("scale_linear")?);
    let scaling = match (gguf.str(&key("scaling.type"))?, factor) {
        (Some("none"), _) | (None, None) => Scaling::None,
        // A factor alone means linear, as in llama.cpp.
        (Some("linear"), _) | (None, Some(_)) => {
            Scaling::Linear { factor: or_missing("scaling.factor", factor)? }
        }
        (Some("yarn"), _) => Scaling::Yarn {
            factor: or_missing("scaling.factor", factor)?,
            original_context: match gguf.require_u32(&key("scaling.original_context_length"))? {
                0 => return Err(unfit("scaling.original_context_length", &0, "a positive number")),
                length => f64::from(length),
            },
            beta_fast: positive("scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: positive("scaling.yarn_beta_slow")?.unwrap_or(1.0),
        },
        (Some(other), _) => return Err(unfit("scaling.type", &other, "none, linear or yarn")),
    };
    Ok(Rope {
        rot_dim: gguf.u32(&key("dimension_count"))?.map_or(head_dim, |v| v as usize),
        base: positive("freq_base")?.unwrap_or(10_000.0),
        scaling,
        attention_factor: positive("scaling.attn_factor")?.unwrap_or(1.0),
    })
}

/// An error about what a file says of its model.
pub(super) fn model_error(gguf: &Gguf, what: String) -> Error {
    Error::Model { file: gguf.name().to_owned(), what }
}
