//! Verified reads, and the repair of what they find bad.

use proto::BlockRange;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;

use super::engine::{LocalCopy, Next, Op, Purpose, Trouble, Waiter};
use super::extents::{Extents, Heat, push_block};
use super::{CopyResult, MetaPage, Order, RawOp, ReadCheck};

/// A read in flight.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) range: BlockRange,
    check: ReadCheck,
    /// Of what was read last.
    sums: BlockSums,
    /// What did not match and is being read again.
    suspect: Option<Vec<BlockRange>>,
}

/// A repair in flight.
#[derive(Debug)]
pub(super) struct Repair {
    pub(super) range: BlockRange,
    sums: BlockSums,
    begun: bool,
    bad: Vec<BlockRange>,
}

impl LocalCopy {
    pub(super) fn start_read(
        &mut self,
        tag: u64,
        range: BlockRange,
        check: ReadCheck,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        if check == ReadCheck::Resum {
            let cold = Extents::of(range).find(|extent| self.extents.heat(*extent) != Heat::Hot);
            assert!(cold.is_none(), "sums of cold extent {cold:?} are to be taken from its data");
        }
        self.extents.pin(range);
        let loads = self.load_missing(tag, range, orders);
        self.give(RawOp::ReadData { tag: Some(tag), range }, Purpose::Data { tag, range }, orders);
        let read = Read { range, check, sums: BlockSums::new(), suspect: None };
        (Op::Read(read), Next::Wait(loads + 1))
    }

    /// Data of a read have arrived.
    pub(super) fn data_read(&mut self, tag: u64, range: BlockRange, sums: BlockSums) {
        assert_eq!(sums.len() as u64, range.count, "one sum a block");
        let Op::Read(read) = self.op(tag) else { unreachable!("data of a read") };
        if range == read.range {
            read.sums = sums;
        } else {
            let at = (range.start - read.range.start) as usize;
            read.sums[at..at + sums.len()].copy_from_slice(&sums);
        }
    }

    pub(super) fn advance_read(&mut self, tag: u64, read: &mut Read, orders: &mut Vec<Order>) -> Next {
        let again = read.suspect.take();
        let mut bad = Vec::new();
        for range in again.as_deref().unwrap_or(&[read.range]) {
            let at = (range.start - read.range.start) as usize;
            self.compare(*range, &read.sums[at..], read.check, &mut bad);
        }
        if let Some(suspect) = again {
            self.counters.reread += self.extents.newly_bad(&suspect) - self.extents.newly_bad(&bad);
            self.extents.note_bad(&bad);
            if !bad.is_empty() {
                return self.end_corrupt(read, bad);
            }
        }
        if bad.is_empty() {
            return Next::Done(CopyResult::Ok { sums: std::mem::take(&mut read.sums) });
        }
        // A block that stays bad is found by every read of it; it counts once.
        self.counters.mismatches += self.extents.newly_bad(&bad);
        for &range in &bad {
            self.give(RawOp::ReadData { tag: Some(tag), range }, Purpose::Data { tag, range }, orders);
        }
        let runs = bad.len();
        read.suspect = Some(bad);
        Next::Wait(runs)
    }

    /// The sums of bad blocks are told as they should be: a peer that is told of the block may have it.
    fn end_corrupt(&self, read: &mut Read, bad: Vec<BlockRange>) -> Next {
        let mut sums = std::mem::take(&mut read.sums);
        for block in bad.iter().flat_map(|run| run.blocks()) {
            sums[(block - read.range.start) as usize] = self.extents.sum(block).expect("a bad block has a sum");
        }
        Next::Done(CopyResult::Corrupt { bad, sums })
    }

    /// Compares what was read with the sums; takes those that are unknown, or all, from it.
    fn compare(&mut self, range: BlockRange, read: &[u32], check: ReadCheck, bad: &mut Vec<BlockRange>) {
        if self.extents.are(range, &read[..range.count as usize]) {
            return;
        }
        for (block, &sum) in range.blocks().zip(read) {
            match (self.extents.sum(block), check) {
                (Some(own), _) if own == sum => {}
                (Some(_), ReadCheck::Verify) => push_block(bad, block),
                (None, ReadCheck::Verify) => {
                    self.counters.unverified += 1;
                    self.extents.set_sum(block, sum);
                }
                (_, ReadCheck::Resum) => self.extents.set_sum(block, sum),
            }
        }
    }

    pub(super) fn start_repair(
        &mut self,
        tag: u64,
        range: BlockRange,
        sums: BlockSums,
        orders: &mut Vec<Order>,
    ) -> (Op, Next) {
        assert_eq!(sums.len() as u64, range.count, "one sum a block");
        self.extents.pin(range);
        let loads = self.load_missing(tag, range, orders);
        (Op::Repair(Repair { range, sums, begun: false, bad: Vec::new() }), Next::Wait(loads))
    }

    pub(super) fn advance_repair(&mut self, tag: u64, repair: &mut Repair, orders: &mut Vec<Order>) -> Next {
        if std::mem::replace(&mut repair.begun, true) {
            let bad = std::mem::take(&mut repair.bad);
            let good = CopyResult::Ok { sums: BlockSums::new() };
            return Next::Done(if bad.is_empty() { good } else { CopyResult::Corrupt { bad, sums: BlockSums::new() } });
        }
        let mut matching = Vec::new();
        for (block, &sum) in repair.range.blocks().zip(&repair.sums) {
            let matches = self.extents.sum(block) == Some(sum);
            push_block(if matches { &mut matching } else { &mut repair.bad }, block);
        }
        for &range in &matching {
            let first = range.start - repair.range.start;
            let write = RawOp::WriteData { tag, first, range, kind: WriteKind::Data, fua: false };
            self.give(write, Purpose::Mend { tag, range }, orders);
        }
        Next::Wait(matching.len())
    }

    /// Has checksum pages loaded that the range needs and memory lacks. Gives how many there are to wait for.
    fn load_missing(&mut self, tag: u64, range: BlockRange, orders: &mut Vec<Order>) -> usize {
        let mut missing = 0;
        for extent in Extents::of(range) {
            if self.extents.must_load(extent) {
                self.load(extent, Waiter::Op(tag), orders);
                missing += 1;
            }
        }
        missing
    }

    /// Has a checksum page loaded, or waits for a load in flight.
    pub(super) fn load(&mut self, extent: u64, waiter: Waiter, orders: &mut Vec<Order>) {
        let waiters = self.loads.entry(extent).or_default();
        waiters.push(waiter);
        if waiters.len() == 1 {
            self.give(RawOp::ReadPage { page: MetaPage::Sums { extent } }, Purpose::Load { extent }, orders);
        }
    }

    pub(super) fn load_ended(&mut self, extent: u64, trouble: Option<Trouble>, orders: &mut Vec<Order>) {
        for waiter in self.loads.remove(&extent).unwrap_or_default() {
            match waiter {
                Waiter::Op(tag) => self.step(tag, trouble, orders),
                Waiter::Heating => self.heating_loaded(extent, trouble, orders),
            }
        }
    }
}
