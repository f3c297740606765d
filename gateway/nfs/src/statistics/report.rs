//! What is told of a service: a copy of its counters with what its tables hold at that moment. Crosses threads.

use std::collections::BTreeMap;

use bytes::Bytes;
use filesystem::engine::{RingUsage, Statistics as FilesStatistics};

use super::histogram::Histogram;
use super::program::{Program, UNKNOWN};
use super::{Address, ClientKey, Counters, Export, ExportCounters, OTHER_STATUS, Totals, Work};
use crate::ids::{ClientId, Moment};
use crate::state::bounds::Totals as Held;
use crate::state::sequence::Replays;
use crate::state::service::ServiceState;

/// Everything about a service.
#[derive(Clone, Debug)]
pub struct Report {
    /// Counted since the service began on this node.
    pub totals: Totals,
    /// How retries were answered.
    pub replays: Replays,
    /// Operations that were asked for at least once.
    pub operations: Vec<OperationReport>,
    /// Clients, confirmed ones and those that are known by their addresses.
    pub clients: Vec<ClientReport>,
    /// The rules of the exports that there are or were, and what came of the clients that each is about.
    pub exports: Vec<(Export, ExportCounters)>,
    /// What all clients have.
    pub held: Held,
    /// Their sessions.
    pub sessions: u64,
    /// Milliseconds of a lease.
    pub lease_ms: u64,
    /// Clients may reclaim what they had, and nobody gets anything new.
    pub in_grace: bool,
    /// Connections that are there.
    pub connections: u64,
    /// Milliseconds since the service began on this node.
    pub age_ms: u64,
    /// Bytes of requests that are being read or worked on, and how many there may be.
    pub request_bytes: (u64, u64),
    /// How full the ring is where replies and state are recorded.
    pub ring: Option<RingUsage>,
    /// How full the filesystem is.
    pub files: FilesStatistics,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationReport {
    /// Of which program.
    pub program: Program,
    /// Its name in the protocol.
    pub name: &'static str,
    /// Done or refused.
    pub count: u64,
    /// Refused, by the names of statuses.
    pub errors: Vec<(String, u64)>,
    /// How long requests took that were there for it.
    pub time: Histogram,
}

/// How a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// It was heard of within its lease.
    Active,
    /// Its lease is over, and it keeps what nobody else wants.
    Courtesy,
    /// It may still reclaim what it had.
    Reclaiming,
    /// It has no lease: NFSv3.
    None,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReport {
    /// Which.
    pub key: ClientKey,
    /// What it calls itself; empty without sessions.
    pub owner: Bytes,
    /// What its program is, as it says.
    pub implementation: Bytes,
    /// Where its newest request came from; none if it was not heard of since the service began on this node.
    pub address: Option<Address>,
    /// Version and minor version of its newest request.
    pub version: Option<(u32, u32)>,
    /// Its sessions.
    pub sessions: u64,
    /// Connections that it came by last.
    pub connections: u64,
    /// What it has.
    pub held: Held,
    /// Requests.
    pub requests: u64,
    /// What they came to.
    pub work: Work,
    /// Milliseconds since it was heard of.
    pub heard_ms_ago: u64,
    /// Its lease.
    pub lease: LeaseState,
}

/// What whoever runs the service knows beside the tables.
pub(crate) struct Surroundings {
    pub(crate) now: Moment,
    pub(crate) began: Moment,
    pub(crate) request_bytes: (u64, u64),
    pub(crate) ring: Option<RingUsage>,
    pub(crate) files: FilesStatistics,
    /// The rules that there are.
    pub(crate) exports: Vec<Export>,
}

impl Report {
    /// Of a service with these counters and this state.
    pub(crate) fn new(counters: &Counters, state: &ServiceState, around: Surroundings) -> Self {
        let Surroundings { now, began, request_bytes, ring, files, exports } = around;
        let clients = client_reports(counters, state, now);
        let unused = exports.into_iter().map(|export| (export, ExportCounters::default()));
        let counted = counters.exports.iter().map(|(export, counters)| (*export, *counters));
        let exports: BTreeMap<_, _> = unused.chain(counted).collect();
        Self {
            totals: counters.totals,
            replays: state.clients.replays(),
            operations: operation_reports(counters),
            held: state.files.totals(),
            sessions: clients.iter().map(|client| client.sessions).sum(),
            clients,
            exports: exports.into_iter().collect(),
            lease_ms: state.clients.leases().lease_ms(),
            in_grace: state.clients.in_grace(),
            connections: counters.connections.len() as u64,
            age_ms: now.since(began),
            request_bytes,
            ring,
            files,
        }
    }

