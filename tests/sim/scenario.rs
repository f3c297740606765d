//! Scripted runs over the simulated cluster: one volume on nodes 1 and 2, a witness, no faults but those ordered.
//!
//! Nodes are numbered from 1 here, as in the protocol. A script ends with [`Scenario::finish`], which heals everything
//! and applies every check that a random run ends with.

use proto::{BlockRange, NodeId};
use replication::Control;

use super::client::Wish;
use super::cluster::{Ev, Resynced, World, volume_id};
use super::disk::{Block, DiskFaults};
use super::scheduler::{MILLISECOND, NEVER, SECOND, SimTime};
use super::setup::{BOXES, Setup};

/// An operation that was asked for: its number and its entry in the history.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    op: u64,
    record: usize,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No answer yet.
    Open,
    /// Done.
    Done,
    /// Refused, or its node died.
    Refused,
}

/// A cluster under a script.
#[derive(Debug)]
pub struct Scenario {
    /// Everything, for what the methods do not offer.
    pub world: World,
}

impl Default for Scenario {
    fn default() -> Self {
        Self::new()
    }
}

impl Scenario {
    /// A cluster that serves: node 1 is primary, both copies are in sync.
    pub fn new() -> Self {
        Self::with(Setup::scripted())
    }

    /// The same with other parameters.
    pub fn with(setup: Setup) -> Self {
        let mut scenario = Self { world: World::new(setup, true) };
        scenario.run_until("the volume serves", 20_000, |s| s.world.in_order(0));
        scenario
    }

    /// Lets time pass.
    pub fn run(&mut self, milliseconds: u64) {
        let until = self.world.now + milliseconds * MILLISECOND;
        self.world.run_until(until);
        self.assert_well();
    }

    /// Lets time pass in small steps until `condition` holds; panics if it does not within `milliseconds`.
    pub fn run_until(&mut self, what: &str, milliseconds: u64, mut condition: impl FnMut(&mut Self) -> bool) {
        let until = self.world.now + milliseconds * MILLISECOND;
        while !condition(self) {
            if self.world.now >= until {
                self.print_trace();
                panic!("not within {milliseconds} ms: {what}");
            }
            let next = self.world.now + 200;
            self.world.run_until(next);
            self.assert_well();
        }
    }

    fn print_trace(&self) {
        self.world.trace.tail(None, NEVER, 200).iter().for_each(|line| println!("{line}"));
    }

    fn assert_well(&self) {
        if let Some(violation) = &self.world.violation {
            self.print_trace();
            panic!("{}: {}", violation.rule, violation.detail);
        }
    }

    /// Gives an operation to a node, which must listen.
    pub fn ask(&mut self, node: usize, wish: Wish) -> Asked {
        let op = self.world.ask(node - 1, 0, wish, None).expect("the node's worker runs");
        Asked { op, record: self.world.ops[&op].records[0] }
    }

    /// Asks for a write of `value` to one block.
    pub fn write(&mut self, node: usize, block: u64, value: u32) -> Asked {
        self.ask(node, Wish::write(BlockRange::new(block, 1), value, false))
    }

    /// Asks for a read of one block.
    pub fn read(&mut self, node: usize, block: u64) -> Asked {
        self.ask(node, Wish::read(BlockRange::new(block, 1)))
    }

    /// How an operation stands.
    pub fn answer(&self, asked: Asked) -> Answer {
        match self.world.volumes[0].history.op(asked.record).end {
            NEVER if self.world.ops.contains_key(&asked.op) => Answer::Open,
            NEVER => Answer::Refused,
            _ => Answer::Done,
        }
    }

    /// Waits until a write to one block is done.
    pub fn write_done(&mut self, node: usize, block: u64, value: u32) {
        let asked = self.write(node, block, value);
        self.run_until("a write is done", 10_000, |s| s.answer(asked) == Answer::Done);
    }

    /// Waits until everything written is flushed.
    pub fn flush_done(&mut self, node: usize) {
        let asked = self.ask(node, Wish::flush());
        self.run_until("a flush is done", 10_000, |s| s.answer(asked) == Answer::Done);
    }

    /// Waits for a read of one block and returns what came.
    pub fn read_done(&mut self, node: usize, block: u64) -> Block {
        let asked = self.read(node, block);
        self.run_until("a read is done", 10_000, |s| s.answer(asked) == Answer::Done);
        match &self.world.volumes[0].history.op(asked.record).kind {
            super::checker::OpKind::Read { data, .. } => data[0],
            _ => [0, 0],
        }
    }

