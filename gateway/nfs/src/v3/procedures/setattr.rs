//! SETATTR (RFC 1813 §3.3.2): sets attributes of a file, all that are named or none.

use filesystem::layout::timestamp::Timestamp;

use super::{expect_no_grace, expect_regular};
use crate::access::Wanted;
use crate::ids::Stateid;
use crate::v3::attributes::{Before, check_wishes, decode_time, decode_wishes, put_change, wire_time};
use crate::v3::file_handle::FileHandle;
use crate::v4::attributes::set::Wishes;
use crate::v4::context::{Context, Halt};
use crate::v4::operations::setattr;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Of which file.
    pub file: FileHandle,
    /// The attributes.
    pub wishes: Wishes,
    /// Only if its attributes were changed last at this time.
    pub guard: Option<Timestamp>,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let file = FileHandle::decode(decoder)?;
        Ok(Self { file, wishes: decode_wishes(decoder)?, guard: decoder.option(decode_time)? })
    }
}

/// Puts how the file changed. Errors: [`Status::NotSame`] where the guard does not hold.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = arguments.file.file(context)?;
    context.expect_writable()?;
    if arguments.guard.is_some_and(|guard| wire_time(guard) != wire_time(inode.changed)) {
        return Err(Status::NotSame.into());
    }
    check_wishes(&arguments.wishes)?;
    if arguments.wishes.size.is_some() {
        expect_regular(&inode)?;
        expect_no_grace(context)?;
        context.expect_access(file, &inode, Stateid::ANONYMOUS, Wanted::Write)?;
    }
    context.expect_undelegated(file)?;
    setattr::set(context, file, &inode, &arguments.wishes)?;
    put_change(context, out, file, Before::of(&inode))
}
