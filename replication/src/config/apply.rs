//! Applies commands: every guard of the configuration state machine. The table is in `docs/protocol.md`.

mod nfs;

use std::collections::BTreeMap;

use thiserror::Error;

use proto::{BLOCK_BYTES, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, ServiceVersion, VolumeId};

use super::command::{Command, CommandBody, NodeCommand, VolumeCommand};
use super::nfs::NFS_LEVEL;
use super::state::{
    AckPolicy, ClusterState, ForcePlan, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig,
};

/// Smallest volume, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Largest volume, in bytes.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Volumes in a cluster, at most.
pub const VOLUMES_MAX: usize = 1024;
/// Deleted volumes remembered, at most.
pub const DELETED_MAX: usize = 65_536;
/// Nodes in a cluster, at most.
pub const NODES_MAX: usize = 64;
/// Copies of a volume, at most.
pub const REPLICAS_MAX: usize = 4;
/// Bytes in a name, at most.
pub const NAME_BYTES_MAX: usize = 64;

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
    #[error(
        "the cluster's log holds a command that this version of tandem does not know; install the newer version on this node"
    )]
    UnknownCommand,
    /// Bytes that are not a command.
    #[error("the cluster's log holds bytes that are no command; this node's copy of the log is damaged")]
    Malformed,
}

/// A guard that failed.
type Guard = Result<(), &'static str>;

/// Fails with `why` unless `condition`.
fn require(condition: bool, why: &'static str) -> Guard {
    if condition { Ok(()) } else { Err(why) }
}

/// True for a name that may be given to a node or a volume: 1 to 64 of `a-z A-Z 0-9 . _ -`, not starting with `.` or `-`.
pub fn name_is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with(['.', '-'])
}

/// True for a size a volume may have, in bytes: 1 MiB to 16 TiB, whole blocks.
pub fn size_is_valid(size_bytes: u64) -> bool {
    (VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size_bytes) && size_bytes.is_multiple_of(BLOCK_BYTES)
}

