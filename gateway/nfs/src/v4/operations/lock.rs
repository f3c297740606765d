//! LOCK, LOCKT, LOCKU (RFC 8881 §18.10 to §18.12): ranges of the current file that somebody has for himself.

use bytes::Bytes;

use crate::ids::{FileId, Stateid};
use crate::state::holder::{Holder, OWNER_BYTES_MAX};
use crate::state::lock::LockRequest;
use crate::state::ranges::{ByteRange, HeldRange, LockKind};
use crate::state::refusal::{Denied, Refusal};
use crate::state::service::ServiceState;
use crate::state::waiters::Wanted;
use crate::v4::context::{Context, Halt};
use crate::v4::stateid;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// `nfs_lock_type4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockType {
    /// For writing.
    pub exclusive: bool,
    /// The client would rather wait than be refused.
    pub blocking: bool,
}

/// Whose lock it will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locker {
    /// That of an owner that has none on this file yet.
    New {
        /// By this open.
        open: Stateid,
        /// Its name; the client is that of the session.
        owner: Bytes,
    },
    /// That of one that has.
    Known(Stateid),
}

/// LOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockArguments {
    /// What kind.
    pub kind: LockType,
    /// It was held before the server lost its state.
    pub reclaim: bool,
    /// First byte.
    pub offset: u64,
    /// Bytes; all ones for all that follow.
    pub length: u64,
    /// Whose.
    pub locker: Locker,
}

/// LOCKT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestArguments {
    /// What kind.
    pub kind: LockType,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whose it would be.
    pub owner: Bytes,
}

/// LOCKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnlockArguments {
    /// Whose.
    pub stateid: Stateid,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl LockType {
    fn kind(self) -> LockKind {
        if self.exclusive { LockKind::Exclusive } else { LockKind::Shared }
    }

    fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        match decoder.u32()? {
            kind @ 1..=4 => Ok(Self { exclusive: kind % 2 == 0, blocking: kind > 2 }),
            value => Err(XdrError::BadValue { of: "nfs_lock_type4", value }),
        }
    }
}

/// `state_owner4`: the name only, since the client is the session's whatever is said here (RFC 8881 §18.16.3).
pub fn decode_owner(decoder: &mut Decoder) -> Result<Bytes, XdrError> {
    let _client = decoder.u64()?;
    decoder.opaque(OWNER_BYTES_MAX)
}

impl LockArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let kind = LockType::decode(decoder)?;
        let reclaim = decoder.bool()?;
        let (offset, length) = (decoder.u64()?, decoder.u64()?);
        let locker = match decoder.bool()? {
            true => {
                let _open_sequence = decoder.u32()?;
                let open = stateid::decode(decoder)?;
                let _lock_sequence = decoder.u32()?;
                Locker::New { open, owner: decode_owner(decoder)? }
            }
            false => {
                let known = stateid::decode(decoder)?;
                let _lock_sequence = decoder.u32()?;
                Locker::Known(known)
            }
        };
        Ok(Self { kind, reclaim, offset, length, locker })
    }
}

impl TestArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        let kind = LockType::decode(decoder)?;
        let (offset, length) = (decoder.u64()?, decoder.u64()?);
        Ok(Self { kind, offset, length, owner: decode_owner(decoder)? })
    }
}

impl UnlockArguments {
    /// From the wire.
    pub fn decode(decoder: &mut Decoder) -> Result<Self, XdrError> {
        LockType::decode(decoder)?;
        let _sequence = decoder.u32()?;
        let stateid = stateid::decode(decoder)?;
        Ok(Self { stateid, offset: decoder.u64()?, length: decoder.u64()? })
    }
}

