//! Carries out the core's orders, in the order given. What is done at once is answered through the inbox, never from
//! within: the core is not entered twice.

use std::rc::Rc;

use bytes::Bytes;
use proto::BlockRange;
use proto::checksum::{BlockSums, Salt, of_lost};
use proto::peer::message::{Envelope, Message, WriteKind};
use replication::action::PayloadSlice;
use replication::event::{Event, IoId, IoResult, LinkId, OpId, PayloadId};
use replication::local_copy::ReadCheck;
use replication::{Action, Notice, Refusal};
use smallvec::SmallVec;
use tracing::{error, info, warn};

use super::actor::{Actor, Ending};
use super::cut::edge_blocks;
use super::handle::VolumeReport;
use super::inbox::Input;
use super::payloads::{self, Held};
use super::store_slot::{DiskState, Merge, PendingIo};
use crate::disk::{DiskDone, DiskError, DiskOp};

impl Actor {
    /// Carries out one order.
    pub(super) fn dispatch(&mut self, action: Action) {
        match action {
            Action::Dial { peer, on: true } => self.links.keep(peer, self.volume, &self.env, &self.inbox),
            Action::Dial { peer, on: false } => self.links.drop_peer(peer),
            Action::CloseLink { link, why } => self.links.close(link, why),
            Action::Send { link, envelope, message, payload } => self.send(link, &envelope, &message, payload),
            Action::SendDigests { link, envelope, message, of } => self.send_digests(link, &envelope, &message, of),
            Action::CompareDigests { io, range, theirs } => self.compare_digests(io, range, theirs),
            Action::SendSums { link, envelope, message, of } => self.send_sums(link, &envelope, &message, of),
            Action::CompareSums { io, range, theirs } => self.compare_sums(io, range, theirs),
            Action::ReadLocal { io, range, check } => self.start_io(PendingIo::Read(io), DiskOp::Read { range, check }),
            Action::WriteLocal { io, range, kind, fua, payload } => self.write_local(io, range, kind, fua, payload),
            Action::WriteBatchLocal { io, groups, payload } => {
                self.with_blocks(io, payload, |data, sums| DiskOp::Batch { groups, data, sums });
            }
            Action::RepairLocal { io, range, payload } => {
                self.with_blocks(io, payload, |data, sums| DiskOp::Repair { range, data, sums });
            }
            Action::ExpectLocal { io, range, payload, lost } => {
                self.with_blocks(io, payload, |_, mut sums| {
                    if lost {
                        sums.iter_mut().for_each(|sum| *sum = of_lost(*sum));
                    }
                    DiskOp::Expect { range, sums }
                });
            }
            Action::CoolExtents { io, extents, bitmaps } => {
                self.start_io(PendingIo::Write(io), DiskOp::Cool { extents, bitmaps });
            }
            Action::WriteBitmap { io, pages } => self.start_io(PendingIo::Write(io), DiskOp::Bitmap { pages }),
            Action::FlushLocal { io } => self.start_io(PendingIo::Write(io), DiskOp::Flush),
            Action::MergeEdges { io, op, range } => self.merge_edges(io, op, range),
            Action::MergeFetched { io, op, range, old } => self.merge_fetched(io, op, range, old),
            Action::PersistActivityLog { io, mut extents } => {
                extents.sort_unstable();
                extents.dedup();
                self.start_io(PendingIo::ActivityLog(io), DiskOp::Heat { extents });
            }
            Action::PersistReplicaState { io, last_in_sync, suspect } => {
                self.start_io(PendingIo::ReplicaState { io, suspect }, DiskOp::PersistState { last_in_sync, suspect });
            }
            Action::PersistFence { epoch, version } => {
                let (fences, inbox, volume) = (self.env.fences.clone(), Rc::clone(&self.inbox), self.volume);
                tokio::task::spawn_local(async move {
                    // Without an answer the fence is not durable, and the node is stopping because of it.
                    if fences.raise(volume, epoch, version).await.is_ok() {
                        inbox.push(Input::Fact(Event::FencePersisted { epoch, version }));
                    }
                });
            }
            Action::Propose(command) => self.env.raft.propose(command),
            Action::Release(payload) => {
                self.payloads.release(payload);
            }
            Action::Complete { op, data } => self.complete(op, data),
            Action::Refuse { op, why } => self.refuse(op, why),
            Action::DetachDisk { failed } => self.detach_disk(failed),
            Action::RecordScrub { ended, under_way } => {
                if let Some(store) = self.shared.store.borrow().as_ref() {
                    store.record_scrubs(ended, under_way);
                }
            }
            Action::Notify(notice) => self.notify(notice),
            Action::Stopped => self.ending = Ending::Stopped,
        }
    }

