//! The operations of `gpu` as PTX. One function per instruction; each has its twin in `emu/ops.rs`,
//! where its meaning is documented.
//!
//! Convergent operations are LLVM intrinsics, never `asm!`: rustc does not mark `asm!` as convergent
//! and may copy it into both arms of a branch. What must be `asm!` stands in functions without
//! branches.

mod cluster;
mod copies;
mod shared;
mod together;

use super::{GlobalMut, SharedArray, U32x2, U32x4};
pub use cluster::*;
pub use copies::*;
use core::arch::asm;
use core::arch::nvptx;
use shared::shared_base;
pub use together::*;

const ALL_LANES: i32 = -1;

// Four fields, not an array: the intrinsics return `{i32, i32, i32, i32}`.
#[repr(C)]
struct Words(i32, i32, i32, i32);
#[repr(C)]
struct Floats(f32, f32, f32, f32);

impl Words {
    #[inline(always)]
    fn array(self) -> [i32; 4] {
        [self.0, self.1, self.2, self.3]
    }
}

impl Floats {
    #[inline(always)]
    fn array(self) -> [f32; 4] {
        [self.0, self.1, self.2, self.3]
    }
}

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_bfly(mask: i32, v: i32, lane_mask: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_idx(mask: i32, v: i32, lane: i32, clamp: i32) -> i32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: i32);
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any(mask: i32, v: bool) -> bool;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot(mask: i32, v: bool) -> i32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn match_any(mask: i32, v: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_umax(v: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.umin"]
    fn redux_umin(v: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.redux.sync.add"]
    fn redux_add(v: i32, mask: i32) -> i32;
    #[link_name = "llvm.nvvm.f2i.rn"]
    fn f2i_rn(v: f32) -> i32;
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f"]
    fn ex2_approx(v: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.f"]
    fn lg2_approx(v: f32) -> f32;
    #[link_name = "llvm.nvvm.prmt"]
    fn prmt(low: i32, high: i32, selector: i32) -> i32;
    #[link_name = "llvm.nvvm.mma.m16n8k32.row.col.s8"]
    fn mma_k32_s8(
        a0: i32,
        a1: i32,
        a2: i32,
        a3: i32,
        b0: i32,
        b1: i32,
        c0: i32,
        c1: i32,
        c2: i32,
        c3: i32,
    ) -> Words;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.s8"]
    fn mma_k16_s8(a0: i32, a1: i32, b0: i32, c0: i32, c1: i32, c2: i32, c3: i32) -> Words;
    #[link_name = "llvm.nvvm.mma.m16n8k16.row.col.bf16"]
    fn mma_k16_bf16(
        a0: i32,
        a1: i32,
        a2: i32,
        a3: i32,
        b0: i32,
        b1: i32,
        c0: f32,
        c1: f32,
        c2: f32,
        c3: f32,
    ) -> Floats;
}

/// PTX: `trap`.
pub fn trap() -> ! {
    // SAFETY: ends the kernel.
    unsafe { nvptx::trap() }
}

/// PTX: `%tid.x`.
#[inline(always)]
pub fn thread_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_thread_idx_x() as u32 }
}

/// PTX: `%ctaid.x`.
#[inline(always)]
pub fn block_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_x() as u32 }
}

/// PTX: `%ctaid.y`.
#[inline(always)]
pub fn block_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_y() as u32 }
}

/// PTX: `%ctaid.z`.
#[inline(always)]
pub fn block_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_block_idx_z() as u32 }
}

/// PTX: `%nctaid.x`.
#[inline(always)]
pub fn grid_x() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_x() as u32 }
}

/// PTX: `%nctaid.y`.
#[inline(always)]
pub fn grid_y() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_y() as u32 }
}

/// PTX: `%nctaid.z`.
#[inline(always)]
pub fn grid_z() -> u32 {
    // SAFETY: reads a special register.
    unsafe { nvptx::_grid_dim_z() as u32 }
}

/// PTX: `barrier.cta.sync.aligned.all 0`.
#[inline(always)]
pub fn sync_block() {
    // SAFETY: the kernel brings the whole block here; the emulator checks it.
    unsafe { nvptx::_syncthreads() }
}

/// PTX: `griddepcontrol.launch_dependents`, on Hopper.
#[inline(always)]
pub fn let_next_start() {
    #[cfg(sm_90a)]
    // SAFETY: a hint to the scheduler.
    unsafe {
        asm!("griddepcontrol.launch_dependents;", options(nostack));
    }
}

