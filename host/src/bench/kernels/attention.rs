//! Attention of one layer over a cache that is as full as a sequence of that length makes it.
//!
//! Rotations are by quarter turns, and keys and values are such that f16 holds them: so what lies in the
//! cache is known to the bit, however it lies there.

use super::check::{EPS, Estimate, Point, ends};
use super::stock::{Stock, packed_bytes, points_of_row, read_row};
use super::{Subject, Unit, Work};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::RopeLayout;
use crate::model::batch::DeviceBatch;
use crate::model::{Batch, Config, KvCache, KvType, Logits, Segment};
use crate::ops::attention::{Attention, Scratch, attend};
use crate::tensor::Rows;
use kernels_gpu::gpu::Global;

/// Tokens that fill the cache in one step, at most.
const FILL_STEP: usize = 512;
/// Rows of queries, keys and values after which they are the first ones again: a prime number, so that
/// no piece of the cache is like another. (The rotations differ anyway.)
const PERIOD: usize = 1021;
/// Heads that are looked at, of the first and the last token.
const HEADS: usize = 4;

/// A layer's attention: `batch` sequences of `depth` tokens get `n_tokens` more each.
#[derive(Clone)]
pub(super) struct Layer {
    /// Of a model with this layer alone.
    pub config: Config,
    pub has_sinks: bool,
    pub depth: usize,
    pub batch: usize,
    pub n_tokens: usize,
}

struct Made {
    plan: Layer,
    cache: KvCache,
    /// Of each copy.
    batches: Vec<(Batch, DeviceBatch)>,
    /// What came before and what comes, as the products give it: position p has row p % PERIOD of
    /// [PERIOD, q and kv columns]. All sequences are alike.
    qkv: Vec<f32>,
    /// The same twice, one behind the other.
    source: Buffer<f32>,
    /// Of one step.
    qkv_buffer: Buffer<f32>,
    rope: Option<Buffer<f32>>,
    sinks: Vec<f32>,
    sinks_buffer: Option<Buffer<f32>>,
    scratch: Scratch,
    out: Rows,
}

/// Quarters of a turn by which pair `pair` rotates at a position.
fn quarters(position: usize, pair: usize) -> usize {
    (position + position / 4 * pair + pair) % 4
}

/// Cosine and sine of so many quarters.
fn turn(quarters: usize) -> (f32, f32) {
    [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][quarters % 4]
}

impl Layer {
    fn row_cols(&self) -> usize {
        self.config.q_cols() + 2 * self.config.kv_cols()
    }

    /// First position that has to be in the cache.
    fn first(&self) -> usize {
        self.config.window.map_or(0, |window| self.depth.saturating_sub(window))
    }

    /// Keys that the token at `position` sees.
    fn seen(&self, position: usize) -> std::ops::Range<usize> {
        let first = self.config.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    /// Keys that any of a sequence's new tokens sees.
    fn read(&self) -> usize {
        self.depth + self.n_tokens - self.seen(self.depth).start
    }

    fn cache_bytes(&self, tokens: usize) -> u64 {
        (2 * tokens * self.config.kv_cols() * KvType::F16.bytes()) as u64
    }

    /// Steps of a sequence that fill the cache, and the one that is measured.
    fn segments<'a>(&self, sequence: usize, tokens: &'a [u32]) -> Vec<Segment<'a>> {
        let logits = Logits::None;
        let mut segments = Vec::new();
        let mut position = self.first();
        while position < self.depth {
            let n = (self.depth - position).min(FILL_STEP);
            segments.push(Segment { sequence, position, tokens: &tokens[..n], logits });
            position += n;
        }
        segments.push(Segment {
            sequence,
            position: self.depth,
            tokens: &tokens[..self.n_tokens],
            logits,
        });
        segments
    }

    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let device = stock.device.clone();
        let config = &self.config;
        let n_copies = stock.n_copies(self.batch as u64 * self.cache_bytes(self.read()));
        let context = self.depth + self.n_tokens;
        let fill_step = FILL_STEP.min(self.depth - self.first());
        let max_step = (self.batch * self.n_tokens).max(fill_step);
        let cache =
            KvCache::new(&device, config, KvType::F16, n_copies * self.batch, context, max_step)?;
        // Multiples of 1/16, queries in -4..4, the others in -1..1: exact in f16.
        let (row_cols, q_cols) = (self.row_cols(), config.q_cols());
        let n_rows = if stock.is_filled { PERIOD } else { 0 };
        let mut qkv = stock.units(n_rows * row_cols);
        for row in qkv.chunks_mut(row_cols) {
            row[..q_cols].iter_mut().for_each(|q| *q = (*q * 64.0).round() / 16.0);
            row[q_cols..].iter_mut().for_each(|kv| *kv = (*kv * 16.0).round() / 16.0);
        }
        let rope = match &config.rope {
            Some(rope) => {
                let pairs = rope.rot_dim / 2;
                let angles = (0..context * pairs).map(|at| turn(quarters(at / pairs, at % pairs)));
                let table: Vec<f32> = angles.flat_map(|(cos, sin)| [cos, sin]).collect();
                Some(device.upload(&table)?)
            }
            None => None,
        };
        let sinks = stock.units(if self.has_sinks { config.n_heads } else { 0 });
        let mut made = Made {
            scratch: Scratch::new(&device, config, context, max_step)?,
            out: Rows::new(&device, max_step, q_cols)?,
            qkv_buffer: device.alloc(max_step * row_cols)?,
            sinks_buffer: if self.has_sinks { Some(device.upload(&sinks)?) } else { None },
            batches: Vec::with_capacity(n_copies),
            plan: self,
            cache,
            source: device.upload(&qkv.repeat(2))?,
            qkv,
            rope,
            sinks,
        };
        made.fill(&device, n_copies, max_step, stock.is_filled)?;
        if stock.is_filled {
            let (depth, n) = (made.plan.depth, made.plan.n_tokens);
            (0..made.plan.batch).try_for_each(|i| made.put(&device, i * n, depth, n))?;
        }
        device.synchronize()?;
        Ok(Box::new(made))
    }
}

