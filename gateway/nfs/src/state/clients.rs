//! All that a service knows of its clients, but for their opens, locks and delegations. Owns the tables, and beside them what
//! lives in memory only: leases, slots in use, bound connections, clients that are not confirmed.
//!
//! How changes become durable: an operation changes the tables, maybe inside an operation of the filesystem that is run several
//! times ([`Clients::take_back`] before each further run). [`Clients::records`] tells what is to be put beside the operation's
//! own changes; once it has joined a transaction, [`Clients::commit`]. The answer is sent when the transaction is durable.
//! Also an operation that is refused may have changed something: CREATE_SESSION keeps its refusals. From the first change to
//! `commit` or `take_back` nobody waits: the tables know one operation at a time. So whatever changes a table happens inside
//! an operation of the filesystem, and whatever is in memory only ([`Clients::sequence`], [`Clients::finish`],
//! [`Clients::begin_callback`], [`Clients::end_callback`]) outside. What rarely has a record, as EXCHANGE_ID, may be tried
//! outside first: without [`Clients::is_changed`] it is committed, else taken back and done again inside.
//!
//! The operations are in [`super::exchange_id`], [`super::create_session`] and [`super::sequence`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use filesystem::state_ring::RecordId;

use crate::ids::{ClientId, Moment, SessionId, StateNumber};
use crate::state::back_channel::CallbackSlot;
use crate::state::client::Client;
use crate::state::counters::{Counters, Service};
use crate::state::grace::Grace;
use crate::state::lease::Leases;
use crate::state::record::{self, Payload, RestoreError};
use crate::state::sequence::{LiveSession, Replays};
use crate::state::session::Session;
use crate::state::slot::{Reply, SlotRecord};
use crate::state::table::Table;
use crate::state::v3_replies::V3Replies;
use crate::v4::status::Status;

/// Clients that are confirmed.
pub const CLIENTS_MAX: usize = 4_096;
/// Clients that are not; of more, the oldest is forgotten.
pub const UNCONFIRMED_MAX: usize = 1_024;
/// Sessions of a client.
pub const SESSIONS_PER_CLIENT_MAX: usize = 16;
/// Clients that are remembered as dropped; of more, the oldest is unknown again.
pub const DEAD_MAX: usize = 1_024;

/// The clients of a service.
#[derive(Debug)]
pub struct Clients {
    /// The service, and the numbers it gives.
    pub counters: Counters,
    pub(super) clients: Table<ClientId, Client>,
    pub(super) owners: Table<Bytes, ClientId>,
    pub(super) sessions: Table<SessionId, Session>,
    /// By session number and slot, as are callback slots.
    pub(super) slots: Table<(u64, u32), SlotRecord>,
    pub(super) callback_slots: Table<(u64, u32), CallbackSlot>,
    /// Of NFSv3.
    pub v3_replies: V3Replies,

    // In memory only from here on; those in tables because they are taken back too.
    pub(super) unconfirmed: Table<ClientId, Client>,
    pub(super) unconfirmed_owners: Table<Bytes, ClientId>,
    /// By session number.
    pub(super) live: BTreeMap<u64, LiveSession>,
    pub(super) leases: Leases,
    pub(super) grace: Grace,
    pub(super) dead: BTreeSet<ClientId>,
    pub(super) ring_is_full: bool,
    pub(super) replays: Replays,
}

impl Clients {
    /// Those of a service that starts for the first time, or with its state lost: nobody is known, and whatever somebody comes
    /// with is of another epoch. The caller has an `epoch` and a `verifier` that were never used, and deletes all records that
    /// the ring still has, in the transaction of the first change.
    ///
    /// `former`: what clients of before called themselves. They may reclaim what they had until all have, or for one and a half
    /// leases; none, if there were none. If nobody knows who they were, None: all may, for that time.
    pub fn fresh(epoch: u32, verifier: u64, lease_ms: u64, former: Option<BTreeSet<Bytes>>, now: Moment) -> Self {
        let in_grace = former.as_ref().is_none_or(|former| !former.is_empty());
        let counters = Counters::fresh(epoch, verifier, in_grace);
        Self::empty(counters, lease_ms, Grace::new(former, now, lease_ms))
    }

