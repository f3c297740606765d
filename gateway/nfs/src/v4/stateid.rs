//! Stateids to and from the wire (RFC 8881 §3.3.12, `stateid4`).

use crate::ids::Stateid;
use crate::xdr::{Decoder, Encoder, XdrError};

/// From the wire.
pub fn decode(decoder: &mut Decoder) -> Result<Stateid, XdrError> {
    Ok(Stateid { seqid: decoder.u32()?, other: decoder.fixed()? })
}

/// To the wire.
pub fn encode(out: &mut Encoder, stateid: Stateid) {
    out.u32(stateid.seqid);
    out.fixed(&stateid.other);
}
