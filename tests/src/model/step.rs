//! What can happen next, and what then is.
//!
//! Everything that is under way is *fast* or *slow*. Fast things happen in one fixed order, and before the clock moves; a
//! slow thing may happen at any later time or never. Anything may become slow, at any moment, at the cost of one of the
//! budget's delays: with as many delays as things under way, every order is explored; with D of them, all executions in
//! which at most D things are late. Crashes, partitions and the client's requests come at any time, for nothing but their
//! own budgets; except that one which commutes with what is next in the order comes after it (see [`Next`]: a request to a
//! box and what happens in the other one, a crash and what happens within the other box, a partition and what happens
//! within a box). The end of a partition, a restart and a Goodbye take longer than anything fast, like the clock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use proto::peer::message::Message;
use replication::config::{Command, CommandBody, NodeCommand, NodeKind, Outcome, VolumeCommand};
use replication::{Control, Event, Replica};

use super::Pair;
use super::checks::{sight, writable};
use super::network::Item;
use super::order::Next;
use super::state::{Client, Cut, OpKind, Pending, State, VOLUME, Worker, describe, node_id};
use super::store::{BLOCKS, Work};

/// Something that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Underway {
    /// A disk operation of a box, by its place.
    Io(usize, usize),
    /// The head of a connection's queue to a side.
    Message(usize, usize),
    /// The commitment of a proposal, by its place.
    Commit(usize),
    /// A box learns of the next configuration.
    Apply(usize),
    /// A box dials.
    Connect(usize),
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// It happens.
    Happens(Underway),
    /// From now on it may take for ever.
    IsSlow(Underway),
    /// The clock moves.
    Tick,
    /// A worker ends.
    Crash {
        /// Its box.
        node: usize,
        /// The box loses power.
        power: bool,
        /// What was on its way from it is lost.
        lose: bool,
        /// Numbers the content that its disk is left with.
        left: u8,
    },
    /// It starts again.
    Restart(usize),
    /// The other box is told that the last run on this one has ended.
    Goodbye(usize),
    /// A partition begins.
    Cut(Cut),
    /// It ends.
    Heal,
    /// The client asks a box to write to a block.
    Write(usize, usize),
    /// It asks for a block.
    Read(usize, usize),
    /// It asks for a flush.
    Flush(usize),
    /// An operator asks the box to hand over to the other one.
    Switchover(usize),
}

impl State {
    /// What is under way and can happen now, in the fixed order; with whether it is slow.
    pub fn underway(&self) -> Vec<(Underway, bool)> {
        let mut all = Vec::new();
        for node in 0..2 {
            let inflight = self.boxes[node].worker.iter().flat_map(|worker| worker.inflight.iter().enumerate());
            all.extend(inflight.map(|(index, io)| (Underway::Io(node, index), io.slow)));
        }
        if self.is_joined() {
            for (index, connection) in self.net.connections.iter().enumerate() {
                for side in (0..2).filter(|side| connection.up[*side] && !connection.queues[*side].is_empty()) {
                    all.push((Underway::Message(index, side), connection.slow[side]));
                }
            }
        }
        if self.reaches_witness(0) || self.reaches_witness(1) {
            let pending = self.raft.pending.iter().enumerate();
            all.extend(pending.map(|(index, pending)| (Underway::Commit(index), pending.slow)));
        }
        for node in (0..2).filter(|node| self.reaches_witness(*node)) {
            let Some(worker) = &self.boxes[node].worker else { continue };
            if self.raft.lags(node) {
                all.push((Underway::Apply(node), worker.apply_slow));
            }
            let other_is_up = self.boxes[1 - node].worker.is_some();
            if worker.dial && !worker.dialled && other_is_up && self.is_joined() && !self.net.has_dialled(node) {
                all.push((Underway::Connect(node), worker.dial_slow));
            }
        }
        all
    }

