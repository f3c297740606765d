//! How a replication message looks on the wire.
//!
//! A frame is a header of [`HEADER_BYTES`], a body for the messages that need one, and a payload. All integers are
//! little-endian.
//!
//! | bytes | header field |
//! |---|---|
//! | 0..4 | magic `TDPF` |
//! | 4 | protocol version, as agreed by the handshake |
//! | 5 | message type |
//! | 6 | flag: `fua`, `suspect` or `granted`, 0 or 1; or `worth`, 0 to 2 |
//! | 7 | write kind or nack reason |
//! | 8..12 | length of the body, its checksum included |
//! | 12..16 | length of the payload |
//! | 16..40 | epoch, version, session |
//! | 40..64 | three fields of the message: mostly seq, first block, number of blocks |
//! | 64..68 | CRC-32 of the payload; 0 when the checksums of its blocks protect it |
//! | 68..72 | CRC-32 of the header before it |
//!
//! From version 2 on the checksums of the blocks travel in the body of every message with data, and are what the
//! receiver verifies: the data is summed once where it enters and never again for the sake of the wire.
//!
//! The header's own checksum comes first, so that a damaged length is never believed; a body ends with its own. A frame
//! has exactly one encoding: unused fields are zero and anything else is an error. Nothing here allocates more than
//! the bounds below, whatever the bytes say.

mod body;
mod error;
mod header;
mod rules;

use super::message::{Envelope, Message};
use super::version::ProtocolVersion;
use super::wire::{Cursor, u32_at, u64_at};
use crate::checksum::{BlockSums, Salt};
use crate::{BLOCK_BYTES, ConfigVersion, Epoch, SessionId};
use header::{Fields, types};

pub use body::BODY_BYTES_MAX;
pub use error::{DecodeError, Invalid};
pub use rules::carries_sums;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 72;
/// Longest payload of one frame: the largest write of a client with room for a batch's bookkeeping.
pub const PAYLOAD_BYTES_MAX: u64 = 33 * 1024 * 1024;
/// Most groups in one batch.
pub const GROUPS_MAX: usize = 1024;
/// Most ranges in one message; in a batch over all its groups. As many as there are blocks in the longest payload.
pub const RANGES_MAX: usize = (PAYLOAD_BYTES_MAX / BLOCK_BYTES) as usize;
/// Most extents in one announcement of heat: each block of the longest payload in one of its own.
pub const HEAT_EXTENTS_MAX: usize = RANGES_MAX;
/// Bytes of digest per block.
pub const DIGEST_BYTES: u64 = 16;
/// Bytes of checksum per block.
pub const SUM_BYTES: u64 = 4;

const MAGIC: [u8; 4] = *b"TDPF";
/// The version that brought block checksums, verified reads and the activity log's fields.
const VERSION_2: ProtocolVersion = ProtocolVersion(2);

/// Length and CRC-32 of a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayloadSum {
    /// Bytes.
    pub length: u64,
    /// CRC-32 (IEEE) of them; 0 for none, and where the blocks' checksums are what counts.
    pub crc: u32,
}

impl PayloadSum {
    /// The sum over `parts`, one after the other.
    pub fn of<P: AsRef<[u8]>>(parts: &[P]) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        let mut length = 0;
        for part in parts {
            hasher.update(part.as_ref());
            length += part.as_ref().len() as u64;
        }
        Self { length, crc: hasher.finalize() }
    }

    /// The sum for a message whose payload is protected by its blocks' checksums: the bytes are not read. Data that is
    /// known to be bad needs its CRC; [`PayloadSum::for_message`] knows the difference.
    pub fn length_only(length: u64) -> Self {
        Self { length, crc: 0 }
    }

    /// The sum that `encode` needs for this message with the payload `parts`; reads them only if it must.
    pub fn for_message<P: AsRef<[u8]>>(protocol: ProtocolVersion, message: &Message, parts: &[P]) -> Self {
        if rules::payload_has_crc(protocol, message) {
            return Self::of(parts);
        }
        Self::length_only(parts.iter().map(|part| part.as_ref().len() as u64).sum())
    }
}

/// A decoded frame up to its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Epoch, version, session.
    pub envelope: Envelope,
    /// The message.
    pub message: Message,
    /// What the payload must be; its length is at most [`PAYLOAD_BYTES_MAX`] and fits the message.
    pub payload: PayloadSum,
    /// Checksums of the payload's blocks in their order, if the message carries them ([`carries_sums`]); else empty.
    pub sums: BlockSums,
    /// Bytes of header and body; the payload begins after them.
    pub head_bytes: usize,
}

impl FrameHead {
    /// Checks the payload once it has arrived; `salt` is the volume's. With [`FrameHead::sums`] every block is verified
    /// against its own, except that of blocks known to be bad only the transport is.
    ///
    /// Errors: length or a checksum are not what the frame says.
    pub fn check_payload(&self, salt: Salt, payload: &[u8]) -> Result<(), DecodeError> {
        let found = payload.len() as u64;
        if found != self.payload.length {
            return Err(Invalid::PayloadLength { expected: self.payload.length, found }.into());
        }
        if self.sums.is_empty() || rules::is_unsound(&self.message) {
            return if crc32fast::hash(payload) == self.payload.crc {
                Ok(())
            } else {
                Err(DecodeError::PayloadChecksum)
            };
        }
        let blocks = rules::payload_blocks(&self.message).zip(payload.chunks(BLOCK_BYTES as usize));
        for ((block, data), sum) in blocks.zip(&self.sums) {
            if salt.sum(block, data) != *sum {
                return Err(DecodeError::BlockChecksum { block });
            }
        }
        Ok(())
    }
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Not enough of them: call again with at least `total` bytes from the same start.
    NeedMore {
        /// Bytes needed from the frame's start; at most [`HEADER_BYTES`] + [`BODY_BYTES_MAX`].
        total: usize,
    },
    /// Header and body are whole; the payload follows.
    Head(FrameHead),
}

