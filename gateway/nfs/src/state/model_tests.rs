//! Random clients against a service that is run again, refused, and killed at any point. Each client counts as a Linux one
//! does: a slot's next request waits for the answer to the one before, which is sent again until it is answered. Beside each
//! request's records, in the same transaction, is what it changed. No request may change anything twice, an answer never
//! changes, and no number comes twice.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tests::{LEASE_MS, World, hello, session_of};
use super::*;
use crate::state::create_session::CreateSession;
use crate::state::exchange_id::{ExchangeId, FLAG_CONFIRMED};
use crate::state::sequence::{Outcome, Sequence};
use crate::state::slot::{RECORD_SPAN, Reply};
use crate::state::v3_replies::{V3Outcome, V3Request};

const SLOTS: usize = 3;
const CLIENTS: usize = 4;

/// A request that was sent, or will be.
#[derive(Clone, Debug)]
struct Request {
    sequence: u32,
    digest: u64,
    /// Changes something, and if so in how many transactions.
    changes: u32,
}

/// A slot as its client knows it.
#[derive(Clone, Debug)]
struct ClientSlot {
    next: u32,
    waiting: Option<Request>,
}

#[derive(Debug)]
struct Member {
    owner: &'static str,
    boots: u8,
    session: Option<SessionId>,
    create: Option<CreateSession>,
    slots: Vec<ClientSlot>,
    v3: Option<V3Request>,
}

struct Model {
    world: World,
    random: StdRng,
    members: Vec<Member>,
    /// By digest and part: how often it was done. Durable with the records.
    done: BTreeMap<(u64, u32), u32>,
    /// By digest: what was answered first, once it was recorded.
    answers: BTreeMap<u64, Bytes>,
    digests: u64,
    numbers: BTreeSet<(u8, u64)>,
    takeovers: u32,
    replays: u32,
    resumed: u32,
    forgotten: usize,
}

impl Model {
    fn new(seed: u64) -> Self {
        let member = |owner| Member { owner, boots: 0, session: None, create: None, slots: Vec::new(), v3: None };
        Self {
            world: World::new(),
            random: StdRng::seed_from_u64(seed),
            members: ["a", "b", "c", "d"].map(member).into(),
            done: BTreeMap::new(),
            answers: BTreeMap::new(),
            digests: 0,
            numbers: BTreeSet::new(),
            takeovers: 0,
            replays: 0,
            resumed: 0,
            forgotten: 0,
        }
    }

    fn chance(&mut self, per_cent: u32) -> bool {
        self.random.random_range(0..100) < per_cent
    }

    fn take_over(&mut self) {
        self.world.take_over();
        self.takeovers += 1;
    }

    fn new_number(&mut self, kind: u8, number: u64) {
        assert!(self.numbers.insert((kind, number)), "number {number} of kind {kind} came twice");
    }

    fn step(&mut self) {
        let member = self.random.random_range(0..CLIENTS);
        match self.random.random_range(0..100) {
            0..3 => self.take_over(),
            3..8 => {
                let StateNumber(number) = self.world.clients.state_number();
                if self.chance(50) {
                    self.world.keep();
                    self.new_number(3, number);
                } else {
                    self.world.clients.take_back();
                }
            }
            8..9 => self.leave(member),
            9..10 => self.restart(member),
            10..12 => {
                self.forgotten += self.world.clients.forget_answered(2);
                self.world.keep();
            }
            12..20 => self.v3(member),
            _ if self.members[member].session.is_none() => self.mount(member),
            _ => self.send(member),
        }
        self.world.now = self.world.now.plus(10);
    }

    fn leave(&mut self, member: usize) {
        if let Some(session) = self.members[member].session.take() {
            self.world.clients.destroy_session(session).unwrap();
            self.world.keep();
            self.members[member].create = None;
        }
    }

    /// The client starts again, and knows nothing of before.
    fn restart(&mut self, member: usize) {
        let member = &mut self.members[member];
        *member = Member {
            owner: member.owner,
            boots: member.boots.wrapping_add(1),
            session: None,
            create: None,
            slots: Vec::new(),
            v3: None,
        };
    }

