//! A model's weights on the device, and the way they get there: chunk by chunk from the mapped
//! file, repacked by a kernel, so that host memory never holds more than a chunk.

use super::arch::NormKind;
use super::config::{Config, model_error};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::gguf::{Gguf, TensorInfo};
use crate::ops::weights::{matrix_words, repack};
use crate::tensor::Matrix;
use kernels_gpu::gpu::GlobalMut;
use kernels_gpu::quant::{self, Format};
use kernels_gpu::tile::TILE_ROWS;

/// Bytes of the file that are uploaded at a time.
const CHUNK_BYTES: usize = 32 << 20;

/// Weights of a norm.
#[derive(Debug)]
pub struct Norm {
    /// [n_embd]
    pub weight: Buffer<f32>,
    /// [n_embd]
    pub bias: Option<Buffer<f32>>,
}

/// A matrix with its bias.
#[derive(Debug)]
pub struct Linear {
    /// [experts, outputs, inputs]
    pub weight: Matrix,
    /// [experts, outputs]
    pub bias: Option<Buffer<f32>>,
}

/// The feed-forward part of a layer.
#[derive(Debug)]
pub struct FeedForward {
    /// Chooses experts; [n_experts, n_embd]
    pub router: Option<Linear>,
    /// [experts, n_ff, n_embd]; absent where the activation has no gate
    pub gate: Option<Linear>,
    /// [experts, n_ff, n_embd]
    pub up: Linear,
    /// [experts, n_embd, n_ff]
    pub down: Linear,
}

/// One layer.
#[derive(Debug)]
pub struct Layer {
    /// Before attention.
    pub attn_norm: Norm,
    /// What gives queries, keys and values, each the columns behind the last one's: as the file has them,
    /// or neighbours of one format stacked, so that one product reads them.
    pub qkv: Vec<Linear>,
    /// A learned logit a head that takes attention away from all keys; [n_heads]
    pub sinks: Option<Buffer<f32>>,
    /// [n_embd, q columns]
    pub attn_output: Linear,
    /// Before the feed-forward part.
    pub ffn_norm: Norm,
    /// Dense, or experts.
    pub ffn: FeedForward,
}

impl Layer {
    /// Its matrices, in the order in which they are read.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let ffn = &self.ffn;
        let optional = [&ffn.router, &ffn.gate].into_iter().flatten();
        self.qkv.iter().chain([&self.attn_output]).chain(optional).chain([&ffn.up, &ffn.down])
    }
}

/// All weights.
#[derive(Debug)]
pub struct Weights {
    /// [n_vocab, n_embd]
    pub token_embd: Matrix,
    /// [max_context, n_embd]
    pub position_embd: Option<Matrix>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub output_norm: Norm,
    /// [n_vocab, n_embd]; absent where the embedding serves for it
    pub output: Option<Matrix>,
    /// Divisors of the rotary frequencies (Llama 3); [rot_dim / 2]
    pub rope_freqs: Option<Vec<f32>>,
}

impl Weights {
    /// The matrix that gives logits.
    pub fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.token_embd)
    }

    /// Every matrix that a step reads whole or, of experts, in part: not those that only single rows
    /// are taken from.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(Layer::linears);
        layers.map(|linear| &linear.weight).chain([self.output()])
    }

    /// Uploads every weight. `progress` hears how many bytes of the file are done.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the metadata says, or the device has too
    /// little memory.
    pub fn load(
        device: &Device,
        gguf: &Gguf,
        config: &Config,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Weights> {
        let mut loader = Loader { device, gguf, staging: None, done: 0, progress };
        let Config { n_embd, n_vocab, .. } = *config;
        let layers =
            (0..config.n_layers).map(|i| loader.layer(config, i)).collect::<Result<_>>()?;
        let position_embd = match config.rope {
            Some(_) => None,
            None => Some(loader.matrix("position_embd.weight", [n_embd, config.max_context, 1])?),
        };
        Ok(Weights {
            token_embd: loader.matrix("token_embd.weight", [n_embd, n_vocab, 1])?,
            position_embd,
            layers,
            output_norm: loader.norm("output_norm", config)?,
            output: match gguf.tensor("output.weight") {
                Some(_) => Some(loader.matrix("output.weight", [n_embd, n_vocab, 1])?),
                None => None,
            },
            rope_freqs: match (&config.rope, gguf.tensor("rope_freqs.weight")) {
                (Some(rope), Some(info)) => Some(loader.values(info, rope.rot_dim / 2)?),
                _ => None,
            },
        })
    }
}