/// Appends header and body of a frame to `out`. The caller sends the payload described by `payload` after them.
///
/// `sums` are the checksums of the payload's blocks in their order, for a message that [`carries_sums`]; version 1 has
/// no place for them, and they are left out. Other fields that version 1 lacks are left out as well.
///
/// Errors: the message is [`Invalid`], or the version cannot say it; `out` is then unchanged.
pub fn encode(
    protocol: ProtocolVersion,
    envelope: &Envelope,
    message: &Message,
    payload: PayloadSum,
    sums: &[u32],
    out: &mut Vec<u8>,
) -> Result<(), Invalid> {
    rules::check(protocol, message, payload.length)?;
    let sums = if protocol < VERSION_2 { &[] } else { sums };
    rules::check_sums(protocol, message, payload.length, sums.len())?;
    let payload_crc = if rules::payload_has_crc(protocol, message) { payload.crc } else { 0 };
    let fields = Fields::of(protocol, message);
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    body::encode(protocol, message, sums, out);
    let body_length = out.len() - start - HEADER_BYTES;
    let header = &mut out[start..start + HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = protocol.0 as u8;
    header[5] = fields.message_type;
    header[6] = fields.flag;
    header[7] = fields.kind;
    header[8..12].copy_from_slice(&(body_length as u32).to_le_bytes());
    header[12..16].copy_from_slice(&(payload.length as u32).to_le_bytes());
    header[16..24].copy_from_slice(&envelope.epoch.0.to_le_bytes());
    header[24..32].copy_from_slice(&envelope.version.0.to_le_bytes());
    header[32..40].copy_from_slice(&envelope.session.0.to_le_bytes());
    header[40..48].copy_from_slice(&fields.words[0].to_le_bytes());
    header[48..56].copy_from_slice(&fields.words[1].to_le_bytes());
    header[56..64].copy_from_slice(&fields.words[2].to_le_bytes());
    header[64..68].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32fast::hash(&header[..68]);
    header[68..72].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Reads header and body at the start of `bytes`, which may be cut anywhere.
pub fn decode(protocol: ProtocolVersion, bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        // Garbage is told at its first bytes: a peer that speaks something else may never send a whole header.
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            return Err(magic_error(bytes));
        }
        return Ok(Decoded::NeedMore { total: HEADER_BYTES });
    };
    if header[..4] != MAGIC {
        return Err(magic_error(header));
    }
    if crc32fast::hash(&header[..68]) != u32_at(header, 68) {
        return Err(DecodeError::HeaderChecksum);
    }
    if u16::from(header[4]) != protocol.0 {
        return Err(DecodeError::Version { found: header[4], agreed: protocol.0 });
    }
    let fields = Fields::read(header);
    let payload = PayloadSum { length: u64::from(u32_at(header, 12)), crc: u32_at(header, 64) };
    if payload.length > PAYLOAD_BYTES_MAX {
        return Err(Invalid::PayloadTooLong { bytes: payload.length }.into());
    }
    if !types::exist(protocol, fields.message_type) {
        return Err(DecodeError::UnknownType { found: fields.message_type });
    }
    let body_length = u32_at(header, 8);
    let bad_body = DecodeError::BodyLength { found: body_length, message_type: fields.message_type };
    if !body::length_possible(protocol, fields.message_type, payload.length, body_length as usize) {
        return Err(bad_body);
    }
    let head_bytes = HEADER_BYTES + body_length as usize;
    let Some(body) = bytes.get(HEADER_BYTES..head_bytes) else {
        return Ok(Decoded::NeedMore { total: head_bytes });
    };
    let mut cursor = Cursor::new(body::checked(body)?);
    let message = fields.message(protocol, &mut cursor)?.ok_or(bad_body)?;
    let blocks = if carries_sums(protocol, &message) { payload.length / BLOCK_BYTES } else { 0 };
    let sums = body::sums(blocks, &mut cursor).ok_or(bad_body)?;
    if !cursor.is_empty() {
        return Err(bad_body);
    }
    let stray_crc = payload.crc != 0 && (payload.length == 0 || !rules::payload_has_crc(protocol, &message));
    if Fields::of(protocol, &message) != fields || stray_crc {
        return Err(DecodeError::NotCanonical { message_type: fields.message_type });
    }
    rules::check(protocol, &message, payload.length)?;
    let envelope = Envelope {
        epoch: Epoch(u64_at(header, 16)),
        version: ConfigVersion(u64_at(header, 24)),
        session: SessionId(u64_at(header, 32)),
    };
    Ok(Decoded::Head(FrameHead { envelope, message, payload, sums, head_bytes }))
}

fn magic_error(bytes: &[u8]) -> DecodeError {
    let mut found = [0; 4];
    let known = bytes.len().min(4);
    found[..known].copy_from_slice(&bytes[..known]);
    DecodeError::Magic { found }
}