    /// Asks for a session, again and again until it knows that it has one.
    fn mount(&mut self, member: usize) {
        let create = match self.members[member].create.clone() {
            Some(create) => create,
            None => {
                let Member { owner, boots, .. } = self.members[member];
                let grant = self.world.exchange(ExchangeId { verifier: [boots; 8], ..hello(owner) }).unwrap();
                if grant.flags & FLAG_CONFIRMED == 0 {
                    self.new_number(1, grant.client.0);
                }
                session_of(grant)
            }
        };
        self.members[member].create = Some(create.clone());
        let result = self.world.clients.create_session(self.world.now, tests::CONNECTION, &create, &|_| false);
        let created = match result {
            Ok(created) => created,
            Err(status) => {
                assert_eq!(status, Status::StaleClientId, "it was not confirmed before a takeover");
                self.members[member].create = None;
                return;
            }
        };
        match self.random.random_range(0..10) {
            0 => return self.world.clients.take_back(),
            1 => return self.take_over(),
            _ => self.world.keep(),
        }
        let digest = u64::MAX - created.grant.session.number;
        let answer = Bytes::from(format!("{:?}", (create.client, create.sequence, created.grant)));
        if !self.answers.contains_key(&digest) {
            self.new_number(2, created.grant.session.number);
        }
        assert_eq!(*self.answers.entry(digest).or_insert(answer.clone()), answer);
        match self.chance(30) {
            true => self.take_over(),
            false => {
                let slot = ClientSlot { next: 1, waiting: None };
                let member = &mut self.members[member];
                (member.session, member.slots) = (Some(created.grant.session), vec![slot; SLOTS]);
            }
        }
    }

    /// Sends a request of a slot, a new one or the one that was not answered.
    fn send(&mut self, member: usize) {
        let Some(session) = self.members[member].session else { return };
        let at = self.random.random_range(0..SLOTS);
        let request = match self.members[member].slots[at].waiting.clone() {
            Some(request) => request,
            None => {
                self.digests += 1;
                let changes = if self.chance(60) { self.random.random_range(1..=3) } else { 0 };
                let sequence = self.members[member].slots[at].next;
                Request { sequence, digest: self.digests, changes }
            }
        };
        self.members[member].slots[at].waiting = Some(request.clone());
        let slot = at as u32;
        let Request { sequence, digest, .. } = request;
        let asked = Sequence { session, slot, sequence, highest_slot: slot, digest };
        let from = match self.world.clients.sequence(self.world.now, &asked) {
            Outcome::Execute(granted) => {
                assert!(!granted.wants_record);
                0
            }
            Outcome::ReplayPartly(reply, _) => {
                self.resumed += 1;
                assert_eq!(reply.resume, digest.to_be_bytes()[..], "of another request");
                reply.operations_done
            }
            Outcome::Replay(reply) => {
                self.replays += 1;
                return self.answered(member, at, reply);
            }
            other => panic!("{asked:?}: {other:?}"),
        };
        self.execute(member, at, &request, from);
    }

    /// Executes a request from one of its parts on; anything may stop it.
    fn execute(&mut self, member: usize, at: usize, request: &Request, from: u32) {
        let session = self.members[member].session.unwrap();
        let asked = Sequence {
            session,
            slot: at as u32,
            sequence: request.sequence,
            highest_slot: at as u32,
            digest: request.digest,
        };
        assert_eq!(self.world.clients.sequence(self.world.now, &asked), Outcome::Park);
        for part in from..request.changes {
            let reply = Reply {
                operations_done: part + 1,
                complete: part + 1 == request.changes,
                result: result(request.digest, part + 1),
                resume: Bytes::copy_from_slice(&request.digest.to_be_bytes()),
            };
            self.world.clients.finish_changing(session, at as u32, reply.clone()).unwrap();
            if self.chance(20) {
                // The operation found that it has to run again.
                self.world.clients.take_back();
                self.world.clients.finish_changing(session, at as u32, reply).unwrap();
            }
            match self.random.random_range(0..20) {
                // Killed before it was durable.
                0 => return self.take_over(),
                // It could not be done.
                1 => {
                    self.world.clients.take_back();
                    return self.world.clients.finish(session, at as u32, None);
                }
                _ => {}
            }
            self.world.keep();
            let count = self.done.entry((request.digest, part)).or_default();
            *count += 1;
            assert_eq!(*count, 1, "{request:?} has done part {part} twice");
            // Killed behind it.
            if self.chance(10) {
                return self.take_over();
            }
        }
        let reply = result(request.digest, request.changes);
        let kept = self.chance(50).then(|| reply.clone());
        self.world.clients.finish(session, at as u32, kept);
        // The answer may be lost on its way.
        if self.chance(70) {
            self.answered(member, at, reply);
        }
    }

