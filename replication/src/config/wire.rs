//! Bytes of log entries and snapshots.
//!
//! Every entry begins with the format number and the command's tag; a tag or format that is not known halts the node
//! instead of being skipped. All integers are little-endian; strings and lists carry a 32-bit length.
//!
//! A snapshot of format 2 is one of format 1 and, behind it, what format 1 has no place for. It is written once every
//! node's software can read it, so that a cluster in the middle of an upgrade stays able to exchange snapshots. A field
//! that was dropped is read as 0: "not known", which costs a full comparison and never one too few.
//!
//! Format 3 is format 2 and, behind it, the NFS services. It is written from the first service on: the guards see to it
//! that every node can read it then, and nothing of it may be dropped.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, ServiceVersion, VolumeId};

use super::apply::ApplyError;
use super::command::{Command, CommandBody, NodeCommand, VolumeCommand};
use super::nfs::NfsService;
use super::state::{
    AckPolicy, ClusterState, ForcePlan, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig,
};

/// Format number of entries, and of snapshots that every release can read.
const FORMAT_1: u8 = 1;
/// Format number of snapshots that end with [`Histories`].
const FORMAT_2: u8 = 2;
/// Format number of snapshots that end with [`Services`].
const FORMAT_3: u8 = 3;
/// Feature level of the oldest software that reads [`FORMAT_2`].
const FORMAT_2_LEVEL: u32 = 2;
/// Elements in a decoded list, at most; far above every bound of the state machine.
const LIST_MAX: usize = 1 << 20;

/// A value with a byte form.
trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError>;
}

macro_rules! wire_int {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
                let (head, rest) = input.split_first_chunk().ok_or(ApplyError::Malformed)?;
                *input = rest;
                Ok(<$t>::from_le_bytes(*head))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64, u128);

macro_rules! wire_newtype {
    ($($t:ident),*) => {$(
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
                Ok($t(Wire::get(input)?))
            }
        }
    )*};
}
wire_newtype!(Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, VolumeId);

/// Structs: the named fields in that order, and for those with no place in format 1 what to read them as.
macro_rules! wire_struct {
    ($t:ident { $($field:ident),* $(,)? } $(.. $absent:expr)?) => {
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
                Ok($t { $($field: Wire::get(input)?,)* $(..$absent)? })
            }
        }
    };
}

/// Enums whose variants carry named fields: a tag byte, then the fields.
macro_rules! wire_enum {
    ($t:ident { $($tag:literal => $variant:ident { $($field:ident),* }),* $(,)? }) => {
        impl Wire for $t {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($t::$variant { $($field),* } => { out.push($tag); $($field.put(out);)* })*
                }
            }
            fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
                match u8::get(input)? {
                    $($tag => Ok($t::$variant { $($field: Wire::get(input)?),* }),)*
                    _ => Err(ApplyError::UnknownCommand),
                }
            }
        }
    };
}

// It stands behind the macros that it uses.
mod nfs;

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        match u8::get(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ApplyError::Malformed),
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        out.extend_from_slice(self.as_bytes());
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        let length = u32::get(input)? as usize;
        if length > input.len() {
            return Err(ApplyError::Malformed);
        }
        let (head, rest) = input.split_at(length);
        *input = rest;
        String::from_utf8(head.to_vec()).map_err(|_| ApplyError::Malformed)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok(if bool::get(input)? { Some(T::get(input)?) } else { None })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok((A::get(input)?, B::get(input)?))
    }
}

impl<A: Wire, B: Wire, C: Wire> Wire for (A, B, C) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
        self.2.put(out);
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok((A::get(input)?, B::get(input)?, C::get(input)?))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        let length = u32::get(input)? as usize;
        if length > LIST_MAX {
            return Err(ApplyError::Malformed);
        }
        (0..length).map(|_| T::get(input)).collect()
    }
}

impl<K: Wire + Ord, V: Wire> Wire for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        for (key, value) in self {
            key.put(out);
            value.put(out);
        }
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok(Vec::<(K, V)>::get(input)?.into_iter().collect())
    }
}

impl<K: Wire + Ord> Wire for BTreeSet<K> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        self.iter().for_each(|item| item.put(out));
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok(Vec::<K>::get(input)?.into_iter().collect())
    }
}

/// The three addresses of a node.
#[derive(Clone)]
struct Addresses([String; 3]);

impl Wire for Addresses {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|address| address.put(out));
    }
    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok(Addresses([Wire::get(input)?, Wire::get(input)?, Wire::get(input)?]))
    }
}

