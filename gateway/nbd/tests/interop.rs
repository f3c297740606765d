//! Real clients over loopback: libnbd's tools, QEMU's, fio. A missing program skips its test and says so.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Server, pattern};

const SIZE: u64 = 64 << 20;

/// True when `program` can be run here; else tells why the test does nothing.
fn present(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()));
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image with data, a long hole and data again.
fn write_image(path: &Path) -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    image[..5 << 20].copy_from_slice(&pattern(1, 5 << 20));
    image[40 << 20..][..(3 << 20) + 512].copy_from_slice(&pattern(2, (3 << 20) + 512));
    std::fs::write(path, &image).unwrap();
    image
}

#[test]
fn nbdinfo_describes_the_export() {
    if !present("nbdinfo") {
        return;
    }
    let server = Server::start(SIZE);
    let output = run("nbdinfo", &["--json", &server.uri()]);
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "vol");
    assert_eq!(export["description"], "two copies");
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(export["export-size"], SIZE);
    for (flag, value) in [
        ("is_read_only", false),
        ("can_cache", false),
        ("can_df", true),
        ("can_fast_zero", false),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[flag], value, "{flag}");
    }
    // The names of these fields differ between versions of libnbd; absent in old ones.
    for (field, value) in [("block_minimum", 1), ("block_preferred", 4096), ("block_maximum", 32 << 20)] {
        let found =
            [field.to_owned(), format!("block_size_{}", &field[6..])].iter().find_map(|name| export[name].as_u64());
        assert!(found.is_none_or(|found| found == value), "{field}: {found:?}");
    }

    let listed = run("nbdinfo", &["--json", "--list", &format!("nbd://{}", server.address)]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["exports"][0]["export-name"], "vol");
}

#[test]
fn the_refusal_that_names_the_primary_reaches_the_user() {
    if !present("qemu-img") {
        return;
    }
    let server = Server::start(SIZE);
    let output = Command::new("qemu-img").args(["info", &format!("nbd://{}/far", server.address)]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(common::FAR_MESSAGE), "{said}");
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !present("nbdcopy") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("in.img"), directory.path().join("out.img"));
    let image = write_image(&source);
    let server = Server::start(SIZE);
    run("nbdcopy", &["--flush", text(&source), &server.uri()]);
    run("nbdcopy", &[&server.uri(), text(&target)]);
    assert!(std::fs::read(&target).unwrap() == image, "the copy out differs");
    let counters = server.statistics.snapshot();
    assert!(counters.writes > 0 && counters.reads > 0 && counters.block_statuses > 0, "{counters:?}");
    assert_eq!(counters.errors, 0);
    assert!(server.stop() == image, "the device differs");
}

#[test]
fn qemu_img_converts_and_compares() {
    if !present("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("in.img"), directory.path().join("out.img"));
    write_image(&source);
    let server = Server::start(SIZE);
    let uri = server.uri();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), &uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, text(&target)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&target), &uri]);
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: serde_json::Value = serde_json::from_slice(&map.stdout).unwrap();
    let holes = map.as_array().unwrap().iter().filter(|extent| extent["zero"] == true).count();
    assert!(holes >= 1, "{map}");
    assert_eq!(server.statistics.snapshot().errors, 0);
}

#[test]
fn qemu_io_reads_and_writes_across_block_boundaries() {
    if !present("qemu-io") {
        return;
    }
    let server = Server::start(SIZE);
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            &server.uri(),
            "-c",
            "write -P 17 0 16k",
            "-c",
            "write -P 34 4095 4099",
            "-c",
            "write -f -P 51 513 3",
            "-c",
            "read -P 17 0 513",
            "-c",
            "read -P 51 513 3",
            "-c",
            "read -P 17 516 3579",
            "-c",
            "read -P 34 4095 4099",
            "-c",
            "read -P 17 8194 8190",
            "-c",
            "write -z 1000 9000",
            "-c",
            "read -P 0 1000 9000",
            "-c",
            "discard 0 16k",
            "-c",
            "read -P 0 0 16k",
            "-c",
            "flush",
        ],
    );
    let counters = server.statistics.snapshot();
    assert_eq!(counters.errors, 0);
    assert!(counters.flushes > 0 && counters.zeroes > 0 && counters.trims > 0, "{counters:?}");
}

const SHELL_STRUCTURED: &str = r#"
import errno
assert h.get_structured_replies_negotiated()
size = h.get_size()
h.set_strict_mode(0)
def fails(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number)
    else:
        raise AssertionError("no error")
assert h.pread(0, 0) == b""
assert h.pread(0, size) == b""
h.pwrite(b"", 0)
h.trim(0, 0)
h.zero(0, 0)
fails(errno.EINVAL, lambda: h.pread(2, size - 1))
fails(errno.ENOSPC, lambda: h.pwrite(b"xx", size - 1))
fails(errno.ENOSPC, lambda: h.zero(2, size - 1))
fails(errno.EINVAL, lambda: h.trim(2, size - 1))
fails(errno.EINVAL, lambda: h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO))
fails(errno.EINVAL, lambda: h.cache(4096, 0))
fails(errno.EINVAL, lambda: h.block_status(0, 0, lambda *a: 0))
h.pwrite(b"a" * 5000, 3, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 3) == b"a" * 5000
chunks = []
def chunk(data, offset, status, error):
    chunks.append((offset, len(data), status))
