//! `ironwarp bench roofline`: where the time of a decode step goes.

use super::super::model::ModelArgs;
use super::super::text::{Column, table};
use super::{Machine, Reports, scaled};
use anyhow::ensure;
use ironwarp::Options;
use ironwarp::bench::roofline::{KernelShare, Roofline, measure};
use serde_json::{Value, json};
use std::io::Write;

/// Show where the time of a decode step goes, kernel by kernel, the largest loss first
///
/// Bytes are the weights, keys and values that a kernel must read, each once; of experts, as many as
/// are expected (see `bench model --help`). The floor is the time that they take at the rate at which
/// the device copies within its memory, measured in the same run. The time is what the step gets
/// longer by with the kernel's launches: recorded steps that end before and after each are replayed
/// and compared. Alone is the time between marks around each launch, with no overlap. What chooses
/// the token is launched after the recorded step, and has the time that it takes alone. The loss is
/// the time beyond the floor.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of each sequence that are read before
    #[arg(long, default_value_t = 512)]
    depth: usize,
    /// Sequences
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[command(flatten)]
    reports: Reports,
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let Args { depth, batch, .. } = *args;
    ensure!(batch > 0, "--batch 0: at least one is needed");
    if let Some(ctx) = args.model.ctx {
        ensure!(ctx > depth, "--ctx {ctx}: a step after {depth} tokens needs one more");
    }
    args.reports.check()?;
    let gguf = args.model.open_gguf()?;
    let device = args.model.open_device()?;
    let options = Options {
        context: Some(depth + 1),
        n_sequences: batch,
        max_outputs: batch,
        ..Options::default()
    };
    let mut model = args.model.load(&device, &gguf, options)?;
    let machine = Machine::introduce(device, Some(&gguf), out)?;
    let rate = machine.rate();
    let roofline = measure(&mut model, depth, batch, rate)?;
    show(&roofline, rate, out)?;
    let kernels: Vec<Value> = roofline.kernels.iter().map(|k| kernel_json(k, rate)).collect();
    let figures = [
        ("depth", json!(depth)),
        ("batch", json!(batch)),
        ("step_us", json!(scaled(roofline.step.figures(), 1e6))),
        ("token_us", json!(scaled(roofline.token.figures(), 1e6))),
        ("stray_bytes", json!(roofline.stray_bytes)),
        ("kernels", json!(kernels)),
    ];
    args.reports.write(&machine.report("roofline", Some(&gguf), figures))
}

const HEAD: [&str; 9] =
    ["kernel", "launches", "MB", "floor us", "time us", "loss us", "share", "GB/s", "alone us"];

fn show(roofline: &Roofline, rate: f64, out: &mut dyn Write) -> anyhow::Result<()> {
    let all: f64 = roofline.kernels.iter().map(|kernel| kernel.time).sum();
    let line = |kernel: &KernelShare| {
        let known = |text: String| if kernel.bytes > 0 { text } else { "-".to_owned() };
        [
            kernel.name.to_owned(),
            kernel.launches.to_string(),
            known(format!("{:.3}", kernel.bytes as f64 / 1e6)),
            known(format!("{:.1}", 1e6 * kernel.floor(rate))),
            format!("{:.1}", 1e6 * kernel.time),
            format!("{:.1}", 1e6 * kernel.loss(rate)),
            format!("{:.1} %", 100.0 * kernel.time / all.max(1e-12)),
            known(format!("{:.1}", kernel.bytes as f64 / kernel.time.max(1e-12) / 1e9)),
            format!("{:.1}", 1e6 * kernel.alone),
        ]
    };
    let sum = roofline.kernels.iter().fold(
        KernelShare { name: "all", launches: 0, bytes: 0, time: 0.0, alone: 0.0 },
        |sum, kernel| KernelShare {
            launches: sum.launches + kernel.launches,
            bytes: sum.bytes + kernel.bytes,
            time: sum.time + kernel.time,
            alone: sum.alone + kernel.alone,
            ..sum
        },
    );
    let mut cells = vec![HEAD.map(str::to_owned)];
    cells.extend(roofline.kernels.iter().chain([&sum]).map(line));
    let columns = std::array::from_fn(|i| if i == 0 { Column::Left } else { Column::Right });
    table(out, columns, &cells)?;
    let us = |seconds: f64| 1e6 * seconds;
    let (step, token) = (roofline.step.median(), roofline.token.median());
    writeln!(out, "\nthe model's step {:.1} us, by the device's clock", us(step))?;
    writeln!(
        out,
        "launches one by one {:.1} us: what overlap and gaps make",
        us(sum.alone - step)
    )?;
    writeln!(
        out,
        "a token {:.1} us by the host's clock, {:.1} us beyond all kernels",
        us(token),
        us(token - sum.time)
    )?;
    if roofline.stray_bytes > 0 {
        writeln!(out, "{} bytes of the step were given to no launch", roofline.stray_bytes)?;
    }
    Ok(())
}

fn kernel_json(kernel: &KernelShare, rate: f64) -> Value {
    json!({
        "kernel": kernel.name,
        "launches": kernel.launches,
        "bytes": kernel.bytes,
        "floor_us": 1e6 * kernel.floor(rate),
        "time_us": 1e6 * kernel.time,
        "loss_us": 1e6 * kernel.loss(rate),
        "alone_us": 1e6 * kernel.alone,
    })
}
