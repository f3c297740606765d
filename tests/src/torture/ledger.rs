//! What each block must hold: the register check.
//!
//! One writer owns a block and gives it rising versions, so a read is right (linearizable) if and only if it returns a
//! version that is at least as new as the newest that was acknowledged, or seen by another read, before it began, and not
//! newer than the newest that was tried before it ended. A power cut that takes the last copy with it may undo what was
//! not flushed, and only that: [`Ledger::power_lost`].

use std::sync::atomic::{AtomicU64, Ordering};

use super::pattern::versions_of;

/// The blocks of a volume.
#[derive(Debug)]
pub struct Ledger {
    blocks: Vec<Block>,
    /// Odd while it is not known whether power takes unflushed writes with it.
    cuts: AtomicU64,
}

#[derive(Debug, Default)]
struct Block {
    tried: AtomicU64,
    acknowledged: AtomicU64,
    flushed: AtomicU64,
    seen: AtomicU64,
}

/// What a read that begins now must return at least.
#[derive(Clone, Copy, Debug)]
pub struct ReadTicket {
    floors_at: u64,
    block: u64,
    floor: u64,
}

/// A write or flush that begins now; its success counts only if no cut comes between.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

impl Ledger {
    /// A volume of zeros.
    pub fn new(blocks: u64) -> Self {
        Self { blocks: (0..blocks).map(|_| Block::default()).collect(), cuts: AtomicU64::new(0) }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// A write or flush begins.
    pub fn begin(&self) -> Ticket {
        Ticket(self.cuts.load(Ordering::SeqCst))
    }

    /// A version is about to be sent.
    pub fn try_write(&self, block: u64, version: u64) {
        self.at(block).tried.fetch_max(version, Ordering::SeqCst);
    }

    /// It was acknowledged. False if that does not count, because a cut came between.
    pub fn acknowledge(&self, ticket: Ticket, block: u64, version: u64) -> bool {
        let counts = self.counts(ticket.0);
        if counts {
            self.at(block).acknowledged.fetch_max(version, Ordering::SeqCst);
        }
        counts
    }

    /// A flush that began after this version was acknowledged has ended well.
    pub fn flush(&self, ticket: Ticket, block: u64, version: u64) {
        // One that is no longer acknowledged was lost with the power before the flush began.
        if self.counts(ticket.0) && self.at(block).acknowledged.load(Ordering::SeqCst) >= version {
            self.at(block).flushed.fetch_max(version, Ordering::SeqCst);
        }
    }

    /// A read begins.
    pub fn begin_read(&self, block: u64) -> ReadTicket {
        let floors_at = self.cuts.load(Ordering::SeqCst);
        let entry = self.at(block);
        let floor = entry.acknowledged.load(Ordering::SeqCst).max(entry.seen.load(Ordering::SeqCst));
        ReadTicket { floors_at, block, floor }
    }

    /// Judges what a read returned.
    pub fn end_read(&self, ticket: ReadTicket, bytes: &[u8]) -> Result<(), String> {
        let block = self.at(ticket.block);
        let tried = block.tried.load(Ordering::SeqCst);
        let (lowest, highest) = versions_of(ticket.block, bytes)?;
        if !self.counts(ticket.floors_at) {
            return Ok(());
        }
        let (number, floor) = (ticket.block, ticket.floor);
        if lowest < floor {
            return Err(format!("block {number} holds version {lowest}, {floor} was acknowledged or read before"));
        }
        if highest > tried {
            return Err(format!("block {number} holds version {highest}, only {tried} was tried"));
        }
        block.seen.fetch_max(lowest, Ordering::SeqCst);
        Ok(())
    }

    /// A power cut begins whose result is not known: nothing counts that ends before [`Self::power_back`].
    pub fn power_cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a cut is not judged yet.
    pub fn is_cut(&self) -> bool {
        !self.cuts.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// The last copy went with the power: what was not flushed may be gone.
    pub fn power_lost(&self) {
        for block in &self.blocks {
            block.acknowledged.store(block.flushed.load(Ordering::SeqCst), Ordering::SeqCst);
            block.seen.store(0, Ordering::SeqCst);
        }
    }

    /// The cut is judged; operations that begin now count again.
    pub fn power_back(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    fn counts(&self, cuts: u64) -> bool {
        cuts.is_multiple_of(2) && self.cuts.load(Ordering::SeqCst) == cuts
    }

    fn at(&self, block: u64) -> &Block {
        &self.blocks[block as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::fill;
    use super::*;

    fn written(versions: u64) -> Ledger {
        let ledger = Ledger::new(4);
        for version in 1..=versions {
            let ticket = ledger.begin();
            ledger.try_write(2, version);
            assert!(ledger.acknowledge(ticket, 2, version));
        }
        ledger
    }

    fn read(ledger: &Ledger, version: u64) -> Result<(), String> {
        ledger.end_read(ledger.begin_read(2), &fill(2, version))
    }

    #[test]
    fn lost_stale_and_invented_versions_are_found() {
        let ledger = written(3);
        ledger.try_write(2, 4);
        assert!(read(&ledger, 2).is_err());
        assert!(read(&ledger, 5).is_err());
        assert!(read(&ledger, 3).is_ok());
        assert!(read(&ledger, 4).is_ok());
        assert!(read(&ledger, 3).is_err(), "another read has seen version 4");
    }

    #[test]
    fn a_write_that_is_concurrent_with_a_read_may_be_seen_or_not() {
        let ledger = written(1);
        let ticket = ledger.begin_read(2);
        ledger.try_write(2, 2);
        assert!(ledger.acknowledge(ledger.begin(), 2, 2));
        assert!(ledger.end_read(ticket, &fill(2, 1)).is_ok());
        assert!(read(&ledger, 1).is_err());
    }

    #[test]
    fn lost_power_excuses_what_was_not_flushed_and_nothing_else() {
        let ledger = written(2);
        ledger.flush(ledger.begin(), 2, 2);
        let before = ledger.begin();
        ledger.try_write(2, 3);
        assert!(ledger.acknowledge(before, 2, 3));
        ledger.power_cut();
        ledger.try_write(2, 4);
        assert!(!ledger.acknowledge(ledger.begin(), 2, 4));
        ledger.power_lost();
        ledger.power_back();
        assert!(!ledger.acknowledge(before, 2, 4));
        ledger.flush(ledger.begin(), 2, 3);
        assert!(read(&ledger, 1).is_err());
        assert!(read(&ledger, 2).is_ok());
        assert!(read(&ledger, 4).is_ok());
    }
}
