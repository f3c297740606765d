//! Opens, locks and delegations as records, from which a takeover builds them anew. Each record starts with a version. A lock state
//! with many ranges is in several records; its first says how many ranges there are in all.

use std::collections::BTreeMap;

use bytes::Bytes;
use filesystem::state_ring::RecordId;
use thiserror::Error;

use super::bounds::RANGES_PER_STATE_MAX;
use super::delegation::Delegation;
use super::files::FileStates;
use super::holder::Holder;
use super::lock::LockState;
use super::open::Open;
use super::ranges::{ByteRange, HeldRange, HeldRanges, LockKind};
use super::share::Combinations;
use crate::ids::{ClientId, FileId, StateNumber};
use crate::xdr::{Decoder, Encoder, XdrError};

/// The kind of the records of opens and share reservations; the key is the state's number.
pub const OPEN_RECORD: u16 = 5;
/// The kind of those of locks; the key is the state's number and, in the lowest 32 bits, the chunk.
pub const LOCK_RECORD: u16 = 6;
/// The kind of those of delegations; the key is the state's number.
pub const DELEGATION_RECORD: u16 = 7;
/// The longest record.
pub const RECORD_BYTES_MAX: usize = 3_900;

const VERSION: u32 = 1;
/// Ranges in the first record of a lock state, beside the longest of holders.
const FIRST_RANGES: usize = 80;
/// Ranges in each of the others.
const MORE_RANGES: usize = 190;

/// Why records are not those of the states of files. The service's state is lost then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// A record is not what it should be.
    #[error("record {id:?}: {error}")]
    Malformed {
        /// Which.
        id: RecordId,
        /// What is wrong with it.
        error: XdrError,
    },
    /// A record is of a version that is not known here.
    #[error("record {id:?} is of version {version}")]
    Version {
        /// Which.
        id: RecordId,
        /// Its version.
        version: u32,
    },
    /// A record, or a state of several, contradicts itself or others.
    #[error("record {0:?} does not fit")]
    Inconsistent(RecordId),
}

/// Records that so many ranges are in.
pub(super) fn chunk_count(ranges: usize) -> u32 {
    1 + ranges.saturating_sub(FIRST_RANGES).div_ceil(MORE_RANGES) as u32
}

/// The ranges of one of them.
pub(super) fn chunk(ranges: &[HeldRange], chunk: u32) -> &[HeldRange] {
    let (start, count) = match (chunk as usize).checked_sub(1) {
        None => (0, FIRST_RANGES),
        Some(more) => (FIRST_RANGES + more * MORE_RANGES, MORE_RANGES),
    };
    let start = start.min(ranges.len());
    &ranges[start..ranges.len().min(start + count)]
}

fn simple_id(kind: u16, number: StateNumber) -> RecordId {
    RecordId { kind, key: u128::from(number.0) }
}

fn lock_id(number: StateNumber, chunk: u32) -> RecordId {
    RecordId { kind: LOCK_RECORD, key: u128::from(number.0) << 32 | u128::from(chunk) }
}

fn encode_file(into: &mut Encoder, file: FileId) {
    into.u32(file.inode.0);
    into.u32(file.generation);
}

fn encode_open(open: &Open) -> Vec<u8> {
    let mut into = Encoder::new();
    into.u32(VERSION);
    encode_file(&mut into, open.file);
    open.holder.encode(&mut into);
    into.u32(u32::from(open.combinations.to_bits()));
    into.u32(open.seqid);
    into.to_bytes().to_vec()
}

fn encode_lock(lock: &LockState, at: u32) -> Vec<u8> {
    let mut into = Encoder::new();
    into.u32(VERSION);
    if at == 0 {
        encode_file(&mut into, lock.file);
        lock.holder.encode(&mut into);
        into.option(lock.open, |into, open| into.u64(open.0));
        into.u32(lock.seqid);
        into.u32(lock.ranges.len() as u32);
    }
    for held in chunk(lock.ranges.as_slice(), at) {
        into.u64(held.range.first());
        into.u64(held.range.last());
        into.bool(held.kind == LockKind::Exclusive);
    }
    into.to_bytes().to_vec()
}

