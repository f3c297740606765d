//! Blocks for data that is not there yet: they are reserved on the device, and read as zeros.

use std::ops::Range;

use block_device::BlockDevice;

use super::ordered::add;
use crate::engine::files::count_blocks;
use crate::engine::filesystem::{Done, Failure, Filesystem};
use crate::engine::handle::Handle;
use crate::layout::extent::Extent;
use crate::layout::inode::Inode;
use crate::layout::inode_flags::InodeFlags;
use crate::layout::timestamp::Timestamp;
use crate::map::{Change, FileMap, Limits, Mapping};
use crate::store::{Refusal, Stop};
use crate::units::{FileBlock, InodeNumber};

/// Runs of blocks that one transaction allocates or converts at most.
const RUNS_MAX: u32 = 64;

impl Handle<'_> {
    /// Gives a range of a regular file blocks where it has none; they read as zeros. The file grows to the range's end unless
    /// `keep_size`. False when more remains: it is to be called again, with the same range; the length changes last.
    ///
    /// Errors: [`Stop::NoSpace`] before anything is changed if there are too few blocks; [`Refusal::NotSupported`] for a file
    /// with an indirect map; [`Stop::TooLarge`]; [`Refusal`]s of a file that is no regular one.
    pub fn allocate_range(
        &mut self,
        file: InodeNumber,
        range: Range<u64>,
        keep_size: bool,
        now: Timestamp,
    ) -> Result<bool, Stop> {
        let Some((mut inode, blocks)) = self.begin_allocation(file, &range, keep_size)? else { return Ok(true) };
        let whole = self.fill_holes(file, &mut inode, blocks)?;
        self.end_allocation(file, inode, range.end, whole && !keep_size, now)?;
        Ok(whole)
    }

    /// Makes a range of a regular file read as zeros, and gives it blocks where it has none. Otherwise as
    /// [`Self::allocate_range`].
    pub fn zero_range(
        &mut self,
        file: InodeNumber,
        range: Range<u64>,
        keep_size: bool,
        now: Timestamp,
    ) -> Result<bool, Stop> {
        let Some((mut inode, blocks)) = self.begin_allocation(file, &range, keep_size)? else { return Ok(true) };
        let covered = self.zero_edges(file, &inode, &range)?;
        let mut whole = true;
        if let FileMap::Extents(mut tree) = self.file_map(file, &inode)
            && !covered.is_empty()
        {
            let limits = Limits { nodes_max: RUNS_MAX, ..Limits::NONE };
            let done = tree.convert(self, FileBlock(covered.start), FileBlock(covered.end), true, limits)?;
            inode.map = *tree.root();
            count_blocks(&mut inode, 0, &done.change, self.geometry().block_size);
            whole = done.stopped_at.is_none();
        }
        whole = whole && self.fill_holes(file, &mut inode, blocks)?;
        self.end_allocation(file, inode, range.end, whole && !keep_size, now)?;
        Ok(whole)
    }

    /// The inode of a file that is to get blocks in a range, and the blocks that the range touches; none if it is empty. If the
    /// file is going to grow past its last block, the rest of that is cleared. Errors: the file cannot have them.
    fn begin_allocation(
        &mut self,
        file: InodeNumber,
        range: &Range<u64>,
        keep_size: bool,
    ) -> Result<Option<(Inode, Range<u32>)>, Stop> {
        let inode = self.clean_file_to_change(file)?;
        if !inode.flags.contains(InodeFlags::EXTENTS) {
            return Err(Refusal::NotSupported.into());
        }
        if range.end > self.file_size_max(&inode) {
            return Err(Stop::TooLarge("the file"));
        }
        if range.is_empty() {
            return Ok(None);
        }
        if range.start > inode.size && !keep_size {
            self.clear_tail(file, &inode, inode.size)?;
        }
        let block_bytes = u64::from(self.geometry().block_size);
        let blocks = (range.start / block_bytes) as u32..range.end.div_ceil(block_bytes) as u32;
        Ok(Some((inode, blocks)))
    }

    /// Gives unwritten blocks to holes of a file, as many as one transaction may; true when none is left in the range.
    fn fill_holes(&mut self, file: InodeNumber, inode: &mut Inode, blocks: Range<u32>) -> Result<bool, Stop> {
        let mut map = self.file_map(file, inode);
        let holes = self.holes(&map, blocks.clone(), u32::MAX)?;
        let missing: u64 = holes.iter().map(|hole| u64::from(hole.end - hole.start)).sum();
        if i64::try_from(missing).is_ok_and(|missing| missing > self.available()) {
            return Err(Stop::NoSpace);
        }
        self.set_owner(file);
        let (mut change, mut added, mut runs) = (Change::default(), 0, 0);
        let mut whole = true;
        'holes: for hole in holes {
            let mut at = hole.start;
            while at < hole.end {
                if runs == RUNS_MAX {
                    whole = false;
                    break 'holes;
                }
                let goal = self.goal_behind(&map, file, at)?;
                let run = self.take_run(goal, (hole.end - at).min(Extent::count_max(true)))?;
                let extent = Extent { file: FileBlock(at), run, unwritten: true };
                add(&mut change, &map.insert(self, extent)?);
                added += u64::from(run.count);
                at += run.count;
                runs += 1;
            }
        }
        inode.map = *map.root();
        count_blocks(inode, added, &change, self.geometry().block_size);
        Ok(whole)
    }

    /// Holes of a file within a range, at most so many.
    fn holes(&mut self, map: &FileMap, blocks: Range<u32>, count_max: u32) -> Result<Vec<Range<u32>>, Stop> {
        let mut holes = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end && (holes.len() as u32) < count_max {
            at = match map.lookup(self, FileBlock(at))? {
                Mapping::Mapped { run, .. } => at.saturating_add(run.count),
                Mapping::Hole { count } => {
                    let end = at.saturating_add(count.max(1)).min(blocks.end);
                    holes.push(at..end);
                    end
                }
            };
        }
        Ok(holes)
    }

    /// The inode of a file whose blocks were changed; with `grows` it ends at `end` at least.
    fn end_allocation(
        &mut self,
        file: InodeNumber,
        mut inode: Inode,
        end: u64,
        grows: bool,
        now: Timestamp,
    ) -> Result<(), Stop> {
        if grows {
            inode.size = inode.size.max(end);
            self.data_edits_mut().large_file |= end >= 1 << 31;
        }
        touch_content(self, file, inode, now)
    }
}

