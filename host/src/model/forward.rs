//! The forward pass of every architecture, a line for each stage.

use super::Model;
use super::arch::NormKind;
use super::batch::{Batch, DeviceBatch, Segment};
use super::config::Config;
use super::weights::{FeedForward, Layer, Linear, Norm};
use crate::device::{Buffer, Device, Recording};
use crate::error::Result;
use crate::ops::attention::{Attention, SPREAD_TOKENS, Scratch, attend, most_splits};
use crate::ops::gated::{Apart, Gated, Of, gated};
use crate::ops::matmul::{Overlap, Packed, Product, Tokens, product};
use crate::ops::moe::{Routing, Summed, combine, is_routed_inside, route, sum_experts};
use crate::ops::norm::layer_norm;
use crate::ops::normed::{NormedProduct, Out, normed_product, norms_itself};
use crate::ops::sample::Step;
use crate::ops::weights::{embed, gather};
use crate::tensor::{Matrix, Rows};
use std::time::Duration;

/// Every buffer of a forward pass, allocated once.
#[derive(Debug)]
pub(super) struct Workspace {
    pub max_step: usize,
    pub max_outputs: usize,
    batch: DeviceBatch,
    /// The residual stream; [step, n_embd]
    stream: Buffer<f32>,
    /// Rows of the stream that need logits; [outputs, n_embd]
    selected: Buffer<f32>,
    /// What a norm gives, or the stage before an RMS norm in its place; [step, n_embd]
    normed: Rows,
    /// [step, q columns + 2 kv columns]
    qkv: Buffer<f32>,
    /// What attention gives; [step, q columns]
    attended: Rows,
    attention: Scratch,
    /// [step, n_experts]
    router: Buffer<f32>,
    routing: Option<Routing>,
    /// [slots, n_ff]
    gate: Buffer<f32>,
    /// [slots, n_ff]
    up: Buffer<f32>,
    /// [slots, n_ff]
    hidden: Rows,
    /// What experts give, before they are summed; [slots, n_embd]
    expert_out: Buffer<f32>,
    /// [outputs, n_vocab]
    pub logits: Buffer<f32>,
}

/// Rows of the feed-forward buffers: one for each expert that a token uses.
fn n_slots(config: &Config, step: usize) -> usize {
    step * config.experts.map_or(1, |e| e.used)
}

impl Workspace {
    pub fn new(
        device: &Device,
        config: &Config,
        context: usize,
        max_step: usize,
        max_outputs: usize,
    ) -> Result<Workspace> {
        let slots = n_slots(config, max_step);
        let n_experts = config.experts.map_or(0, |e| e.count);
        let expert_rows = if config.experts.is_some() { slots } else { 0 };
        let n_rows = max_step.max(max_outputs);
        Ok(Workspace {
            max_step,
            max_outputs,
            batch: DeviceBatch::new(device, max_step)?,
            stream: device.alloc(max_step * config.n_embd)?,
            selected: device.alloc(max_outputs * config.n_embd)?,
            normed: match config.architecture.norm {
                NormKind::Rms => Rows::with_rms(device, n_rows, config.n_embd, config.norm_eps)?,
                NormKind::Layer => Rows::new(device, n_rows, config.n_embd)?,
            },
            qkv: device.alloc(max_step * (config.q_cols() + 2 * config.kv_cols()))?,
            attended: Rows::new(device, max_step, config.q_cols())?,
            attention: Scratch::new(device, config, context, max_step)?,
            router: device.alloc(max_step * n_experts)?,
            routing: match config.experts {
                Some(experts) => Some(Routing::new(device, experts, config.n_embd, max_step)?),
                None => None,
            },
            gate: device.alloc(slots * config.n_ff)?,
            up: device.alloc(slots * config.n_ff)?,
            hidden: Rows::new(device, slots, config.n_ff)?,
            expert_out: device.alloc(expert_rows * config.n_embd)?,
            logits: device.alloc(max_outputs * config.n_vocab)?,
        })
    }

    /// Bytes that `new` takes, but for a few small lists.
    pub fn bytes(config: &Config, context: usize, max_step: usize, max_outputs: usize) -> u64 {
        let slots = n_slots(config, max_step);
        let qkv_cols = config.q_cols() + 2 * config.kv_cols();
        let floats = (max_step + max_outputs) * config.n_embd
            + max_step * qkv_cols
            + 2 * slots * config.n_ff
            + slots * config.n_embd
            + max_outputs * config.n_vocab;
        4 * floats as u64
            + Rows::bytes(max_step.max(max_outputs), config.n_embd)
            + Rows::bytes(max_step, config.q_cols())
            + Rows::bytes(slots, config.n_ff)
            + Scratch::bytes(config, context, max_step)
    }
}

