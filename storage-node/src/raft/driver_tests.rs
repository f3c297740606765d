//! Drivers on real threads and real logs, connected by channels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::{Boot, ClusterId, Incarnation, NodeId, RequestId};
use replication::config::{ClusterState, Command, CommandBody, NodeCommand, NodeKind, NodeRecord, Outcome};
use tempfile::TempDir;
use tokio::time::timeout;

use super::driver::{MESSAGES_MAX, ORDERS_MAX, Order, Shared};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: ClusterId = ClusterId(7);

fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        kind: NodeKind::Storage,
        peer_address: format!("{name}:1"),
        admin_address: format!("{name}:2"),
        nbd_address: format!("{name}:3"),
        feature_levels: (1, 1),
        ..NodeRecord::default()
    }
}

fn init() -> Command {
    let body = CommandBody::Node(NodeCommand::Init { cluster: CLUSTER, node: record("n1") });
    Command { request: RequestId(1), body }
}

fn join(request: u128, name: &str) -> Command {
    Command { request: RequestId(request), body: CommandBody::Node(NodeCommand::Join { node: record(name) }) }
}

/// Handles of the running nodes, and the links that are cut.
#[derive(Default)]
struct Network {
    nodes: Mutex<BTreeMap<NodeId, RaftHandle>>,
    cut: Mutex<BTreeSet<NodeId>>,
    liveness: Mutex<BTreeMap<NodeId, Vec<(NodeId, bool)>>>,
}

struct Link(NodeId, Arc<Network>);

impl RaftSend for Link {
    fn send(&self, to: NodeId, message: Vec<u8>) {
        let cut = self.1.cut.lock().unwrap();
        if cut.contains(&self.0) || cut.contains(&to) {
            return;
        }
        if let Some(handle) = self.1.nodes.lock().unwrap().get(&to) {
            handle.deliver(message);
        }
    }

    fn send_liveness(&self, to: NodeId, heard: &[(NodeId, bool)]) {
        self.1.liveness.lock().unwrap().insert(to, heard.to_vec());
    }
}

struct Cluster {
    root: TempDir,
    network: Arc<Network>,
}

impl Cluster {
    fn new() -> Self {
        Self { root: TempDir::new().unwrap(), network: Arc::default() }
    }

    fn directory(&self, id: u64) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    fn start(&self, id: u64) -> RaftHandle {
        let handle = start(id, CLUSTER, &self.directory(id), Link(NodeId(id), self.network.clone())).unwrap();
        self.network.nodes.lock().unwrap().insert(NodeId(id), handle.clone());
        handle
    }

    /// Ends a node without its saying anything; returns when its thread is gone.
    async fn kill(&self, id: u64, handle: RaftHandle) {
        let mut stopped = handle.stopped();
        self.network.nodes.lock().unwrap().remove(&NodeId(id));
        drop(handle);
        timeout(PATIENCE, stopped.wait_for(Option::is_some)).await.unwrap().unwrap();
    }

    async fn three(&self) -> BTreeMap<u64, RaftHandle> {
        let mut handles = BTreeMap::from([(1, self.start(1))]);
        for id in [2, 3] {
            let joined = handles[&1].propose_and_wait(join(id as u128, &format!("n{id}")), PATIENCE).await.unwrap();
            assert_eq!(joined, Outcome::Joined(NodeId(id)));
            handles.insert(id, self.start(id));
            handles[&1].add_voter(NodeId(id), PATIENCE).await.unwrap();
        }
        handles
    }
}

fn start(id: u64, cluster: ClusterId, directory: &Path, link: Link) -> Result<RaftHandle, RaftError> {
    let config =
        RaftConfig { node: NodeId(id), cluster, tick: Duration::from_millis(10), election_ticks: 10, fresh: true };
    RaftHandle::start(config, directory, (id == 1).then(init), Box::new(link))
}

async fn names(handle: &RaftHandle, count: usize) -> Arc<ClusterState> {
    let mut state = handle.state();
    let reached = timeout(PATIENCE, state.wait_for(|state| state.nodes.len() >= count)).await;
    reached.expect("the state in time").unwrap().clone()
}

async fn leader_of(handle: &RaftHandle, accept: impl Fn(NodeId) -> bool) -> NodeId {
    let mut status = handle.status();
    let known = |status: &RaftStatus| status.leader != NodeId::NONE && accept(status.leader);
    timeout(PATIENCE, status.wait_for(known)).await.expect("a leader in time").unwrap().leader
}

