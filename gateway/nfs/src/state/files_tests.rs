//! Opens, locks and stateids case by case, and what becomes of files and clients.

use super::super::bounds::*;
use super::super::holder::Holder;
use super::super::ranges::{ByteRange, LockKind, TO_END};
use super::super::refusal::Refusal;
use super::super::stateids::Io;
use super::super::waiters::Wanted;
use super::world::*;
use crate::ids::{StateNumber, Stateid};
use crate::v4::status::Status;

#[test]
fn an_open_is_refused_where_the_matrix_says_so_and_only_there() {
    for first in 0..16 {
        for second in 0..16 {
            let (held, asked) = ((first / 4, first % 4), (second / 4, second % 4));
            if held.0 == 0 || asked.0 == 0 {
                continue;
            }
            let conflict = held.0 & asked.1 != 0 || held.1 & asked.0 != 0;
            for (client, owner) in [(ALICE, "other"), (BOB, "one")] {
                let mut world = World::new();
                world.open(ALICE, "one", file(1), held);
                let result = world.try_open(client, owner, file(1), asked);
                match conflict {
                    true => {
                        let by = Holder::v4(ALICE, b"one").unwrap();
                        assert_eq!(result, Err(Refusal::Share { status: Status::ShareDenied, by }));
                    }
                    false => assert!(!result.unwrap().upgraded),
                }
                world.commit();
                assert!(world.try_open(client, owner, file(2), asked).is_ok(), "another file");
            }
            let mut world = World::new();
            world.open(ALICE, "one", file(1), held);
            let upgraded = world.try_open(ALICE, "one", file(1), asked).unwrap();
            assert!(upgraded.upgraded && upgraded.stateid.seqid == 2, "an owner is never in its own way");
        }
    }
}

#[test]
fn shares_of_hosts_and_opens_see_each_other() {
    for first in 0..16 {
        for second in 4..16 {
            let (held, asked) = ((first / 4, first % 4), (second / 4, second % 4));
            let conflict = held.0 & asked.1 != 0 || held.1 & asked.0 != 0;
            let mut world = World::new();
            world.states.nlm_share(file(1), host("h"), mode(held), false, || StateNumber(900)).unwrap();
            world.commit();
            assert_eq!(world.try_open(ALICE, "one", file(1), asked).is_err(), conflict);
            world.commit();
            let mut world = World::new();
            world.open(ALICE, "one", file(1), asked);
            let shared = world.states.nlm_share(file(1), host("h"), mode(held), false, || StateNumber(900));
            assert_eq!(shared.is_err(), conflict);
        }
    }
}

#[test]
fn opens_without_access_or_with_too_long_an_owner_are_refused() {
    let mut world = World::new();
    assert_eq!(status(world.try_open(ALICE, "one", file(1), (0, 0))), Status::Invalid);
    let owner = "x".repeat(1025);
    assert_eq!(status(world.try_open(ALICE, &owner, file(1), READ)), Status::BadXdr);
    assert!(!world.states.is_changed());
    assert_eq!(world.states.totals(), Totals::default());
}

