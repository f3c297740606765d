//! Bounds of opens, locks and delegations: each is met and not passed.

use super::super::bounds::*;
use super::super::delegation::NotDelegated;
use super::super::ranges::ByteRange;
use super::super::refusal::Refusal;
use super::world::*;
use crate::ids::ClientId;
use crate::v4::status::Status;

#[test]
fn opens_are_bounded_by_client_and_in_all() {
    let mut world = World::new();
    for at in 0..OPENS_PER_PARTY_MAX {
        assert!(world.try_open(ALICE, "a", file(at), READ).is_ok());
    }
    world.states.commit();
    let full = world.try_open(ALICE, "a", file(OPENS_PER_PARTY_MAX), READ);
    assert_eq!((status(full.clone()), full), (Status::NoSpace, Err(Refusal::Full(Bound::Opens))));
    assert!(!world.states.is_changed());
    assert!(world.try_open(ALICE, "a", file(0), READ).unwrap().upgraded, "what is open stays of use");
    for at in 0..OPENS_MAX - OPENS_PER_PARTY_MAX {
        assert!(world.try_open(BOB, "b", file(at), READ).is_ok());
    }
    assert_eq!(status(world.try_open(CAROL, "c", file(0), READ)), Status::NoSpace);
    assert!(world.states.room_for_open(CAROL, b"c").is_err());
    world.states.drop_client(BOB);
    assert!(world.try_open(CAROL, "c", file(0), READ).is_ok());
}

#[test]
fn bytes_of_owners_are_bounded() {
    let mut world = World::new();
    let owner = "o".repeat(1024);
    let fit = OWNER_BYTES_PER_PARTY_MAX / 1024;
    assert!((0..fit).all(|at| world.try_open(ALICE, &owner, file(at as u32), READ).is_ok()));
    assert_eq!(world.try_open(ALICE, "x", file(9_999), READ), Err(Refusal::Full(Bound::Opens)));
    assert!(world.try_open(BOB, &owner, file(9_999), READ).is_ok());
}

#[test]
fn ranges_and_lock_states_are_bounded_and_a_refused_lock_changes_nothing() {
    let mut world = World::new();
    let open = world.open(ALICE, "a", file(1), BOTH);
    let mut lock = world.try_lock_under(ALICE, file(1), &open, "l", exclusive(0, 0)).unwrap();
    for at in 1..u64::from(RANGES_PER_STATE_MAX) {
        lock = world.states.lock(ALICE, file(1), &lock, exclusive(at * 10, at * 10 + 4)).unwrap();
    }
    world.commit();
    assert_eq!(world.disk.len() as u32, 1 + 23, "an open, and the chunks of the ranges");
    let full = world.states.lock(ALICE, file(1), &lock, exclusive(1_000_000, 1_000_000));
    assert_eq!((status(full.clone()), full), (Status::ServerFault, Err(Refusal::Full(Bound::Ranges))));
    assert_eq!(world.states.unlock(ALICE, file(1), &lock, range(12, 13)), Err(Refusal::Full(Bound::Ranges)));
    assert!(!world.states.is_changed());
    assert_eq!(world.states.test_stateid(ALICE, &lock), Ok(()));
    let lock = world.states.unlock(ALICE, file(1), &lock, range(10, 14)).unwrap();
    assert!(world.states.lock(ALICE, file(1), &lock, exclusive(1_000_000, 1_000_000)).is_ok());
    world.commit();
    world.states.unlock(ALICE, file(1), &newest(lock), ByteRange::ALL).unwrap();
    world.commit();
    assert_eq!(world.disk.len(), 2, "chunks that are not needed are deleted");
    // A few in each of many files.
    let mut open = open;
    for owner in 1..LOCK_STATES_PER_PARTY_MAX {
        let at = file(1 + owner / 64);
        if owner % 64 == 0 {
            open = world.try_open(ALICE, "a", at, BOTH).unwrap().stateid;
        }
        assert!(world.try_lock_under(ALICE, at, &open, &format!("{owner}"), shared(0, 0)).is_ok());
        world.states.commit();
    }
    let last = file(1 + (LOCK_STATES_PER_PARTY_MAX - 1) / 64);
    let full = world.try_lock_under(ALICE, last, &open, "more", shared(0, 0));
    assert_eq!((status(full.clone()), full), (Status::ServerFault, Err(Refusal::Full(Bound::LockStates))));
}

#[test]
fn delegations_are_bounded_by_client() {
    let mut world = World::new();
    for at in 0..DELEGATIONS_PER_CLIENT_MAX {
        assert!(world.states.delegate(file(at), ALICE, true, NOW, number(&mut world.next)).is_ok());
    }
    let more = file(DELEGATIONS_PER_CLIENT_MAX);
    assert_eq!(world.states.delegate(more, ALICE, true, NOW, number(&mut world.next)), Err(NotDelegated::Resource));
    assert!(world.states.delegate(more, BOB, true, NOW, number(&mut world.next)).is_ok());
}

#[test]
fn clients_with_very_many_delegations_are_to_give_some_back() {
    let mut world = World::new();
    let (of_one, of_all) = DELEGATIONS_MANY;
    for at in 0..of_one - 1 {
        world.states.delegate(file(at), ALICE, true, NOW, number(&mut world.next)).unwrap();
    }
    world.states.commit();
    assert_eq!(world.states.crowded(), []);
    let last = world.states.delegate(file(of_one), ALICE, true, NOW, number(&mut world.next)).unwrap();
    world.states.commit();
    assert_eq!(world.states.crowded(), [(ALICE, of_one / 2)]);
    world.states.revoke(last.parts().1);
    world.states.commit();
    assert_eq!(world.states.crowded(), [], "what is revoked cannot be given back");
    // Many that have not too many each: it is for those with more than a few to help.
    let few = of_one / 8 - 1;
    for at in 0..few {
        world.states.delegate(file(at), BOB, true, NOW, number(&mut world.next)).unwrap();
    }
    let mut client = 100;
    while world.states.totals().delegations < of_all {
        for at in 0..of_one / 2 {
            let given = world.states.delegate(file(at), ClientId(client), true, NOW, number(&mut world.next));
            given.unwrap();
        }
        client += 1;
        world.states.commit();
    }
    let crowded = world.states.crowded();
    assert_eq!(crowded.len() as u64, 1 + client - 100, "all but one");
    assert!(crowded.iter().all(|(client, keep)| *client != BOB && *keep > 0));
}

#[test]
fn opens_that_are_remembered_are_bounded_and_taken_back_with_their_operation() {
    let mut world = World::new();
    assert!(!world.states.opens_again(file(1), ALICE));
    assert!(world.states.opens_again(file(1), ALICE));
    world.take_back();
    assert!(!world.states.opens_again(file(1), ALICE), "it was not opened");
    world.commit();
    assert!(world.states.opens_again(file(1), ALICE) && !world.states.opens_again(file(1), BOB));
    world.commit();
    for at in 2..OPENED_LATELY_MAX as u32 {
        assert!(!world.states.opens_again(file(at), ALICE));
        world.states.commit();
    }
    assert!(world.states.opens_again(file(1), ALICE), "the first");
    world.states.commit();
    for at in 0..OPENED_LATELY_MAX as u32 {
        world.states.opens_again(file(10_000 + at), ALICE);
        world.states.commit();
    }
    assert!(!world.states.opens_again(file(1), ALICE), "forgotten behind so many others");
}
