//! The journal's superblock: its first block (ext4 on-disk format, "Journal", "Super Block").

use std::mem::offset_of;

use thiserror::Error;
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};
use crate::units::TransactionId;

use super::format::{BlockHeader, BlockKind, Checksums, LogFormat, RawHeader};
use super::ring::{LogIndex, LogRing};

/// Bytes of the superblock at the start of its block.
pub const SUPERBLOCK_BYTES: usize = 1024;

const COMPAT_CHECKSUM: u32 = 1;

const INCOMPAT_REVOKE: u32 = 1;
const INCOMPAT_64BIT: u32 = 2;
const INCOMPAT_ASYNC_COMMIT: u32 = 4;
const INCOMPAT_CSUM_V2: u32 = 8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3f;
/// What a log that we write says of itself.
const INCOMPAT_WRITTEN: u32 = INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V3;

/// CRC32C.
const CHECKSUM_TYPE_CRC32C: u8 = 4;

/// How many blocks at the end are for fast commits where the superblock does not say.
const FAST_COMMIT_BLOCKS_DEFAULT: u32 = 256;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    header: RawHeader,
    block_bytes: U32,
    block_count: U32,
    first: U32,
    sequence: U32,
    start: U32,
    error: U32,
    // All from here on only in version 2.
    compat: U32,
    incompat: U32,
    ro_compat: U32,
    uuid: [u8; 16],
    users: U32,
    dynamic_superblock: U32,
    transaction_blocks_max: U32,
    transaction_data_max: U32,
    checksum_type: u8,
    padding: [u8; 3],
    fast_commit_blocks: U32,
    head: U32,
    reserved: [U32; 40],
    checksum: U32,
    user_ids: [u8; 768],
}

const _: () = assert!(size_of::<RawSuperblock>() == SUPERBLOCK_BYTES);

/// Why a journal is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is broken.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// It has something in use that is not understood here.
    #[error("the journal cannot be used: {0}")]
    Unsupported(&'static str),
}

/// The journal's superblock. Bytes without a meaning here are kept.
#[derive(Clone)]
pub struct JournalSuperblock {
    raw: RawSuperblock,
    version_1: bool,
    format: LogFormat,
    ring: LogRing,
}

impl JournalSuperblock {
    /// Reads the first block of a journal that has `block_count` blocks of `block_bytes` each.
    ///
    /// Errors: a structure that cannot be, a wrong checksum, features that are unknown. A journal with fast commits or
    /// asynchronous commits is taken only when it is clean: a fast commit has records of its own kind to replay, and an
    /// asynchronous commit block says nothing about whether what it commits reached the disk.
    pub fn decode(block: &[u8], block_bytes: u32, block_count: u32) -> Result<Self, Refusal> {
        let (raw, _) = RawSuperblock::read_from_prefix(block).map_err(|_| corrupt("it is too short"))?;
        let version_1 = match BlockHeader::of(block).map(|header| header.kind) {
            Some(BlockKind::SuperblockV1) => true,
            Some(BlockKind::SuperblockV2) => false,
            _ => return Err(corrupt("no magic, or not a superblock").into()),
        };
        let checksums = if version_1 { Checksums::None } else { checked_features(&raw)? };
        let wide = !version_1 && raw.incompat.get() & INCOMPAT_64BIT != 0;
        let seed = if version_1 { Seed::START } else { Seed::of_uuid(&raw.uuid) };
        let format = LogFormat { block_bytes, checksums, wide, seed };
        let ring = checked_ring(&raw, version_1, block_bytes, block_count)?;
        let start = LogIndex(raw.start.get());
        if start.0 != 0 && !ring.contains(start) {
            return Err(corrupt("the log starts outside the journal").into());
        }
        let superblock = Self { raw, version_1, format, ring };
        if !superblock.is_clean() && superblock.has(INCOMPAT_FAST_COMMIT) {
            return Err(Refusal::Unsupported("it was not unmounted cleanly and has fast commits"));
        }
        if !superblock.is_clean() && superblock.has(INCOMPAT_ASYNC_COMMIT) {
            return Err(Refusal::Unsupported("it was not unmounted cleanly and has asynchronous commits"));
        }
        Ok(superblock)
    }

    fn has(&self, incompat: u32) -> bool {
        !self.version_1 && self.raw.incompat.get() & incompat != 0
    }

    /// How the log is to be read.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// The blocks that the log goes round in. Those for fast commits do not belong to it.
    pub fn ring(&self) -> LogRing {
        self.ring
    }

    /// True when there is nothing to replay.
    pub fn is_clean(&self) -> bool {
        self.raw.start.get() == 0
    }

    /// Where the log starts; `None` when it is clean.
    pub fn start(&self) -> Option<LogIndex> {
        (!self.is_clean()).then_some(LogIndex(self.raw.start.get()))
    }

    /// The first transaction expected in the log.
    pub fn sequence(&self) -> TransactionId {
        TransactionId(self.raw.sequence.get())
    }

    /// The error number that an aborted journal left, as a positive `errno`; 0 when there was none. The filesystem has to
    /// be checked after its replay.
    pub fn error_number(&self) -> u32 {
        let error = self.raw.error.get();
        if error > i32::MAX as u32 { error.wrapping_neg() } else { error }
    }

    /// The journal's UUID, which its checksums start from; zero in version 1.
    pub fn uuid(&self) -> [u8; 16] {
        if self.version_1 { [0; 16] } else { self.raw.uuid }
    }

    /// Says that the log is empty and that `next` is the sequence number of the next transaction. To be written only when
    /// all that was in the log is on stable media at its home.
    pub fn set_empty(&mut self, next: TransactionId) {
        self.raw.start = U32::ZERO;
        self.raw.sequence = U32::new(next.0);
    }

