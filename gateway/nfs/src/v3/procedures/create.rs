//! CREATE (RFC 1813 §3.3.8): makes a regular file.

use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use super::expect_no_grace;
use super::make::{as_far_as_theirs, put_made};
use crate::access::Wanted;
use crate::ids::{FileId, Stateid};
use crate::v3::attributes::{Before, check_wishes, decode_wishes};
use crate::v3::name::{self, Place};
use crate::v4::attributes::number;
use crate::v4::attributes::set::Wishes;
use crate::v4::bitmap::Bitmap;
use crate::v4::context::{Context, Halt, expect_directory};
use crate::v4::exclusive;
use crate::v4::operations::create::{New, make};
use crate::v4::operations::setattr;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What to do if there is something of the name (`createhow3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It is taken, with the length wished for.
    Unchecked(Wishes),
    /// There must not be anything.
    Guarded(Wishes),
    /// The same; told from others by a verifier.
    Exclusive([u8; 8]),
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Where.
    pub place: Place,
    /// How.
    pub how: How,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let place = Place::decode(decoder)?;
        let how = match decoder.u32()? {
            0 => How::Unchecked(decode_wishes(decoder)?),
            1 => How::Guarded(decode_wishes(decoder)?),
            2 => How::Exclusive(decoder.fixed()?),
            value => return Err(XdrError::BadValue { of: "createmode3", value }),
        };
        Ok(Self { place, how })
    }
}

/// Puts the handle, its attributes, and how the directory changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (directory, inode) = arguments.place.directory.file(context)?;
    let name = &*arguments.place.name;
    expect_directory(&inode)?;
    name::check_entry(name, Status::Exists)?;
    expect_no_grace(context)?;
    context.expect_permitted(directory, &inode, Wanted::Execute)?;
    let file = match context.find(directory, name) {
        Ok((file, found)) => {
            take(context, (file, &found), &arguments.how)?;
            file
        }
        Err(Halt::Status(Status::NoEntry)) => create(context, arguments, directory)?,
        Err(halt) => return Err(halt),
    };
    put_made(context, out, file, (directory, Before::of(&inode)))
}

/// What is there already. Errors: [`Status::Exists`] where it is not to be taken.
fn take(context: &mut Context<'_, '_>, (file, inode): (FileId, &Inode), how: &How) -> Result<(), Halt> {
    if inode.mode.kind() != Some(FileKind::Regular) {
        return Err(Status::Exists.into());
    }
    let wishes = match how {
        How::Guarded(_) => return Err(Status::Exists.into()),
        How::Exclusive(verifier) if exclusive::keeps(inode, *verifier) => return Ok(()),
        How::Exclusive(_) => return Err(Status::Exists.into()),
        How::Unchecked(wishes) => wishes,
    };
    check_wishes(wishes)?;
    if wishes.size.is_none() {
        return Ok(());
    }
    context.expect_writable()?;
    context.expect_access(file, inode, Stateid::ANONYMOUS, Wanted::Write)?;
    let size = Wishes { named: Bitmap::of(&[number::SIZE]), size: wishes.size, ..Wishes::default() };
    setattr::set(context, file, inode, &size)
}

fn create(context: &mut Context<'_, '_>, arguments: &Arguments, directory: FileId) -> Result<FileId, Halt> {
    let name = &*arguments.place.name;
    arguments.place.directory.directory_to_change(context)?;
    if filesystem::engine::is_hidden_name(directory.inode, name) {
        return Err(Status::Access.into());
    }
    let none = Wishes::default();
    let wishes = match &arguments.how {
        How::Unchecked(wishes) | How::Guarded(wishes) => wishes,
        How::Exclusive(_) => &none,
    };
    check_wishes(wishes)?;
    let new = New { kind: FileKind::Regular, target: &[], device: None };
    let made = make(context, directory, name, new, &as_far_as_theirs(context, wishes))?;
    let now = context.request.now;
    if let How::Exclusive(verifier) = arguments.how {
        context.files.set_attributes(made.inode, &exclusive::times_with(verifier), now)?;
    }
    if let Some(size) = wishes.size.filter(|size| *size > 0) {
        context.files.truncate(made.inode, size, now)?;
    }
    Ok(FileId { inode: made.inode, generation: made.generation })
}
