//! Clients: they ask the box that they believe to be primary, one operation at a time, and go elsewhere when refused.

use proto::peer::message::WriteKind;
use proto::{BlockRange, Epoch, NodeId};
use replication::{Coverage, Event, OpId, PayloadId, Refusal, Request};

use super::checker::OpKind;
use super::cluster::{Ev, World};
use super::disk::{Blocks, KEEP};
use super::node::Worker;
use super::payload::Payload;
use super::scheduler::{MILLISECOND, SECOND, SimTime};
use super::setup::BOXES;

/// A client gives an operation up after this, at the latest.
const PATIENCE: (SimTime, SimTime) = (2 * SECOND, 6 * SECOND);

/// One client of one volume.
#[derive(Clone, Debug)]
pub struct Client {
    /// The volume.
    pub volume: usize,
    /// Who it believes serves it.
    pub node: usize,
    /// Number of its present state; what refers to an earlier one is void.
    pub turn: u64,
    /// The operation it waits for.
    pub waits_for: Option<u64>,
    /// Its last operation is a write.
    pub wrote: bool,
}

/// An operation that a node has and has not answered.
#[derive(Clone, Debug)]
pub struct OpenOp {
    /// The client that waits, if one does.
    pub client: Option<usize>,
    /// The volume.
    pub volume: usize,
    /// The box.
    pub node: usize,
    /// Its entries in the history.
    pub records: Vec<usize>,
    /// When it was asked for.
    pub asked: SimTime,
}

/// An operation to ask for, and what it means for the history.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The request.
    pub request: Request,
    /// Its data.
    pub payload: Option<Blocks>,
    /// What it does.
    pub kinds: Vec<OpKind>,
}

impl Wish {
    /// Reads blocks.
    pub fn read(range: BlockRange) -> Self {
        let kinds = vec![OpKind::Read { range, data: Vec::new() }];
        Self { request: Request::Read { range }, payload: None, kinds }
    }

    /// Asks whether what is known of the volume can be told.
    pub fn confirm() -> Self {
        Self { request: Request::Confirm, payload: None, kinds: Vec::new() }
    }

    /// Flushes.
    pub fn flush() -> Self {
        Self { request: Request::Flush, payload: None, kinds: vec![OpKind::Flush] }
    }

    /// Writes `value` to whole blocks.
    pub fn write(range: BlockRange, value: u32, fua: bool) -> Self {
        Self::write_halves(range.start * 2, range.count * 2, value, fua)
    }

    /// Writes `value` to half blocks.
    pub fn write_halves(first: u64, count: u64, value: u32, fua: bool) -> Self {
        let (start, end) = (first / 2, (first + count).div_ceil(2));
        let range = BlockRange::new(start, end - start);
        let covers = |half: u64| if (first..first + count).contains(&half) { value } else { KEEP };
        let payload: Blocks = range.blocks().map(|block| [covers(block * 2), covers(block * 2 + 1)]).collect();
        let whole = count == range.count * 2;
        let coverage = if whole { Coverage::Whole } else { Coverage::Partial };
        Self {
            request: Request::Write { range, kind: WriteKind::Data, fua, coverage },
            payload: Some(payload),
            kinds: vec![OpKind::Write { first, count, value, flushed: fua }],
        }
    }

    /// Writes zeros or discards.
    pub fn zero(range: BlockRange, kind: WriteKind, fua: bool) -> Self {
        Self {
            request: Request::Write { range, kind, fua, coverage: Coverage::Whole },
            payload: None,
            kinds: vec![OpKind::Write { first: range.start * 2, count: range.count * 2, value: 0, flushed: fua }],
        }
    }

    /// Writes ordered groups; every range has a value of its own.
    pub fn batch(groups: Vec<Vec<(BlockRange, u32)>>) -> Self {
        let all: Vec<(BlockRange, u32)> = groups.iter().flatten().copied().collect();
        let payload: Blocks = all.iter().flat_map(|(range, value)| vec![[*value; 2]; range.count as usize]).collect();
        let kind = |(range, value): &(BlockRange, u32)| OpKind::Write {
            first: range.start * 2,
            count: range.count * 2,
            value: *value,
            flushed: true,
        };
        let ranges = groups.into_iter().map(|group| group.into_iter().map(|(range, _)| range).collect()).collect();
        Self {
            request: Request::WriteBatch { groups: ranges },
            payload: Some(payload),
            kinds: all.iter().map(kind).collect(),
        }
    }
}

