//! A replica's orders to its disk: through the engine of its copy to the raw disk, and back.

use proto::{BlockRange, ConfigVersion};
use replication::local_copy::RawId;
use replication::{Event, IoId, IoResult, OpId, PayloadId};

use super::cluster::{Ev, World};
use super::disk::{Block, DiskOp, KEEP, Landed, Outcome, Whose};
use super::engine::{Ended, Next, SumsNews, Work};
use super::payload::Payload;
use super::scheduler::{MILLISECOND, SECOND, SimTime};

impl World {
    /// Gives an order of the replica to the engine of its copy. Without one it fails, as with a closed store.
    pub fn submit(&mut self, node: usize, volume: usize, io: IoId, work: Work) {
        if let Work::Write { payload: Some(payload), .. } | Work::Batch(_, payload) = &work
            && payload.blocks.iter().flatten().any(|half| *half == KEEP)
        {
            return self.violate(Some(volume), "unmerged_write", format!("{io:?} at node {}", node + 1));
        }
        if let Some(block) = bad_block_of(volume, &work) {
            let detail = format!("block {block} at node {} is overwritten with what does not match its sum", node + 1);
            return self.violate(Some(volume), "I8_bad_data_written", detail);
        }
        let mut next = std::mem::take(&mut self.next);
        match self.boxes[node].volume(volume).and_then(|run| run.engine.as_mut()) {
            Some(engine) => engine.start(io, work, &mut next),
            None => next.push(Next::Ended(Box::new(without_engine(io, &work)))),
        }
        for step in next.drain(..) {
            match step {
                Next::Raw(raw, op) => self.give_disk(node, volume, Whose::Raw(raw), op),
                // The replica is not called back from within its own order.
                Next::Ended(ended) => self.tell(node, volume, *ended, 0),
            }
        }
        self.next = next;
    }

    /// Writes the superblock.
    pub fn persist_state(&mut self, node: usize, volume: usize, io: IoId, version: ConfigVersion, suspect: bool) {
        self.give_disk(node, volume, Whose::State(io), DiskOp::State { last_in_sync: version, suspect });
    }

    fn give_disk(&mut self, node: usize, volume: usize, whose: Whose, op: DiskOp) {
        let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
        let token = self.number();
        let (low, high) = self.setup.disk_delay;
        let Some(store) = self.boxes[node].stores[volume].as_mut() else { return };
        let factor = if matches!(op, DiskOp::Flush) { 4 } else { 1 };
        let mut delay: SimTime = self.rng.skewed(low, high) * factor * store.raw.faults.slow;
        if self.rng.chance(store.raw.faults.stuck_permille) {
            delay += self.rng.between(SECOND, 9 * SECOND);
        }
        if self.trace.recording() && self.setup.trace_disk {
            let line = format!("{}:       {whose:?} {}", node + 1, brief_op(&op));
            self.trace.line(self.now, Some(volume), || line);
        }
        store.raw.submit(token, run, whose, op, self.now + delay, &mut self.rng);
        self.queue.push(self.now + delay, Ev::Io { node, volume, token });
    }

    /// An operation reaches the disk; the process learns of it a little later.
    pub fn io_lands(&mut self, node: usize, volume: usize, token: u64) {
        let b = &mut self.boxes[node];
        let listening = b.worker.as_deref().filter(|worker| worker.paused_until <= self.now).map(|worker| worker.run);
        let Some(store) = b.stores[volume].as_mut() else { return };
        let Some(Landed { run, whose, outcome }) = store.raw.land(token, listening, &mut self.rng) else { return };
        if self.trace.recording() && self.setup.trace_disk {
            let line = format!("{}:       {whose:?} has landed{}", node + 1, brief_outcome(&outcome));
            self.trace.line(self.now, Some(volume), || line);
        }
        if self.setup.flawed == Some(node) {
            self.judge_harm(volume);
        }
        // A failure is learnt at once: a process that goes on meanwhile reads what the disk has taken back.
        let ok = !matches!(outcome, Outcome::Failed);
        let at = if ok && self.rng.chance(200) { self.now + self.rng.skewed(10, 2 * MILLISECOND) } else { self.now };
        self.queue.push(at, Ev::Landed { node, run, volume, whose, outcome: Box::new(outcome) });
    }

