//! `tandem demo --mount`: a Linux kernel as the demo's client, and nothing left behind, however it ends.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tandem_tests::e2e::cluster::scratch_directory;
use tandem_tests::e2e::kernel_client::user_mode;
use tandem_tests::e2e::node::binary;
use tandem_tests::e2e::process::Process;
use tandem_tests::e2e::skip::find_program;
use tandem_tests::e2e::{Need, eventually, require};

/// For the demo on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The demo's boxes keep leases by the clock: one demo at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn can_mount(name: &str) -> bool {
    let client = match find_program("mount.nfs") {
        Some(_) => Need::Program("mount.nfs"),
        None => Need::Unpacked("sbin/mount.nfs"),
    };
    require(name, &[Need::Namespaces, Need::UserModeLinux, Need::Program("mke2fs"), client])
}

/// A demo with a kernel client, below `home`.
fn start(home: &Path, seconds: &str) -> Process {
    let mut command = Command::new(binary());
    command.args(["demo", "--mount", "--seconds", seconds, "--keep"]).arg(home.join("demo"));
    // The one that the other tests use; the packaged one is found by itself.
    if let Some(directory) =
        user_mode::program().as_deref().and_then(Path::parent).filter(|path| !path.ends_with("bin"))
    {
        command.arg("--kernel-client").arg(directory);
    }
    Process::start(command, &home.join("output")).expect("the demo starts")
}

fn output(home: &Path) -> String {
    fs::read_to_string(home.join("output")).unwrap_or_default()
}

/// No namespace of the demo with this process id, and no process that names its directory.
#[track_caller]
fn nothing_is_left(pid: u32, home: &Path) {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let ours = format!("tandem-net-{pid}-");
    let left: Vec<_> =
        names.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(&ours)).collect();
    assert!(left.is_empty(), "{left:?}");
    let place = home.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let left: Vec<_> =
        lines.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(&place)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The number behind `name=` in the demo's last line.
#[track_caller]
fn figure(line: &str, name: &str) -> u64 {
    let value = line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[test]
fn the_demo_mounts_its_volume_in_a_linux_kernel_which_notices_nothing() {
    if !can_mount("the_demo_mounts_its_volume_in_a_linux_kernel_which_notices_nothing") {
        return;
    }
    let _turn = turn();
    let home = scratch_directory();
    let mut demo = start(&home, "8");
    let ended = demo.wait_for_end(LIMIT);
    let said = output(&home);
    assert!(ended && demo.exit_code() == Some(0), "{said}\nkept: {}", home.display());
    let line = said.lines().last().unwrap_or_default();
    assert!(line.starts_with("demo: ") && line.contains(" kernel_mount=4.2 "), "{said}");
    assert_eq!(figure(line, "lost"), 0, "{line}");
    for (verified, promised) in
        [("verified", "acknowledged"), ("files_verified", "files"), ("kernel_files_verified", "kernel_files")]
    {
        assert!(figure(line, promised) > 0 && figure(line, verified) == figure(line, promised), "{line}");
    }
    nothing_is_left(demo.pid(), &home);
    fs::remove_dir_all(home).expect("the demo's directory");
}

#[test]
fn an_interrupted_demo_takes_its_kernel_and_its_networks_away() {
    if !can_mount("an_interrupted_demo_takes_its_kernel_and_its_networks_away") {
        return;
    }
    let _turn = turn();
    let home = scratch_directory();
    let mut demo = start(&home, "600");
    eventually(LIMIT, "the kernel's program works", || {
        assert!(demo.is_running(), "{}", output(&home));
        output(&home).contains("the Linux kernel has mounted")
    });
    demo.signal(Signal::SIGINT);
    let ended = demo.wait_for_end(LIMIT);
    assert!(ended && demo.exit_code() == Some(1) && output(&home).contains("interrupted"), "{}", output(&home));
    nothing_is_left(demo.pid(), &home);
    fs::remove_dir_all(home).expect("the demo's directory");
}

#[test]
fn without_a_kernel_the_demo_says_what_is_missing_and_makes_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let (empty, keep) = (home.path().join("empty"), home.path().join("demo"));
    fs::create_dir(&empty).expect("a directory");
    let mut command = Command::new(binary());
    command.args(["demo", "--mount", "--kernel-client"]).arg(&empty).arg("--keep").arg(&keep);
    let mut demo = Process::start(command, &home.path().join("output")).expect("the demo starts");
    assert!(demo.wait_for_end(LIMIT), "it ends at once");
    let said = output(home.path());
    assert_eq!(demo.exit_code(), Some(1), "{said}");
    for part in ["linux.uml", &empty.display().to_string(), "cargo xtask kernel-client --uml", "--kernel-client DIR"] {
        assert!(said.contains(part), "{part} in: {said}");
    }
    assert!(!keep.exists(), "no directory was made");
    nothing_is_left(demo.pid(), home.path());
}
