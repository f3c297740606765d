//! What opens, locks, delegations, hosts and waiters do, case by case.

use super::super::bounds::*;
use super::super::delegation::{RECALL_PAUSE_MS, Touch};
use super::super::holder::Holder;
use super::super::open::{Claim, OpenRequest};
use super::super::ranges::{ByteRange, LockKind, TO_END};
use super::super::refusal::Refusal;
use super::super::share::ShareMode;
use super::super::stateids::Io;
use super::super::waiters::Wanted;
use super::world::*;
use crate::ids::{Moment, StateNumber, Stateid};
use crate::v4::status::Status;

const NOW: Moment = Moment(1_000_000);

fn status<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Status {
    result.unwrap_err().status()
}

fn newest(stateid: Stateid) -> Stateid {
    Stateid { seqid: 0, ..stateid }
}

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
fn a_delegation_is_given_only_where_it_is_of_use() {
    let mut world = World::new();
    world.open(ALICE, "a", file(1), READ);
    let give = |world: &mut World, client, channel, now| {
        world.states.delegate(file(1), client, channel, now, number(&mut world.next))
    };
    assert_eq!(give(&mut world, ALICE, false, NOW), None, "it cannot be called back");
    let stateid = give(&mut world, ALICE, true, NOW).unwrap();
    world.commit();
    assert_eq!(give(&mut world, ALICE, true, NOW), None, "it has it");
    assert!(give(&mut world, BOB, true, NOW).is_some(), "two may read");
    world.take_back();
    assert_eq!(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Read), Ok(()));
    assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Write)), Status::OpenMode);
    assert_eq!(world.states.free_stateid(ALICE, &stateid), Err(Status::LocksHeld));
    world.states.return_delegation(ALICE, file(1), &stateid).unwrap();
    world.commit();
    let write = world.open(CAROL, "c", file(1), WRITE);
    assert_eq!(give(&mut world, ALICE, true, NOW), None, "somebody writes");
    world.states.close(CAROL, file(1), &write).unwrap();
    world.commit();
    world.nlm_lock(file(1), "h", exclusive(0, 0)).unwrap();
    world.commit();
    assert_eq!(give(&mut world, ALICE, true, NOW), None, "somebody of another protocol is about to");
}

#[test]
fn a_delegation_in_the_way_is_recalled_and_in_the_end_revoked() {
    let mut world = World::new();
    let open = world.open(ALICE, "a", file(1), READ);
    let stateid = world.states.delegate(file(1), ALICE, true, NOW, number(&mut world.next)).unwrap();
    world.commit();
    world.states.close(ALICE, file(1), &open).unwrap();
    world.commit();
    world.open(BOB, "b", file(1), READ);
    for wanted in [WRITE, (1, 1)] {
        let Err(Refusal::Delegated(conflicts)) = world.try_open(BOB, "b", file(1), wanted) else { panic!() };
        assert_eq!((conflicts.len(), conflicts[0].client, conflicts[0].stateid), (1, ALICE, stateid));
    }
    assert!(world.states.conflicts_of(file(1), Some(ALICE), Touch::Change).is_empty(), "its own");
    assert!(world.states.conflicts_of(file(1), None, Touch::Read).is_empty());
    let conflicts = world.states.conflicts_of(file(1), None, Touch::Change);
    assert_eq!(status(world.states.check_io(Some(BOB), file(1), &Stateid::ANONYMOUS, Io::Write)), Status::Delay);
    assert_eq!(status(world.nlm_lock(file(1), "h", exclusive(0, 0))), Status::Delay);
    world.nlm_lock(file(1), "h", shared(0, 0)).unwrap();
    world.take_back();
    assert!(world.states.begin_recall(conflicts[0].number, NOW, 90));
    assert!(!world.states.begin_recall(conflicts[0].number, NOW.plus(5), 90), "once");
    assert_eq!(world.states.next_recall_limit(), Some(NOW.plus(90)));
    assert!(world.states.overdue(NOW.plus(89)).is_empty());
    assert_eq!(world.states.overdue(NOW.plus(90)), conflicts);
    assert!(world.states.revoke(conflicts[0].number) && !world.states.revoke(conflicts[0].number));
    world.commit();
    assert_eq!(world.states.next_recall_limit(), None);
    world.open(BOB, "b", file(1), WRITE);
    world.crash();
    assert!(world.states.has_revoked(ALICE) && !world.states.has_revoked(BOB));
    assert_eq!(world.states.test_stateid(ALICE, &stateid), Err(Status::DelegationRevoked));
    assert_eq!(world.states.return_delegation(ALICE, file(1), &stateid), Err(Status::DelegationRevoked));
    assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Read)), Status::DelegationRevoked);
    assert_eq!(world.states.free_stateid(BOB, &stateid), Err(Status::BadStateid));
    world.states.free_stateid(ALICE, &stateid).unwrap();
    world.commit();
    assert!(!world.states.has_revoked(ALICE));
    assert_eq!(world.states.test_stateid(ALICE, &stateid), Err(Status::BadStateid));
}

