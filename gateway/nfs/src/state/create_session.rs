//! CREATE_SESSION, DESTROY_SESSION, BIND_CONN_TO_SESSION, BACKCHANNEL_CTL (RFC 8881 §18.36, §18.37, §18.34, §18.33).
//!
//! CREATE_SESSION is executed exactly once: its sequence and its answer, refusals too, are part of the client's record. It
//! confirms the client, and takes away the one whose place that client takes.

use bytes::Bytes;

use crate::ids::{ClientId, Moment, SessionId};
use crate::state::back_channel::ConnectionId;
use crate::state::client::{Client, Turn};
use crate::state::clients::{CLIENTS_MAX, Clients, SESSIONS_PER_CLIENT_MAX};
use crate::state::session::{
    CALLBACK_SECURITY_BYTES_MAX, ChannelAttributes, FLAG_BACK_CHANNEL, FLAG_PERSIST, FLAGS, SLOTS_DEFAULT, SLOTS_MAX,
    Session, SessionGrant,
};
use crate::v4::status::Status;

/// Slots of all sessions together up to which a session gets more than [`SLOTS_DEFAULT`].
pub const SLOTS_TOTAL_MAX: u32 = 65_536;

/// `CDFC4_FORE` and `CDFS4_FORE`: the connection carries requests.
pub const DIRECTION_FORE: u32 = 1;
/// `CDFC4_BACK` and `CDFS4_BACK`: it carries callbacks.
pub const DIRECTION_BACK: u32 = 2;
/// `CDFC4_FORE_OR_BOTH` and `CDFS4_BOTH`.
pub const DIRECTION_BOTH: u32 = 3;
/// `CDFC4_BACK_OR_BOTH`.
pub const DIRECTION_BACK_OR_BOTH: u32 = 7;

/// What CREATE_SESSION says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSession {
    /// The client.
    pub client: ClientId,
    /// Of the client's sessions, not of a slot.
    pub sequence: u32,
    /// `csa_flags`.
    pub flags: u32,
    /// What the fore channel should carry.
    pub fore: ChannelAttributes,
    /// What the back channel should carry.
    pub back: ChannelAttributes,
    /// The client's RPC program for callbacks.
    pub callback_program: u32,
    /// What callbacks authenticate with, as the caller encodes it; at most [`CALLBACK_SECURITY_BYTES_MAX`].
    pub callback_security: Bytes,
    /// Who the client authenticated as, as the caller names it.
    pub principal: Bytes,
}

/// What CREATE_SESSION has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCreated {
    /// The answer.
    pub grant: SessionGrant,
    /// A client that is no more: what it had open or locked is the caller's to drop, in the same transaction.
    pub dropped: Option<ClientId>,
}

impl Clients {
    /// CREATE_SESSION, come over this connection. If it is refused there may be changes all the same.
    ///
    /// Errors: [`Status::StaleClientId`], [`Status::SequenceMisordered`], [`Status::Invalid`], [`Status::TooSmall`],
    /// [`Status::ClientInUse`]; [`Status::NoSpace`] for a session too many; [`Status::Delay`] for a client too many, to be
    /// prevented by dropping [`Self::longest_away`], and while the ring is full.
    pub fn create_session(
        &mut self,
        now: Moment,
        connection: ConnectionId,
        request: &CreateSession,
        holds_state: &dyn Fn(ClientId) -> bool,
    ) -> Result<SessionCreated, Status> {
        let unconfirmed = self.unconfirmed.get(&request.client);
        if unconfirmed.is_some_and(|client| client.principal != request.principal) {
            // It is not kept: whoever this is, it must not use up the client's sequence.
            return Err(Status::ClientInUse);
        }
        let known = unconfirmed.or_else(|| self.clients.get(&request.client)).ok_or(Status::StaleClientId)?;
        match known.turn(request.sequence) {
            Turn::Next => {}
            Turn::Misordered => return Err(Status::SequenceMisordered),
            Turn::Answered(answer) => {
                let grant = answer?;
                self.carry_callbacks(&grant, connection);
                return Ok(SessionCreated { grant, dropped: None });
            }
        }
        let created = self.create(now, request, holds_state);
        if created == Err(Status::Delay) {
            return created;
        }
        let answer = created.map(|created| created.grant);
        let is_confirmed = self.clients.contains(&request.client);
        let table = if is_confirmed { &mut self.clients } else { &mut self.unconfirmed };
        if let Some(client) = table.get_mut(&request.client) {
            (client.sequence, client.answer) = (request.sequence, Some(answer));
        }
        let created = created?;
        self.leases.renew(request.client, now);
        self.carry_callbacks(&created.grant, connection);
        Ok(created)
    }

