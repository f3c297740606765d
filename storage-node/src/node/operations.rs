//! The admin API's way into the node.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use gateway_nfs::statistics::report::Report;
use proto::{ClusterId, NodeId, Timestamp, VolumeId};
use rand::Rng;
use replication::config::{ClusterState, Command, CommandBody, NodeCommand, NodeKind, Outcome};
use replication::event::Control;
use tokio::sync::{broadcast, mpsc, watch};
use tracing::{info, warn};

use super::core::{Core, End};
use super::data_dir::NodeIdentity;
use super::files;
use super::membership::Membership;
use super::pace::{self, Paces, Work};
use super::volumes::LocalVolume;
use crate::admin::{Adoption, NodeEvent, NodeFacts, NodeOperations, OperationError, ReplicaReport, StoreState};
use crate::files::check::Verdict;
use crate::files::error::FilesError;
use crate::files::make::Progress;
use crate::files::mounted::FilesHandle;
use crate::raft::{ProposeError, RaftStatus};
use crate::volume::handle::VolumeStatus;
use crate::volume::{DiskState, boot_time};

/// How long a volume may take to tell its status.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

/// A handle to the node; cheap to clone.
#[derive(Clone)]
pub struct Operations {
    core: Arc<Core>,
    paces: Arc<Paces>,
}

impl Operations {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, paces: Arc::default() }
    }

    /// Measures the pace of what is under way, until the node ends.
    pub(super) async fn measure(self) {
        let mut looks = tokio::time::interval(pace::INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let reports = self.replicas().await;
            self.paces.note(boot_time(), reports.iter().flat_map(under_way));
        }
    }

    fn member(&self) -> Result<Arc<Membership>, OperationError> {
        self.core.membership().ok_or_else(|| match self.core.out_of_service() {
            Some(why) => OperationError::Refused(why),
            None => OperationError::NotInCluster,
        })
    }

    async fn enter_new(&self, patience: Duration) -> Result<ClusterId, OperationError> {
        let _entering = self.core.entering.lock().await;
        if let Some(why) = self.core.out_of_service() {
            return Err(OperationError::Refused(why));
        }
        if let Some(membership) = self.core.membership() {
            let cluster = membership.identity.cluster;
            return Err(OperationError::Refused(format!("this node is in cluster {cluster} already")));
        }
        let cluster = ClusterId(rand::rng().random_range(1..=u128::MAX));
        let identity = NodeIdentity { cluster, node: NodeId(1), founding: true };
        self.keep(identity)?;
        let bootstrap = init_command(&self.core, cluster);
        let membership = Membership::start(&self.core, identity, Some(bootstrap), &[]).await.map_err(failed)?;
        let mut state = membership.raft.state();
        let applied = state.wait_for(|state| state.cluster == cluster);
        match tokio::time::timeout(patience, applied).await {
            Ok(Ok(_)) => Ok(cluster),
            Ok(Err(_)) => Err(OperationError::Failed("the Raft driver has stopped; see the node's log".into())),
            Err(_) => Err(OperationError::Timeout(format!("the first entry was not applied within {patience:?}"))),
        }
    }

    async fn enter(&self, adoption: Adoption) -> Result<(), OperationError> {
        let _entering = self.core.entering.lock().await;
        if let Some(why) = self.core.out_of_service() {
            return Err(OperationError::Refused(why));
        }
        if let Some(membership) = self.core.membership() {
            let held = membership.identity;
            if (held.cluster, held.node) == (adoption.cluster, adoption.node) {
                return Ok(());
            }
            let text = format!("this node is node {} of cluster {} already", held.node, held.cluster);
            return Err(OperationError::Refused(text));
        }
        if adoption.cluster == ClusterId::default() || adoption.node == NodeId::NONE {
            return Err(OperationError::Invalid("a node is adopted under a cluster and a number, neither is 0".into()));
        }
        let identity = NodeIdentity { cluster: adoption.cluster, node: adoption.node, founding: true };
        self.keep(identity)?;
        let known: Vec<_> = adoption.nodes.into_iter().map(|(node, record)| (node, record.peer_address)).collect();
        Membership::start(&self.core, identity, None, &known).await.map_err(failed)?;
        Ok(())
    }

    fn keep(&self, identity: NodeIdentity) -> Result<(), OperationError> {
        self.core.data_dir.set_identity(identity).map_err(failed)
    }

    async fn reopen(&self, volume: VolumeId) -> Result<(), OperationError> {
        let membership = self.member()?;
        let (Some(storage), Some(handle)) = (&self.core.storage, membership.volumes.handle(volume)) else {
            return Err(OperationError::NotFound("no copy of this volume is on this node".into()));
        };
        let registered = {
            let state = membership.raft.state();
            let now = state.borrow();
            now.volumes.get(&volume).and_then(|v| v.replicas.get(&membership.identity.node)).map(|r| r.disk_id)
        };
        let Some(disk_id) = registered else {
            return Err(OperationError::NotFound("no copy of this volume is registered on this node".into()));
        };
        let (pool, cluster) = (storage.pool.clone(), membership.identity.cluster);
        let mut scanned = tokio::task::spawn_blocking(move || pool.scan(Some(cluster))).await.unwrap_or_default();
        let is_it = |found: &crate::disk::FoundStore| found.volume == volume && found.disk_id == disk_id;
        let Some(position) = scanned.iter().position(|result| result.as_ref().is_ok_and(is_it)) else {
            let refused: Vec<String> =
                scanned.iter().filter_map(|r| r.as_ref().err().map(ToString::to_string)).collect();
            let others = if refused.is_empty() { String::new() } else { format!("; refused: {}", refused.join("; ")) };
            return Err(OperationError::NotFound(format!("its store (disk {disk_id}) is not on this node{others}")));
        };
        let Ok(found) = scanned.swap_remove(position) else {
            return Err(OperationError::NotFound("its store is not usable".into()));
        };
        let suspect = storage.detached.get(volume, disk_id).is_some_and(|mark| mark.failed);
        handle.attach(found, suspect).await.map_err(OperationError::Refused)?;
        storage.detached.attached(volume).map_err(failed)?;
        info!(%volume, "attached again");
        Ok(())
    }
}

