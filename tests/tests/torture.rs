//! The short form of `cargo xtask torture`, and what makes its findings believable: the disk under it keeps what was
//! flushed and loses what was not, also through the kernel, and a disk that lies about flushes is noticed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::libc;
use tandem_tests::e2e::node::binary;
use tandem_tests::e2e::{Need, require};
use tandem_tests::torture::disk::{DiskFaults, VolatileDisk};

const PAGE: usize = 4096;
/// Rounds of the short forms: a few seconds each.
const CUTS: u64 = 6;
const KILLS: u64 = 6;
const POINTS: u64 = 4;
const FLIPS: u64 = 240;
/// Only the environment variables of a build with fault points; no other build may know them.
const FAULT_VARIABLES: [&str; 3] = ["TANDEM_FAULT_POINT", "TANDEM_FAULT_LIST", "TANDEM_TEST_BOOT_ID"];

fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_torture"))
}

/// The product with fault points, built if it is missing, as the product itself is by other tests.
fn torture_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TANDEM_TORTURE_BIN") {
        return PathBuf::from(path);
    }
    let path = binary().with_file_name("tandem-torture");
    if !path.exists() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--release", "--workspace", "--bin", "tandem-torture"]);
        build.args(["--features", "storage-node/fault-points"]);
        tandem_tests::e2e::process::run(&mut build);
    }
    path
}

fn torture(args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(args).env("TANDEM_BIN", torture_binary());
    command.output().expect("the torture program starts")
}

#[track_caller]
fn finds_nothing(args: &[&str]) -> String {
    let output = torture(args);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "{args:?}\n{stdout}\n{stderr}");
    assert!(stdout.contains(" 0 findings"), "{stdout}");
    stdout.into_owned()
}

