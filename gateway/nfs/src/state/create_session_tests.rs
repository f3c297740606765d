//! CREATE_SESSION exactly once, its refusals and bounds; connections and callbacks of a session.

use std::collections::BTreeSet;

use super::*;
use crate::state::back_channel::{CallbackEnd, CallbackTurn};
use crate::state::clients::tests::{BACK, CONNECTION, FORE, LEASE_MS, World, hello, request, session_of};
use crate::state::exchange_id::ClientGrant;
use crate::state::sequence::{Outcome, STATUS_CALLBACK_PATH_DOWN, STATUS_CALLBACK_PATH_DOWN_SESSION};

const OTHER: ConnectionId = ConnectionId(2);

fn known() -> (World, ClientGrant) {
    let mut world = World::new();
    let grant = world.exchange(hello("a")).unwrap();
    (world, grant)
}

#[test]
fn the_same_request_gets_the_same_session_before_and_after_a_takeover() {
    let (mut world, grant) = known();
    let create = session_of(grant);
    let first = world.create(&create).unwrap();
    assert_eq!(world.create(&create), Ok(SessionCreated { dropped: None, ..first }));
    world.take_over();
    assert_eq!(world.create(&create), Ok(SessionCreated { dropped: None, ..first }));
    let second = world.create(&CreateSession { sequence: create.sequence + 1, ..create.clone() }).unwrap();
    assert_ne!(second.grant.session, first.grant.session);
    assert_eq!(world.create(&create), Err(Status::SequenceMisordered), "only the newest is kept");
    let skipped = CreateSession { sequence: create.sequence + 3, ..create };
    assert_eq!(world.create(&skipped), Err(Status::SequenceMisordered));
    assert_eq!(world.clients.sessions.len(), 2);
}

#[test]
fn a_refusal_is_kept_too_and_uses_up_the_sequence() {
    let (mut world, grant) = known();
    let good = session_of(grant);
    let small = ChannelAttributes { request_bytes_max: 9, ..FORE };
    let bad = CreateSession { fore: small, ..good.clone() };
    assert_eq!(world.create(&bad), Err(Status::TooSmall));
    assert_eq!(world.create(&good), Err(Status::TooSmall), "a retry, whatever it says now");
    assert!(world.clients.client(grant.client).is_none(), "it is not confirmed");
    let next = CreateSession { sequence: 2, ..good.clone() };
    assert!(world.create(&next).is_ok());
    assert_eq!(world.create(&CreateSession { sequence: 3, flags: 8, ..good.clone() }), Err(Status::Invalid));
    world.take_over();
    assert_eq!(world.create(&CreateSession { sequence: 3, ..good.clone() }), Err(Status::Invalid));
    assert!(world.create(&CreateSession { sequence: 4, ..good }).is_ok());
}

#[test]
fn another_principal_neither_confirms_a_client_nor_uses_up_its_sequence() {
    let (mut world, grant) = known();
    let good = session_of(grant);
    let bad = CreateSession { principal: Bytes::from_static(b"other"), ..good.clone() };
    assert_eq!(world.create(&bad), Err(Status::ClientInUse));
    assert!(world.create(&good).is_ok());
}

#[test]
fn flags_are_granted_as_asked_but_rdma() {
    for (flags, granted) in [(0, 0), (1, 1), (2, 2), (3, 3), (7, 3), (4, 0)] {
        let (mut world, grant) = known();
        let created = world.create(&CreateSession { flags, ..session_of(grant) }).unwrap();
        assert_eq!(created.grant.flags, granted);
    }
    let (mut world, grant) = known();
    let none = CreateSession { back: ChannelAttributes::default(), flags: FLAG_PERSIST, ..session_of(grant) };
    assert_eq!(world.create(&none).unwrap().grant.back.requests_max, 1, "who wants no callbacks may ask for none");
}

#[test]
fn an_operation_that_runs_again_leaves_one_session() {
    let (mut world, grant) = known();
    let create = session_of(grant);
    let first = world.clients.create_session(world.now, CONNECTION, &create, &|_| false).unwrap();
    world.clients.take_back();
    let second = world.create(&create).unwrap();
    assert_ne!(first.grant.session, second.grant.session, "a number is never used twice");
    assert_eq!(world.clients.sessions.len(), 1);
    assert_eq!(world.clients.live.len(), 1, "nothing is left of the first");
    let outcome = world.clients.sequence(world.now, &request(second.grant.session, 0, 1));
    assert!(matches!(outcome, Outcome::Execute(_)));
}

