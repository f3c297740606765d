//! The state that Raft replicates: nodes, volumes, and nothing that can be derived from them.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, ServiceVersion, VolumeId};

use super::nfs::NfsService;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AckPolicy {
    /// Complete on every required disk; a flush puts it on their media (DRBD's protocol C).
    #[default]
    Flush,
    /// On the media of every required disk.
    Durable,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Votes and stores.
    #[default]
    Storage,
    /// Votes only.
    Witness,
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeRecord {
    /// Unique name.
    pub name: String,
    /// Storage or witness.
    pub kind: NodeKind,
    /// `host:port` of the peer (replication and Raft) listener.
    pub peer_address: String,
    /// `host:port` of the admin API.
    pub admin_address: String,
    /// `host:port` of the NBD listener; empty on a witness.
    pub nbd_address: String,
    /// Its newest registered run.
    pub incarnation: Incarnation,
    /// Its newest registered power-on.
    pub boot: Boot,
    /// Lowest and highest feature level that its software supports.
    pub feature_levels: (u32, u32),
    /// Request that added it, to recognise a retry.
    pub join_request: RequestId,
}

/// A volume's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Its stores are being made; it serves nobody yet.
    #[default]
    Creating,
    /// In service.
    Active,
}

/// A replica as registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The copy.
    pub disk_id: DiskId,
    /// The node's newest run.
    pub incarnation: Incarnation,
    /// The node's newest power-on.
    pub boot: Boot,
    /// True once the node has said that its store stands.
    pub ready: bool,
    /// The version that registered it: a copy that was removed and added again is another registration.
    pub registered_at: ConfigVersion,
    /// The last version at which it was a member; 0 if it never was, is one now for the first time, or a ForcePrimary has
    /// voided what it had in common with the others.
    pub member_until: ConfigVersion,
    /// The version since which it had been one, until then; meaningful with `member_until`.
    pub member_since: ConfigVersion,
}

/// A replica that is in sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Member {
    /// The copy that is in sync.
    pub disk_id: DiskId,
    /// The power-on during which it came in sync (or that followed a clean stop).
    pub boot: Boot,
    /// The version since which it has been a member without a break.
    pub since: ConfigVersion,
}

/// A ForcePrimary that was prepared, the first of its two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ForcePlan {
    /// The node that shall serve.
    pub target: NodeId,
    /// The node and run that an operator attests to be off.
    pub attested: (NodeId, Incarnation),
    /// Names the plan in the second step.
    pub token: u64,
}

/// Everything Raft holds about one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VolumeConfig {
    /// The volume.
    pub id: VolumeId,
    /// Unique name; also the export's name.
    pub name: String,
    /// Size in bytes, a multiple of 4096.
    pub size_bytes: u64,
    /// When writes are acknowledged.
    pub ack_policy: AckPolicy,
    /// Feature level of the data path.
    pub feature_level: u32,
    /// Creating or active.
    pub phase: Phase,
    /// Full preallocation of the backing files was asked for.
    pub preallocate: bool,
    /// Fencing number.
    pub epoch: Epoch,
    /// Compare-and-swap version.
    pub version: ConfigVersion,
    /// Who serves.
    pub primary: NodeId,
    /// The run of the primary that won this epoch; any other run of that node must Resume first.
    pub primary_incarnation: Incarnation,
    /// Copies that hold every acknowledged write. Never empty once active.
    pub in_sync: BTreeMap<NodeId, Member>,
    /// All copies.
    pub replicas: BTreeMap<NodeId, Registration>,
    /// Set by ForcePrimary: acknowledged writes may be missing since that epoch.
    pub loss_possible: Option<Epoch>,
    /// Set by a cold start: unflushed writes may be missing since that epoch.
    pub unflushed_loss: Option<Epoch>,
    /// A prepared ForcePrimary.
    pub force_plan: Option<ForcePlan>,
    /// Request that created it, to recognise a retry.
    pub create_request: RequestId,
    /// How it is served over NFS, if it is. `version` does not move with it.
    pub nfs: Option<NfsService>,
}

impl VolumeConfig {
    /// True when `node` is a member whose registered boot differs from the one it came in sync under.
    pub fn is_cold(&self, node: NodeId) -> bool {
        match (self.in_sync.get(&node), self.replicas.get(&node)) {
            (Some(member), Some(replica)) => member.boot != replica.boot,
            _ => false,
        }
    }

    /// Version of its NFS service; 0 if it has none.
    pub fn nfs_version(&self) -> ServiceVersion {
        self.nfs.as_ref().map_or(ServiceVersion(0), |service| service.version)
    }
}

/// The whole replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClusterState {
    /// The cluster (0 before `Init`).
    pub cluster: ClusterId,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Id of the next node to join.
    pub next_node: u64,
    /// Its volumes.
    pub volumes: BTreeMap<VolumeId, VolumeConfig>,
    /// Volumes that were deleted: a node that still has a store of one removes it.
    pub deleted: BTreeSet<VolumeId>,
    /// The version that was given last to an NFS service; 0 if there never was one.
    pub nfs_version: ServiceVersion,
    /// Set when a command was met that this software does not know: nothing is applied any more.
    pub halted: bool,
}

impl ClusterState {
    /// True for the number of a node that was removed: it is never given again.
    pub fn is_removed(&self, node: NodeId) -> bool {
        node != NodeId::NONE && node.0 < self.next_node && !self.nodes.contains_key(&node)
    }
}
