//! The simulated world: boxes, network, volumes, clients, and the loop that lets time pass.

use std::collections::{BTreeMap, BTreeSet};

use proto::{ClusterId, ConfigVersion, Epoch, Incarnation, NodeId, RequestId, Timestamp, VolumeId};
use raft::eraftpb::Message;
use replication::config::consensus::Restored;
use replication::config::{ClusterState, Command, CommandBody, NodeCommand, NodeKind, NodeRecord, VolumeConfig};
use replication::{Action, Control, Event, IoId, OpId, Request};
use rustc_hash::FxHashMap;

use super::checker::History;
use super::client::{Client, OpenOp};
use super::disk::{Blocks, Outcome, Whose};
use super::engine::Next;
use super::network::{NetEvent, Network};
use super::node::SimBox;
use super::operator::Operator;
use super::payload::Payload;
use super::scheduler::{Queue, Rng, SimTime};
use super::setup::{BOXES, Setup};
use super::trace::Trace;

/// Events in one run; more means that something spins.
const EVENTS_MAX: u64 = 4_000_000;

/// The id of the volume numbered `volume`.
pub fn volume_id(volume: usize) -> VolumeId {
    VolumeId(100 + volume as u128)
}

/// Something that is to happen. Boxes and volumes are named by their number in the run, processes by their `run`.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields' names say what they are")]
pub enum Ev {
    /// A member's Raft tick.
    RaftTick { node: usize, run: u32 },
    /// A Raft message arrives.
    RaftMessage { to: usize, message: Box<Message> },
    /// A log write has ended.
    RaftPersisted { node: usize, run: u32, number: u64 },
    /// A member has something to send or write.
    RaftRound { node: usize, run: u32 },
    /// A replica's timer.
    ReplicaTimer { node: usize, run: u32, volume: usize },
    /// A replica's shell dials.
    Dial { node: usize, run: u32, volume: usize, peer: usize },
    /// The network.
    Net(NetEvent),
    /// A disk operation reaches its disk.
    Io { node: usize, volume: usize, token: u64 },
    /// The end of a disk operation reaches the process.
    Landed { node: usize, run: u32, volume: usize, whose: Whose, outcome: Box<Outcome> },
    /// The end of a replica's order reaches the replica.
    Result { node: usize, run: u32, volume: usize, event: Box<Event>, data: Option<(IoId, Payload)> },
    /// The fence file is written.
    Fence { node: usize, run: u32, volume: usize, epoch: Epoch, version: ConfigVersion },
    /// A store is to be opened.
    OpenStore { node: usize, run: u32, volume: usize },
    /// A client thinks of something.
    Client { client: usize, turn: u64 },
    /// A client's request reaches a node.
    Request { node: usize, run: u32, volume: usize, op: OpId, request: Box<Request>, payload: Option<Blocks> },
    /// A supervisor's word arrives.
    Goodbye { to: usize, node: usize, incarnation: Incarnation },
    /// The Raft leader's word arrives.
    LeaderReport { to: usize, heard: [bool; BOXES] },
    /// A worker process is started.
    WorkerStart { node: usize },
    /// A worker did not stop in time.
    StopTimeout { node: usize, run: u32 },
    /// A replica has stopped in order.
    StopCheck { node: usize, run: u32 },
    /// The shell's upkeep.
    Upkeep { node: usize, run: u32 },
    /// A pause is over.
    PauseEnd { node: usize, run: u32 },
    /// A box gets power.
    PowerOn { node: usize },
    /// A blocked path opens.
    Unblock { from: usize, to: usize },
    /// A slow path is normal again.
    NormalSpeed { from: usize, to: usize },
    /// A disk works again.
    DiskHeals { node: usize },
    /// The next fault.
    Fault,
    /// The operator looks.
    Watch,
    /// An operator's wish reaches a node.
    Wish { node: usize, volume: usize, control: Control },
}

/// What went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's short name.
    pub rule: &'static str,
    /// Details.
    pub detail: String,
    /// The volume, if it is about one.
    pub volume: Option<usize>,
    /// Simulated time.
    pub at: SimTime,
}

/// What resyncs of one volume have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resynced {
    /// Blocks compared with a peer's by digest.
    pub compared: u64,
    /// Blocks sent to be stored.
    pub sent: u64,
}

