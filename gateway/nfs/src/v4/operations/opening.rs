//! What OPEN does (RFC 8881 §18.16.3): finds or makes the file, looks whether the caller may, and opens it.

use filesystem::layout::file_kind::FileKind;
use filesystem::layout::inode::Inode;

use super::create::{New, make};
use super::open::{
    Arguments, Claim, Creation, Delegation, RESULT_MAY_NOTIFY_LOCK, RESULT_POSIX_LOCKS, WHY_NOT_CONTENTION,
    WHY_NOT_RESOURCE, WHY_NOT_TO_WRITE, WHY_NOT_WANTED,
};
use super::{put_change, setattr};
use crate::access::{Wanted, is_permitted};
use crate::ids::FileId;
use crate::state::delegation::NotDelegated;
use crate::state::open::{Claim as By, OpenRequest};
use crate::state::service::ServiceState;
use crate::state::share::{ShareBits, ShareMode};
use crate::v4::attributes::SETTABLE_EXCLUSIVE;
use crate::v4::attributes::number;
use crate::v4::attributes::set::Wishes;
use crate::v4::bitmap::Bitmap;
use crate::v4::context::{Context, Halt, expect_directory};
use crate::v4::exclusive;
use crate::v4::name;
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::Encoder;

/// Bits of the access that are the access (`OPEN4_SHARE_ACCESS_BOTH` and two that do not exist).
const ACCESS_BITS: u32 = 0xf;
/// What the client wants of delegations (`OPEN4_SHARE_ACCESS_WANT_DELEG_MASK`).
const WANT_BITS: u32 = 0xff00;
const WANT_READ: u32 = 0x100;
const WANT_ANY: u32 = 0x300;
const WANT_NO_DELEGATION: u32 = 0x400;
const WANT_CANCEL: u32 = 0x500;

/// A file that is to be opened.
struct Found {
    file: FileId,
    inode: Inode,
    /// It was made by this.
    is_new: bool,
    /// Attributes that were set.
    set: Bitmap,
    /// Change attributes of the directory, before and after.
    directory: (u64, u64),
}

/// Puts the stateid, how the directory changed, which attributes were set, and what delegation comes with it. The file is the
/// current one afterwards.
pub fn run(context: &mut Context<'_, '_>, arguments: &Arguments, out: &mut Encoder) -> Result<(), Halt> {
    let client = context.request.client;
    let mode = ShareMode::from_wire(arguments.access & ACCESS_BITS, arguments.deny).ok_or(Status::Invalid)?;
    if mode.access == ShareBits::NONE {
        return Err(Status::Invalid.into());
    }
    let by = match &arguments.claim {
        Claim::Previous(_) => {
            context.state.clients.may_reclaim(client)?;
            By::Previous
        }
        Claim::DelegatePrevious(_) | Claim::DelegatePreviousFile => return Err(Status::NotSupported.into()),
        Claim::DelegateCurrent(stateid, _) | Claim::DelegateCurrentFile(stateid) => By::Delegated(*stateid),
        Claim::Null(_) | Claim::File => {
            context.state.clients.may_claim(client)?;
            By::Plain
        }
    };
    // Asked before a file is made for it, so that a refusal leaves nothing to be taken back.
    context.state.files.room_for_open(client, &arguments.owner)?;
    let found = match &arguments.claim {
        Claim::Null(name) | Claim::DelegateCurrent(_, name) | Claim::DelegatePrevious(name) => {
            by_name(context, name, &arguments.creation)?
        }
        _ => by_handle(context, &arguments.creation)?,
    };
    if !found.is_new && by != By::Previous {
        expect_openable(context, &found, mode)?;
    }
    let request = OpenRequest { file: found.file, client, owner: &arguments.owner, mode, claim: by };
    let ServiceState { clients, files, .. } = &mut *context.state;
    let opened = files.open(request, || clients.state_number())?;
    let set = truncate_if_wished(context, &found, &arguments.creation, mode)?;
    context.effects.changing = true;
    let delegation = delegate(context, &found, arguments, mode)?;
    context.go_to(context.handle_of(found.file));
    context.at.stateid = Some(opened.stateid);
    stateid::encode(out, opened.stateid);
    put_change(out, found.directory.0, found.directory.1);
    let notifies = context.state.clients.is_called_back(client);
    out.u32(RESULT_POSIX_LOCKS | if notifies { RESULT_MAY_NOTIFY_LOCK } else { 0 });
    found.set.or(set).encode(out);
    delegation.encode(out);
    Ok(())
}