#[tokio::test]
async fn a_lone_node_proposes_and_restarts_from_its_log() {
    let cluster = Cluster::new();
    let node = cluster.start(1);
    assert_eq!(node.propose_and_wait(join(5, "two"), PATIENCE).await.unwrap(), Outcome::Joined(NodeId(2)));
    assert_eq!(node.propose_and_wait(join(5, "two"), PATIENCE).await.unwrap(), Outcome::Joined(NodeId(2)));
    let refused = node.propose_and_wait(join(6, "two"), PATIENCE).await.unwrap();
    assert!(matches!(refused, Outcome::Refused(_)));
    node.read_index(PATIENCE).await.unwrap();
    node.stop().await;
    let after = node.propose_and_wait(join(7, "seven"), PATIENCE).await;
    assert!(matches!(after, Err(ProposeError::Stopped(_))));
    cluster.kill(1, node).await;
    let node = cluster.start(1);
    assert_eq!(names(&node, 2).await.nodes[&NodeId(2)].name, "two");
}

#[tokio::test]
async fn three_nodes_survive_their_leader_and_it_returns() {
    let cluster = Cluster::new();
    let mut handles = cluster.three().await;
    let leader = leader_of(&handles[&1], |_| true).await;
    let dead = handles.remove(&leader.0).unwrap();
    cluster.kill(leader.0, dead).await;
    let survivor = handles.values().next().unwrap();
    leader_of(survivor, |now| now != leader).await;
    survivor.propose_and_wait(join(50, "n4"), PATIENCE).await.unwrap();
    for handle in handles.values() {
        names(handle, 4).await;
    }
    let back = cluster.start(leader.0);
    names(&back, 4).await;
    back.propose_and_wait(join(51, "n5"), PATIENCE).await.unwrap();
    for handle in handles.values() {
        names(handle, 5).await;
    }
}

