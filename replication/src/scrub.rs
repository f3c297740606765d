//! Scrub: the primary reads the whole volume, a step at a time, on every copy in sync, and compares their checksums.
//!
//! A step holds its range as a read does, and the peer's part travels on the ordered stream; so no write is in flight on
//! either side and a difference is a difference. A block that is bad on one copy is taken from one that is good; where both
//! are good by themselves and differ, the primary's is kept. A *verify* does the same and mends nothing.

use proto::peer::message::{Message, Worth, WriteKind};
use proto::{BlockRange, Micros, NodeId, Timestamp};
use smallvec::smallvec;

use crate::action::{Action, Notice, PayloadSlice};
use crate::core::{Core, Purpose};
use crate::event::{IoId, PastScrubs, PayloadId};
use crate::fetch::{Asker, Fetch};
use crate::link::Awaited;
use crate::local_copy::ReadCheck;
use crate::primary::{Holder, Primary, Service};
use crate::resync::source::split;
use crate::write::overlap::Class;

/// Blocks of one step.
const STEP_BLOCKS: u64 = 256;
/// While clients are at work a step on demand waits for so long after the last one.
const YIELD: Micros = Micros::from_millis(20);
/// A client that has asked for something within this time is at work.
const BUSY: Micros = Micros::from_millis(100);
/// Steps between two reports to watchers, at most; there are [`REPORTS_MIN`] or more.
const REPORT_STEPS_MAX: u64 = 256;
/// Reports in the course of one scrub, if it has as many steps.
const REPORTS_MIN: u64 = 16;

/// What a scrub has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScrubReport {
    /// It mends nothing.
    pub verify_only: bool,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks looked at.
    pub done_blocks: u64,
    /// Blocks that did not match their checksum on this node.
    pub bad_here: u64,
    /// Blocks that did not match their checksum on a peer.
    pub bad_at_peers: u64,
    /// Blocks that are good by themselves and differ between the copies.
    pub differing: u64,
    /// Of all these, blocks that were mended.
    pub repaired: u64,
    /// Steps that some copy in sync had no part in, because it was not connected or knows no checksums.
    pub skipped_steps: u64,
}

/// One step.
#[derive(Clone, Debug, Hash)]
struct Step {
    number: u64,
    range: BlockRange,
    stage: Stage,
    /// Found so far; counted when the step ends, so that one that is done again counts once.
    found: ScrubReport,
    /// Blocks that are bad here.
    bad: Vec<BlockRange>,
    /// Blocks of peers that are bad, or differ from good ones here.
    wrong: Vec<(NodeId, BlockRange)>,
}

#[derive(Clone, Debug, Hash)]
enum Stage {
    /// Waits for its range.
    Held,
    /// Every copy reads; so many peers have yet to answer.
    Reading { io: IoId, read: bool, awaited: usize, theirs: Vec<(NodeId, PayloadId)> },
    /// The checksums of the last of `theirs` are compared with ours.
    Comparing { io: IoId, theirs: Vec<(NodeId, PayloadId)> },
    /// So many repairs have yet to end.
    Repairing { io: IoId, awaited: usize },
}

/// A scrub under way.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Scrub {
    pub(crate) report: ScrubReport,
    step: Option<Step>,
    next_step_at: Timestamp,
    /// Nobody asked for it: it is spread over the period.
    in_background: bool,
    steps: u64,
}

impl Primary {
    /// Begins a scrub, in place of one in the background. False: one that was asked for is under way.
    pub(crate) fn start_scrub(&mut self, core: &mut Core, verify_only: bool, in_background: bool) -> bool {
        if self.scrub.as_ref().is_some_and(|scrub| !scrub.in_background) {
            return false;
        }
        self.abort_scrub_step(core);
        let blocks = core.blocks();
        let unfinished = core.unfinished_scrub.filter(|report| in_background && report.done_blocks < blocks);
        let report = ScrubReport { verify_only, blocks, ..unfinished.unwrap_or_default() };
        self.scrub = Some(Scrub { report, step: None, next_step_at: core.now, in_background, steps: 0 });
        core.act(Action::Notify(Notice::Scrub { report, done: false }));
        true
    }

