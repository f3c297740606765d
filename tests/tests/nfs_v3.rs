//! NFSv3 from a real pair behind a floating address, for clients that are not ours: the tools of libnfs, and a Linux kernel.

use std::fs;
use std::process::{Command, Output, Stdio};

use tandem_tests::e2e::cluster::{ALPHA, BETA};
use tandem_tests::e2e::kernel_client::rounds::{KERNEL_LIMIT, Rounds};
use tandem_tests::e2e::kernel_client::{Kernel, KernelClient};
use tandem_tests::e2e::{Cluster, Need, require};

const LIBNFS: &[Need] = &[
    Need::Namespaces,
    Need::Program("mke2fs"),
    Need::Program("nfs-ls"),
    Need::Program("nfs-cp"),
    Need::Program("nfs-cat"),
];

/// Where libnfs finds a file: MOUNT and NFS are on one port, and nobody is asked which.
fn url(cluster: &Cluster, path: &str) -> String {
    format!("nfs://{}/vol{path}?version=3&nfsport=2049&mountport=2049", cluster.network.floating_ip())
}

fn tool(cluster: &Cluster, program: &str, arguments: &[&str]) -> Command {
    let mut command = cluster.network.client_command(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A tool that succeeds; gives its output.
fn done(mut command: Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    stdout
}

fn names(cluster: &Cluster, path: &str) -> Vec<String> {
    let listed = done(tool(cluster, "nfs-ls", &[&url(cluster, path)]));
    let listed = String::from_utf8(listed).expect("names of this test");
    let mut names: Vec<_> =
        listed.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    names.sort();
    names
}

/// Bytes that no two blocks have in common.
fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes / 8).flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()).collect()
}

#[test]
fn the_tools_of_libnfs_copy_list_and_read_before_and_after_a_switchover() {
    if !require("the_tools_of_libnfs_copy_list_and_read_before_and_after_a_switchover", LIBNFS) {
        return;
    }
    let cluster = Cluster::with_files();
    let (local, data) = (cluster.home().join("local"), pattern(5 << 20));
    fs::write(&local, &data).expect("a local file");
    let local = local.to_str().expect("a path of this test");
    done(tool(&cluster, "nfs-cp", &[local, &url(&cluster, "/copied")]));
    assert_eq!(names(&cluster, "/"), ["copied", "lost+found"]);
    assert_eq!(done(tool(&cluster, "nfs-cat", &[&url(&cluster, "/copied")])), data);
    cluster.switchover("vol", BETA);
    assert_eq!(done(tool(&cluster, "nfs-cat", &[&url(&cluster, "/copied")])), data);
    let back = cluster.home().join("back");
    done(tool(&cluster, "nfs-cp", &[&url(&cluster, "/copied"), back.to_str().expect("a path of this test")]));
    assert_eq!(fs::read(&back).expect("the copy"), data);
    // Whom no export names gets nothing.
    cluster.must(ALPHA, &["export", "remove", "vol", "10.213.0.0/24"]);
    let refused = tool(&cluster, "nfs-cat", &[&url(&cluster, "/copied")]).output().expect("it starts");
    assert!(!refused.status.success() && refused.stdout.is_empty());
}

