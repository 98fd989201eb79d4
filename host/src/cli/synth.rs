//! `ironwarp synth`: writes a model of random weights.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use ironwarp::synth::{MODELS, Mix, Recipe, Shape};

use super::text::size;

/// Write a GGUF file with the tensors, formats and metadata of a real model and random weights
///
/// Such a file stands in for the real one where only speed and memory matter. The -tiny models
/// are starting points for shapes of your own.
#[derive(clap::Args)]
pub struct Args {
    /// The model whose shape the file gets
    #[arg(value_parser = PossibleValuesParser::new(MODELS), hide_possible_values = false)]
    model: String,
    /// The file to write
    out: PathBuf,
    /// The mix of formats; mxfp4 is MXFP4 in the experts and Q8_0 elsewhere
    #[arg(long, value_name = "MIX", value_parser = PossibleValuesParser::new(
        Mix::ALL.map(|(name, _)| name)))]
    quant: String,
    /// The same seed gives the same file
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Sizes other than the model's")]
struct Sizes {
    /// Layers
    #[arg(long, value_name = "N")]
    layers: Option<u32>,
    /// Width of the residual stream
    #[arg(long, value_name = "N")]
    embd: Option<u32>,
    /// Width of the feed-forward part, or of each expert
    #[arg(long, value_name = "N")]
    ff: Option<u32>,
    /// Query heads
    #[arg(long, value_name = "N")]
    heads: Option<u32>,
    /// Key and value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<u32>,
    /// Width of a head
    #[arg(long, value_name = "N")]
    head_dim: Option<u32>,
    /// The longest context
    #[arg(long, value_name = "N")]
    ctx: Option<u32>,
    /// Tokens, special ones included
    #[arg(long, value_name = "N")]
    vocab: Option<u32>,
    /// Experts of a layer
    #[arg(long, value_name = "N")]
    experts: Option<u32>,
    /// Experts that a token goes through
    #[arg(long, value_name = "N")]
    experts_used: Option<u32>,
    /// Positions that a layer with a sliding window sees
    #[arg(long, value_name = "N")]
    window: Option<u32>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let shape = Shape::named(&args.model).context("no such model")?;
    let mix = Mix::named(&args.quant).context("no such mix of formats")?;
    if args.out.exists() && !args.force {
        bail!("{} exists; --force replaces it", args.out.display());
    }
    let recipe = Recipe {
        name: format!("{} {} synth", args.model, args.quant),
        shape: args.sizes.apply(shape),
        mix,
        seed: args.seed,
    };
    let start = Instant::now();
    let bytes = recipe.write_file(&args.out)?;
    let seconds = start.elapsed().as_secs_f64();
    writeln!(out, "{}: {} in {seconds:.1} s", args.out.display(), size(bytes))?;
    Ok(())
}

impl Sizes {
    fn apply(&self, mut shape: Shape) -> Shape {
        // The heads of GPT-2 share out the width among them, and have keys of their own.
        if shape.arch == ironwarp::synth::Arch::Gpt2 {
            shape.n_heads = self.heads.unwrap_or(shape.n_heads);
            shape.n_kv_heads = shape.n_heads;
            shape.n_embd = self.embd.unwrap_or(shape.n_embd);
            shape.n_ff = 4 * shape.n_embd;
            shape.head_dim = shape.n_embd.checked_div(shape.n_heads).unwrap_or(0);
        }
        for (size, given) in [
            (&mut shape.n_layers, self.layers),
            (&mut shape.n_embd, self.embd),
            (&mut shape.n_ff, self.ff),
            (&mut shape.n_heads, self.heads),
            (&mut shape.n_kv_heads, self.kv_heads),
            (&mut shape.head_dim, self.head_dim),
            (&mut shape.n_ctx, self.ctx),
            (&mut shape.n_vocab, self.vocab),
            (&mut shape.n_experts, self.experts),
            (&mut shape.n_experts_used, self.experts_used),
            (&mut shape.window, self.window),
        ] {
            *size = given.unwrap_or(*size);
        }
        shape
    }
}
