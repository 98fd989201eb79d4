//! GGML block formats, one file each: bit drawing, block, `decode` (the definition) and `encode`.
//! `for_each_quant!` is the one list of them; everything that depends on a format is made from it.

mod fit;
pub mod float;
mod k_scales;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
#[cfg(not(target_arch = "nvptx64"))]
mod rows;

#[cfg(not(target_arch = "nvptx64"))]
pub use rows::{decode_row, encode_row};

use crate::gpu::Plain;

/// The table of formats, in the order of GGML's ids: calls the macro `$then` once with a row
/// `Name = id, block type;` for each.
#[macro_export]
macro_rules! for_each_quant {
    ($then:ident) => {
        $then! {
            F32 = 0, $crate::quant::float::BlockF32;
            F16 = 1, $crate::quant::float::BlockF16;
            Q4_0 = 2, $crate::quant::q4_0::BlockQ4_0;
            Q4_1 = 3, $crate::quant::q4_1::BlockQ4_1;
            Q5_0 = 6, $crate::quant::q5_0::BlockQ5_0;
            Q5_1 = 7, $crate::quant::q5_1::BlockQ5_1;
            Q8_0 = 8, $crate::quant::q8_0::BlockQ8_0;
            Q2_K = 10, $crate::quant::q2_k::BlockQ2K;
            Q3_K = 11, $crate::quant::q3_k::BlockQ3K;
            Q4_K = 12, $crate::quant::q4_k::BlockQ4K;
            Q5_K = 13, $crate::quant::q5_k::BlockQ5K;
            Q6_K = 14, $crate::quant::q6_k::BlockQ6K;
            BF16 = 30, $crate::quant::float::BlockBf16;
            MXFP4 = 39, $crate::quant::mxfp4::BlockMxfp4;
        }
    };
}

/// One block of a format, as a GGUF file stores it.
///
/// # Safety
/// `Self` is `repr(C)` with the exact GGUF byte layout: any bytes of that size are a valid value.
pub unsafe trait QuantBlock: Plain {
    /// The format that the block belongs to.
    const FORMAT: Format;
    /// Weights in the block; a power of two.
    const ELEMS: usize;

    /// Weight `i`, counted modulo `ELEMS`: the definition, bit for bit what GGML computes. The
    /// products of scales and codes have at most 23 bits and are exact; only an added or subtracted
    /// minimum rounds, once. So other groupings and fused multiply-adds can change no more than the
    /// sign of a zero.
    fn decode(&self, i: usize) -> f32;

    /// A block near the first `ELEMS` values of `x`, which must be finite and small enough that the
    /// block's scale fits its format. For the host.
    fn encode(x: &[f32]) -> Self;
}

macro_rules! formats {
    ($($name:ident = $id:literal, $block:path;)*) => {
        /// A tensor's storage format, as GGUF names it. The discriminant is GGML's type id.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(non_camel_case_types, missing_docs)] // GGML's own names
        pub enum Format {
            $($name = $id,)*
        }

        impl Format {
            /// Every format, in the order of GGML's ids.
            pub const ALL: [Format; [$($id),*].len()] = [$(Format::$name),*];

            /// GGML's name, as `ironwarp inspect` prints it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Format::$name => stringify!($name),)*
                }
            }

            /// Weights in one block.
            pub const fn block_elems(self) -> usize {
                match self {
                    $(Format::$name => <$block as QuantBlock>::ELEMS,)*
                }
            }

            /// Bytes of one block in a GGUF file.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(Format::$name => size_of::<$block>(),)*
                }
            }
        }

        $(
            // SAFETY: `QuantBlock` promises that any bytes are a valid value and that the size is
            // GGUF's, which leaves no room for padding.
            unsafe impl Plain for $block {}
            const _: () = assert!(<$block as QuantBlock>::FORMAT as u32 == $id);
            const _: () = assert!(<$block as QuantBlock>::ELEMS.is_power_of_two());
        )*
    };
}
for_each_quant!(formats);

impl Format {
    /// The format with GGML's type id `id`, if it is one that we read.
    pub fn from_ggml_id(id: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|f| *f as u32 == id)
    }
}
