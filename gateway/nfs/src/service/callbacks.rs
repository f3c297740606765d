//! Callbacks (RFC 8881 §2.10.3.1, §20): what waits for clients is told to them, as many at once as their sessions have slots.
//!
//! A connection that is bound to a back channel is called with a call that says nothing first; only who answers that is relied on,
//! gets delegations, and is told anything. A callback's sequence is durable before it is sent; one whose answer is not known is
//! followed by a probe on its slot (`state/back_channel.rs`). Whoever does not answer as it should loses the connection's binding:
//! SEQUENCE tells it so until it binds one again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use block_device::BlockDevice;
use bytes::Bytes;
use filesystem::engine::Failure;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tracing::debug;

use super::paths::Paths;
use super::{Gone, Service};
use crate::ids::{ClientId, Moment, SessionId};
use crate::state::back_channel::{CallbackEnd, CallbackTurn, ConnectionId};
use crate::state::callbacks::{Due, Message, Outbox, Waiting};
use crate::state::holder::Holder;
use crate::state::waiters::Wanted;
use crate::v4::callback::{self, Answer, NoAnswer, Operation};
use crate::v4::status::{self, Status};

/// Callbacks of all clients that are under way.
const CALLBACKS_MAX: usize = 2_048;
/// Those of one client: whoever does not answer holds up few others.
const CALLBACKS_PER_CLIENT_MAX: usize = 16;

/// What is to be told to clients, and who waits for what comes of it.
#[derive(Default)]
pub(super) struct Callbacks {
    pub(super) paths: Paths,
    pub(super) outbox: RefCell<Outbox>,
    /// Sessions with another connection for callbacks.
    unproven: RefCell<BTreeSet<SessionId>>,
    /// Calls that are under way.
    calls: RefCell<BTreeMap<ClientId, usize>>,
    /// There may be something to tell, or a way to tell it.
    pub(super) wake: Notify,
    /// There are fewer delegations than before.
    pub(super) given_back: Notify,
    /// Requests that wait for delegations to be given back, by client.
    pub(super) parked: RefCell<BTreeMap<Option<ClientId>, usize>>,
}

/// A call that is to be made.
enum Job {
    /// To learn whether the client answers.
    Null(SessionId, ConnectionId),
    /// Something that it is told, or a probe.
    Turn { session: SessionId, connection: ConnectionId, turn: CallbackTurn, waiting: Option<Waiting> },
}

impl Job {
    fn client(&self) -> ClientId {
        match self {
            Self::Null(session, _) | Self::Turn { session, .. } => session.client,
        }
    }
}

impl Callbacks {
    fn has_room(&self, client: ClientId) -> bool {
        self.calls.borrow().get(&client).is_none_or(|calls| *calls < CALLBACKS_PER_CLIENT_MAX)
    }

    /// Takes a session whose connection is another than before.
    fn next_unproven(&self) -> Option<SessionId> {
        let mut unproven = self.unproven.borrow_mut();
        let next = unproven.iter().find(|session| self.has_room(session.client)).copied()?;
        unproven.remove(&next);
        Some(next)
    }

    fn begun(&self, client: ClientId) {
        *self.calls.borrow_mut().entry(client).or_insert(0) += 1;
    }

    fn ended(&self, client: ClientId) {
        let mut calls = self.calls.borrow_mut();
        match calls.get_mut(&client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(calls.remove(&client)),
        }
    }
}

