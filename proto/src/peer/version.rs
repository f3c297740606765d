//! Versions of the peer protocol and how two boxes agree on one.

use std::fmt;

/// A version of the peer protocol. Both sides of a connection use the one its handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u16);

/// The versions that a build speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// Oldest.
    pub min: ProtocolVersion,
    /// Newest.
    pub max: ProtocolVersion,
}

/// What this build speaks. A release speaks its own version and the one before it.
pub const SUPPORTED: VersionRange = VersionRange { min: ProtocolVersion(1), max: ProtocolVersion(2) };

impl VersionRange {
    /// The highest version that both sides speak; `None` if there is none, or `other` is not a range.
    pub fn agree(self, other: VersionRange) -> Option<ProtocolVersion> {
        let highest = self.max.min(other.max);
        (highest >= self.min && highest >= other.min).then_some(highest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.min.0) } else { write!(f, "{} to {}", self.min.0, self.max.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u16, max: u16) -> VersionRange {
        VersionRange { min: ProtocolVersion(min), max: ProtocolVersion(max) }
    }

    #[test]
    fn the_highest_common_version_is_agreed() {
        assert_eq!(range(1, 3).agree(range(2, 5)), Some(ProtocolVersion(3)));
        assert_eq!(range(2, 5).agree(range(1, 3)), Some(ProtocolVersion(3)));
        assert_eq!(range(1, 1).agree(range(1, 9)), Some(ProtocolVersion(1)));
        assert_eq!(range(1, 1).agree(range(2, 2)), None);
        assert_eq!(range(4, 5).agree(range(1, 3)), None);
    }

    #[test]
    fn an_inverted_range_agrees_with_nothing() {
        assert_eq!(range(1, 3).agree(range(3, 1)), None);
    }
}
