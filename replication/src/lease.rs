//! The primary's side of a lease: which beacons were sent when, and until when their acks let it serve reads.
//!
//! The lease counts from the *sending* of the beacon that was acknowledged, the grace of the granting side from its
//! receipt; so the lease ends first by more than the clocks can drift apart.

use std::collections::VecDeque;

use proto::{Micros, Timestamp};

/// Beacons remembered; an ack of an older one grants nothing.
const BEACONS_MAX: usize = 64;

/// A lease from one peer, over one session.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Lease {
    sent: VecDeque<(u64, Timestamp)>,
    last_number: u64,
    until: Timestamp,
    confirmed: u64,
    acked: u64,
}

impl Lease {
    /// Numbers the next beacon, sent at `now`.
    pub(crate) fn on_beacon_sent(&mut self, now: Timestamp) -> u64 {
        self.last_number += 1;
        if self.sent.len() == BEACONS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((self.last_number, now));
        self.last_number
    }

    /// The peer answered beacon `number`, whether it granted it or not.
    pub(crate) fn on_answered(&mut self, number: u64) {
        self.acked = self.acked.max(number.min(self.last_number));
    }

    /// The peer granted beacon `number`.
    pub(crate) fn on_granted(&mut self, number: u64, length: Micros) {
        let Some((_, sent)) = self.sent.iter().find(|(other, _)| *other == number) else { return };
        self.until = self.until.max(*sent + length);
        self.confirmed = self.confirmed.max(number);
        while self.sent.front().is_some_and(|(other, _)| *other < number) {
            self.sent.pop_front();
        }
    }

    /// True while the peer will not take over.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        now < self.until
    }

    /// The newest beacon sent.
    pub(crate) fn last_number(&self) -> u64 {
        self.last_number
    }

    /// The newest beacon answered.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// The newest beacon granted.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_sending_of_the_granted_beacon() {
        let mut lease = Lease::default();
        let first = lease.on_beacon_sent(Timestamp(1000));
        let second = lease.on_beacon_sent(Timestamp(2000));
        lease.on_granted(second, Micros(500));
        assert!(lease.is_valid(Timestamp(2499)) && !lease.is_valid(Timestamp(2500)));
        lease.on_granted(first, Micros(5000));
        assert!(!lease.is_valid(Timestamp(2500)), "an older beacon's late ack grants nothing");
        assert_eq!(lease.confirmed(), 2);
    }

    #[test]
    fn an_ack_of_an_unknown_beacon_grants_nothing() {
        let mut lease = Lease::default();
        lease.on_granted(7, Micros(500));
        assert!(!lease.is_valid(Timestamp(0)));
    }
}
