//! The proof that locks stay held: a process in the first guest holds some from the beginning of a round to its end, and another
//! client asks for them all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use gateway_nfs::client::arguments::LockRange;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::{Files, FilesError, OpenFile};
use gateway_nfs::rpc::auth::SysCredential;

use super::rig::{CHORE_LIMIT, Rig, VOLUME};
use super::scripts;
use crate::e2e::eventually;
use crate::e2e::network::Network;

/// The port of NFS.
pub const PORT: u16 = 2049;
/// How long our own client waits without any answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The files, below the volume's root.
const DIRECTORY: &str = "locks-held";
/// What is locked of each: see `lock_holder.py`.
const LOCKED: [(&str, LockRange); 2] = [
    ("flock", LockRange { exclusive: true, offset: 0, length: u64::MAX }),
    ("fcntl", LockRange { exclusive: true, offset: 100, length: 50 }),
];

/// Locks that are held, and the client that looks.
pub struct HeldLocks {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    watcher: Option<JoinHandle<Result<(), String>>>,
}

impl HeldLocks {
    /// Takes locks in the first guest, and begins to look at them.
    pub fn start(rig: &mut Rig) -> Self {
        let guest = &mut rig.guests[0];
        for file in ["held", "release", "holder"] {
            let _ = std::fs::remove_file(guest.share().join(file));
        }
        let here = scripts();
        let holder = format!("python3 {}/lock_holder.py /mnt/nfs/{DIRECTORY} \"$SHARE\"", here.display());
        guest.must(&format!("mkdir -p /mnt/nfs/{DIRECTORY}\n{holder} </dev/null &"), CHORE_LIMIT);
        let held = guest.share().join("held");
        eventually(CHORE_LIMIT, "the locks are granted", || held.exists());
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (network, stopped, counted) = (rig.cluster.network.clone(), Arc::clone(&stop), Arc::clone(&looks));
        let watcher = std::thread::spawn(move || {
            in_hub(&network, async {
                let files = connect(&network, "watcher").await?;
                look(&files, &stopped, &counted).await
            })
        });
        eventually(CHORE_LIMIT, "the other client looks", || {
            looks.load(Ordering::Acquire) > 0 || watcher.is_finished()
        });
        Self { stop, looks, watcher: Some(watcher) }
    }

    /// Whether the client that looks has ended, which it does by itself only when something is wrong.
    pub fn has_failed(&self) -> bool {
        self.watcher.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets them go. Gives how many times they were looked at, and found held; or what was wrong.
    pub fn finish(mut self, rig: &mut Rig) -> Result<u64, String> {
        self.stop.store(true, Ordering::Release);
        let watcher = self.watcher.take().ok_or("it was finished already")?;
        watcher.join().map_err(|_| "the watcher panicked".to_owned())??;
        let share = rig.guests[0].share().to_owned();
        std::fs::write(share.join("release"), "").map_err(|error| error.to_string())?;
        eventually(CHORE_LIMIT, "the holder lets go", || share.join("holder").exists());
        let said = std::fs::read_to_string(share.join("holder")).map_err(|error| error.to_string())?;
        match said.starts_with("fine") {
            true => Ok(self.looks.load(Ordering::Acquire)),
            false => Err(format!("the holder of the locks: {said}")),
        }
    }
}

impl Drop for HeldLocks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// Runs our client in a runtime of this thread, in the hub.
pub fn in_hub<T>(network: &Network, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    network.namespaces().enter_hub().map_err(|error| error.to_string())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(work)
}

/// Our client at the floating address.
pub async fn connect(network: &Network, name: &'static str) -> Result<Files, String> {
    let credential = SysCredential { machine: name.into(), ..SysCredential::default() };
    let silence = Duration::from_secs(1);
    let options = Options { owner: name.into(), credential, silence, patience: Some(PATIENCE), ..Options::default() };
    let at = SocketAddr::new(network.floating_ip(), PORT);
    let client = Client::connect(at, options).await.map_err(|error| error.to_string())?;
    Ok(Files::new(client, name))
}

async fn look(files: &Files, stop: &AtomicBool, looks: &AtomicU64) -> Result<(), String> {
    let told = |error: FilesError| format!("the client that looks at locks: {error}");
    let mut open: Vec<(&str, LockRange, OpenFile)> = Vec::new();
    for (name, range) in LOCKED {
        let file = files.open_or_create(&format!("{VOLUME}/{DIRECTORY}/{name}"), 0o666).await.map_err(told)?;
        open.push((name, range, file));
    }
    while !stop.load(Ordering::Acquire) {
        for (name, range, file) in &open {
            if file.find_lock(*range).await.map_err(told)?.is_none() {
                return Err(format!("the lock of {name} was lost"));
            }
        }
        looks.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
