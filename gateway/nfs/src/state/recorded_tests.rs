//! Records of states: what comes back, and what hostile bytes make.

use std::collections::BTreeMap;

use filesystem::state_ring::RecordId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::files::FileStates;
use super::super::files::world::*;
use super::super::holder::{Holder, Host};
use super::super::ranges::{ByteRange, HeldRange, LockKind};
use super::*;
use crate::ids::Moment;

type Disk = BTreeMap<RecordId, Vec<u8>>;

fn restore(disk: &Disk) -> Result<FileStates, RestoreError> {
    FileStates::restore(EPOCH, disk.iter().map(|(id, payload)| (*id, &payload[..])))
}

/// An open with 500 ranges under it, a delegation, a lock and a share of a host.
fn world() -> World {
    let mut world = World::new();
    let open = world.open(ALICE, "a", file(1), BOTH);
    let mut lock = world.try_lock_under(ALICE, file(1), &open, "l", exclusive(0, 0)).unwrap();
    for at in 1..500 {
        lock = world.states.lock(ALICE, file(1), &lock, shared(at * 10, at * 10 + 3)).unwrap();
    }
    world.states.delegate(file(2), BOB, true, Moment(0), number(&mut world.next)).unwrap();
    world.nlm_lock(file(3), "h", exclusive(0, 9)).unwrap();
    world.states.nlm_share(file(4), host("h"), mode((1, 2)), false, number(&mut world.next)).unwrap();
    world.commit();
    world
}

#[test]
fn ranges_are_cut_into_chunks_without_gaps() {
    let ranges: Vec<_> = (0..1_000)
        .map(|at| HeldRange { range: ByteRange::between(at * 2, at * 2).unwrap(), kind: LockKind::Shared })
        .collect();
    for count in [0, 1, 79, 80, 81, 270, 271, 1_000] {
        let ranges = &ranges[..count];
        let chunks = chunk_count(count);
        let joined: Vec<_> = (0..chunks).flat_map(|at| chunk(ranges, at)).copied().collect();
        assert_eq!(joined, ranges);
        assert!((1..chunks).all(|at| !chunk(ranges, at).is_empty()) && chunk(ranges, chunks).is_empty());
    }
}

#[test]
fn the_longest_records_keep_to_their_bound() {
    let long = [b'x'; 1024];
    let mut lock = LockState {
        file: file(1),
        holder: Holder::nlm(&Host::new(&long, std::net::Ipv6Addr::LOCALHOST.into()).unwrap(), 1, &long).unwrap(),
        open: None,
        seqid: 1,
        ranges: HeldRanges::default(),
    };
    for at in 0..u64::from(RANGES_PER_STATE_MAX) {
        lock.ranges.lock(ByteRange::between(at * 2, at * 2).unwrap(), LockKind::Shared);
    }
    for at in 0..chunk_count(lock.ranges.len()) {
        assert!(encode_lock(&lock, at).len() <= RECORD_BYTES_MAX);
    }
}

#[test]
fn only_the_chunks_that_changed_are_recorded() {
    let mut world = world();
    let (number, _) = world.states.locks.iter().next().unwrap();
    let lock = crate::ids::Stateid::new(EPOCH, *number, 0);
    world.states.lock(ALICE, file(1), &lock, exclusive(4_990, 4_990)).unwrap();
    let ids: Vec<_> = world.states.records().into_iter().map(|(id, _)| id.key as u32).collect();
    assert_eq!(ids, [0, 3], "the first has the count, the last the range");
    world.commit();
}

#[test]
fn records_of_other_kinds_are_passed_over_and_missing_ones_are_missed() {
    let world = world();
    let mut disk = world.disk.clone();
    disk.insert(RecordId { kind: 1, key: 4 }, b"a client".to_vec());
    assert_same(&restore(&disk).unwrap(), &world.states);
    for id in world.disk.keys() {
        let mut disk = world.disk.clone();
        disk.remove(id);
        // What stands alone may be gone; parts of a lock state may not, nor the open that it is under.
        let alone = id.kind == DELEGATION_RECORD || id.kind == OPEN_RECORD && id.key != 1;
        let lone_lock = id.kind == LOCK_RECORD && id.key >> 32 != 2;
        assert_eq!(restore(&disk).is_ok(), alone || lone_lock, "{id:?}");
    }
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let world = world();
    let open = |number: u64| RecordId { kind: OPEN_RECORD, key: u128::from(number) };
    let payload = world.disk[&open(1)].clone();
    let refused = |id: RecordId, payload: Vec<u8>| {
        let mut disk = world.disk.clone();
        disk.insert(id, payload);
        restore(&disk).unwrap_err()
    };
    assert_eq!(refused(open(99), payload.clone()), RestoreError::Inconsistent(open(99)), "the same open twice");
    let huge = RecordId { kind: OPEN_RECORD, key: u128::MAX };
    assert_eq!(refused(huge, payload.clone()), RestoreError::Inconsistent(huge));
    let delegation = world.disk.keys().find(|id| id.kind == DELEGATION_RECORD).unwrap();
    let taken = RecordId { kind: DELEGATION_RECORD, key: 1 };
    assert_eq!(refused(taken, world.disk[delegation].clone()), RestoreError::Inconsistent(taken), "a number twice");
    let chunk = lock_id(StateNumber(2), 9);
    let more = world.disk[&lock_id(StateNumber(2), 1)].clone();
    assert_eq!(refused(chunk, more), RestoreError::Inconsistent(lock_id(StateNumber(2), 0)), "a chunk too many");
    let mut newer = payload;
    newer[3] = 2;
    assert_eq!(refused(open(1), newer), RestoreError::Version { id: open(1), version: 2 });
    let long = vec![0; RECORD_BYTES_MAX + 1];
    assert!(matches!(refused(open(1), long), RestoreError::Malformed { .. }));
}

#[test]
fn hostile_bytes_make_errors_or_sound_states() {
    let world = world();
    let ids: Vec<_> = world.disk.keys().copied().collect();
    let mut random = StdRng::seed_from_u64(5);
    let (mut fine, mut refused) = (0, 0);
    for _ in 0..4_000 {
        let mut disk = world.disk.clone();
        for _ in 0..random.random_range(1..3) {
            let id = ids[random.random_range(0..ids.len())];
            let Some(mut payload) = disk.remove(&id) else { continue };
            match random.random_range(0..4) {
                0 => payload.truncate(random.random_range(0..=payload.len())),
                1 => payload.extend([0, 0, 0, random.random_range(0..3)]),
                2 => payload = (0..random.random_range(0..64)).map(|_| random.random()).collect(),
                _ if payload.is_empty() => {}
                _ => {
                    let at = random.random_range(0..payload.len().min(80));
                    payload[at] ^= 1 << random.random_range(0..8);
                }
            }
            let kind = if random.random_bool(0.05) { random.random_range(5..8) } else { id.kind };
            disk.insert(RecordId { kind, ..id }, payload);
        }
        match restore(&disk) {
            Ok(states) => {
                fine += 1;
                // Whatever was told, it can be used and dropped.
                let mut states = states;
                for client in [ALICE, BOB] {
                    states.drop_client(client);
                }
                states.commit();
                assert_eq!(states.totals_of(ALICE), Default::default());
            }
            Err(_) => refused += 1,
        }
    }
    assert!(fine > 50 && refused > 1_000, "{fine} {refused}");
}
