//! Everything that can go wrong, with the facts in it.

use std::path::PathBuf;

/// A result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A GGUF file that breaks the format, or lacks what a reader of it needs.
    #[error(transparent)]
    Gguf(Box<crate::gguf::Fault>),
    /// A device, or the host, has too little memory.
    #[error("out of memory: {bytes} bytes are needed{free}", free = free_text(*.free))]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that the device had left, where it says so.
        free: Option<u64>,
    },
    /// A range that is not inside a buffer.
    #[error("elements {start}.. {len} more are not inside a buffer of {buffer}")]
    BufferRange {
        /// First element.
        start: usize,
        /// Elements asked for.
        len: usize,
        /// Elements in the buffer.
        buffer: usize,
    },
    /// A kernel's argument that points outside the device's live buffers.
    #[error("{kernel}: `{argument}` is not inside a live buffer of the device")]
    StrayView {
        /// The kernel.
        kernel: &'static str,
        /// Its argument.
        argument: &'static str,
    },
    /// A vocabulary that can't become a tokenizer.
    #[error(
        "{}: {key}{}: found {found}, expected {expected}",
        crate::gguf::quoted(.origin),
        entry(*.index)
    )]
    Vocabulary {
        /// Where the vocabulary comes from, usually a file.
        origin: String,
        /// The metadata key.
        key: &'static str,
        /// The entry, where the key holds an array.
        index: Option<usize>,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A token that the vocabulary doesn't have.
    #[error("token {id} is not in a vocabulary of {n_tokens}")]
    TokenId {
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        n_tokens: usize,
    },
    /// A character that the vocabulary can neither spell nor replace.
    #[error(
        "byte {at} of the text: no token spells {character:?}, and none stands for the unknown"
    )]
    Unspellable {
        /// The character.
        character: char,
        /// Its place in the text, in bytes.
        at: usize,
    },
    /// A kernel faulted in the emulator, or its launch broke its contract.
    #[error("{0}")]
    Fault(Box<kernels_gpu::gpu::emu::Fault>),
}

impl From<kernels_gpu::gpu::emu::Fault> for Error {
    fn from(fault: kernels_gpu::gpu::emu::Fault) -> Error {
        Error::Fault(Box::new(fault))
    }
}

impl From<crate::gguf::Fault> for Error {
    fn from(fault: crate::gguf::Fault) -> Error {
        Error::Gguf(Box::new(fault))
    }
}

fn free_text(free: Option<u64>) -> String {
    free.map_or_else(String::new, |free| format!(", {free} are free"))
}

fn entry(index: Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!("[{index}]"))
}
