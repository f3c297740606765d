//! What operations have changed since the last commit, and the changes of one operation until they join.
//!
//! An operation edits copies. When it ends well they take their places in the cache and belong to the running transaction;
//! when it does not, they are dropped, and nothing has happened.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::cache::BlockCache;
use super::data::OrderedPages;
use super::data::content::Content;
use super::data::table::DataEdits;
use crate::state_ring::index::RingChanges;
use crate::units::{BlockNumber, BlockRun, InodeNumber, TransactionId};

/// The changes of one operation.
#[derive(Debug, Default)]
pub struct Edits {
    /// Not aligned: whatever is written is gathered into larger buffers, and aligned ones of one block waste as much again.
    blocks: BTreeMap<BlockNumber, Vec<u8>>,
    /// Metadata that was given back: the log has to revoke it.
    freed_metadata: BTreeSet<BlockNumber>,
    /// All that was given back, in order; it can be used again when the transaction is durable.
    freed: Vec<BlockRun>,
    /// Blocks of bitmaps, whose former content tells what cannot be used again yet.
    bitmaps: BTreeSet<BlockNumber>,
    /// What there is more of than before.
    free_blocks: i64,
    free_inodes: i32,
    /// The new head of the list of orphans, in the superblock.
    last_orphan: Option<Option<InodeNumber>>,
    /// And beyond blocks of metadata.
    pub(super) data: DataEdits,
    /// Records of the state ring; their blocks are among the others.
    ring: RingChanges,
}

impl Edits {
    /// The operation's own content of a block.
    pub fn get(&self, at: BlockNumber) -> Option<&[u8]> {
        self.blocks.get(&at).map(|buf| &**buf)
    }

    /// The same, to be edited further; a block that was not edited yet begins as a copy of `current`.
    pub fn edit(&mut self, at: BlockNumber, current: impl FnOnce() -> Option<Bytes>) -> Option<&mut [u8]> {
        match self.blocks.entry(at) {
            Entry::Occupied(edited) => Some(edited.into_mut()),
            Entry::Vacant(place) => {
                let current = current()?;
                Some(place.insert(current.to_vec()))
            }
        }
    }

    /// A block of `block_bytes` zeros in place of whatever it held.
    pub fn create(&mut self, at: BlockNumber, block_bytes: usize) -> &mut [u8] {
        self.freed_metadata.remove(&at);
        self.blocks.insert(at, vec![0; block_bytes]);
        self.blocks.get_mut(&at).map(|buf| &mut **buf).unwrap_or_default()
    }

    /// The block is that of a bitmap.
    pub fn mark_bitmap(&mut self, at: BlockNumber) {
        self.bitmaps.insert(at);
    }

    /// Blocks are given back; `metadata` that the log may hold them.
    pub fn free(&mut self, run: BlockRun, metadata: bool) {
        for block in (run.start.0..run.end().0).map(BlockNumber) {
            self.blocks.remove(&block);
            if metadata {
                self.freed_metadata.insert(block);
            }
        }
        self.freed.push(run);
    }

    /// Free blocks have become more, or fewer.
    pub fn count_blocks(&mut self, freed: i64) {
        self.free_blocks += freed;
    }

    /// The same of inodes.
    pub fn count_inodes(&mut self, freed: i32) {
        self.free_inodes += freed;
    }

    /// Blocks and inodes that are free and were not; below zero what was taken.
    pub fn freed_counts(&self) -> (i64, i32) {
        (self.free_blocks, self.free_inodes)
    }

    /// The new head of the list of orphans, if there is one.
    pub fn last_orphan(&self) -> Option<Option<InodeNumber>> {
        self.last_orphan
    }

    /// Puts another head on the list of orphans.
    pub fn set_last_orphan(&mut self, inode: Option<InodeNumber>) {
        self.last_orphan = Some(inode);
    }

    /// What becomes of the records of the state ring.
    pub fn ring(&mut self) -> &mut RingChanges {
        &mut self.ring
    }

    /// Every block whose content is another now, or that is nobody's.
    pub fn touched(&self) -> impl Iterator<Item = BlockNumber> + '_ {
        self.blocks.keys().chain(&self.freed_metadata).copied()
    }

    /// A block of data that was freed may be in the log.
    pub fn revoke(&mut self, at: BlockNumber) {
        self.blocks.remove(&at);
        self.freed_metadata.insert(at);
    }

    /// Nothing was changed.
    pub fn is_empty(&self) -> bool {
        !self.needs_commit() && self.data.is_empty()
    }

    /// Nothing was changed but these blocks.
    pub fn is_only(&self, belongs: impl Fn(BlockNumber) -> bool) -> bool {
        let is_more = self.last_orphan.is_some() || !self.freed_metadata.is_empty() || !self.freed.is_empty();
        !is_more && self.data.is_empty() && self.blocks.keys().all(|at| belongs(*at))
    }

    /// Something was changed that a transaction has to make durable.
    pub fn needs_commit(&self) -> bool {
        !self.blocks.is_empty() || !self.freed.is_empty() || !self.data.ordered.is_empty()
    }
}

