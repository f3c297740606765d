//! LINK (RFC 1813 §3.3.15): gives a file another name.

use filesystem::layout::file_kind::FileKind;

use crate::v3::attributes::{Before, put_change, put_now};
use crate::v3::file_handle::FileHandle;
use crate::v3::name::{self, Place};
use crate::v4::context::{Context, Halt};
use crate::v4::operations::link::link;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The file and its new name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The file.
    pub file: FileHandle,
    /// The name.
    pub place: Place,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { file: FileHandle::decode(decoder)?, place: Place::decode(decoder)? })
    }
}

/// Puts the file's attributes, and how the directory changed. Errors: [`Status::Invalid`] for a directory.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, linked) = arguments.file.file(context)?;
    let (directory, inode) = arguments.place.directory.directory_to_change(context)?;
    let name = &*arguments.place.name;
    name::check_entry(name, Status::Exists)?;
    if linked.mode.kind() == Some(FileKind::Directory) {
        return Err(Status::Invalid.into());
    }
    link(context, file, directory, name)?;
    put_now(context, out, file)?;
    put_change(context, out, directory, Before::of(&inode))
}
