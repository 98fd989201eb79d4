//! Cases of the mixture of experts: routing, the work list, the weighted sum.

use super::rows::{GuardedRows, expect_weighed};
use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::Device;
use kernels_gpu::gpu::{GlobalMut, U32x4};
use kernels_gpu::moe::few::{FEW_TOKENS, MoeRouteFew};
use kernels_gpu::moe::{
    COMBINE_BLOCK, GROUPS_BLOCK, MAX_EXPERTS, MAX_SLOTS, MAX_TOP_K, MoeCombine, MoeGroups,
    MoeRoute, ROUTE_TOKENS, combine_splits, max_groups,
};
use std::cmp::Ordering;

const EPS: f64 = f32::EPSILON as f64;

/// Which launch routes.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// One that only routes, whatever the number of tokens.
    Route,
    /// One that makes the work list too, of groups of so many slots, with so many records beyond what is needed.
    Few { group_size: usize, n_spare: usize },
}

/// Makes a logit from a random number in -1..1.
type Logit = fn(f32) -> f32;

struct Route {
    by: By,
    edge: &'static str,
    n_tokens: usize,
    n_experts: usize,
    top_k: usize,
    logit: Logit,
}

impl Case for Route {
    fn name(&self) -> String {
        let kernel = if self.by == By::Route { "moe_route" } else { "moe_route_few" };
        format!("{kernel}/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Route { n_tokens, n_experts, top_k, .. } = self;
        let noise = Noise::new(3).units(n_tokens * n_experts);
        let logits: Vec<f32> = noise.into_iter().map(self.logit).collect();
        let buffer = device.upload(&logits)?;
        let ids = Guarded::<u32>::new(device, n_tokens * top_k)?;
        let weights = Guarded::<f32>::new(device, n_tokens * top_k)?;
        match self.by {
            By::Route => {
                let kernel = MoeRoute {
                    logits: buffer.view(),
                    expert_ids: ids.view_mut(),
                    expert_weights: weights.view_mut(),
                    n_tokens: n_tokens as u32,
                    n_experts: n_experts as u32,
                    top_k: top_k as u32,
                };
                device.launch(kernel, n_tokens.div_ceil(ROUTE_TOKENS as usize))?;
            }
            By::Few { group_size, n_spare } => {
                let mut chosen = Vec::with_capacity(n_tokens * top_k);
                for row in logits.chunks(n_experts) {
                    chosen.extend(ranked(row, top_k).into_iter().map(|expert| expert as u32));
                }
                let list = WorkList::new(&chosen, n_experts, group_size, n_spare)?;
                let slots = Guarded::<u32>::new(device, chosen.len())?;
                let groups = Guarded::<U32x4>::new(device, list.groups.len())?;
                let kernel = MoeRouteFew {
                    logits: buffer.view(),
                    expert_ids: ids.view_mut(),
                    expert_weights: weights.view_mut(),
                    slots: slots.view_mut(),
                    groups: groups.view_mut(),
                    n_tokens: n_tokens as u32,
                    n_experts: n_experts as u32,
                    top_k: top_k as u32,
                    group_size: group_size as u32,
                    max_groups: list.groups.len() as u32,
                };
                device.launch(kernel, 1)?;
                list.expect(&slots.read()?, &groups.read()?)?;
            }
        }

        let (ids, weights) = (ids.read()?, weights.read()?);
        for (token, row) in logits.chunks(n_experts).enumerate() {
            let experts = ranked(row, top_k);
            let got: Vec<usize> =
                ids[token * top_k..][..top_k].iter().map(|&e| e as usize).collect();
            if got != experts {
                return Err(Failure(format!("token {token}: got {got:?}, want {experts:?}")));
            }
            check_weights(&weights[token * top_k..][..top_k], &experts, row)
                .map_err(|failure| Failure(format!("token {token}: {}", failure.0)))?;
        }
        Ok(())
    }
}

/// The `top_k` experts of a row of logits.
fn ranked(row: &[f32], top_k: usize) -> Vec<usize> {
    let mut experts: Vec<usize> = (0..row.len()).collect();
    experts.sort_by(|&i, &j| earlier(row[i], row[j]).then(i.cmp(&j)));
    experts.truncate(top_k);
    experts
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

fn check_weights(got: &[f32], experts: &[usize], logits: &[f32]) -> Result<(), Failure> {
    let chosen: Vec<f64> = experts.iter().map(|&e| logits[e] as f64).collect();
    if chosen.iter().any(|l| l.is_nan()) {
        // What the softmax of a NaN is.
        return match got.iter().all(|w| w.is_nan()) {
            true => Ok(()),
            false => Err(Failure(format!("weights {got:?} of logits {chosen:?}"))),
        };
    }
    let below: Vec<f64> = chosen.iter().map(|l| chosen[0] - l).collect();
    let sum: f64 = below.iter().map(|d| (-d).exp()).sum();
    let want: Vec<f64> = below.iter().map(|d| (-d).exp() / sum).collect();
    // The machine's `e^-d` is off by EPS (2 + d), the difference before it by EPS d / 2. The sum's
    // own such error is the mean of its terms'; five roundings of the sum, one of the division.
    let of_exp = |d: f64| 2.0 + 1.5 * d;
    let of_sum: f64 =
        below.iter().zip(&want).filter(|(_, w)| **w > 0.0).map(|(&d, w)| w * of_exp(d)).sum();
    expect_close(got, &want, |i, w| match w > 0.0 {
        true => w * EPS * (of_exp(below[i]) + of_sum + 3.0) + f32::MIN_POSITIVE as f64,
        false => 0.0,
    })
}

/// The slots sorted by expert, and their groups, with unused records behind.
struct WorkList {
    slots: Vec<u32>,
    groups: Vec<[u32; 4]>,
}

impl WorkList {
    /// Of slots with these experts.
    fn new(
        expert_ids: &[u32],
        n_experts: usize,
        group_size: usize,
        n_spare: usize,
    ) -> Result<WorkList, Failure> {
        let n_slots = expert_ids.len();
        let mut slots: Vec<u32> = (0..n_slots as u32).collect();
        slots.sort_by_key(|&slot| expert_ids[slot as usize]); // stable
        let mut groups = Vec::new();
        let mut start = 0;
        for expert in 0..n_experts as u32 {
            let mut n_left = expert_ids.iter().filter(|&&e| e == expert).count();
            while n_left > 0 {
                let n = n_left.min(group_size);
                groups.push([expert, start as u32, n as u32, 0]);
                (start, n_left) = (start + n, n_left - n);
            }
        }
        let bound = max_groups(n_slots as u32, n_experts as u32, group_size as u32) as usize;
        if groups.len() > bound {
            return Err(Failure(format!("{} groups, but at most {bound}", groups.len())));
        }
        groups.resize(groups.len() + n_spare, [0; 4]);
        Ok(WorkList { slots, groups })
    }

    /// Whether these are the list.
    fn expect(&self, slots: &[u32], groups: &[U32x4]) -> Result<(), Failure> {
        expect_same("slot", slots, &self.slots)?;
        // Of an unused record only the count means anything.
        let got: Vec<[u32; 4]> =
            groups.iter().map(|g| if g.0[2] == 0 { [0; 4] } else { g.0 }).collect();
        expect_same("group", &got, &self.groups)
    }
}

struct Groups {
    edge: &'static str,
    n_slots: usize,
    n_experts: usize,
    group_size: usize,
    /// Records beyond what is needed.
    n_spare: usize,
    /// The expert of a slot, from its number and a random word.
    expert: fn(usize, u32) -> u32,
}

impl Case for Groups {
    fn name(&self) -> String {
        format!("moe_groups/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Groups { n_slots, n_experts, group_size, n_spare, .. } = self;
        let mut noise = Noise::new(5);
        let expert_ids: Vec<u32> = (0..n_slots)
            .map(|slot| (self.expert)(slot, noise.bits() >> 8) % n_experts as u32)
            .collect();

        let list = WorkList::new(&expert_ids, n_experts, group_size, n_spare)?;
        let n_groups = list.groups.len();
        let ids = device.upload(&expert_ids)?;
        let slots = Guarded::<u32>::new(device, n_slots)?;
        let groups = Guarded::<U32x4>::new(device, n_groups)?;
        let kernel = MoeGroups {
            expert_ids: ids.view(),
            slots: slots.view_mut(),
            groups: groups.view_mut(),
            n_slots: n_slots as u32,
            n_experts: n_experts as u32,
            group_size: group_size as u32,
            max_groups: n_groups as u32,
        };
        device.launch(kernel, 1)?;
        list.expect(&slots.read()?, &groups.read()?)
    }
}

fn expect_same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: &[T],
    want: &[T],
) -> Result<(), Failure> {
    match (0..want.len()).find(|&i| got.get(i) != Some(&want[i])) {
        None if got.len() == want.len() => Ok(()),
        None => Err(Failure(format!("{} of {what}, want {}", got.len(), want.len()))),
        Some(i) => Err(Failure(format!("{what} {i}: got {:?}, want {:?}", got.get(i), want[i]))),
    }
}

struct Combine {
    edge: &'static str,
    n_tokens: usize,
    n_cols: usize,
    top_k: usize,
    n_splits: usize,
    /// The output is the residual's own buffer.
    in_place: bool,
}

impl Case for Combine {
    fn name(&self) -> String {
        format!("moe_combine/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Combine { n_tokens, n_cols, top_k, n_splits, .. } = self;
        let mut noise = Noise::new(9);
        let residual = noise.units(n_tokens * n_cols);
        let down = noise.units(n_tokens * top_k * n_cols);
        let weights = noise.units(n_tokens * top_k);
        let (residual_buffer, down_buffer) = (device.upload(&residual)?, device.upload(&down)?);
        let weight_buffer = device.upload(&weights)?;
        let out = match self.in_place {
            true => Guarded::holding(device, &residual)?,
            false => Guarded::new(device, n_tokens * n_cols)?,
        };
        let own = kernels_gpu::gpu::Global::new(out.view_mut().address(), n_tokens * n_cols);
        let norm_weight = noise.units(n_cols);
        let norm_buffer = device.upload(&norm_weight)?;
        let packed = GuardedRows::new(device, n_tokens, n_cols)?;
        let n_blocks = n_cols.div_ceil(64) * 2;
        let squares = Guarded::<f32>::new(device, n_tokens * n_blocks)?;
        let kernel = MoeCombine {
            residual: if self.in_place { own } else { residual_buffer.view() },
            down: down_buffer.view(),
            expert_weights: weight_buffer.view(),
            out: out.view_mut(),
            norm_weight: norm_buffer.view(),
            packed_values: packed.values.view_mut(),
            packed_codes: packed.codes.view_mut(),
            packed_scales: packed.scales.view_mut(),
            packed_squares: if n_tokens == 5 { GlobalMut::absent() } else { squares.view_mut() },
            top_k: top_k as u32,
            n_cols: n_cols as u32,
        };
        device.launch(kernel, (n_tokens, n_splits))?;

        let terms = |i: usize| {
            let (token, col) = (i / n_cols, i % n_cols);
            (0..top_k).map(move |j| (token * top_k + j, col))
        };
        let term =
            |(slot, col): (usize, usize)| weights[slot] as f64 * down[slot * n_cols + col] as f64;
        let want: Vec<f64> = (0..n_tokens * n_cols)
            .map(|i| residual[i] as f64 + terms(i).map(term).sum::<f64>())
            .collect();
        let got = out.read()?;
        expect_close(&got, &want, |i, w| {
            // A rounding for each term, of at most the sum of all sizes, and the residual's.
            let sizes: f64 = terms(i).map(|t| term(t).abs()).sum();
            EPS / 2.0 * (top_k as f64 * sizes + w.abs())
        })?;
        if n_tokens == 5 {
            return Ok(()); // nothing is packed
        }
        expect_weighed(&got, &norm_weight, &packed, &squares.read()?)
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    route_cases(table);
    route_few_cases(table);
    groups_cases(table);
    combine_cases(table);
}

fn route_cases(table: &mut Vec<Box<dyn Case>>) {
    let tokens = ROUTE_TOKENS as usize;
    let (most, most_chosen) = (MAX_EXPERTS as usize, MAX_TOP_K as usize);
    for (edge, n_tokens, n_experts, top_k) in [
        ("one_expert", 3, 1, 1),
        ("gpt_oss_20b", 1, 32, 4),
        ("gpt_oss_120b", tokens + 1, 128, 4),
        ("one_below_warp", tokens - 1, 31, 2),
        ("one_past_warp", tokens, 33, 8),
        ("all_chosen", 2 * tokens + 3, 16, 16),
        ("most", 3, most, most_chosen),
        ("one_below_most", 2, most - 1, most_chosen - 1),
    ] {
        let logit = |noise| 8.0 * noise;
        table.push(Box::new(Route { by: By::Route, edge, n_tokens, n_experts, top_k, logit }));
    }
    let (n_tokens, top_k) = (9, 12);
    let special: [(&str, &str, Logit); 7] = [
        ("ties", "few_ties", |noise| (2.0 * noise).round()),
        ("signed_zeros", "few_signed_zeros", |noise| {
            if noise > 0.9 { 1.0 } else { 0.0_f32.copysign(noise) }
        }),
        ("all_equal", "few_all_equal", |_| -3.5),
        ("some_nan", "few_some_nan", |noise| if noise < 0.6 { f32::NAN } else { noise }),
        ("mostly_nan", "few_mostly_nan", |noise| if noise < 0.9 { f32::NAN } else { noise }),
        ("far_apart", "few_far_apart", |noise| 500.0 * noise),
        ("mostly_infinite", "few_mostly_infinite", |noise| {
            if noise < 0.9 { f32::NEG_INFINITY } else { noise }
        }),
    ];
    // More than an expert a lane, and no more.
    for (many, few, logit) in special {
        for (edge, n_experts) in [(many, 70), (few, 30)] {
            table.push(Box::new(Route { by: By::Route, edge, n_tokens, n_experts, top_k, logit }));
        }
    }
}

fn route_few_cases(table: &mut Vec<Box<dyn Case>>) {
    let (most, most_chosen) = (MAX_EXPERTS as usize, MAX_TOP_K as usize);
    let few = FEW_TOKENS as usize;
    let logit: Logit = |noise| 8.0 * noise;
    for (edge, n_tokens, n_experts, top_k, group_size, n_spare) in [
        ("one", 1, 1, 1, 1, 0),
        ("one_token_spare", 1, 128, 4, 16, 29),
        ("gpt_oss_20b", 4, 32, 4, 8, 9),
        ("gpt_oss_120b", few - 1, 128, 4, 8, 0),
        ("one_past_warp", 9, 33, 8, 3, 2),
        ("most_tokens", few, 32, 4, 8, 1),
        ("full_groups", few, 16, 16, 8, 0),
        ("group_and_rest", few, 16, 16, 31, 5),
        ("groups_of_one", few, 5, 3, 1, 0),
        ("most", few, most, most_chosen, 8, 1500),
        ("one_below_most", few - 1, most - 1, most_chosen - 1, 7, 3),
    ] {
        let by = By::Few { group_size, n_spare };
        table.push(Box::new(Route { by, edge, n_tokens, n_experts, top_k, logit }));
    }
    let by = By::Few { group_size: 8, n_spare: 3 };
    let special: [(&str, Logit); 3] = [
        ("all_equal", |_| -3.5),
        ("ties", |noise| (2.0 * noise).round()),
        ("some_nan", |noise| if noise < 0.6 { f32::NAN } else { noise }),
    ];
    for (edge, logit) in special {
        let (n_tokens, n_experts, top_k) = (few - 3, 30, 12);
        table.push(Box::new(Route { by, edge, n_tokens, n_experts, top_k, logit }));
    }
}

fn groups_cases(table: &mut Vec<Box<dyn Case>>) {
    let (block, most) = (GROUPS_BLOCK as usize, MAX_EXPERTS as usize);
    let any = |_: usize, noise: u32| noise;
    for (edge, n_slots, n_experts, group_size, n_spare) in [
        ("one", 1, 1, 1, 0),
        ("one_token", 4, 32, 8, 0),
        ("one_token_spare", 4, 128, 16, 29),
        ("one_below_warp", 31, 5, 3, 2),
        ("warp", 32, 4, 8, 1),
        ("one_past_warp", 33, 7, 1, 0),
        ("one_below_block", block - 1, 31, 7, 5),
        ("block", block, 32, 16, 0),
        ("one_past_block", block + 1, 33, 5, 3),
        ("blocks_and_rest", 3 * block + 7, most, 64, 2000),
        ("one_below_most_experts", 900, most - 1, 2, 10),
        ("most", MAX_SLOTS as usize, most, 128, 11),
    ] {
        let expert = any;
        table.push(Box::new(Groups { edge, n_slots, n_experts, group_size, n_spare, expert }));
    }
    // One expert takes everything, in groups of one: as many groups as there can be.
    let (n_slots, n_experts) = (MAX_SLOTS as usize, 8);
    for (edge, expert) in [("all_first", 0), ("all_last", 7)] {
        let expert: fn(usize, u32) -> u32 = if expert == 0 { |_, _| 0 } else { |_, _| 7 };
        let (group_size, n_spare) = (1, 3);
        table.push(Box::new(Groups { edge, n_slots, n_experts, group_size, n_spare, expert }));
    }
    // Experts without a slot between those with many.
    let (n_slots, n_experts, group_size, n_spare) = (500, 40, 6, 4);
    let expert = |slot: usize, _: u32| (slot % 3 * 13) as u32;
    table.push(Box::new(Groups { edge: "gaps", n_slots, n_experts, group_size, n_spare, expert }));
}

fn combine_cases(table: &mut Vec<Box<dyn Case>>) {
    let block = COMBINE_BLOCK as usize;
    for (edge, n_tokens, n_cols, top_k, n_splits) in [
        ("one", 1, 1, 1, 1),
        ("one_below_block", 2, block - 1, 4, 1),
        ("block", 3, block, 3, 1),
        ("one_past_block", 2, block + 1, 5, 2),
        ("more_splits_than_work", 2, block + 1, 4, 4),
        ("two_turns", 2, block + 45, 4, 1),
        ("blocks_and_rest", 5, 3 * block + 7, MAX_TOP_K as usize, 2),
        ("gpt_oss", 1, 2880, 4, combine_splits(2880) as usize),
    ] {
        let in_place = n_tokens != 3;
        table.push(Box::new(Combine { edge, n_tokens, n_cols, top_k, n_splits, in_place }));
    }
}