/// The first entry of a new cluster.
pub(super) fn init_command(core: &Core, cluster: ClusterId) -> Command {
    Membership::command(CommandBody::Node(NodeCommand::Init { cluster, node: core.record() }))
}

fn failed(why: impl std::fmt::Display) -> OperationError {
    OperationError::Failed(why.to_string())
}

fn no_outcome(why: ProposeError) -> OperationError {
    match why {
        ProposeError::Timeout(_) => OperationError::Timeout(why.to_string()),
        ProposeError::Refused(_) => OperationError::Refused(why.to_string()),
        ProposeError::Stopped(_) => OperationError::Unavailable(why.to_string()),
    }
}

/// What is under way on a primary, and how many blocks are left of it.
fn under_way(report: &ReplicaReport) -> impl Iterator<Item = (Work, u64)> {
    let volume = report.volume;
    let scrub = report.status.scrub.map(|scrub| (Work::Scrub(volume), scrub.blocks.saturating_sub(scrub.done_blocks)));
    let peers = report.status.peers.iter().filter(|(_, state, left, _)| *state == "resyncing" && *left > 0);
    scrub.into_iter().chain(peers.map(move |(node, _, left, _)| (Work::Resync(volume, *node), *left)))
}

/// Adds how long it will all take still.
fn with_estimates(mut report: ReplicaReport, paces: &Paces) -> ReplicaReport {
    let works: Vec<(Work, u64)> = under_way(&report).collect();
    for (work, left) in works {
        match (work, paces.time_left(work, left)) {
            (Work::Scrub(_), time) => report.scrub_left = time,
            (Work::Resync(_, node), Some(time)) => report.resync_left.push((node, time)),
            (Work::Resync(..), None) => {}
        }
    }
    report
}

/// A copy and what its volume says; one that does not answer in time has the role `unknown`.
fn report(volume: VolumeId, local: &LocalVolume, status: Option<VolumeStatus>) -> ReplicaReport {
    let mut path = match local {
        LocalVolume::Running { found: Some(found), .. } => found.path.display().to_string(),
        _ => String::new(),
    };
    let unknown = || replication::Status { role: "unknown", ..Default::default() };
    let copy = status.as_ref().and_then(|status| status.copy);
    let acknowledged = status.as_ref().map(|status| status.acknowledged).unwrap_or_default();
    let data_offset = match status.as_ref().map(|status| &status.disk) {
        Some(DiskState::Open { data_offset, .. }) => *data_offset,
        _ => 0,
    };
    let (store, replica, nbd_clients) = match (local, status) {
        (LocalVolume::Creating { done, total, .. }, _) => {
            (StoreState::Creating { done: *done, total: *total }, unknown(), 0)
        }
        (LocalVolume::CreateFailed { why, .. }, _) => (StoreState::Failed(why.clone()), unknown(), 0),
        (LocalVolume::Removing { .. }, _) => (StoreState::Missing, unknown(), 0),
        (LocalVolume::Running { .. }, Some(status)) => {
            let store = match status.disk {
                DiskState::Open { path: open, .. } | DiskState::Opening { path: open, .. } => {
                    path = open.display().to_string();
                    StoreState::Open
                }
                DiskState::Absent(why) => StoreState::Failed(why),
                DiskState::Closing { failed: true, why, .. } | DiskState::Detached { failed: true, why, .. } => {
                    StoreState::Failed(why)
                }
                DiskState::Closing { .. } | DiskState::Detached { .. } => StoreState::Detached,
            };
            (store, status.replica, status.clients)
        }
        (LocalVolume::Running { .. }, None) => (StoreState::Open, unknown(), 0),
    };
    ReplicaReport {
        volume,
        disk_id: local.disk_id(),
        path,
        store,
        status: replica,
        nbd_clients,
        data_offset,
        copy,
        acknowledged,
        scrub_left: None,
        resync_left: Vec::new(),
    }
}

