//! A replica that is not primary: it follows the primary's session, grants leases, and takes over when the primary is gone.
//!
//! Covers the states Unknown, Secondary, Fenced, Resyncing, PreSync, Outdated and Diskless of the state table; the stream of
//! writes is in `resync/target.rs`, the take-over in `takeover.rs`.

use proto::peer::message::{Envelope, Message, NackReason, Seq};
use proto::{ConfigVersion, Epoch, NodeId, RequestId, SessionId, Timestamp};

use crate::action::{Action, Notice};
use crate::core::{Core, Disk};
use crate::event::{LinkId, PayloadId};
use crate::resync::target::Stream;
use crate::takeover::TakeOver;

/// How far a session has come, seen from the secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Hello was accepted; the former session's I/O is being drained.
    Opening,
    /// Open, but the copy is not in sync and no resync has begun.
    Waiting,
    /// The copy is in sync.
    Live,
    /// The copy is being made in sync; its acks do not count.
    Resyncing,
    /// Nothing is dirty; its acks count and it grants leases.
    PreSync,
}

/// One session with the primary.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Session {
    pub(crate) link: LinkId,
    pub(crate) id: SessionId,
    pub(crate) primary: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) stage: Stage,
    pub(crate) stream: Stream,
    /// Operations of the stream up to here are complete on every required copy.
    settled: Seq,
    /// Newest beacon whose lease was granted.
    last_granted: u64,
    handoff_prepared: bool,
}

/// See the module's header.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Secondary {
    pub(crate) session: Option<Session>,
    /// Before this the primary may hold a lease of ours.
    pub(crate) grant_until: Timestamp,
    /// The primary released its lease for good.
    pub(crate) released: bool,
    pub(crate) take_over: Option<TakeOver>,
    /// The last proposal to leave the in-sync set: against which version, as which request, when.
    pub(crate) resignation: Option<(ConfigVersion, RequestId, Timestamp)>,
}

impl Secondary {
    /// Enters the role. Whoever is primary may hold a lease that a former life of ours granted.
    pub(crate) fn enter(core: &mut Core) -> Self {
        core.next_generation();
        core.forget_recorded();
        core.record_in_sync();
        Self {
            session: None,
            grant_until: core.now + core.timing.grace,
            released: false,
            take_over: None,
            resignation: None,
        }
    }

