//! Memory that all connections share: what is being received and worked on, and what waits to be written.
//!
//! Nobody can keep it from others by doing nothing: when somebody has waited for room for [`PATIENCE`], connections that are in
//! the middle of a record, or of writing, without an end for as long as that, are told to go. Their clients come back. And one
//! connection gets only a part of what is free for its replies, so that the slow ones together never have all.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long is waited for room before those go who keep it and do nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// One connection's replies have at most this part of what is free; one reply it always has.
const SHARE_OF_FREE: usize = 8;

/// So many bytes.
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    bytes_max: usize,
    wanted: Notify,
}

impl Room {
    /// All of it is free.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes: Arc::new(Semaphore::new(bytes_max)), bytes_max, wanted: Notify::new() }
    }

    /// Waits for a part; more than there is counts as all.
    pub(super) async fn take(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let bytes = bytes.min(self.bytes_max);
        let mut permit = std::pin::pin!(Arc::clone(&self.bytes).acquire_many_owned(bytes as u32));
        loop {
            match tokio::time::timeout(PATIENCE, &mut permit).await {
                Ok(permit) => return permit.map_err(|_| io::ErrorKind::ConnectionAborted.into()),
                Err(_) => self.wanted.notify_waiters(),
            }
        }
    }

    /// What is left of it, for who wants to tell.
    pub(super) fn budget(&self) -> &Arc<Semaphore> {
        &self.bytes
    }

    fn free(&self) -> usize {
        self.bytes.available_permits()
    }

    /// Ends when whoever keeps a part of it since then is to go.
    pub(super) async fn wanted_from(&self, since: Instant) -> io::Error {
        loop {
            self.wanted.notified().await;
            if since.elapsed() > PATIENCE {
                return io::Error::new(io::ErrorKind::TimedOut, "others wait for the memory that it keeps");
            }
        }
    }
}

/// What the replies of one connection have of a room.
pub(super) struct Share {
    room: Rc<Room>,
    held: Cell<usize>,
    given_back: Notify,
}

/// The part of one reply, until it is written or dropped.
pub(super) struct ReplyRoom {
    share: Rc<Share>,
    permit: OwnedSemaphorePermit,
}

impl Share {
    pub(super) fn new(room: &Rc<Room>) -> Rc<Self> {
        Rc::new(Self { room: Rc::clone(room), held: Cell::new(0), given_back: Notify::new() })
    }

    /// Waits for room for a reply of at most so many bytes.
    pub(super) async fn take(self: &Rc<Self>, bytes: usize) -> io::Result<ReplyRoom> {
        while self.held.get() > 0 && self.held.get() + bytes > self.room.free() / SHARE_OF_FREE {
            self.given_back.notified().await;
        }
        let permit = self.room.take(bytes).await?;
        self.held.set(self.held.get() + permit.num_permits());
        Ok(ReplyRoom { share: Rc::clone(self), permit })
    }

    /// Ends when the connection is to go that has written nothing since then.
    pub(super) async fn wanted_from(&self, since: Instant) -> io::Error {
        self.room.wanted_from(since).await
    }
}

impl ReplyRoom {
    /// The reply is there and has so many bytes: the rest is given back.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let rest = self.permit.num_permits().saturating_sub(bytes);
        if let Some(rest) = self.permit.split(rest) {
            self.share.give_back(rest.num_permits());
        }
    }
}

impl Share {
    fn give_back(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
        self.given_back.notify_one();
    }
}

impl Drop for ReplyRoom {
    fn drop(&mut self) {
        self.share.give_back(self.permit.num_permits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_keeps_room_goes_when_others_have_waited_for_it() {
        let room = Rc::new(Room::new(10));
        let kept = room.take(10).await.unwrap();
        let goes = async {
            let why = room.wanted_from(Instant::now()).await;
            assert_eq!(why.kind(), io::ErrorKind::TimedOut);
            drop(kept);
        };
        let (taken, ()) = tokio::join!(room.take(1), goes);
        assert_eq!(taken.unwrap().num_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_does_not_get_all_that_is_free_and_always_one_reply() {
        let room = Rc::new(Room::new(800));
        let (greedy, good) = (Share::new(&room), Share::new(&room));
        let mut first = greedy.take(300).await.unwrap();
        let waits = Duration::from_secs(60);
        assert!(tokio::time::timeout(waits, greedy.take(10)).await.is_err(), "an eighth of what is free");
        let other = good.take(300).await.unwrap();
        first.shrink(5);
        let second = greedy.take(10).await.unwrap();
        drop((first, second, other));
        assert_eq!((room.free(), greedy.held.get(), good.held.get()), (800, 0, 0));
    }
}
