//! Mixture of experts: which expert gets which token, and the sum of what they give.

use super::expect_shape;
use super::gated::is_fused;
use super::matmul::{LARGE_GROUP, Packed, SMALL_GROUP, Tokens};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::config::Experts;
use crate::model::weights::{FeedForward, Linear};
use crate::tensor::{Matrix, Rows};
use kernels_gpu::fixed16;
use kernels_gpu::for_each_tile_format;
use kernels_gpu::gpu::{Global, U32x4};
use kernels_gpu::matmul::experts;
use kernels_gpu::moe::few::{FEW_TOKENS, MoeRouteFew};
use kernels_gpu::moe::{MoeCombine, MoeGroups, MoeRoute, combine_splits};
use kernels_gpu::quant::Format;

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
    /// Of the experts of each block of rows of a token, those that are done.
    arrivals: Buffer<u32>,
}

/// Most groups that `n_slots` slots can make: as many experts as can be have a slot beyond full groups.
fn most_groups(experts: Experts, n_slots: usize, group_size: usize) -> usize {
    (n_slots + experts.count.min(n_slots) * (group_size - 1)) / group_size
}

/// Tokens of a group in a step of `n_slots` slots.
fn group_size(experts: Experts, n_slots: usize) -> usize {
    if n_slots <= SMALL_GROUP * experts.count { SMALL_GROUP } else { LARGE_GROUP }
}

impl Routing {
    /// Room for steps of `max_step` tokens, for experts that give `n_rows` columns each.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub fn new(
        device: &Device,
        experts: Experts,
        n_rows: usize,
        max_step: usize,
    ) -> Result<Routing> {
        let n_slots = max_step * experts.used;
        let n_groups = most_groups(experts, n_slots, SMALL_GROUP);
        Ok(Routing {
            experts,
            ids: device.alloc(n_slots)?,
            weights: device.alloc(n_slots)?,
            slots: device.alloc(n_slots)?,
            groups: device.alloc(n_groups)?,
            arrivals: device.alloc(max_step * fixed16::row_scales(n_rows as u32) as usize)?,
        })
    }

    /// The experts.
    pub fn experts(&self) -> Experts {
        self.experts
    }

    /// Experts that each token uses.
    pub fn used(&self) -> usize {
        self.experts.used
    }

    /// Experts and weights that `route` chose for `n_tokens` tokens, by token and rank; and the slots in
    /// the order of their groups.
    ///
    /// # Errors
    /// When a copy fails.
    pub fn read(&self, n_tokens: usize) -> Result<(Vec<u32>, Vec<f32>, Vec<u32>)> {
        let n_slots = n_tokens * self.experts.used;
        let (mut ids, mut weights) = (vec![0; n_slots], vec![0.0; n_slots]);
        let mut slots = vec![0; n_slots];
        self.ids.read_into(0, &mut ids)?;
        self.weights.read_into(0, &mut weights)?;
        self.slots.read_into(0, &mut slots)?;
        Ok((ids, weights, slots))
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
            are_shared: n_slots >= 2 * self.experts.count,
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
    let n_slots = n_tokens * r.experts.used;
    let group_size = group_size(r.experts, n_slots);
    let max_groups = most_groups(r.experts, n_slots, group_size) as u32;
    let (n_tokens, group_size) = (n_tokens as u32, group_size as u32);
    let (expert_ids, expert_weights) = (r.ids.view_mut(), r.weights.view_mut());
    let (slots, groups) = (r.slots.view_mut(), r.groups.view_mut());
    if n_tokens <= FEW_TOKENS {
        let route = MoeRouteFew {
            logits,
            expert_ids,
            expert_weights,
            slots,
            groups,
            n_tokens,
            n_experts,
            top_k,
            group_size,
            max_groups,
        };
        return device.launch(route, 1);
    }
    let route = MoeRoute { logits, expert_ids, expert_weights, n_tokens, n_experts, top_k };
    device.launch(route, (n_tokens as usize).div_ceil(kernels_gpu::moe::ROUTE_TOKENS as usize))?;
    let expert_ids = r.ids.view();
    let n_slots = n_slots as u32;
    let groups =
        MoeGroups { expert_ids, slots, groups, n_slots, n_experts, group_size, max_groups };
    device.launch(groups, 1)
}

/// Where the sum over a token's experts goes: `stream += sum`, and on to the next norm.
#[derive(Clone, Copy, Debug)]
pub struct Summed<'a> {
    /// [n_tokens, n_embd]
    pub stream: &'a Buffer<f32>,
    /// What the next norm's products read: `Packed::None` or `Packed::Norm`.
    pub packed: Packed<'a>,
}

