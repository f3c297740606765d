//! A request from SEQUENCE to its end: replays before and after a takeover, compounds that were done in part, refusals.

use super::*;
use crate::ids::ClientId;
use crate::state::clients::tests::{LEASE_MS, World, reply, request};
use crate::state::lease::COURTESY_MS_MAX;

fn sequence(world: &mut World, session: SessionId, slot: u32, sequence: u32) -> Outcome {
    world.clients.sequence(world.now, &request(session, slot, sequence))
}

/// Executes a request that changes something.
fn change(world: &mut World, session: SessionId, number: u32, reply: Reply) {
    let outcome = sequence(world, session, 0, number);
    assert!(matches!(outcome, Outcome::Execute(_) | Outcome::ReplayPartly(..)), "{outcome:?}");
    world.clients.finish_changing(session, 0, reply).unwrap();
    world.keep();
    world.clients.finish(session, 0, None);
}

fn replayed(result: &'static [u8]) -> Outcome {
    Outcome::Replay(Bytes::from_static(result))
}

#[test]
fn a_changing_request_is_answered_again_to_the_byte_before_and_after_takeovers() {
    let mut world = World::new();
    let session = world.mount("a");
    change(&mut world, session, 1, reply(b"made"));
    for _ in 0..3 {
        assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"made"));
        world.take_over();
    }
    assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"made"));
    assert_eq!(sequence(&mut world, session, 0, 3), Outcome::Refuse(Status::SequenceMisordered), "strict again");
    change(&mut world, session, 2, reply(b"more"));
    assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Refuse(Status::SequenceMisordered));
}

#[test]
fn what_changed_nothing_runs_again_unless_its_reply_was_kept() {
    let mut world = World::new();
    let session = world.mount("a");
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
    world.clients.finish(session, 0, Some(Bytes::from_static(b"read")));
    assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"read"));
    assert!(!world.clients.is_changed(), "the sequence moves in memory only");
    for number in [2, 2, 3] {
        assert!(matches!(sequence(&mut world, session, 0, number), Outcome::Execute(_)), "{number}");
        world.clients.finish(session, 0, Some(vec![0; KEPT_REPLY_BYTES_MAX + 1].into()));
    }
    world.take_over();
    assert!(matches!(sequence(&mut world, session, 0, 4), Outcome::Execute(_)));
}

#[test]
fn a_retry_of_a_request_in_progress_is_parked_until_it_is_durable() {
    let mut world = World::new();
    let session = world.mount("a");
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
    assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Park);
    assert_eq!(sequence(&mut world, session, 0, 2), Outcome::Refuse(Status::SequenceMisordered));
    world.clients.finish_changing(session, 0, reply(b"made")).unwrap();
    world.keep();
    assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Park, "joined, but not durable yet");
    world.clients.finish(session, 0, None);
    assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"made"));
}

#[test]
fn a_request_whose_change_was_taken_back_runs_again() {
    let mut world = World::new();
    let session = world.mount("a");
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
    world.clients.finish_changing(session, 0, reply(b"made")).unwrap();
    world.clients.take_back();
    world.clients.finish(session, 0, None);
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
}

#[test]
fn a_compound_that_was_done_in_part_goes_on_behind_that_part() {
    let mut world = World::new();
    let session = world.mount("a");
    let part = Reply { complete: false, resume: Bytes::from_static(b"file handle"), ..reply(b"made") };
    change(&mut world, session, 1, part.clone());
    world.take_over();
    for _ in 0..2 {
        match sequence(&mut world, session, 0, 1) {
            Outcome::ReplayPartly(done, granted) => assert_eq!((done, granted.highest_slot), (part.clone(), 63)),
            other => panic!("{other:?}"),
        }
        assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Park);
        // It did not get further.
        world.clients.finish(session, 0, None);
    }
    // It gets further, and all of its reply is in memory, but not what it read at last.
    change(&mut world, session, 1, Reply { operations_done: 3, ..part.clone() });
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::ReplayPartly(done, _) if done.operations_done == 3));
    world.clients.finish(session, 0, Some(Bytes::from_static(b"made, read")));
    assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"made, read"));
    world.take_over();
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::ReplayPartly(done, _) if done.operations_done == 3));
}

