//! What all blocks of the log share: the header, the checksums' seed and forms, and the escape of the magic.

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::units::TransactionId;

/// First word of every block of the log that is not a copy of a block of the filesystem.
pub const MAGIC: u32 = 0xc03b_3998;

/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 12;

/// Bytes of the checksum at the end of descriptor and revoke blocks.
pub const TAIL_BYTES: usize = 4;

/// ext4 on-disk format, "Journal", "Block Header".
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: U32,
    pub(crate) kind: U32,
    pub(crate) sequence: U32,
}

/// What a block of the log with a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Says where the blocks that follow it belong.
    Descriptor,
    /// Ends a transaction.
    Commit,
    /// The journal's superblock in its first form.
    SuperblockV1,
    /// The journal's superblock.
    SuperblockV2,
    /// Says which blocks are not to be replayed.
    Revoke,
}

impl BlockKind {
    fn of_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Descriptor,
            2 => Self::Commit,
            3 => Self::SuperblockV1,
            4 => Self::SuperblockV2,
            5 => Self::Revoke,
            _ => return None,
        })
    }

    fn number(self) -> u32 {
        match self {
            Self::Descriptor => 1,
            Self::Commit => 2,
            Self::SuperblockV1 => 3,
            Self::SuperblockV2 => 4,
            Self::Revoke => 5,
        }
    }
}

/// The header of a block of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// What the block is.
    pub kind: BlockKind,
    /// The transaction that it belongs to.
    pub sequence: TransactionId,
}

impl BlockHeader {
    /// The header of `block`; `None` when it has none: it is a copy of a block of the filesystem, or nothing at all.
    pub fn of(block: &[u8]) -> Option<Self> {
        let (raw, _) = RawHeader::ref_from_prefix(block).ok()?;
        if raw.magic.get() != MAGIC {
            return None;
        }
        Some(Self { kind: BlockKind::of_number(raw.kind.get())?, sequence: TransactionId(raw.sequence.get()) })
    }

    pub(crate) fn raw(self) -> RawHeader {
        RawHeader { magic: U32::new(MAGIC), kind: U32::new(self.kind.number()), sequence: U32::new(self.sequence.0) }
    }

    /// A block of `block_bytes` that has this header and is zero otherwise.
    pub(crate) fn start_block(self, block_bytes: usize) -> Vec<u8> {
        let mut block = vec![0; block_bytes];
        put(&mut block, 0, self.raw().as_bytes());
        block
    }
}

/// How a log protects itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Not at all.
    None,
    /// One CRC-32 in the commit block, over the descriptor blocks and copies of the transaction.
    V1,
    /// CRC32C in every block; 16 bits of it in the tags.
    V2,
    /// CRC32C in every block, whole in the tags.
    V3,
}

/// How the blocks of a log are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFormat {
    /// Bytes of a block, of the log and of the filesystem.
    pub block_bytes: u32,
    /// How it protects itself.
    pub checksums: Checksums,
    /// Block numbers have 64 bits, not 32.
    pub wide: bool,
    /// What checksums start from: that of the journal's UUID.
    pub seed: Seed,
}

impl LogFormat {
    /// True when every block of the log has a checksum of its own.
    pub fn sums_blocks(&self) -> bool {
        matches!(self.checksums, Checksums::V2 | Checksums::V3)
    }

