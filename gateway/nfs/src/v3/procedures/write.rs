//! WRITE (RFC 1813 §3.3.7): into a file, to be durable at once or by a later COMMIT.

use bytes::Bytes;

use super::{expect_no_grace, expect_regular};
use crate::ids::{FileId, Stateid};
use crate::v3::attributes::{Before, put_change};
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt};
use crate::v4::operations::write::{self, DATA_BYTES_MAX, Stable};
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Into which file.
    pub file: FileHandle,
    /// From which byte on.
    pub offset: u64,
    /// How durable.
    pub stable: Stable,
    /// The bytes, in the buffer they came in.
    pub data: Bytes,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Into which file.
    pub file: FileId,
    before: Before,
}

impl Arguments {
    /// From the wire. Errors: also a count that is not that of the data.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (file, offset, count) = (FileHandle::decode(decoder)?, decoder.u64()?, decoder.u32()?);
        let stable = Stable::decode(decoder)?;
        let data = decoder.opaque(DATA_BYTES_MAX)?;
        match u32::try_from(data.len()) == Ok(count) {
            true => Ok(Self { file, offset, stable, data }),
            false => Err(XdrError::BadValue { of: "the count of data", value: count }),
        }
    }
}

/// Writes, if the caller may; the owner of the file always. What has to be on the device first is said by the effects.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<Written, Halt> {
    let (file, inode) = arguments.file.file(context)?;
    expect_regular(&inode)?;
    expect_no_grace(context)?;
    let Arguments { offset, stable, data, .. } = arguments;
    let anonymous =
        write::Arguments { stateid: Stateid::ANONYMOUS, offset: *offset, stable: *stable, data: data.clone() };
    write::write(context, (file, &inode), &anonymous)?;
    Ok(Written { file, before: Before::of(&inode) })
}

/// Puts how the file changed, how much was written, and how durable that is.
pub fn put(
    context: &mut Context<'_, '_>,
    arguments: &Arguments,
    written: Written,
    out: &mut Encoder,
) -> Result<(), Halt> {
    put_change(context, out, written.file, written.before)?;
    out.u32(arguments.data.len() as u32);
    out.u32(arguments.stable.granted() as u32);
    out.fixed(&context.request.service.write_verifier);
    Ok(())
}