    /// As the records of the ring say, those of opens, locks, delegations and hosts left out. All slots wait for their first
    /// use, all leases start in full. A grace period that was not over starts anew, and is ended by time alone.
    ///
    /// Errors: something is missing, cannot be read, or contradicts something else. The state is lost then.
    pub fn restore<'a>(
        records: impl IntoIterator<Item = (RecordId, &'a [u8])>,
        lease_ms: u64,
        now: Moment,
    ) -> Result<Self, RestoreError> {
        let mut by_kind: BTreeMap<u16, Vec<(RecordId, &[u8])>> = BTreeMap::new();
        for (id, payload) in records {
            match id.kind {
                record::OPEN | record::LOCK | record::DELEGATION | record::MONITOR | record::GRANT => {}
                record::SERVICE..=record::CALLBACK_SLOT => by_kind.entry(id.kind).or_default().push((id, payload)),
                kind => return Err(RestoreError::UnknownKind(kind)),
            }
        }
        // Those that others refer to come first.
        let mut of = |kind| by_kind.remove(&kind).unwrap_or_default();
        let services = of(record::SERVICE);
        let (id, payload) = services.first().ok_or(RestoreError::Missing)?;
        if services.len() > 1 || id.key != 0 {
            return Err(RestoreError::contradiction(*id, "there is one service"));
        }
        let counters = Counters::restore(record::read::<Service>(*id, payload)?);
        let mut all = Self::empty(counters, lease_ms, Grace::new(None, now, lease_ms));
        of(record::CLIENT).into_iter().try_for_each(|(id, payload)| all.restore_client(id, payload, now))?;
        let mut numbers = BTreeMap::new();
        for (id, payload) in of(record::SESSION) {
            let session = all.restore_session(id, payload)?;
            numbers.insert(session.number, session);
        }
        for (id, payload) in of(record::SLOT) {
            let key = all.restore_slot(id, &numbers, |session| session.fore.requests_max)?;
            all.slots.insert(key, record::read(id, payload)?);
        }
        for (id, payload) in of(record::CALLBACK_SLOT) {
            let key = all.restore_slot(id, &numbers, |session| session.back.requests_max)?;
            all.callback_slots.insert(key, record::read(id, payload)?);
        }
        of(record::V3_REPLY).into_iter().try_for_each(|(id, payload)| all.v3_replies.restore(id, payload))?;
        all.commit();
        Ok(all)
    }

    /// What the clients that are confirmed call themselves.
    pub fn owner_names(&self) -> BTreeSet<Bytes> {
        self.owners.iter().map(|(name, _)| name.clone()).collect()
    }

    fn empty(counters: Counters, lease_ms: u64, grace: Grace) -> Self {
        Self {
            counters,
            clients: Table::default(),
            owners: Table::default(),
            sessions: Table::default(),
            slots: Table::default(),
            callback_slots: Table::default(),
            v3_replies: V3Replies::default(),
            unconfirmed: Table::default(),
            unconfirmed_owners: Table::default(),
            live: BTreeMap::new(),
            leases: Leases::new(lease_ms),
            grace,
            dead: BTreeSet::new(),
            ring_is_full: false,
            replays: Replays::default(),
        }
    }

    /// The records of what was changed since the last [`Self::commit`] or [`Self::take_back`]; None where one is to be deleted,
    /// which may not be there.
    pub fn records(&self, mut put: impl FnMut(RecordId, Option<Vec<u8>>)) {
        if self.counters.is_changed() {
            put(record::numbered(record::SERVICE, 0), Some(self.counters.service().to_payload()));
        }
        for (client, value) in self.clients.changes() {
            put(record::numbered(record::CLIENT, client.0), value.map(Payload::to_payload));
        }
        for (session, value) in self.sessions.changes() {
            put(record::numbered(record::SESSION, session.number), value.map(Payload::to_payload));
        }
        for ((session, slot), value) in self.slots.changes() {
            put(record::of_slot(record::SLOT, *session, *slot), value.map(Payload::to_payload));
        }
        for ((session, slot), value) in self.callback_slots.changes() {
            put(record::of_slot(record::CALLBACK_SLOT, *session, *slot), value.map(Payload::to_payload));
        }
        self.v3_replies.records(put);
    }

    /// True if there is something for [`Self::records`] to tell.
    pub fn is_changed(&self) -> bool {
        self.counters.is_changed()
            || self.clients.is_changed()
            || self.sessions.is_changed()
            || self.slots.is_changed()
            || self.callback_slots.is_changed()
            || self.v3_replies.is_changed()
    }

