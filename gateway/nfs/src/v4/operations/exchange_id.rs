//! EXCHANGE_ID (RFC 8881 §18.35): a client says who it is. Here is what goes over the wire.

use bytes::Bytes;

use crate::ids::ClientId;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The longest name of a client (RFC 8881 `NFS4_OPAQUE_LIMIT`).
pub const OWNER_BYTES_MAX: usize = 1024;
/// The longest list of operations for state protection.
const BITMAP_WORDS_MAX: usize = 8;
/// Algorithms that a client may offer for state protection.
const ALGORITHMS_MAX: usize = 16;
const ALGORITHM_BYTES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 1024;

/// How a client wants its state protected (`state_protect_how4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not at all.
    None,
    /// By the machine's credential.
    MachineCredential,
    /// By a secret of the client's own.
    Secret,
}

/// Who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Another one whenever it starts.
    pub verifier: [u8; 8],
    /// Its name for itself, the same at every start.
    pub owner: Bytes,
    /// `EXCHGID4_FLAG_*`.
    pub flags: u32,
    /// How its state is to be protected.
    pub protection: Protection,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its number.
    pub client: ClientId,
    /// With which its next CREATE_SESSION comes.
    pub sequence: u32,
    /// `EXCHGID4_FLAG_*`.
    pub flags: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
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
                Protection::MachineCredential
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
                Protection::Secret
            }
            value => return Err(XdrError::BadValue { of: "state_protect_how4", value }),
        };
        // Who made the client; nobody needs to know.
        decoder.array(1, |decoder| {
            decoder.opaque(NAME_BYTES_MAX)?;
            decoder.opaque(NAME_BYTES_MAX)?;
            decoder.i64()?;
            decoder.u32()
        })?;
        Ok(Self { verifier, owner, flags, protection })
    }
}

/// Puts the answer of a service, which is the same server for its clients on whichever box it runs (`so_major_id`).
pub fn put(out: &mut Encoder, answer: &Answer, service_name: &[u8]) {
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
