//! The primary's sessions: one per peer, opened by Hello, ended by the first doubt.

use proto::peer::message::{Message, NackReason, Seq, Uncertain};
use proto::peer::version::ProtocolVersion;
use proto::{Boot, ConfigVersion, DiskId, Incarnation, Micros, NodeId, SessionId, Timestamp};

use crate::action::{Action, Notice};
use crate::config::Member;
use crate::core::Core;
use crate::event::{LinkId, PayloadId};
use crate::lease::Lease;
use crate::primary::Primary;
use crate::resync::source::Source;
use crate::tracker::Tracker;
use crate::window::Window;

/// Wait before a refused Hello is repeated.
const HELLO_RETRY: Micros = Micros::from_millis(50);
/// The first protocol that asks a peer for blocks and tells it of extents.
const FETCH_PROTOCOL: ProtocolVersion = ProtocolVersion(2);
/// After this long in sync a peer's re-admission backoff starts anew.
const BACKOFF_FORGIVEN_AFTER: Micros = Micros::from_secs(60);

/// What an ack from a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Awaited {
    Write(u64),
    Flush(u64),
    /// A flush in the course of a resync.
    ResyncFlush,
    /// The flush between PreSync and Admit.
    PreSyncFlush,
    /// Resync data of a step.
    Chunk(u64),
    /// Digests of a step.
    Digest(u64),
    /// Blocks of the peer's copy.
    Fetch(u64),
    /// A step of a scrub: checksums, or the end of a repair.
    Scrub(u64),
}

/// A session with one peer.
#[derive(Clone, Debug, Hash)]
pub(crate) struct PeerSession {
    pub(crate) link: LinkId,
    pub(crate) id: SessionId,
    /// The peer has answered the Hello and nothing speaks against it.
    open: bool,
    next_seq: u64,
    /// Operations sent and not acknowledged, oldest first.
    pub(crate) pending: Window<Seq, (Awaited, Timestamp)>,
    pub(crate) lease: Lease,
    /// Newest stamp of the peer's clock.
    echo: Timestamp,
    /// The peer's run and power-on, from its HelloReply.
    pub(crate) identity: (Incarnation, Boot),
    /// The stream up to here is complete on every required copy.
    settled: Seq,
    /// The stream was here when writes up to this number had begun: once they have ended, it is settled.
    settling: (Seq, u64),
}

impl PeerSession {
    /// Takes the next place in the stream, to be acknowledged.
    pub(crate) fn await_ack(&mut self, awaited: Awaited, now: Timestamp) -> Seq {
        self.next_seq += 1;
        let seq = Seq(self.next_seq);
        self.pending.insert(seq, (awaited, now));
        seq
    }

    /// The newest place in the stream.
    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.next_seq)
    }
}

/// How a peer's copy stands to the in_sync set. `PreSync` is the protocol's own word.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Debug, Hash)]
pub(crate) enum Sync {
    /// In the committed set.
    Member {
        /// As the set has it.
        member: Member,
    },
    /// Outside; no resync runs.
    Waiting,
    /// Outside; being resynced.
    Resyncing(Box<Source>),
    /// Nothing is dirty; its acks are required. Not proposed yet.
    PreSync {
        /// The flush may be sent once nothing up to here is unacknowledged.
        barrier: Seq,
        /// The peer has entered PreSync.
        entered: bool,
        /// The flush was sent.
        flushing: bool,
    },
    /// Flushed; the Admit is to be, or was, proposed against `version`.
    Admitting {
        /// Version it is proposed against.
        version: ConfigVersion,
        /// It was proposed: it may commit until the version has moved.
        proposed: bool,
    },
}

impl Sync {
    /// In the committed set.
    pub(crate) fn is_member(&self) -> bool {
        matches!(self, Sync::Member { .. })
    }

    /// A write needs its ack: committed in_sync ∪ pending Admit (and PreSync, which precedes it).
    pub(crate) fn is_required(&self) -> bool {
        matches!(self, Sync::Member { .. } | Sync::PreSync { .. } | Sync::Admitting { .. })
    }

    /// A write that is not sent to it makes its blocks dirty.
    pub(crate) fn tracks_dirty(&self) -> bool {
        matches!(self, Sync::Waiting | Sync::Resyncing(_))
    }

    fn name(&self) -> &'static str {
        match self {
            Sync::Member { .. } => "in_sync",
            Sync::Waiting => "outdated",
            Sync::Resyncing(_) => "resyncing",
            Sync::PreSync { .. } | Sync::Admitting { .. } => "presync",
        }
    }
}

/// Whether what a copy lacks is on this node's disk, which must be so before the copy forgets what it is in doubt about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recorded {
    No,
    Writing,
    Yes,
}

