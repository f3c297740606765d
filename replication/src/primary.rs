//! The primary: the client's operations, the peers, and who must acknowledge.
//!
//! This file holds the state and what follows from a new configuration; the parts are in `write/`, `read.rs`, `link.rs`,
//! `resync/source.rs`, `handoff.rs` and `proposal.rs`.

use std::collections::{BTreeMap, VecDeque};

use proto::peer::message::Message;
use proto::{Epoch, NodeId, Timestamp};

use crate::action::{Action, Notice, Refusal};
use crate::core::{Core, Disk};
use crate::event::{OpId, PayloadId, Request};
use crate::fetch::Fetch;
use crate::handoff::Handoff;
use crate::link::{Defect, Peer, Recorded, Sync};
use crate::proposal::Proposal;
use crate::read::Read;
use crate::scrub::Scrub;
use crate::tracker::Beginning;
use crate::window::Window;
use crate::write::durability::Durability;
use crate::write::flush::Flush;
use crate::write::overlap::Overlap;
use crate::write::pipeline::Write;

/// Operations of clients that the replica holds, at most; the shell admits fewer.
pub const CLIENT_OPERATIONS_MAX: usize = 16_384;

/// Who holds or awaits a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Write(u64),
    Read(u64),
    Chunk(NodeId, u64),
    Scrub(u64),
}

/// How far the primary is with serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Service {
    /// I/O of a former role or session is being drained.
    Starting,
    /// Client operations run.
    Serving,
    /// New operations are queued: a switchover or a stop drains the rest.
    Suspended,
}

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Primary {
    pub(crate) epoch: Epoch,
    pub(crate) service: Service,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) writes: Window<u64, Write>,
    pub(crate) reads: Window<u64, Read>,
    pub(crate) flushes: Window<u64, Flush>,
    pub(crate) durability: Durability,
    pub(crate) overlap: Overlap<Holder>,
    /// A scrub under way.
    pub(crate) scrub: Option<Scrub>,
    /// Blocks asked of peers.
    pub(crate) fetches: BTreeMap<u64, Fetch>,
    /// Operations that wait for service.
    pub(crate) queue: VecDeque<(OpId, Request)>,
    next_number: u64,
    next_session: u64,
    pub(crate) proposal: Option<Proposal>,
    pub(crate) handoff: Option<Handoff>,
    /// The last time a client asked for something.
    pub(crate) last_client: Timestamp,
    /// When beacons, silences and overdue acks are looked at next.
    pub(crate) next_housekeeping: Timestamp,
}

impl Primary {
    /// Enters the role under the configuration's epoch, which this very run has won.
    pub(crate) fn enter(core: &mut Core) -> Self {
        core.next_generation();
        core.forget_recorded();
        core.doubt_others();
        let mut primary = Self {
            epoch: core.epoch(),
            service: Service::Starting,
            peers: BTreeMap::new(),
            writes: Window::default(),
            reads: Window::default(),
            flushes: Window::default(),
            durability: Durability::default(),
            overlap: Overlap::default(),
            scrub: None,
            fetches: BTreeMap::new(),
            queue: VecDeque::new(),
            next_number: 0,
            next_session: core.generation << 32,
            proposal: None,
            handoff: None,
            last_client: Timestamp(0),
            next_housekeeping: core.now,
        };
        primary.update_peers(core);
        primary.start_when_drained(core);
        primary
    }

    /// A number for a write, read, flush or resync step; never reused within the role.
    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The last number given.
    pub(crate) fn last_number(&self) -> u64 {
        self.next_number
    }

    /// A session number that no other session of this run has.
    pub(crate) fn session_number(&mut self) -> proto::SessionId {
        self.next_session += 1;
        proto::SessionId(self.next_session)
    }

    /// Begins to serve once nothing of a former role is in flight (I10).
    pub(crate) fn start_when_drained(&mut self, core: &mut Core) {
        if self.service != Service::Starting || !core.is_drained() || core.disk == Disk::Absent {
            return;
        }
        core.record_in_sync();
        self.service = Service::Serving;
        self.serve_queue(core);
    }

    /// The other nodes whose acks a write needs: committed members, a copy in PreSync, and an Admit of unknown fate.
    pub(crate) fn required(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.iter().filter(|(_, peer)| peer.sync.is_required()).map(|(node, _)| *node)
    }