    /// The process learns how an operation of its disk ended.
    pub fn landed(&mut self, node: usize, run: u32, volume: usize, whose: Whose, outcome: Outcome) {
        match whose {
            Whose::Raw(raw) => self.raw_done(node, run, volume, raw, outcome),
            Whose::State(io) => {
                let result = if matches!(outcome, Outcome::Failed) { IoResult::Failed } else { IoResult::Ok };
                self.io_result(node, run, volume, Event::ReplicaStatePersisted { io, result }, None);
            }
        }
    }

    fn raw_done(&mut self, node: usize, run: u32, volume: usize, raw: RawId, outcome: Outcome) {
        let mut next = std::mem::take(&mut self.next);
        let volume_run = self.boxes[node].worker_of(run).and_then(|worker| worker.volumes[volume].as_mut());
        if let Some(engine) = volume_run.and_then(|run| run.engine.as_mut()) {
            engine.raw_done(raw, outcome, &mut next);
        }
        for step in next.drain(..) {
            match step {
                Next::Raw(raw, op) => self.give_disk(node, volume, Whose::Raw(raw), op),
                Next::Ended(ended) => self.tell(node, volume, *ended, 0),
            }
        }
        self.next = next;
    }

    /// The replica is to learn of the end of an operation, `after` a while.
    fn tell(&mut self, node: usize, volume: usize, ended: Ended, after: SimTime) {
        let Ended { event, data, edges, sums } = ended;
        if let Some((op, range, edges)) = edges {
            self.merge(node, volume, PayloadId::Client(op), range, &edges);
        }
        if let Some(store) = self.boxes[node].stores[volume].as_mut() {
            match sums {
                SumsNews::None => {}
                SumsNews::TakenFromData(blocks) => {
                    store.raw.harm.resummed(blocks.into_iter());
                    self.judge_harm(volume);
                }
                SumsNews::Known(extents) => store.raw.harm.cooled(&extents),
                SumsNews::Expected(range, sums, lost) => {
                    for (block, &sum) in range.blocks().zip(sums.iter()) {
                        store.raw.expect(block, lost, |holds| super::sums::sum(volume, block, holds) == sum);
                    }
                }
            }
        }
        let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
        self.queue.push(self.now + after, Ev::Result { node, run, volume, event: Box::new(event), data });
    }

    /// Fills what a client's partial write does not cover, and sums the whole.
    fn merge(&mut self, node: usize, volume: usize, id: PayloadId, range: BlockRange, edges: &[(u64, Block)]) {
        let Some(run) = self.boxes[node].volume(volume) else { return };
        let Some(payload) = run.payloads.get_mut(&id) else { return };
        let mut blocks = payload.blocks.to_vec();
        for (block, old) in edges {
            for (new, old) in blocks[(block - range.start) as usize].iter_mut().zip(old) {
                *new = if *new == KEEP { *old } else { *new };
            }
        }
        *payload = Payload::summed(volume, [&range], blocks.into());
    }

    /// The old content of a partial write's blocks has come from a peer.
    pub fn merge_fetched(
        &mut self,
        node: usize,
        volume: usize,
        io: IoId,
        op: OpId,
        (range, old): (BlockRange, PayloadId),
    ) {
        let Some(old) = self.payload(node, volume, old) else { return };
        let edges: Vec<(u64, Block)> = range.blocks().zip(old.blocks.iter().copied()).collect();
        self.merge(node, volume, PayloadId::Client(op), range, &edges);
        self.compared(node, volume, Event::EdgesMerged { io, result: IoResult::Ok });
    }

    /// The process learns how an order of its replica ended.
    pub fn io_result(&mut self, node: usize, run: u32, volume: usize, event: Event, data: Option<(IoId, Payload)>) {
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let Some(volume_run) = worker.volumes[volume].as_mut() else { return };
        if let Some((io, content)) = data {
            volume_run.payloads.insert(PayloadId::Io(io), content);
        }
        if volume_run.engine.as_ref().is_some_and(|engine| engine.idle()) && !volume_run.attached {
            volume_run.engine = None;
        }
        self.feed(node, volume, event);
    }

