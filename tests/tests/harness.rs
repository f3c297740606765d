//! The harness itself, tried on qemu's NBD server: its load must notice loss, its reconnecting clients must survive.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_tests::e2e::floating::FloatingAddress;
use tandem_tests::e2e::namespace::{FLOATING_ADDRESS, NamespaceNetwork};
use tandem_tests::e2e::nbd::{NbdConnection, NbdError};
use tandem_tests::e2e::process::Process;
use tandem_tests::e2e::qemu::StorageDaemon;
use tandem_tests::e2e::uml::Guest;
use tandem_tests::e2e::writer::{Connector, VerifyingLoad};
use tandem_tests::e2e::{Need, eventually, require};

const LIMIT: Duration = Duration::from_secs(20);
const QEMU: &[Need] = &[Need::Program("qemu-storage-daemon")];

fn image(home: &Path, bytes: u64) -> std::path::PathBuf {
    let path = home.join("disk.img");
    File::create(&path).and_then(|file| file.set_len(bytes)).expect("image");
    path
}

fn connector(address: &Arc<Mutex<SocketAddr>>) -> Connector {
    let address = Arc::clone(address);
    Arc::new(move || {
        let address = *address.lock().expect("not poisoned");
        NbdConnection::negotiate(TcpStream::connect(address).ok()?, "vol", LIMIT).ok()
    })
}

#[test]
fn the_nbd_client_reads_writes_and_is_refused() {
    if !require("the_nbd_client_reads_writes_and_is_refused", QEMU) {
        return;
    }
    let home = tempfile::tempdir().expect("directory");
    let server = StorageDaemon::serve_image(&image(home.path(), 1 << 20), &home.path().join("log")).expect("server");
    let connect =
        |export: &str| NbdConnection::negotiate(TcpStream::connect(server.address).expect("tcp"), export, LIMIT);
    let mut connection = connect("vol").expect("negotiated");
    assert_eq!(connection.size_bytes(), 1 << 20);
    connection.write(4096, &[7; 8192]).expect("write");
    connection.flush().expect("flush");
    assert_eq!(connection.read(8192, 8192).expect("read"), [vec![7; 4096], vec![0; 4096]].concat());
    assert!(matches!(connection.read(1 << 20, 4096), Err(NbdError::Server(22))), "past the end is EINVAL");
    connection.disconnect();
    assert!(matches!(connect("other"), Err(NbdError::Refused(_))));
}

#[test]
fn the_load_survives_a_server_that_returns_and_finds_everything() {
    if !require("the_load_survives_a_server_that_returns_and_finds_everything", QEMU) {
        return;
    }
    let home = tempfile::tempdir().expect("directory");
    let (image, log) = (image(home.path(), 16 << 20), home.path().join("log"));
    let mut server = StorageDaemon::serve_image(&image, &log).expect("server");
    let address = Arc::new(Mutex::new(server.address));
    let load = VerifyingLoad::start(connector(&address), 3, 256, LIMIT);
    load.progress(300);
    // The page cache of the host outlives the process, so nothing acknowledged may be missing.
    server.process.kill_tree();
    let server = StorageDaemon::serve_image(&image, &log).expect("server");
    *address.lock().expect("not poisoned") = server.address;
    load.progress(300);
    let report = load.finish();
    assert_eq!(report.verified_blocks, 3 * 256);
    assert_eq!(report.reconnects, 3);
}

#[test]
fn the_load_notices_a_store_that_went_back_in_time() {
    if !require("the_load_notices_a_store_that_went_back_in_time", QEMU) {
        return;
    }
    let home = tempfile::tempdir().expect("directory");
    let (image, log) = (image(home.path(), 16 << 20), home.path().join("log"));
    let mut server = StorageDaemon::serve_image(&image, &log).expect("server");
    let address = Arc::new(Mutex::new(server.address));
    let load = VerifyingLoad::start(connector(&address), 1, 64, LIMIT);
    load.progress(500);
    let old = home.path().join("old.img");
    std::fs::copy(&image, &old).expect("copy");
    load.progress(500);
    server.process.kill_tree();
    let server = StorageDaemon::serve_image(&old, &log).expect("server");
    *address.lock().expect("not poisoned") = server.address;
    assert!(catch_unwind(AssertUnwindSafe(|| load.finish())).is_err(), "the loss went unnoticed");
}

