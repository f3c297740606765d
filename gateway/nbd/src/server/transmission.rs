//! The transmission phase of one connection as one poll function: completions in, replies out, requests in.
//!
//! State: what is received, in flight and not yet written, and how much of the connection's limits it holds. One task
//! does all of it, so that the completions of one wake-up leave in one vectored write and nothing is locked.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};

use super::execute::Completion;
use super::receiver::{ReceiveError, Receiver};
use crate::codec::{Cookie, ErrorNumber, ProtocolError};
use crate::export::Agreed;
use crate::session::{Decision, Operation, Outcome, ReplyQueue, Request, reply};
use crate::statistics::Statistics;
use crate::{BYTES_IN_FLIGHT_MAX, REQUESTS_IN_FLIGHT_MAX};

/// Slices of one vectored write.
const SLICES_MAX: usize = 64;

/// Why the phase stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The client said DISC.
    Disconnected,
    /// No more bytes come from the client; it may still read.
    Ended,
    /// Nothing can be sent to the client.
    Broken,
    /// The client broke the protocol.
    Protocol(ProtocolError),
    /// The device is lost; nothing may be sent.
    Lost,
}

/// Where the incoming half stands.
#[derive(Debug)]
enum Incoming {
    /// Between two requests.
    Header,
    /// A request waits for room, then for its payload.
    Admission(Request),
    /// A WRITE that holds its room waits for its payload.
    Payload(Request),
    /// A rejected request's payload is being skipped; then the error goes out.
    Skipping { cookie: Cookie, error: ErrorNumber, reason: &'static str },
}

/// One connection in transmission. `F` is the future of one request on the device, `M` makes it.
pub(super) struct Transmission<'a, S, F, M> {
    stream: S,
    agreed: &'a Agreed,
    statistics: &'a Statistics,
    start: M,
    operations: FuturesUnordered<F>,
    receiver: Receiver,
    incoming: Incoming,
    replies: ReplyQueue,
    unflushed: bool,
    requests_in_flight: usize,
    bytes_in_flight: u64,
}

