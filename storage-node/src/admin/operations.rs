//! What the admin services need from the node: the seam between the gRPC API and the composition root.
//!
//! The node implements [`NodeOperations`]; the services validate requests, decide on which node an operation belongs,
//! wait for its effect and explain it. Nothing here names gRPC or its generated types, and nothing here holds state.
//!
//! Entry points that the command line calls (`cli::main` is all that `main.rs` does):
//! - `supervisor::run(config: &Path, kind: NodeKind) -> ExitCode` for `tandem node|witness --config FILE`,
//! - `node::worker_main(arguments: Vec<OsString>) -> ExitCode` for the hidden `tandem worker ARGUMENTS…`, which the
//!   supervisor starts; the arguments are the supervisor's own affair.
//!
//! The worker serves the API with `admin::serve(listener, operations, shutdown)`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use gateway_nfs::statistics::report::Report;
use proto::{ClusterId, DiskId, Incarnation, Micros, NodeId, Timestamp, VolumeId};
use replication::Notice;
use replication::config::{ClusterState, Command, NodeRecord, Outcome};
use replication::event::Control;
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, watch};

use crate::files::check::Verdict;
use crate::files::error::FilesError;
use crate::files::make::Progress;
use crate::files::mounted::FilesHandle;
use crate::raft::RaftStatus;
use crate::volume::handle::{Acknowledged, CopyStatistics};

/// Why an operation was not done, sorted by what the caller can do about it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OperationError {
    /// The request itself is wrong; the text says what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// No such node, volume, or replica.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// A guard protects data or the cluster; the text says which and what would be safe.
    #[error("{0}")]
    Refused(String),
    /// Another node must be asked; the command line goes there by itself.
    #[error("{why}; ask node {node} at {admin_address}")]
    NotHere {
        /// The node to ask.
        node: NodeId,
        /// Its admin API.
        admin_address: String,
        /// Why not here.
        why: String,
    },
    /// This node is in no cluster yet.
    #[error(
        "this node is in no cluster yet: run `tandem cluster init` on the first node, `tandem cluster join` on others"
    )]
    NotInCluster,
    /// No outcome in the time given; it may still take effect.
    #[error("{0}")]
    Timeout(String),
    /// It needs something that does not answer (a majority, a peer); nothing changed.
    #[error("{0}")]
    Unavailable(String),
    /// The node could not do it (disk, socket); the text is the cause.
    #[error("{0}")]
    Failed(String),
}

/// Who the node is and how it runs.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// Its cluster and id; `None` before `init` or `join`.
    pub identity: Option<(ClusterId, NodeId)>,
    /// What it is recorded as, or would be when it joins (name, kind, addresses as configured). `join_request` is drawn
    /// once and kept durably in the data directory, so that a repeated join is recognised.
    pub record: NodeRecord,
    /// This run.
    pub incarnation: Incarnation,
    /// Process id of the supervisor; 0 if the worker runs without one.
    pub supervisor_pid: u32,
    /// Process id of the worker.
    pub worker_pid: u32,
    /// When the worker started (CLOCK_BOOTTIME).
    pub started: Timestamp,
    /// Version of the software.
    pub software: String,
    /// True when the node listens without encryption on addresses that are not loopback.
    pub insecure_plaintext: bool,
    /// Why it takes no part in its cluster, and what to do about it.
    pub out_of_service: Option<String>,
    /// Host of NFS services without a floating address while it is primary; empty on a witness.
    pub nfs_host: String,
}

/// State of a local store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// Not there (yet).
    #[default]
    Missing,
    /// Being made: bytes done and bytes in all.
    Creating {
        /// Bytes written.
        done: u64,
        /// Bytes to write.
        total: u64,
    },
    /// Open and in use.
    Open,
    /// Detached by an operator.
    Detached,
    /// Failed, refused, or full; the text says which and what to do.
    Failed(String),
}

/// One volume's copy on this node, live.
#[derive(Clone, Debug)]
pub struct ReplicaReport {
    /// The volume.
    pub volume: VolumeId,
    /// The copy; 0 while its store is missing.
    pub disk_id: DiskId,
    /// File or device; empty while missing.
    pub path: String,
    /// The store.
    pub store: StoreState,
    /// The core's own account.
    pub status: replication::Status,
    /// NBD clients connected to this volume here.
    pub nbd_clients: usize,
    /// Where the volume's first block lies in the file or device, in bytes; 0 while the store is not open.
    pub data_offset: u64,
    /// What the open copy has found out about its content.
    pub copy: Option<CopyStatistics>,
    /// Operations that were acknowledged here.
    pub acknowledged: Acknowledged,
    /// How long the scrub under way will take still, if that can be told.
    pub scrub_left: Option<Micros>,
    /// How long each resync will take still, where that can be told.
    pub resync_left: Vec<(NodeId, Micros)>,
}

