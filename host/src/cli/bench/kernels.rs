//! `ironwarp bench kernels`: kernels one by one, at the sizes of real models.

use super::super::model::DeviceArgs;
use super::super::text::{Column, table};
use super::{Machine, Reports, spread_json};
use anyhow::ensure;
use indicatif::{ProgressBar, ProgressStyle};
use ironwarp::bench::Spread;
use ironwarp::bench::kernels::{self, Bench, Peaks, Row};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write, stderr};

/// Check and measure kernels one by one, at the sizes of real models
///
/// A bench is named after the kernels that this device gets for an operation, and the operation's shape.
/// Some outputs are first compared with their definition in f64: a wrong result is an error, and nothing
/// is timed. Then copies of weights, keys and values, together several times the card's cache, take turns
/// in a batch of launches, which is recorded and replayed; launches overlap as those of a step do. A time
/// is that of a batch by the device's clock, divided by its operations.
///
/// Bytes are those that an operation must read or write, each once: weights as they lie on the device, keys
/// and values, activations. The share is of the rate at which the device copies within its memory,
/// measured in the same run, bytes read and bytes written both counted. Operations are multiplications and
/// additions, two for each weight and token, or each dimension of a key or a value that a query meets.
/// Their share is of the rate of the tensor cores, measured in the same run in chains of products that
/// read nothing: of bytes for quantised weights, of halves for f16, bf16, and attention. Activations have
/// 16 bits, which are two pieces: each operation of a product counts twice there.
///
/// With `--device cpu` the table has small models.
#[derive(clap::Args)]
pub struct Args {
    /// Only benches with this in their names
    pattern: Option<String>,
    /// Show the names, and measure nothing
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    reports: Reports,
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let all = kernels::table(&device)?;
    let pattern = args.pattern.as_deref().unwrap_or_default();
    let benches: Vec<&Bench> = all.iter().filter(|bench| bench.name().contains(pattern)).collect();
    ensure!(
        !benches.is_empty(),
        "no bench has `{pattern}` in its name; there are\n{}",
        names(&all)
    );
    if args.list {
        benches.iter().try_for_each(|bench| writeln!(out, "{}", bench.name()))?;
        return Ok(());
    }
    args.reports.check()?;
    let machine = Machine::introduce(device, None, out)?;
    let peaks = Peaks::measure(&machine.device)?;
    writeln!(out, "{}\n", peaks_line(&peaks))?;
    out.flush()?;
    let bar = if stderr().is_terminal() {
        let style = ProgressStyle::with_template("{pos} of {len} {msg}")?;
        ProgressBar::new(benches.len() as u64).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let mut rows = Vec::with_capacity(benches.len());
    for bench in benches {
        bar.set_message(bench.name().to_owned());
        rows.push(bench.measure(&machine.device)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut cells = vec![HEAD.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| line(row, &machine, &peaks)));
    let columns = std::array::from_fn(|i| if i == 0 { Column::Left } else { Column::Right });
    table(out, columns, &cells)?;
    let rows: Vec<Value> = rows.iter().map(|row| row_json(row, &machine, &peaks)).collect();
    let figures = [
        ("byte_operations_per_second", json!(peaks.bytes.figures())),
        ("half_operations_per_second", json!(peaks.halves.figures())),
        ("rows", json!(rows)),
    ];
    args.reports.write(&machine.report("kernels", None, figures))
}

/// What there is.
fn names(all: &[Bench]) -> String {
    all.iter().map(|bench| format!("  {}", bench.name())).collect::<Vec<_>>().join("\n")
}

/// What products are compared with.
fn peaks_line(peaks: &Peaks) -> String {
    let rate = |spread: &Spread| {
        let [median, min, max] = [spread.median(), spread.min(), spread.max()].map(tera);
        format!("{median} ({min} to {max})")
    };
    format!(
        "tensor cores multiply bytes at {} TOP/s, halves at {} TFLOP/s",
        rate(&peaks.bytes),
        rate(&peaks.halves)
    )
}

/// Operations a second in units of 10^12; of the emulator's few the leading digits.
fn tera(rate: f64) -> String {
    match rate / 1e12 {
        rate if rate >= 0.01 => format!("{rate:.2}"),
        rate => format!("{rate:.1e}"),
    }
}

const HEAD: [&str; 8] =
    ["kernel/shape", "us", "min - max", "MB", "GB/s", "of copy", "TFLOP/s", "of peak"];

fn line(row: &Row, machine: &Machine, peaks: &Peaks) -> [String; 8] {
    let time = &row.time;
    let us = |seconds: f64| format!("{:.2}", 1e6 * seconds);
    [
        row.name.clone(),
        us(time.median()),
        format!("{} - {}", us(time.min()), us(time.max())),
        format!("{:.2}", row.work.bytes as f64 / 1e6),
        format!("{:.1}", row.byte_rate() / 1e9),
        format!("{:.1} %", 100.0 * row.byte_rate() / machine.rate()),
        row.operation_rate().map_or("-".to_owned(), tera),
        row.share_of_peak(peaks).map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
    ]
}

fn row_json(row: &Row, machine: &Machine, peaks: &Peaks) -> Value {
    json!({
        "name": row.name,
        "kernels": row.kernels,
        "time_us": spread_json(&row.time, 1e6),
        "bytes": row.work.bytes,
        "bytes_per_second": row.byte_rate(),
        "share_of_copy": row.byte_rate() / machine.rate(),
        "operations": row.work.operations,
        "operations_per_second": row.operation_rate(),
        "share_of_peak": row.share_of_peak(peaks),
        "copies": row.copies,
        "batch": row.batch,
        "checked": row.checked,
    })
}
