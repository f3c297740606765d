//! A box and the worker process on it: what each owns, and how they start and end.
//!
//! Plays the part of the node's shell around the shipped cores: it registers the run, makes stores, opens them once the
//! former run's operations have ended, and hands configurations to the replicas. The consensus driver is in `raft`, the
//! replica's orders are carried out in `dispatch`.

use std::collections::VecDeque;

use proto::{Boot, ConfigVersion, DiskId, Epoch, Incarnation, Micros, NodeId, RequestId, Timestamp};
use replication::config::consensus::{Consensus, Persist, Restored};
use replication::config::nfs::NFS_LEVEL;
use replication::config::{Command, CommandBody, NodeCommand, NodeKind, VolumeCommand, VolumeConfig};
use replication::{Attachment, Control, Event, PastScrubs, PayloadId, Replica};
use rustc_hash::FxHashMap;

use super::cluster::{Ev, World, volume_id};
use super::disk::{Opened, Store};
use super::engine::Engine;
use super::payload::Payload;
use super::scheduler::{Clock, MILLISECOND, NEVER, SECOND, SimTime};
use super::setup::BOXES;

/// Between the upkeep rounds of a node's shell.
const UPKEEP: SimTime = 200 * MILLISECOND;
/// A worker that does not stop in order within this is killed.
const STOP_PATIENCE: SimTime = 4 * SECOND;

/// One box.
#[derive(Debug)]
pub struct SimBox {
    /// Its node.
    pub id: NodeId,
    /// It has power.
    pub powered: bool,
    /// Power-ons so far.
    pub boots: u64,
    /// Nobody may switch it on before this (an operator attests that it is off).
    pub held_off: bool,
    /// CLOCK_BOOTTIME.
    pub clock: Clock,
    /// The worker process, if one runs.
    pub worker: Option<Box<Worker>>,
    /// Worker processes so far.
    pub runs: u32,
    /// The copies on it, by volume.
    pub stores: Vec<Option<Store>>,
    /// The durable fence file, by volume.
    pub fences: Vec<(Epoch, ConfigVersion)>,
    /// Newest version of the peer protocol that its software speaks.
    pub protocol: u16,
    /// What the Raft log holds durably.
    pub raft_log: Restored,
    /// Highest log index seen applied here, for the trace.
    pub applied_max: u64,
}

/// One run of the worker process.
pub struct Worker {
    /// Its number on this box.
    pub run: u32,
    /// Its registered name.
    pub incarnation: Incarnation,
    /// Its part in the consensus.
    pub raft: Consensus,
    /// The log write that is outstanding.
    pub persist: Option<Persist>,
    /// A round of the consensus is scheduled already.
    pub raft_due: bool,
    /// Volumes with a copy here.
    pub volumes: Vec<Option<VolumeRun>>,
    /// Stores that were found cleanly closed.
    pub clean: Vec<usize>,
    /// It handles nothing until then.
    pub paused_until: SimTime,
    /// What waits for the end of the pause.
    pub held: VecDeque<Ev>,
    /// An orderly stop is under way.
    pub stopping: bool,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "worker {} ({})", self.run, self.incarnation)
    }
}

/// One volume in one run.
#[derive(Debug)]
pub struct VolumeRun {
    /// The shipped core.
    pub replica: Replica,
    /// When its timer is set to.
    pub timer: SimTime,
    /// Bytes that it has not released.
    pub payloads: FxHashMap<PayloadId, Payload>,
    /// Number of the next received payload.
    pub frames: u64,
    /// Which peers it wants to be connected to.
    pub dial: [bool; BOXES],
    /// The connection that it has dialled, by peer.
    pub outbound: [Option<usize>; BOXES],
    /// The configuration it was told last.
    pub config: Option<VolumeConfig>,
    /// The store is open (`DiskAttached` was said).
    pub attached: bool,
    /// The store is about to be opened.
    pub opening: bool,
    /// It has said `Stopped`.
    pub stopped: bool,
    /// The engine of its copy; after a detach until its operations have ended.
    pub engine: Option<Engine>,
}