/// PTX: `griddepcontrol.wait`, on Hopper. Elsewhere launches don't overlap.
#[inline(always)]
pub fn wait_for_previous() {
    #[cfg(sm_90a)]
    // SAFETY: waits; not convergent, threads may reach it by different ways.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack));
    }
}

/// PTX: `bar.warp.sync -1`.
#[inline(always)]
pub fn sync_warp() {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { bar_warp_sync(ALL_LANES) }
}

/// PTX: `shfl.sync.bfly.b32`; clamp 31 keeps the whole warp as one segment.
#[inline(always)]
pub fn shuffle_xor_u32(v: u32, mask: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { shfl_bfly(ALL_LANES, v as i32, mask as i32, 31) as u32 }
}

/// PTX: `shfl.sync.bfly.b32`.
#[inline(always)]
pub fn shuffle_xor(v: f32, mask: u32) -> f32 {
    f32::from_bits(shuffle_xor_u32(v.to_bits(), mask))
}

/// PTX: `shfl.sync.idx.b32`.
#[inline(always)]
pub fn shuffle_u32(v: u32, from: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { shfl_idx(ALL_LANES, v as i32, from as i32, 31) as u32 }
}

/// PTX: `shfl.sync.idx.b32`.
#[inline(always)]
pub fn shuffle(v: f32, from: u32) -> f32 {
    f32::from_bits(shuffle_u32(v.to_bits(), from))
}

/// Five butterflies.
#[inline(always)]
pub fn warp_sum(v: f32) -> f32 {
    let v = v + shuffle_xor(v, 16);
    let v = v + shuffle_xor(v, 8);
    let v = v + shuffle_xor(v, 4);
    let v = v + shuffle_xor(v, 2);
    v + shuffle_xor(v, 1)
}

/// Five butterflies.
#[inline(always)]
pub fn warp_max(v: f32) -> f32 {
    let v = v.max(shuffle_xor(v, 16));
    let v = v.max(shuffle_xor(v, 8));
    let v = v.max(shuffle_xor(v, 4));
    let v = v.max(shuffle_xor(v, 2));
    v.max(shuffle_xor(v, 1))
}

/// PTX: `vote.sync.any.pred`.
#[inline(always)]
pub fn warp_any(v: bool) -> bool {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { vote_any(ALL_LANES, v) }
}

/// PTX: `vote.sync.ballot.b32`.
#[inline(always)]
pub fn warp_ballot(v: bool) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { vote_ballot(ALL_LANES, v) as u32 }
}

/// PTX: `match.any.sync.b32`.
#[inline(always)]
pub fn warp_match(v: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { match_any(ALL_LANES, v as i32) as u32 }
}

/// PTX: `redux.sync.max.u32`.
#[inline(always)]
pub fn warp_max_u32(v: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { redux_umax(v as i32, ALL_LANES) as u32 }
}

/// PTX: `redux.sync.min.u32`.
#[inline(always)]
pub fn warp_min_u32(v: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { redux_umin(v as i32, ALL_LANES) as u32 }
}

/// PTX: `redux.sync.add.s32`, the same bits as unsigned.
#[inline(always)]
pub fn warp_sum_u32(v: u32) -> u32 {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { redux_add(v as i32, ALL_LANES) as u32 }
}

/// PTX: `fma.rn.f32`.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    core::intrinsics::fmaf32(a, b, c)
}

/// PTX: `cvt.rni.s32.f32`.
#[inline(always)]
pub fn round_i32(x: f32) -> i32 {
    // SAFETY: arithmetic.
    unsafe { f2i_rn(x) }
}

/// PTX: `ex2.approx.ftz.f32`.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { ex2_approx(x) }
}

/// PTX: `lg2.approx.f32`.
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { lg2_approx(x) }
}

/// PTX: `cvt.f32.f16`.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits) as f32
}

/// PTX: `cvt.rn.f16.f32`.
#[inline(always)]
pub fn f32_to_f16(v: f32) -> u16 {
    (v as f16).to_bits()
}

/// PTX: `rcp.approx.ftz.f32`.
#[inline(always)]
pub fn reciprocal(x: f32) -> f32 {
    let y: f32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("rcp.approx.ftz.f32 {y}, {x};", y = out(reg32) y, x = in(reg32) x,
            options(pure, nomem, nostack));
    }
    y
}

/// PTX: `rsqrt.approx.ftz.f32`.
#[inline(always)]
pub fn inverse_sqrt(x: f32) -> f32 {
    let y: f32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("rsqrt.approx.ftz.f32 {y}, {x};", y = out(reg32) y, x = in(reg32) x,
            options(pure, nomem, nostack));
    }
    y
}

