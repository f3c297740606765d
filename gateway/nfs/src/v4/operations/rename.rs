//! RENAME (RFC 8881 §18.26): moves a name from the saved directory to the current one, over one that may be there.

use bytes::Bytes;
use filesystem::engine::{Place, Rename};
use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use super::put_change;
use crate::access::{Wanted, may_take_away};
use crate::ids::FileId;
use crate::v4::context::{Context, Halt};
use crate::v4::file_handle::FileHandle;
use crate::v4::name;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// In the saved directory.
    pub from: Bytes,
    /// In the current one.
    pub to: Bytes,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { from: name::decode(decoder)?, to: name::decode(decoder)? })
    }
}

/// A name in a directory that the caller may change.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The directory.
    pub directory: FileId,
    /// Its inode.
    pub inode: &'a Inode,
    /// The name.
    pub name: &'a [u8],
}

/// Change attributes of a directory, before and after.
pub type Changed = (u64, u64);

/// Puts how both directories changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (saved, _) = context.at.saved.ok_or(Status::NoFileHandle)?;
    let current = context.handle()?;
    if !on_one_filesystem(saved, current) {
        return Err(Status::CrossDevice.into());
    }
    let (from, from_inode) = context.directory_to_change_of(saved)?;
    let (to, to_inode) = context.directory_to_change_of(current)?;
    name::check(&arguments.from)?;
    name::check(&arguments.to)?;
    let from = Named { directory: from, inode: &from_inode, name: &arguments.from };
    let to = Named { directory: to, inode: &to_inode, name: &arguments.to };
    for (before, after) in rename(context, from, to).map_err(rename_halt)? {
        put_change(out, before, after);
    }
    Ok(())
}

/// Moves a name. Gives how both directories changed. Errors: as POSIX has them, NOTEMPTY, ISDIR and NOTDIR among them.
pub fn rename(context: &mut Context<'_, '_>, from: Named<'_>, to: Named<'_>) -> Result<[Changed; 2], Halt> {
    let caller = context.request.caller;
    let (file, moved) = context.find(from.directory, from.name)?;
    if !may_take_away(caller, from.inode, &moved) {
        return Err(Status::Access.into());
    }
    // Its `..` is changed.
    if from.directory != to.directory && moved.mode.kind() == Some(FileKind::Directory) {
        context.expect_permitted(file, &moved, Wanted::Write)?;
    }
    if filesystem::engine::is_hidden_name(to.directory.inode, to.name) {
        return Err(Status::Access.into());
    }
    match context.find(to.directory, to.name) {
        Ok((_, replaced)) if !may_take_away(caller, to.inode, &replaced) => return Err(Status::Access.into()),
        Ok((replaced, _)) => context.expect_undelegated(replaced)?,
        Err(Halt::Status(Status::NoEntry)) => {}
        Err(halt) => return Err(halt),
    }
    context.expect_undelegated(file)?;
    let before = [context.change_of(from.directory)?, context.change_of(to.directory)?];
    let from_place = Place { directory: from.directory.inode, name: from.name };
    let to_place = Place { directory: to.directory.inode, name: to.name };
    context.files.rename(from_place, to_place, Rename::Replace, context.request.now)?;
    let after = [context.change_of(from.directory)?, context.change_of(to.directory)?];
    // Two names of one file: nothing happens (RFC 8881 §18.26.3).
    context.effects.changing |= before != after;
    Ok([(before[0], after[0]), (before[1], after[1])])
}

/// What is in the way of a rename is said by EXIST (RFC 8881 §18.26.3), whatever POSIX says.
fn rename_halt(halt: Halt) -> Halt {
    match halt {
        Halt::Status(Status::NotEmpty | Status::IsDirectory | Status::NotDirectory) => Status::Exists.into(),
        other => other,
    }
}

/// True if both handles are of one filesystem.
pub fn on_one_filesystem(one: FileHandle, other: FileHandle) -> bool {
    match (one, other) {
        (FileHandle::File(one, _), FileHandle::File(other, _)) => one == other,
        _ => one == other,
    }
}
