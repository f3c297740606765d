//! Making transactions durable: the running one is closed and written to the log as soon as the one before it is there, and
//! what the log holds is written home before its room is needed.
//!
//! One task does both, so a block is never written home while a transaction that frees it becomes durable: what is
//! freed can be used again without a look at writes under way.

use std::rc::Rc;

use block_device::{AlignedBuf, BatchWrite, BlockDevice, BlockError};
use bytes::Bytes;

use super::filesystem::{Failure, Filesystem, State};
use super::transaction::{Closed, Transaction};
use crate::journal::writer::{self, NewTransaction, WrittenTransaction};
use crate::journal::{CommitTime, LogIndex};
use crate::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Seconds, Superblock};
use crate::units::{BlockNumber, TransactionId};

/// Blocks written home at a time.
const HOME_BLOCKS: usize = 512;
/// Units of a write batch on the volume, in bytes.
const BATCH_UNIT_BYTES: u32 = 4096;

impl<D: BlockDevice> Filesystem<D> {
    /// Commits what operations change, and does what they leave to the background, until [`Self::stop`]. To be polled beside
    /// them, by one task only. Data that waits is written back when much waits; call [`Self::sync`] now and then.
    pub async fn drive(&self) {
        {
            let mut state = self.state.borrow_mut();
            (state.tended, state.notes_over) = (false, false);
        }
        let work = async {
            futures_util::future::join(self.commit_all(), self.tend()).await;
            self.state.borrow_mut().notes_over = true;
            self.noted.notify_one();
        };
        futures_util::future::join(work, self.write_notes()).await;
    }

    async fn commit_all(&self) {
        loop {
            let (idle, over, stopping) = {
                let state = self.state.borrow();
                let over = state.read_only.is_some() || state.journal.is_none();
                let stopping = state.stopping && state.tended;
                // What only notes wait for is gathered.
                let idle = state.running.is_empty() || !(state.running.is_urgent() || stopping);
                (idle, over, stopping)
            };
            if over {
                self.mark_broken().await;
                return;
            }
            if idle && stopping {
                return;
            }
            if idle {
                self.work.notified().await;
                continue;
            }
            if let Err(error) = self.commit().await {
                let why = format!("the volume could not be written: {error}");
                self.turn_read_only(&mut self.state.borrow_mut(), why);
            }
        }
    }

    /// Has [`Self::drive`] end once all data is written and everything is committed. What operations change after that waits
    /// for [`Self::close`].
    pub fn stop(&self) {
        self.state.borrow_mut().stopping = true;
        self.work.notify_one();
        self.background.notify_one();
    }

    /// Puts the running transaction into the log, and then writes home what makes the log half empty again. False when there
    /// was nothing to commit.
    async fn commit(&self) -> Result<bool, BlockError> {
        let Some(closed) = self.close_running() else { return Ok(false) };
        let blocks: Vec<(BlockNumber, &[u8])> = closed.contents.iter().map(|(at, data)| (*at, &**data)).collect();
        let revokes: Vec<BlockNumber> = closed.revokes.iter().copied().collect();
        let needed = {
            let state = self.state.borrow();
            let format = state.journal.as_ref().ok_or(BlockError::Closed)?.superblock.format();
            writer::log_blocks_needed(&format, blocks.len(), revokes.len())
        };
        while self.log_room() < needed {
            self.write_home().await?;
        }
        self.open_log(closed.id).await?;
        let (start, groups) = {
            let mut state = self.state.borrow_mut();
            let journal = state.journal.as_mut().ok_or(BlockError::Closed)?;
            let time = (self.clock)().max(journal.last_commit);
            journal.last_commit = time;
            let transaction = NewTransaction { sequence: closed.id, time, blocks: &blocks, revokes: &revokes };
            let (format, uuid) = (journal.superblock.format(), journal.superblock.uuid());
            let start = journal.space.head();
            let written =
                writer::write(&format, &uuid, &mut journal.space, &transaction).ok_or(BlockError::OutOfSpace)?;
            let mut groups = self.log_writes(&state, &transaction, &written)?;
            if let Some(first) = groups.first_mut() {
                let data: Vec<_> = closed.ordered.iter().map(|(at, content)| (*at, content.bytes())).collect();
                first.extend(self.joined(&data));
            }
            (start, groups)
        };
        self.write_groups(groups).await?;
        self.committed(&closed, start);
        if self.log_room() < self.log_capacity() / 2 {
            self.write_home().await?;
        }
        while self.state.borrow().cache.is_crowded() && self.write_home().await? {}
        Ok(true)
    }

