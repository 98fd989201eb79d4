//! What stands between two attentions of one token, in one launch, where there is a kernel for its formats.

use super::expect_shape;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::model::config::Experts;
use crate::model::weights::{FeedForward, Layer, Linear, Norm};
use crate::tensor::{RmsScale, Rows};
use kernels_gpu::for_each_layer;
use kernels_gpu::gpu::Global;
use kernels_gpu::matmul::gated::{CLAMPED_SWIGLU, SILU_GATE};
use kernels_gpu::matmul::layer::{self, MAX_RANKS, N_COUNTERS};
use kernels_gpu::quant::Format;
use kernels_gpu::tile::Named;

/// The kernels' counters.
///
/// # Errors
/// When the device has too little memory.
pub fn counters(device: &Device) -> Result<Buffer<u32>> {
    device.alloc(N_COUNTERS)
}

/// From one attention to the next.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The layer whose attention it was.
    pub layer: &'a Layer,
    /// Before the next layer, or after the last one.
    pub next_norm: &'a Norm,
    /// What gives the next layer's q, k and v; none behind the last layer.
    pub next_qkv: &'a [Linear],
    /// Between gate and up.
    pub activation: Activation,
    /// Of the layer.
    pub experts: Option<Experts>,
}

/// The rows that it reads and leaves, of one token each.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// What attention gave.
    pub attended: &'a Rows,
    /// The residual stream.
    pub stream: &'a Buffer<f32>,
    /// What the norms' products read.
    pub normed: &'a Rows,
    /// Their scale.
    pub rms: &'a RmsScale,
    /// The router's logits.
    pub logits: &'a Buffer<f32>,
    /// What the last product reads, a row for each expert.
    pub hidden: &'a Rows,
    /// The next layer's q, k and v.
    pub qkv: &'a Buffer<f32>,
    /// See `counters`.
    pub counters: &'a Buffer<u32>,
}

/// The formats that choose the kernel: attention's output, gate and up, down, q k v.
struct Formats<'a> {
    output: Format,
    gated: Format,
    down: Format,
    qkv: &'a [Linear],
}

