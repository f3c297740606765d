//! Every command of the configuration state machine: each guard refuses, each effect shows.

mod bytes;
mod history;
mod nfs;

use proto::{Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, VolumeId};

use super::apply::{
    DELETED_MAX, NAME_BYTES_MAX, NODES_MAX, REPLICAS_MAX, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUMES_MAX,
    name_is_valid, size_is_valid,
};
use super::{
    AckPolicy, ClusterState, Command, CommandBody, ForcePlan, Member, NodeCommand, NodeKind, NodeRecord, Outcome,
    Phase, VolumeCommand, VolumeConfig,
};

const V: VolumeId = VolumeId(7);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);
const C: NodeId = NodeId(4);
/// The run and power-on under which every node begins.
const RUN: Incarnation = Incarnation(100);
const BOOT: Boot = Boot(5);

fn record(name: &str, kind: NodeKind) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        kind,
        peer_address: format!("{name}:1"),
        admin_address: format!("{name}:2"),
        nbd_address: format!("{name}:3"),
        incarnation: RUN,
        boot: BOOT,
        feature_levels: (1, 3),
        join_request: RequestId(0),
    }
}

fn disk(node: NodeId) -> DiskId {
    DiskId(u128::from(node.0) + 1000)
}

/// A cluster's state with ways to change it that say what they expect.
struct World {
    state: ClusterState,
    requests: u128,
}

impl World {
    /// Nodes 1, 2 and 4 store, 3 is a witness; there is no volume.
    fn without_volume() -> Self {
        let mut world = Self { state: ClusterState::default(), requests: 1000 };
        world.node_ok(NodeCommand::Init { cluster: ClusterId(9), node: record("a", NodeKind::Storage) });
        for (name, kind) in [("b", NodeKind::Storage), ("w", NodeKind::Witness), ("c", NodeKind::Storage)] {
            assert!(matches!(world.node(NodeCommand::Join { node: record(name, kind) }), Outcome::Joined(_)));
        }
        world
    }

    /// A volume on nodes 1 (primary) and 2, both in sync, in epoch 1.
    fn new() -> Self {
        let mut world = Self::without_volume();
        world.node_ok(create(V, "v", 1 << 20, &[A, B]));
        world.ready(A);
        world.ready(B);
        world
    }

    fn node(&mut self, command: NodeCommand) -> Outcome {
        self.requests += 1;
        self.state.apply(&Command { request: RequestId(self.requests), body: CommandBody::Node(command) })
    }

    fn node_ok(&mut self, command: NodeCommand) {
        assert_eq!(self.node(command), Outcome::Applied);
    }

    fn node_refused(&mut self, command: NodeCommand, why: &str) {
        let before = self.state.clone();
        assert_eq!(self.node(command), Outcome::Refused(Box::leak(why.to_owned().into_boxed_str())));
        assert_eq!(self.state, before, "a refused command changes nothing");
    }

    fn at(&mut self, expect_version: ConfigVersion, command: VolumeCommand) -> Outcome {
        self.requests += 1;
        let body = CommandBody::Volume { volume: V, expect_version, command };
        self.state.apply(&Command { request: RequestId(self.requests), body })
    }

    /// The command applies and moves the version by exactly one.
    fn ok(&mut self, command: VolumeCommand) {
        let version = self.config().version;
        assert_eq!(self.at(version, command.clone()), Outcome::Applied, "{command:?}");
        assert_eq!(self.config().version, version.next(), "{command:?}");
    }

    fn refused(&mut self, command: VolumeCommand, why: &str) {
        let before = self.state.clone();
        let outcome = self.at(self.config().version, command.clone());
        assert_eq!(outcome, Outcome::Refused(Box::leak(why.to_owned().into_boxed_str())), "{command:?}");
        assert_eq!(self.state, before, "a refused command changes nothing: {command:?}");
    }

    fn ready(&mut self, node: NodeId) {
        assert_eq!(
            self.at(ConfigVersion(0), VolumeCommand::ReplicaReady { node, disk_id: disk(node) }),
            Outcome::Applied
        );
    }

