//! Operations one after another, on the blocks in memory, into the running transaction.
//!
//! An operation that lacks a block is dropped, the block fetched, and the operation run again: operations hold no lock and
//! need no order among them. What makes transactions durable is in `commit`; what opens a volume in `open`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use block_device::{BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, watch};

use super::cache::BlockCache;
use super::data::Holds;
use super::data::table::DataTable;
use super::handle::{Handle, View};
use super::notes::Pending;
use super::open::Options;
use super::profile::Profile;
use super::proven::{Begun, Proven};
use super::state_ring::Ring;
use super::system_zone::SystemZone;
use super::transaction::{Closed, Edits, Transaction};
use crate::journal::checkpoint::Checkpoint;
use crate::journal::{CommitTime, JournalMap, JournalSuperblock, LogSpace, writer};
use crate::layout::Corrupt;
use crate::layout::geometry::Geometry;
use crate::layout::superblock::Superblock;
use crate::store::{Refusal, Stop, Wait};
use crate::units::{BlockNumber, BlockRun, TransactionId};

/// Runs of one operation, each after a block that it lacked was fetched; more than the longest way through all structures.
const RUNS_MAX: u32 = 100_000;

/// Times that an operation waits for blocks that are free but read or written still, before there is no space for it.
const BLOCK_WAITS_MAX: u32 = 4;
/// Blocks of a table of inodes that are read at once, and the part of the memory that they may take.
const READ_AHEAD_BLOCKS_MAX: u32 = 32;
const READ_AHEAD_PART_OF_MEMORY: usize = 64;
/// Blocks kept for maps: this part of all, and no more than so many.
const MAP_BLOCKS_PART: u64 = 100;
const MAP_BLOCKS_MAX: u64 = 256;

/// Why an operation failed. The filesystem is as if it had not been asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// No block or inode is free.
    #[error("no space left on the volume")]
    NoSpace,
    /// Something would grow past what the format, or one transaction, can hold.
    #[error("{0} cannot grow any further")]
    TooLarge(&'static str),
    /// The tree is not as the operation needs it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is changed any more: this is why. Reading goes on.
    #[error("the filesystem is read-only: {0}")]
    ReadOnly(String),
    /// What was to be read is broken. The filesystem is read-only from now on.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The volume failed to read.
    #[error("the volume cannot be read: {0}")]
    Device(#[from] BlockError),
}

/// An operation that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What it found.
    pub value: T,
    /// The transaction that makes its changes durable; none if it changed nothing.
    pub transaction: Option<TransactionId>,
    /// What a reply has to wait for: the newest transaction whose changes it tells of, its own included, or its note. Nothing
    /// when all of that is durable already.
    pub pending: Pending,
}

/// How far the log is.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// The newest durable transaction.
    pub(super) durable: TransactionId,
    /// The newest note that is on the device.
    pub(super) noted: u64,
    /// No more will become durable.
    pub(super) failed: Option<String>,
}

/// The blocks and transactions of one filesystem over its volume.
pub struct Filesystem<D> {
    pub(super) device: Proven<D>,
    pub(super) geometry: Geometry,
    profile: Profile,
    pub(super) state: RefCell<State>,
    /// The committer has something to do.
    pub(super) work: Notify,
    /// There may be notes to be written.
    pub(super) noted: Notify,
    pub(super) reached: watch::Sender<Reached>,
    /// There may be something to do in the background.
    pub(super) background: Notify,
    /// A file is no longer busy, or data of one has gone to the device.
    pub(super) data_moved: Notify,
    /// A block was fetched, or could not be.
    fetched: Notify,
    pub(super) clock: fn() -> CommitTime,
}

