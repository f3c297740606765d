//! Takes frames off a stream: small reads through one buffer, long payloads straight into the memory that the disk writes
//! from.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block_device::AlignedBuf;
use bytes::Bytes;
use proto::peer::codec::{self, DecodeError, Decoded, FrameHead, HEADER_BYTES};
use proto::peer::message::{Envelope, Message};
use proto::peer::version::ProtocolVersion;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::net::transport::StreamReader;

/// Payload bytes that the receivers of one link's frames may hold; beyond, the link reads no further and so slows its
/// sender down. At most one frame above it.
pub const LINK_HELD_BYTES_MAX: usize = 128 * 1024 * 1024;

const BUFFER_BYTES: usize = 64 * 1024;
/// With at least this much of a payload missing, it is read into its own memory and not through the buffer.
const DIRECT_READ_BYTES_MIN: usize = 16 * 1024;

/// A whole, checked frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) envelope: Envelope,
    pub(super) message: Message,
    pub(super) payload: Option<Bytes>,
}

/// Why no further frame comes.
#[derive(Debug, Error)]
pub(super) enum ReadEnd {
    #[error("closed by the other side")]
    Closed,
    #[error("closed by the other side in the middle of a frame")]
    CutShort,
    #[error("cannot receive: {0}")]
    Io(#[from] io::Error),
    #[error("bad frame: {0}")]
    BadFrame(#[from] DecodeError),
}

/// The receiving direction of a link.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: StreamReader,
    protocol: ProtocolVersion,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are received and not yet used.
    unused: std::ops::Range<usize>,
    /// Bytes that the frame at the start of `unused` needs before it can be told more about.
    head_bytes_needed: usize,
    /// A frame whose payload is still arriving; `unused` is then empty.
    arriving: Option<Arriving>,
    held: Arc<Held>,
}

#[derive(Debug)]
struct Arriving {
    head: FrameHead,
    payload: AlignedBuf,
    filled: usize,
}

impl FrameReader {
    pub(super) fn new(stream: StreamReader, protocol: ProtocolVersion) -> Self {
        Self {
            stream,
            protocol,
            buffer: vec![0; BUFFER_BYTES],
            unused: 0..0,
            head_bytes_needed: HEADER_BYTES,
            arriving: None,
            held: Arc::default(),
        }
    }

    /// The next frame of what is received already; `None` when more must be received first.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, ReadEnd> {
        let mut arriving = match self.arriving.take() {
            Some(arriving) => arriving,
            None => match codec::decode(self.protocol, &self.buffer[self.unused.clone()])? {
                Decoded::NeedMore { total } => {
                    self.head_bytes_needed = total;
                    return Ok(None);
                }
                Decoded::Head(head) => {
                    self.unused.start += head.head_bytes;
                    self.head_bytes_needed = HEADER_BYTES;
                    if head.payload.length == 0 {
                        return Ok(Some(Frame { envelope: head.envelope, message: head.message, payload: None }));
                    }
                    let payload = AlignedBuf::zeroed(head.payload.length as usize);
                    Arriving { head, payload, filled: 0 }
                }
            },
        };
        let missing = arriving.payload.len() - arriving.filled;
        let taken = missing.min(self.unused.len());
        let from = self.unused.start;
        arriving.payload[arriving.filled..arriving.filled + taken].copy_from_slice(&self.buffer[from..from + taken]);
        arriving.filled += taken;
        self.unused.start += taken;
        if taken < missing {
            self.arriving = Some(arriving);
            return Ok(None);
        }
        arriving.head.check_payload(&arriving.payload)?;
        let FrameHead { envelope, message, .. } = arriving.head;
        Ok(Some(Frame { envelope, message, payload: Some(self.held.hold(arriving.payload)) }))
    }

    /// Waits for bytes and receives them; tells how many. To be called when `next_frame` has none left.
    pub(super) async fn receive(&mut self) -> Result<usize, ReadEnd> {
        let missing = self.arriving.as_ref().map_or(0, |arriving| arriving.payload.len() - arriving.filled);
        let count = if missing >= DIRECT_READ_BYTES_MIN {
            self.receive_payload().await?
        } else {
            self.receive_buffered().await?
        };
        match count {
            0 if self.arriving.is_some() || !self.unused.is_empty() => Err(ReadEnd::CutShort),
            0 => Err(ReadEnd::Closed),
            count => Ok(count),
        }
    }

    /// Waits while receivers hold [`LINK_HELD_BYTES_MAX`] or more of payload.
    pub(super) async fn wait_for_room(&self) {
        while self.held.bytes.load(Ordering::Acquire) >= LINK_HELD_BYTES_MAX {
            self.held.released.notified().await;
        }
    }

    /// Receives and forgets until the other side closes, so that closing our end does not destroy what it has not yet
    /// read.
    pub(super) async fn drain(&mut self) {
        while self.stream.read(&mut self.buffer).await.is_ok_and(|count| count > 0) {}
    }

    async fn receive_buffered(&mut self) -> io::Result<usize> {
        // At most the cut head of one frame is left here, so moving it costs little.
        self.buffer.copy_within(self.unused.clone(), 0);
        self.unused = 0..self.unused.len();
        if self.head_bytes_needed > self.buffer.len() {
            self.buffer.resize(self.head_bytes_needed, 0);
        }
        let count = self.stream.read(&mut self.buffer[self.unused.end..]).await?;
        self.unused.end += count;
        Ok(count)
    }

    async fn receive_payload(&mut self) -> io::Result<usize> {
        let Some(arriving) = &mut self.arriving else { return Ok(0) };
        loop {
            let rest = &mut arriving.payload[arriving.filled..];
            let missing = rest.len();
            let mut buffers = [IoSliceMut::new(rest), IoSliceMut::new(&mut self.buffer)];
            match self.stream.try_read_vectored(&mut buffers) {
                Ok(count) => {
                    arriving.filled += count.min(missing);
                    self.unused = 0..count.saturating_sub(missing);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Payload bytes given out and not yet dropped.
#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    released: Notify,
}

impl Held {
    fn hold(self: &Arc<Self>, buffer: AlignedBuf) -> Bytes {
        self.bytes.fetch_add(buffer.len(), Ordering::AcqRel);
        Bytes::from_owner(HeldPayload { buffer, held: self.clone() })
    }
}

/// A payload that tells its reader when it is dropped.
struct HeldPayload {
    buffer: AlignedBuf,
    held: Arc<Held>,
}

impl AsRef<[u8]> for HeldPayload {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for HeldPayload {
    fn drop(&mut self) {
        let before = self.held.bytes.fetch_sub(self.buffer.len(), Ordering::AcqRel);
        if before >= LINK_HELD_BYTES_MAX {
            self.held.released.notify_one();
        }
    }
}
