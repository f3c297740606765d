//! The connections of one volume: those that stand, and those being dialled.

use std::rc::Rc;
use std::time::Duration;

use proto::NodeId;
use proto::VolumeId;
use replication::event::LinkId;
use rustc_hash::FxHashMap;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::debug;

use super::handle::VolumeEnv;
use super::inbox::{Inbox, Input};
use crate::peer::{LinkSender, LinkSink, ReadyLink};

/// Connections that may stand for one volume at once; one more closes the oldest.
pub(crate) const LINKS_MAX: usize = 8;
/// Longest wait between two attempts to dial.
pub(crate) const DIAL_BACKOFF_MAX: Duration = Duration::from_millis(500);
const DIAL_BACKOFF_FIRST: Duration = Duration::from_millis(20);
/// One attempt takes at most this.
const DIAL_ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// A connection that stood this long makes the next dial start without a wait.
const STOOD_LONG_ENOUGH: Duration = Duration::from_secs(2);

/// A standing connection.
struct Up {
    peer: NodeId,
    outbound: bool,
    since: Instant,
    sender: LinkSender,
}

/// A peer that is to be kept connected.
struct Dial {
    backoff: Duration,
    task: Option<AbortHandle>,
}

/// All connections of a volume.
#[derive(Default)]
pub(crate) struct Links {
    next: u64,
    up: FxHashMap<LinkId, Up>,
    dials: FxHashMap<NodeId, Dial>,
}

impl Links {
    /// Starts a connection whose handshake agreed and gives its number. An old one makes room if there are too many.
    pub(crate) fn start(
        &mut self,
        ready: ReadyLink,
        outbound: bool,
        inbox: &Rc<Inbox>,
    ) -> std::io::Result<(LinkId, NodeId)> {
        if self.up.len() >= LINKS_MAX
            && let Some(oldest) = self.up.keys().min().copied()
        {
            self.close(oldest, "too many links for one volume");
        }
        self.next += 1;
        let link = LinkId(self.next);
        let peer = ready.peer;
        let sink: LinkSink = {
            let inbox = Rc::clone(inbox);
            Rc::new(move |event| inbox.push(Input::Link { link, event }))
        };
        let sender = ready.start(sink)?;
        self.up.insert(link, Up { peer, outbound, since: Instant::now(), sender });
        Ok((link, peer))
    }

    /// The sender of a standing connection.
    pub(crate) fn sender(&self, link: LinkId) -> Option<&LinkSender> {
        self.up.get(&link).map(|up| &up.sender)
    }

    /// Gives what the turn queued to the sockets.
    pub(crate) fn flush(&self) {
        self.up.values().for_each(|up| up.sender.flush());
    }

    /// Asks for the end of a connection; its `Down` follows.
    pub(crate) fn close(&self, link: LinkId, why: &str) {
        if let Some(up) = self.up.get(&link) {
            up.sender.close(why);
        }
    }

    /// Closes everything and dials no more.
    pub(crate) fn close_all(&mut self, why: &str) {
        for (_, dial) in self.dials.drain() {
            dial.stop();
        }
        self.up.values().for_each(|up| up.sender.close(why));
    }

    /// Keeps `peer` connected from now on.
    pub(crate) fn keep(&mut self, peer: NodeId, volume: VolumeId, env: &VolumeEnv, inbox: &Rc<Inbox>) {
        if self.dials.contains_key(&peer) {
            return;
        }
        self.dials.insert(peer, Dial { backoff: Duration::ZERO, task: None });
        self.redial(peer, volume, env, inbox);
    }

    /// Stops keeping `peer` connected and closes what was dialled to it.
    pub(crate) fn drop_peer(&mut self, peer: NodeId) {
        if let Some(dial) = self.dials.remove(&peer) {
            dial.stop();
        }
        for up in self.up.values().filter(|up| up.peer == peer && up.outbound) {
            up.sender.close("not needed any more");
        }
    }

    /// True while `peer` is to be kept connected.
    pub(crate) fn wants(&self, peer: NodeId) -> bool {
        self.dials.contains_key(&peer)
    }

    /// A connection ended: forgets it, and dials again if that peer is to be kept. False when it was not known.
    pub(crate) fn ended(&mut self, link: LinkId, volume: VolumeId, env: &VolumeEnv, inbox: &Rc<Inbox>) -> bool {
        let Some(up) = self.up.remove(&link) else { return false };
        if up.outbound && self.dials.contains_key(&up.peer) {
            self.dial_ended(up.peer, up.since.elapsed(), volume, env, inbox);
        }
        true
    }

    /// A dialled connection could not be started, or ended after `stood`: tries again, later each time.
    pub(crate) fn dial_ended(
        &mut self,
        peer: NodeId,
        stood: Duration,
        volume: VolumeId,
        env: &VolumeEnv,
        inbox: &Rc<Inbox>,
    ) {
        if let Some(dial) = self.dials.get_mut(&peer) {
            dial.backoff = match stood >= STOOD_LONG_ENOUGH {
                true => Duration::ZERO,
                false => (dial.backoff * 2).clamp(DIAL_BACKOFF_FIRST, DIAL_BACKOFF_MAX),
            };
            self.redial(peer, volume, env, inbox);
        }
    }

    fn redial(&mut self, peer: NodeId, volume: VolumeId, env: &VolumeEnv, inbox: &Rc<Inbox>) {
        let standing = self.up.values().any(|up| up.peer == peer && up.outbound);
        let Some(dial) = self.dials.get_mut(&peer) else { return };
        if standing {
            return;
        }
        let task =
            tokio::task::spawn_local(dial_until_connected(peer, volume, dial.backoff, env.clone(), Rc::clone(inbox)));
        if let Some(former) = dial.task.replace(task.abort_handle()) {
            former.abort();
        }
    }
}

impl Dial {
    fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.close_all("the volume's actor ended");
    }
}

async fn dial_until_connected(peer: NodeId, volume: VolumeId, first_wait: Duration, env: VolumeEnv, inbox: Rc<Inbox>) {
    let mut wait = first_wait;
    loop {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).clamp(DIAL_BACKOFF_FIRST, DIAL_BACKOFF_MAX);
        let address = env.cluster.borrow().nodes.get(&peer).map(|node| node.peer_address.clone());
        let Some(address) = address else { continue };
        let attempt = ReadyLink::dial(&env.transport, &address, env.identity, peer, volume);
        match tokio::time::timeout(DIAL_ATTEMPT_MAX, attempt).await {
            Ok(Ok(ready)) => return inbox.push(Input::Dialled { peer, ready }),
            Ok(Err(error)) => debug!(%volume, %peer, %address, "dialling failed: {error}"),
            Err(_) => debug!(%volume, %peer, %address, "dialling timed out"),
        }
    }
}
