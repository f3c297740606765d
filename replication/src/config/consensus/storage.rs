//! The memory mirror of the durable log, in the shape raft-rs reads it.
//!
//! Owns the newest snapshot, the entries kept beside it, and the hard state. It trusts its caller: what comes from a
//! disk is checked by [`Restored::check`](super::Restored::check), what comes from a peer by `validate`.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

/// Snapshot, entries and hard state as raft-rs sees them.
#[derive(Clone, Debug, Default)]
pub(super) struct Mirror {
    pub(super) hard_state: HardState,
    pub(super) snapshot: Snapshot,
    /// Index and term just before `entries`.
    base: (u64, u64),
    /// Consecutive; may begin before the snapshot's end, for followers that lag a little.
    entries: Vec<Entry>,
}

impl Mirror {
    pub(super) fn new(hard_state: HardState, snapshot: Snapshot, entries: Vec<Entry>) -> Self {
        let meta = snapshot.get_metadata();
        let base = (meta.index, meta.term);
        let mut mirror = Self { hard_state, snapshot, base, entries: Vec::new() };
        // A tail from before the snapshot has no known term in front of it, so its first entry becomes the base.
        match entries.first() {
            Some(first) if first.index <= base.0 => {
                mirror.base = (first.index, first.term);
                mirror.entries = entries[1..].to_vec();
            }
            _ => mirror.entries = entries,
        }
        mirror
    }

    pub(super) fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn conf_state(&self) -> &ConfState {
        self.snapshot.get_metadata().get_conf_state()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Appends; an entry with an index already present replaces it and drops everything behind.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0 && first.index <= self.last() + 1, "appended entries leave no gap");
        self.entries.truncate((first.index - self.first()) as usize);
        self.entries.extend_from_slice(entries);
    }

    /// Replaces everything by a snapshot from the leader.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.base = (meta.index, meta.term);
        self.hard_state.commit = self.hard_state.commit.max(meta.index);
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Takes a snapshot of our own and keeps at most `tail` entries before its end.
    pub(super) fn compact(&mut self, snapshot: Snapshot, tail: u64) {
        let index = snapshot.get_metadata().index;
        self.snapshot = snapshot;
        let base = index.saturating_sub(tail);
        if base <= self.base.0 {
            return;
        }
        let count = (base - self.base.0) as usize;
        let term = self.entries[count - 1].term;
        self.entries.drain(..count);
        self.base = (base, term);
    }
}

impl Storage for Mirror {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let from = (low - self.first()) as usize;
        let to = (high - self.first()) as usize;
        let mut entries = self.entries[from..to].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        match self.entries.get((index - self.first()) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let index = self.snapshot.get_metadata().index;
        if index == 0 || index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
