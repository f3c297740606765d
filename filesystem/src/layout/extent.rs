//! Nodes of extent trees: the header, the entries, the tail with the checksum (ext4 on-disk format, "The Contents of
//! inode.i_block", section "Extent Tree").
//!
//! Knows one node at a time. Which nodes make a tree, and how it changes, is `map::extents`.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Seed;
use super::{Corrupt, Structure};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// Bytes of the root, which is in the inode.
pub const ROOT_SIZE: usize = 60;
/// The root's depth is at most this: the nodes of a path are at most one more.
pub const DEPTH_MAX: u16 = 5;
/// Blocks of an extent that was written, at most.
pub const WRITTEN_MAX: u32 = 1 << 15;
/// Blocks of an unwritten extent, at most: its length is stored with 32768 added, which alone would mean a written one.
pub const UNWRITTEN_MAX: u32 = WRITTEN_MAX - 1;
/// The first file block that cannot be mapped.
pub const FILE_BLOCKS_MAX: u32 = u32::MAX;

const MAGIC: u16 = 0xf30a;
const ENTRY_SIZE: usize = 12;
const TAIL_SIZE: usize = 4;

/// Blocks of a file that are together on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first, counted from the file's start.
    pub file: FileBlock,
    /// Where they are.
    pub run: BlockRun,
    /// Reserved, and to be read as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// One past the last block of the file.
    pub fn end(&self) -> u32 {
        self.file.0.saturating_add(self.run.count)
    }

    /// How many blocks an extent of this kind can have.
    pub fn count_max(unwritten: bool) -> u32 {
        if unwritten { UNWRITTEN_MAX } else { WRITTEN_MAX }
    }

    /// The part between two blocks of the file, which have to be in it.
    pub fn part(&self, from: u32, to: u32) -> Self {
        let run = BlockRun::new(self.run.start.plus(u64::from(from - self.file.0)), to - from);
        Self { file: FileBlock(from), run, unwritten: self.unwritten }
    }

    /// This one and `next` as one, when they are of a kind, follow one another on both sides and are not too long.
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let count = self.run.count.checked_add(next.run.count)?;
        let follows = self.end() == next.file.0 && self.run.end() == next.run.start;
        let fits = self.unwritten == next.unwritten && count <= Self::count_max(self.unwritten);
        (follows && fits).then(|| Self { run: BlockRun::new(self.run.start, count), ..*self })
    }

    /// As it is in a leaf.
    pub fn entry(&self) -> Entry {
        let length = if self.unwritten { self.run.count + WRITTEN_MAX } else { self.run.count };
        let raw = RawExtent {
            file: self.file.0.into(),
            length: (length as u16).into(),
            start_high: ((self.run.start.0 >> 32) as u16).into(),
            start_low: (self.run.start.0 as u32).into(),
        };
        Entry(zerocopy::transmute!(raw))
    }
}

/// An entry of a node as it is on disk, of either kind. Both begin with the file block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Entry([u8; ENTRY_SIZE]);

impl Entry {
    /// An entry of a node above the leaves: what maps `key` and what follows is under the block `child`.
    pub fn index(key: u32, child: BlockNumber) -> Self {
        let raw = RawIndex {
            file: key.into(),
            child_low: (child.0 as u32).into(),
            child_high: ((child.0 >> 32) as u16).into(),
            unused: 0.into(),
        };
        Self(zerocopy::transmute!(raw))
    }

    /// The first file block that it is about.
    pub fn key(&self) -> u32 {
        let raw: RawExtent = zerocopy::transmute!(self.0);
        raw.file.get()
    }

    /// What it says in a node above the leaves.
    pub fn child(&self) -> BlockNumber {
        let raw: RawIndex = zerocopy::transmute!(self.0);
        BlockNumber(u64::from(raw.child_high.get()) << 32 | u64::from(raw.child_low.get()))
    }

    /// What it says in a leaf.
    pub fn extent(&self) -> Extent {
        let raw: RawExtent = zerocopy::transmute!(self.0);
        let start = BlockNumber(u64::from(raw.start_high.get()) << 32 | u64::from(raw.start_low.get()));
        let length = u32::from(raw.length.get());
        let unwritten = length > WRITTEN_MAX;
        let count = if unwritten { length - WRITTEN_MAX } else { length };
        Extent { file: FileBlock(raw.file.get()), run: BlockRun::new(start, count), unwritten }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U16,
    entries: U16,
    max: U16,
    depth: U16,
    generation: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawIndex {
    file: U32,
    child_low: U32,
    child_high: U16,
    unused: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawExtent {
    file: U32,
    length: U16,
    start_high: U16,
    start_low: U32,
}

/// What the nodes of one inode's tree are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRules {
    /// The inode.
    pub inode: InodeNumber,
    /// That of the inode ([`Seed::of_inode`]), when the filesystem has checksums.
    pub seed: Option<Seed>,
    /// Blocks of the device.
    pub device_blocks: u64,
}

impl NodeRules {
    /// Checks the root. Errors: everything that is wrong with it.
    pub fn root<'a>(&self, bytes: &'a [u8]) -> Result<Node<'a>, Corrupt> {
        let finding = |what| Corrupt::new(Structure::Inode, u64::from(self.inode.0), what);
        self.check(bytes, (bytes.len() / ENTRY_SIZE).saturating_sub(1)).map_err(finding)
    }

