//! Cases of the choice of a token: the largest logit, and a draw against the inverse distribution
//! function in f64.

use super::{Case, Failure, Guarded, Noise};
use ironwarp::{Buffer, Device};
use kernels_gpu::gpu::{GlobalMut, U32x2, U32x4};
use kernels_gpu::sample::pick::MAX_GATHERED;
use kernels_gpu::sample::{
    Argmax, CHUNK, N_BINS, N_MASSES, RowBest, Sample, SampleBins, SampleParams, n_chunks, philox,
};
use std::cmp::Ordering;

const EPS: f64 = f32::EPSILON as f64;
/// Unit of the kernel's weights; what is below is cut off.
const UNIT: f64 = 1.0 / (1_u64 << 42) as f64;

/// Makes a logit from its column and a random number in -1..1.
type Logit = fn(usize, f32) -> f32;

/// Logits that look like a language model's: most far below the few that are likely.
const MODEL_LIKE: Logit = |_, noise| 18.0 * noise * noise * noise;

fn logits_of(logit: Logit, n_rows: usize, vocab: usize) -> Vec<f32> {
    let noise = Noise::new(11).units(n_rows * vocab);
    noise.iter().enumerate().map(|(i, &noise)| logit(i % vocab, noise)).collect()
}

/// The first of the largest logits; a NaN is the largest only where all are.
fn first_largest(row: &[f32]) -> usize {
    (0..row.len()).min_by(|&i, &j| earlier(row[i], row[j])).unwrap_or(0)
}

/// Larger first, a NaN last.
fn earlier(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) if a > b => Ordering::Less,
        (false, false) if a < b => Ordering::Greater,
        (false, false) => Ordering::Equal,
        (a, b) => a.cmp(&b),
    }
}

struct Greedy {
    edge: &'static str,
    n_rows: usize,
    vocab: usize,
    logit: Logit,
}

