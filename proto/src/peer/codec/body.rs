//! Bodies of frames: what does not fit the header's words. A body is its content, then the checksums of the payload's
//! blocks if the message carries them, then a checksum over both.

use super::super::message::{Message, UNCERTAIN_RUNS_MAX, Uncertain};
use super::super::version::ProtocolVersion;
use super::super::wire::Cursor;
use super::header::types;
use super::{DecodeError, GROUPS_MAX, HEAT_EXTENTS_MAX, Invalid, RANGES_MAX, SUM_BYTES, VERSION_2};
use crate::checksum::BlockSums;
use crate::{BLOCK_BYTES, BlockRange, Boot, ConfigVersion, DiskId, Incarnation, Timestamp};

const CHECKSUM_BYTES: usize = 4;
const COUNT_BYTES: usize = 4;
const RANGE_BYTES: usize = 16;
const RUN_BYTES: usize = 8;
const EXTENT_BYTES: usize = 8;
const HELLO_BYTES: usize = 32;
const HELLO_REPLY_BYTES: usize = 56;
/// Stands for [`Uncertain::All`] in place of a number of runs.
const ALL_EXTENTS: u32 = u32::MAX;

const GROUPS_BYTES_MAX: usize = COUNT_BYTES + COUNT_BYTES * GROUPS_MAX + RANGE_BYTES * RANGES_MAX;
const UNCERTAIN_BYTES_MAX: usize = COUNT_BYTES + RUN_BYTES * UNCERTAIN_RUNS_MAX;

/// Longest body, its checksum included: a batch with as many ranges as there can be, and their blocks' checksums.
pub const BODY_BYTES_MAX: usize = GROUPS_BYTES_MAX + SUM_BYTES as usize * RANGES_MAX + CHECKSUM_BYTES;

/// False when no body of this type has this length; keeps a reader from waiting for bytes that cannot be right.
pub(super) fn length_possible(protocol: ProtocolVersion, message_type: u8, payload_bytes: u64, length: usize) -> bool {
    let sums = if protocol < VERSION_2 { 0 } else { (payload_bytes / BLOCK_BYTES * SUM_BYTES) as usize };
    let within = |min: usize, max: usize| (min + CHECKSUM_BYTES..=max + CHECKSUM_BYTES).contains(&length);
    match message_type {
        types::HELLO => within(HELLO_BYTES, HELLO_BYTES),
        types::HELLO_REPLY if protocol < VERSION_2 => within(HELLO_REPLY_BYTES, HELLO_REPLY_BYTES),
        types::HELLO_REPLY => within(HELLO_REPLY_BYTES + COUNT_BYTES, HELLO_REPLY_BYTES + UNCERTAIN_BYTES_MAX),
        types::WRITE_BATCH => within(COUNT_BYTES + sums, GROUPS_BYTES_MAX + sums),
        types::WRITE | types::RESYNC_DATA | types::READ_REPLY if sums > 0 => within(sums, sums),
        types::HEAT => within(COUNT_BYTES, COUNT_BYTES + EXTENT_BYTES * HEAT_EXTENTS_MAX),
        types::READ_FAILED => within(COUNT_BYTES, COUNT_BYTES + RANGE_BYTES * RANGES_MAX),
        _ => length == 0,
    }
}

/// Appends the body, its checksum included; nothing for a message that has none.
pub(super) fn encode(protocol: ProtocolVersion, message: &Message, sums: &[u32], out: &mut Vec<u8>) {
    let start = out.len();
    put_content(protocol, message, out);
    for sum in sums {
        out.extend_from_slice(&sum.to_le_bytes());
    }
    if out.len() > start {
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
}

/// Takes the checksum off a body that has one.
pub(super) fn checked(body: &[u8]) -> Result<&[u8], DecodeError> {
    match body.split_last_chunk::<CHECKSUM_BYTES>() {
        None => Ok(body),
        Some((content, crc)) if crc32fast::hash(content) == u32::from_le_bytes(*crc) => Ok(content),
        Some(_) => Err(DecodeError::BodyChecksum),
    }
}

fn put_content(protocol: ProtocolVersion, message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello { incarnation, disk_id, stamp } => {
            out.extend_from_slice(&incarnation.0.to_le_bytes());
            out.extend_from_slice(&disk_id.0.to_le_bytes());
            out.extend_from_slice(&stamp.0.to_le_bytes());
        }
        Message::HelloReply { incarnation, boot, disk_id, last_in_sync, suspect: _, stamp, uncertain } => {
            out.extend_from_slice(&incarnation.0.to_le_bytes());
            out.extend_from_slice(&boot.0.to_le_bytes());
            out.extend_from_slice(&disk_id.0.to_le_bytes());
            out.extend_from_slice(&last_in_sync.0.to_le_bytes());
            out.extend_from_slice(&stamp.0.to_le_bytes());
            if protocol >= VERSION_2 {
                put_uncertain(uncertain, out);
            }
        }
        Message::WriteBatch { seq: _, groups } => {
            put_count(groups.len(), out);
            groups.iter().for_each(|group| put_ranges(group, out));
        }
        Message::Heat { extents } => {
            put_count(extents.len(), out);
            extents.iter().for_each(|extent| out.extend_from_slice(&extent.to_le_bytes()));
        }
        Message::ReadFailed { seq: _, bad } => put_ranges(bad, out),
        _ => {}
    }
}

