//! One volume's task on its shard: takes what happened from the inbox, asks the core, and has its orders carried out.
//!
//! A turn handles everything that waits, then submits to the ring once. The core sees the time of each event by itself,
//! read just before: a lease must not be judged by the clock of a turn that was held up.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use proto::{DiskId, Epoch, Incarnation, NodeId, Timestamp, VolumeId};
use replication::config::VolumeConfig;
use replication::event::{Attachment, Control, DiskReport, Event, IoResult, PayloadId};
use replication::{Action, Replica, Window};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::boot_time;
use super::device::{OpenOperation, Shared, VolumeDevice};
use super::handle::{
    CopyStatistics, DiskStart, Remote, SessionKind, SessionRefused, VolumeEnv, VolumeReport, VolumeStatus,
};
use super::inbox::{Inbox, Input};
use super::links::Links;
use super::payloads::{Held, Payloads};
use super::store_slot::{DiskState, Merge, PendingIo};
use crate::disk::{DiskDone, DiskError, DiskOp, DiskSink, FoundStore, OpenedStore, Ring, Store, StoreError};
use crate::peer::LinkEvent;

/// Inputs handled before the ring is submitted to and other tasks of the shard get their turn.
const INPUTS_PER_TURN_MAX: usize = 512;
/// A core that asks to be woken in the past is woken this much later: a defect must not stop the shard.
const TICK_LEAST: Duration = Duration::from_millis(1);
/// How long an opening store waits for the I/O of a former process to end.
const STORE_LOCK_WAIT: Duration = Duration::from_secs(30);

/// Longest time for which the timer is set.
const TICK_MOST: Duration = Duration::from_secs(3600);

/// How the actor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It goes on.
    No,
    /// Drained and flushed: the store may be recorded as clean.
    Stopped,
    /// The volume is gone.
    Removed,
}

/// One volume's shell.
pub(crate) struct Actor {
    pub(super) volume: VolumeId,
    pub(super) replica: Replica,
    pub(super) env: VolumeEnv,
    pub(super) ring: Rc<Ring>,
    pub(super) inbox: Rc<Inbox>,
    pub(super) shared: Rc<Shared>,
    pub(super) links: Links,
    pub(super) payloads: Payloads,
    pub(super) clients: FxHashMap<replication::OpId, OpenOperation>,
    pub(super) pending: Window<u64, PendingIo>,
    pub(super) last_tag: u64,
    pub(super) merges: FxHashMap<replication::IoId, Merge>,
    pub(super) disk: DiskState,
    /// Counts stores opened, so that the end of an older one is not taken for that of the newest.
    pub(super) generation: u64,
    /// Of the newest configuration.
    epoch: Option<Epoch>,
    /// The newest error of the local disk, for people.
    pub(super) disk_error: Option<String>,
    pub(super) ending: Ending,
    /// The copy had failed and is not in sync again yet.
    pub(super) copy_failed: bool,
    attach_waiter: Option<oneshot::Sender<Result<(), String>>>,
    attach_next: Option<(FoundStore, bool)>,
    end_waiters: Vec<oneshot::Sender<()>>,
    /// What comes from other threads until it is in the inbox.
    feeders: JoinSet<()>,
    config: watch::Receiver<Arc<VolumeConfig>>,
    actions: Vec<Action>,
}

impl Actor {
    /// A volume's shell that has not begun yet. Called on its shard.
    pub(crate) fn new(
        env: VolumeEnv,
        ring: Rc<Ring>,
        remote: mpsc::Receiver<Remote>,
        config: watch::Receiver<Arc<VolumeConfig>>,
    ) -> Self {
        let (volume, size_bytes) = {
            let held = config.borrow();
            (held.id, held.size_bytes)
        };
        let inbox = Rc::new(Inbox::default());
        let shared = Rc::new(Shared::new(Rc::clone(&inbox), volume, size_bytes, env.cluster.clone()));
        let me = env.identity;
        let mut feeders = JoinSet::new();
        feeders.spawn_local(feed_remotes(remote, Rc::clone(&inbox)));
        feeders.spawn_local(feed_configs(config.clone(), Rc::clone(&inbox)));
        Self {
            volume,
            replica: Replica::new(volume, me.node, me.incarnation, env.boot, env.timing, boot_time()),
            env,
            ring,
            inbox,
            shared,
            links: Links::default(),
            payloads: Payloads::default(),
            clients: FxHashMap::default(),
            pending: Window::default(),
            last_tag: 0,
            merges: FxHashMap::default(),
            disk: DiskState::Absent("not looked for yet".into()),
            generation: 0,
            epoch: None,
            disk_error: None,
            ending: Ending::No,
            copy_failed: false,
            attach_waiter: None,
            attach_next: None,
            end_waiters: Vec::new(),
            feeders,
            config,
            actions: Vec::new(),
        }
    }

