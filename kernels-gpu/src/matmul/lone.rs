//! A warp's walk over its share of the columns for one token: four groups of columns at a time, which
//! the tensor cores keep apart in columns of their own (`tile::LoneGroup`).

use super::N_SHARES;
use super::walk::{Store, Walk, load_codes, load_scales, number_in_record, within};
use crate::fixed16::{BLOCK_COLS, TILE_COLS};
use crate::gpu::{self, Global, SharedArray, U32x2, U32x4};
use crate::tile::{CHAIN_GROUPS, Factors, LoneGroup, PART_COLS, Sums, TileFormat};

/// Parts of a chain: each is of a share of its own, of which the warp has so many.
const fn chain_parts<F: TileFormat>(shares: usize) -> usize {
    let most = CHAIN_GROUPS / F::GROUPS;
    if most < shares { most } else { shares }
}

/// Sums that a lane keeps apart: those of its group, for each chain of a round over the shares.
const fn n_sums<F: TileFormat>(shares: usize) -> usize {
    shares / chain_parts::<F>(shares)
}

/// Chains after which sums and buffer are the first ones again; of the two numbers one divides the other.
const fn round<F: TileFormat>(shares: usize, ahead: usize) -> usize {
    if ahead > n_sums::<F>(shares) { ahead } else { n_sums::<F>(shares) }
}

/// Matrix instructions of a walk.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn matrix_ops<F: TileFormat>(shares: usize, ahead: usize) -> u32 {
    let groups = (chain_parts::<F>(shares) * F::GROUPS) as u32;
    groups * F::PRODUCTS * round::<F>(shares, ahead) as u32
}

/// Shuffles of a walk.
#[cfg(not(target_arch = "nvptx64"))]
pub(super) const fn shuffles<F: TileFormat>(shares: usize) -> u32 {
    2 * (F::GROUPS / 2 * n_sums::<F>(shares)) as u32
}

/// Of `CHAIN_GROUPS` groups, the part of group `group` and its number there. A chain with fewer groups stands in for
/// those that lack.
#[inline(always)]
fn group_of_chain<F: TileFormat, const SHARES: usize>(group: u32) -> (u32, u32) {
    let part = group / F::GROUPS as u32;
    (if chain_parts::<F>(SHARES) == 1 { 0 } else { part }, group % F::GROUPS as u32)
}

/// The group of the lane's sums, as `group_of_chain` has it.
#[inline(always)]
fn lane_group<F: TileFormat, const SHARES: usize>() -> (u32, u32) {
    group_of_chain::<F, SHARES>(gpu::lane() % 4)
}

/// A warp's chains, of which it multiplies `TOGETHER` between two branches: their products do not wait for each
/// other. Where its parts do not come out even, the first chains lack parts, so that what follows need not ask.
#[derive(Clone, Copy)]
pub(super) struct Chains<const SHARES: usize, const TOGETHER: usize> {
    /// The first part of the first chain; below 0 where there is none.
    first: i32,
    n_chains: u32,
    walk: Walk<SHARES>,
}

impl<const SHARES: usize, const TOGETHER: usize> Chains<SHARES, TOGETHER> {
    const STRIDE: u32 = Walk::<SHARES>::STRIDE;

    #[inline(always)]
    pub(super) fn new<F: TileFormat>(walk: Walk<SHARES>) -> Self {
        let left = walk.n_parts.saturating_sub(walk.first);
        let n_parts = left.div_ceil(Self::STRIDE);
        // A multiple of those that are multiplied at once.
        let n_chains =
            n_parts.div_ceil((TOGETHER * chain_parts::<F>(SHARES)) as u32) * TOGETHER as u32;
        let lacking = n_chains * chain_parts::<F>(SHARES) as u32 - n_parts;
        Chains { first: walk.first as i32 - (lacking * Self::STRIDE) as i32, n_chains, walk }
    }

