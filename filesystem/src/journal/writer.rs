//! One transaction as blocks of the log.
//!
//! Revoke blocks first, then descriptor blocks, each followed by its copies, and the commit block apart: it may be sent
//! only when all others are on stable media. Content of the filesystem is not copied unless it must be escaped.

use std::collections::BTreeSet;

use crate::units::{BlockNumber, TransactionId};

use super::commit::{CommitBlock, CommitTime};
use super::descriptor::{self, Tag};
use super::format::{LogFormat, escape, needs_escape};
use super::revoke;
use super::ring::{LogIndex, LogSpace};

/// What a transaction has.
#[derive(Clone, Copy, Debug)]
pub struct NewTransaction<'a> {
    /// Its number: that after its predecessor's.
    pub sequence: TransactionId,
    /// When it is committed; never before its predecessor.
    pub time: CommitTime,
    /// The blocks it changes, each once: home and whole content.
    pub blocks: &'a [(BlockNumber, &'a [u8])],
    /// Blocks that stopped being metadata: older copies in the log are not to be replayed. None of `blocks` is among them:
    /// a block that is journaled again in the same transaction is no longer revoked.
    pub revokes: &'a [BlockNumber],
}

/// What is in a block of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogContent {
    /// Bytes made for the log.
    Made(Vec<u8>),
    /// The content of the transaction's block with this position, as it is.
    Block(usize),
}

impl LogContent {
    /// The bytes, of the transaction that this was made of.
    pub fn bytes<'a>(&'a self, transaction: &NewTransaction<'a>) -> &'a [u8] {
        match self {
            Self::Made(bytes) => bytes,
            Self::Block(position) => transaction.blocks[*position].1,
        }
    }
}

/// A block to be written to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogBlock {
    /// Where.
    pub at: LogIndex,
    /// What.
    pub content: LogContent,
}

/// A transaction ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenTransaction {
    /// All but the commit block, in the order of the log.
    pub blocks: Vec<LogBlock>,
    /// The commit block: sent after a flush of all others, and then flushed itself.
    pub commit: LogBlock,
}

/// How many blocks of the log a transaction of so many blocks and revoke records takes, its commit block among them.
pub fn log_blocks_needed(format: &LogFormat, block_count: usize, revoke_count: usize) -> usize {
    let descriptors = block_count.div_ceil(descriptor::tags_per_block(format));
    let revokes = revoke_count.div_ceil(revoke::records_per_block(format));
    revokes + descriptors + block_count + 1
}

/// Lays a transaction out from the log's head on and takes that space. `None`, and nothing taken, when too little is free.
///
/// `uuid` is the journal's. Panics when a content is not one block long, or a block is revoked and journaled at once: both
/// are the caller's mistakes.
pub fn write(
    format: &LogFormat,
    uuid: &[u8; 16],
    space: &mut LogSpace,
    transaction: &NewTransaction<'_>,
) -> Option<WrittenTransaction> {
    let revoked: BTreeSet<BlockNumber> = transaction.revokes.iter().copied().collect();
    for (home, content) in transaction.blocks {
        assert_eq!(content.len(), format.block_bytes as usize, "a block of the log is a block of the filesystem");
        assert!(!revoked.contains(home), "a block that is journaled again is not revoked");
    }
    let needed = log_blocks_needed(format, transaction.blocks.len(), transaction.revokes.len());
    let start = space.take(u32::try_from(needed).ok()?)?;
    let mut contents = Vec::with_capacity(needed);
    for blocks in transaction.revokes.chunks(revoke::records_per_block(format)) {
        contents.push(LogContent::Made(revoke::encode(format, transaction.sequence, blocks)));
    }
    let tags_per_block = descriptor::tags_per_block(format);
    for (chunk, blocks) in transaction.blocks.chunks(tags_per_block).enumerate() {
        put_chunk(format, uuid, transaction.sequence, chunk * tags_per_block, blocks, &mut contents);
    }
    let commit = CommitBlock { sequence: transaction.sequence, time: transaction.time }.encode(format);
    assert_eq!(contents.len() + 1, needed, "the space needed is known in advance");
    let place = |position: usize| space.ring().advance(start, position as u64);
    let commit = LogBlock { at: place(contents.len()), content: LogContent::Made(commit) };
    let blocks = contents.into_iter().enumerate().map(|(at, content)| LogBlock { at: place(at), content }).collect();
    Some(WrittenTransaction { blocks, commit })
}

