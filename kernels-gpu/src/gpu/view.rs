//! Typed views of global and shared memory. On the device they are bare addresses and cost nothing;
//! on the host every access is checked by the emulator, which is where a kernel earns its trust.

use super::Plain;
use core::marker::PhantomData;

/// Read-only device memory: `len` elements of `T`.
#[derive(Debug)]
#[cfg_attr(target_arch = "nvptx64", repr(transparent))]
pub struct Global<T: Plain> {
    #[cfg(target_arch = "nvptx64")]
    pointer: *const T,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) address: u64,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) len: usize,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) elem: PhantomData<fn() -> T>,
}

/// Device memory that the kernel may write.
#[derive(Debug)]
#[cfg_attr(target_arch = "nvptx64", repr(transparent))]
pub struct GlobalMut<T: Plain> {
    #[cfg(target_arch = "nvptx64")]
    pointer: *mut T,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) address: u64,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) len: usize,
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) elem: PhantomData<fn() -> T>,
}

/// An array in the block's shared memory.
#[derive(Debug)]
pub struct SharedArray<T: Plain> {
    /// Byte offset in the block's shared memory.
    pub(super) offset: u32,
    /// Elements; the device does not use it.
    #[cfg(not(target_arch = "nvptx64"))]
    pub(super) len: u32,
    elem: PhantomData<T>,
}

macro_rules! copy_view {
    ($($view:ident),*) => {$(
        impl<T: Plain> Clone for $view<T> {
            #[inline(always)]
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T: Plain> Copy for $view<T> {}
    )*};
}
copy_view!(Global, GlobalMut, SharedArray);

impl<T: Plain> SharedArray<T> {
    /// The array at byte `offset` of the shared struct `S`; `_field` only names the type. Use
    /// `shared!`.
    #[inline(always)]
    pub fn project<S, const N: usize>(offset: usize, _field: fn(&S) -> &[T; N]) -> Self {
        SharedArray {
            offset: offset as u32,
            #[cfg(not(target_arch = "nvptx64"))]
            len: N as u32,
            elem: PhantomData,
        }
    }

    /// The part of the array that begins at element `start`.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    pub fn from(self, start: u32) -> Self {
        SharedArray {
            offset: self.offset + start * size_of::<T>() as u32,
            #[cfg(not(target_arch = "nvptx64"))]
            len: super::emu::sub_len(self.len as usize, start as usize) as u32,
            elem: PhantomData,
        }
    }

    /// The same bytes as elements of another type.
    #[inline(always)]
    pub fn cast<U: Plain>(self) -> SharedArray<U> {
        SharedArray {
            offset: self.offset,
            #[cfg(not(target_arch = "nvptx64"))]
            len: self.len * size_of::<T>() as u32 / size_of::<U>() as u32,
            elem: PhantomData,
        }
    }
}

#[cfg(target_arch = "nvptx64")]
mod device {
    use super::*;

    macro_rules! common {
        ($($view:ident),*) => {$(
            impl<T: Plain> $view<T> {
                /// Element `i`.
                #[inline(always)]
                pub fn get(self, i: usize) -> T {
                    // SAFETY: the emulator holds the kernel to indices inside the view.
                    unsafe { self.pointer.add(i).read() }
                }
                /// The view that begins at element `start`.
                #[inline(always)]
                pub fn from(self, start: usize) -> Self {
                    // SAFETY: as in `get`.
                    $view { pointer: unsafe { self.pointer.add(start) } }
                }
                /// The same bytes as elements of another type.
                #[inline(always)]
                pub fn cast<U: Plain>(self) -> $view<U> {
                    $view { pointer: self.pointer.cast() }
                }
                /// An argument that is left out.
                #[inline(always)]
                pub fn absent() -> Self {
                    $view { pointer: core::ptr::null_mut() }
                }
                /// Whether the argument was left out.
                #[inline(always)]
                pub fn is_absent(self) -> bool {
                    self.pointer.is_null()
                }
            }
        )*};
    }
    common!(Global, GlobalMut);

    #[allow(private_bounds)] // `Streamed` is how, not what: every width of a weight has it
    impl<T: super::super::Streamed> Global<T> {
        /// Element `i`, read once a step: the first to go where caches are short of room.
        #[inline(always)]
        pub fn stream(self, i: usize) -> T {
            // SAFETY: the emulator holds the kernel to indices inside the view.
            unsafe { T::load_streaming(self.pointer.add(i)) }
        }
    }

    impl Global<super::super::U32x4> {
        /// As `get`, for certain with one load: the compiler may cut that of `get` in two.
        #[inline(always)]
        pub fn whole(self, i: usize) -> super::super::U32x4 {
            // SAFETY: the emulator holds the kernel to indices inside the view.
            unsafe { super::super::load_whole(self.pointer.add(i)) }
        }
    }

    impl<T: Plain> Global<T> {
        /// Asks for the line of element `i`, which will be read soon.
        #[inline(always)]
        pub fn prefetch(self, i: usize) {
            super::super::prefetch(self.at(i));
        }
        /// The address, for the machine's own operations.
        #[inline(always)]
        pub(in crate::gpu) fn at(self, i: usize) -> *const T {
            self.pointer.wrapping_add(i)
        }
    }

