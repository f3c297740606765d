//! The Cluster service: init, join, status, nodes.

use std::time::Duration;

use proto::NodeId;
use proto::admin as pb;
use proto::admin::cluster_client::ClusterClient;
use replication::config::{ClusterState, NodeCommand, NodeKind, NodeRecord, Outcome};
use tonic::{Request, Response, Status};

use super::client::follow;
use super::context::{Context, PROPOSE_PATIENCE, find_node, name_of};
use super::convert;
use super::operations::{Adoption, OperationError};
use super::validate::check_name;
use crate::raft::RaftStatus;

/// A newcomer gets this long to catch up and become a voter.
const PROMOTE_PATIENCE: Duration = Duration::from_secs(30);
/// Nodes of a cluster.
const NODES_MAX: usize = 64;
/// Bytes of an address in a node's record.
const ADDRESS_BYTES_MAX: usize = 255;

/// See the module.
pub(super) struct ClusterService {
    context: Context,
}

impl ClusterService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    /// The newcomer's side of a join; each step may be repeated.
    async fn join_through(&self, member: &str) -> Result<pb::JoinReply, Status> {
        let operations = &self.context.operations;
        let transport = &self.context.transport;
        let facts = operations.facts();
        // Before anybody is asked: a newcomer on record that never comes would stand in the way of the real one.
        if let Some(why) = facts.out_of_service {
            return Err(OperationError::Refused(why).into());
        }
        let record = Some(convert::node_record(NodeId::NONE, &facts.record));
        let reply = match facts.identity {
            // A join that was cut off after its first half: only the promotion is missing.
            Some((cluster, node)) => {
                let at_member = self.cluster_of(member).await?;
                if at_member != cluster.to_string() {
                    return Err(Status::failed_precondition(format!(
                        "this node is in cluster {cluster} already, {member} is in another one; a node enters another \
                         cluster only with an empty data directory"
                    )));
                }
                pb::AdmitNodeReply { cluster: at_member, node: node.0, nodes: Vec::new() }
            }
            None => {
                let reply = follow(transport, member, |channel| {
                    let request = pb::AdmitNodeRequest { record: record.clone() };
                    async move { Ok(ClusterClient::new(channel).admit_node(request).await?.into_inner()) }
                })
                .await?;
                operations.adopt(adoption(&reply)?).await?;
                reply
            }
        };
        let promoted = follow(transport, member, |channel| async move {
            ClusterClient::new(channel).promote_node(pb::PromoteNodeRequest { node: reply.node }).await
        })
        .await?
        .into_inner();
        Ok(pb::JoinReply { cluster: reply.cluster, node: reply.node, votes: promoted.votes })
    }

    async fn cluster_of(&self, member: &str) -> Result<String, Status> {
        follow(&self.context.transport, member, |channel| async move {
            let mut client = pb::node_client::NodeClient::new(channel);
            Ok(client.status(pb::NodeStatusRequest {}).await?.into_inner().cluster)
        })
        .await
    }

    async fn admit(&self, message: pb::AdmitNodeRequest) -> Result<pb::AdmitNodeReply, OperationError> {
        self.context.require_leader().await?;
        let message =
            message.record.ok_or_else(|| OperationError::Invalid("the record of the node is missing".into()))?;
        let record = convert::node_record_from(&message)?;
        check_record(&self.context.state(), &record)?;
        let node = match self.context.propose_node(NodeCommand::Join { node: record }).await? {
            Outcome::Joined(node) => node,
            _ => return Err(OperationError::Failed("the cluster gave the newcomer no id".into())),
        };
        let state = self.context.state();
        let nodes = state.nodes.iter().map(|(id, record)| convert::node_record(*id, record)).collect();
        Ok(pb::AdmitNodeReply { cluster: state.cluster.to_string(), node: node.0, nodes })
    }

    /// The record goes first: from then on nothing the node says is heard, and every leader completes the rest.
    async fn remove(&self, request: &pb::RemoveNodeRequest) -> Result<(), OperationError> {
        let me = self.context.require_leader().await?;
        let state = self.context.state();
        let (node, record) = find_node(&state, &request.node)?;
        check_removal(&state, &self.context.operations.raft().borrow(), me, node)?;
        if !request.force
            && let Some(status) = self.context.ask(&record.admin_address).await
            && status.cluster == state.cluster.to_string()
        {
            return Err(OperationError::Refused(format!(
                "{} answers: stop it first (`tandem --admin {} node stop`), or say --force",
                record.name, record.admin_address
            )));
        }
        self.context.propose_node(NodeCommand::Leave { node }).await?;
        self.context.operations.remove_voter(node, PROPOSE_PATIENCE).await
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for ClusterService {
    async fn init(&self, _: Request<pb::InitRequest>) -> Result<Response<pb::InitReply>, Status> {
        let facts = self.context.operations.facts();
        check_name("node name", &facts.record.name).map_err(OperationError::Invalid)?;
        let cluster = self.context.operations.init(PROPOSE_PATIENCE).await?;
        Ok(Response::new(pb::InitReply { cluster: cluster.to_string(), node: self.context.me()?.0 }))
    }

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        Ok(Response::new(self.join_through(&request.into_inner().member_address).await?))
    }

    async fn admit_node(&self, request: Request<pb::AdmitNodeRequest>) -> Result<Response<pb::AdmitNodeReply>, Status> {
        Ok(Response::new(self.admit(request.into_inner()).await?))
    }

    async fn promote_node(
        &self,
        request: Request<pb::PromoteNodeRequest>,
    ) -> Result<Response<pb::PromoteNodeReply>, Status> {
        let node = NodeId(request.into_inner().node);
        self.context.require_leader().await?;
        if !self.context.state().nodes.contains_key(&node) {
            return Err(OperationError::NotFound(format!("no node {node}")).into());
        }
        let votes = self.context.operations.add_voter(node, PROMOTE_PATIENCE).await?;
        Ok(Response::new(pb::PromoteNodeReply { votes }))
    }

    async fn status(&self, _: Request<pb::ClusterStatusRequest>) -> Result<Response<pb::ClusterStatusReply>, Status> {
        let view = self.context.view().await?;
        Ok(Response::new(pb::ClusterStatusReply {
            cluster: view.state.cluster.to_string(),
            answered_by: self.context.me()?.0,
            raft: Some(convert::raft_view(&view.raft, view.clock())),
            health: Some(convert::health(view.cluster_health())),
            nodes: convert::node_views(&view),
            volumes: view.state.volumes.values().map(|volume| convert::volume_summary_in(&view, volume)).collect(),
        }))
    }

    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Result<Response<pb::ListNodesReply>, Status> {
        let view = self.context.view().await?;
        Ok(Response::new(pb::ListNodesReply { nodes: convert::node_views(&view) }))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeReply>, Status> {
        self.remove(&request.into_inner()).await?;
        Ok(Response::new(pb::RemoveNodeReply {}))
    }

    async fn standing(&self, request: Request<pb::StandingRequest>) -> Result<Response<pb::StandingReply>, Status> {
        let request = request.into_inner();
        let state = self.context.state();
        let removed = request.cluster == state.cluster.to_string() && state.is_removed(NodeId(request.node));
        Ok(Response::new(pb::StandingReply { removed }))
    }
}

/// Whether a node may go: it holds nothing, and the others can go on without it.
fn check_removal(state: &ClusterState, raft: &RaftStatus, me: NodeId, node: NodeId) -> Result<(), OperationError> {
    let name = name_of(state, node);
    let volumes = state.volumes.values().filter(|volume| volume.replicas.contains_key(&node));
    let holds: Vec<&str> = volumes.map(|volume| volume.name.as_str()).collect();
    if !holds.is_empty() {
        return Err(OperationError::Refused(format!(
            "{name} holds copies of {}; give them to another node first (`tandem volume replace VOLUME --old {name} --new \
             NODE`), or remove them (`tandem volume remove-replica VOLUME --node {name}`)",
            holds.join(", "),
        )));
    }
    if node == me {
        return Err(OperationError::Refused(format!(
            "{name} is the Raft leader just now; stop it first, then remove it through another node"
        )));
    }
    let rest: Vec<NodeId> =
        raft.members.iter().filter(|(id, voter)| **voter && **id != node).map(|(id, _)| *id).collect();
    let heard = rest.iter().filter(|id| raft.heard.get(id).copied().unwrap_or(**id == me)).count();
    if heard * 2 <= rest.len() {
        return Err(OperationError::Refused(format!(
            "without {name} no majority of the voters answers ({heard} of {}); bring one of them back first",
            rest.len()
        )));
    }
    Ok(())
}

/// Whether a newcomer's record may be added.
fn check_record(state: &ClusterState, record: &NodeRecord) -> Result<(), OperationError> {
    check_name("node name", &record.name).map_err(OperationError::Invalid)?;
    let mut addresses = vec![("peer", &record.peer_address), ("admin", &record.admin_address)];
    if record.kind == NodeKind::Storage {
        addresses.push(("nbd", &record.nbd_address));
    }
    for (what, address) in addresses {
        let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if address.len() > ADDRESS_BYTES_MAX || !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
        {
            return Err(OperationError::Invalid(format!("{what} address {address:?} is not HOST:PORT")));
        }
    }
    // A repeated join is recognised by its request, and gets the id it got before.
    let same = |node: &&NodeRecord| node.name == record.name;
    if let Some(node) = state.nodes.values().find(same)
        && node.join_request != record.join_request
    {
        return Err(OperationError::AlreadyExists(format!(
            "the cluster has a node named {:?} already; give each node its own name in its configuration",
            record.name
        )));
    }
    if state.nodes.len() >= NODES_MAX {
        return Err(OperationError::Refused(format!("a cluster has at most {NODES_MAX} nodes")));
    }
    Ok(())
}

/// What the newcomer keeps of the member's answer.
fn adoption(reply: &pb::AdmitNodeReply) -> Result<Adoption, OperationError> {
    let cluster = u128::from_str_radix(&reply.cluster, 16)
        .map_err(|_| OperationError::Failed(format!("the member told no cluster id but {:?}", reply.cluster)))?;
    let nodes = reply.nodes.iter().map(|node| Ok((NodeId(node.id), convert::node_record_from(node)?)));
    Ok(Adoption {
        cluster: cluster.into(),
        node: NodeId(reply.node),
        nodes: nodes.collect::<Result<_, OperationError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use proto::RequestId;

    use super::*;

    fn record(name: &str) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            peer_address: "10.0.0.1:7400".into(),
            admin_address: "10.0.0.1:7401".into(),
            nbd_address: "10.0.0.1:10809".into(),
            join_request: RequestId(1),
            ..NodeRecord::default()
        }
    }

    #[test]
    fn a_second_node_of_the_same_name_is_refused_but_a_retry_is_not() {
        let mut state = ClusterState::default();
        state.nodes.insert(NodeId(1), record("box-a"));
        assert_eq!(check_record(&state, &record("box-a")), Ok(()));
        let other = NodeRecord { join_request: RequestId(2), ..record("box-a") };
        assert!(matches!(check_record(&state, &other), Err(OperationError::AlreadyExists(_))));
        assert_eq!(check_record(&state, &record("box-b")), Ok(()));
    }

    #[test]
    fn a_node_goes_only_without_copies_and_while_a_majority_stays() {
        let mut state = ClusterState { next_node: 4, ..ClusterState::default() };
        for id in 1..=3 {
            state.nodes.insert(NodeId(id), record(&format!("box-{id}")));
        }
        let mut raft = RaftStatus { leader: NodeId(1), ..RaftStatus::default() };
        raft.members = (1..=3).map(|id| (NodeId(id), true)).collect();
        raft.heard = [(NodeId(1), true), (NodeId(2), false), (NodeId(3), true)].into();
        assert_eq!(check_removal(&state, &raft, NodeId(1), NodeId(2)), Ok(()));
        let refused = |node| check_removal(&state, &raft, NodeId(1), NodeId(node)).unwrap_err().to_string();
        assert!(refused(1).contains("leader"));
        assert!(refused(3).contains("1 of 2"), "{}", refused(3));
        state.nodes.remove(&NodeId(2));
        assert!(state.is_removed(NodeId(2)));
        assert!(![NodeId(1), NodeId(4), NodeId::NONE].into_iter().any(|node| state.is_removed(node)));
    }

    #[test]
    fn addresses_are_checked() {
        for address in ["", "7400", ":7400", "host:", "host:0", "host:70000", &format!("{}:1", "h".repeat(300))] {
            let bad = NodeRecord { admin_address: address.to_owned(), ..record("box-b") };
            let checked = check_record(&ClusterState::default(), &bad);
            assert!(matches!(checked, Err(OperationError::Invalid(_))), "{address}");
        }
        let witness = NodeRecord { kind: NodeKind::Witness, nbd_address: String::new(), ..record("w") };
        assert_eq!(check_record(&ClusterState::default(), &witness), Ok(()));
    }
}