/// What is known about one volume from outside.
#[derive(Debug)]
pub struct VolumeSim {
    /// What clients saw.
    pub history: History,
    /// The newest configuration that any node has applied, and at which log index.
    pub newest: Option<VolumeConfig>,
    /// Log index of `newest`.
    pub newest_index: u64,
    /// Who completed an operation first under an epoch.
    pub server_of: BTreeMap<Epoch, (usize, u32)>,
    /// When the first operation was answered under each epoch.
    pub first_answers: BTreeMap<Epoch, SimTime>,
    /// Last answer to a client.
    pub last_completion: SimTime,
    /// What resyncs have cost.
    pub resynced: Resynced,
    /// Blocks that silent faults have struck on copies that are gone.
    pub struck_before: BTreeSet<u64>,
    /// The flawed box has been the only one in sync at some time.
    pub flawed_alone: bool,
}

/// Counters for the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Faults injected.
    pub faults: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Volumes that ended unavailable for a reason that permits it.
    pub unavailable: u64,
    /// Events handled.
    pub events: u64,
    /// Starts that declared a possible loss.
    pub losses: u64,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Parameters.
    pub setup: Setup,
    /// Simulated time.
    pub now: SimTime,
    /// The only source of chance.
    pub rng: Rng,
    /// What is to come.
    pub queue: Queue<Ev>,
    /// What happened.
    pub trace: Trace,
    /// The boxes; node `i + 1` is at `i`.
    pub boxes: Vec<SimBox>,
    /// The network.
    pub net: Network,
    /// The volumes.
    pub volumes: Vec<VolumeSim>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Operations of clients that are open somewhere, by number.
    pub ops: FxHashMap<u64, OpenOp>,
    /// Numbers of operations, values and disk operations given out.
    pub next_number: u64,
    /// The operator.
    pub operator: Operator,
    /// The first violation.
    pub violation: Option<Violation>,
    /// Counters.
    pub stats: Stats,
    /// Orders being carried out; kept for its allocation.
    pub actions: Vec<Action>,
    /// What an engine asks for; kept for its allocation.
    pub next: Vec<Next>,
}

impl World {
    /// A cluster that is switched off.
    pub fn new(setup: Setup, recording: bool) -> Self {
        let founding = founding(&setup);
        let voters: Vec<NodeId> = (1..=BOXES as u64).map(NodeId).collect();
        let log = Restored::founding(&voters, &founding);
        let volumes = setup.volumes.len();
        let boxes = (0..BOXES).map(|node| SimBox::new(node, volumes, setup.protocol, log.clone())).collect();
        let volume = |v: &super::setup::VolumeSetup| VolumeSim {
            history: History::new(v.durable),
            newest: None,
            newest_index: 0,
            server_of: BTreeMap::new(),
            first_answers: BTreeMap::new(),
            last_completion: 0,
            resynced: Resynced::default(),
            struck_before: BTreeSet::new(),
            flawed_alone: false,
        };
        let mut world = Self {
            now: 0,
            rng: Rng::new(setup.seed ^ 0x5eed),
            queue: Queue::default(),
            trace: Trace::new(recording),
            boxes,
            net: Network::new(setup.latency),
            volumes: setup.volumes.iter().map(volume).collect(),
            clients: Vec::new(),
            ops: FxHashMap::default(),
            next_number: 0,
            operator: Operator::default(),
            violation: None,
            stats: Stats::default(),
            actions: Vec::new(),
            next: Vec::new(),
            setup,
        };
        (0..BOXES).for_each(|node| world.power_on(node));
        world.start_clients();
        world.start_faults();
        world.queue.push(100_000, Ev::Watch);
        world
    }

    /// A node has applied a configuration. One that says so, or that makes a doubtful copy primary, may miss writes.
    pub fn learn(&mut self, volume: usize, config: &VolumeConfig, applied: u64) {
        let epoch_before = self.volumes[volume].newest.as_ref().map_or(Epoch(0), |newest| newest.epoch);
        let primary = self.boxes[config.primary.0 as usize - 1].stores[volume].as_ref();
        let doubtful = config.epoch > epoch_before && primary.is_some_and(|store| store.raw.harm.doubtful);
        let v = &mut self.volumes[volume];
        for (epoch, any) in
            [(doubtful.then_some(config.epoch), true), (config.loss_possible, true), (config.unflushed_loss, false)]
        {
            if let Some(epoch) = epoch.filter(|epoch| *epoch == config.epoch) {
                v.history.loss_declared(epoch, any, self.now);
            }
        }
        if v.newest.is_none() || applied >= v.newest_index {
            v.newest_index = applied;
            v.newest = Some(config.clone());
            let alone = config.in_sync.len() == 1;
            v.flawed_alone |=
                alone && self.setup.flawed.is_some_and(|node| config.in_sync.contains_key(&NodeId(node as u64 + 1)));
        }
        self.judge_harm(volume);
    }

