//! Mixture of experts: which experts a token goes to, the work list of the grouped products, and the
//! weighted sum of what they return. A slot is one choice of a token: `token * top_k + rank`.

pub mod few;

use crate::fixed16::{BLOCK_COLS, RowsMut, row_scales};
use crate::gpu::{self, Global, GlobalMut, MAX_WARPS, SharedArray, U32x4, WARP};
use crate::norm::Weighed;
use crate::order;

/// Experts at most.
pub const MAX_EXPERTS: u32 = 256;
/// Experts of a token at most.
pub const MAX_TOP_K: u32 = 16;
/// Slots of one launch at most: counts and groups are summed in the halves of a word.
pub const MAX_SLOTS: u32 = 32_768;

/// Threads of a block that routes tokens, a warp each.
pub const ROUTE_BLOCK: u32 = 128;
/// Tokens of a block: the grid is `n_tokens.div_ceil(ROUTE_TOKENS)`.
pub const ROUTE_TOKENS: u32 = ROUTE_BLOCK / WARP;
const PER_LANE: usize = (MAX_EXPERTS / WARP) as usize;

kernel! {
    /// The `top_k` largest logits of each token, the lower expert first where two are equal, a NaN
    /// after every number; weights are the softmax over those chosen, in order of rank.
    pub fn moe_route = moe_route_body, block ROUTE_BLOCK, shared (), registers 40,
        barriers 0, shuffles 7, matrix_ops 0;
    pub struct MoeRoute {
        /// [n_tokens, n_experts]
        logits: Global<f32>,
        /// [n_tokens, top_k]
        expert_ids: GlobalMut<u32>,
        /// [n_tokens, top_k]
        expert_weights: GlobalMut<f32>,
        n_tokens: u32,
        /// at most `MAX_EXPERTS`
        n_experts: u32,
        /// at most `MAX_TOP_K` and `n_experts`
        top_k: u32,
    }
}

#[inline(always)]
fn moe_route_body(a: MoeRoute) {
    let lane = gpu::lane();
    let token = gpu::block_x() * ROUTE_TOKENS + gpu::warp();
    if token >= a.n_tokens {
        return; // a whole warp leaves; there is no block barrier below
    }

    let logits = a.logits.from(token as usize * a.n_experts as usize);
    let chosen = choose(logits, a.n_experts, a.top_k);
    let weight = chosen.weight();
    if lane < a.top_k {
        let slot = token as usize * a.top_k as usize + lane as usize;
        a.expert_ids.set(slot, chosen.expert);
        a.expert_weights.set(slot, weight);
    }
}

/// One of a token's experts: lane j has the one of rank j.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    pub expert: u32,
    logit: f32,
    top_k: u32,
}

impl Chosen {
    /// The softmax over those chosen; 0 in lanes from `top_k` on. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(crate) fn weight(self) -> f32 {
        let largest = gpu::shuffle(self.logit, 0);
        let is_one = gpu::lane() < self.top_k;
        let share = if is_one { gpu::exp(self.logit - largest) } else { 0.0 };
        share / gpu::warp_sum(share)
    }
}

/// The experts of a token from its logits, see `moe_route`. All 32 lanes must reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(crate) fn choose(logits: Global<f32>, n_experts: u32, top_k: u32) -> Chosen {
    if n_experts <= WARP {
        choose_of_few(logits, n_experts, top_k)
    } else {
        choose_of_many(logits, n_experts, top_k)
    }
}

/// `choose`, of at most one expert a lane: it stands before the first weights of two products.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn choose_of_few(logits: Global<f32>, n_experts: u32, top_k: u32) -> Chosen {
    let lane = gpu::lane();
    let (mut logit, mut key, mut expert) = (0.0, order::NONE, 0);
    if lane < n_experts {
        logit = logits.get(lane as usize);
        key = order::key(logit);
    }
    let mut rank = 0;
    while rank < top_k {
        let winner = gpu::warp_ballot(key == gpu::warp_max_u32(key)).trailing_zeros();
        if lane == winner {
            key = order::NONE;
        }
        if lane == rank {
            expert = winner;
        }
        rank += 1;
    }
    Chosen { expert, logit: gpu::shuffle(logit, expert), top_k }
}

/// `choose`, of up to `MAX_EXPERTS`.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn choose_of_many(logits: Global<f32>, n_experts: u32, top_k: u32) -> Chosen {
    let lane = gpu::lane();
    let mut keys = load_keys::<PER_LANE>(logits, n_experts);
    let (mut logit, mut expert) = (0.0, 0);
    let mut rank = 0;
    while rank < top_k {
        let (key, first) = largest_of(keys);
        let top = gpu::warp_max_u32(key);
        let winner = gpu::warp_min_u32(if key == top { first } else { u32::MAX });
        keys = without(keys, winner);
        if rank == lane {
            logit = order::value(top);
            expert = winner;
        }
        rank += 1;
    }
    Chosen { expert, logit, top_k }
}

