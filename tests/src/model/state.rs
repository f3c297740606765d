//! One state of the pair, its witness, its client and what may still befall them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use proto::peer::message::Envelope;
use proto::{
    BLOCK_BYTES, Boot, ClusterId, ConfigVersion, DiskId, Epoch, Incarnation, NodeId, RequestId, Timestamp, VolumeId,
};
use replication::config::{
    AckPolicy, ClusterState, Command, Member, NodeKind, NodeRecord, Phase, Registration, VolumeConfig,
};
use replication::{IoId, Replica};

use super::fingerprint::{clock, hash_at};
use super::history::Register;
use super::network::Network;
use super::store::{BLOCKS, Inflight, Store, VOLUME_BLOCKS, Values};

/// The volume.
pub const VOLUME: VolumeId = VolumeId(1);

/// What may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Crashes of a worker or, with `power`, of a box.
    pub crashes: u8,
    /// A crash may be a power cut.
    pub power: bool,
    /// Partitions; each may end or not.
    pub partitions: u8,
    /// Writes of the client.
    pub writes: u8,
    /// Its reads.
    pub reads: u8,
    /// Its flushes.
    pub flushes: u8,
    /// Planned switchovers.
    pub switchovers: u8,
    /// Steps of the clock.
    pub ticks: u8,
    /// Things that may take for ever.
    pub delays: u8,
    /// Operations of the client in flight at once.
    pub open_max: u8,
}

impl Budget {
    /// The short form: what every change is checked with.
    pub const SHORT: Budget = Budget {
        crashes: 1,
        power: true,
        partitions: 1,
        writes: 1,
        reads: 1,
        flushes: 0,
        switchovers: 0,
        ticks: 8,
        delays: 0,
        open_max: 2,
    };
}

/// Which ways are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// None.
    None,
    /// Between the boxes; both reach the witness.
    Between,
    /// That box reaches nobody.
    Isolated(usize),
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broken {
    /// Which, by its name in the list of properties.
    pub rule: &'static str,
    /// Details for people.
    pub detail: String,
}

/// A run of the worker.
#[derive(Clone, Debug, Hash)]
pub struct Worker {
    /// The shipped core.
    pub replica: Replica,
    /// Disk operations in flight.
    pub inflight: Vec<Inflight>,
    /// Reads whose data the core has not released.
    pub loaded: Vec<(IoId, Values)>,
    /// It wants a connection to the other box.
    pub dial: bool,
    /// It has dialled since the clock moved last: a shell dials again only after a pause.
    pub dialled: bool,
    /// Dialling may take for ever.
    pub dial_slow: bool,
    /// Learning of the next configuration may take for ever.
    pub apply_slow: bool,
}

/// One box.
#[derive(Clone, Debug, Hash)]
pub struct BoxState {
    /// Its copy.
    pub store: Store,
    /// Power-ons so far.
    pub boots: u8,
    /// Runs of its worker so far.
    pub runs: u8,
    /// The worker, if one runs.
    pub worker: Option<Worker>,
    /// A run that has ended, and that the other box has not been told of.
    pub goodbye: Option<Incarnation>,
}

impl BoxState {
    fn new(node: usize) -> Self {
        let store = Store::new(DiskId(node as u128 + 1));
        Self { store, boots: 1, runs: 1, worker: None, goodbye: None }
    }

    /// The present or last run of box `node`.
    pub fn incarnation(&self, node: usize) -> Incarnation {
        Incarnation(node as u64 * 100 + u64::from(self.runs))
    }

    /// The present or last power-on of box `node`.
    pub fn boot(&self, node: usize) -> Boot {
        Boot(node as u128 * 100 + u128::from(self.boots))
    }
}

/// A proposal that has reached Raft and may commit, once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// What.
    pub command: Command,
    /// It may take for ever.
    pub slow: bool,
}

/// Raft, seen from outside: commands commit in some order, and every node learns of them in that order.
#[derive(Clone, Debug)]
pub struct Raft {
    /// What is committed.
    pub state: ClusterState,
    /// Every configuration so far.
    pub log: Vec<Arc<VolumeConfig>>,
    /// Newest configuration that each box has applied, as an index into `log`.
    pub applied: [usize; 2],
    /// What may commit.
    pub pending: Vec<Pending>,
}

impl Raft {
    /// The committed configuration.
    pub fn committed(&self) -> &Arc<VolumeConfig> {
        &self.log[self.log.len() - 1]
    }

    /// What a box has applied.
    pub fn applied(&self, node: usize) -> &Arc<VolumeConfig> {
        &self.log[self.applied[node]]
    }

    /// True when a box has not applied everything.
    pub fn lags(&self, node: usize) -> bool {
        self.applied[node] + 1 < self.log.len()
    }
}

impl Hash for Raft {
    /// The past that every box has applied does not matter.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.state.nodes.hash(hasher);
        let first = self.applied[0].min(self.applied[1]);
        self.log[first..].hash(hasher);
        (self.applied[0] - first, self.applied[1] - first).hash(hasher);
        self.pending.hash(hasher);
    }
}

