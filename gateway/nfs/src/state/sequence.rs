//! SEQUENCE (RFC 8881 §18.46), and what becomes of the request that it leads. What a request is, is decided by
//! [`super::slot::judge`]; here are the slots in use, which live in memory only.
//!
//! The way of a request: [`Clients::sequence`] says [`Outcome::Execute`] or [`Outcome::ReplayPartly`]. In the operation that
//! changes something, [`Clients::finish_changing`] puts the result so far beside the change; more than once, if it changes in
//! several transactions. When all of that is durable, or without it if nothing was changed, [`Clients::finish`] ends it,
//! whatever has become of it. Retries that come before are parked by the caller, who asks again after `finish`; the newest of
//! a slot is enough, since a client that sent another one gave up the connection of the former.

use std::collections::BTreeMap;

use bytes::Bytes;
use thiserror::Error;

use crate::ids::{Moment, SessionId};
use crate::state::back_channel::BackChannel;
use crate::state::clients::Clients;
use crate::state::slot::{self, Reply, SlotRecord, SlotState, Verdict};
use crate::v4::status::Status;

/// `SEQ4_STATUS_CB_PATH_DOWN`: no session of the client has a connection for callbacks.
pub const STATUS_CALLBACK_PATH_DOWN: u32 = 0x1;
/// `SEQ4_STATUS_CB_PATH_DOWN_SESSION`: this session has none. A client that sees it binds one.
pub const STATUS_CALLBACK_PATH_DOWN_SESSION: u32 = 0x200;
/// The longest reply that is kept in memory because the caller wants it.
pub const KEPT_REPLY_BYTES_MAX: usize = 4_096;

/// What SEQUENCE says, and the digest of what follows ([`slot::digest`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The session.
    pub session: SessionId,
    /// The slot.
    pub slot: u32,
    /// The slot's sequence.
    pub sequence: u32,
    /// The highest slot that the client uses now.
    pub highest_slot: u32,
    /// Of arguments and user.
    pub digest: u64,
}

/// What SEQUENCE answers beside what it was asked with, and what holds for the compound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The highest slot, `sr_highest_slotid` and `sr_target_highest_slotid`: it never changes.
    pub highest_slot: u32,
    /// `sr_status_flags`; whoever knows of state that was revoked adds to it.
    pub status_flags: u32,
    /// Bytes of the whole reply, RPC header included; beyond, [`Status::ReplyTooBig`].
    pub reply_bytes_max: u32,
    /// The same if the client wants it kept; beyond, [`Status::ReplyTooBigToCache`].
    pub cached_reply_bytes_max: u32,
    /// True if the compound is to be recorded even if it changes nothing, by [`Clients::finish_unchanged`].
    pub wants_record: bool,
}

/// What is to be done with a compound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Execute it.
    Execute(Granted),
    /// It was executed: answer this.
    Replay(Bytes),
    /// Its first operations were executed: go on behind them, with these results before the others.
    ReplayPartly(Reply, Granted),
    /// It is being executed: ask again after [`Clients::finish`].
    Park,
    /// Answer SEQUENCE with this, and nothing else.
    Refuse(Status),
}

/// How retries were answered since the service began on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replays {
    /// With the reply that the slot keeps in memory.
    pub kept: u64,
    /// With the reply that was recorded beside what it tells of.
    pub recorded: u64,
    /// By doing the rest of what was recorded in part.
    pub continued: u64,
}

/// Why a result is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FinishError {
    /// The session was destroyed, or its client dropped, while the request was executed.
    #[error("the session is gone")]
    SessionGone,
    /// The result has more than [`slot::RESULT_BYTES_MAX`] or [`slot::RESUME_BYTES_MAX`]. The caller refuses an operation
    /// that changes something ([`Status::ReplyTooBigToCache`]) before its result makes that happen.
    #[error("the result is too large for a record")]
    TooLarge,
}

/// A session in memory.
#[derive(Debug, Default)]
pub(super) struct LiveSession {
    /// Slots that are not among those below were not used since the takeover, rather than never.
    taken_over: bool,
    slots: BTreeMap<u32, SlotState>,
    pub(super) back: BackChannel,
    /// The minor version of the protocol that its client speaks, once it was heard.
    pub(super) minor: Option<u32>,
}

impl LiveSession {
    pub(super) fn taken_over() -> Self {
        Self { taken_over: true, ..Self::default() }
    }

    pub(super) fn is_in_progress(&self) -> bool {
        self.slots.values().any(|state| matches!(state, SlotState::InProgress { .. }))
    }

    /// The sequence that a slot is at, if it was used.
    pub(super) fn current(&self, slot: u32) -> Option<u32> {
        match self.slots.get(&slot)? {
            SlotState::InProgress { sequence, .. } | SlotState::Done { sequence, .. } => Some(*sequence),
            SlotState::Fresh | SlotState::TakenOver => None,
        }
    }

    fn slot(&self, slot: u32) -> SlotState {
        let unused = if self.taken_over { SlotState::TakenOver } else { SlotState::Fresh };
        self.slots.get(&slot).cloned().unwrap_or(unused)
    }
}