/// The changes of all operations since the last commit began.
#[derive(Debug)]
pub struct Transaction {
    id: TransactionId,
    /// Changed blocks; the cache has their contents.
    blocks: BTreeSet<BlockNumber>,
    revokes: BTreeSet<BlockNumber>,
    freed: Vec<BlockRun>,
    /// Bitmaps as they were when this transaction began.
    bitmaps_before: BTreeMap<BlockNumber, Bytes>,
    /// Data that is written before the commit block, and the pages that it comes from.
    ordered: BTreeMap<BlockNumber, Content>,
    pages: OrderedPages,
    /// Somebody waits for it, or may.
    urgent: bool,
    /// It has records that are in no note.
    unnoted: bool,
}

/// A transaction whose contents stand, on its way into the log.
#[derive(Debug)]
pub struct Closed {
    /// Its number.
    pub id: TransactionId,
    /// Contents by home block, in the order of the device.
    pub contents: Vec<(BlockNumber, Bytes)>,
    /// Blocks whose older contents in the log must not be replayed.
    pub revokes: BTreeSet<BlockNumber>,
    /// What can be used again once this is durable.
    pub freed: Vec<BlockRun>,
    /// Bitmaps as they were before: what was in use then is not free until this is durable.
    pub bitmaps_before: BTreeMap<BlockNumber, Bytes>,
    /// Data that is to be on the device before the commit block is.
    pub(super) ordered: BTreeMap<BlockNumber, Content>,
    /// The pages that it comes from.
    pub(super) pages: OrderedPages,
    /// It has records that are in no note.
    pub unnoted: bool,
}

impl Closed {
    /// It changes this block.
    pub fn contains(&self, at: BlockNumber) -> bool {
        self.contents.binary_search_by_key(&at, |(at, _)| *at).is_ok()
    }
}

impl Transaction {
    /// An empty one.
    pub fn new(id: TransactionId) -> Self {
        let (blocks, revokes) = (BTreeSet::new(), BTreeSet::new());
        let (bitmaps_before, ordered) = (BTreeMap::new(), BTreeMap::new());
        let (freed, pages) = (Vec::new(), Vec::new());
        Self { id, blocks, revokes, freed, bitmaps_before, ordered, pages, urgent: false, unnoted: false }
    }

