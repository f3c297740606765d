//! TEST, LOCK, CANCEL, UNLOCK (X/Open XNFS, chapter 10). A request that comes again does what it did before: who has a lock gets
//! it, who waits goes on waiting, what is unlocked stays so.

use super::Stat;
use super::arguments::{Asked, Lock};
use super::context::{Context, Halt};
use crate::ids::FileId;
use crate::state::holder::Holder;
use crate::state::lock::LockRequest;
use crate::state::refusal::{Denied, Refusal};
use crate::state::waiters::Wanted;

/// How a host asks for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// It waits until it can have it.
    pub waits: bool,
    /// It had it before the service lost its state.
    pub reclaims: bool,
    /// How often the host has restarted.
    pub state: u32,
}

fn wanted(context: &mut Context<'_, '_>, asked: &Asked) -> Result<Wanted, Halt> {
    let Lock { handle, owner, svid, range, .. } = &asked.lock;
    let (file, holder) = (context.file_to_lock(handle, asked.kind)?, context.holder(*svid, owner)?);
    Ok(Wanted { file, holder, range: *range, kind: asked.kind })
}

/// NLM_TEST: gives the lock that is in the way. Errors: those of the handle, [`Stat::DeniedGracePeriod`].
pub fn test(context: &mut Context<'_, '_>, asked: &Asked) -> Result<Option<Denied>, Halt> {
    let Wanted { file, holder, range, kind } = wanted(context, asked)?;
    context.expect_its_time(false)?;
    Ok(context.state.files.nlm_test(file, &holder, range, kind))
}

/// NLM_LOCK, for who does not wait, or does not wait yet. Errors: those of the handle, [`Stat::DeniedGracePeriod`],
/// [`Stat::DeniedNoLocks`]; whoever is in the way.
pub fn lock(context: &mut Context<'_, '_>, asked: &Asked, how: How) -> Result<(), Halt> {
    let Wanted { file, holder, range, kind } = wanted(context, asked)?;
    context.expect_its_time(how.reclaims)?;
    context.watch(how.state)?;
    let request = LockRequest { range, kind, reclaims: how.reclaims };
    let clients = &mut context.state.clients;
    context.state.files.nlm_lock(file, holder.clone(), request, || clients.state_number())?;
    context.state.hosts.answered(file, &holder, range);
    Ok(())
}

/// NLM_LOCK of a host that waits, when somebody is in the way. Errors: [`Stat::DeniedNoLocks`] if too many wait; as for [`lock`].
pub fn wait(context: &mut Context<'_, '_>, asked: &Asked, how: How) -> Result<Stat, Halt> {
    match lock(context, asked, how) {
        Ok(()) => return Ok(Stat::Granted),
        Err(Halt::InTheWay(_)) => {}
        Err(other) => return Err(other),
    }
    let wanted = wanted(context, asked)?;
    context.watch(how.state)?;
    match context.state.files.wait_for(wanted, context.moment) {
        true => Ok(Stat::Blocked),
        false => Err(Stat::DeniedNoLocks.into()),
    }
}

/// NLM_CANCEL. A lock that was granted meanwhile, of which the host does not know, is given back. [`Stat::Denied`] if the host did
/// not wait for it.
pub fn cancel(context: &mut Context<'_, '_>, asked: &Asked) -> Result<Stat, Halt> {
    let Lock { handle, owner, svid, range, .. } = &asked.lock;
    let ((file, _), holder) = (context.file(handle)?, context.holder(*svid, owner)?);
    let wanted = Wanted { file, holder, range: *range, kind: asked.kind };
    let did_wait = context.state.files.cancel(&wanted);
    if let Some(grant) = context.state.hosts.cancel(&wanted) {
        super::granting::give_back(context.state, &grant)?;
        return Ok(Stat::Granted);
    }
    Ok(if did_wait { Stat::Granted } else { Stat::Denied })
}

/// NLM_UNLOCK. Nothing needs to be locked; a file that is gone has no locks either. Errors: [`Stat::DeniedNoLocks`] if a hole would
/// make one range too many.
pub fn unlock(context: &mut Context<'_, '_>, lock: &Lock) -> Result<Stat, Halt> {
    let holder = context.holder(lock.svid, &lock.owner)?;
    let (file, _) = context.file(&lock.handle)?;
    unlock_range(context, (file, &holder), lock)?;
    Ok(Stat::Granted)
}

fn unlock_range(context: &mut Context<'_, '_>, (file, holder): (FileId, &Holder), lock: &Lock) -> Result<(), Refusal> {
    context.state.files.nlm_unlock(file, holder, lock.range)?;
    context.state.hosts.answered(file, holder, lock.range);
    Ok(())
}
