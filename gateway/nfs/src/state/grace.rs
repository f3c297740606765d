//! The grace period after state was lost (RFC 8881 §8.4.2): clients of before reclaim what they had, and nobody gets anything
//! new. That it is on is in the service's record, so that a takeover in its middle does not end it; who is waited for, and for
//! how long, is in memory only.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::ids::{ClientId, Moment};
use crate::state::clients::Clients;
use crate::v4::status::Status;

/// Who is waited for.
#[derive(Clone, Debug)]
pub struct Grace {
    until: Moment,
    /// What they call themselves; None if nobody knows.
    former: Option<BTreeSet<Bytes>>,
}

impl Grace {
    pub(super) fn new(former: Option<BTreeSet<Bytes>>, now: Moment, lease_ms: u64) -> Self {
        // A client notices within one lease that its state is lost, and has half of one to reclaim.
        Self { until: now.plus(lease_ms.saturating_add(lease_ms / 2)), former }
    }
}

impl Clients {
    /// True while clients of before may reclaim, and nobody gets anything new ([`Status::Grace`]).
    pub fn in_grace(&self) -> bool {
        self.counters.service().in_grace
    }

    /// True when the grace period is to be ended by [`Self::end_grace`]: all that are waited for have reclaimed, or one and a
    /// half leases are over. It lasts until the caller does so, because what comes behind must not be undone by a takeover.
    pub fn grace_is_over(&self, now: Moment) -> bool {
        let has_reclaimed = |owner: &Bytes| {
            let client = self.owners.get(owner).and_then(|client| self.clients.get(client));
            client.is_some_and(|client| client.reclaim_complete)
        };
        let all_have = self.grace.former.as_ref().is_some_and(|former| former.iter().all(has_reclaimed));
        self.in_grace() && (all_have || now >= self.grace.until)
    }

    /// Ends the grace period.
    pub fn end_grace(&mut self) {
        if self.in_grace() {
            self.counters.end_grace();
        }
    }

    /// Whether a client may reclaim something. Errors: [`Status::NoGrace`] outside the grace period, for who has reclaimed all,
    /// and for who was not a client before.
    pub fn may_reclaim(&self, client: ClientId) -> Result<(), Status> {
        let client = self.clients.get(&client).filter(|client| self.in_grace() && !client.reclaim_complete);
        match client {
            Some(client) if self.grace.former.as_ref().is_none_or(|former| former.contains(&client.owner)) => Ok(()),
            _ => Err(Status::NoGrace),
        }
    }

    /// Whether a client may get something that it did not have before. Errors: [`Status::Grace`] in the grace period, and
    /// before its RECLAIM_COMPLETE (RFC 8881 §18.51.3).
    pub fn may_claim(&self, client: ClientId) -> Result<(), Status> {
        let has_reclaimed = self.clients.get(&client).is_some_and(|client| client.reclaim_complete);
        match has_reclaimed && !self.in_grace() {
            true => Ok(()),
            false => Err(Status::Grace),
        }
    }

    /// RECLAIM_COMPLETE (RFC 8881 §18.51): the client has nothing more to reclaim. Of one filesystem only, after a migration,
    /// it says nothing here. Errors: [`Status::CompleteAlready`].
    pub fn reclaim_complete(&mut self, client: ClientId, one_filesystem: bool) -> Result<(), Status> {
        match self.clients.get(&client) {
            None => Err(Status::StaleClientId),
            Some(_) if one_filesystem => Ok(()),
            Some(known) if known.reclaim_complete => Err(Status::CompleteAlready),
            Some(_) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.reclaim_complete = true;
                }
                Ok(())
            }
        }
    }
}
