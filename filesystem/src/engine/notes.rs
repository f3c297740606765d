//! Notes of records: who changed nothing but records of the state ring has his answer when a note of them is on the device,
//! and not only when the log is. Such a note is one write without a flush, where a transaction is two writes and two flushes.
//!
//! What a note is worth is what an acknowledged write is worth: whoever opens the volume next finds it, unless all who had it
//! have lost power at once. Whoever can tell that must not believe the records then.
//!
//! **When there is one.** Records count in the order in which operations changed them, and notes are found again without the
//! transactions that they are part of. So there is a note only of an operation that changed nothing else, has seen nothing
//! that is not durable, and follows no record that is neither durable nor in a note. All others wait for their transaction.

use block_device::{AlignedBuf, BlockDevice, BlockError, ByteRange};
use bytes::Bytes;

use super::filesystem::{Failure, Filesystem, Reached, State};
use super::handle::Handle;
use super::namespace::{NewFile, Place};
use super::transaction::Edits;
use crate::layout::file_kind::{FileKind, Mode};
use crate::layout::timestamp::Timestamp;
use crate::map::{FileMap, Mapping};
use crate::state_ring::note::{self, NOTE_BYTES_MAX, NOTES_BYTES, NOTES_BYTES_MIN, Note, NoteCircle, NoteWrite};
use crate::store::{Refusal, Stop};
use crate::units::{BlockNumber, BlockRun, FileBlock, InodeNumber, TransactionId};

/// The file, beside the ring's.
pub(super) const FILE: &[u8] = b"notes";
/// Bytes of it that are written at once when it is made.
const MADE_AT_ONCE: u64 = 64 << 10;
/// It is made where no more than this part of the free space goes into it.
const FREE_PART: u64 = 8;

/// What a reply has to wait for; the default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    transaction: Option<TransactionId>,
    /// A note's number, and the transaction that will do as well.
    note: Option<(u64, TransactionId)>,
}

/// The notes of a ring that is open.
#[derive(Debug)]
pub(super) struct Notes {
    circle: NoteCircle,
    /// Where they lie.
    place: BlockRun,
}

impl Pending {
    /// For this note, in whose place its transaction will do.
    pub(super) fn noted(note: u64, transaction: TransactionId) -> Self {
        Self { transaction: None, note: Some((note, transaction)) }
    }

    /// For both.
    pub fn and(self, other: Self) -> Self {
        let transaction = match (self.transaction, other.transaction) {
            (Some(one), Some(other)) if one.is_before(other) => Some(other),
            (one, other) => one.or(other),
        };
        let note = match (self.note, other.note) {
            (Some(one), Some(other)) if one.0 < other.0 => Some(other),
            (one, other) => one.or(other),
        };
        Self { transaction, note }
    }

    /// There is nothing to wait for.
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }

    /// A note will do for all of it.
    pub fn is_note(self) -> bool {
        self.transaction.is_none() && self.note.is_some()
    }
}

impl From<Option<TransactionId>> for Pending {
    fn from(transaction: Option<TransactionId>) -> Self {
        Self { transaction, note: None }
    }
}