    /// The node's worker starts again, with a new run, in the power-on `boot`.
    fn restart(&mut self, node: NodeId, incarnation: u64, boot: Boot, clean: &[VolumeId]) {
        self.node_ok(NodeCommand::NodeUp {
            node,
            incarnation: Incarnation(incarnation),
            boot,
            clean: clean.to_vec(),
            feature_levels: (1, 3),
            kind: self.state.nodes[&node].kind,
            addresses: ["p".to_owned(), "a".to_owned(), "n".to_owned()],
        });
    }

    fn config(&self) -> &VolumeConfig {
        &self.state.volumes[&V]
    }

    fn members(&self) -> Vec<NodeId> {
        self.config().in_sync.keys().copied().collect()
    }

    fn shrink(&mut self, victims: &[NodeId]) {
        let epoch = self.config().epoch;
        self.ok(VolumeCommand::Shrink { by: (A, RUN), epoch, victims: victims.to_vec() });
    }
}

fn create(volume: VolumeId, name: &str, size_bytes: u64, nodes: &[NodeId]) -> NodeCommand {
    NodeCommand::CreateVolume {
        volume,
        name: name.to_owned(),
        size_bytes,
        ack_policy: AckPolicy::Flush,
        preallocate: false,
        replicas: nodes.iter().map(|node| (*node, disk(*node))).collect(),
    }
}

fn admit(node: NodeId) -> VolumeCommand {
    VolumeCommand::Admit { by: (A, RUN), epoch: Epoch(1), node, disk_id: disk(node), incarnation: RUN, boot: BOOT }
}

#[test]
fn a_cluster_is_founded_once_and_only_with_a_valid_name() {
    let mut world = World { state: ClusterState::default(), requests: 0 };
    let init = |name| NodeCommand::Init { cluster: ClusterId(9), node: record(name, NodeKind::Storage) };
    world.node_refused(init("-a"), "the node's name is not valid");
    world.node_refused(NodeCommand::Join { node: record("b", NodeKind::Storage) }, "there is no cluster yet");
    world.node_ok(init("a"));
    assert_eq!((world.state.cluster, world.state.next_node), (ClusterId(9), 2));
    assert_eq!(world.state.nodes[&A].name, "a");
    world.node_refused(init("a"), "the cluster exists already");
}

#[test]
fn a_node_joins_once_per_request_and_its_id_is_never_given_again() {
    let mut world = World::without_volume();
    let join = |request, name| Command {
        request: RequestId(request),
        body: CommandBody::Node(NodeCommand::Join { node: record(name, NodeKind::Storage) }),
    };
    assert_eq!(world.state.apply(&join(50, "d")), Outcome::Joined(NodeId(5)));
    assert_eq!(world.state.apply(&join(50, "d")), Outcome::Joined(NodeId(5)), "a retry");
    assert_eq!(world.state.nodes.len(), 5);
    world
        .node_refused(NodeCommand::Join { node: record("d", NodeKind::Storage) }, "a node of that name exists already");
    world.node_refused(NodeCommand::Join { node: record("a b", NodeKind::Storage) }, "the node's name is not valid");
    world.node_ok(NodeCommand::Leave { node: NodeId(5) });
    assert_eq!(world.state.apply(&join(51, "e")), Outcome::Joined(NodeId(6)), "ids are not reused");
    for number in world.state.nodes.len()..NODES_MAX {
        let outcome = world.node(NodeCommand::Join { node: record(&format!("n{number}"), NodeKind::Storage) });
        assert!(matches!(outcome, Outcome::Joined(_)));
    }
    world.node_refused(
        NodeCommand::Join { node: record("last", NodeKind::Storage) },
        "the cluster has 64 nodes already",
    );
}

#[test]
fn a_node_leaves_only_without_replicas() {
    let mut world = World::new();
    world.node_refused(NodeCommand::Leave { node: NodeId(77) }, "no such node");
    world.node_refused(NodeCommand::Leave { node: B }, "the node holds replicas; remove them first");
    world.node_ok(NodeCommand::Leave { node: WITNESS });
    assert!(!world.state.nodes.contains_key(&WITNESS));
}

