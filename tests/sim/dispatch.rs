//! Carries out what a replica orders: disk, network, payloads, answers.

use std::rc::Rc;

use proto::{BlockRange, ConfigVersion, Epoch};
use replication::{Action, Event, IoId, IoResult, LinkId, PayloadId, PayloadSlice};

use super::cluster::{Ev, World};
use super::disk::{Block, Blocks, KEEP, Landed, Work};
use super::network::{Frame, Later, NetEvent, link, side_of};
use super::scheduler::{MILLISECOND, SECOND, SimTime};
use super::setup::BOXES;

impl World {
    /// One order.
    pub fn perform(&mut self, node: usize, volume: usize, action: Action) {
        match action {
            Action::Dial { peer, on } => self.set_dial(node, volume, peer.0 as usize - 1, on),
            Action::CloseLink { link, .. } => self.close_link(node, link),
            Action::Send { link, envelope, message, payload } => {
                let Ok(payload) = payload.map(|slice| self.slice(node, volume, slice)).transpose() else { return };
                self.send(node, volume, link, Frame { envelope, message, payload });
            }
            Action::SendDigests { link, envelope, message, of } => {
                let Some(payload) = self.payload(node, volume, of) else { return };
                self.send(node, volume, link, Frame { envelope, message, payload: Some(payload) });
            }
            Action::CompareDigests { io, range, theirs } => self.compare(node, volume, io, range, theirs),
            Action::ReadLocal { io, range } => self.submit(node, volume, io, Work::Read(range)),
            Action::WriteLocal { io, range, fua, payload, .. } => {
                let data = match payload {
                    Some(id) => match self.payload(node, volume, id) {
                        Some(data) => Some(data),
                        None => return,
                    },
                    None => None,
                };
                if data.as_ref().is_some_and(|data| data.len() as u64 != range.count) {
                    return self.violate(Some(volume), "payload_length", format!("write {range} at node {}", node + 1));
                }
                self.submit(node, volume, io, Work::Write { range, data, fua });
            }
            Action::WriteBatchLocal { io, groups, payload } => {
                let Some(data) = self.payload(node, volume, payload) else { return };
                self.submit(node, volume, io, Work::Batch { groups, data });
            }
            Action::FlushLocal { io } => self.submit(node, volume, io, Work::Flush),
            Action::MergeEdges { io, op, range } => self.submit(node, volume, io, Work::Merge { op, range }),
            Action::PersistActivityLog { io, extents } => self.submit(node, volume, io, Work::ActivityLog(extents)),
            Action::PersistReplicaState { io, last_in_sync, suspect } => {
                self.submit(node, volume, io, Work::State { last_in_sync, suspect });
            }
            Action::PersistFence { epoch, version } => {
                let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
                let at = self.now + self.rng.skewed(200, 5 * MILLISECOND);
                self.queue.push(at, Ev::Fence { node, run, volume, epoch, version });
            }
            Action::Propose(command) => {
                self.propose(node, command);
            }
            Action::Release(id) => {
                let gone = self.boxes[node].volume(volume).is_some_and(|run| run.payloads.remove(&id).is_none());
                // A read that failed has left nothing to release.
                if gone && !matches!(id, PayloadId::Io(_)) {
                    self.violate(Some(volume), "released_twice", format!("{id:?} at node {}", node + 1));
                }
            }
            Action::Complete { op, data } => self.op_completed(node, volume, op, data),
            Action::Refuse { op, why } => self.op_refused(node, volume, op, why),
            Action::DetachDisk { failed } => self.detach(node, volume, failed),
            Action::Notify(_) => {}
            Action::Stopped => {
                if let Some(run) = self.boxes[node].volume(volume) {
                    run.stopped = true;
                }
                let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
                self.queue.push(self.now + MILLISECOND, Ev::StopCheck { node, run });
            }
        }
    }

