//! Links between boxes: replication links (one per volume and peer), Raft links, and the supervisors' goodbyes.
//!
//! `handshake` begins every connection; `link` runs a replication link on its shard, with `frame_reader` and `outbox` as
//! its two directions; `listener` takes connections in; `raft_links` and `goodbye` are the other two kinds of dialler.
//! What the frames mean is none of this module's business.

mod frame_reader;
mod goodbye;
mod handshake;
mod link;
mod listener;
mod outbox;
mod payload_pool;
mod raft_links;

#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod listener_tests;
#[cfg(test)]
mod test_peers;

use std::rc::Rc;

use bytes::Bytes;
use proto::checksum::BlockSums;
use proto::peer::message::{Envelope, Message};
use proto::{ClusterId, Incarnation, NodeId};
use thiserror::Error;

pub use goodbye::say_goodbye;
pub use link::{LINK_QUEUED_BYTES_MAX, LinkSender, ReadyLink};
pub use listener::{HANDSHAKES_MAX, PeerListener, RAFT_CONNECTIONS_MAX};
pub use payload_pool::LINK_HELD_BYTES_MAX;
pub use raft_links::{RAFT_QUEUE_BYTES_MAX, RAFT_QUEUE_MESSAGES_MAX, RaftLinks};

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
    /// A frame, checked against its checksums and the codec's bounds.
    Frame {
        /// Epoch, version, session of the sender.
        envelope: Envelope,
        /// The message.
        message: Message,
        /// Its payload, in a 4096-aligned buffer; `None` when the message has none.
        payload: Option<Bytes>,
        /// Of data, the checksums of its blocks; verified, unless the message says that the blocks are known to be bad.
        sums: BlockSums,
    },
    /// The end, with its reason; logged already. Comes exactly once and nothing comes after it.
    Down {
        /// Why.
        reason: String,
    },
}

/// Receives link events on the shard's thread, in order. Called from the link's task, never from within a call of
/// [`LinkSender`]; it queues the event for its owner, which then runs on its own turn.
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

/// What arrives at the peer listener.
#[derive(Debug)]
pub enum Incoming {
    /// A replication link, to be given to the volume's shard.
    Replication(ReadyLink),
    /// A Raft message (protobuf bytes) from a node.
    Raft {
        /// The node that the connection's handshake named.
        from: NodeId,
        /// The message.
        message: Vec<u8>,
    },
    /// A supervisor says that the worker it reaped is gone.
    Goodbye {
        /// The worker's node.
        node: NodeId,
        /// The run that ended.
        incarnation: Incarnation,
    },
    /// The Raft leader's report of whom it hears.
    Liveness {
        /// The node that the connection's handshake named.
        leader: NodeId,
        /// Of each node, whether the leader hears it.
        heard: Vec<(NodeId, bool)>,
    },
}
