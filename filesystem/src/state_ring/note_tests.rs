//! Notes against a model: whatever was written and is not durable comes back, in order, and nothing else; what is torn or
//! missing is noticed.

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const BLOCK: usize = 4096;
const BLOCKS: u32 = (NOTES_BYTES_MIN / BLOCK) as u32;

fn put(sequence: u64, bytes: usize) -> NotedRecord {
    let id = RecordId { kind: 3, key: u128::from(sequence) << 70 | 5 };
    NotedRecord { id, sequence, payload: Some(vec![sequence as u8; bytes]) }
}

fn deletion(sequence: u64) -> NotedRecord {
    NotedRecord { payload: None, ..put(sequence, 0) }
}

fn write(disk: &mut [u8], write: &NoteWrite) {
    let from = write.start as usize * BLOCK;
    disk[from..from + write.data.len()].copy_from_slice(&write.data);
}

/// Notes of one record each, some of them a deletion.
fn note(random: &mut ChaCha8Rng, next: &mut u64) -> Note {
    let records = random.random_range(1..4);
    let one = |_| {
        *next += 1;
        match random.random_bool(0.2) {
            true => deletion(*next - 1),
            false => put(*next - 1, [0, 9, 300, 3000][random.random_range(0..4)]),
        }
    };
    (0..records).map(one).collect()
}

#[test]
fn what_was_written_and_is_not_durable_comes_back_and_nothing_else() {
    for seed in 0..200 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut disk = vec![0; BLOCKS as usize * BLOCK];
        let mut circle = NoteCircle::new(BLOCK, BLOCKS, 7);
        // Notes with their transactions, those that were added and those that are on the disk.
        let mut added: Vec<(u64, u32, Note)> = Vec::new();
        let (mut written, mut next, mut durable_records) = (0, 1, 1);
        let (mut running, mut full) = (TransactionId(100), 0);
        for step in 0..400 {
            match random.random_range(0..10) {
                0..=5 => {
                    let note = note(&mut random, &mut next);
                    let number = circle.add(running, note.clone());
                    added.push((number, running.0, note));
                }
                6..=8 => match circle.take() {
                    Some(taken) => {
                        let mut torn = disk.clone();
                        let part = random.random_range(0..taken.data.len());
                        let from = taken.start as usize * BLOCK;
                        torn[from..from + part].copy_from_slice(&taken.data[..part]);
                        let of_torn = scan(&torn, BLOCK, 7, durable_records).expect("nothing is missing");
                        // All of it may be there before its end is: that is zeros.
                        let both = [written, taken.newest].map(|newest| expected(&added, newest, running));
                        assert!(both.contains(&of_torn), "seed {seed}, step {step}");
                        write(&mut disk, &taken);
                        written = taken.newest;
                    }
                    None => full += u32::from(circle.is_waiting()),
                },
                _ => {
                    circle.durable(running);
                    (running, durable_records) = (running.next(), next);
                }
            }
            let found = scan(&disk, BLOCK, 7, durable_records).expect("nothing is missing");
            assert_eq!(found, expected(&added, written, running), "seed {seed}, step {step}");
            assert_eq!(scan(&disk, BLOCK, 8, 1), Ok(Vec::new()), "another start has none");
        }
        assert!(full < 400, "it is not full for ever");
    }
}

/// Notes up to this one of the running transaction.
fn expected(added: &[(u64, u32, Note)], written: u64, running: TransactionId) -> Vec<Note> {
    let counts = |(number, id, _): &&(u64, u32, Note)| *number <= written && *id == running.0;
    added.iter().filter(counts).map(|(_, _, note)| note.clone()).collect()
}