#[test]
fn sessions_of_a_client_and_clients_are_bounded() {
    let (mut world, grant) = known();
    let create = session_of(grant);
    for sequence in 1..=SESSIONS_PER_CLIENT_MAX as u32 {
        world.create(&CreateSession { sequence, ..create.clone() }).unwrap();
    }
    let sequence = SESSIONS_PER_CLIENT_MAX as u32 + 1;
    assert_eq!(world.create(&CreateSession { sequence, ..create }), Err(Status::NoSpace));

    let mut world = World::new();
    let name = |number: usize| number.to_string().into_bytes();
    for number in 0..=CLIENTS_MAX {
        let mut hello = hello("a");
        hello.owner = name(number).into();
        let create = session_of(world.exchange(hello).unwrap());
        match number {
            CLIENTS_MAX => {
                assert_eq!(world.create(&create), Err(Status::Delay));
                assert_eq!(world.clients.longest_away(world.now), None, "all leases hold");
                world.now = world.now.plus(LEASE_MS + 1);
                let client = world.clients.longest_away(world.now).unwrap();
                world.clients.drop_client(client);
                world.keep();
                assert!(world.create(&create).is_ok(), "the refusal was not kept");
            }
            _ => assert!(world.create(&create).is_ok()),
        }
    }
    assert_eq!(world.clients.clients.len(), CLIENTS_MAX);
}

#[test]
fn a_full_ring_takes_no_more_sessions_until_it_has_room() {
    let (mut world, grant) = known();
    world.clients.set_ring_full(true);
    assert_eq!(world.create(&session_of(grant)), Err(Status::Delay));
    world.clients.set_ring_full(false);
    assert!(world.create(&session_of(grant)).is_ok(), "the refusal was not kept");
}

#[test]
fn many_slots_are_granted_until_all_sessions_together_have_many() {
    let mut world = World::new();
    let greedy = ChannelAttributes { requests_max: u32::MAX, ..FORE };
    let mut slots = Vec::new();
    for number in 0..SLOTS_TOTAL_MAX / SLOTS_MAX + 2 {
        let mut hello = hello("a");
        hello.owner = number.to_string().into_bytes().into();
        let create = CreateSession { fore: greedy, ..session_of(world.exchange(hello).unwrap()) };
        slots.push(world.create(&create).unwrap().grant.fore.requests_max);
    }
    let (many, few) = slots.split_at((SLOTS_TOTAL_MAX / SLOTS_MAX) as usize);
    assert!(many.iter().all(|slots| *slots == SLOTS_MAX));
    assert_eq!(few, [SLOTS_DEFAULT; 2]);
}

