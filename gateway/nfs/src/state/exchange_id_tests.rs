//! The nine cases of EXCHANGE_ID, its refusals and bounds, and DESTROY_CLIENTID.

use std::collections::BTreeSet;

use super::*;
use crate::state::clients::tests::{LEASE_MS, World, hello, session_of};

/// What somebody who calls itself "a" finds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Nobody,
    Unconfirmed,
    /// With a session, its lease valid.
    InUse,
    /// With something open but no session.
    Holding,
    /// With a session, its lease over.
    Away,
    /// With nothing.
    Idle,
}

#[derive(Debug, PartialEq)]
enum Found {
    New,
    Same,
    Refused(Status),
}

const RESTARTED: [u8; VERIFIER_BYTES] = [2; VERIFIER_BYTES];

fn with(known: Known) -> (World, Option<ClientId>) {
    let mut world = World::new();
    let client = match known {
        Known::Nobody => None,
        Known::Unconfirmed => Some(world.exchange(hello("a")).unwrap().client),
        _ => {
            let session = world.mount("a");
            if matches!(known, Known::Holding | Known::Idle) {
                world.clients.destroy_session(session).unwrap();
                world.keep();
            }
            if known == Known::Holding {
                world.holders.insert(session.client);
            }
            if known == Known::Away {
                world.now = world.now.plus(LEASE_MS + 1);
            }
            Some(session.client)
        }
    };
    (world, client)
}

#[test]
fn the_nine_cases_of_exchange_id() {
    let same = hello("a");
    let restarted = ExchangeId { verifier: RESTARTED, ..same.clone() };
    let foreign = ExchangeId { principal: Bytes::from_static(b"other"), ..same.clone() };
    let foreign_restarted = ExchangeId { verifier: RESTARTED, ..foreign.clone() };
    let update = |request: &ExchangeId| ExchangeId { flags: FLAG_UPDATE, ..request.clone() };
    let in_use = Found::Refused(Status::ClientInUse);
    let table = [
        ("1 new", Known::Nobody, same.clone(), Found::New),
        ("2 known already", Known::InUse, same.clone(), Found::Same),
        ("2 away", Known::Away, same.clone(), Found::Same),
        ("3 collision, sessions", Known::InUse, foreign.clone(), Found::Refused(Status::ClientInUse)),
        ("3 collision, restarted", Known::InUse, foreign_restarted.clone(), Found::Refused(Status::ClientInUse)),
        ("3 collision, opens", Known::Holding, foreign.clone(), in_use),
        ("3 collision, lease over", Known::Away, foreign.clone(), Found::New),
        ("3 collision, nothing held", Known::Idle, foreign.clone(), Found::New),
        ("4 unconfirmed", Known::Unconfirmed, same.clone(), Found::New),
        ("4 unconfirmed, restarted", Known::Unconfirmed, restarted.clone(), Found::New),
        ("4 unconfirmed, foreign", Known::Unconfirmed, foreign.clone(), Found::New),
        ("5 restarted", Known::InUse, restarted.clone(), Found::New),
        ("6 update", Known::InUse, update(&same), Found::Same),
        ("7 update of nobody", Known::Nobody, update(&same), Found::Refused(Status::NoEntry)),
        ("7 update of unconfirmed", Known::Unconfirmed, update(&same), Found::Refused(Status::NoEntry)),
        ("8 update, restarted", Known::InUse, update(&restarted), Found::Refused(Status::NotSame)),
        ("8 update, both", Known::InUse, update(&foreign_restarted), Found::Refused(Status::NotSame)),
        ("9 update, foreign", Known::InUse, update(&foreign), Found::Refused(Status::Perm)),
    ];
    for (case, known, request, expected) in table {
        let (mut world, client) = with(known);
        let before = world.clients.client(client.unwrap_or(ClientId(0))).cloned();
        let found = match world.exchange(request) {
            Ok(grant) if Some(grant.client) == client => {
                assert_eq!(grant.flags & FLAG_CONFIRMED, FLAG_CONFIRMED, "{case}");
                Found::Same
            }
            Ok(grant) => {
                assert_eq!((grant.flags & FLAG_CONFIRMED, grant.sequence), (0, 1), "{case}");
                Found::New
            }
            Err(status) => Found::Refused(status),
        };
        assert_eq!(found, expected, "{case}");
        let after = world.clients.client(client.unwrap_or(ClientId(0))).cloned();
        assert_eq!(before, after, "{case}: whoever is confirmed stays so until CREATE_SESSION");
        assert!(world.clients.unconfirmed.len() <= 1, "{case}: of a name there is one that is not confirmed");
    }
}

#[test]
fn a_client_that_restarts_takes_the_place_of_its_former_self_when_it_is_confirmed() {
    for (request, then) in [
        (ExchangeId { verifier: RESTARTED, ..hello("a") }, 0),
        (ExchangeId { principal: Bytes::from_static(b"other"), ..hello("a") }, LEASE_MS + 1),
    ] {
        let mut world = World::new();
        let former = world.mount("a");
        world.now = world.now.plus(then);
        let principal = request.principal.clone();
        let grant = world.exchange(request).unwrap();
        let mut create = session_of(grant);
        create.principal = principal;
        assert!(world.clients.session(former).is_ok());
        let created = world.create(&create).unwrap();
        assert_eq!(created.dropped, Some(former.client));
        assert_eq!(world.clients.session(former), Err(Status::BadSession));
        world.take_over();
        assert_eq!(world.clients.clients().map(|(id, _)| id).collect::<Vec<_>>(), [grant.client]);
        assert_eq!(world.create(&create).unwrap().grant, created.grant);
    }
}

