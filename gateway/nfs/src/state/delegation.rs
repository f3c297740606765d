//! Read delegations: who may have one, what gets in their way, recalls and what becomes of those who do not listen
//! (RFC 8881 §10.2, §10.4, §18.6).
//!
//! A recall and its limit are of this process only: after a takeover whatever is in the way of a delegation meets it again, and
//! the recall begins anew with its full time. That a delegation is revoked is recorded.

use std::collections::BTreeMap;

use super::bounds::{
    DELEGATIONS_MANY, DELEGATIONS_MAX, DELEGATIONS_PER_CLIENT_MAX, OPENED_LATELY_MAX, RECALLED_FILES_MAX,
};
use super::files::FileStates;
use super::index::StateKind;
use super::ranges::{ByteRange, LockKind};
use super::share::{ShareBits, ShareMode};
use super::table::Table;
use crate::ids::{ClientId, FileId, Moment, StateNumber, Stateid};
use crate::v4::status::Status;

/// Milliseconds for which a file whose delegation was recalled is not delegated again.
pub const RECALL_PAUSE_MS: u64 = 30_000;
/// The count of a delegation's stateid; nothing ever changes it.
pub(super) const DELEGATION_SEQID: u32 = 1;

/// A read delegation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delegation {
    pub(super) file: FileId,
    pub(super) client: ClientId,
    /// It was recalled in vain, and stands for nothing until the client frees it.
    pub(super) revoked: bool,
}

/// What somebody does to a file that another may have delegated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Nothing that a reader would see: no read delegation is in its way.
    Read,
    /// Data, size, attributes, names (REMOVE, RENAME, LINK), or an exclusive lock.
    Change,
}

/// A delegation that is in the way of something: what a CB_RECALL tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// Which.
    pub number: StateNumber,
    /// Its stateid.
    pub stateid: Stateid,
    /// Of which file.
    pub file: FileId,
    /// Whose.
    pub client: ClientId,
}

/// Why a file is not delegated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDelegated {
    /// Somebody writes it, or did lately.
    Contention,
    /// There are too many, or the client cannot be called back.
    Resource,
    /// The client has it already.
    Given,
}

/// Who opened what for reading lately, so that a file that is read once costs no delegation: whoever opens it again may do so
/// once more. In memory only, and taken back as the opens are.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenedLately {
    turns: Table<(FileId, ClientId), u64>,
    by_turn: Table<u64, (FileId, ClientId)>,
}

impl OpenedLately {
    /// True if the client has opened it before.
    fn again(&mut self, file: FileId, client: ClientId) -> bool {
        let next = self.by_turn.iter().next_back().map_or(0, |(turn, _)| turn + 1);
        let former = self.turns.insert((file, client), next);
        if let Some(turn) = former {
            self.by_turn.remove(&turn);
        }
        self.by_turn.insert(next, (file, client));
        let oldest = self.by_turn.iter().next().map(|(turn, key)| (*turn, *key));
        if let Some((turn, key)) = oldest.filter(|_| self.by_turn.len() > OPENED_LATELY_MAX) {
            self.by_turn.remove(&turn);
            self.turns.remove(&key);
        }
        former.is_some()
    }

    pub(super) fn commit(&mut self) {
        self.turns.commit();
        self.by_turn.commit();
    }

    pub(super) fn take_back(&mut self) {
        self.turns.take_back();
        self.by_turn.take_back();
    }
}

/// The recalls under way, and the files that were recalled.
#[derive(Clone, Debug, Default)]
pub(super) struct Recalls {
    limits: BTreeMap<StateNumber, Moment>,
    recalled: BTreeMap<FileId, Moment>,
}