impl ClusterState {
    /// Applies one command. Deterministic; a failed guard changes nothing.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let result = match &command.body {
            CommandBody::Node(body) => self.apply_node(command.request, body),
            CommandBody::Volume { volume, expect_version, command } => {
                self.apply_volume(*volume, *expect_version, command).map(|()| Outcome::Applied)
            }
            CommandBody::Nfs { volume, expect_version, command } => {
                self.apply_nfs(*volume, *expect_version, command).map(|()| Outcome::Applied)
            }
        };
        result.unwrap_or_else(Outcome::Refused)
    }

    /// Applies one log entry as written by [`Command::encode`]. Empty bytes (Raft's own no-op) apply as nothing. After an
    /// error nothing is applied any more: an entry is never skipped.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<Outcome, ApplyError> {
        if self.halted {
            return Err(ApplyError::UnknownCommand);
        }
        if bytes.is_empty() {
            return Ok(Outcome::Applied);
        }
        match Command::decode(bytes) {
            Ok(command) => Ok(self.apply(&command)),
            Err(error) => {
                self.halted = true;
                Err(error)
            }
        }
    }

    fn apply_node(&mut self, request: RequestId, command: &NodeCommand) -> Result<Outcome, &'static str> {
        match command {
            NodeCommand::Init { cluster, node } => self.init(*cluster, node),
            NodeCommand::Join { node } => return self.join(request, node),
            NodeCommand::Leave { node } => self.leave(*node),
            NodeCommand::NodeUp { node, incarnation, boot, clean, feature_levels, kind, addresses } => {
                let record = self.nodes.get_mut(node).ok_or("no such node")?;
                record.incarnation = *incarnation;
                record.boot = *boot;
                record.feature_levels = *feature_levels;
                record.kind = *kind;
                let [peer, admin, nbd] = addresses.clone();
                (record.peer_address, record.admin_address, record.nbd_address) = (peer, admin, nbd);
                for volume in self.volumes.values_mut() {
                    let Some(replica) = volume.replicas.get_mut(node) else { continue };
                    replica.incarnation = *incarnation;
                    replica.boot = *boot;
                    // A clean stop flushed the copy: it lost nothing with the power.
                    if let (true, Some(member)) = (clean.contains(&volume.id), volume.in_sync.get_mut(node)) {
                        member.boot = *boot;
                    }
                }
                Ok(())
            }
            NodeCommand::CreateVolume { volume, name, size_bytes, ack_policy, preallocate, replicas } => self
                .create_volume(NewVolume {
                    request,
                    id: *volume,
                    name,
                    size_bytes: *size_bytes,
                    ack_policy: *ack_policy,
                    preallocate: *preallocate,
                    replicas,
                }),
            NodeCommand::DeleteVolume { volume } => {
                if self.deleted.contains(volume) {
                    return Ok(Outcome::Applied);
                }
                require(self.deleted.len() < DELETED_MAX, "too many volumes were deleted in this cluster's life")?;
                self.volumes.remove(volume).ok_or("no such volume")?;
                self.deleted.insert(*volume);
                Ok(())
            }
        }
        .map(|()| Outcome::Applied)
    }

    fn init(&mut self, cluster: proto::ClusterId, node: &NodeRecord) -> Guard {
        require(self.cluster == proto::ClusterId(0), "the cluster exists already")?;
        require(name_is_valid(&node.name), "the node's name is not valid")?;
        self.cluster = cluster;
        self.nodes.insert(NodeId(1), node.clone());
        self.next_node = 2;
        Ok(())
    }

    fn join(&mut self, request: RequestId, node: &NodeRecord) -> Result<Outcome, &'static str> {
        let known = self.nodes.iter().find(|(_, record)| record.join_request == request);
        if let Some((id, _)) = known {
            return Ok(Outcome::Joined(*id));
        }
        require(self.cluster != proto::ClusterId(0), "there is no cluster yet")?;
        require(name_is_valid(&node.name), "the node's name is not valid")?;
        require(self.nodes.len() < NODES_MAX, "the cluster has 64 nodes already")?;
        require(self.nodes.values().all(|other| other.name != node.name), "a node of that name exists already")?;
        let reads_services = self.nfs_version == ServiceVersion(0) || node.feature_levels.1 >= NFS_LEVEL;
        require(reads_services, "the node's software does not know NFS services; install the newer version on it")?;
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, NodeRecord { join_request: request, ..node.clone() });
        Ok(Outcome::Joined(id))
    }

    fn leave(&mut self, node: NodeId) -> Guard {
        require(self.nodes.contains_key(&node), "no such node")?;
        let used = self.volumes.values().any(|volume| volume.replicas.contains_key(&node));
        require(!used, "the node holds replicas; remove them first")?;
        self.nodes.remove(&node);
        Ok(())
    }

    fn create_volume(&mut self, new: NewVolume<'_>) -> Guard {
        if self.volumes.get(&new.id).is_some_and(|volume| volume.create_request == new.request) {
            return Ok(());
        }
        require(!self.volumes.contains_key(&new.id) && !self.deleted.contains(&new.id), "the volume id is taken")?;
        require(self.volumes.len() < VOLUMES_MAX, "the cluster has 1024 volumes already")?;
        require(name_is_valid(new.name), "the volume's name is not valid")?;
        require(self.volumes.values().all(|other| other.name != new.name), "a volume of that name exists already")?;
        require(size_is_valid(new.size_bytes), "the size is not 1 MiB to 16 TiB in whole 4 KiB blocks")?;
        require((1..=REPLICAS_MAX).contains(&new.replicas.len()), "a volume has 1 to 4 replicas")?;
        let mut replicas = BTreeMap::new();
        for (node, disk_id) in new.replicas {
            let registration = Registration { registered_at: ConfigVersion(1), ..self.registration(*node, *disk_id)? };
            require(replicas.insert(*node, registration).is_none(), "a node holds one replica of a volume at most")?;
        }
        self.volumes.insert(
            new.id,
            VolumeConfig {
                id: new.id,
                name: new.name.to_owned(),
                size_bytes: new.size_bytes,
                ack_policy: new.ack_policy,
                feature_level: 1,
                phase: Phase::Creating,
                preallocate: new.preallocate,
                epoch: Epoch(0),
                version: ConfigVersion(1),
                primary: new.replicas[0].0,
                primary_incarnation: Incarnation(0),
                in_sync: BTreeMap::new(),
                replicas,
                loss_possible: None,
                unflushed_loss: None,
                force_plan: None,
                create_request: new.request,
                nfs: None,
            },
        );
        Ok(())
    }

    /// A registration of a copy that is yet to be made on `node`.
    fn registration(&self, node: NodeId, disk_id: DiskId) -> Result<Registration, &'static str> {
        let record = self.nodes.get(&node).ok_or("no such node")?;
        require(record.kind == NodeKind::Storage, "a witness stores nothing")?;
        let (incarnation, boot) = (record.incarnation, record.boot);
        Ok(Registration { disk_id, incarnation, boot, ..Registration::default() })
    }

    fn apply_volume(&mut self, id: VolumeId, expect: ConfigVersion, command: &VolumeCommand) -> Guard {
        let newcomer = match command {
            VolumeCommand::AddReplica { node, disk_id } => Some(self.registration(*node, *disk_id)?),
            _ => None,
        };
        let level_max = |volume: &VolumeConfig| {
            volume.replicas.keys().filter_map(|node| self.nodes.get(node)).map(|node| node.feature_levels.1).min()
        };
        let level_max = self.volumes.get(&id).and_then(level_max).unwrap_or(0);
        let volume = self.volumes.get_mut(&id).ok_or("no such volume")?;
        if let VolumeCommand::ReplicaReady { node, disk_id } = command {
            return volume.replica_ready(*node, *disk_id);
        }
        require(volume.version == expect, "the configuration has moved on")?;
        require(volume.phase == Phase::Active, "the volume is still being created")?;
        let members_before = volume.in_sync.clone();
        let next = expect.next();
        match command {
            VolumeCommand::ReplicaReady { .. } => {}
            VolumeCommand::Shrink { by, epoch, victims } => volume.shrink(*by, *epoch, victims)?,
            VolumeCommand::Admit { by, epoch, node, disk_id, incarnation, boot } => {
                volume.require_primary(*by, *epoch)?;
                let registered = *volume.replicas.get(node).ok_or("no such replica")?;
                let same = (registered.disk_id, registered.incarnation, registered.boot);
                require(same == (*disk_id, *incarnation, *boot), "the replica has restarted or was replaced")?;
                require(!volume.in_sync.contains_key(node), "the replica is in sync already")?;
                volume.in_sync.insert(*node, Member { disk_id: *disk_id, boot: *boot, since: next });
            }
            VolumeCommand::TakeOver { by, cold_ok, failed } => {
                require(by.0 != volume.primary, "the node is primary already")?;
                volume.begin_epoch_alone(*by, *cold_ok, *failed)?;
            }
            VolumeCommand::Resume { by, disk_id, cold_ok, failed } => {
                require(by.0 == volume.primary, "the node is not the recorded primary")?;
                let held = volume.replicas.get(&by.0).map(|replica| replica.disk_id);
                require(held == Some(*disk_id), "the copy is not the registered one")?;
                volume.begin_epoch_alone(*by, *cold_ok, *failed)?;
            }
            VolumeCommand::Handoff { by, epoch, to } => volume.hand_off(*by, *epoch, *to)?,
            VolumeCommand::Renew { by, epoch } => volume.require_primary(*by, *epoch)?,
            VolumeCommand::Resign { by } => {
                let registered = volume.replicas.get(&by.0).map(|replica| replica.incarnation);
                require(registered == Some(by.1), "the node has restarted since")?;
                require(volume.in_sync.contains_key(&by.0), "the node is not in sync")?;
                require(volume.in_sync.len() > 1, "one member at least must stay")?;
                volume.in_sync.remove(&by.0);
            }
            VolumeCommand::AddReplica { node, .. } => {
                require(!volume.replicas.contains_key(node), "the node holds a replica already")?;
                require(volume.replicas.len() < REPLICAS_MAX, "a volume has 4 replicas at most")?;
                let registered = newcomer.map(|newcomer| Registration { registered_at: next, ..newcomer });
                volume.replicas.extend(registered.map(|registration| (*node, registration)));
            }
            VolumeCommand::RemoveReplica { node } => {
                require(volume.replicas.contains_key(node), "no such replica")?;
                require(volume.primary != *node, "the node is primary; switch over first")?;
                require(!volume.in_sync.contains_key(node), "the replica is in sync; detach it first")?;
                volume.replicas.remove(node);
            }
            VolumeCommand::PrepareForce { target, attested, token } => {
                volume.require_attested(*target, *attested)?;
                volume.force_plan = Some(ForcePlan { target: *target, attested: *attested, token: *token });
            }
            VolumeCommand::ForcePrimary { token } => volume.force_primary(*token)?,
            VolumeCommand::SetFeatureLevel { level } => {
                require(*level > volume.feature_level, "the feature level only rises")?;
                require(*level <= level_max, "a replica's software does not support that level")?;
                volume.feature_level = *level;
            }
        }
        let forced = matches!(command, VolumeCommand::ForcePrimary { .. });
        volume.note_departures(&members_before, expect, forced);
        volume.version = next;
        volume.check();
        Ok(())
    }
}