impl<'a> Formats<'a> {
    /// Those of layers that are what the kernels are for.
    fn of(b: &Between<'a>) -> Option<Formats<'a>> {
        let FeedForward { router, gate, up, down } = &b.layer.ffn;
        let gate = gate.as_ref()?;
        let fits = match (router, b.experts) {
            (Some(router), Some(experts)) => {
                router.weight.format == Format::F32 && experts.used <= MAX_RANKS as usize
            }
            (None, None) => true,
            _ => false,
        };
        let same = gate.weight.format == up.weight.format;
        (fits && same && b.next_qkv.len() <= 2).then_some(Formats {
            output: b.layer.attn_output.weight.format,
            gated: up.weight.format,
            down: down.weight.format,
            qkv: b.next_qkv,
        })
    }

    fn are(&self, output: Format, gated: Format, down: Format, qkv: [Format; 2]) -> bool {
        (self.output, self.gated, self.down) == (output, gated, down)
            && self.qkv.iter().zip(qkv).all(|(linear, format)| linear.weight.format == format)
    }
}

/// Whether there is a kernel for it on this device.
pub fn is_one_launch(device: &Device, b: &Between<'_>) -> bool {
    let Some(formats) = Formats::of(b) else { return false };
    macro_rules! any_of {
        ($($(#[$doc:meta])* $name:ident, half $half:expr, output $output:ty, gated $gated:ty,
          down $down:ty, first $first:ty, second $second:ty;)*) => {
            $((formats.are(
                <$output as Named>::FORMAT,
                <$gated as Named>::FORMAT,
                <$down as Named>::FORMAT,
                [<$first as Named>::FORMAT, <$second as Named>::FORMAT],
            ) && device.has::<layer::$name::LayerOf>()))||*
        };
    }
    for_each_layer!(any_of)
}

/// `stream += output(attended)`; `stream += feed_forward(norm(stream))`; `qkv = next(norm(stream))`, for one
/// token. `is_one_launch` must hold.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn between(device: &Device, b: &Between<'_>, s: &Streams<'_>) -> Result<()> {
    let FeedForward { router, gate, up, down } = &b.layer.ffn;
    let (output, gate) = (&b.layer.attn_output, gate.as_ref().unwrap_or(up));
    let (n_embd, n_ff) = (s.normed.n_cols, s.hidden.n_cols);
    let embd_products = [gate, up].into_iter().chain(router).chain(b.next_qkv);
    let inputs = embd_products
        .map(|linear| (linear, n_embd))
        .chain([(output, s.attended.n_cols), (down, n_ff)]);
    for (linear, n_cols) in inputs {
        let Linear { weight, bias } = linear;
        expect_shape("layer", &weight.name, n_cols, weight.n_cols, "columns of the input")?;
        if let Some(bias) = bias {
            let n = weight.n_rows * weight.n_experts;
            expect_shape("layer", &weight.name, bias.len(), n, "elements of the bias")?;
        }
    }
    for (linear, n_rows) in [(output, n_embd), (down, n_embd), (gate, n_ff), (up, n_ff)] {
        let name = &linear.weight.name;
        expect_shape("layer", name, n_rows, linear.weight.n_rows, "columns of the output")?;
    }
    let bias = |linear: &Linear| linear.bias.as_ref().map_or_else(Global::absent, Buffer::view);
    let words = |linear: &Linear| linear.weight.words.view().cast();
    let qkv = |i: usize| b.next_qkv.get(i);
    let n_rows = |i: usize| qkv(i).map_or(0, |linear| linear.weight.n_rows as u32);
    let (activation, alpha, limit) = match b.activation {
        Activation::SwigluOai { alpha, limit } => (CLAMPED_SWIGLU, alpha, limit),
        Activation::SiluGate | Activation::GeluTanh => (SILU_GATE, 0.0, 0.0),
    };
    let Some(formats) = Formats::of(b) else {
        unreachable!("{}: no layer for one launch", output.weight.name) // the caller's promise
    };
    macro_rules! launch {
        ($($(#[$doc:meta])* $name:ident, half $half:expr, output $output:ty, gated $gated:ty,
          down $down:ty, first $first:ty, second $second:ty;)*) => {$(
            if formats.are(
                <$output as Named>::FORMAT,
                <$gated as Named>::FORMAT,
                <$down as Named>::FORMAT,
                [<$first as Named>::FORMAT, <$second as Named>::FORMAT],
            ) {
                let kernel = layer::$name::LayerOf {
                    output: words(output),
                    output_bias: bias(output),
                    attended_codes: s.attended.codes.view().cast(),
                    attended_scales: s.attended.scales.view(),
                    stream: s.stream.view_mut(),
                    ffn_norm: b.layer.ffn_norm.weight.view(),
                    normed_values: s.normed.values.view_mut(),
                    normed_codes: s.normed.codes.view_mut(),
                    normed_scales: s.normed.scales.view_mut(),
                    normed_squares: s.rms.squares.view_mut(),
                    router: router.as_ref().map_or_else(Global::absent, words).cast(),
                    router_bias: router.as_ref().map_or_else(Global::absent, bias),
                    logits: s.logits.view_mut(),
                    gate: words(gate),
                    gate_bias: bias(gate),
                    up: words(up),
                    up_bias: bias(up),
                    hidden_codes: s.hidden.codes.view_mut(),
                    hidden_scales: s.hidden.scales.view_mut(),
                    down: words(down),
                    down_bias: bias(down),
                    next_norm: b.next_norm.weight.view(),
                    first: qkv(0).map_or_else(Global::absent, words),
                    first_bias: qkv(0).map_or_else(Global::absent, bias),
                    second: qkv(1).map_or_else(Global::absent, words),
                    second_bias: qkv(1).map_or_else(Global::absent, bias),
                    qkv: s.qkv.view_mut(),
                    counters: s.counters.view_mut(),
                    n_embd: n_embd as u32,
                    n_attended: s.attended.n_cols as u32,
                    n_ff: n_ff as u32,
                    n_experts: b.experts.map_or(0, |experts| experts.count as u32),
                    top_k: b.experts.map_or(1, |experts| experts.used as u32),
                    n_first: n_rows(0),
                    n_second: n_rows(1),
                    activation,
                    alpha,
                    limit,
                    eps: s.rms.eps,
                };
                return device.launch(kernel, device.n_multiprocessors());
            }
        )*};
    }
    for_each_layer!(launch);
    unreachable!("{}: no kernel for its formats", output.weight.name) // the caller's promise
}