pub(super) struct State {
    pub(super) cache: BlockCache,
    /// What is known of files beyond the device.
    pub(super) table: DataTable,
    pub(super) system_zone: SystemZone,
    /// The tables of inodes, in order.
    pub(super) inode_tables: Vec<BlockRun>,
    pub(super) superblock: Superblock,
    pub(super) running: Transaction,
    /// On its way into the log.
    pub(super) closing: Option<Rc<Closed>>,
    /// None while the filesystem is only read.
    pub(super) journal: Option<Journal>,
    /// Blocks being fetched; false when somebody changed the block meanwhile, and what comes is old.
    pub(super) fetching: BTreeMap<BlockNumber, bool>,
    /// Why nothing is changed any more.
    pub(super) read_only: Option<String>,
    /// Something is broken, and the journal does not say so yet.
    pub(super) unmarked: bool,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
    /// What the version of an inode is at least before it is counted on.
    pub(super) version_floor: u64,
    /// The gateways' records, if they are kept here.
    pub(super) ring: Option<Ring>,
    /// The committer ends when nothing is left to commit.
    pub(super) stopping: bool,
    /// And nothing is left to be done in the background.
    pub(super) tended: bool,
    /// No more notes are to be written.
    pub(super) notes_over: bool,
}

impl State {
    /// What to fetch with a block: of a table of inodes those after it, too, since files of one directory lie together there.
    fn read_ahead(&self, at: BlockNumber, block_size: u32) -> BlockRun {
        let alone = BlockRun::new(at, 1);
        let blocks_max = self.cache.bytes_max() / READ_AHEAD_PART_OF_MEMORY / block_size as usize;
        let next = self.inode_tables.partition_point(|table| table.end() <= at);
        let Some(table) = self.inode_tables.get(next).filter(|table| table.contains(at)) else { return alone };
        let end = table.end().0.min(at.0 + (READ_AHEAD_BLOCKS_MAX as usize).min(blocks_max) as u64);
        let is_free = |block: &u64| {
            let block = BlockNumber(*block);
            !self.cache.contains(block) && !self.fetching.contains_key(&block)
        };
        let more = (at.0 + 1..end).take_while(is_free).count() as u32;
        BlockRun::new(at, 1 + more)
    }

    /// The newest transaction that is to carry data to the device.
    pub(super) fn newest_with_data(&self) -> Option<TransactionId> {
        let running = self.running.has_data().then(|| self.running.id());
        running.or(self.closing.as_ref().filter(|closing| !closing.ordered.is_empty()).map(|closing| closing.id))
    }
}

/// The log in use.
pub(super) struct Journal {
    pub(super) superblock: JournalSuperblock,
    pub(super) map: JournalMap,
    pub(super) space: LogSpace,
    pub(super) checkpoint: Checkpoint,
    pub(super) last_commit: CommitTime,
    /// Log blocks that one transaction may take.
    pub(super) transaction_blocks_max: usize,
}

impl<T> Done<T> {
    /// The same with another value.
    pub fn map<U>(self, to: impl FnOnce(T) -> U) -> Done<U> {
        Done { value: to(self.value), transaction: self.transaction, pending: self.pending }
    }
}

/// An operation that has joined the running transaction.
struct Joined {
    /// What makes it durable, if it needs that.
    transaction: Option<TransactionId>,
    /// The note that has all of it.
    note: Option<u64>,
    /// What it holds.
    holds: Vec<u64>,
}

/// What became of one run of an operation.
enum Attempt<T> {
    /// And the numbers of what it holds.
    Done(Done<T>, Vec<u64>),
    /// This block is to be fetched.
    Missing(BlockNumber),
    /// This transaction has to be durable first: there is no room beside it, or what it frees is needed.
    After(TransactionId),
    Wait(Wait),
    NoSpace {
        /// Room is reserved for data.
        reserved: bool,
    },
}

impl<D: BlockDevice> Filesystem<D> {
    pub(super) fn new(device: D, superblock: Superblock, options: &Options, next: TransactionId) -> Self {
        let durable = TransactionId(next.0.wrapping_sub(1));
        let state = State {
            cache: BlockCache::new(options.cache_bytes_max),
            system_zone: SystemZone::default(),
            inode_tables: Vec::new(),
            table: DataTable::new(options.data_bytes_max, superblock.geometry().block_size as usize),
            running: Transaction::new(next),
            closing: None,
            journal: None,
            fetching: BTreeMap::new(),
            read_only: None,
            unmarked: false,
            free_blocks: superblock.free_blocks(),
            free_inodes: superblock.free_inodes(),
            version_floor: 0,
            ring: None,
            stopping: false,
            tended: false,
            notes_over: false,
            superblock,
        };
        Self {
            device: Proven::new(device),
            geometry: state.superblock.geometry().clone(),
            profile: Profile::of(&state.superblock),
            state: RefCell::new(state),
            work: Notify::new(),
            noted: Notify::new(),
            reached: watch::Sender::new(Reached { durable, noted: 0, failed: None }),
            background: Notify::new(),
            data_moved: Notify::new(),
            fetched: Notify::new(),
            clock: options.clock,
        }
    }