    /// Runs until the volume is stopped or removed.
    pub(crate) async fn run(mut self, disk: DiskStart) {
        self.take_config();
        match disk {
            DiskStart::Open { found, suspect } => self.open(found, suspect),
            DiskStart::Without(state) => {
                self.disk = state;
                self.handle(Event::DiskUnavailable);
            }
        }
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        // When the timer goes off; earlier than needed is harmless, and cheaper than to set it anew every time.
        let mut alarm: Option<Timestamp> = None;
        loop {
            self.turn();
            if self.ending != Ending::No {
                break;
            }
            if !self.inbox.is_empty() {
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = self.replica.next_deadline();
            if alarm.is_none_or(|at| deadline < at) {
                let wait = Duration::from_micros(deadline.since(boot_time()).0).clamp(TICK_LEAST, TICK_MOST);
                sleep.as_mut().reset(tokio::time::Instant::now() + wait);
                alarm = Some(deadline);
            }
            alarm = poll_fn(|cx| match self.inbox.poll_pushed(cx) {
                Poll::Ready(()) => Poll::Ready(alarm),
                Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
            })
            .await;
        }
        self.finish().await;
    }

    /// Handles what waits, then submits what came of it.
    fn turn(&mut self) {
        if boot_time() >= self.replica.next_deadline() {
            self.handle(Event::Tick);
        }
        for _ in 0..INPUTS_PER_TURN_MAX {
            let Some(input) = self.inbox.pop() else { break };
            self.on_input(input);
            if self.ending != Ending::No {
                break;
            }
        }
        // The peers first: they work while the system call of the submission is still on its way.
        self.links.flush();
        self.ring.submit();
    }

    /// Gives the core a fact and carries out what it orders.
    pub(super) fn handle(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.replica.handle(boot_time(), event, &mut actions);
        for action in actions.drain(..) {
            self.dispatch(action);
        }
        self.actions = actions;
        self.shared.local.set(self.replica.serves_locally());
    }

    /// The newest configuration.
    fn take_config(&mut self) {
        let config = self.config.borrow().clone();
        self.on_config(&config);
    }

    fn on_config(&mut self, config: &Arc<VolumeConfig>) {
        let me = self.env.identity;
        self.handle(Event::Config(Box::new(VolumeConfig::clone(config))));
        let before = self.epoch.replace(config.epoch);
        let primary = (config.primary, config.primary_incarnation);
        if must_look_anew((me.node, me.incarnation), before, (primary, config.epoch)) {
            self.shared.serving.replace(CancellationToken::new()).cancel();
        }
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Fact(event) => self.handle(event),
            Input::Config => self.take_config(),
            Input::Remote(remote) => self.on_remote(remote),
            Input::Orphaned => self.ending = Ending::Removed,
            Input::Client { op, request, payload, open } => {
                if let Some(held) = payload {
                    self.payloads.hold(PayloadId::Client(op), held);
                }
                self.clients.insert(op, open);
                self.handle(Event::Client { op, request });
            }
            Input::Disk(done) => self.on_disk_done(done),
            Input::Link { link, event: LinkEvent::Frame { envelope, message, payload, sums } } => {
                let payload = payload.map(|bytes| self.payloads.hold_frame(bytes, sums));
                if self.payloads.is_over_frame_bound() || self.inbox.is_full_of_frames() {
                    self.links.close(link, "more data than this node can hold is in flight on this link");
                }
                self.handle(Event::Frame { link, envelope, message, payload });
            }
            Input::Link { link, event: LinkEvent::Down { .. } } => {
                if self.links.ended(link, self.volume, &self.env, &self.inbox) {
                    self.handle(Event::LinkDown { link });
                }
            }
            Input::Dialled { peer, ready } => {
                if self.links.wants(peer) && !self.start_link(ready, true) {
                    self.links.dial_ended(peer, Duration::ZERO, self.volume, &self.env, &self.inbox);
                }
            }
            Input::Opened { generation, result, suspect, fence } => self.on_opened(generation, result, suspect, fence),
            Input::Closed { generation } => self.on_closed(generation),
        }
    }

