//! What the parts of the gateway name: files, clients, sessions, stateids, moments. All of it belongs to a service, never to a
//! box, so it means the same on whichever box serves.

use filesystem::InodeNumber;

/// Bytes of a stateid's part that does not count (RFC 8881 §3.3.12, `stateid4.other`).
pub const OTHER_BYTES: usize = 12;
/// Bytes of a session id (RFC 8881 §3.2, `NFS4_SESSIONID_SIZE`).
pub const SESSION_ID_BYTES: usize = 16;

/// A file of the volume, and no other that gets its inode later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The inode.
    pub inode: InodeNumber,
    /// Which of those that had this inode.
    pub generation: u32,
}

/// A client of a service (RFC 8881 `clientid4`). The upper half is the service's epoch: what is known to a service that has
/// lost its state is not mistaken for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// A session of a service: the client, and a number that no other session of the service ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Whose it is.
    pub client: ClientId,
    /// Which it is.
    pub number: u64,
}

/// A number that no other open, lock or delegation of the service ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateNumber(pub u64);

/// A stateid as it goes over the wire (RFC 8881 §8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stateid {
    /// Counts the changes of the state; 0 asks for the newest (§8.2.2).
    pub seqid: u32,
    /// Which state.
    pub other: [u8; OTHER_BYTES],
}

/// Milliseconds of a clock that never goes back, of this process only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl ClientId {
    /// Whoever is no client of NFSv4: no epoch is 0, so it is given to nobody.
    pub const NOBODY: Self = Self(0);
}

impl Moment {
    /// So many milliseconds later.
    pub fn plus(self, milliseconds: u64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }

    /// Milliseconds from `earlier` to this; none if it is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl SessionId {
    /// As it goes over the wire.
    pub fn to_bytes(self) -> [u8; SESSION_ID_BYTES] {
        (u128::from(self.client.0) << 64 | u128::from(self.number)).to_be_bytes()
    }

    /// From the wire.
    pub fn from_bytes(bytes: [u8; SESSION_ID_BYTES]) -> Self {
        let value = u128::from_be_bytes(bytes);
        Self { client: ClientId((value >> 64) as u64), number: value as u64 }
    }
}

impl Stateid {
    /// Stands for no open at all; obeys share reservations (RFC 8881 §8.2.3).
    pub const ANONYMOUS: Self = Self { seqid: 0, other: [0; OTHER_BYTES] };
    /// The same for reads that pass share reservations by.
    pub const READ_BYPASS: Self = Self { seqid: u32::MAX, other: [u8::MAX; OTHER_BYTES] };
    /// Stands for the one that the compound got last.
    pub const CURRENT: Self = Self { seqid: 1, other: [0; OTHER_BYTES] };
    /// What a client puts where it has none.
    pub const INVALID: Self = Self { seqid: u32::MAX, other: [0; OTHER_BYTES] };

    /// The one of a state in a service of this epoch.
    pub fn new(epoch: u32, number: StateNumber, seqid: u32) -> Self {
        let mut other = [0; OTHER_BYTES];
        other[..4].copy_from_slice(&epoch.to_be_bytes());
        other[4..].copy_from_slice(&number.0.to_be_bytes());
        Self { seqid, other }
    }

    /// Which state of which epoch; of a special one it is a state that nobody ever has.
    pub fn parts(&self) -> (u32, StateNumber) {
        let value = self.other.iter().fold(0u128, |value, byte| value << 8 | u128::from(*byte));
        ((value >> 64) as u32, StateNumber(value as u64))
    }

    /// True for all whose `other` is all zeros or all ones (RFC 8881 §8.2.3).
    pub fn is_special(&self) -> bool {
        self.other == [0; OTHER_BYTES] || self.other == [u8::MAX; OTHER_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_from_the_wire() {
        let session = SessionId { client: ClientId(0x0102_0304_0506_0708), number: 9 };
        assert_eq!(SessionId::from_bytes(session.to_bytes()), session);
        let stateid = Stateid::new(3, StateNumber(0x1122_3344_5566_7788), 4);
        assert_eq!(stateid.parts(), (3, StateNumber(0x1122_3344_5566_7788)));
        assert!(!stateid.is_special());
    }

    #[test]
    fn special_stateids_are_known() {
        for stateid in [Stateid::ANONYMOUS, Stateid::READ_BYPASS, Stateid::CURRENT, Stateid::INVALID] {
            assert!(stateid.is_special(), "{stateid:?}");
        }
    }
}
