//! The warps that multiply: a launch's stages one after another.

use super::super::full;
use super::super::gated;
use super::super::plain::{self, ALONE, Around, NO_PACKING, PACK_FOR_NORM};
use super::super::{Group, Grouping, Input, N_SHARES, PARTIAL_STRIDE, Partial, optional, out_col};
use super::ring::{READERS, Ring};
use super::run::run;
use super::{
    Formats, Layer, MAX_RANKS, N_COUNTERS, SETS, TEAM, TEAMS, WORKERS, counter, n_units, of_block,
    of_team, team,
};
use crate::fixed16::RowsMut;
use crate::gpu::{self, Global, GlobalMut, SharedArray};
use crate::moe::{Chosen, choose};
use crate::norm::Weighed;
use crate::tile::TileFormat;

/// Sums of one job.
const JOB_SUMS: u32 = N_SHARES * SETS as u32 * PARTIAL_STRIDE as u32;
/// Barriers of the teams, by their numbers, and the one of all that multiply.
const TEAM_BARRIER: u32 = 1;
const WORKERS_BARRIER: u32 = TEAM_BARRIER + TEAMS;

/// The only token.
const LONE: Group = Group { expert: 0, start: 0, count: 1 };

impl Layer {
    /// The rows of a product whose input is complete.
    #[inline(always)]
    fn attended(&self) -> Input {
        Input {
            codes: self.attended_codes,
            scales: self.attended_scales,
            squares: Global::absent(),
            n_cols: self.n_attended,
            eps: 0.0,
        }
    }

    /// The stream behind a norm, whose scale is still to come.
    #[inline(always)]
    fn normed(&self) -> Input {
        Input {
            codes: self.normed_codes.view().cast(),
            scales: self.normed_scales.view(),
            squares: self.normed_squares.view(),
            n_cols: self.n_embd,
            eps: self.eps,
        }
    }

    /// What the activation gave, a row for each expert.
    #[inline(always)]
    fn hidden(&self) -> Input {
        Input {
            codes: self.hidden_codes.view().cast(),
            scales: self.hidden_scales.view(),
            squares: Global::absent(),
            n_cols: self.n_ff,
            eps: 0.0,
        }
    }

    /// Where what is added to the stream goes on to: the norm with these weights.
    #[inline(always)]
    fn weighed(&self, weight: Global<f32>) -> Weighed {
        Weighed {
            rows: RowsMut {
                values: self.normed_values,
                codes: self.normed_codes,
                scales: self.normed_scales,
                n_cols: self.n_embd,
            },
            squares: self.normed_squares,
            weight,
        }
    }

    /// A product that is added to the stream.
    #[inline(always)]
    fn to_stream(&self, x: Input, bias: Global<f32>, norm: Global<f32>) -> plain::Arguments {
        plain::Arguments {
            x,
            grouping: Grouping::lone(1),
            bias,
            residual: self.stream.view(),
            out: self.stream,
            n_rows: self.n_embd,
            out_stride: self.n_embd,
            packing: PACK_FOR_NORM,
            packed: self.weighed(norm),
            overlap: ALONE,
        }
    }

    /// A product that gives columns of q, k and v, from the first on of `qkv`.
    #[inline(always)]
    fn to_qkv(&self, qkv: GlobalMut<f32>, n_rows: u32, bias: Global<f32>) -> plain::Arguments {
        plain::Arguments {
            x: self.normed(),
            bias,
            residual: Global::absent(),
            out: qkv,
            n_rows,
            out_stride: n_rows,
            packing: NO_PACKING,
            ..self.to_stream(self.normed(), bias, Global::absent())
        }
    }

    #[inline(always)]
    fn to_hidden(&self) -> gated::Arguments {
        gated::Arguments {
            x: self.normed(),
            grouping: Grouping::lone(self.top_k),
            router: Global::absent(),
            n_experts: self.n_experts,
            gate_bias: self.gate_bias,
            up_bias: self.up_bias,
            n_rows: self.n_ff,
            activation: self.activation,
            alpha: self.alpha,
            limit: self.limit,
            packed: RowsMut {
                values: GlobalMut::absent(),
                codes: self.hidden_codes,
                scales: self.hidden_scales,
                n_cols: self.n_ff,
            },
        }
    }
}

/// A warp of a team, and where it is.
struct Worker<const HALF: usize, const SLOTS: usize> {
    ring: Ring<HALF, SLOTS>,
    sums: SharedArray<f32>,
    counters: GlobalMut<u32>,
    /// Whether the job is an odd one: it has the other half of `sums`.
    odd: u32,
}

