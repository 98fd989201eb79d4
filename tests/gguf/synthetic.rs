//! Models of random weights: the tensors of the real ones, weights of the promised spread, and a
//! vocabulary without holes.

use std::collections::{BTreeMap, HashSet};

use ironwarp::Gguf;
use ironwarp::gguf::TensorInfo;
use ironwarp::synth::{Arch, MODELS, Mix, Recipe, Shape};
use kernels_gpu::quant::{Format, decode_row};

fn recipe(model: &str, mix: Mix) -> Recipe {
    Recipe { name: model.to_string(), shape: Shape::named(model).unwrap(), mix, seed: 3 }
}

fn tensors(model: &str, mix: Mix) -> Vec<TensorInfo> {
    recipe(model, mix).tensors().unwrap()
}

/// How many tensors there are of each format, and all their weights.
fn census(tensors: &[TensorInfo]) -> (BTreeMap<&'static str, usize>, u64) {
    let mut counts = BTreeMap::new();
    for info in tensors {
        *counts.entry(info.format().name()).or_default() += 1;
    }
    (counts, tensors.iter().map(TensorInfo::n_elems).sum())
}

fn write(recipe: &Recipe, file: &str) -> Gguf {
    let path = format!("{}/{file}.gguf", env!("CARGO_TARGET_TMPDIR"));
    let bytes = recipe.write_file(&path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    // The map keeps the data.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(gguf.file_bytes(), bytes);
    gguf
}

/// The counts are those that llama.cpp logs for the published files.
#[test]
fn real_models_have_the_tensors_of_their_published_files() {
    let expected = |counts: &[(&'static str, usize)], weights| {
        (counts.iter().copied().collect::<BTreeMap<_, _>>(), weights)
    };
    let oss = tensors("gpt-oss-20b", Mix::Q4_K_M);
    assert_eq!(
        census(&oss),
        expected(
            &[("F32", 289), ("MXFP4", 72), ("Q4_K", 24), ("Q5_0", 61), ("Q8_0", 13)],
            20_914_757_184
        )
    );
    let large_v: Vec<u32> = (0..24)
        .filter(|n| {
            let name = format!("blk.{n}.attn_v.weight");
            oss.iter().any(|info| info.name() == name && info.format() == Format::Q8_0)
        })
        .collect();
    assert_eq!(large_v, [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]);
    assert_eq!(
        census(&tensors("gpt-oss-20b", Mix::MXFP4)),
        expected(&[("F32", 289), ("MXFP4", 72), ("Q8_0", 98)], 20_914_757_184)
    );
    // With 32 and 64 divisors of rotary frequencies beside the model's own 1235814400 and
    // 8030261248.
    assert_eq!(
        census(&tensors("llama-3.2-1b", Mix::Q4_K_M)),
        expected(&[("F32", 34), ("Q4_K", 96), ("Q6_K", 17)], 1_235_814_432)
    );
    assert_eq!(
        census(&tensors("llama-3.1-8b", Mix::Q4_K_M)),
        expected(&[("F32", 66), ("Q4_K", 193), ("Q6_K", 33)], 8_030_261_312)
    );
    assert_eq!(
        census(&tensors("gpt2", Mix::F16)),
        expected(&[("F16", 49), ("F32", 99)], 124_439_808)
    );
    assert_eq!(
        census(&tensors("gpt2-xl", Mix::F16)),
        expected(&[("F16", 193), ("F32", 387)], 1_557_611_200)
    );
}

/// A file that llama.cpp quantised: the same tensors in the same formats.
#[test]
fn the_mix_is_that_of_a_quantised_file() {
    let root = env!("CARGO_MANIFEST_DIR");
    let real = Gguf::open(format!("{root}/../tests/data/tiny/llama-256-q2_k.gguf")).unwrap();
    let mut recipe = recipe("llama-tiny", Mix::Q2_K);
    recipe.shape = Shape { n_layers: 2, n_ff: 512, n_vocab: 1000, tied: false, ..recipe.shape };
    let table = |tensors: &[TensorInfo]| {
        let rows = tensors.iter().map(|t| (t.name().to_string(), (t.format(), t.dims().to_vec())));
        rows.filter(|(name, _)| name != "rope_freqs.weight").collect::<BTreeMap<_, _>>()
    };
    assert_eq!(table(&recipe.tensors().unwrap()), table(real.tensors()));
}

/// Every format that can be written decodes to weights of mean 0 and deviation 1 / sqrt(n_cols).
///
/// Weights share scales, and Q2_K, Q4_K and Q5_K minimums too: their mean is that of the
/// sub-blocks of 16 or 32, so the tolerances count blocks of 32 weights as one draw, and allow
/// six deviations of the mean of `n` draws, 6 / sqrt(n). The scales stray by a factor of
/// 0.75 to 1.25, those of the K formats by another half: 6 / sqrt(n) again.
#[test]
fn weights_have_the_spread_that_keeps_activations_of_order_1() {
    let mut seen = HashSet::new();
    for (name, mix) in Mix::ALL {
        for model in ["gpt-oss-tiny", "llama-tiny"] {
            let gguf = write(&recipe(model, mix), &format!("spread-{model}-{name}"));
            for info in gguf.tensors().iter().filter(|t| t.name() != "rope_freqs.weight") {
                let mut weights = vec![0f32; info.n_elems() as usize];
                decode_row(info.format(), gguf.tensor_bytes(info), &mut weights);
                let n = weights.len() as f64;
                let mean = weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n;
                let square = weights.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / n;
                let sigma = (square - mean * mean).sqrt();
                let (at, spread) = match info.name() {
                    name if name.ends_with("norm.weight") => (1.0, 0.1),
                    name if name.ends_with(".bias") => (0.0, 0.02),
                    name if name.ends_with("sinks.weight") => (0.0, 0.5),
                    _ => (0.0, 1.0 / (info.n_cols() as f64).sqrt()),
                };
                let draws = if info.format() == Format::F32 { n } else { n / 32.0 };
                let tolerance = spread * 6.0 / draws.sqrt();
                let what = format!("{model} {name} {} {:?}", info.name(), info.format());
                assert!((mean - at).abs() < tolerance, "{what}: mean {mean}, not {at}");
                assert!((sigma - spread).abs() < tolerance, "{what}: deviation {sigma}");
                seen.insert(info.format());
            }
        }
    }
    assert_eq!(seen.len(), Format::ALL.len(), "{seen:?}");
}

#[test]
fn the_same_seed_gives_the_same_file_and_another_does_not() {
    let bytes = |file: &str, seed: u64| {
        let gguf = write(&Recipe { seed, ..recipe("gpt2-tiny", Mix::Q5_K_M) }, file);
        gguf.tensors().iter().map(|info| gguf.tensor_bytes(info).to_vec()).collect::<Vec<_>>()
    };
    let first = bytes("seed-a", 5);
    assert!(first == bytes("seed-b", 5));
    let other = bytes("seed-c", 6);
    for (first, other) in first.iter().zip(&other) {
        assert_ne!(first, other);
    }
    // Nor do tensors of one shape share their weights.
    let distinct: HashSet<&Vec<u8>> = first.iter().collect();
    assert_eq!(distinct.len(), first.len());
}

#[test]
fn vocabularies_are_complete_and_have_the_real_special_ids() {
    for (model, special) in [
        ("gpt-oss-20b", &[(199_998, "<|startoftext|>"), (200_002, "<|return|>")][..]),
        ("gpt-oss-20b", &[(200_012, "<|call|>"), (201_087, "<|reserved_201087|>")]),
        ("gpt2", &[(50_256, "<|endoftext|>")]),
        ("llama-3.2-1b", &[(128_000, "<|begin_of_text|>"), (128_009, "<|eot_id|>")]),
        ("llama-3.2-1b", &[(128_255, "<|reserved_special_token_247|>")]),
        ("gpt-oss-tiny", &[(503, "<|startoftext|>"), (511, "<|call|>")]),
    ] {
        let mut recipe = recipe(model, Mix::Q8_0);
        let vocab = recipe.shape.n_vocab;
        // The vocabulary alone matters: the rest as small as it can be.
        let tiny = match recipe.shape.arch {
            Arch::GptOss => "gpt-oss-tiny",
            Arch::Gpt2 => "gpt2-tiny",
            Arch::Llama => "llama-tiny",
        };
        recipe.shape = Shape {
            n_vocab: vocab,
            n_embd: 32,
            n_heads: 1,
            n_kv_heads: 1,
            n_ff: 32,
            head_dim: 32,
            n_layers: 1,
            ..Shape::named(tiny).unwrap()
        };
        let gguf = write(&recipe, &format!("vocab-{model}-{}", special[0].0));
        let tokens: Vec<&str> =
            gguf.require_strings("tokenizer.ggml.tokens").unwrap().iter().collect();
        assert_eq!(tokens.len(), vocab as usize);
        let known: HashSet<&str> = tokens.iter().copied().collect();
        assert_eq!(known.len(), tokens.len(), "{model}: a token twice");
        for &(id, token) in special {
            assert_eq!(tokens[id], token, "{model}");
        }
        let merges = gguf.require_strings("tokenizer.ggml.merges").unwrap();
        assert!(merges.len() > 70);
        for merge in merges.iter() {
            let (left, right) = merge.split_once(' ').unwrap();
            let parts = [left, right, &format!("{left}{right}")];
            assert!(parts.iter().all(|part| known.contains(part)), "{model}: {merge}");
        }
        let types = gguf.require_i32s("tokenizer.ggml.token_type").unwrap();
        assert_eq!(types.len(), tokens.len());
        let eos = gguf.require_u32("tokenizer.ggml.eos_token_id").unwrap();
        assert_eq!(types.get(eos as usize), Some(3), "{model}: eos is a control token");
    }
}

#[test]
fn llama_3_divides_low_frequencies_only() {
    let gguf = write(&recipe("llama-tiny", Mix::F16), "rope");
    let bytes = gguf.tensor_bytes(gguf.require_tensor("rope_freqs.weight").unwrap());
    let mut freqs = vec![0f32; 32];
    decode_row(Format::F32, bytes, &mut freqs);
    // Pair 0 turns every 6.3 positions; pair 31 every 2.1 million.
    assert_eq!((freqs[0], freqs[31]), (1.0, 32.0));
    assert!(freqs.is_sorted(), "{freqs:?}");
    // Pair 16 turns every 4443 positions, 1.844 times in 8192: (1.844 - 1) / 3 of the way.
    assert!((freqs[16] - 1.0 / (0.7187 / 32.0 + 0.2813)).abs() < 0.01, "{}", freqs[16]);
}

#[test]
fn every_named_model_can_be_made_and_impossible_sizes_cannot() {
    for model in MODELS {
        for (_, mix) in Mix::ALL {
            assert!(tensors(model, mix).len() > 10, "{model}");
        }
    }
    let refusal = |change: fn(&mut Shape)| {
        let mut recipe = recipe("gpt-oss-tiny", Mix::Q8_0);
        change(&mut recipe.shape);
        recipe.tensors().unwrap_err().to_string()
    };
    assert_eq!(refusal(|s| s.n_layers = 0), "the number of layers is 0, expected 1 to 4096");
    assert_eq!(refusal(|s| s.n_kv_heads = 3), "the number of heads is 8, expected a multiple of 3");
    assert_eq!(
        refusal(|s| s.n_vocab = 264),
        "the number of tokens is 264, expected 265 to 16777216"
    );
    assert_eq!(
        refusal(|s| s.n_experts_used = 9),
        "the number of experts used is 9, expected 1 to 8"
    );
}
