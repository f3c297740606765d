//! Injects faults: what, where and for how long is drawn from the seed; everything is healed at the end.

use proto::{BlockRange, NodeId};
use replication::Control;

use super::cluster::{Ev, World};
use super::disk::{DiskFaults, SilentFaults};
use super::network::PROTOCOL;
use super::scheduler::{MILLISECOND, NEVER, SECOND, SimTime};
use super::setup::BOXES;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A worker process is killed.
    WorkerCrash,
    /// A box loses power for a while.
    PowerCut,
    /// All boxes with copies lose power at about the same time.
    PowerCutAll,
    /// The witness (or third box) is off for a while.
    WitnessOff,
    /// A process handles nothing for a while; its clock runs.
    Pause,
    /// A box stands still, clock included (a paused virtual machine).
    FrozenClock,
    /// Nothing passes between two boxes.
    Cut,
    /// Nothing passes from one box to another.
    CutOneWay,
    /// A box is cut off from all others.
    Isolate,
    /// Connections break.
    Reset,
    /// A path is slow.
    SlowPath,
    /// A disk is slow.
    SlowDisk,
    /// A disk fails operations.
    DiskErrors,
    /// Operations of a disk hang.
    StuckDisk,
    /// A worker is stopped in order and starts again.
    Restart,
    /// The operator wants a switchover.
    Switchover,
    /// The operator detaches a disk.
    Detach,
    /// The operator forces a primary while the other box is off.
    Force,
    /// The operator adds or removes the third copy.
    Replicas,
    /// The operator scrubs or verifies a volume.
    Scrub,
    /// A disk has no space for new extents.
    DiskFull,
    /// A box is replaced: its copies are gone for good, or come back when nobody wants them.
    ReplaceBox,
    /// A box goes on with the newer version of the peer protocol.
    Upgrade,
    /// Blocks change at rest.
    BitRot,
    /// Pages of metadata change at rest.
    PageRot,
    /// Writes are acknowledged and dropped, or land elsewhere.
    SilentWrites,
    /// Flushes are acknowledged and not done.
    LyingFlush,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [FaultKind; 27] = [
        FaultKind::WorkerCrash,
        FaultKind::PowerCut,
        FaultKind::PowerCutAll,
        FaultKind::WitnessOff,
        FaultKind::Pause,
        FaultKind::FrozenClock,
        FaultKind::Cut,
        FaultKind::CutOneWay,
        FaultKind::Isolate,
        FaultKind::Reset,
        FaultKind::SlowPath,
        FaultKind::SlowDisk,
        FaultKind::DiskErrors,
        FaultKind::StuckDisk,
        FaultKind::Restart,
        FaultKind::Switchover,
        FaultKind::Detach,
        FaultKind::Force,
        FaultKind::Replicas,
        FaultKind::Scrub,
        FaultKind::DiskFull,
        FaultKind::ReplaceBox,
        FaultKind::Upgrade,
        FaultKind::BitRot,
        FaultKind::PageRot,
        FaultKind::SilentWrites,
        FaultKind::LyingFlush,
    ];

    /// True for harm that the disk does not tell of; it strikes the flawed box of a run only.
    pub fn is_silent(self) -> bool {
        matches!(self, FaultKind::BitRot | FaultKind::PageRot | FaultKind::SilentWrites | FaultKind::LyingFlush)
    }
}

impl World {
    /// Schedules the first fault.
    pub fn start_faults(&mut self) {
        if !self.setup.kinds.is_empty() {
            self.queue.push(self.setup.faults.0, Ev::Fault);
        }
    }

    /// Injects one fault and schedules the next.
    pub fn next_fault(&mut self) {
        if self.now >= self.setup.faults.1 {
            return;
        }
        let kind = self.setup.kinds[self.rng.below(self.setup.kinds.len() as u64) as usize];
        self.inject(kind);
        // Mostly apart, sometimes in bursts.
        let gap = if self.rng.chance(200) { 30 * MILLISECOND } else { 2 * self.setup.fault_gap };
        let at = self.now + self.rng.below(gap);
        self.queue.push(at, Ev::Fault);
    }

