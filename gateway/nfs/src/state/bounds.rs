//! How much state there may be, of a party and of all, and what is said where it ends.
//!
//! NFSv4.1 has no status for it: RESOURCE is gone, and DELAY would have a Linux client sleep and ask again for as long as the
//! application lives. So an OPEN is answered NOSPC (the application sees ENOSPC) and a LOCK SERVERFAULT, both among the statuses of
//! their operations (RFC 8881 §15.2); the network lock manager has LCK_DENIED_NOLOCKS for it. A delegation is just not given, and
//! one who waits for a lock where the queue is full has to ask again by itself.

use crate::v4::status::Status;

/// Opens and share reservations of a party.
pub const OPENS_PER_PARTY_MAX: u32 = 65_536;
/// Opens and share reservations of all.
pub const OPENS_MAX: u32 = 131_072;
/// Lock states (an owner in a file under an open) of a party.
pub const LOCK_STATES_PER_PARTY_MAX: u32 = 32_768;
/// Lock states of all.
pub const LOCK_STATES_MAX: u32 = 131_072;
/// Ranges of one lock state.
pub const RANGES_PER_STATE_MAX: u32 = 4_096;
/// Ranges of a party.
pub const RANGES_PER_PARTY_MAX: u32 = 65_536;
/// Ranges of all.
pub const RANGES_MAX: u32 = 262_144;
/// Delegations of a client, revoked ones among them.
pub const DELEGATIONS_PER_CLIENT_MAX: u32 = 8_192;
/// Delegations of all clients.
pub const DELEGATIONS_MAX: u32 = 65_536;
/// Delegations of a client, and of all, from which on clients are asked to give half of theirs back.
pub const DELEGATIONS_MANY: (u32, u32) = (DELEGATIONS_PER_CLIENT_MAX / 8 * 7, DELEGATIONS_MAX / 8 * 7);
/// Opens for reading that are remembered, to tell a file that is read again from one that is read once.
pub const OPENED_LATELY_MAX: usize = 4_096;
/// Bytes of the owners of a party's opens and locks.
pub const OWNER_BYTES_PER_PARTY_MAX: u64 = 4 << 20;
/// Bytes of the owners of all opens and locks. With all the other bounds, records stay well below what the state ring has room
/// for.
pub const OWNER_BYTES_ALL_MAX: u64 = 12 << 20;
/// Those that wait for locks of one file.
pub const WAITERS_PER_FILE_MAX: usize = 256;
/// Those of one party that wait for locks.
pub const WAITERS_PER_PARTY_MAX: usize = 512;
/// Those that wait for locks.
pub const WAITERS_MAX: usize = 4_096;
/// Files whose recalls are remembered, so that they are not delegated again at once.
pub const RECALLED_FILES_MAX: usize = 1_024;

/// What there is as much of as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// [`OPENS_PER_PARTY_MAX`], [`OPENS_MAX`], or the bytes of their owners.
    Opens,
    /// [`LOCK_STATES_PER_PARTY_MAX`], [`LOCK_STATES_MAX`], or the bytes of their owners.
    LockStates,
    /// [`RANGES_PER_STATE_MAX`], [`RANGES_PER_PARTY_MAX`], [`RANGES_MAX`].
    Ranges,
}

impl Bound {
    /// What NFSv4.1 is answered.
    pub fn status(self) -> Status {
        match self {
            Self::Opens => Status::NoSpace,
            Self::LockStates | Self::Ranges => Status::ServerFault,
        }
    }
}

/// How much state somebody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Opens and share reservations.
    pub opens: u32,
    /// Lock states.
    pub locks: u32,
    /// Ranges of them.
    pub ranges: u32,
    /// Delegations, revoked ones among them.
    pub delegations: u32,
    /// Those of them that are revoked.
    pub revoked: u32,
    /// Bytes of the owners.
    pub owner_bytes: u64,
}