    fn answered(&mut self, member: usize, at: usize, reply: Bytes) {
        let slot = &mut self.members[member].slots[at];
        let request = slot.waiting.take().unwrap();
        slot.next = request.sequence.wrapping_add(1);
        assert_eq!(reply, result(request.digest, request.changes), "{request:?}");
        for part in 0..request.changes {
            assert_eq!(self.done.get(&(request.digest, part)), Some(&1), "{request:?} was answered but not done");
        }
    }

    fn v3(&mut self, member: usize) {
        let request = match self.members[member].v3 {
            Some(request) => request,
            None => {
                self.digests += 1;
                let xid = self.random.random_range(0..3);
                V3Request { address: [member as u8; 16], xid, procedure: 8, checksum: self.digests }
            }
        };
        self.members[member].v3 = Some(request);
        let digest = request.checksum;
        match self.world.clients.v3_replies.begin(request) {
            V3Outcome::Replay(reply) => {
                self.replays += 1;
                assert_eq!(reply, result(digest, 1));
                assert_eq!(self.done.get(&(digest, 0)), Some(&1));
                self.members[member].v3 = None;
                return;
            }
            V3Outcome::Execute => {}
            other => panic!("{other:?}"),
        }
        assert!(self.world.clients.v3_replies.finish_changing(request, result(digest, 1)));
        match self.random.random_range(0..10) {
            0 => return self.take_over(),
            1 => {
                self.world.clients.take_back();
                return self.world.clients.v3_replies.finish(request);
            }
            _ => self.world.keep(),
        }
        let count = self.done.entry((digest, 0)).or_default();
        *count += 1;
        assert_eq!(*count, 1, "{request:?} was done twice");
        if self.chance(20) {
            return self.take_over();
        }
        self.world.clients.v3_replies.finish(request);
        if self.chance(70) {
            self.members[member].v3 = None;
        }
    }
}

/// What a request answers when so many of its parts are done.
fn result(digest: u64, parts: u32) -> Bytes {
    Bytes::from(format!("request {digest}, {parts} parts"))
}

#[test]
fn nothing_is_done_twice_and_answers_never_change_whenever_the_service_is_killed() {
    let (mut takeovers, mut replays, mut resumed, mut forgotten) = (0, 0, 0, 0);
    for seed in 0..40 {
        let mut model = Model::new(seed);
        for _ in 0..4_000 {
            model.step();
        }
        takeovers += model.takeovers;
        replays += model.replays;
        resumed += model.resumed;
        forgotten += model.forgotten;
        assert!(model.done.values().all(|count| *count == 1), "seed {seed}");
    }
    let all = [takeovers, replays, resumed, forgotten as u32];
    assert!(all.iter().all(|count| *count > 1_000), "{all:?}");
}

/// A slot goes around all its sequences in leaps, as if between takeovers it had only read for long.
#[test]
fn a_slot_wraps_around_with_takeovers_on_its_way() {
    let mut random = StdRng::seed_from_u64(9);
    let mut world = World::new();
    let session = world.mount("a");
    let mut current = 0_u32;
    let mut wraps = 0;
    for round in 0..200_u64 {
        world.take_over();
        let leap = random.random_range(1..RECORD_SPAN);
        wraps += u32::from(current.checked_add(leap).is_none());
        current = current.wrapping_add(leap);
        let asked = Sequence { session, slot: 0, sequence: current, highest_slot: 0, digest: round };
        let outcome = world.clients.sequence(world.now, &asked);
        assert!(matches!(outcome, Outcome::Execute(_)), "{asked:?}: {outcome:?}");
        let reply = Reply { operations_done: 1, complete: true, result: result(round, 1), resume: Bytes::new() };
        world.clients.finish_changing(session, 0, reply).unwrap();
        world.keep();
        world.take_over();
        assert_eq!(world.clients.sequence(world.now, &asked), Outcome::Replay(result(round, 1)));
        let before = Sequence { sequence: current.wrapping_sub(1), ..asked };
        assert_eq!(world.clients.sequence(world.now, &before), Outcome::Refuse(Status::SequenceMisordered));
    }
    assert!(wraps > 10, "{wraps}");
    assert!(!world.clients.is_courtesy(session.client, Moment(LEASE_MS)));
}
