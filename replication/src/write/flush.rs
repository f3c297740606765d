//! A flush: on the media of every required copy before it completes, unless all that it covers is there already.

use proto::NodeId;
use proto::peer::message::Message;
use smallvec::SmallVec;

use crate::action::Action;
use crate::core::{Core, Purpose};
use crate::event::OpId;
use crate::link::Awaited;
use crate::primary::Primary;
use crate::write::durability::Mark;
use crate::write::pipeline::Step;

/// One flush; without `op` it is the primary's own, before a handoff or a stop.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Flush {
    pub(crate) op: Option<OpId>,
    step: Step,
    covers: Mark,
    /// Copies that were required when it arrived. One required only later was flushed before it is admitted.
    targets: SmallVec<[NodeId; 2]>,
    acked: SmallVec<[NodeId; 2]>,
}

impl Flush {
    pub(crate) fn on_disk_lost(&mut self) {
        if self.step == Step::Local {
            self.step = Step::Lost;
        }
    }
}

impl Primary {
    /// A client flushes.
    pub(crate) fn on_client_flush(&mut self, core: &mut Core, op: OpId) {
        match self.durability.on_flush() {
            Some(mark) => self.start_flush(core, Some(op), mark),
            None => core.act(Action::Complete { op, data: None }),
        }
    }

    /// Starts a flush.
    pub(crate) fn start_flush(&mut self, core: &mut Core, op: Option<OpId>, covers: Mark) {
        let number = self.number();
        let targets: SmallVec<[NodeId; 2]> = self.required().collect();
        let step = if core.disk_report().is_some() {
            let io = core.start_io(Purpose::Flush(number));
            core.act(Action::FlushLocal { io });
            Step::Local
        } else {
            Step::Lost
        };
        self.flushes.insert(number, Flush { op, step, covers, targets: targets.clone(), acked: SmallVec::new() });
        for node in targets {
            self.send_flush(core, node, number);
        }
        self.complete_flush_if_acked(core, number);
    }

    fn send_flush(&mut self, core: &mut Core, node: NodeId, number: u64) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.takes_writes()) else { return };
        let Some(session) = peer.session.as_mut() else { return };
        let seq = session.await_ack(Awaited::Flush(number), core.active);
        core.send(session.link, session.id, Message::Flush { seq }, None);
    }

    /// The peer's session stands again: sends the flushes it has not acknowledged.
    pub(crate) fn resend_flushes(&mut self, core: &mut Core, node: NodeId) {
        let open: Vec<u64> = self
            .flushes
            .iter()
            .filter(|(_, flush)| flush.targets.contains(&node) && !flush.acked.contains(&node))
            .map(|(number, _)| *number)
            .collect();
        open.into_iter().for_each(|number| self.send_flush(core, node, number));
    }

    /// A copy that left and was resynced has flushed all that it holds: older flushes, lost with its former session, are no
    /// longer awaited from it.
    pub(crate) fn flushed_by_resync(&mut self, core: &mut Core, node: NodeId) {
        let open: Vec<u64> = self.flushes.keys().copied().collect();
        for number in open {
            if let Some(flush) = self.flushes.get_mut(&number) {
                flush.targets.retain(|target| *target != node);
            }
            self.complete_flush_if_acked(core, number);
        }
    }

    pub(crate) fn on_local_flush_done(&mut self, core: &mut Core, number: u64) {
        if let Some(flush) = self.flushes.get_mut(&number) {
            flush.step = Step::Done;
            self.complete_flush_if_acked(core, number);
        }
    }

    pub(crate) fn on_flush_acked(&mut self, core: &mut Core, node: NodeId, number: u64) {
        if let Some(flush) = self.flushes.get_mut(&number) {
            flush.acked.push(node);
            self.complete_flush_if_acked(core, number);
        }
    }

    pub(crate) fn complete_flush_if_acked(&mut self, core: &mut Core, number: u64) {
        let Some(flush) = self.flushes.get(&number) else { return };
        let local = match flush.step {
            Step::Before | Step::Local => false,
            Step::Done => true,
            Step::Lost => Self::local_is_optional(core),
        };
        let awaited = |node: &NodeId| flush.targets.contains(node) && !flush.acked.contains(node);
        if !local || self.required().any(|node| awaited(&node)) {
            return;
        }
        let Some(Flush { op, covers, .. }) = self.flushes.remove(&number) else { return };
        self.durability.on_flushed(covers);
        if let Some(op) = op {
            core.act(Action::Complete { op, data: None });
        }
    }
}
