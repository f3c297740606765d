//! What a service counts: operations and how long they take, clients, connections, replays. Plain numbers that belong to the
//! service's one thread; whoever wants to look is given a copy ([`report`]).
//!
//! Everything is bounded: there is a fixed place for each operation and each class of time, and clients are counted as long as
//! they are known.

pub mod histogram;
pub mod program;
pub mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{ClientId, Moment};
use crate::state::back_channel::ConnectionId;
use histogram::Histogram;
use program::Program;

/// Clients that are known by their addresses only; of more, the one that was silent longest is forgotten.
pub const ADDRESSES_MAX: usize = 1_024;
/// Clients that are counted, however they are known; beyond, new ones are not counted by themselves.
pub const CLIENTS_COUNTED_MAX: usize = crate::state::clients::CLIENTS_MAX + ADDRESSES_MAX;
/// Statuses of an operation that are told apart; further ones count as this, which is none.
pub const OTHER_STATUS: u32 = u32::MAX;
/// How many those are.
pub const STATUSES_MAX: usize = 64;
/// Rules of the exports that are counted, those that are no more included; beyond, new ones are not counted by themselves.
pub const EXPORTS_COUNTED_MAX: usize = 256;

/// Where somebody is: an IPv6 address, or an IPv4 address as one (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 16]);

/// Whom a rule of the exports is about: a network, of which the prefix of an IPv4 one counts its 96 bits in front, too; none is
/// everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Export(pub Option<(Address, u8)>);

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKey {
    /// A client with sessions.
    Session(ClientId),
    /// One that says nothing of itself: NFSv3 and what belongs to it.
    Address(Address),
}

/// Who asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Who.
    pub client: ClientKey,
    /// By which connection.
    pub connection: ConnectionId,
    /// From where.
    pub address: Address,
    /// By which rule of the exports; none if none is about that address.
    pub export: Option<Export>,
    /// Version and minor version.
    pub version: (u32, u32),
}

/// What one request of a client came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of data that it was given.
    pub read_bytes: u64,
    /// Bytes of data that it had written.
    pub written_bytes: u64,
}

/// Of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounters {
    /// Done or refused.
    pub count: u64,
    /// Refused, by status.
    pub errors: BTreeMap<u32, u64>,
    /// How long requests took that were there for this operation.
    pub time: Histogram,
}

/// Of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCounters {
    /// Where its newest request came from.
    pub address: Address,
    /// Version and minor version of its newest request.
    pub version: (u32, u32),
    /// Requests.
    pub requests: u64,
    /// What they came to.
    pub work: Work,
    /// When the newest was.
    pub heard: Moment,
}

/// Of the clients that a rule of the exports is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportCounters {
    /// Requests.
    pub requests: u64,
    /// What they came to.
    pub work: Work,
}

/// Of the whole service, since it began on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls of any program.
    pub requests: u64,
    /// Compounds among them.
    pub compounds: u64,
    /// Calls that are being answered.
    pub requests_in_flight: u64,
    /// Calls that were not accepted: an unknown program, a user that no export names, what cannot be read.
    pub requests_rejected: u64,
    /// Bytes of calls.
    pub received_bytes: u64,
    /// Bytes of replies.
    pub sent_bytes: u64,
    /// Data that clients were given and had written.
    pub work: Work,
    /// Retries that had to wait until the request that they repeat had ended.
    pub parked: u64,
    /// Requests whose reply was recorded beside what they changed.
    pub replies_recorded: u64,
    /// Requests that took longer than they should.
    pub slow: u64,
    /// Connections that were taken.
    pub connections_taken: u64,
    /// Connections that were closed at once, because there were too many.
    pub connections_refused: u64,
}

/// All that is counted.
#[derive(Clone, Debug)]
pub struct Counters {
    operations: [Vec<OperationCounters>; Program::ALL.len()],
    clients: BTreeMap<ClientKey, ClientCounters>,
    exports: BTreeMap<Export, ExportCounters>,
    /// Those that are there, and who came by each last.
    connections: BTreeMap<ConnectionId, Option<ClientKey>>,
    /// Of the whole service.
    pub totals: Totals,
}

