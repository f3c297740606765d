//! Bytes of log entries and snapshots: read back whole, or refused.

use std::collections::BTreeSet;

use proto::{Boot, ClusterId, ConfigVersion, Epoch, NodeId, RequestId, ServiceVersion, VolumeId};

use super::nfs::{client, floating, rule, serve};
use super::{A, B, BOOT, C, RUN, V, WITNESS, World, create, disk, record};
use crate::config::apply::VOLUME_BYTES_MAX;
use crate::config::nfs::{Access, Client, ExportRule, Squash};
use crate::config::{
    AckPolicy, ApplyError, ClusterState, Command, CommandBody, NfsCommand, NodeCommand, NodeKind, Outcome,
    VolumeCommand,
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
    let of_nfs = [
        serve(&[floating("10.0.0.50", 24), floating("fd00::50", 64)]),
        NfsCommand::Stop,
        NfsCommand::SetExports { rules: every_kind_of_rule() },
    ];
    let volume = |command| CommandBody::Volume { volume: V, expect_version: ConfigVersion(11), command };
    let nfs = |command| CommandBody::Nfs { volume: V, expect_version: ServiceVersion(12), command };
    let bodies = of_nodes.into_iter().map(CommandBody::Node);
    let bodies = bodies.chain(of_volumes.into_iter().map(volume)).chain(of_nfs.into_iter().map(nfs));
    bodies.map(|body| Command { request: RequestId(77), body }).collect()
}

fn every_kind_of_rule() -> Vec<ExportRule> {
    vec![
        rule(Client::Any),
        ExportRule { access: Access::ReadWrite, squash: Squash::All, ..rule(client("10.0.0.0/8")) },
        ExportRule { squash: Squash::None, anonymous_uid: u32::MAX, anonymous_gid: 0, ..rule(client("fd00::/16")) },
    ]
}

/// Place of the command's tag in its bytes: format, request, kind of body, and for volumes the id and the version.
fn tag_at(command: &Command) -> usize {
    match command.body {
        CommandBody::Node(_) => 1 + 16 + 1,
        CommandBody::Volume { .. } | CommandBody::Nfs { .. } => 1 + 16 + 1 + 16 + 8,
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
    assert_eq!(tags.len(), 22, "6 commands about nodes, 13 about volumes, 3 about NFS services");
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
    seeds.push(world_with_services().state.to_snapshot());
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
            bytes[0] = 1 + (random() % 3) as u8;
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
    longer[0] = 4;
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

/// Two services, one of them with rules.
fn world_with_services() -> World {
    let mut world = World::with_two_volumes();
    world.nfs_ok(V, serve(&[floating("10.0.0.50", 24), floating("fd00::50", 64)]));
    world.nfs_ok(VolumeId(8), serve(&[]));
    world.nfs_ok(V, NfsCommand::SetExports { rules: every_kind_of_rule() });
    world
}

#[test]
fn a_snapshot_with_services_is_of_format_3_and_holds_them_all() {
    let world = world_with_services();
    let bytes = world.state.to_snapshot();
    assert_eq!(bytes[0], 3);
    assert_eq!(ClusterState::from_snapshot(&bytes), Ok(world.state.clone()));
    for length in 0..bytes.len() {
        assert_eq!(ClusterState::from_snapshot(&bytes[..length]), Err(ApplyError::Malformed), "cut at {length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(ClusterState::from_snapshot(&longer), Err(ApplyError::Malformed), "bytes left over");
}

#[test]
fn once_there_was_a_service_every_snapshot_says_what_version_comes_next() {
    let mut world = World::with_two_volumes();
    assert_eq!(world.state.to_snapshot()[0], 2, "none yet");
    world.nfs_ok(V, serve(&[]));
    world.nfs_ok(V, NfsCommand::Stop);
    let bytes = world.state.to_snapshot();
    assert_eq!(bytes[0], 3);
    let state = ClusterState::from_snapshot(&bytes).expect("a snapshot");
    assert_eq!((state.nfs_version, &state), (ServiceVersion(2), &world.state));
}

#[test]
fn services_that_no_command_could_have_made_are_refused_in_a_snapshot() {
    let refused = |spoil: &dyn Fn(&mut ClusterState)| {
        let mut state = world_with_services().state;
        spoil(&mut state);
        assert_eq!(ClusterState::from_snapshot(&state.to_snapshot()), Err(ApplyError::Malformed));
    };
    fn of(state: &mut ClusterState, volume: VolumeId) -> &mut crate::config::NfsService {
        state.volumes.get_mut(&volume).and_then(|volume| volume.nfs.as_mut()).expect("a service")
    }
    refused(&|state| of(state, V).port = 0);
    refused(&|state| of(state, V).version = ServiceVersion(4));
    refused(&|state| of(state, V).version = ServiceVersion(0));
    refused(&|state| of(state, V).since = ServiceVersion(0));
    refused(&|state| of(state, V).since = ServiceVersion(4));
    refused(&|state| of(state, VolumeId(8)).addresses = vec![floating("10.0.0.50", 24)]);
    refused(&|state| of(state, V).addresses.clear());
    refused(&|state| of(state, V).addresses[0].prefix_length = 0);
    // The last entry is the second volume's service; its id is 16 bytes before the versions.
    let mut bytes = world_with_services().state.to_snapshot();
    let id_at = bytes.len() - (16 + 8 + 8 + 4 + 2 + 4);
    assert_eq!(bytes[id_at], 8);
    bytes[id_at] = 9;
    assert_eq!(ClusterState::from_snapshot(&bytes), Err(ApplyError::Malformed), "a service of no volume");
}

#[test]
fn addresses_and_networks_that_have_another_form_are_damage() {
    let command = |rules| Command {
        request: RequestId(1),
        body: CommandBody::Nfs {
            volume: V,
            expect_version: ServiceVersion(1),
            command: NfsCommand::SetExports { rules },
        },
    };
    // Behind the tag: the number of rules, then the client: its kind, the family, the address, the prefix length.
    let kind_at = 1 + 16 + 1 + 16 + 8 + 1 + 4;
    let of_v4 = command(vec![rule(client("10.0.0.0/8"))]).encode();
    assert_eq!(of_v4[kind_at..kind_at + 7], [1, 4, 0, 0, 0, 10, 8]);
    let of_v6 = command(vec![rule(client("fd00::/8"))]).encode();
    let mapped: Vec<u8> = (0xffff_0a00_0000_u128).to_le_bytes().to_vec();
    let spoilt = |bytes: &[u8], at: usize, with: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[at..at + with.len()].copy_from_slice(with);
        Command::decode(&bytes)
    };
    assert_eq!(spoilt(&of_v4, kind_at + 6, &[33]), Err(ApplyError::Malformed), "a prefix longer than the address");
    assert_eq!(spoilt(&of_v4, kind_at + 6, &[6]), Err(ApplyError::Malformed), "bits beyond the prefix");
    assert_eq!(spoilt(&of_v4, kind_at + 1, &[5]), Err(ApplyError::Malformed), "no such family");
    assert_eq!(spoilt(&of_v4, kind_at, &[2]), Err(ApplyError::UnknownCommand), "a kind of client to come");
    assert_eq!(spoilt(&of_v6, kind_at + 2, &mapped), Err(ApplyError::Malformed), "a mapped address");
}
