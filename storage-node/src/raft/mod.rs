//! The Raft driver and its log. The consensus core itself is pure and lives in `replication::config`.
//!
//! This file is the contract: how to start a driver, and the handle by which the node talks to its thread. `driver`
//! owns that thread, `log` the file, `recover` the offline way out when a majority is gone for good.

mod driver;
#[cfg(test)]
mod driver_tests;
mod log;
#[cfg(test)]
mod log_tests;
mod recover;
mod superblock;
#[cfg(test)]
mod torture_tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::{ClusterId, NodeId};
use replication::config::{ClusterState, Command, Outcome};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use driver::{Order, Shared};
pub use log::{LOG_NAME, Log, LogIdentity};
pub use recover::{inspect, recover_quorum};

/// What the driver tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        "the cluster gave no answer within {0:?}: no majority of the voters is reachable; the change may still take \
         effect later"
    )]
    Timeout(Duration),
    /// The driver has stopped, for this reason.
    #[error("{0}")]
    Stopped(String),
    /// Not done, and it will not happen later, for this reason.
    #[error("{0}")]
    Refused(String),
}

/// Why the driver cannot start.
#[derive(Debug, Error)]
pub enum RaftError {
    /// The log is damaged or older than what this node has promised: it must not vote.
    #[error("{path}: {why}")]
    LogRefused {
        /// The log.
        path: std::path::PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Another process holds the log.
    #[error("{path}: another process uses this log; stop it first")]
    InUse {
        /// The log's marker.
        path: std::path::PathBuf,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// File or directory.
        path: std::path::PathBuf,
        /// The error.
        source: std::io::Error,
    },
}

/// Sends Raft messages to other nodes; lossy, never blocks.
pub trait RaftSend: Send + 'static {
    /// `message` is a protobuf `eraftpb::Message`.
    fn send(&self, to: NodeId, message: Vec<u8>);

    /// The leader's report of whom it hears, about every second tick.
    fn send_liveness(&self, to: NodeId, heard: &[(NodeId, bool)]) {
        let _ = (to, heard);
    }
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
    /// The node has never run Raft: a log may be made. Otherwise a missing log is refused, since it held promises.
    pub fresh: bool,
}

/// A handle to the driver's thread; cheap to clone. When the last one is dropped the thread ends, without handing over.
#[derive(Clone)]
pub struct RaftHandle {
    shared: Arc<LastHandle>,
    state: watch::Receiver<Arc<ClusterState>>,
    status: watch::Receiver<RaftStatus>,
    stopped: watch::Receiver<Option<String>>,
}

/// Ends the thread when the last handle goes.
struct LastHandle(Arc<Shared>);

impl Drop for LastHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl RaftHandle {
    /// Starts a driver over the log in `directory`. A fresh log is made with `bootstrap` (the first node, alone, as a
    /// voter, its `Init` command committed) or empty (a joining node that waits for the leader). A log that is there
    /// already is continued, whatever `bootstrap` says.
    pub fn start(
        config: RaftConfig,
        directory: &Path,
        bootstrap: Option<Command>,
        send: Box<dyn RaftSend>,
    ) -> Result<RaftHandle, RaftError> {
        let (shared, watches) = driver::start(config, directory, bootstrap, send)?;
        let driver::Watches { state, status, stopped } = watches;
        Ok(RaftHandle { shared: Arc::new(LastHandle(shared)), state, status, stopped })
    }

    /// A message from another node. Over the queue's bound it is dropped: Raft repeats itself.
    pub fn deliver(&self, message: Vec<u8>) {
        self.shared.0.deliver(message);
    }

    /// Proposes without waiting; may be lost.
    pub fn propose(&self, command: Command) {
        // A full queue loses the proposal, like the network may.
        let _ = self.shared.0.order(Order::Propose(command));
    }

    /// Proposes, repeats until applied here (the request id makes that safe), and tells the outcome. Refused at once
    /// when too many proposals wait already.
    pub async fn propose_and_wait(&self, command: Command, patience: Duration) -> Result<Outcome, ProposeError> {
        self.ask(patience, |reply| Order::ProposeAndWait(command, reply)).await
    }

    /// A linearizable point: returns once everything committed before the call is applied here.
    pub async fn read_index(&self, patience: Duration) -> Result<(), ProposeError> {
        self.ask(patience, Order::Read).await
    }

    /// The replicated state as applied here.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Leader, term, members.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }

    /// Why the driver has stopped; None while it runs. The node cannot go on without it.
    pub fn stopped(&self) -> watch::Receiver<Option<String>> {
        self.stopped.clone()
    }

    /// Adds a learner, through the leader; that makes it a voter once it has caught up. True: it is one. False: it
    /// waits for the place of a voter that does not answer, until that one returns or is removed.
    pub async fn add_voter(&self, node: NodeId, patience: Duration) -> Result<bool, ProposeError> {
        self.ask(patience, |reply| Order::Membership { node, add: true, reply }).await
    }

    /// Removes a voter or learner, through the leader. Returns when it is gone.
    pub async fn remove_voter(&self, node: NodeId, patience: Duration) -> Result<(), ProposeError> {
        self.ask(patience, |reply| Order::Membership { node, add: false, reply }).await.map(drop)
    }

    /// Hands leadership to another voter if this node leads, then stops the thread.
    pub async fn stop(&self) {
        let mut stopped = self.stopped.clone();
        self.shared.0.request_stop();
        // An error means that the thread is gone, which is what was asked for.
        let _ = stopped.wait_for(Option::is_some).await;
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        order: impl FnOnce(oneshot::Sender<Result<T, ProposeError>>) -> Order,
    ) -> Result<T, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.shared.0.order(order(reply))?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(result)) => result,
            // The thread dropped the question because it ends; its reason follows at once.
            Ok(Err(_)) => {
                let mut stopped = self.stopped.clone();
                let why = stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
                Err(ProposeError::Stopped(why.unwrap_or_else(|| "Raft has stopped".into())))
            }
            Err(_) => Err(ProposeError::Timeout(patience)),
        }
    }
}
