//! What a log gives back at a start, and the checks that keep raft-rs from panicking on it.

use proto::NodeId;
use raft::eraftpb::{Entry, HardState, Snapshot};
use thiserror::Error;

use super::TERM_MAX;
use super::validate::{check_conf_state, check_consecutive};
use crate::config::{ApplyError, ClusterState};

/// What a log gives back at a start. `Default` is a node that was never part of a cluster and waits for its leader.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restored {
    /// Term, vote, and the commit index as far as it was written.
    pub hard_state: HardState,
    /// Consecutive entries; they may begin before the snapshot's end.
    pub entries: Vec<Entry>,
    /// State and membership at an index.
    pub snapshot: Option<Snapshot>,
}

/// Why a node cannot start from what its log holds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RestoreError {
    /// The parts contradict each other.
    #[error("the Raft log contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// The snapshot's state cannot be read.
    #[error(transparent)]
    State(#[from] ApplyError),
    /// raft-rs refuses.
    #[error("raft: {0}")]
    Raft(String),
}

impl Restored {
    /// A new cluster's first log: `voters` agree, without ever having met, on `state` at index 1.
    pub fn founding(voters: &[NodeId], state: &ClusterState) -> Self {
        Self::founding_at(voters, state, 1, 1)
    }

    /// The same at a given index and term: for a survivor that starts over alone.
    pub fn founding_at(voters: &[NodeId], state: &ClusterState, index: u64, term: u64) -> Self {
        let mut snapshot = Snapshot { data: state.to_snapshot().into(), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        meta.index = index;
        meta.term = term;
        meta.mut_conf_state().voters = voters.iter().map(|node| node.0).collect();
        let hard_state = HardState { term, commit: index, ..HardState::default() };
        Self { hard_state, entries: Vec::new(), snapshot: Some(snapshot) }
    }

    /// Refuses what raft-rs would panic on, and drops entries that the snapshot covers entirely.
    pub(super) fn check(&mut self) -> Result<ClusterState, RestoreError> {
        let inconsistent = RestoreError::Inconsistent;
        let (mut index, mut term, mut state) = (0, 0, ClusterState::default());
        if let Some(snapshot) = &self.snapshot {
            let meta = snapshot.get_metadata();
            check_conf_state(meta.get_conf_state()).map_err(inconsistent)?;
            (index, term) = (meta.index, meta.term);
            state = ClusterState::from_snapshot(&snapshot.data)?;
            if index == 0 {
                return Err(inconsistent("a snapshot of nothing"));
            }
        }
        if self.entries.last().is_some_and(|last| last.index < index) {
            self.entries.clear();
        }
        if let Some(first) = self.entries.first() {
            if first.index == 0 || first.index > index + 1 {
                return Err(inconsistent("a gap between snapshot and entries"));
            }
            let floor = if first.index > index { term } else { 0 };
            check_consecutive(&self.entries, first.index, floor, self.hard_state.term).map_err(inconsistent)?;
        }
        let covered = self.entries.iter().find(|entry| entry.index == index);
        if covered.is_some_and(|entry| entry.term != term) {
            return Err(inconsistent("an entry and the snapshot at its index differ in term"));
        }
        // The commit index is a hint, written before the entries it covers: a power cut may have taken those, which
        // were then never acknowledged. Entries that were are the log's business to keep.
        let last = self.entries.last().map_or(index, |last| last.index);
        self.hard_state.commit = self.hard_state.commit.clamp(index, last);
        if self.hard_state.term > TERM_MAX || term > self.hard_state.term {
            return Err(inconsistent("its term is out of range"));
        }
        Ok(state)
    }
}
