//! Random operations of several clients and hosts beside a model that knows each byte of each holder and nothing of states,
//! indexes or records. Each operation counts or is taken back, and now and then the service is taken over.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::delegation::Touch;
use super::super::holder::Holder;
use super::super::lock::LockRequest;
use super::super::ranges::{ByteRange, LockKind};
use super::super::refusal::Refusal;
use super::super::stateids::Io;
use super::super::waiters::Wanted;
use super::world::*;
use crate::ids::{ClientId, FileId, Moment, Stateid};
use crate::v4::status::Status;

const BYTES: u64 = 12;
const CLIENTS: [ClientId; 3] = [ALICE, BOB, CAROL];
const OWNERS: [&str; 2] = ["o", "p"];
const HOSTS: [&str; 2] = ["g", "h"];

/// How a holder has a byte, and the owner of the open that it was locked under.
type Held = (LockKind, Option<&'static str>);

/// The newest stateid of an open, and all its modes since the last downgrade.
type Opened = (Stateid, BTreeSet<(u32, u32)>);

#[derive(Clone, Default)]
struct Model {
    /// By file and owner.
    opens: BTreeMap<(FileId, ClientId, &'static str), Opened>,
    shares: BTreeMap<(FileId, &'static str), (u32, u32)>,
    bytes: BTreeMap<(FileId, Holder), BTreeMap<u64, Held>>,
    /// By file, lock owner and owner of the open: the newest stateid.
    locks: BTreeMap<(FileId, ClientId, &'static str, &'static str), Stateid>,
    /// By file and client, without revoked ones.
    delegations: BTreeMap<(FileId, ClientId), Stateid>,
    revoked: BTreeSet<(ClientId, Stateid)>,
}

struct Run {
    random: StdRng,
    world: World,
    model: Model,
    /// What was done that changed something, by name.
    done: BTreeMap<&'static str, u32>,
}

fn union(modes: &BTreeSet<(u32, u32)>) -> (u32, u32) {
    modes.iter().fold((0, 0), |all, mode| (all.0 | mode.0, all.1 | mode.1))
}

fn conflicts(a: (u32, u32), b: (u32, u32)) -> bool {
    a.0 & b.1 != 0 || a.1 & b.0 != 0
}

impl Model {
    fn share_conflict(
        &self,
        at: FileId,
        but: Option<(ClientId, &str)>,
        but_host: Option<&str>,
        mode: (u32, u32),
    ) -> bool {
        let opens =
            self.opens.iter().filter(|((file, client, owner), _)| *file == at && Some((*client, *owner)) != but);
        let shares = self.shares.iter().filter(|((file, host), _)| *file == at && Some(*host) != but_host);
        let mut all = opens.map(|(_, (_, modes))| union(modes)).chain(shares.map(|(_, mode)| *mode));
        all.any(|other| conflicts(mode, other))
    }

    fn lock_conflict(&self, at: FileId, who: &Holder, range: ByteRange, kind: LockKind) -> bool {
        let others = self.bytes.iter().filter(|((file, holder), _)| *file == at && holder != who);
        others.flat_map(|(_, bytes)| bytes.range(range.first()..=range.last())).any(|(_, held)| held.0.conflicts(kind))
    }

    fn delegated_to_others(&self, at: FileId, by: Option<ClientId>) -> bool {
        self.delegations.keys().any(|(file, client)| *file == at && Some(*client) != by)
    }

    fn set(&mut self, at: FileId, who: &Holder, range: ByteRange, held: Option<Held>) {
        let bytes = self.bytes.entry((at, who.clone())).or_default();
        for byte in range.first()..=range.last() {
            match held {
                Some(held) => drop(bytes.insert(byte, held)),
                None => drop(bytes.remove(&byte)),
            }
        }
    }

    fn close(&mut self, at: FileId, client: ClientId, owner: &'static str) {
        self.opens.remove(&(at, client, owner));
        self.locks.retain(|(file, whose, _, open), _| (*file, *whose, *open) != (at, client, owner));
        for ((file, holder), bytes) in &mut self.bytes {
            if *file == at && holder.client() == Some(client) {
                bytes.retain(|_, held| held.1 != Some(owner));
            }
        }
    }

    fn is_open(&self, at: FileId) -> bool {
        self.opens.keys().any(|(file, ..)| *file == at)
            || self.shares.keys().any(|(file, _)| *file == at)
            || self.delegations.keys().any(|(file, _)| *file == at)
            || self.bytes.iter().any(|((file, _), bytes)| *file == at && !bytes.is_empty())
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, world: World::new(), model: Model::default(), done: BTreeMap::new() }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())]
    }

    fn file(&mut self) -> FileId {
        file(self.random.random_range(1..4))
    }

    fn request(&mut self) -> LockRequest {
        let first = self.random.random_range(0..BYTES);
        let range = range(first, self.random.random_range(first..BYTES));
        LockRequest { range, kind: self.pick(&[LockKind::Shared, LockKind::Exclusive]), reclaims: false }
    }

    fn did(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn open(&mut self) {
        let (at, client, owner) = (self.file(), self.pick(&CLIENTS), self.pick(&OWNERS));
        let deny = if self.random.random_bool(0.2) { self.random.random_range(0..4) } else { 0 };
        let wanted = (self.random.random_range(1..4), deny);
        let result = self.world.try_open(client, owner, at, wanted);
        let changes = wanted.0 & 2 != 0 || wanted.1 & 1 != 0;
        if self.model.share_conflict(at, Some((client, owner)), None, wanted) {
            assert_eq!(result.unwrap_err().status(), Status::ShareDenied);
        } else if changes && self.model.delegated_to_others(at, Some(client)) {
            assert_eq!(result.unwrap_err().status(), Status::Delay);
        } else {
            let opened = result.unwrap();
            let known = self.model.opens.get(&(at, client, owner)).cloned();
            assert_eq!(opened.upgraded, known.is_some());
            assert_eq!(opened.stateid.seqid, known.as_ref().map_or(1, |(stateid, _)| stateid.seqid + 1));
            let mut modes = known.map(|(_, modes)| modes).unwrap_or_default();
            modes.insert(wanted);
            self.model.opens.insert((at, client, owner), (opened.stateid, modes));
            self.did(if opened.upgraded { "upgrade" } else { "open" });
        }
    }

    fn some_open(&mut self) -> Option<(FileId, ClientId, &'static str, Stateid)> {
        let opens: Vec<_> =
            self.model.opens.iter().map(|(key, (stateid, _))| (key.0, key.1, key.2, *stateid)).collect();
        if opens.is_empty() { None } else { Some(self.pick(&opens)) }
    }

    fn close(&mut self) {
        let Some((at, client, owner, stateid)) = self.some_open() else { return };
        assert_eq!(self.world.states.close(client, at, &stateid), Ok(Stateid::INVALID));
        self.model.close(at, client, owner);
        self.did("close");
    }

    fn downgrade(&mut self) {
        let Some((at, client, owner, stateid)) = self.some_open() else { return };
        let to = (self.random.random_range(1..4), self.random.random_range(0..4));
        let entry = self.model.opens.get_mut(&(at, client, owner)).unwrap();
        let inside = entry.1.iter().filter(|mode| mode.0 & !to.0 == 0 && mode.1 & !to.1 == 0);
        let left: BTreeSet<_> = inside.copied().collect();
        let result = self.world.states.downgrade(client, at, &stateid, mode(to));
        if left.is_empty() || union(&left) != to {
            assert_eq!(result, Err(Status::Invalid));
            return;
        }
        *entry = (result.unwrap(), left);
        self.did("downgrade");
    }

    fn lock_under(&mut self) {
        let Some((at, client, open, stateid)) = self.some_open() else { return };
        let (owner, request) = (self.pick(&OWNERS), self.request());
        let access = union(&self.model.opens[&(at, client, open)].1).0;
        let result = self.world.try_lock_under(client, at, &stateid, owner, request);
        let known = self.model.locks.get(&(at, client, owner, open)).copied();
        self.locked(at, client, owner, open, request, access, known, result);
    }

    fn some_lock(&mut self) -> Option<(FileId, ClientId, &'static str, &'static str, Stateid)> {
        let locks: Vec<_> =
            self.model.locks.iter().map(|(key, stateid)| (key.0, key.1, key.2, key.3, *stateid)).collect();
        if locks.is_empty() { None } else { Some(self.pick(&locks)) }
    }

    fn lock(&mut self) {
        let Some((at, client, owner, open, stateid)) = self.some_lock() else { return };
        let request = self.request();
        let access = union(&self.model.opens[&(at, client, open)].1).0;
        let result = self.world.states.lock(client, at, &stateid, request);
        self.locked(at, client, owner, open, request, access, Some(stateid), result);
    }

    #[allow(clippy::too_many_arguments)]
    fn locked(
        &mut self,
        at: FileId,
        client: ClientId,
        owner: &'static str,
        open: &'static str,
        request: LockRequest,
        access: u32,
        known: Option<Stateid>,
        result: Result<Stateid, Refusal>,
    ) {
        let holder = Holder::v4(client, owner.as_bytes()).unwrap();
        let needed = if request.kind == LockKind::Exclusive { 2 } else { 1 };
        if access & needed == 0 {
            assert_eq!(result.unwrap_err().status(), Status::OpenMode);
        } else if self.model.lock_conflict(at, &holder, request.range, request.kind) {
            let Err(Refusal::Lock(denied)) = result else { panic!("{result:?}") };
            let bytes = &self.model.bytes[&(at, denied.by)];
            let of = denied.held.range;
            assert!(
                (of.first()..=of.last()).all(|byte| bytes.get(&byte).is_some_and(|held| held.0 == denied.held.kind))
            );
            assert!(of.overlaps(request.range) && denied.held.kind.conflicts(request.kind));
        } else {
            let stateid = result.unwrap();
            assert_eq!(stateid.seqid, known.map_or(1, |known| known.seqid + 1));
            assert!(known.is_none_or(|known| known.parts() == stateid.parts()));
            self.model.locks.insert((at, client, owner, open), stateid);
            self.model.set(at, &holder, request.range, Some((request.kind, Some(open))));
            self.did("lock");
        }
    }

    fn unlock(&mut self) {
        let Some((at, client, owner, open, stateid)) = self.some_lock() else { return };
        let range = self.request().range;
        let stateid = self.world.states.unlock(client, at, &stateid, range).unwrap();
        self.model.locks.insert((at, client, owner, open), stateid);
        self.model.set(at, &Holder::v4(client, owner.as_bytes()).unwrap(), range, None);
        self.did("unlock");
    }

    fn free(&mut self) {
        if let Some((client, stateid)) = self.model.revoked.iter().next().copied() {
            assert_eq!(self.world.states.test_stateid(client, &stateid), Err(Status::DelegationRevoked));
            assert_eq!(self.world.states.free_stateid(client, &stateid), Ok(()));
            self.model.revoked.remove(&(client, stateid));
            self.did("free a delegation");
        }
        let Some((at, client, owner, open, stateid)) = self.some_lock() else { return };
        let bytes = self.model.bytes.get(&(at, Holder::v4(client, owner.as_bytes()).unwrap()));
        let held = bytes.is_some_and(|bytes| bytes.values().any(|held| held.1 == Some(open)));
        let result = self.world.states.free_stateid(client, &stateid);
        assert_eq!(result, if held { Err(Status::LocksHeld) } else { Ok(()) });
        if !held {
            self.model.locks.remove(&(at, client, owner, open));
            self.did("free a lock");
        }
    }

    fn host(&mut self) {
        let (at, name, request) = (self.file(), self.pick(&HOSTS), self.request());
        let holder = host(name);
        match self.random.random_range(0..8) {
            0..3 => {
                let result = self.world.nlm_lock(at, name, request);
                if self.model.lock_conflict(at, &holder, request.range, request.kind) {
                    assert_eq!(result.unwrap_err().status(), Status::Denied);
                } else if request.kind == LockKind::Exclusive && self.model.delegated_to_others(at, None) {
                    assert_eq!(result.unwrap_err().status(), Status::Delay);
                } else {
                    assert_eq!(result, Ok(()));
                    self.model.set(at, &holder, request.range, Some((request.kind, None)));
                    self.did("lock of a host");
                }
            }
            3..6 => {
                self.world.states.nlm_unlock(at, &holder, request.range).unwrap();
                self.model.set(at, &holder, request.range, None);
                self.did("unlock of a host");
            }
            6 => {
                let wanted = (self.random.random_range(0..4), self.random.random_range(0..2) * 2);
                let next = number(&mut self.world.next);
                let result = self.world.states.nlm_share(at, holder, mode(wanted), false, next);
                if self.model.share_conflict(at, None, Some(name), wanted) {
                    assert_eq!(result.unwrap_err().status(), Status::ShareDenied);
                } else if wanted.0 & 2 != 0 && self.model.delegated_to_others(at, None) {
                    assert_eq!(result.unwrap_err().status(), Status::Delay);
                } else {
                    assert_eq!(result, Ok(()));
                    self.model.shares.insert((at, name), wanted);
                    self.did("share of a host");
                }
            }
            _ => {
                let had = self.model.shares.remove(&(at, name)).is_some();
                assert_eq!(self.world.states.nlm_unshare(at, &holder), had);
            }
        }
    }

    fn delegation(&mut self) {
        let (at, client) = (self.file(), self.pick(&CLIENTS));
        let known = self.model.delegations.get(&(at, client)).copied();
        match (known, self.random.random_range(0..3)) {
            (None, _) => {
                let next = number(&mut self.world.next);
                let given = self.world.states.delegate(at, client, true, Moment(0), next);
                let exclusive = |held: &Held| held.0 == LockKind::Exclusive;
                let mut bytes = self.model.bytes.iter().filter(|((file, _), _)| *file == at);
                let disturbed = self.model.share_conflict(at, None, None, (1, 2))
                    || bytes.any(|(_, bytes)| bytes.values().any(exclusive));
                assert_eq!(given.is_err(), disturbed);
                if let Ok(stateid) = given {
                    self.model.delegations.insert((at, client), stateid);
                    self.did("delegate");
                }
            }
            (Some(stateid), 0) => {
                assert_eq!(self.world.states.return_delegation(client, at, &stateid), Ok(()));
                self.model.delegations.remove(&(at, client));
                self.did("return");
            }
            (Some(stateid), 1) => {
                assert!(self.world.states.revoke(stateid.parts().1));
                self.model.delegations.remove(&(at, client));
                self.model.revoked.insert((client, stateid));
                self.did("revoke");
            }
            (Some(stateid), _) => {
                let conflicts = self.world.states.conflicts_of(at, None, Touch::Change);
                assert!(conflicts.iter().any(|conflict| conflict.stateid == stateid));
            }
        }
    }

    fn drop_party(&mut self) {
        if self.random.random_bool(0.5) {
            let client = self.pick(&CLIENTS);
            self.world.states.drop_client(client);
            self.model.opens.retain(|(_, whose, _), _| *whose != client);
            self.model.locks.retain(|(_, whose, ..), _| *whose != client);
            self.model.delegations.retain(|(_, whose), _| *whose != client);
            self.model.revoked.retain(|(whose, _)| *whose != client);
            self.model.bytes.retain(|(_, holder), _| holder.client() != Some(client));
        } else {
            let name = self.pick(&HOSTS);
            self.world.states.drop_host_part(&machine(name), usize::MAX);
            self.model.shares.retain(|(_, whose), _| *whose != name);
            self.model.bytes.retain(|(_, holder), _| *holder != host(name));
        }
        self.did("drop all of somebody");
    }

    fn wait(&mut self) {
        let (at, LockRequest { range, kind, .. }, name) = (self.file(), self.request(), self.pick(&HOSTS));
        let wanted = Wanted { file: at, holder: host(name), range, kind };
        match self.random.random_bool(0.7) {
            true => assert!(self.world.states.wait_for(wanted, Moment(0))),
            false => drop(self.world.states.cancel(&wanted)),
        }
    }

    fn step(&mut self) {
        let before = (self.world.clone(), self.model.clone());
        match self.random.random_range(0..22) {
            0..4 => self.open(),
            4..6 => self.close(),
            6 => self.downgrade(),
            7..10 => self.lock_under(),
            10..12 => self.lock(),
            12..14 => self.unlock(),
            14 => self.free(),
            15..18 => self.host(),
            18..20 => self.delegation(),
            20 => self.wait(),
            _ if self.random.random_bool(0.3) => self.drop_party(),
            _ => {}
        }
        self.world.states.check_invariants();
        if self.random.random_bool(0.25) {
            self.world.take_back();
            assert_same(&self.world.states, &before.0.states);
            self.model = before.1;
        } else {
            self.world.commit();
            self.wake();
        }
        if self.random.random_bool(0.05) {
            self.world.crash();
        }
        self.ask();
    }

    /// Whoever is woken gets its lock, as long as nobody was faster.
    fn wake(&mut self) {
        let woken = self.world.states.woken();
        for wanted in &woken {
            assert!(!self.model.lock_conflict(wanted.file, &wanted.holder, wanted.range, wanted.kind));
            self.did("wake");
        }
        for (at, first) in woken.iter().enumerate() {
            for second in woken[at + 1..].iter().filter(|second| second.file == first.file) {
                let apart = first.holder == second.holder || !first.range.overlaps(second.range);
                assert!(apart || !first.kind.conflicts(second.kind), "two are woken for one byte");
            }
        }
    }

    /// Questions that change nothing.
    fn ask(&mut self) {
        for at in (1..4).map(file) {
            assert_eq!(self.world.states.is_open(at), self.model.is_open(at) || self.has_empty_lock(at));
            for _ in 0..3 {
                let LockRequest { range, kind, .. } = self.request();
                for client in CLIENTS {
                    let holder = Holder::v4(client, b"o").unwrap();
                    let denied = self.world.states.lock_test(client, at, b"o", range, kind);
                    assert_eq!(denied.is_some(), self.model.lock_conflict(at, &holder, range, kind));
                }
                let denied = self.world.states.nlm_test(at, &host("g"), range, kind);
                assert_eq!(denied.is_some(), self.model.lock_conflict(at, &host("g"), range, kind));
            }
            for (io, access) in [(Io::Read, 1), (Io::Write, 2)] {
                let result = self.world.states.check_io(None, at, &Stateid::ANONYMOUS, io);
                let denied = self.model.share_conflict(at, None, None, (access, 0));
                let delegated = io == Io::Write && self.model.delegated_to_others(at, None);
                let expected = if denied { Some(Status::Locked) } else { delegated.then_some(Status::Delay) };
                assert_eq!(result.err().map(|refusal| refusal.status()), expected);
            }
        }
        for ((at, client, _), (stateid, modes)) in &self.model.opens {
            assert_eq!(self.world.states.test_stateid(*client, stateid), Ok(()));
            let written = self.world.states.check_io(Some(*client), *at, stateid, Io::Write);
            assert_eq!(written.is_ok(), union(modes).0 & 2 != 0);
        }
        for ((_, client, ..), stateid) in &self.model.locks {
            assert_eq!(self.world.states.test_stateid(*client, stateid), Ok(()));
        }
        for client in CLIENTS {
            let whose = |key: &(FileId, ClientId)| key.1 == client;
            let has = self.model.opens.keys().any(|key| key.1 == client) || self.model.delegations.keys().any(whose);
            assert_eq!(self.world.states.has_state(client), has);
            let revoked = self.model.revoked.iter().any(|(whose, _)| *whose == client);
            assert_eq!(self.world.states.has_revoked(client), revoked);
        }
    }

    fn has_empty_lock(&self, at: FileId) -> bool {
        self.model.locks.keys().any(|(file, ..)| *file == at)
    }
}

#[test]
fn random_operations_do_as_the_model_does_whatever_is_taken_back_or_over() {
    let mut done: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..24 {
        println!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..500 {
            run.step();
        }
        run.done.into_iter().for_each(|(what, times)| *done.entry(what).or_default() += times);
    }
    println!("{done:?}");
    let expected = ["open", "upgrade", "close", "downgrade", "lock", "unlock", "free a lock", "free a delegation"];
    let more = ["lock of a host", "unlock of a host", "share of a host", "delegate", "return", "revoke", "wake"];
    for what in expected.into_iter().chain(more) {
        assert!(done.get(what).is_some_and(|times| *times > 20), "{what} is done too rarely: {done:?}");
    }
}
