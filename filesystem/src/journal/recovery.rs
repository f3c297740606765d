//! Recovery: which copies in the log are to be written to their homes.
//!
//! A machine that asks for runs of log blocks and is fed with them, so that whoever reads the device decides how. It goes
//! over the log twice. The *scan* follows the transactions from the superblock's start and keeps, for each home, its last
//! committed copy, and where the committed revoke blocks are. The *revoke pass* reads only those blocks and drops copies.
//! What is left is the [`Outcome`]: each home once. Reading those copies, checking them with [`Outcome::restore`], writing
//! them home, flushing, and only then writing [`Outcome::superblock`], is done elsewhere. Memory is bounded by the number of
//! blocks of the log, not by their content.
//!
//! # Where the log ends (behaviour of Linux 6.18, fs/jbd2/recovery.c, where not said otherwise)
//!
//! - At the first block without the magic, or with another sequence number than expected: [`LogEnd::Ordinary`]. Blocks of
//!   the transaction found before it were never committed.
//! - At a commit block with a wrong checksum that is older than the commit before it: a leftover ([`LogEnd::Stale`]).
//! - At a commit block with a wrong checksum that is not older: if a block of the next transaction follows, it had been
//!   committed and is corrupt now: an error. Otherwise [`LogEnd::DamagedCommit`]: nobody can know whether the transaction
//!   was acknowledged. Everything before it is replayed, as e2fsck does (which then marks the filesystem to be checked; the
//!   kernel refuses to mount); the caller decides. A commit block of which only the first sector was written is no such
//!   case: it counts as whole, see [`commit::is_right`].
//! - A descriptor or revoke block with a wrong checksum is judged when its commit block is found. If that is older than the
//!   commit before it, or has no right checksum either, both are leftovers ([`LogEnd::Stale`]; the kernel looks at the time
//!   only). Otherwise the transaction is corrupt: log blocks are flushed before a commit block is sent.
//!
//! A copy whose checksum is not the one in its tag is corruption in every transaction, the last one included, since its
//! commit block is there: neither the kernel nor e2fsck takes it for an end of the log. Only copies that are to be written
//! are looked at, so damage in one that a later copy or a revoke record replaces goes unseen.
//!
//! The next transaction's number is one more than the first that was not found committed: blocks of that one may be in the
//! log already, and must never be taken for those of a new transaction.

use std::collections::BTreeMap;

use crate::layout::{Corrupt, Structure};
use crate::units::{BlockNumber, TransactionId};

use super::commit::{self, CommitBlock, CommitTime};
use super::descriptor::{self, Tag};
use super::format::{BlockHeader, BlockKind, Checksums, LogFormat, crc32_big_endian, unescape};
use super::map::JournalMap;
use super::revoke;
use super::ring::{LogIndex, LogRing};
use super::superblock::JournalSuperblock;

/// Most log blocks that one step asks for.
pub const READ_BLOCKS_MAX: u32 = 256;

/// What recovery needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// These blocks of the log: `count` from `at` on, to be given to [`Recovery::feed`].
    Read {
        /// The first.
        at: LogIndex,
        /// How many, at most [`READ_BLOCKS_MAX`].
        count: u32,
    },
    /// Nothing: [`Recovery::finish`] has the outcome.
    Done,
}

/// How the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// There was nothing to replay.
    Clean,
    /// After the last committed transaction.
    Ordinary,
    /// Before leftovers of an older use of the same blocks.
    Stale,
    /// Before a transaction whose commit block is damaged, and after which there is none. It may have been acknowledged.
    DamagedCommit(TransactionId),
}

/// A copy in the log that is to be written home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Where the copy is.
    pub at: LogIndex,
    /// Where it belongs.
    pub home: BlockNumber,
    sequence: TransactionId,
    tag: Tag,
}

/// What recovery found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The copies to write, in the order of the log, each home once.
    pub replays: Vec<Replay>,
    /// How the log ended.
    pub end: LogEnd,
    /// The number of the next transaction.
    pub next_sequence: TransactionId,
    /// The newest of the replayed transactions' commit times.
    pub last_commit: Option<CommitTime>,
    /// How many committed transactions there were.
    pub transaction_count: u32,
    /// How many copies they had.
    pub copy_count: u64,
    /// How many revoke records they had.
    pub revoke_count: u64,
    /// The superblock of the empty log, to be written when the homes are on stable media.
    pub superblock: JournalSuperblock,
    format: LogFormat,
}

