//! Everything that can go wrong, with the facts in it.

use std::path::PathBuf;

use crate::driver::DriverError;
use crate::ptx::Image;

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
    /// A model of sizes that can't be.
    #[error("{what} is {found}, expected {expected}")]
    ModelSize {
        /// Which size.
        what: &'static str,
        /// The size asked for.
        found: u32,
        /// What it may be.
        expected: String,
    },
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
    /// A file that doesn't say how conversations are written.
    #[error(
        "{}: no chat template (tokenizer.chat_template): write the prompt as the model's makers \
         tell, and give it as it is",
        crate::gguf::quoted(.origin)
    )]
    NoChatTemplate {
        /// The file.
        origin: String,
    },
    /// A chat template that can't be used.
    #[error(
        "{}: tokenizer.chat_template{}: {reason}",
        crate::gguf::quoted(.origin),
        line_text(*.line)
    )]
    ChatTemplate {
        /// The file.
        origin: String,
        /// Where in the template, if it is known.
        line: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },
    /// A vocabulary without the special tokens of GPT-OSS's conversations.
    #[error("the vocabulary has no {token}, which conversations in the Harmony format need")]
    NoHarmonyToken {
        /// The token's spelling.
        token: &'static str,
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
    /// There is no usable NVIDIA driver.
    #[error(transparent)]
    Driver(DriverError),
    /// A card that is not there.
    #[error("there is no GPU {ordinal}: the driver found {n_devices}, counted from 0")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: u32,
        /// Cards that there are.
        n_devices: u32,
    },
    /// A card that can't run the kernels.
    #[error(
        "{card} has compute capability {}.{}, and the {image} kernels need {}",
        .capability.0, .capability.1, .image.needs()
    )]
    UnsupportedCard {
        /// The card's name.
        card: String,
        /// Its compute capability.
        capability: (u32, u32),
        /// The image that was to run.
        image: Image,
    },
    /// The driver refused something.
    #[error("{operation} failed: {reason}")]
    Cuda {
        /// What was tried.
        operation: String,
        /// The driver's code.
        code: i32,
        /// The code's name and meaning.
        reason: String,
    },
    /// A kernel could not be started.
    #[error(
        "{kernel} could not be started with grid {grid:?}, block {block}, {shared_bytes} bytes of \
         shared memory: {reason}"
    )]
    Launch {
        /// The kernel.
        kernel: &'static str,
        /// Blocks.
        grid: [u32; 3],
        /// Threads of a block.
        block: u32,
        /// Bytes of dynamic shared memory.
        shared_bytes: u32,
        /// Why.
        reason: String,
    },
    /// The driver could not compile a kernel.
    #[error("the driver can't compile {kernel} ({image}) for {card}: {reason}\n{log}")]
    Compile {
        /// The kernel.
        kernel: &'static str,
        /// The image that it is from.
        image: Image,
        /// The card's name.
        card: String,
        /// The driver's code, by name and meaning.
        reason: String,
        /// What its compiler said.
        log: String,
    },
    /// A kernel needs more shared memory than the card gives a block.
    #[error("{kernel} needs {needed} bytes of shared memory, {card} has {available} for a block")]
    SharedMemory {
        /// The kernel.
        kernel: &'static str,
        /// Bytes that it needs.
        needed: u32,
        /// The card's name.
        card: String,
        /// Bytes that a block may have.
        available: u32,
    },
    /// A copy from or to the host while a graph is recorded.
    #[error("{operation} is not possible while a graph is recorded")]
    WhileRecording {
        /// What was tried.
        operation: &'static str,
    },
    /// A tensor that an operation can't take.
    #[error("{op}: {tensor}: {found} {what}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The tensor.
        tensor: String,
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A file whose model we can't run.
    #[error("{file}: {what}")]
    Model {
        /// The file.
        file: String,
        /// What it says, and what was expected.
        what: String,
    },
    /// A sequence that the cache has no room for.
    #[error("sequence {sequence} is not in the cache, which holds {n_sequences}")]
    UnknownSequence {
        /// The sequence.
        sequence: usize,
        /// Sequences of the cache.
        n_sequences: usize,
    },
    /// More tokens in one step than the model was set up for.
    #[error("a step of {tokens} tokens; this model takes {limit} at a time")]
    BatchTooLarge {
        /// Tokens of the batch.
        tokens: usize,
        /// Most that a step takes.
        limit: usize,
    },
    /// A token past the end of the context.
    #[error("position {position} is past the context of {context} tokens; ask for a longer one")]
    ContextFull {
        /// The token's position.
        position: usize,
        /// Tokens that the cache holds.
        context: usize,
    },
    /// A prompt without a token.
    #[error("the prompt has no token to go on from")]
    EmptyPrompt,
    /// A model that the device has too little memory for.
    #[error("{0}")]
    TooLittleMemory(Box<crate::model::TooLittle>),
    /// More tokens to take back than the cache can.
    #[error("{n_tokens} tokens can't be taken back, at most {most}")]
    Rewind {
        /// Tokens asked for.
        n_tokens: usize,
        /// Tokens that can.
        most: usize,
    },
    /// A text with nothing in it to score.
    #[error("{tokens} tokens are too few to score; at least {needed} are needed")]
    TextTooShort {
        /// Tokens that there are.
        tokens: usize,
        /// Fewest that will do.
        needed: usize,
    },
    /// A sampling setting outside its range.
    #[error("{name} is {value}, it must be {range}")]
    Sampling {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A kernel that gave something else than its definition does.
    #[error("{bench}: {element}: found {found}, expected {expected} to within {allowed:e}")]
    WrongResult {
        /// What was run.
        bench: String,
        /// The element.
        element: String,
        /// What the kernel gave.
        found: f64,
        /// What its definition gives.
        expected: f64,
        /// The most that a right result is off by.
        allowed: f64,
    },
    /// A bench that launched something else than what it is named after.
    #[error("{bench}: launched {found:?}, not what its name says")]
    OtherKernels {
        /// The bench.
        bench: String,
        /// What it launched.
        found: Vec<&'static str>,
    },
    /// A kernel that the image of the card does not have.
    #[error("{kernel} is not in the PTX image")]
    UnknownKernel {
        /// The kernel.
        kernel: &'static str,
    },
    /// A kernel faulted in the emulator, or its launch broke its contract.
    #[error("{0}")]
    Fault(Box<kernels_gpu::gpu::emu::Fault>),
}

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Error {
        Error::Driver(error)
    }
}

impl From<Box<kernels_gpu::gpu::emu::Fault>> for Error {
    fn from(fault: Box<kernels_gpu::gpu::emu::Fault>) -> Error {
        Error::Fault(fault)
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

fn line_text(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

fn entry(index: Option<usize>) -> String {
    index.map_or_else(String::new, |index| format!("[{index}]"))
}
