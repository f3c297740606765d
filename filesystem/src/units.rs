//! Numbers of things on disk, each its own type.

use std::fmt;

/// A block of the device, counted in blocks of the filesystem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNumber(pub u64);

/// A block of a file or directory, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileBlock(pub u32);

/// An inode; 1 is the first. 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub u32);

/// The root directory.
pub const ROOT_INODE: InodeNumber = InodeNumber(2);

/// A block group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupNumber(pub u32);

/// A transaction's sequence number in the journal. It wraps: compare with [`TransactionId::is_before`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// The one that follows.
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// True when this one came before `other`; of numbers less than 2^31 apart, as all in use are.
    pub fn is_before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

/// Blocks of the device that follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockRun {
    /// The first.
    pub start: BlockNumber,
    /// How many; 0 only for an empty run.
    pub count: u32,
}

impl BlockRun {
    /// The run of `count` blocks from `start`.
    pub fn new(start: BlockNumber, count: u32) -> Self {
        Self { start, count }
    }

    /// One past the last block.
    pub fn end(self) -> BlockNumber {
        BlockNumber(self.start.0 + u64::from(self.count))
    }

    /// Those of its blocks that `other` has, too.
    pub fn within(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end().min(other.end()));
        (start < end).then(|| Self::new(start, (end.0 - start.0) as u32))
    }

    /// True when `block` is one of them.
    pub fn contains(self, block: BlockNumber) -> bool {
        self.start <= block && block < self.end()
    }
}

impl BlockNumber {
    /// The block `count` further on.
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

macro_rules! shown_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

shown_as_number!(BlockNumber, FileBlock, InodeNumber, GroupNumber, TransactionId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_compared_across_the_wrap() {
        assert!(TransactionId(u32::MAX).is_before(TransactionId(0)));
        assert!(TransactionId(u32::MAX).is_before(TransactionId(u32::MAX).next()));
        assert!(!TransactionId(5).is_before(TransactionId(5)));
        assert!(!TransactionId(6).is_before(TransactionId(5)));
    }

    #[test]
    fn a_run_ends_before_its_end() {
        let run = BlockRun::new(BlockNumber(10), 2);
        assert!(run.contains(BlockNumber(11)) && !run.contains(run.end()));
    }
}