impl World {
    /// Creates the clients that the set-up asks for.
    pub fn start_clients(&mut self) {
        for volume in 0..self.setup.volumes.len() {
            for _ in 0..self.setup.volumes[volume].clients {
                let client = self.clients.len();
                let node = self.rng.below(BOXES as u64) as usize;
                self.clients.push(Client { volume, node, turn: 0, waits_for: None, wrote: false });
                let at = 1500 * MILLISECOND + self.rng.below(500 * MILLISECOND);
                self.queue.push(at, Ev::Client { client, turn: 0 });
            }
        }
    }

    /// A client's next step: a new operation, or the end of its patience.
    pub fn client_turn(&mut self, client: usize, turn: u64) {
        if self.clients[client].turn != turn {
            return;
        }
        if let Some(op) = self.clients[client].waits_for.take() {
            if let Some(open) = self.ops.get_mut(&op) {
                open.client = None;
            }
            self.clients[client].node = self.other_node(self.clients[client].node);
        }
        if self.operator.quiet {
            return;
        }
        let (volume, node) = (self.clients[client].volume, self.clients[client].node);
        let flushes = self.setup.volumes[volume].writes_log && self.clients[client].wrote && self.rng.chance(850);
        let wish = if flushes { Wish::flush() } else { self.invent(volume) };
        self.clients[client].wrote = matches!(wish.request, Request::Write { .. });
        match self.ask(node, volume, wish, Some(client)) {
            Some(op) => {
                self.clients[client].waits_for = Some(op);
                let patience = self.rng.between(PATIENCE.0, PATIENCE.1);
                self.next_turn(client, patience);
            }
            None => {
                self.clients[client].node = self.other_node(node);
                let wait = self.rng.between(20 * MILLISECOND, 100 * MILLISECOND);
                self.next_turn(client, wait);
            }
        }
    }

    fn next_turn(&mut self, client: usize, after: SimTime) {
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        self.queue.push(self.now + after, Ev::Client { client, turn });
    }

    fn other_node(&mut self, node: usize) -> usize {
        loop {
            let other = self.rng.below(BOXES as u64) as usize;
            if other != node && self.setup.stores(other) {
                return other;
            }
        }
    }

    /// Gives an operation to a node; None if nobody listens there.
    pub fn ask(&mut self, node: usize, volume: usize, wish: Wish, client: Option<usize>) -> Option<u64> {
        let worker = self.boxes[node].worker.as_deref()?;
        let run = worker.run;
        let config = worker.volumes[volume].as_ref().filter(|_| !worker.stopping)?.config.as_ref();
        let epoch = config.map_or(Epoch(0), |config| config.epoch);
        let number = self.number();
        let now = self.now;
        let history = &mut self.volumes[volume].history;
        let records = wish.kinds.into_iter().map(|kind| history.begin(kind, now, epoch)).collect();
        self.ops.insert(number, OpenOp { client, volume, node, records, asked: now });
        let at = self.now + self.rng.skewed(10, 500);
        let request = Box::new(wish.request);
        self.queue.push(at, Ev::Request { node, run, volume, op: OpId(number), request, payload: wish.payload });
        Some(number)
    }

    /// A request reaches the node's process.
    pub fn request(
        &mut self,
        node: usize,
        run: u32,
        volume: usize,
        op: OpId,
        request: Request,
        payload: Option<Blocks>,
    ) {
        let volume_run = self.boxes[node].worker_of(run).and_then(|worker| worker.volumes[volume].as_mut());
        let Some(volume_run) = volume_run.filter(|_| self.ops.contains_key(&op.0)) else { return };
        if let Some(blocks) = payload {
            // The sums are computed here, where the data enters; those of a partial write once it is merged.
            let payload = match &request {
                Request::Write { range, coverage: Coverage::Whole, .. } => Payload::summed(volume, [range], blocks),
                Request::WriteBatch { groups } => Payload::summed(volume, groups.iter().flatten(), blocks),
                _ => Payload::new(blocks, [].into()),
            };
            volume_run.payloads.insert(PayloadId::Client(op), payload);
        }
        self.feed(node, volume, Event::Client { op, request });
    }

