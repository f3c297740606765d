//! The network: directed paths that delay, lose, double or block; and over them, for the replication protocol,
//! connections that keep their order and either deliver or break.
//!
//! A connection over a blocked path stalls, as TCP does: what was sent arrives once the path is open again, unless one
//! side has given the connection up by then. The two sides learn of an end at different times.

use std::collections::VecDeque;

use proto::peer::message::{Envelope, Message, Seq, Uncertain, Worth};
use replication::LinkId;

use super::payload::Payload;
use super::scheduler::{MILLISECOND, Rng, SECOND, SimTime};
use super::setup::BOXES;

/// The newest version of the peer protocol.
pub const PROTOCOL: u16 = 2;

/// One replication message on its way.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Epoch, version, session.
    pub envelope: Envelope,
    /// Content.
    pub message: Message,
    /// Data, digests or sums.
    pub payload: Option<Payload>,
}

impl Frame {
    /// What version 1 of the protocol makes of it, as the codec does: what only version 2 has is left out, or the whole
    /// message cannot be said. Payloads come without sums; whoever receives them sums them anew.
    pub fn in_version_1(mut self, volume: usize) -> Option<Self> {
        match &mut self.message {
            Message::Heat { .. }
            | Message::ReadRequest { .. }
            | Message::ReadReply { .. }
            | Message::ReadFailed { .. }
            | Message::SumsRequest { .. }
            | Message::Sums { .. }
            | Message::ResyncData { worth: Worth::Bad | Worth::Lost, .. } => return None,
            Message::HelloReply { uncertain, .. } => *uncertain = Uncertain::All,
            Message::Beacon { settled, .. } => *settled = Seq(0),
            Message::Write { range, .. } | Message::ResyncData { range, .. } => {
                let blocks = self.payload.take().map(|payload| payload.blocks);
                self.payload = blocks.map(|blocks| Payload::summed(volume, [&*range], blocks));
            }
            Message::WriteBatch { groups, .. } => {
                let blocks = self.payload.take().map(|payload| payload.blocks);
                self.payload = blocks.map(|blocks| Payload::summed(volume, groups.iter().flatten(), blocks));
            }
            _ => {}
        }
        Some(self)
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The box.
    pub node: usize,
    /// The run that holds the socket.
    pub run: u32,
    /// The run has been told that the connection stands.
    pub up: bool,
    /// The socket is closed; the run has been told, or is gone.
    pub down: bool,
}

/// One direction of a connection; 0 is from the dialling side.
#[derive(Clone, Debug, Default)]
struct Direction {
    /// Arrival of the newest message.
    last: SimTime,
    /// Sent and not delivered.
    queue: VecDeque<Frame>,
    /// Arrivals that found the path blocked.
    stalled: u32,
    /// Nothing is delivered any more.
    dead: bool,
}

/// A connection of one volume between two boxes; side 0 has dialled.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Volume, by its number in the run.
    pub volume: usize,
    /// Both ends.
    pub ends: [End; 2],
    /// The version of the protocol that both have agreed on.
    pub protocol: u16,
    directions: [Direction; 2],
}

/// What a directed path between two boxes does.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    blocked: u32,
    /// Delays are multiplied by this, plus one.
    slow: u64,
}

/// What the scheduler is to do.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// The next message reaches a side.
    Arrival {
        /// Connection.
        connection: usize,
        /// Receiving side.
        side: usize,
    },
    /// A side learns that the connection stands.
    Up {
        /// Connection.
        connection: usize,
        /// Side.
        side: usize,
    },
    /// A side learns that it does not.
    Down {
        /// Connection.
        connection: usize,
        /// Side.
        side: usize,
    },
    /// A side's own order to close is carried out.
    Closed {
        /// Connection.
        connection: usize,
        /// Side.
        side: usize,
    },
    /// A stalled connection is given up if it still is stalled.
    Timeout {
        /// Connection.
        connection: usize,
    },
}

/// Things to schedule.
pub type Later = Vec<(SimTime, NetEvent)>;

/// All paths and connections.
#[derive(Debug)]
pub struct Network {
    latency: (SimTime, SimTime),
    paths: [[Path; BOXES]; BOXES],
    connections: Vec<Connection>,
}

/// The core's name of a side of a connection.
pub fn link(connection: usize, side: usize) -> LinkId {
    LinkId(2 * connection as u64 + side as u64 + 2)
}

/// Connection and side that a link names.
pub fn side_of(link: LinkId) -> (usize, usize) {
    ((link.0 / 2 - 1) as usize, (link.0 % 2) as usize)
}

impl Network {
    /// A network without connections.
    pub fn new(latency: (SimTime, SimTime)) -> Self {
        Self { latency, paths: Default::default(), connections: Vec::new() }
    }

    /// The connection numbered `connection`.
    pub fn connection(&self, connection: usize) -> &Connection {
        &self.connections[connection]
    }

