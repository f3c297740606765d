//! The peer listener: shakes hands with whoever dials and routes what passes.
//!
//! Every handshake has its own task and a time limit, and there is a bound on their number: a slow or hostile dialler
//! delays nobody. A Raft connection stays here, in a task that reads its messages.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use proto::NodeId;
use proto::peer::handshake::LinkKind;
use proto::peer::raft_frame::{RAFT_HEADER_BYTES, RaftFrameHead, RaftFrameKind, decode_head, decode_liveness};
use proto::peer::version::ProtocolVersion;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::handshake::{self, Agreed, HANDSHAKE_TIMEOUT, refused, timed_out};
use super::{Identity, Incoming, LinkError, ReadyLink};
use crate::net::transport::{Listener, Stream, Transport};

/// Handshakes under way at once; one more ends the oldest, so that diallers who say nothing cannot lock others out.
pub const HANDSHAKES_MAX: usize = 64;
/// Raft connections at once, at most one from each node.
pub const RAFT_CONNECTIONS_MAX: usize = 256;

/// Pause after the operating system refused to accept, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for the content of a Raft frame to arrive after its header.
const RAFT_CONTENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The listener; dropping it closes the socket, ends handshakes and Raft connections, and leaves routed links alone.
#[derive(Debug)]
pub struct PeerListener {
    accepting: JoinHandle<()>,
    address: SocketAddr,
}

impl PeerListener {
    /// Accepts on `address` until dropped; what passes its handshake goes to `incoming`. `identity` may be unknown at
    /// first (before init or join): then everything is refused with a reason. When `incoming` is full, diallers wait.
    /// Errors: the address cannot be listened on.
    pub async fn start(
        transport: Transport,
        address: &str,
        identity: watch::Receiver<Option<Identity>>,
        incoming: mpsc::Sender<Incoming>,
    ) -> Result<PeerListener, LinkError> {
        let listener = transport.listen(address).await?;
        let address = listener.local_address()?;
        let accepting = tokio::spawn(Acceptor::new(identity, incoming).run(listener));
        Ok(PeerListener { accepting, address })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PeerListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A Raft connection that passed its handshake.
struct RaftConnection {
    stream: Stream,
    from: NodeId,
    version: ProtocolVersion,
}

struct Acceptor {
    identity: watch::Receiver<Option<Identity>>,
    incoming: mpsc::Sender<Incoming>,
    handshakes: JoinSet<Option<RaftConnection>>,
    /// Oldest first.
    handshake_ends: VecDeque<AbortHandle>,
    raft: JoinSet<()>,
    raft_ends: HashMap<NodeId, AbortHandle>,
}

impl Acceptor {
    fn new(identity: watch::Receiver<Option<Identity>>, incoming: mpsc::Sender<Incoming>) -> Self {
        Self {
            identity,
            incoming,
            handshakes: JoinSet::new(),
            handshake_ends: VecDeque::new(),
            raft: JoinSet::new(),
            raft_ends: HashMap::new(),
        }
    }

    async fn run(mut self, listener: Listener) {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => self.begin_handshake(stream, from),
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a peer connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = ended {
                        self.begin_raft(connection);
                    }
                }
                Some(_) = self.raft.join_next() => self.raft_ends.retain(|_, end| !end.is_finished()),
            }
        }
    }

    fn begin_handshake(&mut self, stream: Stream, address: SocketAddr) {
        self.handshake_ends.retain(|end| !end.is_finished());
        if self.handshake_ends.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.handshake_ends.pop_front()
        {
            tracing::warn!("over {HANDSHAKES_MAX} peer handshakes at once: ending the oldest");
            oldest.abort();
        }
        let me = *self.identity.borrow();
        let task = welcome(stream, address, me, self.incoming.clone());
        self.handshake_ends.push_back(self.handshakes.spawn(task));
    }

    fn begin_raft(&mut self, connection: RaftConnection) {
        // A node that dials anew has given its former connection up.
        if let Some(former) = self.raft_ends.remove(&connection.from) {
            former.abort();
        }
        if self.raft_ends.len() >= RAFT_CONNECTIONS_MAX {
            tracing::warn!(node = %connection.from, "over {RAFT_CONNECTIONS_MAX} Raft connections: refusing one more");
            return;
        }
        let from = connection.from;
        let task = receive_raft(connection, self.incoming.clone());
        self.raft_ends.insert(from, self.raft.spawn(task));
    }
}

