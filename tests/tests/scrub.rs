//! Bits that rot in the stores of a pair: a verify finds them and mends nothing, clients never see them, a scrub mends
//! them, and `volume show` counts them.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use serde_json::Value;
use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT};
use tandem_tests::e2e::nbd::NbdError;
use tandem_tests::e2e::pattern::{BLOCK_BYTES, fill, version_of};
use tandem_tests::e2e::{Cluster, ClusterOptions, eventually};

const VOLUME: &str = "vol";
/// Blocks written, over three extents.
const BLOCKS: u64 = 2560;
/// What the exit code of a command says when copies are damaged.
const DAMAGED: i32 = 7;
/// Refused by a guard.
const REFUSED: i32 = 4;
/// An I/O error by the NBD protocol.
const EIO: u32 = 5;

/// A pair whose extents become cold fast (a checksum of a hot one may be taken from the data after a crash), and that does
/// not scrub by itself.
fn written_pair() -> Cluster {
    let extra_config = "extent_idle_seconds = 1\nscrub_period_days = 0\n".to_owned();
    let cluster = Cluster::start(&ClusterOptions { extra_config, ..ClusterOptions::default() });
    cluster.create_volume(VOLUME, "16M");
    let mut connection = cluster.connect_serving(VOLUME);
    for block in 0..BLOCKS {
        connection.write(block * BLOCK_BYTES as u64, &fill(block, 1)).expect("written");
    }
    connection.flush().expect("flushed");
    connection.disconnect();
    eventually(RECOVERY_LIMIT, "every extent is cold on both copies", || {
        [ALPHA, BETA].iter().all(|index| replica(&cluster, *index)["copy"]["hot_extents"] == 0)
    });
    cluster
}

/// What `volume show` tells of one copy.
fn replica(cluster: &Cluster, index: usize) -> Value {
    let json = cluster.must(index, &["volume", "show", VOLUME]);
    let name = cluster.nodes[index].name.as_str();
    let replicas = json["replicas"].as_array().expect("replicas");
    replicas.iter().find(|replica| replica["node_name"] == name).cloned().expect("a copy on the node")
}

/// A copy's file, and where its first block lies.
fn store(cluster: &Cluster, index: usize) -> (File, u64) {
    let replica = replica(cluster, index);
    let path = replica["path"].as_str().expect("a path");
    let offset = replica["data_offset_bytes"].as_u64().filter(|offset| *offset > 0).expect("an offset");
    (OpenOptions::new().read(true).write(true).open(path).expect("the store's file"), offset)
}

/// Flips one bit in each of these blocks of a copy.
fn rot((file, offset): &(File, u64), blocks: &[u64]) {
    for block in blocks {
        let at = offset + block * BLOCK_BYTES as u64 + 1000 + block % 1000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1 << (block % 8)], at).expect("written");
    }
    file.sync_all().expect("synced");
}

/// Runs a scrub or verify to its end: its exit code and what it has found (bad on the primary, bad on the other copy,
/// differing, mended).
fn run(cluster: &Cluster, at: usize, what: &str) -> (i32, [u64; 4]) {
    let outcome = cluster.cli(at, &["volume", what, VOLUME]);
    let json: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{what}: {error}: {}{}", outcome.stdout, outcome.stderr));
    assert_eq!(json["verify_only"], what == "verify", "{json}");
    assert_eq!(json["done_blocks"], json["blocks"], "{json}");
    assert_eq!(json["skipped_parts"], 0, "{json}");
    let count = |field: &str| json[field].as_u64().unwrap_or_else(|| panic!("{field}: {json}"));
    (outcome.code, ["bad_on_primary", "bad_on_peers", "differing", "repaired"].map(count))
}

/// Reads every block but these through NBD, and expects what was written.
fn read_all_but(cluster: &Cluster, unreadable: &[u64]) {
    let unreadable: BTreeSet<u64> = unreadable.iter().copied().collect();
    let mut connection = cluster.connect_serving(VOLUME);
    for block in 0..BLOCKS {
        match connection.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32) {
            Ok(bytes) => {
                assert!(!unreadable.contains(&block), "block {block} is bad on both copies and was read");
                assert_eq!(version_of(block, &bytes), Some(1), "block {block}");
            }
            Err(NbdError::Server(EIO)) => assert!(unreadable.contains(&block), "block {block} cannot be read"),
            Err(error) => panic!("block {block}: {error:?}"),
        }
    }
}

