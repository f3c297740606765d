//! How an indexed directory takes a name: where its block is full, blocks of entries are split, and nodes and the root
//! above them; and how a directory gets its index.
//!
//! Blocks are never joined or given back: an index only grows.

use crate::directory::path::{self, Frame, Path};
use crate::directory::{Directory, DirectoryBlocks};
use crate::layout::dirent::{NewEntry, entry_bytes};
use crate::layout::htree::{self, IndexEntry, LEVELS_MAX};
use crate::store::Stop;
use crate::units::FileBlock;

/// Steps of growth that one name can need: a level, a node, and a block of entries.
const STEPS_MAX: usize = 3;

impl Directory {
    /// Puts in a name that is not there.
    pub(super) fn insert_indexed<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        new: NewEntry<'_>,
    ) -> Result<(), Stop> {
        for _ in 0..=STEPS_MAX {
            let (path, _) = Path::to_name(self, blocks, new.name)?;
            if self.insert_in(blocks, path.leaf(), new)? {
                return Ok(());
            }
            self.grow(blocks, &path)?;
        }
        Err(self.format.corrupt("a directory has no room after it has grown").into())
    }

    /// Gives a directory of one full block an index: its entries move to a second one.
    pub(super) fn convert<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B) -> Result<(), Stop> {
        let old = self.entry_block(blocks, FileBlock(0))?.to_vec();
        let [dot, dot_dot] = self.format.dots(&old)?;
        if dot.inode != self.format.directory {
            return Err(self.format.corrupt("'.' is another directory").into());
        }
        let entries = self.format.entries(&old).skip(2).collect::<Result<Vec<_>, _>>()?;
        let leaf = self.append(blocks)?;
        if !self.format.pack(blocks.block_mut(leaf)?, entries.into_iter().map(NewEntry::from))? {
            return Err(self.format.corrupt("entries of one block do not fit in another").into());
        }
        let root = blocks.block_mut(FileBlock(0))?;
        Ok(htree::init_root(&self.format, root, dot_dot.inode, self.hashing.version, leaf)?)
    }

    /// One step towards room at the end of the path.
    fn grow<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, path: &Path) -> Result<(), Stop> {
        match path.frames() {
            [.., last] if !last.is_full() => self.split_leaf(blocks, path.leaf(), last),
            [_] => self.add_level(blocks),
            [root, node] if !root.is_full() => self.split_node(blocks, root, node),
            _ => Err(Stop::TooLarge("the directory")),
        }
    }

    /// Moves the entries of a full root to a node below it.
    fn add_level<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B) -> Result<(), Stop> {
        let entries = self.index_entries(blocks, FileBlock(0))?;
        let node = self.append(blocks)?;
        htree::init_node(&self.format, blocks.block_mut(node)?, &entries)?;
        let root = blocks.block_mut(FileBlock(0))?;
        htree::set_levels(&self.format, root, LEVELS_MAX)?;
        Ok(htree::write_root_entries(&self.format, root, &[IndexEntry { hash: 0, block: node }])?)
    }

    /// Moves the upper half of a full node to a new one.
    fn split_node<B: DirectoryBlocks + ?Sized>(&self, blocks: &mut B, root: &Frame, node: &Frame) -> Result<(), Stop> {
        let entries = self.index_entries(blocks, node.block)?;
        let (lower, upper) = entries.split_at(entries.len() / 2);
        let Some(first) = upper.first() else { return Err(self.format.corrupt("a full node has no entry").into()) };
        let at = self.append(blocks)?;
        htree::init_node(&self.format, blocks.block_mut(at)?, upper)?;
        htree::write_node_entries(&self.format, blocks.block_mut(node.block)?, lower)?;
        self.add_to_index(blocks, root, IndexEntry { hash: first.hash, block: at })
    }

    /// Moves the entries with the higher hashes, half of the bytes, to a new block.
    fn split_leaf<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        leaf: FileBlock,
        parent: &Frame,
    ) -> Result<(), Stop> {
        let hashing = path::hashing(self, blocks)?;
        let old = self.entry_block(blocks, leaf)?.to_vec();
        let mut entries = Vec::new();
        for entry in self.format.entries(&old) {
            let entry = entry?;
            entries.push((hashing.hash(entry.name).major, NewEntry::from(entry)));
        }
        entries.sort_by_key(|(hash, _)| *hash);
        let split = half_of_bytes(&entries);
        let (lower, upper) = entries.split_at(split);
        let (Some((last, _)), Some((first, _))) = (lower.last(), upper.first()) else {
            return Err(self.format.corrupt("a full block has less than two entries").into());
        };
        let hash = if last == first { first | htree::CONTINUED } else { *first };
        let at = self.append(blocks)?;
        let packed = self.format.pack(blocks.block_mut(at)?, upper.iter().map(|(_, entry)| *entry))?
            && self.format.pack(blocks.block_mut(leaf)?, lower.iter().map(|(_, entry)| *entry))?;
        if !packed {
            return Err(self.format.corrupt("entries of one block do not fit in two").into());
        }
        self.add_to_index(blocks, parent, IndexEntry { hash, block: at })
    }

    /// Adds an entry behind the one that was chosen in a root or node.
    fn add_to_index<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        frame: &Frame,
        entry: IndexEntry,
    ) -> Result<(), Stop> {
        let mut entries = self.index_entries(blocks, frame.block)?;
        entries.insert((frame.position + 1).min(entries.len()), entry);
        if !entries.is_sorted_by_key(|entry| entry.hash) {
            return Err(self.format.corrupt("an entry is not in the block of its hash").into());
        }
        let block = blocks.block_mut(frame.block)?;
        match frame.block {
            FileBlock(0) => htree::write_root_entries(&self.format, block, &entries)?,
            _ => htree::write_node_entries(&self.format, block, &entries)?,
        }
        Ok(())
    }

    fn index_entries<B: DirectoryBlocks + ?Sized>(
        &self,
        blocks: &mut B,
        at: FileBlock,
    ) -> Result<Vec<IndexEntry>, Stop> {
        Ok(path::index_block(self, blocks, at)?.entries().collect())
    }
}

/// Where to cut, so that both parts have about the same number of bytes on disk, and each at least one entry if there are
/// two. By bytes and not by count: else a part of long names would have no room for the new one.
fn half_of_bytes(entries: &[(u32, NewEntry<'_>)]) -> usize {
    let bytes = |(_, entry): &(u32, NewEntry<'_>)| entry_bytes(entry.name.len());
    let total: usize = entries.iter().map(bytes).sum();
    let mut lower = 0;
    let mut best = (usize::MAX, 0);
    for (index, entry) in entries.iter().enumerate().take(entries.len().saturating_sub(1)) {
        lower += bytes(entry);
        best = best.min((lower.abs_diff(total - lower), index + 1));
    }
    best.1
}
