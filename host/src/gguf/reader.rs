//! Reads the head of a GGUF file: everything before the tensors' data. What it yields has been
//! checked, so nothing behind it needs to.
//!
//! ```text
//! "GGUF" | version u32 | n_tensors u64 | n_entries u64
//! n_entries x  key: len u64, bytes | type u32 | value
//! n_tensors x  name: len u64, bytes | n_dims u32 | dims u64 x n_dims | type u32 | offset u64
//! padding to general.alignment (32 when absent) | data section
//! ```

use super::cursor::{At, Cursor};
use super::fault::{Fault, Place, Problem};
use super::tensor::{MAX_DIMS, TensorInfo, format_from_id};
use super::value::{Stored, Value, ValueType};

/// GGUF's own limit.
pub(super) const MAX_KEY_BYTES: u64 = 65535;
/// GGML's names end with a zero in 64 bytes; four times that leaves room for other writers.
pub(super) const MAX_NAME_BYTES: u64 = 256;
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Descriptions and entries are larger in memory than in the file. With this many at most, what is
/// kept of a head is never more than the file's own size and a constant (some 32 MiB).
pub(super) const MAX_ITEMS: u64 = 1 << 16;

/// Length of a key, one byte of it, the type, one byte of value.
const LEAST_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Length of a name, one byte of it, the number of dimensions, one of them, type, offset.
const LEAST_DESCRIPTION_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A metadata entry.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Stored,
    /// Where the entry begins in the file.
    start: u64,
    /// Where its value begins.
    pub(super) value_at: u64,
}

/// The checked head.
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) alignment: u32,
    pub(super) entries: Vec<Entry>,
    /// Indices into `entries`, sorted by key.
    pub(super) by_key: Vec<usize>,
    pub(super) tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, sorted by name.
    pub(super) by_name: Vec<usize>,
    /// Where the data section begins; the end of the file where there is none.
    pub(super) data_start: usize,
}

pub(super) fn read_head(bytes: &[u8], file: &str) -> Result<Head, Fault> {
    let mut reader = Reader { cursor: Cursor::new(bytes), file };
    let (version, n_tensors, n_entries) = reader.header()?;

    // Nothing is reserved from the counts: a vector grows with what was really there.
    let mut entries = Vec::new();
    for index in 0..n_entries {
        entries.push(reader.entry(index)?);
    }
    let by_key = reader.sorted(
        &entries,
        "key",
        |entry| &entry.key,
        |entry| (Place::Key(entry.key.clone()), entry.start),
    )?;
    let alignment = reader.alignment(bytes, &entries, &by_key)?;

    let mut described = Vec::new();
    for index in 0..n_tensors {
        described.push(reader.description(index)?);
    }
    let tensor_place = |info: &TensorInfo| Place::Tensor(info.name().to_string());
    let by_name = reader.sorted(
        &described,
        "tensor",
        |(info, _)| info.name(),
        |(info, at)| (tensor_place(info), *at),
    )?;

    // The head is inside a slice, so the sum is far from overflowing a u64. A file without
    // tensors may leave out the padding.
    let data_start = (reader.cursor.at() as u64).next_multiple_of(alignment.into());
    let data_start = usize::try_from(data_start).unwrap_or(usize::MAX).min(bytes.len());
    let section = (bytes.len() - data_start) as u64;
    for (info, at) in &described {
        check_data(info, alignment, section)
            .map_err(|problem| reader.fault(tensor_place(info), (*at, problem)))?;
    }
    apart(&described)
        .map_err(|(info, at, problem)| reader.fault(tensor_place(info), (at, problem)))?;
    let tensors = described.into_iter().map(|(info, _)| info).collect();
    Ok(Head { version, alignment, entries, by_key, tensors, by_name, data_start })
}

fn check_data(tensor: &TensorInfo, alignment: u32, section: u64) -> Result<(), Problem> {
    let (found, bytes) = (tensor.offset(), tensor.n_bytes());
    if found % u64::from(alignment) != 0 {
        return Err(Problem::OffsetAlignment { found, alignment });
    }
    match found.checked_add(bytes) {
        Some(end) if end <= section => Ok(()),
        _ => Err(Problem::DataOutside { found, bytes, section }),
    }
}

/// No byte is the data of two tensors.
fn apart(described: &[(TensorInfo, u64)]) -> Result<(), (&TensorInfo, u64, Problem)> {
    let mut order: Vec<&(TensorInfo, u64)> = described.iter().collect();
    order.sort_by_key(|(info, _)| info.offset());
    for pair in order.windows(2) {
        let [(before, _), (info, at)] = [pair[0], pair[1]];
        let end = before.offset() + before.n_bytes(); // within the section, so no overflow
        if end > info.offset() {
            let problem =
                Problem::Overlap { found: info.offset(), other: before.name().to_owned(), end };
            return Err((info, *at, problem));
        }
    }
    Ok(())
}

/// A count of the header.
fn items(cursor: &mut Cursor<'_>, what: &'static str, bytes_each: u64) -> At<u64> {
    let start = cursor.at() as u64;
    let found = cursor.count(what, bytes_each)?;
    if found > MAX_ITEMS {
        return Err((start, Problem::TooMany { what, found, most: MAX_ITEMS }));
    }
    Ok(found)
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    file: &'a str,
}