    /// Nothing passes between two nodes any more.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.world.cut(a - 1, b - 1, NEVER);
        self.world.cut(b - 1, a - 1, NEVER);
    }

    /// A node is cut off from all others.
    pub fn isolate(&mut self, node: usize) {
        (1..=BOXES).filter(|other| *other != node).for_each(|other| self.cut(node, other));
    }

    /// Opens the path between two nodes again.
    pub fn join(&mut self, a: usize, b: usize) {
        for (from, to) in [(a - 1, b - 1), (b - 1, a - 1)] {
            let later = self.world.net.unblock(from, to, true, self.world.now, &mut self.world.rng);
            self.world.schedule_net(later);
        }
    }

    /// Opens all paths of a node again.
    pub fn rejoin(&mut self, node: usize) {
        (1..=BOXES).filter(|other| *other != node).for_each(|other| self.join(node, other));
    }

    /// A box loses power.
    pub fn power_off(&mut self, node: usize) {
        self.world.power_off(node - 1);
    }

    /// A box gets power; its worker starts soon.
    pub fn power_on(&mut self, node: usize) {
        self.world.power_on(node - 1);
    }

    /// A worker is killed; it starts again within seconds.
    pub fn kill_worker(&mut self, node: usize) {
        self.world.crash_worker(node - 1);
    }

    /// A node's disk misbehaves until [`Scenario::heal_disk`].
    pub fn disk(&mut self, node: usize, faults: DiskFaults) {
        self.world.boxes[node - 1].stores.iter_mut().flatten().for_each(|store| store.raw.faults = faults);
    }

    /// A node's disk works again.
    pub fn heal_disk(&mut self, node: usize) {
        self.world.heal_disk(node - 1);
    }

    /// The operator's wish to a node.
    pub fn control(&mut self, node: usize, control: Control) {
        let now = self.world.now;
        self.world.queue.push(now, Ev::Wish { node: node - 1, volume: 0, control });
    }

    /// Who is primary by the newest configuration.
    pub fn primary(&self) -> usize {
        self.world.volumes[0].newest.as_ref().map_or(0, |config| config.primary.0 as usize)
    }

    /// Members by the newest configuration.
    pub fn in_sync(&self) -> Vec<usize> {
        let newest = self.world.volumes[0].newest.as_ref();
        newest.map_or(Vec::new(), |config| config.in_sync.keys().map(|id| id.0 as usize).collect())
    }

    /// Members as far as a node has learnt.
    pub fn in_sync_at(&mut self, node: usize) -> Vec<NodeId> {
        let run = self.world.boxes[node - 1].volume(0);
        run.and_then(|run| run.config.as_ref()).map_or(Vec::new(), |config| config.in_sync.keys().copied().collect())
    }

    /// Port of the volume's NFS service as far as a node has learnt; `None` without a service, or a node that is off.
    pub fn nfs_port_at(&mut self, node: usize) -> Option<u16> {
        let worker = self.world.boxes[node - 1].worker.as_deref()?;
        worker.raft.state().volumes.get(&volume_id(0))?.nfs.as_ref().map(|service| service.port)
    }

    /// Extents that are hot on a node's copy; 0 without a copy that is open.
    pub fn hot_extents(&mut self, node: usize) -> u64 {
        let run = self.world.boxes[node - 1].volume(0);
        run.and_then(|run| run.engine.as_ref()).map_or(0, |engine| engine.copy.hot_extents())
    }

    /// What resyncs have compared and sent so far.
    pub fn resynced(&self) -> Resynced {
        self.world.volumes[0].resynced
    }

    /// Starts that declared that writes may be lost.
    pub fn losses(&self) -> usize {
        self.world.volumes[0].history.losses()
    }

    /// Waits until `node` is primary and serves.
    pub fn served_by(&mut self, node: usize, milliseconds: u64) {
        self.run_until("the node serves", milliseconds, |s| {
            let b = &mut s.world.boxes[node - 1];
            let reading = proto::Timestamp(b.clock.read(s.world.now));
            s.primary() == node
                && s.world.boxes[node - 1].volume(0).is_some_and(|run| run.replica.status(reading).serving)
        });
    }

    /// Waits until both copies are in sync and the primary knows it: it is not always the first to learn.
    pub fn both_in_sync(&mut self) {
        self.run_until("both copies are in sync", 30_000, |s| {
            s.in_sync() == [1, 2] && s.in_sync_at(s.primary()) == [NodeId(1), NodeId(2)]
        });
    }

    /// Heals everything, waits until all is in order, and checks the history and the copies.
    pub fn finish(mut self) {
        let now: SimTime = self.world.now;
        self.world.setup.scripted = false;
        self.world.setup.faults.1 = now;
        self.world.setup.lasts = now + SECOND;
        super::run::conclude(&mut self.world);
        self.assert_well();
    }
}