impl Made {
    /// Fills the cache, and notes the steps that are measured.
    fn fill(
        &mut self,
        device: &Device,
        n_copies: usize,
        max_step: usize,
        is_filled: bool,
    ) -> Result<()> {
        let tokens = vec![0; max_step];
        let mut step = DeviceBatch::new(device, max_step)?;
        for copy in 0..n_copies {
            let mut measured = Vec::with_capacity(self.plan.batch);
            for sequence in copy * self.plan.batch..(copy + 1) * self.plan.batch {
                let mut segments = self.plan.segments(sequence, &tokens);
                measured.extend(segments.pop());
                for segment in segments.iter().filter(|_| is_filled) {
                    let (first, n) = (segment.position, segment.tokens.len());
                    self.put(device, 0, first, n)?;
                    let batch =
                        Batch::new(&self.plan.config, &self.cache, std::slice::from_ref(segment))?;
                    step.write(&batch)?;
                    self.attend(device, &batch, &step)?;
                    device.synchronize()?; // what reads the batch is done
                }
            }
            let batch = Batch::new(&self.plan.config, &self.cache, &measured)?;
            let mut on_device = DeviceBatch::new(device, batch.n_tokens())?;
            on_device.write(&batch)?;
            self.batches.push((batch, on_device));
        }
        Ok(())
    }

    /// Puts the rows of `n` positions from `first` on where attention reads them, as rows `to` and on.
    fn put(&self, device: &Device, to: usize, first: usize, n: usize) -> Result<()> {
        let row_cols = self.plan.row_cols();
        for start in (0..n).step_by(PERIOD) {
            let count = PERIOD.min(n - start);
            let rows = self.source.view().from((first + start) % PERIOD * row_cols);
            let from = Global::<f32>::new(rows.address(), count * row_cols);
            let to = self.qkv_buffer.view_mut().from((to + start) * row_cols);
            device.copy(from.cast(), to.cast())?;
        }
        Ok(())
    }

    fn attend(&self, device: &Device, batch: &Batch, on_device: &DeviceBatch) -> Result<()> {
        let attention = Attention {
            config: &self.plan.config,
            cache: &self.cache,
            layer: 0,
            qkv: &self.qkv_buffer,
            positions: on_device.positions.view(),
            sequences: on_device.sequences.view(),
            tiles: on_device.tiles.view(),
            n_tokens: batch.n_tokens(),
            n_tiles: batch.tiles.len(),
            context: batch.context,
            one_each: batch.one_each,
            rope: self.rope.as_ref(),
            sinks: self.sinks_buffer.as_ref(),
        };
        attend(device, &attention, &self.scratch, &self.out)
    }

