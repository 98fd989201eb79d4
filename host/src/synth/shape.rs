//! The sizes of the models that can be written, and those of the real ones.

use crate::error::{Error, Result};

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// OpenAI's gpt-oss: mixture of experts, attention sinks, sliding windows.
    GptOss,
    /// GPT-2: learned positions, layer norm, fused q, k and v.
    Gpt2,
    /// Llama 3: RMS norm, rotary positions, gated feed-forward.
    Llama,
}

impl Arch {
    /// The value of `general.architecture`, and what its keys begin with.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::GptOss => "gpt-oss",
            Arch::Gpt2 => "gpt2",
            Arch::Llama => "llama",
        }
    }
}

/// Every size of a model. What an architecture doesn't have is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The family.
    pub arch: Arch,
    /// Layers.
    pub n_layers: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Width of the feed-forward part; of each expert in gpt-oss.
    pub n_ff: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; as many as query heads in GPT-2.
    pub n_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// The longest context.
    pub n_ctx: u32,
    /// Tokens, special ones included.
    pub n_vocab: u32,
    /// Experts of a layer (gpt-oss).
    pub n_experts: u32,
    /// Experts that a token goes through (gpt-oss).
    pub n_experts_used: u32,
    /// Positions that the layers of even index see (gpt-oss).
    pub window: u32,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// What Llama 3's low rotary frequencies are divided by.
    pub rope_factor: f32,
}

/// The models that can be asked for by name: the real ones, and a small one of each family to
/// start from.
pub const MODELS: [&str; 12] = [
    "gpt-oss-20b",
    "gpt-oss-120b",
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "gpt-oss-tiny",
    "gpt2-tiny",
    "llama-tiny",
];

impl Shape {
    /// The shape of a model of `MODELS`.
    pub fn named(model: &str) -> Option<Shape> {
        let gpt_oss_20b = Shape {
            arch: Arch::GptOss,
            n_layers: 24,
            n_embd: 2880,
            n_ff: 2880,
            n_heads: 64,
            n_kv_heads: 8,
            head_dim: 64,
            n_ctx: 131_072,
            n_vocab: 201_088,
            n_experts: 32,
            n_experts_used: 4,
            window: 128,
            tied: false,
            rope_factor: 32.0,
        };
        let gpt2 = |n_layers, n_embd, n_heads| Shape {
            arch: Arch::Gpt2,
            n_layers,
            n_embd,
            n_ff: 4 * n_embd,
            n_heads,
            n_kv_heads: n_heads,
            head_dim: n_embd / n_heads,
            n_ctx: 1024,
            n_vocab: 50_257,
            n_experts: 0,
            n_experts_used: 0,
            window: 0,
            tied: true,
            rope_factor: 0.0,
        };
        let llama_1b = Shape {
            arch: Arch::Llama,
            n_layers: 16,
            n_embd: 2048,
            n_ff: 8192,
            n_heads: 32,
            n_kv_heads: 8,
            head_dim: 64,
            n_ctx: 131_072,
            n_vocab: 128_256,
            n_experts: 0,
            n_experts_used: 0,
            window: 0,
            tied: true,
            rope_factor: 32.0,
        };
        Some(match model {
            "gpt-oss-20b" => gpt_oss_20b,
            "gpt-oss-120b" => Shape { n_layers: 36, n_experts: 128, ..gpt_oss_20b },
            "gpt2" => gpt2(12, 768, 12),
            "gpt2-medium" => gpt2(24, 1024, 16),
            "gpt2-large" => gpt2(36, 1280, 20),
            "gpt2-xl" => gpt2(48, 1600, 25),
            "llama-3.2-1b" => llama_1b,
            "llama-3.2-3b" => {
                Shape { n_layers: 28, n_embd: 3072, n_heads: 24, head_dim: 128, ..llama_1b }
            }
            "llama-3.1-8b" => Shape {
                n_layers: 32,
                n_embd: 4096,
                n_ff: 14_336,
                head_dim: 128,
                tied: false,
                rope_factor: 8.0,
                ..llama_1b
            },
            "gpt-oss-tiny" => Shape {
                n_layers: 4,
                n_embd: 288,
                n_ff: 288,
                n_heads: 8,
                n_kv_heads: 2,
                n_ctx: 4096,
                n_vocab: 512,
                n_experts: 8,
                window: 16,
                ..gpt_oss_20b
            },
            "gpt2-tiny" => Shape { n_ctx: 256, n_vocab: 512, ..gpt2(3, 128, 2) },
            "llama-tiny" => Shape {
                n_layers: 3,
                n_embd: 256,
                n_ff: 768,
                n_heads: 4,
                n_kv_heads: 2,
                n_ctx: 1024,
                n_vocab: 512,
                ..llama_1b
            },
            _ => return None,
        })
    }

    /// The model of the same family whose token ids this shape has.
    pub(super) fn real_vocab(&self) -> u32 {
        match self.arch {
            Arch::GptOss => 201_088,
            Arch::Gpt2 => 50_257,
            Arch::Llama => 128_256,
        }
    }

    /// Refuses sizes that no model of the family can have.
    pub fn check(&self) -> Result<()> {
        // Wide enough for anything real, and small enough that every product fits in a u64.
        const MOST: u32 = 1 << 24;
        let moe = self.arch == Arch::GptOss;
        let ranges = [
            ("the number of layers", self.n_layers, 1, 4096),
            ("the embedding length", self.n_embd, 1, MOST),
            ("the feed-forward length", self.n_ff, 1, MOST),
            ("the number of heads", self.n_heads, 1, 65_536),
            ("the number of key and value heads", self.n_kv_heads, 1, self.n_heads),
            ("the head dimension", self.head_dim, 2, 65_536),
            ("the context length", self.n_ctx, 1, MOST),
            ("the number of tokens", self.n_vocab, super::vocab::least(self.arch), MOST),
            ("the number of experts", self.n_experts, moe.into(), if moe { 65_536 } else { 0 }),
            ("the number of experts used", self.n_experts_used, moe.into(), self.n_experts),
            ("the window", self.window, moe.into(), if moe { MOST } else { 0 }),
        ];
        for (what, found, least, most) in ranges {
            if found < least || found > most {
                let expected = format!("{least} to {most}");
                return Err(Error::ModelSize { what, found, expected });
            }
        }
        let multiples = [
            ("the number of heads", self.n_heads, self.n_kv_heads),
            ("the head dimension", self.head_dim, 2),
        ];
        for (what, found, of) in multiples {
            if found % of != 0 {
                return Err(Error::ModelSize {
                    what,
                    found,
                    expected: format!("a multiple of {of}"),
                });
            }
        }
        if self.arch == Arch::Gpt2 && self.n_heads * self.head_dim != self.n_embd {
            return Err(Error::ModelSize {
                what: "the embedding length",
                found: self.n_embd,
                expected: format!("{} heads of {}", self.n_heads, self.head_dim),
            });
        }
        Ok(())
    }
}