    fn on_remote(&mut self, remote: Remote) {
        match remote {
            Remote::Fact(event) => self.handle(event),
            Remote::Accepted(ready) => {
                self.start_link(ready, false);
            }
            Remote::Session { kind, start, answer } => drop(answer.send(self.start_session(kind, start))),
            Remote::Status(answer) => {
                let replica = self.replica.status(boot_time());
                let copy = self.shared.store.borrow().as_ref().map(|store| CopyStatistics {
                    counters: store.counters(),
                    hot_extents: store.hot_extents(),
                    last_scrub: store.last_scrub(),
                });
                let (disk, clients) = (self.disk.clone(), self.shared.clients.get());
                let acknowledged = self.shared.acknowledged.get();
                let _ = answer.send(VolumeStatus { replica, disk, copy, clients, acknowledged });
            }
            Remote::Attach { found, suspect, done } => self.on_attach(found, suspect, done),
            Remote::Stop(done) => {
                self.end_waiters.push(done);
                self.handle(Event::Control(Control::Stop));
            }
            Remote::Removed(done) => {
                self.end_waiters.push(done);
                self.handle(Event::VolumeRemoved);
                self.ending = Ending::Removed;
            }
        }
    }

    fn start_link(&mut self, ready: crate::peer::ReadyLink, outbound: bool) -> bool {
        let protocol = ready.version;
        match self.links.start(ready, outbound, &self.inbox) {
            Ok((link, peer)) => {
                self.handle(Event::LinkUp { peer, link, outbound, protocol });
                true
            }
            Err(why) => {
                warn!(volume = %self.volume, "a link could not be started: {why}");
                false
            }
        }
    }

    fn start_session(&mut self, kind: SessionKind, start: super::SessionStart) -> Result<(), SessionRefused> {
        let shared = Rc::clone(&self.shared);
        let clients = shared.clients.get();
        match kind {
            _ if shared.files.get() => return Err(SessionRefused::Files),
            SessionKind::Files if clients > 0 => return Err(SessionRefused::Clients(clients)),
            SessionKind::Files => shared.files.set(true),
            SessionKind::Client => shared.clients.set(clients + 1),
        }
        let serving = shared.serving.borrow().clone();
        let session = start(Rc::new(VolumeDevice::new(Rc::clone(&shared))), serving);
        tokio::task::spawn_local(async move {
            session.await;
            match kind {
                SessionKind::Client => shared.clients.set(shared.clients.get() - 1),
                SessionKind::Files => shared.files.set(false),
            }
        });
        Ok(())
    }

    /// Begins to open a store; `Opened` follows.
    fn open(&mut self, found: FoundStore, suspect: bool) {
        self.generation += 1;
        let generation = self.generation;
        self.disk = DiskState::Opening { disk_id: found.disk_id, path: found.path.clone() };
        let (env, ring, inbox, volume) = (self.env.clone(), Rc::clone(&self.ring), Rc::clone(&self.inbox), self.volume);
        let sink: DiskSink = {
            let inbox = Rc::clone(&inbox);
            Rc::new(move |done| inbox.push(Input::Disk(done)))
        };
        tokio::task::spawn_local(async move {
            let fence = env.fences.get(volume).await;
            let result = Store::open(ring, &found, env.boot, STORE_LOCK_WAIT, sink).await.map(Box::new);
            inbox.push(Input::Opened { generation, result, suspect, fence });
        });
    }