    fn send(&mut self, link: LinkId, envelope: &Envelope, message: &Message, payload: Option<PayloadSlice>) {
        let Some(sender) = self.links.sender(link) else { return };
        let Some(slice) = payload else { return sender.send(envelope, message, SmallVec::new(), &[]) };
        match self.payloads.slice(slice) {
            Some((data, sums)) => sender.send(envelope, message, SmallVec::from_elem(data, 1), sums),
            None => {
                error!(volume = %self.volume, ?slice, "a payload to be sent is not held; closing the link");
                sender.close("internal error: payload missing");
            }
        }
    }

    fn send_digests(&mut self, link: LinkId, envelope: &Envelope, message: &Message, of: PayloadId) {
        let Some(sender) = self.links.sender(link) else { return };
        match self.payloads.whole(of) {
            Some(data) => sender.send(envelope, message, SmallVec::from_elem(payloads::digests(data), 1), &[]),
            None => {
                error!(volume = %self.volume, ?of, "data to be digested is not held; closing the link");
                sender.close("internal error: payload missing");
            }
        }
    }

    fn compare_digests(&mut self, io: IoId, range: BlockRange, theirs: Option<PayloadId>) {
        let held = theirs.map(|theirs| self.payloads.whole(theirs));
        let differing = match (self.payloads.whole(PayloadId::Io(io)), held) {
            (Some(ours), Some(Some(theirs))) => payloads::differing(range, ours, theirs),
            (Some(ours), None) => payloads::not_zeros(range, ours),
            _ => vec![range],
        };
        self.inbox.push(Input::Fact(Event::DigestsCompared { io, differing }));
    }

    fn send_sums(&mut self, link: LinkId, envelope: &Envelope, message: &Message, of: IoId) {
        let Some(sender) = self.links.sender(link) else { return };
        match self.payloads.blocks(PayloadId::Io(of)) {
            Some((_, sums)) => sender.send(envelope, message, SmallVec::from_elem(payloads::sum_bytes(sums), 1), &[]),
            None => {
                error!(volume = %self.volume, ?of, "checksums to be sent are not held; closing the link");
                sender.close("internal error: checksums missing");
            }
        }
    }

    fn compare_sums(&mut self, io: IoId, range: BlockRange, theirs: PayloadId) {
        let differing = match (self.payloads.blocks(PayloadId::Io(io)), self.payloads.whole(theirs)) {
            (Some((_, ours)), Some(theirs)) => payloads::differing_sums(range, ours, theirs),
            _ => vec![range],
        };
        self.inbox.push(Input::Fact(Event::SumsCompared { io, differing }));
    }

    fn write_local(&mut self, io: IoId, range: BlockRange, kind: WriteKind, fua: bool, payload: Option<PayloadId>) {
        match (kind, payload) {
            (WriteKind::Data, payload) => {
                let id = payload.unwrap_or(PayloadId::Io(io));
                self.with_blocks(io, id, |data, sums| DiskOp::Write { range, kind, fua, data: Some(data), sums });
            }
            (WriteKind::Zeroes | WriteKind::Discard, _) => {
                let op = DiskOp::Write { range, kind, fua, data: None, sums: BlockSums::new() };
                self.start_io(PendingIo::Write(io), op);
            }
        }
    }

