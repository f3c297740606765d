//! The raw disk under a copy: data blocks as tokens, pages of metadata as real bytes, both behind a volatile cache.
//!
//! It carries out raw operations in whatever order the scheduler lands them, and decides what a power cut, a failing
//! operation or a silent fault leaves. It knows nothing of checksums or logs: those are the engine's.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proto::{BlockRange, ConfigVersion, EXTENT_BLOCKS};
use replication::IoId;
use replication::local_copy::{MetaPage, PAGE_BYTES, Page, RawId};

use super::super::scheduler::{Rng, SECOND, SimTime};
use super::layer::{Content, Layer};
use super::{Block, Blocks, Harm};

/// Bytes of a page that a disk writes at once.
const SECTOR_BYTES: usize = 512;

/// What a block should hold of which only bad copies are left.
pub const NOBODYS: Block = [u32::MAX; 2];

/// A page as the disk holds it.
type Held = Rc<Page>;

impl Content for Block {
    fn zeros() -> Self {
        [0, 0]
    }

    fn torn(&self, other: &Self, _rng: &mut Rng) -> Self {
        [self[0], other[1]]
    }
}

impl Content for Held {
    fn zeros() -> Self {
        thread_local! {
            static ZEROS: Held = Rc::new(Box::new([0; PAGE_BYTES]));
        }
        ZEROS.with(Rc::clone)
    }

    fn torn(&self, other: &Self, rng: &mut Rng) -> Self {
        let mut mixed = (**self).clone();
        let whole = rng.chance(500).then(|| rng.below((PAGE_BYTES / SECTOR_BYTES) as u64) as usize);
        for (sector, (ours, theirs)) in mixed.chunks_mut(SECTOR_BYTES).zip(other.chunks(SECTOR_BYTES)).enumerate() {
            // Either a prefix of the sectors was written, or any of them.
            if whole.map_or_else(|| rng.chance(500), |first| sector >= first) {
                ours.copy_from_slice(theirs);
            }
        }
        Rc::new(mixed)
    }
}

/// An operation of the raw disk, with the data it needs.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Returns blocks.
    ReadData(BlockRange),
    /// Stores blocks; no data means zeros.
    WriteData {
        /// Blocks.
        range: BlockRange,
        /// Their content.
        data: Option<Blocks>,
        /// On the media when done.
        fua: bool,
    },
    /// Returns a page.
    ReadPage(MetaPage),
    /// Stores a page.
    WritePage {
        /// Which.
        page: MetaPage,
        /// Its content.
        bytes: Rc<Page>,
        /// On the media when done.
        durable: bool,
    },
    /// Puts on the media what had completed when it was submitted.
    Flush,
    /// Takes space for an extent.
    Reserve(u64),
    /// Writes the superblock.
    State {
        /// Version at which the copy knows it is in sync.
        last_in_sync: ConfigVersion,
        /// May hold less than it acknowledged.
        suspect: bool,
    },
}

/// Who waits for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The engine.
    Raw(RawId),
    /// The shell, which keeps the superblock.
    State(IoId),
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// What was read.
    Data(Blocks),
    /// The page that was read.
    Page(Page),
    /// No space.
    NoSpace,
    /// The medium failed.
    Failed,
}

/// An operation that has not landed.
#[derive(Clone, Debug)]
struct Inflight {
    run: u32,
    whose: Whose,
    op: DiskOp,
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
    /// Who waits for it there.
    pub whose: Whose,
    /// How it ended.
    pub outcome: Outcome,
}

/// Faults of a disk that the one who asked learns of.
#[derive(Clone, Copy, Debug)]
pub struct DiskFaults {
    /// Delays are multiplied by this.
    pub slow: u64,
    /// Operations that fail, per 1000.
    pub error_permille: u64,
    /// Operations that hang for seconds, per 1000.
    pub stuck_permille: u64,
    /// There is no space for extents that have none yet.
    pub full: bool,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self { slow: 1, error_permille: 0, stuck_permille: 0, full: false }
    }
}