impl SimBox {
    /// A box that is off.
    pub fn new(index: usize, volumes: usize, protocol: u16, raft_log: Restored) -> Self {
        Self {
            id: NodeId(index as u64 + 1),
            powered: false,
            boots: 0,
            held_off: false,
            clock: Clock::new(0, 0, 0),
            worker: None,
            runs: 0,
            stores: (0..volumes).map(|_| None).collect(),
            fences: vec![(Epoch(0), ConfigVersion(0)); volumes],
            protocol,
            raft_log,
            applied_max: 0,
        }
    }

    /// Its power-on.
    pub fn boot(&self) -> Boot {
        Boot(u128::from(self.id.0) * 1000 + u128::from(self.boots))
    }

    /// The worker, if `run` still is the one that runs.
    pub fn worker_of(&mut self, run: u32) -> Option<&mut Worker> {
        self.worker.as_deref_mut().filter(|worker| worker.run == run)
    }

    /// A volume in the present run.
    pub fn volume(&mut self, volume: usize) -> Option<&mut VolumeRun> {
        self.worker.as_deref_mut()?.volumes[volume].as_mut()
    }
}

impl World {
    /// Gives a box power and starts its worker.
    pub fn power_on(&mut self, node: usize) {
        if self.boxes[node].powered || self.boxes[node].held_off {
            return;
        }
        let reading = self.rng.between(SECOND, 100 * SECOND);
        let drift = self.setup.drift_ppm[node];
        let b = &mut self.boxes[node];
        b.powered = true;
        b.boots += 1;
        b.clock = Clock::new(self.now, reading, drift);
        self.note(None, || format!("box {} is on", node + 1));
        let at = self.now + self.rng.between(10 * MILLISECOND, 500 * MILLISECOND);
        self.queue.push(at, Ev::WorkerStart { node });
    }

    /// Takes the power from a box.
    pub fn power_off(&mut self, node: usize) {
        if !self.boxes[node].powered {
            return;
        }
        self.note(None, || format!("box {} loses power", node + 1));
        self.end_worker(node, true);
        let b = &mut self.boxes[node];
        b.powered = false;
        b.stores.iter_mut().flatten().for_each(|store| store.raw.power_cut(&mut self.rng));
    }

    /// Kills the worker; its parent reaps it, says Goodbye (or does not), and starts another.
    pub fn crash_worker(&mut self, node: usize) {
        if self.boxes[node].worker.is_none() {
            return;
        }
        self.note(None, || format!("worker of {} is killed", node + 1));
        let ended = self.end_worker(node, false);
        if self.rng.chance(800) {
            let after = self.rng.between(MILLISECOND, 200 * MILLISECOND);
            self.say_goodbye(node, ended, after);
        }
        let after = self.rng.pick(&[100 * MILLISECOND, SECOND, 6 * SECOND]);
        let at = self.now + self.rng.between(10 * MILLISECOND, after);
        self.queue.push(at, Ev::WorkerStart { node });
    }

    /// Asks the worker to stop in order.
    pub fn stop_worker(&mut self, node: usize) {
        let Some(worker) = self.boxes[node].worker.as_deref_mut() else { return };
        if std::mem::replace(&mut worker.stopping, true) {
            return;
        }
        let run = worker.run;
        self.note(None, || format!("worker of {} is asked to stop", node + 1));
        self.queue.push(self.now + STOP_PATIENCE, Ev::StopTimeout { node, run });
        for volume in 0..self.volumes.len() {
            self.feed(node, volume, Event::Control(Control::Stop));
        }
        self.finish_stop(node);
    }

