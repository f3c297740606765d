//! Entries and values in one region: entries from its front, values from its end, four zero bytes after the last entry.
//! What stands before the region, a magic number or a header, belongs to `body` and `block`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Attribute, Name, NameIndex, hash};
use crate::layout::{Corrupt, Structure};

/// An entry as it stands in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The namespace.
    pub index: NameIndex,
    /// What follows the namespace's prefix in the name.
    pub suffix: &'a [u8],
    /// The value.
    pub value: StoredValue<'a>,
    /// The hash; 0 if none was computed.
    pub hash: u32,
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredValue<'a> {
    /// In the same region.
    Here(&'a [u8]),
    /// In an inode of its own (`ea_inode`).
    InInode {
        /// That inode.
        inode: u32,
        /// Bytes in it.
        length: u32,
    },
}

/// ext4 on-disk format, "Extended Attributes", `ext4_xattr_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EntryOnDisk {
    name_length: u8,
    name_index: u8,
    value_offset: U16,
    value_inode: U32,
    value_length: U32,
    hash: U32,
}

const ENTRY_BYTES: usize = size_of::<EntryOnDisk>();

/// The four zero bytes after the last entry.
pub(super) const END_BYTES: usize = 4;

impl Entry<'_> {
    /// Its name.
    pub fn name(&self) -> Name {
        Name::stored(self.index, self.suffix)
    }

    /// True when it is that of `name`.
    pub fn has_name(&self, name: &Name) -> bool {
        self.index == name.index() && self.suffix == name.suffix()
    }
}

/// Bytes that an entry and its value take; values and entries are filled up to a multiple of 4.
pub(super) fn stored_bytes(name_length: usize, value_length: usize) -> usize {
    (ENTRY_BYTES + name_length).next_multiple_of(4) + value_length.next_multiple_of(4)
}

/// The entries of `region` from byte `first`; values are found by their offsets from the region's start. `at` is the inode
/// or block for the errors. Every entry and value lies inside, and no value on another or on the entries.
pub(super) fn entries(region: &[u8], first: usize, at: u64) -> Result<Vec<Entry<'_>>, Corrupt> {
    let broken = |what| Corrupt::new(Structure::ExtendedAttributes, at, what);
    let unterminated = || broken("the entries do not end inside");
    let mut found = Vec::new();
    let mut spans = Vec::new();
    let mut position = first;
    loop {
        let rest = region.get(position..).ok_or_else(unterminated)?;
        if rest.first_chunk::<4>().ok_or_else(unterminated)? == &[0; 4] {
            break;
        }
        let (entry, _) = EntryOnDisk::read_from_prefix(rest).map_err(|_| unterminated())?;
        let name_end = ENTRY_BYTES + usize::from(entry.name_length);
        let suffix = rest.get(ENTRY_BYTES..name_end).ok_or_else(unterminated)?;
        if suffix.contains(&0) {
            return Err(broken("a name contains a zero byte"));
        }
        let value = if entry.value_inode.get() != 0 {
            StoredValue::InInode { inode: entry.value_inode.get(), length: entry.value_length.get() }
        } else {
            let (start, length) = (u64::from(entry.value_offset.get()), u64::from(entry.value_length.get()));
            let padded_end = start + length.next_multiple_of(4);
            if length > 0 {
                spans.push((start, padded_end));
            }
            let start = if length > 0 { start } else { 0 };
            if length > 0 && padded_end > region.len() as u64 {
                return Err(broken("a value lies outside"));
            }
            let bytes = region.get(start as usize..(start + length) as usize);
            StoredValue::Here(bytes.ok_or_else(|| broken("a value lies outside"))?)
        };
        found.push(Entry { index: NameIndex(entry.name_index), suffix, value, hash: entry.hash.get() });
        position += name_end.next_multiple_of(4);
    }
    spans.push((0, (position + END_BYTES) as u64));
    spans.sort_unstable();
    if spans.windows(2).any(|pair| matches!(pair, [(_, end), (start, _)] if start < end)) {
        return Err(broken("a value lies on another, or on the entries"));
    }
    Ok(found)
}

/// Writes `attributes` in the order given and zeros everything between. Gives the hashes of the entries as written, all 0
/// without `hashed`. The caller has seen to it that they fit.
pub(super) fn write(region: &mut [u8], first: usize, attributes: &[&Attribute], hashed: bool) -> Vec<u32> {
    let needed: usize = attributes.iter().map(|attribute| attribute.stored_bytes()).sum();
    assert!(first + needed + END_BYTES <= region.len(), "attributes were counted before they are written");
    region[first..].fill(0);
    let mut position = first;
    let mut values_start = region.len();
    let mut hashes = Vec::with_capacity(attributes.len());
    for attribute in attributes {
        let (suffix, value) = (attribute.name.suffix(), attribute.value.as_slice());
        values_start -= value.len().next_multiple_of(4);
        region[values_start..][..value.len()].copy_from_slice(value);
        let hash = if hashed { hash::entry(suffix, value, hash::CharSign::Unsigned) } else { 0 };
        hashes.push(hash);
        let entry = EntryOnDisk {
            name_length: suffix.len() as u8,
            name_index: attribute.name.index().0,
            value_offset: U16::new(if value.is_empty() { 0 } else { values_start as u16 }),
            value_inode: U32::new(0),
            value_length: U32::new(value.len() as u32),
            hash: U32::new(hash),
        };
        region[position..][..ENTRY_BYTES].copy_from_slice(entry.as_bytes());
        region[position + ENTRY_BYTES..][..suffix.len()].copy_from_slice(suffix);
        position += (ENTRY_BYTES + suffix.len()).next_multiple_of(4);
    }
    hashes
}

/// What e2fsck demands beyond what [`entries`] sees: hashes, and each name once.
pub(super) fn check(entries: &[Entry<'_>], hash_may_be_absent: bool, at: u64) -> Result<(), Corrupt> {
    let broken = |what| Err(Corrupt::new(Structure::ExtendedAttributes, at, what));
    if !entries.iter().all(|entry| hash::is_plausible(entry, hash_may_be_absent)) {
        return broken("an entry's hash is wrong");
    }
    let mut names: Vec<Name> = entries.iter().map(Entry::name).collect();
    names.sort();
    if names.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return broken("a name is there twice");
    }
    Ok(())
}
