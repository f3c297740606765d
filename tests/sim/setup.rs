//! What one seed is about: cluster, volumes, speeds, and which faults come how often.
//!
//! A seed takes a random part of the kinds of faults (swarm testing), so that rare combinations come up undiluted.

use proto::{BlockRange, EXTENT_BLOCKS, Micros};
use replication::Timing;
use replication::local_copy::Geometry;

use super::cluster::volume_id;
use super::faults::FaultKind;
use super::scheduler::{MILLISECOND, Rng, SECOND, SimTime};

/// Boxes in a simulated cluster; the third is the witness, or stores too.
pub const BOXES: usize = 3;
/// Volumes in a run, at most.
pub const VOLUMES_MAX: usize = 2;
/// Extents of a simulated volume, at most; the last one may be a part.
pub const EXTENTS_MAX: u64 = 6;
/// Blocks of a simulated volume, at most.
pub const VOLUME_BLOCKS_MAX: u64 = EXTENTS_MAX * EXTENT_BLOCKS;

/// Of so many seeds one has a client that writes a log.
const LOG_EACH: u64 = 8;

/// One volume.
#[derive(Clone, Debug)]
pub struct VolumeSetup {
    /// Its size.
    pub blocks: u64,
    /// Blocks that clients use: a few in every extent, so that they meet, and around the ends of extents.
    pub windows: Vec<BlockRange>,
    /// Ack policy `durable`.
    pub durable: bool,
    /// Boxes that hold a copy from the start; the first is primary.
    pub replicas: Vec<usize>,
    /// Concurrent clients.
    pub clients: usize,
    /// They flush after most of their writes, as whoever writes a log does.
    pub writes_log: bool,
}

/// Everything that is fixed for a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// The third box stores too.
    pub third_stores: bool,
    /// Volumes.
    pub volumes: Vec<VolumeSetup>,
    /// Timers of the core.
    pub timing: Timing,
    /// Between a client's operations.
    pub think: (SimTime, SimTime),
    /// One way through the network.
    pub latency: (SimTime, SimTime),
    /// One disk read or write; a flush takes a few times longer.
    pub disk_delay: (SimTime, SimTime),
    /// Clock drift of each box.
    pub drift_ppm: [i64; BOXES],
    /// Raft messages lost and doubled, per 1000.
    pub raft_loss_permille: u64,
    /// Pages of an activity log.
    pub log_pages: u32,
    /// Checksum pages of cold extents in memory, at most.
    pub cached_pages_max: usize,
    /// The box whose disk may do harm silently; never two in a run.
    pub flawed: Option<usize>,
    /// The version of the peer protocol that the boxes begin with.
    pub protocol: u16,
    /// Kinds of faults that this seed has.
    pub kinds: Vec<FaultKind>,
    /// Mean time between faults.
    pub fault_gap: SimTime,
    /// When faults begin and end.
    pub faults: (SimTime, SimTime),
    /// The run lasts at least this long.
    pub lasts: SimTime,
    /// A scenario: no faults and no clients but those it orders.
    pub scripted: bool,
    /// The trace tells of every operation of the raw disks.
    pub trace_disk: bool,
}

impl Setup {
    /// The parameters of a seed.
    pub fn random(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let third_stores = rng.chance(250);
        let count = if rng.chance(250) { VOLUMES_MAX } else { 1 };
        let mut volumes: Vec<VolumeSetup> = (0..count).map(|_| volume(rng, third_stores)).collect();
        if seed % LOG_EACH == LOG_EACH - 1 {
            (volumes[0].writes_log, volumes[0].clients) = (true, 1);
        }
        let confirmed_reads = rng.chance(400);
        let flawed = rng.chance(400).then(|| rng.below(if third_stores { 3 } else { 2 }) as usize);
        let protocol = if rng.chance(200) { 1 } else { 2 };
        let possible = |kind: &FaultKind| match kind {
            FaultKind::Upgrade => protocol == 1,
            kind => !kind.is_silent() || flawed.is_some(),
        };
        let kinds = loop {
            let share = rng.pick(&[150, 300, 600]);
            let kinds = FaultKind::ALL.into_iter().filter(|_| rng.chance(share)).filter(possible);
            let kinds: Vec<FaultKind> = kinds.collect();
            if !kinds.is_empty() {
                break kinds;
            }
        };
        let drift_max = rng.pick(&[0, 100, 10_000]);
        let drift = |rng: &mut Rng| rng.between(0, 2 * drift_max) as i64 - drift_max as i64;
        Self {
            seed,
            third_stores,
            volumes,
            timing: timing(rng, confirmed_reads),
            think: rng.pick(&[(5 * MILLISECOND, 80 * MILLISECOND), (20 * MILLISECOND, 300 * MILLISECOND)]),
            latency: rng.pick(&[(50, 500), (50, 5_000), (1_000, 40_000)]),
            disk_delay: rng.pick(&[(50, 500), (50, 500), (100, 10_000), (1_000, 50_000)]),
            drift_ppm: [drift(rng), drift(rng), drift(rng)],
            raft_loss_permille: rng.pick(&[0, 5, 50]),
            log_pages: rng.pick(&[2, 3, 8]),
            cached_pages_max: rng.between(1, 8) as usize,
            flawed,
            protocol,
            kinds,
            fault_gap: rng.pick(&[400 * MILLISECOND, 1500 * MILLISECOND, 4 * SECOND]),
            faults: (3 * SECOND, 40 * SECOND),
            lasts: 60 * SECOND,
            scripted: false,
            trace_disk: false,
        }
    }