impl Case for Greedy {
    fn name(&self) -> String {
        format!("argmax/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Greedy { n_rows, vocab, logit, .. } = self;
        let logits = logits_of(logit, n_rows, vocab);
        let buffer = device.upload(&logits)?;
        let chunks = n_chunks(vocab as u32) as usize;
        let best = Guarded::<U32x2>::new(device, n_rows * chunks)?;
        let row_best = RowBest {
            logits: buffer.view(),
            best: best.view_mut(),
            counts: GlobalMut::absent(),
            masses: GlobalMut::absent(),
            vocab: vocab as u32,
        };
        device.launch(row_best, (chunks, n_rows))?;
        let best = device.upload(&best.read()?)?;
        let counters: Vec<u32> = (0..n_rows as u32).map(|row| 5 + 3 * row / 2).collect();
        let tokens = chosen(device, &counters, |left, positions| {
            let argmax = Argmax {
                best: best.view(),
                counters: left.counters.view_mut(),
                tokens: left.tokens.view_mut(),
                arriving: left.arriving.view_mut(),
                positions,
                tiles: left.tiles.view_mut(),
                vocab: vocab as u32,
            };
            device.launch(argmax, n_rows)
        })?;
        for (row, (got, logits)) in tokens.iter().zip(logits.chunks(vocab)).enumerate() {
            let want = first_largest(logits);
            if *got as usize != want {
                return Err(Failure(format!("row {row}: got {got}, want {want}")));
            }
        }
        Ok(())
    }
}

struct Draw {
    edge: &'static str,
    n_rows: usize,
    vocab: usize,
    logit: Logit,
    params: SampleParams,
}

impl Case for Draw {
    fn name(&self) -> String {
        format!("sample/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Draw { n_rows, vocab, logit, params, .. } = self;
        let logits = logits_of(logit, n_rows, vocab);
        // Each row has a seed and a place in its text of its own.
        let params: Vec<SampleParams> = (0..n_rows as u64)
            .map(|row| SampleParams { seed: params.seed + ((row % 3) << 40), ..params })
            .collect();
        let counters: Vec<u32> = (0..n_rows as u32).map(|row| 1000 - 7 * row).collect();
        let got = draw(device, &logits, vocab, &params, &counters)?;

        let mut n_certain = 0;
        for row in 0..n_rows {
            let allowed = allowed(&logits[row * vocab..][..vocab], &params[row], counters[row]);
            if !allowed.contains(&(got[row] as usize)) {
                return Err(Failure(format!("row {row}: got {}, want {allowed:?}", got[row])));
            }
            n_certain += (allowed.len() == 1) as usize;
        }
        // So that the check says something: where the error decides, it is a rare accident.
        match 2 * n_certain >= n_rows {
            true => Ok(()),
            false => Err(Failure(format!("only {n_certain} of {n_rows} rows have one answer"))),
        }
    }
}

fn draw(
    device: &Device,
    logits: &[f32],
    vocab: usize,
    params: &[SampleParams],
    counters: &[u32],
) -> Result<Vec<u32>, Failure> {
    let n_rows = params.len();
    let chunks = n_chunks(vocab as u32) as usize;
    let logits = device.upload(logits)?;
    let words: Vec<U32x4> = params.iter().flat_map(|p| p.words()).collect();
    let words = device.upload(&words)?;
    let best = Guarded::<U32x2>::new(device, n_rows * chunks)?;
    let counts = Guarded::<u32>::new(device, n_rows * N_BINS as usize)?;
    let masses = Guarded::<u64>::new(device, n_rows * N_MASSES as usize)?;
    let row_best = RowBest {
        logits: logits.view(),
        best: best.view_mut(),
        counts: counts.view_mut(),
        masses: masses.view_mut(),
        vocab: vocab as u32,
    };
    device.launch(row_best, (chunks, n_rows))?;
    let best: Buffer<U32x2> = device.upload(&best.read()?)?;
    let bins = SampleBins {
        logits: logits.view(),
        best: best.view(),
        params: words.view(),
        counts: counts.view_mut(),
        masses: masses.view_mut(),
        vocab: vocab as u32,
    };
    device.launch(bins, (chunks, n_rows))?;
    let (counts, masses) = (device.upload(&counts.read()?)?, device.upload(&masses.read()?)?);
    chosen(device, counters, |left, positions| {
        let sample = Sample {
            logits: logits.view(),
            best: best.view(),
            counts: counts.view(),
            masses: masses.view(),
            params: words.view(),
            counters: left.counters.view_mut(),
            tokens: left.tokens.view_mut(),
            arriving: left.arriving.view_mut(),
            positions,
            tiles: left.tiles.view_mut(),
            vocab: vocab as u32,
        };
        device.launch(sample, n_rows)
    })
}

/// What the choice of a token a row leaves.
struct Left {
    counters: Guarded<u32>,
    tokens: Guarded<u32>,
    arriving: Guarded<u32>,
    tiles: Guarded<U32x4>,
}

/// The tokens that `launch` chooses, with a step behind it and without, whose positions it is given. Each must be in
/// the half that its counter tells, and nothing in the other; and what the step begins with, one further.
fn chosen(
    device: &Device,
    counters: &[u32],
    launch: impl Fn(&Left, GlobalMut<u32>) -> ironwarp::Result<()>,
) -> Result<Vec<u32>, Failure> {
    const NOTHING: u32 = u32::from_le_bytes([super::GUARD; 4]);
    let n_rows = counters.len();
    let mut noise = Noise::new(3);
    let mut numbers = |n: usize| (0..n).map(|_| noise.bits() >> 1).collect::<Vec<u32>>();
    let (positions, words) = (numbers(n_rows), numbers(4 * n_rows));
    let tiles: Vec<_> = words.chunks(4).map(|w| U32x4([w[0], w[1], w[2], w[3]])).collect();
    let mut of_both = Vec::new();
    for goes_on in [0, 1] {
        let left = Left {
            counters: Guarded::holding(device, counters)?,
            tokens: Guarded::new(device, n_rows)?,
            arriving: Guarded::new(device, 2 * n_rows)?,
            tiles: Guarded::holding(device, &tiles)?,
        };
        let further = Guarded::holding(device, &positions)?;
        let absent = GlobalMut::absent();
        launch(&left, if goes_on == 1 { further.view_mut() } else { absent })?;
        let tokens = left.tokens.read()?;
        let mut arrived = vec![NOTHING; 2 * n_rows];
        for (row, (&token, counter)) in tokens.iter().zip(counters).enumerate() {
            arrived[(counter % 2) as usize * n_rows + row] = token;
        }
        let moved = |before: &[u32]| before.iter().map(|v| v + goes_on).collect::<Vec<u32>>();
        let moved_tiles = tiles.iter().map(|U32x4([a, b, c, d])| [*a, *b, *c, d + goes_on]);
        for (what, agrees) in [
            ("what arrives", left.arriving.read()? == arrived),
            ("counters", left.counters.read()? == moved(counters)),
            ("positions", further.read()? == moved(&positions)),
            ("tiles", left.tiles.read()?.iter().map(|tile| tile.0).eq(moved_tiles)),
        ] {
            if !agrees {
                return Err(Failure(format!("{what}: not as expected, step behind: {goes_on}")));
            }
        }
        of_both.push(tokens);
    }
    if of_both[0] != of_both[1] {
        return Err(Failure(format!("{of_both:?}: a step behind it changes the choice")));
    }
    Ok(of_both.swap_remove(0))
}

/// The tokens that a right draw may yield: one, and its neighbours where the weights' errors decide.
fn allowed(row: &[f32], params: &SampleParams, counter: u32) -> Vec<usize> {
    let mut list: Vec<usize> = (0..row.len()).collect();
    list.sort_by(|&i, &j| earlier(row[i], row[j])); // stable: the lower id first
    let largest = row[list[0]] as f64;
    let temperature = params.temperature as f64;
    if temperature.is_nan() || temperature <= 0.0 || !largest.is_finite() {
        return list[..1].to_vec();
    }
    list.retain(|&i| !row[i].is_nan() && row[i] > f32::NEG_INFINITY);
    if params.top_k > 0 {
        list.truncate(params.top_k as usize);
    }

    // Running weight of the list, and how far the kernel's may be from it. The machine's `e^-d` is
    // off by EPS (2 + d), exact for 0; d itself by three roundings.
    let depth = |i: usize| (largest - row[i] as f64) / temperature;
    let (mut weight, mut error) = (vec![0.0], vec![0.0]);
    for &i in &list {
        let d = depth(i);
        let off = if d == 0.0 { 0.0 } else { (-d).exp() * EPS * (2.0 + 2.5 * d) + UNIT };
        weight.push(weight[weight.len() - 1] + (-d).exp());
        error.push(error[error.len() - 1] + off);
    }
    let n = list.len();

    // The fewest and the most tokens that top-p and min-p may keep; at least one.
    let (p, all, all_off) = (params.top_p as f64, weight[n], error[n]);
    let n_reaching = |sign: f64| {
        let reaches =
            |m: &usize| weight[*m] + sign * (error[*m] + p * all_off) >= p * all || *m == n;
        (1..=n).find(reaches).unwrap_or(n)
    };
    let (mut fewest, mut most) = (n, n);
    if params.top_p < 1.0 {
        (fewest, most) = (n_reaching(1.0), n_reaching(-1.0));
    }
    if params.min_p > 0.0 {
        // Compared as depths: d by three roundings, the logarithm by EPS 2 and one of its own.
        let limit = -(params.min_p as f64).ln();
        let off = EPS * (2.5 * limit.abs() + 4.0);
        let n_above = |limit: f64| list.iter().take_while(|&&i| depth(i) <= limit).count().max(1);
        fewest = fewest.min(n_above(limit - off));
        most = most.min(n_above(limit + off));
    }

    let [low, high, ..] = reference_philox([counter, 0, 0, 0], params.seed);
    let u = (low as f64 + high as f64 * 4_294_967_296.0) / 4_294_967_296.0_f64.powi(2);
    // The largest running weight at or before the target and the smallest behind it.
    let first = u * (weight[fewest] - error[fewest]);
    let last = u * (weight[most] + error[most]);
    (0..most)
        .filter(|&j| weight[j] - error[j] <= last && weight[j + 1] + error[j + 1] > first)
        .map(|j| list[j])
        .collect()
}

/// Philox4x32-10 from its definition: ten rounds of two 32 x 32 bit products and a swap.
fn reference_philox(counter: [u32; 4], key: u64) -> [u32; 4] {
    let mut c = counter.map(u64::from);
    let (mut k0, mut k1) = (key & 0xffff_ffff, key >> 32);
    for _ in 0..10 {
        let (left, right) = (c[0] * 0xD2511F53, c[2] * 0xCD9E8D57);
        let (low, high) = (|v: u64| v & 0xffff_ffff, |v: u64| v >> 32);
        c = [high(right) ^ c[1] ^ k0, low(right), high(left) ^ c[3] ^ k1, low(left)];
        k0 = low(k0 + 0x9E3779B9);
        k1 = low(k1 + 0xBB67AE85);
    }
    c.map(|v| v as u32)
}

/// The generator against the answers that its authors publish.
struct Known;

impl Case for Known {
    fn name(&self) -> String {
        "philox/known_answers".into()
    }

