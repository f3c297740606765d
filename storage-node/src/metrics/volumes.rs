//! Metrics of volumes: what the replicated state says of each, and what the copy on this node says of itself.

use proto::{BLOCK_BYTES, NodeId};
use replication::config::{ClusterState, VolumeConfig};

use super::exposition::{Exposition, Kind, Value, seconds};
use super::volume_name;
use crate::admin::{NodeFacts, ReplicaReport, StoreState};

/// Bytes of what is counted in extents of the activity log.
const EXTENT_BYTES: u64 = 4 << 20;

/// Name, kind, help, and the value of a copy, if it has one.
type OfCopy = (&'static str, Kind, &'static str, fn(&ReplicaReport) -> Option<Value>);

pub(super) fn put(out: &mut Exposition, facts: &NodeFacts, state: &ClusterState, replicas: &[ReplicaReport]) {
    let Some((_, me)) = facts.identity else { return };
    put_configuration(out, me, state);
    put_states(out, state, replicas);
    for (name, kind, help, value) in OF_COPIES {
        let mut family = out.family(name, *kind, help);
        for replica in replicas {
            if let Some(value) = value(replica) {
                family.sample(&[("volume", &volume_name(state, replica.volume))], value);
            }
        }
    }
    put_peers(out, state, replicas);
}

fn put_configuration(out: &mut Exposition, me: NodeId, state: &ClusterState) {
    type OfVolume = (&'static str, &'static str, fn(&VolumeConfig, NodeId) -> Value);
    let all: [OfVolume; 5] = [
        ("tandem_volume_size_bytes", "Size of the volume.", |volume, _| volume.size_bytes.into()),
        ("tandem_volume_epoch", "Fencing number: grows whenever the primary changes.", |volume, _| {
            volume.epoch.0.into()
        }),
        ("tandem_volume_copies", "Copies that the volume has.", |volume, _| volume.replicas.len().into()),
        ("tandem_volume_copies_in_sync", "Copies that hold every acknowledged write.", |volume, _| {
            volume.in_sync.len().into()
        }),
        ("tandem_volume_primary", "This node is the volume's primary.", |volume, me| (volume.primary == me).into()),
    ];
    for (name, help, value) in all {
        let mut family = out.family(name, Kind::Gauge, help);
        for volume in state.volumes.values() {
            family.sample(&[("volume", &volume.name)], value(volume, me));
        }
    }
    let mut family = out.family("tandem_volume_in_sync", Kind::Gauge, "This copy of the volume is in sync.");
    for volume in state.volumes.values() {
        for node in volume.replicas.keys() {
            let name = node_name(state, *node);
            family.sample(&[("volume", &volume.name), ("copy", &name)], volume.in_sync.contains_key(node));
        }
    }
}

fn put_states(out: &mut Exposition, state: &ClusterState, replicas: &[ReplicaReport]) {
    let mut family = out.family("tandem_copy_role", Kind::Gauge, "Role of this node's copy; always 1.");
    for replica in replicas {
        let volume = volume_name(state, replica.volume);
        family.sample(&[("volume", &volume), ("role", replica.status.role)], 1_u64);
    }
    let mut family = out.family("tandem_copy_store", Kind::Gauge, "State of this node's store; always 1.");
    for replica in replicas {
        let store = match replica.store {
            StoreState::Missing => "missing",
            StoreState::Creating { .. } => "creating",
            StoreState::Open => "open",
            StoreState::Detached => "detached",
            StoreState::Failed(_) => "failed",
        };
        family.sample(&[("volume", &volume_name(state, replica.volume)), ("state", store)], 1_u64);
    }
}

