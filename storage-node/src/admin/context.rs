//! What every service shares: the node, lookups by name, clocks, and the views of other nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use proto::admin as pb;
use proto::{ConfigVersion, NodeId, RequestId, Timestamp, VolumeId};
use replication::config::command::CommandBody;
use replication::config::{
    ClusterState, Command, NodeCommand, NodeKind, NodeRecord, Outcome, VolumeCommand, VolumeConfig,
};

use super::client::connect;
use super::convert;
use super::health::{Facts, Health, RaftFacts, ReplicaFacts, cluster_health, volume_health};
use super::operations::{NodeOperations, OperationError};
use crate::net::transport::Transport;
use crate::raft::RaftStatus;

/// A proposal is waited for this long.
pub(super) const PROPOSE_PATIENCE: Duration = Duration::from_secs(10);
/// An election is waited for so long.
pub(super) const ELECTION_PATIENCE: Duration = Duration::from_secs(3);
/// Another node is asked for its view this long, then shown as unreachable.
pub(super) const VIEW_TIMEOUT: Duration = Duration::from_millis(1500);
/// A command guarded by the version is repeated this often when the version moved meanwhile.
pub(super) const COMPARE_AND_SWAP_TRIES_MAX: usize = 8;

/// The services' common ground; cheap to clone.
#[derive(Clone)]
pub(super) struct Context {
    /// The node.
    pub(super) operations: Arc<dyn NodeOperations>,
    /// For calls to other nodes.
    pub(super) transport: Transport,
}

/// Both clocks at one moment, to turn boot-time stamps into calendar time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    boot: Timestamp,
    unix_micros: u64,
}

impl Clock {
    /// Now.
    pub(super) fn now(boot: Timestamp) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { boot, unix_micros: unix.as_micros() as u64 }
    }

    /// Calendar time of a boot-time stamp, in microseconds since the Unix epoch.
    pub(super) fn unix(&self, at: Timestamp) -> u64 {
        self.unix_micros.saturating_sub(self.boot.since(at).0)
    }

    /// Calendar time now.
    pub(super) fn unix_now(&self) -> u64 {
        self.unix_micros
    }
}

/// The cluster as seen from here, and what each node says of itself.
pub(super) struct View {
    /// Replicated state.
    pub(super) state: Arc<ClusterState>,
    /// Raft as seen here.
    pub(super) raft: RaftStatus,
    /// Replies of the nodes that answered, this one included.
    pub(super) nodes: BTreeMap<NodeId, pb::NodeStatusReply>,
    clock: Clock,
    names: BTreeMap<NodeId, String>,
    raft_facts: RaftFacts,
}

impl Context {
    /// This node's id, or that it is in no cluster.
    pub(super) fn me(&self) -> Result<NodeId, OperationError> {
        let facts = self.operations.facts();
        match (facts.identity, facts.out_of_service) {
            (Some((_, node)), _) => Ok(node),
            (None, Some(why)) => Err(OperationError::Refused(why)),
            (None, None) => Err(OperationError::NotInCluster),
        }
    }

    /// The clocks now.
    pub(super) fn clock(&self) -> Clock {
        Clock::now(self.operations.now())
    }

    /// The replicated state as applied here.
    pub(super) fn state(&self) -> Arc<ClusterState> {
        self.operations.state().borrow().clone()
    }

    /// Fails, with a redirect, unless this node is the Raft leader. An election that is under way is waited for.
    pub(super) async fn require_leader(&self) -> Result<NodeId, OperationError> {
        let me = self.me()?;
        let mut raft = self.operations.raft();
        let known = raft.wait_for(|raft| raft.leader != NodeId::NONE);
        let leader = match tokio::time::timeout(ELECTION_PATIENCE, known).await {
            Ok(Ok(raft)) => raft.leader,
            _ => NodeId::NONE,
        };
        if leader == me {
            return Ok(me);
        }
        match self.state().nodes.get(&leader) {
            Some(record) => Err(OperationError::NotHere {
                node: leader,
                admin_address: record.admin_address.clone(),
                why: format!("{} is the Raft leader", record.name),
            }),
            None => Err(OperationError::Unavailable(
                "no Raft leader is known: a majority of the voters must be reachable for this".into(),
            )),
        }
    }

