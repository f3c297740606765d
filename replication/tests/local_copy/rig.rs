//! A copy, its store, and an owner that keeps to the contract. Raw operations end in any order; power may fail between.

use std::collections::{BTreeMap, BTreeSet};

use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use proto::{BlockRange, VolumeId};
use replication::local_copy::{
    CopyOp, CopyResult, Geometry, Hot, LocalCopy, MetaPage, Order, Page, RawId, RawOp, RawResult, ReadCheck,
};

use super::store::{Rng, Store, sum_of};

pub(crate) const EXTENT: u64 = 1024;

pub(crate) fn geometry(extents: u64, tail: u64, log_pages: u32, cached_pages_max: usize) -> Geometry {
    Geometry { volume: VolumeId(0x77 << 70 | 0x1234), blocks: extents * EXTENT + tail, log_pages, cached_pages_max }
}

pub(crate) struct Rig {
    pub(crate) store: Store,
    pub(crate) copy: LocalCopy,
    pub(crate) rng: Rng,
    /// Raw operations in flight; with the writes that had ended when each was given out.
    pub(crate) raws: Vec<(RawId, RawOp, u64)>,
    pub(crate) ended: BTreeMap<u64, CopyResult>,
    /// What each read has read.
    pub(crate) held: BTreeMap<u64, (BlockRange, Vec<u64>)>,
    /// What each operation brings.
    payloads: BTreeMap<u64, Vec<u64>>,
    tags: u64,
    tokens: u64,
    pub(crate) raws_done: u64,
    /// Answers for the next raw operations of a kind.
    pub(crate) refuse: Option<fn(&RawOp) -> Option<RawResult>>,
    /// Data writes that end well and go nowhere.
    pub(crate) lose_data_writes: bool,
}

impl Rig {
    pub(crate) fn new(geometry: Geometry, seed: u64) -> Self {
        Self::open(Store::new(geometry), Rng(seed)).0
    }

    pub(crate) fn open(store: Store, rng: Rng) -> (Self, Hot) {
        let (mut copy, hot) = store.with_areas(|areas| LocalCopy::open(store.geometry, areas));
        copy.check_invariants();
        let mut store = store;
        copy.mend_log().into_iter().for_each(|(page, bytes)| store.write_page(page, bytes, true));
        let rig = Self {
            store,
            copy,
            rng,
            raws: Vec::new(),
            ended: BTreeMap::new(),
            payloads: BTreeMap::new(),
            held: BTreeMap::new(),
            tags: 0,
            tokens: 0,
            raws_done: 0,
            refuse: None,
            lose_data_writes: false,
        };
        (rig, hot)
    }

    /// The same store, opened again, after a loss of power.
    pub(crate) fn cut(mut self) -> (Self, Hot) {
        // What was in flight may have reached the medium, as any unflushed write may.
        for (_, op, _) in std::mem::take(&mut self.raws) {
            if self.rng.one_in(2) {
                match op {
                    RawOp::WriteData { tag, first, range, kind, .. } => {
                        let payload = self.payload(tag, first);
                        self.store.write(range, kind, &payload, false);
                    }
                    RawOp::WritePage { page, bytes, .. } => self.store.write_page(page, bytes, false),
                    _ => {}
                }
            }
        }
        self.store.cut(&mut self.rng);
        let tokens = self.tokens;
        let (mut rig, hot) = Self::open(self.store, self.rng);
        rig.tokens = tokens;
        (rig, hot)
    }

    /// The same store, opened again.
    pub(crate) fn reopen(self) -> (Self, Hot) {
        assert!(self.raws.is_empty(), "operations are in flight");
        let (tokens, mut store) = (self.tokens, self.store);
        let mark = store.mark();
        store.flush(mark);
        let (mut rig, hot) = Self::open(store, self.rng);
        rig.tokens = tokens;
        (rig, hot)
    }

    pub(crate) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    pub(crate) fn start(&mut self, op: CopyOp, payload: Vec<u64>) -> u64 {
        self.tags += 1;
        let tag = self.tags;
        if let CopyOp::Read { range, .. } = &op {
            self.held.insert(tag, (*range, vec![0; range.count as usize]));
        }
        self.payloads.insert(tag, payload);
        let mut orders = Vec::new();
        self.copy.start(tag, op, &mut orders);
        self.take(orders);
        tag
    }

