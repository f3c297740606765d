//! A small deterministic cluster: messages are shuffled, lost and repeated by a seeded generator; disks keep what
//! `Persist` asked for, and a crash forgets a write that was not finished.

use std::collections::{BTreeMap, BTreeSet};

use proto::{ClusterId, NodeId, RequestId};
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType, Snapshot};

use super::*;
use crate::config::{Command, CommandBody, NodeCommand, NodeKind, NodeRecord};

mod joint;
mod services;

const ELECTION_TICKS: usize = 10;

fn config(node: u64, seed: u64) -> ConsensusConfig {
    ConsensusConfig {
        node: NodeId(node),
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        seed,
        log_entries_max: 50,
    }
}

fn record(name: &str, kind: NodeKind) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        kind,
        peer_address: format!("{name}:1"),
        admin_address: format!("{name}:2"),
        nbd_address: if kind == NodeKind::Storage { format!("{name}:3") } else { String::new() },
        feature_levels: (1, 1),
        ..NodeRecord::default()
    }
}

fn founded() -> ClusterState {
    let mut state = ClusterState::default();
    let init = NodeCommand::Init { cluster: ClusterId(7), node: record("one", NodeKind::Storage) };
    assert_eq!(state.apply(&Command { request: RequestId(1), body: CommandBody::Node(init) }), Outcome::Applied);
    state
}

fn join(request: u128, name: &str, kind: NodeKind) -> Vec<u8> {
    let body = CommandBody::Node(NodeCommand::Join { node: record(name, kind) });
    Command { request: RequestId(request), body }.encode()
}

/// A command that changes little and may be repeated for ever.
fn noise(request: u128) -> Vec<u8> {
    let up = NodeCommand::NodeUp {
        node: NodeId(1),
        incarnation: proto::Incarnation(request as u64),
        boot: proto::Boot(1),
        clean: vec![],
        feature_levels: (1, 1),
        kind: NodeKind::Storage,
        addresses: ["one:1".into(), "one:2".into(), "one:3".into()],
    };
    Command { request: RequestId(request), body: CommandBody::Node(up) }.encode()
}

/// What a disk holds; changed only by finished writes.
fn write(disk: &mut Restored, persist: &Persist) {
    if let Some(snapshot) = &persist.snapshot {
        disk.snapshot = Some(snapshot.clone());
        disk.entries.clear();
    }
    if let Some(first) = persist.entries.first() {
        disk.entries.retain(|entry| entry.index < first.index);
        disk.entries.extend(persist.entries.iter().cloned());
    }
    if let Some(hard_state) = &persist.hard_state {
        disk.hard_state = hard_state.clone();
    }
}

struct Cluster {
    seed: u64,
    random: u64,
    nodes: BTreeMap<u64, Consensus>,
    disks: BTreeMap<u64, Restored>,
    network: Vec<Message>,
    cut: BTreeSet<(u64, u64)>,
    loss_percent: u64,
    snapshots_to_lose: usize,
    reads: Vec<Vec<u8>>,
    trace: Vec<String>,
}

impl Cluster {
    fn new(voters: &[u64], seed: u64) -> Self {
        let ids: Vec<NodeId> = voters.iter().map(|id| NodeId(*id)).collect();
        let mut cluster = Self {
            seed,
            random: seed,
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            loss_percent: 0,
            snapshots_to_lose: 0,
            reads: Vec::new(),
            trace: Vec::new(),
        };
        for id in voters {
            cluster.disks.insert(*id, Restored::founding(&ids, &founded()));
            cluster.restart(*id);
        }
        cluster
    }

    fn restart(&mut self, id: u64) {
        let disk = self.disks.entry(id).or_default().clone();
        self.nodes.insert(id, Consensus::new(config(id, self.seed), disk).unwrap());
    }

