//! `ironwarp logits`: the logits of every position, to compare with any reference.

use super::model::ModelArgs;
use anyhow::{Context, ensure};
use ironwarp::Options;
use ironwarp::model::{Logits, Segment};
use npyz::WriterBuilder;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

/// Positions whose logits are computed together.
const STEP: usize = 32;

/// Write the logits of every position as a .npy array, float32 [tokens, vocabulary]
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The file to write
    #[arg(long)]
    out: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &Args, _out: &mut dyn Write) -> anyhow::Result<()> {
    let gguf = args.model.open_gguf()?;
    let device = args.model.open_device()?;
    let options = Options { max_step: STEP, max_outputs: STEP, ..Options::default() };
    let mut model = args.model.load(&device, &gguf, options)?;
    let context = model.context();
    let n = args.tokens.len();
    ensure!(n <= context, "{n} tokens are more than the context of {context}; see --ctx");
    let shape = [args.tokens.len() as u64, model.config().n_vocab as u64];
    let path = || args.out.display().to_string();
    let file = BufWriter::new(File::create(&args.out).with_context(path)?);
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(file)
        .begin_nd()
        .with_context(path)?;
    for (i, tokens) in args.tokens.chunks(STEP).enumerate() {
        let segment = Segment { sequence: 0, position: i * STEP, tokens, logits: Logits::All };
        let n_outputs = model.forward(&[segment])?;
        writer.extend(model.read_logits(n_outputs)?).with_context(path)?;
    }
    writer.finish().with_context(path)
}
