//! The model in the box: its file is shaped like a gpt-oss file, its tokens are the reference's, and
//! so are its logits.

mod machine;
mod tiny;

use std::collections::BTreeMap;

use ironwarp::generate::{Generator, Sampling};
use ironwarp::model::{Logits, Segment};
use ironwarp::tokenizer::{Specials, Tokenizer};
use ironwarp::{Error, Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use serde_json::Value;

const REFERENCE: &str = include_str!("data/box_model_reference.json");

fn open() -> Gguf {
    Gguf::open(tiny::repository("assets/box-model.gguf")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn load(context: usize, max_outputs: usize) -> Model {
    let options = Options { context: Some(context), max_outputs, ..Options::default() };
    Model::load(&machine::device(Mode::FAST), &open(), &options, &mut |_| ()).unwrap()
}

/// Logits of `tokens` at `position`, a row a token.
fn logits(model: &mut Model, position: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
    let segment = Segment { sequence: 0, position, tokens, logits: Logits::All };
    let n = model.forward(&[segment]).unwrap();
    let logits = model.read_logits(n).unwrap();
    logits.chunks_exact(model.config().n_vocab).map(<[f32]>::to_vec).collect()
}

/// Relative to the root mean square of a position's logits: activations of 16 bits and a cache in
/// f16, as for every quantised file (tests/model.rs).
const ALLOWED: f64 = 3e-3;

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    row.iter().map(|&l| (l as f64 - largest).exp()).sum::<f64>().ln() + largest
}

#[test]
fn logits_are_those_of_the_reference() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let mut model = load(64, 64);
    for (name, row) in reference["prompts"].as_object().unwrap() {
        let tokens = ids(&row["tokens"]);
        let sizes = numbers(&row["logit_rms"]);
        let sums = numbers(&row["logsumexp"]);
        let got = logits(&mut model, 0, &tokens);
        assert_eq!((got.len(), sizes.len(), sums.len()), (tokens.len(), tokens.len(), got.len()));
        for (at, got) in got.iter().enumerate() {
            let top = ids(&row["top_ids"][at]);
            let want = numbers(&row["top_logits"][at]);
            assert_eq!((top.len(), want.len()), (10, 10));
            let squares =
                top.iter().zip(&want).map(|(&id, want)| (got[id as usize] as f64 - want).powi(2));
            let error = (squares.sum::<f64>() / 10.0).sqrt() / sizes[at];
            let of_sum = (log_sum_exp(got) - sums[at]).abs() / sizes[at];
            println!("{name} {at}: relative RMS {error:.2e}, of the sum {of_sum:.2e}");
            // The sum of exponentials is a mean of errors, weighted by probability.
            assert!(
                error < ALLOWED && of_sum < ALLOWED,
                "{name}, token {at}: {error:e} {of_sum:e}"
            );
            // The ten stored are the ten largest, but for ties within the error.
            let least = want[9] - 2.0 * ALLOWED * sizes[at];
            let above = got.iter().filter(|&&l| (l as f64) > want[9] + 2.0 * ALLOWED * sizes[at]);
            assert!(above.count() < 10, "{name}, token {at}");
            assert!(top.iter().all(|&id| got[id as usize] as f64 >= least), "{name}, token {at}");
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_the_reference() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let mut model = load(128, 64);
    for (name, row) in reference["prompts"].as_object().unwrap() {
        let mut tokens = ids(&row["tokens"]);
        let margins = numbers(&row["greedy_margin"]);
        let mut last = logits(&mut model, 0, &tokens).pop().unwrap();
        let mut clear = 0;
        for (at, (&want, margin)) in ids(&row["greedy"]).iter().zip(margins).enumerate() {
            let size =
                (last.iter().map(|&l| (l as f64).powi(2)).sum::<f64>() / last.len() as f64).sqrt();
            // Two logits, each off by a few times what is allowed for the root mean square.
            if margin > 2.0 * 3.0 * ALLOWED * size {
                let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
                assert_eq!(best as u32, want, "{name}, token {at}, margin {margin}");
                clear += 1;
            }
            // On with the reference's token, so that a tie does not end the comparison.
            last = logits(&mut model, tokens.len(), &[want]).pop().unwrap();
            tokens.push(want);
        }
        assert!(clear >= 24, "{name}: only {clear} clear margins");
    }
}

/// Through the generator, whose tokens are chosen on the device.
#[test]
fn the_generator_goes_on_as_the_reference_does() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let mut model = load(64, 1);
    for (name, row) in reference["prompts"].as_object().unwrap() {
        let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
        let margins = numbers(&row["greedy_margin"]);
        // Logits of these prompts have a root mean square below 7.
        let clear = margins.iter().take_while(|&&margin| margin > 6.0 * ALLOWED * 7.0).count();
        assert!(clear >= 4, "{name}: {clear}");
        let mut got = vec![generator.start(&ids(&row["tokens"])).unwrap()];
        while got.len() < clear {
            got.push(generator.next().unwrap());
        }
        assert_eq!(got, ids(&row["greedy"])[..clear], "{name}");
    }
}

/// Steps that start before the tokens of the ones before them are read: of two sequences, one greedy
/// and one not, with tokens taken back, a new beginning, and the end of the context.
#[test]
fn looking_ahead_changes_no_token() {
    let sampled = Sampling { temperature: 1.0, seed: 7, ..Sampling::GREEDY };
    let options = Options {
        context: Some(24),
        n_sequences: 2,
        max_step: 8,
        max_outputs: 2,
        ..Options::default()
    };
    let device = machine::device(Mode::FAST);
    let mut model = Model::load(&device, &open(), &options, &mut |_| ()).unwrap();
    let mut runs = Vec::new();
    for looks_ahead in [false, true] {
        let mut generator =
            Generator::of_several(&mut model, &[Sampling::GREEDY, sampled]).unwrap();
        generator.look_ahead(looks_ahead);
        let mut tokens = Vec::new();
        let mut take = |generator: &mut Generator, n: usize| {
            for _ in 0..n {
                tokens.push(generator.next_of_all().unwrap().to_vec());
            }
        };
        for (sequence, prompt) in [[5, 6, 7, 8], [9, 10, 11, 12]].iter().enumerate() {
            generator.read(sequence, prompt).unwrap();
        }
        take(&mut generator, 6);
        generator.rewind(5).unwrap();
        take(&mut generator, 17);
        generator.restart();
        generator.read(0, &[20, 21]).unwrap();
        generator.read(1, &[22, 23]).unwrap();
        // Up to the last token that the context holds.
        take(&mut generator, 23);
        assert!(generator.next_of_all().is_err());
        runs.push(tokens);
    }
    assert_eq!(runs[0].len(), 46);
    assert!(runs[0].iter().any(|tokens| tokens[0] != tokens[1]));
    assert_eq!(runs[0], runs[1]);
}

/// 512 tokens, four windows long.
#[test]
fn loss_on_a_passage_is_that_of_the_reference() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let tokens = ids(&reference["passage"]["tokens"]);
    let want = reference["passage"]["mean_nll"].as_f64().unwrap();
    let mut model = load(512, 64);
    let mut nll = Vec::new();
    for (i, chunk) in tokens[..tokens.len() - 1].chunks(64).enumerate() {
        let rows = logits(&mut model, 64 * i, chunk);
        let targets = &tokens[64 * i + 1..];
        let surprise = |(row, &t): (&Vec<f32>, &u32)| log_sum_exp(row) - row[t as usize] as f64;
        nll.extend(rows.iter().zip(targets).map(surprise));
    }
    let mean = nll.iter().sum::<f64>() / nll.len() as f64;
    println!("mean loss {mean:.6}, of the reference {want:.6}");
    // Errors of single tokens, about `ALLOWED` of logits of size 5, have either sign.
    let allowed = 2.0 * ALLOWED * 5.0 / (nll.len() as f64).sqrt();
    assert!((mean - want).abs() < allowed, "{mean} {want}, allowed {allowed:e}");
}

#[test]
fn file_is_small_and_mixed_as_the_real_one() {
    let gguf = open();
    assert!(gguf.file_bytes() < 10_000_000, "{} bytes", gguf.file_bytes());
    assert_eq!(gguf.require_str("general.architecture").unwrap(), "gpt-oss");
    let mut formats = BTreeMap::new();
    for tensor in gguf.tensors() {
        *formats.entry(tensor.format().name()).or_insert(0) += 1;
        let expert = tensor.name().ends_with("_exps.weight");
        assert_eq!(expert, tensor.format().name() == "MXFP4", "{}", tensor.name());
    }
    let expected = [("F32", 73), ("MXFP4", 18), ("Q4_K", 6), ("Q5_0", 16), ("Q8_0", 4)];
    assert_eq!(formats, BTreeMap::from(expected));
    let experts = gguf.require_tensor("blk.5.ffn_down_exps.weight").unwrap();
    assert_eq!(experts.dims(), [192, 256, 8]);
}

#[test]
fn tokens_are_those_of_the_reference() {
    let tokenizer = Tokenizer::from_gguf(&open()).unwrap();
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let prompts = reference["prompts"].as_object().unwrap();
    assert_eq!(prompts.len(), 2);
    for row in prompts.values().chain([&reference["passage"]]) {
        let text = row["text"].as_str().unwrap();
        let expected = ids(&row["tokens"]);
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
    }
    for row in prompts.values() {
        let greedy = ids(&row["greedy"]);
        assert_eq!(tokenizer.decode(&greedy).unwrap(), row["greedy_text"].as_str().unwrap());
    }
}

#[test]
fn control_tokens_are_marked_and_end_what_they_should() -> Result<(), Error> {
    let tokenizer = Tokenizer::from_gguf(&open())?;
    assert_eq!(tokenizer.n_tokens(), 4096);
    assert!(tokenizer.add_bos());
    assert_eq!(tokenizer.bos(), tokenizer.special("<|startoftext|>"));
    for (spelling, stops) in [
        ("<|endoftext|>", true),
        ("<|return|>", true),
        ("<|call|>", true),
        ("<|end|>", false),
        ("<|start|>", false),
        ("<|message|>", false),
        ("<|channel|>", false),
    ] {
        let id = tokenizer.special(spelling).unwrap();
        assert_eq!(tokenizer.is_stop(id), stops, "{spelling}");
        assert_ne!(tokenizer.encode(spelling, Specials::Plain)?, [id], "{spelling}");
    }
    Ok(())
}
