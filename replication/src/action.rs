//! What a replica orders. The shell carries actions out in the order given; those on one link keep that order on the
//! wire, local operations may complete in any order.

use proto::peer::message::{Envelope, Message, WriteKind};
use proto::{BlockRange, ConfigVersion, Epoch, NodeId};

use crate::config::Command;
use crate::event::{IoId, LinkId, OpId, PayloadId};
use crate::local_copy::{MetaPage, Page, ReadCheck};
use crate::scrub::ScrubReport;

/// Part of a payload: `blocks` blocks from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PayloadSlice {
    /// The whole.
    pub id: PayloadId,
    /// First block of the part, counted from the payload's start.
    pub first: u64,
    /// Blocks in the part.
    pub blocks: u64,
}

/// Why a client's operation was not done, or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// This node does not serve the volume; that one does (NONE: nobody known). The gateway closes the connection:
    /// an operation in flight may or may not have happened.
    NotPrimary(NodeId),
    /// The medium failed, or the content is bad, on every copy that could answer.
    Io,
    /// A copy has no space left; nothing was written.
    NoSpace,
    /// The replica is stopping.
    Stopped,
    /// Too many operations are open (the shell admits fewer than the core bears; a defect if seen).
    TooMany,
}

/// A change that people and programs may want to see.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The role changed; the names are those of `RoleName`.
    Role {
        /// From.
        from: &'static str,
        /// To.
        to: &'static str,
        /// Epoch it acts under.
        epoch: Epoch,
    },
    /// A peer's copy changed state.
    Peer {
        /// The peer.
        node: NodeId,
        /// Its state now: connected, resyncing, in_sync, silent, gone.
        state: &'static str,
    },
    /// Resync of a peer began, went on or ended.
    Resync {
        /// The peer.
        node: NodeId,
        /// Blocks still to look at.
        remaining_blocks: u64,
        /// Blocks sent so far.
        sent_blocks: u64,
        /// True when it ended with the peer in sync.
        done: bool,
    },
    /// A scrub or verify began, went on or ended.
    Scrub {
        /// What it has found so far.
        report: ScrubReport,
        /// It has seen the whole volume.
        done: bool,
    },
    /// A scrub is not begun.
    ScrubRefused {
        /// Why.
        why: &'static str,
    },
    /// The local disk was detached.
    DiskDetached {
        /// True when an error caused it.
        failed: bool,
    },
    /// The local disk is not given up on request.
    DetachRefused {
        /// Why.
        why: &'static str,
    },
    /// A planned switchover could not be done.
    SwitchoverRefused {
        /// Why.
        why: &'static str,
    },
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Keep (`on`) or stop keeping a connection to `peer`, dialling again after failures. Off also closes it.
    Dial {
        /// The other box.
        peer: NodeId,
        /// Keep it.
        on: bool,
    },
    /// Close this connection; a `LinkDown` follows.
    CloseLink {
        /// The connection.
        link: LinkId,
        /// Why, for the log.
        why: &'static str,
    },
    /// Send a message, with a payload if it has one. Never blocks; a link that cannot keep up is closed by the shell.
    Send {
        /// On this connection.
        link: LinkId,
        /// Epoch, version, session.
        envelope: Envelope,
        /// What to say.
        message: Message,
        /// Its payload.
        payload: Option<PayloadSlice>,
    },
    /// Send a message whose payload is the 16-byte digests, one per block, of payload `of`.
    SendDigests {
        /// On this connection.
        link: LinkId,
        /// Epoch, version, session.
        envelope: Envelope,
        /// A `Message::Digest`.
        message: Message,
        /// The data to digest.
        of: PayloadId,
    },
    /// Compare the digests of what read `io` returned with the 16-byte digests in `theirs`, or what it returned with
    /// zeros; answer `DigestsCompared`. Neither payload is released by it.
    CompareDigests {
        /// The read.
        io: IoId,
        /// Blocks compared, in the volume.
        range: BlockRange,
        /// The peer's digests; `None`: those of zeros.
        theirs: Option<PayloadId>,
    },
    /// Send a message whose payload is the 4-byte checksums (little-endian), one per block, that read `of` has verified.
    SendSums {
        /// On this connection.
        link: LinkId,
        /// Epoch, version, session.
        envelope: Envelope,
        /// A `Message::Sums`.
        message: Message,
        /// The read.
        of: IoId,
    },
    /// Compare the checksums that read `io` has verified with the 4-byte ones in `theirs`; answer `SumsCompared`.
    /// Neither payload is released by it.
    CompareSums {
        /// The read.
        io: IoId,
        /// Blocks compared, in the volume.
        range: BlockRange,
        /// The peer's checksums.
        theirs: PayloadId,
    },
    /// Read blocks into `PayloadId::Io(io)`, with their checksums beside them. Answered by `LocalDone` or `Corrupt`.
    ReadLocal {
        /// Its number.
        io: IoId,
        /// Blocks.
        range: BlockRange,
        /// What to make of checksums.
        check: ReadCheck,
    },
    /// Put a peer's copy of blocks in the place of a bad one here, where it matches our own sum (`CopyOp::Repair`).
    /// Answered by `LocalDone` or `Corrupt`.
    RepairLocal {
        /// Its number.
        io: IoId,
        /// Blocks.
        range: BlockRange,
        /// The peer's data; exactly as long as the range.
        payload: PayloadId,
    },
    /// Set the checksums that blocks should have, those held with the payload, and leave the blocks as they are
    /// (`CopyOp::Expect`). Answered by `LocalDone`.
    ExpectLocal {
        /// Its number.
        io: IoId,
        /// Blocks; their extents are hot.
        range: BlockRange,
        /// Data with as many blocks, which is not to be written, and the checksums.
        payload: PayloadId,
        /// What fits these checksums is not the right data either: set others in their place (`proto::checksum::of_lost`).
        lost: bool,
    },
    /// Make these extents cold (`CopyOp::Cool`). Answered by `LocalDone`.
    CoolExtents {
        /// Its number.
        io: IoId,
        /// Extent numbers, ascending.
        extents: Vec<u64>,
        /// Pages of dirty bitmaps to be durable first.
        bitmaps: Vec<(MetaPage, Page)>,
    },
    /// Write pages of dirty bitmaps, each durable before the next. Answered by `LocalDone`.
    WriteBitmap {
        /// Its number.
        io: IoId,
        /// The pages.
        pages: Vec<(MetaPage, Page)>,
    },
    /// Write, zero or discard blocks. The checksums of data are those held with the payload: computed where a client's
    /// data entered, or brought by the frame and verified on receipt.
    WriteLocal {
        /// Its number.
        io: IoId,
        /// Blocks.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// On stable media before `LocalDone`.
        fua: bool,
        /// The data, for `WriteKind::Data`; exactly as long as the range.
        payload: Option<PayloadId>,
    },
    /// Write ordered groups, flushing after each.
    WriteBatchLocal {
        /// Its number.
        io: IoId,
        /// The groups.
        groups: Vec<Vec<BlockRange>>,
        /// The data of all ranges, in order.
        payload: PayloadId,
    },
    /// Flush the local disk.
    FlushLocal {
        /// Its number.
        io: IoId,
    },
    /// Read the edge blocks of a partial write, merge the client's bytes into them, and make `PayloadId::Client(op)` the
    /// whole blocks; answer `EdgesMerged`.
    MergeEdges {
        /// Its number.
        io: IoId,
        /// The operation.
        op: OpId,
        /// Blocks.
        range: BlockRange,
    },
    /// Like `MergeEdges`, with the old content of all blocks from a peer's copy; answer `EdgesMerged`.
    MergeFetched {
        /// Its number.
        io: IoId,
        /// The operation.
        op: OpId,
        /// Blocks.
        range: BlockRange,
        /// Their old content; exactly as long as the range. Not released by this.
        old: PayloadId,
    },
    /// Make these extents hot durably; answer `ActivityLogPersisted`.
    PersistActivityLog {
        /// Its number.
        io: IoId,
        /// Extent numbers.
        extents: Vec<u64>,
    },
    /// Record in the store's superblock; answer `ReplicaStatePersisted`.
    PersistReplicaState {
        /// Its number.
        io: IoId,
        /// Newest configuration version at which the copy knows to be in sync.
        last_in_sync: ConfigVersion,
        /// The copy may hold less than it acknowledged.
        suspect: bool,
    },
    /// Raise the node's durable fence of this volume; answer `FencePersisted`.
    PersistFence {
        /// Epoch.
        epoch: Epoch,
        /// Version.
        version: ConfigVersion,
    },
    /// Propose to Raft. No answer: the outcome shows in a later `Event::Config`. May be lost; the replica repeats it.
    Propose(Command),
    /// The bytes are no longer needed.
    Release(PayloadId),
    /// A client's operation is done. A read's data is released after the reply by the shell.
    Complete {
        /// The operation.
        op: OpId,
        /// What holds a read's data: a local read, or a frame from a peer.
        data: Option<PayloadId>,
    },
    /// A client's operation failed; its payload, if any, is released separately.
    Refuse {
        /// The operation.
        op: OpId,
        /// Why.
        why: Refusal,
    },
    /// The local disk is not used any more; the shell closes it once its operations have ended. With `failed` it is
    /// marked as failed in the node's own state.
    DetachDisk {
        /// An error caused it.
        failed: bool,
    },
    /// Remember with the copy, over restarts, how far scrubs have come. Nobody waits for it, and it may be lost.
    RecordScrub {
        /// One that has just ended.
        ended: Option<ScrubReport>,
        /// The one in the background, if it has yet to end.
        under_way: Option<ScrubReport>,
    },
    /// Tell watchers.
    Notify(Notice),
    /// The orderly stop asked for by `Control::Stop` is complete.
    Stopped,
}
