//! The state machine of a client id and its session (RFC 8881 §2.4, §2.10), as a client has them: which requests are under way
//! on which slot, what is sent again when a connection broke, what is begun anew when the server has forgotten the session.
//!
//! Pure: messages of the connection and moments go in, messages to send and events come out. What it owns: the client id, the
//! session, its slots, all requests that are not completed. It reclaims nothing: after a server has forgotten the client id, its
//! opens and locks are gone, and whoever had them is told by the statuses of later requests.
//!
//! A request that was sent is sent again byte for byte, on the same slot with the same sequence, until it is answered: so the
//! server does it once (§2.10.6.1.3). Only when the session is gone that cannot be known any more: then what changes nothing is
//! asked again in the next session, and the rest is completed as [`RequestError::Uncertain`].

mod answers;
mod handshake;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thiserror::Error;

use super::arguments::{Channel, put_sequence};
use super::callback::{self, Callbacks, Notice};
use super::number::{self, operation as op};
use super::request::Request;
use super::result::Reply;
use super::slots::Slots;
use super::statistics::Statistics;
use crate::ids::{ClientId, Moment, SessionId};
use crate::rpc::auth::{Credential, SysCredential};
use crate::rpc::call::{Call, is_reply};
use crate::rpc::reply;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Requests that wait for a slot; more are not taken ([`Session::has_room`]).
pub const WAITING_MAX: usize = 4096;
/// Times that a request is put again because the server says DELAY; then the caller is told.
pub const DELAYS_MAX: u32 = 600;
/// Attempts at a session, one upon the other, that the server may spoil; then all requests are refused.
const ATTEMPTS_MAX: u32 = 32;
/// Pause before what was answered DELAY is put again: it doubles from the first to the last, in milliseconds.
const DELAY_FIRST_MS: u64 = 50;
const DELAY_LAST_MS: u64 = 1600;
/// Times that it doubles.
const DELAY_DOUBLINGS: u32 = 5;

/// A message, in the parts that it is to be sent in.
pub type Message = Vec<Bytes>;

/// Who the client is, and what it would like.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name for itself; two clients of one name take each other's place.
    pub owner: Bytes,
    /// Another one whenever it has forgotten what it had open.
    pub verifier: [u8; 8],
    /// Who calls.
    pub credential: SysCredential,
    /// Minor version: 1 or 2.
    pub minor: u32,
    /// What requests are to have.
    pub fore: Channel,
}

/// Tells a request from the others of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The session was lost while it was under way: it may have been done or not.
    #[error("the session was lost while a change was under way: it may have been made or not")]
    Uncertain,
    /// The answer makes no sense: it may have been done.
    #[error("an answer that cannot be read: {0}")]
    Garbled(XdrError),
    /// Refused by RPC: another program, or credentials that are not taken.
    #[error("the call was refused before it was looked at")]
    Rejected,
    /// Longer, or of more operations, than the session takes.
    #[error("the request is larger than the session takes")]
    TooBig,
    /// There is no session to be had.
    #[error("the server gives no session: {0}")]
    NoSession(Status),
    /// The client ends.
    #[error("the client is closed")]
    Closed,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request is completed.
    Completed(RequestId, Result<Reply, RequestError>),
    /// The server told something. A recalled delegation is given back already.
    Told(Notice),
    /// Session and client id are given back: the connection may be closed.
    Closed,
}

/// What stands on a connection that is no RPC, or is an answer that nothing can be done with: it is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the connection is of no use: {0}")]
pub struct Broken(#[from] pub XdrError);

/// Whose a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    User(RequestId),
    /// RECLAIM_COMPLETE, behind which the others may go.
    Reclaim,
    /// Keeps the lease.
    Renew,
    /// Gives a delegation back.
    Return,
}

/// A request that is not on a slot.
#[derive(Debug)]
struct Pending {
    purpose: Purpose,
    minor: u32,
    operations: Vec<(u32, bool)>,
    body: Vec<Bytes>,
    bytes: usize,
    delays: u32,
}

/// A request on a slot.
#[derive(Debug)]
struct Sent {
    pending: Pending,
    slot: u32,
    sequence: u32,
    message: Message,
    sends: u32,
}

