//! Writes, batches of them, and pages of dirty bitmaps.

use proto::BlockRange;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;

use super::engine::{LocalCopy, Next, Op, Purpose, done};
use super::{MetaPage, Order, Page, RawOp};

/// A write in flight.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) range: BlockRange,
}

/// A batch in flight.
#[derive(Debug)]
pub(super) struct Batch {
    groups: Vec<Vec<BlockRange>>,
    /// The group being written, or flushed.
    group: usize,
    /// Block of the payload at which the next group begins.
    first: u64,
    written: bool,
}

impl Batch {
    /// All ranges of all groups.
    pub(super) fn ranges(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.groups.iter().flatten().copied()
    }
}

/// Pages of bitmaps that are still to be written, the last first.
#[derive(Debug)]
pub(super) struct Bitmaps {
    left: Vec<(MetaPage, Page)>,
}

impl LocalCopy {
    pub(super) fn start_write(
        &mut self,
        tag: u64,
        range: BlockRange,
        kind: WriteKind,
        fua: bool,
        sums: &BlockSums,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        self.extents.write_begins(range);
        match kind {
            WriteKind::Data => self.extents.set_sums(range, sums),
            WriteKind::Zeroes | WriteKind::Discard => {
                for block in range.blocks() {
                    let sum = self.extents.zeros(block);
                    self.extents.set_sum(block, sum);
                }
            }
        }
        self.give(RawOp::WriteData { tag, first: 0, range, kind, fua }, Purpose::Step { tag }, orders);
        (Op::Write(Write { range }), Next::Wait(1))
    }

    pub(super) fn start_batch(
        &mut self,
        tag: u64,
        groups: Vec<Vec<BlockRange>>,
        sums: &BlockSums,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        let mut batch = Batch { groups, group: 0, first: 0, written: false };
        let mut at = 0;
        for range in batch.ranges() {
            self.extents.write_begins(range);
            self.extents.set_sums(range, &sums[at..at + range.count as usize]);
            at += range.count as usize;
        }
        assert_eq!(at, sums.len(), "one sum a block");
        let next = self.advance_batch(tag, &mut batch, orders);
        (Op::Batch(batch), next)
    }

    pub(super) fn advance_batch(&mut self, tag: u64, batch: &mut Batch, orders: &mut Vec<Order>) -> Next {
        if std::mem::replace(&mut batch.written, false) {
            batch.group += 1;
            self.give(RawOp::Flush, Purpose::Step { tag }, orders);
            return Next::Wait(1);
        }
        let Some(group) = batch.groups.get(batch.group) else { return done() };
        for &range in group {
            let write = RawOp::WriteData { tag, first: batch.first, range, kind: WriteKind::Data, fua: false };
            self.give(write, Purpose::Step { tag }, orders);
            batch.first += range.count;
        }
        batch.written = true;
        Next::Wait(group.len())
    }

    pub(super) fn start_bitmaps(
        &mut self,
        tag: u64,
        mut pages: Vec<(MetaPage, Page)>,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        pages.reverse();
        let mut bitmaps = Bitmaps { left: pages };
        let next = self.advance_bitmaps(tag, &mut bitmaps, orders);
        (Op::Bitmap(bitmaps), next)
    }

    pub(super) fn advance_bitmaps(&mut self, tag: u64, bitmaps: &mut Bitmaps, orders: &mut Vec<Order>) -> Next {
        let Some((page, bytes)) = bitmaps.left.pop() else { return done() };
        self.give(RawOp::WritePage { page, bytes, durable: true }, Purpose::Step { tag }, orders);
        Next::Wait(1)
    }
}
