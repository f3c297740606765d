//! MKDIR, SYMLINK and MKNOD (RFC 1813 §3.3.9 to §3.3.11): make anything but a regular file.

use bytes::Bytes;
use filesystem::layout::file_kind::{DeviceNumber, FileKind};

use crate::ids::FileId;
use crate::v3::attributes::{Before, check_wishes, decode_wishes, put_change, put_handle, put_now};
use crate::v3::name::{self, Place};
use crate::v4::attributes::set::Wishes;
use crate::v4::context::{Context, Halt};
use crate::v4::operations::create::{New, check_target, make};
use crate::v4::operations::link::expect_no_entry;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// Where.
    pub place: Place,
    /// Its kind; none for one that cannot be made so.
    pub kind: Option<FileKind>,
    /// Target, of a symbolic link.
    pub target: Bytes,
    /// Number, of a device.
    pub device: Option<DeviceNumber>,
    /// Its attributes.
    pub wishes: Wishes,
}

impl Arguments {
    /// MKDIR, from the wire.
    pub fn decode_directory(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (place, wishes) = (Place::decode(decoder)?, decode_wishes(decoder)?);
        Ok(Self { place, kind: Some(FileKind::Directory), target: Bytes::new(), device: None, wishes })
    }

    /// SYMLINK, from the wire.
    pub fn decode_symlink(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let (place, wishes) = (Place::decode(decoder)?, decode_wishes(decoder)?);
        let target = crate::v4::name::decode(decoder)?;
        Ok(Self { place, kind: Some(FileKind::Symlink), target, device: None, wishes })
    }

    /// MKNOD, from the wire.
    pub fn decode_node(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let place = Place::decode(decoder)?;
        let (mut device, mut wishes) = (None, Wishes::default());
        let kind = match decoder.u32()? {
            3 => Some(FileKind::BlockDevice),
            4 => Some(FileKind::CharacterDevice),
            6 => Some(FileKind::Socket),
            7 => Some(FileKind::Fifo),
            // What other procedures make.
            1 | 2 | 5 => None,
            value => return Err(XdrError::BadValue { of: "ftype3", value }),
        };
        if kind.is_some() {
            wishes = decode_wishes(decoder)?;
        }
        if let Some(FileKind::BlockDevice | FileKind::CharacterDevice) = kind {
            device = Some(DeviceNumber { major: decoder.u32()?, minor: decoder.u32()? });
        }
        Ok(Self { place, kind, target: Bytes::new(), device, wishes })
    }
}

/// Puts the handle, its attributes, and how the directory changed.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (directory, inode) = arguments.place.directory.directory_to_change(context)?;
    let name = &*arguments.place.name;
    name::check_entry(name, Status::Exists)?;
    let kind = arguments.kind.ok_or(Status::BadType)?;
    check_wishes(&arguments.wishes)?;
    let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharacterDevice);
    if is_device && !context.request.caller.is_root() {
        return Err(Status::Perm.into());
    }
    if kind == FileKind::Symlink {
        check_target(&arguments.target)?;
    }
    expect_no_entry(context, directory, name)?;
    let new = New { kind, target: &arguments.target, device: arguments.device };
    let made = make(context, directory, name, new, &as_far_as_theirs(context, &arguments.wishes))?;
    let made = FileId { inode: made.inode, generation: made.generation };
    put_made(context, out, made, (directory, Before::of(&inode)))
}

/// Some clients name the owner of what they make, which another may be than whom an export makes of them. What the caller
/// cannot give is not wished for then: the file is the caller's.
pub(super) fn as_far_as_theirs(context: &Context<'_, '_>, wishes: &Wishes) -> Wishes {
    let (caller, mut wishes) = (context.request.caller, wishes.clone());
    if !caller.is_root() {
        wishes.user = None;
        wishes.group = wishes.group.filter(|group| caller.is_in(*group));
    }
    wishes
}

/// What is told of a file that was made in a directory.
pub(super) fn put_made(
    context: &mut Context<'_, '_>,
    out: &mut Encoder,
    file: FileId,
    (directory, before): (FileId, Before),
) -> Result<(), Halt> {
    put_handle(context, out, file);
    put_now(context, out, file)?;
    put_change(context, out, directory, before)
}
