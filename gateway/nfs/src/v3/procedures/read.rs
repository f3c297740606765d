//! READ (RFC 1813 §3.3.6): data of a file. What is read waits for the device: here is what comes before and after.

use bytes::Bytes;
use filesystem::layout::inode::Inode;

use super::{expect_no_grace, expect_regular};
use crate::access::{Wanted, is_permitted};
use crate::ids::{FileId, Stateid};
use crate::state::stateids::Io;
use crate::v3::attributes::put_now;
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// From which file.
    pub file: FileHandle,
    /// From which byte on.
    pub offset: u64,
    /// Bytes, at most.
    pub length: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { file: FileHandle::decode(decoder)?, offset: decoder.u64()?, length: decoder.u32()? })
    }
}

/// Looks whether the caller may read, and gives the file and the bytes to read.
pub fn begin(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(FileId, usize), Halt> {
    let (file, inode) = arguments.file.file(context)?;
    expect_regular(&inode)?;
    expect_no_grace(context)?;
    let client = Some(context.request.client);
    context.state.files.check_io(client, file, &Stateid::ANONYMOUS, Io::Read)?;
    if !may_read(context, file, &inode)? {
        return Err(Status::Access.into());
    }
    Ok((file, arguments.length.min(context.request.service.io_bytes_max) as usize))
}

/// The owner may always, as every Unix lets a process that has the file open; and whoever may run a program has to read it
/// (RFC 1813 §4.4).
fn may_read(context: &mut Context<'_, '_>, file: FileId, inode: &Inode) -> Result<bool, Halt> {
    let (caller, of) = (context.request.caller, (file.inode, inode));
    Ok(caller.owns(inode)
        || is_permitted(context.files, caller, of, Wanted::Read)?
        || is_permitted(context.files, caller, of, Wanted::Execute)?)
}

/// Puts the attributes of the file that data was read of, and gives its size.
pub fn put_attributes(context: &mut Context<'_, '_>, file: FileId, out: &mut Encoder) -> Result<u64, Halt> {
    put_now(context, out, file)?;
    Ok(context.files.stat(file.inode)?.size)
}

/// Puts the data behind the attributes.
pub fn put_data(out: &mut Encoder, at_end: bool, data: Bytes) {
    out.u32(data.len() as u32);
    out.bool(at_end);
    out.payload(data);
}
