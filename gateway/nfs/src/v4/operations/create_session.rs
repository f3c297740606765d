//! CREATE_SESSION (RFC 8881 §18.36): a session for a client. Here is what goes over the wire.

use bytes::Bytes;

use crate::ids::ClientId;
use crate::rpc::auth::{Credential, SysCredential};
use crate::state::create_session::CreateSession;
use crate::state::session::{ChannelAttributes, SessionGrant};
use crate::xdr::{Decoder, Encoder, XdrError};

/// Flavors that a client may offer for callbacks.
const CALLBACK_FLAVORS_MAX: usize = 16;
const HANDLE_BYTES_MAX: usize = 1024;

fn decode_channel(decoder: &mut Decoder) -> Result<ChannelAttributes, XdrError> {
    let attributes = ChannelAttributes {
        header_padding: decoder.u32()?,
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

fn put_channel(out: &mut Encoder, channel: &ChannelAttributes) {
    for value in [
        channel.header_padding,
        channel.request_bytes_max,
        channel.reply_bytes_max,
        channel.cached_reply_bytes_max,
        channel.operations_max,
        channel.requests_max,
    ] {
        out.u32(value);
    }
    out.u32(0);
}

/// From the wire; who the client authenticated as is for the caller to add.
pub fn decode(decoder: &mut Decoder) -> Result<CreateSession, XdrError> {
    Ok(CreateSession {
        client: ClientId(decoder.u64()?),
        sequence: decoder.u32()?,
        flags: decoder.u32()?,
        fore: decode_channel(decoder)?,
        back: decode_channel(decoder)?,
        callback_program: decoder.u32()?,
        callback_security: decode_security(decoder)?,
        principal: Bytes::new(),
    })
}

/// The first of the offered credentials (`callback_sec_parms4`) that we can use, as it will stand in calls; AUTH_NONE, which
/// every client takes, if there is none.
pub fn decode_security(decoder: &mut Decoder) -> Result<Bytes, XdrError> {
    let offered = decoder.array(CALLBACK_FLAVORS_MAX, |decoder| match decoder.u32()? {
        0 => Ok(Some(Credential::None)),
        1 => SysCredential::decode(decoder).map(|sys| Some(Credential::Sys(sys))),
        6 => {
            decoder.u32()?;
            decoder.opaque(HANDLE_BYTES_MAX)?;
            decoder.opaque(HANDLE_BYTES_MAX)?;
            Ok(None)
        }
        value => Err(XdrError::BadValue { of: "a callback's flavor", value }),
    })?;
    let mut out = Encoder::new();
    offered.into_iter().flatten().next().unwrap_or(Credential::None).encode(&mut out);
    Ok(out.to_bytes())
}

/// Puts the answer.
pub fn put(out: &mut Encoder, answer: &SessionGrant) {
    out.fixed(&answer.session.to_bytes());
    out.u32(answer.sequence);
    out.u32(answer.flags);
    put_channel(out, &answer.fore);
    put_channel(out, &answer.back);
}
