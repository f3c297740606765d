//! The first frame of every connection and its answer.
//!
//! These two frames never change their layout: they are what boxes of different versions must understand. What a later
//! version needs beyond them travels after the answer, in the version that was agreed.
//!
//! | bytes | offer |   | bytes | answer |
//! |---|---|---|---|---|
//! | 0..4 | magic `TDHS` |   | 0..4 | magic `TDHR` |
//! | 4..6 | layout, 1 |   | 4..6 | layout, 1 |
//! | 6 | kind of connection |   | 6 | 1 accepted, 2 refused |
//! | 7 | 0 |   | 7 | 0 |
//! | 8..12 | protocol min, max |   | 8..10 | version agreed on, 0 if refused |
//! | 12..16 | 0 |   | 10..12 | length of the reason |
//! | 16..32 | cluster |   | 12..20 | incarnation of the answering worker |
//! | 32..40 | from node |   | 20..24 | CRC-32 of the reason |
//! | 40..48 | to node |   | 24..28 | CRC-32 of all before |
//! | 48..56 | incarnation |   | 28.. | reason, UTF-8 |
//! | 56..72 | volume |   | | |
//! | 72..76 | CRC-32 of all before |   | | |

use thiserror::Error;

use super::version::{ProtocolVersion, SUPPORTED, VersionRange};
use super::wire::{u16_at, u32_at, u64_at, u128_at};
use crate::{ClusterId, Incarnation, NodeId, VolumeId};

/// Bytes of an offer.
pub const OFFER_BYTES: usize = 76;
/// Bytes of an answer before its reason.
pub const ANSWER_BYTES: usize = 28;
/// Longest reason in an answer, in bytes; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 512;

const OFFER_MAGIC: [u8; 4] = *b"TDHS";
const ANSWER_MAGIC: [u8; 4] = *b"TDHR";
const LAYOUT: u16 = 1;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Replication frames of one volume, both ways.
    Replication {
        /// The volume.
        volume: VolumeId,
    },
    /// Raft messages, from the dialler only.
    Raft,
    /// Nothing follows: the offer itself says that the worker `incarnation` of node `from` was reaped.
    Goodbye,
}

/// What the dialler says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Purpose.
    pub kind: LinkKind,
    /// Versions the dialler speaks.
    pub versions: VersionRange,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub from: NodeId,
    /// The node it means to reach; [`NodeId::NONE`] for whoever listens, which only a goodbye may say.
    pub to: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
}

/// What the listener answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The connection stands.
    Accepted {
        /// The version both sides now speak.
        version: ProtocolVersion,
        /// The listener's run.
        incarnation: Incarnation,
    },
    /// The listener closes; the text says why.
    Refused {
        /// Why, for an operator.
        reason: String,
    },
}

/// Bytes that are no handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// It does not begin like one.
    #[error("no handshake of this protocol: it begins with {found:02x?}")]
    Magic {
        /// First bytes.
        found: [u8; 4],
    },
    /// Damaged.
    #[error("checksum of the handshake is wrong")]
    Checksum,
    /// A layout of a different protocol.
    #[error("handshake layout {found}, this node knows {LAYOUT}")]
    Layout {
        /// The layout.
        found: u16,
    },
    /// A purpose that this build does not know.
    #[error("unknown kind of connection {found}")]
    UnknownKind {
        /// The kind.
        found: u8,
    },
    /// A field that must be zero is not, or one has an impossible value.
    #[error("malformed handshake")]
    Malformed,
}

