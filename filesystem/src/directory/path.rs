//! The way from the root of an index to a block of entries.
//!
//! Reads only. Bounded: a tree has two levels at most, and a step never goes back.

use smallvec::SmallVec;

use crate::directory::{Directory, DirectoryBlocks};
use crate::layout::hash::{Hashing, NameHash};
use crate::layout::htree::{IndexBlock, IndexEntry, RootInfo};
use crate::store::Stop;
use crate::units::FileBlock;

/// A chosen entry at each level, and the block of entries they lead to.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    frames: SmallVec<[Frame; 2]>,
    levels: usize,
    leaf: FileBlock,
}

/// The root or a node, and the entry chosen there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) block: FileBlock,
    pub(crate) position: usize,
    pub(crate) count: usize,
    pub(crate) limit: usize,
}

impl Frame {
    pub(crate) fn is_full(&self) -> bool {
        self.count >= self.limit
    }
}

impl Path {
    /// To the first block that may have the name, whose hash by this index is given, too.
    pub(crate) fn to_name<B: DirectoryBlocks + ?Sized>(
        directory: &Directory,
        blocks: &mut B,
        name: &[u8],
    ) -> Result<(Self, NameHash), Stop> {
        let hash = hashing(directory, blocks)?.hash(name);
        Ok((Self::to_hash(directory, blocks, hash.major)?, hash))
    }

    /// To the first block that may have names of this major hash.
    pub(crate) fn to_hash<B: DirectoryBlocks + ?Sized>(
        directory: &Directory,
        blocks: &mut B,
        hash: u32,
    ) -> Result<Self, Stop> {
        let len = blocks.len_blocks();
        let (info, root) = index_root(directory, blocks)?;
        let mut path = Self { frames: SmallVec::new(), levels: usize::from(info.levels), leaf: FileBlock(0) };
        path.enter(directory, len, FileBlock(0), root, root.position_of(hash))?;
        path.descend(directory, blocks, Some(hash))?;
        Ok(path)
    }

    /// The block of entries.
    pub(crate) fn leaf(&self) -> FileBlock {
        self.leaf
    }

    /// From the root on.
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The hash at which the next block of entries starts, as the index has it: with the bit of a collision.
    pub(crate) fn next_key<B: DirectoryBlocks + ?Sized>(
        &self,
        directory: &Directory,
        blocks: &mut B,
    ) -> Result<Option<u32>, Stop> {
        let Some(frame) = self.frames.iter().rev().find(|frame| frame.position + 1 < frame.count) else {
            return Ok(None);
        };
        let block = index_block(directory, blocks, frame.block)?;
        Ok(block.entry(frame.position + 1).map(|entry| entry.hash))
    }

    /// Goes to the next block of entries; false, and the path stays, when there is none.
    pub(crate) fn step<B: DirectoryBlocks + ?Sized>(
        &mut self,
        directory: &Directory,
        blocks: &mut B,
    ) -> Result<bool, Stop> {
        let Some(depth) = self.frames.iter().rposition(|frame| frame.position + 1 < frame.count) else {
            return Ok(false);
        };
        let Frame { block: at, position, .. } = self.frames[depth];
        let len = blocks.len_blocks();
        self.frames.truncate(depth);
        let block = index_block(directory, blocks, at)?;
        self.enter(directory, len, at, block, position + 1)?;
        self.descend(directory, blocks, None)?;
        Ok(true)
    }

    /// From the last frame down to a block of entries: towards a hash, or always by the first entry.
    fn descend<B: DirectoryBlocks + ?Sized>(
        &mut self,
        directory: &Directory,
        blocks: &mut B,
        hash: Option<u32>,
    ) -> Result<(), Stop> {
        let len = blocks.len_blocks();
        while self.frames.len() <= self.levels {
            let at = self.leaf;
            let node = index_node(directory, blocks, at)?;
            let position = hash.map_or(0, |hash| node.position_of(hash));
            self.enter(directory, len, at, node, position)?;
        }
        Ok(())
    }

    /// Notes the choice of an entry. It must lead to a block of the directory that is not above it.
    fn enter(
        &mut self,
        directory: &Directory,
        len: u32,
        at: FileBlock,
        block: IndexBlock<'_>,
        position: usize,
    ) -> Result<(), Stop> {
        self.frames.push(Frame { block: at, position, count: block.count(), limit: block.limit() });
        match block.entry(position) {
            Some(IndexEntry { block: child, .. })
                if child.0 < len && self.frames.iter().all(|frame| frame.block != child) =>
            {
                self.leaf = child;
                Ok(())
            }
            _ => Err(directory.format.corrupt("an index leads to a block that cannot be").into()),
        }
    }
}

/// How an indexed directory hashes names.
pub(crate) fn hashing<B: DirectoryBlocks + ?Sized>(directory: &Directory, blocks: &mut B) -> Result<Hashing, Stop> {
    if blocks.len_blocks() == 0 {
        return Err(directory.format.corrupt("a directory has no block").into());
    }
    let (info, _) = index_root(directory, blocks)?;
    Ok(directory.hashing.with_version(info.version))
}

/// The root or a node.
pub(crate) fn index_block<'b, B: DirectoryBlocks + ?Sized>(
    directory: &Directory,
    blocks: &'b mut B,
    at: FileBlock,
) -> Result<IndexBlock<'b>, Stop> {
    Ok(match at {
        FileBlock(0) => index_root(directory, blocks)?.1,
        _ => index_node(directory, blocks, at)?,
    })
}

/// The root.
pub(crate) fn index_root<'b, B: DirectoryBlocks + ?Sized>(
    directory: &Directory,
    blocks: &'b mut B,
) -> Result<(RootInfo, IndexBlock<'b>), Stop> {
    if !blocks.is_verified(FileBlock(0)) {
        IndexBlock::root(&directory.format, blocks.block(FileBlock(0))?)?;
        blocks.set_verified(FileBlock(0));
    }
    Ok(IndexBlock::root(&directory.verified_format(), blocks.block(FileBlock(0))?)?)
}

/// A node.
fn index_node<'b, B: DirectoryBlocks + ?Sized>(
    directory: &Directory,
    blocks: &'b mut B,
    at: FileBlock,
) -> Result<IndexBlock<'b>, Stop> {
    if !blocks.is_verified(at) {
        IndexBlock::node(&directory.format, blocks.block(at)?)?;
        blocks.set_verified(at);
    }
    Ok(IndexBlock::node(&directory.verified_format(), blocks.block(at)?)?)
}
