//! A service on a ring that is a map, for the tests of all operations; and the tests of its records: what comes back, and what
//! bytes that nobody wrote do.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::state::back_channel::ConnectionId;
use crate::state::create_session::{CreateSession, SessionCreated};
use crate::state::exchange_id::{ClientGrant, ExchangeId, Protection};
use crate::state::record::PAYLOAD_BYTES_MAX;
use crate::state::sequence::{Outcome, Sequence};
use crate::state::session::{ChannelAttributes, FLAG_BACK_CHANNEL, FLAG_PERSIST};
use crate::state::slot::Reply;
use crate::state::v3_replies::{V3Outcome, V3Request};

pub(in crate::state) const LEASE_MS: u64 = 90_000;
pub(in crate::state) const CONNECTION: ConnectionId = ConnectionId(1);

/// What a Linux client asks for.
pub(in crate::state) const FORE: ChannelAttributes = ChannelAttributes {
    header_padding: 0,
    request_bytes_max: 1 << 20,
    reply_bytes_max: 1 << 20,
    cached_reply_bytes_max: 2_000,
    operations_max: 8,
    requests_max: 64,
};
pub(in crate::state) const BACK: ChannelAttributes =
    ChannelAttributes { request_bytes_max: 4_096, reply_bytes_max: 4_096, operations_max: 2, requests_max: 16, ..FORE };

/// A service, and what is durable of it.
pub(in crate::state) struct World {
    pub(in crate::state) clients: Clients,
    pub(in crate::state) ring: BTreeMap<RecordId, Vec<u8>>,
    pub(in crate::state) now: Moment,
    /// Clients with something open.
    pub(in crate::state) holders: BTreeSet<ClientId>,
}

impl World {
    pub(in crate::state) fn new() -> Self {
        let clients = Clients::fresh(7, 70, LEASE_MS, Some(BTreeSet::new()), Moment(0));
        let mut world = Self { clients, ring: BTreeMap::new(), now: Moment(0), holders: BTreeSet::new() };
        world.keep();
        world
    }

    /// The changes become durable.
    pub(in crate::state) fn keep(&mut self) {
        let ring = &mut self.ring;
        self.clients.records(|id, payload| match payload {
            Some(payload) => {
                assert!(payload.len() <= PAYLOAD_BYTES_MAX, "{id:?} has {} bytes", payload.len());
                ring.insert(id, payload);
            }
            None => drop(ring.remove(&id)),
        });
        self.clients.commit();
        assert!(!self.clients.is_changed());
    }

    /// Another box goes on with what is durable.
    pub(in crate::state) fn take_over(&mut self) {
        let records = self.ring.iter().map(|(id, payload)| (*id, payload.as_slice()));
        self.clients = Clients::restore(records, LEASE_MS, self.now).unwrap();
        self.clients.records(|id, _| panic!("{id:?} is changed by a takeover"));
    }

    pub(in crate::state) fn exchange(&mut self, request: ExchangeId) -> Result<ClientGrant, Status> {
        let holders = self.holders.clone();
        let result = self.clients.exchange_id(self.now, request, &|client| holders.contains(&client));
        self.keep();
        result
    }

    pub(in crate::state) fn create(&mut self, request: &CreateSession) -> Result<SessionCreated, Status> {
        let holders = self.holders.clone();
        let holds = |client: ClientId| holders.contains(&client);
        let result = self.clients.create_session(self.now, CONNECTION, request, &holds);
        self.keep();
        result
    }

    /// A client that is confirmed, and its session.
    pub(in crate::state) fn mount(&mut self, owner: &'static str) -> SessionId {
        let grant = self.exchange(hello(owner)).unwrap();
        self.create(&session_of(grant)).unwrap().grant.session
    }
}

pub(in crate::state) fn hello(owner: &'static str) -> ExchangeId {
    ExchangeId {
        owner: Bytes::from_static(owner.as_bytes()),
        verifier: [1; 8],
        flags: 0,
        protection: Protection::None,
        principal: Bytes::from_static(b"root"),
        implementation: Bytes::from_static(b"linux"),
    }
}

pub(in crate::state) fn session_of(grant: ClientGrant) -> CreateSession {
    CreateSession {
        client: grant.client,
        sequence: grant.sequence,
        flags: FLAG_PERSIST | FLAG_BACK_CHANNEL,
        fore: FORE,
        back: BACK,
        callback_program: 0x4000_0000,
        callback_security: Bytes::new(),
        principal: Bytes::from_static(b"root"),
    }
}

pub(in crate::state) fn request(session: SessionId, slot: u32, sequence: u32) -> Sequence {
    Sequence { session, slot, sequence, highest_slot: slot, digest: 5 }
}

pub(in crate::state) fn reply(result: &'static [u8]) -> Reply {
    Reply { operations_done: 2, complete: true, result: Bytes::from_static(result), resume: Bytes::new() }
}

