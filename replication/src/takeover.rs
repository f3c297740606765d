//! How a replica becomes primary by itself: TakeOver by a member whose primary is gone, Resume by a primary that restarted.
//!
//! A take-over fences first, durably: once proposed it may commit at any later time, so from then on nothing of the old
//! epoch is acknowledged and no lease granted, until the configuration has moved past the fence.

use proto::{ConfigVersion, Epoch, RequestId, Timestamp};

use crate::action::Action;
use crate::config::{Phase, VolumeCommand};
use crate::core::{Core, Disk};
use crate::secondary::Secondary;

/// A take-over or resume under way.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct TakeOver {
    /// The version it is proposed against.
    version: ConfigVersion,
    request: RequestId,
    /// The fence is durable (a Resume needs none: it takes nothing from anybody).
    fenced: bool,
    /// When it was proposed last.
    proposed: Option<Timestamp>,
    resume: bool,
}

impl Secondary {
    /// The version moved: an attempt against an older one is dead.
    pub(crate) fn take_over_on_config(&mut self, core: &Core) {
        if self.take_over.is_some_and(|attempt| attempt.version != core.version()) {
            self.take_over = None;
        }
    }

    /// Starts or repeats an attempt if it is due. Called after every event.
    pub(crate) fn progress_take_over(&mut self, core: &mut Core) {
        if self.take_over.is_none() {
            self.begin_if_due(core);
        }
        let Some(attempt) = self.take_over else { return };
        let due = attempt.proposed.is_none_or(|at| core.now.since(at) >= core.timing.proposal_retry);
        let Some(disk_id) = core.own_disk() else { return };
        if !attempt.fenced || !due || !core.is_drained() {
            return;
        }
        let by = (core.node, core.incarnation);
        let cold_ok = core.cold_ok();
        let failed = core.disk_report().is_some_and(|report| report.failed);
        let command = match attempt.resume {
            true => VolumeCommand::Resume { by, disk_id, cold_ok, failed },
            false => VolumeCommand::TakeOver { by, cold_ok, failed },
        };
        core.propose(attempt.request, command);
        self.take_over = Some(TakeOver { proposed: Some(core.now), ..attempt });
    }

    /// A member whose disk is lost, or had failed and is not the last one, leaves the in-sync set by itself: the primary
    /// may be gone, and another member may wait for this one. Called after every event.
    pub(crate) fn progress_resignation(&mut self, core: &mut Core) {
        let unfit = match core.disk {
            Disk::Absent => false,
            Disk::Detached { .. } => true,
            Disk::Attached(report) => report.failed,
        };
        if !unfit || !core.is_member() || core.is_last_member() {
            return;
        }
        let version = core.version();
        let same = self.resignation.filter(|(against, ..)| *against == version);
        let request = match same {
            Some((_, _, at)) if core.now.since(at) < core.timing.proposal_retry => return,
            Some((_, request, _)) => request,
            None => core.next_request(),
        };
        core.propose(request, VolumeCommand::Resign { by: (core.node, core.incarnation) });
        self.resignation = Some((version, request, core.now));
    }

    fn begin_if_due(&mut self, core: &mut Core) {
        let Some(due) = self.take_over_at(core) else { return };
        if core.now < due {
            return;
        }
        let Some(config) = &core.config else { return };
        let resume = config.primary == core.node;
        let fence = (config.epoch, config.version);
        let fenced = resume || core.is_fenced();
        let request = core.next_request();
        self.close_session(core, "taking over from the primary");
        self.take_over = Some(TakeOver { version: fence.1, request, fenced, proposed: None, resume });
        if !fenced {
            core.act(Action::PersistFence { epoch: fence.0, version: fence.1 });
        }
    }

    /// The fence is durable.
    pub(crate) fn on_fence_persisted(&mut self, core: &mut Core, fence: (Epoch, ConfigVersion)) {
        if let Some(attempt) = self.take_over.as_mut().filter(|attempt| attempt.version == fence.1) {
            attempt.fenced = true;
        } else if core.is_fenced() {
            self.close_session(core, "fenced");
        }
    }

    /// When this replica may and should begin to take over, or resume; None: not as things stand.
    pub(crate) fn take_over_at(&self, core: &Core) -> Option<Timestamp> {
        let config = core.config.as_ref()?;
        let sole = config.in_sync.len() == 1;
        let fit = core.disk_report().is_some_and(|report| !report.failed || sole);
        let eligible = config.phase == Phase::Active && core.is_member() && core.own_disk().is_some() && fit;
        if !eligible || self.take_over.is_some() {
            return None;
        }
        // A cold copy waits until nobody warmer can be expected.
        if core.is_cold() && !core.cold_ok() {
            return None;
        }
        if config.primary == core.node {
            // Others who are in sync take over at once on our supervisor's Goodbye; they are warmer, so they go first.
            return Some(if sole { core.started } else { core.started + core.timing.grace });
        }
        if core.is_gone(config.primary, config.primary_incarnation) || self.released {
            return Some(core.now);
        }
        // The primary is alive but does not reach us: it drops us itself, if it can.
        let patience = if core.leader_hears_now(config.primary) { core.timing.grace } else { proto::Micros(0) };
        Some(self.grant_until + patience)
    }
}
