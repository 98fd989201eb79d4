//! The table of benches: the stages of three models in the formats of their usual files.

use super::Make;
use super::attention::Layer;
use super::experts::{Mixture, Stage};
use super::normed::NormedDense;
use super::products::{Dense, DenseGated, To};
use super::rows::{Choice, Embedding, Normed};
use super::stock::NORM_EPS;
use crate::device::Device;
use crate::model::Config;
use crate::model::arch::{self, Architecture};
use crate::model::config::{Experts, Rope, Scaling};
use crate::ops::moe::ONE_BY_ONE;
use crate::ops::normed::norms_itself;
use crate::synth::Shape;
use kernels_gpu::quant::Format::{self, F16, F32, MXFP4, Q4_K, Q5_0, Q6_K, Q8_0};

/// The models, by their names in `synth`, and how many tokens they are given.
struct Sizes {
    gpt_oss: &'static str,
    llama: &'static str,
    gpt2: &'static str,
    prompt: usize,
    /// Tokens that are in the cache.
    depths: [usize; 2],
    batch: usize,
}

/// Of a card.
const REAL: Sizes = Sizes {
    gpt_oss: "gpt-oss-20b",
    llama: "llama-3.1-8b",
    gpt2: "gpt2-xl",
    prompt: 512,
    depths: [4096, 32_768],
    batch: 4,
};

/// Of the emulator, where everything takes thousands of times as long.
const SMALL: Sizes = Sizes {
    gpt_oss: "gpt-oss-tiny",
    llama: "llama-tiny",
    gpt2: "gpt2-tiny",
    prompt: 36, // more than are routed and grouped in one launch
    depths: [40, 300],
    batch: 3,
};

/// The entries, in the order of their run: shape, and what makes it.
struct Entries(Vec<(String, Make)>);

/// What every bench has in its name and is made from.
pub(super) fn entries(device: &Device) -> Vec<(String, Make)> {
    let sizes = if device.is_emulator() { SMALL } else { REAL };
    let mut entries = Entries(Vec::new());
    entries.gpt_oss(&sizes);
    entries.llama(&sizes);
    entries.gpt2(device, &sizes);
    entries.0
}

/// `b1` for a token of each of so many sequences, `pp512` for those of a prompt.
fn tokens_name(n_tokens: usize, sizes: &Sizes) -> String {
    if n_tokens == sizes.prompt { format!("pp{n_tokens}") } else { format!("b{n_tokens}") }
}

/// A shape of `synth`. Its names are those of this table.
fn shape(model: &str) -> Shape {
    // invariant: a test makes the entries of both tables.
    Shape::named(model).unwrap_or_else(|| unreachable!("{model} is a model of synth"))
}

/// A model of one layer, with a window or without.
fn one_layer(shape: &Shape, architecture: &'static Architecture, window: Option<usize>) -> Config {
    let [n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, max_context] = [
        shape.n_embd,
        shape.n_heads,
        shape.n_kv_heads,
        shape.head_dim,
        shape.n_ff,
        shape.n_vocab,
        shape.n_ctx,
    ]
    .map(|size| size as usize);
    // The frequencies are the bench's own.
    let rope = Rope { rot_dim: head_dim, base: 1e4, scaling: Scaling::None, attention_factor: 1.0 };
    Config {
        architecture,
        n_layers: 1,
        n_embd,
        n_heads,
        n_kv_heads,
        head_dim,
        n_ff,
        n_vocab,
        max_context,
        norm_eps: NORM_EPS,
        rope: architecture.rope.map(|_| rope),
        window,
        window_period: 2,
        experts: None,
    }
}

impl Entries {
    fn add(&mut self, shape: String, make: Make) {
        self.0.push((shape, make));
    }

