//! Writes GGUF version 3. The head is put together in memory, the tensors' data is streamed: a
//! file of any size needs no more memory than its head.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use kernels_gpu::quant::Format;

use super::fault::{Fault, Place, Problem};
use super::reader::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_KEY_BYTES, MAX_NAME_BYTES};
use super::tensor::TensorInfo;
use super::value::{Value, ValueType};
use crate::error::{Error, Result};

/// A GGUF file in the making: first its metadata and tensors, then [`Writer::write_file`].
pub struct Writer {
    /// For messages.
    name: String,
    alignment: u32,
    /// The metadata as it will stand in the file.
    entries: Vec<u8>,
    /// Keys and indices.
    keys: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    /// Names and indices.
    names: HashMap<String, usize>,
    /// Bytes of the data section so far, a multiple of the alignment.
    section: u64,
}

/// A value that can stand in the metadata.
pub trait Encode {
    /// Its type.
    fn value_type(&self) -> ValueType;
    /// Appends its bytes, without the type.
    fn encode(&self, out: &mut Vec<u8>);
}

impl Writer {
    /// An empty file of the usual alignment, 32; `name` is what messages call it.
    pub fn new(name: impl Into<String>) -> Writer {
        Writer {
            name: name.into(),
            alignment: DEFAULT_ALIGNMENT,
            entries: Vec::new(),
            keys: HashMap::new(),
            tensors: Vec::new(),
            names: HashMap::new(),
            section: 0,
        }
    }

    /// Appends a metadata entry: a number, a bool, a string, a slice of these, or a `Value`.
    ///
    /// `general.alignment` changes the layout of the tensors and so must come before them.
    pub fn entry(&mut self, key: &str, value: &(impl Encode + ?Sized)) -> Result<()> {
        let place = || Place::Key(key.to_string());
        check_new("key", key, MAX_KEY_BYTES, &self.keys).map_err(|p| self.fault(place(), p))?;
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        if key == ALIGNMENT_KEY {
            let number = match (value.value_type(), bytes[..].try_into()) {
                (ValueType::U32, Ok(bytes)) => u32::from_le_bytes(bytes),
                _ => 0,
            };
            if !number.is_power_of_two() || !self.tensors.is_empty() {
                let (ty, tensors) = (value.value_type(), self.tensors.len());
                let found = format!("{number} as {ty} behind {tensors} tensors");
                return Err(self.fault(place(), Problem::Alignment { found }));
            }
            self.alignment = number;
        }
        self.keys.insert(key.to_string(), self.keys.len());
        key.append(&mut self.entries);
        (value.value_type() as u32).append(&mut self.entries);
        self.entries.append(&mut bytes);
        Ok(())
    }

    /// Appends a tensor; its data comes when the file is written.
    pub fn tensor(&mut self, name: &str, format: Format, dims: &[u64]) -> Result<()> {
        let info = self
            .describe(name, format, dims)
            .map_err(|problem| self.fault(Place::Tensor(name.to_string()), problem))?;
        self.section = info.offset() + padded(info.n_bytes(), self.alignment);
        self.names.insert(name.to_string(), self.tensors.len());
        self.tensors.push(info);
        Ok(())
    }

    fn describe(&self, name: &str, format: Format, dims: &[u64]) -> Result<TensorInfo, Problem> {
        check_new("tensor", name, MAX_NAME_BYTES, &self.names)?;
        let info = TensorInfo::new(name.to_string(), format, dims)?;
        // A tensor has less than 2^63 bytes, and so had the section: the sum is a u64.
        if self.section + info.n_bytes() > i64::MAX as u64 - u64::from(self.alignment) {
            return Err(Problem::SizeOverflow { dims: dims.to_vec() });
        }
        Ok(info.at(self.section))
    }

    /// The tensors so far, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The size that the file will have.
    pub fn file_bytes(&self) -> u64 {
        self.head().len() as u64 + self.section
    }

    /// Writes the file; `data` is called for each tensor in order and writes exactly its bytes.
    pub fn write(&self, out: &mut impl Write, mut data: impl FillTensor) -> Result<()> {
        let io = |source| Error::Io { path: self.name.as_str().into(), source };
        out.write_all(&self.head()).map_err(io)?;
        for info in &self.tensors {
            let mut section = TensorData { out: &mut *out, left: info.n_bytes() };
            data.fill(info, &mut section).map_err(io)?;
            if section.left != 0 {
                let [expected, found] = [info.n_bytes(), info.n_bytes() - section.left];
                let problem = Problem::DataSize { found, expected };
                return Err(self.fault(Place::Tensor(info.name().to_string()), problem));
            }
            let padding = padded(info.n_bytes(), self.alignment) - info.n_bytes();
            io::copy(&mut io::Read::take(io::repeat(0), padding), out).map_err(io)?;
        }
        out.flush().map_err(io)
    }

