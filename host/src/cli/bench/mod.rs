//! `ironwarp bench`: how fast models and kernels are here.

mod html;
mod kernels;
mod model;
mod roofline;

use super::text::size;
use anyhow::Context;
use ironwarp::bench::{CopyRate, Spread, copy_rate};
use ironwarp::{Device, Gguf};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Measure how fast models and kernels are, and where the time goes
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Kernels(kernels::Args),
    Model(model::Args),
    Roofline(roofline::Args),
}

/// Where else the figures go.
#[derive(clap::Args)]
struct Reports {
    /// Write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with plots to this file, as one page of HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.what {
        What::Kernels(args) => kernels::run(args, out),
        What::Model(args) => model::run(args, out),
        What::Roofline(args) => roofline::run(args, out),
    }
}

impl Reports {
    /// Opens the files, so that a path that can't be written is told before anything is measured.
    fn check(&self) -> anyhow::Result<()> {
        for path in self.json.iter().chain(&self.html) {
            std::fs::write(path, "").with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Writes the files.
    fn write(&self, report: &Value) -> anyhow::Result<()> {
        let write = |path: &Option<PathBuf>, text: fn(&Value) -> String| match path {
            Some(path) => {
                std::fs::write(path, text(report)).with_context(|| path.display().to_string())
            }
            None => Ok(()),
        };
        write(&self.json, |report| format!("{report:#}\n"))?;
        write(&self.html, html::page)
    }
}

/// What is measured on, and the rate that everything is compared with.
struct Machine {
    device: Device,
    copy: CopyRate,
}

impl Machine {
    /// Measures the rate, and writes the beginning of what a subcommand says.
    fn introduce(
        device: Device,
        file: Option<&Gguf>,
        out: &mut dyn Write,
    ) -> anyhow::Result<Machine> {
        let copy = copy_rate(&device)?;
        let machine = Machine { device, copy };
        if let Some(gguf) = file {
            writeln!(out, "{}, {}", gguf.name(), size(gguf.file_bytes()))?;
        }
        writeln!(out, "{}\n", machine.line())?;
        out.flush()?;
        Ok(machine)
    }

    /// The machine and its copy rate in a line.
    fn line(&self) -> String {
        let name = match self.device.as_cuda() {
            Some(cuda) => format!("{}, CUDA {}", cuda.info().name, cuda.info().driver_version),
            None => format!("CPU, emulated by {} threads", rayon::current_num_threads()),
        };
        let (rate, mib) = (&self.copy.rate, self.copy.bytes >> 20);
        format!(
            "{name}; copies {mib} MiB at {:.0} GB/s, read and written ({:.0} to {:.0})",
            rate.median() / 1e9,
            rate.min() / 1e9,
            rate.max() / 1e9
        )
    }

    /// Bytes read and written a second.
    fn rate(&self) -> f64 {
        self.copy.rate.median()
    }

    /// Figures of a subcommand, with what every report has.
    fn report<const N: usize>(
        &self,
        bench: &str,
        file: Option<&Gguf>,
        figures: [(&str, Value); N],
    ) -> Value {
        let copy = &self.copy;
        let mut report = json!({
            "bench": bench,
            "version": env!("CARGO_PKG_VERSION"),
            "machine": match self.device.as_cuda() {
                Some(cuda) => json!({
                    "device": cuda.info().name,
                    "driver_cuda_version": cuda.info().driver_version,
                    "image": cuda.image().to_string(),
                }),
                None => json!({
                    "device": "CPU, emulated",
                    "threads": rayon::current_num_threads(),
                }),
            },
            "copy": { "buffer_bytes": copy.bytes, "bytes_per_second": copy.rate.figures() },
        });
        if let Some(gguf) = file {
            report["file"] = json!(gguf.name());
            report["file_bytes"] = json!(gguf.file_bytes());
        }
        for (key, figure) in figures {
            report[key] = figure;
        }
        report
    }
}

/// Figures as a report has them, multiplied by `scale`.
fn spread_json(spread: &Spread, scale: f64) -> Value {
    json!({
        "runs": scaled(spread.figures(), scale),
        "median": scale * spread.median(),
        "min": scale * spread.min(),
        "max": scale * spread.max(),
        "deviation": scale * spread.deviation(),
    })
}

fn scaled(figures: &[f64], scale: f64) -> Vec<f64> {
    figures.iter().map(|figure| scale * figure).collect()
}
