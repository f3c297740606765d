//! Delegations case by case: who gets one, recalls, opens by one.

use super::super::delegation::{NotDelegated, RECALL_PAUSE_MS, Touch};
use super::super::open::{Claim, OpenRequest};
use super::super::refusal::Refusal;
use super::super::stateids::Io;
use super::world::*;
use crate::ids::Stateid;
use crate::v4::status::Status;

#[test]
fn a_delegation_is_given_only_where_it_is_of_use() {
    let mut world = World::new();
    world.open(ALICE, "a", file(1), READ);
    let give = |world: &mut World, client, channel, now| {
        world.states.delegate(file(1), client, channel, now, number(&mut world.next))
    };
    assert_eq!(give(&mut world, ALICE, false, NOW), Err(NotDelegated::Resource), "it cannot be called back");
    let stateid = give(&mut world, ALICE, true, NOW).unwrap();
    world.commit();
    assert_eq!(give(&mut world, ALICE, true, NOW), Err(NotDelegated::Given), "it has it");
    assert!(give(&mut world, BOB, true, NOW).is_ok(), "two may read");
    world.take_back();
    assert_eq!(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Read), Ok(()));
    assert_eq!(status(world.states.check_io(Some(ALICE), file(1), &stateid, Io::Write)), Status::OpenMode);
    assert_eq!(world.states.free_stateid(ALICE, &stateid), Err(Status::LocksHeld));
    world.states.return_delegation(ALICE, file(1), &stateid).unwrap();
    world.commit();
    let write = world.open(CAROL, "c", file(1), WRITE);
    assert_eq!(give(&mut world, ALICE, true, NOW), Err(NotDelegated::Contention), "somebody writes");
    world.states.close(CAROL, file(1), &write).unwrap();
    world.commit();
    world.nlm_lock(file(1), "h", exclusive(0, 0)).unwrap();
    world.commit();
    assert_eq!(
        give(&mut world, ALICE, true, NOW),
        Err(NotDelegated::Contention),
        "somebody of another protocol is about to"
    );
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
    assert_eq!(
        world.states.delegate(file(1), ALICE, true, soon, number(&mut world.next)),
        Err(NotDelegated::Contention)
    );
    let later = NOW.plus(RECALL_PAUSE_MS);
    assert!(world.states.delegate(file(1), ALICE, true, later, number(&mut world.next)).is_ok());
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