/// Faults of a disk of which it says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentFaults {
    /// Writes that are dropped, per 1000.
    pub lost_permille: u64,
    /// Writes of data that land elsewhere, per 1000; half of them land in their own place too.
    pub misdirected_permille: u64,
    /// Flushes and durable writes stay in the volatile cache.
    pub lying: bool,
    /// Writes of checksums and of where they are are dropped.
    pub lost_sums: bool,
}

/// One raw disk.
#[derive(Clone, Debug)]
pub struct RawDisk {
    /// Faults now.
    pub faults: DiskFaults,
    /// Silent faults now.
    pub silent: SilentFaults,
    /// What silent faults have done.
    pub harm: Harm,
    blocks: u64,
    data: Layer<u64, Block>,
    pages: Layer<MetaPage, Held>,
    reserved: BTreeSet<u64>,
    sequence: u64,
    inflight: BTreeMap<u64, Inflight>,
    last_in_sync: ConfigVersion,
    suspect: bool,
    /// The superblock carries the mark of a failed disk.
    failed: bool,
    /// Token of the newest superblock write that landed.
    state_token: u64,
}

impl RawDisk {
    /// A disk of zeros with `blocks` blocks of data.
    pub fn new(blocks: u64) -> Self {
        Self {
            faults: DiskFaults::default(),
            silent: SilentFaults::default(),
            harm: Harm::new(blocks.div_ceil(EXTENT_BLOCKS)),
            blocks,
            data: Layer::default(),
            pages: Layer::default(),
            reserved: BTreeSet::new(),
            sequence: 0,
            inflight: BTreeMap::new(),
            last_in_sync: ConfigVersion(0),
            suspect: false,
            failed: false,
            state_token: 0,
        }
    }

    /// True when no operation is in flight, so that a successor gets the store's lock.
    pub fn idle(&self) -> bool {
        self.inflight.is_empty()
    }

    /// The superblock says that it may hold less than it acknowledged.
    pub fn suspect(&self) -> bool {
        self.suspect
    }

    /// Sets that mark when the store is opened.
    pub fn set_suspect(&mut self, suspect: bool) {
        self.suspect = suspect;
    }

    /// The superblock carries the mark of a failed disk.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Sets that mark. Superblocks are written one after another: what was submitted before `token` is under it.
    pub fn mark_failed(&mut self, token: u64) {
        (self.state_token, self.suspect, self.failed) = (token, true, true);
    }

    /// Version at which the superblock knows the copy in sync.
    pub fn last_in_sync(&self) -> ConfigVersion {
        self.last_in_sync
    }

    /// Content of a block as reads see it.
    pub fn visible(&self, block: u64) -> Block {
        self.data.get(block)
    }

    /// Blocks that were ever written, as reads see them.
    pub fn written(&self) -> impl Iterator<Item = (u64, Block)> {
        self.data.range(..).map(|(block, content)| (block, *content))
    }

    /// Pages that were ever written.
    pub fn pages_written(&self) -> Vec<MetaPage> {
        self.pages.range(..).map(|(page, _)| page).collect()
    }

    /// The `count` pages of an area, as read when a store is opened.
    pub fn area(&self, count: u32, page: impl Fn(u32) -> MetaPage) -> Vec<u8> {
        let mut area = vec![0; count as usize * PAGE_BYTES];
        for (number, bytes) in (0..count).zip(area.chunks_mut(PAGE_BYTES)) {
            bytes.copy_from_slice(&self.pages.get(page(number))[..]);
        }
        area
    }

    /// Takes an operation that lands at `due`.
    pub fn submit(&mut self, token: u64, run: u32, whose: Whose, op: DiskOp, due: SimTime, rng: &mut Rng) {
        let fails = rng.chance(self.faults.error_permille);
        let early = match &op {
            DiskOp::ReadData(range) if rng.chance(300) => Some(self.content(*range)),
            _ => None,
        };
        self.inflight.insert(token, Inflight { run, whose, op, fails, due, mark: self.sequence, early });
    }

    /// Carries out an operation without delay and without faults.
    pub fn at_once(&mut self, op: DiskOp, rng: &mut Rng) -> Outcome {
        self.land_well(u64::MAX, op, self.sequence, None, rng)
    }

