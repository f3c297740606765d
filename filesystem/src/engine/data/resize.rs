//! Files become longer and shorter, and get holes.
//!
//! The first transaction of a cut has the new length, zeros in the rest of the last block, and the file on the list of
//! orphans if blocks remain to be given back: a crash cannot bring back any of what was cut off.

use std::ops::Range;

use block_device::BlockDevice;

use super::allocate::{blocks_within, touch_content};
use super::content::Content;
use super::write::unit_of;
use crate::engine::files::count_blocks;
use crate::engine::filesystem::{Done, Failure, Filesystem};
use crate::engine::handle::Handle;
use crate::layout::extent::FILE_BLOCKS_MAX;
use crate::layout::inode::Inode;
use crate::layout::timestamp::Timestamp;
use crate::map::{FileMap, Limits, Mapping, Progress};
use crate::store::{BlockStore, Refusal, Stop, Wait};
use crate::units::{FileBlock, InodeNumber};

/// What one transaction gives back at most.
const STEP: Limits = Limits { blocks_max: 64 * 1024, nodes_max: 16 };

impl Handle<'_> {
    /// Makes a regular file `size` bytes long. What is cut off is gone at once; its blocks are given back in the background if
    /// they are many. Behind the former end are zeros.
    ///
    /// Errors: [`crate::Refusal`]s of a file that is no regular one; [`Stop::TooLarge`].
    pub fn truncate(&mut self, file: InodeNumber, size: u64, now: Timestamp) -> Result<(), Stop> {
        let mut inode = self.file_to_change(file)?;
        if size > self.file_size_max(&inode) {
            return Err(Stop::TooLarge("the file"));
        }
        if self.table().is_busy(file) {
            return Err(Stop::Wait(Wait::Quiet(file)));
        }
        let former = self.visible_size(file, &inode);
        let block_bytes = u64::from(self.geometry().block_size);
        if size >= former {
            self.clear_tail(file, &inode, former)?;
        } else {
            self.drop_pages(file, &inode, size.div_ceil(block_bytes) as u32);
            self.zero_within_block(file, &inode, size..size.next_multiple_of(block_bytes).min(former))?;
        }
        // Room for blocks behind the end may have been allocated, and goes, too, even when nothing is cut off.
        self.file_edit(file).size = Some(size);
        inode.size = size;
        self.data_edits_mut().large_file |= size >= 1 << 31;
        self.modify(&mut inode, now);
        if size <= former
            && !self.remove_blocks(file, &mut inode, size.div_ceil(block_bytes) as u32..FILE_BLOCKS_MAX)?
        {
            if inode.links > 0 {
                self.set_inode(file, &inode)?;
                self.add_orphan(file)?;
                inode.deleted_or_next_orphan = self.inode(file)?.deleted_or_next_orphan;
            }
            self.data_edits_mut().truncating.insert(file, true);
        }
        self.set_inode(file, &inode)
    }

    /// One more step of a cut; true when nothing remains behind the file's end, and the file is an orphan no more.
    pub(in crate::engine) fn truncate_step(&mut self, file: InodeNumber) -> Result<bool, Stop> {
        let mut inode = self.inode(file)?;
        let from = inode.size.div_ceil(u64::from(self.geometry().block_size)).min(u64::from(FILE_BLOCKS_MAX)) as u32;
        let whole = self.remove_blocks(file, &mut inode, from..FILE_BLOCKS_MAX)?;
        self.set_inode(file, &inode)?;
        if whole {
            if inode.links > 0 {
                self.remove_orphan(file)?;
            }
            self.data_edits_mut().truncating.insert(file, false);
        }
        Ok(whole)
    }

    /// Makes a range of a regular file a hole. Blocks that it covers in part get zeros there. False when more remains: it is
    /// to be called again, with the same range. The file's length stays.
    ///
    /// Errors: [`crate::Refusal`]s of a file that is no regular one.
    pub fn punch(&mut self, file: InodeNumber, range: Range<u64>, now: Timestamp) -> Result<bool, Stop> {
        let mut inode = self.clean_file_to_change(file)?;
        let range = range.start..range.end.min(self.file_size_max(&inode));
        if range.is_empty() {
            return Ok(true);
        }
        let blocks = self.zero_edges(file, &inode, &range)?;
        let whole = self.remove_blocks(file, &mut inode, blocks)?;
        touch_content(self, file, inode, now)?;
        Ok(whole)
    }

    /// A regular file that is to be changed, of which nothing waits in memory. Errors: [`Refusal::NotSupported`] when the same
    /// operation has written into it.
    pub(super) fn clean_file_to_change(&mut self, file: InodeNumber) -> Result<Inode, Stop> {
        let inode = self.file_to_change(file)?;
        if self.table().is_busy(file) {
            return Err(Stop::Wait(Wait::Quiet(file)));
        }
        if self.data_edits().files.contains_key(&file) {
            // What it wrote itself cannot be waited for.
            return Err(Refusal::NotSupported.into());
        }
        if self.table().pages(file, 0).next().is_some() {
            return Err(Stop::Wait(Wait::Clean(file)));
        }
        Ok(inode)
    }

    /// Zeros in blocks that a range covers in part. Gives those that it covers whole; the rest of the file's last block
    /// counts as covered, for there is nothing in it.
    pub(super) fn zero_edges(
        &mut self,
        file: InodeNumber,
        inode: &Inode,
        range: &Range<u64>,
    ) -> Result<Range<u32>, Stop> {
        let block_bytes = u64::from(self.geometry().block_size);
        let (whole, edges) = blocks_within(range, inode.size, block_bytes);
        for edge in edges {
            self.zero_within_block(file, inode, edge)?;
        }
        Ok(whole)
    }

    /// Zeros in a part of one block: through the log, so that it happens with the rest of the operation or not at all.
    fn zero_within_block(&mut self, file: InodeNumber, inode: &Inode, range: Range<u64>) -> Result<(), Stop> {
        let block_bytes = u64::from(self.geometry().block_size);
        if range.is_empty() || range.start.is_multiple_of(block_bytes) && range.end.is_multiple_of(block_bytes) {
            return Ok(());
        }
        let at = (range.start / block_bytes) as u32;
        let start = u64::from(at) * block_bytes;
        let inside = (range.start - start) as usize..(range.end - start) as usize;
        let page = self.page(file, at);
        let map = self.file_map(file, inode);
        let mapping = map.lookup(self, FileBlock(at))?;
        match (page, mapping) {
            // What waits goes through the log with its zeros: nothing of it is to be written later.
            (Some(mut page), Mapping::Mapped { run, unwritten: false }) => {
                let mut buffer = page.content.to_buffer();
                buffer[inside].fill(0);
                page.content = Content::whole(buffer.into());
                self.expect_data(run)?;
                self.journal_content(run.start, &page);
                self.drop_page(file, at, unit_of(&map));
            }
            (Some(page), _) => {
                let mut buffer = page.content.to_buffer();
                buffer[inside].fill(0);
                self.put_page(file, at, Content::whole(buffer.into()), page.reserved);
            }
            (None, Mapping::Mapped { run, unwritten: false }) => {
                if self.block(run.start)?.get(inside.clone()).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0)) {
                    self.data_block_mut(run.start)?[inside].fill(0);
                }
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Does not want data any more that waits for blocks from `from` on.
    fn drop_pages(&mut self, file: InodeNumber, inode: &Inode, from: u32) {
        let unit = unit_of(&self.file_map(file, inode));
        let own = self.data_edits().files.get(&file).map(|edit| edit.pages.range(from..));
        let mut all: Vec<u32> = own.into_iter().flatten().map(|(at, _)| *at).collect();
        all.extend(self.table().pages(file, from).map(|(at, _)| at));
        all.sort_unstable();
        all.dedup();
        let reserved = all.iter().filter(|at| self.page(file, **at).is_some_and(|page| page.reserved)).count() as i64;
        self.reserve(file, -reserved * unit);
        let edit = self.file_edit(file);
        drop(edit.pages.split_off(&from));
        edit.dropped_from = Some(edit.dropped_from.map_or(from, |former| former.min(from)));
    }

    /// Gives back blocks of a file, as many as one transaction may; true when all of the range are gone.
    pub(super) fn remove_blocks(
        &mut self,
        file: InodeNumber,
        inode: &mut Inode,
        range: Range<u32>,
    ) -> Result<bool, Stop> {
        if range.is_empty() {
            return Ok(true);
        }
        let mut map: FileMap = self.file_map(file, inode);
        self.set_privileged(true);
        let Progress { change, stopped_at } = map.remove(self, FileBlock(range.start), FileBlock(range.end), STEP)?;
        self.set_privileged(false);
        inode.map = *map.root();
        count_blocks(inode, 0, &change, self.geometry().block_size);
        Ok(stopped_at.is_none())
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Makes a regular file `size` bytes long: see [`Handle::truncate`]. Errors: the same.
    pub async fn truncate(&self, file: InodeNumber, size: u64, now: Timestamp) -> Result<Done<()>, Failure> {
        self.run(|handle| handle.truncate(file, size, now)).await
    }

    /// Makes a range of a regular file a hole: see [`Handle::punch`]. Errors: the same.
    pub async fn punch(&self, file: InodeNumber, range: Range<u64>, now: Timestamp) -> Result<Done<()>, Failure> {
        loop {
            let done = self.run(|handle| handle.punch(file, range.clone(), now)).await?;
            if done.value {
                return Ok(done.map(|_| ()));
            }
        }
    }

    /// Gives back the blocks behind the end of a file that is being cut short.
    pub(in crate::engine) async fn finish_truncate(&self, file: InodeNumber) -> Result<(), Failure> {
        let _busy = self.claim_file(file).await;
        while self.state.borrow().table.is_truncating(file) {
            self.run_with_holds(|handle| handle.truncate_step(file), false).await?;
        }
        Ok(())
    }
}