    /// What a client may want.
    fn invent(&mut self, volume: usize) -> Wish {
        let window = self.some_window(volume);
        let count = self.rng.between(1, 4.min(window.count));
        let range = BlockRange::new(window.start + self.rng.below(window.count - count + 1), count);
        let fua = self.rng.chance(80);
        let value = self.number() as u32;
        match self.rng.below(100) {
            0..35 => Wish::write(range, value, fua),
            35..50 => {
                let first = range.start * 2 + self.rng.below(2);
                let halves = self.rng.between(1, count * 2 - first % 2);
                Wish::write_halves(first, halves, value, fua)
            }
            50..82 => Wish::read(range),
            82..86 => Wish::zero(range, WriteKind::Zeroes, fua),
            86..90 => Wish::zero(range, WriteKind::Discard, fua),
            90..93 => self.invent_batch(volume),
            93..96 => Wish::confirm(),
            _ => Wish::flush(),
        }
    }

    /// One of the places that the clients of a volume use.
    pub fn some_window(&mut self, volume: usize) -> BlockRange {
        let windows = &self.setup.volumes[volume].windows;
        windows[self.rng.below(windows.len() as u64) as usize]
    }

    fn invent_batch(&mut self, volume: usize) -> Wish {
        let groups = (0..self.rng.between(1, 3)).map(|_| {
            let mut group = Vec::new();
            // One part in the first half of a window, one in the second half of a window: they never meet.
            for part in 0..self.rng.between(1, 2) {
                let window = self.some_window(volume);
                let width = window.count / 2;
                let count = self.rng.between(1, width.min(2));
                let start = window.start + part * width + self.rng.below(width - count + 1);
                group.push((BlockRange::new(start, count), self.number() as u32));
            }
            group
        });
        Wish::batch(groups.collect())
    }

    /// Epoch under which a node acts, and whether it may at all.
    fn acting_epoch(&mut self, node: usize, volume: usize) -> (Epoch, NodeId, u32) {
        let run = self.boxes[node].worker.as_deref().map_or(0, |worker| worker.run);
        let config = self.boxes[node].volume(volume).and_then(|v| v.config.as_ref());
        config.map_or((Epoch(0), NodeId::NONE, run), |config| (config.epoch, config.primary, run))
    }

    /// A node has done an operation.
    pub fn op_completed(&mut self, node: usize, volume: usize, op: OpId, data: Option<PayloadId>) {
        let content = data.and_then(|id| {
            let run = self.boxes[node].volume(volume)?;
            run.payloads.remove(&id)
        });
        let Some(open) = self.ops.remove(&op.0) else {
            return self.violate(Some(volume), "answered_twice", format!("{op:?} at node {}", node + 1));
        };
        let (epoch, primary, run) = self.acting_epoch(node, volume);
        if primary != self.boxes[node].id {
            let detail = format!("node {} answered {op:?} but its configuration names {primary} primary", node + 1);
            return self.violate(Some(volume), "answered_by_no_primary", detail);
        }
        let server = *self.volumes[volume].server_of.entry(epoch).or_insert((node, run));
        if server != (node, run) {
            let detail =
                format!("nodes (from 0) and runs {server:?} and {:?} both answered under epoch {epoch}", (node, run));
            return self.violate(Some(volume), "I2_two_primaries_in_an_epoch", detail);
        }
        // A flush with nothing to flush is answered at once, by whomever: it tells nothing.
        let flushes = |record: &usize| matches!(self.volumes[volume].history.op(*record).kind, OpKind::Flush);
        if !open.records.iter().any(flushes) {
            self.check_nobody_served_since(volume, op, epoch, open.asked);
        }
        self.volumes[volume].last_completion = self.now;
        for &record in &open.records {
            let kind = self.volumes[volume].history.op(record).kind.clone();
            match kind {
                OpKind::Read { range, .. } => {
                    let Some(content) = content.as_ref().filter(|content| content.blocks.len() as u64 == range.count)
                    else {
                        return self.violate(Some(volume), "read_without_data", format!("{op:?} {range}"));
                    };
                    self.volumes[volume].history.set_data(record, content.blocks.to_vec());
                }
                OpKind::Write { first, count, value, .. } => {
                    self.stats.acknowledged += 1;
                    self.check_copies_hold(node, volume, epoch, (first, count), value, open.records.len() > 1);
                }
                OpKind::Flush => {}
            }
            self.volumes[volume].history.complete(record, self.now, epoch);
        }
        if let Some(client) = open.client {
            self.clients[client].waits_for = None;
            let think = self.rng.between(self.setup.think.0, self.setup.think.1);
            self.next_turn(client, think);
        }
    }

