//! CREATE (RFC 8881 §18.4): makes anything but a regular file in the current directory.

use bytes::Bytes;
use filesystem::attributes::acl::Kind;
use filesystem::engine::{Created, NewFile, Place};
use filesystem::layout::file_kind::{DeviceNumber, FileKind, Mode};
use filesystem::{Refusal, Stop};

use super::link::expect_no_entry;
use super::put_change;
use crate::ids::FileId;
use crate::v4::attributes::set::{Unread, Wishes};
use crate::v4::context::{Context, Halt};
use crate::v4::name;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Permissions of what a client makes without saying which: only the owner's own.
const PERMISSIONS_DEFAULT: u16 = 0o600;
const DIRECTORY_PERMISSIONS_DEFAULT: u16 = 0o700;

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Its kind; none for one that cannot be made so.
    pub kind: Option<FileKind>,
    /// Target, of a symbolic link.
    pub target: Bytes,
    /// Number, of a device.
    pub device: Option<DeviceNumber>,
    /// Its name.
    pub name: Bytes,
    /// Its attributes.
    pub attributes: Unread,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let kind = match decoder.u32()? {
            2 => Some(FileKind::Directory),
            3 => Some(FileKind::BlockDevice),
            4 => Some(FileKind::CharacterDevice),
            5 => Some(FileKind::Symlink),
            6 => Some(FileKind::Socket),
            7 => Some(FileKind::Fifo),
            // Regular files are made by OPEN.
            _ => None,
        };
        let (mut target, mut device) = (Bytes::new(), None);
        match kind {
            Some(FileKind::Symlink) => target = name::decode(decoder)?,
            Some(FileKind::BlockDevice | FileKind::CharacterDevice) => {
                device = Some(DeviceNumber { major: decoder.u32()?, minor: decoder.u32()? });
            }
            _ => {}
        }
        Ok(Self { kind, target, device, name: name::decode(decoder)?, attributes: Unread::decode(decoder)? })
    }
}

/// Puts how the directory changed, and which attributes were set. The new file is the current one afterwards.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let name = &*arguments.name;
    let (directory, _) = context.directory_to_change()?;
    name::check(name)?;
    let kind = arguments.kind.ok_or(Status::BadType)?;
    let wishes = arguments.attributes.wishes(context.request.owners)?;
    if wishes.size.is_some() {
        return Err(Status::Invalid.into());
    }
    let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharacterDevice);
    if is_device && !context.request.caller.is_root() {
        return Err(Status::Perm.into());
    }
    if kind == FileKind::Symlink {
        check_target(&arguments.target)?;
    }
    expect_no_entry(context, directory, name)?;
    let before = context.change_of(directory)?;
    let new = New { kind, target: &arguments.target, device: arguments.device };
    let made = make(context, directory, name, new, &wishes)?;
    let after = context.change_of(directory)?;
    put_change(out, before, after);
    wishes.named.encode(out);
    let made = FileId { inode: made.inode, generation: made.generation };
    context.go_to(context.handle_of(made));
    Ok(())
}

/// What can be the target of a symbolic link.
pub fn check_target(target: &[u8]) -> Result<(), Status> {
    match target {
        [] => Err(Status::Invalid),
        _ if target.len() > name::LINK_BYTES_MAX => Err(Status::NameTooLong),
        _ if target.contains(&0) => Err(Status::BadCharacter),
        _ => Ok(()),
    }
}

/// What is new about a file, beside its attributes.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Its kind.
    pub kind: FileKind,
    /// Target, of a symbolic link.
    pub target: &'a [u8],
    /// Number, of a device.
    pub device: Option<DeviceNumber>,
}

/// Makes a file with the attributes wished for, all but its size; nobody has the name. Errors: [`Status::Perm`] for an owner
/// that the caller may not make it.
pub fn make(
    context: &mut Context<'_, '_>,
    directory: FileId,
    name: &[u8],
    new: New<'_>,
    wishes: &Wishes,
) -> Result<Created, Halt> {
    let (caller, now) = (context.request.caller, context.request.now);
    let (user, group) = (wishes.user.unwrap_or(caller.user), wishes.group.unwrap_or(caller.group));
    if !caller.is_root() && (user != caller.user || !caller.is_in(group)) {
        return Err(Status::Perm.into());
    }
    let unsaid = if new.kind == FileKind::Directory { DIRECTORY_PERMISSIONS_DEFAULT } else { PERMISSIONS_DEFAULT };
    let mut permissions = wishes.mode.unwrap_or(unsaid);
    if let Some(umask) = wishes.umask
        && !has_default_acl(context, directory)?
    {
        permissions &= !umask;
    }
    if new.kind == FileKind::Symlink {
        permissions = 0o777;
    }
    let mode = Mode::new(new.kind, permissions);
    let file = NewFile { mode, user, group, device: new.device, target: new.target };
    let made = context.files.create(Place { directory: directory.inode, name }, &file, now)?;
    context.effects.changing = true;
    let (accessed, modified) = (wishes.accessed.map(|time| time.at(now)), wishes.modified.map(|time| time.at(now)));
    if accessed.is_some() || modified.is_some() {
        let times = filesystem::engine::AttributeChanges { accessed, modified, ..Default::default() };
        context.files.set_attributes(made.inode, &times, now)?;
    }
    drop_foreign_group_bit(context, &made)?;
    Ok(made)
}

/// A set-group bit for a group that the caller is not in is not for the caller to give (as Linux has it).
fn drop_foreign_group_bit(context: &mut Context<'_, '_>, made: &Created) -> Result<(), Halt> {
    let inode = context.files.stat(made.inode)?;
    let permissions = inode.mode.permissions();
    let is_directory = inode.mode.kind() == Some(FileKind::Directory);
    let caller = context.request.caller;
    if is_directory || permissions & Mode::SET_GROUP == 0 || caller.is_root() || caller.is_in(inode.group) {
        return Ok(());
    }
    let mode = Some(permissions & !Mode::SET_GROUP);
    let changes = filesystem::engine::AttributeChanges { mode, ..Default::default() };
    Ok(context.files.set_attributes(made.inode, &changes, context.request.now)?)
}

fn has_default_acl(context: &mut Context<'_, '_>, directory: FileId) -> Result<bool, Halt> {
    match context.files.acl(directory.inode, Kind::Default) {
        Ok(acl) => Ok(acl.is_some()),
        Err(Stop::Refused(Refusal::NotSupported)) => Ok(false),
        Err(stop) => Err(stop.into()),
    }
}
