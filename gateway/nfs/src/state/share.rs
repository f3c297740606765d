//! Share reservations: what an open is for, and what it denies others (RFC 8881 §9.7).

use super::ranges::LockKind;

/// What is read or written, or kept from being.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareBits(u8);

/// What an open may do, and what others may not while it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareMode {
    /// What it may do.
    pub access: ShareBits,
    /// What others may not.
    pub deny: ShareBits,
}

/// The modes that an open was asked for since its last downgrade: what OPEN_DOWNGRADE may go back to (RFC 8881 §18.18.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Combinations(u16);

/// How many opens of a file do what: enough to know that no one is in the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareCounts {
    readers: u32,
    writers: u32,
    read_deniers: u32,
    write_deniers: u32,
}

impl ShareBits {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reading (OPEN4_SHARE_ACCESS_READ, OPEN4_SHARE_DENY_READ).
    pub const READ: Self = Self(1);
    /// Writing.
    pub const WRITE: Self = Self(2);
    /// Both.
    pub const BOTH: Self = Self(3);

    /// From the wire, without what the client wants of delegations. None for what is no such value.
    pub fn from_wire(value: u32) -> Option<Self> {
        u8::try_from(value).ok().filter(|bits| *bits <= Self::BOTH.0).map(Self)
    }

    /// As it goes over the wire.
    pub fn to_wire(self) -> u32 {
        u32::from(self.0)
    }

    /// True if it is all that `other` is.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if both have something.
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What either is.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if locks of this kind may be taken by an open of this access.
    pub fn allows_lock(self, kind: LockKind) -> bool {
        match kind {
            LockKind::Shared => self.contains(Self::READ),
            LockKind::Exclusive => self.contains(Self::WRITE),
        }
    }
}

impl ShareMode {
    /// Of both parts as they came over the wire. None if one is no such value.
    pub fn from_wire(access: u32, deny: u32) -> Option<Self> {
        Some(Self { access: ShareBits::from_wire(access)?, deny: ShareBits::from_wire(deny)? })
    }

    /// True if two owners cannot both have their way.
    pub fn conflicts(self, other: Self) -> bool {
        self.access.meets(other.deny) || self.deny.meets(other.access)
    }

    /// What either asks for.
    pub fn union(self, other: Self) -> Self {
        Self { access: self.access.union(other.access), deny: self.deny.union(other.deny) }
    }

    /// True if it asks for all that `other` does.
    pub fn contains(self, other: Self) -> bool {
        self.access.contains(other.access) && self.deny.contains(other.deny)
    }

    /// A number below 16.
    fn code(self) -> u32 {
        u32::from(self.access.0 * 4 + self.deny.0)
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..16_u8).map(|code| Self { access: ShareBits(code / 4), deny: ShareBits(code % 4) })
    }
}

impl Combinations {
    /// Adds one.
    pub fn add(&mut self, mode: ShareMode) {
        self.0 |= 1 << mode.code();
    }

    fn modes(self) -> impl Iterator<Item = ShareMode> {
        ShareMode::all().filter(move |mode| self.0 & 1 << mode.code() != 0)
    }

    /// All of them together.
    pub fn union(self) -> ShareMode {
        self.modes().fold(ShareMode::default(), ShareMode::union)
    }

    /// Those that a mode has room for, if together they are just that mode: the opens that are left after a downgrade to it.
    /// None if no choice of them makes the mode (RFC 8881 §18.18.3: NFS4ERR_INVAL).
    pub fn downgraded(self, to: ShareMode) -> Option<Self> {
        let mut left = Self::default();
        self.modes().filter(|mode| to.contains(*mode)).for_each(|mode| left.add(mode));
        (left.0 != 0 && left.union() == to).then_some(left)
    }

    /// As a record keeps it.
    pub fn to_bits(self) -> u16 {
        self.0
    }

    /// From a record. None without any.
    pub fn from_bits(bits: u16) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }
}

impl ShareCounts {
    /// One open more of this mode.
    pub fn add(&mut self, mode: ShareMode) {
        self.each(mode, |count| *count += 1);
    }

