//! What every part of a replica shares: who it is, the newest configuration, the local disk's state and its operations in
//! flight, the fence, and the orders collected during one event.

use std::collections::BTreeMap;

use proto::peer::message::{Envelope, Message, NackReason, Seq};
use proto::{
    BlockRange, Boot, ConfigVersion, DiskId, Epoch, Incarnation, Micros, NodeId, RequestId, SessionId, Timestamp,
    VolumeId,
};

use crate::action::{Action, Notice, PayloadSlice};
use crate::activity_log::ActivityLog;
use crate::config::{Command, CommandBody, VolumeCommand, VolumeConfig};
use crate::event::{DiskReport, IoId, LinkId, PayloadId};
use crate::scrub::ScrubReport;
use crate::timing::Timing;
use crate::tracker::Trackers;
use crate::window::Window;

/// The local disk as the replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Disk {
    /// Not opened yet.
    Absent,
    /// In use.
    Attached(DiskReport),
    /// Given up, after an error (`failed`) or on request.
    Detached { failed: bool },
}

/// Why a local operation runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Primary: local half of a write.
    Write(u64),
    /// Primary: a client's read.
    Read(u64),
    /// Primary: the edges of a partial write.
    Merge(u64),
    /// Extents become hot.
    Heat,
    /// Extents become cold in the background.
    Cool,
    /// Extents become cold at the end of an orderly stop.
    StopCool,
    /// Pages of dirty bitmaps.
    Bitmap(NodeId),
    /// Primary: a step of a scrub.
    Scrub(u64),
    /// Primary: a peer's copy in the place of a bad one.
    Repair(u64),
    /// Primary: local half of a flush.
    Flush(u64),
    /// Primary: a resync step's read for a peer.
    Chunk(NodeId, u64),
    /// Backup: a write or resync data of the session's stream.
    Stream(Seq),
    /// Backup: a flush of the stream.
    StreamFlush(Seq),
    /// Backup: the read for a digest.
    StreamDigest(Seq, BlockRange),
    /// Backup: the read for the primary, of data or of checksums.
    StreamRead(Seq, BlockRange),
    /// The replica's state in the superblock.
    State,
    /// The last flush of an orderly stop.
    StopFlush,
}

impl Purpose {
    /// It outlives roles and sessions: its end counts whatever has changed meanwhile.
    pub(crate) fn is_of_the_copy(&self) -> bool {
        matches!(self, Purpose::State | Purpose::Heat | Purpose::Cool | Purpose::StopCool | Purpose::Bitmap(_))
    }
}

/// One local operation.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Io {
    /// Why it runs.
    pub(crate) purpose: Purpose,
    /// Generation it belongs to; an older one's end matters to nobody.
    pub(crate) generation: u64,
    /// When it began.
    pub(crate) started: Timestamp,
}

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Core {
    pub(crate) volume: VolumeId,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: Boot,
    pub(crate) timing: Timing,
    pub(crate) now: Timestamp,
    /// Like `now`, without the spans in which this process itself stood still. What others owe us is aged by it: a
    /// process that was paused has not waited for a disk or a peer. Leases know nothing of it.
    pub(crate) active: Timestamp,
    pub(crate) started: Timestamp,
    pub(crate) config: Option<Box<VolumeConfig>>,
    pub(crate) disk: Disk,
    /// Which extents are hot here.
    pub(crate) log: ActivityLog,
    /// What copies outside the in-sync set lack, as long as this one is in it.
    pub(crate) trackers: Trackers,
    /// Bitmap pages are on their way to the disk: no others may be, lest an older one lands last.
    pub(crate) bitmaps_busy: Option<IoId>,
    /// When idle extents are looked for next.
    pub(crate) next_cooling: Timestamp,
    /// When the last scrub by this run ended, and what it found.
    pub(crate) last_scrub: Option<(Timestamp, ScrubReport)>,
    /// When the next scrub in the background begins.
    pub(crate) scrub_due_at: Timestamp,
    /// How far the one in the background has come, over roles and restarts.
    pub(crate) unfinished_scrub: Option<ScrubReport>,
    /// Durable fence: nothing at or below it is served or acknowledged.
    pub(crate) fence: (Epoch, ConfigVersion),
    /// The newest version that a primary acted under whose stream has reached this run.
    pub(crate) primary_version: ConfigVersion,
    /// Operations in flight, by number, hence oldest first.
    pub(crate) io: Window<IoId, Io>,
    next_io: u64,
    /// Grows whenever the role or the session changes: I/O of an older generation only has to end.
    pub(crate) generation: u64,
    /// The newest epoch in which this run has given up being primary: it serves again only under a later one.
    pub(crate) given_up: Epoch,
    /// Configuration version recorded in the superblock as in sync, or being recorded.
    recorded_in_sync: ConfigVersion,
    requests: u64,
    /// The peer at the other end of each standing link, and whether this side dialled.
    pub(crate) links: BTreeMap<LinkId, (NodeId, bool)>,
    /// When each node was last heard, directly or by the Raft leader.
    last_heard: BTreeMap<NodeId, Timestamp>,
    /// When the Raft leader last reported hearing the node.
    leader_heard: BTreeMap<NodeId, Timestamp>,
    /// Runs that are known to have ended.
    gone: BTreeMap<NodeId, Incarnation>,
    pub(crate) actions: Vec<Action>,
}