impl Default for Counters {
    fn default() -> Self {
        let places = |program: Program| vec![OperationCounters::default(); program.operations().len()];
        Self {
            operations: Program::ALL.map(places),
            clients: BTreeMap::new(),
            exports: BTreeMap::new(),
            connections: BTreeMap::new(),
            totals: Totals::default(),
        }
    }
}

impl Counters {
    fn place(&mut self, program: Program, number: u32) -> Option<&mut OperationCounters> {
        self.operations.get_mut(program as usize)?.get_mut(program.place(number))
    }

    /// An operation was answered; status 0 is success.
    pub fn operation(&mut self, program: Program, number: u32, status: u32) {
        let Some(counters) = self.place(program, number) else { return };
        counters.count += 1;
        if status != 0 {
            let is_new = !counters.errors.contains_key(&status);
            let told = if is_new && counters.errors.len() >= STATUSES_MAX { OTHER_STATUS } else { status };
            *counters.errors.entry(told).or_default() += 1;
        }
    }

    /// A request that was there for this operation was answered after so long.
    pub fn took(&mut self, program: Program, number: u32, time: Duration) {
        if let Some(counters) = self.place(program, number) {
            counters.time.record(time);
        }
    }

    /// A request of a client came to so much.
    pub fn request(&mut self, asker: Asker, work: Work, now: Moment) {
        self.totals.work.add(work);
        if let Some(export) = asker.export
            && (self.exports.contains_key(&export) || self.exports.len() < EXPORTS_COUNTED_MAX)
        {
            let counters = self.exports.entry(export).or_default();
            counters.requests += 1;
            counters.work.add(work);
        }
        // A request may outlive its connection.
        if let Some(client) = self.connections.get_mut(&asker.connection) {
            *client = Some(asker.client);
        }
        if !self.clients.contains_key(&asker.client) {
            self.make_room(asker.client);
            if self.clients.len() >= CLIENTS_COUNTED_MAX {
                return;
            }
        }
        let Asker { address, version, .. } = asker;
        let new = ClientCounters { address, version, requests: 0, work: Work::default(), heard: now };
        let counters = self.clients.entry(asker.client).or_insert(new);
        (counters.address, counters.version, counters.heard) = (address, version, now);
        counters.requests += 1;
        counters.work.add(work);
    }

    /// Forgets one client of those that are known by their addresses, if another one needs its place.
    fn make_room(&mut self, newcomer: ClientKey) {
        let addresses = ClientKey::Address(Address([0; 16]))..;
        if matches!(newcomer, ClientKey::Session(_)) || self.clients.range(addresses.clone()).count() < ADDRESSES_MAX {
            return;
        }
        let silent = self.clients.range(addresses).min_by_key(|(_, counters)| counters.heard).map(|(key, _)| *key);
        silent.map(|key| self.clients.remove(&key));
    }

    /// A connection was taken.
    pub fn connection_taken(&mut self, connection: ConnectionId) {
        self.totals.connections_taken += 1;
        self.connections.insert(connection, None);
    }

    /// A connection is no more.
    pub fn connection_ended(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
    }

    /// Forgets clients with sessions that are not known any more.
    pub fn keep_only(&mut self, is_known: impl Fn(ClientId) -> bool) {
        self.clients.retain(|key, _| match key {
            ClientKey::Session(client) => is_known(*client),
            ClientKey::Address(_) => true,
        });
    }
}

