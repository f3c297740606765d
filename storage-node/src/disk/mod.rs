//! The disk engine: io_uring, volume stores, the fence file.
//!
//! - [`Ring`]: one io_uring of a shard; the only `unsafe` of this crate.
//! - [`Store`]: an open volume store; operations go through its [`LocalCopy`](replication::local_copy::LocalCopy), which
//!   knows checksums and activity log, to its ring, and their ends come to a sink.
//! - [`StorePool`]: where stores are kept: scanning, creating, removing.
//! - [`FenceFile`]: what this node has promised about epochs.
//!
//! The layout on disk is described in `docs/disk-format.md`. This module does not order operations, does not know
//! replicas, and never retries a failed flush.

mod areas;
mod backing;
mod create;
mod erase;
mod fence;
mod layout;
mod pool;
mod raw;
mod rehome;
mod ring;
mod scrubs;
mod store;
mod superblock;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use proto::checksum::BlockSums;
use proto::peer::message::WriteKind;
use proto::{BlockRange, Boot, ClusterId, ConfigVersion, DiskId, VolumeId};
use replication::local_copy::{Hot, MetaPage, Page, ReadCheck};
use thiserror::Error;

pub use fence::{FENCES_MAX, FenceFile};
pub use layout::VOLUME_BYTES_MAX;
pub use pool::StorePool;
pub use rehome::rehome_stores;
pub use ring::Ring;
pub use store::{OPERATIONS_MAX, Store};

