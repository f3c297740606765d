//! The operator: creates the volumes, attaches disks again, changes replicas, forces a primary when a box is off; and at
//! the end looks whether everything is well.

use proto::{DiskId, NodeId, RequestId};
use replication::config::{AckPolicy, Command, CommandBody, NodeCommand, VolumeCommand, VolumeConfig};

use super::checker::OpKind;
use super::client::Wish;
use super::cluster::{Ev, World, volume_id};
use super::scheduler::{MILLISECOND, NEVER, SECOND, SimTime};
use super::setup::{BOXES, VOLUME_BLOCKS};

/// Between two looks.
const WATCH: SimTime = 250 * MILLISECOND;
/// Clients go on for this long after everything is healed.
const CLIENTS_GO_ON: SimTime = 4 * SECOND;
/// A healed cluster must be in order within this.
const STUCK_AFTER: SimTime = 60 * SECOND;
/// An operator waits this long for a forced primary.
const FORCE_PATIENCE: SimTime = 8 * SECOND;
/// Blocks in one read of the last verification.
const VERIFY_BLOCKS: u64 = 64;

/// A primary that is being forced.
#[derive(Clone, Copy, Debug)]
struct ForceInHand {
    volume: usize,
    /// The box that is off, and stays off.
    off: usize,
    target: usize,
    token: u64,
    gives_up: SimTime,
}

/// What the operator has in mind.
#[derive(Debug, Default)]
pub struct Operator {
    /// Clients start nothing new.
    pub quiet: bool,
    /// The run is over and was judged.
    pub done: bool,
    healed: bool,
    force: Option<ForceInHand>,
    /// The last reads: operation and history entry, by volume.
    verifying: Option<Vec<(usize, u64, usize)>>,
    /// Disk ids given out.
    disks: u64,
}

impl World {
    /// Looks at everything, now and then.
    pub fn watch(&mut self) {
        self.create_volumes();
        self.attach_disks();
        self.drive_force();
        let heal_at = self.setup.faults.1;
        if !self.setup.scripted {
            if self.now >= heal_at && !self.operator.healed && self.operator.force.is_none() {
                self.operator.healed = true;
                self.heal_everything();
            }
            self.operator.quiet = self.now >= heal_at + CLIENTS_GO_ON;
            if self.operator.quiet && self.now + 2 * SECOND >= self.setup.lasts {
                self.conclude(heal_at + STUCK_AFTER);
            }
        }
        if !self.operator.done {
            self.queue.push(self.now + WATCH, Ev::Watch);
        }
    }

    fn new_disk(&mut self, node: usize) -> DiskId {
        self.operator.disks += 1;
        DiskId(u128::from(1000 * (node as u64 + 1) + self.operator.disks))
    }

    fn create_volumes(&mut self) {
        for volume in 0..self.volumes.len() {
            if self.volumes[volume].newest.is_some() {
                continue;
            }
            let replicas = self.setup.volumes[volume].replicas.clone();
            // Copies are named by their box and volume, so that a repeated command is the same command.
            let disk = |node: usize| DiskId(500 + 10 * volume as u128 + node as u128);
            let body = CommandBody::Node(NodeCommand::CreateVolume {
                volume: volume_id(volume),
                name: format!("volume{volume}"),
                size_bytes: VOLUME_BLOCKS * proto::BLOCK_BYTES,
                ack_policy: if self.setup.volumes[volume].durable { AckPolicy::Durable } else { AckPolicy::Flush },
                preallocate: false,
                replicas: replicas.iter().map(|node| (NodeId(*node as u64 + 1), disk(*node))).collect(),
            });
            self.operator_proposes(Command { request: RequestId(77 + volume as u128), body });
        }
    }

    /// Proposes through whichever box works.
    fn operator_proposes(&mut self, command: Command) {
        let first = self.rng.below(BOXES as u64) as usize;
        for node in (0..BOXES).map(|n| (first + n) % BOXES) {
            if self.boxes[node].worker.as_deref().is_some_and(|worker| worker.paused_until <= self.now)
                && self.propose(node, command.clone())
            {
                return;
            }
        }
    }

    /// A command about a volume, at its newest known version.
    pub fn operator_commands(&mut self, volume: usize, command: VolumeCommand) {
        let Some(config) = self.volumes[volume].newest.as_ref() else { return };
        let body = CommandBody::Volume { volume: config.id, expect_version: config.version, command };
        let request = RequestId(u128::from(self.rng.bits()));
        self.operator_proposes(Command { request, body });
    }

