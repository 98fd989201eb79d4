//! The warp that brings a team's weights: all jobs in the order in which `consume` takes them.

use super::super::walk::tile_of_unit;
use super::ring::Ring;
use super::{Formats, Layer, TEAMS, counter, n_units, of_block, of_team, team};
use crate::gpu::{self, Global, U32x4};
use crate::moe::choose;
use crate::tile::{PART_COLS, TileFormat};

/// A matrix, or the matrices of experts.
#[derive(Clone, Copy)]
struct Matrix {
    words: Global<U32x4>,
    n_rows: u32,
    n_cols: u32,
}

impl Matrix {
    /// Brings unit `unit` of expert `expert`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn bring<F: TileFormat, const HALF: usize, const SLOTS: usize>(
        self,
        ring: &mut Ring<HALF, SLOTS>,
        expert: u32,
        unit: u32,
    ) {
        let shape = (self.n_rows, self.n_cols);
        let tiles = [0, 1].map(|tile| tile_of_unit::<F>(self.words, shape, expert, unit, tile));
        ring.fill::<F>(tiles, self.n_cols.div_ceil(PART_COLS));
    }

    /// Brings the team's units, of which the first is number `first`; the number of the next, counted from
    /// the matrix's end.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn bring_units<F: TileFormat, const HALF: usize, const SLOTS: usize>(
        self,
        ring: &mut Ring<HALF, SLOTS>,
        (first, stride): (u32, u32),
    ) -> u32 {
        let mut unit = first;
        while unit < n_units(self.n_rows) {
            self.bring::<F, HALF, SLOTS>(ring, 0, unit);
            unit += stride;
        }
        unit - n_units(self.n_rows)
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn produce<F: Formats, const HALF: usize, const SLOTS: usize>(
    a: &Layer,
    mut ring: Ring<HALF, SLOTS>,
) {
    let ring = &mut ring;
    let output = Matrix { words: a.output, n_rows: a.n_embd, n_cols: a.n_attended };
    output.bring_units::<F::Output, HALF, SLOTS>(ring, of_team());

    let gate_or_up = if team() == 0 { a.gate } else { a.up };
    let gated = Matrix { words: gate_or_up, n_rows: a.n_ff, n_cols: a.n_embd };
    let down = Matrix { words: a.down, n_rows: a.n_embd, n_cols: a.n_ff };
    // What launches before this one signalled is not this one's.
    gpu::wait_for_previous();
    let (mut job, stride) = of_block();
    if a.n_experts > 0 {
        if gpu::lane() == 0 {
            gpu::wait_for_signals(a.counters, counter::ROUTER, a.n_experts);
        }
        gpu::sync_warp(); // the logits are there for every lane
        let chosen = choose(a.logits.view(), a.n_experts, a.top_k);
        let units = n_units(a.n_ff);
        while job < a.n_gated() {
            let rank = gpu::quotient(job, units);
            let expert = gpu::shuffle_u32(chosen.expert, rank);
            gated.bring::<F::Gated, HALF, SLOTS>(ring, expert, job - rank * units);
            job += stride;
        }
        let mut unit = gpu::block_x();
        while unit < n_units(a.n_embd) {
            let mut rank = team();
            while rank < a.top_k {
                let expert = gpu::shuffle_u32(chosen.expert, rank);
                down.bring::<F::Down, HALF, SLOTS>(ring, expert, unit);
                rank += TEAMS;
            }
            unit += stride;
        }
    } else {
        gated.bring_units::<F::Gated, HALF, SLOTS>(ring, of_block());
        down.bring_units::<F::Down, HALF, SLOTS>(ring, of_team());
    }

    let (first, stride) = of_team();
    if a.n_first > 0 {
        let matrix = Matrix { words: a.first, n_rows: a.n_first, n_cols: a.n_embd };
        let behind = matrix.bring_units::<F::First, HALF, SLOTS>(ring, (first, stride));
        if a.n_second > 0 {
            let matrix = Matrix { words: a.second, n_rows: a.n_second, n_cols: a.n_embd };
            matrix.bring_units::<F::Second, HALF, SLOTS>(ring, (behind, stride));
        }
    }
}