    impl<T: Plain> GlobalMut<T> {
        /// Writes element `i`.
        #[inline(always)]
        pub fn set(self, i: usize, v: T) {
            // SAFETY: the emulator holds the kernel to indices inside the view.
            unsafe { self.pointer.add(i).write(v) }
        }
        /// The address, for the machine's own operations.
        #[inline(always)]
        pub(in crate::gpu) fn pointer(self, i: usize) -> *mut T {
            // SAFETY: as in `set`.
            unsafe { self.pointer.add(i) }
        }
    }
}

#[cfg(not(target_arch = "nvptx64"))]
mod host {
    use super::super::U32x4;
    use super::super::emu::{self, Access};
    use super::*;
    use crate::kernel::{ArgDescription, KernelArg};

    macro_rules! common {
        ($($view:ident, $writable:expr;)*) => {$(
            impl<T: Plain> $view<T> {
                /// A view of `len` elements at a device address.
                pub fn new(address: u64, len: usize) -> Self {
                    $view { address, len, elem: PhantomData }
                }
                /// An argument that is left out.
                pub fn absent() -> Self {
                    Self::new(0, 0)
                }
                /// The first element's device address.
                pub fn address(self) -> u64 {
                    self.address
                }
                /// Elements in the view.
                #[allow(clippy::len_without_is_empty)] // emptiness is `is_absent`'s question
                pub fn len(self) -> usize {
                    self.len
                }
                /// Element `i`.
                #[inline(always)]
                #[track_caller]
                pub fn get(self, i: usize) -> T {
                    let address = emu::element::<T>(self.address, self.len, i);
                    emu::global_access::<T>(address, Access::Read);
                    // SAFETY: `element` refused indices outside the view, and the launch checked
                    // that the view lies in the emulated device's memory.
                    unsafe { (address as *const T).read() }
                }
                /// The view that begins at element `start`.
                #[inline(always)]
                #[track_caller]
                pub fn from(self, start: usize) -> Self {
                    let len = emu::sub_len(self.len, start);
                    Self::new(self.address + (start * size_of::<T>()) as u64, len)
                }
                /// The same bytes as elements of another type.
                #[inline(always)]
                #[track_caller]
                pub fn cast<U: Plain>(self) -> $view<U> {
                    $view::new(self.address, self.len * size_of::<T>() / size_of::<U>())
                }
                /// Whether the argument was left out.
                #[inline(always)]
                pub fn is_absent(self) -> bool {
                    self.address == 0
                }
            }

            // SAFETY: `address` is the 8-byte PTX parameter.
            unsafe impl<T: Plain> KernelArg for $view<T> {
                const BYTES: u32 = 8;
                fn arg_pointer(&self) -> *const core::ffi::c_void {
                    (&raw const self.address).cast()
                }
                fn describe(&self) -> ArgDescription {
                    ArgDescription::View {
                        address: self.address,
                        bytes: (self.len * size_of::<T>()) as u64,
                        elem_bytes: size_of::<T>() as u32,
                        elem_align: align_of::<T>() as u32,
                        writable: $writable,
                    }
                }
            }
        )*};
    }
    common! { Global, false; GlobalMut, true; }

    impl<T: Plain> Global<T> {
        /// Asks for the line of element `i`, which will be read soon: here a bounds check.
        #[inline(always)]
        #[track_caller]
        pub fn prefetch(self, i: usize) {
            emu::element::<T>(self.address, self.len, i);
        }
    }

    impl<T: Plain> Global<T> {
        /// Element `i`, read once a step: the first to go where caches are short of room.
        #[inline(always)]
        #[track_caller]
        pub fn stream(self, i: usize) -> T {
            self.get(i)
        }
    }

    impl Global<U32x4> {
        /// As `get`, for certain with one load: the compiler may cut that of `get` in two.
        #[inline(always)]
        #[track_caller]
        pub fn whole(self, i: usize) -> U32x4 {
            self.get(i)
        }
    }

    impl<T: Plain> GlobalMut<T> {
        /// Writes element `i`.
        #[inline(always)]
        #[track_caller]
        pub fn set(self, i: usize, v: T) {
            let address = emu::element::<T>(self.address, self.len, i);
            emu::global_access::<T>(address, Access::Write);
            // SAFETY: as in `get`; two emulated threads never run at the same time in one block, and
            // blocks that write the same bytes are a fault that the checked emulator reports.
            unsafe { (address as *mut T).write(v) }
        }
    }

    impl<T: Plain> SharedArray<T> {
        /// Element `i`.
        #[inline(always)]
        #[track_caller]
        pub fn get(self, i: u32) -> T {
            let p = emu::shared_access::<T>(self.offset, self.len, i, Access::Read);
            // SAFETY: `shared_access` refused indices outside the block's shared memory.
            unsafe { p.read() }
        }
        /// Writes element `i`.
        #[inline(always)]
        #[track_caller]
        pub fn set(self, i: u32, v: T) {
            let p = emu::shared_access::<T>(self.offset, self.len, i, Access::Write);
            // SAFETY: as in `get`.
            unsafe { p.write(v) }
        }
    }
}