    /// The blocks that a partial write covers in part, by the content that the client gave.
    pub fn edges_of(&mut self, node: usize, volume: usize, op: OpId, range: BlockRange) -> Vec<u64> {
        let payload = self.boxes[node].volume(volume).and_then(|run| run.payloads.get(&PayloadId::Client(op)));
        let Some(payload) = payload else { return Vec::new() };
        let partly = |(_, content): &(u64, &Block)| content.contains(&KEEP);
        range.blocks().zip(payload.blocks.iter()).filter(partly).map(|(block, _)| block).collect()
    }

    /// The sums that a read has verified and those of a peer are compared.
    pub fn compare_sums(&mut self, node: usize, volume: usize, io: IoId, range: BlockRange, theirs: PayloadId) {
        let Some(ours) = self.payload(node, volume, PayloadId::Io(io)) else { return };
        let Some(theirs) = self.payload(node, volume, theirs) else { return };
        let differing = differing(range, |index| ours.sums.get(index) == theirs.sums.get(index));
        self.compared(node, volume, Event::SumsCompared { io, differing });
    }

    /// The data that a read returned and a peer's, which stands for its digests, or zeros are compared.
    pub fn compare_digests(
        &mut self,
        node: usize,
        volume: usize,
        io: IoId,
        range: BlockRange,
        theirs: Option<PayloadId>,
    ) {
        let Some(ours) = self.payload(node, volume, PayloadId::Io(io)) else { return };
        let differing = match theirs.map(|theirs| self.payload(node, volume, theirs)) {
            Some(None) => return,
            Some(Some(theirs)) => differing(range, |index| ours.blocks.get(index) == theirs.blocks.get(index)),
            None => differing(range, |index| ours.blocks.get(index) == Some(&[0, 0])),
        };
        self.compared(node, volume, Event::DigestsCompared { io, differing });
    }

    fn compared(&mut self, node: usize, volume: usize, event: Event) {
        let Some(run) = self.boxes[node].worker.as_deref().map(|worker| worker.run) else { return };
        self.queue.push(self.now + 10, Ev::Result { node, run, volume, event: Box::new(event), data: None });
    }
}

/// Runs of blocks that are not `same`; the index counts from the range's start.
fn differing(range: BlockRange, same: impl Fn(usize) -> bool) -> Vec<BlockRange> {
    let mut differing: Vec<BlockRange> = Vec::new();
    for (index, block) in range.blocks().enumerate() {
        if same(index) {
            continue;
        }
        match differing.last_mut() {
            Some(last) if last.end() == block => last.count += 1,
            _ => differing.push(BlockRange::new(block, 1)),
        }
    }
    differing
}

/// A block that a write would fill with what does not match the sum that comes with it.
fn bad_block_of(volume: usize, work: &Work) -> Option<u64> {
    let (blocks, payload): (Vec<u64>, _) = match work {
        Work::Write { range, payload: Some(payload), .. } => (range.blocks().collect(), payload),
        Work::Batch(groups, payload) => (groups.iter().flatten().flat_map(|range| range.blocks()).collect(), payload),
        _ => return None,
    };
    let mut held = blocks.into_iter().zip(payload.blocks.iter().zip(payload.sums.iter()));
    held.find(|(block, (holds, sum))| super::sums::sum(volume, *block, **holds) != **sum).map(|(block, _)| block)
}

/// What becomes of an order when the store is closed.
fn without_engine(io: IoId, work: &Work) -> Ended {
    let result = IoResult::Failed;
    let event = match work {
        Work::Merge { .. } => Event::EdgesMerged { io, result },
        Work::Heat(_) => Event::ActivityLogPersisted { io, result },
        _ => Event::LocalDone { io, result },
    };
    Ended { event, data: None, edges: None, sums: SumsNews::None }
}

fn brief_op(op: &DiskOp) -> String {
    match op {
        DiskOp::WritePage { page, durable, .. } => format!("write {page:?} durable {durable}"),
        other => format!("{other:?}"),
    }
}

fn brief_outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Failed => " (failed)",
        Outcome::NoSpace => " (no space)",
        _ => "",
    }
}
