//! How an outcome looks on the wire: simple or structured replies, data and hole chunks, extents, error chunks.
//!
//! Pure and stateless.

use block_device::{Allocation, ByteRange};
use bytes::{BufMut, Bytes};

use super::reply_queue::ReplyQueue;
use super::request::{Operation, Request};
use crate::codec::{self, Cookie, ErrorNumber, chunk};
use crate::{STATUS_EXTENTS_MAX, STRING_BYTES_MAX};

/// Unit in which read data is searched for zeros, in bytes: a hole chunk is worth its 32 bytes and the scan only when
/// it saves much more.
const HOLE_GRAIN_BYTES: usize = 32 << 10;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The data of a READ, as long as its range.
    Data(Bytes),
    /// Done; nothing to tell.
    Done,
    /// The extents of a BLOCK_STATUS.
    Extents(Vec<Allocation>),
    /// Failed, and the client may know why.
    Failed {
        /// The protocol's error.
        error: ErrorNumber,
        /// Text for people.
        message: String,
    },
    /// The device is no longer served here: the only right answer is silence and a closed connection.
    Lost,
}

/// Appends the reply of `request` to `queue`, without the end mark. [`Outcome::Lost`] has none.
pub fn push_reply(queue: &mut ReplyQueue, structured: bool, request: &Request, outcome: Outcome) {
    let cookie = request.cookie;
    match (outcome, request.operation) {
        (Outcome::Lost, _) => {}
        (Outcome::Failed { error, message }, _) => push_error(queue, structured, cookie, error, &message),
        (Outcome::Data(data), _) if !structured => {
            queue.push_head(|out| codec::put_simple_reply(out, cookie, None));
            queue.push_body(data);
        }
        (Outcome::Data(data), Operation::Read { fragments }) => {
            push_data(queue, cookie, request.range.offset, data, fragments);
        }
        (Outcome::Extents(extents), Operation::BlockStatus { one }) => {
            push_extents(queue, cookie, request.range, &extents, one);
        }
        // Structured replies are a must for READ and BLOCK_STATUS only ("Structured reply message"): this is shorter.
        (_, _) => queue.push_head(|out| codec::put_simple_reply(out, cookie, None)),
    }
}

/// Appends an error reply, with its text where the client can take it.
pub fn push_error(queue: &mut ReplyQueue, structured: bool, cookie: Cookie, error: ErrorNumber, message: &str) {
    if !structured {
        queue.push_head(|out| codec::put_simple_reply(out, cookie, Some(error)));
        return;
    }
    let end = (0..=message.len().min(STRING_BYTES_MAX)).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    let text = &message.as_bytes()[..end];
    queue.push_head(|out| {
        codec::put_chunk_header(out, chunk::FLAG_DONE, chunk::ERROR, cookie, 6 + text.len());
        out.put_u32(error as u32);
        out.put_u16(text.len() as u16);
        out.put_slice(text);
    });
}

fn push_data(queue: &mut ReplyQueue, cookie: Cookie, offset: u64, data: Bytes, fragments: bool) {
    if data.is_empty() {
        queue.push_head(|out| codec::put_chunk_header(out, chunk::FLAG_DONE, chunk::NONE, cookie, 0));
        return;
    }
    let mut at = 0;
    while at < data.len() {
        let (length, hole) = next_run(&data, at, fragments);
        let flags = if at + length == data.len() { chunk::FLAG_DONE } else { 0 };
        queue.push_head(|out| {
            let (kind, payload) = if hole { (chunk::OFFSET_HOLE, 12) } else { (chunk::OFFSET_DATA, 8 + length) };
            codec::put_chunk_header(out, flags, kind, cookie, payload);
            out.put_u64(offset + at as u64);
            if hole {
                out.put_u32(length as u32);
            }
        });
        if !hole {
            queue.push_body(data.slice(at..at + length));
        }
        at += length;
    }
}

/// Length of the run of data, or of zeros, that starts at `at`.
///
/// Holes are found in the data itself and not by asking for the allocation: that answer would be of another moment
/// than the read, and reads are checked against the lease where allocation need not be.
fn next_run(data: &[u8], at: usize, fragments: bool) -> (usize, bool) {
    if !fragments || data.len() < HOLE_GRAIN_BYTES {
        return (data.len() - at, false);
    }
    let mut grains = data[at..].chunks(HOLE_GRAIN_BYTES);
    let first = grains.next().unwrap_or_default();
    let hole = is_hole(first);
    let more: usize = grains.take_while(|grain| is_hole(grain) == hole).map(<[u8]>::len).sum();
    (first.len() + more, hole)
}

