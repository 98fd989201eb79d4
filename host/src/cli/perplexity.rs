//! `ironwarp perplexity`: how well a model foretells a text.

use super::model::ModelArgs;
use anyhow::{Context, ensure};
use ironwarp::perplexity::{Score, n_scored, score_chunk};
use ironwarp::tokenizer::Specials;
use ironwarp::{Options, Tokenizer};
use std::io::Write;
use std::path::PathBuf;

/// Most rows of logits that are computed together: 64 rows of 200,000 tokens are 50 MB.
const MAX_OUTPUTS: usize = 64;

/// Measure the perplexity of a text
///
/// The text is cut into chunks, each read from an empty context. The tokens of a chunk's second
/// half are scored, but for the first of them. Line ends of \r\n are read as \n. Where the
/// vocabulary asks for a first token, each chunk's first token is replaced by it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, a file in UTF-8
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    /// Chunks to read at most [default: all]
    #[arg(long)]
    chunks: Option<usize>,
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let chunk = args.chunk;
    ensure!(n_scored(chunk) > 0, "--chunk {chunk}: at least 3 tokens are needed");
    ensure!(args.chunks != Some(0), "--chunks 0: at least one is needed");
    let gguf = args.model.open_gguf()?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let path = || args.text.display().to_string();
    let text = std::fs::read_to_string(&args.text).with_context(path)?.replace("\r\n", "\n");
    let mut tokens = tokenizer.encode(&text, Specials::Plain)?;
    let n_tokens = tokens.len();
    let n_chunks = (n_tokens / chunk).min(args.chunks.unwrap_or(usize::MAX));
    ensure!(
        n_chunks > 0,
        "{}: {n_tokens} tokens are not one chunk of {chunk}; see --chunk",
        args.text.display()
    );
    if tokenizer.add_bos()
        && let Some(bos) = tokenizer.bos()
    {
        tokens.iter_mut().step_by(chunk).for_each(|first| *first = bos);
    }
    let device = args.model.open_device()?;
    let max_outputs = MAX_OUTPUTS.min(n_scored(chunk));
    let options = Options { max_outputs, ..Options::default() };
    let mut model = args.model.load(&device, &gguf, options)?;
    let context = model.context();
    ensure!(chunk <= context, "a chunk of {chunk} tokens is longer than the context of {context}");
    writeln!(out, "{n_tokens} tokens, {n_chunks} chunks of {chunk}, {} scored", n_scored(chunk))?;
    let mut score = Score::default();
    for (i, tokens) in tokens.chunks_exact(chunk).take(n_chunks).enumerate() {
        score.add(&score_chunk(&mut model, tokens)?);
        writeln!(out, "chunk {}: {:.4}", i + 1, score.perplexity())?;
        out.flush()?;
    }
    let (perplexity, error) = (score.perplexity(), score.standard_error());
    writeln!(out, "perplexity {perplexity:.4} +- {error:.4} over {} tokens", score.n_tokens())?;
    Ok(())
}