impl Core {
    pub(crate) fn new(
        volume: VolumeId,
        node: NodeId,
        incarnation: Incarnation,
        boot: Boot,
        timing: Timing,
        now: Timestamp,
    ) -> Self {
        Self {
            volume,
            node,
            incarnation,
            boot,
            timing,
            now,
            active: now,
            started: now,
            config: None,
            disk: Disk::Absent,
            log: ActivityLog::default(),
            trackers: Trackers::default(),
            bitmaps_busy: None,
            next_cooling: now,
            last_scrub: None,
            scrub_due_at: timing.scrub_period.map_or(Timestamp::NEVER, |period| now + period),
            unfinished_scrub: None,
            fence: (Epoch(0), ConfigVersion(0)),
            primary_version: ConfigVersion(0),
            io: Window::default(),
            next_io: 0,
            generation: 0,
            given_up: Epoch(0),
            recorded_in_sync: ConfigVersion(0),
            requests: 0,
            links: BTreeMap::new(),
            last_heard: BTreeMap::new(),
            leader_heard: BTreeMap::new(),
            gone: BTreeMap::new(),
            actions: Vec::new(),
        }
    }

    /// Time has come to `now`.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        let now = self.now.max(now);
        let gap = now.since(self.now);
        // A tick is due every beacon interval: a longer gap is our own.
        self.active = self.active + gap.min(Micros(self.timing.beacon_interval.0 * 2));
        self.now = now;
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The configuration's version, 0 before the first.
    pub(crate) fn version(&self) -> ConfigVersion {
        self.config.as_ref().map_or(ConfigVersion(0), |config| config.version)
    }

    /// The configuration's epoch, 0 before the first.
    pub(crate) fn epoch(&self) -> Epoch {
        self.config.as_ref().map_or(Epoch(0), |config| config.epoch)
    }

