//! One block of a directory: a chain of entries, and the tail that holds its checksum (ext4 on-disk format, "Linear
//! (Classic) Directories" and "Directory Leaf Checksums").
//!
//! Finds and edits entries within a block, and seals it after each edit. Which block a name belongs to is not known here.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};
use crate::units::InodeNumber;

/// What the blocks of one directory have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryFormat {
    /// The directory's inode; findings carry it.
    pub directory: InodeNumber,
    /// Whether entries tell their types (`filetype`).
    pub file_types: bool,
    /// The seed of the directory's inode with `metadata_csum`; none without.
    pub checksum: Option<Seed>,
    /// The highest inode of the filesystem.
    pub inode_max: InodeNumber,
    /// The block at hand was found to be right since it was read: its checksum and order are not looked at again.
    pub verified: bool,
}

/// What an entry says about its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryType {
    /// Not told; always so without `filetype`.
    Unknown,
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
}

impl EntryType {
    /// Of the number on disk. Numbers without a meaning tell nothing.
    pub fn from_disk(number: u8) -> Self {
        match number {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::CharacterDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => Self::Unknown,
        }
    }

    /// Its number on disk.
    pub fn to_disk(self) -> u8 {
        self as u8
    }
}

/// An entry in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where it starts in the block, in bytes.
    pub offset: usize,
    /// The inode it names.
    pub inode: InodeNumber,
    /// What it says about that inode.
    pub kind: EntryType,
    /// The name: 1 to 255 bytes.
    pub name: &'a [u8],
}

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of the tail with the checksum.
pub const TAIL_BYTES: usize = 12;
/// Bytes of an entry before its name.
const HEADER_BYTES: usize = 8;
/// The smallest entry that can take a name.
const ENTRY_BYTES_MIN: usize = 12;
/// What the tail has where an entry has its type.
const TAIL_TYPE: u8 = 0xde;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    inode: U32,
    entry_bytes: U16,
    name_bytes: u8,
    /// Without `filetype`, the high half of the name's length, which is 0.
    kind: u8,
}

/// The tail: an unused entry of twelve bytes to those who know nothing of checksums.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Tail {
    header: Header,
    checksum: U32,
}

/// An entry in use or free, as it lies in the block.
#[derive(Clone, Copy)]
struct Slot {
    offset: usize,
    bytes: usize,
    header: Header,
}

impl Slot {
    fn is_free(&self) -> bool {
        self.header.inode.get() == 0
    }

    /// The bytes that a new entry could not have.
    fn used(&self) -> usize {
        if self.is_free() { 0 } else { entry_bytes(usize::from(self.header.name_bytes)) }
    }
}

/// Entries in use, in the order of the block. Nothing follows an error.
#[derive(Clone)]
pub struct Entries<'a> {
    slots: Slots<'a>,
    file_types: bool,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let slot = match self.slots.next()? {
                Ok(slot) if slot.is_free() => continue,
                Ok(slot) => slot,
                Err(corrupt) => return Some(Err(corrupt)),
            };
            let start = slot.offset + HEADER_BYTES;
            let name = self.slots.block.get(start..start + usize::from(slot.header.name_bytes))?;
            let kind = if self.file_types { EntryType::from_disk(slot.header.kind) } else { EntryType::Unknown };
            return Some(Ok(Entry { offset: slot.offset, inode: InodeNumber(slot.header.inode.get()), kind, name }));
        }
    }
}

/// All entries of a chain, free ones too.
#[derive(Clone)]
struct Slots<'a> {
    block: &'a [u8],
    at: usize,
    end: usize,
    format: DirectoryFormat,
}

impl Iterator for Slots<'_> {
    type Item = Result<Slot, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let slot = self.slot();
        self.at = slot.as_ref().map_or(self.end, |slot| slot.offset + slot.bytes);
        Some(slot)
    }
}

