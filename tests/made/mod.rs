//! Models of any shape, made in memory with random weights that leave nothing hidden: biases and
//! sinks as large as what they are added to, attention that prefers some keys, gates that clamp.

#![allow(dead_code)] // every test binary uses a part of it

use ironwarp::Gguf;
use ironwarp::gguf::{TensorInfo, Writer};
use kernels_gpu::quant::{self, Format};
use std::io::Write;

/// What a model is made from.
#[derive(Clone, Debug)]
pub struct Shape {
    pub arch: &'static str,
    pub n_layers: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub n_vocab: usize,
    pub context: usize,
    /// Window of even layers (gpt-oss); 0: none.
    pub window: usize,
    /// Experts, and how many a token uses (gpt-oss).
    pub experts: (usize, usize),
    /// Whether the embedding is the output matrix.
    pub tied: bool,
    /// Biases where the architecture does not demand them.
    pub biases: bool,
    pub rope_base: f32,
    /// Columns of a head that turn; none: not in the file.
    pub rot_dim: Option<usize>,
    pub scaling: Scaling,
    /// Further keys, without the architecture, of numbers in f32 and u32.
    pub floats: &'static [(&'static str, f32)],
    pub counts: &'static [(&'static str, u32)],
    /// Matrices take them in turn, each the first that fits its rows.
    pub formats: &'static [Format],
    pub seed: u64,
}

/// How rotary positions are scaled.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    None,
    Linear(f32),
    /// Llama 3's divisors, this the largest.
    Divisors(f32),
    /// Factor and original context.
    Yarn(f32, u32),
}

/// A small Llama to start from.
pub const LLAMA: Shape = Shape {
    arch: "llama",
    n_layers: 2,
    n_embd: 64,
    n_ff: 96,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 32,
    n_vocab: 100,
    context: 320,
    window: 0,
    experts: (0, 0),
    tied: false,
    biases: false,
    rope_base: 10_000.0,
    rot_dim: None,
    scaling: Scaling::None,
    floats: &[],
    counts: &[],
    formats: &[Format::F32],
    seed: 1,
};

/// A small gpt-oss to start from.
pub const GPT_OSS: Shape = Shape {
    arch: "gpt-oss",
    window: 8,
    experts: (4, 2),
    rope_base: 150_000.0,
    scaling: Scaling::Yarn(32.0, 4096),
    ..LLAMA
};

/// A small GPT-2 to start from.
pub const GPT2: Shape =
    Shape { arch: "gpt2", n_kv_heads: 4, head_dim: 16, n_ff: 256, tied: true, ..LLAMA };

const FLOATS: &[Format] = &[Format::F32, Format::BF16, Format::F16];
const BLOCKS_OF_32: &[Format] = {
    use Format::*;
    &[Q8_0, Q5_1, Q4_0, BF16, Q5_0, Q4_1, MXFP4]
};
const BLOCKS_OF_256: &[Format] = {
    use Format::*;
    &[Q4_K, Q6_K, Q2_K, Q5_0, Q3_K, Q8_0, Q5_K]
};

impl Shape {
    /// Any shape: nothing is chosen but that it is small, and not so small that rows come out near
    /// zero by chance.
    pub fn any(seed: u64) -> Shape {
        let random = &mut Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
        let base = random.pick(&[&LLAMA, &GPT_OSS, &GPT2]).clone();
        let (formats, unit) = random.pick(&[(FLOATS, 1), (BLOCKS_OF_32, 32), (BLOCKS_OF_256, 256)]);
        let wide = |random: &mut Random| match unit {
            1 => random.within(8, 150),
            unit => unit * random.within(1, 256 / unit),
        };
        let n_kv_heads = random.within(1, 3);
        let group = random.pick(&[1, 1, 2, 3, 4, 5, 7, 8, 16, 20]);
        let head_dim = 8 * random.pick(&[1, 2, 3, 4, 5, 8, 8, 10, 12, 16, 20, 24, 32]);
        let turning = 2 * random.within(1, head_dim / 2);
        let experts = random.within(1, 20);
        let mut shape = Shape {
            n_layers: random.within(1, 3),
            n_embd: wide(random),
            n_ff: wide(random),
            n_heads: n_kv_heads * group,
            n_kv_heads,
            head_dim,
            n_vocab: random.within(16, 300),
            experts: (experts, random.within(1, experts.min(8))),
            window: random.within(0, 40),
            tied: random.pick(&[true, false]),
            biases: random.pick(&[true, false]),
            rope_base: random.pick(&[100.0, 10_000.0, 500_000.0]),
            rot_dim: random.pick(&[None, Some(turning)]),
            scaling: random.pick(&[
                Scaling::None,
                Scaling::Linear(2.5),
                Scaling::Divisors(8.0),
                Scaling::Yarn(3.0, 100),
                Scaling::Yarn(32.0, 4096),
            ]),
            formats,
            seed,
            ..base
        };
        if shape.arch == "gpt2" {
            shape.n_heads = random.within(1, 5);
            shape.n_kv_heads = shape.n_heads;
            shape.head_dim = head_dim.min(64);
            shape.n_embd = shape.n_heads * shape.head_dim;
        }
        if shape.arch != "gpt-oss" {
            (shape.experts, shape.window) = ((0, 0), 0);
        }
        shape
    }

