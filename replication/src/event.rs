//! What a replica is told: facts, never orders. Payload bytes stay in the shell and are named by [`PayloadId`].

use proto::peer::message::{Envelope, Message, WriteKind};
use proto::peer::version::ProtocolVersion;
use proto::{BlockRange, ConfigVersion, DiskId, Epoch, Incarnation, Micros, NodeId, VolumeId};

use crate::config::VolumeConfig;
use crate::local_copy::Hot;
use crate::scrub::ScrubReport;

/// A client's operation, numbered by the shell; unique while it is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A local disk operation, numbered by the replica; unique within its run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// Bytes held by the shell on the replica's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PayloadId {
    /// The data of a client's write (after `MergeEdges`: the merged whole blocks).
    Client(OpId),
    /// The payload of a received frame, numbered by the shell.
    Frame(u64),
    /// What a local read returned.
    Io(IoId),
}

/// One direction of a connection between two boxes, for one volume. The primary dials; `Link` numbers are drawn by the
/// shell and never reused within a run, so that events of a dead connection are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// How a client's write covers its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coverage {
    /// Whole blocks: the payload is exactly the range.
    Whole,
    /// The first or last block is covered in part: the replica asks for `MergeEdges` once it holds the range.
    Partial,
}

/// A client's request. Ranges are whole blocks that cover the bytes asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Read whole blocks; the shell cuts out the bytes.
    Read {
        /// Blocks.
        range: BlockRange,
    },
    /// Write, write zeroes or discard.
    Write {
        /// Blocks.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// On stable media before completion.
        fua: bool,
        /// Whole blocks or not; always `Whole` for zeroes and discard.
        coverage: Coverage,
    },
    /// Ordered groups with barriers; always whole blocks, payload is all data in order.
    WriteBatch {
        /// The groups, each of ranges that do not overlap one another.
        groups: Vec<Vec<BlockRange>>,
    },
    /// Flush everything completed so far.
    Flush,
    /// Nothing is read or written: done where and when a read could be answered. Whoever keeps content of the volume may tell of it
    /// then, as it was when the request came.
    Confirm,
}

/// How a local operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoResult {
    /// Done, whole.
    Ok,
    /// The store has no space left.
    NoSpace,
    /// The medium failed; the disk is to be detached.
    Failed,
}

/// An operator's or supervisor's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// Planned switchover to this member.
    Switchover {
        /// The new primary.
        to: NodeId,
    },
    /// Stop using the local disk, as if it had failed but without marking it so.
    Detach,
    /// Look at every block of every copy in sync.
    Scrub {
        /// Mend nothing.
        verify_only: bool,
    },
    /// Stop serving for good: drain, flush, release the lease, tell the peers. Answered by `Action::Stopped`.
    Stop,
}

/// What the shell found when it opened the local store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskReport {
    /// The copy.
    pub disk_id: DiskId,
    /// Newest configuration version at which this copy durably knew to be in sync.
    pub last_in_sync: ConfigVersion,
    /// True when the copy may hold less than it acknowledged: mid-resync, after a disk failure, or the store was open
    /// when the box lost power.
    pub suspect: bool,
    /// True when the copy was given up after an error and has not been in sync since: it must not take over.
    pub failed: bool,
    /// The durable fence for the volume (zeros if none).
    pub fence: (Epoch, ConfigVersion),
}

/// An opened local store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// What its superblock says.
    pub report: DiskReport,
    /// Extents that were hot when the copy was last in use.
    pub hot: Hot,
    /// The areas of the dirty bitmaps, each whole, as read.
    pub bitmaps: Vec<Vec<u8>>,
    /// What it remembers of scrubs.
    pub scrubs: PastScrubs,
}

