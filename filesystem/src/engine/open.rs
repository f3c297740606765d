//! Opening a volume: what may be done with its filesystem, the replay of its log, and the mark that it is in use.

use std::collections::BTreeSet;

use block_device::{BlockDevice, BlockError, ByteRange};
use bytes::Bytes;
use thiserror::Error;

use super::filesystem::{Failure, Filesystem, Journal};
use super::handle::Handle;
use super::system_zone::SystemZone;
use super::transaction::Transaction;
use crate::journal::checkpoint::Checkpoint;
use crate::journal::recovery::Replay;
use crate::journal::{
    CommitTime, JournalMap, JournalSuperblock, LogEnd, LogIndex, LogSpace, Outcome, Recovery, Refusal, Step,
};
use crate::layout::file_kind::FileKind;
use crate::layout::mmp::{MultiMount, multi_mount};
use crate::layout::superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, Superblock, Unusable};
use crate::layout::timestamp::Timestamp;
use crate::layout::{Corrupt, Structure};
use crate::map::{FileMap, Mapping};
use crate::units::{BlockNumber, BlockRun, FileBlock, GroupNumber, InodeNumber, TransactionId};

/// Blocks replayed at a time.
const REPLAY_BLOCKS: usize = 1024;
/// A transaction takes this part of the log at most, so that the one before it and the one after it find room.
const TRANSACTION_PART_OF_LOG: u32 = 4;
/// And this part of the memory for blocks, since what is changed stays in memory until it is at home.
const TRANSACTION_PART_OF_MEMORY: usize = 8;
/// Blocks of a transaction that are allowed whatever the memory: the largest operations change as many.
const TRANSACTION_BLOCKS_MIN: usize = 256;

/// How a filesystem is used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes of blocks kept in memory beyond what is changed and not at home yet.
    pub cache_bytes_max: usize,
    /// Bytes of files' data that wait in memory to be written.
    pub data_bytes_max: usize,
    /// Nothing is written, not even a replay of the log: that stays in memory.
    pub read_only: bool,
    /// Real time. It may go back; commit times do not.
    pub clock: fn() -> CommitTime,
}

/// What opening found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Committed transactions in the log.
    pub transactions: u32,
    /// Blocks that were brought to their newest committed content.
    pub blocks: usize,
    /// Records that blocks of the log were not to be replayed.
    pub revokes: u64,
}

/// Why a volume was not opened. Nothing was changed that a replay of the log would not change.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The superblock says no.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The filesystem is larger than its volume.
    #[error("the filesystem needs {needed} bytes, and the volume has {size}")]
    CutShort {
        /// By its superblock.
        needed: u64,
        /// Of the volume.
        size: u64,
    },
    /// It may be read, but not written.
    #[error("the filesystem can only be read: it has {0}")]
    NotWritable(String),
    /// Another machine has it mounted, or went away without saying so.
    #[error("the filesystem is in use by {node}; if it is not, e2fsck -f takes the mark away")]
    InUse {
        /// As it named itself.
        node: String,
    },
    /// The journal says no.
    #[error(transparent)]
    Journal(#[from] Refusal),
    /// The last transaction in the log is damaged, and may have been acknowledged.
    #[error("the last transaction in the journal, {0}, is damaged; e2fsck -f will replay what is before it")]
    DamagedLog(TransactionId),
    /// Something that is needed to open it is broken, or the volume failed.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<BlockError> for OpenError {
    fn from(error: BlockError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Corrupt> for OpenError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Failed(corrupt.into())
    }
}

