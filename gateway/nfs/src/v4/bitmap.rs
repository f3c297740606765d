//! Sets of attributes (RFC 8881 §3.3.7, `bitmap4`).

use crate::xdr::{Decoder, Encoder, XdrError};

/// Words that are kept: attributes beyond have not been thought of yet.
const WORDS: usize = 3;
/// Words that are taken from the wire.
const WIRE_WORDS_MAX: usize = 8;

/// A set of attributes by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bitmap([u32; WORDS]);

impl Bitmap {
    /// The set of these.
    pub const fn of(numbers: &[u32]) -> Self {
        let mut words = [0; WORDS];
        let mut at = 0;
        while at < numbers.len() {
            words[(numbers[at] / 32) as usize] |= 1 << (numbers[at] % 32);
            at += 1;
        }
        Self(words)
    }

    /// True if the attribute is in it.
    pub fn contains(self, number: u32) -> bool {
        self.0.get((number / 32) as usize).is_some_and(|word| word & 1 << (number % 32) != 0)
    }

    /// Puts the attribute in.
    pub fn insert(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut((number / 32) as usize) {
            *word |= 1 << (number % 32);
        }
    }

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    /// Those that are in either.
    pub const fn or(self, other: Self) -> Self {
        let mut words = self.0;
        let mut at = 0;
        while at < WORDS {
            words[at] |= other.0[at];
            at += 1;
        }
        Self(words)
    }

    /// Those that are not in the other.
    pub const fn without(self, other: Self) -> Self {
        let mut words = self.0;
        let mut at = 0;
        while at < WORDS {
            words[at] &= !other.0[at];
            at += 1;
        }
        Self(words)
    }

    /// True without any.
    pub fn is_empty(self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Those in it, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..WORDS as u32 * 32).filter(move |number| self.contains(*number))
    }

    /// From the wire. The second value tells whether attributes were asked for that are beyond all that is known.
    pub fn decode(decoder: &mut Decoder) -> Result<(Self, bool), XdrError> {
        let sent = decoder.array(WIRE_WORDS_MAX, Decoder::u32)?;
        let words = std::array::from_fn(|at| sent.get(at).copied().unwrap_or(0));
        Ok((Self(words), sent.iter().skip(WORDS).any(|word| *word != 0)))
    }

    /// To the wire, without zeros at its end.
    pub fn encode(self, encoder: &mut Encoder) {
        let count = self.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        encoder.array(&self.0[..count], |encoder, word| encoder.u32(*word));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn sets_come_back() {
        let set = Bitmap::of(&[0, 1, 33, 82]);
        let mut encoder = Encoder::new();
        set.encode(&mut encoder);
        assert_eq!(encoder.len(), 16);
        assert_eq!(Bitmap::decode(&mut Decoder::new(encoder.to_bytes())), Ok((set, false)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 33, 82]);
        assert!(set.contains(33) && !set.contains(34) && !set.contains(1000));
        assert_eq!(set.without(Bitmap::of(&[1, 82])), Bitmap::of(&[0, 33]));
        assert_eq!(set.and(Bitmap::of(&[1, 2])), Bitmap::of(&[1]));
    }

    #[test]
    fn what_is_beyond_is_noticed_and_too_much_refused() {
        let words = |words: &[u32]| {
            let mut encoder = Encoder::new();
            encoder.array(words, |encoder, word| encoder.u32(*word));
            Decoder::new(encoder.to_bytes())
        };
        assert_eq!(Bitmap::decode(&mut words(&[1, 0, 0, 2])), Ok((Bitmap::of(&[0]), true)));
        assert_eq!(Bitmap::decode(&mut words(&[1, 0, 0, 0])), Ok((Bitmap::of(&[0]), false)));
        assert!(Bitmap::decode(&mut words(&[0; 9])).is_err());
        assert!(Bitmap::decode(&mut Decoder::new(Bytes::new())).is_err());
    }
}
