//! Makes the local volumes follow the replicated state: creates stores, starts and feeds actors, removes what is gone.
//!
//! One task; it never waits for a disk or for a volume's end itself, so that one bad volume holds up no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::{DiskId, VolumeId};
use replication::config::{ClusterState, CommandBody, Registration, VolumeCommand, VolumeConfig};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::core::{Core, End, Storage};
use super::detached::Mark;
use super::membership::Membership;
use super::volumes::LocalVolume;
use crate::admin::NodeEventKind;
use crate::disk::{FoundStore, StoreError, StoreSpec};
use crate::volume::handle::{DiskStart, VolumeReport};
use crate::volume::{DiskState, boot_time};

/// A pass is made at least this often, to repeat what was lost.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// A store that could not be made is tried again after this.
const CREATE_RETRY_MICROS: u64 = 10_000_000;
/// Outcomes of background work that may wait.
const OUTCOMES_QUEUED_MAX: usize = 256;
/// Least time between two progress reports of one store, in microseconds.
const PROGRESS_INTERVAL_MICROS: u64 = 200_000;

/// The end of background work.
enum Outcome {
    Created { volume: VolumeId, disk_id: DiskId, result: Result<FoundStore, StoreError> },
    Ended { volume: VolumeId },
}

/// The task's state.
pub(super) struct Reconciler {
    core: Arc<Core>,
    membership: Arc<Membership>,
    /// Stores on this node, by volume and copy: found at start, or made since.
    stores: BTreeMap<(VolumeId, DiskId), FoundStore>,
    outcomes: mpsc::Sender<Outcome>,
    outcome_queue: mpsc::Receiver<Outcome>,
}

impl Reconciler {
    pub(super) fn new(core: Arc<Core>, membership: Arc<Membership>, found: Vec<FoundStore>) -> Self {
        let (outcomes, outcome_queue) = mpsc::channel(OUTCOMES_QUEUED_MAX);
        let stores = found.into_iter().map(|store| ((store.volume, store.disk_id), store)).collect();
        Self { core, membership, stores, outcomes, outcome_queue }
    }

    /// Runs until the node leaves its cluster or ends.
    pub(super) async fn run(mut self, mut reports: mpsc::Receiver<VolumeReport>) {
        let mut state = self.membership.raft.state();
        let mut interval = tokio::time::interval(PASS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let membership = Arc::clone(&self.membership);
        loop {
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                _ = interval.tick() => {}
                () = membership.nudge.notified() => {}
                Some(outcome) = self.outcome_queue.recv() => self.on_outcome(outcome),
                Some(report) = reports.recv() => {
                    self.on_report(report).await;
                    continue;
                }
                () = self.core.closing.cancelled() => return,
            }
            let now = state.borrow_and_update().clone();
            self.pass(&now).await;
        }
    }

    async fn pass(&mut self, state: &ClusterState) {
        let core = Arc::clone(&self.core);
        let Some(storage) = &core.storage else { return };
        let me = self.membership.identity.node;
        for volume in state.volumes.values() {
            if let Some(registration) = volume.replicas.get(&me) {
                self.ensure(storage, volume, registration).await;
            }
        }
        let registered = |volume: VolumeId, disk_id: DiskId| {
            state.volumes.get(&volume).and_then(|v| v.replicas.get(&me)).is_some_and(|r| r.disk_id == disk_id)
        };
        let caught_up = self.membership.caught_up.load(Ordering::Acquire);
        let gone: Vec<VolumeId> = {
            let table = self.membership.volumes.lock();
            table
                .iter()
                .filter(|(volume, local)| !registered(**volume, local.disk_id()))
                .map(|(volume, _)| *volume)
                .collect()
        };
        for volume in gone {
            self.end_volume(volume);
        }
        // Until this run has caught up, the state it sees may be older than the one that a store was made under.
        if caught_up {
            self.remove_stale_stores(storage, state, registered);
        }
    }

