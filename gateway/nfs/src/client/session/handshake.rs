//! How a client gets its id and its session, binds further connections to it, and gives both back (RFC 8881 §18.35, §18.36,
//! §18.51, §18.34, §18.37, §18.50).

use super::{
    ATTEMPTS_MAX, Broken, Event, Granted, Handshake, Pending, Phase, Purpose, RequestError, Session, Timer, pause_ms,
};
use crate::client::arguments::Channel;
use crate::client::callback::{self, Callbacks};
use crate::client::number::{self, operation as op};
use crate::client::request::Request;
use crate::client::result::{CreatedSession, Exchanged, Outcome, Reply};
use crate::client::slots::{SLOTS_MAX, Slots};
use crate::ids::{ClientId, Moment};
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

/// Bytes of a callback and of its answer.
const CALLBACK_BYTES_MAX: u32 = 4096;

impl Session {
    pub(super) fn send_exchange_id(&mut self) {
        let identity = &self.identity;
        let flags = number::EXCHANGE_REFERRALS;
        let request = Request::new(identity.minor).exchange_id(identity.verifier, &identity.owner, flags);
        self.send_handshake(request);
    }

    pub(super) fn send_create_session(&mut self, client: ClientId, sequence: u32) {
        let identity = &self.identity;
        let fore = Channel { requests_max: identity.fore.requests_max.min(SLOTS_MAX), ..identity.fore };
        let back = Channel {
            request_bytes_max: CALLBACK_BYTES_MAX,
            reply_bytes_max: CALLBACK_BYTES_MAX,
            cached_reply_bytes_max: CALLBACK_BYTES_MAX,
            operations_max: callback::OPERATIONS_MAX,
            requests_max: callback::SLOTS_MAX,
        };
        let flags = number::SESSION_PERSIST | number::SESSION_BACK_CHANNEL;
        let callbacks = (number::CALLBACK_PROGRAM, &identity.credential);
        let request = Request::new(identity.minor).create_session(client, sequence, flags, (&fore, &back), callbacks);
        self.send_handshake(request);
    }

    /// DESTROY_SESSION, or DESTROY_CLIENTID when there is no session any more.
    pub(super) fn send_destroy(&mut self) {
        let request = Request::new(self.identity.minor);
        let request = match (self.granted, self.client) {
            (Some(granted), _) => request.destroy_session(granted.session),
            (None, Some((client, _))) => request.destroy_clientid(client),
            (None, None) => return self.closed(),
        };
        self.send_handshake(request);
    }

    fn closed(&mut self) {
        self.phase = Phase::Closed;
        self.events.push_back(Event::Closed);
    }

    /// Sends one operation alone, in no session.
    fn send_handshake(&mut self, request: Request) {
        let xid = self.next_xid();
        let operation = request.operations.first().map_or(0, |(number, _)| *number);
        let message = self.alone(xid, request);
        self.outgoing.push_back(message.clone());
        self.handshake = Some(Handshake { xid, operation, message });
    }

    fn alone(&self, xid: u32, request: Request) -> Vec<bytes::Bytes> {
        let mut out = self.call(xid);
        out.opaque(b"");
        out.u32(request.minor);
        out.u32(request.operations.len() as u32);
        let mut message = out.finish();
        message.extend(request.body.finish());
        message
    }

    /// Lets the connection carry the session in both directions. One that is not bound carries requests all the same.
    pub(super) fn send_bind(&mut self) {
        let Some(granted) = self.granted.filter(|_| self.bind.is_none() && !self.is_bound) else { return };
        let xid = self.next_xid();
        let request =
            Request::new(self.identity.minor).bind_conn_to_session(granted.session, number::BIND_FORE_OR_BOTH);
        let message = self.alone(xid, request);
        // Before all requests: what these are answered may make the server call.
        self.outgoing.push_back(message);
        self.bind = Some(xid);
        self.is_bound = true;
    }

    /// The answer to BIND_CONN_TO_SESSION; a session that is gone is noticed by the requests too.
    pub(super) fn on_bound(&mut self, decoder: Option<&mut Decoder>) -> Result<(), Broken> {
        let Some(decoder) = decoder else { return Ok(()) };
        let reply = Reply::decode(decoder, &[op::BIND_CONN_TO_SESSION])?;
        if let Some(failure) = reply.failure
            && matches!(failure.status, Status::BadSession | Status::DeadSession)
            && self.phase == Phase::Ready
        {
            self.begin_anew();
        }
        Ok(())
    }

