//! Links between boxes: replication links (one per volume and peer), Raft links, and the supervisors' goodbyes.

use std::rc::Rc;

use bytes::Bytes;
use proto::peer::message::{Envelope, Message};
use proto::{ClusterId, Incarnation, NodeId, VolumeId};
use smallvec::SmallVec;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::net::transport::Transport;

/// Who this worker is, told in every handshake.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// This run.
    pub incarnation: Incarnation,
}

/// What a link tells the volume's actor.
#[derive(Debug)]
pub enum LinkEvent {
    /// A frame.
    Frame { envelope: Envelope, message: Message, payload: Option<Bytes> },
    /// The end, with its reason; logged already.
    Down { reason: String },
}

/// Receives link events on the shard's thread, in order.
pub type LinkSink = Rc<dyn Fn(LinkEvent)>;

/// Why a link did not come about or ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The socket.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The other side, or its frames, are refused.
    #[error("{0}")]
    Refused(String),
}

/// A replication connection whose handshake agreed, before it is put on a shard.
#[derive(Debug)]
pub struct ReadyLink {
    pub peer: NodeId,
    pub volume: VolumeId,
}

impl ReadyLink {
    /// Dials `address` and shakes hands for `volume` with `peer`.
    pub async fn dial(
        _transport: &Transport,
        _address: &str,
        _me: Identity,
        _peer: NodeId,
        _volume: VolumeId,
    ) -> Result<ReadyLink, LinkError> {
        unimplemented!()
    }
    /// Starts its reader and writer with `spawn_local` on the current shard.
    pub fn start(self, _sink: LinkSink) -> std::io::Result<LinkSender> {
        unimplemented!()
    }
}

/// The sending half of a running link; cheap to clone.
#[derive(Clone, Debug)]
pub struct LinkSender {}

impl LinkSender {
    /// Queues a frame; payload parts are sent one after the other without copying. Over the bound of queued bytes the
    /// link is closed (reported as Down).
    pub fn send(&self, _envelope: &Envelope, _message: &Message, _payload: SmallVec<[Bytes; 1]>) {
        unimplemented!()
    }
    /// Closes it with a reason; Down follows.
    pub fn close(&self, _why: &str) {
        unimplemented!()
    }
}

/// What arrives at the peer listener.
#[derive(Debug)]
pub enum Incoming {
    /// A replication link, to be given to the volume's shard.
    Replication(ReadyLink),
    /// A Raft message (protobuf bytes) from a node.
    Raft { from: NodeId, message: Vec<u8> },
    /// A supervisor says that the worker it reaped is gone.
    Goodbye { node: NodeId, incarnation: Incarnation },
    /// The Raft leader's report of whom it hears.
    Liveness { leader: NodeId, heard: Vec<(NodeId, bool)> },
}

/// The listener for all of these.
#[derive(Debug)]
pub struct PeerListener {}

impl PeerListener {
    /// Accepts on `address` until dropped; what passes its handshake goes to `incoming`. `identity` may be unknown at
    /// first (before init or join): then everything is refused with a reason.
    pub async fn start(
        _transport: Transport,
        _address: &str,
        _identity: tokio::sync::watch::Receiver<Option<Identity>>,
        _incoming: mpsc::Sender<Incoming>,
    ) -> Result<PeerListener, LinkError> {
        unimplemented!()
    }
}

/// Outgoing Raft links to every other node; messages are dropped when a link is down or its queue is full.
#[derive(Clone, Debug)]
pub struct RaftLinks {}

impl RaftLinks {
    /// `spawn`s one task per node on the current runtime as addresses become known.
    pub fn new(_transport: Transport, _me: Identity) -> Self {
        unimplemented!()
    }
    /// Sets or changes a node's address.
    pub fn set_address(&self, _node: NodeId, _address: &str) {
        unimplemented!()
    }
    /// Sends a Raft message; lossy.
    pub fn send(&self, _to: NodeId, _message: Vec<u8>) {
        unimplemented!()
    }
    /// Sends the leader's liveness report; lossy.
    pub fn send_liveness(&self, _to: NodeId, _heard: &[(NodeId, bool)]) {
        unimplemented!()
    }
}

/// Blocking: tells `address` that `identity`'s worker was reaped. Used by the supervisor.
pub fn say_goodbye(_address: &str, _identity: Identity) -> Result<(), LinkError> {
    unimplemented!()
}
