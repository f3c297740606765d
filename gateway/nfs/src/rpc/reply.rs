//! Replies (RFC 5531 §9): the head before a result, and those that say why there is none.

use super::auth::{put_no_verifier, skip_verifier};
use super::{REPLY, RPC_VERSION};
use crate::xdr::{Decoder, Encoder, XdrError};

const ACCEPTED: u32 = 0;
const DENIED: u32 = 1;
const SUCCESS: u32 = 0;
const RPC_MISMATCH: u32 = 0;
const AUTH_ERROR: u32 = 1;

/// Why a call that could be read has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaccepted {
    /// No such program here.
    ProgramUnavailable,
    /// Not in this version; these are the lowest and the highest that there are.
    VersionMismatch(u32, u32),
    /// No such procedure.
    ProcedureUnavailable,
    /// The arguments cannot be read.
    GarbageArguments,
    /// Something went wrong here.
    SystemError,
}

/// Why a caller is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The credential cannot be read.
    BadCredential = 1,
    /// Another flavor is wanted.
    TooWeak = 5,
}

/// Puts the head of a reply with a result, which is to follow.
pub fn success(encoder: &mut Encoder, xid: u32) {
    for word in [xid, REPLY, ACCEPTED] {
        encoder.u32(word);
    }
    put_no_verifier(encoder);
    encoder.u32(SUCCESS);
}

/// A whole reply without a result.
pub fn unaccepted(xid: u32, why: Unaccepted) -> Encoder {
    let mut encoder = Encoder::new();
    for word in [xid, REPLY, ACCEPTED] {
        encoder.u32(word);
    }
    put_no_verifier(&mut encoder);
    match why {
        Unaccepted::ProgramUnavailable => encoder.u32(1),
        Unaccepted::VersionMismatch(low, high) => [2, low, high].into_iter().for_each(|word| encoder.u32(word)),
        Unaccepted::ProcedureUnavailable => encoder.u32(3),
        Unaccepted::GarbageArguments => encoder.u32(4),
        Unaccepted::SystemError => encoder.u32(5),
    }
    encoder
}

/// A whole reply to a caller that speaks another version of RPC.
pub fn rpc_mismatch(xid: u32) -> Encoder {
    let mut encoder = Encoder::new();
    for word in [xid, REPLY, DENIED, RPC_MISMATCH, RPC_VERSION, RPC_VERSION] {
        encoder.u32(word);
    }
    encoder
}

/// A whole reply to a caller that is not believed.
pub fn denied(xid: u32, why: AuthError) -> Encoder {
    let mut encoder = Encoder::new();
    for word in [xid, REPLY, DENIED, AUTH_ERROR, why as u32] {
        encoder.u32(word);
    }
    encoder
}

/// Takes the head of a reply to one of our own calls: its number, and whether a result follows.
pub fn decode(decoder: &mut Decoder) -> Result<(u32, bool), XdrError> {
    let xid = decoder.u32()?;
    match decoder.u32()? {
        REPLY => {}
        value => return Err(XdrError::BadValue { of: "message type", value }),
    }
    if decoder.u32()? != ACCEPTED {
        return Ok((xid, false));
    }
    skip_verifier(decoder)?;
    Ok((xid, decoder.u32()? == SUCCESS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_refusals_are_told_apart() {
        let mut encoder = Encoder::new();
        success(&mut encoder, 5);
        encoder.u32(42);
        let mut decoder = Decoder::new(encoder.to_bytes());
        assert_eq!(decode(&mut decoder), Ok((5, true)));
        assert_eq!(decoder.u32(), Ok(42));
        let refusals = [
            unaccepted(5, Unaccepted::ProgramUnavailable),
            unaccepted(5, Unaccepted::VersionMismatch(3, 4)),
            unaccepted(5, Unaccepted::SystemError),
            rpc_mismatch(5),
            denied(5, AuthError::TooWeak),
        ];
        for refusal in refusals {
            assert_eq!(decode(&mut Decoder::new(refusal.to_bytes())), Ok((5, false)));
        }
    }
}
