//! One open engine, a task on its volume's shard: takes jobs from other threads, commits what they change, and closes in
//! order; or ends at once, without writing, when the volume is not served here any more.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use block_device::BlockDevice;
use filesystem::engine::{Filesystem, Options, Recovered};
use futures_util::future::LocalBoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::content;
use super::error::FilesError;
use crate::nfs;
use crate::volume::VolumeDevice;

/// Jobs that may wait for an engine; more wait to be sent.
pub const JOBS_QUEUED_MAX: usize = 64;
/// An engine that has had nothing to do for so long is closed: the volume can be exported again, and opening it elsewhere
/// needs no recovery.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Data that nobody has asked to be made durable waits in memory so long at most.
pub const UNSYNCED_MAX: Duration = Duration::from_secs(5);
/// Jobs that still run when the engine is to be closed may take so long; then they are dropped, as when their client goes
/// away.
const JOBS_END_MAX: Duration = Duration::from_secs(2);

/// The device of a volume, as an engine holds it.
pub type Device = Rc<VolumeDevice>;

/// Work on an open filesystem.
type Job<D> = Box<dyn FnOnce(Rc<Filesystem<D>>) -> LocalBoxFuture<'static, ()> + Send>;

/// What other threads ask of an engine.
pub enum Command<D> {
    /// To be run beside the others.
    Job(Job<D>),
    /// Ends it in order.
    Close,
}

/// An open engine, from any thread.
pub struct FilesHandle<D = Device> {
    commands: mpsc::Sender<Command<D>>,
}

impl<D> Clone for FilesHandle<D> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone() }
    }
}

impl<D: BlockDevice + 'static> FilesHandle<D> {
    /// A handle, and what its engine is to take commands from.
    pub fn new() -> (Self, mpsc::Receiver<Command<D>>) {
        let (commands, queue) = mpsc::channel(JOBS_QUEUED_MAX);
        (Self { commands }, queue)
    }

    /// Runs a job on the engine's thread. [`FilesError::Ended`]: it may or may not have been done.
    pub async fn run<T, J, F>(&self, job: J) -> Result<T, FilesError>
    where
        T: Send + 'static,
        J: FnOnce(Rc<Filesystem<D>>) -> F + Send + 'static,
        F: Future<Output = Result<T, FilesError>> + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job<D> = Box::new(move |engine| Box::pin(async move { drop(answer.send(job(engine).await)) }));
        self.commands.send(Command::Job(job)).await.map_err(|_| FilesError::Ended)?;
        answered.await.map_err(|_| FilesError::Ended)?
    }

    /// Closes the engine, and waits until it has ended.
    pub async fn close(&self) {
        // An error says that it is ending already.
        let _ = self.commands.send(Command::Close).await;
        self.commands.closed().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }
}

/// Opens the filesystem on `device` and serves it; the whole life of the task. `opened` is told when jobs can begin.
pub async fn run<D: BlockDevice + 'static>(
    name: &str,
    device: D,
    options: Options,
    mut commands: mpsc::Receiver<Command<D>>,
    opened: oneshot::Sender<Result<Recovered, FilesError>>,
    nfs: Option<nfs::Start>,
    ended: CancellationToken,
) {
    let began = Instant::now();
    let opening = tokio::select! {
        opening = Filesystem::open(device, &options) => opening,
        () = ended.cancelled() => return,
    };
    let (engine, recovered) = match opening {
        Ok(open) => open,
        Err(why) => return drop(opened.send(Err(why.into()))),
    };
    let log_took = began.elapsed();
    let engine = Rc::new(engine);
    tokio::select! {
        () = serve(name, &engine, (recovered, log_took), &mut commands, (opened, nfs)) => {}
        () = ended.cancelled() => warn!(volume = %name, "the volume is not served here any more: its filesystem is dropped"),
    }
}