    fn payload(&mut self, node: usize, volume: usize, id: PayloadId) -> Option<Blocks> {
        let found = self.boxes[node].volume(volume)?.payloads.get(&id).cloned();
        if found.is_none() {
            self.violate(Some(volume), "payload_unknown", format!("{id:?} at node {}", node + 1));
        }
        found
    }

    fn slice(&mut self, node: usize, volume: usize, slice: PayloadSlice) -> Result<Blocks, ()> {
        let whole = self.payload(node, volume, slice.id).ok_or(())?;
        let (first, end) = (slice.first as usize, (slice.first + slice.blocks) as usize);
        if (first, end) == (0, whole.len()) {
            return Ok(whole);
        }
        match whole.get(first..end) {
            Some(part) => Ok(part.into()),
            None => {
                self.violate(Some(volume), "payload_slice", format!("{slice:?} at node {}", node + 1));
                Err(())
            }
        }
    }

    fn send(&mut self, node: usize, volume: usize, name: LinkId, frame: Frame) {
        let (connection, side) = side_of(name);
        let c = self.net.connection(connection);
        if c.volume != volume || c.ends[side].node != node {
            return self.violate(Some(volume), "foreign_link", format!("{name:?} at node {}", node + 1));
        }
        let mut later = Later::new();
        self.net.send(connection, side, frame, self.now, &mut self.rng, &mut later);
        self.schedule_net(later);
    }

    fn close_link(&mut self, node: usize, name: LinkId) {
        let (connection, side) = side_of(name);
        if self.net.connection(connection).ends[side].node != node {
            return;
        }
        // The order comes first: nothing that arrives from here on is delivered to this side.
        if self.net.mark_down(connection, side) {
            let later = self.net.close(connection, side, false, self.now, &mut self.rng);
            self.schedule_net(later);
            let event = NetEvent::Closed { connection, side };
            self.queue.push(self.now, Ev::Net(event));
        }
    }

    fn set_dial(&mut self, node: usize, volume: usize, peer: usize, on: bool) {
        let Some(worker) = self.boxes[node].worker.as_deref_mut() else { return };
        let run = worker.run;
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        let was = std::mem::replace(&mut volume_run.dial[peer], on);
        let open = volume_run.outbound[peer];
        if on && !was && open.is_none() {
            let at = self.now + self.rng.skewed(MILLISECOND, 30 * MILLISECOND);
            self.queue.push(at, Ev::Dial { node, run, volume, peer });
        }
        let (false, Some(connection)) = (on, open) else { return };
        if self.net.connection(connection).ends[0].up {
            return self.close_link(node, link(connection, 0));
        }
        // It is not up on this side yet: the attempt is given up, and nobody here will hear of it.
        volume_run.outbound[peer] = None;
        self.net.mark_down(connection, 0);
        let later = self.net.reset(connection, self.now, &mut self.rng);
        self.schedule_net(later);
    }

    /// Tries to connect to a peer that the replica wants, again and again.
    pub fn dial(&mut self, node: usize, run: u32, volume: usize, peer: usize) {
        let there = self.boxes[peer].worker.as_deref().and_then(|worker| {
            let serves = worker.volumes[volume].is_some() && !worker.stopping;
            serves.then_some((peer, worker.run))
        });
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if !volume_run.dial[peer] || volume_run.outbound[peer].is_some() {
            return;
        }
        let connected = there.and_then(|there| self.net.connect(volume, (node, run), there, self.now, &mut self.rng));
        match connected {
            Some((connection, later)) => {
                if let Some(volume_run) = self.boxes[node].volume(volume) {
                    volume_run.outbound[peer] = Some(connection);
                }
                self.schedule_net(later);
            }
            None => {
                let at = self.now + self.rng.between(80 * MILLISECOND, 300 * MILLISECOND);
                self.queue.push(at, Ev::Dial { node, run, volume, peer });
            }
        }
    }

