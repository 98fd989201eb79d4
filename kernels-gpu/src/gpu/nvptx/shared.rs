//! What crosses between registers and shared memory.

use crate::gpu::{Bf16, F16, Plain, SharedArray, U32x2, U32x4};
use core::arch::asm;

// The block's dynamic shared memory; `SharedArray` holds byte offsets into it.
core::arch::global_asm!(".extern .shared .align 128 .b8 dyn_smem[];");

/// Address of the block's dynamic shared memory in the shared window.
#[inline(always)]
pub(super) fn shared_base() -> u32 {
    let base: u32;
    // SAFETY: reads an address.
    unsafe {
        asm!("mov.u32 {base}, dyn_smem;", base = out(reg32) base, options(pure, nomem, nostack));
    }
    base
}

/// How a type crosses between registers and shared memory.
pub(in crate::gpu) trait SharedWord: Plain {
    /// PTX: `ld.shared`.
    unsafe fn load(at: u32) -> Self;
    /// PTX: `st.shared`.
    unsafe fn store(at: u32, v: Self);
}

macro_rules! shared_word {
    ($($ty:ty, $reg:ident, $raw:ty, $load:literal, $store:literal, $from:expr, $to:expr;)*) => {$(
        impl SharedWord for $ty {
            #[inline(always)]
            unsafe fn load(at: u32) -> Self {
                let v: $raw;
                // SAFETY: the emulator holds the kernel to its shared memory.
                unsafe {
                    asm!($load, v = out($reg) v, at = in(reg32) at,
                        options(pure, readonly, nostack));
                }
                $from(v)
            }
            #[inline(always)]
            unsafe fn store(at: u32, v: Self) {
                let v: $raw = $to(v);
                // SAFETY: as in `load`.
                unsafe { asm!($store, at = in(reg32) at, v = in($reg) v, options(nostack)) }
            }
        }
    )*};
}
shared_word! {
    u8, reg16, u16, "ld.shared.u8 {v}, [{at}];", "st.shared.u8 [{at}], {v};",
        |v| v as u8, |v| v as u16;
    i8, reg16, i16, "ld.shared.s8 {v}, [{at}];", "st.shared.u8 [{at}], {v};",
        |v| v as i8, |v| v as i16;
    F16, reg16, u16, "ld.shared.u16 {v}, [{at}];", "st.shared.u16 [{at}], {v};",
        F16, |v: F16| v.0;
    Bf16, reg16, u16, "ld.shared.u16 {v}, [{at}];", "st.shared.u16 [{at}], {v};",
        Bf16, |v: Bf16| v.0;
    u32, reg32, u32, "ld.shared.u32 {v}, [{at}];", "st.shared.u32 [{at}], {v};", |v| v, |v| v;
    i32, reg32, i32, "ld.shared.s32 {v}, [{at}];", "st.shared.u32 [{at}], {v};", |v| v, |v| v;
    f32, reg32, f32, "ld.shared.f32 {v}, [{at}];", "st.shared.f32 [{at}], {v};", |v| v, |v| v;
    u64, reg64, u64, "ld.shared.u64 {v}, [{at}];", "st.shared.u64 [{at}], {v};", |v| v, |v| v;
}

impl SharedWord for U32x2 {
    #[inline(always)]
    unsafe fn load(at: u32) -> Self {
        let (x, y): (u32, u32);
        // SAFETY: the emulator holds the kernel to its shared memory.
        unsafe {
            asm!("ld.shared.v2.b32 {{{x}, {y}}}, [{at}];", x = out(reg32) x, y = out(reg32) y,
                at = in(reg32) at, options(pure, readonly, nostack));
        }
        U32x2([x, y])
    }
    #[inline(always)]
    unsafe fn store(at: u32, U32x2([x, y]): Self) {
        // SAFETY: as in `load`.
        unsafe {
            asm!("st.shared.v2.b32 [{at}], {{{x}, {y}}};", x = in(reg32) x, y = in(reg32) y,
                at = in(reg32) at, options(nostack));
        }
    }
}

impl SharedWord for U32x4 {
    #[inline(always)]
    unsafe fn load(at: u32) -> Self {
        let (x, y, z, w): (u32, u32, u32, u32);
        // SAFETY: the emulator holds the kernel to its shared memory.
        unsafe {
            asm!("ld.shared.v4.b32 {{{x}, {y}, {z}, {w}}}, [{at}];", x = out(reg32) x,
                y = out(reg32) y, z = out(reg32) z, w = out(reg32) w, at = in(reg32) at,
                options(pure, readonly, nostack));
        }
        U32x4([x, y, z, w])
    }
    #[inline(always)]
    unsafe fn store(at: u32, U32x4([x, y, z, w]): Self) {
        // SAFETY: as in `load`.
        unsafe {
            asm!("st.shared.v4.b32 [{at}], {{{x}, {y}, {z}, {w}}};", x = in(reg32) x,
                y = in(reg32) y, z = in(reg32) z, w = in(reg32) w, at = in(reg32) at,
                options(nostack));
        }
    }
}

#[allow(private_bounds)] // `SharedWord` is how, not what: every type that kernels keep there has it
impl<T: SharedWord> SharedArray<T> {
    /// Element `i`.
    #[inline(always)]
    pub fn get(self, i: u32) -> T {
        // SAFETY: the emulator holds the kernel to indices inside the array.
        unsafe { T::load(shared_base() + self.offset + i * size_of::<T>() as u32) }
    }
    /// Writes element `i`.
    #[inline(always)]
    pub fn set(self, i: u32, v: T) {
        // SAFETY: as in `get`.
        unsafe { T::store(shared_base() + self.offset + i * size_of::<T>() as u32, v) }
    }
}