#[test]
fn every_wrong_stateid_is_told_its_status() {
    let mut world = World::new();
    let former = world.open(ALICE, "one", file(1), READ);
    let stateid = world.open(ALICE, "one", file(1), BOTH);
    let lock = world.try_lock_under(ALICE, file(1), &stateid, "l", exclusive(0, 9)).unwrap();
    world.commit();
    let next = Stateid { seqid: 3, ..stateid };
    let stale = Stateid::new(EPOCH - 1, StateNumber(1), 1);
    let nobodys = Stateid::new(EPOCH, StateNumber(77), 1);
    let cases = [
        (ALICE, file(1), former, Status::OldStateid),
        (ALICE, file(1), next, Status::BadStateid),
        (ALICE, file(1), stale, Status::StaleStateid),
        (ALICE, file(1), nobodys, Status::BadStateid),
        (BOB, file(1), stateid, Status::BadStateid),
        (ALICE, file(2), stateid, Status::BadStateid),
        (ALICE, file(1), lock, Status::BadStateid),
        (ALICE, file(1), Stateid::ANONYMOUS, Status::BadStateid),
        (ALICE, file(1), Stateid::READ_BYPASS, Status::BadStateid),
        (ALICE, file(1), Stateid::CURRENT, Status::BadStateid),
        (ALICE, file(1), Stateid::INVALID, Status::BadStateid),
    ];
    for (client, at, given, expected) in cases {
        assert_eq!(world.states.close(client, at, &given), Err(expected), "{given:?}");
        assert_eq!(world.states.downgrade(client, at, &given, mode(READ)), Err(expected), "{given:?}");
        assert_eq!(status(world.try_lock_under(client, at, &given, "l", shared(0, 1))), expected, "{given:?}");
        assert_eq!(world.states.return_delegation(client, at, &given), Err(expected), "{given:?}");
        // For a lock's own operations the lock's stateid is the right one, and the open's wrong.
        let expected = if given == lock { continue } else { expected };
        assert_eq!(status(world.states.lock(client, at, &given, shared(0, 1))), expected, "{given:?}");
        assert_eq!(status(world.states.unlock(client, at, &given, range(0, 1))), expected, "{given:?}");
        if given != Stateid::ANONYMOUS && given != Stateid::READ_BYPASS {
            assert_eq!(status(world.states.check_io(Some(client), at, &given, Io::Read)), expected, "{given:?}");
        }
        if at == file(1) {
            assert_eq!(world.states.test_stateid(client, &given), Err(expected), "{given:?}");
            assert_eq!(world.states.free_stateid(client, &given), Err(expected), "{given:?}");
        }
        assert!(!world.states.is_changed());
    }
    assert_eq!(status(world.states.lock(ALICE, file(1), &stateid, shared(0, 1))), Status::BadStateid);
    assert_eq!(world.states.return_delegation(ALICE, file(1), &stateid), Err(Status::BadStateid));
    assert_eq!(world.states.test_stateid(ALICE, &stateid), Ok(()));
    assert_eq!(world.states.test_stateid(ALICE, &newest(former)), Ok(()));
    assert_eq!(world.states.close(ALICE, file(1), &newest(former)), Ok(Stateid::INVALID));
    world.commit();
    assert_eq!(world.states.test_stateid(ALICE, &stateid), Err(Status::BadStateid), "closed");
    assert_eq!(world.states.test_stateid(ALICE, &lock), Err(Status::BadStateid), "its locks went with it");
}

#[test]
fn counts_go_round_without_zero() {
    let mut world = World::new();
    let stateid = world.open(ALICE, "one", file(1), READ);
    world.states.opens.get_mut(&stateid.parts().1).unwrap().seqid = u32::MAX;
    let newest = Stateid { seqid: u32::MAX, ..stateid };
    assert_eq!(world.states.test_stateid(ALICE, &newest), Ok(()));
    let after = world.open(ALICE, "one", file(1), READ);
    assert_eq!(after.seqid, 1);
    assert_eq!(world.states.test_stateid(ALICE, &newest), Err(Status::OldStateid));
    assert_eq!(world.states.test_stateid(ALICE, &Stateid { seqid: 2, ..after }), Err(Status::BadStateid));
}

#[test]
fn a_downgrade_goes_back_to_what_was_opened_and_lets_others_in() {
    let mut world = World::new();
    world.open(ALICE, "one", file(1), (1, 0));
    let stateid = world.open(ALICE, "one", file(1), (2, 1));
    assert_eq!(status(world.try_open(BOB, "b", file(1), READ)), Status::ShareDenied);
    for wrong in [(3, 0), (2, 0), (1, 1), (3, 3), (0, 0)] {
        assert_eq!(world.states.downgrade(ALICE, file(1), &stateid, mode(wrong)), Err(Status::Invalid), "{wrong:?}");
    }
    let down = world.states.downgrade(ALICE, file(1), &stateid, mode((1, 0))).unwrap();
    world.commit();
    assert_eq!(down.seqid, 3);
    world.open(BOB, "b", file(1), READ);
    assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &down, Io::Write)), Status::OpenMode);
    assert_eq!(world.states.downgrade(ALICE, file(1), &down, mode((2, 1))), Err(Status::Invalid), "forgotten");
}

