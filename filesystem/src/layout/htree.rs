//! The index of a directory: a root in its first block, and at most one level of nodes between the root and the blocks
//! of entries (ext4 on-disk format, "Hash Tree Directories" and "Hash Tree Node Checksums").
//!
//! Decodes, checks and writes single blocks. Walking and growing the tree is the matter of `directory`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::layout::dirent::DirectoryFormat;
use crate::layout::hash::HashVersion;
use crate::layout::{Corrupt, Structure};
use crate::units::{FileBlock, InodeNumber};

/// A root or node, checked: its size, limit, order and checksum are right.
#[derive(Clone, Copy, Debug)]
pub struct IndexBlock<'a> {
    entries: &'a [DiskEntry],
}

/// What a root says about the whole tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootInfo {
    /// The hash that orders this directory; whether bytes are signed is not told here.
    pub version: HashVersion,
    /// Levels of nodes between the root and the blocks of entries: 0 or 1.
    pub levels: u8,
}

/// An entry of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The lowest hash below it. Bit 0 tells that names with this hash are also in the block before
    /// ([`CONTINUED`]). The first entry of a block has none of its own, and shows 0.
    pub hash: u32,
    /// The block it leads to.
    pub block: FileBlock,
}

/// The bit of a hash in the index by which a collision goes on from the block before.
pub const CONTINUED: u32 = 1;
/// Levels of nodes at most, without `large_dir`.
pub const LEVELS_MAX: u8 = 1;
/// The bits of a block number in the index; the upper ones are reserved.
const BLOCK_MASK: u32 = 0x0fff_ffff;
/// The length that a root's information gives itself.
const INFO_BYTES: u8 = 8;
/// Where `..` starts in a root.
const DOT_DOT_AT: usize = 12;
/// Where the entries start in a root.
const ROOT_ENTRIES_AT: usize = 32;
/// Where the entries start in a node.
const NODE_ENTRIES_AT: usize = 8;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskEntry {
    /// In the first entry, the limit and then the count, 16 bits each.
    hash: U32,
    block: U32,
}

impl DiskEntry {
    fn limit(&self) -> usize {
        (self.hash.get() & 0xffff) as usize
    }

    fn count(&self) -> usize {
        (self.hash.get() >> 16) as usize
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskInfo {
    reserved: U32,
    version: u8,
    info_bytes: u8,
    levels: u8,
    flags: u8,
}

/// What precedes the entries of a node: a free entry over the whole block, for those who know nothing of indexes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NodeStart {
    inode: U32,
    entry_bytes: U16,
    name_bytes: u8,
    kind: u8,
}

/// Behind the room for entries, with `metadata_csum`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskTail {
    reserved: U32,
    checksum: U32,
}

impl<'a> IndexBlock<'a> {
    /// The root in a directory's first block. Errors: it is none, or broken.
    pub fn root(format: &DirectoryFormat, block: &'a [u8]) -> Result<(RootInfo, Self), Corrupt> {
        let [dot, dot_dot] = format.dots(block)?;
        let dot_dot_bytes = block.get(DOT_DOT_AT + 4..).and_then(|bytes| U16::read_from_prefix(bytes).ok());
        let reaches_end = dot_dot_bytes.is_some_and(|(bytes, _)| usize::from(bytes.get()) + DOT_DOT_AT == block.len());
        if dot.inode != format.directory || dot_dot.offset != DOT_DOT_AT || !reaches_end {
            return Err(corrupt(format, "a root is not covered by '.' and '..'"));
        }
        let info = block.get(DOT_DOT_AT + 12..).and_then(|bytes| DiskInfo::read_from_prefix(bytes).ok());
        let Some((info, _)) = info else { return Err(corrupt(format, "a root is too short")) };
        if info.reserved.get() != 0 || info.info_bytes != INFO_BYTES || info.flags & 1 != 0 {
            return Err(corrupt(format, "a root's information has an unknown form"));
        }
        let Some(version) = HashVersion::from_disk(info.version) else {
            return Err(corrupt(format, "a root names an unknown hash"));
        };
        if info.levels > LEVELS_MAX {
            return Err(corrupt(format, "an index has too many levels"));
        }
        let info = RootInfo { version, levels: info.levels };
        Ok((info, Self::parse(format, block, ROOT_ENTRIES_AT)?))
    }