impl<D: BlockDevice> Filesystem<D> {
    /// Opens the filesystem on a volume: replays its log, and marks it as in use. Operations can begin when this has
    /// returned; their changes are committed while [`Self::drive`] is polled.
    ///
    /// Errors: see [`OpenError`].
    pub async fn open(device: D, options: &Options) -> Result<(Self, Recovered), OpenError> {
        let superblock = read_superblock(&device).await?;
        let geometry = superblock.geometry();
        let (needed, size) = (geometry.block_count * u64::from(geometry.block_size), device.size_bytes());
        if needed > size {
            return Err(OpenError::CutShort { needed, size });
        }
        if let (false, [first, ..]) = (options.read_only, superblock.read_only()) {
            return Err(OpenError::NotWritable(first.to_string()));
        }
        let (journal_inode, mark) = (superblock.journal_inode(), superblock.multi_mount_block());
        let filesystem = Self::new(device, superblock, options, TransactionId(0));
        if let Some(at) = mark {
            let block = filesystem.read_blocks(BlockRun::new(at, 1)).await?;
            if let MultiMount::Held { node, .. } = multi_mount(&filesystem.geometry, &block)? {
                return Err(OpenError::InUse { node });
            }
        }
        let mut recovered = Recovered::default();
        if let Some(inode) = journal_inode {
            let map = filesystem.journal_map(inode).await?;
            let at = map.device_block(LogIndex(0)).unwrap_or_default();
            let first = filesystem.read_blocks(BlockRun::new(at, 1)).await?;
            let journal = JournalSuperblock::decode(&first, filesystem.geometry.block_size, map.block_count())?;
            let outcome = filesystem.scan_log(journal, &map).await?;
            recovered = filesystem.replay(&outcome, &map, options.read_only).await?;
            filesystem.find_ring().await?;
            if !options.read_only {
                filesystem.begin(outcome, map).await?;
            }
        } else {
            filesystem.find_ring().await?;
        }
        Ok((filesystem, recovered))
    }

