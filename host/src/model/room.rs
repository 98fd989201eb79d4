//! Whether a model fits a device, told before anything is loaded.

use super::{MemoryNeed, Options, memory_need};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// Refuses a model that the device has too little memory for.
///
/// # Errors
/// When it has, with the longest context that would fit; or the file is not a model that we can run.
pub fn check_memory(device: &Device, gguf: &Gguf, options: &Options) -> Result<()> {
    let Some(free) = device.free_memory()? else { return Ok(()) };
    let need = memory_need(gguf, options)?;
    if need.total() <= free {
        return Ok(());
    }
    let asked = match options.context {
        Some(context) => context,
        None => super::Config::read(gguf)?.max_context,
    };
    let fits = |context: usize| {
        let options = Options { context: Some(context), ..*options };
        memory_need(gguf, &options).is_ok_and(|need| need.total() <= free)
    };
    // More context never needs less: `fits` holds up to some context, and not from there on.
    let (mut fitting, mut too_long) = (0, asked);
    while too_long - fitting > 1 {
        let middle = fitting + (too_long - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            too_long = middle;
        }
    }
    let file = gguf.name().to_owned();
    Err(Error::TooLittleMemory(Box::new(TooLittle { file, need, free, longest: fitting })))
}

/// A model, and the memory that it doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLittle {
    /// The model's file.
    pub file: String,
    /// What it needs.
    pub need: MemoryNeed,
    /// Bytes that the device has left.
    pub free: u64,
    /// Tokens of the longest context that would fit; 0: none.
    pub longest: usize,
}

impl std::fmt::Display for TooLittle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / (1u64 << 20) as f64;
        let MemoryNeed { weights, cache, workspace } = self.need;
        write!(
            f,
            "{}: {:.1} MiB of device memory are needed (weights {:.1}, cache {:.1}, buffers {:.1}), \
             {:.1} are free; ",
            self.file,
            mib(self.need.total()),
            mib(weights),
            mib(cache),
            mib(workspace),
            mib(self.free)
        )?;
        match self.longest {
            0 => write!(f, "no context is short enough; a smaller quantisation might fit"),
            longest => write!(f, "a context of {longest} tokens would fit: --ctx {longest}"),
        }
    }
}