    fn make_slow(&mut self, what: Underway) {
        self.budget.delays -= 1;
        let worker = |state: &mut Self, node: usize, f: fn(&mut Worker)| {
            Arc::make_mut(&mut state.boxes[node]).worker.iter_mut().for_each(f);
        };
        match what {
            Underway::Io(node, index) => {
                if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
                    worker.inflight[index].slow = true;
                }
            }
            Underway::Message(index, side) => Arc::make_mut(&mut self.net).connections[index].slow[side] = true,
            Underway::Commit(index) => Arc::make_mut(&mut self.raft).pending[index].slow = true,
            Underway::Apply(node) => worker(self, node, |worker| worker.apply_slow = true),
            Underway::Connect(node) => worker(self, node, |worker| worker.dial_slow = true),
        }
    }

    /// Starts a worker: it knows the configuration that its box had applied, opens its copy and registers itself.
    pub fn start(&mut self, node: usize) {
        let now = self.now();
        let config = self.raft.applied(node).clone();
        let b = Arc::make_mut(&mut self.boxes[node]);
        let (incarnation, boot) = (b.incarnation(node), b.boot(node));
        let replica = Replica::new(VOLUME, node_id(node), incarnation, boot, Pair::TIMING, now);
        b.worker = Some(Worker {
            replica,
            inflight: Vec::new(),
            loaded: Vec::new(),
            dial: false,
            dialled: false,
            dial_slow: false,
            apply_slow: false,
        });
        let attachment = b.store.open(boot);
        self.feed(node, Event::Config(Box::new((*config).clone())));
        self.feed(node, Event::DiskAttached(Box::new(attachment)));
    }

    fn restart(&mut self, node: usize) {
        let b = Arc::make_mut(&mut self.boxes[node]);
        b.runs += 1;
        let (incarnation, boot) = (b.incarnation(node), b.boot(node));
        Arc::make_mut(&mut self.net).reset_forgotten(node);
        self.start(node);
        let body = CommandBody::Node(NodeCommand::NodeUp {
            node: node_id(node),
            incarnation,
            boot,
            clean: Vec::new(),
            feature_levels: (1, 1),
            kind: NodeKind::Storage,
            addresses: Default::default(),
        });
        let command = Command { request: proto::RequestId(u128::from(incarnation.0)), body };
        // The node's shell repeats it until it is applied: it does not vanish in a partition.
        Arc::make_mut(&mut self.raft).pending.insert(0, Pending { command, slow: false });
    }

    /// How many contents the disk of `node` may be left with by a crash.
    fn leftovers(&self, node: usize, power: bool) -> u8 {
        let [a, b] = self.candidates(node, power).map(|values| values.len() as u8);
        a * b
    }

    /// Per block: what may be stored after a crash.
    fn candidates(&self, node: usize, power: bool) -> [Vec<u8>; BLOCKS] {
        let b = &self.boxes[node];
        let mut candidates: [Vec<u8>; BLOCKS] =
            std::array::from_fn(
                |block| {
                    if power { b.store.versions[block].clone() } else { vec![b.store.value(block)] }
                },
            );
        for io in b.worker.iter().flat_map(|worker| &worker.inflight) {
            let Work::Write { values, .. } = &io.work else { continue };
            for (candidates, value) in candidates.iter_mut().zip(values) {
                candidates.extend(value.filter(|value| !candidates.contains(value)));
            }
        }
        candidates
    }

    fn crash(&mut self, node: usize, power: bool, lose: bool, left: u8) {
        self.budget.crashes -= 1;
        let candidates = self.candidates(node, power);
        let first = candidates[0].len();
        let values = [candidates[0][left as usize % first], candidates[1][left as usize / first]];
        let b = Arc::make_mut(&mut self.boxes[node]);
        for (block, value) in values.into_iter().enumerate() {
            match power {
                true => b.store.versions[block] = vec![value],
                false => b.store.put(block, value),
            }
        }
        b.worker = None;
        b.goodbye = (!power).then(|| b.incarnation(node));
        b.boots += u8::from(power);
        let links: Vec<_> = self.net.connections.iter().map(|connection| connection.link).collect();
        let net = Arc::make_mut(&mut self.net);
        for link in links {
            net.close(node, link, !power, lose);
        }
        for index in 0..self.client.ops.len() {
            if self.client.ops[index].open && self.client.ops[index].node == node {
                self.ended_without_effect_known(index);
            }
        }
        // A registration of the run that ended is pointless; the next one makes its own.
        let raft = Arc::make_mut(&mut self.raft);
        let id = node_id(node);
        let of_it = |pending: &Pending| match &pending.command.body {
            CommandBody::Node(NodeCommand::NodeUp { node, .. }) => *node == id,
            _ => false,
        };
        raft.pending.retain(|pending| !of_it(pending));
    }

    /// The clock moves; the Raft leader, which is the witness, says whom it hears.
    pub fn tick(&mut self) {
        self.time += 1;
        self.budget.ticks -= 1;
        for node in 0..2 {
            if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
                worker.dialled = false;
            }
            if self.reaches_witness(node) {
                let alive = self.reaches_witness(1 - node);
                self.feed(node, Event::LeaderHears { node: node_id(1 - node), alive });
            }
            self.feed(node, Event::Tick);
        }
    }

    fn connect(&mut self, dialer: usize) {
        let link = Arc::make_mut(&mut self.net).connect(dialer);
        if let Some(worker) = Arc::make_mut(&mut self.boxes[dialer]).worker.as_mut() {
            worker.dial_slow = false;
            worker.dialled = true;
        }
        let protocol = proto::peer::version::SUPPORTED.max;
        self.feed(1 - dialer, Event::LinkUp { peer: node_id(dialer), link, outbound: false, protocol });
        self.feed(dialer, Event::LinkUp { peer: node_id(1 - dialer), link, outbound: true, protocol });
    }

    fn apply(&mut self, node: usize) {
        let raft = Arc::make_mut(&mut self.raft);
        raft.applied[node] += 1;
        let config = raft.applied(node).clone();
        if let Some(worker) = Arc::make_mut(&mut self.boxes[node]).worker.as_mut() {
            worker.apply_slow = false;
        }
        self.feed(node, Event::Config(Box::new((*config).clone())));
    }
}

