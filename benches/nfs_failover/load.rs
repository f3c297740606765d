//! One client under steady load through all events, and when it had answers. Changes would fail if one were done twice or lost:
//! files that must be new are made and removed again. Reads are compared.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use gateway_nfs::client::arguments::{Creation, Stable};
use gateway_nfs::client::attributes::AttributesToSet;
use gateway_nfs::client::connection::{Client, Options};
use gateway_nfs::client::files::{Files, OpenFile};
use gateway_nfs::client::number::ACCESS_WRITE;
use gateway_nfs::client::statistics::Statistics;
use gateway_nfs::rpc::auth::SysCredential;
use tandem_benches::served::{Served, VOLUME};
use tokio::task::JoinSet;

/// Tasks that change names, and tasks that read.
const CHANGING: usize = 4;
const READING: usize = 4;
const READ_BYTES: usize = 4096;
/// Times without an answer that are kept until they are asked for; shorter ones than [`GAP_MIN`] are not.
const GAPS_MAX: usize = 4096;
const GAP_MIN: Duration = Duration::from_millis(5);
/// How long the client waits without any answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// A time in which something was asked for and nothing answered: from the last answer before to the first after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gap {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Gap {
    pub(crate) fn length(self) -> Duration {
        self.to - self.from
    }
}

/// When answers came.
#[derive(Debug)]
struct Answers {
    last: Instant,
    gaps: Vec<Gap>,
}

impl Answers {
    fn new() -> Self {
        Self { last: Instant::now(), gaps: Vec::new() }
    }

    fn came(&mut self, now: Instant) {
        let gap = Gap { from: self.last, to: now };
        if gap.length() >= GAP_MIN && self.gaps.len() < GAPS_MAX {
            self.gaps.push(gap);
        }
        self.last = now;
    }
}

/// What the tasks tell.
#[derive(Debug)]
struct Seen {
    /// Answers of any kind, and those to changes alone.
    all: Mutex<Answers>,
    changes: Mutex<Answers>,
    operations: AtomicU64,
    stop: AtomicBool,
}

impl Seen {
    fn came(&self, is_change: bool) {
        let now = Instant::now();
        lock(&self.all).came(now);
        if is_change {
            lock(&self.changes).came(now);
        }
        self.operations.fetch_add(1, Ordering::AcqRel);
    }
}

fn lock(answers: &Mutex<Answers>) -> std::sync::MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest gaps that overlap an event: of all answers, and of those to changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    pub(crate) all: Option<Gap>,
    pub(crate) changes: Option<Gap>,
}

/// The load, in a thread of its own where clients live.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<Result<Statistics>>>,
}

impl Load {
    /// Begins. `silence` is how long the client hears nothing before it tries another connection.
    pub(crate) fn start(served: &Served, silence: Duration) -> Self {
        let seen = Arc::new(Seen {
            all: Mutex::new(Answers::new()),
            changes: Mutex::new(Answers::new()),
            operations: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let (network, address, told) = (served.cluster.network.clone(), served.address(), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            network.namespaces().enter_hub()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let credential = SysCredential { machine: "load".into(), ..SysCredential::default() };
            let options =
                Options { owner: "load".into(), credential, silence, patience: Some(PATIENCE), ..Options::default() };
            runtime.block_on(async move {
                let client = Client::connect(address, options).await?;
                work(Files::new(client.clone(), "load"), told).await?;
                Ok(client.statistics().await?)
            })
        });
        Self { seen, thread: Some(thread) }
    }

    /// Operations so far. Errors: that for which the load has ended.
    pub(crate) fn operations(&mut self) -> Result<u64> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join()?;
            return Err(anyhow!("the load has ended by itself"));
        }
        Ok(self.seen.operations.load(Ordering::Acquire))
    }

    /// Forgets the gaps so far.
    pub(crate) fn forget(&self) {
        lock(&self.seen.all).gaps.clear();
        lock(&self.seen.changes).gaps.clear();
    }

    /// The longest gaps that overlap the time from `begin` on.
    pub(crate) fn longest_since(&self, begin: Instant) -> Stall {
        let longest = |answers: &Mutex<Answers>| {
            let overlapping = |gap: &&Gap| gap.to > begin;
            lock(answers).gaps.iter().filter(overlapping).max_by_key(|gap| gap.length()).copied()
        };
        Stall { all: longest(&self.seen.all), changes: longest(&self.seen.changes) }
    }

    /// Ends it. Errors: an operation failed, or a read gave something else than was written.
    pub(crate) fn finish(mut self) -> Result<(u64, Statistics)> {
        self.seen.stop.store(true, Ordering::Release);
        let statistics = self.join()?;
        Ok((self.seen.operations.load(Ordering::Acquire), statistics))
    }

    fn join(&mut self) -> Result<Statistics> {
        let thread = self.thread.take().context("it has been waited for already")?;
        thread.join().map_err(|_| anyhow!("the load has panicked"))?
    }
}

async fn work(files: Files, seen: Arc<Seen>) -> Result<()> {
    let directory = format!("{VOLUME}/load");
    files.make_directories(&directory, 0o755).await?;
    let path = format!("{directory}/read");
    let content = Bytes::from(b"content!".repeat(READ_BYTES / 8));
    files.write_file(&path, content.clone()).await?;
    let mut tasks = JoinSet::new();
    for task in 0..CHANGING {
        tasks.spawn(change(files.clone(), format!("{directory}/{task}"), Arc::clone(&seen)));
    }
    // One open for all: another one of the same owner would make the first one's stateid old (RFC 8881 §9.9).
    let file = Arc::new(files.open_or_create(&path, 0o644).await?);
    for _ in 0..READING {
        tasks.spawn(read(Arc::clone(&file), content.clone(), Arc::clone(&seen)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Arc::into_inner(file).context("a task has not ended")?.close().await?;
    Ok(())
}

/// Makes a file that must not be there, writes into it, renames it, removes it.
async fn change(files: Files, at: String, seen: Arc<Seen>) -> Result<()> {
    files.make_directory(&at, 0o755).await?;
    let attributes = AttributesToSet::mode(0o644);
    for number in 0_u64.. {
        if seen.stop.load(Ordering::Acquire) {
            break;
        }
        let (first, second) = (format!("{at}/{number}"), format!("{at}/{number}-moved"));
        let file = files.open(&first, ACCESS_WRITE, Creation::Guarded(attributes.clone())).await;
        let file = file.with_context(|| format!("creating {first}"))?;
        seen.came(true);
        file.write_at(0, Bytes::from_static(b"text"), Stable::File).await.context("WRITE")?;
        seen.came(true);
        file.close().await.context("CLOSE")?;
        seen.came(true);
        files.rename(&first, &second).await.with_context(|| format!("renaming {first}"))?;
        seen.came(true);
        files.remove(&second).await.with_context(|| format!("removing {second}"))?;
        seen.came(true);
    }
    Ok(())
}

async fn read(file: Arc<OpenFile>, content: Bytes, seen: Arc<Seen>) -> Result<()> {
    while !seen.stop.load(Ordering::Acquire) {
        let (_, data) = file.read_at(0, READ_BYTES as u32).await.context("READ")?;
        ensure!(data == content, "a read gave something else than was written");
        seen.came(false);
        // The changes are the load; reads only show when the server answers.
        tokio::time::sleep(READ_PAUSE).await;
    }
    Ok(())
}

/// Between two reads of a task.
const READ_PAUSE: Duration = Duration::from_millis(2);
