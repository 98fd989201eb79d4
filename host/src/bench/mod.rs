//! How fast things are here: every figure is measured in the run that reports it, and every share is
//! of a rate that was measured in the same run.

pub mod kernels;
pub mod model;
pub mod roofline;

use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use std::time::Duration;

/// Figures of one measurement, repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// In ascending order; at least one.
    sorted: Vec<f64>,
}

impl Spread {
    /// Of these figures; of none it is that of 0.
    pub fn of(mut figures: Vec<f64>) -> Spread {
        figures.sort_by(f64::total_cmp);
        if figures.is_empty() {
            figures.push(0.0);
        }
        Spread { sorted: figures }
    }

    /// All figures, in ascending order.
    pub fn figures(&self) -> &[f64] {
        &self.sorted
    }

    /// The smallest figure.
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The largest figure.
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The figure in the middle, or between the two that are.
    pub fn median(&self) -> f64 {
        let n = self.sorted.len();
        (self.sorted[(n - 1) / 2] + self.sorted[n / 2]) / 2.0
    }

    /// The standard deviation of the figures, 0 of a single one.
    pub fn deviation(&self) -> f64 {
        let n = self.sorted.len() as f64;
        let mean = self.sorted.iter().sum::<f64>() / n;
        let squares: f64 = self.sorted.iter().map(|x| (x - mean).powi(2)).sum();
        if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 }
    }
}

/// How fast a device copies within its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyRate {
    /// Bytes of the buffer that was copied.
    pub bytes: usize,
    /// Bytes read and bytes written together, a second.
    pub rate: Spread,
}

/// Bytes of the buffer that a GPU copies: many times its caches.
const COPY_BYTES: usize = 1 << 30;
/// As much where the emulator does it, and the least that is tried where memory is short.
const SMALL_COPY_BYTES: usize = 32 << 20;
/// Timed copies, and those before them that are not.
const COPIES: usize = 11;
const FIRST_COPIES: usize = 2;

/// Measures how fast the device copies within its memory. Each byte counts twice: it is read, and
/// written.
///
/// # Errors
/// When the device has no memory left for two buffers, or a copy fails.
pub fn copy_rate(device: &Device) -> Result<CopyRate> {
    let bytes = if device.is_emulator() { SMALL_COPY_BYTES } else { COPY_BYTES };
    let (from, to) = copy_buffers(device, bytes)?;
    let bytes = from.len();
    let mut rates = Vec::with_capacity(COPIES);
    for run in 0..FIRST_COPIES + COPIES {
        let start = device.mark()?;
        device.copy(from.view(), to.view_mut())?;
        let end = device.mark()?;
        let time = device.elapsed(&start, &end)?;
        if run >= FIRST_COPIES {
            rates.push(per_second(2 * bytes as u64, time));
        }
    }
    Ok(CopyRate { bytes, rate: Spread::of(rates) })
}

/// Two buffers of this size, or as large as memory allows.
fn copy_buffers(device: &Device, mut bytes: usize) -> Result<(Buffer<u8>, Buffer<u8>)> {
    loop {
        let pair = device.alloc::<u8>(bytes).and_then(|from| Ok((from, device.alloc(bytes)?)));
        match pair {
            Err(Error::OutOfMemory { .. }) if bytes > SMALL_COPY_BYTES => bytes /= 2,
            pair => return pair,
        }
    }
}

/// Work for a GPU to be at while the host starts what is measured: else the time between two marks
/// is the host's.
#[derive(Debug)]
struct HeadStart {
    /// None on the emulator, which works while it is called.
    buffers: Option<(Buffer<u8>, Buffer<u8>)>,
}

/// Bytes of one piece of it: about a tenth of a millisecond.
const HEAD_START_BYTES: usize = 128 << 20;

impl HeadStart {
    fn new(device: &Device) -> Result<HeadStart> {
        let buffers = match device.is_emulator() {
            true => None,
            false => Some(copy_buffers(device, HEAD_START_BYTES)?),
        };
        Ok(HeadStart { buffers })
    }

    /// Starts so many pieces.
    fn give(&self, device: &Device, pieces: usize) -> Result<()> {
        let Some((from, to)) = &self.buffers else { return Ok(()) };
        (0..pieces).try_for_each(|_| device.copy(from.view(), to.view_mut()))
    }
}

/// So many in this time, a second. Never infinite: a clock that didn't move counts as a nanosecond.
pub fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// Tokens without meaning, the same ones every time.
pub fn random_tokens(seed: u64, n_tokens: usize, n_vocab: usize) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    };
    (0..n_tokens).map(|_| (next() % n_vocab.max(1) as u64) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let spread = |figures: &[f64]| Spread::of(figures.to_vec());
        let four = spread(&[4.0, 1.0, 3.0, 10.0]);
        assert_eq!((four.min(), four.median(), four.max()), (1.0, 3.5, 10.0));
        assert_eq!(spread(&[5.0, 1.0, 2.0]).median(), 2.0);
        assert!((spread(&[2.0, 4.0, 6.0]).deviation() - 2.0).abs() < 1e-12);
        assert_eq!(spread(&[7.0]).deviation(), 0.0);
        assert_eq!(spread(&[]).max(), 0.0);
    }

    #[test]
    fn random_tokens_are_of_the_vocabulary_and_differ() {
        let tokens = random_tokens(1, 1000, 50);
        assert_eq!(tokens, random_tokens(1, 1000, 50));
        assert_ne!(tokens, random_tokens(2, 1000, 50));
        let found: std::collections::BTreeSet<u32> = tokens.into_iter().collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    }
}