impl Work {
    fn add(&mut self, other: Self) {
        self.read_bytes = self.read_bytes.saturating_add(other.read_bytes);
        self.written_bytes = self.written_bytes.saturating_add(other.written_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(client: ClientKey, connection: u64) -> Asker {
        let address = Address([7; 16]);
        Asker { client, connection: ConnectionId(connection), address, export: Some(network(24)), version: (4, 2) }
    }

    fn by_address(last: u16) -> ClientKey {
        ClientKey::Address(Address(u128::from(last).to_be_bytes()))
    }

    /// An IPv4 network.
    fn network(prefix_length: u8) -> Export {
        let mut octets = [0; 16];
        octets[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 0]);
        Export(Some((Address(octets), 96 + prefix_length)))
    }

    #[test]
    fn exports_are_counted() {
        let mut counters = Counters::default();
        let work = Work { read_bytes: 3, written_bytes: 4 };
        let asker = asker(by_address(1), 1);
        for export in [Some(network(24)), Some(network(24)), Some(Export(None)), None] {
            counters.request(Asker { export, ..asker }, work, Moment(0));
        }
        let twice = ExportCounters { requests: 2, work: Work { read_bytes: 6, written_bytes: 8 } };
        let once = ExportCounters { requests: 1, work };
        assert_eq!(counters.exports, BTreeMap::from([(Export(None), once), (network(24), twice)]));
        (0..=128).for_each(|prefix| {
            let more = [Address([1; 16]), Address([2; 16])].map(|address| Export(Some((address, prefix))));
            more.into_iter()
                .for_each(|export| counters.request(Asker { export: Some(export), ..asker }, work, Moment(0)));
        });
        assert_eq!(counters.exports.len(), EXPORTS_COUNTED_MAX);
    }

    #[test]
    fn operations_are_counted_with_what_they_were_refused_with() {
        let mut counters = Counters::default();
        for status in [0, 2, 2, 13] {
            counters.operation(Program::V4, 15, status);
        }
        counters.operation(Program::V4, 10_044, 10_044);
        counters.took(Program::V4, 15, Duration::from_micros(20));
        let lookup = &counters.operations[0][15];
        assert_eq!((lookup.count, &lookup.errors), (4, &BTreeMap::from([(2, 2), (13, 1)])));
        assert_eq!(lookup.time.count(), 1);
        assert_eq!(counters.operations[0][2].count, 1, "what is no operation has a place, too");
    }

    #[test]
    fn statuses_without_end_take_no_more_room() {
        let mut counters = Counters::default();
        (1..=1_000).for_each(|status| counters.operation(Program::Nlm, 2, status));
        let errors = &counters.operations[Program::Nlm as usize][2].errors;
        assert_eq!((errors.len(), errors[&OTHER_STATUS]), (STATUSES_MAX + 1, 1_000 - STATUSES_MAX as u64));
    }

    #[test]
    fn of_too_many_addresses_the_one_that_was_silent_longest_is_forgotten() {
        let mut counters = Counters::default();
        let max = ADDRESSES_MAX as u16;
        for last in 0..max {
            counters.request(asker(by_address(last), 1), Work::default(), Moment(u64::from(last) + 10));
        }
        counters.request(asker(by_address(0), 1), Work::default(), Moment(5_000));
        counters.request(asker(by_address(max), 1), Work::default(), Moment(5_001));
        assert_eq!(counters.clients.len(), ADDRESSES_MAX);
        assert!(counters.clients.contains_key(&by_address(0)), "it was heard of again");
        assert!(!counters.clients.contains_key(&by_address(1)));
    }

    #[test]
    fn clients_that_are_not_known_any_more_are_forgotten() {
        let mut counters = Counters::default();
        let (one, two) = (ClientKey::Session(ClientId(1)), ClientKey::Session(ClientId(2)));
        let work = Work { read_bytes: 3, written_bytes: 4 };
        for client in [one, two, by_address(9)] {
            counters.request(asker(client, 1), work, Moment(0));
        }
        counters.keep_only(|client| client == ClientId(2));
        assert_eq!(counters.clients.keys().copied().collect::<Vec<_>>(), [two, by_address(9)]);
        assert_eq!(counters.totals.work, Work { read_bytes: 9, written_bytes: 12 });
    }
}