/// The content of `CreateVolume`.
struct NewVolume<'a> {
    request: RequestId,
    id: VolumeId,
    name: &'a str,
    size_bytes: u64,
    ack_policy: AckPolicy,
    preallocate: bool,
    replicas: &'a [(NodeId, DiskId)],
}

impl VolumeConfig {
    /// The proposer is the primary of this epoch, in the run that won it.
    fn require_primary(&self, by: (NodeId, Incarnation), epoch: Epoch) -> Guard {
        require(by == (self.primary, self.primary_incarnation), "only the primary may do that")?;
        require(epoch == self.epoch, "the epoch has ended")
    }

    fn replica_ready(&mut self, node: NodeId, disk_id: DiskId) -> Guard {
        let replica = self.replicas.get_mut(&node).ok_or("no such replica")?;
        require(replica.disk_id == disk_id, "the copy is not the registered one")?;
        if replica.ready {
            return Ok(());
        }
        replica.ready = true;
        self.version = self.version.next();
        if self.phase == Phase::Creating && self.replicas.values().all(|replica| replica.ready) {
            // Fresh stores hold zeros everywhere, so all copies agree before the first write.
            self.phase = Phase::Active;
            self.epoch = Epoch(1);
            self.primary_incarnation = self.replicas[&self.primary].incarnation;
            let since = self.version;
            let member = |r: &Registration| Member { disk_id: r.disk_id, boot: r.boot, since };
            self.in_sync = self.replicas.iter().map(|(node, replica)| (*node, member(replica))).collect();
            self.check();
        }
        Ok(())
    }

