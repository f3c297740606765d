//! One copy of one volume as the disk holds it: what reads return, what the volatile cache holds, what is on the media.
//!
//! A block is modelled by the values of its two halves, so that a torn block and a write of part of a block show. The
//! model decides what a power cut leaves; when operations land is the scheduler's business.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proto::{BlockRange, Boot, ConfigVersion, DiskId, Epoch};
use replication::{DiskReport, IoId, OpId};

use super::scheduler::{Rng, SECOND, SimTime};

/// Values of the two halves of a block; 0 is zeros, everything else names the write that stored it.
pub type Block = [u32; 2];

/// Content of consecutive blocks.
pub type Blocks = Rc<[Block]>;

/// Marks a half that a client's partial write does not cover, until the edges are merged. Never reaches a disk.
pub const KEEP: u32 = u32::MAX;

/// Versions of one block held in the volatile cache; older ones are written back.
const VERSIONS_MAX: usize = 4;

/// What an operation does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Returns the blocks.
    Read(BlockRange),
    /// Returns the blocks, to merge a partial write into.
    Merge {
        /// The client's write.
        op: OpId,
        /// Its blocks.
        range: BlockRange,
    },
    /// Stores blocks; no data means zeros.
    Write {
        /// Blocks.
        range: BlockRange,
        /// Their content.
        data: Option<Blocks>,
        /// On the media when done.
        fua: bool,
    },
    /// Stores groups with a flush after each.
    Batch {
        /// The groups.
        groups: Vec<Vec<BlockRange>>,
        /// Content of all ranges in order.
        data: Blocks,
    },
    /// Puts on the media what had completed when it was submitted.
    Flush,
    /// Makes extents hot.
    ActivityLog(Vec<u64>),
    /// Writes the superblock.
    State {
        /// Version at which the copy knows it is in sync.
        last_in_sync: ConfigVersion,
        /// May hold less than it acknowledged.
        suspect: bool,
    },
}

/// An operation that has not landed.
#[derive(Clone, Debug)]
struct Inflight {
    run: u32,
    io: IoId,
    work: Work,
    fails: bool,
    due: SimTime,
    /// Cache sequence at submission: a flush covers what came before it.
    mark: u64,
    /// A read's content, when it is sampled at submission.
    early: Option<Blocks>,
}

/// An operation that has landed.
#[derive(Clone, Debug)]
pub struct Landed {
    /// The run that had submitted it.
    pub run: u32,
    /// Its number there.
    pub io: IoId,
    /// What it was.
    pub work: Work,
    /// False after a medium error.
    pub ok: bool,
    /// What a read returned.
    pub data: Option<Blocks>,
}

/// Faults of a disk.
#[derive(Clone, Copy, Debug)]
pub struct DiskFaults {
    /// Delays are multiplied by this.
    pub slow: u64,
    /// Operations that fail, per 1000.
    pub error_permille: u64,
    /// Operations that hang for seconds, per 1000.
    pub stuck_permille: u64,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self { slow: 1, error_permille: 0, stuck_permille: 0 }
    }
}

/// One copy.
#[derive(Clone, Debug)]
pub struct Store {
    /// The copy's name.
    pub disk_id: DiskId,
    /// Faults now.
    pub faults: DiskFaults,
    /// The node has marked the disk as failed.
    pub failed: bool,
    /// Stopped cleanly and not opened since.
    pub clean: bool,
    visible: Vec<Block>,
    media: Vec<Block>,
    /// Per block, what completed since the last write-back: cache sequence and content, oldest first.
    cached: Vec<Vec<(u64, Block)>>,
    /// Blocks with something in `cached`.
    unflushed: BTreeSet<usize>,
    sequence: u64,
    inflight: BTreeMap<u64, Inflight>,
    hot: BTreeSet<u64>,
    last_in_sync: ConfigVersion,
    suspect: bool,
    /// Token of the newest superblock write that landed.
    state_token: u64,
    /// Power-on under which the store was last opened and not closed cleanly.
    opened: Option<Boot>,
}

impl Store {
    /// A new store of zeros.
    pub fn new(disk_id: DiskId, blocks: u64) -> Self {
        let blocks = blocks as usize;
        Self {
            disk_id,
            faults: DiskFaults::default(),
            failed: false,
            clean: false,
            visible: vec![[0, 0]; blocks],
            media: vec![[0, 0]; blocks],
            cached: vec![Vec::new(); blocks],
            unflushed: BTreeSet::new(),
            sequence: 0,
            inflight: BTreeMap::new(),
            hot: BTreeSet::new(),
            last_in_sync: ConfigVersion(0),
            suspect: false,
            state_token: 0,
            opened: None,
        }
    }

    /// Opens it under `boot`: what is found. The caller waits for [`Store::idle`] first.
    pub fn open(&mut self, boot: Boot, fence: (Epoch, ConfigVersion)) -> DiskReport {
        let torn_away = self.opened.is_some_and(|opened| opened != boot) && !self.clean;
        self.suspect |= self.failed || torn_away;
        self.opened = Some(boot);
        self.clean = false;
        DiskReport {
            disk_id: self.disk_id,
            last_in_sync: self.last_in_sync,
            suspect: self.suspect,
            fence,
            failed: self.failed,
        }
    }

