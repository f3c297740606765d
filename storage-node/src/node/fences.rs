//! The node's durable fences: one thread owns the file, and collects what volumes raise at the same time into one write.

use proto::{ConfigVersion, Epoch, VolumeId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::disk::FenceFile;

/// Requests that may wait for the file.
const FENCE_REQUESTS_MAX: usize = 1024;

/// The fence could not be made durable; the node must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the fence file cannot be written")]
pub struct FenceLost;

enum Request {
    Get { volume: VolumeId, answer: oneshot::Sender<(Epoch, ConfigVersion)> },
    Raise { volume: VolumeId, epoch: Epoch, version: ConfigVersion, done: oneshot::Sender<()> },
}

/// A handle to the fence file; cheap to clone.
#[derive(Clone, Debug)]
pub struct Fences {
    requests: mpsc::Sender<Request>,
}

impl Fences {
    /// Starts the thread. `on_failure` is called once when the file cannot be written; nothing is answered after that.
    pub fn start(file: FenceFile, on_failure: impl FnOnce(String) + Send + 'static) -> std::io::Result<Self> {
        let (requests, queue) = mpsc::channel(FENCE_REQUESTS_MAX);
        std::thread::Builder::new().name("fences".into()).spawn(move || run(file, queue, on_failure))?;
        Ok(Self { requests })
    }

    /// The durable fence of a volume; zeros if none.
    pub async fn get(&self, volume: VolumeId) -> (Epoch, ConfigVersion) {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::Get { volume, answer }).await.is_err() {
            std::future::pending::<()>().await;
        }
        match answered.await {
            Ok(fence) => fence,
            // The file failed and the node stops: an unknown fence must never be taken for none.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns once the fence of `volume` is durably at least this.
    pub async fn raise(&self, volume: VolumeId, epoch: Epoch, version: ConfigVersion) -> Result<(), FenceLost> {
        let (done, is_done) = oneshot::channel();
        self.requests.send(Request::Raise { volume, epoch, version, done }).await.map_err(|_| FenceLost)?;
        is_done.await.map_err(|_| FenceLost)
    }
}

fn run(mut file: FenceFile, mut queue: mpsc::Receiver<Request>, on_failure: impl FnOnce(String)) {
    let mut batch = Vec::new();
    while queue.blocking_recv_many(&mut batch, FENCE_REQUESTS_MAX) > 0 {
        let mut raised = Vec::new();
        let mut waiters = Vec::new();
        for request in batch.drain(..) {
            match request {
                Request::Get { volume, answer } => {
                    let _ = answer.send(file.get(volume));
                }
                Request::Raise { volume, epoch, version, done } => {
                    raised.push((volume, epoch, version));
                    waiters.push(done);
                }
            }
        }
        if raised.is_empty() {
            continue;
        }
        if let Err(why) = file.raise(&raised) {
            error!("the fence file cannot be written: {why}");
            return on_failure(why.to_string());
        }
        for done in waiters {
            let _ = done.send(());
        }
    }
}
