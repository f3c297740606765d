//! One test for each state that `health` words.

use proto::{Boot, ConfigVersion, DiskId, Epoch, Incarnation, RequestId, VolumeId};
use replication::config::{AckPolicy, Member, Registration};

use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const W: NodeId = NodeId(3);
const NOON: u64 = 12 * 3600 * 1_000_000;

struct Case {
    config: VolumeConfig,
    names: BTreeMap<NodeId, String>,
    raft: RaftFacts,
    replicas: BTreeMap<NodeId, ReplicaFacts>,
}

impl Case {
    /// A healthy pair with box-a as primary.
    fn healthy() -> Self {
        let boot = Boot(7);
        let registration = |disk| Registration {
            disk_id: DiskId(disk),
            incarnation: Incarnation(1),
            boot,
            ready: true,
            ..Registration::default()
        };
        let member = |disk| Member { disk_id: DiskId(disk), boot, since: ConfigVersion(1) };
        let config = VolumeConfig {
            id: VolumeId(9),
            name: "vm".into(),
            size_bytes: 1 << 30,
            ack_policy: AckPolicy::Flush,
            feature_level: 1,
            phase: Phase::Active,
            preallocate: false,
            epoch: Epoch(1),
            version: ConfigVersion(3),
            primary: A,
            primary_incarnation: Incarnation(1),
            in_sync: [(A, member(1)), (B, member(2))].into(),
            replicas: [(A, registration(1)), (B, registration(2))].into(),
            loss_possible: None,
            unflushed_loss: None,
            force_plan: None,
            create_request: RequestId(0),
            nfs: None,
        };
        let open = |role: &str, serving| ReplicaFacts {
            role: role.into(),
            serving,
            store: StoreState::Open,
            ..ReplicaFacts::default()
        };
        Case {
            config,
            names: [(A, "box-a".into()), (B, "box-b".into()), (W, "witness".into())].into(),
            raft: RaftFacts { leader: W, leaderless_since: None, voters: vec![A, B, W], unreachable: vec![] },
            replicas: [(A, open("primary", true)), (B, open("secondary", false))].into(),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts { names: &self.names, raft: &self.raft, replicas: &self.replicas, now: NOON + 42_000_000 }
    }

    fn volume(&self) -> Health {
        volume_health(&self.config, &self.facts())
    }

    fn lose(&mut self, node: NodeId) {
        self.raft.unreachable.push(node);
        self.replicas.remove(&node);
    }
}

#[track_caller]
fn says(health: &Health, level: Level, parts: &[&str]) {
    assert_eq!(health.level, level, "{}", health.text);
    for part in parts {
        assert!(health.text.contains(part), "{part:?} is not in: {}", health.text);
    }
}

#[test]
fn a_whole_pair_is_healthy() {
    says(&Case::healthy().volume(), Level::Healthy, &["healthy: box-a serves, box-b in sync"]);
}

#[test]
fn a_lost_witness_degrades_and_says_whom_to_bring_back() {
    let mut case = Case::healthy();
    case.lose(W);
    case.raft.leader = A;
    says(&case.volume(), Level::Degraded, &["in sync", "witness does not answer", "bring witness back"]);
}

#[test]
fn a_frozen_volume_that_does_not_serve_is_down() {
    let mut case = Case::healthy();
    case.lose(B);
    case.lose(W);
    case.raft.leader = NodeId::NONE;
    case.raft.leaderless_since = Some(NOON + 184_000_000 - 180_000_000);
    case.replicas.get_mut(&A).unwrap().serving = false;
    let health = case.volume();
    says(&health, Level::Down, &["frozen", "box-b and witness unreachable", "since 12:00:04 UTC (38 s ago)"]);
    says(&health, Level::Down, &["safe action: bring back box-b or witness"]);
}

#[test]
fn a_frozen_volume_that_serves_is_degraded() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&B);
    case.lose(B);
    case.lose(W);
    case.raft.leader = NodeId::NONE;
    says(&case.volume(), Level::Degraded, &["frozen", "still serves"]);
}

#[test]
fn an_election_is_told_from_lost_nodes() {
    let mut case = Case::healthy();
    case.raft.leader = NodeId::NONE;
    case.replicas.get_mut(&A).unwrap().serving = false;
    says(&case.volume(), Level::Down, &["no Raft leader", "election"]);
}

#[test]
fn a_resync_shows_its_progress() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&B);
    case.replicas.get_mut(&A).unwrap().peers = vec![(B, "resyncing".into(), 57, 43)];
    says(&case.volume(), Level::Degraded, &["degraded: solo on box-a", "resync of box-b 43 %"]);
}

#[test]
fn a_lost_secondary_resyncs_by_itself_when_it_is_back() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&B);
    case.lose(B);
    says(&case.volume(), Level::Degraded, &["solo on box-a", "box-b does not answer", "resyncs by itself"]);
}

#[test]
fn a_secondary_that_just_died_is_seen_before_the_shrink() {
    let mut case = Case::healthy();
    case.lose(B);
    says(&case.volume(), Level::Degraded, &["box-b just stopped answering", "goes on alone"]);
}

