//! Feeds a core and carries out what it orders.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use proto::BlockRange;
use proto::peer::message::WriteKind;
use replication::config::{Command, CommandBody};
use replication::{Action, Event, IoId, IoResult, PayloadId};

use super::network::Item;
use super::state::{OpKind, Pending, State};
use super::store::{BitmapPage, Inflight, PLACES, Values, Work, covered};

impl State {
    /// Gives one fact to the core of box `node`, and everything that follows at once.
    pub fn feed(&mut self, node: usize, event: Event) {
        let mut events = VecDeque::from([event]);
        let now = self.now();
        while let Some(event) = events.pop_front() {
            if self.broken.is_some() {
                return;
            }
            let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() else { return };
            let mut actions = Vec::new();
            let handled = catch_unwind(AssertUnwindSafe(|| worker.replica.handle(now, event, &mut actions)));
            if let Err(panic) = handled {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                return self.violate("the core's own assertions hold", text.unwrap_or_default());
            }
            for action in actions {
                self.perform(node, action, &mut events);
            }
        }
    }

    fn perform(&mut self, node: usize, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Dial { on, .. } => self.set_dial(node, on, events),
            Action::CloseLink { link, .. } => {
                if Arc::make_mut(&mut self.net).close(node, link, true, false) {
                    events.push_back(Event::LinkDown { link });
                }
            }
            Action::Send { link, envelope, message, payload } => {
                let payload = payload.map(|slice| self.payload(node, slice.id));
                Arc::make_mut(&mut self.net).send(node, link, Item::Frame { envelope, message, payload });
            }
            Action::SendDigests { link, envelope, message, of } => {
                let payload = Some(self.payload(node, of));
                Arc::make_mut(&mut self.net).send(node, link, Item::Frame { envelope, message, payload });
            }
            Action::SendSums { link, envelope, message, of } => {
                let payload = Some(self.payload(node, PayloadId::Io(of)));
                Arc::make_mut(&mut self.net).send(node, link, Item::Frame { envelope, message, payload });
            }
            Action::CompareDigests { io, range, theirs } => {
                let differing = match theirs {
                    Some(theirs) => self.differing(node, io, range, theirs),
                    None => self.not_zeros(node, io, range),
                };
                events.push_back(Event::DigestsCompared { io, differing });
            }
            Action::CompareSums { io, range, theirs } => {
                let differing = self.differing(node, io, range, theirs);
                events.push_back(Event::SumsCompared { io, differing });
            }
            Action::ReadLocal { io, .. } => {
                let values = self.boxes[node].store.values();
                self.submit(node, io, Work::Read(values));
            }
            Action::WriteLocal { io, range, kind, payload, .. } => {
                let data = payload.filter(|_| kind == WriteKind::Data).map(|id| self.payload(node, id));
                let mut values = [None; 2];
                covered(range).for_each(|block| values[block] = Some(data.map_or(0, |data| data[block])));
                let epoch = self.raft.applied(node).epoch;
                let store = &mut Arc::make_mut(&mut self.boxes[node]).store;
                store.begun = store.begun.max(epoch);
                self.submit(node, io, Work::Write { values, epoch });
            }
            Action::FlushLocal { io } => {
                let covered = self.boxes[node].store.values();
                self.submit(node, io, Work::Flush(covered));
            }
            Action::PersistActivityLog { io, extents } => self.submit(node, io, Work::Heat(extents)),
            Action::CoolExtents { io, extents, bitmaps } => {
                let stored = self.boxes[node].store.values();
                let pages = bitmaps.into_iter().filter_map(|(place, bytes)| BitmapPage::new(place, bytes)).collect();
                self.submit(node, io, Work::Cool(stored, extents, pages));
            }
            Action::WriteBitmap { io, pages } => {
                let pages = pages.into_iter().filter_map(|(place, bytes)| BitmapPage::new(place, bytes)).collect();
                self.submit(node, io, Work::Bitmap(pages));
            }
            Action::PersistReplicaState { io, last_in_sync, suspect } => {
                self.submit(node, io, Work::State(last_in_sync, suspect));
            }
            Action::PersistFence { epoch, version } => {
                if (epoch, version) < self.boxes[node].store.fence {
                    self.violate("I4: fences only grow", format!("box {node} sets e{epoch} v{version}"));
                }
                self.submit(node, IoId(0), Work::Fence(epoch, version));
            }
            Action::Propose(command) => self.propose(node, command),
            Action::Release(PayloadId::Io(io)) => {
                if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
                    worker.loaded.retain(|(loaded, _)| *loaded != io);
                }
            }
            Action::Release(_) | Action::Notify(_) | Action::RecordScrub { .. } => {}
            Action::Complete { op, data } => self.completed(node, op, data),
            Action::Refuse { op, .. } => self.ended_without_effect_known(op.0 as usize - 1),
            Action::RepairLocal { .. }
            | Action::ExpectLocal { .. }
            | Action::WriteBatchLocal { .. }
            | Action::MergeEdges { .. }
            | Action::MergeFetched { .. }
            | Action::DetachDisk { .. }
            | Action::Stopped => self.violate("the model knows every order", format!("box {node}: {action:?}")),
        }
    }

    fn set_dial(&mut self, node: usize, on: bool, events: &mut VecDeque<Event>) {
        if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
            worker.dial = on;
            worker.dial_slow = false;
        }
        let dialled = self.net.connections.iter().find(|c| c.dialer == node && c.up[0]).map(|c| c.link);
        if let (false, Some(link)) = (on, dialled)
            && Arc::make_mut(&mut self.net).close(node, link, true, false)
        {
            events.push_back(Event::LinkDown { link });
        }
    }

    fn submit(&mut self, node: usize, io: IoId, work: Work) {
        if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
            worker.inflight.push(Inflight { io, work, slow: false });
        }
    }

    /// The two values that a payload holds; where it does not cover a block, that value means nothing.
    pub fn payload(&mut self, node: usize, id: PayloadId) -> Values {
        match id {
            PayloadId::Client(op) => match self.client.ops[op.0 as usize - 1].kind {
                OpKind::Write { value, .. } => [value; 2],
                OpKind::Read { .. } | OpKind::Flush { .. } => [0; 2],
            },
            PayloadId::Frame(packed) => [packed as u8, (packed >> 8) as u8],
            PayloadId::Io(io) => {
                let loaded = self.boxes[node].worker.as_ref().map(|worker| &worker.loaded);
                let found = loaded.and_then(|loaded| loaded.iter().find(|(number, _)| *number == io));
                let Some((_, values)) = found else {
                    self.violate("payloads are held while they are used", format!("box {node}: {io:?}"));
                    return [0; 2];
                };
                *values
            }
        }
    }

    fn differing(&mut self, node: usize, io: IoId, range: BlockRange, theirs: PayloadId) -> Vec<BlockRange> {
        let (ours, theirs) = (self.payload(node, PayloadId::Io(io)), self.payload(node, theirs));
        covered(range).filter(|b| ours[*b] != theirs[*b]).map(|b| BlockRange::new(PLACES[b], 1)).collect()
    }

    fn not_zeros(&mut self, node: usize, io: IoId, range: BlockRange) -> Vec<BlockRange> {
        let ours = self.payload(node, PayloadId::Io(io));
        covered(range).filter(|b| ours[*b] != 0).map(|b| BlockRange::new(PLACES[b], 1)).collect()
    }

    /// A proposal reaches Raft if its proposer reaches the witness; otherwise it vanishes.
    pub fn propose(&mut self, node: usize, command: Command) {
        if !self.reaches_witness(node) || self.raft.pending.iter().any(|pending| pending.command == command) {
            return;
        }
        if let CommandBody::Volume { expect_version, .. } = &command.body
            && *expect_version != self.raft.committed().version
        {
            return; // The version only grows: it can never take effect.
        }
        Arc::make_mut(&mut self.raft).pending.push(Pending { command, slow: false });
    }

    /// A disk operation ends.
    pub fn land(&mut self, node: usize, index: usize) {
        let b = Arc::make_mut(&mut self.boxes[node]);
        let Some(worker) = b.worker.as_mut() else { return };
        let Inflight { io, work, .. } = worker.inflight.remove(index);
        let result = IoResult::Ok;
        let mut late = None;
        let event = match work {
            Work::Read(values) => {
                worker.loaded.push((io, values));
                Event::LocalDone { io, result }
            }
            Work::Write { values, epoch } => {
                if epoch < b.store.begun {
                    late = Some((epoch, b.store.begun));
                }
                for (block, value) in values.into_iter().enumerate() {
                    value.into_iter().for_each(|value| b.store.put(block, value));
                }
                Event::LocalDone { io, result }
            }
            Work::Flush(covered) => {
                b.store.flush(covered);
                Event::LocalDone { io, result }
            }
            Work::State(last_in_sync, suspect) => {
                (b.store.last_in_sync, b.store.suspect) = (last_in_sync, suspect);
                Event::ReplicaStatePersisted { io, result }
            }
            Work::Fence(epoch, version) => {
                b.store.fence = b.store.fence.max((epoch, version));
                Event::FencePersisted { epoch, version }
            }
            Work::Heat(extents) => {
                b.store.hot.extend(extents);
                Event::ActivityLogPersisted { io, result }
            }
            Work::Cool(stored, extents, pages) => {
                b.store.flush(stored);
                b.store.write_pages(pages);
                b.store.hot.retain(|extent| !extents.contains(extent));
                Event::LocalDone { io, result }
            }
            Work::Bitmap(pages) => {
                b.store.write_pages(pages);
                Event::LocalDone { io, result }
            }
        };
        if let Some((epoch, begun)) = late {
            let detail = format!("box {node}: a write of epoch {epoch} lands after epoch {begun} began to write");
            self.violate("I10: no write of an older epoch lands late", detail);
        }
        self.feed(node, event);
    }

    /// The head of a queue arrives.
    pub fn deliver(&mut self, index: usize, side: usize) {
        let net = Arc::make_mut(&mut self.net);
        let (node, link) = (net.connections[index].node(side), net.connections[index].link);
        match net.take(index, side) {
            Some(Item::Frame { envelope, message, payload }) => {
                let payload = payload.map(|values| PayloadId::Frame(u64::from(values[0]) | u64::from(values[1]) << 8));
                self.feed(node, Event::Frame { link, envelope, message, payload });
            }
            Some(Item::End) => {
                net.connections[index].up[side] = false;
                net.forget_closed();
                self.feed(node, Event::LinkDown { link });
            }
            None => {}
        }
    }
}
