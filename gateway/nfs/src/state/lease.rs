//! Leases (RFC 8881 §8.3): when a client was heard of last. In memory only: after a takeover all start in full.
//!
//! A client whose lease has ended keeps what it has, by courtesy, until somebody wants what it holds, or it was away for long,
//! or too many are away. Who drops it is not known here.

use std::collections::BTreeMap;

use crate::ids::{ClientId, Moment};

/// Milliseconds of a lease unless somebody wants another.
pub const LEASE_MS: u64 = 90_000;
/// Milliseconds behind its lease after which a client is not waited for.
pub const COURTESY_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
/// Clients behind their leases; of more, those that were away longest are not waited for.
pub const COURTESY_CLIENTS_MAX: usize = 1_024;

/// The leases of a service.
#[derive(Clone, Debug)]
pub struct Leases {
    lease_ms: u64,
    heard: BTreeMap<ClientId, Moment>,
}

impl Leases {
    /// None yet; each as long as this.
    pub fn new(lease_ms: u64) -> Self {
        Self { lease_ms, heard: BTreeMap::new() }
    }

    /// Milliseconds of a lease.
    pub fn lease_ms(&self) -> u64 {
        self.lease_ms
    }

    /// The client was heard of.
    pub fn renew(&mut self, client: ClientId, now: Moment) {
        self.heard.insert(client, now);
    }

    /// True when the lease has ended, or there is none.
    pub fn is_over(&self, client: ClientId, now: Moment) -> bool {
        self.heard.get(&client).is_none_or(|heard| now.since(*heard) > self.lease_ms)
    }

    /// When the client was heard of last.
    pub fn heard(&self, client: ClientId) -> Option<Moment> {
        self.heard.get(&client).copied()
    }

    /// Those that are not waited for any more, the longest away first.
    pub fn expired(&self, now: Moment) -> Vec<ClientId> {
        let away = self.away(now);
        let too_many = away.len().saturating_sub(COURTESY_CLIENTS_MAX);
        let limit = self.lease_ms.saturating_add(COURTESY_MS_MAX);
        let gone = away.iter().enumerate().filter(|(place, (heard, _))| *place < too_many || now.since(*heard) > limit);
        gone.map(|(_, (_, client))| *client).collect()
    }

    pub(super) fn forget(&mut self, client: ClientId) {
        self.heard.remove(&client);
    }

    /// Those whose leases have ended, the longest away first, with when they were heard of.
    pub fn away(&self, now: Moment) -> Vec<(Moment, ClientId)> {
        let over = self.heard.iter().filter(|(_, heard)| now.since(**heard) > self.lease_ms);
        let mut away: Vec<_> = over.map(|(client, heard)| (*heard, *client)).collect();
        away.sort_unstable();
        away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_was_away_for_long_is_not_waited_for() {
        let mut leases = Leases::new(LEASE_MS);
        let (one, two) = (ClientId(1), ClientId(2));
        leases.renew(one, Moment(0));
        leases.renew(two, Moment(10));
        assert!(!leases.is_over(one, Moment(LEASE_MS)));
        assert!(leases.is_over(one, Moment(LEASE_MS + 1)));
        assert!(leases.is_over(ClientId(3), Moment(0)), "nobody has heard of it");
        assert_eq!(leases.away(Moment(LEASE_MS)), []);
        assert_eq!(leases.away(Moment(LEASE_MS + 11)), [(Moment(0), one), (Moment(10), two)]);
        assert_eq!(leases.expired(Moment(LEASE_MS + COURTESY_MS_MAX)), []);
        assert_eq!(leases.expired(Moment(LEASE_MS + COURTESY_MS_MAX + 1)), [one]);
        leases.renew(one, Moment(LEASE_MS + COURTESY_MS_MAX + 1));
        assert!(!leases.is_over(one, Moment(LEASE_MS + COURTESY_MS_MAX + 2)));
    }

    #[test]
    fn of_too_many_that_are_away_the_longest_gone_are_not_waited_for() {
        let mut leases = Leases::new(LEASE_MS);
        let all = COURTESY_CLIENTS_MAX as u64 + 3;
        for number in 0..all {
            leases.renew(ClientId(number), Moment(all - number));
        }
        let newest_first = [ClientId(all - 1), ClientId(all - 2), ClientId(all - 3)];
        assert_eq!(leases.expired(Moment(LEASE_MS + all + 1)), newest_first);
    }
}