    fn shrink(&mut self, by: (NodeId, Incarnation), epoch: Epoch, victims: &[NodeId]) -> Guard {
        self.require_primary(by, epoch)?;
        require(victims.iter().all(|victim| self.in_sync.contains_key(victim)), "a victim is not in sync")?;
        require(!victims.is_empty() && victims.len() < self.in_sync.len(), "one member at least must stay")?;
        self.in_sync.retain(|node, _| !victims.contains(node));
        Ok(())
    }

    /// TakeOver and Resume: a member serves alone under a new epoch.
    fn begin_epoch_alone(&mut self, by: (NodeId, Incarnation), cold_ok: bool, failed: bool) -> Guard {
        let member = *self.in_sync.get(&by.0).ok_or("the node is not in sync")?;
        require(!failed || self.in_sync.len() == 1, "the copy's disk had failed, and others are in sync")?;
        let registered = *self.replicas.get(&by.0).ok_or("no such replica")?;
        require(registered.incarnation == by.1, "the node has restarted since")?;
        require(registered.disk_id == member.disk_id, "the copy is not the one in sync")?;
        let cold = self.is_cold(by.0);
        require(!cold || cold_ok, "the copy lost power without a clean stop and may miss unflushed writes")?;
        self.epoch = self.epoch.next();
        if cold || failed {
            self.unflushed_loss = Some(self.epoch);
        }
        self.primary = by.0;
        self.primary_incarnation = by.1;
        self.in_sync = BTreeMap::from([(by.0, Member { boot: registered.boot, ..member })]);
        self.force_plan = None;
        Ok(())
    }