    /// How often something was answered DELAY: the client is to come again.
    pub fn delays(&self) -> u64 {
        let of = |operation: &OperationReport| -> u64 {
            operation.errors.iter().filter(|(name, _)| name == "DELAY").map(|(_, count)| count).sum()
        };
        self.operations.iter().map(of).sum()
    }
}

fn operation_reports(counters: &Counters) -> Vec<OperationReport> {
    let of = |program: Program| {
        let counted = counters.operations.get(program as usize).into_iter().flatten();
        counted.zip(program.operations()).filter(|(counters, _)| counters.count > 0).map(move |(counters, name)| {
            let status = |code: u32| match code {
                OTHER_STATUS => "other".to_owned(),
                code => program.status_name(code),
            };
            let name = if name.is_empty() { UNKNOWN } else { name };
            let errors = counters.errors.iter().map(|(code, count)| (status(*code), *count)).collect();
            OperationReport { program, name, count: counters.count, errors, time: counters.time }
        })
    };
    Program::ALL.into_iter().flat_map(of).collect()
}

fn client_reports(counters: &Counters, state: &ServiceState, now: Moment) -> Vec<ClientReport> {
    let mut connections: BTreeMap<ClientKey, u64> = BTreeMap::new();
    for client in counters.connections.values().flatten() {
        *connections.entry(*client).or_default() += 1;
    }
    let counted = |mut report: ClientReport| {
        report.connections = connections.get(&report.key).copied().unwrap_or_default();
        if let Some(counters) = counters.clients.get(&report.key) {
            report.address = Some(counters.address);
            report.version = Some(counters.version);
            (report.requests, report.work) = (counters.requests, counters.work);
            if report.lease == LeaseState::None {
                report.heard_ms_ago = now.since(counters.heard);
            }
        }
        report
    };
    let with_sessions = state.clients.clients().map(|(id, client)| {
        let mut report = empty(ClientKey::Session(id));
        report.owner = client.owner.clone();
        report.implementation = client.implementation.clone();
        report.sessions = state.clients.sessions_of(id).count() as u64;
        report.held = state.files.totals_of(id);
        report.heard_ms_ago = state.clients.leases().heard(id).map(|heard| now.since(heard)).unwrap_or_default();
        report.lease = lease_of(state, id, client.reclaim_complete, now);
        report
    });
    let by_address = counters.clients.keys().filter(|key| matches!(key, ClientKey::Address(_))).map(|key| empty(*key));
    with_sessions.chain(by_address).map(counted).collect()
}

fn lease_of(state: &ServiceState, client: ClientId, reclaim_complete: bool, now: Moment) -> LeaseState {
    match () {
        () if state.clients.is_courtesy(client, now) => LeaseState::Courtesy,
        () if state.clients.in_grace() && !reclaim_complete => LeaseState::Reclaiming,
        () => LeaseState::Active,
    }
}

fn empty(key: ClientKey) -> ClientReport {
    ClientReport {
        key,
        owner: Bytes::new(),
        implementation: Bytes::new(),
        address: None,
        version: None,
        sessions: 0,
        connections: 0,
        held: Held::default(),
        requests: 0,
        work: Work::default(),
        heard_ms_ago: 0,
        lease: LeaseState::None,
    }
}
