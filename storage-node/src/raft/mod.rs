//! The Raft driver and its log. The consensus core itself is pure and lives in `replication::config`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::{ClusterId, NodeId};
use replication::config::{ClusterState, Command, Outcome};
use thiserror::Error;
use tokio::sync::watch;

/// What the driver tells about itself.
#[derive(Clone, Debug, Default)]
pub struct RaftStatus {
    /// Current leader, NONE if unknown.
    pub leader: NodeId,
    /// Term.
    pub term: u64,
    /// Applied index.
    pub applied: u64,
    /// Voters and learners: true for voters.
    pub members: BTreeMap<NodeId, bool>,
    /// On the leader: who answered within the last election timeout. Empty elsewhere.
    pub heard: BTreeMap<NodeId, bool>,
    /// Since when no leader is known (CLOCK_BOOTTIME microseconds).
    pub leaderless_since: Option<u64>,
}

/// Why a proposal has no outcome.
#[derive(Debug, Error)]
pub enum ProposeError {
    /// No outcome within the time given: it may still take effect.
    #[error(
        "the cluster gave no answer within {0:?}: no majority of the voters is reachable; the change may still take effect later"
    )]
    Timeout(Duration),
    /// The driver has stopped, for this reason.
    #[error("{0}")]
    Stopped(String),
}

/// Why the driver cannot start.
#[derive(Debug, Error)]
pub enum RaftError {
    /// The log is damaged or older than what this node has promised: it must not vote.
    #[error("{path}: {why}")]
    LogRefused { path: std::path::PathBuf, why: String },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
}

/// Sends Raft messages to other nodes; lossy, never blocks.
pub trait RaftSend: Send + 'static {
    /// `message` is a protobuf `eraftpb::Message`.
    fn send(&self, to: NodeId, message: Vec<u8>);
}

/// How to start.
pub struct RaftConfig {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Tick.
    pub tick: Duration,
    /// Election timeout in ticks: random between min and 2 × min.
    pub election_ticks: usize,
}

/// A handle to the driver's thread; cheap to clone.
#[derive(Clone)]
pub struct RaftHandle {}

impl RaftHandle {
    /// Starts a driver over the log in `directory`. A fresh log is made with `bootstrap` (the first node, alone, as a
    /// voter, its `Init` command committed) or empty (a joining node that waits for the leader).
    pub fn start(
        _config: RaftConfig,
        _directory: &Path,
        _bootstrap: Option<Command>,
        _send: Box<dyn RaftSend>,
    ) -> Result<RaftHandle, RaftError> {
        unimplemented!()
    }
    /// A message from another node.
    pub fn deliver(&self, _message: Vec<u8>) {
        unimplemented!()
    }
    /// Proposes without waiting; may be lost.
    pub fn propose(&self, _command: Command) {
        unimplemented!()
    }
    /// Proposes, repeats until applied here (the request id makes that safe), and tells the outcome.
    pub async fn propose_and_wait(&self, _command: Command, _patience: Duration) -> Result<Outcome, ProposeError> {
        unimplemented!()
    }
    /// A linearizable point: returns once everything committed before the call is applied here.
    pub async fn read_index(&self, _patience: Duration) -> Result<(), ProposeError> {
        unimplemented!()
    }
    /// The replicated state as applied here.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        unimplemented!()
    }
    /// Leader, term, members.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        unimplemented!()
    }
    /// On the leader: adds a learner; promotes it to a voter once it has caught up.
    pub async fn add_voter(&self, _node: NodeId, _patience: Duration) -> Result<(), ProposeError> {
        unimplemented!()
    }
    /// On the leader: removes a voter or learner.
    pub async fn remove_voter(&self, _node: NodeId, _patience: Duration) -> Result<(), ProposeError> {
        unimplemented!()
    }
    /// Hands leadership to another voter if this node leads, then stops the thread.
    pub async fn stop(&self) {
        unimplemented!()
    }
}
