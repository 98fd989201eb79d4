//! Every architecture in plain f64 loops over whole sequences, from the papers and the reference
//! models. It shares nothing with the engine but the file's reader and the decoding of rows, which
//! `tests/quant.rs` holds to GGML bit for bit. Slow and obvious.

#![allow(dead_code)] // every test binary uses a part of it

mod rope;

use ironwarp::Gguf;
use kernels_gpu::quant;
use rope::Rope;
use std::collections::HashMap;

/// A row a token.
pub type Rows = Vec<Vec<f64>>;

#[derive(Clone, Copy, PartialEq)]
enum Arch {
    Gpt2,
    Llama,
    GptOss,
}

/// A model in f64.
pub struct Plain {
    arch: Arch,
    pub n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    eps: f64,
    /// 0: none.
    window: usize,
    /// The last of so many layers has no window.
    period: usize,
    experts_used: usize,
    rope: Option<Rope>,
    /// Every tensor, row after row.
    weights: HashMap<String, Vec<f64>>,
}

impl Plain {
    pub fn new(gguf: &Gguf, yarn_truncate: bool) -> Plain {
        let name = gguf.require_str("general.architecture").unwrap();
        let arch = match name {
            "gpt2" => Arch::Gpt2,
            "llama" => Arch::Llama,
            "gpt-oss" => Arch::GptOss,
            other => panic!("{other}"),
        };
        let count = |key: &str| gguf.u32(&format!("{name}.{key}")).unwrap().map(|n| n as usize);
        let eps = match arch {
            Arch::Gpt2 => "gpt2.attention.layer_norm_epsilon".to_owned(),
            _ => format!("{name}.attention.layer_norm_rms_epsilon"),
        };
        let weights: HashMap<_, _> = gguf
            .tensors()
            .iter()
            .map(|info| {
                let mut row = vec![0f32; info.n_cols() as usize];
                let rows = gguf.tensor_bytes(info).chunks_exact(info.row_bytes() as usize);
                let values = rows.flat_map(|bytes| {
                    quant::decode_row(info.format(), bytes, &mut row);
                    row.iter().map(|&v| v as f64).collect::<Vec<_>>()
                });
                (info.name().to_owned(), values.collect())
            })
            .collect();
        let n_heads = count("attention.head_count").unwrap();
        let n_embd = count("embedding_length").unwrap();
        let head_dim = count("attention.key_length").unwrap_or(n_embd / n_heads);
        let divisors = weights.get("rope_freqs.weight").map(Vec::as_slice);
        let rope = match arch {
            Arch::Gpt2 => None,
            Arch::Llama => Some(Rope::new(gguf, head_dim, divisors, true, yarn_truncate)),
            Arch::GptOss => Some(Rope::new(gguf, head_dim, divisors, false, yarn_truncate)),
        };
        Plain {
            arch,
            n_layers: count("block_count").unwrap(),
            n_heads,
            n_kv_heads: count("attention.head_count_kv").unwrap_or(n_heads),
            head_dim,
            eps: gguf.require_f32(&eps).unwrap().into(),
            window: count("attention.sliding_window").unwrap_or(0),
            period: count("attention.sliding_window_pattern").unwrap_or(2),
            experts_used: count("expert_used_count").unwrap_or(0),
            rope,
            weights,
        }
    }

    fn get(&self, name: &str) -> Option<&[f64]> {
        self.weights.get(name).map(Vec::as_slice)
    }

    fn weight(&self, name: &str) -> &[f64] {
        self.get(name).unwrap_or_else(|| panic!("{name}"))
    }

    /// `w x + b` of matrix number `index` of a tensor, a row of it at a time.
    fn linear_of(&self, name: &str, index: usize, n_outputs: usize, x: &[f64]) -> Vec<f64> {
        let weight = &self.weight(&format!("{name}.weight"))[index * n_outputs * x.len()..];
        let bias = self.get(&format!("{name}.bias")).map(|bias| &bias[index * n_outputs..]);
        (0..n_outputs)
            .map(|row| {
                let weights = &weight[row * x.len()..(row + 1) * x.len()];
                dot(weights, x) + bias.map_or(0.0, |bias| bias[row])
            })
            .collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let n_outputs = self.weight(&format!("{name}.weight")).len() / x.len();
        self.linear_of(name, 0, n_outputs, x)
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.weight(&format!("{name}.weight"));
        let n = x.len() as f64;
        if self.arch != Arch::Gpt2 {
            let rms = (x.iter().map(|v| v * v).sum::<f64>() / n + self.eps).sqrt();
            return x.iter().zip(weight).map(|(v, w)| v / rms * w).collect();
        }
        let bias = self.weight(&format!("{name}.bias"));
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let deviation = (variance + self.eps).sqrt();
        (0..x.len()).map(|i| (x[i] - mean) / deviation * weight[i] + bias[i]).collect()
    }