    /// The model.
    pub fn gguf(&self) -> Gguf {
        let mut writer = Writer::new("a made model");
        self.metadata(&mut writer).unwrap();
        let plans = self.plans();
        for (turn, plan) in plans.iter().enumerate() {
            let dims: Vec<u64> = plan.dims.iter().map(|&d| d as u64).collect();
            let format = if plan.matrix { self.format(turn, plan.dims[0]) } else { Format::F32 };
            writer.tensor(&plan.name, format, &dims).unwrap();
        }
        let mut random = Random(self.seed);
        let mut plans = plans.iter();
        let mut bytes = Vec::new();
        let fill = |info: &TensorInfo, out: &mut dyn Write| {
            let plan = plans.next().unwrap();
            for row in 0..info.n_rows() {
                let weights: Vec<f32> = (0..info.n_cols() as usize)
                    .map(|col| match &plan.values {
                        Values::Random { mean, sigma } => mean + sigma * random.normal(),
                        Values::Exactly(values) => values[row as usize * plan.dims[0] + col],
                    })
                    .collect();
                let mut row = Vec::new();
                quant::encode_row(info.format(), &weights, &mut row);
                out.write_all(&row)?;
            }
            Ok(())
        };
        writer.write(&mut bytes, fill).unwrap();
        Gguf::parse(bytes, "a made model").unwrap()
    }

    fn format(&self, turn: usize, n_cols: usize) -> Format {
        let n = self.formats.len();
        (0..n)
            .map(|i| self.formats[(turn + i) % n])
            .find(|format| n_cols.is_multiple_of(format.block_elems()))
            .unwrap_or(Format::F16)
    }

    fn metadata(&self, writer: &mut Writer) -> ironwarp::Result<()> {
        let arch = self.arch;
        let key = |tail: &str| format!("{arch}.{tail}");
        writer.entry("general.architecture", arch)?;
        let mut counts = vec![
            ("block_count", self.n_layers),
            ("context_length", self.context),
            ("embedding_length", self.n_embd),
            ("feed_forward_length", self.n_ff),
            ("attention.head_count", self.n_heads),
        ];
        if arch != "gpt2" {
            counts.push(("attention.head_count_kv", self.n_kv_heads));
        }
        if arch == "gpt-oss" || self.head_dim * self.n_heads != self.n_embd {
            counts.push(("attention.key_length", self.head_dim));
            counts.push(("attention.value_length", self.head_dim));
        }
        if arch == "gpt-oss" {
            counts.push(("expert_count", self.experts.0));
            counts.push(("expert_used_count", self.experts.1));
            counts.push(("expert_feed_forward_length", self.n_ff));
            counts.push(("attention.sliding_window", self.window));
        }
        if let Some(rot_dim) = self.rot_dim {
            counts.push(("rope.dimension_count", rot_dim));
        }
        for (tail, count) in counts {
            writer.entry(&key(tail), &(count as u32))?;
        }
        self.floats.iter().try_for_each(|(tail, value)| writer.entry(&key(tail), value))?;
        self.counts.iter().try_for_each(|(tail, value)| writer.entry(&key(tail), value))?;
        if arch == "gpt2" {
            return writer.entry("gpt2.attention.layer_norm_epsilon", &1e-5f32);
        }
        writer.entry(&key("attention.layer_norm_rms_epsilon"), &1e-5f32)?;
        writer.entry(&key("rope.freq_base"), &self.rope_base)?;
        match self.scaling {
            Scaling::None | Scaling::Divisors(_) => {}
            Scaling::Linear(factor) => {
                writer.entry(&key("rope.scaling.type"), "linear")?;
                writer.entry(&key("rope.scaling.factor"), &factor)?;
            }
            Scaling::Yarn(factor, original) => {
                writer.entry(&key("rope.scaling.type"), "yarn")?;
                writer.entry(&key("rope.scaling.factor"), &factor)?;
                writer.entry(&key("rope.scaling.original_context_length"), &original)?;
            }
        }
        Ok(())
    }