impl Slots<'_> {
    fn slot(&self) -> Result<Slot, Corrupt> {
        let chain = self.block.get(self.at..self.end).unwrap_or_default();
        let Ok((header, _)) = Header::read_from_prefix(chain) else {
            return Err(self.format.corrupt("an entry crosses the end of its block"));
        };
        let bytes = usize::from(header.entry_bytes.get());
        let slot = Slot { offset: self.at, bytes, header };
        let wrong = if bytes < ENTRY_BYTES_MIN {
            "an entry is too short"
        } else if !bytes.is_multiple_of(4) {
            "an entry's length is not a multiple of 4"
        } else if bytes > chain.len() {
            "an entry crosses the end of its block"
        } else if chain.len() != bytes && chain.len() - bytes < ENTRY_BYTES_MIN {
            "an entry ends too close to the end of its block"
        } else if !slot.is_free() && header.name_bytes == 0 {
            "an entry has no name"
        } else if bytes < HEADER_BYTES + usize::from(header.name_bytes) {
            "a name is longer than its entry"
        } else if header.inode.get() > self.format.inode_max.0 {
            "an entry's inode does not exist"
        } else {
            return Ok(slot);
        };
        Err(self.format.corrupt(wrong))
    }
}

impl DirectoryFormat {
    /// A finding about this directory.
    pub(crate) fn corrupt(&self, what: &'static str) -> Corrupt {
        Corrupt::new(Structure::Directory, u64::from(self.directory.0), what)
    }

    /// The bytes for entries in a block of `block_bytes`.
    pub fn room(&self, block_bytes: usize) -> usize {
        if self.checksum.is_some() { block_bytes.saturating_sub(TAIL_BYTES) } else { block_bytes }
    }

