//! LOOKUP and LOOKUPP (RFC 8881 §18.13, §18.14): to a name in the current directory, and to the directory above.

use bytes::Bytes;
use filesystem::units::ROOT_INODE;

use crate::access::Wanted;
use crate::ids::FileId;
use crate::v4::context::{Context, Halt, Target, expect_directory};
use crate::v4::file_handle::FileHandle;
use crate::v4::name;
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// A name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments(pub Bytes);

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        name::decode(decoder).map(Self)
    }
}

/// LOOKUP.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments) -> Result<(), Halt> {
    let found = look_up(context, &arguments.0)?;
    context.go_to(found);
    Ok(())
}

/// What a name in the current directory stands for.
pub fn look_up(context: &mut Context<'_, '_>, name: &[u8]) -> Result<FileHandle, Halt> {
    let target = context.target()?;
    if let Target::File(_, inode) = &target {
        expect_directory(inode)?;
    }
    name::check(name)?;
    match target {
        Target::Root => volume_named(context, name),
        Target::File(directory, inode) => {
            context.expect_permitted(directory, &inode, Wanted::Execute)?;
            let (file, _) = context.find(directory, name)?;
            Ok(context.handle_of(file))
        }
    }
}

/// The root of the volume of this name, or that it is elsewhere.
fn volume_named(context: &mut Context<'_, '_>, name: &[u8]) -> Result<FileHandle, Halt> {
    let request = context.request;
    if name == request.service.name {
        let root = volume_root(context)?;
        return Ok(context.handle_of(root));
    }
    let other = request.others.get().iter().find(|other| other.name == name).ok_or(Status::NoEntry)?;
    Ok(FileHandle::Referral(other.volume))
}

/// The root directory of the service's volume.
pub fn volume_root(context: &mut Context<'_, '_>) -> Result<FileId, Halt> {
    Ok(context.identify(ROOT_INODE)?.0)
}

/// LOOKUPP. Errors: [`Status::NoEntry`] above which there is nothing.
pub fn parent(context: &mut Context<'_, '_>) -> Result<(), Halt> {
    let above = match context.target()? {
        Target::Root => return Err(Status::NoEntry.into()),
        Target::File(file, _) if file.inode == ROOT_INODE => FileHandle::Root,
        Target::File(file, inode) => {
            expect_directory(&inode)?;
            context.expect_permitted(file, &inode, Wanted::Execute)?;
            let above = context.files.lookup(file.inode, b"..")?;
            let (above, _) = context.identify(above)?;
            context.handle_of(above)
        }
    };
    context.go_to(above);
    Ok(())
}