#[test]
fn fio_survives_behind_a_client_that_reconnects() {
    let needs = [QEMU, &[Need::Program("fio")]].concat();
    if !require("fio_survives_behind_a_client_that_reconnects", &needs) {
        return;
    }
    let home = tempfile::tempdir().expect("directory");
    let (image, log) = (image(home.path(), 16 << 20), home.path().join("log"));
    let mut server = StorageDaemon::serve_image(&image, &log).expect("server");
    let relay = FloatingAddress::start(vec![server.address], "vol").expect("relay");
    let client = StorageDaemon::reconnecting(relay.address(), "vol", LIMIT, &log).expect("client");
    let mut fio = Command::new("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--size=16m",
        "--rate_iops=1000",
    ]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", &format!("--uri={}", client.uri())]);
    fio.current_dir(home.path());
    let mut fio = Process::start(fio, &home.path().join("fio.log")).expect("fio");
    eventually(LIMIT, "fio writes", || relay.bytes_to_node() > 2 << 20);
    let port = server.address;
    server.process.kill_tree();
    let mut again = Command::new("qemu-nbd");
    again
        .args(["-f", "raw", "-x", "vol", "-t", "-e", "8", "-b", "127.0.0.1", "-p", &port.port().to_string()])
        .arg(&image);
    let _again = Process::start(again, &log).expect("server");
    assert!(fio.wait_for_end(Duration::from_secs(90)), "fio hangs");
    let output = std::fs::read_to_string(home.path().join("fio.log")).unwrap_or_default();
    assert_eq!(fio.exit_code(), Some(0), "{output}");
    assert!(relay.connections() >= 2, "fio never lost its server");
}

#[test]
fn a_cut_between_two_namespaces_is_silent_and_mends() {
    if !require("a_cut_between_two_namespaces_is_silent_and_mends", &[Need::Namespaces]) {
        return;
    }
    let network = NamespaceNetwork::new(3);
    let listen = "import socket
s = socket.create_server(('', 9))
while True: s.accept()";
    let home = tempfile::tempdir().expect("directory");
    let _listeners: Vec<Process> = (0..3)
        .map(|index| {
            let mut command = network.command_at_node(index, Path::new("python3"));
            command.args(["-c", listen]);
            Process::start(command, &home.path().join("log")).expect("listener")
        })
        .collect();
    let reaches = |from: usize, to: usize| {
        let mut command = network.command_at_node(from, Path::new("python3"));
        let connect = "import socket,sys\nsocket.create_connection((sys.argv[1], 9), timeout=0.3)";
        command.args(["-c", connect, &network.node_ip(to).to_string()]);
        command.output().is_ok_and(|output| output.status.success())
    };
    eventually(LIMIT, "all listen", || reaches(0, 1) && reaches(1, 2) && reaches(2, 0));
    network.cut_between(&[0, 1]);
    assert!(!reaches(0, 1) && !reaches(1, 0) && reaches(0, 2) && reaches(1, 2));
    network.mend_between(&[0, 1]);
    eventually(LIMIT, "the link is mended", || reaches(0, 1) && reaches(1, 0));
    network.unplug(0);
    assert!(!reaches(1, 0) && reaches(1, 2));
    network.plug(0);
    eventually(LIMIT, "the cable is in again", || reaches(1, 0));
}

#[test]
fn a_kernel_client_keeps_its_file_system_when_the_address_moves() {
    let name = "a_kernel_client_keeps_its_file_system_when_the_address_moves";
    let needs = [Need::Namespaces, Need::UserModeLinux, Need::Program("qemu-nbd"), Need::Program("mkfs.ext4")];
    if !require(name, &needs) {
        return;
    }
    let home = tandem_tests::e2e::cluster::scratch_directory();
    let image = image(&home, 128 << 20);
    let network = NamespaceNetwork::new(2);
    let serve = |index: usize| {
        let mut command = network.command_at_node(index, Path::new("qemu-nbd"));
        command.args(["-f", "raw", "-x", "vol", "-t", "-e", "4", "-b", "0.0.0.0", "-p", "10809"]).arg(&image);
        Process::start(command, &home.join("log")).expect("qemu-nbd")
    };
    network.move_floating_address(0);
    let mut first = serve(0);
    let server = (Ipv4Addr::from(FLOATING_ADDRESS), 10809);
    let mut guest = Guest::boot(&network, &home, server, "vol").expect("guest");
    guest.progress(5, Duration::from_secs(60));
    first.kill_tree();
    let _second = serve(1);
    network.move_floating_address(1);
    guest.progress(5, Duration::from_secs(60));
    assert_eq!(guest.reconnects(), 1, "{}", guest.status());
    guest.finish();
    std::fs::remove_dir_all(&home).expect("clean up");
}