    /// Records until when a copy that is a member no more was one: from there on the others track what it lacks. A
    /// ForcePrimary leaves the copies nothing in common that could be relied on.
    fn note_departures(&mut self, before: &BTreeMap<NodeId, Member>, last: ConfigVersion, forced: bool) {
        for (node, replica) in &mut self.replicas {
            if forced || self.in_sync.contains_key(node) {
                (replica.member_since, replica.member_until) = (ConfigVersion(0), ConfigVersion(0));
            } else if let Some(member) = before.get(node) {
                (replica.member_since, replica.member_until) = (member.since, last);
            }
        }
    }

    fn hand_off(&mut self, by: (NodeId, Incarnation), epoch: Epoch, to: NodeId) -> Guard {
        self.require_primary(by, epoch)?;
        require(to != self.primary, "the node is primary already")?;
        require(self.in_sync.contains_key(&to), "the node is not in sync")?;
        require(!self.is_cold(to), "the node's copy lost power without a clean stop")?;
        self.epoch = self.epoch.next();
        self.primary = to;
        self.primary_incarnation = self.replicas[&to].incarnation;
        self.force_plan = None;
        Ok(())
    }

    /// The operator's word is about the recorded primary in its newest registered run, and the target holds a copy.
    fn require_attested(&self, target: NodeId, attested: (NodeId, Incarnation)) -> Guard {
        require(target != self.primary, "the node is primary already")?;
        require(self.replicas.get(&target).is_some_and(|replica| replica.ready), "the node holds no replica")?;
        let registered = self.replicas.get(&self.primary).map(|replica| replica.incarnation);
        require(
            attested.0 == self.primary && Some(attested.1) == registered,
            "the node attested to be off is not the primary, or has started again since",
        )
    }

    fn force_primary(&mut self, token: u64) -> Guard {
        let plan = self.force_plan.ok_or("no force-primary was prepared")?;
        require(plan.token == token, "the token is not that of the prepared force-primary")?;
        self.require_attested(plan.target, plan.attested)?;
        let registered = self.replicas[&plan.target];
        self.epoch = self.epoch.next();
        self.primary = plan.target;
        self.primary_incarnation = registered.incarnation;
        // A member from now on only, whatever it was before: what it has tracked of other copies is void.
        let since = self.version.next();
        let member = Member { disk_id: registered.disk_id, boot: registered.boot, since };
        self.in_sync = BTreeMap::from([(plan.target, member)]);
        self.loss_possible = Some(self.epoch);
        self.force_plan = None;
        Ok(())
    }

    /// Our own mistakes only: the invariants that every command keeps.
    fn check(&self) {
        assert!(!self.in_sync.is_empty(), "in_sync of an active volume is never empty (I6)");
        assert!(self.in_sync.keys().all(|node| self.replicas.contains_key(node)), "a member is a replica");
        assert!(self.replicas.contains_key(&self.primary), "the primary is a replica");
    }
}