    /// True when a write or flush that is not on the local disk may still complete: this copy has left in_sync (I1).
    pub(crate) fn local_is_optional(core: &Core) -> bool {
        !core.is_member()
    }

    /// A new configuration of the same epoch.
    pub(crate) fn on_config(&mut self, core: &mut Core) {
        self.proposal = None;
        core.follow_members(Beginning::Clean);
        self.update_peers(core);
        core.record_in_sync();
        self.handoff_on_config(core);
        self.recheck_all(core);
        // A primary without its disk may serve through a peer from the moment it has left the set.
        self.serve_queue(core);
    }

    /// Brings the peers in line with the configuration.
    fn update_peers(&mut self, core: &mut Core) {
        let Some(config) = core.config.clone() else { return };
        let gone: Vec<NodeId> = self.peers.keys().filter(|node| !config.replicas.contains_key(node)).copied().collect();
        for node in gone {
            self.drop_session(core, node, "the replica was removed");
            self.peers.remove(&node);
            core.act(Action::Dial { peer: node, on: false });
        }
        let me = core.node;
        for (node, registration) in config.replicas.iter().filter(|(node, _)| **node != me) {
            let member = config.in_sync.get(node);
            if self.peers.get(node).is_some_and(|peer| peer.disk_id() != registration.disk_id) {
                self.drop_session(core, *node, "the replica was replaced");
                self.peers.remove(node);
            }
            if !self.peers.contains_key(node) {
                let peer = Peer::new(core, member.copied(), registration.disk_id);
                self.peers.insert(*node, peer);
                core.act(Action::Dial { peer: *node, on: true });
                continue;
            }
            let was = self.peers.get(node).map(|peer| peer.sync.is_member());
            match (was, member) {
                (Some(false), Some(member)) => self.on_admitted(core, *node, *member),
                (Some(true), None) => self.on_shrunk(core, *node),
                _ => self.on_version_moved(core, *node),
            }
        }
    }

