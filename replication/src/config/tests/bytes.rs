//! Bytes of log entries and snapshots: read back whole, or refused.

use std::collections::BTreeSet;

use proto::{Boot, ClusterId, ConfigVersion, Epoch, NodeId, RequestId, VolumeId};

use super::{A, B, BOOT, C, RUN, V, WITNESS, World, create, disk, record};
use crate::config::apply::VOLUME_BYTES_MAX;
use crate::config::{
    AckPolicy, ApplyError, ClusterState, Command, CommandBody, NodeCommand, NodeKind, Outcome, VolumeCommand,
};

/// One of every command.
fn every_command() -> Vec<Command> {
    let by = (A, RUN);
    let epoch = Epoch(3);
    let node = record("n", NodeKind::Witness);
    let of_nodes = [
        NodeCommand::Init { cluster: ClusterId(u128::MAX), node: node.clone() },
        NodeCommand::Join { node },
        NodeCommand::Leave { node: B },
        NodeCommand::NodeUp {
            node: B,
            incarnation: RUN,
            boot: BOOT,
            clean: vec![V, VolumeId(8)],
            feature_levels: (1, 2),
            kind: NodeKind::Storage,
            addresses: ["p:1".to_owned(), String::new(), "ä".to_owned()],
        },
        create(V, "v", 1 << 30, &[A, B]),
        NodeCommand::DeleteVolume { volume: V },
    ];
    let of_volumes = [
        VolumeCommand::ReplicaReady { node: A, disk_id: disk(A) },
        VolumeCommand::Shrink { by, epoch, victims: vec![A, B] },
        VolumeCommand::Admit { by, epoch, node: B, disk_id: disk(B), incarnation: RUN, boot: BOOT },
        VolumeCommand::TakeOver { by, cold_ok: false, failed: true },
        VolumeCommand::Resume { by, disk_id: disk(A), cold_ok: false, failed: true },
        VolumeCommand::Handoff { by, epoch, to: B },
        VolumeCommand::Renew { by, epoch },
        VolumeCommand::AddReplica { node: C, disk_id: disk(C) },
        VolumeCommand::RemoveReplica { node: C },
        VolumeCommand::PrepareForce { target: B, attested: by, token: u64::MAX },
        VolumeCommand::ForcePrimary { token: 5 },
        VolumeCommand::SetFeatureLevel { level: 9 },
        VolumeCommand::Resign { by },
    ];
    let volume = |command| CommandBody::Volume { volume: V, expect_version: ConfigVersion(11), command };
    let bodies = of_nodes.into_iter().map(CommandBody::Node).chain(of_volumes.into_iter().map(volume));
    bodies.map(|body| Command { request: RequestId(77), body }).collect()
}

/// Place of the command's tag in its bytes: format, request, kind of body, and for volumes the id and the version.
fn tag_at(command: &Command) -> usize {
    match command.body {
        CommandBody::Node(_) => 1 + 16 + 1,
        CommandBody::Volume { .. } => 1 + 16 + 1 + 16 + 8,
    }
}

#[test]
fn every_command_is_read_back_from_its_bytes() {
    let mut tags = BTreeSet::new();
    for command in every_command() {
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes), Ok(command.clone()));
        assert!(tags.insert((bytes[17], bytes[tag_at(&command)])), "a tag of its own: {command:?}");
        for length in 0..bytes.len() {
            assert_eq!(Command::decode(&bytes[..length]), Err(ApplyError::Malformed), "cut at {length}: {command:?}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Command::decode(&longer), Err(ApplyError::Malformed), "bytes left over: {command:?}");
    }
    assert_eq!(tags.len(), 19, "6 commands about nodes, 13 about volumes");
}

#[test]
fn damaged_and_random_bytes_never_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut seeds: Vec<Vec<u8>> = every_command().iter().map(Command::encode).collect();
    seeds.push(World::new().state.to_snapshot());
    seeds.push(world_of_old_software().state.to_snapshot());
    for round in 0..20_000 {
        let mut bytes = match round % 4 {
            0 => (0..random() % 200).map(|_| random() as u8).collect(),
            _ => seeds[random() as usize % seeds.len()].clone(),
        };
        for _ in 0..1 + random() % 3 {
            if !bytes.is_empty() {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
        }
        if round % 2 == 0 && !bytes.is_empty() {
            bytes[0] = 1 + (random() % 2) as u8;
        }
        let _ = Command::decode(&bytes);
        let _ = ClusterState::from_snapshot(&bytes);
        let _ = World::new().state.apply_bytes(&bytes);
    }
}