/// A call outside of a session.
#[derive(Debug)]
struct Handshake {
    xid: u32,
    operation: u32,
    message: Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// EXCHANGE_ID is next.
    Unknown,
    /// CREATE_SESSION is next, with this sequence.
    Known(ClientId, u32),
    /// RECLAIM_COMPLETE is under way.
    Reclaiming,
    /// Requests go.
    Ready,
    /// DESTROY_SESSION, then DESTROY_CLIENTID, once nothing is under way.
    Closing,
    /// The end.
    Closed,
    /// The server gives no session.
    Refused(Status),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Handshake,
    /// Sends again what stands on a slot.
    Resend(u32),
    /// Puts a delayed request into the queue.
    Requeue(u64),
}

/// What is granted.
#[derive(Clone, Copy, Debug)]
struct Granted {
    session: SessionId,
    fore: Channel,
    has_back_channel: bool,
    persists: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    phase: Phase,
    is_connected: bool,
    xid: u32,
    next_id: u64,
    /// The client id of the newest EXCHANGE_ID, with the sequence of its next CREATE_SESSION.
    client: Option<(ClientId, u32)>,
    /// The client id that has sent RECLAIM_COMPLETE.
    reclaimed: Option<ClientId>,
    granted: Option<Granted>,
    slots: Slots,
    callbacks: Callbacks,
    attempts: u32,
    handshake: Option<Handshake>,
    /// A BIND_CONN_TO_SESSION that is under way, and whether the connection had one already.
    bind: Option<u32>,
    is_bound: bool,
    waiting: VecDeque<Pending>,
    delayed: BTreeMap<u64, Pending>,
    timers: BTreeSet<(Moment, Timer)>,
    sent: BTreeMap<u32, Sent>,
    outgoing: VecDeque<Message>,
    events: VecDeque<Event>,
    statistics: Statistics,
}

impl Session {
    /// A client that nobody knows yet. `xid` is the number of its first call: better another one at each start.
    pub fn new(identity: Identity, xid: u32) -> Self {
        Self {
            identity,
            phase: Phase::Unknown,
            is_connected: false,
            xid,
            next_id: 0,
            client: None,
            reclaimed: None,
            granted: None,
            slots: Slots::default(),
            callbacks: Callbacks::default(),
            attempts: 0,
            handshake: None,
            bind: None,
            is_bound: false,
            waiting: VecDeque::new(),
            delayed: BTreeMap::new(),
            timers: BTreeSet::new(),
            sent: BTreeMap::new(),
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            statistics: Statistics::default(),
        }
    }

    /// What happened so far; the shell counts its own part here too.
    pub fn statistics(&mut self) -> &mut Statistics {
        &mut self.statistics
    }

    /// Minor version that the client speaks.
    pub fn minor(&self) -> u32 {
        self.identity.minor
    }

    /// What the session grants, and whether it lasts beyond the server; none before there is one.
    pub fn limits(&self) -> Option<(Channel, bool)> {
        self.granted.map(|granted| (granted.fore, granted.persists))
    }

    /// True if another request can be taken.
    pub fn has_room(&self) -> bool {
        self.waiting.len() + self.delayed.len() < WAITING_MAX
    }

    /// True while an answer is expected from the server: silence means something.
    pub fn is_waiting_for_server(&self) -> bool {
        self.is_connected && (self.handshake.is_some() || self.bind.is_some() || !self.sent.is_empty())
    }

    /// True while somebody waits for a request to be completed.
    pub fn has_requests(&self) -> bool {
        let is_users = |pending: &Pending| matches!(pending.purpose, Purpose::User(_));
        !self.delayed.is_empty()
            || self.sent.values().any(|sent| is_users(&sent.pending))
            || self.waiting.iter().any(is_users)
    }