/// A norm of the stream.
#[derive(Clone, Copy)]
struct StreamNorm<'a> {
    norm: &'a Norm,
    /// Whether the products behind it do it themselves.
    is_inside: bool,
}

/// What the launches of a step depend on, besides what lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepShape {
    n_tokens: usize,
    n_tiles: usize,
    n_outputs: usize,
    n_splits: usize,
    one_each: bool,
}

/// The launches of a decode step, recorded when its shape comes a second time.
#[derive(Debug, Default)]
pub struct RecordedStep {
    seen: Option<StepShape>,
    recorded: Option<(StepShape, Recording)>,
}

impl Model {
    /// Runs `batch`; the logits of its outputs end in the workspace.
    pub(super) fn run(&mut self, batch: &Batch) -> Result<()> {
        self.workspace.batch.write(batch)?;
        let mut recorded = std::mem::take(&mut self.decode);
        // SAFETY: the model owns every buffer of its launches, and never replaces one.
        let done =
            unsafe { self.run_recorded(batch, |model| model.launch(batch, None), &mut recorded) };
        self.decode = recorded;
        done
    }

    /// Where the batch of a step lies, and that of the step behind it goes.
    pub(crate) fn step(&self) -> Step {
        let DeviceBatch { tokens, positions, tiles, .. } = &self.workspace.batch;
        Step { tokens: tokens.view_mut(), positions: positions.view_mut(), tiles: tiles.view_mut() }
    }

    /// Does the work of `batch`, which is on the device: replays it where it was recorded.
    ///
    /// # Safety
    /// `work` must launch the same for batches of one shape, and the buffers of its launches must live as
    /// long as `recorded`.
    pub(super) unsafe fn run_recorded(
        &self,
        batch: &Batch,
        work: impl Fn(&Model) -> Result<()>,
        recorded: &mut RecordedStep,
    ) -> Result<()> {
        let is_recorded = batch.one_each || batch.n_tokens() <= SPREAD_TOKENS;
        if !is_recorded || self.device.is_traced() {
            return work(self);
        }
        let shape = StepShape {
            n_tokens: batch.n_tokens(),
            n_tiles: batch.tiles.len(),
            n_outputs: batch.n_outputs(),
            n_splits: most_splits(batch.context),
            one_each: batch.one_each,
        };
        if let Some((recorded, recording)) = &recorded.recorded
            && *recorded == shape
        {
            // SAFETY: the caller's promise.
            return unsafe { self.device.replay(recording) };
        }
        if recorded.seen != Some(shape) {
            // The first time kernels may have to be compiled, which can't be recorded.
            recorded.seen = Some(shape);
            return work(self);
        }
        let Some(recording) = self.device.record(|| work(self))? else { return work(self) };
        // SAFETY: as above.
        let done = unsafe { self.device.replay(&recording) };
        recorded.recorded = Some((shape, recording));
        done
    }

