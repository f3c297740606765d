//! Record marking (RFC 5531 §11): messages on a stream, in fragments with a length each.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

/// Bytes of a fragment's mark.
pub const MARK_BYTES: usize = 4;
/// Says that a fragment is a record's last.
const LAST: u32 = 1 << 31;
/// Fragments of one record. Clients send one; a peer that sends tiny ones only wants to keep us busy.
const FRAGMENTS_MAX: u32 = 1024;

/// Why a stream is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A record longer than is taken.
    #[error("a message of more than {max} bytes")]
    TooLong {
        /// What is taken.
        max: usize,
    },
    /// A record of more fragments than anybody needs.
    #[error("a message in more than {FRAGMENTS_MAX} fragments")]
    TooManyFragments,
}

/// Finds the records in what comes from a stream.
#[derive(Debug)]
pub struct RecordReader {
    bytes_max: usize,
    /// Fragments of the record under way, without their marks.
    record: BytesMut,
    fragments: u32,
}

impl RecordReader {
    /// Takes records of at most so many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, record: BytesMut::new(), fragments: 0 }
    }

    /// The next record in what has been received, which is taken out of it; none until more comes. A record in one fragment,
    /// as nearly all are, is not copied.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Bytes>, RecordError> {
        loop {
            let Some(mark) = received.get(..MARK_BYTES) else { return Ok(None) };
            let mark = mark.iter().fold(0u32, |mark, byte| mark << 8 | u32::from(*byte));
            let length = (mark & !LAST) as usize;
            if length > self.bytes_max.saturating_sub(self.record.len()) {
                return Err(RecordError::TooLong { max: self.bytes_max });
            }
            if received.len() < MARK_BYTES + length {
                // Room for all of it at once, so that it need not move again.
                received.reserve(MARK_BYTES + length - received.len());
                return Ok(None);
            }
            received.advance(MARK_BYTES);
            let fragment = received.split_to(length);
            self.fragments += 1;
            if self.fragments > FRAGMENTS_MAX {
                return Err(RecordError::TooManyFragments);
            }
            if mark & LAST == 0 {
                self.record.extend_from_slice(&fragment);
                continue;
            }
            self.fragments = 0;
            if self.record.is_empty() {
                return Ok(Some(fragment.freeze()));
            }
            self.record.extend_from_slice(&fragment);
            return Ok(Some(self.record.split().freeze()));
        }
    }
}

/// The mark before a message of so many bytes that goes in one fragment.
pub fn mark(length: usize) -> [u8; MARK_BYTES] {
    (length as u32 | LAST).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(fragments: &[(&[u8], bool)]) -> BytesMut {
        let mut stream = BytesMut::new();
        for (bytes, last) in fragments {
            let mark = bytes.len() as u32 | if *last { LAST } else { 0 };
            stream.extend_from_slice(&mark.to_be_bytes());
            stream.extend_from_slice(bytes);
        }
        stream
    }

    #[test]
    fn records_are_found_whatever_pieces_they_come_in() {
        let all = stream(&[(b"one", true), (b"tw", false), (b"", false), (b"o", true), (b"", true)]);
        for piece in 1..=all.len() {
            let mut reader = RecordReader::new(100);
            let (mut received, mut records) = (BytesMut::new(), Vec::new());
            for bytes in all.chunks(piece) {
                received.extend_from_slice(bytes);
                while let Some(record) = reader.next(&mut received).unwrap() {
                    records.push(record);
                }
            }
            assert_eq!(records, [&b"one"[..], b"two", b""], "in pieces of {piece}");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn lengths_and_fragments_are_bounded() {
        let mut reader = RecordReader::new(8);
        let too_long = Err(RecordError::TooLong { max: 8 });
        assert_eq!(reader.next(&mut BytesMut::from(&mark(9)[..])), too_long);
        assert_eq!(reader.next(&mut stream(&[(b"12345", false), (b"6789", true)])), too_long);
        let mut reader = RecordReader::new(8);
        let mut empty = stream(&vec![(&b""[..], false); FRAGMENTS_MAX as usize + 1]);
        assert_eq!(reader.next(&mut empty), Err(RecordError::TooManyFragments));
    }
}