#[test]
fn a_node_that_starts_registers_its_run_and_only_a_clean_stop_keeps_it_warm() {
    let mut world = World::new();
    let version = world.config().version;
    world.restart(B, 200, BOOT, &[]);
    let replica = world.config().replicas[&B];
    assert_eq!((replica.incarnation, replica.boot, replica.disk_id), (Incarnation(200), BOOT, disk(B)));
    assert!(!world.config().is_cold(B), "a new run in the same power-on is warm");
    world.restart(B, 201, Boot(6), &[]);
    assert!(world.config().is_cold(B) && !world.config().is_cold(A));
    world.restart(B, 202, Boot(7), &[V]);
    assert!(!world.config().is_cold(B), "stopped cleanly");
    assert_eq!(world.config().version, version, "a registration is no change of the configuration");
    let node = &world.state.nodes[&B];
    let addresses = [&node.peer_address, &node.admin_address, &node.nbd_address];
    assert_eq!(
        (node.incarnation, node.boot, addresses.map(String::as_str)),
        (Incarnation(202), Boot(7), ["p", "a", "n"])
    );
    let stranger = NodeCommand::NodeUp {
        node: NodeId(77),
        incarnation: RUN,
        boot: BOOT,
        clean: Vec::new(),
        feature_levels: (1, 1),
        kind: NodeKind::Storage,
        addresses: Default::default(),
    };
    world.node_refused(stranger, "no such node");
}

#[test]
fn a_clean_stop_outside_the_in_sync_set_makes_no_member() {
    let mut world = World::new();
    world.shrink(&[B]);
    world.restart(B, 200, Boot(6), &[V]);
    assert_eq!(world.members(), [A]);
}

#[test]
fn names_and_sizes_have_bounds() {
    for good in ["a", "A.b_c-9", "9", "_x", &"n".repeat(NAME_BYTES_MAX)] {
        assert!(name_is_valid(good), "{good}");
    }
    for bad in ["", ".a", "-a", "a b", "a/b", "ä", "a\n", "a\0", &"n".repeat(NAME_BYTES_MAX + 1)] {
        assert!(!name_is_valid(bad), "{bad:?}");
    }
    for good in [VOLUME_BYTES_MIN, VOLUME_BYTES_MIN + 4096, VOLUME_BYTES_MAX] {
        assert!(size_is_valid(good), "{good}");
    }
    for bad in [0, 4096, VOLUME_BYTES_MIN - 4096, VOLUME_BYTES_MIN + 512, VOLUME_BYTES_MAX + 4096, u64::MAX] {
        assert!(!size_is_valid(bad), "{bad}");
    }
}

#[test]
fn a_volume_is_created_only_within_every_bound() {
    let mut world = World::new();
    let id = VolumeId(8);
    world.node_refused(create(V, "w", 1 << 20, &[A]), "the volume id is taken");
    world.node_refused(create(id, ".w", 1 << 20, &[A]), "the volume's name is not valid");
    world.node_refused(create(id, "v", 1 << 20, &[A]), "a volume of that name exists already");
    world.node_refused(create(id, "w", 4096, &[A]), "the size is not 1 MiB to 16 TiB in whole 4 KiB blocks");
    world.node_refused(create(id, "w", 1 << 20, &[]), "a volume has 1 to 4 replicas");
    world.node_refused(create(id, "w", 1 << 20, &[A; REPLICAS_MAX + 1]), "a volume has 1 to 4 replicas");
    world.node_refused(create(id, "w", 1 << 20, &[A, A]), "a node holds one replica of a volume at most");
    world.node_refused(create(id, "w", 1 << 20, &[A, NodeId(77)]), "no such node");
    world.node_refused(create(id, "w", 1 << 20, &[A, WITNESS]), "a witness stores nothing");
    for number in 1..VOLUMES_MAX {
        world.node_ok(create(VolumeId(1000 + number as u128), &format!("v{number}"), 1 << 20, &[A]));
    }
    world.node_refused(create(id, "w", 1 << 20, &[A]), "the cluster has 1024 volumes already");
}

