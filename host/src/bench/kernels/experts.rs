//! A mixture of experts: its routing, its products, and the sum of what they give.
//!
//! Routers' logits are such that experts are used evenly, and launches of few tokens take other experts
//! each time.

use super::check::{EPS, Estimate, Point, activation, choice, ends, product, sample};
use super::stock::{
    Input, Matrices, NORM_EPS, Stock, input_bytes, matrix_bytes, packed_bytes, points_of_row,
    read_row,
};
use super::{Subject, Work};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::arch::Activation;
use crate::model::config::Experts;
use crate::ops::gated::{Apart, Gated, Of, gated};
use crate::ops::matmul::{Overlap, Packed, Product};
use crate::ops::moe::{ONE_BY_ONE, Routing, Summed, combine, route, sum_experts};
use crate::tensor::Rows;
use kernels_gpu::quant::Format;
use std::collections::BTreeSet;

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Stage {
    /// The choice of experts, and the groups of their slots.
    Route,
    /// Gate and up products with the activation between them.
    Gated,
    /// The last product; for one or two tokens with the sum over experts in it.
    Down,
    /// The sum over experts, where it is not in the product.
    Combine,
}

/// A stage of a feed-forward part of experts.
#[derive(Clone, Copy)]
pub(super) struct Mixture {
    pub stage: Stage,
    pub format: Format,
    pub n_embd: usize,
    pub n_ff: usize,
    pub experts: Experts,
    pub n_tokens: usize,
    pub activation: Activation,
}

struct Made {
    plan: Mixture,
    /// Of each way in which the tokens choose: [tokens, experts]
    logits: Vec<Vec<f32>>,
    logit_buffers: Vec<Buffer<f32>>,
    routings: Vec<Routing>,
    /// Gate and up; down; or none
    matrices: Vec<Matrices>,
    /// What the products multiply.
    input: Input,
    out: Out,
    n_copies: usize,
}

/// What the launches write.
struct Out {
    /// [slots, n_ff]
    hidden: Rows,
    apart: [Buffer<f32>; 2],
    /// What experts give, or copies of what they gave; [slots, n_embd]
    expert_out: Vec<Buffer<f32>>,
    given: Vec<f32>,
    /// [tokens, n_embd], and before the first launch
    stream: Buffer<f32>,
    before: Vec<f32>,
    norm_weight: Vec<f32>,
    norm_weight_buffer: Buffer<f32>,
    packed: Rows,
}

impl Mixture {
    fn n_slots(&self) -> usize {
        self.n_tokens * self.experts.used
    }

    /// [columns, rows, experts]
    fn dims(&self) -> [usize; 3] {
        match self.stage {
            Stage::Down => [self.n_ff, self.n_embd, self.experts.count],
            _ => [self.n_embd, self.n_ff, self.experts.count],
        }
    }

    /// Whether one launch routes, multiplies and sums.
    fn is_inside(&self) -> bool {
        self.n_tokens <= ONE_BY_ONE
    }

    /// Logits by which the tokens take sets of experts in turn, from set `first` on.
    fn logits(&self, stock: &mut Stock, first: usize) -> Vec<f32> {
        let Experts { count, used } = self.experts;
        let mut logits = stock.units(self.n_tokens * count);
        for (token, logits) in logits.chunks_mut(count).enumerate() {
            for rank in 0..used {
                logits[((first + token) * used + rank) % count] += 3.0;
            }
        }
        logits
    }

