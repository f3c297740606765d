//! The client's answers, what becomes of them in the history, and the rules that every state must keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::NodeId;
use replication::config::VolumeConfig;
use replication::{Event, OpId, PayloadId, Request};

use proto::BlockRange;
use proto::peer::message::WriteKind;
use replication::Coverage;

use super::state::{Client, Op, OpKind, State, box_of, node_id};
use super::store::{BLOCKS, PLACES};

/// The rules, as the list of properties names them.
pub const RULES: &[&str] = &[
    "I1: an acknowledged write is on every committed member",
    "I2: one primary per epoch answers, and a deposed one answers no read",
    "I4: fences only grow",
    "I5: only members take over",
    "I7: idle copies agree outside dirty blocks",
    "I9: no read returns what is not on every committed member",
    "I10: no write of an older epoch lands late",
    "answers are linearizable and flushed writes survive",
    "the core's own assertions hold",
    "payloads are held while they are used",
    "the model knows every order",
];

/// What must have been seen for the check to mean something.
pub const SIGHTS: &[&str] = &[
    "a take-over commits",
    "a primary resumes",
    "a shrink commits",
    "a resync ends in an admission",
    "a sole member acknowledges a write",
    "a resumed primary answers",
    "a new primary answers a read after a take-over",
    "a declared loss of unflushed writes",
    "a planned switchover commits",
    "a flush is answered",
    "an idle pair in sync is compared",
];

/// How often each of [`SIGHTS`] was seen.
#[derive(Debug, Default)]
pub struct Sightings(pub [AtomicU64; 11]);

impl Sightings {
    /// Counts one.
    pub fn see(&self, sight: usize) {
        self.0[sight].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was seen.
    pub fn count(&self, sight: usize) -> u64 {
        self.0[sight].load(Ordering::Relaxed)
    }
}

/// Indices into [`SIGHTS`].
pub mod sight {
    #![allow(missing_docs)]
    pub const TAKE_OVER: usize = 0;
    pub const RESUME: usize = 1;
    pub const SHRINK: usize = 2;
    pub const ADMIT: usize = 3;
    pub const SOLO_WRITE: usize = 4;
    pub const RESUMED_ANSWER: usize = 5;
    pub const TAKEN_OVER_READ: usize = 6;
    pub const LOSS: usize = 7;
    pub const HANDOFF: usize = 8;
    pub const FLUSH: usize = 9;
    pub const COMPARED: usize = 10;
}

impl State {
    /// The client asks box `node` to write to `block`.
    pub fn ask_write(&mut self, node: usize, block: usize) {
        self.budget.writes -= 1;
        let client = Arc::make_mut(&mut self.client);
        client.written[block] += 1;
        let value = client.written[block];
        client.registers[block].write_begins(value);
        // A flush that is under way may or may not cover it.
        for op in client.ops.iter_mut().filter(|op| op.open) {
            if let OpKind::Flush { since } = &mut op.kind {
                since[block] |= 1 << value;
            }
        }
        let range = BlockRange::new(PLACES[block], 1);
        let request = Request::Write { range, kind: WriteKind::Data, fua: false, coverage: Coverage::Whole };
        self.ask(node, OpKind::Write { block, value }, request);
    }

    /// The client asks box `node` to read `block`.
    pub fn ask_read(&mut self, node: usize, block: usize) {
        self.budget.reads -= 1;
        let client = Arc::make_mut(&mut self.client);
        let read = client.read[block];
        client.read[block] += 1;
        client.registers[block].read_begins(read);
        let request = Request::Read { range: BlockRange::new(PLACES[block], 1) };
        self.ask(node, OpKind::Read { block, read }, request);
    }

    /// The client asks box `node` to flush.
    pub fn ask_flush(&mut self, node: usize) {
        self.budget.flushes -= 1;
        let since = std::array::from_fn(|block| self.client.registers[block].values());
        self.ask(node, OpKind::Flush { since }, Request::Flush);
    }

    fn ask(&mut self, node: usize, kind: OpKind, request: Request) {
        let client = Arc::make_mut(&mut self.client);
        client.ops.push(Op { kind, node, open: true });
        let op = OpId(client.ops.len() as u64);
        self.feed(node, Event::Client { op, request });
    }

