//! SEQUENCE (RFC 8881 §18.46): the first operation of every compound of a session. Here is what goes over the wire.

use crate::ids::SessionId;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Which request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The session.
    pub session: SessionId,
    /// One more than that of the slot's last request.
    pub sequence: u32,
    /// The slot.
    pub slot: u32,
    /// The highest slot in use.
    pub highest_slot: u32,
    /// The client may want the reply again.
    pub cache_this: bool,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The highest slot that it may use.
    pub highest_slot: u32,
    /// And the one up to which we should like it to.
    pub target_highest_slot: u32,
    /// `SEQ4_STATUS_*`.
    pub status_flags: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self {
            session: SessionId::from_bytes(decoder.fixed()?),
            sequence: decoder.u32()?,
            slot: decoder.u32()?,
            highest_slot: decoder.u32()?,
            cache_this: decoder.bool()?,
        })
    }
}

/// Puts the answer.
pub fn put(out: &mut Encoder, request: &Arguments, answer: &Answer) {
    out.fixed(&request.session.to_bytes());
    for word in [request.sequence, request.slot, answer.highest_slot, answer.target_highest_slot, answer.status_flags] {
        out.u32(word);
    }
}
