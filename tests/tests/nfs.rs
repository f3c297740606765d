//! Files over NFS from a real pair behind a floating address: clients ride through switchovers and dead boxes, and nothing that
//! they did is lost or done twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use gateway_nfs::client::arguments::LockRange;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::{Files, FilesError};
use gateway_nfs::client::statistics::Statistics;
use gateway_nfs::rpc::auth::SysCredential;
use tandem_tests::e2e::cluster::{ALPHA, BETA};
use tandem_tests::e2e::kernel_client::rounds::{KERNEL_LIMIT, Rounds};
use tandem_tests::e2e::kernel_client::{Kernel, KernelClient};
use tandem_tests::e2e::network::Network;
use tandem_tests::e2e::{Cluster, Need, eventually, require};

const PORT: u16 = 2049;
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// How long a client waits without any answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(45);

/// Clients that change names one after another, and count what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Statistics, String>>>,
}

impl Load {
    fn start(network: &Network, name: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (network, stopped, counted) = (network.clone(), Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            in_hub(&network, async {
                let files = connect(&network, name).await?;
                let result = work(&files, name, &stopped, &counted).await.map_err(|error| error.to_string());
                let statistics = files.client().statistics().await.map_err(|error| error.to_string())?;
                result.map(|()| statistics)
            })
        });
        Self { stop, done, thread: Some(thread) }
    }

    /// Waits for so many more operations.
    fn progress(&self, operations: u64) {
        let target = self.done.load(Ordering::Acquire) + operations;
        eventually(PROGRESS_LIMIT, "the clients get on", || {
            let has_ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            has_ended || self.done.load(Ordering::Acquire) >= target
        });
    }

    /// Ends it. Gives how many rounds were done, and what the client has seen.
    fn finish(mut self) -> (u64, Statistics) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().expect("it runs").join().expect("no panic");
        (self.done.load(Ordering::Acquire), ended.expect("no error reaches the client"))
    }
}

/// One round makes a directory, a file in it that must be new, renames and links it; every third is removed again. Each of
/// these would fail if it were done twice.
async fn work(files: &Files, name: &str, stop: &AtomicBool, done: &AtomicU64) -> Result<(), FilesError> {
    files.make_directory(&format!("vol/{name}"), 0o755).await?;
    let mut round = 0;
    while !stop.load(Ordering::Acquire) {
        let at = format!("vol/{name}/{round}");
        files.make_directory(&at, 0o755).await?;
        files.write_file(&format!("{at}/first"), at.clone().into_bytes().into()).await?;
        files.rename(&format!("{at}/first"), &format!("{at}/second")).await?;
        files.link(&format!("{at}/second"), &format!("{at}/third")).await?;
        if round % 3 == 0 {
            for gone in ["second", "third"] {
                files.remove(&format!("{at}/{gone}")).await?;
            }
            files.remove(&at).await?;
        }
        round += 1;
        done.store(round, Ordering::Release);
    }
    Ok(())
}

fn in_hub<T>(network: &Network, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    network.namespaces().enter_hub().map_err(|error| error.to_string())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(work)
}

async fn connect(network: &Network, name: &'static str) -> Result<Files, String> {
    let credential = SysCredential { machine: name.into(), ..SysCredential::default() };
    // Nothing but a new connection helps when a box has died: it is tried soon.
    let silence = Duration::from_secs(1);
    let options = Options { owner: name.into(), credential, silence, patience: Some(PATIENCE), ..Options::default() };
    let at = SocketAddr::new(network.floating_ip(), PORT);
    let client = Client::connect(at, options).await.map_err(|error| error.to_string())?;
    Ok(Files::new(client, name))
}

/// All that was acknowledged is there, as it was written, and nothing else.
fn verify(cluster: &Cluster, name: &'static str, rounds: u64) {
    let network = cluster.network.clone();
    let verified = std::thread::spawn(move || {
        in_hub(&network, async {
            let files = connect(&network, "judge").await?;
            let check = async {
                let found = files.read_directory(&format!("vol/{name}")).await?;
                let mut found: Vec<u64> =
                    found.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()?.parse().ok()).collect();
                found.sort_unstable();
                let expected: Vec<u64> = (0..rounds).filter(|round| round % 3 != 0).collect();
                assert_eq!(found, expected);
                for round in expected {
                    let at = format!("vol/{name}/{round}");
                    let content = files.read_file(&format!("{at}/third")).await?;
                    assert_eq!(content, at.clone().into_bytes());
                    assert_eq!(files.read_directory(&at).await?.len(), 2, "{at}");
                }
                Ok::<_, FilesError>(())
            };
            check.await.map_err(|error| error.to_string())
        })
    });
    verified.join().expect("no panic").expect("everything is read");
}