    fn check(&self, _: &Device) -> Result<(), Failure> {
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([!0; 4], [!0; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (pi, [0xa4093822, 0x299f31d0], [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]),
        ] {
            let got = philox(counter, key);
            let reference = reference_philox(counter, key[0] as u64 | (key[1] as u64) << 32);
            if got != want || reference != want {
                return Err(Failure(format!("{got:x?} and {reference:x?}, want {want:x?}")));
            }
        }
        Ok(())
    }
}

const PLAIN: SampleParams =
    SampleParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0x1234_5678_9abc };

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    table.push(Box::new(Known));
    let chunk = CHUNK as usize;
    let shapes = [
        ("one", 3, 1),
        ("one_below_chunk", 9, chunk - 1),
        ("chunk", 8, chunk),
        ("one_past_chunk", 8, chunk + 1),
        ("chunks_and_rest", 12, 3 * chunk + 7),
    ];
    for (edge, n_rows, vocab) in shapes {
        table.push(Box::new(Greedy { edge, n_rows, vocab, logit: MODEL_LIKE }));
        table.push(Box::new(Draw { edge, n_rows, vocab, logit: MODEL_LIKE, params: PLAIN }));
    }
    special_greedy(table);
    cuts(table);
    special_logits(table);
    for (edge, vocab, n_rows) in [("gpt_oss", 201_088, 1), ("second_round", 513 * chunk + 5, 1)] {
        let params = SampleParams { top_p: 0.95, ..PLAIN };
        table.push(Box::new(Draw { edge, n_rows, vocab, logit: MODEL_LIKE, params }));
    }
}

const TIES: Logit = |_, noise| (3.0 * noise).round();
const SIGNED_ZEROS: Logit = |_, noise| 0.0_f32.copysign(noise);
const SOME_NAN: Logit = |_, noise| if noise.abs() < 0.5 { f32::NAN } else { 8.0 * noise };
const ALL_NAN: Logit = |_, _| f32::NAN;
const SOME_INFINITE: Logit = |column, noise| match column % 400 {
    399 => f32::INFINITY,
    _ => noise,
};
const MOST_MASKED: Logit = |_, noise| if noise < 0.9 { f32::NEG_INFINITY } else { 30.0 * noise };
const ALL_MASKED: Logit = |column, _| if column < 5 { f32::NAN } else { f32::NEG_INFINITY };

fn special_greedy(table: &mut Vec<Box<dyn Case>>) {
    let (n_rows, vocab) = (5, 2 * CHUNK as usize + 300);
    for (edge, logit) in [
        ("ties", TIES),
        ("signed_zeros", SIGNED_ZEROS),
        ("some_nan", SOME_NAN),
        ("all_nan", ALL_NAN),
        ("some_infinite", SOME_INFINITE),
        ("all_masked", ALL_MASKED),
    ] {
        table.push(Box::new(Greedy { edge, n_rows, vocab, logit }));
    }
    // Equal largest logits in chunks that one thread compares.
    let far: Logit = |column, noise| if column % (256 * CHUNK as usize) == 5 { 9.0 } else { noise };
    let vocab = 257 * CHUNK as usize + 9;
    table.push(Box::new(Greedy { edge: "ties_of_far_chunks", n_rows: 1, vocab, logit: far }));
}

/// Every cut alone and together, on logits of a model.
fn cuts(table: &mut Vec<Box<dyn Case>>) {
    let (n_rows, vocab, logit) = (10, 2 * CHUNK as usize + 300, MODEL_LIKE);
    for (edge, params) in [
        ("temperature_0", SampleParams { temperature: 0.0, ..PLAIN }),
        ("temperature_negative", SampleParams { temperature: -1.0, ..PLAIN }),
        ("temperature_nan", SampleParams { temperature: f32::NAN, ..PLAIN }),
        ("temperature_denormal", SampleParams { temperature: 1e-40, ..PLAIN }),
        ("temperature_low", SampleParams { temperature: 0.3, ..PLAIN }),
        ("temperature_high", SampleParams { temperature: 3.0, ..PLAIN }),
        ("top_k_1", SampleParams { top_k: 1, ..PLAIN }),
        ("top_k_5", SampleParams { top_k: 5, ..PLAIN }),
        ("top_k_900", SampleParams { top_k: 900, temperature: 8.0, ..PLAIN }),
        ("top_k_all", SampleParams { top_k: 2348, temperature: 8.0, ..PLAIN }),
        ("top_k_beyond", SampleParams { top_k: u32::MAX, ..PLAIN }),
        ("top_p_0", SampleParams { top_p: 0.0, ..PLAIN }),
        ("top_p_half", SampleParams { top_p: 0.5, ..PLAIN }),
        ("top_p_most", SampleParams { top_p: 0.95, temperature: 2.0, ..PLAIN }),
        ("min_p_some", SampleParams { min_p: 0.3, ..PLAIN }),
        ("min_p_1", SampleParams { min_p: 1.0, ..PLAIN }),
        ("min_p_beyond", SampleParams { min_p: 1.5, ..PLAIN }),
        (
            "every_cut",
            SampleParams { temperature: 1.4, top_k: 60, top_p: 0.8, min_p: 0.02, ..PLAIN },
        ),
    ] {
        table.push(Box::new(Draw { edge, n_rows, vocab, logit, params }));
    }
}

/// Tokens as likely as the likeliest are all kept by a min-p of 1: the draws are those without it.
struct EvenMinP;

impl Case for EvenMinP {
    fn name(&self) -> String {
        "sample/even_min_p".into()
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (n_rows, vocab) = (8, 700);
        let logits = vec![-2.25; n_rows * vocab];
        let counters: Vec<u32> = (0..n_rows as u32).collect();
        let tokens = |min_p: f32| {
            let params = vec![SampleParams { min_p, seed: 5, ..PLAIN }; n_rows];
            draw(device, &logits, vocab, &params, &counters)
        };
        let (all, kept) = (tokens(0.0)?, tokens(1.0)?);
        if all != kept || all.iter().all(|token| *token == all[0]) {
            return Err(Failure(format!("{kept:?} drawn, {all:?} without min-p")));
        }
        Ok(())
    }
}

fn special_logits(table: &mut Vec<Box<dyn Case>>) {
    let (n_rows, vocab) = (4, 4 * MAX_GATHERED as usize + 300);
    let even: Logit = |_, _| -2.25;
    let dense: Logit = |_, noise| 5.0 + 0.003 * noise;
    let half = SampleParams { top_p: 0.5, ..PLAIN };
    let hundred = SampleParams { top_k: 100, ..PLAIN };
    let hot = SampleParams { temperature: f32::INFINITY, ..PLAIN };
    let all = SampleParams { temperature: 0.7, top_k: 1500, top_p: 0.9, min_p: 0.5, ..PLAIN };
    for (edge, logit, params) in [
        ("ties", TIES, PLAIN),
        ("ties_top_k", TIES, hundred),
        ("ties_top_p", TIES, half),
        // More tokens of one value, or nearly, than are ranked at once.
        ("even", even, PLAIN),
        ("even_top_k", even, SampleParams { top_k: 1201, ..PLAIN }),
        ("even_top_p", even, half),
        ("even_every_cut", even, all),
        ("dense", dense, PLAIN),
        ("dense_top_k", dense, hundred),
        ("dense_top_p", dense, half),
        ("dense_every_cut", dense, all),
        ("hot", MODEL_LIKE, hot),
        ("hot_masked", MOST_MASKED, hot),
        ("signed_zeros", SIGNED_ZEROS, half),
        ("some_nan", SOME_NAN, SampleParams { top_k: 40, ..PLAIN }),
        ("all_nan", ALL_NAN, PLAIN),
        ("some_infinite", SOME_INFINITE, PLAIN),
        ("most_masked", MOST_MASKED, PLAIN),
        ("all_masked", ALL_MASKED, hot),
    ] {
        table.push(Box::new(Draw { edge, n_rows, vocab, logit, params }));
    }
    table.push(Box::new(EvenMinP));
    // Two equal tokens and a half: the first alone reaches it.
    let two: Logit =
        |column, _| if column % 300 == 7 && column < 600 { 1.0 } else { f32::NEG_INFINITY };
    table.push(Box::new(Draw { edge: "exact_half", n_rows, vocab, logit: two, params: half }));
}