    /// Ends a worker whose volumes have all stopped.
    pub fn finish_stop(&mut self, node: usize) {
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref() else { return };
        if !worker.stopping || worker.volumes.iter().flatten().any(|volume| !volume.stopped) {
            return;
        }
        let attached: Vec<usize> = (0..b.stores.len())
            .filter(|v| worker.volumes[*v].as_ref().is_some_and(|volume| volume.attached))
            .filter(|v| b.stores[*v].as_ref().is_some_and(|store| store.raw.idle()))
            .collect();
        let ended = self.end_worker(node, false);
        for volume in attached {
            if let Some(store) = &mut self.boxes[node].stores[volume] {
                store.close_clean();
            }
        }
        self.note(None, || format!("worker of {} has stopped in order", node + 1));
        self.say_goodbye(node, ended, MILLISECOND);
        if self.rng.chance(300) {
            self.power_off(node);
            let at = self.now + self.rng.between(SECOND, 5 * SECOND);
            self.queue.push(at, Ev::PowerOn { node });
        } else {
            let at = self.now + self.rng.between(50 * MILLISECOND, 2 * SECOND);
            self.queue.push(at, Ev::WorkerStart { node });
        }
    }

    fn say_goodbye(&mut self, node: usize, incarnation: Incarnation, after: SimTime) {
        for to in (0..BOXES).filter(|to| *to != node) {
            if let Some(delay) = self.net.delay(node, to, &mut self.rng) {
                self.queue.push(self.now + after + delay, Ev::Goodbye { to, node, incarnation });
            }
        }
    }

    /// The process ends: its sockets close, its log write and its disk operations happen or do not.
    fn end_worker(&mut self, node: usize, power_cut: bool) -> Incarnation {
        let Some(mut worker) = self.boxes[node].worker.take() else { return Incarnation(0) };
        let run = worker.run;
        if let Some(persist) = worker.persist.take()
            && self.rng.chance(500)
        {
            super::raft::write_log(&mut self.boxes[node].raft_log, persist);
        }
        for store in self.boxes[node].stores.iter_mut().flatten() {
            store.raw.abandon(run, self.now, &mut self.rng);
        }
        let ours = |end: &super::network::End| end.node == node && end.run == run && !end.down;
        for connection in self.net.open_connections(|c| c.ends.iter().any(ours)) {
            let side = usize::from(!ours(&self.net.connection(connection).ends[0]));
            self.net.mark_down(connection, side);
            let later = self.net.close(connection, side, power_cut, self.now, &mut self.rng);
            self.schedule_net(later);
        }
        self.clients_lose(node, &worker);
        worker.incarnation
    }

    /// Starts a worker on a box that has power and none.
    pub fn start_worker(&mut self, node: usize) {
        if !self.boxes[node].powered || self.boxes[node].worker.is_some() {
            return;
        }
        let incarnation = Incarnation(self.rng.bits() | 1);
        let raft_seed = self.rng.bits();
        let volumes = self.volumes.len();
        let b = &mut self.boxes[node];
        b.runs += 1;
        let run = b.runs;
        let whole = |store: &Store| store.clean && !store.raw.suspect();
        let clean = (0..volumes).filter(|v| b.stores[*v].as_ref().is_some_and(whole)).collect();
        let raft = match super::raft::start(b.id, raft_seed, b.raft_log.clone()) {
            Ok(raft) => raft,
            Err(error) => return self.violate(None, "raft_log_refused", format!("node {}: {error}", node + 1)),
        };
        b.worker = Some(Box::new(Worker {
            run,
            incarnation,
            raft,
            persist: None,
            raft_due: false,
            volumes: (0..volumes).map(|_| None).collect(),
            clean,
            paused_until: 0,
            held: VecDeque::new(),
            stopping: false,
        }));
        self.note(None, || format!("worker {run} of {} starts as {incarnation}", node + 1));
        self.queue.push(self.now + self.rng.below(super::raft::TICK), Ev::RaftTick { node, run });
        self.queue.push(self.now + 1, Ev::Upkeep { node, run });
        self.config_changed(node);
        self.drive_raft(node);
    }

