//! Cases of attention: contexts around the page, the window and the split, sequences side by side,
//! ring tables; and the promise that the launch does not change a bit.

use super::cache::{Heads, PAGE, PageTable, Stored};
use super::rows::GuardedRows;
use super::{Case, Failure, Guarded, Noise};
use ironwarp::{Device, Result};
use kernels_gpu::attention::{self, AttentionCombine, SPLIT, combine_blocks, row_chunks};
use kernels_gpu::gpu::{Bf16, F16, Global, GlobalMut, U32x2, U32x4};
use std::marker::PhantomData;

/// Unit roundoff of f32.
const EPS: f64 = f32::EPSILON as f64 / 2.0;

/// A sequence: positions `start..start + n_tokens` are in the batch, those before in the cache.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    n_tokens: usize,
}

struct Attention<E> {
    edge: String,
    heads: Heads,
    group: usize,
    window: usize,
    sinks: bool,
    /// Sizes of queries and of keys.
    sizes: (f32, f32),
    /// The page table holds no more than the window and the batch.
    ring: bool,
    sequences: Vec<Span>,
    cache: PhantomData<fn() -> E>,
}

/// Everything that a launch reads, on the device.
struct Inputs<E: Stored> {
    qkv: ironwarp::Buffer<f32>,
    k_cache: ironwarp::Buffer<E>,
    v_cache: ironwarp::Buffer<E>,
    positions: ironwarp::Buffer<u32>,
    pages: ironwarp::Buffer<u32>,
    sinks: ironwarp::Buffer<f32>,
    pages_per_sequence: usize,
}

/// How a launch cuts the work.
struct Launch {
    tiles: Vec<U32x4>,
    n_splits: usize,
}

trait Kernels: Stored {
    fn launch(
        case: &Attention<Self>,
        inputs: &Inputs<Self>,
        launch: &Launch,
        partial_out: GlobalMut<f32>,
        partial_ml: GlobalMut<U32x2>,
    ) -> Result<()>;
}

macro_rules! kernels {
    ($($cache:ty, $d64:ident, $d128:ident, $d256:ident;)*) => {$(
        impl Kernels for $cache {
            fn launch(
                case: &Attention<$cache>,
                inputs: &Inputs<$cache>,
                launch: &Launch,
                partial_out: GlobalMut<f32>,
                partial_ml: GlobalMut<U32x2>,
            ) -> Result<()> {
                let device = inputs.qkv.device();
                let tiles = device.upload(&launch.tiles)?;
                let chunks = row_chunks(case.group as u32, case.heads.head_dim as u32) as usize;
                let grid = (tiles.len(), case.heads.n_kv_heads * chunks, launch.n_splits);
                macro_rules! with {
                    ($module:ident) => {
                        device.launch(
                            attention::$module::Attention {
                                qkv: inputs.qkv.view(),
                                k_cache: inputs.k_cache.view(),
                                v_cache: inputs.v_cache.view(),
                                positions: inputs.positions.view(),
                                tiles: tiles.view(),
                                pages: inputs.pages.view(),
                                partial_out,
                                partial_ml,
                                row_stride: case.row_stride() as u32,
                                n_kv_heads: case.heads.n_kv_heads as u32,
                            group: case.group as u32,
                                head_dim: case.heads.head_dim as u32,
                                pages_per_sequence: inputs.pages_per_sequence as u32,
                                n_splits: launch.n_splits as u32,
                                window: case.window as u32,
                                scale: case.scale(),
                            },
                            grid,
                        )
                    };
                }
                match case.heads.head_dim {
                    ..=64 => with!($d64),
                    ..=128 => with!($d128),
                    _ => with!($d256),
                }
            }
        }
    )*};
}
kernels! {
    f32, attention_f32_d64, attention_f32_d128, attention_f32_d256;
    F16, attention_f16_d64, attention_f16_d128, attention_f16_d256;
    Bf16, attention_bf16_d64, attention_bf16_d128, attention_bf16_d256;
}

/// Logical keys or values: [sequence][position][kv_head][dim].
type Rows = Vec<Vec<f32>>;