/// The keys of experts `lane + 32 i`.
#[inline(always)]
fn load_keys<const N: usize>(logits: Global<f32>, n_experts: u32) -> [u32; N] {
    let mut keys = [order::NONE; N];
    let mut i = 0;
    while i < N {
        let expert = gpu::lane() + i as u32 * WARP;
        if expert < n_experts {
            keys[i] = order::key(logits.get(expert as usize));
        }
        i += 1;
    }
    keys
}

/// The lane's largest key and its first expert that has it.
#[inline(always)]
fn largest_of<const N: usize>(keys: [u32; N]) -> (u32, u32) {
    let (mut key, mut expert) = (keys[0], gpu::lane());
    let mut i = 1;
    while i < N {
        if keys[i] > key {
            key = keys[i];
            expert = gpu::lane() + i as u32 * WARP;
        }
        i += 1;
    }
    (key, expert)
}

/// The keys with that of `expert`, if it is the lane's, taken away.
#[inline(always)]
fn without<const N: usize>(mut keys: [u32; N], expert: u32) -> [u32; N] {
    let mut i = 0;
    while i < N {
        if expert == gpu::lane() + i as u32 * WARP {
            keys[i] = order::NONE;
        }
        i += 1;
    }
    keys
}

/// Threads of the one block that makes the work list.
pub const GROUPS_BLOCK: u32 = 1024;
const N_SHARES: usize = MAX_WARPS;
/// An expert more than there can be, for the end of the last.
const N_STARTS: usize = MAX_EXPERTS as usize + 1;

/// Shared memory of `moe_groups`.
#[repr(C, align(16))]
pub struct GroupsShared {
    /// Of each warp's share of the slots, by expert: how many, then where among the expert's.
    counts: [u32; N_SHARES * MAX_EXPERTS as usize],
    /// Each expert's first place among the sorted slots.
    slot_starts: [u32; N_STARTS],
    /// Each expert's first group.
    group_starts: [u32; N_STARTS],
    partial: [u32; MAX_WARPS],
}

kernel! {
    /// The slots sorted by expert, in ascending order within an expert, and cut into groups of one
    /// expert and at most `group_size` slots each. One block.
    pub fn moe_groups = moe_groups_body, block GROUPS_BLOCK, shared GroupsShared, registers 32,
        barriers 3, shuffles 5, matrix_ops 0;
    pub struct MoeGroups {
        /// [n_slots], each below `n_experts`
        expert_ids: Global<u32>,
        /// [n_slots], slots sorted by expert
        slots: GlobalMut<u32>,
        /// [max_groups]: expert, first place in `slots`, number of slots, 0; number 0 where unused
        groups: GlobalMut<U32x4>,
        /// at most `MAX_SLOTS`
        n_slots: u32,
        /// at most `MAX_EXPERTS`
        n_experts: u32,
        /// at least 1
        group_size: u32,
        /// at least the sum over the experts of `ceil(slots of the expert / group_size)`
        max_groups: u32,
    }
}

/// Groups that `n_slots` slots of `n_experts` experts can need.
pub const fn max_groups(n_slots: u32, n_experts: u32, group_size: u32) -> u32 {
    let n_used = if n_slots < n_experts { n_slots } else { n_experts };
    // Every expert in use may have one group that is not full.
    let n_rest = n_slots - n_used;
    n_used + n_rest / group_size
}

#[inline(always)]
fn moe_groups_body(a: MoeGroups) {
    let thread = gpu::thread_x();
    let share_len = a.n_slots.div_ceil(GROUPS_BLOCK) * WARP;
    let counts: SharedArray<u32> = shared!(GroupsShared, counts);
    let slot_starts: SharedArray<u32> = shared!(GroupsShared, slot_starts);
    let group_starts: SharedArray<u32> = shared!(GroupsShared, group_starts);

    count_share(a, share_len, counts);
    gpu::sync_block(); // every share's counts are there

    // A thread for each expert, and one for the end: the shares' counts become places.
    let mut n_of_expert = 0;
    if thread < a.n_experts {
        let mut share = 0;
        while share * share_len < a.n_slots {
            let n = counts.get(share * MAX_EXPERTS + thread);
            counts.set(share * MAX_EXPERTS + thread, n_of_expert);
            n_of_expert += n;
            share += 1;
        }
    }
    let n_groups = gpu::div_u32(n_of_expert + a.group_size - 1, a.group_size);
    let before = sum_before(n_of_expert | n_groups << 16, shared!(GroupsShared, partial));
    if thread <= a.n_experts {
        slot_starts.set(thread, before & 0xffff);
        group_starts.set(thread, before >> 16);
    }
    gpu::sync_block(); // every expert's start is there

    place_share(a, share_len, counts, slot_starts);
    let mut group = thread;
    while group < a.max_groups {
        a.groups.set(group as usize, group_record(a, group, slot_starts, group_starts));
        group += GROUPS_BLOCK;
    }
}