    fn slots<'a>(&self, block: &'a [u8]) -> Slots<'a> {
        Slots { block, at: 0, end: self.room(block.len()), format: *self }
    }

    /// Checks the tail and checksum of a block. Errors: the tail is missing, or the checksum is another.
    pub fn verify(&self, block: &[u8]) -> Result<(), Corrupt> {
        let Some(seed) = self.checksum.filter(|_| !self.verified) else { return Ok(()) };
        let Ok((entries, tail)) = Tail::read_from_suffix(block) else {
            return Err(self.corrupt("a block is too short"));
        };
        let header = tail.header;
        if header.inode.get() != 0
            || usize::from(header.entry_bytes.get()) != TAIL_BYTES
            || header.name_bytes != 0
            || header.kind != TAIL_TYPE
        {
            return Err(self.corrupt("a block has no tail for its checksum"));
        }
        if seed.sum(entries) != tail.checksum.get() {
            return Err(self.corrupt("wrong checksum"));
        }
        Ok(())
    }

    /// Writes the tail and checksum of a block whose entries were edited.
    fn seal(&self, block: &mut [u8]) {
        let Some(seed) = self.checksum else { return };
        let Some((entries, tail)) = block.split_last_chunk_mut::<TAIL_BYTES>() else { return };
        let header =
            Header { inode: U32::ZERO, entry_bytes: U16::new(TAIL_BYTES as u16), name_bytes: 0, kind: TAIL_TYPE };
        *tail = zerocopy::transmute!(Tail { header, checksum: U32::new(seed.sum(entries)) });
    }

    /// The entries in use. Errors come from the iterator; the checksum is not looked at.
    pub fn entries<'a>(&self, block: &'a [u8]) -> Entries<'a> {
        Entries { slots: self.slots(block), file_types: self.file_types }
    }

    /// The entry of this name, if it is here. Errors: what precedes it is broken, or the checksum.
    pub fn find<'a>(&self, block: &'a [u8], name: &[u8]) -> Result<Option<Entry<'a>>, Corrupt> {
        self.verify(block)?;
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.name == name {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The most bytes that a new entry could have, see [`entry_bytes`]. Errors: the block is broken.
    pub fn widest_gap(&self, block: &[u8]) -> Result<usize, Corrupt> {
        self.slots(block).try_fold(0, |widest, slot| slot.map(|slot| widest.max(slot.bytes - slot.used())))
    }

    /// Puts a name in, where a free entry or the slack behind one has room for it; false, and nothing is changed, when
    /// none has. The name must be legal and not be here. Errors: the block is broken.
    pub fn insert(&self, block: &mut [u8], new: NewEntry<'_>) -> Result<bool, Corrupt> {
        let wanted = entry_bytes(new.name.len());
        let mut place = None;
        for slot in self.slots(block) {
            let slot = slot?;
            if place.is_none() && slot.bytes - slot.used() >= wanted {
                place = Some(slot);
            }
        }
        let Some(slot) = place else { return Ok(false) };
        let used = slot.used();
        if used > 0 {
            let shortened = Header { entry_bytes: U16::new(used as u16), ..slot.header };
            self.write(block, slot.offset, shortened.as_bytes())?;
        }
        self.write_entry(block, slot.offset + used, slot.bytes - used, new)?;
        self.seal(block);
        Ok(true)
    }

    /// Takes the entry at `offset` out: the one before it grows over it, or it becomes free when it is the first.
    /// Errors: the block is broken, or no entry in use starts there.
    pub fn remove(&self, block: &mut [u8], offset: usize) -> Result<(), Corrupt> {
        let mut before: Option<Slot> = None;
        let mut found = None;
        for slot in self.slots(block) {
            let slot = slot?;
            if slot.offset == offset && !slot.is_free() {
                found = Some(slot);
                break;
            }
            before = Some(slot);
        }
        let Some(slot) = found else { return Err(self.corrupt("an entry is not where it was found")) };
        // Nothing of the name stays behind.
        self.write(block, slot.offset + HEADER_BYTES, &[0; NAME_BYTES_MAX][..usize::from(slot.header.name_bytes)])?;
        match before {
            Some(before) => {
                let grown = Header { entry_bytes: U16::new((before.bytes + slot.bytes) as u16), ..before.header };
                self.write(block, slot.offset, &[0; HEADER_BYTES])?;
                self.write(block, before.offset, grown.as_bytes())?;
            }
            None => {
                let free = Header { inode: U32::ZERO, name_bytes: 0, kind: 0, ..slot.header };
                self.write(block, slot.offset, free.as_bytes())?;
            }
        }
        self.seal(block);
        Ok(())
    }

    /// Makes the entry at `offset` name another inode. Errors: the block is broken, or no entry in use starts there.
    pub fn set_inode(
        &self,
        block: &mut [u8],
        offset: usize,
        inode: InodeNumber,
        kind: EntryType,
    ) -> Result<(), Corrupt> {
        let slot =
            self.slots(block).find(|slot| slot.as_ref().map_or(true, |slot| slot.offset >= offset)).transpose()?;
        let Some(slot) = slot.filter(|slot| slot.offset == offset && !slot.is_free()) else {
            return Err(self.corrupt("an entry is not where it was found"));
        };
        let header = Header { inode: U32::new(inode.0), kind: self.kind(kind), ..slot.header };
        self.write(block, offset, header.as_bytes())?;
        self.seal(block);
        Ok(())
    }

    /// How many entries are in use, `.` and `..` among them. Errors: the block is broken.
    pub fn count(&self, block: &[u8]) -> Result<usize, Corrupt> {
        self.entries(block).try_fold(0, |count, entry| entry.map(|_| count + 1))
    }

    /// Makes a block that has no entry.
    pub fn init_empty(&self, block: &mut [u8]) {
        block.fill(0);
        let room = self.room(block.len());
        let free = Header { inode: U32::ZERO, entry_bytes: U16::new(room as u16), name_bytes: 0, kind: 0 };
        if let Some(start) = block.first_chunk_mut::<HEADER_BYTES>() {
            *start = zerocopy::transmute!(free);
        }
        self.seal(block);
    }

    /// Makes the first block of a new directory: `.` and `..`, which `parent` is. Errors: the block is too short.
    pub fn init_directory(&self, block: &mut [u8], parent: InodeNumber) -> Result<(), Corrupt> {
        block.fill(0);
        let room = self.room(block.len());
        self.write_dots(block, parent, room)?;
        self.seal(block);
        Ok(())
    }

    /// Writes `.` and, up to `end`, `..`; seals nothing.
    pub(crate) fn write_dots(&self, block: &mut [u8], parent: InodeNumber, end: usize) -> Result<(), Corrupt> {
        let dot = NewEntry { name: b".", inode: self.directory, kind: EntryType::Directory };
        let dot_dot = NewEntry { name: b"..", inode: parent, kind: EntryType::Directory };
        let Some(rest) = end.checked_sub(ENTRY_BYTES_MIN) else { return Err(self.corrupt("a block is too short")) };
        self.write_entry(block, 0, ENTRY_BYTES_MIN, dot)?;
        self.write_entry(block, ENTRY_BYTES_MIN, rest, dot_dot)
    }

    /// `.` and `..` of a directory's first block, be it of entries or of an index. Errors: they are not the first two.
    pub fn dots<'a>(&self, block: &'a [u8]) -> Result<[Entry<'a>; 2], Corrupt> {
        // In the root of an index `..` reaches to the end of the block, and there is no tail.
        let slots = Slots { block, at: 0, end: block.len(), format: *self };
        let mut entries = Entries { slots, file_types: self.file_types };
        let dot = entries.next().transpose()?.filter(|entry| entry.name == b"." && entry.offset == 0);
        let dot_dot = entries.next().transpose()?.filter(|entry| entry.name == b"..");
        match (dot, dot_dot) {
            (Some(dot), Some(dot_dot)) => Ok([dot, dot_dot]),
            _ => Err(self.corrupt("a directory does not start with '.' and '..'")),
        }
    }

    /// Writes a block that holds exactly these entries, in their order. False, and the block is of no use, when they do
    /// not fit.
    pub(crate) fn pack<'e>(
        &self,
        block: &mut [u8],
        entries: impl Iterator<Item = NewEntry<'e>>,
    ) -> Result<bool, Corrupt> {
        self.init_empty(block);
        let room = self.room(block.len());
        let (mut last, mut end) = (None, 0);
        for entry in entries {
            let bytes = entry_bytes(entry.name.len());
            if end + bytes > room {
                return Ok(false);
            }
            self.write_entry(block, end, bytes, entry)?;
            last = Some((end, entry));
            end += bytes;
        }
        if let Some((start, entry)) = last {
            self.write_entry(block, start, room - start, entry)?;
        }
        self.seal(block);
        Ok(true)
    }

    fn kind(&self, kind: EntryType) -> u8 {
        if self.file_types { kind.to_disk() } else { 0 }
    }

    fn write_entry(&self, block: &mut [u8], offset: usize, bytes: usize, new: NewEntry<'_>) -> Result<(), Corrupt> {
        let header = Header {
            inode: U32::new(new.inode.0),
            entry_bytes: U16::new(bytes as u16),
            name_bytes: new.name.len() as u8,
            kind: self.kind(new.kind),
        };
        let name_end = offset + HEADER_BYTES + new.name.len();
        self.write(block, offset, header.as_bytes())?;
        self.write(block, offset + HEADER_BYTES, new.name)?;
        self.write(block, name_end, &[0; 3][..name_end.next_multiple_of(4) - name_end])
    }

    fn write(&self, block: &mut [u8], offset: usize, bytes: &[u8]) -> Result<(), Corrupt> {
        match block.get_mut(offset..offset + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(self.corrupt("a block is too short")),
        }
    }
}

/// An entry to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry<'a> {
    /// A legal name, see [`is_legal_name`].
    pub name: &'a [u8],
    /// The inode it names.
    pub inode: InodeNumber,
    /// The type of that inode; not written without `filetype`.
    pub kind: EntryType,
}

impl<'a> From<Entry<'a>> for NewEntry<'a> {
    fn from(entry: Entry<'a>) -> Self {
        Self { name: entry.name, inode: entry.inode, kind: entry.kind }
    }
}

/// The bytes that an entry with a name of this length takes at least.
pub const fn entry_bytes(name_bytes: usize) -> usize {
    (HEADER_BYTES + name_bytes).next_multiple_of(4)
}

/// Whether a name may be given to an entry: 1 to 255 bytes, neither `/` nor NUL, and neither `.` nor `..`.
pub fn is_legal_name(name: &[u8]) -> bool {
    is_sound_name(name) && !is_dots(name)
}

/// Whether a name may be met on disk: as [`is_legal_name`], with `.` and `..`.
pub fn is_sound_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// True for `.` and `..`.
pub fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

#[cfg(test)]
#[path = "dirent_tests.rs"]
mod tests;
