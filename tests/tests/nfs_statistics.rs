//! What is told of an NFS service and of its clients: by every node, by command and as metrics, also after a switchover.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use gateway_nfs::client::arguments::LockRange;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::{Files, FilesError, OpenFile};
use gateway_nfs::rpc::auth::SysCredential;
use serde_json::Value;
use tandem_tests::e2e::cluster::{ALPHA, BETA, WITNESS};
use tandem_tests::e2e::{Cluster, ClusterOptions, Need, eventually, eventually_some, require};

const PORT: &str = "20490";
const LIMIT: Duration = Duration::from_secs(30);

fn address(cluster: &Cluster, node: usize) -> SocketAddr {
    SocketAddr::new(cluster.nodes[node].addresses.nbd.ip(), PORT.parse().expect("a port"))
}

async fn connect(at: SocketAddr) -> Files {
    let credential = SysCredential { machine: "box".into(), ..SysCredential::default() };
    let options = Options { owner: "box \"one\"".into(), credential, patience: Some(LIMIT), ..Options::default() };
    Files::new(Client::connect(at, options).await.expect("it connects"), "one")
}

/// Makes, writes, reads, misses and locks; the file stays open.
async fn work(files: &Files) -> Result<OpenFile, FilesError> {
    files.make_directory("vol/a", 0o755).await?;
    files.write_file("vol/a/file", vec![7; 10_000].into()).await?;
    assert_eq!(files.read_file("vol/a/file").await?.len(), 10_000);
    assert!(files.stat("vol/a/nobody").await.is_err());
    let mut open = files.open_or_create("vol/a/file", 0o644).await?;
    open.lock(LockRange { offset: 0, length: 10, exclusive: true }).await?;
    Ok(open)
}

/// The only service in an answer, and what is told of it.
fn only(answer: &Value, what: &str) -> (Value, Value) {
    let [service] = answer.as_array().expect("a list").as_slice() else { panic!("one service: {answer}") };
    (service["serving"].clone(), service[what].clone())
}

fn metrics(cluster: &Cluster, node: usize) -> String {
    let mut stream = TcpStream::connect(cluster.nodes[node].addresses.metrics).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it answers");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    body.to_owned()
}

/// The value of the only sample that begins so.
fn sample(metrics: &str, begin: &str) -> f64 {
    let found: Vec<_> = metrics.lines().filter(|line| line.starts_with(begin)).collect();
    let [line] = found.as_slice() else { panic!("{begin}: {found:?}") };
    line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
}

