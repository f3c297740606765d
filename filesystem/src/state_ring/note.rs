//! Notes: records of the ring that are on the device before their transaction is durable, so that whoever only changed records
//! need not wait for the log. They lie in a file of their own, written in place and past the log, in a small circle of batches.
//!
//! Every noted record is in the running transaction as well, under the same sequence. So what is in the ring is not looked up
//! in the notes, and a batch can be overwritten once the transactions of its notes are durable. Batches are written one at a
//! time: those that were acknowledged are the first so many, and of a later one nobody was told anything.
//!
//! A batch has one checksum. It names the start of the filesystem that wrote it, since sequences of what was lost are given
//! again; and the oldest batch that is still needed, so that one that is missing is noticed.
//!
//! Pure. Who writes notes, and when, is the engine's to know.

use std::collections::{BTreeMap, VecDeque};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::RecordId;
use super::block::{self, StoredRecord};
use crate::layout::checksum::Seed;
use crate::layout::{Corrupt, Structure};
use crate::units::TransactionId;

/// "TDRN".
const MAGIC: u32 = 0x4e52_4454;
const VERSION: u32 = 1;
/// Bytes of a batch before its notes.
const BATCH_HEADER_BYTES: usize = size_of::<RawBatch>();
/// Bytes of a note before its records.
const NOTE_HEADER_BYTES: usize = size_of::<U32>();
/// Bytes of the largest batch.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// Bytes of the file.
pub const NOTES_BYTES: u64 = 1 << 20;
/// The largest note, in bytes: several fit a batch.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// The smallest circle, in bytes: room for the largest batch while another one is still needed.
pub const NOTES_BYTES_MIN: usize = 2 * BATCH_BYTES_MAX;

/// What an operation made of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedRecord {
    /// Its identity.
    pub id: RecordId,
    /// Its number in the ring.
    pub sequence: u64,
    /// What it says; None takes the record of this identity away.
    pub payload: Option<Vec<u8>>,
}

/// All that one operation made of records, in order.
pub type Note = Vec<NotedRecord>;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBatch {
    magic: U32,
    /// Of all behind it, up to the batch's length.
    checksum: U32,
    version: U32,
    /// Bytes, with this.
    length: U32,
    starts: U64,
    number: U64,
    oldest_needed: U64,
    notes: U32,
    reserved: U32,
}

/// What is written at once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    starts: u64,
    number: u64,
    /// No batch before this one is needed any more.
    oldest_needed: u64,
    notes: Vec<Note>,
}

/// Bytes that a note takes in a batch.
pub fn note_bytes(note: &[NotedRecord]) -> usize {
    NOTE_HEADER_BYTES + note.iter().map(|record| record.stored().stored_bytes()).sum::<usize>()
}

impl NotedRecord {
    fn stored(&self) -> StoredRecord<'_> {
        StoredRecord { id: self.id, sequence: self.sequence, payload: self.payload.as_deref() }
    }
}

impl From<&StoredRecord<'_>> for NotedRecord {
    fn from(record: &StoredRecord<'_>) -> Self {
        Self { id: record.id, sequence: record.sequence, payload: record.payload.map(<[u8]>::to_vec) }
    }
}

impl Batch {
    /// The whole blocks of it.
    fn encode(&self, block_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        for note in &self.notes {
            bytes.extend(U32::new(note.len() as u32).as_bytes());
            for record in note {
                block::append(&mut bytes, &record.stored()).expect("a note is shorter than the longest record");
            }
        }
        let raw = RawBatch {
            magic: MAGIC.into(),
            checksum: 0.into(),
            version: VERSION.into(),
            length: (bytes.len() as u32).into(),
            starts: self.starts.into(),
            number: self.number.into(),
            oldest_needed: self.oldest_needed.into(),
            notes: (self.notes.len() as u32).into(),
            reserved: 0.into(),
        };
        bytes.iter_mut().zip(raw.as_bytes()).for_each(|(to, from)| *to = *from);
        let sum = U32::new(sum_of(&bytes));
        let place = bytes.iter_mut().skip(size_of::<U32>());
        place.zip(sum.as_bytes()).for_each(|(to, from)| *to = *from);
        bytes.resize(bytes.len().next_multiple_of(block_bytes.max(1)), 0);
        bytes
    }

    /// The one that begins here, and its bytes. None if none does, or not all of it was written.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (raw, _) = RawBatch::ref_from_prefix(bytes).ok()?;
        let length = raw.length.get() as usize;
        if raw.magic.get() != MAGIC || raw.version.get() != VERSION || length > BATCH_BYTES_MAX {
            return None;
        }
        let whole = bytes.get(..length)?;
        let mut rest = whole.get(BATCH_HEADER_BYTES..)?;
        if raw.checksum.get() != sum_of(whole) {
            return None;
        }
        let mut notes = Vec::new();
        for _ in 0..raw.notes.get() {
            let (count, after) = U32::read_from_prefix(rest).ok()?;
            rest = after;
            let mut note = Note::new();
            for _ in 0..count.get() {
                let (record, after) = block::read_record(rest)?;
                note.push(NotedRecord::from(&record));
                rest = after;
            }
            notes.push(note);
        }
        let (starts, number) = (raw.starts.get(), raw.number.get());
        let batch = Self { starts, number, oldest_needed: raw.oldest_needed.get(), notes };
        rest.is_empty().then_some((batch, length))
    }
}

/// Of all behind the checksum.
fn sum_of(batch: &[u8]) -> u32 {
    Seed::START.sum(batch.get(2 * size_of::<U32>()..).unwrap_or_default())
}