impl Outcome {
    /// Makes of a copy as it is in the log the block that belongs home. Errors: its checksum is wrong.
    pub fn restore(&self, replay: &Replay, copy: &mut [u8]) -> Result<(), Corrupt> {
        if !descriptor::copy_is_right(&self.format, replay.sequence, &replay.tag, copy) {
            return Err(corrupt(replay.at, "a copy has a wrong checksum"));
        }
        if replay.tag.escaped {
            unescape(copy);
        }
        Ok(())
    }
}

/// A recovery under way.
#[derive(Debug)]
pub struct Recovery {
    superblock: JournalSuperblock,
    map: JournalMap,
    device_block_count: u64,
    format: LogFormat,
    ring: LogRing,
    phase: Phase,
    homes: BTreeMap<BlockNumber, Replay>,
    revoke_blocks: Vec<(LogIndex, TransactionId)>,
    end: LogEnd,
    next_sequence: TransactionId,
    last_commit: Option<CommitTime>,
    transaction_count: u32,
    copy_count: u64,
    revoke_count: u64,
}

#[derive(Debug)]
enum Phase {
    Scan(Scan),
    /// The next of the revoke blocks.
    Revoke(usize),
    Done,
}

/// The transaction that the scan is in.
#[derive(Debug)]
struct Scan {
    at: LogIndex,
    sequence: TransactionId,
    scanned_block_count: u64,
    copies: Vec<Replay>,
    revoke_blocks: Vec<LogIndex>,
    /// A descriptor or revoke block has a wrong checksum.
    suspect: bool,
    /// The commit block has a wrong checksum; what follows it decides.
    commit_damaged: bool,
    /// Copies still to be summed, and the sum so far: for checksums of version 1 only.
    unsummed_copies: u32,
    crc32: u32,
}

impl Recovery {
    /// The recovery of the journal that `superblock` describes and that lies where `map` says, on a device of
    /// `device_block_count` blocks of the filesystem.
    pub fn new(superblock: JournalSuperblock, map: JournalMap, device_block_count: u64) -> Self {
        let sequence = superblock.sequence();
        let phase = match superblock.start() {
            Some(at) => Phase::Scan(Scan::new(at, sequence)),
            None => Phase::Done,
        };
        Self {
            format: superblock.format(),
            ring: superblock.ring(),
            superblock,
            map,
            device_block_count,
            phase,
            homes: BTreeMap::new(),
            revoke_blocks: Vec::new(),
            end: LogEnd::Clean,
            next_sequence: sequence.next(),
            last_commit: None,
            transaction_count: 0,
            copy_count: 0,
            revoke_count: 0,
        }
    }

    /// What is needed next. The same until [`feed`](Self::feed) is called.
    pub fn step(&self) -> Step {
        match &self.phase {
            Phase::Scan(scan) => Step::Read { at: scan.at, count: self.read_ahead(scan.at) },
            Phase::Revoke(next) => self.step_revoke(*next),
            Phase::Done => Step::Done,
        }
    }

    fn read_ahead(&self, at: LogIndex) -> u32 {
        (self.ring.end().0 - at.0).min(READ_BLOCKS_MAX)
    }

    fn step_revoke(&self, next: usize) -> Step {
        let rest = self.revoke_blocks.get(next..).unwrap_or_default();
        let Some(&(at, _)) = rest.first() else { return Step::Done };
        let end = at.0 + self.read_ahead(at);
        let near = rest.iter().take_while(|(other, _)| (at.0..end).contains(&other.0));
        let last = near.last().map_or(at, |(last, _)| *last);
        Step::Read { at, count: last.0 - at.0 + 1 }
    }

