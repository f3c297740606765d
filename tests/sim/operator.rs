//! The operator: creates the volumes, attaches disks again, changes replicas, replaces boxes, forces a primary when a box
//! is off. Whether everything is well at the end is looked at in `verdict`.

use proto::{DiskId, NodeId, RequestId};
use replication::config::{AckPolicy, Command, CommandBody, NfsCommand, NodeCommand, VolumeCommand};

use super::cluster::{Ev, World, volume_id};
use super::scheduler::{MILLISECOND, SECOND, SimTime};
use super::setup::BOXES;
use super::verdict::LastRead;

/// Between two looks.
const WATCH: SimTime = 250 * MILLISECOND;
/// Clients go on for this long after everything is healed.
const CLIENTS_GO_ON: SimTime = 4 * SECOND;
/// A healed cluster must be in order within this and what a full resync takes.
const STUCK_AFTER: SimTime = 60 * SECOND;
/// An operator waits this long for a forced primary.
const FORCE_PATIENCE: SimTime = 8 * SECOND;
/// An operator waits this long until a box that is to be replaced is no member any more.
const REPLACE_PATIENCE: SimTime = 10 * SECOND;

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

/// A box that is being replaced.
#[derive(Clone, Debug)]
struct Replacement {
    /// The box; it is off, and stays off until it is registered anew everywhere, or the operator gives up.
    node: usize,
    /// By volume: the copy to give up, and the one that takes its place.
    copies: Vec<Option<(DiskId, DiskId)>>,
    gives_up: SimTime,
}

/// What the operator has in mind.
#[derive(Debug, Default)]
pub struct Operator {
    /// Clients start nothing new.
    pub quiet: bool,
    /// The run is over and was judged.
    pub done: bool,
    /// Everything has been healed.
    pub healed: bool,
    force: Option<ForceInHand>,
    replacement: Option<Replacement>,
    /// The last reads.
    pub verifying: Option<Vec<LastRead>>,
    /// Last verifications so far.
    pub verify_rounds: u32,
    /// Disk ids given out.
    disks: u64,
}

impl World {
    /// Looks at everything, now and then.
    pub fn watch(&mut self) {
        self.create_volumes();
        self.attach_disks();
        self.drive_force();
        self.drive_replacement();
        let heal_at = self.setup.faults.1;
        if !self.setup.scripted {
            if self.now >= heal_at
                && !self.operator.healed
                && self.operator.force.is_none()
                && self.operator.replacement.is_none()
            {
                self.operator.healed = true;
                self.heal_everything();
            }
            self.operator.quiet = self.now >= heal_at + CLIENTS_GO_ON;
            if self.operator.quiet && self.now + 2 * SECOND >= self.setup.lasts {
                self.conclude(heal_at + STUCK_AFTER + self.setup.longest_resync());
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
                size_bytes: self.setup.volumes[volume].blocks * proto::BLOCK_BYTES,
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

    /// A command about a volume's NFS service, at its newest known version.
    pub fn operator_serves(&mut self, volume: usize, command: NfsCommand) {
        let Some(config) = self.volumes[volume].newest.as_ref() else { return };
        let body = CommandBody::Nfs { volume: config.id, expect_version: config.nfs_version(), command };
        let request = RequestId(u128::from(self.rng.bits()));
        self.operator_proposes(Command { request, body });
    }

    /// Disks that were detached and work again are attached after a while.
    fn attach_disks(&mut self) {
        for node in 0..BOXES {
            for volume in 0..self.volumes.len() {
                let b = &mut self.boxes[node];
                let id = b.id;
                let works = b.stores[volume].as_ref().is_some_and(|store| store.raw.faults.error_permille == 0);
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
        if self.operator.force.is_some() || self.operator.replacement.is_some() || others.is_empty() {
            return;
        }
        let target = self.rng.pick(&others);
        self.power_off(off);
        self.boxes[off].held_off = true;
        let token = self.rng.bits();
        self.operator.force = Some(ForceInHand { volume, off, target, token, gives_up: self.now + FORCE_PATIENCE });
    }

    /// Switches a box off, to replace it and its copies.
    pub fn plan_replacement(&mut self, node: usize) {
        if self.operator.force.is_some() || self.operator.replacement.is_some() || !self.boxes[node].powered {
            return;
        }
        let id = self.boxes[node].id;
        let copies = (0..self.volumes.len()).map(|volume| {
            let config = self.volumes[volume].newest.as_ref()?;
            let old = config.replicas.get(&id)?.disk_id;
            Some((old, self.new_disk(node)))
        });
        let copies = copies.collect();
        self.power_off(node);
        self.boxes[node].held_off = true;
        let gives_up = self.now + REPLACE_PATIENCE;
        self.operator.replacement = Some(Replacement { node, copies, gives_up });
    }

    /// Drops the copies of a box that is to be replaced, adds new ones, and lets the box come back: empty, or with the
    /// disks that nobody wants any more.
    fn drive_replacement(&mut self) {
        let Some(Replacement { node, copies, gives_up }) = self.operator.replacement.clone() else { return };
        let id = self.boxes[node].id;
        let mut open = false;
        for (volume, copy) in copies.iter().enumerate() {
            let (Some((old, new)), Some(config)) = (*copy, self.volumes[volume].newest.as_ref()) else { continue };
            let busy = config.primary == id || config.in_sync.contains_key(&id);
            let command = match config.replicas.get(&id) {
                Some(registration) if registration.disk_id == new => continue,
                Some(registration) if registration.disk_id == old => VolumeCommand::RemoveReplica { node: id },
                Some(_) => continue,
                None => VolumeCommand::AddReplica { node: id, disk_id: new },
            };
            if busy && self.now >= gives_up {
                continue;
            }
            open = true;
            if !busy {
                self.operator_commands(volume, command);
            }
        }
        if open {
            return;
        }
        self.operator.replacement = None;
        let empty = self.rng.chance(500);
        for (volume, copy) in copies.into_iter().enumerate() {
            let store = &mut self.boxes[node].stores[volume];
            let config = self.volumes[volume].newest.as_ref();
            let registered = config.and_then(|config| config.replicas.get(&id)).map(|replica| replica.disk_id);
            if empty && copy.is_some_and(|(_, new)| registered == Some(new)) {
                let gone = store.take();
                let struck = gone.iter().flat_map(|store| store.raw.harm.ever.keys());
                self.volumes[volume].struck_before.extend(struck);
            }
        }
        self.boxes[node].held_off = false;
        let at = self.now + self.rng.between(100 * MILLISECOND, 5 * SECOND);
        self.queue.push(at, Ev::PowerOn { node });
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
}
