//! What can be wrong with a message or with the bytes of a frame.

use thiserror::Error;

use super::super::message::UNCERTAIN_RUNS_MAX;
use super::{GROUPS_MAX, HEAT_EXTENTS_MAX, PAYLOAD_BYTES_MAX, RANGES_MAX};

/// A message that cannot be a frame, whichever way it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A range that reaches past any possible volume.
    #[error("range of {count} blocks from {start} is out of bounds")]
    RangeOverflow {
        /// First block.
        start: u64,
        /// Number of blocks.
        count: u64,
    },
    /// A range of no blocks.
    #[error("empty range at block {start}")]
    EmptyRange {
        /// Where.
        start: u64,
    },
    /// The payload is not what the message calls for.
    #[error("payload of {found} bytes where the message calls for {expected}")]
    PayloadLength {
        /// Bytes the message calls for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The payload, or the one that would answer the request, is over [`PAYLOAD_BYTES_MAX`].
    #[error("payload of {bytes} bytes is over the bound of {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong {
        /// Bytes.
        bytes: u64,
    },
    /// More than [`GROUPS_MAX`] groups.
    #[error("batch of {found} groups, at most {GROUPS_MAX} are allowed")]
    TooManyGroups {
        /// Groups.
        found: usize,
    },
    /// More than [`RANGES_MAX`] ranges.
    #[error("{found} ranges, at most {RANGES_MAX} are allowed")]
    TooManyRanges {
        /// Ranges.
        found: usize,
    },
    /// More than [`HEAT_EXTENTS_MAX`] extents.
    #[error("{found} extents, at most {HEAT_EXTENTS_MAX} are allowed")]
    TooManyExtents {
        /// Extents.
        found: usize,
    },
    /// More than [`UNCERTAIN_RUNS_MAX`] runs of extents.
    #[error("{found} runs of extents, at most {UNCERTAIN_RUNS_MAX} are allowed")]
    TooManyRuns {
        /// Runs.
        found: usize,
    },
    /// A run of extents that is empty, begins before the one before it has ended, or ends past any extent.
    #[error("run of {count} extents from {first} is empty or out of order")]
    BadRun {
        /// First extent.
        first: u32,
        /// Number of extents.
        count: u32,
    },
    /// The number of block checksums is not that of the payload's blocks.
    #[error("{found} block checksums where the message calls for {expected}")]
    SumCount {
        /// Checksums the message calls for; 0 if it carries none.
        expected: u64,
        /// Checksums there are.
        found: u64,
    },
    /// Blocks that are known to be bad must come with data.
    #[error("blocks known to be bad without data")]
    UnsoundWithoutData,
    /// The agreed version cannot say this.
    #[error("message type {message_type} cannot say this in protocol version {protocol}")]
    NotInVersion {
        /// The message type.
        message_type: u8,
        /// The agreed version.
        protocol: u16,
    },
}

/// Bytes that are no frame. The connection cannot go on: there is no way to find the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It does not begin like a frame.
    #[error("no frame: it begins with {found:02x?}")]
    Magic {
        /// First bytes.
        found: [u8; 4],
    },
    /// The header is damaged.
    #[error("checksum of the header is wrong")]
    HeaderChecksum,
    /// A version other than the agreed one.
    #[error("protocol version {found} where {agreed} was agreed")]
    Version {
        /// What the frame says.
        found: u8,
        /// What the handshake agreed on.
        agreed: u16,
    },
    /// A message type that this version does not have.
    #[error("unknown message type {found}")]
    UnknownType {
        /// The type.
        found: u8,
    },
    /// A write kind or nack reason that this version does not have.
    #[error("unknown kind {found} in message type {message_type}")]
    UnknownKind {
        /// The kind.
        found: u8,
        /// The message type.
        message_type: u8,
    },
    /// A field that the message does not use is not zero, or a flag is none of its values.
    #[error("unused fields of message type {message_type} are not zero")]
    NotCanonical {
        /// The message type.
        message_type: u8,
    },
    /// The body's length cannot be right.
    #[error("body of {found} bytes in message type {message_type}")]
    BodyLength {
        /// Bytes.
        found: u32,
        /// The message type.
        message_type: u8,
    },
    /// The body is damaged.
    #[error("checksum of the body is wrong")]
    BodyChecksum,
    /// The payload is damaged.
    #[error("checksum of the payload is wrong")]
    PayloadChecksum,
    /// A block of the payload is not what its checksum says.
    #[error("checksum of block {block} is wrong")]
    BlockChecksum {
        /// The block.
        block: u64,
    },
    /// The message says something impossible.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}
