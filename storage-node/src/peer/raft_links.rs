//! Outgoing Raft links: one task per node that dials, redials and sends. Lossy on purpose: Raft repeats what matters.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::NodeId;
use proto::peer::handshake::LinkKind;
use proto::peer::raft_frame::{RaftFrameKind, encode_head, encode_liveness};
use proto::peer::version::ProtocolVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::handshake::{self, timed_out};
use super::{Identity, LinkError};
use crate::net::transport::{Stream, Transport};

/// Messages that may wait for one node; one more drops the oldest.
pub const RAFT_QUEUE_MESSAGES_MAX: usize = 256;
/// Bytes that may wait for one node; a message that would exceed it drops older ones.
pub const RAFT_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Pause before the second attempt to dial; doubles up to the longest.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
const REDIAL_PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// Time for the socket to take what one turn sends.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Outgoing Raft links to every other node; messages are dropped when a link is down or its queue is full. Cheap to
/// clone and usable from any thread; the links end with the last clone.
#[derive(Clone, Debug)]
pub struct RaftLinks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    transport: Transport,
    me: Identity,
    runtime: Handle,
    links: Mutex<HashMap<NodeId, Link>>,
}

/// The handle of one node's task.
#[derive(Debug)]
struct Link {
    queue: Arc<Queue>,
    address: watch::Sender<String>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RaftLinks {
    /// `spawn`s one task per node on the current runtime as addresses become known.
    pub fn new(transport: Transport, me: Identity) -> Self {
        let runtime = Handle::current();
        Self { shared: Arc::new(Shared { transport, me, runtime, links: Mutex::default() }) }
    }

    /// Sets or changes a node's address; a link to a former address is given up. This node's own is ignored.
    pub fn set_address(&self, node: NodeId, address: &str) {
        if node == self.shared.me.node {
            return;
        }
        let mut links = self.links();
        if let Some(link) = links.get(&node) {
            link.address.send_if_modified(|known| {
                let changed = known != address;
                address.clone_into(known);
                changed
            });
            return;
        }
        let queue = Arc::new(Queue::default());
        let (sender, receiver) = watch::channel(address.to_owned());
        let dialler = Dialler {
            transport: self.shared.transport.clone(),
            me: self.shared.me,
            node,
            address: receiver,
            queue: queue.clone(),
        };
        let task = self.shared.runtime.spawn(dialler.run()).abort_handle();
        links.insert(node, Link { queue, address: sender, task });
    }

    /// Forgets a node and ends its link.
    pub fn remove(&self, node: NodeId) {
        self.links().remove(&node);
    }

    /// Sends a Raft message; lossy. Never blocks.
    pub fn send(&self, to: NodeId, message: Vec<u8>) {
        self.push(to, RaftFrameKind::Message, message);
    }

    /// Sends the leader's liveness report; lossy.
    pub fn send_liveness(&self, to: NodeId, heard: &[(NodeId, bool)]) {
        self.push(to, RaftFrameKind::Liveness, encode_liveness(heard));
    }

    fn push(&self, to: NodeId, kind: RaftFrameKind, content: Vec<u8>) {
        if let Some(link) = self.links().get(&to) {
            link.queue.push(kind, content);
        }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<NodeId, Link>> {
        self.shared.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits for one node, oldest first.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<(RaftFrameKind, Vec<u8>)>,
    bytes: usize,
}

impl Queue {
    fn push(&self, kind: RaftFrameKind, content: Vec<u8>) {
        if content.len() > RAFT_QUEUE_BYTES_MAX {
            tracing::error!(bytes = content.len(), "a Raft message is over the bound of the queue: dropped");
            return;
        }
        let mut waiting = self.waiting();
        let bytes_left = RAFT_QUEUE_BYTES_MAX - content.len();
        while waiting.frames.len() >= RAFT_QUEUE_MESSAGES_MAX || waiting.bytes > bytes_left {
            let Some((_, dropped)) = waiting.frames.pop_front() else { break };
            waiting.bytes -= dropped.len();
        }
        waiting.bytes += content.len();
        waiting.frames.push_back((kind, content));
        drop(waiting);
        self.filled.notify_one();
    }

    fn take(&self) -> VecDeque<(RaftFrameKind, Vec<u8>)> {
        std::mem::take(&mut *self.waiting()).frames
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one node.
struct Dialler {
    transport: Transport,
    me: Identity,
    node: NodeId,
    address: watch::Receiver<String>,
    queue: Arc<Queue>,
}

impl Dialler {
    async fn run(mut self) {
        let mut pause = REDIAL_PAUSE;
        let mut failures = 0u64;
        loop {
            let address = self.address.borrow_and_update().clone();
            let attempt = async {
                match handshake::dial(&self.transport, &address, self.me, self.node, LinkKind::Raft).await {
                    Ok((stream, agreed)) => {
                        tracing::info!(node = %self.node, %address, "Raft link up");
                        (true, send_frames(stream, agreed.version, &self.queue).await)
                    }
                    Err(reason) => (false, reason),
                }
            };
            let changed = async { self.address.clone().changed().await };
            let (was_up, reason) = tokio::select! {
                ended = attempt => ended,
                changed = changed => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            // What waited is stale by the time the link is back.
            drop(self.queue.take());
            failures = if was_up { 1 } else { failures + 1 };
            pause = if was_up { REDIAL_PAUSE } else { pause };
            if failures == 1 {
                tracing::warn!(node = %self.node, %address, %reason, "Raft link down");
            } else {
                tracing::debug!(node = %self.node, %address, %reason, failures, "Raft link still down");
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REDIAL_PAUSE_LONGEST),
                _ = self.address.changed() => {
                    self.address.mark_changed();
                    pause = REDIAL_PAUSE;
                }
            }
        }
    }
}

/// Sends until the link fails; tells why it did.
async fn send_frames(stream: Stream, version: ProtocolVersion, queue: &Queue) -> LinkError {
    let (mut reader, mut writer) = stream.into_split();
    let mut unexpected = [0; 1];
    loop {
        for (kind, content) in queue.take() {
            let head = match encode_head(version, kind, &content) {
                Ok(head) => head,
                Err(error) => {
                    tracing::error!(%error, "a Raft message cannot be sent: dropped");
                    continue;
                }
            };
            let sending = async {
                writer.write_all(&[&head, content.as_slice()].concat()).await?;
                Ok::<(), io::Error>(())
            };
            match timeout(SEND_TIMEOUT, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return timed_out("sending a Raft message", SEND_TIMEOUT),
            }
        }
        tokio::select! {
            () = queue.filled.notified() => {}
            read = reader.read(&mut unexpected) => return match read {
                Ok(0) => LinkError::Refused("closed by the other side".into()),
                Ok(_) => LinkError::Refused("the other side sent bytes where it should be silent".into()),
                Err(error) => error.into(),
            },
        }
    }
}
