//! What stands between two attentions of one token, in one launch: attention's output product, the
//! feed-forward part, dense or with experts, and the next layer's q, k and v.
//!
//! The launch has a block for each multiprocessor. Its stages follow each other by signals between the
//! blocks, and what a stage gives is read by all of them behind it. Weights do not wait for that: they stream
//! through shared memory (`ring`) from the launch's beginning on, also while a stage waits for the one
//! before. Only experts have to wait, for the router.
//!
//! A block is two teams of eight warps that multiply and one that brings their weights. A unit of 32 rows is a
//! team's; gate and up of a unit are the two teams', and so are the experts of a unit of the last product.

mod consume;
mod produce;
mod ring;
mod run;

use super::{BLOCK_TILES, N_SHARES, PARTIAL_STRIDE};
use crate::fixed16::row_scales;
use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4, WARP};
use crate::tile::TileFormat;
use ring::{READERS, Ring};

/// Teams of a block.
const TEAMS: u32 = 2;
/// Threads of a team that multiply.
const TEAM: u32 = READERS * WARP;
/// Threads of a block that multiply.
const WORKERS: u32 = TEAMS * TEAM;
/// Threads of a block: a warp of each team brings its weights.
pub const BLOCK: u32 = WORKERS + TEAMS * WARP;
/// Experts of a token at most.
pub const MAX_RANKS: u32 = 4;
/// Sets of sums of a unit: gate and up, or experts.
const SETS: usize = MAX_RANKS as usize;

/// What a launch's blocks signal and count: the units that each stage has made, and at last the teams that
/// wait for nothing more.
mod counter {
    pub const OUTPUT: usize = 0;
    pub const ROUTER: usize = 1;
    pub const GATED: usize = 2;
    pub const DOWN: usize = 3;
    /// Those before this one.
    pub const N_SIGNALLED: usize = 4;
    pub const DONE: usize = 4;
}
/// Counters of a launch.
pub const N_COUNTERS: usize = 5;

/// Bytes that the two rings of a block have.
const RING_BYTES: usize = 212 * 1024;

/// Slots of a ring whose slots have two halves of `half` 16-byte units: as many as there is room for.
const fn slots(half: usize) -> usize {
    RING_BYTES / TEAMS as usize / (BLOCK_TILES as usize * half * 16)
}

/// The formats of a layer's matrices.
trait Formats {
    /// Of attention's output.
    type Output: TileFormat;
    /// Of gate and up.
    type Gated: TileFormat;
    /// Of the last product of the feed-forward part.
    type Down: TileFormat;
    /// Of the first matrix of q, k and v.
    type First: TileFormat;
    /// Of the one beside it.
    type Second: TileFormat;
}

/// Shared memory of a block.
#[repr(C, align(128))]
pub struct Shared<const HALF: usize, const SLOTS: usize> {
    /// [team][slot][tile]: records.
    slots: [[[[U32x4; HALF]; BLOCK_TILES as usize]; SLOTS]; TEAMS as usize],
    /// [team][slot]
    full: [[u64; SLOTS]; TEAMS as usize],
    /// [team][slot]
    empty: [[u64; SLOTS]; TEAMS as usize],
    /// [job, even or odd][share of the columns][set][row]: one job's sums are added up while the next is at work.
    partial: [[[[f32; PARTIAL_STRIDE]; SETS]; N_SHARES as usize]; 2],
    /// What the router's rows are summed in: [warp]
    router: [f32; (WORKERS / WARP) as usize],
}

/// The team of the calling thread. Found anew each time: no register is kept for it.
#[inline(always)]
fn team() -> u32 {
    let thread = gpu::anew(gpu::thread_x());
    if thread < WORKERS { thread / TEAM } else { thread / WARP % TEAMS }
}

/// The units of a product that are the team's: the first, and how far apart they are.
#[inline(always)]
fn of_team() -> (u32, u32) {
    (team() * gpu::grid_x() + gpu::block_x(), TEAMS * gpu::grid_x())
}

/// The same of jobs that are the whole block's.
#[inline(always)]
fn of_block() -> (u32, u32) {
    (gpu::block_x(), gpu::grid_x())
}

/// Units of a product with `n_rows` rows, padding included.
#[inline(always)]
const fn n_units(n_rows: u32) -> u32 {
    row_scales(n_rows)
}