/// PTX: `cvt.rn.f16x2.f32`.
#[inline(always)]
pub fn f32_to_f16x2(low: f32, high: f32) -> u32 {
    let v: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {v}, {high}, {low};", v = out(reg32) v, high = in(reg32) high,
            low = in(reg32) low, options(pure, nomem, nostack));
    }
    v
}

/// PTX: `cvt.rn.bf16x2.f32`.
#[inline(always)]
pub fn f32_to_bf16x2(low: f32, high: f32) -> u32 {
    let v: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {v}, {high}, {low};", v = out(reg32) v, high = in(reg32) high,
            low = in(reg32) low, options(pure, nomem, nostack));
    }
    v
}

/// PTX: `sub.rn.f16x2`.
#[inline(always)]
pub fn sub_f16x2(a: u32, b: u32) -> u32 {
    let v: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("sub.rn.f16x2 {v}, {a}, {b};", v = out(reg32) v, a = in(reg32) a, b = in(reg32) b,
            options(pure, nomem, nostack));
    }
    v
}

/// PTX: `div.u32`; no check for zero, which would bring a panic along.
#[inline(always)]
pub fn div_u32(a: u32, b: u32) -> u32 {
    // SAFETY: the emulator divides with the check.
    unsafe { core::intrinsics::unchecked_div(a, b) }
}

/// PTX: `mov.u32`.
#[inline(always)]
pub fn anew(v: u32) -> u32 {
    let w: u32;
    // SAFETY: a copy; without `pure`, so that it stays where it is.
    unsafe { asm!("mov.u32 {w}, {v};", w = out(reg32) w, v = in(reg32) v, options(nomem, nostack)) }
    w
}

/// PTX: `add.u32` of the top bit of `%lanemask_lt`, which is 0, though the assembler does not know it.
#[inline(always)]
pub fn held(v: u32) -> u32 {
    let w: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("{{ .reg .b32 t; mov.u32 t, %lanemask_lt; shr.u32 t, t, 31; add.u32 {w}, t, {v}; }}", w = out(reg32) w,
            v = in(reg32) v, options(pure, nomem, nostack));
    }
    w
}

/// PTX: `prmt.b32`.
#[inline(always)]
pub fn permute_bytes(low: u32, high: u32, selector: u32) -> u32 {
    // SAFETY: arithmetic.
    unsafe { prmt(low as i32, high as i32, selector as i32) as u32 }
}

/// PTX: `atom.acq_rel.gpu.global.inc.u32`.
#[inline(always)]
pub fn arrive(counter: GlobalMut<u32>, i: usize, n: u32) -> u32 {
    let before: u32;
    // SAFETY: the emulator holds the kernel to indices inside the view.
    unsafe {
        asm!(
            "atom.acq_rel.gpu.global.inc.u32 {before}, [{at}], {last};",
            before = out(reg32) before, at = in(reg64) counter.pointer(i), last = in(reg32) n - 1,
            options(nostack)
        );
    }
    before
}

/// PTX: `red.relaxed.gpu.global.add.u32`.
#[inline(always)]
pub fn reduce_add_u32(sums: GlobalMut<u32>, i: usize, v: u32) {
    // SAFETY: the emulator holds the kernel to indices inside the view.
    unsafe {
        asm!("red.relaxed.gpu.global.add.u32 [{at}], {v};", at = in(reg64) sums.pointer(i),
            v = in(reg32) v, options(nostack));
    }
}

/// PTX: `red.relaxed.gpu.global.add.u64`.
#[inline(always)]
pub fn reduce_add_u64(sums: GlobalMut<u64>, i: usize, v: u64) {
    // SAFETY: the emulator holds the kernel to indices inside the view.
    unsafe {
        asm!("red.relaxed.gpu.global.add.u64 [{at}], {v};", at = in(reg64) sums.pointer(i),
            v = in(reg64) v, options(nostack));
    }
}

/// PTX: `atom.relaxed.cta.shared.add.u32`.
#[inline(always)]
pub fn shared_add(sums: SharedArray<u32>, i: u32, v: u32) -> u32 {
    let before: u32;
    // SAFETY: the emulator holds the kernel to indices inside the array.
    unsafe {
        asm!("atom.relaxed.cta.shared.add.u32 {before}, [{at}], {v};", before = out(reg32) before,
            at = in(reg32) shared_base() + sums.offset + 4 * i, v = in(reg32) v, options(nostack));
    }
    before
}

