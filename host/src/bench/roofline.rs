//! One decode step, kernel by kernel: what each must read, how long that would take at the rate at
//! which the device copies, and how long it takes.

use super::{HeadStart, Spread, random_tokens};
use crate::device::TracedLaunch;
use crate::error::Result;
use crate::generate::{Generator, Sampling};
use crate::model::{Logits, Model, Part, Segment};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Times that each figure is measured, for its median.
const RUNS: usize = 15;
/// Times before that, in which kernels are compiled and steps recorded.
const FIRST_RUNS: usize = 3;
/// Pieces of a head start in which the host launches a step, some hundred kernels with two marks
/// each, and those in which it replays one.
const LAUNCH_PIECES: usize = 50;
const REPLAY_PIECES: usize = 2;

/// All launches of one kernel in a step. Times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelShare {
    /// The kernel.
    pub name: &'static str,
    /// How often it is launched.
    pub launches: usize,
    /// Bytes of weights, keys and values that it must read.
    pub bytes: u64,
    /// What the step gets longer by with these launches: differences of recorded steps that end
    /// before and after each. On a device that records nothing as `alone`.
    pub time: f64,
    /// Launched one by one, from a mark before each to a mark after it.
    pub alone: f64,
}

impl KernelShare {
    /// Seconds that its bytes take at `rate` bytes a second.
    pub fn floor(&self, rate: f64) -> f64 {
        self.bytes as f64 / rate
    }

    /// Seconds beyond that.
    pub fn loss(&self, rate: f64) -> f64 {
        self.time - self.floor(rate)
    }
}

/// A decode step. Times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// The largest loss first.
    pub kernels: Vec<KernelShare>,
    /// The model's step, recorded and replayed, by the device's clock; launched where nothing is
    /// recorded.
    pub step: Spread,
    /// The same and choosing the next token, which the host waits for, by the host's clock.
    pub token: Spread,
    /// Bytes of the step that no launch was given: 0, else the list of parts is wrong.
    pub stray_bytes: u64,
}

/// Measures the decode step of `batch` sequences after `depth` tokens each, and compares with a rate
/// in bytes a second.
///
/// # Errors
/// When the model has too little context or too few sequences, or a step fails.
pub fn measure(model: &mut Model, depth: usize, batch: usize, rate: f64) -> Result<Roofline> {
    let n_vocab = model.config().n_vocab;
    let device = model.device().clone();
    let mut generator = Generator::of_several(model, &vec![Sampling::GREEDY; batch])?;
    for sequence in 0..batch {
        generator.read(sequence, &random_tokens(sequence as u64, depth + 1, n_vocab))?;
    }
    let mut token_times = Vec::with_capacity(RUNS);
    for run in 0..FIRST_RUNS + RUNS {
        let started = Instant::now();
        generator.next_of_all()?;
        let time = started.elapsed().as_secs_f64();
        generator.rewind(1)?;
        if run >= FIRST_RUNS {
            token_times.push(time);
        }
    }
    let head_start = HeadStart::new(&device)?;
    let mut traces: Vec<Vec<TracedLaunch>> = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        head_start.give(&device, LAUNCH_PIECES)?;
        traces.push(device.trace(|| generator.next_of_all().map(|_| ()))?);
        generator.rewind(1)?;
    }
    drop(generator);

    let tokens: Vec<u32> = random_tokens(depth as u64, batch, n_vocab);
    let segment =
        |(sequence, tokens)| Segment { sequence, position: depth, tokens, logits: Logits::Last };
    let segments: Vec<Segment<'_>> = tokens.chunks(1).enumerate().map(segment).collect();
    let n_launches = device.trace(|| model.forward(&segments).map(|_| ()))?.len();
    let alone = medians(&traces);
    let (step, mut times): (Spread, Vec<f64>) =
        match replayed(model, &segments, n_launches, &head_start)? {
            Some(ends) => {
                let medians: Vec<f64> = ends.iter().map(Spread::median).collect();
                let before = std::iter::once(&0.0).chain(&medians);
                let times = medians.iter().zip(before).map(|(end, before)| end - before).collect();
                (ends.last().cloned().unwrap_or(Spread::of(Vec::new())), times)
            }
            None => (launched(model, &segments)?, Vec::new()),
        };
    // What chooses the token is not in the recorded step.
    times.extend(alone.iter().skip(times.len()));

    let parts = model.parts(batch, depth);
    let (bytes, stray_bytes) = match traces.first() {
        Some(launches) => bytes_of(launches, &parts),
        None => (Vec::new(), 0),
    };
    let mut kernels: BTreeMap<&'static str, KernelShare> = BTreeMap::new();
    let figures = bytes.iter().zip(times.iter().zip(&alone));
    for (launch, (bytes, (time, alone))) in traces.iter().take(1).flatten().zip(figures) {
        let name = launch.spec.name;
        let none = KernelShare { name, launches: 0, bytes: 0, time: 0.0, alone: 0.0 };
        let kernel = kernels.entry(name).or_insert(none);
        kernel.launches += 1;
        kernel.bytes += bytes;
        kernel.time += time;
        kernel.alone += alone;
    }
    let mut kernels: Vec<KernelShare> = kernels.into_values().collect();
    kernels.sort_by(|a, b| b.loss(rate).total_cmp(&a.loss(rate)));
    Ok(Roofline { kernels, step, token: Spread::of(token_times), stray_bytes })
}

