//! Applies commands: every guard of the configuration state machine.

use thiserror::Error;

use proto::NodeId;

use super::state::ClusterState;
use super::Command;

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied.
    Applied,
    /// A node joined, with this id.
    Joined(NodeId),
    /// A guard failed, for this reason; nothing changed.
    Refused(&'static str),
}

/// Nothing can be applied any more: the node must stop and say so.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ApplyError {
    /// The log holds a command that this software does not know.
    #[error("the cluster's log holds a command that this version of tandem does not know; install the newer version on this node")]
    UnknownCommand,
    /// Bytes that are not a command.
    #[error("the cluster's log holds bytes that are no command")]
    Malformed,
}

impl ClusterState {
    /// Applies one command. Deterministic.
    pub fn apply(&mut self, _command: &Command) -> Outcome {
        Outcome::Refused("not built yet")
    }

    /// Applies one log entry as written by [`Command::encode`]. Empty bytes (Raft's own no-op) apply as nothing.
    pub fn apply_bytes(&mut self, _bytes: &[u8]) -> Result<Outcome, ApplyError> {
        Err(ApplyError::Malformed)
    }

    /// The whole state as snapshot bytes.
    pub fn to_snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    /// A state from snapshot bytes.
    pub fn from_snapshot(_bytes: &[u8]) -> Result<Self, ApplyError> {
        Err(ApplyError::Malformed)
    }
}

impl Command {
    /// The log entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads a log entry.
    pub fn decode(_bytes: &[u8]) -> Result<Self, ApplyError> {
        Err(ApplyError::Malformed)
    }
}
