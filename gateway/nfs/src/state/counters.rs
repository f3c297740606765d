//! The service itself: its epoch, its write verifier, whether it is in grace, and the numbers that it gives to clients, sessions
//! and states. A number is never given twice: a record says below which number all may have been given, and is written again
//! once every [`RESERVED_NUMBERS`] numbers. A takeover goes on from there.

use crate::ids::{ClientId, StateNumber};
use crate::state::record::Payload;
use crate::state::table::Table;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Numbers that are set aside at once.
pub const RESERVED_NUMBERS: u64 = 4_096;

/// Kinds of numbers.
const KINDS: usize = 3;
const CLIENTS: usize = 0;
const SESSIONS: usize = 1;
const STATES: usize = 2;

/// What the record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// In the ids of clients and states; another one each time that state was lost.
    pub epoch: u32,
    /// The verifier of unstable writes (RFC 8881 §18.32.3).
    pub verifier: u64,
    /// Clients of before may still reclaim what they had.
    pub in_grace: bool,
    /// All numbers below may have been given.
    reserved: [u64; KINDS],
}

impl Payload for Service {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.u32(self.epoch);
        into.u64(self.verifier);
        into.bool(self.in_grace);
        for reserved in self.reserved {
            into.u64(reserved);
        }
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let (epoch, verifier, in_grace) = (from.u32()?, from.u64()?, from.bool()?);
        Ok(Self { epoch, verifier, in_grace, reserved: [from.u64()?, from.u64()?, from.u64()?] })
    }
}

/// The service, and the numbers that come next.
#[derive(Debug)]
pub struct Counters {
    service: Table<(), Service>,
    /// No record tells of the service yet, whatever is taken back.
    is_new: bool,
    /// Never goes back, even if what a number was for is taken back.
    next: [u64; KINDS],
}

impl Counters {
    /// Of a service that starts anew. The record is a change that is still to be kept.
    pub fn fresh(epoch: u32, verifier: u64, in_grace: bool) -> Self {
        let mut service = Table::default();
        service.insert((), Service { epoch, verifier, in_grace, reserved: [1; KINDS] });
        service.commit();
        Self { service, is_new: true, next: [1; KINDS] }
    }

    /// As a record says.
    pub fn restore(known: Service) -> Self {
        let mut service = Table::default();
        service.insert((), known);
        service.commit();
        Self { service, is_new: false, next: known.reserved }
    }

    /// The record.
    pub fn service(&self) -> Service {
        let empty = Service { epoch: 0, verifier: 0, in_grace: false, reserved: [1; KINDS] };
        self.service.get(&()).copied().unwrap_or(empty)
    }

    /// True if the record is to be written.
    pub(super) fn is_changed(&self) -> bool {
        self.is_new || self.service.is_changed()
    }

    pub(super) fn commit(&mut self) {
        self.service.commit();
        self.is_new = false;
    }

    pub(super) fn take_back(&mut self) {
        self.service.take_back();
    }

    /// A verifier that says that unstable data is gone.
    pub fn set_verifier(&mut self, verifier: u64) {
        if let Some(service) = self.service.get_mut(&()) {
            service.verifier = verifier;
        }
    }

    pub(super) fn end_grace(&mut self) {
        if let Some(service) = self.service.get_mut(&()) {
            service.in_grace = false;
        }
    }

    /// An id that no client had. None when all of the epoch are used.
    pub fn client(&mut self) -> Option<ClientId> {
        let number = u32::try_from(self.take(CLIENTS)).ok()?;
        Some(ClientId(u64::from(self.service().epoch) << 32 | u64::from(number)))
    }

    /// A number that no session had.
    pub fn session(&mut self) -> u64 {
        self.take(SESSIONS)
    }

    /// A number that no open, lock or delegation had.
    pub fn state(&mut self) -> StateNumber {
        StateNumber(self.take(STATES))
    }

    /// True if the client may have been given this id by this service, in this epoch.
    pub fn knows_client(&self, client: ClientId) -> bool {
        let service = self.service();
        client.0 >> 32 == u64::from(service.epoch) && client.0 & u64::from(u32::MAX) < service.reserved[CLIENTS]
    }

    /// True if a session may have this number.
    pub fn knows_session(&self, number: u64) -> bool {
        number < self.service().reserved[SESSIONS]
    }

    /// True if a state may have this number.
    pub fn knows_state(&self, number: StateNumber) -> bool {
        number.0 < self.service().reserved[STATES]
    }

    fn take(&mut self, kind: usize) -> u64 {
        let number = self.next[kind];
        self.next[kind] = number.saturating_add(1);
        if number >= self.service().reserved[kind]
            && let Some(service) = self.service.get_mut(&())
        {
            service.reserved[kind] = number.saturating_add(RESERVED_NUMBERS);
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_twice_whatever_is_taken_back_or_lost() {
        let mut counters = Counters::fresh(7, 1, false);
        counters.commit();
        let mut kept = counters.service();
        let mut newest = 0;
        for round in 0..5_000_u64 {
            let StateNumber(number) = counters.state();
            assert!(number > newest, "{number} after {newest}");
            newest = number;
            match round % 7 {
                0 => counters.take_back(),
                _ => counters.commit(),
            }
            if !counters.is_changed() {
                kept = counters.service();
            }
            if round % 1_000 == 999 {
                assert!(newest < kept.reserved[STATES], "a number was given before its record was kept");
                counters = Counters::restore(kept);
            }
        }
    }

    #[test]
    fn the_record_is_written_once_for_many_numbers() {
        let mut counters = Counters::fresh(1, 1, false);
        counters.commit();
        let mut writes = 0;
        for _ in 0..3 * RESERVED_NUMBERS {
            counters.session();
            writes += u64::from(counters.is_changed());
            counters.commit();
        }
        assert_eq!(writes, 3);
    }

    #[test]
    fn client_ids_carry_the_epoch_and_end_with_it() {
        let mut counters = Counters::fresh(7, 1, false);
        assert_eq!(counters.client(), Some(ClientId(7 << 32 | 1)));
        assert!(counters.knows_client(ClientId(7 << 32 | 1)));
        assert!(!counters.knows_client(ClientId(6 << 32 | 1)), "of another epoch");
        assert!(!counters.knows_client(ClientId(7 << 32 | 1 << 20)), "not given yet");
        counters.take_back();
        assert_eq!(counters.service().epoch, 7);
        assert!(counters.is_changed(), "its first record is still to be written");
        counters.next[CLIENTS] = u64::from(u32::MAX);
        assert!(counters.client().is_some());
        assert_eq!(counters.client(), None);
    }

    #[test]
    fn the_record_comes_back() {
        let service = Service { epoch: 3, verifier: 9, in_grace: true, reserved: [4, 5, 6] };
        assert_eq!(Service::from_payload(&service.to_payload()), Ok(service));
    }
}
