//! A random workload, cut at any raw operation: nothing flushed is lost, nothing good is condemned.

use std::collections::{BTreeMap, BTreeSet};

use proto::BlockRange;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use replication::local_copy::{CopyOp, CopyResult, Hot, ReadCheck};

use super::rig::{EXTENT, Rig, bitmap_page, geometry, ok};
use super::store::Rng;

/// What the owner knows.
struct Owner {
    rig: Rig,
    /// Extents in use by this workload.
    extents: Vec<u64>,
    hot: BTreeSet<u64>,
    /// Extents that are being heated or cooled.
    moving: BTreeSet<u64>,
    running: BTreeMap<u64, Task>,
    /// For each block what it may hold: first what is surely on stable media, then what was written since.
    may_hold: BTreeMap<u64, Vec<Version>>,
    /// Blocks whose last write has ended, and is not known to be on stable media.
    ended: BTreeMap<u64, Version>,
    versions: u64,
    moved: u64,
}

/// What a write made of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    number: u64,
    token: u64,
}

enum Task {
    Read(BlockRange, Vec<u64>),
    Write { ranges: Vec<BlockRange>, versions: BTreeMap<u64, Version>, durable: bool },
    Flush(BTreeMap<u64, Version>),
    Heat(Vec<u64>),
    Cool(Vec<u64>),
}

impl Owner {
    fn new(rig: Rig, extents: Vec<u64>) -> Self {
        let (hot, moving, running) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        let (may_hold, ended) = (BTreeMap::new(), BTreeMap::new());
        Self { rig, extents, hot, moving, running, may_hold, ended, versions: 0, moved: 0 }
    }

    /// Runs until `raws` raw operations have ended, and begins operations all the time.
    fn run(&mut self, raws: u64) {
        while self.rig.raws_done < raws {
            if self.running.len() < 6 && (self.rig.raws.is_empty() || self.rig.rng.one_in(3)) {
                self.begin();
            } else {
                self.rig.step();
            }
            self.collect();
        }
    }

    fn collect(&mut self) {
        for (tag, result) in std::mem::take(&mut self.rig.ended) {
            let task = self.running.remove(&tag).expect("a task");
            assert!(matches!(result, CopyResult::Ok { .. }), "{result:?}");
            match task {
                Task::Read(_, expected) => {
                    let (_, held) = self.rig.held.remove(&tag).expect("a read");
                    assert_eq!(held, expected, "a read gives what was written");
                }
                Task::Write { versions, durable, .. } => {
                    for (block, version) in versions {
                        if durable {
                            self.settle(block, version);
                        }
                        self.ended.insert(block, version);
                    }
                }
                Task::Flush(covered) => covered.into_iter().for_each(|(block, version)| self.settle(block, version)),
                Task::Heat(extents) => {
                    self.moved += 1;
                    self.moving.retain(|extent| !extents.contains(extent));
                    self.hot.extend(extents);
                }
                Task::Cool(extents) => {
                    self.moved += 1;
                    self.moving.retain(|extent| !extents.contains(extent));
                    self.hot.retain(|extent| !extents.contains(extent));
                    for (block, may_hold) in &mut self.may_hold {
                        if extents.contains(&(block / EXTENT)) {
                            may_hold.drain(..may_hold.len() - 1);
                        }
                    }
                }
            }
        }
    }

    /// A block certainly holds this, or something newer.
    fn settle(&mut self, block: u64, version: Version) {
        let may_hold = self.may_hold.get_mut(&block).expect("written");
        if let Some(at) = may_hold.iter().position(|held| *held == version) {
            may_hold.drain(..at);
        }
    }

    fn range(&mut self) -> BlockRange {
        let extent = self.extents[self.rig.rng.below(self.extents.len() as u64) as usize];
        let blocks = self.rig.store.geometry.blocks;
        // Few places, so that operations meet; some at the edges of extents and across them.
        let start = extent * EXTENT + [0, 5, 100, 1020][self.rig.rng.below(4) as usize] + self.rig.rng.below(4);
        let count = if self.rig.rng.one_in(8) { 40 } else { 1 + self.rig.rng.below(6) };
        let start = start.min(blocks - 1);
        BlockRange::new(start, count.min(blocks - start))
    }

    fn free(&self, range: BlockRange, read: bool) -> bool {
        self.running.values().all(|task| match task {
            Task::Read(other, _) => read || !other.overlaps(range),
            Task::Write { ranges, .. } => ranges.iter().all(|other| !other.overlaps(range)),
            _ => true,
        })
    }

    fn writable(&self, range: BlockRange) -> bool {
        let mut extents = range.start / EXTENT..range.end().div_ceil(EXTENT);
        extents.all(|extent| self.hot.contains(&extent) && !self.moving.contains(&extent)) && self.free(range, false)
    }

