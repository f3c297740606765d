//! The measurements on the engine: one thread, operations in flight as tasks.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use bytes::Bytes;
use filesystem::InodeNumber;
use filesystem::directory::Cookie;
use filesystem::engine::{Filesystem, NewFile, Options, Place, Recovered};
use filesystem::journal::CommitTime;
use filesystem::layout::file_kind::{FileKind, Mode};
use filesystem::layout::timestamp::Timestamp;
use filesystem::units::ROOT_INODE;
use tandem_tests::image_file::ImageFile;
use tokio::task::{LocalSet, spawn_local};

/// Names that are created before one waits for what is durable, in large directories.
const FILL_STEP: usize = 5000;
const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

type Mounted = Rc<Filesystem<ImageFile>>;

fn clock() -> CommitTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CommitTime { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() }
}

/// Runs `work` on the mounted image, while its commits are driven; closes it, or leaves it as a crash does. Gives what `work`
/// gave, what was recovered, and how long opening took.
pub(crate) fn with<T>(
    image: &Path,
    budget: usize,
    crash: bool,
    work: impl AsyncFnOnce(Mounted) -> Result<T>,
) -> Result<(T, Recovered, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    LocalSet::new().block_on(&runtime, async {
        let started = Instant::now();
        let options = Options { cache_bytes_max: budget, data_bytes_max: 64 << 20, read_only: false, clock };
        let (mounted, recovered) = Filesystem::open(ImageFile::open(image)?, &options).await?;
        let opening = started.elapsed();
        let mounted = Rc::new(mounted);
        let driving = Rc::clone(&mounted);
        let driver = spawn_local(async move { driving.drive().await });
        let result = work(Rc::clone(&mounted)).await?;
        mounted.stop();
        driver.await?;
        if !crash {
            mounted.close().await?;
        }
        Ok((result, recovered, opening))
    })
}

pub(crate) async fn make(mounted: &Mounted, directory: InodeNumber, name: &str, kind: FileKind) -> Result<InodeNumber> {
    let new = NewFile { mode: Mode::new(kind, 0o755), user: 0, group: 0, device: None, target: &[] };
    let place = Place { directory, name: name.as_bytes() };
    let done = mounted.run(|handle| handle.create(place, &new, NOW)).await?;
    if let Some(transaction) = done.transaction {
        mounted.durable(transaction).await?;
    }
    Ok(done.value.inode)
}

pub(crate) async fn directory(mounted: &Mounted, name: &str) -> Result<InodeNumber> {
    match mounted.run(|handle| handle.lookup(ROOT_INODE, name.as_bytes())).await {
        Ok(found) => Ok(found.value),
        Err(_) => make(mounted, ROOT_INODE, name, FileKind::Directory).await,
    }
}