/// Puts a lock that is in the way (`LOCK4denied`). One of another protocol has the client 0, and its host for an owner.
pub fn put_denied(out: &mut Encoder, denied: &Denied) {
    let HeldRange { range, kind } = denied.held;
    out.u64(range.first());
    out.u64(range.length());
    out.u32(if kind == LockKind::Exclusive { 2 } else { 1 });
    match &denied.by {
        Holder::V4 { client, owner } => {
            out.u64(client.0);
            out.opaque(owner);
        }
        Holder::Nlm { host, .. } => {
            out.u64(0);
            out.opaque(host.name());
        }
    }
}

/// LOCK: puts the stateid. Errors: those of stateids, [`Status::OpenMode`], [`Status::Invalid`], the lock in the way,
/// [`Status::Grace`], [`Status::NoGrace`].
pub fn lock(context: &mut Context<'_, '_>, arguments: &LockArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = context.regular_file()?;
    let client = context.request.client;
    let range = ByteRange::new(arguments.offset, arguments.length).ok_or(Status::Invalid)?;
    match arguments.reclaim {
        true => context.state.clients.may_reclaim(client)?,
        false => context.state.clients.may_claim(client)?,
    }
    let request = LockRequest { range, kind: arguments.kind.kind(), reclaims: arguments.reclaim };
    if request.kind == LockKind::Exclusive {
        context.expect_undelegated(file)?;
    }
    let taken = match &arguments.locker {
        Locker::Known(known) => {
            let known = context.stateid(*known)?;
            context.state.files.lock(client, file, &known, request)
        }
        Locker::New { open, owner } => {
            let open = context.stateid(*open)?;
            let ServiceState { clients, files, .. } = &mut *context.state;
            files.lock_under(client, file, &open, owner, request, || clients.state_number())
        }
    };
    if let (Err(Refusal::Lock(_)), true) = (&taken, arguments.kind.blocking) {
        wait(context, file, arguments, request);
    }
    finish(context, taken?, out);
    Ok(())
}

/// Whoever would rather wait is told when the lock may be free; where it cannot be, it asks again by itself.
fn wait(context: &mut Context<'_, '_>, file: FileId, arguments: &LockArguments, request: LockRequest) {
    let client = context.request.client;
    let holder = match &arguments.locker {
        Locker::New { owner, .. } => Holder::v4(client, owner),
        Locker::Known(known) => {
            context.stateid(*known).ok().and_then(|known| context.state.files.lock_holder(client, file, &known))
        }
    };
    if let Some(holder) = holder
        && context.state.clients.is_called_back(client)
    {
        let wanted = Wanted { file, holder, range: request.range, kind: request.kind };
        // Where too many wait, it asks again by itself.
        let _ = context.state.files.wait_for(wanted, context.request.moment);
    }
}

/// LOCKT. Errors: the lock in the way.
pub fn test(context: &mut Context<'_, '_>, arguments: &TestArguments) -> Result<(), Halt> {
    let (file, _) = context.regular_file()?;
    let range = ByteRange::new(arguments.offset, arguments.length).ok_or(Status::Invalid)?;
    if context.state.clients.in_grace() {
        return Err(Status::Grace.into());
    }
    let (client, kind) = (context.request.client, arguments.kind.kind());
    match context.state.files.lock_test(client, file, &arguments.owner, range, kind) {
        None => Ok(()),
        Some(denied) => Err(Refusal::Lock(denied).into()),
    }
}

/// LOCKU: puts the stateid.
pub fn unlock(context: &mut Context<'_, '_>, arguments: &UnlockArguments, out: &mut Encoder) -> Result<(), Halt> {
    let (file, _) = context.regular_file()?;
    let range = ByteRange::new(arguments.offset, arguments.length).ok_or(Status::Invalid)?;
    let stateid = context.stateid(arguments.stateid)?;
    let stateid = context.state.files.unlock(context.request.client, file, &stateid, range)?;
    finish(context, stateid, out);
    Ok(())
}

fn finish(context: &mut Context<'_, '_>, stateid: Stateid, out: &mut Encoder) {
    context.effects.changing = true;
    context.at.stateid = Some(stateid);
    stateid::encode(out, stateid);
}