    /// Moves the scrub on, or begins one that is due. Called after every event.
    pub(crate) fn progress_scrub(&mut self, core: &mut Core) {
        if self.scrub.is_none() {
            if core.now < core.scrub_due_at || !core.serves_locally() {
                return;
            }
            self.start_scrub(core, false, true);
        }
        // A member that is not connected is soon back, or no member any more: what nobody asked for waits for it.
        let whole = self.peers.values().all(|peer| !peer.sync.is_member() || peer.is_open());
        let ready = |scrub: &Scrub| scrub.step.is_none() && (whole || !scrub.in_background);
        let due = self.scrub.as_ref().is_some_and(|scrub| core.now >= scrub.next_step_at && ready(scrub));
        if due && core.serves_locally() && self.service == Service::Serving {
            self.begin_scrub_step(core);
        }
    }

    /// When a held-back scrub may go on.
    pub(crate) fn scrub_deadline(&self, now: Timestamp) -> Timestamp {
        let waiting = self.scrub.as_ref().filter(|scrub| scrub.step.is_none() && scrub.next_step_at > now);
        waiting.map_or(Timestamp::NEVER, |scrub| scrub.next_step_at)
    }

    fn begin_scrub_step(&mut self, core: &mut Core) {
        let number = self.number();
        let busy = core.now.since(self.last_client) < BUSY;
        let Some(scrub) = self.scrub.as_mut() else { return };
        let start = scrub.report.done_blocks;
        if start >= scrub.report.blocks {
            let report = scrub.report;
            self.scrub = None;
            core.scrub_has_ended(report);
            return core.act(Action::Notify(Notice::Scrub { report, done: true }));
        }
        let range = BlockRange::new(start, STEP_BLOCKS.min(scrub.report.blocks - start));
        scrub.next_step_at = core.now + scrub.pause(core, busy);
        let (bad, wrong) = (Vec::new(), Vec::new());
        scrub.step = Some(Step { number, range, stage: Stage::Held, found: ScrubReport::default(), bad, wrong });
        scrub.steps += 1;
        let all_steps = scrub.report.blocks / STEP_BLOCKS;
        if scrub.steps.is_multiple_of((all_steps / REPORTS_MIN).clamp(1, REPORT_STEPS_MAX)) {
            let report = scrub.report;
            core.act(Action::Notify(Notice::Scrub { report, done: false }));
            if scrub.in_background {
                core.unfinished_scrub = Some(report);
                core.act(Action::RecordScrub { ended: None, under_way: Some(report) });
            }
        }
        if self.overlap.admit(Holder::Scrub(number), Class::Read, smallvec![range]) {
            self.read_scrub_step(core, number);
        }
    }

    /// The step holds its range: every copy reads it.
    pub(crate) fn read_scrub_step(&mut self, core: &mut Core, number: u64) {
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let range = step.range;
        let io = core.start_io(Purpose::Scrub(number));
        core.act(Action::ReadLocal { io, range, check: ReadCheck::Verify });
        let mut awaited = 0;
        for peer in self.peers.values_mut().filter(|peer| peer.sync.is_member()) {
            let able = peer.is_open() && peer.reads_for_us();
            let Some(session) = peer.session.as_mut().filter(|_| able) else {
                step.found.skipped_steps = 1;
                continue;
            };
            awaited += 1;
            let seq = session.await_ack(Awaited::Scrub(number), core.active);
            core.send(session.link, session.id, Message::SumsRequest { seq, range }, None);
        }
        step.stage = Stage::Reading { io, read: false, awaited, theirs: Vec::new() };
    }

    /// The local read of a step has ended; `bad` blocks of it do not match.
    pub(crate) fn on_scrub_read(&mut self, core: &mut Core, number: u64, io: IoId, bad: Vec<BlockRange>) {
        match step_of(&mut self.scrub, number) {
            Some(Step { stage: Stage::Reading { read, .. }, found, bad: known, .. }) => {
                *read = true;
                found.bad_here = count(&bad);
                *known = bad;
            }
            _ => return core.release(Some(PayloadId::Io(io))),
        }
        self.compare_scrub_step(core, number);
    }

