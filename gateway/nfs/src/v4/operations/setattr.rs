//! SETATTR (RFC 8881 §18.30): sets attributes of the current file, all that are named or none.

use filesystem::engine::AttributeChanges;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::inode::Inode;

use crate::access::Wanted;
use crate::ids::{FileId, Stateid};
use crate::v4::attributes::set::{SetTime, Unread, Wishes};
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// The bits that make a program run as somebody else.
const PRIVILEGES: u16 = Mode::SET_USER | Mode::SET_GROUP;
/// With this one the set-group bit means that; without it means mandatory locking, and stays.
const GROUP_EXECUTES: u16 = 0o010;

/// What is to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// By whose open, if the length is to change.
    pub stateid: Stateid,
    /// The attributes.
    pub attributes: Unread,
}

impl Arguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        Ok(Self { stateid: stateid::decode(decoder)?, attributes: Unread::decode(decoder)? })
    }
}

/// Puts which were set.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, inode) = context.file(Status::ReadOnly)?;
    context.expect_writable()?;
    let wishes = arguments.attributes.wishes(context.request.owners)?;
    if wishes.umask.is_some() {
        // Only with a file that is made (RFC 8275 §6).
        return Err(Status::Invalid.into());
    }
    if wishes.size.is_some() {
        let (file, inode) = context.regular_file()?;
        context.expect_access(file, &inode, arguments.stateid, Wanted::Write)?;
    }
    context.expect_undelegated(file)?;
    set(context, file, &inode, &wishes)?;
    wishes.named.encode(out);
    Ok(())
}

/// Puts that none was set, behind a refusal.
pub fn put_failure(out: &mut Encoder) {
    out.u32(0);
}

/// Sets what is wished for, if the caller may; whether the length may be set was looked at before. Errors: [`Status::Perm`],
/// [`Status::Access`].
pub fn set(context: &mut Context<'_, '_>, file: FileId, inode: &Inode, wishes: &Wishes) -> Result<(), Halt> {
    if wishes.named.is_empty() {
        return Ok(());
    }
    let now = context.request.now;
    let changes = changes(context, file, inode, wishes)?;
    if let Some(size) = wishes.size {
        context.files.truncate(file.inode, size, now)?;
    }
    context.files.set_attributes(file.inode, &changes, now)?;
    context.effects.changing = true;
    Ok(())
}

fn changes(
    context: &mut Context<'_, '_>,
    file: FileId,
    inode: &Inode,
    wishes: &Wishes,
) -> Result<AttributeChanges, Halt> {
    let (caller, now) = (context.request.caller, context.request.now);
    let owns = caller.owns(inode);
    let gives_away = wishes.user.is_some_and(|user| user != inode.user);
    let regroups = wishes.group.is_some_and(|group| group != inode.group);
    let may_regroup = caller.is_root() || owns && wishes.group.is_none_or(|group| caller.is_in(group));
    if wishes.mode.is_some() && !owns || gives_away && !caller.is_root() || regroups && !may_regroup {
        return Err(Status::Perm.into());
    }
    // The owner may say "as it is", others nothing at all.
    if (wishes.user.is_some() || wishes.group.is_some()) && !owns {
        return Err(Status::Perm.into());
    }
    let explicit = |time: Option<SetTime>| matches!(time, Some(SetTime::To(_)));
    if (explicit(wishes.accessed) || explicit(wishes.modified)) && !owns {
        return Err(Status::Perm.into());
    }
    if (wishes.accessed.is_some() || wishes.modified.is_some()) && !owns {
        context.expect_permitted(file, inode, Wanted::Write)?;
    }
    let group = wishes.group.unwrap_or(inode.group);
    let mut mode = wishes.mode;
    if let Some(bits) = &mut mode
        && !caller.is_root()
        && !caller.is_in(group)
    {
        *bits &= !Mode::SET_GROUP;
    }
    let is_directory = inode.mode.kind() == Some(FileKind::Directory);
    // A program does not keep its privileges when it gets another owner, nor when somebody else cuts it.
    let loses = wishes.user.is_some() || wishes.group.is_some() || wishes.size.is_some() && !caller.is_root();
    if loses && !is_directory && mode.is_none() {
        mode = without_privileges(inode);
    }
    Ok(AttributeChanges {
        mode,
        user: wishes.user,
        group: wishes.group,
        accessed: wishes.accessed.map(|time| time.at(now)),
        modified: wishes.modified.map(|time| time.at(now)),
    })
}

/// The permissions of a file that loses the bits that make a program run as somebody else; none if it has none.
pub fn without_privileges(inode: &Inode) -> Option<u16> {
    let permissions = inode.mode.permissions();
    let lost = if permissions & GROUP_EXECUTES == 0 { Mode::SET_USER } else { PRIVILEGES };
    (permissions & lost != 0).then_some(permissions & !lost)
}
