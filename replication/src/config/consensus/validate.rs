//! Which messages may reach raft-rs at all.
//!
//! raft-rs 0.7 trusts its input and panics on much of it. The checks here refuse, before `step`:
//! - local message types, and a forwarded `MsgTransferLeader` (its set term panics when a follower passes it on);
//! - term 0 where a term is due, a term where none is due, and terms so high that the next one would overflow;
//! - `MsgAppend` whose entries are not consecutive after `index` (conflict with committed entries, out-of-range
//!   slices);
//! - `MsgHeartbeat` that commits beyond our log ("to_commit is out of range");
//! - `MsgSnapshot` whose membership cannot be restored, or whose state does not decode;
//! - `MsgAppendResponse` that acknowledges entries this leader never had, or hints that overflow;
//! - `MsgPropose` and `MsgReadIndex` without their entry, or that are not for a leader (a ring of forwards), and
//!   proposals that are no command (they would halt every node);
//! - a vote won while entries are not durable yet (`become_leader` asserts that they are).

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use thiserror::Error;

use super::{COMMAND_BYTES_MAX, READ_CONTEXT_BYTES_MAX};
use crate::config::{ApplyError, ClusterState, Command};

/// Terms beyond this are refused: no honest cluster gets there.
pub const TERM_MAX: u64 = 1 << 62;

/// Members of a cluster, for the bound on what a snapshot may claim.
pub const MEMBERS_MAX: usize = 64;

/// Why a message was not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StepError {
    /// Bytes that are no Raft message.
    #[error("not a Raft message")]
    Garbled,
    /// Not for this node, or from nobody.
    #[error("not addressed to this node")]
    Misdirected,
    /// A message that no correct node sends, or that this node cannot use now.
    #[error("refused: {0}")]
    Refused(&'static str),
    /// The state in a snapshot cannot be read here.
    #[error("{0}")]
    Snapshot(ApplyError),
    /// The queue of inputs behind an unfinished write is full; the message is dropped, Raft repeats it.
    #[error("too many messages wait for the log's disk")]
    Full,
}

/// What a message is checked against.
pub(super) struct View {
    pub(super) node: u64,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) last: u64,
    pub(super) persisted: u64,
    pub(super) reads_pending: usize,
}

/// What to do with a message that is well-formed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Step,
    /// A current leader counts on entries that this log does not have.
    LogRolledBack,
}

/// Checks one message.
pub(super) fn check(message: &Message, view: &View) -> Result<Verdict, StepError> {
    use MessageType::*;
    let kind = message.get_msg_type();
    if message.to != view.node || message.from == 0 || message.from == view.node {
        return Err(StepError::Misdirected);
    }
    let termless = matches!(kind, MsgPropose | MsgReadIndex);
    if termless != (message.term == 0) || message.term > TERM_MAX || message.log_term > TERM_MAX {
        return Err(StepError::Refused("an impossible term"));
    }
    let current = message.term >= view.term;
    match kind {
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum | MsgTransferLeader => {
            return Err(StepError::Refused("a message type that never crosses the network"));
        }
        MsgAppend => check_entries(message)?,
        MsgHeartbeat if current && message.commit > view.last => return Ok(Verdict::LogRolledBack),
        MsgHeartbeat if message.context.len() > READ_CONTEXT_BYTES_MAX => {
            return Err(StepError::Refused("an oversized context"));
        }
        MsgSnapshot => check_snapshot(message.get_snapshot(), message.term)?,
        MsgAppendResponse => check_append_response(message, view)?,
        MsgRequestVoteResponse if view.persisted != view.last => {
            return Err(StepError::Refused("a vote before its request was durable"));
        }
        MsgPropose => check_proposal(message, view)?,
        MsgReadIndex => {
            if !view.leads || view.reads_pending >= super::READS_MAX {
                return Err(StepError::Refused("a read that this node cannot confirm"));
            }
            check_read_context(message)?;
        }
        MsgReadIndexResp => check_read_context(message)?,
        _ => {}
    }
    Ok(Verdict::Step)
}