    /// True when this node is in the committed in_sync set, as far as it has applied.
    pub(crate) fn is_member(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.in_sync.contains_key(&self.node))
    }

    /// True once this run is registered. The entry that says so is newer than all that a former run has applied, so the
    /// configuration is not one of the past, which the log tells again at the start of a run.
    pub(crate) fn is_registered(&self) -> bool {
        let own = self.config.as_ref().and_then(|config| config.replicas.get(&self.node));
        own.is_some_and(|registration| registration.incarnation == self.incarnation)
    }

    /// True when no primary has sent anything under a newer configuration than the one applied here: it says which copies
    /// may have what this one was sent.
    pub(crate) fn follows_primary(&self) -> bool {
        self.version() >= self.primary_version
    }

    /// True when this node is a member that came in sync during another power-on: its disk may have lost what it had
    /// acknowledged. Its own boot counts, not the registered one, which may lag behind.
    pub(crate) fn is_cold(&self) -> bool {
        let member = self.config.as_ref().and_then(|config| config.in_sync.get(&self.node));
        member.is_some_and(|member| member.boot != self.boot)
    }

    /// True when this copy is the only one in sync.
    pub(crate) fn is_last_member(&self) -> bool {
        self.is_member() && self.config.as_ref().is_some_and(|config| config.in_sync.len() == 1)
    }

    /// The volume's size in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.config.as_ref().map_or(0, |config| config.size_bytes / proto::BLOCK_BYTES)
    }

    /// The disk's report, while it is in use.
    pub(crate) fn disk_report(&self) -> Option<DiskReport> {
        match self.disk {
            Disk::Attached(report) => Some(report),
            Disk::Absent | Disk::Detached { .. } => None,
        }
    }

    /// The attached disk's id, if it is the registered one.
    pub(crate) fn own_disk(&self) -> Option<DiskId> {
        let registered = self.config.as_ref()?.replicas.get(&self.node)?.disk_id;
        self.disk_report().map(|report| report.disk_id).filter(|disk_id| *disk_id == registered)
    }

    /// True while the durable fence covers the applied configuration.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence.1 > ConfigVersion(0) && self.version() <= self.fence.1
    }

    /// Numbers a local operation and enters it in the table.
    pub(crate) fn start_io(&mut self, purpose: Purpose) -> IoId {
        self.next_io += 1;
        let io = IoId(self.next_io);
        self.io.insert(io, Io { purpose, generation: self.generation, started: self.active });
        io
    }

    /// True when no data operation of an earlier generation is unfinished (I10).
    pub(crate) fn is_drained(&self) -> bool {
        let generation = self.generation;
        !self.io.values().any(|io| io.generation != generation && !io.purpose.is_of_the_copy())
    }

    /// Begins a new generation: what is in flight only has to end.
    pub(crate) fn next_generation(&mut self) {
        self.generation += 1;
        self.log.end_session();
    }

    /// The local copy may be read and written: its disk is in use, and what it holds is in sync. A primary that has left
    /// the in-sync set serves through its peers, whatever its disk holds.
    pub(crate) fn serves_locally(&self) -> bool {
        matches!(self.disk, Disk::Attached(_)) && self.is_member()
    }

    /// Stops using the disk. Operations in flight only have to end.
    pub(crate) fn detach(&mut self, failed: bool) {
        let was = std::mem::replace(&mut self.disk, Disk::Detached { failed });
        self.log = ActivityLog::default();
        self.trackers.detach();
        self.bitmaps_busy = None;
        self.io.retain(|_, io| !io.purpose.is_of_the_copy());
        if matches!(was, Disk::Attached(_)) {
            self.act(Action::DetachDisk { failed });
            self.act(Action::Notify(Notice::DiskDetached { failed }));
        }
    }

    /// Records in the superblock that the copy is in sync, once per gain of membership or change of epoch.
    pub(crate) fn record_in_sync(&mut self) {
        let Some(config) = &self.config else { return };
        let version = config.version;
        let warm = config.in_sync.contains_key(&self.node) && !self.is_cold();
        // A copy whose disk had failed is whole again only once it was admitted, or began an epoch of its own.
        let mine = (config.primary, config.primary_incarnation) == (self.node, self.incarnation);
        let own_epoch = mine && config.epoch > self.given_up;
        let fit = self.disk_report().is_some_and(|report| !report.failed || (own_epoch && config.in_sync.len() == 1));
        if warm && fit && self.recorded_in_sync == ConfigVersion(0) {
            self.recorded_in_sync = version;
            if let Disk::Attached(report) = &mut self.disk {
                report.suspect = false;
                report.failed = false;
                report.last_in_sync = version;
            }
            let io = self.start_io(Purpose::State);
            self.act(Action::PersistReplicaState { io, last_in_sync: version, suspect: false });
        }
    }

    /// A resync has made the copy whole, whatever had befallen its disk.
    pub(crate) fn resynced(&mut self) {
        if let Disk::Attached(report) = &mut self.disk {
            report.failed = false;
            report.suspect = false;
        }
    }

    /// The next `record_in_sync` writes again.
    pub(crate) fn forget_recorded(&mut self) {
        self.recorded_in_sync = ConfigVersion(0);
    }

    /// Sends a message under the present epoch and version.
    pub(crate) fn send(&mut self, link: LinkId, session: SessionId, message: Message, payload: Option<PayloadSlice>) {
        let envelope = self.envelope(session);
        self.act(Action::Send { link, envelope, message, payload });
    }

    pub(crate) fn envelope(&self, session: SessionId) -> Envelope {
        Envelope { epoch: self.epoch(), version: self.version(), session }
    }

    pub(crate) fn nack(&mut self, link: LinkId, session: SessionId, reason: NackReason) {
        self.send(link, session, Message::Nack { reason }, None);
    }

    pub(crate) fn release(&mut self, payload: Option<PayloadId>) {
        if let Some(id) = payload {
            self.act(Action::Release(id));
        }
    }

    /// A request id that no other run and no other proposal of this run has.
    pub(crate) fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        let volume = (self.volume.0 as u64) ^ ((self.volume.0 >> 64) as u64);
        RequestId(u128::from(self.incarnation.0 ^ volume.rotate_left(17)) << 64 | u128::from(self.requests))
    }

    /// Proposes a change guarded by the applied version.
    pub(crate) fn propose(&mut self, request: RequestId, command: VolumeCommand) {
        let body = CommandBody::Volume { volume: self.volume, expect_version: self.version(), command };
        self.act(Action::Propose(Command { request, body }));
    }

    pub(crate) fn heard(&mut self, node: NodeId) {
        self.last_heard.insert(node, self.now);
    }

    pub(crate) fn leader_hears(&mut self, node: NodeId, alive: bool) {
        if alive {
            self.leader_heard.insert(node, self.now);
            self.heard(node);
        } else {
            self.leader_heard.remove(&node);
        }
    }

    /// True when the Raft leader reported the node alive within the last lease.
    pub(crate) fn leader_hears_now(&self, node: NodeId) -> bool {
        self.leader_heard.get(&node).is_some_and(|at| self.now.since(*at) < self.timing.lease)
    }

    /// How long the node has been silent, to us and to the Raft leader.
    pub(crate) fn silence(&self, node: NodeId) -> proto::Micros {
        self.now.since(self.last_heard.get(&node).copied().unwrap_or(self.started))
    }

    pub(crate) fn goodbye(&mut self, node: NodeId, incarnation: Incarnation) {
        self.gone.insert(node, incarnation);
        self.leader_heard.remove(&node);
    }

    /// True when that run of the node is known to have ended.
    pub(crate) fn is_gone(&self, node: NodeId, incarnation: Incarnation) -> bool {
        incarnation != Incarnation(0) && self.gone.get(&node) == Some(&incarnation)
    }

    /// True when this cold member may serve: every other member is cold too, or has long been silent.
    pub(crate) fn cold_ok(&self) -> bool {
        let Some(config) = &self.config else { return false };
        config
            .in_sync
            .keys()
            .filter(|node| **node != self.node)
            .all(|node| config.is_cold(*node) || self.silence(*node) >= self.timing.cold_wait)
    }
}
