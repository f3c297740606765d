//! Results of compounds (RFC 8881 §18, RFC 7862 §15, RFC 8276 §8.4) from whatever a server sends: each is read as what was asked
//! for, and anything else is an error. Attributes stay as they came until somebody reads them.

use bytes::Bytes;
use thiserror::Error;

use super::arguments::{Channel, Stable};
use super::attributes::{RawAttributes, take_bitmap};
use super::number::operation as op;
use super::{Handle, take_stateid};
use crate::ids::{ClientId, SessionId, Stateid};
use crate::v4::bitmap::Bitmap;
use crate::v4::status::{self, Status};
use crate::xdr::{Decoder, XdrError};

/// The longest data of one result; a session's bound is lower.
const DATA_BYTES_MAX: usize = 16 << 20;
const TAG_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 4096;
/// The longest opaque name of an owner, a server, a scope (RFC 8881 `NFS4_OPAQUE_LIMIT`).
const OPAQUE_BYTES_MAX: usize = 1024;
/// Entries of one READDIR, names of one LISTXATTRS, pieces of one READ_PLUS.
const ENTRIES_MAX: usize = 1 << 16;
/// Flavors that a server may offer for one file.
const FLAVORS_MAX: usize = 64;
const OID_BYTES_MAX: usize = 256;
const RPCSEC_GSS: u32 = 6;

/// How a directory changed (`change_info4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Nobody else changed it in between.
    pub atomic: bool,
    /// Its change attribute before.
    pub before: u64,
    /// And after.
    pub after: u64,
}

/// A delegation that comes with an open (`open_delegation4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegation {
    /// None.
    None,
    /// To read, and whether it is to be given back at once.
    Read(Stateid, bool),
    /// To write.
    Write(Stateid, bool),
    /// None although it was asked for: `why_no_delegation4`.
    Refused(u32),
}

/// OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The open.
    pub stateid: Stateid,
    /// How the directory changed.
    pub change: Change,
    /// `OPEN4_RESULT_*`.
    pub flags: u32,
    /// Attributes that the new file got.
    pub set: Bitmap,
    /// What came with it.
    pub delegation: Delegation,
}

/// A lock that is in the way (`LOCK4denied`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// For writing.
    pub exclusive: bool,
    /// Whose client.
    pub client: ClientId,
    /// Whose.
    pub owner: Bytes,
}

/// WRITE and COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub count: u64,
    /// How durable they are.
    pub stable: Stable,
    /// Another one as soon as data that was not durable may be lost.
    pub verifier: [u8; 8],
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub cookie: u64,
    /// The name.
    pub name: Bytes,
    /// What was asked for.
    pub attributes: RawAttributes,
}

/// READDIR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// To be sent with the cookies.
    pub verifier: [u8; 8],
    /// The entries.
    pub entries: Vec<Entry>,
    /// There are no others.
    pub at_end: bool,
}

/// One piece of READ_PLUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes from here on.
    Data(u64, Bytes),
    /// From here on so many bytes of a hole.
    Hole(u64, u64),
}

/// EXCHANGE_ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// The client.
    pub client: ClientId,
    /// Of the next CREATE_SESSION.
    pub sequence: u32,
    /// `EXCHGID4_FLAG_*`.
    pub flags: u32,
    /// Who the server is: the same for two addresses of one server.
    pub server: (u64, Bytes),
    /// Where its handles mean the same.
    pub scope: Bytes,
}

/// CREATE_SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedSession {
    /// The session.
    pub session: SessionId,
    /// Of the request.
    pub sequence: u32,
    /// `CREATE_SESSION4_FLAG_*`.
    pub flags: u32,
    /// For requests.
    pub fore: Channel,
    /// For callbacks.
    pub back: Channel,
}

/// SEQUENCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequenced {
    /// The session.
    pub session: SessionId,
    /// Of the slot.
    pub sequence: u32,
    /// The slot.
    pub slot: u32,
    /// The highest slot that may be used.
    pub highest_slot: u32,
    /// The highest that the server would like to be used.
    pub target_highest_slot: u32,
    /// `SEQ4_STATUS_*`.
    pub status_flags: u32,
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident($of:ty) = $accessor:ident;)*) => {
        /// What an operation gave.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Outcome {
            /// Nothing but success.
            Done,
            $($(#[$doc])* $name($of),)*
        }

        impl Results {
            $(
                $(#[$doc])*
                ///
                /// The next result of this kind; those before it are passed by. Errors: there is none.
                pub fn $accessor(&mut self) -> Result<$of, XdrError> {
                    loop {
                        match self.0.next() {
                            Some(Outcome::$name(value)) => return Ok(value),
                            Some(_) => continue,
                            None => return Err(XdrError::Short),
                        }
                    }
                }
            )*
        }
    };
}

outcomes! {
    /// ACCESS: the bits that are known, and those that are granted.
    Access((u32, u32)) = access;
    /// CLOSE, OPEN_DOWNGRADE, LOCK, LOCKU: the state afterwards.
    Stateid(Stateid) = stateid;
    /// COMMIT: the verifier.
    Committed([u8; 8]) = committed;
    /// CREATE: how the directory changed, and which attributes were set.
    Created((Change, Bitmap)) = created;
    /// LINK, REMOVE, SETXATTR, REMOVEXATTR: how the directory or file changed.
    Changed(Change) = changed;
    /// RENAME: how the directory before and the one after changed.
    Renamed((Change, Change)) = renamed;
    /// GETATTR.
    Attributes(RawAttributes) = attributes;
    /// SETATTR: which were set.
    Set(Bitmap) = set;
    /// GETFH.
    Handle(Handle) = handle;
    /// OPEN.
    Opened(Opened) = opened;
    /// READ: whether it reaches the end, and the bytes.
    Read((bool, Bytes)) = read;
    /// READ_PLUS.
    Pieces((bool, Vec<Piece>)) = pieces;
    /// READDIR.
    Entries(Entries) = entries;
    /// READLINK, GETXATTR.
    Value(Bytes) = value;
    /// WRITE, COPY.
    Written(Written) = written;
    /// SEEK: whether the end was reached, and where.
    Found((bool, u64)) = found;
    /// LISTXATTRS: the cookie of the next part, the names, and whether they are the last.
    Names((u64, Vec<Bytes>, bool)) = names;
    /// SECINFO, SECINFO_NO_NAME: flavors.
    Flavors(Vec<u32>) = flavors;
    /// TEST_STATEID: for each what is wrong with it, if anything is.
    Tested(Vec<Option<Status>>) = tested;
    /// EXCHANGE_ID.
    Exchanged(Exchanged) = exchanged;
    /// CREATE_SESSION.
    CreatedSession(CreatedSession) = created_session;
    /// SEQUENCE.
    Sequenced(Sequenced) = sequenced;
    /// BIND_CONN_TO_SESSION: the session and `channel_dir_from_server4`.
    Bound((SessionId, u32)) = bound;
}

/// The results of a compound, to be taken in the order of its operations.
#[derive(Clone, Debug)]
pub struct Results(std::vec::IntoIter<Outcome>);

/// Why a compound ended before its last operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("operation {number} (place {index}) was answered {status}")]
pub struct Failure {
    /// Which of its operations, SEQUENCE being the first where there is one; behind the last if the compound as a whole was
    /// refused.
    pub index: usize,
    /// Its number; 0 if the compound as a whole was refused.
    pub number: u32,
    /// Why.
    pub status: Status,
    /// The lock that is in the way, where that is why.
    pub denied: Option<Denied>,
}

/// What a compound was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What succeeded, in order.
    pub outcomes: Vec<Outcome>,
    /// Why it went no further.
    pub failure: Option<Failure>,
}

impl Reply {
    /// The results, if all operations succeeded.
    pub fn into_results(self) -> Result<Results, Failure> {
        match self.failure {
            None => Ok(Results(self.outcomes.into_iter())),
            Some(failure) => Err(failure),
        }
    }