/// Counts the warp's share of the slots by expert. The warp alone touches its row of `counts`.
#[inline(always)]
fn count_share(a: MoeGroups, share_len: u32, counts: SharedArray<u32>) {
    let row = counts.from(gpu::warp() * MAX_EXPERTS);
    let start = gpu::warp() * share_len;
    if start >= a.n_slots {
        return; // nobody reads this row
    }
    let mut expert = gpu::lane();
    while expert < a.n_experts {
        row.set(expert, 0);
        expert += WARP;
    }
    gpu::sync_warp(); // the zeros are there
    let mut first = start;
    while first < start + share_len {
        let slot = first + gpu::lane();
        let expert = expert_of(a, slot);
        let same = gpu::warp_match(expert);
        if slot < a.n_slots && is_first_of(same) {
            row.set(expert, row.get(expert) + same.count_ones());
        }
        gpu::sync_warp(); // another lane may count the same expert next
        first += WARP;
    }
}

/// Puts the warp's share of the slots into their places.
#[inline(always)]
fn place_share(
    a: MoeGroups,
    share_len: u32,
    counts: SharedArray<u32>,
    slot_starts: SharedArray<u32>,
) {
    let row = counts.from(gpu::warp() * MAX_EXPERTS);
    let start = gpu::warp() * share_len;
    if start >= a.n_slots {
        return;
    }
    let mut first = start;
    while first < start + share_len {
        let slot = first + gpu::lane();
        let expert = expert_of(a, slot);
        let same = gpu::warp_match(expert);
        let mut place = 0;
        if slot < a.n_slots {
            place = row.get(expert);
            let at = slot_starts.get(expert) + place + (same & lanes_before()).count_ones();
            a.slots.set(at as usize, slot);
        }
        gpu::sync_warp(); // everyone has read the expert's place
        if slot < a.n_slots && is_first_of(same) {
            row.set(expert, place + same.count_ones());
        }
        gpu::sync_warp(); // another lane may read it next
        first += WARP;
    }
}

/// The expert of a slot, or a number that no expert has where the slots have ended.
#[inline(always)]
fn expert_of(a: MoeGroups, slot: u32) -> u32 {
    if slot < a.n_slots { a.expert_ids.get(slot as usize) } else { u32::MAX }
}

#[inline(always)]
fn lanes_before() -> u32 {
    (1 << gpu::lane()) - 1
}

/// Whether the lane is the first of a set that it belongs to.
#[inline(always)]
fn is_first_of(lanes: u32) -> bool {
    lanes & lanes_before() == 0
}

/// Sum of `v` over the threads before; `partial` has a word for each warp. Every thread of the block must reach this
/// call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn sum_before(v: u32, partial: SharedArray<u32>) -> u32 {
    let lane = gpu::lane();
    let mut sum = v;
    let from = |distance: u32| lane.wrapping_sub(distance) % WARP;
    let up = gpu::shuffle_u32(sum, from(1));
    sum += if lane >= 1 { up } else { 0 };
    let up = gpu::shuffle_u32(sum, from(2));
    sum += if lane >= 2 { up } else { 0 };
    let up = gpu::shuffle_u32(sum, from(4));
    sum += if lane >= 4 { up } else { 0 };
    let up = gpu::shuffle_u32(sum, from(8));
    sum += if lane >= 8 { up } else { 0 };
    let up = gpu::shuffle_u32(sum, from(16));
    sum += if lane >= 16 { up } else { 0 };
    if lane == WARP - 1 {
        partial.set(gpu::warp(), sum);
    }
    gpu::sync_block(); // each warp's sum visible to every warp
    let before = if lane < gpu::warp() { partial.get(lane) } else { 0 };
    gpu::warp_sum_u32(before) + sum - v
}

/// The record of group `group`: the last expert that starts at it or before has it, for experts
/// without slots start where the next one does.
#[inline(always)]
fn group_record(
    a: MoeGroups,
    group: u32,
    slot_starts: SharedArray<u32>,
    group_starts: SharedArray<u32>,
) -> U32x4 {
    if group >= group_starts.get(a.n_experts) {
        return U32x4([0; 4]);
    }
    let mut expert = 0;
    let mut step = MAX_EXPERTS / 2;
    while step > 0 {
        if expert + step < a.n_experts && group_starts.get(expert + step) <= group {
            expert += step;
        }
        step /= 2;
    }
    let start = slot_starts.get(expert) + (group - group_starts.get(expert)) * a.group_size;
    let n_left = slot_starts.get(expert + 1) - start;
    let n_slots = if n_left < a.group_size { n_left } else { a.group_size };
    U32x4([expert, start, n_slots, 0])
}

