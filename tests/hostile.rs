//! Model files whose bytes are in order and whose claims are not: sizes that contradict each other or
//! the tensors, all the way to `Model::load`. Each is a real file with one thing changed.

use std::collections::BTreeMap;
use std::path::Path;

use ironwarp::gguf::{Encode, TensorInfo, Writer};
use ironwarp::model::memory_need;
use ironwarp::{Device, Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::quant::Format;

const LLAMA: &str = "llama-256-q2_k";
const GPT2: &str = "gpt2-128-q4_1-pure";
const GPT_OSS: &str = "gptoss-288-mxfp4-q8_0";

/// A file of the test data and what is to be changed in it.
struct Altered {
    file: &'static str,
    keys: BTreeMap<&'static str, Option<Box<dyn Encode>>>,
    tensors: BTreeMap<&'static str, Option<(Format, Vec<u64>)>>,
}

impl Altered {
    fn of(file: &'static str) -> Altered {
        Altered { file, keys: BTreeMap::new(), tensors: BTreeMap::new() }
    }

    /// With another value of a key.
    fn key(mut self, key: &'static str, value: impl Encode + 'static) -> Altered {
        self.keys.insert(key, Some(Box::new(value)));
        self
    }

    fn without_key(mut self, key: &'static str) -> Altered {
        self.keys.insert(key, None);
        self
    }

    /// With another shape of a tensor, all zeroes.
    fn tensor(mut self, name: &'static str, format: Format, dims: &[u64]) -> Altered {
        self.tensors.insert(name, Some((format, dims.to_vec())));
        self
    }

    fn without_tensor(mut self, name: &'static str) -> Altered {
        self.tensors.insert(name, None);
        self
    }

    fn build(self) -> Gguf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tiny");
        let original = Gguf::open(folder.join(format!("{}.gguf", self.file))).unwrap();
        let mut writer = Writer::new("bad.gguf");
        for (key, value) in original.metadata() {
            match self.keys.get(key) {
                None => writer.entry(key, &value).unwrap(),
                Some(None) => {}
                Some(Some(other)) => writer.entry(key, other.as_ref()).unwrap(),
            }
        }
        for (key, value) in &self.keys {
            if let (Some(value), None) = (value, original.value(key)) {
                writer.entry(key, value.as_ref()).unwrap();
            }
        }
        for info in original.tensors() {
            match self.tensors.get(info.name()) {
                None => writer.tensor(info.name(), info.format(), info.dims()).unwrap(),
                Some(None) => {}
                Some(Some((format, dims))) => writer.tensor(info.name(), *format, dims).unwrap(),
            }
        }
        let mut bytes = Vec::new();
        let fill =
            |info: &TensorInfo, out: &mut dyn std::io::Write| match original.tensor(info.name()) {
                Some(same) if same.n_bytes() == info.n_bytes() => {
                    out.write_all(original.tensor_bytes(same))
                }
                _ => out.write_all(&vec![0; info.n_bytes() as usize]),
            };
        writer.write(&mut bytes, fill).unwrap();
        Gguf::parse(bytes, "bad.gguf").unwrap()
    }

    /// What `Model::load` says.
    fn refusal(self) -> String {
        let gguf = self.build();
        let device = Device::emulator(Mode::FAST);
        match Model::load(&device, &gguf, &Options::default(), &mut |_| {}) {
            Ok(_) => panic!("the file was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[track_caller]
    fn refused(self, expected: &str) {
        let text = self.refusal();
        assert_eq!(text.strip_prefix("bad.gguf: ").unwrap_or(&text), expected);
    }
}

#[test]
fn the_files_unchanged_are_loaded() {
    for file in [LLAMA, GPT2, GPT_OSS] {
        let gguf = Altered::of(file).build();
        let device = Device::emulator(Mode::FAST);
        let options = Options { context: Some(64), ..Options::default() };
        Model::load(&device, &gguf, &options, &mut |_| {}).unwrap();
    }
}

#[test]
fn keys_that_are_missing_or_of_another_type_are_named() {
    Altered::of(LLAMA)
        .without_key("general.architecture")
        .refused("key general.architecture: the key is missing, expected a string");
    let architecture = "architecture `bert` is not one of gpt-oss, gpt2, llama";
    let known = Altered::of(LLAMA).key("general.architecture", "bert").refusal();
    let names = |text: &str| {
        let mut names: Vec<String> = text.split([' ', ',']).map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(known.strip_prefix("bad.gguf: ").unwrap()), names(architecture));
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.attention.head_count",
        "llama.feed_forward_length",
        "llama.context_length",
    ] {
        Altered::of(LLAMA).without_key(key).refused(&format!(
            "key {key}: the key is missing, expected an integer of 0 to 2^32 - 1"
        ));
        let text = Altered::of(LLAMA).key(key, "many").refusal();
        let expected = "the value is of type string, expected an integer of 0 to 2^32 - 1";
        assert!(text.starts_with(&format!("bad.gguf: key {key} at byte ")), "{text}");
        assert!(text.ends_with(expected), "{text}");
        let text = Altered::of(LLAMA).key(key, u64::MAX).refusal();
        let expected = "the value 18446744073709551615 does not fit, \
                        expected an integer of 0 to 2^32 - 1";
        assert!(text.ends_with(expected), "{text}");
        Altered::of(LLAMA).key(key, 0u32).refused(&format!("{key} is 0"));
        Altered::of(LLAMA).key(key, u32::MAX).refused(&format!("{key} is {}", u32::MAX));
    }
}

#[test]
fn sizes_beyond_any_model_are_refused() {
    for (key, found, what, most) in [
        ("llama.block_count", 1025, "layers", 1024),
        ("llama.embedding_length", 8224, "columns of the residual stream", 8192),
        ("llama.attention.head_count", 1026, "query heads", 1024),
        ("llama.feed_forward_length", (1 << 18) + 32, "columns of the feed-forward part", 1 << 18),
        ("llama.context_length", (1 << 20) + 1, "tokens of context", 1 << 20),
    ] {
        let altered = Altered::of(LLAMA).key(key, found as u32);
        altered.refused(&format!("{found} {what}; 1 to {most} are supported"));
    }
    // Sizes just below follow each other without overflow, and without memory for what is not there.
    let gguf = Altered::of(LLAMA)
        .key("llama.block_count", 1024u32)
        .key("llama.attention.head_count", 1024u32)
        .key("llama.attention.head_count_kv", 1024u32)
        .key("llama.attention.key_length", 256u32)
        .key("llama.rope.dimension_count", 256u32)
        .key("llama.feed_forward_length", 1u32 << 18)
        .key("llama.context_length", 1u32 << 20)
        .build();
    let options = Options { n_sequences: 64, ..Options::default() };
    assert!(memory_need(&gguf, &options).unwrap().total() > 1 << 50);
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let llama = || Altered::of(LLAMA);
    llama()
        .key("llama.attention.head_count_kv", 0u32)
        .refused("4 query heads don't divide among 0 key heads");
    llama()
        .key("llama.attention.head_count_kv", 3u32)
        .refused("4 query heads don't divide among 3 key heads");
    for dim in [0, 12, 264, u32::MAX] {
        let expected = format!("heads of {dim} columns; 8, 16, ... 256 are supported");
        llama().key("llama.attention.key_length", dim).refused(&expected);
    }
}

#[test]
fn layer_norms_of_broken_quads_are_refused() {
    Altered::of(GPT2)
        .key("gpt2.attention.key_length", 32u32)
        .key("gpt2.embedding_length", 130u32)
        .refused("layer norms of 130 columns; multiples of 4 are supported");
}

#[test]
fn rotary_positions_that_make_no_sense_are_refused() {
    let llama = || Altered::of(LLAMA);
    for dim in [0, 7, 66, u32::MAX] {
        let expected = format!("{dim} rotary columns in heads of 64");
        llama().key("llama.rope.dimension_count", dim).refused(&expected);
    }
    for base in [0.0, -1.0, f32::INFINITY] {
        let expected = format!("llama.rope.freq_base is {base}, not a positive number");
        llama().key("llama.rope.freq_base", base).refused(&expected);
    }
    llama()
        .key("llama.rope.freq_base", f32::NAN)
        .refused("llama.rope.freq_base is NaN, not a positive number");
    llama()
        .key("llama.rope.scaling.type", "su")
        .refused("llama.rope.scaling.type is su, not none, linear or yarn");
    let oss = || Altered::of(GPT_OSS);
    oss()
        .key("gpt-oss.rope.scaling.factor", 0.0f32)
        .refused("gpt-oss.rope.scaling.factor is 0, not a positive number");
    oss()
        .key("gpt-oss.rope.scaling.original_context_length", 0u32)
        .refused("gpt-oss.rope.scaling.original_context_length is 0, not a positive number");
}

#[test]
fn experts_that_make_no_sense_are_refused() {
    let oss = || Altered::of(GPT_OSS);
    let refused = |used: u32, count: u32| {
        let expected = format!("{used} of {count} experts a token; up to 16 of 256 are supported");
        oss()
            .key("gpt-oss.expert_used_count", used)
            .key("gpt-oss.expert_count", count)
            .refused(&expected);
    };
    refused(9, 8);
    refused(17, 32);
    refused(4, 257);
    oss().key("gpt-oss.expert_used_count", 0u32).refused("gpt-oss.expert_used_count is 0");
    oss()
        .key("gpt-oss.expert_feed_forward_length", 0u32)
        .refused("0 columns of the feed-forward part; 1 to 262144 are supported");
}

#[test]
fn norms_that_make_no_sense_are_refused() {
    let key = "llama.attention.layer_norm_rms_epsilon";
    for (eps, text) in [(f32::NAN, "NaN"), (-1.0, "-1"), (f32::INFINITY, "inf")] {
        Altered::of(LLAMA).key(key, eps).refused(&format!("a norm epsilon of {text}"));
    }
}

#[test]
fn layers_that_are_claimed_and_not_there_are_refused() {
    Altered::of(LLAMA)
        .key("llama.block_count", 3u32)
        .refused("tensor blk.2.attn_q.weight: the tensor is missing");
    for name in ["token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight"] {
        let expected = format!("tensor {name}: the tensor is missing");
        Altered::of(LLAMA).without_tensor(name).refused(&expected);
    }
    Altered::of(GPT2)
        .without_tensor("position_embd.weight")
        .refused("tensor position_embd.weight: the tensor is missing");
    Altered::of(GPT_OSS)
        .without_tensor("blk.0.ffn_gate_inp.weight")
        .refused("tensor blk.0.ffn_gate_inp.weight: the tensor is missing");
}

#[test]
fn tensors_of_another_shape_are_refused() {
    for (file, name, dims, wanted) in [
        // Transposed, a column less, a dimension more, too few elements.
        (LLAMA, "blk.0.attn_k.weight", &[128, 256][..], "[256, 128]"),
        (LLAMA, "blk.0.ffn_up.weight", &[256, 511], "[256, 512]"),
        (LLAMA, "blk.0.attn_q.weight", &[256, 256, 2], "[256, 256]"),
        (LLAMA, "blk.0.attn_norm.weight", &[255], "256 elements"),
        (LLAMA, "output_norm.weight", &[1], "256 elements"),
        (GPT2, "blk.0.attn_qkv.bias", &[383], "384 elements"),
        (GPT_OSS, "blk.0.attn_sinks.weight", &[1], "6 elements"),
        (GPT_OSS, "blk.0.ffn_gate_inp.bias", &[9], "8 elements"),
    ] {
        let text = Altered::of(file).tensor(name, Format::F32, dims).refusal();
        let expected = format!("bad.gguf: {name} has the shape {dims:?}, expected {wanted}");
        assert_eq!(text, expected);
    }
    // Learned positions end before the context does.
    let text = Altered::of(GPT2).key("gpt2.context_length", 4096u32).refusal();
    assert!(text.starts_with("bad.gguf: position_embd.weight has the shape "), "{text}");
}

#[test]
fn a_window_beyond_every_context_is_none() {
    let gguf = Altered::of(GPT_OSS).key("gpt-oss.attention.sliding_window", u32::MAX).build();
    let options = Options { context: Some(64), ..Options::default() };
    memory_need(&gguf, &options).unwrap();
    Model::load(&Device::emulator(Mode::FAST), &gguf, &options, &mut |_| {}).unwrap();
}
