//! What a replica tells people and metrics.

use proto::{NodeId, Timestamp};

use crate::scrub::ScrubReport;

/// What `volume show` and the metrics tell of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
    /// Extents that are not cold.
    pub hot_extents: usize,
    /// The scrub under way.
    pub scrub: Option<ScrubReport>,
    /// When the last scrub by this run ended, and what it found.
    pub last_scrub: Option<(Timestamp, ScrubReport)>,
}
