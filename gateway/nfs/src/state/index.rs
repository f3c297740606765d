//! What is known of opens, locks and delegations by other keys than their numbers. Nothing here is recorded: all of it follows
//! from the states, and is committed and taken back with them.

use std::collections::BTreeMap;

use super::bounds::Totals;
use super::delegation::Delegation;
use super::holder::{Holder, Party};
use super::lock::LockState;
use super::open::Open;
use super::share::ShareCounts;
use super::table::Table;
use crate::ids::{FileId, StateNumber};

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateKind {
    /// An open, or a share reservation of the network lock manager.
    Open,
    /// The locks of an owner in a file.
    Lock,
    /// A delegation.
    Delegation,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum State<'a> {
    Open(&'a Open),
    Lock(&'a LockState),
    Delegation(&'a Delegation),
}

/// A lock state is found by its file, its holder, and the open that it was made under.
type LockKey = (FileId, Holder, Option<StateNumber>);

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Without revoked delegations: they are of no file any more.
    by_file: Table<(FileId, StateKind, StateNumber), ()>,
    by_party: Table<(Party, StateKind, StateNumber), ()>,
    opens_by_holder: Table<(FileId, Holder), StateNumber>,
    locks_by_holder: Table<LockKey, StateNumber>,
    locks_by_open: Table<(StateNumber, StateNumber), ()>,
    shares: Table<FileId, ShareCounts>,
    /// By party, and under no party those of all.
    totals: Table<Option<Party>, Totals>,
    /// Of the files that the operation under way has to do with: whether they were held before it.
    held_before: BTreeMap<FileId, bool>,
}

impl State<'_> {
    fn kind(self) -> StateKind {
        match self {
            Self::Open(_) => StateKind::Open,
            Self::Lock(_) => StateKind::Lock,
            Self::Delegation(_) => StateKind::Delegation,
        }
    }

    fn party(self) -> Party {
        match self {
            Self::Open(open) => open.holder.party(),
            Self::Lock(lock) => lock.holder.party(),
            Self::Delegation(delegation) => Party::Client(delegation.client),
        }
    }

    /// The file that it is of, which may not go away as long as it is there.
    fn file(self) -> Option<FileId> {
        match self {
            Self::Open(open) => Some(open.file),
            Self::Lock(lock) => Some(lock.file),
            Self::Delegation(delegation) => (!delegation.revoked).then_some(delegation.file),
        }
    }

    fn totals(self) -> Totals {
        let none = Totals::default();
        match self {
            Self::Open(open) => Totals { opens: 1, owner_bytes: open.holder.bytes() as u64, ..none },
            Self::Lock(lock) => {
                Totals { locks: 1, ranges: lock.ranges.len() as u32, owner_bytes: lock.holder.bytes() as u64, ..none }
            }
            Self::Delegation(delegation) => Totals { delegations: 1, revoked: u32::from(delegation.revoked), ..none },
        }
    }
}

impl Index {
    /// A state is there now.
    pub(super) fn add(&mut self, number: StateNumber, state: State<'_>) {
        self.change(number, state, true);
        match state {
            State::Open(open) => {
                self.opens_by_holder.insert((open.file, open.holder.clone()), number);
                let mut counts = self.shares(open.file);
                counts.add(open.mode());
                self.set_shares(open.file, counts);
            }
            State::Lock(lock) => {
                self.locks_by_holder.insert((lock.file, lock.holder.clone(), lock.open), number);
                if let Some(open) = lock.open {
                    self.locks_by_open.insert((open, number), ());
                }
            }
            State::Delegation(_) => {}
        }
    }

    /// A state is not there any more.
    pub(super) fn remove(&mut self, number: StateNumber, state: State<'_>) {
        self.change(number, state, false);
        match state {
            State::Open(open) => {
                self.opens_by_holder.remove(&(open.file, open.holder.clone()));
                let mut counts = self.shares(open.file);
                counts.remove(open.mode());
                self.set_shares(open.file, counts);
            }
            State::Lock(lock) => {
                self.locks_by_holder.remove(&(lock.file, lock.holder.clone(), lock.open));
                if let Some(open) = lock.open {
                    self.locks_by_open.remove(&(open, number));
                }
            }
            State::Delegation(_) => {}
        }
    }

    fn set_shares(&mut self, file: FileId, counts: ShareCounts) {
        // A host's reservation may be of nothing at all.
        match counts == ShareCounts::default() {
            true => drop(self.shares.remove(&file)),
            false => drop(self.shares.insert(file, counts)),
        }
    }

    fn change(&mut self, number: StateNumber, state: State<'_>, there: bool) {
        let party = state.party();
        if let Some(file) = state.file() {
            let held = self.is_held(file);
            self.held_before.entry(file).or_insert(held);
            let key = (file, state.kind(), number);
            match there {
                true => drop(self.by_file.insert(key, ())),
                false => drop(self.by_file.remove(&key)),
            }
        }
        for whose in [None, Some(party.clone())] {
            let former = self.totals.get(&whose).copied().unwrap_or_default();
            let totals = if there { former.plus(state.totals()) } else { former.minus(state.totals()) };
            match totals == Totals::default() {
                true => drop(self.totals.remove(&whose)),
                false => drop(self.totals.insert(whose, totals)),
            }
        }
        let key = (party, state.kind(), number);
        match there {
            true => drop(self.by_party.insert(key, ())),
            false => drop(self.by_party.remove(&key)),
        }
    }

    /// The states of a kind in a file, by number.
    pub(super) fn of_file(&self, file: FileId, kind: StateKind) -> impl Iterator<Item = StateNumber> {
        let keys = (file, kind, StateNumber(0))..=(file, kind, StateNumber(u64::MAX));
        self.by_file.range(keys).map(|((_, _, number), ())| *number)
    }

    /// All that a party has.
    pub(super) fn of_party(&self, party: &Party) -> impl DoubleEndedIterator<Item = (StateKind, StateNumber)> {
        let first = (party.clone(), StateKind::Open, StateNumber(0));
        let last = (party.clone(), StateKind::Delegation, StateNumber(u64::MAX));
        self.by_party.range(first..=last).map(|((_, kind, number), ())| (*kind, *number))
    }

    /// The open of a holder.
    pub(super) fn open_of(&self, file: FileId, holder: &Holder) -> Option<StateNumber> {
        self.opens_by_holder.get(&(file, holder.clone())).copied()
    }

    /// The lock state of a holder under an open.
    pub(super) fn lock_of(&self, file: FileId, holder: &Holder, open: Option<StateNumber>) -> Option<StateNumber> {
        self.locks_by_holder.get(&(file, holder.clone(), open)).copied()
    }

    /// All lock states of a holder in a file.
    pub(super) fn locks_of(&self, file: FileId, holder: &Holder) -> impl Iterator<Item = StateNumber> {
        let first = (file, holder.clone(), None);
        let last = (file, holder.clone(), Some(StateNumber(u64::MAX)));
        self.locks_by_holder.range(first..=last).map(|(_, number)| *number)
    }

    /// The lock states that were made under an open.
    pub(super) fn locks_under(&self, open: StateNumber) -> impl Iterator<Item = StateNumber> {
        let keys = (open, StateNumber(0))..=(open, StateNumber(u64::MAX));
        self.locks_by_open.range(keys).map(|((_, lock), ())| *lock)
    }

    /// What the opens of a file do.
    pub(super) fn shares(&self, file: FileId) -> ShareCounts {
        self.shares.get(&file).copied().unwrap_or_default()
    }

    /// What a party has, or all.
    pub(super) fn totals(&self, party: Option<Party>) -> Totals {
        self.totals.get(&party).copied().unwrap_or_default()
    }

    /// True if some state is of this file.
    pub(super) fn is_held(&self, file: FileId) -> bool {
        let keys = (file, StateKind::Open, StateNumber(0))..=(file, StateKind::Delegation, StateNumber(u64::MAX));
        self.by_file.range(keys).next().is_some()
    }

    /// The files that some state is of, in order.
    pub(super) fn held_files(&self) -> Vec<FileId> {
        let mut files: Vec<_> = self.by_file.iter().map(|((file, ..), ())| *file).collect();
        files.dedup();
        files
    }

    /// The files that are held now and were not before the operation under way, or the other way round.
    pub(super) fn turned(&self, to_held: bool) -> Vec<FileId> {
        let turned = self.held_before.iter().filter(|(file, was)| **was != to_held && self.is_held(**file) == to_held);
        turned.map(|(file, _)| *file).collect()
    }

    pub(super) fn commit(&mut self) {
        self.by_file.commit();
        self.by_party.commit();
        self.opens_by_holder.commit();
        self.locks_by_holder.commit();
        self.locks_by_open.commit();
        self.shares.commit();
        self.totals.commit();
        self.held_before.clear();
    }

    pub(super) fn take_back(&mut self) {
        self.by_file.take_back();
        self.by_party.take_back();
        self.opens_by_holder.take_back();
        self.locks_by_holder.take_back();
        self.locks_by_open.take_back();
        self.shares.take_back();
        self.totals.take_back();
        self.held_before.clear();
    }

    /// Panics if this is not what another index says: one that was made of all states anew.
    #[cfg(test)]
    pub(super) fn assert_same(&self, other: &Self) {
        assert!(self.by_file.iter().eq(other.by_file.iter()), "by file");
        assert!(self.by_party.iter().eq(other.by_party.iter()), "by party");
        assert!(self.opens_by_holder.iter().eq(other.opens_by_holder.iter()), "opens by holder");
        assert!(self.locks_by_holder.iter().eq(other.locks_by_holder.iter()), "locks by holder");
        assert!(self.locks_by_open.iter().eq(other.locks_by_open.iter()), "locks by open");
        assert!(self.shares.iter().eq(other.shares.iter()), "shares");
        assert!(self.totals.iter().eq(other.totals.iter()), "totals");
    }
}
