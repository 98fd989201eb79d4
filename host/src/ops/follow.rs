//! The batch of a decode step made that of the step behind it.

use crate::device::{Buffer, Device};
use crate::error::Result;
use kernels_gpu::follow::{BLOCK, Follow};
use kernels_gpu::gpu::U32x4;

/// Where a step of one token a sequence has what the next one changes; [n_sequences] each, or more.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The tokens.
    pub tokens: &'a Buffer<u32>,
    /// Their positions.
    pub positions: &'a Buffer<u32>,
    /// Attention's tiles.
    pub tiles: &'a Buffer<U32x4>,
    /// What the sampler counts by.
    pub counters: &'a Buffer<u32>,
}

/// The `chosen` tokens become those of the step, everything else goes one further.
///
/// # Errors
/// When the launch fails.
pub fn follow(
    device: &Device,
    chosen: &Buffer<u32>,
    step: Step<'_>,
    n_sequences: usize,
) -> Result<()> {
    let kernel = Follow {
        chosen: chosen.view(),
        tokens: step.tokens.view_mut(),
        positions: step.positions.view_mut(),
        tiles: step.tiles.view_mut(),
        counters: step.counters.view_mut(),
        n_sequences: n_sequences as u32,
    };
    device.launch(kernel, n_sequences.div_ceil(BLOCK as usize))
}
