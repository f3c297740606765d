//! Putting values into a message. A payload that somebody else holds joins it without being copied.

use bytes::{BufMut, Bytes, BytesMut};

use super::padding;

/// The first room that is made for a message; most need no more.
const FIRST_BYTES: usize = 256;
/// A part of another message that is copied when that is appended: it costs less than a part more.
const COPIED_BYTES_MAX: usize = 1 << 10;

/// A message being made: its bytes so far, and between them payloads that are not copied.
#[derive(Debug)]
pub struct Encoder {
    /// What is before the newest payload, and the payloads.
    done: Vec<Bytes>,
    done_bytes: usize,
    last: BytesMut,
}

/// A place in a message to which one may come back, as long as no payload was put behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    part: usize,
    at: usize,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An empty message.
    pub fn new() -> Self {
        Self { done: Vec::new(), done_bytes: 0, last: BytesMut::with_capacity(FIRST_BYTES) }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.done_bytes + self.last.len()
    }

    /// True before the first value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the message begins with; none of one that is shorter.
    pub fn first_word(&self) -> Option<u32> {
        let first = self.done.first().map_or(&self.last[..], |part| &part[..]);
        first.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// An unsigned integer.
    pub fn u32(&mut self, value: u32) {
        self.last.put_u32(value);
    }

    /// An integer.
    pub fn i32(&mut self, value: i32) {
        self.last.put_i32(value);
    }

    /// An unsigned hyper integer.
    pub fn u64(&mut self, value: u64) {
        self.last.put_u64(value);
    }

    /// A hyper integer.
    pub fn i64(&mut self, value: i64) {
        self.last.put_i64(value);
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) {
        self.last.put_u32(u32::from(value));
    }

    /// Opaque data of a length that both sides know.
    pub fn fixed(&mut self, value: &[u8]) {
        self.last.put_slice(value);
        self.last.put_bytes(0, padding(value.len()));
    }

    /// Opaque data or a string. One of 4 GiB cannot be: whoever has it has bounded it.
    pub fn opaque(&mut self, value: &[u8]) {
        self.last.put_u32(value.len() as u32);
        self.fixed(value);
    }

    /// Opaque data that is not copied.
    pub fn payload(&mut self, value: Bytes) {
        let length = value.len();
        self.last.put_u32(length as u32);
        self.part(value);
        self.last.put_bytes(0, padding(length));
    }

    /// Bytes that are a message, or part of one, already.
    pub fn encoded(&mut self, value: &[u8]) {
        self.last.put_slice(value);
    }

    /// An array.
    pub fn array<T>(&mut self, values: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.last.put_u32(values.len() as u32);
        for value in values {
            element(self, value);
        }
    }

    /// A value that may be missing.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    /// This place.
    pub fn mark(&self) -> Mark {
        Mark { part: self.done.len(), at: self.last.len() }
    }

    /// An unsigned integer whose value comes later, by [`Self::patch`].
    pub fn later(&mut self) -> Mark {
        let mark = self.mark();
        self.u32(0);
        mark
    }

    /// Gives the integer its value. Not once a payload is behind it: then nothing happens, and false is given.
    pub fn patch(&mut self, mark: Mark, value: u32) -> bool {
        match self.last.get_mut(mark.at..mark.at + 4) {
            Some(place) if mark.part == self.done.len() => {
                place.copy_from_slice(&value.to_be_bytes());
                true
            }
            _ => false,
        }
    }

    /// Forgets all that was put behind the mark.
    pub fn truncate(&mut self, mark: Mark) {
        if mark.part == self.done.len() {
            self.last.truncate(mark.at);
            return;
        }
        // The part that the mark is in was closed by a payload.
        let Some(part) = self.done.get(mark.part) else { return };
        self.last = BytesMut::from(&part[..mark.at.min(part.len())]);
        self.done.truncate(mark.part);
        self.done_bytes = self.done.iter().map(Bytes::len).sum();
    }

    /// A copy of the message up to a mark.
    pub fn bytes_until(&self, mark: Mark) -> Vec<u8> {
        let closed = mark.part.min(self.done.len());
        let mut bytes = self.done[..closed].concat();
        // The part that the mark is in may have been closed by a payload since.
        let part = self.done.get(closed).map_or(&*self.last, |part| &**part);
        bytes.extend_from_slice(&part[..mark.at.min(part.len())]);
        bytes
    }

    /// Appends another message; its larger parts are not copied.
    pub fn append(&mut self, other: Self) {
        for part in other.done {
            match part.len() <= COPIED_BYTES_MAX {
                true => self.encoded(&part),
                false => self.part(part),
            }
        }
        match other.last.len() <= COPIED_BYTES_MAX {
            true => self.encoded(&other.last),
            false => self.part(other.last.freeze()),
        }
    }

    /// A part of its own, behind what there is.
    fn part(&mut self, part: Bytes) {
        let before = self.last.split().freeze();
        self.done_bytes += before.len() + part.len();
        self.done.push(before);
        self.done.push(part);
    }

    /// The message in the parts it is to be sent in.
    pub fn finish(mut self) -> Vec<Bytes> {
        if !self.last.is_empty() {
            self.done.push(self.last.freeze());
        }
        self.done
    }

    /// The message in one piece.
    pub fn to_bytes(self) -> Bytes {
        let mut parts = self.finish();
        match parts.len() {
            1 => parts.remove(0),
            _ => parts.concat().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_padding() {
        let mut encoder = Encoder::new();
        encoder.opaque(b"abcde");
        encoder.bool(true);
        encoder.fixed(&[1, 2, 3]);
        assert_eq!(encoder.to_bytes(), &b"\0\0\0\x05abcde\0\0\0\0\0\0\x01\x01\x02\x03\0"[..]);
    }

    #[test]
    fn a_payload_joins_without_a_copy() {
        let data = Bytes::from_static(b"payload");
        let mut encoder = Encoder::new();
        encoder.u32(1);
        encoder.payload(data.clone());
        encoder.u32(2);
        assert_eq!(encoder.len(), 4 + 4 + 8 + 4);
        let parts = encoder.finish();
        assert_eq!(parts[1].as_ptr(), data.as_ptr());
        assert_eq!(parts.concat(), b"\0\0\0\x01\0\0\0\x07payload\0\0\0\0\x02");
    }

    #[test]
    fn messages_are_copied_up_to_a_mark_and_joined() {
        let mut encoder = Encoder::new();
        encoder.u32(1);
        let early = encoder.mark();
        encoder.payload(Bytes::from_static(b"abcd"));
        encoder.u32(2);
        let late = encoder.mark();
        encoder.u32(3);
        assert_eq!(encoder.bytes_until(early), [0, 0, 0, 1]);
        assert_eq!(encoder.bytes_until(late), b"\0\0\0\x01\0\0\0\x04abcd\0\0\0\x02");
        let mut head = Encoder::new();
        head.u32(9);
        head.append(encoder);
        head.u32(4);
        assert_eq!(head.len(), 28);
        assert_eq!(head.to_bytes(), b"\0\0\0\x09\0\0\0\x01\0\0\0\x04abcd\0\0\0\x02\0\0\0\x03\0\0\0\x04"[..]);
    }

    #[test]
    fn places_are_patched_and_come_back_to() {
        let mut encoder = Encoder::new();
        encoder.u32(9);
        let count = encoder.later();
        let end = encoder.mark();
        encoder.u64(7);
        encoder.payload(Bytes::from_static(b"data"));
        encoder.truncate(end);
        assert!(encoder.patch(count, 5));
        assert_eq!(encoder.len(), 8);
        assert_eq!(encoder.to_bytes(), &[0, 0, 0, 9, 0, 0, 0, 5][..]);
        let mut closed = Encoder::new();
        let count = closed.later();
        closed.payload(Bytes::from_static(b"data"));
        assert!(!closed.patch(count, 1), "what is closed is not patched");
    }
}
