//! Whole models against references that transformers computed in fp32 from the same files: every
//! architecture, every format. And the promises about bits: prefill and decode give the same ones,
//! and what shares the batch does not matter.

mod machine;
mod tiny;

use ironwarp::generate::{Generator, Sampling};
use ironwarp::model::{KvType, Logits, Segment};
use ironwarp::{Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::quant::Format;
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;
use tiny::{ids, reference, relative_rms};

fn main() {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    for path in tiny::files() {
        let name = tiny::name(&path);
        let mut add = |what: &str, test: fn(&Path) -> Result<(), String>| {
            let path = path.clone();
            let run = move || test(&path).map_err(Failed::from);
            trials.push(Trial::test(format!("{name}/{what}"), run));
        };
        add("logits", logits_agree);
        add("greedy", greedy_tokens_agree);
        add("prefill_is_decode", prefill_gives_the_bits_of_decode);
        add("batch_invariant", a_neighbour_changes_no_bit);
        // In full precision a block has a row, which takes the emulator's checks minutes.
        if !in_full_precision(&path) {
            add("steps_overlap", steps_that_overlap_change_no_token);
        }
    }
    libtest_mimic::run(&args, trials).exit();
}

fn load(path: &Path, options: Options) -> Result<Model, String> {
    load_in(Mode::FAST, path, options)
}

fn load_in(mode: Mode, path: &Path, options: Options) -> Result<Model, String> {
    let gguf = Gguf::open(path).map_err(|e| e.to_string())?;
    Model::load(&machine::device(mode), &gguf, &options, &mut |_| ()).map_err(|e| e.to_string())
}

fn options() -> Options {
    Options { context: Some(64), max_outputs: 32, n_sequences: 2, ..Options::default() }
}

/// Logits of every token of `tokens`, `step` at a time.
fn logits(
    model: &mut Model,
    sequence: usize,
    tokens: &[u32],
    step: usize,
) -> Result<Vec<f32>, String> {
    let mut all = Vec::new();
    for (i, chunk) in tokens.chunks(step).enumerate() {
        let segment = Segment { sequence, position: i * step, tokens: chunk, logits: Logits::All };
        let n = model.forward(&[segment]).map_err(|e| e.to_string())?;
        all.extend(model.read_logits(n).map_err(|e| e.to_string())?);
    }
    Ok(all)
}

/// What the formats allow: f32 throughout for files in F32; else activations of 16 bits (2^-16 of
/// their block's largest) and a cache in f16, whose rounding of 2^-11 a few layers double or triple.
fn allowed(path: &Path) -> f64 {
    if in_full_precision(path) { 1e-4 } else { 3e-3 }
}

fn in_full_precision(path: &Path) -> bool {
    Gguf::open(path).unwrap().tensors().iter().all(|t| t.format() == Format::F32)
}

fn logits_agree(path: &Path) -> Result<(), String> {
    let tokens = ids(path, "tokens");
    let got = logits(&mut load(path, options())?, 0, &tokens, tokens.len())?;
    let error = relative_rms(&got, &reference(path, "hf_logits"));
    println!("{}: relative RMS {error:.2e}", path.display());
    // Not `error > allowed`: a NaN must fail.
    if error < allowed(path) { Ok(()) } else { Err(format!("relative RMS {error:.3e}")) }
}

fn greedy_tokens_agree(path: &Path) -> Result<(), String> {
    let mut tokens = ids(path, "greedy_prompt");
    let want = ids(path, "greedy_hf");
    let margins: Vec<f32> = reference(path, "greedy_hf_margin");
    let mut model = load(path, options())?;
    let n_vocab = model.config().n_vocab;
    let mut all = logits(&mut model, 0, &tokens, tokens.len())?;
    let mut compared = 0;
    for (i, (&want, &margin)) in want.iter().zip(&margins).enumerate() {
        let last = &all[all.len() - n_vocab..];
        let size = (last.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / n_vocab as f64).sqrt();
        let best = (0..n_vocab).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap() as u32;
        if margin as f64 > 10.0 * allowed(path) * size {
            compared += 1;
            if best != want {
                return Err(format!("token {i}: {best}, expected {want} (margin {margin})"));
            }
        }
        // On with the reference's token, so that a tie does not end the comparison.
        let segment =
            Segment { sequence: 0, position: tokens.len(), tokens: &[want], logits: Logits::Last };
        let n = model.forward(&[segment]).map_err(|e| e.to_string())?;
        all = model.read_logits(n).map_err(|e| e.to_string())?;
        tokens.push(want);
    }
    if compared * 2 > want.len() { Ok(()) } else { Err(format!("only {compared} clear margins")) }
}

fn same_bits(a: &[f32], b: &[f32]) -> Result<(), String> {
    match a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None if a.len() == b.len() => Ok(()),
        at => Err(format!("bits differ at {at:?}")),
    }
}