#[test]
fn clients_behind_a_floating_address_notice_neither_switchovers_nor_dead_boxes() {
    let name = "clients_behind_a_floating_address_notice_neither_switchovers_nor_dead_boxes";
    if !require(name, &[Need::Namespaces, Need::Program("mke2fs"), Need::Program("e2fsck")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let load = Load::start(&cluster.network, "one");
    load.progress(20);
    cluster.switchover("vol", BETA);
    load.progress(20);
    cluster.switchover("vol", ALPHA);
    load.progress(20);
    // The worker alone: its supervisor says goodbye for it and takes the address away.
    cluster.nodes[ALPHA].kill_worker();
    load.progress(20);
    // The box.
    let serving = if cluster.wait_healthy("vol").primary == "alpha" { ALPHA } else { BETA };
    cluster.network.namespaces().unplug(serving);
    cluster.nodes[serving].kill();
    load.progress(20);
    // It has its address still, and must give it up before it is heard again.
    cluster.nodes[serving].start_unwatched();
    cluster.network.namespaces().plug(serving);
    cluster.wait_healthy("vol");
    load.progress(20);
    let (rounds, statistics) = load.finish();
    println!("{rounds} rounds, longest stall {} ms, {statistics:?}", statistics.longest.as_millis());
    assert_eq!(statistics.clients, 1, "the server never forgot its client: {statistics:?}");
    assert_eq!(statistics.sessions, 1, "{statistics:?}");
    verify(&cluster, "one", rounds);
    cluster.must(ALPHA, &["nfs", "stop", "vol"]);
    let checked = cluster.must(ALPHA, &["fs", "check", "vol"]);
    assert_eq!(checked["clean"], true, "{checked}");
}

#[test]
fn a_lock_outlives_the_box_that_gave_it() {
    if !require("a_lock_outlives_the_box_that_gave_it", &[Need::Namespaces, Need::Program("mke2fs")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let network = cluster.network.clone();
    let (told, heard) = std::sync::mpsc::channel();
    let (go_on, waits) = std::sync::mpsc::channel();
    let range = LockRange { exclusive: true, offset: 0, length: 10 };
    let holder = std::thread::spawn(move || {
        in_hub(&network, async {
            let held = async {
                let files = connect(&network, "holder").await.expect("connected");
                let mut file = files.open_or_create("vol/file", 0o644).await?;
                file.lock(range).await?;
                told.send(()).expect("the test listens");
                waits.recv().expect("the test goes on");
                // By the stateid from before.
                file.write_durably(0, "mine".into()).await?;
                file.unlock(range).await?;
                file.close().await
            };
            held.await.map_err(|error: FilesError| error.to_string())
        })
    });
    heard.recv_timeout(PROGRESS_LIMIT).expect("the lock is granted");
    cluster.nodes[ALPHA].kill();
    cluster.wait_primary("vol", BETA);
    let network = cluster.network.clone();
    let other = std::thread::spawn(move || {
        in_hub(&network, async {
            let tried = async {
                let files = connect(&network, "other").await.expect("connected");
                let mut file = files.open_or_create("vol/file", 0o644).await?;
                assert!(matches!(file.lock(range).await, Err(FilesError::Locked(_))), "it is held still");
                go_on.send(()).expect("the holder waits");
                while matches!(file.lock(range).await, Err(FilesError::Locked(_))) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                file.read_all().await
            };
            tried.await.map_err(|error: FilesError| error.to_string())
        })
    });
    assert_eq!(other.join().expect("no panic").expect("no error"), "mine");
    holder.join().expect("no panic").expect("no error reaches the holder");
}

/// What people do with files, from a Linux kernel: trees, permissions, locks, holes, attributes.
const EXERCISE: &str = r#"
mkdir -p /mnt/nfs
mount.nfs "$server:/vol" /mnt/nfs -o "vers=$vers"
grep " /mnt/nfs nfs4 .*vers=$vers," /proc/mounts
cd /mnt/nfs
mkdir "$vers"
cd "$vers"
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
flock linked true
i=0
while [ $i -lt 300 ]; do : >"directory/$i"; i=$((i + 1)); done
test "$(ls directory | wc -l)" = 301
rm directory/1*
test "$(ls directory | wc -l)" = 190
if mkdir directory; then exit 1; fi
if rmdir directory; then exit 1; fi
exec 5>open
rm open
echo kept >&5
exec 5>&-
test "$(df --output=fstype . | tail -1)" = nfs4
cd /
umount /mnt/nfs
mount.nfs "$server:/vol" /mnt/nfs -o "vers=$vers"
test "$(head -c 1000 /mnt/nfs/$vers/linked | sha256sum)" = "$(head -c 1000 /mnt/nfs/$vers/directory/moved | sha256sum)"
ls -l /mnt/nfs /mnt/nfs/"$vers"
rm -r /mnt/nfs/"$vers"
umount /mnt/nfs
"#;

#[test]
fn a_linux_kernel_mounts_a_volume_and_works_on_it() {
    let name = "a_linux_kernel_mounts_a_volume_and_works_on_it";
    if !require(name, &[Need::Namespaces, Need::KernelClient, Need::Program("mke2fs")]) {
        return;
    }
    let cluster = Cluster::with_files();
    let kernel = Kernel::choose().expect("it was asked for");
    let mut client = KernelClient::boot(kernel, cluster.network.namespaces(), cluster.home()).expect("a kernel");
    for vers in ["4.2", "4.1"] {
        let script = format!("vers={vers} server={}\n{EXERCISE}", cluster.network.floating_ip());
        let outcome = client.run(&script, KERNEL_LIMIT);
        assert_eq!(outcome.status, 0, "{vers}: {}\n{}", outcome.output, client.console());
    }
}

#[test]
fn a_linux_kernel_notices_no_switchover_and_no_dead_box() {
    let name = "a_linux_kernel_notices_no_switchover_and_no_dead_box";
    if !require(name, &[Need::Namespaces, Need::KernelClient, Need::Program("mke2fs")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let kernel = Kernel::choose().expect("it was asked for");
    let mut client = KernelClient::boot(kernel, cluster.network.namespaces(), cluster.home()).expect("a kernel");
    let script = format!(
        r#"
mkdir -p /mnt/nfs
mount.nfs "{}:/vol" /mnt/nfs -o vers=4.2
cd /mnt/nfs
exec 9>lock
flock -n 9
i=0
while [ ! -e "$SHARE/enough" ]; do
    mkdir "d$i"
    echo "$i" >"d$i/file"
    mv "d$i/file" "d$i/moved"
    rm "d$i/moved"
    rmdir "d$i"
    i=$((i + 1))
    echo "round $i"
done
exec 9>&-
cd /
umount /mnt/nfs
echo "rounds: $i"
"#,
        cluster.network.floating_ip()
    );
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

#[test]
fn a_linux_kernel_reclaims_what_it_had_after_all_boxes_lost_power() {
    let name = "a_linux_kernel_reclaims_what_it_had_after_all_boxes_lost_power";
    if !require(name, &[Need::Namespaces, Need::KernelClient, Need::Program("mke2fs"), Need::Program("unshare")]) {
        return;
    }
    let mut cluster = Cluster::with_files();
    let kernel = Kernel::choose().expect("it was asked for");
    let mut client = KernelClient::boot(kernel, cluster.network.namespaces(), cluster.home()).expect("a kernel");
    let script = format!(
        r#"
mkdir -p /mnt/nfs
mount.nfs "{}:/vol" /mnt/nfs -o vers=4.2
cd /mnt/nfs
exec 9>>locked
flock -n 9
i=0
while [ ! -e "$SHARE/enough" ]; do
    echo "line $i" >&9
    sync locked
    i=$((i + 1))
    echo "round $i"
done
test "$(wc -l <locked)" = "$i"
if flock -n locked true; then exit 1; fi
exec 9>&-
flock -n locked true
cd /
umount /mnt/nfs
"#,
        cluster.network.floating_ip()
    );
    let mut rounds = Rounds::start(&mut client, &script);
    rounds.get_on();
    for node in [ALPHA, BETA] {
        cluster.nodes[node].kill();
        cluster.nodes[node].boot_id = Some(format!("00000000-0000-4000-8000-00000000000{}", node + 1));
    }
    for node in [ALPHA, BETA] {
        cluster.nodes[node].start();
    }
    rounds.get_on();
    rounds.end();
    let logs = [ALPHA, BETA].map(|node| cluster.nodes[node].log());
    assert!(logs.iter().any(|log| log.contains("all copies lost power at once")), "nobody was in doubt");
}