    /// The changes are part of a transaction, or have no records.
    pub fn commit(&mut self) {
        let (clients, sessions) = self.touched();
        self.counters.commit();
        self.clients.commit();
        self.owners.commit();
        self.sessions.commit();
        self.slots.commit();
        self.callback_slots.commit();
        self.v3_replies.commit();
        self.unconfirmed.commit();
        self.unconfirmed_owners.commit();
        self.forget_gone(clients, sessions);
    }

    /// The operation did not count: all is as it was before. Numbers that it got are not given again.
    pub fn take_back(&mut self) {
        let (clients, sessions) = self.touched();
        self.counters.take_back();
        self.clients.take_back();
        self.owners.take_back();
        self.sessions.take_back();
        self.slots.take_back();
        self.callback_slots.take_back();
        self.v3_replies.take_back();
        self.unconfirmed.take_back();
        self.unconfirmed_owners.take_back();
        self.forget_gone(clients, sessions);
    }

    /// Clients and sessions that were changed, and may be gone after that.
    fn touched(&self) -> (Vec<ClientId>, Vec<SessionId>) {
        let clients = self.clients.changes().map(|(client, _)| *client).collect();
        (clients, self.sessions.changes().map(|(session, _)| *session).collect())
    }

    /// What lives in memory beside entries that are gone goes with them.
    fn forget_gone(&mut self, clients: Vec<ClientId>, sessions: Vec<SessionId>) {
        for client in clients.into_iter().filter(|client| !self.clients.contains(client)) {
            self.leases.forget(client);
        }
        for session in sessions.into_iter().filter(|session| !self.sessions.contains(session)) {
            self.live.remove(&session.number);
        }
    }

    /// A number for an open, a lock or a delegation, which none had before.
    pub fn state_number(&mut self) -> StateNumber {
        self.counters.state()
    }

    /// A client that is confirmed.
    pub fn client(&self, client: ClientId) -> Option<&Client> {
        self.clients.get(&client)
    }

    /// All that are confirmed.
    pub fn clients(&self) -> impl Iterator<Item = (ClientId, &Client)> {
        self.clients.iter().map(|(id, client)| (*id, client))
    }

    /// A session. Errors: [`Status::BadSession`]; [`Status::DeadSession`] of a client that was dropped.
    pub fn session(&self, session: SessionId) -> Result<&Session, Status> {
        match self.sessions.get(&session) {
            Some(known) => Ok(known),
            None if self.dead.contains(&session.client) => Err(Status::DeadSession),
            None => Err(Status::BadSession),
        }
    }

    /// The sessions of a client.
    pub fn sessions_of(&self, client: ClientId) -> impl Iterator<Item = (&SessionId, &Session)> {
        self.sessions.range(SessionId { client, number: 0 }..=SessionId { client, number: u64::MAX })
    }

    /// Leases, to be looked at.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// True for a client whose lease has ended, and that keeps what it has only as long as nobody else wants it.
    pub fn is_courtesy(&self, client: ClientId, now: Moment) -> bool {
        self.leases.is_over(client, now) && !self.is_served(client)
    }

    /// Clients that are not waited for any more: to be dropped, the longest away first.
    pub fn expired(&self, now: Moment) -> Vec<ClientId> {
        let mut expired = self.leases.expired(now);
        expired.retain(|client| !self.is_served(*client));
        expired
    }

    /// Of those that keep what they have by courtesy, the one that was away longest: to be dropped for want of room.
    pub fn longest_away(&self, now: Moment) -> Option<ClientId> {
        self.leases.away(now).into_iter().map(|(_, client)| client).find(|client| !self.is_served(*client))
    }

    /// True while a request of the client is being executed: it waits for the answer, and has no reason to be heard of.
    fn is_served(&self, client: ClientId) -> bool {
        let live = self.sessions_of(client).filter_map(|(session, _)| self.live.get(&session.number));
        live.into_iter().any(LiveSession::is_in_progress)
    }

    /// The ring has no room for more clients and sessions, or has it again. In memory only.
    pub fn set_ring_full(&mut self, is_full: bool) {
        self.ring_is_full = is_full;
    }