    /// Disks that were detached and work again are attached after a while.
    fn attach_disks(&mut self) {
        for node in 0..BOXES {
            for volume in 0..self.volumes.len() {
                let b = &mut self.boxes[node];
                let id = b.id;
                let works = b.stores[volume].as_ref().is_some_and(|store| store.faults.error_permille == 0);
                let detached = b.volume(volume).is_some_and(|run| !run.attached && !run.opening && !run.stopped);
                if !works || !detached {
                    continue;
                }
                if self.rng.chance(200) {
                    self.schedule_open(node, volume, 0);
                } else if self.rng.chance(100) && self.is_sole_primary(volume, id) {
                    // Nobody else can serve, and a primary does not take its disk back: only a new run does.
                    self.crash_worker(node);
                }
            }
        }
    }

    fn is_sole_primary(&self, volume: usize, id: NodeId) -> bool {
        let config = self.volumes[volume].newest.as_ref();
        config.is_some_and(|config| config.primary == id && config.in_sync.keys().eq([&id]))
    }

    /// Adds or removes the copy on the third box.
    pub fn change_replicas(&mut self) {
        if !self.setup.third_stores {
            return;
        }
        let volume = self.some_volume();
        let node = self.rng.below(BOXES as u64) as usize;
        let Some(config) = self.volumes[volume].newest.as_ref() else { return };
        let id = NodeId(node as u64 + 1);
        let command = if config.replicas.contains_key(&id) {
            VolumeCommand::RemoveReplica { node: id }
        } else {
            let disk_id = self.new_disk(node);
            VolumeCommand::AddReplica { node: id, disk_id }
        };
        self.operator_commands(volume, command);
    }

    /// Switches the primary's box off for good, so that another may be forced.
    pub fn plan_force(&mut self) {
        let volume = self.some_volume();
        let Some(config) = self.volumes[volume].newest.clone() else { return };
        let off = config.primary.0 as usize - 1;
        let others: Vec<usize> =
            config.replicas.keys().filter(|id| **id != config.primary).map(|id| id.0 as usize - 1).collect();
        if self.operator.force.is_some() || others.is_empty() {
            return;
        }
        let target = self.rng.pick(&others);
        self.power_off(off);
        self.boxes[off].held_off = true;
        let token = self.rng.bits();
        self.operator.force = Some(ForceInHand { volume, off, target, token, gives_up: self.now + FORCE_PATIENCE });
    }

    fn drive_force(&mut self) {
        let Some(force) = self.operator.force else { return };
        let Some(config) = self.volumes[force.volume].newest.clone() else { return };
        let off = NodeId(force.off as u64 + 1);
        let incarnation = config.replicas.get(&off).map(|registration| registration.incarnation);
        // Somebody else serves already, or the cluster does not answer: the box may come back.
        if config.primary != off || self.now >= force.gives_up || incarnation.is_none() {
            self.operator.force = None;
            self.boxes[force.off].held_off = false;
            let at = self.now + self.rng.between(100 * MILLISECOND, 5 * SECOND);
            self.queue.push(at, Ev::PowerOn { node: force.off });
            return;
        }
        let prepared = config.force_plan.is_some_and(|plan| plan.token == force.token);
        let command = if prepared {
            VolumeCommand::ForcePrimary { token: force.token }
        } else {
            let attested = (off, incarnation.unwrap_or_default());
            VolumeCommand::PrepareForce { target: NodeId(force.target as u64 + 1), attested, token: force.token }
        };
        self.operator_commands(force.volume, command);
    }

    /// The end of a run: everything must come in order, and the copies and the history must be right.
    fn conclude(&mut self, deadline: SimTime) {
        if let Some(reads) = self.operator.verifying.take() {
            return self.verify(reads);
        }
        let unsettled: Vec<usize> = (0..self.volumes.len()).filter(|volume| !self.in_order(*volume)).collect();
        if unsettled.is_empty() {
            self.operator.verifying = Some(self.read_everything());
            return;
        }
        if self.now < deadline {
            return;
        }
        for volume in unsettled {
            if self.may_be_unavailable(volume) {
                self.stats.unavailable += 1;
            } else {
                let detail = self.describe(volume);
                return self.violate(Some(volume), "stuck", detail);
            }
        }
        self.judge_histories();
        self.operator.done = true;
    }

    /// A volume serves, every copy is in sync, and nothing is open.
    pub fn in_order(&mut self, volume: usize) -> bool {
        let Some(config) = self.volumes[volume].newest.clone() else { return false };
        let now = self.now;
        let everybody = config.in_sync.len() == config.replicas.len();
        let b = &mut self.boxes[config.primary.0 as usize - 1];
        let reading = proto::Timestamp(b.clock.read(now));
        let serves = b.volume(volume).is_some_and(|run| run.replica.status(reading).serving);
        everybody && serves && !self.ops.values().any(|open| open.volume == volume)
    }