    /// What the node's shell does now and then: register the run and its stores, tell others whom the leader hears.
    pub fn upkeep(&mut self, node: usize, run: u32) {
        let id = self.boxes[node].id;
        let boot = self.boxes[node].boot();
        let third_stores = self.setup.third_stores;
        // Software that speaks the newer protocol also reads the newer snapshots and commands.
        let level = if self.boxes[node].protocol > 1 { NFS_LEVEL } else { 1 };
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let state = worker.raft.state();
        let mut proposals = Vec::new();
        if state.nodes.get(&id).is_some_and(|record| record.incarnation != worker.incarnation) {
            let stores = node + 1 < BOXES || third_stores;
            proposals.push(CommandBody::Node(NodeCommand::NodeUp {
                node: id,
                incarnation: worker.incarnation,
                boot,
                clean: worker.clean.iter().map(|volume| volume_id(*volume)).collect(),
                feature_levels: (1, level),
                kind: if stores { NodeKind::Storage } else { NodeKind::Witness },
                addresses: Default::default(),
            }));
        }
        for config in state.volumes.values() {
            if let Some(registration) = config.replicas.get(&id).filter(|registration| !registration.ready)
                && registration.incarnation == worker.incarnation
            {
                let command = VolumeCommand::ReplicaReady { node: id, disk_id: registration.disk_id };
                proposals.push(CommandBody::Volume { volume: config.id, expect_version: config.version, command });
            }
        }
        for body in proposals {
            let request = RequestId(u128::from(self.rng.bits()));
            self.propose(node, Command { request, body });
        }
        self.report_heard(node);
        self.queue.push(self.now + UPKEEP, Ev::Upkeep { node, run });
    }

    /// The node's Raft has applied something: makes and drops stores, and tells the replicas.
    pub fn config_changed(&mut self, node: usize) {
        let id = self.boxes[node].id;
        for volume in 0..self.volumes.len() {
            let b = &mut self.boxes[node];
            let Some(worker) = b.worker.as_deref_mut() else { return };
            let Some(config) = worker.raft.state().volumes.get(&volume_id(volume)) else { continue };
            let told = worker.volumes[volume].as_ref().and_then(|run| run.config.as_ref());
            if told == Some(config) {
                continue;
            }
            let config = config.clone();
            let applied = worker.raft.applied();
            self.learn(volume, &config, applied);
            let registered = config.replicas.get(&id).map(|registration| registration.disk_id);
            match registered {
                Some(disk_id) => self.have_replica(node, volume, disk_id, &config),
                None => self.drop_replica(node, volume, config),
            }
        }
    }

    fn have_replica(&mut self, node: usize, volume: usize, disk_id: DiskId, config: &VolumeConfig) {
        let id = self.boxes[node].id;
        let told = self.boxes[node].volume(volume).and_then(|run| run.config.as_ref());
        if told.and_then(|told| told.replicas.get(&id)).is_some_and(|registration| registration.disk_id != disk_id) {
            // The copy that this replica knows is not wanted any more: another takes its place.
            self.end_replica(node, volume);
        }
        let b = &mut self.boxes[node];
        let boot = b.boot();
        let Some(worker) = b.worker.as_deref_mut() else { return };
        // A log that is replayed tells of copies that were replaced long ago; the newest one is the one to make.
        let newest = self.volumes[volume].newest.as_ref().and_then(|newest| newest.replicas.get(&b.id));
        let wanted = newest.is_some_and(|registration| registration.disk_id == disk_id);
        if wanted && b.stores[volume].as_ref().is_none_or(|store| store.disk_id != disk_id) {
            let new = Store::new(disk_id, self.setup.geometry(volume));
            if let Some(old) = b.stores[volume].replace(new) {
                self.volumes[volume].struck_before.extend(old.raw.harm.ever.keys());
            }
        }
        if worker.volumes[volume].is_none() {
            let now = Timestamp(b.clock.read(self.now));
            let replica = Replica::new(volume_id(volume), b.id, worker.incarnation, boot, self.setup.timing, now);
            worker.volumes[volume] = Some(VolumeRun::new(replica));
        }
        if let Some(run) = worker.volumes[volume].as_mut() {
            run.config = Some(config.clone());
        }
        self.feed(node, volume, Event::Config(Box::new(config.clone())));
        self.schedule_open(node, volume, 0);
    }

