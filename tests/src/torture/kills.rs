//! Kill campaign: processes killed and stopped, links cut, disks that fail for a while. Nothing of it may lose a write
//! that was acknowledged, flushed or not: no power is cut.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::campaign::{Rounds, pause, tell};
use super::disk::DiskFaults;
use super::rig::{Rig, VOLUME};
use crate::e2e::cluster::{ALPHA, BETA, WITNESS};
use crate::e2e::process::send;

/// Load before the first fault.
const LOAD_MS: u64 = 300;
/// Between two faults.
const GAP_MS: u64 = 400;
/// How long faults last before the first is mended.
const LAST_MS: [u64; 3] = [100, 700, 2500];
/// How long a failed copy may refuse to be attached again.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
const ATTACH_PAUSE: Duration = Duration::from_millis(200);

/// Something that goes wrong, and can be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the worker; its parent starts another.
    KillWorker(usize),
    /// `kill -9` of the parent, which takes the worker with it.
    KillSupervisor(usize),
    /// `kill -9` of everything on these boxes at one moment.
    KillBoxes(Vec<usize>),
    /// SIGSTOP of everything on a box.
    Stop(usize),
    /// These boxes do not hear each other, but all others.
    Partition(Vec<usize>),
    /// Nobody hears this box.
    Unplug(usize),
    /// The disk under a box's store fails.
    Disk(usize, DiskFaults),
    /// An operator hands the primary role over; nothing to mend.
    Switchover(usize),
}

/// The campaign.
#[derive(Debug, Default)]
pub struct Kills {
    /// Whether boxes live in namespaces, so that links can be cut.
    pub links: bool,
}

impl Kills {
    fn choose(&self, rng: &mut impl Rng) -> Vec<Fault> {
        if rng.random_range(0..8) == 0 {
            // The only other copy must live while one disk fails: else the volume rightly waits for an operator.
            let index = storage(rng);
            let mut faults = vec![Fault::Disk(index, disk_faults(rng))];
            match rng.random_range(0..4) {
                0 => faults.push(Fault::KillWorker(index)),
                1 => faults.push(Fault::KillBoxes(vec![WITNESS])),
                _ => {}
            }
            return faults;
        }
        let count = rng.random_range(1..=3);
        let mut faults: Vec<Fault> = (0..count).map(|_| self.choose_one(rng)).collect();
        // One at a time: a port that is unplugged cannot be isolated, and mending one fault would mend half of another.
        let mut links = 0;
        faults.retain(|fault| {
            links += u32::from(fault.is_of_links());
            !fault.is_of_links() || links == 1
        });
        faults
    }

    fn choose_one(&self, rng: &mut impl Rng) -> Fault {
        match rng.random_range(0..if self.links { 16 } else { 13 }) {
            0..=2 => Fault::KillWorker(any(rng)),
            3 => Fault::KillSupervisor(any(rng)),
            4..=5 => Fault::KillBoxes(vec![any(rng)]),
            6 => Fault::KillBoxes(vec![ALPHA, BETA]),
            7 => Fault::KillBoxes(vec![ALPHA, BETA, WITNESS]),
            8..=10 => Fault::Stop(any(rng)),
            11..=12 => Fault::Switchover(storage(rng)),
            13 => Fault::Partition(vec![ALPHA, BETA]),
            14 => Fault::Partition(vec![storage(rng), WITNESS]),
            _ => Fault::Unplug(any(rng)),
        }
    }
}

fn any(rng: &mut impl Rng) -> usize {
    rng.random_range(ALPHA..=WITNESS)
}

fn storage(rng: &mut impl Rng) -> usize {
    rng.random_range(ALPHA..=BETA)
}

fn disk_faults(rng: &mut impl Rng) -> DiskFaults {
    let one = |at: u32| DiskFaults { reads: at == 0, writes: at == 1, flushes: at == 2, ..DiskFaults::default() };
    match rng.random_range(0..4) {
        3 => DiskFaults { reads: true, writes: true, flushes: true, ..DiskFaults::default() },
        at => one(at),
    }
}

impl Rounds for Kills {
    const FAULTS: &'static str = "faults";

    fn round(&mut self, rig: &mut Rig, rng: &mut ChaCha8Rng, told: &mut String) -> Result<u64, String> {
        let mut faults = self.choose(rng);
        tell(told, format_args!("after {} ms", pause(rng, LOAD_MS)));
        for fault in &faults {
            tell(told, format_args!("{fault:?}"));
            fault.happen(rig)?;
            tell(told, format_args!("{} ms", pause(rng, GAP_MS)));
        }
        let last_ms = LAST_MS[rng.random_range(0..LAST_MS.len())];
        tell(told, format_args!("mended after {} ms", pause(rng, last_ms)));
        faults.shuffle(rng);
        for fault in &faults {
            fault.mend(rig)?;
            pause(rng, GAP_MS / 4);
        }
        // A box may have been killed twice, or stopped and killed: at the end all run.
        for index in [ALPHA, BETA, WITNESS] {
            if !rig.cluster.nodes[index].is_running() {
                rig.power_on(index, false);
            }
        }
        for fault in &faults {
            if let Fault::Disk(index, _) = fault {
                attach(rig, *index)?;
            }
        }
        rig.wait_healthy()?;
        rig.check()?;
        let errors = rig.load.take_errors();
        if errors > 0 {
            tell(told, format_args!("{errors} operations failed with an error"));
        }
        Ok(faults.len() as u64)
    }
}

