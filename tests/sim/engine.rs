//! A copy's engine in one run of a process: the shipped [`LocalCopy`], the data of its operations, and which of the
//! replica's orders each operation answers.
//!
//! The disk under it is in `disk`; when raw operations land is the scheduler's business (`copy_io`).

use std::collections::{BTreeMap, BTreeSet};

use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use proto::{BlockRange, EXTENT_BLOCKS};
use replication::local_copy::{
    CopyOp, CopyResult, LocalCopy, MetaPage, Order, Page, RawId, RawOp, RawResult, ReadCheck,
};
use replication::{Event, IoId, IoResult, OpId};
use rustc_hash::FxHashMap;

use super::disk::{Block, DiskOp, Outcome, Store};
use super::payload::Payload;
use super::scheduler::Rng;

/// Numbers of reads that no replica has ordered begin here.
const VERDICT: u64 = 1 << 60;

/// What a replica orders from its disk.
#[derive(Clone, Debug)]
pub enum Work {
    /// Reads blocks.
    Read(BlockRange, ReadCheck),
    /// Reads the blocks that a client's partial write covers in part: one or two of them.
    Merge {
        /// The client's write.
        op: OpId,
        /// Its blocks.
        range: BlockRange,
        /// Of those: the ones to read.
        edges: Vec<u64>,
    },
    /// Writes, zeroes or discards blocks.
    Write {
        /// Blocks.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// On the media when done.
        fua: bool,
        /// Content.
        payload: Option<Payload>,
    },
    /// Writes groups with a flush after each.
    Batch(Vec<Vec<BlockRange>>, Payload),
    /// Flushes.
    Flush,
    /// Makes extents hot.
    Heat(Vec<u64>),
    /// Makes extents cold.
    Cool(Vec<u64>, Vec<(MetaPage, Page)>),
    /// Writes pages of bitmaps.
    Bitmap(Vec<(MetaPage, Page)>),
    /// Puts a peer's copy in the place of bad blocks.
    Repair(BlockRange, Payload),
    /// Sets the sums that blocks should have; true if they are lost.
    Expect(BlockRange, BlockSums, bool),
}

/// A partial write, its blocks, and the old content of those that it covers in part.
pub type OldEdges = (OpId, BlockRange, Vec<(u64, Block)>);

/// What has ended, for the replica.
#[derive(Debug)]
pub struct Ended {
    /// The fact.
    pub event: Event,
    /// What a read returned.
    pub data: Option<(IoId, Payload)>,
    /// The old content of the edges of a partial write.
    pub edges: Option<OldEdges>,
    /// What it means for what is known of the copy's sums.
    pub sums: SumsNews,
}

/// What the end of an operation means for what is known of the copy's sums.
#[derive(Clone, Debug)]
pub enum SumsNews {
    /// Nothing.
    None,
    /// Those of some of these blocks were taken from what they hold.
    TakenFromData(Vec<u64>),
    /// Those of these extents are known.
    Known(Vec<u64>),
    /// These were taken over from a copy that has nothing better.
    Expected(BlockRange, BlockSums, bool),
}

/// What an operation of the engine is for.
#[derive(Clone, Debug)]
enum Purpose {
    Read,
    Resum(BlockRange),
    Edge(OpId),
    Heat,
    Cool(Vec<u64>),
    Expect(BlockRange, BlockSums, bool),
    Other,
}

#[derive(Debug)]
struct OpenIo {
    io: IoId,
    purpose: Purpose,
    /// First block of `payload`.
    start: u64,
    /// Data to be written, or what was read so far.
    payload: Payload,
    read: Vec<Block>,
    /// While the operation ran, sums that were not known were taken from what was read: its own perhaps.
    took_sums: bool,
}

/// The edges of one partial write.
#[derive(Debug, Default)]
struct Edges {
    range: BlockRange,
    missing: usize,
    failed: bool,
    bad: Vec<BlockRange>,
    blocks: Vec<(u64, Block)>,
    took_sums: Vec<u64>,
}