    /// Columns from `first` on of the row at a position, as long as a head; rotated if they are a query's
    /// or a key's.
    fn head(&self, position: usize, first: usize, is_rotated: bool) -> Vec<f32> {
        let config = &self.plan.config;
        let row_cols = self.plan.row_cols();
        let row = &self.qkv[position % PERIOD * row_cols..][..row_cols];
        let mut head = row[first..first + config.head_dim].to_vec();
        let Some(rope) = config.rope.as_ref().filter(|_| is_rotated) else { return head };
        let pairs = rope.rot_dim / 2;
        for pair in 0..pairs {
            let (a, b) = match config.architecture.rope {
                Some(RopeLayout::Adjacent) => (2 * pair, 2 * pair + 1),
                _ => (pair, pair + pairs),
            };
            let (cos, sin) = turn(quarters(position, pair));
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
        head
    }

    /// A head's output by the definition, for the token at a position.
    fn reference(&self, position: usize, head: usize) -> Vec<Estimate> {
        let config = &self.plan.config;
        let (head_dim, q_cols) = (config.head_dim, config.q_cols());
        let kv_head = head / (config.n_heads / config.n_kv_heads);
        let q = self.head(position, head * head_dim, true);
        let scale = 1.0 / (head_dim as f64).sqrt();
        let sink = self.sinks.get(head).map(|&sink| sink as f64);
        let mut size: f64 = sink.map_or(0.0, f64::abs);
        let seen = self.plan.seen(position);
        let mut scores = Vec::with_capacity(seen.len());
        for at in seen.clone() {
            let key = self.head(at, q_cols + kv_head * head_dim, true);
            let products = q.iter().zip(&key).map(|(&q, &k)| q as f64 * k as f64 * scale);
            let (sum, of_all) =
                products.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
            size = size.max(of_all);
            scores.push(sum);
        }
        let largest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - largest).exp());
        let (mut sums, mut sizes) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        for (at, weight) in seen.clone().zip(&weights) {
            let value = self.head(at, q_cols + config.kv_cols() + kv_head * head_dim, false);
            for (dim, &v) in value.iter().enumerate() {
                sums[dim] += weight / total * v as f64;
                sizes[dim] += weight / total * v.abs() as f64;
            }
        }
        // A score: roundings of a chain as long as the head at most, of the scale, and of taking off the
        // largest, which doubles it; `e^x` 2^-22. The largest so far changes with every piece of 64 keys at
        // most, each time by another such factor; as many roundings of sums. All of it in the denominator
        // too.
        let folds = seen.len() as f64 / 64.0 + 4.0;
        let of_score = (head_dim as f64 + 8.0) * EPS * size + 2f64.powi(-22);
        let of_sums = (64.0 + 3.0 * folds) * EPS;
        let relative = 2.0 * (of_score + folds * 2f64.powi(-22) + of_sums) + EPS;
        let of_dim = |(&value, &size): (&f64, &f64)| Estimate { value, error: relative * size };
        sums.iter().zip(&sizes).map(of_dim).collect()
    }
}

impl Subject for Made {
    fn n_copies(&self) -> usize {
        self.batches.len()
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let (batch, on_device) = &self.batches[copy];
        self.attend(device, batch, on_device)
    }

    fn points(&self) -> Result<Vec<Point>> {
        let Layer { ref config, depth, batch, n_tokens, .. } = self.plan;
        let dims: Vec<usize> = (0..config.head_dim).collect();
        let mut points = Vec::new();
        for token in ends(batch * n_tokens) {
            let row = read_row(&self.out.values, token, config.q_cols())?;
            for i in 0..HEADS.min(config.n_heads) {
                let head = i * (config.n_heads - 1) / (HEADS - 1);
                let expected = self.reference(depth + token % n_tokens, head);
                let found = &row[head * config.head_dim..][..config.head_dim];
                let what = format!("token {token}, head {head}");
                points.extend(points_of_row(&what, found, &dims, |dim| expected[dim]));
            }
        }
        Ok(points)
    }

    fn work(&self) -> Work {
        let Layer { ref config, depth, batch, n_tokens, .. } = self.plan;
        let n = batch * n_tokens;
        let qkv = 4 * (n * self.plan.row_cols()) as u64;
        // Old keys and values are read, new ones are written; those of a long step are also read again,
        // but can come from a cache.
        let old = self.plan.cache_bytes(batch * (self.plan.read() - n_tokens));
        let new = self.plan.cache_bytes(n);
        let seen: usize = (depth..depth + n_tokens).map(|at| self.plan.seen(at).len()).sum();
        let operations = 4 * (batch * seen * config.q_cols()) as u64;
        Work {
            bytes: qkv + old + new + packed_bytes(n, config.q_cols(), false),
            operations,
            tensor: Some((Unit::Halves, operations)),
        }
    }
}
