//! A team's way through the columns of a unit: 32 rows times one row of activations, weights out of the ring.
//! To the bit what `lone` does.

use super::super::lone::{Chain, LoneRow, chain_parts, lane_group, over_groups};
use super::super::walk::{Store, within};
use super::super::{BLOCK_TILES, Input, N_SHARES, Partial};
use super::ring::{READERS, ROUND, Ring, slot_rounds};
use crate::gpu;
use crate::tile::{LoneGroup, PART_COLS, TileFormat};

/// Warps that share a tile.
const WARPS_OF_TILE: u32 = READERS / BLOCK_TILES;
/// Chains of a slot that a warp multiplies at most: two rounds of two.
const MAX_CHAINS: usize = 4;

/// Chains of a round that a warp has: of its two parts there, one or two.
const fn round_chains<F: TileFormat>() -> usize {
    2 / chain_parts::<F>()
}

/// Matrix instructions of a run with slots of twice `half` 16-byte units.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn matrix_ops<F: TileFormat>(half: usize) -> u32 {
    slot_rounds::<F>(half as u32) * round_chains::<F>() as u32 * 4 * F::LONE_PRODUCTS
}

/// Shuffles of a run.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn shuffles<F: TileFormat>() -> u32 {
    (2 * round_chains::<F>() * F::GROUPS / 2) as u32
}

/// Leaves the sums of a unit's rows in set `set` of `partial`. The unit's weights are the next in the ring,
/// row `row` of `x` is there.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn run<F: TileFormat, const HALF: usize, const SLOTS: usize>(
    ring: &mut Ring<HALF, SLOTS>,
    x: Input,
    row: u32,
    partial: Partial,
    set: u32,
) {
    const { assert!(WARPS_OF_TILE * 2 == N_SHARES && ROUND == N_SHARES) };
    let warp = gpu::warp() % READERS;
    let (tile, first) = (warp / WARPS_OF_TILE, warp % WARPS_OF_TILE);
    let n_parts = x.n_cols.div_ceil(PART_COLS);
    let (own_part, own_group) = lane_group::<F>();
    let row = LoneRow::new::<F>(x, row);
    // The first part of a slot's chain `i`, counted from the slot's first part.
    let chain_at = |i: usize| {
        let (round, chain) = (i / round_chains::<F>(), i % round_chains::<F>());
        round as u32 * ROUND + first + (chain * chain_parts::<F>()) as u32 * WARPS_OF_TILE
    };
    let x_chain = |slot_part: u32, i: usize| {
        let at = slot_part + chain_at(i);
        let groups = row.groups::<F>(|part| within(at + part * WARPS_OF_TILE, n_parts));
        // What stands in for a part that is lacking counts nothing.
        if at + own_part * WARPS_OF_TILE < n_parts {
            groups
        } else {
            LoneGroup { scale: 0.0, sum: 0, ..groups }
        }
    };
    let n_chains = slot_rounds::<F>(HALF as u32) as usize * round_chains::<F>();
    let slot_parts = slot_rounds::<F>(HALF as u32) * ROUND;

    let mut x_chains = [x_chain(0, 0); MAX_CHAINS];
    unroll!(i < 4, {
        if i > 0 && i < n_chains {
            x_chains[i] = x_chain(0, i);
        }
    });
    let mut sums = [[0.0; 2]; 2];
    let mut slot_part = 0;
    while slot_part < n_parts {
        let weights = ring.take(tile);
        let chain = |i: usize| {
            let at = slot_part + chain_at(i);
            let in_slot = |part| within(at + part * WARPS_OF_TILE, n_parts) - slot_part;
            Chain::<F>::load(weights, in_slot)
        };
        let mut chains = [chain(0); MAX_CHAINS];
        unroll!(i < 4, {
            if i > 0 && i < n_chains {
                chains[i] = chain(i);
            }
        });
        ring.give_back();
        slot_part += slot_parts;
        unroll!(i < 4, {
            if i < n_chains {
                let Chain { codes, scales } = &chains[i];
                let sums = &mut sums[i % round_chains::<F>()];
                let x = x_chains[i];
                // Asked for before these are multiplied. Past the last they are of parts that exist, and are
                // not used.
                x_chains[i] = x_chain(slot_part, i);
                F::accumulate_lone(codes, scales, own_group as usize, x, sums);
            }
        });
    }
    unroll!(i < 2, {
        if i < round_chains::<F>() {
            let sums = over_groups::<F>(sums[i]);
            if own_group == 0 {
                let part = (i * chain_parts::<F>()) as u32 + own_part;
                let store = Store { partial, set, tile };
                store.rows::<F>(first + part * WARPS_OF_TILE, 0, sums);
            }
        }
    });
}