    /// A peer's copy is in sync by the committed configuration.
    fn on_admitted(&mut self, core: &mut Core, node: NodeId, member: crate::config::Member) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.become_member(core, member);
        core.act(Action::Notify(Notice::Peer { node, state: "in_sync" }));
    }

    /// A peer was dropped: what it has not acknowledged is dirty from here on.
    fn on_shrunk(&mut self, core: &mut Core, node: NodeId) {
        self.drop_session(core, node, "the peer was dropped from the in-sync set");
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.leave_membership(core);
        }
        self.mark_unacked_dirty(core, node);
        core.act(Action::Notify(Notice::Peer { node, state: "outdated" }));
    }

    /// The version moved and the peer's membership did not: an Admit proposed before is dead.
    fn on_version_moved(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Sync::Admitting { version, .. } = peer.sync else { return };
        if core.version() <= version {
            return;
        }
        if peer.is_open() {
            peer.sync = Sync::Admitting { version: core.version(), proposed: false };
        } else {
            peer.sync = Sync::Waiting;
            self.mark_unacked_dirty(core, node);
        }
    }

    /// Everything issued that `node` has not acknowledged becomes dirty for it, and what it has not flushed.
    pub(crate) fn mark_unacked_dirty(&mut self, core: &mut Core, node: NodeId) {
        let Some(tracker) = core.trackers.get_mut(node) else { return };
        for write in self.writes.values().filter(|write| write.is_issued() && !write.acked.contains(&node)) {
            write.ranges.iter().for_each(|range| tracker.doubt(*range));
        }
        tracker.absorb_unflushed();
    }

    /// Looks at everything that a change of the required set or of a lease may complete.
    pub(crate) fn recheck_all(&mut self, core: &mut Core) {
        let writes: Vec<u64> = self.writes.keys().copied().collect();
        writes.into_iter().for_each(|number| self.complete_write_if_acked(core, number));
        let flushes: Vec<u64> = self.flushes.keys().copied().collect();
        flushes.into_iter().for_each(|number| self.complete_flush_if_acked(core, number));
        self.complete_ready_reads(core);
    }

    /// A client's operation.
    pub(crate) fn on_client(&mut self, core: &mut Core, op: OpId, request: Request) {
        self.last_client = core.now;
        let open = self.queue.len() + self.writes.len() + self.reads.len() + self.flushes.len();
        if open >= CLIENT_OPERATIONS_MAX {
            refuse(core, op, &request, Refusal::TooMany);
        } else if self.is_dead(core) {
            refuse(core, op, &request, Refusal::Io);
        } else if !self.can_serve(core) {
            self.queue.push_back((op, request));
        } else {
            self.start_client(core, op, request);
        }
    }

    /// True when an operation may be started: on the local copy, or on a peer's when the local one has left the set.
    pub(crate) fn can_serve(&self, core: &Core) -> bool {
        let able = |peer: &Peer| peer.sync.is_member() && peer.may_read_for_us();
        let through_peer = || !core.is_member() && self.peers.values().any(able);
        self.service == Service::Serving && (core.serves_locally() || (through_peer() && !self.is_dead(core)))
    }

    /// True when this node has no copy in sync and its peers' software cannot be asked for blocks.
    pub(crate) fn must_hand_over(&self, core: &Core) -> bool {
        let detached = matches!(core.disk, Disk::Detached { .. }) && !core.is_member();
        detached && !self.can_serve(core)
    }

    /// True when the only copy in sync is the one whose disk is lost.
    pub(crate) fn is_last_without_disk(core: &Core) -> bool {
        matches!(core.disk, Disk::Detached { .. }) && core.is_last_member()
    }

    /// True when every copy in sync is known to have lost its disk: nothing can be served until one is back.
    pub(crate) fn is_dead(&self, core: &Core) -> bool {
        let without = |node: &NodeId| match self.peers.get(node) {
            Some(peer) => peer.defect == Some(Defect::NoCopy) && !peer.is_open(),
            None => *node == core.node && matches!(core.disk, Disk::Detached { .. }),
        };
        !core.serves_locally() && core.config.as_ref().is_some_and(|config| config.in_sync.keys().all(without))
    }

    /// Nobody is left to wait for anything once no copy in sync has a disk. Called after every event.
    pub(crate) fn refuse_if_dead(&mut self, core: &mut Core) {
        let idle = self.queue.is_empty() && self.writes.is_empty() && self.reads.is_empty() && self.flushes.is_empty();
        if !idle && self.is_dead(core) {
            self.refuse_all(core, Refusal::Io);
        }
    }

    /// True when another member can go on without this copy: its session is open.
    pub(crate) fn has_live_member(&self) -> bool {
        self.peers.values().any(|peer| peer.sync.is_member() && peer.is_open())
    }

    fn start_client(&mut self, core: &mut Core, op: OpId, request: Request) {
        match request {
            Request::Read { range } => self.on_client_read(core, op, range),
            Request::Flush => self.on_client_flush(core, op),
            Request::Confirm => self.on_client_confirm(core, op),
            write => self.on_client_write(core, op, write),
        }
    }

    /// Starts what was queued, in order.
    pub(crate) fn serve_queue(&mut self, core: &mut Core) {
        if !self.can_serve(core) {
            return;
        }
        while let Some((op, request)) = self.queue.pop_front() {
            self.start_client(core, op, request);
        }
    }

    /// The local disk is lost: nothing completes until this copy has left in_sync; then a peer takes over the service.
    pub(crate) fn on_disk_lost(&mut self, core: &mut Core) {
        self.abandon_chunks(core);
        self.abort_scrub_step(core);
        self.drop_orphans(core);
        self.requeue_unstarted(core);
        for write in self.writes.values_mut() {
            write.on_disk_lost();
        }
        for flush in self.flushes.values_mut() {
            flush.on_disk_lost();
        }
        self.refuse_if_dead(core);
        self.recheck_all(core);
    }

    /// What a copy lacks is on disk.
    pub(crate) fn on_recorded(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.recorded == Recorded::Writing) {
            peer.recorded = Recorded::Yes;
        }
    }

    /// Leaves the role: every open operation is refused and every session ended.
    pub(crate) fn leave(mut self, core: &mut Core, why: Refusal) {
        self.refuse_all(core, why);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.drop_session(core, node, "this node is not primary any more");
            core.act(Action::Dial { peer: node, on: false });
        }
        core.next_generation();
    }

    /// Refuses everything open. Local I/O in flight only has to end.
    fn refuse_all(&mut self, core: &mut Core, why: Refusal) {
        for (op, request) in std::mem::take(&mut self.queue) {
            refuse(core, op, &request, why);
        }
        self.abandon_chunks(core);
        self.abort_scrub_step(core);
        // A copy outside the set may not have what its client was told of.
        let outside: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| !peer.sync.is_member()).map(|(node, _)| *node).collect();
        outside.into_iter().for_each(|node| self.mark_unacked_dirty(core, node));
        let askers: Vec<u64> = self.fetches.keys().copied().collect();
        askers.into_iter().for_each(|number| self.drop_fetch(core, number));
        for write in self.writes.drain().map(|(_, write)| write) {
            if !write.completed {
                core.act(Action::Refuse { op: write.op, why });
            }
            core.release(write.payload);
        }
        for read in self.reads.drain().map(|(_, read)| read) {
            core.release(read.loaded());
            core.act(Action::Refuse { op: read.op, why });
        }
        for flush in self.flushes.drain().map(|(_, flush)| flush) {
            flush.op.into_iter().for_each(|op| core.act(Action::Refuse { op, why }));
        }
        self.overlap = Overlap::default();
        core.next_generation();
    }

    /// True when no operation of a client is in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.writes.values().all(|write| write.completed) && self.reads.is_empty() && self.flushes.is_empty()
    }

    /// Tells every peer that this node serves no more (the last words of an orderly stop).
    pub(crate) fn release_leases(&mut self, core: &mut Core) {
        for peer in self.peers.values().filter(|peer| peer.is_open()) {
            let Some(session) = &peer.session else { continue };
            let last_beacon = session.lease.last_number();
            core.send(session.link, session.id, Message::LeaseRelease { last_beacon }, None);
        }
    }

    /// What clients wait for, in words, and since when.
    pub(crate) fn waiting(&self, core: &Core) -> Option<(String, Timestamp)> {
        if self.service == Service::Starting {
            return Some(("operations of a former role are being drained".to_owned(), core.started));
        }
        if self.is_dead(core) {
            return Some(("no copy in sync has its disk; attach one again".to_owned(), core.started));
        }
        let silent = self.peers.iter().find(|(_, peer)| peer.sync.is_member() && !peer.is_open());
        silent.map(|(node, peer)| {
            let since = core.now - peer.silence(core.active);
            (
                format!("node {node} is in sync and not connected; it is dropped once a majority of the voters agrees"),
                since,
            )
        })
    }

    /// Asserts what must hold after every event.
    pub(crate) fn check_invariants(&self, core: &Core) {
        let Some(config) = &core.config else { return };
        assert_eq!(config.primary, core.node, "the role follows the configuration (I2)");
        assert_eq!((config.epoch, config.primary_incarnation), (self.epoch, core.incarnation));
        for node in config.in_sync.keys().filter(|node| **node != core.node) {
            let required = self.peers.get(node).is_some_and(|peer| peer.sync.is_required());
            assert!(required, "required contains the committed in_sync set (I3)");
        }
        for (node, peer) in &self.peers {
            let pending = peer.session.as_ref().map_or(0, |session| session.pending.len());
            assert!(pending <= CLIENT_OPERATIONS_MAX * 2, "acks awaited from {node} are bounded");
            let tracked = core.trackers.get(*node).is_some();
            assert!(!peer.sync.is_member() || !tracked, "a member lacks nothing");
            assert!(peer.sync.is_member() || tracked || !core.serves_locally(), "what a copy outside lacks is tracked");
        }
    }
}

/// Refuses an operation that has not begun.
pub(crate) fn refuse(core: &mut Core, op: OpId, request: &Request, why: Refusal) {
    let has_payload = match request {
        Request::Write { kind, .. } => *kind == proto::peer::message::WriteKind::Data,
        Request::WriteBatch { .. } => true,
        Request::Read { .. } | Request::Flush | Request::Confirm => false,
    };
    core.release(has_payload.then_some(PayloadId::Client(op)));
    core.act(Action::Refuse { op, why });
}
