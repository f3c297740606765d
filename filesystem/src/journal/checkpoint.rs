//! Which committed transactions the log still needs, and what is to be written home for it to need fewer.
//!
//! Of a block only the newest committed content matters: what an older transaction holds of it is passed over by a replay, so
//! a transaction is needed as long as one of its blocks has nothing newer in the log and is not at home.
//!
//! It remembers; it reads and writes nothing. How much room the log has is [`super::LogSpace`]'s to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::ring::LogIndex;
use crate::units::{BlockNumber, TransactionId};

/// The committed transactions of a log since its recorded tail.
#[derive(Clone, Debug, Default)]
pub struct Checkpoint {
    /// Oldest first; their numbers follow one another.
    logged: VecDeque<Logged>,
    /// The newest committed content of each block that is not at home.
    waiting: BTreeMap<BlockNumber, Waiting>,
}

#[derive(Clone, Debug)]
struct Logged {
    id: TransactionId,
    start: LogIndex,
    /// Blocks whose newest committed content is this one's, and not at home.
    blocks: BTreeSet<BlockNumber>,
}

#[derive(Clone, Debug)]
struct Waiting {
    data: Bytes,
    id: TransactionId,
}

impl Checkpoint {
    /// A transaction is durable: it begins at `start`, holds these contents, and revokes these blocks.
    ///
    /// Panics when it does not follow the last one: that is the caller's mistake.
    pub fn committed(
        &mut self,
        id: TransactionId,
        start: LogIndex,
        contents: impl IntoIterator<Item = (BlockNumber, Bytes)>,
        revoked: impl IntoIterator<Item = BlockNumber>,
    ) {
        assert!(self.logged.back().is_none_or(|last| last.id.next() == id), "transactions follow one another");
        for block in revoked {
            self.settle(block);
        }
        let mut blocks = BTreeSet::new();
        for (block, data) in contents {
            self.settle(block);
            self.waiting.insert(block, Waiting { data, id });
            blocks.insert(block);
        }
        self.logged.push_back(Logged { id, start, blocks });
    }

    /// Contents to be written home next: those of the oldest transactions, `max` blocks or a few more.
    pub fn home_writes(&self, max: usize) -> Vec<(BlockNumber, Bytes)> {
        let mut writes = Vec::new();
        for logged in &self.logged {
            if writes.len() >= max {
                break;
            }
            let content = |block: &BlockNumber| Some((*block, self.waiting.get(block)?.data.clone()));
            writes.extend(logged.blocks.iter().filter_map(content));
        }
        writes
    }

    /// These contents are at home, on stable media. What was committed anew meanwhile goes on waiting.
    pub fn at_home<'a>(&mut self, written: impl IntoIterator<Item = &'a (BlockNumber, Bytes)>) {
        for (block, data) in written {
            if self.waiting.get(block).is_some_and(|waiting| waiting.data.as_ptr() == data.as_ptr()) {
                self.settle(*block);
            }
        }
    }

    /// The oldest transaction that is needed, and where it begins; none when all is at home.
    pub fn oldest_needed(&self) -> Option<(LogIndex, TransactionId)> {
        let needed = self.logged.iter().find(|logged| !logged.blocks.is_empty());
        needed.map(|logged| (logged.start, logged.id))
    }

    /// The journal's superblock names `oldest` as the first to replay, durably, or an empty log: those before are forgotten.
    pub fn recorded(&mut self, oldest: Option<TransactionId>) {
        while self
            .logged
            .front()
            .is_some_and(|logged| logged.blocks.is_empty() && oldest.is_none_or(|oldest| logged.id.is_before(oldest)))
        {
            self.logged.pop_front();
        }
    }

    /// Blocks that wait to be written home.
    pub fn waiting_blocks(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody needs the former content of a block in the log any more.
    fn settle(&mut self, block: BlockNumber) {
        let Some(waiting) = self.waiting.remove(&block) else { return };
        if let Some(oldest) = self.logged.front() {
            let at = waiting.id.0.wrapping_sub(oldest.id.0) as usize;
            if let Some(logged) = self.logged.get_mut(at) {
                logged.blocks.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: TransactionId = TransactionId(u32::MAX);
    const SECOND: TransactionId = TransactionId(0);
    const THIRD: TransactionId = TransactionId(1);

    fn content(block: u64, byte: u8) -> (BlockNumber, Bytes) {
        (BlockNumber(block), Bytes::from(vec![byte; 4096]))
    }

    #[test]
    fn a_transaction_is_needed_until_its_blocks_are_at_home_or_newer_ones_are_logged() {
        let mut log = Checkpoint::default();
        log.committed(FIRST, LogIndex(1), [content(7, 1), content(8, 1)], []);
        log.committed(SECOND, LogIndex(5), [content(8, 2)], []);
        assert_eq!(log.oldest_needed(), Some((LogIndex(1), FIRST)));
        let writes = log.home_writes(1);
        assert_eq!(writes.iter().map(|write| write.0.0).collect::<Vec<_>>(), [7], "block 8 is newer in the second");
        log.at_home(&writes);
        assert_eq!(log.oldest_needed(), Some((LogIndex(5), SECOND)));
        log.recorded(Some(SECOND));
        assert_eq!(log.home_writes(9), [content(8, 2)]);
        log.at_home(&log.home_writes(9).clone());
        assert_eq!(log.oldest_needed(), None);
    }

    #[test]
    fn what_is_committed_during_the_write_home_goes_on_waiting() {
        let mut log = Checkpoint::default();
        log.committed(FIRST, LogIndex(1), [content(7, 1)], []);
        let writes = log.home_writes(8);
        log.committed(SECOND, LogIndex(4), [content(7, 2)], []);
        log.at_home(&writes);
        assert_eq!(log.waiting_blocks(), 1);
        assert_eq!(log.oldest_needed(), Some((LogIndex(4), SECOND)));
    }

    #[test]
    fn a_revoked_block_is_not_written_home() {
        let mut log = Checkpoint::default();
        log.committed(FIRST, LogIndex(1), [content(7, 1)], []);
        log.committed(SECOND, LogIndex(4), [], [BlockNumber(7)]);
        assert!(log.home_writes(8).is_empty());
        assert_eq!(log.oldest_needed(), None);
    }

    #[test]
    fn what_is_still_needed_is_not_forgotten() {
        let mut log = Checkpoint::default();
        log.committed(FIRST, LogIndex(1), [content(7, 1)], []);
        log.committed(SECOND, LogIndex(4), [content(8, 1)], []);
        log.recorded(None);
        assert_eq!(log.oldest_needed(), Some((LogIndex(1), FIRST)));
        log.committed(THIRD, LogIndex(7), [content(7, 2)], []);
        log.recorded(Some(SECOND));
        assert_eq!(log.home_writes(9), [content(8, 1), content(7, 2)]);
    }
}
