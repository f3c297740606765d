//! WRITE (RFC 8881 §18.32): into the current file, to be durable at once or by a later COMMIT.

use bytes::Bytes;
use filesystem::engine::AttributeChanges;
use filesystem::layout::inode::Inode;

use super::setattr::without_privileges;
use crate::access::Wanted;
use crate::ids::{FileId, Stateid};
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The most bytes of one WRITE; the session's own bound is lower.
pub const DATA_BYTES_MAX: usize = 4 << 20;
/// So much data is made durable with the transaction of its record; more goes to the device by itself first.
pub const WITH_TRANSACTION_BYTES_MAX: usize = 128 << 10;

/// How durable data has to be before it is acknowledged (`stable_how4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stable {
    /// Not at all.
    Unstable = 0,
    /// The data.
    Data = 1,
    /// Data and attributes: what we do for the one before, too.
    File = 2,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open.
    pub stateid: Stateid,
    /// From which byte on.
    pub offset: u64,
    /// How durable.
    pub stable: Stable,
    /// The bytes, in the buffer they came in.
    pub data: Bytes,
}

impl Stable {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            0 => Ok(Self::Unstable),
            1 => Ok(Self::Data),
            2 => Ok(Self::File),
            value => Err(XdrError::BadValue { of: "stable_how4", value }),
        }
    }

    /// What it is when that was asked for.
    pub fn granted(self) -> Self {
        if self == Self::Unstable { Self::Unstable } else { Self::File }
    }
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let stateid = stateid::decode(decoder)?;
        let offset = decoder.u64()?;
        let stable = Stable::decode(decoder)?;
        Ok(Self { stateid, offset, stable, data: decoder.opaque(DATA_BYTES_MAX)? })
    }

    /// True when the data has to be on the device before the record of this WRITE joins a transaction.
    pub fn needs_sync(&self) -> bool {
        self.stable != Stable::Unstable && self.data.len() > WITH_TRANSACTION_BYTES_MAX
    }
}

/// Puts how much was written and how durable that is.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = context.regular_file()?;
    write(context, (file, &inode), arguments)?;
    out.u32(arguments.data.len() as u32);
    out.u32(arguments.stable.granted() as u32);
    out.fixed(&context.request.service.write_verifier);
    Ok(())
}

/// Writes into a regular file, if the caller may. What has to be on the device before the WRITE is recorded, is said by
/// the effects.
pub fn write(
    context: &mut Context<'_, '_>,
    (file, inode): (FileId, &Inode),
    arguments: &Arguments,
) -> Result<(), Halt> {
    context.expect_writable()?;
    context.expect_access(file, inode, arguments.stateid, Wanted::Write)?;
    let now = context.request.now;
    if arguments.offset.checked_add(arguments.data.len() as u64).is_none() {
        return Err(Status::FileTooBig.into());
    }
    if !arguments.data.is_empty() {
        context.files.write(file.inode, arguments.offset, &arguments.data, now)?;
        if !context.request.caller.is_root()
            && let Some(mode) = without_privileges(inode)
        {
            let changes = AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
            context.files.set_attributes(file.inode, &changes, now)?;
            context.effects.changing = true;
        }
    }
    match arguments.stable {
        Stable::Unstable => context.effects.unstable = true,
        _ => {
            context.effects.changing = true;
            match arguments.needs_sync() {
                true => context.effects.sync = Some(file),
                false => context.files.write_with_transaction(file.inode)?,
            }
        }
    }
    Ok(())
}