#[test]
fn data_is_read_and_written_as_opens_allow() {
    let mut world = World::new();
    let read = world.open(ALICE, "r", file(1), READ);
    let write = world.open(ALICE, "w", file(1), WRITE);
    let (by_read, by_write) = ([read, newest(read)], [write, newest(write)]);
    for stateid in by_read {
        assert_eq!(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Read), Ok(()));
        assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Write)), Status::OpenMode);
    }
    for stateid in by_write {
        assert_eq!(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Write), Ok(()));
        assert_eq!(
            world.states.check_io(Some(ALICE), file(1), &stateid, Io::Read),
            Ok(()),
            "it may have to fill a page"
        );
    }
    let lock = world.try_lock_under(ALICE, file(1), &read, "l", shared(0, 9)).unwrap();
    world.commit();
    assert_eq!(world.states.check_io(Some(ALICE), file(1), &lock, Io::Read), Ok(()));
    assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &lock, Io::Write)), Status::OpenMode);
    assert_eq!(world.states.check_io(Some(BOB), file(1), &Stateid::ANONYMOUS, Io::Write), Ok(()), "locks are advisory");
}

#[test]
fn special_stateids_obey_who_denies_and_the_bypass_does_for_writes_only() {
    let mut world = World::new();
    let write = world.open(ALICE, "w", file(1), WRITE);
    world.open(BOB, "b", file(1), (2, 1));
    for client in [None, Some(ALICE), Some(BOB)] {
        let io = |stateid: &Stateid, io| world.states.check_io(client, file(1), stateid, io);
        assert_eq!(status(io(&Stateid::ANONYMOUS, Io::Read)), Status::Locked);
        assert_eq!(io(&Stateid::READ_BYPASS, Io::Read), Ok(()));
        assert_eq!(io(&Stateid::ANONYMOUS, Io::Write), Ok(()));
        assert_eq!(status(io(&Stateid::CURRENT, Io::Read)), Status::BadStateid);
    }
    let denied = world.states.check_io(Some(ALICE), file(1), &write, Io::Read);
    assert_eq!(status(denied), Status::Locked, "open for writing only, and somebody denies reading");
    let mut world = World::new();
    world.open(BOB, "b", file(1), (1, 2));
    for stateid in [Stateid::ANONYMOUS, Stateid::READ_BYPASS] {
        assert_eq!(status(world.states.check_io(None, file(1), &stateid, Io::Write)), Status::Locked);
        assert_eq!(world.states.check_io(None, file(1), &stateid, Io::Read), Ok(()));
    }
}

#[test]
fn locks_deny_each_other_and_say_who_is_in_the_way() {
    let mut world = World::new();
    let alice = world.open(ALICE, "a", file(1), BOTH);
    let bob = world.open(BOB, "b", file(1), BOTH);
    let lock = world.try_lock_under(ALICE, file(1), &alice, "l", exclusive(10, 19)).unwrap();
    world.commit();
    assert_eq!(lock.seqid, 1);
    let Err(Refusal::Lock(denied)) = world.try_lock_under(BOB, file(1), &bob, "l", shared(0, 10)) else { panic!() };
    assert_eq!(denied.by, Holder::v4(ALICE, b"l").unwrap());
    assert_eq!((denied.held.range, denied.held.kind), (range(10, 19), LockKind::Exclusive));
    assert!(!world.states.is_changed(), "a lock that is denied leaves no state");
    assert_eq!(world.states.lock_test(BOB, file(1), b"l", range(19, 30), LockKind::Shared), Some(denied));
    assert_eq!(world.states.lock_test(ALICE, file(1), b"l", range(0, 30), LockKind::Exclusive), None, "its own");
    assert!(world.states.lock_test(ALICE, file(1), b"m", range(0, 30), LockKind::Shared).is_some());
    let reclaims = super::super::lock::LockRequest { reclaims: true, ..exclusive(0, 30) };
    assert_eq!(status(world.try_lock_under(BOB, file(1), &bob, "l", reclaims)), Status::ReclaimConflict);
    // The owner downgrades, and reading goes beside it.
    let lock = world.states.lock(ALICE, file(1), &lock, shared(10, 14)).unwrap();
    world.commit();
    assert_eq!(lock.seqid, 2);
    assert!(world.try_lock_under(BOB, file(1), &bob, "l", shared(0, 14)).is_ok());
    world.commit();
    assert_eq!(status(world.states.lock(ALICE, file(1), &lock, exclusive(12, 12))), Status::Denied, "an upgrade");
    let whole = ByteRange::new(0, TO_END).unwrap();
    let lock = world.states.unlock(ALICE, file(1), &lock, whole).unwrap();
    world.commit();
    assert_eq!((lock.seqid, world.states.test_stateid(ALICE, &lock)), (3, Ok(())), "it stays with nothing locked");
    let again = world.try_lock_under(ALICE, file(1), &alice, "l", shared(0, 0)).unwrap();
    world.commit();
    assert_eq!((again.parts(), again.seqid), (lock.parts(), 4), "the owner's own state");
}

