//! The whole of a directory checked at once, as no operation does it: for tests, and for a scrub.

use std::collections::BTreeSet;

use crate::directory::path::{self, Path};
use crate::directory::{Directory, DirectoryBlocks};
use crate::layout::dirent::{is_dots, is_sound_name};
use crate::layout::hash::Hashing;
use crate::store::Stop;
use crate::units::FileBlock;

/// What a directory consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries without `.` and `..`.
    pub entries: u64,
    /// Blocks of entries.
    pub leaves: u32,
    /// Blocks of the index: its root and nodes.
    pub index_blocks: u32,
    /// Blocks of entries that go on with the last hash of the one before.
    pub continued: u32,
}

/// Checks every block, checksum and name, that each entry is where its hash wants it, and that the index leads to each
/// block once. Errors: what is missing or broken.
pub fn check<B: DirectoryBlocks + ?Sized>(directory: &Directory, blocks: &mut B) -> Result<Summary, Stop> {
    directory.format.dots(directory.first_block(blocks)?)?;
    let mut summary = Summary::default();
    if !directory.uses_index() {
        for at in (0..blocks.len_blocks()).map(FileBlock) {
            summary.leaves += 1;
            summary.entries += leaf(directory, blocks, at, None)?;
        }
        return Ok(summary);
    }
    let hashing = path::hashing(directory, blocks)?;
    let mut seen = BTreeSet::new();
    let mut path = Path::to_hash(directory, blocks, 0)?;
    let mut key = 0;
    loop {
        seen.extend(path.frames().iter().map(|frame| frame.block));
        if !seen.insert(path.leaf()) {
            return Err(directory.format.corrupt("an index leads to a block twice").into());
        }
        let next = path.next_key(directory, blocks)?;
        let range = Range { low: key & !1, end: next.unwrap_or(u32::MAX), hashing };
        summary.leaves += 1;
        summary.continued += key & 1;
        summary.entries += leaf(directory, blocks, path.leaf(), Some(range))?;
        let Some(next) = next else { break };
        if next < key {
            return Err(directory.format.corrupt("an index is out of order").into());
        }
        key = next;
        path.step(directory, blocks)?;
    }
    if seen.len() as u64 != u64::from(blocks.len_blocks()) {
        return Err(directory.format.corrupt("an index does not lead to every block").into());
    }
    summary.index_blocks = blocks.len_blocks() - summary.leaves;
    Ok(summary)
}

/// The hashes that a block of entries may have.
struct Range {
    low: u32,
    /// One past the highest, or that with the bit of a collision, which is odd and thus past it, too.
    end: u32,
    hashing: Hashing,
}

fn leaf<B: DirectoryBlocks + ?Sized>(
    directory: &Directory,
    blocks: &mut B,
    at: FileBlock,
    range: Option<Range>,
) -> Result<u64, Stop> {
    let dots = if at == FileBlock(0) { 2 } else { 0 };
    let mut names = BTreeSet::new();
    for entry in directory.format.entries(directory.entry_block(blocks, at)?).skip(dots) {
        let entry = entry?;
        if !is_sound_name(entry.name) || is_dots(entry.name) {
            return Err(directory.format.corrupt("an entry has a name that no entry may have").into());
        }
        if !names.insert(entry.name) {
            return Err(directory.format.corrupt("a name is there twice").into());
        }
        if let Some(range) = &range {
            let hash = range.hashing.hash(entry.name).major;
            if hash < range.low || hash >= range.end {
                return Err(directory.format.corrupt("an entry is not in the block of its hash").into());
            }
        }
    }
    Ok(names.len() as u64)
}
