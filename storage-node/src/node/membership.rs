//! What runs while the node is in a cluster: Raft and its links, what arrives from other nodes, the leader's duties.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use proto::{NodeId, RequestId, VolumeId};
use rand::Rng;
use replication::config::consensus::Halt;
use replication::config::{ClusterState, Command, CommandBody, NodeCommand, Outcome};
use replication::event::Event;
use thiserror::Error;
use tokio::sync::{Notify, broadcast, mpsc};
use tracing::{debug, error, info, warn};

use super::core::{Core, End, FEATURE_LEVELS};
use super::data_dir::{DataDirError, NodeIdentity};
use super::nfs;
use super::reconcile::Reconciler;
use super::volumes::Volumes;
use crate::admin::{self, NodeEventKind};
use crate::config;
use crate::disk::{FoundStore, StoreError};
use crate::files::registry::Registry;
use crate::nfs::Lookups;
use crate::nfs::report::Reports;
use crate::peer::{Identity, Incoming, RaftLinks};
use crate::raft::{RaftConfig, RaftError, RaftHandle, RaftSend, RaftStatus};
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
/// Between two questions of a node without a leader whether it was removed.
const STANDING_INTERVAL: Duration = Duration::from_secs(2);
/// A newcomer that never voted, holds nothing, and is silent this long is removed.
const NEWCOMER_SILENCE_MAX: Duration = Duration::from_secs(600);

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
    /// Filesystems of volumes that this node serves.
    pub(crate) files: Registry,
    /// What the NFS services of this node have counted.
    pub(crate) nfs_reports: Arc<Reports>,
    /// Places of lookups of owners' names.
    pub(crate) nfs_lookups: Lookups,
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
            fresh: held.founding,
        };
        let directory = core.data_dir.raft();
        let sender = Box::new(Send(links.clone()));
        let raft = tokio::task::spawn_blocking(move || RaftHandle::start(raft_config, &directory, bootstrap, sender))
            .await
            .expect("starting Raft does not panic")?;
        if held.founding {
            core.data_dir.set_identity(NodeIdentity { founding: false, ..held })?;
        }
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
            files: Registry::new(core.config.filesystem_cache_bytes_max),
            nfs_reports: Arc::default(),
            nfs_lookups: Lookups::default(),
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
        tokio::spawn(Arc::clone(&membership).watch_standing(Arc::clone(core)));
        tokio::spawn(nfs::run(Arc::clone(core), Arc::clone(&membership)));
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
        let from = match &incoming {
            Incoming::Raft { from, .. } => *from,
            Incoming::Replication(ready) => ready.peer,
            Incoming::Goodbye { node, .. } => *node,
            Incoming::Liveness { leader, .. } => *leader,
        };
        if self.raft.state().borrow().is_removed(from) {
            // It asks for its standing as soon as nobody answers it, and learns there why.
            return debug!("node {from} was removed from the cluster: what it says is dropped");
        }
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
        let mut linked = BTreeSet::new();
        while state.changed().await.is_ok() {
            let now = state.borrow_and_update().clone();
            linked.retain(|node| {
                let stays = now.nodes.contains_key(node);
                if !stays {
                    self.links.remove(*node);
                }
                stays
            });
            linked.extend(now.nodes.keys().copied());
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
            let why = self.raft.stopped().borrow().clone().unwrap_or_default();
            error!("the Raft driver has stopped: {why}");
            if why == Halt::LogRolledBack.to_string() {
                self.leave_service(&core, &why);
            }
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

    /// Asks the others, while no leader is heard, whether this node was removed meanwhile; a node that was ends its
    /// run, and the next one takes no part.
    async fn watch_standing(self: Arc<Self>, core: Arc<Core>) {
        let (status, state) = (self.raft.status(), self.raft.state());
        let me = self.identity.node;
        let mut interval = tokio::time::interval(STANDING_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while status.has_changed().is_ok() {
            interval.tick().await;
            let now = state.borrow().clone();
            let mut removed = now.is_removed(me);
            if !removed && status.borrow().leader == NodeId::NONE {
                let others = now.nodes.iter().filter(|(node, _)| **node != me);
                let answers = others.map(|(_, record)| {
                    admin::client::is_removed(&core.transport, &record.admin_address, self.identity.cluster, me)
                });
                removed = join_all(answers).await.contains(&Some(true));
            }
            if removed {
                let name = &core.config.name;
                let why = format!(
                    "this node ({name}, number {me}) was removed from cluster {}: nothing that it says is heard there, \
                     and its copies of volumes are not used any more. To use this machine again: stop it, run `tandem \
                     node reset --config FILE`, start it, and let it join under a new number with `tandem node join MEMBER`",
                    self.identity.cluster
                );
                error!("{why}");
                self.leave_service(&core, &why);
                return core.ask_end(End::Failed);
            }
        }
    }

    /// Keeps why this node takes no part from its next run on.
    fn leave_service(&self, core: &Core, why: &str) {
        if let Err(error) = core.data_dir.set_out_of_service(why) {
            error!("{error}");
        }
    }

    /// While this node leads: every node of the replicated state votes, and no other. A join or a leave that was cut
    /// short is completed by this.
    async fn keep_voters(self: Arc<Self>) {
        let (status, state) = (self.raft.status(), self.raft.state());
        let mut interval = tokio::time::interval(VOTERS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut silent = BTreeMap::new();
        while status.has_changed().is_ok() {
            interval.tick().await;
            let now = status.borrow().clone();
            if now.leader != self.identity.node {
                silent.clear();
                continue;
            }
            let (nodes, members) = (state.borrow().clone(), &now.members);
            for node in members.keys().filter(|node| !nodes.nodes.contains_key(node)) {
                if let Err(why) = self.raft.remove_voter(*node, PROPOSAL_PATIENCE).await {
                    warn!("node {node} left, but is still a member of the consensus group: {why}");
                }
            }
            for node in nodes.nodes.keys().filter(|node| !members.get(node).copied().unwrap_or(false)) {
                if let Err(why) = self.raft.add_voter(*node, VOTERS_INTERVAL).await {
                    debug!("node {node} does not vote yet: {why}");
                }
            }
            self.forget_dead_newcomers(&nodes, &now, &mut silent).await;
        }
    }

    /// A newcomer that died before it had a vote or a copy leaves the cluster, so that its name is free again.
    async fn forget_dead_newcomers(
        &self,
        state: &ClusterState,
        raft: &RaftStatus,
        silent: &mut BTreeMap<NodeId, Instant>,
    ) {
        let is_silent = |node: &NodeId| {
            let holds = state.volumes.values().any(|volume| volume.replicas.contains_key(node));
            raft.members.get(node) == Some(&false) && raft.heard.get(node) == Some(&false) && !holds
        };
        silent.retain(|node, _| state.nodes.contains_key(node) && is_silent(node));
        for node in state.nodes.keys().filter(|node| is_silent(node)) {
            if silent.entry(*node).or_insert_with(Instant::now).elapsed() < NEWCOMER_SILENCE_MAX {
                continue;
            }
            warn!("node {node} joined, never voted, and has been silent for {NEWCOMER_SILENCE_MAX:?}: removing it");
            let leave = Self::command(CommandBody::Node(NodeCommand::Leave { node: *node }));
            if let Err(why) = self.raft.propose_and_wait(leave, PROPOSAL_PATIENCE).await {
                warn!("node {node} is not removed yet: {why}");
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