fn prefill_gives_the_bits_of_decode(path: &Path) -> Result<(), String> {
    let tokens = ids(path, "tokens");
    let mut model = load(path, Options { kv_type: Some(KvType::F16), ..options() })?;
    let whole = logits(&mut model, 0, &tokens, tokens.len())?;
    for step in [1, 5] {
        let mut model = load(path, Options { kv_type: Some(KvType::F16), ..options() })?;
        same_bits(&logits(&mut model, 0, &tokens, step)?, &whole)
            .map_err(|e| format!("{step} at a time: {e}"))?;
    }
    Ok(())
}

fn a_neighbour_changes_no_bit(path: &Path) -> Result<(), String> {
    let tokens = ids(path, "tokens");
    let tokens = &tokens[..9];
    let other = ids(path, "greedy_prompt");
    let mut model = load(path, options())?;
    let alone = logits(&mut model, 0, tokens, tokens.len())?;
    let mut model = load(path, options())?;
    let segment = |sequence, tokens| Segment { sequence, position: 0, tokens, logits: Logits::All };
    let n = model.forward(&[segment(1, &other), segment(0, tokens)]).map_err(|e| e.to_string())?;
    let both = model.read_logits(n).map_err(|e| e.to_string())?;
    same_bits(&both[other.len() * model.config().n_vocab..], &alone)
}

/// Steps of few sequences and of more, one behind the other without the host between them. The emulator's checks see
/// to it that no launch touches too early what those before it may still write.
fn steps_that_overlap_change_no_token(path: &Path) -> Result<(), String> {
    let prompt = ids(path, "greedy_prompt");
    let options = Options {
        context: Some(32),
        max_step: 16,
        max_outputs: 9,
        n_sequences: 9,
        ..Options::default()
    };
    let mut model = load_in(Mode::CHECKED, path, options)?;
    for n_sequences in [1, 2, 9] {
        let sampling = |i| match i {
            0 => Sampling::GREEDY,
            _ => Sampling { temperature: 1.0, seed: i, ..Sampling::GREEDY },
        };
        let samplings: Vec<Sampling> = (0..n_sequences).map(sampling).collect();
        let mut run = |looks_ahead| -> ironwarp::Result<Vec<Vec<u32>>> {
            let mut generator = Generator::of_several(&mut model, &samplings)?;
            generator.look_ahead(looks_ahead);
            for sequence in 0..samplings.len() {
                generator.read(sequence, &prompt[..2 + sequence % 2])?;
            }
            (0..3).map(|_| generator.next_of_all().map(<[u32]>::to_vec)).collect()
        };
        let (apart, overlapped) = (run(false), run(true));
        let (apart, overlapped) =
            (apart.map_err(|e| e.to_string())?, overlapped.map_err(|e| e.to_string())?);
        if apart != overlapped {
            return Err(format!("{n_sequences} sequences: {overlapped:?}, expected {apart:?}"));
        }
    }
    Ok(())
}