    /// Injects a fault of this kind somewhere.
    pub fn inject(&mut self, kind: FaultKind) {
        self.stats.faults += 1;
        self.note(None, || format!("fault: {kind:?}"));
        let node = self.some_store();
        match kind {
            FaultKind::WorkerCrash => {
                let node = self.rng.below(BOXES as u64) as usize;
                self.crash_worker(node);
            }
            FaultKind::PowerCut => self.power_cut_for_a_while(node),
            FaultKind::PowerCutAll => {
                for node in (0..BOXES).filter(|node| self.setup.stores(*node)).collect::<Vec<_>>() {
                    if self.rng.chance(950) {
                        self.power_cut_for_a_while(node);
                    }
                }
            }
            FaultKind::WitnessOff => self.power_cut_for_a_while(BOXES - 1),
            FaultKind::Pause => self.pause(node, false),
            FaultKind::FrozenClock => self.pause(node, true),
            FaultKind::Cut | FaultKind::CutOneWay => {
                let from = self.rng.below(BOXES as u64) as usize;
                let to = (from + 1 + self.rng.below(BOXES as u64 - 1) as usize) % BOXES;
                let lasts = self.outage();
                self.cut(from, to, lasts);
                if kind == FaultKind::Cut {
                    self.cut(to, from, lasts);
                }
            }
            FaultKind::Isolate => {
                let lasts = self.outage();
                for peer in World::peers(node) {
                    self.cut(node, peer, lasts);
                    self.cut(peer, node, lasts);
                }
            }
            FaultKind::Reset => self.reset_connections(),
            FaultKind::SlowPath => {
                let to = (node + 1 + self.rng.below(BOXES as u64 - 1) as usize) % BOXES;
                let slow = self.rng.between(2, 30);
                self.net.set_slow(node, to, slow);
                let at = self.now + self.outage();
                self.queue.push(at, Ev::NormalSpeed { from: node, to });
            }
            FaultKind::SlowDisk => {
                let slow = self.rng.between(5, 100);
                self.disk_faults(node, DiskFaults { slow, ..DiskFaults::default() });
            }
            FaultKind::DiskErrors => {
                let error_permille = self.rng.pick(&[5, 50, 1000]);
                self.disk_faults(node, DiskFaults { error_permille, ..DiskFaults::default() });
            }
            FaultKind::StuckDisk => {
                let stuck_permille = self.rng.pick(&[5, 50, 500]);
                self.disk_faults(node, DiskFaults { stuck_permille, ..DiskFaults::default() });
            }
            FaultKind::Restart => self.stop_worker(node),
            FaultKind::Switchover => self.wish_switchover(),
            FaultKind::Detach => {
                let volume = self.some_volume();
                self.queue.push(self.now, Ev::Wish { node, volume, control: Control::Detach });
            }
            FaultKind::Force => self.plan_force(),
            FaultKind::Replicas => self.change_replicas(),
            FaultKind::Scrub => self.wish_scrub(),
            FaultKind::DiskFull => self.disk_faults(node, DiskFaults { full: true, ..DiskFaults::default() }),
            FaultKind::ReplaceBox => self.plan_replacement(node),
            FaultKind::Upgrade => self.upgrade(),
            FaultKind::BitRot | FaultKind::PageRot | FaultKind::SilentWrites | FaultKind::LyingFlush => {
                if let Some(flawed) = self.setup.flawed {
                    self.harm(flawed, kind);
                }
            }
        }
    }

    /// How long an outage lasts: often short, sometimes longer than every timer.
    fn outage(&mut self) -> SimTime {
        let longest = self.rng.pick(&[300 * MILLISECOND, 2 * SECOND, 4 * SECOND, 12 * SECOND]);
        self.rng.between(10 * MILLISECOND, longest)
    }

    fn some_store(&mut self) -> usize {
        let boxes = if self.setup.third_stores { BOXES } else { BOXES - 1 };
        self.rng.below(boxes as u64) as usize
    }

    /// One of the volumes.
    pub fn some_volume(&mut self) -> usize {
        self.rng.below(self.volumes.len() as u64) as usize
    }

    fn power_cut_for_a_while(&mut self, node: usize) {
        self.power_off(node);
        let at = self.now + self.outage();
        self.queue.push(at, Ev::PowerOn { node });
    }

    /// Blocks a path for a while.
    pub fn cut(&mut self, from: usize, to: usize, lasts: SimTime) {
        self.note(None, || format!("cut: {} to {} for {} ms", from + 1, to + 1, lasts / MILLISECOND));
        let later = self.net.block(from, to, self.now, &mut self.rng);
        self.schedule_net(later);
        if lasts < NEVER {
            self.queue.push(self.now + lasts, Ev::Unblock { from, to });
        }
    }

    /// Stops a process; with `frozen` its box and clock too, which only a volume with confirmed reads bears.
    pub fn pause(&mut self, node: usize, frozen: bool) {
        let lasts = self.outage();
        let until = self.now + lasts;
        let frozen = frozen && self.setup.timing.confirmed_reads;
        let b = &mut self.boxes[node];
        let Some(worker) = b.worker.as_deref_mut().filter(|worker| worker.paused_until <= self.now) else { return };
        worker.paused_until = until;
        if frozen {
            b.clock.freeze(self.now, until);
        }
        let run = worker.run;
        self.note(None, || format!("{} pauses for {} ms (frozen clock: {frozen})", node + 1, lasts / MILLISECOND));
        self.queue.push(until, Ev::PauseEnd { node, run });
    }

    /// A process goes on: it finds everything that has come meanwhile.
    pub fn end_pause(&mut self, node: usize, run: u32) {
        let Some(worker) = self.boxes[node].worker_of(run) else { return };
        worker.paused_until = 0;
        let held = std::mem::take(&mut worker.held);
        self.note(None, || format!("{} goes on", node + 1));
        for event in held {
            if self.violation.is_none() {
                self.handle(event);
            }
        }
    }

