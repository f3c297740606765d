//! The incoming half of the transmission phase: bytes from the stream into decided requests with their payloads.
//!
//! State: a small input buffer and at most one request that is not complete. Keeps what it has across calls, so a call
//! that cannot go on loses nothing. It does not know the limits of the connection: the caller looks at
//! [`Receiver::poll_decision`]'s answer and asks for the payload when there is room.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use block_device::AlignedBuf;
use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};

use crate::codec::{ProtocolError, REQUEST_BYTES, RequestHeader};
use crate::export::Agreed;
use crate::session::{Decision, request};

/// Input buffer, in bytes: room for several small writes in one system call.
const INPUT_BYTES: usize = 64 << 10;
/// Bytes read ahead after a large payload, when more of that kind is likely: little of the next payload should take
/// the way through the input buffer.
const INPUT_AFTER_LARGE_BYTES: usize = 4 << 10;
/// A rest of a payload at least this long is read straight into its own buffer. A shorter one is copied from the input
/// buffer, because one system call that brings the next requests too is cheaper than the copy.
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// Why no more requests come.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
    /// The client closed, or the stream failed.
    #[error("the connection ended")]
    Gone,
    /// The client broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl From<io::Error> for ReceiveError {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

#[derive(Debug)]
struct Payload {
    buffer: AlignedBuf,
    filled: usize,
}

/// Receives the requests of one connection.
#[derive(Debug)]
pub(super) struct Receiver {
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// Most bytes the next header read asks for.
    read_ahead_bytes: usize,
    payload: Option<Payload>,
    skip_bytes: u64,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            read_ahead_bytes: INPUT_BYTES,
            payload: None,
            skip_bytes: 0,
        }
    }

    /// The next request's header, judged. Its payload, if it has one, must be taken or skipped before the next call.
    pub(super) fn poll_decision<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        agreed: &Agreed,
    ) -> Poll<Result<Decision, ReceiveError>> {
        loop {
            if let Some(header) = self.input[self.start..self.end].first_chunk::<REQUEST_BYTES>() {
                let header = RequestHeader::decode(header)?;
                self.start += REQUEST_BYTES;
                return Poll::Ready(Ok(request::decide(&header, agreed)));
            }
            ready!(self.poll_fill(stream, cx))?;
        }
    }

    /// The `length` bytes of payload of the request just decided. The buffer is allocated at the first call.
    pub(super) fn poll_payload<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        length: usize,
    ) -> Poll<Result<Bytes, ReceiveError>> {
        let mut payload =
            self.payload.take().unwrap_or_else(|| Payload { buffer: AlignedBuf::to_overwrite(length), filled: 0 });
        loop {
            let take = (length - payload.filled).min(self.end - self.start);
            payload.buffer[payload.filled..][..take].copy_from_slice(&self.input[self.start..][..take]);
            self.start += take;
            payload.filled += take;
            let rest = length - payload.filled;
            if rest == 0 {
                let large = length >= DIRECT_BYTES_MIN;
                self.read_ahead_bytes = if large { INPUT_AFTER_LARGE_BYTES } else { INPUT_BYTES };
                return Poll::Ready(Ok(payload.buffer.freeze()));
            }
            let read = if rest >= DIRECT_BYTES_MIN {
                poll_read(stream, cx, &mut payload.buffer[payload.filled..]).map_ok(|count| payload.filled += count)
            } else {
                self.read_ahead_bytes = INPUT_BYTES;
                self.poll_fill(stream, cx)
            };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.payload = Some(payload);
                    return Poll::Pending;
                }
            }
        }
    }

    /// Orders the payload of a rejected request to be skipped.
    pub(super) fn skip(&mut self, length: u32) {
        self.skip_bytes = u64::from(length);
    }

    /// Ready when nothing is left to skip.
    pub(super) fn poll_skipped<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ReceiveError>> {
        loop {
            let take = self.skip_bytes.min((self.end - self.start) as u64);
            self.start += take as usize;
            self.skip_bytes -= take;
            if self.skip_bytes == 0 {
                return Poll::Ready(Ok(()));
            }
            self.read_ahead_bytes = INPUT_BYTES;
            ready!(self.poll_fill(stream, cx))?;
        }
    }

    /// Reads at least one byte behind those in the buffer, which are fewer than one header.
    fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ReceiveError>> {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let limit = self.read_ahead_bytes.max(REQUEST_BYTES);
        let count = ready!(poll_read(stream, cx, &mut self.input[self.end..limit]))?;
        self.end += count;
        Poll::Ready(Ok(()))
    }
}

fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<Result<usize, ReceiveError>> {
    let mut read = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    match read.filled().len() {
        0 => Poll::Ready(Err(ReceiveError::Gone)),
        count => Poll::Ready(Ok(count)),
    }
}
