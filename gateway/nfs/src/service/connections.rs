//! The connections of clients, recorded so that the next primary can nudge their clients: these notice then that their server
//! is elsewhere, and do not wait for their own retransmission.
//!
//! Nothing waits for these records, and no operation of a client carries them: one that is missing costs its client the time until
//! it sends again, which is a minute where a Linux kernel waits for a reply.
//! So they are written by themselves, some at a time, soon after they were taken; those that are gone now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use block_device::BlockDevice;
use filesystem::engine::Handle;
use filesystem::state_ring::{Record, RecordId};
use tracing::debug;

use super::{Gone, Service};
use crate::state::back_channel::ConnectionId;
use crate::state::record::{CONNECTION, Payload, numbered};
use crate::xdr::{Decoder, Encoder, XdrError};

/// Connections that are recorded; clients of more notice by themselves.
const CONNECTIONS_RECORDED_MAX: usize = 4096;
/// Records that are written in one transaction.
const WRITTEN_AT_ONCE: usize = 64;
/// Bytes of an address: IPv6, or IPv4 mapped into it.
const ADDRESS_BYTES: usize = 16;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The client's.
    pub client: SocketAddr,
    /// Ours.
    pub service: SocketAddr,
}

impl Payload for Endpoints {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        for end in [self.client, self.service] {
            let address = match end.ip() {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            into.fixed(&address.octets());
            into.u32(end.port().into());
        }
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        let mut end = || {
            let address = IpAddr::V6(Ipv6Addr::from(from.fixed::<ADDRESS_BYTES>()?)).to_canonical();
            let value = from.u32()?;
            let port = u16::try_from(value).map_err(|_| XdrError::BadValue { of: "a port", value })?;
            Ok(SocketAddr::new(address, port))
        };
        Ok(Self { client: end()?, service: end()? })
    }
}

/// Those that there are, and those that the ring tells of.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// By the number of the record.
    open: BTreeMap<u32, Endpoints>,
    numbers: BTreeMap<ConnectionId, u32>,
    /// Whose records do not say what is.
    unwritten: BTreeSet<u32>,
    /// Those of the run before.
    former: Vec<Endpoints>,
}

impl Connections {
    /// What the run before has left. Its records are to go.
    pub(super) fn of_records(records: &[Record]) -> Self {
        let mut connections = Self::default();
        for record in records.iter().filter(|record| record.id.kind == CONNECTION) {
            connections.former.extend(Endpoints::from_payload(&record.payload));
            connections.unwritten.extend(u32::try_from(record.id.key));
        }
        connections
    }

    fn opened(&mut self, connection: ConnectionId, ends: Endpoints) {
        if self.open.len() >= CONNECTIONS_RECORDED_MAX {
            return;
        }
        // The records that are there are numbered from 0 on, so one of the first numbers is free.
        let free = (0..).find(|number| !self.open.contains_key(number)).unwrap_or_default();
        self.open.insert(free, ends);
        self.numbers.insert(connection, free);
        self.unwritten.insert(free);
    }

    pub(super) fn closed(&mut self, connection: ConnectionId) {
        if let Some(number) = self.numbers.remove(&connection) {
            self.open.remove(&number);
            self.unwritten.insert(number);
        }
    }
}

fn record_of(number: u32) -> RecordId {
    numbered(CONNECTION, number.into())
}

impl<D: BlockDevice + 'static> Service<D> {
    /// A connection was taken, to be recorded until it is closed.
    pub fn record_connection(&self, connection: ConnectionId, ends: Endpoints) {
        self.connections.borrow_mut().opened(connection, ends);
    }

    /// The connections of the run before, told once: their clients are to be nudged.
    pub fn take_former_connections(&self) -> Vec<Endpoints> {
        std::mem::take(&mut self.connections.borrow_mut().former)
    }

    /// Writes what was not written yet. Errors: there will be no answers any more.
    pub async fn note_connections(&self) -> Result<(), Gone> {
        loop {
            let some: Vec<(u32, Option<Endpoints>)> = {
                let connections = self.connections.borrow();
                let unwritten = connections.unwritten.iter().take(WRITTEN_AT_ONCE);
                unwritten.map(|number| (*number, connections.open.get(number).copied())).collect()
            };
            if some.is_empty() {
                return Ok(());
            }
            let write = |handle: &mut Handle<'_>| {
                some.iter().try_for_each(|(number, ends)| match ends {
                    Some(ends) => handle.append_record(record_of(*number), &ends.to_payload()),
                    None => handle.delete_record(record_of(*number)).map(drop),
                })
            };
            match self.files.run(write).await {
                Ok(_) => {}
                Err(failure @ filesystem::engine::Failure::Device(_)) => return Err(Gone(failure)),
                Err(failure) => {
                    // A ring without room has more important things to keep.
                    debug!("connections are not recorded: {failure}");
                    return Ok(());
                }
            }
            let mut connections = self.connections.borrow_mut();
            for (number, ends) in some {
                if connections.open.get(&number).copied() == ends {
                    connections.unwritten.remove(&number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(port: u16) -> Endpoints {
        let service = SocketAddr::new("10.0.0.50".parse().unwrap(), 2049);
        Endpoints { client: SocketAddr::new("fd00::1".parse().unwrap(), port), service }
    }

    #[test]
    fn both_ends_come_back_and_nothing_else_is_read() {
        assert_eq!(Endpoints::from_payload(&ends(900).to_payload()), Ok(ends(900)));
        let mut payload = ends(900).to_payload();
        payload[4 + ADDRESS_BYTES] = 1;
        assert!(Endpoints::from_payload(&payload).is_err(), "a port beyond all ports");
    }

    #[test]
    fn those_of_the_run_before_are_told_and_their_records_go_or_are_used_again() {
        let record =
            |number: u32, port| Record { id: record_of(number), sequence: 1, payload: ends(port).to_payload() };
        let mut connections = Connections::of_records(&[record(0, 900), record(7, 901)]);
        assert_eq!(connections.former, [ends(900), ends(901)]);
        connections.opened(ConnectionId(1), ends(1000));
        assert_eq!(connections.open[&0], ends(1000));
        assert_eq!(connections.unwritten, [0, 7].into());
        connections.closed(ConnectionId(1));
        assert!(connections.open.is_empty());
    }

    #[test]
    fn more_than_are_recorded_cost_nothing() {
        let mut connections = Connections::default();
        for number in 0..CONNECTIONS_RECORDED_MAX as u64 + 10 {
            connections.opened(ConnectionId(number), ends(1));
        }
        assert_eq!(connections.open.len(), CONNECTIONS_RECORDED_MAX);
        connections.closed(ConnectionId(CONNECTIONS_RECORDED_MAX as u64 + 1));
        assert_eq!(connections.open.len(), CONNECTIONS_RECORDED_MAX);
    }
}