struct Loader<'a> {
    device: &'a Device,
    gguf: &'a Gguf,
    staging: Option<Buffer<u8>>,
    done: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Loader<'a> {
    fn layer(&mut self, config: &Config, index: usize) -> Result<Layer> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let Config { n_embd, n_ff, .. } = *config;
        let (q_cols, kv_cols) = (config.q_cols(), config.kv_cols());
        let qkv = if config.architecture.fused_qkv {
            vec![self.linear(&name("attn_qkv"), [n_embd, q_cols + 2 * kv_cols, 1])?]
        } else {
            let parts = [("attn_q", q_cols), ("attn_k", kv_cols), ("attn_v", kv_cols)];
            let parts = parts.map(|(part, n_rows)| (name(part), n_rows));
            self.stacks(&parts, n_embd)?
        };
        let ffn = match config.experts {
            Some(experts) => FeedForward {
                router: Some(self.linear(&name("ffn_gate_inp"), [n_embd, experts.count, 1])?),
                gate: Some(self.linear(&name("ffn_gate_exps"), [n_embd, n_ff, experts.count])?),
                up: self.linear(&name("ffn_up_exps"), [n_embd, n_ff, experts.count])?,
                down: self.linear(&name("ffn_down_exps"), [n_ff, n_embd, experts.count])?,
            },
            None => FeedForward {
                router: None,
                gate: match self.gguf.tensor(&name("ffn_gate.weight")) {
                    Some(_) => Some(self.linear(&name("ffn_gate"), [n_embd, n_ff, 1])?),
                    None => None,
                },
                up: self.linear(&name("ffn_up"), [n_embd, n_ff, 1])?,
                down: self.linear(&name("ffn_down"), [n_ff, n_embd, 1])?,
            },
        };
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm"), config)?,
            qkv,
            sinks: self.optional_vector(&name("attn_sinks.weight"), config.n_heads)?,
            attn_output: self.linear(&name("attn_output"), [q_cols, n_embd, 1])?,
            ffn_norm: self.norm(&name(config.architecture.ffn_norm), config)?,
            ffn,
        })
    }

    fn norm(&mut self, name: &str, config: &Config) -> Result<Norm> {
        let info = self.gguf.require_tensor(&format!("{name}.weight"))?;
        let values = self.values(info, config.n_embd)?;
        let weight = self.device.upload(&values)?;
        let bias = self.optional_vector(&format!("{name}.bias"), config.n_embd)?;
        let layer_norm = config.architecture.norm == NormKind::Layer;
        Ok(Norm { weight, bias: bias.filter(|_| layer_norm) })
    }

    fn linear(&mut self, name: &str, dims: [usize; 3]) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"), dims)?;
        let bias = self.optional_vector(&format!("{name}.bias"), dims[1] * dims[2])?;
        Ok(Linear { weight, bias })
    }

    /// Matrices of `n_cols` columns, by name and rows; neighbours of the same format become one, where
    /// their rows fill whole tiles.
    fn stacks(&mut self, parts: &[(String, usize)], n_cols: usize) -> Result<Vec<Linear>> {
        let mut formats = Vec::new();
        for (name, _) in parts {
            formats.push(self.gguf.require_tensor(&format!("{name}.weight"))?.format());
        }
        let fills_tiles = |i: usize| parts[i].1.is_multiple_of(TILE_ROWS as usize);
        let mut linears = Vec::new();
        let mut first = 0;
        for end in 1..=parts.len() {
            if end == parts.len() || formats[end] != formats[first] || !fills_tiles(end - 1) {
                linears.push(self.stack(&parts[first..end], formats[first], n_cols)?);
                first = end;
            }
        }
        Ok(linears)
    }

    /// Matrices of one format as one.
    fn stack(
        &mut self,
        parts: &[(String, usize)],
        format: Format,
        n_cols: usize,
    ) -> Result<Linear> {
        let n_rows = parts.iter().map(|(_, n_rows)| n_rows).sum();
        let words = self.device.alloc::<u32>(matrix_words(format, n_rows, n_cols))?;
        let (mut bias, mut has_bias, mut first) = (Vec::new(), false, 0);
        for &(ref name, n) in parts {
            let info = self.matrix_info(&format!("{name}.weight"), [n_cols, n, 1])?;
            let at = matrix_words(format, first, n_cols);
            self.fill(info, words.view_mut().from(at), [n_cols, n, 1])?;
            first += n;
            match self.gguf.tensor(&format!("{name}.bias")) {
                Some(info) => {
                    bias.extend(self.values(info, n)?);
                    has_bias = true;
                }
                None => bias.resize(first, 0.0),
            }
        }
        let bias = if has_bias { Some(self.device.upload(&bias)?) } else { None };
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        let weight =
            Matrix { name: names.join(" + "), format, n_rows, n_cols, n_experts: 1, words };
        Ok(Linear { weight, bias })
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Buffer<f32>>> {
        match self.gguf.tensor(name) {
            Some(info) => {
                let values = self.values(info, len)?;
                Ok(Some(self.device.upload(&values)?))
            }
            None => Ok(None),
        }
    }

    /// A small tensor of any format, decoded.
    fn values(&mut self, info: &TensorInfo, len: usize) -> Result<Vec<f32>> {
        if info.n_elems() != len as u64 {
            return Err(self.shape_error(info, &format!("{len} elements")));
        }
        let bytes = self.gguf.tensor_bytes(info);
        let mut values = vec![0.0; len];
        let row_bytes = (info.row_bytes() as usize).max(1);
        let rows = values.chunks_mut(info.n_cols() as usize).zip(bytes.chunks(row_bytes));
        for (row, bytes) in rows {
            quant::decode_row(info.format(), bytes, row);
        }
        self.advance(bytes.len());
        Ok(values)
    }

    /// A matrix of `[columns, rows, experts]`.
    fn matrix(&mut self, name: &str, dims: [usize; 3]) -> Result<Matrix> {
        let info = self.matrix_info(name, dims)?;
        let [n_cols, n_rows, n_experts] = dims;
        let format = info.format();
        let words = self.device.alloc::<u32>(matrix_words(format, n_rows, n_cols) * n_experts)?;
        self.fill(info, words.view_mut(), dims)?;
        Ok(Matrix { name: name.to_owned(), format, n_rows, n_cols, n_experts, words })
    }

    /// The tensor, if it has the shape `[columns, rows, experts]`.
    fn matrix_info(&self, name: &str, dims: [usize; 3]) -> Result<&'a TensorInfo> {
        let info = self.gguf.require_tensor(name)?;
        let [n_cols, n_rows, n_experts] = dims;
        if info.dims4() != [n_cols as u64, n_rows as u64, n_experts as u64, 1] {
            let wanted =
                if n_experts > 1 { format!("{dims:?}") } else { format!("{:?}", &dims[..2]) };
            return Err(self.shape_error(info, &wanted));
        }
        Ok(info)
    }

    /// Uploads a matrix to `words`.
    fn fill(&mut self, info: &TensorInfo, words: GlobalMut<u32>, dims: [usize; 3]) -> Result<()> {
        let [n_cols, n_rows, n_experts] = dims;
        let format = info.format();
        let expert_words = matrix_words(format, n_rows, n_cols);
        let bytes = self.gguf.tensor_bytes(info);
        let row_bytes = info.row_bytes() as usize;
        // Experts whose rows fill whole tiles lie in the records as one long matrix does.
        let (matrix_rows, n_matrices) = if n_rows.is_multiple_of(TILE_ROWS as usize) {
            (n_rows * n_experts, 1)
        } else {
            (n_rows, n_experts)
        };
        let tile_rows = TILE_ROWS as usize;
        let chunk_rows = (CHUNK_BYTES / row_bytes / tile_rows).max(1) * tile_rows;
        for matrix in 0..n_matrices {
            let mut row = 0;
            while row < matrix_rows {
                let n = chunk_rows.min(matrix_rows - row);
                let first = matrix * matrix_rows + row;
                let chunk = &bytes[first * row_bytes..(first + n) * row_bytes];
                let at = matrix * expert_words + matrix_words(format, row, n_cols);
                self.chunk(format, chunk, words.from(at), n, n_cols)?;
                self.gguf.forget(chunk);
                row += n;
            }
        }
        Ok(())
    }

    fn chunk(
        &mut self,
        format: Format,
        chunk: &[u8],
        words: GlobalMut<u32>,
        n_rows: usize,
        n_cols: usize,
    ) -> Result<()> {
        if format == Format::F32 {
            self.device.copy_in(words.cast(), chunk)?;
        } else {
            let staging = match &mut self.staging {
                Some(staging) if staging.len() >= chunk.len() => staging,
                staging => staging.insert(self.device.alloc(chunk.len().max(CHUNK_BYTES))?),
            };
            self.device.copy_in(staging.view_mut(), chunk)?;
            let raw = staging.view();
            repack(self.device, format, raw, words, n_rows, n_cols)?;
        }
        self.advance(chunk.len());
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(self.done);
    }

    fn shape_error(&self, info: &TensorInfo, wanted: &str) -> crate::error::Error {
        let what = format!("{} has the shape {:?}, expected {wanted}", info.name(), info.dims());
        model_error(self.gguf, what)
    }
}
