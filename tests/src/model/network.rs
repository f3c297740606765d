//! Connections between the two boxes: in order, each way a queue, and an end that the other side learns of or does not.

use std::collections::VecDeque;

use proto::peer::message::{Envelope, Message};
use replication::LinkId;

use super::store::Values;

/// What travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A message, with the values of the two blocks where its payload covers them.
    Frame {
        /// Epoch, version, session.
        envelope: Envelope,
        /// What it says.
        message: Message,
        /// Its payload.
        payload: Option<Values>,
    },
    /// The other side has closed the connection.
    End,
}

/// One connection; side 0 has dialled, side 1 accepted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Its name at both ends.
    pub link: LinkId,
    /// The box that dialled.
    pub dialer: usize,
    /// Which sides have it open.
    pub up: [bool; 2],
    /// What travels to each side.
    pub queues: [VecDeque<Item>; 2],
    /// The head of that queue may take for ever.
    pub slow: [bool; 2],
}

impl Connection {
    /// The box at `side`.
    pub fn node(&self, side: usize) -> usize {
        if side == 0 { self.dialer } else { 1 - self.dialer }
    }

    /// The side of box `node`.
    pub fn side(&self, node: usize) -> usize {
        usize::from(node != self.dialer)
    }
}

/// All connections that at least one side has open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Network {
    /// Oldest first.
    pub connections: Vec<Connection>,
    named: u64,
}

impl Network {
    /// A new connection that `dialer` has dialled.
    pub fn connect(&mut self, dialer: usize) -> LinkId {
        self.named += 1;
        let link = LinkId(self.named);
        let connection =
            Connection { link, dialer, up: [true; 2], queues: [VecDeque::new(), VecDeque::new()], slow: [false; 2] };
        self.connections.push(connection);
        link
    }

    /// True while `dialer` has a connection of its own open.
    pub fn has_dialled(&self, dialer: usize) -> bool {
        self.connections.iter().any(|connection| connection.dialer == dialer && connection.up[0])
    }

    /// Puts a message on its way; one to a side that is gone is lost.
    pub fn send(&mut self, node: usize, link: LinkId, item: Item) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.link == link) else { return };
        let side = connection.side(node);
        if connection.up[side] && connection.up[1 - side] {
            connection.queues[1 - side].push_back(item);
        }
    }

    /// A side closes; true if it was open. The other side learns of it behind what is on its way, if `tell`; and of that
    /// nothing arrives, if `lose`.
    pub fn close(&mut self, node: usize, link: LinkId, tell: bool, lose: bool) -> bool {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.link == link) else {
            return false;
        };
        let side = connection.side(node);
        let was_open = std::mem::replace(&mut connection.up[side], false);
        connection.queues[side].clear();
        connection.slow[side] = false;
        let other = 1 - side;
        if was_open && connection.up[other] {
            if lose {
                connection.queues[other].clear();
                connection.slow[other] = false;
            }
            if tell {
                connection.queues[other].push_back(Item::End);
            }
        }
        self.forget_closed();
        was_open
    }

    /// A box is back after a power cut: it knows nothing of its old connections and says so.
    pub fn reset_forgotten(&mut self, node: usize) {
        for connection in &mut self.connections {
            let side = connection.side(node);
            let queue = &mut connection.queues[1 - side];
            if !connection.up[side] && queue.back() != Some(&Item::End) {
                queue.push_back(Item::End);
            }
        }
    }

    /// Takes the head of a queue.
    pub fn take(&mut self, index: usize, side: usize) -> Option<Item> {
        let connection = self.connections.get_mut(index)?;
        connection.slow[side] = false;
        connection.queues[side].pop_front()
    }

    /// Drops connections that no side has open.
    pub fn forget_closed(&mut self) {
        self.connections.retain(|connection| connection.up != [false; 2]);
    }

    /// True when nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.connections.iter().all(|connection| connection.queues.iter().all(VecDeque::is_empty))
    }
}