/// Why a member cannot take part: it is dropped without waiting, if another one is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Defect {
    /// Its copy may hold less than it has acknowledged.
    Suspect,
    /// It has no disk in use, or another copy than the registered one.
    NoCopy,
}

/// A peer of the primary.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Peer {
    disk_id: DiskId,
    pub(crate) link: Option<LinkId>,
    pub(crate) session: Option<PeerSession>,
    pub(crate) sync: Sync,
    /// In this session: what the copy lacks.
    pub(crate) recorded: Recorded,
    /// The protocol that the link's handshake agreed on.
    protocol: ProtocolVersion,
    synced_at: Timestamp,
    last_heard: Timestamp,
    /// What it has said that speaks against it as a member.
    pub(crate) defect: Option<Defect>,
    retry_hello_at: Timestamp,
    pub(crate) resync_not_before: Timestamp,
    backoff: Micros,
}

impl Peer {
    /// A peer as the role begins: a member (after a handoff), or a copy of which nothing is known.
    pub(crate) fn new(core: &Core, member: Option<Member>, disk_id: DiskId) -> Self {
        Self {
            disk_id,
            link: None,
            session: None,
            sync: member.map_or(Sync::Waiting, |member| Sync::Member { member }),
            recorded: Recorded::No,
            protocol: ProtocolVersion(1),
            synced_at: core.now,
            last_heard: core.active,
            defect: None,
            retry_hello_at: core.now,
            resync_not_before: core.now,
            backoff: core.timing.readmit_backoff.0,
        }
    }

    /// The copy it stands for.
    pub(crate) fn disk_id(&self) -> DiskId {
        self.disk_id
    }

    /// The session is open.
    pub(crate) fn is_open(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.open)
    }

    /// Writes are sent to it as they are issued.
    pub(crate) fn takes_writes(&self) -> bool {
        self.is_open() && !matches!(self.sync, Sync::Waiting)
    }

    /// It understands requests for blocks.
    pub(crate) fn reads_for_us(&self) -> bool {
        self.protocol >= FETCH_PROTOCOL
    }

    /// It may come to answer requests for blocks: it has no link, or one of a protocol that has them.
    pub(crate) fn may_read_for_us(&self) -> bool {
        self.link.is_none() || self.reads_for_us()
    }

    /// The Admit has committed.
    pub(crate) fn become_member(&mut self, core: &Core, member: Member) {
        self.sync = Sync::Member { member };
        self.synced_at = core.now;
        self.defect = None;
    }

    /// The Shrink has committed: from here on the bitmap says what the copy lacks.
    pub(crate) fn leave_membership(&mut self, core: &Core) {
        self.sync = Sync::Waiting;
        let (first, longest) = core.timing.readmit_backoff;
        let forgiven = core.now.since(self.synced_at) >= BACKOFF_FORGIVEN_AFTER;
        self.backoff = if forgiven { first } else { Micros((self.backoff.0 * 2).clamp(first.0, longest.0)) };
        self.resync_not_before = core.now + self.backoff;
        self.defect = None;
    }

    /// How long nothing was heard of it, by the clock that stands while we do.
    pub(crate) fn silence(&self, active: Timestamp) -> Micros {
        active.since(self.last_heard)
    }

    /// State for people: its standing, blocks dirty, blocks resynced.
    pub(crate) fn describe(&self, tracker: Option<&Tracker>) -> (&'static str, u64, u64) {
        let state = if self.sync.is_member() && !self.is_open() { "in_sync, not connected" } else { self.sync.name() };
        let sent = match &self.sync {
            Sync::Resyncing(source) => source.sent_blocks,
            _ => 0,
        };
        (state, tracker.map_or(0, |tracker| tracker.dirty.count()), sent)
    }
}