    fn on_opened(
        &mut self,
        generation: u64,
        result: Result<Box<OpenedStore>, StoreError>,
        suspect: bool,
        fence: (proto::Epoch, proto::ConfigVersion),
    ) {
        if generation != self.generation {
            return;
        }
        let OpenedStore { store, hot, bitmaps } = match result {
            Ok(opened) => *opened,
            Err(why) => {
                error!(volume = %self.volume, "store not used: {why}");
                self.disk = DiskState::Absent(why.to_string());
                self.handle(Event::DiskUnavailable);
                return self.answer_attach(Err(why.to_string()));
            }
        };
        let (found, scrubs) = (store.found().clone(), store.past_scrubs());
        // The mark of a failure a moment ago may still be on its way to the node's list.
        let suspect = suspect || self.copy_failed;
        let FoundStore { disk_id, last_in_sync, .. } = found;
        let report = DiskReport { disk_id, last_in_sync, suspect: found.suspect || suspect, failed: suspect, fence };
        info!(volume = %self.volume, path = %found.path.display(), suspect = report.suspect, "store open");
        self.disk = DiskState::Open { disk_id, path: found.path, data_offset: found.data_offset };
        self.shared.store.replace(Some(store));
        self.disk_error = None;
        self.copy_failed = suspect;
        let attachment = Box::new(Attachment { report, hot, bitmaps, scrubs });
        if suspect && !found.suspect {
            let mark = PendingIo::SuspectMark(attachment);
            self.start_io(mark, DiskOp::PersistState { last_in_sync, suspect: true });
        } else {
            self.handle(Event::DiskAttached(attachment));
            self.answer_attach(Ok(()));
        }
    }

    fn answer_attach(&mut self, answer: Result<(), String>) {
        if let Some(waiter) = self.attach_waiter.take() {
            let _ = waiter.send(answer);
        }
    }

    fn on_attach(&mut self, found: FoundStore, suspect: bool, done: oneshot::Sender<Result<(), String>>) {
        match &self.disk {
            DiskState::Open { .. } | DiskState::Opening { .. } => {
                let _ = done.send(Err("the volume's disk is attached already".into()));
            }
            DiskState::Closing { .. } => {
                self.attach_waiter = Some(done);
                self.attach_next = Some((found, suspect));
            }
            DiskState::Absent(_) | DiskState::Detached { .. } => {
                self.attach_waiter = Some(done);
                self.open(found, suspect);
            }
        }
    }

    fn on_closed(&mut self, generation: u64) {
        if generation != self.generation {
            return;
        }
        if let DiskState::Closing { disk_id, failed, why } = self.disk.clone() {
            self.disk = DiskState::Detached { disk_id, failed, why };
        }
        if let Some((found, suspect)) = self.attach_next.take() {
            self.open(found, suspect);
        }
    }

    fn on_disk_done(&mut self, done: DiskDone) {
        let Some(pending) = self.pending.remove(&done.tag) else {
            error!(volume = %self.volume, tag = done.tag, "a disk operation ended that was not started");
            return;
        };
        match &done.result {
            Ok(()) => {}
            Err(why @ DiskError::Corrupt(_)) => warn!(volume = %self.volume, "disk: {pending:?}: {why}"),
            Err(why) => {
                warn!(volume = %self.volume, "disk: {pending:?} failed: {why}");
                self.disk_error = Some(why.to_string());
            }
        }
        self.on_io_done(pending, done);
    }