#[test]
fn rot_on_both_sides_is_reported_hidden_from_clients_and_mended() {
    let mut cluster = written_pair();
    let (here, there) = (store(&cluster, ALPHA), store(&cluster, BETA));
    rot(&here, &[3, 1500]);
    rot(&there, &[7, 200, 2559]);
    // Asked of any node; twice, because a verify mends nothing.
    for at in [BETA, ALPHA] {
        assert_eq!(run(&cluster, at, "verify"), (DAMAGED, [2, 3, 0, 0]));
    }
    // What the primary reads for a client it mends by itself.
    read_all_but(&cluster, &[]);
    assert_eq!(run(&cluster, ALPHA, "scrub"), (0, [0, 3, 0, 3]));
    assert_eq!(run(&cluster, ALPHA, "verify"), (0, [0, 0, 0, 0]));
    for ((file, offset), blocks) in [(here, vec![3, 1500]), (there, vec![7, 200, 2559])] {
        for block in blocks {
            let mut bytes = vec![0; BLOCK_BYTES];
            file.read_exact_at(&mut bytes, offset + block * BLOCK_BYTES as u64).expect("read");
            assert_eq!(version_of(block, &bytes), Some(1), "block {block} on disk");
        }
    }
    let (alpha, beta) = (replica(&cluster, ALPHA), replica(&cluster, BETA));
    assert_eq!(alpha["copy"]["checksum_errors_repaired"], 2, "{alpha}");
    assert!(alpha["copy"]["checksum_errors"].as_u64() >= Some(2), "{alpha}");
    assert!(beta["copy"]["checksum_errors"].as_u64() >= Some(3), "{beta}");
    assert_eq!(alpha["last_scrub"]["verify_only"], true, "{alpha}");
    assert!(alpha["last_scrub"]["ended_unix_micros"].as_u64() > Some(0), "{alpha}");
    assert_eq!(alpha["scrub"], Value::Null, "{alpha}");
    // A copy remembers it, so that a box that is often restarted is scrubbed all the same.
    cluster.nodes[ALPHA].kill();
    cluster.nodes[ALPHA].start();
    cluster.wait_healthy(VOLUME);
    let again = replica(&cluster, ALPHA);
    let ended = |json: &Value| json["last_scrub"]["ended_unix_micros"].as_u64();
    assert!(ended(&alpha).zip(ended(&again)).is_some_and(|(a, b)| a.abs_diff(b) < 1_000_000), "{alpha} {again}");
    for field in ["verify_only", "blocks", "done_blocks", "bad_on_peers", "repaired"] {
        assert_eq!(again["last_scrub"][field], alpha["last_scrub"][field], "{field}");
    }
}

#[test]
fn a_block_that_rots_on_both_copies_is_named_damaged_until_it_is_written_again() {
    let cluster = written_pair();
    rot(&store(&cluster, ALPHA), &[39, 40, 41]);
    rot(&store(&cluster, BETA), &[40, 90]);
    assert_eq!(run(&cluster, ALPHA, "scrub"), (DAMAGED, [3, 2, 0, 3]));
    read_all_but(&cluster, &[40]);
    let mut connection = cluster.connect_serving(VOLUME);
    connection.write(40 * BLOCK_BYTES as u64, &fill(40, 1)).expect("a whole block is written over a bad one");
    connection.flush().expect("flushed");
    connection.disconnect();
    read_all_but(&cluster, &[]);
    assert_eq!(run(&cluster, ALPHA, "verify"), (0, [0, 0, 0, 0]));
}

#[test]
fn rot_of_a_node_that_was_off_is_found_and_mended() {
    let mut cluster = written_pair();
    let there = store(&cluster, BETA);
    cluster.nodes[BETA].kill();
    rot(&there, &[11, 1300]);
    cluster.nodes[BETA].start();
    cluster.wait_healthy(VOLUME);
    assert_eq!(run(&cluster, ALPHA, "verify"), (DAMAGED, [0, 2, 0, 0]));
    assert_eq!(run(&cluster, ALPHA, "scrub"), (0, [0, 2, 0, 2]));
    assert_eq!(run(&cluster, ALPHA, "verify"), (0, [0, 0, 0, 0]));
}

#[test]
fn a_primary_whose_disk_is_taken_away_serves_through_its_peer_until_it_is_attached_again() {
    let cluster = written_pair();
    let mut connection = cluster.connect(ALPHA, VOLUME).expect("alpha serves");
    cluster.must(ALPHA, &["volume", "detach", VOLUME, "--node", "alpha"]);
    for block in 0..64 {
        connection.write(block * BLOCK_BYTES as u64, &fill(block, 2)).expect("written through the peer");
    }
    connection.flush().expect("flushed through the peer");
    for (block, version) in [(0, 2), (63, 2), (64, 1), (BLOCKS - 1, 1)] {
        let bytes = connection.read(block * BLOCK_BYTES as u64, BLOCK_BYTES as u32).expect("read through the peer");
        assert_eq!(version_of(block, &bytes), Some(version), "block {block}");
    }
    eventually(RECOVERY_LIMIT, "the health says who serves through whom", || {
        cluster.volume(VOLUME).is_some_and(|state| {
            state.level == "degraded" && state.text.contains("solo on beta, through which alpha serves")
        })
    });
    let refused = cluster.cli(BETA, &["volume", "scrub", VOLUME]);
    assert_eq!(refused.code, REFUSED, "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("attach its disk first"), "{}", refused.stderr);
    cluster.must(ALPHA, &["volume", "attach", VOLUME, "--node", "alpha"]);
    assert_eq!(cluster.wait_healthy(VOLUME).primary, "beta");
    assert_eq!(run(&cluster, ALPHA, "verify"), (0, [0, 0, 0, 0]));
}