impl Recalls {
    fn begin(&mut self, number: StateNumber, file: FileId, now: Moment, limit: Moment) -> bool {
        if self.limits.contains_key(&number) {
            return false;
        }
        self.limits.insert(number, limit);
        self.recalled.insert(file, now);
        if self.recalled.len() > RECALLED_FILES_MAX {
            let oldest = self.recalled.iter().min_by_key(|(_, at)| **at).map(|(file, _)| *file);
            oldest.map(|file| self.recalled.remove(&file));
        }
        true
    }

    pub(super) fn end(&mut self, number: StateNumber) {
        self.limits.remove(&number);
    }

    /// Forgets those of delegations that are not there.
    pub(super) fn keep_only(&mut self, delegations: &Table<StateNumber, Delegation>) {
        self.limits.retain(|number, _| delegations.contains(number));
    }

    fn was_lately(&self, file: FileId, now: Moment) -> bool {
        self.recalled.get(&file).is_some_and(|at| now.since(*at) < RECALL_PAUSE_MS)
    }
}

impl FileStates {
    /// A client opens a file for reading: true if it did so before, not long ago. A delegation is a record that is made and
    /// deleted, and pays only where it saves opens.
    pub fn opens_again(&mut self, file: FileId, client: ClientId) -> bool {
        self.opened_lately.again(file, client)
    }

