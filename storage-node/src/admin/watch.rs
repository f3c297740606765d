//! The Watch service: live events of this node, and the changes of the replicated state as it learns them.

use std::sync::Arc;

use proto::admin as pb;
use proto::admin::event::Kind;
use proto::{NodeId, ServiceVersion, VolumeId};
use replication::Notice;
use replication::config::{ClusterState, VolumeConfig};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::context::{Clock, Context, find_volume, name_of};
use super::convert;
use super::nfs_messages::service_message;
use super::operations::{NodeEvent, NodeEventKind};

/// Events that wait for a watcher's connection; the node's own channel holds more, and tells how many it dropped.
const WATCHER_EVENTS_MAX: usize = 64;

/// See the module.
pub(super) struct WatchService {
    context: Context,
    stopped: watch::Receiver<()>,
}

impl WatchService {
    /// `stopped` closes when the API shuts down; streams end then.
    pub(super) fn new(context: Context, stopped: watch::Receiver<()>) -> Self {
        Self { context, stopped }
    }
}

#[tonic::async_trait]
impl pb::watch_server::Watch for WatchService {
    type EventsStream = ReceiverStream<Result<pb::Event, Status>>;

    async fn events(&self, request: Request<pb::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let name = request.into_inner().volume;
        self.context.me()?;
        let only = match name.as_str() {
            "" => None,
            name => Some(find_volume(&self.context.state(), name)?.id),
        };
        let (sender, receiver) = mpsc::channel(WATCHER_EVENTS_MAX);
        let watcher = Watcher { context: self.context.clone(), only, sender };
        let mut stopped = self.stopped.clone();
        tokio::spawn(async move {
            let client = watcher.sender.clone();
            tokio::select! {
                () = watcher.run() => {}
                () = client.closed() => {}
                _ = stopped.changed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One client's stream.
struct Watcher {
    context: Context,
    only: Option<VolumeId>,
    sender: mpsc::Sender<Result<pb::Event, Status>>,
}

impl Watcher {
    /// Runs until the node stops or the client goes (`send` fails).
    async fn run(self) {
        let mut events = self.context.operations.events();
        let mut states = self.context.operations.state();
        let mut rafts = self.context.operations.raft();
        let mut state = states.borrow_and_update().clone();
        let mut leader = rafts.borrow_and_update().leader;
        let snapshot = pb::Snapshot {
            raft_leader: leader.0,
            volumes: state
                .volumes
                .values()
                .filter(|config| self.wants(Some(config.id)))
                .map(|config| convert::volume_summary(&state, config))
                .collect(),
        };
        if !self.send(None, Kind::Snapshot(snapshot), None).await {
            return;
        }
        loop {
            let goes_on = tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.send_node_event(&state, event).await,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        self.send(None, Kind::Missed(missed), None).await
                    }
                    Err(broadcast::error::RecvError::Closed) => false,
                },
                changed = states.changed() => {
                    let now = states.borrow_and_update().clone();
                    let before = std::mem::replace(&mut state, now);
                    changed.is_ok() && self.send_changes(&before, &state).await
                }
                changed = rafts.changed() => {
                    let raft = rafts.borrow_and_update().clone();
                    let moved = std::mem::replace(&mut leader, raft.leader) != raft.leader;
                    let kind = Kind::RaftLeader(pb::RaftLeaderChange {
                        leader: raft.leader.0,
                        leader_name: if raft.leader == NodeId::NONE { String::new() } else { name_of(&state, raft.leader) },
                        term: raft.term,
                    });
                    changed.is_ok() && (!moved || self.send(None, kind, None).await)
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    fn wants(&self, volume: Option<VolumeId>) -> bool {
        self.only.is_none() || volume.is_none() || volume == self.only
    }

    async fn send_node_event(&self, state: &Arc<ClusterState>, event: NodeEvent) -> bool {
        let name = event.volume.map(|id| match state.volumes.get(&id) {
            Some(config) => config.name.clone(),
            None => id.to_string(),
        });
        if !self.wants(event.volume) {
            return true;
        }
        let at = self.context.clock().unix(event.at);
        self.send(name, event_kind(state, event.kind), Some(at)).await
    }

    /// Tells what differs between two states.
    async fn send_changes(&self, before: &ClusterState, now: &ClusterState) -> bool {
        if before.nodes.keys().ne(now.nodes.keys()) {
            let kind = Kind::Membership(pb::MembershipChange { nodes: convert::node_names(now, now.nodes.keys()) });
            if !self.send(None, kind, None).await {
                return false;
            }
        }
        for (id, config) in &now.volumes {
            let changed = before.volumes.get(id).is_none_or(|old| visible_change(old, config));
            if changed && self.wants(Some(*id)) && !self.send_configuration(now, config, false).await {
                return false;
            }
        }
        for (id, config) in now.volumes.iter().filter(|(id, _)| self.wants(Some(**id))) {
            let version_before = before.volumes.get(id).map_or(ServiceVersion(0), VolumeConfig::nfs_version);
            if config.nfs_version() != version_before && !self.send_service(now, config).await {
                return false;
            }
        }
        for (id, config) in before.volumes.iter().filter(|(id, _)| !now.volumes.contains_key(id)) {
            if self.wants(Some(*id)) && !self.send_configuration(before, config, true).await {
                return false;
            }
        }
        true
    }

    async fn send_configuration(&self, state: &ClusterState, config: &VolumeConfig, deleted: bool) -> bool {
        let kind = Kind::Configuration(pb::ConfigurationChange {
            phase: convert::phase(config.phase) as i32,
            epoch: config.epoch.0,
            version: config.version.0,
            primary: config.primary.0,
            primary_name: name_of(state, config.primary),
            in_sync: convert::node_names(state, config.in_sync.keys()),
            deleted,
        });
        self.send(Some(config.name.clone()), kind, None).await
    }

    async fn send_service(&self, state: &ClusterState, config: &VolumeConfig) -> bool {
        let service = config.nfs.as_ref().map(|service| service_message(state, config, service));
        // The end of a service has the version that the cluster has come to.
        let version = config.nfs.as_ref().map_or(state.nfs_version, |service| service.version).0;
        self.send(Some(config.name.clone()), Kind::Nfs(pb::NfsChange { service, version }), None).await
    }

    async fn send(&self, volume: Option<String>, kind: Kind, at: Option<u64>) -> bool {
        let facts = self.context.operations.facts();
        let event = pb::Event {
            at_unix_micros: at.unwrap_or_else(|| Clock::now(self.context.operations.now()).unix_now()),
            node: facts.identity.map_or(0, |(_, node)| node.0),
            node_name: facts.record.name,
            volume: volume.unwrap_or_default(),
            kind: Some(kind),
        };
        self.sender.send(Ok(event)).await.is_ok()
    }
}

/// True when a person would see a difference; renewals and registrations move only the version.
fn visible_change(old: &VolumeConfig, new: &VolumeConfig) -> bool {
    (old.phase, old.epoch, old.primary, &old.name) != (new.phase, new.epoch, new.primary, &new.name)
        || old.in_sync.keys().ne(new.in_sync.keys())
        || old.replicas.keys().ne(new.replicas.keys())
}

fn event_kind(state: &ClusterState, kind: NodeEventKind) -> Kind {
    match kind {
        NodeEventKind::Notice(Notice::Role { from, to, epoch }) => {
            Kind::Role(pb::RoleChange { from: from.into(), to: to.into(), epoch: epoch.0 })
        }
        NodeEventKind::Notice(Notice::Peer { node, state: now }) => {
            Kind::Peer(pb::PeerChange { node: node.0, node_name: name_of(state, node), state: now.into() })
        }
        NodeEventKind::Notice(Notice::Resync { node, remaining_blocks, sent_blocks, done }) => {
            Kind::Resync(pb::ResyncProgress {
                node: node.0,
                node_name: name_of(state, node),
                remaining_blocks,
                sent_blocks,
                done,
            })
        }
        NodeEventKind::Notice(Notice::DiskDetached { failed }) => Kind::DiskDetached(pb::DiskDetached { failed }),
        NodeEventKind::Notice(Notice::SwitchoverRefused { why }) => {
            Kind::SwitchoverRefused(pb::SwitchoverRefused { why: why.into() })
        }
        NodeEventKind::Notice(Notice::ScrubRefused { why }) => Kind::ScrubRefused(pb::ScrubRefused { why: why.into() }),
        NodeEventKind::Notice(Notice::Scrub { report, done }) => {
            Kind::Scrub(pb::ScrubProgress { scrub: Some(convert::scrub(&report)), done })
        }
        NodeEventKind::Notice(Notice::DetachRefused { why }) => Kind::Text(format!("detach refused: {why}")),
        NodeEventKind::StoreProgress { done, total } => {
            Kind::StoreProgress(pb::StoreProgress { done_bytes: done, total_bytes: total })
        }
        NodeEventKind::Text(text) => Kind::Text(text),
    }
}
