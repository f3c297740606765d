//! A client's write on the primary, from admission to the last ack.

use proto::peer::message::{Message, Seq, WriteKind};
use proto::{BlockRange, NodeId};
use smallvec::{SmallVec, smallvec};

use crate::action::{Action, Refusal};
use crate::activity_log::{User, extents_of};
use crate::config::AckPolicy;
use crate::core::{Core, Purpose};
use crate::event::{Coverage, OpId, PayloadId, Request};
use crate::fetch::{Asker, Fetch, REPAIRS_MAX};
use crate::link::Awaited;
use crate::primary::{Holder, Primary};
use crate::resync::target::whole;

use super::overlap::{Class, Ranges};

/// What a write does.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Work {
    One { range: BlockRange, kind: WriteKind, fua: bool },
    Batch { groups: Vec<Vec<BlockRange>> },
}

/// How far a write is on this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Waits for its range, its edges or the activity log: nothing is touched or sent.
    Before,
    /// At the local disk and the peers.
    Local,
    /// On the local disk.
    Done,
    /// The local disk was lost before it confirmed.
    Lost,
}

/// One write.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Write {
    pub(crate) op: OpId,
    pub(crate) work: Work,
    pub(crate) ranges: Ranges,
    pub(crate) payload: Option<PayloadId>,
    coverage: Coverage,
    step: Step,
    /// Its extents are hot, and pinned by it.
    pinned: bool,
    /// Times its edges were read again after a repair.
    repairs: u32,
    /// Peers it was sent to in their present session and that have not acknowledged it.
    pub(crate) sent: SmallVec<[NodeId; 2]>,
    /// Peers that have it.
    pub(crate) acked: SmallVec<[NodeId; 2]>,
    /// The client was told.
    pub(crate) completed: bool,
}

impl Write {
    /// True once its data may have reached any disk or peer.
    pub(crate) fn is_issued(&self) -> bool {
        self.step != Step::Before
    }

    pub(crate) fn on_disk_lost(&mut self) {
        if self.step == Step::Local {
            self.step = Step::Lost;
        }
    }

    /// The message that carries it.
    fn message(&self, seq: Seq) -> Message {
        match &self.work {
            Work::One { range, kind, fua } => Message::Write { seq, range: *range, kind: *kind, fua: *fua },
            Work::Batch { groups } => Message::WriteBatch { seq, groups: groups.clone() },
        }
    }

    /// Written through by every copy that has acknowledged it.
    fn is_durable(&self) -> bool {
        matches!(self.work, Work::One { fua: true, .. })
    }

    fn blocks(&self) -> u64 {
        self.ranges.iter().map(|range| range.count).sum()
    }
}

impl Primary {
    /// Admits a write, zeroing, discard or batch.
    pub(crate) fn on_client_write(&mut self, core: &mut Core, op: OpId, request: Request) {
        let durable = core.config.as_ref().is_some_and(|config| config.ack_policy == AckPolicy::Durable);
        let durable = self.durability.on_write(self.writes.is_empty()) || durable;
        let (work, ranges, coverage, has_data): (Work, Ranges, _, _) = match request {
            Request::Write { range, kind, fua, coverage } => {
                let work = Work::One { range, kind, fua: fua || durable };
                (work, smallvec![range], coverage, kind == WriteKind::Data)
            }
            Request::WriteBatch { groups } => {
                let ranges = groups.iter().flatten().copied().collect();
                (Work::Batch { groups }, ranges, Coverage::Whole, true)
            }
            Request::Read { .. } | Request::Flush | Request::Confirm => return,
        };
        let number = self.number();
        let payload = has_data.then_some(PayloadId::Client(op));
        let write = Write {
            op,
            work,
            ranges: ranges.clone(),
            payload,
            coverage,
            step: Step::Before,
            pinned: false,
            repairs: 0,
            sent: SmallVec::new(),
            acked: SmallVec::new(),
            completed: false,
        };
        self.writes.insert(number, write);
        if self.overlap.admit(Holder::Write(number), Class::Write, ranges) {
            self.start_write(core, number);
        }
    }