    /// Opens the store soon, if it is there and not open.
    pub fn schedule_open(&mut self, node: usize, volume: usize, after: SimTime) {
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut() else { return };
        let run = worker.run;
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if volume_run.attached || volume_run.opening || b.stores[volume].is_none() {
            return;
        }
        volume_run.opening = true;
        let at = self.now + after + self.rng.between(MILLISECOND, 60 * MILLISECOND);
        self.queue.push(at, Ev::OpenStore { node, run, volume });
    }

    /// Opens a store whose lock is free; waits while operations of a former run are in flight.
    pub fn open_store(&mut self, node: usize, run: u32, volume: usize) {
        let b = &mut self.boxes[node];
        let (boot, fence) = (b.boot(), b.fences[volume]);
        let Some(store) = b.stores[volume].as_mut() else { return };
        let closing = b.worker.as_deref().and_then(|worker| worker.volumes[volume].as_ref());
        if !store.raw.idle() || closing.is_some_and(|run| run.engine.is_some()) {
            self.queue.push(self.now + 20 * MILLISECOND, Ev::OpenStore { node, run, volume });
            return;
        }
        let Some(worker) = b.worker.as_deref_mut().filter(|worker| worker.run == run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        volume_run.opening = false;
        if volume_run.attached || worker.stopping {
            return;
        }
        let Opened { report, hot, bitmaps, copy } = store.open(boot, fence);
        let (ended, under_way) = store.scrubs;
        let scrubs = PastScrubs { ended_ago: Micros(self.now - ended), under_way };
        volume_run.attached = true;
        volume_run.engine = Some(Engine::new(copy, volume));
        self.judge_harm(volume);
        self.feed(node, volume, Event::DiskAttached(Box::new(Attachment { report, hot, bitmaps, scrubs })));
    }

    fn drop_replica(&mut self, node: usize, volume: usize, config: VolumeConfig) {
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut() else { return };
        if worker.volumes[volume].is_none() {
            return;
        }
        self.feed(node, volume, Event::Config(Box::new(config)));
        self.end_replica(node, volume);
        let newest = self.volumes[volume].newest.as_ref();
        let b = &mut self.boxes[node];
        if newest.is_some_and(|newest| !newest.replicas.contains_key(&b.id)) {
            let gone = b.stores[volume].take();
            let struck = gone.iter().flat_map(|store| store.raw.harm.ever.keys());
            self.volumes[volume].struck_before.extend(struck);
        }
    }

    /// Ends a replica whose copy is not registered any more.
    fn end_replica(&mut self, node: usize, volume: usize) {
        self.feed(node, volume, Event::VolumeRemoved);
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut() else { return };
        let run = worker.run;
        let stale = worker.volumes[volume].take().is_some();
        if stale {
            let ours = |end: &super::network::End| end.node == node && end.run == run && !end.down;
            for connection in self.net.open_connections(|c| c.volume == volume && c.ends.iter().any(ours)) {
                let later = self.net.reset(connection, self.now, &mut self.rng);
                self.schedule_net(later);
            }
            self.clients_lose_volume(node, volume);
        }
    }
}

impl VolumeRun {
    fn new(replica: Replica) -> Self {
        Self {
            replica,
            timer: NEVER,
            payloads: FxHashMap::default(),
            frames: 0,
            dial: [false; BOXES],
            outbound: [None; BOXES],
            config: None,
            attached: false,
            opening: false,
            stopped: false,
            engine: None,
        }
    }
}