    /// One registered copy: creates, starts, or feeds it.
    async fn ensure(&mut self, storage: &Storage, volume: &VolumeConfig, registration: &Registration) {
        let local = self.membership.volumes.lock().get(&volume.id).cloned();
        match local {
            Some(LocalVolume::Running { disk_id, handle, found }) if disk_id == registration.disk_id => {
                handle.set_config(volume);
                if !registration.ready && found.is_some() {
                    self.propose_ready(volume, registration.disk_id);
                }
            }
            Some(LocalVolume::CreateFailed { retry_at, .. }) if boot_time().0 < retry_at => {}
            None | Some(LocalVolume::CreateFailed { .. }) => {
                match self.stores.get(&(volume.id, registration.disk_id)).cloned() {
                    Some(found) => self.start(storage, volume, registration.disk_id, Some(found)).await,
                    None if !registration.ready => self.create(storage, volume, registration.disk_id),
                    None => self.start(storage, volume, registration.disk_id, None).await,
                }
            }
            // Being made, ending, or of a former registration: the pass after its end looks again.
            Some(_) => {}
        }
    }

    fn propose_ready(&self, volume: &VolumeConfig, disk_id: DiskId) {
        let command = VolumeCommand::ReplicaReady { node: self.membership.identity.node, disk_id };
        self.membership.raft.propose(Membership::command(CommandBody::Volume {
            volume: volume.id,
            expect_version: volume.version,
            command,
        }));
    }

    async fn start(&self, storage: &Storage, volume: &VolumeConfig, disk_id: DiskId, found: Option<FoundStore>) {
        let Some(env) = self.membership.env.clone() else { return };
        let mark = storage.detached.get(volume.id, disk_id);
        let disk = match (&found, mark) {
            (Some(found), Some(Mark { attached: true, .. })) => DiskStart::Open { found: found.clone(), suspect: true },
            (Some(_), Some(Mark { disk_id, failed, why, .. })) => {
                warn!(volume = %volume.name, "the local disk stays detached until `tandem volume attach`: {why}");
                DiskStart::Without(DiskState::Detached { disk_id, failed, why })
            }
            (Some(found), None) => DiskStart::Open { found: found.clone(), suspect: false },
            (None, _) => {
                let why = "no usable store of this volume is on this node; if it is lost for good, remove this replica \
                           and add it again";
                error!(volume = %volume.name, "{why}");
                self.core.tell(Some(volume.id), NodeEventKind::Text(why.into()));
                DiskStart::Without(DiskState::Absent(why.into()))
            }
        };
        let shard = self.membership.volumes.least_loaded_shard(storage.shards.count());
        let Some(handle) = storage.shards.start_volume(shard, env, volume, disk).await else {
            error!("shard {shard} has ended");
            return self.core.ask_end(End::Failed);
        };
        info!(volume = %volume.name, id = %volume.id, shard, "volume started");
        self.membership.volumes.lock().insert(volume.id, LocalVolume::Running { disk_id, handle, found });
    }

