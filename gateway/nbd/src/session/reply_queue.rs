//! Replies on their way to the socket: small headers side by side in one buffer, payloads as they came from the
//! device, offered together for one vectored write.
//!
//! Pure. Bounded by its user: a reply enters only for a request that holds its share of the connection's limits, and
//! gives it back when its last byte is written.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Initial room for headers, in bytes.
const HEAD_BYTES: usize = 4096;

/// What written replies gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Requests whose reply is written.
    pub requests: usize,
    /// Their cost in bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct ReplyEnd {
    /// Position in the stream of replies just after this one.
    position: u64,
    cost_bytes: u64,
}

/// The replies of one connection that are not written yet.
#[derive(Debug)]
pub struct ReplyQueue {
    segments: VecDeque<Bytes>,
    /// Headers not yet sealed into a segment.
    head: BytesMut,
    ends: VecDeque<ReplyEnd>,
    queued_total: u64,
    written_total: u64,
}

impl Default for ReplyQueue {
    fn default() -> Self {
        Self {
            segments: VecDeque::new(),
            head: BytesMut::with_capacity(HEAD_BYTES),
            ends: VecDeque::new(),
            queued_total: 0,
            written_total: 0,
        }
    }
}

impl ReplyQueue {
    /// True when every byte is written.
    pub fn is_empty(&self) -> bool {
        self.queued_total == self.written_total
    }

    /// Bytes not yet written.
    pub fn pending_bytes(&self) -> u64 {
        self.queued_total - self.written_total
    }

    /// Appends what `fill` puts into the buffer.
    pub fn push_head(&mut self, fill: impl FnOnce(&mut BytesMut)) {
        let before = self.head.len();
        fill(&mut self.head);
        self.queued_total += (self.head.len() - before) as u64;
    }

    /// Appends a payload without a copy.
    pub fn push_body(&mut self, body: Bytes) {
        if body.is_empty() {
            return;
        }
        self.seal();
        self.queued_total += body.len() as u64;
        self.segments.push_back(body);
    }

    /// Ends the reply of one request, whose `cost_bytes` come back when all before this point is written.
    pub fn end_reply(&mut self, cost_bytes: u64) {
        self.ends.push_back(ReplyEnd { position: self.queued_total, cost_bytes });
    }

    /// Fills `slices` from the front; returns how many are used.
    pub fn gather<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.seal();
        let mut used = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.segments) {
            *slot = IoSlice::new(segment);
            used += 1;
        }
        used
    }

    /// Takes note that the first `count` bytes are written. `count` is at most what `gather` offered.
    pub fn advance(&mut self, mut count: usize) -> Released {
        self.written_total += count as u64;
        while count > 0 {
            let front = self.segments.front_mut().expect("no more bytes are written than were offered");
            if front.len() > count {
                front.advance(count);
                break;
            }
            count -= front.len();
            self.segments.pop_front();
        }
        let mut released = Released::default();
        while let Some(end) = self.ends.front().filter(|end| end.position <= self.written_total) {
            released.requests += 1;
            released.bytes += end.cost_bytes;
            self.ends.pop_front();
        }
        released
    }

    fn seal(&mut self) {
        if !self.head.is_empty() {
            self.segments.push_back(self.head.split().freeze());
        }
    }
}
