//! The circle against a plain map: random records, wraps, crashes between transactions, and operations that are dropped.

use std::collections::BTreeMap;

use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::state_ring::scan::RingScan;
use crate::state_ring::{Record, RingShape};
use crate::units::FileBlock;

/// The blocks of the file.
#[derive(Clone)]
struct Blocks(Vec<Vec<u8>>);

impl RingBlocks for Blocks {
    fn block(&mut self, at: FileBlock) -> Result<&[u8], Stop> {
        Ok(&self.0[at.0 as usize])
    }

    fn block_mut(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        Ok(&mut self.0[at.0 as usize])
    }

    fn new_block(&mut self, at: FileBlock) -> Result<&mut [u8], Stop> {
        let block = &mut self.0[at.0 as usize];
        block.fill(0);
        Ok(block)
    }
}

struct Ring {
    blocks: Blocks,
    index: RingIndex,
    transaction: TransactionId,
    model: BTreeMap<RecordId, Vec<u8>>,
    refusals: usize,
    /// Blocks begun by one operation at most.
    most: u64,
}

fn id(kind: u16, key: u64) -> RecordId {
    RecordId { kind, key: u128::from(key) << 70 | u128::from(key) }
}

impl Ring {
    fn new(shape: RingShape) -> Self {
        let blocks = Blocks(vec![vec![0; shape.block_bytes]; shape.file_blocks() as usize]);
        let (index, transaction) = (RingIndex::empty(shape), TransactionId(u32::MAX - 3));
        Self { blocks, index, transaction, model: BTreeMap::new(), refusals: 0, most: 0 }
    }

    /// An operation of several changes: joins, or is dropped.
    fn run(&mut self, changes: &[(RecordId, Option<Vec<u8>>)], joins: bool) {
        let mut blocks = self.blocks.clone();
        let mut edits = RingChanges::default();
        let mut model = self.model.clone();
        for (id, payload) in changes {
            let (index, transaction) = (&self.index, self.transaction);
            let mut appender = Appender { index, changes: &mut edits, blocks: &mut blocks, transaction };
            match payload {
                Some(payload) => match appender.put(*id, payload) {
                    Ok(()) => drop(model.insert(*id, payload.clone())),
                    Err(Stop::Refused(Refusal::StateRingFull)) => {
                        let bytes: usize = model.values().map(|payload| payload.len() + 36).sum();
                        let all = index.shape.blocks as usize / 2 * index.shape.room();
                        assert!((bytes + payload.len() + 36) * 7 / 3 >= all, "{bytes} bytes of {all} are not too many");
                        self.refusals += 1;
                    }
                    Err(stop) => panic!("{stop}"),
                },
                None => assert_eq!(appender.delete(*id), Ok(model.remove(id).is_some())),
            }
            assert_eq!(appender.get(*id).expect("readable"), model.get(id).cloned());
        }
        if joins {
            let before = self.index.position.head;
            self.index.apply(edits);
            self.most = self.most.max(self.index.position.head - before);
            self.blocks = blocks;
            self.model = model;
        }
    }

    fn scan(&self) -> (RingIndex, Vec<Record>) {
        let mut scan = RingScan::new(self.index.shape);
        for at in (1..self.index.shape.file_blocks()).rev() {
            scan.feed(FileBlock(at), &self.blocks.0[at as usize]).expect("sound");
        }
        scan.finish().expect("whole")
    }

    /// What a scan finds is what is known; it takes its place, as after a crash.
    fn crash(&mut self) {
        let (found, records) = self.scan();
        let listed: BTreeMap<_, _> = records.iter().map(|record| (record.id, record.payload.clone())).collect();
        assert_eq!(listed, self.model);
        assert!(records.is_sorted_by(|one, other| one.sequence < other.sequence));
        assert_eq!((&found.records, &found.counts), (&self.index.records, &self.index.counts));
        let (position, known) = (found.position, self.index.position);
        let of = |position: Position| (position.head, position.next_record, position.cost);
        assert_eq!(of(position), of(known));
        assert!(position.tail >= known.tail);
        self.index = found;
    }
}

/// Sizes of payloads, as parts of the room of a block.
const SIZES: [&[usize]; 3] = [&[9, 10, 30], &[1, 2, 4, 9, 100], &[5, 5, 5, 3]];

