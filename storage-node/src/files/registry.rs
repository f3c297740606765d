//! Which filesystems are open on this node: each is opened on its first use, and by one engine only.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use filesystem::engine::Options;
use proto::VolumeId;
use tokio::sync::{MutexGuard, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::FilesError;
use super::mounted::{self, FilesHandle};
use super::real_time;
use crate::nfs;
use crate::volume::{SessionKind, SessionStart, VolumeDevice, VolumeHandle};

/// How long somebody waits for an engine that is being opened or closed by somebody else.
const TURN_MAX: Duration = Duration::from_secs(10);
/// How long an engine may take to close before a role is handed over anyway.
pub const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Of its memory an engine gives this part to data that waits to be written, and the rest to blocks.
const DATA_PART: usize = 4;

/// The filesystems of a node.
#[derive(Debug)]
pub struct Registry {
    memory_bytes_max: usize,
    slots: Mutex<BTreeMap<VolumeId, Arc<Slot>>>,
}

/// How a volume's files are served over NFS as long as its engine is open.
pub struct NfsBinding {
    /// Makes what starts the service; none when that cannot be now.
    pub start: Box<dyn Fn() -> Option<nfs::Start> + Send + Sync>,
    /// Takes the addresses away, after which nothing reaches the clients; may block for a moment. What is done before the
    /// engine is closed in order, since connections end with it.
    pub release: Arc<dyn Fn() + Send + Sync>,
}

/// One volume's place.
#[derive(Default)]
struct Slot {
    /// Held while the engine is opened or closed, and while the filesystem is made or checked.
    engine: tokio::sync::Mutex<Option<FilesHandle>>,
    /// A session of ours has the volume.
    in_use: AtomicBool,
    /// Its files are served over NFS as long as its engine is open.
    nfs: Mutex<Option<NfsBinding>>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("in_use", &self.in_use).finish_non_exhaustive()
    }
}

/// Marks a slot while it exists.
struct InUse(Arc<Slot>);

impl InUse {
    fn mark(slot: Arc<Slot>) -> Self {
        slot.in_use.store(true, Ordering::Release);
        Self(slot)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_use.store(false, Ordering::Release);
    }
}

impl Registry {
    /// None is open. Each engine keeps so many bytes in memory at most, beyond metadata that is not at home yet.
    pub fn new(memory_bytes_max: usize) -> Self {
        Self { memory_bytes_max, slots: Mutex::default() }
    }

    /// How filesystems are opened here.
    pub fn options(&self, read_only: bool) -> Options {
        let data_bytes_max = self.memory_bytes_max / DATA_PART;
        Options { cache_bytes_max: self.memory_bytes_max - data_bytes_max, data_bytes_max, read_only, clock: real_time }
    }

    /// True while the volume is used by an engine, or its filesystem is made or checked.
    pub fn is_in_use(&self, volume: VolumeId) -> bool {
        self.slot(volume).in_use.load(Ordering::Acquire)
    }

    /// The volume's engine; opened if it is not open. `name` is that of the volume, for the log.
    pub async fn get(&self, name: &str, volume: &VolumeHandle) -> Result<FilesHandle, FilesError> {
        let slot = self.slot(volume.volume());
        let mut engine = turn(&slot).await?;
        if let Some(open) = &*engine {
            if open.run(|_| async { Ok(()) }).await.is_ok() {
                return Ok(open.clone());
            }
            // It is on its way out, by itself.
            tokio::time::timeout(TURN_MAX, open.ended()).await.map_err(|_| FilesError::Busy)?;
        }
        *engine = None;
        let (handle, queue) = FilesHandle::new();
        let (opened, is_open) = oneshot::channel();
        let nfs = slot.nfs.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|nfs| (nfs.start)());
        let (options, name, in_slot) = (self.options(false), name.to_owned(), Arc::clone(&slot));
        let start: SessionStart = Box::new(move |device, ended| {
            Box::pin(async move {
                let _in_use = InUse::mark(in_slot);
                mounted::run(&name, device, options, queue, opened, nfs, ended).await;
            })
        });
        volume.run_session(SessionKind::Files, start).await?;
        is_open.await.map_err(|_| FilesError::Ended)??;
        *engine = Some(handle.clone());
        Ok(handle)
    }

    /// From the next opening of the volume's engine on, its files are served over NFS, or no longer.
    pub fn set_nfs(&self, volume: VolumeId, nfs: Option<NfsBinding>) {
        *self.slot(volume).nfs.lock().unwrap_or_else(PoisonError::into_inner) = nfs;
    }

    /// Closes the volume's engine, if there is one. False: it is still not closed, after [`CLOSE_MAX`].
    pub async fn close(&self, volume: VolumeId) -> bool {
        let slot = self.slot(volume);
        let closing = async {
            let mut engine = slot.engine.lock().await;
            if let Some(open) = engine.take() {
                let nfs = slot
                    .nfs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .as_ref()
                    .map(|nfs| Arc::clone(&nfs.release));
                if let Some(release) = nfs {
                    // It was either done or panicked, which the process does not outlive.
                    let _ = tokio::task::spawn_blocking(move || release()).await;
                }
                open.close().await;
            }
        };
        tokio::time::timeout(CLOSE_MAX, closing).await.is_ok()
    }

    /// Has the volume for something that needs it alone: no engine, no client of the block device. The work is dropped when
    /// this node stops serving the volume.
    pub async fn alone<T, W, F>(&self, volume: &VolumeHandle, work: W) -> Result<T, FilesError>
    where
        T: Send + 'static,
        W: FnOnce(Rc<VolumeDevice>) -> F + Send + 'static,
        F: Future<Output = Result<T, FilesError>> + 'static,
    {
        let slot = self.slot(volume.volume());
        let mut engine = turn(&slot).await?;
        if let Some(open) = engine.take() {
            tokio::time::timeout(TURN_MAX, open.close()).await.map_err(|_| FilesError::Busy)?;
        }
        let (answer, answered) = oneshot::channel();
        let in_slot = Arc::clone(&slot);
        let start: SessionStart = Box::new(move |device, ended: CancellationToken| {
            Box::pin(async move {
                let _in_use = InUse::mark(in_slot);
                tokio::select! {
                    result = work(device) => drop(answer.send(result)),
                    () = ended.cancelled() => {}
                }
            })
        });
        volume.run_session(SessionKind::Files, start).await?;
        answered.await.map_err(|_| FilesError::Ended)?
    }

    fn slot(&self, volume: VolumeId) -> Arc<Slot> {
        Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(volume).or_default())
    }
}

async fn turn(slot: &Slot) -> Result<MutexGuard<'_, Option<FilesHandle>>, FilesError> {
    tokio::time::timeout(TURN_MAX, slot.engine.lock()).await.map_err(|_| FilesError::Busy)
}