    /// The residual stream of tokens at positions 0, 1, .. before the first layer.
    pub fn embed(&self, tokens: &[u32]) -> Rows {
        let table = self.weight("token_embd.weight");
        let n_embd = self.weight("output_norm.weight").len();
        let row = |table: &[f64], i: usize| table[i * n_embd..(i + 1) * n_embd].to_vec();
        let embed = |(position, &token): (usize, &u32)| {
            let mut x = row(table, token as usize);
            if let Some(positions) = self.get("position_embd.weight") {
                add(&mut x, &row(positions, position));
            }
            x
        };
        tokens.iter().enumerate().map(embed).collect()
    }

    /// The residual stream after layer `index`, from that before it.
    pub fn layer(&self, index: usize, stream: &Rows) -> Rows {
        self.layer_with(index, stream, false)
    }

    /// As `layer`, but each token goes to the best expert that was not chosen in the place of the
    /// last one that was: what rounding makes of a tie.
    pub fn layer_with_runner_up(&self, index: usize, stream: &Rows) -> Rows {
        self.layer_with(index, stream, true)
    }

    fn layer_with(&self, index: usize, stream: &Rows, runner_up: bool) -> Rows {
        let name = |part: &str| format!("blk.{index}.{part}");
        let mut out = stream.clone();
        let attended = self.attention(index, stream);
        for (x, attended) in out.iter_mut().zip(attended) {
            add(x, &self.linear(&name("attn_output"), &attended));
            let ffn_norm =
                if self.arch == Arch::GptOss { "post_attention_norm" } else { "ffn_norm" };
            let normed = self.norm(&name(ffn_norm), x);
            let ffn = match self.arch {
                Arch::GptOss => self.experts(index, &normed, runner_up),
                _ => self.feed_forward(index, &normed),
            };
            add(x, &ffn);
        }
        out
    }