    /// Checks a node that has the block `at`, and is `depth` above the leaves. Errors: everything that is wrong with it.
    pub fn block<'a>(&self, bytes: &'a [u8], at: BlockNumber, depth: u16) -> Result<Node<'a>, Corrupt> {
        let finding = |what| Corrupt::new(Structure::ExtentTree, at.0, what);
        let node = self.check(bytes, block_entries_max(bytes.len())).map_err(finding)?;
        if node.depth() != depth {
            return Err(finding("its depth is not one less than its parent's"));
        }
        if self.seed.is_some_and(|seed| stored_sum(bytes) != block_sum(bytes, seed)) {
            return Err(finding("the checksum does not match"));
        }
        Ok(node)
    }

    fn check<'a>(&self, bytes: &'a [u8], max: usize) -> Result<Node<'a>, &'static str> {
        let (header, entries) = split(bytes).ok_or("there is no room for a header")?;
        if header.magic.get() != MAGIC {
            return Err("the magic number of an extent tree's node is missing");
        }
        if header.depth.get() > DEPTH_MAX {
            return Err("the tree is too deep");
        }
        if header.max.get() == 0 || usize::from(header.max.get()) > max {
            return Err("the number of entries that fit is wrong");
        }
        if header.entries > header.max {
            return Err("there are more entries than fit");
        }
        if header.entries.get() == 0 && header.depth.get() > 0 {
            return Err("a node above the leaves is empty");
        }
        let entries = entries.get(..usize::from(header.entries.get())).ok_or("the entries do not fit")?;
        if header.depth.get() == 0 {
            self.check_leaf(entries)?
        } else {
            self.check_index(entries)?
        }
        Ok(Node { header, entries })
    }

    fn check_leaf(&self, entries: &[Entry]) -> Result<(), &'static str> {
        let mut free_from = 0;
        for extent in entries.iter().map(Entry::extent) {
            if extent.run.count == 0 {
                return Err("an extent has no blocks");
            }
            if u64::from(extent.file.0) < free_from {
                return Err("extents are out of order or overlap");
            }
            free_from = u64::from(extent.file.0) + u64::from(extent.run.count);
            if free_from > u64::from(FILE_BLOCKS_MAX) {
                return Err("an extent ends beyond the largest file");
            }
            if extent.run.start.0 == 0 || extent.run.end().0 > self.device_blocks {
                return Err("an extent is not on the device");
            }
        }
        Ok(())
    }

    fn check_index(&self, entries: &[Entry]) -> Result<(), &'static str> {
        let ordered = entries.windows(2).all(|pair| matches!(pair, [left, right] if left.key() < right.key()));
        if !ordered {
            return Err("indices are out of order");
        }
        if entries.iter().any(|entry| entry.child().0 == 0 || entry.child().0 >= self.device_blocks) {
            return Err("a child is not on the device");
        }
        Ok(())
    }
}

/// A node that was found right.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    header: Header,
    entries: &'a [Entry],
}

impl<'a> Node<'a> {
    /// A node that [`NodeRules`] has found right before. None when it is too short for what it says.
    pub fn trusted(bytes: &'a [u8]) -> Option<Self> {
        let (header, entries) = split(bytes)?;
        Some(Self { header, entries: entries.get(..usize::from(header.entries.get()))? })
    }

    /// How far above the leaves it is.
    pub fn depth(&self) -> u16 {
        self.header.depth.get()
    }

    /// How many entries fit.
    pub fn max(&self) -> usize {
        usize::from(self.header.max.get())
    }

    /// Its entries.
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// The extent at `position` of a leaf.
    pub fn extent(&self, position: usize) -> Option<Extent> {
        self.entries.get(position).map(Entry::extent)
    }

    /// How many entries begin at or before `block`.
    pub fn position_after(&self, block: u32) -> usize {
        self.entries.partition_point(|entry| entry.key() <= block)
    }
}

