//! Taking values from bytes that anybody may have sent.

use bytes::Bytes;
use thiserror::Error;

use super::padding;

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XdrError {
    /// They end too early.
    #[error("the message ends in the middle of a value")]
    Short,
    /// A length is more than allowed.
    #[error("a length of {length} where at most {max} is allowed")]
    TooLong {
        /// What was sent.
        length: u32,
        /// What is allowed.
        max: usize,
    },
    /// A number that names nothing.
    #[error("{value} is no value of {of}")]
    BadValue {
        /// What it should be one of.
        of: &'static str,
        /// What was sent.
        value: u32,
    },
    /// Bytes are left where the message should end.
    #[error("{0} bytes behind the end of the message")]
    Trailing(usize),
}

/// Reads a message from its start to its end. Copies nothing; opaque data can be had as part of the message's own buffer.
#[derive(Clone, Debug)]
pub struct Decoder {
    message: Bytes,
    at: usize,
}

impl Decoder {
    /// At the start of a message.
    pub fn new(message: Bytes) -> Self {
        Self { message, at: 0 }
    }

    /// Bytes taken so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.message.len() - self.at
    }

    /// What lies between two positions of this message, whole or not.
    pub fn between(&self, start: usize, end: usize) -> Bytes {
        let end = end.min(self.message.len());
        self.message.slice(start.min(end)..end)
    }

    /// The message was read to its end. Errors: [`XdrError::Trailing`].
    pub fn finish(&self) -> Result<(), XdrError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(XdrError::Trailing(left)),
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], XdrError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.message.len()).ok_or(XdrError::Short)?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.message[start..end])
    }

    /// An unsigned integer. Errors: [`XdrError::Short`], as for all that follow.
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| XdrError::Short)?))
    }

    /// An integer.
    pub fn i32(&mut self) -> Result<i32, XdrError> {
        Ok(self.u32()? as i32)
    }

    /// An unsigned hyper integer.
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        let bytes = self.take(8)?;
        Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| XdrError::Short)?))
    }

    /// A hyper integer.
    pub fn i64(&mut self) -> Result<i64, XdrError> {
        Ok(self.u64()? as i64)
    }

    /// A boolean. Errors: neither 0 nor 1.
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(XdrError::BadValue { of: "bool", value }),
        }
    }

    /// Opaque data of a length that both sides know.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let value = self.take(N)?.try_into().map_err(|_| XdrError::Short)?;
        self.take(padding(N))?;
        Ok(value)
    }

    /// A length, of opaque data or of an array. Errors: more than `max`.
    pub fn length(&mut self, max: usize) -> Result<usize, XdrError> {
        let length = self.u32()?;
        match usize::try_from(length) {
            Ok(value) if value <= max => Ok(value),
            _ => Err(XdrError::TooLong { length, max }),
        }
    }

    /// Opaque data or a string of at most `max` bytes, in the message's own buffer. The padding is not looked at, as nobody's
    /// is (RFC 4506 §4.10 asks for zeros).
    pub fn opaque(&mut self, max: usize) -> Result<Bytes, XdrError> {
        let length = self.length(max)?;
        let start = self.at;
        self.take(length)?;
        self.take(padding(length))?;
        Ok(self.message.slice(start..start + length))
    }

    /// An array of at most `max` elements. Nothing is set aside for elements that were not sent.
    pub fn array<T>(
        &mut self,
        max: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, XdrError>,
    ) -> Result<Vec<T>, XdrError> {
        let count = self.length(max)?;
        // An element takes a word at least.
        let mut all = Vec::with_capacity(count.min(self.remaining() / 4));
        for _ in 0..count {
            all.push(element(self)?);
        }
        Ok(all)
    }

    /// A value that may be missing.
    pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Result<T, XdrError>) -> Result<Option<T>, XdrError> {
        match self.bool()? {
            true => value(self).map(Some),
            false => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Decoder {
        Decoder::new(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn values_are_taken_in_order() {
        let mut decoder = of(&[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c', 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(decoder.u32(), Ok(7));
        assert_eq!(decoder.bool(), Ok(true));
        assert_eq!(decoder.opaque(3).unwrap(), &b"abc"[..]);
        assert_eq!(decoder.u64(), Ok(0x0102_0304_0506_0708));
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_taken() {
        assert_eq!(of(&[0, 0, 0, 9]).opaque(8), Err(XdrError::TooLong { length: 9, max: 8 }));
        assert_eq!(of(&[255; 4]).array(usize::MAX, Decoder::u32), Err(XdrError::Short));
        assert_eq!(of(&[0, 0, 0, 3, 1, 2, 3]).opaque(8), Err(XdrError::Short), "the padding is missing");
    }

    #[test]
    fn what_is_no_boolean_and_what_is_left_over_is_said() {
        assert_eq!(of(&[0, 0, 0, 2]).bool(), Err(XdrError::BadValue { of: "bool", value: 2 }));
        assert_eq!(of(&[0; 3]).finish(), Err(XdrError::Trailing(3)));
    }

    #[test]
    fn opaque_data_shares_the_buffer_of_the_message() {
        let message = Bytes::from_static(&[0, 0, 0, 4, 1, 2, 3, 4]);
        let data = Decoder::new(message.clone()).opaque(4).unwrap();
        assert_eq!(data.as_ptr(), message[4..].as_ptr());
    }
}