    /// Lands an operation; None if a crash has swallowed it. A failing flush takes content back only if the process that
    /// asked for it is `listening`, and so learns of it.
    pub fn land(&mut self, token: u64, listening: Option<u32>, rng: &mut Rng) -> Option<Landed> {
        let Inflight { run, whose, op, fails, mark, early, .. } = self.inflight.remove(&token)?;
        let outcome = if fails {
            if !matches!(op, DiskOp::Flush) || listening == Some(run) {
                self.land_failed(op, rng);
            }
            Outcome::Failed
        } else {
            self.land_well(token, op, mark, early, rng)
        };
        Some(Landed { run, whose, outcome })
    }

    fn land_well(&mut self, token: u64, op: DiskOp, mark: u64, early: Option<Blocks>, rng: &mut Rng) -> Outcome {
        match op {
            DiskOp::ReadData(range) => return Outcome::Data(early.unwrap_or_else(|| self.content(range))),
            DiskOp::ReadPage(page) => return Outcome::Page((*self.pages.get(page)).clone()),
            DiskOp::WriteData { range, data, fua } => self.write(range, data.as_deref(), fua, rng),
            DiskOp::WritePage { page, bytes, durable } => {
                let of_sums = matches!(page, MetaPage::Sums { .. } | MetaPage::Index { .. });
                if rng.chance(self.silent.lost_permille) || (self.silent.lost_sums && of_sums) {
                    self.harm.page_lost(page);
                } else {
                    self.store_page(page, bytes, durable);
                }
            }
            DiskOp::Flush if self.silent.lying => {
                self.harm.promises_broken |= self.data.has_unflushed() || self.pages.has_unflushed();
            }
            DiskOp::Flush => self.write_back(mark),
            DiskOp::Reserve(extent) => {
                if self.faults.full && !self.reserved.contains(&extent) {
                    return Outcome::NoSpace;
                }
                self.reserved.insert(extent);
            }
            DiskOp::State { last_in_sync, suspect } => {
                self.land_state(token, last_in_sync, suspect);
            }
        }
        Outcome::Done
    }

    /// The process `run` has died: what it had submitted lands in its own time or never, but soon.
    pub fn abandon(&mut self, run: u32, now: SimTime, rng: &mut Rng) {
        let writes = |op: &DiskOp| {
            matches!(
                op,
                DiskOp::WriteData { .. } | DiskOp::WritePage { .. } | DiskOp::State { .. } | DiskOp::Reserve(_)
            )
        };
        self.inflight.retain(|_, io| io.run != run || (writes(&io.op) && io.due <= now + SECOND && rng.chance(600)));
        self.harm.crashed();
    }

    /// The box has lost power.
    pub fn power_cut(&mut self, rng: &mut Rng) {
        for (token, io) in std::mem::take(&mut self.inflight) {
            match io.op {
                DiskOp::WriteData { .. } | DiskOp::WritePage { .. } => self.land_failed(io.op, rng),
                DiskOp::State { last_in_sync, suspect } if rng.chance(500) => {
                    self.land_state(token, last_in_sync, suspect);
                }
                _ => {}
            }
        }
        self.data.power_cut(rng);
        self.pages.power_cut(rng);
        let data = &self.data;
        self.harm.power_cut(|block| data.get(block));
    }

    /// Everything is on the media: the disk was closed in order.
    pub fn flush_all(&mut self) {
        self.write_back(u64::MAX);
    }

    /// A block changes at rest.
    pub fn rot_block(&mut self, block: u64, rng: &mut Rng) {
        // Values of writes are small numbers: this one is nobody's.
        let foreign = 0x8000_0000 | rng.below(1 << 24) as u32;
        let half = rng.below(2) as usize;
        let before = self.data.get(block);
        let mut after = before;
        after[half] = foreign;
        self.data.decay(block, |_| after);
        self.harm.struck(block, None, before, after);
    }

    /// A page of metadata changes at rest.
    pub fn rot_page(&mut self, page: MetaPage, rng: &mut Rng) {
        let bit = rng.below(8 * PAGE_BYTES as u64) as usize;
        self.pages.decay(page, |held| {
            let mut bytes = (*held).clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            Rc::new(bytes)
        });
        self.harm.page_damaged(page);
    }