    /// The volume.
    pub fn device(&self) -> &D {
        &self.device.device
    }

    /// Gives back the volume.
    pub fn into_device(self) -> D {
        self.device.device
    }

    /// Runs an operation to its end. It may be run several times, and must not have effects but through its handle.
    ///
    /// Its changes are seen by every operation that follows; they are durable when [`Self::durable`] says so.
    pub async fn run<T>(&self, op: impl FnMut(&mut Handle<'_>) -> Result<T, Stop>) -> Result<Done<T>, Failure> {
        Ok(self.run_with_holds(op, true).await?.0)
    }

    /// The same; what the operation claimed is kept from others for as long as the second value lives. Only operations that
    /// are no part of writing data back may ask for the space that is reserved for that.
    pub(super) async fn run_with_holds<T>(
        &self,
        mut op: impl FnMut(&mut Handle<'_>) -> Result<T, Stop>,
        mut may_ask_for_space: bool,
    ) -> Result<(Done<T>, Holds<'_, D>), Failure> {
        let mut pins = Pins { filesystem: self, blocks: Vec::new() };
        let mut waits_for_blocks = if may_ask_for_space { BLOCK_WAITS_MAX } else { 0 };
        for _ in 0..RUNS_MAX {
            match self.attempt(&mut op)? {
                Attempt::Done(done, ids) => return Ok((done, Holds { filesystem: self, ids })),
                Attempt::Missing(block) => {
                    self.fetch(block).await?;
                    pins.add(block);
                }
                Attempt::After(transaction) => self.durable(transaction).await?,
                Attempt::Wait(wait) => Box::pin(self.wait(wait)).await?,
                // More is reserved for data that waits than it will need: once it is written, the rest is there for others.
                Attempt::NoSpace { reserved: true } if std::mem::take(&mut may_ask_for_space) => {
                    Box::pin(self.sync()).await?;
                }
                Attempt::NoSpace { .. } if waits_for_blocks > 0 && self.state.borrow().table.has_held_blocks() => {
                    waits_for_blocks -= 1;
                    Box::pin(self.wait(Wait::Blocks)).await?;
                }
                Attempt::NoSpace { .. } => return Err(Failure::NoSpace),
            }
        }
        Err(Failure::TooLarge("the operation"))
    }

    /// To be asked when a request comes, for [`Self::confirmed`].
    pub fn begun(&self) -> Begun {
        self.device.begun()
    }

    /// Waits until it is known that nobody else had the volume when `since` was asked: what is in memory may be told of then.
    /// Errors: the volume's, when somebody else may have it.
    pub async fn confirmed(&self, since: Begun) -> Result<(), Failure> {
        match self.device.is_proven_since(since) {
            true => Ok(()),
            false => Ok(self.device.confirm().await?),
        }
    }

    /// Waits until a transaction is durable. Errors: it will never be.
    pub async fn durable(&self, transaction: TransactionId) -> Result<(), Failure> {
        self.hurry(transaction);
        let mut reached = self.reached.subscribe();
        let is_over = |reached: &Reached| !reached.durable.is_before(transaction) || reached.failed.is_some();
        // The sender lives as long as this.
        let now = reached.wait_for(is_over).await.map(|now| now.clone());
        match now {
            Ok(now) if !now.durable.is_before(transaction) => Ok(()),
            Ok(Reached { failed: Some(why), .. }) => Err(Failure::ReadOnly(why)),
            _ => Err(Failure::Device(BlockError::Closed)),
        }
    }

    fn attempt<T>(&self, op: &mut impl FnMut(&mut Handle<'_>) -> Result<T, Stop>) -> Result<Attempt<T>, Failure> {
        let mut state = self.state.borrow_mut();
        let State { cache, running, closing, superblock, table, system_zone, free_blocks, version_floor, ring, .. } =
            &mut *state;
        let mut handle = Handle::new(View {
            geometry: &self.geometry,
            profile: &self.profile,
            last_orphan: superblock.last_orphan(),
            version_floor: *version_floor,
            ring: ring.as_ref(),
            cache,
            running,
            closing: closing.as_deref(),
            table,
            system_zone,
            free_blocks: *free_blocks as i64 - self.kept_blocks(superblock) as i64,
        });
        let result = op(&mut handle);
        let (edits, observed) = handle.finish();
        match result {
            Ok(value) if edits.is_empty() => {
                let durable = self.reached.borrow().durable;
                let observed = observed.filter(|observed| durable.is_before(*observed));
                Ok(Attempt::Done(Done { value, transaction: None, pending: observed.into() }, Vec::new()))
            }
            Ok(value) => Ok(match self.join(&mut state, edits, observed)? {
                Ok(Joined { transaction, note, holds }) => {
                    let durable = self.reached.borrow().durable;
                    let observed = transaction.or(observed.filter(|observed| durable.is_before(*observed)));
                    let noted = note.zip(transaction).map(|(note, transaction)| Pending::noted(note, transaction));
                    let pending = noted.unwrap_or(observed.into());
                    Attempt::Done(Done { value, transaction, pending }, holds)
                }
                Err(full) => Attempt::After(full),
            }),
            Err(Stop::Missing(block)) => Ok(Attempt::Missing(block)),
            Err(Stop::Wait(wait)) => Ok(Attempt::Wait(wait)),
            // What was freed is there for others once that is durable.
            Err(Stop::NoSpace) if state.running.frees() => Ok(Attempt::After(state.running.id())),
            Err(Stop::NoSpace) => match &state.closing {
                Some(closing) if !closing.freed.is_empty() => Ok(Attempt::After(closing.id)),
                _ => Ok(Attempt::NoSpace { reserved: state.table.reserved_blocks() > 0 }),
            },
            Err(Stop::Refused(why)) => Err(Failure::Refused(why)),
            Err(Stop::TooLarge(what)) => Err(Failure::TooLarge(what)),
            Err(Stop::Corrupt(corrupt)) => {
                state.unmarked |= state.read_only.is_none();
                self.turn_read_only(&mut state, corrupt.to_string());
                Err(corrupt.into())
            }
        }
    }

    /// Free blocks that users do not get: those for the superuser, and a few for maps that grow when nothing else does, as
    /// when a part of an allocated range is written (ext4's reserved clusters).
    pub(super) fn kept_blocks(&self, superblock: &Superblock) -> u64 {
        superblock.reserved_blocks() + (self.geometry.block_count / MAP_BLOCKS_PART).min(MAP_BLOCKS_MAX)
    }

    /// Takes an operation's edits into the running transaction, and gives that and what the operation holds; or tells which
    /// transaction has to be out of the way.
    fn join(
        &self,
        state: &mut State,
        mut edits: Edits,
        observed: Option<TransactionId>,
    ) -> Result<Result<Joined, TransactionId>, Failure> {
        let is_only_records = self.is_only_records(state, &edits);
        let data = std::mem::take(&mut edits.data);
        if !edits.needs_commit() && data.only_claims() {
            let holds = state.table.apply(data, state.running.id()).1;
            return Ok(Ok(Joined { transaction: None, note: None, holds }));
        }
        if let Some(why) = &state.read_only {
            return Err(Failure::ReadOnly(why.clone()));
        }
        let Some(journal) = &state.journal else {
            return Err(Failure::ReadOnly("it was opened to be read".into()));
        };
        let (blocks, revokes) = state.running.size_with(&edits);
        // And the superblock.
        let needed = writer::log_blocks_needed(&journal.superblock.format(), blocks + 1, revokes);
        if needed > journal.transaction_blocks_max {
            if state.running.is_empty() {
                return Err(Failure::TooLarge("what one operation changes"));
            }
            return Ok(Err(state.running.id()));
        }
        let overwritten = data.overwritten.iter().flat_map(|run| (run.start.0..run.end().0).map(BlockNumber));
        let overwritten: Vec<BlockNumber> = overwritten.collect();
        for block in edits.touched().chain(overwritten.iter().copied()) {
            if let Some(valid) = state.fetching.get_mut(&block) {
                *valid = false;
            }
        }
        let (blocks, inodes) = edits.freed_counts();
        state.free_blocks = state.free_blocks.saturating_add_signed(blocks);
        state.free_inodes = state.free_inodes.saturating_add_signed(inodes);
        if let Some(orphan) = edits.last_orphan() {
            state.superblock.set_last_orphan(orphan);
        }
        if data.large_file {
            state.superblock.turn_on_large_file();
        }
        let id = state.running.id();
        let commits = edits.needs_commit() || !data.ordered.is_empty();
        let observed = observed.filter(|observed| self.reached.borrow().durable.is_before(*observed));
        // What stays in memory hurries nothing.
        let records = edits.ring().take_note();
        let note = match commits {
            true => self.note(state, records, is_only_records && observed.is_none()),
            false => None,
        };
        if let Some(ring) = &mut state.ring {
            ring.apply(std::mem::take(edits.ring()));
        }
        state.running.join(edits, &mut state.cache);
        // What is read again comes from the device, where it is newer.
        overwritten.into_iter().for_each(|at| state.cache.forget_clean(at));
        let ordered = data.ordered.clone();
        let (pages, holds) = state.table.apply(data, id);
        state.running.order(ordered, pages);
        match note {
            Some(_) => self.noted.notify_one(),
            None => self.background.notify_one(),
        }
        self.work.notify_one();
        Ok(Ok(Joined { transaction: commits.then_some(id), note, holds }))
    }

    /// Brings a block into memory. Errors: the volume's.
    pub(super) async fn fetch(&self, at: BlockNumber) -> Result<(), Failure> {
        let run = loop {
            {
                let mut state = self.state.borrow_mut();
                if state.cache.get(at).is_some() {
                    return Ok(());
                }
                if !state.fetching.contains_key(&at) {
                    let run = state.read_ahead(at, self.geometry.block_size);
                    state.fetching.extend((run.start.0..run.end().0).map(|block| (BlockNumber(block), true)));
                    break run;
                }
            }
            self.fetched.notified().await;
        };
        let fetch = Fetch { filesystem: self, run };
        let length = u64::from(self.geometry.block_size);
        let range = ByteRange { offset: run.start.0 * length, length: u64::from(run.count) * length };
        let data = self.device.read(range).await?;
        for (block, content) in (run.start.0..).map(BlockNumber).zip(data.chunks(length as usize)) {
            if fetch.is_valid(block) {
                // A buffer of its own: the volume's is aligned, or a part of a larger one, and takes more memory than it has bytes.
                self.state.borrow_mut().cache.fetched(block, Bytes::copy_from_slice(content));
            }
        }
        Ok(())
    }

    /// Nothing is changed from now on, and nothing that is not durable yet will be.
    pub(super) fn turn_read_only(&self, state: &mut State, why: String) {
        let why = state.read_only.get_or_insert(why).clone();
        self.reached.send_modify(|reached| reached.failed = Some(why));
        self.work.notify_one();
        self.background.notify_one();
        self.data_moved.notify_waiters();
    }
}

/// Blocks being fetched; also when nobody waits for them any more.
struct Fetch<'a, D> {
    filesystem: &'a Filesystem<D>,
    run: BlockRun,
}

impl<D> Fetch<'_, D> {
    fn is_valid(&self, at: BlockNumber) -> bool {
        self.filesystem.state.borrow().fetching.get(&at) == Some(&true)
    }
}

impl<D> Drop for Fetch<'_, D> {
    fn drop(&mut self) {
        let fetching = &mut self.filesystem.state.borrow_mut().fetching;
        for block in self.run.start.0..self.run.end().0 {
            fetching.remove(&BlockNumber(block));
        }
        self.filesystem.fetched.notify_waiters();
    }
}

/// What an operation that will run again has fetched.
struct Pins<'a, D> {
    filesystem: &'a Filesystem<D>,
    blocks: Vec<BlockNumber>,
}

impl<D> Pins<'_, D> {
    fn add(&mut self, block: BlockNumber) {
        if self.filesystem.state.borrow_mut().cache.pin(block) {
            self.blocks.push(block);
        }
    }
}

impl<D> Drop for Pins<'_, D> {
    fn drop(&mut self) {
        let cache = &mut self.filesystem.state.borrow_mut().cache;
        self.blocks.iter().for_each(|block| cache.unpin(*block));
    }
}