/// `stream[token] += sum_j weight[token, j] * expert_out[slot(token, j)]`.
///
/// # Errors
/// When the launch fails.
pub fn combine(
    device: &Device,
    r: &Routing,
    expert_out: &Buffer<f32>,
    to: Summed<'_>,
    n_cols: usize,
    n_tokens: usize,
) -> Result<()> {
    let packed = to.packed.views();
    let n_cols = n_cols as u32;
    let kernel = MoeCombine {
        down: expert_out.view(),
        expert_weights: r.weights.view(),
        residual: to.stream.view(),
        out: to.stream.view_mut(),
        norm_weight: packed.norm_weight,
        packed_values: packed.values,
        packed_codes: packed.codes,
        packed_scales: packed.scales,
        packed_squares: packed.squares,
        n_cols,
        top_k: r.experts.used as u32,
    };
    device.launch(kernel, (n_tokens, combine_splits(n_cols) as usize))
}

/// Most tokens of a step that takes its experts one by one. More share experts, and are quicker in groups.
pub const ONE_BY_ONE: usize = 2;

/// Whether a step of `n_tokens` tokens takes its experts one by one, with the routing inside the
/// products.
pub fn is_routed_inside(n_tokens: usize, ffn: &FeedForward) -> bool {
    n_tokens <= ONE_BY_ONE
        && ffn.down.weight.format != Format::F32
        && ffn.gate.as_ref().is_some_and(|gate| is_fused(gate, &ffn.up))
}

/// `stream[token] += sum_j weight_j down[expert_j] hidden[token * used + j]`, experts and weights as
/// the router's logits ([n_tokens, n_experts]) choose them. `expert_out`, [n_tokens * used, n_embd], is for
/// what each gives.
///
/// # Errors
/// When shapes don't fit, or the launch fails.
pub fn sum_experts(
    device: &Device,
    r: &Routing,
    down: &Linear,
    (logits, hidden): (Global<f32>, &Rows),
    expert_out: &Buffer<f32>,
    to: Summed<'_>,
    n_tokens: usize,
) -> Result<()> {
    let Matrix { n_rows, n_cols, format, .. } = down.weight;
    expect_shape("experts", &down.weight.name, hidden.n_cols, n_cols, "columns of the input")?;
    let packed = to.packed.views();
    let n_blocks = fixed16::row_scales(n_rows as u32) as usize;
    macro_rules! of_format {
        (
            $tile:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident, $experts:ident
        ) => {
            if format == Format::$ggml {
                let kernel = experts::$experts::Experts {
                    words: down.weight.words.view().cast(),
                    codes: hidden.codes.view().cast(),
                    scales: hidden.scales.view(),
                    router: logits,
                    bias: down.bias.as_ref().map_or_else(Global::absent, Buffer::view),
                    residual: to.stream.view(),
                    out: to.stream.view_mut(),
                    parts: expert_out.view_mut(),
                    arrivals: r.arrivals.view_mut(),
                    norm_weight: packed.norm_weight,
                    packed_values: packed.values,
                    packed_codes: packed.codes,
                    packed_scales: packed.scales,
                    packed_squares: packed.squares,
                    n_rows: n_rows as u32,
                    n_cols: n_cols as u32,
                    n_experts: r.experts.count as u32,
                    top_k: r.experts.used as u32,
                };
                return device.launch(kernel, (n_blocks, n_tokens, r.experts.used));
            }
        };
    }
    for_each_tile_format!(of_format);
    // invariant: `is_routed_inside` refuses F32, and the table has every other format.
    unreachable!("{format:?} has no product of experts")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most groups that any distribution of `n_slots` over `n_experts` makes.
    fn most_by_trial(n_experts: usize, n_slots: usize, group_size: usize) -> usize {
        if n_experts == 1 {
            return n_slots.div_ceil(group_size);
        }
        let with = |first: usize| {
            first.div_ceil(group_size) + most_by_trial(n_experts - 1, n_slots - first, group_size)
        };
        (0..=n_slots).map(with).max().unwrap_or(0)
    }

    #[test]
    fn most_groups_are_what_some_distribution_makes() {
        for n_experts in 1..=4 {
            for n_slots in 1..=20 {
                for group_size in [1, 3, 8] {
                    let experts = Experts { count: n_experts, used: 1 };
                    let found = most_groups(experts, n_slots, group_size);
                    let most = most_by_trial(n_experts, n_slots, group_size);
                    assert_eq!(found, most, "{n_experts} experts, {n_slots} slots of {group_size}");
                }
            }
        }
    }
}
