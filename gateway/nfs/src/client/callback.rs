//! What a server asks of its client on the back channel (RFC 8881 §20), and the answers. State owned: the sequences of the back
//! channel's slots, with the last answer of each. It does not give delegations back: it tells that they are to be.

use bytes::Bytes;

use super::number::{self, callback as cb};
use super::request::Request;
use super::{Handle, take_stateid};
use crate::ids::{SessionId, Stateid};
use crate::rpc::call::{Call, NoCall};
use crate::rpc::reply::{self, AuthError, Unaccepted};
use crate::v4::bitmap::Bitmap;
use crate::v4::status::{self, Status};
use crate::xdr::{Decoder, Encoder, XdrError};

/// Slots of the back channel.
pub(super) const SLOTS_MAX: u32 = 16;
/// Operations of one callback.
pub(super) const OPERATIONS_MAX: u32 = 16;
const TAG_BYTES_MAX: usize = 1024;
const OWNER_BYTES_MAX: usize = 1024;
const REFERRING_MAX: usize = 1024;
/// Some servers call with the version of the callback program, some with that of NFS.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=4;

/// What a server wants, or tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A delegation is to be given back.
    Recall(Stateid, Handle),
    /// Delegations are to be given back until so many are left.
    RecallAny(u32),
    /// A range that this owner waits for may be free.
    LockMayBeFree(Handle, Bytes),
    /// No slot above this one is to be used.
    RecallSlot(u32),
}

/// The back channel of one session.
#[derive(Debug, Default)]
pub struct Callbacks {
    /// Of each slot: the sequence of its last callback, and what was answered.
    slots: Vec<(u32, Bytes)>,
}

struct CbSequence {
    session: SessionId,
    sequence: u32,
    slot: u32,
    highest_slot: u32,
}

impl Callbacks {
    /// That of a session with so many slots.
    pub fn new(slots: u32) -> Self {
        Self { slots: vec![(0, Bytes::new()); slots.min(SLOTS_MAX) as usize] }
    }

    /// Answers one message; what it wants is put into `notices`. No answer for what is no call at all.
    pub fn answer(&mut self, session: Option<SessionId>, message: Bytes, notices: &mut Vec<Notice>) -> Option<Bytes> {
        let mut decoder = Decoder::new(message);
        let call = match Call::decode(&mut decoder) {
            Ok(call) => call,
            Err(NoCall::Garbage) => return None,
            Err(NoCall::Version { xid }) => return Some(reply::rpc_mismatch(xid).to_bytes()),
            Err(NoCall::Credential { xid }) => return Some(reply::denied(xid, AuthError::BadCredential).to_bytes()),
        };
        let refuse = |why| Some(reply::unaccepted(call.xid, why).to_bytes());
        if call.program != number::CALLBACK_PROGRAM {
            return refuse(Unaccepted::ProgramUnavailable);
        }
        if !VERSIONS.contains(&call.version) {
            return refuse(Unaccepted::VersionMismatch(*VERSIONS.start(), *VERSIONS.end()));
        }
        let body = match call.procedure {
            number::PROCEDURE_NULL => Bytes::new(),
            number::PROCEDURE_COMPOUND => match self.compound(session, &mut decoder, notices) {
                Ok(body) => body,
                Err(_) => return refuse(Unaccepted::GarbageArguments),
            },
            _ => return refuse(Unaccepted::ProcedureUnavailable),
        };
        let mut out = Encoder::new();
        reply::success(&mut out, call.xid);
        out.encoded(&body);
        Some(out.to_bytes())
    }