/// One handshake, whole. A Raft connection is handed back; everything else is routed here.
async fn welcome(
    stream: Stream,
    address: SocketAddr,
    me: Option<Identity>,
    incoming: mpsc::Sender<Incoming>,
) -> Option<RaftConnection> {
    let shaking = timeout(HANDSHAKE_TIMEOUT, shake_hands(stream, me, incoming));
    let outcome = shaking.await.unwrap_or_else(|_| Err(timed_out("the handshake", HANDSHAKE_TIMEOUT)));
    outcome.unwrap_or_else(|reason| {
        tracing::warn!(%address, %reason, "peer connection refused");
        None
    })
}

/// An accepted dialler has a place in `incoming` already: acceptance means delivery.
async fn shake_hands(
    mut stream: Stream,
    me: Option<Identity>,
    incoming: mpsc::Sender<Incoming>,
) -> Result<Option<RaftConnection>, LinkError> {
    let (offer, version, me) = handshake::receive(&mut stream, me).await?;
    let from = offer.from;
    let place = incoming.reserve().await.map_err(|_| LinkError::Refused("this node is stopping".into()))?;
    match offer.kind {
        LinkKind::Replication { volume } => {
            handshake::accept(&mut stream, me, version).await?;
            let agreed = Agreed { version, incarnation: offer.incarnation };
            place.send(Incoming::Replication(ReadyLink::new(stream, from, volume, agreed)?));
            Ok(None)
        }
        LinkKind::Goodbye => {
            place.send(Incoming::Goodbye { node: from, incarnation: offer.incarnation });
            handshake::accept(&mut stream, me, version).await?;
            Ok(None)
        }
        LinkKind::Raft => {
            handshake::accept(&mut stream, me, version).await?;
            Ok(Some(RaftConnection { stream, from, version }))
        }
    }
}

async fn receive_raft(connection: RaftConnection, incoming: mpsc::Sender<Incoming>) {
    let from = connection.from;
    match forward_raft(connection, incoming).await {
        Ok(()) => tracing::debug!(node = %from, "Raft connection closed by the other side"),
        Err(reason) => tracing::warn!(node = %from, %reason, "Raft connection lost"),
    }
}

/// Forwards messages until the other side closes between two of them.
async fn forward_raft(connection: RaftConnection, incoming: mpsc::Sender<Incoming>) -> Result<(), LinkError> {
    let RaftConnection { stream, from, version } = connection;
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = [0; 1];
        if stream.read(&mut first).await? == 0 {
            return Ok(());
        }
        let receiving = timeout(RAFT_CONTENT_TIMEOUT, receive_raft_frame(&mut stream, version, first[0]));
        let (head, content) = receiving.await.map_err(|_| timed_out("a Raft message", RAFT_CONTENT_TIMEOUT))??;
        let message = match head.kind {
            RaftFrameKind::Message => Incoming::Raft { from, message: content },
            RaftFrameKind::Liveness => {
                Incoming::Liveness { leader: from, heard: decode_liveness(&content).map_err(refused)? }
            }
        };
        if incoming.send(message).await.is_err() {
            return Ok(());
        }
    }
}

async fn receive_raft_frame(
    stream: &mut BufReader<Stream>,
    version: ProtocolVersion,
    first: u8,
) -> Result<(RaftFrameHead, Vec<u8>), LinkError> {
    let mut bytes = [0; RAFT_HEADER_BYTES];
    bytes[0] = first;
    stream.read_exact(&mut bytes[1..]).await?;
    let head = decode_head(version, &bytes).map_err(refused)?;
    // The content grows as it arrives: a header alone takes no memory.
    let mut content = Vec::new();
    stream.take(head.length as u64).read_to_end(&mut content).await?;
    head.check(&content).map_err(refused)?;
    Ok((head, content))
}
