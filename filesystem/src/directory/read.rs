//! Reading a directory in the order of its hashes.
//!
//! A position is 63 bits: the upper 31 bits of a name's major hash, then the 32 bits of its minor hash. It depends on the
//! name alone, so it stays valid while entries come and go, blocks are split, and the directory gets an index: directories
//! without one are served in the same order. `.` is at 1 and `..` at 2; a name that hashes below 3 is at 3. 0 is the start.
//!
//! Names at the same position (for the legacy hash, which has no minor one, names that collide) are never in two batches,
//! since a reader could not go on between them. Memory is bounded by the batch that is asked for, one block, and such names.

use crate::directory::path::{self, Path};
use crate::directory::{Directory, DirectoryBlocks};
use crate::layout::dirent::{EntryType, is_dots, is_sound_name};
use crate::layout::hash::{Hashing, NameHash};
use crate::layout::htree::CONTINUED;
use crate::store::Stop;
use crate::units::{FileBlock, InodeNumber};

/// A position between entries: behind all that are at it. Below 2^63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

impl Cookie {
    /// Before all entries.
    pub const START: Cookie = Cookie(0);
    /// That of `.`.
    pub const DOT: Cookie = Cookie(1);
    /// That of `..`.
    pub const DOT_DOT: Cookie = Cookie(2);
    /// The lowest of a name.
    const NAMES: Cookie = Cookie(3);

    fn of(hash: NameHash) -> Self {
        Self::NAMES.max(Self((u64::from(hash.major >> 1) << 32) | u64::from(hash.minor)))
    }

    /// The lowest major hash of names behind it.
    fn major(self) -> u32 {
        ((self.0 >> 32) as u32) << 1
    }
}

/// An entry as a reader gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEntry {
    /// Where it is; to go on behind it.
    pub cookie: Cookie,
    /// Its name.
    pub name: Vec<u8>,
    /// The inode it names.
    pub inode: InodeNumber,
    /// What it says about that inode.
    pub kind: EntryType,
}

/// Entries that follow one another, ordered by their cookies and then their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Empty only at the end.
    pub entries: Vec<ReadEntry>,
    /// Whether nothing follows.
    pub at_end: bool,
}

impl Directory {
    /// The first `wanted` entries (at least one) behind `after`, and those at the position of the last one. Errors:
    /// blocks that are missing or broken, and names that no entry may have.
    pub fn read<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        after: Cookie,
        wanted: usize,
    ) -> Result<Batch, Stop> {
        let mut selection = Selection { after, wanted: wanted.max(1), entries: Vec::new(), dropped: false };
        let dots = self.format.dots(self.first_block(blocks)?)?;
        for (entry, cookie) in dots.into_iter().zip([Cookie::DOT, Cookie::DOT_DOT]) {
            selection.add(cookie, entry.name, entry.inode, entry.kind);
        }
        let at_end = if self.uses_index() {
            self.select_indexed(blocks, &mut selection)?
        } else {
            for at in (0..blocks.len_blocks()).map(FileBlock) {
                self.select(blocks, at, &self.hashing, &mut selection)?;
            }
            true
        };
        selection.trim();
        Ok(Batch { at_end: at_end && !selection.dropped, entries: selection.entries })
    }

    /// From the block of the first position on, until there is enough. True when no block is left.
    fn select_indexed<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        selection: &mut Selection,
    ) -> Result<bool, Stop> {
        let hashing = path::hashing(self, blocks)?;
        let mut path = Path::to_hash(self, blocks, selection.after.major())?;
        loop {
            self.select(blocks, path.leaf(), &hashing, selection)?;
            let Some(key) = path.next_key(self, blocks)? else { return Ok(true) };
            // What goes on in the next block has to be ordered with what is in this one.
            if key & CONTINUED == 0 && selection.is_enough() {
                return Ok(false);
            }
            path.step(self, blocks)?;
        }
    }

    fn select<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        at: FileBlock,
        hashing: &Hashing,
        selection: &mut Selection,
    ) -> Result<(), Stop> {
        let first_names = if at == FileBlock(0) { 2 } else { 0 };
        for entry in self.format.entries(self.entry_block(blocks, at)?).skip(first_names) {
            let entry = entry?;
            if !is_sound_name(entry.name) || is_dots(entry.name) {
                return Err(self.format.corrupt("an entry has a name that no entry may have").into());
            }
            selection.add(Cookie::of(hashing.hash(entry.name)), entry.name, entry.inode, entry.kind);
        }
        if selection.is_enough() {
            selection.trim();
        }
        Ok(())
    }
}

/// The lowest entries seen so far.
struct Selection {
    after: Cookie,
    wanted: usize,
    entries: Vec<ReadEntry>,
    /// Whether entries behind these were seen.
    dropped: bool,
}

impl Selection {
    fn add(&mut self, cookie: Cookie, name: &[u8], inode: InodeNumber, kind: EntryType) {
        if cookie > self.after {
            self.entries.push(ReadEntry { cookie, name: name.to_vec(), inode, kind });
        }
    }

    fn is_enough(&self) -> bool {
        self.entries.len() >= self.wanted
    }

    /// Orders what is there, and drops what is behind the wanted ones and those at the position of the last of them.
    fn trim(&mut self) {
        self.entries.sort_by(|a, b| a.cookie.cmp(&b.cookie).then_with(|| a.name.cmp(&b.name)));
        if let Some(last) = self.entries.get(self.wanted - 1).map(|entry| entry.cookie) {
            let kept = self.entries.partition_point(|entry| entry.cookie <= last);
            self.dropped |= kept < self.entries.len();
            self.entries.truncate(kept);
        }
    }
}