/// One operation on a volume's store. No two in flight touch the same block unless both read it.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read blocks; `DiskDone` holds them in an aligned buffer.
    Read {
        /// Blocks to read.
        range: BlockRange,
        /// What to make of their checksums.
        check: ReadCheck,
    },
    /// Write, zero (allocated) or discard (punch) blocks, whose extents are hot. `data` is exactly as long as the range,
    /// for `WriteKind::Data`.
    Write {
        /// Blocks to write.
        range: BlockRange,
        /// What to do with them.
        kind: WriteKind,
        /// On stable media at the end of the operation.
        fua: bool,
        /// The content, for `WriteKind::Data`. Written without a copy if it is 4096-aligned in memory.
        data: Option<Bytes>,
        /// For data one checksum a block; otherwise none.
        sums: BlockSums,
    },
    /// Ordered groups, a flush after each; their extents are hot.
    Batch {
        /// The ranges of each group.
        groups: Vec<Vec<BlockRange>>,
        /// The content of all ranges, in order.
        data: Bytes,
        /// The checksums of all blocks, in order.
        sums: BlockSums,
    },
    /// Put every write that has ended before on stable media. Once a flush of a store has failed, every later one does.
    Flush,
    /// Make extents hot in the activity log.
    Heat {
        /// Numbers of 4 MiB extents, ascending.
        extents: Vec<u64>,
    },
    /// Make hot extents cold. Nothing is being written to them.
    Cool {
        /// Numbers of 4 MiB extents, ascending.
        extents: Vec<u64>,
        /// Pages of dirty bitmaps that must be on stable media before.
        bitmaps: Vec<(MetaPage, Page)>,
    },
    /// Write pages of dirty bitmaps, each durable before the next.
    Bitmap {
        /// The pages.
        pages: Vec<(MetaPage, Page)>,
    },
    /// Put a peer's copy in the place of blocks that were found bad, where it matches their own checksums.
    Repair {
        /// Blocks.
        range: BlockRange,
        /// The peer's data; exactly as long as the range.
        data: Bytes,
        /// Its checksums, one a block.
        sums: BlockSums,
    },
    /// Set the checksums that blocks of hot extents should have, and leave the blocks as they are.
    Expect {
        /// Blocks.
        range: BlockRange,
        /// One checksum a block.
        sums: BlockSums,
    },
    /// Record in both superblocks, durably.
    PersistState {
        /// Newest configuration version at which the copy is known to be in sync.
        last_in_sync: ConfigVersion,
        /// The copy may hold less than it acknowledged. False also takes back the mark of a failed disk.
        suspect: bool,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct DiskDone {
    /// As given to `start`.
    pub tag: u64,
    /// How it ended.
    pub result: Result<(), DiskError>,
    /// What was read: of a read that ended well, or that found some blocks bad.
    pub data: Option<Bytes>,
    /// The checksums of a read, one a block, all matching what was read; of a bad block the one that it should have.
    pub sums: BlockSums,
}

impl DiskDone {
    /// An end without data.
    pub fn bare(tag: u64, result: Result<(), DiskError>) -> DiskDone {
        DiskDone { tag, result, data: None, sums: BlockSums::new() }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiskError {
    /// The store has no space left.
    #[error("no space left in the backing store")]
    OutOfSpace,
    /// These blocks, runs in ascending order, do not match their checksums, also when read again.
    #[error("{} run(s) of blocks do not match their checksums, the first at block {}", .0.len(), .0.first().map_or(0, |run| run.start))]
    Corrupt(Vec<BlockRange>),
    /// The caller's mistake, and nothing was done. EBUSY: more operations at once than a store bears; EINVAL: the
    /// operation does not fit the store; EFAULT: its data is not there.
    #[error("a defect of this program: a disk operation was refused (errno {0})")]
    Misuse(i32),
    /// The kernel reported this errno, or a short transfer (0).
    #[error("I/O error (errno {0})")]
    Io(i32),
}

/// An open store, and what it remembers of its last use.
pub struct OpenedStore {
    /// The store.
    pub store: Store,
    /// Extents that were hot.
    pub hot: Hot,
    /// The dirty bitmaps, each whole, as read.
    pub bitmaps: Vec<Vec<u8>>,
}

impl DiskError {
    fn from_errno(errno: i32) -> DiskError {
        match errno {
            libc::ENOSPC | libc::EDQUOT => DiskError::OutOfSpace,
            other => DiskError::Io(other),
        }
    }
}

impl From<DiskError> for io::Error {
    fn from(error: DiskError) -> io::Error {
        match error {
            DiskError::OutOfSpace => io::Error::from_raw_os_error(libc::ENOSPC),
            DiskError::Corrupt(_) => io::ErrorKind::InvalidData.into(),
            DiskError::Io(0) => io::ErrorKind::UnexpectedEof.into(),
            DiskError::Misuse(errno) | DiskError::Io(errno) => io::Error::from_raw_os_error(errno),
        }
    }
}

/// Receives completions on the shard's thread. May call back into the store.
pub type DiskSink = Rc<dyn Fn(DiskDone)>;

/// What a scan of the stores found.
#[derive(Clone, Debug)]
pub struct FoundStore {
    /// File or block device.
    pub path: PathBuf,
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Volume it holds a copy of.
    pub volume: VolumeId,
    /// The copy.
    pub disk_id: DiskId,
    /// Size of the volume in bytes.
    pub size_bytes: u64,
    /// Offset of the data area in bytes.
    pub data_offset: u64,
    /// Newest configuration version at which the copy knew to be in sync.
    pub last_in_sync: ConfigVersion,
    /// The copy may hold less than it acknowledged.
    pub suspect: bool,
    /// True when the store was flushed and closed by an orderly stop.
    pub clean: bool,
    /// The power-on during which it was last opened.
    pub boot: Boot,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct StoreSpec {
    /// Cluster.
    pub cluster: ClusterId,
    /// Volume.
    pub volume: VolumeId,
    /// The new copy.
    pub disk_id: DiskId,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Write the whole data area once, so that no later write allocates.
    pub preallocate: bool,
}

/// Why a store is refused. The text names the path, what is wrong, and what to do.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Not one of ours, truncated, damaged, of a newer format, of another cluster, or held by another process.
    #[error("{path}: {why}")]
    Refused {
        /// The file or device.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file, directory or device.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
}