    fn take(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Raw { raw, op } => self.raws.push((raw, op, self.store.mark())),
                Order::Done { tag, result } => {
                    self.ended.insert(tag, result);
                }
            }
        }
        self.copy.check_invariants();
    }

    fn payload(&self, tag: u64, first: u64) -> Vec<u64> {
        self.payloads[&tag].get(first as usize..).unwrap_or_default().to_vec()
    }

    /// Ends one raw operation, any. False if there is none.
    pub(crate) fn step(&mut self) -> bool {
        if self.raws.is_empty() {
            return false;
        }
        let at = self.rng.below(self.raws.len() as u64) as usize;
        self.end_raw(at);
        true
    }

    pub(crate) fn end_raw(&mut self, at: usize) {
        let (raw, op, mark) = self.raws.swap_remove(at);
        self.raws_done += 1;
        let result = self.refuse.and_then(|refuse| refuse(&op)).unwrap_or_else(|| self.carry_out(op, mark));
        let mut orders = Vec::new();
        self.copy.raw_done(raw, result, &mut orders);
        self.take(orders);
    }

    fn carry_out(&mut self, op: RawOp, mark: u64) -> RawResult {
        match op {
            RawOp::ReadData { tag, range } => {
                if let Some(tag) = tag {
                    let (whole, held) = self.held.get_mut(&tag).expect("a read");
                    for block in range.blocks() {
                        held[(block - whole.start) as usize] = self.store.block(block);
                    }
                }
                return RawResult::Sums(self.store.sums(range));
            }
            RawOp::WriteData { tag, first, range, kind, fua } => {
                if !self.lose_data_writes {
                    let payload = self.payload(tag, first);
                    self.store.write(range, kind, &payload, fua);
                }
            }
            RawOp::ReadPage { page } => return RawResult::Page(self.store.page(page)),
            RawOp::WritePage { page, bytes, durable } => self.store.write_page(page, bytes, durable),
            RawOp::Flush => self.store.flush(mark),
            RawOp::Reserve { .. } => {}
        }
        RawResult::Done
    }

    /// Runs all raw operations to their end, and gives how an operation ended.
    pub(crate) fn finish(&mut self, tag: u64) -> CopyResult {
        while self.step() {}
        self.ended.remove(&tag).expect("the operation has ended")
    }

    pub(crate) fn run(&mut self, op: CopyOp) -> CopyResult {
        let tag = self.start(op, Vec::new());
        self.finish(tag)
    }

    pub(crate) fn heat(&mut self, extents: &[u64]) {
        assert_eq!(self.run(CopyOp::Heat { extents: extents.to_vec() }), ok());
    }

    pub(crate) fn cool(&mut self, extents: &[u64]) {
        assert_eq!(self.run(CopyOp::Cool { extents: extents.to_vec(), bitmaps: Vec::new() }), ok());
    }

    /// Begins a write of new content.
    pub(crate) fn start_write(&mut self, range: BlockRange, kind: WriteKind, fua: bool) -> (u64, Vec<u64>) {
        let data = kind == WriteKind::Data;
        let payload: Vec<u64> = range.blocks().map(|_| if data { self.token() } else { 0 }).collect();
        let sums = if data { self.sums_of(range, &payload) } else { BlockSums::new() };
        (self.start(CopyOp::Write { range, kind, fua, sums }, payload.clone()), payload)
    }

    pub(crate) fn write(&mut self, range: BlockRange) {
        let (tag, _) = self.start_write(range, WriteKind::Data, false);
        assert_eq!(self.finish(tag), ok());
    }

    pub(crate) fn sums_of(&self, range: BlockRange, payload: &[u64]) -> BlockSums {
        let volume = self.store.geometry.volume;
        range.blocks().zip(payload).map(|(block, token)| sum_of(volume, block, *token)).collect()
    }

    pub(crate) fn read(&mut self, range: BlockRange) -> CopyResult {
        let tag = self.start(CopyOp::Read { range, check: ReadCheck::Verify }, Vec::new());
        let result = self.finish(tag);
        let (_, held) = self.held.remove(&tag).expect("a read");
        if let CopyResult::Ok { sums } = &result {
            assert_eq!(*sums, self.sums_of(range, &held), "the sums of a read are those of its data");
        }
        result
    }

    /// Blocks that a read of everything in these extents finds bad.
    pub(crate) fn bad_blocks(&mut self, extents: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        let mut all = BTreeSet::new();
        for extent in extents {
            let start = extent * EXTENT;
            let range = BlockRange::new(start, EXTENT.min(self.store.geometry.blocks - start));
            match self.read(range) {
                CopyResult::Ok { .. } => {}
                CopyResult::Corrupt { bad, .. } => all.extend(bad.into_iter().flat_map(BlockRange::blocks)),
                other => panic!("a read of extent {extent} ended with {other:?}"),
            }
        }
        all
    }

    /// Repairs blocks with what they should hold.
    pub(crate) fn repair(&mut self, range: BlockRange, payload: Vec<u64>) -> CopyResult {
        let sums = self.sums_of(range, &payload);
        let tag = self.start(CopyOp::Repair { range, sums }, payload);
        self.finish(tag)
    }
}

pub(crate) fn ok() -> CopyResult {
    CopyResult::Ok { sums: BlockSums::new() }
}

pub(crate) fn bitmap_page(fill: u8) -> (MetaPage, Page) {
    (MetaPage::Bitmap { slot: 0, page: 0 }, Box::new([fill; 4096]))
}