    /// Something happens on a connection.
    pub fn net_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Timeout { connection } => {
                let later = self.net.give_up(connection, self.now, &mut self.rng);
                self.schedule_net(later);
            }
            NetEvent::Up { connection, side } => {
                let c = self.net.connection(connection);
                let (end, other, volume) = (c.ends[side], c.ends[1 - side], c.volume);
                let alive = self.boxes[end.node].worker_of(end.run).is_some_and(|w| w.volumes[volume].is_some());
                if !alive {
                    self.net.mark_down(connection, side);
                    let later = self.net.reset(connection, self.now, &mut self.rng);
                    return self.schedule_net(later);
                }
                if self.net.mark_up(connection, side) {
                    let peer = self.boxes[other.node].id;
                    let event = Event::LinkUp { peer, link: link(connection, side), outbound: side == 0 };
                    self.feed(end.node, volume, event);
                }
            }
            NetEvent::Down { connection, side } => {
                let told = self.net.mark_down(connection, side);
                self.link_ended(connection, side, told);
            }
            NetEvent::Closed { connection, side } => self.link_ended(connection, side, true),
            NetEvent::Arrival { connection, side } => {
                let c = self.net.connection(connection);
                let (end, volume) = (c.ends[side], c.volume);
                let Some(frame) = self.net.arrive(connection, side) else { return };
                let Some(worker) = self.boxes[end.node].worker_of(end.run) else { return };
                let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
                let payload = frame.payload.map(|data| {
                    volume_run.frames += 1;
                    let id = PayloadId::Frame(volume_run.frames);
                    volume_run.payloads.insert(id, data);
                    id
                });
                let (link, envelope, message) = (link(connection, side), frame.envelope, frame.message);
                self.feed(end.node, volume, Event::Frame { link, envelope, message, payload });
            }
        }
    }

    /// A side's connection is over: tells the replica if it knew of it, and dials again.
    fn link_ended(&mut self, connection: usize, side: usize, told: bool) {
        let c = self.net.connection(connection);
        let (end, peer, volume) = (c.ends[side], c.ends[1 - side].node, c.volume);
        if told && self.boxes[end.node].worker_of(end.run).is_some() {
            self.feed(end.node, volume, Event::LinkDown { link: link(connection, side) });
        }
        let Some(worker) = self.boxes[end.node].worker_of(end.run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if side == 0 && volume_run.outbound[peer] == Some(connection) {
            volume_run.outbound[peer] = None;
            if volume_run.dial[peer] {
                let at = self.now + self.rng.between(20 * MILLISECOND, 200 * MILLISECOND);
                self.queue.push(at, Ev::Dial { node: end.node, run: end.run, volume, peer });
            }
        }
    }

    fn compare(&mut self, node: usize, volume: usize, io: IoId, range: BlockRange, theirs: PayloadId) {
        let Some(ours) = self.payload(node, volume, PayloadId::Io(io)) else { return };
        let Some(theirs) = self.payload(node, volume, theirs) else { return };
        let mut differing: Vec<BlockRange> = Vec::new();
        for (index, block) in range.blocks().enumerate() {
            if ours.get(index) == theirs.get(index) {
                continue;
            }
            match differing.last_mut() {
                Some(last) if last.end() == block => last.count += 1,
                _ => differing.push(BlockRange::new(block, 1)),
            }
        }
        let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
        let event = Box::new(Event::DigestsCompared { io, differing });
        self.queue.push(self.now + 10, Ev::Result { node, run, volume, event, data: None });
    }

    /// Gives an operation to the disk.
    pub fn submit(&mut self, node: usize, volume: usize, io: IoId, work: Work) {
        let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
        let token = self.number();
        let (low, high) = self.setup.disk_delay;
        let Some(store) = self.boxes[node].stores[volume].as_mut() else { return };
        let factor = if matches!(work, Work::Flush | Work::Batch { .. }) { 4 } else { 1 };
        let mut delay: SimTime = self.rng.skewed(low, high) * factor * store.faults.slow;
        if self.rng.chance(store.faults.stuck_permille) {
            delay += self.rng.between(SECOND, 9 * SECOND);
        }
        store.submit(token, run, io, work, self.now + delay, &mut self.rng);
        self.queue.push(self.now + delay, Ev::Io { node, volume, token });
    }

    /// An operation reaches the disk; the process learns of it a little later.
    pub fn io_lands(&mut self, node: usize, volume: usize, token: u64) {
        let b = &mut self.boxes[node];
        let listening = b.worker.as_deref().filter(|worker| worker.paused_until <= self.now).map(|worker| worker.run);
        let Some(store) = b.stores[volume].as_mut() else { return };
        let Some(landed) = store.land(token, listening, &mut self.rng) else { return };
        let Landed { run, io, work, ok, data } = landed;
        if let Work::Write { data: Some(data), .. } = &work
            && data.iter().flatten().any(|half| *half == KEEP)
        {
            self.violate(Some(volume), "unmerged_write", format!("{io:?} at node {}", node + 1));
        }
        let result = if ok { IoResult::Ok } else { IoResult::Failed };
        let mut content = None;
        let event = match work {
            Work::Read(_) => {
                content = data.map(|data| (io, data));
                Event::LocalDone { io, result }
            }
            Work::Merge { op, .. } => {
                if let Some(edges) = data {
                    self.merge(node, volume, PayloadId::Client(op), &edges);
                }
                Event::EdgesMerged { io, result }
            }
            Work::Write { .. } | Work::Batch { .. } | Work::Flush => Event::LocalDone { io, result },
            Work::ActivityLog(_) => Event::ActivityLogPersisted { io, result },
            Work::State { .. } => Event::ReplicaStatePersisted { io, result },
        };
        // A failure is learnt at once: what a disk takes back silently, only checksums at rest could find.
        let at = if ok && self.rng.chance(200) { self.now + self.rng.skewed(10, 2 * MILLISECOND) } else { self.now };
        self.queue.push(at, Ev::Result { node, run, volume, event: Box::new(event), data: content });
    }

    /// Fills what a client's partial write does not cover.
    fn merge(&mut self, node: usize, volume: usize, id: PayloadId, edges: &Blocks) {
        let Some(run) = self.boxes[node].volume(volume) else { return };
        let Some(payload) = run.payloads.get_mut(&id) else { return };
        let keep = |new: u32, old: u32| if new == KEEP { old } else { new };
        let merged: Vec<Block> =
            payload.iter().zip(edges.iter()).map(|(new, old)| [keep(new[0], old[0]), keep(new[1], old[1])]).collect();
        *payload = Rc::from(merged);
    }

    /// The process learns how an operation ended.
    pub fn io_result(&mut self, node: usize, run: u32, volume: usize, event: Event, data: Option<(IoId, Blocks)>) {
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if let Some((io, content)) = data {
            volume_run.payloads.insert(PayloadId::Io(io), content);
        }
        self.feed(node, volume, event);
    }

    /// The fence file is written.
    pub fn fence_written(&mut self, node: usize, run: u32, volume: usize, epoch: Epoch, version: ConfigVersion) {
        let b = &mut self.boxes[node];
        if b.worker.as_deref().is_none_or(|worker| worker.run != run) {
            return;
        }
        let fence = &mut b.fences[volume];
        *fence = (*fence).max((epoch, version));
        self.feed(node, volume, Event::FencePersisted { epoch, version });
    }

    fn detach(&mut self, node: usize, volume: usize, failed: bool) {
        self.note(Some(volume), || format!("{}: detaches its disk (failed: {failed})", node + 1));
        let b = &mut self.boxes[node];
        if let Some(store) = b.stores[volume].as_mut() {
            store.failed |= failed;
        }
        if let Some(run) = b.volume(volume) {
            run.attached = false;
        }
    }

    /// A replica has said that it stopped; perhaps it was the last.
    pub fn stop_check(&mut self, node: usize, run: u32) {
        if self.boxes[node].worker_of(run).is_some() {
            self.finish_stop(node);
        }
    }

    /// Peers of a box.
    pub fn peers(node: usize) -> impl Iterator<Item = usize> {
        (0..BOXES).filter(move |peer| *peer != node)
    }
}
