//! The back channel of a session (RFC 8881 §2.10.3.1): which connections carry it, and its slots, on which the server is the one
//! who counts.
//!
//! A callback's sequence is recorded before the callback is sent. So of a slot whose newest callback had no answer, because its
//! connection broke or because of a takeover, the client has seen the recorded sequence or the one before it. A CB_SEQUENCE
//! alone with the recorded sequence, a probe, settles that: executed or recognised, the client is at it then. Only then the slot
//! carries callbacks again: a callback that was sent in the probe's place might get the answer of the one before.

use std::collections::BTreeMap;

use crate::state::record::Payload;
use crate::v4::status::Status;
use crate::xdr::{Decoder, Encoder, XdrError};

/// Connections that carry one back channel; of more, the one that was bound first is let go.
pub const CONNECTIONS_MAX: usize = 16;

/// A connection of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// The record of a slot: the sequence of the newest callback that may have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackSlot(pub u32);

/// A callback that may be sent, once the records are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackTurn {
    /// Its slot.
    pub slot: u32,
    /// Its sequence.
    pub sequence: u32,
    /// Only CB_SEQUENCE is to be sent, to learn where the client is.
    pub is_probe: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackEnd {
    /// CB_SEQUENCE succeeded.
    Answered,
    /// CB_SEQUENCE failed.
    Refused(Status),
    /// No answer will come.
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotUse {
    /// The client is at the recorded sequence.
    Settled,
    /// The client is at the recorded sequence or the one before it.
    Doubtful,
    InFlight {
        is_probe: bool,
    },
    /// The client is elsewhere.
    Broken,
}

/// A connection that carries a back channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    connection: ConnectionId,
    /// The client has answered a call over it.
    is_proven: bool,
}

/// A back channel in memory.
#[derive(Clone, Debug, Default)]
pub struct BackChannel {
    connections: Vec<Bound>,
    slots: BTreeMap<u32, SlotUse>,
}

impl BackChannel {
    /// The connection carries it from now on.
    pub fn bind(&mut self, connection: ConnectionId) {
        let is_proven = self.connections.iter().any(|bound| bound.connection == connection && bound.is_proven);
        self.unbind(connection);
        if self.connections.len() == CONNECTIONS_MAX {
            self.connections.remove(0);
        }
        self.connections.push(Bound { connection, is_proven });
    }

    /// The client answers calls over this connection, if it is bound.
    pub fn prove(&mut self, connection: ConnectionId) {
        self.connections
            .iter_mut()
            .filter(|bound| bound.connection == connection)
            .for_each(|bound| bound.is_proven = true);
    }

    /// The connection does not carry it any more. True if it did.
    pub fn unbind(&mut self, connection: ConnectionId) -> bool {
        let before = self.connections.len();
        self.connections.retain(|bound| bound.connection != connection);
        self.connections.len() < before
    }

    /// The connection that was bound last; callbacks go there.
    pub fn connection(&self) -> Option<ConnectionId> {
        self.connections.last().map(|bound| bound.connection)
    }

    /// True if the client has answered over that connection.
    pub fn is_proven(&self) -> bool {
        self.connections.last().is_some_and(|bound| bound.is_proven)
    }

    /// True if the client is known to be at the recorded sequence of a slot.
    pub fn is_settled(&self, slot: u32) -> bool {
        self.slots.get(&slot) == Some(&SlotUse::Settled)
    }

    /// True if the client is elsewhere on every slot: nothing can be told to it by this channel.
    pub fn is_broken(&self, slots: u32) -> bool {
        (0..slots).all(|slot| self.slots.get(&slot) == Some(&SlotUse::Broken))
    }

    /// Takes a slot out of `slots` for a callback, rather one that needs no probe; `recorded` is what the records say. None
    /// while no connection is bound, and when all slots are in use.
    pub fn take(&mut self, slots: u32, recorded: impl Fn(u32) -> u32) -> Option<CallbackTurn> {
        self.connection()?;
        let with = |wanted: SlotUse| (0..slots).find(|slot| self.of(*slot, recorded(*slot)) == wanted);
        let (slot, is_probe) = match with(SlotUse::Settled) {
            Some(slot) => (slot, false),
            None => (with(SlotUse::Doubtful)?, true),
        };
        self.slots.insert(slot, SlotUse::InFlight { is_probe });
        let recorded = recorded(slot);
        Some(CallbackTurn { slot, sequence: if is_probe { recorded } else { recorded.wrapping_add(1) }, is_probe })
    }

    /// A callback has ended.
    pub fn end(&mut self, slot: u32, end: CallbackEnd, recorded: Option<u32>) {
        let Some(SlotUse::InFlight { is_probe }) = self.slots.get(&slot).copied() else { return };
        let seen = [Status::RetryUncachedReply, Status::SequenceFalseRetry];
        let next = match end {
            CallbackEnd::Answered => SlotUse::Settled,
            // The client knows the sequence, though not what came with it.
            CallbackEnd::Refused(status) if is_probe && seen.contains(&status) => SlotUse::Settled,
            CallbackEnd::Refused(Status::SequenceMisordered) if is_probe => SlotUse::Broken,
            // Nothing was ever recorded, so nothing was sent.
            _ if recorded.is_none() => SlotUse::Settled,
            CallbackEnd::Refused(_) | CallbackEnd::Unanswered => SlotUse::Doubtful,
        };
        self.slots.insert(slot, next);
    }

