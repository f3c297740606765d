//! The engine of [`super`]: opens a copy, numbers raw operations, brings their ends to the operations that wait for them.
//!
//! Every operation goes through phases. A phase gives out raw operations and counts them down; when the last has ended the
//! operation goes on to its next phase, or ends. Reserving, loading a checksum page, a log transaction and an index page's
//! write are shared: any number of operations wait for one of them.

use std::collections::BTreeMap;

use proto::BlockRange;
use proto::checksum::BlockSums;

use super::cool::Cool;
use super::extents::{Extents, Heat};
use super::heat::{Heating, Reserving};
use super::index::Index;
use super::log::Log;
use super::read::{Read, Repair};
use super::write::{Batch, Bitmaps, Write};
use super::{Areas, CopyOp, CopyResult, Counters, Geometry, Hot, MetaPage, Order, Page, RawId, RawOp, RawResult};
use crate::window::Window;

/// See the module's header.
#[derive(Debug)]
pub struct LocalCopy {
    pub(super) extents: Extents,
    pub(super) log: Log,
    pub(super) index: Index,
    /// Extents on their way from cold to hot.
    pub(super) heating: BTreeMap<u64, Heating>,
    /// Space being reserved for extents on that way, by the operation that began it.
    pub(super) reserving: BTreeMap<u64, Reserving>,
    /// Who wants an extent hot that is being cooled.
    pub(super) reheat: BTreeMap<u64, Vec<u64>>,
    /// Checksum pages being loaded, and who waits.
    pub(super) loads: BTreeMap<u64, Vec<Waiter>>,
    pub(super) counters: Counters,
    ops: Window<u64, Running>,
    raws: Raws,
    /// A raw operation has failed; every operation fails from then on.
    failed: bool,
}

/// What the raw operations in flight are for. The window is as long as there were operations since the oldest that has not
/// ended; the shell gives a disk up that leaves one without an end.
#[derive(Debug, Default)]
struct Raws {
    open: Window<RawId, Purpose>,
    next: u64,
}

impl Raws {
    fn insert(&mut self, purpose: Purpose) -> RawId {
        let raw = RawId(self.next);
        self.next += 1;
        self.open.insert(raw, purpose);
        raw
    }

    fn remove(&mut self, raw: RawId) -> Option<Purpose> {
        self.open.remove(&raw)
    }
}

/// An operation in flight.
#[derive(Debug)]
struct Running {
    /// What the present phase still waits for.
    pending: usize,
    /// The worst that happened so far.
    trouble: Option<Trouble>,
    op: Op,
}

/// Why an operation cannot end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    NoSpace,
    Failed,
}

/// An operation and where it is.
#[derive(Debug)]
pub(super) enum Op {
    Read(Read),
    Repair(Repair),
    Write(Write),
    Batch(Batch),
    Flush,
    Heat,
    Cool(Cool),
    Bitmap(Bitmaps),
    Expect,
}

/// What a raw operation is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A step of an operation with no answer of its own.
    Step {
        tag: u64,
    },
    /// Data of a read.
    Data {
        tag: u64,
        range: BlockRange,
    },
    /// Data of a cooling extent whose sums are unknown.
    Learn {
        tag: u64,
        range: BlockRange,
    },
    /// A block written anew.
    Mend {
        tag: u64,
        range: BlockRange,
    },
    /// A checksum page.
    Load {
        extent: u64,
    },
    Reserve {
        tag: u64,
        extent: u64,
    },
    Log {
        group: u32,
    },
    Index {
        page: u32,
    },
}

/// Who waits for a checksum page.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiter {
    Op(u64),
    Heating,
}

/// What an operation does after a phase.
pub(super) enum Next {
    /// It has given out this many raw operations, or waits for as many shared ones.
    Wait(usize),
    Done(CopyResult),
}

/// An end without sums.
pub(super) fn done() -> Next {
    Next::Done(CopyResult::Ok { sums: BlockSums::new() })
}

impl LocalCopy {
    /// Opens a copy with what its store holds. Damaged pages are never an error: what they said is unknown.
    pub fn open(geometry: Geometry, areas: Areas<'_>) -> (Self, Hot) {
        let count = geometry.blocks.div_ceil(proto::EXTENT_BLOCKS);
        let (index, entries, pages_damaged) = Index::recover(&geometry, count, areas.index);
        let (log, believed) = Log::recover(&geometry, count, areas.log);
        let pages_damaged = pages_damaged + log.damaged();
        let mut extents = Extents::new(&geometry, entries);
        let listed: Vec<u64> = (0..count).filter(|extent| log.lists(*extent)).collect();
        for &extent in &listed {
            extents.recover_hot(extent);
        }
        let hot = if believed.iter().all(|good| !good) { Hot::All } else { Hot::Extents(listed) };
        let copy = Self {
            extents,
            log,
            index,
            heating: BTreeMap::new(),
            reserving: BTreeMap::new(),
            reheat: BTreeMap::new(),
            loads: BTreeMap::new(),
            counters: Counters { pages_damaged, ..Counters::default() },
            ops: Window::default(),
            raws: Raws::default(),
            failed: false,
        };
        (copy, hot)
    }