    pub fn make(self, stock: &mut Stock) -> Result<Box<dyn Subject>> {
        let Mixture { stage, format, n_embd, n_ff, experts, n_tokens, .. } = self;
        let n_slots = self.n_slots();
        let device = stock.device.clone();
        let n_sets = experts.count / experts.used;
        let (n_routings, n_matrices) = match (stage, stock.is_filled) {
            (_, false) => (1, 1),
            (Stage::Route, true) => (stock.n_copies((4 * n_tokens * experts.count) as u64), 1),
            (Stage::Combine, true) => (1, stock.n_copies((4 * n_slots * n_embd) as u64)),
            (Stage::Gated | Stage::Down, true) => {
                let [n_cols, n_rows, n_experts] = self.dims();
                let all = matrix_bytes(format, n_rows, n_cols) * n_experts as u64;
                let n_routings = (n_sets / n_tokens).max(1);
                let n_products = if stage == Stage::Gated { 2 } else { 1 };
                // Where the tokens take turns at the experts, one matrix is read in several launches.
                let least = if n_routings > 1 { 1 } else { 2 };
                let n_matrices = stock.n_copies_of(n_products * all, least);
                (n_routings, n_matrices)
            }
        };
        let logits: Vec<Vec<f32>> =
            (0..n_routings).map(|i| self.logits(stock, i * n_tokens)).collect();
        let mut logit_buffers = Vec::with_capacity(n_routings);
        let mut routings = Vec::with_capacity(n_routings);
        for logits in &logits {
            let (buffer, routing) =
                (device.upload(logits)?, Routing::new(&device, experts, n_embd, n_tokens)?);
            if stock.is_filled && stage != Stage::Route {
                route(&device, &routing, buffer.view(), n_tokens)?;
            }
            logit_buffers.push(buffer);
            routings.push(routing);
        }
        let names: &[&str] = match stage {
            Stage::Gated => &["gate", "up"],
            Stage::Down => &["down"],
            Stage::Route | Stage::Combine => &[],
        };
        let matrices = names
            .iter()
            .map(|&name| stock.matrices((name, format), self.dims(), true, n_matrices))
            .collect::<Result<_>>()?;
        let input = match stage {
            Stage::Down => stock.plain(n_slots, n_ff)?,
            Stage::Gated => stock.normed(n_tokens, n_embd)?,
            Stage::Route | Stage::Combine => stock.plain(0, n_embd)?,
        };
        let rows_if = |stages: &[Stage], n: usize| if stages.contains(&stage) { n } else { 0 };
        let before = stock.units(rows_if(&[Stage::Down, Stage::Combine], n_tokens) * n_embd);
        let norm_weight = stock.units(n_embd);
        let given = stock.units(rows_if(&[Stage::Combine], n_slots) * n_embd);
        let n_apart = rows_if(&[Stage::Gated], n_slots) * n_ff;
        let out = Out {
            hidden: Rows::new(&device, rows_if(&[Stage::Gated], n_slots), n_ff)?,
            apart: [device.alloc(n_apart)?, device.alloc(n_apart)?],
            expert_out: match stage {
                Stage::Down => vec![device.alloc(n_slots * n_embd)?],
                _ => stock.copies(n_matrices, &given)?,
            },
            given,
            stream: device.upload(&before)?,
            before,
            norm_weight_buffer: device.upload(&norm_weight)?,
            norm_weight,
            packed: Rows::with_rms(&device, n_tokens, n_embd, NORM_EPS)?,
        };
        let n_copies = n_routings * n_matrices;
        device.synchronize()?;
        Ok(Box::new(Made {
            plan: self,
            logits,
            logit_buffers,
            routings,
            matrices,
            input,
            out,
            n_copies,
        }))
    }
}

impl Subject for Made {
    fn n_copies(&self) -> usize {
        self.n_copies
    }