#[test]
fn a_volume_serves_nobody_until_every_store_stands() {
    let mut world = World::without_volume();
    let request = RequestId(42);
    let creation = Command { request, body: CommandBody::Node(create(V, "v", 1 << 20, &[A, B])) };
    assert_eq!(world.state.apply(&creation), Outcome::Applied);
    let made = world.config().clone();
    assert_eq!((made.phase, made.epoch, made.version, made.primary), (Phase::Creating, Epoch(0), ConfigVersion(1), A));
    assert!(made.in_sync.is_empty() && made.create_request == request && made.feature_level == 1);
    assert_eq!(world.state.apply(&creation), Outcome::Applied, "a retry");
    assert_eq!(*world.config(), made);
    world.refused(
        VolumeCommand::TakeOver { by: (B, RUN), cold_ok: true, failed: false },
        "the volume is still being created",
    );
    let ready = |node, disk_id| VolumeCommand::ReplicaReady { node, disk_id };
    world.refused(ready(C, disk(C)), "no such replica");
    world.refused(ready(A, disk(B)), "the copy is not the registered one");
    world.ready(A);
    assert_eq!((world.config().version, world.config().phase), (ConfigVersion(2), Phase::Creating));
    world.ready(A);
    assert_eq!(world.config().version, ConfigVersion(2), "said twice, counted once");
    world.restart(A, 200, BOOT, &[]);
    world.ready(B);
    let active = world.config();
    assert_eq!((active.phase, active.epoch, active.version), (Phase::Active, Epoch(1), ConfigVersion(3)));
    assert_eq!((active.primary, active.primary_incarnation), (A, Incarnation(200)), "the run of now");
    assert_eq!(active.in_sync[&B], Member { disk_id: disk(B), boot: BOOT, since: ConfigVersion(3) });
    assert_eq!(world.members(), [A, B]);
}

#[test]
fn a_deleted_volume_is_remembered_and_its_id_never_used_again() {
    let mut world = World::new();
    world.node_refused(NodeCommand::DeleteVolume { volume: VolumeId(8) }, "no such volume");
    world.node_ok(NodeCommand::DeleteVolume { volume: V });
    assert!(world.state.volumes.is_empty() && world.state.deleted.contains(&V));
    world.node_ok(NodeCommand::DeleteVolume { volume: V });
    world.node_refused(create(V, "v", 1 << 20, &[A]), "the volume id is taken");
    assert_eq!(
        world.at(ConfigVersion(1), VolumeCommand::Renew { by: (A, RUN), epoch: Epoch(1) }),
        Outcome::Refused("no such volume")
    );
    world.state.deleted.extend((0..DELETED_MAX as u128).map(|number| VolumeId(1_000_000 + number)));
    world.node_ok(create(VolumeId(8), "w", 1 << 20, &[A]));
    world.node_refused(
        NodeCommand::DeleteVolume { volume: VolumeId(8) },
        "too many volumes were deleted in this cluster's life",
    );
}

#[test]
fn every_change_of_a_volume_is_guarded_by_its_version() {
    let by = (A, RUN);
    let epoch = Epoch(1);
    let commands = [
        VolumeCommand::Shrink { by, epoch, victims: vec![B] },
        admit(B),
        VolumeCommand::TakeOver { by: (B, RUN), cold_ok: false, failed: false },
        VolumeCommand::Resume { by, disk_id: disk(A), cold_ok: false, failed: false },
        VolumeCommand::Handoff { by, epoch, to: B },
        VolumeCommand::Renew { by, epoch },
        VolumeCommand::Resign { by: (B, RUN) },
        VolumeCommand::AddReplica { node: C, disk_id: disk(C) },
        VolumeCommand::RemoveReplica { node: B },
        VolumeCommand::PrepareForce { target: B, attested: by, token: 1 },
        VolumeCommand::ForcePrimary { token: 1 },
        VolumeCommand::SetFeatureLevel { level: 2 },
    ];
    let mut world = World::new();
    let before = world.state.clone();
    let version = world.config().version;
    for command in commands {
        for other in [ConfigVersion(version.0 - 1), version.next(), ConfigVersion(0)] {
            let outcome = world.at(other, command.clone());
            assert_eq!(outcome, Outcome::Refused("the configuration has moved on"), "{command:?}");
        }
    }
    assert_eq!(world.state, before);
}

