//! The local store of a volume, through its opening, use and closing.

use std::path::PathBuf;

use bytes::Bytes;
use proto::{BlockRange, DiskId};
use replication::event::{Attachment, IoId, OpId};

/// Where the local copy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// There is none, or it is not used; the text says why and what to do.
    Absent(String),
    /// Being opened.
    Opening {
        /// The copy.
        disk_id: DiskId,
        /// File or device.
        path: PathBuf,
    },
    /// In use.
    Open {
        /// The copy.
        disk_id: DiskId,
        /// File or device.
        path: PathBuf,
        /// Offset of the data area in bytes.
        data_offset: u64,
    },
    /// Detached; its last operations are ending.
    Closing {
        /// The copy.
        disk_id: DiskId,
        /// An error caused it.
        failed: bool,
        /// The error, or who asked.
        why: String,
    },
    /// Detached.
    Detached {
        /// The copy.
        disk_id: DiskId,
        /// An error caused it.
        failed: bool,
        /// The error, or who asked.
        why: String,
    },
}

/// A disk operation in flight: what its completion means. Its key in the slab is the operation's tag.
#[derive(Debug)]
pub(crate) enum PendingIo {
    /// `ReadLocal`.
    Read(IoId),
    /// `WriteLocal`, `WriteBatchLocal`, `FlushLocal`, `RepairLocal`, `ExpectLocal`, `CoolExtents`, `WriteBitmap`.
    Write(IoId),
    /// One edge of `MergeEdges`.
    Edge { merge: IoId, block: u64 },
    /// `PersistActivityLog`.
    ActivityLog(IoId),
    /// `PersistReplicaState`.
    ReplicaState { io: IoId, suspect: bool },
    /// A store that failed before is being marked as suspect, before the core may see it.
    SuspectMark(Box<Attachment>),
}

/// A `MergeEdges` whose reads are in flight.
#[derive(Debug)]
pub(crate) struct Merge {
    /// The client's operation.
    pub(crate) op: OpId,
    /// Its blocks.
    pub(crate) range: BlockRange,
    /// Reads to come.
    pub(crate) missing: usize,
    /// Edges read.
    pub(crate) edges: Vec<(u64, Bytes)>,
    /// A read failed.
    pub(crate) failed: bool,
    /// Edges that do not match their checksums.
    pub(crate) bad: Vec<BlockRange>,
}