#[test]
fn an_unknown_tag_or_format_halts_and_nothing_is_applied_afterwards() {
    for command in every_command() {
        let mut world = World::new();
        let mut bytes = command.encode();
        bytes[tag_at(&command)] = 200;
        assert_eq!(world.state.apply_bytes(&bytes), Err(ApplyError::UnknownCommand), "{command:?}");
        assert!(world.state.halted);
    }
    let renew = |version| Command {
        request: RequestId(1),
        body: CommandBody::Volume {
            volume: V,
            expect_version: version,
            command: VolumeCommand::Renew { by: (A, RUN), epoch: Epoch(1) },
        },
    };
    let mut world = World::new();
    let version = world.config().version;
    let mut newer = renew(version).encode();
    newer[0] = 2;
    assert_eq!(world.state.apply_bytes(&newer), Err(ApplyError::UnknownCommand));
    assert_eq!(world.state.apply_bytes(&renew(version).encode()), Err(ApplyError::UnknownCommand), "never skipped");
    assert_eq!(world.state.apply_bytes(&[]), Err(ApplyError::UnknownCommand));
    assert_eq!(world.config().version, version);
    let restored = ClusterState::from_snapshot(&world.state.to_snapshot()).expect("a snapshot");
    assert!(restored.halted, "a restart from a snapshot does not go on either");
}

#[test]
fn a_damaged_entry_halts_as_well() {
    let mut world = World::new();
    assert_eq!(world.state.apply_bytes(&[1, 2, 3]), Err(ApplyError::Malformed));
    assert!(world.state.halted);
}

#[test]
fn rafts_empty_entries_and_good_ones_apply() {
    let mut world = World::new();
    let before = world.state.clone();
    assert_eq!(world.state.apply_bytes(&[]), Ok(Outcome::Applied));
    assert_eq!(world.state, before);
    let join = Command {
        request: RequestId(5),
        body: CommandBody::Node(NodeCommand::Join { node: record("d", NodeKind::Storage) }),
    };
    assert_eq!(world.state.apply_bytes(&join.encode()), Ok(Outcome::Joined(NodeId(5))));
}