    /// Ends the running transaction and begins the next; none if nothing was changed.
    fn close_running(&self) -> Option<Rc<Closed>> {
        let mut state = self.state.borrow_mut();
        if state.running.is_empty() {
            return None;
        }
        let now = (self.clock)();
        let State { superblock, free_blocks, free_inodes, .. } = &mut *state;
        superblock.set_free_blocks(*free_blocks);
        superblock.set_free_inodes(*free_inodes);
        superblock.set_write_time(now.into());
        let place = self.geometry.superblock_place();
        let encoded = superblock.encode();
        let State { cache, running, .. } = &mut *state;
        running.change(place.block, cache, |block| {
            let from = place.offset as usize;
            block[from..from + SUPERBLOCK_BYTES].copy_from_slice(&encoded);
        });
        let next = Transaction::new(running.id().next());
        let closed = Rc::new(std::mem::replace(running, next).close(cache));
        state.closing = Some(Rc::clone(&closed));
        Some(closed)
    }

    /// The superblock of the journal has to name a transaction before there is one in an empty log.
    async fn open_log(&self, id: TransactionId) -> Result<(), BlockError> {
        {
            let mut state = self.state.borrow_mut();
            let journal = state.journal.as_mut().ok_or(BlockError::Closed)?;
            if !journal.superblock.is_clean() {
                return Ok(());
            }
            journal.superblock.set_start(journal.space.head(), id);
        }
        self.write_journal_superblock().await
    }

    pub(super) async fn write_journal_superblock(&self) -> Result<(), BlockError> {
        let (at, data) = {
            let state = self.state.borrow();
            let journal = state.journal.as_ref().ok_or(BlockError::Closed)?;
            let at = journal.map.device_block(LogIndex(0)).ok_or(BlockError::Io)?;
            (at, Bytes::copy_from_slice(&journal.superblock.encode()))
        };
        self.device.write(at.0 * u64::from(self.geometry.block_size), data, true).await
    }

    /// The blocks of a transaction as writes of the device, neighbours joined: first all but the commit block, then that.
    fn log_writes(
        &self,
        state: &State,
        transaction: &NewTransaction<'_>,
        written: &WrittenTransaction,
    ) -> Result<Vec<Vec<BatchWrite>>, BlockError> {
        let map = &state.journal.as_ref().ok_or(BlockError::Closed)?.map;
        let place = |at: LogIndex| map.device_block(at).ok_or(BlockError::Io);
        let mut blocks = Vec::with_capacity(written.blocks.len());
        for block in &written.blocks {
            blocks.push((place(block.at)?, block.content.bytes(transaction)));
        }
        let commit = [(place(written.commit.at)?, written.commit.content.bytes(transaction))];
        // Zeros first where the commit block will be: all but its first sector stays as it is then, and a torn one is whole
        // or none. A commit block that is there in part is a damaged transaction to e2fsck and the kernel, not the log's end.
        let zeros = vec![0; self.geometry.block_size as usize];
        blocks.push((commit[0].0, &zeros));
        Ok(vec![self.joined(&blocks), self.joined(&commit)])
    }

    /// Writes of blocks, in which those that follow one another on the device are one.
    pub(super) fn joined(&self, blocks: &[(BlockNumber, &[u8])]) -> Vec<BatchWrite> {
        let size = self.geometry.block_size as usize;
        let runs = blocks.chunk_by(|(one, _), (other, _)| one.plus(1) == *other);
        let write = |run: &[(BlockNumber, &[u8])]| {
            let mut data = AlignedBuf::to_overwrite(run.len() * size);
            data.chunks_exact_mut(size).zip(run).for_each(|(to, (_, from))| to.copy_from_slice(from));
            let offset = run.first().map_or(0, |(at, _)| at.0 * size as u64);
            BatchWrite { offset, data: data.freeze() }
        };
        runs.map(write).collect()
    }

    /// Writes groups one after another, each on stable media before the next, whatever the size of blocks.
    async fn write_groups(&self, groups: Vec<Vec<BatchWrite>>) -> Result<(), BlockError> {
        if self.geometry.block_size.is_multiple_of(BATCH_UNIT_BYTES) {
            return self.device.write_batch(groups).await;
        }
        for group in groups {
            for write in group {
                self.device.write(write.offset, write.data, false).await?;
            }
            self.device.flush().await?;
        }
        Ok(())
    }

    fn committed(&self, closed: &Closed, start: LogIndex) {
        let mut state = self.state.borrow_mut();
        if let Some(journal) = &mut state.journal {
            let contents = closed.contents.iter().cloned();
            journal.checkpoint.committed(closed.id, start, contents, closed.revokes.iter().copied());
        }
        state.closing = None;
        state.table.committed(closed.id, &closed.pages);
        // What somebody read from there meanwhile is older.
        let State { cache, fetching, .. } = &mut *state;
        for at in closed.ordered.keys() {
            cache.forget_clean(*at);
            if let Some(valid) = fetching.get_mut(at) {
                *valid = false;
            }
        }
        drop(state);
        self.data_moved.notify_waiters();
        self.notes_durable(closed.id);
        self.reached.send_modify(|reached| reached.durable = closed.id);
    }

