//! What files hold, so that every block that is read says whether it is the right one.

use bytes::Bytes;

/// Bytes of a block that carries its place.
pub(crate) const BLOCK_BYTES: usize = 4096;
const WORD: usize = 8;

/// The word that fills a block: of its file and its place. It is never 0, as a hole is.
fn word(file: u64, block: u64) -> u64 {
    // The finalizer of SplitMix64 spreads neighbours over all bits.
    let mut word = (file << 32 ^ block).wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ word >> 31) | 1
}

/// The bytes of a file from a block on; the last block may be cut.
pub(crate) fn bytes(file: u64, first_block: u64, length: usize) -> Bytes {
    let mut all = Vec::with_capacity(length.next_multiple_of(BLOCK_BYTES));
    for block in (first_block..).take(length.div_ceil(BLOCK_BYTES)) {
        all.extend(word(file, block).to_le_bytes().repeat(BLOCK_BYTES / WORD));
    }
    all.truncate(length);
    all.into()
}

/// Whether these are the bytes of the file from the block on.
pub(crate) fn is_right(file: u64, first_block: u64, data: &[u8]) -> bool {
    data.chunks(BLOCK_BYTES).zip(first_block..).all(|(piece, block)| {
        let expected = word(file, block).to_le_bytes();
        let words = piece.chunks_exact(WORD);
        words.remainder() == &expected[..words.remainder().len()] && words.into_iter().all(|found| *found == expected)
    })
}

/// Numbers that look random: the same for a seed in every run.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Those of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(word(seed, 0))
    }

    /// The next, below a bound that is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_another_place_or_file_and_a_flipped_bit_are_noticed() {
        let right = bytes(1, 5, 2 * BLOCK_BYTES + 11);
        assert!(is_right(1, 5, &right));
        assert!(!is_right(1, 6, &right));
        assert!(!is_right(2, 5, &right));
        let mut flipped = right.to_vec();
        *flipped.last_mut().expect("it is not empty") ^= 1;
        assert!(!is_right(1, 5, &flipped));
        assert!(!is_right(1, 5, &[0; BLOCK_BYTES]));
    }
}
