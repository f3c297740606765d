//! COPY (RFC 7862 §15.2): from the saved file into the current one, at once and without a copy through the client. It may stop
//! early: the client asks for the rest. Data waits for the device, so it is no part of a transaction: here is what comes before and
//! after.

use crate::access::Wanted;
use crate::ids::{FileId, Stateid};
use crate::v4::context::{Context, Halt, Target};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Bytes that one COPY copies at most: a client waits for its reply.
pub const COPY_BYTES_MAX: u64 = 16 << 20;
/// Servers that a client may name, of which none is ours.
const SERVERS_MAX: usize = 16;
const SERVER_BYTES_MAX: usize = 1024;
/// `FILE_SYNC4`.
const FILE_SYNC: u32 = 2;

/// What is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open of the saved file.
    pub from_stateid: Stateid,
    /// By whose open of the current one.
    pub to_stateid: Stateid,
    /// From which byte on.
    pub from: u64,
    /// To which byte on.
    pub to: u64,
    /// Bytes; 0 for all.
    pub count: u64,
    /// The bytes have to follow one another in time.
    pub consecutive: bool,
    /// From another server.
    pub from_elsewhere: bool,
}

/// What one step copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// From this file.
    pub source: FileId,
    /// Into this one.
    pub target: FileId,
    /// Bytes.
    pub count: u64,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (from_stateid, to_stateid) = (stateid::decode(decoder)?, stateid::decode(decoder)?);
        let (from, to, count) = (decoder.u64()?, decoder.u64()?, decoder.u64()?);
        let consecutive = decoder.bool()?;
        let _synchronous = decoder.bool()?;
        let servers = decoder.array(SERVERS_MAX, skip_server)?;
        Ok(Self { from_stateid, to_stateid, from, to, count, consecutive, from_elsewhere: !servers.is_empty() })
    }
}

/// `netloc4`.
fn skip_server(decoder: &mut Decoder) -> Result<(), XdrError> {
    match decoder.u32()? {
        1 | 2 => drop(decoder.opaque(SERVER_BYTES_MAX)?),
        3 => {
            decoder.opaque(SERVER_BYTES_MAX)?;
            decoder.opaque(SERVER_BYTES_MAX)?;
        }
        value => return Err(XdrError::BadValue { of: "netloc_type4", value }),
    }
    Ok(())
}

/// Looks whether the caller may. Errors: [`Status::Invalid`] behind the end of the source, and for ranges of one file that
/// overlap; [`Status::NotSupported`] from another server.
pub fn begin(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<Plan, Halt> {
    if arguments.from_elsewhere {
        return Err(Status::NotSupported.into());
    }
    let (saved, _) = context.at.saved.ok_or(Status::NoFileHandle)?;
    let (target, target_inode) = context.regular_file()?;
    let Target::File(source, source_inode) = context.target_of(saved)? else { return Err(Status::IsDirectory.into()) };
    if source_inode.mode.kind() != Some(filesystem::layout::file_kind::FileKind::Regular) {
        return Err(Status::WrongType.into());
    }
    context.expect_writable()?;
    context.expect_access(target, &target_inode, arguments.to_stateid, Wanted::Write)?;
    context.expect_access_to_saved(source, &source_inode, arguments.from_stateid, Wanted::Read)?;
    let left = source_inode.size.checked_sub(arguments.from).ok_or(Status::Invalid)?;
    // More than there is cannot be asked for by name (§15.2.3); all of the rest can.
    if arguments.count > left {
        return Err(Status::Invalid.into());
    }
    let wanted = if arguments.count == 0 { left } else { arguments.count };
    let ends = (arguments.from.checked_add(wanted), arguments.to.checked_add(wanted));
    let (Some(from_end), Some(to_end)) = ends else { return Err(Status::Invalid.into()) };
    if source == target && arguments.from < to_end && arguments.to < from_end {
        return Err(Status::Invalid.into());
    }
    Ok(Plan { source, target, count: wanted.min(COPY_BYTES_MAX) })
}

/// The result: so many bytes are copied, and durable.
pub fn put(out: &mut Encoder, copied: u64, write_verifier: &[u8; 8]) {
    // No stateid: nothing goes on behind the reply.
    out.u32(0);
    out.u64(copied);
    out.u32(FILE_SYNC);
    out.fixed(write_verifier);
    out.bool(true);
    out.bool(true);
}