    /// A chain of the parts that `at` tells of its first and second.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load<F: TileFormat>(self, tile: Global<U32x4>, at: impl Fn(u32) -> u32) -> Chain<F, SHARES> {
        let stride = Self::STRIDE * chain_parts::<F>(SHARES) as u32;
        let first = self.first as u32; // of the first chain: below 0 it has the same number
        let at = |part: u32| {
            let at = at(part);
            let of_first = first.wrapping_add(part * Self::STRIDE);
            (at, number_in_record::<F>(of_first, stride, at))
        };
        Chain::load(tile, at)
    }

    /// The first part of chain `i`.
    #[inline(always)]
    fn part<F: TileFormat>(self, i: u32) -> i32 {
        self.first + (i * Self::STRIDE) as i32 * chain_parts::<F>(SHARES) as i32
    }

    /// A part that exists, for one that may not.
    #[inline(always)]
    fn within(self, at: i32) -> u32 {
        if at < 0 { self.walk.first } else { within(at as u32, self.walk.n_parts) }
    }

    /// The first chains, asked for before the activations are there.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn ask<F: TileFormat, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
    ) -> [Chain<F, SHARES>; AHEAD] {
        let chain = |i: usize| {
            let at = self.part::<F>(i as u32);
            self.load(tile, |part| self.within(at + (part * Self::STRIDE) as i32))
        };
        let mut chains = [chain(0); AHEAD];
        unroll!(i < AHEAD, {
            if i > 0 {
                chains[i] = chain(i);
            }
        });
        chains
    }

    /// Leaves the sums of one token in shared memory. Its activations are asked for as far ahead as the weights;
    /// `meanwhile` is what is done, and waited for, once the first are under way.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub(super) fn sums<F: TileFormat, W: Words, R, const AHEAD: usize>(
        self,
        tile: Global<U32x4>,
        mut chains: [Chain<F, SHARES>; AHEAD],
        x: RowWords<W>,
        meanwhile: impl FnOnce() -> R,
        store: Store,
    ) -> R {
        let (own_part, own_group) = lane_group::<F, SHARES>();
        let factors = Factors::of_lane();
        let row = LoneRow::<W, SHARES>::new::<F>(x);
        let x_chain = |i: usize| {
            let at = self.part::<F>(i as u32);
            let groups = row.groups::<F>(|part| self.within(at + (part * Self::STRIDE) as i32));
            // What stands in for a part that is lacking counts nothing.
            if at + ((own_part * Self::STRIDE) as i32) < 0 {
                LoneGroup { scale: 0.0, sum: 0, ..groups }
            } else {
                groups
            }
        };
        let mut x_chains = [x_chain(0); AHEAD];
        unroll!(i < AHEAD, {
            if i > 0 {
                x_chains[i] = x_chain(i);
            }
        });
        let done = meanwhile();
        let mut sums = [[0.0; 2]; SHARES];
        let mut left = self.n_chains;
        let mut next = self.part::<F>(AHEAD as u32) as u32;
        const { assert!(TOGETHER <= 4 && AHEAD.is_multiple_of(TOGETHER)) };
        while left > 0 {
            unroll!(i < round::<F>(SHARES, AHEAD), {
                // A whole warp skips the places past its last.
                if i.is_multiple_of(TOGETHER) && left > 0 {
                    unroll!(j < 4, {
                        if j < TOGETHER {
                            let i = i + j;
                            let Chain { codes, scales } = &chains[i % AHEAD];
                            let sums = &mut sums[i % n_sums::<F>(SHARES)];
                            let x = x_chains[i % AHEAD];
                            let group = own_group as usize;
                            if chain_parts::<F>(SHARES) == 1 {
                                let codes = &[codes[0]];
                                F::accumulate_lone(codes, scales, group, x, &factors, sums);
                            } else {
                                F::accumulate_lone(codes, scales, group, x, &factors, sums);
                            }
                        }
                    });
                    if left > AHEAD as u32 {
                        unroll!(j < 4, {
                            if j < TOGETHER {
                                let i = (i + j) % AHEAD;
                                chains[i] = self.load(tile, |part| next + part * Self::STRIDE);
                                x_chains[i] = row.groups::<F>(|part| next + part * Self::STRIDE);
                                next += Self::STRIDE * chain_parts::<F>(SHARES) as u32;
                            }
                        });
                    }
                    left -= TOGETHER as u32;
                }
            });
        }
        unroll!(i < n_sums::<F>(SHARES), {
            self.store::<F>(i as u32, sums[i], store);
        });
        done
    }

    /// Adds up the groups of each part of the chains from the `i`th on, and leaves them in the part's
    /// share.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn store<F: TileFormat>(self, i: u32, sums: Sums, store: Store) {
        let sums = sums.map(|sum| {
            let sum = sum + gpu::shuffle_xor(sum, 1);
            if F::GROUPS == 4 { sum + gpu::shuffle_xor(sum, 2) } else { sum }
        });
        let (part, group) = lane_group::<F, SHARES>();
        let n_groups = (chain_parts::<F>(SHARES) * F::GROUPS) as u32;
        if group == 0 && gpu::lane() % 4 < n_groups {
            let at = self.part::<F>(i) + (part * Self::STRIDE) as i32;
            store.rows::<F>(at.rem_euclid(N_SHARES as i32) as u32, 0, sums);
        }
    }
}

