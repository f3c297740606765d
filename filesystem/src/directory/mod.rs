//! Operations on a directory: names are looked up, inserted, removed and read in an order that lasts.
//!
//! Works on the directory's own blocks, which [`DirectoryBlocks`] gives by their numbers in it. Inodes are not touched: link
//! counts, times, sizes and the flag of the index are the caller's.

mod check;
mod grow;
mod path;
mod read;

pub use check::{Summary, check};
pub use read::{Batch, Cookie, ReadEntry};

use crate::directory::path::Path;
use crate::layout::dirent::{DirectoryFormat, Entry, EntryType, NewEntry, entry_bytes, is_dots, is_legal_name};
use crate::layout::hash::Hashing;
use crate::layout::htree;
use crate::store::Stop;
use crate::units::{FileBlock, InodeNumber};

/// The blocks of one directory. Every slice has the length of one block of the filesystem.
pub trait DirectoryBlocks {
    /// How many blocks the directory has: its size.
    fn len_blocks(&self) -> u32;

    /// A block below [`len_blocks`](Self::len_blocks). Errors: it is not at hand, or a hole.
    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop>;

    /// The same, to be edited; the edit belongs to the running operation.
    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop>;

    /// True when the block was found to be right since it was read from the device.
    fn is_verified(&mut self, _at: FileBlock) -> bool {
        false
    }

    /// Keeps in mind that it was. What is edited stays right.
    fn set_verified(&mut self, _at: FileBlock) {}

    /// Adds a zeroed block at the end, and tells its number. Errors: no space, or what is needed is not at hand.
    fn append(&mut self) -> Result<FileBlock, Stop>;
}

/// A directory, as its inode and superblock tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// What its blocks have in common.
    pub format: DirectoryFormat,
    /// How names are hashed for new indexes and for the positions of a reader; an index names its own version.
    pub hashing: Hashing,
    /// Whether the filesystem has indexes (`dir_index`).
    pub dir_index: bool,
    /// Whether the inode has the flag of an index (`EXT4_INDEX_FL`).
    pub indexed: bool,
}

/// A name that may be given to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// None when [`is_legal_name`] denies it.
    pub fn new(name: &'a [u8]) -> Option<Self> {
        is_legal_name(name).then_some(Self(name))
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// An entry, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode it names.
    pub inode: InodeNumber,
    /// What it says about that inode.
    pub kind: EntryType,
    /// Its block in the directory.
    pub block: FileBlock,
    /// Where it starts in the block, in bytes.
    pub offset: usize,
}

impl Found {
    fn new(block: FileBlock, entry: Entry<'_>) -> Self {
        Self { inode: entry.inode, kind: entry.kind, block, offset: entry.offset }
    }
}

/// What an insertion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// The name is in. The size is that of [`DirectoryBlocks::len_blocks`] now.
    Done {
        /// What the inode's flag of an index has to be from now on.
        indexed: bool,
    },
    /// The name was there, and nothing has changed.
    Exists(Found),
}

/// The largest directory in bytes, without `large_dir`.
const DIRECTORY_BYTES_MAX: u64 = 0x7fff_ffff;

/// Makes the only block of a new directory. `blocks` is empty before. Errors: those of `append`.
pub fn create<B: DirectoryBlocks + ?Sized>(
    format: &DirectoryFormat,
    blocks: &mut B,
    parent: InodeNumber,
) -> Result<(), Stop> {
    let at = blocks.append()?;
    Ok(format.init_directory(blocks.block_mut(at)?, parent)?)
}

impl Directory {
    /// Whether the index is used. Also what the inode's flag has to be after any edit: a filesystem that does not know
    /// indexes would not keep one in order.
    pub fn uses_index(&self) -> bool {
        self.indexed && self.dir_index
    }