impl Fault {
    fn is_of_links(&self) -> bool {
        matches!(self, Self::Partition(_) | Self::Unplug(_))
    }

    fn happen(&self, rig: &mut Rig) -> Result<(), String> {
        match self {
            Self::KillWorker(index) => {
                if rig.cluster.nodes[*index].is_running() {
                    let tree = rig.cluster.nodes[*index].process().tree();
                    tree.into_iter().skip(1).for_each(|pid| send(pid, Signal::SIGKILL));
                }
            }
            Self::KillSupervisor(index) => {
                if rig.cluster.nodes[*index].is_running() {
                    rig.cluster.nodes[*index].process().signal(Signal::SIGKILL);
                }
            }
            Self::KillBoxes(boxes) => rig.kill(boxes),
            Self::Stop(index) => {
                if rig.cluster.nodes[*index].is_running() {
                    rig.cluster.nodes[*index].process().signal_tree(Signal::SIGSTOP);
                }
            }
            Self::Partition(boxes) => rig.cluster.network.namespaces().cut_between(boxes),
            Self::Unplug(index) => rig.cluster.network.namespaces().unplug(*index),
            Self::Disk(index, faults) => rig.disk(*index).set_faults(*faults).map_err(|error| error.to_string())?,
            Self::Switchover(index) => {
                let name = rig.cluster.nodes[*index].name.clone();
                if let Some(at) = rig.some_answering_node() {
                    // It may fail: other faults are about.
                    let _ = rig.cluster.cli(at, &["volume", "switchover", VOLUME, "--to", &name, "--timeout", "2"]);
                }
            }
        }
        Ok(())
    }

    fn mend(&self, rig: &mut Rig) -> Result<(), String> {
        match self {
            Self::KillWorker(_) | Self::Switchover(_) => {}
            Self::KillSupervisor(index) => restart(rig, *index),
            Self::KillBoxes(boxes) => boxes.iter().for_each(|index| restart(rig, *index)),
            Self::Stop(index) => {
                if rig.cluster.nodes[*index].is_running() {
                    rig.cluster.nodes[*index].process().signal_tree(Signal::SIGCONT);
                }
            }
            Self::Partition(boxes) => rig.cluster.network.namespaces().mend_between(boxes),
            Self::Unplug(index) => rig.cluster.network.namespaces().plug(*index),
            Self::Disk(index, _) => {
                rig.disk(*index).set_faults(DiskFaults::default()).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

fn restart(rig: &mut Rig, index: usize) {
    if !rig.cluster.nodes[index].is_running() {
        rig.power_on(index, false);
    }
}

/// Attaches a copy whose disk has failed, until it is used again. One that never noticed is in sync already.
fn attach(rig: &mut Rig, index: usize) -> Result<(), String> {
    let name = rig.cluster.nodes[index].name.clone();
    let deadline = Instant::now() + ATTACH_LIMIT;
    let mut last = String::new();
    while !rig.is_healthy() {
        if Instant::now() >= deadline {
            return Err(format!("the copy of {name} is not used again within {ATTACH_LIMIT:?}: {last}"));
        }
        let outcome = rig.cluster.cli(index, &["volume", "attach", VOLUME, "--node", &name]);
        if outcome.code != 0 {
            last = outcome.stderr;
        }
        std::thread::sleep(ATTACH_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::campaign::round_rng;
    use super::*;

    #[test]
    fn links_are_cut_only_where_they_can_be_and_a_seed_repeats_its_faults() {
        let of = |links, number| Kills { links }.choose(&mut round_rng(1, number));
        let links_of = |links, number| of(links, number).iter().filter(|fault| fault.is_of_links()).count();
        assert!((0..500).any(|number| links_of(true, number) == 1));
        assert!((0..500).all(|number| links_of(true, number) <= 1));
        assert!((0..500).all(|number| links_of(false, number) == 0));
        assert!((0..500).all(|number| of(true, number) == of(true, number)));
    }

    #[test]
    fn the_other_copy_lives_while_a_disk_fails() {
        let of = |number| Kills { links: true }.choose(&mut round_rng(2, number));
        let disk = |faults: &Vec<Fault>| matches!(faults[0], Fault::Disk(..));
        let rounds: Vec<_> = (0..500).map(of).filter(disk).collect();
        assert!(!rounds.is_empty());
        for faults in rounds {
            let Fault::Disk(failing, _) = faults[0] else { panic!("chosen above") };
            let allowed = [Fault::KillWorker(failing), Fault::KillBoxes(vec![WITNESS])];
            assert!(faults[1..].iter().all(|fault| allowed.contains(fault)), "{faults:?}");
        }
    }
}
