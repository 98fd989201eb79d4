//! Every operation that a kernel may ask of the machine. The only module with two bodies: PTX for
//! the device, an emulator for the host. Kernel code itself has no `cfg` and no `asm!`.

#[macro_use]
mod unroll;
mod gather;
mod number;
mod view;

#[cfg(target_arch = "nvptx64")]
mod nvptx;
#[cfg(target_arch = "nvptx64")]
pub use nvptx::*;

#[cfg(not(target_arch = "nvptx64"))]
pub mod emu;
#[cfg(not(target_arch = "nvptx64"))]
pub use emu::{cluster::*, copies::*, ops::*, together::*};

pub use gather::{Detour, Gather};
pub use number::{Bf16, Element, F16, Plain, U32x2, U32x4};
pub use view::{Global, GlobalMut, SharedArray};

/// Lanes of a warp.
pub const WARP: u32 = 32;
/// Warps of the largest block.
pub const MAX_WARPS: usize = 32;

/// The calling thread's place in its warp.
#[inline(always)]
pub fn lane() -> u32 {
    thread_x() % WARP
}

/// The calling thread's warp within its block.
#[inline(always)]
pub fn warp() -> u32 {
    thread_x() / WARP
}

/// `a / b` for b > 0 where it is mostly 0: a division takes some twenty instructions.
#[inline(always)]
pub fn quotient(a: u32, b: u32) -> u32 {
    if a < b { 0 } else { div_u32(a, b) }
}

/// `e^x`, from the machine's base-2 exponential; relative error below 2^-22 + |x| 2^-23.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp2(x * core::f32::consts::LOG2_E)
}

/// `ln x` for x > 0, from the machine's base-2 logarithm.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    log2(x) * core::f32::consts::LN_2
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x` from the exponential; absolute error below 2^-21.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Four signed bytes as two words of two f16 each; exact.
#[inline(always)]
pub fn bytes_to_f16(word: u32) -> [u32; 2] {
    // A byte + 128 under the exponent of 1024 reads as 1024 + 128 + v.
    let biased = word ^ 0x8080_8080;
    let low = permute_bytes(biased, 0x6464_6464, 0x4140);
    let high = permute_bytes(biased, 0x6464_6464, 0x4342);
    const BIAS: u32 = 0x6480_6480; // 1152, twice
    [sub_f16x2(low, BIAS), sub_f16x2(high, BIAS)]
}

/// Four signed bytes as two words of two bf16 each; exact, since 8 bits hold them.
#[inline(always)]
pub fn bytes_to_bf16(word: u32) -> [u32; 2] {
    let top = |i: u32| ((word >> (8 * i)) as i8 as f32).to_bits();
    [permute_bytes(top(0), top(1), 0x7632), permute_bytes(top(2), top(3), 0x7632)]
}

/// Sum over the whole block; every thread gets the result. `scratch` has a word for each warp, and nothing else
/// uses it. Every thread of the block must reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn block_sum(v: f32, n_warps: u32, scratch: SharedArray<f32>) -> f32 {
    let v = warp_sum(v);
    if lane() == 0 {
        scratch.set(warp(), v);
    }
    sync_block(); // partial sums visible to every warp
    let part = if lane() < n_warps { scratch.get(lane()) } else { 0.0 };
    warp_sum(part)
}

/// Maximum over the whole block, as `block_sum`; a NaN is ignored unless all are.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn block_max(v: f32, n_warps: u32, scratch: SharedArray<f32>) -> f32 {
    let v = warp_max(v);
    if lane() == 0 {
        scratch.set(warp(), v);
    }
    sync_block(); // partial maxima visible to every warp
    let part = if lane() < n_warps { scratch.get(lane()) } else { f32::NEG_INFINITY };
    warp_max(part)
}