struct Mounted {
    disk: VolatileDisk,
    home: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("temporary directory");
        Self { disk: VolatileDisk::mount(&program(), home.path()).expect("mounted"), home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn sync_names(&self) {
        File::open(self.home.path()).and_then(|directory| directory.sync_all()).expect("the directory is flushed");
    }
}

/// The bytes at the front of a file after the cut with each of some seeds. `write` prepares a file of two pages that are
/// durable and hold 'a'.
fn after_cuts(write: impl Fn(&Path)) -> Vec<Vec<u8>> {
    let mut mounted = Mounted::new();
    (0..24)
        .map(|seed| {
            let path = mounted.path(&format!("file{seed}"));
            let mut file = File::create(&path).expect("created");
            file.write_all(&[b'a'; 2 * PAGE]).and_then(|()| file.sync_all()).expect("written");
            drop(file);
            mounted.sync_names();
            write(&path);
            mounted.disk.cut(seed).expect("cut");
            fs::read(&path).expect("still there")
        })
        .collect()
}

fn open(path: &Path, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("opened")
}

#[test]
fn unflushed_writes_may_be_lost_and_flushed_ones_never_are() {
    if !require("unflushed_writes_may_be_lost_and_flushed_ones_never_are", &[Need::Fuse]) {
        return;
    }
    let new = [b'b'; PAGE];
    let outcomes = after_cuts(|path| open(path, 0).write_all_at(&new, 0).expect("written"));
    let holds = |bytes: &Vec<u8>, byte| bytes[..PAGE].iter().all(|found| *found == byte);
    assert!(outcomes.iter().any(|bytes| holds(bytes, b'a')), "never lost");
    assert!(outcomes.iter().any(|bytes| holds(bytes, b'b')), "never kept");
    assert!(outcomes.iter().any(|bytes| !holds(bytes, b'a') && !holds(bytes, b'b')), "never torn");
    type Way = fn(&Path);
    let ways: [(&str, Way); 3] = [
        ("fdatasync", |path| {
            let file = open(path, 0);
            file.write_all_at(&[b'b'; PAGE], 0).and_then(|()| file.sync_data()).expect("written");
        }),
        ("O_DSYNC", |path| open(path, libc::O_DSYNC).write_all_at(&[b'b'; PAGE], 0).expect("written")),
        ("O_SYNC", |path| open(path, libc::O_SYNC).write_all_at(&[b'b'; PAGE], 0).expect("written")),
    ];
    for (name, way) in ways {
        assert!(after_cuts(way).iter().all(|bytes| holds(bytes, b'b')), "{name}");
    }
}

#[test]
fn a_write_with_rwf_dsync_is_durable_when_it_returns() {
    let needs = [Need::Fuse, Need::Program("python3")];
    if !require("a_write_with_rwf_dsync_is_durable_when_it_returns", &needs) {
        return;
    }
    // As the product writes its superblocks: O_DIRECT, an aligned buffer, RWF_DSYNC. Nothing safe in Rust says that.
    let script = "import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
page.write(b'b' * 4096)
assert os.pwritev(fd, [page], 0, os.RWF_DSYNC) == 4096
assert os.pwritev(fd, [page], 4096, 0) == 4096";
    let outcomes = after_cuts(|path| {
        tandem_tests::e2e::process::run(Command::new("python3").args(["-c", script]).arg(path));
    });
    assert!(outcomes.iter().all(|bytes| bytes[..PAGE] == [b'b'; PAGE]));
    assert!(outcomes.iter().any(|bytes| bytes[PAGE..] != [b'b'; PAGE]), "the write after it gained by it");
}

#[test]
fn a_failing_disk_fails_on_stores_only() {
    if !require("a_failing_disk_fails_on_stores_only", &[Need::Fuse]) {
        return;
    }
    let mut mounted = Mounted::new();
    let [store, other] = ["a.tandem", "raft.log"].map(|name| File::create_new(mounted.path(name)).expect("created"));
    let faults = DiskFaults { reads: true, writes: true, flushes: true, lying: false };
    mounted.disk.set_faults(faults).expect("set");
    for (file, fine) in [(&store, false), (&other, true)] {
        assert_eq!(file.write_all_at(b"x", 0).is_ok(), fine);
        assert_eq!(file.sync_data().is_ok(), fine);
    }
    mounted.disk.set_faults(DiskFaults::default()).expect("set");
    assert!(store.write_all_at(b"x", 0).and_then(|()| store.sync_data()).is_ok());
}

#[test]
fn a_few_power_cuts_lose_nothing_that_was_flushed() {
    if require("a_few_power_cuts_lose_nothing_that_was_flushed", &[Need::Fuse]) {
        finds_nothing(&["cuts", "--count", &CUTS.to_string(), "--seed", "3"]);
    }
}

#[test]
fn a_few_kills_and_stops_and_failing_disks_lose_nothing_that_was_acknowledged() {
    let name = "a_few_kills_and_stops_and_failing_disks_lose_nothing_that_was_acknowledged";
    if require(name, &[Need::Fuse]) {
        finds_nothing(&["kills", "--count", &KILLS.to_string(), "--seed", "3"]);
    }
}

#[test]
fn a_box_killed_at_a_few_of_its_durable_steps_comes_back_and_has_everything() {
    if require("a_box_killed_at_a_few_of_its_durable_steps_comes_back_and_has_everything", &[Need::Fuse]) {
        finds_nothing(&["points", "--sample", &POINTS.to_string(), "--seed", "3"]);
    }
}

#[test]
fn a_few_hundred_flipped_bits_are_noticed_and_reach_no_client() {
    if require("a_few_hundred_flipped_bits_are_noticed_and_reach_no_client", &[Need::Fuse]) {
        let output = finds_nothing(&["flips", "--count", &FLIPS.to_string(), "--seed", "3"]);
        assert!(output.trim_end().ends_with(" wrong_reads=0 undetected=0"), "{output}");
    }
}

#[test]
fn flips_whose_checksums_match_are_noticed() {
    if !require("flips_whose_checksums_match_are_noticed", &[Need::Fuse]) {
        return;
    }
    // No product could tell them by itself; the comparison with what was written must.
    let output = torture(&["flips", "--round", "0", "--seed", "3", "--forged", "1"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("FINDING"), "{stdout}");
    assert!(!output.status.success());
}

#[test]
fn disks_that_lie_about_flushes_are_noticed() {
    if !require("disks_that_lie_about_flushes_are_noticed", &[Need::Fuse]) {
        return;
    }
    // Some cluster does not even start again; that is noticed as well as a lost write.
    let output = torture(&["cuts", "--count", "4", "--seed", "3", "--lying", "1"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("FINDING"), "{stdout}");
    assert!(!output.status.success());
}

#[test]
fn only_the_program_for_torture_has_fault_points() {
    let holds = |path: &Path, text: &str| {
        let bytes = fs::read(path).expect("a program");
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    for variable in FAULT_VARIABLES {
        assert!(!holds(&binary(), variable), "the product knows {variable}");
        assert!(holds(&torture_binary(), variable), "the program for torture does not know {variable}");
    }
}