    /// One less.
    pub fn remove(&mut self, mode: ShareMode) {
        self.each(mode, |count| *count = count.saturating_sub(1));
    }

    fn each(&mut self, mode: ShareMode, change: impl Fn(&mut u32)) {
        let counts = [
            (mode.access.contains(ShareBits::READ), &mut self.readers),
            (mode.access.contains(ShareBits::WRITE), &mut self.writers),
            (mode.deny.contains(ShareBits::READ), &mut self.read_deniers),
            (mode.deny.contains(ShareBits::WRITE), &mut self.write_deniers),
        ];
        counts.into_iter().filter(|(counts, _)| *counts).for_each(|(_, count)| change(count));
    }

    /// True if some open may write.
    pub fn has_writers(&self) -> bool {
        self.writers > 0
    }

    /// True if one of those counted conflicts with a mode.
    pub fn may_conflict(&self, mode: ShareMode) -> bool {
        let (access, deny) = (mode.access, mode.deny);
        access.contains(ShareBits::READ) && self.read_deniers > 0
            || access.contains(ShareBits::WRITE) && self.write_deniers > 0
            || deny.contains(ShareBits::READ) && self.readers > 0
            || deny.contains(ShareBits::WRITE) && self.writers > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(access: u32, deny: u32) -> ShareMode {
        ShareMode::from_wire(access, deny).unwrap()
    }

    #[test]
    fn the_whole_matrix_of_conflicts_is_that_of_the_rule() {
        let mut conflicts = 0;
        for a in ShareMode::all() {
            for b in ShareMode::all() {
                let expected = a.access.to_wire() & b.deny.to_wire() != 0 || a.deny.to_wire() & b.access.to_wire() != 0;
                assert_eq!(a.conflicts(b), expected, "{a:?} {b:?}");
                assert_eq!(b.conflicts(a), expected);
                let mut counts = ShareCounts::default();
                counts.add(b);
                assert_eq!(counts.may_conflict(a), expected, "{a:?} {b:?}");
                counts.remove(b);
                assert_eq!(counts, ShareCounts::default());
                conflicts += usize::from(expected);
            }
        }
        // An access and a deny have nothing in common in 9 of their 16 pairs.
        assert_eq!(conflicts, 256 - 81);
    }

    #[test]
    fn a_downgrade_goes_to_unions_of_what_was_opened_only() {
        for bits in 1..=u16::MAX {
            // Every 37th set of combinations, which meets all kinds of them.
            if bits % 37 != 0 {
                continue;
            }
            let combinations = Combinations::from_bits(bits).unwrap();
            let modes: Vec<_> = combinations.modes().collect();
            for to in ShareMode::all() {
                let mut reachable = false;
                for subset in 1_u32..1 << modes.len() {
                    let chosen = modes.iter().enumerate().filter(|(at, _)| subset & 1 << at != 0);
                    reachable |= chosen.fold(ShareMode::default(), |union, (_, mode)| union.union(*mode)) == to;
                }
                assert_eq!(combinations.downgraded(to).is_some(), reachable, "{modes:?} {to:?}");
                if let Some(left) = combinations.downgraded(to) {
                    assert_eq!(left.union(), to);
                }
            }
        }
    }

    #[test]
    fn what_a_downgrade_left_behind_is_forgotten() {
        let mut combinations = Combinations::default();
        combinations.add(mode(1, 2));
        combinations.add(mode(3, 0));
        assert_eq!(combinations.union(), mode(3, 2));
        assert_eq!(combinations.downgraded(mode(1, 0)), None, "nobody opened so");
        let left = combinations.downgraded(mode(1, 2)).unwrap();
        assert_eq!(left.downgraded(mode(3, 0)), None);
    }

    #[test]
    fn values_beyond_both_are_none() {
        assert_eq!(ShareMode::from_wire(4, 0), None);
        assert_eq!(ShareMode::from_wire(1, 4), None);
        assert_eq!(ShareMode::from_wire(0x101, 0), None);
        assert_eq!(Combinations::from_bits(0), None);
    }
}
