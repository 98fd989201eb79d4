//! `ironwarp inspect`: what is in a GGUF file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use ironwarp::gguf::{Value, quoted};
use ironwarp::model::{Config, memory_need};
use ironwarp::{Gguf, Options};

use super::text::{Column, cut, grouped, size, table};

/// Show the metadata and the tensors of a GGUF file, and the memory that the model needs
#[derive(clap::Args)]
pub struct Args {
    /// The GGUF file
    file: PathBuf,
    /// Tokens of context to estimate the memory for
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    ctx: u32,
    /// Leave the list of tensors out
    #[arg(long)]
    brief: bool,
}

pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let gguf = Gguf::open(&args.file)?;
    let facts = (gguf.version(), size(gguf.file_bytes()), gguf.alignment());
    writeln!(out, "{}", args.file.display())?;
    writeln!(out, "GGUF version {}, {}, data aligned to {} bytes", facts.0, facts.1, facts.2)?;

    writeln!(out, "\nMetadata: {} keys", grouped(gguf.metadata().len() as u64))?;
    let rows: Vec<_> = gguf.metadata().map(|(key, value)| metadata_row(key, value)).collect();
    table(out, [Column::Left; 3], &rows)?;

    writeln!(out, "\nTensors: {}", grouped(gguf.tensors().len() as u64))?;
    if !args.brief {
        let rows: Vec<_> = gguf.tensors().iter().map(tensor_row).collect();
        table(out, [Column::Left, Column::Left, Column::Right, Column::Right], &rows)?;
        writeln!(out)?;
    }
    table(out, [Column::Left, Column::Right, Column::Right, Column::Right], &totals(&gguf))?;

    writeln!(out, "\nDevice memory for {} tokens of context, about", grouped(args.ctx.into()))?;
    let rows = memory_rows(&gguf, args.ctx);
    table(out, [Column::Left, Column::Right], &rows)?;
    Ok(())
}

fn metadata_row(key: &str, value: Value<'_>) -> [String; 3] {
    let ty = match value {
        Value::Array(array) => format!("{}[{}]", array.elem_type(), array.len()),
        value => value.value_type().to_string(),
    };
    [quoted(key), ty, cut(&value.to_string(), 80)]
}

fn tensor_row(info: &ironwarp::gguf::TensorInfo) -> [String; 4] {
    let dims: Vec<String> = info.dims().iter().map(u64::to_string).collect();
    let format = info.format().name().to_string();
    [quoted(info.name()), format, dims.join(" x "), size(info.n_bytes())]
}

/// A line for each format, and one for all.
fn totals(gguf: &Gguf) -> Vec<[String; 4]> {
    // Tensors, elements, bytes.
    let mut of_format = BTreeMap::<u32, (&str, [u64; 3])>::new();
    let mut all = [0u64; 3];
    for info in gguf.tensors() {
        let format = info.format();
        let (_, sums) = of_format.entry(format as u32).or_insert((format.name(), [0; 3]));
        let counts = [1, info.n_elems(), info.n_bytes()];
        for sums in [sums, &mut all] {
            // Descriptions may overlap, so the sums are not bounded by the file.
            *sums = std::array::from_fn(|i| sums[i].saturating_add(counts[i]));
        }
    }
    let row = |name: &str, [tensors, elems, bytes]: [u64; 3]| {
        let elems = format!("{} weights", grouped(elems));
        [name.to_string(), format!("{} tensors", grouped(tensors)), elems, size(bytes)]
    };
    let mut rows: Vec<_> = of_format.values().map(|(name, sums)| row(name, *sums)).collect();
    rows.push(row("all", all));
    rows
}

fn memory_rows(gguf: &Gguf, ctx: u32) -> Vec<[String; 2]> {
    let need = Config::read(gguf).and_then(|config| {
        // Learned positions end where they end.
        let most = if config.rope.is_some() { usize::MAX } else { config.max_context };
        let options = Options { context: Some(most.min(ctx as usize)), ..Options::default() };
        memory_need(gguf, &options)
    });
    match need {
        Ok(need) => vec![
            ["weights".to_string(), size(need.weights)],
            ["KV cache".to_string(), size(need.cache)],
            ["buffers".to_string(), size(need.workspace)],
            ["together".to_string(), size(need.total())],
        ],
        Err(error) => vec![[format!("unknown: {error}"), String::new()]],
    }
}