    /// One volume on two boxes and a witness, ideal clocks, no faults: for scenarios.
    pub fn scripted() -> Self {
        let windows = vec![BlockRange::new(0, 16), BlockRange::new(1024, 16), BlockRange::new(2048, 16)];
        let volume = VolumeSetup {
            blocks: 3 * EXTENT_BLOCKS,
            windows,
            durable: false,
            replicas: vec![0, 1],
            clients: 0,
            writes_log: false,
        };
        Self {
            seed: 0,
            third_stores: false,
            volumes: vec![volume],
            timing: timing(&mut Rng::new(0), false),
            think: (20 * MILLISECOND, 100 * MILLISECOND),
            latency: (50, 200),
            disk_delay: (50, 200),
            drift_ppm: [0; BOXES],
            raft_loss_permille: 0,
            log_pages: 8,
            cached_pages_max: 8,
            flawed: None,
            protocol: 2,
            kinds: Vec::new(),
            fault_gap: SECOND,
            faults: (0, 0),
            lasts: 0,
            scripted: true,
            trace_disk: false,
        }
    }

    /// What the copies of a volume are made of.
    pub fn geometry(&self, volume: usize) -> Geometry {
        Geometry {
            volume: volume_id(volume),
            blocks: self.volumes[volume].blocks,
            log_pages: self.log_pages,
            cached_pages_max: self.cached_pages_max,
        }
    }

    /// True if box `node` stores data.
    pub fn stores(&self, node: usize) -> bool {
        node + 1 < BOXES || self.third_stores
    }

    /// The longest that a full resync takes with nobody else at the disks: as long as the run with the shortest steps, one
    /// at a time, between slow disks.
    pub fn longest_resync(&self) -> SimTime {
        let blocks = self.volumes.iter().map(|volume| volume.blocks).max().unwrap_or(0);
        let in_flight = self.timing.resync_chunks_in_flight as u64;
        let steps = blocks.div_ceil(self.timing.resync_chunk_blocks).div_ceil(in_flight);
        steps * 2 * (self.latency.1 + self.disk_delay.1)
    }
}

/// Short waits, so that what takes minutes in service fits into a run; their relations are those of the defaults.
fn timing(rng: &mut Rng, confirmed_reads: bool) -> Timing {
    let extent_idle = Micros::from_millis(rng.pick(&[200, 700, 2_000, 8_000]));
    // Steps as short as what clients write are those that hold no zeros, and so may go without a comparison.
    let (resync_chunk_blocks, resync_compares_in_vain) = rng.pick(&[(64, 16), (256, 0), (64, 1), (8, 0)]);
    Timing {
        cold_wait: Micros::from_secs(5),
        readmit_backoff: (Micros::from_millis(500), Micros::from_secs(4)),
        io_timeout: Micros::from_secs(2),
        confirmed_reads,
        extent_idle,
        resync_chunk_blocks,
        resync_compares_in_vain,
        resync_chunks_in_flight: rng.pick(&[1, 4]) as usize,
        scrub_period: rng.pick(&[None, None, None, Some(Micros::from_secs(6))]),
        check_invariants: true,
        ..Timing::default()
    }
}

fn volume(rng: &mut Rng, third_stores: bool) -> VolumeSetup {
    let mut replicas = if rng.chance(500) { vec![0, 1] } else { vec![1, 0] };
    if third_stores && rng.chance(500) {
        replicas.push(2);
    }
    let extents = rng.between(2, EXTENTS_MAX);
    let blocks = (extents - 1) * EXTENT_BLOCKS + rng.pick(&[64, 256, EXTENT_BLOCKS]);
    VolumeSetup {
        blocks,
        windows: windows(rng, extents),
        durable: rng.chance(200),
        replicas,
        clients: rng.between(2, 4) as usize,
        writes_log: false,
    }
}

/// A window in each extent: around its beginning, or right at it.
fn windows(rng: &mut Rng, extents: u64) -> Vec<BlockRange> {
    let width = rng.pick(&[4, 4, 8, 16]);
    let used = rng.between(1, extents);
    let start = |extent: u64, rng: &mut Rng| {
        let before = if extent > 0 && rng.chance(500) { width / 2 } else { 0 };
        extent * EXTENT_BLOCKS - before
    };
    (0..used).map(|extent| BlockRange::new(start(extent, rng), width)).collect()
}
