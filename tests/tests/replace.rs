//! A box that is gone for good is replaced by an empty one; a node whose Raft log is damaged joins anew. Whoever was
//! removed says so, and never serves again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::Value;
use tandem_tests::e2e::cli::CliOutcome;
use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT, RESYNC_LIMIT, WITNESS};
use tandem_tests::e2e::node::{Node, NodeKind, binary};
use tandem_tests::e2e::pattern::{BLOCK_BYTES, fill, version_of};
use tandem_tests::e2e::{Cluster, eventually};

const VOLUME: &str = "vol";
const BLOCKS: u64 = 256;
/// Index of the box that comes in.
const GAMMA: usize = 3;
/// Refused by a guard.
const REFUSED: i32 = 4;

/// An empty box that runs and is in no cluster.
fn add_box(cluster: &mut Cluster, name: &str) {
    let index = cluster.nodes.len();
    let home = cluster.home().to_path_buf();
    let mut node = Node::configure(name, index, NodeKind::Storage, &cluster.network, &home, "");
    node.start();
    cluster.nodes.push(node);
}

fn write_all(cluster: &Cluster, version: u64) {
    let mut connection = cluster.connect_serving(VOLUME);
    for block in 0..BLOCKS {
        connection.write(block * BLOCK_BYTES as u64, &fill(block, version)).expect("written");
    }
    connection.flush().expect("flushed");
}

fn verify_all_at(cluster: &Cluster, index: usize, version: u64) {
    let mut connection = None;
    eventually(RECOVERY_LIMIT, "the volume is served there", || {
        connection = cluster.connect(index, VOLUME).ok();
        connection.is_some()
    });
    let mut connection = connection.expect("just made");
    for block in 0..BLOCKS {
        let bytes = connection.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).expect("read");
        assert_eq!(version_of(block, &bytes), Some(version), "block {block}");
    }
}

fn wait_alone(cluster: &Cluster, index: usize) {
    let name = &cluster.nodes[index].name;
    eventually(RECOVERY_LIMIT, "the dead copy is dropped", || {
        cluster.volume_at(index, VOLUME).is_some_and(|state| state.in_sync == [name.clone()])
    });
}

/// Which nodes vote, by name, as `at` tells it.
fn voters(cluster: &Cluster, at: usize) -> Vec<String> {
    let nodes = cluster.cli(at, &["node", "list"]).json().unwrap_or(Value::Null);
    let votes = |node: &&Value| node["voter"].as_bool() == Some(true);
    let name = |node: &Value| node["name"].as_str().unwrap_or_default().to_owned();
    nodes.as_array().into_iter().flatten().filter(votes).map(name).collect()
}

fn wait_voters(cluster: &Cluster, at: usize, expected: &[&str]) {
    eventually(RECOVERY_LIMIT, &format!("the voters are {expected:?}"), || voters(cluster, at) == expected);
}

fn out_of_service(cluster: &Cluster, index: usize) -> String {
    let status = cluster.cli(index, &["node", "status"]).json().unwrap_or(Value::Null);
    status["out_of_service"].as_str().unwrap_or_default().to_owned()
}

fn wait_out_of_service(cluster: &Cluster, index: usize, words: &[&str]) {
    eventually(RECOVERY_LIMIT, &format!("{} says that it is out of service", cluster.nodes[index].name), || {
        let why = out_of_service(cluster, index);
        words.iter().all(|word| why.contains(word))
    });
    let log = cluster.nodes[index].log();
    assert!(log.contains("OUT OF SERVICE") && words.iter().all(|word| log.contains(word)), "its log says it too");
}

fn reset(cluster: &Cluster, index: usize) -> CliOutcome {
    let mut command = Command::new(binary());
    command.args(["node", "reset", "--yes", "--config"]).arg(cluster.nodes[index].config_path());
    CliOutcome::of(command)
}