#[test]
fn a_dead_primary_with_an_heir_needs_no_action() {
    let mut case = Case::healthy();
    case.lose(A);
    says(&case.volume(), Level::Down, &["failing over", "box-b takes over by itself", "none needed"]);
}

#[test]
fn a_dead_sole_member_offers_force_only_as_last_resort() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&B);
    case.lose(A);
    let health = case.volume();
    says(&health, Level::Down, &["only box-a holds every acknowledged write", "safe action: bring box-a back"]);
    says(&health, Level::Down, &["may lose acknowledged writes", "force-primary vm --to box-b"]);
}

#[test]
fn a_suspended_primary_says_what_it_waits_for() {
    let mut case = Case::healthy();
    let primary = case.replicas.get_mut(&A).unwrap();
    primary.serving = false;
    primary.waiting = Some(("the lease of box-b has run out".into(), NOON));
    says(&case.volume(), Level::Down, &["suspended", "since 12:00:00 UTC (42 s ago): the lease of box-b"]);
}

#[test]
fn failed_and_detached_disks_name_the_attach_command() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&B);
    case.replicas.get_mut(&B).unwrap().store = StoreState::Failed("I/O error (errno 5)".into());
    says(&case.volume(), Level::Degraded, &["disk of box-b failed: I/O error", "tandem volume attach vm --node box-b"]);
    case.replicas.get_mut(&B).unwrap().store = StoreState::Detached;
    says(&case.volume(), Level::Degraded, &["box-b is detached", "tandem volume attach vm --node box-b"]);
}

#[test]
fn a_primary_without_its_disk_serves_through_the_other_copy_and_says_so() {
    let mut case = Case::healthy();
    case.config.in_sync.remove(&A);
    case.replicas.get_mut(&A).unwrap().store = StoreState::Failed("I/O error (errno 5)".into());
    says(&case.volume(), Level::Degraded, &["solo on box-b, through which box-a serves", "the disk of box-a failed"]);
    says(&case.volume(), Level::Degraded, &["tandem volume attach vm --node box-a"]);
    case.replicas.get_mut(&A).unwrap().store = StoreState::Open;
    says(&case.volume(), Level::Degraded, &["the disk of box-a is back: box-b becomes primary by itself"]);
}

#[test]
fn until_the_failed_copy_has_left_the_set_the_primary_only_pauses() {
    let mut case = Case::healthy();
    let primary = case.replicas.get_mut(&A).unwrap();
    primary.serving = false;
    primary.store = StoreState::Failed("I/O error (errno 5)".into());
    says(&case.volume(), Level::Down, &["none needed: box-a goes on through the other copy within seconds"]);
}

#[test]
fn creation_shows_progress_and_failure() {
    let mut case = Case::healthy();
    case.config.phase = Phase::Creating;
    case.config.replicas.get_mut(&B).unwrap().ready = false;
    case.replicas.get_mut(&B).unwrap().store = StoreState::Creating { done: 30, total: 100 };
    says(&case.volume(), Level::Busy, &["creating: box-a ready, box-b 30 %"]);
    case.replicas.get_mut(&B).unwrap().store = StoreState::Failed("no space left".into());
    says(&case.volume(), Level::Down, &["not created", "no space left", "tandem volume delete vm"]);
}

#[test]
fn past_losses_stay_visible() {
    let mut case = Case::healthy();
    case.config.loss_possible = Some(Epoch(4));
    case.config.unflushed_loss = Some(Epoch(6));
    says(&case.volume(), Level::Healthy, &["forced at epoch 4", "lost power before epoch 6"]);
}

#[test]
fn a_cold_member_is_named() {
    let mut case = Case::healthy();
    case.config.replicas.get_mut(&B).unwrap().boot = Boot(8);
    says(&case.volume(), Level::Degraded, &["box-b restarted after a power loss"]);
}

#[test]
fn a_single_copy_is_degraded_by_configuration() {
    let mut case = Case::healthy();
    case.config.replicas.remove(&B);
    case.config.in_sync.remove(&B);
    says(&case.volume(), Level::Degraded, &["only one copy is configured", "add-replica vm"]);
}

#[test]
fn the_cluster_counts_its_voters() {
    let mut case = Case::healthy();
    says(&cluster_health(&case.facts()), Level::Healthy, &["leader witness"]);
    case.lose(W);
    case.raft.leader = A;
    says(&cluster_health(&case.facts()), Level::Degraded, &["no answer from witness", "one more loss freezes"]);
    case.raft.leader = NodeId::NONE;
    case.lose(B);
    says(&cluster_health(&case.facts()), Level::Down, &["frozen", "bring back witness or box-b"]);
    let mut young = Case::healthy();
    young.raft.voters = vec![A];
    says(&cluster_health(&young.facts()), Level::Degraded, &["1 of 3 voters", "cluster join"]);
}

#[test]
fn ages_and_percentages_read_well() {
    assert_eq!(age(0), "0 s ago");
    assert_eq!(age(150_000_000), "2 min ago");
    assert_eq!(age(3 * 86_400_000_000), "3 days ago");
    assert_eq!(percent(0, 0), 100);
    assert_eq!(percent(999, 1000), 99);
    assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
}
