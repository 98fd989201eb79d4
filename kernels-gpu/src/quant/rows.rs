//! Whole rows on the host, the format known only at run time.

use super::{Format, QuantBlock};

macro_rules! rows {
    ($($name:ident = $id:literal, $block:path;)*) => {
        /// Decodes the blocks in `bytes` to `out`.
        ///
        /// # Panics
        /// If `bytes` is not exactly the whole blocks that hold `out.len()` weights.
        pub fn decode_row(format: Format, bytes: &[u8], out: &mut [f32]) {
            match format {
                $(Format::$name => decode::<$block>(bytes, out),)*
            }
        }

        /// Appends to `out` the blocks that are near `x`; each value must be finite.
        ///
        /// # Panics
        /// If `x` is not whole blocks.
        pub fn encode_row(format: Format, x: &[f32], out: &mut Vec<u8>) {
            match format {
                $(Format::$name => encode::<$block>(x, out),)*
            }
        }
    };
}
crate::for_each_quant!(rows);

fn decode<B: QuantBlock>(bytes: &[u8], out: &mut [f32]) {
    let (n_blocks, rest) = (out.len() / B::ELEMS, out.len() % B::ELEMS);
    assert!(
        rest == 0 && bytes.len() == n_blocks * size_of::<B>(),
        "{}: {} bytes are not the blocks of {} weights",
        B::FORMAT.name(),
        bytes.len(),
        out.len()
    );
    for (bytes, out) in bytes.chunks_exact(size_of::<B>()).zip(out.chunks_exact_mut(B::ELEMS)) {
        // SAFETY: `bytes` has the block's size, and any bytes of that size are a block.
        let block = unsafe { bytes.as_ptr().cast::<B>().read_unaligned() };
        for (i, weight) in out.iter_mut().enumerate() {
            *weight = block.decode(i);
        }
    }
}

fn encode<B: QuantBlock>(x: &[f32], out: &mut Vec<u8>) {
    assert!(
        x.len().is_multiple_of(B::ELEMS),
        "{}: {} weights are not whole blocks",
        B::FORMAT.name(),
        x.len()
    );
    out.reserve(x.len() / B::ELEMS * size_of::<B>());
    for x in x.chunks_exact(B::ELEMS) {
        let block = B::encode(x);
        // SAFETY: a block has no padding, so that all of its bytes are initialised.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(&block).cast::<u8>(), size_of::<B>())
        };
        out.extend_from_slice(bytes);
    }
}
