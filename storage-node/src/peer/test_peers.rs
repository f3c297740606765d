//! What the tests of links and of the listener share: identities, a listener at work, links and a channel behind a sink.

use std::rc::Rc;

use bytes::Bytes;
use proto::checksum::{BlockSums, Salt};
use proto::peer::message::{Envelope, Message};
use proto::peer::version::{ProtocolVersion, SUPPORTED};
use proto::{ClusterId, ConfigVersion, Epoch, Incarnation, NodeId, SessionId, VolumeId};
use smallvec::SmallVec;
use tokio::sync::{mpsc, watch};

use super::handshake::Agreed;
use super::{Identity, Incoming, LinkEvent, LinkSender, LinkSink, PeerListener, ReadyLink};
use crate::net::transport::{Stream, Transport};

pub(super) const VOLUME: VolumeId = VolumeId(0xabc);
pub(super) const PLAIN: Transport = Transport { insecure_plaintext: false };

pub(super) fn identity(node: u64) -> Identity {
    Identity { cluster: ClusterId(99), node: NodeId(node), incarnation: Incarnation(1000 + node) }
}

pub(super) fn envelope() -> Envelope {
    Envelope { epoch: Epoch(1), version: ConfigVersion(2), session: SessionId(3) }
}

/// The checksums of the blocks of a write's or batch's data; none of anything else.
pub(super) fn sums_of(message: &Message, data: &[u8]) -> BlockSums {
    let groups = match message {
        Message::Write { range, .. } => vec![vec![*range]],
        Message::WriteBatch { groups, .. } => groups.clone(),
        _ => vec![],
    };
    let blocks = groups.iter().flatten().flat_map(|range| range.blocks());
    blocks.zip(data.chunks(4096)).map(|(block, data)| Salt::of(VOLUME).sum(block, data)).collect()
}

/// A listener of node 1 and what arrives at it.
pub(super) struct Listening {
    pub(super) listener: PeerListener,
    pub(super) address: String,
    pub(super) incoming: mpsc::Receiver<Incoming>,
    pub(super) identity: watch::Sender<Option<Identity>>,
}

pub(super) async fn listen(me: Option<Identity>) -> Listening {
    listen_at("127.0.0.1:0", me).await
}

pub(super) async fn listen_at(address: &str, me: Option<Identity>) -> Listening {
    let (identity, known) = watch::channel(me);
    let (sender, incoming) = mpsc::channel(1024);
    let listener = PeerListener::start(PLAIN, address, known, sender).await.expect("loopback");
    let address = listener.local_address().to_string();
    Listening { listener, address, incoming, identity }
}

/// Two connected streams.
pub(super) async fn streams() -> (Stream, Stream) {
    let listener = PLAIN.listen("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_address().expect("bound").to_string();
    let (dialled, accepted) = tokio::join!(PLAIN.connect(&address), listener.accept());
    (dialled.expect("dialled"), accepted.expect("accepted").0)
}

pub(super) fn ready(stream: Stream, peer: u64) -> ReadyLink {
    ready_at(stream, peer, SUPPORTED.max)
}

/// A link whose handshake agreed on this version.
pub(super) fn ready_at(stream: Stream, peer: u64, version: ProtocolVersion) -> ReadyLink {
    let agreed = Agreed { version, incarnation: Incarnation(7) };
    ReadyLink::new(stream, NodeId(peer), VOLUME, agreed).expect("a fresh stream")
}

/// A started link and its events.
pub(super) struct Running {
    pub(super) sender: LinkSender,
    pub(super) events: mpsc::UnboundedReceiver<LinkEvent>,
}

pub(super) fn start(link: ReadyLink) -> Running {
    let (queue, events) = mpsc::unbounded_channel();
    // A receiver that is gone is a test that has ended.
    let sink: LinkSink = Rc::new(move |event| drop(queue.send(event)));
    Running { sender: link.start(sink).expect("on a LocalSet"), events }
}

impl Running {
    /// Sends a frame with the checksums of its data.
    pub(super) fn send(&self, message: &Message, parts: SmallVec<[Bytes; 1]>) {
        let sums = sums_of(message, &parts.concat());
        self.sender.send(&envelope(), message, parts, &sums);
        self.sender.flush();
    }

    pub(super) async fn frame(&mut self) -> (Message, Option<Bytes>) {
        match self.events.recv().await {
            Some(LinkEvent::Frame { envelope: found, message, payload, sums }) => {
                assert_eq!(found, envelope());
                assert_eq!(sums, sums_of(&message, payload.as_deref().unwrap_or_default()));
                (message, payload)
            }
            other => panic!("expected a frame: {other:?}"),
        }
    }

    /// The reason of Down, which must be the next and the last event.
    pub(super) async fn down(&mut self) -> String {
        match self.events.recv().await {
            Some(LinkEvent::Down { reason }) => {
                assert!(self.events.recv().await.is_none(), "nothing follows Down");
                reason
            }
            other => panic!("expected Down: {other:?}"),
        }
    }
}

/// Two running links, nodes 1 and 2, talking to each other.
pub(super) async fn links() -> (Running, Running) {
    let (first, second) = streams().await;
    (start(ready(first, 2)), start(ready(second, 1)))
}