    fn begin(&mut self) {
        match self.rig.rng.below(16) {
            0..=4 => self.begin_write(),
            5 => self.begin_batch(),
            6..=8 => self.begin_read(),
            9 => {
                let covered = self.ended.clone();
                let tag = self.rig.start(CopyOp::Flush, Vec::new());
                self.running.insert(tag, Task::Flush(covered));
            }
            10..=13 => self.begin_heat(),
            _ => self.begin_cool(),
        }
    }

    fn begin_write(&mut self) {
        let range = self.range();
        if !self.writable(range) {
            return;
        }
        let kinds = [WriteKind::Data, WriteKind::Data, WriteKind::Data, WriteKind::Zeroes, WriteKind::Discard];
        let kind = kinds[self.rig.rng.below(5) as usize];
        let fua = self.rig.rng.one_in(4);
        let (tag, payload) = self.rig.start_write(range, kind, fua);
        let versions = self.wrote(&[range], &payload);
        self.running.insert(tag, Task::Write { ranges: vec![range], versions, durable: fua });
    }

    fn begin_batch(&mut self) {
        let (first, second) = (self.range(), self.range());
        if !self.writable(first) || !self.writable(second) || first.overlaps(second) {
            return;
        }
        let payload: Vec<u64> = (0..first.count + second.count).map(|_| self.rig.token()).collect();
        let (one, two) = payload.split_at(first.count as usize);
        let sums: BlockSums = self.rig.sums_of(first, one).into_iter().chain(self.rig.sums_of(second, two)).collect();
        let versions = self.wrote(&[first, second], &payload);
        let tag = self.rig.start(CopyOp::Batch { groups: vec![vec![first], vec![second]], sums }, payload);
        self.running.insert(tag, Task::Write { ranges: vec![first, second], versions, durable: true });
    }

    fn wrote(&mut self, ranges: &[BlockRange], payload: &[u64]) -> BTreeMap<u64, Version> {
        let blocks = ranges.iter().flat_map(|range| range.blocks());
        let mut versions = BTreeMap::new();
        for (block, &token) in blocks.zip(payload) {
            self.versions += 1;
            let version = Version { number: self.versions, token };
            self.may_hold.entry(block).or_insert_with(|| vec![Version { number: 0, token: 0 }]).push(version);
            self.ended.remove(&block);
            versions.insert(block, version);
        }
        versions
    }

    fn begin_read(&mut self) {
        let range = self.range();
        if self.free(range, true) {
            let last = |block| self.may_hold.get(&block).map_or(0, |held| held.last().expect("never empty").token);
            let expected = range.blocks().map(last).collect();
            let tag = self.rig.start(CopyOp::Read { range, check: ReadCheck::Verify }, Vec::new());
            self.running.insert(tag, Task::Read(range, expected));
        }
    }

    fn pick(&mut self, from: impl Fn(&Self, u64) -> bool) -> Vec<u64> {
        let candidates: Vec<u64> = self.extents.iter().copied().filter(|extent| from(self, *extent)).collect();
        let mut picked: Vec<u64> = candidates.into_iter().filter(|_| self.rig.rng.one_in(2)).collect();
        picked.dedup();
        picked
    }

    fn begin_heat(&mut self) {
        // An extent that is being cooled may be asked for as well; one that waits already is left alone.
        let extents = self.pick(|owner, extent| !owner.moving.contains(&extent));
        if !extents.is_empty() {
            self.moving.extend(&extents);
            let tag = self.rig.start(CopyOp::Heat { extents: extents.clone() }, Vec::new());
            self.running.insert(tag, Task::Heat(extents));
        }
    }

    fn begin_cool(&mut self) {
        let extents = self.pick(|owner, extent| {
            let range = BlockRange::new(extent * EXTENT, EXTENT);
            let written = |task: &Task| match task {
                Task::Write { ranges, .. } => ranges.iter().any(|other| other.overlaps(range)),
                _ => false,
            };
            owner.hot.contains(&extent) && !owner.moving.contains(&extent) && !owner.running.values().any(written)
        });
        if !extents.is_empty() {
            self.moving.extend(&extents);
            let cool = CopyOp::Cool { extents: extents.clone(), bitmaps: vec![bitmap_page(1)] };
            let tag = self.rig.start(cool, Vec::new());
            self.running.insert(tag, Task::Cool(extents));
        }
    }