#[test]
fn a_dead_box_is_replaced_by_an_empty_one_and_is_refused_when_it_returns() {
    let mut cluster = Cluster::with_volume("16M");
    write_all(&cluster, 1);
    cluster.nodes[BETA].kill();
    write_all(&cluster, 2);
    wait_alone(&cluster, ALPHA);

    add_box(&mut cluster, "gamma");
    let member = cluster.nodes[ALPHA].addresses.admin.to_string();
    let joined = cluster.must(GAMMA, &["node", "join", &member]);
    assert_eq!(joined["votes"].as_bool(), Some(false), "it waits for the dead one's place: {joined}");
    assert_eq!(voters(&cluster, ALPHA), ["alpha", "beta", "witness"]);

    let replace = ["volume", "replace", VOLUME, "--old", "beta", "--new", "gamma"];
    assert_eq!(cluster.cli(ALPHA, &["node", "remove", "beta", "--yes"]).code, REFUSED, "it holds a copy on record");
    let refused = cluster.cli(ALPHA, &["volume", "replace", VOLUME, "--old", "alpha", "--new", "gamma"]);
    assert_eq!(refused.code, REFUSED, "{}", refused.stderr);
    assert!(refused.stderr.contains("force-primary"), "{}", refused.stderr);
    // The new box dies as soon as its copy is on record, and comes back: the command is repeated, and goes on.
    cluster.must(WITNESS, &[&replace[..], &["--no-wait"]].concat());
    cluster.nodes[GAMMA].kill();
    cluster.nodes[GAMMA].start();
    let done = cluster.must(ALPHA, &replace);
    assert_eq!(done["in_sync"].as_bool(), Some(true));
    let again = cluster.must(ALPHA, &replace);
    assert_eq!(again["disk_id"], done["disk_id"], "a repeated replacement changes nothing");

    cluster.must(ALPHA, &["node", "remove", "beta", "--yes"]);
    wait_voters(&cluster, ALPHA, &["alpha", "witness", "gamma"]);
    cluster.wait_healthy(VOLUME);
    write_all(&cluster, 3);

    // A failover to the new box needs its vote and its copy.
    cluster.nodes[ALPHA].kill();
    verify_all_at(&cluster, GAMMA, 3);
    cluster.nodes[ALPHA].start();
    cluster.wait_healthy(VOLUME);

    the_removed_box_is_refused(&mut cluster);
    verify_all_at(&cluster, GAMMA, 3);
}

fn the_removed_box_is_refused(cluster: &mut Cluster) {
    cluster.nodes[BETA].start();
    wait_out_of_service(cluster, BETA, &["was removed from cluster", "`tandem node reset", "`tandem node join"]);
    assert!(cluster.nodes[BETA].log().contains("is not used any more"), "its old copy is named");
    assert!(cluster.connect(BETA, VOLUME).is_err(), "the removed box serves");
    assert_eq!(cluster.cli(BETA, &["volume", "list"]).code, REFUSED);
    let member = cluster.nodes[ALPHA].addresses.admin.to_string();
    assert_eq!(cluster.cli(BETA, &["node", "join", &member]).code, REFUSED, "not without a reset");
    assert_eq!(reset(cluster, BETA).code, REFUSED, "not while it runs");
    // Also after another start.
    cluster.nodes[BETA].kill();
    cluster.nodes[BETA].start();
    wait_out_of_service(cluster, BETA, &["was removed from cluster"]);
    assert!(cluster.connect(BETA, VOLUME).is_err());
    assert_eq!(voters(cluster, GAMMA), ["alpha", "witness", "gamma"]);

    cluster.nodes[BETA].kill();
    let outcome = reset(cluster, BETA);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    cluster.nodes[BETA].start();
    let joined = cluster.must(BETA, &["node", "join", &member]);
    assert_eq!((joined["node"].as_u64(), joined["votes"].as_bool()), (Some(5), Some(true)), "a number of its own");
    assert!(cluster.connect(BETA, VOLUME).is_err(), "it holds no copy");
    wait_voters(cluster, ALPHA, &["alpha", "witness", "gamma", "beta"]);
}

