//! Planned switchover: the target makes ready, operations are queued, the rest drained and flushed, then the role moves in
//! one command. Also the orderly stop, which drains and flushes the same way and ends with the release of the lease.

use proto::peer::message::Message;
use proto::{ConfigVersion, Micros, NodeId, Timestamp};

use crate::action::{Action, Notice};
use crate::config::VolumeCommand;
use crate::core::Core;
use crate::primary::{Primary, Service};

/// A switchover that has not come about after this is given up.
const HANDOFF_TIMEOUT: Micros = Micros::from_secs(5);

/// How far a switchover or stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// The target was asked to make ready; clients are still served.
    Preparing,
    /// New operations wait; those in flight end.
    Draining,
    /// Everything is being flushed.
    Flushing,
    /// Proposed, with the fate unknown.
    Proposed,
    /// Given up: the version must move before clients are served again.
    Cancelling,
}

/// A switchover (to a node) or a stop (to nobody).
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Handoff {
    pub(crate) to: Option<NodeId>,
    step: Step,
    since: Timestamp,
    /// The version at which it was proposed: until the version has moved past it, it may commit.
    proposed_at: ConfigVersion,
}

impl Primary {
    /// An operator or supervisor wants another member to serve.
    pub(crate) fn on_switchover(&mut self, core: &mut Core, to: NodeId) {
        let refused = |core: &mut Core, why| core.act(Action::Notify(Notice::SwitchoverRefused { why }));
        if to == core.node {
            return refused(core, "the node is primary already");
        }
        if self.handoff.is_some() || self.service != Service::Serving {
            return refused(core, "another switchover or a stop is under way");
        }
        let Some(peer) = self.peers.get(&to) else { return refused(core, "the node holds no replica of the volume") };
        let Some(session) = peer.session.as_ref().filter(|_| peer.sync.is_member() && peer.is_open()) else {
            return refused(core, "the node's copy is not in sync and connected; wait for its resync");
        };
        core.send(session.link, session.id, Message::HandoffPrepare, None);
        self.handoff =
            Some(Handoff { to: Some(to), step: Step::Preparing, since: core.now, proposed_at: core.version() });
    }

    /// An orderly stop: like a switchover without a target.
    pub(crate) fn on_stop(&mut self, core: &mut Core) {
        self.service = Service::Suspended;
        self.handoff = Some(Handoff { to: None, step: Step::Draining, since: core.now, proposed_at: core.version() });
        self.progress_handoff(core);
    }

    /// The target is ready: from here on clients wait.
    pub(crate) fn on_handoff_ready(&mut self, core: &mut Core, node: NodeId) {
        let Some(handoff) = self.handoff.as_mut() else { return };
        if handoff.to == Some(node) && handoff.step == Step::Preparing {
            handoff.step = Step::Draining;
            self.service = Service::Suspended;
            self.progress_handoff(core);
        }
    }

    /// Moves a switchover or stop on. Called after every event.
    pub(crate) fn progress_handoff(&mut self, core: &mut Core) {
        let Some(handoff) = self.handoff else { return };
        let lost = handoff.to.is_some_and(|to| !self.peers.get(&to).is_some_and(|peer| peer.is_open()));
        let overdue = core.now.since(handoff.since) >= HANDOFF_TIMEOUT;
        if (lost || overdue) && handoff.to.is_some() {
            return self.give_up_handoff(core);
        }
        if handoff.step == Step::Draining && self.is_quiet() {
            self.start_flush(core, None, self.durability.mark());
            self.step_handoff(Step::Flushing);
        }
        let flushing = self.handoff.is_some_and(|handoff| handoff.step == Step::Flushing);
        if flushing && self.flushes.is_empty() && handoff.to.is_some() {
            self.step_handoff(Step::Proposed);
            let version = core.version();
            self.handoff.iter_mut().for_each(|handoff| handoff.proposed_at = version);
        }
    }

    /// True when an orderly stop is under way.
    pub(crate) fn is_stopping(&self) -> bool {
        self.handoff.is_some_and(|handoff| handoff.to.is_none())
    }

    /// True when an orderly stop has drained and flushed.
    pub(crate) fn stop_is_complete(&self) -> bool {
        self.handoff.is_some_and(|handoff| handoff.to.is_none() && handoff.step == Step::Flushing)
            && self.flushes.is_empty()
    }

    fn step_handoff(&mut self, step: Step) {
        if let Some(handoff) = self.handoff.as_mut() {
            handoff.step = step;
        }
    }

    /// A primary that serves through a peer has its disk back: the peer becomes primary, and the disk is resynced from it.
    /// Called until it has come about.
    pub(crate) fn hand_over_for_disk(&mut self, core: &mut Core) {
        let able = self.handoff.is_none() && self.service == Service::Serving;
        let target = self.peers.iter().find(|(_, peer)| peer.sync.is_member() && peer.is_open()).map(|(node, _)| *node);
        if let Some(to) = target.filter(|_| able) {
            self.on_switchover(core, to);
        }
    }

    fn give_up_handoff(&mut self, core: &mut Core) {
        let Some(handoff) = self.handoff else { return };
        let why = "the target did not become ready in time";
        match handoff.step {
            Step::Proposed => self.step_handoff(Step::Cancelling),
            Step::Cancelling => {}
            Step::Preparing | Step::Draining | Step::Flushing => {
                core.act(Action::Notify(Notice::SwitchoverRefused { why }));
                self.handoff = None;
                self.serve_again(core);
            }
        }
    }

    fn serve_again(&mut self, core: &mut Core) {
        if self.service == Service::Suspended {
            self.service = Service::Serving;
            self.serve_queue(core);
        }
    }

    /// The version moved and this node is still primary: a handoff proposed before is dead.
    pub(crate) fn handoff_on_config(&mut self, core: &mut Core) {
        let Some(handoff) = self.handoff else { return };
        match handoff.step {
            Step::Cancelling if core.version() <= handoff.proposed_at => {}
            Step::Cancelling => {
                core.act(Action::Notify(Notice::SwitchoverRefused { why: "the cluster did not confirm it in time" }));
                self.handoff = None;
                self.serve_again(core);
            }
            // Nothing ran meanwhile, so what was drained and flushed still is: it is proposed again, if the target stands.
            Step::Proposed => {
                let version = core.version();
                self.handoff.iter_mut().for_each(|handoff| handoff.proposed_at = version);
                self.progress_handoff(core);
            }
            _ => {}
        }
    }

    /// What the switchover wants proposed.
    pub(crate) fn handoff_command(&self, core: &Core) -> Option<VolumeCommand> {
        let handoff = self.handoff?;
        let (by, epoch) = ((core.node, core.incarnation), self.epoch);
        match (handoff.step, handoff.to) {
            (Step::Proposed, Some(to)) => Some(VolumeCommand::Handoff { by, epoch, to }),
            (Step::Cancelling, _) => Some(VolumeCommand::Renew { by, epoch }),
            _ => None,
        }
    }
}