/// Arguments of every format's kernel.
#[derive(Clone, Copy)]
struct Layer {
    output: Global<U32x4>,
    output_bias: Global<f32>,
    attended_codes: Global<U32x4>,
    attended_scales: Global<U32x4>,
    stream: GlobalMut<f32>,
    ffn_norm: Global<f32>,
    normed_values: GlobalMut<f32>,
    normed_codes: GlobalMut<u8>,
    normed_scales: GlobalMut<U32x4>,
    normed_squares: GlobalMut<f32>,
    router: Global<f32>,
    router_bias: Global<f32>,
    logits: GlobalMut<f32>,
    gate: Global<U32x4>,
    gate_bias: Global<f32>,
    up: Global<U32x4>,
    up_bias: Global<f32>,
    hidden_codes: GlobalMut<u8>,
    hidden_scales: GlobalMut<U32x4>,
    down: Global<U32x4>,
    down_bias: Global<f32>,
    next_norm: Global<f32>,
    first: Global<U32x4>,
    first_bias: Global<f32>,
    second: Global<U32x4>,
    second_bias: Global<f32>,
    qkv: GlobalMut<f32>,
    counters: GlobalMut<u32>,
    n_embd: u32,
    n_attended: u32,
    n_ff: u32,
    n_experts: u32,
    top_k: u32,
    n_first: u32,
    n_second: u32,
    activation: u32,
    alpha: f32,
    limit: f32,
    eps: f32,
}