#[test]
fn locks_need_an_open_of_their_mode() {
    let mut world = World::new();
    let read = world.open(ALICE, "r", file(1), READ);
    let write = world.open(ALICE, "w", file(1), WRITE);
    assert_eq!(status(world.try_lock_under(ALICE, file(1), &read, "l", exclusive(0, 0))), Status::OpenMode);
    assert_eq!(status(world.try_lock_under(ALICE, file(1), &write, "l", shared(0, 0))), Status::OpenMode);
    let lock = world.try_lock_under(ALICE, file(1), &read, "l", shared(0, 0)).unwrap();
    world.commit();
    assert_eq!(status(world.states.lock(ALICE, file(1), &lock, exclusive(0, 0))), Status::OpenMode);
}

#[test]
fn an_owner_under_two_opens_has_each_byte_once() {
    let mut world = World::new();
    let one = world.open(ALICE, "one", file(1), BOTH);
    let two = world.open(ALICE, "two", file(1), BOTH);
    let first = world.try_lock_under(ALICE, file(1), &one, "l", exclusive(0, 9)).unwrap();
    world.commit();
    let second = world.try_lock_under(ALICE, file(1), &two, "l", shared(5, 14)).unwrap();
    world.commit();
    assert_ne!(first.parts(), second.parts());
    assert!(world.states.lock_test(BOB, file(1), b"b", range(5, 9), LockKind::Shared).is_none(), "downgraded");
    // What was locked under the first is unlocked by either's stateid.
    world.states.unlock(ALICE, file(1), &second, range(0, 2)).unwrap();
    world.commit();
    assert!(world.states.lock_test(BOB, file(1), b"b", range(0, 2), LockKind::Exclusive).is_none());
    world.states.close(ALICE, file(1), &one).unwrap();
    world.commit();
    assert!(world.states.lock_test(BOB, file(1), b"b", range(0, 4), LockKind::Exclusive).is_none(), "released");
    assert!(world.states.lock_test(BOB, file(1), b"b", range(5, 14), LockKind::Exclusive).is_some(), "of the other");
}

#[test]
fn stateids_are_freed_when_nothing_is_held_by_them() {
    let mut world = World::new();
    let open = world.open(ALICE, "one", file(1), BOTH);
    let lock = world.try_lock_under(ALICE, file(1), &open, "l", exclusive(0, 9)).unwrap();
    world.commit();
    assert_eq!(world.states.free_stateid(ALICE, &open), Err(Status::LocksHeld));
    assert_eq!(world.states.free_stateid(ALICE, &lock), Err(Status::LocksHeld));
    let lock = world.states.unlock(ALICE, file(1), &lock, range(0, 9)).unwrap();
    assert_eq!(world.states.free_stateid(ALICE, &lock), Ok(()));
    world.commit();
    assert_eq!(world.states.free_stateid(ALICE, &lock), Err(Status::BadStateid));
    assert_eq!(world.disk.len(), 1, "only the open is left");
}

