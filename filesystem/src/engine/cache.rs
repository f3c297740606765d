//! Blocks of metadata in memory, within a budget of bytes.
//!
//! A block is an immutable buffer; an edit puts another in its place, and whoever still writes the former one keeps it. What
//! is changed and not at home on the device yet stays; of the rest the least used goes when room is needed (second chance:
//! a block that was used since the hand last passed is spared once).

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::units::{BlockNumber, TransactionId};

/// Stale places in the hand's queue that are borne with, beside as many as there are blocks.
const HAND_SPARE: usize = 1024;

/// The blocks at hand.
pub struct BlockCache {
    entries: FxHashMap<BlockNumber, Entry>,
    /// Clean blocks in the order in which the hand meets them; what is no longer clean or here is passed over.
    hand: VecDeque<BlockNumber>,
    bytes: usize,
    /// Of those the bytes that are not at home.
    dirty_bytes: usize,
    bytes_max: usize,
}

struct Entry {
    data: Bytes,
    kept: Kept,
    used: bool,
    /// It stands in the hand's queue.
    queued: bool,
    /// Operations that will run again need it.
    pins: u32,
    /// Which checksums in it were looked at since it was read, one bit each.
    verified: u128,
    /// The transaction that changed it last, until that content is at home.
    changed_by: Option<TransactionId>,
}

/// Why a block is in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Because it was used; the device has the same.
    Clean,
    /// The device's home of it is older.
    Dirty,
}

