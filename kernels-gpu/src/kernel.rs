//! The one declaration form for kernels: entry point, argument struct and launch contract together.

/// One parameter of a kernel's entry, in the order of the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// The argument's name in the kernel's argument struct.
    pub name: &'static str,
    /// Bytes of the parameter in PTX: 8 for a view, the value's size for a scalar.
    pub bytes: u32,
}

/// What a launch must respect and what the compiler must have made. Written once in `kernel!`, read
/// by the CUDA launcher, the emulator and the build script.
#[derive(Clone, Copy, Debug)]
pub struct KernelSpec {
    /// Name of the PTX entry.
    pub name: &'static str,
    /// Threads of a block, all along x.
    pub block_threads: u32,
    /// Bytes of dynamic shared memory: the size of the kernel's `Shared` struct.
    pub shared_bytes: u32,
    /// The entry's parameters.
    pub params: &'static [ParamSpec],
    /// Registers a thread may use at most; more is a build error where `ptxas` is installed.
    pub max_registers: u32,
    /// Block barriers in the entry's PTX.
    pub barriers: u32,
    /// Warp shuffles in the entry's PTX.
    pub shuffles: u32,
    /// Matrix instructions in the entry's PTX.
    pub matrix_ops: u32,
    /// Blocks that must fit a multiprocessor at once; 0 leaves it to the compiler.
    pub min_blocks: u32,
    /// Share of a multiprocessor's memory that should be shared memory, in percent, though its blocks would do with
    /// less: so that launches behind each other want the same. 0 leaves it to the driver.
    pub shared_percent: u32,
    /// The image that alone has the kernel, whose blocks may wait for each other: a launch has no more
    /// of them than run at once. None: every image has it, and its blocks may run one after another.
    pub together_on: Option<&'static str>,
    /// Whether blocks along z bring a result together (`gpu::Gather`): where the card has clusters and they are no
    /// more than one takes, a launch makes them one.
    pub gathers: bool,
}

impl KernelSpec {
    /// Whether the image `arch` has the kernel.
    pub fn is_in(&self, arch: &str) -> bool {
        self.together_on.is_none_or(|only| only == arch)
    }
}

/// What the launcher and the emulator learn of one argument.
#[cfg(not(target_arch = "nvptx64"))]
#[derive(Clone, Copy, Debug)]
pub enum ArgDescription {
    /// A scalar passed by value.
    Scalar,
    /// A view of device memory.
    View {
        /// First byte.
        address: u64,
        /// Bytes that the kernel may touch.
        bytes: u64,
        /// Size of one element.
        elem_bytes: u32,
        /// Alignment of one element.
        elem_align: u32,
        /// Whether the kernel may write.
        writable: bool,
    },
}

/// A type that can be a kernel's argument: a scalar or a view.
///
/// # Safety
/// `arg_pointer` must point at `BYTES` bytes that are the PTX parameter's value.
#[cfg(not(target_arch = "nvptx64"))]
pub unsafe trait KernelArg: Copy + Send + Sync {
    /// Bytes of the parameter in PTX.
    const BYTES: u32;
    /// Where the parameter's value lies, for the driver.
    fn arg_pointer(&self) -> *const core::ffi::c_void;
    /// What the launch checks need to know.
    fn describe(&self) -> ArgDescription;
}

#[cfg(not(target_arch = "nvptx64"))]
macro_rules! scalar_args {
    ($($ty:ty),*) => {$(
        // SAFETY: the value itself is the parameter.
        unsafe impl KernelArg for $ty {
            const BYTES: u32 = size_of::<$ty>() as u32;
            fn arg_pointer(&self) -> *const core::ffi::c_void {
                (&raw const *self).cast()
            }
            fn describe(&self) -> ArgDescription {
                ArgDescription::Scalar
            }
        }
    )*};
}
#[cfg(not(target_arch = "nvptx64"))]
scalar_args!(u32, i32, f32, u64);

/// A kernel's arguments together with its body.
///
/// # Safety
/// Implemented only by `kernel!`: `for_each_arg` yields the fields in the order of the entry's
/// parameters.
#[cfg(not(target_arch = "nvptx64"))]
pub unsafe trait Kernel: Copy + Send + Sync {
    /// The kernel's declaration; its address identifies the kernel.
    fn spec() -> &'static KernelSpec;
    /// Visits the arguments in parameter order.
    fn for_each_arg(&self, visit: &mut dyn FnMut(*const core::ffi::c_void, ArgDescription));
    /// Runs the body for the emulated thread that calls it.
    fn run(self);
}