    /// Reads the answer to a compound of these operations. Errors: it is none to that.
    pub fn decode(decoder: &mut Decoder, asked: &[u32]) -> Result<Self, XdrError> {
        let whole = take_status(decoder)?;
        decoder.opaque(TAG_BYTES_MAX)?;
        let count = decoder.u32()? as usize;
        if count > asked.len() {
            return Err(XdrError::TooLong { length: count as u32, max: asked.len() });
        }
        let mut reply = Self { outcomes: Vec::with_capacity(count), failure: None };
        for (index, number) in asked.iter().enumerate().take(count) {
            let named = decoder.u32()?;
            let status = take_status(decoder)?;
            if named != *number && (named != op::ILLEGAL || status.is_none()) {
                return Err(XdrError::BadValue { of: "the operation asked for", value: named });
            }
            match status {
                None => reply.outcomes.push(take_outcome(*number, decoder)?),
                Some(status) => {
                    let denied = take_failed(named, status, decoder)?;
                    reply.failure = Some(Failure { index, number: named, status, denied });
                    break;
                }
            }
        }
        reply.check(whole, count, asked.len())?;
        decoder.finish()?;
        Ok(reply)
    }

    /// The status of the whole is that of the last result, and only a failure ends it early (RFC 8881 §16.2.3).
    fn check(&mut self, whole: Option<Status>, count: usize, asked: usize) -> Result<(), XdrError> {
        let wrong = |status: Option<Status>| XdrError::BadValue {
            of: "the compound's status",
            value: status.map_or(status::OK, Status::code),
        };
        match (&self.failure, whole) {
            (Some(failure), Some(status)) if failure.status == status && failure.index + 1 == count => Ok(()),
            (None, None) if count == asked => Ok(()),
            // No operation was looked at, or not all could be.
            (None, Some(status)) if count < asked => {
                self.failure = Some(Failure { index: count, number: 0, status, denied: None });
                Ok(())
            }
            (_, whole) => Err(wrong(whole)),
        }
    }
}

/// `nfsstat4`: none for success.
fn take_status(decoder: &mut Decoder) -> Result<Option<Status>, XdrError> {
    match decoder.u32()? {
        status::OK => Ok(None),
        value => Status::from_code(value).map(Some).ok_or(XdrError::BadValue { of: "nfsstat4", value }),
    }
}

/// What stands behind a status that is no success.
fn take_failed(number: u32, status: Status, decoder: &mut Decoder) -> Result<Option<Denied>, XdrError> {
    match (number, status) {
        (op::LOCK | op::LOCKT, Status::Denied) => take_denied(decoder).map(Some),
        // The only result that is a structure, not a union: what was set stands there whatever happened (§18.30.2).
        (op::SETATTR, _) => take_bitmap(decoder).map(|_| None),
        // RFC 7862 §15.2.2.
        (op::COPY, Status::OffloadNoRequests) => {
            decoder.bool()?;
            decoder.bool()?;
            Ok(None)
        }
        _ => Ok(None),
    }
}

