//! The demo's files: clients of NFS that make, rename, link and remove files, each of which would fail if it were done twice,
//! what they were promised, and a lock that one of them holds all the time.
//!
//! On loopback there is no floating address, which would take root: the clients know both boxes' addresses and look for the
//! service at one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use gateway_nfs::client::arguments::{Creation, LockRange};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::{Files, FilesError, OpenFile};
use gateway_nfs::client::number::ACCESS_BOTH;
use gateway_nfs::client::statistics::Statistics;
use gateway_nfs::rpc::auth::SysCredential;
use tokio::task::JoinSet;

/// Clients that work.
pub(super) const CLIENTS: usize = 4;
/// Files that one client keeps.
const FILES_KEPT: u64 = 100;
/// Bytes of a file: up to this.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// A client gives up after so long without any answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file that is locked.
const LOCKED: &str = "locked";
const WHOLE: LockRange = LockRange { exclusive: true, offset: 0, length: u64::MAX };
/// Losses that are told one by one.
const LOSSES_MAX: usize = 20;

/// What the clients were promised.
#[derive(Debug, Default)]
struct Ledger {
    inner: Mutex<Promises>,
}

#[derive(Debug, Default)]
struct Promises {
    /// By path: what its bytes were made of.
    files: BTreeMap<String, u64>,
    operations: u64,
    longest_wait: Duration,
    /// What is not answered yet: when it began.
    waiting: BTreeMap<u64, Instant>,
    next: u64,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Promises> {
        // Every change is complete before it can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an operation, and counts it. Errors: its own, with what it was.
    async fn done<T>(&self, what: &str, operation: impl Future<Output = Result<T, FilesError>>) -> anyhow::Result<T> {
        let number = {
            let mut promises = self.lock();
            promises.next += 1;
            let number = promises.next;
            promises.waiting.insert(number, Instant::now());
            number
        };
        let result = operation.await.with_context(|| format!("NFS: {what}"))?;
        let mut promises = self.lock();
        promises.operations += 1;
        let waited = promises.waiting.remove(&number).map_or(Duration::ZERO, |began| began.elapsed());
        promises.longest_wait = promises.longest_wait.max(waited);
        Ok(result)
    }

    /// The longest that anything took since this was asked last, or takes now.
    fn take_longest_wait(&self) -> Duration {
        let mut promises = self.lock();
        let longest = std::mem::take(&mut promises.longest_wait);
        promises.waiting.values().map(Instant::elapsed).fold(longest, Duration::max)
    }
}

/// Where the service may be found.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// One address a box, or one that floats.
    pub(super) addresses: Vec<SocketAddr>,
    /// The volume.
    pub(super) volume: String,
}

impl Place {
    async fn connect(&self, name: &str) -> anyhow::Result<Files> {
        let (first, others) = self.addresses.split_first().context("no box serves NFS")?;
        let options = Options {
            owner: Bytes::copy_from_slice(name.as_bytes()),
            credential: SysCredential { machine: name.to_owned().into(), ..SysCredential::default() },
            alternatives: others.to_vec(),
            patience: Some(PATIENCE),
            // The way back is tried at once: both boxes are near.
            pauses: (Duration::from_millis(5), Duration::from_millis(20)),
            ..Options::default()
        };
        let client = Client::connect(*first, options).await.context("no NFS session")?;
        Ok(Files::new(client, name.to_owned()))
    }

    fn path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.volume)
    }

    /// Whether some client holds a lock on this file.
    pub(super) async fn is_locked(&self, name: &str) -> anyhow::Result<bool> {
        let other = self.connect("other").await?;
        let same = other.open_or_create(&self.path(name), 0o644).await?;
        let found = same.find_lock(WHOLE).await?;
        same.close().await?;
        other.client().clone().close().await?;
        Ok(found.is_some())
    }
}

