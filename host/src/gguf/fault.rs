//! What can be wrong with a GGUF file: the file, the place, the offset, the found and the expected.

use std::fmt;

/// A fault of a GGUF file: either its bytes break the format, or a key is not what a reader needs.
#[derive(Debug, thiserror::Error)]
#[error("{}: {place}{}: {problem}", quoted(.file), offset_text(*.offset))]
pub struct Fault {
    /// The file, or the name that its bytes were given.
    pub file: String,
    /// What was being read.
    pub place: Place,
    /// Byte offset in the file; none where the fault is an absence.
    pub offset: Option<u64>,
    /// What is wrong there.
    pub problem: Problem,
}

/// What was being read when a fault was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Magic, version and counts.
    Header,
    /// The metadata entry with this index, whose key isn't known yet.
    Entry(u64),
    /// The value of a metadata key.
    Key(String),
    /// The tensor description with this index, whose name isn't known yet.
    Description(u64),
    /// A named tensor.
    Tensor(String),
}

/// What is wrong: the facts found, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file ends inside something.
    #[error("{what} needs {needs} bytes, {left} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Its size in bytes.
        needs: u64,
        /// Bytes up to the end of the file.
        left: u64,
    },
    /// Not a GGUF file at all.
    #[error("the magic is \"{}\", expected \"GGUF\"", .found.escape_ascii())]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that we don't read.
    #[error("version {found}, expected 2 or 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// A file for machines of the other byte order.
    #[error("a big-endian file (version {found} when byte-swapped), expected little-endian")]
    BigEndian {
        /// The version, with its bytes in order.
        found: u32,
    },
    /// A count or length that the rest of the file can't hold.
    #[error("{found} {what} are claimed, expected at most {most}: {left} bytes are left")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The claim.
        found: u64,
        /// As many as the rest of the file can hold.
        most: u64,
        /// Bytes up to the end of the file.
        left: u64,
    },
    /// More tensors or metadata entries than any model has.
    #[error("{found} {what}, expected at most {most}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The count.
        found: u64,
        /// The most allowed.
        most: u64,
    },
    /// A key or a tensor name that is empty or too long.
    #[error("{what} has {found} bytes, expected 1 to {most}")]
    NameLength {
        /// Key or tensor name.
        what: &'static str,
        /// Its length.
        found: u64,
        /// The longest allowed.
        most: u64,
    },
    /// Text that isn't UTF-8.
    #[error("{what} is not UTF-8 from its byte {valid} on, expected UTF-8")]
    NotUtf8 {
        /// Which text.
        what: &'static str,
        /// Bytes before the first invalid one.
        valid: usize,
    },
    /// A value type that doesn't exist.
    #[error("value type {found}, expected 0 to 12")]
    UnknownValueType {
        /// The type's id.
        found: u32,
    },
    /// A boolean that is neither false nor true.
    #[error("a bool of {found}, expected 0 or 1")]
    NotBool {
        /// The byte.
        found: u8,
    },
    /// Arrays of arrays of arrays.
    #[error("arrays nested deeper than {most}, expected at most {most} levels")]
    Depth {
        /// The deepest nesting allowed.
        most: u32,
    },
    /// A second key or tensor of the same name.
    #[error("a second {what} of this name: entry {second} repeats entry {first}, expected one")]
    Duplicate {
        /// Key or tensor.
        what: &'static str,
        /// Index of the first.
        first: usize,
        /// Index of the second.
        second: usize,
    },
    /// `general.alignment` is no alignment.
    #[error("the alignment is {found}, expected a power of two as u32")]
    Alignment {
        /// The value, with its type.
        found: String,
    },
    /// A tensor with no dimensions, or with too many.
    #[error("{found} dimensions, expected 1 to {most}")]
    DimensionCount {
        /// The number of dimensions.
        found: u32,
        /// The most allowed.
        most: u32,
    },
    /// An empty dimension.
    #[error("dimension {index} is 0, expected at least 1")]
    ZeroDimension {
        /// Which dimension.
        index: usize,
    },
    /// Elements or bytes that don't fit in 64 bits.
    #[error("the size of {dims:?} overflows, expected less than 2^63 elements and bytes")]
    SizeOverflow {
        /// The dimensions.
        dims: Vec<u64>,
    },
    /// A type id that GGML never gave out.
    #[error("tensor type {found}, expected a GGML type id such as {known}")]
    UnknownTensorType {
        /// The id.
        found: u32,
        /// The types that we read.
        known: String,
    },
    /// A GGML type that we don't read.
    #[error("tensor type {name} (id {found}) is not supported, expected one of {known}")]
    UnsupportedTensorType {
        /// The id.
        found: u32,
        /// GGML's name for it.
        name: &'static str,
        /// The types that we read.
        known: String,
    },
    /// Rows that aren't whole blocks.
    #[error("rows of {found} elements, expected a multiple of {block}, the block of {format}")]
    PartialBlock {
        /// The row length.
        found: u64,
        /// Elements in one block.
        block: u64,
        /// The tensor's format.
        format: &'static str,
    },
    /// Data that doesn't begin on the file's alignment.
    #[error("data at offset {found}, expected a multiple of the alignment {alignment}")]
    OffsetAlignment {
        /// The offset in the data section.
        found: u64,
        /// The file's alignment.
        alignment: u32,
    },
    /// Data that isn't in the file.
    #[error(
        "{bytes} bytes of data at offset {found}, expected to end within the {section} bytes \
         of the data section"
    )]
    DataOutside {
        /// The offset in the data section.
        found: u64,
        /// The tensor's size.
        bytes: u64,
        /// Bytes in the data section.
        section: u64,
    },
    /// Data that belongs to another tensor.
    #[error("data at offset {found}, expected it behind {}, which ends at {end}", quoted(.other))]
    Overlap {
        /// The offset in the data section.
        found: u64,
        /// The tensor whose data begins before.
        other: String,
        /// Where that ends.
        end: u64,
    },
    /// A writer was given another amount of data than the tensor has.
    #[error("{found} bytes of data were given, expected {expected}")]
    DataSize {
        /// Bytes given.
        found: u64,
        /// The tensor's size.
        expected: u64,
    },
    /// A key that a reader can't do without.
    #[error("the key is missing, expected {expected}")]
    MissingKey {
        /// The type wanted.
        expected: &'static str,
    },
    /// A tensor that a reader can't do without.
    #[error("the tensor is missing")]
    MissingTensor,
    /// A key of another type.
    #[error("the value is {found}, expected {expected}")]
    WrongType {
        /// The type in the file.
        found: String,
        /// The type wanted.
        expected: &'static str,
    },
    /// A number that the wanted type can't hold.
    #[error("the value {found} does not fit, expected {expected}")]
    OutOfRange {
        /// The number, and where in an array it stands.
        found: String,
        /// The type wanted.
        expected: &'static str,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::Entry(index) => write!(f, "metadata entry {index}"),
            Place::Key(key) => write!(f, "key {}", quoted(key)),
            Place::Description(index) => write!(f, "tensor description {index}"),
            Place::Tensor(name) => write!(f, "tensor {}", quoted(name)),
        }
    }
}

fn offset_text(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |offset| format!(" at byte {offset}"))
}

/// Untrusted text for a message: control characters escaped, and not longer than a line.
pub fn quoted(text: &str) -> String {
    const MOST: usize = 80;
    let mut short: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}
