//! REMOVE (RFC 8881 §18.25): takes a name out of the current directory, of a file or of an empty directory.

use bytes::Bytes;
use filesystem::engine::Place;
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use super::put_change;
use crate::access::may_take_away;
use crate::ids::FileId;
use crate::v4::context::{Context, Halt};
use crate::v4::name;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// A name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub Bytes);

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        name::decode(decoder).map(Self)
    }
}

/// What a name has to be of, if that matters: NFSv3 has a procedure for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything.
    Any,
    /// A directory, or it is answered [`Status::NotDirectory`].
    Directory,
    /// Anything else, or it is answered [`Status::IsDirectory`].
    NoDirectory,
}

/// Puts how the directory changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let name = &*arguments.0;
    let (directory, inode) = context.directory_to_change()?;
    name::check(name)?;
    let before = context.change_of(directory)?;
    remove(context, (directory, &inode), name, Expected::Any)?;
    let after = context.change_of(directory)?;
    put_change(out, before, after);
    Ok(())
}

/// Takes a name out of a directory that the caller may change. An open file lives on without its name.
pub fn remove(
    context: &mut Context<'_, '_>,
    (directory, inode): (FileId, &Inode),
    name: &[u8],
    expected: Expected,
) -> Result<(), Halt> {
    let (target, file) = context.find(directory, name)?;
    if !may_take_away(context.request.caller, inode, &file) {
        return Err(Status::Access.into());
    }
    let is_directory = file.mode.kind() == Some(FileKind::Directory);
    match expected {
        Expected::Directory if !is_directory => return Err(Status::NotDirectory.into()),
        Expected::NoDirectory if is_directory => return Err(Status::IsDirectory.into()),
        _ => {}
    }
    context.expect_undelegated(target)?;
    let place = Place { directory: directory.inode, name };
    context.files.remove(place, is_directory, context.request.now)?;
    context.effects.changing = true;
    Ok(())
}
