//! What the answer to a request means for its slot and for the session (RFC 8881 §2.10.6.1, §18.46.3), and whether the request is
//! completed by it.

use super::{DELAYS_MAX, Moment, Pending, Phase, Purpose, RequestError, Sent, Session, Timer, pause_ms};
use crate::client::number;
use crate::client::number::operation as op;
use crate::client::result::{Failure, Outcome, Reply, Sequenced};
use crate::v4::status::Status;
use crate::xdr::{Decoder, XdrError};

impl Session {
    /// The answer to what stands on a slot; none if RPC has refused the call.
    pub(super) fn on_answer(&mut self, xid: u32, sent: Sent, decoder: Option<Decoder>, now: Moment) {
        let Some(mut decoder) = decoder else {
            self.slots.released(sent.slot);
            return self.give_up_reclaim_too(sent.pending, RequestError::Rejected);
        };
        let mut reply = match Reply::decode(&mut decoder, &sent.pending.asked()) {
            Ok(reply) => reply,
            Err(error) => return self.garbled(sent, error),
        };
        let first = match reply.outcomes.first() {
            Some(Outcome::Sequenced(first)) => *first,
            _ => return self.on_refused(xid, sent, reply, now),
        };
        if !self.is_of(&sent, &first) {
            return self.garbled(sent, XdrError::BadValue { of: "the slot's sequence", value: first.sequence });
        }
        // The caller did not ask for it.
        reply.outcomes.remove(0);
        self.slots.answered(sent.slot);
        self.slots.set_target(first.target_highest_slot);
        let is_down = number::STATUS_CALLBACK_PATH_DOWN | number::STATUS_CALLBACK_PATH_DOWN_SESSION;
        if first.status_flags & is_down != 0 && self.granted.is_some_and(|granted| granted.has_back_channel) {
            self.send_bind();
        }
        match &reply.failure {
            Some(failure) if can_be_put_again(&sent.pending, failure) => self.put_later(sent.pending, now),
            _ => self.on_done(sent.pending, reply),
        }
    }

    fn is_of(&self, sent: &Sent, first: &Sequenced) -> bool {
        let is_session = self.granted.is_some_and(|granted| granted.session == first.session);
        is_session && (first.slot, first.sequence) == (sent.slot, sent.sequence)
    }

    fn on_done(&mut self, pending: Pending, reply: Reply) {
        match pending.purpose {
            Purpose::User(id) => {
                self.attempts = 0;
                self.complete(id, Ok(reply));
            }
            Purpose::Reclaim => {
                // One that was said before is said (RFC 8881 §18.51.3, NFS4ERR_COMPLETE_ALREADY).
                self.reclaimed = self.client.map(|(client, _)| client);
                if self.phase == Phase::Reclaiming {
                    self.phase = Phase::Ready;
                }
            }
            Purpose::Renew | Purpose::Return => self.attempts = 0,
        }
    }

    /// SEQUENCE itself failed, or nothing was looked at.
    fn on_refused(&mut self, xid: u32, sent: Sent, reply: Reply, now: Moment) {
        let status = reply.failure.as_ref().map_or(Status::ServerFault, |failure| failure.status);
        let is_first = reply.failure.as_ref().is_some_and(|failure| failure.number == op::SEQUENCE);
        match status {
            Status::BadSession | Status::DeadSession if is_first => {
                // This one was not done now; whether it was when it was sent the first time, nobody knows.
                let may_be_done = sent.sends > 1;
                self.begin_anew();
                self.put_again(sent.pending, may_be_done);
            }
            Status::Delay if is_first && sent.pending.delays < DELAYS_MAX => {
                let mut sent = sent;
                let pause = pause_ms(sent.pending.delays);
                sent.pending.delays += 1;
                self.statistics.delayed += 1;
                self.timers.insert((now.plus(pause), Timer::Resend(xid)));
                self.sent.insert(xid, sent);
            }
            Status::RetryUncachedReply if is_first => {
                self.slots.answered(sent.slot);
                self.put_again(sent.pending, true);
            }
            // Too large, or of another version: the slot does not know of it (§2.10.6.1, §18.46.3).
            Status::RequestTooBig
            | Status::TooManyOperations
            | Status::ReplyTooBig
            | Status::ReplyTooBigToCache
            | Status::MinorVersionMismatch
            | Status::BadXdr => {
                self.slots.released(sent.slot);
                self.on_failed(sent.pending, reply);
            }
            _ => {
                self.slots.retire(sent.slot);
                self.on_failed(sent.pending, reply);
            }
        }
    }

    fn on_failed(&mut self, pending: Pending, reply: Reply) {
        match pending.purpose {
            Purpose::User(id) => self.complete(id, Ok(reply)),
            _ => self.give_up_reclaim_too(pending, RequestError::Rejected),
        }
    }

    /// What the server thinks of the slot cannot be known.
    fn garbled(&mut self, sent: Sent, error: XdrError) {
        self.slots.retire(sent.slot);
        self.give_up_reclaim_too(sent.pending, RequestError::Garbled(error));
    }

    /// Without RECLAIM_COMPLETE the session is good for nothing.
    fn give_up_reclaim_too(&mut self, pending: Pending, why: RequestError) {
        match pending.purpose {
            Purpose::Reclaim => self.begin_anew(),
            _ => self.give_up(pending, why),
        }
    }
}

/// The server wants it to come later, and nothing that was done before the refusal would be done twice.
fn can_be_put_again(pending: &Pending, failure: &Failure) -> bool {
    let is_asked = matches!(failure.status, Status::Delay | Status::Grace) && pending.delays < DELAYS_MAX;
    // The place counts SEQUENCE, the list does not.
    let done = failure.index.saturating_sub(1);
    is_asked && !pending.operations.iter().take(done).any(|(_, changing)| *changing)
}
