//! One connection: reads requests, has them answered side by side, and writes the replies; calls to the client go out beside them,
//! and its answers come in among the requests.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use block_device::BlockDevice;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::appetite;
use super::room::{ReplyRoom, Room, Share};
use crate::rpc::call::is_reply;
use crate::rpc::record::{self, MARK_BYTES, RecordReader};
use crate::service::{Door, Origin, Service};
use crate::state::back_channel::ConnectionId;

/// Requests of a connection that are worked on together.
const REQUESTS_MAX: usize = 128;
/// Replies that wait to be written.
const REPLIES_QUEUED_MAX: usize = 16;
/// Calls to the client that wait to be written.
const CALLS_QUEUED_MAX: usize = 16;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Parts of replies that are written at once.
const PARTS_MAX: usize = 64;
/// A part of a reply that is written with what is before and behind it: copying it costs less than another part.
const JOINED_BYTES_MAX: usize = 1 << 10;
/// Bytes of a reply that are written with others, as most are; the first room that is made for them.
const REPLY_BYTES: usize = 512;

/// Where bytes are received, by the connections of a thread in turn: one that waits for more keeps only what came. So an idle
/// connection keeps nothing, and a small request only its own bytes.
pub(super) struct Scratch(RefCell<Box<[u8]>>);

impl Scratch {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self(RefCell::new(vec![0; READ_BYTES].into())))
    }
}

/// A connection of a service.
pub(super) struct Connection<D> {
    pub(super) service: Rc<Service<D>>,
    pub(super) id: ConnectionId,
    pub(super) peer: IpAddr,
    /// Which of our addresses it came to.
    pub(super) local: IpAddr,
    pub(super) door: Door,
    /// Bytes of a request.
    pub(super) record_bytes_max: usize,
    /// For requests, of all connections.
    pub(super) room: Rc<Room>,
    /// For the replies of this one.
    pub(super) share: Rc<Share>,
    /// Of all connections of the thread.
    pub(super) scratch: Rc<Scratch>,
    /// Where requests run: they outlive their connection.
    pub(super) requests: Rc<RefCell<JoinSet<()>>>,
    /// Turns true when the service has nothing to say any more.
    pub(super) gone: Rc<watch::Sender<bool>>,
}

impl<D: BlockDevice + 'static> Connection<D> {
    /// Serves until the client closes it, or sends what cannot be understood.
    pub(super) async fn run(self, stream: TcpStream) {
        // Replies are small and are waited for.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %self.peer, "no TCP_NODELAY: {error}");
        }
        let (reading, writing) = stream.into_split();
        let (replies, queue) = mpsc::channel(REPLIES_QUEUED_MAX);
        let (calls, calls_queue) = mpsc::channel(CALLS_QUEUED_MAX);
        self.service.connection_opened(self.id, calls);
        tokio::select! {
            read = self.read(reading, replies) => {
                if let Err(error) = read {
                    debug!(peer = %self.peer, connection = self.id.0, "closed: {error}");
                }
            }
            written = write(writing, queue, calls_queue, &self.share) => {
                if let Err(error) = written {
                    debug!(peer = %self.peer, connection = self.id.0, "closed: {error}");
                }
            }
        }
        self.service.connection_closed(self.id);
    }

    async fn read(&self, mut stream: OwnedReadHalf, replies: mpsc::Sender<Reply>) -> io::Result<()> {
        let mut records = RecordReader::new(self.record_bytes_max);
        let mut received = BytesMut::new();
        let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            while received.len() < MARK_BYTES {
                if !receive(&mut stream, &mut received, &self.scratch).await? {
                    return Ok(());
                }
            }
            // A record takes from the budget before there is room made for it.
            let room = self.room.take(announced(&received, self.record_bytes_max)).await?;
            let record = tokio::select! {
                record = rest(&mut stream, &mut records, &mut received, &self.scratch) => record?,
                why = self.room.wanted_from(Instant::now()) => return Err(why),
            };
            let Some(record) = record else { return Ok(()) };
            if is_reply(&record) {
                if !self.service.answered(self.id, record) {
                    debug!(peer = %self.peer, "an answer that nobody asked for");
                }
                continue;
            }
            let (slot, reply_room) = tokio::select! {
                admitted = self.admit(&slots, &record) => admitted?,
                why = self.room.wanted_from(Instant::now()) => return Err(why),
            };
            self.answer(record, replies.clone(), (room, slot, reply_room));
        }
    }

    /// Waits until a request may be begun: not while too many others are, or their answers are not read.
    async fn admit(&self, slots: &Arc<Semaphore>, record: &Bytes) -> io::Result<(OwnedSemaphorePermit, ReplyRoom)> {
        let slot = Arc::clone(slots).acquire_owned().await;
        let slot = slot.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        Ok((slot, self.share.take(appetite::reply_bytes(record)).await?))
    }

    /// Has a request answered, beside others.
    fn answer(
        &self,
        record: Bytes,
        replies: mpsc::Sender<Reply>,
        (room, slot, mut reply_room): (OwnedSemaphorePermit, OwnedSemaphorePermit, ReplyRoom),
    ) {
        let (service, gone) = (Rc::clone(&self.service), Rc::clone(&self.gone));
        let origin = Origin { connection: self.id, address: self.peer, local: self.local, door: self.door };
        let mut requests = self.requests.borrow_mut();
        while requests.try_join_next().is_some() {}
        requests.spawn_local(async move {
            let answer = service.call(origin, record).await;
            drop(room);
            match answer {
                // The client may be gone: it asks again by another connection.
                Ok(Some(parts)) => {
                    reply_room.shrink(parts.iter().map(Bytes::len).sum());
                    drop(replies.send(Reply { parts, _room: reply_room }).await);
                }
                Ok(None) => debug!(peer = %origin.address, "not a call"),
                Err(_) => drop(gone.send_replace(true)),
            }
            drop(slot);
        });
    }
}

