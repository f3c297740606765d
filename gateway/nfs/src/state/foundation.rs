//! What the state of a service depends on beside its own records: while that is the same, the records are the newest, and what
//! they say of files holds.

use std::fmt;

use filesystem::state_ring::RecordId;

use super::record::{FOUNDATION, Payload, numbered};
use crate::xdr::{Decoder, Encoder, XdrError};

/// There is one.
pub const FOUNDATION_RECORD: RecordId = numbered(FOUNDATION, 0);

/// Numbers that change when the records may not hold any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foundation {
    /// Since when the volume has this service: after it was stopped, others may have had the volume.
    pub service: u64,
    /// The newest time that acknowledged writes of the volume may have been lost, as by a copy that was made primary by force.
    pub loss: u64,
    /// The newest time that those of them may have been lost that were not flushed: all copies had lost power.
    pub unflushed: u64,
    /// The newest time that somebody else had the filesystem mounted for writing, or repaired it.
    pub disturbed: u64,
}

/// Why the records may not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Nobody knows on what they depended.
    Unknown,
    /// They may be old.
    Loss,
    /// The newest of them may be missing, but none of those that say who the clients are.
    Unflushed,
    /// Others may have written to the volume since.
    Restarted,
    /// Others had the filesystem since.
    Disturbed,
}

impl Foundation {
    /// Whether records hold that were made upon `noted`.
    pub fn doubt(self, noted: Option<Self>) -> Option<Doubt> {
        match noted {
            None => Some(Doubt::Unknown),
            Some(noted) if noted.loss != self.loss => Some(Doubt::Loss),
            Some(noted) if noted.service != self.service => Some(Doubt::Restarted),
            Some(noted) if noted.disturbed != self.disturbed => Some(Doubt::Disturbed),
            Some(noted) if noted.unflushed != self.unflushed => Some(Doubt::Unflushed),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unknown => "no record says on what it depends",
            Self::Loss => "acknowledged writes may be missing, since a copy was made primary by force",
            Self::Unflushed => "all copies lost power at once, and what was not flushed may be missing",
            Self::Restarted => "the service was stopped in between, and others may have written to the volume",
            Self::Disturbed => "somebody else had the filesystem mounted, or repaired it",
        })
    }
}

impl Payload for Foundation {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.u64(self.service);
        into.u64(self.loss);
        into.u64(self.disturbed);
        into.u64(self.unflushed);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (service, loss, disturbed) = (from.u64()?, from.u64()?, from.u64()?);
        // Before there were notes, nothing that was not flushed was answered.
        let unflushed = if from.remaining() == 0 { 0 } else { from.u64()? };
        Ok(Self { service, loss, unflushed, disturbed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_while_nothing_has_changed_and_a_loss_is_told_before_all() {
        let now = Foundation { service: 3, loss: 0, unflushed: 4, disturbed: 1 };
        let noted = Foundation::from_payload(&now.to_payload()).expect("it comes back");
        assert_eq!(now.doubt(Some(noted)), None);
        assert_eq!(now.doubt(None), Some(Doubt::Unknown));
        assert_eq!(now.doubt(Some(Foundation { disturbed: 0, ..now })), Some(Doubt::Disturbed));
        assert_eq!(now.doubt(Some(Foundation { service: 2, ..now })), Some(Doubt::Restarted));
        assert_eq!(now.doubt(Some(Foundation { unflushed: 0, ..now })), Some(Doubt::Unflushed));
        assert_eq!(now.doubt(Some(Foundation { service: 2, loss: 7, ..now })), Some(Doubt::Loss));
    }
}
