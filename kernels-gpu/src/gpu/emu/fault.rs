//! What the emulator reports.

use std::fmt;
use std::panic::Location;

/// A line of source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The file, as the compiler was given it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
}

impl From<&Location<'_>> for Site {
    fn from(location: &Location<'_>) -> Site {
        let (line, column) = (location.line(), location.column());
        Site { file: location.file().to_owned(), line, column }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A fault of a kernel, with the place where it happened.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kernel's entry name.
    pub kernel: &'static str,
    /// Block and thread, unless the launch itself was wrong.
    pub thread: Option<([u32; 3], u32)>,
    /// The access or operation.
    pub site: Option<Site>,
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
        other: ([u32; 3], u32),
        /// Where the other access is.
        other_site: Site,
    },
    /// An access before `wait_for_previous` to what a launch before uses that may still be at work: a read of what it
    /// writes, or a write.
    NotWaited {
        /// That launch's kernel.
        kernel: &'static str,
    },
    /// A block barrier that some threads never reach.
    MissedBarrier {
        /// A thread that is not there.
        absent: u32,
        /// Where that thread is instead; `None` if it has left the kernel.
        absent_site: Option<Site>,
    },
    /// A warp operation that some lanes never reach.
    MissedCollective {
        /// The operation.
        operation: &'static str,
        /// A thread that is not there.
        absent: u32,
        /// Where that thread is instead; `None` if it has left the kernel.
        absent_site: Option<Site>,
    },
    /// A wait for what never comes, however long the other threads and blocks run.
    Starved(Awaited),
    /// An operation that is used against its rules.
    Misuse(String),
    /// The kernel's code panicked, which a device can't.
    Panic(String),
    /// The host has too little for the emulator.
    Host(String),
}

/// What a thread waits for, and what there is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Signals that a counter counts.
    Signals {
        /// The counter's place in the view.
        counter: usize,
        /// Signals so far.
        found: u32,
        /// Signals that the thread waits for.
        n: u32,
    },
    /// The end of a phase.
    Phase {
        /// The phase counter's place in the array.
        counter: u32,
        /// The parity of the phase's number.
        parity: u32,
        /// The number of the running phase.
        running: u64,
        /// Arrivals that it lacks.
        arrivals: u32,
        /// Bytes that it lacks.
        bytes: i64,
    },
    /// Other threads at a barrier of some of the block's warps.
    Barrier {
        /// The barrier's number.
        id: u32,
        /// Threads that are there.
        found: u32,
        /// Threads that must come.
        n: u32,
    },
}

impl Fault {
    /// A fault that no thread has part in.
    pub(super) fn of_launch(kernel: &'static str, kind: FaultKind) -> Box<Fault> {
        Box::new(Fault { kernel, thread: None, site: None, kind })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        if let Some((block, thread)) = self.thread {
            write!(f, ", block {block:?}, thread {thread}")?;
        }
        if let Some(site) = &self.site {
            write!(f, ", {site}")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for Fault {}

struct Whereabouts<'a>(&'a Option<Site>);

impl fmt::Display for Whereabouts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(site) => write!(f, "is at {site}"),
            None => write!(f, "has left the kernel"),
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Signals { counter, found, n } => {
                write!(f, "{n} signals of counter {counter}: there are {found}")
            }
            Awaited::Phase { counter, parity, running, arrivals, bytes } => write!(
                f,
                "the end of a phase of parity {parity} of phase counter {counter}: phase {running} \
                 runs, and lacks {arrivals} arrivals and {bytes} bytes"
            ),
            Awaited::Barrier { id, found, n } => {
                write!(f, "{n} threads at barrier {id}: there are {found}")
            }
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
            FaultKind::Race { memory, other: (block, thread), other_site } => write!(
                f,
                "race on {memory} memory with block {block:?}, thread {thread}, {other_site}"
            ),
            FaultKind::NotWaited { kernel } => write!(
                f,
                "before `wait_for_previous` an access to what a launch of {kernel} uses, which may still be at \
                 work"
            ),
            FaultKind::MissedBarrier { absent, absent_site } => write!(
                f,
                "a block barrier that thread {absent} never reaches: it {}",
                Whereabouts(absent_site)
            ),
            FaultKind::MissedCollective { operation, absent, absent_site } => write!(
                f,
                "{operation} that thread {absent} of the warp never reaches: it {}",
                Whereabouts(absent_site)
            ),
            FaultKind::Starved(awaited) => write!(f, "waits in vain for {awaited}"),
            FaultKind::Misuse(what) => write!(f, "an operation is used against its rules: {what}"),
            FaultKind::Panic(what) => write!(f, "panic: {what}"),
            FaultKind::Host(what) => write!(f, "the host can't emulate this: {what}"),
        }
    }
}
