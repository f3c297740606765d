//! The blocks of the filesystem itself: no file may map one, whatever its inode says, for writing it would be the end of more
//! than that file.

use crate::units::BlockRun;

/// Superblocks, descriptors, bitmaps, tables of inodes, and the journal.
#[derive(Clone, Debug, Default)]
pub(super) struct SystemZone {
    /// In order, without neighbours.
    runs: Vec<BlockRun>,
}

impl SystemZone {
    /// All of these blocks, in any order.
    pub(super) fn new(mut all: Vec<BlockRun>) -> Self {
        all.retain(|run| run.count > 0);
        all.sort_unstable_by_key(|run| run.start);
        let mut runs: Vec<BlockRun> = Vec::new();
        for run in all {
            match runs.last_mut() {
                Some(last) if run.start <= last.end() => {
                    let end = last.end().max(run.end());
                    last.count = u32::try_from(end.0 - last.start.0).unwrap_or(u32::MAX);
                }
                _ => runs.push(run),
            }
        }
        Self { runs }
    }

    /// True when some of these blocks belong to it.
    pub(super) fn meets(&self, run: BlockRun) -> bool {
        let first = self.runs.partition_point(|zone| zone.end() <= run.start);
        self.runs.get(first).is_some_and(|zone| zone.start < run.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockNumber;

    fn run(start: u64, count: u32) -> BlockRun {
        BlockRun::new(BlockNumber(start), count)
    }

    #[test]
    fn a_run_meets_it_with_any_of_its_blocks() {
        let zone = SystemZone::new(vec![run(100, 10), run(0, 5), run(5, 5), run(105, 1), run(50, 0)]);
        assert_eq!(zone.runs, [run(0, 10), run(100, 10)]);
        assert!(zone.meets(run(9, 1)) && zone.meets(run(90, 11)) && zone.meets(run(109, 100)));
        assert!(!zone.meets(run(10, 90)) && !zone.meets(run(110, 5)) && !zone.meets(run(50, 1)));
    }
}