fn check_read_context(message: &Message) -> Result<(), StepError> {
    match message.get_entries() {
        [entry] if entry.data.len() <= READ_CONTEXT_BYTES_MAX => Ok(()),
        _ => Err(StepError::Refused("a read without its one context")),
    }
}

fn check_append_response(message: &Message, view: &View) -> Result<(), StepError> {
    if message.request_snapshot != 0 {
        return Err(StepError::Refused("a snapshot request"));
    }
    if message.reject && message.reject_hint > message.index || message.index > TERM_MAX {
        return Err(StepError::Refused("an impossible hint"));
    }
    if !message.reject && view.leads && message.term == view.term && message.index > view.last {
        return Err(StepError::Refused("an acknowledgement of entries that were never sent"));
    }
    Ok(())
}

fn check_proposal(message: &Message, view: &View) -> Result<(), StepError> {
    if !view.leads || message.get_entries().is_empty() {
        return Err(StepError::Refused("a proposal that this node cannot take"));
    }
    if membership_request(message).is_some() {
        return Ok(());
    }
    for entry in message.get_entries() {
        if entry.get_entry_type() != EntryType::EntryNormal || !is_command(&entry.data) {
            return Err(StepError::Refused("a proposal that is no command"));
        }
    }
    Ok(())
}

/// The change that a follower passes on to its leader, which judges it by its own rules.
pub(super) fn membership_request(message: &Message) -> Option<ConfChange> {
    let [entry] = message.get_entries() else { return None };
    if entry.get_entry_type() != EntryType::EntryConfChange {
        return None;
    }
    let mut change = ConfChange::default();
    change.merge_from_bytes(&entry.data).ok()?;
    (change.node_id != 0).then_some(change)
}

/// True for bytes that this software can apply.
pub(super) fn is_command(data: &[u8]) -> bool {
    !data.is_empty() && data.len() <= COMMAND_BYTES_MAX && Command::decode(data).is_ok()
}

fn check_entries(message: &Message) -> Result<(), StepError> {
    if message.index > TERM_MAX || message.log_term > message.term {
        return Err(StepError::Refused("an impossible log position"));
    }
    check_consecutive(message.get_entries(), message.index + 1, message.log_term, message.term)
        .map_err(StepError::Refused)
}

/// Entries that follow each other from `first`, with terms that never fall and stay within `term_max`.
pub(super) fn check_consecutive(
    entries: &[Entry],
    first: u64,
    mut term: u64,
    term_max: u64,
) -> Result<(), &'static str> {
    for (offset, entry) in entries.iter().enumerate() {
        if entry.index != first + offset as u64 {
            return Err("entries that do not follow each other");
        }
        if entry.term < term.max(1) || entry.term > term_max {
            return Err("entries with impossible terms");
        }
        term = entry.term;
    }
    Ok(())
}

fn check_snapshot(snapshot: &Snapshot, term: u64) -> Result<(), StepError> {
    let meta = snapshot.get_metadata();
    if meta.index == 0 || meta.index > TERM_MAX || meta.term == 0 || meta.term > term {
        return Err(StepError::Refused("a snapshot at an impossible position"));
    }
    check_conf_state(meta.get_conf_state()).map_err(StepError::Refused)?;
    ClusterState::from_snapshot(&snapshot.data).map(drop).map_err(StepError::Snapshot)
}

/// A membership that raft-rs can restore (it panics on others).
pub(super) fn check_conf_state(conf: &ConfState) -> Result<(), &'static str> {
    let sets = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    for set in sets {
        let mut seen = std::collections::BTreeSet::new();
        if set.len() > MEMBERS_MAX || set.iter().any(|id| *id == 0 || !seen.insert(*id)) {
            return Err("a membership with impossible members");
        }
    }
    let voter = |id: &u64| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
    if conf.voters.is_empty()
        || conf.learners.iter().any(voter)
        || conf.learners_next.iter().any(|id| !conf.voters_outgoing.contains(id))
        || (conf.auto_leave && conf.voters_outgoing.is_empty())
    {
        return Err("a membership that contradicts itself");
    }
    Ok(())
}