impl<const HALF: usize, const SLOTS: usize> Worker<HALF, SLOTS> {
    #[inline(always)]
    fn partial(&self) -> Partial {
        Partial { sums: self.sums.from(self.odd * JOB_SUMS), n_sets: SETS as u32, n_tokens: 1 }
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn sync_team(&self) {
        gpu::sync_threads(TEAM_BARRIER + team(), TEAM);
    }

    /// Waits for the `n` units of a stage. Then nobody adds up sums any more, and both teams count from an even
    /// job on.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn wait(&mut self, stage: usize, n: u32) {
        if gpu::thread_x().is_multiple_of(TEAM) {
            gpu::wait_for_signals(self.counters, stage, n);
        }
        self.sync_team(); // what the stage made is there for every warp
        self.odd = 0;
    }

    /// Tells that the warp has stored a unit of a stage. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn signal(&self, stage: usize) {
        gpu::sync_warp(); // every lane has stored
        if gpu::lane() == 0 {
            gpu::signal(self.counters, stage);
        }
    }

    /// The team's units of a product, of which the first is number `first`, as a stage that is signalled, or
    /// the last; the number of the next one, counted from the matrix's end.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn units<T: TileFormat>(
        &mut self,
        a: plain::Arguments,
        (first, stride): (u32, u32),
        stage: Option<usize>,
    ) -> u32 {
        let finishes = gpu::warp().is_multiple_of(READERS);
        let set = team();
        let mut unit = first;
        while unit < n_units(a.n_rows) {
            // What the result is put together with comes while the sums are made.
            let around = if finishes { a.around(unit, LONE, 0) } else { Around::NOTHING };
            let partial = self.partial();
            run::<T, HALF, SLOTS>(&mut self.ring, a.x, 0, partial, set);
            self.sync_team(); // the team's sums are in `partial`
            if finishes {
                a.store(unit, around, partial.sum(set, 0));
                if let Some(stage) = stage {
                    self.signal(stage);
                }
            }
            self.odd ^= 1;
            unit += stride;
        }
        unit - n_units(a.n_rows)
    }

    /// The block's rows of the router.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn route(&mut self, a: &Layer, scratch: SharedArray<f32>) {
        let (mut row, stride) = of_block();
        if row >= a.n_experts {
            return; // the whole block
        }
        let weights = |row: u32| a.router.from(row as usize * a.n_embd as usize);
        let mut first_weights = full::load_chunk(weights(row), a.n_embd, 0);
        self.wait(counter::OUTPUT, n_units(a.n_embd));
        let x = a.normed_values.view();
        let is_first = gpu::warp() == 0;
        let squares = if is_first { a.normed().squares_of_lane(0) } else { 0.0 };
        while row < a.n_experts {
            let sum = full::dot(weights(row), first_weights, x, a.n_embd);
            if gpu::lane() == 0 {
                scratch.set(gpu::warp(), sum);
            }
            gpu::sync_threads(WORKERS_BARRIER, WORKERS); // every warp's sum is in `scratch`
            if is_first {
                let factor = a.normed().factor(squares);
                if gpu::lane() == 0 {
                    let bias = optional(a.router_bias, true, row as usize);
                    a.logits.set(row as usize, gpu::fma(full::total(scratch), factor, bias));
                }
                self.signal(counter::ROUTER);
            }
            row += stride;
            if row < a.n_experts {
                first_weights = full::load_chunk(weights(row), a.n_embd, 0);
                gpu::sync_threads(WORKERS_BARRIER, WORKERS); // `scratch` has been read
            }
        }
    }

    /// Gate, up and the activation: the block's units of all experts.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn gate<T: TileFormat>(&mut self, a: &Layer, experts: u32) {
        let gated = a.to_hidden();
        let (mut job, stride) = of_block();
        let units = n_units(a.n_ff);
        while job < a.n_gated() {
            let rank = gpu::quotient(job, units);
            let unit = job - rank * units;
            let expert = gpu::shuffle_u32(experts, rank);
            let finishes = self.finishes();
            let around = if finishes {
                gated.around(unit, Group { expert, start: rank, count: 1 }, 0)
            } else {
                gated::Around::NOTHING
            };
            let partial = self.partial();
            run::<T, HALF, SLOTS>(&mut self.ring, gated.x, 0, partial, team());
            gpu::sync_threads(WORKERS_BARRIER, WORKERS); // both teams' sums are in `partial`
            if finishes {
                gated.store(unit, around, partial.sum(0, 0), partial.sum(1, 0));
                self.signal(counter::GATED);
            }
            self.odd ^= 1;
            job += stride;
        }
    }

    /// The experts' last product and their sum: the block's units.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn sum_experts<T: TileFormat>(&mut self, a: &Layer, chosen: Chosen) {
        let weights = chosen.weight();
        let to = a.weighed(a.next_norm);
        let (mut unit, stride) = of_block();
        while unit < n_units(a.n_embd) {
            let (col, inside) = (out_col(unit), out_col(unit) < a.n_embd);
            let finishes = self.finishes();
            let (mut residual, mut norm_weight) = (0.0, 0.0);
            let mut biases = [0.0; MAX_RANKS as usize];
            unroll!(rank < 4, {
                let expert = gpu::shuffle_u32(chosen.expert, rank as u32);
                if finishes && (rank as u32) < a.top_k {
                    let at = expert as usize * a.n_embd as usize + col as usize;
                    biases[rank] = optional(a.down_bias, inside, at);
                }
            });
            if finishes {
                residual = optional(a.stream.view(), inside, col as usize);
                norm_weight = to.weight_of_lane(unit);
            }
            let partial = self.partial();
            let mut rank = team();
            while rank < a.top_k {
                run::<T, HALF, SLOTS>(&mut self.ring, a.hidden(), rank, partial, rank);
                rank += TEAMS;
            }
            gpu::sync_threads(WORKERS_BARRIER, WORKERS); // both teams' sums are in `partial`
            if finishes {
                let mut sum = 0.0;
                unroll!(rank < 4, {
                    let weight = gpu::shuffle(weights, rank as u32);
                    if (rank as u32) < a.top_k {
                        let down = partial.sum(rank as u32, 0) + biases[rank];
                        sum = gpu::fma(weight, down, sum);
                    }
                });
                let value = residual + sum;
                if inside {
                    a.stream.set(col as usize, value);
                }
                to.store_block(0, unit, value, norm_weight);
                self.signal(counter::DOWN);
            }
            self.odd ^= 1;
            unit += stride;
        }
    }

    /// Whether the warp puts the results of the block's job together: the first of either team by turns.
    #[inline(always)]
    fn finishes(&self) -> bool {
        gpu::warp() == self.odd * READERS
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub(super) fn consume<F: Formats, const HALF: usize, const SLOTS: usize>(
    a: &Layer,
    ring: Ring<HALF, SLOTS>,
    sums: SharedArray<f32>,
    scratch: SharedArray<f32>,
) {
    let mut worker = Worker { ring, sums, counters: a.counters, odd: 0 };
    gpu::wait_for_previous();
    let output = a.to_stream(a.attended(), a.output_bias, a.ffn_norm);
    worker.units::<F::Output>(output, of_team(), Some(counter::OUTPUT));
    if a.n_experts > 0 {
        worker.route(a, scratch);
        worker.wait(counter::ROUTER, a.n_experts);
        let chosen = choose(a.logits.view(), a.n_experts, a.top_k);
        worker.gate::<F::Gated>(a, chosen.expert);
        worker.wait(counter::GATED, a.n_gated());
        worker.sum_experts::<F::Down>(a, chosen);
    } else {
        worker.wait(counter::OUTPUT, n_units(a.n_embd));
        worker.gate::<F::Gated>(a, 0);
        worker.wait(counter::GATED, a.n_gated());
        let down = a.to_stream(a.hidden(), a.down_bias, a.next_norm);
        worker.units::<F::Down>(down, of_team(), Some(counter::DOWN));
    }
    if a.n_first > 0 {
        worker.wait(counter::DOWN, n_units(a.n_embd));
        let (first, stride) = of_team();
        let product = a.to_qkv(a.qkv, a.n_first, a.first_bias);
        let behind = worker.units::<F::First>(product, (first, stride), None);
        if a.n_second > 0 {
            let product = a.to_qkv(a.qkv.from(a.n_first as usize), a.n_second, a.second_bias);
            worker.units::<F::Second>(product, (behind, stride), None);
        }
    }
    gpu::sync_threads(WORKERS_BARRIER, WORKERS); // the block has signalled all, and waits for nothing more
    if gpu::thread_x() == 0 {
        let before = gpu::arrive(a.counters, counter::DONE, gpu::grid_x());
        if before + 1 == gpu::grid_x() {
            // The last block leaves the counters as it found them.
            unroll!(stage < 4, {
                a.counters.set(stage, 0);
            });
            const { assert!(counter::N_SIGNALLED == 4 && N_COUNTERS == 5) };
        }
    }
}
