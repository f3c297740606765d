//! REMOVE (RFC 8881 §18.25): takes a name out of the current directory, of a file or of an empty directory.

use bytes::Bytes;
use filesystem::engine::Place;
use filesystem::layout::file_kind::FileKind;

use super::put_change;
use crate::access::may_take_away;
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

/// Puts how the directory changed. An open file lives on without its name.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let name = &*arguments.0;
    let (directory, inode) = context.directory_to_change()?;
    name::check(name)?;
    let (target, file) = context.find(directory, name)?;
    if !may_take_away(context.request.caller, &inode, &file) {
        return Err(Status::Access.into());
    }
    context.expect_undelegated(target)?;
    let before = context.change_of(directory)?;
    let place = Place { directory: directory.inode, name };
    let is_directory = file.mode.kind() == Some(FileKind::Directory);
    context.files.remove(place, is_directory, context.request.now)?;
    context.effects.changing = true;
    let after = context.change_of(directory)?;
    put_change(out, before, after);
    Ok(())
}