/// Declares a kernel: device entry, argument struct and contract.
///
/// `registers`, `barriers`, `shuffles` and `matrix_ops` say what the compiled entry may use and must
/// contain; the build script holds the PTX to them. Elsewhere than in this crate it declares kernels
/// for the emulator alone.
///
/// Launches overlap: a kernel's blocks may start while the launch before is still at work, and wait
/// for it before the body begins; with `waits later` the body itself calls `wait_for_previous`, and
/// touches before that only what no launch writes that may still be at work. With `waits and_lets` the body calls
/// `let_next_start` too. If it does so after its own wait, the next launch may read, before it waits, what launches before
/// this one wrote. The products of q, k and v do, the first layer's always, so that attention may read the step's batch, which the choice of tokens
/// leaves, and what earlier steps wrote; what host copies part is done anyway.
///
/// With `gathers z` its blocks along z bring a result together (`gpu::Gather`).
///
/// With `together on IMAGE` the blocks of a launch may wait for each other (`gpu::wait_for_signals`); the
/// image of that name alone has the kernel.
#[cfg_attr(not(target_arch = "nvptx64"), macro_export)]
macro_rules! kernel {
    (
        $(#[$doc:meta])*
        pub fn $name:ident = $body:path,
            block $block:expr, shared $shared:ty, registers $registers:expr,
            barriers $barriers:expr, shuffles $shuffles:expr, matrix_ops $matrix_ops:expr
            $(, min_blocks $min_blocks:expr)? $(, percent $percent:expr)? $(, waits $waits:ident)? $(, gathers $along:ident)?
            $(, together on $image:ident)?;
        pub struct $args:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs)] // scalars named in the kernel's formula need no more
        pub struct $args { $($(#[$fdoc])* pub $field: $ty,)* }

        #[cfg(not(target_arch = "nvptx64"))]
        const _: () = {
            static SPEC: $crate::KernelSpec = $crate::KernelSpec {
                name: stringify!($name),
                block_threads: $block,
                shared_bytes: size_of::<$shared>() as u32,
                params: &[$($crate::ParamSpec {
                    name: stringify!($field),
                    bytes: <$ty as $crate::KernelArg>::BYTES,
                }),*],
                max_registers: $registers,
                barriers: $barriers,
                shuffles: $shuffles,
                matrix_ops: $matrix_ops,
                min_blocks: 0 $(+ $min_blocks)?,
                shared_percent: 0 $(+ $percent)?,
                together_on: $crate::kernel!(@image $($image)?),
                gathers: $crate::kernel!(@gathers $($along)?),
            };

            // SAFETY: fields are visited in declaration order, which is the entry's order.
            unsafe impl $crate::Kernel for $args {
                fn spec() -> &'static $crate::KernelSpec {
                    &SPEC
                }
                fn for_each_arg(
                    &self,
                    visit: &mut dyn FnMut(*const ::core::ffi::c_void, $crate::ArgDescription),
                ) {
                    $(visit(
                        $crate::KernelArg::arg_pointer(&self.$field),
                        $crate::KernelArg::describe(&self.$field),
                    );)*
                }
                #[cfg(not(fuzzing))]
                fn run(self) {
                    $crate::kernel!(@begin $($waits)?);
                    $body(self)
                }
                // What is fuzzed runs no kernels, and instrumenting them all takes ten minutes.
                #[cfg(fuzzing)]
                fn run(self) {
                    let _ = $body;
                    unimplemented!("kernels are left out where `fuzzing` is set");
                }
            }
        };

        $(
            /// An image without the kernel has no other use for its body.
            #[cfg(all(target_arch = "nvptx64", not($image)))]
            const _: () = {
                #[allow(dead_code)]
                fn unused(args: $args) {
                    $body(args)
                }
            };
        )?

        /// Device entry. Flat parameters on purpose: the compiler then emits `ld.global`.
        #[cfg(all(target_arch = "nvptx64" $(, $image)?))]
        #[unsafe(no_mangle)]
        pub unsafe extern "ptx-kernel" fn $name($($field: $ty),*) {
            kernel!(@begin $($waits)?);
            $body($args { $($field),* })
        }
    };
    (@begin) => {
        $crate::gpu::let_next_start();
        $crate::gpu::wait_for_previous();
    };
    // The body waits, after what needs nothing of the launches before it.
    (@begin later) => {
        $crate::gpu::let_next_start();
    };
    (@begin and_lets) => {};
    (@gathers) => { false };
    (@gathers z) => { true };
    (@image) => { None };
    (@image $image:ident) => { Some(stringify!($image)) };
}

/// Projects a field, an array, of a kernel's shared struct: `shared!(Shared, partial)`.
#[cfg_attr(not(target_arch = "nvptx64"), macro_export)]
macro_rules! shared {
    ($layout:ty, $field:ident) => {
        $crate::gpu::SharedArray::project(core::mem::offset_of!($layout, $field), |s: &$layout| {
            &s.$field
        })
    };
}
