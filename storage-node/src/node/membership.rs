//! What runs while the node is in a cluster: Raft and its links, what arrives from other nodes, the leader's duties.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proto::{NodeId, RequestId, VolumeId};
use rand::Rng;
use replication::config::{ClusterState, Command, CommandBody, NodeCommand, Outcome};
use replication::event::Event;
use thiserror::Error;
use tokio::sync::{Notify, broadcast, mpsc};
use tracing::{debug, error, info, warn};

use super::core::{Core, End, FEATURE_LEVELS};
use super::data_dir::{DataDirError, NodeIdentity};
use super::reconcile::Reconciler;
use super::volumes::Volumes;
use crate::admin::NodeEventKind;
use crate::config;
use crate::disk::{FoundStore, StoreError};
use crate::peer::{Identity, Incoming, RaftLinks};
use crate::raft::{RaftConfig, RaftError, RaftHandle, RaftSend};
use crate::volume::handle::VolumeEnv;

/// Reports of volumes that may wait to be acted on.
const REPORTS_QUEUED_MAX: usize = 1024;
/// Notices of volumes that may wait for a slow watcher.
const NOTICES_QUEUED_MAX: usize = 1024;
/// Between two liveness reports of the Raft leader.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks of the leader at who should vote.
const VOTERS_INTERVAL: Duration = Duration::from_secs(2);
/// How long one attempt at a proposal waits.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why the node could not enter its cluster.
#[derive(Debug, Error)]
pub(crate) enum EnterError {
    /// Its directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Its Raft log.
    #[error(transparent)]
    Raft(#[from] RaftError),
}

/// A node in its cluster.
pub(crate) struct Membership {
    pub(crate) identity: Identity,
    pub(crate) raft: RaftHandle,
    pub(crate) volumes: Volumes,
    /// What its volumes share; a witness has none.
    pub(crate) env: Option<VolumeEnv>,
    /// True once this run has learnt everything that was committed before it: only then may "unknown" mean "deleted".
    pub(crate) caught_up: AtomicBool,
    /// Wakes the reconciler.
    pub(crate) nudge: Notify,
    links: RaftLinks,
}

struct Send(RaftLinks);

impl RaftSend for Send {
    fn send(&self, to: NodeId, message: Vec<u8>) {
        self.0.send(to, message);
    }

    fn send_liveness(&self, to: NodeId, heard: &[(NodeId, bool)]) {
        self.0.send_liveness(to, heard);
    }
}

impl Membership {
    /// Starts everything. `bootstrap` is the first entry of a new cluster. `known` are addresses from outside Raft, for
    /// a node whose state is still empty.
    pub(crate) async fn start(
        core: &Arc<Core>,
        held: NodeIdentity,
        bootstrap: Option<Command>,
        known: &[(NodeId, String)],
    ) -> Result<Arc<Self>, EnterError> {
        let identity = Identity { cluster: held.cluster, node: held.node, incarnation: core.incarnation };
        let links = RaftLinks::new(core.transport.clone(), identity);
        for (node, address) in known.iter().filter(|(node, _)| *node != identity.node) {
            links.set_address(*node, address);
        }
        let raft_config = RaftConfig {
            node: identity.node,
            cluster: identity.cluster,
            tick: core.config.raft_tick(),
            election_ticks: core.config.raft.election_ticks,
        };
        let directory = core.data_dir.raft();
        let sender = Box::new(Send(links.clone()));
        let raft = tokio::task::spawn_blocking(move || RaftHandle::start(raft_config, &directory, bootstrap, sender))
            .await
            .expect("starting Raft does not panic")?;
        let (reports, report_queue) = mpsc::channel(REPORTS_QUEUED_MAX);
        let notices = broadcast::Sender::new(NOTICES_QUEUED_MAX);
        let env = core.storage.as_ref().map(|storage| VolumeEnv {
            identity,
            boot: core.boot,
            timing: core.config.replica_timing(config::runs_in_virtual_machine()),
            transport: core.transport.clone(),
            cluster: raft.state(),
            raft: raft.clone(),
            fences: storage.fences.clone(),
            reports,
            notices: notices.clone(),
        });
        let membership = Arc::new(Self {
            identity,
            raft,
            volumes: Volumes::default(),
            env,
            caught_up: AtomicBool::new(false),
            nudge: Notify::new(),
            links,
        });
        core.set_membership(Arc::clone(&membership));
        core.identity.send_replace(Some(identity));
        let found = Self::scan(core, identity).await;
        let clean = found.iter().filter(|store| store.clean && !store.suspect).map(|store| store.volume).collect();
        info!(cluster = %identity.cluster, node = %identity.node, incarnation = %identity.incarnation, "in the cluster");
        tokio::spawn(forward_notices(Arc::clone(core), notices.subscribe()));
        tokio::spawn(Arc::clone(&membership).follow_addresses(Arc::clone(core)));
        tokio::spawn(Arc::clone(&membership).announce_up(Arc::clone(core), clean));
        tokio::spawn(Arc::clone(&membership).catch_up());
        tokio::spawn(Arc::clone(&membership).report_liveness());
        tokio::spawn(Arc::clone(&membership).keep_voters());
        tokio::spawn(Reconciler::new(Arc::clone(core), Arc::clone(&membership), found).run(report_queue));
        Ok(membership)
    }

