//! Appending to the circle: new records, deletions, and copies of what counts in the blocks that are to be overwritten.
//!
//! Room is made in small steps. Whenever a block is begun for something new, and less than a quarter of the circle is free
//! of records that count, a few of the oldest blocks are emptied. Since records cost at most half of the circle, going round it
//! once gives more blocks than copies take, whatever lies where.

use super::block::{self, StoredRecord};
use super::index::{Location, Position, RingChanges, RingIndex};
use super::{RecordId, RingBlocks};
use crate::layout::{Corrupt, Structure};
use crate::store::{Refusal, Stop};
use crate::units::TransactionId;

/// Blocks that are emptied for each one that is begun.
const EMPTIED_MAX: u32 = 4;
/// The part of the circle that is kept free of records that count.
const FREE_PART: u32 = 4;

/// The circle in the hands of one operation.
pub struct Appender<'a, B> {
    /// As it was before the operation.
    pub index: &'a RingIndex,
    /// What the operation has changed so far.
    pub changes: &'a mut RingChanges,
    /// The blocks, with the operation's edits.
    pub blocks: &'a mut B,
    /// The transaction that the operation will join.
    pub transaction: TransactionId,
}

impl<B: RingBlocks> Appender<'_, B> {
    /// Puts a record in place of the one with the same identity. Errors: [`Stop::TooLarge`] when it fits no block;
    /// [`Refusal::StateRingFull`] when too much would count; those of the blocks.
    pub fn put(&mut self, id: RecordId, payload: &[u8]) -> Result<(), Stop> {
        let shape = self.index.shape;
        if payload.len() > shape.payload_bytes_max() {
            return Err(Stop::TooLarge("a record of the state ring"));
        }
        let position = self.position();
        let record = StoredRecord { id, sequence: position.next_record, payload: Some(payload) };
        let before = self.location(id).map_or(0, |location| shape.cost(location.stored_bytes));
        let cost = position.cost.saturating_sub(before) + shape.cost(record.stored_bytes());
        // One that replaces a larger one is never refused.
        if cost > shape.cost_max() && cost > position.cost {
            return Err(Refusal::StateRingFull.into());
        }
        let block = self.place(&record, false)?;
        self.moved(id, Some(Location { block, sequence: record.sequence, stored_bytes: record.stored_bytes() }));
        self.set_position(Position { cost, next_record: record.sequence + 1, ..self.position() });
        self.note(&record);
        Ok(())
    }

    /// Takes a record away; false when there is none. Errors: those of the blocks.
    pub fn delete(&mut self, id: RecordId) -> Result<bool, Stop> {
        let Some(location) = self.location(id) else { return Ok(false) };
        let record = StoredRecord { id, sequence: self.position().next_record, payload: None };
        // The deletion need not be copied forward: all older copies are overwritten before it is.
        self.place(&record, false)?;
        self.moved(id, None);
        let position = self.position();
        let cost = position.cost.saturating_sub(self.index.shape.cost(location.stored_bytes));
        self.set_position(Position { cost, next_record: record.sequence + 1, ..position });
        self.note(&record);
        Ok(true)
    }

    /// What a record says, if there is one. Errors: those of the blocks; it is not where it should be.
    pub fn get(&mut self, id: RecordId) -> Result<Option<Vec<u8>>, Stop> {
        let Some(location) = self.location(id) else { return Ok(None) };
        let at = self.index.shape.place(location.block);
        let lost = Corrupt::new(Structure::StateRing, u64::from(at.0), "a record is not where it was written");
        let found = block::read(self.blocks.block(at)?, at.0)?.ok_or(lost.clone())?;
        let mut records = found.records.iter();
        let record = records.find(|record| record.id == id && record.sequence == location.sequence);
        Ok(Some(record.and_then(|record| record.payload).ok_or(lost)?.to_vec()))
    }

    fn note(&mut self, record: &StoredRecord<'_>) {
        self.changes.note.push(record.into());
    }

    /// Writes a record into the newest block, or a fresh one; gives the block's number. Room is made only for what is no copy.
    fn place(&mut self, record: &StoredRecord<'_>, is_copy: bool) -> Result<u64, Stop> {
        let mut may_empty = !is_copy;
        loop {
            let Position { head, open_in, .. } = self.position();
            let at = self.index.shape.place(head);
            if open_in == Some(self.transaction) && block::room(self.blocks.block(at)?) >= record.stored_bytes() {
                let full = Corrupt::new(Structure::StateRing, u64::from(at.0), "a record does not fit");
                block::push(self.blocks.block_mut(at)?, record).ok_or(full)?;
                return Ok(head);
            }
            if std::mem::take(&mut may_empty) {
                self.empty_some()?;
            } else {
                self.begin()?;
            }
        }
    }

    /// Begins a fresh block. Errors: the circle has none, which cannot be while room is made as it is.
    fn begin(&mut self) -> Result<(), Stop> {
        let position = self.position();
        if self.free_blocks() == 0 {
            return Err(Refusal::StateRingFull.into());
        }
        let head = position.head + 1;
        block::start(self.blocks.new_block(self.index.shape.place(head))?, head, position.next_record);
        self.set_position(Position { head, open_in: Some(self.transaction), ..position });
        Ok(())
    }

    /// Blocks that can be overwritten.
    fn free_blocks(&self) -> u64 {
        let Position { head, tail, .. } = self.position();
        u64::from(self.index.shape.blocks).saturating_sub((head + 1).saturating_sub(tail))
    }

    /// Copies forward what counts in a few of the oldest blocks, if there are not enough free ones.
    fn empty_some(&mut self) -> Result<(), Stop> {
        for _ in 0..EMPTIED_MAX {
            self.pass_empty_blocks();
            let Position { head, tail, .. } = self.position();
            if self.free_blocks() >= u64::from(self.index.shape.blocks / FREE_PART) || tail >= head {
                return Ok(());
            }
            self.empty_block(tail)?;
            self.set_position(Position { tail: tail + 1, ..self.position() });
        }
        self.pass_empty_blocks();
        Ok(())
    }

    fn pass_empty_blocks(&mut self) {
        let mut position = self.position();
        while position.tail < position.head && self.count(position.tail) == 0 {
            position.tail += 1;
        }
        self.set_position(position);
    }

    fn empty_block(&mut self, number: u64) -> Result<(), Stop> {
        let at = self.index.shape.place(number);
        let bytes = self.blocks.block(at)?.to_vec();
        let other = Corrupt::new(Structure::StateRing, u64::from(at.0), "another block is in its place");
        let found = block::read(&bytes, at.0)?.filter(|found| found.number == number).ok_or(other)?;
        for record in &found.records {
            let location = self.location(record.id);
            let counts = |there: &Location| (there.block, there.sequence) == (number, record.sequence);
            let Some(location) = location.filter(counts) else { continue };
            let block = self.place(record, true)?;
            self.moved(record.id, Some(Location { block, ..location }));
        }
        Ok(())
    }

    fn position(&self) -> Position {
        self.changes.position.unwrap_or(self.index.position)
    }

    fn set_position(&mut self, position: Position) {
        self.changes.position = Some(position);
    }

    fn location(&self, id: RecordId) -> Option<Location> {
        let changed = self.changes.records.get(&id).copied();
        changed.unwrap_or_else(|| self.index.records.get(&id).copied())
    }

    /// Records of a block that count.
    fn count(&self, block: u64) -> i64 {
        let before = self.index.counts.get(&block).copied().unwrap_or_default();
        i64::from(before) + self.changes.counts.get(&block).copied().unwrap_or_default()
    }

    /// A record counts somewhere else now, or not at all.
    fn moved(&mut self, id: RecordId, to: Option<Location>) {
        if let Some(from) = self.location(id) {
            *self.changes.counts.entry(from.block).or_default() -= 1;
        }
        if let Some(to) = to {
            *self.changes.counts.entry(to.block).or_default() += 1;
        }
        self.changes.records.insert(id, to);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
