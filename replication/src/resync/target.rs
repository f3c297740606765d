//! The receiving side of a session's ordered stream: writes, batches, resync data, flushes, digest requests.
//!
//! Overlapping operations run in stream order. What has begun when the session ends only has to end; what has not is
//! dropped.

use proto::peer::message::{Message, Seq, Worth, WriteKind};
use proto::{BlockRange, SessionId};
use smallvec::smallvec;

use crate::action::{Action, PayloadSlice};
use crate::activity_log::{User, extents_of};
use crate::core::{Core, Purpose};
use crate::event::{IoId, IoResult, LinkId, PayloadId};
use crate::local_copy::ReadCheck;
use crate::window::Window;
use crate::write::overlap::{Class, Overlap, Ranges};

/// Operations of one session in flight, at most; the primary's own bounds are lower.
const STREAM_OPERATIONS_MAX: usize = 8192;

/// What an operation of the stream does.
#[derive(Clone, Debug, Hash)]
enum Work {
    Write {
        range: BlockRange,
        kind: WriteKind,
        fua: bool,
    },
    Batch {
        groups: Vec<Vec<BlockRange>>,
    },
    /// The source's blocks are bad: only the sums that they should have are taken over. `lost`: this copy's are old.
    Expect {
        range: BlockRange,
        lost: bool,
    },
    /// `resum`: blocks of it were found bad, so the checksums are taken from what it holds.
    Digest {
        range: BlockRange,
        resum: bool,
    },
    Read {
        range: BlockRange,
        sums: bool,
    },
}

#[derive(Clone, Debug, Hash)]
struct Operation {
    work: Work,
    payload: Option<PayloadId>,
    /// Its extents are hot, and pinned by it.
    pinned: bool,
}

impl Operation {
    fn ranges(&self) -> Ranges {
        match &self.work {
            Work::Write { range, .. }
            | Work::Expect { range, .. }
            | Work::Digest { range, .. }
            | Work::Read { range, .. } => {
                smallvec![*range]
            }
            Work::Batch { groups } => groups.iter().flatten().copied().collect(),
        }
    }
}

/// See the module's header.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Stream {
    overlap: Overlap<Seq>,
    operations: Window<Seq, Operation>,
    flushes: usize,
}