    fn plans(&self) -> Vec<Plan> {
        let mut plans = Plans(Vec::new());
        let (embd, ff) = (self.n_embd, self.n_ff);
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        plans.table("token_embd.weight", &[embd, self.n_vocab]);
        if self.arch == "gpt2" {
            plans.table("position_embd.weight", &[embd, self.context]);
        }
        if let Scaling::Divisors(most) = self.scaling {
            let n = self.rot_dim.unwrap_or(self.head_dim) / 2;
            let divisor = |i: usize| 1.0 + (most - 1.0) * i as f32 / n as f32;
            plans.exactly("rope_freqs.weight", (0..n).map(divisor).collect());
        }
        for layer in 0..self.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let gpt2 = self.arch == "gpt2";
            plans.norm(&name("attn_norm"), embd, gpt2);
            let biases = self.biases || self.arch != "llama";
            if gpt2 {
                plans.linear(&name("attn_qkv"), &[embd, q + 2 * kv], 1.5, biases);
            } else {
                plans.linear(&name("attn_q"), &[embd, q], 1.5, biases);
                plans.linear(&name("attn_k"), &[embd, kv], 1.5, biases);
                plans.linear(&name("attn_v"), &[embd, kv], 1.0, biases);
            }
            plans.linear(&name("attn_output"), &[q, embd], 1.0, biases);
            if self.arch == "gpt-oss" {
                plans.vector(&name("attn_sinks.weight"), &[self.n_heads], 0.0, 1.0);
                plans.norm(&name("post_attention_norm"), embd, false);
                let experts = self.experts.0;
                let router = Values::Random { mean: 0.0, sigma: 2.0 / (embd as f32).sqrt() };
                plans.push(&name("ffn_gate_inp.weight"), &[embd, experts], false, router);
                plans.vector(&name("ffn_gate_inp.bias"), &[experts], 0.0, 0.5);
                // Some of the gate's outputs lie beyond the clamp at 7.
                plans.linear(&name("ffn_gate_exps"), &[embd, ff, experts], 4.0, true);
                plans.linear(&name("ffn_up_exps"), &[embd, ff, experts], 4.0, true);
                plans.linear(&name("ffn_down_exps"), &[ff, embd, experts], 0.3, true);
                continue;
            }
            plans.norm(&name("ffn_norm"), embd, gpt2);
            if self.arch == "llama" {
                plans.linear(&name("ffn_gate"), &[embd, ff], 1.5, biases);
            }
            plans.linear(&name("ffn_up"), &[embd, ff], 1.5, biases);
            plans.linear(&name("ffn_down"), &[ff, embd], 1.0, biases);
        }
        plans.norm("output_norm", embd, self.arch == "gpt2");
        if !self.tied {
            plans.linear("output", &[embd, self.n_vocab], 2.0, false);
        }
        plans.0
    }
}

struct Plan {
    name: String,
    dims: Vec<usize>,
    /// Whether the file's formats apply; F32 else.
    matrix: bool,
    values: Values,
}

enum Values {
    Random { mean: f32, sigma: f32 },
    Exactly(Vec<f32>),
}

struct Plans(Vec<Plan>);

impl Plans {
    fn push(&mut self, name: &str, dims: &[usize], matrix: bool, values: Values) {
        self.0.push(Plan { name: name.to_owned(), dims: dims.to_vec(), matrix, values });
    }

    fn vector(&mut self, name: &str, dims: &[usize], mean: f32, sigma: f32) {
        self.push(name, dims, false, Values::Random { mean, sigma });
    }

    fn exactly(&mut self, name: &str, values: Vec<f32>) {
        self.push(name, &[values.len()], false, Values::Exactly(values));
    }

    /// Rows that are looked up.
    fn table(&mut self, name: &str, dims: &[usize]) {
        self.push(name, dims, true, Values::Random { mean: 0.0, sigma: 1.0 });
    }

    fn norm(&mut self, name: &str, len: usize, bias: bool) {
        self.vector(&format!("{name}.weight"), &[len], 1.0, 0.3);
        if bias {
            self.vector(&format!("{name}.bias"), &[len], 0.0, 0.3);
        }
    }

    /// A matrix whose outputs have the deviation `size` where its inputs have 1.
    fn linear(&mut self, name: &str, dims: &[usize], size: f32, bias: bool) {
        let sigma = size / (dims[0] as f32).sqrt();
        self.push(&format!("{name}.weight"), dims, true, Values::Random { mean: 0.0, sigma });
        if bias {
            self.vector(&format!("{name}.bias"), &dims[1..], 0.0, 0.5);
        }
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len() - 1)]
    }

    /// Mean 0, deviation 1: the sum of twelve uniform numbers.
    fn normal(&mut self) -> f32 {
        let uniform = |random: &mut Random| (random.next() >> 40) as f32 / (1u32 << 24) as f32;
        (0..12).map(|_| uniform(self)).sum::<f32>() - 6.0
    }

    /// Tokens below `n_vocab`.
    pub fn tokens(&mut self, n: usize, n_vocab: usize) -> Vec<u32> {
        (0..n).map(|_| (self.next() % n_vocab as u64) as u32).collect()
    }
}
