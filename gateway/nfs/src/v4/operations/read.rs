//! READ and READ_PLUS (RFC 8881 §18.22, RFC 7862 §15.10): data of the current file. What is read waits for the device, so it is
//! no part of a transaction: here is what comes before and after.

use bytes::Bytes;

use crate::access::Wanted;
use crate::ids::{FileId, Stateid};
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::xdr::{Decoder, Encoder, XdrError};

/// `data_content4`: data, or a hole.
const CONTENT_DATA: u32 = 0;
const CONTENT_HOLE: u32 = 1;

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open.
    pub stateid: Stateid,
    /// From which byte on.
    pub offset: u64,
    /// Bytes, at most.
    pub length: u32,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Data.
    Data(Bytes),
    /// So many bytes that read as zeros.
    Hole(u64),
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { stateid: stateid::decode(decoder)?, offset: decoder.u64()?, length: decoder.u32()? })
    }
}

/// Looks whether the caller may read, and gives the file with its size and the bytes to read.
pub fn begin(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(FileId, u64, usize), Halt> {
    let (file, inode) = context.regular_file()?;
    context.expect_access(file, &inode, arguments.stateid, Wanted::Read)?;
    let length = arguments.length.min(context.request.service.io_bytes_max);
    Ok((file, inode.size, length as usize))
}

/// The result of READ.
pub fn put(out: &mut Encoder, at_end: bool, data: Bytes) {
    out.bool(at_end);
    out.payload(data);
}

/// The result of READ_PLUS: one piece.
pub fn put_plus(out: &mut Encoder, at_end: bool, offset: u64, found: Found) {
    out.bool(at_end);
    match found {
        // Nothing at all.
        Found::Data(data) if data.is_empty() => out.u32(0),
        Found::Data(data) => {
            out.u32(1);
            out.u32(CONTENT_DATA);
            out.u64(offset);
            out.payload(data);
        }
        Found::Hole(length) => {
            out.u32(1);
            out.u32(CONTENT_HOLE);
            out.u64(offset);
            out.u64(length);
        }
    }
}
