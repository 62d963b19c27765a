//! The wire format of protocol buffers, over a slice and without copies.
//!
//! A [`Message`] yields its fields one by one. Everything that a writer would not write is refused rather than guessed
//! at: two parsers that disagree about a file are how a refused graph gets past the first of them.

use crate::EngineError;

/// One field: its number and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
}

/// A field's value as the wire knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

/// A message whose fields have not been read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    rest: &'a [u8],
    /// What it is, for messages.
    what: &'static str,
}

impl<'a> Message<'a> {
    pub fn new(bytes: &'a [u8], what: &'static str) -> Message<'a> {
        Message { rest: bytes, what }
    }

    /// The next field, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<Field<'a>>, EngineError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or_else(|| self.error("a field number is out of range"))?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).ok().filter(|n| *n <= self.rest.len());
                let (bytes, rest) = self.rest.split_at(length.ok_or_else(|| self.error("it is truncated"))?);
                self.rest = rest;
                Value::Bytes(bytes)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            3 | 4 => return Err(self.error("it holds a group")),
            _ => return Err(self.error("it holds an unknown wire type")),
        };
        Ok(Some(Field { number, value }))
    }

    fn varint(&mut self) -> Result<u64, EngineError> {
        let (value, used) = varint(self.rest).ok_or_else(|| self.error("it holds a truncated or overlong number"))?;
        self.rest = &self.rest[used..];
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EngineError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(|| self.error("it is truncated"))?;
        self.rest = rest;
        Ok(*array)
    }

    fn error(&self, why: &str) -> EngineError {
        invalid(format!("unreadable {}: {why}", self.what))
    }
}

/// The number at the head of `bytes`, and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().take(10).enumerate() {
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if i == 9 && part > 1 {
            return None;
        }
        value |= part << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

impl<'a> Field<'a> {
    /// The bytes of a string, a message or packed numbers.
    pub fn bytes(&self) -> Result<&'a [u8], EngineError> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.mistyped()),
        }
    }

    /// The message in this field.
    pub fn message(&self, what: &'static str) -> Result<Message<'a>, EngineError> {
        self.bytes().map(|bytes| Message::new(bytes, what))
    }

    /// The text in this field; refuses what is not UTF-8 and what a C string would cut.
    pub fn text(&self, what: &str) -> Result<&'a str, EngineError> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| invalid(format!("{what} is not UTF-8")))?;
        if text.contains('\0') {
            return Err(invalid(format!("{what} holds a NUL")));
        }
        Ok(text)
    }

    /// A number of 64 bits, with its sign.
    pub fn integer(&self) -> Result<i64, EngineError> {
        match self.value {
            Value::Varint(value) => Ok(value as i64),
            _ => Err(self.mistyped()),
        }
    }

    /// Hands each number of a repeated field to `each`, packed or not.
    pub fn integers(&self, mut each: impl FnMut(i64)) -> Result<(), EngineError> {
        match self.value {
            Value::Varint(value) => each(value as i64),
            Value::Bytes(mut rest) => {
                while !rest.is_empty() {
                    let (value, used) = varint(rest).ok_or_else(|| self.mistyped())?;
                    each(value as i64);
                    rest = &rest[used..];
                }
            }
            _ => return Err(self.mistyped()),
        }
        Ok(())
    }

    /// The bytes of a repeated field of `N`-byte numbers, packed or not, handed to `each` one by one.
    pub fn fixed<const N: usize>(&self, mut each: impl FnMut([u8; N])) -> Result<(), EngineError> {
        match self.value {
            Value::Fixed32(value) if N == 4 => value.to_le_bytes().as_chunks().0.iter().for_each(|v| each(*v)),
            Value::Fixed64(value) if N == 8 => value.to_le_bytes().as_chunks().0.iter().for_each(|v| each(*v)),
            Value::Bytes(bytes) if bytes.len().is_multiple_of(N) => bytes.as_chunks().0.iter().for_each(|v| each(*v)),
            _ => return Err(self.mistyped()),
        }
        Ok(())
    }

    fn mistyped(&self) -> EngineError {
        invalid(format!("field {} has a value of the wrong kind", self.number))
    }
}

/// Puts a singular field's value in its place; a second one is refused, since parsers differ about which counts.
pub(super) fn once<T>(place: &mut Option<T>, value: T, what: &str) -> Result<(), EngineError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("{what} is given twice"))),
    }
}

/// The error of everything that this reader refuses.
pub(super) fn invalid(why: String) -> EngineError {
    EngineError::InvalidGraph(format!("not a graph that can be served: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, EngineError> {
        let mut message = Message::new(bytes, "test");
        let mut fields = Vec::new();
        while let Some(field) = message.next()? {
            fields.push((field.number, field.value));
        }
        Ok(fields)
    }

    #[test]
    fn every_wire_type() {
        let bytes = [0x08, 0x96, 0x01, 0x12, 2, b'o', b'k', 0x1d, 1, 0, 0, 0, 0x21, 2, 0, 0, 0, 0, 0, 0, 0];
        let expected =
            [(1, Value::Varint(150)), (2, Value::Bytes(b"ok")), (3, Value::Fixed32(1)), (4, Value::Fixed64(2))];
        assert_eq!(fields(&bytes).expect("fields"), expected);
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        let cases: [&[u8]; 9] = [
            &[0x80],                                                      // a key that ends early
            &[0x08, 0xff],                                                // a number that ends early
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],      // 65 bits
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], // eleven bytes
            &[0x12, 5, 1, 2],                                             // shorter than it says
            &[0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],      // 2^64 - 1 bytes long
            &[0x0b],                                                      // a group
            &[0x00, 0x00],                                                // field 0
            &[0x1d, 1, 2],                                                // four bytes, of which two are there
        ];
        for case in cases {
            assert!(fields(case).is_err(), "{case:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_survive(value: u64, tail: Vec<u8>) {
            let (mut bytes, mut rest) = (Vec::new(), value);
            while rest > 0x7f {
                bytes.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            bytes.push(rest as u8);
            let used = bytes.len();
            bytes.extend(tail);
            prop_assert_eq!(varint(&bytes), Some((value, used)));
        }

        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            if let Ok(fields) = fields(&bytes) {
                prop_assert!(fields.len() <= bytes.len());
            }
        }
    }
}
