//! LOOKUP (RFC 1813 §3.3.3): what a name in a directory stands for.

use filesystem::units::ROOT_INODE;

use crate::access::Wanted;
use crate::ids::FileId;
use crate::v3::attributes::{put_after, put_now};
use crate::v3::name::{self, Place};
use crate::v4::context::{Context, Halt, expect_directory};
use crate::xdr::{Decoder, Encoder, XdrError};

/// The name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub Place);

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Place::decode(decoder).map(Self)
    }
}

/// Puts the handle, its attributes, and those of the directory.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (directory, inode) = arguments.0.directory.file(context)?;
    expect_directory(&inode)?;
    name::check(&arguments.0.name)?;
    context.expect_permitted(directory, &inode, Wanted::Execute)?;
    let found = match &*arguments.0.name {
        b"." => directory,
        b".." => parent(context, directory)?,
        name => context.find(directory, name)?.0,
    };
    out.opaque(&context.handle_of(found).to_bytes());
    put_now(context, out, found)?;
    put_after(context, out, directory, &inode);
    Ok(())
}

/// The directory above another; above the volume's root there is nothing but itself.
pub fn parent(context: &mut Context<'_, '_>, directory: FileId) -> Result<FileId, Halt> {
    if directory.inode == ROOT_INODE {
        return Ok(directory);
    }
    let above = context.files.lookup(directory.inode, b"..")?;
    Ok(context.identify(above)?.0)
}
