//! Kernel clients, tried on a server that is not ours: what fails here is the harness, not the product.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tandem_tests::e2e::ganesha::{self, EXPORT, Ganesha};
use tandem_tests::e2e::kernel_client::{Kernel, KernelClient, LOCK_SERVICES};
use tandem_tests::e2e::namespace::NamespaceNetwork;
use tandem_tests::e2e::small_disk::SmallDisk;
use tandem_tests::e2e::{Need, eventually, require};

const SCRIPT_LIMIT: Duration = Duration::from_secs(240);
const DISK_BYTES: u64 = 64 << 20;

/// Writes, renames, locks, lists, and unmounts; then mounts anew, reads back, and lists. It prints what the kernel mounted.
const EXERCISE: &str = r#"
mkdir -p /mnt/nfs
mount.nfs "$server" /mnt/nfs -o "$options"
grep ' /mnt/nfs .*local_lock=none' /proc/mounts
cd /mnt/nfs
head -c 1048576 /dev/urandom >data
sum=$(sha256sum <data)
sync data
mkdir directory
mv data directory/moved
ls directory
flock directory/moved true
echo text >"left-$vers"
cd /
umount /mnt/nfs
mount.nfs "$server" /mnt/nfs -o "$read_options"
test "$sum" = "$(sha256sum </mnt/nfs/directory/moved)"
test "$(ls /mnt/nfs/directory)" = moved
umount /mnt/nfs
"#;

/// Versions, the options to write with, and those to read with. This server's READ_PLUS is older than RFC 7862 (its issue
/// 1344), so that a client that uses it, as Linux does, reads nothing from it with 4.2.
const VERSIONS: [(&str, &str, &str); 3] = [
    ("4.1", "vers=4.1", "vers=4.1"),
    ("4.2", "vers=4.2", "vers=4.1"),
    ("3", "vers=3,proto=tcp,mountproto=tcp", "vers=3,proto=tcp,mountproto=tcp,nolock"),
];

fn exercise(kernel: Kernel) {
    let home = tempfile::tempdir().expect("a directory");
    let disk = home.path().join("disk");
    let _mounted = SmallDisk::mount(&home.path().join("image"), &disk, DISK_BYTES);
    let network = NamespaceNetwork::new(1);
    let server = Ganesha::start(&network, 0, home.path(), &disk).expect("nfs-ganesha");
    let started = Instant::now();
    let mut client = KernelClient::boot(kernel, &network, home.path()).expect("a kernel");
    println!("{kernel:?} is up after {:?}", started.elapsed());
    assert_eq!(client.run("echo here; exit 3", SCRIPT_LIMIT).status, 3);
    client.must(LOCK_SERVICES, SCRIPT_LIMIT);
    for (vers, options, read_options) in VERSIONS {
        let at = network.node_ip(0);
        let start =
            format!("vers={vers} options={options} read_options={read_options} server={at}:{EXPORT}\n{EXERCISE}");
        let outcome = client.run(&start, SCRIPT_LIMIT);
        assert_eq!(outcome.status, 0, "{vers}: {}\n{}\n{}", outcome.output, client.console(), server.log());
        assert!(outcome.output.contains(&format!("vers={vers},")), "{}", outcome.output);
        assert!(outcome.output.contains("moved"), "{}", outcome.output);
        let left = disk.join(format!("left-{vers}"));
        assert_eq!(fs::read_to_string(left).expect("what the client wrote"), "text\n");
        fs::remove_dir_all(disk.join("directory")).expect("the client's directory");
    }
}

#[test]
fn an_emulated_kernel_mounts_every_version_of_nfs() {
    let name = "an_emulated_kernel_mounts_every_version_of_nfs";
    if require(name, &[Need::EmulatedKernel, Need::SmallDisk]) && require(name, &ganesha::NEEDS) {
        exercise(Kernel::Emulated);
    }
}

#[test]
fn user_mode_linux_mounts_every_version_of_nfs() {
    let name = "user_mode_linux_mounts_every_version_of_nfs";
    if require(name, &[Need::UserModeLinux, Need::SmallDisk]) && require(name, &ganesha::NEEDS) {
        exercise(Kernel::UserMode);
    }
}

#[test]
fn a_script_that_does_not_end_fails_with_what_it_printed() {
    let name = "a_script_that_does_not_end_fails_with_what_it_printed";
    if !require(name, &[Need::Namespaces, Need::KernelClient]) {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let network = NamespaceNetwork::new(1);
    let kernel = Kernel::choose().expect("one runs here");
    let mut client = KernelClient::boot(kernel, &network, home.path()).expect("a kernel");
    let script = client.start("echo before; sleep 100000");
    eventually(SCRIPT_LIMIT, "the script begins", || client.output(script).contains("before"));
    let finish = catch_unwind(AssertUnwindSafe(|| client.finish(script, Duration::from_millis(100))));
    let said = finish.expect_err("it did not end");
    let said = said.downcast_ref::<String>().expect("a text");
    assert!(said.contains("it runs") && said.contains("before") && said.contains("console:"), "{said}");
    assert!(client.is_running());
}
