//! The disk engine: io_uring, volume stores, the fence file.
//!
//! - [`Ring`]: one io_uring of a shard; the only `unsafe` of this crate.
//! - [`Store`]: an open volume store; operations go to its ring, their ends come to a sink.
//! - [`StorePool`]: where stores are kept: scanning, creating, removing.
//! - [`FenceFile`]: what this node has promised about epochs.
//!
//! The layout on disk is described in `docs/disk-format.md`. This module does not order operations, does not know
//! replicas, and never retries a failed flush.

mod backing;
mod batch;
mod create;
mod erase;
mod fence;
mod layout;
mod pool;
mod rehome;
mod ring;
mod store;
mod superblock;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;
use proto::peer::message::WriteKind;
use proto::{BlockRange, Boot, ClusterId, ConfigVersion, DiskId, VolumeId};
use thiserror::Error;

pub use fence::{FENCES_MAX, FenceFile};
pub use layout::VOLUME_BYTES_MAX;
pub use pool::StorePool;
pub use rehome::rehome_stores;
pub use ring::Ring;
pub use store::{OPERATIONS_MAX, Store};

/// One operation on a volume's store.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read blocks; `DiskDone` holds them in an aligned buffer.
    Read {
        /// Blocks to read.
        range: BlockRange,
    },
    /// Write, zero (allocated) or discard (punch) blocks. `data` is exactly as long as the range, for `WriteKind::Data`.
    Write {
        /// Blocks to write.
        range: BlockRange,
        /// What to do with them.
        kind: WriteKind,
        /// On stable media at the end of the operation.
        fua: bool,
        /// The content, for `WriteKind::Data`. Written without a copy if it is 4096-aligned in memory.
        data: Option<Bytes>,
    },
    /// Ordered groups, a flush after each.
    Batch {
        /// The ranges of each group.
        groups: Vec<Vec<BlockRange>>,
        /// The content of all ranges, in order.
        data: Bytes,
    },
    /// Put every write that has ended before on stable media. Once a flush of a store has failed, every later one does.
    Flush,
    /// Make extents hot in the activity log (until the log exists every extent of an open store counts as hot, so this
    /// completes at once).
    ActivityLog {
        /// Numbers of 4 MiB extents.
        extents: Vec<u64>,
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
    /// For reads the data.
    pub result: Result<Option<Bytes>, DiskError>,
}

/// Why an operation failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiskError {
    /// The store has no space left.
    #[error("no space left in the backing store")]
    OutOfSpace,
    /// The kernel reported this errno, or a short transfer (0). EBUSY: more operations at once than a store bears;
    /// EINVAL: the operation does not fit the store. Both are the caller's mistake, and nothing was done.
    #[error("I/O error (errno {0})")]
    Io(i32),
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
            DiskError::Io(0) => io::ErrorKind::UnexpectedEof.into(),
            DiskError::Io(errno) => io::Error::from_raw_os_error(errno),
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