/// A node to be edited. Nothing is checked but that it stays inside its bytes; what does not is None.
pub struct NodeMut<'a>(pub &'a mut [u8]);

impl NodeMut<'_> {
    /// Makes the bytes an empty node for `max` entries, keeping what it does not know.
    pub fn init(&mut self, depth: u16, max: usize) -> Option<()> {
        let header = self.header()?;
        header.magic = MAGIC.into();
        header.entries = 0.into();
        header.max = u16::try_from(max).ok()?.into();
        header.depth = depth.into();
        Some(())
    }

    /// Puts `new` in the place of the entries in `range`; what is no longer used is zeroed.
    pub fn splice(&mut self, range: Range<usize>, new: &[Entry]) -> Option<()> {
        let header = self.header()?;
        let old_count = usize::from(header.entries.get());
        let kept_after = old_count.checked_sub(range.end)?;
        let count = range.start.checked_add(new.len())?.checked_add(kept_after)?;
        if range.start > range.end || count > usize::from(header.max.get()) {
            return None;
        }
        header.entries = u16::try_from(count).ok()?.into();
        let entries = self.entries()?;
        if count.max(old_count) > entries.len() {
            return None;
        }
        entries.copy_within(range.end..old_count, range.start + new.len());
        entries.get_mut(range.start..range.start + new.len())?.copy_from_slice(new);
        if count < old_count {
            entries.get_mut(count..old_count)?.fill(Entry([0; ENTRY_SIZE]));
        }
        Some(())
    }

    /// Changes how far it is above the leaves.
    pub fn set_depth(&mut self, depth: u16) -> Option<()> {
        self.header()?.depth = depth.into();
        Some(())
    }

    /// Changes the first file block of an entry.
    pub fn set_key(&mut self, position: usize, key: u32) -> Option<()> {
        let entry = self.entries()?.get_mut(position)?;
        entry.0.first_chunk_mut::<4>().map(|bytes| *bytes = key.to_le_bytes())
    }

    /// Puts the checksum into the tail of a node with a block of its own.
    pub fn seal(&mut self, seed: Option<Seed>) -> Option<()> {
        let Some(seed) = seed else { return Some(()) };
        let sum = block_sum(self.0, seed)?;
        let tail = tail_offset(self.0)?;
        self.0.get_mut(tail..tail + TAIL_SIZE)?.copy_from_slice(&sum.to_le_bytes());
        Some(())
    }

    fn header(&mut self) -> Option<&mut Header> {
        Header::mut_from_prefix(self.0).ok().map(|(header, _)| header)
    }

    fn entries(&mut self) -> Option<&mut [Entry]> {
        let body = self.0.get_mut(size_of::<Header>()..)?;
        let count = body.len() / ENTRY_SIZE;
        <[Entry]>::mut_from_prefix_with_elems(body, count).ok().map(|(entries, _)| entries)
    }
}

/// How many entries fit into a block; the checksum's four bytes always remain, since no block's size leaves less.
pub fn block_entries_max(block_size: usize) -> usize {
    block_size.saturating_sub(size_of::<Header>()) / ENTRY_SIZE
}

/// A root without extents, as a fresh inode has it.
pub fn empty_root() -> [u8; ROOT_SIZE] {
    let mut root = [0; ROOT_SIZE];
    let max = ((ROOT_SIZE - size_of::<Header>()) / ENTRY_SIZE) as u16;
    let header =
        Header { magic: MAGIC.into(), entries: 0.into(), max: max.into(), depth: 0.into(), generation: 0.into() };
    root[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    root
}

fn split(bytes: &[u8]) -> Option<(Header, &[Entry])> {
    let (header, body) = Header::read_from_prefix(bytes).ok()?;
    let count = body.len() / ENTRY_SIZE;
    let (entries, _) = <[Entry]>::ref_from_prefix_with_elems(body, count).ok()?;
    Some((header, entries))
}

/// The tail follows the last entry that fits (ext4 on-disk format, "Extent Tree", `struct ext4_extent_tail`).
fn tail_offset(bytes: &[u8]) -> Option<usize> {
    let (header, _) = Header::read_from_prefix(bytes).ok()?;
    Some(size_of::<Header>() + usize::from(header.max.get()) * ENTRY_SIZE)
}

fn stored_sum(bytes: &[u8]) -> Option<u32> {
    let tail = bytes.get(tail_offset(bytes)?..)?;
    tail.first_chunk().map(|sum| u32::from_le_bytes(*sum))
}

fn block_sum(bytes: &[u8], seed: Seed) -> Option<u32> {
    Some(seed.sum(bytes.get(..tail_offset(bytes)?)?))
}

#[cfg(test)]
#[path = "extent_tests.rs"]
mod tests;