#[test]
fn every_node_tells_of_a_service_and_its_clients_also_after_a_switchover() {
    if !require("every_node_tells_of_a_service_and_its_clients_also_after_a_switchover", &[Need::Program("mke2fs")]) {
        return;
    }
    let mut cluster = Cluster::configure(&ClusterOptions::default());
    for node in &mut cluster.nodes {
        let log = [("TANDEM_LOG", "info,gateway_nfs=debug"), ("TANDEM_LOG_FORMAT", "json")];
        node.environment = log.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    }
    cluster.form();
    let create = ["volume", "create", "vol", "--size", "128M", "--node", "alpha", "--node", "beta", "--fs", "ext4"];
    cluster.must(ALPHA, &create);
    cluster.wait_healthy("vol");
    assert_eq!(cluster.cli(ALPHA, &["nfs", "stats", "vol"]).code, 4, "it is not served");
    cluster.must(ALPHA, &["nfs", "serve", "vol", "--port", PORT]);
    cluster.must(ALPHA, &["export", "add", "vol", "*", "--rw", "--squash", "none"]);
    cluster.must(ALPHA, &["export", "add", "vol", "192.0.2.0/24"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (files, open) = runtime.block_on(async {
        let files = connect(address(&cluster, ALPHA)).await;
        let open = work(&files).await.expect("it is done");
        (files, open)
    });
    for node in [ALPHA, BETA, WITNESS] {
        let (serving, clients) = only(&cluster.must(node, &["nfs", "clients", "vol"]), "clients");
        assert_eq!((&serving["primary_name"], &serving["silent"]), (&"alpha".into(), &"".into()));
        let [client] = clients.as_array().expect("a list").as_slice() else { panic!("one client: {clients}") };
        assert_eq!((&client["owner"], &client["lease"]), (&"box \"one\"".into(), &"active".into()));
        assert_eq!((&client["opens"], &client["locks"], &client["sessions"]), (&1.into(), &1.into(), &1.into()));
        assert_eq!((&client["read_bytes"], &client["written_bytes"]), (&10_000.into(), &10_000.into()));
        assert_eq!(client["connections"], 1);
        let (_, figures) = only(&cluster.must(node, &["nfs", "stats"]), "figures");
        let operations = figures["operations"].as_array().expect("a list");
        let lookup = operations.iter().find(|operation| operation["name"] == "LOOKUP").expect("it was asked for");
        assert_eq!(lookup["errors"][0]["status"], "NOENT");
        assert_eq!((&figures["connections"], &figures["in_grace"]), (&1.into(), &false.into()));
        assert!(figures["ring_records"].as_u64() > Some(0), "{figures}");
        let [all, few] = figures["exports"].as_array().expect("a list").as_slice() else { panic!("two: {figures}") };
        assert_eq!((&all["client"], &all["read_bytes"]), (&"*".into(), &10_000.into()));
        assert_eq!((&all["requests"], &few["client"]), (&client["requests"], &"192.0.2.0/24".into()));
        assert_eq!(few["requests"], 0);
    }
    let of_alpha = metrics(&cluster, ALPHA);
    assert_eq!(sample(&of_alpha, "tandem_nfs_written_bytes_total{volume=\"vol\"}"), 10_000.0);
    assert_eq!(sample(&of_alpha, "tandem_nfs_export_written_bytes_total{volume=\"vol\",export=\"*\"}"), 10_000.0);
    assert_eq!(sample(&of_alpha, "tandem_nfs_client_opens{volume=\"vol\""), 1.0);
    assert_eq!(sample(&of_alpha, "tandem_copy_role{volume=\"vol\",role=\"primary\"}"), 1.0);
    assert!(sample(&of_alpha, "tandem_copy_written_bytes_total{volume=\"vol\"}") >= 10_000.0);
    assert!(sample(&of_alpha, "tandem_filesystem_free_bytes{volume=\"vol\"}") > 0.0);
    let of_beta = metrics(&cluster, BETA);
    assert_eq!(sample(&of_beta, "tandem_copy_role{volume=\"vol\",role=\"secondary\"}"), 1.0);
    assert!(!of_beta.contains("tandem_nfs_requests_total{"), "it serves nothing");
    assert!(sample(&metrics(&cluster, WITNESS), "tandem_raft_term") >= 1.0);
    drop((open, files));
    cluster.switchover("vol", BETA);
    // The same client by another address: it is known there, with what it has.
    let _files = runtime.block_on(connect(address(&cluster, BETA)));
    let (serving, figures) = eventually_some(LIMIT, "beta tells", || {
        let answer = cluster.cli(ALPHA, &["nfs", "stats", "vol"]).json()?;
        Some(only(&answer, "figures")).filter(|(serving, figures)| serving["silent"] == "" && !figures.is_null())
    });
    assert_eq!(serving["primary_name"], "beta");
    assert!(figures["clients"].as_u64() >= Some(1), "{figures}");
    eventually(LIMIT, "alpha serves no more", || !metrics(&cluster, ALPHA).contains("tandem_nfs_requests_total{"));
    assert!(sample(&metrics(&cluster, BETA), "tandem_nfs_requests_total{volume=\"vol\"}") >= 1.0);
    check_log(&cluster.nodes[ALPHA].log());
}

/// Each line is an object, and what is said on behalf of a request names it.
fn check_log(log: &str) {
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()), "{log}");
    let compound = |line: &&Value| line["message"].as_str().is_some_and(|said| said.starts_with("compound SEQUENCE"));
    let compound = lines.iter().find(compound).expect("there were compounds");
    assert_eq!((&compound["span"]["name"], &compound["span"]["volume"]), (&"request".into(), &"vol".into()));
    assert!(compound["span"]["id"].as_u64() > Some(0) && compound["slot"].is_u64(), "{compound}");
}
