//! The rules that hold for every message, whichever way it travels.

use super::super::message::{Message, UNCERTAIN_RUNS_MAX, Uncertain, Worth, WriteKind};
use super::super::version::ProtocolVersion;
use super::header::{Fields, types};
use super::{DIGEST_BYTES, GROUPS_MAX, HEAT_EXTENTS_MAX, Invalid, PAYLOAD_BYTES_MAX, RANGES_MAX, SUM_BYTES, VERSION_2};
use crate::{BLOCK_BYTES, BlockRange};

/// One past the last block whose bytes have a 64-bit offset.
const BLOCKS_MAX: u64 = u64::MAX / BLOCK_BYTES;

/// True when the checksums of the payload's blocks travel with the message: `encode` then calls for one for each block,
/// and `FrameHead::sums` gives them to the receiver.
pub fn carries_sums(protocol: ProtocolVersion, message: &Message) -> bool {
    let has_data = match message {
        Message::Write { kind, .. } | Message::ResyncData { kind, .. } => *kind == WriteKind::Data,
        Message::WriteBatch { .. } | Message::ReadReply { .. } => true,
        _ => false,
    };
    has_data && protocol >= VERSION_2
}

/// True when the header's CRC is what protects the payload, and not its blocks' checksums: those of blocks that are
/// known to be bad are not meant to fit.
pub(super) fn payload_has_crc(protocol: ProtocolVersion, message: &Message) -> bool {
    !carries_sums(protocol, message) || is_unsound(message)
}

/// True for the data of blocks that the source itself does not trust.
pub(super) fn is_unsound(message: &Message) -> bool {
    matches!(message, Message::ResyncData { worth: Worth::Bad | Worth::Lost, .. })
}

/// The blocks that the payload of a message with data holds, in order.
pub(super) fn payload_blocks(message: &Message) -> impl Iterator<Item = u64> {
    let (range, groups) = match message {
        Message::Write { range, .. } | Message::ResyncData { range, .. } | Message::ReadReply { range, .. } => {
            (Some(*range), &[][..])
        }
        Message::WriteBatch { groups, .. } => (None, groups.as_slice()),
        _ => (None, &[][..]),
    };
    range.into_iter().chain(groups.iter().flatten().copied()).flat_map(BlockRange::blocks)
}

/// Checks a message and the length of its payload.
pub(super) fn check(protocol: ProtocolVersion, message: &Message, payload_bytes: u64) -> Result<(), Invalid> {
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(Invalid::PayloadTooLong { bytes: payload_bytes });
    }
    check_version(protocol, message)?;
    let expected = match message {
        Message::ResyncData { kind, .. } if *kind != WriteKind::Data && is_unsound(message) => {
            return Err(Invalid::UnsoundWithoutData);
        }
        Message::Write { range, kind, .. } | Message::ResyncData { range, kind, .. } => {
            check_range(*range)?;
            if *kind == WriteKind::Data { range.count * BLOCK_BYTES } else { 0 }
        }
        Message::WriteBatch { groups, .. } => batch_bytes(groups)?,
        Message::DigestRequest { range, .. } => answer_bytes(*range, DIGEST_BYTES).map(|_| 0)?,
        Message::Digest { range, .. } => answer_bytes(*range, DIGEST_BYTES)?,
        Message::SumsRequest { range, .. } => answer_bytes(*range, SUM_BYTES).map(|_| 0)?,
        Message::Sums { range, .. } => answer_bytes(*range, SUM_BYTES)?,
        Message::ReadRequest { range, .. } => answer_bytes(*range, BLOCK_BYTES).map(|_| 0)?,
        Message::ReadReply { range, .. } => answer_bytes(*range, BLOCK_BYTES)?,
        Message::ReadFailed { bad, .. } => check_ranges(bad.len(), bad).map(|()| 0)?,
        Message::Heat { extents } if extents.len() > HEAT_EXTENTS_MAX => {
            return Err(Invalid::TooManyExtents { found: extents.len() });
        }
        Message::HelloReply { uncertain: Uncertain::Runs(runs), .. } if protocol >= VERSION_2 => {
            check_runs(runs).map(|()| 0)?
        }
        _ => 0,
    };
    if expected == payload_bytes { Ok(()) } else { Err(Invalid::PayloadLength { expected, found: payload_bytes }) }
}

/// Checks the number of block checksums that go with a message whose payload `check` has accepted.
pub(super) fn check_sums(
    protocol: ProtocolVersion,
    message: &Message,
    payload_bytes: u64,
    found: usize,
) -> Result<(), Invalid> {
    let expected = if carries_sums(protocol, message) { payload_bytes / BLOCK_BYTES } else { 0 };
    let found = found as u64;
    if expected == found { Ok(()) } else { Err(Invalid::SumCount { expected, found }) }
}

fn check_version(protocol: ProtocolVersion, message: &Message) -> Result<(), Invalid> {
    let message_type = Fields::of(protocol, message).message_type;
    if !types::exist(protocol, message_type) || (is_unsound(message) && protocol < VERSION_2) {
        return Err(Invalid::NotInVersion { message_type, protocol: protocol.0 });
    }
    Ok(())
}

/// After this, byte offsets and lengths of the range fit 64 bits.
fn check_range(range: BlockRange) -> Result<(), Invalid> {
    if range.count == 0 {
        return Err(Invalid::EmptyRange { start: range.start });
    }
    match range.start.checked_add(range.count) {
        Some(end) if end <= BLOCKS_MAX => Ok(()),
        _ => Err(Invalid::RangeOverflow { start: range.start, count: range.count }),
    }
}

fn check_ranges<'a>(count: usize, ranges: impl IntoIterator<Item = &'a BlockRange>) -> Result<(), Invalid> {
    if count > RANGES_MAX {
        return Err(Invalid::TooManyRanges { found: count });
    }
    ranges.into_iter().try_for_each(|range| check_range(*range))
}

/// Length of an answer about a range, at so many bytes per block; one that is asked for must fit a frame as well.
fn answer_bytes(range: BlockRange, bytes_per_block: u64) -> Result<u64, Invalid> {
    check_range(range)?;
    let bytes = range.count * bytes_per_block;
    if bytes > PAYLOAD_BYTES_MAX { Err(Invalid::PayloadTooLong { bytes }) } else { Ok(bytes) }
}

fn batch_bytes(groups: &[Vec<BlockRange>]) -> Result<u64, Invalid> {
    if groups.len() > GROUPS_MAX {
        return Err(Invalid::TooManyGroups { found: groups.len() });
    }
    check_ranges(groups.iter().map(Vec::len).sum(), groups.iter().flatten())?;
    let blocks = groups.iter().flatten().fold(0u64, |total, range| total.saturating_add(range.count));
    let bytes = blocks.saturating_mul(BLOCK_BYTES);
    if bytes > PAYLOAD_BYTES_MAX { Err(Invalid::PayloadTooLong { bytes }) } else { Ok(bytes) }
}

/// Runs that touch are let through: they say the same as one.
fn check_runs(runs: &[(u32, u32)]) -> Result<(), Invalid> {
    if runs.len() > UNCERTAIN_RUNS_MAX {
        return Err(Invalid::TooManyRuns { found: runs.len() });
    }
    let mut free_from = 0;
    for &(first, count) in runs {
        match first.checked_add(count) {
            Some(end) if count > 0 && first >= free_from => free_from = end,
            _ => return Err(Invalid::BadRun { first, count }),
        }
    }
    Ok(())
}