    /// The end of a disk operation, or of one that had no disk.
    fn on_io_done(&mut self, pending: PendingIo, done: DiskDone) {
        let DiskDone { data, sums, .. } = done;
        let (result, bad) = match done.result {
            Ok(()) => (IoResult::Ok, Vec::new()),
            Err(DiskError::Corrupt(bad)) => (IoResult::Failed, bad),
            Err(DiskError::OutOfSpace) => (IoResult::NoSpace, Vec::new()),
            Err(DiskError::Misuse(_) | DiskError::Io(_)) => (IoResult::Failed, Vec::new()),
        };
        match pending {
            PendingIo::Read(io) | PendingIo::Write(io) => {
                if let (PendingIo::Read(_), Some(data)) = (&pending, data) {
                    self.payloads.hold(PayloadId::Io(io), Held::Whole { data, sums });
                }
                match bad.is_empty() {
                    true => self.handle(Event::LocalDone { io, result }),
                    false => self.handle(Event::Corrupt { io, bad }),
                }
            }
            PendingIo::ActivityLog(io) => self.handle(Event::ActivityLogPersisted { io, result }),
            PendingIo::ReplicaState { io, suspect } => {
                if self.copy_failed && !suspect && result == IoResult::Ok {
                    self.copy_failed = false;
                    let report = VolumeReport::CopyRestored { volume: self.volume, disk_id: self.disk_id() };
                    // Lost, it costs a comparison of the whole volume at the next start, and no data.
                    let _ = self.env.reports.try_send(report);
                }
                self.handle(Event::ReplicaStatePersisted { io, result });
            }
            PendingIo::SuspectMark(attachment) if result == IoResult::Ok => {
                self.handle(Event::DiskAttached(attachment));
                self.answer_attach(Ok(()));
            }
            PendingIo::SuspectMark(_) => {
                self.detach_disk(true);
                self.answer_attach(Err("the store's superblock cannot be written".into()));
            }
            PendingIo::Edge { merge, block } => self.on_edge_read(merge, block, result, data, bad),
        }
    }

    async fn finish(mut self) {
        let clean = self.ending == Ending::Stopped;
        self.shared.serving.borrow().cancel();
        self.links.close_all("the volume stops");
        self.inbox.close();
        self.feeders.abort_all();
        self.clients.clear();
        let store = self.shared.store.take();
        if let Some(store) = store {
            // A store whose operations hang must not keep the others from stopping: the node bounds this wait.
            match store.close(clean).await {
                Ok(()) => info!(volume = %self.volume, clean, "store closed"),
                Err(why) => warn!(volume = %self.volume, "store not closed cleanly: {why}"),
            }
        }
        let _ = self.env.reports.send(VolumeReport::Ended { volume: self.volume }).await;
        self.end_waiters.clear();
    }

    /// The copy in use, or last used.
    pub(super) fn disk_id(&self) -> DiskId {
        match &self.disk {
            DiskState::Absent(_) => DiskId::default(),
            DiskState::Opening { disk_id, .. }
            | DiskState::Open { disk_id, .. }
            | DiskState::Closing { disk_id, .. }
            | DiskState::Detached { disk_id, .. } => *disk_id,
        }
    }
}

/// Hands on what other threads send, one by one.
async fn feed_remotes(mut remotes: mpsc::Receiver<Remote>, inbox: Rc<Inbox>) {
    while let Some(remote) = remotes.recv().await {
        inbox.push_remote(remote).await;
    }
    inbox.push(Input::Orphaned);
}

/// Tells of each new configuration; of several in a row maybe once. True when whoever is connected here must look for the primary
/// anew, and remember nothing of the volume: it is served elsewhere, or by another run of this node; or was in between, though
/// that configuration was never seen here, since only the newest is.
fn must_look_anew(me: (NodeId, Incarnation), before: Option<Epoch>, now: ((NodeId, Incarnation), Epoch)) -> bool {
    let (primary, epoch) = now;
    primary != me || before.is_some_and(|before| before != epoch)
}

async fn feed_configs(mut configs: watch::Receiver<Arc<VolumeConfig>>, inbox: Rc<Inbox>) {
    while configs.changed().await.is_ok() {
        inbox.push(Input::Config);
    }
    inbox.push(Input::Orphaned);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_as_secondary_that_was_never_seen_ends_sessions_too() {
        let (me, other) = ((NodeId(1), Incarnation(7)), (NodeId(2), Incarnation(3)));
        let looks =
            |before: Option<u64>, primary, epoch| must_look_anew(me, before.map(Epoch), (primary, Epoch(epoch)));
        assert!(!looks(None, me, 5) && !looks(Some(5), me, 5));
        assert!(looks(Some(5), other, 6) && looks(Some(5), (me.0, Incarnation(8)), 6));
        assert!(looks(Some(5), me, 7), "under epoch 6 it was somebody else's");
    }
}
