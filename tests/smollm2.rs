//! A real model, SmolLM2-135M-Instruct in Q4_1, against exact arithmetic. The file is too large for
//! the repository: `IRONWARP_SMOLLM2` names it, and without that nothing here is run, and the tests
//! are listed as ignored. `IRONWARP_CHUNKS` says how many chunks of the text are scored: all 8 on a
//! GPU, else 1, which takes minutes.

mod machine;
mod tiny;

use ironwarp::generate::{Generator, Sampling};
use ironwarp::model::{Logits, Segment};
use ironwarp::perplexity::{Score, score_chunk};
use ironwarp::tokenizer::Specials;
use ironwarp::{Gguf, Model, Options, Tokenizer};
use kernels_gpu::gpu::emu::Mode;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

const REFERENCE: &str = include_str!("data/smollm2_reference.json");
const PATH: &str = "IRONWARP_SMOLLM2";

/// Relative to the deviation of the logits: activations of 16 bits and a cache in f16, as for every
/// quantised file (tests/model.rs).
const ALLOWED: f64 = 3e-3;

fn main() {
    let args = Arguments::from_args();
    let missing = std::env::var_os(PATH).is_none();
    if missing && !args.list {
        eprintln!("{PATH} names no file: the tests on SmolLM2 are skipped");
    }
    let trial =
        |name, test: fn() -> Result<(), Failed>| Trial::test(name, test).with_ignored_flag(missing);
    let trials = vec![
        trial("prompts_have_the_tokens_of_the_reference", tokens_agree),
        trial("top_ten_logits_are_those_of_the_reference", top_ten_agree),
        trial("greedy_tokens_are_those_of_the_reference", greedy_tokens_agree),
        trial("the_capital_of_france_is_paris", paris),
        trial("perplexity_is_that_of_the_reference", perplexity_agrees),
    ];
    libtest_mimic::run(&args, trials).exit();
}

fn open() -> Gguf {
    Gguf::open(std::env::var_os(PATH).expect(PATH)).unwrap()
}

fn load(context: usize, max_outputs: usize) -> Model {
    let options = Options { context: Some(context), max_outputs, ..Options::default() };
    Model::load(&machine::device(Mode::FAST), &open(), &options, &mut |_| ()).unwrap()
}

fn reference() -> Value {
    serde_json::from_str(REFERENCE).unwrap()
}

struct Prompt {
    text: String,
    ids: Vec<u32>,
    /// Tokens and logits after the prompt, falling.
    top10: Vec<(usize, f64)>,
    /// Deviation of those logits.
    std: f64,
    greedy: Vec<u32>,
    margins: Vec<f64>,
}

fn prompts() -> Vec<Prompt> {
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let prompt = |row: &Value| Prompt {
        text: row["text"].as_str().unwrap().to_owned(),
        ids: ids(&row["ids"]),
        top10: (row["top10"].as_array().unwrap().iter())
            .map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap()))
            .collect(),
        std: row["std"].as_f64().unwrap(),
        greedy: ids(&row["greedy"]),
        margins: row["margins"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap()).collect(),
    };
    let prompts: Vec<_> = reference()["prompts"].as_array().unwrap().iter().map(prompt).collect();
    assert_eq!(prompts.len(), 3);
    prompts
}

fn tokens_agree() -> Result<(), Failed> {
    let tokenizer = Tokenizer::from_gguf(&open()).unwrap();
    assert!(!tokenizer.add_bos());
    for Prompt { text, ids, .. } in prompts() {
        assert_eq!(tokenizer.encode(&text, Specials::Parse).unwrap(), ids, "{text:?}");
    }
    Ok(())
}

fn top_ten_agree() -> Result<(), Failed> {
    let mut model = load(64, 1);
    for Prompt { text, ids, top10, std, .. } in prompts() {
        let segment = Segment { sequence: 0, position: 0, tokens: &ids, logits: Logits::Last };
        model.forward(&[segment]).unwrap();
        let got = model.read_logits(1).unwrap();
        let squares = top10.iter().map(|&(id, want)| (got[id] as f64 - want).powi(2));
        let error = (squares.sum::<f64>() / 10.0).sqrt() / std;
        println!("{text:?}: {error:.2e} of the deviation");
        assert!(error < ALLOWED, "{text:?}: {error:.2e}");
        // The ten stored are the ten largest and fall, but for ties within the error.
        let tie = 2.0 * 3.0 * ALLOWED * std;
        let above = got.iter().filter(|&&l| l as f64 > top10[9].1 + tie).count();
        assert!(above < 10, "{text:?}: {above} tokens are above the tenth");
        for pair in top10.windows(2).filter(|pair| pair[0].1 - pair[1].1 > tie) {
            assert!(got[pair[0].0] > got[pair[1].0], "{text:?}: {pair:?}");
        }
    }
    Ok(())
}

