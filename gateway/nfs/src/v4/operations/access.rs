//! ACCESS (RFC 8881 §18.1, RFC 8276 §8.4.1): what the caller may do with the current file.

use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use crate::access::{Wanted, is_permitted};
use crate::ids::FileId;
use crate::v4::context::{Context, Halt, Target};
use crate::xdr::{Decoder, Encoder, XdrError};

const READ: u32 = 0x01;
const LOOKUP: u32 = 0x02;
const MODIFY: u32 = 0x04;
const EXTEND: u32 = 0x08;
const DELETE: u32 = 0x10;
const EXECUTE: u32 = 0x20;
const XATTR_READ: u32 = 0x40;
const XATTR_WRITE: u32 = 0x80;
const XATTR_LIST: u32 = 0x100;
const OF_XATTRS: u32 = XATTR_READ | XATTR_WRITE | XATTR_LIST;

/// What is asked for, one bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub u32);

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        decoder.u32().map(Self)
    }
}

/// Puts which of the bits are known, and which of them are granted.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (supported, granted) = match context.target()? {
        Target::Root => bits(true, [true, false, true], context.request.minor),
        Target::File(file, inode) => of_file(context, file, &inode)?,
    };
    out.u32(arguments.0 & supported);
    out.u32(arguments.0 & supported & granted);
    Ok(())
}

/// The bits that mean something for a file, and those of them that the caller is granted.
pub fn of_file(context: &mut Context<'_, '_>, file: FileId, inode: &Inode) -> Result<(u32, u32), Halt> {
    let mut may = [false; 3];
    for (may, wanted) in may.iter_mut().zip([Wanted::Read, Wanted::Write, Wanted::Execute]) {
        *may = is_permitted(context.files, context.request.caller, (file.inode, inode), wanted)?;
    }
    may[1] &= !context.request.caller.read_only;
    Ok(bits(inode.mode.kind() == Some(FileKind::Directory), may, context.request.minor))
}

fn bits(is_directory: bool, [read, write, execute]: [bool; 3], minor: u32) -> (u32, u32) {
    let of_xattrs = if minor >= 2 { OF_XATTRS } else { 0 };
    let supported = of_xattrs | READ | MODIFY | EXTEND | if is_directory { LOOKUP | DELETE } else { EXECUTE };
    let changes = if is_directory { MODIFY | EXTEND | DELETE } else { MODIFY | EXTEND };
    let mut granted = 0;
    for (may, bits) in [
        (read, READ | XATTR_READ | XATTR_LIST),
        // Names can be changed only by who may look them up.
        (write && (execute || !is_directory), changes),
        (write, XATTR_WRITE),
        (execute, LOOKUP | EXECUTE),
    ] {
        granted |= if may { bits } else { 0 };
    }
    (supported, granted)
}