    /// Delegates a file for reading to a client that has it open, if that promises to be of use: nobody writes it or denies
    /// reading, it was not recalled lately, the client can be called back, has it not delegated already, and there are not too
    /// many. That it is not is no error (RFC 8881 §10.4).
    pub fn delegate(
        &mut self,
        file: FileId,
        client: ClientId,
        has_back_channel: bool,
        now: Moment,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<Stateid, NotDelegated> {
        let reader = ShareMode { access: ShareBits::READ, deny: ShareBits::WRITE };
        let disturbed = self.index.shares(file).may_conflict(reader)
            || self.lock_conflict(file, None, ByteRange::ALL, LockKind::Shared).is_some();
        if disturbed || self.recalls.was_lately(file, now) {
            return Err(NotDelegated::Contention);
        }
        if !has_back_channel {
            return Err(NotDelegated::Resource);
        }
        self.add_delegation(file, client, number)
    }

    /// Gives a client the read delegation back that it had before the service lost its state (CLAIM_PREVIOUS). None if somebody
    /// else has the file open for writing, or there are too many.
    pub fn reclaim_delegation(
        &mut self,
        file: FileId,
        client: ClientId,
        number: impl FnOnce() -> StateNumber,
    ) -> Option<Stateid> {
        let reader = ShareMode { access: ShareBits::READ, deny: ShareBits::WRITE };
        let mut others = self.opens_in(file).filter(|open| open.holder.client() != Some(client));
        if others.any(|open| open.mode().conflicts(reader)) {
            return None;
        }
        drop(others);
        self.add_delegation(file, client, number).ok()
    }

    fn add_delegation(
        &mut self,
        file: FileId,
        client: ClientId,
        number: impl FnOnce() -> StateNumber,
    ) -> Result<Stateid, NotDelegated> {
        if self.delegations_of(file).any(|delegated| delegated.client == client) {
            return Err(NotDelegated::Given);
        }
        let full = self.totals_of(client).delegations >= DELEGATIONS_PER_CLIENT_MAX
            || self.totals().delegations >= DELEGATIONS_MAX;
        if full {
            return Err(NotDelegated::Resource);
        }
        let number = self.fresh(number()).map_err(|_| NotDelegated::Resource)?;
        self.put_delegation(number, Delegation { file, client, revoked: false });
        Ok(self.stateid(number, DELEGATION_SEQID))
    }

    /// True if it is there, and not revoked.
    pub fn is_delegated(&self, number: StateNumber) -> bool {
        self.delegations.get(&number).is_some_and(|delegation| !delegation.revoked)
    }

    /// True if the operation under way gave, gave back or revoked delegations.
    pub fn delegations_changed(&self) -> bool {
        self.delegations.is_changed()
    }

    /// Clients that are to give some of their delegations back, to make room for others, and how many they may keep.
    pub fn crowded(&self) -> Vec<(ClientId, u32)> {
        let (of_one, of_all) = DELEGATIONS_MANY;
        let is_full = self.totals().delegations >= of_all;
        let mut counts = BTreeMap::new();
        if is_full || self.totals().delegations >= of_one {
            for (_, delegation) in self.delegations.iter().filter(|(_, delegation)| !delegation.revoked) {
                *counts.entry(delegation.client).or_insert(0u32) += 1;
            }
        }
        // Where all together have very many, those with more than a few give some.
        let most = if is_full { of_one / 8 } else { of_one };
        counts.into_iter().filter(|(_, count)| *count >= most).map(|(client, count)| (client, count / 2)).collect()
    }

    /// The delegations of a file, without revoked ones.
    fn delegations_of(&self, file: FileId) -> impl Iterator<Item = Delegated> {
        self.index.of_file(file, StateKind::Delegation).filter_map(|number| self.delegated(number))
    }

    fn delegated(&self, number: StateNumber) -> Option<Delegated> {
        let Delegation { file, client, .. } = *self.delegations.get(&number)?;
        Some(Delegated { number, stateid: self.stateid(number, DELEGATION_SEQID), file, client })
    }

    /// The delegations that are in the way of something that a client does to a file; it is a client of NFSv4 or, if none,
    /// anybody else. A client's own are not in its way: it knows what it does.
    pub fn conflicts_of(&self, file: FileId, by: Option<ClientId>, touch: Touch) -> Vec<Delegated> {
        match touch {
            Touch::Read => Vec::new(),
            Touch::Change => self.delegations_of(file).filter(|delegated| Some(delegated.client) != by).collect(),
        }
    }

    /// A delegation is to be back by `limit_ms` from now. False if it is recalled already, or not there: then nothing is to be
    /// sent. Holds whatever becomes of the operation under way.
    pub fn begin_recall(&mut self, number: StateNumber, now: Moment, limit_ms: u64) -> bool {
        match self.delegations.get(&number) {
            Some(delegation) if !delegation.revoked => {
                self.recalls.begin(number, delegation.file, now, now.plus(limit_ms))
            }
            _ => false,
        }
    }

    /// When the first recall under way reaches its limit.
    pub fn next_recall_limit(&self) -> Option<Moment> {
        self.recalls.limits.values().min().copied()
    }

    /// The delegations whose recalls have reached their limits: to be revoked.
    pub fn overdue(&self, now: Moment) -> Vec<Delegated> {
        let overdue = self.recalls.limits.iter().filter(|(_, limit)| **limit <= now);
        overdue.filter_map(|(number, _)| self.delegated(*number)).collect()
    }

    /// A delegation stands for nothing any more; its stateid is answered DELEG_REVOKED until the client frees it. False if it was
    /// not there, or revoked.
    pub fn revoke(&mut self, number: StateNumber) -> bool {
        match self.delegations.get(&number).copied() {
            Some(delegation) if !delegation.revoked => {
                self.put_delegation(number, Delegation { revoked: true, ..delegation });
                self.recalls.end(number);
                true
            }
            _ => false,
        }
    }

    /// True if the client has revoked delegations: SEQUENCE says SEQ4_STATUS_RECALLABLE_STATE_REVOKED as long as it has
    /// (RFC 8881 §18.46.3).
    pub fn has_revoked(&self, client: ClientId) -> bool {
        self.totals_of(client).revoked > 0
    }

    /// DELEGRETURN. Errors: those of the stateid, DELEG_REVOKED among them.
    pub fn return_delegation(&mut self, client: ClientId, file: FileId, stateid: &Stateid) -> Result<(), Status> {
        match self.find(client, Some(file), stateid)? {
            (StateKind::Delegation, number) => {
                self.drop_delegation(number);
                Ok(())
            }
            _ => Err(Status::BadStateid),
        }
    }
}
