//! Bytes that no honest client sends, to every listener of every node: the node closes, says why, and goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tandem_tests::e2e::cluster::{ALPHA, BETA, WITNESS};
use tandem_tests::e2e::nbd::option;
use tandem_tests::e2e::pattern::{fill, version_of};
use tandem_tests::e2e::{Cluster, eventually};

/// Sends bytes, closes this side's sending half, and reads whatever comes until the node closes. The node must close.
fn throw(cluster: &Cluster, at: SocketAddr, bytes: &[u8]) {
    let mut stream =
        cluster.network.connect(at).unwrap_or_else(|error| panic!("{at} does not listen any more: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    // The node may close in the middle of it.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let timed_out = matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!timed_out, "{at} holds a dead connection open after {} bytes of garbage", bytes.len());
    }
}

fn garbage(seed: u64) -> Vec<Vec<u8>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = vec![Vec::new(), vec![0; 1], vec![0; 65536], vec![0xFF; 65536], b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    // An HTTP/2 preface and a frame that claims 16 MiB.
    all.push([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]].concat());
    for length in [7, 18, 64, 100, 4096, 100_000] {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        all.push(bytes);
    }
    all
}

fn nbd_garbage() -> Vec<Vec<u8>> {
    let flags = 3_u32.to_be_bytes().to_vec();
    let go = |name_length: u32, name: &[u8], infos: u16| {
        let mut data = name_length.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&infos.to_be_bytes());
        [flags.clone(), option(7, &data)].concat()
    };
    let mut huge_option = [flags.clone(), option(7, &[])].concat();
    let end = huge_option.len();
    huge_option[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
    let request = |magic: u32, kind: u16, offset: u64, length: u32| {
        let mut bytes = go(3, b"vol", 0);
        bytes.extend_from_slice(&magic.to_be_bytes());
        bytes.extend_from_slice(&0_u16.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&7_u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes
    };
    const MAGIC: u32 = 0x2560_9513;
    vec![
        0xFFFF_FFFF_u32.to_be_bytes().to_vec(),
        huge_option,
        go(u32::MAX, b"vol", 0),
        go(3, b"vol", u16::MAX),
        go(0, b"", 0),
        [flags.clone(), option(99, &[1; 300])].concat(),
        [flags.clone(), option(3, &[1; 8])].concat(),
        request(0xDEAD_BEEF, 0, 0, 4096),
        request(MAGIC, 77, 0, 4096),
        request(MAGIC, 0, u64::MAX, 4096),
        request(MAGIC, 0, u64::MAX - 4095, u32::MAX),
        request(MAGIC, 1, 0, u32::MAX),
        request(MAGIC, 1, 1 << 62, 4096),
        request(MAGIC, 4, u64::MAX, u32::MAX),
        request(MAGIC, 6, 0, 0),
        request(MAGIC, 1, 0, 1 << 20),
    ]
}

#[test]
fn hostile_bytes_end_their_connection_and_nothing_else() {
    let mut cluster = Cluster::with_volume("16M");
    let mut honest = cluster.connect(ALPHA, "vol").expect("connected");
    honest.write(0, &fill(0, 1)).expect("write");
    let workers: Vec<Vec<u32>> = cluster.nodes.iter_mut().map(|node| node.process().tree()).collect();
    for index in [ALPHA, BETA, WITNESS] {
        let addresses = cluster.nodes[index].addresses;
        for (seed, address) in [(1, addresses.peer), (2, addresses.admin), (3, addresses.nbd)] {
            if index == WITNESS && address == addresses.nbd {
                continue;
            }
            for bytes in garbage(seed) {
                throw(&cluster, address, &bytes);
            }
        }
        if index != WITNESS {
            for bytes in nbd_garbage() {
                throw(&cluster, addresses.nbd, &bytes);
            }
        }
    }
    // The honest connection was never touched, and no process was replaced.
    assert_eq!(version_of(0, &honest.read(0, 4096).expect("the honest connection lives")), Some(1));
    honest.write(4096, &fill(1, 2)).expect("and writes");
    for (node, before) in cluster.nodes.iter_mut().zip(workers) {
        assert_eq!(node.process().tree(), before, "{} was restarted", node.name);
    }
    cluster.wait_healthy("vol");
}

#[test]
fn hundreds_of_idle_connections_keep_nobody_out() {
    let cluster = Cluster::with_volume("16M");
    let address = cluster.nodes[ALPHA].addresses;
    for listener in [address.peer, address.nbd, address.admin] {
        let held: Vec<_> = (0..200).filter_map(|_| cluster.network.connect(listener).ok()).collect();
        drop(held);
    }
    eventually(Duration::from_secs(20), "a client is let in", || cluster.connect(ALPHA, "vol").is_ok());
    cluster.wait_healthy("vol");
}