#[test]
fn commands_of_a_primary_are_refused_to_all_others_and_to_its_former_runs_and_epochs() {
    let by_of = |by: (NodeId, Incarnation), epoch: Epoch| {
        [
            VolumeCommand::Shrink { by, epoch, victims: vec![B] },
            VolumeCommand::Admit { by, epoch, node: B, disk_id: disk(B), incarnation: RUN, boot: BOOT },
            VolumeCommand::Handoff { by, epoch, to: B },
            VolumeCommand::Renew { by, epoch },
        ]
    };
    let mut world = World::new();
    for command in by_of((B, RUN), Epoch(1)).into_iter().chain(by_of((A, Incarnation(99)), Epoch(1))) {
        world.refused(command, "only the primary may do that");
    }
    for command in by_of((A, RUN), Epoch(0)).into_iter().chain(by_of((A, RUN), Epoch(2))) {
        world.refused(command, "the epoch has ended");
    }
    // A restart alone does not end the run that won the epoch: it may still be alive.
    world.restart(A, 200, BOOT, &[]);
    world.refused(VolumeCommand::Renew { by: (A, Incarnation(200)), epoch: Epoch(1) }, "only the primary may do that");
    world.ok(VolumeCommand::Renew { by: (A, RUN), epoch: Epoch(1) });
}

#[test]
fn renew_moves_the_version_and_nothing_else() {
    let mut world = World::new();
    let before = world.config().clone();
    world.ok(VolumeCommand::Renew { by: (A, RUN), epoch: Epoch(1) });
    assert_eq!(*world.config(), VolumeConfig { version: before.version.next(), ..before });
}

#[test]
fn shrink_drops_members_and_never_the_last() {
    let mut world = World::new();
    let (by, epoch) = ((A, RUN), Epoch(1));
    world.refused(VolumeCommand::Shrink { by, epoch, victims: vec![C] }, "a victim is not in sync");
    for victims in [vec![], vec![A, B]] {
        world.refused(VolumeCommand::Shrink { by, epoch, victims }, "one member at least must stay");
    }
    world.ok(VolumeCommand::Shrink { by, epoch, victims: vec![A] });
    assert_eq!((world.members(), world.config().primary, world.config().epoch), (vec![B], A, epoch), "A is diskless");
    world.refused(VolumeCommand::Shrink { by, epoch, victims: vec![B] }, "one member at least must stay");
}

#[test]
fn admit_wants_the_very_run_copy_and_power_on_that_was_resynced() {
    let mut world = World::new();
    world.refused(admit(B), "the replica is in sync already");
    world.refused(admit(C), "no such replica");
    world.shrink(&[B]);
    let restarted = "the replica has restarted or was replaced";
    let with = |disk_id, incarnation, boot| VolumeCommand::Admit {
        by: (A, RUN),
        epoch: Epoch(1),
        node: B,
        disk_id,
        incarnation,
        boot,
    };
    world.refused(with(disk(C), RUN, BOOT), restarted);
    world.refused(with(disk(B), Incarnation(99), BOOT), restarted);
    world.refused(with(disk(B), RUN, Boot(99)), restarted);
    world.restart(B, 200, Boot(6), &[]);
    world.refused(admit(B), restarted);
    world.ok(with(disk(B), Incarnation(200), Boot(6)));
    let since = world.config().version;
    assert_eq!(world.config().in_sync[&B], Member { disk_id: disk(B), boot: Boot(6), since });
    assert!(!world.config().is_cold(B));
}

#[test]
fn a_member_takes_over_alone_under_a_new_epoch() {
    let mut world = World::new();
    world
        .refused(VolumeCommand::TakeOver { by: (A, RUN), cold_ok: true, failed: false }, "the node is primary already");
    world.refused(VolumeCommand::TakeOver { by: (C, RUN), cold_ok: true, failed: false }, "the node is not in sync");
    let old = VolumeCommand::TakeOver { by: (B, Incarnation(99)), cold_ok: true, failed: false };
    world.refused(old, "the node has restarted since");
    world.ok(VolumeCommand::PrepareForce { target: B, attested: (A, RUN), token: 1 });
    world.ok(VolumeCommand::TakeOver { by: (B, RUN), cold_ok: false, failed: false });
    let config = world.config();
    assert_eq!((config.epoch, config.primary, config.primary_incarnation), (Epoch(2), B, RUN));
    assert_eq!((config.unflushed_loss, config.loss_possible, config.force_plan), (None, None, None));
    assert_eq!(world.members(), [B]);
}

#[test]
fn a_dropped_member_never_takes_over() {
    let mut world = World::new();
    world.shrink(&[B]);
    world.refused(VolumeCommand::TakeOver { by: (B, RUN), cold_ok: true, failed: false }, "the node is not in sync");
}