    fn isolate(&mut self, id: u64) {
        for other in 1..=9 {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    fn roll(&mut self, bound: u64) -> u64 {
        splitmix(&mut self.random) % bound
    }

    /// One tick for all, then everything that follows from it, in a shuffled order.
    fn tick(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in &ids {
            self.nodes.get_mut(id).unwrap().tick();
        }
        for _ in 0..200 {
            for id in &ids {
                self.turn(*id);
            }
            if self.network.is_empty() {
                break;
            }
            for _ in 0..self.network.len() {
                let pick = self.roll(self.network.len() as u64) as usize;
                let message = self.network.swap_remove(pick);
                let lost = self.roll(100) < self.loss_percent || self.cut.contains(&(message.from, message.to));
                let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
                if snapshot && self.snapshots_to_lose > 0 {
                    self.snapshots_to_lose -= 1;
                    continue;
                }
                if lost {
                    continue;
                }
                if self.loss_percent > 0 && self.roll(20) == 0 {
                    self.network.push(message.clone());
                }
                if let Some(node) = self.nodes.get_mut(&message.to) {
                    let bytes = encode_message(&message);
                    let _ = node.step_bytes(&bytes);
                    self.turn(message.to);
                }
            }
        }
    }

    fn turn(&mut self, id: u64) {
        while let Some(turn) = self.nodes.get_mut(&id).and_then(Consensus::ready) {
            self.network.extend(turn.messages);
            write(self.disks.get_mut(&id).unwrap(), &turn.persist);
            let node = self.nodes.get_mut(&id).unwrap();
            let settled = node.persisted(turn.persist.number);
            if settled.compacted {
                self.disks.insert(id, node.image());
            }
            self.network.extend(settled.messages);
            self.reads.extend(settled.reads);
            for applied in settled.applied {
                self.trace.push(format!("{id} {} {} {:?}", node.term(), applied.index, applied.outcome));
            }
        }
    }

    fn ticks(&mut self, count: usize) {
        (0..count).for_each(|_| self.tick());
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..2000 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("never: {what} (seed {})", self.seed);
    }

    fn leader(&self) -> Option<u64> {
        let term = self.nodes.values().map(Consensus::term).max()?;
        self.nodes.iter().find(|(_, node)| node.is_leader() && node.term() == term).map(|(id, _)| *id)
    }

    fn elect(&mut self) -> u64 {
        self.until("a leader", |cluster| cluster.leader().is_some());
        self.leader().unwrap()
    }

    fn propose(&mut self, at: u64, data: Vec<u8>) -> bool {
        let taken = self.nodes.get_mut(&at).unwrap().propose(data);
        self.turn(at);
        taken
    }

    fn assert_agree(&self) {
        let states: Vec<&ClusterState> = self.nodes.values().map(Consensus::state).collect();
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "states differ (seed {})", self.seed);
    }
}

#[test]
fn one_leader_is_elected_and_a_follower_proposes_through_it() {
    let mut cluster = Cluster::new(&[1, 2, 3], 1);
    let leader = cluster.elect();
    cluster.ticks(5);
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    assert!(cluster.propose(follower, join(2, "two", NodeKind::Storage)));
    cluster.ticks(5);
    assert!(cluster.nodes.values().all(|node| node.state().nodes.len() == 2));
    assert_eq!(cluster.nodes.values().filter(|node| node.is_leader()).count(), 1);
    cluster.assert_agree();
}

#[test]
fn an_isolated_leader_steps_down_and_its_proposal_is_lost_for_good() {
    let mut cluster = Cluster::new(&[1, 2, 3], 2);
    let old = cluster.elect();
    cluster.ticks(5);
    cluster.isolate(old);
    cluster.propose(old, join(9, "lost", NodeKind::Storage));
    cluster.ticks(5 * ELECTION_TICKS);
    assert!(!cluster.nodes[&old].is_leader(), "check-quorum");
    let new = cluster.leader().unwrap();
    assert!(cluster.propose(new, join(10, "kept", NodeKind::Storage)));
    cluster.ticks(5);
    cluster.cut.clear();
    cluster.ticks(3 * ELECTION_TICKS);
    cluster.assert_agree();
    let names: Vec<&str> = cluster.nodes[&old].state().nodes.values().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["one", "kept"]);
}

#[test]
fn a_returning_node_does_not_disturb_the_term() {
    let mut cluster = Cluster::new(&[1, 2, 3], 3);
    let leader = cluster.elect();
    let other = (1..=3).find(|id| *id != leader).unwrap();
    cluster.isolate(other);
    cluster.ticks(20 * ELECTION_TICKS);
    let term = cluster.nodes[&leader].term();
    cluster.cut.clear();
    cluster.ticks(3 * ELECTION_TICKS);
    assert_eq!((cluster.leader(), cluster.nodes[&leader].term()), (Some(leader), term), "pre-vote");
}

#[test]
fn everything_restarts_from_disk_with_everything_committed() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(&[1, 2, 3], seed);
        for round in 0..6u128 {
            let leader = cluster.elect();
            cluster.until("taken", |_| true);
            cluster.propose(leader, join(100 + round, &format!("n{round}"), NodeKind::Storage));
            let count = 2 + round as usize;
            cluster.until("applied everywhere", |cluster| {
                cluster.nodes.values().all(|node| node.state().nodes.len() == count)
            });
            for id in 1..=3 {
                cluster.restart(id);
            }
        }
        cluster.elect();
        cluster.ticks(20);
        cluster.assert_agree();
        assert_eq!(cluster.nodes[&1].state().nodes.len(), 7, "seed {seed}");
    }
}