impl Pair {
    /// Everything that is tried in `state`.
    pub fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        let underway = state.underway();
        let first_fast = underway.iter().find(|(_, slow)| !slow).map(|(what, _)| *what);
        let next = Next::of(state, first_fast, underway.iter().any(|(_, slow)| *slow));
        self.steps_before(state, next, steps);
    }

    /// The same if `next` is next: what commutes with it is left out.
    pub(super) fn steps_before(&self, state: &State, next: Next, steps: &mut Vec<Step>) {
        let budget = state.budget;
        let underway = state.underway();
        let first_fast = underway.iter().find(|(_, slow)| !slow).map(|(what, _)| *what);
        steps.extend(underway.iter().filter(|(_, slow)| *slow).map(|(what, _)| Step::Happens(*what)));
        for node in 0..2 {
            self.steps_of_box(state, node, next, steps);
        }
        if state.cut == Cut::None && budget.partitions > 0 {
            let cuts = [Cut::Between, Cut::Isolated(0), Cut::Isolated(1)];
            steps.extend(cuts.into_iter().filter(|cut| next.cuts(state, *cut)).map(Step::Cut));
        }
        if let Some(first) = first_fast {
            steps.push(Step::Happens(first));
            if budget.delays > 0 {
                steps.push(Step::IsSlow(first));
            }
            return;
        }
        if budget.ticks > 0 {
            steps.push(Step::Tick);
        }
        if state.cut != Cut::None {
            steps.push(Step::Heal);
        }
        for node in 0..2 {
            if state.boxes[node].worker.is_none() {
                steps.push(Step::Restart(node));
            }
            if state.boxes[node].goodbye.is_some() && state.boxes[1 - node].worker.is_some() && state.is_joined() {
                steps.push(Step::Goodbye(node));
            }
        }
    }

    fn steps_of_box(&self, state: &State, node: usize, next: Next, steps: &mut Vec<Step>) {
        let budget = state.budget;
        let Some(worker) = &state.boxes[node].worker else { return };
        if budget.crashes > 0 {
            for power in [false, true].into_iter().filter(|power| !power || budget.power) {
                let in_flight = state.net.connections.iter().any(|c| !c.queues[1 - c.side(node)].is_empty());
                let lose = [false, true].into_iter().filter(|lose| !lose || in_flight);
                for lose in lose.filter(|lose| next.crashes(state, node, power, *lose)) {
                    let leftovers = state.leftovers(node, power);
                    steps.extend((0..leftovers).map(|left| Step::Crash { node, power, lose, left }));
                }
            }
        }
        let may_ask = (budget.writes, budget.reads, budget.flushes, budget.switchovers) != (0, 0, 0, 0);
        // A client's request to a box that is not primary is refused and changes nothing.
        if !may_ask || !next.asks(node) || !worker.replica.status(state.now()).role.starts_with("primary") {
            return;
        }
        if budget.switchovers > 0 {
            steps.push(Step::Switchover(node));
        }
        let open = state.client.ops.iter().filter(|op| op.open).count();
        if open >= budget.open_max as usize {
            return;
        }
        if budget.writes > 0 {
            steps.extend(writable(&state.client).map(|block| Step::Write(node, block)));
        }
        if budget.reads > 0 {
            let blocks = (0..BLOCKS).filter(|block| state.client.written[*block] > 0);
            steps.extend(blocks.map(|block| Step::Read(node, block)));
        }
        if budget.flushes > 0 && !state.client.ops.is_empty() {
            steps.push(Step::Flush(node));
        }
    }

    /// What is after `step`.
    pub fn after(&self, state: &State, step: Step) -> State {
        let mut next = state.clone();
        self.act(&mut next, step);
        next
    }

    /// The step that must follow, if there is no other.
    pub fn only_step(&self, state: &State) -> Option<Step> {
        let mut steps = Vec::new();
        if state.broken.is_none() {
            self.steps(state, &mut steps);
        }
        match steps[..] {
            [only @ Step::Happens(_)] => Some(only),
            _ => None,
        }
    }

    /// Takes `step`.
    pub fn act(&self, state: &mut State, step: Step) {
        let before = state.client.clone();
        match step {
            Step::Happens(Underway::Io(node, index)) => state.land(node, index),
            Step::Happens(Underway::Message(index, side)) => state.deliver(index, side),
            Step::Happens(Underway::Commit(index)) => self.commit(state, index),
            Step::Happens(Underway::Apply(node)) => state.apply(node),
            Step::Happens(Underway::Connect(node)) => state.connect(node),
            Step::IsSlow(what) => state.make_slow(what),
            Step::Tick => state.tick(),
            Step::Crash { node, power, lose, left } => state.crash(node, power, lose, left),
            Step::Restart(node) => state.restart(node),
            Step::Goodbye(node) => {
                let ended = Arc::make_mut(&mut state.boxes[node]).goodbye.take();
                if let Some(incarnation) = ended {
                    state.feed(1 - node, Event::Goodbye { node: node_id(node), incarnation });
                }
            }
            Step::Cut(cut) => {
                state.budget.partitions -= 1;
                state.cut = cut;
            }
            Step::Heal => state.cut = Cut::None,
            Step::Write(node, block) => state.ask_write(node, block),
            Step::Read(node, block) => state.ask_read(node, block),
            Step::Flush(node) => state.ask_flush(node),
            Step::Switchover(node) => {
                state.budget.switchovers -= 1;
                state.feed(node, Event::Control(Control::Switchover { to: node_id(1 - node) }));
            }
        }
        self.see(&before, state);
        if state.is_idle() && state.check_idle_copies() {
            self.sightings.see(sight::COMPARED);
        }
    }

    fn commit(&self, state: &mut State, index: usize) {
        let raft = Arc::make_mut(&mut state.raft);
        let Pending { command, .. } = raft.pending.remove(index);
        let before = raft.committed().clone();
        let applied = catch_unwind(AssertUnwindSafe(|| raft.state.apply(&command) == Outcome::Applied));
        match applied {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => return state.violate("the core's own assertions hold", format!("at the commit of {command:?}")),
        }
        let Some(after) = raft.state.volumes.get(&VOLUME).filter(|after| **after != *before).cloned() else { return };
        let version = after.version;
        raft.log.push(Arc::new(after));
        raft.pending.retain(|pending| match &pending.command.body {
            CommandBody::Volume { expect_version, .. } => *expect_version == version,
            CommandBody::Node(_) | CommandBody::Nfs { .. } => true,
        });
        let after = raft.committed().clone();
        state.check_commit(&before, &after);
        if let CommandBody::Volume { command, .. } = &command.body {
            match command {
                VolumeCommand::TakeOver { .. } => self.sightings.see(sight::TAKE_OVER),
                VolumeCommand::Resume { .. } => self.sightings.see(sight::RESUME),
                VolumeCommand::Shrink { .. } => self.sightings.see(sight::SHRINK),
                VolumeCommand::Admit { .. } => self.sightings.see(sight::ADMIT),
                VolumeCommand::Handoff { .. } => self.sightings.see(sight::HANDOFF),
                _ => {}
            }
        }
        if after.unflushed_loss != before.unflushed_loss {
            self.sightings.see(sight::LOSS);
        }
    }

    /// Notes what has been answered between two states.
    fn see(&self, before: &Arc<Client>, after: &State) {
        if Arc::ptr_eq(before, &after.client) || after.broken.is_some() {
            return;
        }
        for (old, new) in before.ops.iter().zip(&after.client.ops) {
            let answered = old.open && !new.open && after.boxes[new.node].worker.is_some();
            if !answered {
                continue;
            }
            let config = after.raft.applied(new.node);
            let sole = config.in_sync.len() == 1;
            let resumed = config.epoch.0 > 1 && config.primary == node_id(0) && after.boxes[0].runs > 1;
            match new.kind {
                OpKind::Write { .. } if sole => self.sightings.see(sight::SOLO_WRITE),
                OpKind::Read { .. } if config.primary == node_id(1) => self.sightings.see(sight::TAKEN_OVER_READ),
                OpKind::Flush { .. } => self.sightings.see(sight::FLUSH),
                _ => {}
            }
            if resumed {
                self.sightings.see(sight::RESUMED_ANSWER);
            }
        }
    }

    /// One step in words.
    pub fn describe_step(&self, state: &State, step: Step) -> String {
        match step {
            Step::Happens(Underway::Io(node, index)) => {
                let io = state.boxes[node].worker.as_ref().map(|worker| &worker.inflight[index].work);
                format!("box {node}: its disk ends {io:?}")
            }
            Step::Happens(Underway::Message(index, side)) => {
                let connection = &state.net.connections[index];
                let head = match connection.queues[side].front() {
                    Some(Item::Frame { envelope, message, payload }) => {
                        let message: &Message = message;
                        format!("[{}] {message:?} {payload:?}", describe(envelope))
                    }
                    other => format!("{other:?}"),
                };
                format!("box {} receives over {:?}: {head}", connection.node(side), connection.link)
            }
            Step::Happens(Underway::Commit(index)) => format!("commits: {:?}", state.raft.pending[index].command.body),
            Step::Happens(Underway::Apply(node)) => {
                let config = &state.raft.log[state.raft.applied[node] + 1];
                let members: Vec<_> = config.in_sync.keys().map(|id| id.0 - 1).collect();
                format!(
                    "box {node} applies v{}: epoch {}, primary {}, in sync {members:?}",
                    config.version,
                    config.epoch,
                    config.primary.0 - 1
                )
            }
            other => format!("{other:?}"),
        }
    }
}