    /// What a primary's copy holds is the volume's content, also where a silent fault has made wrong content its truth. A
    /// primary without a copy in the set reads those of the members.
    pub fn judge_harm(&mut self, volume: usize) {
        let v = &mut self.volumes[volume];
        let Some(config) = v.newest.as_ref() else { return };
        let own = config.in_sync.is_empty() || config.in_sync.contains_key(&config.primary);
        let members: Vec<NodeId> = config.in_sync.keys().copied().collect();
        for node in if own { vec![config.primary] } else { members } {
            if let Some(store) = self.boxes[node.0 as usize - 1].stores[volume].as_ref() {
                store.raw.harm.sealed.iter().for_each(|block| v.history.excuse(*block));
            }
        }
    }

    /// Lets time pass until `until`, or until something goes wrong.
    pub fn run_until(&mut self, until: SimTime) {
        while self.violation.is_none() {
            let Some((at, event)) = self.queue.pop(until) else { break };
            self.now = at;
            self.stats.events += 1;
            if self.stats.events > EVENTS_MAX {
                return self.violate(None, "livelock", "the run has too many events".into());
            }
            self.step(event);
        }
        if self.violation.is_none() {
            self.now = until;
        }
    }

    /// The next number: for operations, values and disk operations alike.
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Adds a line to the trace.
    pub fn note(&mut self, volume: Option<usize>, text: impl FnOnce() -> String) {
        self.trace.line(self.now, volume, text);
    }