#[test]
fn every_flipped_bit_of_a_batch_is_found_and_one_that_is_missing_before_others_too() {
    let mut circle = NoteCircle::new(BLOCK, BLOCKS, 1);
    let mut disk = vec![0; BLOCKS as usize * BLOCK];
    let mut lengths = Vec::new();
    for sequence in 1..4 {
        circle.add(TransactionId(5), vec![put(sequence, 20), deletion(sequence)]);
        let taken = circle.take().expect("there is room");
        write(&mut disk, &taken);
        let (_, length) = Batch::decode(&taken.data).expect("it is whole");
        lengths.push(length);
    }
    assert_eq!(scan(&disk, BLOCK, 1, 1).expect("whole").len(), 3);
    assert_eq!(scan(&disk, BLOCK, 1, 3).expect("whole").len(), 1, "the ring has the others");
    for (batch, length) in lengths.iter().enumerate() {
        for bit in 0..length * 8 {
            let mut flipped = disk.clone();
            flipped[batch * BLOCK + bit / 8] ^= 1 << (bit % 8);
            match (batch, scan(&flipped, BLOCK, 1, 1)) {
                // Nobody knows that it was written.
                (2, Ok(notes)) => assert_eq!(notes.len(), 2, "bit {bit}"),
                (0 | 1, Err(_)) => {}
                (_, other) => panic!("bit {bit} of batch {batch}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_full_circle_takes_no_more_until_something_is_durable() {
    let mut circle = NoteCircle::new(BLOCK, BLOCKS, 1);
    let mut transaction = TransactionId(u32::MAX - 1);
    let mut taken = 0;
    for sequence in 0..1000 {
        circle.add(transaction, vec![put(sequence, BLOCK)]);
        taken += u32::from(circle.take().is_some());
    }
    assert!(circle.is_crowded() && circle.is_waiting() && circle.take().is_none());
    assert!(taken >= BLOCKS / 4, "{taken} batches");
    circle.durable(transaction);
    assert!(!circle.is_crowded() && !circle.is_waiting());
    // Numbers of transactions go round.
    transaction = transaction.next().next().next();
    circle.add(transaction, vec![put(2000, 1)]);
    assert!(circle.take().is_some());
    circle.durable(TransactionId(u32::MAX));
    assert_eq!(circle.needed.len(), 1, "an older one says nothing of it");
}

#[test]
fn a_batch_that_is_torn_over_others_of_which_the_ring_knows_takes_nothing_away() {
    let mut circle = NoteCircle::new(BLOCK, BLOCKS, 1);
    let mut disk = vec![0; BLOCKS as usize * BLOCK];
    let mut next = 1;
    circle.add(TransactionId(5), vec![put(next, 100)]);
    while let Some(taken) = circle.take() {
        write(&mut disk, &taken);
        next += 1;
        circle.add(TransactionId(5), vec![put(next, 100)]);
    }
    assert!(scan(&disk, BLOCK, 1, 1).expect("whole").len() as u32 >= BLOCKS - 1);
    circle.durable(TransactionId(5));
    let before = disk.clone();
    circle.add(TransactionId(6), vec![put(next + 1, 100)]);
    let over = circle.take().expect("there is room again");
    let from = over.start as usize * BLOCK;
    disk[from..from + 50].copy_from_slice(&over.data[..50]);
    assert_ne!(disk, before);
    assert_eq!(scan(&disk, BLOCK, 1, next + 1), Ok(Vec::new()));
    assert!(scan(&disk, BLOCK, 1, 1).is_err(), "the ring would have to have them");
    write(&mut disk, &over);
    assert_eq!(scan(&disk, BLOCK, 1, next + 1).expect("whole").len(), 1);
}

#[test]
fn random_bytes_are_no_notes() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2000 {
        let mut bytes = vec![0; 2 * BLOCK];
        random.fill_bytes(&mut bytes);
        let whole = Batch { starts: 1, number: 1, oldest_needed: 1, notes: vec![vec![put(1, 8)]] }.encode(BLOCK);
        let kept = random.random_range(0..block::RECORD_HEADER_BYTES + BATCH_HEADER_BYTES);
        bytes[..kept].copy_from_slice(&whole[..kept]);
        assert_eq!(scan(&bytes, BLOCK, 1, 0), Ok(Vec::new()));
    }
}