    /// Bytes of a tag in a descriptor block, without the UUID that may follow. Version 2 of the checksums makes a tag two
    /// bytes longer although the checksum lies within it: so the kernel wrote it, and so it has to be read.
    pub fn tag_bytes(&self) -> usize {
        match (self.checksums, self.wide) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        }
    }

    /// The bytes of a descriptor or revoke block up to its checksum.
    pub(crate) fn payload_end(&self) -> usize {
        let tail = if self.sums_blocks() { TAIL_BYTES } else { 0 };
        (self.block_bytes as usize).saturating_sub(tail)
    }

    /// True when the checksum at the end of a descriptor or revoke block is right, or there is none.
    pub fn tail_is_right(&self, block: &[u8]) -> bool {
        if !self.sums_blocks() {
            return true;
        }
        let Some((body, stored)) = block.split_last_chunk::<TAIL_BYTES>() else { return false };
        Seed(self.seed.sum(body)).sum(&[0; TAIL_BYTES]) == u32::from_be_bytes(*stored)
    }

    /// Writes the checksum at the end of a descriptor or revoke block.
    pub(crate) fn set_tail(&self, block: &mut [u8]) {
        if !self.sums_blocks() {
            return;
        }
        let Some((body, stored)) = block.split_last_chunk_mut::<TAIL_BYTES>() else { return };
        *stored = Seed(self.seed.sum(body)).sum(&[0; TAIL_BYTES]).to_be_bytes();
    }

    /// The checksum of a copy as it is in the log (escaped); tags of version 2 have its lower 16 bits.
    pub fn copy_checksum(&self, sequence: TransactionId, copy: &[u8]) -> u32 {
        self.seed.then(&sequence.0.to_be_bytes()).sum(copy)
    }
}

/// True when a block starts with the magic, so that its copy in the log must be escaped.
pub fn needs_escape(block: &[u8]) -> bool {
    block.starts_with(&MAGIC.to_be_bytes())
}

/// Takes the magic away from the start of a copy that goes to the log.
pub fn escape(copy: &mut [u8]) {
    put(copy, 0, &[0; 4]);
}

/// Gives the magic back to an escaped copy from the log.
pub fn unescape(copy: &mut [u8]) {
    put(copy, 0, &MAGIC.to_be_bytes());
}

/// Writes `bytes` at `offset`, if they fit.
pub(crate) fn put(block: &mut [u8], offset: usize, bytes: &[u8]) {
    let end = offset.saturating_add(bytes.len());
    if let Some(place) = block.get_mut(offset..end) {
        place.copy_from_slice(bytes);
    }
}

const CRC32_BIG_ENDIAN: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 0x8000_0000 == 0 { sum << 1 } else { (sum << 1) ^ 0x04c1_1db7 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

/// The CRC-32 of version 1 (most significant bit first, started at `!0`, not inverted) goes on over `bytes`.
pub(crate) fn crc32_big_endian(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |sum, byte| (sum << 8) ^ CRC32_BIG_ENDIAN[usize::from((sum >> 24) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_and_other_blocks_have_none() {
        for kind in [
            BlockKind::Descriptor,
            BlockKind::Commit,
            BlockKind::SuperblockV1,
            BlockKind::SuperblockV2,
            BlockKind::Revoke,
        ] {
            let header = BlockHeader { kind, sequence: TransactionId(0xdead_beef) };
            assert_eq!(BlockHeader::of(&header.start_block(1024)), Some(header));
        }
        assert_eq!(BlockHeader::of(&[0; 1024]), None);
        assert_eq!(BlockHeader::of(&[0xc0, 0x3b, 0x39, 0x98]), None);
        let unknown = [0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 6, 0, 0, 0, 1];
        assert_eq!(BlockHeader::of(&unknown), None);
    }

    #[test]
    fn the_crc_of_version_1_is_that_of_mpeg_2() {
        // The catalogue's check value of CRC-32/MPEG-2, which has these parameters.
        assert_eq!(crc32_big_endian(!0, b"123456789"), 0x0376_e6e7);
    }

    #[test]
    fn a_tail_covers_every_byte() {
        let format =
            LogFormat { block_bytes: 1024, checksums: Checksums::V3, wide: true, seed: Seed::of_uuid(&[7; 16]) };
        let mut block = vec![3; 1024];
        format.set_tail(&mut block);
        assert!(format.tail_is_right(&block));
        for at in 0..1024 {
            block[at] ^= 1;
            assert!(!format.tail_is_right(&block));
            block[at] ^= 1;
        }
    }

    #[test]
    fn escaping_comes_back() {
        let mut block = vec![5; 64];
        unescape(&mut block);
        assert!(needs_escape(&block));
        escape(&mut block);
        assert!(!needs_escape(&block) && block[..5] == [0, 0, 0, 0, 5]);
    }
}