/// A reply on its way, with the room that it has until it is written.
struct Reply {
    parts: Vec<Bytes>,
    _room: ReplyRoom,
}

/// The rest of a record. None at the end of the stream.
async fn rest(
    stream: &mut OwnedReadHalf,
    records: &mut RecordReader,
    received: &mut BytesMut,
    scratch: &Scratch,
) -> io::Result<Option<Bytes>> {
    loop {
        let record = records.next(received).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if record.is_some() {
            return Ok(record);
        }
        if !receive(stream, received, scratch).await? {
            return Ok(None);
        }
    }
}

/// Waits for more bytes. False at the end of the stream.
async fn receive(stream: &mut OwnedReadHalf, received: &mut BytesMut, scratch: &Scratch) -> io::Result<bool> {
    if received.is_empty() {
        // What it had belongs to the records that were taken out of it.
        *received = BytesMut::new();
    }
    // There is room for the rest of a record already.
    if received.capacity() > received.len() {
        return Ok(stream.read_buf(received).await? > 0);
    }
    // Not `try_read`: that one has to hear that nothing is left before it waits again, with a system call for each request.
    poll_fn(|cx| {
        let mut scratch = scratch.0.borrow_mut();
        let mut read = ReadBuf::new(&mut scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
        received.extend_from_slice(read.filled());
        Poll::Ready(Ok(!read.filled().is_empty()))
    })
    .await
}

/// Bytes of the record, or of its first fragment, whose mark is here. Longer ones than can be are refused later.
fn announced(received: &BytesMut, bytes_max: usize) -> usize {
    let mark = received.iter().take(MARK_BYTES).fold(0u32, |mark, byte| mark << 8 | u32::from(*byte));
    ((mark & !(1 << 31)) as usize).clamp(1, bytes_max)
}

/// Writes replies, as many at once as are there, and calls between them. Errors also when others wait for the memory of what is
/// not read.
async fn write(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Reply>,
    mut calls: mpsc::Receiver<Vec<Bytes>>,
    share: &Share,
) -> io::Result<()> {
    let mut replies = Vec::new();
    loop {
        let call = tokio::select! {
            count = queue.recv_many(&mut replies, REPLIES_QUEUED_MAX) => if count == 0 { return Ok(()) } else { None },
            Some(call) = calls.recv() => Some(call),
        };
        let messages = call.iter().chain(replies.iter().map(|reply| &reply.parts));
        write_all(&mut stream, joined(messages), share).await?;
        replies.clear();
    }
}

/// Messages with their marks, in as few parts as are worth it. None is empty.
fn joined<'a>(messages: impl Iterator<Item = &'a Vec<Bytes>>) -> VecDeque<Bytes> {
    let mut parts = VecDeque::new();
    let mut small = BytesMut::with_capacity(REPLY_BYTES);
    for message in messages {
        let length = message.iter().map(Bytes::len).sum();
        small.put_slice(&record::mark(length));
        for part in message {
            if part.len() <= JOINED_BYTES_MAX {
                small.put_slice(part);
                continue;
            }
            if !small.is_empty() {
                parts.push_back(small.split().freeze());
            }
            parts.push_back(part.clone());
        }
    }
    if !small.is_empty() {
        parts.push_back(small.freeze());
    }
    parts
}

async fn write_all(stream: &mut OwnedWriteHalf, mut parts: VecDeque<Bytes>, share: &Share) -> io::Result<()> {
    while !parts.is_empty() {
        let slices: Vec<_> = parts.iter().take(PARTS_MAX).map(|part| IoSlice::new(part)).collect();
        let mut written = tokio::select! {
            biased;
            written = stream.write_vectored(&slices) => written?,
            why = share.wanted_from(Instant::now()) => return Err(why),
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(part) = parts.front_mut() {
            let step = written.min(part.len());
            part.advance(step);
            written -= step;
            if !part.is_empty() {
                break;
            }
            parts.pop_front();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_are_joined_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![7; JOINED_BYTES_MAX + 1]);
        let small = Bytes::from_static(b"abcd");
        let replies =
            [vec![small.clone(), Bytes::new()], vec![small.clone(), large.clone(), small.clone()], vec![small]];
        let expected: Vec<u8> = replies
            .iter()
            .map(|reply| reply.concat())
            .flat_map(|reply| [&record::mark(reply.len())[..], &reply].concat())
            .collect();
        let parts = joined(replies.iter());
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [16, large.len(), 12]);
        assert_eq!(parts.get(1).map(|part| part.as_ptr()), Some(large.as_ptr()));
        assert_eq!(parts.iter().flat_map(|part| part.to_vec()).collect::<Vec<_>>(), expected);
        assert!(joined([].iter()).is_empty());
    }
}
