//! REMOVE and RMDIR (RFC 1813 §3.3.12, §3.3.13): take a name out of a directory.

use crate::v3::attributes::{Before, put_change};
use crate::v3::name::{self, Place};
use crate::v4::context::{Context, Halt};
use crate::v4::operations::remove::{Expected, remove};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The name.
    pub place: Place,
    /// It is that of a directory, or must not be: RMDIR, or REMOVE.
    pub is_directory: bool,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder, is_directory: bool) -> Result<Self, XdrError> {
        Ok(Self { place: Place::decode(decoder)?, is_directory })
    }
}

/// Puts how the directory changed. A file that clients of NFSv4 have open lives on without its name.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (directory, inode) = arguments.place.directory.directory_to_change(context)?;
    let name = &*arguments.place.name;
    if name == b".." && arguments.is_directory {
        return Err(Status::Exists.into());
    }
    name::check_entry(name, Status::Invalid)?;
    let expected = if arguments.is_directory { Expected::Directory } else { Expected::NoDirectory };
    remove(context, (directory, &inode), name, expected)?;
    put_change(context, out, directory, Before::of(&inode))
}
