//! The operations of `gpu`, emulated. Each has its twin in `nvptx.rs`.

use super::block::{self, Exchange, field, meet, order_arrival};
use super::overlap::Early;
use super::{Access, global_access, matrix};
use crate::gpu::{GlobalMut, SharedArray};
use crate::half_bits;
use std::panic::Location;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The calling thread's place in its block.
#[inline(always)]
pub fn thread_x() -> u32 {
    field!(current)
}

/// The block's place in the grid, along x.
#[inline(always)]
pub fn block_x() -> u32 {
    field!(index[0])
}

/// The block's place in the grid, along y.
#[inline(always)]
pub fn block_y() -> u32 {
    field!(index[1])
}

/// The block's place in the grid, along z.
#[inline(always)]
pub fn block_z() -> u32 {
    field!(index[2])
}

/// Blocks of the grid along x.
#[inline(always)]
pub fn grid_x() -> u32 {
    field!(grid[0])
}

/// Blocks of the grid along y.
#[inline(always)]
pub fn grid_y() -> u32 {
    field!(grid[1])
}

/// Blocks of the grid along z.
#[inline(always)]
pub fn grid_z() -> u32 {
    field!(grid[2])
}

/// Waits for the whole block; shared and global writes of the block before it are visible after it.
/// Every thread of the block must reach this call.
#[inline(always)]
#[track_caller]
pub fn sync_block() {
    block::barrier();
}

/// Lets the next launch start its blocks, as far as there is room for them.
#[inline(always)]
pub fn let_next_start() {
    block::tell_overlap(Early::let_next_start);
}

/// Waits until the launches before this one are done; what they wrote is visible then. Every thread
/// that touches what a launch writes must call it first.
#[inline(always)]
pub fn wait_for_previous() {
    block::tell_overlap(Early::wait);
}

/// Waits for the whole warp, which then sees its shared memory writes from before.
/// All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn sync_warp() {
    meet("sync_warp", Location::caller(), |_, _| {}, |_| block::order_warp(), |_, _| {});
}

/// The value of lane `lane ^ mask`. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn shuffle_xor(v: f32, mask: u32) -> f32 {
    f32::from_bits(shuffle_xor_u32(v.to_bits(), mask))
}

/// The word of lane `lane ^ mask`. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn shuffle_xor_u32(v: u32, mask: u32) -> u32 {
    gather("shuffle_xor", Location::caller(), v, |words, lane| words[(lane ^ mask as usize) % 32])
}

/// The word of lane `from`. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn shuffle_u32(v: u32, from: u32) -> u32 {
    gather("shuffle", Location::caller(), v, |words, _| words[from as usize % 32])
}

/// Every lane brings a word, and makes what it needs of all 32.
#[inline(always)]
fn gather(
    operation: &'static str,
    location: &'static Location<'static>,
    v: u32,
    collect: impl FnOnce(&[u32; 32], usize) -> u32,
) -> u32 {
    let deposit = |e: &mut Exchange, lane: usize| e.words[lane] = v;
    meet(operation, location, deposit, |_| {}, |e, lane| collect(&e.words, lane))
}

/// The value of lane `from`. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn shuffle(v: f32, from: u32) -> f32 {
    f32::from_bits(shuffle_u32(v.to_bits(), from))
}

#[inline(always)]
fn reduce(
    operation: &'static str,
    location: &'static Location<'static>,
    v: f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    meet(
        operation,
        location,
        |e, lane| e.words[lane] = v.to_bits(),
        |e| {
            let mut values = e.words.map(f32::from_bits);
            for mask in [16, 8, 4, 2, 1] {
                values = std::array::from_fn(|i| combine(values[i], values[i ^ mask]));
            }
            e.words = values.map(f32::to_bits);
        },
        |e, lane| f32::from_bits(e.words[lane]),
    )
}

/// Sum over the 32 lanes, every lane gets it; the order of the additions is the device's.
/// All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_sum(v: f32) -> f32 {
    reduce("warp_sum", Location::caller(), v, |a, b| a + b)
}

/// Maximum over the 32 lanes, every lane gets it; a NaN is ignored unless all are.
/// All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_max(v: f32) -> f32 {
    reduce("warp_max", Location::caller(), v, f32::max)
}

/// Whether `v` holds in any lane. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_any(v: bool) -> bool {
    gather("warp_any", Location::caller(), v as u32, |words, _| {
        words.iter().fold(0, |any, word| any | word)
    }) != 0
}

