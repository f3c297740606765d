//! Carries out the core's orders, in the order given. What is done at once is answered through the inbox, never from
//! within: the core is not entered twice.

use std::rc::Rc;

use bytes::Bytes;
use proto::BlockRange;
use proto::peer::message::{Envelope, Message, WriteKind};
use replication::action::PayloadSlice;
use replication::event::{Event, IoId, IoResult, LinkId, OpId, PayloadId};
use replication::{Action, Notice, Refusal};
use smallvec::SmallVec;
use tracing::{error, info, warn};

use super::actor::{Actor, Ending};
use super::cut::edge_blocks;
use super::handle::VolumeReport;
use super::inbox::Input;
use super::payloads::{self, Held};
use super::store_slot::{DiskState, Merge, PendingIo};
use crate::disk::{DiskDone, DiskOp};

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
            Action::ReadLocal { io, range } => self.start_io(PendingIo::Read(io), DiskOp::Read { range }),
            Action::WriteLocal { io, range, kind, fua, payload } => self.write_local(io, range, kind, fua, payload),
            Action::WriteBatchLocal { io, groups, payload } => match self.payloads.whole(payload).cloned() {
                Some(data) => self.start_io(PendingIo::Write(io), DiskOp::Batch { groups, data }),
                None => self.fail_missing(PendingIo::Write(io), payload),
            },
            Action::FlushLocal { io } => self.start_io(PendingIo::Write(io), DiskOp::Flush),
            Action::MergeEdges { io, op, range } => self.merge_edges(io, op, range),
            Action::PersistActivityLog { io, extents } => {
                self.start_io(PendingIo::ActivityLog(io), DiskOp::ActivityLog { extents });
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
            Action::Notify(notice) => self.notify(notice),
            Action::Stopped => self.ending = Ending::Stopped,
        }
    }

    fn send(&mut self, link: LinkId, envelope: &Envelope, message: &Message, payload: Option<PayloadSlice>) {
        let Some(sender) = self.links.sender(link) else { return };
        let mut parts: SmallVec<[Bytes; 1]> = SmallVec::new();
        if let Some(slice) = payload {
            match self.payloads.slice(slice) {
                Some(bytes) => parts.push(bytes),
                None => {
                    error!(volume = %self.volume, ?slice, "a payload to be sent is not held; closing the link");
                    return sender.close("internal error: payload missing");
                }
            }
        }
        sender.send(envelope, message, parts);
    }

    fn send_digests(&mut self, link: LinkId, envelope: &Envelope, message: &Message, of: PayloadId) {
        let Some(sender) = self.links.sender(link) else { return };
        match self.payloads.whole(of) {
            Some(data) => sender.send(envelope, message, SmallVec::from_elem(payloads::digests(data), 1)),
            None => {
                error!(volume = %self.volume, ?of, "data to be digested is not held; closing the link");
                sender.close("internal error: payload missing");
            }
        }
    }

    fn compare_digests(&mut self, io: IoId, range: BlockRange, theirs: PayloadId) {
        let differing = match (self.payloads.whole(PayloadId::Io(io)), self.payloads.whole(theirs)) {
            (Some(ours), Some(theirs)) => payloads::differing(range, ours, theirs),
            _ => vec![range],
        };
        self.inbox.push(Input::Fact(Event::DigestsCompared { io, differing }));
    }

    fn write_local(&mut self, io: IoId, range: BlockRange, kind: WriteKind, fua: bool, payload: Option<PayloadId>) {
        let data = match (kind, payload) {
            (WriteKind::Data, Some(id)) => match self.payloads.whole(id) {
                Some(data) if data.len() as u64 == range.length_bytes() => Some(data.clone()),
                _ => return self.fail_missing(PendingIo::Write(io), id),
            },
            (WriteKind::Data, None) => return self.fail_missing(PendingIo::Write(io), PayloadId::Io(io)),
            _ => None,
        };
        self.start_io(PendingIo::Write(io), DiskOp::Write { range, kind, fua, data });
    }

    fn merge_edges(&mut self, io: IoId, op: OpId, range: BlockRange) {
        let Some((skip, data)) = self.payloads.partial(PayloadId::Client(op)) else {
            error!(volume = %self.volume, ?op, "a partial write's bytes are not held");
            return self.inbox.push(Input::Fact(Event::EdgesMerged { io, result: IoResult::Failed }));
        };
        let edges = edge_blocks(range, skip, data.len());
        let merge = Merge { op, range, missing: edges.len(), edges: Vec::new(), failed: false };
        self.merges.insert(io, merge);
        for edge in edges {
            self.start_io(PendingIo::Edge { merge: io, block: edge.start }, DiskOp::Read { range: edge });
        }
    }

    /// One old block of a partial write is read; after the last the client's bytes go over them.
    pub(super) fn on_edge_read(&mut self, io: IoId, block: u64, result: IoResult, data: Option<Bytes>) {
        let Some(merge) = self.merges.get_mut(&io) else { return };
        merge.missing -= 1;
        match data {
            Some(data) if result == IoResult::Ok && data.len() as u64 == proto::BLOCK_BYTES => {
                merge.edges.push((block, data))
            }
            _ => merge.failed = true,
        }
        if merge.missing > 0 {
            return;
        }
        let Some(merge) = self.merges.remove(&io) else { return };
        let id = PayloadId::Client(merge.op);
        let result = match self.payloads.partial(id) {
            Some((skip, data)) if !merge.failed => {
                let merged = payloads::merge(merge.range, skip, &data, &merge.edges);
                self.payloads.hold(id, Held::Whole(merged));
                IoResult::Ok
            }
            _ => IoResult::Failed,
        };
        self.handle(Event::EdgesMerged { io, result });
    }

    /// Starts a disk operation; without a disk, or outside it, it fails.
    pub(super) fn start_io(&mut self, pending: PendingIo, op: DiskOp) {
        let inside = match &op {
            DiskOp::Read { range } | DiskOp::Write { range, .. } => self.is_inside(*range),
            DiskOp::Batch { groups, .. } => groups.iter().flatten().all(|range| self.is_inside(*range)),
            _ => true,
        };
        let tag = self.pending.insert(pending) as u64;
        match &*self.shared.store.borrow() {
            Some(store) if inside => store.start(tag, op),
            _ => self.inbox.push(Input::Disk(DiskDone { tag, result: Err(crate::disk::DiskError::Io(libc::ENXIO)) })),
        }
    }

    /// The core names a payload that is not held: a defect. The operation fails, which costs the disk and not the data.
    fn fail_missing(&mut self, pending: PendingIo, id: PayloadId) {
        error!(volume = %self.volume, ?id, "a payload to be written is not held");
        let tag = self.pending.insert(pending) as u64;
        self.inbox.push(Input::Disk(DiskDone { tag, result: Err(crate::disk::DiskError::Io(libc::EFAULT)) }));
    }

    fn complete(&mut self, op: OpId, data: Option<IoId>) {
        let data = data.and_then(|io| match self.payloads.release(PayloadId::Io(io)) {
            Some(Held::Whole(bytes)) => Some(bytes),
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
            Notice::Resync { .. } | Notice::DiskDetached { .. } => {}
        }
        // An error says that nobody watches.
        let _ = self.env.notices.send((volume, notice));
    }
}