/// The content of a file has changed: its inode says so.
pub(super) fn touch_content(
    handle: &mut Handle<'_>,
    file: InodeNumber,
    mut inode: Inode,
    now: Timestamp,
) -> Result<(), Stop> {
    handle.modify(&mut inode, now);
    handle.set_inode(file, &inode)
}

/// The blocks that a range of bytes covers, and the parts of two blocks that it has beside them. In a file of `size` bytes the
/// rest of the last block counts as covered.
pub(super) fn blocks_within(range: &Range<u64>, size: u64, block_bytes: u64) -> (Range<u32>, [Range<u64>; 2]) {
    let end = if range.end >= size { range.end.max(size).next_multiple_of(block_bytes) } else { range.end };
    let (first, last) = (range.start.div_ceil(block_bytes), end / block_bytes);
    let edges = match first <= last {
        true => [range.start..first * block_bytes, last * block_bytes..end],
        false => [range.start..end, end..end],
    };
    let block = |number: u64| number.min(u64::from(u32::MAX)) as u32;
    (block(first)..block(last.max(first)), edges)
}

impl<D: BlockDevice> Filesystem<D> {
    /// Gives a range of a regular file blocks: see [`Handle::allocate_range`]. Errors: the same.
    pub async fn allocate(
        &self,
        file: InodeNumber,
        range: Range<u64>,
        keep_size: bool,
        now: Timestamp,
    ) -> Result<Done<()>, Failure> {
        loop {
            let done = self.run(|handle| handle.allocate_range(file, range.clone(), keep_size, now)).await?;
            if done.value {
                return Ok(done.map(|_| ()));
            }
        }
    }

    /// Makes a range of a regular file read as zeros: see [`Handle::zero_range`]. Errors: the same.
    pub async fn zero(
        &self,
        file: InodeNumber,
        range: Range<u64>,
        keep_size: bool,
        now: Timestamp,
    ) -> Result<Done<()>, Failure> {
        loop {
            let done = self.run(|handle| handle.zero_range(file, range.clone(), keep_size, now)).await?;
            if done.value {
                return Ok(done.map(|_| ()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks, and the edges that are not empty.
    fn within(range: Range<u64>, size: u64) -> (Range<u32>, Vec<(u64, u64)>) {
        let (whole, edges) = blocks_within(&range, size, 1000);
        let edges = edges.iter().filter(|edge| !edge.is_empty()).map(|edge| (edge.start, edge.end));
        (whole, edges.collect())
    }

    #[test]
    fn a_range_is_whole_blocks_and_their_edges() {
        assert_eq!(within(1000..3000, 10_000), (1..3, vec![]));
        assert_eq!(within(1500..3000, 10_000), (2..3, vec![(1500, 2000)]));
        assert_eq!(within(1500..3200, 10_000), (2..3, vec![(1500, 2000), (3000, 3200)]));
        assert_eq!(within(1500..1600, 10_000), (2..2, vec![(1500, 1600)]));
        assert_eq!(within(1500..2500, 10_000), (2..2, vec![(1500, 2000), (2000, 2500)]));
    }

    #[test]
    fn the_last_block_is_covered_from_the_end_on() {
        assert_eq!(within(1000..2500, 2500), (1..3, vec![]));
        assert_eq!(within(1000..2400, 2500), (1..2, vec![(2000, 2400)]));
        assert_eq!(within(2600..2700, 2500), (3..3, vec![(2600, 3000)]));
    }
}