impl Reader<'_> {
    fn fault(&self, place: Place, (offset, problem): (u64, Problem)) -> Fault {
        Fault { file: self.file.to_string(), place, offset: Some(offset), problem }
    }

    fn header(&mut self) -> Result<(u32, u64, u64), Fault> {
        let cursor = &mut self.cursor;
        let mut read = || -> At<(u32, u64, u64)> {
            let found = cursor.array("the magic")?;
            if found != *b"GGUF" {
                return Err((0, Problem::Magic { found }));
            }
            let version = cursor.u32("the version")?;
            if !matches!(version, 2 | 3) {
                // A version is small, so one with an empty low half has its bytes reversed.
                let problem = match version & 0xffff == 0 && version != 0 {
                    true => Problem::BigEndian { found: version.swap_bytes() },
                    false => Problem::Version { found: version },
                };
                return Err((4, problem));
            }
            let n_tensors = items(cursor, "tensors", LEAST_DESCRIPTION_BYTES)?;
            let n_entries = items(cursor, "metadata entries", LEAST_ENTRY_BYTES)?;
            Ok((version, n_tensors, n_entries))
        };
        read().map_err(|at| self.fault(Place::Header, at))
    }

    fn entry(&mut self, index: u64) -> Result<Entry, Fault> {
        let start = self.cursor.at() as u64;
        let key = self.cursor.name("a key", MAX_KEY_BYTES);
        let key = key.map_err(|at| self.fault(Place::Entry(index), at))?.to_string();
        let cursor = &mut self.cursor;
        let mut read = || -> At<(u64, Stored)> {
            let value_type = ValueType::read(cursor)?;
            let value_at = cursor.at() as u64;
            let value = Value::read(cursor, value_type, 0)?;
            Ok((value_at, Stored::new(value, cursor)))
        };
        match read() {
            Ok((value_at, value)) => Ok(Entry { key, value, start, value_at }),
            Err(at) => Err(self.fault(Place::Key(key), at)),
        }
    }

    /// A description, and the offset at which it begins.
    fn description(&mut self, index: u64) -> Result<(TensorInfo, u64), Fault> {
        let start = self.cursor.at() as u64;
        let name = self.cursor.name("a tensor name", MAX_NAME_BYTES);
        let name = name.map_err(|at| self.fault(Place::Description(index), at))?.to_string();
        let tensor = self.shape(&name).map_err(|at| self.fault(Place::Tensor(name), at))?;
        Ok((tensor, start))
    }

    fn shape(&mut self, name: &str) -> At<TensorInfo> {
        let cursor = &mut self.cursor;
        let start = cursor.at() as u64;
        let n_dims = cursor.u32("the number of dimensions")?;
        if n_dims == 0 || n_dims as usize > MAX_DIMS {
            let most = MAX_DIMS as u32;
            return Err((start, Problem::DimensionCount { found: n_dims, most }));
        }
        let mut dims = [0; MAX_DIMS];
        let dims = &mut dims[..n_dims as usize];
        for dim in &mut *dims {
            *dim = cursor.u64("a dimension")?;
        }
        let type_at = cursor.at() as u64;
        let id = cursor.u32("a tensor type")?;
        let format = format_from_id(id).map_err(|problem| (type_at, problem))?;
        let offset = cursor.u64("a tensor offset")?;
        let tensor = TensorInfo::new(name.to_string(), format, dims);
        let tensor = tensor.map_err(|problem| (start, problem))?;
        Ok(tensor.at(offset))
    }

    /// The indices of `items` in the order of their names, no two of which may be the same.
    fn sorted<T>(
        &self,
        items: &[T],
        what: &'static str,
        name: impl Fn(&T) -> &str,
        place: impl Fn(&T) -> (Place, u64),
    ) -> Result<Vec<usize>, Fault> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&index| name(&items[index]));
        for pair in order.windows(2) {
            // The sort is stable, so the first comes first.
            let [first, second] = [pair[0], pair[1]];
            if name(&items[first]) == name(&items[second]) {
                let (place, at) = place(&items[second]);
                return Err(self.fault(place, (at, Problem::Duplicate { what, first, second })));
            }
        }
        Ok(order)
    }

    fn alignment(&self, bytes: &[u8], entries: &[Entry], by_key: &[usize]) -> Result<u32, Fault> {
        let Some(entry) = find(by_key, entries, |e| &e.key, ALIGNMENT_KEY) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        match entry.value.value(bytes) {
            Value::U32(alignment) if alignment.is_power_of_two() => Ok(alignment),
            value => {
                let ty = value.value_type();
                let number = value.as_integer();
                let found = number.map_or(format!("of type {ty}"), |n| format!("{n} as {ty}"));
                let problem = Problem::Alignment { found };
                Err(self.fault(Place::Key(entry.key.clone()), (entry.value_at, problem)))
            }
        }
    }
}

/// The item of that name.
pub(super) fn find<'a, T>(
    order: &[usize],
    items: &'a [T],
    name: impl Fn(&T) -> &str,
    wanted: &str,
) -> Option<&'a T> {
    let place = order.binary_search_by(|&index| name(&items[index]).cmp(wanted)).ok()?;
    Some(&items[order[place]])
}