fn take_outcome(number: u32, decoder: &mut Decoder) -> Result<Outcome, XdrError> {
    Ok(match number {
        op::ACCESS => Outcome::Access((decoder.u32()?, decoder.u32()?)),
        op::CLOSE | op::OPEN_DOWNGRADE | op::LOCK | op::LOCKU => Outcome::Stateid(take_stateid(decoder)?),
        op::COMMIT => Outcome::Committed(decoder.fixed()?),
        op::CREATE => Outcome::Created((take_change(decoder)?, take_bitmap(decoder)?)),
        op::LINK | op::REMOVE | op::SETXATTR | op::REMOVEXATTR => Outcome::Changed(take_change(decoder)?),
        op::RENAME => Outcome::Renamed((take_change(decoder)?, take_change(decoder)?)),
        op::GETATTR => Outcome::Attributes(RawAttributes::decode(decoder)?),
        op::SETATTR => Outcome::Set(take_bitmap(decoder)?),
        op::GETFH => Outcome::Handle(Handle::decode(decoder)?),
        op::OPEN => Outcome::Opened(take_opened(decoder)?),
        op::READ => Outcome::Read((decoder.bool()?, decoder.opaque(DATA_BYTES_MAX)?)),
        op::READ_PLUS => Outcome::Pieces((decoder.bool()?, decoder.array(ENTRIES_MAX, take_piece)?)),
        op::READDIR => Outcome::Entries(take_entries(decoder)?),
        op::READLINK | op::GETXATTR => Outcome::Value(decoder.opaque(DATA_BYTES_MAX)?),
        op::WRITE => {
            let count = decoder.u32()?;
            Outcome::Written(take_written(u64::from(count), decoder)?)
        }
        op::COPY => Outcome::Written(take_copied(decoder)?),
        op::SEEK => Outcome::Found((decoder.bool()?, decoder.u64()?)),
        op::LISTXATTRS => Outcome::Names((
            decoder.u64()?,
            decoder.array(ENTRIES_MAX, |decoder| decoder.opaque(NAME_BYTES_MAX))?,
            decoder.bool()?,
        )),
        op::SECINFO | op::SECINFO_NO_NAME => Outcome::Flavors(decoder.array(FLAVORS_MAX, take_flavor)?),
        op::TEST_STATEID => Outcome::Tested(decoder.array(ENTRIES_MAX, take_status)?),
        op::EXCHANGE_ID => Outcome::Exchanged(take_exchanged(decoder)?),
        op::CREATE_SESSION => Outcome::CreatedSession(CreatedSession {
            session: take_session(decoder)?,
            sequence: decoder.u32()?,
            flags: decoder.u32()?,
            fore: take_channel(decoder)?,
            back: take_channel(decoder)?,
        }),
        op::SEQUENCE => Outcome::Sequenced(Sequenced {
            session: take_session(decoder)?,
            sequence: decoder.u32()?,
            slot: decoder.u32()?,
            highest_slot: decoder.u32()?,
            target_highest_slot: decoder.u32()?,
            status_flags: decoder.u32()?,
        }),
        op::BIND_CONN_TO_SESSION => {
            let bound = (take_session(decoder)?, decoder.u32()?);
            decoder.bool()?;
            Outcome::Bound(bound)
        }
        _ => Outcome::Done,
    })
}

fn take_session(decoder: &mut Decoder) -> Result<SessionId, XdrError> {
    decoder.fixed().map(SessionId::from_bytes)
}

fn take_change(decoder: &mut Decoder) -> Result<Change, XdrError> {
    Ok(Change { atomic: decoder.bool()?, before: decoder.u64()?, after: decoder.u64()? })
}

fn take_opened(decoder: &mut Decoder) -> Result<Opened, XdrError> {
    Ok(Opened {
        stateid: take_stateid(decoder)?,
        change: take_change(decoder)?,
        flags: decoder.u32()?,
        set: take_bitmap(decoder)?,
        delegation: take_delegation(decoder)?,
    })
}

fn take_delegation(decoder: &mut Decoder) -> Result<Delegation, XdrError> {
    match decoder.u32()? {
        0 => Ok(Delegation::None),
        1 => {
            let delegation = Delegation::Read(take_stateid(decoder)?, decoder.bool()?);
            skip_ace(decoder)?;
            Ok(delegation)
        }
        2 => {
            let delegation = Delegation::Write(take_stateid(decoder)?, decoder.bool()?);
            // `nfs_space_limit4`: a size, or a number of blocks and their size. Both are two words.
            match decoder.u32()? {
                1 | 2 => drop(decoder.u64()?),
                value => return Err(XdrError::BadValue { of: "limit_by4", value }),
            }
            skip_ace(decoder)?;
            Ok(delegation)
        }
        3 => {
            let why = decoder.u32()?;
            // Contention or resources: whether the server will tell when that is over.
            if matches!(why, 1 | 2) {
                decoder.bool()?;
            }
            Ok(Delegation::Refused(why))
        }
        value => Err(XdrError::BadValue { of: "open_delegation_type4", value }),
    }
}

/// `nfsace4`: who needs not be asked about by the server.
fn skip_ace(decoder: &mut Decoder) -> Result<(), XdrError> {
    for _ in 0..3 {
        decoder.u32()?;
    }
    decoder.opaque(OPAQUE_BYTES_MAX).map(drop)
}