    /// A peer's checksums of a step.
    pub(crate) fn on_scrub_sums(&mut self, core: &mut Core, node: NodeId, number: u64, payload: Option<PayloadId>) {
        match step_of(&mut self.scrub, number) {
            Some(Step { stage: Stage::Reading { awaited, theirs, .. }, .. }) => {
                *awaited -= 1;
                theirs.extend(payload.map(|payload| (node, payload)));
            }
            _ => return core.release(payload),
        }
        self.compare_scrub_step(core, number);
    }

    /// Blocks of a step are bad at a peer.
    pub(crate) fn on_scrub_failed(&mut self, core: &mut Core, node: NodeId, number: u64, bad: Vec<BlockRange>) {
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let Stage::Reading { awaited, .. } = &mut step.stage else { return };
        *awaited -= 1;
        let inside = |bad: &BlockRange| bad.count > 0 && step.range.contains(*bad);
        let bad: Vec<BlockRange> = bad.into_iter().filter(inside).collect();
        step.found.bad_at_peers += count(&bad);
        step.wrong.extend(bad.into_iter().map(|range| (node, range)));
        self.compare_scrub_step(core, number);
    }

    /// Compares one peer's checksums after the other, once all copies have been read; then repairs.
    fn compare_scrub_step(&mut self, core: &mut Core, number: u64) {
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let Stage::Reading { io, read: true, awaited: 0, theirs } = &mut step.stage else { return };
        let (io, theirs) = (*io, std::mem::take(theirs));
        step.stage = Stage::Comparing { io, theirs };
        self.compare_next_of_scrub(core, number);
    }

    fn compare_next_of_scrub(&mut self, core: &mut Core, number: u64) {
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let Stage::Comparing { io, theirs } = &step.stage else { return };
        match theirs.last() {
            Some((_, payload)) => {
                let (io, range, theirs) = (*io, step.range, *payload);
                core.act(Action::CompareSums { io, range, theirs });
            }
            None => self.repair_scrub_step(core, number),
        }
    }

    /// A comparison is done.
    pub(crate) fn on_sums_compared(&mut self, core: &mut Core, io: IoId, differing: Vec<BlockRange>) {
        let Some(number) = self.scrub.as_ref().and_then(|scrub| scrub.step.as_ref()).map(|step| step.number) else {
            return;
        };
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let Stage::Comparing { io: compared, theirs } = &mut step.stage else { return };
        if *compared != io {
            return;
        }
        let Some((node, payload)) = theirs.pop() else { return };
        core.release(Some(payload));
        let differing = without(&differing, &step.bad);
        step.found.differing += count(&differing);
        step.wrong.extend(differing.into_iter().map(|range| (node, range)));
        self.compare_next_of_scrub(core, number);
    }

    /// All is known: a peer gets our blocks in the place of its bad ones, and ours are fetched from a peer.
    fn repair_scrub_step(&mut self, core: &mut Core, number: u64) {
        let verify_only = self.scrub.as_ref().is_some_and(|scrub| scrub.report.verify_only);
        let Some(step) = step_of(&mut self.scrub, number) else { return };
        let Stage::Comparing { io, .. } = step.stage else { return };
        let mut awaited = 0;
        let wrong = if verify_only { Vec::new() } else { std::mem::take(&mut step.wrong) };
        for (node, range) in wrong {
            let Some(session) = self.peers.get_mut(&node).and_then(|peer| peer.session.as_mut()) else { continue };
            for range in without(&[range], &step.bad) {
                let seq = session.await_ack(Awaited::Scrub(number), core.active);
                let first = range.start - step.range.start;
                let slice = PayloadSlice { id: PayloadId::Io(io), first, blocks: range.count };
                let message = Message::ResyncData { seq, range, kind: WriteKind::Data, worth: Worth::Sound };
                core.send(session.link, session.id, message, Some(slice));
                step.found.repaired += range.count;
                awaited += 1;
            }
        }
        let bad = if verify_only { Vec::new() } else { step.bad.clone() };
        awaited += usize::from(!bad.is_empty());
        step.stage = Stage::Repairing { io, awaited };
        if !bad.is_empty() {
            self.fetch(core, Fetch::repair(Asker::Scrub(number), bad));
        }
        self.end_scrub_step_if_repaired(core);
    }

    /// The repair at a peer has ended, or the one here, well or not.
    pub(crate) fn on_scrub_repaired(&mut self, core: &mut Core, number: u64) {
        if let Some(step) = step_of(&mut self.scrub, number)
            && let Stage::Repairing { awaited, .. } = &mut step.stage
        {
            *awaited = awaited.saturating_sub(1);
            self.end_scrub_step_if_repaired(core);
        }
    }

