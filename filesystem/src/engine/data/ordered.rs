//! Little data: it joins the running transaction, gets its blocks there, and is written before the commit block.

use std::ops::Range;

use super::table::PageEdit;
use super::write::{SeenPage, unit_of};
use crate::engine::files::count_blocks;
use crate::engine::handle::Handle;
use crate::layout::extent::Extent;
use crate::map::{Change, FileMap, Limits, Mapping};
use crate::store::{BlockStore, Stop, Wait};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// Blocks kept for a file that grows, fewest and most: as many as it has.
const WINDOW_BLOCKS: Range<u32> = 8..64;
/// Blocks left out behind the block before for those that are not written yet; a larger hole is not expected to be filled.
const GAP_BLOCKS_MAX: u32 = 2048;

impl Handle<'_> {
    /// Has all data of a file that waits in memory become durable with this operation's transaction. For as much as fits
    /// into a transaction beside the work of others.
    ///
    /// Errors: [`Stop::NoSpace`] can only be met for what was not reserved.
    pub fn write_with_transaction(&mut self, file: InodeNumber) -> Result<(), Stop> {
        let pages = self.dirty_pages(file, u64::MAX, usize::MAX);
        let Some((last, _)) = pages.last() else { return Ok(()) };
        if self.table().is_busy(file) {
            return Err(Stop::Wait(Wait::Quiet(file)));
        }
        let end = u64::from(last + 1) * u64::from(self.geometry().block_size);
        let mut inode = self.in_use(file)?;
        let before = inode.clone();
        let size = self.visible_size(file, &inode);
        let mut map = self.file_map(file, &inode);
        let mut change = Change::default();
        let mut added = 0;
        let mut rest = &*pages;
        self.set_owner(file);
        self.set_privileged(true);
        while let Some((at, _)) = rest.first() {
            let count = follows(rest);
            let count = match map.lookup(self, FileBlock(*at))? {
                Mapping::Mapped { run, unwritten } => {
                    let run = BlockRun::new(run.start, run.count.min(count));
                    self.expect_data(run)?;
                    self.order(run, rest);
                    if unwritten {
                        add(&mut change, &mark_written(self, &mut map, *at, run.count)?);
                    }
                    run.count
                }
                Mapping::Hole { count: hole } => {
                    let goal = self.goal_behind(&map, file, *at)?;
                    let run = self.take_run(goal, count.min(hole))?;
                    self.order(run, rest);
                    let extent = Extent { file: FileBlock(*at), run, unwritten: false };
                    add(&mut change, &map.insert(self, extent)?);
                    added += u64::from(run.count);
                    if u64::from(at + run.count) * u64::from(self.geometry().block_size) >= size {
                        let count = (at + run.count).clamp(WINDOW_BLOCKS.start, WINDOW_BLOCKS.end);
                        let wanted = BlockRun::new(run.end(), count);
                        if let Some(window) = self.table().new_window(file, wanted) {
                            self.data_edits_mut().window = Some((file, window));
                        }
                    }
                    run.count
                }
            };
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        self.set_privileged(false);
        inode.map = *map.root();
        count_blocks(&mut inode, added, &change, self.geometry().block_size);
        inode.size = inode.size.max(end.min(size));
        if inode != before {
            self.set_inode(file, &inode)?;
        }
        self.pages_ordered(file, pages, unit_of(&map));
        Ok(())
    }

    fn pages_ordered(&mut self, file: InodeNumber, pages: Vec<(u32, SeenPage)>, unit: i64) {
        let reserved = pages.iter().filter(|(_, page)| page.reserved).count() as i64;
        self.reserve(file, -reserved * unit);
        let edit = self.file_edit(file);
        for (at, SeenPage { content, .. }) in pages {
            edit.pages.insert(at, PageEdit::Put { content, reserved: false, ordered: true });
        }
    }

    /// The first of `pages` go to the blocks of a run with the transaction.
    fn order(&mut self, run: BlockRun, pages: &[(u32, SeenPage)]) {
        for (block, (_, page)) in (run.start.0..run.end().0).map(BlockNumber).zip(pages) {
            if self.is_journaled(block) {
                self.journal_content(block, page);
            } else {
                self.data_edits_mut().ordered.insert(block, page.content.clone());
                self.data_edits_mut().overwritten.push(BlockRun::new(block, 1));
            }
        }
    }

    /// Puts a whole content of a block of data into the log.
    pub(super) fn journal_content(&mut self, at: BlockNumber, page: &SeenPage) {
        self.data_edits_mut().journaled.insert(at);
        // It cannot fail: nothing of the former content is needed.
        if let Ok(block) = self.new_block(at) {
            block.copy_from_slice(page.content.bytes());
        }
    }

    /// Where a block of a file had best lie: behind the one before it.
    pub(super) fn goal_behind(&mut self, map: &FileMap, file: InodeNumber, at: u32) -> Result<BlockNumber, Stop> {
        if let (FileMap::Extents(tree), true) = (map, at > 0) {
            if let Some(before) = tree.previous(self, FileBlock(at))? {
                let gap = Some(at - before.end()).filter(|gap| *gap <= GAP_BLOCKS_MAX).unwrap_or_default();
                return Ok(before.run.end().plus(u64::from(gap)));
            }
        } else if let Some(before) = at.checked_sub(1)
            && let Mapping::Mapped { run, .. } = map.lookup(self, FileBlock(before))?
        {
            return Ok(run.start.plus(1));
        }
        Ok(self.goal_beside(file))
    }
}

/// How many of the first pages follow one another.
pub(super) fn follows(pages: &[(u32, SeenPage)]) -> u32 {
    let first = pages.first().map_or(0, |(at, _)| *at);
    pages.iter().zip(first..).take_while(|((at, _), expected)| at == expected).count() as u32
}

/// Makes unwritten blocks written.
pub(super) fn mark_written(handle: &mut Handle<'_>, map: &mut FileMap, at: u32, count: u32) -> Result<Change, Stop> {
    match map {
        FileMap::Extents(tree) => {
            Ok(tree.convert(handle, FileBlock(at), FileBlock(at + count), false, Limits::NONE)?.change)
        }
        FileMap::Indirect(_) => Ok(Change::default()),
    }
}

pub(super) fn add(to: &mut Change, other: &Change) {
    to.nodes_added += other.nodes_added;
    to.nodes_removed += other.nodes_removed;
    to.data_freed += other.data_freed;
}