/// The lanes in which `v` holds, lane 0 in the lowest bit. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_ballot(v: bool) -> u32 {
    gather("warp_ballot", Location::caller(), v as u32, |words, _| {
        words.iter().rev().fold(0, |mask, word| mask << 1 | word)
    })
}

/// The lanes whose `v` is the calling lane's, lane 0 in the lowest bit. All 32 lanes must reach this
/// call.
#[inline(always)]
#[track_caller]
pub fn warp_match(v: u32) -> u32 {
    gather("warp_match", Location::caller(), v, |words, lane| {
        words.iter().rev().fold(0, |mask, &word| mask << 1 | (word == words[lane]) as u32)
    })
}

/// Maximum over the 32 lanes, every lane gets it. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_max_u32(v: u32) -> u32 {
    gather("warp_max_u32", Location::caller(), v, |words, _| {
        words.iter().fold(0, |most, &word| most.max(word))
    })
}

/// Minimum over the 32 lanes, every lane gets it. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_min_u32(v: u32) -> u32 {
    gather("warp_min_u32", Location::caller(), v, |words, _| {
        words.iter().fold(u32::MAX, |least, &word| least.min(word))
    })
}

/// Sum over the 32 lanes modulo 2^32, every lane gets it. All 32 lanes must reach this call.
#[inline(always)]
#[track_caller]
pub fn warp_sum_u32(v: u32) -> u32 {
    gather("warp_sum_u32", Location::caller(), v, |words, _| {
        words.iter().fold(0, |sum: u32, &word| sum.wrapping_add(word))
    })
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// The nearest integer, ties to even; NaN gives 0.
#[inline(always)]
pub fn round_i32(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// `2^x`, 0 below the normal numbers; the device's has a relative error of 2^-22.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let y = x.exp2();
    if y.is_subnormal() { 0.0 } else { y }
}

/// `log2 x`; the device's has an absolute error of 2^-22 near 1, else a relative one of that size.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    x.log2()
}

/// `1 / x` for a normal number; the device's has a relative error of 2^-23.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    1.0 / x
}

/// `1 / sqrt x` for a normal number above 0; the device's has a relative error of 2^-22.
#[inline(always)]
pub fn inverse_sqrt(x: f32) -> f32 {
    1.0 / x.sqrt()
}

/// Bits of an f16 as f32.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    half_bits::f16_to_f32(bits)
}

/// The nearest f16, ties to even.
#[inline(always)]
pub fn f32_to_f16(v: f32) -> u16 {
    half_bits::f32_to_f16(v)
}

/// The nearest f16 of two numbers, ties to even, the first in the lower half.
#[inline(always)]
pub fn f32_to_f16x2(low: f32, high: f32) -> u32 {
    f32_to_f16(low) as u32 | (f32_to_f16(high) as u32) << 16
}

/// The nearest bf16 of two numbers, ties to even, the first in the lower half.
#[inline(always)]
pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    half_bits::f32_to_bf16(low) as u32 | (half_bits::f32_to_bf16(high) as u32) << 16
}

/// `a - b` of two f16 pairs, each rounded to f16.
#[inline(always)]
pub fn sub_f16x2(a: u32, b: u32) -> u32 {
    let sub = |a: u32, b: u32| f32_to_f16(f16_to_f32(a as u16) - f16_to_f32(b as u16)) as u32;
    sub(a, b) | sub(a >> 16, b >> 16) << 16
}

/// The same value. The compiler knows nothing about it: what is computed from it is computed behind this, and
/// takes no registers before.
#[inline(always)]
pub fn anew(v: u32) -> u32 {
    v
}

/// The same value, which a register holds: of a constant the machine's assembler makes a copy for each use, where
/// registers are few.
#[inline(always)]
pub fn held(v: u32) -> u32 {
    v
}

/// `a / b` for b > 0.
#[inline(always)]
pub fn div_u32(a: u32, b: u32) -> u32 {
    a / b
}

/// Bytes picked from the eight of `low` and `high` by the low three bits of `selector`'s four lower
/// nibbles; the nibble's top bit must be clear.
#[inline(always)]
pub fn permute_bytes(low: u32, high: u32, selector: u32) -> u32 {
    let bytes = (low as u64 | (high as u64) << 32).to_le_bytes();
    let pick = |i: u32| {
        let nibble = selector >> (4 * i) & 15;
        let byte = bytes[(nibble & 7) as usize];
        // The machine's rule for the top bit: the byte's sign over all eight bits.
        let byte = if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        (byte as u32) << (8 * i)
    };
    pick(0) | pick(1) | pick(2) | pick(3)
}