impl<E: Kernels> Attention<E> {
    fn n_heads(&self) -> usize {
        self.heads.n_kv_heads * self.group
    }
    fn n_cols(&self) -> usize {
        self.n_heads() * self.heads.head_dim
    }
    fn kv_cols(&self) -> usize {
        self.heads.n_kv_heads * self.heads.head_dim
    }
    /// Behind q stands what the kernel must not read.
    fn row_stride(&self) -> usize {
        self.n_cols() + 2 * self.kv_cols() + 4
    }
    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }
    fn n_tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.n_tokens).sum()
    }
    fn first_key(&self, position: usize) -> usize {
        if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) }
    }

    /// Tiles of up to `limit` tokens; the first of each sequence has `first`.
    fn tiles(&self, first: usize, limit: usize) -> Vec<U32x4> {
        let mut tiles = Vec::new();
        let mut row = 0;
        for (sequence, span) in self.sequences.iter().enumerate() {
            let end = row + span.n_tokens;
            let mut take = first;
            while row < end {
                let n = take.min(end - row);
                tiles.push(U32x4([row as u32, n as u32, sequence as u32, 0]));
                row += n;
                take = limit;
            }
        }
        // A tile without tokens is none.
        tiles.insert(tiles.len() / 2, U32x4([u32::MAX, 0, u32::MAX, 0]));
        tiles
    }

    /// Splits that the longest tile meets, and never the one that would fold them in one block.
    fn n_splits(&self, tokens: usize) -> usize {
        let of = |span: &Span| {
            let splits = |position: usize| {
                let last = (position + tokens - 1).min(span.start + span.n_tokens - 1);
                last / SPLIT as usize - self.first_key(position) / SPLIT as usize + 1
            };
            (span.start..span.start + span.n_tokens).map(splits).max().unwrap_or(1)
        };
        self.sequences.iter().map(of).max().unwrap_or(1).max(2)
    }

    fn run(
        &self,
        device: &Device,
        inputs: &Inputs<E>,
        launch: &Launch,
    ) -> Result<GuardedRows, Failure> {
        let n_partials = self.n_tokens() * self.n_heads() * launch.n_splits;
        // What nobody writes must not be read.
        let partial_out =
            Guarded::holding(device, &vec![f32::NAN; n_partials * self.heads.head_dim])?;
        let partial_ml =
            Guarded::holding(device, &vec![U32x2([f32::NAN.to_bits(); 2]); n_partials])?;
        E::launch(self, inputs, launch, partial_out.view_mut(), partial_ml.view_mut())?;
        let out = GuardedRows::new(device, self.n_tokens(), self.n_cols())?;
        let view = partial_out.view_mut();
        let combine = AttentionCombine {
            partial_out: Global::new(view.address(), view.len()),
            partial_ml: Global::new(partial_ml.view_mut().address(), n_partials),
            positions: inputs.positions.view(),
            sinks: if self.sinks { inputs.sinks.view() } else { Global::absent() },
            values: out.values.view_mut(),
            codes: out.codes.view_mut(),
            scales: out.scales.view_mut(),
            n_heads: self.n_heads() as u32,
            head_dim: self.heads.head_dim as u32,
            n_splits: launch.n_splits as u32,
            window: self.window as u32,
        };
        let blocks = combine_blocks(self.n_cols() as u32) as usize;
        device.launch(combine, (self.n_tokens(), blocks))?;
        partial_out.read()?;
        partial_ml.read()?;
        Ok(out)
    }

    /// One head of one token by the definition: each dim's value, and how far off it may be.
    fn reference(
        &self,
        q: &[f32],
        (keys, values): (&[f32], &[f32]),
        position: usize,
        kv_head: usize,
        sink: Option<f32>,
    ) -> Vec<(f64, f64)> {
        let head_dim = self.heads.head_dim;
        let row = |of: &'_ [f32], p: usize, dim: usize| {
            of[p * self.kv_cols() + kv_head * head_dim + dim] as f64
        };
        let seen = self.first_key(position)..position + 1;
        let scale = self.scale() as f64;
        let mut size: f64 = sink.map_or(0.0, |s| s.abs() as f64);
        let mut scores = Vec::new();
        for p in seen.clone() {
            let products: Vec<f64> =
                (0..head_dim).map(|d| q[d] as f64 * row(keys, p, d) * scale).collect();
            size = size.max(products.iter().map(|v| v.abs()).sum());
            scores.push(products.iter().sum::<f64>());
        }
        let sink = sink.map(f64::from);
        let largest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - largest).exp());

        // A score is a chain of sums of sixteen products; the tensor cores cut off where others round, at
        // twice the error. Then the parts of the query, its scaling and the sum of two; and the largest is
        // taken off, which at most doubles it.
        let chain = 2.0 * (16.0 + (head_dim as f64 / 16.0).ceil()) + 6.0;
        let exp2 = 2f64.powi(-22);
        let weight_error = (chain + 2.0) * EPS * size + exp2;
        // The warps, each split and the sink change what the weights are relative to.
        let n_folds = (position / SPLIT as usize - seen.start / SPLIT as usize) as f64 + 3.0;
        let fold_error = n_folds * exp2 + 2.0 * EPS * 2.0 * size;
        // Of the sum of values: two sums of sixteen, the parts of weights, the warps, the folds.
        let sum_error = (2.0 * 18.0 + 4.0 + 8.0 + 2.0 * n_folds) * EPS;
        // The denominator has the same errors; and the division.
        let relative = 2.0 * (weight_error + fold_error + sum_error) + EPS;
        (0..head_dim)
            .map(|d| {
                let parts = seen.clone().zip(&weights).map(|(p, w)| w / total * row(values, p, d));
                let (sum, size) = parts.fold((0.0, 0.0), |(s, a), v| (s + v, a + v.abs()));
                (sum, relative * size)
            })
            .collect()
    }

    /// Page table, caches, queries and sinks; and the logical keys and values.
    #[allow(clippy::type_complexity)] // a struct would be named and used in one place
    fn inputs(&self, device: &Device) -> Result<(Inputs<E>, Vec<f32>, Rows, Rows, Vec<f32>)> {
        let mut noise = Noise::new(11);
        let mut row =
            |n: usize| -> Vec<f32> { noise.units(n).iter().map(|&v| E::of(v).value()).collect() };
        let ends: Vec<usize> = self.sequences.iter().map(|s| s.start + s.n_tokens).collect();
        let mut keys: Rows = ends.iter().map(|end| row(end * self.kv_cols())).collect();
        let (query_size, key_size) = self.sizes;
        for key in keys.iter_mut().flatten() {
            *key = E::of(*key * key_size).value();
        }
        let values: Rows = ends.iter().map(|end| row(end * self.kv_cols())).collect();
        // Scores of a few units, so that the largest one moves and weights differ.
        let qkv = noise.units(self.n_tokens() * self.row_stride());
        let qkv: Vec<f32> = qkv.iter().map(|v| query_size * v).collect();
        let sinks: Vec<f32> = noise.units(self.n_heads()).iter().map(|v| 4.0 * v).collect();

        let needed = |span: &Span| {
            let first = if self.ring { self.first_key(span.start) / PAGE } else { 0 };
            (span.start + span.n_tokens).div_ceil(PAGE) - first
        };
        let pages_per_sequence = self.sequences.iter().map(needed).max().unwrap_or(1);
        let table = PageTable::shuffled(self.sequences.len(), pages_per_sequence, 17);
        let elements = self.heads.elements(&table);
        let (mut k, mut v) = (vec![E::of(f32::NAN); elements], vec![E::of(f32::NAN); elements]);
        for (sequence, span) in self.sequences.iter().enumerate() {
            // What no token of the batch sees stays NaN.
            for p in self.first_key(span.start)..span.start + span.n_tokens {
                for at in 0..self.kv_cols() {
                    let (head, dim) = (at / self.heads.head_dim, at % self.heads.head_dim);
                    let from = p * self.kv_cols() + at;
                    k[self.heads.k(&table, sequence, p, head, dim)] = E::of(keys[sequence][from]);
                    v[self.heads.v(&table, sequence, p, head, dim)] = E::of(values[sequence][from]);
                }
            }
        }
        let positions: Vec<u32> = self
            .sequences
            .iter()
            .flat_map(|s| (s.start..s.start + s.n_tokens).map(|p| p as u32))
            .collect();
        let inputs = Inputs {
            qkv: device.upload(&qkv)?,
            k_cache: device.upload(&k)?,
            v_cache: device.upload(&v)?,
            positions: device.upload(&positions)?,
            pages: device.upload(&table.pages)?,
            sinks: device.upload(&sinks)?,
            pages_per_sequence,
        };
        Ok((inputs, qkv, keys, values, sinks))
    }
}

