//! `ironwarp bench model`: tokens a second, in rows.

use super::super::model::ModelArgs;
use super::super::text::{Column, table};
use super::{Machine, Reports, spread_json};
use anyhow::ensure;
use ironwarp::Options;
use ironwarp::bench::model::{Plan, Row, Test, measure};
use serde_json::{Value, json};
use std::io::Write;

/// Measure how fast a model reads prompts and generates
///
/// Rows are pp512, a prompt of 512 tokens, and tg128, 128 tokens generated; `@ d4096` after 4096
/// tokens that are in the cache, `b4` for 4 sequences at once. Rates are of whole runs by the host's
/// clock, each token chosen on the device and told to the host: what a user of `generate` gets.
///
/// The bytes of a step are those that it must read: the weight matrices once, of experts as many as
/// tokens use, and the keys and values of each sequence, as far as layers with a window see. With
/// several sequences it is the number of different experts expected if each is as likely as any
/// other: n (1 - (1 - k/n)^b) of n, for b sequences that use k each. The share is that of the rate at
/// which this device copies within its memory, measured in the same run, bytes read and bytes
/// written both counted.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt; 0 leaves prompts out
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate; 0 leaves generation out
    #[arg(long, default_value_t = 128)]
    r#gen: usize,
    /// Tokens of each sequence that are read before; several, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "TOKENS")]
    depth: Vec<usize>,
    /// Sequences that are generated at once; several, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "SEQUENCES")]
    batch: Vec<usize>,
    /// Timed runs of each row, after one that is not
    #[arg(long, default_value_t = 3)]
    reps: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    #[command(flatten)]
    reports: Reports,
}

/// The measurements that are asked for.
fn plans(args: &Args) -> Vec<Plan> {
    let (runs, temperature) = (args.reps, args.temperature);
    let mut plans = Vec::new();
    for &depth in &args.depth {
        let plan = |test, batch| Plan { test, depth, batch, runs, temperature };
        if args.prompt > 0 {
            plans.push(plan(Test::Prompt(args.prompt), 1));
        }
        if args.r#gen > 0 {
            plans.extend(args.batch.iter().map(|&batch| plan(Test::Generate(args.r#gen), batch)));
        }
    }
    plans
}

/// Runs the subcommand.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<()> {
    ensure!(args.reps > 0, "--reps 0: at least one is needed");
    ensure!(args.batch.iter().all(|&batch| batch > 0), "--batch 0: at least one is needed");
    let plans = plans(args);
    ensure!(!plans.is_empty(), "--prompt 0 --gen 0: nothing is left to measure");
    args.reports.check()?;
    let gguf = args.model.open_gguf()?;
    let device = args.model.open_device()?;
    let most = |of: fn(&Plan) -> usize| plans.iter().map(of).max().unwrap_or(1);
    let (context, batch) = (most(Plan::context), most(|plan| plan.batch));
    if let Some(ctx) = args.model.ctx {
        ensure!(ctx >= context, "--ctx {ctx}: these rows need {context} tokens");
    }
    let options = Options {
        context: Some(context),
        n_sequences: batch,
        max_outputs: batch,
        ..Options::default()
    };
    let mut model = args.model.load(&device, &gguf, options)?;
    let machine = Machine::introduce(device, Some(&gguf), out)?;

    let mut rows = Vec::new();
    for plan in &plans {
        rows.push(measure(&mut model, plan)?);
    }
    let mut cells = vec![HEAD.map(str::to_owned)];
    cells.extend(rows.iter().map(|row| line(row, &machine)));
    let columns = std::array::from_fn(|i| if i == 0 { Column::Left } else { Column::Right });
    table(out, columns, &cells)?;
    for row in &rows {
        let batch = row.plan.batch as f64;
        if let Some(distinct) = row.distinct_tokens.filter(|distinct| *distinct < 0.9 * batch) {
            let name = row.plan.name();
            writeln!(out, "\n{name}: only {distinct:.1} different tokens a step, so that fewer")?;
            writeln!(out, "experts were read than expected; --temperature 1 draws different ones")?;
        }
    }
    let rows: Vec<Value> = rows.iter().map(|row| row_json(row, &machine)).collect();
    args.reports.write(&machine.report("model", Some(&gguf), [("rows", json!(rows))]))
}

const HEAD: [&str; 7] =
    ["test", "tokens/s", "min - max", "ms/token", "weights/step", "KV/step", "GB/s, share of copy"];

fn line(row: &Row, machine: &Machine) -> [String; 7] {
    let speed = &row.tokens_per_second;
    let bytes = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.2} MB", bytes as f64 / 1e6),
        None => "-".to_owned(),
    };
    let rate = match row.step_bytes().map(|bytes| row.rate(bytes)) {
        Some(rate) => format!("{:.1}, {:.1} %", rate / 1e9, 100.0 * rate / machine.rate()),
        None => "-".to_owned(),
    };
    [
        row.plan.name(),
        format!("{:.1}", speed.median()),
        format!("{:.1} - {:.1}", speed.min(), speed.max()),
        format!("{:.3}", row.ms_per_token),
        bytes(row.weight_bytes),
        bytes(row.cache_bytes),
        rate,
    ]
}

fn row_json(row: &Row, machine: &Machine) -> Value {
    let rate = row.step_bytes().map(|bytes| row.rate(bytes));
    let (kind, tokens) = match row.plan.test {
        Test::Prompt(n) => ("prompt", n),
        Test::Generate(n) => ("generate", n),
    };
    json!({
        "test": row.plan.name(),
        "kind": kind,
        "tokens": tokens,
        "depth": row.plan.depth,
        "batch": row.plan.batch,
        "temperature": row.plan.temperature,
        "tokens_per_second": spread_json(&row.tokens_per_second, 1.0),
        "ms_per_token": row.ms_per_token,
        "weight_bytes_per_step": row.weight_bytes,
        "cache_bytes_per_step": row.cache_bytes,
        "bytes_per_second": rate,
        "share_of_copy": rate.map(|rate| rate / machine.rate()),
        "distinct_tokens_per_step": row.distinct_tokens,
    })
}
