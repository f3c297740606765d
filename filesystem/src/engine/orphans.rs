//! Inodes without a name: on the list of orphans until their blocks are given back, in as many transactions as that takes.
//!
//! Who still has such a file open, and when it may go, is decided by whoever calls.

use std::collections::BTreeMap;

use super::files::count_blocks;
use super::filesystem::Filesystem;
use super::handle::Handle;
use crate::layout::extent::FILE_BLOCKS_MAX;
use crate::layout::file_kind::FileKind;
use crate::layout::inode::Inode;
use crate::layout::orphan::list::{self, Bounds, END, Links};
use crate::layout::timestamp::Timestamp;
use crate::map::{Change, FileMap, Limits};
use crate::store::{BlockStore, Refusal, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber};

/// What one step gives back at most, so that it fits into a transaction.
const STEP: Limits = Limits { blocks_max: 64 * 1024, nodes_max: 16 };

/// Who stands before an orphan on the list, which itself leads only to those behind: with many files that are open and have no
/// name, one that is closed would be searched for from the list's head. As many entries as there are such files.
#[derive(Debug, Default)]
pub(crate) struct OrphanOrder {
    before: BTreeMap<InodeNumber, InodeNumber>,
}

impl OrphanOrder {
    /// The one before; none before the first, and of one that is not on the list or not known.
    fn before(&self, orphan: InodeNumber) -> Option<InodeNumber> {
        self.before.get(&orphan).copied()
    }

    /// The list as it was found, the newest first.
    pub(super) fn learn(&mut self, orphans: &[InodeNumber]) {
        let pairs = orphans.iter().zip(orphans.iter().skip(1));
        self.before = pairs.map(|(before, orphan)| (*orphan, *before)).collect();
    }

    /// Takes over what an operation changed.
    pub(crate) fn apply(&mut self, edits: BTreeMap<InodeNumber, Option<InodeNumber>>) {
        for (orphan, before) in edits {
            match before {
                Some(before) => self.before.insert(orphan, before),
                None => self.before.remove(&orphan),
            };
        }
    }
}

impl Handle<'_> {
    fn orphan_bounds(&self) -> Bounds {
        let geometry = self.geometry();
        Bounds { first: geometry.first_inode, last: InodeNumber(geometry.inode_count) }
    }

    /// Puts an inode without links on the list.
    pub(super) fn add_orphan(&mut self, number: InodeNumber) -> Result<(), Stop> {
        let first = self.first()?;
        list::add(self, number)?;
        let order = &mut self.data_edits_mut().orphan_order;
        order.insert(number, None);
        if first != END {
            order.insert(first, Some(number));
        }
        Ok(())
    }

    /// Takes a file off the list that has links again, or was cut short, or is gone; nothing if it is not there.
    pub(super) fn remove_orphan(&mut self, number: InodeNumber) -> Result<(), Stop> {
        let edited = self.data_edits().orphan_order.get(&number).copied();
        let mut before = edited.unwrap_or_else(|| self.table().orphan_order.before(number));
        if before.is_none() && self.first()? != number {
            // Not learned: only when orphans are worked on before they were reclaimed.
            let all = self.orphans()?;
            let Some(at) = all.iter().position(|other| *other == number) else { return Ok(()) };
            before = at.checked_sub(1).and_then(|at| all.get(at)).copied();
        }
        let after = self.next(number)?;
        list::remove_after(self, before, number)?;
        let order = &mut self.data_edits_mut().orphan_order;
        order.insert(number, None);
        if after != END {
            order.insert(after, before);
        }
        Ok(())
    }

    /// The file is on the list because its blocks behind the end are being given back.
    pub(super) fn is_being_cut(&self, number: InodeNumber) -> bool {
        let edited = self.data_edits().truncating.get(&number).copied();
        edited.unwrap_or_else(|| self.table().is_truncating(number))
    }

    /// All orphans, the newest first. Errors: the list is broken, or an inode of it is.
    pub fn orphans(&mut self) -> Result<Vec<InodeNumber>, Stop> {
        let bounds = self.orphan_bounds();
        list::walk(self, bounds)
    }

    /// One step towards the end of an orphan: some of its blocks are given back, and when there are none left, the inode. True
    /// when it is gone. Errors: [`Refusal::Stale`] when it has links.
    pub(super) fn reclaim(&mut self, number: InodeNumber, now: Timestamp) -> Result<bool, Stop> {
        let mut inode = self.inode(number)?;
        if inode.links != 0 || inode.mode.kind().is_none() {
            return Err(Refusal::Stale.into());
        }
        if has_map(&inode) {
            let goal = self.goal_beside(number);
            let mut map = FileMap::of_inode(&inode, number, &self.inode_rules(), goal);
            let (from, to) = (FileBlock(0), FileBlock(FILE_BLOCKS_MAX));
            let progress = match inode.mode.kind() {
                Some(FileKind::Regular) => map.remove(self, from, to, STEP)?,
                _ => map.remove(&mut Journaled(self), from, to, STEP)?,
            };
            inode.map = *map.root();
            count_blocks(&mut inode, 0, &progress.change, self.geometry().block_size);
            if progress.stopped_at.is_some() {
                self.set_inode(number, &inode)?;
                return Ok(false);
            }
        }
        self.release_attributes(&mut inode)?;
        inode.size = 0;
        self.set_inode(number, &inode)?;
        self.remove_orphan(number)?;
        // The list has used the same field.
        inode.deleted_or_next_orphan = u32::try_from(now.seconds.max(1)).unwrap_or(u32::MAX);
        self.set_inode(number, &inode)?;
        self.free_inode(number, inode.mode.kind() == Some(FileKind::Directory))?;
        self.data_edits_mut().reclaimed.push(number);
        Ok(true)
    }

    /// Gives back the block of attributes, or its share in one.
    fn release_attributes(&mut self, inode: &mut Inode) -> Result<(), Stop> {
        if inode.attributes_block.0 == 0 {
            return Ok(());
        }
        let format = self.attributes_format();
        crate::attributes::release(self, format, inode.attributes_block)?;
        inode.attributes_block.0 = 0;
        count_blocks(inode, 0, &Change { nodes_removed: 1, ..Change::default() }, self.geometry().block_size);
        Ok(())
    }
}

