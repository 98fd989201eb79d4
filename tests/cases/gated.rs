//! Cases of the products with a gated unit between them, and of the experts' last product with their sum.

use super::activation::Op;
use super::matmul::{NORM_EPS, fixed_point_error, rms_scales, upload_rows, weighed_rows};
use super::rows::expect_codes;
use super::weights::{decode, random_blocks, upload};
use super::{Case, Failure, Noise, expect_close};
use ironwarp::Device;
use ironwarp::model::arch::Activation;
use ironwarp::model::config::Experts;
use ironwarp::model::weights::Linear;
use ironwarp::ops::gated::{Apart, Gated, Of, gated};
use ironwarp::ops::matmul::{Overlap, Packed, Product, Tokens, product};
use ironwarp::ops::moe::{Routing, Summed, combine, route, sum_experts};
use ironwarp::tensor::Rows;
use kernels_gpu::quant::Format;

/// A gated product, against the two products and the activation apart: each must be a few roundings
/// from the same f64 value, so that they agree to a few more.
struct GatedCase {
    format: Format,
    edge: &'static str,
    n_rows: usize,
    blocks: usize,
    n_tokens: usize,
    /// Experts and how many a token has, chosen by a router's logits.
    experts: Option<(usize, usize)>,
    /// Whether the slots are grouped by expert in launches before.
    grouped: bool,
    activation: Activation,
}

impl Case for GatedCase {
    fn name(&self) -> String {
        format!("gated/{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &GatedCase { format, n_rows, n_tokens, activation, .. } = self;
        let n_cols = self.blocks * format.block_elems().max(32);
        let (n_experts, top_k) = self.experts.unwrap_or((1, 1));
        let mut noise = Noise::new(15);
        let mut linear = |name: &str| -> Result<(Linear, Vec<f32>, Vec<f32>), Failure> {
            let bytes = random_blocks(&mut noise, format, n_rows * n_experts, n_cols);
            let w = decode(format, &bytes, n_rows * n_experts, n_cols);
            let mut weight = upload(device, format, &bytes, (n_rows, n_cols, n_experts))?;
            weight.name = name.to_string();
            let bias = noise.units(n_rows * n_experts);
            let linear = Linear { weight, bias: Some(device.upload(&bias)?) };
            Ok((linear, w, bias))
        };
        let (gate, gate_w, gate_bias) = linear("gate")?;
        let (up, up_w, up_bias) = linear("up")?;
        let x = noise.units(n_tokens * n_cols);
        let (rows, weighed) = weighed_rows(device, &x, &noise.units(n_cols))?;
        let factors = rms_scales(&x, n_cols);
        let logits = noise.units(n_tokens * n_experts);
        let logits_buffer = device.upload(&logits)?;
        let n_slots = n_tokens * top_k;
        let out = Rows::new(device, n_slots, n_rows)?;
        let experts = self.experts.map(|(count, used)| Experts { count, used });
        let routing = experts.map(|e| Routing::new(device, e, n_rows, n_tokens)).transpose()?;
        let logits_view = logits_buffer.view();
        let of = match (experts, &routing) {
            (Some(_), Some(routing)) if self.grouped => {
                route(device, routing, logits_view, n_tokens)?;
                Of::Tokens(routing.tokens(n_tokens, top_k))
            }
            (Some(experts), _) => Of::Router { logits: logits_view, experts },
            _ => Of::Tokens(Tokens::All(n_tokens)),
        };
        let (spare_gate, spare_up) = (device.alloc(1)?, device.alloc(1)?);
        let g = Gated { gate: &gate, up: &up, activation, x: &rows, out: &out, of };
        gated(device, g, Apart { gate: &spare_gate, up: &spare_up }, n_slots)?;

        let mut want = Vec::new();
        let mut allowed = Vec::new();
        for slot in 0..n_slots {
            let token = slot / top_k;
            let expert = ranked(&logits[token * n_experts..][..n_experts])[slot % top_k];
            let x = &weighed[token * n_cols..][..n_cols];
            for row in 0..n_rows {
                let at = expert * n_rows + row;
                let dot = |w: &[f32], bias: &[f32]| {
                    let w = &w[at * n_cols..][..n_cols];
                    let sum: f64 = w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64).sum();
                    let size: f64 = w.iter().zip(x).map(|(&w, &x)| (w * x).abs() as f64).sum();
                    // As in `MatMul`: fixed point, the sums, and the RMS scale.
                    let fixed = fixed_point_error(w, x);
                    let roundings = n_cols as f64 / 32.0 + 20.0 + n_cols as f64 / 2048.0;
                    let (factor, bias) = (factors[token], bias[at] as f64);
                    let size = size * factor + bias.abs();
                    let error = fixed * factor + roundings * f32::EPSILON as f64 * size;
                    (sum * factor + bias, error)
                };
                let (g, g_error) = dot(&gate_w, &gate_bias);
                let (u, u_error) = dot(&up_w, &up_bias);
                let (value, slope_g, slope_u) = gated_unit(activation, g, u);
                want.push(value);
                // The products' errors through the unit, both at once too, and its own: as its op's.
                let op = unit_op(activation);
                let own = op.reference(g, u).1;
                let through = slope_g * g_error + slope_u * u_error + 1.1 * g_error * u_error;
                allowed.push(through + own);
            }
        }
        let values = out.values.read()?;
        expect_close(&values, &want, |i, _| allowed[i])?;
        expect_codes(&out.codes.read()?, &out.scales.read()?, &values, n_rows)
    }
}