    async fn scan(core: &Arc<Core>, identity: Identity) -> Vec<FoundStore> {
        let Some(storage) = &core.storage else { return Vec::new() };
        let pool = storage.pool.clone();
        let scanned: Vec<Result<FoundStore, StoreError>> =
            tokio::task::spawn_blocking(move || pool.scan(Some(identity.cluster))).await.unwrap_or_default();
        let mut found = Vec::new();
        for result in scanned {
            match result {
                Ok(store) => found.push(store),
                Err(why) => {
                    error!("store refused: {why}");
                    core.tell(None, NodeEventKind::Text(format!("store refused: {why}")));
                }
            }
        }
        found
    }

    /// A new proposal.
    pub(crate) fn command(body: CommandBody) -> Command {
        Command { request: RequestId(rand::rng().random()), body }
    }

    /// Takes what arrives from other nodes.
    pub(crate) fn on_incoming(&self, incoming: Incoming) {
        match incoming {
            Incoming::Raft { message, .. } => self.raft.deliver(message),
            Incoming::Replication(ready) => match self.volumes.handle(ready.volume) {
                Some(handle) => {
                    let (peer, volume) = (ready.peer, ready.volume);
                    if handle.accept(ready).is_err() {
                        debug!(%volume, "a link from node {peer} is dropped: the volume is ending, or its inbox is full");
                    }
                }
                // The volume is not started here yet; the other side dials again.
                None => drop(ready),
            },
            Incoming::Goodbye { node, incarnation } => {
                info!("node {node}: its run {incarnation} has ended, says its supervisor");
                for handle in self.volumes.handles() {
                    handle.hint(Event::Goodbye { node, incarnation });
                }
            }
            Incoming::Liveness { leader, heard } => {
                if self.raft.status().borrow().leader == leader {
                    self.hint_liveness(&heard);
                }
            }
        }
    }

    fn hint_liveness(&self, heard: &[(NodeId, bool)]) {
        for handle in self.volumes.handles() {
            for (node, alive) in heard.iter().filter(|(node, _)| *node != self.identity.node) {
                handle.hint(Event::LeaderHears { node: *node, alive: *alive });
            }
        }
    }

    /// Keeps the Raft links, and what the supervisor knows of the others, at the addresses of the replicated state.
    async fn follow_addresses(self: Arc<Self>, core: Arc<Core>) {
        let mut state = self.raft.state();
        state.mark_changed();
        while state.changed().await.is_ok() {
            let now = state.borrow_and_update().clone();
            if now.halted {
                error!(
                    "the cluster's log holds a command that this version of tandem does not know: install the newer version"
                );
                core.ask_end(End::Fatal);
            }
            let others: Vec<_> = now.nodes.iter().filter(|(node, _)| **node != self.identity.node).collect();
            for (node, record) in &others {
                self.links.set_address(**node, &record.peer_address);
            }
            core.announcer.announce(self.identity, others.iter().map(|(_, record)| record.peer_address.clone()));
        }
        if !core.closing.is_cancelled() {
            error!("the Raft driver has stopped");
            core.ask_end(End::Failed);
        }
    }