#[test]
fn a_cold_member_takes_over_only_with_leave_and_that_is_recorded() {
    let mut world = World::new();
    world.restart(B, 200, Boot(6), &[]);
    let take = |cold_ok| VolumeCommand::TakeOver { by: (B, Incarnation(200)), cold_ok, failed: false };
    world.refused(take(false), "the copy lost power without a clean stop and may miss unflushed writes");
    world.ok(take(true));
    assert_eq!(world.config().unflushed_loss, Some(Epoch(2)));
    assert!(!world.config().is_cold(B), "it is the standard now");
}

#[test]
fn a_failed_copy_takes_over_only_as_the_last_one_and_on_record() {
    let mut world = World::new();
    let take = VolumeCommand::TakeOver { by: (B, RUN), cold_ok: true, failed: true };
    world.refused(take.clone(), "the copy's disk had failed, and others are in sync");
    world.shrink(&[A]);
    world.ok(take);
    let config = world.config();
    assert_eq!((config.primary, config.unflushed_loss, config.loss_possible), (B, Some(Epoch(2)), None));
}

#[test]
fn the_recorded_primary_resumes_with_its_copy_after_a_restart() {
    let mut world = World::new();
    world.restart(A, 200, BOOT, &[]);
    let resume = |node, incarnation, disk_id| VolumeCommand::Resume {
        by: (node, Incarnation(incarnation)),
        disk_id,
        cold_ok: false,
        failed: false,
    };
    world.refused(resume(B, 100, disk(B)), "the node is not the recorded primary");
    world.refused(resume(A, 200, disk(B)), "the copy is not the registered one");
    world.refused(resume(A, 100, disk(A)), "the node has restarted since");
    world.ok(resume(A, 200, disk(A)));
    let config = world.config();
    assert_eq!((config.epoch, config.primary, config.primary_incarnation), (Epoch(2), A, Incarnation(200)));
    assert_eq!((world.members(), world.config().unflushed_loss), (vec![A], None));
}

#[test]
fn a_primary_that_was_dropped_never_resumes() {
    let mut world = World::new();
    world.shrink(&[A]);
    let resume = VolumeCommand::Resume { by: (A, RUN), disk_id: disk(A), cold_ok: true, failed: false };
    world.refused(resume, "the node is not in sync");
}

#[test]
fn a_cold_or_failed_copy_resumes_only_on_record() {
    let mut world = World::new();
    world.restart(A, 200, Boot(6), &[]);
    let resume =
        |cold_ok, failed| VolumeCommand::Resume { by: (A, Incarnation(200)), disk_id: disk(A), cold_ok, failed };
    world.refused(resume(false, false), "the copy lost power without a clean stop and may miss unflushed writes");
    world.refused(resume(true, true), "the copy's disk had failed, and others are in sync");
    world.ok(resume(true, false));
    assert_eq!(world.config().unflushed_loss, Some(Epoch(2)));
    world.ok(resume(false, true));
    assert_eq!((world.config().unflushed_loss, world.config().epoch), (Some(Epoch(3)), Epoch(3)));
}

#[test]
fn handoff_moves_the_role_and_keeps_the_members() {
    let mut world = World::new();
    let hand_off = |to| VolumeCommand::Handoff { by: (A, RUN), epoch: Epoch(1), to };
    world.refused(hand_off(A), "the node is primary already");
    world.refused(hand_off(C), "the node is not in sync");
    world.restart(B, 200, Boot(6), &[]);
    world.refused(hand_off(B), "the node's copy lost power without a clean stop");
    world.restart(B, 201, Boot(7), &[V]);
    world.ok(VolumeCommand::PrepareForce { target: B, attested: (A, RUN), token: 1 });
    world.ok(hand_off(B));
    let config = world.config();
    assert_eq!((config.epoch, config.primary, config.primary_incarnation), (Epoch(2), B, Incarnation(201)));
    assert_eq!((config.force_plan, world.members()), (None, vec![A, B]));
}