wire_enum!(AckPolicy { 0 => Flush {}, 1 => Durable {} });
wire_enum!(NodeKind { 0 => Storage {}, 1 => Witness {} });
wire_enum!(Phase { 0 => Creating {}, 1 => Active {} });
wire_struct!(NodeRecord {
    name,
    kind,
    peer_address,
    admin_address,
    nbd_address,
    incarnation,
    boot,
    feature_levels,
    join_request
});
wire_struct!(Registration { disk_id, incarnation, boot, ready }..Registration::default());
wire_struct!(Member { disk_id, boot }..Member::default());
wire_struct!(ForcePlan { target, attested, token });
wire_struct!(
    VolumeConfig {
        id,
        name,
        size_bytes,
        ack_policy,
        feature_level,
        phase,
        preallocate,
        epoch,
        version,
        primary,
        primary_incarnation,
        in_sync,
        replicas,
        loss_possible,
        unflushed_loss,
        force_plan,
        create_request,
    }..VolumeConfig::default()
);
wire_struct!(ClusterState { cluster, nodes, next_node, volumes, deleted, halted }..ClusterState::default());
wire_enum!(VolumeCommand {
    1 => ReplicaReady { node, disk_id },
    2 => Shrink { by, epoch, victims },
    3 => Admit { by, epoch, node, disk_id, incarnation, boot },
    4 => TakeOver { by, cold_ok, failed },
    5 => Resume { by, disk_id, cold_ok, failed },
    6 => Handoff { by, epoch, to },
    7 => Renew { by, epoch },
    8 => AddReplica { node, disk_id },
    9 => RemoveReplica { node },
    10 => PrepareForce { target, attested, token },
    11 => ForcePrimary { token },
    12 => SetFeatureLevel { level },
    13 => Resign { by },
});

impl Wire for NodeCommand {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            NodeCommand::Init { cluster, node } => {
                out.push(1);
                cluster.put(out);
                node.put(out);
            }
            NodeCommand::Join { node } => {
                out.push(2);
                node.put(out);
            }
            NodeCommand::Leave { node } => {
                out.push(3);
                node.put(out);
            }
            NodeCommand::NodeUp { node, incarnation, boot, clean, feature_levels, kind, addresses } => {
                out.push(4);
                node.put(out);
                incarnation.put(out);
                boot.put(out);
                clean.put(out);
                feature_levels.put(out);
                kind.put(out);
                Addresses(addresses.clone()).put(out);
            }
            NodeCommand::CreateVolume { volume, name, size_bytes, ack_policy, preallocate, replicas } => {
                out.push(5);
                volume.put(out);
                name.put(out);
                size_bytes.put(out);
                ack_policy.put(out);
                preallocate.put(out);
                replicas.put(out);
            }
            NodeCommand::DeleteVolume { volume } => {
                out.push(6);
                volume.put(out);
            }
        }
    }

    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        Ok(match u8::get(input)? {
            1 => NodeCommand::Init { cluster: Wire::get(input)?, node: Wire::get(input)? },
            2 => NodeCommand::Join { node: Wire::get(input)? },
            3 => NodeCommand::Leave { node: Wire::get(input)? },
            4 => NodeCommand::NodeUp {
                node: Wire::get(input)?,
                incarnation: Wire::get(input)?,
                boot: Wire::get(input)?,
                clean: Wire::get(input)?,
                feature_levels: Wire::get(input)?,
                kind: Wire::get(input)?,
                addresses: Addresses::get(input)?.0,
            },
            5 => NodeCommand::CreateVolume {
                volume: Wire::get(input)?,
                name: Wire::get(input)?,
                size_bytes: Wire::get(input)?,
                ack_policy: Wire::get(input)?,
                preallocate: Wire::get(input)?,
                replicas: Wire::get(input)?,
            },
            6 => NodeCommand::DeleteVolume { volume: Wire::get(input)? },
            _ => return Err(ApplyError::UnknownCommand),
        })
    }
}

impl Wire for Command {
    fn put(&self, out: &mut Vec<u8>) {
        self.request.put(out);
        match &self.body {
            CommandBody::Node(command) => {
                out.push(1);
                command.put(out);
            }
            CommandBody::Volume { volume, expect_version, command } => {
                out.push(2);
                volume.put(out);
                expect_version.put(out);
                command.put(out);
            }
            CommandBody::Nfs { volume, expect_version, command } => {
                out.push(3);
                volume.put(out);
                expect_version.put(out);
                command.put(out);
            }
        }
    }

    fn get(input: &mut &[u8]) -> Result<Self, ApplyError> {
        let request = Wire::get(input)?;
        let body = match u8::get(input)? {
            1 => CommandBody::Node(Wire::get(input)?),
            2 => CommandBody::Volume {
                volume: Wire::get(input)?,
                expect_version: Wire::get(input)?,
                command: Wire::get(input)?,
            },
            3 => CommandBody::Nfs {
                volume: Wire::get(input)?,
                expect_version: Wire::get(input)?,
                command: Wire::get(input)?,
            },
            _ => return Err(ApplyError::UnknownCommand),
        };
        Ok(Command { request, body })
    }
}

