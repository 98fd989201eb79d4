//! Blocks of any bytes, in the format that the first byte chooses: a row decodes as its blocks do,
//! and what was decoded, or any numbers, can be encoded and decoded again.
#![no_main]

use ironwarp_fuzz::{Counting, within};
use kernels_gpu::quant::{Format, decode_row, encode_row};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let format = Format::ALL[usize::from(*first) % Format::ALL.len()];
    let (block_bytes, block_elems) = (format.block_bytes(), format.block_elems());

    let blocks = &bytes[..bytes.len() / block_bytes * block_bytes];
    let mut weights = vec![0.0; blocks.len() / block_bytes * block_elems];
    decode_row(format, blocks, &mut weights);
    for (block, weights) in blocks.chunks(block_bytes).zip(weights.chunks(block_elems)) {
        let mut alone = vec![1.0; block_elems];
        decode_row(format, block, &mut alone);
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        assert!(alone.iter().zip(weights).all(same), "a row is not its blocks");
    }
    again(format, &weights);

    let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let mut numbers: Vec<f32> = floats.collect();
    numbers.truncate(numbers.len() / block_elems * block_elems);
    again(format, &numbers);
    // The contract of encoding: finite numbers. They come back finite unless the block's scale,
    // at least an f16, is too small for them.
    for number in &mut numbers {
        *number = if number.is_finite() { number.clamp(-1024.0, 1024.0) } else { 1.0 };
    }
    let back = again(format, &numbers);
    assert!(back.iter().all(|weight| weight.is_finite()), "{numbers:?} became {back:?}");
});

/// Encodes and decodes; only the bytes of the result may be allocated.
fn again(format: Format, numbers: &[f32]) -> Vec<f32> {
    let n_blocks = numbers.len() / format.block_elems();
    let mut bytes = Vec::new();
    within(n_blocks * format.block_bytes() + 64, || encode_row(format, numbers, &mut bytes));
    assert_eq!(bytes.len(), n_blocks * format.block_bytes());
    let mut back = vec![0.0; numbers.len()];
    within(0, || decode_row(format, &bytes, &mut back));
    back
}