    /// As `write`, to a file: under the name `PATH.part` until it is complete, so that nothing
    /// incomplete ever bears the name.
    pub fn write_file(&self, path: impl AsRef<Path>, data: impl FillTensor) -> Result<()> {
        let path = path.as_ref();
        let mut part = path.as_os_str().to_os_string();
        part.push(".part");
        let part = Path::new(&part);
        let io = |source| Error::Io { path: part.to_path_buf(), source };
        let mut file = File::create(part).map_err(io)?;
        let written = self.write(&mut file, data);
        drop(file);
        let done = written.and_then(|()| std::fs::rename(part, path).map_err(io));
        if done.is_err() {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(part);
        }
        done
    }

    fn head(&self) -> Vec<u8> {
        let mut head = b"GGUF".to_vec();
        3u32.append(&mut head);
        (self.tensors.len() as u64).append(&mut head);
        (self.keys.len() as u64).append(&mut head);
        head.extend_from_slice(&self.entries);
        for info in &self.tensors {
            info.name().append(&mut head);
            (info.dims().len() as u32).append(&mut head);
            info.dims().iter().for_each(|dim| dim.append(&mut head));
            (info.format() as u32).append(&mut head);
            info.offset().append(&mut head);
        }
        head.resize(padded(head.len() as u64, self.alignment) as usize, 0);
        head
    }

    fn fault(&self, place: Place, problem: Problem) -> Error {
        Fault { file: self.name.clone(), place, offset: None, problem }.into()
    }
}

/// Writes the data of one tensor after another.
pub trait FillTensor {
    /// Writes the bytes of `info`, all of them and no more.
    fn fill(&mut self, info: &TensorInfo, out: &mut dyn Write) -> io::Result<()>;
}

impl<F: FnMut(&TensorInfo, &mut dyn Write) -> io::Result<()>> FillTensor for F {
    fn fill(&mut self, info: &TensorInfo, out: &mut dyn Write) -> io::Result<()> {
        self(info, out)
    }
}

/// The place of one tensor's data: takes that many bytes.
struct TensorData<'a, W> {
    out: &'a mut W,
    left: u64,
}

impl<W: Write> Write for TensorData<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Beyond the end nothing is taken, which `write_all` reports as an error.
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        let written = self.out.write(&bytes[..most])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn padded(bytes: u64, alignment: u32) -> u64 {
    bytes.next_multiple_of(alignment.into())
}

fn check_new(
    what: &'static str,
    name: &str,
    most: u64,
    names: &HashMap<String, usize>,
) -> Result<(), Problem> {
    let found = name.len() as u64;
    if found == 0 || found > most {
        return Err(Problem::NameLength { what, found, most });
    }
    match names.get(name) {
        Some(&first) => Err(Problem::Duplicate { what, first, second: names.len() }),
        None => Ok(()),
    }
}

/// A value that can stand in an array.
pub trait Element {
    /// Its type.
    const TYPE: ValueType;
    /// Appends its bytes.
    fn append(&self, out: &mut Vec<u8>);
}

macro_rules! number_elements {
    ($($ty:ident $value_type:ident),*) => {
        $(impl Element for $ty {
            const TYPE: ValueType = ValueType::$value_type;

            fn append(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}

number_elements!(u8 U8, i8 I8, u16 U16, i16 I16, u32 U32, i32 I32, f32 F32);
number_elements!(u64 U64, i64 I64, f64 F64);

impl Element for bool {
    const TYPE: ValueType = ValueType::Bool;

    fn append(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Element for str {
    const TYPE: ValueType = ValueType::String;

    fn append(&self, out: &mut Vec<u8>) {
        (self.len() as u64).append(out);
        out.extend_from_slice(self.as_bytes());
    }
}

impl Element for String {
    const TYPE: ValueType = ValueType::String;

    fn append(&self, out: &mut Vec<u8>) {
        self.as_str().append(out);
    }
}

impl<T: Element + ?Sized> Element for &T {
    const TYPE: ValueType = T::TYPE;

    fn append(&self, out: &mut Vec<u8>) {
        (*self).append(out);
    }
}

impl<T: Element + ?Sized> Encode for T {
    fn value_type(&self) -> ValueType {
        T::TYPE
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.append(out);
    }
}

impl<T: Element> Encode for [T] {
    fn value_type(&self) -> ValueType {
        ValueType::Array
    }

    fn encode(&self, out: &mut Vec<u8>) {
        (T::TYPE as u32).append(out);
        (self.len() as u64).append(out);
        for element in self {
            element.append(out);
        }
    }
}

/// So that the metadata of one file can go into another.
impl Encode for Value<'_> {
    fn value_type(&self) -> ValueType {
        Value::value_type(self)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Value::U8(v) => v.append(out),
            Value::I8(v) => v.append(out),
            Value::U16(v) => v.append(out),
            Value::I16(v) => v.append(out),
            Value::U32(v) => v.append(out),
            Value::I32(v) => v.append(out),
            Value::F32(v) => v.append(out),
            Value::Bool(v) => v.append(out),
            Value::String(v) => v.append(out),
            Value::U64(v) => v.append(out),
            Value::I64(v) => v.append(out),
            Value::F64(v) => v.append(out),
            Value::Array(array) => {
                (array.elem_type() as u32).append(out);
                (array.len() as u64).append(out);
                out.extend_from_slice(array.as_bytes());
            }
        }
    }
}