    /// The answer to an operation outside of a session; none if RPC has refused the call. Errors: it makes no sense.
    pub(super) fn on_handshake(&mut self, decoder: Option<&mut Decoder>, now: Moment) -> Result<(), Broken> {
        let Some(handshake) = self.handshake.take() else { return Ok(()) };
        let Some(decoder) = decoder else {
            self.refuse(Status::WrongSecurity);
            return Ok(());
        };
        let reply = match Reply::decode(decoder, &[handshake.operation]) {
            Ok(reply) => reply,
            Err(error) => {
                // It is asked again over the next connection; whoever answers so for ever is given up.
                self.attempted(Status::ServerFault);
                return Err(error.into());
            }
        };
        let status = reply.failure.map(|failure| failure.status);
        match (handshake.operation, status, reply.outcomes.into_iter().next()) {
            (op::DESTROY_SESSION, ..) => self.granted = None,
            (op::DESTROY_CLIENTID, ..) => self.closed(),
            (_, Some(Status::Delay | Status::Grace), _) => {
                self.timers.insert((now.plus(pause_ms(self.attempts)), Timer::Handshake));
                self.attempted(Status::Delay);
            }
            (op::EXCHANGE_ID, None, Some(Outcome::Exchanged(exchanged))) => self.on_exchanged(&exchanged),
            (op::CREATE_SESSION, None, Some(Outcome::CreatedSession(created))) => self.on_created(&created)?,
            (op::CREATE_SESSION, Some(Status::StaleClientId | Status::SequenceMisordered), _) => {
                self.phase = Phase::Unknown;
                self.attempted(Status::StaleClientId);
            }
            (_, status, _) => self.refuse(status.unwrap_or(Status::ServerFault)),
        }
        Ok(())
    }

    fn on_exchanged(&mut self, exchanged: &Exchanged) {
        if self.client.is_none_or(|(known, _)| known != exchanged.client) {
            self.statistics.clients += 1;
        }
        self.client = Some((exchanged.client, exchanged.sequence));
        self.phase = Phase::Known(exchanged.client, exchanged.sequence);
    }

    /// Errors: a session that carries nothing.
    fn on_created(&mut self, created: &CreatedSession) -> Result<(), Broken> {
        let Phase::Known(client, sequence) = self.phase else { return Ok(()) };
        if created.fore.requests_max == 0 || created.fore.operations_max < 2 {
            self.refuse(Status::TooSmall);
            return Err(XdrError::BadValue { of: "ca_maxrequests", value: created.fore.requests_max }.into());
        }
        self.statistics.sessions += 1;
        self.client = Some((client, sequence.wrapping_add(1)));
        let has_back_channel = created.flags & number::SESSION_BACK_CHANNEL != 0;
        self.granted = Some(Granted {
            session: created.session,
            fore: created.fore,
            has_back_channel,
            persists: created.flags & number::SESSION_PERSIST != 0,
        });
        // The connection that made the session carries its back channel (§18.36.3).
        self.is_bound = has_back_channel;
        self.slots = Slots::new(created.fore.requests_max.min(self.identity.fore.requests_max));
        self.callbacks = Callbacks::new(created.back.requests_max);
        if self.reclaimed == Some(client) {
            self.phase = Phase::Ready;
        } else {
            self.phase = Phase::Reclaiming;
            let request = Request::new(self.identity.minor).reclaim_complete(false);
            self.put_on_slot(Pending::new(Purpose::Reclaim, request));
        }
        Ok(())
    }

    /// The server has forgotten the session, or nobody knows what it thinks of it: another one, for the same client id if the
    /// server knows that still. What changes nothing is asked again there; of the rest nobody can know.
    pub(super) fn begin_anew(&mut self) {
        self.granted = None;
        self.slots = Slots::default();
        self.callbacks = Callbacks::default();
        self.bind = None;
        for (_, sent) in std::mem::take(&mut self.sent).into_iter().rev() {
            self.put_again(sent.pending, true);
        }
        if matches!(self.phase, Phase::Closing) {
            return;
        }
        self.phase = match self.client {
            Some((client, sequence)) => Phase::Known(client, sequence),
            None => Phase::Unknown,
        };
        self.attempted(Status::BadSession);
    }

    /// Puts a request first in the queue of the next session; not if it may have been done and would be done twice.
    pub(super) fn put_again(&mut self, pending: Pending, may_be_done: bool) {
        match (pending.purpose, self.phase) {
            (Purpose::Reclaim | Purpose::Renew, _) => {}
            (_, Phase::Closing | Phase::Closed) => self.give_up(pending, RequestError::Closed),
            (_, Phase::Refused(status)) => self.give_up(pending, RequestError::NoSession(status)),
            (Purpose::User(_), _) if may_be_done && pending.is_changing() => {
                self.give_up(pending, RequestError::Uncertain);
            }
            _ => self.waiting.push_front(pending),
        }
    }

    fn attempted(&mut self, status: Status) {
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX {
            self.refuse(status);
        }
    }

    /// There is no session to be had: nobody needs to wait for one.
    fn refuse(&mut self, status: Status) {
        self.phase = Phase::Refused(status);
        self.timers.clear();
        let delayed = std::mem::take(&mut self.delayed).into_values();
        let sent = std::mem::take(&mut self.sent).into_values().map(|sent| sent.pending);
        let waiting = std::mem::take(&mut self.waiting);
        for pending in waiting.into_iter().chain(delayed).chain(sent) {
            self.give_up(pending, RequestError::NoSession(status));
        }
    }
}