impl Stream {
    /// True when nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.operations.is_empty() && self.flushes == 0
    }

    /// A message of the stream; anything else is dropped.
    pub(crate) fn on_message(
        &mut self,
        core: &mut Core,
        via: (LinkId, SessionId),
        message: Message,
        payload: Option<PayloadId>,
    ) {
        let (seq, work, class) = match message {
            Message::Write { seq, range, kind, fua } => (seq, Work::Write { range, kind, fua }, Class::Write),
            Message::ResyncData { seq, range, kind, worth: Worth::Sound } => {
                (seq, Work::Write { range, kind, fua: false }, Class::Write)
            }
            Message::ResyncData { seq, range, worth, .. } => {
                (seq, Work::Expect { range, lost: worth == Worth::Lost }, Class::Write)
            }
            Message::WriteBatch { seq, groups } => (seq, Work::Batch { groups }, Class::Write),
            Message::DigestRequest { seq, range } => (seq, Work::Digest { range, resum: false }, Class::Read),
            Message::ReadRequest { seq, range } => (seq, Work::Read { range, sums: false }, Class::Read),
            Message::SumsRequest { seq, range } => (seq, Work::Read { range, sums: true }, Class::Read),
            Message::Heat { extents } => {
                core.release(payload);
                return heat_ahead(core, extents);
            }
            Message::Flush { seq } => {
                core.release(payload);
                if self.flushes >= STREAM_OPERATIONS_MAX {
                    return core.act(Action::CloseLink { link: via.0, why: "too many flushes are in flight" });
                }
                self.flushes += 1;
                let io = core.start_io(Purpose::StreamFlush(seq));
                core.act(Action::FlushLocal { io });
                return;
            }
            _ => return core.release(payload),
        };
        let operation = Operation { work, payload, pinned: false };
        let ranges = operation.ranges();
        let blocks = core.blocks();
        let inside =
            ranges.iter().all(|range| range.count > 0 && range.start < blocks && range.count <= blocks - range.start);
        if !inside || self.operations.len() >= STREAM_OPERATIONS_MAX || self.operations.contains_key(&seq) {
            core.release(payload);
            core.act(Action::CloseLink { link: via.0, why: "a message of the stream is out of bounds" });
            return;
        }
        self.operations.insert(seq, operation);
        if self.overlap.admit(seq, class, ranges) {
            self.start(core, seq);
        }
    }

    /// The operation holds its ranges. Data is touched, or checksums taken from it, only in extents that are hot.
    fn start(&mut self, core: &mut Core, seq: Seq) {
        let Some(operation) = self.operations.get(&seq) else { return };
        // What is only read stays cold, and its space unreserved: a thin copy is compared without growing.
        if matches!(operation.work, Work::Read { .. } | Work::Digest { resum: false, .. }) {
            return self.issue(core, seq);
        }
        let user = User::Stream(core.generation, seq);
        if core.admit_extents(user, extents_of(&operation.ranges())).is_none() {
            self.issue_hot(core, seq);
        }
    }

    /// The operation's extents are hot and pinned.
    pub(crate) fn issue_hot(&mut self, core: &mut Core, seq: Seq) {
        let Some(operation) = self.operations.get_mut(&seq) else { return };
        operation.pinned = true;
        if matches!(operation.work, Work::Write { .. } | Work::Batch { .. } | Work::Expect { .. }) {
            let ranges = operation.ranges();
            // As a member this copy knows what others lack, should its node become primary.
            core.trackers.iter_mut().for_each(|(_, tracker)| ranges.iter().for_each(|range| tracker.set(*range)));
        }
        self.issue(core, seq);
    }

    fn issue(&mut self, core: &mut Core, seq: Seq) {
        let Some(operation) = self.operations.get(&seq) else { return };
        match &operation.work {
            Work::Write { range, kind, fua } => {
                let (range, kind, fua, payload) = (*range, *kind, *fua, operation.payload);
                let io = core.start_io(Purpose::Stream(seq));
                core.act(Action::WriteLocal { io, range, kind, fua, payload });
            }
            Work::Batch { groups } => {
                let groups = groups.clone();
                let payload = operation.payload.unwrap_or(PayloadId::Frame(0));
                let io = core.start_io(Purpose::Stream(seq));
                core.act(Action::WriteBatchLocal { io, groups, payload });
            }
            Work::Expect { range, lost } => {
                let (range, lost, payload) = (*range, *lost, operation.payload.unwrap_or(PayloadId::Frame(0)));
                let io = core.start_io(Purpose::Stream(seq));
                core.act(Action::ExpectLocal { io, range, payload, lost });
            }
            Work::Digest { range, resum } => {
                let (range, resum) = (*range, *resum);
                let io = core.start_io(Purpose::StreamDigest(seq, range));
                // Where a copy out of sync differs it is overwritten: what it holds now is what its sums must say.
                let check = if resum && !core.is_member() { ReadCheck::Resum } else { ReadCheck::Verify };
                core.act(Action::ReadLocal { io, range, check });
            }
            Work::Read { range, .. } => {
                let range = *range;
                let io = core.start_io(Purpose::StreamRead(seq, range));
                core.act(Action::ReadLocal { io, range, check: ReadCheck::Verify });
            }
        }
    }

    /// A local operation of this session ended well.
    pub(crate) fn on_done(&mut self, core: &mut Core, via: (LinkId, SessionId), io: IoId, purpose: &Purpose) {
        let (link, session) = via;
        match *purpose {
            Purpose::StreamFlush(seq) => {
                self.flushes -= 1;
                core.send(link, session, Message::Ack { seq }, None);
            }
            Purpose::Stream(seq) => {
                core.send(link, session, Message::Ack { seq }, None);
                self.finish(core, seq);
            }
            Purpose::StreamRead(seq, range) => {
                let sums =
                    matches!(self.operations.get(&seq), Some(Operation { work: Work::Read { sums: true, .. }, .. }));
                if sums {
                    let envelope = core.envelope(session);
                    let message = Message::Sums { seq, range };
                    core.act(Action::SendSums { link, envelope, message, of: io });
                } else {
                    let payload = Some(whole(PayloadId::Io(io), range.count));
                    core.send(link, session, Message::ReadReply { seq, range }, payload);
                }
                core.release(Some(PayloadId::Io(io)));
                self.finish(core, seq);
            }
            Purpose::StreamDigest(seq, range) => {
                let envelope = core.envelope(session);
                let message = Message::Digest { seq, range };
                core.act(Action::SendDigests { link, envelope, message, of: PayloadId::Io(io) });
                core.release(Some(PayloadId::Io(io)));
                self.finish(core, seq);
            }
            _ => {}
        }
    }

    fn finish(&mut self, core: &mut Core, seq: Seq) {
        if let Some(operation) = self.operations.remove(&seq) {
            core.release(operation.payload);
            if operation.pinned {
                core.log.release(&extents_of(&operation.ranges()), seq, core.active);
            }
        }
        for next in self.overlap.release(seq) {
            self.start(core, next);
        }
    }

    /// A read for the primary found blocks that are bad here.
    pub(crate) fn on_corrupt(
        &mut self,
        core: &mut Core,
        (link, session): (LinkId, SessionId),
        (io, purpose): (IoId, &Purpose),
        bad: Vec<BlockRange>,
    ) {
        match *purpose {
            Purpose::StreamRead(seq, _) => {
                core.release(Some(PayloadId::Io(io)));
                core.send(link, session, Message::ReadFailed { seq, bad }, None);
                self.finish(core, seq);
            }
            Purpose::StreamDigest(seq, _) if !core.is_member() => {
                core.release(Some(PayloadId::Io(io)));
                if let Some(Operation { work: Work::Digest { resum, .. }, .. }) = self.operations.get_mut(&seq) {
                    *resum = true;
                }
                self.start(core, seq);
            }
            Purpose::StreamDigest(..) => {
                core.release(Some(PayloadId::Io(io)));
                core.act(Action::CloseLink { link, why: "blocks of a member are bad, and are not to be compared" });
            }
            _ => {}
        }
    }

    /// The session ended: frees the payloads (the shell keeps those that a running operation uses).
    pub(crate) fn abandon(mut self, core: &mut Core) {
        for (_, operation) in self.operations.drain() {
            core.release(operation.payload);
        }
    }
}

/// The primary is about to send writes to these extents: they are logged while it logs them too.
fn heat_ahead(core: &mut Core, extents: Vec<u64>) {
    let end = core.blocks().div_ceil(proto::EXTENT_BLOCKS);
    let wanted: std::collections::BTreeSet<u64> = extents.into_iter().filter(|extent| *extent < end).collect();
    let wanted: Vec<u64> = wanted.into_iter().collect();
    let cold = core.log.cold(&wanted);
    core.heat(cold);
}

/// The payload of a read that nobody awaits any more is freed; everything else needs nothing.
pub(crate) fn discard_result(core: &mut Core, io: IoId, purpose: &Purpose, result: IoResult) {
    let read = matches!(
        purpose,
        Purpose::Read(_) | Purpose::Scrub(_) | Purpose::Chunk(..) | Purpose::StreamDigest(..) | Purpose::StreamRead(..)
    );
    if read && result == IoResult::Ok {
        core.release(Some(PayloadId::Io(io)));
    }
}

/// A whole payload as a slice.
pub(crate) fn whole(id: PayloadId, blocks: u64) -> PayloadSlice {
    PayloadSlice { id, first: 0, blocks }
}
