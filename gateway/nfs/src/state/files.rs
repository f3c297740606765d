//! All opens, share reservations, byte-range locks and delegations of a service: one table for NFSv4, for the network lock
//! manager of NFSv3, and later for SMB.
//!
//! This file owns the states, and keeps the indexes and the records in step with them. What is asked of them is beside it, one
//! concern a file: `open`, `lock`, `delegation`, `stateids` (checks of READ and WRITE, TEST_STATEID, FREE_STATEID), `waiters`
//! (those that wait for locks), `nlm`, and `recorded` (what a takeover finds).
//!
//! Every operation that is answered ends with [`FileStates::commit`], also one that changed nothing that is recorded; every one
//! that does not count, with [`FileStates::take_back`]. Leases and the grace period are not known here.

use super::bounds::Totals;
use super::delegation::{Delegation, OpenedLately, Recalls};
use super::holder::Party;
use super::index::{Index, State, StateKind};
use super::lock::LockState;
use super::open::Open;
use super::recorded;
use super::refusal::Refusal;
use super::table::Table;
use super::waiters::Waiting;
use crate::ids::{ClientId, FileId, StateNumber, Stateid};
use crate::v4::status::Status;

/// The states of a service.
#[derive(Clone, Debug)]
pub struct FileStates {
    /// The upper part of the service's stateids.
    pub(super) epoch: u32,
    pub(super) opens: Table<StateNumber, Open>,
    pub(super) locks: Table<StateNumber, LockState>,
    pub(super) delegations: Table<StateNumber, Delegation>,
    /// The records that lock states are in: which chunks there are, and which of them the operation under way has changed.
    pub(super) chunks: Table<(StateNumber, u32), ()>,
    pub(super) index: Index,
    pub(super) waiting: Waiting,
    pub(super) recalls: Recalls,
    pub(super) opened_lately: OpenedLately,
}