impl BlockCache {
    /// An empty cache that drops clean blocks past `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { entries: FxHashMap::default(), hand: VecDeque::new(), bytes: 0, dirty_bytes: 0, bytes_max }
    }

    /// The newest content of a block.
    pub fn get(&mut self, at: BlockNumber) -> Option<&Bytes> {
        let entry = self.entries.get_mut(&at)?;
        entry.used = true;
        Some(&entry.data)
    }

    /// True when the checksum of the block's part `index` was found right since the block was read. What edits make of it
    /// has a right checksum, too.
    pub fn is_verified(&self, at: BlockNumber, index: u32) -> bool {
        self.entries.get(&at).is_some_and(|entry| entry.verified & bit(index) != 0)
    }

    /// Remembers that it was found right.
    pub fn set_verified(&mut self, at: BlockNumber, index: u32) {
        if let Some(entry) = self.entries.get_mut(&at) {
            entry.verified |= bit(index);
        }
    }

    /// True when the block is here; that does not make it used.
    pub fn contains(&self, at: BlockNumber) -> bool {
        self.entries.contains_key(&at)
    }

    /// The newest content of a block, and the transaction that it belongs to, unless it is at home already.
    pub fn get_with_change(&mut self, at: BlockNumber) -> Option<(&Bytes, Option<TransactionId>)> {
        let entry = self.entries.get_mut(&at)?;
        entry.used = true;
        Some((&entry.data, entry.changed_by))
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The budget, in bytes.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// What is not at home takes more than half of the budget.
    pub fn is_crowded(&self) -> bool {
        self.dirty_bytes > self.bytes_max / 2
    }

    /// Takes a block that was read from the device; one that is here already is newer and stays.
    pub fn fetched(&mut self, at: BlockNumber, data: Bytes) {
        if self.entries.contains_key(&at) {
            return;
        }
        // Before it is here: what somebody waits for must not go at once, even if nothing else can.
        self.shrink_to(self.bytes_max.saturating_sub(data.len()));
        self.bytes += data.len();
        self.entries.insert(
            at,
            Entry { data, kept: Kept::Clean, used: true, queued: true, pins: 0, changed_by: None, verified: 0 },
        );
        self.hand.push_back(at);
        // What was forgotten stands there still.
        if self.hand.len() > 2 * self.entries.len() + HAND_SPARE {
            let entries = &mut self.entries;
            entries.values_mut().for_each(|entry| entry.queued = false);
            self.hand.retain(|at| entries.get_mut(at).is_some_and(|entry| !std::mem::replace(&mut entry.queued, true)));
        }
    }

    /// Puts an edited content in place, which belongs to a transaction or is in the log already; gives back the former one,
    /// if it was here.
    pub fn replace(&mut self, at: BlockNumber, data: Bytes, changed_by: Option<TransactionId>) -> Option<Bytes> {
        self.bytes += data.len();
        self.dirty_bytes += data.len();
        match self.entries.get_mut(&at) {
            Some(entry) => {
                self.bytes -= entry.data.len();
                self.dirty_bytes -= if entry.kept == Kept::Dirty { entry.data.len() } else { 0 };
                entry.kept = Kept::Dirty;
                entry.used = true;
                entry.changed_by = changed_by;
                Some(std::mem::replace(&mut entry.data, data))
            }
            None => {
                let kept = Kept::Dirty;
                self.entries
                    .insert(at, Entry { data, kept, used: true, queued: false, pins: 0, changed_by, verified: 0 });
                None
            }
        }
    }

    /// The device's home of the block now has this content; it may go if nothing newer took its place.
    pub fn written_home(&mut self, at: BlockNumber, data: &Bytes) {
        let Some(entry) = self.entries.get_mut(&at) else { return };
        if entry.kept == Kept::Dirty && entry.data.as_ptr() == data.as_ptr() {
            entry.kept = Kept::Clean;
            self.dirty_bytes -= entry.data.len();
            entry.changed_by = None;
            if !entry.queued {
                entry.queued = true;
                self.hand.push_back(at);
            }
        }
    }

    /// Drops a block: it was freed, and nobody shall read it again.
    pub fn forget(&mut self, at: BlockNumber) {
        if let Some(entry) = self.entries.remove(&at) {
            self.bytes -= entry.data.len();
            self.dirty_bytes -= if entry.kept == Kept::Dirty { entry.data.len() } else { 0 };
        }
    }

    /// Drops a block whose home is newer, unless the block is newer still.
    pub fn forget_clean(&mut self, at: BlockNumber) {
        if self.entries.get(&at).is_some_and(|entry| entry.kept == Kept::Clean) {
            self.forget(at);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Keeps a block until [`Self::unpin`], if it is here.
    pub fn pin(&mut self, at: BlockNumber) -> bool {
        let entry = self.entries.get_mut(&at);
        entry.map(|entry| entry.pins += 1).is_some()
    }

    /// The end of a [`Self::pin`].
    pub fn unpin(&mut self, at: BlockNumber) {
        if let Some(entry) = self.entries.get_mut(&at) {
            entry.pins = entry.pins.saturating_sub(1);
        }
        self.shrink();
    }

    /// Drops clean blocks until the budget is kept, or none is left that may go.
    pub fn shrink(&mut self) {
        self.shrink_to(self.bytes_max);
    }

    fn shrink_to(&mut self, bytes_max: usize) {
        // Every block is met twice at most: once to lose its mark, once to go.
        let mut steps = 2 * self.hand.len();
        while self.bytes > bytes_max && steps > 0 {
            steps -= 1;
            let Some(at) = self.hand.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&at) else { continue };
            if entry.kept == Kept::Dirty {
                entry.queued = false;
            } else if std::mem::take(&mut entry.used) || entry.pins > 0 {
                self.hand.push_back(at);
            } else {
                self.bytes -= entry.data.len();
                self.entries.remove(&at);
            }
        }
    }
}

/// No bit beyond those that there are: such parts are looked at each time.
fn bit(index: u32) -> u128 {
    1_u128.checked_shl(index).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8) -> Bytes {
        Bytes::from(vec![byte; 4096])
    }

    fn at(number: u64) -> BlockNumber {
        BlockNumber(number)
    }

    #[test]
    fn clean_blocks_go_when_the_budget_is_exceeded_and_used_ones_stay_longer() {
        let mut cache = BlockCache::new(4 * 4096);
        (0..4).for_each(|number| cache.fetched(at(number), block(number as u8)));
        cache.fetched(at(4), block(4));
        assert_eq!(cache.bytes(), 4 * 4096);
        assert!(cache.get(at(0)).is_none(), "all had been used, so the oldest goes");
        cache.get(at(1));
        cache.fetched(at(5), block(5));
        assert!(cache.get(at(1)).is_some() && cache.get(at(2)).is_none());
    }

    #[test]
    fn what_is_dirty_or_pinned_stays_beyond_the_budget() {
        let mut cache = BlockCache::new(4096);
        cache.fetched(at(1), block(1));
        assert!(cache.pin(at(1)) && !cache.pin(at(9)));
        cache.replace(at(2), block(2), None);
        assert!(cache.is_crowded());
        cache.fetched(at(3), block(3));
        cache.fetched(at(4), block(4));
        assert!(cache.get(at(1)).is_some() && cache.get(at(2)).is_some());
        let two = cache.get(at(2)).cloned().expect("dirty");
        cache.unpin(at(1));
        cache.written_home(at(2), &two);
        assert!(!cache.is_crowded());
        cache.fetched(at(5), block(5));
        assert!(cache.bytes() <= 4096, "{}", cache.bytes());
    }

    #[test]
    fn what_was_just_fetched_stays_until_it_can_be_pinned_although_nothing_else_can_go() {
        let mut cache = BlockCache::new(4096);
        (0..3).for_each(|number| drop(cache.replace(at(number), block(1), None)));
        cache.fetched(at(9), block(9));
        assert!(cache.pin(at(9)), "an operation waits for it");
        cache.fetched(at(10), block(10));
        assert!(cache.get(at(9)).is_some());
        cache.unpin(at(9));
        assert!(cache.get(at(9)).is_none() && cache.get(at(10)).is_none());
    }

    #[test]
    fn what_was_verified_is_forgotten_with_the_content_and_kept_through_edits() {
        let mut cache = BlockCache::new(1 << 20);
        cache.set_verified(at(1), 3);
        assert!(!cache.is_verified(at(1), 3), "it is not here");
        cache.fetched(at(1), block(1));
        assert!(!cache.is_verified(at(1), 3));
        cache.set_verified(at(1), 3);
        cache.set_verified(at(1), 200);
        cache.replace(at(1), block(2), None);
        assert!(cache.is_verified(at(1), 3) && !cache.is_verified(at(1), 4) && !cache.is_verified(at(1), 200));
        cache.forget(at(1));
        cache.fetched(at(1), block(1));
        assert!(!cache.is_verified(at(1), 3));
    }

    #[test]
    fn an_older_version_at_home_leaves_the_newer_one_dirty() {
        let mut cache = BlockCache::new(0);
        let old = block(1);
        cache.replace(at(1), old.clone(), None);
        assert_eq!(cache.replace(at(1), block(2), None), Some(old.clone()));
        cache.written_home(at(1), &old);
        cache.shrink();
        assert_eq!(cache.get(at(1)), Some(&block(2)));
    }

    #[test]
    fn what_is_fetched_late_does_not_replace_an_edit() {
        let mut cache = BlockCache::new(1 << 20);
        cache.replace(at(1), block(2), None);
        cache.fetched(at(1), block(1));
        assert_eq!(cache.get(at(1)), Some(&block(2)));
        cache.forget(at(1));
        assert!(cache.get(at(1)).is_none());
        assert_eq!(cache.bytes(), 0);
    }
}