    /// Starts an operation with the blocks held under `id`. That the core names a payload that is not held is a defect;
    /// the operation fails then, which costs the disk and not the data.
    fn with_blocks(&mut self, io: IoId, id: PayloadId, op: impl FnOnce(Bytes, BlockSums) -> DiskOp) {
        let pending = PendingIo::Write(io);
        if let Some((data, sums)) = self.payloads.blocks(id) {
            let op = op(data.clone(), sums.clone());
            return self.start_io(pending, op);
        }
        error!(volume = %self.volume, ?id, "a payload to be written is not held");
        let tag = self.await_io(pending);
        self.inbox.push(Input::Disk(DiskDone::bare(tag, Err(DiskError::Misuse(libc::EFAULT)))));
    }

    fn merge_edges(&mut self, io: IoId, op: OpId, range: BlockRange) {
        let Some((skip, data)) = self.payloads.partial(PayloadId::Client(op)) else {
            error!(volume = %self.volume, ?op, "a partial write's bytes are not held");
            return self.inbox.push(Input::Fact(Event::EdgesMerged { io, result: IoResult::Failed }));
        };
        let edges = edge_blocks(range, skip, data.len());
        let merge = Merge { op, range, missing: edges.len(), edges: Vec::new(), failed: false, bad: Vec::new() };
        self.merges.insert(io, merge);
        let check = ReadCheck::Verify;
        for edge in edges {
            self.start_io(PendingIo::Edge { merge: io, block: edge.start }, DiskOp::Read { range: edge, check });
        }
    }

    /// One old block of a partial write is read; after the last the client's bytes go over them. With a bad one they stay
    /// as they are, to be merged when it has been repaired.
    pub(super) fn on_edge_read(
        &mut self,
        io: IoId,
        block: u64,
        result: IoResult,
        data: Option<Bytes>,
        bad: Vec<BlockRange>,
    ) {
        let Some(merge) = self.merges.get_mut(&io) else { return };
        merge.missing -= 1;
        match data {
            _ if !bad.is_empty() => merge.bad.extend(bad),
            Some(data) if result == IoResult::Ok && data.len() as u64 == proto::BLOCK_BYTES => {
                merge.edges.push((block, data));
            }
            _ => merge.failed = true,
        }
        if merge.missing > 0 {
            return;
        }
        let Some(mut merge) = self.merges.remove(&io) else { return };
        let id = PayloadId::Client(merge.op);
        let event = match self.payloads.partial(id) {
            Some((skip, data)) if !merge.failed && merge.bad.is_empty() => {
                self.hold_merged(id, merge.range, skip, &data, &merge.edges);
                Event::EdgesMerged { io, result: IoResult::Ok }
            }
            Some(_) if !merge.failed => {
                merge.bad.sort_unstable_by_key(|run| run.start);
                Event::Corrupt { io, bad: merge.bad }
            }
            _ => Event::EdgesMerged { io, result: IoResult::Failed },
        };
        self.handle(event);
    }

    /// Puts a client's bytes over old blocks that a peer has sent.
    fn merge_fetched(&mut self, io: IoId, op: OpId, range: BlockRange, old: PayloadId) {
        let id = PayloadId::Client(op);
        // Merged already, with edges that were read before the disk was lost: the range was held, so they still hold.
        let merged = self.payloads.whole(id).is_some_and(|data| data.len() as u64 == range.length_bytes());
        let result = match (self.payloads.partial(id), self.payloads.whole(old).cloned()) {
            _ if merged => IoResult::Ok,
            (Some((skip, data)), Some(old)) if old.len() as u64 == range.length_bytes() => {
                self.hold_merged(id, range, skip, &data, &[(range.start, old)]);
                IoResult::Ok
            }
            _ => {
                error!(volume = %self.volume, ?op, "a partial write's bytes, or the old ones, are not held");
                IoResult::Failed
            }
        };
        self.inbox.push(Input::Fact(Event::EdgesMerged { io, result }));
    }

