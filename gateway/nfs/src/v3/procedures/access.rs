//! ACCESS (RFC 1813 §3.3.4): what the caller may do with a file.

use crate::v3::attributes::put_after;
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::v4::operations::access;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Of which file.
    pub file: FileHandle,
    /// One bit each; they are those of NFSv4.
    pub asked: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { file: FileHandle::decode(decoder)?, asked: decoder.u32()? })
    }
}

/// Puts the attributes, and which of the bits are granted.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = arguments.file.file(context)?;
    let (supported, granted) = access::of_file(context, file, &inode)?;
    put_after(context, out, file, &inode);
    out.u32(arguments.asked & supported & granted);
    Ok(())
}