fn take_denied(decoder: &mut Decoder) -> Result<Denied, XdrError> {
    Ok(Denied {
        offset: decoder.u64()?,
        length: decoder.u64()?,
        exclusive: match decoder.u32()? {
            kind @ 1..=4 => kind % 2 == 0,
            value => return Err(XdrError::BadValue { of: "nfs_lock_type4", value }),
        },
        client: ClientId(decoder.u64()?),
        owner: decoder.opaque(OPAQUE_BYTES_MAX)?,
    })
}

fn take_piece(decoder: &mut Decoder) -> Result<Piece, XdrError> {
    match decoder.u32()? {
        0 => Ok(Piece::Data(decoder.u64()?, decoder.opaque(DATA_BYTES_MAX)?)),
        1 => Ok(Piece::Hole(decoder.u64()?, decoder.u64()?)),
        value => Err(XdrError::BadValue { of: "data_content4", value }),
    }
}

/// `dirlist4`: a list, each of whose links says whether there is another.
fn take_entries(decoder: &mut Decoder) -> Result<Entries, XdrError> {
    let verifier = decoder.fixed()?;
    let mut entries = Vec::new();
    while decoder.bool()? {
        if entries.len() == ENTRIES_MAX {
            return Err(XdrError::TooLong { length: ENTRIES_MAX as u32 + 1, max: ENTRIES_MAX });
        }
        entries.push(Entry {
            cookie: decoder.u64()?,
            name: decoder.opaque(NAME_BYTES_MAX)?,
            attributes: RawAttributes::decode(decoder)?,
        });
    }
    Ok(Entries { verifier, entries, at_end: decoder.bool()? })
}

fn take_written(count: u64, decoder: &mut Decoder) -> Result<Written, XdrError> {
    let stable = match decoder.u32()? {
        0 => Stable::Unstable,
        1 => Stable::Data,
        2 => Stable::File,
        value => return Err(XdrError::BadValue { of: "stable_how4", value }),
    };
    Ok(Written { count, stable, verifier: decoder.fixed()? })
}

/// `COPY4resok`: it is done already, since only that was asked for.
fn take_copied(decoder: &mut Decoder) -> Result<Written, XdrError> {
    decoder.array(1, take_stateid)?;
    let count = decoder.u64()?;
    let written = take_written(count, decoder)?;
    decoder.bool()?;
    decoder.bool()?;
    Ok(written)
}

fn take_flavor(decoder: &mut Decoder) -> Result<u32, XdrError> {
    let flavor = decoder.u32()?;
    if flavor == RPCSEC_GSS {
        decoder.opaque(OID_BYTES_MAX)?;
        decoder.u32()?;
        decoder.u32()?;
    }
    Ok(flavor)
}

fn take_exchanged(decoder: &mut Decoder) -> Result<Exchanged, XdrError> {
    let client = ClientId(decoder.u64()?);
    let (sequence, flags) = (decoder.u32()?, decoder.u32()?);
    match decoder.u32()? {
        // SP4_NONE, the only one that is asked for.
        0 => {}
        value => return Err(XdrError::BadValue { of: "state_protect_how4", value }),
    }
    let server = (decoder.u64()?, decoder.opaque(OPAQUE_BYTES_MAX)?);
    let scope = decoder.opaque(OPAQUE_BYTES_MAX)?;
    decoder.array(1, |decoder| {
        decoder.opaque(OPAQUE_BYTES_MAX)?;
        decoder.opaque(OPAQUE_BYTES_MAX)?;
        decoder.i64()?;
        decoder.u32()
    })?;
    Ok(Exchanged { client, sequence, flags, server, scope })
}

fn take_channel(decoder: &mut Decoder) -> Result<Channel, XdrError> {
    let _header_padding = decoder.u32()?;
    let channel = Channel {
        request_bytes_max: decoder.u32()?,
        reply_bytes_max: decoder.u32()?,
        cached_reply_bytes_max: decoder.u32()?,
        operations_max: decoder.u32()?,
        requests_max: decoder.u32()?,
    };
    decoder.array(1, Decoder::u32)?;
    Ok(channel)
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
