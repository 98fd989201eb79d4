//! Stages that take rows as they come: embedding, norms, the choice of a token.

use super::check::{EPS, Estimate, Point, ends, sample};
use super::stock::{Matrices, NORM_EPS, Stock, packed_bytes, points_of_row, read_row};
use super::{Subject, Work};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::weights::Norm;
use crate::ops::matmul::Packed;
use crate::ops::norm::{layer_norm, weigh};
use crate::ops::sample::Sampler;
use crate::ops::weights::embed;
use crate::tensor::Rows;
use kernels_gpu::gpu::GlobalMut;
use kernels_gpu::quant::Format;
use kernels_gpu::sample::{SampleParams, philox};

/// Rows of an embedding table.
#[derive(Clone, Copy)]
pub(super) struct Embedding {
    pub format: Format,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_tokens: usize,
}

struct MadeEmbedding {
    plan: Embedding,
    table: Matrices,
    /// Of the first copy.
    ids: Vec<u32>,
    id_buffers: Vec<Buffer<u32>>,
    out: Buffer<f32>,
}

impl Embedding {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let Embedding { format, n_vocab, n_embd, n_tokens } = self;
        let table = stock.matrices(("token_embd", format), [n_embd, n_vocab, 1], false, 1)?;
        let row_bytes = table.expert_bytes() / n_vocab as u64;
        let n_copies = stock.n_copies(n_tokens as u64 * row_bytes);
        let ids: Vec<Vec<u32>> = (0..n_copies).map(|_| stock.below(n_tokens, n_vocab)).collect();
        let device = stock.device.clone();
        Ok(Box::new(MadeEmbedding {
            plan: self,
            table,
            id_buffers: ids.iter().map(|ids| device.upload(ids)).collect::<Result<_>>()?,
            ids: ids.into_iter().next().unwrap_or_default(),
            out: device.alloc(n_tokens * n_embd)?,
        }))
    }
}

impl Subject for MadeEmbedding {
    fn n_copies(&self) -> usize {
        self.id_buffers.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let table = &self.table.linears[0].weight;
        let ids = self.id_buffers[copy].view();
        embed(device, table, ids, &self.out, self.plan.n_tokens, false, Packed::None)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let Embedding { n_embd, n_tokens, .. } = self.plan;
        let mut points = Vec::new();
        for token in ends(n_tokens) {
            let row = self.table.row(0, self.ids[token] as usize);
            let found = read_row(&self.out, token, n_embd)?;
            let expected = |col: usize| Estimate::exact(row[col] as f64);
            let what = format!("token {token}");
            points.extend(points_of_row(&what, &found, &sample(n_embd), expected));
        }
        Ok(points)
    }

    fn work(&self) -> Work {
        let Embedding { n_vocab, n_embd, n_tokens, .. } = self.plan;
        let row = self.table.expert_bytes() / n_vocab as u64 + 4 * n_embd as u64 + 4;
        Work::of_bytes(n_tokens as u64 * row)
    }
}

/// A norm of rows that no product has left behind.
#[derive(Clone, Copy)]
pub(super) struct Normed {
    pub n_cols: usize,
    pub n_rows: usize,
    /// By the root mean square; else by mean and variance, with a bias.
    pub rms: bool,
}

struct MadeNorm {
    plan: Normed,
    x: Vec<f32>,
    x_buffers: Vec<Buffer<f32>>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    norm: Norm,
    out: Rows,
}

impl Normed {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let Normed { n_cols, n_rows, rms } = self;
        let x = stock.units(n_rows * n_cols);
        let (weight, bias) = (stock.units(n_cols), stock.units(if rms { 0 } else { n_cols }));
        let device = stock.device.clone();
        let n_copies = stock.n_copies(4 * x.len() as u64);
        Ok(Box::new(MadeNorm {
            plan: self,
            x_buffers: stock.copies(n_copies, &x)?,
            norm: Norm {
                weight: device.upload(&weight)?,
                bias: if rms { None } else { Some(device.upload(&bias)?) },
            },
            out: match rms {
                true => Rows::with_rms(&device, n_rows, n_cols, NORM_EPS)?,
                false => Rows::new(&device, n_rows, n_cols)?,
            },
            x,
            weight,
            bias,
        }))
    }
}

impl MadeNorm {
    /// A row by the definition.
    fn reference(&self, row: usize) -> Vec<Estimate> {
        let n_cols = self.plan.n_cols;
        let x: Vec<f64> = self.x[row * n_cols..][..n_cols].iter().map(|&v| v as f64).collect();
        let weight = |col: usize| self.weight[col] as f64;
        if self.plan.rms {
            // The scale is left to the products.
            return (0..n_cols).map(|col| Estimate::exact(x[col]).times(weight(col))).collect();
        }
        layer_normed(&x, &self.weight, &self.bias)
    }
}

/// A row behind a layer norm, by the definition.
pub(super) fn layer_normed(x: &[f64], weight: &[f32], bias: &[f32]) -> Vec<Estimate> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + NORM_EPS as f64).sqrt();
    let largest = x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    // Roundings of a lane's four columns and of a row's two butterflies, in units of EPS / 2; half of those of the
    // squares' stay in the scale, with the mean, root, inverse and products. A strip's mean is off as the row's is, and
    // both by what that does to the variance.
    let roundings = 14.0;
    let relative = (roundings / 2.0 + 5.0) * EPS / 2.0;
    let of_mean = (roundings + 3.0) * EPS / 2.0 * largest * scale;
    let of_col = |(col, x): (usize, &f64)| {
        let weight = weight[col] as f64;
        let scaled = (x - mean) * scale * weight;
        let value = scaled + bias[col] as f64;
        let error = relative * scaled.abs()
            + of_mean * (weight.abs() + 2.0 * scaled.abs())
            + EPS / 2.0 * value.abs();
        Estimate { value, error }
    };
    x.iter().enumerate().map(of_col).collect()
}