    /// The core answers an operation.
    pub fn completed(&mut self, node: usize, op: OpId, data: Option<PayloadId>) {
        let index = op.0 as usize - 1;
        let Op { kind, open, .. } = self.client.ops[index];
        if !open {
            return self.violate("the core's own assertions hold", format!("{op:?} is answered twice"));
        }
        let client = Arc::make_mut(&mut self.client);
        client.ops[index].open = false;
        match kind {
            OpKind::Write { block, value } => {
                client.registers[block].write_ends(value);
                self.check_write_is_everywhere(node, block, value);
            }
            OpKind::Read { block, read } => {
                let Some(id) = data else {
                    return self.violate("payloads are held while they are used", format!("read {op:?}"));
                };
                let value = self.payload(node, id)[block];
                if let (PayloadId::Io(io), Some(worker)) = (id, Arc::make_mut(&mut self.boxes[node]).worker.as_mut()) {
                    worker.loaded.retain(|(loaded, _)| *loaded != io);
                }
                if !Arc::make_mut(&mut self.client).registers[block].read_ends(read, value) {
                    let detail = format!("box {node} returned {value} of block {block}");
                    self.violate("answers are linearizable and flushed writes survive", detail);
                }
                self.check_read_is_served_rightly(node, block, value);
            }
            OpKind::Flush { since } => {
                client.registers.iter_mut().zip(since).for_each(|(register, since)| register.flushed(since));
            }
        }
    }

    /// An operation has no answer, or a refusal: a write may have happened or may yet.
    pub fn ended_without_effect_known(&mut self, index: usize) {
        let client = Arc::make_mut(&mut self.client);
        client.ops[index].open = false;
        if let OpKind::Read { block, read } = client.ops[index].kind {
            client.registers[block].forget(read);
        }
    }

    /// Members of the committed configuration that have not lost power since they came in sync.
    fn warm_members(&self) -> impl Iterator<Item = usize> + '_ {
        let warm = |(node, member): (&NodeId, &replication::config::Member)| {
            let node = box_of(*node);
            (self.boxes[node].boot(node) == member.boot).then_some(node)
        };
        self.raft.committed().in_sync.iter().filter_map(warm)
    }

    fn serves_newest_epoch(&self, node: usize) -> bool {
        self.raft.committed().epoch == self.raft.applied(node).epoch
    }

    fn check_write_is_everywhere(&mut self, node: usize, block: usize, value: u8) {
        if !self.serves_newest_epoch(node) {
            return; // What the old in_sync set acknowledged is judged by what the new primary reads.
        }
        let lacks = self.warm_members().find(|member| self.boxes[*member].store.value(block) != value);
        if let Some(member) = lacks {
            let detail = format!("write {value} of block {block} is not on box {member}");
            self.violate("I1: an acknowledged write is on every committed member", detail);
        }
    }

    fn check_read_is_served_rightly(&mut self, node: usize, block: usize, value: u8) {
        if !self.serves_newest_epoch(node) || self.raft.committed().primary != node_id(node) {
            let detail = format!("box {node} answers a read after epoch {} began", self.raft.committed().epoch);
            return self.violate("I2: one primary per epoch answers, and a deposed one answers no read", detail);
        }
        let lacks = self.warm_members().find(|member| self.boxes[*member].store.value(block) != value);
        if let Some(member) = lacks {
            let detail = format!("read {value} of block {block}, which is not on box {member}");
            self.violate("I9: no read returns what is not on every committed member", detail);
        }
    }

    /// What must hold between two committed configurations.
    pub fn check_commit(&mut self, before: &VolumeConfig, after: &VolumeConfig) {
        if after.epoch > before.epoch && !before.in_sync.contains_key(&after.primary) {
            self.violate("I5: only members take over", format!("{} was no member", after.primary));
        }
        if after.unflushed_loss != before.unflushed_loss {
            let client = Arc::make_mut(&mut self.client);
            client.registers.iter_mut().for_each(super::history::Register::lose_unflushed);
        }
    }

    /// True when nothing is on its way anywhere and nobody waits for anything but time.
    pub fn is_idle(&self) -> bool {
        let settled = |node: usize| {
            let worker = self.boxes[node].worker.as_ref();
            worker.is_some_and(|worker| worker.inflight.is_empty()) && !self.raft.lags(node)
        };
        self.net.is_quiet()
            && settled(0)
            && settled(1)
            && self.raft.pending.is_empty()
            && self.client.ops.iter().all(|op| !op.open)
    }

    /// I7 for an idle pair: members agree, and so does a copy of which the primary knows nothing dirty. True if compared.
    pub fn check_idle_copies(&mut self) -> bool {
        let config = self.raft.committed();
        let primary = box_of(config.primary);
        let Some(worker) = &self.boxes[primary].worker else { return false };
        let mut compare = self.warm_members().count() == 2;
        for (_, state, dirty, _) in worker.replica.status(self.now()).peers {
            compare |= dirty == 0 && state == "presync";
        }
        // Beside a write whose fate nobody knows, copies differ until the next session settles it.
        let session = self.net.connections.iter().any(|c| c.dialer == primary && c.up == [true; 2]);
        if !compare || !session {
            return false;
        }
        let [a, b] = [0, 1].map(|node| self.boxes[node].store.values());
        if a != b {
            self.violate("I7: idle copies agree outside dirty blocks", format!("{a:?} and {b:?}"));
        }
        true
    }
}

/// Blocks that a client may write to next: the first operation goes to the first block, as they are alike.
pub fn writable(client: &Client) -> std::ops::Range<usize> {
    if client.ops.is_empty() { 0..1 } else { 0..BLOCKS }
}