fn by_handle(context: &mut Context<'_, '_>, creation: &Creation) -> Result<Found, Halt> {
    if *creation != Creation::No {
        return Err(Status::Invalid.into());
    }
    let (file, inode) = context.regular_file()?;
    Ok(Found { file, inode, is_new: false, set: Bitmap::default(), directory: (0, 0) })
}

fn by_name(context: &mut Context<'_, '_>, name: &[u8], creation: &Creation) -> Result<Found, Halt> {
    let (directory, inode) = context.file(Status::IsDirectory)?;
    expect_directory(&inode)?;
    name::check(name)?;
    context.expect_permitted(directory, &inode, Wanted::Execute)?;
    let change = context.change_of(directory)?;
    let wishes = match creation {
        Creation::Unchecked(attributes) | Creation::Guarded(attributes) | Creation::ExclusiveWith(_, attributes) => {
            attributes.wishes(context.request.owners)?
        }
        Creation::No | Creation::Exclusive(_) => Wishes::default(),
    };
    if matches!(creation, Creation::ExclusiveWith(..)) && !wishes.named.without(SETTABLE_EXCLUSIVE).is_empty() {
        return Err(Status::Invalid.into());
    }
    let found = match context.find(directory, name) {
        Ok(found) => Some(found),
        Err(Halt::Status(Status::NoEntry)) if *creation != Creation::No => None,
        Err(halt) => return Err(halt),
    };
    let Some((file, inode)) = found else {
        return create(context, directory, name, creation, &wishes, change);
    };
    let is_ours = match creation {
        Creation::No | Creation::Unchecked(_) => true,
        Creation::Guarded(_) => false,
        Creation::Exclusive(verifier) | Creation::ExclusiveWith(verifier, _) => exclusive::keeps(&inode, *verifier),
    };
    if !is_ours {
        return Err(Status::Exists.into());
    }
    match inode.mode.kind() {
        Some(FileKind::Regular) => {}
        Some(FileKind::Directory) => return Err(Status::IsDirectory.into()),
        Some(FileKind::Symlink) => return Err(Status::Symlink.into()),
        _ => return Err(Status::WrongType.into()),
    }
    // One that an exclusive create has made before is as new as it was then.
    let is_new = matches!(creation, Creation::Exclusive(_) | Creation::ExclusiveWith(..));
    let set = if is_new { wishes.named } else { Bitmap::default() };
    Ok(Found { file, inode, is_new, set, directory: (change, change) })
}

fn create(
    context: &mut Context<'_, '_>,
    directory: FileId,
    name: &[u8],
    creation: &Creation,
    wishes: &Wishes,
    before: u64,
) -> Result<Found, Halt> {
    context.directory_to_change()?;
    if filesystem::engine::is_hidden_name(directory.inode, name) {
        return Err(Status::Access.into());
    }
    let new = New { kind: FileKind::Regular, target: &[], device: None };
    let made = make(context, directory, name, new, wishes)?;
    let file = FileId { inode: made.inode, generation: made.generation };
    let now = context.request.now;
    match creation {
        Creation::Exclusive(verifier) | Creation::ExclusiveWith(verifier, _) => {
            context.files.set_attributes(file.inode, &exclusive::times_with(*verifier), now)?;
        }
        _ => {}
    }
    if let Some(size) = wishes.size.filter(|size| *size > 0) {
        context.files.truncate(file.inode, size, now)?;
    }
    let after = context.change_of(directory)?;
    let inode = context.inode(file)?;
    Ok(Found { file, inode, is_new: true, set: wishes.named, directory: (before, after) })
}

