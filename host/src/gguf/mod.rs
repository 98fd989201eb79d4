//! GGUF files, versions 2 and 3. A file is untrusted: a `Gguf` that exists has had every count,
//! length, offset, type and product checked against the bytes that are there, in checked
//! arithmetic, and later code needs no checks.
//!
//! What the fuzz target and the tests use is [`Gguf::parse`]; programs use [`Gguf::open`].

mod cursor;
mod fault;
mod metadata;
mod reader;
mod tensor;
mod value;
mod writer;

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::error::{Error, Result};
pub use fault::{Fault, Place, Problem, quoted};
use reader::Head;
pub use tensor::{MAX_DIMS, TensorInfo};
pub use value::{Array, Number, NumberArray, StringArray, Value, ValueType};
pub use writer::{Encode, FillTensor, Writer};

/// A GGUF file whose head has been checked.
pub struct Gguf {
    /// For messages.
    name: String,
    bytes: Bytes,
    head: Head,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Gguf {
    /// Maps a file and checks its head. The tensors' data is not touched.
    ///
    /// The file must stay as it is while it is mapped: if it shrinks, the system ends the program
    /// at the next access to the lost part; if its bytes change, so do the weights.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let map = map(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Gguf::from_bytes(Bytes::Mapped(map), path.display().to_string())
    }

    /// Checks the head of a file that is in memory; `name` is what messages call it.
    pub fn parse(bytes: impl Into<Vec<u8>>, name: impl Into<String>) -> Result<Gguf> {
        Gguf::from_bytes(Bytes::Owned(bytes.into()), name.into())
    }

    fn from_bytes(bytes: Bytes, name: String) -> Result<Gguf> {
        let head = reader::read_head(bytes.as_slice(), &name)?;
        Ok(Gguf { name, bytes, head })
    }

    /// The file's path, or the name given to `parse`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// GGUF's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.head.version
    }

    /// What every tensor's offset is a multiple of: a power of two.
    pub fn alignment(&self) -> u32 {
        self.head.alignment
    }

    /// The size of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.head.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        reader::find(&self.head.by_name, &self.head.tensors, TensorInfo::name, name)
    }

    /// The tensor of that name, or an error that says it is missing.
    pub fn require_tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| {
            let place = Place::Tensor(name.to_string());
            self.fault(place, None, Problem::MissingTensor)
        })
    }

    /// A tensor's data as it is in the file. The address is aligned to nothing in particular.
    ///
    /// # Panics
    /// If `info` comes from another file.
    pub fn tensor_bytes(&self, info: &TensorInfo) -> &[u8] {
        let own = self.tensor(info.name());
        assert!(own == Some(info), "{} is not a tensor of {}", info.name(), self.name);
        // The reader has seen that the data lies in the section, so every sum is in the slice.
        let section = &self.bytes.as_slice()[self.head.data_start..];
        &section[info.offset() as usize..][..info.n_bytes() as usize]
    }

    /// Gives back the memory that a part of a tensor's data took when it was read. It can be read again:
    /// the file has it still.
    pub fn forget(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes
            && map.as_ptr_range().contains(&part.as_ptr())
        {
            let start = part.as_ptr() as usize - map.as_ptr() as usize;
            let len = part.len().min(map.len() - start);
            // A hint: that it fails changes nothing.
            // SAFETY: pages of a map that nobody writes come back from the file as they were.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
        #[cfg(not(unix))]
        let _ = part;
    }

    fn fault(&self, place: Place, offset: Option<u64>, problem: Problem) -> Error {
        Fault { file: self.name.clone(), place, offset, problem }.into()
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

fn map(path: &Path) -> io::Result<Mmap> {
    // A pipe would block in `open` until somebody writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is read-only and private to this program, and only ever seen as bytes that
    // are decoded with their bounds checked. That no other process changes the file meanwhile is
    // the condition that `Gguf::open` states.
    unsafe { Mmap::map(&file) }
}
