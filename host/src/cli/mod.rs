//! The command line: one file per subcommand. A subcommand writes to the output that it is given
//! and returns its error; this module alone prints errors and decides the exit status.

mod bench;
mod generate;
mod inspect;
mod logits;
mod model;
mod perplexity;
mod synth;
mod text;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// GPT-OSS, GPT-2 and Llama inference, every GPU kernel written in Rust.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Generate(generate::Args),
    Inspect(inspect::Args),
    Logits(logits::Args),
    Perplexity(perplexity::Args),
    Synth(synth::Args),
}

/// Runs the command line of this process: 0 when all went well, 1 for an error, 2 for bad usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and usage go to a terminal that may be gone; the status still counts.
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 2 } else { 0 });
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match cli.command {
        Command::Bench(args) => bench::run(&args, &mut out),
        Command::Generate(args) => generate::run(&args, &mut out),
        Command::Logits(args) => logits::run(&args, &mut out),
        Command::Perplexity(args) => perplexity::run(&args, &mut out),
        Command::Inspect(args) => inspect::run(&args, &mut out),
        Command::Synth(args) => synth::run(&args, &mut out),
    };
    let flushed = out.flush().map_err(anyhow::Error::from);
    match done.and(flushed) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has read enough of it.
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let output = if error.is::<io::Error>() { "standard output: " } else { "" };
            let _ = writeln!(io::stderr(), "ironwarp: {output}{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether the error is that standard output was closed. A bare I/O error is always about standard
/// output: one about a file has its path, and so another type.
fn reader_left(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes, without those that the text before them already tells.
fn chain(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
