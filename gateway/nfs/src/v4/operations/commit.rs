//! COMMIT (RFC 8881 §18.3): what was written into the current file becomes durable. That waits for the device, so it is no part
//! of a transaction: here is what comes before and after.

use crate::ids::FileId;
use crate::v4::context::{Context, Halt};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The range; all of the file becomes durable whatever it says, which is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// First byte.
    pub offset: u64,
    /// Bytes; 0 for all behind the first.
    pub count: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { offset: decoder.u64()?, count: decoder.u32()? })
    }
}

/// Gives the file. Errors: [`Status::Invalid`] for a range that cannot be.
pub fn begin(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<FileId, Halt> {
    let (file, _) = context.regular_file()?;
    if arguments.offset.checked_add(u64::from(arguments.count)).is_none() {
        return Err(Status::Invalid.into());
    }
    Ok(file)
}

/// The result.
pub fn put(out: &mut Encoder, write_verifier: &[u8; 8]) {
    out.fixed(write_verifier);
}