impl<D: BlockDevice + 'static> Service<D> {
    /// A connection is there: calls to the client go out over it as replies do.
    pub fn connection_opened(&self, connection: ConnectionId, calls: mpsc::Sender<Vec<Bytes>>) {
        self.callbacks.paths.open(connection, calls);
    }

    /// A connection is no more.
    pub fn connection_closed(&self, connection: ConnectionId) {
        self.callbacks.paths.close(connection);
        self.connections.borrow_mut().closed(connection);
        self.recorder.count(|counters| counters.connection_ended(connection));
        // There may be other ones for what waits.
        let carried = self.state().clients.connection_closed(connection);
        carried.into_iter().for_each(|session| self.channel_bound(session));
    }

    /// The client has answered a call. False if nobody has asked.
    pub fn answered(&self, connection: ConnectionId, message: Bytes) -> bool {
        self.callbacks.paths.answer(connection, message)
    }

    /// Tells clients what they are to be told, for as long as it is polled. Gives why it cannot be done any more.
    pub async fn deliver(&self) -> Gone {
        let mut under_way = FuturesUnordered::new();
        loop {
            let mut next = Due::Never;
            while under_way.len() < CALLBACKS_MAX {
                match self.next_callback() {
                    Ok(job) => {
                        self.callbacks.begun(job.client());
                        under_way.push(self.call_back(job));
                    }
                    Err(due) => {
                        next = due;
                        break;
                    }
                }
            }
            let pause = match next {
                Due::At(moment) => Some(Duration::from_millis(moment.since((self.world.moment)()).max(1))),
                Due::Now | Due::Never => None,
            };
            tokio::select! {
                () = self.callbacks.wake.notified() => {}
                Some(ended) = under_way.next(), if !under_way.is_empty() => {
                    if let Err(gone) = ended {
                        return gone;
                    }
                }
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
    }

    /// Another connection than before carries a session's back channel.
    pub(super) fn channel_bound(&self, session: SessionId) {
        self.callbacks.unproven.borrow_mut().insert(session);
        self.callbacks.wake.notify_one();
    }

    /// Those who wait for locks may ask again. Whoever cannot be called asks by itself after a while.
    pub(super) fn wake(&self, woken: Vec<Wanted>) {
        let moment = (self.world.moment)();
        let (of_hosts, of_clients) = woken.into_iter().partition(|wanted: &Wanted| wanted.holder.host().is_some());
        self.note_woken(of_hosts);
        for Wanted { file, holder, .. } in of_clients {
            if let Holder::V4 { client, owner } = holder
                && self.state().clients.is_called_back(client)
            {
                self.callbacks.outbox.borrow_mut().push(client, Message::LockMayBeFree(file, owner), moment);
                self.callbacks.wake.notify_one();
            }
        }
    }

    /// Takes the next call that can be made; without one, says when there may be one.
    fn next_callback(&self) -> Result<Job, Due> {
        let moment = (self.world.moment)();
        let mut state = self.state();
        while let Some(session) = self.callbacks.next_unproven() {
            match state.clients.callback_connection(session) {
                Some((connection, false)) => return Ok(Job::Null(session, connection)),
                Some((_, true)) => self.callbacks.outbox.borrow_mut().resume(session.client),
                None => {}
            }
        }
        let mut outbox = self.callbacks.outbox.borrow_mut();
        let mut first: Option<Moment> = None;
        for client in outbox.clients().into_iter().filter(|client| self.callbacks.has_room(*client)) {
            let is_wanted = |message: &Message| match message {
                Message::Recall(delegated) => state.files.is_delegated(delegated.number),
                Message::RecallAny(_) | Message::LockMayBeFree(..) => true,
            };
            while outbox.peek(client, moment).is_some_and(|message| !is_wanted(message)) {
                outbox.pop(client, moment);
            }
            match outbox.due(client, moment) {
                Due::Now => {}
                Due::At(at) => {
                    first = Some(first.map_or(at, |first| first.min(at)));
                    continue;
                }
                Due::Never => continue,
            }
            let Some((session, connection, turn)) = state.clients.begin_callback_to(client) else { continue };
            let waiting = if turn.is_probe { None } else { outbox.pop(client, moment) };
            return Ok(Job::Turn { session, connection, turn, waiting });
        }
        Err(first.map_or(Due::Never, Due::At))
    }

    async fn call_back(&self, job: Job) -> Result<(), Gone> {
        let client = job.client();
        let ended = match job {
            Job::Null(session, connection) => {
                self.prove(session, connection).await;
                Ok(())
            }
            Job::Turn { session, connection, turn, waiting } => {
                self.take_turn(session, connection, turn, waiting).await
            }
        };
        self.callbacks.ended(client);
        ended
    }

    /// Learns whether the client answers.
    async fn prove(&self, session: SessionId, connection: ConnectionId) {
        let Some(head) = self.state().clients.callback_head(session) else { return };
        let answer = self.callbacks.paths.call(connection, |xid| callback::null(xid, &head)).await;
        let answers = answer.is_some_and(|answer| callback::decode_null(answer).is_ok());
        let mut state = self.state();
        match answers {
            true => {
                state.clients.callback_answered(session, connection);
                self.callbacks.outbox.borrow_mut().resume(session.client);
            }
            false => {
                debug!(session = session.number, connection = connection.0, "the client cannot be called");
                state.clients.callback_failed(session, connection);
                self.channel_bound(session);
            }
        }
    }

    /// Makes a call on a slot. Errors: nothing can be recorded any more.
    async fn take_turn(
        &self,
        session: SessionId,
        connection: ConnectionId,
        turn: CallbackTurn,
        waiting: Option<Waiting>,
    ) -> Result<(), Gone> {
        let operation = waiting.as_ref().map(|waiting| operation(&waiting.message, session.client));
        let is_recorded = self.record_turn(session, turn).await?;
        let head = self.state().clients.callback_head(session).filter(|_| is_recorded);
        let Some(head) = head else {
            self.state().clients.end_callback(session, turn.slot, CallbackEnd::Unanswered);
            let moment = (self.world.moment)();
            self.callbacks.outbox.borrow_mut().failed(session.client, waiting, moment);
            return Ok(());
        };
        let volume = self.facts.volume;
        let call = |xid| callback::compound(xid, &head, session, turn, (volume, operation.as_ref()));
        let began = Instant::now();
        let message = self.callbacks.paths.call(connection, call).await;
        let answer = message.map(|message| callback::decode(message, session, turn, operation.as_ref()));
        if let (Some(operation), Some(Ok(Answer { operation: Some(done), .. }))) = (&operation, &answer) {
            self.called_back(operation.number(), done.err().map_or(status::OK, Status::code), began.elapsed());
        }
        self.end_turn(session, connection, turn, waiting, answer);
        Ok(())
    }

    /// Makes a callback's sequence durable. False if it cannot be, and the call is not to be made. Errors: nothing can be.
    async fn record_turn(&self, session: SessionId, turn: CallbackTurn) -> Result<bool, Gone> {
        if turn.is_probe {
            return Ok(true);
        }
        match self.change(|_, state| Ok(state.clients.record_callback(session, turn))).await {
            Ok((is_there, pending)) => {
                self.files.kept(pending).await.map_err(Gone)?;
                Ok(is_there)
            }
            Err(Failure::Device(error)) => Err(Gone(Failure::Device(error))),
            Err(_) => Ok(false),
        }
    }

    fn end_turn(
        &self,
        session: SessionId,
        connection: ConnectionId,
        turn: CallbackTurn,
        waiting: Option<Waiting>,
        answer: Option<Result<Answer, NoAnswer>>,
    ) {
        let (client, moment) = (session.client, (self.world.moment)());
        let clients = &mut self.state().clients;
        let mut outbox = self.callbacks.outbox.borrow_mut();
        match answer {
            Some(Ok(Answer { sequence: Ok(()), operation })) => {
                clients.end_callback(session, turn.slot, CallbackEnd::Answered);
                outbox.told(client);
                // A recall that comes before the answer to its OPEN finds nothing there yet.
                let is_done = operation.is_some_and(|done| done.is_ok());
                if let Some(waiting) = waiting
                    && !is_done
                    && matches!(waiting.message, Message::Recall(_))
                {
                    outbox.put_off(client, waiting, moment);
                }
            }
            Some(Ok(Answer { sequence: Err(status), .. })) => {
                debug!(session = session.number, slot = turn.slot, "a callback was refused: {status}");
                clients.end_callback(session, turn.slot, CallbackEnd::Refused(status));
                // A probe that says where the client is has done its work.
                match turn.is_probe && clients.is_settled(session, turn.slot) {
                    true => outbox.told(client),
                    false => outbox.failed(client, waiting, moment),
                }
            }
            Some(Err(_)) | None => {
                debug!(session = session.number, slot = turn.slot, "a callback has no answer");
                clients.end_callback(session, turn.slot, CallbackEnd::Unanswered);
                clients.callback_failed(session, connection);
                self.channel_bound(session);
                outbox.failed(client, waiting, moment);
            }
        }
    }
}

/// What is said for a message.
fn operation(message: &Message, client: ClientId) -> Operation {
    match message {
        Message::Recall(delegated) => Operation::Recall(delegated.stateid, delegated.file),
        Message::RecallAny(keep) => Operation::RecallAny(*keep),
        Message::LockMayBeFree(file, owner) => Operation::NotifyLock(*file, client, owner.clone()),
    }
}
