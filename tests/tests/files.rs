//! Filesystems in volumes of a real cluster: made, used from the command line, and there after a failover.

use std::process::Command;

use serde_json::Value;
use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT, WITNESS};
use tandem_tests::e2e::nbd::NbdError;
use tandem_tests::e2e::skip::find_program;
use tandem_tests::e2e::{Cluster, ClusterOptions, Need, eventually_some, require};

/// What makes a filesystem, on the nodes' path or where Debian has it.
const NEEDS: &[Need] = &[Need::Program("mke2fs"), Need::Program("e2fsck")];

fn cluster_with_files(size: &str) -> Cluster {
    let cluster = Cluster::start(&ClusterOptions::default());
    cluster
        .must(ALPHA, &["volume", "create", "vol", "--size", size, "--node", "alpha", "--node", "beta", "--fs", "ext4"]);
    cluster.wait_healthy("vol");
    cluster
}

fn names(listed: &Value) -> Vec<String> {
    let entries = listed.as_array().into_iter().flatten();
    entries.map(|entry| entry["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A command against whichever node answers for the volume, as soon as one does.
fn eventually_done(cluster: &Cluster, args: &[&str]) -> Value {
    eventually_some(RECOVERY_LIMIT, &format!("{args:?} is done"), || {
        cluster.cli(BETA, args).json().or_else(|| cluster.cli(WITNESS, args).json())
    })
}

/// Copies the volume out of the cluster and has e2fsck look at it.
fn assert_clean(cluster: &Cluster) {
    let mut connection = cluster.connect_serving("vol");
    let (path, size) = (cluster.home().join("image"), connection.size_bytes());
    let mut image = Vec::new();
    while (image.len() as u64) < size {
        image.extend(connection.read(image.len() as u64, 1 << 20).expect("the volume is read"));
    }
    connection.disconnect();
    std::fs::write(&path, image).expect("the image");
    let e2fsck = find_program("e2fsck").expect("it was asked for");
    let output = Command::new(e2fsck).arg("-fn").arg(&path).output().expect("e2fsck runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complains = ["Fix?", "Clear?", "Connect"].iter().any(|word| said.contains(word));
    assert!(output.status.success() && !complains, "{said}");
}

#[test]
fn a_volume_is_created_with_a_filesystem_and_used_by_paths() {
    if !require("a_volume_is_created_with_a_filesystem_and_used_by_paths", NEEDS) {
        return;
    }
    let cluster = cluster_with_files("64M");
    let usage = cluster.must(ALPHA, &["fs", "df", "vol"]);
    assert!(usage["free_bytes"].as_u64().is_some_and(|free| free > 40 << 20), "{usage}");
    // Any node will do: the command goes to the primary.
    cluster.must(WITNESS, &["fs", "mkdir", "-p", "vol:/a/b/c"]);
    assert_eq!(names(&cluster.must(BETA, &["fs", "ls", "vol:"])), ["a", "lost+found"]);
    let file = cluster.must(BETA, &["fs", "stat", "vol:/a/b"]);
    assert_eq!((file["kind"].as_str(), file["permissions"].as_u64()), (Some("directory"), Some(0o755)), "{file}");
    for (args, code, part) in [
        (&["fs", "mkdir", "vol:/a"][..], 4, "/a: the name exists"),
        (&["fs", "stat", "vol:/no/such"], 6, "/no/such: no such file"),
        (&["fs", "rm", "vol:/a"], 4, "-r removes it"),
        (&["fs", "ls", "nothing:/"], 6, "volume list"),
        (&["fs", "make", "vol"], 4, "--force"),
    ] {
        let outcome = cluster.cli(ALPHA, args);
        assert!(outcome.code == code && outcome.stderr.contains(part), "{args:?}: {outcome:?}");
    }
    let removed = cluster.must(ALPHA, &["fs", "rm", "-r", "vol:/a"]);
    assert_eq!(removed["directories"], 3, "{removed}");
    cluster.must(ALPHA, &["fs", "close", "vol"]);
    assert_clean(&cluster);
    cluster.must(ALPHA, &["fs", "make", "vol", "--force"]);
    assert_eq!(names(&cluster.must(BETA, &["fs", "ls", "vol:/"])), ["lost+found"]);
}

#[test]
fn the_engine_and_clients_of_the_block_device_exclude_each_other() {
    let name = "the_engine_and_clients_of_the_block_device_exclude_each_other";
    if !require(name, NEEDS) {
        return;
    }
    let cluster = cluster_with_files("32M");
    cluster.must(ALPHA, &["fs", "ls", "vol:/"]);
    match cluster.connect(ALPHA, "vol") {
        Err(NbdError::Refused(message)) => assert!(message.contains("tandem fs close vol"), "{message}"),
        other => panic!("a client came in beside the engine: {other:?}"),
    }
    cluster.must(ALPHA, &["fs", "close", "vol"]);
    let connection = cluster.connect(ALPHA, "vol").expect("it is closed");
    for args in [&["fs", "ls", "vol:/"][..], &["fs", "make", "vol", "--force"]] {
        let refused = cluster.cli(ALPHA, args);
        assert!(refused.code == 4 && refused.stderr.contains("1 NBD client"), "{args:?}: {refused:?}");
    }
    connection.disconnect();
    eventually_done(&cluster, &["fs", "ls", "vol:/"]);
}

#[test]
fn a_volume_that_holds_data_or_nothing_says_so() {
    if !require("a_volume_that_holds_data_or_nothing_says_so", NEEDS) {
        return;
    }
    let cluster = Cluster::with_volume("32M");
    let none = cluster.cli(ALPHA, &["fs", "ls", "vol:/"]);
    assert!(none.code == 6 && none.stderr.contains("tandem fs make"), "{none:?}");
    let mut connection = cluster.connect(ALPHA, "vol").expect("connected");
    connection.write(20 << 20, &[7; 4096]).expect("write");
    connection.flush().expect("flush");
    connection.disconnect();
    let refused = eventually_some(RECOVERY_LIMIT, "the client is gone", || {
        Some(cluster.cli(ALPHA, &["fs", "make", "vol"])).filter(|outcome| !outcome.stderr.contains("NBD client"))
    });
    assert!(refused.code == 4 && refused.stderr.contains("holds data"), "{refused:?}");
    cluster.must(ALPHA, &["fs", "make", "vol", "--force"]);
    cluster.must(ALPHA, &["fs", "close", "vol"]);
    let mut connection = cluster.connect(ALPHA, "vol").expect("connected");
    assert_eq!(connection.read(20 << 20, 4096).expect("read"), vec![0; 4096], "the old data shines through");
    connection.disconnect();
    assert_clean(&cluster);
}

#[test]
fn files_come_and_go_whole() {
    if !require("files_come_and_go_whole", NEEDS) {
        return;
    }
    let cluster = cluster_with_files("64M");
    let local = |name: &str| cluster.home().join(name).to_string_lossy().into_owned();
    let content: Vec<u8> = (0..6_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(local("source"), &content).expect("a local file");
    cluster.must(BETA, &["fs", "put", &local("source"), "vol:/"]);
    cluster.must(ALPHA, &["fs", "mkdir", "vol:/dir"]);
    cluster.must(ALPHA, &["fs", "cp", "vol:/source", "vol:/dir/copy"]);
    cluster.must(WITNESS, &["fs", "get", "vol:/dir/copy", &local("copy")]);
    assert!(std::fs::read(local("copy")).expect("it is there") == content);
    std::fs::write(local("small"), "hello").expect("a local file");
    cluster.must(ALPHA, &["fs", "put", &local("small"), "vol:/source"]);
    assert_eq!(cluster.cli(BETA, &["fs", "cat", "vol:/source"]).stdout, "hello");
    for (args, code, part) in [
        (&["fs", "get", "vol:/none", &local("none")][..], 6, "/none: no such file"),
        (&["fs", "cat", "vol:/dir"], 4, "/dir: is a directory"),
        (&["fs", "put", &local("none"), "vol:/x"], 1, "none: No such file"),
    ] {
        let outcome = cluster.cli(ALPHA, args);
        assert!(outcome.code == code && outcome.stderr.contains(part), "{args:?}: {outcome:?}");
    }
    assert!(!std::path::Path::new(&local("none")).exists(), "a failed get leaves nothing");
    assert_eq!(names(&cluster.must(ALPHA, &["fs", "ls", "vol:/"])), ["dir", "lost+found", "source"]);
    let checked = cluster.must(BETA, &["fs", "check", "vol"]);
    assert!(checked["clean"] == true && checked["looked_at_bytes"].as_u64() < Some(8 << 20), "{checked}");
    cluster.must(ALPHA, &["fs", "rm", "vol:/dir/copy"]);
    cluster.must(ALPHA, &["fs", "close", "vol"]);
    assert_clean(&cluster);
}

#[test]
fn what_was_acknowledged_is_there_after_the_primary_was_killed() {
    if !require("what_was_acknowledged_is_there_after_the_primary_was_killed", NEEDS) {
        return;
    }
    let mut cluster = cluster_with_files("64M");
    let made: Vec<String> = (0..40).map(|number| format!("d{number:02}")).collect();
    for name in &made {
        cluster.must(ALPHA, &["fs", "mkdir", &format!("vol:/{name}")]);
    }
    cluster.must(ALPHA, &["fs", "rm", "-r", "vol:/d00"]);
    let source = cluster.home().join("source").to_string_lossy().into_owned();
    std::fs::write(&source, "acknowledged").expect("a local file");
    cluster.must(ALPHA, &["fs", "put", &source, "vol:/d39/file"]);
    cluster.nodes[ALPHA].kill();
    let listed = names(&eventually_done(&cluster, &["fs", "ls", "vol:/"]));
    let wanted: Vec<&str> = made[1..].iter().map(String::as_str).chain(["lost+found"]).collect();
    assert_eq!(listed, wanted);
    assert_eq!(cluster.cli(BETA, &["fs", "cat", "vol:/d39/file"]).stdout, "acknowledged");
    eventually_done(&cluster, &["fs", "mkdir", "-p", "vol:/after"]);
    cluster.nodes[ALPHA].start();
    cluster.wait_healthy("vol");
    // A planned switchover closes first; the other box has nothing to recover.
    cluster.switchover("vol", ALPHA);
    let listed = names(&eventually_done(&cluster, &["fs", "ls", "vol:/"]));
    assert!(listed.contains(&"after".to_owned()) && listed.len() == wanted.len() + 1, "{listed:?}");
    let recovered =
        cluster.nodes[ALPHA].log().lines().rfind(|line| line.contains("filesystem open")).map(str::to_owned);
    assert!(recovered.as_ref().is_some_and(|line| line.contains("transactions=0")), "{recovered:?}");
    eventually_done(&cluster, &["fs", "close", "vol"]);
    assert_clean(&cluster);
}