    /// Registers this run; repeated until it is applied, and again should a late command of a former run undo it.
    async fn announce_up(self: Arc<Self>, core: Arc<Core>, clean: Vec<VolumeId>) {
        let command = Self::command(CommandBody::Node(NodeCommand::NodeUp {
            node: self.identity.node,
            incarnation: core.incarnation,
            boot: core.boot,
            clean,
            feature_levels: FEATURE_LEVELS,
            kind: core.kind,
            addresses: core.addresses(),
        }));
        loop {
            match self.raft.propose_and_wait(command.clone(), PROPOSAL_PATIENCE).await {
                Ok(Outcome::Refused(why)) => warn!("this run is not registered: {why}"),
                Ok(_) => break,
                Err(why) => warn!("this run is not registered yet: {why}"),
            }
            tokio::time::sleep(RETRY_AFTER).await;
        }
        info!("this run is registered");
        if let Ok(Some(held)) = core.data_dir.identity()
            && held.founding
            && let Err(why) = core.data_dir.set_identity(NodeIdentity { founding: false, ..held })
        {
            error!("{why}");
        }
        self.nudge.notify_one();
        let mut state = self.raft.state();
        while state.changed().await.is_ok() {
            let undone = {
                let now = state.borrow_and_update();
                now.nodes.get(&self.identity.node).is_some_and(|record| record.incarnation != core.incarnation)
            };
            if undone {
                warn!("a late command of a former run has replaced this run's registration; registering again");
                let again = Self::command(command.body.clone());
                if let Err(why) = self.raft.propose_and_wait(again, PROPOSAL_PATIENCE).await {
                    warn!("this run is not registered again yet: {why}");
                    tokio::time::sleep(RETRY_AFTER).await;
                    state.mark_changed();
                }
            }
        }
    }

    async fn catch_up(self: Arc<Self>) {
        while self.raft.read_index(PROPOSAL_PATIENCE).await.is_err() {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        self.caught_up.store(true, std::sync::atomic::Ordering::Release);
        self.nudge.notify_one();
    }

    /// While this node leads: tells its own volumes whom it hears. The others hear it from the Raft driver.
    async fn report_liveness(self: Arc<Self>) {
        let status = self.raft.status();
        let mut interval = tokio::time::interval(LIVENESS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while status.has_changed().is_ok() {
            interval.tick().await;
            let heard: Vec<_> = {
                let now = status.borrow();
                if now.leader != self.identity.node {
                    continue;
                }
                now.heard.iter().map(|(node, alive)| (*node, *alive)).collect()
            };
            self.hint_liveness(&heard);
        }
    }

    /// While this node leads: every node of the replicated state votes, and no other. A join or a leave that was cut
    /// short is completed by this.
    async fn keep_voters(self: Arc<Self>) {
        let (status, state) = (self.raft.status(), self.raft.state());
        let mut interval = tokio::time::interval(VOTERS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while status.has_changed().is_ok() {
            interval.tick().await;
            let (leader, members) = {
                let now = status.borrow();
                (now.leader, now.members.clone())
            };
            if leader != self.identity.node {
                continue;
            }
            let nodes: ClusterState = ClusterState::clone(&state.borrow());
            for node in nodes.nodes.keys().filter(|node| !members.get(node).copied().unwrap_or(false)) {
                if let Err(why) = self.raft.add_voter(*node, PROPOSAL_PATIENCE).await {
                    warn!("node {node} does not vote yet: {why}");
                }
            }
            for node in members.keys().filter(|node| !nodes.nodes.contains_key(node)) {
                if let Err(why) = self.raft.remove_voter(*node, PROPOSAL_PATIENCE).await {
                    warn!("node {node} left, but is still a member of the consensus group: {why}");
                }
            }
        }
    }
}

async fn forward_notices(core: Arc<Core>, mut notices: broadcast::Receiver<(VolumeId, replication::Notice)>) {
    loop {
        match notices.recv().await {
            Ok((volume, notice)) => core.tell(Some(volume), NodeEventKind::Notice(notice)),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