#[test]
fn a_slot_that_only_reads_is_recorded_in_time() {
    let mut world = World::new();
    let session = world.mount("a");
    world.take_over();
    let far = slot::RECORD_SPAN;
    for (number, expected) in [(far - 1, false), (far, true)] {
        match sequence(&mut world, session, 0, number) {
            Outcome::Execute(granted) => assert_eq!(granted.wants_record, expected, "{number}"),
            other => panic!("{other:?}"),
        }
        if expected {
            world.clients.finish_unchanged(session, 0).unwrap();
            world.keep();
        }
        world.clients.finish(session, 0, None);
    }
    assert!(matches!(sequence(&mut world, session, 0, far), Outcome::Execute(_)), "it runs again");
    world.take_over();
    assert!(matches!(sequence(&mut world, session, 0, far), Outcome::Execute(_)), "after a takeover too");
    world.clients.finish(session, 0, None);
    match sequence(&mut world, session, 0, far + 1) {
        Outcome::Execute(granted) => assert!(!granted.wants_record),
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_request_under_the_sequence_of_a_changing_one_is_a_false_retry() {
    let mut world = World::new();
    let session = world.mount("a");
    change(&mut world, session, 1, reply(b"made"));
    for _ in 0..2 {
        let other = Sequence { digest: 6, ..request(session, 0, 1) };
        assert_eq!(world.clients.sequence(world.now, &other), Outcome::Refuse(Status::SequenceFalseRetry));
        assert_eq!(sequence(&mut world, session, 0, 1), replayed(b"made"), "the record is still there");
        world.take_over();
    }
}

#[test]
fn slots_count_for_themselves() {
    let mut world = World::new();
    let session = world.mount("a");
    for slot in [0, 1, 63] {
        assert!(matches!(sequence(&mut world, session, slot, 1), Outcome::Execute(_)), "{slot}");
    }
    assert_eq!(sequence(&mut world, session, 64, 1), Outcome::Refuse(Status::BadSlot));
    let high = Sequence { highest_slot: 64, ..request(session, 2, 1) };
    assert_eq!(world.clients.sequence(world.now, &high), Outcome::Refuse(Status::BadHighSlot));
    assert!(matches!(sequence(&mut world, session, 2, 1), Outcome::Execute(_)), "a refusal uses nothing up");
    let stranger = SessionId { number: session.number + 1, ..session };
    assert_eq!(sequence(&mut world, stranger, 0, 1), Outcome::Refuse(Status::BadSession));
    let stranger = SessionId { client: ClientId(session.client.0 + 1), ..session };
    assert_eq!(sequence(&mut world, stranger, 0, 1), Outcome::Refuse(Status::BadSession));
}

#[test]
fn requests_renew_the_lease_and_a_client_that_comes_back_has_lost_nothing() {
    let mut world = World::new();
    let session = world.mount("a");
    let read = |world: &mut World, number| {
        assert!(matches!(sequence(world, session, 0, number), Outcome::Execute(_)));
        world.clients.finish(session, 0, None);
    };
    world.now = world.now.plus(LEASE_MS);
    assert!(!world.clients.is_courtesy(session.client, world.now));
    read(&mut world, 1);
    world.now = world.now.plus(LEASE_MS);
    assert!(!world.clients.is_courtesy(session.client, world.now));
    world.now = world.now.plus(1);
    assert!(world.clients.is_courtesy(session.client, world.now));
    assert_eq!(sequence(&mut world, session, 0, 9), Outcome::Refuse(Status::SequenceMisordered));
    assert!(world.clients.is_courtesy(session.client, world.now), "a refusal renews nothing");
    read(&mut world, 2);
    assert!(!world.clients.is_courtesy(session.client, world.now));
}

#[test]
fn a_client_that_waits_for_an_answer_is_not_away() {
    let mut world = World::new();
    let session = world.mount("a");
    sequence(&mut world, session, 0, 1);
    let late = world.now.plus(LEASE_MS + COURTESY_MS_MAX + 1);
    assert!(!world.clients.is_courtesy(session.client, late));
    assert_eq!((world.clients.expired(late), world.clients.longest_away(late)), (vec![], None));
    world.clients.finish(session, 0, None);
    assert!(world.clients.is_courtesy(session.client, late));
    assert_eq!(world.clients.expired(late), [session.client]);
    assert_eq!(world.clients.longest_away(late), Some(session.client));
}

#[test]
fn a_result_is_forgotten_only_when_the_client_has_gone_on() {
    let mut world = World::new();
    let session = world.mount("a");
    change(&mut world, session, 1, reply(b"made"));
    assert_eq!(world.clients.forget_answered(9), 0, "the answer may be lost");
    world.take_over();
    assert_eq!(world.clients.forget_answered(9), 0, "nobody knows where the client is");
    sequence(&mut world, session, 0, 2);
    assert_eq!(world.clients.forget_answered(0), 0);
    assert_eq!(world.clients.forget_answered(9), 1);
    assert_eq!(world.clients.forget_answered(9), 0);
    world.keep();
    world.take_over();
    assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Refuse(Status::SequenceMisordered), "it never runs again");
    assert!(matches!(sequence(&mut world, session, 0, 2), Outcome::Execute(_)));
}

#[test]
fn the_session_of_a_client_that_was_dropped_is_dead() {
    let mut world = World::new();
    let session = world.mount("a");
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
    assert!(world.clients.drop_client(session.client));
    world.keep();
    assert_eq!(sequence(&mut world, session, 0, 1), Outcome::Refuse(Status::DeadSession));
    assert_eq!(world.clients.finish_changing(session, 0, reply(b"late")), Err(FinishError::SessionGone));
    world.clients.finish(session, 0, None);
    assert!(!world.clients.is_changed());
}

#[test]
fn a_result_that_fits_no_record_is_said_and_not_kept() {
    let mut world = World::new();
    let session = world.mount("a");
    assert!(matches!(sequence(&mut world, session, 0, 1), Outcome::Execute(_)));
    let large = Reply { result: vec![0; slot::RESULT_BYTES_MAX + 1].into(), ..reply(b"") };
    assert_eq!(world.clients.finish_changing(session, 0, large), Err(FinishError::TooLarge));
    assert!(!world.clients.is_changed());
    assert_eq!(
        world.clients.finish_changing(session, 1, reply(b"")),
        Err(FinishError::SessionGone),
        "nothing is under way"
    );
}
