//! Writes models that nobody trained: the exact tensors, formats and metadata of real ones, with
//! random weights under which activations stay of order 1, and a small valid tokenizer. Speed and
//! memory don't depend on what the weights are, so these stand in for the real files there.

pub(crate) mod blocks;
mod mix;
mod shape;
mod tensors;
mod vocab;

use std::io::Write;
use std::path::Path;

use self::blocks::Stretches;
pub use self::mix::Mix;
pub use self::shape::{Arch, MODELS, Shape};
use self::tensors::{Fill, Plan, plan};
use self::vocab::Vocab;
use crate::error::Result;
use crate::gguf::{TensorInfo, Writer};

/// Llama 3's rotary base.
const LLAMA_ROPE_BASE: f64 = 500_000.0;

/// A model to be written.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// `general.name`.
    pub name: String,
    /// Its sizes.
    pub shape: Shape,
    /// Its formats.
    pub mix: Mix,
    /// The same seed gives the same file.
    pub seed: u64,
}

impl Recipe {
    /// Writes the model, and returns its size in bytes.
    pub fn write_file(&self, path: impl AsRef<Path>) -> Result<u64> {
        let path = path.as_ref();
        let mut writer = Writer::new(path.display().to_string());
        let plans = self.layout(&mut writer)?;
        self.metadata(&mut writer)?;
        let random =
            writer.tensors().iter().zip(&plans).filter_map(|(info, plan)| match &plan.fill {
                Fill::Random(spread) => Some((info, *spread)),
                Fill::Exactly(_) => None,
            });
        let mut stretches = Stretches::new(self.seed, random);
        // The writer asks for the tensors in the order in which it was given them.
        let mut plans = plans.iter();
        writer.write_file(path, |info: &TensorInfo, out: &mut dyn Write| {
            match plans.next().map(|plan| &plan.fill) {
                Some(Fill::Random(spread)) => stretches.write(info, *spread, out),
                Some(Fill::Exactly(values)) => {
                    values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
                }
                None => Ok(()),
            }
        })?;
        Ok(writer.file_bytes())
    }

    /// The tensors that the file will have.
    pub fn tensors(&self) -> Result<Vec<TensorInfo>> {
        let mut writer = Writer::new(&self.name);
        self.layout(&mut writer)?;
        Ok(writer.tensors().to_vec())
    }

    fn layout(&self, writer: &mut Writer) -> Result<Vec<Plan>> {
        self.shape.check()?;
        let plans = plan(&self.shape);
        for Plan { name, dims, role, layer, .. } in &plans {
            let format = self.mix.format(*role, *layer, dims[0], &self.shape);
            writer.tensor(name, format, dims)?;
        }
        Ok(plans)
    }

    fn metadata(&self, writer: &mut Writer) -> Result<()> {
        let shape = &self.shape;
        writer.entry("general.architecture", shape.arch.name())?;
        writer.entry("general.type", "model")?;
        writer.entry("general.name", &self.name)?;
        writer.entry("general.description", "random weights: for measurements only")?;
        writer.entry("general.file_type", &(self.mix as u32))?;
        writer.entry("general.quantization_version", &2u32)?;

        let key = |tail: &str| format!("{}.{tail}", shape.arch.name());
        writer.entry(&key("block_count"), &shape.n_layers)?;
        writer.entry(&key("context_length"), &shape.n_ctx)?;
        writer.entry(&key("embedding_length"), &shape.n_embd)?;
        writer.entry(&key("feed_forward_length"), &shape.n_ff)?;
        writer.entry(&key("attention.head_count"), &shape.n_heads)?;
        if shape.arch == Arch::Gpt2 {
            writer.entry(&key("attention.layer_norm_epsilon"), &1e-5f32)?;
        } else {
            writer.entry(&key("attention.head_count_kv"), &shape.n_kv_heads)?;
            writer.entry(&key("attention.key_length"), &shape.head_dim)?;
            writer.entry(&key("attention.value_length"), &shape.head_dim)?;
            writer.entry(&key("attention.layer_norm_rms_epsilon"), &1e-5f32)?;
            writer.entry(&key("vocab_size"), &shape.n_vocab)?;
        }
        match shape.arch {
            Arch::Gpt2 => {}
            Arch::Llama => {
                writer.entry(&key("rope.freq_base"), &(LLAMA_ROPE_BASE as f32))?;
                writer.entry(&key("rope.dimension_count"), &shape.head_dim)?;
            }
            Arch::GptOss => {
                writer.entry(&key("expert_count"), &shape.n_experts)?;
                writer.entry(&key("expert_used_count"), &shape.n_experts_used)?;
                writer.entry(&key("expert_feed_forward_length"), &shape.n_ff)?;
                writer.entry(&key("attention.sliding_window"), &shape.window)?;
                writer.entry(&key("rope.freq_base"), &150_000f32)?;
                writer.entry(&key("rope.scaling.type"), "yarn")?;
                writer.entry(&key("rope.scaling.factor"), &32f32)?;
                writer.entry(&key("rope.scaling.original_context_length"), &4096u32)?;
            }
        }
        self.tokenizer(writer)
    }

    fn tokenizer(&self, writer: &mut Writer) -> Result<()> {
        let vocab = Vocab::new(&self.shape);
        // Pre-tokenizer, first and last token, padding, whether the first is put in front.
        let (pre, bos, eos, pad, add_bos) = match self.shape.arch {
            Arch::GptOss => {
                ("gpt-4o", "<|startoftext|>", "<|return|>", Some("<|endoftext|>"), false)
            }
            Arch::Gpt2 => ("gpt-2", "<|endoftext|>", "<|endoftext|>", None, false),
            Arch::Llama => ("llama-bpe", "<|begin_of_text|>", "<|eot_id|>", None, true),
        };
        writer.entry("tokenizer.ggml.model", "gpt2")?;
        writer.entry("tokenizer.ggml.pre", pre)?;
        writer.entry("tokenizer.ggml.tokens", &vocab.tokens[..])?;
        writer.entry("tokenizer.ggml.token_type", &vocab.types[..])?;
        writer.entry("tokenizer.ggml.merges", &vocab.merges[..])?;
        for (key, token) in [("bos", Some(bos)), ("eos", Some(eos)), ("padding", pad)] {
            if let Some(id) = token.and_then(|token| vocab.id(token)) {
                writer.entry(&format!("tokenizer.ggml.{key}_token_id"), &id)?;
            }
        }
        writer.entry("tokenizer.ggml.add_bos_token", &add_bos)?;
        match self.shape.arch {
            Arch::GptOss => writer.entry("tokenizer.chat_template", GPT_OSS_TEMPLATE),
            Arch::Llama => writer.entry("tokenizer.chat_template", LLAMA_TEMPLATE),
            Arch::Gpt2 => Ok(()),
        }
    }
}

const GPT_OSS_TEMPLATE: &str = "\
{%- for message in messages -%}\
<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>\
{%- endfor -%}\
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";

const LLAMA_TEMPLATE: &str = "\
{{- bos_token -}}\
{%- for message in messages -%}\
<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>\
{%- endfor -%}\
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif -%}";
