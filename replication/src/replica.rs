//! One volume's copy on one node: routes events to the parts below.

use proto::{Boot, Incarnation, Micros, NodeId, Timestamp, VolumeId};

use crate::action::Action;
use crate::event::Event;

/// Every timer of the protocol. Defaults are for a LAN; the simulator and the configuration may change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between beacons.
    pub beacon_interval: Micros,
    /// Lease, counted by the primary from sending the beacon.
    pub lease: Micros,
    /// Grace, counted by the secondary from receiving the beacon. Longer than the lease by more than the clocks' drift.
    pub grace: Micros,
    /// Silence of a member after which the primary proposes to drop it.
    pub shrink_after: Micros,
    /// An operation on a disk, or awaited from a peer, older than this counts as failed.
    pub io_timeout: Micros,
    /// A proposal that shows no effect is repeated after this.
    pub proposal_retry: Micros,
    /// Other members silent for this long may be passed over by a cold one.
    pub cold_wait: Micros,
    /// First and longest wait before a member that was dropped is admitted again.
    pub readmit_backoff: (Micros, Micros),
    /// A read is answered only after an ack of a beacon sent after it arrived.
    pub confirmed_reads: bool,
    /// Blocks in one step of a resync.
    pub resync_chunk_blocks: u64,
    /// Steps of a resync in flight at once.
    pub resync_chunks_in_flight: usize,
    /// Check every invariant after every event, at a cost.
    pub check_invariants: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beacon_interval: Micros::from_millis(100),
            lease: Micros::from_millis(1000),
            grace: Micros::from_millis(1500),
            shrink_after: Micros::from_millis(600),
            io_timeout: Micros::from_secs(5),
            proposal_retry: Micros::from_millis(300),
            cold_wait: Micros::from_secs(30),
            readmit_backoff: (Micros::from_secs(1), Micros::from_secs(60)),
            confirmed_reads: false,
            resync_chunk_blocks: 64,
            resync_chunks_in_flight: 8,
            check_invariants: cfg!(debug_assertions),
        }
    }
}

/// What `volume show` and the metrics tell of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Role, as in the state table of `docs/protocol.md`.
    pub role: &'static str,
    /// True when a client's operation would be answered now.
    pub serving: bool,
    /// What it waits for, in words, and since when; empty when nothing is amiss.
    pub waiting: Option<(String, Timestamp)>,
    /// Operations of clients in flight or queued.
    pub operations: usize,
    /// Per peer: node, state, blocks still to resync, blocks resynced.
    pub peers: Vec<(NodeId, &'static str, u64, u64)>,
}

/// One volume's copy on one node.
#[derive(Debug)]
pub struct Replica {
    #[allow(dead_code)]
    timing: Timing,
}

impl Replica {
    /// A replica that knows nothing yet: the shell follows up with `Config` and `DiskAttached`.
    pub fn new(
        _volume: VolumeId,
        _node: NodeId,
        _incarnation: Incarnation,
        _boot: Boot,
        timing: Timing,
        _now: Timestamp,
    ) -> Self {
        Self { timing }
    }

    /// Takes one fact and appends the orders that follow from it.
    pub fn handle(&mut self, _now: Timestamp, _event: Event, _actions: &mut Vec<Action>) {}

    /// When a `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Timestamp {
        Timestamp::NEVER
    }

    /// For people and metrics.
    pub fn status(&self, _now: Timestamp) -> Status {
        Status::default()
    }
}