    /// The write holds its ranges: merges the edges of a partial one, then goes on.
    pub(crate) fn start_write(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get(&number) else { return };
        if let (Coverage::Partial, Work::One { range, .. }) = (write.coverage, &write.work) {
            let (op, range) = (write.op, *range);
            if core.serves_locally() {
                let io = core.start_io(Purpose::Merge(number));
                core.act(Action::MergeEdges { io, op, range });
            } else {
                self.fetch(core, Fetch::edges(number, range));
            }
        } else {
            self.log_write(core, number);
        }
    }

    /// Whole blocks are at hand: makes the extents hot, then issues.
    pub(crate) fn log_write(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        write.coverage = Coverage::Whole;
        if !core.serves_locally() {
            return self.issue_write(core, number);
        }
        let Some(cold) = core.admit_extents(User::Write(number), extents_of(&write.ranges)) else {
            return self.issue_hot(core, number);
        };
        if cold.is_empty() {
            return;
        }
        // The peers log it at the same time, so that the write does not wait for one log after the other.
        for peer in self.peers.values().filter(|peer| peer.takes_writes() && peer.reads_for_us()) {
            if let Some(session) = &peer.session {
                core.send(session.link, session.id, Message::Heat { extents: cold.clone() }, None);
            }
        }
    }

    /// The write's extents are hot and pinned.
    pub(crate) fn issue_hot(&mut self, core: &mut Core, number: u64) {
        if let Some(write) = self.writes.get_mut(&number) {
            write.pinned = true;
            self.issue_write(core, number);
        }
    }

