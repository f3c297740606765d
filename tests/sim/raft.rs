//! Drives the shipped consensus: ticks, messages over a lossy network, and a log that is durable only after a while.

use raft::eraftpb::Message;
use replication::Event;
use replication::config::Command;
use replication::config::consensus::{Consensus, ConsensusConfig, Persist, RestoreError, Restored, Settled};

use proto::NodeId;

use super::cluster::{Ev, World};
use super::scheduler::{MILLISECOND, SimTime};
use super::setup::BOXES;

/// Raft's tick.
pub const TICK: SimTime = 50 * MILLISECOND;
/// A log write takes this long.
const LOG_WRITE: (SimTime, SimTime) = (100, 4 * MILLISECOND);

/// Starts a member from its log.
pub fn start(node: NodeId, seed: u64, log: Restored) -> Result<Consensus, RestoreError> {
    let config = ConsensusConfig { node, election_ticks: 10, heartbeat_ticks: 3, seed, log_entries_max: 64 };
    Consensus::new(config, log)
}

/// What a finished log write leaves on the disk.
pub fn write_log(log: &mut Restored, persist: Persist) {
    if let Some(snapshot) = persist.snapshot {
        log.entries.clear();
        log.snapshot = Some(snapshot);
    }
    if let Some(first) = persist.entries.first() {
        let from = first.index;
        log.entries.retain(|entry| entry.index < from);
        log.entries.extend(persist.entries);
    }
    if let Some(hard_state) = persist.hard_state {
        log.hard_state = hard_state;
    }
}

impl World {
    /// One tick of a member.
    pub fn raft_tick(&mut self, node: usize, run: u32) {
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        let due = self.now + TICK;
        if worker.paused_until > self.now {
            let until = worker.paused_until;
            self.queue.push(until + 1, Ev::RaftTick { node, run });
            return;
        }
        worker.raft.tick();
        self.queue.push(due, Ev::RaftTick { node, run });
        self.drive_raft(node);
    }

    /// A message reaches a member.
    pub fn raft_message(&mut self, node: usize, message: Message) {
        let Some(worker) = self.boxes[node].worker.as_deref_mut() else { return };
        // What a member refuses it treats as lost; so does the simulator.
        let _ = worker.raft.step(message);
        self.drive_raft(node);
    }

    /// Proposes a command; it may vanish.
    pub fn propose(&mut self, node: usize, command: Command) -> bool {
        let Some(worker) = self.boxes[node].worker.as_deref_mut() else { return false };
        let run = worker.run;
        let taken = worker.raft.propose(command.encode());
        if !std::mem::replace(&mut worker.raft_due, true) {
            self.queue.push(self.now, Ev::RaftRound { node, run });
        }
        taken
    }

    /// A log write has ended.
    pub fn raft_persisted(&mut self, node: usize, run: u32, number: u64) {
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut().filter(|worker| worker.run == run) else { return };
        let Some(persist) = worker.persist.take() else { return };
        write_log(&mut b.raft_log, persist);
        let settled = worker.raft.persisted(number);
        self.settle(node, settled);
        self.drive_raft(node);
    }

    /// Sends and writes what the member has to.
    pub fn drive_raft(&mut self, node: usize) {
        loop {
            let b = &mut self.boxes[node];
            let Some(worker) = b.worker.as_deref_mut() else { return };
            worker.raft_due = false;
            if let Some(halt) = worker.raft.halted() {
                let why = halt.to_string();
                return self.violate(None, "consensus_halted", format!("node {}: {why}", node + 1));
            }
            let Some(turn) = worker.raft.ready() else { return };
            let run = worker.run;
            self.send_raft(node, turn.messages);
            let number = turn.persist.number;
            let Some(worker) = self.boxes[node].worker.as_deref_mut() else { return };
            if turn.persist.is_empty() {
                let settled = worker.raft.persisted(number);
                self.settle(node, settled);
            } else {
                worker.persist = Some(turn.persist);
                let at = self.now + self.rng.skewed(LOG_WRITE.0, LOG_WRITE.1);
                self.queue.push(at, Ev::RaftPersisted { node, run, number });
                return;
            }
        }
    }

    fn settle(&mut self, node: usize, settled: Settled) {
        self.send_raft(node, settled.messages);
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut() else { return };
        if let Some(commit) = settled.commit {
            b.raft_log.hard_state = commit;
        }
        if settled.compacted {
            b.raft_log = worker.raft.image();
        }
        if settled.restored || !settled.applied.is_empty() {
            for entry in &settled.applied {
                self.trace.mix(entry.index);
            }
            if self.trace.recording() {
                // A log that is replayed after a start is no news.
                let seen = self.boxes[node].applied_max;
                for entry in settled.applied.into_iter().filter(|entry| entry.index > seen) {
                    self.boxes[node].applied_max = entry.index;
                    let what = Command::decode(&entry.data).map(|command| format!("{:?}", command.body));
                    let line = format!("{}: applies #{} {:?}: {:?}", node + 1, entry.index, what, entry.outcome);
                    self.note(None, || line);
                }
            }
            self.config_changed(node);
        }
    }

    fn send_raft(&mut self, from: usize, messages: Vec<Message>) {
        for message in messages {
            let to = message.to as usize - 1;
            if to >= BOXES || self.rng.chance(self.setup.raft_loss_permille) {
                continue;
            }
            if self.rng.chance(self.setup.raft_loss_permille)
                && let Some(delay) = self.net.delay(from, to, &mut self.rng)
            {
                let message = Box::new(message.clone());
                self.queue.push(self.now + 20 * delay, Ev::RaftMessage { to, message });
            }
            if let Some(delay) = self.net.delay(from, to, &mut self.rng) {
                self.queue.push(self.now + delay, Ev::RaftMessage { to, message: Box::new(message) });
            }
        }
    }

    /// The leader tells everybody whom it hears.
    pub fn report_heard(&mut self, node: usize) {
        let Some(worker) = self.boxes[node].worker.as_deref() else { return };
        if !worker.raft.is_leader() {
            return;
        }
        let mut heard = [false; BOXES];
        for (id, alive) in worker.raft.heard() {
            heard[id.0 as usize - 1] = alive;
        }
        self.leader_report(node, heard);
        for to in (0..BOXES).filter(|to| *to != node && self.setup.stores(*to)) {
            if let Some(delay) = self.net.delay(node, to, &mut self.rng) {
                self.queue.push(self.now + delay, Ev::LeaderReport { to, heard });
            }
        }
    }

    /// Such a report arrives.
    pub fn leader_report(&mut self, to: usize, heard: [bool; BOXES]) {
        for volume in 0..self.volumes.len() {
            for (other, alive) in heard.into_iter().enumerate().filter(|(other, _)| *other != to) {
                if self.setup.stores(other) {
                    self.feed(to, volume, Event::LeaderHears { node: NodeId(other as u64 + 1), alive });
                }
            }
        }
    }
}