#[test]
fn what_counts_is_kept_over_wraps_crashes_and_dropped_operations() {
    for (seed, blocks, block_bytes) in [(1, 16, 1024), (2, 17, 4096), (3, 40, 1024), (4, 25, 2048), (5, 64, 1024)] {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut ring = Ring::new(RingShape { block_bytes, blocks });
        let room = ring.index.shape.payload_bytes_max();
        let keys = u64::from(blocks) * 3;
        for step in 0..6_000 {
            let sizes = SIZES[step / 700 % SIZES.len()];
            let changes: Vec<_> = (0..rng.random_range(1..4))
                .map(|_| {
                    let id = id(rng.random_range(0..2), rng.random_range(0..keys));
                    // Times of growing, and of shrinking.
                    let deletes = if step / 900 % 2 == 0 { 20 } else { 60 };
                    if rng.random_range(0..100) < deletes {
                        let some = ring.model.keys().choose(&mut rng).copied();
                        return (some.unwrap_or(id), None);
                    }
                    let size = room / sizes.iter().choose(&mut rng).expect("there are some");
                    (id, Some(vec![rng.random(); rng.random_range(size / 2..=size)]))
                })
                .collect();
            ring.run(&changes, rng.random_range(0..5) > 0);
            if rng.random_range(0..2) == 0 {
                ring.transaction = ring.transaction.next();
            }
            if rng.random_range(0..40) == 0 {
                ring.transaction = ring.transaction.next();
                ring.crash();
            }
        }
        assert!(ring.index.position.head > 20 * u64::from(blocks), "it wrapped {}", ring.index.position.head);
        assert!(ring.refusals > 10, "it was full {} times", ring.refusals);
        assert!(ring.most < 24, "one operation began {} blocks", ring.most);
    }
}

#[test]
fn one_busy_record_never_pushes_out_a_full_half_whatever_its_place() {
    for (blocks, size) in [(16, 60), (33, 200), (64, 450)] {
        let mut ring = Ring::new(RingShape { block_bytes: 1024, blocks });
        for key in 1.. {
            ring.run(&[(id(1, key), Some(vec![key as u8; size]))], true);
            if ring.refusals > 0 {
                break;
            }
        }
        let busy = id(1, 1);
        for round in 0..u64::from(blocks) * 20 {
            ring.transaction = ring.transaction.next();
            ring.run(&[(busy, Some(vec![round as u8; size]))], true);
        }
        assert_eq!(ring.refusals, 1, "to replace is never refused");
        ring.crash();
        for key in ring.model.clone().into_keys() {
            ring.transaction = ring.transaction.next();
            ring.run(&[(key, None)], true);
        }
        ring.crash();
        assert_eq!((ring.index.len(), ring.index.live_bytes(), ring.index.position.cost), (0, 0, 0));
    }
}

#[test]
fn a_transaction_starts_a_fresh_block_and_fills_it() {
    let mut ring = Ring::new(RingShape { block_bytes: 4096, blocks: 64 });
    for key in 0..9 {
        ring.run(&[(id(0, key), Some(vec![1; 410]))], true);
    }
    assert_eq!(ring.index.position.head, 1, "nine records of usual length share a block");
    ring.transaction = ring.transaction.next();
    ring.run(&[(id(0, 9), Some(vec![1; 10]))], true);
    assert_eq!(ring.index.position.head, 2);
}

#[test]
fn what_does_not_belong_to_the_circle_is_found() {
    let shape = RingShape { block_bytes: 1024, blocks: 16 };
    let mut ring = Ring::new(shape);
    for key in 0..100 {
        ring.transaction = ring.transaction.next();
        ring.run(&[(id(0, key % 5), Some(vec![1; 300]))], true);
    }
    let scan = |blocks: &Blocks| {
        let mut scan = RingScan::new(shape);
        for at in 1..shape.file_blocks() {
            scan.feed(FileBlock(at), &blocks.0[at as usize])?;
        }
        scan.finish().map(drop)
    };
    assert_eq!(scan(&ring.blocks), Ok(()));
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for at in 1..=16 {
        let mut garbage = ring.blocks.clone();
        rng.fill(&mut garbage.0[at][..]);
        assert!(scan(&garbage).is_err(), "garbage in block {at}");
        let mut lost = ring.blocks.clone();
        lost.0[at].fill(0);
        assert!(scan(&lost).is_err(), "zeros in block {at}");
        let mut moved = ring.blocks.clone();
        moved.0[at] = ring.blocks.0[at % 16 + 1].clone();
        assert!(scan(&moved).is_err(), "another block in block {at}");
    }
    assert_eq!(Ring::new(shape).scan().1, []);
    assert!(matches!(
        Appender {
            index: &ring.index,
            changes: &mut RingChanges::default(),
            blocks: &mut ring.blocks,
            transaction: TransactionId(1)
        }
        .put(id(0, 1), &[0; 1000]),
        Err(Stop::TooLarge(_))
    ));
}