#[tokio::test]
async fn a_whole_cluster_restarts_and_knows_its_members() {
    let cluster = Cluster::new();
    for (id, handle) in cluster.three().await {
        cluster.kill(id, handle).await;
    }
    let handles: Vec<RaftHandle> = (1..=3).map(|id| cluster.start(id)).collect();
    for handle in &handles {
        let state = names(handle, 3).await;
        assert_eq!(state.nodes[&NodeId(3)].peer_address, "n3:1");
    }
    handles[2].propose_and_wait(join(60, "n4"), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_follower_reads_through_the_leader_and_nobody_without_a_majority() {
    let cluster = Cluster::new();
    let handles = cluster.three().await;
    let leader = leader_of(&handles[&1], |_| true).await;
    let follower = (1..=3).find(|id| *id != leader.0).unwrap();
    handles[&follower].read_index(PATIENCE).await.unwrap();
    cluster.network.cut.lock().unwrap().insert(NodeId(follower));
    let short = Duration::from_millis(300);
    assert!(matches!(handles[&follower].read_index(short).await, Err(ProposeError::Timeout(_))));
    let lost = handles[&follower].propose_and_wait(join(70, "n4"), short).await;
    assert!(matches!(lost, Err(ProposeError::Timeout(_))));
    let mut status = handles[&leader.0].status();
    let silent = |status: &RaftStatus| status.heard.get(&NodeId(follower)) == Some(&false);
    timeout(PATIENCE, status.wait_for(silent)).await.unwrap().unwrap();
    cluster.network.cut.lock().unwrap().clear();
    handles[&follower].read_index(PATIENCE).await.unwrap();
    let reported = cluster.network.liveness.lock().unwrap().get(&NodeId(follower)).cloned().unwrap();
    assert_eq!(reported.len(), 3);
}

#[tokio::test]
async fn stopping_the_leader_hands_over_and_a_voter_can_be_removed() {
    let cluster = Cluster::new();
    let handles = cluster.three().await;
    let leader = leader_of(&handles[&1], |_| true).await;
    let other = (1..=3).find(|id| *id != leader.0).unwrap();
    handles[&leader.0].read_index(PATIENCE).await.unwrap();
    handles[&leader.0].stop().await;
    leader_of(&handles[&other], |now| now != leader).await;
    handles[&other].remove_voter(leader, PATIENCE).await.unwrap();
    let members: Vec<NodeId> = handles[&other].status().borrow().members.keys().copied().collect();
    assert_eq!(members.len(), 2);
    let last = handles[&other].remove_voter(NodeId(99), PATIENCE).await;
    assert!(last.is_ok(), "a stranger is gone already");
}

/// Whoever is asked; a follower passes the wish on, and goes on hearing the leader meanwhile.
#[tokio::test]
async fn a_follower_that_is_asked_has_the_leader_change_the_voters() {
    let cluster = Cluster::new();
    let mut handles = cluster.three().await;
    handles[&1].propose_and_wait(join(4, "n4"), PATIENCE).await.unwrap();
    handles.insert(4, cluster.start(4));
    let leader = leader_of(&handles[&1], |_| true).await;
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader.0).collect();
    assert!(handles[&followers[0]].add_voter(NodeId(4), PATIENCE).await.unwrap());
    handles[&followers[1]].remove_voter(NodeId(4), PATIENCE).await.unwrap();
    handles[&followers[0]].remove_voter(NodeId(4), PATIENCE).await.unwrap();
    assert_eq!(handles[&followers[0]].status().borrow().members.len(), 3);
}

/// The one that is asked to remove the leader may be the leader: it hands over, and is a follower that still asks. It may
/// never hear that it is gone, but it hears whatever else it is told.
#[tokio::test]
async fn a_leader_that_is_asked_to_remove_itself_hands_over_and_goes() {
    let cluster = Cluster::new();
    let mut handles = cluster.three().await;
    let leader = leader_of(&handles[&1], |_| true).await;
    let removed = handles.remove(&leader.0).unwrap();
    let asking = tokio::spawn({
        let removed = removed.clone();
        async move { removed.remove_voter(leader, PATIENCE).await }
    });
    for handle in handles.values() {
        let mut status = handle.status();
        let gone = status.wait_for(|status| !status.members.contains_key(&leader));
        assert_eq!(timeout(PATIENCE, gone).await.expect("gone in time").unwrap().members.len(), 2);
    }
    asking.abort();
    // A task that is aborted still holds its handle until it has ended; how it ended does not matter.
    let _ = asking.await;
    cluster.kill(leader.0, removed).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_the_driver_with_the_reason() {
    let cluster = Cluster::new();
    let node = cluster.start(1);
    node.read_index(PATIENCE).await.unwrap();
    std::fs::remove_dir_all(cluster.directory(1)).unwrap();
    // A change of membership makes a new snapshot, and so a new file.
    let failed = node.add_voter(NodeId(2), PATIENCE).await;
    assert!(matches!(failed, Err(ProposeError::Stopped(why)) if why.contains("log cannot be written")));
    assert!(node.stopped().borrow().is_some());
}

#[tokio::test]
async fn the_survivor_of_a_lost_majority_starts_over_under_a_new_id() {
    let cluster = Cluster::new();
    for (id, handle) in cluster.three().await {
        cluster.kill(id, handle).await;
    }
    let directory = cluster.directory(2);
    assert!(recover_quorum(&directory, NodeId(2), CLUSTER, CLUSTER).is_err());
    let state = recover_quorum(&directory, NodeId(2), CLUSTER, ClusterId(8)).unwrap();
    assert_eq!((state.cluster, state.nodes.len()), (ClusterId(8), 3));
    let old = start(2, CLUSTER, &directory, Link(NodeId(2), cluster.network.clone()));
    assert!(matches!(old, Err(RaftError::LogRefused { .. })));
    let node = start(2, ClusterId(8), &directory, Link(NodeId(2), cluster.network.clone())).unwrap();
    node.propose_and_wait(join(80, "n4"), PATIENCE).await.unwrap();
    let members: Vec<NodeId> = node.status().borrow().members.keys().copied().collect();
    assert_eq!(members, [NodeId(2)]);
}

#[tokio::test]
async fn a_log_that_is_gone_with_its_directory_is_not_made_anew() {
    let cluster = Cluster::new();
    let node = cluster.start(1);
    node.read_index(PATIENCE).await.unwrap();
    cluster.kill(1, node).await;
    let directory = cluster.directory(1);
    let again = || {
        let config = RaftConfig {
            node: NodeId(1),
            cluster: CLUSTER,
            tick: Duration::from_millis(10),
            election_ticks: 10,
            fresh: false,
        };
        RaftHandle::start(config, &directory, Some(init()), Box::new(Link(NodeId(1), cluster.network.clone())))
    };
    let node = again().unwrap();
    cluster.kill(1, node).await;
    std::fs::remove_dir_all(&directory).unwrap();
    let refused = again().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("must not vote") && refused.contains("`tandem node reset"), "{refused}");
}

#[tokio::test]
async fn a_running_log_is_not_recovered() {
    let cluster = Cluster::new();
    let node = cluster.start(1);
    node.read_index(PATIENCE).await.unwrap();
    let refused = recover_quorum(&cluster.directory(1), NodeId(1), CLUSTER, ClusterId(8));
    assert!(matches!(refused, Err(RaftError::InUse { .. })), "{refused:?}");
}

#[test]
fn full_queues_drop_messages_and_refuse_proposals() {
    let shared = Shared::default();
    for _ in 0..2 * MESSAGES_MAX {
        shared.deliver(vec![1]);
    }
    assert_eq!(shared.message_count(), MESSAGES_MAX);
    let node_up = |request: u64| {
        let body = NodeCommand::NodeUp {
            node: NodeId(1),
            incarnation: Incarnation(request),
            boot: Boot(1),
            clean: vec![],
            feature_levels: (1, 1),
            kind: NodeKind::Storage,
            addresses: Default::default(),
        };
        Order::Propose(Command { request: RequestId(request as u128), body: CommandBody::Node(body) })
    };
    for request in 0..ORDERS_MAX as u64 {
        shared.order(node_up(request)).unwrap();
    }
    assert!(matches!(shared.order(node_up(0)), Err(ProposeError::Refused(_))));
}
