//! Replication messages. A message never holds payload bytes: those travel beside it in the frame.
//!
//! The cluster, the volume and the two nodes are fixed by the connection's handshake (`codec`); every message carries
//! the sender's epoch, configuration version and session in its [`Envelope`].

use crate::{BlockRange, Boot, ConfigVersion, DiskId, Epoch, Incarnation, SessionId, Timestamp};

/// What every message carries beside its own content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Epoch the sender acts under.
    pub epoch: Epoch,
    /// Newest configuration version the sender has applied.
    pub version: ConfigVersion,
    /// Session the message belongs to; a message of another session is dropped.
    pub session: SessionId,
}

/// Position of an operation in one session's ordered stream; starts at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// What the data that a resync brings is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Worth {
    /// To be stored.
    #[default]
    Sound,
    /// The source's own copy of these blocks is bad, and the checksums that come with it are those it should have. The
    /// target may hold the right data: nobody is known to have written since the target had everything.
    Bad,
    /// The same, but the target lacks writes to these blocks: its data is old even where it fits the checksums, which may
    /// be old themselves. Nobody has the right data.
    Lost,
}

/// What a write does to its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteKind {
    /// Stores the payload, which is exactly as long as the range.
    Data,
    /// Stores zeros, keeping the space allocated.
    Zeroes,
    /// Frees the space; the range then reads as zeros.
    Discard,
}

/// Why a peer refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NackReason {
    /// The receiver is fenced at, or knows, a newer epoch or version than the sender's.
    StaleEpoch,
    /// The receiver's disk has failed or is detached.
    DiskFailed,
    /// The receiver does not hold the copy that the sender means.
    WrongDisk,
    /// The receiver has not yet learnt of the sender's epoch; try again shortly.
    NotYet,
}

/// Extents whose content a copy cannot vouch for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Uncertain {
    /// Every one: the activity log could not be read, or the peer's version has none.
    All,
    /// These runs of extents, ascending and apart: first extent, number of extents. At most [`UNCERTAIN_RUNS_MAX`].
    Runs(Vec<(u32, u32)>),
}

/// Runs in one [`Uncertain`]; a sender joins the nearest ones when it has more.
pub const UNCERTAIN_RUNS_MAX: usize = 8192;