/// What a lane holds of a chain of weights.
pub(super) struct Chain<F: TileFormat, const SHARES: usize> {
    codes: [F::Codes; 2],
    scales: F::RowScales,
}

impl<F: TileFormat, const SHARES: usize> Clone for Chain<F, SHARES> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: TileFormat, const SHARES: usize> Copy for Chain<F, SHARES> {}

impl<F: TileFormat, const SHARES: usize> Chain<F, SHARES> {
    /// Of the parts that `at` tells of the chain's first and second, with their numbers in their records.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load(tile: Global<U32x4>, at: impl Fn(u32) -> (u32, u32)) -> Self {
        let codes_of = |(at, number): (u32, u32)| load_codes::<F>(tile, at, number);
        let first = codes_of(at(0));
        let second = if chain_parts::<F>(SHARES) == 1 { first } else { codes_of(at(1)) };
        let (part, _) = lane_group::<F, SHARES>();
        let (at, number) = at(part);
        Chain { codes: [first, second], scales: load_scales::<F>(tile, at, number) }
    }
}

/// Words of device memory, or of a block's shared memory.
pub(super) trait Words: Copy {
    /// Those from word `start` on.
    fn from(self, start: usize) -> Self;
    /// Word `i`.
    fn word(self, i: usize) -> u32;
    /// Words `2 i` and `2 i + 1`.
    fn pair(self, i: usize) -> U32x2;
}

macro_rules! words {
    ($view:ident, $index:ty) => {
        impl Words for $view<u32> {
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn from(self, start: usize) -> Self {
                $view::from(self, start as $index)
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn word(self, i: usize) -> u32 {
                self.get(i as $index)
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn pair(self, i: usize) -> U32x2 {
                self.cast::<U32x2>().get(i as $index)
            }
        }
    };
}
words!(Global, usize);
words!(SharedArray, u32);

/// A row of activations.
#[derive(Clone, Copy)]
pub(super) struct RowWords<W: Words> {
    /// Its fixed-point codes.
    pub codes: W,
    /// Its scale records.
    pub scales: W,
}

/// Words of a part's codes.
pub(super) const CODE_WORDS: u32 = 2 * TILE_COLS / 4;
/// Words of its scale records.
pub(super) const SCALE_WORDS: u32 = 8;

/// The lane's places in a row of activations.
#[derive(Clone, Copy)]
struct LoneRow<W: Words, const SHARES: usize> {
    /// From the first word of the lane's codes on.
    codes: W,
    /// From the first word of the scale and of the sum of the lane's group on.
    scales: W,
    sums: W,
}

impl<W: Words, const SHARES: usize> LoneRow<W, SHARES> {
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn new<F: TileFormat>(x: RowWords<W>) -> Self {
        let lane = gpu::lane();
        let (_, group) = group_of_chain::<F, SHARES>(lane / 8);
        let group_words = CODE_WORDS / (2 * 4 * F::GROUPS as u32);
        let codes = lane / 4 % 2 * (CODE_WORDS / 2) + lane % 4 * 4 + group * group_words;
        // Scales of the two blocks, their sums, and those of their halves.
        let (_, group) = lane_group::<F, SHARES>();
        let block = group * PART_COLS / F::GROUPS as u32 / BLOCK_COLS;
        let sum = if F::GROUPS == 4 { 4 } else { 2 } + group;
        LoneRow {
            codes: x.codes.from(codes as usize),
            scales: x.scales.from(block as usize),
            sums: x.scales.from(sum as usize),
        }
    }

    /// The lane's share of the chain of the parts that `at` tells.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn groups<F: TileFormat>(self, at: impl Fn(u32) -> u32) -> LoneGroup {
        let (part, _) = group_of_chain::<F, SHARES>(gpu::lane() / 8);
        let codes = at(part) as usize * CODE_WORDS as usize;
        let (part, _) = lane_group::<F, SHARES>();
        let scales = at(part) as usize * SCALE_WORDS as usize;
        LoneGroup {
            codes: if F::GROUPS == 4 {
                [self.codes.word(codes), 0]
            } else {
                self.codes.pair(codes / 2).0
            },
            scale: f32::from_bits(self.scales.word(scales)),
            sum: self.sums.word(scales),
        }
    }
}
