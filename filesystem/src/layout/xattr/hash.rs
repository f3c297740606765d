//! Hashes of attributes. They once served to find equal blocks; now e2fsck compares them.

use super::region::Entry;
use super::{NameIndex, StoredValue};

const NAME_SHIFT: u32 = 5;
const VALUE_SHIFT: u32 = 16;

/// How bytes of a name enter its hash: kernels before 6.2 took them as `char`, signed on most machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CharSign {
    Unsigned,
    Signed,
}

/// The hash of one entry: over its name without the namespace, and its value in words of 4 bytes, filled up with zeros.
pub(super) fn entry(suffix: &[u8], value: &[u8], sign: CharSign) -> u32 {
    let named = suffix.iter().fold(0u32, |hash, byte| {
        let byte = match sign {
            CharSign::Unsigned => u32::from(*byte),
            CharSign::Signed => *byte as i8 as i32 as u32,
        };
        hash.rotate_left(NAME_SHIFT) ^ byte
    });
    value.chunks(4).fold(named, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(VALUE_SHIFT) ^ u32::from_le_bytes(word)
    })
}

/// The hash of a block, from those of its entries in order. 0, which is none, when an entry has none.
pub(super) fn block(entries: impl IntoIterator<Item = u32>) -> u32 {
    let mut hash = 0u32;
    for entry in entries {
        if entry == 0 {
            return 0;
        }
        hash = hash.rotate_left(VALUE_SHIFT) ^ entry;
    }
    hash
}

/// True when the entry's hash is one that a kernel may have written. In an inode's body it may be absent.
pub(super) fn is_plausible(stored: &Entry<'_>, may_be_absent: bool) -> bool {
    let StoredValue::Here(value) = stored.value else { return true };
    let fits = |sign| stored.hash == entry(stored.suffix, value, sign);
    // Inline data changes in place, and nobody computes its hash.
    let inline_data = stored.index == NameIndex::SYSTEM && stored.suffix == b"data";
    (may_be_absent && stored.hash == 0) || inline_data || fits(CharSign::Unsigned) || fits(CharSign::Signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_differ_only_for_names_beyond_ascii() {
        assert_eq!(entry(b"abc", b"12345", CharSign::Signed), entry(b"abc", b"12345", CharSign::Unsigned));
        assert_ne!(entry(b"\xc3\xa4", b"", CharSign::Signed), entry(b"\xc3\xa4", b"", CharSign::Unsigned));
    }

    #[test]
    fn a_block_with_an_entry_without_hash_has_none() {
        assert_eq!(block([1, 0, 2]), 0);
        assert_eq!(block([1, 2]), 0x0001_0002);
    }
}
