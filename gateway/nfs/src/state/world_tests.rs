//! For the tests of this folder: states with the records of what was committed, and what must always be true of them.

use std::collections::{BTreeMap, BTreeSet};

use filesystem::InodeNumber;
use filesystem::state_ring::RecordId;

use super::super::holder::{Holder, Host};
use super::super::index::{Index, State, StateKind};
use super::super::lock::LockRequest;
use super::super::open::{Claim, OpenRequest, Opened};
use super::super::ranges::{ByteRange, LockKind};
use super::super::recorded::{self, RECORD_BYTES_MAX};
use super::super::refusal::Refusal;
use super::super::share::ShareMode;
use super::FileStates;
use crate::ids::{ClientId, FileId, Moment, StateNumber, Stateid};
use crate::v4::status::Status;

pub(in super::super) const EPOCH: u32 = 9;
pub(in super::super) const ALICE: ClientId = ClientId(1);
pub(in super::super) const BOB: ClientId = ClientId(2);
pub(in super::super) const CAROL: ClientId = ClientId(3);
pub(in super::super) const READ: (u32, u32) = (1, 0);
pub(in super::super) const WRITE: (u32, u32) = (2, 0);
pub(in super::super) const BOTH: (u32, u32) = (3, 0);

pub(in super::super) fn file(inode: u32) -> FileId {
    FileId { inode: InodeNumber(inode), generation: 1 }
}

pub(in super::super) fn mode((access, deny): (u32, u32)) -> ShareMode {
    ShareMode::from_wire(access, deny).unwrap()
}

pub(in super::super) fn range(first: u64, last: u64) -> ByteRange {
    ByteRange::between(first, last).unwrap()
}

pub(in super::super) fn shared(first: u64, last: u64) -> LockRequest {
    LockRequest { range: range(first, last), kind: LockKind::Shared, reclaims: false }
}

pub(in super::super) fn exclusive(first: u64, last: u64) -> LockRequest {
    LockRequest { range: range(first, last), kind: LockKind::Exclusive, reclaims: false }
}

pub(in super::super) fn machine(name: &str) -> Host {
    Host::new(name.as_bytes(), std::net::Ipv4Addr::LOCALHOST.into()).unwrap()
}

pub(in super::super) fn host(name: &str) -> Holder {
    Holder::nlm(&machine(name), 7, b"7").unwrap()
}

pub(in super::super) const NOW: Moment = Moment(1_000_000);

pub(in super::super) fn status<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Status {
    result.unwrap_err().status()
}

/// Whatever its count is.
pub(in super::super) fn newest(stateid: Stateid) -> Stateid {
    Stateid { seqid: 0, ..stateid }
}

/// States, the numbers given so far, and the records and held files as a filesystem would have them.
#[derive(Clone)]
pub(in super::super) struct World {
    pub(in super::super) states: FileStates,
    pub(in super::super) next: u64,
    pub(in super::super) disk: BTreeMap<RecordId, Vec<u8>>,
    held: BTreeSet<FileId>,
}

impl World {
    pub(in super::super) fn new() -> Self {
        Self { states: FileStates::new(EPOCH), next: 0, disk: BTreeMap::new(), held: BTreeSet::new() }
    }

    pub(in super::super) fn try_open(
        &mut self,
        client: ClientId,
        owner: &str,
        at: FileId,
        wanted: (u32, u32),
    ) -> Result<Opened, Refusal> {
        let owner = owner.as_bytes();
        let request = OpenRequest { file: at, client, owner, mode: mode(wanted), claim: Claim::Plain };
        self.states.open(request, number(&mut self.next))
    }

    /// Opens and commits.
    pub(in super::super) fn open(&mut self, client: ClientId, owner: &str, at: FileId, wanted: (u32, u32)) -> Stateid {
        let opened = self.try_open(client, owner, at, wanted).unwrap();
        self.commit();
        opened.stateid
    }

    pub(in super::super) fn try_lock_under(
        &mut self,
        client: ClientId,
        at: FileId,
        open: &Stateid,
        owner: &str,
        request: LockRequest,
    ) -> Result<Stateid, Refusal> {
        self.states.lock_under(client, at, open, owner.as_bytes(), request, number(&mut self.next))
    }

    pub(in super::super) fn nlm_lock(&mut self, at: FileId, name: &str, request: LockRequest) -> Result<(), Refusal> {
        self.states.nlm_lock(at, host(name), request, number(&mut self.next))
    }

