//! The circle of the log: indices, steps around its end, and how much of it is free.

/// A block of the journal, counted from its start: 0 is the journal's superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u32);

/// The blocks that the log goes round in: `first..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRing {
    first: u32,
    end: u32,
}

impl LogRing {
    /// The ring of the blocks `first..end`; `None` when that is fewer than two blocks.
    pub fn new(first: LogIndex, end: LogIndex) -> Option<Self> {
        (end.0 > first.0 && end.0 - first.0 >= 2).then_some(Self { first: first.0, end: end.0 })
    }

    /// The first block of the ring, which follows its last.
    pub fn first(self) -> LogIndex {
        LogIndex(self.first)
    }

    /// One past the last block of the ring.
    pub fn end(self) -> LogIndex {
        LogIndex(self.end)
    }

    /// How many blocks the ring has.
    pub fn block_count(self) -> u32 {
        self.end - self.first
    }

    /// True when the block belongs to the ring.
    pub fn contains(self, at: LogIndex) -> bool {
        (self.first..self.end).contains(&at.0)
    }

    /// The block `count` further on, around the end as often as needed. `at` must be in the ring.
    pub fn advance(self, at: LogIndex, count: u64) -> LogIndex {
        let offset = (u64::from(at.0 - self.first) + count) % u64::from(self.block_count());
        LogIndex(self.first + offset as u32)
    }

    /// The steps from `from` on to `to`: 0 when they are the same. Both must be in the ring.
    pub fn distance(self, from: LogIndex, to: LogIndex) -> u32 {
        if to >= from { to.0 - from.0 } else { self.block_count() - (from.0 - to.0) }
    }
}

/// What of the ring is in use: from the tail, the oldest block that recovery still needs, up to before the head.
///
/// One block always stays free, so that head = tail means empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpace {
    ring: LogRing,
    head: LogIndex,
    tail: LogIndex,
}

impl LogSpace {
    /// Nothing is in use, and the next block written is `at`. `None` when `at` is not in the ring.
    pub fn empty(ring: LogRing, at: LogIndex) -> Option<Self> {
        ring.contains(at).then_some(Self { ring, head: at, tail: at })
    }

    /// The ring.
    pub fn ring(&self) -> LogRing {
        self.ring
    }

    /// The next block to be written.
    pub fn head(&self) -> LogIndex {
        self.head
    }

    /// The oldest block in use.
    pub fn tail(&self) -> LogIndex {
        self.tail
    }

    /// How many blocks are in use.
    pub fn used_block_count(&self) -> u32 {
        self.ring.distance(self.tail, self.head)
    }

    /// How many blocks can be taken.
    pub fn free_block_count(&self) -> u32 {
        self.ring.block_count() - 1 - self.used_block_count()
    }

    /// Takes `count` blocks from the head on and gives the first of them; `None`, and nothing taken, when fewer are free.
    pub fn take(&mut self, count: u32) -> Option<LogIndex> {
        if count > self.free_block_count() {
            return None;
        }
        let start = self.head;
        self.head = self.ring.advance(start, u64::from(count));
        Some(start)
    }

    /// Moves the tail on to `tail`: what lay before it may be overwritten. Only after a superblock that says so is on
    /// stable media. False, and nothing moved, when `tail` is not in what is in use.
    pub fn release_to(&mut self, tail: LogIndex) -> bool {
        let inside = self.ring.contains(tail) && self.ring.distance(self.tail, tail) <= self.used_block_count();
        if inside {
            self.tail = tail;
        }
        inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(first: u32, end: u32) -> LogRing {
        LogRing::new(LogIndex(first), LogIndex(end)).unwrap()
    }

    #[test]
    fn a_ring_of_fewer_than_two_blocks_is_none() {
        assert_eq!(LogRing::new(LogIndex(1), LogIndex(2)), None);
        assert_eq!(LogRing::new(LogIndex(5), LogIndex(2)), None);
    }

    #[test]
    fn steps_and_distances_agree_from_every_block_over_every_wrap() {
        let ring = ring(3, 10);
        for from in 3..10 {
            for count in 0..30 {
                let mut slow = from;
                for _ in 0..count {
                    slow = if slow + 1 == 10 { 3 } else { slow + 1 };
                }
                let to = ring.advance(LogIndex(from), count);
                assert_eq!(to, LogIndex(slow));
                assert_eq!(u64::from(ring.distance(LogIndex(from), to)), count % 7);
            }
        }
    }

    #[test]
    fn space_is_exact_for_every_head_tail_and_amount() {
        let ring = ring(1, 9);
        for tail in 1..9 {
            for used in 0..8 {
                for wanted in 0..10 {
                    let mut space = LogSpace::empty(ring, LogIndex(tail)).unwrap();
                    assert_eq!(space.take(used), Some(LogIndex(tail)));
                    assert_eq!((space.used_block_count(), space.free_block_count()), (used, 7 - used));
                    let head = space.head();
                    let taken = space.take(wanted);
                    assert_eq!(taken, (wanted <= 7 - used).then_some(head));
                    if taken.is_none() {
                        assert_eq!(space.head(), head);
                    }
                }
            }
        }
    }

    #[test]
    fn the_tail_moves_only_within_what_is_in_use() {
        let ring = ring(1, 9);
        for tail in 1..9 {
            for used in 0..8u32 {
                for to in 0..11 {
                    let mut space = LogSpace::empty(ring, LogIndex(tail)).unwrap();
                    space.take(used).unwrap();
                    let steps = (0..8u32).find(|steps| ring.advance(LogIndex(tail), u64::from(*steps)).0 == to);
                    let allowed = steps.is_some_and(|steps| steps <= used);
                    assert_eq!(space.release_to(LogIndex(to)), allowed);
                    let left = if allowed { used - steps.unwrap() } else { used };
                    assert_eq!(space.used_block_count(), left);
                }
            }
        }
    }
}
