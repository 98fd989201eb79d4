//! As many products as the tensor cores can do: what a benchmark holds products to. No model uses these
//! kernels.

use crate::gpu::{self, Global, GlobalMut};
use crate::probe::{a_words, b_words, c_places};

/// Threads of a block.
pub const BLOCK: u32 = 256;
/// Chains of products that a warp has in flight, each waiting for its own last one.
pub const CHAINS: usize = 8;
/// Products of a chain in a round of the loop: as long that the compiler leaves the loop as it is.
pub const DEPTH: usize = 8;
/// Multiplications and additions of a product of 16 rows and 8 columns, in bytes (k = 32).
pub const BYTE_OPERATIONS: u64 = 2 * 16 * 8 * 32;
/// The same in halves (k = 16).
pub const HALF_OPERATIONS: u64 = 2 * 16 * 8 * 16;
/// Elements that a warp writes: rows times columns.
pub const WARP_OUT: usize = 16 * 8;

macro_rules! peak {
    ($(#[$doc:meta])* $name:ident, $args:ident, $body:ident, $word:ty, $mma:path, $add:expr) => {
        kernel! {
            $(#[$doc])*
            pub fn $name = $body, block BLOCK, shared (), registers 64,
                barriers 0, shuffles 0, matrix_ops (CHAINS * DEPTH) as u32;
            pub struct $args {
                /// [16, 8], row-major
                a: Global<u32>,
                /// [8, 8], by column
                b: Global<u32>,
                /// [warps, 16, 8]: the sum of all chains, of which number i began with i
                out: GlobalMut<$word>,
                /// Of `DEPTH` products in each chain
                rounds: u32,
            }
        }

        #[inline(always)]
        fn $body(p: $args) {
            let (a, b) = (a_words(p.a, 8, 0), b_words(p.b, 8, 0));
            let mut chains = [[0 as $word; 4]; CHAINS];
            unroll!(chain < 8, {
                chains[chain] = [chain as $word; 4];
            });
            let mut round = 0;
            while round < p.rounds {
                unroll!(_step < 8, {
                    unroll!(chain < 8, {
                        chains[chain] = $mma(chains[chain], a, b);
                    });
                });
                round += 1;
            }
            let mut sum = chains[0];
            unroll!(chain < 8, {
                if chain > 0 {
                    unroll!(i < 4, {
                        sum[i] = $add(sum[i], chains[chain][i]);
                    });
                }
            });
            let warp = gpu::block_x() * (BLOCK / gpu::WARP) + gpu::warp();
            let out = p.out.from(warp as usize * WARP_OUT);
            let places = c_places();
            unroll!(i < 4, {
                out.set(places[i], sum[i]);
            });
        }
    };
}

peak!(
    /// Chains of products in bytes.
    peak_s8, PeakS8, peak_s8_body, i32, gpu::mma_s8, i32::wrapping_add
);

peak!(
    /// Chains of products in f16, summed in f32.
    peak_f16, PeakF16, peak_f16_body, f32, gpu::mma_f16, core::ops::Add::add
);
