//! What the demo's clients were promised: for every block the write that was acknowledged last.
//!
//! A block in flight belongs to one operation, so that its contents are never a matter of luck: it is either the last
//! acknowledged stamp, or the demo has found a loss.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::{BLOCK_BYTES, BlockRange};
use rand::Rng;

/// Bytes in a block, as a length.
pub(super) const BLOCK: usize = BLOCK_BYTES as usize;
const STAMP_MAGIC: u64 = 0x5441_4e44_454d_0001;
/// Descriptions of losses that are kept; more are only counted.
const LOSSES_TOLD_MAX: usize = 20;
/// Random places tried before a caller is told that all is busy.
const PLACES_TRIED_MAX: usize = 64;

/// See the module. Shared by all clients.
#[derive(Debug)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Per block the sequence acknowledged last; 0 is never.
    acknowledged: Vec<u64>,
    /// Per block whether an operation is in flight.
    busy: Vec<bool>,
    next_sequence: u64,
    writes: u64,
    lost: u64,
    losses: Vec<String>,
    longest_wait: Duration,
}

/// A write to be made, or made again until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Blocks.
    pub(super) range: BlockRange,
    /// Stamped into each of them.
    pub(super) sequence: u64,
}

impl Ledger {
    /// For a volume of `blocks` blocks, all of them zero.
    pub(super) fn new(blocks: u64) -> Self {
        let inner = Inner {
            acknowledged: vec![0; blocks as usize],
            busy: vec![false; blocks as usize],
            next_sequence: 1,
            writes: 0,
            lost: 0,
            losses: Vec::new(),
            longest_wait: Duration::ZERO,
        };
        Ledger { inner: Mutex::new(inner) }
    }

    /// A random range of up to `blocks_max` blocks that nobody uses, reserved for the caller.
    pub(super) fn reserve(&self, blocks_max: u64) -> Option<BlockRange> {
        let mut inner = self.lock();
        let mut random = rand::rng();
        let volume = inner.busy.len() as u64;
        for _ in 0..PLACES_TRIED_MAX {
            let count = random.random_range(1..=blocks_max.min(volume));
            let range = BlockRange::new(random.random_range(0..=volume - count), count);
            let span = range.start as usize..range.end() as usize;
            if !inner.busy[span.clone()].iter().any(|busy| *busy) {
                inner.busy[span].fill(true);
                return Some(range);
            }
        }
        None
    }

    /// Gives a reserved range a new sequence.
    pub(super) fn begin(&self, range: BlockRange) -> Write {
        let mut inner = self.lock();
        let sequence = inner.next_sequence;
        inner.next_sequence += 1;
        Write { range, sequence }
    }

    /// The server acknowledged the write; `waited` since it was first sent.
    pub(super) fn acknowledge(&self, write: Write, waited: Duration) {
        let mut inner = self.lock();
        for block in write.range.blocks() {
            inner.acknowledged[block as usize] = write.sequence;
            inner.busy[block as usize] = false;
        }
        inner.writes += 1;
        inner.longest_wait = inner.longest_wait.max(waited);
    }

    /// Gives a reserved range back unchanged.
    pub(super) fn release(&self, range: BlockRange) {
        self.lock().busy[range.start as usize..range.end() as usize].fill(false);
    }

    /// Compares what was read with what was promised; the range is reserved, or nothing runs. Returns the number of
    /// blocks that hold an acknowledged write, intact.
    pub(super) fn check(&self, range: BlockRange, data: &[u8], place: &str) -> u64 {
        let mut inner = self.lock();
        let mut intact = 0;
        for (block, bytes) in range.blocks().zip(data.chunks_exact(BLOCK)) {
            let promised = inner.acknowledged[block as usize];
            match check_block(block, promised, bytes) {
                Ok(()) => intact += u64::from(promised != 0),
                Err(found) => {
                    inner.lost += 1;
                    if inner.losses.len() < LOSSES_TOLD_MAX {
                        inner
                            .losses
                            .push(format!("block {block}, read {place}: promised write {promised}, found {found}"));
                    }
                }
            }
        }
        intact
    }

    /// Number of blocks that hold an acknowledged write.
    pub(super) fn acknowledged_blocks(&self) -> u64 {
        self.lock().acknowledged.iter().filter(|sequence| **sequence != 0).count() as u64
    }

    /// Number of acknowledged writes.
    pub(super) fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Number of losses, and the first of them in words.
    pub(super) fn losses(&self) -> (u64, Vec<String>) {
        let inner = self.lock();
        (inner.lost, inner.losses.clone())
    }

    /// The longest wait of a write acknowledged since the last call.
    pub(super) fn take_longest_wait(&self) -> Duration {
        std::mem::take(&mut self.lock().longest_wait)
    }