impl Primary {
    /// A connection to a peer that this node dialled stands.
    pub(crate) fn on_link_up(&mut self, core: &mut Core, node: NodeId, link: LinkId, protocol: ProtocolVersion) {
        if !self.peers.contains_key(&node) {
            return core.act(Action::CloseLink { link, why: "the node is no replica of the volume" });
        }
        self.drop_session(core, node, "a newer connection stands");
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.link = Some(link);
            peer.protocol = protocol;
            peer.retry_hello_at = core.now;
        }
        self.say_hello_if_due(core, node);
    }

    pub(crate) fn on_link_down(&mut self, core: &mut Core, link: LinkId) {
        let node = self.peers.iter().find(|(_, peer)| peer.link == Some(link)).map(|(node, _)| *node);
        if let Some(node) = node {
            self.forget_session(core, node);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.link = None;
            }
        }
    }

    /// Opens a session where there is a link and none, and it is time. While the fate of an Admit is unknown, none is
    /// opened: what the peer lacks depends on it.
    pub(crate) fn say_hello_if_due(&mut self, core: &mut Core, node: NodeId) {
        let id = self.session_number();
        let begun = self.last_number();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(link) = peer.link else { return };
        let unresolved = matches!(peer.sync, Sync::Admitting { .. });
        if peer.session.is_some() || unresolved || core.now < peer.retry_hello_at {
            return;
        }
        peer.session = Some(PeerSession {
            link,
            id,
            open: false,
            // The first number names no operation: once it is settled, so is what earlier sessions have left.
            next_seq: 1,
            pending: Window::default(),
            lease: Lease::default(),
            echo: Timestamp(0),
            identity: (Incarnation(0), Boot(0)),
            settled: Seq(0),
            settling: (Seq(1), begun),
        });
        peer.recorded = Recorded::No;
        peer.retry_hello_at = core.now + core.timing.shrink_after;
        let hello = Message::Hello { incarnation: core.incarnation, disk_id: peer.disk_id, stamp: core.now };
        core.send(link, id, hello, None);
    }

    /// A message from a peer, over a link that this node dialled.
    pub(crate) fn on_frame(
        &mut self,
        core: &mut Core,
        node: NodeId,
        (link, id): (LinkId, SessionId),
        message: Message,
        payload: Option<PayloadId>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return core.release(payload) };
        let Some(session) = peer.session.as_mut() else { return core.release(payload) };
        if session.link != link || session.id != id {
            return core.release(payload);
        }
        if !matches!(message, Message::Nack { .. }) {
            peer.last_heard = core.active;
        }
        match message {
            Message::HelloReply { incarnation, boot, disk_id, last_in_sync, suspect, stamp, uncertain }
                if !session.open =>
            {
                session.identity = (incarnation, boot);
                session.echo = stamp;
                self.on_hello_reply(core, node, disk_id, (boot, last_in_sync, suspect), &uncertain);
            }
            Message::Nack { reason } => self.on_nack(core, node, reason),
            _ if !session.open => {}
            Message::BeaconAck { number, granted, stamp } => {
                session.echo = stamp;
                session.lease.on_answered(number);
                if granted {
                    session.lease.on_granted(number, core.timing.lease);
                }
                // One that came before the session learns only now which beacon it needs.
                self.complete_ready_reads(core);
                self.send_wanted_beacons(core);
            }
            Message::Ack { seq } => self.on_ack(core, node, seq),
            Message::Digest { seq, .. } => {
                if let Some((Awaited::Digest(chunk), _)) = session.pending.remove(&seq) {
                    return self.on_chunk_digests(core, node, chunk, payload);
                }
            }
            Message::ReadReply { seq, .. } => {
                if let Some((Awaited::Fetch(fetch), _)) = session.pending.remove(&seq) {
                    return self.on_fetched(core, fetch, payload);
                }
            }
            Message::ReadFailed { seq, bad } => match session.pending.remove(&seq) {
                Some((Awaited::Fetch(fetch), _)) => self.on_bad_at_peer(core, fetch),
                Some((Awaited::Scrub(step), _)) => self.on_scrub_failed(core, node, step, bad),
                _ => {}
            },
            Message::Sums { seq, .. } => {
                if let Some((Awaited::Scrub(step), _)) = session.pending.remove(&seq) {
                    return self.on_scrub_sums(core, node, step, payload);
                }
            }
            Message::PreSyncAck => {
                if let Sync::PreSync { entered, .. } = &mut peer.sync {
                    *entered = true;
                }
            }
            Message::HandoffReady => self.on_handoff_ready(core, node),
            _ => {}
        }
        core.release(payload);
    }

    fn on_hello_reply(
        &mut self,
        core: &mut Core,
        node: NodeId,
        disk_id: DiskId,
        (boot, last_in_sync, suspect): (Boot, ConfigVersion, bool),
        uncertain: &Uncertain,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if disk_id != peer.disk_id {
            return self.refuse_peer(core, node, "the peer holds another copy than the registered one");
        }
        match &peer.sync {
            // A member that came back cold may have lost what it acknowledged: it is never counted again as it is.
            Sync::Member { member } if member.boot != boot || suspect => {
                peer.defect = Some(Defect::Suspect);
                self.refuse_peer(core, node, "the peer lost power without a clean stop");
            }
            Sync::Member { .. } => {
                self.open(core, node);
                self.resend_writes(core, node);
                self.resend_flushes(core, node);
            }
            _ => {
                core.judge_rejoin(node, last_in_sync, uncertain);
                self.open(core, node);
            }
        }
    }

    fn open(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // A member that had no disk in use has it back as it was.
        peer.defect = None;
        if let Some(session) = peer.session.as_mut() {
            session.open = true;
        }
        core.act(Action::Notify(Notice::Peer { node, state: "connected" }));
        self.send_beacon(core, node);
    }

    fn refuse_peer(&mut self, core: &mut Core, node: NodeId, why: &'static str) {
        self.drop_session(core, node, why);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.retry_hello_at = core.now + core.timing.shrink_after;
        }
    }

    fn on_nack(&mut self, core: &mut Core, node: NodeId, reason: NackReason) {
        self.forget_session(core, node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match reason {
            NackReason::StaleEpoch | NackReason::NotYet => peer.retry_hello_at = core.now + HELLO_RETRY,
            NackReason::DiskFailed | NackReason::WrongDisk => {
                peer.defect = Some(Defect::NoCopy);
                peer.retry_hello_at = core.now + core.timing.lease;
            }
        }
    }

    fn on_ack(&mut self, core: &mut Core, node: NodeId, seq: Seq) {
        let Some(session) = self.peers.get_mut(&node).and_then(|peer| peer.session.as_mut()) else { return };
        match session.pending.remove(&seq).map(|(awaited, _)| awaited) {
            Some(Awaited::Write(number)) => self.on_write_acked(core, node, number),
            Some(Awaited::Flush(number)) => self.on_flush_acked(core, node, number),
            Some(Awaited::Chunk(number)) => self.on_chunk_acked(core, node, number),
            Some(Awaited::ResyncFlush | Awaited::PreSyncFlush) => self.on_resync_flushed(core, node),
            Some(Awaited::Scrub(number)) => self.on_scrub_repaired(core, number),
            Some(Awaited::Digest(_) | Awaited::Fetch(_)) | None => {}
        }
    }

    /// Sends a beacon on an open session.
    pub(crate) fn send_beacon(&mut self, core: &mut Core, node: NodeId) {
        let (begun, oldest) = (self.last_number(), self.writes.keys().next().copied());
        let Some(session) = self.peers.get_mut(&node).and_then(|peer| peer.session.as_mut()) else { return };
        if session.open {
            if oldest.is_none_or(|oldest| oldest > session.settling.1) {
                session.settled = session.settling.0;
                session.settling = (session.last_seq(), begun);
            }
            let number = session.lease.on_beacon_sent(core.now);
            let beacon = Message::Beacon { number, echo: session.echo, settled: session.settled };
            core.send(session.link, session.id, beacon, None);
        }
    }

    /// Ends the session and closes its link.
    pub(crate) fn drop_session(&mut self, core: &mut Core, node: NodeId, why: &'static str) {
        let link = self.peers.get_mut(&node).and_then(|peer| peer.link.take());
        self.forget_session(core, node);
        if let Some(link) = link {
            core.act(Action::CloseLink { link, why });
        }
    }

    /// Ends the session; what the peer has not acknowledged is dirty for it, unless it is required, in which case it is
    /// sent again.
    pub(crate) fn forget_session(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(session) = peer.session.take() else { return };
        peer.recorded = Recorded::No;
        if session.open {
            core.act(Action::Notify(Notice::Peer { node, state: "disconnected" }));
        }
        let numbers: Vec<u64> = self.writes.iter().filter(|(_, w)| w.sent.contains(&node)).map(|(n, _)| *n).collect();
        for number in &numbers {
            if let Some(write) = self.writes.get_mut(number) {
                write.sent.retain(|other| *other != node);
            }
        }
        let unresolved = matches!(peer.sync, Sync::Admitting { proposed: true, .. });
        if !peer.sync.is_member() && !unresolved {
            self.end_resync(core, node);
            self.mark_unacked_dirty(core, node);
        }
        self.unask(node);
        self.abort_scrub_step(core);
        numbers.into_iter().for_each(|number| self.complete_write_if_acked(core, number));
        if !unresolved {
            self.recheck_all(core);
        }
    }

    /// Every beacon interval: beacons, silences, overdue acks, due Hellos.
    pub(crate) fn keep_links(&mut self, core: &mut Core) {
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get(&node) else { continue };
            let timing = core.timing;
            let overdue = peer.session.as_ref().is_some_and(|session| {
                let oldest = session.pending.values().next();
                oldest.is_some_and(|(_, at)| core.active.since(*at) >= timing.io_timeout)
            });
            let unanswered = peer.session.is_some() && !peer.is_open() && core.now >= peer.retry_hello_at;
            if overdue {
                self.drop_session(core, node, "the peer has not acknowledged an operation for too long");
            } else if peer.is_open() && peer.silence(core.active) >= timing.shrink_after {
                self.drop_session(core, node, "the peer is silent");
            } else if unanswered {
                self.drop_session(core, node, "the peer does not answer the hello");
            } else {
                self.send_beacon(core, node);
            }
            self.say_hello_if_due(core, node);
        }
    }
}
