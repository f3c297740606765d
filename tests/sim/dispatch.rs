//! Carries out what a replica orders: network, payloads, answers; what concerns its disk goes on to `copy_io`.

use proto::checksum::of_lost;
use proto::peer::message::Message;
use proto::peer::version::ProtocolVersion;
use proto::{ConfigVersion, Epoch};
use replication::{Action, Event, LinkId, Notice, PayloadId, PayloadSlice, ScrubReport};

use super::cluster::{Ev, World};
use super::engine::{Engine, Work};
use super::network::{Frame, Later, NetEvent, link, side_of};
use super::payload::Payload;
use super::scheduler::MILLISECOND;
use super::setup::BOXES;

impl World {
    /// One order.
    pub fn perform(&mut self, node: usize, volume: usize, action: Action) {
        match action {
            Action::Dial { peer, on } => self.set_dial(node, volume, peer.0 as usize - 1, on),
            Action::CloseLink { link, .. } => self.close_link(node, link),
            Action::Send { link, envelope, message, payload } => {
                if let Message::ResyncData { range, .. } = &message {
                    self.volumes[volume].resynced.sent += range.count;
                }
                let Ok(payload) = payload.map(|slice| self.slice(node, volume, slice)).transpose() else { return };
                self.send(node, volume, link, Frame { envelope, message, payload });
            }
            Action::SendDigests { link, envelope, message, of } => {
                let Some(Payload { blocks, .. }) = self.payload(node, volume, of) else { return };
                let payload = Some(Payload::new(blocks, [].into()));
                self.send(node, volume, link, Frame { envelope, message, payload });
            }
            Action::SendSums { link, envelope, message, of } => {
                let Some(Payload { sums, .. }) = self.payload(node, volume, PayloadId::Io(of)) else { return };
                let payload = Some(Payload::new([].into(), sums));
                self.send(node, volume, link, Frame { envelope, message, payload });
            }
            Action::CompareDigests { io, range, theirs } => {
                self.volumes[volume].resynced.compared += theirs.map_or(0, |_| range.count);
                self.compare_digests(node, volume, io, range, theirs);
            }
            Action::CompareSums { io, range, theirs } => self.compare_sums(node, volume, io, range, theirs),
            Action::ReadLocal { .. }
            | Action::RepairLocal { .. }
            | Action::ExpectLocal { .. }
            | Action::WriteLocal { .. }
            | Action::WriteBatchLocal { .. }
            | Action::FlushLocal { .. }
            | Action::MergeEdges { .. }
            | Action::PersistActivityLog { .. }
            | Action::CoolExtents { .. }
            | Action::WriteBitmap { .. } => self.disk_order(node, volume, action),
            Action::MergeFetched { io, op, range, old } => self.merge_fetched(node, volume, io, op, (range, old)),
            Action::PersistReplicaState { io, last_in_sync, suspect } => {
                self.persist_state(node, volume, io, last_in_sync, suspect);
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
            Action::RecordScrub { ended, under_way } => {
                let now = self.now;
                if let Some(store) = self.boxes[node].stores[volume].as_mut() {
                    let mended = ended.is_some_and(|report| !report.verify_only);
                    store.scrubs = (if mended { now } else { store.scrubs.0 }, under_way);
                }
            }
            Action::Notify(Notice::Scrub { report, .. }) => self.scrubbed(node, volume, report),
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

    /// A scrub tells what it has found: nothing, unless a disk has done harm.
    fn scrubbed(&mut self, node: usize, volume: usize, report: ScrubReport) {
        let found = report.bad_here + report.bad_at_peers + report.differing;
        if found > 0 && self.setup.flawed.is_none() {
            self.violate(Some(volume), "scrub_false_alarm", format!("{report:?} at node {}", node + 1));
        }
    }

    /// An order that concerns the local copy.
    fn disk_order(&mut self, node: usize, volume: usize, action: Action) {
        let (io, work) = match action {
            Action::ReadLocal { io, range, check } => (io, Work::Read(range, check)),
            Action::RepairLocal { io, range, payload } => {
                let Some(payload) = self.payload_for(node, volume, payload, range.count) else { return };
                (io, Work::Repair(range, payload))
            }
            Action::ExpectLocal { io, range, payload, lost } => {
                let Some(payload) = self.payload_for(node, volume, payload, range.count) else { return };
                let sums = payload.sums.iter().map(|sum| if lost { of_lost(*sum) } else { *sum }).collect();
                (io, Work::Expect(range, sums, lost))
            }
            Action::WriteLocal { io, range, kind, fua, payload } => {
                let payload = match payload {
                    Some(id) => match self.payload_for(node, volume, id, range.count) {
                        Some(payload) => Some(payload),
                        None => return,
                    },
                    None => None,
                };
                (io, Work::Write { range, kind, fua, payload })
            }
            Action::WriteBatchLocal { io, groups, payload } => {
                let count = groups.iter().flatten().map(|range| range.count).sum();
                let Some(payload) = self.payload_for(node, volume, payload, count) else { return };
                (io, Work::Batch(groups, payload))
            }
            Action::FlushLocal { io } => (io, Work::Flush),
            Action::MergeEdges { io, op, range } => {
                let edges = self.edges_of(node, volume, op, range);
                (io, Work::Merge { op, range, edges })
            }
            Action::PersistActivityLog { io, extents } => (io, Work::Heat(extents)),
            Action::CoolExtents { io, extents, bitmaps } => (io, Work::Cool(extents, bitmaps)),
            Action::WriteBitmap { io, pages } => (io, Work::Bitmap(pages)),
            _ => return,
        };
        self.submit(node, volume, io, work);
    }

    /// A payload that must be `count` blocks long and have its sums.
    fn payload_for(&mut self, node: usize, volume: usize, id: PayloadId, count: u64) -> Option<Payload> {
        let payload = self.payload(node, volume, id)?;
        if payload.blocks.len() as u64 == count && payload.sums.len() as u64 == count {
            return Some(payload);
        }
        let (blocks, sums) = (payload.blocks.len(), payload.sums.len());
        let detail = format!("{id:?} of {blocks} blocks and {sums} sums for {count} blocks at node {}", node + 1);
        self.violate(Some(volume), "payload_length", detail);
        None
    }

    /// A payload that the replica names.
    pub fn payload(&mut self, node: usize, volume: usize, id: PayloadId) -> Option<Payload> {
        let found = self.boxes[node].volume(volume)?.payloads.get(&id).cloned();
        if found.is_none() {
            self.violate(Some(volume), "payload_unknown", format!("{id:?} at node {}", node + 1));
        }
        found
    }

    fn slice(&mut self, node: usize, volume: usize, slice: PayloadSlice) -> Result<Payload, ()> {
        let whole = self.payload(node, volume, slice.id).ok_or(())?;
        if slice.first + slice.blocks <= whole.count() {
            return Ok(whole.part(slice.first, slice.blocks));
        }
        self.violate(Some(volume), "payload_slice", format!("{slice:?} at node {}", node + 1));
        Err(())
    }

    fn send(&mut self, node: usize, volume: usize, name: LinkId, frame: Frame) {
        let (connection, side) = side_of(name);
        let c = self.net.connection(connection);
        if c.volume != volume || c.ends[side].node != node {
            return self.violate(Some(volume), "foreign_link", format!("{name:?} at node {}", node + 1));
        }
        let frame = if c.protocol == 1 { frame.in_version_1(volume) } else { Some(frame) };
        let Some(frame) = frame else {
            return self.note(Some(volume), || format!("{}: the peer's version has no such message", node + 1));
        };
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
        let protocol = self.boxes[node].protocol.min(self.boxes[peer].protocol);
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if !volume_run.dial[peer] || volume_run.outbound[peer].is_some() {
            return;
        }
        let what = (volume, protocol);
        let connected = there.and_then(|there| self.net.connect(what, (node, run), there, self.now, &mut self.rng));
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
                let protocol = ProtocolVersion(c.protocol);
                let alive = self.boxes[end.node].worker_of(end.run).is_some_and(|w| w.volumes[volume].is_some());
                if !alive {
                    self.net.mark_down(connection, side);
                    let later = self.net.reset(connection, self.now, &mut self.rng);
                    return self.schedule_net(later);
                }
                if self.net.mark_up(connection, side) {
                    let peer = self.boxes[other.node].id;
                    let link = link(connection, side);
                    let event = Event::LinkUp { peer, link, outbound: side == 0, protocol };
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
        let token = self.number();
        let b = &mut self.boxes[node];
        if let Some(store) = b.stores[volume].as_mut().filter(|_| failed) {
            store.raw.mark_failed(token);
        }
        if let Some(run) = b.volume(volume) {
            run.attached = false;
            if run.engine.as_ref().is_some_and(Engine::idle) {
                run.engine = None;
            }
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