/// See the module's header.
#[derive(Debug)]
pub struct Engine {
    /// The shipped engine.
    pub copy: LocalCopy,
    volume: usize,
    open: BTreeMap<u64, OpenIo>,
    edges: BTreeMap<IoId, Edges>,
    /// Reads of data that are on their way to the disk.
    reads: FxHashMap<RawId, (Option<u64>, BlockRange)>,
    orders: Vec<Order>,
    /// How many sums the shipped engine had taken from data at the last look.
    unverified: u64,
    /// Sums that were learnt are being written, or cannot be.
    settling: bool,
}

/// What the engine asks for next.
#[derive(Debug)]
pub enum Next {
    /// An operation of the disk.
    Raw(RawId, DiskOp),
    /// An end.
    Ended(Box<Ended>),
}

impl Engine {
    /// The engine of a copy that was just opened.
    pub fn new(copy: LocalCopy, volume: usize) -> Self {
        let (open, edges, reads) = (BTreeMap::new(), BTreeMap::new(), FxHashMap::default());
        Self { copy, volume, open, edges, reads, orders: Vec::new(), unverified: 0, settling: false }
    }

    /// Reads the whole copy, at once, and returns the blocks that do not match their sums.
    pub fn bad_blocks(&mut self, store: &mut Store, rng: &mut Rng) -> Result<BTreeSet<u64>, String> {
        let mut bad = BTreeSet::new();
        let blocks = store.blocks();
        for first in (0..blocks).step_by(EXTENT_BLOCKS as usize) {
            let range = BlockRange::new(first, EXTENT_BLOCKS.min(blocks - first));
            let (mut steps, mut ended) = (Vec::new(), false);
            self.start(IoId(VERDICT + first), Work::Read(range, ReadCheck::Verify), &mut steps);
            while let Some(step) = steps.pop() {
                match step {
                    Next::Raw(raw, op) => {
                        let outcome = store.raw.at_once(op, rng);
                        self.raw_done(raw, outcome, &mut steps);
                    }
                    Next::Ended(end) => match end.event {
                        Event::LocalDone { result: IoResult::Ok, .. } => ended = true,
                        Event::Corrupt { bad: runs, .. } => {
                            bad.extend(runs.iter().flat_map(|run| run.blocks()));
                            ended = true;
                        }
                        event => return Err(format!("read of {range} ended in {event:?}")),
                    },
                }
            }
            if !ended {
                return Err(format!("read of {range} does not end"));
            }
        }
        Ok(bad)
    }

    /// True when nothing is open.
    pub fn idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Begins what the replica has ordered as `io`.
    pub fn start(&mut self, io: IoId, work: Work, next: &mut Vec<Next>) {
        let none = Payload::default();
        match work {
            Work::Read(range, check) => {
                let purpose = if check == ReadCheck::Resum { Purpose::Resum(range) } else { Purpose::Read };
                self.begin(io, 0, purpose, range.start, none, CopyOp::Read { range, check });
                if let Some(open) = self.open.get_mut(&tag(io, 0)) {
                    open.read = vec![[0, 0]; range.count as usize];
                }
            }
            Work::Merge { op, range, edges } => self.start_merge(io, op, range, &edges),
            Work::Write { range, kind, fua, payload } => {
                let payload = payload.unwrap_or_default();
                let sums = BlockSums::from_slice(&payload.sums);
                self.begin(io, 0, Purpose::Other, range.start, payload, CopyOp::Write { range, kind, fua, sums });
            }
            Work::Batch(groups, payload) => {
                let sums = BlockSums::from_slice(&payload.sums);
                self.begin(io, 0, Purpose::Other, 0, payload, CopyOp::Batch { groups, sums });
            }
            Work::Flush => self.begin(io, 0, Purpose::Other, 0, none, CopyOp::Flush),
            Work::Heat(extents) => self.begin(io, 0, Purpose::Heat, 0, none, CopyOp::Heat { extents }),
            Work::Cool(extents, bitmaps) => {
                self.begin(io, 0, Purpose::Cool(extents.clone()), 0, none, CopyOp::Cool { extents, bitmaps });
            }
            Work::Bitmap(pages) => self.begin(io, 0, Purpose::Other, 0, none, CopyOp::Bitmap { pages }),
            Work::Repair(range, payload) => {
                let sums = BlockSums::from_slice(&payload.sums);
                self.begin(io, 0, Purpose::Other, range.start, payload, CopyOp::Repair { range, sums });
            }
            Work::Expect(range, sums, lost) => {
                let purpose = Purpose::Expect(range, sums.clone(), lost);
                self.begin(io, 0, purpose, range.start, none, CopyOp::Expect { range, sums });
            }
        }
        self.take_orders(next);
    }