    fn attention(&self, index: usize, stream: &Rows) -> Rows {
        let name = |part: &str| format!("blk.{index}.{part}");
        let d = self.head_dim;
        let (q_cols, kv_cols) = (self.n_heads * d, self.n_kv_heads * d);
        let mut qkv: Vec<[Vec<f64>; 3]> = Vec::new();
        for (position, x) in stream.iter().enumerate() {
            let normed = self.norm(&name("attn_norm"), x);
            let [mut q, mut k, v] = if self.arch == Arch::Gpt2 {
                let all = self.linear(&name("attn_qkv"), &normed);
                [0..q_cols, q_cols..q_cols + kv_cols, q_cols + kv_cols..q_cols + 2 * kv_cols]
                    .map(|range| all[range].to_vec())
            } else {
                ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&name(part), &normed))
            };
            if let Some(rope) = &self.rope {
                q.chunks_mut(d).chain(k.chunks_mut(d)).for_each(|head| rope.turn(head, position));
            }
            qkv.push([q, k, v]);
        }
        let windowed = self.window > 0 && index % self.period != self.period - 1;
        let window = if windowed { self.window } else { usize::MAX };
        let sinks = self.get(&name("attn_sinks.weight"));
        let mut out = vec![vec![0.0; q_cols]; stream.len()];
        for (token, out) in out.iter_mut().enumerate() {
            let first = (token + 1).saturating_sub(window);
            for head in 0..self.n_heads {
                let kv = head / (self.n_heads / self.n_kv_heads) * d;
                let q = &qkv[token][0][head * d..(head + 1) * d];
                let score = |t: usize| dot(q, &qkv[t][1][kv..kv + d]) / (d as f64).sqrt();
                let mut scores: Vec<f64> = (first..=token).map(score).collect();
                // A sink takes its share and gives nothing.
                scores.extend(sinks.map(|sinks| sinks[head]));
                for (t, p) in (first..=token).zip(softmax(&scores)) {
                    for i in 0..d {
                        out[head * d + i] += p * qkv[t][2][kv + i];
                    }
                }
            }
        }
        out
    }

    fn feed_forward(&self, index: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let mut hidden = self.linear(&name("ffn_up"), x);
        if self.arch == Arch::Gpt2 {
            hidden.iter_mut().for_each(|v| *v = gelu(*v));
        } else {
            let gate = self.linear(&name("ffn_gate"), x);
            hidden.iter_mut().zip(gate).for_each(|(up, g)| *up *= g * sigmoid(g));
        }
        self.linear(&name("ffn_down"), &hidden)
    }

    /// Experts by falling router logit, and those logits.
    fn route(&self, index: usize, x: &[f64]) -> (Vec<usize>, Vec<f64>) {
        let logits = self.linear(&format!("blk.{index}.ffn_gate_inp"), x);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        (order, logits)
    }

    fn experts(&self, index: usize, x: &[f64], runner_up: bool) -> Vec<f64> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let (mut order, logits) = self.route(index, x);
        if runner_up {
            order.swap(self.experts_used - 1, self.experts_used);
        }
        let chosen = &order[..self.experts_used];
        let shares = softmax(&chosen.iter().map(|&e| logits[e]).collect::<Vec<_>>());
        let n_ff = self.weight(&name("ffn_up_exps.weight")).len() / logits.len() / x.len();
        let mut sum = vec![0.0; x.len()];
        for (&expert, share) in chosen.iter().zip(shares) {
            let gate = self.linear_of(&name("ffn_gate_exps"), expert, n_ff, x);
            let up = self.linear_of(&name("ffn_up_exps"), expert, n_ff, x);
            let hidden: Vec<f64> = gate.iter().zip(&up).map(|(&g, &u)| swiglu(g, u)).collect();
            let out = self.linear_of(&name("ffn_down_exps"), expert, x.len(), &hidden);
            add(&mut sum, &out.iter().map(|v| v * share).collect::<Vec<_>>());
        }
        sum
    }

    /// How far the last expert chosen is before the first one left out, for each token of a layer,
    /// relative to the size of the router's logits; infinite without a choice.
    pub fn margins(&self, index: usize, stream: &Rows) -> Vec<f64> {
        if self.arch != Arch::GptOss {
            return vec![f64::INFINITY; stream.len()];
        }
        let name = |part: &str| format!("blk.{index}.{part}");
        let attended = self.attention(index, stream);
        let margin = |(x, attended): (&Vec<f64>, Vec<f64>)| {
            let mut x = x.clone();
            add(&mut x, &self.linear(&name("attn_output"), &attended));
            let (order, logits) = self.route(index, &self.norm(&name("post_attention_norm"), &x));
            let size = (dot(&logits, &logits) / logits.len() as f64).sqrt();
            let chosen = logits[order[self.experts_used - 1]];
            let left_out = order.get(self.experts_used);
            left_out.map_or(f64::INFINITY, |&e| (chosen - logits[e]) / size)
        };
        stream.iter().zip(attended).map(margin).collect()
    }

    /// The final norm of each row.
    pub fn output_norm(&self, stream: &Rows) -> Rows {
        stream.iter().map(|x| self.norm("output_norm", x)).collect()
    }

    /// The logits of each row of the last layer's stream.
    pub fn head(&self, stream: &Rows) -> Rows {
        let output = if self.get("output.weight").is_some() { "output" } else { "token_embd" };
        self.output_norm(stream).iter().map(|x| self.linear(output, x)).collect()
    }

    /// The residual stream before the first layer and after each.
    pub fn streams(&self, tokens: &[u32]) -> Vec<Rows> {
        let mut streams = vec![self.embed(tokens)];
        for index in 0..self.n_layers {
            streams.push(self.layer(index, &streams[index]));
        }
        streams
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = x.iter().map(|v| (v - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// GPT-2's: the form with tanh.
fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

/// gpt-oss': the gate clamped from above, the other from both sides.
fn swiglu(gate: f64, up: f64) -> f64 {
    let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
    gate * sigmoid(1.702 * gate) * (up + 1.0)
}
