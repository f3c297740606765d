//! NFS services under faults: every node comes to hold the same ones, by the log or by a snapshot, and no change is lost
//! under another.

use proto::{DiskId, ServiceVersion, VolumeId};

use super::*;
use crate::config::network::IpAddress;
use crate::config::nfs::{Access, Client, ExportRule, FloatingAddress, NFS_LEVEL, Squash};
use crate::config::{AckPolicy, NfsCommand};

const VOLUMES: u128 = 3;

/// A node that knows services, and volumes on it.
fn prepare(cluster: &mut Cluster) {
    let leader = cluster.elect();
    let up = NodeCommand::NodeUp {
        node: NodeId(1),
        incarnation: proto::Incarnation(1),
        boot: proto::Boot(1),
        clean: vec![],
        feature_levels: (1, NFS_LEVEL),
        kind: NodeKind::Storage,
        addresses: Default::default(),
    };
    let create = |volume: u128| NodeCommand::CreateVolume {
        volume: VolumeId(volume),
        name: format!("v{volume}"),
        size_bytes: 1 << 20,
        ack_policy: AckPolicy::Flush,
        preallocate: false,
        replicas: vec![(NodeId(1), DiskId(volume))],
    };
    for (request, body) in [up].into_iter().chain((1..=VOLUMES).map(create)).enumerate() {
        let body = CommandBody::Node(body);
        assert!(cluster.propose(leader, Command { request: RequestId(10 + request as u128), body }.encode()));
    }
    let made = VOLUMES as usize;
    cluster.until("the volumes are there", |cluster| {
        cluster.nodes.values().all(|node| node.state().volumes.len() == made)
    });
}

/// A change as an administrator at that node would make it, by what it knows.
fn change(cluster: &mut Cluster, at: u64, request: u128) -> Vec<u8> {
    let volume = VolumeId(1 + u128::from(cluster.roll(VOLUMES as u64)));
    let config = cluster.nodes[&at].state().volumes[&volume].clone();
    let rules = config.nfs.as_ref().map(|service| service.exports.as_slice().to_vec()).unwrap_or_default();
    let command = match (cluster.roll(6), config.nfs.is_some()) {
        (0, true) => NfsCommand::Stop,
        (1..=3, true) => {
            let rule = ExportRule {
                client: Client::Any,
                access: Access::ReadOnly,
                squash: Squash::Root,
                anonymous_uid: request as u32,
                anonymous_gid: rules.len() as u32,
            };
            NfsCommand::SetExports { rules: vec![rule] }
        }
        // Of few addresses, so that the volumes are in each other's way.
        (place, _) => NfsCommand::Serve {
            addresses: (0..place % 2).map(|_| floating(cluster.roll(3))).collect(),
            port: 2049 + cluster.roll(2) as u16,
        },
    };
    let body = CommandBody::Nfs { volume, expect_version: config.nfs_version(), command };
    Command { request: RequestId(request), body }.encode()
}

fn floating(host: u64) -> FloatingAddress {
    FloatingAddress {
        address: IpAddress::v4(0x0a00_0001 + host as u32),
        prefix_length: 24,
        interface: "eth0".to_owned(),
    }
}

#[test]
fn services_are_the_same_everywhere_through_losses_crashes_and_snapshots() {
    let (mut applied, mut refused, mut snapshots) = (0, 0, 0);
    for seed in 200..220 {
        let mut cluster = Cluster::new(&[1, 2, 3], seed);
        prepare(&mut cluster);
        cluster.loss_percent = 15;
        for step in 0..250u128 {
            let at = 1 + cluster.roll(3);
            let bytes = change(&mut cluster, at, 1000 + step);
            cluster.propose(at, bytes);
            match cluster.roll(25) {
                0 => cluster.restart(at),
                1 => cluster.isolate(at),
                2..=4 => cluster.cut.clear(),
                _ => {}
            }
            cluster.tick();
        }
        cluster.loss_percent = 0;
        cluster.cut.clear();
        cluster.ticks(10 * ELECTION_TICKS);
        cluster.elect();
        cluster.ticks(10);
        cluster.assert_agree();
        let state = cluster.nodes[&1].state();
        assert!(state.services_are_sound(), "seed {seed}");
        assert!(state.nfs_version > ServiceVersion(0), "seed {seed}");
        let held = state.clone();
        (1..=3).for_each(|id| cluster.restart(id));
        cluster.elect();
        cluster.ticks(10);
        assert_eq!(*cluster.nodes[&1].state(), held, "what is read from the disks, seed {seed}");
        applied += cluster.trace.iter().filter(|line| line.ends_with("Applied")).count();
        refused += cluster.trace.iter().filter(|line| line.contains("Refused")).count();
        let of_format_3 = |disk: &Restored| disk.snapshot.as_ref().is_some_and(|kept| kept.data.first() == Some(&3));
        snapshots += cluster.disks.values().filter(|disk| of_format_3(disk)).count();
    }
    assert!(applied > 1000 && refused > 100 && snapshots > 10, "{applied} {refused} {snapshots}");
}