/// What people do with files, from a Linux kernel by NFSv3. Locks stay on the client (`nolock`).
const EXERCISE: &str = r#"
mkdir -p /mnt/nfs
options=vers=3,nolock,proto=tcp,port=2049,mountproto=tcp,mountport=2049
mount.nfs "$server:/vol" /mnt/nfs -o $options
grep " /mnt/nfs nfs .*vers=3," /proc/mounts
cd /mnt/nfs
head -c 3000000 /dev/urandom >data
sum=$(sha256sum <data)
sync data
mkdir directory
mv data directory/moved
ln directory/moved linked
ln -s directory/moved symbolic
test "$sum" = "$(sha256sum <symbolic)"
chmod 640 linked
test "$(stat -c '%a %h %s' linked)" = "640 2 3000000"
chown 1000:100 linked
test "$(stat -c '%u %g' directory/moved)" = "1000 100"
touch -d @1000000000 linked
test "$(stat -c %Y linked)" = 1000000000
truncate -s 1000 linked
test "$(stat -c %s directory/moved)" = 1000
mkfifo directory/pipe
mknod directory/null c 1 3
test "$(stat -c '%F %t %T' directory/null)" = "character special file 1 3"
rm directory/pipe directory/null
i=0
while [ $i -lt 300 ]; do : >"directory/$i"; i=$((i + 1)); done
test "$(ls directory | wc -l)" = 301
rm directory/1*
test "$(ls directory | wc -l)" = 190
if mkdir directory; then exit 1; fi
if rmdir directory; then exit 1; fi
set -o noclobber
if (echo again >linked) 2>/dev/null; then exit 1; fi
set +o noclobber
exec 5>open
rm open
echo kept >&5
exec 5>&-
mkdir inner
cd /
umount /mnt/nfs
mount.nfs "$server:/vol/directory" /mnt/nfs -o $options
test "$(ls /mnt/nfs | wc -l)" = 190
umount /mnt/nfs
mount.nfs "$server:/vol" /mnt/nfs -o $options
test "$(head -c 1000 /mnt/nfs/linked | sha256sum)" = "$(head -c 1000 /mnt/nfs/directory/moved | sha256sum)"
ls -la /mnt/nfs
rm -r /mnt/nfs/directory /mnt/nfs/linked /mnt/nfs/symbolic /mnt/nfs/inner
test "$(ls -A /mnt/nfs)" = lost+found
umount /mnt/nfs
"#;

#[test]
fn a_linux_kernel_mounts_a_volume_by_nfsv3_and_works_on_it() {
    let name = "a_linux_kernel_mounts_a_volume_by_nfsv3_and_works_on_it";
    if !require(name, &[Need::Namespaces, Need::KernelClient, Need::Program("mke2fs")]) {
        return;
    }
    let cluster = Cluster::with_files();
    let kernel = Kernel::choose().expect("it was asked for");
    let mut client = KernelClient::boot(kernel, cluster.network.namespaces(), cluster.home()).expect("a kernel");
    let script = format!("server={}\n{EXERCISE}", cluster.network.floating_ip());
    let outcome = client.run(&script, KERNEL_LIMIT);
    assert_eq!(outcome.status, 0, "{}\n{}", outcome.output, client.console());
}

/// Each of these would fail if it were done twice: a directory is made, a file made in it that must be new, moved and removed.
const ROUNDS: &str = r#"
mkdir -p /mnt/nfs
mount.nfs "$server:/vol" /mnt/nfs -o vers=3,nolock,proto=tcp,port=2049,mountproto=tcp,mountport=2049
cd /mnt/nfs
set -o noclobber
i=0
while [ ! -e "$SHARE/enough" ]; do
    mkdir "d$i"
    echo "$i" >"d$i/file"
    mv "d$i/file" "d$i/moved"
    test "$(cat "d$i/moved")" = "$i"
    rm "d$i/moved"
    rmdir "d$i"
    i=$((i + 1))
    echo "round $i"
done
cd /
umount /mnt/nfs
echo "rounds: $i"
"#;

#[test]
fn a_linux_kernel_by_nfsv3_notices_no_switchover_and_no_dead_box() {
    let name = "a_linux_kernel_by_nfsv3_notices_no_switchover_and_no_dead_box";
    if !require(name, &[Need::Namespaces, Need::KernelClient, Need::Program("mke2fs")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let kernel = Kernel::choose().expect("it was asked for");
    let mut client = KernelClient::boot(kernel, cluster.network.namespaces(), cluster.home()).expect("a kernel");
    let script = format!("server={}\n{ROUNDS}", cluster.network.floating_ip());
    let mut rounds = Rounds::start(&mut client, &script);
    rounds.get_on();
    cluster.switchover("vol", BETA);
    rounds.get_on();
    cluster.nodes[BETA].kill_worker();
    rounds.get_on();
    let serving = if cluster.wait_healthy("vol").primary == "alpha" { ALPHA } else { BETA };
    cluster.network.namespaces().unplug(serving);
    cluster.nodes[serving].kill();
    rounds.get_on();
    rounds.end();
}
