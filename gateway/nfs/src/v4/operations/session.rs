//! DESTROY_SESSION, BIND_CONN_TO_SESSION, BACKCHANNEL_CTL, DESTROY_CLIENTID, RECLAIM_COMPLETE (RFC 8881 §18.37, §18.34, §18.33,
//! §18.50, §18.51): what goes over the wire.

use bytes::Bytes;

use super::create_session::decode_security;
use crate::ids::{ClientId, SessionId};
use crate::xdr::{Decoder, Encoder, XdrError};

/// DESTROY_SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestroyArguments(pub SessionId);

/// BIND_CONN_TO_SESSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindArguments {
    /// The session.
    pub session: SessionId,
    /// `channel_dir_from_client4`.
    pub direction: u32,
}

/// BACKCHANNEL_CTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackChannelArguments {
    /// Program number of the callbacks.
    pub program: u32,
    /// With which credential they are to come, as it will stand in calls.
    pub security: Bytes,
}

/// DESTROY_CLIENTID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DestroyClientArguments(pub ClientId);

/// RECLAIM_COMPLETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimCompleteArguments {
    /// Of the current filesystem only.
    pub of_one: bool,
}

impl DestroyArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.fixed().map(SessionId::from_bytes).map(Self)
    }
}

impl BindArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let session = SessionId::from_bytes(decoder.fixed()?);
        let direction = decoder.u32()?;
        let _rdma = decoder.bool()?;
        Ok(Self { session, direction })
    }
}

/// Puts the answer to BIND_CONN_TO_SESSION: `channel_dir_from_server4`.
pub fn put_bound(out: &mut Encoder, session: SessionId, direction: u32) {
    out.fixed(&session.to_bytes());
    out.u32(direction);
    out.bool(false);
}

impl BackChannelArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { program: decoder.u32()?, security: decode_security(decoder)? })
    }
}

impl DestroyClientArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.u64().map(ClientId).map(Self)
    }
}

impl ReclaimCompleteArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { of_one: decoder.bool()? })
    }
}