/// The flags of the next request of a slot.
fn flags(world: &mut World, session: SessionId, sequence: u32) -> u32 {
    match world.clients.sequence(world.now, &request(session, 0, sequence)) {
        Outcome::Execute(granted) => {
            world.clients.finish(session, 0, None);
            granted.status_flags
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_back_channel_is_down_after_a_takeover_until_a_connection_is_bound() {
    let both = STATUS_CALLBACK_PATH_DOWN_SESSION | STATUS_CALLBACK_PATH_DOWN;
    let mut world = World::new();
    let session = world.mount("a");
    assert_eq!(flags(&mut world, session, 1), 0);
    world.take_over();
    assert_eq!(flags(&mut world, session, 2), both);
    assert_eq!(world.clients.begin_callback(session), None);
    assert_eq!(world.clients.bind_connection(session, DIRECTION_FORE, OTHER), Ok(DIRECTION_FORE));
    assert_eq!(flags(&mut world, session, 3), both);
    assert_eq!(world.clients.bind_connection(session, DIRECTION_BACK_OR_BOTH, OTHER), Ok(DIRECTION_BOTH));
    assert_eq!(flags(&mut world, session, 4), 0);
    world.clients.callback_answered(session, world.clients.callback_connection(session).unwrap().0);
    assert!(world.clients.is_called_back(session.client));
    world.clients.connection_closed(OTHER);
    assert_eq!(flags(&mut world, session, 5), both);
    let create =
        CreateSession { sequence: 2, ..session_of(ClientGrant { client: session.client, sequence: 2, flags: 0 }) };
    let other = world.create(&create).unwrap().grant.session;
    assert_eq!(flags(&mut world, session, 6), STATUS_CALLBACK_PATH_DOWN_SESSION, "another session has one");
    assert!(!world.clients.is_called_back(session.client), "nobody has answered over the other one yet");
    let (connection, is_proven) = world.clients.callback_connection(other).unwrap();
    assert!(!is_proven);
    world.clients.callback_answered(other, connection);
    assert!(world.clients.is_called_back(session.client));
}

#[test]
fn who_never_wanted_callbacks_is_told_nothing_until_it_binds_a_connection() {
    let (mut world, grant) = known();
    let create = CreateSession { flags: FLAG_PERSIST, ..session_of(grant) };
    let session = world.create(&create).unwrap().grant.session;
    assert_eq!(flags(&mut world, session, 1), 0);
    assert_eq!(world.clients.bind_connection(session, DIRECTION_BACK, OTHER), Ok(DIRECTION_BACK));
    world.keep();
    world.take_over();
    assert_ne!(flags(&mut world, session, 2), 0);
    for direction in [0, 4, 5, 6, 8, u32::MAX] {
        assert_eq!(world.clients.bind_connection(session, direction, OTHER), Err(Status::Invalid));
    }
    let unknown = SessionId { number: 99, ..session };
    assert_eq!(world.clients.bind_connection(unknown, DIRECTION_FORE, OTHER), Err(Status::BadSession));
}

#[test]
fn a_callback_is_recorded_before_it_is_sent_and_its_sequence_never_comes_twice_for_another() {
    let mut world = World::new();
    let session = world.mount("a");
    let (connection, turn) = world.clients.begin_callback(session).unwrap();
    assert_eq!((connection, turn), (CONNECTION, CallbackTurn { slot: 0, sequence: 1, is_probe: false }));
    assert!(world.clients.record_callback(session, turn));
    world.keep();
    world.take_over();
    world.clients.bind_connection(session, DIRECTION_BOTH, OTHER).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| world.clients.begin_callback(session)).map(|(_, turn)| turn).collect();
    assert_eq!(taken.len(), BACK.requests_max as usize);
    assert_eq!(taken.last(), Some(&CallbackTurn { slot: 0, sequence: 1, is_probe: true }), "it may have been sent");
    world.clients.end_callback(session, 0, CallbackEnd::Answered);
    let (_, turn) = world.clients.begin_callback(session).unwrap();
    assert_eq!(turn, CallbackTurn { slot: 0, sequence: 2, is_probe: false });
    // It could not be recorded, so it is not sent.
    assert!(world.clients.record_callback(session, turn));
    world.clients.take_back();
    world.clients.end_callback(session, 0, CallbackEnd::Unanswered);
    let (_, turn) = world.clients.begin_callback(session).unwrap();
    assert_eq!(turn, CallbackTurn { slot: 0, sequence: 1, is_probe: true });
    assert!(world.clients.record_callback(session, turn));
    assert!(!world.clients.is_changed(), "a probe's sequence is recorded already");
    world.clients.destroy_session(session).unwrap();
    assert!(!world.clients.record_callback(session, turn));
}

#[test]
fn program_and_authentication_of_callbacks_are_kept() {
    let mut world = World::new();
    let session = world.mount("a");
    world.clients.control_back_channel(session, 9, b"new").unwrap();
    let long = [0; CALLBACK_SECURITY_BYTES_MAX + 1];
    assert_eq!(world.clients.control_back_channel(session, 9, &long), Err(Status::Invalid));
    world.keep();
    world.take_over();
    let known = world.clients.session(session).unwrap();
    assert_eq!((known.callback_program, &known.callback_security[..]), (9, &b"new"[..]));
}

#[test]
fn a_session_that_is_destroyed_is_gone_with_its_slots() {
    let mut world = World::new();
    let session = world.mount("a");
    let other = world.mount("b");
    world.clients.sequence(world.now, &request(session, 0, 1));
    world.clients.finish_changing(session, 0, crate::state::clients::tests::reply(b"made")).unwrap();
    world.keep();
    assert_eq!(world.clients.destroy_session(session), Ok(()));
    world.keep();
    assert_eq!(world.clients.destroy_session(session), Err(Status::BadSession));
    let left: BTreeSet<u16> = world.ring.keys().map(|id| id.kind).collect();
    assert_eq!(left, BTreeSet::from([1, 2, 3]));
    assert!(world.clients.session(other).is_ok());
}