    /// A session of a client whose turn it is.
    fn create(
        &mut self,
        now: Moment,
        request: &CreateSession,
        holds_state: &dyn Fn(ClientId) -> bool,
    ) -> Result<SessionCreated, Status> {
        if request.flags & !FLAGS != 0 || request.callback_security.len() > CALLBACK_SECURITY_BYTES_MAX {
            return Err(Status::Invalid);
        }
        let wants_callbacks = request.flags & FLAG_BACK_CHANNEL != 0;
        let fore = request.fore.grant_fore(self.slots_left(request.fore.requests_max))?;
        let back = match request.back.grant_back() {
            // Nobody wants it: it has a slot for the sake of having one.
            Err(_) if !wants_callbacks => ChannelAttributes { requests_max: 1, ..request.back },
            back => back?,
        };
        if self.ring_is_full {
            return Err(Status::Delay);
        }
        if self.sessions_of(request.client).count() >= SESSIONS_PER_CLIENT_MAX {
            return Err(Status::NoSpace);
        }
        let dropped = match self.unconfirmed.get(&request.client).cloned() {
            Some(client) => self.confirm(now, client, request, holds_state)?,
            None => None,
        };
        let session = SessionId { client: request.client, number: self.counters.session() };
        // Persistence is granted to whoever asks; RDMA to nobody.
        let flags = request.flags & (FLAG_PERSIST | FLAG_BACK_CHANNEL);
        let value = Session {
            client: request.client,
            flags,
            fore,
            back,
            wants_callbacks,
            callback_program: request.callback_program,
            callback_security: Bytes::copy_from_slice(&request.callback_security),
        };
        self.sessions.insert(session, value);
        let grant = SessionGrant { session, sequence: request.sequence, flags, fore, back };
        Ok(SessionCreated { grant, dropped })
    }

    /// Makes a client one that is kept, in place of the one that calls itself the same; tells which that was.
    fn confirm(
        &mut self,
        now: Moment,
        client: Client,
        request: &CreateSession,
        holds_state: &dyn Fn(ClientId) -> bool,
    ) -> Result<Option<ClientId>, Status> {
        let former = self.owners.get(&client.owner).copied();
        let is_other =
            |former: &ClientId| self.clients.get(former).is_some_and(|known| known.principal != client.principal);
        // It may have come back since EXCHANGE_ID.
        if former.filter(is_other).is_some_and(|former| self.is_in_use(former, now, holds_state)) {
            return Err(Status::ClientInUse);
        }
        if former.is_none() && self.clients.len() >= CLIENTS_MAX {
            return Err(Status::Delay);
        }
        if let Some(former) = former {
            self.remove_client(former);
        }
        self.unconfirmed.remove(&request.client);
        self.unconfirmed_owners.remove(&client.owner);
        self.owners.insert(client.owner.clone(), request.client);
        self.clients.insert(request.client, client);
        Ok(former)
    }

    /// How many slots a session gets that asks for so many.
    fn slots_left(&self, asked: u32) -> u32 {
        let granted: u32 = self.sessions.iter().map(|(_, session)| session.fore.requests_max).sum();
        match granted + asked.min(SLOTS_MAX) <= SLOTS_TOTAL_MAX {
            true => SLOTS_MAX,
            false => SLOTS_DEFAULT,
        }
    }

    fn carry_callbacks(&mut self, grant: &SessionGrant, connection: ConnectionId) {
        if grant.flags & FLAG_BACK_CHANNEL != 0 && self.sessions.contains(&grant.session) {
            self.live.entry(grant.session.number).or_default().back.bind(connection);
        }
    }

    /// DESTROY_SESSION. Requests that are under way in it may end, and leave no record. Errors: [`Status::BadSession`],
    /// [`Status::DeadSession`].
    pub fn destroy_session(&mut self, session: SessionId) -> Result<(), Status> {
        self.session(session)?;
        self.remove_session(session);
        Ok(())
    }

    /// BIND_CONN_TO_SESSION: which way the connection carries the session, as the answer says it. Whoever leaves it to the
    /// server gets both ways. Errors: [`Status::BadSession`], [`Status::DeadSession`], [`Status::Invalid`].
    pub fn bind_connection(
        &mut self,
        session: SessionId,
        direction: u32,
        connection: ConnectionId,
    ) -> Result<u32, Status> {
        let wants_callbacks = self.session(session)?.wants_callbacks;
        let direction = match direction {
            DIRECTION_FORE | DIRECTION_BACK | DIRECTION_BOTH => direction,
            DIRECTION_BACK_OR_BOTH => DIRECTION_BOTH,
            _ => return Err(Status::Invalid),
        };
        let back = &mut self.live.entry(session.number).or_default().back;
        if direction == DIRECTION_FORE {
            back.unbind(connection);
            return Ok(direction);
        }
        back.bind(connection);
        if !wants_callbacks && let Some(session) = self.sessions.get_mut(&session) {
            session.wants_callbacks = true;
        }
        Ok(direction)
    }

    /// A connection is closed. Gives the sessions whose callbacks it carried.
    pub fn connection_closed(&mut self, connection: ConnectionId) -> Vec<SessionId> {
        let mut carried = Vec::new();
        for (session, _) in self.sessions.iter() {
            if let Some(live) = self.live.get_mut(&session.number)
                && live.back.unbind(connection)
            {
                carried.push(*session);
            }
        }
        carried
    }

    /// BACKCHANNEL_CTL: program and authentication of callbacks. Errors: [`Status::BadSession`], [`Status::DeadSession`],
    /// [`Status::Invalid`].
    pub fn control_back_channel(&mut self, session: SessionId, program: u32, security: &[u8]) -> Result<(), Status> {
        self.session(session)?;
        if security.len() > CALLBACK_SECURITY_BYTES_MAX {
            return Err(Status::Invalid);
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.callback_program = program;
            session.callback_security = Bytes::copy_from_slice(security);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "create_session_tests.rs"]
mod tests;