/// Durable creates a second with so many in flight.
pub(crate) async fn creates(mounted: &Mounted, name: &str, in_flight: usize, time: Duration) -> Result<f64> {
    let directory = directory(mounted, name).await?;
    let (count, started) = (Rc::new(Cell::new(0_u64)), Instant::now());
    let tag = started.elapsed().as_nanos();
    let tasks: Vec<_> = (0..in_flight)
        .map(|task| {
            let (mounted, count) = (Rc::clone(mounted), Rc::clone(&count));
            spawn_local(async move {
                while started.elapsed() < time {
                    let number = count.replace(count.get() + 1);
                    let name = format!("new-{tag}-{in_flight}-{task}-{number}");
                    make(&mounted, directory, &name, FileKind::Regular).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(count.get() as f64 / started.elapsed().as_secs_f64())
}

/// Durable removals a second of `entry-N` from `from` on, with so many in flight.
pub(crate) async fn removes(mounted: &Mounted, name: &str, in_flight: usize, count: usize) -> Result<f64> {
    let directory = directory(mounted, name).await?;
    let (next, started) = (Rc::new(Cell::new(0)), Instant::now());
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (mounted, next) = (Rc::clone(mounted), Rc::clone(&next));
            spawn_local(async move {
                while next.get() < count {
                    let name = entry(next.replace(next.get() + 1));
                    let place = Place { directory, name: name.as_bytes() };
                    let done = mounted.run(|handle| handle.remove(place, false, NOW)).await?;
                    if let Some(transaction) = done.transaction {
                        mounted.durable(transaction).await?;
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn entry(number: usize) -> String {
    format!("entry-{number}")
}

/// Fills a directory with `entry-0` and so on; a second, how many.
pub(crate) async fn fill(mounted: &Mounted, name: &str, count: usize) -> Result<f64> {
    let directory = directory(mounted, name).await?;
    let new = NewFile { mode: Mode::new(FileKind::Regular, 0o644), user: 0, group: 0, device: None, target: &[] };
    let started = Instant::now();
    let mut last = None;
    for number in 0..count {
        let name = entry(number);
        let place = Place { directory, name: name.as_bytes() };
        last = mounted.run(|handle| handle.create(place, &new, NOW)).await?.transaction;
        if let (Some(transaction), 0) = (last, number % FILL_STEP) {
            mounted.durable(transaction).await?;
        }
    }
    if let Some(transaction) = last {
        mounted.durable(transaction).await?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Lookups with the inode, a second, of names in memory.
pub(crate) async fn lookups(mounted: &Mounted, name: &str, count: usize, time: Duration) -> Result<f64> {
    let directory = directory(mounted, name).await?;
    let names: Vec<String> = (0..count.min(1000)).map(|step| entry(step * count / count.min(1000))).collect();
    let mut done = 0_u64;
    let mut started = Instant::now();
    // Once unmeasured, to have them in memory.
    for round in 0.. {
        for name in &names {
            let found = mounted.run(|handle| {
                let number = handle.lookup(directory, name.as_bytes())?;
                handle.inode(number).map(|inode| inode.size)
            });
            found.await?;
            done += 1;
        }
        if round == 0 {
            (done, started) = (0, Instant::now());
        } else if started.elapsed() > time {
            break;
        }
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// Milliseconds to read a directory and every inode of it.
pub(crate) async fn list(mounted: &Mounted, name: &str) -> Result<f64> {
    let started = Instant::now();
    let directory = directory(mounted, name).await?;
    let mut after = Cookie::START;
    loop {
        let batch = mounted.run(|handle| handle.read_directory(directory, after, 512)).await?.value;
        for entry in &batch.entries {
            mounted.run(|handle| handle.inode(entry.inode).map(|inode| inode.size)).await?;
        }
        match batch.entries.last() {
            Some(last) if !batch.at_end => after = last.cookie,
            _ => return Ok(started.elapsed().as_secs_f64() * 1e3),
        }
    }
}

/// Files that are open and have no name, closed one after another, the oldest first: how many are given back a second.
pub(crate) async fn closes_without_names(mounted: &Mounted, count: usize) -> Result<f64> {
    let directory = directory(mounted, "nameless").await?;
    let mut files = Vec::with_capacity(count);
    for number in 0..count {
        let name = entry(number);
        let new = NewFile { mode: Mode::new(FileKind::Regular, 0o644), user: 0, group: 0, device: None, target: &[] };
        let place = Place { directory, name: name.as_bytes() };
        let file = mounted.run(|handle| handle.create(place, &new, NOW)).await?.value.inode;
        ensure!(mounted.hold(file), "a new file can be held");
        mounted.run(|handle| handle.remove(place, false, NOW)).await?;
        files.push(file);
    }
    let (free, started) = (mounted.statistics().files_free as usize, Instant::now());
    for (number, file) in files.iter().enumerate() {
        mounted.let_go(*file);
        while (mounted.statistics().files_free as usize) < free + number + 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Bytes a second, written with a sync at the end, and read.
pub(crate) async fn stream(mounted: &Mounted, bytes: u64) -> Result<(f64, f64)> {
    const PIECE: u64 = 1 << 20;
    let file = make(mounted, ROOT_INODE, "stream", FileKind::Regular).await?;
    let data = Bytes::from(vec![7; PIECE as usize]);
    let started = Instant::now();
    for at in (0..bytes).step_by(PIECE as usize) {
        mounted.write(file, at, data.clone(), NOW).await?;
    }
    mounted.fsync(file).await?;
    let written = bytes as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for at in (0..bytes).step_by(PIECE as usize) {
        mounted.read(file, at, PIECE as usize).await?;
    }
    Ok((written, bytes as f64 / started.elapsed().as_secs_f64()))
}