    /// Gives back what files without a name hold, all but `keep`: those that somebody has open beyond a crash, and that are to be
    /// held then. Finishes what was being cut short. To be called before operations begin. Tells how many are gone. Errors: the
    /// list, or an inode of it, is broken; the volume's.
    pub async fn reclaim_orphans(&self, keep: &BTreeSet<InodeNumber>) -> Result<usize, Failure> {
        self.adopt_orphan_file().await?;
        let orphans = self.run(|handle| handle.orphans()).await?.value;
        self.state.borrow_mut().table.orphan_order.learn(&orphans);
        let now = (self.clock)();
        let now = Timestamp { seconds: now.seconds as i64, nanoseconds: now.nanoseconds };
        let mut gone = 0;
        for orphan in orphans {
            let inode = self.run(|handle| handle.inode(orphan)).await?.value;
            let kept = keep.contains(&orphan);
            let is_regular = inode.mode.kind() == Some(FileKind::Regular);
            if inode.links > 0 && !is_regular {
                self.run(|handle| handle.remove_orphan(orphan)).await?;
            } else if inode.links > 0 || (kept && is_regular) {
                // It was being cut short, or may have been.
                while !self.run(|handle| handle.truncate_step(orphan)).await?.value {}
            }
            if inode.links == 0 && kept {
                self.state.borrow_mut().table.keep_unlinked(orphan);
            } else if inode.links == 0 {
                while !self.run(|handle| handle.reclaim(orphan, now)).await?.value {}
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// Where the journal lies. Errors: its inode is none of a file without holes.
    async fn journal_map(&self, inode: InodeNumber) -> Result<JournalMap, OpenError> {
        let broken = |what| Corrupt::new(Structure::Inode, u64::from(inode.0), what);
        let found = self.run(|handle| handle.inode(inode)).await?.value;
        if found.mode.kind() != Some(FileKind::Regular) {
            return Err(broken("the journal is no regular file").into());
        }
        // No block is in it twice. Without this bound a map that leads to the same blocks again and again would be followed.
        let blocks = found.size / u64::from(self.geometry.block_size);
        let blocks = u32::try_from(blocks).ok().filter(|blocks| u64::from(*blocks) <= self.geometry.block_count);
        let blocks = blocks.ok_or(broken("the journal is too long"))?;
        let mut extents = Vec::new();
        let mut at = 0;
        while at < blocks {
            // Not the next mapped one: in a broken map the way there may be long.
            let map = |handle: &mut Handle<'_>| {
                FileMap::of_inode(&found, inode, &handle.inode_rules(), BlockNumber(0)).lookup(handle, FileBlock(at))
            };
            let Mapping::Mapped { run, .. } = self.run(map).await?.value else {
                return Err(broken("the journal has a hole").into());
            };
            let run = BlockRun::new(run.start, run.count.min(blocks - at));
            extents.push((LogIndex(at), run));
            at += run.count;
        }
        Ok(JournalMap::new(&extents)?)
    }

    async fn scan_log(&self, journal: JournalSuperblock, map: &JournalMap) -> Result<Outcome, OpenError> {
        let mut recovery = Recovery::new(journal, map.clone(), self.geometry.block_count);
        while let Step::Read { at, count } = recovery.step() {
            let blocks = self.read_log(map, at, count).await?;
            recovery.feed(&blocks)?;
        }
        let outcome = recovery.finish().ok_or(BlockError::Io)?;
        if let LogEnd::DamagedCommit(transaction) = outcome.end {
            return Err(OpenError::DamagedLog(transaction));
        }
        Ok(outcome)
    }

    /// Blocks of the log that follow one another, and do not go around its end.
    async fn read_log(&self, map: &JournalMap, at: LogIndex, count: u32) -> Result<Vec<u8>, BlockError> {
        let mut blocks = Vec::with_capacity(count as usize * self.geometry.block_size as usize);
        let mut got = 0;
        while got < count {
            let run = map.run(LogIndex(at.0 + got), count - got).ok_or(BlockError::Io)?;
            blocks.extend_from_slice(&self.read_blocks(run).await?);
            got += run.count;
        }
        Ok(blocks)
    }

    /// Brings every block that the log holds to its newest content: at home, or, for a reader, in memory.
    async fn replay(&self, outcome: &Outcome, map: &JournalMap, read_only: bool) -> Result<Recovered, OpenError> {
        for some in outcome.replays.chunks(REPLAY_BLOCKS) {
            let runs = some.chunk_by(|one, next| one.at.0 + 1 == next.at.0);
            let runs = runs.map(|run| self.restored(outcome, run, map));
            let mut restored: Vec<_> = futures_util::future::try_join_all(runs).await?.into_iter().flatten().collect();
            if read_only {
                let cache = &mut self.state.borrow_mut().cache;
                for (home, content) in restored {
                    // What was read to find the journal may be old, and what was found right in it is.
                    cache.forget(home);
                    cache.replace(home, content, None);
                }
            } else {
                restored.sort_unstable_by_key(|(home, _)| *home);
                let blocks: Vec<_> = restored.iter().map(|(home, content)| (*home, &**content)).collect();
                let writes = self.joined(&blocks).into_iter();
                let writes = writes.map(|write| self.device.write(write.offset, write.data, false));
                futures_util::future::try_join_all(writes).await?;
            }
        }
        if !read_only {
            // What was read to find the journal may be old now.
            self.device.flush().await?;
            self.state.borrow_mut().cache.clear();
            let superblock = read_superblock(&self.device).await?;
            self.state.borrow_mut().superblock = superblock;
        }
        let (transactions, revokes) = (outcome.transaction_count, outcome.revoke_count);
        Ok(Recovered { transactions, blocks: outcome.replays.len(), revokes })
    }

    /// What copies that follow one another in the log bring home.
    async fn restored(
        &self,
        outcome: &Outcome,
        run: &[Replay],
        map: &JournalMap,
    ) -> Result<Vec<(BlockNumber, Bytes)>, OpenError> {
        let first = run.first().map_or(LogIndex(0), |first| first.at);
        let mut copies = self.read_log(map, first, run.len() as u32).await?;
        let copies = copies.chunks_exact_mut(self.geometry.block_size as usize);
        let restored = run.iter().zip(copies).map(|(replay, copy)| {
            outcome.restore(replay, copy)?;
            Ok((replay.home, Bytes::copy_from_slice(copy)))
        });
        restored.collect()
    }

    /// An empty log, the counts as the groups have them, and the superblock's mark, each on stable media before what
    /// depends on it.
    async fn begin(&self, outcome: Outcome, map: JournalMap) -> Result<(), OpenError> {
        let mut superblock = outcome.superblock;
        if !superblock.has_written_form() {
            superblock.set_written_form();
        }
        let ring = superblock.ring();
        let space = LogSpace::empty(ring, ring.first()).ok_or(BlockError::Io)?;
        let (counts, mut system, mut tables) = self.count_free().await?;
        tables.sort_unstable_by_key(|table| table.start);
        let mut at = LogIndex(0);
        while let Some(run) = map.run(at, map.block_count().saturating_sub(at.0)) {
            system.push(run);
            at = LogIndex(at.0 + run.count);
        }
        let of_memory = self.state.borrow().cache.bytes_max() / TRANSACTION_PART_OF_MEMORY;
        let of_memory = (of_memory / self.geometry.block_size as usize).max(TRANSACTION_BLOCKS_MIN);
        // Every transaction has the superblock's block, so it stays in memory.
        let place = self.geometry.superblock_place();
        self.fetch(place.block).await?;
        {
            let mut state = self.state.borrow_mut();
            let written = CommitTime { seconds: state.superblock.write_time().0, nanoseconds: 0 };
            state.running = Transaction::new(superblock.sequence());
            state.closing = None;
            state.cache.pin(place.block);
            (state.free_blocks, state.free_inodes) = counts;
            state.system_zone = SystemZone::new(system);
            state.inode_tables = tables;
            state.journal = Some(Journal {
                superblock,
                map,
                space,
                checkpoint: Checkpoint::default(),
                last_commit: outcome.last_commit.unwrap_or_default().max(written),
                transaction_blocks_max: ((ring.block_count() / TRANSACTION_PART_OF_LOG) as usize).min(of_memory),
            });
            let durable = TransactionId(state.running.id().0.wrapping_sub(1));
            self.reached.send_modify(|reached| reached.durable = durable);
        }
        self.write_journal_superblock().await?;
        let now = (self.clock)();
        // A filesystem with a state ring knows by these who else had it (`state_ring::header::MountMark`).
        let is_noted = self.state.borrow().ring.is_none();
        let mark = |superblock: &mut Superblock| {
            superblock.set_needs_recovery(true);
            if is_noted {
                superblock.set_mount_count(superblock.mount_count().saturating_add(1));
                superblock.set_mount_time(now.into());
            }
        };
        Ok(self.write_superblock(mark).await?)
    }

    /// Free blocks and inodes by all descriptors, the blocks that are the filesystem's own, and of those the tables of inodes:
    /// the superblock's counts are old after a crash of another kind of writer.
    async fn count_free(&self) -> Result<((u64, u32), Vec<BlockRun>, Vec<BlockRun>), OpenError> {
        let groups = self.geometry.group_count;
        let counted = self.run(|handle| {
            let mut counts = (0_u64, 0_u32);
            let (mut system, mut tables) = (Vec::new(), Vec::new());
            for group in (0..groups).map(GroupNumber) {
                let descriptor = handle.descriptor(group)?;
                counts.0 += u64::from(descriptor.free_clusters);
                counts.1 = counts.1.saturating_add(descriptor.free_inodes);
                tables.push(descriptor.inode_table_run(handle.geometry()));
                system.push(handle.geometry().base_blocks(group));
                system.extend(descriptor.metadata(handle.geometry()));
            }
            Ok((counts, system, tables))
        });
        Ok(counted.await?.value)
    }

    pub(super) async fn read_blocks(&self, run: BlockRun) -> Result<Bytes, BlockError> {
        let size = u64::from(self.geometry.block_size);
        self.device.read(ByteRange { offset: run.start.0 * size, length: u64::from(run.count) * size }).await
    }
}

async fn read_superblock<D: BlockDevice>(device: &D) -> Result<Superblock, OpenError> {
    let length = SUPERBLOCK_BYTES as u64;
    let bytes = device.read(ByteRange { offset: SUPERBLOCK_OFFSET, length }).await?;
    Ok(Superblock::decode(&bytes)?)
}