/// The op that the unit is apart from the products.
fn unit_op(activation: Activation) -> Op {
    match activation {
        Activation::SwigluOai { alpha, limit } => Op::SwigluOai { alpha, limit },
        Activation::SiluGate | Activation::GeluTanh => Op::SiluGate,
    }
}

/// The unit's value, and bounds of its slopes in gate and up. The slope of `g sigmoid(a g)` is at
/// most 1.1, and the unit's value is at most |g|.
fn gated_unit(activation: Activation, g: f64, u: f64) -> (f64, f64, f64) {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::SwigluOai { alpha, limit } => {
            let (alpha, limit) = (alpha as f64, limit as f64);
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            (g * sigmoid(alpha * g) * (u + 1.0), 1.1 * (u + 1.0).abs(), g.abs())
        }
        Activation::SiluGate | Activation::GeluTanh => (g * sigmoid(g) * u, 1.1 * u.abs(), g.abs()),
    }
}

/// A token's gated products have the same bits whatever else is in the batch.
struct Invariant(Format);

impl Case for Invariant {
    fn name(&self) -> String {
        format!("gated/{}/batch_invariant", self.0.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        // More parts than shares, and not a round number of them.
        let (n_rows, n_cols, n_tokens) = (35, 2304, 8);
        let mut noise = Noise::new(19);
        let mut linear = || -> Result<Linear, Failure> {
            let bytes = random_blocks(&mut noise, self.0, n_rows, n_cols);
            Ok(Linear { weight: upload(device, self.0, &bytes, (n_rows, n_cols, 1))?, bias: None })
        };
        let (gate, up) = (linear()?, linear()?);
        let x = noise.units(n_tokens * n_cols);
        let (spare_gate, spare_up) = (device.alloc(1)?, device.alloc(1)?);
        let run = |x: &[f32]| -> Result<Vec<f32>, Failure> {
            let rows = upload_rows(device, x, n_cols)?;
            let n = x.len() / n_cols;
            let out = Rows::new(device, n, n_rows)?;
            let of = Of::Tokens(Tokens::All(n));
            let (activation, x) = (Activation::SiluGate, &rows);
            let g = Gated { gate: &gate, up: &up, activation, x, out: &out, of };
            gated(device, g, Apart { gate: &spare_gate, up: &spare_up }, n)?;
            Ok(out.values.read()?)
        };
        let together = run(&x)?;
        for (first, n) in [(0, 1), (7, 1), (3, 2), (1, 4), (2, 5)] {
            if run(&x[first * n_cols..][..n * n_cols])? != together[first * n_rows..][..n * n_rows]
            {
                let which = format!("{n} tokens from {first} on");
                return Err(Failure(format!("{which} have other bits by themselves")));
            }
        }
        Ok(())
    }
}

/// Experts from the largest logit down, the first of equals before the others.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
}

/// The sum over the chosen experts, against the grouped product and `moe_combine`: the same bits.
struct ExpertsCase {
    format: Format,
    edge: &'static str,
    n_rows: usize,
    blocks: usize,
    n_tokens: usize,
    n_experts: usize,
    top_k: usize,
}

