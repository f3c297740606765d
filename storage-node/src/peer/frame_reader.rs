//! Takes frames off a stream: small reads through one buffer, long payloads straight into the memory that the disk writes
//! from.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use bytes::Bytes;
use proto::BlockRange;
use proto::checksum::{BlockSums, Salt};
use proto::peer::codec::{self, DecodeError, Decoded, FrameHead, HEADER_BYTES};
use proto::peer::message::{Envelope, Message, WriteKind};
use proto::peer::version::ProtocolVersion;
use thiserror::Error;
use tokio::io::AsyncReadExt;

use super::payload_pool::{PayloadBuffer, PayloadPool};
use crate::net::transport::StreamReader;

const BUFFER_BYTES: usize = 64 * 1024;
/// With at least this much of a payload missing, it is read into its own memory and not through the buffer.
const DIRECT_READ_BYTES_MIN: usize = 16 * 1024;

/// A whole, checked frame.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) envelope: Envelope,
    pub(super) message: Message,
    pub(super) payload: Option<Bytes>,
    /// Of data one a block; else none.
    pub(super) sums: BlockSums,
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
    /// The volume's.
    salt: Salt,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are received and not yet used.
    unused: std::ops::Range<usize>,
    /// Bytes that the frame at the start of `unused` needs before it can be told more about.
    head_bytes_needed: usize,
    /// A frame whose payload is still arriving; `unused` is then empty.
    arriving: Option<Arriving>,
    pool: Arc<PayloadPool>,
}

#[derive(Debug)]
struct Arriving {
    head: FrameHead,
    payload: PayloadBuffer,
}

impl FrameReader {
    pub(super) fn new(stream: StreamReader, protocol: ProtocolVersion, salt: Salt) -> Self {
        Self {
            stream,
            protocol,
            salt,
            buffer: vec![0; BUFFER_BYTES],
            unused: 0..0,
            head_bytes_needed: HEADER_BYTES,
            arriving: None,
            pool: Arc::default(),
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
                        let FrameHead { envelope, message, sums, .. } = head;
                        return Ok(Some(Frame { envelope, message, payload: None, sums }));
                    }
                    let payload = self.pool.buffer(head.payload.length as usize);
                    Arriving { head, payload }
                }
            },
        };
        let missing = arriving.payload.missing();
        let taken = missing.min(self.unused.len());
        let from = self.unused.start;
        arriving.payload.unfilled()[..taken].copy_from_slice(&self.buffer[from..from + taken]);
        arriving.payload.advance(taken);
        self.unused.start += taken;
        if taken < missing {
            self.arriving = Some(arriving);
            return Ok(None);
        }
        arriving.head.check_payload(self.salt, arriving.payload.filled())?;
        let FrameHead { envelope, message, mut sums, .. } = arriving.head;
        if sums.is_empty() {
            sums = sums_of_data(self.salt, &message, arriving.payload.filled());
        }
        Ok(Some(Frame { envelope, message, payload: Some(arriving.payload.into_bytes()), sums }))
    }

    /// Waits for bytes and receives them; tells how many. To be called when `next_frame` has none left.
    pub(super) async fn receive(&mut self) -> Result<usize, ReadEnd> {
        let missing = self.arriving.as_ref().map_or(0, |arriving| arriving.payload.missing());
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

    /// Waits while the receivers of frames hold too much of their payloads.
    pub(super) async fn wait_for_room(&self) {
        self.pool.wait_for_room().await;
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
            let rest = arriving.payload.unfilled();
            let missing = rest.len();
            let mut buffers = [IoSliceMut::new(rest), IoSliceMut::new(&mut self.buffer)];
            match self.stream.try_read_vectored(&mut buffers) {
                Ok(count) => {
                    arriving.payload.advance(count.min(missing));
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

/// The checksums of the blocks of a message's data, from a peer whose version does not send them.
fn sums_of_data(salt: Salt, message: &Message, payload: &[u8]) -> BlockSums {
    let (range, groups): (Option<BlockRange>, &[Vec<BlockRange>]) = match message {
        Message::Write { range, kind, .. } | Message::ResyncData { range, kind, .. } if *kind == WriteKind::Data => {
            (Some(*range), &[])
        }
        Message::WriteBatch { groups, .. } => (None, groups),
        _ => (None, &[]),
    };
    salt.sums_of_ranges(range.into_iter().chain(groups.iter().flatten().copied()), payload)
}