/// The caller may open it so. Errors: [`Status::Access`], [`Status::ReadOnly`].
fn expect_openable(context: &mut Context<'_, '_>, found: &Found, mode: ShareMode) -> Result<(), Halt> {
    let (caller, of) = (context.request.caller, (found.file.inode, &found.inode));
    if mode.access.contains(ShareBits::WRITE) {
        context.expect_writable()?;
        context.expect_permitted(found.file, &found.inode, Wanted::Write)?;
    }
    // Whoever may run a program has to read it: the server cannot tell one from the other.
    if mode.access.contains(ShareBits::READ)
        && !is_permitted(context.files, caller, of, Wanted::Read)?
        && !is_permitted(context.files, caller, of, Wanted::Execute)?
    {
        return Err(Status::Access.into());
    }
    Ok(())
}

/// A file that was there and is to be made all the same loses its content if a length of 0 is wished for, and keeps all else
/// (RFC 8881 §18.16.3, UNCHECKED4).
fn truncate_if_wished(
    context: &mut Context<'_, '_>,
    found: &Found,
    creation: &Creation,
    mode: ShareMode,
) -> Result<Bitmap, Halt> {
    let Creation::Unchecked(attributes) = creation else { return Ok(Bitmap::default()) };
    if found.is_new || attributes.wishes(context.request.owners)?.size != Some(0) {
        return Ok(Bitmap::default());
    }
    if !mode.access.contains(ShareBits::WRITE) {
        context.expect_writable()?;
        context.expect_permitted(found.file, &found.inode, Wanted::Write)?;
    }
    context.expect_undelegated(found.file)?;
    let size = Bitmap::of(&[number::SIZE]);
    let wishes = Wishes { named: size, size: Some(0), ..Wishes::default() };
    setattr::set(context, found.file, &found.inode, &wishes)?;
    Ok(size)
}

/// A read delegation, where the client may make use of one.
fn delegate(
    context: &mut Context<'_, '_>,
    found: &Found,
    arguments: &Arguments,
    mode: ShareMode,
) -> Result<Delegation, Halt> {
    let client = context.request.client;
    if let Claim::Previous(1) = arguments.claim {
        let ServiceState { clients, files, .. } = &mut *context.state;
        let reclaimed = files.reclaim_delegation(found.file, client, || clients.state_number());
        return Ok(reclaimed.map_or(Delegation::None, Delegation::Read));
    }
    let wanted = arguments.access & WANT_BITS;
    if wanted == WANT_NO_DELEGATION || wanted == WANT_CANCEL {
        return Ok(Delegation::Refused(WHY_NOT_WANTED));
    }
    let why_not = |why| if wanted == 0 { Delegation::None } else { Delegation::Refused(why) };
    if mode.access != ShareBits::READ {
        return Ok(why_not(WHY_NOT_TO_WRITE));
    }
    if !matches!(arguments.claim, Claim::Null(_) | Claim::File) {
        return Ok(Delegation::None);
    }
    let ServiceState { clients, files, .. } = &mut *context.state;
    // Who says so gets it at once, others when they come back.
    let opens_again = files.opens_again(found.file, client);
    if !opens_again && wanted != WANT_READ && wanted != WANT_ANY {
        return Ok(why_not(WHY_NOT_RESOURCE));
    }
    let (now, is_called_back) = (context.request.moment, clients.is_called_back(client));
    Ok(match files.delegate(found.file, client, is_called_back, now, || clients.state_number()) {
        Ok(delegation) => Delegation::Read(delegation),
        Err(NotDelegated::Contention) => why_not(WHY_NOT_CONTENTION),
        Err(NotDelegated::Resource) => why_not(WHY_NOT_RESOURCE),
        Err(NotDelegated::Given) => Delegation::None,
    })
}
