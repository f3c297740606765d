//! The Raft log's superblock: whose log it is, and how much of it was promised. Two copies, written in turn.

use proto::{ClusterId, NodeId};

use super::log::LogIdentity;

/// Encoded size.
pub(super) const SUPERBLOCK_BYTES: usize = 76;
const MAGIC: [u8; 8] = *b"TNDMRAFT";
const VERSION: u32 = 1;

/// Little-endian on disk: magic, version, chain seed, sequence, cluster, node, term, vote, synced, checksum of all
/// these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) version: u32,
    /// Random per file; seeds the records' checksums.
    pub(super) chain_seed: u32,
    /// The higher of two is the newer.
    pub(super) sequence: u64,
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) term: u64,
    pub(super) vote: u64,
    /// The records up to this offset were flushed.
    pub(super) synced: u64,
}

impl Superblock {
    pub(super) fn new(identity: LogIdentity, chain_seed: u32) -> Self {
        let LogIdentity { cluster, node } = identity;
        Self { version: VERSION, chain_seed, sequence: 0, cluster, node, term: 0, vote: 0, synced: 0 }
    }

    /// False for a format of the future.
    pub(super) fn is_readable(&self) -> bool {
        self.version <= VERSION
    }

    pub(super) fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = Vec::with_capacity(SUPERBLOCK_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.chain_seed.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.0.to_le_bytes());
        for word in [self.node.0, self.term, self.vote, self.synced] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let mut out = [0; SUPERBLOCK_BYTES];
        out[..bytes.len()].copy_from_slice(&bytes);
        let sum = crc32fast::hash(&out[..SUPERBLOCK_BYTES - 4]);
        out[SUPERBLOCK_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// None for anything but an intact superblock.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let sum = u32::from_le_bytes(bytes.get(SUPERBLOCK_BYTES - 4..SUPERBLOCK_BYTES)?.try_into().ok()?);
        if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..SUPERBLOCK_BYTES - 4]) != sum {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
        Some(Self {
            version: half(8),
            chain_seed: half(12),
            sequence: word(16),
            cluster: ClusterId(u128::from_le_bytes(std::array::from_fn(|index| bytes[24 + index]))),
            node: NodeId(word(40)),
            term: word(48),
            vote: word(56),
            synced: word(64),
        })
    }
}