    /// `CB_COMPOUND`. Errors: its head cannot be read.
    fn compound(
        &mut self,
        session: Option<SessionId>,
        decoder: &mut Decoder,
        notices: &mut Vec<Notice>,
    ) -> Result<Bytes, XdrError> {
        let tag = decoder.opaque(TAG_BYTES_MAX)?;
        let minor = decoder.u32()?;
        let _identifier = decoder.u32()?;
        let count = decoder.u32()?;
        let whole = |status: Status| Ok(compound_reply(Some(status), &tag, &[]));
        if !(1..=2).contains(&minor) {
            return whole(Status::MinorVersionMismatch);
        }
        if count > OPERATIONS_MAX {
            return whole(Status::TooManyOperations);
        }
        if count == 0 {
            return Ok(compound_reply(None, &tag, &[]));
        }
        if decoder.u32()? != cb::SEQUENCE {
            return whole(Status::OperationNotInSession);
        }
        let first = CbSequence::decode(decoder)?;
        let slots = self.slots.len() as u32;
        let slot = match self.slots.get_mut(first.slot as usize) {
            _ if session != Some(first.session) => Err(Status::BadSession),
            None => Err(Status::BadSlot),
            // The server did not get the answer.
            Some((sequence, answer)) if *sequence == first.sequence && !answer.is_empty() => return Ok(answer.clone()),
            Some(slot) if slot.0.wrapping_add(1) == first.sequence => Ok(slot),
            Some(_) => Err(Status::SequenceMisordered),
        };
        let slot = match slot {
            Ok(slot) => slot,
            Err(status) => return Ok(compound_reply(Some(status), &tag, &[(cb::SEQUENCE, Some(status))])),
        };
        let mut results = vec![(cb::SEQUENCE, None)];
        let mut failed = None;
        for _ in 1..count {
            let number = decoder.u32()?;
            failed = operation(number, decoder, notices)?;
            results.push((if failed == Some(Status::OperationIllegal) { 10_044 } else { number }, failed));
            if failed.is_some() {
                break;
            }
        }
        let answer = first.put_reply(slots, failed, &tag, &results);
        *slot = (first.sequence, answer.clone());
        Ok(answer)
    }
}

/// One operation behind the first. Errors: it cannot be read.
fn operation(number: u32, decoder: &mut Decoder, notices: &mut Vec<Notice>) -> Result<Option<Status>, XdrError> {
    match number {
        cb::RECALL => {
            let stateid = take_stateid(decoder)?;
            let _truncates = decoder.bool()?;
            notices.push(Notice::Recall(stateid, Handle::decode(decoder)?));
        }
        cb::RECALL_ANY => {
            let kept = decoder.u32()?;
            Bitmap::decode(decoder)?;
            notices.push(Notice::RecallAny(kept));
        }
        cb::RECALL_SLOT => notices.push(Notice::RecallSlot(decoder.u32()?)),
        cb::NOTIFY_LOCK => {
            let handle = Handle::decode(decoder)?;
            let _client = decoder.u64()?;
            notices.push(Notice::LockMayBeFree(handle, decoder.opaque(OWNER_BYTES_MAX)?));
        }
        cb::SEQUENCE => return Ok(Some(Status::SequencePosition)),
        // What we never ask for: layouts, write delegations, notifications, copies behind our back.
        cb::GETATTR..=cb::OFFLOAD => return Ok(Some(Status::NotSupported)),
        _ => return Ok(Some(Status::OperationIllegal)),
    }
    Ok(None)
}

impl CbSequence {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let this = Self {
            session: SessionId::from_bytes(decoder.fixed()?),
            sequence: decoder.u32()?,
            slot: decoder.u32()?,
            highest_slot: decoder.u32()?,
        };
        let _cached = decoder.bool()?;
        // Requests of ours that this one follows upon: we give back whatever is asked for, in whichever order.
        decoder.array(REFERRING_MAX, |decoder| {
            let _session: [u8; 16] = decoder.fixed()?;
            decoder.array(REFERRING_MAX, Decoder::u64).map(drop)
        })?;
        Ok(this)
    }

    fn put_reply(&self, slots: u32, failed: Option<Status>, tag: &[u8], results: &[(u32, Option<Status>)]) -> Bytes {
        let mut out = Encoder::new();
        put_head(&mut out, failed, tag, results.len());
        for (number, status) in results {
            out.u32(*number);
            out.u32(status.map_or(status::OK, Status::code));
            if *number == cb::SEQUENCE && status.is_none() {
                out.fixed(&self.session.to_bytes());
                let highest = slots.saturating_sub(1);
                for word in [self.sequence, self.slot, self.highest_slot.min(highest), highest] {
                    out.u32(word);
                }
            }
        }
        out.to_bytes()
    }
}

fn put_head(out: &mut Encoder, status: Option<Status>, tag: &[u8], count: usize) {
    out.u32(status.map_or(status::OK, Status::code));
    out.opaque(tag);
    out.u32(count as u32);
}

/// `CB_COMPOUND4res` of operations without results.
fn compound_reply(status: Option<Status>, tag: &[u8], results: &[(u32, Option<Status>)]) -> Bytes {
    let mut out = Encoder::new();
    put_head(&mut out, status, tag, results.len());
    for (number, status) in results {
        out.u32(*number);
        out.u32(status.map_or(status::OK, Status::code));
    }
    out.to_bytes()
}

/// Gives a delegation back.
pub(super) fn return_of(minor: u32, stateid: Stateid, handle: &Handle) -> Request {
    Request::new(minor).putfh(handle).delegreturn(stateid)
}

#[cfg(test)]
#[path = "callback_tests.rs"]
mod tests;