impl Totals {
    pub(super) fn plus(self, more: Self) -> Self {
        Self {
            opens: self.opens.saturating_add(more.opens),
            locks: self.locks.saturating_add(more.locks),
            ranges: self.ranges.saturating_add(more.ranges),
            delegations: self.delegations.saturating_add(more.delegations),
            revoked: self.revoked.saturating_add(more.revoked),
            owner_bytes: self.owner_bytes.saturating_add(more.owner_bytes),
        }
    }

    pub(super) fn minus(self, less: Self) -> Self {
        Self {
            opens: self.opens.saturating_sub(less.opens),
            locks: self.locks.saturating_sub(less.locks),
            ranges: self.ranges.saturating_sub(less.ranges),
            delegations: self.delegations.saturating_sub(less.delegations),
            revoked: self.revoked.saturating_sub(less.revoked),
            owner_bytes: self.owner_bytes.saturating_sub(less.owner_bytes),
        }
    }

    /// The bound that would be passed if a party that has so much, among all who have so much, got this more. What is not asked
    /// for is not looked at.
    pub(super) fn passes(self, party: Self, all: Self) -> Option<Bound> {
        let (party, all) = (party.plus(self), all.plus(self));
        let bytes = self.owner_bytes > 0
            && (party.owner_bytes > OWNER_BYTES_PER_PARTY_MAX || all.owner_bytes > OWNER_BYTES_ALL_MAX);
        if self.opens > 0 && (party.opens > OPENS_PER_PARTY_MAX || all.opens > OPENS_MAX || bytes) {
            return Some(Bound::Opens);
        }
        if self.locks > 0 && (party.locks > LOCK_STATES_PER_PARTY_MAX || all.locks > LOCK_STATES_MAX || bytes) {
            return Some(Bound::LockStates);
        }
        let ranges = self.ranges > 0 && (party.ranges > RANGES_PER_PARTY_MAX || all.ranges > RANGES_MAX);
        ranges.then_some(Bound::Ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bound_is_told_by_a_status_that_makes_linux_sleep() {
        for bound in [Bound::Opens, Bound::LockStates, Bound::Ranges] {
            assert!(!matches!(bound.status(), Status::Delay | Status::Grace | Status::LayoutTryLater));
        }
    }

    #[test]
    fn each_bound_is_met_and_not_passed() {
        let none = Totals::default();
        let (open, lock, range) =
            (Totals { opens: 1, ..none }, Totals { locks: 1, ..none }, Totals { ranges: 1, ..none });
        let full = Totals {
            opens: OPENS_PER_PARTY_MAX,
            locks: LOCK_STATES_PER_PARTY_MAX,
            ranges: RANGES_PER_PARTY_MAX,
            ..none
        };
        let all = Totals { opens: OPENS_MAX, locks: LOCK_STATES_MAX, ranges: RANGES_MAX, ..none };
        for (more, bound) in [(open, Bound::Opens), (lock, Bound::LockStates), (range, Bound::Ranges)] {
            assert_eq!(more.passes(full, none), Some(bound));
            assert_eq!(more.passes(none, all), Some(bound));
            assert_eq!(more.passes(full.minus(more), all.minus(more)), None);
            assert_eq!(all.plus(more).minus(more), all);
        }
        assert_eq!(none.passes(full.plus(open), all), None, "who asks for nothing more is not refused");
    }

    #[test]
    fn bytes_of_owners_are_told_as_what_they_are_owners_of() {
        let none = Totals::default();
        let full = Totals { owner_bytes: OWNER_BYTES_PER_PARTY_MAX, ..none };
        let open = Totals { opens: 1, owner_bytes: 1, ..none };
        assert_eq!(open.passes(full, none), Some(Bound::Opens));
        let lock = Totals { locks: 1, owner_bytes: 1, ..none };
        assert_eq!(lock.passes(full, none), Some(Bound::LockStates));
        assert_eq!(Totals { locks: 1, ..none }.passes(full, none), None);
    }
}