impl Offer {
    /// The offer on the wire.
    pub fn encode(&self) -> [u8; OFFER_BYTES] {
        let (kind, volume) = match self.kind {
            LinkKind::Replication { volume } => (1, volume),
            LinkKind::Raft => (2, VolumeId(0)),
            LinkKind::Goodbye => (3, VolumeId(0)),
        };
        let mut out = [0; OFFER_BYTES];
        out[0..4].copy_from_slice(&OFFER_MAGIC);
        out[4..6].copy_from_slice(&LAYOUT.to_le_bytes());
        out[6] = kind;
        out[8..10].copy_from_slice(&self.versions.min.0.to_le_bytes());
        out[10..12].copy_from_slice(&self.versions.max.0.to_le_bytes());
        out[16..32].copy_from_slice(&self.cluster.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.from.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.to.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.incarnation.0.to_le_bytes());
        out[56..72].copy_from_slice(&volume.0.to_le_bytes());
        let crc = crc32fast::hash(&out[..72]);
        out[72..76].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads an offer.
    pub fn decode(bytes: &[u8; OFFER_BYTES]) -> Result<Offer, HandshakeError> {
        check_start(bytes, OFFER_MAGIC, 72)?;
        let volume = VolumeId(u128_at(bytes, 56));
        let kind = match bytes[6] {
            1 => LinkKind::Replication { volume },
            2 => LinkKind::Raft,
            3 => LinkKind::Goodbye,
            found => return Err(HandshakeError::UnknownKind { found }),
        };
        let stray_volume = volume.0 != 0 && !matches!(kind, LinkKind::Replication { .. });
        if bytes[7] != 0 || u32_at(bytes, 12) != 0 || stray_volume {
            return Err(HandshakeError::Malformed);
        }
        let versions = VersionRange { min: ProtocolVersion(u16_at(bytes, 8)), max: ProtocolVersion(u16_at(bytes, 10)) };
        Ok(Offer {
            kind,
            versions,
            cluster: ClusterId(u128_at(bytes, 16)),
            from: NodeId(u64_at(bytes, 32)),
            to: NodeId(u64_at(bytes, 40)),
            incarnation: Incarnation(u64_at(bytes, 48)),
        })
    }

    /// Judges the offer as `node` of `cluster`. Errors: the reason of the refusal.
    pub fn judge(&self, cluster: ClusterId, node: NodeId) -> Result<ProtocolVersion, String> {
        if self.cluster != cluster {
            return Err(format!("wrong cluster: this node belongs to {cluster}, the dialler to {}", self.cluster));
        }
        let for_anyone = self.kind == LinkKind::Goodbye && self.to == NodeId::NONE;
        if self.to != node && !for_anyone {
            return Err(format!("wrong node: this is node {node}, the dialler meant node {}", self.to));
        }
        if self.from == NodeId::NONE || self.from == node {
            return Err(format!("wrong dialler: node {} cannot connect to node {node}", self.from));
        }
        SUPPORTED.agree(self.versions).ok_or_else(|| {
            format!(
                "no common protocol version: this node speaks {SUPPORTED}, the dialler speaks {}; upgrade the older one",
                self.versions
            )
        })
    }
}

impl Answer {
    /// The answer on the wire; a reason over [`REASON_BYTES_MAX`] is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (verdict, version, incarnation, reason) = match self {
            Answer::Accepted { version, incarnation } => (1, version.0, incarnation.0, ""),
            Answer::Refused { reason } => (2, 0, 0, cut(reason)),
        };
        let mut out = vec![0; ANSWER_BYTES];
        out[0..4].copy_from_slice(&ANSWER_MAGIC);
        out[4..6].copy_from_slice(&LAYOUT.to_le_bytes());
        out[6] = verdict;
        out[8..10].copy_from_slice(&version.to_le_bytes());
        out[10..12].copy_from_slice(&(reason.len() as u16).to_le_bytes());
        out[12..20].copy_from_slice(&incarnation.to_le_bytes());
        out[20..24].copy_from_slice(&crc32fast::hash(reason.as_bytes()).to_le_bytes());
        let crc = crc32fast::hash(&out[..24]);
        out[24..28].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(reason.as_bytes());
        out
    }

    /// Length of the reason that follows an answer's first [`ANSWER_BYTES`]; at most [`REASON_BYTES_MAX`].
    pub fn reason_bytes(head: &[u8; ANSWER_BYTES]) -> Result<usize, HandshakeError> {
        check_start(head, ANSWER_MAGIC, 24)?;
        let length = usize::from(u16_at(head, 10));
        if length > REASON_BYTES_MAX { Err(HandshakeError::Malformed) } else { Ok(length) }
    }

    /// Reads an answer: its head and its reason. Control characters of the reason are replaced, since it goes to a log.
    pub fn decode(head: &[u8; ANSWER_BYTES], reason: &[u8]) -> Result<Answer, HandshakeError> {
        if Self::reason_bytes(head)? != reason.len() {
            return Err(HandshakeError::Malformed);
        }
        if crc32fast::hash(reason) != u32_at(head, 20) {
            return Err(HandshakeError::Checksum);
        }
        let (version, incarnation) = (u16_at(head, 8), u64_at(head, 12));
        match head[6] {
            _ if head[7] != 0 => Err(HandshakeError::Malformed),
            1 if reason.is_empty() => {
                Ok(Answer::Accepted { version: ProtocolVersion(version), incarnation: Incarnation(incarnation) })
            }
            2 if version == 0 && incarnation == 0 => {
                let text = String::from_utf8_lossy(reason);
                let reason = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                Ok(Answer::Refused { reason })
            }
            _ => Err(HandshakeError::Malformed),
        }
    }
}

