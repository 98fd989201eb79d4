//! What attention knows of some keys, and how it is brought together with what it knows of later ones.

use crate::gpu::{self, U32x2};

/// Softmax over some keys: largest score (in log2), sum of the weights relative to it, and `N`
/// groups of four columns of their sum of values.
#[derive(Clone, Copy)]
pub(super) struct State<const N: usize> {
    pub largest: f32,
    pub sum: f32,
    pub values: [[f32; 4]; N],
}

/// What scores are taken relative to: their largest, or 0 where no key was seen, so that the weight
/// of a score of -inf is 0 and not NaN.
#[inline(always)]
pub(super) fn base(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0.0 } else { largest }
}

/// What weights relative to `own` are multiplied by to be relative to `largest`.
#[inline(always)]
pub(super) fn factor(own: f32, largest: f32) -> f32 {
    gpu::exp2(own - base(largest))
}

impl<const N: usize> State<N> {
    /// No keys.
    pub(super) const EMPTY: State<N> =
        State { largest: f32::NEG_INFINITY, sum: 0.0, values: [[0.0; 4]; N] };

    /// (largest score, sum)
    #[inline(always)]
    pub(super) fn ml(self) -> U32x2 {
        U32x2([self.largest.to_bits(), self.sum.to_bits()])
    }

    /// Adds the keys of `later`. Folding into `EMPTY` changes nothing but the sign of zeroes.
    #[inline(always)]
    pub(super) fn fold(self, later: State<N>) -> State<N> {
        let largest = self.largest.max(later.largest);
        let (old, new) = (factor(self.largest, largest), factor(later.largest, largest));
        State { largest, ..self.fold_by(later, old, new) }
    }

    /// `fold` where what both are multiplied by is known; leaves the largest score alone.
    #[inline(always)]
    pub(super) fn fold_by(self, later: State<N>, old: f32, new: f32) -> State<N> {
        let mut values = [[0.0; 4]; N];
        unroll!(i < N, {
            unroll!(j < 4, {
                values[i][j] = gpu::fma(later.values[i][j], new, self.values[i][j] * old);
            });
        });
        State { sum: gpu::fma(later.sum, new, self.sum * old), values, ..self }
    }
}
