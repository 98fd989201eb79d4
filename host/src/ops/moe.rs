//! Mixture of experts: which expert gets which token, and the sum of what they give.

use super::matmul::{LARGE_GROUP, SMALL_GROUP, Tokens};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::config::Experts;
use kernels_gpu::gpu::{Global, U32x4};
use kernels_gpu::moe::{MoeCombine, MoeGroups, MoeRoute};

/// Where the tokens of a step go.
#[derive(Debug)]
pub struct Routing {
    experts: Experts,
    /// [tokens, used]
    ids: Buffer<u32>,
    /// [tokens, used]
    weights: Buffer<f32>,
    /// Slots (token * used + rank), sorted by expert.
    slots: Buffer<u32>,
    /// (expert, first slot, slots, 0)
    groups: Buffer<U32x4>,
}

/// Most groups that `n_slots` slots can make.
fn most_groups(experts: Experts, n_slots: usize, group_size: usize) -> usize {
    // Each expert that has any slot may leave one group unfilled.
    n_slots.min(n_slots / group_size + experts.count)
}

/// Tokens of a group in a step of `n_slots` slots.
fn group_size(experts: Experts, n_slots: usize) -> usize {
    if n_slots <= SMALL_GROUP * experts.count { SMALL_GROUP } else { LARGE_GROUP }
}

impl Routing {
    /// Room for steps of `max_step` tokens.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(device: &Device, experts: Experts, max_step: usize) -> Result<Routing> {
        let n_slots = max_step * experts.used;
        let n_groups = most_groups(experts, n_slots, SMALL_GROUP);
        Ok(Routing {
            experts,
            ids: device.alloc(n_slots)?,
            weights: device.alloc(n_slots)?,
            slots: device.alloc(n_slots)?,
            groups: device.alloc(n_groups)?,
        })
    }

    /// Experts that each token uses.
    pub fn used(&self) -> usize {
        self.experts.used
    }

    /// The slots of `n_tokens` tokens for a product, whose input has a row for every
    /// `slots_per_row` slots.
    pub fn tokens(&self, n_tokens: usize, slots_per_row: usize) -> Tokens {
        let n_slots = n_tokens * self.experts.used;
        let group_size = group_size(self.experts, n_slots);
        Tokens::Grouped {
            groups: self.groups.view(),
            n_groups: most_groups(self.experts, n_slots, group_size),
            group_size,
            slots: self.slots.view(),
            slots_per_row,
        }
    }
}

/// Chooses the experts of each token from the router's logits, and groups the slots by expert.
///
/// # Errors
/// When a launch fails.
pub fn route(device: &Device, r: &Routing, logits: Global<f32>, n_tokens: usize) -> Result<()> {
    let (n_experts, top_k) = (r.experts.count as u32, r.experts.used as u32);
    let route = MoeRoute {
        logits,
        expert_ids: r.ids.view_mut(),
        expert_weights: r.weights.view_mut(),
        n_tokens: n_tokens as u32,
        n_experts,
        top_k,
    };
    device.launch(route, n_tokens.div_ceil(kernels_gpu::moe::ROUTE_TOKENS as usize))?;
    let n_slots = n_tokens * r.experts.used;
    let group_size = group_size(r.experts, n_slots);
    let groups = MoeGroups {
        expert_ids: r.ids.view(),
        slots: r.slots.view_mut(),
        groups: r.groups.view_mut(),
        n_slots: n_slots as u32,
        n_experts,
        group_size: group_size as u32,
        max_groups: most_groups(r.experts, n_slots, group_size) as u32,
    };
    device.launch(groups, 1)
}

/// `stream[token] += sum_j weight[token, j] * expert_out[slot(token, j)]`.
///
/// # Errors
/// When the launch fails.
pub fn combine(
    device: &Device,
    r: &Routing,
    expert_out: &Buffer<f32>,
    stream: &Buffer<f32>,
    n_cols: usize,
    n_tokens: usize,
) -> Result<()> {
    let kernel = MoeCombine {
        down: expert_out.view(),
        expert_weights: r.weights.view(),
        residual: stream.view(),
        out: stream.view_mut(),
        n_cols: n_cols as u32,
        top_k: r.experts.used as u32,
    };
    device.launch(kernel, n_tokens)
}