/// Magic, checksum and layout, which both frames begin or end with.
fn check_start(bytes: &[u8], magic: [u8; 4], checksum_at: usize) -> Result<(), HandshakeError> {
    let found = [bytes[0], bytes[1], bytes[2], bytes[3]];
    if found != magic {
        return Err(HandshakeError::Magic { found });
    }
    if crc32fast::hash(&bytes[..checksum_at]) != u32_at(bytes, checksum_at) {
        return Err(HandshakeError::Checksum);
    }
    match u16_at(bytes, 4) {
        LAYOUT => Ok(()),
        found => Err(HandshakeError::Layout { found }),
    }
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::test_random::Random;

    fn offer(kind: LinkKind) -> Offer {
        Offer {
            kind,
            versions: SUPPORTED,
            cluster: ClusterId(7 << 90),
            from: NodeId(1),
            to: NodeId(2),
            incarnation: Incarnation(u64::MAX),
        }
    }

    fn decode_answer(bytes: &[u8]) -> Result<Answer, HandshakeError> {
        let (head, reason) = bytes.split_first_chunk::<ANSWER_BYTES>().expect("long enough");
        Answer::decode(head, reason)
    }

    #[test]
    fn offers_and_answers_round_trip() {
        for kind in [LinkKind::Replication { volume: VolumeId(9 << 100) }, LinkKind::Raft, LinkKind::Goodbye] {
            assert_eq!(Offer::decode(&offer(kind).encode()), Ok(offer(kind)));
        }
        let accepted = Answer::Accepted { version: ProtocolVersion(3), incarnation: Incarnation(77) };
        assert_eq!(decode_answer(&accepted.encode()), Ok(accepted));
        let refused = Answer::Refused { reason: "wrong cluster: …".into() };
        assert_eq!(decode_answer(&refused.encode()), Ok(refused));
    }

    #[test]
    fn every_flipped_bit_of_an_offer_or_answer_is_an_error() {
        let clean = offer(LinkKind::Replication { volume: VolumeId(5) }).encode();
        for bit in 0..OFFER_BYTES * 8 {
            let mut bytes = clean;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Offer::decode(&bytes).is_err(), "bit {bit}");
        }
        let clean = Answer::Refused { reason: "no".into() }.encode();
        for bit in 0..clean.len() * 8 {
            let mut bytes = clean.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_answer(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn random_bytes_with_valid_checksums_never_panic() {
        let mut random = Random(11);
        for _ in 0..20_000 {
            let mut bytes = [0; OFFER_BYTES];
            bytes.copy_from_slice(&random.bytes(OFFER_BYTES));
            bytes[0..4].copy_from_slice(&OFFER_MAGIC);
            bytes[4..6].copy_from_slice(&LAYOUT.to_le_bytes());
            bytes[6] %= 5;
            let crc = crc32fast::hash(&bytes[..72]);
            bytes[72..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(offer) = Offer::decode(&bytes) {
                assert_eq!(offer.encode(), bytes);
                let _ = offer.judge(ClusterId(1), NodeId(1));
            }
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character_and_control_characters_do_not_pass() {
        let reason = "é".repeat(REASON_BYTES_MAX);
        match decode_answer(&Answer::Refused { reason }.encode()) {
            Ok(Answer::Refused { reason }) => assert_eq!(reason, "é".repeat(REASON_BYTES_MAX / 2)),
            other => panic!("{other:?}"),
        }
        match decode_answer(&Answer::Refused { reason: "a\nb\u{1b}[31m".into() }.encode()) {
            Ok(Answer::Refused { reason }) => assert_eq!(reason, "a b [31m"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn judge_names_what_is_wrong() {
        let good = offer(LinkKind::Raft);
        assert_eq!(good.judge(good.cluster, NodeId(2)), Ok(SUPPORTED.max));
        assert!(good.judge(ClusterId(1), NodeId(2)).unwrap_err().contains("wrong cluster"));
        assert!(good.judge(good.cluster, NodeId(3)).unwrap_err().contains("wrong node"));
        let own = Offer { from: NodeId(2), ..good };
        assert!(own.judge(good.cluster, NodeId(2)).unwrap_err().contains("wrong dialler"));
        let newer = VersionRange { min: ProtocolVersion(8), max: ProtocolVersion(9) };
        let reason = Offer { versions: newer, ..good }.judge(good.cluster, NodeId(2)).unwrap_err();
        assert!(reason.contains("8 to 9") && reason.contains(&SUPPORTED.to_string()), "{reason}");
    }

    #[test]
    fn only_a_goodbye_may_be_meant_for_anyone() {
        let anyone = Offer { to: NodeId::NONE, ..offer(LinkKind::Goodbye) };
        assert!(anyone.judge(anyone.cluster, NodeId(2)).is_ok());
        let anyone = Offer { kind: LinkKind::Raft, ..anyone };
        assert!(anyone.judge(anyone.cluster, NodeId(2)).is_err());
    }
}
