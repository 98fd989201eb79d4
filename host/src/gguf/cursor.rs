//! A position in untrusted bytes. Nothing is read past the end, and no length is believed.

use super::fault::Problem;

/// A fault and the offset at which it was found; the reader adds file and place.
pub(super) type At<T> = Result<T, (u64, Problem)>;

#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Offset from the first byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes up to the end.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64, what: &'static str) -> At<&'a [u8]> {
        let left = self.left();
        if len > left {
            return Err((self.at as u64, Problem::Truncated { what, needs: len, left }));
        }
        // `len` is at most the length of a slice, so it is a usize and the sum is in the slice.
        let end = self.at + len as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> At<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> At<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> At<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `bytes_each`, held against the bytes that are left.
    pub(super) fn count(&mut self, what: &'static str, bytes_each: u64) -> At<u64> {
        let start = self.at as u64;
        let found = self.u64("a count")?;
        let left = self.left();
        let most = left / bytes_each;
        if found > most {
            return Err((start, Problem::Count { what, found, most, left }));
        }
        Ok(found)
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &'static str) -> At<&'a str> {
        let len = self.u64("a length")?;
        let start = self.at as u64;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map_err(|error| (start, Problem::NotUtf8 { what, valid: error.valid_up_to() }))
    }

    /// As `text`, for keys and tensor names: not empty, and at most `most` bytes.
    pub(super) fn name(&mut self, what: &'static str, most: u64) -> At<&'a str> {
        let start = self.at as u64;
        let found = Cursor { ..*self }.u64("a length")?;
        if found == 0 || found > most {
            return Err((start, Problem::NameLength { what, found, most }));
        }
        self.text(what)
    }
}
