//! The disk engine: io_uring, volume stores, the fence file.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use proto::peer::message::WriteKind;
use proto::{BlockRange, Boot, ClusterId, ConfigVersion, DiskId, Epoch, VolumeId};
use thiserror::Error;

/// One operation on a volume's store.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Read blocks; `DiskDone` holds them in an aligned buffer.
    Read { range: BlockRange },
    /// Write, zero (allocated) or discard (punch) blocks. `data` is exactly as long as the range, for `WriteKind::Data`.
    Write { range: BlockRange, kind: WriteKind, fua: bool, data: Option<Bytes> },
    /// Ordered groups, a flush after each.
    Batch { groups: Vec<Vec<BlockRange>>, data: Bytes },
    /// Flush.
    Flush,
    /// Make extents hot in the activity log (until the log exists every extent of an open store counts as hot, so this
    /// completes at once).
    ActivityLog { extents: Vec<u64> },
    /// Record in both superblocks, durably.
    PersistState { last_in_sync: ConfigVersion, suspect: bool },
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
    /// The kernel reported this errno, or a short transfer (0).
    #[error("I/O error (errno {0})")]
    Io(i32),
}

/// Receives completions on the shard's thread. May call back into the store.
pub type DiskSink = Rc<dyn Fn(DiskDone)>;

/// One io_uring of a shard, polled by its tokio current-thread runtime. Lives inside a `LocalSet`.
pub struct Ring {
    _private: Cell<()>,
}

impl Ring {
    /// A ring with `entries` submission slots; starts its completion task with `spawn_local`.
    pub fn start(_entries: u32) -> io::Result<Rc<Ring>> {
        unimplemented!()
    }
    /// Submits what was queued since the last call, in one system call. Called once per turn of the event loop.
    pub fn submit(&self) {
        unimplemented!()
    }
}

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
    Refused { path: PathBuf, why: String },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The places where a node keeps stores: a directory, and raw block devices.
#[derive(Clone, Debug)]
pub struct StorePool {
    _private: (),
}

impl StorePool {
    /// `directory` is created if missing; each device of `devices` holds at most one volume.
    pub fn new(_directory: &Path, _devices: &[PathBuf]) -> Result<Self, StoreError> {
        unimplemented!()
    }
    /// Every store found, or why it is refused.
    pub fn scan(&self, _cluster: Option<ClusterId>) -> Vec<Result<FoundStore, StoreError>> {
        unimplemented!()
    }
    /// Makes a store (blocking; call it off the shard). `progress(done, total)` in bytes. Interrupted, it leaves nothing.
    pub fn create(&self, _spec: &StoreSpec, _progress: &dyn Fn(u64, u64)) -> Result<FoundStore, StoreError> {
        unimplemented!()
    }
    /// Removes the store of a deleted volume.
    pub fn remove(&self, _found: &FoundStore) -> Result<(), StoreError> {
        unimplemented!()
    }
}

/// An open store. Operations run in parallel; the caller orders what must be ordered.
pub struct Store {
    _private: (),
}

impl Store {
    /// Locks (waits up to `lock_wait` for a former process's I/O to end) and opens it; durably records `boot` and
    /// not-clean. A store that was open when the box lost power (other boot, not clean) is reported `suspect`.
    pub async fn open(
        _ring: Rc<Ring>,
        _found: &FoundStore,
        _boot: Boot,
        _lock_wait: std::time::Duration,
        _sink: DiskSink,
    ) -> Result<Store, StoreError> {
        unimplemented!()
    }
    /// Its superblock as of opening.
    pub fn found(&self) -> &FoundStore {
        unimplemented!()
    }
    /// Starts an operation; its end comes to the sink, never from within this call.
    pub fn start(&self, _tag: u64, _op: DiskOp) {
        unimplemented!()
    }
    /// Operations started and not ended.
    pub fn in_flight(&self) -> usize {
        unimplemented!()
    }
    /// Which parts of `range` are holes, in order, without gaps.
    pub fn allocation(&self, _range: BlockRange) -> Result<Vec<(BlockRange, bool)>, DiskError> {
        unimplemented!()
    }
    /// Waits for operations, and with `clean` flushes and records an orderly stop.
    pub async fn close(self, _clean: bool) -> Result<(), StoreError> {
        unimplemented!()
    }
}

/// The node's fence file: per volume a durable (epoch, version) that only grows.
#[derive(Debug)]
pub struct FenceFile {
    _private: (),
}

impl FenceFile {
    /// Opens or creates it; a damaged file is refused.
    pub fn open(_path: &Path) -> Result<Self, StoreError> {
        unimplemented!()
    }
    /// The fence of a volume, zeros if none.
    pub fn get(&self, _volume: VolumeId) -> (Epoch, ConfigVersion) {
        unimplemented!()
    }
    /// Raises it durably (blocking; group several with one call).
    pub fn raise(&mut self, _fences: &[(VolumeId, Epoch, ConfigVersion)]) -> Result<(), StoreError> {
        unimplemented!()
    }
}