#[test]
fn a_lossy_network_with_crashes_keeps_one_history() {
    for seed in 100..130 {
        let mut cluster = Cluster::new(&[1, 2, 3], seed);
        cluster.loss_percent = 20;
        let mut request = 1000;
        for _ in 0..300 {
            let at = 1 + cluster.roll(3);
            request += 1;
            cluster.propose(at, noise(request));
            if cluster.roll(30) == 0 {
                let victim = 1 + cluster.roll(3);
                cluster.restart(victim);
            }
            cluster.tick();
        }
        cluster.loss_percent = 0;
        cluster.ticks(10 * ELECTION_TICKS);
        let leader = cluster.elect();
        assert!(cluster.propose(leader, join(5, "end", NodeKind::Storage)), "seed {seed}");
        cluster.ticks(10);
        cluster.assert_agree();
        assert_eq!(cluster.nodes[&1].state().nodes.len(), 2, "seed {seed}");
        let mut by_index: BTreeMap<String, String> = BTreeMap::new();
        for line in &cluster.trace {
            let mut words = line.splitn(4, ' ').skip(2);
            let (index, outcome) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let known = by_index.entry(index.clone()).or_insert_with(|| outcome.clone());
            assert_eq!(*known, outcome, "index {index}, seed {seed}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(&[1, 2, 3], seed);
        cluster.loss_percent = 30;
        for step in 0..400u128 {
            let at = 1 + cluster.roll(3);
            cluster.propose(at, noise(2000 + step));
            if cluster.roll(60) == 0 {
                let victim = 1 + cluster.roll(3);
                cluster.restart(victim);
            }
            cluster.tick();
        }
        cluster.trace
    };
    let first = run(77);
    assert!(first.len() > 100);
    assert_eq!(first, run(77));
    assert_ne!(first, run(78));
}

#[test]
fn a_lagging_follower_gets_a_snapshot_even_if_the_first_is_lost() {
    let mut cluster = Cluster::new(&[1, 2, 3], 4);
    let leader = cluster.elect();
    let lagging = (1..=3).find(|id| *id != leader).unwrap();
    cluster.isolate(lagging);
    for request in 0..300 {
        cluster.propose(leader, noise(3000 + request));
        cluster.tick();
    }
    assert!(cluster.nodes[&leader].image().entries.len() < 120, "the log is bounded");
    cluster.snapshots_to_lose = 2;
    cluster.cut.clear();
    let applied = cluster.nodes[&leader].applied();
    cluster.until("caught up", |cluster| cluster.nodes[&lagging].applied() >= applied);
    assert_eq!(cluster.snapshots_to_lose, 0);
    cluster.assert_agree();
    cluster.restart(lagging);
    cluster.until("again", |cluster| cluster.nodes[&lagging].applied() >= applied);
}

#[test]
fn a_lone_node_grows_to_three_voters_by_learners() {
    let mut cluster = Cluster::new(&[1], 5);
    assert_eq!(cluster.elect(), 1);
    for id in [2, 3] {
        cluster.disks.insert(id, Restored::default());
        cluster.restart(id);
        let name = format!("n{id}");
        assert!(cluster.propose(1, join(id as u128, &name, NodeKind::Storage)));
        cluster.ticks(2);
        let leader = cluster.elect();
        assert_eq!(cluster.nodes.get_mut(&leader).unwrap().add_voter(NodeId(id)), Ok(Standing::Pending));
        cluster.turn(leader);
        cluster.until("voter", |cluster| {
            let votes = |node: &Consensus| !node.is_joint() && node.members().get(&NodeId(id)) == Some(&true);
            cluster.nodes.values().all(votes)
        });
    }
    let leader = cluster.elect();
    cluster.nodes.remove(&leader);
    cluster.ticks(10 * ELECTION_TICKS);
    assert!(cluster.leader().is_some(), "the other two go on");
    cluster.assert_agree();
}

#[test]
fn a_removed_voter_does_not_disturb_and_the_last_one_stays() {
    let mut cluster = Cluster::new(&[1, 2, 3], 6);
    let leader = cluster.elect();
    cluster.ticks(5);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let node = cluster.nodes.get_mut(&leader).unwrap();
    assert_eq!(node.remove_voter(NodeId(leader)), Err(MembershipRefused::Leader));
    assert_eq!(node.remove_voter(NodeId(others[0])), Ok(false));
    assert_eq!(node.remove_voter(NodeId(others[1])), Err(MembershipRefused::Busy));
    cluster.ticks(10 * ELECTION_TICKS);
    assert_eq!(cluster.leader(), Some(leader));
    assert_eq!(cluster.nodes[&leader].members().len(), 2);
    cluster.isolate(others[1]);
    cluster.ticks(ELECTION_TICKS / 2 + 1);
    cluster.cut.clear();
    cluster.ticks(5 * ELECTION_TICKS);
    let leader = cluster.elect();
    let rest: Vec<NodeId> = cluster.nodes[&leader].members().into_keys().collect();
    assert_eq!(rest.len(), 2);
    let mut alone = Cluster::new(&[1], 6);
    alone.elect();
    assert_eq!(alone.nodes.get_mut(&1).unwrap().remove_voter(NodeId(1)), Err(MembershipRefused::LastVoter));
}

#[test]
fn leadership_goes_to_the_witness() {
    let mut cluster = Cluster::new(&[1, 2, 3], 7);
    let leader = cluster.elect();
    cluster.propose(leader, join(2, "two", NodeKind::Storage));
    cluster.ticks(3);
    cluster.propose(leader, join(3, "three", NodeKind::Witness));
    cluster.until("the witness leads", |cluster| cluster.leader() == Some(3));
    cluster.ticks(10 * ELECTION_TICKS);
    assert_eq!(cluster.leader(), Some(3), "and stays");
}

#[test]
fn the_leader_knows_whom_it_hears() {
    let mut cluster = Cluster::new(&[1, 2, 3], 8);
    let leader = cluster.elect();
    cluster.ticks(ELECTION_TICKS);
    assert!(cluster.nodes[&leader].heard().values().all(|heard| *heard));
    let silent = (1..=3).find(|id| *id != leader).unwrap();
    cluster.isolate(silent);
    cluster.ticks(ELECTION_TICKS + 3);
    let heard = cluster.nodes[&leader].heard();
    assert_eq!((heard[&NodeId(silent)], heard[&NodeId(leader)]), (false, true));
    assert!(cluster.nodes[&silent].heard().is_empty());
}

#[test]
fn a_read_is_confirmed_by_a_majority_only() {
    let mut cluster = Cluster::new(&[1, 2, 3], 9);
    let leader = cluster.elect();
    cluster.ticks(5);
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    for at in [leader, follower] {
        assert!(cluster.nodes.get_mut(&at).unwrap().read_index(vec![at as u8]));
        cluster.turn(at);
    }
    cluster.ticks(3);
    cluster.reads.sort();
    let mut expected = vec![vec![leader as u8], vec![follower as u8]];
    expected.sort();
    assert_eq!(cluster.reads, expected);
    cluster.reads.clear();
    cluster.isolate(leader);
    cluster.nodes.get_mut(&leader).unwrap().read_index(vec![99]);
    cluster.ticks(10 * ELECTION_TICKS);
    assert!(cluster.reads.is_empty(), "a deposed leader confirms nothing");
}

#[test]
fn inputs_wait_behind_a_write_in_a_bounded_queue() {
    let mut node = Consensus::new(config(1, 1), Restored::founding(&[NodeId(1)], &founded())).unwrap();
    while node.ready().is_none() {
        node.tick();
    }
    assert!(node.ready().is_none(), "one write at a time");
    let taken = (0..INBOX_MAX + 10).filter(|request| node.propose(noise(*request as u128))).count();
    assert_eq!(taken, INBOX_MAX);
    assert!(node.persisted(u64::MAX).applied.is_empty(), "an unknown number changes nothing");
    assert!(!node.propose(noise(1)));
}

#[test]
fn an_unknown_command_is_not_proposed_and_halts_when_committed() {
    let mut node = Consensus::new(config(1, 1), Restored::founding(&[NodeId(1)], &founded())).unwrap();
    assert!(!node.propose(vec![0xff; 8]));
    let mut disk = Restored::founding(&[NodeId(1)], &founded());
    let entry = Entry { index: 2, term: 1, data: vec![0xff; 8].into(), ..Entry::default() };
    disk.entries.push(entry);
    let mut node = Consensus::new(config(1, 1), disk).unwrap();
    for _ in 0..100 {
        node.tick();
        while let Some(turn) = node.ready() {
            node.persisted(turn.persist.number);
        }
    }
    assert!(matches!(node.halted(), Some(Halt::Apply(_))));
    assert_eq!(node.applied(), 1);
    assert!(!node.propose(noise(1)) && node.ready().is_none());
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn a_leader_that_counts_on_lost_entries_halts_the_node() {
    let mut cluster = Cluster::new(&[1, 2, 3], 10);
    cluster.elect();
    let mut heartbeat = message(MessageType::MsgHeartbeat, 2, 1, 50);
    heartbeat.commit = 1 << 40;
    cluster.nodes.get_mut(&1).unwrap().step(heartbeat).unwrap();
    assert_eq!(cluster.nodes[&1].halted(), Some(&Halt::LogRolledBack));
}

#[test]
fn hostile_messages_never_panic() {
    let mut cluster = Cluster::new(&[1, 2, 3], 11);
    cluster.elect();
    cluster.ticks(20);
    let kinds = (0..=18).filter_map(<MessageType as protobuf::ProtobufEnum>::from_i32).collect::<Vec<_>>();
    let numbers = [0, 1, 2, 3, 5, 30, TERM_MAX, u64::MAX - 1, u64::MAX];
    let mut random = 5u64;
    for round in 0..60_000 {
        let mut pick = |bound: usize| (splitmix(&mut random) % bound as u64) as usize;
        let mut hostile = message(kinds[pick(kinds.len())], pick(5) as u64, 1 + pick(3) as u64, numbers[pick(7)]);
        hostile.log_term = numbers[pick(9)];
        hostile.index = numbers[pick(9)];
        hostile.commit = if round % 50 == 0 { numbers[pick(9)] } else { pick(3) as u64 };
        hostile.commit_term = numbers[pick(9)];
        hostile.reject = pick(2) == 0;
        hostile.reject_hint = numbers[pick(9)];
        hostile.request_snapshot = numbers[pick(2)];
        hostile.context = vec![7; pick(80)].into();
        for _ in 0..pick(3) {
            let mut entry = Entry { index: numbers[pick(9)], term: numbers[pick(9)], ..Entry::default() };
            entry.data = vec![9; pick(3)].into();
            entry.set_entry_type([EntryType::EntryNormal, EntryType::EntryConfChangeV2][pick(2)]);
            hostile.entries.push(entry);
        }
        if pick(4) == 0 {
            let mut snapshot = Snapshot { data: founded().to_snapshot().into(), ..Snapshot::default() };
            let meta = snapshot.mut_metadata();
            (meta.index, meta.term) = (numbers[pick(9)], numbers[pick(9)]);
            meta.mut_conf_state().voters = (0..pick(4)).map(|_| pick(4) as u64).collect();
            meta.mut_conf_state().learners = (0..pick(3)).map(|_| pick(5) as u64).collect();
            hostile.set_snapshot(snapshot);
        }
        let to = hostile.to;
        if let Some(node) = cluster.nodes.get_mut(&to) {
            let _ = node.step(hostile);
        }
        if pick(10) == 0 {
            cluster.tick();
        }
        if round % 500 == 0 {
            cluster = Cluster::new(&[1, 2, 3], round);
            cluster.elect();
            cluster.ticks(15);
        }
    }
    assert_eq!(cluster.nodes.get_mut(&1).unwrap().step_bytes(&[0xff; 40]), Err(StepError::Garbled));
}

#[test]
fn a_log_that_contradicts_itself_is_refused() {
    let base = Restored::founding(&[NodeId(1)], &founded());
    let entry = |index, term| Entry { index, term, ..Entry::default() };
    let refused = |change: &dyn Fn(&mut Restored)| {
        let mut restored = base.clone();
        change(&mut restored);
        assert!(Consensus::new(config(1, 1), restored).is_err());
    };
    refused(&|disk| disk.entries.push(entry(3, 1)));
    refused(&|disk| disk.entries.extend([entry(2, 1), entry(4, 1)]));
    refused(&|disk| disk.entries.push(entry(2, 9)));
    refused(&|disk| disk.hard_state = HardState::default());
    refused(&|disk| disk.snapshot.as_mut().unwrap().data = vec![1, 2, 3].into());
    refused(&|disk| disk.snapshot.as_mut().unwrap().mut_metadata().mut_conf_state().voters.clear());
    refused(&|disk| disk.snapshot.as_mut().unwrap().mut_metadata().mut_conf_state().learners.push(1));
    refused(&|disk| disk.entries.extend([Entry { index: 1, term: 9, ..Entry::default() }, entry(2, 1)]));
    let mut ahead = base.clone();
    ahead.hard_state.commit = 9;
    assert_eq!(Consensus::new(config(1, 1), ahead).unwrap().image().hard_state.commit, 1, "a hint, not a promise");
}