fn encode_delegation(delegation: &Delegation) -> Vec<u8> {
    let mut into = Encoder::new();
    into.u32(VERSION);
    encode_file(&mut into, delegation.file);
    into.u64(delegation.client.0);
    into.bool(delegation.revoked);
    into.to_bytes().to_vec()
}

fn decode_file(from: &mut Decoder) -> Result<FileId, XdrError> {
    Ok(FileId { inode: filesystem::InodeNumber(from.u32()?), generation: from.u32()? })
}

fn decode_open(from: &mut Decoder) -> Result<Open, XdrError> {
    let file = decode_file(from)?;
    let holder = Holder::decode(from)?;
    let bits = from.u32()?;
    let combinations = u16::try_from(bits).ok().and_then(Combinations::from_bits);
    let combinations = combinations.ok_or(XdrError::BadValue { of: "share modes", value: bits })?;
    Ok(Open { file, holder, combinations, seqid: from.u32()? })
}

fn decode_delegation(from: &mut Decoder) -> Result<Delegation, XdrError> {
    Ok(Delegation { file: decode_file(from)?, client: ClientId(from.u64()?), revoked: from.bool()? })
}

/// A lock state without its ranges, and how many it has.
fn decode_lock(from: &mut Decoder) -> Result<(LockState, u32), XdrError> {
    let file = decode_file(from)?;
    let holder = Holder::decode(from)?;
    let open = from.option(Decoder::u64)?.map(StateNumber);
    let seqid = from.u32()?;
    let count = from.u32()?;
    if count > RANGES_PER_STATE_MAX {
        return Err(XdrError::TooLong { length: count, max: RANGES_PER_STATE_MAX as usize });
    }
    Ok((LockState { file, holder, open, seqid, ranges: HeldRanges::default() }, count))
}

/// All ranges that are left in a record.
fn decode_ranges(from: &mut Decoder) -> Result<Vec<HeldRange>, XdrError> {
    let mut ranges = Vec::new();
    while from.remaining() > 0 {
        let (first, last) = (from.u64()?, from.u64()?);
        let range = ByteRange::between(first, last).ok_or(XdrError::BadValue { of: "ranges", value: last as u32 })?;
        let kind = if from.bool()? { LockKind::Exclusive } else { LockKind::Shared };
        ranges.push(HeldRange { range, kind });
    }
    Ok(ranges)
}

/// Opens a record of a known version, takes what it says, and sees that nothing is left.
fn decode<T>(
    id: RecordId,
    payload: &[u8],
    take: impl FnOnce(&mut Decoder) -> Result<T, XdrError>,
) -> Result<T, RestoreError> {
    let malformed = |error| RestoreError::Malformed { id, error };
    if payload.len() > RECORD_BYTES_MAX {
        return Err(malformed(XdrError::TooLong { length: payload.len() as u32, max: RECORD_BYTES_MAX }));
    }
    let mut from = Decoder::new(Bytes::copy_from_slice(payload));
    match from.u32().map_err(malformed)? {
        VERSION => {}
        version => return Err(RestoreError::Version { id, version }),
    }
    let value = take(&mut from).map_err(malformed)?;
    from.finish().map_err(malformed)?;
    Ok(value)
}

/// A record's number that is a state's number.
fn number_of(id: RecordId, key: u128) -> Result<StateNumber, RestoreError> {
    u64::try_from(key).map(StateNumber).map_err(|_| RestoreError::Inconsistent(id))
}

/// The records of one lock state as they come in.
#[derive(Default)]
struct LockParts {
    head: Option<(LockState, u32)>,
    chunks: BTreeMap<u32, Vec<HeldRange>>,
}

impl LockParts {
    fn add(&mut self, id: RecordId, payload: &[u8]) -> Result<(), RestoreError> {
        let at = id.key as u32;
        let ranges = if at == 0 {
            let (head, ranges) = decode(id, payload, |from| Ok((decode_lock(from)?, decode_ranges(from)?)))?;
            self.head = Some(head);
            ranges
        } else {
            decode(id, payload, decode_ranges)?
        };
        self.chunks.insert(at, ranges);
        Ok(())
    }