/// What was found at one place.
#[derive(Clone, Debug, Default)]
pub(super) struct Verified {
    /// Files that are as promised.
    pub(super) intact: u64,
    /// What is not as promised, in words; the first of them.
    pub(super) losses: Vec<String>,
    /// How much that is.
    pub(super) lost: u64,
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct FileLoad {
    place: Place,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<Statistics>>,
    /// It has [`LOCKED`] open, and locked.
    holder: OpenFile,
}

impl FileLoad {
    /// Makes the clients' directories, locks the file, and begins.
    pub(super) async fn start(place: Place) -> anyhow::Result<Self> {
        let holder = place.connect("holder").await?;
        for client in 0..CLIENTS {
            holder.make_directory(&place.path(&format!("client-{client}")), 0o755).await?;
        }
        let mut held = holder.open_or_create(&place.path(LOCKED), 0o644).await?;
        held.lock(WHOLE).await?;
        let (stop, ledger) = (Arc::new(AtomicBool::new(false)), Arc::new(Ledger::default()));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (place, ledger, stop) = (place.clone(), Arc::clone(&ledger), Arc::clone(&stop));
            clients.spawn(async move {
                let files = place.connect(&format!("client-{client}")).await?;
                work(&files, &place.path(&format!("client-{client}")), &ledger, &stop).await?;
                Ok(files.client().statistics().await?)
            });
        }
        Ok(Self { place, ledger, stop, clients, holder: held })
    }

    /// The longest that anything took since this was asked last, or takes now.
    pub(super) fn take_longest_wait(&self) -> Duration {
        self.ledger.take_longest_wait()
    }

    /// Operations that were answered.
    pub(super) fn operations(&self) -> u64 {
        self.ledger.lock().operations
    }

    /// A client that gave up.
    pub(super) fn first_failure(&mut self) -> anyhow::Result<()> {
        match self.clients.try_join_next() {
            None => Ok(()),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error.into()),
            Some(Ok(Ok(_))) => bail!("a client of NFS ended before its time"),
        }
    }

    /// Lets every client end its round. Then sees that the lock was never lost, uses it once more, and gives it back.
    pub(super) async fn stop(mut self) -> anyhow::Result<Promised> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            let statistics = ended??;
            if statistics.clients != 1 || statistics.sessions != 1 {
                bail!("a box forgot a client of NFS: {statistics:?}");
            }
        }
        if !self.place.is_locked(LOCKED).await? {
            bail!("the lock that a client of NFS held was lost");
        }
        self.holder.write_durably(0, Bytes::from_static(b"held")).await?;
        self.holder.unlock(WHOLE).await?;
        self.holder.close().await?;
        let files = std::mem::take(&mut self.ledger.lock().files);
        let directories = (0..CLIENTS).map(|client| self.place.path(&format!("client-{client}"))).collect();
        Ok(Promised { place: self.place, directories, files })
    }
}

/// What has to be there when the load has ended.
#[derive(Debug)]
pub(super) struct Promised {
    place: Place,
    /// Paths of the directories where nothing else is.
    directories: Vec<String>,
    files: BTreeMap<String, u64>,
}

impl Promised {
    /// The files of these names in a directory of the volume, with what their bytes were made of.
    pub(super) fn in_directory(place: Place, directory: &str, files: &BTreeMap<String, u64>) -> Self {
        let directory = place.path(directory);
        let files = files.iter().map(|(name, seed)| (format!("{directory}/{name}"), *seed)).collect();
        Self { place, directories: vec![directory], files }
    }

    /// How many files.
    pub(super) fn files(&self) -> u64 {
        self.files.len() as u64
    }

    /// Reads every file from the box that serves, and looks for files that nobody was promised.
    pub(super) async fn verify(&self, at: &str) -> anyhow::Result<Verified> {
        let files = self.place.connect("judge").await?;
        let mut found = BTreeMap::new();
        for directory in &self.directories {
            for (name, _) in files.read_directory(directory).await? {
                let path = format!("{directory}/{}", String::from_utf8_lossy(&name));
                let content = files.read_file(&path).await?;
                found.insert(path, content);
            }
        }
        files.client().clone().close().await?;
        Ok(judge(&self.files, &found, at))
    }
}