/// Something that watchers want to see, as it happens on this node. Changes of the Raft leader and of the replicated
/// state are not sent here: the services see them through `raft` and `state`.
#[derive(Clone, Debug)]
pub struct NodeEvent {
    /// When (CLOCK_BOOTTIME of this node).
    pub at: Timestamp,
    /// The volume, if it is about one.
    pub volume: Option<VolumeId>,
    /// What.
    pub kind: NodeEventKind,
}

/// The content of a [`NodeEvent`].
#[derive(Clone, Debug)]
pub enum NodeEventKind {
    /// From the volume's core.
    Notice(Notice),
    /// A store is being made.
    StoreProgress {
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Anything else worth a line, e.g. a refused store.
    Text(String),
}

/// Events kept for a watcher that is slow; older ones are dropped and the watcher is told how many.
pub const NODE_EVENTS_MAX: usize = 1024;

/// What a member tells a node that joins.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// The cluster.
    pub cluster: ClusterId,
    /// The joining node's id.
    pub node: NodeId,
    /// Every node of the cluster, so that Raft finds its way: the newcomer's state is still empty.
    pub nodes: Vec<(NodeId, NodeRecord)>,
}

/// Everything the services ask of the node. Methods that wait give up after the `patience` given.
pub trait NodeOperations: Send + Sync + 'static {
    /// Who it is. Cheap.
    fn facts(&self) -> NodeFacts;

    /// CLOCK_BOOTTIME now, to turn `Timestamp`s into ages.
    fn now(&self) -> Timestamp;

    /// The replicated state as applied here; empty (cluster 0) before `init` or `join`. The receiver may close when the
    /// node enters a cluster; the services then ask again.
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;

    /// Raft as seen here; default before `init` or `join`. May close like `state`.
    fn raft(&self) -> watch::Receiver<RaftStatus>;

    /// Live events from now on; the channel holds `NODE_EVENTS_MAX`.
    fn events(&self) -> broadcast::Receiver<NodeEvent>;

    /// Every local copy, live (asks the volumes' actors; one that does not answer within 500 ms is reported with role
    /// `unknown`).
    fn replicas(&self) -> BoxFuture<'_, Vec<ReplicaReport>>;

    /// First node of a new cluster: draws the cluster id, keeps it durably, starts Raft with `Init`. Refused when the
    /// node is in a cluster already.
    fn init(&self, patience: Duration) -> BoxFuture<'_, Result<ClusterId, OperationError>>;

    /// Enters a cluster: keeps the identity durably and starts an empty Raft node. Repeating the same adoption is fine;
    /// another one is refused.
    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Result<(), OperationError>>;

    /// Proposes and waits for the outcome. `Outcome::Refused` is an `Ok` here; the services word it.
    fn propose(&self, command: Command, patience: Duration) -> BoxFuture<'_, Result<Outcome, OperationError>>;

    /// Returns once everything that was committed before the call is applied here.
    fn read_index(&self, patience: Duration) -> BoxFuture<'_, Result<(), OperationError>>;

    /// On the Raft leader: adds a learner, promotes it once it has caught up. False: it waits for the place of a voter
    /// that does not answer.
    fn add_voter(&self, node: NodeId, patience: Duration) -> BoxFuture<'_, Result<bool, OperationError>>;

    /// On the Raft leader: removes a voter or learner.
    fn remove_voter(&self, node: NodeId, patience: Duration) -> BoxFuture<'_, Result<(), OperationError>>;

    /// Passes a wish to the local replica of the volume (`Switchover` and `Scrub` on the primary, `Detach`). Returns when it is
    /// handed over, not when it is done. `NotFound` when there is no such replica here.
    fn control(&self, volume: VolumeId, control: Control) -> BoxFuture<'_, Result<(), OperationError>>;

    /// The filesystem of a volume that this node serves, opened if it is not open.
    fn files(&self, volume: VolumeId) -> BoxFuture<'_, Result<FilesHandle, FilesError>>;

    /// Closes it, if it is open. False: it is not closed yet.
    fn close_files(&self, volume: VolumeId) -> BoxFuture<'_, bool>;

    /// What the NFS service of a volume has counted, if it runs here and answers in time.
    fn nfs_report(&self, volume: VolumeId) -> BoxFuture<'_, Option<Report>>;

    /// Makes a filesystem in a volume that this node serves; what the volume holds is lost if `force`, and otherwise a
    /// refusal.
    fn make_filesystem(
        &self,
        volume: VolumeId,
        force: bool,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<(), FilesError>>;

    /// Has e2fsck look at the filesystem of a volume that this node serves. Also gives why the engine does not open it, if
    /// so.
    fn check_filesystem(&self, volume: VolumeId) -> BoxFuture<'_, Result<(Verdict, Option<String>), FilesError>>;

    /// Opens the local store again after a detach or a failure, clearing its failed mark; it comes back as a resync
    /// target.
    fn attach(&self, volume: VolumeId) -> BoxFuture<'_, Result<(), OperationError>>;

    /// Begins the orderly stop of worker and supervisor, as SIGTERM does. Returns at once.
    fn stop(&self);
}