impl Notes {
    /// Of this start of the filesystem.
    pub(super) fn new(block_bytes: usize, place: BlockRun, starts: u64) -> Self {
        Self { circle: NoteCircle::new(block_bytes, place.count, starts), place }
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Waits until whoever opens the volume after a crash finds what a reply tells of. Errors: he never will.
    pub async fn kept(&self, pending: Pending) -> Result<(), Failure> {
        if let Some(transaction) = pending.transaction {
            self.durable(transaction).await?;
        }
        let Some((note, transaction)) = pending.note else { return Ok(()) };
        let is_kept = |reached: &Reached| reached.noted >= note || !reached.durable.is_before(transaction);
        let mut reached = self.reached.subscribe();
        let now = reached.wait_for(|reached| is_kept(reached) || reached.failed.is_some()).await;
        match now.as_deref() {
            Ok(now) if is_kept(now) => Ok(()),
            Ok(Reached { failed: Some(why), .. }) => Err(Failure::ReadOnly(why.clone())),
            _ => Err(Failure::Device(BlockError::Closed)),
        }
    }

    /// The same, also for a power loss of all who have the volume.
    pub async fn kept_durably(&self, pending: Pending) -> Result<(), Failure> {
        let transactions = pending.transaction.into_iter().chain(pending.note.map(|(_, transaction)| transaction));
        for transaction in transactions {
            self.durable(transaction).await?;
        }
        Ok(())
    }

    /// Somebody waits for a transaction: if it is the running one, it is not gathered any longer.
    pub(super) fn hurry(&self, transaction: TransactionId) {
        let mut state = self.state.borrow_mut();
        if state.running.id() == transaction && !state.running.is_urgent() {
            state.running.hurry();
            self.work.notify_one();
        }
    }

    /// An operation has changed nothing but blocks of the ring.
    pub(super) fn is_only_records(&self, state: &State, edits: &Edits) -> bool {
        state.ring.as_ref().is_some_and(|ring| edits.is_only(|at| ring.has_block(at)))
    }

    /// Takes the note of an operation that joins the running transaction, if there can be one; gives its number. Without, the
    /// transaction is made durable at once.
    pub(super) fn note(&self, state: &mut State, note: Note, may_be_noted: bool) -> Option<u64> {
        let State { running, closing, ring, journal, .. } = state;
        let follows_unnoted = running.is_unnoted() || closing.as_ref().is_some_and(|closing| closing.unnoted);
        let may_be_noted = may_be_noted && !note.is_empty() && !follows_unnoted;
        let notes = ring.as_mut().and_then(|ring| ring.notes()).filter(|_| may_be_noted);
        let fits = note::note_bytes(&note) <= NOTE_BYTES_MAX;
        match notes.filter(|_| fits) {
            Some(notes) => {
                let number = notes.circle.add(running.id(), note);
                let blocks_max = journal.as_ref().map_or(0, |journal| journal.transaction_blocks_max);
                if notes.circle.is_crowded() || running.block_count() > blocks_max / 2 {
                    running.hurry();
                }
                Some(number)
            }
            None => {
                running.hurry();
                if !note.is_empty() {
                    running.set_unnoted();
                }
                None
            }
        }
    }

    /// Writes notes one batch after another, until nothing else is driven any more.
    pub(super) async fn write_notes(&self) {
        loop {
            let is_over = {
                let state = self.state.borrow();
                state.notes_over || state.read_only.is_some()
            };
            match self.next_notes() {
                _ if is_over => return,
                None => self.noted.notified().await,
                Some((place, write)) => self.write_batch_of_notes(place, write).await,
            }
        }
    }

    fn next_notes(&self) -> Option<(BlockRun, NoteWrite)> {
        let mut state = self.state.borrow_mut();
        let State { ring, running, .. } = &mut *state;
        let notes = ring.as_mut().and_then(|ring| ring.notes())?;
        let write = notes.circle.take();
        if write.is_none() && notes.circle.is_waiting() {
            // There is room again once the log has them.
            running.hurry();
            self.work.notify_one();
        }
        write.map(|write| (notes.place, write))
    }

    async fn write_batch_of_notes(&self, place: BlockRun, write: NoteWrite) {
        let NoteWrite { start, data, newest } = write;
        let mut aligned = AlignedBuf::zeroed(data.len());
        aligned.copy_from_slice(&data);
        let at = place.start.plus(u64::from(start)).0 * u64::from(self.geometry.block_size);
        match self.device.write(at, aligned.freeze(), false).await {
            Ok(()) => self.reached.send_modify(|reached| reached.noted = reached.noted.max(newest)),
            Err(error) => {
                let why = format!("the volume could not be written: {error}");
                self.turn_read_only(&mut self.state.borrow_mut(), why);
            }
        }
    }

    /// A transaction is durable, and with it what notes say of it.
    pub(super) fn notes_durable(&self, transaction: TransactionId) {
        let mut state = self.state.borrow_mut();
        if let Some(notes) = state.ring.as_mut().and_then(|ring| ring.notes()) {
            notes.circle.durable(transaction);
            // There may be room for others.
            self.noted.notify_one();
        }
    }

    /// The notes of the start `starts` that the ring lacks. Errors: some are missing; the volume's.
    pub(super) async fn lost_notes(
        &self,
        place: BlockRun,
        starts: u64,
        next_record: u64,
    ) -> Result<Vec<Note>, Failure> {
        let block_bytes = u64::from(self.geometry.block_size);
        let range = ByteRange { offset: place.start.0 * block_bytes, length: u64::from(place.count) * block_bytes };
        let circle = self.device.read(range).await?;
        Ok(note::scan(&circle, block_bytes as usize, starts, next_record)?)
    }

    /// The file, written all over if it was not yet, and the longest run of its blocks. None: there is hardly room for it, or
    /// its blocks lie too far apart, so there are no notes at this start. To be called while no ring is known.
    pub(super) async fn notes_file(
        &self,
        directory: InodeNumber,
        now: Timestamp,
    ) -> Result<Option<(InodeNumber, BlockRun)>, Failure> {
        match self.make_notes_file(directory, now).await {
            Ok(None) => Ok(None),
            Ok(Some(file)) => {
                let place = self.run(|handle| handle.longest_run(file)).await?.value;
                let bytes = u64::from(place.count) * u64::from(self.geometry.block_size);
                Ok((bytes >= NOTES_BYTES_MIN as u64).then_some((file, place)))
            }
            Err(Failure::NoSpace) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn make_notes_file(&self, directory: InodeNumber, now: Timestamp) -> Result<Option<InodeNumber>, Failure> {
        let make = |handle: &mut Handle<'_>| {
            let free = handle.available_blocks().saturating_mul(u64::from(handle.geometry().block_size));
            let has_room = free / FREE_PART >= NOTES_BYTES;
            let file = match handle.lookup(directory, FILE) {
                Ok(found) => found,
                Err(Stop::Refused(Refusal::NotFound)) if !has_room => return Ok(None),
                Err(Stop::Refused(Refusal::NotFound)) => {
                    let mode = Mode::new(FileKind::Regular, 0o600);
                    let new = NewFile { mode, user: 0, group: 0, device: None, target: &[] };
                    handle.create(Place { directory, name: FILE }, &new, now)?.inode
                }
                Err(stop) => return Err(stop),
            };
            let inode = handle.inode(file)?;
            match inode.mode.kind() == Some(FileKind::Regular) && inode.links == 1 {
                true if has_room || inode.size >= NOTES_BYTES => Ok(Some((file, inode.size))),
                true => Ok(None),
                false => Err(Refusal::WrongKind.into()),
            }
        };
        let Some((file, mut size)) = self.run(make).await?.value else { return Ok(None) };
        if size < NOTES_BYTES {
            while size < NOTES_BYTES {
                let zeros = Bytes::from(vec![0; MADE_AT_ONCE.min(NOTES_BYTES - size) as usize]);
                size += self.write(file, size, zeros, now).await?.value as u64;
            }
            self.fsync(file).await?;
        }
        Ok(Some(file))
    }
}

impl Handle<'_> {
    /// The first of the longest runs of a file's blocks that were written.
    fn longest_run(&mut self, file: InodeNumber) -> Result<BlockRun, Stop> {
        let inode = self.inode(file)?;
        let blocks = inode.size.div_ceil(u64::from(self.geometry().block_size)).min(u64::from(u32::MAX)) as u32;
        let map = FileMap::of_inode(&inode, file, &self.inode_rules(), self.goal_beside(file));
        let mut longest = BlockRun::new(BlockNumber(0), 0);
        let mut at = 0;
        while at < blocks {
            let count = match map.lookup(self, FileBlock(at))? {
                Mapping::Mapped { run, unwritten: false } => {
                    let run = BlockRun::new(run.start, run.count.min(blocks - at));
                    if run.count > longest.count {
                        longest = run;
                    }
                    run.count
                }
                Mapping::Mapped { run, .. } => run.count,
                Mapping::Hole { count } => count,
            };
            at = at.saturating_add(count.max(1));
        }
        Ok(longest)
    }
}
