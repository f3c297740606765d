//! Ranges of bytes, and those that one holder has locked in one file.
//!
//! A holder's locks are as POSIX has them: a new lock replaces what the same holder had of its bytes, an unlock may leave a hole,
//! and neighbours of one kind are one. So no request is refused for its range only (RFC 8881 §18.10.4 would allow LOCK_RANGE and
//! BAD_RANGE): all 64 bits are known here. Who may lock what beside whom is asked in `lock`.

/// Bytes of a file, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    first: u64,
    last: u64,
}

/// The length that means up to the end of the file, however far it grows (RFC 8881 §18.10.3).
pub const TO_END: u64 = u64::MAX;

/// How bytes are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockKind {
    /// Beside other shared locks (READ_LT).
    Shared,
    /// Alone (WRITE_LT).
    Exclusive,
}

/// Bytes that are locked in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldRange {
    /// Which.
    pub range: ByteRange,
    /// How.
    pub kind: LockKind,
}

/// What one holder has locked in one file: in order, none over another, and no two that could be one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldRanges {
    held: Vec<HeldRange>,
}

impl ByteRange {
    /// Every byte there can be.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// The range of a LOCK, LOCKT or LOCKU. None for those that are invalid: no bytes, or an end that no number tells
    /// (RFC 8881 §18.10.3: NFS4ERR_INVAL).
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        match length {
            0 => None,
            TO_END => Some(Self { first: offset, last: u64::MAX }),
            // The last byte of all is locked by those that go to the end only.
            _ => Some(Self { first: offset, last: offset.checked_add(length)? - 1 }),
        }
    }

    /// The range of a call of the network lock manager, where a length of 0 goes to the end (X/Open XNFS, "NLM_LOCK"). An end
    /// beyond all numbers is the end of the file, as lockd has it.
    pub fn of_nlm(offset: u64, length: u64) -> Self {
        let end = offset.checked_add(length).filter(|_| length > 0);
        Self { first: offset, last: end.map_or(u64::MAX, |end| end - 1) }
    }

    /// From its first to its last byte; none if they are the wrong way round.
    pub fn between(first: u64, last: u64) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The first byte.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The last byte; the greatest number if it goes to the end.
    pub fn last(self) -> u64 {
        self.last
    }

    /// Its length as NFSv4 tells it.
    pub fn length(self) -> u64 {
        match self.last {
            u64::MAX => TO_END,
            last => last - self.first + 1,
        }
    }

    /// Its length as the network lock manager tells it.
    pub fn nlm_length(self) -> u64 {
        match self.last {
            u64::MAX => 0,
            last => last - self.first + 1,
        }
    }

    /// True if both have a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// True if all bytes of `other` are in this.
    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// True if `other` starts right behind this.
    fn is_before(self, other: Self) -> bool {
        self.last.checked_add(1) == Some(other.first)
    }
}

