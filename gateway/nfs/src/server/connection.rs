//! One connection: reads requests, has them answered side by side, and writes the replies; calls to the client go out beside them,
//! and its answers come in among the requests.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use block_device::BlockDevice;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;

use crate::rpc::call::is_reply;
use crate::rpc::record::{self, MARK_BYTES, RecordReader};
use crate::service::{Door, Origin, Service};
use crate::state::back_channel::ConnectionId;

/// Requests of a connection that are worked on together.
const REQUESTS_MAX: usize = 128;
/// Replies, and calls to the client, that wait to be written.
const REPLIES_QUEUED_MAX: usize = 16;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Parts of replies that are written at once.
const PARTS_MAX: usize = 64;

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
    /// Bytes of requests, of all connections.
    pub(super) budget: Arc<Semaphore>,
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
        self.service.connection_opened(self.id, replies.clone());
        tokio::select! {
            read = self.read(reading, replies) => {
                if let Err(error) = read {
                    debug!(peer = %self.peer, connection = self.id.0, "closed: {error}");
                }
            }
            written = write(writing, queue) => {
                if let Err(error) = written {
                    debug!(peer = %self.peer, connection = self.id.0, "closed: {error}");
                }
            }
        }
        self.service.connection_closed(self.id);
    }

    async fn read(&self, mut stream: OwnedReadHalf, replies: mpsc::Sender<Vec<Bytes>>) -> io::Result<()> {
        let mut records = RecordReader::new(self.record_bytes_max);
        let mut received = BytesMut::new();
        let slots = Arc::new(Semaphore::new(REQUESTS_MAX));
        loop {
            while received.len() < MARK_BYTES {
                if !receive(&mut stream, &mut received).await? {
                    return Ok(());
                }
            }
            // A record takes from the budget before there is room made for it.
            let room = acquire(&self.budget, announced(&received, self.record_bytes_max)).await?;
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let record = loop {
                if let Some(record) = records.next(&mut received).map_err(invalid)? {
                    break record;
                }
                if !receive(&mut stream, &mut received).await? {
                    return Ok(());
                }
            };
            if is_reply(&record) {
                if !self.service.answered(self.id, record) {
                    debug!(peer = %self.peer, "an answer that nobody asked for");
                }
                continue;
            }
            let slot = acquire(&slots, 1).await?;
            self.answer(record, replies.clone(), (room, slot));
        }
    }

    /// Has a request answered, beside others.
    fn answer(
        &self,
        record: Bytes,
        replies: mpsc::Sender<Vec<Bytes>>,
        room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) {
        let (service, gone) = (Rc::clone(&self.service), Rc::clone(&self.gone));
        let origin = Origin { connection: self.id, address: self.peer, local: self.local, door: self.door };
        let mut requests = self.requests.borrow_mut();
        while requests.try_join_next().is_some() {}
        requests.spawn_local(async move {
            match service.call(origin, record).await {
                // The client may be gone: it asks again by another connection.
                Ok(Some(reply)) => drop(replies.send(reply).await),
                Ok(None) => debug!(peer = %origin.address, "not a call"),
                Err(_) => drop(gone.send_replace(true)),
            }
            drop(room);
        });
    }
}

/// Waits for more bytes. False at the end of the stream.
async fn receive(stream: &mut OwnedReadHalf, received: &mut BytesMut) -> io::Result<bool> {
    if received.is_empty() {
        // An idle connection keeps no room.
        *received = BytesMut::new();
        stream.readable().await?;
    }
    // Where there is room for the rest of a record already, more would only move what is there.
    if received.capacity() == received.len() {
        received.reserve(READ_BYTES);
    }
    Ok(stream.read_buf(received).await? > 0)
}

/// Bytes of the record, or of its first fragment, whose mark is here. Longer ones than can be are refused later.
fn announced(received: &BytesMut, bytes_max: usize) -> usize {
    let mark = received.iter().take(MARK_BYTES).fold(0u32, |mark, byte| mark << 8 | u32::from(*byte));
    ((mark & !(1 << 31)) as usize).clamp(1, bytes_max)
}

async fn acquire(semaphore: &Arc<Semaphore>, count: usize) -> io::Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_many_owned(count as u32).await;
    permit.map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

/// Writes replies, as many at once as are there.
async fn write(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<Bytes>>) -> io::Result<()> {
    let mut replies = Vec::new();
    while queue.recv_many(&mut replies, REPLIES_QUEUED_MAX).await > 0 {
        let mut parts = Vec::new();
        for reply in replies.drain(..) {
            let length = reply.iter().map(Bytes::len).sum();
            parts.push(Bytes::copy_from_slice(&record::mark(length)));
            parts.extend(reply);
        }
        write_all(&mut stream, parts).await?;
    }
    Ok(())
}

async fn write_all(stream: &mut OwnedWriteHalf, mut parts: Vec<Bytes>) -> io::Result<()> {
    parts.retain(|part| !part.is_empty());
    let mut parts = std::collections::VecDeque::from(parts);
    while !parts.is_empty() {
        let slices: Vec<_> = parts.iter().take(PARTS_MAX).map(|part| IoSlice::new(part)).collect();
        let mut written = stream.write_vectored(&slices).await?;
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