    fn start_merge(&mut self, io: IoId, op: OpId, range: BlockRange, blocks: &[u64]) {
        self.edges.insert(io, Edges { range, missing: blocks.len(), ..Edges::default() });
        for (edge, block) in blocks.iter().enumerate() {
            let read = CopyOp::Read { range: BlockRange::new(*block, 1), check: ReadCheck::Verify };
            self.begin(io, edge as u64, Purpose::Edge(op), *block, Payload::default(), read);
            if let Some(open) = self.open.get_mut(&tag(io, edge as u64)) {
                open.read = vec![[0, 0]];
            }
        }
    }

    fn begin(&mut self, io: IoId, part: u64, purpose: Purpose, start: u64, payload: Payload, op: CopyOp) {
        let tag = tag(io, part);
        self.open.insert(tag, OpenIo { io, purpose, start, payload, read: Vec::new(), took_sums: false });
        self.copy.start(tag, op, &mut self.orders);
    }

    /// A raw operation has ended.
    pub fn raw_done(&mut self, raw: RawId, outcome: Outcome, next: &mut Vec<Next>) {
        let read = self.reads.remove(&raw);
        let result = match outcome {
            Outcome::Data(content) => {
                let (tag, range) = read.unwrap_or_default();
                if let Some(open) = tag.and_then(|tag| self.open.get_mut(&tag)) {
                    let at = (range.start - open.start) as usize;
                    open.read[at..at + content.len()].copy_from_slice(&content);
                }
                RawResult::Sums(super::sums::sums(self.volume, range, &content))
            }
            Outcome::Done => RawResult::Done,
            Outcome::Page(page) => RawResult::Page(page),
            Outcome::NoSpace => RawResult::NoSpace,
            Outcome::Failed => RawResult::Failed,
        };
        self.copy.raw_done(raw, result, &mut self.orders);
        self.take_orders(next);
    }

    fn take_orders(&mut self, next: &mut Vec<Next>) {
        let unverified = self.copy.counters().unverified;
        if unverified != std::mem::replace(&mut self.unverified, unverified) {
            self.open.values_mut().for_each(|open| open.took_sums = true);
        }
        let mut orders = std::mem::take(&mut self.orders);
        for order in orders.drain(..) {
            match order {
                Order::Raw { raw, op } => {
                    let op = self.disk_op(raw, op);
                    next.push(Next::Raw(raw, op));
                }
                Order::Done { tag: SETTLE_TAG, result } => {
                    self.settling = !matches!(result, CopyResult::Ok { .. });
                }
                Order::Done { tag, result } => {
                    next.extend(self.ended(tag, result).map(|ended| Next::Ended(Box::new(ended))))
                }
            }
        }
        self.orders = orders;
        if !self.settling && self.copy.is_unsettled() {
            self.settling = true;
            self.copy.start(SETTLE_TAG, CopyOp::Settle, &mut self.orders);
            self.take_orders(next);
        }
    }

    fn disk_op(&mut self, raw: RawId, op: RawOp) -> DiskOp {
        match op {
            RawOp::ReadData { tag, range } => {
                self.reads.insert(raw, (tag, range));
                DiskOp::ReadData(range)
            }
            RawOp::WriteData { tag, first, range, kind, fua } => {
                if kind != WriteKind::Data {
                    return DiskOp::WriteData { range, data: None, fua };
                }
                let data = Some(self.open[&tag].payload.part(first, range.count).blocks);
                DiskOp::WriteData { range, data, fua }
            }
            RawOp::ReadPage { page } => DiskOp::ReadPage(page),
            RawOp::WritePage { page, bytes, durable } => DiskOp::WritePage { page, bytes: bytes.into(), durable },
            RawOp::Flush => DiskOp::Flush,
            RawOp::Reserve { extent } => DiskOp::Reserve(extent),
        }
    }