    /// So many of a step's bad blocks here are good again.
    pub(crate) fn on_scrub_mended(&mut self, number: u64, blocks: u64) {
        if let Some(step) = step_of(&mut self.scrub, number) {
            step.found.repaired += blocks;
        }
    }

    fn end_scrub_step_if_repaired(&mut self, core: &mut Core) {
        let Some(scrub) = self.scrub.as_mut() else { return };
        let Some(Step { stage: Stage::Repairing { awaited: 0, .. }, range, found, .. }) = &scrub.step else { return };
        scrub.report.done_blocks = range.end();
        scrub.report.add(found);
        self.abort_scrub_step(core);
    }

    /// The step is over, or is to be done again: a session or the local disk was lost in the middle of it.
    pub(crate) fn abort_scrub_step(&mut self, core: &mut Core) {
        let Some(step) = self.scrub.as_mut().and_then(|scrub| scrub.step.take()) else { return };
        let writing = self.orphan_fetch(core, step.number);
        let (io, theirs) = match step.stage {
            Stage::Held => (None, Vec::new()),
            Stage::Reading { io, read, theirs, .. } => (read.then_some(io), theirs),
            Stage::Comparing { io, theirs } => (Some(io), theirs),
            Stage::Repairing { io, .. } => (Some(io), Vec::new()),
        };
        core.release(io.map(PayloadId::Io));
        theirs.into_iter().for_each(|(_, payload)| core.release(Some(payload)));
        if !writing {
            self.release_scrub_range(core, step.number);
        }
    }

    /// Nothing of the step touches its range any more.
    pub(crate) fn release_scrub_range(&mut self, core: &mut Core, number: u64) {
        let started = self.overlap.release(Holder::Scrub(number));
        self.start_holders(core, &started);
    }
}

impl Core {
    /// A copy was attached: its scrubs go on where they were.
    pub(crate) fn recall_scrubs(&mut self, past: &PastScrubs) {
        let left = |period: Micros| Micros(period.0.saturating_sub(past.ended_ago.0));
        self.scrub_due_at = self.timing.scrub_period.map_or(Timestamp::NEVER, |period| self.now + left(period));
        self.unfinished_scrub = past.under_way;
    }

    /// A scrub has seen the whole volume. A verify has mended nothing: the next scrub is due as if there had been none.
    fn scrub_has_ended(&mut self, report: ScrubReport) {
        if !report.verify_only {
            self.scrub_due_at = self.timing.scrub_period.map_or(Timestamp::NEVER, |period| self.now + period);
            self.unfinished_scrub = None;
        }
        self.last_scrub = Some((self.now, report));
        self.act(Action::RecordScrub { ended: Some(report), under_way: self.unfinished_scrub });
    }
}

impl Scrub {
    /// How long the next step waits, so that clients and the period are respected.
    fn pause(&self, core: &Core, busy: bool) -> Micros {
        let steps = self.report.blocks.div_ceil(STEP_BLOCKS).max(1);
        let spread = core.timing.scrub_period.filter(|_| self.in_background);
        // Half of the period: the rest is for the times in which it may not run.
        let spread = spread.map_or(Micros(0), |period| Micros(period.0 / 2 / steps));
        if busy { spread.max(YIELD) } else { spread }
    }
}

impl ScrubReport {
    fn add(&mut self, found: &ScrubReport) {
        self.bad_here += found.bad_here;
        self.bad_at_peers += found.bad_at_peers;
        self.differing += found.differing;
        self.repaired += found.repaired;
        self.skipped_steps += found.skipped_steps;
    }
}

fn step_of(scrub: &mut Option<Scrub>, number: u64) -> Option<&mut Step> {
    scrub.as_mut()?.step.as_mut().filter(|step| step.number == number)
}

fn count(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|range| range.count).sum()
}

/// The parts of `ranges` outside `bad`.
fn without(ranges: &[BlockRange], bad: &[BlockRange]) -> Vec<BlockRange> {
    split(ranges, bad).into_iter().filter(|(_, is_bad)| !is_bad).map(|(range, _)| range).collect()
}
