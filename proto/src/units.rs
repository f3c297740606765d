//! Quantities: blocks, ranges and time.

use std::fmt;
use std::ops::{Add, Sub};

/// Bytes in a block, the unit of replication, overlap and dirty tracking.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks in an activity-log extent.
pub const EXTENT_BLOCKS: u64 = 1024;
/// Bytes in an activity-log extent (4 MiB).
pub const EXTENT_BYTES: u64 = EXTENT_BLOCKS * BLOCK_BYTES;

/// A run of whole 4 KiB blocks of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: u64,
    /// Number of blocks; 0 only for an empty range.
    pub count: u64,
}

impl BlockRange {
    /// The range of `count` blocks from `start`.
    pub fn new(start: u64, count: u64) -> Self {
        Self { start, count }
    }

    /// The smallest block range that covers the bytes `offset .. offset + length`.
    pub fn covering(offset: u64, length: u64) -> Self {
        let start = offset / BLOCK_BYTES;
        let end = (offset + length).div_ceil(BLOCK_BYTES);
        Self { start, count: end - start }
    }

    /// One past the last block.
    pub fn end(self) -> u64 {
        self.start + self.count
    }

    /// True when both ranges share a block.
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// True when every block of `other` lies in this range.
    pub fn contains(self, other: BlockRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Byte offset of the first block.
    pub fn offset_bytes(self) -> u64 {
        self.start * BLOCK_BYTES
    }

    /// Length in bytes.
    pub fn length_bytes(self) -> u64 {
        self.count * BLOCK_BYTES
    }

    /// The block numbers, in order.
    pub fn blocks(self) -> std::ops::Range<u64> {
        self.start..self.end()
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}+{}]", self.start, self.count)
    }
}

/// A span of time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Micros(n * 1000)
    }

    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Self {
        Micros(n * 1_000_000)
    }

    /// Whole milliseconds in this span.
    pub fn as_millis(self) -> u64 {
        self.0 / 1000
    }
}

/// A reading of one box's CLOCK_BOOTTIME, in microseconds. Readings of different boxes are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later than every reading.
    pub const NEVER: Timestamp = Timestamp(u64::MAX);

    /// Time elapsed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Micros> for Timestamp {
    type Output = Timestamp;
    fn add(self, span: Micros) -> Timestamp {
        Timestamp(self.0.saturating_add(span.0))
    }
}

impl Sub<Micros> for Timestamp {
    type Output = Timestamp;
    fn sub(self, span: Micros) -> Timestamp {
        Timestamp(self.0.saturating_sub(span.0))
    }
}
