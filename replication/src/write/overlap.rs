//! Orders operations that touch the same blocks.
//!
//! An operation holds its ranges from admission to release. One that conflicts with a holder, or with an operation that
//! already waits, waits behind it in order of arrival; so nothing overtakes and nothing starves.

use std::collections::VecDeque;

use proto::BlockRange;
use smallvec::SmallVec;

/// The ranges of one operation.
pub(crate) type Ranges = SmallVec<[BlockRange; 1]>;

/// What an operation does with its ranges; decides who conflicts with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Reads: conflicts with writes that are not complete yet.
    Read,
    /// Writes: conflicts with everything.
    Write,
    /// A write that its client was told of, but that a copy out of sync has not acknowledged: conflicts as a write does,
    /// except with reads.
    Tail,
    /// A step of a resync (reads here, writes there): conflicts with writes and with other steps.
    Resync,
}

/// True when an operation of class `a` may not run beside one of class `b` on the same blocks.
fn conflict(a: Class, b: Class) -> bool {
    use Class::{Read, Resync, Tail, Write};
    match (a, b) {
        (Read, Read | Tail | Resync) | (Tail | Resync, Read) => false,
        (Write | Tail | Resync, Write | Tail | Resync) | (Read, Write) | (Write, Read) => true,
    }
}

#[derive(Clone, Debug, Hash)]
struct Entry<K> {
    key: K,
    class: Class,
    ranges: Ranges,
}

impl<K> Entry<K> {
    fn conflicts(&self, class: Class, ranges: &[BlockRange]) -> bool {
        conflict(self.class, class) && self.ranges.iter().any(|mine| ranges.iter().any(|other| mine.overlaps(*other)))
    }
}

/// Holders and waiters, each known by a key of the caller's.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Overlap<K> {
    holders: Vec<Entry<K>>,
    waiters: VecDeque<Entry<K>>,
}

impl<K> Default for Overlap<K> {
    fn default() -> Self {
        Self { holders: Vec::new(), waiters: VecDeque::new() }
    }
}

impl<K: Copy + PartialEq + std::fmt::Debug> Overlap<K> {
    /// Admits the operation (true), or queues it (false) to be returned by a later `release`.
    pub(crate) fn admit(&mut self, key: K, class: Class, ranges: Ranges) -> bool {
        let blocked = self.holders.iter().chain(&self.waiters).any(|entry| entry.conflicts(class, &ranges));
        let entry = Entry { key, class, ranges };
        if blocked {
            self.waiters.push_back(entry);
        } else {
            self.holders.push(entry);
        }
        !blocked
    }

    /// Ends a holder's (or a waiter's) claim and returns those that may start now, in order.
    pub(crate) fn release(&mut self, key: K) -> SmallVec<[K; 4]> {
        if let Some(at) = self.holders.iter().position(|entry| entry.key == key) {
            self.holders.swap_remove(at);
        } else {
            self.waiters.retain(|entry| entry.key != key);
        }
        self.promote()
    }

    /// Turns a holder's write into a tail and returns the reads that may start now.
    pub(crate) fn become_tail(&mut self, key: K) -> SmallVec<[K; 4]> {
        if let Some(entry) = self.holders.iter_mut().find(|entry| entry.key == key) {
            entry.class = Class::Tail;
        }
        self.promote()
    }

    fn promote(&mut self) -> SmallVec<[K; 4]> {
        let mut started = SmallVec::new();
        let mut at = 0;
        while at < self.waiters.len() {
            let waiter = &self.waiters[at];
            let blocked = self
                .holders
                .iter()
                .chain(self.waiters.iter().take(at))
                .any(|entry| entry.conflicts(waiter.class, &waiter.ranges));
            if blocked {
                at += 1;
                continue;
            }
            if let Some(entry) = self.waiters.remove(at) {
                started.push(entry.key);
                self.holders.push(entry);
            }
        }
        started
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    fn range(start: u64, count: u64) -> Ranges {
        smallvec![BlockRange::new(start, count)]
    }

    #[test]
    fn overlapping_writes_run_in_order_of_arrival() {
        let mut overlap = Overlap::default();
        assert!(overlap.admit(1, Class::Write, range(0, 4)));
        assert!(!overlap.admit(2, Class::Write, range(3, 4)));
        assert!(!overlap.admit(3, Class::Write, range(6, 1)), "waits behind 2 although 1 is clear");
        assert!(overlap.admit(4, Class::Write, range(9, 1)));
        assert_eq!(overlap.release(1).as_slice(), [2]);
        assert_eq!(overlap.release(2).as_slice(), [3]);
    }

    #[test]
    fn a_read_holds_its_range_against_later_writes() {
        let mut overlap = Overlap::default();
        assert!(overlap.admit(1, Class::Read, range(0, 4)));
        assert!(overlap.admit(2, Class::Read, range(0, 4)));
        assert!(!overlap.admit(3, Class::Write, range(0, 1)));
        assert!(overlap.release(1).is_empty());
        assert_eq!(overlap.release(2).as_slice(), [3]);
    }

    #[test]
    fn a_tail_lets_reads_pass_and_holds_writes() {
        let mut overlap = Overlap::default();
        assert!(overlap.admit(1, Class::Write, range(0, 1)));
        assert!(!overlap.admit(2, Class::Read, range(0, 1)));
        assert!(!overlap.admit(3, Class::Write, range(0, 1)));
        assert_eq!(overlap.become_tail(1).as_slice(), [2]);
        assert!(overlap.release(2).is_empty());
        assert_eq!(overlap.release(1).as_slice(), [3]);
    }

    #[test]
    fn a_resync_step_excludes_writes_but_not_reads() {
        let mut overlap = Overlap::default();
        assert!(overlap.admit(1, Class::Resync, range(0, 8)));
        assert!(overlap.admit(2, Class::Read, range(2, 1)));
        assert!(!overlap.admit(3, Class::Write, range(2, 1)));
        assert!(overlap.release(1).is_empty());
        assert_eq!(overlap.release(2).as_slice(), [3]);
    }
}