/// The median time of each launch.
fn medians(traces: &[Vec<TracedLaunch>]) -> Vec<f64> {
    let n = traces.iter().map(Vec::len).min().unwrap_or(0);
    let times = |i: usize| traces.iter().map(|trace| trace[i].time.as_secs_f64()).collect();
    (0..n).map(|i| Spread::of(times(i)).median()).collect()
}

/// Times of the recorded step up to each of its launches. None where nothing is recorded.
fn replayed(
    model: &mut Model,
    segments: &[Segment<'_>],
    n_launches: usize,
    head_start: &HeadStart,
) -> Result<Option<Vec<Spread>>> {
    let device = model.device().clone();
    let before = || head_start.give(&device, REPLAY_PIECES);
    let mut ends = Vec::with_capacity(n_launches);
    for n in 1..=n_launches {
        let Some(times) = model.time_launches(segments, n, FIRST_RUNS + RUNS, before)? else {
            return Ok(None);
        };
        let seconds = times[FIRST_RUNS..].iter().map(Duration::as_secs_f64).collect();
        ends.push(Spread::of(seconds));
    }
    Ok(Some(ends))
}

/// Times of the step as it is launched.
fn launched(model: &mut Model, segments: &[Segment<'_>]) -> Result<Spread> {
    let device = model.device().clone();
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = device.mark()?;
        model.forward(segments)?;
        let end = device.mark()?;
        times.push(device.elapsed(&start, &end)?);
    }
    Ok(Spread::of(times.iter().map(Duration::as_secs_f64).collect()))
}

/// Bytes of `parts` that each launch must read, and those that none does. A part is read by the last
/// launch that is given it: others write a row, take a row, or fetch ahead for it.
fn bytes_of(launches: &[TracedLaunch], parts: &[Part]) -> (Vec<u64>, u64) {
    let (mut bytes, mut stray) = (vec![0; launches.len()], 0);
    for part in parts {
        let is_given = |launch: &TracedLaunch| {
            launch.views.iter().any(|view| {
                view.bytes > 0
                    && view.address < part.address + part.bytes
                    && part.address < view.address + view.bytes
            })
        };
        match launches.iter().rposition(is_given) {
            Some(last) => bytes[last] += part.read_bytes,
            None => stray += part.read_bytes,
        }
    }
    (bytes, stray)
}