impl<'a, S, F, M> Transmission<'a, S, F, M>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Completion>,
    M: Fn(Request, Bytes) -> F,
{
    pub(super) fn new(stream: S, agreed: &'a Agreed, statistics: &'a Statistics, start: M) -> Self {
        Self {
            stream,
            agreed,
            statistics,
            start,
            operations: FuturesUnordered::new(),
            receiver: Receiver::new(),
            incoming: Incoming::Header,
            replies: ReplyQueue::default(),
            unflushed: false,
            requests_in_flight: 0,
            bytes_in_flight: 0,
        }
    }

    /// Serves until something ends the phase. Requests may still be in flight then.
    pub(super) fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        loop {
            if let Err(stop) = self.collect(cx).and_then(|()| self.write(cx)) {
                return Poll::Ready(stop);
            }
            // New operations want their first poll, new error replies want to leave.
            match self.receive(cx) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(stop) => return Poll::Ready(stop),
            }
        }
    }

    /// Reads no more, finishes the operations in flight, and goes on writing replies meanwhile.
    pub(super) fn poll_finish_operations(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        match self.collect(cx).and_then(|()| self.write(cx)) {
            Ok(()) if self.operations.is_empty() => Poll::Ready(Ok(())),
            Ok(()) => Poll::Pending,
            Err(stop) => Poll::Ready(Err(stop)),
        }
    }

    /// Writes the replies that are left and closes the sending half.
    pub(super) fn poll_finish_replies(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        if let Err(stop) = self.write(cx) {
            return Poll::Ready(Err(stop));
        }
        if !self.replies.is_empty() {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx).map_err(|_| Stop::Broken)
    }

    /// Closes at once, then waits for the device to let go of every buffer.
    pub(super) async fn close(self) {
        let Self { stream, mut operations, replies, .. } = self;
        drop(stream);
        drop(replies);
        while operations.next().await.is_some() {}
    }

    /// Takes every completion there is.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        while let Poll::Ready(Some(Completion { request, outcome })) = self.operations.poll_next_unpin(cx) {
            if outcome == Outcome::Lost {
                return Err(Stop::Lost);
            }
            // A write's payload is gone by now; only reply bytes count until they are written.
            let cost = match request.operation {
                Operation::Write => {
                    self.bytes_in_flight -= request.cost_bytes();
                    0
                }
                _ => request.cost_bytes(),
            };
            reply::push_reply(&mut self.replies, self.agreed.structured_replies, &request, outcome);
            self.replies.end_reply(cost);
        }
        Ok(())
    }

    /// Writes as much as the stream takes.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Stop> {
        while !self.replies.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.replies.gather(&mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) if count > 0 => {
                    let released = self.replies.advance(count);
                    self.requests_in_flight -= released.requests;
                    self.bytes_in_flight -= released.bytes;
                    self.unflushed = true;
                }
                Poll::Ready(_) => return Err(Stop::Broken),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Err(Stop::Broken),
            }
        }
        Ok(())
    }

    /// Receives requests until the stream has no more bytes, a limit is reached, or there is enough to act on. True
    /// when it changed something that `collect` or `write` should see.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, Stop> {
        let mut progress = false;
        loop {
            match self.poll_incoming(cx) {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(())) => progress = true,
                Poll::Ready(Err(stop)) => return Err(stop),
            }
        }
    }

    /// One step of the incoming half. Pending also at a limit: then a written reply or a completion, which wake this
    /// task anyway, makes room.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        match self.incoming {
            Incoming::Header => {
                if self.requests_in_flight >= REQUESTS_IN_FLIGHT_MAX {
                    return Poll::Pending;
                }
                let decided = std::task::ready!(self.receiver.poll_decision(&mut self.stream, cx, self.agreed));
                self.incoming = match decided {
                    Ok(Decision::Start(request)) => Incoming::Admission(request),
                    Ok(Decision::Reject { cookie, error, reason, payload_bytes }) => {
                        self.requests_in_flight += 1;
                        self.receiver.skip(payload_bytes);
                        Incoming::Skipping { cookie, error, reason }
                    }
                    Ok(Decision::Disconnect) => return Poll::Ready(Err(Stop::Disconnected)),
                    Err(error) => return Poll::Ready(Err(error.into())),
                };
            }
            Incoming::Admission(request) => {
                let cost = request.cost_bytes();
                if self.bytes_in_flight + cost > BYTES_IN_FLIGHT_MAX {
                    return Poll::Pending;
                }
                self.requests_in_flight += 1;
                self.bytes_in_flight += cost;
                if request.operation == Operation::Write && request.range.length > 0 {
                    self.incoming = Incoming::Payload(request);
                } else {
                    self.begin(request, Bytes::new());
                }
            }
            Incoming::Payload(request) => {
                let length = request.range.length as usize;
                match std::task::ready!(self.receiver.poll_payload(&mut self.stream, cx, length)) {
                    Ok(payload) => self.begin(request, payload),
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
            Incoming::Skipping { cookie, error, reason } => {
                if let Err(error) = std::task::ready!(self.receiver.poll_skipped(&mut self.stream, cx)) {
                    return Poll::Ready(Err(error.into()));
                }
                Statistics::add(&self.statistics.errors, 1);
                reply::push_error(&mut self.replies, self.agreed.structured_replies, cookie, error, reason);
                self.replies.end_reply(0);
                self.incoming = Incoming::Header;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn begin(&mut self, request: Request, payload: Bytes) {
        self.incoming = Incoming::Header;
        self.operations.push((self.start)(request, payload));
    }
}

impl From<ReceiveError> for Stop {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Gone => Self::Ended,
            ReceiveError::Protocol(error) => Self::Protocol(error),
        }
    }
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}