impl FileStates {
    /// Of a service that has no state yet, in an epoch that no other states of it had.
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            opens: Table::default(),
            locks: Table::default(),
            delegations: Table::default(),
            chunks: Table::default(),
            index: Index::default(),
            waiting: Waiting::default(),
            recalls: Recalls::default(),
            opened_lately: OpenedLately::default(),
        }
    }

    /// True if something is to be recorded for the operation under way: [`Self::records`] is not empty.
    pub fn is_changed(&self) -> bool {
        self.opens.is_changed() || self.chunks.is_changed() || self.delegations.is_changed()
    }

    /// The operation counts: its records are in a transaction.
    pub fn commit(&mut self) {
        self.opens.commit();
        self.locks.commit();
        self.delegations.commit();
        self.chunks.commit();
        self.index.commit();
        self.waiting.commit();
        self.opened_lately.commit();
    }

    /// The operation does not count: all is as it was before. Only recalls that began go on.
    pub fn take_back(&mut self) {
        self.opens.take_back();
        self.locks.take_back();
        self.delegations.take_back();
        self.chunks.take_back();
        self.index.take_back();
        self.waiting.take_back();
        self.opened_lately.take_back();
        self.recalls.keep_only(&self.delegations);
    }

    /// The files that the operation under way has opened, locked or delegated and that were not before: the filesystem has to
    /// hold them once it counts.
    pub fn opened_first(&self) -> Vec<FileId> {
        self.index.turned(true)
    }

    /// The files that after the operation under way nobody has open, locked or delegated any more: the filesystem may let them
    /// go once it counts.
    pub fn closed_last(&self) -> Vec<FileId> {
        self.index.turned(false)
    }

    /// True if somebody has the file open, locked or delegated: removed, it has to stay until nobody has.
    pub fn is_open(&self, file: FileId) -> bool {
        self.index.is_held(file)
    }

    /// All such files, in order: what a filesystem that starts has to hold.
    pub fn open_files(&self) -> Vec<FileId> {
        self.index.held_files()
    }

    /// True if the client has opens, locks or delegations, other than revoked ones: DESTROY_CLIENTID answers CLIENTID_BUSY
    /// (RFC 8881 §18.50.3).
    pub fn has_state(&self, client: ClientId) -> bool {
        let totals = self.totals_of(client);
        totals.opens + totals.locks + totals.delegations > totals.revoked
    }

    /// What a client has.
    pub fn totals_of(&self, client: ClientId) -> Totals {
        self.index.totals(Some(Party::Client(client)))
    }

    /// What all have.
    pub fn totals(&self) -> Totals {
        self.index.totals(None)
    }

    /// Everything that a client has is gone: its lease ended and somebody else is waiting, or it came back as another
    /// incarnation. Gives the files that nobody has open any more.
    pub fn drop_client(&mut self, client: ClientId) -> Vec<FileId> {
        self.drop_party(&Party::Client(client), usize::MAX)
    }

    /// The same of at most so many states, for those who have more than one transaction should tell of: to be called again, each
    /// time in an operation of its own, until [`Self::totals_of`] are none.
    pub fn drop_client_part(&mut self, client: ClientId, states_max: usize) -> Vec<FileId> {
        self.drop_party(&Party::Client(client), states_max)
    }

    pub(super) fn drop_party(&mut self, party: &Party, states_max: usize) -> Vec<FileId> {
        // Locks go before the opens that they are under.
        let states: Vec<_> = self.index.of_party(party).rev().take(states_max).collect();
        let mut files = Vec::new();
        for (kind, number) in states {
            files.extend(match kind {
                StateKind::Open => self.drop_open(number).map(|open| open.file),
                StateKind::Lock => self.drop_lock(number).map(|lock| lock.file),
                StateKind::Delegation => self.drop_delegation(number).map(|delegation| delegation.file),
            });
        }
        self.waiting.drop_party(party);
        files.retain(|file| !self.index.is_held(*file));
        files.sort_unstable();
        files.dedup();
        files
    }

    pub(super) fn stateid(&self, number: StateNumber, seqid: u32) -> Stateid {
        Stateid::new(self.epoch, number, seqid)
    }

    /// The number that the caller gives, if it is really a new one.
    pub(super) fn fresh(&self, number: StateNumber) -> Result<StateNumber, Refusal> {
        let taken = self.opens.contains(&number) || self.locks.contains(&number) || self.delegations.contains(&number);
        if taken { Err(Status::ServerFault.into()) } else { Ok(number) }
    }

    /// Errors: the party, or all, would have more than they may.
    pub(super) fn room(&self, party: Party, more: Totals) -> Result<(), Refusal> {
        let passed = more.passes(self.index.totals(Some(party)), self.index.totals(None));
        passed.map_or(Ok(()), |bound| Err(Refusal::Full(bound)))
    }

    pub(super) fn put_open(&mut self, number: StateNumber, open: Open) {
        if let Some(former) = self.opens.get(&number) {
            self.index.remove(number, State::Open(former));
        }
        self.index.add(number, State::Open(&open));
        self.opens.insert(number, open);
    }

    pub(super) fn drop_open(&mut self, number: StateNumber) -> Option<Open> {
        let open = self.opens.remove(&number)?;
        self.index.remove(number, State::Open(&open));
        Some(open)
    }

    pub(super) fn put_lock(&mut self, number: StateNumber, lock: LockState) {
        if let Some(former) = self.locks.get(&number) {
            self.index.remove(number, State::Lock(former));
        }
        self.index.add(number, State::Lock(&lock));
        self.waiting.locks_changed(lock.file);
        let count = recorded::chunk_count(lock.ranges.len());
        let former = self.locks.insert(number, lock.clone());
        let former = former.as_ref().map(|former| former.ranges.as_slice());
        for chunk in 0..count {
            let same = former
                .is_some_and(|former| recorded::chunk(former, chunk) == recorded::chunk(lock.ranges.as_slice(), chunk));
            // The first has what is not of the ranges, too.
            if chunk == 0 || !same || !self.chunks.contains(&(number, chunk)) {
                self.chunks.insert((number, chunk), ());
            }
        }
        for chunk in count..recorded::chunk_count(former.map_or(0, <[_]>::len)) {
            self.chunks.remove(&(number, chunk));
        }
    }

    pub(super) fn drop_lock(&mut self, number: StateNumber) -> Option<LockState> {
        let lock = self.locks.remove(&number)?;
        self.index.remove(number, State::Lock(&lock));
        self.waiting.locks_changed(lock.file);
        for chunk in 0..recorded::chunk_count(lock.ranges.len()) {
            self.chunks.remove(&(number, chunk));
        }
        Some(lock)
    }

    pub(super) fn put_delegation(&mut self, number: StateNumber, delegation: Delegation) {
        if let Some(former) = self.delegations.get(&number) {
            self.index.remove(number, State::Delegation(former));
        }
        self.index.add(number, State::Delegation(&delegation));
        self.delegations.insert(number, delegation);
    }

    pub(super) fn drop_delegation(&mut self, number: StateNumber) -> Option<Delegation> {
        let delegation = self.delegations.remove(&number)?;
        self.index.remove(number, State::Delegation(&delegation));
        self.recalls.end(number);
        Some(delegation)
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
pub(super) mod world;

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "delegation_tests.rs"]
mod delegation_tests;

#[cfg(test)]
#[path = "nlm_tests.rs"]
mod nlm_tests;

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod bounds_tests;

#[cfg(test)]
#[path = "files_model_tests.rs"]
mod model_tests;
