//! The bytes that a link has still to send: headers and small payloads copied together, larger payloads shared.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::Bytes;
use proto::peer::codec::{self, Invalid, PayloadSum};
use proto::peer::message::{Envelope, Message};
use proto::peer::version::ProtocolVersion;
use smallvec::SmallVec;

/// Most pieces handed to one system call.
const SLICES_MAX: usize = 64;
/// Payload parts up to this many bytes are copied beside their header: a copy is cheaper than one more piece.
const COPIED_PART_BYTES_MAX: usize = 256;
/// A piece of copied bytes is not extended beyond this.
const COPIED_PIECE_BYTES: usize = 64 * 1024;

/// Whether everything went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing is left.
    All,
    /// The socket takes no more for now.
    Blocked,
}

#[derive(Debug)]
enum Piece {
    Copied(Vec<u8>),
    Shared(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Copied(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }
}

/// The queue; its owner bounds `queued_bytes`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent already.
    sent_of_first: usize,
    queued_bytes: usize,
    /// An emptied piece, kept for its allocation.
    spare: Vec<u8>,
}

impl Outbox {
    /// Bytes not yet given to the socket.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Queues a frame; `sums` are the checksums of the blocks of its data, if it has any. Errors: the message or its payload is
    /// invalid; nothing is queued then.
    pub(super) fn push(
        &mut self,
        protocol: ProtocolVersion,
        envelope: &Envelope,
        message: &Message,
        payload: SmallVec<[Bytes; 1]>,
        sums: &[u32],
    ) -> Result<(), Invalid> {
        let sum = PayloadSum::for_message(protocol, message, &payload);
        let tail = self.tail();
        let before = tail.len();
        codec::encode(protocol, envelope, message, sum, sums, tail)?;
        let added = tail.len() - before;
        self.queued_bytes += added;
        for part in payload {
            self.queued_bytes += part.len();
            if part.len() <= COPIED_PART_BYTES_MAX {
                self.tail().extend_from_slice(&part);
            } else {
                self.pieces.push_back(Piece::Shared(part));
            }
        }
        Ok(())
    }

    /// Writes with `write` until the queue is empty or the socket full. Errors: the socket's.
    pub(super) fn write_with(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Written> {
        while self.queued_bytes > 0 {
            let written = {
                let mut slices: SmallVec<[IoSlice<'_>; SLICES_MAX]> =
                    self.pieces.iter().take(SLICES_MAX).map(|piece| IoSlice::new(piece.bytes())).collect();
                if let Some(first) = slices.first_mut() {
                    first.advance(self.sent_of_first);
                }
                write(&slices)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Written::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Written::All)
    }

    /// The piece of copied bytes at the end of the queue.
    fn tail(&mut self) -> &mut Vec<u8> {
        let fits = matches!(self.pieces.back(), Some(Piece::Copied(bytes)) if bytes.len() < COPIED_PIECE_BYTES);
        if !fits {
            let spare = std::mem::take(&mut self.spare);
            self.pieces.push_back(Piece::Copied(spare));
        }
        match self.pieces.back_mut() {
            Some(Piece::Copied(bytes)) => bytes,
            _ => unreachable!("a copied piece was just put there"),
        }
    }

    fn consume(&mut self, mut count: usize) {
        self.queued_bytes -= count;
        while let Some(first) = self.pieces.front() {
            let left = first.bytes().len() - self.sent_of_first;
            if count < left {
                self.sent_of_first += count;
                return;
            }
            count -= left;
            self.sent_of_first = 0;
            if let Some(Piece::Copied(mut bytes)) = self.pieces.pop_front()
                && bytes.capacity() > self.spare.capacity()
                && bytes.capacity() <= 2 * COPIED_PIECE_BYTES
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }
}