    fn create(&self, storage: &Storage, volume: &VolumeConfig, disk_id: DiskId) {
        let id = volume.id;
        let total = if volume.preallocate { volume.size_bytes } else { 0 };
        self.membership.volumes.lock().insert(id, LocalVolume::Creating { disk_id, done: 0, total });
        let spec = StoreSpec {
            cluster: self.membership.identity.cluster,
            volume: id,
            disk_id,
            size_bytes: volume.size_bytes,
            preallocate: volume.preallocate,
        };
        info!(volume = %volume.name, %id, "creating its store");
        let (pool, outcomes) = (storage.pool.clone(), self.outcomes.clone());
        let (core, membership) = (Arc::clone(&self.core), Arc::clone(&self.membership));
        tokio::task::spawn_blocking(move || {
            let told = std::cell::Cell::new(0);
            let progress = |done: u64, total: u64| {
                let now = boot_time().0;
                if now.saturating_sub(told.get()) >= PROGRESS_INTERVAL_MICROS || done == total {
                    told.set(now);
                    if let Some(LocalVolume::Creating { done: held, total: held_total, .. }) =
                        membership.volumes.lock().get_mut(&id)
                    {
                        (*held, *held_total) = (done, total);
                    }
                    core.tell(Some(id), NodeEventKind::StoreProgress { done, total });
                }
            };
            let result = pool.create(&spec, &progress);
            let _ = outcomes.blocking_send(Outcome::Created { volume: id, disk_id, result });
        });
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Created { volume, disk_id, result: Ok(found) } => {
                info!(%volume, path = %found.path.display(), "store created");
                self.stores.insert((volume, disk_id), found);
                // The pass that follows starts it, or removes it again when the volume is gone by now.
                self.membership.volumes.lock().remove(&volume);
            }
            Outcome::Created { volume, disk_id, result: Err(why) } => {
                error!(%volume, "store not created: {why}");
                self.core.tell(Some(volume), NodeEventKind::Text(format!("store not created: {why}")));
                let retry_at = boot_time().0 + CREATE_RETRY_MICROS;
                let failed = LocalVolume::CreateFailed { disk_id, why: why.to_string(), retry_at };
                self.membership.volumes.lock().insert(volume, failed);
            }
            Outcome::Ended { volume } => {
                self.membership.volumes.lock().remove(&volume);
            }
        }
    }

    /// Begins the end of a volume that is not registered here any more.
    fn end_volume(&self, volume: VolumeId) {
        let mut table = self.membership.volumes.lock();
        match table.get(&volume) {
            Some(LocalVolume::Running { disk_id, handle, .. }) => {
                let (disk_id, handle, outcomes) = (*disk_id, handle.clone(), self.outcomes.clone());
                table.insert(volume, LocalVolume::Removing { disk_id });
                info!(%volume, "no copy of this volume belongs here any more");
                tokio::spawn(async move {
                    handle.removed().await;
                    let _ = outcomes.send(Outcome::Ended { volume }).await;
                });
            }
            Some(LocalVolume::CreateFailed { .. }) => {
                table.remove(&volume);
            }
            _ => {}
        }
    }

    /// Removes stores whose copy the cluster has given up. One that the cluster never heard of is kept: it may have come
    /// from elsewhere.
    fn remove_stale_stores(
        &mut self,
        storage: &Storage,
        state: &ClusterState,
        registered: impl Fn(VolumeId, DiskId) -> bool,
    ) {
        // A copy that could not be made may fail for the very store that is to go.
        let busy = |volume: &VolumeId| {
            let table = self.membership.volumes.lock();
            !matches!(table.get(volume), None | Some(LocalVolume::CreateFailed { .. }))
        };
        let stale: Vec<(VolumeId, DiskId)> = self
            .stores
            .keys()
            .filter(|(volume, disk_id)| !registered(*volume, *disk_id))
            .filter(|(volume, _)| state.deleted.contains(volume) || state.volumes.contains_key(volume))
            .filter(|(volume, _)| !busy(volume))
            .copied()
            .collect();
        for key in stale {
            let Some(found) = self.stores.remove(&key) else { continue };
            info!(volume = %key.0, path = %found.path.display(), "removing the store of a copy that is given up");
            if let Err(why) = storage.detached.remove(key.0) {
                error!("{why}");
            }
            let pool = storage.pool.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(why) = pool.remove(&found) {
                    error!("store not removed: {why}");
                }
            });
        }
    }

    async fn on_report(&mut self, report: VolumeReport) {
        match report {
            VolumeReport::DiskDetached { volume, disk_id, failed, why } => {
                let core = Arc::clone(&self.core);
                let mark = Mark { disk_id, failed, why, attached: false };
                let written = tokio::task::spawn_blocking(move || match &core.storage {
                    Some(storage) => storage.detached.add(volume, mark),
                    None => Ok(()),
                });
                match written.await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => error!(%volume, "the detached disk is not recorded: {why}"),
                    Err(why) => error!(%volume, "the detached disk is not recorded: {why}"),
                }
            }
            VolumeReport::CopyRestored { volume, disk_id } => {
                let core = Arc::clone(&self.core);
                let forget = move || match &core.storage {
                    Some(storage) if storage.detached.get(volume, disk_id).is_some_and(|mark| mark.attached) => {
                        storage.detached.remove(volume)
                    }
                    _ => Ok(()),
                };
                if let Ok(Err(why)) = tokio::task::spawn_blocking(forget).await {
                    error!(%volume, "{why}");
                }
            }
            VolumeReport::Ended { volume } => info!(%volume, "volume ended"),
        }
    }
}
