//! The actor's inbox: everything that happens to a volume passes through it, in the order it happened on the shard.
//!
//! It holds no bound of its own because each kind of input has one where it arises: clients' operations by admission,
//! completions by the operations started, links by `LINKS_MAX`, frames by `FRAMES_QUEUED_MAX`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use proto::NodeId;
use replication::event::{Event, LinkId, OpId, Request};
use tokio::sync::Notify;

use super::device::OpenOperation;
use super::handle::Remote;
use super::payloads::Held;
use crate::disk::{DiskDone, OpenedStore, StoreError};
use crate::peer::{LinkEvent, ReadyLink};

/// Frames that may wait in a volume's inbox; a peer that fills it loses its link.
pub(crate) const FRAMES_QUEUED_MAX: usize = 16 * 1024;

/// Something that happened.
pub(crate) enum Input {
    /// A fact that needs no translation.
    Fact(Event),
    /// The configuration is another.
    Config,
    /// From another thread.
    Remote(Remote),
    /// Nobody else knows of the volume any more.
    Orphaned,
    /// A client asks.
    Client { op: OpId, request: Request, payload: Option<Held>, open: OpenOperation },
    /// The end of a disk operation.
    Disk(DiskDone),
    /// From a running link.
    Link { link: LinkId, event: LinkEvent },
    /// A dialled connection stands.
    Dialled { peer: NodeId, ready: ReadyLink },
    /// The store is open, or refused.
    Opened {
        generation: u64,
        result: Result<Box<OpenedStore>, StoreError>,
        suspect: bool,
        fence: (proto::Epoch, proto::ConfigVersion),
    },
    /// A detached store is closed: its operations have ended.
    Closed { generation: u64 },
}

/// A queue of inputs with one sleeper.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: RefCell<VecDeque<Input>>,
    frames: Cell<usize>,
    closed: Cell<bool>,
    sleeper: AtomicWaker,
    remote_taken: Notify,
}

impl Inbox {
    /// Adds an input; dropped once the actor has ended, which wakes whoever waits for its answer.
    pub(crate) fn push(&self, input: Input) {
        if self.closed.get() {
            return;
        }
        if let Input::Link { event: LinkEvent::Frame { .. }, .. } = input {
            self.frames.set(self.frames.get() + 1);
        }
        self.queue.borrow_mut().push_back(input);
        self.sleeper.wake();
    }

    /// The oldest input.
    pub(crate) fn pop(&self) -> Option<Input> {
        let input = self.queue.borrow_mut().pop_front();
        match input {
            Some(Input::Link { event: LinkEvent::Frame { .. }, .. }) => self.frames.set(self.frames.get() - 1),
            Some(Input::Remote(_)) => self.remote_taken.notify_one(),
            _ => {}
        }
        input
    }

    /// True when no more frames may be queued.
    pub(crate) fn is_full_of_frames(&self) -> bool {
        self.frames.get() >= FRAMES_QUEUED_MAX
    }

    /// True when nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Ready when something waits.
    pub(crate) fn poll_pushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_empty() {
            return Poll::Ready(());
        }
        self.sleeper.register(cx.waker());
        Poll::Pending
    }

    /// Adds what came from another thread, and waits until it is handled: no more than one of these waits here, the others
    /// where they are bounded.
    pub(crate) async fn push_remote(&self, remote: Remote) {
        self.push(Input::Remote(remote));
        self.remote_taken.notified().await;
    }

    /// Takes nothing more, and drops what waits.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let waiting = std::mem::take(&mut *self.queue.borrow_mut());
        drop(waiting);
    }
}
