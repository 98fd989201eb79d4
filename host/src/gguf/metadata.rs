//! Typed access to the metadata. A key that is absent is `None`; one that is there with a value
//! of the wrong kind is an error, and so is an absent one that is required.

use super::Gguf;
use super::fault::{Place, Problem};
use super::reader::{self, Entry};
use super::value::{Array, Number, NumberArray, StringArray, Value};
use crate::error::{Error, Result};

const STRING: &str = "a string";
const BOOL: &str = "a bool";
const STRINGS: &str = "an array of strings";

impl Gguf {
    /// The entries in the order of the file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        let file = self.bytes.as_slice();
        self.head.entries.iter().map(move |entry| (entry.key.as_str(), entry.value.value(file)))
    }

    /// The value of a key, whatever its type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.entry(key).map(|entry| entry.value.value(self.bytes.as_slice()))
    }

    /// An integer of any width that fits in a `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.number(key)
    }

    /// An integer of any width that fits in a `u64`.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.number(key)
    }

    /// An f32, or an f64 rounded to one.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.number(key)
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, BOOL, |value| match value {
            Value::Bool(b) => Some(b),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, STRING, |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// An array of anything.
    pub fn array(&self, key: &str) -> Result<Option<Array<'_>>> {
        self.typed(key, "an array", |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })
    }

    /// An array of strings, as it lies in the file.
    pub fn strings(&self, key: &str) -> Result<Option<StringArray<'_>>> {
        self.typed(key, STRINGS, |value| match value {
            Value::Array(array) => StringArray::new(array),
            _ => None,
        })
    }

    /// An array of integers of any width, each of which fits in a `u32`.
    pub fn u32s(&self, key: &str) -> Result<Option<NumberArray<'_, u32>>> {
        self.numbers(key)
    }

    /// An array of integers of any width, each of which fits in an `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<NumberArray<'_, i32>>> {
        self.numbers(key)
    }

    /// An array of f32, or of f64 rounded to them.
    pub fn f32s(&self, key: &str) -> Result<Option<NumberArray<'_, f32>>> {
        self.numbers(key)
    }

    /// `u32`, for a key that must be there.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.required(key, <u32 as Number>::NAME, self.u32(key))
    }

    /// `u64`, for a key that must be there.
    pub fn require_u64(&self, key: &str) -> Result<u64> {
        self.required(key, <u64 as Number>::NAME, self.u64(key))
    }

    /// `f32`, for a key that must be there.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.required(key, <f32 as Number>::NAME, self.f32(key))
    }

    /// `bool`, for a key that must be there.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        self.required(key, BOOL, self.bool(key))
    }

    /// `str`, for a key that must be there.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.required(key, STRING, self.str(key))
    }

    /// `strings`, for a key that must be there.
    pub fn require_strings(&self, key: &str) -> Result<StringArray<'_>> {
        self.required(key, STRINGS, self.strings(key))
    }

    /// `u32s`, for a key that must be there.
    pub fn require_u32s(&self, key: &str) -> Result<NumberArray<'_, u32>> {
        self.required(key, <u32 as Number>::ARRAY_NAME, self.u32s(key))
    }

    /// `i32s`, for a key that must be there.
    pub fn require_i32s(&self, key: &str) -> Result<NumberArray<'_, i32>> {
        self.required(key, <i32 as Number>::ARRAY_NAME, self.i32s(key))
    }

    /// `f32s`, for a key that must be there.
    pub fn require_f32s(&self, key: &str) -> Result<NumberArray<'_, f32>> {
        self.required(key, <f32 as Number>::ARRAY_NAME, self.f32s(key))
    }

    /// An error about the value of a key, for readers who expect more than a type of it: it names
    /// the file, the key and its place in it.
    pub fn unfit(&self, key: &str, found: impl ToString, expected: &'static str) -> Error {
        let at = self.entry(key).map(|entry| entry.value_at);
        let problem = Problem::OutOfRange { found: found.to_string(), expected };
        self.fault(Place::Key(key.to_string()), at, problem)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        reader::find(&self.head.by_key, &self.head.entries, |entry| &entry.key, key)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        let value = entry.value.value(self.bytes.as_slice());
        pick(value).map(Some).ok_or_else(|| {
            let problem = Problem::WrongType { found: value.kind(), expected };
            self.fault(Place::Key(key.to_string()), Some(entry.value_at), problem)
        })
    }

    fn number<T: Number>(&self, key: &str) -> Result<Option<T>> {
        let value =
            self.typed(key, T::NAME, |value| T::accepts(value.value_type()).then_some(value))?;
        let Some(value) = value else { return Ok(None) };
        T::from_value(&value).map(Some).ok_or_else(|| self.unfit(key, value, T::NAME))
    }

    fn numbers<T: Number>(&self, key: &str) -> Result<Option<NumberArray<'_, T>>> {
        let view = self.typed(key, T::ARRAY_NAME, |value| match value {
            Value::Array(array) => NumberArray::new(array),
            _ => None,
        })?;
        view.transpose().map_err(|(index, value)| {
            self.unfit(key, format_args!("{value} of element {index}"), T::ARRAY_NAME)
        })
    }

    fn required<T>(&self, key: &str, expected: &'static str, got: Result<Option<T>>) -> Result<T> {
        got?.ok_or_else(|| {
            let problem = Problem::MissingKey { expected };
            self.fault(Place::Key(key.to_string()), None, problem)
        })
    }
}