    fn reset_connections(&mut self) {
        for connection in self.net.open_connections(|_| true) {
            if self.rng.chance(700) {
                let later = self.net.reset(connection, self.now, &mut self.rng);
                self.schedule_net(later);
            }
        }
    }

    /// Gives a box's disks these faults for a while.
    pub fn disk_faults(&mut self, node: usize, faults: DiskFaults) {
        self.boxes[node].stores.iter_mut().flatten().for_each(|store| store.raw.faults = faults);
        let at = self.now + self.outage();
        self.queue.push(at, Ev::DiskHeals { node });
    }

    /// A box's disks work as they should.
    pub fn heal_disk(&mut self, node: usize) {
        for store in self.boxes[node].stores.iter_mut().flatten() {
            store.raw.faults = DiskFaults::default();
            store.raw.silent = SilentFaults::default();
        }
    }

    /// A box's disk does silent harm to its copies, or to one of them.
    pub fn harm(&mut self, node: usize, kind: FaultKind) {
        let volume = self.some_volume();
        match kind {
            FaultKind::BitRot => {
                for _ in 0..self.rng.between(1, 3) {
                    let window = self.some_window(volume);
                    let anywhere = BlockRange::new(0, self.setup.volumes[volume].blocks);
                    let range = if self.rng.chance(800) { window } else { anywhere };
                    let block = range.start + self.rng.below(range.count);
                    self.rot_block(node, volume, block);
                }
            }
            FaultKind::PageRot => self.rot_page(node, volume),
            FaultKind::LyingFlush => self.silent_faults(node, SilentFaults { lying: true, ..SilentFaults::default() }),
            _ => {
                let lost_permille = self.rng.pick(&[0, 10, 100]);
                let misdirected_permille = self.rng.pick(&[0, 10, 50]);
                self.silent_faults(
                    node,
                    SilentFaults { lost_permille, misdirected_permille, ..SilentFaults::default() },
                );
            }
        }
    }

    fn silent_faults(&mut self, node: usize, silent: SilentFaults) {
        self.note(None, || format!("disk of {}: {silent:?}", node + 1));
        self.boxes[node].stores.iter_mut().flatten().for_each(|store| store.raw.silent = silent);
        let at = self.now + self.outage();
        self.queue.push(at, Ev::DiskHeals { node });
    }

    /// A block of a copy changes at rest.
    pub fn rot_block(&mut self, node: usize, volume: usize, block: u64) {
        self.note(Some(volume), || format!("{}: block {block} rots", node + 1));
        if let Some(store) = self.boxes[node].stores[volume].as_mut() {
            store.raw.rot_block(block, &mut self.rng);
        }
        self.judge_harm(volume);
    }

    fn rot_page(&mut self, node: usize, volume: usize) {
        let Some(store) = self.boxes[node].stores[volume].as_mut() else { return };
        let written = store.raw.pages_written();
        if written.is_empty() {
            return;
        }
        let page = written[self.rng.below(written.len() as u64) as usize];
        store.raw.rot_page(page, &mut self.rng);
        self.note(Some(volume), || format!("{}: {page:?} rots", node + 1));
        self.judge_harm(volume);
    }

    /// One more box goes on with the newest version.
    fn upgrade(&mut self) {
        let Some(node) = (0..BOXES).find(|node| self.boxes[*node].protocol < PROTOCOL) else { return };
        self.note(None, || format!("box {} is upgraded", node + 1));
        self.boxes[node].protocol = PROTOCOL;
        self.stop_worker(node);
    }

    fn wish_switchover(&mut self) {
        let volume = self.some_volume();
        let Some(config) = self.volumes[volume].newest.as_ref() else { return };
        let node = config.primary.0 as usize - 1;
        let others: Vec<NodeId> = config.replicas.keys().copied().filter(|id| *id != config.primary).collect();
        if !others.is_empty() {
            let to = self.rng.pick(&others);
            self.queue.push(self.now, Ev::Wish { node, volume, control: Control::Switchover { to } });
        }
    }

    fn wish_scrub(&mut self) {
        let volume = self.some_volume();
        let Some(config) = self.volumes[volume].newest.as_ref() else { return };
        let node = config.primary.0 as usize - 1;
        let control = Control::Scrub { verify_only: self.rng.chance(500) };
        self.queue.push(self.now, Ev::Wish { node, volume, control });
    }

    /// Everything works again.
    pub fn heal_everything(&mut self) {
        self.note(None, || "everything is healed".into());
        if self.setup.flawed.is_some() {
            // Only a newer version can tell a peer of a bad block.
            while self.boxes.iter().any(|b| b.protocol < PROTOCOL) {
                self.upgrade();
            }
        }
        for from in 0..BOXES {
            self.heal_disk(from);
            for to in World::peers(from) {
                self.net.set_slow(from, to, 0);
                let later = self.net.unblock(from, to, true, self.now, &mut self.rng);
                self.schedule_net(later);
            }
            self.power_on(from);
        }
    }
}
