//! Random weights as bytes. Each format's blocks are made of random codes under scales chosen so
//! that the decoded weights have mean 0 and the wanted standard deviation; nothing is quantised.
//!
//! A stretch of blocks is made once for each format and spread, and every tensor takes the next
//! part of it, around and around: writing is then as fast as the disk.

use std::collections::HashMap;
use std::io::{self, Write};

use half::{bf16, f16};
use kernels_gpu::quant::Format;

use crate::gguf::TensorInfo;

/// At most so much is made for each format and spread.
const STRETCH_BYTES: usize = 32 << 20;

/// The distribution of a tensor's weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// 0 for every format but F32.
    pub(crate) mean: f32,
    pub(crate) sigma: f32,
}

/// The stretches of all formats and spreads of one file.
pub(super) struct Stretches {
    seed: u64,
    made: HashMap<Key, Stretch>,
}

type Key = (Format, u32, u32);

struct Stretch {
    /// Bytes that the whole file takes from it.
    taken: u64,
    /// Empty until the first tensor needs it.
    bytes: Vec<u8>,
    at: usize,
}

impl Stretches {
    /// For a file of these tensors: a small file gets no more than it takes.
    pub(super) fn new<'a>(
        seed: u64,
        tensors: impl Iterator<Item = (&'a TensorInfo, Spread)>,
    ) -> Stretches {
        let mut stretches = Stretches { seed, made: HashMap::new() };
        for (info, spread) in tensors {
            stretches.of(info.format(), spread).taken += info.n_bytes();
        }
        stretches
    }

    fn of(&mut self, format: Format, spread: Spread) -> &mut Stretch {
        let key = (format, spread.mean.to_bits(), spread.sigma.to_bits());
        self.made.entry(key).or_insert(Stretch { taken: 0, bytes: Vec::new(), at: 0 })
    }

    /// Writes the data of a tensor.
    pub(super) fn write(
        &mut self,
        info: &TensorInfo,
        spread: Spread,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let (seed, format) = (self.seed, info.format());
        let stretch = self.of(format, spread);
        if stretch.bytes.is_empty() {
            let n_blocks = n_blocks(format, stretch.taken.max(info.n_bytes()));
            let salt = u64::from(spread.mean.to_bits() ^ spread.sigma.to_bits()) << 32;
            let mut random = Random(seed ^ salt ^ format as u64);
            stretch.bytes = blocks(format, spread, n_blocks, &mut random);
        }
        let mut left = info.n_bytes();
        while left > 0 {
            let rest = &stretch.bytes[stretch.at..];
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            out.write_all(&rest[..n])?;
            left -= n as u64;
            stretch.at = (stretch.at + n) % stretch.bytes.len();
        }
        Ok(())
    }
}

/// Blocks of a stretch of which a file takes `taken` bytes: all of them, or a prime number, so
/// that the rows of a matrix don't repeat when the stretch does.
fn n_blocks(format: Format, taken: u64) -> usize {
    let taken = (taken / format.block_bytes() as u64) as usize;
    let most = STRETCH_BYTES / format.block_bytes();
    if taken <= most {
        return taken;
    }
    let prime = |n: &usize| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (1..=most).rev().find(prime).unwrap_or(1)
}

