//! How far our next-token distribution is from the exact one, in KL divergence, beside llama.cpp's
//! from its logits on the same files. `--ignored table` prints the table of docs/testing.md.

mod machine;
mod tiny;

use ironwarp::model::{Logits, Segment};
use ironwarp::{Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use kernels_gpu::quant::Format;
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;

fn main() {
    let args = Arguments::from_args();
    let mut trials: Vec<Trial> = tiny::files()
        .into_iter()
        .map(|path| Trial::test(tiny::name(&path), move || nearer_than_llama_cpp(&path)))
        .collect();
    trials.push(Trial::test("table", table).with_ignored_flag(true));
    libtest_mimic::run(&args, trials).exit();
}

/// KL divergences from the exact distribution, of every position: the mean and the largest.
struct Divergence {
    mean: f64,
    worst: f64,
}

struct Row {
    name: String,
    /// Whether every tensor is F32.
    fp32: bool,
    ours: Divergence,
    llama_cpp: Divergence,
}

fn row(path: &Path) -> Row {
    let gguf = Gguf::open(path).unwrap();
    let tokens = tiny::ids(path, "tokens");
    let n = tokens.len();
    let options = Options { context: Some(n), max_outputs: n, ..Options::default() };
    let device = machine::device(Mode::FAST);
    let mut model = Model::load(&device, &gguf, &options, &mut |_| ()).unwrap();
    let segment = Segment { sequence: 0, position: 0, tokens: &tokens, logits: Logits::All };
    model.forward(&[segment]).unwrap();
    let exact: Vec<f32> = tiny::reference(path, "hf_logits");
    let n_vocab = model.config().n_vocab;
    let divergence = |logits: &[f32]| divergence(&exact, logits, n_vocab);
    Row {
        name: tiny::name(path),
        fp32: gguf.tensors().iter().all(|t| t.format() == Format::F32),
        ours: divergence(&model.read_logits(n).unwrap()),
        llama_cpp: divergence(&tiny::reference::<f32>(path, "lcpp_logits")),
    }
}

fn divergence(exact: &[f32], logits: &[f32], n_vocab: usize) -> Divergence {
    assert_eq!(exact.len(), logits.len());
    let rows = exact.chunks_exact(n_vocab).zip(logits.chunks_exact(n_vocab));
    let all: Vec<f64> = rows.map(|(exact, logits)| kl(exact, logits)).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    Divergence { mean, worst: all.into_iter().fold(0.0, f64::max) }
}

/// `sum p ln(p / q)` of the softmax of both.
fn kl(exact: &[f32], logits: &[f32]) -> f64 {
    let (p, q) = (log_softmax(exact), log_softmax(logits));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&l| (l as f64 - largest).exp()).sum();
    logits.iter().map(|&l| l as f64 - largest - sum.ln()).collect()
}

fn nearer_than_llama_cpp(path: &Path) -> Result<(), Failed> {
    let row = row(path);
    println!("{}", line(&row));
    let Row { ours, llama_cpp, fp32, .. } = row;
    // In F32 both are as near as sums in f32 come: some 1e-7 of the logits, whose square this is.
    let nothing = if fp32 { 1e-11 } else { 0.0 };
    let nearer = |ours: f64, theirs: f64| ours.is_finite() && ours < theirs.max(nothing);
    if nearer(ours.mean, llama_cpp.mean) && nearer(ours.worst, llama_cpp.worst) {
        return Ok(());
    }
    let text = format!("mean {:.1e}, worst {:.1e}", ours.mean, ours.worst);
    Err(format!("{text}; llama.cpp {:.1e}, {:.1e}", llama_cpp.mean, llama_cpp.worst).into())
}

fn line(row: &Row) -> String {
    let Row { name, ours, llama_cpp, .. } = row;
    format!(
        "| {name} | {:.1e} | {:.1e} | {:.1e} | {:.1e} |",
        ours.mean, ours.worst, llama_cpp.mean, llama_cpp.worst
    )
}

fn table() -> Result<(), Failed> {
    println!("| file | ours, mean | worst | llama.cpp, mean | worst |");
    println!("|---|---|---|---|---|");
    tiny::files().iter().for_each(|path| println!("{}", line(&row(path))));
    Ok(())
}