    /// Takes a request. It is completed by an [`Event::Completed`] with this number, once.
    pub fn submit(&mut self, request: Request) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        match self.phase {
            Phase::Refused(status) => self.complete(id, Err(RequestError::NoSession(status))),
            Phase::Closing | Phase::Closed => self.complete(id, Err(RequestError::Closed)),
            _ => {
                self.waiting.push_back(Pending::new(Purpose::User(id), request));
                self.pump();
            }
        }
        id
    }

    /// Keeps the lease, if nothing else does.
    pub fn renew(&mut self) {
        if self.phase == Phase::Ready && self.sent.is_empty() && self.waiting.is_empty() {
            self.waiting.push_back(Pending::new(Purpose::Renew, Request::new(self.identity.minor)));
            self.pump();
        }
    }

    /// Gives session and client id back, behind the requests that are under way.
    pub fn close(&mut self) {
        self.phase = match self.phase {
            Phase::Ready | Phase::Reclaiming if self.granted.is_some() => Phase::Closing,
            _ => Phase::Closed,
        };
        let never_sent = std::mem::take(&mut self.waiting);
        let delayed = std::mem::take(&mut self.delayed).into_values();
        for pending in never_sent.into_iter().chain(delayed) {
            self.give_up(pending, RequestError::Closed);
        }
        if self.phase == Phase::Closed {
            self.handshake = None;
            self.events.push_back(Event::Closed);
        }
        self.pump();
    }

    /// A connection is there. All that had no answer goes out again, in the order of the first time.
    pub fn connected(&mut self) {
        self.is_connected = true;
        self.is_bound = false;
        self.statistics.connections += 1;
        self.outgoing.clear();
        if let Some(handshake) = &self.handshake {
            self.outgoing.push_back(handshake.message.clone());
        } else if self.granted.is_some_and(|granted| granted.has_back_channel) {
            self.send_bind();
        }
        for sent in self.sent.values_mut() {
            sent.sends += 1;
            self.statistics.resent += 1;
            self.outgoing.push_back(sent.message.clone());
        }
        self.pump();
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
        self.bind = None;
        self.outgoing.clear();
    }

    /// The next message to send.
    pub fn next_outgoing(&mut self) -> Option<Message> {
        self.outgoing.pop_front()
    }

    /// The next thing that happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::on_time`] wants to be called.
    pub fn next_timer(&self) -> Option<Moment> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// It is later.
    pub fn on_time(&mut self, now: Moment) {
        while let Some((at, timer)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Handshake => {}
                Timer::Resend(xid) => {
                    if let Some(sent) = self.sent.get_mut(&xid)
                        && self.is_connected
                    {
                        sent.sends += 1;
                        self.outgoing.push_back(sent.message.clone());
                    }
                }
                Timer::Requeue(number) => {
                    if let Some(pending) = self.delayed.remove(&number) {
                        self.waiting.push_front(pending);
                    }
                }
            }
        }
        self.pump();
    }

    /// A message has come. Errors: the connection is to be closed.
    pub fn on_message(&mut self, message: Bytes, now: Moment) -> Result<(), Broken> {
        if !is_reply(&message) {
            self.on_call(message);
            self.pump();
            return Ok(());
        }
        let mut decoder = Decoder::new(message);
        let (xid, accepted) = reply::decode(&mut decoder)?;
        if self.handshake.as_ref().is_some_and(|handshake| handshake.xid == xid) {
            self.on_handshake(accepted.then_some(&mut decoder), now)?;
        } else if self.bind == Some(xid) {
            self.bind = None;
            self.on_bound(accepted.then_some(&mut decoder))?;
        } else if let Some(sent) = self.sent.remove(&xid) {
            self.on_answer(xid, sent, accepted.then_some(decoder), now);
        } else {
            // Answered already, over the connection before.
            self.statistics.unexpected += 1;
        }
        self.pump();
        Ok(())
    }

    fn on_call(&mut self, message: Bytes) {
        let mut notices = Vec::new();
        let session = self.granted.map(|granted| granted.session);
        let Some(answer) = self.callbacks.answer(session, message, &mut notices) else {
            self.statistics.unexpected += 1;
            return;
        };
        self.statistics.callbacks += 1;
        self.outgoing.push_back(vec![answer]);
        for notice in notices {
            match &notice {
                Notice::Recall(stateid, handle) if self.has_room() => {
                    let request = callback::return_of(self.identity.minor, *stateid, handle);
                    self.waiting.push_front(Pending::new(Purpose::Return, request));
                }
                Notice::RecallSlot(highest) => self.slots.set_target(*highest),
                _ => {}
            }
            self.events.push_back(Event::Told(notice));
        }
    }

    /// Sends what can be sent.
    fn pump(&mut self) {
        if !self.is_connected
            || self.handshake.is_some()
            || self.timers.iter().any(|(_, timer)| *timer == Timer::Handshake)
        {
            return;
        }
        match self.phase {
            Phase::Unknown => self.send_exchange_id(),
            Phase::Known(client, sequence) => self.send_create_session(client, sequence),
            Phase::Closing if self.sent.is_empty() => self.send_destroy(),
            Phase::Ready if self.slots.is_worn_out() => {
                self.begin_anew();
                self.pump();
            }
            Phase::Ready => {
                while self.slots.has_free()
                    && let Some(pending) = self.waiting.pop_front()
                {
                    self.put_on_slot(pending);
                }
            }
            _ => {}
        }
    }

    /// Sends a request on a free slot.
    fn put_on_slot(&mut self, pending: Pending) {
        let Some(granted) = self.granted else { return self.waiting.push_front(pending) };
        // SEQUENCE, its head, and the head of the call with a credential take less than this.
        let bytes = pending.bytes + self.head_bytes_max();
        if pending.operations.len() + 1 > granted.fore.operations_max as usize
            || bytes > granted.fore.request_bytes_max as usize
        {
            return self.give_up(pending, RequestError::TooBig);
        }
        let Some((slot, sequence)) = self.slots.take() else { return self.waiting.push_front(pending) };
        let xid = self.next_xid();
        let mut out = self.call(xid);
        out.opaque(b"");
        out.u32(pending.minor);
        out.u32(pending.operations.len() as u32 + 1);
        out.u32(op::SEQUENCE);
        let cached = pending.is_changing();
        put_sequence(&mut out, granted.session, sequence, (slot, self.slots.highest_busy()), cached);
        let mut message = out.finish();
        message.extend(pending.body.iter().cloned());
        self.outgoing.push_back(message.clone());
        self.sent.insert(xid, Sent { pending, slot, sequence, message, sends: 1 });
    }

    fn head_bytes_max(&self) -> usize {
        let credential = &self.identity.credential;
        // 10 words of RPC, 5 of AUTH_SYS, 3 of the compound, 9 of SEQUENCE, and padding.
        128 + credential.machine.len() + 4 * credential.groups.len()
    }

    fn next_xid(&mut self) -> u32 {
        let xid = self.xid;
        self.xid = xid.wrapping_add(1);
        xid
    }

    /// The head of a call.
    fn call(&self, xid: u32) -> Encoder {
        let mut out = Encoder::new();
        Call {
            xid,
            program: number::PROGRAM,
            version: number::VERSION,
            procedure: number::PROCEDURE_COMPOUND,
            credential: Credential::Sys(self.identity.credential.clone()),
        }
        .encode(&mut out);
        out
    }

    fn complete(&mut self, id: RequestId, result: Result<Reply, RequestError>) {
        if result.is_ok() {
            self.statistics.answered += 1;
        }
        self.events.push_back(Event::Completed(id, result));
    }

    /// Tells whoever waits for it; nobody waits for requests of our own.
    fn give_up(&mut self, pending: Pending, why: RequestError) {
        if let Purpose::User(id) = pending.purpose {
            self.complete(id, Err(why));
        }
    }

    /// Puts a request again, later. Each time it waits longer.
    fn put_later(&mut self, mut pending: Pending, now: Moment) {
        let pause = pause_ms(pending.delays);
        pending.delays += 1;
        self.statistics.delayed += 1;
        let number = self.next_id;
        self.next_id += 1;
        self.delayed.insert(number, pending);
        self.timers.insert((now.plus(pause), Timer::Requeue(number)));
    }
}

fn pause_ms(times: u32) -> u64 {
    (DELAY_FIRST_MS << times.min(DELAY_DOUBLINGS)).min(DELAY_LAST_MS)
}

impl Pending {
    fn new(purpose: Purpose, request: Request) -> Self {
        let bytes = request.body.len();
        let Request { minor, operations, body } = request;
        Self { purpose, minor, operations, body: body.finish(), bytes, delays: 0 }
    }

    fn is_changing(&self) -> bool {
        self.operations.iter().any(|(_, changing)| *changing)
    }

    /// The numbers of its operations, with the SEQUENCE before them.
    fn asked(&self) -> Vec<u32> {
        std::iter::once(op::SEQUENCE).chain(self.operations.iter().map(|(number, _)| *number)).collect()
    }
}

#[cfg(test)]
mod tests;
