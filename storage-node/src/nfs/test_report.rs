//! What a service might tell, for tests of those who pass it on.

use std::time::Duration;

use gateway_nfs::ids::ClientId;
use gateway_nfs::state::bounds::Totals as Held;
use gateway_nfs::state::sequence::Replays;
use gateway_nfs::statistics::histogram::Histogram;
use gateway_nfs::statistics::program::Program;
use gateway_nfs::statistics::report::{ClientReport, LeaseState, OperationReport, Report};
use gateway_nfs::statistics::{Address, ClientKey, Export, ExportCounters, Totals, Work};

/// One client with an awkward name, one operation that was refused and took long.
pub(crate) fn report() -> Report {
    let mut time = Histogram::default();
    for micros in [10, 500, 99_000_000] {
        time.record(Duration::from_micros(micros));
    }
    let errors = vec![("NOENT".to_owned(), 1), ("DELAY".to_owned(), 2)];
    let work = Work { read_bytes: 7, written_bytes: 8 };
    let client = ClientReport {
        key: ClientKey::Session(ClientId(9)),
        owner: b"box \"one\"\n\\".as_slice().into(),
        implementation: bytes::Bytes::new(),
        address: Some(Address(std::net::Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped().octets())),
        version: Some((4, 2)),
        sessions: 1,
        connections: 2,
        held: Held { opens: 3, ..Held::default() },
        requests: 4,
        work,
        heard_ms_ago: 5,
        lease: LeaseState::Active,
    };
    Report {
        totals: Totals { requests: 10, work, ..Totals::default() },
        replays: Replays { kept: 1, recorded: 2, continued: 3 },
        operations: vec![OperationReport { program: Program::V4, name: "OPEN", count: 3, errors, time }],
        clients: vec![client],
        exports: vec![(Export(None), ExportCounters { requests: 4, work })],
        held: Held::default(),
        sessions: 1,
        lease_ms: 90_000,
        in_grace: false,
        connections: 2,
        age_ms: 1_500,
        request_bytes: (1, 2),
        ring: None,
        files: files(),
    }
}

fn files() -> filesystem::engine::Statistics {
    filesystem::engine::Statistics {
        block_size: 4096,
        blocks: 10,
        blocks_free: 5,
        blocks_available: 4,
        files: 100,
        files_free: 90,
        name_bytes_max: 255,
        id: 1,
    }
}
