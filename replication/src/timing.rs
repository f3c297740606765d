//! Every timer and every bound of pace of the protocol, and their defaults.

use proto::Micros;

/// Every timer of the protocol. Defaults are for a LAN; the simulator and the configuration may change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Blocks in one step of a resync while no client is active.
    pub resync_chunk_blocks: u64,
    /// Steps of a resync in flight at once while no client is active. Enough of them that what the target does for each
    /// extent before it writes (space, log) is done for several together.
    pub resync_chunks_in_flight: usize,
    /// Steps of a resync in a row of which no block was equal, after which the following ones are not compared.
    pub resync_compares_in_vain: u32,
    /// An extent that nobody has written to for so long becomes cold.
    pub extent_idle: Micros,
    /// Every block of every copy in sync is looked at within this time; `None`: only on request.
    pub scrub_period: Option<Micros>,
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
            resync_chunk_blocks: 256,
            resync_chunks_in_flight: 16,
            resync_compares_in_vain: 16,
            extent_idle: Micros::from_secs(30),
            scrub_period: Some(Micros::from_secs(14 * 24 * 3600)),
            check_invariants: cfg!(debug_assertions),
        }
    }
}
