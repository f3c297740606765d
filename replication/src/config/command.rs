//! Commands of the configuration state machine.

use proto::{Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, ServiceVersion, VolumeId};

use super::nfs::{ExportRule, FloatingAddress};
use super::state::{AckPolicy, NodeKind, NodeRecord};

/// One entry of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// Names this proposal: the proposer learns its outcome by it. Repeating a command repeats its id.
    pub request: RequestId,
    /// What to change.
    pub body: CommandBody,
}

/// A command is about the cluster's nodes, about one volume, or about one volume's NFS service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CommandBody {
    /// About the cluster.
    Node(NodeCommand),
    /// About one volume, guarded by its version.
    Volume {
        /// The volume.
        volume: VolumeId,
        /// The version it must have; otherwise the command does nothing.
        expect_version: ConfigVersion,
        /// What to change.
        command: VolumeCommand,
    },
    /// About the NFS service of one volume, guarded by the service's version.
    Nfs {
        /// The volume.
        volume: VolumeId,
        /// The version that its service must have, 0 if it must have none; otherwise the command does nothing.
        expect_version: ServiceVersion,
        /// What to change.
        command: NfsCommand,
    },
}

/// A change of the cluster's membership or of its list of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NodeCommand {
    /// First entry of a cluster: its id and its first node (always node 1).
    Init {
        /// The cluster.
        cluster: ClusterId,
        /// Node 1.
        node: NodeRecord,
    },
    /// Adds a node; its id is assigned here and told by `Outcome::Joined`. A retry gives the same id.
    Join {
        /// The node.
        node: NodeRecord,
    },
    /// Removes a node that holds no replica.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// A node's worker has started.
    NodeUp {
        /// The node.
        node: NodeId,
        /// Its run.
        incarnation: Incarnation,
        /// Its power-on.
        boot: Boot,
        /// Volumes whose store was stopped cleanly before (flushed, closed) and is not suspect: they are not cold. A
        /// clean stop of a copy that had lost power earlier makes nothing whole.
        clean: Vec<VolumeId>,
        /// Lowest and highest feature level supported.
        feature_levels: (u32, u32),
        /// Storage or witness (unchanged after joining).
        kind: NodeKind,
        /// Its listeners' addresses, as in `NodeRecord`: peer, admin, nbd.
        addresses: [String; 3],
    },
    /// Creates a volume with its stores' ids.
    CreateVolume {
        /// The volume.
        volume: VolumeId,
        /// Unique name.
        name: String,
        /// Size in bytes.
        size_bytes: u64,
        /// When writes are acknowledged.
        ack_policy: AckPolicy,
        /// Preallocate the backing files.
        preallocate: bool,
        /// Its copies; the first becomes primary.
        replicas: Vec<(NodeId, DiskId)>,
    },
    /// Deletes a volume.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
}

/// A change of one volume. `by` in the commands of a primary is its node and run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VolumeCommand {
    /// A node's store stands. When all do, the volume becomes active. Not guarded by the version.
    ReplicaReady {
        /// The node.
        node: NodeId,
        /// Its copy.
        disk_id: DiskId,
    },
    /// Drops a member.
    Shrink {
        /// The primary.
        by: (NodeId, Incarnation),
        /// Its epoch.
        epoch: Epoch,
        /// The members to drop.
        victims: Vec<NodeId>,
    },
    /// Adds a member.
    Admit {
        /// The primary.
        by: (NodeId, Incarnation),
        /// Its epoch.
        epoch: Epoch,
        /// The copy's node.
        node: NodeId,
        /// The copy.
        disk_id: DiskId,
        /// The run of the node that was resynced.
        incarnation: Incarnation,
        /// The power-on during which it was.
        boot: Boot,
    },
    /// A member becomes primary by itself.
    TakeOver {
        /// The member.
        by: (NodeId, Incarnation),
        /// A cold member may.
        cold_ok: bool,
        /// The copy's disk had failed; as in `Resume`.
        failed: bool,
    },
    /// The recorded primary serves again after a restart.
    Resume {
        /// The primary.
        by: (NodeId, Incarnation),
        /// Its copy.
        disk_id: DiskId,
        /// A cold member may.
        cold_ok: bool,
        /// The copy's disk had failed; allowed to the last member only, and recorded as a possible loss.
        failed: bool,
    },
    /// The primary hands over to a member; drained and flushed.
    Handoff {
        /// The primary.
        by: (NodeId, Incarnation),
        /// Its epoch.
        epoch: Epoch,
        /// The new primary.
        to: NodeId,
    },
    /// Moves the version only, which kills older proposals.
    Renew {
        /// The primary.
        by: (NodeId, Incarnation),
        /// Its epoch.
        epoch: Epoch,
    },
    /// A member whose disk is lost drops itself; nobody else may know of it.
    Resign {
        /// The member.
        by: (NodeId, Incarnation),
    },
    /// Adds a copy, to be resynced.
    AddReplica {
        /// Its node.
        node: NodeId,
        /// The copy.
        disk_id: DiskId,
    },
    /// Removes a copy that is neither primary nor in sync.
    RemoveReplica {
        /// Its node.
        node: NodeId,
    },
    /// First step of a ForcePrimary.
    PrepareForce {
        /// Who shall serve.
        target: NodeId,
        /// The node and run attested to be off.
        attested: (NodeId, Incarnation),
        /// Names the plan.
        token: u64,
    },
    /// Second step: `target` serves alone.
    ForcePrimary {
        /// Names the plan.
        token: u64,
    },
    /// Raises the feature level.
    SetFeatureLevel {
        /// New level.
        level: u32,
    },
}

/// A change of one volume's NFS service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NfsCommand {
    /// Serves the volume there, and nowhere else any more. A new service has no export rules, another one keeps its own.
    Serve {
        /// The floating addresses; none: the own address of the primary.
        addresses: Vec<FloatingAddress>,
        /// TCP port.
        port: u16,
    },
    /// Ends the service, and forgets its rules.
    Stop,
    /// Gives it these rules in place of those that it had.
    SetExports {
        /// One for each client.
        rules: Vec<ExportRule>,
    },
}