/// Threads of a block that sums experts' results: a warp takes 32 columns at a time.
pub const COMBINE_BLOCK: u32 = 256;
/// Results whose loads are in flight together; gpt-oss has four.
const COMBINE_AHEAD: usize = 4;

/// Blocks along y of `moe_combine` that leave each warp one block of columns; any number from 1 on is
/// right.
pub const fn combine_splits(n_cols: u32) -> u32 {
    row_scales(n_cols).div_ceil(COMBINE_BLOCK / WARP)
}

kernel! {
    /// `out[t, c] = residual[t, c] + sum_j expert_weights[t, j] down[t * top_k + j, c]`, the sum in
    /// order of j, and the rows for the product behind the next norm; the grid is (n_tokens, splits).
    pub fn moe_combine = moe_combine_body, block COMBINE_BLOCK, shared (), registers 48,
        barriers 0, shuffles 5, matrix_ops 0, waits later;
    pub struct MoeCombine {
        /// [n_tokens, n_cols]
        residual: Global<f32>,
        /// [n_tokens * top_k, n_cols], the row of each slot
        down: Global<f32>,
        /// [n_tokens, top_k]
        expert_weights: Global<f32>,
        /// [n_tokens, n_cols]; may be `residual` itself
        out: GlobalMut<f32>,
        /// [n_cols], where `packed_squares` is given
        norm_weight: Global<f32>,
        /// `out * norm_weight`: [n_tokens, n_cols], or absent
        packed_values: GlobalMut<f32>,
        /// [n_tokens, row_code_bytes(n_cols)]
        packed_codes: GlobalMut<u8>,
        /// [n_tokens, row_scales(n_cols)]
        packed_scales: GlobalMut<U32x4>,
        /// [n_tokens, row_scales(n_cols)], or absent: nothing is packed
        packed_squares: GlobalMut<f32>,
        top_k: u32,
        n_cols: u32,
    }
}

#[inline(always)]
fn moe_combine_body(a: MoeCombine) {
    let packed = Weighed {
        rows: RowsMut {
            values: a.packed_values,
            codes: a.packed_codes,
            scales: a.packed_scales,
            n_cols: a.n_cols,
        },
        squares: a.packed_squares,
        weight: a.norm_weight,
    };
    let (token, packs) = (gpu::block_x(), !a.packed_squares.is_absent());
    let mut block = gpu::block_y() * (COMBINE_BLOCK / WARP) + gpu::warp();
    let weight_of = |block: u32| {
        if packs && block < packed.rows.n_blocks() { packed.weight_of_lane(block) } else { 0.0 }
    };
    let mut weight = weight_of(block);
    gpu::wait_for_previous();
    // Whole warps leave the loop; there is no block barrier below.
    while block < packed.rows.n_blocks() {
        let col = block * BLOCK_COLS + gpu::lane();
        let at = token as usize * a.n_cols as usize + col as usize;
        let mut value = 0.0;
        if col < a.n_cols {
            // Held before the sum by `anew`: the compiler asks for it behind that else.
            let residual = gpu::anew(a.residual.get(at).to_bits());
            value = f32::from_bits(residual) + experts_sum(a, token, col);
            a.out.set(at, value);
        }
        if packs {
            packed.store_block(token, block, value, weight);
        }
        block += gpu::grid_y() * (COMBINE_BLOCK / WARP);
        weight = weight_of(block);
    }
}

/// The weighted sum of a column.
#[inline(always)]
fn experts_sum(a: MoeCombine, token: u32, col: u32) -> f32 {
    let (token, n_cols) = (token as usize, a.n_cols as usize);
    let weights = a.expert_weights.from(token * a.top_k as usize);
    let down = a.down.from(token * a.top_k as usize * n_cols);
    let mut sum = 0.0;
    let mut rank = 0;
    while rank < a.top_k {
        let (mut weight, mut value) = ([0.0; COMBINE_AHEAD], [0.0; COMBINE_AHEAD]);
        unroll!(i < 4, {
            if rank + (i as u32) < a.top_k {
                weight[i] = weights.get(rank as usize + i);
                value[i] = down.get((rank as usize + i) * n_cols + col as usize);
            }
        });
        unroll!(i < 4, {
            sum = gpu::fma(weight[i], value[i], sum);
        });
        rank += COMBINE_AHEAD as u32;
    }
    sum
}