    /// Takes the blocks that [`step`](Self::step) asked for, one after another.
    ///
    /// Errors: the log is corrupt; the recovery cannot go on. Panics when these are not as many bytes as were asked for,
    /// which is the caller's mistake.
    pub fn feed(&mut self, blocks: &[u8]) -> Result<(), Corrupt> {
        let Step::Read { at, count } = self.step() else { return Ok(()) };
        let block_bytes = self.format.block_bytes as usize;
        assert_eq!(blocks.len(), count as usize * block_bytes, "not the blocks that were asked for");
        let fed = Fed { at, blocks, block_bytes };
        loop {
            match std::mem::replace(&mut self.phase, Phase::Done) {
                Phase::Scan(mut scan) => {
                    let Some(block) = fed.get(scan.at) else {
                        self.phase = Phase::Scan(scan);
                        return Ok(());
                    };
                    match self.scan_block(&mut scan, block)? {
                        None => self.phase = Phase::Scan(scan),
                        Some(end) => self.end_scan(&scan, end),
                    }
                }
                Phase::Revoke(next) => {
                    let Some(&(at, sequence)) = self.revoke_blocks.get(next) else { return Ok(()) };
                    let Some(block) = fed.get(at) else {
                        self.phase = Phase::Revoke(next);
                        return Ok(());
                    };
                    self.revoke(at, sequence, block)?;
                    self.phase = Phase::Revoke(next + 1);
                }
                Phase::Done => return Ok(()),
            }
        }
    }

    /// The outcome; `None` while [`step`](Self::step) still asks for blocks.
    pub fn finish(mut self) -> Option<Outcome> {
        if self.step() != Step::Done {
            return None;
        }
        let start = self.superblock.start().unwrap_or(self.ring.first());
        let mut replays: Vec<Replay> = self.homes.into_values().collect();
        replays.sort_unstable_by_key(|replay| self.ring.distance(start, replay.at));
        self.superblock.set_empty(self.next_sequence);
        Some(Outcome {
            replays,
            end: self.end,
            next_sequence: self.next_sequence,
            last_commit: self.last_commit,
            transaction_count: self.transaction_count,
            copy_count: self.copy_count,
            revoke_count: self.revoke_count,
            superblock: self.superblock,
            format: self.format,
        })
    }

    fn end_scan(&mut self, scan: &Scan, end: LogEnd) {
        self.end = end;
        self.next_sequence = scan.sequence.next();
        self.phase = Phase::Revoke(0);
    }

    /// Looks at the block where the scan is and moves on. Gives how the log ended, if it did.
    fn scan_block(&mut self, scan: &mut Scan, block: &[u8]) -> Result<Option<LogEnd>, Corrupt> {
        let here = scan.at;
        if scan.unsummed_copies > 0 {
            scan.unsummed_copies -= 1;
            scan.crc32 = crc32_big_endian(scan.crc32, block);
            scan.at = self.ring.advance(here, 1);
            return Ok(None);
        }
        if scan.commit_damaged {
            return self.after_damaged_commit(scan, block);
        }
        let kind = match BlockHeader::of(block) {
            Some(header) if header.sequence == scan.sequence => header.kind,
            _ => return Ok(Some(LogEnd::Ordinary)),
        };
        let block_count = match kind {
            BlockKind::Descriptor => 1 + self.scan_descriptor(scan, block),
            BlockKind::Revoke => {
                scan.suspect |= !self.format.tail_is_right(block);
                scan.revoke_blocks.push(here);
                1
            }
            BlockKind::Commit => {
                if let Some(end) = self.scan_commit(scan, block)? {
                    return Ok(Some(end));
                }
                1
            }
            BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => return Ok(Some(LogEnd::Ordinary)),
        };
        scan.scanned_block_count += block_count;
        if scan.scanned_block_count > u64::from(self.ring.block_count()) {
            return Err(corrupt(here, "the log overlaps itself"));
        }
        let sums_copies = self.format.checksums == Checksums::V1;
        scan.at = self.ring.advance(here, if sums_copies { 1 } else { block_count });
        if sums_copies {
            scan.unsummed_copies = (block_count - 1) as u32;
        }
        Ok(None)
    }

    /// Notes a descriptor block's copies; gives their number.
    fn scan_descriptor(&self, scan: &mut Scan, block: &[u8]) -> u64 {
        scan.suspect |= !self.format.tail_is_right(block);
        if self.format.checksums == Checksums::V1 {
            scan.crc32 = crc32_big_endian(scan.crc32, block);
        }
        let mut count = 0;
        for tag in descriptor::tags(&self.format, block) {
            count += 1;
            let at = self.ring.advance(scan.at, count);
            scan.copies.push(Replay { at, home: tag.home, sequence: scan.sequence, tag });
        }
        count
    }

