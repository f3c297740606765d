//! What people ask of a replica: switchover, scrub, detach, and the orderly stop.

use crate::action::{Action, Notice, Refusal};
use crate::core::{Disk, Purpose};
use crate::event::{Control, IoId};
use crate::secondary::Secondary;

use super::{Replica, Role};

/// An orderly stop under way, on a replica that is not primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stop {
    /// None.
    No,
    /// Local I/O is drained and flushed.
    Flushing(Option<IoId>),
    /// What may become cold does, so that the next start has nothing to compare.
    Cooling,
}

impl Replica {
    pub(super) fn on_control(&mut self, control: Control) {
        match (control, &mut self.role) {
            (Control::Switchover { to }, Role::Primary(primary)) => primary.on_switchover(&mut self.core, to),
            (Control::Switchover { .. }, _) => {
                self.core.act(Action::Notify(Notice::SwitchoverRefused { why: "this node is not primary" }));
            }
            (Control::Scrub { verify_only }, Role::Primary(primary)) => {
                if !primary.start_scrub(&mut self.core, verify_only, false) {
                    self.core.act(Action::Notify(Notice::ScrubRefused { why: "another one is under way" }));
                }
            }
            (Control::Scrub { .. }, _) => {
                self.core.act(Action::Notify(Notice::ScrubRefused { why: "this node is not primary" }));
            }
            (Control::Detach, _) => match self.why_not_detach() {
                Some(why) => self.core.act(Action::Notify(Notice::DetachRefused { why })),
                None => self.on_disk_lost(false),
            },
            (Control::Stop, Role::Stopped) => self.core.act(Action::Stopped),
            (Control::Stop, Role::Primary(primary)) => primary.on_stop(&mut self.core),
            (Control::Stop, Role::Secondary(secondary)) => {
                secondary.close_session(&mut self.core, "this node is stopping");
                secondary.take_over = None;
                self.stop = Stop::Flushing(None);
            }
        }
    }

    /// Why the disk is not given up on request. Without this copy another one in sync must be able to go on: if it is
    /// merely still in the set, nobody would serve.
    fn why_not_detach(&self) -> Option<&'static str> {
        let live = match &self.role {
            Role::Primary(primary) => primary.has_live_member(),
            Role::Secondary(secondary) => secondary.has_live_member(&self.core),
            Role::Stopped => return Some("the volume has stopped"),
        };
        match self.core.disk {
            Disk::Absent | Disk::Detached { .. } => Some("no disk is in use"),
            Disk::Attached(_) if self.core.is_last_member() => Some("the copy is the last one in sync"),
            Disk::Attached(_) if self.core.is_member() && !live => Some("no other copy in sync is connected"),
            Disk::Attached(_) => None,
        }
    }

    /// A stopping secondary: drained, then flushed, then stopped.
    pub(super) fn progress_stop(&mut self) {
        let Stop::Flushing(flush) = self.stop else { return };
        if self.core.disk_report().is_none() {
            return self.finish_stop();
        }
        if flush.is_none() && self.core.is_drained() {
            let io = self.core.start_io(Purpose::StopFlush);
            self.stop = Stop::Flushing(Some(io));
            self.core.act(Action::FlushLocal { io });
        }
    }

    pub(super) fn finish_stop(&mut self) {
        let cooled = self.stop == Stop::Cooling;
        if !cooled && self.core.disk_report().is_some() {
            let was_primary = matches!(self.role, Role::Primary(_));
            self.role = match std::mem::replace(&mut self.role, Role::Stopped) {
                Role::Primary(primary) => {
                    primary.leave(&mut self.core, Refusal::Stopped);
                    Role::Secondary(Box::new(Secondary::enter(&mut self.core)))
                }
                role => role,
            };
            self.stop = Stop::Cooling;
            if self.core.cool_all(was_primary) {
                return;
            }
        }
        match std::mem::replace(&mut self.role, Role::Stopped) {
            Role::Primary(primary) => primary.leave(&mut self.core, Refusal::Stopped),
            Role::Secondary(mut secondary) => secondary.close_session(&mut self.core, "this node has stopped"),
            Role::Stopped => return,
        }
        self.core.act(Action::Stopped);
    }
}