    /// A node below the root. Errors: it is none, or broken.
    pub fn node(format: &DirectoryFormat, block: &'a [u8]) -> Result<Self, Corrupt> {
        match NodeStart::read_from_prefix(block) {
            Ok((start, _)) if start.inode.get() == 0 && usize::from(start.entry_bytes.get()) == block.len() => {
                Self::parse(format, block, NODE_ENTRIES_AT)
            }
            _ => Err(corrupt(format, "a node does not start with a free entry over all of it")),
        }
    }

    fn parse(format: &DirectoryFormat, block: &'a [u8], entries_at: usize) -> Result<Self, Corrupt> {
        let limit = limit(format, block.len(), entries_at);
        let room = block.get(entries_at..).unwrap_or_default();
        let Ok((entries, _)) = <[DiskEntry]>::ref_from_prefix_with_elems(room, limit) else {
            return Err(corrupt(format, "an index block is too short"));
        };
        let Some(first) = entries.first() else { return Err(corrupt(format, "an index block is too short")) };
        if first.limit() != limit {
            return Err(corrupt(format, "the limit of an index block is not that of its size"));
        }
        let count = first.count();
        if count == 0 {
            return Err(corrupt(format, "an index block has no entry"));
        }
        let Some(entries) = entries.get(..count) else {
            return Err(corrupt(format, "an index block has more entries than room"));
        };
        if format.verified {
            return Ok(Self { entries });
        }
        if let Some(seed) = format.checksum {
            let tail = room.get(limit * 8..).and_then(|bytes| DiskTail::read_from_prefix(bytes).ok());
            if tail.is_none_or(|(tail, _)| tail.checksum.get() != checksum(seed, block, entries_at + count * 8, tail)) {
                return Err(corrupt(format, "wrong checksum"));
            }
        }
        if !entries.iter().skip(1).is_sorted_by_key(|entry| entry.hash.get()) {
            return Err(corrupt(format, "an index block is out of order"));
        }
        Ok(Self { entries })
    }

    /// How many entries it has: at least one.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// How many entries it can have.
    pub fn limit(&self) -> usize {
        self.entries.first().map_or(0, DiskEntry::limit)
    }

    /// The entry at an index; none past the last one.
    pub fn entry(&self, index: usize) -> Option<IndexEntry> {
        let entry = self.entries.get(index)?;
        let hash = if index == 0 { 0 } else { entry.hash.get() };
        Some(IndexEntry { hash, block: FileBlock(entry.block.get() & BLOCK_MASK) })
    }

    /// All entries, in their order.
    pub fn entries(&self) -> impl Iterator<Item = IndexEntry> {
        (0..self.count()).filter_map(|index| self.entry(index))
    }

    /// The index of the entry below which a hash is first to be looked for: the last one that is not above it.
    pub fn position_of(&self, hash: u32) -> usize {
        self.entries.get(1..).unwrap_or_default().partition_point(|entry| entry.hash.get() <= hash)
    }
}

/// Makes the root of a new index with one entry. Errors: the block is too short.
pub fn init_root(
    format: &DirectoryFormat,
    block: &mut [u8],
    parent: InodeNumber,
    version: HashVersion,
    leaf: FileBlock,
) -> Result<(), Corrupt> {
    block.fill(0);
    format.write_dots(block, parent, block.len())?;
    let info =
        DiskInfo { reserved: U32::ZERO, version: version.to_disk(), info_bytes: INFO_BYTES, levels: 0, flags: 0 };
    write(format, block, DOT_DOT_AT + 12, info.as_bytes())?;
    write_root_entries(format, block, &[IndexEntry { hash: 0, block: leaf }])
}

/// Makes a node of these entries. Errors: they are more than fit.
pub fn init_node(format: &DirectoryFormat, block: &mut [u8], entries: &[IndexEntry]) -> Result<(), Corrupt> {
    block.fill(0);
    let start = NodeStart { inode: U32::ZERO, entry_bytes: U16::new(block.len() as u16), name_bytes: 0, kind: 0 };
    write(format, block, 0, start.as_bytes())?;
    write_node_entries(format, block, entries)
}