impl Clients {
    /// SEQUENCE. A request that is not refused renews the lease. Refusals: [`Status::BadSession`], [`Status::DeadSession`],
    /// [`Status::BadSlot`], [`Status::BadHighSlot`], [`Status::SequenceMisordered`], [`Status::SequenceFalseRetry`]; never
    /// [`Status::Delay`], for which Linux waits 15 s, nor [`Status::RetryUncachedReply`].
    pub fn sequence(&mut self, now: Moment, request: &Sequence) -> Outcome {
        let fore = match self.session(request.session) {
            Ok(session) => session.fore,
            Err(status) => return Outcome::Refuse(status),
        };
        if request.slot >= fore.requests_max {
            return Outcome::Refuse(Status::BadSlot);
        }
        if request.highest_slot >= fore.requests_max {
            return Outcome::Refuse(Status::BadHighSlot);
        }
        let Sequence { session: SessionId { client, number }, slot, sequence, digest, .. } = *request;
        let record = self.slots.get(&(number, slot));
        let live = self.live.entry(number).or_default();
        let verdict = slot::judge(&live.slot(slot), record, sequence, digest);
        let wants_record = slot::wants_record(record, sequence);
        let recorded = record.map(|record| record.reply.clone()).filter(|_| verdict == Verdict::Recorded);
        let was_kept = matches!(verdict, Verdict::Kept(_));
        let answer = match (verdict, &recorded) {
            (Verdict::Misordered, _) => return Outcome::Refuse(Status::SequenceMisordered),
            (Verdict::FalseRetry, _) => return Outcome::Refuse(Status::SequenceFalseRetry),
            (Verdict::Park, _) => return Outcome::Park,
            (Verdict::Kept(reply), _) => Some(reply),
            (_, Some(recorded)) if recorded.complete => Some(recorded.result.clone()),
            _ => None,
        };
        self.leases.renew(client, now);
        if let Some(reply) = answer {
            // Settles a slot at its first use.
            live.slots.insert(slot, SlotState::Done { sequence, digest, reply: Some(reply.clone()) });
            let count = if was_kept { &mut self.replays.kept } else { &mut self.replays.recorded };
            *count += 1;
            return Outcome::Replay(reply);
        }
        live.slots.insert(slot, SlotState::InProgress { sequence, digest });
        let granted = Granted {
            highest_slot: fore.requests_max - 1,
            status_flags: self.status_flags(request.session),
            reply_bytes_max: fore.reply_bytes_max,
            cached_reply_bytes_max: fore.cached_reply_bytes_max,
            wants_record,
        };
        match recorded.filter(|recorded| recorded.operations_done > 0) {
            Some(recorded) => {
                self.replays.continued += 1;
                Outcome::ReplayPartly(recorded, granted)
            }
            None => Outcome::Execute(granted),
        }
    }

    /// How retries were answered.
    pub fn replays(&self) -> Replays {
        self.replays
    }

    /// Records what a request has changed and answered so far, beside the change itself. It stays in progress until
    /// [`Self::finish`]. Errors: as [`FinishError`] says; then nothing is recorded.
    pub fn finish_changing(&mut self, session: SessionId, slot: u32, reply: Reply) -> Result<(), FinishError> {
        let live = self.live.get(&session.number).filter(|_| self.sessions.contains(&session));
        let state = live.and_then(|live| live.slots.get(&slot));
        let Some(&SlotState::InProgress { sequence, digest }) = state else { return Err(FinishError::SessionGone) };
        if !reply.fits() {
            return Err(FinishError::TooLarge);
        }
        self.slots.insert((session.number, slot), SlotRecord { sequence, digest, reply });
        Ok(())
    }

    /// Records the sequence of a request that changed nothing, so that a takeover knows about where the slot is. A retry runs
    /// again. Errors: [`FinishError::SessionGone`].
    pub fn finish_unchanged(&mut self, session: SessionId, slot: u32) -> Result<(), FinishError> {
        self.finish_changing(session, slot, Reply::default())
    }

    /// A request has ended: what it changed is durable, or it changed nothing, or it was given up before it did. The whole
    /// reply may be kept in memory; without it, a retry is answered from the record, or executed again if there is none.
    pub fn finish(&mut self, session: SessionId, slot: u32, reply: Option<Bytes>) {
        let state = self.live.get_mut(&session.number).and_then(|live| live.slots.get_mut(&slot));
        let Some(state) = state else { return };
        if let SlotState::InProgress { sequence, digest } = *state {
            let reply = reply.filter(|reply| reply.len() <= KEPT_REPLY_BYTES_MAX);
            *state = SlotState::Done { sequence, digest, reply };
        }
    }

    /// The flags of a session whose back channel has no connection.
    fn status_flags(&self, session: SessionId) -> u32 {
        let is_down = |number: u64| self.live.get(&number).is_none_or(|live| live.back.connection().is_none());
        let wants = self.sessions.get(&session).is_some_and(|session| session.wants_callbacks);
        if !wants || !is_down(session.number) {
            return 0;
        }
        match self.sessions_of(session.client).all(|(other, _)| is_down(other.number)) {
            true => STATUS_CALLBACK_PATH_DOWN_SESSION | STATUS_CALLBACK_PATH_DOWN,
            false => STATUS_CALLBACK_PATH_DOWN_SESSION,
        }
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
