//! Delegations that are in the way of something (RFC 8881 §10.4.5): they are recalled, and whatever they are in the way of waits a
//! little, since a client gives a delegation back in a few milliseconds. What takes longer is answered DELAY; what takes longer
//! than a lease is revoked.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use block_device::BlockDevice;
use filesystem::engine::Failure;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{Gone, Service};
use crate::ids::{ClientId, Moment};
use crate::state::callbacks::Message;
use crate::state::delegation::Delegated;

/// Requests that wait for delegations, of all clients: those that give them back come over the same connections, and share a
/// budget of bytes with them.
const PARKED_MAX: usize = 32;
/// The same of one client: what it gives back needs a slot.
const PARKED_PER_CLIENT_MAX: usize = 8;
/// Delegations that are revoked in one transaction.
const REVOKED_AT_ONCE: usize = 64;
/// How long somebody waits for a lock who does not ask again; Linux does after 30 s.
const WAITER_MS: u64 = 90_000;

/// A request that waits; no more when this is dropped.
struct Parked<'a> {
    by_client: &'a RefCell<BTreeMap<Option<ClientId>, usize>>,
    client: Option<ClientId>,
}

impl<'a> Parked<'a> {
    /// None where too many wait.
    fn new(by_client: &'a RefCell<BTreeMap<Option<ClientId>, usize>>, client: Option<ClientId>) -> Option<Self> {
        let mut counts = by_client.borrow_mut();
        let own = counts.get(&client).copied().unwrap_or(0);
        // Callers that are no clients are one party here.
        if counts.values().sum::<usize>() >= PARKED_MAX || own >= PARKED_PER_CLIENT_MAX {
            return None;
        }
        counts.insert(client, own + 1);
        Some(Self { by_client, client })
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let mut counts = self.by_client.borrow_mut();
        match counts.get(&self.client).copied() {
            Some(count @ 2..) => drop(counts.insert(self.client, count - 1)),
            _ => drop(counts.remove(&self.client)),
        }
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// Has delegations given back, and waits for that, but not beyond a moment. True if they are. `by` is who wants it: a client,
    /// or somebody else.
    pub(super) async fn clear_delegations(
        &self,
        by: Option<ClientId>,
        conflicts: &[Delegated],
        until: Instant,
    ) -> Result<bool, Gone> {
        let moment = (self.world.moment)();
        let holders: BTreeSet<_> = conflicts.iter().map(|delegated| delegated.client).collect();
        for client in holders {
            if self.state().clients.is_courtesy(client, moment) {
                self.drop_courtesy(client).await?;
            }
        }
        self.recall(conflicts);
        let Some(_parked) = Parked::new(&self.callbacks.parked, by) else { return Ok(false) };
        loop {
            let given_back = self.callbacks.given_back.notified();
            let is_left = {
                let state = self.state();
                conflicts.iter().any(|delegated| state.files.is_delegated(delegated.number))
            };
            if !is_left {
                return Ok(true);
            }
            if timeout_at(until, given_back).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// Forgets a client that has what it has by courtesy only. False if it cannot be recorded now.
    pub(super) async fn drop_courtesy(&self, client: ClientId) -> Result<bool, Gone> {
        let dropped = self.change(|_, state| {
            state.drop_client(client);
            Ok(())
        });
        match dropped.await {
            Ok(_) => Ok(true),
            Err(Failure::Device(error)) => Err(Gone(Failure::Device(error))),
            Err(_) => Ok(false),
        }
    }

    /// Begins recalls that are not under way.
    fn recall(&self, conflicts: &[Delegated]) {
        let moment = (self.world.moment)();
        let mut state = self.state();
        let lease_ms = state.clients.leases().lease_ms();
        let mut outbox = self.callbacks.outbox.borrow_mut();
        for delegated in conflicts {
            if !state.files.begin_recall(delegated.number, moment, lease_ms) {
                continue;
            }
            let message = || Message::Recall(*delegated);
            if !outbox.push(delegated.client, message(), moment) {
                // Of those that are there still none is twice.
                let files = &state.files;
                outbox.retain(delegated.client, |message| match message {
                    Message::Recall(delegated) => files.is_delegated(delegated.number),
                    Message::RecallAny(_) | Message::LockMayBeFree(..) => false,
                });
                outbox.push(delegated.client, message(), moment);
            }
        }
        self.callbacks.wake.notify_one();
    }

    /// What time brings: delegations are revoked whose recalls were in vain, those who do not ask for locks any more are forgotten,
    /// and clients with very many delegations are asked for some. Errors: there will be no answers any more.
    pub(super) async fn tend_callbacks(&self) -> Result<(), Gone> {
        let moment = (self.world.moment)();
        let overdue = self.state().files.overdue(moment);
        for some in overdue.chunks(REVOKED_AT_ONCE) {
            for Delegated { client, file, .. } in some {
                warn!(client = client.0, inode = file.inode.0, "a delegation was recalled in vain, and is revoked");
            }
            self.tended(|state| {
                for delegated in some {
                    state.files.revoke(delegated.number);
                }
            })
            .await?;
        }
        let (woken, crowded) = {
            let mut state = self.state();
            state.files.expire_waiters(Moment(moment.0.saturating_sub(WAITER_MS)));
            state.files.commit();
            self.callbacks.outbox.borrow_mut().keep_only(|client| state.clients.client(client).is_some());
            (state.files.woken(), state.files.crowded())
        };
        self.wake(woken);
        let mut outbox = self.callbacks.outbox.borrow_mut();
        for (client, keep) in crowded {
            outbox.retain(client, |message| !matches!(message, Message::RecallAny(_)));
            outbox.push(client, Message::RecallAny(keep), moment);
            self.callbacks.wake.notify_one();
        }
        Ok(())
    }
}
