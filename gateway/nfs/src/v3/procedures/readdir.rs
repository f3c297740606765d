//! READDIR and READDIRPLUS (RFC 1813 §3.3.16, §3.3.17): names of a directory, without or with handles and attributes.

use filesystem::directory::{Cookie, ReadEntry};

use crate::access::Wanted;
use crate::v3::attributes::{put_after, put_handle};
use crate::v3::file_handle::FileHandle;
use crate::v4::context::{Context, Halt, expect_directory};
use crate::v4::listing::{Room, put_entries};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Positions are the same for ever, so there is nothing to verify.
const VERIFIER: [u8; 8] = [0; 8];
/// The two words behind the last entry.
const END_BYTES: usize = 4 + 4;
/// Positions are below this.
const COOKIES_END: u64 = 1 << 63;

/// Which names are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Of which directory.
    pub directory: FileHandle,
    /// Behind this position.
    pub cookie: u64,
    /// Bytes of names, cookies and file numbers.
    pub name_bytes_max: usize,
    /// Bytes of the result.
    pub bytes_max: u32,
    /// With handles and attributes.
    pub is_plus: bool,
}

impl Arguments {
    /// READDIR, from the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (directory, cookie) = (FileHandle::decode(decoder)?, decoder.u64()?);
        let _verifier: [u8; 8] = decoder.fixed()?;
        Ok(Self { directory, cookie, name_bytes_max: usize::MAX, bytes_max: decoder.u32()?, is_plus: false })
    }

    /// READDIRPLUS, from the wire.
    pub fn decode_plus(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (directory, cookie) = (FileHandle::decode(decoder)?, decoder.u64()?);
        let _verifier: [u8; 8] = decoder.fixed()?;
        let name_bytes_max = decoder.u32()? as usize;
        Ok(Self { directory, cookie, name_bytes_max, bytes_max: decoder.u32()?, is_plus: true })
    }
}

/// Puts the directory's attributes and as many entries as fit, `.` and `..` first; names at one position are all in one reply.
/// Errors: [`Status::TooSmall`], [`Status::BadCookie`].
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (directory, inode) = arguments.directory.file(context)?;
    expect_directory(&inode)?;
    context.expect_permitted(directory, &inode, Wanted::Read)?;
    if arguments.cookie >= COOKIES_END {
        return Err(Status::BadCookie.into());
    }
    let bytes = (arguments.bytes_max as usize).min(context.request.reply_bytes_max);
    let end = (out.len() + bytes).saturating_sub(END_BYTES);
    put_after(context, out, directory, &inode);
    out.fixed(&VERIFIER);
    if out.len() > end {
        return Err(Status::TooSmall.into());
    }
    // The first position is put even so: otherwise there would be no end of asking.
    let room = Room { end, name_bytes_max: arguments.name_bytes_max.max(1) };
    let after = Cookie(arguments.cookie);
    let listed = put_entries(context, (directory, after), room, out, |context, entry, out| {
        put_entry(context, entry, arguments.is_plus, out)
    })?;
    if listed.count == 0 && !listed.at_end {
        return Err(Status::TooSmall.into());
    }
    out.bool(false);
    out.bool(listed.at_end);
    Ok(())
}

fn put_entry(context: &mut Context<'_, '_>, entry: &ReadEntry, is_plus: bool, out: &mut Encoder) -> Result<(), Halt> {
    out.bool(true);
    out.u64(u64::from(entry.inode.0));
    out.opaque(&entry.name);
    out.u64(entry.cookie.0);
    if !is_plus {
        return Ok(());
    }
    match context.identify(entry.inode) {
        Ok((file, inode)) => {
            put_after(context, out, file, &inode);
            put_handle(context, out, file);
        }
        // The name is told all the same.
        Err(Halt::Status(_)) => {
            out.bool(false);
            out.bool(false);
        }
        Err(halt) => return Err(halt),
    }
    Ok(())
}