/// PTX: `mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32`.
#[inline(always)]
pub fn mma_s8(c: [i32; 4], a: [u32; 4], b: [u32; 2]) -> [i32; 4] {
    let (a, b) = (a.map(|v| v as i32), b.map(|v| v as i32));
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { mma_k32_s8(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]).array() }
}

/// PTX: `mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32`.
#[inline(always)]
pub fn mma_s8_k16(c: [i32; 4], a: [u32; 2], b: u32) -> [i32; 4] {
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { mma_k16_s8(a[0] as i32, a[1] as i32, b as i32, c[0], c[1], c[2], c[3]).array() }
}

/// PTX: `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32`. The intrinsic takes `<2 x half>`, which
/// Rust can't pass yet, so this one is `asm!`: the build script's count catches a copy of it.
#[inline(always)]
pub fn mma_f16(c: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = c;
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{c0}, {c1}, {c2}, {c3}}}, \
             {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {{{c0}, {c1}, {c2}, {c3}}};",
            c0 = inout(reg32) c0, c1 = inout(reg32) c1, c2 = inout(reg32) c2, c3 = inout(reg32) c3,
            a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
            b0 = in(reg32) b[0], b1 = in(reg32) b[1],
            options(nomem, nostack)
        );
    }
    [c0, c1, c2, c3]
}

/// PTX: `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`.
#[inline(always)]
pub fn mma_bf16(c: [f32; 4], a: [u32; 4], b: [u32; 2]) -> [f32; 4] {
    let (a, b) = (a.map(|v| v as i32), b.map(|v| v as i32));
    // SAFETY: the kernel brings the whole warp here; the emulator checks it.
    unsafe { mma_k16_bf16(a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]).array() }
}

/// PTX: `prefetch.global.L2`.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    // SAFETY: a hint, of an address that may be anything.
    unsafe { asm!("prefetch.global.L2 [{at}];", at = in(reg64) at, options(nostack)) }
}

/// Loads that tell the caches what they need not keep: all that is read once a step would else drive out what
/// every launch reads, its code among it.
pub(super) trait Streamed: super::Plain {
    /// PTX: `ld.global.cs`. Compiled for sm_80, words and pairs are loaded as ever: products of sixteen tokens of
    /// Q2_K have no register to spare there.
    ///
    /// # Safety
    /// `at` must be readable global memory that nothing writes during the kernel.
    unsafe fn load_streaming(at: *const Self) -> Self;
}

impl Streamed for u32 {
    #[inline(always)]
    unsafe fn load_streaming(at: *const u32) -> u32 {
        if cfg!(sm_80) {
            // SAFETY: the caller's promise.
            return unsafe { at.read() };
        }
        let v: u32;
        // SAFETY: the caller's promise.
        unsafe {
            asm!("ld.global.cs.b32 {v}, [{at}];", v = out(reg32) v, at = in(reg64) at,
                options(pure, readonly, nostack));
        }
        v
    }
}

impl Streamed for U32x2 {
    #[inline(always)]
    unsafe fn load_streaming(at: *const U32x2) -> U32x2 {
        if cfg!(sm_80) {
            // SAFETY: the caller's promise.
            return unsafe { at.read() };
        }
        let (x, y): (u32, u32);
        // SAFETY: the caller's promise.
        unsafe {
            asm!("ld.global.cs.v2.b32 {{{x}, {y}}}, [{at}];", x = out(reg32) x, y = out(reg32) y,
                at = in(reg64) at, options(pure, readonly, nostack));
        }
        U32x2([x, y])
    }
}

/// A 16-byte load.
macro_rules! load_quad {
    ($instruction:literal, $at:ident) => {{
        let (x, y, z, w): (u32, u32, u32, u32);
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                concat!($instruction, " {{{x}, {y}, {z}, {w}}}, [{at}];"),
                x = out(reg32) x, y = out(reg32) y, z = out(reg32) z, w = out(reg32) w,
                at = in(reg64) $at,
                options(pure, readonly, nostack)
            );
        }
        U32x4([x, y, z, w])
    }};
}

impl Streamed for U32x4 {
    #[inline(always)]
    unsafe fn load_streaming(at: *const U32x4) -> U32x4 {
        load_quad!("ld.global.cs.v4.b32", at)
    }
}

/// PTX: `ld.global.v4.b32`.
///
/// # Safety
/// `at` must be 16 readable bytes of global memory.
#[inline(always)]
pub(super) unsafe fn load_whole(at: *const U32x4) -> U32x4 {
    load_quad!("ld.global.v4.b32", at)
}