/// The notes of the start `starts` that the ring does not have, whose next record is `next_record`, out of the whole circle.
/// Errors: one is missing.
pub fn scan(circle: &[u8], block_bytes: usize, starts: u64, next_record: u64) -> Result<Vec<Note>, Corrupt> {
    let block_bytes = block_bytes.max(1);
    let mut batches = BTreeMap::new();
    let mut at = 0;
    while let Some(bytes) = circle.get(at..).filter(|bytes| !bytes.is_empty()) {
        match Batch::decode(bytes) {
            Some((batch, length)) => {
                at += length.next_multiple_of(block_bytes);
                if batch.starts == starts {
                    batches.insert(batch.number, batch);
                }
            }
            None => at += block_bytes,
        }
    }
    let Some((newest, oldest_needed)) = batches.values().next_back().map(|batch| (batch.number, batch.oldest_needed))
    else {
        return Ok(Vec::new());
    };
    let is_lost = |note: &Note| note.first().is_some_and(|record| record.sequence >= next_record);
    // What came before one that the ring has, it has as well; that may have been overwritten since.
    let is_known = |batch: &&Batch| batch.notes.first().is_some_and(|note| !is_lost(note));
    let known = batches.values().rev().find(is_known).map_or(0, |batch| batch.number);
    let first = oldest_needed.max(known).min(newest);
    let needed = batches.split_off(&first);
    if needed.len() as u64 != newest - first + 1 {
        return Err(Corrupt::new(Structure::StateRing, newest, "notes before this one are missing"));
    }
    let notes = needed.into_values().flat_map(|batch| batch.notes);
    Ok(notes.filter(is_lost).collect())
}

/// The circle, and the notes that are to go there.
#[derive(Debug)]
pub struct NoteCircle {
    block_bytes: usize,
    blocks: u32,
    starts: u64,
    /// Where the next batch begins, in blocks.
    next: u32,
    /// Of the next batch.
    number: u64,
    /// Batches that are needed, the oldest first.
    needed: VecDeque<Placed>,
    pending: VecDeque<(u64, TransactionId, Note)>,
    /// The number of the newest note, counted from 1.
    newest: u64,
}

/// A batch in its place.
#[derive(Clone, Copy, Debug)]
struct Placed {
    number: u64,
    start: u32,
    blocks: u32,
    /// The newest transaction of its notes.
    transaction: TransactionId,
}

/// A batch that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteWrite {
    /// From this block of the circle on.
    pub start: u32,
    /// Whole blocks.
    pub data: Vec<u8>,
    /// The newest note that is on the device then.
    pub newest: u64,
}

impl NoteCircle {
    /// An empty one of so many blocks, at this start of the filesystem.
    pub fn new(block_bytes: usize, blocks: u32, starts: u64) -> Self {
        let (needed, pending) = (VecDeque::new(), VecDeque::new());
        Self { block_bytes, blocks, starts, next: 0, number: 1, needed, pending, newest: 0 }
    }

    /// Takes a note of what has joined this transaction; gives its number, higher than those before.
    pub fn add(&mut self, transaction: TransactionId, note: Note) -> u64 {
        self.newest += 1;
        self.pending.push_back((self.newest, transaction, note));
        self.newest
    }

    /// Half of the circle is needed, or waits to be written: it is time to make transactions durable.
    pub fn is_crowded(&self) -> bool {
        let placed: u32 = self.needed.iter().map(|batch| batch.blocks).sum();
        placed > self.blocks / 2 || self.pending.len() > self.blocks as usize
    }

    /// The next batch, if there are notes and room for it; to be written before another one is asked for. Notes for which
    /// there is no room count when their transaction is durable.
    pub fn take(&mut self) -> Option<NoteWrite> {
        let (mut count, mut bytes) = (0_usize, BATCH_HEADER_BYTES);
        for (_, _, note) in &self.pending {
            bytes += note_bytes(note);
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let (newest, transaction) = self.pending.get(count.checked_sub(1)?).map(|(number, id, _)| (*number, *id))?;
        let number = self.number;
        let oldest_needed = self.needed.front().map_or(number, |batch| batch.number);
        let notes: Vec<Note> = self.pending.iter().take(count).map(|(_, _, note)| note.clone()).collect();
        let data = Batch { starts: self.starts, number, oldest_needed, notes }.encode(self.block_bytes);
        let blocks = (data.len() / self.block_bytes.max(1)) as u32;
        let start = self.place(blocks)?;
        self.pending.drain(..count);
        self.needed.push_back(Placed { number, start, blocks, transaction });
        (self.next, self.number) = (start + blocks, number + 1);
        Some(NoteWrite { start, data, newest })
    }

    /// Where so many blocks are not needed, from the next one on or from the first.
    fn place(&self, blocks: u32) -> Option<u32> {
        let start = if self.next + blocks <= self.blocks { self.next } else { 0 };
        let end = start + blocks;
        let meets = |batch: &Placed| batch.start < end && start < batch.start + batch.blocks;
        (end <= self.blocks && !self.needed.iter().any(meets)).then_some(start)
    }

    /// There are notes that were not taken.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A transaction is durable: its notes are not needed any more.
    pub fn durable(&mut self, transaction: TransactionId) {
        while self.needed.front().is_some_and(|batch| !transaction.is_before(batch.transaction)) {
            self.needed.pop_front();
        }
        while self.pending.front().is_some_and(|(_, id, _)| !transaction.is_before(*id)) {
            self.pending.pop_front();
        }
    }
}

#[cfg(test)]
#[path = "note_tests.rs"]
mod tests;