    fn of(&self, slot: u32, recorded: u32) -> SlotUse {
        let before = if recorded == 0 { SlotUse::Settled } else { SlotUse::Doubtful };
        self.slots.get(&slot).copied().unwrap_or(before)
    }
}

impl Payload for CallbackSlot {
    const VERSION: u32 = 1;

    fn encode(&self, into: &mut Encoder) {
        into.u32(self.0);
    }

    fn decode(from: &mut Decoder) -> Result<Self, XdrError> {
        from.u32().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> BackChannel {
        let mut channel = BackChannel::default();
        channel.bind(ConnectionId(1));
        channel
    }

    #[test]
    fn callbacks_wait_for_a_connection_and_take_one_slot_each() {
        assert_eq!(BackChannel::default().take(4, |_| 0), None);
        let mut channel = bound();
        for slot in 0..2 {
            assert_eq!(channel.take(2, |_| 0), Some(CallbackTurn { slot, sequence: 1, is_probe: false }));
        }
        assert_eq!(channel.take(2, |_| 0), None, "all slots are in use");
        channel.end(1, CallbackEnd::Answered, Some(1));
        assert_eq!(channel.take(2, |_| 1), Some(CallbackTurn { slot: 1, sequence: 2, is_probe: false }));
    }

    #[test]
    fn a_slot_in_doubt_is_probed_at_the_recorded_sequence_before_it_carries_anything() {
        let probe = CallbackTurn { slot: 0, sequence: 9, is_probe: true };
        for end in [
            CallbackEnd::Answered,
            CallbackEnd::Refused(Status::RetryUncachedReply),
            CallbackEnd::Refused(Status::SequenceFalseRetry),
        ] {
            let mut channel = bound();
            assert_eq!(channel.take(1, |_| 9), Some(probe), "after a takeover");
            channel.end(0, end, Some(9));
            assert_eq!(channel.take(1, |_| 9), Some(CallbackTurn { slot: 0, sequence: 10, is_probe: false }));
            channel.end(0, CallbackEnd::Unanswered, Some(10));
            assert_eq!(channel.take(1, |_| 10), Some(CallbackTurn { sequence: 10, ..probe }), "after a break");
            channel.end(0, CallbackEnd::Refused(Status::Delay), Some(10));
            assert_eq!(channel.take(1, |_| 10), Some(CallbackTurn { sequence: 10, ..probe }), "asked again");
        }
    }

    #[test]
    fn a_slot_whose_client_is_elsewhere_is_used_no_more() {
        let mut channel = bound();
        assert!(channel.take(1, |_| 9).unwrap().is_probe);
        channel.end(0, CallbackEnd::Refused(Status::SequenceMisordered), Some(9));
        assert_eq!(channel.take(1, |_| 9), None);
        assert!(channel.is_broken(1) && !channel.is_broken(2));
    }

    #[test]
    fn a_settled_slot_is_taken_before_one_in_doubt() {
        let mut channel = bound();
        let recorded = |slot| if slot == 0 { 5 } else { 0 };
        assert_eq!(channel.take(2, recorded), Some(CallbackTurn { slot: 1, sequence: 1, is_probe: false }));
        assert_eq!(channel.take(2, recorded), Some(CallbackTurn { slot: 0, sequence: 5, is_probe: true }));
    }

    #[test]
    fn connections_are_bounded_and_the_last_one_carries_callbacks() {
        let mut channel = BackChannel::default();
        for number in 0..CONNECTIONS_MAX as u64 + 5 {
            channel.bind(ConnectionId(number));
        }
        assert_eq!(channel.connections.len(), CONNECTIONS_MAX);
        let last = ConnectionId(CONNECTIONS_MAX as u64 + 4);
        assert_eq!(channel.connection(), Some(last));
        channel.unbind(last);
        assert_eq!(channel.connection(), Some(ConnectionId(last.0 - 1)));
    }

    #[test]
    fn a_connection_is_proven_until_it_is_let_go() {
        let mut channel = bound();
        assert!(!channel.is_proven());
        channel.prove(ConnectionId(2));
        assert!(!channel.is_proven(), "another connection");
        channel.prove(ConnectionId(1));
        channel.bind(ConnectionId(1));
        assert!(channel.is_proven(), "bound once more");
        channel.bind(ConnectionId(2));
        assert!(!channel.is_proven(), "callbacks go over the last one");
        channel.unbind(ConnectionId(2));
        assert!(channel.is_proven());
        channel.unbind(ConnectionId(1));
        channel.bind(ConnectionId(1));
        assert!(!channel.is_proven());
    }
}