    /// Blocks in the volume.
    pub(super) fn blocks(&self) -> u64 {
        self.lock().busy.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before it can panic, so a poisoned ledger is still true.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write {
    /// The bytes to send: each block says which block of which write it is, and carries a checksum of itself.
    pub(super) fn data(&self) -> Vec<u8> {
        let mut data = vec![0; self.range.length_bytes() as usize];
        for (block, bytes) in self.range.blocks().zip(data.chunks_exact_mut(BLOCK)) {
            stamp(block, self.sequence, bytes);
        }
        data
    }
}

/// Block layout: magic, block, sequence, filling derived from them, CRC-32 of all before it. Little endian.
fn stamp(block: u64, sequence: u64, bytes: &mut [u8]) {
    bytes[0..8].copy_from_slice(&STAMP_MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&block.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    let mut filling = block.rotate_left(32) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes[24..BLOCK - 8].chunks_exact_mut(8) {
        // xorshift64: a change of one word shows in the checksum and to the eye.
        filling ^= filling << 13;
        filling ^= filling >> 7;
        filling ^= filling << 17;
        word.copy_from_slice(&filling.to_le_bytes());
    }
    let sum = u64::from(crc32fast::hash(&bytes[..BLOCK - 8]));
    bytes[BLOCK - 8..BLOCK].copy_from_slice(&sum.to_le_bytes());
}

/// Whether a block holds exactly the promised write; otherwise what it holds, in words.
fn check_block(block: u64, promised: u64, bytes: &[u8]) -> Result<(), String> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let zero = bytes.iter().all(|byte| *byte == 0);
    if promised == 0 && zero {
        return Ok(());
    }
    if zero {
        return Err("zeros".into());
    }
    if word(0) != STAMP_MAGIC || word(BLOCK - 8) != u64::from(crc32fast::hash(&bytes[..BLOCK - 8])) {
        return Err("a torn or damaged block".into());
    }
    match (word(8), word(16)) {
        (other, _) if other != block => Err(format!("the contents of block {other}")),
        (_, sequence) if sequence == promised => Ok(()),
        (_, sequence) => Err(format!("write {sequence}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(ledger: &Ledger) -> (Write, Vec<u8>) {
        let write = ledger.begin(ledger.reserve(16).unwrap());
        ledger.acknowledge(write, Duration::from_millis(3));
        (write, write.data())
    }

    #[test]
    fn intact_blocks_pass_and_unwritten_blocks_are_zero() {
        let ledger = Ledger::new(64);
        let (write, data) = acknowledged(&ledger);
        assert_eq!(ledger.check(write.range, &data, "here"), write.range.count);
        let other = (0..64).find(|block| !write.range.blocks().contains(block)).unwrap();
        assert_eq!(ledger.check(BlockRange::new(other, 1), &[0; BLOCK], "here"), 0);
        assert_eq!(ledger.losses().0, 0);
        assert_eq!(ledger.acknowledged_blocks(), write.range.count);
    }

    #[test]
    fn every_kind_of_loss_is_found() {
        let ledger = Ledger::new(8);
        let range = BlockRange::new(3, 1);
        let (old, new) = (ledger.begin(range), ledger.begin(range));
        ledger.acknowledge(old, Duration::ZERO);
        ledger.acknowledge(new, Duration::ZERO);
        let mut torn = new.data();
        torn[2000] ^= 1;
        let misplaced = Write { range: BlockRange::new(4, 1), sequence: new.sequence };
        for (bad, words) in [
            (vec![0; BLOCK], "zeros"),
            (old.data(), "found write 1"),
            (torn, "torn"),
            (misplaced.data(), "the contents of block 4"),
        ] {
            let before = ledger.losses().0;
            assert_eq!(ledger.check(range, &bad, "on box-b"), 0);
            let (lost, losses) = ledger.losses();
            assert_eq!(lost, before + 1);
            assert!(losses.last().unwrap().contains(words), "{losses:?}");
        }
        // Data where nothing was ever written is a loss of somebody else's block.
        ledger.check(BlockRange::new(0, 1), &new.data(), "on box-b");
        assert_eq!(ledger.losses().0, 5);
    }

    #[test]
    fn reserved_blocks_are_nobody_elses() {
        let ledger = Ledger::new(4);
        let mut taken = 0;
        let mut ranges = Vec::new();
        while let Some(range) = ledger.reserve(2) {
            taken += range.count;
            ranges.push(range);
        }
        assert!(taken <= 4);
        assert!(ranges.iter().enumerate().all(|(at, range)| !ranges[..at].iter().any(|other| other.overlaps(*range))));
        ranges.into_iter().for_each(|range| ledger.release(range));
        assert!(ledger.reserve(2).is_some());
    }

    #[test]
    fn the_longest_wait_is_taken_once() {
        let ledger = Ledger::new(64);
        acknowledged(&ledger);
        assert_eq!(ledger.take_longest_wait(), Duration::from_millis(3));
        assert_eq!(ledger.take_longest_wait(), Duration::ZERO);
    }
}