impl LockKind {
    /// True if two holders cannot both lock a byte so.
    pub fn conflicts(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

impl HeldRanges {
    /// From ranges that were in such a set. None if they were not: out of order, over another, not merged.
    pub fn from_ordered(held: Vec<HeldRange>) -> Option<Self> {
        let ranges = Self { held };
        ranges.is_sound().then_some(ranges)
    }

    /// True if in order, none over another, and no two that could be one.
    pub(super) fn is_sound(&self) -> bool {
        self.held.windows(2).all(|pair| {
            let mergeable = pair[0].kind == pair[1].kind && pair[0].range.is_before(pair[1].range);
            pair[0].range.last < pair[1].range.first && !mergeable
        })
    }

    /// The ranges, in order.
    pub fn as_slice(&self) -> &[HeldRange] {
        &self.held
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those that have bytes of a range: where they start and where they end in the order.
    fn overlapping(&self, range: ByteRange) -> (usize, usize) {
        let start = self.held.partition_point(|held| held.range.last < range.first);
        let count = self.held[start..].partition_point(|held| held.range.first <= range.last);
        (start, start + count)
    }

    /// The first of them that another holder's lock would conflict with.
    pub fn conflict(&self, range: ByteRange, kind: LockKind) -> Option<HeldRange> {
        let (start, end) = self.overlapping(range);
        self.held[start..end].iter().find(|held| held.kind.conflicts(kind)).copied()
    }

    /// Locks a range in a way, whatever the holder had of it.
    pub fn lock(&mut self, range: ByteRange, kind: LockKind) {
        self.replace(range, Some(kind));
    }

    /// Unlocks a range; nothing needs to be locked there.
    pub fn unlock(&mut self, range: ByteRange) {
        self.replace(range, None);
    }

    fn replace(&mut self, range: ByteRange, kind: Option<LockKind>) {
        let (mut start, mut end) = self.overlapping(range);
        let mut new = Vec::with_capacity(3);
        if let Some(first) = self.held[start..end].first().filter(|held| held.range.first < range.first) {
            new.push(HeldRange { range: ByteRange { last: range.first - 1, ..first.range }, kind: first.kind });
        }
        new.extend(kind.map(|kind| HeldRange { range, kind }));
        if let Some(last) = self.held[start..end].last().filter(|held| held.range.last > range.last) {
            new.push(HeldRange { range: ByteRange { first: range.last + 1, ..last.range }, kind: last.kind });
        }
        // Those on both sides may become one with what is new.
        if start > 0 && self.held[start - 1].range.is_before(range) {
            start -= 1;
            new.insert(0, self.held[start]);
        }
        if end < self.held.len() && range.is_before(self.held[end].range) {
            new.push(self.held[end]);
            end += 1;
        }
        new.dedup_by(|next, former| {
            let one = former.kind == next.kind && former.range.is_before(next.range);
            if one {
                former.range.last = next.range.last;
            }
            one
        });
        self.held.splice(start..end, new);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const BYTES: u64 = 6;

    fn range(first: u64, last: u64) -> ByteRange {
        ByteRange::between(first, last).unwrap()
    }

    /// How each byte of a few is locked.
    type Model = BTreeMap<u64, LockKind>;

    fn apply(model: &mut Model, range: ByteRange, kind: Option<LockKind>, bytes: u64) {
        for byte in range.first()..=range.last().min(bytes) {
            match kind {
                Some(kind) => drop(model.insert(byte, kind)),
                None => drop(model.remove(&byte)),
            }
        }
    }

    fn of(ranges: &HeldRanges, bytes: u64) -> Model {
        let mut model = Model::new();
        for held in ranges.as_slice() {
            apply(&mut model, held.range, Some(held.kind), bytes);
        }
        model
    }

    fn every_range(bytes: u64) -> Vec<ByteRange> {
        (0..bytes).flat_map(|first| (first..bytes).map(move |last| range(first, last))).collect()
    }

    #[test]
    fn every_change_of_every_small_set_does_as_bytes_do() {
        let kinds = [None, Some(LockKind::Shared), Some(LockKind::Exclusive)];
        let mut cases = 0;
        for pattern in 0..3_usize.pow(BYTES as u32) {
            let mut start = HeldRanges::default();
            let mut bytes = Model::new();
            for byte in 0..BYTES {
                let kind = kinds[pattern / 3_usize.pow(byte as u32) % 3];
                start.replace(range(byte, byte), kind);
                apply(&mut bytes, range(byte, byte), kind, BYTES);
            }
            assert_eq!(of(&start, BYTES), bytes);
            for changed in every_range(BYTES) {
                for kind in kinds {
                    let (mut ranges, mut model) = (start.clone(), bytes.clone());
                    ranges.replace(changed, kind);
                    apply(&mut model, changed, kind, BYTES);
                    assert!(ranges.is_sound(), "{ranges:?}");
                    assert_eq!(of(&ranges, BYTES), model, "{start:?} {changed:?} {kind:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 729 * 21 * 3);
    }

    #[test]
    fn conflicts_are_those_of_the_bytes() {
        let mut random = StdRng::seed_from_u64(11);
        for _ in 0..2_000 {
            let (mut ranges, mut model) = (HeldRanges::default(), Model::new());
            for _ in 0..random.random_range(0..8) {
                let first = random.random_range(0..24);
                let changed = range(first, random.random_range(first..24));
                let kind = [None, Some(LockKind::Shared), Some(LockKind::Exclusive)][random.random_range(0..3)];
                ranges.replace(changed, kind);
                apply(&mut model, changed, kind, 24);
            }
            for asked in every_range(24) {
                for kind in [LockKind::Shared, LockKind::Exclusive] {
                    let expected = (asked.first()..=asked.last())
                        .find(|at| model.get(at).is_some_and(|held| held.conflicts(kind)));
                    let found = ranges.conflict(asked, kind);
                    assert_eq!(found.map(|held| held.range.first().max(asked.first())), expected);
                }
            }
        }
    }

    #[test]
    fn ranges_that_no_request_may_have_are_none() {
        assert_eq!(ByteRange::new(0, 0), None);
        assert_eq!(ByteRange::new(2, u64::MAX - 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::between(2, 1), None);
        let whole = ByteRange::new(7, TO_END).unwrap();
        assert_eq!((whole.first(), whole.last(), whole.length(), whole.nlm_length()), (7, u64::MAX, TO_END, 0));
        let most = ByteRange::new(1, u64::MAX - 1).unwrap();
        assert_eq!((most.last(), most.length()), (u64::MAX - 1, u64::MAX - 1));
        assert!(!most.overlaps(ByteRange::new(u64::MAX, TO_END).unwrap()), "the last byte is in no counted range");
        assert_eq!(ByteRange::of_nlm(5, 0), range(5, u64::MAX));
        assert_eq!(ByteRange::of_nlm(5, 2), range(5, 6));
        assert_eq!(ByteRange::of_nlm(5, u64::MAX), range(5, u64::MAX));
    }

    #[test]
    fn the_end_of_all_numbers_is_split_and_merged_like_the_rest() {
        let mut ranges = HeldRanges::default();
        ranges.lock(ByteRange::ALL, LockKind::Exclusive);
        ranges.unlock(range(u64::MAX, u64::MAX));
        ranges.unlock(range(0, 0));
        assert_eq!(ranges.as_slice(), [HeldRange { range: range(1, u64::MAX - 1), kind: LockKind::Exclusive }]);
        ranges.lock(range(u64::MAX, u64::MAX), LockKind::Exclusive);
        ranges.lock(range(0, 9), LockKind::Shared);
        assert_eq!(ranges.len(), 2);
        ranges.lock(range(0, 9), LockKind::Exclusive);
        assert_eq!(ranges.as_slice(), [HeldRange { range: ByteRange::ALL, kind: LockKind::Exclusive }]);
    }

    #[test]
    fn what_was_no_set_makes_none() {
        let held = |first, last, kind| HeldRange { range: range(first, last), kind };
        let shared = LockKind::Shared;
        assert_eq!(HeldRanges::from_ordered(vec![held(0, 1, shared), held(2, 3, shared)]), None, "not merged");
        assert_eq!(HeldRanges::from_ordered(vec![held(4, 5, shared), held(0, 1, shared)]), None, "out of order");
        assert_eq!(
            HeldRanges::from_ordered(vec![held(0, 5, shared), held(5, 6, LockKind::Exclusive)]),
            None,
            "over another"
        );
        let fine = vec![held(0, 1, shared), held(2, 3, LockKind::Exclusive), held(5, 6, LockKind::Exclusive)];
        assert_eq!(HeldRanges::from_ordered(fine).map(|ranges| ranges.len()), Some(3));
    }
}