/// Every list is bounded far below 2³² before it gets here.
fn put_count(count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_ranges(ranges: &[BlockRange], out: &mut Vec<u8>) {
    put_count(ranges.len(), out);
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.count.to_le_bytes());
    }
}

fn put_uncertain(uncertain: &Uncertain, out: &mut Vec<u8>) {
    match uncertain {
        Uncertain::All => out.extend_from_slice(&ALL_EXTENTS.to_le_bytes()),
        Uncertain::Runs(runs) => {
            put_count(runs.len(), out);
            for (first, count) in runs {
                out.extend_from_slice(&first.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
            }
        }
    }
}

pub(super) fn hello(content: &mut Cursor<'_>) -> Option<Message> {
    let incarnation = Incarnation(content.u64()?);
    let disk_id = DiskId(content.u128()?);
    Some(Message::Hello { incarnation, disk_id, stamp: Timestamp(content.u64()?) })
}

pub(super) fn hello_reply(
    protocol: ProtocolVersion,
    suspect: bool,
    content: &mut Cursor<'_>,
) -> Result<Option<Message>, Invalid> {
    let uncertain = |content: &mut Cursor<'_>| {
        if protocol < VERSION_2 { Ok(Some(Uncertain::All)) } else { uncertain(content) }
    };
    let fixed = |content: &mut Cursor<'_>| {
        let incarnation = Incarnation(content.u64()?);
        let boot = Boot(content.u128()?);
        let disk_id = DiskId(content.u128()?);
        let last_in_sync = ConfigVersion(content.u64()?);
        Some((incarnation, boot, disk_id, last_in_sync, Timestamp(content.u64()?)))
    };
    let Some((incarnation, boot, disk_id, last_in_sync, stamp)) = fixed(content) else { return Ok(None) };
    let reply = |uncertain| Message::HelloReply { incarnation, boot, disk_id, last_in_sync, suspect, stamp, uncertain };
    Ok(uncertain(content)?.map(reply))
}

/// Counts are checked before anything is allocated for them, here and below.
fn uncertain(content: &mut Cursor<'_>) -> Result<Option<Uncertain>, Invalid> {
    let Some(count) = content.u32() else { return Ok(None) };
    if count == ALL_EXTENTS {
        return Ok(Some(Uncertain::All));
    }
    let found = count as usize;
    if found > UNCERTAIN_RUNS_MAX {
        return Err(Invalid::TooManyRuns { found });
    }
    Ok(list(found, || Some((content.u32()?, content.u32()?))).map(Uncertain::Runs))
}

pub(super) fn groups(content: &mut Cursor<'_>) -> Result<Option<Vec<Vec<BlockRange>>>, Invalid> {
    let Some(group_count) = content.u32() else { return Ok(None) };
    let group_count = group_count as usize;
    if group_count > GROUPS_MAX {
        return Err(Invalid::TooManyGroups { found: group_count });
    }
    let mut ranges_total = 0;
    let mut groups = Vec::with_capacity(group_count);
    for _ in 0..group_count {
        let Some(group) = ranges_after(ranges_total, content)? else { return Ok(None) };
        ranges_total += group.len();
        groups.push(group);
    }
    Ok(Some(groups))
}

pub(super) fn ranges(content: &mut Cursor<'_>) -> Result<Option<Vec<BlockRange>>, Invalid> {
    ranges_after(0, content)
}

/// A list of ranges in a message that has had `before` of them already.
fn ranges_after(before: usize, content: &mut Cursor<'_>) -> Result<Option<Vec<BlockRange>>, Invalid> {
    let Some(count) = content.u32() else { return Ok(None) };
    let found = before + count as usize;
    if found > RANGES_MAX {
        return Err(Invalid::TooManyRanges { found });
    }
    Ok(list(count as usize, || Some(BlockRange { start: content.u64()?, count: content.u64()? })))
}

pub(super) fn extents(content: &mut Cursor<'_>) -> Result<Option<Vec<u64>>, Invalid> {
    let Some(count) = content.u32() else { return Ok(None) };
    let found = count as usize;
    if found > HEAT_EXTENTS_MAX {
        return Err(Invalid::TooManyExtents { found });
    }
    Ok(list(found, || content.u64()))
}

/// Checksums of that many blocks; `None` when there are fewer.
pub(super) fn sums(blocks: u64, content: &mut Cursor<'_>) -> Option<BlockSums> {
    (0..blocks).map(|_| content.u32()).collect()
}

fn list<T>(count: usize, mut next: impl FnMut() -> Option<T>) -> Option<Vec<T>> {
    (0..count).map(|_| next()).collect()
}
