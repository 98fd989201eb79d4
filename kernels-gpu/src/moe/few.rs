//! The same routing and work list as `moe_route` and `moe_groups` make, in one launch for a step's tokens: a token is a
//! bit of a word, and a bit's place among those of an expert is its slot's.

use super::{MAX_EXPERTS, choose, sum_before};
use crate::gpu::{self, Global, GlobalMut, MAX_WARPS, SharedArray, U32x4, WARP};

/// Tokens at most, a warp and a bit each.
pub const FEW_TOKENS: u32 = WARP;
const BLOCK: u32 = FEW_TOKENS * WARP;

/// Shared memory of `moe_route_few`.
#[repr(C, align(16))]
pub struct Shared {
    /// Each expert's tokens, bit t for token t.
    tokens: [u32; MAX_EXPERTS as usize],
    /// Each expert's first place among the sorted slots.
    starts: [u32; MAX_EXPERTS as usize],
    n_groups: [u32; 1],
    partial: [u32; MAX_WARPS],
}

kernel! {
    /// Experts and weights of up to `FEW_TOKENS` tokens as `moe_route` chooses them, and the slots and groups that
    /// `moe_groups` makes of them. One block.
    pub fn moe_route_few = moe_route_few_body, block BLOCK, shared Shared, registers 64,
        barriers 4, shuffles 12, matrix_ops 0, waits later;
    pub struct MoeRouteFew {
        /// [n_tokens, n_experts]
        logits: Global<f32>,
        /// [n_tokens, top_k]
        expert_ids: GlobalMut<u32>,
        /// [n_tokens, top_k]
        expert_weights: GlobalMut<f32>,
        /// [n_tokens * top_k], slots sorted by expert
        slots: GlobalMut<u32>,
        /// [max_groups]: expert, first place in `slots`, number of slots, 0; number 0 where unused
        groups: GlobalMut<U32x4>,
        n_tokens: u32,
        /// at most `MAX_EXPERTS`
        n_experts: u32,
        /// at most `MAX_TOP_K` and `n_experts`
        top_k: u32,
        /// at least 1
        group_size: u32,
        /// at least the sum over the experts of `ceil(slots of the expert / group_size)`
        max_groups: u32,
    }
}

#[inline(always)]
fn moe_route_few_body(a: MoeRouteFew) {
    let tokens: SharedArray<u32> = shared!(Shared, tokens);
    let starts: SharedArray<u32> = shared!(Shared, starts);
    let n_groups: SharedArray<u32> = shared!(Shared, n_groups);
    let (thread, lane, token) = (gpu::thread_x(), gpu::lane(), gpu::warp());
    if thread < MAX_EXPERTS {
        tokens.set(thread, 0);
    }
    gpu::sync_block(); // no expert has a token yet
    gpu::wait_for_previous();

    let has_slot = token < a.n_tokens && lane < a.top_k;
    let slot = token * a.top_k + lane;
    let mut expert = 0;
    if token < a.n_tokens {
        let logits = a.logits.from((token * a.n_experts) as usize);
        let chosen = choose(logits, a.n_experts, a.top_k);
        expert = chosen.expert;
        let weight = chosen.weight();
        if has_slot {
            gpu::shared_add(tokens, expert, 1 << token);
            a.expert_ids.set(slot as usize, expert);
            a.expert_weights.set(slot as usize, weight);
        }
    }
    gpu::sync_block(); // every expert's tokens are there

    // A thread for each expert, and one for the end.
    let n = if thread < a.n_experts { tokens.get(thread).count_ones() } else { 0 };
    let n_own = gpu::div_u32(n + a.group_size - 1, a.group_size);
    let before = sum_before(n | n_own << 16, shared!(Shared, partial));
    let (start, first) = (before & 0xffff, before >> 16);
    if thread < a.n_experts {
        starts.set(thread, start);
        store_groups(a, thread, (start, n), first);
    }
    if thread == a.n_experts {
        n_groups.set(0, first);
    }
    gpu::sync_block(); // every expert's start is there, and how many groups there are

    if has_slot {
        let earlier = tokens.get(expert) & ((1 << token) - 1);
        a.slots.set((starts.get(expert) + earlier.count_ones()) as usize, slot);
    }
    let mut group = n_groups.get(0) + thread;
    while group < a.max_groups {
        a.groups.set(group as usize, U32x4([0; 4]));
        group += BLOCK;
    }
}

/// Stores the groups of an expert whose `n` slots begin at `start`.
#[inline(always)]
fn store_groups(a: MoeRouteFew, expert: u32, (start, n): (u32, u32), first: u32) {
    let (mut done, mut group) = (0, first);
    while done < n {
        let left = n - done;
        let size = if left < a.group_size { left } else { a.group_size };
        a.groups.set(group as usize, U32x4([expert, start + done, size, 0]));
        done += size;
        group += 1;
    }
}