fn greedy_tokens_agree() -> Result<(), Failed> {
    for Prompt { text, ids, greedy, margins, std, .. } in prompts() {
        // All of the reference's tokens at once; each is chosen after those before it.
        let mut model = load(128, greedy.len());
        let (prompt, last) = ids.split_at(ids.len() - 1);
        let first = Segment { sequence: 0, position: 0, tokens: prompt, logits: Logits::None };
        model.forward(&[first]).unwrap();
        let tokens = [last, &greedy[..greedy.len() - 1]].concat();
        let (position, logits) = (prompt.len(), Logits::All);
        let n =
            model.forward(&[Segment { sequence: 0, position, tokens: &tokens, logits }]).unwrap();
        let logits = model.read_logits(n).unwrap();
        let mut clear = 0;
        for (at, row) in logits.chunks_exact(model.config().n_vocab).enumerate() {
            // Two logits, each off by a few times what is allowed for the root mean square.
            if margins[at] > 2.0 * 3.0 * ALLOWED * std {
                let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                assert_eq!(best as u32, greedy[at], "{text:?}, token {at}, margin {}", margins[at]);
                clear += 1;
            }
        }
        println!("{text:?}: {clear} of {} margins are clear", greedy.len());
        assert!(clear * 3 >= greedy.len() * 2, "{text:?}: only {clear} clear margins");
    }
    Ok(())
}

/// In chat form, as a user would ask; decoded token by token.
fn paris() -> Result<(), Failed> {
    let prompt = prompts().pop().unwrap();
    assert!(prompt.text.contains("What is the capital of France?<|im_end|>"));
    let tokenizer = Tokenizer::from_gguf(&open()).unwrap();
    let mut model = load(64, 1);
    let mut generator = Generator::new(&mut model, Sampling::GREEDY).unwrap();
    let mut answer = vec![generator.start(&prompt.ids).unwrap()];
    while answer.len() < 16 && !tokenizer.is_stop(answer[answer.len() - 1]) {
        answer.push(generator.next().unwrap());
    }
    answer.pop();
    let text = tokenizer.decode(&answer).unwrap();
    println!("{text}");
    assert_eq!(text, "The capital of France is Paris.");
    Ok(())
}

/// Within 0.3 % of exact arithmetic, each chunk and all that are scored.
fn perplexity_agrees() -> Result<(), Failed> {
    let reference = &reference()["perplexity"];
    let sums: Vec<f64> =
        reference["sums"].as_array().unwrap().iter().map(|sum| sum.as_f64().unwrap()).collect();
    let chunk = reference["chunk"].as_u64().unwrap() as usize;
    let text = std::fs::read_to_string(tiny::repository("tests/data/alice29.txt")).unwrap();
    let text = text.replace("\r\n", "\n");
    let tokens = Tokenizer::from_gguf(&open()).unwrap().encode(&text, Specials::Plain).unwrap();
    assert_eq!(tokens.len() as u64, reference["n_tokens"].as_u64().unwrap());
    let first: Vec<u64> = tokens[..chunk].iter().map(|&id| id.into()).collect();
    assert_eq!(Value::from(first), reference["first_chunk"]);
    let usual = if machine::is_cuda() { sums.len() } else { 1 };
    let n_chunks = std::env::var("IRONWARP_CHUNKS").map_or(usual, |n| n.parse().unwrap());
    let mut model = load(chunk, 64);
    let (mut score, mut exact) = (Score::default(), 0.0);
    for (i, (tokens, sum)) in tokens.chunks_exact(chunk).zip(&sums).take(n_chunks).enumerate() {
        let mut alone = Score::default();
        let nll = score_chunk(&mut model, tokens).unwrap();
        alone.add(&nll);
        score.add(&nll);
        exact += sum;
        let want = (sum / alone.n_tokens() as f64).exp();
        println!("chunk {i}: {:.4}, exactly {want:.4}", alone.perplexity());
        assert!((alone.perplexity() / want - 1.0).abs() < 3e-3, "chunk {i}: {want}");
    }
    let want = (exact / score.n_tokens() as f64).exp();
    println!("{n_chunks} chunks: {:.4}, exactly {want:.4}", score.perplexity());
    assert!((score.perplexity() / want - 1.0).abs() < 3e-3);
    if n_chunks == sums.len() {
        assert!((want / reference["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    }
    Ok(())
}
