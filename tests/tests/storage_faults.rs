//! Disks that are full, and stores that are not what they were.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT, RESYNC_LIMIT, WITNESS};
use tandem_tests::e2e::nbd::NbdConnection;
use tandem_tests::e2e::small_disk::SmallDisk;
use tandem_tests::e2e::writer::VerifyingLoad;
use tandem_tests::e2e::{Cluster, ClusterOptions, Need, eventually, require};

const VOLUME: &str = "vol";
/// Byte offsets of the two superblock slots (docs/disk-format.md).
const SLOTS: [u64; 2] = [0, 512 << 10];

fn load(cluster: &Cluster) -> VerifyingLoad {
    let (network, nodes) = (cluster.network.clone(), [ALPHA, BETA].map(|index| cluster.nodes[index].addresses.nbd));
    let connector = move || {
        nodes.iter().find_map(|address| {
            NbdConnection::negotiate(network.connect(*address).ok()?, VOLUME, Duration::from_secs(15)).ok()
        })
    };
    VerifyingLoad::start(Arc::new(connector), 2, 256, RECOVERY_LIMIT * 2)
}

fn store_path(cluster: &Cluster, index: usize) -> PathBuf {
    let json = cluster.must(index, &["volume", "show", VOLUME]);
    let name = cluster.nodes[index].name.as_str();
    let replicas = json["replicas"].as_array().expect("replicas");
    let replica = replicas.iter().find(|replica| replica["node_name"] == name).expect("a replica on the node");
    PathBuf::from(replica["path"].as_str().expect("a path"))
}

/// Kills beta, does something to its store, and starts it again.
fn damage_beta(cluster: &mut Cluster, damage: impl Fn(&File)) {
    let path = store_path(cluster, BETA);
    cluster.nodes[BETA].kill();
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("the store's file");
    damage(&file);
    file.sync_all().expect("sync");
    cluster.nodes[BETA].start_unwatched();
}

#[test]
fn one_bad_superblock_slot_is_survived() {
    for slot in SLOTS {
        let mut cluster = Cluster::with_volume("16M");
        let load = load(&cluster);
        load.progress(100);
        damage_beta(&mut cluster, |file| file.write_all_at(&[0xA5; 4096], slot).expect("damage"));
        cluster.wait_healthy(VOLUME);
        load.progress(100);
        load.finish();
    }
}

#[test]
fn a_store_without_valid_superblocks_is_refused_and_the_other_copy_serves() {
    type Damage = fn(&File);
    let kinds: [(&str, Damage); 4] = [
        ("corrupt", |file| SLOTS.iter().for_each(|slot| file.write_all_at(&[0xA5; 64], slot + 48).expect("damage"))),
        ("foreign", |file| SLOTS.iter().for_each(|slot| file.write_all_at(&[b'x'; 4096], *slot).expect("damage"))),
        ("blank", |file| SLOTS.iter().for_each(|slot| file.write_all_at(&[0; 4096], *slot).expect("damage"))),
        ("truncated", |file| file.set_len(6 << 20).expect("truncate")),
    ];
    for (kind, damage) in kinds {
        let mut cluster = Cluster::with_volume("16M");
        let load = load(&cluster);
        load.progress(100);
        damage_beta(&mut cluster, damage);
        load.progress(200);
        let path = store_path(&cluster, ALPHA);
        let name = path.file_name().expect("a file name").to_string_lossy().into_owned();
        eventually(RECOVERY_LIMIT, &format!("beta says what is wrong with its {kind} store"), || {
            cluster.nodes[BETA].log().lines().any(|line| line.contains(&name) || line.contains("superblock"))
        });
        let state = cluster.volume(VOLUME).expect("alpha answers");
        assert!(!state.in_sync.contains(&"beta".to_owned()), "a {kind} store counts as in sync");
        assert!(cluster.connect(BETA, VOLUME).is_err(), "a {kind} store is served");
        load.progress(100);
        load.finish();
    }
}

#[test]
fn a_full_disk_under_the_raft_log_loses_nothing() {
    if !require("a_full_disk_under_the_raft_log_loses_nothing", &[Need::SmallDisk]) {
        return;
    }
    for victim in [WITNESS, BETA, ALPHA] {
        let mut cluster = Cluster::configure(&ClusterOptions::default());
        let data = cluster.nodes[victim].data_dir();
        let disk = SmallDisk::mount(&cluster.home().join("small.img"), &data, 160 << 20);
        cluster.form();
        let args = [
            "volume",
            "create",
            VOLUME,
            "--size",
            "16M",
            "--node",
            "alpha",
            "--node",
            "beta",
            "--preallocate",
            "--wait",
        ];
        cluster.must(ALPHA, &args);
        cluster.wait_healthy(VOLUME);
        let load = load(&cluster);
        load.progress(200);
        disk.fill();
        // Each is an entry for every log; the one that is full must stop or refuse, the others go on.
        for _ in 0..20 {
            let other = if cluster.volume(VOLUME).is_some_and(|state| state.primary == "alpha") { BETA } else { ALPHA };
            let name = cluster.nodes[other].name.clone();
            let _ = cluster.cli(ALPHA, &["volume", "switchover", VOLUME, "--to", &name, "--timeout", "2"]);
        }
        load.progress(200);
        disk.free();
        if cluster.nodes[victim].is_running() {
            cluster.nodes[victim].kill();
        }
        cluster.nodes[victim].start();
        eventually(RESYNC_LIMIT, "the volume is healthy again", || {
            cluster.volume(VOLUME).is_some_and(|state| state.level == "healthy" && state.in_sync.len() == 2)
        });
        load.progress(200);
        load.finish();
        drop(cluster);
        drop(disk);
    }
}
