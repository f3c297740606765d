//! Extents become cold: their sums become known and go to stable media, then the index, then the log follow.
//!
//! The order is what makes a crash harmless. Until the log has dropped an extent it counts as hot and nothing of its sums
//! is believed; by then data, checksum page and index entry are on stable media and agree.

use std::collections::BTreeMap;

use proto::BlockRange;

use super::engine::{LocalCopy, Next, Op, Purpose, Trouble, done};
use super::extents::{Entry, Heat};
use super::index::Index;
use super::log::Log;
use super::{MetaPage, Order, Page, RawOp};

/// Extents whose sums are settled together.
const SETTLE_MAX: usize = 16;

/// A cooling in flight.
#[derive(Debug)]
pub(super) struct Cool {
    extents: Vec<u64>,
    /// The index entries of `extents`, once their pages are being written.
    entries: Vec<Entry>,
    bitmaps: Vec<(MetaPage, Page)>,
    phase: Phase,
}

/// What is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reads of blocks whose sums are unknown.
    Learn,
    /// Writes of checksum pages and bitmaps.
    Pages,
    Flush,
    Index,
    Log,
}

impl LocalCopy {
    pub(super) fn start_cool(
        &mut self,
        tag: u64,
        extents: Vec<u64>,
        bitmaps: Vec<(MetaPage, Page)>,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        for &extent in &extents {
            let heat = self.extents.heat(extent);
            assert!(heat == Heat::Hot, "extent {extent} is to be cooled and is {heat:?}");
            assert!(self.extents.writes(extent) == 0, "extent {extent} is to be cooled and is written to");
        }
        self.begin_cooling(tag, extents, bitmaps, orders)
    }

    /// Extents that are cold already go the same way: nobody believes their page on disk before the index names the new one.
    pub(super) fn start_settle(&mut self, tag: u64, orders: &mut Vec<Order>) -> (Op, Next) {
        let extents = self.extents.take_unsettled(SETTLE_MAX);
        if extents.is_empty() {
            return (Op::Flush, done());
        }
        self.begin_cooling(tag, extents, Vec::new(), orders)
    }

    fn begin_cooling(
        &mut self,
        tag: u64,
        extents: Vec<u64>,
        bitmaps: Vec<(MetaPage, Page)>,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        let mut reads = 0;
        for &extent in &extents {
            self.extents.set_heat(extent, Heat::Cooling);
            for range in self.extents.unknown_runs(extent) {
                self.give(RawOp::ReadData { tag: None, range }, Purpose::Learn { tag, range }, orders);
                reads += 1;
            }
        }
        (Op::Cool(Cool { extents, entries: Vec::new(), bitmaps, phase: Phase::Learn }), Next::Wait(reads))
    }

    /// Data of blocks with unknown sums have been read. A read in the meantime may have taken them first.
    pub(super) fn learn(&mut self, range: BlockRange, sums: &[u32]) {
        assert_eq!(sums.len() as u64, range.count, "one sum a block");
        for (block, &sum) in range.blocks().zip(sums) {
            if self.extents.sum(block).is_none() {
                self.extents.set_sum(block, sum);
                self.counters.unverified += 1;
            }
        }
    }

    pub(super) fn advance_cool(&mut self, tag: u64, cool: &mut Cool, orders: &mut Vec<Order>) -> Next {
        match cool.phase {
            Phase::Learn => {
                cool.phase = Phase::Pages;
                self.write_sums(tag, cool, orders)
            }
            Phase::Pages => {
                cool.phase = Phase::Flush;
                self.give(RawOp::Flush, Purpose::Step { tag }, orders);
                Next::Wait(1)
            }
            Phase::Flush => {
                cool.phase = Phase::Index;
                self.write_entries(tag, cool, orders)
            }
            Phase::Index => {
                cool.phase = Phase::Log;
                // The log does not list those that were cold.
                let listed: Vec<u64> = cool.extents.iter().copied().filter(|extent| self.log.lists(*extent)).collect();
                let groups = split(&listed, Log::group_of);
                for (group, extents) in &groups {
                    self.log.cool(*group, tag, extents);
                    self.write_log(*group, orders);
                }
                Next::Wait(groups.len())
            }
            Phase::Log => {
                for &extent in &cool.extents {
                    self.extents.set_heat(extent, Heat::Cold);
                    if let Some(waiting) = self.reheat.remove(&extent) {
                        self.begin_heating(extent, waiting, orders);
                    }
                }
                done()
            }
        }
    }

    fn write_sums(&mut self, tag: u64, cool: &mut Cool, orders: &mut Vec<Order>) -> Next {
        let mut pages = std::mem::take(&mut cool.bitmaps);
        for &extent in &cool.extents {
            let (page, entry) = self.extents.page(extent);
            cool.entries.push(entry);
            pages.push((MetaPage::Sums { extent }, page));
        }
        let count = pages.len();
        for (page, bytes) in pages {
            self.give(RawOp::WritePage { page, bytes, durable: false }, Purpose::Step { tag }, orders);
        }
        Next::Wait(count)
    }

    fn write_entries(&mut self, tag: u64, cool: &Cool, orders: &mut Vec<Order>) -> Next {
        // From here on any write of these index pages carries the entries. What they name is on stable media.
        for (&extent, &entry) in cool.extents.iter().zip(&cool.entries) {
            self.extents.set_entry(extent, entry);
        }
        let pages = split(&cool.extents, Index::page_of);
        for &page in pages.keys() {
            self.index.queue(page, tag);
            self.write_index(page, orders);
        }
        Next::Wait(pages.len())
    }

    fn write_index(&mut self, page: u32, orders: &mut Vec<Order>) {
        if !self.index.ready(page).is_empty() {
            let (place, bytes) = self.index.begin(page, &self.extents);
            self.give(RawOp::WritePage { page: place, bytes, durable: true }, Purpose::Index { page }, orders);
        }
    }

    pub(super) fn index_ended(&mut self, page: u32, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        let mut tags = self.index.end(page);
        // Like the log's, the index's space is its own.
        let failed = trouble.map(|_| Trouble::Failed);
        if failed.is_some() {
            tags.extend(self.index.give_up(page));
        } else {
            self.write_index(page, orders);
        }
        for tag in tags {
            self.step(tag, failed, orders);
        }
    }

    /// The extents stay hot; who waits to make them hot again has what it wants, unless the medium has failed. Those that
    /// were cold stay cold.
    pub(super) fn cooling_failed(&mut self, cool: &Cool, trouble: Trouble, orders: &mut Vec<Order>) {
        let failed = (trouble == Trouble::Failed).then_some(trouble);
        for &extent in &cool.extents {
            let was = if self.log.lists(extent) { Heat::Hot } else { Heat::Cold };
            self.extents.set_heat(extent, was);
        }
        for extent in &cool.extents {
            let Some(waiting) = self.reheat.remove(extent) else { continue };
            if failed.is_none() && self.extents.heat(*extent) == Heat::Cold {
                self.begin_heating(*extent, waiting, orders);
                continue;
            }
            for tag in waiting {
                self.step(tag, failed, orders);
            }
        }
    }
}

/// Splits ascending extents by the page that speaks of them.
fn split(extents: &[u64], page_of: impl Fn(u64) -> u32) -> BTreeMap<u32, Vec<u64>> {
    let mut out: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for &extent in extents {
        out.entry(page_of(extent)).or_default().push(extent);
    }
    out
}