impl NodeOperations for Operations {
    fn facts(&self) -> NodeFacts {
        let core = &self.core;
        NodeFacts {
            identity: core.membership().map(|membership| (membership.identity.cluster, membership.identity.node)),
            record: core.record(),
            incarnation: core.incarnation,
            supervisor_pid: core.supervisor_pid,
            worker_pid: std::process::id(),
            started: core.started,
            software: env!("CARGO_PKG_VERSION").into(),
            insecure_plaintext: core.config.listens_beyond_loopback(),
            out_of_service: core.out_of_service(),
            nfs_host: if core.kind == NodeKind::Witness { String::new() } else { core.config.nfs_host() },
        }
    }

    fn now(&self) -> Timestamp {
        boot_time()
    }

    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        match self.core.membership() {
            Some(membership) => membership.raft.state(),
            None => self.core.no_state.subscribe(),
        }
    }

    fn raft(&self) -> watch::Receiver<RaftStatus> {
        match self.core.membership() {
            Some(membership) => membership.raft.status(),
            None => self.core.no_raft.subscribe(),
        }
    }

    fn events(&self) -> broadcast::Receiver<NodeEvent> {
        self.core.events.subscribe()
    }

    fn replicas(&self) -> BoxFuture<'_, Vec<ReplicaReport>> {
        async move {
            let Some(membership) = self.core.membership() else { return Vec::new() };
            let locals: Vec<_> =
                membership.volumes.lock().iter().map(|(volume, local)| (*volume, local.clone())).collect();
            let reports = locals.iter().map(|(volume, local)| async move {
                let status = match local.handle() {
                    Some(handle) => {
                        tokio::time::timeout(STATUS_PATIENCE, handle.status()).await.ok().and_then(Result::ok)
                    }
                    None => None,
                };
                with_estimates(report(*volume, local, status), &self.paces)
            });
            join_all(reports).await
        }
        .boxed()
    }

    fn init(&self, patience: Duration) -> BoxFuture<'_, Result<ClusterId, OperationError>> {
        self.enter_new(patience).boxed()
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Result<(), OperationError>> {
        self.enter(adoption).boxed()
    }

    fn propose(&self, command: Command, patience: Duration) -> BoxFuture<'_, Result<Outcome, OperationError>> {
        async move { self.member()?.raft.propose_and_wait(command, patience).await.map_err(no_outcome) }.boxed()
    }

    fn read_index(&self, patience: Duration) -> BoxFuture<'_, Result<(), OperationError>> {
        async move { self.member()?.raft.read_index(patience).await.map_err(no_outcome) }.boxed()
    }

    fn add_voter(&self, node: NodeId, patience: Duration) -> BoxFuture<'_, Result<bool, OperationError>> {
        async move { self.member()?.raft.add_voter(node, patience).await.map_err(no_outcome) }.boxed()
    }

    fn remove_voter(&self, node: NodeId, patience: Duration) -> BoxFuture<'_, Result<(), OperationError>> {
        async move { self.member()?.raft.remove_voter(node, patience).await.map_err(no_outcome) }.boxed()
    }

    fn control(&self, volume: VolumeId, control: Control) -> BoxFuture<'_, Result<(), OperationError>> {
        async move {
            let member = self.member()?;
            let Some(handle) = member.volumes.handle(volume) else {
                return Err(OperationError::NotFound("no copy of this volume is on this node".into()));
            };
            if let Control::Switchover { .. } = control
                && !member.files.close(volume).await
            {
                warn!(%volume, "its filesystem is not closed yet; the new primary recovers it");
            }
            handle.control(control).await.map_err(|why| OperationError::Unavailable(why.to_string()))
        }
        .boxed()
    }

    fn attach(&self, volume: VolumeId) -> BoxFuture<'_, Result<(), OperationError>> {
        self.reopen(volume).boxed()
    }

    fn files(&self, volume: VolumeId) -> BoxFuture<'_, Result<FilesHandle, FilesError>> {
        files::open(&self.core, volume).boxed()
    }

    fn nfs_report(&self, volume: VolumeId) -> BoxFuture<'_, Option<Report>> {
        async move { self.core.membership()?.nfs_reports.ask(volume).await }.boxed()
    }

    fn close_files(&self, volume: VolumeId) -> BoxFuture<'_, bool> {
        async move {
            match self.core.membership() {
                Some(membership) => membership.files.close(volume).await,
                None => true,
            }
        }
        .boxed()
    }

    fn make_filesystem(
        &self,
        volume: VolumeId,
        force: bool,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'_, Result<(), FilesError>> {
        files::make(&self.core, volume, force, progress).boxed()
    }

    fn check_filesystem(&self, volume: VolumeId) -> BoxFuture<'_, Result<(Verdict, Option<String>), FilesError>> {
        files::check(&self.core, volume).boxed()
    }

    fn stop(&self) {
        self.core.ask_end(End::Orderly);
    }
}