impl<D> Filesystem<D> {
    /// Somebody has a file open: should it lose its last name, it lives on until everybody has let go of it. False when it is
    /// too late: it has none, nobody had it open, and it is on its way out. Whose file it is by now is for the caller to
    /// look at, by its generation.
    pub fn hold(&self, file: InodeNumber) -> bool {
        self.state.borrow_mut().table.opened(file)
    }

    /// The end of one [`Self::hold`] that was true.
    pub fn let_go(&self, file: InodeNumber) {
        self.state.borrow_mut().table.closed(file);
        self.background.notify_one();
    }
}

/// Blocks of directories and symbolic links: they may be in the log, although they are what a map calls data.
struct Journaled<'h, 'a>(&'h mut Handle<'a>);

impl BlockStore for Journaled<'_, '_> {
    fn block(&mut self, at: BlockNumber) -> Result<&[u8], Stop> {
        self.0.block(at)
    }

    fn block_mut(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.0.block_mut(at)
    }

    fn new_block(&mut self, at: BlockNumber) -> Result<&mut [u8], Stop> {
        self.0.new_block(at)
    }

    fn allocate(&mut self, goal: BlockNumber) -> Result<BlockNumber, Stop> {
        self.0.allocate(goal)
    }

    fn free(&mut self, run: BlockRun, _metadata: bool) -> Result<(), Stop> {
        self.0.free(run, true)
    }
}

/// True when the inode has blocks by a map, and not something else in its place.
fn has_map(inode: &Inode) -> bool {
    match inode.mode.kind() {
        Some(FileKind::Regular | FileKind::Directory) => true,
        Some(FileKind::Symlink) => inode.fast_symlink().is_none(),
        _ => false,
    }
}

impl Links for Handle<'_> {
    fn first(&mut self) -> Result<InodeNumber, Stop> {
        Ok(self.last_orphan().unwrap_or_default())
    }

    fn set_first(&mut self, first: InodeNumber) -> Result<(), Stop> {
        self.set_last_orphan(Some(first).filter(|first| first.0 != 0));
        Ok(())
    }

    fn next(&mut self, orphan: InodeNumber) -> Result<InodeNumber, Stop> {
        Ok(InodeNumber(self.inode(orphan)?.deleted_or_next_orphan))
    }

    fn set_next(&mut self, orphan: InodeNumber, next: InodeNumber) -> Result<(), Stop> {
        let mut inode = self.inode(orphan)?;
        inode.deleted_or_next_orphan = next.0;
        self.set_inode(orphan, &inode)
    }
}
