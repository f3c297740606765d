//! What the demo tells: lines with the time since its start, its own steps and what the cluster reports meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::admin as pb;
use proto::admin::event::Kind;
use proto::admin::watch_client::WatchClient;
use tokio::task::JoinSet;

use super::control::Control;
use crate::admin::client::connect;

/// Between attempts to watch a node that is away.
const RETRY: Duration = Duration::from_millis(200);

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    begun: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Newest version told, by volume: several nodes report the same change.
    told: Mutex<BTreeMap<String, u64>>,
    resync_blocks: AtomicU64,
}

impl Timeline {
    /// Begins now.
    pub(super) fn begin() -> Self {
        Timeline { begun: Instant::now(), shared: Arc::default() }
    }

    /// One step of the demo.
    pub(super) fn step(&self, text: &str) {
        println!("[{:6.2} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Something that the cluster did.
    fn report(&self, text: &str) {
        println!("[{:6.2} s]     · {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Blocks that the newest resync sent.
    pub(super) fn resync_blocks(&self) -> u64 {
        self.shared.resync_blocks.load(Ordering::Relaxed)
    }

    /// Forgets earlier resyncs.
    pub(super) fn expect_resync(&self) {
        self.shared.resync_blocks.store(0, Ordering::Relaxed);
    }

    /// Notes progress of a resync seen elsewhere.
    pub(super) fn note_resync(&self, blocks: u64) {
        self.shared.resync_blocks.fetch_max(blocks, Ordering::Relaxed);
    }

    /// Tells the events of these nodes until the set is dropped.
    pub(super) fn watch(&self, control: &Control) -> JoinSet<()> {
        let mut watchers = JoinSet::new();
        for address in control.addresses.clone() {
            let (timeline, transport) = (self.clone(), control.transport.clone());
            watchers.spawn(async move {
                loop {
                    if let Ok(channel) = connect(&transport, &address).await
                        && let Ok(events) = WatchClient::new(channel).events(pb::EventsRequest::default()).await
                    {
                        let mut events = events.into_inner();
                        while let Ok(Some(event)) = events.message().await {
                            timeline.on_event(&event);
                        }
                    }
                    tokio::time::sleep(RETRY).await;
                }
            });
        }
        watchers
    }

    fn on_event(&self, event: &pb::Event) {
        match &event.kind {
            Some(Kind::Configuration(change))
                if change.phase() == pb::Phase::Active && self.is_new(&event.volume, change.version) =>
            {
                self.report(&format!(
                    "on record for \"{}\": {} is primary, in sync: {} (epoch {})",
                    event.volume,
                    change.primary_name,
                    change.in_sync.join(" and "),
                    change.epoch
                ));
            }
            Some(Kind::Resync(resync)) => {
                self.note_resync(resync.sent_blocks);
                if resync.done {
                    let (volume, node) = (&event.volume, &resync.node_name);
                    self.report(&format!("resync of \"{volume}\" on {node} done, {} blocks sent", resync.sent_blocks));
                }
            }
            Some(Kind::DiskDetached(detached)) if detached.failed => {
                self.report(&format!("{}: the disk failed and was detached", event.node_name));
            }
            _ => {}
        }
    }

    fn is_new(&self, volume: &str, version: u64) -> bool {
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = told.entry(volume.to_owned()).or_default();
        let new = version > *newest;
        *newest = version.max(*newest);
        new
    }
}
