//! Metadata values and views of arrays. A view borrows the file and decodes as it goes; its
//! bytes were checked when the file was read.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use super::cursor::{At, Cursor};
use super::fault::{Problem, quoted};

/// Arrays of arrays may be this deep: `[[[…]]]` is 3. Writers in use need 1.
pub(super) const MAX_DEPTH: u32 = 4;

/// The type of a metadata value. The discriminant is GGUF's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)] // they say it themselves
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The name, as messages and `ironwarp inspect` print it.
    pub const fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// The fewest bytes that one value takes: all of them, but for strings and arrays.
    const fn least_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::String => 8,
            ValueType::Array => 12,
        }
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> At<ValueType> {
        let start = cursor.at() as u64;
        let found = cursor.u32("a value type")?;
        ValueType::ALL
            .into_iter()
            .find(|ty| *ty as u32 == found)
            .ok_or((start, Problem::UnknownValueType { found }))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metadata value; strings and arrays borrow from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // one variant per `ValueType`
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The type in words: with that of the elements, where it is an array.
    pub(super) fn kind(&self) -> String {
        match self {
            Value::Array(array) => format!("an array of {}", array.elem),
            value => format!("of type {}", value.value_type()),
        }
    }

    /// The integer, if it is one of any width.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// Reads one value of type `ty`; `depth` arrays enclose it.
    pub(super) fn read(cursor: &mut Cursor<'a>, ty: ValueType, depth: u32) -> At<Value<'a>> {
        let what = ty.name();
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
            ValueType::Bool => {
                let start = cursor.at() as u64;
                match cursor.array(what)? {
                    [0] => Value::Bool(false),
                    [1] => Value::Bool(true),
                    [found] => return Err((start, Problem::NotBool { found })),
                }
            }
            ValueType::String => Value::String(cursor.text("a string")?),
            ValueType::Array => Value::Array(Array::read(cursor, depth)?),
        })
    }
}

/// As messages and `ironwarp inspect` print a value: a string quoted and cut to one line, an
/// array by its first few elements.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FIRST: usize = 6;
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            Value::String(text) => write!(f, "\"{}\"", quoted(text)),
            Value::Array(array) => {
                f.write_str("[")?;
                for (index, value) in array.iter().take(FIRST).enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str(if array.len > FIRST { ", …]" } else { "]" })
            }
        }
    }
}

/// A value as the file's entry keeps it: an array stays in the file, the rest is copied.
pub(super) enum Stored {
    Scalar(Value<'static>),
    Text(Box<str>),
    Array { elem: ValueType, len: usize, bytes: Range<usize> },
}

impl Stored {
    /// Keeps a value that was read last, and so ends where `cursor` stands.
    pub(super) fn new(value: Value<'_>, cursor: &Cursor<'_>) -> Stored {
        match value {
            Value::String(text) => Stored::Text(text.into()),
            Value::Array(Array { elem, len, bytes, .. }) => {
                Stored::Array { elem, len, bytes: cursor.at() - bytes.len()..cursor.at() }
            }
            Value::U8(v) => Stored::Scalar(Value::U8(v)),
            Value::I8(v) => Stored::Scalar(Value::I8(v)),
            Value::U16(v) => Stored::Scalar(Value::U16(v)),
            Value::I16(v) => Stored::Scalar(Value::I16(v)),
            Value::U32(v) => Stored::Scalar(Value::U32(v)),
            Value::I32(v) => Stored::Scalar(Value::I32(v)),
            Value::F32(v) => Stored::Scalar(Value::F32(v)),
            Value::Bool(v) => Stored::Scalar(Value::Bool(v)),
            Value::U64(v) => Stored::Scalar(Value::U64(v)),
            Value::I64(v) => Stored::Scalar(Value::I64(v)),
            Value::F64(v) => Stored::Scalar(Value::F64(v)),
        }
    }

    /// The value again; `file` is all of the file.
    pub(super) fn value<'a>(&'a self, file: &'a [u8]) -> Value<'a> {
        match self {
            Stored::Scalar(value) => *value,
            Stored::Text(text) => Value::String(text),
            Stored::Array { elem, len, bytes } => {
                let bytes = &file[bytes.clone()];
                Value::Array(Array { elem: *elem, len: *len, bytes, depth: 0 })
            }
        }
    }
}

/// An array of the metadata: its values lie in the file, one behind the other.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    elem: ValueType,
    len: usize,
    bytes: &'a [u8],
    /// Arrays that enclose this one.
    depth: u32,
}

