//! Finding out, from all blocks of a circle, which records count and where it goes on.

use std::collections::BTreeMap;

use super::block;
use super::index::RingIndex;
use super::{Record, RecordId, RingShape};
use crate::layout::{Corrupt, Structure};
use crate::units::FileBlock;

/// A scan under way.
#[derive(Debug)]
pub struct RingScan {
    shape: RingShape,
    /// The number of the block at each place of the circle; 0 where there is none.
    numbers: Vec<u64>,
    newest: BTreeMap<RecordId, Newest>,
    next_record: u64,
}

/// The newest record of an identity so far.
#[derive(Debug)]
struct Newest {
    /// Its block and its place in that: later ones are newer.
    place: (u64, usize),
    sequence: u64,
    /// None for a deletion.
    payload: Option<Vec<u8>>,
}

impl RingScan {
    /// Of a circle of this shape.
    pub fn new(shape: RingShape) -> Self {
        Self { shape, numbers: vec![0; shape.blocks as usize], newest: BTreeMap::new(), next_record: 1 }
    }

    /// Takes a block of the file, in any order, the header excepted. Errors: it is neither empty nor one that can be there.
    pub fn feed(&mut self, at: FileBlock, bytes: &[u8]) -> Result<(), Corrupt> {
        let broken = |what| Corrupt::new(Structure::StateRing, u64::from(at.0), what);
        let Some(found) = block::read(bytes, at.0)? else { return Ok(()) };
        let index = at.0.checked_sub(1).ok_or(broken("the header is no block of records"))?;
        let number = self.numbers.get_mut(index as usize).ok_or(broken("it is beyond the circle"))?;
        if found.number == 0 || self.shape.place(found.number) != at {
            return Err(broken("its number is not one of its place"));
        }
        *number = found.number;
        self.next_record = self.next_record.max(found.next_record);
        for (order, record) in found.records.iter().enumerate() {
            self.next_record = self.next_record.max(record.sequence.saturating_add(1));
            let place = (found.number, order);
            let newer = Newest { place, sequence: record.sequence, payload: record.payload.map(<[u8]>::to_vec) };
            match self.newest.get_mut(&record.id) {
                None => drop(self.newest.insert(record.id, newer)),
                Some(known) => {
                    // A copy has the number of what it copies.
                    if (known.place < place) != (known.sequence <= record.sequence) && known.sequence != record.sequence
                    {
                        return Err(broken("a record is older than one before it"));
                    }
                    if known.place < place {
                        *known = newer;
                    }
                }
            }
        }
        Ok(())
    }

    /// When all blocks were taken: where the circle goes on, and the records that count, in the order in which they were
    /// first appended. Errors: blocks are missing.
    pub fn finish(self) -> Result<(RingIndex, Vec<Record>), Corrupt> {
        let shape = self.shape;
        let head = self.numbers.iter().copied().max().unwrap_or_default();
        let first = head.saturating_sub(u64::from(shape.blocks)).saturating_add(1);
        for number in first..=head {
            let at = shape.place(number);
            if self.numbers.get((at.0 - 1) as usize) != Some(&number) {
                let what = "it is not the one that was written there last";
                return Err(Corrupt::new(Structure::StateRing, u64::from(at.0), what));
            }
        }
        let mut index = RingIndex::empty(shape);
        let mut records = Vec::new();
        for (id, Newest { place: (block, _), sequence, payload }) in self.newest {
            let Some(payload) = payload else { continue };
            index.found(id, block, sequence, payload.len());
            records.push(Record { id, sequence, payload });
        }
        records.sort_unstable_by_key(|record| record.sequence);
        let oldest = index.counts.keys().next().copied().unwrap_or(head.max(1));
        index.position.head = head;
        index.position.tail = oldest;
        index.position.next_record = self.next_record;
        Ok((index, records))
    }
}
