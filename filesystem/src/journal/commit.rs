//! Commit blocks (ext4 on-disk format, "Journal", "Commit Block").

use std::mem::offset_of;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::units::TransactionId;

use super::format::{BlockHeader, BlockKind, Checksums, LogFormat, RawHeader, put};

/// What version 1 says its checksum is.
const CHECKSUM_TYPE_CRC32: u8 = 1;
const CHECKSUM_BYTES_CRC32: u8 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCommit {
    header: RawHeader,
    checksum_type: u8,
    checksum_bytes: u8,
    padding: [u8; 2],
    checksum: [U32; 8],
    seconds: U64,
    nanoseconds: U32,
}

const COMMIT_BYTES: usize = size_of::<RawCommit>();

/// When a transaction was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommitTime {
    /// Seconds since 1970. Recovery takes a commit block that is older than its predecessor for a leftover, so this never
    /// goes back within one journal, whichever box writes it.
    pub seconds: u64,
    /// Below 10^9.
    pub nanoseconds: u32,
}

/// What a commit block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitBlock {
    /// The transaction.
    pub sequence: TransactionId,
    /// When it was committed.
    pub time: CommitTime,
}

impl CommitBlock {
    /// Reads a commit block, without a look at its checksum; `None` when it is none.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let header = BlockHeader::of(block).filter(|header| header.kind == BlockKind::Commit)?;
        let (raw, _) = RawCommit::ref_from_prefix(block).ok()?;
        let time = CommitTime { seconds: raw.seconds.get(), nanoseconds: raw.nanoseconds.get() };
        Some(Self { sequence: header.sequence, time })
    }

    /// A commit block, with its checksum if blocks have one.
    pub fn encode(&self, format: &LogFormat) -> Vec<u8> {
        let mut block = vec![0; format.block_bytes as usize];
        let raw = RawCommit {
            header: BlockHeader { kind: BlockKind::Commit, sequence: self.sequence }.raw(),
            checksum_type: 0,
            checksum_bytes: 0,
            padding: [0; 2],
            checksum: [U32::ZERO; 8],
            seconds: U64::new(self.time.seconds),
            nanoseconds: U32::new(self.time.nanoseconds),
        };
        put(&mut block, 0, raw.as_bytes());
        if format.sums_blocks() {
            let sum = format.seed.sum(&block);
            put(&mut block, offset_of!(RawCommit, checksum), &sum.to_be_bytes());
        }
        block
    }
}

/// True when a commit block's checksum is right, or it has none. `crc32` is that of version 1: over the transaction's
/// descriptor blocks and copies.
///
/// A block whose checksum would be right if all past its first 60 bytes were zero is right, too: its first sector was
/// written and the rest not. What it commits had been flushed before it was sent. (So does the kernel since 6.8.)
pub fn is_right(format: &LogFormat, block: &[u8], crc32: u32) -> bool {
    let Ok((raw, rest)) = RawCommit::ref_from_prefix(block) else { return false };
    let [stored, ..] = raw.checksum;
    match format.checksums {
        Checksums::None => true,
        Checksums::V1 => {
            let unused = raw.checksum_type == 0 && raw.checksum_bytes == 0 && stored.get() == 0;
            let known = raw.checksum_type == CHECKSUM_TYPE_CRC32 && raw.checksum_bytes == CHECKSUM_BYTES_CRC32;
            unused || (known && stored.get() == crc32)
        }
        Checksums::V2 | Checksums::V3 => {
            let start = offset_of!(RawCommit, checksum);
            let before = block.get(..start).unwrap_or_default();
            let after = block.get(start + 4..COMMIT_BYTES).unwrap_or_default();
            let of_header = Seed(format.seed.sum(before)).then(&[0; 4]).then(after);
            stored.get() == of_header.sum(rest) || stored.get() == of_header.sum(&vec![0; rest.len()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(checksums: Checksums) -> LogFormat {
        LogFormat { block_bytes: 1024, checksums, wide: true, seed: Seed::of_uuid(&[4; 16]) }
    }

    const COMMIT: CommitBlock = CommitBlock {
        sequence: TransactionId(0x0102_0304),
        time: CommitTime { seconds: 0x0000_0001_0000_0002, nanoseconds: 999_999_999 },
    };

    #[test]
    fn it_comes_back_and_lies_where_documented() {
        for checksums in [Checksums::None, Checksums::V1, Checksums::V2, Checksums::V3] {
            let block = COMMIT.encode(&format(checksums));
            assert_eq!(CommitBlock::decode(&block), Some(COMMIT));
            assert!(is_right(&format(checksums), &block, 77));
            assert_eq!(block[0x30..0x3c], [0, 0, 0, 1, 0, 0, 0, 2, 0x3b, 0x9a, 0xc9, 0xff]);
        }
        assert_eq!(CommitBlock::decode(&[0; 1024]), None);
        assert_eq!(CommitBlock::decode(&COMMIT.encode(&format(Checksums::V3))[..50]), None);
    }

    #[test]
    fn a_change_of_its_header_is_seen_and_a_tear_behind_it_forgiven() {
        let format = format(Checksums::V3);
        let block = COMMIT.encode(&format);
        for at in 0..COMMIT_BYTES {
            let mut changed = block.clone();
            changed[at] ^= 0x10;
            assert!(!is_right(&format, &changed, 0), "byte {at}");
        }
        let mut torn = block.clone();
        torn[512..].fill(0xa5);
        assert!(is_right(&format, &torn, 0));
    }

    #[test]
    fn version_1_checks_the_whole_transaction_unless_it_says_that_it_does_not() {
        let format = format(Checksums::V1);
        let mut block = COMMIT.encode(&format);
        block[12..20].copy_from_slice(&[1, 4, 0, 0, 0, 0, 0, 77]);
        assert!(is_right(&format, &block, 77));
        assert!(!is_right(&format, &block, 78));
        block[12] = 2;
        assert!(!is_right(&format, &block, 77));
    }
}
