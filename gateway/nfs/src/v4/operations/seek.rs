//! SEEK (RFC 7862 §15.11): the next data, or the next hole, of the current file.

use filesystem::engine::Seek;

use crate::access::Wanted;
use crate::ids::Stateid;
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open.
    pub stateid: Stateid,
    /// From which byte on.
    pub offset: u64,
    /// `data_content4`: 0 data, 1 a hole.
    pub what: u32,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { stateid: stateid::decode(decoder)?, offset: decoder.u64()?, what: decoder.u32()? })
    }
}

/// Puts whether there is none before the end of the file, and where it is. Errors: [`Status::NoDevice`] behind the end.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = context.regular_file()?;
    context.expect_access(file, &inode, arguments.stateid, Wanted::Read)?;
    let what = match arguments.what {
        0 => Seek::Data,
        1 => Seek::Hole,
        _ => return Err(Status::UnionNotSupported.into()),
    };
    if arguments.offset >= inode.size {
        return Err(Status::NoDevice.into());
    }
    let found = context.files.seek(file.inode, arguments.offset, what)?;
    let at = found.unwrap_or(inode.size);
    out.bool(at >= inode.size);
    out.u64(at);
    Ok(())
}