    /// The name of the state, as in the state table.
    pub(crate) fn state_name(&self, core: &Core) -> &'static str {
        if core.config.is_none() || core.disk == Disk::Absent {
            return "unknown";
        }
        if matches!(core.disk, Disk::Detached { .. }) {
            return "diskless";
        }
        if core.is_fenced() {
            return "fenced";
        }
        match self.session.as_ref().map(|session| session.stage) {
            Some(Stage::Resyncing) => "resyncing",
            Some(Stage::PreSync) => "presync",
            _ if core.is_member() => "secondary",
            _ => "outdated",
        }
    }

    /// The configuration has moved from `before` (epoch, membership of ours) to what `core` now holds.
    pub(crate) fn on_config(&mut self, core: &mut Core, before: (Epoch, bool)) {
        let (epoch, was_member) = before;
        let member = core.is_member();
        if core.epoch() != epoch {
            self.close_session(core, "the epoch has ended");
            self.released = false;
            self.grant_until = self.grant_until.max(core.now + core.timing.grace);
            core.forget_recorded();
        } else if was_member && !member {
            self.close_session(core, "the copy was dropped from the in-sync set");
            core.forget_recorded();
        }
        if member && !was_member {
            self.grant_until = self.grant_until.max(core.now + core.timing.grace);
            if let Some(session) = &mut self.session {
                if session.stage == Stage::PreSync {
                    core.resynced();
                }
                session.stage = Stage::Live;
            }
        }
        if member {
            core.record_in_sync();
        }
        self.take_over_on_config(core);
    }

    /// A message from `peer` over `link`.
    pub(crate) fn on_frame(
        &mut self,
        core: &mut Core,
        peer: NodeId,
        link: LinkId,
        envelope: Envelope,
        message: Message,
        payload: Option<PayloadId>,
    ) {
        if let Message::Hello { incarnation, disk_id, .. } = message {
            match self.judge_hello(core, peer, envelope, disk_id) {
                Ok(()) if core.is_gone(peer, incarnation) => core.nack(link, envelope.session, NackReason::StaleEpoch),
                Ok(()) => self.open_session(core, peer, link, envelope),
                Err(reason) => core.nack(link, envelope.session, reason),
            }
            core.release(payload);
            return;
        }
        let current = self.session.as_ref().is_some_and(|session| {
            session.link == link && session.id == envelope.session && session.stage != Stage::Opening
        });
        if current {
            core.primary_version = core.primary_version.max(envelope.version);
        }
        if !current || envelope.epoch != core.epoch() || core.is_fenced() {
            core.release(payload);
            return;
        }
        self.on_session_message(core, message, payload);
    }

    /// May `peer` open a session with what its Hello says?
    fn judge_hello(
        &self,
        core: &Core,
        peer: NodeId,
        envelope: Envelope,
        disk_id: proto::DiskId,
    ) -> Result<(), NackReason> {
        if (envelope.epoch, envelope.version) <= core.fence {
            return Err(NackReason::StaleEpoch);
        }
        let ahead = (envelope.epoch, envelope.version) > (core.epoch(), core.version());
        if ahead || core.is_fenced() || self.take_over.is_some() {
            return Err(NackReason::NotYet);
        }
        let primary = core.config.as_ref().map(|config| config.primary);
        if envelope.epoch < core.epoch() || primary != Some(peer) {
            return Err(NackReason::StaleEpoch);
        }
        match core.disk {
            Disk::Absent => Err(NackReason::NotYet),
            Disk::Detached { .. } => Err(NackReason::DiskFailed),
            Disk::Attached(report) if report.disk_id != disk_id => Err(NackReason::WrongDisk),
            Disk::Attached(_) => Ok(()),
        }
    }

    fn open_session(&mut self, core: &mut Core, peer: NodeId, link: LinkId, envelope: Envelope) {
        let same_link = self.session.as_ref().is_some_and(|session| session.link == link);
        if same_link {
            self.drop_session(core);
        } else {
            self.close_session(core, "the primary opened another session");
        }
        core.heard(peer);
        self.session = Some(Session {
            link,
            id: envelope.session,
            primary: peer,
            epoch: envelope.epoch,
            stage: Stage::Opening,
            stream: Stream::default(),
            settled: Seq(0),
            last_granted: 0,
            handoff_prepared: false,
        });
        self.answer_hello(core);
    }

    /// Answers the Hello once nothing of an earlier session or epoch is in flight (I10).
    pub(crate) fn answer_hello(&mut self, core: &mut Core) {
        let Some(session) = self.session.as_mut().filter(|session| session.stage == Stage::Opening) else { return };
        let Some(report) = core.disk_report() else { return };
        if !core.is_drained() {
            return;
        }
        session.stage = if core.is_member() { Stage::Live } else { Stage::Waiting };
        let reply = Message::HelloReply {
            incarnation: core.incarnation,
            boot: core.boot,
            disk_id: report.disk_id,
            last_in_sync: report.last_in_sync,
            suspect: report.suspect,
            stamp: core.now,
            uncertain: core.log.uncertain(),
        };
        core.send(session.link, session.id, reply, None);
    }

    fn on_session_message(&mut self, core: &mut Core, message: Message, payload: Option<PayloadId>) {
        let Some(session) = self.session.as_mut() else { return };
        core.heard(session.primary);
        match message {
            Message::Beacon { number, echo, settled } => {
                core.release(payload);
                session.settled = session.settled.max(settled);
                self.on_beacon(core, number, echo);
            }
            Message::LeaseRelease { last_beacon } => {
                core.release(payload);
                if last_beacon >= session.last_granted {
                    self.grant_until = core.now;
                    self.released = true;
                }
            }
            Message::ResyncBegin if session.stage == Stage::Waiting => {
                session.stage = Stage::Resyncing;
                // The primary has recorded what this copy cannot vouch for.
                core.log.doubts_recorded();
            }
            Message::PreSync if session.stage == Stage::Resyncing => {
                session.stage = Stage::PreSync;
                self.grant_until = self.grant_until.max(core.now + core.timing.grace);
                core.send(session.link, session.id, Message::PreSyncAck, None);
            }
            Message::HandoffPrepare if matches!(session.stage, Stage::Live | Stage::PreSync) => {
                session.handoff_prepared = true;
                self.answer_handoff(core);
            }
            Message::Nack { .. } => {
                core.release(payload);
                self.close_session(core, "the primary refused the session");
            }
            other => session.stream.on_message(core, (session.link, session.id), other, payload),
        }
    }

    /// Up to where the stream is settled, while idle extents may become cold: not without a session, and not while this
    /// node has yet to learn who has left the set, for it would track too little of what they lack.
    pub(crate) fn settled(&self, core: &Core) -> Option<Seq> {
        let session = self.session.as_ref().filter(|session| session.stage != Stage::Opening)?;
        core.follows_primary().then_some(session.settled)
    }

    /// Ready for a planned switchover when the stream is idle and this node has learnt of its own membership.
    pub(crate) fn answer_handoff(&mut self, core: &mut Core) {
        let Some(session) = self.session.as_mut() else { return };
        if session.handoff_prepared && session.stage == Stage::Live && session.stream.is_idle() {
            session.handoff_prepared = false;
            core.send(session.link, session.id, Message::HandoffReady, None);
        }
    }

    fn on_beacon(&mut self, core: &mut Core, number: u64, echo: Timestamp) {
        let Some(session) = self.session.as_mut() else { return };
        // An echo older than the grace means that the primary does not hear us: granting would keep a primary in office
        // that can neither complete a write nor be replaced.
        let echo_is_fresh = core.now.since(echo) <= core.timing.grace;
        let counted = matches!(session.stage, Stage::Live | Stage::PreSync);
        if session.stage == Stage::Live {
            // The primary goes on with this copy as it is.
            core.log.trust();
        }
        let granted = counted && echo_is_fresh && self.take_over.is_none();
        if granted {
            session.last_granted = number;
            self.grant_until = self.grant_until.max(core.now + core.timing.grace);
            self.released = false;
        }
        let ack = Message::BeaconAck { number, granted, stamp: core.now };
        core.send(session.link, session.id, ack, None);
    }

    /// Forgets the session; its I/O only has to end.
    pub(crate) fn drop_session(&mut self, core: &mut Core) {
        if let Some(session) = self.session.take() {
            session.stream.abandon(core);
            core.next_generation();
        }
    }

    /// Forgets the session and closes its link.
    pub(crate) fn close_session(&mut self, core: &mut Core, why: &'static str) {
        if let Some(link) = self.session.as_ref().map(|session| session.link) {
            self.drop_session(core);
            core.act(Action::CloseLink { link, why });
        }
    }

    /// The link is gone.
    pub(crate) fn on_link_down(&mut self, core: &mut Core, link: LinkId) {
        if self.session.as_ref().is_some_and(|session| session.link == link) {
            self.drop_session(core);
        }
    }

    /// The local disk failed or was detached: tells the primary, which then stops waiting for us.
    pub(crate) fn on_disk_lost(&mut self, core: &mut Core) {
        if let Some((link, id)) = self.session.as_ref().map(|session| (session.link, session.id)) {
            core.nack(link, id, NackReason::DiskFailed);
            self.close_session(core, "the local disk is not in use");
        }
        self.take_over = None;
    }

    /// True when another member can go on without this copy: the primary, if its session is live and it was heard within
    /// the time after which it would be missed, or one that the Raft leader hears and that has not lost power.
    pub(crate) fn has_live_member(&self, core: &Core) -> bool {
        let Some(config) = &core.config else { return false };
        config.in_sync.keys().filter(|node| **node != core.node).any(|node| {
            if *node == config.primary {
                let live = self.session.as_ref().is_some_and(|session| session.stage == Stage::Live);
                live && core.silence(*node) < core.timing.shrink_after
            } else {
                core.leader_hears_now(*node) && !config.is_cold(*node)
            }
        })
    }

    /// What a client is told: who serves.
    pub(crate) fn primary(core: &Core) -> NodeId {
        core.config.as_ref().map_or(NodeId::NONE, |config| config.primary)
    }

    /// Asserts what must hold after every event.
    pub(crate) fn check_invariants(&self, core: &Core) {
        if let Some(session) = &self.session {
            assert_eq!(session.epoch, core.epoch(), "a session belongs to the present epoch");
            assert!(!core.is_fenced(), "a fenced copy has no session");
            let live = session.stage == Stage::Live;
            assert!(!live || core.is_member(), "a live session belongs to a member");
        }
        assert!(self.take_over.is_none() || core.version() > ConfigVersion(0), "a take-over has a configuration");
    }

    /// Tells watchers about a change of state.
    pub(crate) fn notice(from: &'static str, to: &'static str, epoch: Epoch) -> Action {
        Action::Notify(Notice::Role { from, to, epoch })
    }
}