    /// Records that a rule is broken; the run ends.
    pub fn violate(&mut self, volume: Option<usize>, rule: &'static str, detail: String) {
        self.note(volume, || format!("VIOLATION {rule}: {detail}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, detail, volume, at: self.now });
        }
    }

    /// Schedules what the network asks for.
    pub fn schedule_net(&mut self, later: super::network::Later) {
        for (at, event) in later {
            self.queue.push(at.max(self.now), Ev::Net(event));
        }
    }

    /// Which box's process an event is for, if it is for one.
    fn process_of(&self, event: &Ev) -> Option<usize> {
        match event {
            Ev::RaftPersisted { node, .. }
            | Ev::RaftRound { node, .. }
            | Ev::ReplicaTimer { node, .. }
            | Ev::Dial { node, .. }
            | Ev::Landed { node, .. }
            | Ev::Result { node, .. }
            | Ev::Fence { node, .. }
            | Ev::OpenStore { node, .. }
            | Ev::Upkeep { node, .. }
            | Ev::StopCheck { node, .. }
            | Ev::Request { node, .. }
            | Ev::Wish { node, .. } => Some(*node),
            Ev::RaftMessage { to, .. } | Ev::Goodbye { to, .. } | Ev::LeaderReport { to, .. } => Some(*to),
            Ev::Net(
                NetEvent::Arrival { connection, side }
                | NetEvent::Up { connection, side }
                | NetEvent::Down { connection, side }
                | NetEvent::Closed { connection, side },
            ) => Some(self.net.connection(*connection).ends[*side].node),
            _ => None,
        }
    }

    fn step(&mut self, event: Ev) {
        let node = self.process_of(&event);
        self.trace.mix(self.now ^ (node.map_or(0, |n| n as u64 + 1) << 56));
        if let Some(node) = node
            && let Some(worker) = self.boxes[node].worker.as_deref_mut()
            && worker.paused_until > self.now
        {
            worker.held.push_back(event);
            return;
        }
        self.handle(event);
    }

    /// Lets one thing happen.
    pub fn handle(&mut self, event: Ev) {
        match event {
            Ev::RaftTick { node, run } => self.raft_tick(node, run),
            Ev::RaftMessage { to, message } => self.raft_message(to, *message),
            Ev::RaftPersisted { node, run, number } => self.raft_persisted(node, run, number),
            Ev::RaftRound { node, run } => {
                if self.boxes[node].worker_of(run).is_some() {
                    self.drive_raft(node);
                }
            }
            Ev::ReplicaTimer { node, run, volume } => self.replica_timer(node, run, volume),
            Ev::Dial { node, run, volume, peer } => self.dial(node, run, volume, peer),
            Ev::Net(event) => self.net_event(event),
            Ev::Io { node, volume, token } => self.io_lands(node, volume, token),
            Ev::Landed { node, run, volume, whose, outcome } => self.landed(node, run, volume, whose, *outcome),
            Ev::Result { node, run, volume, event, data } => self.io_result(node, run, volume, *event, data),
            Ev::Fence { node, run, volume, epoch, version } => self.fence_written(node, run, volume, epoch, version),
            Ev::OpenStore { node, run, volume } => self.open_store(node, run, volume),
            Ev::Client { client, turn } => self.client_turn(client, turn),
            Ev::Request { node, run, volume, op, request, payload } => {
                self.request(node, run, volume, op, *request, payload);
            }
            Ev::Goodbye { to, node, incarnation } => {
                let node = NodeId(node as u64 + 1);
                (0..self.volumes.len()).for_each(|v| self.feed(to, v, Event::Goodbye { node, incarnation }));
            }
            Ev::LeaderReport { to, heard } => self.leader_report(to, heard),
            Ev::WorkerStart { node } => self.start_worker(node),
            Ev::StopTimeout { node, run } => {
                if self.boxes[node].worker_of(run).is_some() {
                    self.crash_worker(node);
                }
            }
            Ev::StopCheck { node, run } => self.stop_check(node, run),
            Ev::Upkeep { node, run } => self.upkeep(node, run),
            Ev::PauseEnd { node, run } => self.end_pause(node, run),
            Ev::PowerOn { node } => self.power_on(node),
            Ev::Unblock { from, to } => {
                let later = self.net.unblock(from, to, false, self.now, &mut self.rng);
                self.schedule_net(later);
            }
            Ev::NormalSpeed { from, to } => self.net.set_slow(from, to, 0),
            Ev::DiskHeals { node } => self.heal_disk(node),
            Ev::Fault => self.next_fault(),
            Ev::Watch => self.watch(),
            Ev::Wish { node, volume, control } => self.feed(node, volume, Event::Control(control)),
        }
    }

    /// Tells a replica a fact and carries out what it orders.
    pub fn feed(&mut self, node: usize, volume: usize, event: Event) {
        let b = &mut self.boxes[node];
        let now = Timestamp(b.clock.read(self.now));
        let Some(run) = b.volume(volume) else { return };
        if self.trace.recording() {
            let line = format!("{}: <- {}", node + 1, super::trace::brief(&format!("{event:?}")));
            self.trace.line(self.now, Some(volume), || line);
        }
        let mut actions = std::mem::take(&mut self.actions);
        run.replica.handle(now, event, &mut actions);
        for action in actions.drain(..) {
            if self.trace.recording() {
                let line = format!("{}:    -> {}", node + 1, super::trace::brief(&format!("{action:?}")));
                self.trace.line(self.now, Some(volume), || line);
            }
            self.perform(node, volume, action);
        }
        self.actions = actions;
        self.arm_timer(node, volume);
    }

    /// Looks that the replica's timer is set.
    fn arm_timer(&mut self, node: usize, volume: usize) {
        let b = &mut self.boxes[node];
        let clock = b.clock;
        let Some(worker) = b.worker.as_deref_mut() else { return };
        let worker_run = worker.run;
        let Some(run) = worker.volumes[volume].as_mut() else { return };
        let due = run.replica.next_deadline().0;
        if due == u64::MAX {
            return;
        }
        let late = self.rng.skewed(20, 1_000);
        let at = clock.when(due).max(self.now) + late;
        if at < run.timer {
            run.timer = at;
            self.queue.push(at, Ev::ReplicaTimer { node, run: worker_run, volume });
        }
    }

    fn replica_timer(&mut self, node: usize, run: u32, volume: usize) {
        let now = self.now;
        let b = &mut self.boxes[node];
        let reading = b.clock.read(now);
        let Some(worker) = b.worker_of(run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if volume_run.timer > now {
            return;
        }
        volume_run.timer = super::scheduler::NEVER;
        if volume_run.replica.next_deadline().0 <= reading {
            self.feed(node, volume, Event::Tick);
        } else {
            self.arm_timer(node, volume);
        }
    }
}

/// The state that the cluster starts from: three nodes that have joined.
fn founding(setup: &Setup) -> ClusterState {
    let mut state = ClusterState::default();
    for index in 0..BOXES {
        let kind = if setup.stores(index) { NodeKind::Storage } else { NodeKind::Witness };
        let node = NodeRecord { name: format!("node{}", index + 1), kind, ..NodeRecord::default() };
        let body = match index {
            0 => NodeCommand::Init { cluster: ClusterId(1), node },
            _ => NodeCommand::Join { node },
        };
        let _ = state.apply(&Command { request: RequestId(index as u128 + 1), body: CommandBody::Node(body) });
    }
    state
}
