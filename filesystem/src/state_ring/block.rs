//! A block of the circle: its header, and records one behind the other. Each has its own checksum, so that appending one does
//! not read the others; what is behind them is zeros and is not looked at.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RecordId;
use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};

/// "TDRB".
const MAGIC: u32 = 0x4252_4454;
const VERSION: u16 = 1;
/// The flag of a record that takes away the one of its identity.
const DELETION: u16 = 1;

/// Bytes of a block before its records.
pub const BLOCK_HEADER_BYTES: usize = size_of::<RawHeader>();
/// Bytes of a record before its payload.
pub const RECORD_HEADER_BYTES: usize = size_of::<RawRecord>();

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    checksum: U32,
    version: U16,
    count: U16,
    /// Bytes up to the end of the last record.
    used: U32,
    number: U64,
    /// What the next record would have been numbered when the block was begun.
    next_record: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    checksum: U32,
    length: U16,
    kind: U16,
    sequence: U64,
    key: U128,
    flags: U16,
    reserved: U16,
}

/// A record in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRecord<'a> {
    /// Its identity.
    pub id: RecordId,
    /// Its number.
    pub sequence: u64,
    /// What it says; None takes the record of this identity away.
    pub payload: Option<&'a [u8]>,
}

/// A block that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingBlock<'a> {
    /// Its number.
    pub number: u64,
    /// What the next record would have been numbered when it was begun.
    pub next_record: u64,
    /// Its records, in the order in which they were appended.
    pub records: Vec<StoredRecord<'a>>,
}

impl StoredRecord<'_> {
    /// Bytes that it takes in a block.
    pub fn stored_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.map_or(0, <[u8]>::len)
    }
}

/// Makes an empty block of zeros.
pub(super) fn start(block: &mut [u8], number: u64, next_record: u64) {
    if let Ok((raw, _)) = RawHeader::mut_from_prefix(block) {
        raw.magic = MAGIC.into();
        raw.version = VERSION.into();
        raw.used = (BLOCK_HEADER_BYTES as u32).into();
        raw.number = number.into();
        raw.next_record = next_record.into();
        raw.checksum = raw.sum().into();
    }
}

/// Bytes that are left in a block.
pub(super) fn room(block: &[u8]) -> usize {
    RawHeader::ref_from_prefix(block).map_or(0, |(raw, _)| block.len().saturating_sub(raw.used.get() as usize))
}

/// Puts a record behind the others. None when it does not fit.
pub(super) fn push(block: &mut [u8], record: &StoredRecord<'_>) -> Option<()> {
    let (header, _) = RawHeader::mut_from_prefix(block).ok()?;
    let from = header.used.get() as usize;
    let end = from + record.stored_bytes();
    header.count = header.count.get().checked_add(1)?.into();
    header.used = u32::try_from(end).ok()?.into();
    header.checksum = header.sum().into();
    let raw = RawRecord::of(record)?;
    let place = block.get_mut(from..end)?;
    let bytes = raw.as_bytes().iter().chain(record.payload.unwrap_or_default());
    place.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Some(())
}

/// Puts a record behind other bytes. None when its payload is too long for one.
pub(super) fn append(bytes: &mut Vec<u8>, record: &StoredRecord<'_>) -> Option<()> {
    bytes.extend(RawRecord::of(record)?.as_bytes());
    bytes.extend(record.payload.unwrap_or_default());
    Some(())
}

/// Reads a block; None when it was never written. `at` is its place in the file, for what is found broken.
pub fn read(block: &[u8], at: u32) -> Result<Option<RingBlock<'_>>, Corrupt> {
    let broken = |what| Corrupt::new(Structure::StateRing, u64::from(at), what);
    let (header, mut rest) = RawHeader::ref_from_prefix(block).map_err(|_| broken("it is cut short"))?;
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if header.magic.get() != MAGIC || header.checksum.get() != header.sum() {
        return Err(broken("it is no block of records, or its checksum is wrong"));
    }
    if header.version.get() != VERSION {
        return Err(broken("its version is unknown"));
    }
    let mut records = Vec::with_capacity(usize::from(header.count.get()).min(block.len() / RECORD_HEADER_BYTES));
    for _ in 0..header.count.get() {
        let (record, after) = read_record(rest).ok_or(broken("a record is cut short, or its checksum is wrong"))?;
        records.push(record);
        rest = after;
    }
    if block.len() - rest.len() != header.used.get() as usize {
        return Err(broken("its records do not end where it says"));
    }
    Ok(Some(RingBlock { number: header.number.get(), next_record: header.next_record.get(), records }))
}

/// The record that begins here, and what is behind it. None when it is cut short, or its checksum is wrong.
pub(super) fn read_record(bytes: &[u8]) -> Option<(StoredRecord<'_>, &[u8])> {
    let (raw, rest) = RawRecord::ref_from_prefix(bytes).ok()?;
    let (payload, after) = rest.split_at_checked(usize::from(raw.length.get()))?;
    let flags = raw.flags.get();
    if raw.checksum.get() != raw.sum(payload) || flags & !DELETION != 0 {
        return None;
    }
    let id = RecordId { kind: raw.kind.get(), key: raw.key.get() };
    let payload = (flags & DELETION == 0).then_some(payload);
    Some((StoredRecord { id, sequence: raw.sequence.get(), payload }, after))
}

impl RawHeader {
    /// Of all behind the checksum.
    fn sum(&self) -> u32 {
        Seed::START.sum(self.as_bytes().get(8..).unwrap_or_default())
    }
}

impl RawRecord {
    /// What comes before the payload. None when that is too long.
    fn of(record: &StoredRecord<'_>) -> Option<Self> {
        let payload = record.payload.unwrap_or_default();
        let mut raw = Self {
            checksum: 0.into(),
            length: u16::try_from(payload.len()).ok()?.into(),
            kind: record.id.kind.into(),
            sequence: record.sequence.into(),
            key: record.id.key.into(),
            flags: if record.payload.is_none() { DELETION } else { 0 }.into(),
            reserved: 0.into(),
        };
        raw.checksum = raw.sum(payload).into();
        Some(raw)
    }

    /// Of all behind the checksum, and the payload.
    fn sum(&self, payload: &[u8]) -> u32 {
        Seed::START.then(self.as_bytes().get(4..).unwrap_or_default()).sum(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u128, payload: Option<&[u8]>) -> StoredRecord<'_> {
        StoredRecord { id: RecordId { kind: 3, key }, sequence: 40 + key as u64, payload }
    }

    #[test]
    fn records_come_back_in_their_order() {
        let mut block = vec![0; 1024];
        assert_eq!(read(&block, 1), Ok(None));
        start(&mut block, 7, 40);
        let records = [record(1, Some(b"one")), record(2, None), record(3, Some(b""))];
        records.iter().for_each(|record| push(&mut block, record).expect("there is room"));
        let found = read(&block, 1).expect("sound").expect("written");
        assert_eq!((found.number, found.next_record, found.records.as_slice()), (7, 40, &records[..]));
        assert_eq!(room(&block), 1024 - BLOCK_HEADER_BYTES - 3 * RECORD_HEADER_BYTES - 3);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut block = vec![0; 1024];
        start(&mut block, 7, 40);
        let payload = [9; 30];
        push(&mut block, &record(1, Some(&payload))).expect("there is room");
        push(&mut block, &record(2, None)).expect("there is room");
        for bit in 0..(1024 - room(&block)) * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&flipped, 1).is_err(), "bit {bit}");
        }
        for length in 0..BLOCK_HEADER_BYTES + 40 {
            assert!(read(&block[..length], 1).is_err(), "{length} bytes");
        }
    }
}
