//! Processes that die, stop and return, under load that remembers what was acknowledged.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT, WITNESS};
use tandem_tests::e2e::floating::FloatingAddress;
use tandem_tests::e2e::nbd::{NbdConnection, NbdError};
use tandem_tests::e2e::pattern::{BLOCK_BYTES, fill, version_of};
use tandem_tests::e2e::process::Process;
use tandem_tests::e2e::qemu::StorageDaemon;
use tandem_tests::e2e::writer::{Connector, LoadReport, VerifyingLoad};
use tandem_tests::e2e::{Cluster, Need, eventually, require};

const VOLUME: &str = "vol";

fn connector(cluster: &Cluster) -> Connector {
    let (network, nodes) = (cluster.network.clone(), [ALPHA, BETA].map(|index| cluster.nodes[index].addresses.nbd));
    Arc::new(move || {
        nodes.iter().find_map(|address| {
            NbdConnection::negotiate(network.connect(*address).ok()?, VOLUME, Duration::from_secs(15)).ok()
        })
    })
}

fn load(cluster: &Cluster) -> VerifyingLoad {
    VerifyingLoad::start(connector(cluster), 4, 512, RECOVERY_LIMIT)
}

/// Ends the load on the serving copy, then reads every block of the other one too.
fn verify_both(cluster: &Cluster, load: VerifyingLoad) -> LoadReport {
    let report = load.finish();
    let state = cluster.wait_healthy(VOLUME);
    let other = if state.primary == "alpha" { BETA } else { ALPHA };
    let read_all = || {
        let mut connection = cluster.connect_serving(VOLUME);
        connection.read(0, 4 * 512 * BLOCK_BYTES as u32).expect("the whole volume")
    };
    let before = read_all();
    cluster.switchover(VOLUME, other);
    cluster.wait_primary(VOLUME, other);
    assert!(before == read_all(), "the two copies differ");
    report
}

#[test]
fn a_killed_primary_loses_nothing_and_returns() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[ALPHA].kill();
    load.progress(500);
    cluster.wait_primary(VOLUME, BETA);
    cluster.nodes[ALPHA].start();
    cluster.wait_healthy(VOLUME);
    load.progress(500);
    let report = verify_both(&cluster, load);
    assert!(report.reconnects >= 4, "{report:?}");
}

#[test]
fn a_killed_worker_is_reaped_and_its_peer_takes_over() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[ALPHA].kill_worker();
    load.progress(500);
    let report = verify_both(&cluster, load);
    assert!(report.reconnects >= 4, "{report:?}");
}

#[test]
fn a_killed_secondary_is_left_out_and_resynced() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[BETA].kill();
    load.progress(500);
    cluster.nodes[BETA].start();
    cluster.wait_healthy(VOLUME);
    let report = verify_both(&cluster, load);
    assert_eq!(report.reconnects, 0, "clients of the primary noticed: {report:?}");
}

#[test]
fn a_killed_witness_is_not_missed() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[WITNESS].kill();
    load.progress(1000);
    cluster.nodes[WITNESS].start();
    load.progress(500);
    let report = verify_both(&cluster, load);
    assert_eq!(report.reconnects, 0, "{report:?}");
}

#[test]
fn both_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[ALPHA].kill();
    cluster.nodes[BETA].kill();
    cluster.nodes[ALPHA].start();
    cluster.nodes[BETA].start();
    load.progress(500);
    verify_both(&cluster, load);
}

/// The I/O of a killed process may outlive it, and with it the process's locks: its successor waits for them.
#[test]
fn a_node_that_is_started_at_once_after_each_of_many_kills_takes_its_place() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    for _ in 0..10 {
        cluster.nodes[BETA].kill();
        cluster.nodes[BETA].start();
    }
    cluster.wait_healthy(VOLUME);
    assert!(!cluster.nodes[BETA].log().contains("OUT OF SERVICE"), "a lock is no reason to stay out");
    verify_both(&cluster, load);
}

#[test]
fn sigterm_hands_over_before_it_ends() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[ALPHA].stop(RECOVERY_LIMIT);
    cluster.wait_primary(VOLUME, BETA);
    load.progress(500);
    cluster.nodes[ALPHA].start();
    verify_both(&cluster, load);
}

