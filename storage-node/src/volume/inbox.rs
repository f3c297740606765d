//! The actor's inbox: everything that happens to a volume passes through it, in the order it happened on the shard.
//!
//! It holds no bound of its own because each kind of input has one where it arises: clients' operations by admission,
//! completions by the operations started, links by `LINKS_MAX`, frames by `FRAMES_QUEUED_MAX`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

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
    /// From another thread.
    Remote(Remote),
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
    wake: Notify,
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
        self.wake.notify_one();
    }

    /// The oldest input.
    pub(crate) fn pop(&self) -> Option<Input> {
        let input = self.queue.borrow_mut().pop_front();
        if let Some(Input::Link { event: LinkEvent::Frame { .. }, .. }) = input {
            self.frames.set(self.frames.get() - 1);
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

    /// Sleeps until something was pushed since the last sleep.
    pub(crate) async fn pushed(&self) {
        self.wake.notified().await;
    }

    /// Takes nothing more, and drops what waits.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let waiting = std::mem::take(&mut *self.queue.borrow_mut());
        drop(waiting);
    }
}
