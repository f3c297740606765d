//! Much data: its blocks are chosen and kept from others in memory, it is written there and flushed, and then its extents
//! join a transaction. And `fsync`, which goes this way or that of `ordered`, and the task in the background.

use block_device::{BlockDevice, BlockError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::content::Content;
use super::ordered::{add, follows, mark_written};
use super::table::{PageEdit, PageId};
use super::write::{SeenPage, unit_of};
use crate::engine::files::count_blocks;
use crate::engine::filesystem::{Failure, Filesystem};
use crate::engine::handle::Handle;
use crate::layout::extent::Extent;
use crate::layout::timestamp::Timestamp;
use crate::map::{Change, Mapping};
use crate::store::{Stop, Wait};
use crate::units::{BlockRun, FileBlock, InodeNumber, TransactionId};

/// Bytes of one file that join a transaction as they are; more of it is written first.
const ORDERED_BYTES_MAX: usize = 128 << 10;
/// Bytes that are written before their extents join a transaction.
const ROUND_BYTES: usize = 16 << 20;
/// Runs of blocks in that, so that the extents fit into a transaction.
const ROUND_RUNS_MAX: usize = 64;
/// Blocks in it that go through the log.
const ROUND_JOURNALED_MAX: u32 = 64;
/// Bytes of one write.
const WRITE_BYTES: usize = 1 << 20;

/// Pages that follow one another in the file and on the device.
#[derive(Debug)]
struct Piece {
    at: u32,
    run: BlockRun,
    pages: Vec<SeenPage>,
    found: Found,
}

/// What was where a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Written,
    Unwritten,
    Hole,
    /// Perhaps unwritten, and the log may hold a copy.
    Journaled,
}