/// `n_blocks` blocks of random weights.
pub(crate) fn blocks(
    format: Format,
    spread: Spread,
    n_blocks: usize,
    random: &mut Random,
) -> Vec<u8> {
    let mut bytes = vec![0; n_blocks * format.block_bytes()];
    random.fill(&mut bytes);
    let Spread { mean, sigma } = spread;
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        // Each scale strays by a quarter; the mean square of 0.75..1.25 is 1 + 1/48.
        let strayed = sigma * random.within(0.75, 1.25) / (1.0f32 + 1.0 / 48.0).sqrt();
        // Codes that lie unevenly about 0 get a scale of either sign, so the mean is 0.
        let signed = if random.next() & 1 == 0 { strayed } else { -strayed };
        match format {
            Format::F32 => block.copy_from_slice(&(mean + sigma * random.normal()).to_le_bytes()),
            Format::F16 => {
                block.copy_from_slice(&f16::from_f32(sigma * random.normal()).to_le_bytes());
            }
            Format::BF16 => {
                block.copy_from_slice(&bf16::from_f32(sigma * random.normal()).to_le_bytes());
            }
            // d f16 | codes; weight = d * (code - 8), of deviation sqrt(21.5)
            Format::Q4_0 => put_f16(block, 0, signed / 21.5f32.sqrt()),
            // d f16 | high bits, codes; weight = d * (code - 16), of deviation sqrt(85.5)
            Format::Q5_0 => put_f16(block, 0, signed / 85.5f32.sqrt()),
            // d f16 | m f16 | codes; weight = d * code + m with m = -7.5 d
            Format::Q4_1 => {
                let d = strayed / 21.25f32.sqrt();
                put_f16(block, 0, d);
                put_f16(block, 2, -7.5 * d);
            }
            // d f16 | m f16 | high bits, codes; weight = d * code + m with m = -15.5 d
            Format::Q5_1 => {
                let d = strayed / 85.25f32.sqrt();
                put_f16(block, 0, d);
                put_f16(block, 2, -15.5 * d);
            }
            // d f16 | codes i8; quantisers never give -128, so it is 0 here: E[code^2] = 5397.5
            Format::Q8_0 => {
                block[2..].iter_mut().filter(|code| **code == 0x80).for_each(|code| *code = 0);
                put_f16(block, 0, strayed / 5397.5f32.sqrt());
            }
            // e8m0 | codes; the mean square of E2M1's 0, .5, 1, 1.5, 2, 3, 4, 6 is 8.5625
            Format::MXFP4 => block[0] = exponent(sigma / 8.5625f32.sqrt(), random),
            // scales 16 x (low nibble scale, high nibble min) | codes | d f16 | dmin f16;
            // weight = d * scale * code - dmin * min, with scales and mins of 8 to 15:
            // E[scale^2] = 137.5, their variance 5.25, that of the codes 1.25, dmin = 1.5 d
            Format::Q2_K => {
                block[..16].iter_mut().for_each(|scales| *scales |= 0x88);
                let d = strayed / (137.5f32 * 1.25 + 2.25 * 2.0 * 5.25).sqrt();
                put_f16(block, 80, d);
                put_f16(block, 82, 1.5 * d);
            }
            // high bits | codes | scales 6-bit, offset 32 | d f16; weight = d * scale * code:
            // E[scale^2] = 341.5, E[code^2] = 5.5
            Format::Q3_K => put_f16(block, 108, strayed / (341.5f32 * 5.5).sqrt()),
            // d f16 | dmin f16 | scales and mins 6-bit | codes, as Q2_K with scales of 32 to 63:
            // E[scale^2] = 2341.5, their variance 85.25, that of 16 codes 21.25, dmin = 7.5 d
            Format::Q4_K => {
                put_large_scales(&mut block[4..16]);
                let d = strayed / (2341.5f32 * 21.25 + 7.5 * 7.5 * 2.0 * 85.25).sqrt();
                put_f16(block, 0, d);
                put_f16(block, 2, 7.5 * d);
            }
            // as Q4_K, with 32 codes: variance 85.25, dmin = 15.5 d
            Format::Q5_K => {
                put_large_scales(&mut block[4..16]);
                let d = strayed / (2341.5f32 * 85.25 + 15.5 * 15.5 * 2.0 * 85.25).sqrt();
                put_f16(block, 0, d);
                put_f16(block, 2, 15.5 * d);
            }
            // codes | scales 16 x i8 | d f16; weight = d * scale * (code - 32):
            // E[scale^2] = 5461.5, E[(code - 32)^2] = 341.5
            Format::Q6_K => put_f16(block, 208, strayed / (5461.5f32 * 341.5).sqrt()),
        }
    }
    bytes
}

fn put_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Sets the top bit of all eight 6-bit scales and mins of Q4_K and Q5_K: bit 5 of bytes 0 to 7
/// belongs to the first four of each, bit 7 to the last four.
fn put_large_scales(packed: &mut [u8]) {
    packed[..8].iter_mut().for_each(|byte| *byte |= 0xa0);
}

/// An E8M0 exponent: one of the two powers of two about `scale`, in such a proportion that the
/// mean square is that of `scale`.
fn exponent(scale: f32, random: &mut Random) -> u8 {
    let log2 = scale.log2();
    let below = log2.floor();
    // p * 4^(below + 1) + (1 - p) * 4^below = 4^log2
    let above_share = ((2.0 * (log2 - below)).exp2() - 1.0) / 3.0;
    let above = random.within(0.0, 1.0) < above_share;
    // 0 is the least exponent, 255 is NaN.
    (below + 127.0 + f32::from(above)).clamp(0.0, 254.0) as u8
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    pub(crate) fn within(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// The sum of four uniform numbers: mean 0, deviation 1, nothing beyond 3.5.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 - 2.0 * 65535.0) / (65536.0 / 3.0f32.sqrt())
    }
}