/// One replication message. `P → S` is primary to secondary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// P → S: opens a session. S drains and forgets any older one before it answers.
    Hello {
        /// The primary's run.
        incarnation: Incarnation,
        /// The copy the primary expects on the other side.
        disk_id: DiskId,
        /// The primary's clock, to be echoed.
        stamp: Timestamp,
    },
    /// S → P: the session stands.
    HelloReply {
        /// The secondary's run.
        incarnation: Incarnation,
        /// The secondary's power-on.
        boot: Boot,
        /// The secondary's copy.
        disk_id: DiskId,
        /// Newest configuration version at which this copy knows it was in sync (0: never).
        last_in_sync: ConfigVersion,
        /// True when the copy may hold less than it acknowledged (unclean power loss, a disk failure).
        suspect: bool,
        /// The secondary's clock, to be echoed by the first beacon.
        stamp: Timestamp,
        /// Extents whose content is in doubt since a crash or since an epoch ended: they are compared, whatever the
        /// primary's bitmap says. A version 1 peer counts as [`Uncertain::All`].
        uncertain: Uncertain,
    },
    /// Either way: refusal; the session is over.
    Nack {
        /// Why.
        reason: NackReason,
    },
    /// P → S: apply one write. Payload: the data, for [`WriteKind::Data`].
    Write {
        /// Stream position, named by the ack.
        seq: Seq,
        /// Blocks written.
        range: BlockRange,
        /// Effect.
        kind: WriteKind,
        /// True when it must be on stable media before the ack.
        fua: bool,
    },
    /// P → S: ordered groups with a flush between them and after the last. Payload: the data of all ranges, in order.
    WriteBatch {
        /// Stream position, named by the ack.
        seq: Seq,
        /// The groups; each is a list of ranges that may land in any order.
        groups: Vec<Vec<BlockRange>>,
    },
    /// S → P: the write, batch, resync data or flush `seq` is complete at S.
    Ack {
        /// The operation.
        seq: Seq,
    },
    /// P → S: put everything completed so far on stable media.
    Flush {
        /// Stream position, named by the ack.
        seq: Seq,
    },
    /// P → S (version 2): a write to these extents is about to be sent; S may log them as hot at once.
    Heat {
        /// Extent numbers.
        extents: Vec<u64>,
    },
    /// P → S (version 2): read these blocks from S's disk, verified. Answered by `ReadReply` or `ReadFailed`.
    ReadRequest {
        /// Stream position, named by the reply.
        seq: Seq,
        /// Blocks asked for.
        range: BlockRange,
    },
    /// S → P (version 2): the blocks asked for; every one has been verified. Payload: the data, with its checksums.
    ReadReply {
        /// The request.
        seq: Seq,
        /// Blocks read.
        range: BlockRange,
    },
    /// S → P (version 2): S's own copy of some of these blocks is bad.
    ReadFailed {
        /// The request.
        seq: Seq,
        /// The bad blocks.
        bad: Vec<BlockRange>,
    },
    /// P → S (version 2): verify these blocks and tell their checksums. Answered by `Sums`, or by `ReadFailed`.
    SumsRequest {
        /// Stream position, named by the reply.
        seq: Seq,
        /// Blocks asked for.
        range: BlockRange,
    },
    /// S → P (version 2): checksums of verified blocks. Payload: 4 bytes (little-endian) per block.
    Sums {
        /// The request.
        seq: Seq,
        /// Blocks described.
        range: BlockRange,
    },
    /// P → S: asks for a lease. Sent every beacon interval, and keeps the connection alive.
    Beacon {
        /// Number of the beacon within the session, from 1.
        number: u64,
        /// The newest stamp of S that P has heard (from HelloReply or BeaconAck).
        echo: Timestamp,
        /// Operations of the stream up to here are complete on every required copy (version 2; 0 from version 1): S may
        /// let their extents go cold.
        settled: Seq,
    },
    /// S → P: answers a beacon.
    BeaconAck {
        /// The beacon answered.
        number: u64,
        /// True when S granted the lease (it will not take over for the grace period).
        granted: bool,
        /// S's clock.
        stamp: Timestamp,
    },
    /// P → S: P serves no more under this epoch; every grant up to beacon `last_beacon` is ended.
    LeaseRelease {
        /// The last beacon whose grant ends.
        last_beacon: u64,
    },
    /// P → S: the copy is made in sync by this session. Live writes follow from here on.
    ResyncBegin,
    /// P → S: asks for the digests of a range, one of 16 bytes per block, read from S's disk.
    DigestRequest {
        /// Stream position, named by the reply.
        seq: Seq,
        /// Blocks asked for.
        range: BlockRange,
    },
    /// S → P: answers a digest request. Payload: 16 bytes per block.
    Digest {
        /// The request.
        seq: Seq,
        /// Blocks described.
        range: BlockRange,
    },
    /// P → S: stores resynced data, on the same ordered stream as live writes. Payload as for Write.
    ResyncData {
        /// Stream position, named by the ack.
        seq: Seq,
        /// Blocks written.
        range: BlockRange,
        /// Data, or Discard for a hole.
        kind: WriteKind,
        /// What the data is worth. Version 1 has sound data only.
        worth: Worth,
    },
    /// P → S: nothing is dirty any more; from here on P waits for S's acks, and S grants leases.
    PreSync,
    /// S → P: S has entered PreSync.
    PreSyncAck,
    /// P → S: a planned switchover to S follows; make ready to serve.
    HandoffPrepare,
    /// S → P: S has nothing in flight and is ready.
    HandoffReady,
}