#[test]
fn a_node_with_a_damaged_raft_log_does_not_vote_and_rejoins_as_a_new_one() {
    let mut cluster = Cluster::with_volume("16M");
    write_all(&cluster, 1);
    cluster.nodes[BETA].kill();
    let path = cluster.nodes[BETA].data_dir().join("raft/raft.log");
    let log = OpenOptions::new().read(true).write(true).open(&path).expect("its log");
    let mut byte = [0];
    // Within the first record.
    log.read_exact_at(&mut byte, 2 * 4096 + 20).expect("read");
    log.write_all_at(&[byte[0] ^ 0x04], 2 * 4096 + 20).expect("damaged");
    drop(log);

    cluster.nodes[BETA].start();
    wait_out_of_service(
        &cluster,
        BETA,
        &["must not vote", "`tandem node reset --config FILE`", "`tandem node join MEMBER`"],
    );
    wait_alone(&cluster, ALPHA);
    write_all(&cluster, 2);
    let nodes = cluster.must(ALPHA, &["node", "list"]);
    let reachable = |node: &Value| node["name"] == "beta" && node["reachable"].as_bool() == Some(false);
    assert!(nodes.as_array().into_iter().flatten().any(reachable), "{nodes}");

    cluster.nodes[BETA].kill();
    let outcome = reset(&cluster, BETA);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    cluster.must(ALPHA, &["volume", "remove-replica", VOLUME, "--node", "beta"]);
    cluster.must(ALPHA, &["node", "remove", "beta", "--yes"]);
    wait_voters(&cluster, ALPHA, &["alpha", "witness"]);
    cluster.nodes[BETA].start();
    let member = cluster.nodes[ALPHA].addresses.admin.to_string();
    let joined = cluster.must(BETA, &["node", "join", &member]);
    assert_eq!((joined["node"].as_u64(), joined["votes"].as_bool()), (Some(4), Some(true)));
    cluster.must(ALPHA, &["volume", "add-replica", VOLUME, "--node", "beta"]);
    eventually(RESYNC_LIMIT, "the new copy is in sync", || {
        cluster.volume(VOLUME).is_some_and(|state| state.in_sync.len() == 2)
    });
    cluster.nodes[ALPHA].kill();
    verify_all_at(&cluster, BETA, 2);
    cluster.nodes[ALPHA].start();
    cluster.wait_healthy(VOLUME);
}

#[test]
fn the_last_survivor_goes_on_alone_and_the_lost_voters_are_refused() {
    let mut cluster = Cluster::with_volume("16M");
    write_all(&cluster, 1);
    for index in [WITNESS, BETA] {
        cluster.nodes[index].kill();
    }
    let recover = |cluster: &Cluster, lost: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["recover-quorum", "--yes", "--config"]).arg(cluster.nodes[ALPHA].config_path());
        command.args(lost.iter().flat_map(|node| ["--lost", node]));
        CliOutcome::of(command)
    };
    assert_eq!(recover(&cluster, &["beta", "witness"]).code, REFUSED, "not while it runs");
    cluster.nodes[ALPHA].kill();
    let refused = recover(&cluster, &["beta"]);
    assert_eq!(refused.code, REFUSED);
    assert!(refused.stderr.contains("witness may be alive"), "{}", refused.stderr);
    let outcome = recover(&cluster, &["beta", "witness"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    cluster.nodes[ALPHA].start();
    verify_all_at(&cluster, ALPHA, 1);
    wait_voters(&cluster, ALPHA, &["alpha"]);
    write_all(&cluster, 2);

    // A lost voter that returns after all is not heard.
    cluster.nodes[WITNESS].start();
    eventually(RECOVERY_LIMIT, "the old voter is refused", || cluster.nodes[WITNESS].log().contains("wrong cluster"));
    assert_eq!(voters(&cluster, ALPHA), ["alpha"]);
    verify_all_at(&cluster, ALPHA, 2);

    // The lost ones are replaced as any dead box is.
    add_box(&mut cluster, "gamma");
    let member = cluster.nodes[ALPHA].addresses.admin.to_string();
    let joined = cluster.must(GAMMA, &["node", "join", &member]);
    assert_eq!(joined["votes"].as_bool(), Some(true), "no voter is missing: {joined}");
    cluster.must(ALPHA, &["volume", "replace", VOLUME, "--old", "beta", "--new", "gamma"]);
    for lost in ["beta", "witness"] {
        cluster.must(ALPHA, &["node", "remove", lost, "--yes"]);
    }
    assert_eq!(voters(&cluster, GAMMA), ["alpha", "gamma"]);
    cluster.wait_healthy(VOLUME);
}
