//! The back channels of clients' sessions (RFC 8881 §2.10.3.1): by which of them a client can be called, and the turns that
//! callbacks take on their slots. What is said in a callback is in [`super::callbacks`].

use bytes::Bytes;

use crate::ids::{ClientId, SessionId};
use crate::state::back_channel::{CallbackEnd, CallbackSlot, CallbackTurn, ConnectionId};
use crate::state::clients::Clients;

/// How the calls of a session's back channel are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackHead {
    /// The client's RPC program.
    pub program: u32,
    /// Its credential, as it stands in a call.
    pub security: Bytes,
    /// The minor version of the client.
    pub minor: u32,
    /// Slots of the back channel.
    pub slots: u32,
}

/// The minor version of a client that was not heard yet.
const MINOR_DEFAULT: u32 = 1;

impl Clients {
    /// The client of a session speaks this minor version: callbacks have to, too.
    pub fn speaks(&mut self, session: SessionId, minor: u32) {
        if let Some(live) = self.live.get_mut(&session.number) {
            live.minor = Some(minor);
        }
    }

    /// How calls to the client of a session are made. None if the session is gone.
    pub fn callback_head(&self, session: SessionId) -> Option<CallbackHead> {
        let known = self.sessions.get(&session)?;
        let minor = self.live.get(&session.number).and_then(|live| live.minor);
        Some(CallbackHead {
            program: known.callback_program,
            security: known.callback_security.clone(),
            minor: minor.unwrap_or(MINOR_DEFAULT),
            slots: known.back.requests_max,
        })
    }

    /// The connection that callbacks of a session go over; true with it if the client has answered there.
    pub fn callback_connection(&self, session: SessionId) -> Option<(ConnectionId, bool)> {
        let back = &self.live.get(&session.number)?.back;
        Some((back.connection()?, back.is_proven()))
    }

    /// The client has answered a call of a session's back channel over this connection.
    pub fn callback_answered(&mut self, session: SessionId, connection: ConnectionId) {
        if let Some(live) = self.live.get_mut(&session.number) {
            live.back.prove(connection);
        }
    }

    /// The client does not answer as it should over this connection: SEQUENCE tells it so, and it binds one again.
    pub fn callback_failed(&mut self, session: SessionId, connection: ConnectionId) {
        if let Some(live) = self.live.get_mut(&session.number) {
            live.back.unbind(connection);
        }
    }

    /// True if the client can be called, and has shown that it answers.
    pub fn is_called_back(&self, client: ClientId) -> bool {
        self.answering_sessions(client).next().is_some()
    }

    /// The sessions by which a client answers calls.
    fn answering_sessions(&self, client: ClientId) -> impl Iterator<Item = SessionId> {
        let sessions = self.sessions_of(client).filter(|(id, session)| {
            let back = self.live.get(&id.number).map(|live| &live.back);
            back.is_some_and(|back| back.is_proven() && !back.is_broken(session.back.requests_max))
        });
        sessions.map(|(session, _)| *session)
    }

    /// [`Self::begin_callback`] on whichever session of a client has a slot and a connection where the client has answered.
    pub fn begin_callback_to(&mut self, client: ClientId) -> Option<(SessionId, ConnectionId, CallbackTurn)> {
        let sessions: Vec<_> = self.answering_sessions(client).collect();
        sessions.into_iter().find_map(|session| {
            let (connection, turn) = self.begin_callback(session)?;
            Some((session, connection, turn))
        })
    }

    /// Takes a slot for a callback, and says over which connection it goes, in memory only. To be sent when
    /// [`Self::record_callback`] is durable; if it will not be, it ends unanswered. None while no connection is bound or all
    /// slots are in use.
    pub fn begin_callback(&mut self, session: SessionId) -> Option<(ConnectionId, CallbackTurn)> {
        let slots = self.sessions.get(&session)?.back.requests_max;
        let back = &mut self.live.get_mut(&session.number)?.back;
        let table = &self.callback_slots;
        let turn = back.take(slots, |slot| table.get(&(session.number, slot)).map_or(0, |recorded| recorded.0))?;
        Some((back.connection()?, turn))
    }

    /// Records the sequence of a callback that is to be sent. A probe's is recorded already. False if the session is gone.
    pub fn record_callback(&mut self, session: SessionId, turn: CallbackTurn) -> bool {
        let is_there = self.sessions.contains(&session);
        if is_there && !turn.is_probe {
            self.callback_slots.insert((session.number, turn.slot), CallbackSlot(turn.sequence));
        }
        is_there
    }

    /// True if the client is known to be where the records have a slot: the next callback on it is not a probe.
    pub fn is_settled(&self, session: SessionId, slot: u32) -> bool {
        self.live.get(&session.number).is_some_and(|live| live.back.is_settled(slot))
    }

    /// What became of a callback.
    pub fn end_callback(&mut self, session: SessionId, slot: u32, end: CallbackEnd) {
        let recorded = self.callback_slots.get(&(session.number, slot)).map(|recorded| recorded.0);
        if let Some(live) = self.live.get_mut(&session.number) {
            live.back.end(slot, end, recorded);
        }
    }
}