impl<E: Kernels> Case for Attention<E> {
    fn name(&self) -> String {
        let d = self.heads.head_dim.next_power_of_two().max(64);
        format!("attention_{}_d{d}/{}", E::NAME, self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (inputs, qkv, keys, values, sinks) = self.inputs(device)?;
        let head_dim = self.heads.head_dim;
        let mut want = Vec::new();
        let mut token = 0;
        for (sequence, span) in self.sequences.iter().enumerate() {
            for position in span.start..span.start + span.n_tokens {
                for head in 0..self.n_heads() {
                    let q = &qkv[token * self.row_stride() + head * head_dim..][..head_dim];
                    let kv = (keys[sequence].as_slice(), values[sequence].as_slice());
                    let sink = self.sinks.then(|| sinks[head]);
                    want.extend(self.reference(q, kv, position, head / self.group, sink));
                }
                token += 1;
            }
        }
        let (want, allowed): (Vec<f64>, Vec<f64>) = want.into_iter().unzip();

        let full = attention::tile_tokens(self.group as u32, self.heads.head_dim as u32) as usize;
        let folded = Launch { tiles: self.tiles(full, full), n_splits: 1 };
        let folded = self.run(device, &inputs, &folded)?;
        folded.expect(&want, |i, _| allowed[i])?;

        let bits = |rows: &GuardedRows| -> Result<Vec<u32>, Failure> {
            Ok(rows.values.read()?.iter().map(|v| v.to_bits()).collect())
        };
        let folded = bits(&folded)?;
        for (how, first, limit, n_splits) in [
            ("a block per split", full, full, self.n_splits(full)),
            ("a block per token and split, one split too many", 1, 1, self.n_splits(1) + 1),
            ("other tiles", 1, full, 1),
        ] {
            let launch = Launch { tiles: self.tiles(first, limit), n_splits };
            let got = bits(&self.run(device, &inputs, &launch)?)?;
            if let Some(at) = got.iter().zip(&folded).position(|(a, b)| a != b) {
                let [got, want] = [got[at], folded[at]].map(f32::from_bits);
                return Err(Failure(format!("{how}, element {at}: {got}, folded {want}")));
            }
        }
        Ok(())
    }
}

/// A case with one sequence, which the tables below vary.
fn case<E>(edge: impl Into<String>, start: usize, n_tokens: usize) -> Attention<E> {
    Attention {
        edge: edge.into(),
        heads: Heads { n_kv_heads: 1, head_dim: 16 },
        group: 4,
        window: 0,
        sinks: true,
        sizes: (6.0, 1.0),
        ring: false,
        sequences: vec![Span { start, n_tokens }],
        cache: PhantomData,
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    for context in [1, 31, 32, 33, 255, 256, 257, 600] {
        table.push(Box::new(case::<F16>(format!("context_{context}"), context - 1, 1)));
    }
    for (edge, start, n_tokens) in
        [("prefill", 0, 37), ("prefill_in_the_middle", 29, 9), ("prefill_over_a_split", 253, 7)]
    {
        table.push(Box::new(case::<F16>(edge, start, n_tokens)));
    }
    for (edge, start, n_tokens, window, ring) in [
        ("window_one_below", 126, 3, 128, false),
        ("window_far", 520, 3, 128, false),
        ("window_ring", 300, 5, 128, true),
        ("window_ring_over_a_split", 250, 9, 40, true),
        ("window_of_one", 30, 5, 1, true),
        ("window_small", 28, 9, 3, true),
        ("window_prefill", 0, 70, 33, false),
    ] {
        let windowed = Attention { window, ring, ..case::<F16>(edge, start, n_tokens) };
        table.push(Box::new(windowed));
    }
    for group in [1, 2, 3, 8, 12, 16] {
        let grouped = case::<F16>(format!("group_{group}"), 40, 5);
        let heads = Heads { n_kv_heads: 2, head_dim: 16 };
        table.push(Box::new(Attention { group, heads, ..grouped }));
    }
    table.push(Box::new(Attention { sinks: false, ..case::<F16>("without_sinks", 260, 3) }));
    // As parts of 16 bits: beyond what f16 holds, and below.
    for (edge, sizes) in [("huge_queries", (6e5, 1e-5)), ("tiny_queries", (6e-4, 1e4))] {
        table.push(Box::new(Attention { sizes, ..case::<F16>(edge, 290, 3) }));
    }
    let span = |start, n_tokens| Span { start, n_tokens };
    for (edge, window, ring) in
        [("sequences", 0, false), ("sequences_window", 30, false), ("sequences_ring", 30, true)]
    {
        let sequences = vec![span(40, 3), span(0, 5), span(270, 1)];
        let several = Attention { window, ring, sequences, ..case::<F16>(edge, 0, 0) };
        table.push(Box::new(several));
    }
    by_head_dim::<f32>(table);
    by_head_dim::<F16>(table);
    by_head_dim::<Bf16>(table);
}

/// Every kernel: head dims that fill their class and that don't.
fn by_head_dim<E: Kernels>(table: &mut Vec<Box<dyn Case>>) {
    for head_dim in [8, 32, 40, 64, 80, 128, 136, 256] {
        let heads = Heads { n_kv_heads: 2, head_dim };
        let base = case::<E>(format!("head_dim_{head_dim}"), 254, 5);
        table.push(Box::new(Attention { heads, group: 2, window: 50, ..base }));
    }
}