    /// Its number.
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Nothing joined.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revokes.is_empty() && self.freed.is_empty() && self.ordered.is_empty()
    }

    /// It changes this block.
    pub fn contains(&self, at: BlockNumber) -> bool {
        self.blocks.contains(&at)
    }

    /// It is to be made durable as soon as that is possible, and not only when there is much of it.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// From now on it is.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// It has records that are in no note.
    pub fn is_unnoted(&self) -> bool {
        self.unnoted
    }

    /// From now on it has.
    pub fn set_unnoted(&mut self) {
        self.unnoted = true;
    }

    /// Blocks that it changes.
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Data goes with it.
    pub fn has_data(&self) -> bool {
        !self.ordered.is_empty()
    }

    /// Data is to be written with it.
    pub(super) fn order(&mut self, ordered: BTreeMap<BlockNumber, Content>, pages: OrderedPages) {
        self.ordered.extend(ordered);
        self.pages.extend(pages);
    }

    /// Blocks and revokes there would be with `edits`: what its size in the log is computed from.
    pub fn size_with(&self, edits: &Edits) -> (usize, usize) {
        let added = edits.blocks.keys().filter(|at| !self.blocks.contains(at)).count();
        let gone = edits.freed_metadata.iter().filter(|at| self.blocks.contains(at)).count();
        let revoked = edits.freed_metadata.iter().filter(|at| !self.revokes.contains(at)).count();
        (self.blocks.len() + added - gone, self.revokes.len() + revoked)
    }

    /// The operation has ended well: its edits take their places.
    pub fn join(&mut self, edits: Edits, cache: &mut BlockCache) {
        let Edits { blocks, freed_metadata, freed, bitmaps, .. } = edits;
        for at in freed_metadata {
            cache.forget(at);
            self.blocks.remove(&at);
            self.revokes.insert(at);
        }
        for (at, buf) in blocks {
            let before = cache.replace(at, Bytes::from(buf), Some(self.id));
            if let (true, Some(before)) = (bitmaps.contains(&at), before) {
                self.bitmaps_before.entry(at).or_insert(before);
            }
            self.blocks.insert(at);
            // A revoke holds for its own transaction too, and would take this content back.
            self.revokes.remove(&at);
        }
        for run in &freed {
            // What was taken and given back by this same transaction is free at once, and may get another owner's data.
            let gone: Vec<BlockNumber> = self.ordered.range(run.start..run.end()).map(|(at, _)| *at).collect();
            gone.into_iter().for_each(|at| drop(self.ordered.remove(&at)));
        }
        self.freed.extend(freed);
    }

    /// One more change, beside those of operations, of a block that is in memory.
    pub fn change(&mut self, at: BlockNumber, cache: &mut BlockCache, edit: impl FnOnce(&mut [u8])) {
        let mut edits = Edits::default();
        let block = edits.edit(at, || cache.get(at).cloned());
        edit(block.expect("a pinned block does not leave the cache"));
        self.join(edits, cache);
    }

    /// It gives something back.
    pub fn frees(&self) -> bool {
        !self.freed.is_empty()
    }

    /// A bitmap as it was before this transaction changed it.
    pub fn bitmap_before(&self, at: BlockNumber) -> Option<&Bytes> {
        self.bitmaps_before.get(&at)
    }

    /// Takes the contents as they stand; the next transaction may change the blocks further.
    pub fn close(self, cache: &mut BlockCache) -> Closed {
        let content = |at: BlockNumber| cache.get(at).cloned().map(|data| (at, data));
        let contents: Vec<_> = self.blocks.iter().copied().filter_map(content).collect();
        // Dirty blocks do not leave the cache.
        assert_eq!(contents.len(), self.blocks.len(), "a changed block left the cache");
        let Self { id, revokes, freed, bitmaps_before, ordered, pages, unnoted, .. } = self;
        Closed { id, contents, revokes, freed, bitmaps_before, ordered, pages, unnoted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 4096;

    fn at(number: u64) -> BlockNumber {
        BlockNumber(number)
    }

    fn cache_with(blocks: &[(u64, u8)]) -> BlockCache {
        let mut cache = BlockCache::new(1 << 20);
        blocks.iter().for_each(|(number, byte)| cache.fetched(at(*number), Bytes::from(vec![*byte; BYTES])));
        cache
    }

    fn write(edits: &mut Edits, cache: &mut BlockCache, number: u64, byte: u8) {
        edits.edit(at(number), || cache.get(at(number)).cloned()).expect("in the cache").fill(byte);
    }

    #[test]
    fn edits_are_seen_by_nobody_until_they_join() {
        let mut cache = cache_with(&[(1, 1)]);
        let mut edits = Edits::default();
        write(&mut edits, &mut cache, 1, 2);
        assert_eq!((edits.get(at(1)).expect("edited")[0], cache.get(at(1)).expect("here")[0]), (2, 1));
        let mut transaction = Transaction::new(TransactionId(1));
        transaction.join(edits, &mut cache);
        assert_eq!(cache.get(at(1)).expect("here")[0], 2);
    }

    #[test]
    fn a_closed_transaction_keeps_its_contents_while_the_next_changes_them() {
        let mut cache = cache_with(&[(1, 1)]);
        let mut transaction = Transaction::new(TransactionId(1));
        let mut edits = Edits::default();
        write(&mut edits, &mut cache, 1, 2);
        transaction.join(edits, &mut cache);
        let closed = transaction.close(&mut cache);
        let mut next = Transaction::new(closed.id.next());
        let mut edits = Edits::default();
        write(&mut edits, &mut cache, 1, 3);
        next.join(edits, &mut cache);
        assert_eq!((closed.contents[0].1[0], cache.get(at(1)).expect("here")[0]), (2, 3));
    }

    #[test]
    fn freed_metadata_is_revoked_unless_it_is_written_again() {
        let mut cache = cache_with(&[(1, 1), (2, 1)]);
        let mut transaction = Transaction::new(TransactionId(1));
        let mut edits = Edits::default();
        write(&mut edits, &mut cache, 1, 2);
        write(&mut edits, &mut cache, 2, 2);
        transaction.join(edits, &mut cache);
        let mut edits = Edits::default();
        edits.free(BlockRun::new(at(1), 2), true);
        assert_eq!(transaction.size_with(&edits), (0, 2));
        transaction.join(edits, &mut cache);
        assert!(cache.get(at(1)).is_none(), "nobody reads a freed block");
        let mut edits = Edits::default();
        edits.create(at(2), BYTES)[0] = 9;
        transaction.join(edits, &mut cache);
        let closed = transaction.close(&mut cache);
        assert_eq!(closed.revokes.into_iter().collect::<Vec<_>>(), [at(1)]);
        assert_eq!(closed.contents.len(), 1);
        assert_eq!(closed.freed, [BlockRun::new(at(1), 2)]);
    }

    #[test]
    fn what_was_freed_and_made_anew_by_one_operation_is_not_revoked() {
        let mut cache = cache_with(&[(1, 1)]);
        let mut edits = Edits::default();
        edits.free(BlockRun::new(at(1), 1), true);
        edits.create(at(1), BYTES)[0] = 7;
        let mut transaction = Transaction::new(TransactionId(1));
        transaction.join(edits, &mut cache);
        let closed = transaction.close(&mut cache);
        assert!(closed.revokes.is_empty());
        assert_eq!(closed.contents[0].1[0], 7);
    }

    #[test]
    fn the_first_content_of_a_bitmap_is_kept() {
        let mut cache = cache_with(&[(1, 1)]);
        let mut transaction = Transaction::new(TransactionId(1));
        for byte in [2, 3] {
            let mut edits = Edits::default();
            edits.mark_bitmap(at(1));
            write(&mut edits, &mut cache, 1, byte);
            transaction.join(edits, &mut cache);
        }
        assert_eq!(transaction.bitmap_before(at(1)).expect("changed")[0], 1);
    }
}