    /// True when nothing passes from one box to the other.
    pub fn blocked(&self, from: usize, to: usize) -> bool {
        self.paths[from][to].blocked > 0
    }

    /// The time a message takes, or None if the path is blocked.
    pub fn delay(&self, from: usize, to: usize, rng: &mut Rng) -> Option<SimTime> {
        let delay = self.nominal_delay(from, to, rng);
        (!self.blocked(from, to)).then_some(delay)
    }

    fn nominal_delay(&self, from: usize, to: usize, rng: &mut Rng) -> SimTime {
        rng.skewed(self.latency.0, self.latency.1) * (1 + self.paths[from][to].slow)
    }

    /// Makes a path slow (0: normal).
    pub fn set_slow(&mut self, from: usize, to: usize, slow: u64) {
        self.paths[from][to].slow = slow;
    }

    /// Blocks a path once more; connections over it may be given up after a while.
    pub fn block(&mut self, from: usize, to: usize, now: SimTime, rng: &mut Rng) -> Later {
        self.paths[from][to].blocked += 1;
        let uses = |c: &Connection| {
            let nodes = [c.ends[0].node, c.ends[1].node];
            (nodes == [from, to] || nodes == [to, from]) && !(c.ends[0].down && c.ends[1].down)
        };
        let used: Vec<usize> = (0..self.connections.len()).filter(|index| uses(&self.connections[*index])).collect();
        used.into_iter()
            .map(|connection| (now + rng.between(SECOND, 15 * SECOND), NetEvent::Timeout { connection }))
            .collect()
    }

    /// Takes one block away (`all`: all blocks); what was stalled goes on.
    pub fn unblock(&mut self, from: usize, to: usize, all: bool, now: SimTime, rng: &mut Rng) -> Later {
        let path = &mut self.paths[from][to];
        path.blocked = if all { 0 } else { path.blocked.saturating_sub(1) };
        let mut later = Later::new();
        if path.blocked > 0 {
            return later;
        }
        for connection in 0..self.connections.len() {
            for side in 0..2 {
                let c = &mut self.connections[connection];
                if c.ends[side].node == from && c.ends[1 - side].node == to {
                    for _ in 0..std::mem::take(&mut c.directions[side].stalled) {
                        later.push(self.next_arrival(connection, side, now, rng));
                    }
                }
            }
        }
        later
    }

    /// Connects two runs; both learn of it in due time. None if a path is blocked.
    pub fn connect(
        &mut self,
        (volume, protocol): (usize, u16),
        from: (usize, u32),
        to: (usize, u32),
        now: SimTime,
        rng: &mut Rng,
    ) -> Option<(usize, Later)> {
        let there = now + self.delay(from.0, to.0, rng)?;
        let back = there + self.delay(to.0, from.0, rng)?;
        let end = |(node, run)| End { node, run, up: false, down: false };
        let direction = |last| Direction { last, ..Direction::default() };
        let directions = [direction(there), direction(back)];
        self.connections.push(Connection { volume, ends: [end(from), end(to)], protocol, directions });
        let connection = self.connections.len() - 1;
        let later = vec![(there, NetEvent::Up { connection, side: 1 }), (back, NetEvent::Up { connection, side: 0 })];
        Some((connection, later))
    }

    /// A side has been told that its connection stands; false if it has ended before.
    pub fn mark_up(&mut self, connection: usize, side: usize) -> bool {
        let end = &mut self.connections[connection].ends[side];
        end.up = !end.down;
        end.up
    }

    /// A side is to be told that its connection has ended; false if it knew.
    pub fn mark_down(&mut self, connection: usize, side: usize) -> bool {
        let end = &mut self.connections[connection].ends[side];
        let news = !end.down && end.up;
        end.down = true;
        news
    }

    /// Sends on a connection, from `side`.
    pub fn send(
        &mut self,
        connection: usize,
        side: usize,
        frame: Frame,
        now: SimTime,
        rng: &mut Rng,
        later: &mut Later,
    ) {
        let c = &self.connections[connection];
        if c.ends[side].down || c.directions[side].dead {
            return;
        }
        self.connections[connection].directions[side].queue.push_back(frame);
        later.push(self.next_arrival(connection, side, now, rng));
    }

    fn next_arrival(&mut self, connection: usize, side: usize, now: SimTime, rng: &mut Rng) -> (SimTime, NetEvent) {
        let ends = &self.connections[connection].ends;
        let delay = self.nominal_delay(ends[side].node, ends[1 - side].node, rng);
        let direction = &mut self.connections[connection].directions[side];
        direction.last = (now + delay).max(direction.last + 1);
        (direction.last, NetEvent::Arrival { connection, side: 1 - side })
    }