/// Compares what was promised with what is there.
pub(super) fn judge(promised: &BTreeMap<String, u64>, found: &BTreeMap<String, Bytes>, at: &str) -> Verified {
    let mut verified = Verified::default();
    let mut lose = |what: String| {
        verified.lost += 1;
        if verified.losses.len() < LOSSES_MAX {
            verified.losses.push(what);
        }
    };
    let mut intact = 0;
    for (path, seed) in promised {
        match found.get(path) {
            Some(content) if *content == content_of(*seed) => intact += 1,
            Some(content) => lose(format!("{path} on {at}: {} bytes that were not written", content.len())),
            None => lose(format!("{path} is not on {at}")),
        }
    }
    for path in found.keys().filter(|path| !promised.contains_key(*path)) {
        lose(format!("{path} is on {at}, and should not be"));
    }
    Verified { intact, ..verified }
}

/// One client: rounds of a file made, written, renamed, now and then linked; the oldest is removed.
async fn work(files: &Files, at: &str, ledger: &Ledger, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let seed: u64 = rand::random();
        let (fresh, kept, second) = (format!("{at}/new"), format!("{at}/file-{round}"), format!("{at}/link-{round}"));
        // It must not be there: a second creation would be refused.
        let creation = Creation::Guarded(AttributesToSet::mode(0o644));
        let file = ledger.done("create", files.open(&fresh, ACCESS_BOTH, creation)).await?;
        ledger.done("write", file.write_durably(0, content_of(seed))).await?;
        ledger.done("close", file.close()).await?;
        ledger.done("rename", files.rename(&fresh, &kept)).await?;
        ledger.lock().files.insert(kept.clone(), seed);
        if round % 4 == 0 {
            ledger.done("link", files.link(&kept, &second)).await?;
            ledger.lock().files.insert(second, seed);
        }
        if let Some(old) = u64::checked_sub(round, FILES_KEPT) {
            let gone = format!("{at}/file-{old}");
            ledger.done("remove", files.remove(&gone)).await?;
            ledger.lock().files.remove(&gone);
            if old % 4 == 0 {
                let gone = format!("{at}/link-{old}");
                ledger.done("remove", files.remove(&gone)).await?;
                ledger.lock().files.remove(&gone);
            }
        }
        round += 1;
    }
    Ok(())
}

/// The bytes of a file: as many as the seed says, and no two alike.
pub(super) fn content_of(seed: u64) -> Bytes {
    let length = (seed % FILE_BYTES_MAX + 1) as usize;
    let mut state = seed | 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_different_or_too_much_is_a_loss() {
        let promised: BTreeMap<_, _> =
            [("a", 1), ("b", 2), ("c", 3)].map(|(path, seed)| (path.to_owned(), seed)).into();
        let mut found: BTreeMap<_, _> = promised.iter().map(|(path, seed)| (path.clone(), content_of(*seed))).collect();
        let all = judge(&promised, &found, "box-a");
        assert_eq!((all.intact, all.lost), (3, 0));
        found.remove("a");
        found.insert("b".to_owned(), content_of(3));
        found.insert("d".to_owned(), Bytes::new());
        let some = judge(&promised, &found, "box-a");
        assert_eq!((some.intact, some.lost), (1, 3));
        assert_eq!(some.losses[0], "a is not on box-a");
        assert!(some.losses[2].contains("should not be"), "{:?}", some.losses);
    }

    #[tokio::test]
    async fn what_is_never_answered_is_waited_for() {
        let ledger = Ledger::default();
        ledger.done("quick", async { Ok(()) }).await.unwrap();
        assert!(ledger.take_longest_wait() < Duration::from_secs(1));
        let never = ledger.done("never", std::future::pending::<Result<(), FilesError>>());
        tokio::select! {
            _ = never => panic!("it is never answered"),
            () = tokio::task::yield_now() => {}
        }
        ledger.lock().waiting.values_mut().for_each(|began| *began -= Duration::from_secs(9));
        assert!(ledger.take_longest_wait() >= Duration::from_secs(9));
    }

    #[test]
    fn contents_differ_and_have_a_bounded_length() {
        let lengths: Vec<_> =
            (0..200u64).map(|seed| content_of(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).len()).collect();
        assert!(lengths.iter().all(|length| (1..=FILE_BYTES_MAX as usize).contains(length)));
        assert_ne!(content_of(8), content_of(9 + FILE_BYTES_MAX), "of one length or not");
    }
}
