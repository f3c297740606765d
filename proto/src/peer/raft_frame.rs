//! Frames of a Raft connection: opaque Raft messages, and the leader's report of whom it hears.
//!
//! A frame is a header of [`RAFT_HEADER_BYTES`] and its content: magic `TDRF`, type, two zero bytes and the protocol
//! version between them (4..8), content length (8..12), CRC-32 of the content (12..16), CRC-32 of the header before it
//! (16..20). Integers are little-endian.

use thiserror::Error;

use super::version::ProtocolVersion;
use super::wire::{Cursor, u32_at};
use crate::NodeId;

/// Bytes of a Raft frame's header.
pub const RAFT_HEADER_BYTES: usize = 20;
/// Longest content of a Raft frame: a snapshot of the cluster's state with room to spare.
pub const RAFT_MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most nodes in one liveness report.
pub const LIVENESS_NODES_MAX: usize = 1024;

const MAGIC: [u8; 4] = *b"TDRF";
const LIVENESS_ENTRY_BYTES: usize = 9;

/// What a Raft frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaftFrameKind {
    /// A Raft message; its meaning is the Raft driver's.
    Message,
    /// A liveness report.
    Liveness,
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftFrameHead {
    /// What follows.
    pub kind: RaftFrameKind,
    /// Bytes of content; at most [`RAFT_MESSAGE_BYTES_MAX`].
    pub length: usize,
    /// CRC-32 of the content.
    pub crc: u32,
}

/// Bytes that are no Raft frame, or content that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RaftFrameError {
    /// It does not begin like one.
    #[error("no Raft frame: it begins with {found:02x?}")]
    Magic {
        /// First bytes.
        found: [u8; 4],
    },
    /// The header or the content is damaged.
    #[error("checksum of the Raft frame is wrong")]
    Checksum,
    /// A version other than the agreed one, or an unknown type.
    #[error("malformed Raft frame")]
    Malformed,
    /// Content over [`RAFT_MESSAGE_BYTES_MAX`].
    #[error("Raft message of {bytes} bytes is over the bound of {RAFT_MESSAGE_BYTES_MAX}")]
    TooLong {
        /// Bytes.
        bytes: usize,
    },
}

/// The header for `content`. Errors: it is too long.
pub fn encode_head(
    protocol: ProtocolVersion,
    kind: RaftFrameKind,
    content: &[u8],
) -> Result<[u8; RAFT_HEADER_BYTES], RaftFrameError> {
    if content.len() > RAFT_MESSAGE_BYTES_MAX {
        return Err(RaftFrameError::TooLong { bytes: content.len() });
    }
    let mut out = [0; RAFT_HEADER_BYTES];
    out[0..4].copy_from_slice(&MAGIC);
    out[4] = match kind {
        RaftFrameKind::Message => 1,
        RaftFrameKind::Liveness => 2,
    };
    out[5] = protocol.0 as u8;
    out[8..12].copy_from_slice(&(content.len() as u32).to_le_bytes());
    out[12..16].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
    let crc = crc32fast::hash(&out[..16]);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Reads a header.
pub fn decode_head(
    protocol: ProtocolVersion,
    bytes: &[u8; RAFT_HEADER_BYTES],
) -> Result<RaftFrameHead, RaftFrameError> {
    let found = [bytes[0], bytes[1], bytes[2], bytes[3]];
    if found != MAGIC {
        return Err(RaftFrameError::Magic { found });
    }
    if crc32fast::hash(&bytes[..16]) != u32_at(bytes, 16) {
        return Err(RaftFrameError::Checksum);
    }
    if u16::from(bytes[5]) != protocol.0 || bytes[6] != 0 || bytes[7] != 0 {
        return Err(RaftFrameError::Malformed);
    }
    let kind = match bytes[4] {
        1 => RaftFrameKind::Message,
        2 => RaftFrameKind::Liveness,
        _ => return Err(RaftFrameError::Malformed),
    };
    let length = u32_at(bytes, 8) as usize;
    if length > RAFT_MESSAGE_BYTES_MAX {
        return Err(RaftFrameError::TooLong { bytes: length });
    }
    Ok(RaftFrameHead { kind, length, crc: u32_at(bytes, 12) })
}

impl RaftFrameHead {
    /// Checks the content once it has arrived.
    pub fn check(&self, content: &[u8]) -> Result<(), RaftFrameError> {
        let whole = content.len() == self.length && crc32fast::hash(content) == self.crc;
        if whole { Ok(()) } else { Err(RaftFrameError::Checksum) }
    }
}

/// The content of a liveness report: of each node, whether the leader hears it. Only the first [`LIVENESS_NODES_MAX`]
/// nodes are told.
pub fn encode_liveness(heard: &[(NodeId, bool)]) -> Vec<u8> {
    let heard = &heard[..heard.len().min(LIVENESS_NODES_MAX)];
    let mut out = Vec::with_capacity(heard.len() * LIVENESS_ENTRY_BYTES);
    for (node, is_heard) in heard {
        out.extend_from_slice(&node.0.to_le_bytes());
        out.push(u8::from(*is_heard));
    }
    out
}

/// Reads the content of a liveness report.
pub fn decode_liveness(content: &[u8]) -> Result<Vec<(NodeId, bool)>, RaftFrameError> {
    let count = content.len() / LIVENESS_ENTRY_BYTES;
    if !content.len().is_multiple_of(LIVENESS_ENTRY_BYTES) || count > LIVENESS_NODES_MAX {
        return Err(RaftFrameError::Malformed);
    }
    let mut cursor = Cursor::new(content);
    let mut heard = Vec::with_capacity(count);
    while let (Some(node), Some(flag)) = (cursor.u64(), cursor.u8()) {
        if flag > 1 {
            return Err(RaftFrameError::Malformed);
        }
        heard.push((NodeId(node), flag == 1));
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::test_random::Random;

    const V1: ProtocolVersion = ProtocolVersion(1);

    #[test]
    fn frames_and_reports_round_trip() {
        let head = encode_head(V1, RaftFrameKind::Message, b"abc").unwrap();
        let head = decode_head(V1, &head).unwrap();
        assert_eq!((head.kind, head.length), (RaftFrameKind::Message, 3));
        assert_eq!(head.check(b"abc"), Ok(()));
        assert_eq!(head.check(b"abd"), Err(RaftFrameError::Checksum));
        let heard = vec![(NodeId(1), true), (NodeId(u64::MAX), false)];
        assert_eq!(decode_liveness(&encode_liveness(&heard)), Ok(heard));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_an_error() {
        let clean = encode_head(V1, RaftFrameKind::Liveness, b"").unwrap();
        for bit in 0..RAFT_HEADER_BYTES * 8 {
            let mut bytes = clean;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_head(V1, &bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_length_over_the_bound_is_an_error_even_with_a_good_checksum() {
        let mut bytes = encode_head(V1, RaftFrameKind::Message, b"").unwrap();
        bytes[8..12].copy_from_slice(&(RAFT_MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes());
        let crc = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(decode_head(V1, &bytes), Err(RaftFrameError::TooLong { .. })));
    }

    #[test]
    fn random_reports_never_panic_and_are_bounded() {
        let mut random = Random(3);
        for _ in 0..20_000 {
            let length = random.below(64) as usize;
            let content = random.bytes(length);
            if let Ok(heard) = decode_liveness(&content) {
                assert_eq!(encode_liveness(&heard), content);
            }
        }
        let long = vec![0; LIVENESS_ENTRY_BYTES * (LIVENESS_NODES_MAX + 1)];
        assert_eq!(decode_liveness(&long), Err(RaftFrameError::Malformed));
    }
}