/// One of everything.
fn full() -> World {
    let mut world = World::new();
    let session = world.mount("a");
    world.mount("b");
    let outcome = world.clients.sequence(world.now, &request(session, 3, 1));
    assert!(matches!(outcome, Outcome::Execute(_)), "{outcome:?}");
    world.clients.finish_changing(session, 3, reply(b"made")).unwrap();
    let (_, turn) = world.clients.begin_callback(session).unwrap();
    assert!(world.clients.record_callback(session, turn));
    let v3 = V3Request { address: [1; 16], xid: 1, procedure: 8, checksum: 3 };
    assert_eq!(world.clients.v3_replies.begin(v3), V3Outcome::Execute);
    assert!(world.clients.v3_replies.finish_changing(v3, Bytes::from_static(b"made")));
    world.clients.state_number();
    world.keep();
    world
}

fn restore(ring: &BTreeMap<RecordId, Vec<u8>>) -> Result<Clients, RestoreError> {
    let records = ring.iter().map(|(id, payload)| (*id, payload.as_slice()));
    Clients::restore(records, LEASE_MS, Moment(0))
}

#[test]
fn all_of_it_comes_back_from_its_records_in_any_order() {
    let mut world = full();
    let kinds: BTreeSet<u16> = world.ring.keys().map(|id| id.kind).collect();
    assert_eq!(kinds, BTreeSet::from([1, 2, 3, 4, 8, 10]));
    let (clients, sessions) = (world.clients.clients.clone(), world.clients.sessions.clone());
    let backwards = world.ring.iter().rev().map(|(id, payload)| (*id, payload.as_slice()));
    Clients::restore(backwards, LEASE_MS, world.now).unwrap();
    world.take_over();
    assert!(world.clients.clients.iter().eq(clients.iter()));
    assert!(world.clients.sessions.iter().eq(sessions.iter()));
    assert_eq!((world.clients.slots.len(), world.clients.callback_slots.len()), (1, 1));
    assert_eq!((world.clients.v3_replies.len(), world.clients.owners.len()), (1, 2));
    let client = *clients.iter().next().unwrap().0;
    assert!(!world.clients.is_courtesy(client, Moment(LEASE_MS)), "leases start in full");
}

#[test]
fn a_client_that_is_dropped_leaves_no_record_of_its_own() {
    let mut world = full();
    let all: Vec<_> = world.clients.clients().map(|(id, _)| id).collect();
    for client in all {
        assert!(world.clients.drop_client(client));
        assert!(!world.clients.drop_client(client));
        world.keep();
    }
    let kinds: Vec<u16> = world.ring.keys().map(|id| id.kind).collect();
    assert_eq!(kinds, [record::SERVICE, record::V3_REPLY]);
    assert!(world.clients.live.is_empty() && world.clients.owners.is_empty());
}

#[test]
fn of_too_many_that_were_dropped_the_oldest_is_unknown_again() {
    let mut world = World::new();
    let mut sessions = Vec::new();
    for number in 0..=DEAD_MAX {
        let owner = Bytes::from(number.to_string().into_bytes());
        let grant = world.exchange(ExchangeId { owner, ..hello("a") }).unwrap();
        let session = world.create(&session_of(grant)).unwrap().grant.session;
        world.clients.drop_client(session.client);
        world.keep();
        sessions.push(session);
    }
    assert_eq!(world.clients.session(sessions[0]), Err(Status::BadSession));
    assert_eq!(world.clients.session(sessions[1]), Err(Status::DeadSession));
    assert_eq!(world.clients.dead.len(), DEAD_MAX);
}

