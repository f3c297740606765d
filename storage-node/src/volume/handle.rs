//! What the control plane holds of a volume, and what the volume knows of its node. Everything here crosses threads.

use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use proto::{Boot, DiskId, VolumeId};
use replication::config::{ClusterState, VolumeConfig};
use replication::event::{Control, Event, Request};
use replication::local_copy::Counters;
use replication::{Notice, ScrubReport, Status, Timing};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::device::VolumeDevice;
use super::store_slot::DiskState;
use crate::disk::FoundStore;
use crate::net::transport::Transport;
use crate::node::fences::Fences;
use crate::peer::{Identity, ReadyLink};
use crate::raft::RaftHandle;

/// Messages from other threads that may wait for a volume.
pub const REMOTE_INBOX_MAX: usize = 1024;

/// A client session that runs on the volume's shard. The token is cancelled when the volume is not served here any more:
/// the session then ends by itself, because only it knows which of its operations are in flight.
pub type SessionStart = Box<dyn FnOnce(Rc<VolumeDevice>, CancellationToken) -> LocalBoxFuture<'static, ()> + Send>;

/// Who uses a volume. Clients of the block device and the filesystem engine exclude each other: the engine keeps blocks in
/// memory, and would not see what others write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// A client of the block device; there may be many.
    Client,
    /// The filesystem engine, or what makes or checks a filesystem; there is one.
    Files,
}

/// Why a session was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefused {
    /// The volume does not take messages.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// So many clients have the block device.
    #[error("{0} NBD client(s) are connected to it")]
    Clients(usize),
    /// The filesystem in it is in use.
    #[error("its filesystem is in use on this node")]
    Files,
}

/// What every volume of the node shares; cheap to clone.
#[derive(Clone)]
pub struct VolumeEnv {
    /// Who this node is.
    pub identity: Identity,
    /// This power-on.
    pub boot: Boot,
    /// Protocol timers.
    pub timing: Timing,
    /// How to reach others.
    pub transport: Transport,
    /// The replicated state: addresses and names of the other nodes.
    pub cluster: watch::Receiver<Arc<ClusterState>>,
    /// Where proposals go.
    pub raft: RaftHandle,
    /// The node's durable fences.
    pub fences: Fences,
    /// Facts that the node must act on.
    pub reports: mpsc::Sender<VolumeReport>,
    /// For watchers: the volume and what it says.
    pub notices: broadcast::Sender<(VolumeId, Notice)>,
}

/// What a volume tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeReport {
    /// The copy is not used any more and must stay unused until an operator attaches it.
    DiskDetached {
        /// The volume.
        volume: VolumeId,
        /// The copy.
        disk_id: DiskId,
        /// An error caused it.
        failed: bool,
        /// The error, or who asked.
        why: String,
    },
    /// A copy that had failed is whole again.
    CopyRestored {
        /// The volume.
        volume: VolumeId,
        /// The copy.
        disk_id: DiskId,
    },
    /// The actor has ended.
    Ended {
        /// The volume.
        volume: VolumeId,
    },
}

/// A volume's own account of itself.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The core's.
    pub replica: Status,
    /// The local copy's.
    pub disk: DiskState,
    /// What is known of the open copy's content.
    pub copy: Option<CopyStatistics>,
    /// Clients connected here.
    pub clients: usize,
    /// What was acknowledged here, to clients of the block device and to the filesystem.
    pub acknowledged: Acknowledged,
}

/// Operations of a volume that were acknowledged since it was started on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// Reads, a large one being several.
    pub reads: u64,
    /// Bytes of their blocks.
    pub read_bytes: u64,
    /// Writes, and what clears blocks; a large one is several.
    pub writes: u64,
    /// Bytes of their blocks.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

impl Acknowledged {
    /// One operation.
    pub(crate) fn of(request: &Request) -> Self {
        match request {
            Request::Read { range } => Self { reads: 1, read_bytes: range.length_bytes(), ..Self::default() },
            Request::Write { range, .. } => Self { writes: 1, written_bytes: range.length_bytes(), ..Self::default() },
            Request::WriteBatch { groups } => {
                let bytes = groups.iter().flatten().map(|range| range.length_bytes());
                Self { writes: 1, written_bytes: bytes.sum(), ..Self::default() }
            }
            Request::Flush => Self { flushes: 1, ..Self::default() },
            Request::Confirm => Self::default(),
        }
    }

    /// These and others.
    pub(crate) fn plus(self, more: Self) -> Self {
        Self {
            reads: self.reads + more.reads,
            read_bytes: self.read_bytes.saturating_add(more.read_bytes),
            writes: self.writes + more.writes,
            written_bytes: self.written_bytes.saturating_add(more.written_bytes),
            flushes: self.flushes + more.flushes,
        }
    }
}

