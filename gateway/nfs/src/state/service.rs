//! All that a service knows: its clients, and what they have open and locked. One unit for whoever runs operations: what is
//! recorded, what counts, what is taken back.

use std::collections::BTreeSet;

use bytes::Bytes;
use filesystem::state_ring::{Record, RecordId};
use thiserror::Error;

use super::clients::Clients;
use super::files::FileStates;
use super::hosts::Hosts;
use super::lease::LEASE_MS;
use super::record::{self, DELEGATION, LOCK, OPEN};
use super::recorded;
use crate::ids::{ClientId, Moment};

/// The records do not say what the state was: it is lost.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateLost {
    /// Those of clients, sessions and slots.
    #[error("the records of clients: {0}")]
    Clients(#[from] record::RestoreError),
    /// Those of opens, locks and delegations.
    #[error("the records of opens and locks: {0}")]
    Files(#[from] recorded::RestoreError),
    /// Those of the network lock manager's hosts.
    #[error("the records of hosts: {0}")]
    Hosts(record::RestoreError),
}

/// The state of a service.
#[derive(Debug)]
pub struct ServiceState {
    /// Clients, sessions, slots.
    pub clients: Clients,
    /// Opens, locks, delegations.
    pub files: FileStates,
    /// Hosts of the network lock manager.
    pub hosts: Hosts,
}

impl ServiceState {
    /// Of a service that starts for the first time, in an epoch that it never had.
    pub fn fresh(epoch: u32, verifier: u64, now: Moment) -> Self {
        let clients = Clients::fresh(epoch, verifier, LEASE_MS, Some(BTreeSet::new()), now);
        Self { clients, files: FileStates::new(epoch), hosts: Hosts::default() }
    }

    /// Of a service whose state is lost, in an epoch that it never had: whoever was a client may reclaim what it had. `former`:
    /// what these called themselves, if that is known. Hosts that records still tell of are to hear of it; those records stay
    /// ([`Hosts::is_kept_in`]).
    pub fn lost(
        records: &[Record],
        (epoch, verifier): (u32, u64),
        former: Option<BTreeSet<Bytes>>,
        now: Moment,
    ) -> Self {
        let clients = Clients::fresh(epoch, verifier, LEASE_MS, former, now);
        let hosts = Hosts::salvage(records.iter().map(|record| (record.id, &*record.payload)));
        Self { clients, files: FileStates::new(epoch), hosts }
    }

    /// As the records say. Errors: they do not fit together; the state is lost then.
    pub fn restore(records: &[Record], now: Moment) -> Result<Self, StateLost> {
        let all = || records.iter().map(|record| (record.id, &*record.payload));
        let clients = Clients::restore(all(), LEASE_MS, now)?;
        let of_files = all().filter(|(id, _)| [OPEN, LOCK, DELEGATION].contains(&id.kind));
        let files = FileStates::restore(clients.counters.service().epoch, of_files)?;
        let hosts = Hosts::restore(all()).map_err(StateLost::Hosts)?;
        Ok(Self { clients, files, hosts })
    }

    /// True if there is something to be recorded.
    pub fn is_changed(&self) -> bool {
        self.clients.is_changed() || self.files.is_changed() || self.hosts.is_changed()
    }

    /// What is to be recorded beside the operation under way; None where a record goes.
    pub fn records(&self, mut put: impl FnMut(RecordId, Option<Vec<u8>>)) {
        self.clients.records(&mut put);
        self.files.records().into_iter().for_each(|(id, payload)| put(id, payload));
        self.hosts.records(put);
    }

    /// The operation counts.
    pub fn commit(&mut self) {
        self.clients.commit();
        self.files.commit();
        self.hosts.commit();
    }

    /// The operation does not count.
    pub fn take_back(&mut self) {
        self.clients.take_back();
        self.files.take_back();
        self.hosts.take_back();
    }

    /// Forgets a client that nobody waits for any more, and all that it has.
    pub fn drop_client(&mut self, client: ClientId) {
        self.clients.drop_client(client);
        self.files.drop_client(client);
    }
}