fn is_hole(grain: &[u8]) -> bool {
    const WIDTH: usize = 64;
    // A shorter rest counts as data: as a hole it would save less than a scan is worth.
    grain.len() == HOLE_GRAIN_BYTES
        && grain.chunks_exact(WIDTH).all(|part| part.iter().fold(0, |bits, byte| bits | byte) == 0)
}

fn push_extents(queue: &mut ReplyQueue, cookie: Cookie, range: ByteRange, extents: &[Allocation], one: bool) {
    let merged = merge_extents(range, extents, if one { 1 } else { STATUS_EXTENTS_MAX });
    if merged.is_empty() {
        push_error(queue, true, cookie, ErrorNumber::Io, "the allocation of the range is not known");
        return;
    }
    queue.push_head(|out| {
        codec::put_chunk_header(out, chunk::FLAG_DONE, chunk::BLOCK_STATUS, cookie, 4 + merged.len() * 8);
        out.put_u32(codec::BASE_ALLOCATION_ID);
        for (length, hole) in merged {
            out.put_u32(length);
            out.put_u32(if hole { codec::STATE_HOLE_AND_ZERO } else { 0 });
        }
    });
}

/// Joins neighbours of one kind and cuts to `range`: at most `limit` extents from its start. The protocol wants
/// neighbours to differ where it can be had, and no extent to be empty.
fn merge_extents(range: ByteRange, extents: &[Allocation], limit: usize) -> Vec<(u32, bool)> {
    let end = range.offset + range.length;
    let mut at = range.offset;
    let mut merged: Vec<(u32, bool)> = Vec::new();
    for extent in extents {
        let extent_end = extent.range.offset.saturating_add(extent.range.length).min(end);
        if extent.range.offset > at {
            break;
        }
        if extent_end <= at {
            continue;
        }
        // Fits: `range` is no longer than `STATUS_BYTES_MAX`.
        let length = (extent_end - at) as u32;
        let full = merged.len() == limit;
        match merged.last_mut() {
            Some((total, hole)) if *hole == extent.hole => *total += length,
            _ if full => break,
            _ => merged.push((length, extent.hole)),
        }
        at = extent_end;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, length: u64, hole: bool) -> Allocation {
        Allocation { range: ByteRange { offset, length }, hole }
    }

    #[test]
    fn neighbouring_extents_of_one_kind_are_joined_and_cut_to_the_range() {
        let range = ByteRange { offset: 100, length: 1000 };
        let extents = [extent(0, 200, true), extent(200, 300, true), extent(500, 100, false), extent(600, 9000, true)];
        assert_eq!(merge_extents(range, &extents, 10), [(400, true), (100, false), (500, true)]);
        assert_eq!(merge_extents(range, &extents, 1), [(400, true)]);
    }

    #[test]
    fn extents_end_at_a_gap() {
        let range = ByteRange { offset: 0, length: 1000 };
        assert_eq!(merge_extents(range, &[extent(0, 10, true), extent(20, 10, true)], 10), [(10, true)]);
        assert!(merge_extents(range, &[extent(20, 10, true)], 10).is_empty());
    }

    #[test]
    fn runs_of_zeros_become_holes_only_in_whole_grains() {
        let mut data = vec![0u8; 4 * HOLE_GRAIN_BYTES + 17];
        data[HOLE_GRAIN_BYTES * 2 - 1] = 1;
        assert_eq!(next_run(&data, 0, true), (HOLE_GRAIN_BYTES, true));
        assert_eq!(next_run(&data, HOLE_GRAIN_BYTES, true), (HOLE_GRAIN_BYTES, false));
        assert_eq!(next_run(&data, HOLE_GRAIN_BYTES * 2, true), (HOLE_GRAIN_BYTES * 2, true));
        assert_eq!(next_run(&data, HOLE_GRAIN_BYTES * 4, true), (17, false));
        assert_eq!(next_run(&data, 0, false), (data.len(), false));
    }
}
