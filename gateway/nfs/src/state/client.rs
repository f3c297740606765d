//! A client (RFC 8881 §2.4): who it says it is, and the newest CREATE_SESSION with its result, which is one slot for itself.

use bytes::Bytes;

use crate::state::record::Payload;
use crate::state::session::SessionGrant;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Bytes of a verifier (RFC 8881 §3.2, `NFS4_VERIFIER_SIZE`).
pub const VERIFIER_BYTES: usize = 8;
/// Bytes of what a client calls itself (`NFS4_OPAQUE_LIMIT`).
pub const OWNER_BYTES_MAX: usize = 1_024;
/// Bytes of who it authenticated as.
pub const PRINCIPAL_BYTES_MAX: usize = 512;
/// Bytes of what it says its program is; the rest is not kept.
pub const IMPLEMENTATION_BYTES_MAX: usize = 128;

/// What is kept of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What it calls itself (`co_ownerid`).
    pub owner: Bytes,
    /// Another one each time that it has restarted (`co_verifier`).
    pub verifier: [u8; VERIFIER_BYTES],
    /// Who it authenticated as, as the caller names it.
    pub principal: Bytes,
    /// What EXCHANGE_ID asked for (`eia_flags`).
    pub flags: u32,
    /// What its program is, for people to read.
    pub implementation: Bytes,
    /// It has nothing more to reclaim.
    pub reclaim_complete: bool,
    /// Of the newest CREATE_SESSION.
    pub sequence: u32,
    /// What was answered to it; none before the first.
    pub answer: Option<Result<SessionGrant, Status>>,
}

/// What CREATE_SESSION is to do about its sequence (RFC 8881 §18.36.4, "Sequence ID processing").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is the next one.
    Next,
    /// It was answered so.
    Answered(Result<SessionGrant, Status>),
    /// It is neither.
    Misordered,
}

impl Client {
    /// What a CREATE_SESSION of this sequence is.
    pub fn turn(&self, sequence: u32) -> Turn {
        match self.answer {
            Some(answer) if sequence == self.sequence => Turn::Answered(answer),
            _ if sequence == self.sequence.wrapping_add(1) => Turn::Next,
            _ => Turn::Misordered,
        }
    }
}

impl Payload for Client {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.opaque(&self.owner);
        into.fixed(&self.verifier);
        into.opaque(&self.principal);
        into.u32(self.flags);
        into.opaque(&self.implementation);
        into.bool(self.reclaim_complete);
        into.u32(self.sequence);
        into.option(self.answer, |into, answer| match answer {
            Ok(grant) => {
                into.bool(true);
                grant.encode(into);
            }
            Err(status) => {
                into.bool(false);
                into.u32(status.code());
            }
        });
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self {
            owner: from.opaque(OWNER_BYTES_MAX)?,
            verifier: from.fixed()?,
            principal: from.opaque(PRINCIPAL_BYTES_MAX)?,
            flags: from.u32()?,
            implementation: from.opaque(IMPLEMENTATION_BYTES_MAX)?,
            reclaim_complete: from.bool()?,
            sequence: from.u32()?,
            answer: from.option(|from| match from.bool()? {
                true => SessionGrant::decode(from).map(Ok),
                false => {
                    let value = from.u32()?;
                    Status::from_code(value).map(Err).ok_or(XdrError::BadValue { of: "status", value })
                }
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, SessionId};
    use crate::state::record::PAYLOAD_BYTES_MAX;
    use crate::state::session::ChannelAttributes;

    fn client(answer: Option<Result<SessionGrant, Status>>) -> Client {
        Client {
            owner: Bytes::from(vec![1; OWNER_BYTES_MAX]),
            verifier: [2; VERIFIER_BYTES],
            principal: Bytes::from(vec![3; PRINCIPAL_BYTES_MAX]),
            flags: 4,
            implementation: Bytes::from(vec![5; IMPLEMENTATION_BYTES_MAX]),
            reclaim_complete: true,
            sequence: u32::MAX,
            answer,
        }
    }

    fn grant() -> SessionGrant {
        let session = SessionId { client: ClientId(1), number: 2 };
        let (fore, back) = (ChannelAttributes::default(), ChannelAttributes::default());
        SessionGrant { session, sequence: u32::MAX, flags: 1, fore, back }
    }

    #[test]
    fn the_largest_client_fits_a_record_and_comes_back() {
        for answer in [None, Some(Ok(grant())), Some(Err(Status::TooSmall))] {
            let client = client(answer);
            let payload = client.to_payload();
            assert!(payload.len() <= PAYLOAD_BYTES_MAX, "{}", payload.len());
            assert_eq!(Client::from_payload(&payload), Ok(client));
        }
    }

    #[test]
    fn the_sequence_wraps_and_the_newest_answer_is_kept() {
        let client = client(Some(Ok(grant())));
        assert_eq!(client.turn(u32::MAX), Turn::Answered(Ok(grant())));
        assert_eq!(client.turn(0), Turn::Next);
        assert_eq!(client.turn(1), Turn::Misordered);
        assert_eq!(client.turn(u32::MAX - 1), Turn::Misordered);
        assert_eq!(self::client(None).turn(u32::MAX), Turn::Misordered, "nothing was answered yet");
    }
}