    fn ended(&mut self, tag: u64, result: CopyResult) -> Option<Ended> {
        let open = self.open.remove(&tag)?;
        let io = open.io;
        let how = match result {
            CopyResult::Failed => IoResult::Failed,
            CopyResult::NoSpace => IoResult::NoSpace,
            CopyResult::Ok { .. } | CopyResult::Corrupt { .. } => IoResult::Ok,
        };
        let read = |read: Vec<Block>, sums: &[u32]| Some((io, Payload::new(read.into(), sums.into())));
        let mut ended = Ended { event: Event::Tick, data: None, edges: None, sums: SumsNews::None };
        if open.took_sums {
            ended.sums = taken_from_data(open.start, open.read.len(), &result);
        }
        ended.event = match (open.purpose, result) {
            (Purpose::Edge(op), result) => {
                return self.edge_ended(io, op, (open.start, open.read), how, (result, ended.sums));
            }
            (Purpose::Heat, _) => Event::ActivityLogPersisted { io, result: how },
            (Purpose::Read, CopyResult::Ok { sums }) => {
                ended.data = read(open.read, &sums);
                Event::LocalDone { io, result: how }
            }
            (Purpose::Resum(range), CopyResult::Ok { sums }) => {
                ended.data = read(open.read, &sums);
                ended.sums = SumsNews::TakenFromData(range.blocks().collect());
                Event::LocalDone { io, result: how }
            }
            (Purpose::Read | Purpose::Resum(_), CopyResult::Corrupt { bad, sums }) => {
                ended.data = read(open.read, &sums);
                Event::Corrupt { io, bad }
            }
            (Purpose::Expect(range, sums, lost), CopyResult::Ok { .. }) => {
                ended.sums = SumsNews::Expected(range, sums, lost);
                Event::LocalDone { io, result: how }
            }
            (_, CopyResult::Corrupt { bad, .. }) => Event::Corrupt { io, bad },
            (Purpose::Cool(extents), CopyResult::Ok { .. }) => {
                ended.sums = SumsNews::Known(extents);
                Event::LocalDone { io, result: how }
            }
            _ => Event::LocalDone { io, result: how },
        };
        Some(ended)
    }

    fn edge_ended(
        &mut self,
        io: IoId,
        op: OpId,
        (block, read): (u64, Vec<Block>),
        how: IoResult,
        (result, sums): (CopyResult, SumsNews),
    ) -> Option<Ended> {
        let edges = self.edges.get_mut(&io)?;
        edges.missing -= 1;
        if let SumsNews::TakenFromData(blocks) = sums {
            edges.took_sums.extend(blocks);
        }
        edges.failed |= how != IoResult::Ok;
        match result {
            CopyResult::Corrupt { bad, .. } => edges.bad.extend(bad),
            _ => edges.blocks.extend(read.into_iter().map(|content| (block, content))),
        }
        if edges.missing > 0 {
            return None;
        }
        let Edges { range, failed, mut bad, blocks, took_sums, .. } = self.edges.remove(&io)?;
        bad.sort_unstable();
        let good = !failed && bad.is_empty();
        let event = match (failed, bad.is_empty()) {
            (true, _) => Event::EdgesMerged { io, result: IoResult::Failed },
            (false, false) => Event::Corrupt { io, bad },
            (false, true) => Event::EdgesMerged { io, result: IoResult::Ok },
        };
        let sums = SumsNews::TakenFromData(took_sums);
        Some(Ended { event, data: None, edges: good.then_some((op, range, blocks)), sums })
    }
}

/// The news that sums of the `count` blocks from `start` may have been taken from what they hold: not those of bad ones.
fn taken_from_data(start: u64, count: usize, result: &CopyResult) -> SumsNews {
    let bad = |block: &u64| matches!(result, CopyResult::Corrupt { bad, .. } if bad.iter().any(|range| range.blocks().contains(block)));
    SumsNews::TakenFromData((start..).take(count).filter(|block| !bad(block)).collect())
}

/// The shell's own operation; see [`tag`] for the others.
const SETTLE_TAG: u64 = u64::MAX;

/// The engine's name of part `part` (0 or 1) of the replica's operation `io`.
fn tag(io: IoId, part: u64) -> u64 {
    2 * io.0 + part
}