    fn dense(&mut self, sizes: &Sizes, model: &str, part: &str, plan: Dense) {
        let ([n_cols, n_rows], tokens) = (plan.dims, tokens_name(plan.n_tokens, sizes));
        let name = format!("{model} {part} {n_rows}x{n_cols} {tokens}");
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    fn gated(&mut self, sizes: &Sizes, model: &str, plan: DenseGated) {
        let ([n_cols, n_rows], tokens) = (plan.dims, tokens_name(plan.n_tokens, sizes));
        let name = format!("{model} gate, up 2x{n_rows}x{n_cols} {tokens}");
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    fn attention(&mut self, model: &str, config: &Config, (depth, n_tokens, batch): Step) {
        let has_sinks = config.architecture.experts;
        let config = config.clone();
        let part = if config.window.is_some() { "window" } else { "attention" };
        let tokens = if n_tokens > 1 { format!("pp{n_tokens}") } else { format!("b{batch}") };
        let name = format!("{model} {part} {tokens} @ d{depth}");
        let plan = Layer { config, has_sinks, depth, batch, n_tokens };
        self.add(name, Box::new(move |stock| plan.clone().make(stock)));
    }

    fn embedding(&mut self, sizes: &Sizes, model: &str, plan: Embedding) {
        let Embedding { n_vocab, n_embd, n_tokens, .. } = plan;
        let tokens = tokens_name(n_tokens, sizes);
        let name = format!("{model} embedding {n_vocab}x{n_embd} {tokens}");
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    fn norm(&mut self, sizes: &Sizes, model: &str, plan: Normed) {
        let tokens = tokens_name(plan.n_rows, sizes);
        let name = format!("{model} norm {} {tokens}", plan.n_cols);
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    fn choice(&mut self, model: &str, plan: Choice) {
        let how = match plan.temperature {
            0.0 => "greedy".to_owned(),
            t => format!("temperature {t} top-p {}", plan.top_p),
        };
        let name = format!("{model} {how} of {} b{}", plan.n_vocab, plan.n_rows);
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    /// Experts in MXFP4 and all else in Q8_0, as it is published; products of mixes with smaller ones.
    fn gpt_oss(&mut self, sizes: &Sizes) {
        let (model, shape) = (sizes.gpt_oss, shape(sizes.gpt_oss));
        let full = one_layer(&shape, &arch::GPT_OSS, None);
        let window = Config { window: Some(shape.window as usize), ..full.clone() };
        let (n_embd, n_ff, n_vocab) = (full.n_embd, full.n_ff, full.n_vocab);
        let (q_cols, kv_cols) = (full.q_cols(), full.kv_cols());
        let experts =
            Experts { count: shape.n_experts as usize, used: shape.n_experts_used as usize };
        for n_tokens in [1, sizes.batch, sizes.prompt] {
            let normed = |format, n_rows, bias| {
                let dims = [n_embd, n_rows];
                Dense { format, dims, n_tokens, normed: true, bias, to: To::Rows }
            };
            let back = |format| {
                let dims = [q_cols, n_embd];
                Dense { format, dims, n_tokens, normed: false, bias: true, to: To::Norm }
            };
            self.dense(sizes, model, "qkv", normed(Q8_0, q_cols + 2 * kv_cols, true));
            self.dense(sizes, model, "attention output", back(Q8_0));
            self.dense(sizes, model, "router", normed(F32, experts.count, true));
            if n_tokens < sizes.prompt {
                self.dense(sizes, model, "qk", normed(Q5_0, q_cols + kv_cols, true));
                self.dense(sizes, model, "head", normed(Q8_0, n_vocab, false));
            }
            for stage in [Stage::Route, Stage::Gated, Stage::Down, Stage::Combine] {
                // One or two are routed and summed within the products.
                if n_tokens > ONE_BY_ONE || matches!(stage, Stage::Gated | Stage::Down) {
                    let activation = full.architecture.activation;
                    let format = MXFP4;
                    let plan =
                        Mixture { stage, format, n_embd, n_ff, experts, n_tokens, activation };
                    self.mixture(sizes, model, plan);
                }
            }
            self.embedding(sizes, model, Embedding { format: Q8_0, n_vocab, n_embd, n_tokens });
        }
        for depth in sizes.depths {
            self.attention(model, &full, (depth, 1, 1));
        }
        let [depth, _] = sizes.depths;
        self.attention(model, &full, (depth, 1, sizes.batch));
        self.attention(model, &window, (depth, 1, 1));
        self.attention(model, &window, (depth, 1, sizes.batch));
        for depth in [0, depth] {
            self.attention(model, &full, (depth, sizes.prompt, 1));
            self.attention(model, &window, (depth, sizes.prompt, 1));
        }
        for n_rows in [1, sizes.prompt] {
            self.norm(sizes, model, Normed { n_cols: n_embd, n_rows, rms: true });
        }
        for n_rows in [1, sizes.batch] {
            self.choice(model, Choice { n_vocab, n_rows, temperature: 0.0, top_p: 1.0 });
            self.choice(model, Choice { n_vocab, n_rows, temperature: 0.8, top_p: 0.95 });
        }
    }

    fn mixture(&mut self, sizes: &Sizes, model: &str, plan: Mixture) {
        let Mixture { n_embd, n_ff, experts, n_tokens, .. } = plan;
        let Experts { count, used } = experts;
        let part = match plan.stage {
            Stage::Route => format!("routing {used} of {count}"),
            Stage::Gated => format!("experts gate, up {used} of {count} 2x{n_ff}x{n_embd}"),
            Stage::Down => format!("experts down {used} of {count} {n_embd}x{n_ff}"),
            Stage::Combine => format!("sum of experts {used}x{n_embd}"),
        };
        let name = format!("{model} {part} {}", tokens_name(n_tokens, sizes));
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    /// Q4_K_M.
    fn llama(&mut self, sizes: &Sizes) {
        let (model, shape) = (sizes.llama, shape(sizes.llama));
        let config = one_layer(&shape, &arch::LLAMA, None);
        let (n_embd, n_ff, n_vocab) = (config.n_embd, config.n_ff, config.n_vocab);
        let (q_cols, kv_cols) = (config.q_cols(), config.kv_cols());
        for n_tokens in [1, sizes.batch, sizes.prompt] {
            let product = |format: Format, dims, normed, to| Dense {
                format,
                dims,
                n_tokens,
                normed,
                bias: false,
                to,
            };
            let is_prompt = n_tokens == sizes.prompt;
            let (rows, norm) = (To::Rows, To::Norm);
            let qk = product(Q4_K, [n_embd, q_cols + kv_cols], true, rows);
            self.dense(sizes, model, "qk", qk);
            if !is_prompt {
                let v = product(Q6_K, [n_embd, kv_cols], true, rows);
                self.dense(sizes, model, "v", v);
                let output = product(Q4_K, [q_cols, n_embd], false, norm);
                self.dense(sizes, model, "attention output", output);
                let head = product(Q6_K, [n_embd, n_vocab], true, rows);
                self.dense(sizes, model, "head", head);
            }
            let dims = [n_embd, n_ff];
            self.gated(sizes, model, DenseGated { format: Q4_K, dims, n_tokens });
            for format in [Q4_K, Q6_K] {
                let down = product(format, [n_ff, n_embd], false, norm);
                self.dense(sizes, model, "down", down);
            }
        }
        let [depth, _] = sizes.depths;
        self.attention(model, &config, (depth, 1, 1));
        self.attention(model, &config, (depth, sizes.prompt, 1));
    }

    fn normed(&mut self, model: &str, part: &str, plan: NormedDense) {
        let [n_cols, n_rows] = plan.dims;
        let name = format!("{model} norm, {part} {n_rows}x{n_cols} b1");
        self.add(name, Box::new(move |stock| plan.make(stock)));
    }

    /// F16. A token's products do the norms before them themselves, where the device has blocks enough for it.
    fn gpt2(&mut self, device: &Device, sizes: &Sizes) {
        let (model, shape) = (sizes.gpt2, shape(sizes.gpt2));
        let config = one_layer(&shape, &arch::GPT2, None);
        let (n_embd, n_ff, n_vocab) = (config.n_embd, config.n_ff, config.n_vocab);
        for n_tokens in [1, sizes.prompt] {
            let product =
                |dims, bias, to| Dense { format: F16, dims, n_tokens, normed: false, bias, to };
            for (part, n_rows, to) in [("qkv", 3 * n_embd, To::Rows), ("up", n_ff, To::Gelu)] {
                let (format, dims) = (F16, [n_embd, n_rows]);
                if n_tokens == 1 && norms_itself(device, (format, n_embd), n_rows) {
                    self.normed(model, part, NormedDense { format, dims, to });
                } else {
                    self.dense(sizes, model, part, product(dims, true, to));
                }
            }
            self.dense(sizes, model, "down", product([n_ff, n_embd], true, To::Stream));
            if n_tokens == 1 {
                let head = product([n_embd, n_vocab], false, To::Rows);
                self.dense(sizes, model, "head", head);
            }
            self.norm(sizes, model, Normed { n_cols: n_embd, n_rows: n_tokens, rms: false });
        }
        let depth = sizes.prompt;
        self.attention(model, &config, (depth, 1, 1));
    }
}

/// Tokens in the cache, those of each sequence that come, and sequences.
type Step = (usize, usize, usize);

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_gpu::gpu::emu::Mode;
    use std::collections::BTreeSet;

    #[test]
    fn shapes_are_told_apart_and_known() {
        for sizes in [REAL, SMALL] {
            let mut entries = Entries(Vec::new());
            entries.gpt_oss(&sizes);
            entries.llama(&sizes);
            entries.gpt2(&Device::emulator(Mode::FAST), &sizes);
            let names: BTreeSet<&str> = entries.0.iter().map(|(name, _)| name.as_str()).collect();
            // Two formats of one shape have different kernels.
            let n_same = 3; // llama's down
            assert_eq!(names.len() + n_same, entries.0.len());
        }
    }
}