#[test]
fn a_snapshot_holds_the_whole_state() {
    let mut world = World::new();
    world.ok(VolumeCommand::PrepareForce { target: B, attested: (A, RUN), token: 1 });
    world.restart(B, 200, Boot(6), &[]);
    world.node_ok(create(VolumeId(8), "w", 1 << 20, &[C]));
    world.node_ok(NodeCommand::DeleteVolume { volume: VolumeId(8) });
    world.node_ok(create(VolumeId(9), "x", VOLUME_BYTES_MAX, &[C]));
    let forced = world.state.volumes.get_mut(&V).expect("the volume");
    (forced.loss_possible, forced.unflushed_loss) = (Some(Epoch(4)), Some(Epoch(5)));
    (forced.ack_policy, forced.preallocate) = (AckPolicy::Durable, true);
    world.shrink(&[B]);
    world.ok(VolumeCommand::AddReplica { node: C, disk_id: disk(C) });
    let bytes = world.state.to_snapshot();
    assert_eq!(bytes[0], 2);
    assert_eq!(ClusterState::from_snapshot(&bytes), Ok(world.state.clone()));
    for length in 0..bytes.len() {
        assert_eq!(ClusterState::from_snapshot(&bytes[..length]), Err(ApplyError::Malformed), "cut at {length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(ClusterState::from_snapshot(&longer), Err(ApplyError::Malformed), "bytes left over");
    longer[0] = 3;
    assert_eq!(ClusterState::from_snapshot(&longer), Err(ApplyError::UnknownCommand), "a format to come");
    let empty = ClusterState::default();
    assert_eq!(ClusterState::from_snapshot(&empty.to_snapshot()), Ok(empty));
}

/// A volume with a member and a copy that was dropped, on nodes whose software knows feature level 1 only.
fn world_of_old_software() -> World {
    let mut world = World::new();
    world.shrink(&[B]);
    for record in world.state.nodes.values_mut() {
        record.feature_levels = (1, 1);
    }
    world
}

/// The state as format 1 holds it.
fn without_history(mut state: ClusterState) -> ClusterState {
    for volume in state.volumes.values_mut() {
        for replica in volume.replicas.values_mut() {
            (replica.registered_at, replica.member_until) = (ConfigVersion(0), ConfigVersion(0));
            replica.member_since = ConfigVersion(0);
        }
        for member in volume.in_sync.values_mut() {
            member.since = ConfigVersion(0);
        }
    }
    state
}

/// The snapshot of `world_of_old_software` as the release before format 2 wrote it.
const SNAPSHOT_OF_FORMAT_1: &str = "
    010900000000000000000000000000000004000000010000000000000001000000610003000000613a3103000000613a32030000
    00613a33640000000000000005000000000000000000000000000000010000000100000000000000000000000000000000000000
    020000000000000001000000620003000000623a3103000000623a3203000000623a336400000000000000050000000000000000
    000000000000000100000001000000ea030000000000000000000000000000030000000000000001000000770103000000773a31
    03000000773a3203000000773a336400000000000000050000000000000000000000000000000100000001000000eb0300000000
    00000000000000000000040000000000000001000000630003000000633a3103000000633a3203000000633a3364000000000000
    00050000000000000000000000000000000100000001000000ec0300000000000000000000000000000500000000000000010000
    00070000000000000000000000000000000700000000000000000000000000000001000000760000100000000000000100000001
    000100000000000000040000000000000001000000000000006400000000000000010000000100000000000000e9030000000000
    00000000000000000005000000000000000000000000000000020000000100000000000000e90300000000000000000000000000
    00640000000000000005000000000000000000000000000000010200000000000000ea0300000000000000000000000000006400
    0000000000000500000000000000000000000000000001000000ed0300000000000000000000000000000000000000
";

#[test]
fn a_snapshot_of_the_former_release_is_read_and_written_as_it_was() {
    let digits: Vec<u32> = SNAPSHOT_OF_FORMAT_1.chars().filter_map(|c| c.to_digit(16)).collect();
    let old: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    let state = world_of_old_software().state;
    assert_eq!(ClusterState::from_snapshot(&old), Ok(without_history(state.clone())));
    assert_eq!(state.to_snapshot(), old);
}

#[test]
fn snapshots_keep_the_old_format_while_any_node_reads_no_other() {
    let mut world = world_of_old_software();
    for (node, format) in [(A, 1), (B, 1), (WITNESS, 1), (C, 2)] {
        world.state.nodes.get_mut(&node).expect("a node").feature_levels = (1, 2);
        let bytes = world.state.to_snapshot();
        assert_eq!(bytes[0], format, "after node {node}");
        let kept = if format == 1 { without_history(world.state.clone()) } else { world.state.clone() };
        assert_ne!(without_history(world.state.clone()), world.state, "there is something to lose");
        assert_eq!(ClusterState::from_snapshot(&bytes), Ok(kept));
    }
    // A node that goes back to old software, or joins with it, must be able to read what comes next.
    world.state.nodes.get_mut(&WITNESS).expect("a node").feature_levels = (1, 1);
    assert_eq!(world.state.to_snapshot()[0], 1);
}

#[test]
fn a_history_of_other_volumes_nodes_or_members_is_refused() {
    let mut world = World::new();
    world.shrink(&[B]);
    let clean = world.state.to_snapshot();
    let mut old = world_of_old_software().state;
    old.nodes.clone_from(&world.state.nodes);
    // The same state without its first node's new level is as long as the part that both formats share.
    old.nodes.get_mut(&A).expect("a node").feature_levels = (1, 1);
    let history_at = old.to_snapshot().len();
    // Number of volumes, the volume's id, number of replicas, the first replica's node.
    for at in [0, 4, 20, 24] {
        let mut bytes = clean.clone();
        bytes[history_at + at] ^= 8;
        assert_eq!(ClusterState::from_snapshot(&bytes), Err(ApplyError::Malformed), "at {at}");
    }
    // The last entry is the member's: its node, then its version.
    let mut bytes = clean.clone();
    let member_at = bytes.len() - 16;
    bytes[member_at] ^= 8;
    assert_eq!(ClusterState::from_snapshot(&bytes), Err(ApplyError::Malformed));
}