/// What the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Stored `value` in a block.
    Write {
        /// Which.
        block: usize,
        /// A value of its own.
        value: u8,
    },
    /// Reads a block.
    Read {
        /// Which.
        block: usize,
        /// Numbers the read in the block's history.
        read: u8,
    },
    /// Flushes; the values that the blocks could hold when it began, and those written since.
    Flush {
        /// As bits.
        since: [u8; BLOCKS],
    },
}

/// One operation of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Op {
    /// What.
    pub kind: OpKind,
    /// The box it was sent to.
    pub node: usize,
    /// No answer yet, and that run still lives.
    pub open: bool,
}

/// The client and its judgement.
#[derive(Clone, Debug, Default, Hash)]
pub struct Client {
    /// Operations, numbered from 1 by their place.
    pub ops: Vec<Op>,
    /// What each block may hold.
    pub registers: [Register; BLOCKS],
    /// Writes and reads so far, by block.
    pub written: [u8; BLOCKS],
    /// Reads so far, by block.
    pub read: [u8; BLOCKS],
}

/// One state.
#[derive(Clone, Debug)]
pub struct State {
    /// Steps of the clock so far. Both boxes read the same clock.
    pub time: u8,
    /// The two boxes.
    pub boxes: [Arc<BoxState>; 2],
    /// Raft.
    pub raft: Arc<Raft>,
    /// Connections.
    pub net: Arc<Network>,
    /// The client.
    pub client: Arc<Client>,
    /// What may still happen.
    pub budget: Budget,
    /// The present partition.
    pub cut: Cut,
    /// A rule that was broken; nothing happens after.
    pub broken: Option<Arc<Broken>>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let parts = (&self.boxes, &self.raft, &self.net, &self.client, &self.budget, &self.cut, &self.broken);
        hash_at(&parts, self.now(), hasher);
    }
}

impl PartialEq for State {
    /// States are equal if they can only behave alike: as the fingerprint has it.
    fn eq(&self, other: &Self) -> bool {
        let digest = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}

impl State {
    /// Two boxes in sync, the first primary by the configuration; no worker runs yet.
    pub fn new(budget: Budget) -> Self {
        let boxes = [Arc::new(BoxState::new(0)), Arc::new(BoxState::new(1))];
        let state = cluster(&boxes);
        let log = state.volumes.values().cloned().map(Arc::new).collect();
        Self {
            time: 0,
            raft: Arc::new(Raft { state, log, applied: [0; 2], pending: Vec::new() }),
            boxes,
            net: Arc::default(),
            client: Arc::default(),
            budget,
            cut: Cut::None,
            broken: None,
        }
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        clock(self.time)
    }

    /// The first broken rule stays.
    pub fn violate(&mut self, rule: &'static str, detail: String) {
        if self.broken.is_none() {
            self.broken = Some(Arc::new(Broken { rule, detail }));
        }
    }

    /// True when box `node` runs and reaches the witness.
    pub fn reaches_witness(&self, node: usize) -> bool {
        self.boxes[node].worker.is_some() && self.cut != Cut::Isolated(node)
    }

    /// True when the boxes reach each other.
    pub fn is_joined(&self) -> bool {
        self.cut == Cut::None
    }
}

fn cluster(boxes: &[Arc<BoxState>; 2]) -> ClusterState {
    let mut state = ClusterState { cluster: ClusterId(1), next_node: 4, ..ClusterState::default() };
    let mut config = VolumeConfig {
        id: VOLUME,
        name: "v".to_owned(),
        size_bytes: VOLUME_BLOCKS * BLOCK_BYTES,
        ack_policy: AckPolicy::Flush,
        feature_level: 1,
        phase: Phase::Active,
        preallocate: false,
        epoch: Epoch(1),
        version: ConfigVersion(1),
        primary: NodeId(1),
        primary_incarnation: boxes[0].incarnation(0),
        in_sync: Default::default(),
        replicas: Default::default(),
        loss_possible: None,
        unflushed_loss: None,
        force_plan: None,
        create_request: RequestId(0),
        nfs: None,
    };
    for (node, b) in boxes.iter().enumerate() {
        let (id, disk_id, boot) = (NodeId(node as u64 + 1), b.store.disk_id, b.boot(node));
        let incarnation = b.incarnation(node);
        let registration = Registration { disk_id, incarnation, boot, ready: true, ..Registration::default() };
        config.replicas.insert(id, Registration { registered_at: ConfigVersion(1), ..registration });
        config.in_sync.insert(id, Member { disk_id, boot, since: ConfigVersion(1) });
        let record = NodeRecord { incarnation, boot, feature_levels: (1, 1), ..NodeRecord::default() };
        state.nodes.insert(id, record);
    }
    state.nodes.insert(NodeId(3), NodeRecord { kind: NodeKind::Witness, ..NodeRecord::default() });
    state.volumes.insert(VOLUME, config);
    state
}

/// The name of box `node` in the protocol.
pub fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

/// The box that has that name.
pub fn box_of(id: NodeId) -> usize {
    (id.0 as usize).saturating_sub(1).min(1)
}

/// For traces: who says it, under which session.
pub fn describe(envelope: &Envelope) -> String {
    format!("e{} v{} s{:x}", envelope.epoch, envelope.version, envelope.session.0)
}
