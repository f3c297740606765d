//! EXCHANGE_ID (RFC 8881 §18.35): a client says who it is. Here is what goes over the wire.

use bytes::Bytes;

use crate::state::client::OWNER_BYTES_MAX;
use crate::state::exchange_id::{ClientGrant, ExchangeId, Protection};
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest list of operations for state protection.
const BITMAP_WORDS_MAX: usize = 8;
/// Algorithms that a client may offer for state protection.
const ALGORITHMS_MAX: usize = 16;
const ALGORITHM_BYTES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 1024;

/// From the wire; who the client authenticated as is for the caller to add.
pub fn decode(decoder: &mut Decoder) -> Result<ExchangeId, XdrError> {
    let verifier = decoder.fixed()?;
    let owner = decoder.opaque(OWNER_BYTES_MAX)?;
    let flags = decoder.u32()?;
    let words = |decoder: &mut Decoder| decoder.array(BITMAP_WORDS_MAX, Decoder::u32);
    let algorithms =
        |decoder: &mut Decoder| decoder.array(ALGORITHMS_MAX, |decoder| decoder.opaque(ALGORITHM_BYTES_MAX));
    let protection = match decoder.u32()? {
        0 => Protection::None,
        1 => {
            words(decoder)?;
            words(decoder)?;
            Protection::MachineCredentials
        }
        2 => {
            for _ in 0..2 {
                words(decoder)?;
            }
            for _ in 0..2 {
                algorithms(decoder)?;
            }
            // The window and the number of handles.
            decoder.u64()?;
            Protection::SecretState
        }
        value => return Err(XdrError::BadValue { of: "state_protect_how4", value }),
    };
    let implementations = decoder.array(1, |decoder| {
        decoder.opaque(NAME_BYTES_MAX)?;
        let name = decoder.opaque(NAME_BYTES_MAX)?;
        decoder.i64()?;
        decoder.u32()?;
        Ok(name)
    })?;
    let implementation = implementations.into_iter().next().unwrap_or_default();
    Ok(ExchangeId { owner, verifier, flags, protection, principal: Bytes::new(), implementation })
}

/// Puts the answer of a service, which is the same server for its clients on whichever box it runs (`so_major_id`).
pub fn put(out: &mut Encoder, answer: &ClientGrant, service_name: &[u8]) {
    out.u64(answer.client.0);
    out.u32(answer.sequence);
    out.u32(answer.flags);
    // SP4_NONE.
    out.u32(0);
    // The server: minor id, major id, and the scope in which its handles mean the same.
    out.u64(0);
    out.opaque(service_name);
    out.opaque(service_name);
    // Who made the server.
    out.u32(0);
}