    /// None if they are not those of one state.
    fn assemble(self) -> Option<LockState> {
        let (mut state, count) = self.head?;
        let chunks: Vec<_> = self.chunks.keys().copied().collect();
        if !chunks.into_iter().eq(0..chunk_count(count as usize)) {
            return None;
        }
        let sizes: Vec<_> = self.chunks.values().map(Vec::len).collect();
        let ranges: Vec<_> = self.chunks.into_values().flatten().collect();
        let as_written = sizes.iter().enumerate().all(|(at, size)| chunk(&ranges, at as u32).len() == *size);
        if ranges.len() != count as usize || !as_written {
            return None;
        }
        state.ranges = HeldRanges::from_ordered(ranges)?;
        Some(state)
    }
}

impl FileStates {
    /// The records of the operation under way, in order; none for a record that is to be deleted. Some of those that are deleted
    /// may never have been.
    pub fn records(&self) -> Vec<(RecordId, Option<Vec<u8>>)> {
        let opens = self.opens.changes().map(|(number, open)| (simple_id(OPEN_RECORD, *number), open.map(encode_open)));
        let locks = self.chunks.changes().map(|((number, at), chunk)| {
            let lock = chunk.and_then(|()| self.locks.get(number));
            (lock_id(*number, *at), lock.map(|lock| encode_lock(lock, *at)))
        });
        let delegations = self
            .delegations
            .changes()
            .map(|(number, delegation)| (simple_id(DELEGATION_RECORD, *number), delegation.map(encode_delegation)));
        opens.chain(locks).chain(delegations).collect()
    }

    /// The states that records tell of, in a service of this epoch; records of other kinds are passed over. Errors: they are not
    /// those of one moment of such states.
    pub fn restore<'a>(
        epoch: u32,
        records: impl IntoIterator<Item = (RecordId, &'a [u8])>,
    ) -> Result<Self, RestoreError> {
        let mut states = Self::new(epoch);
        let mut locks: BTreeMap<StateNumber, LockParts> = BTreeMap::new();
        for (id, payload) in records {
            match id.kind {
                OPEN_RECORD => {
                    let open = decode(id, payload, decode_open)?;
                    let taken = states.index.open_of(open.file, &open.holder).is_some();
                    states.put_open(states.fresh_record(id, taken, id.key)?, open);
                }
                DELEGATION_RECORD => {
                    let delegation = decode(id, payload, decode_delegation)?;
                    states.put_delegation(states.fresh_record(id, false, id.key)?, delegation);
                }
                LOCK_RECORD => locks.entry(number_of(id, id.key >> 32)?).or_default().add(id, payload)?,
                _ => {}
            }
        }
        for (number, parts) in locks {
            let id = lock_id(number, 0);
            let lock = parts.assemble().ok_or(RestoreError::Inconsistent(id))?;
            let taken = states.index.lock_of(lock.file, &lock.holder, lock.open).is_some();
            if !states.has_open_of(&lock) {
                return Err(RestoreError::Inconsistent(id));
            }
            states.put_lock(states.fresh_record(id, taken, u128::from(number.0))?, lock);
        }
        states.commit();
        Ok(states)
    }

    /// The number of a record whose state is not there yet.
    fn fresh_record(&self, id: RecordId, taken: bool, key: u128) -> Result<StateNumber, RestoreError> {
        let number = number_of(id, key)?;
        if taken || self.fresh(number).is_err() { Err(RestoreError::Inconsistent(id)) } else { Ok(number) }
    }

    /// True if a lock state is under an open of its client and file, or of a host and under none.
    pub(super) fn has_open_of(&self, lock: &LockState) -> bool {
        match (lock.open, lock.holder.client()) {
            (None, None) => true,
            (Some(open), Some(client)) => {
                let open = self.opens.get(&open);
                open.is_some_and(|open| open.file == lock.file && open.holder.client() == Some(client))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[path = "recorded_tests.rs"]
mod tests;