    /// Closes it in order: everything is on the media. A copy that may miss something stays so: a clean stop does not
    /// bring back what an earlier power loss took.
    pub fn close_clean(&mut self) {
        self.write_back(u64::MAX);
        self.clean = !self.failed && !self.suspect;
        self.opened = self.opened.filter(|_| !self.clean);
    }

    /// True when no operation is in flight, so that a successor gets the store's lock.
    pub fn idle(&self) -> bool {
        self.inflight.is_empty()
    }

    /// It may hold less than it acknowledged.
    pub fn suspect(&self) -> bool {
        self.suspect
    }

    /// Content as reads see it.
    pub fn visible(&self, block: u64) -> Block {
        self.visible[block as usize]
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u64 {
        self.visible.len() as u64
    }

    /// Takes an operation that lands at `due`.
    pub fn submit(&mut self, token: u64, run: u32, io: IoId, work: Work, due: SimTime, rng: &mut Rng) {
        let fails = rng.chance(self.faults.error_permille);
        let early = match &work {
            Work::Read(range) if rng.chance(300) => Some(self.content(*range)),
            _ => None,
        };
        self.inflight.insert(token, Inflight { run, io, work, fails, due, mark: self.sequence, early });
    }

    /// Lands an operation; None if a crash has swallowed it. A failing flush takes content back only if the process that
    /// asked for it is `listening`, and so learns of it.
    pub fn land(&mut self, token: u64, listening: Option<u32>, rng: &mut Rng) -> Option<Landed> {
        let Inflight { run, io, work, fails, mark, early, .. } = self.inflight.remove(&token)?;
        let mut data = None;
        match &work {
            Work::Read(range) | Work::Merge { range, .. } => {
                data = (!fails).then(|| early.unwrap_or_else(|| self.content(*range)));
            }
            Work::Flush if fails && listening != Some(run) => {}
            _ if fails => self.land_failed(&work, rng),
            Work::Write { range, data, fua } => self.store(*range, data.as_deref(), *fua),
            Work::Batch { groups, data } => {
                self.store_groups(groups, data, groups.len());
                self.write_back(u64::MAX);
            }
            Work::Flush => self.write_back(mark),
            Work::ActivityLog(extents) => self.hot.extend(extents),
            Work::State { last_in_sync, suspect } => {
                if token > self.state_token {
                    (self.state_token, self.last_in_sync, self.suspect) = (token, *last_in_sync, *suspect);
                    // The mark of a failed disk goes when the copy is known to be good again.
                    self.failed &= *suspect;
                }
            }
        }
        Some(Landed { run, io, work, ok: !fails, data })
    }

    /// The process `run` has died: what it had submitted lands in its own time or never, but soon.
    pub fn abandon(&mut self, run: u32, now: SimTime, rng: &mut Rng) {
        self.inflight.retain(|_, io| {
            let harmless = matches!(io.work, Work::Read(_) | Work::Merge { .. } | Work::Flush);
            io.run != run || !(harmless || io.due > now + SECOND || rng.chance(400))
        });
    }

    /// The box has lost power.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for (token, io) in std::mem::take(&mut self.inflight) {
            match &io.work {
                Work::Write { .. } => self.land_failed(&io.work, rng),
                Work::Batch { groups, data } => {
                    let whole = rng.below(groups.len() as u64 + 1) as usize;
                    self.store_groups(groups, data, whole);
                    self.write_back(u64::MAX);
                    if whole < groups.len() {
                        let done: u64 = groups[..whole].iter().flatten().map(|range| range.count).sum();
                        self.store_some(&groups[whole], &data[done as usize..], rng);
                    }
                }
                Work::State { last_in_sync, suspect } if token > self.state_token && rng.chance(500) => {
                    (self.state_token, self.last_in_sync, self.suspect) = (token, *last_in_sync, *suspect);
                }
                _ => {}
            }
        }
        for block in std::mem::take(&mut self.unflushed) {
            let versions = std::mem::take(&mut self.cached[block]);
            let survivor = |half: usize, index: u64| match index {
                0 => self.media[block][half],
                n => versions[n as usize - 1].1[half],
            };
            let choices = versions.len() as u64 + 1;
            let first = rng.below(choices);
            let second = if rng.chance(850) { first } else { rng.below(choices) };
            let value = [survivor(0, first), survivor(1, second)];
            (self.media[block], self.visible[block]) = (value, value);
        }
    }

    fn content(&self, range: BlockRange) -> Blocks {
        self.visible[range.start as usize..range.end() as usize].into()
    }

    fn store(&mut self, range: BlockRange, data: Option<&[Block]>, fua: bool) {
        for (index, block) in range.blocks().enumerate() {
            self.store_block(block, data.map_or([0, 0], |data| data[index]), fua);
        }
    }

    fn store_block(&mut self, block: u64, value: Block, fua: bool) {
        let block = block as usize;
        self.visible[block] = value;
        if fua {
            self.media[block] = value;
            self.cached[block].clear();
            self.unflushed.remove(&block);
            return;
        }
        self.sequence += 1;
        self.unflushed.insert(block);
        self.cached[block].push((self.sequence, value));
        if self.cached[block].len() > VERSIONS_MAX {
            self.media[block] = self.cached[block].remove(0).1;
        }
    }

    fn store_groups(&mut self, groups: &[Vec<BlockRange>], data: &[Block], count: usize) {
        let mut at = 0;
        for range in groups[..count].iter().flatten() {
            let length = range.count as usize;
            self.store(*range, Some(&data[at..at + length]), false);
            at += length;
        }
    }

    /// Half of the blocks of `ranges` land.
    fn store_some(&mut self, ranges: &[BlockRange], data: &[Block], rng: &mut Rng) {
        for (index, block) in ranges.iter().flat_map(|range| range.blocks()).enumerate() {
            if rng.chance(500) {
                self.store_block(block, data[index], false);
            }
        }
    }

    /// An operation that failed, or that a power cut caught: parts of it may have landed.
    fn land_failed(&mut self, work: &Work, rng: &mut Rng) {
        match work {
            Work::Write { range, data, .. } => {
                for (index, block) in range.blocks().enumerate() {
                    if rng.chance(500) {
                        self.store_block(block, data.as_ref().map_or([0, 0], |data| data[index]), false);
                    }
                }
            }
            Work::Batch { groups, data } => self.store_some(&groups[0], data, rng),
            // The pages that could not be written are dropped: what reads return may go back (as after a failed fsync).
            Work::Flush => {
                let (cached, visible, media) = (&mut self.cached, &mut self.visible, &self.media);
                self.unflushed.retain(|&block| {
                    let dropped = rng.chance(500);
                    if dropped {
                        cached[block].clear();
                        visible[block] = media[block];
                    }
                    !dropped
                });
            }
            _ => {}
        }
    }

    /// Puts on the media everything in the cache up to sequence `mark`.
    fn write_back(&mut self, mark: u64) {
        let (cached, media) = (&mut self.cached, &mut self.media);
        self.unflushed.retain(|&block| {
            let versions = &mut cached[block];
            let covered = versions.partition_point(|version| version.0 <= mark);
            if covered > 0 {
                media[block] = versions[covered - 1].1;
                versions.drain(..covered);
            }
            !versions.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &mut Store, rng: &mut Rng, token: u64, block: u64, value: u32) {
        let work = Work::Write { range: BlockRange::new(block, 1), data: Some(Rc::from([[value, value]])), fua: false };
        store.submit(token, 1, IoId(token), work, 0, rng);
        assert!(store.land(token, Some(1), rng).is_some_and(|landed| landed.ok));
    }

    #[test]
    fn power_cut_keeps_flushed_and_may_lose_the_rest() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..500 {
            let mut rng = Rng::new(seed);
            let mut store = Store::new(DiskId(1), 2);
            write(&mut store, &mut rng, 1, 0, 10);
            store.submit(2, 1, IoId(2), Work::Flush, 0, &mut rng);
            write(&mut store, &mut rng, 3, 0, 11);
            store.land(2, Some(1), &mut rng);
            write(&mut store, &mut rng, 4, 1, 12);
            store.power_cut(&mut rng);
            match store.visible(0) {
                [10, 10] => lost += 1,
                [11, 11] => kept += 1,
                [a, b] => {
                    assert!([10, 11].contains(&a) && [10, 11].contains(&b), "a flushed block went back");
                    torn += 1;
                }
            }
        }
        assert!(kept > 0 && lost > 0 && torn > 0);
    }

    #[test]
    fn an_operation_of_a_dead_process_lands_soon_or_never() {
        let mut rng = Rng::new(1);
        let mut store = Store::new(DiskId(1), 1);
        let work = Work::Write { range: BlockRange::new(0, 1), data: None, fua: true };
        store.submit(1, 1, IoId(1), work.clone(), 10 * SECOND, &mut rng);
        store.submit(2, 2, IoId(1), work, 10 * SECOND, &mut rng);
        store.abandon(1, 0, &mut rng);
        assert!(store.land(1, Some(1), &mut rng).is_none());
        assert!(store.land(2, Some(1), &mut rng).is_some());
        assert!(store.idle());
    }

    #[test]
    fn a_store_open_at_power_loss_is_suspect_a_clean_one_is_not() {
        let fence = (Epoch(0), ConfigVersion(0));
        let mut store = Store::new(DiskId(1), 1);
        assert!(!store.open(Boot(1), fence).suspect);
        assert!(!store.open(Boot(1), fence).suspect, "a new process, the same power-on");
        store.close_clean();
        assert!(!store.open(Boot(2), fence).suspect);
        assert!(store.open(Boot(3), fence).suspect);
    }
}