    /// Makes room in the ring: of at most `max` slots whose clients have gone on behind the recorded request, and so have its
    /// answer, the result is not kept any more. Its sequence is. Gives how many it were.
    pub fn forget_answered(&mut self, max: usize) -> usize {
        let is_answered = |(number, slot): &(u64, u32), record: &SlotRecord| {
            let current = self.live.get(number).and_then(|live| live.current(*slot));
            !record.reply.is_forgotten() && current.is_some_and(|current| current != record.sequence)
        };
        let answered = self.slots.iter().filter(|(key, record)| is_answered(key, record));
        let answered: Vec<_> = answered.map(|(key, _)| *key).take(max).collect();
        for key in &answered {
            if let Some(record) = self.slots.get_mut(key) {
                record.reply = Reply::forgotten();
            }
        }
        answered.len()
    }

    /// Drops a client that was away for too long; its requests get [`Status::DeadSession`]. What it has open or locked is the
    /// caller's to drop, in the same transaction. False if there is none.
    pub fn drop_client(&mut self, client: ClientId) -> bool {
        let was_there = self.remove_client(client);
        if was_there {
            self.dead.insert(client);
            if self.dead.len() > DEAD_MAX {
                self.dead.pop_first();
            }
        }
        was_there
    }

    /// Takes a client and its sessions out of all tables.
    pub(super) fn remove_client(&mut self, client: ClientId) -> bool {
        let Some(known) = self.clients.remove(&client) else { return false };
        self.owners.remove(&known.owner);
        let sessions: Vec<_> = self.sessions_of(client).map(|(session, _)| *session).collect();
        sessions.into_iter().for_each(|session| self.remove_session(session));
        true
    }

    pub(super) fn remove_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        let all = (session.number, 0)..=(session.number, u32::MAX);
        let slots: Vec<_> = self.slots.range(all.clone()).map(|(key, _)| *key).collect();
        for key in slots {
            self.slots.remove(&key);
        }
        let slots: Vec<_> = self.callback_slots.range(all).map(|(key, _)| *key).collect();
        for key in slots {
            self.callback_slots.remove(&key);
        }
    }

    fn restore_client(&mut self, id: RecordId, payload: &[u8], now: Moment) -> Result<(), RestoreError> {
        let number = ClientId(record::number_of(id)?);
        let client: Client = record::read(id, payload)?;
        let grants_own = client.answer.and_then(Result::ok).is_none_or(|grant| grant.session.client == number);
        let what = match () {
            () if !self.counters.knows_client(number) => "its number was not given",
            () if self.clients.contains(&number) || self.owners.contains(&client.owner) => "it is there twice",
            () if self.clients.len() >= CLIENTS_MAX => "there are too many clients",
            () if !grants_own => "it was granted a session of another",
            () => {
                self.owners.insert(client.owner.clone(), number);
                self.clients.insert(number, client);
                self.leases.renew(number, now);
                return Ok(());
            }
        };
        Err(RestoreError::contradiction(id, what))
    }

    fn restore_session(&mut self, id: RecordId, payload: &[u8]) -> Result<SessionId, RestoreError> {
        let number = record::number_of(id)?;
        let session: Session = record::read(id, payload)?;
        let key = SessionId { client: session.client, number };
        let what = match () {
            () if !self.counters.knows_session(number) => "its number was not given",
            () if !self.clients.contains(&session.client) => "its client is not there",
            () if self.live.contains_key(&number) => "it is there twice",
            () if self.sessions_of(session.client).count() >= SESSIONS_PER_CLIENT_MAX => "there are too many sessions",
            () => {
                self.sessions.insert(key, session);
                self.live.insert(number, LiveSession::taken_over());
                return Ok(key);
            }
        };
        Err(RestoreError::contradiction(id, what))
    }

    /// The key of a slot's record, if its session has that many slots.
    fn restore_slot(
        &self,
        id: RecordId,
        numbers: &BTreeMap<u64, SessionId>,
        slots: impl Fn(&Session) -> u32,
    ) -> Result<(u64, u32), RestoreError> {
        let (number, slot) = record::slot_of(id)?;
        match numbers.get(&number).and_then(|session| self.sessions.get(session)) {
            Some(session) if slot < slots(session) => Ok((number, slot)),
            Some(_) => Err(RestoreError::contradiction(id, "its session has fewer slots")),
            None => Err(RestoreError::contradiction(id, "its session is not there")),
        }
    }
}

#[cfg(test)]
#[path = "clients_tests.rs"]
pub(in crate::state) mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model_tests;
