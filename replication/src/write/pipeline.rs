//! A client's write on the primary, from admission to the last ack.

use proto::peer::message::{Message, Seq, WriteKind};
use proto::{BlockRange, NodeId};
use smallvec::{SmallVec, smallvec};

use crate::action::Action;
use crate::config::AckPolicy;
use crate::core::{Core, Purpose};
use crate::event::{Coverage, OpId, PayloadId, Request};
use crate::link::Awaited;
use crate::primary::{Holder, Primary};
use crate::resync::target::whole;

use super::overlap::{Class, Ranges};

/// What a write does.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    One { range: BlockRange, kind: WriteKind, fua: bool },
    Batch { groups: Vec<Vec<BlockRange>> },
}

/// How far a write is on this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) op: OpId,
    pub(crate) work: Work,
    pub(crate) ranges: Ranges,
    pub(crate) payload: Option<PayloadId>,
    coverage: Coverage,
    step: Step,
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

    fn blocks(&self) -> u64 {
        self.ranges.iter().map(|range| range.count).sum()
    }
}

impl Primary {
    /// Admits a write, zeroing, discard or batch.
    pub(crate) fn on_client_write(&mut self, core: &mut Core, op: OpId, request: Request) {
        let durable = core.config.as_ref().is_some_and(|config| config.ack_policy == AckPolicy::Durable);
        let (work, ranges, coverage, has_data): (Work, Ranges, _, _) = match request {
            Request::Write { range, kind, fua, coverage } => {
                let work = Work::One { range, kind, fua: fua || durable };
                (work, smallvec![range], coverage, kind == WriteKind::Data)
            }
            Request::WriteBatch { groups } => {
                let ranges = groups.iter().flatten().copied().collect();
                (Work::Batch { groups }, ranges, Coverage::Whole, true)
            }
            Request::Read { .. } | Request::Flush => return,
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
            let io = core.start_io(Purpose::Merge(number));
            core.act(Action::MergeEdges { io, op, range });
        } else {
            self.log_write(core, number);
        }
    }

    /// Whole blocks are at hand: makes the extents hot, then issues.
    pub(crate) fn log_write(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        write.coverage = Coverage::Whole;
        let extents = self.activity_log.cold_extents(&write.ranges);
        if extents.is_empty() {
            self.issue_write(core, number);
        } else {
            let io = core.start_io(Purpose::Log(number));
            core.act(Action::PersistActivityLog { io, extents });
        }
    }

    /// Local disk and peers, in parallel.
    pub(crate) fn issue_write(&mut self, core: &mut Core, number: u64) {
        let Some(write) = self.writes.get_mut(&number) else { return };
        let payload = write.payload;
        if core.disk_report().is_some() {
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
            } else if peer.sync.tracks_dirty() {
                write.ranges.iter().for_each(|range| peer.dirty.set(*range));
            }
        }
    }

    /// The peer's session stands (again): sends what it has not acknowledged.
    pub(crate) fn resend_writes(&mut self, core: &mut Core, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for (number, write) in &mut self.writes {
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
        let (Some(write), Some(peer)) = (self.writes.get_mut(&number), self.peers.get_mut(&node)) else { return };
        write.sent.retain(|other| *other != node);
        if !write.acked.contains(&node) {
            write.acked.push(node);
        }
        if !peer.sync.is_member() {
            for range in &write.ranges {
                peer.dirty.clear(*range);
                peer.unflushed.set(*range);
            }
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
            core.act(Action::Complete { op: write.op, data: None });
        }
        let holder = Holder::Write(number);
        let started = if write.sent.is_empty() {
            core.release(write.payload);
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
            self.overlap.release(Holder::Write(number));
            let request = match write.work {
                Work::One { range, kind, fua } => Request::Write { range, kind, fua, coverage: write.coverage },
                Work::Batch { groups } => Request::WriteBatch { groups },
            };
            requests.push((number, write.op, request));
        }
        for (number, read) in std::mem::take(&mut self.reads) {
            self.overlap.release(Holder::Read(number));
            core.release(read.loaded());
            requests.push((number, read.op, Request::Read { range: read.range }));
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
