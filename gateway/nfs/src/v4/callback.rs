//! What is said to a client on the back channel, and what it answers (RFC 8881 §20): CB_COMPOUND with CB_SEQUENCE and at most one
//! operation behind it. Sequences and connections are not known here.

use bytes::Bytes;

use super::file_handle::FileHandle;
use super::stateid;
use super::status::{self, Status};
use crate::ids::{ClientId, FileId, SessionId, Stateid};
use crate::rpc::reply;
use crate::state::back_channel::CallbackTurn;
use crate::state::callback_session::CallbackHead;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest answer that is looked at; what a client has to say is far shorter.
pub const REPLY_BYTES_MAX: usize = 4_096;

/// The version of every callback program (RFC 8881 §20, `NFS_CB`).
const VERSION: u32 = 1;
const PROCEDURE_NULL: u32 = 0;
const PROCEDURE_COMPOUND: u32 = 1;
const TAG_BYTES_MAX: usize = 1_024;
const RECALL: u32 = 4;
const RECALL_ANY: u32 = 8;
const SEQUENCE: u32 = 11;
const NOTIFY_LOCK: u32 = 13;
/// `RCA4_TYPE_MASK_RDATA_DLG`, as a bit of the mask's first word.
const READ_DELEGATIONS: u32 = 1;
const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;

/// What is asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// CB_RECALL: a delegation is to be given back.
    Recall(Stateid, FileId),
    /// CB_RECALL_ANY: delegations are to be given back until so many are left.
    RecallAny(u32),
    /// CB_NOTIFY_LOCK: an owner may ask for its lock again.
    NotifyLock(FileId, ClientId, Bytes),
}

/// An answer that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// To CB_SEQUENCE.
    pub sequence: Result<(), Status>,
    /// To the operation behind it; none if there was none, or it was not come to.
    pub operation: Option<Result<(), Status>>,
}

/// Why an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The call was refused before anybody looked at what it says.
    #[error("the call was not accepted")]
    Unaccepted,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Garbage(#[from] XdrError),
    /// It is of another callback.
    #[error("it answers something else")]
    Another,
}

impl Operation {
    /// Its number (RFC 8881 §20).
    pub fn number(&self) -> u32 {
        match self {
            Self::Recall(..) => RECALL,
            Self::RecallAny(_) => RECALL_ANY,
            Self::NotifyLock(..) => NOTIFY_LOCK,
        }
    }

    fn encode(&self, volume: u64, out: &mut Encoder) {
        out.u32(self.number());
        match self {
            Self::Recall(delegation, file) => {
                stateid::encode(out, *delegation);
                // Whether the file is about to be cut does not matter to a reader.
                out.bool(false);
                out.opaque(&FileHandle::File(volume, *file).to_bytes());
            }
            Self::RecallAny(keep) => {
                out.u32(*keep);
                out.array(&[READ_DELEGATIONS], |out, word| out.u32(*word));
            }
            Self::NotifyLock(file, client, owner) => {
                out.opaque(&FileHandle::File(volume, *file).to_bytes());
                out.u64(client.0);
                out.opaque(owner);
            }
        }
    }
}

fn call(xid: u32, head: &CallbackHead, procedure: u32) -> Encoder {
    let mut out = Encoder::new();
    for word in [xid, CALL, RPC_VERSION, head.program, VERSION, procedure] {
        out.u32(word);
    }
    out.encoded(&head.security);
    // No verifier.
    out.u64(0);
    out
}

/// A call that says nothing: whoever answers it can be called.
pub fn null(xid: u32, head: &CallbackHead) -> Vec<Bytes> {
    call(xid, head, PROCEDURE_NULL).finish()
}

/// A call on a slot; without an operation it is a probe. Handles are those of files of this volume.
pub fn compound(
    xid: u32,
    head: &CallbackHead,
    session: SessionId,
    turn: CallbackTurn,
    (volume, operation): (u64, Option<&Operation>),
) -> Vec<Bytes> {
    let mut out = call(xid, head, PROCEDURE_COMPOUND);
    out.opaque(b"");
    out.u32(head.minor);
    // Of NFSv4.0 only.
    out.u32(0);
    out.u32(1 + u32::from(operation.is_some()));
    out.u32(SEQUENCE);
    out.fixed(&session.to_bytes());
    for word in [turn.sequence, turn.slot, head.slots.saturating_sub(1)] {
        out.u32(word);
    }
    // The client need not keep its answer, which Linux would refuse; no requests are referred to.
    out.bool(false);
    out.u32(0);
    if let Some(operation) = operation {
        operation.encode(volume, &mut out);
    }
    out.finish()
}

/// The answer to [`null`]. Errors: it was not accepted, or cannot be read.
pub fn decode_null(message: Bytes) -> Result<(), NoAnswer> {
    match reply::decode(&mut Decoder::new(message))? {
        (_, true) => Ok(()),
        (_, false) => Err(NoAnswer::Unaccepted),
    }
}

/// The answer to [`compound`]. Errors: there is nothing in it that could be relied on.
pub fn decode(
    message: Bytes,
    session: SessionId,
    turn: CallbackTurn,
    operation: Option<&Operation>,
) -> Result<Answer, NoAnswer> {
    let mut decoder = Decoder::new(message);
    let (_, is_accepted) = reply::decode(&mut decoder)?;
    if !is_accepted {
        return Err(NoAnswer::Unaccepted);
    }
    let whole = status_of(decoder.u32()?)?;
    decoder.opaque(TAG_BYTES_MAX)?;
    let count = decoder.u32()?;
    if count == 0 {
        // Refused before its first operation.
        return match whole {
            Err(status) => Ok(Answer { sequence: Err(status), operation: None }),
            Ok(()) => Err(NoAnswer::Another),
        };
    }
    if decoder.u32()? != SEQUENCE || count > 1 + u32::from(operation.is_some()) {
        return Err(NoAnswer::Another);
    }
    if let Err(status) = status_of(decoder.u32()?)? {
        return Ok(Answer { sequence: Err(status), operation: None });
    }
    let session_given = SessionId::from_bytes(decoder.fixed()?);
    let (sequence, slot) = (decoder.u32()?, decoder.u32()?);
    if (session_given, sequence, slot) != (session, turn.sequence, turn.slot) {
        return Err(NoAnswer::Another);
    }
    let (_highest, _target) = (decoder.u32()?, decoder.u32()?);
    let Some(operation) = operation else { return Ok(Answer { sequence: Ok(()), operation: None }) };
    if count == 1 {
        return Ok(Answer { sequence: Ok(()), operation: whole.is_err().then_some(whole) });
    }
    match decoder.u32()? == operation.number() {
        true => Ok(Answer { sequence: Ok(()), operation: Some(status_of(decoder.u32()?)?) }),
        false => Err(NoAnswer::Another),
    }
}

fn status_of(code: u32) -> Result<Result<(), Status>, XdrError> {
    match code {
        status::OK => Ok(Ok(())),
        code => Status::from_code(code).map(Err).ok_or(XdrError::BadValue { of: "nfsstat4", value: code }),
    }
}

#[cfg(test)]
#[path = "callback_tests.rs"]
mod tests;