impl Layer {
    /// Jobs of gate and up: units of each of the token's experts.
    #[inline(always)]
    fn n_gated(&self) -> u32 {
        let slots = if self.n_experts > 0 { self.top_k } else { 1 };
        slots * n_units(self.n_ff)
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn layer<F: Formats, const HALF: usize, const SLOTS: usize>(
    a: Layer,
    partial: SharedArray<f32>,
    router: SharedArray<f32>,
) {
    let slots: SharedArray<U32x4> = shared!(Shared<HALF, SLOTS>, slots).cast();
    let full: SharedArray<u64> = shared!(Shared<HALF, SLOTS>, full).cast();
    let empty: SharedArray<u64> = shared!(Shared<HALF, SLOTS>, empty).cast();
    let ring_of = |team: u32| {
        let first = team * SLOTS as u32;
        Ring::<HALF, SLOTS>::new(
            slots.from(first * BLOCK_TILES * HALF as u32),
            full.from(first),
            empty.from(first),
        )
    };
    gpu::let_next_start();
    if gpu::thread_x() == 0 {
        ring_of(0).make();
        ring_of(1).make();
        gpu::phases_are_made();
    }
    gpu::sync_block(); // the rings are made

    if gpu::thread_x() < WORKERS {
        consume::consume::<F, HALF, SLOTS>(&a, ring_of(team()), partial, router);
    } else {
        produce::produce::<F, HALF, SLOTS>(&a, ring_of(team()));
    }
}

macro_rules! entries {
    ($($(#[$doc:meta])* $name:ident, half $half:expr, output $output:ty, gated $gated:ty, down $down:ty,
       first $first:ty, second $second:ty;)*) => {$(
        $(#[$doc])*
        pub mod $name {
            use super::*;

            /// 16-byte units of half a slot.
            const HALF: usize = $half;
            const SLOTS: usize = slots(HALF);
            type OfBlock = Shared<HALF, SLOTS>;

            struct Plan;

            impl Formats for Plan {
                type Output = $output;
                type Gated = $gated;
                type Down = $down;
                type First = $first;
                type Second = $second;
            }

            /// Shuffles and matrix instructions of the runs, in their order.
            #[cfg(not(target_arch = "nvptx64"))]
            const fn of_runs(counts: [u32; 6]) -> u32 {
                let mut sum = 0;
                let mut i = 0;
                while i < counts.len() {
                    sum += counts[i];
                    i += 1;
                }
                sum
            }

            kernel! {
                /// From what attention gave to the next layer's q, k and v, for one token. A block for each
                /// multiprocessor, of which none may have another while they run.
                pub fn $name = run, block BLOCK, shared OfBlock, registers 96, barriers 17,
                    shuffles 64 + of_runs([
                        run::shuffles::<$output>(), run::shuffles::<$gated>(), run::shuffles::<$down>(),
                        run::shuffles::<$down>(), run::shuffles::<$first>(), run::shuffles::<$second>(),
                    ]),
                    matrix_ops of_runs([
                        run::matrix_ops::<$output>(HALF), 2 * run::matrix_ops::<$gated>(HALF),
                        run::matrix_ops::<$down>(HALF), run::matrix_ops::<$down>(HALF),
                        run::matrix_ops::<$first>(HALF), run::matrix_ops::<$second>(HALF),
                    ]),
                    min_blocks 1, waits and_lets, together on sm_90a;
                pub struct LayerOf {
                    /// Attention's output product, records: [row tiles, records of a row]
                    output: Global<U32x4>,
                    /// [n_embd], or absent
                    output_bias: Global<f32>,
                    /// What attention gave: [row_code_bytes(n_attended) / 16]
                    attended_codes: Global<U32x4>,
                    /// [row_scales(n_attended)]
                    attended_scales: Global<U32x4>,
                    /// The residual stream: [n_embd]
                    stream: GlobalMut<f32>,
                    /// [n_embd]
                    ffn_norm: Global<f32>,
                    /// The stream times the norm's weights: [n_embd], or absent where nothing reads it
                    normed_values: GlobalMut<f32>,
                    /// [row_code_bytes(n_embd)]
                    normed_codes: GlobalMut<u8>,
                    /// [row_scales(n_embd)]
                    normed_scales: GlobalMut<U32x4>,
                    /// [row_scales(n_embd)]
                    normed_squares: GlobalMut<f32>,
                    /// [n_experts, n_embd], or absent: the feed-forward part is dense
                    router: Global<f32>,
                    /// [n_experts], or absent
                    router_bias: Global<f32>,
                    /// [n_experts]
                    logits: GlobalMut<f32>,
                    /// Records: [experts, row tiles, records of a row]
                    gate: Global<U32x4>,
                    /// [experts, n_ff], or absent
                    gate_bias: Global<f32>,
                    /// As `gate`
                    up: Global<U32x4>,
                    /// [experts, n_ff], or absent
                    up_bias: Global<f32>,
                    /// [top_k, row_code_bytes(n_ff)]
                    hidden_codes: GlobalMut<u8>,
                    /// [top_k, row_scales(n_ff)]
                    hidden_scales: GlobalMut<U32x4>,
                    /// Records: [experts, row tiles, records of a row]
                    down: Global<U32x4>,
                    /// [experts, n_embd], or absent
                    down_bias: Global<f32>,
                    /// [n_embd]
                    next_norm: Global<f32>,
                    /// The next layer's q, k and v, or those of them that come first: records
                    first: Global<U32x4>,
                    /// [n_first], or absent
                    first_bias: Global<f32>,
                    /// The others, of another format
                    second: Global<U32x4>,
                    /// [n_second], or absent
                    second_bias: Global<f32>,
                    /// [n_first + n_second]
                    qkv: GlobalMut<f32>,
                    /// 0, before and after: [N_COUNTERS]
                    counters: GlobalMut<u32>,
                    n_embd: u32,
                    /// Columns that attention gave
                    n_attended: u32,
                    n_ff: u32,
                    /// 0: dense
                    n_experts: u32,
                    /// At most `MAX_RANKS`; 1 where there are no experts
                    top_k: u32,
                    /// 0: there is no next layer
                    n_first: u32,
                    /// May be 0
                    n_second: u32,
                    /// `SILU_GATE` or `CLAMPED_SWIGLU`
                    activation: u32,
                    alpha: f32,
                    limit: f32,
                    /// Of the norms
                    eps: f32,
                }
            }

            #[inline(always)]
            fn run(a: LayerOf) {
                let layer = Layer {
                    output: a.output,
                    output_bias: a.output_bias,
                    attended_codes: a.attended_codes,
                    attended_scales: a.attended_scales,
                    stream: a.stream,
                    ffn_norm: a.ffn_norm,
                    normed_values: a.normed_values,
                    normed_codes: a.normed_codes,
                    normed_scales: a.normed_scales,
                    normed_squares: a.normed_squares,
                    router: a.router,
                    router_bias: a.router_bias,
                    logits: a.logits,
                    gate: a.gate,
                    gate_bias: a.gate_bias,
                    up: a.up,
                    up_bias: a.up_bias,
                    hidden_codes: a.hidden_codes,
                    hidden_scales: a.hidden_scales,
                    down: a.down,
                    down_bias: a.down_bias,
                    next_norm: a.next_norm,
                    first: a.first,
                    first_bias: a.first_bias,
                    second: a.second,
                    second_bias: a.second_bias,
                    qkv: a.qkv,
                    counters: a.counters,
                    n_embd: a.n_embd,
                    n_attended: a.n_attended,
                    n_ff: a.n_ff,
                    n_experts: a.n_experts,
                    top_k: a.top_k,
                    n_first: a.n_first,
                    n_second: a.n_second,
                    activation: a.activation,
                    alpha: a.alpha,
                    limit: a.limit,
                    eps: a.eps,
                };
                let partial = shared!(OfBlock, partial).cast();
                let router = shared!(OfBlock, router);
                super::layer::<Plan, HALF, SLOTS>(layer, partial, router)
            }
        }
    )*};
}

/// Runs a macro over every combination of formats that has a kernel: name, 16-byte units of half a slot,
/// formats.
#[macro_export]
macro_rules! for_each_layer {
    ($with:ident) => {
        $with! {
            /// gpt-oss with experts in MXFP4 and the rest in Q8_0.
            layer_mxfp4, half 544, output $crate::tile::legacy::Q8_0, gated $crate::tile::legacy::Mxfp4,
                down $crate::tile::legacy::Mxfp4, first $crate::tile::legacy::Q8_0,
                second $crate::tile::legacy::Q8_0;
        }
    };
}
for_each_layer!(entries);