/// Replaces the entries of a root. Errors: they are more than fit.
pub fn write_root_entries(format: &DirectoryFormat, block: &mut [u8], entries: &[IndexEntry]) -> Result<(), Corrupt> {
    write_entries(format, block, ROOT_ENTRIES_AT, entries)
}

/// Replaces the entries of a node. Errors: they are more than fit.
pub fn write_node_entries(format: &DirectoryFormat, block: &mut [u8], entries: &[IndexEntry]) -> Result<(), Corrupt> {
    write_entries(format, block, NODE_ENTRIES_AT, entries)
}

/// Sets the levels of a root; [`write_root_entries`] has to follow, for the checksum. Errors: the block is too short.
pub fn set_levels(format: &DirectoryFormat, block: &mut [u8], levels: u8) -> Result<(), Corrupt> {
    write(format, block, DOT_DOT_AT + 12 + 6, &[levels])
}

/// Makes the `..` of a root name another directory. Errors: the root is broken.
pub fn set_parent(format: &DirectoryFormat, block: &mut [u8], parent: InodeNumber) -> Result<(), Corrupt> {
    let (_, root) = IndexBlock::root(format, block)?;
    let count = root.count();
    write(format, block, DOT_DOT_AT, &parent.0.to_le_bytes())?;
    seal(format, block, ROOT_ENTRIES_AT, count)
}

/// How many entries fit behind `entries_at`.
fn limit(format: &DirectoryFormat, block_bytes: usize, entries_at: usize) -> usize {
    let tail = if format.checksum.is_some() { size_of::<DiskTail>() } else { 0 };
    block_bytes.saturating_sub(entries_at + tail) / size_of::<DiskEntry>()
}

fn write_entries(
    format: &DirectoryFormat,
    block: &mut [u8],
    entries_at: usize,
    entries: &[IndexEntry],
) -> Result<(), Corrupt> {
    let limit = limit(format, block.len(), entries_at);
    if entries.is_empty() || entries.len() > limit {
        return Err(corrupt(format, "an index block has more entries than room"));
    }
    let count_and_limit = ((entries.len() as u32) << 16) | limit as u32;
    for (index, entry) in entries.iter().enumerate() {
        let hash = if index == 0 { count_and_limit } else { entry.hash };
        let disk = DiskEntry { hash: U32::new(hash), block: U32::new(entry.block.0 & BLOCK_MASK) };
        write(format, block, entries_at + index * size_of::<DiskEntry>(), disk.as_bytes())?;
    }
    seal(format, block, entries_at, entries.len())
}

fn seal(format: &DirectoryFormat, block: &mut [u8], entries_at: usize, count: usize) -> Result<(), Corrupt> {
    let Some(seed) = format.checksum else { return Ok(()) };
    let tail_at = entries_at + limit(format, block.len(), entries_at) * size_of::<DiskEntry>();
    let Some((mut tail, _)) = block.get(tail_at..).and_then(|bytes| DiskTail::read_from_prefix(bytes).ok()) else {
        return Err(corrupt(format, "an index block is too short"));
    };
    tail.checksum = U32::new(checksum(seed, block, entries_at + count * size_of::<DiskEntry>(), tail));
    write(format, block, tail_at, tail.as_bytes())
}

/// Over the block up to its last entry in use, and the tail with zeros for the checksum.
fn checksum(seed: Seed, block: &[u8], used: usize, tail: DiskTail) -> u32 {
    let tail = DiskTail { checksum: U32::ZERO, ..tail };
    seed.then(block.get(..used).unwrap_or_default()).sum(tail.as_bytes())
}

fn write(format: &DirectoryFormat, block: &mut [u8], offset: usize, bytes: &[u8]) -> Result<(), Corrupt> {
    match block.get_mut(offset..offset + bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            Ok(())
        }
        None => Err(corrupt(format, "an index block is too short")),
    }
}

fn corrupt(format: &DirectoryFormat, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::HashTree, u64::from(format.directory.0), what)
}

#[cfg(test)]
#[path = "htree_tests.rs"]
mod tests;