/// Serves an engine that has replayed its log, and took so long for that.
async fn serve<D: BlockDevice + 'static>(
    name: &str,
    engine: &Rc<Filesystem<D>>,
    (recovered, log_took): (Recovered, Duration),
    commands: &mut mpsc::Receiver<Command<D>>,
    (opened, nfs): (oneshot::Sender<Result<Recovered, FilesError>>, Option<nfs::Start>),
) {
    // Dropped, it ends all jobs.
    let mut jobs = JoinSet::new();
    let first = Rc::clone(engine);
    let label = name.to_owned();
    let (started, mut nfs_started) = oneshot::channel();
    let mut waits_for_nfs = nfs.is_some();
    jobs.spawn_local(async move {
        let began = Instant::now();
        // What clients have open lives on: their service knows what that is.
        let begun = match nfs {
            None => first.reclaim_orphans(&BTreeSet::new()).await.map_err(|why| FilesError::at(b"", why)),
            Some(start) => match nfs::start(&first, start).await {
                Ok((running, orphans)) => {
                    drop(started.send(running));
                    Ok(orphans)
                }
                Err(why) => Err(why.into()),
            },
        };
        match begun {
            Ok(orphans) => {
                let Recovered { transactions, blocks, .. } = recovered;
                // What is left of them does no harm: files can be served.
                let unfinished = content::remove_unfinished(&first).await.unwrap_or_else(|why| {
                    warn!(volume = %label, "files that were being written when a node ended are not removed: {why}");
                    0
                });
                // `bench files --pair --failovers` reads this line.
                let [log_ms, orphans_ms] = [log_took, began.elapsed()].map(|took| took.as_micros() as f64 / 1e3);
                info!(volume = %label, transactions, blocks, orphans, unfinished, log_ms, orphans_ms, "filesystem open");
                drop(opened.send(Ok(recovered)));
            }
            Err(why) => drop(opened.send(Err(why))),
        }
    });
    let drive = engine.drive();
    tokio::pin!(drive);
    let mut driving = true;
    let idle = tokio::time::sleep(IDLE_MAX);
    tokio::pin!(idle);
    let mut sync_due = tokio::time::interval(UNSYNCED_MAX);
    let mut syncs = JoinSet::new();
    let mut nfs: Option<nfs::Running> = None;
    loop {
        tokio::select! {
            running = &mut nfs_started, if waits_for_nfs => {
                waits_for_nfs = false;
                nfs = running.ok();
            }
            // Nobody is answered any more: whoever wants to serve begins anew.
            () = async { nfs.as_mut().expect("it runs").ended().await }, if nfs.is_some() => break,
            // It ends by itself only when nothing can be written any more; reading goes on.
            () = &mut drive, if driving => driving = false,
            Some(_) = jobs.join_next(), if !jobs.is_empty() => {
                idle.as_mut().reset(tokio::time::Instant::now() + IDLE_MAX);
            }
            () = &mut idle, if jobs.is_empty() && nfs.is_none() => break,
            _ = sync_due.tick(), if driving && syncs.is_empty() => {
                let engine = Rc::clone(engine);
                // What goes wrong is told to whoever syncs the file it happens to.
                syncs.spawn_local(async move { drop(engine.sync().await) });
            }
            Some(_) = syncs.join_next(), if !syncs.is_empty() => {}
            command = commands.recv() => match command {
                Some(Command::Job(job)) => drop(jobs.spawn_local(job(Rc::clone(engine)))),
                Some(Command::Close) | None => break,
            },
        }
    }
    let all_ended = async {
        if let Some(running) = nfs {
            running.stop().await;
        }
        while jobs.join_next().await.is_some() {}
    };
    let waited = tokio::time::timeout(JOBS_END_MAX, all_ended);
    tokio::pin!(waited);
    loop {
        tokio::select! {
            () = &mut drive, if driving => driving = false,
            _ = &mut waited => break,
        }
    }
    engine.stop();
    if driving {
        drive.await;
    }
    match engine.close().await {
        Ok(()) => info!(volume = %name, "filesystem closed"),
        Err(why) => {
            warn!(volume = %name, "filesystem not closed cleanly, it is recovered when it is opened next: {why}")
        }
    }
}

#[cfg(test)]
#[path = "mounted_tests.rs"]
mod tests;
