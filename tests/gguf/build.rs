//! Puts a GGUF file down byte by byte: it writes what it is told, true or not.

use ironwarp::Gguf;
use ironwarp::gguf::ValueType;

pub const U32: u32 = ValueType::U32 as u32;
pub const STRING: u32 = ValueType::String as u32;
pub const ARRAY: u32 = ValueType::Array as u32;

/// Bytes of a file, put down in order.
#[derive(Clone, Default)]
pub struct Build(pub Vec<u8>);

impl Build {
    /// A header that claims these counts.
    pub fn head(version: u32, n_tensors: u64, n_entries: u64) -> Build {
        Build(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_entries)
    }

    pub fn v3(n_tensors: u64, n_entries: u64) -> Build {
        Build::head(3, n_tensors, n_entries)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Build {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u32(self, value: u32) -> Build {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> Build {
        self.bytes(&value.to_le_bytes())
    }

    pub fn text(self, text: &str) -> Build {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    pub fn key(self, key: &str, ty: u32) -> Build {
        self.text(key).u32(ty)
    }

    pub fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Build {
        let build = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(build, |build, &dim| build.u64(dim)).u32(ty).u64(offset)
    }

    pub fn pad(mut self, alignment: usize) -> Build {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }

    pub fn zeros(mut self, n: usize) -> Build {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    pub fn open(self) -> Gguf {
        Gguf::parse(self.0, "good.gguf").unwrap()
    }

    pub fn refusal(self) -> String {
        match Gguf::parse(self.0, "bad.gguf") {
            Ok(_) => panic!("the file was accepted"),
            Err(error) => error.to_string(),
        }
    }
}
