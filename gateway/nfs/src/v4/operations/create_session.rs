//! CREATE_SESSION (RFC 8881 §18.36): a session for a client. Here is what goes over the wire.

use crate::ids::{ClientId, SessionId};
use crate::rpc::auth::SysCredential;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Flavors that a client may offer for callbacks.
const CALLBACK_FLAVORS_MAX: usize = 16;
const HANDLE_BYTES_MAX: usize = 1024;

/// What one channel of a session can carry (`channel_attrs4`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelAttributes {
    /// Bytes of a request.
    pub request_bytes_max: u32,
    /// Bytes of a reply.
    pub reply_bytes_max: u32,
    /// Bytes of a reply that is kept.
    pub cached_reply_bytes_max: u32,
    /// Operations of a compound.
    pub operations_max: u32,
    /// Slots.
    pub requests_max: u32,
}

/// Who calls in a callback, of the flavors that we can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallbackCredential {
    /// Nobody.
    None,
    /// As AUTH_SYS.
    Sys(SysCredential),
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Who it is.
    pub client: ClientId,
    /// As it was told by EXCHANGE_ID.
    pub sequence: u32,
    /// `CREATE_SESSION4_FLAG_*`.
    pub flags: u32,
    /// For its requests.
    pub fore: ChannelAttributes,
    /// For ours.
    pub back: ChannelAttributes,
    /// Program number of its callbacks.
    pub callback_program: u32,
    /// With which credential they are to come, if one that we can use was offered.
    pub callback_credential: Option<CallbackCredential>,
}

/// What it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The session.
    pub session: SessionId,
    /// Its own sequence.
    pub sequence: u32,
    /// `CREATE_SESSION4_FLAG_*`.
    pub flags: u32,
    /// For its requests.
    pub fore: ChannelAttributes,
    /// For ours.
    pub back: ChannelAttributes,
}

impl ChannelAttributes {
    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let _header_padding = decoder.u32()?;
        let attributes = Self {
            request_bytes_max: decoder.u32()?,
            reply_bytes_max: decoder.u32()?,
            cached_reply_bytes_max: decoder.u32()?,
            operations_max: decoder.u32()?,
            requests_max: decoder.u32()?,
        };
        // RDMA, which we do not have.
        decoder.array(1, Decoder::u32)?;
        Ok(attributes)
    }

    fn encode(&self, out: &mut Encoder) {
        out.u32(0);
        for value in [
            self.request_bytes_max,
            self.reply_bytes_max,
            self.cached_reply_bytes_max,
            self.operations_max,
            self.requests_max,
        ] {
            out.u32(value);
        }
        out.u32(0);
    }
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let client = ClientId(decoder.u64()?);
        let (sequence, flags) = (decoder.u32()?, decoder.u32()?);
        let (fore, back) = (ChannelAttributes::decode(decoder)?, ChannelAttributes::decode(decoder)?);
        let callback_program = decoder.u32()?;
        let offered = decoder.array(CALLBACK_FLAVORS_MAX, decode_credential)?;
        let callback_credential = offered.into_iter().flatten().next();
        Ok(Self { client, sequence, flags, fore, back, callback_program, callback_credential })
    }
}

/// `callback_sec_parms4`: none for a flavor that we cannot use.
pub fn decode_credential(decoder: &mut Decoder) -> Result<Option<CallbackCredential>, XdrError> {
    match decoder.u32()? {
        0 => Ok(Some(CallbackCredential::None)),
        1 => SysCredential::decode(decoder).map(|sys| Some(CallbackCredential::Sys(sys))),
        6 => {
            decoder.u32()?;
            decoder.opaque(HANDLE_BYTES_MAX)?;
            decoder.opaque(HANDLE_BYTES_MAX)?;
            Ok(None)
        }
        value => Err(XdrError::BadValue { of: "a callback's flavor", value }),
    }
}

/// Puts the answer.
pub fn put(out: &mut Encoder, answer: &Answer) {
    out.fixed(&answer.session.to_bytes());
    out.u32(answer.sequence);
    out.u32(answer.flags);
    answer.fore.encode(out);
    answer.back.encode(out);
}