    /// Every copy that may serve is on a failed disk: nobody can do anything but force an old copy.
    fn may_be_unavailable(&self, volume: usize) -> bool {
        let Some(config) = self.volumes[volume].newest.as_ref() else { return false };
        let lost = |id: &NodeId| self.boxes[id.0 as usize - 1].stores[volume].as_ref().is_none_or(|store| store.failed);
        !config.in_sync.is_empty() && config.in_sync.keys().all(lost)
    }

    fn describe(&mut self, volume: usize) -> String {
        let mut text = match &self.volumes[volume].newest {
            Some(c) => format!(
                "primary {} epoch {} version {} in_sync {:?} of {:?}",
                c.primary,
                c.epoch,
                c.version,
                c.in_sync.keys().map(|id| id.0).collect::<Vec<_>>(),
                c.replicas.keys().map(|id| id.0).collect::<Vec<_>>()
            ),
            None => "no configuration".into(),
        };
        for node in 0..BOXES {
            let b = &mut self.boxes[node];
            let reading = proto::Timestamp(b.clock.read(self.now));
            if let Some(run) = b.volume(volume) {
                let status = run.replica.status(reading);
                text += &format!("; node {}: {} {:?}", node + 1, status.role, status.waiting);
            }
        }
        let open = self.ops.values().filter(|open| open.volume == volume).count();
        text + &format!("; {open} operations open")
    }

    fn read_everything(&mut self) -> Vec<(usize, u64, usize)> {
        let mut reads = Vec::new();
        for volume in 0..self.volumes.len() {
            let Some(primary) = self.volumes[volume].newest.as_ref().map(|config| config.primary) else { continue };
            for start in (0..VOLUME_BLOCKS).step_by(VERIFY_BLOCKS as usize) {
                let wish = Wish::read(proto::BlockRange::new(start, VERIFY_BLOCKS));
                if let Some(op) = self.ask(primary.0 as usize - 1, volume, wish, None) {
                    reads.push((volume, op, self.ops[&op].records[0]));
                }
            }
        }
        reads
    }

    fn verify(&mut self, reads: Vec<(usize, u64, usize)>) {
        if reads.iter().any(|(_, op, _)| self.ops.contains_key(op)) {
            self.operator.verifying = Some(reads);
            return;
        }
        let answered = |volume: usize, record: usize| self.volumes[volume].history.op(record).end != NEVER;
        if !reads.iter().all(|(volume, _, record)| answered(*volume, *record)) {
            return;
        }
        self.judge_histories();
        for volume in 0..self.volumes.len() {
            let Some(config) = self.volumes[volume].newest.clone() else { continue };
            self.compare_copies(volume, &config, &reads);
            self.look_for_leaks(volume);
        }
        self.operator.done = true;
    }

    /// Judges what clients saw, for every volume.
    pub fn judge_histories(&mut self) {
        for volume in 0..self.volumes.len() {
            self.stats.losses += self.volumes[volume].history.losses() as u64;
            if let Err(fault) = self.volumes[volume].history.check() {
                self.violate(Some(volume), fault.rule, fault.detail);
                if let Some(violation) = self.violation.as_mut() {
                    violation.at = fault.at;
                }
            }
        }
    }

    /// All copies in sync hold the same, and what the last reads returned.
    fn compare_copies(&mut self, volume: usize, config: &VolumeConfig, reads: &[(usize, u64, usize)]) {
        let mut differing = None;
        for (_, _, record) in reads.iter().filter(|(v, ..)| *v == volume) {
            let OpKind::Read { range, data } = &self.volumes[volume].history.op(*record).kind else { continue };
            for member in config.in_sync.keys() {
                let Some(store) = self.boxes[member.0 as usize - 1].stores[volume].as_ref() else { continue };
                let wrong = |(block, content): &(u64, &super::disk::Block)| store.visible(*block) != **content;
                if let Some((block, content)) = range.blocks().zip(data).find(wrong) {
                    differing = Some((*member, block, store.visible(block), *content));
                }
            }
        }
        if let Some((member, block, holds, read)) = differing {
            let detail = format!("member {member} holds {holds:?} in block {block}, the primary returned {read:?}");
            self.violate(Some(volume), "copies_differ", detail);
        }
    }

    /// Nothing is open, so no replica may hold a payload.
    fn look_for_leaks(&mut self, volume: usize) {
        for node in 0..BOXES {
            let Some(run) = self.boxes[node].volume(volume) else { continue };
            let mut held: Vec<_> = run.payloads.keys().copied().collect();
            held.sort_unstable();
            if !held.is_empty() {
                let detail = format!("node {} holds {} payloads, as {:?}", node + 1, held.len(), held[0]);
                return self.violate(Some(volume), "payload_never_released", detail);
            }
        }
    }
}
