//! The tensors of each family: names, shapes, roles and spreads.

use super::blocks::Spread;
use super::mix::Role;
use super::shape::{Arch, Shape};

/// A tensor to be written.
pub(super) struct Plan {
    pub(super) name: String,
    /// GGML's order: the row length first.
    pub(super) dims: Vec<u64>,
    pub(super) role: Role,
    pub(super) layer: u32,
    pub(super) fill: Fill,
}

/// What a tensor holds.
pub(super) enum Fill {
    /// Random weights.
    Random(Spread),
    /// These numbers, as F32.
    Exactly(Vec<f32>),
}

/// Every tensor of a model, in the order of its file.
pub(super) fn plan(shape: &Shape) -> Vec<Plan> {
    let mut list = List { tensors: Vec::new(), layer: None };
    let [embd, vocab] = [shape.n_embd, shape.n_vocab].map(u64::from);
    let embedding = if shape.tied { Role::Output } else { Role::Embedding };
    list.matrix("token_embd.weight", &[embd, vocab], embedding);
    match shape.arch {
        Arch::Gpt2 => list.matrix("position_embd.weight", &[embd, shape.n_ctx.into()], Role::Plain),
        Arch::Llama => list.exactly("rope_freqs.weight", rope_freqs(shape)),
        Arch::GptOss => {}
    }
    for layer in 0..shape.n_layers {
        list.layer = Some(layer);
        match shape.arch {
            Arch::GptOss => list.gpt_oss_layer(shape),
            Arch::Gpt2 => list.gpt2_layer(shape),
            Arch::Llama => list.llama_layer(shape),
        }
    }
    list.layer = None;
    list.norm("output_norm.weight", embd);
    if shape.arch == Arch::Gpt2 {
        list.bias("output_norm.bias", &[embd]);
    }
    if !shape.tied {
        list.matrix("output.weight", &[embd, vocab], Role::Output);
    }
    list.tensors
}

struct List {
    tensors: Vec<Plan>,
    /// The layer that the next tensors belong to.
    layer: Option<u32>,
}

impl List {
    fn gpt_oss_layer(&mut self, shape: &Shape) {
        let [embd, ff, experts, heads] =
            [shape.n_embd, shape.n_ff, shape.n_experts, shape.n_heads].map(u64::from);
        let (q, kv) = widths(shape);
        self.norm("attn_norm.weight", embd);
        for (name, cols, rows, role) in [
            ("attn_q", embd, q, Role::Matrix),
            ("attn_k", embd, kv, Role::Matrix),
            ("attn_v", embd, kv, Role::Value),
            ("attn_output", q, embd, Role::AttnOutput),
        ] {
            self.matrix(&format!("{name}.weight"), &[cols, rows], role);
            self.bias(&format!("{name}.bias"), &[rows]);
        }
        // A sink is a logit; beside those of real keys, which are of order 1, half that.
        self.random("attn_sinks.weight", &[heads], Role::Plain, Spread { mean: 0.0, sigma: 0.5 });
        self.norm("post_attention_norm.weight", embd);
        self.matrix("ffn_gate_inp.weight", &[embd, experts], Role::Plain);
        self.bias("ffn_gate_inp.bias", &[experts]);
        for (name, cols, rows) in
            [("ffn_gate_exps", embd, ff), ("ffn_up_exps", embd, ff), ("ffn_down_exps", ff, embd)]
        {
            self.matrix(&format!("{name}.weight"), &[cols, rows, experts], Role::Experts);
            self.bias(&format!("{name}.bias"), &[rows, experts]);
        }
    }

