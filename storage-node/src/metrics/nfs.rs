//! Metrics of the NFS services that this node runs, and of the filesystems behind them.

use gateway_nfs::statistics::ExportCounters;
use gateway_nfs::statistics::report::{ClientReport, LeaseState, Report};

use super::ServiceReport;
use super::exposition::{Exposition, Kind, Value, seconds};
use crate::admin::nfs_report_messages::{address_text, client_id, printable};

/// Clients of a service that have figures of their own here: those with the most requests.
const CLIENTS_TOLD_MAX: usize = 256;

/// Name, kind, help and value of something that a service has one of.
type OfService = (&'static str, Kind, &'static str, fn(&Report) -> Value);

const OF_SERVICES: &[OfService] = &[
    ("tandem_nfs_up_seconds", Kind::Gauge, "Since the service began on this node.", |r| {
        seconds(r.age_ms * 1_000).into()
    }),
    ("tandem_nfs_requests_total", Kind::Counter, "Calls.", |r| r.totals.requests.into()),
    ("tandem_nfs_compounds_total", Kind::Counter, "Compounds of NFSv4.", |r| r.totals.compounds.into()),
    ("tandem_nfs_requests_in_flight", Kind::Gauge, "Calls that are being answered.", |r| {
        r.totals.requests_in_flight.into()
    }),
    (
        "tandem_nfs_requests_rejected_total",
        Kind::Counter,
        "Calls not accepted: of whom no export names, or no calls.",
        |r| r.totals.requests_rejected.into(),
    ),
    ("tandem_nfs_requests_slow_total", Kind::Counter, "Compounds that took longer than a second.", |r| {
        r.totals.slow.into()
    }),
    ("tandem_nfs_received_bytes_total", Kind::Counter, "Bytes of calls.", |r| r.totals.received_bytes.into()),
    ("tandem_nfs_sent_bytes_total", Kind::Counter, "Bytes of replies.", |r| r.totals.sent_bytes.into()),
    ("tandem_nfs_read_bytes_total", Kind::Counter, "Data that clients have read.", |r| r.totals.work.read_bytes.into()),
    ("tandem_nfs_written_bytes_total", Kind::Counter, "Data that clients have written.", |r| {
        r.totals.work.written_bytes.into()
    }),
    ("tandem_nfs_retries_parked_total", Kind::Counter, "Retries that waited for the request they repeat.", |r| {
        r.totals.parked.into()
    }),
    ("tandem_nfs_replies_recorded_total", Kind::Counter, "Replies recorded beside what they tell of.", |r| {
        r.totals.replies_recorded.into()
    }),
    ("tandem_nfs_delays_total", Kind::Counter, "Answers that the client is to come again.", |r| r.delays().into()),
    ("tandem_nfs_connections", Kind::Gauge, "Connections.", |r| r.connections.into()),
    ("tandem_nfs_connections_taken_total", Kind::Counter, "Connections taken.", |r| r.totals.connections_taken.into()),
    ("tandem_nfs_connections_refused_total", Kind::Counter, "Connections closed at once, being too many.", |r| {
        r.totals.connections_refused.into()
    }),
    ("tandem_nfs_request_bytes", Kind::Gauge, "Bytes of requests being read or worked on.", |r| {
        r.request_bytes.0.into()
    }),
    ("tandem_nfs_request_limit_bytes", Kind::Gauge, "How many those may be.", |r| r.request_bytes.1.into()),
    ("tandem_nfs_sessions", Kind::Gauge, "Sessions of NFSv4.1 and 4.2.", |r| r.sessions.into()),
    ("tandem_nfs_opens", Kind::Gauge, "Opens and share reservations.", |r| u64::from(r.held.opens).into()),
    ("tandem_nfs_locks", Kind::Gauge, "Lock owners in files.", |r| u64::from(r.held.locks).into()),
    ("tandem_nfs_lock_ranges", Kind::Gauge, "Ranges that are locked.", |r| u64::from(r.held.ranges).into()),
    ("tandem_nfs_delegations", Kind::Gauge, "Delegations.", |r| u64::from(r.held.delegations).into()),
    ("tandem_nfs_in_grace", Kind::Gauge, "Clients may only reclaim what they had.", |r| r.in_grace.into()),
    ("tandem_nfs_ring_records", Kind::Gauge, "Records in the state ring.", |r| {
        r.ring.map_or(0, |ring| ring.records).into()
    }),
    ("tandem_nfs_ring_used_ratio", Kind::Gauge, "Part of the state ring's room that they take.", |r| {
        (f64::from(r.ring.map_or(0, |ring| ring.per_mille)) / 1e3).into()
    }),
    (
        "tandem_nfs_ring_blocks_written_total",
        Kind::Counter,
        "Blocks of the state ring written since it was made.",
        |r| r.ring.map_or(0, |ring| ring.blocks_written).into(),
    ),
    ("tandem_filesystem_size_bytes", Kind::Gauge, "What files can take.", |r| blocks(r, r.files.blocks)),
    ("tandem_filesystem_free_bytes", Kind::Gauge, "Free, with what is kept for the superuser.", |r| {
        blocks(r, r.files.blocks_free)
    }),
    ("tandem_filesystem_available_bytes", Kind::Gauge, "Free for everybody.", |r| blocks(r, r.files.blocks_available)),
    ("tandem_filesystem_inodes", Kind::Gauge, "Inodes.", |r| u64::from(r.files.files).into()),
    ("tandem_filesystem_inodes_free", Kind::Gauge, "Inodes that are free.", |r| u64::from(r.files.files_free).into()),
];

