//! What clients are to be told and were not yet: a bounded queue for each. In memory only: after a takeover whatever needs a
//! recall meets the delegation again, and whoever waits for a lock asks again.
//!
//! How it is told (turns, connections, answers) is not known here.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bounds::{DELEGATIONS_PER_CLIENT_MAX, WAITERS_PER_PARTY_MAX};
use super::delegation::Delegated;
use crate::ids::{ClientId, FileId, Moment};

/// What waits for one client.
pub const MESSAGES_PER_CLIENT_MAX: usize = DELEGATIONS_PER_CLIENT_MAX as usize + WAITERS_PER_PARTY_MAX;
/// Milliseconds after which something that the client could not do at once is asked for again, first and last.
const PAUSES_MS: (u64, u64) = (100, 5_000);

/// What a client is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A delegation is to be given back.
    Recall(Delegated),
    /// Delegations are to be given back until so many are left.
    RecallAny(u32),
    /// An owner may ask for its lock again.
    LockMayBeFree(FileId, Bytes),
}

/// Something that waits: in which order, and how often it was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What.
    pub message: Message,
    since: (Moment, u64),
    failures: u32,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    /// By when they may be told.
    messages: BTreeMap<(Moment, u64), Waiting>,
    /// Nothing is told before.
    paused: Option<Moment>,
    failures: u32,
}

/// The queues of a service.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    queues: BTreeMap<ClientId, Queue>,
    next: u64,
}

/// When a client may be told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// Not before this moment.
    At(Moment),
    /// There is nothing.
    Never,
}

fn pause_ms(failures: u32) -> u64 {
    let (first, last) = PAUSES_MS;
    first.checked_shl(failures.min(16)).unwrap_or(last).min(last)
}

impl Outbox {
    /// A client is to be told something. False where too much waits for it already: a client that asks for its lock again by
    /// itself loses nothing by that, and no delegation is there twice.
    pub fn push(&mut self, client: ClientId, message: Message, now: Moment) -> bool {
        let since = (now, self.next);
        let queue = self.queues.entry(client).or_default();
        if queue.messages.len() >= MESSAGES_PER_CLIENT_MAX {
            return false;
        }
        self.next += 1;
        queue.messages.insert(since, Waiting { message, since, failures: 0 });
        true
    }

    /// Forgets what need not be told any more.
    pub fn retain(&mut self, client: ClientId, wanted: impl Fn(&Message) -> bool) {
        if let Some(queue) = self.queues.get_mut(&client) {
            queue.messages.retain(|_, waiting| wanted(&waiting.message));
            self.forget_empty(client);
        }
    }

    /// Forgets what is for clients that are no more.
    pub fn keep_only(&mut self, is_known: impl Fn(ClientId) -> bool) {
        self.queues.retain(|client, _| is_known(*client));
    }

    /// Clients for which something waits.
    pub fn clients(&self) -> Vec<ClientId> {
        self.queues.iter().filter(|(_, queue)| !queue.messages.is_empty()).map(|(client, _)| *client).collect()
    }

    /// When a client may be told what is first for it.
    pub fn due(&self, client: ClientId, now: Moment) -> Due {
        let Some(queue) = self.queues.get(&client) else { return Due::Never };
        let Some(((first, _), _)) = queue.messages.first_key_value() else { return Due::Never };
        let at = queue.paused.map_or(*first, |paused| paused.max(*first));
        if at <= now { Due::Now } else { Due::At(at) }
    }

    /// What a client is to be told first, now.
    pub fn peek(&self, client: ClientId, now: Moment) -> Option<&Message> {
        let queue = self.queues.get(&client).filter(|_| self.due(client, now) == Due::Now)?;
        queue.messages.first_key_value().map(|(_, waiting)| &waiting.message)
    }

    /// Takes that out.
    pub fn pop(&mut self, client: ClientId, now: Moment) -> Option<Waiting> {
        if self.due(client, now) != Due::Now {
            return None;
        }
        self.queues.get_mut(&client)?.messages.pop_first().map(|(_, waiting)| waiting)
    }

    /// A client was told something, or has shown that it can be.
    pub fn told(&mut self, client: ClientId) {
        if let Some(queue) = self.queues.get_mut(&client) {
            (queue.paused, queue.failures) = (None, 0);
        }
        self.forget_empty(client);
    }

    /// A client was told something, and cannot do it yet: it is told again, each time later.
    pub fn put_off(&mut self, client: ClientId, mut waiting: Waiting, now: Moment) {
        let at = now.plus(pause_ms(waiting.failures));
        waiting.failures = waiting.failures.saturating_add(1);
        let queue = self.queues.entry(client).or_default();
        queue.messages.insert((at, waiting.since.1), waiting);
    }

