//! Hosts of the network lock manager, and those who wait for locks, case by case.

use super::super::bounds::*;
use super::super::holder::Holder;
use super::super::ranges::{ByteRange, LockKind};
use super::super::refusal::Refusal;
use super::super::share::ShareMode;
use super::super::waiters::Wanted;
use super::world::*;
use crate::ids::{StateNumber, Stateid};
use crate::v4::status::Status;

#[test]
fn hosts_and_clients_lock_in_one_table() {
    let mut world = World::new();
    let alice = world.open(ALICE, "a", file(1), BOTH);
    world.nlm_lock(file(1), "h", exclusive(0, 9)).unwrap();
    world.commit();
    let Err(Refusal::Lock(denied)) = world.try_lock_under(ALICE, file(1), &alice, "l", shared(9, 9)) else { panic!() };
    assert_eq!(denied.by, host("h"));
    let lock = world.try_lock_under(ALICE, file(1), &alice, "l", exclusive(10, 19)).unwrap();
    world.commit();
    assert_eq!(status(world.nlm_lock(file(1), "h", shared(5, 10))), Status::Denied);
    assert!(world.states.nlm_test(file(1), &host("h"), range(0, 9), LockKind::Exclusive).is_none(), "its own");
    assert!(world.states.nlm_test(file(1), &host("g"), range(0, 9), LockKind::Shared).is_some());
    // The same host's other process is another holder.
    let other = Holder::nlm(&machine("h"), 8, b"8").unwrap();
    assert!(world.states.nlm_test(file(1), &other, range(0, 9), LockKind::Shared).is_some());
    world.states.nlm_unlock(file(1), &host("h"), range(3, 5)).unwrap();
    world.commit();
    assert_eq!(world.states.totals_of_host(&machine("h")).ranges, 2);
    world.states.nlm_unlock(file(1), &host("h"), ByteRange::ALL).unwrap();
    world.states.nlm_unlock(file(1), &host("h"), ByteRange::ALL).unwrap();
    world.commit();
    assert_eq!(world.states.totals_of_host(&machine("h")), Totals::default());
    assert_eq!(world.states.test_stateid(ALICE, &lock), Ok(()));
}

#[test]
fn shares_of_hosts_are_replaced_and_given_up() {
    let mut world = World::new();
    world.states.nlm_share(file(1), host("h"), mode((1, 2)), false, number(&mut world.next)).unwrap();
    world.commit();
    assert_eq!(status(world.try_open(ALICE, "a", file(1), WRITE)), Status::ShareDenied);
    world.states.nlm_share(file(1), host("h"), mode((1, 0)), false, number(&mut world.next)).unwrap();
    world.commit();
    let stateid = world.open(ALICE, "a", file(1), (2, 0));
    let again = world.states.nlm_share(file(1), host("h"), mode((1, 2)), true, number(&mut world.next));
    assert_eq!(status(again), Status::ReclaimConflict);
    assert!(world.states.nlm_unshare(file(1), &host("h")) && !world.states.nlm_unshare(file(1), &host("h")));
    world.commit();
    // A host's number as a stateid is nobody's.
    world.states.nlm_share(file(1), host("h"), mode((1, 0)), false, number(&mut world.next)).unwrap();
    world.commit();
    let forged = Stateid::new(EPOCH, StateNumber(world.next), 1);
    assert_eq!(world.states.close(ALICE, file(1), &forged), Err(Status::BadStateid));
    assert_eq!(world.states.close(ALICE, file(1), &stateid), Ok(Stateid::INVALID));
}

#[test]
fn a_host_that_restarts_has_nothing_left() {
    let mut world = World::new();
    for at in 1..4 {
        world.nlm_lock(file(at), "h", exclusive(0, 9)).unwrap();
    }
    world.nlm_lock(file(3), "g", exclusive(20, 29)).unwrap();
    world.states.nlm_share(file(4), host("h"), ShareMode::default(), false, number(&mut world.next)).unwrap();
    world.commit();
    assert_eq!(world.states.drop_host_part(&machine("h"), usize::MAX), [file(1), file(2), file(4)]);
    world.commit();
    assert_eq!(world.states.open_files(), [file(3)]);
    assert_eq!(world.states.totals_of_host(&machine("g")).locks, 1);
}

fn wanted(who: &str, first: u64, last: u64, kind: LockKind) -> Wanted {
    Wanted { file: file(1), holder: host(who), range: range(first, last), kind }
}

