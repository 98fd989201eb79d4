//! Records of F16 and BF16: for each step of 32 columns two fragments of a k = 16 float product.
//!
//! ```text
//! step 0, 1 | k step 0, 1 | lane | register r: row g + 8 (r % 2), columns 16 k + 4 t + 2 (r / 2) + 0, 1
//! ```
//! A k = 16 product takes columns 2t, 2t+1, 2t+8, 2t+9 from lane t; here these are the four columns
//! whose codes lie in one word of the activations' fragment.

use super::{CHAIN_GROUPS, Factors, LoneGroup, Part, Raw, Records, Step, Sums, TileFormat};
use crate::gpu::{self, Bf16, Element, F16, Global};

/// Half precision weights.
pub struct F16Tile;
/// bfloat16 weights.
pub struct Bf16Tile;

/// A lane's weights of a part: by step and k step, a fragment.
pub type Fragments = [[u32; 4]; 4];

/// Word `i` of the record: two weights of 16 bits.
#[inline(always)]
fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
    let (k, lane, register) = (i / 128, i % 128 / 4, i % 4);
    let row = lane / 4 + 8 * (register % 2);
    let col = first_col + 16 * k + 4 * (lane % 4) + 2 * (register / 2);
    raw.half(row, col, 0) | raw.half(row, col + 1, 0) << 16
}

/// The 16 bits of an element.
#[inline(always)]
fn element_bits(record: Global<u32>, row: u32, col: u32) -> u16 {
    let lane = 4 * (row % 8) + col / 4 % 4;
    let register = row / 8 + 2 * (col / 2 % 2);
    (record.get((col / 16 * 128 + 4 * lane + register) as usize) >> (16 * (col % 2))) as u16
}

#[inline(always)]
fn load(records: impl Records, at: usize) -> Fragments {
    let lane = records.from(gpu::lane() as usize);
    [0, 32, 64, 96].map(|step| lane.quad(at / 4 + step).0)
}

/// The product of a step's weights with the codes, then the activations' scale.
#[inline(always)]
fn add_scaled(c: [f32; 4], x_scale: f32, sums: &mut Sums) {
    sums[0] = gpu::fma(x_scale, gpu::fma(256.0, c[0], c[1]), sums[0]);
    sums[1] = gpu::fma(x_scale, gpu::fma(256.0, c[2], c[3]), sums[1]);
}

macro_rules! float_tile {
    ($name:ident, $elem:ident, $mma:path, $widen:path) => {
        impl TileFormat for $name {
            const RECORD_COLS: u32 = 64;
            const RECORD_WORDS: u32 = 512;
            const GROUPS: usize = 2;
            const PRODUCTS: u32 = 2;
            const X8_BLOCKS: u32 = 2;
            const X16_AHEAD: usize = 1;
            const LONE_AHEAD: usize = 2;
            const DEEP_AHEAD: usize = 4;
            const WIDE_AHEAD: usize = 3;
            const SHARED_PERCENT: u32 = 40;
            const TOGETHER: usize = 1;
            const LONE_TOGETHER: usize = 1;
            const DEEP_TOGETHER: usize = 1;
            const BLOCK: (u32, u32) = (2, 1);
            type Codes = Fragments;
            type RowScales = ();

            #[inline(always)]
            fn pack(raw: Raw, first_col: u32, i: u32) -> u32 {
                pack(raw, first_col, i)
            }
            #[inline(always)]
            fn element(record: Global<u32>, row: u32, col: u32) -> f32 {
                $elem(element_bits(record, row, col)).to_f32()
            }
            #[inline(always)]
            fn load_codes(records: impl Records, at: usize, _part: u32) -> Fragments {
                load(records, at)
            }
            #[inline(always)]
            fn load_scales(_records: impl Records, _at: usize, _part: u32) {}

            #[inline(always)]
            fn accumulate(
                part: &Part<Self>,
                step: usize,
                x: Step,
                sums: &mut [Sums; CHAIN_GROUPS],
            ) {
                let c = $mma([0.0; 4], part.codes[2 * step], $widen(x.codes[0]));
                let c = $mma(c, part.codes[2 * step + 1], $widen(x.codes[1]));
                add_scaled(c, x.scale, &mut sums[step]);
            }
            #[inline(always)]
            fn accumulate_lone<const PARTS: usize>(
                codes: &[Fragments; PARTS],
                _scales: &(),
                _group: usize,
                x: LoneGroup,
                _factors: &Factors,
                sums: &mut Sums,
            ) {
                let mut c = [0.0; 4];
                let widened = x.codes.map($widen);
                unroll!(i < 4, {
                    if i / 2 < PARTS {
                        let b = if x.is_of(i) { widened } else { [[0; 2]; 2] };
                        let (part, step) = (&codes[i / 2], i % 2);
                        c = $mma(c, part[2 * step], b[0]);
                        c = $mma(c, part[2 * step + 1], b[1]);
                    }
                });
                add_scaled(c, x.scale, sums);
            }
        }
    };
}
float_tile!(F16Tile, F16, gpu::mma_f16, gpu::bytes_to_f16);
float_tile!(Bf16Tile, Bf16, gpu::mma_bf16, gpu::bytes_to_bf16);