#[test]
fn fio_verifies_while_each_process_is_killed_in_turn() {
    let needs = [Need::Program("fio"), Need::Program("qemu-storage-daemon")];
    if !require("fio_verifies_while_each_process_is_killed_in_turn", &needs) {
        return;
    }
    let mut cluster = Cluster::with_volume("64M");
    let nodes = [ALPHA, BETA].map(|index| cluster.nodes[index].addresses.nbd).to_vec();
    let relay = FloatingAddress::start(nodes, VOLUME).expect("relay");
    let log = cluster.home().join("qemu.log");
    let client = StorageDaemon::reconnecting(relay.address(), VOLUME, RECOVERY_LIMIT * 2, &log).expect("client");
    let mut fio = Command::new("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--size=60m",
        "--rate_iops=800",
    ]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", &format!("--uri={}", client.uri())]);
    fio.current_dir(cluster.home());
    let fio_log = cluster.home().join("fio.log");
    let mut fio = Process::start(fio, &fio_log).expect("fio");
    for victim in [WITNESS, BETA, ALPHA] {
        let goal = relay.bytes_to_node() + (4 << 20);
        eventually(RECOVERY_LIMIT * 2, "fio writes", || relay.bytes_to_node() > goal);
        assert!(fio.is_running(), "fio ended early: {}", std::fs::read_to_string(&fio_log).unwrap_or_default());
        cluster.nodes[victim].kill();
        let goal = relay.bytes_to_node() + (2 << 20);
        eventually(RECOVERY_LIMIT * 2, "fio writes on without it", || relay.bytes_to_node() > goal);
        cluster.nodes[victim].start();
        cluster.wait_healthy(VOLUME);
    }
    assert!(fio.wait_for_end(Duration::from_secs(180)), "fio hangs");
    let output = std::fs::read_to_string(&fio_log).unwrap_or_default();
    assert_eq!(fio.exit_code(), Some(0), "{output}");
    assert!(relay.connections() >= 2, "fio's client never lost its node");
}

#[test]
fn a_stopped_primary_serves_nothing_stale_when_it_goes_on() {
    let mut cluster = Cluster::with_volume("16M");
    let mut old = cluster.connect(ALPHA, VOLUME).expect("connected");
    for block in 0..8 {
        old.write(block * BLOCK_BYTES as u64, &fill(block, 1)).expect("old data");
    }
    old.flush().expect("flush");
    cluster.nodes[ALPHA].process().signal_tree(Signal::SIGSTOP);
    // Waits in the stopped node's socket, and is the first thing that it sees when it goes on.
    let waiting = old.begin_read(0, BLOCK_BYTES as u32).expect("sent");
    let stopped = std::time::Instant::now();
    let mut new = cluster.connect_serving(VOLUME);
    for block in 0..8 {
        new.write(block * BLOCK_BYTES as u64, &fill(block, 2)).expect("new data");
    }
    eventually(Duration::from_secs(10), "five seconds of silence", || stopped.elapsed() >= Duration::from_secs(5));
    cluster.nodes[ALPHA].process().signal_tree(Signal::SIGCONT);
    // It is not primary any more: a close or an error, and never an answer, whatever it would hold.
    let refused = |what: &str, block: u64, outcome: Result<Vec<u8>, NbdError>| {
        if let Ok(bytes) = outcome {
            panic!("{what} of block {block} was answered with version {:?}", version_of(block, &bytes));
        }
    };
    refused("the read that waited", 0, old.finish_read(waiting, BLOCK_BYTES as u32));
    for block in 1..8 {
        refused("a later read", block, old.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32));
    }
    assert!(cluster.connect(ALPHA, VOLUME).is_err(), "the deposed primary serves a new client");
    assert!(old.write(0, &fill(0, 3)).is_err(), "the deposed primary acknowledged a write");
    cluster.wait_healthy(VOLUME);
    let mut new = cluster.connect_serving(VOLUME);
    for block in 0..8 {
        let bytes = new.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).expect("read");
        assert_eq!(version_of(block, &bytes), Some(2), "block {block}");
    }
}

#[test]
fn a_stopped_secondary_holds_nobody_up() {
    let mut cluster = Cluster::with_volume("16M");
    let load = load(&cluster);
    load.progress(500);
    cluster.nodes[BETA].process().signal_tree(Signal::SIGSTOP);
    load.progress(500);
    cluster.nodes[BETA].process().signal_tree(Signal::SIGCONT);
    verify_both(&cluster, load);
}
