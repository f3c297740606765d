//! The data plane's threads. Each has a current-thread runtime and one io_uring; a volume is pinned to one of them.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use replication::config::VolumeConfig;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tracing::error;

use super::actor::Actor;
use super::handle::{DiskStart, REMOTE_INBOX_MAX, Remote, VolumeEnv, VolumeHandle};
use crate::disk::Ring;

/// Submission slots of a shard's ring.
const RING_ENTRIES: u32 = 512;
/// Volumes that may wait to be started on a shard.
const STARTS_QUEUED_MAX: usize = 64;

/// A volume to start.
struct Start {
    env: VolumeEnv,
    disk: DiskStart,
    remote: mpsc::Receiver<Remote>,
    config: watch::Receiver<Arc<VolumeConfig>>,
}

/// One data plane thread. It ends when this is dropped and its volumes have ended.
#[derive(Debug)]
pub struct Shard {
    starts: mpsc::Sender<Start>,
}

/// All of a node's data plane threads.
#[derive(Debug)]
pub struct Shards {
    shards: Vec<Shard>,
}

impl Shard {
    /// Starts the thread; an error is that of the thread, its runtime, or its ring.
    pub fn spawn(index: usize) -> io::Result<Self> {
        let (starts, queue) = mpsc::channel(STARTS_QUEUED_MAX);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || run(queue, &ready))?;
        is_ready.recv().map_err(|_| io::Error::other("the shard's thread ended at its start"))??;
        Ok(Self { starts })
    }
}

impl Shards {
    /// Starts `count` threads.
    pub fn spawn(count: usize) -> io::Result<Self> {
        Ok(Self { shards: (0..count).map(Shard::spawn).collect::<io::Result<_>>()? })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// Starts a volume on shard `shard`. `None` when the shard has ended.
    pub async fn start_volume(
        &self,
        shard: usize,
        env: VolumeEnv,
        config: &VolumeConfig,
        disk: DiskStart,
    ) -> Option<VolumeHandle> {
        let (remote, remote_queue) = mpsc::channel(REMOTE_INBOX_MAX);
        let (config_sender, config_queue) = watch::channel(Arc::new(config.clone()));
        let start = Start { env, disk, remote: remote_queue, config: config_queue };
        self.shards.get(shard)?.starts.send(start).await.ok()?;
        Some(VolumeHandle { volume: config.id, shard, remote, config: Arc::new(config_sender) })
    }
}

fn run(mut queue: mpsc::Receiver<Start>, ready: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = match builder.enable_all().on_thread_unpark(Ring::look).build() {
        Ok(runtime) => runtime,
        Err(why) => return drop(ready.send(Err(why))),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let ring = match Ring::start(RING_ENTRIES) {
            Ok(ring) => ring,
            Err(why) => return drop(ready.send(Err(why))),
        };
        let _ = ready.send(Ok(()));
        let (all_ended, ended) = oneshot::channel::<()>();
        let all_ended = Rc::new(all_ended);
        while let Some(start) = queue.recv().await {
            let actor = Actor::new(start.env, Rc::clone(&ring), start.remote, start.config);
            let alive = Rc::clone(&all_ended);
            tokio::task::spawn_local(async move {
                actor.run(start.disk).await;
                drop(alive);
            });
        }
        drop(all_ended);
        if ended.await.is_ok() {
            error!("a shard's end was announced by nobody");
        }
    });
}