const OF_COPIES: &[OfCopy] = &[
    ("tandem_copy_serving", Kind::Gauge, "A client's operation would be answered here now.", |copy| {
        Some(copy.status.serving.into())
    }),
    ("tandem_copy_operations_in_flight", Kind::Gauge, "Operations of clients in flight or queued.", |copy| {
        Some(copy.status.operations.into())
    }),
    ("tandem_copy_nbd_clients", Kind::Gauge, "NBD clients that are connected here.", |copy| {
        Some(copy.nbd_clients.into())
    }),
    ("tandem_copy_reads_total", Kind::Counter, "Reads answered here; a large one is several.", |copy| {
        Some(copy.acknowledged.reads.into())
    }),
    ("tandem_copy_read_bytes_total", Kind::Counter, "Bytes of blocks read by clients here.", |copy| {
        Some(copy.acknowledged.read_bytes.into())
    }),
    ("tandem_copy_writes_total", Kind::Counter, "Writes acknowledged here; a large one is several.", |copy| {
        Some(copy.acknowledged.writes.into())
    }),
    ("tandem_copy_written_bytes_total", Kind::Counter, "Bytes of blocks whose write was acknowledged here.", |copy| {
        Some(copy.acknowledged.written_bytes.into())
    }),
    ("tandem_copy_flushes_total", Kind::Counter, "Flushes acknowledged here.", |copy| {
        Some(copy.acknowledged.flushes.into())
    }),
    ("tandem_copy_hot_bytes", Kind::Gauge, "Extents with recent writes: compared after a crash.", |copy| {
        Some((copy.copy?.hot_extents * EXTENT_BYTES).into())
    }),
    (
        "tandem_copy_checksum_errors_total",
        Kind::Counter,
        "Blocks that did not match their checksum when read.",
        |copy| Some(copy.copy?.counters.mismatches.into()),
    ),
    ("tandem_copy_checksum_rereads_total", Kind::Counter, "Of those, good when read again at once.", |copy| {
        Some(copy.copy?.counters.reread.into())
    }),
    ("tandem_copy_read_repairs_total", Kind::Counter, "Of those, written anew from the other copy.", |copy| {
        Some(copy.copy?.counters.repaired.into())
    }),
    ("tandem_copy_checksum_pages_damaged_total", Kind::Counter, "Pages of checksums that were damaged.", |copy| {
        Some(copy.copy?.counters.pages_damaged.into())
    }),
    ("tandem_copy_blocks_unverified_total", Kind::Counter, "Blocks whose checksum was taken from the disk.", |copy| {
        Some(copy.copy?.counters.unverified.into())
    }),
    ("tandem_copy_scrub_running", Kind::Gauge, "The primary reads and compares all copies now.", |copy| {
        Some(copy.status.scrub.is_some().into())
    }),
    ("tandem_copy_scrub_done_bytes", Kind::Gauge, "Of the scrub under way: looked at so far.", |copy| {
        Some((copy.status.scrub?.done_blocks * BLOCK_BYTES).into())
    }),
    ("tandem_copy_scrub_left_seconds", Kind::Gauge, "Of the scrub under way: estimated time left.", |copy| {
        Some(seconds(copy.scrub_left?.0).into())
    }),
    ("tandem_copy_last_scrub_timestamp_seconds", Kind::Gauge, "When the last scrub ended, since 1970.", |copy| {
        Some(seconds(copy.copy?.last_scrub?.0).into())
    }),
    ("tandem_copy_last_scrub_bad_blocks", Kind::Gauge, "Blocks that the last scrub found bad or different.", |copy| {
        let (_, found) = copy.copy?.last_scrub?;
        Some((found.bad_here + found.bad_at_peers + found.differing).into())
    }),
    ("tandem_copy_last_scrub_repaired_blocks", Kind::Gauge, "Of those, blocks that it mended.", |copy| {
        Some(copy.copy?.last_scrub?.1.repaired.into())
    }),
];

fn put_peers(out: &mut Exposition, state: &ClusterState, replicas: &[ReplicaReport]) {
    let peers = || {
        replicas.iter().flat_map(|replica| {
            let volume = volume_name(state, replica.volume);
            replica.status.peers.iter().map(move |peer| (replica, volume.clone(), node_name(state, peer.0), peer))
        })
    };
    let mut family = out.family("tandem_peer_state", Kind::Gauge, "How the primary sees another copy; always 1.");
    for (_, volume, name, (_, peer_state, ..)) in peers() {
        family.sample(&[("volume", &volume), ("peer", &name), ("state", peer_state)], 1_u64);
    }
    let help = "What the other copy may lack, and is to be resynced.";
    let mut family = out.family("tandem_peer_dirty_bytes", Kind::Gauge, help);
    for (_, volume, name, (_, _, left, _)) in peers() {
        family.sample(&[("volume", &volume), ("peer", &name)], left.saturating_mul(BLOCK_BYTES));
    }
    let help = "Of the newest resync: sent so far.";
    let mut family = out.family("tandem_peer_resynced_bytes", Kind::Gauge, help);
    for (_, volume, name, (_, _, _, done)) in peers() {
        family.sample(&[("volume", &volume), ("peer", &name)], done.saturating_mul(BLOCK_BYTES));
    }
    let left = |replica: &ReplicaReport, node: NodeId| {
        replica.resync_left.iter().find(|(peer, _)| *peer == node).map(|(_, left)| seconds(left.0))
    };
    let help = "Of the resync under way: estimated time left.";
    let mut family = out.family("tandem_peer_resync_left_seconds", Kind::Gauge, help);
    for (replica, volume, name, (node, ..)) in peers() {
        if let Some(left) = left(replica, *node) {
            family.sample(&[("volume", &volume), ("peer", &name)], left);
        }
    }
    let help = "Of the resync under way: pace of the last ten seconds, in bytes a second.";
    let mut family = out.family("tandem_peer_resync_rate_bytes", Kind::Gauge, help);
    for (replica, volume, name, (node, _, blocks, _)) in peers() {
        if let Some(left) = left(replica, *node).filter(|left| *left > 0.0) {
            family.sample(&[("volume", &volume), ("peer", &name)], (blocks * BLOCK_BYTES) as f64 / left);
        }
    }
}

fn node_name(state: &ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.name.clone())
}