    /// The next message reaches `side`, unless the path is blocked or the connection is over.
    pub fn arrive(&mut self, connection: usize, side: usize) -> Option<Frame> {
        let c = &self.connections[connection];
        let blocked = self.blocked(c.ends[1 - side].node, c.ends[side].node);
        let c = &mut self.connections[connection];
        let direction = &mut c.directions[1 - side];
        if direction.dead || c.ends[side].down {
            direction.queue.clear();
            return None;
        }
        if blocked {
            direction.stalled += 1;
            return None;
        }
        direction.queue.pop_front()
    }

    /// `side` has closed its socket, or its process has died. The other side learns of it, after what was sent before
    /// (or some of it); after a power cut (`silent`) only much later.
    pub fn close(&mut self, connection: usize, side: usize, silent: bool, now: SimTime, rng: &mut Rng) -> Later {
        let (from, to) = {
            let c = &mut self.connections[connection];
            c.directions[1 - side].dead = true;
            c.directions[side].dead = silent || rng.chance(500);
            (c.ends[side].node, c.ends[1 - side].node)
        };
        let last = self.connections[connection].directions[side].last.max(now);
        let told = match self.delay(from, to, rng) {
            Some(delay) if !silent => last + delay,
            _ => now + rng.between(SECOND, 12 * SECOND),
        };
        vec![(told, NetEvent::Down { connection, side: 1 - side })]
    }

    /// Breaks a connection: what is on its way is lost, and each side learns of it in its own time.
    pub fn reset(&mut self, connection: usize, now: SimTime, rng: &mut Rng) -> Later {
        for direction in &mut self.connections[connection].directions {
            direction.dead = true;
            direction.queue.clear();
        }
        let mut told = || now + rng.skewed(0, 800 * MILLISECOND);
        vec![(told(), NetEvent::Down { connection, side: 0 }), (told(), NetEvent::Down { connection, side: 1 })]
    }

    /// Breaks a connection that is still stalled.
    pub fn give_up(&mut self, connection: usize, now: SimTime, rng: &mut Rng) -> Later {
        let nodes = self.connections[connection].ends.map(|end| end.node);
        if self.blocked(nodes[0], nodes[1]) || self.blocked(nodes[1], nodes[0]) {
            self.reset(connection, now, rng)
        } else {
            Later::new()
        }
    }

    /// Connections that `wanted` selects and that are not over on both sides.
    pub fn open_connections(&self, wanted: impl Fn(&Connection) -> bool) -> Vec<usize> {
        let open = |c: &Connection| !(c.ends[0].down && c.ends[1].down);
        (0..self.connections.len()).filter(|i| open(&self.connections[*i]) && wanted(&self.connections[*i])).collect()
    }
}

#[cfg(test)]
mod tests {
    use proto::{ConfigVersion, Epoch, SessionId};

    use super::*;

    fn frame(session: u64) -> Frame {
        let envelope = Envelope { epoch: Epoch(1), version: ConfigVersion(1), session: SessionId(session) };
        Frame { envelope, message: Message::PreSync, payload: None }
    }

    fn connected() -> (Network, Rng) {
        let (mut net, mut rng) = (Network::new((50, 5000)), Rng::new(3));
        assert!(net.connect((0, PROTOCOL), (0, 1), (1, 1), 0, &mut rng).is_some());
        assert!(net.mark_up(0, 0) && net.mark_up(0, 1));
        (net, rng)
    }

    #[test]
    fn a_connection_keeps_its_order() {
        let (mut net, mut rng) = connected();
        let mut later = Later::new();
        (0..100).for_each(|n| net.send(0, 0, frame(n), 100 + n, &mut rng, &mut later));
        assert!(later.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_blocked_path_stalls_and_delivers_in_order_later() {
        let (mut net, mut rng) = connected();
        let mut later = Later::new();
        net.send(0, 0, frame(1), 10, &mut rng, &mut later);
        net.block(0, 1, 20, &mut rng);
        net.send(0, 0, frame(2), 30, &mut rng, &mut later);
        assert!(net.arrive(0, 1).is_none(), "the first was on its way");
        let again = net.unblock(0, 1, false, SECOND, &mut rng);
        assert_eq!(again.len(), 1);
        let session = |frame: Option<Frame>| frame.map(|frame| frame.envelope.session.0);
        assert_eq!(session(net.arrive(0, 1)), Some(1));
        assert_eq!(session(net.arrive(0, 1)), Some(2));
    }

    #[test]
    fn a_broken_connection_delivers_nothing_and_tells_both_sides_once() {
        let (mut net, mut rng) = connected();
        assert_eq!(net.reset(0, 10, &mut rng).len(), 2);
        net.send(0, 0, frame(1), 10, &mut rng, &mut Later::new());
        assert!(net.arrive(0, 1).is_none());
        assert!(net.mark_down(0, 0) && net.mark_down(0, 1));
        assert!(!net.mark_down(0, 0));
    }
}
