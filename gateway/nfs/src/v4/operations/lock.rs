//! LOCK, LOCKT, LOCKU (RFC 8881 §18.10 to §18.12): ranges of the current file that somebody has for himself. Here is what goes
//! over the wire.

use bytes::Bytes;

use crate::ids::{ClientId, Stateid};
use crate::v4::stateid;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest name of an owner (RFC 8881 `NFS4_OPAQUE_LIMIT`).
pub const OWNER_BYTES_MAX: usize = 1024;

/// `nfs_lock_type4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockType {
    /// For writing.
    pub exclusive: bool,
    /// The client would rather wait than be refused.
    pub blocking: bool,
}

/// Whose lock it will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locker {
    /// That of an owner that has none on this file yet.
    New {
        /// By this open.
        open: Stateid,
        /// Its name; the client is that of the session.
        owner: Bytes,
    },
    /// That of one that has.
    Known(Stateid),
}

/// LOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockArguments {
    /// What kind.
    pub kind: LockType,
    /// It was held before the server lost its state.
    pub reclaim: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes; all ones for all that follow.
    pub length: u64,
    /// Whose.
    pub locker: Locker,
}

/// LOCKT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestArguments {
    /// What kind.
    pub kind: LockType,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whose it would be.
    pub owner: Bytes,
}

/// LOCKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnlockArguments {
    /// Whose.
    pub stateid: Stateid,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A lock that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InTheWay {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// For writing.
    pub exclusive: bool,
    /// Whose client; 0 for one of another protocol.
    pub client: ClientId,
    /// Whose.
    pub owner: Bytes,
}

impl LockType {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            kind @ 1..=4 => Ok(Self { exclusive: kind % 2 == 0, blocking: kind > 2 }),
            value => Err(XdrError::BadValue { of: "nfs_lock_type4", value }),
        }
    }
}

/// `state_owner4`: the name only, since the client is the session's whatever is said here (RFC 8881 §18.16.3).
pub fn decode_owner(decoder: &mut Decoder) -> Result<Bytes, XdrError> {
    let _client = decoder.u64()?;
    decoder.opaque(OWNER_BYTES_MAX)
}

impl LockArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let kind = LockType::decode(decoder)?;
        let reclaim = decoder.bool()?;
        let (offset, length) = (decoder.u64()?, decoder.u64()?);
        let locker = match decoder.bool()? {
            true => {
                let _open_sequence = decoder.u32()?;
                let open = stateid::decode(decoder)?;
                let _lock_sequence = decoder.u32()?;
                Locker::New { open, owner: decode_owner(decoder)? }
            }
            false => {
                let known = stateid::decode(decoder)?;
                let _lock_sequence = decoder.u32()?;
                Locker::Known(known)
            }
        };
        Ok(Self { kind, reclaim, offset, length, locker })
    }
}

impl TestArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let kind = LockType::decode(decoder)?;
        let (offset, length) = (decoder.u64()?, decoder.u64()?);
        Ok(Self { kind, offset, length, owner: decode_owner(decoder)? })
    }
}

impl UnlockArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        LockType::decode(decoder)?;
        let _sequence = decoder.u32()?;
        let stateid = stateid::decode(decoder)?;
        Ok(Self { stateid, offset: decoder.u64()?, length: decoder.u64()? })
    }
}

/// Puts a lock that is in the way (`LOCK4denied`).
pub fn put_in_the_way(out: &mut Encoder, lock: &InTheWay) {
    out.u64(lock.offset);
    out.u64(lock.length);
    out.u32(if lock.exclusive { 2 } else { 1 });
    out.u64(lock.client.0);
    out.opaque(&lock.owner);
}
