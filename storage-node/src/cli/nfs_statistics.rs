//! `tandem nfs clients` and `tandem nfs stats`: who uses the services of volumes, and what they have counted.

use std::time::Duration;

use proto::admin as pb;
use proto::admin::nfs_client::NfsClient;
use serde_json::{Value, json};

use super::exit::Failure;
use super::session::{Session, emit};
use super::table::{Align, Table};
use super::text;

const NOT_SERVED: &str = "No volume is served over NFS: tandem nfs serve VOLUME\n";
/// Part of requests, in thousandths, for which the time is told within which they were answered.
const QUANTILES_PER_MILLE: [u64; 2] = [500, 990];

pub(super) async fn clients(session: &Session, volume: Option<String>) -> Result<(), Failure> {
    let is_one = volume.is_some();
    let request = &pb::NfsClientsRequest { volume: volume.unwrap_or_default(), local: false };
    let reply = session.call(|channel| async move { NfsClient::new(channel).clients(request.clone()).await }).await?;
    let serving = reply.services.iter().filter_map(|service| service.serving.as_ref());
    refuse_silence(is_one, serving)?;
    let value: Value = reply.services.iter().map(service_clients_json).collect();
    session.print(&value, &clients_text(&reply.services))
}

/// `every`: again and again, until Ctrl-C.
pub(super) async fn stats(session: &Session, volume: Option<String>, every: Option<Duration>) -> Result<(), Failure> {
    let is_one = volume.is_some();
    let request = &pb::NfsStatsRequest { volume: volume.unwrap_or_default(), local: false };
    let mut former: Vec<pb::NfsServiceStats> = Vec::new();
    let mut interval = every.map(tokio::time::interval);
    loop {
        if let Some(interval) = &mut interval {
            tokio::select! {
                _ = interval.tick() => {}
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
        let asked = session.call(|channel| async move { NfsClient::new(channel).stats(request.clone()).await }).await;
        let services = match asked {
            // One that watches sees a switchover through.
            Err(Failure::Unreachable(why) | Failure::Timeout(why)) if !former.is_empty() => {
                eprintln!("{why}");
                continue;
            }
            asked => asked?.services,
        };
        match every {
            None => {
                refuse_silence(is_one, services.iter().filter_map(|service| service.serving.as_ref()))?;
                let value: Value = services.iter().map(service_stats_json).collect();
                return session.print(&value, &stats_text(&services));
            }
            Some(_) if session.json => {
                let value: Value = services.iter().map(service_stats_json).collect();
                emit(&format!("{value}\n"))?;
            }
            Some(_) => emit(&rates_text(&former, &services))?,
        }
        former = services;
    }
}

/// Of one volume that was asked for, silence is a failure.
fn refuse_silence<'a>(is_one: bool, services: impl Iterator<Item = &'a pb::NfsServing>) -> Result<(), Failure> {
    match services.into_iter().find(|serving| is_one && !serving.silent.is_empty()) {
        Some(serving) => Err(Failure::Unreachable(format!("{}: {}", serving.volume, serving.silent))),
        None => Ok(()),
    }
}

fn clients_text(services: &[pb::NfsServiceClients]) -> String {
    if services.is_empty() {
        return NOT_SERVED.to_owned();
    }
    let (left, right) = (Align::Left, Align::Right);
    let mut table = Table::new(&[
        ("VOLUME", left),
        ("CLIENT", left),
        ("NAME", left),
        ("VERSION", left),
        ("LEASE", left),
        ("HEARD", right),
        ("CONNECTIONS", right),
        ("SESSIONS", right),
        ("OPENS", right),
        ("LOCKS", right),
        ("DELEGATIONS", right),
        ("REQUESTS", right),
        ("READ", right),
        ("WRITTEN", right),
    ]);
    for service in services {
        let serving = service.serving.clone().unwrap_or_default();
        if service.clients.is_empty() {
            let why = if serving.silent.is_empty() { "no client" } else { serving.silent.as_str() };
            table.row([serving.volume, why.to_owned()]);
            continue;
        }
        for client in &service.clients {
            table.row([
                serving.volume.clone(),
                client.address.clone(),
                client.owner.clone(),
                client.version.clone(),
                lease(client.lease()).to_owned(),
                format!("{} ago", text::duration(client.heard_micros_ago)),
                client.connections.to_string(),
                client.sessions.to_string(),
                client.opens.to_string(),
                client.locks.to_string(),
                client.delegations.to_string(),
                client.requests.to_string(),
                text::size(client.read_bytes),
                text::size(client.written_bytes),
            ]);
        }
    }
    table.render()
}

fn stats_text(services: &[pb::NfsServiceStats]) -> String {
    if services.is_empty() {
        return NOT_SERVED.to_owned();
    }
    services.iter().map(service_stats_text).collect::<Vec<_>>().join("\n")
}

fn service_stats_text(service: &pb::NfsServiceStats) -> String {
    let serving = service.serving.clone().unwrap_or_default();
    let Some(figures) = &service.figures else {
        return format!("Volume {}: {}\n", serving.volume, serving.silent);
    };
    let since = text::duration(figures.since_micros_ago);
    let mut text = format!("Volume {}, served by {} for {since}\n", serving.volume, serving.primary_name);
    text += &format!(
        "  requests     {} ({} in flight, {} rejected, {} took longer than 1 s, {} answered DELAY)\n",
        figures.requests, figures.requests_in_flight, figures.requests_rejected, figures.requests_slow, figures.delays
    );
    text += &format!(
        "  data         {} read, {} written; {} received, {} sent\n",
        text::size(figures.read_bytes),
        text::size(figures.written_bytes),
        text::size(figures.received_bytes),
        text::size(figures.sent_bytes)
    );
    text += &format!(
        "  retries      {} answered from memory, {} from a record, {} continued behind a record; {} waited\n",
        figures.replays_kept, figures.replays_recorded, figures.replays_continued, figures.retries_parked
    );
    text += &format!(
        "  clients      {} ({} by courtesy), {} sessions, {} opens, {} locks, {} delegations{}\n",
        figures.clients,
        figures.clients_courtesy,
        figures.sessions,
        figures.opens,
        figures.locks,
        figures.delegations,
        if figures.in_grace { "; GRACE PERIOD: only what was held may be reclaimed" } else { "" }
    );
    text += &format!(
        "  connections  {} ({} taken, {} refused); requests hold {} of {}\n",
        figures.connections,
        figures.connections_taken,
        figures.connections_refused,
        text::size(figures.request_bytes),
        text::size(figures.request_bytes_max)
    );
    text += &format!(
        "  records      {} in the state ring, {} % full; {} replies recorded\n",
        figures.ring_records,
        tenths(figures.ring_per_mille.into()),
        figures.replies_recorded
    );
    text + &exports_table(&figures.exports) + &operations_table(&figures.operations)
}

fn exports_table(exports: &[pb::NfsExportFigures]) -> String {
    if exports.is_empty() {
        return String::new();
    }
    let right = Align::Right;
    let mut table = Table::new(&[("EXPORT TO", Align::Left), ("REQUESTS", right), ("READ", right), ("WRITTEN", right)]);
    for export in exports {
        let [read, written] = [export.read_bytes, export.written_bytes].map(text::size);
        table.row([export.client.clone(), export.requests.to_string(), read, written]);
    }
    table.render()
}

fn operations_table(operations: &[pb::NfsOperationFigures]) -> String {
    if operations.is_empty() {
        return String::new();
    }
    let right = Align::Right;
    let mut table = Table::new(&[
        ("OPERATION", Align::Left),
        ("COUNT", right),
        ("MEAN", right),
        ("HALF WITHIN", right),
        ("99 % WITHIN", right),
        ("ERRORS", Align::Left),
    ]);
    for operation in operations {
        let times = operation.times.clone().unwrap_or_default();
        let mean = times.sum_micros.checked_div(times.count).map(time).unwrap_or_default();
        let [half, most] = QUANTILES_PER_MILLE.map(|part| within(&times, part));
        let errors: Vec<_> = operation.errors.iter().map(|error| format!("{} {}", error.status, error.count)).collect();
        table.row([name(operation), operation.count.to_string(), mean, half, most, errors.join(", ")]);
    }
    table.render()
}

/// One line a service of what has happened since the last look.
fn rates_text(former: &[pb::NfsServiceStats], services: &[pb::NfsServiceStats]) -> String {
    let mut text = String::new();
    for service in services {
        let serving = service.serving.clone().unwrap_or_default();
        let before = former.iter().find(|other| {
            other
                .serving
                .as_ref()
                .is_some_and(|other| (&other.volume_id, other.primary) == (&serving.volume_id, serving.primary))
        });
        let (Some(now), before) = (&service.figures, before.and_then(|before| before.figures.as_ref())) else {
            text += &format!("{}: {}\n", serving.volume, serving.silent);
            continue;
        };
        // Another run of the service begins from nothing.
        let before = before.filter(|before| before.since_micros_ago < now.since_micros_ago);
        let Some(before) = before else {
            text += &format!("{}: served by {}\n", serving.volume, serving.primary_name);
            continue;
        };
        let micros = now.since_micros_ago.saturating_sub(before.since_micros_ago);
        let rate = |now: u64, before: u64| {
            let more = u128::from(now.saturating_sub(before)) * 1_000_000;
            u64::try_from(more / u128::from(micros.max(1))).unwrap_or(u64::MAX)
        };
        text += &format!(
            "{}: {} requests/s, {}/s read, {}/s written, {} in flight, {} clients, {} opens, {} locks\n",
            serving.volume,
            rate(now.requests, before.requests),
            text::size(rate(now.read_bytes, before.read_bytes)),
            text::size(rate(now.written_bytes, before.written_bytes)),
            now.requests_in_flight,
            now.clients,
            now.opens,
            now.locks
        );
    }
    if services.is_empty() { NOT_SERVED.to_owned() } else { text }
}

/// `OPEN`, or `nfs3 CREATE` of other programs.
fn name(operation: &pb::NfsOperationFigures) -> String {
    match operation.program.as_str() {
        "nfs4" => operation.name.clone(),
        program => format!("{program} {}", operation.name),
    }
}

/// The bound within which so many thousandths of all are.
fn within(times: &pb::NfsTimes, per_mille: u64) -> String {
    if times.count == 0 {
        return String::new();
    }
    let wanted = u128::from(times.count) * u128::from(per_mille);
    let mut seen = 0;
    for class in &times.classes {
        seen += u128::from(class.count) * 1_000;
        if seen >= wanted {
            return time(class.up_to_micros);
        }
    }
    "longer".to_owned()
}

/// A short time: `16 µs`, `1.0 ms`, `2.1 s`.
fn time(micros: u64) -> String {
    match micros {
        0..=999 => format!("{micros} µs"),
        1_000..=999_999 => format!("{} ms", tenths(micros / 100)),
        _ => format!("{} s", tenths(micros / 100_000)),
    }
}

fn tenths(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn lease(lease: pb::NfsLease) -> &'static str {
    match lease {
        pb::NfsLease::Unspecified => "unknown",
        pb::NfsLease::Active => "active",
        pb::NfsLease::Courtesy => "courtesy",
        pb::NfsLease::Reclaiming => "reclaiming",
        pb::NfsLease::None => "none",
    }
}

fn serving_json(serving: &pb::NfsServing) -> Value {
    json!({
        "volume": serving.volume,
        "volume_id": serving.volume_id,
        "primary": serving.primary,
        "primary_name": serving.primary_name,
        "silent": serving.silent,
    })
}

fn service_clients_json(service: &pb::NfsServiceClients) -> Value {
    json!({
        "serving": service.serving.as_ref().map(serving_json),
        "clients": service.clients.iter().map(client_json).collect::<Vec<_>>(),
    })
}

fn client_json(client: &pb::NfsClientEntry) -> Value {
    json!({
        "id": client.id,
        "owner": client.owner,
        "implementation": client.implementation,
        "address": client.address,
        "version": client.version,
        "lease": lease(client.lease()),
        "heard_micros_ago": client.heard_micros_ago,
        "sessions": client.sessions,
        "connections": client.connections,
        "opens": client.opens,
        "locks": client.locks,
        "lock_ranges": client.lock_ranges,
        "delegations": client.delegations,
        "requests": client.requests,
        "read_bytes": client.read_bytes,
        "written_bytes": client.written_bytes,
    })
}

fn service_stats_json(service: &pb::NfsServiceStats) -> Value {
    json!({
        "serving": service.serving.as_ref().map(serving_json),
        "figures": service.figures.as_ref().map(figures_json),
    })
}

fn figures_json(figures: &pb::NfsFigures) -> Value {
    json!({
        "since_micros_ago": figures.since_micros_ago,
        "requests": figures.requests,
        "compounds": figures.compounds,
        "requests_in_flight": figures.requests_in_flight,
        "requests_rejected": figures.requests_rejected,
        "requests_slow": figures.requests_slow,
        "received_bytes": figures.received_bytes,
        "sent_bytes": figures.sent_bytes,
        "read_bytes": figures.read_bytes,
        "written_bytes": figures.written_bytes,
        "replays_kept": figures.replays_kept,
        "replays_recorded": figures.replays_recorded,
        "replays_continued": figures.replays_continued,
        "retries_parked": figures.retries_parked,
        "replies_recorded": figures.replies_recorded,
        "delays": figures.delays,
        "connections": figures.connections,
        "connections_taken": figures.connections_taken,
        "connections_refused": figures.connections_refused,
        "request_bytes": figures.request_bytes,
        "request_bytes_max": figures.request_bytes_max,
        "clients": figures.clients,
        "clients_courtesy": figures.clients_courtesy,
        "sessions": figures.sessions,
        "opens": figures.opens,
        "locks": figures.locks,
        "lock_ranges": figures.lock_ranges,
        "delegations": figures.delegations,
        "in_grace": figures.in_grace,
        "lease_micros": figures.lease_micros,
        "ring_records": figures.ring_records,
        "ring_per_mille": figures.ring_per_mille,
        "ring_blocks_written": figures.ring_blocks_written,
        "operations": figures.operations.iter().map(operation_json).collect::<Vec<_>>(),
        "exports": figures.exports.iter().map(export_json).collect::<Vec<_>>(),
    })
}

fn export_json(export: &pb::NfsExportFigures) -> Value {
    json!({
        "client": export.client,
        "requests": export.requests,
        "read_bytes": export.read_bytes,
        "written_bytes": export.written_bytes,
    })
}

fn operation_json(operation: &pb::NfsOperationFigures) -> Value {
    let times = operation.times.clone().unwrap_or_default();
    let class = |class: &pb::NfsTimeClass| json!({ "up_to_micros": class.up_to_micros, "count": class.count });
    let error = |error: &pb::NfsStatusCount| json!({ "status": error.status, "count": error.count });
    json!({
        "program": operation.program,
        "name": operation.name,
        "count": operation.count,
        "errors": operation.errors.iter().map(error).collect::<Vec<_>>(),
        "times": {
            "count": times.count,
            "sum_micros": times.sum_micros,
            "classes": times.classes.iter().map(class).collect::<Vec<_>>(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(classes: &[(u64, u64)], longer: u64) -> pb::NfsTimes {
        let of = |&(up_to_micros, count)| pb::NfsTimeClass { up_to_micros, count };
        let count = classes.iter().map(|(_, count)| count).sum::<u64>() + longer;
        pb::NfsTimes { count, sum_micros: 0, classes: classes.iter().map(of).collect() }
    }

    fn service(age: u64, requests: u64) -> pb::NfsServiceStats {
        let serving = pb::NfsServing { volume: "vm".into(), primary_name: "a".into(), ..Default::default() };
        let figures = pb::NfsFigures { since_micros_ago: age, requests, ..Default::default() };
        pb::NfsServiceStats { serving: Some(serving), figures: Some(figures) }
    }

    #[test]
    fn quantiles_are_the_bounds_that_hold_so_many() {
        let some = times(&[(16, 50), (1024, 48), (2048, 2)], 0);
        assert_eq!((within(&some, 500), within(&some, 990)), ("16 µs".into(), "2.0 ms".into()));
        assert_eq!(within(&times(&[(16, 1)], 9), 500), "longer");
        assert_eq!(within(&times(&[], 0), 500), "");
        assert_eq!((time(999), time(1_000), time(2_150_000)), ("999 µs".into(), "1.0 ms".into(), "2.1 s".into()));
    }

    #[test]
    fn rates_begin_anew_with_another_run_of_the_service() {
        let (first, second) = ([service(1_000_000, 10)], [service(3_000_000, 30)]);
        assert!(rates_text(&first, &second).starts_with("vm: 10 requests/s, 0 B/s read"));
        assert_eq!(rates_text(&second, &first), "vm: served by a\n");
        assert_eq!(rates_text(&[], &first), "vm: served by a\n");
    }

    #[test]
    fn silence_fails_a_command_about_one_volume_only() {
        let serving = pb::NfsServing { volume: "vm".into(), silent: "a does not answer".into(), ..Default::default() };
        assert!(refuse_silence(false, [&serving].into_iter()).is_ok());
        let failure = refuse_silence(true, [&serving].into_iter()).unwrap_err();
        assert_eq!((failure.code(), failure.to_string()), (3, "vm: a does not answer".to_owned()));
        let all = [pb::NfsServiceStats { serving: Some(serving), figures: None }];
        assert_eq!(stats_text(&all), "Volume vm: a does not answer\n");
        assert_eq!(service_stats_json(&all[0])["figures"], Value::Null);
    }

    #[test]
    fn operations_show_their_errors() {
        let error = pb::NfsStatusCount { status: "NOENT".into(), count: 3 };
        let lookup = pb::NfsOperationFigures {
            program: "nfs4".into(),
            name: "LOOKUP".into(),
            count: 5,
            errors: vec![error],
            times: Some(times(&[(16, 5)], 0)),
        };
        let text = operations_table(&[lookup]);
        assert!(
            text.lines().nth(1).is_some_and(|line| line.starts_with("LOOKUP") && line.ends_with("NOENT 3")),
            "{text}"
        );
    }
}