impl Subject for MadeNorm {
    fn n_copies(&self) -> usize {
        self.x_buffers.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let (x, n_rows) = (&self.x_buffers[copy], self.plan.n_rows);
        match &self.out.rms {
            Some(rms) => weigh(device, x.view(), self.norm.weight.view(), (&self.out, rms), n_rows),
            None => layer_norm(device, NORM_EPS, &self.norm, x, &self.out, n_rows),
        }
    }

    fn points(&self) -> Result<Vec<Point>> {
        let Normed { n_cols, n_rows, .. } = self.plan;
        let mut points = Vec::new();
        for row in ends(n_rows) {
            let expected = self.reference(row);
            let found = read_row(&self.out.values, row, n_cols)?;
            let what = format!("row {row}");
            points.extend(points_of_row(&what, &found, &sample(n_cols), |col| expected[col]));
        }
        Ok(points)
    }

    fn work(&self) -> Work {
        let Normed { n_cols, n_rows, rms } = self.plan;
        let vectors = if rms { 1 } else { 2 };
        let read = 4 * ((n_rows + vectors) * n_cols) as u64;
        Work::of_bytes(read + packed_bytes(n_rows, n_cols, rms))
    }
}

/// The choice of tokens from logits.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub n_vocab: usize,
    pub n_rows: usize,
    /// 0 takes the largest logit.
    pub temperature: f32,
    pub top_p: f32,
}

struct MadeChoice {
    plan: Choice,
    /// [rows, vocabulary]
    logits: Vec<f32>,
    logit_buffers: Vec<Buffer<f32>>,
    sampler: Sampler,
    counters: Buffer<u32>,
}

/// What the draws of row `row` begin from.
fn seed(row: usize) -> u64 {
    0x5eed + row as u64
}

/// The place of every row's token in its text.
const COUNTER: u32 = 77;

impl Choice {
    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let Choice { n_vocab, n_rows, temperature, top_p } = self;
        // As a model's: most far below the few that are likely.
        let mut logits = stock.units(n_rows * n_vocab);
        logits.iter_mut().for_each(|v| *v = 18.0 * *v * *v * *v);
        let device = stock.device.clone();
        let params: Vec<SampleParams> = (0..n_rows)
            .map(|row| SampleParams { temperature, top_k: 0, top_p, min_p: 0.0, seed: seed(row) })
            .collect();
        let n_copies = stock.n_copies(4 * logits.len() as u64);
        Ok(Box::new(MadeChoice {
            plan: self,
            logit_buffers: stock.copies(n_copies, &logits)?,
            logits,
            sampler: Sampler::new(&device, &params, n_vocab)?,
            counters: device.upload(&vec![COUNTER; n_rows])?,
        }))
    }
}

impl MadeChoice {
    /// The token of a row beside the largest logit's, or the weight of the tokens up to it beside the share
    /// that was drawn.
    fn point(&self, row: usize, token: u32) -> Point {
        let Choice { n_vocab, temperature, top_p, .. } = self.plan;
        let logits = &self.logits[row * n_vocab..][..n_vocab];
        let mut order: Vec<usize> = (0..n_vocab).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if temperature == 0.0 {
            let (found, expected) = (token as f64, Estimate::exact(order[0] as f64));
            return Point { element: format!("token of row {row}"), found, expected };
        }
        let largest = logits[order[0]] as f64;
        let depth = |i: usize| (largest - logits[i] as f64) / temperature as f64;
        let (mut sums, mut error) = (vec![0.0], 0.0);
        for &i in &order {
            // `e^-d` is off by EPS (2 + 2.5 d), and is cut off below 2^-42.
            let (d, weight) = (depth(i), (-depth(i)).exp());
            error += weight * EPS * (2.0 + 2.5 * d) + 2f64.powi(-42);
            sums.push(sums[sums.len() - 1] + weight);
        }
        let all = sums[n_vocab];
        let n_kept = sums.iter().position(|&sum| sum >= top_p as f64 * all).unwrap_or(n_vocab);
        let key = seed(row);
        let [low, high, ..] = philox([COUNTER, 0, 0, 0], [key as u32, (key >> 32) as u32]);
        let u = (low as f64 + high as f64 * 2f64.powi(32)) * 2f64.powi(-64);
        let place = order.iter().position(|&i| i == token as usize).unwrap_or(n_vocab);
        // Up to the middle of the token, which may begin and end half its weight away; and one token more
        // or less may be kept.
        let until = |place: usize| sums[place.min(n_vocab)];
        let weight = until(place + 1) - until(place);
        let of_cut = until(n_kept + 1) - until(n_kept - 1);
        Point {
            element: format!("weight up to the token of row {row}"),
            found: (until(place) + until(place + 1)) / 2.0,
            expected: Estimate { value: u * sums[n_kept], error: weight / 2.0 + error + of_cut },
        }
    }
}

impl Subject for MadeChoice {
    fn n_copies(&self) -> usize {
        self.logit_buffers.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let logits = self.logit_buffers[copy].view();
        let (counters, nowhere) = (self.counters.view_mut(), GlobalMut::absent());
        self.sampler.sample(device, logits, counters, nowhere, None)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let tokens = self.sampler.tokens().read()?;
        Ok(tokens.iter().enumerate().map(|(row, &token)| self.point(row, token)).collect())
    }

    fn work(&self) -> Work {
        let Choice { n_vocab, n_rows, .. } = self.plan;
        Work::of_bytes(4 * (n_rows * n_vocab + n_rows) as u64)
    }
}