    /// Fails, with a redirect, unless this node is `node`.
    pub(super) fn require_node(&self, node: NodeId, why: &str) -> Result<(), OperationError> {
        if self.me()? == node {
            return Ok(());
        }
        let state = self.state();
        let record = state.nodes.get(&node).ok_or_else(|| OperationError::NotFound(format!("no node {node}")))?;
        Err(OperationError::NotHere {
            node,
            admin_address: record.admin_address.clone(),
            why: format!("{} {why}", record.name),
        })
    }

    /// Proposes a command about nodes; a failed guard becomes `Refused`.
    pub(super) async fn propose_node(&self, command: NodeCommand) -> Result<Outcome, OperationError> {
        let command = Command { request: RequestId(rand::random()), body: CommandBody::Node(command) };
        refused_is_an_error(self.operations.propose(command, PROPOSE_PATIENCE).await?)
    }

    /// Proposes a command about a volume, as built from its newest configuration. `build` checks what it can and is
    /// asked again when the version moved while the proposal was under way.
    pub(super) async fn propose_volume<F>(&self, volume: &str, build: F) -> Result<VolumeConfig, OperationError>
    where
        F: Fn(&ClusterState, &VolumeConfig) -> Result<VolumeCommand, OperationError>,
    {
        let mut refusal = OperationError::Refused("the volume's configuration keeps changing; try again".into());
        for _ in 0..COMPARE_AND_SWAP_TRIES_MAX {
            let state = self.state();
            let config = find_volume(&state, volume)?;
            let body = CommandBody::Volume {
                volume: config.id,
                expect_version: config.version,
                command: build(&state, config)?,
            };
            let command = Command { request: RequestId(rand::random()), body };
            let outcome = self.operations.propose(command, PROPOSE_PATIENCE).await?;
            match refused_is_an_error(outcome) {
                Ok(_) => return Ok(config.clone()),
                Err(error) if self.version_of(config.id) != Some(config.version) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn version_of(&self, volume: VolumeId) -> Option<ConfigVersion> {
        self.state().volumes.get(&volume).map(|config| config.version)
    }

    /// This node's own report.
    pub(super) async fn node_status(&self) -> pb::NodeStatusReply {
        let facts = self.operations.facts();
        let replicas = self.operations.replicas().await;
        convert::node_status(&facts, &self.operations.raft().borrow(), &replicas, self.clock())
    }

    /// Asks every node for its report.
    pub(super) async fn view(&self) -> Result<View, OperationError> {
        let me = self.me()?;
        let state = self.state();
        let others = state
            .nodes
            .iter()
            .filter(|(node, _)| **node != me)
            .map(|(node, record)| async move { (*node, self.ask(&record.admin_address).await) });
        // Whoever answers at a member's address without being that member (reset, or out of service) is not reachable.
        let is_member = |node: NodeId, reply: &pb::NodeStatusReply| {
            reply.cluster == state.cluster.to_string()
                && reply.record.as_ref().is_some_and(|record| record.id == node.0)
        };
        let (own, others) = tokio::join!(self.node_status(), join_all(others));
        let answers = others.into_iter().filter_map(|(node, reply)| Some((node, reply?)));
        let mut nodes: BTreeMap<_, _> = answers.filter(|(node, reply)| is_member(*node, reply)).collect();
        nodes.insert(me, own);
        Ok(View::new(state, self.operations.raft().borrow().clone(), nodes, self.clock()))
    }

    /// One node's report, if it answers in time.
    pub(super) async fn ask(&self, address: &str) -> Option<pb::NodeStatusReply> {
        let call = async {
            let channel = connect(&self.transport, address).await.ok()?;
            let mut client = pb::node_client::NodeClient::new(channel);
            Some(client.status(pb::NodeStatusRequest {}).await.ok()?.into_inner())
        };
        tokio::time::timeout(VIEW_TIMEOUT, call).await.ok().flatten()
    }
}

impl View {
    /// A view from the nodes' replies.
    pub(super) fn new(
        state: Arc<ClusterState>,
        raft: RaftStatus,
        nodes: BTreeMap<NodeId, pb::NodeStatusReply>,
        clock: Clock,
    ) -> Self {
        let names = state.nodes.iter().map(|(node, record)| (*node, record.name.clone())).collect();
        let raft_facts = RaftFacts {
            leader: raft.leader,
            leaderless_since: raft.leaderless_since.map(|at| clock.unix(Timestamp(at))),
            voters: raft.members.iter().filter(|(_, voter)| **voter).map(|(node, _)| *node).collect(),
            unreachable: state.nodes.keys().copied().filter(|node| !nodes.contains_key(node)).collect(),
        };
        View { state, raft, nodes, clock, names, raft_facts }
    }

    /// A node's name.
    pub(super) fn name(&self, node: NodeId) -> String {
        name_of(&self.state, node)
    }

    /// The clocks when the view was taken.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// What `node` says of its copy of `volume`.
    pub(super) fn replica(&self, node: NodeId, volume: VolumeId) -> Option<&pb::ReplicaView> {
        let id = volume.to_string();
        self.nodes.get(&node)?.replicas.iter().find(|replica| replica.volume_id == id)?.view.as_ref()
    }

    /// The health of a volume.
    pub(super) fn volume_health(&self, config: &VolumeConfig) -> Health {
        let replicas: BTreeMap<NodeId, ReplicaFacts> = config
            .replicas
            .keys()
            .filter(|node| self.nodes.contains_key(node))
            .map(|node| (*node, self.replica(*node, config.id).map(convert::replica_facts).unwrap_or_default()))
            .collect();
        volume_health(config, &self.facts(&replicas))
    }

    /// The health of the cluster.
    pub(super) fn cluster_health(&self) -> Health {
        cluster_health(&self.facts(&BTreeMap::new()))
    }

    fn facts<'a>(&'a self, replicas: &'a BTreeMap<NodeId, ReplicaFacts>) -> Facts<'a> {
        Facts { names: &self.names, raft: &self.raft_facts, replicas, now: self.clock.unix_now() }
    }
}

/// A node's name, or its number if it has no record.
pub(super) fn name_of(state: &ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| format!("node {node}"), |record| record.name.clone())
}

/// A volume by name or by id.
pub(super) fn find_volume<'a>(state: &'a ClusterState, name: &str) -> Result<&'a VolumeConfig, OperationError> {
    state
        .volumes
        .values()
        .find(|config| config.name == name || config.id.to_string() == name)
        .ok_or_else(|| OperationError::NotFound(format!("no volume {name:?}; `tandem volume list` shows all")))
}

/// A node by name or by number.
pub(super) fn find_node<'a>(state: &'a ClusterState, name: &str) -> Result<(NodeId, &'a NodeRecord), OperationError> {
    let number = name.parse().ok().map(NodeId);
    state
        .nodes
        .iter()
        .find(|(node, record)| record.name == name || Some(**node) == number)
        .map(|(node, record)| (*node, record))
        .ok_or_else(|| OperationError::NotFound(format!("no node {name:?}; `tandem node list` shows all")))
}

/// A storage node by name or by number.
pub(super) fn find_storage_node(state: &ClusterState, name: &str) -> Result<NodeId, OperationError> {
    let (node, record) = find_node(state, name)?;
    match record.kind {
        NodeKind::Storage => Ok(node),
        NodeKind::Witness => Err(OperationError::Invalid(format!("{} is a witness: it stores no data", record.name))),
    }
}

fn refused_is_an_error(outcome: Outcome) -> Result<Outcome, OperationError> {
    match outcome {
        Outcome::Refused(why) => Err(OperationError::Refused(why.to_owned())),
        done => Ok(done),
    }
}
