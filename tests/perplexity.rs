//! Perplexity: the library's scores against a plain computation from the logits of single steps,
//! and the command's figures against both.

mod machine;
mod tiny;

use ironwarp::model::{Logits, Segment};
use ironwarp::perplexity::{Score, score_chunk};
use ironwarp::tokenizer::Specials;
use ironwarp::{Error, Gguf, Model, Options, Tokenizer};
use kernels_gpu::gpu::emu::Mode;
use std::process::{Command, Output};
use tiny::repository;

const TINY: &str = "tests/data/tiny/llama-256-q8_0.gguf";
const BOX: &str = "assets/box-model.gguf";

fn load(gguf: &Gguf, max_step: usize, max_outputs: usize) -> Model {
    let options = Options { context: Some(32), max_step, max_outputs, ..Options::default() };
    Model::load(&machine::device(Mode::FAST), gguf, &options, &mut |_| ()).unwrap()
}

/// Negative log likelihoods of `tokens[first..]`, one step a token, by the definition.
fn plain(gguf: &Gguf, tokens: &[u32], first: usize) -> Vec<f64> {
    let mut model = load(gguf, 1, 1);
    let mut nll = Vec::new();
    for (i, pair) in tokens.windows(2).enumerate() {
        let segment =
            Segment { sequence: 0, position: i, tokens: &pair[..1], logits: Logits::Last };
        model.forward(&[segment]).unwrap();
        let logits = model.read_logits(1).unwrap();
        let exps: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        if i + 1 >= first {
            nll.push(-(exps[pair[1] as usize] / exps.iter().sum::<f64>()).ln());
        }
    }
    nll
}

/// Tokens that are all different and reach the vocabulary's ends.
fn some_tokens(n: usize, n_vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 389 + n_vocab - 1) % n_vocab) as u32).collect()
}

#[test]
fn scores_are_those_of_single_steps() {
    let gguf = Gguf::open(repository(TINY)).unwrap();
    let n_vocab = load(&gguf, 1, 1).config().n_vocab;
    // Odd and even chunks; steps that divide the halves, that don't, and that hold them whole.
    for (chunk, max_step, max_outputs) in [(3, 64, 64), (8, 4, 4), (17, 64, 5), (20, 7, 64)] {
        let tokens = some_tokens(chunk, n_vocab);
        let want = plain(&gguf, &tokens, chunk / 2 + 1);
        let got = score_chunk(&mut load(&gguf, max_step, max_outputs), &tokens).unwrap();
        assert_eq!(got.len(), want.len(), "{chunk} tokens");
        for (got, want) in got.iter().zip(&want) {
            // Two logits, each off by what a quantised file is allowed (tests/model.rs).
            let allowed = 2.0 * 3e-3 * want.abs().max(1.0);
            assert!((got - want).abs() <= allowed, "{chunk} tokens: {got} and {want}");
        }
    }
}

#[test]
fn a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() {
    let mut bytes = std::fs::read(repository(TINY)).unwrap();
    let gguf = Gguf::open(repository(TINY)).unwrap();
    // With the last norm's weight zero, so is every logit.
    let norm = gguf.tensor_bytes(gguf.require_tensor("output_norm.weight").unwrap());
    let at = bytes.windows(norm.len()).position(|window| window == norm).unwrap();
    bytes[at..at + norm.len()].fill(0);
    let gguf = Gguf::parse(bytes, "a model that knows nothing").unwrap();
    let mut model = load(&gguf, 64, 16);
    let n_vocab = model.config().n_vocab;
    let mut score = Score::default();
    for n in [15, 16] {
        score.add(&score_chunk(&mut model, &some_tokens(n, n_vocab)).unwrap());
    }
    assert_eq!(score.n_tokens(), 7 + 7);
    let n_vocab = n_vocab as f64;
    assert!((score.perplexity() - n_vocab).abs() < 1e-9 * n_vocab, "{}", score.perplexity());
    // The variance of equal terms is zero but for the rounding of their squares.
    assert!(score.standard_error() < 1e-6 * n_vocab, "{}", score.standard_error());
}

#[test]
fn chunks_that_cannot_be_scored_are_refused() {
    let gguf = Gguf::open(repository(TINY)).unwrap();
    let mut model = load(&gguf, 64, 16);
    let n_vocab = model.config().n_vocab;
    for n in 0..3 {
        let error = score_chunk(&mut model, &some_tokens(n, n_vocab)).unwrap_err();
        assert!(matches!(error, Error::TextTooShort { tokens, needed: 3 } if tokens == n));
    }
    // The context holds 32, and the last token of a chunk is only a target.
    score_chunk(&mut model, &some_tokens(33, n_vocab)).unwrap();
    let error = score_chunk(&mut model, &some_tokens(34, n_vocab)).unwrap_err();
    assert!(matches!(error, Error::ContextFull { .. }), "{error}");
    let error = score_chunk(&mut model, &[1, 2, 3, n_vocab as u32]).unwrap_err();
    assert!(matches!(error, Error::TokenId { .. }), "{error}");
}

fn perplexity(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironwarp"));
    // The card of whoever runs the tests stays out of it.
    command.env("CUDA_VISIBLE_DEVICES", "").args(["perplexity", "--device", "cpu"]);
    command.args(arguments).output().unwrap()
}

fn with_text<T>(name: &str, text: &str, work: impl FnOnce(&str) -> T) -> T {
    let path = std::env::temp_dir().join(format!("ironwarp-{name}-{}.txt", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let result = work(path.to_str().unwrap());
    std::fs::remove_file(path).unwrap();
    result
}

#[test]
fn the_command_prints_the_figures_of_the_library() {
    let text = "Once upon a time there was a fox.\r\nHe lived near the sea with his mother, and \
                every day he walked to the water to look for shells.\r\n";
    let output = with_text("fox", text, |path| {
        perplexity(&["--text", path, "--chunk", "12", "--ctx", "64"])
    });
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let gguf = Gguf::open(repository(BOX)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let mut tokens = tokenizer.encode(&text.replace("\r\n", "\n"), Specials::Plain).unwrap();
    let n_chunks = tokens.len() / 12;
    assert!(n_chunks >= 2 && !tokens.len().is_multiple_of(12), "{} tokens", tokens.len());
    let mut want = vec![format!("{} tokens, {n_chunks} chunks of 12, 5 scored", tokens.len())];
    let mut score = Score::default();
    for (i, chunk) in tokens.chunks_exact_mut(12).enumerate() {
        chunk[0] = tokenizer.bos().unwrap();
        score.add(&plain(&gguf, chunk, 7));
        want.push(format!("chunk {}: {:.4}", i + 1, score.perplexity()));
    }
    let (whole, error) = (score.perplexity(), score.standard_error());
    want.push(format!("perplexity {whole:.4} +- {error:.4} over {} tokens", 5 * n_chunks));
    assert_eq!(said.lines().collect::<Vec<_>>(), want);
}

#[test]
fn the_command_says_what_is_wrong() {
    let refused = |arguments: &[&str], expected: &str| {
        let output = perplexity(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    with_text("short", "Once upon a time", |path| {
        refused(&["--text", path], "4 tokens are not one chunk of 512");
        refused(&["--text", path, "--chunk", "2"], "at least 3 tokens");
        refused(&["--text", path, "--chunks", "0"], "at least one");
        refused(&["--text", path, "--chunk", "4", "--ctx", "3"], "the context of 3");
    });
    refused(&["--text", "/no/such.txt"], "/no/such.txt");
}