/// What a copy remembers of scrubs over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PastScrubs {
    /// How long ago the last one ended that mended what it found; without one, when the copy was first used.
    pub ended_ago: Micros,
    /// How far the one in the background had come.
    pub under_way: Option<ScrubReport>,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Time has passed; sent at or after `next_deadline`.
    Tick,
    /// The node's Raft log has applied this configuration of the volume. Versions arrive in order; some may be skipped.
    Config(Box<VolumeConfig>),
    /// The volume is gone from the configuration.
    VolumeRemoved,
    /// The local store is open (at start, or after an attach).
    DiskAttached(Box<Attachment>),
    /// There is no local store to open, or it could not be opened. One may be attached later.
    DiskUnavailable,
    /// The Raft leader reported whether it heard that node within its last election timeout.
    LeaderHears {
        /// Node heard or not.
        node: NodeId,
        /// Heard.
        alive: bool,
    },
    /// A supervisor that reaped this very worker, or that worker at its orderly end, says it is gone.
    Goodbye {
        /// Its node.
        node: NodeId,
        /// The run that ended.
        incarnation: Incarnation,
    },
    /// A connection to `peer` that this side dialled (`outbound`) or accepted stands, and its handshake agreed.
    LinkUp {
        /// The other box.
        peer: NodeId,
        /// The connection.
        link: LinkId,
        /// True when this side dialled.
        outbound: bool,
        /// The version that the handshake agreed on.
        protocol: ProtocolVersion,
    },
    /// The connection ended.
    LinkDown {
        /// The connection.
        link: LinkId,
    },
    /// A message arrived.
    Frame {
        /// On this connection.
        link: LinkId,
        /// The sender's epoch, version and session.
        envelope: Envelope,
        /// What it says.
        message: Message,
        /// Its payload, if it has one.
        payload: Option<PayloadId>,
    },
    /// A client asks. For writes of data the payload is `PayloadId::Client(op)`.
    Client {
        /// The operation.
        op: OpId,
        /// What it asks.
        request: Request,
    },
    /// The edges of a partial write are merged; `PayloadId::Client(op)` now holds whole blocks.
    EdgesMerged {
        /// The I/O number given in `Action::MergeEdges`.
        io: IoId,
        /// How the reads of the edges ended.
        result: IoResult,
    },
    /// A local read, write, batch, discard, flush, repair, cooling or write of bitmap pages ended. A read's data has been
    /// checked as it asked.
    LocalDone {
        /// The operation.
        io: IoId,
        /// How.
        result: IoResult,
    },
    /// A local read, a merge of edges or a repair found blocks that do not match their checksums, also when read again.
    /// It has ended. A read's data is held as after `LocalDone` (the other blocks of it are good).
    Corrupt {
        /// The operation.
        io: IoId,
        /// Runs of bad blocks, ascending.
        bad: Vec<BlockRange>,
    },
    /// The comparison asked for by `Action::CompareSums` is done.
    SumsCompared {
        /// The I/O number of the read whose sums were compared.
        io: IoId,
        /// Blocks that differ.
        differing: Vec<BlockRange>,
    },
    /// The comparison asked for by `Action::CompareDigests` is done.
    DigestsCompared {
        /// The I/O number of the read whose data was compared.
        io: IoId,
        /// Blocks that differ.
        differing: Vec<BlockRange>,
    },
    /// The durable fence is at least this.
    FencePersisted {
        /// Its epoch.
        epoch: Epoch,
        /// Its version.
        version: ConfigVersion,
    },
    /// `Action::PersistReplicaState` is durable.
    ReplicaStatePersisted {
        /// The I/O number given there.
        io: IoId,
        /// How it ended.
        result: IoResult,
    },
    /// `Action::PersistActivityLog` is durable: the extents are hot.
    ActivityLogPersisted {
        /// The I/O number given there.
        io: IoId,
        /// How it ended.
        result: IoResult,
    },
    /// An operator's or supervisor's wish.
    Control(Control),
}

/// Names a replica in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaName {
    /// The volume.
    pub volume: VolumeId,
    /// This node.
    pub node: NodeId,
}
