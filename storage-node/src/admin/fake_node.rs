//! A node without disks or peers, for tests of the services: real configuration state machine, everything else by hand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use gateway_nfs::statistics::report::Report;
use proto::{ClusterId, Incarnation, NodeId, RequestId, Timestamp, VolumeId};
use replication::config::command::CommandBody;
use replication::config::{ClusterState, Command, NodeCommand, NodeRecord, Outcome};
use replication::event::Control;
use tokio::sync::{broadcast, mpsc, watch};

use super::operations::*;
use crate::files::check::Verdict;
use crate::files::error::FilesError;
use crate::files::make::Progress;
use crate::files::mounted::FilesHandle;
use crate::raft::RaftStatus;

/// See the module.
pub(crate) struct FakeNode {
    pub(crate) record: NodeRecord,
    pub(crate) identity: Mutex<Option<(ClusterId, NodeId)>>,
    pub(crate) state: watch::Sender<Arc<ClusterState>>,
    pub(crate) raft: watch::Sender<RaftStatus>,
    pub(crate) events: broadcast::Sender<NodeEvent>,
    pub(crate) replicas: Mutex<Vec<ReplicaReport>>,
    pub(crate) controls: Mutex<Vec<(VolumeId, Control)>>,
    pub(crate) stopped: AtomicBool,
    pub(crate) nfs_reports: Mutex<BTreeMap<VolumeId, Report>>,
    pub(crate) out_of_service: Mutex<Option<String>>,
    /// Applied before the next proposal: somebody else was faster.
    pub(crate) faster: Mutex<Option<CommandBody>>,
}

impl FakeNode {
    pub(crate) fn new(name: &str, admin_address: &str) -> Arc<Self> {
        let record = NodeRecord {
            name: name.into(),
            peer_address: "127.0.0.1:1".into(),
            admin_address: admin_address.into(),
            nbd_address: "127.0.0.1:2".into(),
            incarnation: Incarnation(rand::random()),
            feature_levels: (1, 3),
            join_request: RequestId(rand::random()),
            ..NodeRecord::default()
        };
        Arc::new(FakeNode {
            record,
            identity: Mutex::new(None),
            state: watch::Sender::new(Arc::default()),
            raft: watch::Sender::new(RaftStatus::default()),
            events: broadcast::Sender::new(NODE_EVENTS_MAX),
            replicas: Mutex::default(),
            controls: Mutex::default(),
            stopped: AtomicBool::new(false),
            nfs_reports: Mutex::default(),
            out_of_service: Mutex::default(),
            faster: Mutex::default(),
        })
    }

    /// Applies a command as if a majority had agreed.
    pub(crate) fn apply(&self, body: CommandBody) -> Outcome {
        let mut outcome = Outcome::Applied;
        self.state.send_modify(|state| {
            outcome = Arc::make_mut(state).apply(&Command { request: RequestId(rand::random()), body });
        });
        outcome
    }
}

impl NodeOperations for FakeNode {
    fn facts(&self) -> NodeFacts {
        NodeFacts {
            identity: *self.identity.lock().unwrap(),
            record: self.record.clone(),
            incarnation: self.record.incarnation,
            supervisor_pid: 0,
            worker_pid: std::process::id(),
            started: Timestamp(0),
            software: "test".into(),
            insecure_plaintext: false,
            out_of_service: self.out_of_service.lock().unwrap().clone(),
            nfs_host: "files.example".into(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(1_000_000)
    }

    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    fn raft(&self) -> watch::Receiver<RaftStatus> {
        self.raft.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.events.subscribe()
    }

    fn replicas(&self) -> BoxFuture<'_, Vec<ReplicaReport>> {
        Box::pin(async { self.replicas.lock().unwrap().clone() })
    }

    fn init(&self, _: Duration) -> BoxFuture<'_, Result<ClusterId, OperationError>> {
        Box::pin(async {
            if self.identity.lock().unwrap().is_some() {
                return Err(OperationError::Refused("in a cluster already".into()));
            }
            let cluster = ClusterId(rand::random());
            self.apply(CommandBody::Node(NodeCommand::Init { cluster, node: self.record.clone() }));
            *self.identity.lock().unwrap() = Some((cluster, NodeId(1)));
            let members = [(NodeId(1), true)].into();
            self.raft.send_replace(RaftStatus { leader: NodeId(1), term: 1, members, ..RaftStatus::default() });
            Ok(cluster)
        })
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Result<(), OperationError>> {
        Box::pin(async move {
            *self.identity.lock().unwrap() = Some((adoption.cluster, adoption.node));
            Ok(())
        })
    }

    fn propose(&self, command: Command, _: Duration) -> BoxFuture<'_, Result<Outcome, OperationError>> {
        Box::pin(async {
            let faster = self.faster.lock().unwrap().take();
            if let Some(body) = faster {
                assert_eq!(self.apply(body), Outcome::Applied);
            }
            Ok(self.apply(command.body))
        })
    }

    fn read_index(&self, _: Duration) -> BoxFuture<'_, Result<(), OperationError>> {
        Box::pin(async { Ok(()) })
    }

    fn add_voter(&self, node: NodeId, _: Duration) -> BoxFuture<'_, Result<bool, OperationError>> {
        self.raft.send_modify(|raft| {
            raft.members.insert(node, true);
        });
        Box::pin(async { Ok(true) })
    }

    fn remove_voter(&self, node: NodeId, _: Duration) -> BoxFuture<'_, Result<(), OperationError>> {
        self.raft.send_modify(|raft| {
            raft.members.remove(&node);
        });
        Box::pin(async { Ok(()) })
    }

    fn control(&self, volume: VolumeId, control: Control) -> BoxFuture<'_, Result<(), OperationError>> {
        self.controls.lock().unwrap().push((volume, control));
        Box::pin(async { Ok(()) })
    }

    fn attach(&self, _: VolumeId) -> BoxFuture<'_, Result<(), OperationError>> {
        Box::pin(async { Ok(()) })
    }

    fn files(&self, _: VolumeId) -> BoxFuture<'_, Result<FilesHandle, FilesError>> {
        Box::pin(async { Err(FilesError::NoFilesystem) })
    }

    fn nfs_report(&self, volume: VolumeId) -> BoxFuture<'_, Option<Report>> {
        Box::pin(async move { self.nfs_reports.lock().unwrap().get(&volume).cloned() })
    }

    fn close_files(&self, _: VolumeId) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }

    fn make_filesystem(
        &self,
        _: VolumeId,
        _: bool,
        _: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<(), FilesError>> {
        Box::pin(async { Err(FilesError::Clients(1)) })
    }

    fn check_filesystem(&self, _: VolumeId) -> BoxFuture<'_, Result<(Verdict, Option<String>), FilesError>> {
        Box::pin(async { Err(FilesError::NoFilesystem) })
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}