    /// Its edges are bad here.
    pub(crate) fn on_edges_corrupt(&mut self, core: &mut Core, number: u64, bad: Vec<BlockRange>) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        write.repairs += 1;
        if write.repairs > REPAIRS_MAX {
            return self.refuse_write(core, number, Refusal::Io);
        }
        self.fetch(core, Fetch::repair(Asker::Merge(number), bad));
    }

    /// A peer's copy of what it covers in part.
    pub(crate) fn on_edges_fetched(&mut self, core: &mut Core, number: u64, old: PayloadId) {
        if let Some(write) = self.writes.get(&number)
            && let Work::One { range, .. } = &write.work
        {
            let (op, range) = (write.op, *range);
            let io = core.start_io(Purpose::Merge(number));
            core.act(Action::MergeFetched { io, op, range, old });
        }
        core.release(Some(old));
    }

    /// The write has touched nothing and is not going to.
    pub(crate) fn refuse_write(&mut self, core: &mut Core, number: u64, why: Refusal) {
        let Some(write) = self.writes.remove(&number) else { return };
        core.log.forget(User::Write(number));
        core.release(write.payload);
        core.act(Action::Refuse { op: write.op, why });
        let started = self.overlap.release(Holder::Write(number));
        self.start_holders(core, &started);
    }

    /// Local disk and peers, in parallel.
    pub(crate) fn issue_write(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        let payload = write.payload;
        if core.serves_locally() {
            write.step = Step::Local;
            let io = core.start_io(Purpose::Write(number));
            core.act(match &write.work {
                Work::One { range, kind, fua } => {
                    Action::WriteLocal { io, range: *range, kind: *kind, fua: *fua, payload }
                }
                Work::Batch { groups } => {
                    let payload = payload.unwrap_or(PayloadId::Client(write.op));
                    Action::WriteBatchLocal { io, groups: groups.clone(), payload }
                }
            });
        } else {
            write.step = Step::Lost;
        }
        for (node, peer) in &mut self.peers {
            if peer.takes_writes() {
                send_write(core, *node, peer, number, write);
            } else if peer.sync.tracks_dirty()
                && let Some(tracker) = core.trackers.get_mut(*node)
            {
                write.ranges.iter().for_each(|range| tracker.set(*range));
            }
        }
    }

    /// The peer's session stands (again): sends what it has not acknowledged.
    pub(crate) fn resend_writes(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for (number, write) in self.writes.iter_mut() {
            if write.is_issued() && !write.acked.contains(&node) {
                send_write(core, node, peer, *number, write);
            }
        }
    }

    /// The local half is done.
    pub(crate) fn on_local_write_done(&mut self, core: &mut Core, number: u64) {
        if let Some(write) = self.writes.get_mut(&number) {
            write.step = Step::Done;
            self.complete_write_if_acked(core, number);
        }
    }

    /// A peer has it.
    pub(crate) fn on_write_acked(&mut self, core: &mut Core, node: NodeId, number: u64) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        write.sent.retain(|other| *other != node);
        if !write.acked.contains(&node) {
            write.acked.push(node);
        }
        if let Some(tracker) = core.trackers.get_mut(node) {
            write.ranges.iter().for_each(|range| tracker.acked(*range));
        }
        self.complete_write_if_acked(core, number);
    }

    /// Acknowledges the write to its client once every required copy has it (I1), and lets it go once no copy is on its
    /// way to it.
    pub(crate) fn complete_write_if_acked(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get(&number) else { return };
        let local = match write.step {
            Step::Before | Step::Local => false,
            Step::Done => true,
            Step::Lost => Self::local_is_optional(core),
        };
        let complete = write.completed || (local && self.required().all(|node| write.acked.contains(&node)));
        let Some(write) = self.writes.get_mut(&number) else { return };
        if !complete {
            return;
        }
        let first = !std::mem::replace(&mut write.completed, true);
        if first {
            self.durability.on_written(write.is_durable());
            core.act(Action::Complete { op: write.op, data: None });
        }
        let holder = Holder::Write(number);
        let started = if write.sent.is_empty() {
            core.release(write.payload);
            if write.pinned {
                core.log.release(&extents_of(&write.ranges), Seq(0), core.active);
            }
            self.writes.remove(&number);
            self.overlap.release(holder)
        } else if first {
            self.overlap.become_tail(holder)
        } else {
            return;
        };
        self.start_holders(core, &started);
    }

    /// Operations whose ranges became free.
    pub(crate) fn start_holders(&mut self, core: &mut Core, started: &[Holder]) {
        for holder in started {
            match *holder {
                Holder::Write(number) => self.start_write(core, number),
                Holder::Read(number) => self.start_read(core, number),
                Holder::Chunk(node, number) => self.start_chunk(core, node, number),
                Holder::Scrub(number) => self.read_scrub_step(core, number),
            }
        }
    }

    /// The disk was lost: writes that have touched nothing and reads go back to the queue, in order of arrival.
    pub(crate) fn requeue_unstarted(&mut self, core: &mut Core) {
        let mut requests: Vec<(u64, OpId, Request)> = Vec::new();
        let unstarted: Vec<u64> =
            self.writes.iter().filter(|(_, write)| !write.is_issued()).map(|(number, _)| *number).collect();
        for number in unstarted {
            let Some(write) = self.writes.remove(&number) else { continue };
            core.log.forget(User::Write(number));
            self.forget_fetch(core, Asker::Merge(number));
            self.overlap.release(Holder::Write(number));
            let request = match write.work {
                Work::One { range, kind, fua } => Request::Write { range, kind, fua, coverage: write.coverage },
                Work::Batch { groups } => Request::WriteBatch { groups },
            };
            requests.push((number, write.op, request));
        }
        for (number, read) in self.reads.drain() {
            self.overlap.release(Holder::Read(number));
            core.release(read.loaded());
            self.forget_fetch(core, Asker::Read(number));
            requests.push((number, read.op, read.request()));
        }
        requests.sort_by_key(|(number, ..)| *number);
        for (_, op, request) in requests.into_iter().rev() {
            self.queue.push_front((op, request));
        }
    }
}

/// Puts a write on a peer's stream.
fn send_write(core: &mut Core, node: NodeId, peer: &mut crate::link::Peer, number: u64, write: &mut Write) {
    let Some(session) = peer.session.as_mut() else { return };
    let seq = session.await_ack(Awaited::Write(number), core.active);
    let payload = write.payload.map(|id| whole(id, write.blocks()));
    core.send(session.link, session.id, write.message(seq), payload);
    if !write.sent.contains(&node) {
        write.sent.push(node);
    }
}