/// Counts the thread among the `n` that arrive at a counter in device memory: how many came before it.
/// The counter begins anew behind the last. Who arrives sees what the threads before it had written, and
/// after the next block barrier all of its block sees what theirs had, up to the barriers before they
/// arrived.
#[inline(always)]
#[track_caller]
pub fn arrive(counter: GlobalMut<u32>, i: usize, n: u32) -> u32 {
    let address = super::element::<u32>(counter.address, counter.len, i);
    global_access::<u32>(address, Access::Atomic);
    order_arrival(address);
    // SAFETY: `element` refused indices outside the view; an aligned u32 may be used atomically.
    let counter = unsafe { AtomicU32::from_ptr(address as *mut u32) };
    let next = |before| Some(if before >= n - 1 { 0 } else { before + 1 });
    let (Ok(before) | Err(before)) =
        counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    before
}

/// Adds to a sum in device memory to which other blocks may be adding too. Orders nothing: it is the
/// next launch that reads the sum.
#[track_caller]
pub fn reduce_add_u32(sums: GlobalMut<u32>, i: usize, v: u32) {
    let address = super::element::<u32>(sums.address, sums.len, i);
    global_access::<u32>(address, Access::Atomic);
    // SAFETY: as in `arrive`.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }.fetch_add(v, Ordering::Relaxed);
}

/// As `reduce_add_u32`.
#[track_caller]
pub fn reduce_add_u64(sums: GlobalMut<u64>, i: usize, v: u64) {
    let address = super::element::<u64>(sums.address, sums.len, i);
    global_access::<u64>(address, Access::Atomic);
    // SAFETY: as in `arrive`.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }.fetch_add(v, Ordering::Relaxed);
}

/// Adds to a sum in the block's shared memory, the value before comes back; other threads may do the
/// same. A barrier must stand between it and other accesses.
#[track_caller]
pub fn shared_add(sums: SharedArray<u32>, i: u32, v: u32) -> u32 {
    let p = super::shared_access::<u32>(sums.offset, sums.len, i, Access::Atomic);
    // SAFETY: `shared_access` refused indices outside the block's shared memory, and the threads of a
    // block run one at a time.
    unsafe {
        let before = p.read();
        p.write(before.wrapping_add(v));
        before
    }
}

/// `c + a b` over a 16 x 8 tile with k = 32: a and b hold signed bytes, c words.
///
/// Fragments (lane = 4 g + t): `a[0]` row g, k 4t..4t+3; `a[1]` row g + 8; `a[2]`, `a[3]` the same
/// rows at k + 16. `b[0]` column g, k 4t..4t+3; `b[1]` k + 16. `c[0]`, `c[1]` row g, columns 2t and
/// 2t + 1; `c[2]`, `c[3]` row g + 8. All 32 lanes must reach this call. PTX: `mma.m16n8k32`.
#[inline(always)]
#[track_caller]
pub fn mma_s8(c: [i32; 4], a: [u32; 4], b: [u32; 2]) -> [i32; 4] {
    matrix::int8::<4, 32>(Location::caller(), c, a, b)
}

/// As `mma_s8` with k = 16: `a[0]` row g, k 4t..4t+3, `a[1]` row g + 8; `b` column g.
/// PTX: `mma.m16n8k16`.
#[inline(always)]
#[track_caller]
pub fn mma_s8_k16(c: [i32; 4], a: [u32; 2], b: u32) -> [i32; 4] {
    matrix::int8::<2, 16>(Location::caller(), c, a, [b, 0])
}

/// `c + a b` over a 16 x 8 tile with k = 16: a and b in f16, c in f32.
///
/// Fragments (lane = 4 g + t): `a[0]` row g, k 2t and 2t+1; `a[1]` row g + 8; `a[2]`, `a[3]` the
/// same rows at k + 8. `b[0]` column g, k 2t and 2t+1; `b[1]` k + 8. c as in `mma_s8`.
/// All 32 lanes must reach this call. PTX: `mma.m16n8k16`.
#[inline(always)]
#[track_caller]
pub fn mma_f16(c: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
    matrix::half::<matrix::F16>(Location::caller(), "mma_f16", c, a, b)
}

/// As `mma_f16` with bf16 in a and b.
#[inline(always)]
#[track_caller]
pub fn mma_bf16(c: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
    matrix::half::<matrix::Bf16>(Location::caller(), "mma_bf16", c, a, b)
}