    fn log_room(&self) -> usize {
        self.state.borrow().journal.as_ref().map_or(0, |journal| journal.space.free_block_count() as usize)
    }

    fn log_capacity(&self) -> usize {
        self.state.borrow().journal.as_ref().map_or(0, |journal| journal.space.ring().block_count() as usize)
    }

    /// Writes the oldest contents of the log home, flushes, and only then lets the log's tail move on. False when there was
    /// nothing to write.
    pub(super) async fn write_home(&self) -> Result<bool, BlockError> {
        let writes = match &self.state.borrow().journal {
            Some(journal) => journal.checkpoint.home_writes(HOME_BLOCKS),
            None => return Ok(false),
        };
        let mut sorted: Vec<(BlockNumber, &[u8])> = writes.iter().map(|(at, data)| (*at, &**data)).collect();
        sorted.sort_unstable_by_key(|(at, _)| *at);
        let joined = self.joined(&sorted);
        let all = joined.into_iter().map(|write| self.device.write(write.offset, write.data, false));
        futures_util::future::try_join_all(all).await?;
        self.device.flush().await?;
        {
            let mut state = self.state.borrow_mut();
            let State { cache, journal, .. } = &mut *state;
            let Some(journal) = journal else { return Ok(false) };
            journal.checkpoint.at_home(&writes);
            writes.iter().for_each(|(at, data)| cache.written_home(*at, data));
            let (start, id) = match journal.checkpoint.oldest_needed() {
                Some(oldest) => oldest,
                None => (journal.space.head(), state.closing.as_ref().map_or(state.running.id(), |closing| closing.id)),
            };
            let Some(journal) = &mut state.journal else { return Ok(false) };
            journal.superblock.set_start(start, id);
        }
        self.write_journal_superblock().await?;
        let mut state = self.state.borrow_mut();
        let Some(journal) = &mut state.journal else { return Ok(false) };
        let oldest = journal.checkpoint.oldest_needed();
        let tail = oldest.map_or(journal.space.head(), |(start, _)| start);
        journal.space.release_to(tail);
        journal.checkpoint.recorded(oldest.map(|(_, id)| id));
        let next = state.closing.as_ref().map_or(state.running.id(), |closing| closing.id);
        state.table.log_released(oldest.map(|(_, id)| id), next);
        Ok(!writes.is_empty())
    }

    /// Writes and commits what is left, writes everything home, and leaves an empty log and a clean superblock: the volume can be
    /// mounted by anybody. To be called when [`Self::drive`] has ended after a [`Self::stop`]. Errors: the volume's; it is
    /// recovered at the next start.
    pub async fn close(&self) -> Result<(), Failure> {
        if let Some(why) = &self.state.borrow().read_only {
            return Err(Failure::ReadOnly(why.clone()));
        }
        // Whatever came after the driving had ended.
        self.stop();
        while !self.is_quiet() {
            self.drive().await;
        }
        if let Some(why) = &self.state.borrow().read_only {
            return Err(Failure::ReadOnly(why.clone()));
        }
        while self.write_home().await? {}
        {
            let mut state = self.state.borrow_mut();
            let next = state.running.id();
            let Some(journal) = &mut state.journal else { return Ok(()) };
            journal.superblock.set_empty(next);
        }
        self.write_journal_superblock().await?;
        self.write_superblock(|superblock| superblock.set_needs_recovery(false)).await?;
        self.state.borrow_mut().journal = None;
        Ok(())
    }

    /// Nothing waits to be written or committed, or never will be.
    fn is_quiet(&self) -> bool {
        let state = self.state.borrow();
        let done = state.running.is_empty() && state.closing.is_none() && state.table.is_settled();
        done || state.read_only.is_some() || state.journal.is_none()
    }

    /// Changes the superblock in its place, durably, past the log: only what has to be known before the log is read.
    pub(super) async fn write_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), BlockError> {
        let (offset, data) = {
            let mut state = self.state.borrow_mut();
            let State { superblock, free_blocks, free_inodes, .. } = &mut *state;
            superblock.set_free_blocks(*free_blocks);
            superblock.set_free_inodes(*free_inodes);
            change(superblock);
            (SUPERBLOCK_OFFSET, Bytes::copy_from_slice(&superblock.encode()))
        };
        self.device.write(offset, data, true).await
    }
}

impl From<CommitTime> for Seconds {
    fn from(time: CommitTime) -> Self {
        Self(time.seconds)
    }
}
