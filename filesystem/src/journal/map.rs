//! Where the journal lies on the device: its inode's extents, turned into a table.

use std::collections::BTreeMap;

use crate::layout::{Corrupt, Structure};
use crate::units::{BlockNumber, BlockRun};

use super::ring::LogIndex;

/// Which block of the device holds which block of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalMap {
    by_log_index: Vec<(LogIndex, BlockRun)>,
    by_device_block: BTreeMap<u64, u32>,
    block_count: u32,
}

impl JournalMap {
    /// The map of a journal whose extents, in order of its blocks, are `extents`: first block of the journal, and the run
    /// of the device that holds it and those that follow.
    ///
    /// Errors: a hole, an overlap, or a journal of more blocks than 32 bits can count.
    pub fn new(extents: &[(LogIndex, BlockRun)]) -> Result<Self, Corrupt> {
        let mut map = Self::default();
        for &(start, run) in extents {
            let corrupt = |what| Corrupt::new(Structure::JournalBlock, u64::from(start.0), what);
            if start.0 != map.block_count || run.count == 0 {
                return Err(corrupt("the journal has a hole"));
            }
            let end = run.start.0.checked_add(u64::from(run.count)).ok_or(corrupt("an extent ends past 2^64"))?;
            let before = map.by_device_block.range(..end).next_back();
            if before.is_some_and(|(&other, &count)| other + u64::from(count) > run.start.0) {
                return Err(corrupt("the journal has a block twice"));
            }
            map.block_count = map.block_count.checked_add(run.count).ok_or(corrupt("the journal is too long"))?;
            map.by_device_block.insert(run.start.0, run.count);
            map.by_log_index.push((start, run));
        }
        Ok(map)
    }

    /// How many blocks the journal has, its superblock among them.
    pub fn block_count(&self) -> u32 {
        self.block_count
    }

    /// The run of the device that holds the journal's block `at` and those that follow, at most `count_max`; `None` past
    /// the journal's end.
    pub fn run(&self, at: LogIndex, count_max: u32) -> Option<BlockRun> {
        let after = self.by_log_index.partition_point(|(start, _)| *start <= at);
        let (start, run) = self.by_log_index.get(after.checked_sub(1)?)?;
        let skipped = at.0 - start.0;
        let left = run.count.checked_sub(skipped).filter(|left| *left > 0)?;
        Some(BlockRun::new(run.start.plus(u64::from(skipped)), left.min(count_max)))
    }

    /// The block of the device that holds the journal's block `at`; `None` past the journal's end.
    pub fn device_block(&self, at: LogIndex) -> Option<BlockNumber> {
        self.run(at, 1).map(|run| run.start)
    }

    /// True when this block of the device belongs to the journal.
    pub fn holds(&self, block: BlockNumber) -> bool {
        let before = self.by_device_block.range(..=block.0).next_back();
        before.is_some_and(|(&start, &count)| block.0 - start < u64::from(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u32) -> BlockRun {
        BlockRun::new(BlockNumber(start), count)
    }

    #[test]
    fn blocks_are_found_both_ways() {
        let map = JournalMap::new(&[(LogIndex(0), run(100, 3)), (LogIndex(3), run(50, 2))]).unwrap();
        assert_eq!(map.block_count(), 5);
        let blocks: Vec<_> = (0..6).map(|at| map.device_block(LogIndex(at)).map(|block| block.0)).collect();
        assert_eq!(blocks, [Some(100), Some(101), Some(102), Some(50), Some(51), None]);
        assert_eq!(map.run(LogIndex(1), 9), Some(run(101, 2)));
        assert_eq!(map.run(LogIndex(0), 2), Some(run(100, 2)));
        let held: Vec<u64> = (0..200).filter(|block| map.holds(BlockNumber(*block))).collect();
        assert_eq!(held, [50, 51, 100, 101, 102]);
    }

    #[test]
    fn holes_and_overlaps_are_refused() {
        assert!(JournalMap::new(&[(LogIndex(1), run(100, 3))]).is_err());
        assert!(JournalMap::new(&[(LogIndex(0), run(100, 3)), (LogIndex(4), run(50, 2))]).is_err());
        assert!(JournalMap::new(&[(LogIndex(0), run(100, 3)), (LogIndex(3), run(102, 2))]).is_err());
        assert!(JournalMap::new(&[(LogIndex(0), run(100, 3)), (LogIndex(3), run(90, 20))]).is_err());
        assert!(JournalMap::new(&[(LogIndex(0), run(u64::MAX, 3))]).is_err());
    }
}