#[test]
fn what_is_taken_back_was_never_there() {
    let mut world = full();
    let ring = world.ring.clone();
    let session = *world.clients.sessions.iter().next().unwrap().0;
    world.clients.drop_client(session.client);
    world.clients.take_back();
    world.keep();
    assert_eq!(world.ring, ring);
    assert!(world.clients.session(session).is_ok());
    assert!(world.clients.owners.contains(&Bytes::from_static(b"a")));
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let world = full();
    assert!(matches!(restore(&BTreeMap::new()), Err(RestoreError::Missing)));
    // Whatever others refer to is missing.
    for kind in [record::SERVICE, record::CLIENT, record::SESSION] {
        let mut ring = world.ring.clone();
        ring.retain(|id, _| id.kind != kind);
        assert!(restore(&ring).is_err(), "without kind {kind}");
    }
    let some = |kind| world.ring.iter().find(|(id, _)| id.kind == kind).unwrap();
    let mut wrong: Vec<(RecordId, Vec<u8>)> = Vec::new();
    wrong.push((RecordId { kind: 77, key: 0 }, Vec::new()));
    wrong.push((RecordId { kind: 0, key: 0 }, Vec::new()));
    wrong.push((record::numbered(record::SERVICE, 1), some(record::SERVICE).1.clone()));
    for (kind, key) in [
        (record::CLIENT, 6 << 32 | 1),
        (record::CLIENT, 7 << 32 | 9),
        (record::CLIENT, 7 << 32 | 1 << 30),
        (record::SESSION, 1 << 40),
        (record::SLOT, 99 << 32),
        (record::SLOT, 1 << 32 | 64),
        (record::CALLBACK_SLOT, 1 << 32 | 16),
        (record::SLOT, u128::MAX),
        (record::V3_REPLY, 9),
        (record::V3_REPLY, u128::MAX),
    ] {
        wrong.push((RecordId { kind, key }, some(kind).1.clone()));
    }
    for (id, payload) in wrong {
        let mut ring = world.ring.clone();
        ring.insert(id, payload);
        let error = restore(&ring).expect_err("it was taken");
        assert!(!error.to_string().is_empty(), "{id:?}");
    }
    let mut ring = world.ring.clone();
    for kind in [record::OPEN, record::LOCK, record::DELEGATION, record::MONITOR] {
        ring.insert(record::numbered(kind, 1), b"of others".to_vec());
    }
    assert!(restore(&ring).is_ok());
}

#[test]
fn bytes_that_nobody_wrote_are_refused_or_read_but_never_more_than_that() {
    let world = full();
    let mut random = StdRng::seed_from_u64(1);
    let ids: Vec<RecordId> = world.ring.keys().copied().collect();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut ring = world.ring.clone();
        let id = ids[random.random_range(0..ids.len())];
        let payload = ring.get_mut(&id).unwrap();
        match random.random_range(0..4) {
            0 => payload.truncate(random.random_range(0..=payload.len())),
            1 => payload.extend((0..random.random_range(1..9)).map(|_| random.random::<u8>())),
            2 => {
                let at = random.random_range(0..payload.len());
                payload[at] ^= 1 << random.random_range(0..8);
            }
            _ => {
                let at = random.random_range(0..payload.len() / 4) * 4;
                payload[at..at + 4].copy_from_slice(&random.random::<u32>().to_be_bytes());
            }
        }
        match restore(&ring) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "{taken} taken, {refused} refused");
}

#[test]
fn state_that_was_lost_is_stale_to_whoever_knows_it() {
    let mut world = World::new();
    let session = world.mount("a");
    world.clients = Clients::fresh(8, 80, LEASE_MS, None, world.now);
    world.ring.clear();
    let outcome = world.clients.sequence(world.now, &request(session, 0, 1));
    assert_eq!(outcome, Outcome::Refuse(Status::BadSession));
    let stale = session_of(ClientGrant { client: session.client, sequence: 2, flags: 0 });
    assert_eq!(world.create(&stale), Err(Status::StaleClientId));
    assert_eq!(world.clients.counters.service().verifier, 80);
    assert_ne!(world.mount("a"), session);
}

#[test]
fn grace_lasts_until_all_have_reclaimed_or_for_one_and_a_half_leases() {
    let former = BTreeSet::from([Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
    let mut world = World::new();
    world.clients = Clients::fresh(8, 80, LEASE_MS, Some(former), Moment(0));
    let [a, b, new] = ["a", "b", "new"].map(|owner| world.mount(owner).client);
    assert_eq!(world.clients.may_reclaim(a), Ok(()));
    assert_eq!(world.clients.may_reclaim(new), Err(Status::NoGrace), "it had nothing");
    assert_eq!(world.clients.may_claim(new), Err(Status::Grace));
    assert_eq!(world.clients.reclaim_complete(a, true), Ok(()));
    assert_eq!(world.clients.may_reclaim(a), Ok(()), "that was of one filesystem");
    assert_eq!(world.clients.reclaim_complete(a, false), Ok(()));
    assert_eq!(world.clients.reclaim_complete(a, false), Err(Status::CompleteAlready));
    assert_eq!(world.clients.may_reclaim(a), Err(Status::NoGrace));
    assert!(!world.clients.grace_is_over(Moment(LEASE_MS * 3 / 2 - 1)));
    assert!(world.clients.grace_is_over(Moment(LEASE_MS * 3 / 2)));
    world.clients.reclaim_complete(b, false).unwrap();
    assert!(world.clients.grace_is_over(Moment(1)));
    world.keep();
    world.take_over();
    assert!(world.clients.in_grace(), "nobody has ended it");
    assert!(!world.clients.grace_is_over(Moment(1)), "and who is waited for is not known any more");
    world.clients.end_grace();
    world.keep();
    world.take_over();
    assert!(!world.clients.in_grace());
    assert_eq!(world.clients.may_claim(a), Ok(()));
    assert_eq!(world.clients.may_claim(new), Err(Status::Grace), "before its RECLAIM_COMPLETE");
}
