//! GETXATTR, SETXATTR, LISTXATTRS, REMOVEXATTR (RFC 8276 §8.4): attributes of the current file that its users gave it. They are
//! those with the prefix `user.`, which does not go over the wire.

use bytes::Bytes;
use filesystem::engine::change_attribute;
use filesystem::layout::inode::Inode;
use filesystem::layout::xattr::SetMode;

use super::put_change;
use crate::access::Wanted;
use crate::ids::FileId;
use crate::v4::context::{Context, Halt};
use crate::v4::name;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

const PREFIX: &[u8] = b"user.";
/// The longest value that is taken from the wire; the filesystem has its own bound.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// A name without its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameArguments(pub Bytes);

/// SETXATTR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetArguments {
    /// `setxattr_option4`: 0 either, 1 it must be new, 2 it must be there.
    pub option: u32,
    /// A name without its prefix.
    pub name: Bytes,
    /// Its value.
    pub value: Bytes,
}

/// LISTXATTRS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListArguments {
    /// How many were told already.
    pub cookie: u64,
    /// Bytes that the result may have.
    pub bytes_max: u32,
}

impl NameArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        name::decode(decoder).map(Self)
    }
}

impl SetArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { option: decoder.u32()?, name: name::decode(decoder)?, value: decoder.opaque(VALUE_BYTES_MAX)? })
    }
}

impl ListArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { cookie: decoder.u64()?, bytes_max: decoder.u32()? })
    }
}

fn full(name: &[u8]) -> Result<Vec<u8>, Halt> {
    match name.len() {
        0 => Err(Status::Invalid.into()),
        length if length > name::NAME_BYTES_MAX => Err(Status::NameTooLong.into()),
        _ if name.contains(&0) => Err(Status::BadCharacter.into()),
        _ => Ok([PREFIX, name].concat()),
    }
}

fn file_for(context: &mut Context<'_, '_>, wanted: Wanted) -> Result<(FileId, Inode), Halt> {
    let (file, inode) = context.file(Status::NotSupported)?;
    if wanted == Wanted::Write {
        context.expect_writable()?;
    }
    context.expect_permitted(file, &inode, wanted)?;
    Ok((file, inode))
}

/// GETXATTR.
pub fn get(context: &mut Context<'_, '_>, arguments: &NameArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = file_for(context, Wanted::Read)?;
    let value = context.files.get_attribute(file.inode, &full(&arguments.0)?)?;
    out.opaque(&value);
    Ok(())
}

/// SETXATTR.
pub fn set(context: &mut Context<'_, '_>, arguments: &SetArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = file_for(context, Wanted::Write)?;
    let how = match arguments.option {
        0 => SetMode::Any,
        1 => SetMode::Create,
        2 => SetMode::Replace,
        _ => return Err(Status::Invalid.into()),
    };
    let attribute = (&*full(&arguments.name)?, &*arguments.value);
    context.files.set_attribute(file.inode, attribute, how, context.request.now)?;
    changed(context, file, &inode, out)
}

/// REMOVEXATTR.
pub fn remove(context: &mut Context<'_, '_>, arguments: &NameArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = file_for(context, Wanted::Write)?;
    context.files.remove_attribute(file.inode, &full(&arguments.0)?, context.request.now)?;
    changed(context, file, &inode, out)
}

fn changed(context: &mut Context<'_, '_>, file: FileId, before: &Inode, out: &mut Encoder) -> Result<(), Halt> {
    context.effects.changing = true;
    let after = context.change_of(file)?;
    put_change(out, change_attribute(before), after);
    Ok(())
}

/// LISTXATTRS. Errors: [`Status::TooSmall`] for a result that cannot have even one name; [`Status::BadCookie`].
pub fn list(context: &mut Context<'_, '_>, arguments: &ListArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = file_for(context, Wanted::Read)?;
    let all = context.files.list_attributes(file.inode)?;
    let mut names: Vec<&[u8]> = all.iter().filter_map(|name| name.strip_prefix(PREFIX)).collect();
    // Told in several parts, they have to be in an order.
    names.sort_unstable();
    let told = usize::try_from(arguments.cookie).ok().filter(|told| *told <= names.len()).ok_or(Status::BadCookie)?;
    let rest = &names[told..];
    // The cookie, the count, and whether these are all.
    let mut room = (arguments.bytes_max as usize).saturating_sub(16);
    let fitting = rest.iter().take_while(|name| {
        let bytes = 4 + name.len().next_multiple_of(4);
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let fitting = fitting.count();
    if fitting == 0 && !rest.is_empty() {
        return Err(Status::TooSmall.into());
    }
    out.u64((told + fitting) as u64);
    out.array(&rest[..fitting], |out, name| out.opaque(name));
    out.bool(fitting == rest.len());
    Ok(())
}
