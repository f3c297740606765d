//! OPEN (RFC 8881 §18.16): opens a file, which may be made by that. Here is what goes over the wire; `opening` does it.

use bytes::Bytes;

use super::lock::decode_owner;
use crate::ids::Stateid;
use crate::v4::attributes::set::Unread;
use crate::v4::{name, stateid};
use crate::xdr::{Decoder, Encoder, XdrError};

/// What to do if the file is not there (`openflag4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// Nothing.
    No,
    /// It is made, if it is not there.
    Unchecked(Unread),
    /// It is made, and must not be there.
    Guarded(Unread),
    /// The same; told from others by a verifier, for clients whose sessions do not last.
    Exclusive([u8; 8]),
    /// The same, with attributes.
    ExclusiveWith([u8; 8], Unread),
}

/// What is opened (`open_claim4`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A name in the current directory.
    Null(Bytes),
    /// The current file, as it was opened before the server lost its state, with this kind of delegation.
    Previous(u32),
    /// A name, by a delegation that is being given back.
    DelegateCurrent(Stateid, Bytes),
    /// A name, by a delegation from before.
    DelegatePrevious(Bytes),
    /// The current file.
    File,
    /// The current file, by a delegation that is being given back.
    DelegateCurrentFile(Stateid),
    /// The current file, by a delegation from before.
    DelegatePreviousFile,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// `OPEN4_SHARE_ACCESS_*`, and what the client wants of delegations.
    pub access: u32,
    /// `OPEN4_SHARE_DENY_*`.
    pub deny: u32,
    /// Whose open; the client is that of the session.
    pub owner: Bytes,
    /// If it is not there.
    pub creation: Creation,
    /// What.
    pub claim: Claim,
}

/// A delegation that comes with an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegation {
    /// None, and the client did not ask.
    None,
    /// None, although it asked: `why_no_delegation4`.
    Refused(u32),
    /// To read.
    Read(Stateid),
}

/// `OPEN4_RESULT_LOCKTYPE_POSIX`.
pub const RESULT_POSIX_LOCKS: u32 = 4;
/// `OPEN4_RESULT_MAY_NOTIFY_LOCK`: who waits for a lock is told when it may be free.
pub const RESULT_MAY_NOTIFY_LOCK: u32 = 0x20;
/// `WND4_NOT_WANTED`.
pub const WHY_NOT_WANTED: u32 = 0;
/// `WND4_CONTENTION`: the answer says whether we shall tell when that is over.
pub const WHY_NOT_CONTENTION: u32 = 1;
/// `WND4_RESOURCE`.
pub const WHY_NOT_RESOURCE: u32 = 2;
/// `WND4_WRITE_DELEG_NOT_SUPP_FTYPE`.
pub const WHY_NOT_TO_WRITE: u32 = 4;

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let _sequence = decoder.u32()?;
        let (access, deny) = (decoder.u32()?, decoder.u32()?);
        let owner = decode_owner(decoder)?;
        let creation = match decoder.u32()? {
            0 => Creation::No,
            1 => Creation::decode(decoder)?,
            value => return Err(XdrError::BadValue { of: "opentype4", value }),
        };
        Ok(Self { access, deny, owner, creation, claim: Claim::decode(decoder)? })
    }
}

impl Creation {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            0 => Unread::decode(decoder).map(Self::Unchecked),
            1 => Unread::decode(decoder).map(Self::Guarded),
            2 => decoder.fixed().map(Self::Exclusive),
            3 => Ok(Self::ExclusiveWith(decoder.fixed()?, Unread::decode(decoder)?)),
            value => Err(XdrError::BadValue { of: "createmode4", value }),
        }
    }
}

impl Claim {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            0 => name::decode(decoder).map(Self::Null),
            1 => decoder.u32().map(Self::Previous),
            2 => Ok(Self::DelegateCurrent(stateid::decode(decoder)?, name::decode(decoder)?)),
            3 => name::decode(decoder).map(Self::DelegatePrevious),
            4 => Ok(Self::File),
            5 => stateid::decode(decoder).map(Self::DelegateCurrentFile),
            6 => Ok(Self::DelegatePreviousFile),
            value => Err(XdrError::BadValue { of: "open_claim_type4", value }),
        }
    }
}

impl Delegation {
    /// To the wire (`open_delegation4`).
    pub fn encode(&self, out: &mut Encoder) {
        match self {
            Self::None => out.u32(0),
            Self::Refused(why) => {
                out.u32(3);
                out.u32(*why);
                if *why == WHY_NOT_CONTENTION || *why == WHY_NOT_RESOURCE {
                    // We shall not tell when that is over.
                    out.bool(false);
                }
            }
            Self::Read(delegation) => {
                out.u32(1);
                stateid::encode(out, *delegation);
                // It is not being recalled, and grants nothing to anybody (`nfsace4`: the server is asked all the same).
                out.bool(false);
                for word in [0, 0, 0] {
                    out.u32(word);
                }
                out.opaque(b"");
            }
        }
    }
}