    /// Says that the log starts at `start` with the transaction `sequence`.
    ///
    /// Panics when `start` is not in the ring: that is the caller's mistake.
    pub fn set_start(&mut self, start: LogIndex, sequence: TransactionId) {
        assert!(self.ring.contains(start), "the log would start outside the journal");
        self.raw.start = U32::new(start.0);
        self.raw.sequence = U32::new(sequence.0);
    }

    /// Leaves the mark of an aborted journal: a positive `errno`, which the kernel and e2fsck take over into the filesystem's
    /// state.
    pub fn set_error_number(&mut self, errno: u32) {
        self.raw.error = U32::new(errno.wrapping_neg());
    }

    /// Takes away the mark of an aborted journal.
    pub fn clear_error(&mut self) {
        self.raw.error = U32::ZERO;
    }

    /// True when the log has the form that we write.
    pub fn has_written_form(&self) -> bool {
        !self.version_1
            && self.raw.incompat.get() == INCOMPAT_WRITTEN
            && self.raw.compat.get() == 0
            && self.raw.checksum_type == CHECKSUM_TYPE_CRC32C
    }

    /// Makes the form of an empty log the one that we write. Blocks for fast commits become part of the log.
    ///
    /// Panics when the log is not empty: its blocks have the old form.
    pub fn set_written_form(&mut self) {
        assert!(self.is_clean(), "a log with transactions keeps its form");
        if self.version_1 {
            let known = offset_of!(RawSuperblock, compat);
            let mut raw = RawSuperblock::new_zeroed();
            for (to, from) in raw.as_mut_bytes().iter_mut().zip(self.raw.as_bytes().iter().take(known)) {
                *to = *from;
            }
            raw.users = U32::new(1);
            raw.header = BlockHeader { kind: BlockKind::SuperblockV2, sequence: TransactionId(0) }.raw();
            self.raw = raw;
            self.version_1 = false;
        }
        self.raw.compat = U32::ZERO;
        self.raw.incompat = U32::new(INCOMPAT_WRITTEN);
        self.raw.checksum_type = CHECKSUM_TYPE_CRC32C;
        self.raw.fast_commit_blocks = U32::ZERO;
        let seed = Seed::of_uuid(&self.raw.uuid);
        self.format = LogFormat { checksums: Checksums::V3, wide: true, seed, ..self.format };
        self.ring = LogRing::new(self.ring.first(), LogIndex(self.raw.block_count.get())).unwrap_or(self.ring);
    }

    /// The bytes at the start of the journal's first block, with their checksum if the log has them. Also to be written
    /// without the rest of the block.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut raw = self.raw;
        if self.format.sums_blocks() {
            raw.checksum = U32::new(checksum(&raw));
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

impl std::fmt::Debug for JournalSuperblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalSuperblock")
            .field("format", &self.format)
            .field("ring", &self.ring)
            .field("start", &self.start())
            .field("sequence", &self.sequence())
            .finish_non_exhaustive()
    }
}

fn corrupt(what: &'static str) -> Corrupt {
    Corrupt::new(Structure::JournalSuperblock, 0, what)
}

fn checksum(raw: &RawSuperblock) -> u32 {
    let mut copy = *raw;
    copy.checksum = U32::ZERO;
    Seed::START.sum(copy.as_bytes())
}

fn checked_features(raw: &RawSuperblock) -> Result<Checksums, Refusal> {
    let incompat = raw.incompat.get();
    if incompat & !INCOMPAT_KNOWN != 0 || raw.ro_compat.get() != 0 {
        return Err(Refusal::Unsupported("it has unknown features"));
    }
    let v1 = raw.compat.get() & COMPAT_CHECKSUM != 0;
    let checksums = match (v1, incompat & INCOMPAT_CSUM_V2 != 0, incompat & INCOMPAT_CSUM_V3 != 0) {
        (false, false, false) => Checksums::None,
        (true, false, false) => Checksums::V1,
        (false, true, false) => Checksums::V2,
        (false, false, true) => Checksums::V3,
        _ => return Err(corrupt("checksums of several versions at once").into()),
    };
    if matches!(checksums, Checksums::V2 | Checksums::V3) {
        if raw.checksum_type != CHECKSUM_TYPE_CRC32C {
            return Err(Refusal::Unsupported("it has checksums of an unknown type"));
        }
        if raw.checksum.get() != checksum(raw) {
            return Err(corrupt("its checksum is wrong").into());
        }
    }
    Ok(checksums)
}

fn checked_ring(raw: &RawSuperblock, version_1: bool, block_bytes: u32, block_count: u32) -> Result<LogRing, Corrupt> {
    if raw.block_bytes.get() != block_bytes || block_bytes < SUPERBLOCK_BYTES as u32 {
        return Err(corrupt("its blocks have another size than the filesystem's"));
    }
    if raw.block_count.get() > block_count {
        return Err(corrupt("it is longer than its file"));
    }
    if raw.first.get() == 0 {
        return Err(corrupt("the log would overwrite it"));
    }
    let mut end = raw.block_count.get();
    if !version_1 && raw.incompat.get() & INCOMPAT_FAST_COMMIT != 0 {
        let fast = match raw.fast_commit_blocks.get() {
            0 => FAST_COMMIT_BLOCKS_DEFAULT,
            count => count,
        };
        end = end.checked_sub(fast).ok_or(corrupt("more blocks for fast commits than it has"))?;
    }
    LogRing::new(LogIndex(raw.first.get()), LogIndex(end)).ok_or(corrupt("no room for a log"))
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
