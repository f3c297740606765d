//! Links that are cut, each box being a network namespace.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tandem_tests::e2e::cluster::{ALPHA, BETA, RECOVERY_LIMIT, WITNESS};
use tandem_tests::e2e::namespace::FLOATING_ADDRESS;
use tandem_tests::e2e::nbd::NbdConnection;
use tandem_tests::e2e::pattern::{BLOCK_BYTES, fill, version_of};
use tandem_tests::e2e::uml::Guest;
use tandem_tests::e2e::writer::VerifyingLoad;
use tandem_tests::e2e::{Cluster, ClusterOptions, Need, require};

const VOLUME: &str = "vol";

fn boxes(size: &str) -> Cluster {
    let cluster = Cluster::start(&ClusterOptions { namespaces: true, ..ClusterOptions::default() });
    cluster.create_volume(VOLUME, size);
    cluster
}

fn load(cluster: &Cluster) -> VerifyingLoad {
    let (network, nodes) = (cluster.network.clone(), [ALPHA, BETA].map(|index| cluster.nodes[index].addresses.nbd));
    let connector = move || {
        nodes.iter().find_map(|address| {
            NbdConnection::negotiate(network.connect(*address).ok()?, VOLUME, Duration::from_secs(5)).ok()
        })
    };
    VerifyingLoad::start(Arc::new(connector), 4, 512, RECOVERY_LIMIT)
}

#[test]
fn a_cut_between_the_boxes_leaves_one_primary_and_no_loss() {
    if !require("a_cut_between_the_boxes_leaves_one_primary_and_no_loss", &[Need::Namespaces]) {
        return;
    }
    let cluster = boxes("16M");
    let load = load(&cluster);
    load.progress(300);
    for _ in 0..2 {
        cluster.network.namespaces().cut_between(&[ALPHA, BETA]);
        load.progress(300);
        let serving: Vec<usize> =
            [ALPHA, BETA].into_iter().filter(|index| cluster.connect(*index, VOLUME).is_ok()).collect();
        assert_eq!(serving.len(), 1, "{serving:?} let clients in");
        cluster.network.namespaces().mend_between(&[ALPHA, BETA]);
        cluster.wait_healthy(VOLUME);
        load.progress(300);
    }
    load.finish();
}

#[test]
fn an_isolated_primary_falls_silent_and_its_peer_takes_over() {
    if !require("an_isolated_primary_falls_silent_and_its_peer_takes_over", &[Need::Namespaces]) {
        return;
    }
    let cluster = boxes("16M");
    let mut old = cluster.connect(ALPHA, VOLUME).expect("connected");
    old.write(0, &fill(0, 1)).expect("write");
    cluster.network.namespaces().unplug(ALPHA);
    let mut new = cluster.connect_serving(VOLUME);
    new.write(0, &fill(0, 2)).expect("write at the new primary");
    cluster.network.namespaces().plug(ALPHA);
    if let Ok(bytes) = old.read(0, BLOCK_BYTES as u32) {
        assert_ne!(version_of(0, &bytes), Some(1), "the old primary served what is overwritten");
    }
    cluster.wait_healthy(VOLUME);
    let bytes = cluster.connect_serving(VOLUME).read(0, BLOCK_BYTES as u32).expect("read");
    assert_eq!(version_of(0, &bytes), Some(2));
}

#[test]
fn a_witness_out_of_reach_is_not_missed_until_a_second_loss() {
    if !require("a_witness_out_of_reach_is_not_missed_until_a_second_loss", &[Need::Namespaces]) {
        return;
    }
    let mut cluster = boxes("16M");
    let load = load(&cluster);
    load.progress(300);
    cluster.network.namespaces().unplug(WITNESS);
    load.progress(500);
    cluster.nodes[BETA].kill();
    // One of three voters is left: it must not acknowledge alone. Writes wait until the witness is back.
    cluster.network.namespaces().plug(WITNESS);
    load.progress(300);
    cluster.nodes[BETA].start();
    cluster.wait_healthy(VOLUME);
    load.finish();
}

#[test]
fn a_linux_kernel_keeps_its_mounted_file_system_through_a_switchover() {
    let name = "a_linux_kernel_keeps_its_mounted_file_system_through_a_switchover";
    if !require(name, &[Need::Namespaces, Need::UserModeLinux, Need::Program("mkfs.ext4"), Need::Program("python3")]) {
        return;
    }
    let mut cluster = boxes("128M");
    let network = cluster.network.clone();
    network.namespaces().move_floating_address(ALPHA);
    let server = (Ipv4Addr::from(FLOATING_ADDRESS), 10809);
    let mut guest = Guest::boot(network.namespaces(), cluster.home(), server, VOLUME).expect("guest");
    guest.progress(5, Duration::from_secs(60));
    cluster.switchover(VOLUME, BETA);
    network.namespaces().move_floating_address(BETA);
    guest.progress(10, Duration::from_secs(60));
    cluster.wait_healthy(VOLUME);
    cluster.nodes[BETA].kill();
    cluster.wait_primary(VOLUME, ALPHA);
    network.namespaces().move_floating_address(ALPHA);
    guest.progress(10, Duration::from_secs(60));
    assert!(guest.reconnects() >= 2, "{}", guest.status());
    cluster.nodes[BETA].start();
    cluster.wait_healthy(VOLUME);
    guest.finish();
}