    /// Records the first `n_launches` launches of a step, and replays them so many times, each after
    /// `before`: the device's time of each. None where nothing can be recorded.
    ///
    /// # Errors
    /// When the batch does not fit, can't be recorded, or a replay fails.
    pub fn time_launches(
        &mut self,
        segments: &[Segment<'_>],
        n_launches: usize,
        times: usize,
        before: impl Fn() -> Result<()>,
    ) -> Result<Option<Vec<Duration>>> {
        let batch = self.batch(segments)?;
        self.workspace.batch.write(&batch)?;
        let device = &self.device;
        let work = || device.first_launches(n_launches, || self.launch(&batch, None));
        let Some(recording) = device.record(work)? else { return Ok(None) };
        let time = |_| {
            before()?;
            let start = device.mark()?;
            // SAFETY: the model owns every buffer of its launches, and never replaces one.
            unsafe { device.replay(&recording)? };
            let end = device.mark()?;
            device.elapsed(&start, &end)
        };
        (0..times).map(time).collect::<Result<_>>().map(Some)
    }

    /// Runs `batch` as `run` does, and watches the residual stream on its way.
    pub(super) fn run_watched(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        self.workspace.batch.write(batch)?;
        let mut streams = Vec::with_capacity(self.config.n_layers + 1);
        self.launch(batch, Some(&mut streams))?;
        Ok(streams)
    }

    /// Starts every kernel of a step. With `streams` the residual stream is copied there before the
    /// first layer and after each; that waits for the device, and can't be recorded.
    pub(super) fn launch(
        &self,
        batch: &Batch,
        mut streams: Option<&mut Vec<Vec<f32>>>,
    ) -> Result<()> {
        let (device, config, ws) = (&self.device, &self.config, &self.workspace);
        let n = batch.n_tokens();
        let layers = &self.weights.layers;
        let first_norm = self.norm_before(layers.first(), n);
        let (tokens, positions) = (ws.batch.tokens.view(), ws.batch.positions.view());
        let (table, packed) = (&self.weights.token_embd, self.packed(first_norm.norm));
        match &self.weights.position_embd {
            None => embed(device, table, tokens, &ws.stream, n, false, packed)?,
            Some(learned) => {
                embed(device, table, tokens, &ws.stream, n, false, Packed::None)?;
                embed(device, learned, positions, &ws.stream, n, true, packed)?;
            }
        }
        self.norm(first_norm, &ws.stream, n)?;
        let mut watch = || -> Result<()> {
            if let Some(streams) = &mut streams {
                let mut stream = vec![0.0; n * config.n_embd];
                ws.stream.read_into(0, &mut stream)?;
                streams.push(stream);
            }
            Ok(())
        };
        watch()?;
        for (index, layer) in layers.iter().enumerate() {
            self.attention(index, layer, batch)?;
            let next_norm = self.norm_before(layers.get(index + 1), n);
            match config.experts {
                Some(_) => self.experts(&layer.ffn, next_norm.norm, n)?,
                None => self.feed_forward(layer, next_norm, n)?,
            }
            watch()?;
        }
        self.head(batch)
    }

    /// The norm before a layer, or behind the last one.
    fn norm_before<'a>(&'a self, layer: Option<&'a Layer>, n: usize) -> StreamNorm<'a> {
        match layer {
            None => StreamNorm { norm: &self.weights.output_norm, is_inside: false },
            Some(layer) => StreamNorm {
                norm: &layer.attn_norm,
                is_inside: self.may_norm_inside(n)
                    && layer.qkv.iter().all(|Linear { weight, .. }| {
                        let matrix = (weight.format, weight.n_cols);
                        norms_itself(&self.device, matrix, self.qkv_cols())
                    }),
            },
        }
    }

    /// The norm before a layer's feed-forward part.
    fn norm_within<'a>(&'a self, layer: &'a Layer, n: usize) -> StreamNorm<'a> {
        let FeedForward { router, gate, up, .. } = &layer.ffn;
        let up_alone = router.is_none() && gate.is_none();
        let Matrix { format, n_cols, n_rows, .. } = up.weight;
        let is_inside = self.may_norm_inside(n)
            && up_alone
            && norms_itself(&self.device, (format, n_cols), n_rows);
        StreamNorm { norm: &layer.ffn_norm, is_inside }
    }

    /// Whether products may do a norm of `n` rows themselves.
    fn may_norm_inside(&self, n: usize) -> bool {
        n == 1 && self.config.architecture.norm == NormKind::Layer
    }

    /// Columns of q, k and v.
    fn qkv_cols(&self) -> usize {
        self.config.q_cols() + 2 * self.config.kv_cols()
    }

    /// `stream += output(attention(qkv(normed)))`, and the norm behind it.
    fn attention(&self, index: usize, layer: &Layer, batch: &Batch) -> Result<()> {
        let (device, config, ws) = (&self.device, &self.config, &self.workspace);
        let n = batch.n_tokens();
        let mut first_col = 0;
        let formats: Vec<_> = layer.qkv.iter().map(|linear| linear.weight.format).collect();
        let norm = self.norm_before(Some(layer), n);
        for (i, linear) in layer.qkv.iter().enumerate() {
            let overlap = match Overlap::of(&formats, i) {
                // What attention reads before its wait was there when the first layer's began.
                Overlap::Leads if norm.is_inside && index > 0 && formats.len() == 1 => {
                    Overlap::Alone
                }
                overlap => overlap,
            };
            self.qkv_part(linear, norm, first_col, n, overlap)?;
            first_col += linear.weight.n_rows;
        }
        let attention = Attention {
            config,
            cache: &self.cache,
            layer: index,
            qkv: &ws.qkv,
            positions: ws.batch.positions.view(),
            sequences: ws.batch.sequences.view(),
            tiles: ws.batch.tiles.view(),
            n_tokens: n,
            n_tiles: batch.tiles.len(),
            context: batch.context,
            one_each: batch.one_each,
            rope: self.rope.as_ref(),
            sinks: layer.sinks.as_ref(),
        };
        attend(device, &attention, &ws.attention, &ws.attended)?;
        self.add_to_stream(&layer.attn_output, &ws.attended, self.norm_within(layer, n), n)
    }

    /// `stream += down(activation(gate(normed), up(normed)))`, and the norm behind it.
    fn feed_forward(&self, layer: &Layer, after: StreamNorm<'_>, n: usize) -> Result<()> {
        let (ffn, ws) = (&layer.ffn, &self.workspace);
        let before = self.norm_within(layer, n);
        match &ffn.gate {
            Some(gate) => self.gated(gate, &ffn.up, Of::Tokens(Tokens::All(n)), n)?,
            None if before.is_inside => {
                let out = Out::Gelu(&ws.hidden);
                let n_rows = ffn.up.weight.n_rows;
                self.normed_product(&ffn.up, before.norm, out, Overlap::Alone, n_rows)?;
            }
            None => {
                let packed = Packed::Gelu(&ws.hidden);
                self.product(&ffn.up, &ws.normed, &ws.up, packed, Tokens::All(n))?;
            }
        }
        self.add_to_stream(&ffn.down, &ws.hidden, after, n)
    }

    /// `stream += sum over chosen experts of weight * down(activation(gate(normed), up(normed)))`,
    /// and the norm behind it.
    fn experts(&self, ffn: &FeedForward, after: &Norm, n: usize) -> Result<()> {
        let (device, config, ws) = (&self.device, &self.config, &self.workspace);
        let (Some(router), Some(gate), Some(routing)) = (&ffn.router, &ffn.gate, &ws.routing)
        else {
            return Ok(()); // invariant: the loader gives experts all three
        };
        self.product(router, &ws.normed, &ws.router, Packed::None, Tokens::All(n))?;
        let n_slots = n * routing.used();
        let summed = Summed { stream: &ws.stream, packed: self.packed(after) };
        if is_routed_inside(n, ffn) {
            let logits = ws.router.view();
            let of = Of::Router { logits, experts: routing.experts() };
            self.gated(gate, &ffn.up, of, n_slots)?;
            let input = (logits, &ws.hidden);
            return sum_experts(device, routing, &ffn.down, input, &ws.expert_out, summed, n);
        }
        route(device, routing, ws.router.view(), n)?;
        let by_token = routing.tokens(n, routing.used());
        let by_slot = routing.tokens(n, 1);
        self.gated(gate, &ffn.up, Of::Tokens(by_token), n_slots)?;
        let none = Packed::None;
        self.product(&ffn.down, &ws.hidden, &ws.expert_out, none, by_slot)?;
        combine(device, routing, &ws.expert_out, summed, config.n_embd, n)
    }

    /// `hidden = activation(gate(normed), up(normed))` for `n_slots` rows.
    fn gated(&self, gate: &Linear, up: &Linear, of: Of, n_slots: usize) -> Result<()> {
        let ws = &self.workspace;
        let activation = self.config.architecture.activation;
        let g = Gated { gate, up, activation, x: &ws.normed, out: &ws.hidden, of };
        gated(&self.device, g, Apart { gate: &ws.gate, up: &ws.up }, n_slots)
    }

    /// The logits of the rows that need them.
    fn head(&self, batch: &Batch) -> Result<()> {
        let n_outputs = batch.n_outputs();
        if n_outputs == 0 {
            return Ok(());
        }
        let (device, config, ws) = (&self.device, &self.config, &self.workspace);
        let output_norm = &self.weights.output_norm;
        if n_outputs < batch.n_tokens() {
            // Else the last layer left the norm of every row.
            let (rows, shape) = (ws.batch.outputs.view(), (n_outputs, config.n_embd));
            let (selected, packed) = (ws.selected.view_mut(), self.packed(output_norm));
            gather(device, ws.stream.view(), rows, selected, shape, 0, packed)?;
            let norm = StreamNorm { norm: output_norm, is_inside: false };
            self.norm(norm, &ws.selected, n_outputs)?;
        }
        product(
            device,
            Product {
                weights: self.weights.output(),
                x: &ws.normed,
                bias: None,
                residual: None,
                out: ws.logits.view_mut(),
                out_stride: config.n_vocab,
                tokens: Tokens::All(n_outputs),
                packed: Packed::None,
                overlap: Overlap::Alone,
                rows_at_once: config.n_vocab,
            },
        )
    }

    /// Columns of q, k and v from `first_col` on.
    fn qkv_part(
        &self,
        linear: &Linear,
        before: StreamNorm<'_>,
        first_col: usize,
        n: usize,
        overlap: Overlap,
    ) -> Result<()> {
        let (ws, n_cols) = (&self.workspace, self.qkv_cols());
        if before.is_inside {
            let out = Out::Columns(ws.qkv.view_mut().from(first_col));
            return self.normed_product(linear, before.norm, out, overlap, n_cols);
        }
        let p = Product {
            weights: &linear.weight,
            x: &ws.normed,
            bias: linear.bias.as_ref(),
            residual: None,
            out: ws.qkv.view_mut().from(first_col),
            out_stride: n_cols,
            tokens: Tokens::All(n),
            packed: Packed::None,
            overlap,
            rows_at_once: n_cols,
        };
        product(&self.device, p)
    }

    /// `stream += linear(x)` for rows 0..n, and the norm behind it.
    fn add_to_stream(
        &self,
        linear: &Linear,
        x: &Rows,
        after: StreamNorm<'_>,
        n: usize,
    ) -> Result<()> {
        let (device, ws) = (&self.device, &self.workspace);
        let overlap = match self.config.architecture.norm {
            NormKind::Rms => Overlap::Leads,
            // A norm of its own stands before the next weights, and can't begin too early; nor can a product that does it.
            NormKind::Layer => Overlap::Alone,
        };
        let p = Product {
            weights: &linear.weight,
            x,
            bias: linear.bias.as_ref(),
            residual: Some(ws.stream.view()),
            out: ws.stream.view_mut(),
            out_stride: self.config.n_embd,
            tokens: Tokens::All(n),
            packed: self.packed(after.norm),
            overlap,
            rows_at_once: linear.weight.n_rows,
        };
        product(device, p)?;
        self.norm(after, &ws.stream, n)
    }

    /// The norm of rows 0..n of `x`, as far as neither the stage before it takes it over, see `packed`, nor the one
    /// behind it.
    fn norm(&self, norm: StreamNorm<'_>, x: &Buffer<f32>, n: usize) -> Result<()> {
        let (device, eps, out) = (&self.device, self.config.norm_eps, &self.workspace.normed);
        match self.config.architecture.norm {
            NormKind::Layer if !norm.is_inside => layer_norm(device, eps, norm.norm, x, out, n),
            NormKind::Rms | NormKind::Layer => Ok(()),
        }
    }

    /// A product of the stream's only row that does the norm before it itself.
    fn normed_product(
        &self,
        linear: &Linear,
        norm: &Norm,
        out: Out<'_>,
        overlap: Overlap,
        rows_at_once: usize,
    ) -> Result<()> {
        let (x, eps) = (&self.workspace.stream, self.config.norm_eps);
        let p = NormedProduct { linear, x, norm, eps, out, overlap, rows_at_once };
        normed_product(&self.device, p)
    }

    /// An RMS norm's share that the stage before it takes over.
    fn packed<'a>(&'a self, norm: &'a Norm) -> Packed<'a> {
        Packed::for_norm(&norm.weight, &self.workspace.normed)
    }

    /// A product into rows of its own width.
    fn product(
        &self,
        linear: &Linear,
        x: &Rows,
        out: &Buffer<f32>,
        packed: Packed<'_>,
        tokens: Tokens,
    ) -> Result<()> {
        let p = Product {
            weights: &linear.weight,
            x,
            bias: linear.bias.as_ref(),
            residual: None,
            out: out.view_mut(),
            out_stride: linear.weight.n_rows,
            tokens,
            packed,
            overlap: Overlap::Alone,
            rows_at_once: linear.weight.n_rows,
        };
        product(&self.device, p)
    }
}
