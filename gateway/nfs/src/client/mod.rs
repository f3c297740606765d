//! A client of NFSv4.1 and 4.2 that needs no root and no kernel: the tests, the demo and the load generator speak through it.
//!
//! `request` and `result` are its own encoding of what goes over the wire, `attributes` that of attributes: they share nothing
//! with the server's operations, so that each checks the other. `session` is the state machine of a client id and its session,
//! `callback` that of the back channel; both are pure. `connection` is the shell around them with the socket and the clock,
//! `files` whole operations on paths above it.

pub mod arguments;
pub mod attributes;
pub mod callback;
pub mod connection;
pub mod files;
pub mod number;
pub mod request;
pub mod result;
#[cfg(test)]
mod scripted;
pub mod session;
mod slots;
pub mod statistics;

use bytes::Bytes;

use crate::ids::Stateid;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest handle that a server may give (RFC 8881 §3.1, `NFS4_FHSIZE`).
const HANDLE_BYTES_MAX: usize = 128;

/// A file's handle, opaque as it is to clients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub Bytes);

impl Handle {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.opaque(HANDLE_BYTES_MAX).map(Self)
    }
}

/// `stateid4` to the wire.
fn put_stateid(out: &mut Encoder, stateid: Stateid) {
    out.u32(stateid.seqid);
    out.fixed(&stateid.other);
}

/// `stateid4` from the wire.
fn take_stateid(decoder: &mut Decoder) -> Result<Stateid, XdrError> {
    Ok(Stateid { seqid: decoder.u32()?, other: decoder.fixed()? })
}
