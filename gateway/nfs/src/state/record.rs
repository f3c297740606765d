//! What the records of a service in the filesystem's state ring are called, and how their payloads are written and read: a
//! version, then XDR. Knows the kinds of the whole state, so that no two parts of it take the same one, but of no payload what
//! is in it.

use bytes::Bytes;
use filesystem::state_ring::RecordId;
use thiserror::Error;

use crate::xdr::{Decoder, Encoder, XdrError};

/// Epoch, verifier and counters of the service; one record.
pub const SERVICE: u16 = 1;
/// A client that is confirmed; by its id.
pub const CLIENT: u16 = 2;
/// A session; by its number.
pub const SESSION: u16 = 3;
/// The newest changing request of a slot, and its result; by session number and slot.
pub const SLOT: u16 = 4;
/// An open; by its state number.
pub const OPEN: u16 = 5;
/// A lock owner's byte ranges in a file; by its state number.
pub const LOCK: u16 = 6;
/// A delegation; by its state number.
pub const DELEGATION: u16 = 7;
/// A changing NFSv3 request and its reply; by when it came.
pub const V3_REPLY: u16 = 8;
/// A host of the network lock manager that is watched.
pub const MONITOR: u16 = 9;
/// The newest callback of a slot of a back channel; by session number and slot.
pub const CALLBACK_SLOT: u16 = 10;
/// What all others depend on; one record.
pub const FOUNDATION: u16 = 20;
/// A connection; by a number that another one may have later.
pub const CONNECTION: u16 = 21;

/// A lock that was taken for a host of the network lock manager, which is to be told.
pub const GRANT: u16 = 11;

/// The longest payload: fits a block of 4 KiB with what the ring puts before it.
pub const PAYLOAD_BYTES_MAX: usize = 3_900;

/// Why a payload says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Another build wrote it.
    #[error("version {0} is unknown")]
    Version(u32),
    /// It is not what was written.
    #[error(transparent)]
    Xdr(#[from] XdrError),
}

/// Why there is no state to go on with. Whatever it is, the service starts with its state lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// No record tells of the service itself.
    #[error("there is no record of the service")]
    Missing,
    /// A record that another build wrote.
    #[error("a record is of the unknown kind {0}")]
    UnknownKind(u16),
    /// A record that cannot be read.
    #[error("{id:?} cannot be read: {error}")]
    Payload {
        /// Which.
        id: RecordId,
        /// Why.
        error: PayloadError,
    },
    /// A record that says what cannot be, with its key or with what other records say.
    #[error("{id:?} contradicts itself or others: {what}")]
    Contradiction {
        /// Which.
        id: RecordId,
        /// What cannot be.
        what: &'static str,
    },
}

impl RestoreError {
    pub(super) fn contradiction(id: RecordId, what: &'static str) -> Self {
        Self::Contradiction { id, what }
    }
}

/// What is kept in a record.
pub trait Payload: Sized {
    /// Of the encoding; another one is not read.
    const VERSION: u32;

    /// Puts all of it.
    fn encode(&self, into: &mut Encoder);

    /// Takes all of it. Errors: it is not what [`Self::encode`] puts, or is more than bounds allow.
    fn decode(from: &mut Decoder) -> Result<Self, XdrError>;

    /// As it is kept.
    fn to_payload(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.u32(Self::VERSION);
        self.encode(&mut encoder);
        encoder.to_bytes().into()
    }

    /// As it was kept, nothing behind it. Errors: another version, or not what was written.
    fn from_payload(payload: &[u8]) -> Result<Self, PayloadError> {
        let mut decoder = Decoder::new(Bytes::copy_from_slice(payload));
        match decoder.u32()? {
            version if version == Self::VERSION => {}
            version => return Err(PayloadError::Version(version)),
        }
        let value = Self::decode(&mut decoder)?;
        decoder.finish()?;
        Ok(value)
    }
}

/// The record of one number.
pub const fn numbered(kind: u16, number: u64) -> RecordId {
    RecordId { kind, key: number as u128 }
}

/// The number that tells a record from others of its kind. Errors: its key is none.
pub fn number_of(id: RecordId) -> Result<u64, RestoreError> {
    u64::try_from(id.key).map_err(|_| RestoreError::contradiction(id, "its key is no number"))
}

/// The record of a slot of a session, of either channel.
pub const fn of_slot(kind: u16, session: u64, slot: u32) -> RecordId {
    RecordId { kind, key: (session as u128) << 32 | slot as u128 }
}

/// Session number and slot of a record. Errors: its key is none of a slot.
pub fn slot_of(id: RecordId) -> Result<(u64, u32), RestoreError> {
    match u64::try_from(id.key >> 32) {
        Ok(session) => Ok((session, id.key as u32)),
        Err(_) => Err(RestoreError::contradiction(id, "its key is no slot's")),
    }
}

pub(super) fn read<P: Payload>(id: RecordId, payload: &[u8]) -> Result<P, RestoreError> {
    P::from_payload(payload).map_err(|error| RestoreError::Payload { id, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u32);

    impl Payload for Number {
        const VERSION: u32 = 3;

        fn encode(&self, into: &mut Encoder) {
            into.u32(self.0);
        }

        fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
            from.u32().map(Self)
        }
    }

    #[test]
    fn a_payload_is_read_whole_or_not_at_all() {
        let payload = Number(7).to_payload();
        assert_eq!(payload, [0, 0, 0, 3, 0, 0, 0, 7]);
        assert_eq!(Number::from_payload(&payload), Ok(Number(7)));
        assert_eq!(Number::from_payload(&[0, 0, 0, 4, 0, 0, 0, 7]), Err(PayloadError::Version(4)));
        assert_eq!(Number::from_payload(&payload[..7]), Err(XdrError::Short.into()));
        assert_eq!(Number::from_payload(&[0, 0, 0, 3, 0, 0, 0, 7, 0]), Err(XdrError::Trailing(1).into()));
        assert_eq!(Number::from_payload(&[]), Err(XdrError::Short.into()));
    }

    #[test]
    fn keys_name_what_they_were_made_of() {
        assert_eq!(slot_of(of_slot(SLOT, u64::MAX, u32::MAX)), Ok((u64::MAX, u32::MAX)));
        assert_eq!(slot_of(of_slot(SLOT, 3, 9)), Ok((3, 9)));
        assert_eq!(number_of(numbered(CLIENT, u64::MAX)), Ok(u64::MAX));
        assert!(number_of(RecordId { kind: CLIENT, key: u128::MAX }).is_err());
        assert!(slot_of(RecordId { kind: SLOT, key: u128::MAX }).is_err());
    }
}
