//! A replication link at work: one task on the volume's shard receives, sends what the actor's own flush left over, and
//! reports the end exactly once.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proto::checksum::Salt;
use proto::peer::codec::{BODY_BYTES_MAX, HEADER_BYTES};
use proto::peer::handshake::LinkKind;
use proto::peer::message::{Envelope, Message};
use proto::peer::version::ProtocolVersion;
use proto::{Incarnation, NodeId, VolumeId};
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::frame_reader::{Frame, FrameReader, ReadEnd};
use super::handshake::{self, Agreed};
use super::outbox::{Outbox, Written};
use super::{Identity, LinkError, LinkEvent, LinkSink};
use crate::net::transport::{DetachedStream, Stream, StreamWriter, Transport};

/// Bytes that may wait to be sent on one link; a link that would exceed it is closed, since its peer is too slow to be
/// of use.
pub const LINK_QUEUED_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Bytes received before other tasks of the shard get a turn.
const READ_TURN_BYTES: usize = 256 * 1024;
/// How long a closed link waits for the other side to close too.
const LINGER: Duration = Duration::from_secs(1);

/// A replication connection whose handshake agreed, before it is put on a shard.
#[derive(Debug)]
pub struct ReadyLink {
    /// The other side's node.
    pub peer: NodeId,
    /// The volume that the connection is for.
    pub volume: VolumeId,
    /// The other side's run.
    pub incarnation: Incarnation,
    /// The version of the protocol that both sides speak.
    pub version: ProtocolVersion,
    stream: DetachedStream,
}

impl ReadyLink {
    /// Dials `address` and shakes hands for `volume` with `peer`. Errors: no connection within the timeouts, or a
    /// refusal with the other side's reason.
    pub async fn dial(
        transport: &Transport,
        address: &str,
        me: Identity,
        peer: NodeId,
        volume: VolumeId,
    ) -> Result<ReadyLink, LinkError> {
        let kind = LinkKind::Replication { volume };
        let (stream, agreed) = handshake::dial(transport, address, me, peer, kind).await?;
        Ok(Self::new(stream, peer, volume, agreed)?)
    }

    pub(super) fn new(stream: Stream, peer: NodeId, volume: VolumeId, agreed: Agreed) -> io::Result<ReadyLink> {
        let Agreed { version, incarnation } = agreed;
        Ok(ReadyLink { peer, volume, incarnation, version, stream: stream.detach()? })
    }

    /// Starts its task with `spawn_local` on the current shard. Frames and the end go to `sink`.
    pub fn start(self, sink: LinkSink) -> io::Result<LinkSender> {
        let (reader, writer) = self.stream.attach()?.into_split();
        let core = Rc::new(LinkCore {
            peer: self.peer,
            volume: self.volume,
            version: self.version,
            state: RefCell::new(State::Open { writer: Rc::new(writer), outbox: Outbox::default() }),
            has_leftovers: Notify::new(),
            closed: Notify::new(),
            down_reported: Cell::new(false),
        });
        let reader = FrameReader::new(reader, self.version, Salt::of(self.volume));
        tokio::task::spawn_local(run(core.clone(), reader, sink));
        Ok(LinkSender { owner: Rc::new(Owner { core }) })
    }
}

/// The sending half of a running link; cheap to clone. When the last clone is dropped the link closes.
#[derive(Clone)]
pub struct LinkSender {
    owner: Rc<Owner>,
}

impl LinkSender {
    /// Queues a frame; payload parts are sent one after the other without copying. `sums` are the checksums of the blocks
    /// of its data, one for each; none for a message without data. Over the bound of queued bytes, or
    /// with a payload that does not fit the message, the link is closed (reported as Down). On a closed link it does
    /// nothing. The frame leaves with the next `flush`.
    pub fn send(&self, envelope: &Envelope, message: &Message, payload: SmallVec<[Bytes; 1]>, sums: &[u32]) {
        self.owner.core.send(envelope, message, payload, sums);
    }

    /// Gives everything queued to the socket now, and what it does not take as soon as it does: to be called at the end of
    /// an actor's turn.
    pub fn flush(&self) {
        if self.owner.core.write_out() == Written::Blocked {
            self.owner.core.has_leftovers.notify_one();
        }
    }

    /// Closes it with a reason; Down follows from the link's task. What the socket takes at once of the queued frames
    /// is still sent.
    pub fn close(&self, why: &str) {
        self.owner.core.close_by_owner(why);
    }
}

impl fmt::Debug for LinkSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.owner.core;
        f.debug_struct("LinkSender").field("peer", &core.peer).field("volume", &core.volume).finish_non_exhaustive()
    }
}

/// Closes the link with the last sender.
struct Owner {
    core: Rc<LinkCore>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.core.close_by_owner("dropped by its owner");
    }
}

enum State {
    Open { writer: Rc<StreamWriter>, outbox: Outbox },
    Closed { reason: String, by_owner: bool },
}

/// What the senders and the task share.
struct LinkCore {
    peer: NodeId,
    volume: VolumeId,
    version: ProtocolVersion,
    state: RefCell<State>,
    /// A flush could not send everything.
    has_leftovers: Notify,
    closed: Notify,
    down_reported: Cell<bool>,
}