got = h.pread_structured(1 << 20, 0, chunk)
assert got == b"\0" * 3 + b"a" * 5000 + b"\0" * ((1 << 20) - 5003)
assert [c[2] for c in chunks] == [nbd.READ_DATA, nbd.READ_HOLE], chunks
chunks.clear()
h.pread_structured(1 << 20, 0, chunk, nbd.CMD_FLAG_DF)
assert [c[2] for c in chunks] == [nbd.READ_DATA], chunks
extents = []
h.block_status(1 << 20, 0, lambda name, offset, entries, error: extents.append((name, offset, entries)) and 0)
assert extents == [("base:allocation", 0, [8192, 0, (1 << 20) - 8192, 3])], extents
extents.clear()
h.block_status(1 << 20, 0, lambda name, offset, entries, error: extents.append(entries) and 0, nbd.CMD_FLAG_REQ_ONE)
assert extents == [[8192, 0]], extents
h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 4096)
assert h.pread(8192, 0) == bytes(8192)
h.flush()
h.shutdown()
"#;

const SHELL_SIMPLE: &str = r#"
import errno
h.set_request_structured_replies(False)
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert not h.can_df()
h.set_strict_mode(0)
size = h.get_size()
def fails(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number)
    else:
        raise AssertionError("no error")
assert h.pread(0, 0) == b""
h.pwrite(b"z" * 70001, 11)
assert h.pread(70001, 11) == b"z" * 70001
fails(errno.EINVAL, lambda: h.pread(2, size - 1))
fails(errno.ENOSPC, lambda: h.pwrite(b"xx", size - 1))
assert h.pread(3, 0) == bytes(3)
h.shutdown()
"#;

const SHELL_OPTIONS: &str = r#"
h.set_opt_mode(True)
h.connect_uri(base)
names = []
h.opt_list(lambda name, description: names.append((name, description)) and 0)
assert names == [("vol", "two copies")], names
h.set_export_name("far")
try:
    h.opt_info()
except nbd.Error as error:
    print(error)
else:
    raise AssertionError("no error")
h.set_export_name("vol")
h.set_full_info(True)
h.opt_info()
assert h.get_canonical_export_name() == "vol"
assert h.get_export_description() == "two copies"
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name) and 0)
assert contexts == ["base:allocation"], contexts
h.opt_go()
h.pwrite(b"q" * 512, 0)
h.shutdown()
"#;

/// `nbdsh` takes the first `python3` of the path, which need not be the one with the libnbd module: puts that one first.
fn shell(setup: &str, script: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_module = |directory: &PathBuf| {
        Command::new(directory.join("python3")).args(["-c", "import nbd"]).output().is_ok_and(|it| it.status.success())
    };
    let Some(python) = std::env::split_paths(&path).find(has_module) else {
        println!("skipped: no python3 has the libnbd module");
        return;
    };
    let path = std::env::join_paths(std::iter::once(python).chain(std::env::split_paths(&path))).unwrap();
    let output = Command::new("nbdsh").env("PATH", path).arg("-c").arg(format!("{setup}\n{script}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nbdsh_sees_structured_replies_and_the_protocols_errors() {
    if !present("nbdsh") {
        return;
    }
    let server = Server::start(SIZE);
    shell(&format!("h.add_meta_context('base:allocation')\nh.connect_uri('{}')", server.uri()), SHELL_STRUCTURED);
    assert!(server.statistics.snapshot().errors >= 6);
}

#[test]
fn nbdsh_works_without_structured_replies() {
    if !present("nbdsh") {
        return;
    }
    let server = Server::start(SIZE);
    shell(&format!("uri = '{}'", server.uri()), SHELL_SIMPLE);
}

#[test]
fn nbdsh_negotiates_option_by_option() {
    if !present("nbdsh") {
        return;
    }
    let server = Server::start(SIZE);
    shell(&format!("base = 'nbd://{}'", server.address), SHELL_OPTIONS);
}

#[test]
fn fio_verifies_over_several_connections() {
    if !present("fio") {
        return;
    }
    let help = Command::new("fio").arg("--enghelp").output().unwrap();
    if !String::from_utf8_lossy(&help.stdout).lines().any(|line| line.trim() == "nbd") {
        println!("skipped: this fio has no nbd engine");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(SIZE);
    let output = Command::new("fio")
        .current_dir(directory.path())
        .args(["--name=verify", "--ioengine=nbd", &format!("--uri={}", server.uri()), "--rw=randwrite"])
        .args(["--bsrange=512-128k", "--bs_unaligned=1", "--iodepth=32", "--numjobs=4", "--size=16M"])
        .args(["--offset_increment=16M", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fsync=64"])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let counters = server.statistics.snapshot();
    assert!(counters.connections >= 4 && counters.writes > 100 && counters.reads > 100, "{counters:?}\n{said}");
    assert_eq!(counters.errors, 0);
}
