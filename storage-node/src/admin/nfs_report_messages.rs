//! What an NFS service has counted, as messages.

use std::net::Ipv6Addr;

use gateway_nfs::statistics::histogram::Histogram;
use gateway_nfs::statistics::report::{ClientReport, LeaseState, OperationReport, Report};
use gateway_nfs::statistics::{Address, ClientKey, Export, ExportCounters};
use proto::admin as pb;

/// All but the clients.
pub(crate) fn figures(report: &Report) -> pb::NfsFigures {
    let totals = &report.totals;
    let courtesy = report.clients.iter().filter(|client| client.lease == LeaseState::Courtesy).count();
    pb::NfsFigures {
        since_micros_ago: micros(report.age_ms),
        requests: totals.requests,
        compounds: totals.compounds,
        requests_in_flight: totals.requests_in_flight,
        requests_rejected: totals.requests_rejected,
        requests_slow: totals.slow,
        received_bytes: totals.received_bytes,
        sent_bytes: totals.sent_bytes,
        read_bytes: totals.work.read_bytes,
        written_bytes: totals.work.written_bytes,
        replays_kept: report.replays.kept,
        replays_recorded: report.replays.recorded,
        replays_continued: report.replays.continued,
        retries_parked: totals.parked,
        replies_recorded: totals.replies_recorded,
        delays: report.delays(),
        connections: report.connections,
        connections_taken: totals.connections_taken,
        connections_refused: totals.connections_refused,
        request_bytes: report.request_bytes.0,
        request_bytes_max: report.request_bytes.1,
        clients: report.clients.len() as u64,
        clients_courtesy: courtesy as u64,
        sessions: report.sessions,
        opens: report.held.opens.into(),
        locks: report.held.locks.into(),
        lock_ranges: report.held.ranges.into(),
        delegations: report.held.delegations.into(),
        in_grace: report.in_grace,
        lease_micros: micros(report.lease_ms),
        ring_records: report.ring.map_or(0, |ring| ring.records as u64),
        ring_per_mille: report.ring.map_or(0, |ring| ring.per_mille),
        ring_blocks_written: report.ring.map_or(0, |ring| ring.blocks_written),
        operations: report.operations.iter().map(operation).collect(),
        exports: report.exports.iter().map(export).collect(),
    }
}

fn export((export, counters): &(Export, ExportCounters)) -> pb::NfsExportFigures {
    pb::NfsExportFigures {
        client: export.to_string(),
        requests: counters.requests,
        read_bytes: counters.work.read_bytes,
        written_bytes: counters.work.written_bytes,
    }
}

/// The clients.
pub(crate) fn clients(report: &Report) -> Vec<pb::NfsClientEntry> {
    report.clients.iter().map(client).collect()
}

fn operation(operation: &OperationReport) -> pb::NfsOperationFigures {
    let status = |(status, count): &(String, u64)| pb::NfsStatusCount { status: status.clone(), count: *count };
    pb::NfsOperationFigures {
        program: operation.program.name().into(),
        name: operation.name.into(),
        count: operation.count,
        errors: operation.errors.iter().map(status).collect(),
        times: Some(times(&operation.time)),
    }
}

fn times(histogram: &Histogram) -> pb::NfsTimes {
    let class = |(up_to_micros, count)| pb::NfsTimeClass { up_to_micros, count };
    pb::NfsTimes {
        count: histogram.count(),
        sum_micros: histogram.sum_micros(),
        classes: histogram.classes().map(class).collect(),
    }
}

fn client(client: &ClientReport) -> pb::NfsClientEntry {
    let lease = match client.lease {
        LeaseState::Active => pb::NfsLease::Active,
        LeaseState::Courtesy => pb::NfsLease::Courtesy,
        LeaseState::Reclaiming => pb::NfsLease::Reclaiming,
        LeaseState::None => pb::NfsLease::None,
    };
    let address = match (client.address, client.key) {
        (Some(address), _) | (None, ClientKey::Address(address)) => address_text(address),
        (None, ClientKey::Session(_)) => String::new(),
    };
    pb::NfsClientEntry {
        id: client_id(client.key),
        owner: printable(&client.owner),
        implementation: printable(&client.implementation),
        address,
        version: client.version.map(version).unwrap_or_default(),
        lease: lease as i32,
        heard_micros_ago: micros(client.heard_ms_ago),
        sessions: client.sessions,
        connections: client.connections,
        opens: client.held.opens.into(),
        locks: client.held.locks.into(),
        lock_ranges: client.held.ranges.into(),
        delegations: client.held.delegations.into(),
        requests: client.requests,
        read_bytes: client.work.read_bytes,
        written_bytes: client.work.written_bytes,
    }
}

/// An address as people write it.
pub(crate) fn address_text(Address(octets): Address) -> String {
    Ipv6Addr::from(octets).to_canonical().to_string()
}

/// The number of a client with sessions; empty for others.
pub(crate) fn client_id(key: ClientKey) -> String {
    match key {
        ClientKey::Session(client) => format!("{:016x}", client.0),
        ClientKey::Address(_) => String::new(),
    }
}

fn version((major, minor): (u32, u32)) -> String {
    if major >= 4 { format!("{major}.{minor}") } else { major.to_string() }
}

/// What a client says of itself: any bytes, of which nothing may move a terminal's cursor or break a line.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn micros(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_calls_itself_is_made_printable() {
        assert_eq!(printable(b"Linux NFSv4.2 box\x1b[2J\n\xff"), "Linux NFSv4.2 box?[2J?\u{fffd}");
    }

    #[test]
    fn versions_read_as_in_the_mount_option() {
        assert_eq!([version((4, 2)), version((4, 1)), version((3, 0))], ["4.2", "4.1", "3"]);
    }
}