    fn scan_commit(&mut self, scan: &mut Scan, block: &[u8]) -> Result<Option<LogEnd>, Corrupt> {
        let found = CommitBlock::decode(block).ok_or(corrupt(scan.at, "a commit block is too short"))?;
        let is_older = self.last_commit.is_some_and(|last| found.time.seconds < last.seconds);
        let is_right = commit::is_right(&self.format, block, scan.crc32);
        if scan.suspect {
            return match is_right && !is_older {
                true => Err(corrupt(scan.at, "a committed transaction has a block with a wrong checksum")),
                false => Ok(Some(LogEnd::Stale)),
            };
        }
        if !is_right {
            scan.commit_damaged = true;
            return Ok(is_older.then_some(LogEnd::Stale));
        }
        self.commit(scan)?;
        self.last_commit = self.last_commit.max(Some(found.time));
        Ok(None)
    }

    /// The transaction is whole: its copies count.
    fn commit(&mut self, scan: &mut Scan) -> Result<(), Corrupt> {
        for copy in scan.copies.drain(..) {
            if copy.home.0 >= self.device_block_count {
                return Err(corrupt(copy.at, "a copy belongs outside the device"));
            }
            if self.map.holds(copy.home) {
                return Err(corrupt(copy.at, "a copy belongs inside the journal"));
            }
            self.homes.insert(copy.home, copy);
            self.copy_count += 1;
        }
        self.revoke_blocks.extend(scan.revoke_blocks.drain(..).map(|at| (at, scan.sequence)));
        self.transaction_count += 1;
        scan.sequence = scan.sequence.next();
        scan.crc32 = !0;
        Ok(())
    }

    /// The block after a commit block with a wrong checksum: does another transaction start here?
    fn after_damaged_commit(&self, scan: &Scan, block: &[u8]) -> Result<Option<LogEnd>, Corrupt> {
        let next = BlockHeader::of(block).filter(|header| header.sequence == scan.sequence.next());
        let follows = next.is_some_and(|header| match header.kind {
            BlockKind::Descriptor | BlockKind::Revoke => self.format.tail_is_right(block),
            // Version 1 sums more than the block: its commit block speaks for itself here.
            BlockKind::Commit => !self.format.sums_blocks() || commit::is_right(&self.format, block, 0),
            BlockKind::SuperblockV1 | BlockKind::SuperblockV2 => false,
        });
        match follows {
            true => Err(corrupt(scan.at, "the commit block before it is damaged")),
            false => Ok(Some(LogEnd::DamagedCommit(scan.sequence))),
        }
    }

    /// A revoke record holds for copies up to and including those of its own transaction. Where the last copy of a home
    /// is revoked, all before it are.
    fn revoke(&mut self, at: LogIndex, sequence: TransactionId, block: &[u8]) -> Result<(), Corrupt> {
        for home in revoke::records(&self.format, u64::from(at.0), block)? {
            self.revoke_count += 1;
            if self.homes.get(&home).is_some_and(|copy| !sequence.is_before(copy.sequence)) {
                self.homes.remove(&home);
            }
        }
        Ok(())
    }
}

impl Scan {
    fn new(at: LogIndex, sequence: TransactionId) -> Self {
        Self {
            at,
            sequence,
            scanned_block_count: 0,
            copies: Vec::new(),
            revoke_blocks: Vec::new(),
            suspect: false,
            commit_damaged: false,
            unsummed_copies: 0,
            crc32: !0,
        }
    }
}

/// A run of blocks of the log in memory.
struct Fed<'a> {
    at: LogIndex,
    blocks: &'a [u8],
    block_bytes: usize,
}

impl<'a> Fed<'a> {
    fn get(&self, at: LogIndex) -> Option<&'a [u8]> {
        let offset = (at.0.checked_sub(self.at.0)? as usize).checked_mul(self.block_bytes)?;
        self.blocks.get(offset..offset.checked_add(self.block_bytes)?)
    }
}

fn corrupt(at: LogIndex, what: &'static str) -> Corrupt {
    Corrupt::new(Structure::JournalBlock, u64::from(at.0), what)
}
