//! All metrics of a node with volumes and NFS services, read back, and the server under slow and impolite readers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::{DiskId, Micros, NodeId, ServiceVersion, VolumeId};
use replication::config::nfs::{ExportRules, NfsService};
use replication::config::{Member, Registration, VolumeConfig};
use replication::{ScrubReport, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::test_parser::{Sample, parse};
use super::{collect, server};
use crate::admin::fake_node::FakeNode;
use crate::admin::{NodeOperations, ReplicaReport, StoreState};
use crate::net::transport::Transport;
use crate::nfs::test_report::report;
use crate::volume::handle::{Acknowledged, CopyStatistics};

fn copy(volume: VolumeId) -> ReplicaReport {
    let status = Status {
        role: "primary",
        serving: true,
        operations: 2,
        peers: vec![(NodeId(2), "resyncing", 10, 5)],
        ..Status::default()
    };
    let scrub = ScrubReport { bad_here: 1, repaired: 1, ..ScrubReport::default() };
    ReplicaReport {
        volume,
        disk_id: DiskId(1),
        path: String::new(),
        store: StoreState::Open,
        status,
        nbd_clients: 0,
        data_offset: 0,
        copy: Some(CopyStatistics { last_scrub: Some((2_000_000, scrub)), ..CopyStatistics::default() }),
        acknowledged: Acknowledged { writes: 6, written_bytes: 24_576, ..Acknowledged::default() },
        scrub_left: None,
        resync_left: vec![(NodeId(2), Micros(4_000_000))],
    }
}

/// A node that serves a volume over NFS.
async fn node() -> Arc<FakeNode> {
    let node = FakeNode::new("alpha", "127.0.0.1:1");
    node.init(Duration::ZERO).await.unwrap();
    let volume = VolumeId(77);
    let service = NfsService {
        version: ServiceVersion(1),
        since: ServiceVersion(1),
        addresses: vec![],
        port: 2049,
        exports: ExportRules::default(),
    };
    let config = VolumeConfig {
        id: volume,
        name: "vm".into(),
        size_bytes: 1 << 30,
        primary: NodeId(1),
        replicas: BTreeMap::from([(NodeId(1), Registration::default()), (NodeId(2), Registration::default())]),
        in_sync: BTreeMap::from([(NodeId(1), Member::default())]),
        nfs: Some(service),
        ..VolumeConfig::default()
    };
    node.state.send_modify(|state| drop(Arc::make_mut(state).volumes.insert(volume, config)));
    node.replicas.lock().unwrap().push(copy(volume));
    node.nfs_reports.lock().unwrap().insert(volume, report());
    node
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        let given = labels.iter().all(|(name, value)| sample.labels.get(*name).is_some_and(|held| held == value));
        sample.name == name && given
    };
    let found: Vec<_> = samples.iter().filter(has).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].value
}

#[tokio::test]
async fn all_metrics_are_what_prometheus_reads() {
    let node = node().await;
    let text = collect(&*node).await;
    let samples = parse(&text).unwrap_or_else(|why| panic!("{why}\n\n{text}"));
    let vm = ("volume", "vm");
    let table = [
        ("tandem_build_info", vec![("version", "test"), ("node", "alpha")], 1.0),
        ("tandem_uptime_seconds", vec![], 1.0),
        ("tandem_raft_leader", vec![], 1.0),
        ("tandem_raft_term", vec![], 1.0),
        ("tandem_volume_size_bytes", vec![vm], 1_073_741_824.0),
        ("tandem_volume_copies_in_sync", vec![vm], 1.0),
        ("tandem_volume_in_sync", vec![vm, ("copy", "alpha")], 1.0),
        ("tandem_volume_in_sync", vec![vm, ("copy", "2")], 0.0),
        ("tandem_copy_role", vec![vm, ("role", "primary")], 1.0),
        ("tandem_copy_store", vec![vm, ("state", "open")], 1.0),
        ("tandem_copy_written_bytes_total", vec![vm], 24_576.0),
        ("tandem_copy_last_scrub_timestamp_seconds", vec![vm], 2.0),
        ("tandem_copy_last_scrub_bad_blocks", vec![vm], 1.0),
        ("tandem_peer_state", vec![vm, ("state", "resyncing")], 1.0),
        ("tandem_peer_dirty_bytes", vec![vm, ("peer", "2")], 40_960.0),
        ("tandem_peer_resync_left_seconds", vec![vm], 4.0),
        ("tandem_peer_resync_rate_bytes", vec![vm], 10_240.0),
        ("tandem_nfs_requests_total", vec![vm], 10.0),
        ("tandem_nfs_delays_total", vec![vm], 2.0),
        ("tandem_nfs_replays_total", vec![vm, ("from", "record")], 2.0),
        ("tandem_nfs_operation_errors_total", vec![vm, ("operation", "OPEN"), ("status", "NOENT")], 1.0),
        ("tandem_nfs_operation_duration_seconds_bucket", vec![("operation", "OPEN"), ("le", "0.000512")], 2.0),
        ("tandem_nfs_operation_duration_seconds_count", vec![("program", "nfs4")], 3.0),
        ("tandem_nfs_clients", vec![vm, ("lease", "active")], 1.0),
        ("tandem_nfs_client_info", vec![("owner", "box \"one\"?\\"), ("client", "0000000000000009")], 1.0),
        ("tandem_nfs_client_read_bytes_total", vec![vm, ("address", "10.0.0.7")], 7.0),
        ("tandem_filesystem_free_bytes", vec![vm], 20_480.0),
    ];
    for (name, labels, expected) in table {
        assert_eq!(value(&samples, name, &labels), expected, "{name} {labels:?}");
    }
}

#[tokio::test]
async fn a_node_without_a_cluster_has_metrics_too() {
    let samples = parse(&collect(&*FakeNode::new("alpha", "127.0.0.1:1")).await).unwrap();
    assert_eq!(value(&samples, "tandem_out_of_service", &[]), 0.0);
    assert!(samples.iter().all(|sample| !sample.name.starts_with("tandem_raft")));
}

/// The whole reply to these bytes.
async fn ask(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut reply = Vec::new();
    // A connection that is closed at once may be reset.
    let _ = stream.read_to_end(&mut reply).await;
    String::from_utf8(reply).unwrap()
}

#[tokio::test]
async fn metrics_are_read_by_http_and_connections_that_say_nothing_hold_nobody_up_for_ever() {
    let listener = Transport::default().listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    let closing = CancellationToken::new();
    let serving = tokio::spawn(server::serve(listener, node().await, closing.clone()));
    let get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let reply = ask(&address, get).await;
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    parse(body).unwrap();
    assert!(ask(&address, b"GET /other HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
    assert_eq!(ask(&address, &[b'x'; 9_000]).await, "", "a request without end");
    let mut silent = Vec::new();
    for _ in 0..server::CONNECTIONS_MAX {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    assert_eq!(ask(&address, get).await, "", "all places are taken");
    let mut first = silent.remove(0);
    assert_eq!(first.read(&mut [0; 1]).await.unwrap(), 0, "its time is over");
    assert!(ask(&address, get).await.starts_with("HTTP/1.1 200 OK"));
    closing.cancel();
    serving.await.unwrap();
}
