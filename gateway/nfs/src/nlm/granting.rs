//! Locks of hosts that wait: taken for them when they can be, and given back if they are not wanted any more.

use crate::ids::Moment;
use crate::state::hosts::{Grant, GrantNumber};
use crate::state::lock::LockRequest;
use crate::state::refusal::Refusal;
use crate::state::service::ServiceState;
use crate::state::waiters::Wanted;

/// Takes a lock for a host that waits, and notes that it is to be told. Nothing happens if it has
/// given up. If somebody came first, it waits on. Where there is no room
/// for it, the host is forgotten, and has to ask again.
pub fn take(state: &mut ServiceState, wanted: &Wanted, now: Moment) -> Option<GrantNumber> {
    if !state.files.is_waiting(wanted) {
        return None;
    }
    let before = state.files.nlm_held(wanted.file, &wanted.holder, wanted.range);
    let Some(number) = state.hosts.grant(Grant { wanted: wanted.clone(), before }) else {
        state.files.cancel(wanted);
        return None;
    };
    let request = LockRequest { range: wanted.range, kind: wanted.kind, reclaims: false };
    let clients = &mut state.clients;
    match state.files.nlm_lock(wanted.file, wanted.holder.clone(), request, || clients.state_number()) {
        Ok(()) => return Some(number),
        Err(Refusal::Lock(_) | Refusal::Share { .. } | Refusal::Delegated(_)) => {
            state.files.wait_for(wanted.clone(), now);
        }
        Err(Refusal::Full(_) | Refusal::Status(_)) => {
            state.files.cancel(wanted);
        }
    }
    state.hosts.settle(number);
    None
}

/// The host has answered, or is not to be reached. What it does not take is given back. Nothing happens if it has learned of the
/// lock in another way since.
pub fn end(state: &mut ServiceState, number: GrantNumber, is_taken: bool) -> Result<(), Refusal> {
    match state.hosts.settle(number) {
        Some(grant) if !is_taken => give_back(state, &grant),
        _ => Ok(()),
    }
}

/// Gives a lock back. Errors: there is no room for what the holder had before.
pub(super) fn give_back(state: &mut ServiceState, grant: &Grant) -> Result<(), Refusal> {
    let Wanted { file, holder, range, .. } = &grant.wanted;
    let clients = &mut state.clients;
    state.files.nlm_give_back(*file, holder, *range, &grant.before, || clients.state_number())
}