    /// The operation counts: writes its records and holds, and sees that a takeover finds the same.
    pub(in super::super) fn commit(&mut self) {
        self.commit_unchecked();
        self.states.check_invariants();
        assert!(self.held.iter().copied().eq(self.states.open_files()), "what is held is what is open");
        let restored = self.restored();
        restored.check_invariants();
        assert_same(&restored, &self.states);
    }

    /// The same without looking.
    pub(in super::super) fn commit_unchecked(&mut self) {
        assert_eq!(self.states.is_changed(), !self.states.records().is_empty());
        for (id, payload) in self.states.records() {
            match payload {
                Some(payload) => {
                    assert!(payload.len() <= RECORD_BYTES_MAX);
                    self.disk.insert(id, payload);
                }
                None => drop(self.disk.remove(&id)),
            }
        }
        for file in self.states.opened_first() {
            assert!(self.held.insert(file), "{file:?} was held already");
        }
        for file in self.states.closed_last() {
            assert!(self.held.remove(&file), "{file:?} was not held");
        }
        self.states.commit();
        assert!(!self.states.is_changed() && self.states.opened_first().is_empty());
    }

    /// What a takeover would find.
    pub(in super::super) fn restored(&self) -> FileStates {
        FileStates::restore(EPOCH, self.disk.iter().map(|(id, payload)| (*id, &payload[..]))).unwrap()
    }

    /// The operation does not count: nothing is left of it.
    pub(in super::super) fn take_back(&mut self) {
        self.states.take_back();
        self.states.check_invariants();
        assert!(!self.states.is_changed());
        assert_same(&self.restored(), &self.states);
    }

    pub(in super::super) fn crash(&mut self) {
        self.states = self.restored();
    }
}

pub(in super::super) fn number(next: &mut u64) -> impl FnOnce() -> StateNumber {
    || {
        *next += 1;
        StateNumber(*next)
    }
}

pub(in super::super) fn assert_same(a: &FileStates, b: &FileStates) {
    assert!(a.opens.iter().eq(b.opens.iter()), "opens");
    assert!(a.locks.iter().eq(b.locks.iter()), "locks");
    assert!(a.delegations.iter().eq(b.delegations.iter()), "delegations");
    assert!(a.chunks.iter().eq(b.chunks.iter()), "chunks");
    a.index.assert_same(&b.index);
}

impl FileStates {
    /// Panics if the states contradict each other, or the indexes them.
    pub(in super::super) fn check_invariants(&self) {
        let mut index = Index::default();
        let mut chunks = BTreeSet::new();
        for (number, open) in self.opens.iter() {
            index.add(*number, State::Open(open));
            for other in self.opens_in(open.file).filter(|other| other.holder != open.holder) {
                assert!(!open.mode().conflicts(other.mode()), "{open:?} {other:?}");
            }
        }
        for (number, lock) in self.locks.iter() {
            index.add(*number, State::Lock(lock));
            assert!(lock.ranges.is_sound(), "{lock:?}");
            assert!(self.has_open_of(lock), "{lock:?}");
            assert!(lock.open.is_some() || !lock.ranges.is_empty(), "a host's state with nothing locked");
            chunks.extend((0..recorded::chunk_count(lock.ranges.len())).map(|chunk| (*number, chunk)));
            for held in lock.ranges.as_slice() {
                let denied = self.lock_conflict(lock.file, Some(&lock.holder), held.range, held.kind);
                assert_eq!(denied, None, "{lock:?}");
                let same = self.index.locks_of(lock.file, &lock.holder).filter(|other| other != number);
                for other in same.filter_map(|other| self.locks.get(&other)) {
                    assert_eq!(other.ranges.conflict(held.range, LockKind::Exclusive), None, "locked twice: {lock:?}");
                }
            }
        }
        for (number, delegation) in self.delegations.iter() {
            index.add(*number, State::Delegation(delegation));
            let mut others =
                self.opens_in(delegation.file).filter(|open| open.holder.client() != Some(delegation.client));
            assert!(delegation.revoked || others.all(|open| !open.mode().conflicts(mode((1, 2)))), "{delegation:?}");
        }
        index.assert_same(&self.index);
        assert!(self.chunks.iter().map(|(key, ())| *key).eq(chunks), "chunks");
        for delegated in self.overdue(crate::ids::Moment(u64::MAX)) {
            let kinds: Vec<_> = self.index.of_file(delegated.file, StateKind::Delegation).collect();
            assert!(kinds.contains(&delegated.number), "a recall of what is not there");
        }
        self.waiting.assert_sound();
    }
}