impl Handle<'_> {
    /// Chooses where the first dirty pages of a file go, of those that have been dirty since `version` or longer.
    fn plan_write_back(&mut self, file: InodeNumber, version: u64) -> Result<Vec<Piece>, Stop> {
        let inode = self.in_use(file)?;
        let map = self.file_map(file, &inode);
        let count = ROUND_BYTES / self.geometry().block_size as usize;
        let pages = self.dirty_pages(file, version, count);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = &*pages;
        let mut goal = None;
        let mut journaled_left = ROUND_JOURNALED_MAX;
        self.set_owner(file);
        while let (Some((at, _)), true) = (rest.first(), pieces.len() < ROUND_RUNS_MAX) {
            let count = follows(rest);
            let (run, found) = match map.lookup(self, FileBlock(*at))? {
                Mapping::Mapped { run, unwritten } => {
                    let run = BlockRun::new(run.start, run.count.min(count));
                    self.expect_data(run)?;
                    let (run, journaled) = self.alike(run);
                    match (journaled, unwritten) {
                        (true, _) if journaled_left == 0 => break,
                        (true, _) => {
                            let run = BlockRun::new(run.start, run.count.min(journaled_left));
                            journaled_left -= run.count;
                            (run, Found::Journaled)
                        }
                        (false, true) => (run, Found::Unwritten),
                        (false, false) => (run, Found::Written),
                    }
                }
                Mapping::Hole { count: hole } => {
                    let from = match goal {
                        Some((next, goal)) if next == *at => goal,
                        _ => self.goal_behind(&map, file, *at)?,
                    };
                    let run = self.claim_run(from, count.min(hole))?;
                    goal = Some((at + run.count, run.end()));
                    (run, Found::Hole)
                }
            };
            let (these, others) = rest.split_at((run.count as usize).min(rest.len()));
            if found != Found::Hole {
                self.data_edits_mut().claims.push(run);
            }
            if found != Found::Journaled {
                self.data_edits_mut().overwritten.push(run);
            }
            pieces.push(Piece { at: *at, run, pages: these.iter().map(|(_, page)| page.clone()).collect(), found });
            rest = others;
        }
        Ok(pieces)
    }

    /// The first blocks of a run that are alike in whether the log may hold copies of them.
    fn alike(&self, run: BlockRun) -> (BlockRun, bool) {
        let journaled = self.is_journaled(run.start);
        if !journaled && self.table().nothing_journaled() {
            return (run, false);
        }
        let count = (0..run.count).take_while(|skip| self.is_journaled(run.start.plus(u64::from(*skip))) == journaled);
        (BlockRun::new(run.start, count.count() as u32), journaled)
    }

    /// What was planned is on the device: it joins the file.
    fn finish_write_back(&mut self, file: InodeNumber, pieces: &[Piece]) -> Result<(), Stop> {
        let mut inode = self.in_use(file)?;
        let before = inode.clone();
        let mut map = self.file_map(file, &inode);
        let mut change = Change::default();
        let mut added = 0;
        let block_size = self.geometry().block_size;
        self.set_privileged(true);
        for piece in pieces {
            match piece.found {
                Found::Written => {}
                Found::Unwritten => add(&mut change, &mark_written(self, &mut map, piece.at, piece.run.count)?),
                Found::Hole => {
                    self.take_claimed(piece.run)?;
                    let extent = Extent { file: FileBlock(piece.at), run: piece.run, unwritten: false };
                    add(&mut change, &map.insert(self, extent)?);
                    added += u64::from(piece.run.count);
                }
                Found::Journaled => {
                    let blocks = (0..).map(|skip| piece.run.start.plus(skip));
                    blocks.zip(&piece.pages).for_each(|(block, page)| self.journal_content(block, page));
                    add(&mut change, &mark_written(self, &mut map, piece.at, piece.run.count)?);
                }
            }
            let reserved = piece.pages.iter().filter(|page| page.reserved).count() as i64;
            self.reserve(file, -reserved * unit_of(&map));
            let edit = self.file_edit(file);
            for (at, page) in (piece.at..).zip(&piece.pages) {
                edit.pages.insert(at, PageEdit::Written(page.version));
            }
            if piece.found != Found::Journaled {
                self.data_edits_mut().overwritten.push(piece.run);
            }
            let end = u64::from(piece.at + piece.run.count) * u64::from(block_size);
            inode.size = inode.size.max(end.min(self.visible_size(file, &inode)));
        }
        inode.map = *map.root();
        count_blocks(&mut inode, added, &change, block_size);
        // Also when only a node of the map has changed: whoever syncs the file waits for the inode's block.
        if inode != before || pieces.iter().any(|piece| piece.found != Found::Written) {
            self.set_inode(file, &inode)?;
        }
        Ok(())
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Makes a file durable: its data, and its inode as it is now. Also for directories and others. Errors: the volume's; space
    /// that was reserved is not there.
    pub async fn fsync(&self, file: InodeNumber) -> Result<(), Failure> {
        self.write_back(file).await?;
        match self.last_change(file).await? {
            Some(transaction) => self.durable(transaction).await,
            None => Ok(()),
        }
    }

    /// Makes everything durable. Errors: as [`Self::fsync`].
    pub async fn sync(&self) -> Result<(), Failure> {
        let files = self.state.borrow().table.dirty_files();
        for file in files {
            self.write_back(file).await?;
        }
        let newest = {
            let state = self.state.borrow();
            let running = (!state.running.is_empty()).then(|| state.running.id());
            running.or(state.closing.as_ref().map(|closing| closing.id))
        };
        match newest {
            Some(transaction) => self.durable(transaction).await,
            None => Ok(()),
        }
    }

    /// The transaction that makes the last change of a file durable; none if it is.
    async fn last_change(&self, file: InodeNumber) -> Result<Option<TransactionId>, Failure> {
        let block = |handle: &mut Handle<'_>| {
            handle.in_use(file)?;
            handle.inode_block(file)
        };
        let block = self.run(block).await?.value;
        let state = self.state.borrow();
        if state.running.contains(block) {
            return Ok(Some(state.running.id()));
        }
        let closing = state.closing.as_ref().filter(|closing| closing.contains(block)).map(|closing| closing.id);
        let ordered = state.table.ordered_in(file);
        Ok(match (closing, ordered) {
            (Some(one), Some(other)) if one.is_before(other) => Some(other),
            (one, other) => one.or(other),
        })
    }

    /// Brings the data of a file that waits now on its way: all of it is on the device and mapped then, or goes with a
    /// transaction that is to be waited for.
    pub(super) async fn write_back(&self, file: InodeNumber) -> Result<(), Failure> {
        let version = self.state.borrow().table.last_version();
        if self.few_dirty(file) {
            self.write_few(file).await?;
        }
        if !self.state.borrow().table.dirty_before(file, version) {
            return Ok(());
        }
        // The background does it, so that nothing is left half done when whoever asked goes away.
        self.state.borrow_mut().table.request(file);
        self.background.notify_one();
        loop {
            {
                let state = self.state.borrow();
                if !state.table.dirty_before(file, version) {
                    return Ok(());
                }
                if let Some(why) = &state.read_only {
                    return Err(Failure::ReadOnly(why.clone()));
                }
                if let Some(failure) = state.table.failure(file) {
                    return Err(failure.clone());
                }
            }
            self.data_moved.notified().await;
        }
    }

    fn few_dirty(&self, file: InodeNumber) -> bool {
        let few = ORDERED_BYTES_MAX / self.geometry.block_size as usize;
        self.state.borrow().table.dirty_pages(file) <= few
    }

    /// Has a file's data go with the running transaction, if it is little.
    async fn write_few(&self, file: InodeNumber) -> Result<(), Failure> {
        let few = ORDERED_BYTES_MAX / self.geometry.block_size as usize;
        let ordered = |handle: &mut Handle<'_>| match handle.dirty_pages(file, u64::MAX, few + 1).len() <= few {
            true => handle.write_with_transaction(file),
            false => Ok(()),
        };
        match self.run_with_holds(ordered, false).await {
            Err(Failure::Refused(_)) => self.state.borrow_mut().table.forget_file(file),
            other => drop(other?),
        }
        Ok(())
    }

    /// Writes back a file's data until none is left that waits now: what [`Self::write_back`] asks for.
    async fn write_much(&self, file: InodeNumber) {
        let version = self.state.borrow().table.last_version();
        while self.state.borrow().table.dirty_before(file, version) {
            let written = if self.few_dirty(file) {
                self.write_few(file).await
            } else {
                let _busy = self.claim_file(file).await;
                self.write_round(file, version).await
            };
            match written {
                Ok(()) => {}
                // It was removed meanwhile, and nobody has it open.
                Err(Failure::Refused(_)) => self.state.borrow_mut().table.forget_file(file),
                Err(failure) => {
                    self.state.borrow_mut().table.request_failed(file, failure);
                    break;
                }
            }
        }
        self.data_moved.notify_waiters();
    }

    /// Writes the first of a file's data, and maps it. The file is busy.
    async fn write_round(&self, file: InodeNumber, version: u64) -> Result<(), Failure> {
        // What goes with a transaction to the same places has to be there before.
        let ordered = self.state.borrow().table.ordered_in(file);
        if let Some(transaction) = ordered {
            self.durable(transaction).await?;
        }
        let (planned, _holds) = self.run_with_holds(|handle| handle.plan_write_back(file, version), false).await?;
        let pieces = planned.value;
        if pieces.is_empty() {
            return Ok(());
        }
        let written = self.write_pieces(&pieces).await;
        if let Err(error) = written {
            self.turn_read_only(&mut self.state.borrow_mut(), format!("the volume could not be written: {error}"));
            return Err(Failure::Device(error));
        }
        self.run_with_holds(|handle| handle.finish_write_back(file, &pieces), false).await?;
        self.state.borrow_mut().table.requeue(file);
        self.data_moved.notify_waiters();
        Ok(())
    }

    async fn write_pieces(&self, pieces: &[Piece]) -> Result<(), BlockError> {
        let block_size = self.geometry.block_size as usize;
        let mut writes = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.found != Found::Journaled) {
            let mut at = piece.run.start;
            for pages in piece.pages.chunks((WRITE_BYTES / block_size).max(1)) {
                let contents: Vec<Content> = pages.iter().map(|page| page.content.clone()).collect();
                let data = Content::joined(&contents);
                writes.push(self.device.write(at.0 * block_size as u64, data, false));
                at = at.plus(pages.len() as u64);
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        futures_util::future::try_join_all(writes).await?;
        self.device.flush().await
    }

    /// Waits until nobody else moves, maps or frees blocks of a file, and then keeps others from it.
    pub(super) async fn claim_file(&self, file: InodeNumber) -> Busy<'_, D> {
        while !self.state.borrow_mut().table.set_busy(file) {
            self.data_moved.notified().await;
        }
        Busy { filesystem: self, file }
    }

    /// Waits for what stands in an operation's way.
    pub(in crate::engine) async fn wait(&self, wait: Wait) -> Result<(), Failure> {
        if let Some(why) = &self.state.borrow().read_only {
            return Err(Failure::ReadOnly(why.clone()));
        }
        match wait {
            Wait::Memory => self.wait_for_room().await,
            Wait::Quiet(file) => {
                drop(self.claim_file(file).await);
                Ok(())
            }
            Wait::Clean(file) => {
                self.write_back(file).await?;
                let ordered = self.state.borrow().table.ordered_in(file);
                match ordered {
                    Some(transaction) => self.durable(transaction).await,
                    None => Ok(()),
                }
            }
            Wait::Whole(file) => self.finish_truncate(file).await,
            Wait::Blocks => {
                self.data_moved.notified().await;
                Ok(())
            }
        }
    }

    /// Waits until less data waits in memory than now: not for all of a file that is much of it, else its writer and the device
    /// would work in turn instead of together.
    async fn wait_for_room(&self) -> Result<(), Failure> {
        let moved = self.data_moved.notified();
        let oldest = self.state.borrow().table.oldest_dirty();
        match oldest {
            // It goes with a transaction, and takes memory until that is durable.
            Some(file) if self.few_dirty(file) => {
                self.write_back(file).await?;
                let newest = self.state.borrow().newest_with_data();
                match newest {
                    Some(transaction) => self.durable(transaction).await,
                    None => Ok(()),
                }
            }
            // Whoever needs the memory sees to it that there is some.
            Some(file) => {
                self.state.borrow_mut().table.request(file);
                self.background.notify_one();
                moved.await;
                let state = self.state.borrow();
                state.table.failure(file).map_or(Ok(()), |failure| Err(failure.clone()))
            }
            None => {
                moved.await;
                Ok(())
            }
        }
    }

    /// Does what operations leave to the background, until the filesystem stops: data is written back when somebody waits for
    /// it or when much waits, files are cut short, and what unlinked files hold is given back.
    pub(in crate::engine) async fn tend(&self) {
        let mut work = FuturesUnordered::new();
        loop {
            let (over, stopping) = {
                let state = self.state.borrow();
                (state.read_only.is_some() || state.journal.is_none(), state.stopping)
            };
            if over {
                return;
            }
            self.next_jobs(work.len(), stopping).into_iter().for_each(|job| work.push(self.work_at(job, stopping)));
            if work.is_empty() && stopping {
                self.state.borrow_mut().tended = true;
                self.work.notify_one();
                return;
            }
            tokio::select! {
                Some(()) = work.next() => {}
                () = self.background.notified() => {}
            }
        }
    }

    /// What can be begun now, beside so much that is being done.
    fn next_jobs(&self, active: usize, stopping: bool) -> Vec<Job> {
        let table = &mut self.state.borrow_mut().table;
        let mut jobs: Vec<Job> = table.take_requests().into_iter().map(Job::Write).collect();
        jobs.extend(table.any_doomed().map(Job::Reclaim));
        jobs.extend(table.any_truncating().map(Job::Truncate));
        let idle = active == 0 && jobs.is_empty();
        let crowded = table.is_crowded() || stopping;
        let due = if crowded { table.oldest_dirty() } else { table.much_dirty() };
        jobs.extend(due.filter(|_| idle).map(Job::Write));
        jobs
    }

    async fn work_at(&self, job: Job, stopping: bool) {
        let done = match job {
            Job::Write(file) => {
                self.write_much(file).await;
                let failure = self.state.borrow().table.failure(file).cloned();
                failure.map_or(Ok(()), Err)
            }
            Job::Truncate(file) => self.finish_truncate(file).await,
            Job::Reclaim(file) => self.finish_orphan(file).await,
        };
        self.data_moved.notify_waiters();
        match done {
            Ok(()) => self.background.notify_one(),
            Err(failure) if stopping => self.turn_read_only(&mut self.state.borrow_mut(), failure.to_string()),
            // Somebody syncs the file and is told; else it is tried again when something has changed.
            Err(_) => {}
        }
    }

    fn now(&self) -> Timestamp {
        let now = (self.clock)();
        Timestamp { seconds: now.seconds as i64, nanoseconds: now.nanoseconds }
    }

    /// Gives back all that an orphan holds.
    async fn finish_orphan(&self, file: InodeNumber) -> Result<(), Failure> {
        let _busy = self.claim_file(file).await;
        while self.state.borrow().table.is_doomed(file)
            && !self.run_with_holds(|handle| handle.reclaim(file, self.now()), false).await?.0.value
        {}
        Ok(())
    }
}

/// Something to be done in the background.
#[derive(Clone, Copy, Debug)]
enum Job {
    Write(InodeNumber),
    Truncate(InodeNumber),
    Reclaim(InodeNumber),
}

/// A file whose blocks nobody else moves.
pub(super) struct Busy<'a, D: BlockDevice> {
    filesystem: &'a Filesystem<D>,
    file: InodeNumber,
}

impl<D: BlockDevice> Drop for Busy<'_, D> {
    fn drop(&mut self) {
        self.filesystem.state.borrow_mut().table.clear_busy(self.file);
        self.filesystem.data_moved.notify_waiters();
        self.filesystem.background.notify_one();
    }
}

/// Blocks that are kept from being taken for as long as this lives.
pub(in crate::engine) struct Holds<'a, D: BlockDevice> {
    pub(in crate::engine) filesystem: &'a Filesystem<D>,
    pub(in crate::engine) ids: Vec<u64>,
}

impl<D: BlockDevice> Drop for Holds<'_, D> {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.filesystem.state.borrow_mut().table.let_go_blocks(&self.ids);
            self.filesystem.data_moved.notify_waiters();
        }
    }
}

/// Pages that go with a transaction.
pub(in crate::engine) type OrderedPages = Vec<PageId>;