    /// Pages of a damaged log, to be written in any order and flushed before the first operation begins.
    pub fn mend_log(&mut self) -> Vec<(MetaPage, Page)> {
        self.log.mend()
    }

    /// Begins an operation; `tag` is unique while it runs. It may end within this call.
    pub fn start(&mut self, tag: u64, op: CopyOp, orders: &mut Vec<Order>) {
        if self.failed {
            orders.push(Order::Done { tag, result: CopyResult::Failed });
            return;
        }
        let (op, next) = match op {
            CopyOp::Read { range, check } => self.start_read(tag, range, check, orders),
            CopyOp::Repair { range, sums } => self.start_repair(tag, range, sums, orders),
            CopyOp::Expect { range, sums } => self.start_expect(range, &sums),
            CopyOp::Write { range, kind, fua, sums } => self.start_write(tag, range, kind, fua, &sums, orders),
            CopyOp::Batch { groups, sums } => self.start_batch(tag, groups, &sums, orders),
            CopyOp::Flush => {
                self.give(RawOp::Flush, Purpose::Step { tag }, orders);
                (Op::Flush, Next::Wait(1))
            }
            CopyOp::Heat { extents } => (Op::Heat, Next::Wait(self.start_heat(tag, &extents, orders))),
            CopyOp::Cool { extents, bitmaps } => self.start_cool(tag, extents, bitmaps, orders),
            CopyOp::Settle => self.start_settle(tag, orders),
            CopyOp::Bitmap { pages } => self.start_bitmaps(tag, pages, orders),
        };
        self.go_on(tag, Running { pending: 0, trouble: None, op }, next, orders);
    }

    /// A raw operation has ended.
    pub fn raw_done(&mut self, raw: RawId, result: RawResult, orders: &mut Vec<Order>) {
        let purpose = self.raws.remove(raw).expect("a raw operation that was given out");
        let trouble = match result {
            RawResult::NoSpace => Some(Trouble::NoSpace),
            RawResult::Failed => {
                self.failed = true;
                Some(Trouble::Failed)
            }
            _ => None,
        };
        match (purpose, result) {
            (Purpose::Data { tag, range }, RawResult::Sums(sums)) => {
                self.data_read(tag, range, sums);
                self.step(tag, None, orders);
            }
            (Purpose::Learn { tag, range }, RawResult::Sums(sums)) => {
                self.learn(range, &sums);
                self.step(tag, None, orders);
            }
            (Purpose::Mend { tag, range }, RawResult::Done) => {
                self.counters.repaired += range.count;
                self.extents.mended(range);
                self.step(tag, None, orders);
            }
            (Purpose::Load { extent }, RawResult::Page(page)) => {
                if !self.extents.loaded(extent, &page) {
                    self.counters.pages_damaged += 1;
                }
                self.load_ended(extent, None, orders);
            }
            (Purpose::Load { extent }, _) => self.load_ended(extent, trouble, orders),
            (Purpose::Reserve { tag, extent }, _) => self.reserve_ended(tag, extent, trouble, orders),
            (Purpose::Log { group }, _) => self.log_ended(group, trouble, orders),
            (Purpose::Index { page }, _) => self.index_ended(page, trouble, orders),
            (
                Purpose::Step { tag }
                | Purpose::Data { tag, .. }
                | Purpose::Learn { tag, .. }
                | Purpose::Mend { tag, .. },
                _,
            ) => self.step(tag, trouble, orders),
        }
    }

    /// What has been found since the copy was opened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Extents that are hot, those that are being cooled included.
    pub fn hot_extents(&self) -> u64 {
        self.extents.hot()
    }

    /// The sum of a block, if it is in memory or follows from the index.
    pub fn sum_of(&self, block: u64) -> Option<u32> {
        self.extents.sum(block)
    }

    /// Whether there are cold extents of which sums in memory are not on stable media: a restart would forget them, and
    /// take rot for good that they would have shown. [`CopyOp::Settle`] changes that.
    pub fn is_unsettled(&self) -> bool {
        self.extents.is_unsettled()
    }