/// What a volume's open local copy has found out about its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStatistics {
    /// Found and mended since it was opened.
    pub counters: Counters,
    /// Extents of 4 MiB that are hot in the activity log.
    pub hot_extents: u64,
    /// The last scrub that its superblock remembers, and when it ended: microseconds since 1970.
    pub last_scrub: Option<(u64, ScrubReport)>,
}

/// The local disk that an actor starts with, or is given later.
pub enum DiskStart {
    /// Open this store. `suspect`: it failed before, and only a comparison with the peer can bring it back.
    Open {
        /// Where it is.
        found: FoundStore,
        /// It is not to be trusted.
        suspect: bool,
    },
    /// There is none to use; the state says why.
    Without(DiskState),
}

/// A message from another thread.
pub(crate) enum Remote {
    /// A fact for the core.
    Fact(Event),
    /// A connection that a peer dialled.
    Accepted(ReadyLink),
    /// A session to run. The answer comes before it begins.
    Session { kind: SessionKind, start: SessionStart, answer: oneshot::Sender<Result<(), SessionRefused>> },
    /// Asks for the status.
    Status(oneshot::Sender<VolumeStatus>),
    /// Gives it a disk again. The answer comes once it is open.
    Attach { found: FoundStore, suspect: bool, done: oneshot::Sender<Result<(), String>> },
    /// Orderly stop; the sender is dropped once the store is closed.
    Stop(oneshot::Sender<()>),
    /// The volume is gone from the configuration; the sender is dropped once the store is closed.
    Removed(oneshot::Sender<()>),
}

/// The volume's actor is gone or its inbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the volume does not take messages now")]
pub struct Unreachable;

/// A running volume.
#[derive(Clone)]
pub struct VolumeHandle {
    pub(crate) volume: VolumeId,
    pub(crate) shard: usize,
    pub(crate) remote: mpsc::Sender<Remote>,
    pub(crate) config: Arc<watch::Sender<Arc<VolumeConfig>>>,
}

impl VolumeHandle {
    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The shard that it is pinned to.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Tells it its configuration; older ones not yet taken are skipped.
    pub fn set_config(&self, config: &VolumeConfig) {
        self.config.send_if_modified(|held| {
            let newer = held.version < config.version || (held.version == config.version && **held != *config);
            if newer {
                *held = Arc::new(config.clone());
            }
            newer
        });
    }

    /// Passes a fact that may be lost when the volume is overwhelmed: goodbyes and liveness reports only speed things up.
    pub fn hint(&self, event: Event) {
        let _ = self.remote.try_send(Remote::Fact(event));
    }

    /// Passes an operator's wish.
    pub async fn control(&self, control: Control) -> Result<(), Unreachable> {
        self.remote.send(Remote::Fact(Event::Control(control))).await.map_err(|_| Unreachable)
    }

    /// Gives it a connection that a peer dialled; dropped when the volume is overwhelmed, the peer dials again.
    pub fn accept(&self, ready: ReadyLink) -> Result<(), Unreachable> {
        self.remote.try_send(Remote::Accepted(ready)).map_err(|_| Unreachable)
    }

    /// Runs a session on the volume's shard, unless those of the other kind are there.
    pub async fn run_session(&self, kind: SessionKind, start: SessionStart) -> Result<(), SessionRefused> {
        let (answer, answered) = oneshot::channel();
        self.remote.send(Remote::Session { kind, start, answer }).await.map_err(|_| Unreachable)?;
        answered.await.map_err(|_| Unreachable)?
    }

    /// Its account of itself.
    pub async fn status(&self) -> Result<VolumeStatus, Unreachable> {
        let (answer, answered) = oneshot::channel();
        self.remote.try_send(Remote::Status(answer)).map_err(|_| Unreachable)?;
        answered.await.map_err(|_| Unreachable)
    }

    /// Opens a store for it, after a detach. An error tells why it cannot be used.
    pub async fn attach(&self, found: FoundStore, suspect: bool) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let gone = |_| Unreachable.to_string();
        self.remote.send(Remote::Attach { found, suspect, done }).await.map_err(|_| Unreachable.to_string())?;
        answered.await.map_err(gone)?
    }

    /// Drains, flushes, hands the lease back, and closes the store. Returns when that is done.
    pub async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        if self.remote.send(Remote::Stop(done)).await.is_ok() {
            let _ = ended.await;
        }
    }

    /// Ends the actor of a volume that is gone. Returns when its store is closed.
    pub async fn removed(&self) {
        let (done, ended) = oneshot::channel();
        if self.remote.send(Remote::Removed(done)).await.is_ok() {
            let _ = ended.await;
        }
    }
}
