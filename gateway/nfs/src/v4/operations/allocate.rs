//! ALLOCATE and DEALLOCATE (RFC 7862 §15.1, §15.4): space for a range of the current file, and a hole in its place. Large
//! ranges take several transactions; the record of the compound is in the last.

use std::ops::Range;

use crate::access::Wanted;
use crate::ids::Stateid;
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// The range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open.
    pub stateid: Stateid,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { stateid: stateid::decode(decoder)?, offset: decoder.u64()?, length: decoder.u64()? })
    }

    fn range(&self) -> Result<Range<u64>, Halt> {
        if self.length == 0 {
            return Err(Status::Invalid.into());
        }
        let end = self.offset.checked_add(self.length).ok_or(Status::Invalid)?;
        Ok(self.offset..end)
    }
}

/// ALLOCATE.
pub fn allocate(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(), Halt> {
    change(context, arguments, false)
}

/// DEALLOCATE. The file keeps its length.
pub fn deallocate(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(), Halt> {
    change(context, arguments, true)
}

fn change(context: &mut Context<'_, '_>, arguments: &Arguments, punches: bool) -> Result<(), Halt> {
    let (file, inode) = context.regular_file()?;
    context.expect_writable()?;
    context.expect_access(file, &inode, arguments.stateid, Wanted::Write)?;
    let (range, now) = (arguments.range()?, context.request.now);
    let whole = match punches {
        true => context.files.punch(file.inode, range, now)?,
        false => context.files.allocate_range(file.inode, range, false, now)?,
    };
    context.effects.changing = true;
    context.effects.again = !whole;
    Ok(())
}