    fn gpt2_layer(&mut self, shape: &Shape) {
        let [embd, ff] = [shape.n_embd, shape.n_ff].map(u64::from);
        self.norm("attn_norm.weight", embd);
        self.bias("attn_norm.bias", &[embd]);
        self.matrix("attn_qkv.weight", &[embd, 3 * embd], Role::Value);
        self.bias("attn_qkv.bias", &[3 * embd]);
        self.matrix("attn_output.weight", &[embd, embd], Role::AttnOutput);
        self.bias("attn_output.bias", &[embd]);
        self.norm("ffn_norm.weight", embd);
        self.bias("ffn_norm.bias", &[embd]);
        self.matrix("ffn_up.weight", &[embd, ff], Role::Matrix);
        self.bias("ffn_up.bias", &[ff]);
        self.matrix("ffn_down.weight", &[ff, embd], Role::Down);
        self.bias("ffn_down.bias", &[embd]);
    }

    fn llama_layer(&mut self, shape: &Shape) {
        let [embd, ff] = [shape.n_embd, shape.n_ff].map(u64::from);
        let (q, kv) = widths(shape);
        self.norm("attn_norm.weight", embd);
        self.matrix("attn_q.weight", &[embd, q], Role::Matrix);
        self.matrix("attn_k.weight", &[embd, kv], Role::Matrix);
        self.matrix("attn_v.weight", &[embd, kv], Role::Value);
        self.matrix("attn_output.weight", &[q, embd], Role::AttnOutput);
        self.norm("ffn_norm.weight", embd);
        self.matrix("ffn_gate.weight", &[embd, ff], Role::Matrix);
        self.matrix("ffn_up.weight", &[embd, ff], Role::Matrix);
        self.matrix("ffn_down.weight", &[ff, embd], Role::Down);
    }

    /// Weights of deviation 1 / sqrt(row length): a product with a normed row stays of order 1.
    fn matrix(&mut self, name: &str, dims: &[u64], role: Role) {
        self.random(name, dims, role, Spread { mean: 0.0, sigma: 1.0 / (dims[0] as f32).sqrt() });
    }

    fn norm(&mut self, name: &str, len: u64) {
        self.random(name, &[len], Role::Plain, Spread { mean: 1.0, sigma: 0.1 });
    }

    fn bias(&mut self, name: &str, dims: &[u64]) {
        self.random(name, dims, Role::Plain, Spread { mean: 0.0, sigma: 0.02 });
    }

    fn random(&mut self, name: &str, dims: &[u64], role: Role, spread: Spread) {
        self.push(name, dims, role, Fill::Random(spread));
    }

    fn exactly(&mut self, name: &str, values: Vec<f32>) {
        self.push(name, &[values.len() as u64], Role::Plain, Fill::Exactly(values));
    }

    fn push(&mut self, name: &str, dims: &[u64], role: Role, fill: Fill) {
        let name = self.layer.map_or(name.to_string(), |layer| format!("blk.{layer}.{name}"));
        let layer = self.layer.unwrap_or(0);
        self.tensors.push(Plan { name, dims: dims.to_vec(), role, layer, fill });
    }
}

/// Rows of the query matrix, and of the key and value matrices.
fn widths(shape: &Shape) -> (u64, u64) {
    let head = u64::from(shape.head_dim);
    (u64::from(shape.n_heads) * head, u64::from(shape.n_kv_heads) * head)
}

/// Llama 3's divisors of the rotary frequencies: 1 for wavelengths below 8192 / 4 positions,
/// `rope_factor` for those above 8192, and between them a blend.
fn rope_freqs(shape: &Shape) -> Vec<f32> {
    const ORIGINAL_CTX: f64 = 8192.0;
    const HIGH: f64 = 4.0;
    let dim = f64::from(shape.head_dim);
    (0..shape.head_dim / 2)
        .map(|i| {
            let frequency = super::LLAMA_ROPE_BASE.powf(-2.0 * f64::from(i) / dim);
            let turns = ORIGINAL_CTX * frequency / std::f64::consts::TAU;
            let smooth = ((turns - 1.0) / (HIGH - 1.0)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / f64::from(shape.rope_factor) + smooth)) as f32
        })
        .collect()
}