    /// Panics if the state contradicts itself.
    pub fn check_invariants(&self) {
        self.extents.check_invariants();
        for extent in (0..self.extents.count()).filter(|_| !self.failed) {
            let heat = self.extents.heat(extent);
            assert!(heat != Heat::Hot || self.log.lists(extent), "extent {extent} is hot, but not in the log");
            assert!(heat != Heat::Cold || !self.log.lists(extent), "extent {extent} is cold, but in the log");
            assert_eq!(heat == Heat::Heating, self.heating.contains_key(&extent), "extent {extent}");
            assert!(heat == Heat::Cooling || !self.reheat.contains_key(&extent), "extent {extent}");
        }
        for (tag, running) in self.ops.iter() {
            assert!(running.pending > 0, "operation {tag} waits for nothing: {running:?}");
        }
    }

    pub(super) fn op(&mut self, tag: u64) -> &mut Op {
        &mut self.ops.get_mut(&tag).expect("an operation in flight").op
    }

    pub(super) fn give(&mut self, op: RawOp, purpose: Purpose, orders: &mut Vec<Order>) {
        let raw = self.raws.insert(purpose);
        orders.push(Order::Raw { raw, op });
    }

    /// Something that operation `tag` waits for has ended.
    pub(super) fn step(&mut self, tag: u64, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        let running = self.ops.get_mut(&tag).expect("an operation in flight");
        running.pending -= 1;
        running.trouble = running.trouble.max(trouble);
        if running.pending > 0 {
            return;
        }
        let mut running = self.ops.remove(&tag).expect("found above");
        let next = match running.trouble {
            Some(trouble) => self.end_badly(&mut running.op, trouble, orders),
            None => self.advance(tag, &mut running.op, orders),
        };
        self.go_on(tag, running, next, orders);
    }

    fn go_on(&mut self, tag: u64, mut running: Running, mut next: Next, orders: &mut Vec<Order>) {
        loop {
            match next {
                Next::Wait(0) => next = self.advance(tag, &mut running.op, orders),
                Next::Wait(pending) => {
                    running.pending = pending;
                    let former = self.ops.insert(tag, running);
                    assert!(former.is_none(), "tag {tag} is in use");
                    return;
                }
                Next::Done(result) => {
                    self.put_down(&running.op);
                    orders.push(Order::Done { tag, result });
                    return;
                }
            }
        }
    }

    /// The next phase of an operation whose last one went well.
    fn advance(&mut self, tag: u64, op: &mut Op, orders: &mut Vec<Order>) -> Next {
        match op {
            Op::Read(read) => self.advance_read(tag, read, orders),
            Op::Repair(repair) => self.advance_repair(tag, repair, orders),
            Op::Batch(batch) => self.advance_batch(tag, batch, orders),
            Op::Cool(cool) => self.advance_cool(tag, cool, orders),
            Op::Bitmap(bitmaps) => self.advance_bitmaps(tag, bitmaps, orders),
            Op::Write(_) | Op::Flush | Op::Heat | Op::Expect => done(),
        }
    }

    fn end_badly(&mut self, op: &mut Op, trouble: Trouble, orders: &mut Vec<Order>) -> Next {
        match op {
            Op::Write(write) => self.extents.forget(write.range),
            Op::Batch(batch) => batch.ranges().for_each(|range| self.extents.forget(range)),
            Op::Cool(cool) => self.cooling_failed(cool, trouble, orders),
            Op::Read(_) | Op::Repair(_) | Op::Flush | Op::Heat | Op::Bitmap(_) | Op::Expect => {}
        }
        Next::Done(match trouble {
            Trouble::NoSpace => CopyResult::NoSpace,
            Trouble::Failed => CopyResult::Failed,
        })
    }

    /// Gives back what an operation held.
    fn put_down(&mut self, op: &Op) {
        match op {
            Op::Read(read) => self.extents.unpin(read.range),
            Op::Repair(repair) => self.extents.unpin(repair.range),
            Op::Write(write) => self.extents.write_ends(write.range),
            Op::Batch(batch) => batch.ranges().for_each(|range| self.extents.write_ends(range)),
            Op::Cool(_) => self.extents.evict(),
            Op::Flush | Op::Heat | Op::Bitmap(_) | Op::Expect => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_operations_are_found_by_their_number_in_whatever_order_they_end() {
        let mut raws = Raws::default();
        let given: Vec<RawId> = (0..6).map(|tag| raws.insert(Purpose::Step { tag })).collect();
        for at in [3, 0, 5, 1, 2, 4] {
            let purpose = raws.remove(given[at]);
            assert!(matches!(purpose, Some(Purpose::Step { tag }) if tag == at as u64), "{purpose:?}");
            assert!(raws.remove(given[at]).is_none(), "ended once");
        }
        assert!(raws.open.is_empty());
        assert!(!given.contains(&raws.insert(Purpose::Step { tag: 6 })), "a number is given once");
    }
}