/// Versions of a volume's configuration that its replicas and members remember.
struct History {
    /// `registered_at`, `member_until` and `member_since` of each replica.
    replicas: BTreeMap<NodeId, (ConfigVersion, ConfigVersion, ConfigVersion)>,
    /// `since` of each member.
    members: BTreeMap<NodeId, ConfigVersion>,
}

wire_struct!(History { replicas, members });

/// What format 2 adds: one history for each volume.
type Histories = BTreeMap<VolumeId, History>;

/// What format 3 adds: the version given last, and the services.
type Services = (ServiceVersion, BTreeMap<VolumeId, NfsService>);

impl History {
    fn of(volume: &VolumeConfig) -> Self {
        let replica = |(node, replica): (&NodeId, &Registration)| {
            (*node, (replica.registered_at, replica.member_until, replica.member_since))
        };
        let member = |(node, member): (&NodeId, &Member)| (*node, member.since);
        Self {
            replicas: volume.replicas.iter().map(replica).collect(),
            members: volume.in_sync.iter().map(member).collect(),
        }
    }

    /// Errors: it is not the history of this volume's replicas and members.
    fn put_back(&self, volume: &mut VolumeConfig) -> Result<(), ApplyError> {
        if !self.replicas.keys().eq(volume.replicas.keys()) || !self.members.keys().eq(volume.in_sync.keys()) {
            return Err(ApplyError::Malformed);
        }
        for (replica, versions) in volume.replicas.values_mut().zip(self.replicas.values()) {
            (replica.registered_at, replica.member_until, replica.member_since) = *versions;
        }
        for (member, since) in volume.in_sync.values_mut().zip(self.members.values()) {
            member.since = *since;
        }
        Ok(())
    }
}

impl Command {
    /// The log entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT_1];
        self.put(&mut out);
        out
    }

    /// Reads a log entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApplyError> {
        let mut input = bytes;
        if u8::get(&mut input)? != FORMAT_1 {
            return Err(ApplyError::UnknownCommand);
        }
        let command = Self::get(&mut input)?;
        nothing_left(input).map(|()| command)
    }
}

impl ClusterState {
    /// The whole state as snapshot bytes; what a node of the cluster could not read is left out of them.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let all_read_format_2 = self.nodes.values().all(|node| node.feature_levels.1 >= FORMAT_2_LEVEL);
        let format = match self.nfs_version {
            ServiceVersion(0) if all_read_format_2 => FORMAT_2,
            ServiceVersion(0) => FORMAT_1,
            _ => FORMAT_3,
        };
        let mut out = vec![format];
        self.put(&mut out);
        if format >= FORMAT_2 {
            let histories: Histories = self.volumes.iter().map(|(id, volume)| (*id, History::of(volume))).collect();
            histories.put(&mut out);
        }
        if format >= FORMAT_3 {
            let service = |(id, volume): (&VolumeId, &VolumeConfig)| Some((*id, volume.nfs.clone()?));
            let services: Services = (self.nfs_version, self.volumes.iter().filter_map(service).collect());
            services.put(&mut out);
        }
        out
    }

    /// A state from snapshot bytes of any format.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, ApplyError> {
        let mut input = bytes;
        let format = u8::get(&mut input)?;
        if !(FORMAT_1..=FORMAT_3).contains(&format) {
            return Err(ApplyError::UnknownCommand);
        }
        let mut state = Self::get(&mut input)?;
        if format >= FORMAT_2 {
            let histories: Histories = Wire::get(&mut input)?;
            if !histories.keys().eq(state.volumes.keys()) {
                return Err(ApplyError::Malformed);
            }
            for (volume, history) in state.volumes.values_mut().zip(histories.values()) {
                history.put_back(volume)?;
            }
        }
        if format >= FORMAT_3 {
            state.put_services_back(Wire::get(&mut input)?)?;
        }
        nothing_left(input).map(|()| state)
    }
}

impl ClusterState {
    /// Errors: they are not services that this state could have.
    fn put_services_back(&mut self, (version, services): Services) -> Result<(), ApplyError> {
        self.nfs_version = version;
        for (id, service) in services {
            self.volumes.get_mut(&id).ok_or(ApplyError::Malformed)?.nfs = Some(service);
        }
        // Format 3 is written only when there was a service.
        let sound = version > ServiceVersion(0) && self.services_are_sound();
        if sound { Ok(()) } else { Err(ApplyError::Malformed) }
    }
}

fn nothing_left(input: &[u8]) -> Result<(), ApplyError> {
    if input.is_empty() { Ok(()) } else { Err(ApplyError::Malformed) }
}
