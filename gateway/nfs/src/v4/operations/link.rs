//! LINK (RFC 8881 §18.9): gives the saved file another name, in the current directory.

use bytes::Bytes;
use filesystem::engine::Place;
use filesystem::layout::file_kind::FileKind;

use super::put_change;
use super::rename::on_one_filesystem;
use crate::ids::FileId;
use crate::v4::context::{Context, Halt, Target};
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

/// Puts how the directory changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let name = &*arguments.0;
    let (saved, _) = context.at.saved.ok_or(Status::NoFileHandle)?;
    let current = context.handle()?;
    if !on_one_filesystem(saved, current) {
        return Err(Status::CrossDevice.into());
    }
    let Target::File(file, inode) = context.target_of(saved)? else { return Err(Status::IsDirectory.into()) };
    if inode.mode.kind() == Some(FileKind::Directory) {
        return Err(Status::IsDirectory.into());
    }
    let (directory, _) = context.directory_to_change()?;
    name::check(name)?;
    let before = context.change_of(directory)?;
    link(context, file, directory, name)?;
    let after = context.change_of(directory)?;
    put_change(out, before, after);
    Ok(())
}

/// Gives a file, which is no directory, another name in a directory that the caller may change.
pub fn link(context: &mut Context<'_, '_>, file: FileId, directory: FileId, name: &[u8]) -> Result<(), Halt> {
    expect_no_entry(context, directory, name)?;
    context.expect_undelegated(file)?;
    context.files.link(file.inode, Place { directory: directory.inode, name }, context.request.now)?;
    context.effects.changing = true;
    Ok(())
}

/// Looked at before anything is changed, so that a refusal leaves nothing to be taken back. Errors: [`Status::Exists`].
pub fn expect_no_entry(context: &mut Context<'_, '_>, directory: FileId, name: &[u8]) -> Result<(), Halt> {
    if filesystem::engine::is_hidden_name(directory.inode, name) {
        return Err(Status::Access.into());
    }
    match context.find(directory, name) {
        Ok(_) => Err(Status::Exists.into()),
        Err(Halt::Status(Status::NoEntry)) => Ok(()),
        Err(halt) => Err(halt),
    }
}