#[test]
fn a_file_that_was_recalled_is_left_alone_for_a_while() {
    let mut world = World::new();
    world.open(ALICE, "a", file(1), READ);
    let stateid = world.states.delegate(file(1), ALICE, true, NOW, number(&mut world.next)).unwrap();
    world.commit();
    world.states.begin_recall(stateid.parts().1, NOW, 90);
    world.states.return_delegation(ALICE, file(1), &stateid).unwrap();
    world.commit();
    let soon = NOW.plus(RECALL_PAUSE_MS - 1);
    assert_eq!(world.states.delegate(file(1), ALICE, true, soon, number(&mut world.next)), None);
    let later = NOW.plus(RECALL_PAUSE_MS);
    assert!(world.states.delegate(file(1), ALICE, true, later, number(&mut world.next)).is_some());
}

#[test]
fn files_are_opened_by_delegations_and_by_what_was_before() {
    let mut world = World::new();
    let request = |claim, wanted| OpenRequest { file: file(1), client: ALICE, owner: b"a", mode: mode(wanted), claim };
    world.states.open(request(Claim::Previous, READ), number(&mut world.next)).unwrap();
    let stateid = world.states.reclaim_delegation(file(1), ALICE, number(&mut world.next)).unwrap();
    world.commit();
    let by = Claim::Delegated(stateid);
    assert!(world.states.open(request(by, READ), number(&mut world.next)).unwrap().upgraded);
    assert_eq!(status(world.states.open(request(by, BOTH), number(&mut world.next))), Status::OpenMode);
    world.commit();
    let open = world.open(ALICE, "other", file(1), READ);
    let by = Claim::Delegated(open);
    assert_eq!(status(world.states.open(request(by, READ), number(&mut world.next))), Status::BadStateid);
    let by = Claim::Delegated(Stateid::new(EPOCH + 1, stateid.parts().1, 1));
    assert_eq!(status(world.states.open(request(by, READ), number(&mut world.next))), Status::StaleStateid);
    let bobs = OpenRequest { client: BOB, ..request(Claim::Previous, WRITE) };
    assert_eq!(status(world.states.open(bobs, number(&mut world.next))), Status::ReclaimConflict);
    let bobs = OpenRequest { client: BOB, ..request(Claim::Previous, (1, 1)) };
    assert_eq!(status(world.states.open(bobs, number(&mut world.next))), Status::ReclaimConflict);
    assert_eq!(world.states.totals().opens, 2);
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
    let other = Holder::nlm(b"h", 8, b"8").unwrap();
    assert!(world.states.nlm_test(file(1), &other, range(0, 9), LockKind::Shared).is_some());
    world.states.nlm_unlock(file(1), &host("h"), range(3, 5)).unwrap();
    world.commit();
    assert_eq!(world.states.totals_of_host(b"h").ranges, 2);
    world.states.nlm_unlock(file(1), &host("h"), ByteRange::ALL).unwrap();
    world.states.nlm_unlock(file(1), &host("h"), ByteRange::ALL).unwrap();
    world.commit();
    assert_eq!(world.states.totals_of_host(b"h"), Totals::default());
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
    assert_eq!(world.states.drop_host(b"h"), [file(1), file(2), file(4)]);
    world.commit();
    assert_eq!(world.states.open_files(), [file(3)]);
    assert_eq!(world.states.totals_of_host(b"g").locks, 1);
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
    world.states.drop_host(b"thief");
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
        let holder = Holder::nlm(format!("{who}").as_bytes(), 0, b"").unwrap();
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
        assert!(world.states.delegate(file(at), ALICE, true, NOW, number(&mut world.next)).is_some());
    }
    let more = file(DELEGATIONS_PER_CLIENT_MAX);
    assert_eq!(world.states.delegate(more, ALICE, true, NOW, number(&mut world.next)), None);
    assert!(world.states.delegate(more, BOB, true, NOW, number(&mut world.next)).is_some());
}

#[test]
fn a_number_that_is_taken_makes_no_second_state() {
    let mut world = World::new();
    world.open(ALICE, "a", file(1), READ);
    world.next = 0;
    assert_eq!(status(world.try_open(ALICE, "b", file(1), READ)), Status::ServerFault);
    assert!(!world.states.is_changed());
}
