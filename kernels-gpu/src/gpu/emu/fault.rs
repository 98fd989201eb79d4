//! What the emulator reports.

use std::fmt;
use std::panic::Location;

/// A fault of a kernel, with the place where it happened.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kernel's entry name.
    pub kernel: &'static str,
    /// Block and thread, unless the launch itself was wrong.
    pub thread: Option<([u32; 3], u32)>,
    /// Source line of the access or operation.
    pub location: Option<&'static Location<'static>>,
    /// What was wrong.
    pub kind: FaultKind,
}

/// The kinds of fault.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch breaks the kernel's contract.
    Contract(String),
    /// An access past the end of a view.
    OutOfBounds {
        /// The element asked for.
        index: usize,
        /// Elements in the view.
        len: usize,
    },
    /// A wide access at an address that it can't have.
    Misaligned {
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        align: usize,
    },
    /// Shared memory read before anyone wrote it.
    Uninitialised {
        /// Byte offset in the block's shared memory.
        offset: u32,
    },
    /// Two threads touch the same bytes with nothing between them, one of them writing.
    Race {
        /// `shared` or `global`.
        memory: &'static str,
        /// Block and thread of the other access.
        other: (u32, u32),
        /// Where the other access is.
        other_location: &'static Location<'static>,
    },
    /// A block barrier that some threads never reach.
    MissedBarrier {
        /// A thread that is not there, and what it does instead.
        absent: u32,
        /// Where that thread waits; `None` if it has left the kernel.
        absent_location: Option<&'static Location<'static>>,
    },
    /// A warp operation that some lanes never reach.
    MissedCollective {
        /// The operation.
        operation: &'static str,
        /// A thread that is not there.
        absent: u32,
        /// Where that thread waits; `None` if it has left the kernel.
        absent_location: Option<&'static Location<'static>>,
    },
    /// The kernel's code panicked, which a device can't.
    Panic(String),
}

impl Fault {
    pub(super) fn contract(kernel: &'static str, what: String) -> Fault {
        Fault { kernel, thread: None, location: None, kind: FaultKind::Contract(what) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        if let Some((block, thread)) = self.thread {
            write!(f, ", block {block:?}, thread {thread}")?;
        }
        if let Some(location) = self.location {
            write!(f, ", {location}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for Fault {}

struct Whereabouts(Option<&'static Location<'static>>);

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(location) => write!(f, "waits at {location}"),
            None => write!(f, "has left the kernel"),
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultKind::Contract(what) => write!(f, "the launch breaks its contract: {what}"),
            FaultKind::OutOfBounds { index, len } => {
                write!(f, "element {index} of a view of {len}")
            }
            FaultKind::Misaligned { address, align } => {
                write!(f, "address {address:#x} is not a multiple of {align}")
            }
            FaultKind::Uninitialised { offset } => {
                write!(f, "shared memory at byte {offset} is read, but nobody wrote it")
            }
            FaultKind::Race { memory, other: (block, thread), other_location } => write!(
                f,
                "race on {memory} memory with thread {thread} of block {block} at {other_location}"
            ),
            FaultKind::MissedBarrier { absent, absent_location } => write!(
                f,
                "a block barrier that thread {absent} never reaches: it {}",
                Whereabouts(*absent_location)
            ),
            FaultKind::MissedCollective { operation, absent, absent_location } => write!(
                f,
                "{operation} that thread {absent} of the warp never reaches: it {}",
                Whereabouts(*absent_location)
            ),
            FaultKind::Panic(what) => write!(f, "panic: {what}"),
        }
    }
}