#[test]
fn a_member_resigns_in_its_present_run_and_never_the_last() {
    let mut world = World::new();
    world.refused(VolumeCommand::Resign { by: (B, Incarnation(99)) }, "the node has restarted since");
    world.refused(VolumeCommand::Resign { by: (C, RUN) }, "the node has restarted since");
    world.ok(VolumeCommand::Resign { by: (B, RUN) });
    assert_eq!((world.members(), world.config().epoch), (vec![A], Epoch(1)));
    world.refused(VolumeCommand::Resign { by: (B, RUN) }, "the node is not in sync");
    world.refused(VolumeCommand::Resign { by: (A, RUN) }, "one member at least must stay");
}

#[test]
fn replicas_are_added_empty_and_removed_only_when_out_of_use() {
    let mut world = World::new();
    let add = |node, number| VolumeCommand::AddReplica { node, disk_id: DiskId(number) };
    world.refused(add(B, 1), "the node holds a replica already");
    world.refused(add(WITNESS, 1), "a witness stores nothing");
    world.refused(add(NodeId(77), 1), "no such node");
    world.ok(add(C, 44));
    let added = world.config().replicas[&C];
    assert_eq!((added.disk_id, added.ready, added.incarnation), (DiskId(44), false, RUN));
    assert_eq!(world.members(), [A, B]);
    for name in ["d", "e"] {
        world.node(NodeCommand::Join { node: record(name, NodeKind::Storage) });
    }
    world.ok(add(NodeId(5), 45));
    world.refused(add(NodeId(6), 46), "a volume has 4 replicas at most");
    let remove = |node| VolumeCommand::RemoveReplica { node };
    world.refused(remove(NodeId(6)), "no such replica");
    world.refused(remove(A), "the node is primary; switch over first");
    world.refused(remove(B), "the replica is in sync; detach it first");
    world.ok(remove(C));
    assert!(!world.config().replicas.contains_key(&C));
    world.shrink(&[A]);
    world.refused(remove(A), "the node is primary; switch over first");
}

#[test]
fn forcing_takes_two_steps_and_an_attestation_of_the_newest_run() {
    let mut world = World::new();
    world.shrink(&[B]);
    let prepare = |target, attested, token| VolumeCommand::PrepareForce { target, attested, token };
    let not_attested = "the node attested to be off is not the primary, or has started again since";
    world.refused(VolumeCommand::ForcePrimary { token: 1 }, "no force-primary was prepared");
    world.refused(prepare(A, (A, RUN), 1), "the node is primary already");
    world.refused(prepare(C, (A, RUN), 1), "the node holds no replica");
    world.refused(prepare(B, (C, RUN), 1), not_attested);
    world.refused(prepare(B, (A, Incarnation(99)), 1), not_attested);
    world.ok(VolumeCommand::AddReplica { node: C, disk_id: disk(C) });
    world.refused(prepare(C, (A, RUN), 1), "the node holds no replica");
    world.ok(prepare(B, (A, RUN), 1));
    assert_eq!(world.config().force_plan, Some(ForcePlan { target: B, attested: (A, RUN), token: 1 }));
    world.ok(prepare(B, (A, RUN), 2));
    world.refused(VolumeCommand::ForcePrimary { token: 1 }, "the token is not that of the prepared force-primary");
    world.restart(A, 200, BOOT, &[]);
    world.refused(VolumeCommand::ForcePrimary { token: 2 }, not_attested);
    world.ok(prepare(B, (A, Incarnation(200)), 3));
    world.ok(VolumeCommand::ForcePrimary { token: 3 });
    let config = world.config();
    assert_eq!((config.epoch, config.primary, config.primary_incarnation), (Epoch(2), B, RUN));
    assert_eq!((config.loss_possible, config.force_plan, world.members()), (Some(Epoch(2)), None, vec![B]));
    world.refused(VolumeCommand::ForcePrimary { token: 3 }, "no force-primary was prepared");
}

#[test]
fn the_feature_level_rises_as_far_as_every_replica_supports_it() {
    let mut world = World::new();
    world.refused(VolumeCommand::SetFeatureLevel { level: 1 }, "the feature level only rises");
    world.refused(VolumeCommand::SetFeatureLevel { level: 4 }, "a replica's software does not support that level");
    world.ok(VolumeCommand::SetFeatureLevel { level: 3 });
    assert_eq!(world.config().feature_level, 3);
    world.refused(VolumeCommand::SetFeatureLevel { level: 2 }, "the feature level only rises");
}