    /// Whatever a node has told, no later primary had answered anything when it was asked.
    fn check_nobody_served_since(&mut self, volume: usize, op: OpId, epoch: Epoch, asked: SimTime) {
        let firsts = &mut self.volumes[volume].first_answers;
        firsts.entry(epoch).or_insert(self.now);
        let later = firsts.range(epoch.next()..).find(|(_, first)| **first < asked).map(|(later, _)| *later);
        if let Some(later) = later {
            let detail = format!("{op:?} under epoch {epoch}, asked for after an answer under epoch {later}");
            self.violate(Some(volume), "answered_by_a_former_primary", detail);
        }
    }

    /// A node will not do an operation, or does not know whether it is done.
    pub fn op_refused(&mut self, node: usize, volume: usize, op: OpId, why: Refusal) {
        let Some(open) = self.ops.remove(&op.0) else {
            return self.violate(Some(volume), "answered_twice", format!("{op:?} at node {}", node + 1));
        };
        let (epoch, ..) = self.acting_epoch(node, volume);
        open.records.iter().for_each(|record| self.volumes[volume].history.close(*record, epoch));
        let Some(client) = open.client else { return };
        self.clients[client].waits_for = None;
        self.clients[client].node = match why {
            Refusal::NotPrimary(to) if to != NodeId::NONE && self.rng.chance(800) => to.0 as usize - 1,
            _ => self.other_node(node),
        };
        let wait = self.rng.between(5 * MILLISECOND, 100 * MILLISECOND);
        self.next_turn(client, wait);
    }

    /// A worker has died: its clients' connections break.
    pub fn clients_lose(&mut self, node: usize, worker: &Worker) {
        for volume in 0..self.volumes.len() {
            let config = worker.volumes[volume].as_ref().and_then(|run| run.config.as_ref());
            let epoch = config.map_or(Epoch(0), |config| config.epoch);
            self.break_connections(node, volume, epoch);
        }
    }

    /// A copy has been removed from a node: so do theirs.
    pub fn clients_lose_volume(&mut self, node: usize, volume: usize) {
        let epoch = self.volumes[volume].newest.as_ref().map_or(Epoch(0), |config| config.epoch);
        self.break_connections(node, volume, epoch);
    }

    fn break_connections(&mut self, node: usize, volume: usize, epoch: Epoch) {
        let lost = |open: &OpenOp| open.node == node && open.volume == volume;
        let mut ops: Vec<u64> = self.ops.iter().filter(|(_, open)| lost(open)).map(|(op, _)| *op).collect();
        ops.sort_unstable();
        for op in ops {
            let Some(open) = self.ops.remove(&op) else { continue };
            open.records.iter().for_each(|record| self.volumes[volume].history.close(*record, epoch));
            if let Some(client) = open.client {
                self.clients[client].waits_for = None;
                self.clients[client].node = self.other_node(node);
                let wait = self.rng.between(MILLISECOND, 500 * MILLISECOND);
                self.next_turn(client, wait);
            }
        }
    }

    /// (I1) An acknowledged write is complete on every committed member. Looks at the copies themselves; silent where
    /// they may differ for a good reason: a newer epoch, a member that lost power, a disk that fails.
    fn check_copies_hold(
        &mut self,
        node: usize,
        volume: usize,
        epoch: Epoch,
        halves: (u64, u64),
        value: u32,
        batch: bool,
    ) {
        let Some(config) = self.volumes[volume].newest.as_ref().filter(|config| config.epoch == epoch) else { return };
        let mut missing = None;
        for (member, record) in config.in_sync.iter().filter(|_| !batch) {
            let b = &self.boxes[member.0 as usize - 1];
            let Some(store) = b.stores[volume].as_ref() else { continue };
            let comparable = b.powered
                && b.boot() == record.boot
                && store.disk_id == record.disk_id
                && !store.raw.failed()
                && !store.raw.harm.doubtful
                && store.raw.faults.error_permille == 0;
            let holds = |half: u64| {
                store.raw.visible(half / 2)[(half % 2) as usize] == value
                    || store.raw.harm.damaged.contains(&(half / 2))
            };
            if comparable && let Some(half) = (halves.0..halves.0 + halves.1).find(|half| !holds(*half)) {
                missing = Some((*member, half, store.raw.visible(half / 2)));
            }
        }
        if let Some((member, half, found)) = missing {
            let detail = format!(
                "node {} acknowledged value {value} under epoch {epoch}, but member {member} holds {found:?} in block {}",
                node + 1,
                half / 2
            );
            self.violate(Some(volume), "I1_acknowledged_write_not_on_member", detail);
        }
    }
}