/// A descriptor block and its copies. `first` is the position of the first of `blocks` in the transaction.
fn put_chunk(
    format: &LogFormat,
    uuid: &[u8; 16],
    sequence: TransactionId,
    first: usize,
    blocks: &[(BlockNumber, &[u8])],
    contents: &mut Vec<LogContent>,
) {
    let mut tags = Vec::with_capacity(blocks.len());
    let mut copies = Vec::with_capacity(blocks.len());
    for (position, &(home, content)) in blocks.iter().enumerate() {
        let escaped = needs_escape(content);
        let (copy, checksum) = if escaped {
            let mut copy = content.to_vec();
            escape(&mut copy);
            let checksum = format.copy_checksum(sequence, &copy);
            (LogContent::Made(copy), checksum)
        } else {
            (LogContent::Block(first + position), format.copy_checksum(sequence, content))
        };
        tags.push(Tag { home, escaped, checksum: if format.sums_blocks() { checksum } else { 0 } });
        copies.push(copy);
    }
    contents.push(LogContent::Made(descriptor::encode(format, sequence, uuid, &tags)));
    contents.append(&mut copies);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::format::{Checksums, MAGIC};
    use crate::journal::ring::LogRing;
    use crate::layout::checksum::Seed;

    const FORMAT: LogFormat = LogFormat { block_bytes: 1024, checksums: Checksums::V3, wide: true, seed: Seed::START };

    fn space() -> LogSpace {
        LogSpace::empty(LogRing::new(LogIndex(1), LogIndex(1024)).unwrap(), LogIndex(1000)).unwrap()
    }

    #[test]
    fn the_space_needed_is_exact_for_every_size() {
        let content = [1; 1024];
        for block_count in (0..200).step_by(3) {
            for revoke_count in [0, 1, 125, 126, 127, 252, 253] {
                let blocks: Vec<_> = (0..block_count).map(|at| (BlockNumber(at), &content[..])).collect();
                let revokes: Vec<_> = (0..revoke_count).map(|at| BlockNumber(1000 + at)).collect();
                let transaction = NewTransaction {
                    sequence: TransactionId(1),
                    time: CommitTime::default(),
                    blocks: &blocks,
                    revokes: &revokes,
                };
                let mut space = space();
                let written = write(&FORMAT, &[0; 16], &mut space, &transaction).unwrap();
                let needed = log_blocks_needed(&FORMAT, blocks.len(), revokes.len());
                assert_eq!(written.blocks.len() + 1, needed);
                assert_eq!(space.used_block_count() as usize, needed);
                let mut place = LogIndex(1000);
                for block in written.blocks.iter().chain([&written.commit]) {
                    assert_eq!(block.at, place);
                    place = space.ring().advance(place, 1);
                }
                assert_eq!(space.head(), place);
            }
        }
    }

    #[test]
    fn only_an_escaped_block_is_copied() {
        let plain = [1; 1024];
        let mut magic = [2; 1024];
        magic[..4].copy_from_slice(&MAGIC.to_be_bytes());
        let blocks = [(BlockNumber(5), &plain[..]), (BlockNumber(6), &magic[..])];
        let transaction =
            NewTransaction { sequence: TransactionId(1), time: CommitTime::default(), blocks: &blocks, revokes: &[] };
        let written = write(&FORMAT, &[0; 16], &mut space(), &transaction).unwrap();
        assert_eq!(written.blocks[1].content, LogContent::Block(0));
        assert_eq!(written.blocks[2].content.bytes(&transaction)[..5], [0, 0, 0, 0, 2]);
    }

    #[test]
    fn a_full_log_takes_nothing() {
        let mut space = space();
        space.take(1020).unwrap();
        let content = [1; 1024];
        let blocks = [(BlockNumber(5), &content[..])];
        let transaction =
            NewTransaction { sequence: TransactionId(1), time: CommitTime::default(), blocks: &blocks, revokes: &[] };
        let before = space;
        assert_eq!(write(&FORMAT, &[0; 16], &mut space, &transaction), None);
        assert_eq!(space, before);
    }
}