    /// The entry of a name, `.` and `..` among them. Errors: blocks that are missing or broken.
    pub fn lookup<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, name: &[u8]) -> Result<Option<Found>, Stop> {
        if is_dots(name) {
            let entries = self.format.dots(self.first_block(blocks)?)?;
            let entry = entries.into_iter().find(|entry| entry.name == name);
            return Ok(entry.map(|entry| Found::new(FileBlock(0), entry)));
        }
        if !is_legal_name(name) {
            return Ok(None);
        }
        if self.uses_index() {
            return self.lookup_indexed(blocks, name);
        }
        for at in (0..blocks.len_blocks()).map(FileBlock) {
            if let Some(entry) = self.verified_format().find(self.entry_block(blocks, at)?, name)? {
                return Ok(Some(Found::new(at, entry)));
            }
        }
        Ok(None)
    }

    fn lookup_indexed<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, name: &[u8]) -> Result<Option<Found>, Stop> {
        let (mut path, hash) = Path::to_name(self, blocks, name)?;
        loop {
            let at = path.leaf();
            if let Some(entry) = self.verified_format().find(self.entry_block(blocks, at)?, name)? {
                return Ok(Some(Found::new(at, entry)));
            }
            // Names with one hash may go on in the next block.
            match path.next_key(self, blocks)? {
                Some(key) if key & !htree::CONTINUED == hash.major => path.step(self, blocks)?,
                _ => return Ok(None),
            };
        }
    }

    /// Puts a name in. Errors: [`Stop::TooLarge`] when the directory is full; no space; blocks that are missing or broken.
    pub fn insert<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        name: Name<'_>,
        inode: InodeNumber,
        kind: EntryType,
    ) -> Result<Insertion, Stop> {
        if let Some(found) = self.lookup(blocks, name.0)? {
            return Ok(Insertion::Exists(found));
        }
        let new = NewEntry { name: name.0, inode, kind };
        if self.uses_index() {
            self.insert_indexed(blocks, new)?;
            return Ok(Insertion::Done { indexed: true });
        }
        self.first_block(blocks)?;
        for at in (0..blocks.len_blocks()).map(FileBlock) {
            if self.insert_in(blocks, at, new)? {
                return Ok(Insertion::Done { indexed: false });
            }
        }
        if self.dir_index && blocks.len_blocks() == 1 {
            self.convert(blocks)?;
            self.insert_indexed(blocks, new)?;
            return Ok(Insertion::Done { indexed: true });
        }
        let at = self.append(blocks)?;
        self.format.init_empty(blocks.block_mut(at)?);
        if !self.insert_in(blocks, at, new)? {
            return Err(self.format.corrupt("an empty block has no room for an entry").into());
        }
        Ok(Insertion::Done { indexed: false })
    }

    /// Takes a name out; tells what it named, or none when it was not there. `.` and `..` stay. Errors: blocks that are
    /// missing or broken.
    pub fn remove<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, name: Name<'_>) -> Result<Option<Found>, Stop> {
        let found = self.lookup(blocks, name.0)?;
        if let Some(found) = found {
            self.format.remove(blocks.block_mut(found.block)?, found.offset)?;
        }
        Ok(found)
    }

    /// Makes a name's entry name another inode; tells what it named before, or none when it is not there. Errors: blocks
    /// that are missing or broken.
    pub fn replace<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        name: Name<'_>,
        inode: InodeNumber,
        kind: EntryType,
    ) -> Result<Option<Found>, Stop> {
        let found = self.lookup(blocks, name.0)?;
        if let Some(found) = found {
            self.format.set_inode(blocks.block_mut(found.block)?, found.offset, inode, kind)?;
        }
        Ok(found)
    }

    /// Makes `..` name another directory. Errors: the first block is missing or broken.
    pub fn replace_parent<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, parent: InodeNumber) -> Result<(), Stop> {
        let [_, dot_dot] = self.format.dots(self.first_block(blocks)?)?;
        let offset = dot_dot.offset;
        let block = blocks.block_mut(FileBlock(0))?;
        if self.uses_index() {
            htree::set_parent(&self.format, block, parent)?;
        } else {
            self.format.set_inode(block, offset, parent, EntryType::Directory)?;
        }
        Ok(())
    }

    /// True when there is nothing but `.` and `..`. Errors: blocks that are missing or broken.
    pub fn is_empty<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B) -> Result<bool, Stop> {
        self.format.dots(self.first_block(blocks)?)?;
        if !self.uses_index() {
            for at in (0..blocks.len_blocks()).map(FileBlock) {
                if !self.is_block_empty(blocks, at)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let mut path = Path::to_hash(self, blocks, 0)?;
        loop {
            let at = path.leaf();
            if !self.is_block_empty(blocks, at)? {
                return Ok(false);
            }
            if !path.step(self, blocks)? {
                return Ok(true);
            }
        }
    }

    fn is_block_empty<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, at: FileBlock) -> Result<bool, Stop> {
        for entry in self.format.entries(self.entry_block(blocks, at)?) {
            if !is_dots(entry?.name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A block of entries, its checksum verified.
    fn entry_block<'b, B: DirectoryBlocks + ?Sized>(&self, blocks: &'b mut B, at: FileBlock) -> Result<&'b [u8], Stop> {
        if !blocks.is_verified(at) {
            self.format.verify(blocks.block(at)?)?;
            blocks.set_verified(at);
        }
        blocks.block(at)
    }

    /// The format of a block that was verified just now.
    fn verified_format(&self) -> DirectoryFormat {
        DirectoryFormat { verified: true, ..self.format }
    }

    /// The first block, its checksum verified: entries, or the root of the index.
    fn first_block<'b, B: DirectoryBlocks + ?Sized>(&self, blocks: &'b mut B) -> Result<&'b [u8], Stop> {
        if blocks.len_blocks() == 0 {
            return Err(self.format.corrupt("a directory has no block").into());
        }
        if self.uses_index() {
            path::index_root(self, blocks)?;
            return blocks.block(FileBlock(0));
        }
        self.entry_block(blocks, FileBlock(0))
    }

    /// Inserts where there is room; false, and the block is not asked for to be edited, when there is none.
    fn insert_in<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        at: FileBlock,
        new: NewEntry<'_>,
    ) -> Result<bool, Stop> {
        let block = self.entry_block(blocks, at)?;
        if self.format.widest_gap(block)? < entry_bytes(new.name.len()) {
            return Ok(false);
        }
        Ok(self.format.insert(blocks.block_mut(at)?, new)?)
    }

    fn append<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B) -> Result<FileBlock, Stop> {
        let block_bytes = blocks.block(FileBlock(0))?.len() as u64;
        if (u64::from(blocks.len_blocks()) + 1) * block_bytes > DIRECTORY_BYTES_MAX {
            return Err(Stop::TooLarge("the directory"));
        }
        blocks.append()
    }
}