#[test]
fn files_are_held_from_the_first_to_the_last_and_listed_once() {
    let mut world = World::new();
    world.try_open(ALICE, "a", file(1), READ).unwrap();
    assert_eq!(world.states.opened_first(), [file(1)]);
    world.take_back();
    assert!(!world.states.is_open(file(1)));
    let alice = world.open(ALICE, "a", file(1), READ);
    world.try_open(BOB, "b", file(1), READ).unwrap();
    assert!(world.states.opened_first().is_empty(), "it was open");
    world.commit();
    world.states.close(ALICE, file(1), &alice).unwrap();
    assert!(world.states.closed_last().is_empty());
    world.commit();
    // Opened and closed in one operation is neither.
    let carol = world.try_open(CAROL, "c", file(2), READ).unwrap();
    world.states.close(CAROL, file(2), &carol.stateid).unwrap();
    assert!(world.states.opened_first().is_empty() && world.states.closed_last().is_empty());
    world.commit();
    assert_eq!(world.states.drop_client(BOB), [file(1)]);
    assert_eq!(world.states.closed_last(), [file(1)]);
    world.take_back();
    assert!(world.states.is_open(file(1)));
    world.crash();
    assert_eq!(world.states.open_files(), [file(1)]);
}

#[test]
fn a_client_that_goes_takes_all_of_its_own_and_nothing_else() {
    let mut world = World::new();
    let alice = world.open(ALICE, "a", file(1), BOTH);
    world.try_lock_under(ALICE, file(1), &alice, "l", exclusive(0, 9)).unwrap();
    world.open(ALICE, "a", file(2), READ);
    world.states.delegate(file(2), ALICE, true, NOW, number(&mut world.next)).unwrap();
    world.commit();
    world.open(BOB, "b", file(2), READ);
    assert!(world.states.has_state(ALICE) && !world.states.has_state(CAROL));
    let wanted =
        Wanted { file: file(1), holder: Holder::v4(BOB, b"l").unwrap(), range: range(0, 0), kind: LockKind::Shared };
    assert!(world.states.wait_for(wanted.clone(), NOW));
    world.commit();
    let mut copy = world.clone();
    assert_eq!(world.states.drop_client(ALICE), [file(1)]);
    world.commit();
    assert!(!world.states.has_state(ALICE) && world.states.has_state(BOB));
    assert_eq!(world.states.totals_of(ALICE), Totals::default());
    assert_eq!(world.states.woken(), [wanted]);
    // In parts it comes to the same.
    let mut parts = 0;
    while copy.states.totals_of(ALICE) != Totals::default() {
        copy.states.drop_client_part(ALICE, 1);
        copy.commit();
        parts += 1;
    }
    assert_eq!(parts, 4);
    assert_same(&copy.states, &world.states);
}

#[test]
fn a_client_with_nothing_but_what_was_revoked_has_no_state() {
    let mut world = World::new();
    let open = world.open(ALICE, "a", file(1), READ);
    let stateid = world.states.delegate(file(1), ALICE, true, NOW, number(&mut world.next)).unwrap();
    world.states.close(ALICE, file(1), &open).unwrap();
    world.commit();
    assert!(world.states.has_state(ALICE) && world.states.is_open(file(1)), "delegated");
    world.states.revoke(stateid.parts().1);
    assert_eq!(world.states.closed_last(), [file(1)]);
    world.commit();
    assert!(!world.states.has_state(ALICE) && world.states.has_revoked(ALICE));
    world.states.drop_client(ALICE);
    world.commit();
    assert!(world.disk.is_empty());
}

#[test]
fn a_number_that_is_taken_makes_no_second_state() {
    let mut world = World::new();
    world.open(ALICE, "a", file(1), READ);
    world.next = 0;
    assert_eq!(status(world.try_open(ALICE, "b", file(1), READ)), Status::ServerFault);
    assert!(!world.states.is_changed());
}