impl<'a> Array<'a> {
    /// Reads an array and checks every value in it.
    fn read(cursor: &mut Cursor<'a>, depth: u32) -> At<Array<'a>> {
        let head = cursor.at() as u64;
        if depth >= MAX_DEPTH {
            return Err((head, Problem::Depth { most: MAX_DEPTH }));
        }
        let elem = ValueType::read(cursor)?;
        let len = cursor.count("array elements", elem.least_bytes())?;
        let start = *cursor;
        match elem {
            ValueType::Bool | ValueType::String | ValueType::Array => {
                for _ in 0..len {
                    Value::read(cursor, elem, depth + 1)?;
                }
            }
            // `count` has seen that the product is within the file.
            _ => drop(cursor.take(len * elem.least_bytes(), "an array")?),
        }
        let bytes = { start }.take((cursor.at() - start.at()) as u64, "an array")?;
        Ok(Array { elem, len: len as usize, bytes, depth })
    }

    /// The type of the elements.
    pub fn elem_type(&self) -> ValueType {
        self.elem
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as they lie in the file.
    pub(super) fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements in order.
    ///
    /// Ends early only if somebody changes the mapped file after it was checked.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Array { elem, len, bytes, depth } = *self;
        let mut cursor = Cursor::new(bytes);
        (0..len).map_while(move |_| Value::read(&mut cursor, elem, depth + 1).ok())
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.elem, self.len)
    }
}

/// An array of strings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StringArray<'a>(Array<'a>);

impl<'a> StringArray<'a> {
    pub(super) fn new(array: Array<'a>) -> Option<StringArray<'a>> {
        // Writers give an empty array any type.
        (array.elem == ValueType::String || array.is_empty()).then_some(StringArray(array))
    }

    /// The number of strings.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The strings in order. A string is found by walking over those before it: to go by index,
    /// collect.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.iter().filter_map(|value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }
}

/// A number that a metadata value can be read as.
pub trait Number: Sized + Copy {
    /// What messages call the type.
    const NAME: &'static str;
    /// What messages call an array of it.
    const ARRAY_NAME: &'static str;

    /// The value as this type, or none where it is no number, or doesn't fit.
    fn from_value(value: &Value<'_>) -> Option<Self>;

    /// Whether values of this type are read as this number when they fit.
    fn accepts(ty: ValueType) -> bool;
}

macro_rules! integer {
    ($ty:ident, $name:literal, $array:literal) => {
        impl Number for $ty {
            const NAME: &'static str = $name;
            const ARRAY_NAME: &'static str = $array;

            fn from_value(value: &Value<'_>) -> Option<$ty> {
                value.as_integer().and_then(|v| v.try_into().ok())
            }

            fn accepts(ty: ValueType) -> bool {
                use ValueType::*;
                matches!(ty, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
            }
        }
    };
}

integer!(u32, "an integer of 0 to 2^32 - 1", "an array of integers of 0 to 2^32 - 1");
integer!(i32, "an integer of -2^31 to 2^31 - 1", "an array of integers of -2^31 to 2^31 - 1");
integer!(u64, "an integer of 0 to 2^64 - 1", "an array of integers of 0 to 2^64 - 1");

impl Number for f32 {
    const NAME: &'static str = "an f32";
    const ARRAY_NAME: &'static str = "an array of f32";

    fn from_value(value: &Value<'_>) -> Option<f32> {
        match *value {
            Value::F32(v) => Some(v),
            // A finite f64 must not become infinite.
            Value::F64(v) => Some(v as f32).filter(|f| f.is_finite() || !v.is_finite()),
            _ => None,
        }
    }

    fn accepts(ty: ValueType) -> bool {
        matches!(ty, ValueType::F32 | ValueType::F64)
    }
}

/// An array of numbers, each of which was seen to fit in a `T`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NumberArray<'a, T> {
    array: Array<'a>,
    number: PhantomData<T>,
}

impl<'a, T: Number> NumberArray<'a, T> {
    /// The view, or the index and value of an element that doesn't fit; none for another type.
    pub(super) fn new(array: Array<'a>) -> Option<Result<Self, (usize, Value<'a>)>> {
        if !T::accepts(array.elem) && !array.is_empty() {
            return None;
        }
        let misfit = array.iter().enumerate().find(|(_, value)| T::from_value(value).is_none());
        Some(misfit.map_or(Ok(NumberArray { array, number: PhantomData }), Err))
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.array.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.array.is_empty()
    }

    /// The numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        self.array.iter().map_while(|value| T::from_value(&value))
    }

    /// The number at `index`.
    pub fn get(&self, index: usize) -> Option<T> {
        let width = self.array.elem.least_bytes() as usize;
        let start = index.checked_mul(width)?;
        let bytes = self.array.bytes.get(start..)?;
        let value = Value::read(&mut Cursor::new(bytes), self.array.elem, 0).ok()?;
        T::from_value(&value)
    }
}
