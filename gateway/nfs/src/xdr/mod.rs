//! XDR (RFC 4506): big-endian words, opaque bytes padded to four. Pure; every length is bounded by whoever asks.

mod decode;
mod encode;

pub use decode::{Decoder, XdrError};
pub use encode::{Encoder, Mark};

/// Bytes up to which opaque data is padded (RFC 4506 §4.9).
const UNIT: usize = 4;

/// Bytes of padding behind so many bytes.
const fn padding(length: usize) -> usize {
    (UNIT - length % UNIT) % UNIT
}