    /// Power fails, and comes back: what is there is checked, and is what may be there from now on.
    fn cut(self) -> Self {
        let (mut rig, hot) = self.rig.cut();
        let hot: BTreeSet<u64> = match hot {
            Hot::All => (0..rig.store.geometry.blocks.div_ceil(EXTENT)).collect(),
            Hot::Extents(extents) => extents.into_iter().collect(),
        };
        for (&block, may_hold) in &self.may_hold {
            let held = rig.store.block(block);
            let torn = held > u64::MAX / 2 && may_hold.len() > 1;
            assert!(
                torn || may_hold.iter().any(|version| version.token == held),
                "block {block} holds {held}, not one of {may_hold:?}"
            );
            let newest = may_hold.last().expect("never empty").token;
            assert!(held == newest || hot.contains(&(block / EXTENT)), "an old block {block} in a cold extent");
        }
        let bad = rig.bad_blocks(self.extents.iter().copied());
        assert!(bad.is_empty(), "good blocks are condemned: {bad:?}");
        let mut owner = Self::new(rig, self.extents);
        let store = &owner.rig.store;
        owner.may_hold = self
            .may_hold
            .into_keys()
            .map(|block| (block, vec![Version { number: 0, token: store.block(block) }]))
            .collect();
        owner.hot = hot;
        owner.moved = self.moved;
        owner
    }
}

/// Extents that lie on both sides of a boundary between index pages, and the last one, which is short.
fn owner_of(seed: u64) -> Owner {
    let mut rng = Rng(seed ^ 0x5eed);
    let (log_pages, cached) = (2 + rng.below(6) as u32, rng.below(5) as usize);
    let rig = Rig::new(geometry(258, 517, log_pages, cached), seed);
    Owner::new(rig, vec![0, 1, 2, 253, 254, 255, 256, 257, 258])
}

#[test]
fn after_a_power_cut_anywhere_nothing_flushed_is_lost_and_nothing_good_is_condemned() {
    let (mut cuts, mut moved) = (0, 0);
    for seed in 0..700 {
        let mut owner = owner_of(seed);
        for _ in 0..4 {
            let raws = 1 + owner.rig.rng.below(160);
            owner.run(raws);
            owner = owner.cut();
            cuts += 1;
        }
        moved += owner.moved;
    }
    assert!(cuts == 2800 && moved > 10_000, "{cuts} cuts, {moved} extents heated or cooled");
}

#[test]
fn a_power_cut_at_every_step_of_one_workload_loses_nothing() {
    for raws in 1..500 {
        let mut owner = owner_of(1_000_003);
        owner.run(raws);
        owner.cut();
    }
}

#[test]
fn an_orderly_end_leaves_every_sum_known_and_right() {
    for seed in 0..60 {
        let mut owner = owner_of(seed);
        owner.run(400);
        while owner.rig.step() {}
        owner.collect();
        let hot: Vec<u64> = std::mem::take(&mut owner.hot).into_iter().collect();
        owner.rig.cool(&hot);
        let (mut rig, hot) = owner.rig.reopen();
        assert_eq!(hot, Hot::Extents(Vec::new()), "seed {seed}");
        assert!(rig.bad_blocks(owner.extents.clone()).is_empty());
        assert_eq!(rig.copy.counters(), Default::default(), "seed {seed}: nothing is unknown or damaged");
        assert_eq!(rig.run(CopyOp::Flush), ok());
    }
}

/// Between the sums being taken over and the extent being cold a crash forgets them, but then the extent is hot, so that
/// the source tells them again; and the blocks hold what they held.
#[test]
fn after_a_power_cut_expected_sums_are_known_or_their_extent_is_hot() {
    let (mut known, mut forgotten) = (0, 0);
    for (seed, raws) in (0..20).flat_map(|seed| (0..10).map(move |raws| (seed, raws))) {
        let mut rig = Rig::new(geometry(3, 0, 4, 1), seed);
        let range = BlockRange::new(EXTENT + 3, 8);
        rig.heat(&[1]);
        rig.write(range);
        rig.cool(&[1]);
        rig.heat(&[1]);
        rig.write(BlockRange::new(EXTENT + 100, 3));
        let held: Vec<u64> = range.blocks().map(|block| rig.store.block(block)).collect();
        let mut should = held.clone();
        should[5] = rig.token();
        let sums = rig.sums_of(range, &should);
        assert_eq!(rig.run(CopyOp::Expect { range, sums }), ok());
        rig.start(CopyOp::Cool { extents: vec![1], bitmaps: Vec::new() }, Vec::new());
        (0..raws).for_each(|_| _ = rig.step());
        let (mut rig, hot) = rig.cut();
        let now: Vec<u64> = range.blocks().map(|block| rig.store.block(block)).collect();
        assert_eq!(now, held, "seed {seed}, {raws} steps");
        let is_hot = hot != Hot::Extents(Vec::new());
        let bad: BTreeSet<u64> = if is_hot { BTreeSet::new() } else { [range.start + 5].into() };
        assert_eq!(rig.bad_blocks(0..3), bad, "seed {seed}, {raws} steps, {hot:?}");
        known += u64::from(!is_hot);
        forgotten += u64::from(is_hot);
    }
    assert!(known > 0 && forgotten > 0, "{known} {forgotten}");
}
