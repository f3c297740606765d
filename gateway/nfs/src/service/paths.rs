//! The connections of a service as ways to its clients: calls go out beside replies, and answers find whoever waits for them.
//!
//! Nothing is kept for a client that does not read: a call waits for room in its connection's queue as long as it waits for its
//! answer, and no longer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::state::back_channel::ConnectionId;
use crate::v4::callback::REPLY_BYTES_MAX;

/// Calls of one connection that have no answer yet: what 16 sessions with 16 slots can have.
const CALLS_PER_CONNECTION_MAX: usize = 256;
/// How long a client has to answer; Linux's server gives it a tenth of a lease.
const ANSWER_TIME: Duration = Duration::from_secs(9);
/// Bytes of a message before what it is: its number.
const XID_BYTES: usize = 4;

struct Path {
    calls: mpsc::Sender<Vec<Bytes>>,
    waiting: BTreeMap<u32, oneshot::Sender<Bytes>>,
    next: u32,
}

/// All connections that calls can go over.
#[derive(Default)]
pub(super) struct Paths {
    open: RefCell<BTreeMap<ConnectionId, Path>>,
}

impl Paths {
    /// A connection is there; messages put into `calls` go out over it.
    pub(super) fn open(&self, connection: ConnectionId, calls: mpsc::Sender<Vec<Bytes>>) {
        let path = Path { calls, waiting: BTreeMap::new(), next: 1 };
        self.open.borrow_mut().insert(connection, path);
    }

    /// It is no more: whoever waits for an answer over it gets none.
    pub(super) fn close(&self, connection: ConnectionId) {
        self.open.borrow_mut().remove(&connection);
    }

    /// An answer has come. False if nobody waits for it, or it is longer than any that makes sense.
    pub(super) fn answer(&self, connection: ConnectionId, message: Bytes) -> bool {
        let Some(xid) = message.first_chunk::<XID_BYTES>().copied().map(u32::from_be_bytes) else { return false };
        let mut open = self.open.borrow_mut();
        let waiting = open.get_mut(&connection).and_then(|path| path.waiting.remove(&xid));
        let waiting = waiting.filter(|_| message.len() <= REPLY_BYTES_MAX);
        waiting.is_some_and(|waiting| waiting.send(message).is_ok())
    }

    /// Sends a call, made for its number, and waits for the answer. None if there will be none.
    pub(super) async fn call(
        &self,
        connection: ConnectionId,
        message: impl FnOnce(u32) -> Vec<Bytes>,
    ) -> Option<Bytes> {
        let (sender, answer) = oneshot::channel();
        let (xid, calls) = {
            let mut open = self.open.borrow_mut();
            let path = open.get_mut(&connection).filter(|path| path.waiting.len() < CALLS_PER_CONNECTION_MAX)?;
            let xid = path.next;
            path.next = xid.wrapping_add(1);
            path.waiting.insert(xid, sender);
            (xid, path.calls.clone())
        };
        let answered = timeout(ANSWER_TIME, async {
            calls.send(message(xid)).await.ok()?;
            answer.await.ok()
        });
        let answered = answered.await.ok().flatten();
        if let Some(path) = self.open.borrow_mut().get_mut(&connection) {
            path.waiting.remove(&xid);
        }
        answered
    }
}
