//! SHARE, UNSHARE and FREE_ALL (X/Open XNFS, chapter 10): reservations of hosts that know such, and the end of all that a host has.

use super::Stat;
use super::arguments::Share;
use super::context::{Context, Halt};
use crate::state::holder::Host;
use crate::state::ranges::LockKind;
use crate::state::service::ServiceState;
use crate::state::share::{ShareBits, ShareMode};

/// States that are dropped in one transaction. One may be in a good many records.
pub const DROPPED_AT_ONCE: usize = 32;

/// Reservations name no process.
const NO_PROCESS: u32 = 0;

/// NLM_SHARE. Errors: those of the handle, [`Stat::DeniedGracePeriod`], [`Stat::DeniedNoLocks`]; whoever is in the way.
pub fn share(context: &mut Context<'_, '_>, share: &Share) -> Result<(), Halt> {
    let ShareMode { access, deny } = share.mode;
    let hinders = access.contains(ShareBits::WRITE) || deny != ShareBits::NONE;
    let kind = if hinders { LockKind::Exclusive } else { LockKind::Shared };
    let file = context.file_to_lock(&share.handle, kind)?;
    let holder = context.holder(NO_PROCESS, &share.owner)?;
    context.expect_its_time(share.reclaims)?;
    context.watch(0)?;
    let clients = &mut context.state.clients;
    let number = || clients.state_number();
    context.state.files.nlm_share(file, holder, share.mode, share.reclaims, number)?;
    Ok(())
}

/// NLM_UNSHARE. Nothing needs to be reserved. Errors: those of the handle.
pub fn unshare(context: &mut Context<'_, '_>, share: &Share) -> Result<Stat, Halt> {
    let (file, _) = context.file(&share.handle)?;
    let holder = context.holder(NO_PROCESS, &share.owner)?;
    context.state.files.nlm_unshare(file, &holder);
    Ok(Stat::Granted)
}

/// Drops a part of what a host has: it has restarted, or says so. False when nothing is left.
pub fn drop_part(state: &mut ServiceState, host: &Host) -> bool {
    state.hosts.drop_grants(host);
    state.files.drop_host_part(host, DROPPED_AT_ONCE);
    state.files.has_something(host)
}