    fn launch(&self, device: &Device, copy: usize) -> Result<()> {
        let Mixture { stage, experts, n_tokens, n_embd, activation, .. } = self.plan;
        let (n_slots, n_routings) = (self.plan.n_slots(), self.routings.len());
        let (at, matrix) = (copy % n_routings, copy / n_routings);
        let (routing, logits) = (&self.routings[at], self.logit_buffers[at].view());
        let out = &self.out;
        let packed = Packed::for_norm(&out.norm_weight_buffer, &out.packed);
        let to = Summed { stream: &out.stream, packed };
        match stage {
            Stage::Route => route(device, routing, logits, n_tokens),
            Stage::Gated => {
                let g = Gated {
                    gate: &self.matrices[0].linears[matrix],
                    up: &self.matrices[1].linears[matrix],
                    activation,
                    x: &self.input.rows,
                    out: &out.hidden,
                    of: match self.plan.is_inside() {
                        true => Of::Router { logits, experts },
                        false => Of::Tokens(routing.tokens(n_tokens, experts.used)),
                    },
                };
                let [gate, up] = &out.apart;
                gated(device, g, Apart { gate, up }, n_slots)
            }
            Stage::Down => {
                let down = &self.matrices[0].linears[matrix];
                if self.plan.is_inside() {
                    let input = (logits, &self.input.rows);
                    let parts = &out.expert_out[0];
                    return sum_experts(device, routing, down, input, parts, to, n_tokens);
                }
                let p = Product {
                    weights: &down.weight,
                    x: &self.input.rows,
                    bias: down.bias.as_ref(),
                    residual: None,
                    out: out.expert_out[0].view_mut(),
                    out_stride: n_embd,
                    tokens: routing.tokens(n_tokens, 1),
                    packed: Packed::None,
                    overlap: Overlap::Alone,
                    rows_at_once: n_embd,
                };
                crate::ops::matmul::product(device, p)
            }
            Stage::Combine => {
                let given = &out.expert_out[matrix];
                combine(device, routing, given, to, n_embd, n_tokens)
            }
        }
    }

    fn points(&self) -> Result<Vec<Point>> {
        match self.plan.stage {
            Stage::Route => self.routing_points(),
            Stage::Gated => self.slot_points(&self.out.hidden.values, self.plan.n_ff),
            Stage::Down if !self.plan.is_inside() => {
                self.slot_points(&self.out.expert_out[0], self.plan.n_embd)
            }
            Stage::Down | Stage::Combine => self.stream_points(),
        }
    }

    fn work(&self) -> Work {
        let Mixture { stage, format, n_embd, n_ff, experts, n_tokens, .. } = self.plan;
        let n_slots = self.plan.n_slots();
        let distinct: BTreeSet<usize> =
            (0..n_tokens).flat_map(|token| self.choice(token)).map(|(expert, _)| expert).collect();
        let weights: u64 = self.matrices.iter().map(Matrices::expert_bytes).sum();
        let weights = weights * distinct.len() as u64;
        let router = 4 * (n_tokens * experts.count) as u64;
        let stream = 8 * (n_tokens * n_embd) as u64 + packed_bytes(n_tokens, n_embd, true);
        let product = |n_matrices: usize| (2 * n_matrices * n_slots * n_embd * n_ff) as u64;
        let (bytes, operations) = match stage {
            // Ids, weights, and slots.
            Stage::Route => (router + 12 * n_slots as u64, 0),
            Stage::Gated => {
                let input = input_bytes(n_tokens, n_embd, true, format);
                (weights + input + packed_bytes(n_slots, n_ff, false), product(2))
            }
            Stage::Down => {
                let input = input_bytes(n_slots, n_ff, false, format);
                let out = match self.plan.is_inside() {
                    true => stream,
                    false => 4 * (n_slots * n_embd) as u64,
                };
                (weights + input + out, product(1))
            }
            Stage::Combine => ((4 * n_slots * (n_embd + 1)) as u64 + stream, 0),
        };
        match operations {
            0 => Work::of_bytes(bytes),
            _ => Work::of_products(bytes, operations, format),
        }
    }
}

impl Made {
    /// Experts and weights of a token, as inputs number 0 have it.
    fn choice(&self, token: usize) -> Vec<(usize, Estimate)> {
        let Experts { count, used } = self.plan.experts;
        choice(&self.logits[0][token * count..][..count], used)
    }

