//! One volume's copy on one node: routes events to the parts below.

mod control;

use proto::peer::message::{Envelope, Message, NackReason, Seq};
use proto::peer::version::ProtocolVersion;
use proto::{Boot, ConfigVersion, Incarnation, Micros, NodeId, Timestamp, VolumeId};

use crate::action::{Action, Refusal};
use crate::activity_log::User;
use crate::config::{Phase, VolumeConfig};
use crate::core::{Core, Disk, Io, Purpose};
use crate::event::{Attachment, Event, IoId, IoResult, LinkId, OpId, PayloadId, Request};
use crate::primary::{Primary, Service, refuse};
use crate::resync::target::discard_result;
use crate::secondary::Secondary;
use crate::status::Status;
use crate::timing::Timing;
use crate::tracker::Beginning;

use control::Stop;

/// The present role.
#[derive(Clone, Debug, Hash)]
enum Role {
    /// Primary by the configuration, in this very run.
    Primary(Box<Primary>),
    /// Everything else that still takes part.
    Secondary(Box<Secondary>),
    /// Stopped in order, or the volume is gone.
    Stopped,
}

/// One volume's copy on one node.
#[derive(Clone, Debug, Hash)]
pub struct Replica {
    core: Core,
    role: Role,
    stop: Stop,
    /// A disk that came back to a primary that serves through a peer: it is used once the peer has taken over.
    returned: Option<Box<Attachment>>,
    state: &'static str,
}

impl Replica {
    /// A replica that knows nothing yet: the shell follows up with `Config` and `DiskAttached`.
    pub fn new(
        volume: VolumeId,
        node: NodeId,
        incarnation: Incarnation,
        boot: Boot,
        timing: Timing,
        now: Timestamp,
    ) -> Self {
        assert!(timing.lease < timing.grace, "a lease must end before the grace of the node that granted it");
        let mut core = Core::new(volume, node, incarnation, boot, timing, now);
        let role = Role::Secondary(Box::new(Secondary::enter(&mut core)));
        Self { core, role, stop: Stop::No, returned: None, state: "unknown" }
    }

    /// Takes one fact and appends the orders that follow from it.
    pub fn handle(&mut self, now: Timestamp, event: Event, actions: &mut Vec<Action>) {
        self.core.advance(now);
        std::mem::swap(&mut self.core.actions, actions);
        self.on_event(event);
        self.progress();
        self.note_state();
        if self.core.timing.check_invariants {
            self.check_invariants();
        }
        std::mem::swap(&mut self.core.actions, actions);
    }

