//! COMMIT (RFC 1813 §3.3.21): what was written into a file becomes durable. That waits for the device: here is what comes
//! before and after.

use super::expect_regular;
use crate::ids::FileId;
use crate::v3::attributes::{Before, put_change};
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The range; all of the file becomes durable whatever it says, which is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Of which file.
    pub file: FileHandle,
    /// First byte.
    pub offset: u64,
    /// Bytes; 0 for all behind the first.
    pub count: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { file: FileHandle::decode(decoder)?, offset: decoder.u64()?, count: decoder.u32()? })
    }
}

/// Gives the file. Errors: [`Status::Invalid`] for a range that cannot be, and for what has no data.
pub fn begin(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(FileId, Before), Halt> {
    let (file, inode) = arguments.file.file(context)?;
    expect_regular(&inode)?;
    if arguments.offset.checked_add(u64::from(arguments.count)).is_none() {
        return Err(Status::Invalid.into());
    }
    Ok((file, Before::of(&inode)))
}

/// Puts how the file changed, and the verifier.
pub fn put(context: &mut Context<'_, '_>, (file, before): (FileId, Before), out: &mut Encoder) -> Result<(), Halt> {
    put_change(context, out, file, before)?;
    out.fixed(&context.request.service.write_verifier);
    Ok(())
}
