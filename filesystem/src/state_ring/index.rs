//! Which records count and where they are, in memory; and what one operation changes of that until it joins its transaction.

use std::collections::BTreeMap;

use super::block::RECORD_HEADER_BYTES;
use super::note::Note;
use super::{RecordId, RingShape};
use crate::units::TransactionId;

/// Where a record that counts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The number of its block.
    pub(super) block: u64,
    pub(super) sequence: u64,
    /// Bytes in a block.
    pub(super) stored_bytes: usize,
}

/// How far the circle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The newest block; 0 before the first.
    pub(super) head: u64,
    /// The transaction that may append to it.
    pub(super) open_in: Option<TransactionId>,
    /// No block before this has a record that counts.
    pub(super) tail: u64,
    pub(super) next_record: u64,
    /// What all records that count would take at worst when they are copied, in bytes.
    pub(super) cost: u64,
}

/// The records that count.
#[derive(Clone, Debug)]
pub struct RingIndex {
    pub(super) shape: RingShape,
    pub(super) records: BTreeMap<RecordId, Location>,
    /// How many of them are in which block; blocks without any are not here.
    pub(super) counts: BTreeMap<u64, u32>,
    pub(super) position: Position,
}

/// What an operation changes.
#[derive(Clone, Debug, Default)]
pub struct RingChanges {
    pub(super) records: BTreeMap<RecordId, Option<Location>>,
    pub(super) counts: BTreeMap<u64, i64>,
    pub(super) position: Option<Position>,
    /// What was put and taken away, in order.
    pub(super) note: Note,
}

impl RingChanges {
    /// Takes out what was put and taken away.
    pub fn take_note(&mut self) -> Note {
        std::mem::take(&mut self.note)
    }
}

impl RingShape {
    /// What a record takes at worst when it is copied. A block that a small record does not fit into any more is three quarters
    /// full; one that a larger record does not fit into lacks less than that record's length, which is laid on it.
    pub(super) fn cost(self, stored_bytes: usize) -> u64 {
        let thirds = if stored_bytes <= self.room() / 4 { 4 } else { 7 };
        (stored_bytes * thirds).div_ceil(3) as u64
    }

    /// The most that all records together may cost: half of the circle.
    pub(super) fn cost_max(self) -> u64 {
        u64::from(self.blocks) / 2 * self.room() as u64
    }
}

impl RingIndex {
    /// A circle that was never written.
    pub fn empty(shape: RingShape) -> Self {
        let position = Position { head: 0, open_in: None, tail: 1, next_record: 1, cost: 0 };
        Self { shape, records: BTreeMap::new(), counts: BTreeMap::new(), position }
    }

    /// The measures of the circle.
    pub fn shape(&self) -> RingShape {
        self.shape
    }

    /// How many records count.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// None does.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of records that count, as they are stored.
    pub fn live_bytes(&self) -> usize {
        self.records.values().map(|location| location.stored_bytes).sum()
    }

    /// Blocks that were written since the ring was made.
    pub fn blocks_written(&self) -> u64 {
        self.position.head
    }

    /// How much of what records may take they take, in thousandths.
    pub fn per_mille(&self) -> u32 {
        (self.position.cost.saturating_mul(1000) / self.shape.cost_max().max(1)).min(1000) as u32
    }

    /// The number of the next record; all before it were given.
    pub fn next_record(&self) -> u64 {
        self.position.next_record
    }

    /// The operation has joined its transaction.
    pub fn apply(&mut self, changes: RingChanges) {
        let RingChanges { records, counts, position, note: _ } = changes;
        for (id, location) in records {
            match location {
                Some(location) => self.records.insert(id, location),
                None => self.records.remove(&id),
            };
        }
        for (block, by) in counts {
            let count = self.counts.entry(block).or_default();
            *count = count.saturating_add_signed(by.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
            if *count == 0 {
                self.counts.remove(&block);
            }
        }
        self.position = position.unwrap_or(self.position);
    }

    /// A record was found by a scan.
    pub(super) fn found(&mut self, id: RecordId, block: u64, sequence: u64, payload_bytes: usize) {
        let stored_bytes = RECORD_HEADER_BYTES + payload_bytes;
        self.records.insert(id, Location { block, sequence, stored_bytes });
        *self.counts.entry(block).or_default() += 1;
        self.position.cost += self.shape.cost(stored_bytes);
    }
}