fn blocks(report: &Report, count: u64) -> Value {
    count.saturating_mul(report.files.block_size.into()).into()
}

pub(super) fn put(out: &mut Exposition, services: &[ServiceReport]) {
    for (name, kind, help, value) in OF_SERVICES {
        let mut family = out.family(name, *kind, help);
        for ServiceReport { volume, report } in services {
            family.sample(&[("volume", volume)], value(report));
        }
    }
    let mut family = out.family("tandem_nfs_replays_total", Kind::Counter, "Retries, by how they were answered.");
    for ServiceReport { volume, report } in services {
        let replays = &report.replays;
        for (how, count) in [("memory", replays.kept), ("record", replays.recorded), ("continued", replays.continued)] {
            family.sample(&[("volume", volume), ("from", how)], count);
        }
    }
    put_exports(out, services);
    put_operations(out, services);
    put_clients(out, services);
}

fn put_exports(out: &mut Exposition, services: &[ServiceReport]) {
    type OfExport = (&'static str, &'static str, fn(&ExportCounters) -> u64);
    let all: [OfExport; 3] = [
        ("tandem_nfs_export_requests_total", "Requests by a rule of the exports.", |export| export.requests),
        ("tandem_nfs_export_read_bytes_total", "Data that they have read.", |export| export.work.read_bytes),
        ("tandem_nfs_export_written_bytes_total", "Data that they have written.", |export| export.work.written_bytes),
    ];
    for (name, help, value) in all {
        let mut family = out.family(name, Kind::Counter, help);
        for ServiceReport { volume, report } in services {
            for (export, counters) in &report.exports {
                family.sample(&[("volume", volume), ("export", &export.to_string())], value(counters));
            }
        }
    }
}

fn put_operations(out: &mut Exposition, services: &[ServiceReport]) {
    let all =
        || services.iter().flat_map(|service| service.report.operations.iter().map(move |op| (&service.volume, op)));
    let mut family = out.family("tandem_nfs_operations_total", Kind::Counter, "Operations, done or refused.");
    for (volume, operation) in all() {
        let labels =
            [("volume", volume.as_str()), ("program", operation.program.name()), ("operation", operation.name)];
        family.sample(&labels, operation.count);
    }
    let mut family = out.family("tandem_nfs_operation_errors_total", Kind::Counter, "Operations refused, by status.");
    for (volume, operation) in all() {
        for (status, count) in &operation.errors {
            let (program, name) = (operation.program.name(), operation.name);
            let labels = [("volume", volume.as_str()), ("program", program), ("operation", name), ("status", status)];
            family.sample(&labels, *count);
        }
    }
    let help = "How long requests took that were there for this operation.";
    let mut family = out.family("tandem_nfs_operation_duration_seconds", Kind::Histogram, help);
    for (volume, operation) in all().filter(|(_, operation)| operation.time.count() > 0) {
        let labels =
            [("volume", volume.as_str()), ("program", operation.program.name()), ("operation", operation.name)];
        let time = &operation.time;
        family.histogram(&labels, time.classes(), time.count(), time.sum_micros());
    }
}

fn put_clients(out: &mut Exposition, services: &[ServiceReport]) {
    let mut family = out.family("tandem_nfs_clients", Kind::Gauge, "Clients, by their leases.");
    for ServiceReport { volume, report } in services {
        let leases = [
            ("active", LeaseState::Active),
            ("courtesy", LeaseState::Courtesy),
            ("reclaiming", LeaseState::Reclaiming),
            ("none", LeaseState::None),
        ];
        for (name, lease) in leases {
            let count = report.clients.iter().filter(|client| client.lease == lease).count();
            family.sample(&[("volume", volume), ("lease", name)], count);
        }
    }
    let told: Vec<(&str, String, String, &ClientReport)> = services
        .iter()
        .flat_map(|service| {
            let mut busiest: Vec<_> = service.report.clients.iter().collect();
            busiest.sort_by_key(|client| std::cmp::Reverse(client.requests));
            busiest.truncate(CLIENTS_TOLD_MAX);
            busiest.into_iter().map(|client| {
                let address = client.address.map(address_text).unwrap_or_default();
                (service.volume.as_str(), client_id(client.key), address, client)
            })
        })
        .collect();
    let mut family = out.family("tandem_nfs_client_info", Kind::Gauge, "What a client calls itself; always 1.");
    for (volume, id, address, client) in &told {
        let owner = printable(&client.owner);
        family.sample(&[("volume", volume), ("client", id), ("address", address), ("owner", &owner)], 1_u64);
    }
    type OfClient = (&'static str, Kind, &'static str, fn(&ClientReport) -> u64);
    let all: [OfClient; 6] = [
        ("tandem_nfs_client_requests_total", Kind::Counter, "Requests of a client.", |client| client.requests),
        ("tandem_nfs_client_read_bytes_total", Kind::Counter, "Data that it has read.", |client| {
            client.work.read_bytes
        }),
        ("tandem_nfs_client_written_bytes_total", Kind::Counter, "Data that it has written.", |client| {
            client.work.written_bytes
        }),
        ("tandem_nfs_client_connections", Kind::Gauge, "Connections that it came by last.", |client| {
            client.connections
        }),
        ("tandem_nfs_client_opens", Kind::Gauge, "What it has open.", |client| client.held.opens.into()),
        ("tandem_nfs_client_locks", Kind::Gauge, "What it has locked.", |client| client.held.locks.into()),
    ];
    for (name, kind, help, value) in all {
        let mut family = out.family(name, kind, help);
        for (volume, id, address, client) in &told {
            family.sample(&[("volume", volume), ("client", id), ("address", address)], value(client));
        }
    }
}
