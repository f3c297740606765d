//! The bytes of one block of a file, as a part of a larger buffer where they came in one.

use block_device::AlignedBuf;
use bytes::Bytes;

/// A block's bytes.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    source: Bytes,
    at: usize,
    length: usize,
}

impl Content {
    /// `length` bytes of `source` from `at`.
    pub(crate) fn part(source: &Bytes, at: usize, length: usize) -> Self {
        Self { source: source.clone(), at, length }
    }

    /// All of a buffer.
    pub(crate) fn whole(source: Bytes) -> Self {
        let length = source.len();
        Self { source, at: 0, length }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.source.get(self.at..self.at + self.length).unwrap_or_default()
    }

    /// A buffer with the same bytes, to be changed.
    pub(crate) fn to_buffer(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    /// True when `next` follows in the same buffer.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.source.as_ptr() == next.source.as_ptr() && self.at + self.length == next.at
    }

    /// All of them one after another: without a copy when they are neighbours in one buffer.
    pub(crate) fn joined(all: &[Self]) -> Bytes {
        let length = all.iter().map(|content| content.length).sum();
        let neighbours = all.windows(2).all(|pair| matches!(pair, [one, next] if one.is_followed_by(next)));
        match all.first() {
            Some(first) if neighbours => first.source.slice(first.at..first.at + length),
            _ => {
                let mut buffer = AlignedBuf::to_overwrite(length);
                let mut at = 0;
                for content in all {
                    buffer[at..at + content.length].copy_from_slice(content.bytes());
                    at += content.length;
                }
                buffer.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_one_buffer_are_joined_without_a_copy() {
        let source = Bytes::from((0..=255).collect::<Vec<u8>>());
        let parts = [Content::part(&source, 16, 16), Content::part(&source, 32, 16)];
        let joined = Content::joined(&parts);
        assert_eq!(joined.as_ptr(), source[16..].as_ptr());
        assert_eq!(joined, source.slice(16..48));
    }

    #[test]
    fn others_are_joined_in_order() {
        let source = Bytes::from((0..=255).collect::<Vec<u8>>());
        let parts = [Content::part(&source, 32, 16), Content::part(&source, 0, 16), Content::whole(source.slice(0..4))];
        let joined = Content::joined(&parts);
        assert_eq!(joined, [&source[32..48], &source[0..16], &source[0..4]].concat());
    }
}