    fn hold_merged(&mut self, id: PayloadId, range: BlockRange, skip: usize, data: &[u8], old: &[(u64, Bytes)]) {
        let data = payloads::merge(range, skip, data, old);
        let sums = Salt::of(self.volume).sums(range, &data);
        self.payloads.hold(id, Held::Whole { data, sums });
    }

    /// A number for a disk operation that begins.
    fn await_io(&mut self, pending: PendingIo) -> u64 {
        self.last_tag += 1;
        self.pending.insert(self.last_tag, pending);
        self.last_tag
    }

    /// Starts a disk operation; without a disk it fails.
    pub(super) fn start_io(&mut self, pending: PendingIo, op: DiskOp) {
        let tag = self.await_io(pending);
        match &*self.shared.store.borrow() {
            Some(store) => store.start(tag, op),
            None => self.inbox.push(Input::Disk(DiskDone::bare(tag, Err(DiskError::Io(libc::ENXIO))))),
        }
    }

    fn complete(&mut self, op: OpId, data: Option<PayloadId>) {
        let data = data.and_then(|id| match self.payloads.release(id) {
            Some(Held::Whole { data, .. }) => Some(data),
            _ => None,
        });
        if let Some(open) = self.clients.remove(&op) {
            open.end(Ok(data));
        }
    }

    fn refuse(&mut self, op: OpId, why: Refusal) {
        if why == Refusal::TooMany {
            error!(volume = %self.volume, "the core bears fewer operations than were admitted");
        }
        if let Some(open) = self.clients.remove(&op) {
            open.end(Err(why));
        }
    }

    pub(super) fn detach_disk(&mut self, failed: bool) {
        let why = match failed {
            true => self.disk_error.clone().unwrap_or_else(|| "an operation took too long".into()),
            false => "detached by an operator".into(),
        };
        let Some(store) = self.shared.store.take() else { return };
        let disk_id = self.disk_id();
        warn!(volume = %self.volume, failed, "local disk detached: {why}");
        self.copy_failed |= failed;
        self.disk = DiskState::Closing { disk_id, failed, why: why.clone() };
        let report = VolumeReport::DiskDetached { volume: self.volume, disk_id, failed, why };
        if let Err(lost) = self.env.reports.try_send(report) {
            error!(volume = %self.volume, "the detached disk is not recorded: {lost}");
        }
        let (inbox, generation, volume) = (Rc::clone(&self.inbox), self.generation, self.volume);
        tokio::task::spawn_local(async move {
            // The copy carries the mark itself too, if its disk still takes it: it must never be taken for whole.
            if failed && let Err(why) = store.mark_failed().await {
                warn!(%volume, "the store does not take the mark of its failure: {why}");
            }
            if let Err(why) = store.close(false).await {
                warn!(%volume, "closing the detached store: {why}");
            }
            inbox.push(Input::Closed { generation });
        });
    }

    fn notify(&mut self, notice: Notice) {
        let volume = self.volume;
        match &notice {
            Notice::Role { from, to, epoch } => info!(%volume, %epoch, "role: {from} -> {to}"),
            Notice::Peer { node, state } => info!(%volume, "peer {node}: {state}"),
            Notice::Resync { node, sent_blocks, done: true, .. } => {
                info!(%volume, sent_blocks, "peer {node}: resync done")
            }
            Notice::SwitchoverRefused { why } => warn!(%volume, "switchover refused: {why}"),
            Notice::DetachRefused { why } => warn!(%volume, "detach refused: {why}"),
            Notice::ScrubRefused { why } => warn!(%volume, "scrub refused: {why}"),
            Notice::Scrub { report, done: true } => info!(%volume, ?report, "scrub done"),
            Notice::Resync { .. } | Notice::DiskDetached { .. } | Notice::Scrub { .. } => {}
        }
        // An error says that nobody watches.
        let _ = self.env.notices.send((volume, notice));
    }
}