    /// What an expert's last product gives a slot.
    fn down(&self, slot: usize, expert: usize, row: usize) -> Estimate {
        match self.plan.stage {
            Stage::Combine => Estimate::exact(self.out.given[slot * self.plan.n_embd + row] as f64),
            _ => product(&self.matrices[0], (expert, row), &self.input, slot),
        }
    }

    /// Elements of products of slots.
    fn slot_points(&self, found: &Buffer<f32>, n_cols: usize) -> Result<Vec<Point>> {
        let Mixture { experts, stage, activation: unit, .. } = self.plan;
        let mut points = Vec::new();
        for slot in ends(self.plan.n_slots()) {
            let (token, rank) = (slot / experts.used, slot % experts.used);
            let (expert, _) = self.choice(token)[rank];
            let expected = |row: usize| {
                if stage == Stage::Down {
                    return self.down(slot, expert, row);
                }
                let of = |m: &Matrices| product(m, (expert, row), &self.input, token);
                activation(unit, of(&self.matrices[0]), of(&self.matrices[1]))
            };
            let found = read_row(found, slot, n_cols)?;
            let what = format!("slot {slot}");
            points.extend(points_of_row(&what, &found, &sample(n_cols), expected));
        }
        Ok(points)
    }

    /// Elements of the stream, and of the rows for the next norm.
    fn stream_points(&self) -> Result<Vec<Point>> {
        let Mixture { experts, n_tokens, n_embd, .. } = self.plan;
        let mut points = Vec::new();
        for token in ends(n_tokens) {
            let expected = |row: usize| {
                let before = self.out.before[token * n_embd + row] as f64;
                let mut sum = Estimate::exact(before);
                let mut size = before.abs();
                for (rank, (expert, weight)) in self.choice(token).into_iter().enumerate() {
                    let given = self.down(token * experts.used + rank, expert, row);
                    let part = given.times(weight.value);
                    let of_weight = weight.error * (given.value.abs() + given.error);
                    sum.value += part.value;
                    sum.error += part.error + of_weight;
                    size += part.value.abs();
                }
                // A rounding for each term, of sums that are no larger than all terms together.
                Estimate { error: sum.error + (experts.used + 1) as f64 * EPS * size, ..sum }
            };
            let places = sample(n_embd);
            let found = read_row(&self.out.stream, token, n_embd)?;
            points.extend(points_of_row(&format!("token {token}"), &found, &places, expected));
            let found = read_row(&self.out.packed.values, token, n_embd)?;
            let packed = |row: usize| expected(row).times(self.out.norm_weight[row] as f64);
            points.extend(points_of_row(&format!("packed {token}"), &found, &places, packed));
        }
        Ok(points)
    }

    /// Every choice, and every slot's place among the groups.
    fn routing_points(&self) -> Result<Vec<Point>> {
        let Mixture { experts, n_tokens, .. } = self.plan;
        let (ids, weights, slots) = self.routings[0].read(n_tokens)?;
        let mut points = Vec::new();
        let mut chosen = Vec::new();
        for token in 0..n_tokens {
            for (rank, (expert, weight)) in self.choice(token).into_iter().enumerate() {
                let slot = token * experts.used + rank;
                let of_slot = |what: &str, found: f64, expected: Estimate| Point {
                    element: format!("{what} of slot {slot}"),
                    found,
                    expected,
                };
                let id = Estimate::exact(expert as f64);
                points.push(of_slot("expert", ids[slot] as f64, id));
                points.push(of_slot("weight", weights[slot] as f64, weight));
                chosen.push((expert, slot));
            }
        }
        chosen.sort_unstable();
        for (at, (found, (_, slot))) in slots.iter().zip(chosen).enumerate() {
            let expected = Estimate::exact(slot as f64);
            points.push(Point { element: format!("place {at}"), found: *found as f64, expected });
        }
        Ok(points)
    }
}