impl Case for ExpertsCase {
    fn name(&self) -> String {
        format!("experts/{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &ExpertsCase { format, n_rows, n_tokens, n_experts, top_k, .. } = self;
        let n_cols = self.blocks * format.block_elems().max(32);
        let mut noise = Noise::new(17);
        let bytes = random_blocks(&mut noise, format, n_rows * n_experts, n_cols);
        let weight = upload(device, format, &bytes, (n_rows, n_cols, n_experts))?;
        let bias = device.upload(&noise.units(n_rows * n_experts))?;
        let down = Linear { weight, bias: Some(bias) };
        let n_slots = n_tokens * top_k;
        let hidden = upload_rows(device, &noise.units(n_slots * n_cols), n_cols)?;
        let logits = device.upload(&noise.units(n_tokens * n_experts))?;
        let stream = noise.units(n_tokens * n_rows);
        let norm_weight = device.upload(&noise.units(n_rows))?;
        let experts = Experts { count: n_experts, used: top_k };
        let routing = Routing::new(device, experts, n_rows, n_tokens)?;
        let run = |inside: bool| -> Result<[Vec<u32>; 3], Failure> {
            let stream = device.upload(&stream)?;
            let packed = Rows::with_rms(device, n_tokens, n_rows, NORM_EPS)?;
            let to = Summed { stream: &stream, packed: Packed::for_norm(&norm_weight, &packed) };
            let out = device.alloc::<f32>(n_slots * n_rows)?;
            if inside {
                let input = (logits.view(), &hidden);
                sum_experts(device, &routing, &down, input, &out, to, n_tokens)?;
            } else {
                route(device, &routing, logits.view(), n_tokens)?;
                let p = Product {
                    weights: &down.weight,
                    x: &hidden,
                    bias: down.bias.as_ref(),
                    residual: None,
                    out: out.view_mut(),
                    out_stride: n_rows,
                    tokens: routing.tokens(n_tokens, 1),
                    packed: Packed::None,
                    overlap: Overlap::Alone,
                    rows_at_once: n_rows,
                };
                product(device, p)?;
                combine(device, &routing, &out, to, n_rows, n_tokens)?;
            }
            let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect();
            let squares = packed.rms.as_ref().map_or(Ok(Vec::new()), |rms| rms.squares.read())?;
            Ok([bits(stream.read()?), bits(packed.values.read()?), bits(squares)])
        };
        let apart = run(false)?;
        // Twice: the first must leave the counters as it found them.
        for time in ["first", "second"] {
            if run(true)? != apart {
                let what = "other bits than the grouped product and its combination";
                return Err(Failure(format!("{what}, {time} time")));
            }
        }
        Ok(())
    }
}

/// Those of a format.
pub fn cases(format: Format, table: &mut Vec<Box<dyn Case>>) {
    let swiglu = Activation::SwigluOai { alpha: 1.702, limit: 1.5 };
    for (edge, n_rows, blocks, n_tokens, experts, grouped, activation) in [
        ("one_block", 16, 1, 1, None, false, Activation::SiluGate),
        ("several", 75, 3, 4, None, false, Activation::SiluGate),
        ("more_parts_than_shares", 33, 9, 3, None, false, swiglu),
        ("two_columns", 49, 9, 7, None, false, swiglu),
        ("routed", 70, 2, 3, Some((5, 3)), false, swiglu),
        // Groups of one token, of up to four and of up to eight; of experts that have two or more in the mean, and not.
        ("grouped", 37, 9, 11, Some((5, 3)), true, swiglu),
        ("grouped_thinly", 37, 9, 17, Some((9, 1)), true, swiglu),
        // More parts than a warp has on their way.
        (
            "grouped_long_rows",
            33,
            1280 / format.block_elems().max(32),
            11,
            Some((5, 3)),
            true,
            swiglu,
        ),
    ] {
        let case =
            GatedCase { format, edge, n_rows, blocks, n_tokens, experts, grouped, activation };
        table.push(Box::new(case));
    }
    table.push(Box::new(Invariant(format)));
    for (edge, n_rows, blocks, n_tokens, n_experts, top_k) in
        [("one", 16, 1, 1, 1, 1), ("four_of_five", 70, 3, 3, 5, 4), ("six_of_nine", 35, 9, 2, 9, 6)]
    {
        let case = ExpertsCase { format, edge, n_rows, blocks, n_tokens, n_experts, top_k };
        table.push(Box::new(case));
    }
}