#[test]
fn those_who_wait_are_woken_in_order_and_once() {
    let mut world = World::new();
    world.nlm_lock(file(1), "holder", exclusive(0, 99)).unwrap();
    let (first, second) = (wanted("1", 0, 9, LockKind::Exclusive), wanted("2", 5, 14, LockKind::Exclusive));
    let (third, fourth) = (wanted("3", 20, 29, LockKind::Shared), wanted("4", 25, 34, LockKind::Shared));
    for waiter in [&first, &second, &third, &fourth] {
        assert!(world.states.wait_for(waiter.clone(), NOW));
    }
    assert!(world.states.wait_for(first.clone(), NOW), "asking again keeps the place");
    world.commit();
    assert_eq!((world.states.waiters(), world.states.woken()), (4, vec![]));
    world.states.nlm_unlock(file(1), &host("holder"), range(0, 30)).unwrap();
    assert!(world.states.woken().is_empty(), "it may yet be taken back");
    world.commit();
    assert_eq!(
        world.states.woken(),
        [first.clone(), third.clone()],
        "the second is behind the first, the fourth denied"
    );
    assert!(world.states.woken().is_empty(), "once");
    world.nlm_lock(file(1), "1", exclusive(0, 9)).unwrap();
    world.commit();
    assert!(world.states.woken().is_empty());
    assert_eq!(world.states.waiters(), 3, "who has it waits no more");
    world.states.nlm_unlock(file(1), &host("1"), range(0, 9)).unwrap();
    world.states.nlm_unlock(file(1), &host("holder"), ByteRange::ALL).unwrap();
    world.commit();
    assert_eq!(world.states.woken(), [second.clone(), fourth]);
    // Who was too late asks again, and is woken again.
    world.nlm_lock(file(1), "thief", shared(5, 5)).unwrap();
    assert!(world.states.wait_for(second.clone(), NOW));
    world.commit();
    assert!(world.states.woken().is_empty());
    world.states.drop_host_part(&machine("thief"), usize::MAX);
    world.commit();
    assert_eq!(world.states.woken(), [second]);
}

#[test]
fn who_cancels_or_is_not_heard_of_makes_room_for_those_behind() {
    let mut world = World::new();
    world.nlm_lock(file(1), "holder", shared(0, 99)).unwrap();
    let (first, second) = (wanted("1", 0, 9, LockKind::Exclusive), wanted("2", 0, 9, LockKind::Exclusive));
    world.states.wait_for(first.clone(), NOW);
    world.states.wait_for(second.clone(), NOW.plus(1));
    world.commit();
    assert!(world.states.cancel(&first));
    world.take_back();
    assert_eq!(world.states.waiters(), 2);
    world.states.nlm_unlock(file(1), &host("holder"), ByteRange::ALL).unwrap();
    world.commit();
    assert_eq!(world.states.woken(), std::slice::from_ref(&first));
    assert!(world.states.cancel(&first) && !world.states.cancel(&first));
    world.commit();
    assert_eq!(world.states.woken(), [second]);
    world.states.expire_waiters(NOW.plus(2));
    world.commit();
    assert_eq!(world.states.waiters(), 0);
}

#[test]
fn queues_of_those_who_wait_are_bounded() {
    let mut world = World::new();
    let mut waits = |at: u32, who: u64, byte: u64| {
        let holder = Holder::nlm(&machine(&format!("{who}")), 0, b"").unwrap();
        world.states.wait_for(Wanted { file: file(at), holder, range: range(byte, byte), kind: LockKind::Shared }, NOW)
    };
    assert!((0..WAITERS_PER_FILE_MAX as u64).all(|who| waits(0, who, 0)));
    assert!(!waits(0, 9_999, 0), "the file's queue is full");
    assert!(waits(0, 5, 0), "who is in it stays");
    assert!((0..WAITERS_PER_PARTY_MAX as u64 - 1).all(|byte| waits(1 + byte as u32, 1, byte)));
    assert!(!waits(1_000, 1, 0), "the host's share is used up");
    let left = WAITERS_MAX - WAITERS_PER_FILE_MAX - (WAITERS_PER_PARTY_MAX - 1);
    assert!((0..left as u64).all(|who| waits(2_000 + who as u32, 10_000 + who, 0)));
    assert!(!waits(9_000, 99_999, 0));
    assert_eq!(world.states.waiters(), WAITERS_MAX);
}
