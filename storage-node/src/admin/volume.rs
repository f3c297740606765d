//! The Volume service.

use std::time::Duration;

use proto::admin as pb;
use proto::{DiskId, NodeId, RequestId, VolumeId};
use replication::Notice;
use replication::config::command::CommandBody;
use replication::config::{AckPolicy, ClusterState, Command, NodeCommand, NodeKind, Outcome, VolumeCommand};
use replication::event::Control;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

use super::context::{Context, PROPOSE_PATIENCE, find_storage_node, find_volume};
use super::operations::{NodeEvent, NodeEventKind, OperationError};
use super::validate::{check_name, check_size};
use super::{convert, force, replace, scrub, switchover};

/// Volumes of a cluster.
const VOLUMES_MAX: usize = 1024;
/// How long a volume may take to give its disk up, or to refuse.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);
/// Copies of a volume.
pub(super) const REPLICAS_MAX: usize = 2;

/// See the module.
pub(super) struct VolumeService {
    context: Context,
}

impl VolumeService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }

    async fn create_volume(&self, request: pb::CreateVolumeRequest) -> Result<VolumeId, OperationError> {
        let me = self.context.me()?;
        let state = self.context.state();
        check_create(&state, &request)?;
        let nodes = placement(&state, me, &request.nodes)?;
        let volume = VolumeId(rand::random());
        let body = NodeCommand::CreateVolume {
            volume,
            name: request.name.clone(),
            size_bytes: request.size_bytes,
            ack_policy: match request.ack_policy() {
                pb::AckPolicy::Durable => AckPolicy::Durable,
                pb::AckPolicy::Flush | pb::AckPolicy::Unspecified => AckPolicy::Flush,
            },
            preallocate: request.preallocate,
            replicas: nodes.into_iter().map(|node| (node, DiskId(rand::random()))).collect(),
        };
        let command = Command { request: RequestId(rand::random()), body: CommandBody::Node(body) };
        match self.context.operations.propose(command, PROPOSE_PATIENCE).await? {
            Outcome::Refused(why) => Err(OperationError::Refused(why.to_owned())),
            _ => Ok(volume),
        }
    }

    /// Node and volume of a request about one copy.
    fn replica_of(&self, volume: &str, node: &str) -> Result<(NodeId, VolumeId), OperationError> {
        let state = self.context.state();
        let config = find_volume(&state, volume)?;
        let node_id = find_storage_node(&state, node)?;
        if !config.replicas.contains_key(&node_id) {
            return Err(OperationError::NotFound(format!("{node} holds no copy of {}", config.name)));
        }
        Ok((node_id, config.id))
    }

    async fn detach_replica(&self, request: pb::DetachRequest) -> Result<(), OperationError> {
        let (node, volume) = self.replica_of(&request.volume, &request.node)?;
        self.context.require_node(node, "holds that copy")?;
        let state = self.context.state();
        let config = find_volume(&state, &request.volume)?;
        if config.in_sync.len() == 1 && config.in_sync.contains_key(&node) {
            return Err(OperationError::Refused(format!(
                "the copy on {} is the only one in sync: detaching it would stop {}; wait for the other copy, or stop \
                 the clients and the node",
                request.node, config.name
            )));
        }
        // Subscribed before the wish is handed over, so that the answer cannot be missed.
        let mut events = self.context.operations.events();
        self.context.operations.control(volume, Control::Detach).await?;
        let detached = async {
            loop {
                match events.recv().await {
                    Ok(NodeEvent { volume: of, kind: NodeEventKind::Notice(notice), .. }) if of == Some(volume) => {
                        match notice {
                            Notice::DiskDetached { .. } => return Ok(()),
                            Notice::DetachRefused { why } => {
                                let text = format!("the copy on {} is not detached: {why}", request.node);
                                return Err(OperationError::Refused(text));
                            }
                            _ => {}
                        }
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => {
                        return Err(OperationError::Unavailable("this node is stopping".into()));
                    }
                }
            }
        };
        let waited = tokio::time::timeout(DETACH_PATIENCE, detached).await;
        waited.unwrap_or_else(|_| {
            Err(OperationError::Timeout(format!("the volume did not answer within {DETACH_PATIENCE:?}")))
        })
    }

    async fn attach_replica(&self, request: pb::AttachRequest) -> Result<(), OperationError> {
        let (node, volume) = self.replica_of(&request.volume, &request.node)?;
        self.context.require_node(node, "holds that copy")?;
        self.context.operations.attach(volume).await
    }

    async fn add(&self, request: pb::AddReplicaRequest) -> Result<DiskId, OperationError> {
        let disk_id = DiskId(rand::random());
        self.context
            .propose_volume(&request.volume, |state, config| {
                let node = find_storage_node(state, &request.node)?;
                if config.replicas.contains_key(&node) {
                    return Err(OperationError::AlreadyExists(format!(
                        "{} holds a copy of {} already",
                        request.node, config.name
                    )));
                }
                if config.replicas.len() >= REPLICAS_MAX {
                    return Err(OperationError::Refused(format!(
                        "{} has {REPLICAS_MAX} copies, which is the most; remove one first",
                        config.name
                    )));
                }
                Ok(VolumeCommand::AddReplica { node, disk_id })
            })
            .await?;
        Ok(disk_id)
    }

    async fn remove(&self, request: pb::RemoveReplicaRequest) -> Result<(), OperationError> {
        self.context
            .propose_volume(&request.volume, |state, config| {
                let node = find_storage_node(state, &request.node)?;
                if !config.replicas.contains_key(&node) {
                    return Err(OperationError::NotFound(format!("{} holds no copy of {}", request.node, config.name)));
                }
                if config.primary == node {
                    return Err(OperationError::Refused(format!(
                        "{} is primary of {}: switch over first",
                        request.node, config.name
                    )));
                }
                if config.in_sync.contains_key(&node) {
                    return Err(OperationError::Refused(format!(
                        "the copy on {} is in sync and in use: detach it first (`tandem volume detach {} --node {}`)",
                        request.node, config.name, request.node
                    )));
                }
                Ok(VolumeCommand::RemoveReplica { node })
            })
            .await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl pb::volume_server::Volume for VolumeService {
    async fn create(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeReply>, Status> {
        let volume = self.create_volume(request.into_inner()).await?;
        Ok(Response::new(pb::CreateVolumeReply { volume: volume.to_string() }))
    }

    async fn list(&self, _: Request<pb::ListVolumesRequest>) -> Result<Response<pb::ListVolumesReply>, Status> {
        let view = self.context.view().await?;
        let volumes = view.state.volumes.values().map(|config| convert::volume_summary_in(&view, config)).collect();
        Ok(Response::new(pb::ListVolumesReply { volumes }))
    }

    async fn show(&self, request: Request<pb::ShowVolumeRequest>) -> Result<Response<pb::ShowVolumeReply>, Status> {
        let view = self.context.view().await?;
        let config = find_volume(&view.state, &request.into_inner().volume)?;
        Ok(Response::new(convert::volume_details(&view, config)))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        let volume = find_volume(&self.context.state(), &request.into_inner().volume)?.id;
        self.context.propose_node(NodeCommand::DeleteVolume { volume }).await?;
        Ok(Response::new(pb::DeleteVolumeReply {}))
    }

    async fn switchover(
        &self,
        request: Request<pb::SwitchoverRequest>,
    ) -> Result<Response<pb::SwitchoverReply>, Status> {
        Ok(Response::new(switchover::switchover(&self.context, request.into_inner()).await?))
    }

    async fn prepare_force(
        &self,
        request: Request<pb::PrepareForceRequest>,
    ) -> Result<Response<pb::PrepareForceReply>, Status> {
        Ok(Response::new(force::prepare(&self.context, request.into_inner()).await?))
    }

    async fn force_primary(
        &self,
        request: Request<pb::ForcePrimaryRequest>,
    ) -> Result<Response<pb::ForcePrimaryReply>, Status> {
        Ok(Response::new(force::force(&self.context, request.into_inner()).await?))
    }

    async fn detach(&self, request: Request<pb::DetachRequest>) -> Result<Response<pb::DetachReply>, Status> {
        self.detach_replica(request.into_inner()).await?;
        Ok(Response::new(pb::DetachReply {}))
    }

    async fn attach(&self, request: Request<pb::AttachRequest>) -> Result<Response<pb::AttachReply>, Status> {
        self.attach_replica(request.into_inner()).await?;
        Ok(Response::new(pb::AttachReply {}))
    }

    async fn add_replica(
        &self,
        request: Request<pb::AddReplicaRequest>,
    ) -> Result<Response<pb::AddReplicaReply>, Status> {
        let disk_id = self.add(request.into_inner()).await?;
        Ok(Response::new(pb::AddReplicaReply { disk_id: disk_id.to_string() }))
    }

    async fn remove_replica(
        &self,
        request: Request<pb::RemoveReplicaRequest>,
    ) -> Result<Response<pb::RemoveReplicaReply>, Status> {
        self.remove(request.into_inner()).await?;
        Ok(Response::new(pb::RemoveReplicaReply {}))
    }

    async fn replace(&self, request: Request<pb::ReplaceRequest>) -> Result<Response<pb::ReplaceReply>, Status> {
        Ok(Response::new(replace::replace(&self.context, request.into_inner()).await?))
    }

    async fn start_scrub(
        &self,
        request: Request<pb::StartScrubRequest>,
    ) -> Result<Response<pb::StartScrubReply>, Status> {
        Ok(Response::new(scrub::start(&self.context, request.into_inner()).await?))
    }
}

fn check_create(state: &ClusterState, request: &pb::CreateVolumeRequest) -> Result<(), OperationError> {
    check_name("volume name", &request.name).map_err(OperationError::Invalid)?;
    check_size(request.size_bytes).map_err(OperationError::Invalid)?;
    if state.volumes.values().any(|volume| volume.name == request.name) {
        return Err(OperationError::AlreadyExists(format!("a volume named {:?} exists already", request.name)));
    }
    if state.volumes.len() >= VOLUMES_MAX {
        return Err(OperationError::Refused(format!("a cluster has at most {VOLUMES_MAX} volumes")));
    }
    Ok(())
}

/// The nodes that shall hold copies, the first of them as primary.
fn placement(state: &ClusterState, me: NodeId, names: &[String]) -> Result<Vec<NodeId>, OperationError> {
    if names.is_empty() {
        let storage = state.nodes.iter().filter(|(_, record)| record.kind == NodeKind::Storage);
        let mut nodes: Vec<NodeId> = storage.map(|(node, _)| *node).collect();
        if nodes.len() != REPLICAS_MAX {
            return Err(OperationError::Invalid(format!(
                "the cluster has {} storage nodes; choose two for the copies with --node A --node B (one copy only: one \
                 --node)",
                nodes.len()
            )));
        }
        nodes.sort_by_key(|node| *node != me);
        return Ok(nodes);
    }
    if names.len() > REPLICAS_MAX {
        return Err(OperationError::Invalid(format!("a volume has at most {REPLICAS_MAX} copies")));
    }
    let mut nodes = Vec::new();
    for name in names {
        let node = find_storage_node(state, name)?;
        if nodes.contains(&node) {
            return Err(OperationError::Invalid(format!("{name} is named twice; two copies need two nodes")));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use replication::config::NodeRecord;

    use super::*;

    fn state() -> ClusterState {
        let node = |name: &str, kind| NodeRecord { name: name.into(), kind, ..NodeRecord::default() };
        let mut state = ClusterState::default();
        state.nodes.insert(NodeId(1), node("box-a", NodeKind::Storage));
        state.nodes.insert(NodeId(2), node("box-b", NodeKind::Storage));
        state.nodes.insert(NodeId(3), node("quorum", NodeKind::Witness));
        state
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn copies_go_to_the_two_storage_nodes_the_one_asked_first() {
        assert_eq!(placement(&state(), NodeId(2), &[]), Ok(vec![NodeId(2), NodeId(1)]));
        assert_eq!(placement(&state(), NodeId(3), &[]), Ok(vec![NodeId(1), NodeId(2)]));
        assert_eq!(placement(&state(), NodeId(1), &names(&["2", "box-a"])), Ok(vec![NodeId(2), NodeId(1)]));
    }

    #[test]
    fn placement_errors_say_what_is_allowed() {
        let mut big = state();
        big.nodes.insert(NodeId(4), NodeRecord { name: "box-c".into(), ..NodeRecord::default() });
        assert!(
            matches!(placement(&big, NodeId(1), &[]), Err(OperationError::Invalid(text)) if text.contains("3 storage"))
        );
        let error = |given: &[&str]| placement(&state(), NodeId(1), &names(given)).unwrap_err().to_string();
        assert!(error(&["box-a", "quorum"]).contains("witness"));
        assert!(error(&["box-a", "1"]).contains("twice"));
        assert!(error(&["box-x"]).contains("tandem node list"));
        assert!(error(&["box-a", "box-b", "quorum"]).contains("at most 2"));
    }

    #[test]
    fn the_server_checks_names_and_sizes_itself() {
        let request = |name: &str, size_bytes| pb::CreateVolumeRequest {
            name: name.into(),
            size_bytes,
            ..pb::CreateVolumeRequest::default()
        };
        assert_eq!(check_create(&state(), &request("vm", 1 << 30)), Ok(()));
        assert!(matches!(check_create(&state(), &request("a/b", 1 << 30)), Err(OperationError::Invalid(_))));
        assert!(matches!(check_create(&state(), &request("vm", 4095)), Err(OperationError::Invalid(_))));
    }
}
