//! `ironwarp bench`: how fast models and kernels are here.

mod html;
mod model;
mod roofline;

use anyhow::Context;
use ironwarp::Device;
use ironwarp::bench::CopyRate;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Measure how fast a model is, and where its time goes
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
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

/// What was measured on.
fn machine(device: &Device) -> Value {
    match device.as_cuda() {
        Some(cuda) => json!({
            "device": cuda.info().name,
            "driver_cuda_version": cuda.info().driver_version,
            "image": cuda.image().to_string(),
        }),
        None => json!({
            "device": "CPU, emulated",
            "threads": rayon::current_num_threads(),
        }),
    }
}

/// The machine and its copy rate in a line.
fn machine_line(device: &Device, copy: &CopyRate) -> String {
    let name = match device.as_cuda() {
        Some(cuda) => format!("{}, CUDA {}", cuda.info().name, cuda.info().driver_version),
        None => format!("CPU, emulated by {} threads", rayon::current_num_threads()),
    };
    let (rate, mib) = (&copy.rate, copy.bytes >> 20);
    format!(
        "{name}; copies {mib} MiB at {:.0} GB/s, read and written ({:.0} to {:.0})",
        rate.median() / 1e9,
        rate.min() / 1e9,
        rate.max() / 1e9
    )
}

fn copy_json(copy: &CopyRate) -> Value {
    json!({ "buffer_bytes": copy.bytes, "bytes_per_second": copy.rate.figures() })
}