    /// When a `Tick` is due at the latest.
    pub fn next_deadline(&self) -> Timestamp {
        match &self.role {
            Role::Primary(primary) => {
                let now = self.core.now;
                primary.next_housekeeping.min(primary.resync_deadline(now)).min(primary.scrub_deadline(now))
            }
            Role::Secondary(secondary) => {
                let coarse = self.core.now + self.core.timing.beacon_interval;
                let stopping = self.stop != Stop::No;
                let due = secondary.take_over_at(&self.core).filter(|_| !stopping).unwrap_or(Timestamp::NEVER);
                due.max(self.core.now + Micros(1)).min(coarse)
            }
            Role::Stopped => Timestamp::NEVER,
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Tick => {}
            Event::Config(config) => self.on_config(config),
            Event::VolumeRemoved => self.on_volume_removed(),
            Event::DiskAttached(attachment) => self.on_disk_attached(attachment),
            Event::DiskUnavailable if self.core.disk == Disk::Absent => self.on_disk_lost(false),
            Event::DiskUnavailable => {}
            Event::LeaderHears { node, alive } => self.core.leader_hears(node, alive),
            Event::Goodbye { node, incarnation } => self.core.goodbye(node, incarnation),
            Event::LinkUp { peer, link, outbound, protocol } => self.on_link_up(peer, link, outbound, protocol),
            Event::LinkDown { link } => self.on_link_down(link),
            Event::Frame { link, envelope, message, payload } => self.on_frame(link, envelope, message, payload),
            Event::Client { op, request } => self.on_client(op, request),
            Event::LocalDone { io, result } => self.on_io_done(io, result),
            Event::EdgesMerged { io, result } => self.on_io_done(io, result),
            Event::ReplicaStatePersisted { io, result } => self.on_io_done(io, result),
            Event::ActivityLogPersisted { io, result } => self.on_io_done(io, result),
            Event::DigestsCompared { io, differing } => match &mut self.role {
                Role::Primary(primary) => primary.on_digests_compared(&mut self.core, io, differing),
                Role::Secondary(_) | Role::Stopped => {}
            },
            Event::Corrupt { io, bad } => self.on_corrupt(io, bad),
            Event::SumsCompared { io, differing } => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.on_sums_compared(&mut self.core, io, differing);
                }
            }
            Event::FencePersisted { epoch, version } => {
                self.core.fence = self.core.fence.max((epoch, version));
                if let Role::Secondary(secondary) = &mut self.role {
                    secondary.on_fence_persisted(&mut self.core, (epoch, version));
                }
            }
            Event::Control(control) => self.on_control(control),
        }
    }

    /// What follows from time and from any event.
    fn progress(&mut self) {
        // The last cooling has as much to write as there is, and nobody waits for it but the stop.
        let hung = |io: &Io| self.core.active.since(io.started) >= self.core.timing.io_timeout;
        let oldest = self.core.io.values().find(|io| io.purpose != Purpose::StopCool);
        if oldest.is_some_and(hung) && matches!(self.core.disk, Disk::Attached(_)) {
            self.on_disk_lost(true);
        }
        let core = &mut self.core;
        match &mut self.role {
            Role::Primary(primary) => {
                core.cool_idle(Seq(u64::MAX));
                primary.start_when_drained(core);
                if core.now >= primary.next_housekeeping {
                    primary.next_housekeeping = core.now + core.timing.beacon_interval;
                    primary.keep_links(core);
                }
                primary.refuse_if_dead(core);
                primary.progress_fetches(core);
                if self.returned.is_some() || primary.must_hand_over(core) {
                    primary.hand_over_for_disk(core);
                }
                primary.progress_resyncs(core);
                primary.progress_scrub(core);
                primary.progress_handoff(core);
                primary.progress_proposal(core);
                if primary.stop_is_complete() {
                    primary.release_leases(core);
                    self.finish_stop();
                }
            }
            Role::Secondary(secondary) if self.stop == Stop::No => {
                if let Some(settled) = secondary.settled(core) {
                    core.cool_idle(settled);
                }
                secondary.answer_hello(core);
                secondary.answer_handoff(core);
                secondary.progress_take_over(core);
                secondary.progress_resignation(core);
            }
            Role::Secondary(_) => self.progress_stop(),
            Role::Stopped => {}
        }
    }

    fn on_config(&mut self, config: Box<VolumeConfig>) {
        let before = (self.core.epoch(), self.core.is_member());
        if config.version < self.core.version() {
            return;
        }
        let new_epoch = config.epoch != before.0;
        if new_epoch {
            self.core.forget_recorded();
        }
        self.core.config = Some(config);
        if new_epoch && !self.core.is_member() {
            // What was in flight when the epoch ended may be here and nowhere else.
            self.core.log.doubt_all();
        }
        let core = &mut self.core;
        let Some(config) = &core.config else { return };
        let mine = config.phase == Phase::Active
            && (config.primary, config.primary_incarnation) == (core.node, core.incarnation)
            && config.epoch > core.given_up
            && self.stop == Stop::No;
        let successor = config.primary;
        match (&mut self.role, mine) {
            (Role::Stopped, _) => {}
            (Role::Primary(primary), true) if primary.epoch == core.epoch() => primary.on_config(core),
            (Role::Secondary(secondary), false) => secondary.on_config(core, before),
            (_, mine) => {
                let old = std::mem::replace(&mut self.role, Role::Stopped);
                match old {
                    Role::Primary(primary) => {
                        // A stop that was under way goes on in the new role.
                        if primary.is_stopping() {
                            self.stop = Stop::Flushing(None);
                        }
                        primary.leave(core, Refusal::NotPrimary(successor));
                    }
                    Role::Secondary(mut secondary) => secondary.close_session(core, "this node has become primary"),
                    Role::Stopped => {}
                }
                self.role = match mine {
                    true => Role::Primary(Box::new(Primary::enter(core))),
                    false => Role::Secondary(Box::new(Secondary::enter(core))),
                };
                if let (Role::Secondary(_), Some(attachment)) = (&self.role, self.returned.take()) {
                    self.on_disk_attached(attachment);
                }
            }
        }
        if matches!(self.role, Role::Secondary(_)) {
            self.core.follow_members(Beginning::Hot);
        }
        // The peer that would have taken over has left the set instead: this copy is the last one after all.
        let alone = matches!(&self.role, Role::Primary(_)) && Primary::is_last_without_disk(&self.core);
        if let Some(attachment) = self.returned.take_if(|_| alone) {
            self.on_disk_attached(attachment);
        }
    }

    fn on_volume_removed(&mut self) {
        match std::mem::replace(&mut self.role, Role::Stopped) {
            Role::Primary(primary) => primary.leave(&mut self.core, Refusal::NotPrimary(NodeId::NONE)),
            Role::Secondary(mut secondary) => secondary.close_session(&mut self.core, "the volume was deleted"),
            Role::Stopped => {}
        }
        self.core.act(Action::Stopped);
    }

    fn on_disk_attached(&mut self, attachment: Box<Attachment>) {
        let report = attachment.report;
        self.core.fence = self.core.fence.max(report.fence);
        if let (Role::Primary(_), Disk::Detached { .. }) = (&self.role, self.core.disk) {
            if !Primary::is_last_without_disk(&self.core) {
                // What was in flight is lost to this copy: it comes back as a resync target, under another primary.
                self.returned = Some(attachment);
                return;
            }
            self.give_up_role();
        }
        self.core.disk = Disk::Attached(report);
        self.core.recall_scrubs(&attachment.scrubs);
        self.core.attach_log(attachment.hot, attachment.bitmaps);
        self.core.forget_recorded();
        // A disk that comes back to a member after a failure may lack what was acknowledged meanwhile; a member that was
        // never dropped has simply been opened.
        if !report.suspect {
            self.core.record_in_sync();
        }
        if let Role::Primary(primary) = &mut self.role {
            self.core.doubt_others();
            primary.serve_queue(&mut self.core);
        }
    }

    /// The last copy's disk was lost and is back: it serves again under a new epoch, which records the possible loss.
    fn give_up_role(&mut self) {
        self.core.given_up = self.core.epoch();
        if let Role::Primary(primary) = std::mem::replace(&mut self.role, Role::Stopped) {
            primary.leave(&mut self.core, Refusal::Io);
        }
        self.role = Role::Secondary(Box::new(Secondary::enter(&mut self.core)));
    }

    fn on_link_up(&mut self, peer: NodeId, link: LinkId, outbound: bool, protocol: ProtocolVersion) {
        self.core.links.insert(link, (peer, outbound));
        match &mut self.role {
            Role::Primary(primary) if outbound => primary.on_link_up(&mut self.core, peer, link, protocol),
            Role::Primary(_) | Role::Secondary(_) if !outbound => {}
            _ => self.core.act(Action::CloseLink { link, why: "this node is not primary" }),
        }
    }

    fn on_link_down(&mut self, link: LinkId) {
        self.core.links.remove(&link);
        match &mut self.role {
            Role::Primary(primary) => primary.on_link_down(&mut self.core, link),
            Role::Secondary(secondary) => secondary.on_link_down(&mut self.core, link),
            Role::Stopped => {}
        }
    }

    fn on_frame(&mut self, link: LinkId, envelope: Envelope, message: Message, payload: Option<PayloadId>) {
        let Some((peer, outbound)) = self.core.links.get(&link).copied() else { return self.core.release(payload) };
        let core = &mut self.core;
        match &mut self.role {
            Role::Primary(primary) if outbound => {
                core.heard(peer);
                primary.on_frame(core, peer, (link, envelope.session), message, payload);
            }
            Role::Secondary(secondary) if !outbound && self.stop == Stop::No => {
                secondary.on_frame(core, peer, link, envelope, message, payload);
            }
            _ => {
                core.release(payload);
                // Two nodes each believe to be primary: the one with the lower epoch learns it here, and by Raft.
                if matches!(message, Message::Hello { .. }) {
                    let newer = envelope.epoch > core.epoch();
                    let reason = if newer { NackReason::NotYet } else { NackReason::StaleEpoch };
                    core.nack(link, envelope.session, reason);
                }
            }
        }
    }

    fn on_client(&mut self, op: OpId, request: Request) {
        match &mut self.role {
            Role::Primary(primary) => primary.on_client(&mut self.core, op, request),
            Role::Secondary(_) => {
                let primary = Secondary::primary(&self.core);
                let other = if primary == self.core.node { NodeId::NONE } else { primary };
                refuse(&mut self.core, op, &request, Refusal::NotPrimary(other));
            }
            Role::Stopped => refuse(&mut self.core, op, &request, Refusal::Stopped),
        }
    }

    fn on_io_done(&mut self, id: IoId, result: IoResult) {
        let Some(io) = self.core.io.remove(&id) else { return };
        if io.purpose == Purpose::StopFlush {
            if result == IoResult::Failed {
                self.core.detach(true);
            }
            return self.finish_stop();
        }
        if io.purpose.is_of_the_copy() && matches!(self.core.disk, Disk::Attached(_)) {
            return self.on_copy_io_done(id, &io.purpose, result);
        }
        if result == IoResult::NoSpace && matches!(self.core.disk, Disk::Attached(_)) {
            // Parts may be written; the extents are hot, so nothing of it is forgotten.
            return self.on_disk_lost(false);
        }
        let stale = io.generation != self.core.generation;
        // Without a disk the edges of a write come from a peer.
        let attached = matches!(self.core.disk, Disk::Attached(_));
        let in_use = attached || matches!(io.purpose, Purpose::Merge(_));
        if let (Purpose::Merge(number), false, Role::Primary(primary)) = (&io.purpose, attached, &mut self.role)
            && result != IoResult::Ok
        {
            return primary.refuse_write(&mut self.core, *number, Refusal::Io);
        }
        if result == IoResult::Failed && in_use {
            discard_result(&mut self.core, id, &io.purpose, result);
            return self.on_disk_lost(true);
        }
        if stale || !in_use || result == IoResult::Failed {
            return discard_result(&mut self.core, id, &io.purpose, result);
        }
        let core = &mut self.core;
        match &mut self.role {
            Role::Primary(primary) => match io.purpose {
                Purpose::Write(number) => primary.on_local_write_done(core, number),
                Purpose::Read(number) => primary.on_local_read_done(core, number, id),
                Purpose::Merge(number) => primary.log_write(core, number),
                Purpose::Repair(number) => primary.on_repaired(core, number),
                Purpose::Scrub(number) => primary.on_scrub_read(core, number, id, Vec::new()),
                Purpose::Flush(number) => primary.on_local_flush_done(core, number),
                Purpose::Chunk(node, number) => primary.on_chunk_read(core, node, number, id),
                _ => {}
            },
            Role::Secondary(secondary) => {
                if let Some(session) = secondary.session.as_mut() {
                    session.stream.on_done(core, (session.link, session.id), id, &io.purpose);
                }
            }
            Role::Stopped => discard_result(core, id, &io.purpose, result),
        }
    }

    /// An operation that outlives roles and sessions has ended, on a disk that is in use.
    fn on_copy_io_done(&mut self, io: IoId, purpose: &Purpose, result: IoResult) {
        match purpose {
            Purpose::Heat => {
                let (ready, failed) = self.core.on_heated(io, result);
                if result == IoResult::Failed {
                    return self.on_disk_lost(true);
                }
                failed.into_iter().for_each(|user| self.on_no_space(user));
                ready.into_iter().for_each(|user| self.on_hot(user));
            }
            Purpose::Cool | Purpose::StopCool | Purpose::Bitmap(_) => {
                self.core.on_cooled(io);
                if result != IoResult::Ok {
                    return self.on_disk_lost(result == IoResult::Failed);
                }
                match (purpose, &mut self.role) {
                    (Purpose::Bitmap(node), Role::Primary(primary)) => primary.on_recorded(*node),
                    (Purpose::StopCool, _) => self.finish_stop(),
                    _ => {}
                }
            }
            _ if result != IoResult::Ok => self.on_disk_lost(result == IoResult::Failed),
            _ => {}
        }
    }

    /// The extents are hot that this operation has waited for.
    fn on_hot(&mut self, user: User) {
        let core = &mut self.core;
        match (user, &mut self.role) {
            (User::Write(number), Role::Primary(primary)) => primary.issue_hot(core, number),
            (User::Stream(generation, seq), Role::Secondary(secondary)) if generation == core.generation => {
                if let Some(session) = secondary.session.as_mut() {
                    session.stream.issue_hot(core, seq);
                }
            }
            _ => {}
        }
    }

    /// There is no space for what this operation would write. A client is told; a backup cannot refuse, so it leaves.
    fn on_no_space(&mut self, user: User) {
        match (user, &mut self.role) {
            (User::Write(number), Role::Primary(primary)) => {
                primary.refuse_write(&mut self.core, number, Refusal::NoSpace)
            }
            (User::Stream(..), Role::Secondary(_)) => self.on_disk_lost(false),
            _ => {}
        }
    }

    /// A local operation found bad blocks.
    fn on_corrupt(&mut self, id: IoId, bad: Vec<proto::BlockRange>) {
        let Some(io) = self.core.io.remove(&id) else { return };
        let core = &mut self.core;
        if io.generation != core.generation || !matches!(core.disk, Disk::Attached(_)) {
            return discard_result(core, id, &io.purpose, IoResult::Ok);
        }
        match &mut self.role {
            Role::Primary(primary) => primary.on_corrupt(core, &io.purpose, id, bad),
            Role::Secondary(secondary) => {
                if let Some(session) = secondary.session.as_mut() {
                    session.stream.on_corrupt(core, (session.link, session.id), (id, &io.purpose), bad);
                }
            }
            Role::Stopped => discard_result(core, id, &io.purpose, IoResult::Ok),
        }
    }

    /// The disk failed, hangs, or is to be given up.
    fn on_disk_lost(&mut self, failed: bool) {
        self.core.detach(failed);
        self.core.forget_recorded();
        if self.stop == Stop::Cooling {
            return self.finish_stop();
        }
        match &mut self.role {
            Role::Primary(primary) => primary.on_disk_lost(&mut self.core),
            Role::Secondary(secondary) => secondary.on_disk_lost(&mut self.core),
            Role::Stopped => {}
        }
    }

    fn note_state(&mut self) {
        let state = self.role_name();
        if state != self.state {
            let from = std::mem::replace(&mut self.state, state);
            let notice = Secondary::notice(from, state, self.core.epoch());
            self.core.act(notice);
        }
    }

    fn role_name(&self) -> &'static str {
        match &self.role {
            Role::Primary(primary) if primary.service == Service::Serving => "primary",
            Role::Primary(_) => "primary, suspended",
            Role::Secondary(secondary) => secondary.state_name(&self.core),
            Role::Stopped => "stopped",
        }
    }

    fn check_invariants(&self) {
        match &self.role {
            Role::Primary(primary) => primary.check_invariants(&self.core),
            Role::Secondary(secondary) => secondary.check_invariants(&self.core),
            Role::Stopped => {}
        }
    }

    /// True while the local disk is in use and its copy is in sync: what the store says of itself holds for the volume.
    pub fn serves_locally(&self) -> bool {
        self.core.serves_locally()
    }

    /// The newest configuration version applied here.
    pub fn version(&self) -> ConfigVersion {
        self.core.version()
    }

    /// For people and metrics.
    pub fn status(&self, now: Timestamp) -> Status {
        let mut status = Status {
            role: self.role_name(),
            hot_extents: self.core.log.len(),
            last_scrub: self.core.last_scrub,
            ..Status::default()
        };
        if let Role::Primary(primary) = &self.role {
            status.operations =
                primary.queue.len() + primary.writes.len() + primary.reads.len() + primary.flushes.len();
            status.serving = primary.can_serve(&self.core)
                && primary.holds_lease(now)
                && primary.peers.values().all(|peer| !peer.sync.is_member() || peer.is_open());
            status.peers = primary
                .peers
                .iter()
                .map(|(node, peer)| {
                    let (state, dirty, sent) = peer.describe(self.core.trackers.get(*node));
                    (*node, state, dirty, sent)
                })
                .collect();
            status.scrub = primary.scrub.as_ref().map(|scrub| scrub.report);
            status.waiting = primary.waiting(&self.core);
        }
        status
    }
}
