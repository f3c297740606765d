//! What the worker holds from its start to its end, whether it is in a cluster or not.

use std::sync::{Arc, Mutex, PoisonError};

use proto::{Boot, Incarnation, RequestId, Timestamp, VolumeId};
use replication::config::nfs::NFS_LEVEL;
use replication::config::{ClusterState, NodeKind, NodeRecord};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::data_dir::DataDir;
use super::detached::DetachedDisks;
use super::fences::Fences;
use super::membership::Membership;
use super::worker::Announcer;
use crate::admin::{NodeEvent, NodeEventKind};
use crate::config::NodeConfig;
use crate::disk::StorePool;
use crate::net::transport::Transport;
use crate::peer::Identity;
use crate::raft::RaftStatus;
use crate::volume::{Shards, boot_time};

/// Lowest and highest feature level of this software.
pub(crate) const FEATURE_LEVELS: (u32, u32) = (1, NFS_LEVEL);

/// What only a node with storage has.
pub(crate) struct Storage {
    pub(crate) pool: StorePool,
    pub(crate) shards: Shards,
    pub(crate) fences: Fences,
    pub(crate) detached: DetachedDisks,
}

/// How the worker is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// It is not.
    #[default]
    No,
    /// In order: switch over, flush, close.
    Orderly,
    /// At once, and the supervisor may start another: something failed.
    Failed,
    /// At once, and another would fail the same way.
    Fatal,
}

/// The worker's state.
pub(crate) struct Core {
    pub(crate) config: NodeConfig,
    pub(crate) kind: NodeKind,
    pub(crate) transport: Transport,
    pub(crate) data_dir: DataDir,
    pub(crate) storage: Option<Storage>,
    pub(crate) boot: Boot,
    pub(crate) incarnation: Incarnation,
    pub(crate) started: Timestamp,
    pub(crate) supervisor_pid: u32,
    pub(crate) join_request: RequestId,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    /// Told to the peer listener, which refuses everything before it is known.
    pub(crate) identity: watch::Sender<Option<Identity>>,
    pub(crate) no_state: watch::Sender<Arc<ClusterState>>,
    pub(crate) no_raft: watch::Sender<RaftStatus>,
    pub(crate) announcer: Announcer,
    /// Held while the node enters a cluster.
    pub(crate) entering: tokio::sync::Mutex<()>,
    /// Cancelled when the listeners are to close.
    pub(crate) closing: CancellationToken,
    pub(crate) end: watch::Sender<End>,
    membership: Mutex<Option<Arc<Membership>>>,
    out_of_service: Mutex<Option<String>>,
}

impl Core {
    #[allow(clippy::too_many_arguments, reason = "called once, with every part named")]
    pub(crate) fn new(
        config: NodeConfig,
        kind: NodeKind,
        transport: Transport,
        data_dir: DataDir,
        storage: Option<Storage>,
        boot: Boot,
        incarnation: Incarnation,
        supervisor_pid: u32,
        join_request: RequestId,
        announcer: Announcer,
        end: watch::Sender<End>,
    ) -> Self {
        Self {
            config,
            kind,
            transport,
            data_dir,
            storage,
            boot,
            incarnation,
            started: boot_time(),
            supervisor_pid,
            join_request,
            events: broadcast::Sender::new(crate::admin::NODE_EVENTS_MAX),
            identity: watch::Sender::new(None),
            no_state: watch::Sender::new(Arc::default()),
            no_raft: watch::Sender::default(),
            announcer,
            entering: tokio::sync::Mutex::new(()),
            closing: CancellationToken::new(),
            end,
            membership: Mutex::new(None),
            out_of_service: Mutex::new(None),
        }
    }

    /// What the node is recorded as.
    pub(crate) fn record(&self) -> NodeRecord {
        let [peer_address, admin_address, nbd_address] = self.addresses();
        NodeRecord {
            name: self.config.name.clone(),
            kind: self.kind,
            peer_address,
            admin_address,
            nbd_address,
            incarnation: self.incarnation,
            boot: self.boot,
            feature_levels: FEATURE_LEVELS,
            join_request: self.join_request,
        }
    }

    /// Peer, admin and NBD address; a witness has no NBD.
    pub(crate) fn addresses(&self) -> [String; 3] {
        let [peer, admin, nbd] = self.config.addresses();
        [peer, admin, if self.kind == NodeKind::Witness { String::new() } else { nbd }]
    }

    /// The cluster that the node is in.
    pub(crate) fn membership(&self) -> Option<Arc<Membership>> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_membership(&self, membership: Arc<Membership>) {
        *self.membership.lock().unwrap_or_else(PoisonError::into_inner) = Some(membership);
    }

    /// Why the node takes no part in its cluster, if it does not.
    pub(crate) fn out_of_service(&self) -> Option<String> {
        self.out_of_service.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This run takes no part: it only says why. What it holds is not used, and is named in the log.
    pub(crate) async fn stay_out(&self, why: &str) {
        error!("OUT OF SERVICE: {why}");
        *self.out_of_service.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
        let Some(storage) = &self.storage else { return };
        let pool = storage.pool.clone();
        let found = tokio::task::spawn_blocking(move || pool.scan(None)).await.unwrap_or_default();
        for store in found.into_iter().flatten() {
            error!(
                "the copy {} of volume {} in {} is not used any more: it belongs to the member that this node was",
                store.disk_id,
                store.volume,
                store.path.display()
            );
        }
    }

    /// Tells watchers.
    pub(crate) fn tell(&self, volume: Option<VolumeId>, kind: NodeEventKind) {
        // An error says that nobody watches.
        let _ = self.events.send(NodeEvent { at: boot_time(), volume, kind });
    }

    /// Asks for the worker's end; a more urgent end is not taken back.
    pub(crate) fn ask_end(&self, end: End) {
        self.end.send_if_modified(|held| {
            let more_urgent = (*held as u8) < (end as u8);
            if more_urgent {
                *held = end;
            }
            more_urgent
        });
    }
}
