//! Independent clients, unmodified, against a volume of a real cluster.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tandem_tests::e2e::cluster::{ALPHA, BETA};
use tandem_tests::e2e::nbd::NbdError;
use tandem_tests::e2e::process::run;
use tandem_tests::e2e::{Cluster, Need, pattern, require};

const QEMU_IMG: Need = Need::Program("qemu-img");

/// An image of 32 MiB: data, a hole, data.
fn source_image(home: &Path) -> PathBuf {
    let path = home.join("source.img");
    let mut file = File::create(&path).expect("image");
    file.set_len(32 << 20).expect("image size");
    for block in 0..1024_u64 {
        file.write_all(&pattern::fill(block, 1)).expect("image data");
    }
    path
}

fn qemu_img(args: &[&str]) -> String {
    run(Command::new("qemu-img").args(args))
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !require("fio_verifies_what_it_wrote", &[Need::Program("fio")]) {
        return;
    }
    let cluster = Cluster::with_volume("64M");
    let uri = format!("--uri={}", cluster.uri(ALPHA, "vol"));
    for (pattern, size) in
        [("--rw=randwrite", "--bs=4k"), ("--rw=write", "--bs=256k"), ("--rw=randrw", "--bsrange=4k-64k")]
    {
        let mut fio = Command::new("fio");
        fio.args(["--name=v", "--ioengine=nbd", "--size=48m", "--iodepth=16", "--fsync=64", &uri, pattern, size]);
        fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        run(fio.current_dir(cluster.home()));
    }
    cluster.wait_healthy("vol");
}

#[test]
fn qemu_img_converts_in_and_out() {
    if !require("qemu_img_converts_in_and_out", &[QEMU_IMG]) {
        return;
    }
    let cluster = Cluster::with_volume("32M");
    let source = source_image(cluster.home());
    let (source, uri) = (source.to_string_lossy(), cluster.uri(ALPHA, "vol"));
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", &source, &uri]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &source, &uri]);
    let out = cluster.home().join("out.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &uri, &out.to_string_lossy()]);
    qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &source, &out.to_string_lossy()]);
    // The other copy must hold the same, not only the one that was written through.
    cluster.switchover("vol", BETA);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &source, &cluster.uri(BETA, "vol")]);
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !require("nbdcopy_copies_in_and_out", &[Need::Program("nbdcopy"), QEMU_IMG]) {
        return;
    }
    let cluster = Cluster::with_volume("32M");
    let source = source_image(cluster.home());
    let (out, uri) = (cluster.home().join("out.img"), cluster.uri(ALPHA, "vol"));
    // Several connections: this is what the promise of multi-conn is for.
    run(Command::new("nbdcopy").args(["--connections=4", "--flush"]).arg(&source).arg(&uri));
    run(Command::new("nbdcopy").arg("--connections=4").arg(&uri).arg(&out));
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &source.to_string_lossy(), &out.to_string_lossy()]);
}

#[test]
fn nbdinfo_sees_an_honest_export() {
    if !require("nbdinfo_sees_an_honest_export", &[Need::Program("nbdinfo")]) {
        return;
    }
    let cluster = Cluster::with_volume("32M");
    let uri = cluster.uri(ALPHA, "vol");
    let text = run(Command::new("nbdinfo").args(["--json", &uri]));
    let info: serde_json::Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(
        (export["export-name"].as_str(), export["export-size"].as_u64()),
        (Some("vol"), Some(32 << 20)),
        "{text}"
    );
    for flag in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[flag], true, "{flag}: {text}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["block_size_maximum"].as_u64(), Some(32 << 20), "{text}");
    assert!(export["contexts"].as_array().is_some_and(|all| all.iter().any(|one| one == "base:allocation")), "{text}");
    let list = run(Command::new("nbdinfo").args(["--list", "--json", uri.trim_end_matches("vol")]));
    assert!(list.contains("\"vol\""), "{list}");
    run(Command::new("nbdinfo").args(["--map", &uri]));
}

#[test]
fn nbdsh_scripts_every_command() {
    if !require("nbdsh_scripts_every_command", &[Need::Program("nbdsh"), Need::Python("nbd")]) {
        return;
    }
    let cluster = Cluster::with_volume("32M");
    let script = "
h.pwrite(b'a' * 65536, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 4096) == b'a' * 65536
h.zero(4096, 8192)
assert h.pread(12288, 4096) == b'a' * 4096 + bytes(4096) + b'a' * 4096
h.trim(16384, 16384)
h.flush()
assert h.pread(4096, 12288) == b'a' * 4096
extents = []
h.block_status(h.get_size(), 0, lambda context, offset, entries, error: extents.extend(entries))
assert sum(extents[::2]) > 0
h.set_strict_mode(0)
for bad in (lambda: h.pread(4096, h.get_size()), lambda: h.pwrite(bytes(4096), h.get_size() - 512)):
    try:
        bad()
    except nbd.Error as error:
        assert error.errno in ('EINVAL', 'ENOSPC'), error.errno
    else:
        raise Exception('a request past the end was done')
assert h.pread(4096, 4096) == b'a' * 4096
";
    let mut nbdsh = Command::new("nbdsh");
    nbdsh.args(["--base-allocation", "-u", &cluster.uri(ALPHA, "vol"), "-c", script]);
    run(&mut nbdsh);
}

#[test]
fn a_node_that_is_not_primary_refuses_and_names_the_primary() {
    let cluster = Cluster::with_volume("16M");
    match cluster.connect(BETA, "vol") {
        Err(NbdError::Refused(message)) => {
            let nbd = cluster.nodes[ALPHA].addresses.nbd.to_string();
            assert!(message.contains("alpha") || message.contains(&nbd), "it names no primary: {message}");
        }
        other => panic!("the secondary answered {other:?}"),
    }
    assert!(matches!(cluster.connect(ALPHA, "no-such-volume"), Err(NbdError::Refused(_))));
}

#[test]
fn a_client_without_structured_replies_is_served() {
    let cluster = Cluster::with_volume("16M");
    let mut client = cluster.connect(ALPHA, "vol").expect("connected");
    client.set_timeout(Duration::from_secs(10)).expect("timeout");
    assert_eq!(client.size_bytes(), 16 << 20);
    client.write(4096, &pattern::fill(1, 5)).expect("write");
    client.flush().expect("flush");
    assert_eq!(pattern::version_of(1, &client.read(4096, 4096).expect("read")), Some(5));
    assert!(matches!(client.read(16 << 20, 4096), Err(NbdError::Server(_))));
    client.disconnect();
}