#[test]
fn who_came_back_in_time_is_not_replaced_by_a_stranger() {
    let mut world = World::new();
    let former = world.mount("a");
    world.now = world.now.plus(LEASE_MS + 1);
    let stranger = ExchangeId { principal: Bytes::from_static(b"other"), ..hello("a") };
    let grant = world.exchange(stranger).unwrap();
    world.clients.leases.renew(former.client, world.now);
    let create =
        crate::state::create_session::CreateSession { principal: Bytes::from_static(b"other"), ..session_of(grant) };
    assert_eq!(world.create(&create), Err(Status::ClientInUse));
    assert!(world.clients.session(former).is_ok());
}

#[test]
fn an_update_changes_what_is_known_and_writes_only_then() {
    let mut world = World::new();
    let client = world.mount("a").client;
    let update = ExchangeId { flags: FLAG_UPDATE, implementation: vec![b'x'; 9_999].into(), ..hello("a") };
    world.exchange(update.clone()).unwrap();
    world.take_over();
    assert_eq!(world.clients.client(client).unwrap().implementation, vec![b'x'; IMPLEMENTATION_BYTES_MAX]);
    world.clients.exchange_id(world.now, update, &|_| false).unwrap();
    assert!(!world.clients.is_changed());
}

#[test]
fn what_is_not_understood_is_refused() {
    for (request, expected) in [
        (ExchangeId { flags: FLAG_CONFIRMED, ..hello("a") }, Status::Invalid),
        (ExchangeId { flags: 0x10, ..hello("a") }, Status::Invalid),
        (ExchangeId { owner: Bytes::new(), ..hello("a") }, Status::Invalid),
        (ExchangeId { owner: vec![0; OWNER_BYTES_MAX + 1].into(), ..hello("a") }, Status::Invalid),
        (ExchangeId { principal: vec![0; PRINCIPAL_BYTES_MAX + 1].into(), ..hello("a") }, Status::Invalid),
        (ExchangeId { protection: Protection::MachineCredentials, ..hello("a") }, Status::Invalid),
        (ExchangeId { protection: Protection::SecretState, ..hello("a") }, Status::EncryptionAlgorithmUnsupported),
    ] {
        assert_eq!(World::new().exchange(request.clone()), Err(expected), "{request:?}");
    }
    let asks = ExchangeId { flags: FLAG_REFERRALS | 0x2 | 0x100 | 0x7_0000, ..hello("a") };
    assert_eq!(World::new().exchange(asks).unwrap().flags, FLAG_NON_PNFS | FLAG_REFERRALS);
}

#[test]
fn of_too_many_that_are_not_confirmed_the_oldest_is_forgotten() {
    let mut world = World::new();
    let name = |number: usize| ExchangeId { owner: number.to_string().into_bytes().into(), ..hello("a") };
    let first = world.exchange(name(0)).unwrap();
    let second = world.exchange(name(1)).unwrap();
    for number in 2..=UNCONFIRMED_MAX {
        world.exchange(name(number)).unwrap();
    }
    assert_eq!(world.clients.unconfirmed.len(), UNCONFIRMED_MAX);
    assert_eq!(world.clients.unconfirmed_owners.len(), UNCONFIRMED_MAX);
    assert_eq!(world.create(&session_of(first)), Err(Status::StaleClientId));
    assert!(world.create(&session_of(second)).is_ok());
}

#[test]
fn an_unconfirmed_client_is_lost_by_a_takeover_and_its_id_is_not_given_again() {
    let mut world = World::new();
    world.mount("b");
    let mut given = BTreeSet::new();
    for _ in 0..5 {
        let grant = world.exchange(hello("a")).unwrap();
        assert!(given.insert(grant.client));
        world.take_over();
        assert_eq!(world.create(&session_of(grant)), Err(Status::StaleClientId));
    }
}

#[test]
fn a_client_is_destroyed_only_when_it_has_nothing() {
    let mut world = World::new();
    let session = world.mount("a");
    let client = session.client;
    assert_eq!(world.clients.destroy_client(client, &|_| false), Err(Status::ClientIdBusy));
    world.clients.destroy_session(session).unwrap();
    assert_eq!(world.clients.destroy_client(client, &|_| true), Err(Status::ClientIdBusy));
    assert_eq!(world.clients.destroy_client(client, &|_| false), Ok(()));
    assert_eq!(world.clients.destroy_client(client, &|_| false), Err(Status::StaleClientId));
    world.keep();
    assert_eq!(world.ring.len(), 1, "only the service is left");
    let unconfirmed = world.exchange(hello("a")).unwrap().client;
    assert_eq!(world.clients.destroy_client(unconfirmed, &|_| false), Ok(()));
    assert!(world.clients.unconfirmed_owners.is_empty());
}