    /// A client could not be told: what was to be is the first again, and nothing is told it for a while, each time a longer one.
    pub fn failed(&mut self, client: ClientId, waiting: Option<Waiting>, now: Moment) {
        let queue = self.queues.entry(client).or_default();
        queue.paused = Some(now.plus(pause_ms(queue.failures)));
        queue.failures = queue.failures.saturating_add(1);
        if let Some(waiting) = waiting {
            queue.messages.insert(waiting.since, waiting);
        }
        self.forget_empty(client);
    }

    /// There is a new way to the client.
    pub fn resume(&mut self, client: ClientId) {
        if let Some(queue) = self.queues.get_mut(&client) {
            (queue.paused, queue.failures) = (None, 0);
        }
    }

    /// Messages that wait, of all clients.
    pub fn len(&self) -> usize {
        self.queues.values().map(|queue| queue.messages.len()).sum()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A queue with nothing in it is kept only as long as its pause has to be known.
    fn forget_empty(&mut self, client: ClientId) {
        if self.queues.get(&client).is_some_and(|queue| queue.messages.is_empty() && queue.paused.is_none()) {
            self.queues.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(1);
    const NOW: Moment = Moment(1_000);

    fn outbox() -> Outbox {
        let mut outbox = Outbox::default();
        for keep in 0..3 {
            assert!(outbox.push(CLIENT, Message::RecallAny(keep), NOW));
        }
        outbox
    }

    fn pop(outbox: &mut Outbox, now: Moment) -> Option<Waiting> {
        outbox.pop(CLIENT, now)
    }

    #[test]
    fn messages_are_told_in_their_order_and_a_client_without_any_is_forgotten() {
        let mut outbox = outbox();
        for keep in 0..3 {
            assert_eq!(outbox.peek(CLIENT, NOW), Some(&Message::RecallAny(keep)));
            assert_eq!(pop(&mut outbox, NOW).unwrap().message, Message::RecallAny(keep));
            outbox.told(CLIENT);
        }
        assert!(outbox.is_empty() && outbox.queues.is_empty());
        assert_eq!((pop(&mut outbox, NOW), outbox.due(CLIENT, NOW)), (None, Due::Never));
    }

    #[test]
    fn what_could_not_be_told_is_the_first_again_after_pauses_that_grow() {
        let mut outbox = outbox();
        let mut now = NOW;
        for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let waiting = pop(&mut outbox, now).unwrap();
            assert_eq!(waiting.message, Message::RecallAny(0));
            outbox.failed(CLIENT, Some(waiting), now);
            assert_eq!(outbox.due(CLIENT, now), Due::At(now.plus(pause)));
            assert_eq!(pop(&mut outbox, now.plus(pause - 1)), None);
            now = now.plus(pause);
        }
        let waiting = pop(&mut outbox, now).unwrap();
        outbox.failed(CLIENT, Some(waiting), now);
        outbox.resume(CLIENT);
        assert_eq!(pop(&mut outbox, now).unwrap().message, Message::RecallAny(0), "there is another way");
    }

    #[test]
    fn what_a_client_cannot_do_yet_does_not_hold_up_the_rest() {
        let mut outbox = outbox();
        let waiting = pop(&mut outbox, NOW).unwrap();
        outbox.put_off(CLIENT, waiting, NOW);
        for keep in 1..3 {
            assert_eq!(pop(&mut outbox, NOW).unwrap().message, Message::RecallAny(keep));
        }
        assert_eq!((pop(&mut outbox, NOW), outbox.due(CLIENT, NOW)), (None, Due::At(NOW.plus(100))));
        let waiting = pop(&mut outbox, NOW.plus(100)).unwrap();
        assert_eq!(waiting.message, Message::RecallAny(0));
        outbox.put_off(CLIENT, waiting, NOW);
        assert_eq!(outbox.due(CLIENT, NOW), Due::At(NOW.plus(200)));
    }

    #[test]
    fn a_queue_is_bounded_and_what_is_not_wanted_makes_room() {
        let mut outbox = Outbox::default();
        for keep in 0..MESSAGES_PER_CLIENT_MAX {
            assert!(outbox.push(CLIENT, Message::RecallAny(keep as u32), NOW));
        }
        assert!(!outbox.push(CLIENT, Message::RecallAny(0), NOW));
        assert!(outbox.push(ClientId(2), Message::RecallAny(0), NOW), "another client");
        outbox.retain(CLIENT, |message| *message != Message::RecallAny(7));
        assert!(outbox.push(CLIENT, Message::RecallAny(0), NOW));
        assert_eq!(outbox.len(), MESSAGES_PER_CLIENT_MAX + 1);
        outbox.keep_only(|client| client != CLIENT);
        assert_eq!((outbox.len(), outbox.clients()), (1, vec![ClientId(2)]));
    }
}
