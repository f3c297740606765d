//! The filesystem engine over an image file as a FUSE mount, so that suites for POSIX filesystems run against it.
//!
//! One thread owns the engine; the kernel's requests reach it through a channel, and many are at work at a time.

mod attributes;
mod data;
mod errno;
mod files;
mod mount;
mod names;
mod requests;

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use filesystem::engine::{Filesystem, Options};
use filesystem::journal::CommitTime;
use fuser::{BackgroundSession, MountOption, SessionACL};
use nix::mount::{MntFlags, umount2};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

use self::mount::Mount;
use self::requests::{Job, Requests};
use crate::image_file::ImageFile;

/// Requests on their way to the engine.
const JOBS_MAX: usize = 256;
/// How long programs may have files open after the end was asked for.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// How long the session may take to end after that.
const END_LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// A file with an ext4 filesystem.
    pub image: PathBuf,
    /// A directory.
    pub mount_point: PathBuf,
    /// Files are read and written past the page cache, and not mapped.
    pub direct: bool,
    /// Bytes of blocks in memory.
    pub cache_bytes_max: usize,
    /// Bytes of data that waits to be written.
    pub data_bytes_max: usize,
}

/// Mounts, calls `ready`, and serves until standard input ends; then unmounts and leaves a clean filesystem. Errors: what is in
/// the image cannot be opened, mounted, or closed.
pub fn serve(request: &Request, ready: impl FnOnce() -> Result<()>) -> Result<()> {
    let (jobs, inbox) = mpsc::channel(JOBS_MAX);
    let (opened, is_open) = oneshot::channel();
    let image = ImageFile::open(&request.image).with_context(|| format!("opening {}", request.image.display()))?;
    let options = Options {
        cache_bytes_max: request.cache_bytes_max,
        data_bytes_max: request.data_bytes_max,
        read_only: false,
        clock,
    };
    let engine = thread::Builder::new().name("engine".into()).spawn(move || own(image, &options, inbox, opened))?;
    if is_open.blocking_recv().is_ok() {
        let requests = Requests { jobs: jobs.clone(), direct: request.direct };
        let session = fuser::spawn_mount(requests, &request.mount_point, &config()).context("mounting")?;
        let served = ready().and_then(|()| Ok(io::stdin().lock().read_to_end(&mut Vec::new()).map(drop)?));
        unmount(&request.mount_point)?;
        wait_for(&session);
        let _ = jobs.blocking_send(None);
        served?;
    }
    engine.join().map_err(|_| anyhow!("the engine's thread panicked"))?
}

fn config() -> fuser::Config {
    let mut config = fuser::Config::default();
    let name = MountOption::FSName("tandem-ext4".to_owned());
    config.mount_options = vec![name, MountOption::DefaultPermissions, MountOption::Dev, MountOption::Suid];
    config.acl = SessionACL::All;
    config
}

/// Opens the filesystem, works off requests until there is none instead of one, and closes it.
fn own(
    image: ImageFile,
    options: &Options,
    mut inbox: mpsc::Receiver<Option<Job>>,
    opened: oneshot::Sender<()>,
) -> Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let (engine, _) = Filesystem::open(image, options).await?;
        engine.reclaim_orphans(&BTreeSet::new()).await?;
        let mount = Rc::new(Mount::new(engine));
        let driven = Rc::clone(&mount);
        let driver = tokio::task::spawn_local(async move { driven.engine.drive().await });
        let _ = opened.send(());
        let mut at_work = JoinSet::new();
        while let Some(Some(job)) = inbox.recv().await {
            at_work.spawn_local(job(Rc::clone(&mount)));
            while at_work.try_join_next().is_some() {}
        }
        while at_work.join_next().await.is_some() {}
        mount.forget_all();
        mount.engine.stop();
        driver.await?;
        Ok(mount.engine.close().await?)
    })
}

/// Waits for the end of a session whose mount is gone, but not for long: another mount namespace may hold a copy of it,
/// through which nothing comes.
fn wait_for(session: &BackgroundSession) {
    let deadline = Instant::now() + END_LIMIT;
    while !session.guard.is_finished() && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
}

fn clock() -> CommitTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    CommitTime { seconds: now.as_secs(), nanoseconds: now.subsec_nanos() }
}

/// Unmounts as soon as nobody has a file open; past the limit, what is open is cut off.
fn unmount(mount_point: &Path) -> Result<()> {
    let deadline = Instant::now() + UNMOUNT_LIMIT;
    while let Err(error) = umount2(mount_point, MntFlags::empty()) {
        if Instant::now() >= deadline {
            let _ = umount2(mount_point, MntFlags::MNT_FORCE);
            umount2(mount_point, MntFlags::MNT_DETACH)?;
            return Err(anyhow!("{} was still in use: {error}", mount_point.display()));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
