//! RENAME (RFC 1813 §3.3.14): moves a name, over one that may be there.

use crate::v3::attributes::{Before, put_change};
use crate::v3::name::{self, Place};
use crate::v4::context::{Context, Halt};
use crate::v4::operations::rename::{Named, rename};
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// From here.
    pub from: Place,
    /// To here.
    pub to: Place,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { from: Place::decode(decoder)?, to: Place::decode(decoder)? })
    }
}

/// Puts how both directories changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let Arguments { from, to } = arguments;
    let (from_directory, from_inode) = from.directory.directory_to_change(context)?;
    let (to_directory, to_inode) = to.directory.directory_to_change(context)?;
    name::check_entry(&from.name, Status::Invalid)?;
    name::check_entry(&to.name, Status::Invalid)?;
    let from = Named { directory: from_directory, inode: &from_inode, name: &from.name };
    let to = Named { directory: to_directory, inode: &to_inode, name: &to.name };
    rename(context, from, to)?;
    put_change(context, out, from_directory, Before::of(&from_inode))?;
    put_change(context, out, to_directory, Before::of(&to_inode))
}
