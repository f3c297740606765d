//! What a request header asks for, and whether it may: flags, lengths and ranges against what was agreed.
//!
//! Pure. A request that breaks a rule is refused with the protocol's error; the connection goes on.

use block_device::ByteRange;

use crate::codec::{Cookie, ErrorNumber, RequestHeader, command, command_flag};
use crate::export::Agreed;
use crate::{PAYLOAD_BYTES_MAX, STATUS_BYTES_MAX, STATUS_EXTENTS_MAX};

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read `range`. With `fragments` the reply may come in several chunks.
    Read {
        /// False when the client set `NBD_CMD_FLAG_DF`.
        fragments: bool,
    },
    /// Write the payload.
    Write,
    /// Put earlier writes on stable media.
    Flush,
    /// Free `range`.
    Trim,
    /// Make `range` read as zeros.
    WriteZeroes {
        /// The client set `NBD_CMD_FLAG_NO_HOLE`.
        keep_allocated: bool,
    },
    /// Describe the allocation of `range`.
    BlockStatus {
        /// The client set `NBD_CMD_FLAG_REQ_ONE`: exactly one extent.
        one: bool,
    },
}

/// A request that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Echoed in the reply.
    pub cookie: Cookie,
    /// What to do.
    pub operation: Operation,
    /// Where; inside the export. Empty for FLUSH.
    pub range: ByteRange,
    /// On stable media before the reply.
    pub fua: bool,
}

impl Request {
    /// Bytes of memory the request may hold, from its header to the last byte of its reply.
    pub fn cost_bytes(&self) -> u64 {
        match self.operation {
            Operation::Read { .. } | Operation::Write => self.range.length,
            Operation::BlockStatus { .. } => STATUS_EXTENTS_MAX as u64 * 8,
            Operation::Flush | Operation::Trim | Operation::WriteZeroes { .. } => 0,
        }
    }
}

/// What to do about a request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start it. When it is a WRITE of `range.length > 0`, that many bytes of payload come first.
    Start(Request),
    /// Skip `payload_bytes`, then answer with the error.
    Reject {
        /// Echoed in the reply.
        cookie: Cookie,
        /// The protocol's error.
        error: ErrorNumber,
        /// Text for people, where the reply can carry it.
        reason: &'static str,
        /// Payload that follows the header.
        payload_bytes: u32,
    },
    /// The client is done: finish what is in flight, then close.
    Disconnect,
}

/// Judges `header` against what was agreed.
pub fn decide(header: &RequestHeader, agreed: &Agreed) -> Decision {
    let reject = |error, reason| {
        let payload_bytes = if header.command == command::WRITE { header.length } else { 0 };
        Decision::Reject { cookie: header.cookie, error, reason, payload_bytes }
    };
    let (operation, allowed_flags) = match header.command {
        command::DISC => return Decision::Disconnect,
        command::READ => {
            let fragments = header.flags & command_flag::DF == 0;
            (Operation::Read { fragments }, if agreed.structured_replies { command_flag::DF } else { 0 })
        }
        command::WRITE => (Operation::Write, 0),
        command::FLUSH => (Operation::Flush, 0),
        command::TRIM => (Operation::Trim, 0),
        command::WRITE_ZEROES => {
            let keep_allocated = header.flags & command_flag::NO_HOLE != 0;
            (Operation::WriteZeroes { keep_allocated }, command_flag::NO_HOLE)
        }
        command::BLOCK_STATUS if agreed.base_allocation => {
            (Operation::BlockStatus { one: header.flags & command_flag::REQ_ONE != 0 }, command_flag::REQ_ONE)
        }
        command::BLOCK_STATUS => return reject(ErrorNumber::Invalid, "no metadata context was negotiated"),
        _ => return reject(ErrorNumber::Invalid, "unknown command"),
    };
    // FUA is legal on every command and ignored where nothing is written ("Command flags").
    if header.flags & !(allowed_flags | command_flag::FUA) != 0 {
        return reject(ErrorNumber::Invalid, "command flags that were not negotiated");
    }
    let range = ByteRange { offset: header.offset, length: u64::from(header.length) };
    match check_range(operation, range, agreed.export.size_bytes) {
        Ok(range) => Decision::Start(Request {
            cookie: header.cookie,
            operation,
            range,
            fua: header.flags & command_flag::FUA != 0,
        }),
        Err((error, reason)) => reject(error, reason),
    }
}

fn check_range(
    operation: Operation,
    range: ByteRange,
    size_bytes: u64,
) -> Result<ByteRange, (ErrorNumber, &'static str)> {
    let too_long = range.length > u64::from(PAYLOAD_BYTES_MAX);
    let inside = range.offset.checked_add(range.length).is_some_and(|end| end <= size_bytes);
    match operation {
        Operation::Flush if range != (ByteRange { offset: 0, length: 0 }) => {
            Err((ErrorNumber::Invalid, "FLUSH takes no range"))
        }
        Operation::Flush => Ok(range),
        // "The server MUST NOT return this error if NBD_CMD_FLAG_DF is not set" ("Error values").
        Operation::Read { fragments: false } if too_long => {
            Err((ErrorNumber::Overflow, "longer than one chunk may be"))
        }
        Operation::Read { .. } | Operation::Write if too_long => {
            Err((ErrorNumber::Invalid, "longer than the maximum block size"))
        }
        Operation::Write | Operation::WriteZeroes { .. } if !inside => {
            Err((ErrorNumber::NoSpace, "past the end of the export"))
        }
        _ if !inside => Err((ErrorNumber::Invalid, "past the end of the export")),
        Operation::BlockStatus { .. } if range.length == 0 => {
            Err((ErrorNumber::Invalid, "BLOCK_STATUS of an empty range"))
        }
        Operation::BlockStatus { .. } => {
            Ok(ByteRange { offset: range.offset, length: range.length.min(STATUS_BYTES_MAX) })
        }
        _ => Ok(range),
    }
}