impl LinkCore {
    fn send(&self, envelope: &Envelope, message: &Message, payload: SmallVec<[Bytes; 1]>, sums: &[u32]) {
        let body_bytes_max = match message {
            Message::Write { .. } | Message::ResyncData { .. } | Message::Ack { .. } => 64 + size_of_val(sums),
            _ => BODY_BYTES_MAX,
        };
        let frame_bytes_max = HEADER_BYTES + body_bytes_max + payload.iter().map(Bytes::len).sum::<usize>();
        let fits = |queued: usize| queued + frame_bytes_max <= LINK_QUEUED_BYTES_MAX;
        if !fits(self.queued_bytes()) {
            self.write_out();
            if !fits(self.queued_bytes()) {
                self.close(format!("over {LINK_QUEUED_BYTES_MAX} bytes wait to be sent: the peer is too slow"), false);
                return;
            }
        }
        let pushed = match &mut *self.state.borrow_mut() {
            State::Open { outbox, .. } => outbox.push(self.version, envelope, message, payload, sums),
            State::Closed { .. } => return,
        };
        if let Err(invalid) = pushed {
            self.close(format!("asked to send an invalid frame: {invalid}"), false);
        }
    }

    fn queued_bytes(&self) -> usize {
        match &*self.state.borrow() {
            State::Open { outbox, .. } => outbox.queued_bytes(),
            State::Closed { .. } => 0,
        }
    }

    /// Writes what the socket takes. A failure closes the link.
    fn write_out(&self) -> Written {
        let written = match &mut *self.state.borrow_mut() {
            State::Open { writer, outbox } => outbox.write_with(|slices| writer.try_write_vectored(slices)),
            State::Closed { .. } => Ok(Written::All),
        };
        written.unwrap_or_else(|error| {
            self.close(format!("cannot send: {error}"), false);
            Written::All
        })
    }

    fn close_by_owner(&self, why: &str) {
        if let State::Open { writer, outbox } = &mut *self.state.borrow_mut() {
            // Last words, such as a nack. If they cannot be sent, that they are lost is all there is to it.
            let _ = outbox.write_with(|slices| writer.write_now(slices));
        }
        self.close(why.to_owned(), true);
    }

    /// The first reason stands. Frees the queue at once; dropping the writer ends the stream towards the peer.
    fn close(&self, reason: String, by_owner: bool) {
        if self.is_open() {
            let former = self.state.replace(State::Closed { reason, by_owner });
            self.closed.notify_one();
            drop(former);
        }
    }

    fn writer(&self) -> Option<Rc<StreamWriter>> {
        match &*self.state.borrow() {
            State::Open { writer, .. } => Some(writer.clone()),
            State::Closed { .. } => None,
        }
    }

    fn is_open(&self) -> bool {
        matches!(&*self.state.borrow(), State::Open { .. })
    }

    /// Delivers Down with the reason of the close; tells whether the link's owner closed it.
    fn report_down(&self, sink: LinkSink) -> bool {
        let (reason, by_owner) = match &*self.state.borrow() {
            State::Closed { reason, by_owner } => (reason.clone(), *by_owner),
            State::Open { .. } => unreachable!("a link is closed before its end is reported"),
        };
        assert!(!self.down_reported.replace(true), "the end of a link is reported once");
        let (peer, volume) = (self.peer, self.volume);
        if by_owner {
            tracing::info!(%peer, %volume, %reason, "replication link closed");
        } else {
            tracing::warn!(%peer, %volume, %reason, "replication link lost");
        }
        sink(LinkEvent::Down { reason });
        by_owner
    }
}

async fn run(core: Rc<LinkCore>, mut reader: FrameReader, sink: LinkSink) {
    tokio::select! {
        biased;
        () = core.closed.notified() => {}
        () = write_leftovers(&core) => {}
        end = read_frames(&core, &mut reader, &sink) => {
            if let Err(end) = end {
                core.close(end.to_string(), false);
            }
        }
    }
    if core.report_down(sink) {
        let _ = tokio::time::timeout(LINGER, reader.drain()).await;
    }
}

/// Sends what no flush has sent. Returns once the link is closed.
async fn write_leftovers(core: &LinkCore) {
    while let Some(writer) = core.writer() {
        match core.write_out() {
            Written::All => core.has_leftovers.notified().await,
            Written::Blocked => {
                if let Err(error) = writer.writable().await {
                    core.close(format!("cannot send: {error}"), false);
                }
            }
        }
    }
}

/// Delivers frames, all those of one read together. Returns once the link is closed or nothing more can come.
async fn read_frames(core: &LinkCore, reader: &mut FrameReader, sink: &LinkSink) -> Result<(), ReadEnd> {
    let mut turn_bytes = 0;
    loop {
        while let Some(frame) = reader.next_frame()? {
            if !core.is_open() {
                return Ok(());
            }
            let Frame { envelope, message, payload, sums } = frame;
            sink(LinkEvent::Frame { envelope, message, payload, sums });
        }
        if turn_bytes >= READ_TURN_BYTES {
            turn_bytes = 0;
            tokio::task::yield_now().await;
        }
        reader.wait_for_room().await;
        turn_bytes += reader.receive().await?;
    }
}