    /// The copy has taken over what the sum of a block should be; `matches` tells whether what it holds has that sum.
    pub fn expect(&mut self, block: u64, lost: bool, matches: impl Fn(Block) -> bool) {
        let holds = self.data.get(block);
        if lost {
            self.harm.given_up.insert(block);
        }
        if matches(holds) {
            self.harm.written(block, holds);
        } else {
            self.harm.struck(block, Some(NOBODYS), NOBODYS, holds);
        }
    }

    fn content(&self, range: BlockRange) -> Blocks {
        let mut content = vec![[0, 0]; range.count as usize];
        for (block, value) in self.data.range(range.blocks()) {
            content[(block - range.start) as usize] = *value;
        }
        content.into()
    }

    fn write(&mut self, range: BlockRange, data: Option<&[Block]>, fua: bool, rng: &mut Rng) {
        let content = |index: usize| data.map_or([0, 0], |data| data[index]);
        let misdirected = rng.chance(self.silent.misdirected_permille);
        if misdirected {
            let elsewhere = rng.below(self.blocks - range.count + 1);
            for (index, block) in (elsewhere..).take(range.count as usize).enumerate() {
                let before = self.data.get(block);
                self.cache_block(block, content(index), false);
                self.harm.struck(block, None, before, content(index));
            }
        }
        let lost = rng.chance(self.silent.lost_permille) || (misdirected && rng.chance(500));
        for (index, block) in range.blocks().enumerate() {
            if lost {
                let holds = self.data.get(block);
                self.harm.struck(block, Some(content(index)), holds, holds);
            } else {
                self.store_block(block, content(index), fua);
            }
        }
    }

    fn store_block(&mut self, block: u64, value: Block, fua: bool) {
        self.harm.written(block, value);
        self.cache_block(block, value, fua);
    }

    fn cache_block(&mut self, block: u64, value: Block, fua: bool) {
        self.sequence += 1;
        self.harm.promises_broken |= fua && self.silent.lying;
        self.data.store(block, value, fua && !self.silent.lying, self.sequence);
    }

    /// A page is written, durably, while the copy is opened.
    pub fn mend_page(&mut self, page: MetaPage, bytes: Page) {
        self.store_page(page, bytes.into(), true);
    }

    fn store_page(&mut self, page: MetaPage, bytes: Held, durable: bool) {
        self.sequence += 1;
        self.harm.promises_broken |= durable && self.silent.lying;
        self.pages.store(page, bytes, durable && !self.silent.lying, self.sequence);
    }

    /// A superblock has landed, unless a later one was there before it. One that calls the copy good takes back the mark
    /// of a failed disk.
    fn land_state(&mut self, token: u64, last_in_sync: ConfigVersion, suspect: bool) {
        if token > self.state_token {
            (self.state_token, self.last_in_sync, self.suspect) = (token, last_in_sync, suspect);
            self.failed &= suspect;
        }
    }

    /// An operation that failed, or that a power cut caught: parts of it may have landed.
    fn land_failed(&mut self, op: DiskOp, rng: &mut Rng) {
        match op {
            DiskOp::WriteData { range, data, .. } => {
                for (index, block) in range.blocks().enumerate() {
                    if rng.chance(500) {
                        self.store_block(block, data.as_ref().map_or([0, 0], |data| data[index]), false);
                    }
                }
            }
            DiskOp::WritePage { page, bytes, .. } => {
                let bytes = if rng.chance(500) { self.pages.get(page).torn(&bytes, rng) } else { bytes };
                if rng.chance(700) {
                    self.store_page(page, bytes, false);
                }
            }
            // What could not be written is dropped: what reads return may go back (as after a failed fsync).
            DiskOp::Flush => {
                self.data.drop_some(rng);
                self.pages.drop_some(rng);
                let data = &self.data;
                self.harm.dropped(|block| data.get(block));
            }
            _ => {}
        }
    }

    fn write_back(&mut self, mark: u64) {
        self.data.write_back(mark);
        self.pages.write_back(mark);
        self.harm.promises_broken &= self.data.has_unflushed() || self.pages.has_unflushed();
    }
}
